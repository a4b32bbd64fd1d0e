//! What gateways listen on for the Ingresses that they serve.

use std::net::SocketAddr;

use osier_proto::Any;
use osier_proto::types::core::{TrafficDirection, TransportSocket, transport_socket::ConfigType};
use osier_proto::types::listener::{FilterChain, FilterChainMatch, Listener};
use osier_proto::types::tls::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, TlsParameters, tls_parameters::TlsProtocol,
};

use super::filter::{self, Routes, Side};
use super::{tls_inspector, wildcards};
use crate::r#gen::name;
use crate::r#gen::scope::Scope;
use crate::r#gen::wire;
use crate::snapshot::TlsHosts;

/// Addresses of every listener.
pub(super) fn addresses(scope: &Scope<'_>) -> Vec<SocketAddr> {
    let ingresses = &scope.snapshot.ingresses;
    if !ingresses.served_by(&scope.view().proxy) {
        return Vec::new();
    }
    let http = (!ingresses.hosts().is_empty()).then_some(name::INGRESS_HTTP_PORT);
    // Who may not have certificates would only refuse its clients.
    let tls =
        scope.view().secrets_of.as_ref().is_some_and(|secrets| secrets.keys) && !ingresses.tls().is_empty();
    let tls = tls.then_some(name::INGRESS_TLS_PORT);
    let at = |ip| http.into_iter().chain(tls).map(move |port| SocketAddr::new(ip, port));
    wildcards(scope).into_iter().flat_map(at).collect()
}

/// The listener bound to an address.
pub(super) fn generate(scope: &Scope<'_>, address: SocketAddr) -> Option<Listener> {
    if !addresses(scope).contains(&address) {
        return None;
    }
    let listener = Listener {
        address: Some(wire::socket(address)),
        // Towards the mesh: the gateway is the client of the services.
        traffic_direction: TrafficDirection::Outbound as i32,
        ..Default::default()
    };
    Some(match address.port() {
        name::INGRESS_TLS_PORT => Listener {
            listener_filters: vec![tls_inspector()],
            filter_chains: scope
                .snapshot
                .ingresses
                .tls()
                .iter()
                .map(|tls| tls_chain(scope, address, tls))
                .collect(),
            ..listener
        },
        _ => Listener { filter_chains: vec![chain(scope, address, "")], ..listener },
    })
}

fn chain(scope: &Scope<'_>, address: SocketAddr, name: &str) -> FilterChain {
    let routes = Routes::Named(name::ingress_routes(address.port()));
    let prefix = format!("outbound_{}_{}", address.ip(), address.port());
    wire::chain(name, filter::http(scope, &prefix, routes, Side::Gateway))
}

/// Every chain has the same routes: a client may use one connection for all hosts that its certificate covers.
fn tls_chain(scope: &Scope<'_>, address: SocketAddr, tls: &TlsHosts) -> FilterChain {
    let (ingress, at) = &tls.ingress;
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            server_names: tls.hosts.iter().map(|host| host.as_str().to_string()).collect(),
            transport_protocol: "tls".into(),
            ..Default::default()
        }),
        transport_socket: Some(TransportSocket {
            name: "envoy.transport_sockets.tls".into(),
            config_type: Some(ConfigType::TypedConfig(Any::pack(&context(scope, &tls.secret)))),
        }),
        ..chain(scope, address, &format!("{}/{}/{at}", ingress.namespace, ingress.name))
    }
}

fn context(scope: &Scope<'_>, secret: &str) -> DownstreamTlsContext {
    let certificate = SdsSecretConfig {
        name: name::secret(&scope.view().proxy.namespace, secret),
        sds_config: Some(wire::over_ads()),
    };
    DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
                ..Default::default()
            }),
            tls_certificate_sds_secret_configs: vec![certificate],
            alpn_protocols: vec!["h2".into(), "http/1.1".into()],
            ..Default::default()
        }),
        require_client_certificate: Some(false),
        ..Default::default()
    }
}
