//! The monitoring port: metrics, readiness, and what the control plane knows and has told to whom.
//!
//! Paths and keys are istiod's where istiod has them; what is ours alone is added beside.
//!
//! What the pages below `/debug/` show is of all namespaces, and who asks proves nothing here: they are for loopback alone, where a
//! forwarded port arrives, which only they get to whom the API server grants it. Metrics and readiness are for everybody.

mod sync;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use osier_core::readiness::Readiness;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::model::{MutualTls, TlsMode};
use crate::server::Peer;
use crate::snapshot::{MeshSnapshot, WorkloadMutualTls};
use crate::xds::stream::Shared;

/// What the pages show.
#[derive(Debug, Clone)]
pub struct Pages {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Connections and the snapshot in force.
    pub shared: Arc<Shared>,
    /// The mesh as it is known by now. What is in force can be older: a pod that no service has changes nothing that is sent.
    pub known: watch::Receiver<Arc<MeshSnapshot>>,
    /// What was read and what was refused.
    pub config: Arc<dyn ConfigView>,
    /// What is awaited before anything is served.
    pub readiness: Readiness,
}

/// Where the page about configuration gets its content from.
pub trait ConfigView: Send + Sync + std::fmt::Debug {
    /// Resources in force and reports, as JSON.
    fn show(&self) -> Value;
}

const INDEX: &str = "\
/metrics         counters in Prometheus' text format
/ready           200 as soon as anything is served
/version         which version this is
/debug/…         from loopback alone; `kubectl port-forward` comes from there
/debug/syncz     clients, and how far each one is
/debug/configz   resources in force, and what was refused
/debug/registryz services and their endpoints
/debug/workloadz workloads, and what mutual TLS is demanded of their clients
";

/// All pages.
pub fn router(pages: Pages) -> Router {
    let of_all_namespaces = Router::new()
        .route("/debug/syncz", get(syncz))
        .route("/debug/configz", get(configz))
        .route("/debug/registryz", get(registryz))
        .route("/debug/workloadz", get(workloadz))
        .layer(middleware::from_fn(from_loopback_alone));
    Router::new()
        .route("/", get(async || INDEX))
        .route("/debug", get(async || INDEX))
        .route("/metrics", get(metrics))
        .route("/ready", get(ready))
        .route("/version", get(async || Json(json!({ "version": env!("CARGO_PKG_VERSION") }))))
        .merge(of_all_namespaces)
        .with_state(pages)
}

/// Lets through who is on this machine, or behind a port that the API server forwards. Not the whole of 127.0.0.0/8: from another
/// address of it a sidecar speaks, on behalf of anybody.
async fn from_loopback_alone(request: axum::extract::Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().map(|Peer(address)| address.ip().to_canonical());
    if peer.is_some_and(|ip| ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST) {
        return next.run(request).await;
    }
    let text = "these pages are shown on loopback alone: use `osier`, or kubectl port-forward\n";
    (StatusCode::FORBIDDEN, text).into_response()
}

async fn metrics(State(pages): State<Pages>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], pages.metrics.render()).into_response()
}

/// xDS is served once the source was read.
async fn ready(State(pages): State<Pages>) -> (StatusCode, String) {
    match pages.readiness.awaited().as_slice() {
        [] => (StatusCode::OK, "ready\n".to_owned()),
        awaited => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}\n", awaited.join(", "))),
    }
}

async fn syncz(State(pages): State<Pages>) -> Json<Value> {
    let clients = pages.shared.connected.all();
    Json(Value::Array(clients.iter().map(|c| sync::page(c)).collect()))
}

async fn configz(State(pages): State<Pages>) -> Json<Value> {
    Json(pages.config.show())
}

async fn workloadz(State(pages): State<Pages>) -> Json<Value> {
    let snapshot = pages.known.borrow().clone();
    let mode = |mode: MutualTls| match mode {
        MutualTls::Disable => "DISABLE",
        MutualTls::Permissive => "PERMISSIVE",
        MutualTls::Strict => "STRICT",
    };
    let workloads = snapshot.workloads.iter().map(|workload| {
        let WorkloadMutualTls { mode: elsewhere, policy, own, ports } = snapshot.mutual_tls_of(workload);
        let ports: serde_json::Map<String, Value> =
            ports.into_iter().map(|(port, at)| (port.to_string(), mode(at).into())).collect();
        json!({
            "namespace": workload.namespace(),
            "name": workload.key.name,
            "workload": workload.names.workload,
            "service_account": workload.service_account,
            "addresses": workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "takes_mutual_tls": workload.tls == TlsMode::Istio,
            "mode": mode(elsewhere),
            "policy": policy.map(|key| format!("{}/{}", key.namespace, key.name)),
            "own_policy": own,
            "port_modes": ports,
        })
    });
    let workloads: Vec<Value> = workloads.collect();
    Json(json!({ "root_namespace": snapshot.mesh.root_namespace, "workloads": workloads }))
}

async fn registryz(State(pages): State<Pages>) -> Json<Value> {
    let snapshot = pages.shared.fanout.snapshot();
    let services = snapshot.services.iter().map(|service| {
        let ports = service.ports.iter().map(|port| {
            let endpoints = snapshot.endpoints(&service.key, port.number);
            let endpoints: Vec<Value> = endpoints
                .iter()
                .flat_map(|e| e.iter())
                .map(|e| {
                    json!({
                        "address": e.address.to_string(),
                        "port": e.port,
                        "health": format!("{:?}", e.health),
                        "labels": e.labels,
                    })
                })
                .collect();
            json!({
                "number": port.number,
                "name": port.name,
                "protocol": format!("{:?}", port.protocol),
                "endpoints": endpoints,
            })
        });
        json!({
            "host": service.host().as_str(),
            "namespace": service.key.namespace,
            "kind": format!("{:?}", service.kind),
            "addresses": service.addresses.iter().map(|a| a.addr().to_string()).collect::<Vec<_>>(),
            "ports": ports.collect::<Vec<_>>(),
        })
    });
    Json(Value::Array(services.collect()))
}

#[cfg(test)]
mod tests {
    use axum::Extension;
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn what_is_of_all_namespaces_is_shown_on_loopback_alone() {
        let pages = || {
            let page = Router::new().route("/page", get(async || "everything"));
            page.layer(middleware::from_fn(from_loopback_alone))
        };
        for (peer, status) in [
            (Some("127.0.0.1:1"), 200),
            (Some("[::1]:1"), 200),
            (Some("[::ffff:127.0.0.1]:1"), 200),
            (Some("127.0.0.6:1"), 403),
            (Some("10.1.2.3:1"), 403),
            (Some("[fd00::1]:1"), 403),
            (None, 403),
        ] {
            let pages = match peer {
                Some(peer) => pages().layer(Extension(Peer(peer.parse().expect("an address")))),
                None => pages(),
            };
            let request = Request::get("/page").body(Body::empty()).expect("a request");
            let answer = pages.oneshot(request).await.expect("an answer");
            assert_eq!(answer.status(), status, "{peer:?}");
        }
    }
}
