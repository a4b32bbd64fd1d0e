//! Endpoints: grouped by locality, with health, weight and the workload's names.

use std::collections::BTreeMap;

use osier_proto::types::core::{HealthStatus, Metadata};
use osier_proto::types::endpoint::{
    ClusterLoadAssignment, Endpoint as WireEndpoint, LbEndpoint, LocalityLbEndpoints,
    cluster_load_assignment::Policy, lb_endpoint::HostIdentifier,
};

use prost_types::Struct;

use super::name::OutboundName;
use super::scope::Scope;
use super::wire;
use crate::model::{
    Address, Endpoint, Health, Locality, MutualTls, Service, ServiceKey, ServiceKind, ServicePort, TlsMode,
    WorkloadName,
};

/// Cluster of workloads whose cluster nobody named.
const CLUSTER_ID: &str = "Kubernetes";

/// Metadata by which clusters choose how bytes are secured.
const TRANSPORT: &str = "envoy.transport_socket_match";

/// The endpoints of a cluster; `None` where the client has no such cluster, or one that needs no EDS.
pub fn generate(scope: &Scope<'_>, name: &str) -> Option<ClusterLoadAssignment> {
    let parsed = OutboundName::parse(name)?;
    let service = scope.service(&parsed.host)?;
    let port = service.port(parsed.port)?;
    if matches!(service.kind, ServiceKind::ExternalName(_) | ServiceKind::Dns | ServiceKind::Passthrough) {
        return None;
    }
    let subset = (!parsed.subset.is_empty()).then_some(&*parsed.subset);
    let endpoints = scope.snapshot.cluster_endpoints(&scope.view().proxy, service, port.number, subset)?;
    Some(assignment(scope, &service.key, name, &endpoints))
}

/// The endpoints that a DNS service lists, or its own host where it lists none. `None` where there is nothing to resolve.
pub(super) fn dns(
    scope: &Scope<'_>,
    service: &Service,
    port: &ServicePort,
    subset: Option<&str>,
    name: &str,
) -> Option<ClusterLoadAssignment> {
    let endpoints = scope.snapshot.cluster_endpoints(&scope.view().proxy, service, port.number, subset)?;
    let found = assignment(scope, &service.key, name, &endpoints);
    (!found.endpoints.is_empty()).then_some(found)
}

/// One address or name, of no locality.
pub(super) fn one(host: &str, port: u16) -> LocalityLbEndpoints {
    let endpoint = WireEndpoint { address: Some(wire::address(host, port)), hostname: String::new() };
    LocalityLbEndpoints {
        lb_endpoints: vec![LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn assignment(
    scope: &Scope<'_>,
    service: &ServiceKey,
    name: &str,
    endpoints: &[Endpoint],
) -> ClusterLoadAssignment {
    let mut localities: BTreeMap<&Locality, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|e| reachable(scope, e)) {
        localities.entry(&endpoint.locality).or_default().push(endpoint);
    }
    ClusterLoadAssignment {
        cluster_name: name.to_string(),
        endpoints: localities
            .into_iter()
            .map(|(locality, members)| group(scope, service, locality, &members))
            .collect(),
        policy: (!scope.view().is_grpc()).then_some(Policy { overprovisioning_factor: Some(140) }),
    }
}

/// gRPC libraries take IP addresses only.
fn reachable(scope: &Scope<'_>, endpoint: &Endpoint) -> bool {
    endpoint.health != Health::Draining && (!scope.view().is_grpc() || endpoint.address.ip().is_some())
}

/// Always with its locality and weight: gRPC libraries need both.
fn group(
    scope: &Scope<'_>,
    service: &ServiceKey,
    locality: &Locality,
    members: &[&Endpoint],
) -> LocalityLbEndpoints {
    let weight = members.iter().fold(0_u32, |sum, e| sum.saturating_add(e.weight));
    LocalityLbEndpoints {
        locality: Some(wire::locality(&locality.region, &locality.zone, &locality.subzone)),
        lb_endpoints: members.iter().map(|e| lb_endpoint(scope, service, e)).collect(),
        load_balancing_weight: Some(weight.max(1)),
        priority: 0,
    }
}

fn lb_endpoint(scope: &Scope<'_>, service: &ServiceKey, endpoint: &Endpoint) -> LbEndpoint {
    let address = match &endpoint.address {
        Address::Ip(ip) => wire::address(&ip.to_string(), endpoint.port),
        Address::Name(host) => wire::address(host.as_str(), endpoint.port),
        Address::Unix(path) => wire::pipe(path),
    };
    let health = match endpoint.health {
        Health::Healthy => HealthStatus::Healthy,
        Health::Unhealthy => HealthStatus::Unhealthy,
        Health::Draining => HealthStatus::Draining,
    };
    let metadata = if scope.view().is_grpc() { None } else { metadata(scope, service, endpoint) };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(WireEndpoint {
            address: Some(address),
            hostname: String::new(),
        })),
        health_status: health as i32,
        metadata,
        load_balancing_weight: Some(endpoint.weight.max(1)),
    }
}

/// What the metadata [`TRANSPORT`] of endpoints say that take mutual TLS.
pub(super) fn takes_mutual_tls() -> Struct {
    wire::structure([("tlsMode", wire::text("istio"))])
}

/// True where callers speak mutual TLS to an endpoint: it can, and it isn't off there.
fn is_encrypted(scope: &Scope<'_>, service: &ServiceKey, endpoint: &Endpoint) -> bool {
    endpoint.tls == TlsMode::Istio && scope.snapshot.mutual_tls_at(service, endpoint) != MutualTls::Disable
}

/// The same for all endpoints of a service, of which there is one at least.
pub(super) fn all_encrypted(scope: &Scope<'_>, service: &ServiceKey) -> bool {
    let known = scope.snapshot.endpoints.get(service);
    let mut all =
        known.iter().flat_map(|known| &known.ports).flat_map(|port| port.endpoints.iter()).peekable();
    all.peek().is_some() && all.all(|endpoint| is_encrypted(scope, service, endpoint))
}

/// What there is to say of an endpoint, if anything.
fn metadata(scope: &Scope<'_>, service: &ServiceKey, endpoint: &Endpoint) -> Option<Metadata> {
    let mut metadata = endpoint.workload.as_deref().map(workload).unwrap_or_default();
    if is_encrypted(scope, service, endpoint) {
        metadata.filter_metadata.insert(TRANSPORT.to_string(), takes_mutual_tls());
    }
    (!metadata.filter_metadata.is_empty()).then_some(metadata)
}

/// Istio's workload text: name, namespace, canonical name, canonical revision, cluster.
fn workload(names: &WorkloadName) -> Metadata {
    let text = format!(
        "{};{};{};{};{CLUSTER_ID}",
        names.workload, names.namespace, names.canonical_service, names.canonical_revision
    );
    wire::istio_metadata([("workload", wire::text(text))])
}
