//! How bytes towards a service's endpoints are secured: as its DestinationRule says, else by mutual TLS towards those that take it.
//!
//! What a client can't do as a rule says it gets no cluster for: plaintext where TLS was asked for would be worse than nothing.

use osier_proto::types::cluster::{Cluster, cluster::LbPolicy, cluster::TransportSocketMatch};
use osier_proto::types::core::UpstreamHttpProtocolOptions;
use osier_proto::types::tls::SubjectAltNameMatcher;
use prost_types::Struct;

use super::name::OutboundName;
use super::scope::Scope;
use super::{endpoint, tls};
use crate::model::{ClientTls, Location, Protocol, ServerNames, ServerTrust, Service};

/// What a cluster leads to.
pub(super) struct Upstream<'a> {
    /// The service.
    pub service: &'a Service,
    /// Its name as a cluster.
    pub name: &'a OutboundName,
    /// What its port speaks.
    pub protocol: Protocol,
    /// HTTP/2 is spoken whatever the client speaks.
    pub http2: bool,
}

/// Secures a cluster. False where this client can't do what `rule` asks for.
#[must_use]
pub(super) fn apply(
    scope: &Scope<'_>,
    cluster: &mut Cluster,
    upstream: &Upstream<'_>,
    rule: Option<&ClientTls>,
) -> bool {
    let grpc = scope.view().is_grpc();
    match rule {
        // gRPC libraries can't say that they are of the mesh, so whoever takes plaintext too would refuse them: only a rule knows.
        None if grpc => {}
        None => automatic(scope, cluster, upstream),
        Some(ClientTls::Plaintext) => {}
        Some(ClientTls::Mesh(names)) if grpc => {
            cluster.transport_socket = Some(tls::grpc_client(servers(scope, upstream, names)));
        }
        Some(ClientTls::Mesh(names)) => cluster.transport_socket = Some(mesh(scope, upstream, names)),
        Some(ClientTls::Outside { .. }) if grpc => return false,
        Some(ClientTls::Outside { own, trust, names }) => {
            let protocols: &[&str] = if upstream.http2 { &["h2"] } else { &[] };
            let server_name = names.sni.as_deref().unwrap_or_default().to_owned();
            let namespace = &scope.view().proxy.namespace;
            let expected = match (&*names.alternatives, trust) {
                (_, ServerTrust::Anybody) => Vec::new(),
                ([], _) => tls::alternatives(&upstream.service.subject_alt_names),
                (written, _) => tls::alternatives(written),
            };
            cluster.transport_socket =
                Some(tls::outside(namespace, (own.as_ref(), trust), server_name, expected, protocols));
        }
    }
    true
}

/// What a rule leaves to each request: the name that is asked for, and that the certificate must have it.
pub(super) fn names_of_requests(rule: &ClientTls, service: &Service) -> Option<UpstreamHttpProtocolOptions> {
    let ClientTls::Outside { names, trust, .. } = rule else { return None };
    let named = !names.alternatives.is_empty() || !service.subject_alt_names.is_empty();
    names.sni.is_none().then(|| UpstreamHttpProtocolOptions {
        auto_sni: true,
        auto_san_validation: !named && *trust != ServerTrust::Anybody,
    })
}

/// Mutual TLS towards those endpoints that take it, where the client has a certificate and the service is in the mesh.
fn automatic(scope: &Scope<'_>, cluster: &mut Cluster, upstream: &Upstream<'_>) {
    let service = upstream.service;
    let applies = scope.mesh().auto_mutual_tls && scope.view().proxy.mutual_tls;
    if !applies || service.location == Location::External {
        return;
    }
    let socket = mesh(scope, upstream, &ServerNames::default());
    if cluster.lb_policy == LbPolicy::ClusterProvided as i32 {
        // Nobody says of these endpoints what they take: all of them must.
        cluster.transport_socket = endpoint::all_encrypted(scope, &service.key).then_some(socket);
        return;
    }
    cluster.transport_socket_matches = vec![
        TransportSocketMatch {
            name: "tlsMode-istio".into(),
            r#match: Some(endpoint::takes_mutual_tls()),
            transport_socket: Some(socket),
        },
        TransportSocketMatch {
            name: "tlsMode-disabled".into(),
            r#match: Some(Struct::default()),
            transport_socket: Some(tls::plaintext()),
        },
    ];
}

/// Mutual TLS of the mesh.
fn mesh(
    scope: &Scope<'_>,
    upstream: &Upstream<'_>,
    names: &ServerNames,
) -> osier_proto::types::core::TransportSocket {
    let server_name = names.sni.as_deref().map_or_else(|| upstream.name.server_name(), str::to_owned);
    tls::client(server_name, servers(scope, upstream, names), offered(scope, upstream))
}

/// Who servers of the mesh must be: as a rule says, else the service accounts behind the service.
fn servers(scope: &Scope<'_>, upstream: &Upstream<'_>, names: &ServerNames) -> Vec<SubjectAltNameMatcher> {
    if !names.alternatives.is_empty() {
        return tls::alternatives(&names.alternatives);
    }
    // All endpoints': which of them take mutual TLS is another matter.
    let known = scope.snapshot.identities(&upstream.service.key);
    let accounts = known.iter().map(|identity| (&*identity.namespace, &*identity.service_account));
    let mut servers = tls::accounts(scope.mesh(), accounts.filter(|(_, account)| !account.is_empty()));
    servers.extend(tls::alternatives(&upstream.service.subject_alt_names));
    servers
}

/// What the ClientHello offers. osier-proxy adds the version of HTTP itself, for each connection; others can't.
fn offered(scope: &Scope<'_>, upstream: &Upstream<'_>) -> &'static [&'static str] {
    if scope.view().schema.is_some() || !upstream.protocol.is_http() {
        return &["istio"];
    }
    match upstream.http2 {
        true => &["istio-h2", "istio", "h2"],
        false => &["istio-http/1.1", "istio", "http/1.1"],
    }
}
