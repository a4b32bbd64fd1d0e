//! MeshConfig: the key `mesh` of the ConfigMap `istio`.
//!
//! One resource holds everything about the mesh, and nobody writes all of it: so a field that is known and not supported does not
//! refuse the others. Such fields stand in [`SET_ASIDE`]; the struct is what is applied, and what is in neither is a typo.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Ignored;
use super::destination_rule::{H2UpgradePolicy, TcpKeepalive};
use super::kubernetes::LabelSelector;
use super::virtual_service::HttpRetry;

/// MeshConfig.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct MeshConfig {
    pub root_namespace: String,
    pub trust_domain: String,
    pub trust_domain_aliases: Vec<String>,
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    pub inbound_traffic_policy: Option<InboundTrafficPolicy>,
    pub default_service_export_to: Vec<String>,
    pub default_virtual_service_export_to: Vec<String>,
    pub default_destination_rule_export_to: Vec<String>,
    pub connect_timeout: Option<String>,
    pub protocol_detection_timeout: Option<String>,
    pub default_http_retry_policy: Option<HttpRetry>,
    pub access_log_file: String,
    pub access_log_format: String,
    pub access_log_encoding: Option<AccessLogEncoding>,
    pub path_normalization: Option<PathNormalization>,
    #[serde(rename = "h2UpgradePolicy")]
    pub h2_upgrade_policy: Option<H2UpgradePolicy>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    pub dns_refresh_rate: Option<String>,
    pub discovery_selectors: Vec<LabelSelector>,
    pub ingress_class: String,
    pub ingress_controller_mode: Option<IngressControllerMode>,
    pub ingress_selector: String,
    pub ingress_service: String,
    pub extension_providers: Vec<ExtensionProvider>,
    pub enable_auto_mtls: Option<bool>,
    #[serde(rename = "meshMTLS")]
    pub mesh_mtls: Option<MeshMtls>,
}

/// `meshMTLS`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct MeshMtls {
    pub min_protocol_version: Option<TlsProtocol>,
}

/// `meshMTLS.minProtocolVersion`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub enum TlsProtocol {
    #[serde(rename = "TLS_AUTO")]
    Auto,
    #[serde(rename = "TLSV1_2")]
    Tls12,
    #[serde(rename = "TLSV1_3")]
    Tls13,
}

/// An entry of `extensionProviders`. Those for telemetry do nothing by themselves, and what would use one is refused where it is
/// written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct ExtensionProvider {
    pub name: String,
    pub envoy_ext_authz_http: Option<ExtAuthzHttp>,
    pub envoy_ext_authz_grpc: Option<ExtAuthzGrpc>,
    pub datadog: Option<Ignored>,
    pub envoy_file_access_log: Option<Ignored>,
    pub envoy_http_als: Option<Ignored>,
    pub envoy_otel_als: Option<Ignored>,
    pub envoy_tcp_als: Option<Ignored>,
    pub lightstep: Option<Ignored>,
    pub opencensus: Option<Ignored>,
    pub opentelemetry: Option<Ignored>,
    pub prometheus: Option<Ignored>,
    pub sds: Option<Ignored>,
    pub skywalking: Option<Ignored>,
    pub stackdriver: Option<Ignored>,
    pub zipkin: Option<Ignored>,
}

/// `envoyExtAuthzHttp`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct ExtAuthzHttp {
    pub service: String,
    pub port: u32,
    pub timeout: Option<String>,
    pub path_prefix: String,
    pub fail_open: bool,
    pub clear_route_cache: bool,
    pub status_on_error: String,
    pub include_headers_in_check: Vec<String>,
    pub include_request_headers_in_check: Vec<String>,
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    pub include_request_body_in_check: Option<ExtAuthzBody>,
    pub headers_to_upstream_on_allow: Vec<String>,
    pub headers_to_downstream_on_deny: Vec<String>,
    pub headers_to_downstream_on_allow: Vec<String>,
}

/// `envoyExtAuthzGrpc`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct ExtAuthzGrpc {
    pub service: String,
    pub port: u32,
    pub timeout: Option<String>,
    pub fail_open: bool,
    pub clear_route_cache: bool,
    pub status_on_error: String,
    pub include_request_body_in_check: Option<ExtAuthzBody>,
}

/// `includeRequestBodyInCheck`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct ExtAuthzBody {
    pub max_request_bytes: u32,
    pub allow_partial_message: bool,
    pub pack_as_bytes: bool,
}

/// `ingressControllerMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum IngressControllerMode {
    Unspecified,
    Off,
    Default,
    Strict,
}

/// `outboundTrafficPolicy`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct OutboundTrafficPolicy {
    pub mode: Option<OutboundMode>,
}

/// `outboundTrafficPolicy.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum OutboundMode {
    RegistryOnly,
    AllowAny,
}

/// `inboundTrafficPolicy`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct InboundTrafficPolicy {
    pub mode: Option<InboundMode>,
}

/// `inboundTrafficPolicy.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum InboundMode {
    Passthrough,
    Localhost,
}

/// `accessLogEncoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum AccessLogEncoding {
    Text,
    Json,
}

/// `pathNormalization`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct PathNormalization {
    pub normalization: Option<NormalizationType>,
}

/// `pathNormalization.normalization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum NormalizationType {
    Default,
    None,
    Base,
    MergeSlashes,
    DecodeAndMergeSlashes,
}

/// A field of the API that is not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetAside {
    /// Path within MeshConfig.
    pub field: &'static str,
    /// Whether somebody who sets it has to hear of it.
    pub loss: Loss,
    /// Why nothing is lost, or what does not happen.
    pub why: &'static str,
}

/// What is lost by not applying a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing, whatever its value: taken without a word.
    Nothing,
    /// Something, where its value asks for something: a warning.
    Something,
}

const fn nothing(field: &'static str, why: &'static str) -> SetAside {
    SetAside { field, loss: Loss::Nothing, why }
}

const fn something(field: &'static str, why: &'static str) -> SetAside {
    SetAside { field, loss: Loss::Something, why }
}

/// Why nothing is lost of a field that is applied elsewhere.
pub const INJECTED: &str = "applied when a pod is injected, see [injection](injection.md)";

/// Fields of which some are applied, and some stand in [`SET_ASIDE`].
pub const APPLIED_IN_PART: &[&str] = &["meshMTLS"];

/// Fields of the API that are not applied; fields below one that has rows of its own are named one by one.
///
/// None of them opens what another field closes.
pub const SET_ASIDE: &[SetAside] = &[
    something(
        "ca",
        "certificates come from the control plane's own authority, or from one that is plugged in as `cacerts`",
    ),
    something("caCertificates", "roots beside the mesh's own are not believed"),
    something("certificates", "no certificates are made"),
    something(
        "compliancePolicy",
        "TLS between workloads can be restricted by meshMTLS.minProtocolVersion alone",
    ),
    something("configSources", "configuration comes from the folder that osier-pilot was given"),
    nothing("defaultConfig.availabilityZone", "an endpoint's locality comes from its resource"),
    nothing("defaultConfig.binaryPath", "where Istio's image has Envoy"),
    something("defaultConfig.caCertificatesPem", "roots beside the mesh's own are not believed"),
    nothing("defaultConfig.concurrency", INJECTED),
    nothing("defaultConfig.configPath", "where Istio's image keeps files"),
    nothing("defaultConfig.controlPlaneAuthPolicy", "Istio does not read it any more"),
    something("defaultConfig.customConfigFile", "a sidecar has no bootstrap file"),
    nothing(
        "defaultConfig.discoveryAddress",
        "where Istio's control plane is; a sidecar is told where osier-pilot is",
    ),
    nothing("defaultConfig.discoveryRefreshDelay", "Istio does not read it any more"),
    nothing("defaultConfig.drainDuration", "for Envoy's hot restart, which Osier does not have"),
    something("defaultConfig.envoyAccessLogService", "the access log goes to a file only"),
    something("defaultConfig.envoyMetricsService", "metrics are scraped, not sent"),
    nothing("defaultConfig.envoyMetricsServiceAddress", "Istio does not read it any more"),
    something("defaultConfig.extraStatTags", "there are no metrics with labels of one's own yet"),
    nothing("defaultConfig.fileFlushInterval", "how Envoy writes its access log"),
    nothing("defaultConfig.fileFlushMinSizeKb", "how Envoy writes its access log"),
    something(
        "defaultConfig.gatewayTopology",
        "a gateway goes by the address of its client, and replaces what that says of itself",
    ),
    nothing("defaultConfig.holdApplicationUntilProxyStarts", INJECTED),
    nothing("defaultConfig.image", "there is one image"),
    nothing("defaultConfig.interceptionMode", INJECTED),
    something("defaultConfig.meshId", "metrics do not carry the mesh's name"),
    nothing("defaultConfig.parentShutdownDuration", "for Envoy's hot restart, which Osier does not have"),
    something("defaultConfig.privateKeyProvider", "keys are in the memory of the proxy alone"),
    nothing("defaultConfig.proxyAdminPort", INJECTED),
    something("defaultConfig.proxyBootstrapTemplatePath", "a sidecar has no bootstrap file"),
    something("defaultConfig.proxyHeaders", "the headers that a sidecar adds can't be chosen yet"),
    nothing("defaultConfig.proxyMetadata", INJECTED),
    nothing("defaultConfig.proxyStatsMatcher", "which of Envoy's own metrics are made"),
    something("defaultConfig.readinessProbe", "the health of workloads is not probed yet"),
    something("defaultConfig.runtimeValues", "Envoy's runtime, which Osier does not have"),
    nothing("defaultConfig.sds", "Istio does not read it any more"),
    nothing("defaultConfig.serviceCluster", "names a sidecar in traces, and there is no tracing yet"),
    nothing("defaultConfig.statNameLength", "about Envoy's own metrics"),
    nothing("defaultConfig.statsEvictionInterval", "about Envoy's own metrics"),
    something("defaultConfig.statsdUdpAddress", "metrics are scraped, not sent"),
    nothing("defaultConfig.statusPort", INJECTED),
    nothing("defaultConfig.terminationDrainDuration", INJECTED),
    something("defaultConfig.tracing", "there is no tracing yet"),
    nothing("defaultConfig.tracingServiceName", "names a sidecar in traces, and there is no tracing yet"),
    something("defaultConfig.zipkinAddress", "there is no tracing yet"),
    something("defaultProviders.accessLogging", "the access log is set by accessLogFile alone"),
    nothing("defaultProviders.metrics", "Istio's metrics are always there for Prometheus"),
    something("defaultProviders.tracing", "there is no tracing yet"),
    nothing("disableEnvoyListenerLog", "there is no log of listeners beside the access log"),
    something("enableEnvoyAccessLogService", "the access log goes to a file only"),
    nothing("enablePrometheusMerge", INJECTED),
    something("enableTracing", "there is no tracing yet"),
    nothing("inboundClusterStatName", "about Envoy's own metrics"),
    something("localityLbSetting", "endpoints are not picked by locality yet"),
    something(
        "meshMTLS.cipherSuites",
        "only suites with forward secrecy and authenticated encryption are spoken, and all of them",
    ),
    something("meshMTLS.ecdhCurves", "X25519MLKEM768, X25519, P-256 and P-384 are spoken, in this order"),
    nothing("outboundClusterStatName", "about Envoy's own metrics"),
    something("proxyHttpPort", "the port of the explicit proxy is 15007"),
    something("proxyInboundListenPort", "captured inbound connections arrive at port 15006"),
    something("proxyListenPort", "captured outbound connections arrive at port 15001"),
    something("serviceSettings", "there is one cluster only, so every service is local to it"),
    something("tlsDefaults", "versions, suites and groups of TLS towards servers outside can't be chosen"),
    nothing(
        "verifyCertificateAtClient",
        "servers outside are always verified, unless a rule says `insecureSkipVerify`",
    ),
];
