//! The terminal filters of a chain: HTTP connection manager and TCP proxy, with access logs.

use osier_proto::Any;
use osier_proto::types::accesslog::{AccessLog, access_log};
use osier_proto::types::core::{
    DataSource, Http1ProtocolOptions, SubstitutionFormatString, data_source, substitution_format_string,
};
use osier_proto::types::explicit_proxy::ExplicitProxy;
use osier_proto::types::file_access_log::{FileAccessLog, file_access_log::AccessLogFormat};
use osier_proto::types::http_connection_manager::{
    HttpConnectionManager, HttpFilter, Rds,
    http_connection_manager::{
        ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier, SetCurrentClientCertDetails,
        UpgradeConfig,
    },
    http_filter,
};
use osier_proto::types::http_router::Router;
use osier_proto::types::listener::Filter;
use osier_proto::types::peer_metadata::PeerMetadata;
use osier_proto::types::route::RouteConfiguration;
use osier_proto::types::tcp_proxy::{
    TcpProxy,
    tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
};
use prost::{Message, Name};
use prost_types::{Struct, value::Kind};
use std::time::Duration;

use super::{authentication, authorization};
use crate::r#gen::name;
use crate::r#gen::scope::Scope;
use crate::r#gen::wire;
use crate::model::{AccessLogEncoding, PathNormalization};

/// Istio's default line: people parse it, so it is the same to the letter.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
\"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n";

/// Keys of a JSON line and what they hold, as Istio has them.
const DEFAULT_JSON: [(&str, &str); 24] = [
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("start_time", "%START_TIME%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
];

/// What routes an HTTP chain has.
pub(super) enum Routes {
    /// A route configuration of its own.
    Named(String),
    /// Right here.
    Inline(Box<RouteConfiguration>),
}

/// Which side of the workload a chain is on, and what that changes in HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// From the workload.
    Outbound,
    /// The same, where applications use the listener as their HTTP proxy.
    Proxy,
    /// To the workload.
    Inbound,
    /// From outside of the mesh.
    Gateway,
}

/// An HTTP connection manager.
pub(super) fn http(scope: &Scope<'_>, stat_prefix: &str, routes: Routes, side: Side) -> Filter {
    let route_specifier = match routes {
        Routes::Named(name) => {
            RouteSpecifier::Rds(Rds { config_source: Some(wire::over_ads()), route_config_name: name })
        }
        Routes::Inline(config) => RouteSpecifier::RouteConfig(*config),
    };
    let normalization = scope.mesh().path_normalization;
    let merge =
        matches!(normalization, PathNormalization::MergeSlashes | PathNormalization::DecodeAndMergeSlashes);
    let escaped = match normalization {
        PathNormalization::DecodeAndMergeSlashes => PathWithEscapedSlashesAction::UnescapeAndForward,
        _ => PathWithEscapedSlashesAction::KeepUnchanged,
    };
    let manager = HttpConnectionManager {
        stat_prefix: stat_prefix.to_string(),
        route_specifier: Some(route_specifier),
        http_filters: http_filters(scope, side),
        http_protocol_options: scope
            .view()
            .http10
            .then(|| Http1ProtocolOptions { accept_http_10: true, ..Default::default() }),
        forward_client_cert_details: match side {
            Side::Inbound => ForwardClientCertDetails::AppendForward,
            Side::Gateway => ForwardClientCertDetails::SanitizeSet,
            Side::Outbound | Side::Proxy => ForwardClientCertDetails::Sanitize,
        } as i32,
        set_current_client_cert_details: matches!(side, Side::Inbound | Side::Gateway)
            .then_some(SetCurrentClientCertDetails { subject: Some(true), dns: true, uri: true }),
        server_name: match side {
            Side::Inbound | Side::Gateway => "istio-envoy".into(),
            Side::Outbound | Side::Proxy => String::new(),
        },
        stream_idle_timeout: Some(prost_types::Duration::default()),
        access_log: access_log(scope, None),
        use_remote_address: Some(side == Side::Gateway),
        proxy_100_continue: true,
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".into(), enabled: None }],
        normalize_path: Some(normalization != PathNormalization::None),
        merge_slashes: merge,
        path_with_escaped_slashes_action: escaped as i32,
        ..Default::default()
    };
    wire::network_filter("envoy.filters.network.http_connection_manager", &manager)
}

/// What only Osier's proxy understands goes only to clients that announce its schema.
fn http_filters(scope: &Scope<'_>, side: Side) -> Vec<HttpFilter> {
    let mut filters = Vec::new();
    if scope.view().schema.is_some() {
        let metadata = PeerMetadata { send: true, receive: true };
        filters.push(http_filter("osier.filters.http.peer_metadata", &metadata));
        if side == Side::Proxy {
            filters.push(http_filter("osier.filters.http.explicit_proxy", &ExplicitProxy {}));
        }
    }
    if matches!(side, Side::Inbound | Side::Gateway) {
        filters.extend(authorization::asked_http(scope));
        filters.extend(authentication::http(scope, side == Side::Gateway));
        filters.extend(authorization::http(scope));
    }
    filters.push(router());
    filters
}

/// The last filter of every chain.
pub(super) fn router() -> HttpFilter {
    http_filter("envoy.filters.http.router", &Router {})
}

/// An HTTP filter under its customary name.
pub(super) fn http_filter<M: Message + Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.to_string(),
        config_type: Some(http_filter::ConfigType::TypedConfig(Any::pack(config))),
        is_optional: false,
    }
}

/// Idle and longest time of a TCP stream.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TcpTimes {
    pub idle: Option<Duration>,
    pub longest: Option<Duration>,
}

/// A TCP proxy that closes what arrives. In the access log the cause stands where HTTP has the name of the route.
pub(super) fn close(scope: &Scope<'_>, cause: &str) -> Filter {
    tcp_with_log(&[(name::BLACK_HOLE.to_string(), 1)], TcpTimes::default(), access_log(scope, Some(cause)))
}

/// A TCP proxy to one or more clusters, by weight.
pub(super) fn tcp(scope: &Scope<'_>, clusters: &[(String, u32)], times: TcpTimes) -> Filter {
    tcp_with_log(clusters, times, access_log(scope, None))
}

fn tcp_with_log(clusters: &[(String, u32)], times: TcpTimes, access_log: Vec<AccessLog>) -> Filter {
    let (stat_prefix, specifier) = match clusters {
        [(one, _)] => (one.clone(), ClusterSpecifier::Cluster(one.clone())),
        several => {
            let clusters: Vec<ClusterWeight> = several
                .iter()
                .map(|(name, weight)| ClusterWeight { name: name.clone(), weight: *weight })
                .collect();
            let prefix = clusters.first().map(|c| c.name.clone()).unwrap_or_default();
            (prefix, ClusterSpecifier::WeightedClusters(WeightedCluster { clusters }))
        }
    };
    let proxy = TcpProxy {
        stat_prefix,
        cluster_specifier: Some(specifier),
        idle_timeout: times.idle.map(wire::duration),
        max_downstream_connection_duration: times.longest.map(wire::duration),
        access_log,
        ..Default::default()
    };
    wire::network_filter("envoy.filters.network.tcp_proxy", &proxy)
}

/// The mesh's access log, if it has one. `route` stands for the name of the route where there are none.
fn access_log(scope: &Scope<'_>, route: Option<&str>) -> Vec<AccessLog> {
    let Some(path) = &scope.mesh().access_log_file else { return Vec::new() };
    let given = scope.mesh().access_log_format.as_deref();
    let with_route = |text: &str| match route {
        Some(route) => text.replace("%ROUTE_NAME%", &route.replace('%', "%%")),
        None => text.to_string(),
    };
    let format = match scope.mesh().access_log_encoding {
        AccessLogEncoding::Text => text_format(&with_route(given.unwrap_or(DEFAULT_FORMAT))),
        AccessLogEncoding::Json => {
            let keys = given.and_then(json_keys).unwrap_or_else(default_json);
            let keys = keys.into_iter().map(|(key, value)| (key, json_value(value, &with_route)));
            substitution_format_string::Format::JsonFormat(Struct { fields: keys.collect() })
        }
    };
    let file = FileAccessLog {
        path: path.to_string(),
        access_log_format: Some(AccessLogFormat::LogFormat(SubstitutionFormatString {
            format: Some(format),
            omit_empty_values: false,
        })),
    };
    vec![AccessLog {
        name: "envoy.access_loggers.file".into(),
        config_type: Some(access_log::ConfigType::TypedConfig(Any::pack(&file))),
    }]
}

fn text_format(text: &str) -> substitution_format_string::Format {
    let ended = if text.ends_with('\n') { text.to_string() } else { format!("{text}\n") };
    substitution_format_string::Format::TextFormatSource(DataSource {
        specifier: Some(data_source::Specifier::InlineString(ended)),
    })
}

type Json = serde_json::Map<String, serde_json::Value>;

fn default_json() -> Json {
    DEFAULT_JSON.iter().map(|(key, value)| (key.to_string(), (*value).into())).collect()
}

/// A JSON object of texts, as `accessLogFormat` holds it.
fn json_keys(text: &str) -> Option<Json> {
    serde_json::from_str(text).ok()
}

fn json_value(value: serde_json::Value, text: &impl Fn(&str) -> String) -> prost_types::Value {
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(flag) => Kind::BoolValue(flag),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(format) => Kind::StringValue(text(&format)),
        serde_json::Value::Array(items) => {
            return wire::list(items.into_iter().map(|item| json_value(item, text)).collect());
        }
        serde_json::Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields.into_iter().map(|(key, value)| (key, json_value(value, text))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}
