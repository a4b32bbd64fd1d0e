//! What happens to heads on their way: each filter is a function of configuration and head, and does no I/O.
//!
//! `http::exchange` calls them in the order of a request: [`forwarded`] settles who the client is, [`direct`] answers
//! where the route wants that, [`header_ops`] and [`rewrite`] change what is forwarded, [`response`] finishes what goes back.

pub mod client_certificate;
pub mod direct;
pub mod forwarded;
pub mod header_ops;
pub mod response;
pub mod rewrite;
