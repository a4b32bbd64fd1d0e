//! Endpoints of a cluster, grouped and ready to be picked from (EDS, DNS, inline).

use std::net::SocketAddr;
use std::sync::Arc;

use crate::upstream::live::EndpointState;

/// All endpoints of a cluster at one moment. Sorted by priority; the picker's tables are built with it.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// By priority, 0 first, without holes.
    pub priorities: Box<[Priority]>,
    /// False until the first answer: requests wait instead of failing with UH.
    pub known: bool,
    /// Content hash of the resource.
    pub hash: u64,
}

/// The endpoints of one priority.
#[derive(Debug, Default)]
pub struct Priority {
    /// Those that may get traffic.
    pub healthy: Box<[Arc<Endpoint>]>,
    /// Running sums of weights of `healthy`, for weighted picks; empty where all weights are equal.
    pub cumulative: Box<[u64]>,
    /// All, with the unhealthy ones.
    pub all: Box<[Arc<Endpoint>]>,
}

/// One address of a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// What was configured.
    pub spec: EndpointSpec,
    /// Where it is.
    pub address: SocketAddr,
    /// Counters and connections; shared by all versions of this endpoint, keyed by address within the cluster.
    pub state: Arc<EndpointState>,
}

/// What the control plane says of an endpoint beside its address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointSpec {
    /// Host name, for host rewrite and TLS.
    pub hostname: Option<Arc<str>>,
    /// Weight, 1 or more.
    pub weight: u32,
    /// Health as the control plane sees it.
    pub health: Health,
    /// Where it runs.
    pub locality: Arc<Locality>,
    /// Fail-over level.
    pub priority: u32,
    /// Istio's workload metadata `workload;namespace;canonical-service;canonical-revision;cluster`, for metrics.
    pub workload: Option<Arc<str>>,
}

/// Region, zone, sub-zone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// Region.
    pub region: Box<str>,
    /// Zone.
    pub zone: Box<str>,
    /// Sub-zone.
    pub sub_zone: Box<str>,
}

/// `health_status` of EDS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Health {
    /// Gets traffic.
    #[default]
    Healthy,
    /// Gets none.
    Unhealthy,
    /// Gets none but affinity.
    Draining,
}
