//! ClusterLoadAssignment (EDS, and inline in clusters).

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use osier_proto::Any;
use osier_proto::types::{core, endpoint as xds};

use super::value::{
    as_text, bounded, enumeration, host_and_port, ip_address, metadata_value, not_empty, required,
};
use super::{At, Invalid, Rejected, content_hash, decode};
use crate::config::cluster::DnsName;
use crate::config::endpoint::{DEFAULT_OVERPROVISIONING, EndpointSpec, Health, Locality, TransportHints};

/// Most that a level may be, and the sum of weights.
const MAX_PRIORITY: u32 = 128;

/// A validated ClusterLoadAssignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Resource name.
    pub name: Arc<str>,
    /// Addresses.
    pub endpoints: Vec<(SocketAddr, EndpointSpec)>,
    /// Percent that a healthy endpoint counts for when priorities share traffic.
    pub overprovisioning: u32,
    /// Content hash of the resource.
    pub hash: u64,
}

/// Compiles an EDS resource.
pub fn compile(name: &str, any: &Any) -> Result<Assignment, Rejected> {
    let assignment = || {
        let message: xds::ClusterLoadAssignment = decode(any)?;
        if message.cluster_name != name {
            let reason = format!("is `{}`, but the resource is `{name}`", message.cluster_name);
            return Err(Invalid::new("cluster_name", reason));
        }
        Ok(Assignment {
            endpoints: addresses(&message)?,
            overprovisioning: overprovisioning(&message)?,
            name: name.into(),
            hash: content_hash(any),
        })
    };
    assignment().map_err(|e| e.in_resource(name))
}

/// The endpoints of an assignment whose addresses are IPs.
pub(super) fn addresses(
    message: &xds::ClusterLoadAssignment,
) -> Result<Vec<(SocketAddr, EndpointSpec)>, Invalid> {
    walk(message, |endpoint, spec| Ok((ip_address(endpoint.address.as_ref()).at("address")?, spec)))
}

/// The endpoints of an assignment whose addresses are names to look up.
pub(super) fn names(message: &xds::ClusterLoadAssignment) -> Result<Vec<DnsName>, Invalid> {
    walk(message, |endpoint, mut spec| {
        let (host, port) = host_and_port(endpoint.address.as_ref()).at("address")?;
        // As in Envoy: the name is what `auto_host_rewrite` writes, unless another one is given.
        spec.hostname.get_or_insert_with(|| host.into());
        Ok(DnsName { host: host.into(), port, template: spec })
    })
}

pub(super) fn overprovisioning(message: &xds::ClusterLoadAssignment) -> Result<u32, Invalid> {
    let factor = message.policy.as_ref().and_then(|p| p.overprovisioning_factor);
    let factor = bounded("policy.overprovisioning_factor", factor, 1..=u32::MAX)?;
    Ok(factor.unwrap_or(DEFAULT_OVERPROVISIONING))
}

fn walk<T>(
    message: &xds::ClusterLoadAssignment,
    mut make: impl FnMut(&xds::Endpoint, EndpointSpec) -> Result<T, Invalid>,
) -> Result<Vec<T>, Invalid> {
    not_empty("cluster_name", &message.cluster_name)?;
    let mut out = Vec::new();
    let mut priorities = HashSet::new();
    for (index, group) in message.endpoints.iter().enumerate() {
        let mut group_endpoints = || {
            bounded("priority", Some(group.priority), 0..=MAX_PRIORITY)?;
            bounded("load_balancing_weight", group.load_balancing_weight, 1..=u32::MAX)?;
            let locality = Arc::new(locality(group.locality.as_ref()));
            for (index, endpoint) in group.lb_endpoints.iter().enumerate() {
                out.push(
                    lb_endpoint(endpoint, &locality, group.priority, &mut make)
                        .at_index("lb_endpoints", index)?,
                );
            }
            Ok(())
        };
        group_endpoints().at_index("endpoints", index)?;
        priorities.insert(group.priority);
    }
    if let Some(hole) = (0..).take(priorities.len()).find(|p| !priorities.contains(p)) {
        return Err(Invalid::new("endpoints", format!("priorities must have no holes, {hole} is missing")));
    }
    Ok(out)
}

fn lb_endpoint<T>(
    message: &xds::LbEndpoint,
    locality: &Arc<Locality>,
    priority: u32,
    make: &mut impl FnMut(&xds::Endpoint, EndpointSpec) -> Result<T, Invalid>,
) -> Result<T, Invalid> {
    let xds::lb_endpoint::HostIdentifier::Endpoint(endpoint) =
        required("endpoint", message.host_identifier.as_ref())?;
    let spec = EndpointSpec {
        hostname: Some(endpoint.hostname.as_str()).filter(|h| !h.is_empty()).map(Into::into),
        weight: bounded("load_balancing_weight", message.load_balancing_weight, 1..=u32::MAX)?.unwrap_or(1),
        health: health(message.health_status)?,
        locality: locality.clone(),
        priority,
        transport: transport_hints(message.metadata.as_ref()).at("metadata")?,
        workload: metadata_value(message.metadata.as_ref(), "istio", "workload")
            .and_then(as_text)
            .map(Into::into),
    };
    make(endpoint, spec).at("endpoint")
}

fn health(status: i32) -> Result<Health, Invalid> {
    match enumeration("health_status", status)? {
        core::HealthStatus::Unknown | core::HealthStatus::Healthy => Ok(Health::Healthy),
        core::HealthStatus::Unhealthy | core::HealthStatus::Timeout => Ok(Health::Unhealthy),
        core::HealthStatus::Draining => Ok(Health::Draining),
        core::HealthStatus::Degraded => Err(Invalid::new("health_status", "DEGRADED is not supported")),
    }
}

fn locality(message: Option<&core::Locality>) -> Locality {
    message.map_or_else(Locality::default, |l| Locality {
        region: l.region.as_str().into(),
        zone: l.zone.as_str().into(),
        sub_zone: l.sub_zone.as_str().into(),
    })
}

/// Metadata by which a cluster chooses a transport socket. Empty for most endpoints.
fn transport_hints(metadata: Option<&core::Metadata>) -> Result<Arc<TransportHints>, Invalid> {
    const KEY: &str = "envoy.transport_socket_match";
    let Some(found) = metadata.and_then(|metadata| metadata.filter_metadata.get(KEY)) else {
        return Ok(Arc::default());
    };
    texts(found).at(KEY).map(Arc::new)
}

/// The entries of a struct, all of them text.
pub(super) fn texts(found: &prost_types::Struct) -> Result<TransportHints, Invalid> {
    let text = |(key, value): (&String, &prost_types::Value)| match value.kind.as_ref().and_then(as_text) {
        Some(text) => Ok((key.as_str().into(), text.into())),
        None => Err(Invalid::new(key.as_str(), "must be text")),
    };
    found.fields.iter().map(text).collect()
}
