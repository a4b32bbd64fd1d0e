//! One issuer of tokens: what makes its tokens valid, and what becomes of a valid one.

use std::sync::Arc;

use super::Refusal;
use super::cache::{Scope, TokenCache};
use super::keys::Keys;
use super::place::{Place, Places};
use super::token::{Parsed, Token};
use crate::config::route::HeaderName;
use crate::http::head::RequestHead;

/// A header, and the names on the way to its claim.
pub type ClaimHeader = (HeaderName, Box<[Box<str>]>);

/// An issuer.
#[derive(Debug)]
pub struct Provider {
    /// Its tokens say so in `iss`; empty: any.
    pub issuer: Box<str>,
    /// For whom they must be.
    pub audiences: Audiences,
    /// What they are signed with.
    pub keys: Keys,
    /// Seconds that clocks may differ by.
    pub skew: u64,
    /// Where requests have them.
    pub places: Places,
    /// They stay there.
    pub forward: bool,
    /// Gets the second part of a token.
    pub payload_header: Option<HeaderName>,
    /// With its padding.
    pub pad_payload: bool,
    /// Headers that get claims.
    pub claim_headers: Box<[ClaimHeader]>,
    /// What policies and routes call its claims; `None`: they don't see them.
    pub metadata: Option<Box<str>>,
    /// Claims that are lists of words.
    pub words: Box<[Box<str>]>,
    /// Of what its tokens are verified with.
    pub scope: Scope,
}

impl Provider {
    /// What a token says, if it is valid.
    pub fn check(
        &self,
        text: &[u8],
        audiences: Option<&Audiences>,
        cache: &TokenCache,
        now: u64,
    ) -> Result<Arc<Token>, Refusal> {
        let id = self.scope.id(text);
        if let Some(token) = cache.get(&id) {
            self.check_claims(&token, audiences, now)?;
            return Ok(token);
        }
        let parsed = Parsed::read(text, &self.words)?;
        self.check_claims(&parsed.token, audiences, now)?;
        self.keys.verify(&parsed)?;
        let token = Arc::new(parsed.token);
        cache.put(id, &token, text.len());
        Ok(token)
    }

    fn check_claims(&self, token: &Token, audiences: Option<&Audiences>, now: u64) -> Result<(), Refusal> {
        if !self.issuer.is_empty() && self.issuer != token.issuer {
            return Err(Refusal::Issuer);
        }
        token.check_time(now, self.skew)?;
        match audiences.unwrap_or(&self.audiences).allow(&token.audiences) {
            true => Ok(()),
            false => Err(Refusal::Audience),
        }
    }

    /// Headers that nobody else may set.
    pub fn told_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.payload_header.iter().chain(self.claim_headers.iter().map(|(name, _)| name))
    }

    /// Tells the upstream of a valid token, and takes it away unless it is to stay.
    pub fn tell(&self, token: &Token, place: Place, head: &mut RequestHead) {
        if let Some(name) = &self.payload_header {
            let missing = if self.pad_payload { (4 - token.payload.len() % 4) % 4 } else { 0 };
            let padded = [token.payload.as_bytes(), &b"==="[..missing]].concat();
            head.fields.append(name.as_name(), &padded);
        }
        for (name, path) in &self.claim_headers {
            let text = token.claims.at(path.iter().map(|name| &**name)).map(ToString::to_string);
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                head.fields.append(name.as_name(), text.as_bytes());
            }
        }
        if !self.forward {
            self.places.remove(place, head);
        }
    }
}

/// For whom tokens may be; without any, for all.
#[derive(Debug, Default)]
pub struct Audiences(Box<[Box<str>]>);

impl Audiences {
    /// As they are written: schemes and a slash at the end don't count.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(|name| bare(name).into()).collect())
    }

    fn allow(&self, audiences: &[Box<str>]) -> bool {
        self.0.is_empty() || audiences.iter().any(|name| self.0.iter().any(|own| **own == *bare(name)))
    }
}

/// An audience without what doesn't count.
fn bare(audience: &str) -> &str {
    let rest = ["http://", "https://"].iter().find_map(|scheme| audience.strip_prefix(scheme));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}
