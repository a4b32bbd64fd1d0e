//! Interception mode NONE: nothing is captured, so every listener is bound.
//!
//! Applications use one HTTP proxy for what they send; what is sent to them arrives at the workload's own address and goes to the
//! application on 127.0.0.1.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use osier_proto::types::core::TrafficDirection;
use osier_proto::types::listener::{FilterChainMatch, Listener, filter_chain_match::ConnectionSourceType};

use super::filter::{self, Routes, Side, TcpTimes};
use super::{inbound, inspect, mutual_tls, virtual_listener, wildcards};
use crate::r#gen::name::{self, OutsideName};
use crate::r#gen::scope::Scope;
use crate::r#gen::wire;
use crate::model::Protocol;
use crate::snapshot::InboundPort;

/// Addresses of every listener.
pub(super) fn addresses(scope: &Scope<'_>) -> BTreeSet<SocketAddr> {
    let mut found: BTreeSet<SocketAddr> = scope.view().explicit_proxy.into_iter().collect();
    let own = &scope.view().proxy.addresses;
    for port in scope.snapshot.inbound_ports(&scope.view().proxy) {
        found.extend(own.iter().map(|ip| SocketAddr::new(*ip, port.port)));
    }
    found
}

/// The listener bound to an address.
pub(super) fn generate(scope: &Scope<'_>, address: SocketAddr) -> Option<Listener> {
    if scope.view().explicit_proxy == Some(address) {
        return Some(proxy(scope, address));
    }
    if !scope.view().proxy.addresses.contains(&address.ip()) {
        return None;
    }
    let ports = scope.snapshot.inbound_ports(&scope.view().proxy);
    ports.iter().find(|p| p.port == address.port()).map(|port| local(scope, address, port))
}

/// Where a `CONNECT` goes that names a host outside the mesh.
pub(super) fn outside(scope: &Scope<'_>, host: &str, port: u16) -> Option<Listener> {
    if !scope.reaches_outside() || scope.is_covered(host, port) {
        return None;
    }
    let cluster = OutsideName::new(host, port)?.to_string();
    Some(to_cluster(scope, SocketAddr::new(wildcards(scope)[0], port), cluster))
}

/// Where a `CONNECT` goes that names an address, on ports that nothing in the mesh has.
pub(super) fn unknown(scope: &Scope<'_>, address: SocketAddr) -> Option<Listener> {
    let wanted = scope.reaches_outside() && wildcards(scope).contains(&address.ip());
    wanted.then(|| to_cluster(scope, address, name::PASSTHROUGH.to_string()))
}

fn to_cluster(scope: &Scope<'_>, address: SocketAddr, cluster: String) -> Listener {
    let filter = filter::tcp(scope, &[(cluster, 1)], TcpTimes::default());
    Listener {
        filter_chains: vec![wire::chain("PassthroughFilterChain", filter)],
        ..virtual_listener(address)
    }
}

/// The workload's own proxy. Others would send in its name, and reach what listens on its loopback addresses only.
fn proxy(scope: &Scope<'_>, address: SocketAddr) -> Listener {
    let routes = Routes::Named(name::HTTP_PROXY.to_string());
    let mut chain = wire::chain("", filter::http(scope, "explicit_proxy", routes, Side::Proxy));
    chain.filter_chain_match = Some(FilterChainMatch {
        source_type: ConnectionSourceType::SameIpOrLoopback as i32,
        ..Default::default()
    });
    Listener {
        address: Some(wire::socket(address)),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains: vec![chain],
        ..Default::default()
    }
}

fn local(scope: &Scope<'_>, address: SocketAddr, port: &InboundPort<'_>) -> Listener {
    let mut listener = Listener {
        address: Some(wire::socket(address)),
        traffic_direction: TrafficDirection::Inbound as i32,
        filter_chains: inbound::chains(scope, port),
        ..Default::default()
    };
    let encrypted = mutual_tls::any_encrypted(&listener.filter_chains);
    inspect(scope, &mut listener, encrypted, port.protocol == Protocol::Auto);
    listener
}
