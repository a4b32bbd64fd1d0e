//! RequestAuthentication.

use serde::Deserialize;

use super::Ignored;
use super::destination_rule::WorkloadSelector;

/// `spec` of a RequestAuthentication.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct RequestAuthentication {
    pub selector: Option<WorkloadSelector>,
    pub target_ref: Option<Ignored>,
    pub target_refs: Vec<Ignored>,
    pub jwt_rules: Vec<JwtRule>,
}

/// An entry of `jwtRules`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct JwtRule {
    pub issuer: String,
    pub audiences: Vec<String>,
    pub jwks_uri: String,
    // The older spelling is in the definition of the kind, too.
    #[serde(rename = "jwks_uri")]
    pub jwks_uri_as_of_old: String,
    pub jwks: String,
    pub from_headers: Vec<FromHeader>,
    pub from_params: Vec<String>,
    pub from_cookies: Vec<String>,
    pub output_payload_to_header: String,
    pub forward_original_token: bool,
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    pub timeout: Option<String>,
    pub space_delimited_claims: Vec<String>,
    pub presence: Option<Presence>,
}

/// An entry of `fromHeaders`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct FromHeader {
    pub name: String,
    pub prefix: String,
}

/// An entry of `outputClaimToHeaders`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct ClaimToHeader {
    pub header: String,
    pub claim: String,
}

/// `presence`, which is in the definition of the kind and nowhere in its documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum Presence {
    Optional,
    Required,
}
