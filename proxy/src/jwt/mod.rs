//! Who a request says it is for, by JSON Web Tokens: Envoy's `jwt_authn`, without a fetch.
//!
//! `compile::jwt` makes an [`Authentication`] of messages; a connection manager holds its own. [`Authentication::check`] strips the
//! headers that only it may set, finds tokens ([`place`]), reads and verifies them ([`token`], [`keys`]) as far as the requirement
//! of the request asks ([`requirement`]), and says in the request what they are for. What is left for others is [`Accepted`]:
//! claims that `authz` and the router test by [`ClaimCondition`], without JSON or protobuf.
//!
//! Invariants: nobody is believed by a token whose signature was not verified with the keys that are in force; a token that
//! is kept ([`cache`]) is still held against issuer, time and audience each time. Headers that tell of claims never come from the
//! client. A provider without keys believes nobody. All tokens at a provider's places must be valid, whichever comes first.

mod authentication;
pub mod cache;
pub mod claims;
mod condition;
pub mod keys;
pub mod place;
pub mod provider;
mod refusal;
pub mod requirement;
#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;
pub mod token;

pub use authentication::{Accepted, Authentication, Rule, Tokens};
pub use condition::{ClaimCondition, ClaimValue};
pub use refusal::Refusal;

/// Under which name filters after Envoy's find what its filter has verified.
pub const FILTER: &str = "envoy.filters.http.jwt_authn";
