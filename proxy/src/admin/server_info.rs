//! `/server_info`, `/memory`, and the process's own figures as Prometheus names them.

use std::time::UNIX_EPOCH;

use osier_core::admin::Reply;
use prometheus::proto::{MetricFamily, MetricType};
use serde_json::json;

use super::Admin;
use crate::telemetry::collector::{counter, family, gauge};

pub(super) fn page(admin: &Admin) -> Reply {
    let uptime = format!("{}s", admin.started.0.elapsed().as_secs());
    let locality = &admin.node.locality;
    Reply::json(&json!({
        "version": format!("osier-proxy/{}", env!("CARGO_PKG_VERSION")),
        "state": admin.state(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "awaited": admin.readiness.awaited(),
        "command_line_options": {"concurrency": admin.concurrency},
        "node": {
            "id": admin.node.id,
            "cluster": admin.node.cluster,
            "metadata": admin.node.metadata,
            "locality": {"region": locality.region, "zone": locality.zone, "sub_zone": locality.sub_zone},
        },
    }))
}

pub(super) fn memory() -> Reply {
    let [total, resident] = pages().unwrap_or_default();
    // Envoy's shape: uint64 as text.
    Reply::json(&json!({
        "heap_size": total.to_string(),
        "total_physical_bytes": resident.to_string(),
    }))
}

/// Resident bytes of the process.
pub(super) fn resident() -> Option<u64> {
    pages().map(|[_, resident]| resident)
}

/// Virtual and resident bytes.
fn pages() -> Option<[u64; 2]> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut fields = text.split_whitespace().map(|field| field.parse::<u64>().ok());
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    let size = u64::try_from(size).ok()?;
    Some([fields.next()?? * size, fields.next()?? * size])
}

/// CPU time of all threads in seconds.
fn cpu_seconds() -> Option<f64> {
    let clock = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID;
    let time = nix::time::clock_gettime(clock).ok()?;
    Some(std::time::Duration::from(time).as_secs_f64())
}

fn open_files() -> Option<u64> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64)
}

/// `process_*`, under the names that Prometheus' clients use.
pub(super) fn process_families(admin: &Admin) -> Vec<MetricFamily> {
    let mut families = Vec::new();
    if let Some(seconds) = cpu_seconds() {
        let mut metric = counter(0);
        metric.set_counter({
            let mut counter = prometheus::proto::Counter::default();
            counter.set_value(seconds);
            counter
        });
        let help = "CPU time of the process in seconds.";
        families.push(family("process_cpu_seconds_total", help, MetricType::COUNTER, vec![metric]));
    }
    let mut figure = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            families.push(family(name, help, MetricType::GAUGE, vec![gauge(value)]));
        }
    };
    figure("process_resident_memory_bytes", "Resident memory.", resident().map(|b| b as f64));
    figure("process_open_fds", "Open file descriptors.", open_files().map(|n| n as f64));
    let start = admin.started.1.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64());
    figure("process_start_time_seconds", "Start of the process since the epoch.", start);
    families
}
