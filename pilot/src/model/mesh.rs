//! Mesh-wide configuration: the supported part of Istio's MeshConfig, with its defaults filled in.

use std::sync::Arc;
use std::time::Duration;

use super::authorizer::Authorizer;
use super::export::ExportTo;
use super::ingress::IngressPolicy;
use super::policy::TcpKeepalive;
use super::route::RetryPolicy;
use super::selector::LabelSelector;

/// Mesh-wide configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshConfig {
    /// Namespace whose rules hold for all.
    pub root_namespace: Arc<str>,
    /// Domain of identities.
    pub trust_domain: Arc<str>,
    /// Domains whose identities count as ours.
    pub trust_domain_aliases: Arc<[Arc<str>]>,
    /// Traffic to unknown destinations.
    pub outbound: OutboundTraffic,
    /// How proxies reach their own application.
    pub inbound: InboundTraffic,
    /// `exportTo` of services that say nothing.
    pub service_export: ExportTo,
    /// `exportTo` of VirtualServices that say nothing.
    pub route_export: ExportTo,
    /// `exportTo` of DestinationRules that say nothing.
    pub policy_export: ExportTo,
    /// TCP connect limit where no DestinationRule sets one.
    pub connect_timeout: Duration,
    /// How long to wait for a client's first bytes on ports with automatic detection; `None` waits without limit.
    pub detection_timeout: Option<Duration>,
    /// Retries of routes that say nothing; `None` is the built-in policy.
    pub retries: Option<RetryPolicy>,
    /// Access log file; `None` switches it off.
    pub access_log_file: Option<Arc<str>>,
    /// Format; `None` is Istio's default.
    pub access_log_format: Option<Arc<str>>,
    /// Text or JSON.
    pub access_log_encoding: AccessLogEncoding,
    /// What happens to paths before they are matched.
    pub path_normalization: PathNormalization,
    /// HTTP/1.1 to HTTP/2 where no DestinationRule says otherwise.
    pub upgrade: UpgradePolicy,
    /// TCP keepalive where no DestinationRule sets it.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Namespaces that count; all of them where this is empty.
    pub discovery_selectors: Arc<[LabelSelector]>,
    /// Time between DNS look-ups where an answer has no TTL or fails.
    pub dns_refresh: Duration,
    /// Which Ingresses are ours.
    pub ingress: IngressPolicy,
    /// Endpoints that take mutual TLS are met with it where no DestinationRule says otherwise.
    pub auto_mutual_tls: bool,
    /// The least that clients of workloads must speak.
    pub least_tls: TlsVersion,
    /// Who may be asked what is let in.
    pub authorizers: Vec<Authorizer>,
}

/// A trust domain as names have it: `@` (an account of a cloud) becomes a dot.
pub fn trust_domain(text: &str) -> Arc<str> {
    text.replace('@', ".").into()
}

/// The name of a service account in a trust domain, as certificates have it.
pub fn spiffe(trust_domain: &str, namespace: &str, service_account: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
}

impl MeshConfig {
    /// The mesh's own trust domain, then its aliases: whoever is of one of them is of the mesh.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&*self.trust_domain).chain(self.trust_domain_aliases.iter().map(|alias| &**alias))
    }
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            root_namespace: "istio-system".into(),
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Arc::default(),
            outbound: OutboundTraffic::AllowAny,
            inbound: InboundTraffic::Passthrough,
            service_export: ExportTo::default(),
            route_export: ExportTo::default(),
            policy_export: ExportTo::default(),
            connect_timeout: Duration::from_secs(10),
            detection_timeout: None,
            retries: None,
            access_log_file: None,
            access_log_format: None,
            access_log_encoding: AccessLogEncoding::Text,
            path_normalization: PathNormalization::Base,
            upgrade: UpgradePolicy::Keep,
            tcp_keepalive: None,
            discovery_selectors: Arc::default(),
            dns_refresh: Duration::from_secs(60),
            ingress: IngressPolicy::default(),
            auto_mutual_tls: true,
            least_tls: TlsVersion::Tls12,
            authorizers: Vec::new(),
        }
    }
}

/// `outboundTrafficPolicy.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OutboundTraffic {
    /// Unknown destinations pass through.
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// `inboundTrafficPolicy.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InboundTraffic {
    /// Connect to the original destination from 127.0.0.6.
    Passthrough,
    /// Connect to 127.0.0.1.
    Localhost,
}

/// `accessLogEncoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccessLogEncoding {
    /// Lines of text.
    Text,
    /// One JSON object a line.
    Json,
}

/// `pathNormalization.normalization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PathNormalization {
    /// Paths are taken as they come.
    None,
    /// RFC 3986: dots resolved, escaped unreserved characters decoded.
    Base,
    /// Base, and repeated slashes merged.
    MergeSlashes,
    /// `%2F` and `%5C` decoded first, then as MergeSlashes.
    DecodeAndMergeSlashes,
}

/// `meshMTLS.minProtocolVersion`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// Whether HTTP/1.1 goes upstream as HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpgradePolicy {
    /// As it came.
    Keep,
    /// As HTTP/2.
    Upgrade,
}
