//! `/stats`: every figure by its Envoy name.

use std::sync::atomic::Ordering::Relaxed;

use http::StatusCode;
use osier_core::admin::{Reply, Request};
use regex::Regex;
use serde_json::json;

use super::Admin;
use crate::config::cluster::Cluster;

/// One figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    pub name: String,
    pub value: u64,
    pub counter: bool,
}

fn counter(name: impl Into<String>, value: u64) -> Stat {
    Stat { name: name.into(), value, counter: true }
}

fn gauge(name: impl Into<String>, value: u64) -> Stat {
    Stat { name: name.into(), value, counter: false }
}

/// By its name: what is active or a state goes up and down, everything else only up.
pub(super) fn is_gauge(name: &str) -> bool {
    name.ends_with("_active") || name.ends_with("_state") || name.ends_with("membership_total")
}

/// The figures of the process and of its conversation with the control plane; few, whatever the mesh's size.
pub(super) fn process(admin: &Admin) -> Vec<Stat> {
    let shared = &admin.shared;
    let logs = shared.access_logs.counts();
    let snapshot = shared.snapshot.load();
    let mut stats = vec![
        gauge("server.uptime", admin.started.0.elapsed().as_secs()),
        gauge("server.live", u64::from(admin.state() == "LIVE")),
        gauge("server.concurrency", admin.concurrency as u64),
        gauge("server.total_connections", shared.drain.open() as u64),
        counter("listener_manager.downstream_global_cx_overflow", refused(admin)),
        gauge("server.memory_physical_size", super::server_info::resident().unwrap_or(0)),
        counter("access_log.lines_written", logs.written.load(Relaxed)),
        counter("access_log.lines_dropped", logs.dropped.load(Relaxed)),
        gauge("listener_manager.total_listeners_active", snapshot.listeners.len() as u64),
        gauge("cluster_manager.active_clusters", active_clusters(admin).count() as u64),
    ];
    stats.extend(admin.xds.stats().figures().into_iter().map(|(name, value)| Stat {
        name: name.to_owned(),
        value,
        counter: !is_gauge(name),
    }));
    stats
}

fn refused(admin: &Admin) -> u64 {
    admin.acceptors.counts().iter().map(|(_, _, count)| count.refused).sum()
}

fn active_clusters(admin: &Admin) -> impl Iterator<Item = std::sync::Arc<Cluster>> {
    admin.shared.clusters.all().into_iter().filter_map(|handle| handle.current.load_full())
}

/// Everything, sorted by name, counters since the last reset.
fn all(admin: &Admin) -> Vec<Stat> {
    let mut stats = process(admin);
    for cluster in active_clusters(admin) {
        let prefix = format!("cluster.{}", cluster.spec.stat_name);
        let members = cluster.endpoints.load().iter().count() as u64;
        stats.push(gauge(format!("{prefix}.membership_total"), members));
        stats.extend(cluster.live.stats().into_iter().map(|(name, value)| Stat {
            name: format!("{prefix}.{name}"),
            value,
            counter: !is_gauge(name),
        }));
    }
    for (place, allowed, denied) in admin.shared.counters.tallies() {
        let values = place.names().into_iter().zip([allowed, denied]);
        stats.extend(values.map(|(name, value)| counter(name, value)));
    }
    for (place, word, value) in admin.shared.counters.all_answers() {
        stats.push(counter(place.name(word), value));
    }
    for (_, address, counts) in admin.acceptors.counts() {
        // Envoy writes addresses in names with `_`, because `.` and `:` separate.
        let prefix = format!("listener.{}", address.to_string().replace(':', "_"));
        stats.push(counter(format!("{prefix}.downstream_cx_total"), counts.total));
        stats.push(gauge(format!("{prefix}.downstream_cx_active"), counts.active));
        stats.push(counter(format!("{prefix}.downstream_global_cx_overflow"), counts.refused));
    }
    let baseline = admin.baseline.lock();
    for stat in stats.iter_mut().filter(|stat| stat.counter) {
        stat.value = stat.value.saturating_sub(baseline.get(&stat.name).copied().unwrap_or(0));
    }
    stats.sort_by(|a, b| a.name.cmp(&b.name));
    stats
}

pub(super) fn page(admin: &Admin, request: &Request) -> Reply {
    let filter = match request.parameter("filter").map(Regex::new) {
        Some(Ok(filter)) => Some(filter),
        Some(Err(_)) => return Reply::status(StatusCode::BAD_REQUEST, "Invalid re2 regex\n"),
        None => None,
    };
    let used_only = request.has("usedonly");
    let wanted = |stat: &Stat| {
        filter.as_ref().is_none_or(|filter| filter.is_match(&stat.name)) && (!used_only || stat.value > 0)
    };
    match request.parameter("format").unwrap_or("text") {
        "prometheus" => super::prometheus::page(admin),
        "json" => {
            let stats = all(admin).into_iter().filter(wanted);
            let stats: Vec<_> = stats.map(|s| json!({"name": s.name, "value": s.value})).collect();
            Reply::json(&json!({"stats": stats}))
        }
        "text" => {
            let stats = all(admin).into_iter().filter(wanted);
            Reply::text(stats.map(|s| format!("{}: {}\n", s.name, s.value)).collect::<String>())
        }
        _ => Reply::status(StatusCode::BAD_REQUEST, "usage: /stats?format=text|json|prometheus\n"),
    }
}

/// Counters start at zero again: here by what they were, because traffic goes on counting; Istio's metrics really.
pub(super) fn reset(admin: &Admin) -> Reply {
    admin.baseline.lock().clear();
    let now = all(admin);
    let counters = now.into_iter().filter(|stat| stat.counter).map(|stat| (stat.name, stat.value));
    *admin.baseline.lock() = counters.collect();
    admin.shared.metrics.reset();
    Reply::text("OK\n")
}
