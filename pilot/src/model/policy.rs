//! Destination policies: what a DestinationRule says about traffic to a host, and how its levels compose.

use std::sync::Arc;
use std::time::Duration;

use osier_core::host::Host;
use osier_core::labels::Labels;

use super::export::ExportTo;
use super::mesh::UpgradePolicy;
use super::resource::{Age, ResourceKey};

/// A DestinationRule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DestinationPolicy {
    /// The resource.
    pub key: ResourceKey,
    /// Further resources that were merged into this one (same host and namespace), oldest first.
    pub merged: Vec<ResourceKey>,
    /// For "the oldest wins".
    pub age: Age,
    /// Host or wildcard, short names expanded.
    pub host: Host,
    /// Who sees it.
    pub export_to: ExportTo,
    /// Which client workloads of its own namespace use it; `None` is all.
    pub selector: Option<Labels>,
    /// For all subsets and ports.
    pub policy: Option<TrafficPolicy>,
    /// Named groups of endpoints.
    pub subsets: Vec<Subset>,
}

impl DestinationPolicy {
    /// The subset of this name.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|s| &*s.name == name)
    }

    /// The Secrets that it names (`credentialName`).
    pub fn credentials(&self) -> impl Iterator<Item = &Arc<str>> {
        let of_subsets = self.subsets.iter().filter_map(|subset| subset.policy.as_ref());
        self.policy.iter().chain(of_subsets).flat_map(TrafficPolicy::tls).filter_map(ClientTls::credential)
    }

    /// What holds for one service port and, where given, one subset.
    pub fn effective(&self, port: u16, subset: Option<&str>) -> EffectivePolicy {
        let mut base = match &self.policy {
            None => EffectivePolicy::default(),
            Some(policy) => policy.at_port(port),
        };
        let Some(over) = subset.and_then(|name| self.subset(name)).and_then(|s| s.policy.as_ref()) else {
            return base;
        };
        if let Some(own) = over.port(port) {
            // taken wholesale: what the entry leaves out falls back to the defaults
            return own.effective();
        }
        if over.load_balancer.is_some() {
            base.load_balancer = over.load_balancer;
        }
        if over.connection_pool.is_some() {
            base.connection_pool.clone_from(&over.connection_pool);
        }
        if over.tls.is_some() {
            base.tls.clone_from(&over.tls);
        }
        base
    }
}

impl TrafficPolicy {
    fn tls(&self) -> impl Iterator<Item = &ClientTls> {
        self.tls.iter().chain(self.ports.iter().filter_map(|port| port.tls.as_ref())).map(|tls| &**tls)
    }
}

impl ClientTls {
    /// The Secret that it names.
    fn credential(&self) -> Option<&Arc<str>> {
        let Self::Outside { own, trust, .. } = self else { return None };
        match (own, trust) {
            (Some(OwnCertificate::Secret(name)), _) | (_, ServerTrust::Secret(name)) => Some(name),
            _ => None,
        }
    }
}

/// A named group of endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subset {
    /// Name.
    pub name: Arc<str>,
    /// All must match the endpoint's labels; empty is every endpoint.
    pub labels: Labels,
    /// Overrides, block by block.
    pub policy: Option<TrafficPolicy>,
}

/// Blocks of policy, and their versions for single ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrafficPolicy {
    /// How endpoints are picked.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits and time-outs.
    pub connection_pool: Option<Arc<ConnectionPool>>,
    /// How bytes are secured.
    pub tls: Option<Arc<ClientTls>>,
    /// `portLevelSettings`, by service port.
    pub ports: Vec<PortPolicy>,
}

impl TrafficPolicy {
    fn port(&self, number: u16) -> Option<&PortPolicy> {
        self.ports.iter().find(|p| p.port == number)
    }

    /// The port's own entry, which inherits nothing, else the general blocks.
    fn at_port(&self, number: u16) -> EffectivePolicy {
        match self.port(number) {
            Some(own) => own.effective(),
            None => EffectivePolicy {
                load_balancer: self.load_balancer,
                connection_pool: self.connection_pool.clone(),
                tls: self.tls.clone(),
            },
        }
    }
}

/// Blocks for one service port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortPolicy {
    /// Service port, not target port.
    pub port: u16,
    /// How endpoints are picked.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits and time-outs.
    pub connection_pool: Option<Arc<ConnectionPool>>,
    /// How bytes are secured.
    pub tls: Option<Arc<ClientTls>>,
}

impl PortPolicy {
    fn effective(&self) -> EffectivePolicy {
        EffectivePolicy {
            load_balancer: self.load_balancer,
            connection_pool: self.connection_pool.clone(),
            tls: self.tls.clone(),
        }
    }
}

/// What holds for one cluster. Blocks that nobody set are `None`: the built-in defaults hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EffectivePolicy {
    /// How endpoints are picked.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits and time-outs.
    pub connection_pool: Option<Arc<ConnectionPool>>,
    /// How bytes are secured; `None` leaves it to the mesh (automatic mutual TLS).
    pub tls: Option<Arc<ClientTls>>,
}

/// `tls`: how bytes towards servers are secured, whatever their endpoints say of themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientTls {
    /// DISABLE: not at all.
    Plaintext,
    /// ISTIO_MUTUAL: with the workload's own certificate, towards a workload of the mesh.
    Mesh(ServerNames),
    /// SIMPLE, and MUTUAL where there is something to show: towards a server of somebody else's.
    Outside {
        /// What is shown.
        own: Option<OwnCertificate>,
        /// Whom it must be signed by.
        trust: ServerTrust,
        /// Who it must be.
        names: ServerNames,
    },
}

/// Whom a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerNames {
    /// What the ClientHello names; `None` where nobody has said.
    pub sni: Option<Arc<str>>,
    /// The certificate must have one of these; empty where nobody has said.
    pub alternatives: Box<[Arc<str>]>,
}

/// Where a client's certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnCertificate {
    /// In files.
    Files(CertificateFiles),
    /// In a Secret of the client's namespace.
    Secret(Arc<str>),
}

/// Files that the proxy finds where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain.
    pub certificate: Arc<str>,
    /// Its key.
    pub key: Arc<str>,
}

/// Whom a server must be signed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerTrust {
    /// The roots that the proxy's system has.
    System,
    /// Roots in a file that the proxy finds where it runs.
    File(Arc<str>),
    /// Roots that belong to a Secret of the client's namespace.
    Secret(Arc<str>),
    /// Nobody: any server is believed.
    Anybody,
}

/// `loadBalancer.simple`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LoadBalancer {
    /// Also LEAST_CONN and UNSPECIFIED: the less busy of two.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// At random.
    Random,
    /// The address that the client used.
    Passthrough,
}

/// `connectionPool`. Where an integer is `None` there is no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConnectionPool {
    /// Connections.
    pub tcp: TcpPool,
    /// Requests.
    pub http: HttpPool,
}

/// `connectionPool.tcp`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TcpPool {
    /// Connections per cluster and proxy.
    pub max_connections: Option<u32>,
    /// Connect limit; `None` is the mesh's.
    pub connect_timeout: Option<Duration>,
    /// Keepalive; `None` is the mesh's, and so is each member that is `None`.
    pub keepalive: Option<TcpKeepalive>,
    /// Idle TCP streams, and upstream connections where `http.idle_timeout` is unset; zero switches it off.
    pub idle_timeout: Option<Duration>,
    /// Age at which connections are closed.
    pub max_connection_duration: Option<Duration>,
}

/// `connectionPool.http`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpPool {
    /// Requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Active requests.
    pub max_requests: Option<u32>,
    /// Requests on one connection.
    pub max_requests_per_connection: Option<u32>,
    /// Concurrent retries.
    pub max_retries: Option<u32>,
    /// Upstream connection without a request.
    pub idle_timeout: Option<Duration>,
    /// HTTP/1.1 to HTTP/2; `None` is the mesh's, which holds for ports declared HTTP only.
    pub upgrade: Option<UpgradePolicy>,
    /// Keep the downstream's protocol.
    pub use_client_protocol: bool,
    /// Streams per HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
}

/// TCP keepalive; `None` leaves the system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TcpKeepalive {
    /// Probes before giving up.
    pub probes: Option<u32>,
    /// Idle time before the first probe, whole seconds.
    pub time: Option<Duration>,
    /// Between probes, whole seconds.
    pub interval: Option<Duration>,
}

impl TcpKeepalive {
    /// These, with `base` for members that are unset.
    pub fn or(self, base: TcpKeepalive) -> Self {
        Self {
            probes: self.probes.or(base.probes),
            time: self.time.or(base.time),
            interval: self.interval.or(base.interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(connections: u32) -> Arc<ConnectionPool> {
        let tcp = TcpPool { max_connections: Some(connections), ..TcpPool::default() };
        Arc::new(ConnectionPool { tcp, http: HttpPool::default() })
    }

    fn traffic(
        lb: Option<LoadBalancer>,
        pool: Option<Arc<ConnectionPool>>,
        ports: Vec<PortPolicy>,
    ) -> TrafficPolicy {
        TrafficPolicy { load_balancer: lb, connection_pool: pool, tls: None, ports }
    }

    fn rule(policy: Option<TrafficPolicy>, subset: Option<TrafficPolicy>) -> DestinationPolicy {
        DestinationPolicy {
            key: ResourceKey::new(super::super::Kind::DestinationRule, "ns", "rule"),
            merged: vec![],
            age: Age { created: 0, name: "rule".into(), namespace: "ns".into() },
            host: Host::new("a.ns.svc.cluster.local"),
            export_to: ExportTo::default(),
            selector: None,
            policy,
            subsets: vec![Subset { name: "v1".into(), labels: Labels::default(), policy: subset }],
        }
    }

    #[test]
    fn composition() {
        use LoadBalancer::{Random, RoundRobin};
        let at = |port, lb, pool| PortPolicy { port, load_balancer: lb, connection_pool: pool, tls: None };
        let get = |lb, pool| EffectivePolicy { load_balancer: lb, connection_pool: pool, tls: None };
        let general = || traffic(Some(RoundRobin), Some(pool(1)), vec![]);
        let with_port = || traffic(Some(RoundRobin), Some(pool(1)), vec![at(80, Some(Random), None)]);
        for (name, policy, subset, port, of_subset, wanted) in [
            ("nothing set", None, None, 80, true, get(None, None)),
            ("base", Some(general()), None, 80, false, get(Some(RoundRobin), Some(pool(1)))),
            ("base for subset", Some(general()), None, 80, true, get(Some(RoundRobin), Some(pool(1)))),
            ("port entry inherits nothing", Some(with_port()), None, 80, false, get(Some(Random), None)),
            ("other port", Some(with_port()), None, 81, false, get(Some(RoundRobin), Some(pool(1)))),
            (
                "subset block replaces, others stay",
                Some(general()),
                Some(traffic(Some(Random), None, vec![])),
                80,
                true,
                get(Some(Random), Some(pool(1))),
            ),
            (
                "a block is one unit",
                Some(general()),
                Some(traffic(None, Some(pool(9)), vec![])),
                80,
                true,
                get(Some(RoundRobin), Some(pool(9))),
            ),
            (
                "subset over base's port entry",
                Some(with_port()),
                Some(traffic(None, Some(pool(9)), vec![])),
                80,
                true,
                get(Some(Random), Some(pool(9))),
            ),
            (
                "subset's port entry is taken wholesale",
                Some(general()),
                Some(traffic(Some(RoundRobin), Some(pool(9)), vec![at(80, Some(Random), None)])),
                80,
                true,
                get(Some(Random), None),
            ),
            (
                "subset's policy does not leak into the general cluster",
                Some(general()),
                Some(traffic(Some(Random), None, vec![])),
                80,
                false,
                get(Some(RoundRobin), Some(pool(1))),
            ),
        ] {
            assert_eq!(rule(policy, subset).effective(port, of_subset.then_some("v1")), wanted, "{name}");
        }
        let unknown = rule(Some(general()), None).effective(80, Some("v9"));
        assert_eq!(unknown, get(Some(RoundRobin), Some(pool(1))), "an unknown subset adds nothing");
    }

    #[test]
    fn tls_is_a_block_of_its_own() {
        let tls = |sni: &str| {
            let names = ServerNames { sni: Some(sni.into()), ..ServerNames::default() };
            Some(Arc::new(ClientTls::Mesh(names)))
        };
        let general = TrafficPolicy {
            tls: tls("general"),
            ports: vec![
                PortPolicy { port: 80, tls: tls("port"), ..PortPolicy::default() },
                PortPolicy { port: 81, ..PortPolicy::default() },
            ],
            ..traffic(None, None, vec![])
        };
        let of_subset = TrafficPolicy {
            tls: tls("subset"),
            ports: vec![PortPolicy { port: 82, ..PortPolicy::default() }],
            ..traffic(None, Some(pool(1)), vec![])
        };
        let silent = traffic(None, Some(pool(1)), vec![]);
        for (subset, port, wanted) in [
            (None, 80, tls("port")),
            (None, 81, None),
            (None, 82, tls("general")),
            (Some(of_subset.clone()), 80, tls("subset")),
            (Some(of_subset), 82, None),
            (Some(silent.clone()), 80, tls("port")),
            (Some(silent), 82, tls("general")),
        ] {
            let of = subset.is_some().then_some("v1");
            let said = format!("{subset:?} {port}");
            assert_eq!(rule(Some(general.clone()), subset).effective(port, of).tls, wanted, "{said}");
        }
    }

    fn any_traffic() -> impl Strategy<Value = Option<TrafficPolicy>> {
        let lb = || prop::option::of(prop_oneof![Just(LoadBalancer::Random), Just(LoadBalancer::RoundRobin)]);
        let blocks = move || (lb(), prop::option::of((1_u32..4).prop_map(pool)));
        let port = (80_u16..82, blocks()).prop_map(|(port, (load_balancer, connection_pool))| PortPolicy {
            port,
            load_balancer,
            connection_pool,
            tls: None,
        });
        prop::option::of(
            (blocks(), prop::collection::vec(port, 0..2))
                .prop_map(|((lb, pool), ports)| traffic(lb, pool, ports)),
        )
    }

    proptest! {
        /// Every block of the result comes whole from one level, and a level that has a port entry hides its general blocks.
        #[test]
        fn blocks_are_never_mixed(base in any_traffic(), over in any_traffic(), port in 80_u16..82) {
            let got = rule(base.clone(), over.clone()).effective(port, Some("v1"));
            let level = |t: &TrafficPolicy| t.at_port(port).connection_pool;
            let from_base = base.as_ref().and_then(level);
            let wanted = match &over {
                Some(over) if over.port(port).is_some() => level(over),
                Some(over) => level(over).or(from_base),
                None => from_base,
            };
            prop_assert_eq!(got.connection_pool, wanted);
        }
    }
}
