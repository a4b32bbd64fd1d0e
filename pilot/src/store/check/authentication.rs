//! RequestAuthentication. With an error in it a policy fails closed for whom it covers: what would have been refused must not pass.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::security::{ROOT, Read};
use super::{Check, Context, Path, is_header_name};
use crate::jwks::document;
use crate::model::{Demand, KeyLocation, KeySource, TokenRule};
use crate::store::schema::authentication as schema;

/// Time for a fetch of keys, where a rule says nothing.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest: a fetch that takes longer is none.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// Most rules of a policy.
const MAX_RULES: usize = 4096;
/// Most claims of a rule that are lists of words.
const MAX_WORDS: usize = 64;
/// Longest URI of a key set.
const MAX_URI: usize = 2048;
/// Claims that are always lists of words (RFC 8693 4.2).
const WORDS: [&str; 2] = ["scope", "permission"];

/// Reads a RequestAuthentication.
pub fn check(context: &Context, spec: &schema::RequestAuthentication) -> Read {
    let mut check = Check::new(context);
    let at = ROOT.field("jwtRules");
    if spec.jwt_rules.len() > MAX_RULES {
        check.error(at, format!("has {} entries, {MAX_RULES} are allowed", spec.jwt_rules.len()));
    }
    let mut rules = Vec::with_capacity(spec.jwt_rules.len());
    let mut issuers = BTreeSet::new();
    for (index, rule) in spec.jwt_rules.iter().enumerate() {
        let at = at.index(index);
        if !issuers.insert(rule.issuer.as_str()) {
            check.error(at.field("issuer"), format!("{:?} is there twice", rule.issuer));
        }
        rules.extend(check.jwt_rule(at, rule));
    }
    let targets = spec.target_ref.is_some() || !spec.target_refs.is_empty();
    let Some(covers) = check.covers(spec.selector.as_ref(), targets) else { return check.without_effect() };
    if spec.jwt_rules.is_empty() && !check.has_errors() {
        return check.without_effect();
    }
    if check.has_errors() {
        let whom = check.whom(&covers);
        check.error(ROOT, format!("can't be enforced: everything that is sent to {whom} is refused"));
    }
    check.read(covers, Demand::Authentication(rules))
}

impl Check<'_> {
    fn jwt_rule(&mut self, at: Path<'_>, rule: &schema::JwtRule) -> Option<TokenRule> {
        let keys = self.keys(at, rule);
        let audiences = self.texts(at.field("audiences"), &rule.audiences);
        let parameters = self.texts(at.field("fromParams"), &rule.from_params);
        let cookies = self.texts(at.field("fromCookies"), &rule.from_cookies);
        let words = self.texts(at.field("spaceDelimitedClaims"), &rule.space_delimited_claims);
        if words.len() > MAX_WORDS {
            let at = at.field("spaceDelimitedClaims");
            self.error(at, format!("has {} entries, {MAX_WORDS} are allowed", words.len()));
        }
        let mut headers = Vec::new();
        for (index, header) in rule.from_headers.iter().enumerate() {
            let here = at.field("fromHeaders");
            let here = here.index(index);
            self.token_header(here.field("name"), &header.name);
            if header.prefix.contains(|c: char| c.is_control()) {
                self.error(here.field("prefix"), format!("{:?} can't be in a header", header.prefix));
            }
            headers.push((header.name.as_str().into(), header.prefix.as_str().into()));
        }
        let mut claim_headers = Vec::new();
        for (index, told) in rule.output_claim_to_headers.iter().enumerate() {
            let here = at.field("outputClaimToHeaders");
            let here = here.index(index);
            self.told_header(here.field("header"), &told.header);
            if told.claim.is_empty() {
                self.error(here.field("claim"), "is required");
            }
            claim_headers.push((told.header.as_str().into(), told.claim.as_str().into()));
        }
        let payload_header = Some(rule.output_payload_to_header.as_str()).filter(|name| !name.is_empty());
        if let Some(name) = payload_header {
            self.token_header(at.field("outputPayloadToHeader"), name);
        }
        if rule.presence == Some(schema::Presence::Required) {
            self.error(
                at.field("presence"),
                "REQUIRED is not supported: an AuthorizationPolicy with notRequestPrincipals: [\"*\"] requires a token",
            );
        }
        Some(TokenRule {
            issuer: rule.issuer.as_str().into(),
            audiences,
            keys: keys?,
            headers,
            parameters,
            cookies,
            forward: rule.forward_original_token,
            payload_header: payload_header.map(Into::into),
            claim_headers,
            words: with_usual(words),
        })
    }

    /// Where keys are: in one place only, and somewhere.
    fn keys(&mut self, at: Path<'_>, rule: &schema::JwtRule) -> Option<KeySource> {
        let timeout = self.duration(at.field("timeout"), rule.timeout.as_ref()).unwrap_or(DEFAULT_TIMEOUT);
        if timeout > MAX_TIMEOUT {
            self.error(at.field("timeout"), format!("is more than {}s", MAX_TIMEOUT.as_secs()));
        }
        let (uri, of_old) = (rule.jwks_uri.as_str(), rule.jwks_uri_as_of_old.as_str());
        if !uri.is_empty() && !of_old.is_empty() {
            self.error(at.field("jwks_uri"), "is jwksUri, which is there, too");
        }
        match (rule.jwks.as_str(), if uri.is_empty() { of_old } else { uri }) {
            ("", "") if document::Uri::parse(&rule.issuer).is_ok() => {
                Some(KeySource::Remote(KeyLocation::Issuer(rule.issuer.as_str().into()), timeout))
            }
            ("", "") => {
                self.error(at, "needs jwks or jwksUri, since the issuer is no http or https URI that could tell its keys");
                None
            }
            ("", uri) => match document::Uri::parse(uri) {
                Ok(_) if uri.len() <= MAX_URI => {
                    Some(KeySource::Remote(KeyLocation::Uri(uri.into()), timeout))
                }
                Ok(_) => {
                    self.error(at.field("jwksUri"), format!("has more than {MAX_URI} characters"));
                    None
                }
                Err(error) => {
                    self.error(at.field("jwksUri"), format!("{uri:?} {error}"));
                    None
                }
            },
            (_, uri) if !uri.is_empty() => {
                self.error(at.field("jwks"), "excludes jwksUri");
                None
            }
            (jwks, _) => match document::key_set(jwks.as_bytes()) {
                Ok(keys) => Some(KeySource::Inline(keys.into())),
                Err(error) => {
                    self.error(at.field("jwks"), error.to_string());
                    None
                }
            },
        }
    }

    fn texts(&mut self, at: Path<'_>, list: &[String]) -> Vec<Arc<str>> {
        for (index, _) in list.iter().enumerate().filter(|(_, text)| text.is_empty()) {
            self.error(at.index(index), "is empty");
        }
        list.iter().map(|text| text.as_str().into()).collect()
    }

    fn token_header(&mut self, at: Path<'_>, name: &str) {
        if name.is_empty() {
            self.error(at, "is required");
        } else if !is_header_name(name) {
            self.error(at, format!("{name:?} is no name of a header"));
        }
    }

    /// Istio takes fewer characters for these.
    fn told_header(&mut self, at: Path<'_>, name: &str) {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() {
            self.error(at, "is required");
        } else if !name.chars().all(plain) {
            self.error(at, format!("{name:?} may have letters, digits, - and _ only"));
        }
    }
}

fn with_usual(words: Vec<Arc<str>>) -> Vec<Arc<str>> {
    let mut all: Vec<Arc<str>> = WORDS.map(Into::into).into();
    all.extend(words.into_iter().filter(|word| !WORDS.contains(&&**word)));
    all
}

#[cfg(test)]
#[path = "authentication_tests.rs"]
mod tests;
