//! Clusters: what is known of an upstream service, and the live state that outlasts its updates (CDS).
//!
//! The order that keeps requests going while things change: a new version is made with [`Cluster::new`] (it shares the live
//! state and, where they come from the same place, the endpoints of the version before), gets its endpoints, and is put in
//! force with [`ClusterHandle::publish`]. Only then are endpoints that are gone marked removed and their idle connections closed.

use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::endpoint::{DEFAULT_OVERPROVISIONING, EndpointSet, SetSettings, TransportHints};
use super::route::HeaderOps;
use super::tls::ClientTls;
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

    /// Puts a version in force. Connections stay, except idle ones whose endpoint is gone or whose settings differ.
    pub fn publish(&self, cluster: Arc<Cluster>) {
        let endpoints = cluster.endpoints.load_full();
        cluster.live.welcome(&endpoints);
        cluster.live.apply(&cluster.spec.limits, cluster.connection_settings);
        cluster.phase.store(IN_FORCE, SeqCst);
        let before = self.current.swap(Some(cluster.clone()));
        if let Some(before) = before.filter(|before| !Arc::ptr_eq(before, &cluster)) {
            before.phase.store(REPLACED, SeqCst);
            // Requests that hold the old version go on with the endpoints of the new one.
            before.endpoints.store(endpoints);
            if !Arc::ptr_eq(&before.live, &cluster.live) {
                before.live.retire();
            }
        }
        cluster.adopt();
    }

    /// Takes the cluster away: new requests find nothing, idle connections are closed, requests in flight finish.
    pub fn remove(&self) {
        if let Some(before) = self.current.swap(None) {
            before.phase.store(REPLACED, SeqCst);
            before.live.retire();
        }
    }
}

/// One version of a cluster.
#[derive(Debug)]
pub struct Cluster {
    /// What was configured.
    pub spec: ClusterSpec,
    /// Who is in it. EDS or DNS swaps here, through [`Cluster::set_endpoints`].
    pub endpoints: ArcSwap<EndpointSet>,
    /// Counters, permits and per-endpoint state; carried over when the spec changes.
    pub live: Arc<LiveState>,
    /// Hash of what makes connections differ; a pool uses only those made with the settings in force.
    pub(crate) connection_settings: u64,
    /// Whether its endpoints decide about connections.
    phase: AtomicU8,
}

/// Not published yet: its endpoints decide nothing.
const WARMING: u8 = 0;
/// Published: endpoints that aren't in its set are removed.
const IN_FORCE: u8 = 1;
/// Another version took its place, with its endpoints.
const REPLACED: u8 = 2;

impl Cluster {
    /// A version of a cluster, not yet in force. Live state is carried over from the version before; so are the endpoints,
    /// until others are set, if they come from the same place.
    pub fn new(spec: ClusterSpec, before: Option<&Cluster>) -> Arc<Self> {
        let live = before.map_or_else(|| LiveState::new(spec.name.clone()), |before| before.live.clone());
        let endpoints = match before {
            Some(before) if before.spec.discovery == spec.discovery => {
                let set = before.endpoints.load_full();
                if before.spec.panic_threshold == spec.panic_threshold {
                    set
                } else {
                    Arc::new(set.rebuilt(&live, spec.set_settings(set.hash)))
                }
            }
            _ => Arc::default(),
        };
        Arc::new(Self {
            connection_settings: spec.connection_settings(),
            endpoints: ArcSwap::new(endpoints),
            live,
            phase: AtomicU8::new(WARMING),
            spec,
        })
    }

    /// Swaps the endpoints. Where this version is in force, endpoints that are gone get no new pick from now on, their idle
    /// connections are closed, and what is in flight finishes. A version that was replaced learns nothing any more.
    pub fn set_endpoints(&self, set: Arc<EndpointSet>) {
        if self.phase.load(SeqCst) == REPLACED {
            return;
        }
        self.live.welcome(&set);
        self.endpoints.store(set);
        // Looked at after the swap: a publication at the same time either sees the new set or is seen here.
        if self.phase.load(SeqCst) == IN_FORCE {
            self.adopt();
        }
    }

    fn adopt(&self) {
        // The hosts of an original destination cluster come from connections, not from a list.
        if !matches!(self.spec.discovery, Discovery::OriginalDst(_)) {
            self.live.adopt(&self.endpoints.load(), self.spec.close_on_host_removal);
        }
    }
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
    pub bind_address: Option<BindAddress>,
    /// How bytes are secured.
    pub transport: UpstreamTransport,
    /// Percentage of healthy endpoints below which health is disregarded; 0 switches panic mode off.
    pub panic_threshold: u32,
    /// Close connections of an endpoint that EDS removed or made unhealthy.
    pub close_on_host_removal: bool,
    /// Names for metrics, from Istio's cluster metadata (`istio.services[0]`).
    pub service: Option<Arc<ServiceLabels>>,
    /// Content hash of the resource.
    pub hash: u64,
}

impl ClusterSpec {
    /// A cluster with what Envoy takes for everything that isn't said.
    pub fn plain(name: impl Into<Arc<str>>, discovery: Discovery) -> Self {
        let name = name.into();
        let balance = match discovery {
            Discovery::OriginalDst(_) => BalancePolicy::ClusterProvided,
            _ => BalancePolicy::RoundRobin,
        };
        Self {
            stat_name: name.clone(),
            name,
            discovery,
            balance,
            connect_timeout: Duration::from_secs(5),
            protocol: UpstreamProtocol::Http1,
            limits: ClusterLimits::default(),
            max_requests_per_connection: None,
            idle_timeout: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            http2: super::listener::Http2Options::default(),
            preserve_header_case: false,
            tcp_keepalive: None,
            bind_address: None,
            transport: UpstreamTransport::default(),
            panic_threshold: 50,
            close_on_host_removal: false,
            service: None,
            hash: 0,
        }
    }

    /// What an endpoint set of this cluster is built with; `hash` is that of the endpoints' resource.
    pub fn set_settings(&self, hash: u64) -> SetSettings {
        let seed = foldhash::fast::RandomState::default().hash_one(hash);
        SetSettings {
            panic_threshold: self.panic_threshold,
            overprovisioning: DEFAULT_OVERPROVISIONING,
            seed,
            hash,
        }
    }

    /// Hash of what makes connections differ. A change elsewhere (limits, time-outs) leaves connections alone.
    fn connection_settings(&self) -> u64 {
        let made_with =
            (self.protocol, &self.http2, self.bind_address, self.tcp_keepalive, self.transport.hash);
        foldhash::fast::FixedState::default().hash_one(made_with)
    }
}

/// How bytes are secured towards the endpoints of a cluster.
#[derive(Debug, Clone, Default)]
pub struct UpstreamTransport {
    /// Where no entry of `matches` holds; `None`: as they are.
    pub otherwise: Option<Arc<ClientTls>>,
    /// By what endpoints say of themselves; the first that holds counts.
    pub matches: Arc<[TransportMatch]>,
    /// Requests say whom they ask for (`auto_sni`).
    pub asks: bool,
    /// Content hash of all of it.
    pub hash: u64,
}

/// A way to secure bytes, for endpoints that say something.
#[derive(Debug)]
pub struct TransportMatch {
    /// What they must say, all of it.
    pub wanted: TransportHints,
    /// How; `None`: as they are.
    pub tls: Option<Arc<ClientTls>>,
}

impl UpstreamTransport {
    /// How bytes are secured towards an endpoint that says this of itself.
    pub fn towards(&self, hints: &TransportHints) -> Option<&Arc<ClientTls>> {
        let holds = |entry: &&TransportMatch| {
            entry.wanted.iter().all(|(key, value)| hints.get(key).is_some_and(|said| said == value))
        };
        match self.matches.iter().find(holds) {
            Some(entry) => entry.tls.as_ref(),
            None => self.otherwise.as_ref(),
        }
    }

    /// Names by which the control plane must be asked for certificates and roots.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<str>> {
        let matches = self.matches.iter().filter_map(|entry| entry.tls.as_ref());
        self.otherwise.iter().chain(matches).flat_map(|tls| tls.secrets())
    }

    /// Whom a request to `authority` asks an endpoint for, where that makes connections differ.
    pub fn asked(&self, hints: &TransportHints, authority: &[u8]) -> Option<Arc<str>> {
        if !self.asks {
            return None;
        }
        self.towards(hints)?.asked_by(authority)
    }
}

/// Local addresses of upstream connections: one, or one of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BindAddress {
    /// The only one, or the first.
    pub first: SocketAddr,
    /// Of the other family.
    pub second: Option<SocketAddr>,
}

impl BindAddress {
    /// The one from which `destination` can be reached.
    pub fn towards(&self, destination: SocketAddr) -> Option<SocketAddr> {
        let fits = |local: &SocketAddr| local.is_ipv4() == destination.is_ipv4();
        Some(self.first).filter(fits).or(self.second.filter(fits))
    }
}

impl From<SocketAddr> for BindAddress {
    fn from(first: SocketAddr) -> Self {
        Self { first, second: None }
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::endpoint::EndpointSpec;

    fn spec(discovery: Discovery, max_connections: u32) -> ClusterSpec {
        ClusterSpec {
            limits: ClusterLimits { max_connections, ..ClusterLimits::default() },
            ..ClusterSpec::plain("c", discovery)
        }
    }

    fn set(cluster: &Cluster, ports: &[u16]) -> Arc<EndpointSet> {
        let specs =
            ports.iter().map(|&port| (SocketAddr::from(([10, 0, 0, 1], port)), EndpointSpec::default()));
        Arc::new(EndpointSet::build(specs, &cluster.live, cluster.spec.set_settings(0)))
    }

    fn removed(set: &EndpointSet) -> Vec<bool> {
        set.iter().map(|endpoint| endpoint.state.is_removed()).collect()
    }

    #[test]
    fn an_update_keeps_live_state_and_endpoints() {
        let handle = ClusterHandle::empty("c");
        let one = Cluster::new(spec(Discovery::Static, 10), None);
        one.set_endpoints(set(&one, &[1, 2]));
        handle.publish(one.clone());
        let two = Cluster::new(spec(Discovery::Static, 20), Some(&one));
        handle.publish(two.clone());
        assert!(Arc::ptr_eq(&one.live, &two.live));
        assert_eq!(two.live.limits().max_connections, 20);
        assert_eq!(removed(&two.endpoints.load()), [false, false]);
    }

    #[test]
    fn endpoints_that_left_are_removed_when_the_set_is_in_force() {
        let handle = ClusterHandle::empty("c");
        let one = Cluster::new(spec(Discovery::Static, 10), None);
        let old = set(&one, &[1, 2]);
        one.set_endpoints(old.clone());
        handle.publish(one.clone());
        one.set_endpoints(set(&one, &[2, 3]));
        assert_eq!(removed(&old), [true, false]);
        one.set_endpoints(set(&one, &[1]));
        assert_eq!(removed(&old), [false, true], "one came back, the other went");
    }

    #[test]
    fn a_version_that_warms_removes_nothing() {
        let handle = ClusterHandle::empty("c");
        let one = Cluster::new(spec(Discovery::Eds("a".into()), 10), None);
        let old = set(&one, &[1]);
        one.set_endpoints(old.clone());
        handle.publish(one.clone());
        let two = Cluster::new(spec(Discovery::Eds("b".into()), 10), Some(&one));
        assert!(!two.endpoints.load().known, "endpoints of another source are not carried over");
        two.set_endpoints(set(&two, &[2]));
        assert_eq!(removed(&old), [false], "the old version still serves");
        handle.publish(two.clone());
        assert_eq!(removed(&old), [true]);
        let seen_by_old_requests = one.endpoints.load();
        assert_eq!(seen_by_old_requests.iter().next().map(|endpoint| endpoint.address.port()), Some(2));
    }

    #[test]
    fn a_removed_cluster_has_no_endpoints() {
        let handle = ClusterHandle::empty("c");
        let one = Cluster::new(spec(Discovery::Static, 10), None);
        let old = set(&one, &[1]);
        one.set_endpoints(old.clone());
        handle.publish(one);
        handle.remove();
        assert!(handle.current.load().is_none());
        assert_eq!(removed(&old), [true]);
    }

    #[test]
    fn only_what_connections_are_made_with_changes_their_settings() {
        let base = spec(Discovery::Static, 10);
        let same = ClusterSpec { idle_timeout: None, hash: 9, ..spec(Discovery::Static, 20) };
        assert_eq!(base.connection_settings(), same.connection_settings());
        let bound =
            ClusterSpec { bind_address: Some(SocketAddr::from(([127, 0, 0, 6], 0)).into()), ..base.clone() };
        let h2 = ClusterSpec { protocol: UpstreamProtocol::Http2, ..base.clone() };
        assert_ne!(base.connection_settings(), bound.connection_settings());
        assert_ne!(base.connection_settings(), h2.connection_settings());
    }
}
