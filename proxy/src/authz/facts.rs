//! What is known of a request or connection when it is decided on.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::http::head::RequestHead;
use crate::listener::connection::Connection;

/// What a decision looks at.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// What the client has proved to be called; empty for plaintext and where it showed no certificate.
    pub principals: &'a [Arc<str>],
    /// The client speaks TLS with us.
    pub encrypted: bool,
    /// The other end of the connection.
    pub direct_remote: IpAddr,
    /// The client, as `x-forwarded-for` says where that is trusted.
    pub remote: IpAddr,
    /// Where the connection was going before it was captured.
    pub destination: SocketAddr,
    /// SNI; empty without.
    pub server_name: &'a str,
    /// The request; `None` for an opaque connection.
    pub head: Option<&'a RequestHead>,
}

impl<'a> Facts<'a> {
    /// Of an opaque connection.
    pub fn of_connection(connection: &'a Connection) -> Self {
        let inputs = &connection.inputs;
        let source = inputs.source.ip().to_canonical();
        let destination = inputs.destination;
        Self {
            principals: connection.peer.as_ref().map_or(&[], |peer| peer.principals()),
            encrypted: connection.encrypted,
            direct_remote: source,
            remote: source,
            destination: SocketAddr::new(destination.ip().to_canonical(), destination.port()),
            server_name: inputs.server_name.as_deref().unwrap_or_default(),
            head: None,
        }
    }

    /// Of a request that came over a connection, from the client `remote`.
    pub fn of_request(connection: &'a Connection, head: &'a RequestHead, remote: IpAddr) -> Self {
        Self { remote: remote.to_canonical(), head: Some(head), ..Self::of_connection(connection) }
    }
}
