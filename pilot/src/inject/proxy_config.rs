//! ProxyConfig: what the mesh's `defaultConfig` and a pod's annotation `proxy.istio.io/config` say about a proxy.
//!
//! The fields that injection acts on are here; why others are taken without effect or refused stands with the mesh configuration
//! (`store::schema::mesh`).

use std::collections::BTreeMap;

use osier_core::duration;
use osier_core::sidecar;
use serde::Deserialize;

use crate::source::decode::{closest, decode};
use crate::source::yaml::{self, Node, Value};
use crate::store::schema::mesh::{Loss, SET_ASIDE};

/// How a pod's traffic gets into its proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum InterceptionMode {
    /// Redirected; applications see the proxy's address.
    #[default]
    Redirect,
    /// Redirected; applications see the client's address.
    Tproxy,
    /// Not at all.
    None,
}

impl InterceptionMode {
    /// As Istio writes it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Redirect => "REDIRECT",
            Self::Tproxy => "TPROXY",
            Self::None => "NONE",
        }
    }

    /// The mode of that name.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        [Self::Redirect, Self::Tproxy, Self::None]
            .into_iter()
            .find(|mode| mode.text() == text)
            .ok_or_else(|| format!("{text:?} is none of REDIRECT, TPROXY, NONE"))
    }
}

/// The fields that are acted on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// Worker threads; 0: one for each core.
    pub concurrency: Option<u16>,
    /// Where the control plane is.
    pub discovery_address: Option<String>,
    /// The application waits until the proxy is ready.
    pub hold_application_until_proxy_starts: Option<bool>,
    /// How traffic is captured.
    pub interception_mode: Option<InterceptionMode>,
    /// Port of the admin interface.
    pub proxy_admin_port: Option<u16>,
    /// Variables of both containers.
    pub proxy_metadata: BTreeMap<String, String>,
    /// Port of health and merged metrics.
    pub status_port: Option<u16>,
    /// How long to drain.
    pub termination_drain_duration: Option<String>,
}

/// Names of the fields that are acted on.
pub const FIELDS: &[&str] = &[
    "concurrency",
    "discoveryAddress",
    "holdApplicationUntilProxyStarts",
    "interceptionMode",
    "proxyAdminPort",
    "proxyMetadata",
    "statusPort",
    "terminationDrainDuration",
];

/// What the injector goes by from the mesh configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshSettings {
    /// Scrapes of the application and of the proxy are merged.
    pub merge_metrics: bool,
    /// Root of identities; names the mesh.
    pub trust_domain: String,
    /// What holds for proxies that say nothing.
    pub default_config: ProxyConfig,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            merge_metrics: true,
            trust_domain: "cluster.local".into(),
            default_config: ProxyConfig::default(),
        }
    }
}

impl MeshSettings {
    /// Reads the text of the mesh configuration (key `mesh` of its ConfigMap). What else is in there is not checked here.
    pub fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Mesh {
            enable_prometheus_merge: Option<bool>,
            trust_domain: Option<String>,
            #[serde(default)]
            default_config: ProxyConfig,
        }
        let documents = yaml::parse(text).map_err(|e| format!("line {}: {e}", e.line))?;
        let Some(node) = documents.first() else { return Ok(Self::default()) };
        let mut mesh: Mesh = decode(node).map_err(|e| e.to_string())?;
        check(&mesh.default_config).map_err(|(field, why)| format!("defaultConfig.{field}: {why}"))?;
        // the address of Istio's control plane, in the configuration of an Istio that was taken over
        mesh.default_config.discovery_address = None;
        let default = Self::default();
        Ok(Self {
            merge_metrics: mesh.enable_prometheus_merge.unwrap_or(default.merge_metrics),
            trust_domain: mesh.trust_domain.filter(|text| !text.is_empty()).unwrap_or(default.trust_domain),
            default_config: mesh.default_config,
        })
    }
}

impl ProxyConfig {
    /// Reads the text of an annotation, strictly; all that is wrong with it otherwise.
    pub(super) fn of_annotation(text: &str) -> Result<Self, Vec<String>> {
        let documents = yaml::parse(text).map_err(|e| vec![format!("line {}: {e}", e.line)])?;
        let Some(node) = documents.first() else { return Ok(Self::default()) };
        let mut problems: Vec<String> = refused_fields(node);
        match decode::<Self>(node) {
            Ok(config) => {
                problems.extend(check(&config).err().map(|(field, why)| format!("{field}: {why}")));
                if problems.is_empty() { Ok(config) } else { Err(problems) }
            }
            Err(error) => {
                problems.push(error.to_string());
                Err(problems)
            }
        }
    }

    /// These fields where `self` says nothing; variables one by one.
    pub(super) fn or(mut self, base: &Self) -> Self {
        for (name, value) in &base.proxy_metadata {
            self.proxy_metadata.entry(name.clone()).or_insert_with(|| value.clone());
        }
        Self {
            concurrency: self.concurrency.or(base.concurrency),
            discovery_address: self.discovery_address.or_else(|| base.discovery_address.clone()),
            hold_application_until_proxy_starts: self
                .hold_application_until_proxy_starts
                .or(base.hold_application_until_proxy_starts),
            interception_mode: self.interception_mode.or(base.interception_mode),
            proxy_admin_port: self.proxy_admin_port.or(base.proxy_admin_port),
            proxy_metadata: self.proxy_metadata,
            status_port: self.status_port.or(base.status_port),
            termination_drain_duration: self
                .termination_drain_duration
                .or_else(|| base.termination_drain_duration.clone()),
        }
    }
}

/// Fields that nobody knows, or whose absence of effect somebody would miss.
fn refused_fields(node: &Node) -> Vec<String> {
    let Value::Map(entries) = &node.value else { return Vec::new() };
    let refusal = |name: &str| {
        if FIELDS.contains(&name) {
            return None;
        }
        match SET_ASIDE.iter().find(|row| row.field.strip_prefix("defaultConfig.") == Some(name)) {
            Some(row) if row.loss == Loss::Nothing => None,
            Some(row) => Some(format!("{name}: is not supported: {}", row.why)),
            None => Some(match closest(name, FIELDS) {
                Some(near) => format!("{name}: unknown field, did you mean {near}?"),
                None => format!("{name}: unknown field"),
            }),
        }
    };
    entries.iter().filter_map(|entry| refusal(&entry.key)).collect()
}

/// What types don't check: the field and why.
fn check(config: &ProxyConfig) -> Result<(), (String, String)> {
    if let Some(text) = &config.termination_drain_duration
        && let Err(error) = duration::parse(text)
    {
        return Err(("terminationDrainDuration".into(), format!("{text:?} {error}")));
    }
    if let Some(text) = &config.discovery_address {
        super::syntax::address(text).map_err(|why| ("discoveryAddress".into(), why))?;
    }
    if config.proxy_admin_port == Some(0) {
        return Err(("proxyAdminPort".into(), "0 is no port number (1 to 65535)".into()));
    }
    let named =
        |name: &str| !name.is_empty() && !name.contains('=') && name.bytes().all(|b| b.is_ascii_graphic());
    for (name, value) in &config.proxy_metadata {
        if !named(name) {
            return Err((format!("proxyMetadata[\"{name}\"]"), "is no name of a variable".into()));
        }
        let checked = match name.as_str() {
            "OSIER_LOG_LEVEL" => super::syntax::log_levels(value).map(drop),
            name => sidecar::check_variable(name, value),
        };
        checked.map_err(|why| (format!("proxyMetadata.{name}"), why))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotation() {
        let read = |text| ProxyConfig::of_annotation(text).map_err(|e| e.join("; "));
        assert_eq!(
            read("concurrency: 3\nterminationDrainDuration: 20s\ndrainDuration: 45s").unwrap(),
            ProxyConfig {
                concurrency: Some(3),
                termination_drain_duration: Some("20s".into()),
                ..ProxyConfig::default()
            }
        );
        for (text, wanted) in [
            ("concurency: 1", "concurency: unknown field, did you mean concurrency?"),
            (
                "tracing: {sampling: 1}\nx: 1",
                "tracing: is not supported: there is no tracing yet; x: unknown field",
            ),
            ("concurrency: many", "concurrency: must be a whole number, not the text \"many\""),
            (
                "proxyMetadata: {A: true}",
                "proxyMetadata.A: must be text, not the boolean true; put it in quotes",
            ),
            (
                "proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'yes'}",
                "proxyMetadata.ISTIO_META_DNS_CAPTURE: \"yes\" is neither true nor false",
            ),
            ("proxyMetadata: {'a b': x}", "proxyMetadata[\"a b\"]: is no name of a variable"),
            (
                "interceptionMode: redirect",
                "interceptionMode: \"redirect\" is none of REDIRECT, TPROXY, NONE",
            ),
            ("discoveryAddress: pilot", "discoveryAddress: \"pilot\" is not HOST:PORT"),
            ("- a", "must be a mapping, not a list"),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(wanted), "{text}: {said}");
        }
        assert!(
            read("terminationDrainDuration: soon")
                .unwrap_err()
                .starts_with("terminationDrainDuration: \"soon\"")
        );
    }

    #[test]
    fn mesh() {
        let mesh = MeshSettings::parse(
            "enablePrometheusMerge: false\ndefaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\n  \
             proxyMetadata: {A: x, B: y}\n  tracing: {}\naccessLogFile: /dev/stdout\n",
        )
        .unwrap();
        assert!(!mesh.merge_metrics);
        assert_eq!(mesh.default_config.discovery_address, None, "that is where Istio's control plane was");
        let pod = ProxyConfig::of_annotation("proxyMetadata: {B: z}").unwrap().or(&mesh.default_config);
        assert_eq!(pod.proxy_metadata, BTreeMap::from([("A".into(), "x".into()), ("B".into(), "z".into())]));
        assert_eq!(
            MeshSettings::parse("defaultConfig: {concurrency: -1}").unwrap_err(),
            "defaultConfig.concurrency: -1 is not between 0 and 65535"
        );
        assert_eq!(MeshSettings::parse("").unwrap(), MeshSettings::default());
    }
}
