//! `/stats/prometheus`: Istio's metrics, and the proxy's own figures as `envoy_*` (only those that every proxy has once:
//! per-cluster figures grow with the mesh and are at `/stats`).

use http::StatusCode;
use osier_core::admin::Reply;
use prometheus::TextEncoder;
use prometheus::core::Collector as _;
use prometheus::proto::{MetricFamily, MetricType};

use super::{Admin, server_info, stats};
use crate::telemetry::authorization;
use crate::telemetry::collector::{counter, family, gauge, pair};

pub(super) fn families(admin: &Admin) -> Vec<MetricFamily> {
    // No registry: there is one collector, and what else is shown is made here.
    let mut families = admin.shared.metrics.collect();
    families.extend(own_figures(admin));
    families.extend(authorization::families(&admin.shared.counters));
    families.sort_by(|a, b| a.name().cmp(b.name()));
    families
}

pub(super) fn page(admin: &Admin) -> Reply {
    match TextEncoder::new().encode_to_string(&families(admin)) {
        Ok(text) => Reply { content_type: "text/plain; version=0.0.4", ..Reply::text(text) },
        Err(error) => Reply::status(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn own_figures(admin: &Admin) -> Vec<MetricFamily> {
    let envoy = stats::process(admin).into_iter().map(|stat| {
        let name = format!("envoy_{}", stat.name.replace(['.', '-'], "_"));
        let (kind, metric) = match stat.counter {
            true => (MetricType::COUNTER, counter(stat.value)),
            false => (MetricType::GAUGE, gauge(stat.value as f64)),
        };
        family(&name, &format!("{} of /stats.", stat.name), kind, vec![metric])
    });
    let left = admin.shared.identity.seconds_left();
    let expiry = left.map(|seconds| {
        let help = "Seconds until the workload's certificate ends; negative after its end.";
        let metric = gauge(seconds as f64);
        family("istio_agent_cert_expiry_seconds", help, MetricType::GAUGE, vec![metric])
    });
    let secrets = &admin.shared.secrets;
    let roots = secrets.roots.trust().map(|roots| {
        let help = "Roots of the mesh that this proxy believes, and the SHA-256 of the one that signs.";
        let mut metric = gauge(roots.roots().len() as f64);
        metric.set_label(vec![pair("signing", roots.first())]);
        family("osier_mesh_roots", help, MetricType::GAUGE, vec![metric])
    });
    let current = left.map(|_| {
        let help =
            "1 where the workload's certificate is of the root that signs now, 0 where it is of another.";
        let metric = gauge(f64::from(u8::from(secrets.is_of_first_root())));
        family("osier_certificate_of_signing_root", help, MetricType::GAUGE, vec![metric])
    });
    envoy.chain(expiry).chain(roots).chain(current).chain(server_info::process_families(admin)).collect()
}
