//! MeshConfig: the key `mesh` of the ConfigMap `istio`.
//!
//! Strict: what is not listed here is refused by name, since a mesh setting without effect would mislead everybody.

use serde::Deserialize;

use super::destination_rule::{H2UpgradePolicy, TcpKeepalive};
use super::virtual_service::HttpRetry;

/// MeshConfig.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct MeshConfig {
    pub root_namespace: String,
    pub trust_domain: String,
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
    pub enable_auto_mtls: Option<bool>,
    pub enable_tracing: Option<bool>,
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
