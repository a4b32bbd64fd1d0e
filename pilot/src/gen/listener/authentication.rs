//! The filter that verifies tokens, from RequestAuthentications, in Istio's shape: one provider a rule, sorted by issuer, and a
//! requirement that one of them is satisfied, or that none has seen a token.
//!
//! Keys come with the filter, so that proxies fetch nothing. A rule whose keys aren't there believes nobody: Osier's proxy gets an
//! empty key set. Envoy refuses a filter with one, so other clients get [`NOBODYS_KEY`] as well.

use std::sync::Arc;

use osier_proto::types::core::{DataSource, data_source::Specifier};
use osier_proto::types::http_connection_manager::HttpFilter;
use osier_proto::types::jwt_authn::{
    JwtAuthentication, JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement, JwtRequirementAndList,
    JwtRequirementOrList, RequirementRule, jwt_provider::JwksSourceSpecifier, jwt_provider::NormalizePayload,
    jwt_requirement::RequiresType, requirement_rule::RequirementType,
};

use super::filter::http_filter;
use crate::r#gen::route::everything;
use crate::r#gen::scope::Scope;
use crate::model::TokenRule;

/// Name that Envoy's filters find its claims by.
pub(in crate::r#gen) const FILTER: &str = "envoy.filters.http.jwt_authn";
/// And the key of all claims there.
pub(in crate::r#gen) const PAYLOAD: &str = "payload";

/// A key set of nobody.
const NO_KEYS: &str = r#"{"keys":[]}"#;

/// What is a key in form, and no point of its curve: y = 2, for which x² has no root. So nobody has its private half, not even who
/// wrote it down, and no signature verifies with it. It comes last, for Envoy judges a set by its last key, and makes that a good one.
const NOBODYS_KEY: &str = r#"{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"none","x":"AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#;

/// The filter for requests to the workload, if any token of theirs matters.
pub(super) fn http(scope: &Scope<'_>, gateway: bool) -> Option<HttpFilter> {
    let rules = scope.snapshot.token_rules(&scope.view().proxy);
    if rules.is_empty() {
        return None;
    }
    let name = |index: usize| format!("origins-{index}");
    let providers = rules.iter().enumerate();
    let providers = providers.map(|(index, (_, rule))| (name(index), provider(scope, rule, gateway)));
    let names: Vec<String> = (0..rules.len()).map(name).collect();
    let rule = RequirementRule {
        r#match: Some(everything()),
        requirement_type: Some(RequirementType::Requires(requirement(&names))),
    };
    let filter = JwtAuthentication {
        providers: providers.collect(),
        rules: vec![rule],
        bypass_cors_preflight: true,
        ..Default::default()
    };
    Some(http_filter(FILTER, &filter))
}

fn requires(requires_type: RequiresType) -> JwtRequirement {
    JwtRequirement { requires_type: Some(requires_type) }
}

fn any(requirements: Vec<JwtRequirement>) -> JwtRequirement {
    requires(RequiresType::RequiresAny(JwtRequirementOrList { requirements }))
}

/// A valid token of one of them, or none that is not valid: where they share a place, a token of one is none of another's.
fn requirement(names: &[String]) -> JwtRequirement {
    let of = |name: &String| requires(RequiresType::ProviderName(name.clone()));
    let optional = |name: &String| any(vec![of(name), requires(RequiresType::AllowMissing(()))]);
    match names {
        [one] => optional(one),
        several => {
            let all = JwtRequirementAndList { requirements: several.iter().map(optional).collect() };
            any(several.iter().map(of).chain([requires(RequiresType::RequiresAll(all))]).collect())
        }
    }
}

fn provider(scope: &Scope<'_>, rule: &TokenRule, gateway: bool) -> JwtProvider {
    let texts = |list: &[Arc<str>]| list.iter().map(|text| text.to_string()).collect();
    let header = |(name, prefix): &(Arc<str>, Arc<str>)| JwtHeader {
        name: name.to_string(),
        value_prefix: prefix.to_string(),
    };
    let claim_header = |(header, claim): &(Arc<str>, Arc<str>)| JwtClaimToHeader {
        header_name: header.to_string(),
        claim_name: claim.to_string(),
    };
    let keys = DataSource { specifier: Some(Specifier::InlineString(keys(scope, rule))) };
    JwtProvider {
        issuer: rule.issuer.to_string(),
        audiences: texts(&rule.audiences),
        jwks_source_specifier: Some(JwksSourceSpecifier::LocalJwks(keys)),
        forward: rule.forward,
        from_headers: rule.headers.iter().map(header).collect(),
        from_params: texts(&rule.parameters),
        from_cookies: texts(&rule.cookies),
        forward_payload_header: rule.payload_header.as_deref().unwrap_or_default().to_owned(),
        payload_in_metadata: PAYLOAD.into(),
        normalize_payload_in_metadata: Some(NormalizePayload { space_delimited_claims: texts(&rule.words) }),
        claim_to_headers: rule.claim_headers.iter().map(claim_header).collect(),
        clear_route_cache: gateway,
        ..Default::default()
    }
}

fn keys(scope: &Scope<'_>, rule: &TokenRule) -> String {
    let keys = scope.snapshot.keys_of(rule).map_or(NO_KEYS, |keys| keys);
    if scope.view().schema.is_some() {
        return keys.to_owned();
    }
    // Sets are written here, so their end is known.
    let open = keys.strip_suffix("]}").unwrap_or(r#"{"keys":["#);
    let comma = if open.ends_with('[') { "" } else { "," };
    format!("{open}{comma}{NOBODYS_KEY}]}}")
}
