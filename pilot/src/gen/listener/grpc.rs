//! API listeners for gRPC libraries, and the listeners of gRPC servers (xDS reference, section 11).

use osier_proto::Any;
use osier_proto::types::http_connection_manager::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};
use osier_proto::types::listener::{ApiListener, Listener};
use osier_proto::types::route::{NonForwardingAction, Route, RouteConfiguration, VirtualHost, route::Action};
use std::net::SocketAddr;

use super::{authorization, filter, inbound};
use crate::r#gen::name::{self, OutboundName};
use crate::r#gen::route::everything;
use crate::r#gen::scope::Scope;
use crate::r#gen::{tls, wire};
use crate::model::{MutualTls, TlsMode};

/// The listener of a target (`host`, `host:port`, full or short names) or of a server's own address.
pub(super) fn generate(scope: &Scope<'_>, name: &str) -> Option<Listener> {
    if let Some(address) = name.strip_prefix(name::GRPC_INBOUND) {
        return server(scope, address.parse().ok()?);
    }
    let (host, port) = match name.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (name, None),
    };
    let service = scope.service_by_any_name(host)?;
    let port = match port {
        Some(port) => service.port(port)?,
        None => service.ports.iter().find(|p| p.protocol.is_http2()).or(service.ports.first())?,
    };
    let routes = OutboundName { port: port.number, subset: "".into(), host: service.host().shared().clone() };
    let rds = Rds { config_source: Some(wire::over_ads()), route_config_name: routes.to_string() };
    let manager = HttpConnectionManager {
        stat_prefix: "grpc".into(),
        route_specifier: Some(RouteSpecifier::Rds(rds)),
        http_filters: vec![filter::router()],
        ..Default::default()
    };
    Some(Listener {
        api_listener: Some(ApiListener { api_listener: Some(Any::pack(&manager)) }),
        ..Default::default()
    })
}

/// A gRPC server handles everything that arrives itself. Where that is refused it gets a route that it cannot take, so that every
/// call fails (UNAVAILABLE).
fn server(scope: &Scope<'_>, address: SocketAddr) -> Option<Listener> {
    let route = match inbound::refusal(scope, address.port()) {
        Some(cause) => inbound::forbidden(&cause),
        None => Route {
            r#match: Some(everything()),
            action: Some(Action::NonForwardingAction(NonForwardingAction {})),
            ..Default::default()
        },
    };
    let routes = RouteConfiguration {
        name: format!("inbound|{}||", address.port()),
        virtual_hosts: vec![VirtualHost {
            name: format!("inbound|http|{}", address.port()),
            domains: vec!["*".into()],
            routes: vec![route],
            ..Default::default()
        }],
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: "grpc".into(),
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        http_filters: authorization::http(scope).into_iter().chain([filter::router()]).collect(),
        ..Default::default()
    };
    let filter = wire::network_filter("envoy.filters.network.http_connection_manager", &manager);
    let mut chain = wire::chain("inbound", filter);
    chain.transport_socket = takes_mutual_tls(scope, address.port()).then(tls::grpc_server);
    Some(Listener { address: Some(wire::socket(address)), filter_chains: vec![chain], ..Default::default() })
}

/// A gRPC library can't take both kinds of clients on a port. Where both may come, it takes what callers are told that it takes:
/// mutual TLS, if it is labelled so.
fn takes_mutual_tls(scope: &Scope<'_>, port: u16) -> bool {
    match inbound::mode(scope, port) {
        MutualTls::Strict => true,
        MutualTls::Permissive => TlsMode::of_labels(&scope.view().proxy.labels) == Some(TlsMode::Istio),
        MutualTls::Disable => false,
    }
}
