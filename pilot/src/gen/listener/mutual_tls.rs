//! Which clients of a port speak mutual TLS, and what is done with the others: the chains of one port by the mode in force.
//!
//! A client of the mesh is known by the protocols that its ClientHello offers, before any certificate was seen. So on a port that
//! takes both, TLS of somebody else's goes to the application as it is, where the port is not HTTP.

use osier_proto::types::listener::{FilterChain, FilterChainMatch};

use super::http_protocols;
use crate::r#gen::scope::Scope;
use crate::r#gen::tls;
use crate::model::{MutualTls, Protocol};

/// What proxies of the mesh offer for HTTP, each version under a name of its own.
const MESH_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// What they offer whatever is within.
const MESH: [&str; 2] = ["istio-peer-exchange", "istio"];
/// Any of these.
const ANY_OF_MESH: [&str; 5] =
    ["istio-peer-exchange", "istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// The chains of a port. `http` and `tcp` make the chain that serves either.
pub(super) fn chains(
    scope: &Scope<'_>,
    mode: MutualTls,
    protocol: Protocol,
    http: impl Fn() -> FilterChain,
    tcp: impl Fn() -> FilterChain,
) -> Vec<FilterChain> {
    use MutualTls::{Disable, Permissive, Strict};
    let encrypted = |offered: &[&str]| matching("tls", offered.iter().map(ToString::to_string).collect());
    let plain = || matching("raw_buffer", Vec::new());
    let plain_http = || matching("raw_buffer", http_protocols(scope));
    let secured = |mut chain: FilterChain, is_http: bool, matches: FilterChainMatch| {
        chain.transport_socket = Some(tls::server(scope.mesh(), is_http));
        with(chain, matches)
    };
    match (protocol, mode) {
        (Protocol::Auto, Strict) => {
            vec![secured(http(), true, encrypted(&MESH_HTTP)), secured(tcp(), false, encrypted(&[]))]
        }
        (Protocol::Auto, Permissive) => vec![
            secured(http(), true, encrypted(&MESH_HTTP)),
            with(http(), plain_http()),
            secured(tcp(), false, encrypted(&MESH)),
            with(tcp(), encrypted(&[])),
            with(tcp(), plain()),
        ],
        // The transport is matched before the protocol, and there is no way back from a chain that names it to one that doesn't.
        (Protocol::Auto, Disable) => vec![with(http(), plain_http()), with(tcp(), plain())],
        (protocol, Strict) if protocol.is_http() => vec![secured(http(), true, encrypted(&[]))],
        (protocol, Permissive) if protocol.is_http() => {
            vec![secured(http(), true, encrypted(&ANY_OF_MESH)), with(http(), plain())]
        }
        (protocol, Disable) if protocol.is_http() => vec![http()],
        (_, Strict) => vec![secured(tcp(), false, encrypted(&[]))],
        (_, Permissive) => vec![
            secured(tcp(), false, encrypted(&ANY_OF_MESH)),
            with(tcp(), encrypted(&[])),
            with(tcp(), plain()),
        ],
        (_, Disable) => vec![tcp()],
    }
}

/// True where one of the chains is for TLS of ours, so that somebody has to look whether clients speak it.
pub(super) fn any_encrypted(chains: &[FilterChain]) -> bool {
    chains.iter().any(|chain| chain.transport_socket.is_some())
}

fn matching(transport: &str, application_protocols: Vec<String>) -> FilterChainMatch {
    FilterChainMatch {
        transport_protocol: transport.to_string(),
        application_protocols,
        ..Default::default()
    }
}

fn with(mut chain: FilterChain, matches: FilterChainMatch) -> FilterChain {
    chain.filter_chain_match = Some(matches);
    chain
}
