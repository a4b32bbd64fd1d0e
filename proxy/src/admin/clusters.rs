//! `/clusters`, as text and as Envoy's `Clusters` message in JSON.

use std::fmt::Write as _;
use std::sync::Arc;

use osier_core::admin::{Reply, Request};
use serde_json::{Value, json};

use super::{Admin, stats};
use crate::config::cluster::Cluster;
use crate::config::endpoint::{Endpoint, Health};

pub(super) fn page(admin: &Admin, request: &Request) -> Reply {
    let handles = admin.shared.clusters.all();
    let clusters = handles.iter().filter_map(|handle| handle.current.load_full());
    if request.parameter("format") == Some("json") {
        let statuses: Vec<_> = clusters.map(|cluster| status(admin, &cluster)).collect();
        return Reply::json(&json!({"cluster_statuses": statuses}));
    }
    Reply::text(clusters.map(|cluster| text(admin, &cluster)).collect::<String>())
}

fn is_from_api(admin: &Admin, cluster: &Cluster) -> bool {
    !admin.static_clusters.contains(&*cluster.spec.name)
}

fn endpoints(cluster: &Cluster) -> Vec<Arc<Endpoint>> {
    cluster.endpoints.load().iter().cloned().collect()
}

fn text(admin: &Admin, cluster: &Cluster) -> String {
    let (name, limits) = (&cluster.spec.name, cluster.live.limits());
    let mut out = format!("{name}::observability_name::{}\n", cluster.spec.stat_name);
    // Writing into a String never fails.
    for (what, value) in [
        ("max_connections", limits.max_connections),
        ("max_pending_requests", limits.max_pending_requests),
        ("max_requests", limits.max_requests),
        ("max_retries", limits.max_retries),
    ] {
        let _ = writeln!(out, "{name}::default_priority::{what}::{value}");
    }
    let _ = writeln!(out, "{name}::added_via_api::{}", is_from_api(admin, cluster));
    for endpoint in endpoints(cluster) {
        let (address, spec) = (endpoint.address, &endpoint.spec);
        for (what, value) in endpoint.state.stats() {
            let _ = writeln!(out, "{name}::{address}::{what}::{value}");
        }
        let flags = if spec.health == Health::Healthy { "healthy" } else { "/failed_eds_health" };
        for (what, value) in [
            ("hostname", spec.hostname.as_deref().unwrap_or_default()),
            ("health_flags", flags),
            ("weight", &spec.weight.to_string()),
            ("region", &spec.locality.region),
            ("zone", &spec.locality.zone),
            ("sub_zone", &spec.locality.sub_zone),
            ("priority", &spec.priority.to_string()),
        ] {
            let _ = writeln!(out, "{name}::{address}::{what}::{value}");
        }
    }
    out
}

fn status(admin: &Admin, cluster: &Cluster) -> Value {
    let limits = cluster.live.limits();
    let hosts: Vec<_> = endpoints(cluster).iter().map(|endpoint| host(endpoint)).collect();
    json!({
        "name": cluster.spec.name,
        "observability_name": cluster.spec.stat_name,
        "added_via_api": is_from_api(admin, cluster),
        "eds_service_name": match &cluster.spec.discovery {
            crate::config::cluster::Discovery::Eds(name) => name,
            _ => "",
        },
        "circuit_breakers": {"thresholds": [{
            "max_connections": limits.max_connections,
            "max_pending_requests": limits.max_pending_requests,
            "max_requests": limits.max_requests,
            "max_retries": limits.max_retries,
        }]},
        "host_statuses": hosts,
    })
}

fn host(endpoint: &Endpoint) -> Value {
    let spec = &endpoint.spec;
    let metrics = endpoint.state.stats().map(|(name, value)| match stats::is_gauge(name) {
        true => json!({"name": name, "type": "GAUGE", "value": value.to_string()}),
        false => json!({"name": name, "value": value.to_string()}),
    });
    let health = match spec.health {
        Health::Healthy => "HEALTHY",
        Health::Unhealthy => "UNHEALTHY",
        Health::Draining => "DRAINING",
    };
    json!({
        "address": address(endpoint.address),
        "stats": metrics,
        "health_status": {"eds_health_status": health},
        "weight": spec.weight,
        "hostname": spec.hostname.as_deref().unwrap_or_default(),
        "priority": spec.priority,
        "locality": {
            "region": spec.locality.region,
            "zone": spec.locality.zone,
            "sub_zone": spec.locality.sub_zone,
        },
    })
}

/// Envoy's `core.Address`.
pub(super) fn address(address: std::net::SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}
