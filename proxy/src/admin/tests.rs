//! Pages over a running process's parts.

use std::time::Duration;

use osier_core::drain::Drain;

use super::*;
use crate::bootstrap::{Bootstrap, Node as BootstrapNode, XdsTarget};
use crate::config::cluster::{Cluster, ClusterSpec, Discovery};
use crate::config::endpoint::{EndpointSet, EndpointSpec};
use crate::config::listener::{Direction, Listener};
use crate::config::snapshot::Snapshot;
use crate::listener::arrival;
use crate::worker::Worker;
use crate::xds::{self, Mode, Options};
use osier_core::logging::Levels;

/// The logging of a test process can be started once.
fn logging() -> &'static Arc<Logging> {
    static LOGGING: std::sync::LazyLock<Arc<Logging>> = std::sync::LazyLock::new(|| {
        Arc::new(Logging::start(crate::program::LOG, Levels::default(), false).expect("first"))
    });
    &LOGGING
}

/// An admin over a cluster `web` with one endpoint and an inbound listener `in`; the control plane never answers.
pub(crate) fn admin() -> (Arc<Admin>, mpsc::Receiver<Order>) {
    let shared = Arc::new(Shared { drain: Drain::new(), ..Shared::default() });
    let cluster = Cluster::new(ClusterSpec::plain("web", Discovery::Static), None);
    let endpoints = [("10.0.0.1:80".parse().expect("address"), EndpointSpec::default())];
    let set = EndpointSet::build(endpoints, &cluster.live, cluster.spec.set_settings(1));
    cluster.set_endpoints(Arc::new(set));
    shared.clusters.handle("web").publish(cluster);
    let worker = Worker::here(shared.clone());
    let acceptors = Arc::new(Acceptors::new(&[worker], arrival::serve));
    let address = "127.0.0.1:0".parse().expect("address");
    let listener = Listener { direction: Direction::Inbound, ..Listener::plain("in", address) };
    shared.snapshot.publish(Snapshot::new([Arc::new(listener)]));
    assert!(acceptors.apply(&shared.snapshot.load()).is_empty());
    let node = BootstrapNode { id: "sidecar~1".into(), cluster: "web".into(), ..BootstrapNode::default() };
    let options = Options {
        secrets: Default::default(),
        bootstrap: Bootstrap::for_workload(node.clone(), XdsTarget::Unix("/nonexistent".into()), None),
        clusters: Arc::default(),
        counters: Arc::default(),
        snapshot: Arc::default(),
        resolver: None,
        mode: Mode::All,
        directory: None,
        sockets: None,
    };
    let (orders, ordered) = mpsc::channel(4);
    let admin = Admin {
        shared,
        acceptors,
        xds: xds::start(options).expect("xDS"),
        readiness: Readiness::default(),
        logging: logging().clone(),
        orders,
        node,
        static_clusters: HashSet::new(),
        started: (Instant::now(), SystemTime::now()),
        concurrency: 1,
        baseline: Mutex::default(),
        failed: Mutex::default(),
    };
    (Arc::new(admin), ordered)
}

async fn ask(admin: &Admin, method: Method, target: &str) -> (u16, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let query = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = query.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let reply = admin.answer(Request { method, path: path.to_owned(), query, ..Request::default() }).await;
    (reply.status.as_u16(), String::from_utf8(reply.body.to_vec()).expect("text"))
}

async fn get(admin: &Admin, target: &str) -> (u16, String) {
    ask(admin, Method::GET, target).await
}

async fn post(admin: &Admin, target: &str) -> (u16, String) {
    ask(admin, Method::POST, target).await
}

#[tokio::test]
async fn pages_that_change_something_need_post_and_unknown_ones_are_named() {
    let (admin, mut orders) = admin();
    for (path, changes, _) in PAGES {
        if changes {
            let (status, text) = get(&admin, path).await;
            assert_eq!((status, text.as_str()), (405, "Method GET not allowed, POST required."), "{path}");
        } else if path != "/ready" {
            assert_eq!(get(&admin, path).await.0, 200, "{path}");
        }
    }
    assert!(orders.try_recv().is_err());
    let (status, text) = get(&admin, "/nothing").await;
    assert_eq!(status, 404);
    assert!(text.contains("no such page: /nothing") && text.contains("/quitquitquit (POST)"), "{text}");
}

#[tokio::test]
async fn ready_says_which_state() {
    let (admin, _orders) = admin();
    let pending = admin.readiness.wait_for("configuration");
    assert_eq!(get(&admin, "/ready").await, (503, "PRE_INITIALIZING\n".to_owned()));
    drop(pending);
    assert_eq!(get(&admin, "/ready").await, (200, "LIVE\n".to_owned()));
    post(&admin, "/healthcheck/fail").await;
    post(&admin, "/healthcheck/fail").await;
    assert_eq!(get(&admin, "/ready").await.0, 503);
    post(&admin, "/healthcheck/ok").await;
    assert_eq!(get(&admin, "/ready").await.0, 200);
    let probe = OnePage::readiness(admin.clone());
    let request = |path: &str| Request { path: path.to_owned(), ..Request::default() };
    assert_eq!(probe.answer(request("/healthz/ready")).await.status, 200);
    assert_eq!(probe.answer(request("/stats")).await.status, 404, "the probe's port shows nothing else");
    admin.shared.drain.advance(Phase::DrainingInbound);
    assert_eq!(get(&admin, "/ready").await, (503, "DRAINING\n".to_owned()));
    assert_eq!(probe.answer(request("/healthz/ready")).await.status, 503);
}

#[tokio::test]
async fn clusters_and_listeners_have_envoys_shape() {
    let (admin, _orders) = admin();
    let (_, text) = get(&admin, "/clusters").await;
    for line in [
        "web::observability_name::web\n",
        "web::default_priority::max_connections::",
        "web::added_via_api::true\n",
        "web::10.0.0.1:80::cx_active::0\n",
        "web::10.0.0.1:80::health_flags::healthy\n",
        "web::10.0.0.1:80::weight::1\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let (_, text) = get(&admin, "/clusters?format=json").await;
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let host = &value["cluster_statuses"][0]["host_statuses"][0];
    assert_eq!(
        host["address"]["socket_address"],
        serde_json::json!({"address": "10.0.0.1", "port_value": 80})
    );
    assert_eq!(host["health_status"]["eds_health_status"], "HEALTHY");
    let (_, text) = get(&admin, "/listeners?format=json").await;
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let listener = &value["listener_statuses"][0];
    assert_eq!(listener["name"], "in");
    assert_ne!(listener["local_address"]["socket_address"]["port_value"], 0, "the port that was chosen");
    assert!(get(&admin, "/listeners").await.1.starts_with("in::127.0.0.1:"));
}

#[tokio::test]
async fn stats_are_filtered_formatted_and_reset() {
    let (admin, _orders) = admin();
    let counters =
        &admin.shared.clusters.get("web").expect("web").current.load_full().expect("web").live.counters;
    counters.connections_opened.store(5, std::sync::atomic::Ordering::Relaxed);
    let (_, text) = get(&admin, "/stats?filter=^cluster.web.upstream_cx&usedonly").await;
    assert_eq!(text, "cluster.web.upstream_cx_total: 5\n");
    let (_, text) = get(&admin, "/stats?filter=web.upstream_cx_total&format=json").await;
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["stats"][0], serde_json::json!({"name": "cluster.web.upstream_cx_total", "value": 5}));
    assert_eq!(get(&admin, "/stats?filter=(").await.0, 400);
    assert_eq!(get(&admin, "/stats?format=html").await.0, 400);
    post(&admin, "/reset_counters").await;
    counters.connections_opened.store(7, std::sync::atomic::Ordering::Relaxed);
    let (_, text) = get(&admin, "/stats?filter=web.upstream_cx_total").await;
    assert_eq!(text, "cluster.web.upstream_cx_total: 2\n");
    let (_, text) = get(&admin, "/stats/prometheus").await;
    for line in [
        "envoy_server_concurrency 1\n",
        "istio_build{component=\"proxy\"",
        "process_cpu_seconds_total ",
        "# TYPE envoy_server_live gauge\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!text.contains("cluster_web"), "figures that grow with the mesh are not scraped");
}

#[tokio::test]
async fn draining_and_quitting() {
    let (admin, mut orders) = admin();
    assert_eq!(post(&admin, "/drain_listeners?skip_exit").await.0, 400);
    assert_eq!(post(&admin, "/drain_listeners?graceful&inboundonly&skip_exit").await.0, 200);
    assert_eq!(admin.shared.drain.phase(), Phase::DrainingInbound);
    assert!(orders.try_recv().is_err());
    assert_eq!(admin.acceptors.addresses().len(), 1, "a graceful drain goes on accepting");
    post(&admin, "/drain_listeners?graceful").await;
    assert_eq!(orders.try_recv(), Ok(Order::Drain { inbound_only: false }));
    post(&admin, "/drain_listeners?inboundonly").await;
    assert!(admin.acceptors.addresses().is_empty());
    assert_eq!(post(&admin, "/quitquitquit").await, (200, "OK\n".to_owned()));
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), orders.recv()).await, Ok(Some(Order::Quit)));
}

#[tokio::test]
async fn levels_are_shown_and_changed() {
    let (admin, _orders) = admin();
    let (status, text) = post(&admin, "/logging?paths=http:debug,xds:off").await;
    assert_eq!(status, 200);
    assert!(text.starts_with("active loggers:\n") && text.contains("  http     : debug\n"), "{text}");
    assert!(text.contains("  xds      : off\n") && text.contains("  listener : info\n"), "{text}");
    assert!(post(&admin, "/logging?tcp=trace").await.1.contains("  tcp      : trace\n"));
    for (query, message) in [
        ("level=loud", "error: `loud` is not a log level"),
        ("nothing=debug", "error: there is no part `nothing`"),
        ("paths=http", "error: `http` is not part:level"),
    ] {
        let (status, text) = post(&admin, &format!("/logging?{query}")).await;
        assert_eq!(status, 400);
        assert!(text.starts_with(message), "{text}");
    }
    let (_, text) = post(&admin, "/logging?level=info").await;
    assert!(text.contains("  http     : info\n"), "a level for all ends the exceptions: {text}");
}

#[tokio::test]
async fn server_info_says_who_and_since_when() {
    let (admin, _orders) = admin();
    let (_, text) = get(&admin, "/server_info").await;
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((value["state"].as_str(), value["node"]["id"].as_str()), (Some("LIVE"), Some("sidecar~1")));
    let (_, text) = get(&admin, "/memory").await;
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(value["total_physical_bytes"].as_str().expect("text").parse::<u64>().expect("number") > 1 << 20);
}
