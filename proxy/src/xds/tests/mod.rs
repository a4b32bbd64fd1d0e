//! The client against state alone (time is an argument) and against a scripted server on loopback.

use std::sync::Arc;
use std::time::Duration;

use osier_proto::types::{self, cluster, endpoint, listener, route};
use osier_proto::{Any, json};
use prost::{Message, Name};

use super::*;
use crate::config::route::VirtualHost;

mod fake;
mod name_table;
mod on_demand;
mod script;
mod settling;

/// How long a test waits for something that must come.
pub(super) const LONG: Duration = Duration::from_secs(60);
pub(super) const SOURCE: &str = "{ads: {}, resource_api_version: V3}";

pub(super) fn pack<M: Message + Name + Default>(yaml: &str) -> Any {
    let value: serde_json::Value = serde_saphyr::from_str(yaml).expect("valid YAML");
    Any::pack(&json::from_value::<M>(&value).unwrap_or_else(|e| panic!("{e}\n{yaml}")))
}

pub(super) fn eds_cluster(name: &str, fields: &str) -> Any {
    pack::<cluster::Cluster>(&format!(
        "{{name: \"{name}\", type: EDS, eds_cluster_config: {{eds_config: {SOURCE}}}, {fields}}}"
    ))
}

pub(super) fn static_cluster(name: &str) -> Any {
    pack::<cluster::Cluster>(&format!("{{name: \"{name}\", type: STATIC}}"))
}

pub(super) fn assignment(name: &str, ports: &[u16]) -> Any {
    let endpoints: Vec<_> = ports
        .iter()
        .map(|p| {
            format!("{{endpoint: {{address: {{socket_address: {{address: 10.0.0.1, port_value: {p}}}}}}}}}")
        })
        .collect();
    pack::<endpoint::ClusterLoadAssignment>(&format!(
        "{{cluster_name: \"{name}\", endpoints: [{{lb_endpoints: [{}]}}]}}",
        endpoints.join(", ")
    ))
}

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

fn listener_with(name: &str, address: &str, filter: &str, fields: &str) -> Any {
    let (ip, port) = address.rsplit_once(':').expect("ip:port");
    pack::<listener::Listener>(&format!(
        "{{name: \"{name}\", address: {{socket_address: {{address: {ip}, port_value: {port}}}}},
           filter_chains: [{{filters: [{filter}]}}], {fields}}}"
    ))
}

pub(super) fn http_listener(name: &str, address: &str, route_config: &str) -> Any {
    http_listener_with(name, address, route_config, "")
}

pub(super) fn http_listener_with(name: &str, address: &str, route_config: &str, fields: &str) -> Any {
    let filter = format!(
        "{{name: h, typed_config: {{'@type': {HCM}, stat_prefix: h, rds: {{route_config_name: \"{route_config}\",
           config_source: {SOURCE}}}, http_filters: [{{name: r, typed_config: {{'@type': {ROUTER}}}}}]}}}}"
    );
    listener_with(name, address, &filter, fields)
}

pub(super) fn tcp_listener(name: &str, address: &str, cluster: &str, fields: &str) -> Any {
    let filter =
        format!("{{name: t, typed_config: {{'@type': {TCP}, stat_prefix: t, cluster: \"{cluster}\"}}}}");
    listener_with(name, address, &filter, fields)
}

pub(super) fn routes(name: &str, cluster: &str) -> Any {
    pack::<route::RouteConfiguration>(&format!(
        "{{name: \"{name}\", virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: \"{cluster}\"}}}}]}}]}}"
    ))
}

pub(super) fn vhds(name: &str) -> Any {
    pack::<route::RouteConfiguration>(&format!("{{name: \"{name}\", vhds: {{config_source: {SOURCE}}}}}"))
}

pub(super) fn virtual_host(name: &str, cluster: &str) -> Any {
    pack::<route::VirtualHost>(&format!(
        "{{name: \"{name}\", domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: \"{cluster}\"}}}}]}}"
    ))
}

/// The cluster that a virtual host's only route forwards to.
pub(super) fn target(host: &VirtualHost) -> Arc<crate::config::cluster::ClusterHandle> {
    use crate::config::route::{Action, ForwardTarget};
    match &host.routes[0].action {
        Action::Forward(forward) => match &forward.target {
            ForwardTarget::Cluster(handle) => handle.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// Waits until `check` gives something.
pub(super) async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + LONG;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
