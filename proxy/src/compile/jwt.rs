//! The filter that verifies JSON Web Tokens, and conditions on their claims.
//!
//! Keys come with the configuration: a provider that would have the proxy fetch them (`remote_jwks`) is refused by name.

use std::collections::BTreeMap;

use osier_proto::types::{
    core::data_source::Specifier,
    jwt_authn::{
        self as xds, jwt_provider::JwksSourceSpecifier, jwt_requirement::RequiresType,
        requirement_rule::RequirementType,
    },
    matcher::{self as messages, metadata_matcher::path_segment::Segment},
};

use super::value::{not_empty, required};
use super::{At, Invalid, matcher, route};
use crate::authz::counters::{Counters, Place};
use crate::config::route::HeaderName;
use crate::http::head::is_token;
use crate::jwt::cache::Scope;
use crate::jwt::keys::Keys;
use crate::jwt::place::Places;
use crate::jwt::provider::{Audiences, Provider};
use crate::jwt::requirement::{Check, Requirement};
use crate::jwt::{Authentication, ClaimCondition, ClaimValue, FILTER, Rule};

/// Envoy's, and Istio's.
const DEFAULT_SKEW: u32 = 60;
/// Deepest requirement; Istio's has three levels.
const MAX_DEPTH: usize = 16;
/// Most places of one kind, and most providers.
const MAX_ENTRIES: usize = 1024;

/// The filter of a connection manager.
pub(super) fn filter(
    message: &xds::JwtAuthentication,
    stat_prefix: &str,
    counters: &Counters,
) -> Result<Authentication, Invalid> {
    let mut providers = Vec::with_capacity(message.providers.len());
    let mut numbers = BTreeMap::new();
    at_most("providers", message.providers.len())?;
    for (name, provider_message) in &message.providers {
        numbers.insert(name.as_str(), providers.len());
        providers.push(provider(provider_message).at(&format!("providers[\"{name}\"]"))?);
    }
    let mut requirements = Requirements { numbers, checks: Vec::new() };
    let mut rules = Vec::with_capacity(message.rules.len());
    for (index, rule) in message.rules.iter().enumerate() {
        rules.push(requirements.rule(rule, message).at_index("rules", index)?);
    }
    let mut told_headers: Vec<HeaderName> =
        providers.iter().flat_map(|provider| provider.told_headers().cloned()).collect();
    told_headers.dedup();
    Ok(Authentication {
        providers: providers.into(),
        checks: requirements.checks.into(),
        rules: rules.into(),
        passes_preflight: message.bypass_cors_preflight,
        told_headers: told_headers.into(),
        tally: counters.tally(Place::jwt(stat_prefix)),
    })
}

fn at_most(field: &str, count: usize) -> Result<(), Invalid> {
    if count > MAX_ENTRIES {
        return Err(Invalid::new(field, format!("has {count} entries, {MAX_ENTRIES} are allowed")));
    }
    Ok(())
}

fn provider(message: &xds::JwtProvider) -> Result<Provider, Invalid> {
    let keys = keys(message)?;
    let words = message.normalize_payload_in_metadata.as_ref().map(|n| &n.space_delimited_claims[..]);
    let words: Box<[Box<str>]> = words.unwrap_or_default().iter().map(|name| name.as_str().into()).collect();
    let claim_header = |(index, told): (usize, &xds::JwtClaimToHeader)| {
        let entry = || {
            not_empty("claim_name", &told.claim_name)?;
            let path = told.claim_name.split('.').map(Into::into).collect();
            Ok((header("header_name", &told.header_name)?, path))
        };
        entry().at_index("claim_to_headers", index)
    };
    let payload_header = match message.forward_payload_header.as_str() {
        "" => None,
        name => Some(header("forward_payload_header", name)?),
    };
    let skew = if message.clock_skew_seconds == 0 { DEFAULT_SKEW } else { message.clock_skew_seconds };
    let metadata = Some(message.payload_in_metadata.as_str()).filter(|key| !key.is_empty());
    Ok(Provider {
        issuer: message.issuer.as_str().into(),
        audiences: Audiences::new(message.audiences.iter().map(String::as_str)),
        scope: Scope::new(keys.fingerprint(), &words),
        keys,
        skew: u64::from(skew),
        places: places(message)?,
        forward: message.forward,
        payload_header,
        pad_payload: message.pad_forward_payload_header,
        claim_headers: message
            .claim_to_headers
            .iter()
            .enumerate()
            .map(claim_header)
            .collect::<Result<_, _>>()?,
        metadata: metadata.map(Into::into),
        words,
    })
}

fn keys(message: &xds::JwtProvider) -> Result<Keys, Invalid> {
    let JwksSourceSpecifier::LocalJwks(source) =
        required("local_jwks", message.jwks_source_specifier.as_ref())?;
    let text = match &source.specifier {
        Some(Specifier::InlineString(text)) => Ok(text.as_str()),
        Some(Specifier::InlineBytes(bytes)) => {
            std::str::from_utf8(bytes).map_err(|_| Invalid::new("inline_bytes", "is no text"))
        }
        Some(Specifier::Filename(_)) => Err(Invalid::new("filename", "is not supported here")),
        None => Err(Invalid::new("", "is empty")),
    };
    let text = text.at("local_jwks")?;
    Keys::parse(text).map_err(|error| Invalid::new("local_jwks", error))
}

fn places(message: &xds::JwtProvider) -> Result<Places, Invalid> {
    let mut headers = Vec::with_capacity(message.from_headers.len());
    at_most("from_headers", message.from_headers.len())?;
    for (index, place) in message.from_headers.iter().enumerate() {
        header("name", &place.name).at_index("from_headers", index)?;
        headers.push((place.name.as_str(), place.value_prefix.as_str()));
    }
    let parameters = texts("from_params", &message.from_params)?;
    let cookies = texts("from_cookies", &message.from_cookies)?;
    Ok(Places::new(&headers, &parameters, &cookies))
}

fn texts<'m>(field: &str, list: &'m [String]) -> Result<Vec<&'m str>, Invalid> {
    at_most(field, list.len())?;
    let text = |(index, text): (usize, &'m String)| {
        not_empty("", text).at_index(field, index)?;
        Ok(text.as_str())
    };
    list.iter().enumerate().map(text).collect()
}

fn header(field: &str, name: &str) -> Result<HeaderName, Invalid> {
    match is_token(name.as_bytes()) {
        true => Ok(name.into()),
        false => Err(Invalid::new(field, format!("`{name}` is no name of a header"))),
    }
}

/// Reads requirements, and numbers what they ask.
struct Requirements<'m> {
    /// Of providers, by name.
    numbers: BTreeMap<&'m str, usize>,
    checks: Vec<Check>,
}

impl Requirements<'_> {
    fn rule(
        &mut self,
        rule: &xds::RequirementRule,
        filter: &xds::JwtAuthentication,
    ) -> Result<Rule, Invalid> {
        let matches = route::route_match(required("match", rule.r#match.as_ref())?).at("match")?;
        if !matches.claims.is_empty() {
            return Err(Invalid::new("match.dynamic_metadata", "asks for what isn't verified yet"));
        }
        let (field, requirement) = match &rule.requirement_type {
            None => return Ok(Rule { matches, requirement: None }),
            Some(RequirementType::Requires(requirement)) => ("requires", requirement),
            Some(RequirementType::RequirementName(name)) => match filter.requirement_map.get(name) {
                Some(requirement) => ("requirement_name", requirement),
                None => {
                    return Err(Invalid::new(
                        "requirement_name",
                        format!("`{name}` is not in requirement_map"),
                    ));
                }
            },
        };
        // One that says nothing demands nothing, as in Envoy.
        let requirement = match &requirement.requires_type {
            None => None,
            Some(_) => Some(self.read(requirement, 0).at(field)?),
        };
        Ok(Rule { matches, requirement })
    }

    fn read(&mut self, message: &xds::JwtRequirement, depth: usize) -> Result<Requirement, Invalid> {
        if depth > MAX_DEPTH {
            return Err(Invalid::new("", "is nested too deeply"));
        }
        Ok(match required("requires_type", message.requires_type.as_ref())? {
            RequiresType::ProviderName(name) => {
                Requirement::Valid(self.check("provider_name", name, None)?)
            }
            RequiresType::ProviderAndAudiences(both) => {
                let audiences = (!both.audiences.is_empty()).then_some(&both.audiences[..]);
                let field = "provider_and_audiences.provider_name";
                Requirement::Valid(self.check(field, &both.provider_name, audiences)?)
            }
            RequiresType::RequiresAny(list) => self.any(&list.requirements, depth).at("requires_any")?,
            RequiresType::RequiresAll(list) => {
                at_least_two(&list.requirements).at("requires_all")?;
                let mut all = Vec::with_capacity(list.requirements.len());
                for (index, requirement) in list.requirements.iter().enumerate() {
                    let read = self.read(requirement, depth + 1);
                    all.push(read.at_index("requirements", index).at("requires_all")?);
                }
                Requirement::AllOf(all.into())
            }
            RequiresType::AllowMissing(_) => {
                return Err(Invalid::new("allow_missing", "is supported within requires_any only"));
            }
        })
    }

    /// One of several, or no token.
    fn any(&mut self, list: &[xds::JwtRequirement], depth: usize) -> Result<Requirement, Invalid> {
        at_least_two(list)?;
        let is_missing = |message: &&xds::JwtRequirement| {
            matches!(message.requires_type, Some(RequiresType::AllowMissing(_)))
        };
        let others: Vec<_> = list.iter().enumerate().filter(|(_, message)| !is_missing(message)).collect();
        let optional = others.len() < list.len();
        let mut any = Vec::with_capacity(others.len());
        for (index, message) in others {
            any.push(self.read(message, depth + 1).at_index("requirements", index)?);
        }
        match (optional, any.is_empty()) {
            (_, true) => Err(Invalid::new("requirements", "must name a provider beside allow_missing")),
            (true, false) => Ok(Requirement::AnyOfOrMissing(any.into())),
            (false, false) => Ok(Requirement::AnyOf(any.into())),
        }
    }

    fn check(&mut self, field: &str, name: &str, audiences: Option<&[String]>) -> Result<usize, Invalid> {
        let Some(provider) = self.numbers.get(name).copied() else {
            return Err(Invalid::new(field, format!("there is no provider `{name}`")));
        };
        let plain = |check: &Check| check.provider == provider && check.audiences.is_none();
        if let (None, Some(known)) = (audiences, self.checks.iter().position(plain)) {
            return Ok(known);
        }
        let audiences = audiences.map(|names| Audiences::new(names.iter().map(String::as_str)));
        self.checks.push(Check { provider, audiences });
        Ok(self.checks.len() - 1)
    }
}

fn at_least_two(list: &[xds::JwtRequirement]) -> Result<(), Invalid> {
    if list.len() < 2 { Err(Invalid::new("requirements", "must be two or more")) } else { Ok(()) }
}

/// A condition on a claim.
pub(super) fn claim(message: &messages::MetadataMatcher) -> Result<ClaimCondition, Invalid> {
    if message.filter != FILTER {
        let reason = format!("`{}` leaves no metadata, only {FILTER} does", message.filter);
        return Err(Invalid::new("filter", reason));
    }
    let mut path = Vec::with_capacity(message.path.len());
    for (index, segment) in message.path.iter().enumerate() {
        let Segment::Key(key) = required("key", segment.segment.as_ref()).at_index("path", index)?;
        not_empty("key", key).at_index("path", index)?;
        path.push(Box::<str>::from(key.as_str()));
    }
    let value = claim_value(required("value", message.value.as_ref())?, 0).at("value")?;
    match path.split_first() {
        Some((key, rest)) if !rest.is_empty() => {
            Ok(ClaimCondition { key: key.clone(), path: rest.into(), value, invert: message.invert })
        }
        _ => Err(Invalid::new("path", "must name a claim")),
    }
}

fn claim_value(message: &messages::ValueMatcher, depth: usize) -> Result<ClaimValue, Invalid> {
    use messages::list_matcher::MatchPattern as List;
    use messages::value_matcher::MatchPattern as Value;
    if depth > MAX_DEPTH {
        return Err(Invalid::new("", "is nested too deeply"));
    }
    Ok(match required("match_pattern", message.match_pattern.as_ref())? {
        Value::StringMatch(text) => ClaimValue::Text(matcher::string(text).at("string_match")?),
        Value::ListMatch(list) => {
            let List::OneOf(value) = required("one_of", list.match_pattern.as_ref()).at("list_match")?;
            ClaimValue::ListWith(Box::new(claim_value(value, depth + 1).at("list_match.one_of")?))
        }
        Value::OrMatch(any) => {
            let value = |(index, value)| {
                claim_value(value, depth + 1).at_index("value_matchers", index).at("or_match")
            };
            ClaimValue::AnyOf(any.value_matchers.iter().enumerate().map(value).collect::<Result<_, _>>()?)
        }
    })
}
