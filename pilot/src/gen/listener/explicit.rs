//! Interception mode NONE: nothing is captured, so every listener is bound.
//!
//! Applications use one HTTP proxy for what they send; what is sent to them arrives at the workload's own address and goes to the
//! application on 127.0.0.1.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use osier_proto::types::core::TrafficDirection;
use osier_proto::types::listener::Listener;

use super::filter::{self, Routes, Side};
use super::{inbound, inspect};
use crate::r#gen::name;
use crate::r#gen::scope::Scope;
use crate::r#gen::wire;
use crate::model::Protocol;
use crate::snapshot::InboundPort;

/// Addresses of every listener.
pub(super) fn addresses(scope: &Scope<'_>) -> BTreeSet<SocketAddr> {
    let mut found: BTreeSet<SocketAddr> = scope.view().explicit_proxy.into_iter().collect();
    let own = &scope.view().proxy.addresses;
    for port in scope.snapshot.inbound_ports(&scope.view().proxy) {
        found.extend(own.iter().take(1).map(|ip| SocketAddr::new(*ip, port.port)));
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

fn proxy(scope: &Scope<'_>, address: SocketAddr) -> Listener {
    let routes = Routes::Named(name::HTTP_PROXY.to_string());
    Listener {
        address: Some(wire::socket(address)),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains: vec![wire::chain("", filter::http(scope, "explicit_proxy", routes, Side::Proxy))],
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
    inspect(scope, &mut listener, false, port.protocol == Protocol::Auto);
    listener
}
