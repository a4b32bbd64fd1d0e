//! Everything about one pod's proxy, decided: annotations over the mesh's `defaultConfig` over the injection values.

use std::collections::BTreeMap;

use osier_core::sidecar::OWN_PORTS;
use serde_json::{Map, Value};

use super::annotation::{Annotations, Capture, Readiness};
use super::pod::Pod;
use super::proxy_config::{InterceptionMode, ProxyConfig};
use super::template::{GATEWAY, SIDECAR};
use super::values::Values;
use super::workload::Workload;
use super::{INIT, Injector, PROXY, Request, workload};

/// What is captured, as the init container is told.
pub(super) struct Captured {
    pub include_ip_ranges: String,
    pub exclude_ip_ranges: String,
    pub include_inbound_ports: String,
    pub exclude_inbound_ports: String,
    pub include_outbound_ports: String,
    pub exclude_outbound_ports: String,
    pub exclude_interfaces: String,
    pub virtual_interfaces: String,
}

/// Times and counts of the readiness probe.
pub(super) struct ReadinessProbe {
    pub initial_delay: u32,
    pub period: u32,
    pub failures: u32,
}

/// Everything about one proxy.
pub(super) struct Plan<'v> {
    pub values: &'v Values,
    pub templates: Vec<String>,
    pub native: bool,
    /// The application waits for a proxy that is no native sidecar.
    pub hold: bool,
    pub mode: InterceptionMode,
    pub image: String,
    pub init_image: String,
    pub resources: Map<String, Value>,
    pub log_level: String,
    /// 0: none.
    pub status_port: u16,
    pub readiness: ReadinessProbe,
    pub captured: Captured,
    /// Variables of both containers.
    pub metadata: BTreeMap<String, String>,
    /// `PROXY_CONFIG`.
    pub config: Map<String, Value>,
    pub workload: Workload,
    pub cluster: String,
    pub network: String,
    pub mesh_id: String,
    pub ports: Value,
    pub app_containers: String,
    pub volumes: Vec<Value>,
    pub mounts: Vec<Value>,
}

/// Where the proxy's admin interface and its status port are unless ProxyConfig says another.
const ADMIN_PORT: u16 = 15000;
const STATUS_PORT: u16 = 15020;
/// Port on which a control plane serves xDS as it is, and gives no certificates.
const PLAINTEXT_PORT: &str = ":15010";

impl<'v> Plan<'v> {
    /// The control plane is reached by TLS, and the proxy gets a certificate of the mesh.
    pub(super) fn encrypted(&self) -> bool {
        !self.config["discoveryAddress"].as_str().is_some_and(|address| address.ends_with(PLAINTEXT_PORT))
    }

    /// Decides for `pod`, whose containers are the user's own.
    pub(super) fn new(
        injector: &'v Injector,
        pod: &Pod,
        request: &Request,
        said: Annotations,
    ) -> Result<Self, String> {
        let values = &injector.values;
        let proxy = &values.global.proxy;
        let config = said.config.or(&injector.mesh.default_config);
        let templates = said.templates.filter(|names| !names.is_empty());
        let templates =
            templates.unwrap_or_else(|| match &values.sidecar_injector_webhook.default_templates {
                names if names.is_empty() => vec![SIDECAR.to_owned()],
                names => names.clone(),
            });
        check_templates(&templates, values)?;
        let status_port = config.status_port.unwrap_or(proxy.status_port);
        check_ports(status_port, config.proxy_admin_port)?;
        let has = |wanted: &str| templates.iter().any(|name| name == wanted);
        let (sidecar, gateway) = (has(SIDECAR), has(GATEWAY));
        let ours = [PROXY, INIT];
        let image = said.image.unwrap_or_else(|| values.image(&proxy.image));
        let init_image = match values.global.init.image.as_str() {
            "" => image.clone(),
            name => values.image(name),
        };
        let levels = [
            said.log_level.unwrap_or_else(|| proxy.log_level.clone()),
            said.component_log_level.unwrap_or_default(),
        ];
        let network = pod.first_label(&["topology.istio.io/network"]).or(request.network);
        let names = pod.list("containers").iter().filter_map(|c| c["name"].as_str());
        Ok(Self {
            values,
            native: sidecar && said.native.unwrap_or(proxy.native_sidecar),
            hold: config
                .hold_application_until_proxy_starts
                .unwrap_or(proxy.hold_application_until_proxy_starts),
            mode: if gateway { InterceptionMode::None } else { config.interception_mode.unwrap_or_default() },
            image,
            init_image,
            resources: said.resources.unwrap_or_else(|| proxy.resources.clone()),
            log_level: levels.into_iter().filter(|l| !l.is_empty()).collect::<Vec<_>>().join(","),
            status_port,
            readiness: readiness(said.readiness, values),
            captured: captured(said.capture, values),
            config: proxy_config(&config, injector),
            metadata: config.proxy_metadata,
            workload: Workload::of(pod, request.namespace, request.made_by.as_ref()),
            cluster: request.cluster.unwrap_or(&values.global.multi_cluster.cluster_name).to_owned(),
            network: network.unwrap_or(&values.global.network).to_owned(),
            mesh_id: match values.global.mesh_id.as_str() {
                "" => injector.mesh.trust_domain.clone(),
                id => id.to_owned(),
            },
            ports: workload::ports(pod, &ours),
            app_containers: names.filter(|name| !ours.contains(name)).collect::<Vec<_>>().join(","),
            templates,
            volumes: said.volumes,
            mounts: said.mounts,
        })
    }

    /// The proxy is the application.
    pub(super) fn is_gateway(&self) -> bool {
        self.templates.iter().any(|name| name == GATEWAY)
    }
}

fn check_templates(names: &[String], values: &Values) -> Result<(), String> {
    let custom = &values.sidecar_injector_webhook.templates;
    let known = |name: &str| [SIDECAR, GATEWAY].contains(&name) || custom.contains_key(name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let all: Vec<&str> =
            [SIDECAR, GATEWAY].into_iter().chain(custom.keys().map(String::as_str)).collect();
        return Err(format!(
            "inject.istio.io/templates: there is no template {unknown:?}, only {}",
            all.join(", ")
        ));
    }
    match [SIDECAR, GATEWAY].iter().all(|name| names.iter().any(|n| n == name)) {
        true => Err("inject.istio.io/templates: sidecar and gateway exclude each other".into()),
        false => Ok(()),
    }
}

/// The ports that can be chosen must be nobody else's of the proxy.
fn check_ports(status: u16, admin: Option<u16>) -> Result<(), String> {
    let taken = |port: &u16, usual: u16| *port != usual && OWN_PORTS.contains(port);
    let wrong = |what: &str, port: u16| Err(format!("{what}: port {port} is the proxy's own"));
    match admin {
        Some(admin) if taken(&admin, ADMIN_PORT) => wrong("proxyAdminPort", admin),
        Some(admin) if admin == status => wrong("statusPort", status),
        _ if taken(&status, STATUS_PORT) => wrong("statusPort", status),
        _ => Ok(()),
    }
}

fn readiness(said: Readiness, values: &Values) -> ReadinessProbe {
    let proxy = &values.global.proxy;
    ReadinessProbe {
        initial_delay: said.initial_delay.unwrap_or(proxy.readiness_initial_delay_seconds),
        period: said.period.unwrap_or(proxy.readiness_period_seconds),
        failures: said.failures.unwrap_or(proxy.readiness_failure_threshold),
    }
}

fn captured(said: Capture, values: &Values) -> Captured {
    let proxy = &values.global.proxy;
    let or = |said: Option<String>, value: &String| said.unwrap_or_else(|| value.clone());
    Captured {
        include_ip_ranges: or(said.include_ip_ranges, &proxy.include_ip_ranges),
        exclude_ip_ranges: or(said.exclude_ip_ranges, &proxy.exclude_ip_ranges),
        include_inbound_ports: or(said.include_inbound_ports, &proxy.include_inbound_ports),
        exclude_inbound_ports: or(said.exclude_inbound_ports, &proxy.exclude_inbound_ports),
        include_outbound_ports: or(said.include_outbound_ports, &proxy.include_outbound_ports),
        exclude_outbound_ports: or(said.exclude_outbound_ports, &proxy.exclude_outbound_ports),
        exclude_interfaces: said.exclude_interfaces.unwrap_or_default(),
        virtual_interfaces: said.virtual_interfaces.unwrap_or_default(),
    }
}

/// The part that the proxy reads itself; the rest is in the pod already. What is as by default is left out.
fn proxy_config(config: &ProxyConfig, injector: &Injector) -> Map<String, Value> {
    let address = config.discovery_address.clone().unwrap_or_else(|| injector.discovery_address());
    let mut made = Map::from_iter([("discoveryAddress".to_owned(), address.into())]);
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            made.insert(name.to_owned(), value);
        }
    };
    // 0 is Istio's word for one thread for each core; the proxy takes numbers above it
    add("concurrency", config.concurrency.filter(|threads| *threads > 0).map(Value::from));
    add("proxyAdminPort", config.proxy_admin_port.map(Value::from));
    let status_port = config.status_port.unwrap_or(injector.values.global.proxy.status_port);
    add("statusPort", (status_port != STATUS_PORT).then(|| status_port.into()));
    add("terminationDrainDuration", config.termination_drain_duration.clone().map(Value::from));
    made
}
