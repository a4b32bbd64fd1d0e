//! Conditions on the claims of a request's tokens, for policies and routes.

use super::Accepted;
use super::claims::Claim;
use crate::config::route::ValueMatch;

/// A condition on one claim. Where the request has no such claim, it is false, and inverted true.
#[derive(Debug)]
pub struct ClaimCondition {
    /// What providers call their claims (`payload_in_metadata`).
    pub key: Box<str>,
    /// Names from the outside in.
    pub path: Box<[Box<str>]>,
    /// What the claim must be.
    pub value: ClaimValue,
    /// Turn the result round.
    pub invert: bool,
}

/// What a claim must be.
#[derive(Debug)]
pub enum ClaimValue {
    /// A text.
    Text(ValueMatch),
    /// A list with one value that is so.
    ListWith(Box<ClaimValue>),
    /// One of these.
    AnyOf(Box<[ClaimValue]>),
}

impl ClaimCondition {
    /// True for a request with these tokens. Of several under the same key the last counts, as in Envoy.
    pub fn holds(&self, tokens: &[Accepted<'_>]) -> bool {
        let of_key = |accepted: &&Accepted<'_>| accepted.provider.metadata.as_deref() == Some(&*self.key);
        let token = tokens.iter().rev().find(of_key);
        let claim = token.and_then(|a| a.token.tested().at(self.path.iter().map(|name| &**name)));
        claim.is_some_and(|claim| self.value.holds(claim)) != self.invert
    }
}

impl ClaimValue {
    fn holds(&self, claim: &Claim) -> bool {
        match (self, claim) {
            (Self::Text(value), Claim::Text(text)) => value.holds(text.as_bytes()),
            (Self::ListWith(value), Claim::List(list)) => list.iter().any(|claim| value.holds(claim)),
            (Self::AnyOf(values), claim) => values.iter().any(|value| value.holds(claim)),
            _ => false,
        }
    }
}
