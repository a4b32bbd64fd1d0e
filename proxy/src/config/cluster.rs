//! Clusters: what is known of an upstream service, and the live state that outlasts its updates (CDS).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::endpoint::EndpointSet;
use super::route::HeaderOps;
use crate::upstream::live::LiveState;

/// A cluster's name with what may be behind it. Routes hold handles, never names; an empty handle answers 503 with flag `NC`.
#[derive(Debug)]
pub struct ClusterHandle {
    /// Resource name, e.g. `outbound|80|v1|reviews.default.svc.cluster.local`.
    pub name: Arc<str>,
    /// The cluster in force. CDS swaps here.
    pub current: ArcSwapOption<Cluster>,
}

impl ClusterHandle {
    /// A handle that points at nothing yet.
    pub fn empty(name: impl Into<Arc<str>>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), current: ArcSwapOption::empty() })
    }
}

/// One version of a cluster.
#[derive(Debug)]
pub struct Cluster {
    /// What was configured.
    pub spec: ClusterSpec,
    /// Who is in it. EDS or DNS swaps here.
    pub endpoints: ArcSwap<EndpointSet>,
    /// Counters, permits and per-endpoint state; carried over when the spec changes.
    pub live: Arc<LiveState>,
}

/// A validated Cluster resource.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// Resource name.
    pub name: Arc<str>,
    /// `alt_stat_name`, where given.
    pub stat_name: Arc<str>,
    /// Where endpoints come from.
    pub discovery: Discovery,
    /// How one of them is picked.
    pub balance: BalancePolicy,
    /// Limit of one TCP connect.
    pub connect_timeout: Duration,
    /// Protocol towards the endpoints.
    pub protocol: UpstreamProtocol,
    /// Limits of the whole process for this cluster.
    pub limits: ClusterLimits,
    /// Requests on one connection before it is retired.
    pub max_requests_per_connection: Option<u32>,
    /// Upstream connection without a request.
    pub idle_timeout: Option<Duration>,
    /// Longest life of an upstream connection.
    pub max_connection_duration: Option<Duration>,
    /// HTTP/2 settings of upstream connections.
    pub http2: super::listener::Http2Options,
    /// Keep HTTP/1 header case from downstream to upstream.
    pub preserve_header_case: bool,
    /// TCP keepalive: idle time, interval, probes.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Local address to connect from (127.0.0.6 on Istio's inbound clusters).
    pub bind_address: Option<SocketAddr>,
    /// Percentage of healthy endpoints below which health is disregarded; 0 switches panic mode off.
    pub panic_threshold: u32,
    /// Close connections of an endpoint that EDS removed or made unhealthy.
    pub close_on_host_removal: bool,
    /// Names for metrics, from Istio's cluster metadata (`istio.services[0]`).
    pub service: Option<Arc<ServiceLabels>>,
    /// Content hash of the resource.
    pub hash: u64,
}

/// `host`, `name` and `namespace` of the service behind a cluster, as metrics show them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    /// FQDN.
    pub host: Arc<str>,
    /// Short name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
}

/// Where a cluster's endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discovery {
    /// Inline addresses.
    Static,
    /// All addresses behind the given names, looked up again and again.
    StrictDns(DnsSettings),
    /// EDS under this name.
    Eds(Arc<str>),
    /// Where the downstream connection was going, or where a header says.
    OriginalDst(OriginalDst),
}

/// DNS discovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSettings {
    /// Names and ports to look up, with the locality and weight that their addresses get.
    pub names: Vec<DnsName>,
    /// Time between look-ups.
    pub refresh: Duration,
    /// Use the answer's TTL instead.
    pub respect_ttl: bool,
    /// Which address families.
    pub family: DnsFamily,
}

/// One name of a DNS cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsName {
    /// Host name (or an IP literal).
    pub host: Arc<str>,
    /// Port.
    pub port: u16,
    /// Everything else that an endpoint has.
    pub template: super::endpoint::EndpointSpec,
}

/// `dns_lookup_family`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DnsFamily {
    /// IPv6, else IPv4.
    #[default]
    Auto,
    /// IPv4 only.
    V4Only,
    /// IPv6 only.
    V6Only,
    /// IPv4, else IPv6.
    V4Preferred,
    /// Both.
    All,
}

/// Original destination cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OriginalDst {
    /// Take the address from this request header instead.
    pub header: Option<Box<str>>,
    /// Replace the port.
    pub port_override: Option<u16>,
}

/// Load balancing policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BalancePolicy {
    /// In turn, by weight.
    RoundRobin,
    /// At random, by weight.
    Random,
    /// The less busy of this many random ones, counted over the whole process.
    LeastRequest {
        /// How many are compared.
        choices: u32,
    },
    /// The cluster decides (original destination).
    ClusterProvided,
}

/// Protocol towards endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// What the downstream speaks.
    Downstream,
}

/// Circuit breaker thresholds of one cluster (default priority); `u32::MAX` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterLimits {
    /// Open connections.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending_requests: u32,
    /// Requests in flight.
    pub max_requests: u32,
    /// Retries in flight.
    pub max_retries: u32,
}

impl Default for ClusterLimits {
    /// Envoy's own defaults; Istio always overrides them.
    fn default() -> Self {
        Self { max_connections: 1024, max_pending_requests: 1024, max_requests: 1024, max_retries: 3 }
    }
}

/// TCP keepalive; `None` leaves the system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpKeepalive {
    /// Idle time before the first probe.
    pub time: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
    /// Probes before giving up.
    pub probes: Option<u32>,
}

/// Clusters with weights.
#[derive(Debug, Clone)]
pub struct WeightedClusters {
    /// Each with its weight; zero weights are left out.
    pub entries: Box<[WeightedCluster]>,
    /// Sum of weights, at least 1.
    pub total: u64,
}

/// One entry of [`WeightedClusters`].
#[derive(Debug, Clone)]
pub struct WeightedCluster {
    /// The cluster.
    pub cluster: Arc<ClusterHandle>,
    /// Its share of `total`.
    pub weight: u32,
    /// Header operations of this choice.
    pub headers: Arc<HeaderOps>,
    /// Host rewrite of this choice.
    pub host_rewrite: Option<Arc<str>>,
}

impl WeightedClusters {
    /// One cluster that takes everything.
    pub fn single(cluster: Arc<ClusterHandle>) -> Self {
        let entry = WeightedCluster { cluster, weight: 1, headers: Arc::default(), host_rewrite: None };
        Self { entries: Box::new([entry]), total: 1 }
    }

    /// The entry that `random` falls on.
    pub fn choose(&self, random: u64) -> &WeightedCluster {
        let mut point = random % self.total.max(1);
        for entry in &self.entries[..self.entries.len() - 1] {
            if point < u64::from(entry.weight) {
                return entry;
            }
            point -= u64::from(entry.weight);
        }
        &self.entries[self.entries.len() - 1]
    }
}
