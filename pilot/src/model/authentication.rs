//! A RequestAuthentication in our own words: whose tokens are valid, where requests have them, and what becomes of a valid one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Tokens of one issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRule {
    /// What `iss` must be; empty: anything.
    pub issuer: Arc<str>,
    /// For whom a token may be; without any, for all.
    pub audiences: Vec<Arc<str>>,
    /// What tokens are signed with.
    pub keys: KeySource,
    /// Headers with tokens, each with what stands before the token.
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    /// Query parameters with tokens.
    pub parameters: Vec<Arc<str>>,
    /// Cookies with tokens.
    pub cookies: Vec<Arc<str>>,
    /// The upstream gets the token as well.
    pub forward: bool,
    /// Header that gets all claims, encoded.
    pub payload_header: Option<Arc<str>>,
    /// Headers that get a claim.
    pub claim_headers: Vec<(Arc<str>, Arc<str>)>,
    /// Claims that are lists of words.
    pub words: Vec<Arc<str>>,
}

/// Where a key set is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// In the policy.
    Inline(Arc<str>),
    /// Somewhere else; it is fetched within this time.
    Remote(KeyLocation, Duration),
}

/// A place that a key set is fetched from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyLocation {
    /// A URI.
    Uri(Arc<str>),
    /// The URI that the issuer tells (OpenID Connect Discovery).
    Issuer(Arc<str>),
}

impl fmt::Display for KeyLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(uri) => f.write_str(uri),
            Self::Issuer(issuer) => {
                write!(f, "{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
            }
        }
    }
}

/// What came of fetching a key set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FetchedKeys {
    /// The last good one. Without, no token is valid.
    pub keys: Option<Arc<str>>,
    /// Why the last try failed, if it did.
    pub failure: Option<Arc<str>>,
}
