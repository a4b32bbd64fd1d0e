//! What is known of a request or connection when it is decided on.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Workload;
use crate::config::listener::ConnectionInputs;
use crate::http::head::RequestHead;
use crate::jwt::Accepted;
use crate::listener::connection::Connection;

/// What a decision looks at.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// What the client has proved to be called; empty for plaintext and where it showed no certificate.
    pub(super) principals: &'a [Arc<str>],
    /// The client speaks TLS with us.
    pub(super) encrypted: bool,
    /// The other end of the connection.
    pub(super) direct_remote: IpAddr,
    /// The client, as `x-forwarded-for` says where that is trusted.
    pub(super) remote: IpAddr,
    /// Where the connection was going before it was captured.
    pub(super) destination: SocketAddr,
    /// SNI; empty without.
    pub(super) server_name: &'a str,
    /// The same where it is one name in the usual form, and that name.
    pub(super) workload: Option<(Workload<'a>, &'a str)>,
    /// The request; `None` for an opaque connection.
    pub(super) request: Option<Request<'a>>,
    /// Tokens that the request was let in with; none for an opaque connection.
    pub(super) tokens: &'a [Accepted<'a>],
}

/// A request, with what every rule would have to look for.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) head: &'a RequestHead,
    /// Without query.
    pub(super) path: &'a [u8],
}

impl<'a> Facts<'a> {
    /// Of a connection between these inputs, with a client that has proved to be called so.
    pub fn new(inputs: &'a ConnectionInputs, principals: &'a [Arc<str>], encrypted: bool) -> Self {
        let source = inputs.source.ip().to_canonical();
        let destination = inputs.destination;
        let only = if let [name] = principals { Some(&**name) } else { None };
        Self {
            principals,
            workload: only.and_then(|name| Some((Workload::of(name)?, name))),
            encrypted,
            direct_remote: source,
            remote: source,
            destination: SocketAddr::new(destination.ip().to_canonical(), destination.port()),
            server_name: inputs.server_name.as_deref().unwrap_or_default(),
            request: None,
            tokens: &[],
        }
    }

    /// Of an opaque connection.
    pub fn of_connection(connection: &'a Connection) -> Self {
        let principals = connection.peer.as_ref().map_or(&[][..], |peer| peer.principals());
        Self::new(&connection.inputs, principals, connection.encrypted)
    }

    /// Of a request that came over the connection, from the client `remote`, with these verified tokens.
    pub fn with_request(self, head: &'a RequestHead, remote: IpAddr, tokens: &'a [Accepted<'a>]) -> Self {
        let request = Some(Request { head, path: head.path_only() });
        Self { remote: remote.to_canonical(), request, tokens, ..self }
    }
}
