//! A hundred thousand invented hosts and addresses cost next to nothing, and what works keeps working.
//!
//! A process of its own: it looks at its own memory, in which the control plane of the test is counted too.

#![allow(clippy::unwrap_used)] // Helpers of a test: a failure is the test's.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use osier_proto::schema::{ControlPlaneIdentity, FEATURE_ON_DEMAND};
use osier_proto::transport::{self, Handler, Link};
use osier_proto::types::discovery::{DeltaDiscoveryResponse, Resource};
use osier_proto::types::{self, listener::Listener, route::RouteConfiguration};
use osier_proto::xds::server::{Request, Response};
use osier_proto::{Any, json};
use osier_proxy::bootstrap::{Bootstrap, Node, XdsTarget};
use osier_proxy::config::listener::NetworkAction;
use osier_proxy::config::route::VirtualHosts;
use osier_proxy::config::snapshot::{Clusters, SharedSnapshot};
use osier_proxy::on_demand::{Answer, HostLookup, HostTable, Limits, ListenerLookup, ListenerTable};
use osier_proxy::xds::{Mode, Options, Sidecar, start};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;

const NAMES: u32 = 100_000;
const ALLOWED: u64 = 2 << 20;
/// What the first of anything costs: buffers, tables at their bounds.
const WARM_UP: u32 = 200;

/// Knows one HTTP port, and no host.
struct Pilot {
    listener: Any,
    routes: Any,
}

impl Handler for Pilot {
    async fn serve(&self, mut link: Link) -> Result<(), Status> {
        let identity = ControlPlaneIdentity {
            name: "test".into(),
            features: vec![FEATURE_ON_DEMAND.into()],
            ..Default::default()
        };
        let mut nonce = 0;
        while let Some(Request::Incremental(request)) = link.request().await? {
            if request.resource_names_subscribe.is_empty() {
                continue;
            }
            nonce += 1;
            let mut response = DeltaDiscoveryResponse {
                type_url: request.type_url,
                nonce: nonce.to_string(),
                control_plane: Some(identity.to_control_plane()),
                ..Default::default()
            };
            for name in request.resource_names_subscribe {
                let body = match (response.type_url.as_str(), name.as_str()) {
                    (types::LISTENER, "0.0.0.0_80") => &self.listener,
                    (types::ROUTE_CONFIGURATION, "80") => &self.routes,
                    _ => {
                        response.removed_resources.push(name);
                        continue;
                    }
                };
                let (version, resource) = ("1".into(), Some(body.clone()));
                response.resources.push(Resource { name, version, resource, ..Default::default() });
            }
            if !link.send(Response::Incremental(response)).await {
                break;
            }
        }
        Ok(())
    }
}

fn pack<M: prost::Message + prost::Name + Default>(value: serde_json::Value) -> Any {
    Any::pack(&json::from_value::<M>(&value).unwrap())
}

async fn serve() -> XdsTarget {
    let source = serde_json::json!({"ads": {}, "resource_api_version": "V3"});
    let manager = serde_json::json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "h",
        "rds": {"route_config_name": "80", "config_source": source},
        "http_filters": [{"name": "r", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
    });
    let pilot = Pilot {
        listener: pack::<Listener>(serde_json::json!({
            "name": "0.0.0.0_80",
            "bind_to_port": false,
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": 80}},
            "filter_chains": [{"filters": [{"name": "h", "typed_config": manager}]}],
        })),
        routes: pack::<RouteConfiguration>(
            serde_json::json!({"name": "80", "vhds": {"config_source": source}}),
        ),
    };
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let service = transport::service(pilot);
    tokio::spawn(
        transport::server().add_service(service).serve_with_incoming(TcpListenerStream::new(socket)),
    );
    XdsTarget::Tcp(address.ip().to_string(), address.port())
}

/// Resident memory of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// A number that no other `n` gives.
fn scramble(n: u32) -> u32 {
    n.wrapping_mul(2_654_435_761)
}

async fn invent(range: std::ops::Range<u32>, hosts: Arc<HostTable>, listeners: Arc<ListenerTable>) {
    const TOGETHER: u32 = 16;
    let tasks = (0..TOGETHER).map(|lane| {
        let (hosts, listeners) = (hosts.clone(), listeners.clone());
        let range = range.clone();
        tokio::spawn(async move {
            for n in range.filter(|n| n % TOGETHER == lane) {
                if n % 2 == 0 {
                    let host = format!("{:08x}.random.example.com", scramble(n));
                    match hosts.get(&host, false) {
                        HostLookup::Wait(wait) => assert!(matches!(wait.answer().await, Answer::Absent)),
                        other => panic!("{other:?}"),
                    }
                } else {
                    let address = SocketAddr::new(Ipv4Addr::from(scramble(n)).into(), 80);
                    match listeners.get(address) {
                        // The wildcard takes it once the exact address is known to be absent.
                        ListenerLookup::Wait(wait) => {
                            assert!(matches!(wait.answer().await, Answer::Known(_)))
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn a_hundred_thousand_names_cost_at_most_two_mebibytes() {
    let target = serve().await;
    let snapshot = SharedSnapshot::default();
    let limits = Limits { patience: Duration::from_secs(60), ..Limits::default() };
    let _xds = start(Options {
        secrets: Default::default(),
        bootstrap: Bootstrap::for_workload(
            Node { id: "sidecar~10.0.0.1~a.b~c".into(), ..Node::default() },
            target,
            None,
        ),
        clusters: Arc::<Clusters>::default(),
        counters: Arc::default(),
        snapshot: snapshot.clone(),
        resolver: None,
        directory: None,
        sockets: None,
        mode: Mode::OnDemand(Sidecar { listeners: vec!["virtualInbound".into()], limits, state_file: None }),
    })
    .unwrap();
    let listeners = loop {
        match &snapshot.load().on_demand {
            Some(table) => break table.clone(),
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let ListenerLookup::Wait(wait) = listeners.get("10.0.0.1:80".parse().unwrap()) else { panic!() };
    let Answer::Known(entry) = wait.answer().await else { panic!("the port is known") };
    let listener = entry.current().unwrap();
    let NetworkAction::Http(manager) = &listener.chains[0].action else { panic!() };
    let VirtualHosts::OnDemand(hosts) = &manager.routes.as_ref().unwrap().hosts else { panic!() };

    invent(0..WARM_UP, hosts.clone(), listeners.clone()).await;
    let before = resident();
    invent(WARM_UP..NAMES, hosts.clone(), listeners.clone()).await;
    let grown = resident().saturating_sub(before);
    println!("{NAMES} names: {} KiB", grown / 1024);
    assert!(grown <= ALLOWED, "{} KiB", grown / 1024);
    assert!(matches!(
        listeners.get("10.0.0.1:80".parse().unwrap()),
        ListenerLookup::Known(_) | ListenerLookup::Wait(_)
    ));
    assert!(entry.current().is_some(), "what exists was not pushed out");
}
