//! PeerAuthentication, and RequestAuthentication as far as it is read: whom it covers, and whether it can refuse anything.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Ignored;
use super::destination_rule::WorkloadSelector;

/// `spec` of a PeerAuthentication.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct PeerAuthentication {
    pub selector: Option<WorkloadSelector>,
    pub mtls: Option<MutualTls>,
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

/// `mtls`, and a value of `portLevelMtls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct MutualTls {
    pub mode: Option<MutualTlsMode>,
}

/// `mtls.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum MutualTlsMode {
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// `spec` of a RequestAuthentication.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct RequestAuthentication {
    pub selector: Option<WorkloadSelector>,
    pub target_ref: Option<Ignored>,
    pub target_refs: Vec<Ignored>,
    pub jwt_rules: Vec<Ignored>,
}
