//! Listeners for connections to the workload.

use osier_proto::types::core::{CidrRange, DataSource, TrafficDirection, data_source::Specifier};
use osier_proto::types::listener::{
    FilterChain, FilterChainMatch, Listener, ListenerFilterChainMatchPredicate as Predicate,
    listener_filter_chain_match_predicate::{MatchSet, Rule},
};
use osier_proto::types::original_dst::OriginalDst;
use osier_proto::types::route::{
    Decorator, DirectResponseAction, Route, RouteAction, RouteConfiguration, VirtualHost,
    route::Action,
    route_action::{ClusterSpecifier, MaxStreamDuration},
};

use osier_proto::types::value::Int32Range;

use super::authorization;
use super::filter::{self, Routes, Side, TcpTimes};
use super::{HTTP_INSPECTOR, TLS_INSPECTOR, everywhere, inspect, mutual_tls};
use crate::r#gen::name;
use crate::r#gen::route::everything;
use crate::r#gen::scope::Scope;
use crate::r#gen::wire;
use crate::model::{Interception, MutualTls, Protocol};
use crate::snapshot::InboundPort;

/// `virtualInbound`: every captured inbound connection.
pub(super) fn captured(scope: &Scope<'_>) -> Listener {
    let ports = scope.snapshot.inbound_ports(&scope.view().proxy);
    let mut chains = vec![loop_guard(scope)];
    chains.extend(unknown(scope, None));
    for number in scope.snapshot.ports_with_own_mode(&scope.view().proxy) {
        if ports.iter().all(|port| port.port != number) {
            chains.extend(unknown(scope, Some(number)));
        }
    }
    for port in &ports {
        chains.extend(of_port(scope, port));
    }
    let mut listener = Listener {
        address: Some(everywhere(scope, name::INBOUND_PORT)),
        traffic_direction: TrafficDirection::Inbound as i32,
        transparent: (scope.view().proxy.interception == Interception::Tproxy).then_some(true),
        listener_filters: vec![wire::listener_filter("envoy.filters.listener.original_dst", &OriginalDst {})],
        filter_chains: chains,
        ..Default::default()
    };
    // What is declared needs no look, and servers there may speak first: nobody may wait for what their clients send.
    let declared = ports.iter().filter(|p| p.protocol != Protocol::Auto).map(|p| p.port);
    let declared: Vec<u16> = declared.chain([name::INBOUND_PORT]).collect();
    let encrypted = mutual_tls::any_encrypted(&listener.filter_chains);
    inspect(scope, &mut listener, encrypted, true);
    if encrypted {
        let modes = ports.iter().map(|port| (port.port, mode(scope, port.port)));
        let plain: Vec<u16> =
            modes.filter(|(_, mode)| *mode == MutualTls::Disable).map(|(port, _)| port).collect();
        let never: Vec<u16> = plain.into_iter().chain([name::INBOUND_PORT]).collect();
        disable(&mut listener, TLS_INSPECTOR, &never);
    }
    disable(&mut listener, HTTP_INSPECTOR, &declared);
    listener
}

/// Keeps an inspector off connections to these ports.
fn disable(listener: &mut Listener, inspector: &str, ports: &[u16]) {
    if let Some(inspector) = listener.listener_filters.iter_mut().find(|f| f.name == inspector) {
        inspector.filter_disabled = Some(to(ports));
    }
}

/// Connections to these ports.
fn to(ports: &[u16]) -> Predicate {
    let port = |port: &u16| {
        let start = i32::from(*port);
        Predicate { rule: Some(Rule::DestinationPortRange(Int32Range { start, end: start + 1 })) }
    };
    // Envoy takes sets of two or more only.
    match ports {
        [one] => port(one),
        several => {
            let rules = several.iter().map(port).collect();
            Predicate { rule: Some(Rule::OrMatch(MatchSet { rules })) }
        }
    }
}

/// Connections to our own port would go round and round.
fn loop_guard(scope: &Scope<'_>) -> FilterChain {
    let nowhere = filter::tcp(scope, &[(name::BLACK_HOLE.to_string(), 1)], TcpTimes::default());
    let mut chain = wire::chain("virtualInbound-blackhole", nowhere);
    chain.filter_chain_match = Some(FilterChainMatch {
        destination_port: Some(u32::from(name::INBOUND_PORT)),
        ..Default::default()
    });
    chain
}

/// Ports without a service: to where the connection was going, as HTTP where it is HTTP, else bytes as they are. `only`: this
/// port, which a policy names.
fn unknown(scope: &Scope<'_>, only: Option<u16>) -> Vec<FilterChain> {
    // No policy names port 0.
    let refusal = refusal(scope, only.unwrap_or(0));
    let own = &scope.view().proxy.addresses;
    let mut families = Vec::new();
    if own.iter().any(|ip| ip.is_ipv4()) || own.is_empty() {
        families.push((name::INBOUND_PASSTHROUGH_V4, wire::range([0, 0, 0, 0].into(), 0)));
    }
    if own.iter().any(|ip| ip.is_ipv6()) {
        families.push((name::INBOUND_PASSTHROUGH_V6, wire::range(std::net::Ipv6Addr::UNSPECIFIED.into(), 0)));
    }
    let mode = mode(scope, only.unwrap_or(0));
    let of_family = |(cluster, range): (&str, CidrRange)| {
        let route = match &refusal {
            Some(cause) => forbidden(cause),
            None => to_cluster(cluster, None),
        };
        let http = || {
            let routes = Routes::Inline(Box::new(routes(cluster, 0, route.clone())));
            let filter = filter::http(scope, cluster, routes, Side::Inbound);
            wire::chain("virtualInbound-catchall-http", filter)
        };
        let tcp = || {
            let bytes = match &refusal {
                Some(cause) => filter::close(scope, cause),
                None => filter::tcp(scope, &[(cluster.to_string(), 1)], TcpTimes::default()),
            };
            authorization::guard(scope, Protocol::Auto, wire::chain("virtualInbound", bytes))
        };
        let mut chains = mutual_tls::chains(scope, mode, Protocol::Auto, http, tcp);
        for chain in &mut chains {
            let matched = chain.filter_chain_match.get_or_insert_default();
            matched.destination_port = only.map(u32::from);
            matched.prefix_ranges = vec![range.clone()];
        }
        chains
    };
    families.into_iter().flat_map(of_family).collect()
}

/// The chains of one port of the workload.
fn of_port(scope: &Scope<'_>, port: &InboundPort<'_>) -> Vec<FilterChain> {
    let mut chains = chains(scope, port);
    for chain in &mut chains {
        let matched = chain.filter_chain_match.get_or_insert_default();
        matched.destination_port = Some(u32::from(port.port));
    }
    chains
}

/// What is done with connections to a port, without saying which port.
pub(super) fn chains(scope: &Scope<'_>, port: &InboundPort<'_>) -> Vec<FilterChain> {
    let chain_name = format!("0.0.0.0_{}", port.port);
    let refusal = refusal(scope, port.port);
    let http = || {
        let stat_prefix = format!("inbound_0.0.0.0_{};", port.port);
        let route = match &refusal {
            Some(cause) => forbidden(cause),
            None => to_application(port),
        };
        let number = port.services.first().map_or(port.port, |(_, p)| p.number);
        let routes = Routes::Inline(Box::new(routes(&name::inbound(port.port), number, route)));
        wire::chain(&chain_name, filter::http(scope, &stat_prefix, routes, Side::Inbound))
    };
    let tcp = || {
        let filter = match &refusal {
            Some(cause) => filter::close(scope, cause),
            None => filter::tcp(scope, &[(name::inbound(port.port), 1)], times(scope, port)),
        };
        authorization::guard(scope, port.protocol, wire::chain(&chain_name, filter))
    };
    mutual_tls::chains(scope, mode(scope, port.port), port.protocol, http, tcp)
}

/// Whether clients of a port must, may or can't speak mutual TLS. Who has no certificate can't take it.
pub(super) fn mode(scope: &Scope<'_>, port: u16) -> MutualTls {
    match scope.view().proxy.mutual_tls {
        true => scope.snapshot.mutual_tls(&scope.view().proxy, port),
        false => MutualTls::Disable,
    }
}

fn times(scope: &Scope<'_>, port: &InboundPort<'_>) -> TcpTimes {
    let Some((service, service_port)) = port.services.first() else { return TcpTimes::default() };
    let policy = scope.snapshot.effective_policy(&scope.view().proxy, service, service_port.number, None);
    policy.connection_pool.map_or_else(TcpTimes::default, |pool| TcpTimes {
        idle: pool.tcp.idle_timeout,
        longest: pool.tcp.max_connection_duration,
    })
}

/// Why everything to a port is refused, if so.
pub(super) fn refusal(scope: &Scope<'_>, port: u16) -> Option<String> {
    scope.snapshot.refusal(&scope.view().proxy, port).map(|refusal| refusal.to_string())
}

/// Istio's answer to what a policy denies. The cause is for the operator, who sees the name of the route.
pub(super) fn forbidden(cause: &str) -> Route {
    let body = DataSource { specifier: Some(Specifier::InlineString("RBAC: access denied".into())) };
    Route {
        name: cause.to_string(),
        r#match: Some(everything()),
        action: Some(Action::DirectResponse(DirectResponseAction { status: 403, body: Some(body) })),
        ..Default::default()
    }
}

/// Everything on a port to the application.
fn to_application(port: &InboundPort<'_>) -> Route {
    let operation = port.services.first().map(|(s, p)| format!("{}:{}/*", s.host(), p.number));
    to_cluster(&name::inbound(port.port), operation)
}

/// Everything to one cluster.
fn to_cluster(cluster: &str, operation: Option<String>) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: Some(prost_types::Duration::default()),
        max_stream_duration: Some(MaxStreamDuration {
            max_stream_duration: None,
            grpc_timeout_header_max: Some(prost_types::Duration::default()),
        }),
        ..Default::default()
    };
    Route {
        name: "default".into(),
        r#match: Some(everything()),
        action: Some(Action::Route(action)),
        decorator: operation.map(|operation| Decorator { operation, propagate: None }),
        ..Default::default()
    }
}

fn routes(cluster: &str, port: u16, route: Route) -> RouteConfiguration {
    RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: format!("inbound|http|{port}"),
            domains: vec!["*".into()],
            routes: vec![route],
            ..Default::default()
        }],
        validate_clusters: Some(false),
        ..Default::default()
    }
}
