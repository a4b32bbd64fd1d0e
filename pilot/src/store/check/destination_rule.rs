//! DestinationRule to [`DestinationPolicy`].

use std::sync::Arc;

use super::{Check, Checked, Context, Path};
use crate::model::{
    ConnectionPool, DestinationPolicy, HttpPool, LoadBalancer, PortPolicy, Subset, TcpKeepalive, TcpPool,
    TrafficPolicy, UpgradePolicy,
};
use crate::store::schema::destination_rule as schema;

/// Checks a DestinationRule.
pub fn check(context: &Context, spec: &schema::DestinationRule) -> Checked<DestinationPolicy> {
    let mut check = Check::new(context);
    let root = Path::Root("spec");
    let host = match spec.host.as_str() {
        "" => {
            check.error(root.field("host"), "is required");
            None
        }
        text => check.host(root.field("host"), text),
    };
    let selector = spec.workload_selector.as_ref();
    let at = root.field("workloadSelector");
    let selector = selector.map(|s| check.selector(at.field("matchLabels"), &s.match_labels));
    let policy = DestinationPolicy {
        key: context.key.clone(),
        merged: Vec::new(),
        age: context.age.clone(),
        host: host.unwrap_or_else(|| osier_core::host::Host::new(&spec.host)),
        export_to: check.export_to(root.field("exportTo"), &spec.export_to, false),
        // an empty selector selects nobody in particular: the same as none
        selector: selector.filter(|s| !s.is_empty()),
        policy: spec.traffic_policy.as_ref().map(|p| check.traffic_policy(root.field("trafficPolicy"), p)),
        subsets: check.subsets(root.field("subsets"), &spec.subsets),
    };
    if policy.selector.is_none() && policy.credentials().next().is_some() {
        let says = "without one only gateways get what credentialName names, and connections of others fail";
        check.warn(root.field("workloadSelector"), says);
    }
    check.finish(policy)
}

impl Check<'_> {
    fn subsets(&mut self, at: Path<'_>, subsets: &[schema::Subset]) -> Vec<Subset> {
        let mut found: Vec<Subset> = Vec::new();
        for (index, subset) in subsets.iter().enumerate() {
            let here = at.index(index);
            if subset.name.is_empty() {
                self.error(here.field("name"), "is required");
            } else {
                self.label_name(here.field("name"), &subset.name);
            }
            if found.iter().any(|s| *s.name == *subset.name) {
                self.error(here.field("name"), format!("{:?} is there twice", subset.name));
            }
            let policy = subset.traffic_policy.as_ref();
            found.push(Subset {
                name: subset.name.as_str().into(),
                labels: subset.labels.clone().into(),
                policy: policy.map(|p| self.traffic_policy(here.field("trafficPolicy"), p)),
            });
        }
        found
    }

    fn traffic_policy(&mut self, at: Path<'_>, policy: &schema::TrafficPolicy) -> TrafficPolicy {
        if *policy == schema::TrafficPolicy::default() {
            self.error(at, "is empty");
        }
        let mut ports: Vec<PortPolicy> = Vec::new();
        let list = at.field("portLevelSettings");
        for (index, entry) in policy.port_level_settings.iter().enumerate() {
            let here = list.index(index);
            let number = entry.port.as_ref().map_or(0, |p| p.number);
            let Some(port) = self.port(here.field("port").field("number"), number) else { continue };
            if ports.iter().any(|p| p.port == port) {
                self.error(here.field("port").field("number"), format!("{port} is there twice"));
            }
            ports.push(PortPolicy {
                port,
                load_balancer: self.load_balancer(here.field("loadBalancer"), entry.load_balancer.as_ref()),
                connection_pool: self
                    .connection_pool(here.field("connectionPool"), entry.connection_pool.as_ref()),
                tls: self.client_tls(here.field("tls"), entry.tls.as_ref()),
            });
        }
        TrafficPolicy {
            load_balancer: self.load_balancer(at.field("loadBalancer"), policy.load_balancer.as_ref()),
            connection_pool: self
                .connection_pool(at.field("connectionPool"), policy.connection_pool.as_ref()),
            tls: self.client_tls(at.field("tls"), policy.tls.as_ref()),
            ports,
        }
    }

    fn load_balancer(
        &mut self,
        _at: Path<'_>,
        settings: Option<&schema::LoadBalancerSettings>,
    ) -> Option<LoadBalancer> {
        use schema::SimpleLb;
        Some(match settings?.simple {
            None | Some(SimpleLb::Unspecified | SimpleLb::LeastConn | SimpleLb::LeastRequest) => {
                LoadBalancer::LeastRequest
            }
            Some(SimpleLb::RoundRobin) => LoadBalancer::RoundRobin,
            Some(SimpleLb::Random) => LoadBalancer::Random,
            Some(SimpleLb::Passthrough) => LoadBalancer::Passthrough,
        })
    }

    fn connection_pool(
        &mut self,
        at: Path<'_>,
        settings: Option<&schema::ConnectionPoolSettings>,
    ) -> Option<Arc<ConnectionPool>> {
        let settings = settings?;
        if settings.tcp.is_none() && settings.http.is_none() {
            self.error(at, "needs tcp or http");
        }
        let tcp = settings.tcp.as_ref().map(|tcp| self.tcp_pool(at.field("tcp"), tcp)).unwrap_or_default();
        let http =
            settings.http.as_ref().map(|http| self.http_pool(at.field("http"), http)).unwrap_or_default();
        Some(Arc::new(ConnectionPool { tcp, http }))
    }

    fn tcp_pool(&mut self, at: Path<'_>, tcp: &schema::TcpSettings) -> TcpPool {
        TcpPool {
            max_connections: self.limit(at.field("maxConnections"), tcp.max_connections),
            connect_timeout: self.duration(at.field("connectTimeout"), tcp.connect_timeout.as_ref()),
            keepalive: tcp.tcp_keepalive.as_ref().map(|k| self.tcp_keepalive(at.field("tcpKeepalive"), k)),
            idle_timeout: self.duration_or_zero(at.field("idleTimeout"), tcp.idle_timeout.as_ref()),
            max_connection_duration: self
                .duration(at.field("maxConnectionDuration"), tcp.max_connection_duration.as_ref()),
        }
    }

    /// `tcpKeepalive`, of a rule or of the mesh.
    pub(super) fn tcp_keepalive(&mut self, at: Path<'_>, keepalive: &schema::TcpKeepalive) -> TcpKeepalive {
        TcpKeepalive {
            probes: (keepalive.probes > 0).then_some(keepalive.probes),
            time: self.seconds(at.field("time"), keepalive.time.as_ref()),
            interval: self.seconds(at.field("interval"), keepalive.interval.as_ref()),
        }
    }

    fn http_pool(&mut self, at: Path<'_>, http: &schema::HttpSettings) -> HttpPool {
        let upgrade = match http.h2_upgrade_policy {
            None | Some(schema::H2UpgradePolicy::Default) => None,
            Some(schema::H2UpgradePolicy::DoNotUpgrade) => Some(UpgradePolicy::Keep),
            Some(schema::H2UpgradePolicy::Upgrade) => Some(UpgradePolicy::Upgrade),
        };
        if http.use_client_protocol && upgrade == Some(UpgradePolicy::Upgrade) {
            self.error(at.field("useClientProtocol"), "contradicts h2UpgradePolicy UPGRADE");
        }
        HttpPool {
            max_pending_requests: self
                .limit(at.field("http1MaxPendingRequests"), http.http1_max_pending_requests),
            max_requests: self.limit(at.field("http2MaxRequests"), http.http2_max_requests),
            max_requests_per_connection: self
                .limit(at.field("maxRequestsPerConnection"), http.max_requests_per_connection),
            max_retries: self.limit(at.field("maxRetries"), http.max_retries),
            idle_timeout: self.duration(at.field("idleTimeout"), http.idle_timeout.as_ref()),
            upgrade,
            use_client_protocol: http.use_client_protocol,
            max_concurrent_streams: self.limit(at.field("maxConcurrentStreams"), http.max_concurrent_streams),
        }
    }
}
