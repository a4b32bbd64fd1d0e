//! Clusters: one per service port and subset, those of the workload itself, and the special ones.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use osier_proto::Any;
use osier_proto::types::HTTP_PROTOCOL_OPTIONS;
use osier_proto::types::cluster::{
    CircuitBreakers, Cluster, UpstreamConnectionOptions,
    circuit_breakers::Thresholds,
    cluster::{
        ClusterDiscoveryType, CommonLbConfig, DiscoveryType, DnsLookupFamily, EdsClusterConfig, LbConfig,
        LbPolicy, LeastRequestLbConfig, OriginalDstLbConfig,
    },
};
use osier_proto::types::core::{
    BindConfig, ExtraSourceAddress, Http1ProtocolOptions, Http2ProtocolOptions,
    HttpProtocolOptions as CommonHttp, Metadata, TcpKeepalive as WireKeepalive, UpstreamHttpProtocolOptions,
};
use osier_proto::types::endpoint::ClusterLoadAssignment;
use osier_proto::types::upstream_http::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    },
};
use osier_proto::types::value::Percent;

use super::endpoint;
use super::name::{self, OutboundName, OutsideName};
use super::route;
use super::scope::Scope;
use super::transport::{self, Upstream};
use super::wire;
use crate::model::{
    ConnectionPool, EffectivePolicy, InboundTraffic, Interception, LoadBalancer, Protocol, Service,
    ServiceKind, ServicePort, TargetPort, TcpKeepalive, UpgradePolicy,
};
use crate::snapshot::InboundPort;

/// Connections to the own workload come from here, so that they are not captured again.
const INBOUND_SOURCE_V4: &str = "127.0.0.6";
const INBOUND_SOURCE_V6: &str = "::6";

/// Names of every cluster in a client's scope. For clients that ask on demand: those that belong to no service elsewhere.
pub fn names(scope: &Scope<'_>) -> Vec<String> {
    if scope.view().proxy.gateway {
        return route::clusters_of_gateway(scope);
    }
    let mut names = Vec::new();
    let services = if scope.view().is_on_demand() { Vec::new() } else { scope.services() };
    for service in services {
        if matches!(service.kind, ServiceKind::ExternalName(_)) {
            continue;
        }
        let policy = scope.snapshot.destination_policy(&scope.view().proxy, service);
        for port in &service.ports {
            let named = |subset: &str| {
                OutboundName {
                    port: port.number,
                    subset: subset.into(),
                    host: service.host().shared().clone(),
                }
                .to_string()
            };
            names.push(named(""));
            let subsets = policy.iter().flat_map(|p| &p.subsets);
            names.extend(subsets.map(|s| named(&s.name)));
        }
    }
    if scope.view().is_grpc() {
        return names;
    }
    names.extend([name::PASSTHROUGH.to_string(), name::BLACK_HOLE.to_string()]);
    names.extend(scope.snapshot.inbound_ports(&scope.view().proxy).iter().map(|p| name::inbound(p.port)));
    if scope.view().proxy.interception != Interception::None {
        names.push(name::INBOUND_PASSTHROUGH_V4.to_string());
        if scope.view().ipv6 {
            names.push(name::INBOUND_PASSTHROUGH_V6.to_string());
        }
    }
    names
}

/// The cluster of a name; `None` where the client has none of that name.
pub fn generate(scope: &Scope<'_>, name: &str) -> Option<Cluster> {
    if let Some(outbound_name) = OutboundName::parse(name) {
        return outbound(scope, &outbound_name);
    }
    if scope.view().is_grpc() {
        return None;
    }
    if let Some(outside_name) = OutsideName::parse(name) {
        return scope.reaches_outside().then(|| outside(scope, &outside_name));
    }
    match name {
        name::PASSTHROUGH => Some(passthrough()),
        name::BLACK_HOLE => Some(Cluster {
            connect_timeout: Some(wire::duration(scope.mesh().connect_timeout)),
            ..of_type(name, DiscoveryType::Static)
        }),
        name::INBOUND_PASSTHROUGH_V4 => Some(inbound_original(scope, name, INBOUND_SOURCE_V4, None)),
        name::INBOUND_PASSTHROUGH_V6 => Some(inbound_original(scope, name, INBOUND_SOURCE_V6, None)),
        _ => {
            let port = name::parse_inbound(name)?;
            let ports = scope.snapshot.inbound_ports(&scope.view().proxy);
            inbound(scope, ports.iter().find(|p| p.port == port)?)
        }
    }
}

fn of_type(name: &str, kind: DiscoveryType) -> Cluster {
    Cluster {
        name: name.to_string(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind as i32)),
        ..Default::default()
    }
}

/// The cluster of a service port, or of a subset of it.
fn outbound(scope: &Scope<'_>, name: &OutboundName) -> Option<Cluster> {
    let service = scope.service(&name.host)?;
    let port = service.port(name.port)?;
    let policy = scope.snapshot.destination_policy(&scope.view().proxy, service);
    let subset = (!name.subset.is_empty()).then_some(&*name.subset);
    if let Some(subset) = subset {
        policy?.subset(subset)?;
    }
    let effective = policy.map(|p| p.effective(port.number, subset)).unwrap_or_default();
    let mut cluster = discovery(scope, service, port, subset, &effective, &name.to_string())?;
    balance(scope, &mut cluster, &effective);
    limits(&mut cluster, effective.connection_pool.as_deref());
    connection(scope, &mut cluster, effective.connection_pool.as_deref());
    if !scope.view().is_grpc() {
        let of_requests = effective.tls.as_deref().and_then(|tls| transport::names_of_requests(tls, service));
        http(scope, &mut cluster, port.protocol, effective.connection_pool.as_deref(), of_requests);
    }
    cluster.metadata = Some(service_metadata(service, port, subset, policy.map(|p| &p.key)));
    let http2 = speaks_http2(scope, port.protocol, effective.connection_pool.as_deref());
    let upstream = Upstream { service, name, protocol: port.protocol, http2 };
    let as_policy_says = transport::apply(scope, &mut cluster, &upstream, effective.tls.as_deref());
    as_policy_says.then_some(cluster)
}

/// Where the endpoints come from. `None`: this client can't have such a cluster.
fn discovery(
    scope: &Scope<'_>,
    service: &Service,
    port: &ServicePort,
    subset: Option<&str>,
    policy: &EffectivePolicy,
    name: &str,
) -> Option<Cluster> {
    let eds = || {
        let mut cluster = of_type(name, DiscoveryType::Eds);
        cluster.eds_cluster_config =
            Some(EdsClusterConfig { eds_config: Some(wire::over_ads()), service_name: name.to_string() });
        Some(cluster)
    };
    // gRPC libraries connect by themselves: they need addresses whatever the kind, and know nothing but EDS.
    if scope.view().is_grpc() {
        return if service.kind == ServiceKind::Dns { None } else { eds() };
    }
    let original = |port| {
        let mut cluster = of_type(name, DiscoveryType::OriginalDst);
        cluster.lb_policy = LbPolicy::ClusterProvided as i32;
        cluster.lb_config = Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
            upstream_port_override: port,
            ..Default::default()
        }))
        .filter(|_| port.is_some());
        Some(cluster)
    };
    if policy.load_balancer == Some(LoadBalancer::Passthrough) {
        return original(None);
    }
    match &service.kind {
        ServiceKind::ClusterIp | ServiceKind::Static => eds(),
        // Without capture there is no original destination to go to.
        ServiceKind::Headless if scope.view().proxy.interception == Interception::None => eds(),
        ServiceKind::Headless => original(None),
        ServiceKind::Passthrough => original(match port.target {
            TargetPort::Number(target) if target != port.number => Some(u32::from(target)),
            _ => None,
        }),
        ServiceKind::Dns => {
            let mut cluster = of_type(name, DiscoveryType::StrictDns);
            let assignment = endpoint::dns(scope, service, port, subset, name)?;
            cluster.load_assignment = Some(assignment);
            look_up(scope, &mut cluster);
            let family = if scope.view().ipv6 { DnsLookupFamily::All } else { DnsLookupFamily::V4Only };
            cluster.dns_lookup_family = family as i32;
            Some(cluster)
        }
        ServiceKind::ExternalName(_) => None,
    }
}

/// True where HTTP/2 is spoken whatever the client speaks.
fn speaks_http2(scope: &Scope<'_>, protocol: Protocol, pool: Option<&ConnectionPool>) -> bool {
    let upgrade = match pool.and_then(|pool| pool.http.upgrade) {
        Some(policy) => policy == UpgradePolicy::Upgrade,
        None => scope.mesh().upgrade == UpgradePolicy::Upgrade && protocol == Protocol::Http,
    };
    protocol.is_http2() || upgrade
}

/// How an endpoint is picked.
fn balance(scope: &Scope<'_>, cluster: &mut Cluster, policy: &EffectivePolicy) {
    if cluster.lb_policy == LbPolicy::ClusterProvided as i32 {
        return;
    }
    let chosen = policy.load_balancer.unwrap_or(LoadBalancer::LeastRequest);
    // The least that all gRPC libraries know.
    let chosen = if scope.view().is_grpc() { LoadBalancer::RoundRobin } else { chosen };
    cluster.lb_policy = match chosen {
        LoadBalancer::RoundRobin => LbPolicy::RoundRobin,
        LoadBalancer::Random => LbPolicy::Random,
        LoadBalancer::LeastRequest | LoadBalancer::Passthrough => LbPolicy::LeastRequest,
    } as i32;
    if scope.view().is_grpc() {
        return;
    }
    if cluster.lb_policy == LbPolicy::LeastRequest as i32 {
        cluster.lb_config =
            Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig { choice_count: Some(2) }));
    }
    // Endpoints that aren't ready are sent, and must not be used even where there is nothing else.
    cluster.common_lb_config = Some(CommonLbConfig { healthy_panic_threshold: Some(Percent { value: 0.0 }) });
}

/// Limits; what is unset has none, in contrast to Envoy's own defaults.
fn limits(cluster: &mut Cluster, pool: Option<&ConnectionPool>) {
    let or_none = |limit: Option<u32>| Some(limit.unwrap_or(u32::MAX));
    let (tcp, http) = pool.map(|p| (p.tcp.clone(), p.http.clone())).unwrap_or_default();
    cluster.circuit_breakers = Some(CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: or_none(tcp.max_connections),
            max_pending_requests: or_none(http.max_pending_requests),
            max_requests: or_none(http.max_requests),
            max_retries: or_none(http.max_retries),
            track_remaining: true,
            ..Default::default()
        }],
    });
}

/// Connect limit and keepalive.
fn connection(scope: &Scope<'_>, cluster: &mut Cluster, pool: Option<&ConnectionPool>) {
    let tcp = pool.map(|p| &p.tcp);
    let connect = tcp.and_then(|t| t.connect_timeout).unwrap_or(scope.mesh().connect_timeout);
    cluster.connect_timeout = Some(wire::duration(connect));
    let keepalive = match (tcp.and_then(|t| t.keepalive), scope.mesh().tcp_keepalive) {
        (Some(own), Some(mesh)) => Some(own.or(mesh)),
        (own, mesh) => own.or(mesh),
    };
    if !scope.view().is_grpc() {
        cluster.upstream_connection_options =
            keepalive.map(|k| UpstreamConnectionOptions { tcp_keepalive: Some(wire_keepalive(k)) });
    }
}

fn wire_keepalive(keepalive: TcpKeepalive) -> WireKeepalive {
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    WireKeepalive {
        keepalive_probes: keepalive.probes,
        keepalive_time: keepalive.time.map(seconds),
        keepalive_interval: keepalive.interval.map(seconds),
    }
}

/// HTTP version and options towards the endpoints; nothing where the defaults hold. `of_requests`: what TLS leaves to each request.
fn http(
    scope: &Scope<'_>,
    cluster: &mut Cluster,
    protocol: Protocol,
    pool: Option<&ConnectionPool>,
    of_requests: Option<UpstreamHttpProtocolOptions>,
) {
    let http = pool.map(|p| &p.http);
    let idle = http.and_then(|h| h.idle_timeout).or_else(|| pool.and_then(|p| p.tcp.idle_timeout));
    let common = CommonHttp {
        idle_timeout: idle.map(wire::duration),
        max_connection_duration: pool.and_then(|p| p.tcp.max_connection_duration).map(wire::duration),
        max_requests_per_connection: http.and_then(|h| h.max_requests_per_connection),
        ..Default::default()
    };
    let http2 = Http2ProtocolOptions {
        max_concurrent_streams: http.and_then(|h| h.max_concurrent_streams),
        ..Default::default()
    };
    let as_downstream = protocol == Protocol::Auto || http.is_some_and(|h| h.use_client_protocol);
    let version = if speaks_http2(scope, protocol, pool) {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(http2)),
        })
    } else if as_downstream {
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(Http1ProtocolOptions::default()),
            http2_protocol_options: Some(http2),
        })
    } else if common == CommonHttp::default() && of_requests.is_none() {
        return;
    } else {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())),
        })
    };
    let common = (common != CommonHttp::default()).then_some(common);
    set_http(
        cluster,
        HttpProtocolOptions {
            common_http_protocol_options: common,
            upstream_http_protocol_options: of_requests,
            upstream_protocol_options: Some(version),
        },
    );
}

fn set_http(cluster: &mut Cluster, options: HttpProtocolOptions) {
    cluster.typed_extension_protocol_options =
        BTreeMap::from([(HTTP_PROTOCOL_OPTIONS.to_string(), Any::pack(&options))]);
}

fn as_downstream(cluster: &mut Cluster) {
    set_http(
        cluster,
        HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(
                UseDownstreamHttpConfig {
                    http_protocol_options: Some(Http1ProtocolOptions::default()),
                    http2_protocol_options: Some(Http2ProtocolOptions::default()),
                },
            )),
            ..Default::default()
        },
    );
}

/// Which service this is, for telemetry and status.
fn service_metadata(
    service: &Service,
    port: &ServicePort,
    subset: Option<&str>,
    rule: Option<&crate::model::ResourceKey>,
) -> Metadata {
    let mut fields = vec![
        ("services", wire::list(vec![service_value(service)])),
        ("default_original_port", wire::number(port.number)),
    ];
    if let Some(subset) = subset {
        fields.push(("subset", wire::text(subset)));
    }
    if let Some(rule) = rule {
        fields.push((
            "config",
            wire::config_path("networking.istio.io/v1", "destination-rule", &rule.namespace, &rule.name),
        ));
    }
    wire::istio_metadata(fields)
}

fn service_value(service: &Service) -> prost_types::Value {
    wire::object([
        ("host", wire::text(service.host().as_str())),
        ("name", wire::text(&*service.name)),
        ("namespace", wire::text(&*service.key.namespace)),
    ])
}

fn passthrough() -> Cluster {
    let mut cluster = of_type(name::PASSTHROUGH, DiscoveryType::OriginalDst);
    cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    cluster.connect_timeout = Some(wire::duration(Duration::from_secs(10)));
    limits(&mut cluster, None);
    as_downstream(&mut cluster);
    cluster
}

/// A destination that the client of an explicit proxy names: where nothing is captured nobody else has looked it up.
fn outside(scope: &Scope<'_>, name: &OutsideName) -> Cluster {
    let mut cluster = of_type(&name.to_string(), DiscoveryType::StrictDns);
    cluster.load_assignment = Some(ClusterLoadAssignment {
        cluster_name: cluster.name.clone(),
        endpoints: vec![endpoint::one(&name.host, name.port)],
        policy: None,
    });
    look_up(scope, &mut cluster);
    cluster.dns_lookup_family = DnsLookupFamily::V4Preferred as i32;
    cluster.connect_timeout = Some(wire::duration(scope.mesh().connect_timeout));
    limits(&mut cluster, None);
    as_downstream(&mut cluster);
    cluster
}

/// How often names are looked up.
fn look_up(scope: &Scope<'_>, cluster: &mut Cluster) {
    cluster.dns_refresh_rate = Some(wire::duration(scope.mesh().dns_refresh));
    cluster.respect_dns_ttl = true;
}

/// The original destination of an inbound connection, reached from an address that is not captured again. `extra`: one of the other
/// family.
fn inbound_original(scope: &Scope<'_>, name: &str, source: &str, extra: Option<&str>) -> Cluster {
    let mut cluster = of_type(name, DiscoveryType::OriginalDst);
    cluster.lb_policy = LbPolicy::ClusterProvided as i32;
    cluster.connect_timeout = Some(wire::duration(scope.mesh().connect_timeout));
    let from = |ip: &str| Some(wire::socket_address(ip, 0));
    cluster.upstream_bind_config = Some(BindConfig {
        source_address: from(source),
        extra_source_addresses: extra
            .map(|ip| ExtraSourceAddress { address: from(ip) })
            .into_iter()
            .collect(),
    });
    limits(&mut cluster, None);
    as_downstream(&mut cluster);
    cluster
}

/// A port of the workload itself.
fn inbound(scope: &Scope<'_>, port: &InboundPort<'_>) -> Option<Cluster> {
    let name = name::inbound(port.port);
    let captured = scope.view().proxy.interception != Interception::None;
    let mut cluster = if captured && scope.mesh().inbound == InboundTraffic::Passthrough {
        let own = &scope.view().proxy.addresses;
        let (source, extra) = match (own.iter().any(IpAddr::is_ipv4), own.iter().any(IpAddr::is_ipv6)) {
            (true, true) => (INBOUND_SOURCE_V4, Some(INBOUND_SOURCE_V6)),
            (false, true) => (INBOUND_SOURCE_V6, None),
            (_, false) => (INBOUND_SOURCE_V4, None),
        };
        inbound_original(scope, &name, source, extra)
    } else {
        let target = scope.view().app_port.unwrap_or(port.port);
        let mut cluster = of_type(&name, DiscoveryType::Static);
        cluster.load_assignment = Some(ClusterLoadAssignment {
            cluster_name: name.clone(),
            endpoints: vec![endpoint::one("127.0.0.1", target)],
            policy: None,
        });
        cluster
    };
    cluster.alt_stat_name = format!("{name};");
    // The DestinationRule of the oldest service governs proxy -> application as well, but only its connection pool.
    let (service, service_port) = port.services.first()?;
    let policy = scope.snapshot.effective_policy(&scope.view().proxy, service, service_port.number, None);
    let pool = policy.connection_pool.as_deref();
    limits(&mut cluster, pool);
    connection(scope, &mut cluster, pool);
    cluster.typed_extension_protocol_options.clear();
    http(scope, &mut cluster, port.protocol, pool, None);
    cluster.metadata = Some(wire::istio_metadata([(
        "services",
        wire::list(port.services.iter().map(|(s, _)| service_value(s)).collect()),
    )]));
    Some(cluster)
}
