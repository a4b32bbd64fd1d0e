//! Who a sidecar or gateway is: what injection puts into a pod's environment (Istio's names), and the downward API's file of labels.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use osier_core::duration;
use osier_core::registration::METADATA_KEY;
use osier_core::sidecar;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{DrainSettings, Interception, PodSettings};
use crate::bootstrap::Node;
use crate::config::endpoint::Locality;
use crate::dns;
use crate::status;
use crate::status::probers::Probers;
use crate::status::scrape::Scrape;

/// Where nothing says another.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// How long another DNS server may take.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
/// Where injection mounts the pod's labels.
const LABELS_FILE: &str = "/etc/istio/pod/labels";

/// What a workload's proxy is to the mesh: the first word of its xDS node id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It stands beside an application.
    Sidecar,
    /// It takes clients in from outside.
    Gateway,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Gateway => "router",
        }
    }
}

/// Variables, and the one file, that a sidecar looks at. A value so that tests need no real environment.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// All variables.
    pub variables: BTreeMap<String, String>,
    /// The downward API's file of labels.
    pub labels_file: PathBuf,
}

impl Environment {
    /// The environment of this process. Variables that aren't text are nobody's here.
    pub fn of_process() -> Self {
        let text = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((key.into_string().ok()?, value.into_string().ok()?))
        };
        Self { variables: std::env::vars_os().filter_map(text).collect(), labels_file: LABELS_FILE.into() }
    }

    /// A variable that isn't empty.
    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// `PROXY_CONFIG`; its defaults where it is missing or wrong.
    pub(super) fn proxy_config(&self, mistakes: &mut Vec<String>) -> ProxyConfig {
        match self.get("PROXY_CONFIG").map(serde_saphyr::from_str::<ProxyConfig>) {
            Some(Ok(config)) => config,
            Some(Err(error)) => {
                mistakes.push(format!("PROXY_CONFIG: {error}"));
                ProxyConfig::default()
            }
            None => ProxyConfig::default(),
        }
    }

    /// Whether a variable switches something on.
    fn switch(&self, name: &str, mistakes: &mut Vec<String>) -> bool {
        let on = sidecar::switch(self.get(name).unwrap_or_default());
        on.unwrap_or_else(|| {
            mistakes.push(format!("{name} is neither true nor false"));
            false
        })
    }
}

/// The part of Istio's ProxyConfig (`PROXY_CONFIG`, YAML or JSON) that a sidecar acts on.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// Address of the control plane.
    pub discovery_address: Option<String>,
    /// Worker threads.
    pub concurrency: Option<u16>,
    /// How long to drain.
    pub termination_drain_duration: Option<String>,
    /// Port of the admin interface.
    #[serde(rename = "proxyAdminPort")]
    pub admin_port: Option<u16>,
    /// Port of the status server; 0 for none.
    pub status_port: Option<u16>,
    /// How traffic is captured, unless `ISTIO_META_INTERCEPTION_MODE` says it.
    pub interception_mode: Option<String>,
    /// What injection has acted on; nothing is left to do here.
    #[serde(rename = "holdApplicationUntilProxyStarts")]
    pub hold_application: Option<bool>,
    /// Variables, as if they were set.
    pub proxy_metadata: BTreeMap<String, String>,
}

/// What the environment says.
#[derive(Debug, Default)]
pub struct Identity {
    /// The xDS node; `None` after a mistake.
    pub node: Option<Node>,
    /// `PROXY_CONFIG`.
    pub proxy_config: ProxyConfig,
    /// How the pod's traffic is captured.
    pub interception: Interception,
    /// What is known of the pod; `None` for who registers itself, and where nothing is captured and no status port is wanted.
    pub pod: Option<PodSettings>,
    drain: Option<Duration>,
    minimum_drain: Option<Duration>,
    until_idle: bool,
}

impl Identity {
    /// Reads everything; mistakes go to `mistakes`.
    pub fn read(environment: &Environment, role: Role, mistakes: &mut Vec<String>) -> Self {
        let proxy_config = environment.proxy_config(mistakes);
        let mut environment = environment.clone();
        // Injection sets these as variables of the container; a variable that is set wins.
        for (key, value) in &proxy_config.proxy_metadata {
            environment.variables.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let mut time = |name: &str, text: Option<&str>| {
            text.and_then(|text| match duration::parse(text) {
                Ok(duration) => Some(duration),
                Err(error) => {
                    mistakes.push(format!("{name}: `{text}` {error}"));
                    None
                }
            })
        };
        let drain = time("terminationDrainDuration", proxy_config.termination_drain_duration.as_deref());
        let minimum_drain = time("MINIMUM_DRAIN_DURATION", environment.get("MINIMUM_DRAIN_DURATION"));
        let until_idle = environment.switch("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", mistakes);
        let node = node(&environment, role, mistakes);
        let interception = match role {
            Role::Sidecar => interception(&environment, &proxy_config, mistakes),
            Role::Gateway => Interception::None,
        };
        // Who registers itself (`osier run`) shares its machine with others, and these ports with it.
        let registers = node.as_ref().is_some_and(|node| node.metadata.contains_key(METADATA_KEY));
        let captures = interception != Interception::None;
        // A gateway has its pod's figures to itself, whatever else it serves.
        let asked = captures || role == Role::Gateway || proxy_config.status_port != Some(0);
        let pod = (asked && !registers).then(|| pod(&environment, &proxy_config, captures, mistakes));
        Self { node, proxy_config, interception, pod: pod.flatten(), drain, minimum_drain, until_idle }
    }

    /// How to end, with `default` where nothing is said.
    pub fn drain(&self, default: Duration) -> DrainSettings {
        let time = if self.until_idle { self.minimum_drain } else { self.drain };
        DrainSettings { time: time.unwrap_or(default), until_idle: self.until_idle }
    }
}

fn interception(
    environment: &Environment,
    proxy_config: &ProxyConfig,
    mistakes: &mut Vec<String>,
) -> Interception {
    let variable = "ISTIO_META_INTERCEPTION_MODE";
    let (name, mode) = match environment.get(variable) {
        Some(mode) => (variable, mode),
        None => (
            "PROXY_CONFIG: interceptionMode",
            proxy_config.interception_mode.as_deref().unwrap_or("REDIRECT"),
        ),
    };
    match mode {
        "REDIRECT" => Interception::Redirect,
        "TPROXY" => Interception::Tproxy,
        "NONE" => Interception::None,
        other => {
            mistakes.push(format!("{name}: `{other}` is none of REDIRECT, TPROXY, NONE"));
            Interception::None
        }
    }
}

/// What injection says of the application.
fn pod(
    environment: &Environment,
    proxy_config: &ProxyConfig,
    captures: bool,
    mistakes: &mut Vec<String>,
) -> Option<PodSettings> {
    // A mistake in it is reported with the node.
    let addresses = addresses(environment, &mut Vec::new());
    let address = *addresses.first()?;
    let status_port = proxy_config.status_port.unwrap_or(status::STATUS_PORT);
    let read = |name: &str| environment.get(name).map(|text| (name.to_owned(), text.to_owned()));
    let (probers, scrape) = (read("ISTIO_KUBE_APP_PROBERS"), read("ISTIO_PROMETHEUS_ANNOTATIONS"));
    let probers = probers.and_then(|(name, text)| {
        let source = captures.then(|| status::source(address));
        let parsed = Probers::parse(&text, address, source, status_port);
        parsed.map_err(|error| mistakes.push(format!("{name}: {error}"))).ok()
    });
    let scrape = scrape.and_then(|(name, text)| {
        let parsed = Scrape::parse(&text, status_port);
        parsed.map_err(|error| mistakes.push(format!("{name}: {error}"))).ok()
    });
    Some(PodSettings {
        addresses,
        status_port: Some(status_port).filter(|port| *port > 0),
        probers: probers.unwrap_or_default(),
        scrape: scrape.unwrap_or_default(),
        dns: dns_settings(environment, mistakes),
    })
}

/// What there is to know for answering the pod's DNS queries; `None` where they don't come here.
fn dns_settings(environment: &Environment, mistakes: &mut Vec<String>) -> Option<dns::Settings> {
    let mut on = |name: &str| environment.switch(name, mistakes);
    let (wanted, parallel) = (on("ISTIO_META_DNS_CAPTURE"), on("DNS_FORWARD_PARALLEL"));
    let forward_timeout =
        match environment.get("DNS_FORWARD_TIMEOUT").map(|text| (text, duration::parse(text))) {
            Some((_, Ok(time))) if !time.is_zero() => time,
            Some((text, _)) => {
                mistakes.push(format!("DNS_FORWARD_TIMEOUT: `{text}` is not a duration like 5s"));
                FORWARD_TIMEOUT
            }
            None => FORWARD_TIMEOUT,
        };
    let namespace = environment.get("POD_NAMESPACE").unwrap_or("default").to_owned();
    let domain = environment.get("DNS_DOMAIN").unwrap_or_default().trim_end_matches('.');
    let cluster_domain = match domain.strip_prefix(&format!("{namespace}.svc.")) {
        Some(domain) => domain.to_ascii_lowercase(),
        None => CLUSTER_DOMAIN.to_owned(),
    };
    wanted.then_some(dns::Settings { namespace, cluster_domain, forward_timeout, forward_parallel: parallel })
}

fn node(environment: &Environment, role: Role, mistakes: &mut Vec<String>) -> Option<Node> {
    let before = mistakes.len();
    let addresses = addresses(environment, mistakes);
    let name = environment.get("POD_NAME");
    if name.is_none() {
        mistakes.push("POD_NAME is needed: the name of this instance".to_owned());
    }
    let namespace = environment.get("POD_NAMESPACE").unwrap_or("default");
    let metadata = metadata(environment, namespace, &addresses, mistakes);
    let ip = addresses.first()?;
    let name = name?;
    if mistakes.len() > before {
        return None;
    }
    let domain =
        environment.get("DNS_DOMAIN").map_or_else(|| format!("{namespace}.svc.cluster.local"), str::to_owned);
    let app = metadata.get("LABELS").and_then(|labels| labels.get("app")).and_then(Value::as_str);
    Some(Node {
        id: format!("{}~{ip}~{name}.{namespace}~{domain}", role.word()),
        cluster: format!("{}.{namespace}", app.unwrap_or(name)),
        locality: Locality::default(),
        metadata,
    })
}

fn addresses(environment: &Environment, mistakes: &mut Vec<String>) -> Vec<IpAddr> {
    let Some(text) = environment.get("INSTANCE_IPS").or(environment.get("INSTANCE_IP")) else {
        mistakes.push("INSTANCE_IP is needed: the address of this instance".to_owned());
        return Vec::new();
    };
    let parsed: Result<Vec<IpAddr>, _> = text.split(',').map(|ip| ip.trim().parse()).collect();
    parsed.unwrap_or_else(|_| {
        mistakes.push(format!("INSTANCE_IP: `{text}` is not an IP address"));
        Vec::new()
    })
}

/// `ISTIO_META_X=text` is X, `ISTIO_METAJSON_X=json` is X with a kind, and a few facts have variables of their own.
fn metadata(
    environment: &Environment,
    namespace: &str,
    addresses: &[IpAddr],
    mistakes: &mut Vec<String>,
) -> Map<String, Value> {
    let mut metadata = Map::new();
    let mut labels = pod_labels(&environment.labels_file);
    for (key, value) in &environment.variables {
        if let Some(key) = key.strip_prefix("ISTIO_META_") {
            metadata.insert(key.to_owned(), value.as_str().into());
        } else if let Some(key) = key.strip_prefix("ISTIO_METAJSON_") {
            match serde_json::from_str::<Value>(value) {
                Ok(Value::Object(object)) if key == "LABELS" => labels.extend(object),
                Ok(value) => drop(metadata.insert(key.to_owned(), value)),
                Err(error) => mistakes.push(format!("ISTIO_METAJSON_{key}: {error}")),
            }
        }
    }
    let listed = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut fill = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            metadata.entry(key).or_insert_with(|| value.into());
        }
    };
    fill("NAME", environment.get("POD_NAME"));
    fill("NAMESPACE", Some(namespace));
    fill("INSTANCE_IPS", Some(&listed).filter(|text| !text.is_empty()).map(String::as_str));
    fill("SERVICE_ACCOUNT", environment.get("SERVICE_ACCOUNT"));
    fill("NODE_NAME", environment.get("NODE_NAME"));
    canonical_labels(&mut labels, metadata.get("WORKLOAD_NAME"));
    if !labels.is_empty() {
        metadata.insert("LABELS".to_owned(), Value::Object(labels));
    }
    metadata
}

/// What injection sets where the pod doesn't say which service, and which revision of it, the workload is.
fn canonical_labels(labels: &mut Map<String, Value>, workload: Option<&Value>) {
    let first = |keys: [&str; 2]| keys.iter().find_map(|key| labels.get(*key)).cloned();
    let name = first(["app.kubernetes.io/name", "app"]).or(workload.cloned());
    let revision = first(["app.kubernetes.io/version", "version"]).unwrap_or_else(|| "latest".into());
    let Some(name) = name else { return };
    labels.entry("service.istio.io/canonical-name").or_insert(name);
    labels.entry("service.istio.io/canonical-revision").or_insert(revision);
}

/// Lines `key="value"`; no file is no labels.
fn pod_labels(file: &std::path::Path) -> Map<String, Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let pair = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let value: String = serde_json::from_str(value).ok()?;
        Some((key.to_owned(), value.into()))
    };
    text.lines().filter_map(pair).collect()
}
