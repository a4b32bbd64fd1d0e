//! Listeners: captured outbound and inbound traffic, explicit ones, and the API form for gRPC.
//!
//! A listener is made from its name alone. [`names`] lists those of a whole scope; clients that ask on demand name the address
//! that a connection went to, and get the very same listener.

mod authentication;
mod authorization;
mod authorizer;
mod explicit;
mod filter;
mod gateway;
mod grpc;
mod inbound;
mod layer4;
mod mutual_tls;
mod outbound;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use osier_core::on_demand::{ListenerName, listener_name};
use osier_proto::types::core::{Address, TrafficDirection};
use osier_proto::types::http_inspector::HttpInspector;
use osier_proto::types::listener::{Listener, ListenerFilter};
use osier_proto::types::tls_inspector::TlsInspector;

use super::name;
use super::scope::Scope;
use super::wire;
use crate::model::Interception;

const TLS_INSPECTOR: &str = "envoy.filters.listener.tls_inspector";
const HTTP_INSPECTOR: &str = "envoy.filters.listener.http_inspector";

/// Names of every listener in a client's scope. For clients that ask on demand: those that are bound to a port, which they can't
/// know of otherwise.
pub fn names(scope: &Scope<'_>) -> Vec<String> {
    let view = scope.view();
    if view.is_grpc() {
        return Vec::new();
    }
    if view.proxy.gateway {
        return gateway::addresses(scope).into_iter().map(listener_name).collect();
    }
    if view.proxy.interception == Interception::None {
        return explicit::addresses(scope).into_iter().map(listener_name).collect();
    }
    let mut names = vec![name::VIRTUAL_OUTBOUND.to_string(), name::VIRTUAL_INBOUND.to_string()];
    if !view.is_on_demand() {
        names.extend(outbound::addresses(scope).into_iter().map(listener_name));
    }
    names
}

/// The listener of a name; `None` where the client has none of that name.
pub fn generate(scope: &Scope<'_>, name: &str) -> Option<Listener> {
    let mut listener =
        if scope.view().is_grpc() { grpc::generate(scope, name)? } else { proxied(scope, name)? };
    listener.name = name.to_string();
    Some(listener)
}

fn proxied(scope: &Scope<'_>, name: &str) -> Option<Listener> {
    if scope.view().proxy.gateway {
        let ListenerName::Address(address) = ListenerName::parse(name) else { return None };
        return gateway::generate(scope, address);
    }
    let captured = scope.view().proxy.interception != Interception::None;
    match ListenerName::parse(name) {
        ListenerName::Named(name::VIRTUAL_OUTBOUND) if captured => Some(outbound::catch_all(scope)),
        ListenerName::Named(name::VIRTUAL_INBOUND) if captured => Some(inbound::captured(scope)),
        ListenerName::Address(address) if captured => outbound::generate(scope, address, None),
        ListenerName::ServerName(address, sni) if captured => outbound::generate(scope, address, Some(sni)),
        // Behind an explicit proxy, `CONNECT` opens original destinations: the listeners for them aren't bound.
        ListenerName::Address(address) => explicit::generate(scope, address).or_else(|| {
            let on_demand = scope.view().is_on_demand();
            let known = on_demand.then(|| outbound::generate(scope, address, None)).flatten();
            known.or_else(|| on_demand.then(|| explicit::unknown(scope, address)).flatten())
        }),
        ListenerName::ServerName(address, sni) if scope.view().is_on_demand() => {
            outbound::generate(scope, address, Some(sni))
        }
        ListenerName::Host(host, port) if scope.view().is_on_demand() => {
            outbound::by_host(scope, host, port).or_else(|| explicit::outside(scope, host, port))
        }
        ListenerName::ServerName(..) | ListenerName::Host(..) | ListenerName::Named(_) => None,
    }
}

/// A listener that is reached through the one of captured traffic.
fn virtual_listener(address: SocketAddr) -> Listener {
    Listener {
        address: Some(wire::socket(address)),
        bind_to_port: Some(false),
        traffic_direction: TrafficDirection::Outbound as i32,
        ..Default::default()
    }
}

/// The wildcard addresses of a client's families.
fn wildcards(scope: &Scope<'_>) -> Vec<IpAddr> {
    let own = &scope.view().proxy.addresses;
    let mut found = Vec::new();
    if own.iter().any(IpAddr::is_ipv4) || own.is_empty() {
        found.push(Ipv4Addr::UNSPECIFIED.into());
    }
    if own.iter().any(IpAddr::is_ipv6) {
        found.push(Ipv6Addr::UNSPECIFIED.into());
    }
    found
}

/// Where captured connections arrive, of whichever of a client's families: one socket.
fn everywhere(scope: &Scope<'_>, port: u16) -> Address {
    match wildcards(scope)[..] {
        [only] => wire::socket(SocketAddr::new(only, port)),
        _ => wire::both_families(port),
    }
}

/// What HTTP inspection calls plaintext HTTP.
fn http_protocols(scope: &Scope<'_>) -> Vec<String> {
    let versions: &[&str] =
        if scope.view().http10 { &["http/1.0", "http/1.1", "h2c"] } else { &["http/1.1", "h2c"] };
    versions.iter().map(|v| v.to_string()).collect()
}

fn tls_inspector() -> ListenerFilter {
    wire::listener_filter(TLS_INSPECTOR, &TlsInspector {})
}

fn http_inspector() -> ListenerFilter {
    wire::listener_filter(HTTP_INSPECTOR, &HttpInspector {})
}

/// Sets which inspectors run, and how long they may wait for the first bytes.
fn inspect(scope: &Scope<'_>, listener: &mut Listener, tls: bool, http: bool) {
    listener.listener_filters.extend(tls.then(tls_inspector));
    listener.listener_filters.extend(http.then(http_inspector));
    if tls || http {
        listener.listener_filters_timeout =
            Some(wire::duration(scope.mesh().detection_timeout.unwrap_or_default()));
        listener.continue_on_listener_filters_timeout = true;
    }
}
