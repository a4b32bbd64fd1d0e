//! Listeners for connections of the workload: by virtual address, by pod address (headless), and by port alone.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use osier_core::on_demand::{CHAINS_BY_SERVER_NAME, METADATA_NAMESPACE};
use osier_proto::types::core::{Metadata, TrafficDirection};
use osier_proto::types::listener::{FilterChain, FilterChainMatch, Listener};

use super::filter::{self, Routes, Side, TcpTimes};
use super::{everywhere, http_protocols, inspect, layer4, virtual_listener, wildcards};
use crate::r#gen::name;
use crate::r#gen::scope::Scope;
use crate::r#gen::wire;
use crate::model::{Protocol, Service, ServiceKind, ServicePort};
use crate::snapshot::OriginalDestination;

/// From this many chains by server name on, a client that asks on demand asks for them one by one.
const MANY_SERVER_NAMES: usize = 8;

/// Where captured connections arrive, and what happens to those that no other listener takes.
pub(super) fn catch_all(scope: &Scope<'_>) -> Listener {
    let to = |cluster: &str| filter::tcp(scope, &[(cluster.to_string(), 1)], TcpTimes::default());
    let mut loop_guard = wire::chain("virtualOutbound-blackhole", to(name::BLACK_HOLE));
    loop_guard.filter_chain_match = Some(FilterChainMatch {
        destination_port: Some(u32::from(name::OUTBOUND_PORT)),
        ..Default::default()
    });
    let unknown = wire::chain("virtualOutbound-catchall-tcp", to(unknown_cluster(scope)));
    Listener {
        address: Some(everywhere(scope, name::OUTBOUND_PORT)),
        use_original_dst: Some(true),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains: vec![loop_guard, unknown],
        ..Default::default()
    }
}

/// Where connections to unknown destinations go.
pub(super) fn unknown_cluster(scope: &Scope<'_>) -> &'static str {
    if scope.allows_unknown() { name::PASSTHROUGH } else { name::BLACK_HOLE }
}

/// Addresses of every outbound listener of a scope.
pub(super) fn addresses(scope: &Scope<'_>) -> BTreeSet<SocketAddr> {
    let wildcards = wildcards(scope);
    let mut found = BTreeSet::new();
    for service in scope.services() {
        for port in service.ports.iter().filter(|p| is_served(service, p)) {
            let by_port = |found: &mut BTreeSet<SocketAddr>| {
                found.extend(wildcards.iter().map(|ip| SocketAddr::new(*ip, port.number)));
            };
            match place(scope, service, port) {
                Place::Port => by_port(&mut found),
                Place::Addresses => {
                    for range in service.addresses_for(&scope.view().proxy).iter() {
                        let address = SocketAddr::new(range.addr(), port.number);
                        if is_single(range) {
                            // Where services share an address, another one may have it.
                            found.extend(service_at(scope, address).map(|_| address));
                        } else {
                            by_port(&mut found);
                        }
                    }
                }
                Place::Pods => {
                    let endpoints = scope.snapshot.endpoints(&service.key, port.number);
                    let ips = endpoints.iter().flat_map(|e| e.iter()).filter_map(|e| e.address.ip());
                    let others = ips.filter(|ip| !scope.view().proxy.addresses.contains(ip));
                    let addresses = others.map(|ip| SocketAddr::new(ip, port.number));
                    found.extend(addresses.filter(|a| service_at(scope, *a).is_some()));
                }
            }
        }
    }
    found
}

/// Where connections to a service port are recognised.
enum Place {
    /// By the port alone.
    Port,
    /// By the service's addresses.
    Addresses,
    /// By the addresses of its endpoints.
    Pods,
}

fn place(scope: &Scope<'_>, service: &Service, port: &ServicePort) -> Place {
    match () {
        () if port.protocol.is_http() => Place::Port,
        () if service.kind == ServiceKind::Headless => Place::Pods,
        () if service.addresses_for(&scope.view().proxy).is_empty() => Place::Port,
        () => Place::Addresses,
    }
}

fn is_single(range: &IpNet) -> bool {
    range.prefix_len() == range.max_prefix_len()
}

fn is_served(service: &Service, port: &ServicePort) -> bool {
    !matches!(service.kind, ServiceKind::ExternalName(_))
        && port.protocol != Protocol::Udp
        && !name::OWN_PORTS.contains(&port.number)
}

/// The listener of an address. With `sni`: only the chain that takes connections with this server name.
pub(super) fn generate(scope: &Scope<'_>, address: SocketAddr, sni: Option<&str>) -> Option<Listener> {
    if name::OWN_PORTS.contains(&address.port()) {
        return None;
    }
    if address.ip().is_unspecified() {
        if !wildcards(scope).contains(&address.ip()) {
            return None;
        }
        return by_port(scope, address, sni);
    }
    if sni.is_some() {
        return None;
    }
    by_address(scope, address)
}

/// The service that a connection to an address is for, unless it is found by its port alone.
fn service_at<'a>(scope: &Scope<'a>, address: SocketAddr) -> Option<(&'a Service, &'a ServicePort)> {
    let view = &scope.view().proxy;
    let found = scope.snapshot.resolve_original_destination(view, address.ip(), address.port());
    let (service, port) = match found {
        OriginalDestination::Vip { service, port } => (service, port),
        OriginalDestination::Headless { service, port } if !view.addresses.contains(&address.ip()) => {
            (service, port)
        }
        _ => return None,
    };
    (!port.protocol.is_http() && is_served(service, port)).then_some((service, port))
}

/// `<VIP>_<port>` and `<pod>_<port>`: one service.
fn by_address(scope: &Scope<'_>, address: SocketAddr) -> Option<Listener> {
    let (service, port) = service_at(scope, address)?;
    Some(one_service(scope, address, service, port))
}

/// The listener of a host that a client names instead of an address: every port of a service has one, HTTP too.
pub(super) fn by_host(scope: &Scope<'_>, host: &str, port_number: u16) -> Option<Listener> {
    let service = scope.service_by_any_name(host)?;
    let port = service.port(port_number).filter(|p| is_served(service, p))?;
    let address = SocketAddr::new(wildcards(scope)[0], port_number);
    Some(one_service(scope, address, service, port))
}

/// A listener for one port of one service.
fn one_service(scope: &Scope<'_>, address: SocketAddr, service: &Service, port: &ServicePort) -> Listener {
    let mut listener = virtual_listener(address);
    match port.protocol {
        protocol if protocol.may_be_http() => {
            let routes = format!("{}:{}", service.host(), port.number);
            listener.filter_chains.push(sniffed_http(scope, address.ip(), &routes));
            let tcp = layer4::tcp(scope, service, port, &[]);
            add_opaque(&mut listener, tcp);
            inspect(scope, &mut listener, true, true);
        }
        protocol if protocol.is_tls() => {
            let chains = layer4::tls(scope, service, port, &[], false);
            let inspects = chains.iter().any(has_server_names);
            listener.filter_chains = chains;
            inspect(scope, &mut listener, inspects, false);
        }
        _ => listener.filter_chains = layer4::tcp(scope, service, port, &[]),
    }
    listener
}

/// `0.0.0.0_<port>`: HTTP by Host, TLS by SNI, TCP by address range, and what is left.
fn by_port(scope: &Scope<'_>, address: SocketAddr, sni: Option<&str>) -> Option<Listener> {
    let port_number = address.port();
    let mut http = false;
    let mut chains: Vec<FilterChain> = Vec::new();
    let mut opaque: Option<Vec<FilterChain>> = None;
    for service in scope.services() {
        let Some(port) = service.port(port_number).filter(|p| is_served(service, p)) else { continue };
        match place(scope, service, port) {
            Place::Port if port.protocol.is_http() => http = true,
            Place::Port if port.protocol.is_tls() => {
                chains.extend(layer4::tls(scope, service, port, &[], true))
            }
            Place::Port => {
                http |= port.protocol == Protocol::Auto;
                // Services without an address can't be told apart: the oldest takes the port.
                if opaque.is_none() {
                    opaque = Some(layer4::tcp(scope, service, port, &[]));
                }
            }
            Place::Addresses => {
                let ranges: Vec<IpNet> =
                    service.addresses.iter().filter(|r| !is_single(r)).copied().collect();
                if !ranges.is_empty() {
                    let own = match port.protocol.is_tls() {
                        true => layer4::tls(scope, service, port, &ranges, false),
                        false => layer4::tcp(scope, service, port, &ranges),
                    };
                    chains.extend(own);
                }
            }
            Place::Pods => {}
        }
    }
    if !http && chains.is_empty() && opaque.is_none() {
        return None;
    }
    drop_duplicates(&mut chains);
    let mut listener = virtual_listener(address);
    let names = chains.iter().filter(|c| has_server_names(c)).count();
    let inspects_tls = http || names > 0;
    if let Some(sni) = sni {
        listener.filter_chains = vec![winning_chain(chains, sni)?];
        inspect(scope, &mut listener, true, false);
        return Some(listener);
    }
    if names > MANY_SERVER_NAMES && scope.view().is_on_demand() {
        chains.retain(|c| !has_server_names(c));
        listener.metadata = Some(by_server_name_marker());
    }
    if http {
        chains.insert(0, sniffed_http(scope, address.ip(), &port_number.to_string()));
    }
    listener.filter_chains = chains;
    add_opaque(&mut listener, opaque.unwrap_or_default());
    if listener.default_filter_chain.is_none() {
        let unknown = filter::tcp(scope, &[(unknown_cluster(scope).to_string(), 1)], TcpTimes::default());
        listener.default_filter_chain = Some(wire::chain("PassthroughFilterChain", unknown));
    }
    if listener.filter_chains.is_empty() {
        // Envoy wants a chain beside the default one only where there is something to match.
        inspect(scope, &mut listener, inspects_tls, false);
    } else {
        inspect(scope, &mut listener, inspects_tls, http);
    }
    Some(listener)
}

/// The chain that Envoy would choose for a server name: exact, then the longest wildcard.
fn winning_chain(chains: Vec<FilterChain>, sni: &str) -> Option<FilterChain> {
    let rank = |chain: &FilterChain| {
        let names = &chain.filter_chain_match.as_ref()?.server_names;
        let of_name = |name: &String| match name.strip_prefix('*') {
            None => (name == sni).then_some(usize::MAX),
            Some(suffix) => (sni.len() > suffix.len() && sni.ends_with(suffix)).then_some(suffix.len()),
        };
        names.iter().filter_map(of_name).max()
    };
    let best =
        chains.iter().enumerate().filter_map(|(at, c)| Some((rank(c)?, std::cmp::Reverse(at)))).max()?;
    chains.into_iter().nth(best.1.0)
}

fn has_server_names(chain: &FilterChain) -> bool {
    chain.filter_chain_match.as_ref().is_some_and(|m| !m.server_names.is_empty())
}

/// "Ask for my chains by server name."
fn by_server_name_marker() -> Metadata {
    let fields = [(
        CHAINS_BY_SERVER_NAME.to_string(),
        prost_types::Value { kind: Some(prost_types::value::Kind::BoolValue(true)) },
    )];
    let marker = prost_types::Struct { fields: fields.into() };
    Metadata { filter_metadata: [(METADATA_NAMESPACE.to_string(), marker)].into_iter().collect() }
}

/// Plaintext HTTP, found out by inspection.
fn sniffed_http(scope: &Scope<'_>, ip: IpAddr, routes: &str) -> FilterChain {
    let port = routes.rsplit(':').next().unwrap_or(routes);
    let stat_prefix = format!("outbound_{ip}_{port}");
    let mut chain =
        wire::chain("", filter::http(scope, &stat_prefix, Routes::Named(routes.to_string()), Side::Outbound));
    chain.filter_chain_match = Some(FilterChainMatch {
        transport_protocol: "raw_buffer".into(),
        application_protocols: http_protocols(scope),
        ..Default::default()
    });
    chain
}

/// Adds opaque chains: those with a condition beside the others, the one without as the default.
fn add_opaque(listener: &mut Listener, chains: Vec<FilterChain>) {
    for chain in chains {
        if chain.filter_chain_match.is_some() {
            listener.filter_chains.push(chain);
        } else {
            listener.default_filter_chain = Some(chain);
        }
    }
}

/// Of chains with equal conditions the first (oldest) stays: Envoy would refuse the listener.
fn drop_duplicates(chains: &mut Vec<FilterChain>) {
    let mut seen: Vec<Option<FilterChainMatch>> = Vec::new();
    chains.retain(|chain| {
        let new = !seen.contains(&chain.filter_chain_match);
        seen.push(chain.filter_chain_match.clone());
        new
    });
}
