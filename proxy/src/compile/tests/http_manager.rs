//! HTTP connection managers.

use std::sync::Arc;
use std::time::Duration;

use osier_proto::types::listener::Listener as Message;

use super::*;
use crate::compile::listener::CompiledListener;
use crate::config::listener::{
    Codec, EscapedSlashes, HttpLimits, HttpManager, HttpTimeouts, NetworkAction, PeerMetadata, ServerHeader,
    StripPort,
};

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "{name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";
const ROUTES: &str = "route_config: {name: r, virtual_hosts: [{name: v, domains: ['*']}]}";
const PATH: &str = "filter_chains[0].filters[0].typed_config.";

fn compile(fields: &str) -> Result<CompiledListener, Rejected> {
    let any = pack::<Message>(&format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}, filter_chains: [{{filters: [
           {{name: hcm, typed_config: {{'@type': {HCM}, {fields}}}}}]}}]}}"
    ));
    with_context(None, |context| super::super::listener::compile("l", &any, context))
}

/// A manager with routes, the router and these fields.
fn with(fields: &str) -> String {
    format!("stat_prefix: h, {ROUTES}, http_filters: [{ROUTER}], {fields}")
}

fn manager_of(fields: &str) -> Arc<HttpManager> {
    let compiled = compile(fields).unwrap_or_else(|e| panic!("{fields}: {e}"));
    match &compiled.listener.chains[0].action {
        NetworkAction::Http(manager) => manager.clone(),
        NetworkAction::Tcp(_) => panic!("HTTP"),
    }
}

fn manager(fields: &str) -> Arc<HttpManager> {
    manager_of(&with(fields))
}

#[test]
fn defaults_are_envoys() {
    let m = manager("");
    assert_eq!(m.codec, Codec::Auto);
    assert_eq!(m.server_header, ServerHeader::Overwrite("envoy".into()));
    assert!(m.generate_request_id && !m.preserve_external_request_id && !m.request_id_in_response);
    assert!(!m.use_remote_address && !m.skip_xff_append && m.xff_trusted_hops == 0 && m.via.is_none());
    assert_eq!(m.strip_port, StripPort::No);
    assert!(!m.normalize.path && !m.normalize.merge_slashes);
    assert_eq!(m.normalize.escaped_slashes, EscapedSlashes::Keep);
    assert_eq!(m.limits, HttpLimits::default());
    assert_eq!(m.timeouts, HttpTimeouts::default());
    assert_eq!(m.http1, Default::default());
    assert_eq!(m.http2, Default::default());
    assert!(m.upgrades.is_empty() && !m.proxy_100_continue && !m.explicit_proxy);
    assert_eq!(m.peer_metadata, PeerMetadata::default());
    assert!(m.routes.is_some() && m.route_config_name.is_none());
}

#[test]
fn what_is_read() {
    assert_eq!(manager("codec_type: HTTP1").codec, Codec::Http1);
    assert_eq!(manager("codec_type: HTTP2").codec, Codec::Http2);
    assert_eq!(
        manager("server_name: s, server_header_transformation: APPEND_IF_ABSENT").server_header,
        ServerHeader::AppendIfAbsent("s".into())
    );
    assert_eq!(
        manager("server_header_transformation: PASS_THROUGH").server_header,
        ServerHeader::PassThrough
    );
    let ids = manager(
        "generate_request_id: false, preserve_external_request_id: true, always_set_request_id_in_response: true, request_id_extension: {typed_config: {'@type': type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig, use_request_id_for_trace_sampling: false}}",
    );
    assert!(!ids.generate_request_id && ids.preserve_external_request_id && ids.request_id_in_response);
    let peers = manager(
        "use_remote_address: true, skip_xff_append: true, xff_num_trusted_hops: 2, via: v, internal_address_config: {cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}, forward_client_cert_details: SANITIZE",
    );
    assert!(peers.use_remote_address && peers.skip_xff_append);
    assert_eq!(*peers.internal_addresses, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!((peers.xff_trusted_hops, peers.via.as_deref()), (2, Some("v")));
    assert_eq!(manager("strip_matching_host_port: true").strip_port, StripPort::Matching);
    assert_eq!(manager("strip_any_host_port: true").strip_port, StripPort::Any);
    let paths = manager(
        "normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT",
    );
    assert!(paths.normalize.path && paths.normalize.merge_slashes);
    assert_eq!(paths.normalize.escaped_slashes, EscapedSlashes::Redirect);
    for (text, action) in [
        ("REJECT_REQUEST", EscapedSlashes::Reject),
        ("UNESCAPE_AND_FORWARD", EscapedSlashes::Decode),
        ("KEEP_UNCHANGED", EscapedSlashes::Keep),
    ] {
        assert_eq!(
            manager(&format!("path_with_escaped_slashes_action: {text}")).normalize.escaped_slashes,
            action
        );
    }
    let upgrades = manager(
        "upgrade_configs: [{upgrade_type: WebSocket}, {upgrade_type: other, enabled: false}], proxy_100_continue: true",
    );
    assert_eq!(upgrades.upgrades, [Arc::from("websocket")]);
    assert!(upgrades.proxy_100_continue);
}

#[test]
fn limits_and_time_outs() {
    let m = manager(
        "max_request_headers_kb: 8, stream_idle_timeout: 0s, request_timeout: 3s, request_headers_timeout: 4s, drain_timeout: 0s,
         delayed_close_timeout: 6s, common_http_protocol_options: {idle_timeout: 7s, max_connection_duration: 8s, max_stream_duration: 9s,
         max_headers_count: 10, max_requests_per_connection: 11}",
    );
    let seconds = Duration::from_secs;
    assert_eq!((m.limits.max_request_head_bytes, m.limits.max_request_headers), (8192, 10));
    assert_eq!(m.limits.max_requests_per_connection, Some(11));
    assert_eq!(
        m.timeouts,
        HttpTimeouts {
            idle: Some(seconds(7)),
            max_connection_duration: Some(seconds(8)),
            stream_idle: None,
            max_stream_duration: Some(seconds(9)),
            request: Some(seconds(3)),
            request_headers: Some(seconds(4)),
            drain: Duration::ZERO,
            delayed_close: seconds(6),
        }
    );
    assert_eq!(manager("common_http_protocol_options: {idle_timeout: 0s}").timeouts.idle, None);
}

#[test]
fn codecs() {
    let m = manager(
        "http_protocol_options: {accept_http_10: true, default_host_for_http_10: h, enable_trailers: true, allow_absolute_url: false,
         header_key_format: {stateful_formatter: {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}},
         http2_protocol_options: {max_concurrent_streams: 3, allow_connect: true}",
    );
    assert!(
        m.http1.accept_http_10
            && m.http1.enable_trailers
            && m.http1.refuse_absolute_url
            && m.http1.preserve_header_case
    );
    assert_eq!(m.http1.default_host_for_http_10.as_deref(), Some("h"));
    assert_eq!((m.http2.max_concurrent_streams, m.http2.allow_connect), (3, true));
}

#[test]
fn filters_and_routes() {
    let own = "type.googleapis.com/osier.filters.http";
    let m = manager_of(&format!(
        "stat_prefix: h, rds: {{route_config_name: r, config_source: {V3}}}, http_filters: [
           {{name: p, typed_config: {{'@type': {own}.peer_metadata.v1.PeerMetadata, send: true, receive: true}}}},
           {{name: e, typed_config: {{'@type': {own}.explicit_proxy.v1.ExplicitProxy}}}},
           {{name: o, is_optional: true, typed_config: {{'@type': type.googleapis.com/envoy.config.core.v3.Pipe}}}}, {ROUTER}]"
    ));
    assert_eq!(m.peer_metadata, PeerMetadata { send: true, receive: true });
    assert!(m.explicit_proxy && m.routes.is_none());
    assert_eq!(m.route_config_name.as_deref(), Some("r"));
    let rds = format!(
        "stat_prefix: h, rds: {{route_config_name: r, config_source: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}}}, http_filters: [{ROUTER}]"
    );
    let references = compile(&rds).unwrap().references;
    assert_eq!(references.route_configs, [RouteConfigRef { name: "r".into(), fetch_timeout: None }]);
}

#[test]
fn what_is_refused() {
    let filters = |filters: &str| format!("stat_prefix: h, {ROUTES}, http_filters: [{filters}]");
    let pipe = "typed_config: {'@type': type.googleapis.com/envoy.config.core.v3.Pipe}";
    let rds = |rds: &str| format!("stat_prefix: h, rds: {{{rds}}}, http_filters: [{ROUTER}]");
    let cases = [
        (format!("{ROUTES}, http_filters: [{ROUTER}]"), "stat_prefix: must not be empty"),
        (format!("stat_prefix: h, http_filters: [{ROUTER}]"), "route_specifier: is required"),
        (rds("route_config_name: r"), "rds.config_source: is required"),
        (
            rds("route_config_name: r, config_source: {ads: {}}"),
            "rds.config_source.resource_api_version: must be V3",
        ),
        (rds(&format!("config_source: {V3}")), "rds.route_config_name: must not be empty"),
        (filters(""), "http_filters: the last filter must be the router"),
        (
            filters(&format!("{ROUTER}, {ROUTER}")),
            "http_filters[0]: the router `router` must be the last filter",
        ),
        (filters("{name: x}"), "http_filters[0].typed_config: is required"),
        (filters(&format!("{{{pipe}}}")), "http_filters[0].name: must not be empty"),
        (
            filters(&format!("{{name: x, {pipe}}}, {ROUTER}")),
            "http_filters[0].typed_config: extension type type.googleapis.com/envoy.config.core.v3.Pipe is not supported",
        ),
        (
            filters(&format!(
                "{{name: x, is_optional: true, {pipe}}}, {{name: x, is_optional: true, {pipe}}}, {ROUTER}"
            )),
            "http_filters[1].name: `x` is there twice",
        ),
        (
            filters(&format!("{{name: x, is_optional: true, {pipe}}}")),
            "http_filters: the last filter must be the router",
        ),
        (with("max_request_headers_kb: 0"), "max_request_headers_kb: must be between 1 and 8192"),
        (with("stream_idle_timeout: -1s"), "stream_idle_timeout: must not be negative"),
        (with("request_timeout: -1s"), "request_timeout: must not be negative"),
        (with("request_headers_timeout: -1s"), "request_headers_timeout: must not be negative"),
        (with("drain_timeout: -1s"), "drain_timeout: must not be negative"),
        (with("delayed_close_timeout: -1s"), "delayed_close_timeout: must not be negative"),
        (
            with("common_http_protocol_options: {idle_timeout: -1s}"),
            "common_http_protocol_options.idle_timeout: must not be negative",
        ),
        (
            with("common_http_protocol_options: {max_stream_duration: -1s}"),
            "common_http_protocol_options.max_stream_duration: must not be negative",
        ),
        (
            with("common_http_protocol_options: {max_connection_duration: -1s}"),
            "common_http_protocol_options.max_connection_duration: must not be negative",
        ),
        (
            with("common_http_protocol_options: {max_headers_count: 0}"),
            "common_http_protocol_options.max_headers_count: must be between 1",
        ),
        (
            with("internal_address_config: {unix_sockets: true}"),
            "internal_address_config.unix_sockets: is not supported",
        ),
        (
            with("internal_address_config: {cidr_ranges: [{address_prefix: x}]}"),
            "internal_address_config.cidr_ranges[0].address_prefix: `x` is not an IP",
        ),
        (
            with(&format!("request_id_extension: {{{pipe}}}")),
            "request_id_extension.typed_config: extension type",
        ),
        (with("strip_matching_host_port: true, strip_any_host_port: true"), "strip_any_host_port: excludes"),
        (with("upgrade_configs: [{}]"), "upgrade_configs[0].upgrade_type: must not be empty"),
        (
            with("upgrade_configs: [{upgrade_type: a}, {upgrade_type: A}]"),
            "upgrade_configs[1].upgrade_type: `a` is there twice",
        ),
        (
            with("http_protocol_options: {header_key_format: {}}"),
            "http_protocol_options.header_key_format.stateful_formatter: is required",
        ),
        (
            with(&format!(
                "http_protocol_options: {{header_key_format: {{stateful_formatter: {{name: x, {pipe}}}}}}}"
            )),
            "http_protocol_options.header_key_format.stateful_formatter.typed_config: extension type",
        ),
        (
            with("http2_protocol_options: {max_concurrent_streams: 0}"),
            "http2_protocol_options.max_concurrent_streams: must be between 1",
        ),
        (
            with("http2_protocol_options: {initial_connection_window_size: 1}"),
            "http2_protocol_options.initial_connection_window_size: must be between 65535",
        ),
        (
            with("http2_protocol_options: {connection_keepalive: {interval: 0s, timeout: 1s}}"),
            "http2_protocol_options.connection_keepalive.interval: must be at least 1ms",
        ),
    ];
    let cases: Vec<_> = cases.iter().map(|(yaml, text)| (yaml.clone(), format!("{PATH}{text}"))).collect();
    let cases: Vec<_> = cases.iter().map(|(yaml, text)| (yaml.as_str(), text.as_str())).collect();
    refused(&cases, compile);
}
