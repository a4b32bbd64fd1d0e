//! Configuration for tests of this module: the least that works.

use std::sync::Arc;
use std::time::Duration;

use crate::config::cluster::ClusterHandle;
use crate::config::listener::{
    Codec, Http1Options, Http2Options, HttpLimits, HttpManager, HttpTimeouts, Normalize, PeerMetadata,
    ServerHeader, StripPort,
};
use crate::config::route::{
    Forward, ForwardTarget, HostRewrite, PathMatch, PathRewrite, RetryOn, RetryPolicy, RouteMatch,
};

/// A connection manager without routes, with Envoy's defaults.
pub fn manager() -> HttpManager {
    HttpManager {
        forward_certificate: Default::default(),
        stat_prefix: "test".into(),
        codec: Codec::Auto,
        routes: None,
        route_config_name: None,
        server_header: ServerHeader::Overwrite("envoy".into()),
        generate_request_id: true,
        preserve_external_request_id: false,
        request_id_in_response: false,
        use_remote_address: false,
        skip_xff_append: false,
        xff_trusted_hops: 0,
        internal_addresses: Box::default(),
        via: None,
        strip_port: StripPort::No,
        normalize: Normalize::default(),
        limits: HttpLimits::default(),
        timeouts: HttpTimeouts::default(),
        upgrades: vec![],
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        proxy_100_continue: false,
        peer_metadata: PeerMetadata::default(),
        explicit_proxy: false,
        authorizers: Arc::default(),
        authentication: None,
        authorization: Arc::default(),
        access_log: vec![],
    }
}

/// Forward to a cluster that isn't there, with nothing switched on.
pub fn forward() -> Forward {
    Forward {
        target: ForwardTarget::Cluster(ClusterHandle::empty(Arc::<str>::from("nowhere"))),
        rewrite: PathRewrite::Keep,
        host_rewrite: HostRewrite::Keep,
        append_x_forwarded_host: false,
        timeout: None,
        idle_timeout: None,
        grpc_timeout_max: None,
        max_stream_duration: None,
        retry: None,
        upgrades: vec![],
        cluster_not_found_status: 503,
    }
}

/// A condition on the path alone.
pub fn path_match(path: PathMatch) -> RouteMatch {
    RouteMatch { path, headers: vec![], query: vec![], runtime_fraction: None, grpc: false, claims: vec![] }
}

/// No condition, one retry, Envoy's back-off.
pub fn retry_policy() -> RetryPolicy {
    RetryPolicy {
        on: RetryOn::default(),
        status_codes: Box::default(),
        attempts: 1,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        avoid_previous_hosts: false,
        host_selection_attempts: 1,
        previous_priorities: None,
        backoff_base: Duration::from_millis(25),
        backoff_max: Duration::from_millis(250),
    }
}
