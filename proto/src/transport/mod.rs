//! The state machines on the network: ADS over tonic, both ends.
//!
//! Nothing here decides anything. Each direction holds one message at most, so that a peer that does not read stops the other end's
//! machine from producing, and what changes meanwhile merges there.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use client::{ConnectError, Connection, endpoint};
pub use server::{Handler, Link, Requests, Responses, secret_service, server, service};

/// PING after this much silence.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// The peer is gone where it does not answer a PING for this long.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest response that a client takes: a full set of a big mesh.
pub const MAX_RESPONSE_BYTES: usize = 200 << 20;
/// Largest request that a server takes: tens of thousands of held versions after a reconnect.
pub const MAX_REQUEST_BYTES: usize = 64 << 20;
