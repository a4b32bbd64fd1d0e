//! Clusters and assignments.

use std::net::SocketAddr;
use std::time::Duration;

use osier_proto::types::{cluster::Cluster, endpoint::ClusterLoadAssignment};

use super::*;
use crate::compile::cluster::CompiledCluster;
use crate::config::cluster::{
    BalancePolicy, ClusterLimits, ClusterSpec, Discovery, DnsFamily, UpstreamProtocol,
};
use crate::config::endpoint::Health;

fn compile(yaml: &str) -> Result<CompiledCluster, Rejected> {
    super::super::cluster::compile("c", &pack::<Cluster>(yaml), &Default::default())
}

/// A cluster with these fields added.
fn with(fields: &str) -> Result<CompiledCluster, Rejected> {
    compile(&format!("{{name: c, {fields}}}"))
}

fn spec(fields: &str) -> ClusterSpec {
    with(fields).unwrap_or_else(|e| panic!("{fields}: {e}")).spec
}

const HTTP: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn http(options: &str) -> String {
    format!(
        "typed_extension_protocol_options: {{{HTTP}: {{'@type': type.googleapis.com/{HTTP}, {options}}}}}"
    )
}

#[test]
fn defaults_are_envoys() {
    let compiled = with("").unwrap();
    let expected = ClusterSpec { hash: compiled.spec.hash, ..ClusterSpec::plain("c", Discovery::Static) };
    assert_eq!(format!("{:?}", compiled.spec), format!("{expected:?}"));
    assert!(compiled.endpoints.is_empty());
    assert_ne!(compiled.spec.hash, 0);
}

#[test]
fn what_is_read() {
    let eds = "type: EDS, eds_cluster_config: {eds_config: {ads: {}, resource_api_version: V3}}";
    assert_eq!(spec(eds).discovery, Discovery::Eds("c".into()));
    assert_eq!(with(eds).unwrap().fetch_timeout, Some(Duration::from_secs(15)));
    let named = "type: EDS, eds_cluster_config: {service_name: s, eds_config: {self: {}, resource_api_version: V3, initial_fetch_timeout: 0s}}";
    assert_eq!(spec(named).discovery, Discovery::Eds("s".into()));
    assert_eq!(with(named).unwrap().fetch_timeout, None);

    let dns = spec(
        "type: STRICT_DNS, dns_refresh_rate: 7s, respect_dns_ttl: true, dns_lookup_family: V4_PREFERRED, load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.example, port_value: 80}}}}]}]}",
    );
    let Discovery::StrictDns(settings) = dns.discovery else { panic!() };
    assert_eq!(
        (settings.refresh, settings.respect_ttl, settings.family),
        (Duration::from_secs(7), true, DnsFamily::V4Preferred)
    );
    assert_eq!((&*settings.names[0].host, settings.names[0].port), ("a.example", 80));
    assert_eq!(settings.names[0].template.hostname.as_deref(), Some("a.example"));

    let original = spec(
        "type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, cleanup_interval: 5s, original_dst_lb_config: {use_http_header: true, upstream_port_override: 81}",
    );
    let Discovery::OriginalDst(dst) = original.discovery else { panic!() };
    assert_eq!((dst.header.as_deref(), dst.port_override), (Some("x-envoy-original-dst-host"), Some(81)));
    assert_eq!(original.balance, BalancePolicy::ClusterProvided);

    assert_eq!(spec("lb_policy: RANDOM").balance, BalancePolicy::Random);
    assert_eq!(spec("lb_policy: LEAST_REQUEST").balance, BalancePolicy::LeastRequest { choices: 2 });
    let five = "lb_policy: LEAST_REQUEST, least_request_lb_config: {choice_count: 5}";
    assert_eq!(spec(five).balance, BalancePolicy::LeastRequest { choices: 5 });
    assert_eq!(&*spec("alt_stat_name: s").stat_name, "s");
    assert_eq!(spec("connect_timeout: 0.25s").connect_timeout, Duration::from_millis(250));
    let limits = "circuit_breakers: {thresholds: [{priority: HIGH, max_connections: 1}, {max_connections: 2, max_retries: 7, track_remaining: true}, {max_connections: 9}]}";
    assert_eq!(
        spec(limits).limits,
        ClusterLimits { max_connections: 2, max_retries: 7, ..ClusterLimits::default() }
    );
    assert_eq!(spec("common_lb_config: {healthy_panic_threshold: {value: 12.9}}").panic_threshold, 12);
    assert_eq!(spec("common_lb_config: {healthy_panic_threshold: {}}").panic_threshold, 0);
    assert_eq!(
        spec("upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}").bind_address,
        Some(SocketAddr::from(([127, 0, 0, 6], 0)).into())
    );
    let both = spec(
        "upstream_bind_config: {source_address: {address: '::6', port_value: 0}, extra_source_addresses: [{address: {address: 127.0.0.6, port_value: 0}}]}",
    );
    let bind = both.bind_address.unwrap();
    for (to, from) in [("10.0.0.1:80", "127.0.0.6:0"), ("[fd00::1]:80", "[::6]:0")] {
        assert_eq!(bind.towards(to.parse().unwrap()), Some(from.parse().unwrap()));
    }
    let keepalive = spec("upstream_connection_options: {tcp_keepalive: {keepalive_time: 3, keepalive_interval: 4, keepalive_probes: 5}}").tcp_keepalive.unwrap();
    assert_eq!(
        (keepalive.time, keepalive.interval, keepalive.probes),
        (Some(Duration::from_secs(3)), Some(Duration::from_secs(4)), Some(5))
    );
    assert!(
        spec("close_connections_on_host_health_failure: true, ignore_health_on_host_removal: true")
            .close_on_host_removal
    );
    let labels =
        spec("metadata: {filter_metadata: {istio: {services: [{host: a.b.svc, name: a, namespace: b}]}}}")
            .service
            .unwrap();
    assert_eq!((&*labels.host, &*labels.name, &*labels.namespace), ("a.b.svc", "a", "b"));
    spec(
        "transport_socket: {name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}",
    );
    spec("per_connection_buffer_limit_bytes: 32768");
}

#[test]
fn http_options() {
    assert_eq!(
        spec(&http("explicit_http_config: {http_protocol_options: {}}")).protocol,
        UpstreamProtocol::Http1
    );
    assert_eq!(spec(&http("use_downstream_protocol_config: {}")).protocol, UpstreamProtocol::Downstream);
    let two = spec(&http(
        "explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 9, initial_stream_window_size: 65535, initial_connection_window_size: 65536, allow_connect: true, connection_keepalive: {interval: 1s, timeout: 2s}}}, common_http_protocol_options: {idle_timeout: 0s, max_connection_duration: 9s, max_requests_per_connection: 3}",
    ));
    assert_eq!(two.protocol, UpstreamProtocol::Http2);
    assert_eq!(
        (
            two.http2.max_concurrent_streams,
            two.http2.initial_stream_window,
            two.http2.initial_connection_window
        ),
        (9, 65535, 65536)
    );
    assert!(two.http2.allow_connect);
    assert_eq!(two.http2.keepalive, Some((Duration::from_secs(1), Duration::from_secs(2))));
    assert_eq!(
        (two.idle_timeout, two.max_connection_duration, two.max_requests_per_connection),
        (None, Some(Duration::from_secs(9)), Some(3))
    );
    let case = "http_protocol_options: {header_key_format: {stateful_formatter: {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}}";
    assert!(spec(&http(&format!("explicit_http_config: {{{case}}}"))).preserve_header_case);
    assert!(spec(&http(&format!("use_downstream_protocol_config: {{{case}}}"))).preserve_header_case);
}

#[test]
fn what_is_refused() {
    let lb = |endpoint: &str| {
        format!(
            "{{name: c, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{endpoint}]}}]}}}}"
        )
    };
    let dns = "type: STRICT_DNS, load_assignment: {cluster_name: c}";
    let bind = |config: &str| format!("{{name: c, upstream_bind_config: {{{config}}}}}");
    let cases = [
        ("{}".to_owned(), "name: must not be empty"),
        ("{name: other}".into(), "name: is `other`, but the resource is `c`"),
        ("{name: c, type: EDS}".into(), "eds_cluster_config: is required"),
        ("{name: c, type: EDS, eds_cluster_config: {}}".into(), "eds_cluster_config.eds_config: is required"),
        ("{name: c, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}".into(), "eds_cluster_config.eds_config.resource_api_version: must be V3"),
        ("{name: c, type: EDS, eds_cluster_config: {eds_config: {resource_api_version: V3}}}".into(), "eds_cluster_config.eds_config: needs `ads`"),
        ("{name: c, type: EDS, eds_cluster_config: {eds_config: {resource_api_version: V3, api_config_source: {api_type: GRPC}}}}".into(), "eds_cluster_config.eds_config.api_config_source: is not supported here"),
        ("{name: c, eds_cluster_config: {}}".into(), "eds_cluster_config: does not fit"),
        (format!("{{name: c, type: EDS, eds_cluster_config: {{eds_config: {V3}}}, load_assignment: {{cluster_name: c}}}}"), "load_assignment: does not fit"),
        ("{name: c, type: STRICT_DNS}".into(), "load_assignment: is required"),
        (format!("{{name: c, {dns}, dns_refresh_rate: 0s}}"), "dns_refresh_rate: must be at least 1ms"),
        ("{name: c, type: STRICT_DNS, load_assignment: {cluster_name: c, policy: {overprovisioning_factor: 100}}}".into(), "load_assignment.policy.overprovisioning_factor: only 140"),
        ("{name: c, respect_dns_ttl: true}".into(), "respect_dns_ttl: does not fit"),
        ("{name: c, type: ORIGINAL_DST}".into(), "lb_policy: CLUSTER_PROVIDED goes with"),
        ("{name: c, lb_policy: CLUSTER_PROVIDED}".into(), "lb_policy: CLUSTER_PROVIDED goes with"),
        ("{name: c, original_dst_lb_config: {}}".into(), "original_dst_lb_config: does not fit"),
        ("{name: c, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {http_header_name: x}}".into(), "original_dst_lb_config.http_header_name: needs"),
        ("{name: c, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {upstream_port_override: 70000}}".into(), "original_dst_lb_config.upstream_port_override: must be between"),
        ("{name: c, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, cleanup_interval: 0s}".into(), "cleanup_interval: must be at least 1ms"),
        ("{name: c, least_request_lb_config: {choice_count: 1}, lb_policy: LEAST_REQUEST}".into(), "least_request_lb_config.choice_count: must be between 2"),
        ("{name: c, connect_timeout: 0s}".into(), "connect_timeout: must be at least 1ms"),
        ("{name: c, connect_timeout: -1s}".into(), "connect_timeout: must not be negative"),
        ("{name: c, common_lb_config: {healthy_panic_threshold: {value: 101}}}".into(), "common_lb_config.healthy_panic_threshold.value: must be between 0 and 100"),
        ("{name: c, upstream_bind_config: {source_address: {address: localhost, port_value: 0}}}".into(), "upstream_bind_config.source_address.address: `localhost` is not an IP"),
        ("{name: c, upstream_bind_config: {source_address: {address: '::', port_value: 0, ipv4_compat: true}}}".into(), "upstream_bind_config.source_address.ipv4_compat: is for the address `::` of a listener"),
        (bind("extra_source_addresses: [{}]"), "upstream_bind_config.source_address: is required"),
        (bind("source_address: {address: 127.0.0.6, port_value: 0}, extra_source_addresses: [{}]"), "upstream_bind_config.extra_source_addresses[0].address: is required"),
        (bind("source_address: {address: 127.0.0.6, port_value: 0}, extra_source_addresses: [{address: {address: x, port_value: 0}}]"), "upstream_bind_config.extra_source_addresses[0].address.address: `x` is not an IP"),
        (bind("source_address: {address: 127.0.0.6, port_value: 0}, extra_source_addresses: [{address: {address: 127.0.0.7, port_value: 0}}]"), "upstream_bind_config.extra_source_addresses[0].address: 127.0.0.7 is of the same family as source_address"),
        (bind("source_address: {address: 127.0.0.6, port_value: 0}, extra_source_addresses: [{}, {}]"), "upstream_bind_config.extra_source_addresses: has 2, one is supported"),
        ("{name: c, transport_socket: {name: tls}}".into(), "transport_socket: transport socket `tls` needs"),
        ("{name: c, transport_socket: {name: x, typed_config: {'@type': type.googleapis.com/envoy.config.core.v3.Pipe}}}".into(), "transport_socket.typed_config: extension type type.googleapis.com/envoy.config.core.v3.Pipe is not supported"),
        (lb("{}"), "load_assignment.endpoints[0].lb_endpoints[0].endpoint: is required"),
        (lb("{endpoint: {}}"), "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address: is required"),
        (lb("{endpoint: {address: {pipe: {path: /x}}}}"), "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.pipe: is not supported here"),
        (lb("{endpoint: {address: {socket_address: {address: a.example, port_value: 1}}}}"), "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address: `a.example` is not an IP"),
        (lb("{endpoint: {address: {socket_address: {address: 1.2.3.4}}}}"), "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: is required"),
        (lb("{endpoint: {address: {socket_address: {address: 1.2.3.4, port_value: 65536}}}}"), "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value: 65536 is not a port"),
        (format!("{{name: c, {}}}", http("common_http_protocol_options: {}")), "typed_extension_protocol_options[\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"].explicit_http_config: is required"),
        (format!("{{name: c, {}}}", http("explicit_http_config: {http_protocol_options: {}}, common_http_protocol_options: {max_headers_count: 3}")), "typed_extension_protocol_options[\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"].common_http_protocol_options.max_headers_count: is not supported"),
        (format!("{{name: c, {}}}", http("explicit_http_config: {http2_protocol_options: {initial_stream_window_size: 1}}")), "typed_extension_protocol_options[\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"].explicit_http_config.http2_protocol_options.initial_stream_window_size: must be between 65535"),
        (format!("{{name: c, {}}}", http("explicit_http_config: {http2_protocol_options: {connection_keepalive: {interval: 1s}}}")), "typed_extension_protocol_options[\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"].explicit_http_config.http2_protocol_options.connection_keepalive.timeout: is required"),
        ("{name: c, typed_extension_protocol_options: {other: {'@type': type.googleapis.com/envoy.config.core.v3.Pipe}}}".into(), "typed_extension_protocol_options[\"other\"]: is not supported"),
    ];
    let cases: Vec<_> = cases.iter().map(|(yaml, text)| (yaml.as_str(), *text)).collect();
    refused(&cases, compile);
}

fn assignment(yaml: &str) -> Result<crate::compile::endpoint::Assignment, Rejected> {
    super::super::endpoint::compile("c", &pack::<ClusterLoadAssignment>(yaml))
}

#[test]
fn assignments() {
    let compiled = assignment(
        "{cluster_name: c, policy: {overprovisioning_factor: 200}, endpoints: [
           {locality: {region: r, zone: z, sub_zone: s}, load_balancing_weight: 3, lb_endpoints: [
             {endpoint: {hostname: h, address: {socket_address: {address: 10.0.0.1, port_value: 80}}}, load_balancing_weight: 5,
              metadata: {filter_metadata: {istio: {workload: 'a;b;c;v1;k'}}}},
             {endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 80}}}, health_status: UNHEALTHY},
             {endpoint: {address: {socket_address: {address: 10.0.0.3, port_value: 80}}}, health_status: TIMEOUT},
             {endpoint: {address: {socket_address: {address: 10.0.0.4, port_value: 80}}}, health_status: DRAINING},
             {endpoint: {address: {socket_address: {address: 10.0.0.5, port_value: 80}}}, health_status: HEALTHY}]},
           {priority: 1, lb_endpoints: [{endpoint: {address: {socket_address: {address: '2001:db8::1', port_value: 80}}}}]}]}",
    )
    .unwrap();
    assert_eq!(compiled.overprovisioning, 200);
    let (address, first) = &compiled.endpoints[0];
    assert_eq!(*address, "10.0.0.1:80".parse().unwrap());
    assert_eq!((first.hostname.as_deref(), first.weight, first.priority), (Some("h"), 5, 0));
    assert_eq!((&*first.locality.region, &*first.locality.zone, &*first.locality.sub_zone), ("r", "z", "s"));
    assert_eq!(first.workload.as_deref(), Some("a;b;c;v1;k"));
    let health: Vec<_> = compiled.endpoints.iter().map(|(_, e)| e.health).collect();
    use Health::{Draining, Healthy, Unhealthy};
    assert_eq!(health, [Healthy, Unhealthy, Unhealthy, Draining, Healthy, Healthy]);
    assert_eq!(compiled.endpoints[5].1.priority, 1);
    assert!(assignment("{cluster_name: c}").unwrap().endpoints.is_empty());
}

#[test]
fn assignments_refused() {
    let endpoint = "endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}";
    let lb = |group: &str, fields: &str| {
        format!("{{cluster_name: c, endpoints: [{{{group} lb_endpoints: [{{{endpoint}, {fields}}}]}}]}}")
    };
    let cases = [
        ("{}".to_owned(), "cluster_name: is ``, but the resource is `c`"),
        ("{cluster_name: d}".into(), "cluster_name: is `d`, but the resource is `c`"),
        (
            "{cluster_name: c, policy: {overprovisioning_factor: 0}}".into(),
            "policy.overprovisioning_factor: must be between 1",
        ),
        (
            lb("", "load_balancing_weight: 0"),
            "endpoints[0].lb_endpoints[0].load_balancing_weight: must be between 1",
        ),
        (
            lb("", "health_status: DEGRADED"),
            "endpoints[0].lb_endpoints[0].health_status: DEGRADED is not supported",
        ),
        (lb("load_balancing_weight: 0,", ""), "endpoints[0].load_balancing_weight: must be between 1"),
        (lb("priority: 129,", ""), "endpoints[0].priority: must be between 0 and 128"),
        (lb("priority: 1,", ""), "endpoints: priorities must have no holes, 0 is missing"),
    ];
    let cases: Vec<_> = cases.iter().map(|(yaml, text)| (yaml.as_str(), *text)).collect();
    refused(&cases, assignment);
}
