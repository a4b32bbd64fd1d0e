//! The filter of a connection manager: from a request to the tokens that speak for it.

use std::fmt;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::Refusal;
use super::cache::TokenCache;
use super::provider::Provider;
use super::requirement::{Check, Evaluation, Requirement, Satisfied};
use super::token::Token;
use crate::authz::counters::Tally;
use crate::config::route::{HeaderName, RouteMatch};
use crate::http::head::{Known, Method, Name, RequestHead};
use crate::http::router;

/// What asks for its answer before a browser sends the real request, which will have the token (Fetch, 3.2.2).
const PREFLIGHT: Name<'_> = Name::Other(b"access-control-request-method");

/// Envoy's JwtAuthentication.
pub struct Authentication {
    /// Issuers.
    pub providers: Box<[Provider]>,
    /// What requirements ask.
    pub checks: Box<[Check]>,
    /// The first that matches counts.
    pub rules: Box<[Rule]>,
    /// A browser's question whether it may ask needs no token.
    pub passes_preflight: bool,
    /// Headers that tell of claims: from clients they are removed, whether there is a token or not.
    pub told_headers: Box<[HeaderName]>,
    /// What is allowed and denied.
    pub tally: Arc<Tally>,
}

/// What matching requests need.
#[derive(Debug)]
pub struct Rule {
    /// Which requests.
    pub matches: RouteMatch,
    /// `None`: nothing.
    pub requirement: Option<Requirement>,
}

/// A token that was verified, and who vouches for it.
#[derive(Debug, Clone)]
pub struct Accepted<'a> {
    /// By whose keys.
    pub provider: &'a Provider,
    /// What it says.
    pub token: Arc<Token>,
}

/// The tokens of a request.
pub type Tokens<'a> = SmallVec<[Accepted<'a>; 1]>;

impl Authentication {
    /// Strips what clients may not say, verifies what the request needs, and tells the upstream of it. `now` is in seconds since 1970.
    pub fn check(
        &self,
        head: &mut RequestHead,
        cache: &TokenCache,
        now: u64,
        random: u64,
    ) -> Result<Tokens<'_>, Refusal> {
        for name in &self.told_headers {
            head.fields.remove(name.as_name());
        }
        if self.passes_preflight && is_preflight(head) {
            return Ok(Tokens::new());
        }
        let path = head.path_only();
        let rule = self.rules.iter().find(|rule| router::holds(&rule.matches, head, path, &[], random));
        let Some(requirement) = rule.and_then(|rule| rule.requirement.as_ref()) else {
            return Ok(Tokens::new());
        };
        let mut satisfied = Satisfied::new();
        let mut evaluation = Evaluation {
            providers: &self.providers,
            checks: &self.checks,
            head,
            cache,
            now,
            asked: smallvec![None; self.checks.len()],
        };
        evaluation.require(requirement, &mut satisfied)?;
        let tell =
            |(accepted, place): (Accepted<'_>, _)| accepted.provider.tell(&accepted.token, place, head);
        satisfied.iter().cloned().for_each(tell);
        Ok(satisfied.into_iter().map(|(accepted, _)| accepted).collect())
    }
}

fn is_preflight(head: &RequestHead) -> bool {
    let there = |name: Name<'static>| head.fields.get(name).is_some_and(|value| !value.is_empty());
    head.method() == Method::Options && there(Name::Known(Known::Origin)) && there(PREFLIGHT)
}

impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authentication").field("providers", &self.providers).finish_non_exhaustive()
    }
}
