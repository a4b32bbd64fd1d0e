//! Bytes that no control plane would send: refused or taken, never a panic.

use osier_proto::types::cluster::Cluster;
use osier_proto::types::endpoint::ClusterLoadAssignment;
use osier_proto::types::listener::Listener;
use osier_proto::types::route::{RouteConfiguration, VirtualHost};
use proptest::prelude::*;

use super::*;

const LISTENER: &str = "
name: l
address: {socket_address: {address: 127.0.0.1, port_value: 80}}
listener_filters:
- {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}
filter_chains:
- filter_chain_match: {destination_port: 81, server_names: ['*.example.com'], prefix_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}
  filters:
  - name: h
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: h
      stream_idle_timeout: 5s
      http2_protocol_options: {max_concurrent_streams: 7}
      access_log:
      - {name: a, typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/stdout, log_format: {text_format: '%PROTOCOL%'}}}
      rds: {route_config_name: r, config_source: {ads: {}, resource_api_version: V3}}
      http_filters: [{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
- filters:
  - {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, weighted_clusters: {clusters: [{name: a, weight: 3}]}}}
";

const ROUTES: &str = "
name: r
request_headers_to_add: [{header: {key: k, value: '%START_TIME(%Y)%'}}]
virtual_hosts:
- name: v
  domains: ['*.a', b]
  routes:
  - match: {safe_regex: {regex: '/a(b|c)*[d-f]{1,9}'}, headers: [{name: x, range_match: {start: 1, end: 5}}], query_parameters: [{name: q, string_match: {prefix: p}}]}
    route: {cluster: c, regex_rewrite: {pattern: {regex: '(a)'}, substitution: '\\1'}, retry_policy: {retry_on: 5xx, retry_back_off: {base_interval: 1s}}}
  - {match: {prefix: /}, redirect: {host_redirect: h, port_redirect: 8}}
  - {match: {path: /p}, direct_response: {status: 200, body: {inline_string: b}}}
";

const CLUSTER: &str = "
name: c
type: STRICT_DNS
connect_timeout: 1s
circuit_breakers: {thresholds: [{max_connections: 1}]}
metadata: {filter_metadata: {istio: {services: [{host: h, name: n, namespace: s}]}}}
load_assignment: {cluster_name: c, endpoints: [{priority: 0, lb_endpoints: [{endpoint: {address: {socket_address: {address: a, port_value: 1}}}, load_balancing_weight: 3}]}]}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}
";

/// One change of the bytes.
#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => at().prop_map(Damage::Cut),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..6)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (at(), at()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ]
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for change in damage {
        if bytes.is_empty() {
            break;
        }
        match change {
            Damage::Flip(at, bits) => {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
            }
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Insert(at, new) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Repeat(from, to) => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let piece = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.extend(piece);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn damaged_resources_never_panic(changes in prop::collection::vec(damage(), 0..5)) {
        let spoil = |any: Any| Any { value: damaged(any.value.to_vec(), &changes).into(), ..any };
        let (listener, routes) = (spoil(pack::<Listener>(LISTENER)), spoil(pack::<RouteConfiguration>(ROUTES)));
        let host = "{name: v, domains: [a], routes: [{match: {prefix: /}, route: {cluster: c}}]}";
        let host = spoil(pack::<VirtualHost>(host));
        let assignment = "{cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 1.2.3.4, port_value: 1}}}}]}]}";
        let assignment = spoil(pack::<ClusterLoadAssignment>(assignment));
        let _ = super::super::cluster::compile("c", &spoil(pack::<Cluster>(CLUSTER)), &Default::default());
        let _ = super::super::endpoint::compile("c", &assignment);
        let results = with_context(None, |context| (
            super::super::listener::compile("l", &listener, context).is_ok(),
            super::super::route::compile("r", &routes, context).is_ok(),
            super::super::route::compile_virtual_host("r/h", &host, context).is_ok(),
        ));
        if changes.is_empty() {
            prop_assert_eq!(results, (true, true, true));
        }
    }
}
