//! What a pod's annotations (and a few labels) say about its injection, checked: all mistakes are found, each with its key.
//!
//! [`TABLE`] has every key that Istio documents for pods, and what it means here; docs/reference/injection.md is made from it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::pod::Pod;
use super::proxy_config::{InterceptionMode, ProxyConfig};
use super::scrape::Target;
use super::syntax::{self, Parsed};
use crate::source::decode::closest;

/// Label, or annotation, that says whether to inject.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// What was injected.
pub const STATUS: &str = "sidecar.istio.io/status";
/// Containers of the user's that are merged into ours.
pub const OVERRIDES: &str = "proxy.istio.io/overrides";
/// Revision of the injector.
pub const REVISION: &str = "istio.io/rev";

/// What a key means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// As documented.
    Supported,
    /// Taken; nothing is lost by it that traffic or metrics would miss. A warning says so.
    NoEffect,
    /// The pod is refused.
    Refused,
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The annotation (or label).
    pub key: &'static str,
    /// What it means here.
    pub support: Support,
    /// Its values, or why it has no effect.
    pub note: &'static str,
}

const fn yes(key: &'static str, note: &'static str) -> Row {
    Row { key, support: Support::Supported, note }
}

const fn none(key: &'static str, note: &'static str) -> Row {
    Row { key, support: Support::NoEffect, note }
}

const fn no(key: &'static str, note: &'static str) -> Row {
    Row { key, support: Support::Refused, note }
}

/// Every key, in order.
pub const TABLE: &[Row] = &[
    yes(
        "inject.istio.io/templates",
        "list of `sidecar` (default), `gateway` and names of one's own templates",
    ),
    yes("istio.io/reroute-virtual-interfaces", "list of interfaces whose traffic counts as outbound"),
    yes(
        "prometheus.istio.io/merge-metrics",
        "`true` or `false`; default: `enablePrometheusMerge` of the mesh",
    ),
    yes(
        "prometheus.istio.io/scrape-targets",
        "list of `port:path` of the application, instead of `prometheus.io/port` and `path`",
    ),
    yes("proxy.istio.io/config", "YAML of ProxyConfig; its fields are below"),
    yes(OVERRIDES, "written by injection: the user's own containers `istio-proxy` and `istio-init`"),
    none("readiness.status.sidecar.istio.io/applicationPorts", "Istio does not read it any more"),
    yes("readiness.status.sidecar.istio.io/failureThreshold", "number; default 4"),
    yes("readiness.status.sidecar.istio.io/initialDelaySeconds", "number; default 0"),
    yes("readiness.status.sidecar.istio.io/periodSeconds", "number; default 15"),
    none(
        "sidecar.istio.io/agentLogLevel",
        "there is no second process; `sidecar.istio.io/logLevel` is for all of it",
    ),
    no("sidecar.istio.io/bootstrapOverride", "a sidecar has no bootstrap file"),
    yes(
        "sidecar.istio.io/componentLogLevel",
        "list of `part:level`, added to `logLevel`; parts are those of osier-proxy",
    ),
    yes("sidecar.istio.io/discoveryAddress", "`host:port` of the control plane"),
    none("sidecar.istio.io/enableCoreDump", "Istio does not read it any more"),
    no("sidecar.istio.io/extraStatTags", "there are no metrics with labels of one's own yet"),
    yes(INJECT, "`true` or `false`; the label of this name comes first"),
    yes("sidecar.istio.io/interceptionMode", "`REDIRECT` (default), `TPROXY` or `NONE`"),
    yes(
        "sidecar.istio.io/logLevel",
        "off, error, warning, info, debug or trace; default: the values, else info",
    ),
    yes("sidecar.istio.io/nativeSidecar", "`true` or `false`; default: the values, else `true`"),
    yes(
        "sidecar.istio.io/proxyCPU",
        "quantity: requests.cpu; any of the four replaces all of the default resources",
    ),
    yes("sidecar.istio.io/proxyCPULimit", "quantity: limits.cpu"),
    yes("sidecar.istio.io/proxyImage", "image of both containers"),
    none("sidecar.istio.io/proxyImageType", "there is one image, without a shell"),
    yes("sidecar.istio.io/proxyMemory", "quantity: requests.memory"),
    yes("sidecar.istio.io/proxyMemoryLimit", "quantity: limits.memory"),
    yes("sidecar.istio.io/rewriteAppHTTPProbers", "`true` or `false`; default: the values, else `true`"),
    none("sidecar.istio.io/statsCompression", "about how Envoy answers scrapes"),
    none("sidecar.istio.io/statsEvictionInterval", "about Envoy's own metrics"),
    none("sidecar.istio.io/statsFlushInterval", "about Envoy's own metrics"),
    no("sidecar.istio.io/statsHistogramBins", "buckets can't be chosen yet"),
    no("sidecar.istio.io/statsHistogramBuckets", "buckets can't be chosen yet"),
    none("sidecar.istio.io/statsInclusionPrefixes", "about Envoy's own metrics"),
    none("sidecar.istio.io/statsInclusionRegexps", "about Envoy's own metrics"),
    none("sidecar.istio.io/statsInclusionSuffixes", "about Envoy's own metrics"),
    yes(STATUS, "written by injection: what was injected; injecting again replaces exactly that"),
    yes("sidecar.istio.io/userVolume", "JSON: volumes by name, or a list of volumes"),
    yes("sidecar.istio.io/userVolumeMount", "JSON: mounts of the proxy by name, or a list of mounts"),
    yes(
        "status.sidecar.istio.io/port",
        "port of health and merged metrics; default 15020, 0: none, and no probes",
    ),
    yes("traffic.sidecar.istio.io/excludeInboundPorts", "list of ports"),
    yes("traffic.sidecar.istio.io/excludeInterfaces", "list of interfaces whose traffic is not captured"),
    yes("traffic.sidecar.istio.io/excludeOutboundIPRanges", "list of ranges"),
    yes("traffic.sidecar.istio.io/excludeOutboundPorts", "list of ports"),
    yes("traffic.sidecar.istio.io/includeInboundPorts", "`*` (default), or a list of ports; empty: none"),
    yes(
        "traffic.sidecar.istio.io/includeOutboundIPRanges",
        "`*` (default), or a list of ranges; empty: none",
    ),
    yes(
        "traffic.sidecar.istio.io/includeOutboundPorts",
        "list of ports that are captured whatever the address",
    ),
    yes("traffic.sidecar.istio.io/kubevirtInterfaces", "older name of `istio.io/reroute-virtual-interfaces`"),
];

/// Prefixes that belong to injection: other keys below them are typos.
const OURS: [&str; 6] = [
    "sidecar.istio.io/",
    "traffic.sidecar.istio.io/",
    "status.sidecar.istio.io/",
    "readiness.status.sidecar.istio.io/",
    "proxy.istio.io/",
    "inject.istio.io/",
];

/// Overrides of which traffic is captured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Capture {
    pub include_ip_ranges: Option<String>,
    pub exclude_ip_ranges: Option<String>,
    pub include_outbound_ports: Option<String>,
    pub exclude_outbound_ports: Option<String>,
    pub include_inbound_ports: Option<String>,
    pub exclude_inbound_ports: Option<String>,
    pub exclude_interfaces: Option<String>,
    pub virtual_interfaces: Option<String>,
}

/// Overrides of the readiness probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Readiness {
    pub initial_delay: Option<u32>,
    pub period: Option<u32>,
    pub failures: Option<u32>,
}

/// What a pod says.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Annotations {
    pub capture: Capture,
    pub readiness: Readiness,
    /// `resources`, if any of them was given.
    pub resources: Option<Map<String, Value>>,
    pub image: Option<String>,
    pub log_level: Option<String>,
    pub component_log_level: Option<String>,
    pub rewrite_probes: Option<bool>,
    pub native: Option<bool>,
    pub merge_metrics: Option<bool>,
    pub scrape_targets: Vec<Target>,
    pub templates: Option<Vec<String>>,
    pub volumes: Vec<Value>,
    pub mounts: Vec<Value>,
    /// `proxy.istio.io/config`, with the annotations that have a field of it.
    pub config: ProxyConfig,
}

/// Reads one annotation after the other.
struct Reader<'p> {
    pod: &'p Pod,
    problems: Vec<String>,
    #[cfg(test)]
    asked: std::collections::BTreeSet<&'static str>,
}

impl Reader<'_> {
    fn take<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Parsed<T>) -> Option<T> {
        debug_assert!(
            TABLE.iter().any(|row| row.key == key && row.support == Support::Supported),
            "{key} is in no table"
        );
        #[cfg(test)]
        self.asked.insert(key);
        match parse(self.pod.annotation(key)?) {
            Ok(value) => Some(value),
            Err(why) => {
                self.problems.push(format!("{key}: {why}"));
                None
            }
        }
    }
}

impl Annotations {
    /// Reads all of them: what they say, or all that is wrong.
    pub(super) fn read(pod: &Pod) -> Result<Self, Vec<String>> {
        let mut reader = Reader {
            pod,
            problems: Vec::new(),
            #[cfg(test)]
            asked: Default::default(),
        };
        let read = Self::with(&mut reader);
        reader.problems.extend(refused(pod));
        if reader.problems.is_empty() { Ok(read) } else { Err(reader.problems) }
    }

    fn with(reader: &mut Reader) -> Self {
        let config = config(reader);
        Self {
            capture: capture(reader),
            readiness: Readiness {
                initial_delay: reader
                    .take("readiness.status.sidecar.istio.io/initialDelaySeconds", syntax::number),
                period: reader.take("readiness.status.sidecar.istio.io/periodSeconds", syntax::number),
                failures: reader.take("readiness.status.sidecar.istio.io/failureThreshold", syntax::number),
            },
            resources: resources(reader),
            image: reader.take("sidecar.istio.io/proxyImage", syntax::image),
            log_level: reader.take("sidecar.istio.io/logLevel", syntax::log_levels),
            component_log_level: reader.take("sidecar.istio.io/componentLogLevel", syntax::log_levels),
            rewrite_probes: reader.take("sidecar.istio.io/rewriteAppHTTPProbers", syntax::boolean),
            native: reader.take("sidecar.istio.io/nativeSidecar", syntax::boolean),
            merge_metrics: reader.take("prometheus.istio.io/merge-metrics", syntax::boolean),
            scrape_targets: reader
                .take("prometheus.istio.io/scrape-targets", Target::parse_list)
                .unwrap_or_default(),
            templates: reader.take("inject.istio.io/templates", |text| Ok(syntax::names(text))),
            volumes: reader
                .take("sidecar.istio.io/userVolume", |text| named(text, "name"))
                .unwrap_or_default(),
            mounts: reader
                .take("sidecar.istio.io/userVolumeMount", |text| named(text, "mountPath"))
                .unwrap_or_default(),
            config,
        }
    }
}

fn config(reader: &mut Reader) -> ProxyConfig {
    let mut config = ProxyConfig::default();
    if let Some(read) = reader.take("proxy.istio.io/config", |text| Ok(ProxyConfig::of_annotation(text))) {
        match read {
            Ok(read) => config = read,
            Err(wrong) => {
                reader.problems.extend(wrong.iter().map(|why| format!("proxy.istio.io/config: {why}")))
            }
        }
    }
    let address = reader.take("sidecar.istio.io/discoveryAddress", syntax::address);
    let mode = reader.take("sidecar.istio.io/interceptionMode", InterceptionMode::parse);
    let port = reader.take("status.sidecar.istio.io/port", syntax::port_or_off);
    ProxyConfig {
        discovery_address: address.or(config.discovery_address),
        interception_mode: mode.or(config.interception_mode),
        status_port: port.or(config.status_port),
        ..config
    }
}

fn capture(reader: &mut Reader) -> Capture {
    let old = reader.take("traffic.sidecar.istio.io/kubevirtInterfaces", syntax::interfaces);
    Capture {
        include_ip_ranges: reader
            .take("traffic.sidecar.istio.io/includeOutboundIPRanges", syntax::ranges_or_all),
        exclude_ip_ranges: reader.take("traffic.sidecar.istio.io/excludeOutboundIPRanges", syntax::ranges),
        include_outbound_ports: reader.take("traffic.sidecar.istio.io/includeOutboundPorts", syntax::ports),
        exclude_outbound_ports: reader.take("traffic.sidecar.istio.io/excludeOutboundPorts", syntax::ports),
        include_inbound_ports: reader
            .take("traffic.sidecar.istio.io/includeInboundPorts", syntax::ports_or_all),
        exclude_inbound_ports: reader.take("traffic.sidecar.istio.io/excludeInboundPorts", syntax::ports),
        exclude_interfaces: reader.take("traffic.sidecar.istio.io/excludeInterfaces", syntax::interfaces),
        virtual_interfaces: reader.take("istio.io/reroute-virtual-interfaces", syntax::interfaces).or(old),
    }
}

fn resources(reader: &mut Reader) -> Option<Map<String, Value>> {
    let mut resources = BTreeMap::<&str, Map<String, Value>>::new();
    for (key, list, name) in [
        ("sidecar.istio.io/proxyCPU", "requests", "cpu"),
        ("sidecar.istio.io/proxyMemory", "requests", "memory"),
        ("sidecar.istio.io/proxyCPULimit", "limits", "cpu"),
        ("sidecar.istio.io/proxyMemoryLimit", "limits", "memory"),
    ] {
        if let Some(quantity) = reader.take(key, syntax::quantity) {
            resources.entry(list).or_default().insert(name.into(), quantity.into());
        }
    }
    let shown = |(list, quantities): (&str, _)| (list.to_owned(), Value::Object(quantities));
    (!resources.is_empty()).then(|| resources.into_iter().map(shown).collect())
}

/// Objects by name, or a list of objects; each must say `needed`.
fn named(text: &str, needed: &str) -> Parsed<Vec<Value>> {
    let items: Vec<Value> = match serde_json::from_str(text) {
        Ok(Value::Object(by_name)) => {
            let item = |(name, mut item): (String, Value)| {
                if let Some(fields) = item.as_object_mut() {
                    fields.insert("name".into(), json!(name));
                }
                item
            };
            by_name.into_iter().map(item).collect()
        }
        Ok(Value::Array(items)) => items,
        Ok(_) => return Err("is neither a JSON object nor a list".into()),
        Err(error) => return Err(format!("is no JSON: {error}")),
    };
    let complete = |item: &Value| ["name", needed].iter().all(|key| item[*key].is_string());
    match items.iter().all(complete) {
        true => Ok(items),
        false if needed == "name" => Err("each entry must be an object with a name".into()),
        false => Err(format!("each entry must be an object with a name and {needed}")),
    }
}

/// Annotations that can't be honoured.
fn refused(pod: &Pod) -> Vec<String> {
    let rows = TABLE.iter().filter(|row| row.support == Support::Refused);
    rows.filter(|row| pod.annotation(row.key).is_some())
        .map(|row| format!("{}: is not supported: {}", row.key, row.note))
        .collect()
}

/// What to say about annotations that are taken all the same.
pub(super) fn warnings(pod: &Pod) -> Vec<String> {
    let warning = |key: &str| match TABLE.iter().find(|row| row.key == key) {
        Some(row) if row.support == Support::NoEffect => Some(format!("{key} has no effect: {}", row.note)),
        Some(_) => None,
        None if OURS.iter().any(|prefix| key.starts_with(prefix)) => {
            let keys: Vec<&str> = TABLE.iter().map(|row| row.key).collect();
            Some(match closest(key, &keys) {
                Some(near) => format!("there is no annotation {key}, did you mean {near}?"),
                None => format!("there is no annotation {key}; it has no effect"),
            })
        }
        None => None,
    };
    pod.annotations().filter_map(|(key, _)| warning(key)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn pod(annotations: Value) -> Pod {
        Pod::new(json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app"}]}}))
            .unwrap()
    }

    #[test]
    fn what_the_table_calls_supported_is_read() {
        assert!(TABLE.is_sorted_by_key(|row| row.key), "in order, each once");
        let pod = pod(json!({}));
        let mut reader = Reader { pod: &pod, problems: vec![], asked: BTreeSet::new() };
        Annotations::with(&mut reader);
        let elsewhere = [INJECT, STATUS, OVERRIDES];
        let supported: BTreeSet<&str> = TABLE
            .iter()
            .filter(|row| row.support == Support::Supported && !elsewhere.contains(&row.key))
            .map(|row| row.key)
            .collect();
        assert_eq!(reader.asked, supported);
    }

    #[test]
    fn all_mistakes_are_listed() {
        let mistakes = Annotations::read(&pod(json!({
            "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8,everything",
            "traffic.sidecar.istio.io/excludeInboundPorts": "*",
            "sidecar.istio.io/interceptionMode": "redirect",
            "sidecar.istio.io/proxyCPU": "much",
            "sidecar.istio.io/bootstrapOverride": "mine",
            "proxy.istio.io/config": "concurency: 2\ntracing: {sampling: 10}",
            "sidecar.istio.io/userVolume": "[{}]",
        })))
        .unwrap_err();
        assert_eq!(
            mistakes,
            [
                "proxy.istio.io/config: concurency: unknown field, did you mean concurrency?",
                "proxy.istio.io/config: tracing: is not supported: there is no tracing yet",
                "sidecar.istio.io/interceptionMode: \"redirect\" is none of REDIRECT, TPROXY, NONE",
                "traffic.sidecar.istio.io/includeOutboundIPRanges: \"everything\" is no range of addresses such as 10.0.0.0/8",
                "traffic.sidecar.istio.io/excludeInboundPorts: \"*\" is no port number (1 to 65535)",
                "sidecar.istio.io/proxyCPU: \"much\" is no quantity such as 100m or 128Mi",
                "sidecar.istio.io/userVolume: each entry must be an object with a name",
                "sidecar.istio.io/bootstrapOverride: is not supported: a sidecar has no bootstrap file",
            ]
        );
    }

    #[test]
    fn volumes_by_name_or_as_a_list() {
        let by_name = named(r#"{"certs": {"secret": {"secretName": "s"}}}"#, "name").unwrap();
        let list = named(r#"[{"name": "certs", "secret": {"secretName": "s"}}]"#, "name").unwrap();
        assert_eq!(by_name, list);
        assert_eq!(
            named("[", "name").unwrap_err(),
            "is no JSON: EOF while parsing a list at line 1 column 1"
        );
    }

    #[test]
    fn what_changes_nothing_is_told() {
        let pod = pod(json!({
            "sidecar.istio.io/agentLogLevel": "x",
            "sidecar.istio.io/rewriteAppHTTPProbes": "true",
            "example.org/mine": "x",
            "sidecar.istio.io/logLevel": "debug",
        }));
        assert_eq!(
            warnings(&pod),
            [
                "sidecar.istio.io/agentLogLevel has no effect: there is no second process; `sidecar.istio.io/logLevel` is for all of it",
                "there is no annotation sidecar.istio.io/rewriteAppHTTPProbes, did you mean sidecar.istio.io/rewriteAppHTTPProbers?",
            ]
        );
    }
}
