//! HTTP on the request path: codecs, routing, one request from start to finish, and the answers that the proxy makes itself.

pub mod body;
pub mod fields;
pub mod filters;
pub mod h1;
pub mod h2;
pub mod head;
pub mod name;
pub mod normalize;
pub mod peer_metadata;
pub mod reply;
pub mod retry;
pub mod router;
pub mod server;
pub mod template;
pub mod timeout;

#[cfg(test)]
mod test_support;
