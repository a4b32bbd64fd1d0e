//! Route configurations and virtual hosts.
//!
//! `plan` says which virtual hosts a configuration has and which domains each one answers to; `rule` makes the routes of
//! one. A full configuration is all of them; on demand, a client gets one virtual host for the exact host that it asks for,
//! chosen by the same plan, so that both forms cannot disagree.

mod header;
mod ingress;
mod matching;
mod plan;
mod retry;
mod rule;

use osier_proto::types::route::{
    DirectResponseAction, Route, RouteAction, RouteConfiguration, Vhds, VirtualHost,
    route::Action,
    route_action::{ClusterSpecifier, MaxStreamDuration},
};

use osier_core::on_demand;

use super::name::{self, OutboundName, OutsideName};
use super::scope::Scope;
use super::wire;

pub(in crate::r#gen) use matching::everything;
use plan::What;
pub use plan::{Plan, PlannedHost};

/// Longest body of a `directResponse`.
const LONGEST_DIRECT_BODY: u32 = 1 << 20;

/// Which route configuration a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigName {
    /// All services on a port: `80`.
    Port(u16),
    /// One service port: `reviews.default.svc.cluster.local:9080`.
    Service {
        /// Host of the service.
        host: String,
        /// Service port.
        port: u16,
    },
    /// The same for a gRPC client: `outbound|9080||reviews.default.svc.cluster.local`.
    Grpc(OutboundName),
    /// All services on all ports, for explicit proxies.
    Proxy,
    /// The Ingresses on a port of a gateway: `http.8080`.
    Ingress(u16),
}

impl ConfigName {
    /// Reads a name; `None` for what no configuration is called.
    pub fn parse(name: &str) -> Option<Self> {
        if name == name::HTTP_PROXY {
            return Some(Self::Proxy);
        }
        if let Some(port) = name::parse_ingress_routes(name) {
            return Some(Self::Ingress(port));
        }
        if let Ok(port) = name.parse() {
            return Some(Self::Port(port));
        }
        if let Some(outbound) = OutboundName::parse(name) {
            return Some(Self::Grpc(outbound));
        }
        let (host, port) = name.rsplit_once(':')?;
        (!host.is_empty()).then_some(Self::Service { host: host.to_string(), port: port.parse().ok()? })
    }

    /// The port of `Host` belongs to the key: hosts of explicit proxies are looked up as `host:port`.
    pub fn keeps_port(&self) -> bool {
        *self == Self::Proxy
    }
}

/// A whole route configuration; for clients that ask for virtual hosts one by one only what holds for all of them.
pub fn generate(scope: &Scope<'_>, name: &str) -> Option<RouteConfiguration> {
    let config = ConfigName::parse(name)?;
    let mut wire = RouteConfiguration {
        name: name.to_string(),
        validate_clusters: Some(false),
        ignore_port_in_host_matching: !config.keeps_port(),
        max_direct_response_body_size_bytes: Some(LONGEST_DIRECT_BODY),
        ..Default::default()
    };
    if let ConfigName::Ingress(port) = config {
        wire.virtual_hosts = ingress::virtual_hosts(scope, port)?;
        return Some(wire);
    }
    if scope.view().is_on_demand() {
        wire.vhds = Some(Vhds { config_source: Some(wire::over_ads()) });
        return Some(wire);
    }
    let plan = Plan::build(scope, &config)?;
    wire.virtual_hosts = plan.hosts().iter().filter_map(|host| virtual_host(scope, host)).collect();
    if scope.view().is_grpc() {
        wire.ignore_port_in_host_matching = false;
        wire.validate_clusters = None;
        wire.max_direct_response_body_size_bytes = None;
    }
    Some(wire)
}

/// The clusters that a gateway's routes name.
pub fn clusters_of_gateway(scope: &Scope<'_>) -> Vec<String> {
    let hosts = ingress::virtual_hosts(scope, name::INGRESS_HTTP_PORT).unwrap_or_default();
    let mut names: Vec<String> = hosts.iter().flat_map(clusters_of).collect();
    names.sort();
    names.dedup();
    names
}

/// The virtual host that answers to `host` (lower-cased, see `osier_core::on_demand`) in a planned configuration.
pub fn for_host(scope: &Scope<'_>, plan: &Plan, host: &str) -> Option<VirtualHost> {
    let planned = plan.lookup(host)?;
    let outside = (plan.keeps_port && planned.what.is_catch_all() && scope.allows_unknown())
        .then(|| on_demand::destination(host).and_then(|(host, port)| OutsideName::new(host, port)))
        .flatten();
    let mut found = virtual_host(scope, planned)?;
    if let Some(outside) = outside {
        // An explicit proxy has no original destination: what the client names has to be looked up.
        found.routes = vec![to_unknown(&outside.to_string())];
    }
    // The client looks the exact name up; the domains of the whole would only cost it memory.
    found.domains = vec![host.to_string()];
    Some(found)
}

fn virtual_host(scope: &Scope<'_>, planned: &PlannedHost) -> Option<VirtualHost> {
    let routes = match &planned.what {
        What::Service { service, port } => {
            match scope.snapshot.virtual_service_for(&scope.view().proxy, service, *port) {
                Some((found, applicable)) => rule::routes(scope, found, &applicable, *port),
                None => vec![rule::default_route(scope, service.host().as_str(), *port)],
            }
        }
        What::Extra { host, port } => {
            let extra = scope.snapshot.extra_hosts(&scope.view().proxy, *port);
            let extra = extra.iter().find(|e| e.host == host)?;
            rule::routes(scope, extra.rule, &extra.routes, *port)
        }
        What::CatchAll => vec![catch_all(scope)],
    };
    Some(VirtualHost {
        name: planned.name.clone(),
        domains: planned.domains.clone(),
        routes,
        include_request_attempt_count: !scope.view().is_grpc(),
        ..Default::default()
    })
}

/// Unknown hosts: to the original destination, or 502.
fn catch_all(scope: &Scope<'_>) -> Route {
    if scope.allows_unknown() {
        return to_unknown(name::PASSTHROUGH);
    }
    Route {
        name: plan::BLOCK_ALL.to_string(),
        r#match: Some(everything()),
        action: Some(Action::DirectResponse(DirectResponseAction { status: 502, body: None })),
        ..Default::default()
    }
}

fn to_unknown(cluster: &str) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_string())),
        timeout: Some(prost_types::Duration::default()),
        max_stream_duration: Some(MaxStreamDuration {
            max_stream_duration: None,
            grpc_timeout_header_max: Some(prost_types::Duration::default()),
        }),
        ..Default::default()
    };
    Route {
        name: plan::ALLOW_ANY.to_string(),
        r#match: Some(everything()),
        action: Some(Action::Route(action)),
        ..Default::default()
    }
}

/// The clusters that a virtual host names.
pub fn clusters_of(host: &VirtualHost) -> Vec<String> {
    let mut names = Vec::new();
    for route in &host.routes {
        let Some(Action::Route(action)) = &route.action else { continue };
        match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => names.push(name.clone()),
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                names.extend(weighted.clusters.iter().map(|c| c.name.clone()));
            }
            Some(ClusterSpecifier::ClusterHeader(_)) | None => {}
        }
    }
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_configurations() {
        let service = |host: &str, port| Some(ConfigName::Service { host: host.into(), port });
        assert_eq!(ConfigName::parse("80"), Some(ConfigName::Port(80)));
        assert_eq!(ConfigName::parse("a.b:80"), service("a.b", 80));
        assert_eq!(ConfigName::parse("http.8080"), Some(ConfigName::Ingress(8080)));
        assert_eq!(ConfigName::parse("http_proxy"), Some(ConfigName::Proxy));
        let grpc = OutboundName { port: 80, subset: "".into(), host: "a".into() };
        assert_eq!(ConfigName::parse("outbound|80||a"), Some(ConfigName::Grpc(grpc)));
        for wrong in ["", "x", ":80", "a:x", "99999", "inbound|80||"] {
            assert_eq!(ConfigName::parse(wrong), None, "{wrong}");
        }
    }
}
