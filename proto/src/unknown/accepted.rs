//! The fields that are accepted although they do nothing here, because they change nothing for a request.
//!
//! Some are declared, so that Osier's pilot can send them to a stock Envoy; the others are not. `docs/reference/xds-accepted.md` is
//! this table, and a test holds the two together.

/// A field that is accepted without effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Full name of its message.
    pub message: &'static str,
    /// Its number.
    pub number: u32,
    /// Its name.
    pub field: &'static str,
    /// Why nothing is lost.
    pub reason: &'static str,
}

const fn accept(message: &'static str, number: u32, field: &'static str, reason: &'static str) -> Accepted {
    Accepted { message, number, field, reason }
}

const BUFFERS: &str = "Osier bounds its buffers by itself";
const EVEN: &str = "connections are always handed to the least loaded worker";
const LABELS: &str = "for people and tools; nothing that is supported matches on it";
const NAME_OF_METRICS: &str = "part of the names of Envoy's metrics, which Osier does not have";
const METRICS: &str = "about Envoy's own metrics";
const NO_RUNTIME: &str = "there is no runtime layer that could override the value beside it";
const NO_TRACING: &str = "about tracing, which is not configured";
const PROCESS: &str = "about Envoy's own process";

/// All accepted fields, by message and number.
#[rustfmt::skip]
pub const ACCEPTED: &[Accepted] = &[
    accept("envoy.config.bootstrap.v3.Admin", 1, "access_log_path", "requests to the admin server are not logged"),
    accept("envoy.config.bootstrap.v3.Admin", 2, "profile_path", PROCESS),
    accept("envoy.config.bootstrap.v3.Admin", 5, "access_log", "requests to the admin server are not logged"),
    accept("envoy.config.bootstrap.v3.Bootstrap", 7, "stats_flush_interval", METRICS),
    accept("envoy.config.bootstrap.v3.Bootstrap", 8, "watchdog", PROCESS),
    accept("envoy.config.bootstrap.v3.Bootstrap", 13, "stats_config", METRICS),
    accept("envoy.config.bootstrap.v3.Bootstrap", 16, "enable_dispatcher_stats", METRICS),
    accept("envoy.config.bootstrap.v3.Bootstrap", 27, "watchdogs", PROCESS),
    accept("envoy.config.cluster.v3.CircuitBreakers.Thresholds", 6, "track_remaining", METRICS),
    accept("envoy.config.cluster.v3.Cluster", 5, "per_connection_buffer_limit_bytes", BUFFERS),
    accept("envoy.config.cluster.v3.Cluster", 20, "cleanup_interval", "how long Envoy keeps an unused original destination; the next connection finds it again"),
    accept("envoy.config.cluster.v3.Cluster", 32, "ignore_health_on_host_removal", "there is no active health checking that could keep a removed endpoint"),
    accept("envoy.config.cluster.v3.Cluster", 47, "track_timeout_budgets", METRICS),
    accept("envoy.config.cluster.v3.Cluster", 49, "track_cluster_stats", METRICS),
    accept("envoy.config.core.v3.ApiConfigSource", 7, "set_node_on_first_message_only", "the node is always sent once only"),
    accept("envoy.config.core.v3.Node", 8, "user_agent_build_version", "Osier announces its own"),
    accept("envoy.config.core.v3.Node", 9, "extensions", "Osier announces its own"),
    accept("envoy.config.core.v3.RuntimeFractionalPercent", 2, "runtime_key", NO_RUNTIME),
    accept("envoy.config.endpoint.v3.LocalityLbEndpoints", 6, "proximity", "Envoy does not read it either"),
    accept("envoy.config.listener.v3.FilterChain", 5, "metadata", LABELS),
    accept("envoy.config.listener.v3.Listener", 5, "per_connection_buffer_limit_bytes", BUFFERS),
    accept("envoy.config.listener.v3.Listener", 8, "drain_type", "a change of a listener closes nothing, and when draining is asked for all listeners drain"),
    accept("envoy.config.listener.v3.Listener", 20, "connection_balance_config", EVEN),
    accept("envoy.config.listener.v3.Listener", 28, "stat_prefix", NAME_OF_METRICS),
    accept("envoy.config.listener.v3.Listener", 29, "enable_reuse_port", EVEN),
    accept("envoy.config.route.v3.Decorator", 2, "propagate", NO_TRACING),
    accept("envoy.config.route.v3.Route", 4, "metadata", LABELS),
    accept("envoy.config.route.v3.Route", 19, "stat_prefix", METRICS),
    accept("envoy.config.route.v3.VirtualHost", 5, "virtual_clusters", METRICS),
    accept("envoy.config.route.v3.VirtualHost", 24, "metadata", LABELS),
    accept("envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", 20, "charge_cluster_response_stats", METRICS),
    accept("envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", 7, "stat_prefix", NAME_OF_METRICS),
    accept("envoy.extensions.filters.http.jwt_authn.v3.JwtProvider", 12, "jwt_cache_config", "Osier keeps verified tokens by itself, within bounds of its own"),
    accept("envoy.extensions.filters.http.jwt_authn.v3.JwtProvider", 17, "clear_route_cache", "routes are always chosen after tokens were verified"),
    accept("envoy.extensions.filters.http.router.v3.Router", 1, "dynamic_stats", METRICS),
    accept("envoy.extensions.filters.http.router.v3.Router", 2, "start_child_span", NO_TRACING),
    accept("envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", 1, "pack_trace_reason", NO_TRACING),
    accept("envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig", 2, "use_request_id_for_trace_sampling", NO_TRACING),
    accept("envoy.type.matcher.v3.RegexMatcher", 1, "google_re2", "names the syntax that is used anyway"),
];

pub(super) fn is_accepted(message: &str, number: u32) -> bool {
    ACCEPTED.binary_search_by_key(&(message, number), |accepted| (accepted.message, accepted.number)).is_ok()
}

/// The same by name, in either of JSON's spellings.
pub(crate) fn is_accepted_name(message: &str, field: &str) -> bool {
    let first = ACCEPTED.partition_point(|accepted| accepted.message < message);
    let mut of_message = ACCEPTED[first..].iter().take_while(|accepted| accepted.message == message);
    of_message.any(|accepted| {
        let plain = accepted.field.bytes().filter(|byte| *byte != b'_');
        accepted.field == field || plain.eq(field.bytes().map(|byte| byte.to_ascii_lowercase()))
    })
}
