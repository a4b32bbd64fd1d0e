//! The injection values: key `values` of the ConfigMap `osier-sidecar-injector`, with the names that they have in Istio's chart.
//!
//! Strict: a typo is refused with its path, and whoever reads them keeps the last good ones.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::syntax::Parsed;
use super::{syntax, template};
use crate::model::LabelSelector;
use crate::source::decode::{DecodeError, decode};
use crate::source::yaml;
use crate::store::schema::{Ignored, kubernetes as schema};

/// All values, with their defaults filled in.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Values {
    /// What holds for all parts.
    pub global: Global,
    /// What only the injector reads.
    pub sidecar_injector_webhook: Webhook,
    /// Read by the chart.
    #[serde(rename = "revision")]
    _revision: Ignored,
}

/// `global`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Global {
    /// Where images are.
    pub hub: String,
    /// Their version.
    pub tag: String,
    /// `imagePullPolicy` of what is injected; empty leaves it to Kubernetes.
    #[serde(deserialize_with = "pull_policy")]
    pub image_pull_policy: String,
    /// Names of Secrets that pods get to pull images with.
    pub image_pull_secrets: Vec<String>,
    /// Namespace of the control plane.
    pub istio_namespace: String,
    /// Name of the mesh; empty: the trust domain.
    #[serde(rename = "meshID")]
    pub mesh_id: String,
    /// Network of the pods.
    pub network: String,
    /// Name of this cluster.
    pub multi_cluster: MultiCluster,
    /// Log as JSON.
    pub log_as_json: bool,
    /// The injected proxy.
    pub proxy: Proxy,
    /// The injected init container.
    #[serde(rename = "proxy_init")]
    pub init: Init,
}

/// `global.multiCluster`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MultiCluster {
    /// Name of this cluster.
    pub cluster_name: String,
    /// Read by the chart.
    #[serde(rename = "enabled")]
    _enabled: Ignored,
}

/// `global.proxy`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Proxy {
    /// A name below the hub, or a whole reference.
    pub image: String,
    /// Whether pods are injected that say nothing themselves.
    pub auto_inject: AutoInject,
    /// Before the application and restarted apart from it (a native sidecar), or a container like others.
    pub native_sidecar: bool,
    /// Domain of Kubernetes services.
    pub cluster_domain: String,
    /// Where the control plane is; empty: the Service of the revision.
    pub discovery_address: String,
    /// What the proxy logs; empty: its own default.
    #[serde(deserialize_with = "log_levels")]
    pub log_level: String,
    /// Run privileged.
    pub privileged: bool,
    /// `resources` of what is injected.
    pub resources: Map<String, Value>,
    /// `lifecycle` of the proxy, instead of ours.
    pub lifecycle: Map<String, Value>,
    /// Port of health and merged metrics.
    pub status_port: u16,
    /// Captured destinations.
    #[serde(rename = "includeIPRanges", deserialize_with = "ranges_or_all")]
    pub include_ip_ranges: String,
    /// Destinations that are not captured.
    #[serde(rename = "excludeIPRanges", deserialize_with = "ranges")]
    pub exclude_ip_ranges: String,
    /// Captured inbound ports.
    #[serde(deserialize_with = "ports_or_all")]
    pub include_inbound_ports: String,
    /// Inbound ports that are not captured.
    #[serde(deserialize_with = "ports")]
    pub exclude_inbound_ports: String,
    /// Ports that are captured whatever their destination.
    #[serde(deserialize_with = "ports")]
    pub include_outbound_ports: String,
    /// Outbound ports that are not captured.
    #[serde(deserialize_with = "ports")]
    pub exclude_outbound_ports: String,
    /// Readiness: delay before the first probe.
    pub readiness_initial_delay_seconds: u32,
    /// Readiness: time between probes.
    pub readiness_period_seconds: u32,
    /// Readiness: failures before the pod isn't ready.
    pub readiness_failure_threshold: u32,
    /// The probe that holds the readiness probe back.
    pub startup_probe: StartupProbe,
    /// The application waits until the proxy is ready (containers that are no native sidecars).
    pub hold_application_until_proxy_starts: bool,
}

/// `global.proxy.startupProbe`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StartupProbe {
    /// Whether there is one. A native sidecar always has one: it holds the application back.
    pub enabled: bool,
    /// Seconds before the container is restarted.
    pub failure_threshold: u32,
}

/// `global.proxy_init`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Init {
    /// Its image; empty: the proxy's.
    pub image: String,
}

/// `global.proxy.autoInject`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AutoInject {
    /// Injected.
    Enabled,
    /// Not injected.
    Disabled,
}

/// `sidecarInjectorWebhook`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Webhook {
    /// Pods that any of these selects are not injected.
    #[serde(deserialize_with = "selectors")]
    pub never_inject_selector: Vec<LabelSelector>,
    /// Pods that any of these selects are injected.
    #[serde(deserialize_with = "selectors")]
    pub always_inject_selector: Vec<LabelSelector>,
    /// Annotations that all injected pods get.
    pub injected_annotations: BTreeMap<String, String>,
    /// The application's probes are asked through the proxy's status port.
    #[serde(rename = "rewriteAppHTTPProbe")]
    pub rewrite_probes: bool,
    /// Templates of pods that choose none.
    pub default_templates: Vec<String>,
    /// Templates of one's own, by name: a part of a pod as YAML.
    #[serde(deserialize_with = "templates")]
    pub templates: BTreeMap<String, Value>,
    /// Read by the chart.
    #[serde(rename = "reinvocationPolicy")]
    _reinvocation: Ignored,
    /// Read by the chart.
    #[serde(rename = "enableNamespacesByDefault")]
    _by_default: Ignored,
}

impl Values {
    /// Reads the YAML text; an empty one is all defaults.
    pub fn parse(text: &str) -> Result<Self, DecodeError> {
        let wrong = |line, message: String| DecodeError { path: "values".into(), line, message };
        let mut documents = yaml::parse(text).map_err(|e| wrong(e.line, e.message))?;
        match documents.as_mut_slice() {
            [] => Ok(Self::default()),
            [one] => decode(one),
            [_, second, ..] => Err(wrong(second.line, "has more than one document".into())),
        }
    }

    /// An image by its name below the hub; a whole reference stays what it is.
    pub(super) fn image(&self, name: &str) -> String {
        if name.contains('/') {
            return name.to_owned();
        }
        let Global { hub, tag, .. } = &self.global;
        format!("{hub}/{name}:{tag}")
    }
}

/// Selectors as they are asked for each pod.
fn selectors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LabelSelector>, D::Error> {
    let written = Vec::<schema::LabelSelector>::deserialize(deserializer)?;
    Ok(written.iter().map(LabelSelector::from).collect())
}

/// Templates are read when the values are, so that a broken one is told to who writes it, not to who starts a pod.
fn templates<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Value>, D::Error> {
    let texts = BTreeMap::<String, String>::deserialize(deserializer)?;
    let read = |(name, text): (String, String)| match template::custom(&name, &text) {
        Ok(fragment) => Ok((name, fragment)),
        Err(error) => Err(D::Error::custom(format!("template {name:?}: {error}"))),
    };
    texts.into_iter().map(read).collect()
}

/// Text that is written as the annotation is that overrides it.
macro_rules! written_as {
    ($($name:ident),*) => {$(
        fn $name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
            let text = String::deserialize(deserializer)?;
            let parsed: Parsed<String> = syntax::$name(&text);
            parsed.map_err(D::Error::custom)
        }
    )*};
}

written_as!(log_levels, ports, ports_or_all, pull_policy, ranges, ranges_or_all);

impl Default for Global {
    fn default() -> Self {
        Self {
            hub: "osier".into(),
            tag: env!("CARGO_PKG_VERSION").into(),
            image_pull_policy: String::new(),
            image_pull_secrets: Vec::new(),
            istio_namespace: "osier-system".into(),
            mesh_id: String::new(),
            network: String::new(),
            multi_cluster: MultiCluster::default(),
            log_as_json: false,
            proxy: Proxy::default(),
            init: Init::default(),
        }
    }
}

impl Default for MultiCluster {
    fn default() -> Self {
        Self { cluster_name: "Kubernetes".into(), _enabled: Ignored }
    }
}

impl Default for Proxy {
    fn default() -> Self {
        let resources = serde_json::json!({
            "requests": {"cpu": "25m", "memory": "32Mi"},
            "limits": {"cpu": "2000m", "memory": "1024Mi"},
        });
        Self {
            image: "proxy".into(),
            auto_inject: AutoInject::Enabled,
            native_sidecar: true,
            cluster_domain: "cluster.local".into(),
            discovery_address: String::new(),
            log_level: String::new(),
            privileged: false,
            resources: resources.as_object().cloned().unwrap_or_default(),
            lifecycle: Map::new(),
            status_port: 15020,
            include_ip_ranges: "*".into(),
            exclude_ip_ranges: String::new(),
            include_inbound_ports: "*".into(),
            exclude_inbound_ports: String::new(),
            include_outbound_ports: String::new(),
            exclude_outbound_ports: String::new(),
            readiness_initial_delay_seconds: 0,
            readiness_period_seconds: 15,
            readiness_failure_threshold: 4,
            startup_probe: StartupProbe::default(),
            hold_application_until_proxy_starts: false,
        }
    }
}

impl Default for StartupProbe {
    fn default() -> Self {
        Self { enabled: true, failure_threshold: 600 }
    }
}

impl Default for Webhook {
    fn default() -> Self {
        Self {
            never_inject_selector: Vec::new(),
            always_inject_selector: Vec::new(),
            injected_annotations: BTreeMap::new(),
            rewrite_probes: true,
            default_templates: Vec::new(),
            templates: BTreeMap::new(),
            _reinvocation: Ignored,
            _by_default: Ignored,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(Values::parse("").unwrap(), Values::default());
        let quiet = "revision: canary\nsidecarInjectorWebhook: {reinvocationPolicy: Never}\n";
        assert_eq!(Values::parse(quiet).unwrap(), Values::default());
        for (text, wanted) in [
            ("global: {proxi: {}}", "global.proxi: unknown field, did you mean proxy?"),
            (
                "global: {proxy: {includeIPRanges: all}}",
                "global.proxy.includeIPRanges: \"all\" is no range of addresses such as 10.0.0.0/8",
            ),
            (
                "global: {proxy: {excludeInboundPorts: '*'}}",
                "global.proxy.excludeInboundPorts: \"*\" is no port number (1 to 65535)",
            ),
            (
                "global: {proxy: {autoInject: maybe}}",
                "global.proxy.autoInject: \"maybe\" is none of enabled, disabled",
            ),
            (
                "sidecarInjectorWebhook: {templates: {a: '{{ x }}'}}",
                "sidecarInjectorWebhook.templates: template \"a\": line 1: Go template actions",
            ),
            ("a: 1\n---\nb: 2", "values: has more than one document"),
            ("a: [", "values: "),
        ] {
            let said = Values::parse(text).unwrap_err().to_string();
            assert!(said.starts_with(wanted), "{text}: {said}");
        }
    }

    #[test]
    fn images() {
        let values = Values::parse("global: {hub: example.org/mesh, tag: '3'}").unwrap();
        assert_eq!(values.image("proxy"), "example.org/mesh/proxy:3");
        assert_eq!(values.image("elsewhere/proxy@sha256:0"), "elsewhere/proxy@sha256:0");
    }
}
