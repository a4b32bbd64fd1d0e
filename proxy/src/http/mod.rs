//! HTTP on the request path: codecs, routing, one request from start to finish, and the answers that the proxy makes itself.

mod answer;
mod attempt;
pub mod body;
pub mod clock;
mod consult;
pub mod exchange;
pub mod fields;
pub mod filters;
pub mod h1;
pub mod h2;
pub mod head;
pub mod name;
pub mod normalize;
mod not_processed;
pub mod peer_metadata;
pub mod replay;
pub mod reply;
pub mod retry;
pub mod router;
pub mod server;
pub mod template;
pub mod timeout;
pub mod upgrade;

#[cfg(test)]
pub(crate) mod test_support;
