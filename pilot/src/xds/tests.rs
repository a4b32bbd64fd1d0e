//! Clients over real sockets: what arrives, in which order, and that nothing refers to what the client doesn't have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use osier_proto::schema::{self, ControlPlaneIdentity};
use osier_proto::types::core::Node;
use osier_proto::types::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use osier_proto::types::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use osier_proto::types::nds::NameTable;
use osier_proto::types::route::{RouteConfiguration, VirtualHost};
use osier_proto::types::{
    CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, NAME_TABLE, ROUTE_CONFIGURATION, VIRTUAL_HOST,
};
use osier_proto::{Any, transport};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::cache::Cache;
use super::identity::{Caller, Denied, Identity, Pod};
use super::node::tests::node;
use super::registration::Leases;
use super::service::Discovery;
use super::status::Connected;
use super::stream::Shared;
use crate::r#gen::fixture::{Fixture, endpoint, key, split};
use crate::r#gen::route::clusters_of;
use crate::metrics::{Kind, Metrics};
use crate::model::{Kind as RuleKind, Protocol, ResourceKey};
use crate::push::PushRequest;
use crate::push::fanout::Fanout;
use crate::snapshot::{Audience, Change, MeshSnapshot, PortEndpoints, ServiceEndpoints};
use crate::store::writer::{Parts, Writer};

/// Long enough for a machine that is busy with builds.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time in which something that must not come would have come.
const SILENCE: Duration = Duration::from_millis(300);

struct Pilot {
    shared: Arc<Shared>,
    address: SocketAddr,
    client: AggregatedDiscoveryServiceClient<Channel>,
}

impl Pilot {
    async fn start(snapshot: MeshSnapshot) -> Self {
        Self::with_max_age(snapshot, None).await
    }

    async fn with_max_age(snapshot: MeshSnapshot, max_age: Option<Duration>) -> Self {
        let metrics = Arc::new(Metrics::new());
        let Parts { writer, registrations, .. } = Writer::new("cluster.local".into());
        tokio::spawn(writer.run());
        let shared = Arc::new(Shared {
            fanout: Fanout::new(metrics.clone()),
            cache: Cache::new(metrics.clone()),
            connected: Connected::default(),
            callers: Default::default(),
            leases: Leases::new(registrations, metrics.clone(), None),
            pushes: Semaphore::new(10),
            metrics,
            max_age,
            shutdown: CancellationToken::new(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = transport::service(Discovery { shared: shared.clone(), authenticate: None });
        tokio::spawn(
            transport::server().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let pilot = Self { shared, address, client: AggregatedDiscoveryServiceClient::new(channel) };
        pilot.publish(snapshot, Change::everything());
        pilot
    }

    fn publish(&self, snapshot: MeshSnapshot, change: Change) {
        self.shared.fanout.publish(PushRequest::new(Arc::new(snapshot), change));
    }

    /// A client behind a wire that can be cut.
    async fn delta_over_wire(&self, node: Node) -> (Delta, JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = format!("http://{}", listener.local_addr().unwrap());
        let address = self.address;
        let relay = tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
        let channel = Channel::from_shared(wire).unwrap().connect().await.unwrap();
        let client = AggregatedDiscoveryServiceClient::new(channel);
        (Pilot { client, shared: self.shared.clone(), address }.delta(node).await, relay)
    }

    async fn delta(&self, node: Node) -> Delta {
        let (requests, receiver) = mpsc::channel(64);
        // The server answers with headers at once, so the first request may follow later.
        let responses = self
            .client
            .clone()
            .delta_aggregated_resources(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Delta { requests, responses, node: Some(node), version: BTreeMap::new() }
    }
}

/// A delta client that acknowledges whatever it gets.
struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
    version: BTreeMap<String, String>,
}

impl Delta {
    async fn subscribe(&mut self, type_url: &str, names: &[&str]) {
        self.change(type_url, names, &[]).await;
    }

    async fn change(&mut self, type_url: &str, add: &[&str], remove: &[&str]) {
        let texts = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        let request = DeltaDiscoveryRequest {
            node: self.node.take(),
            type_url: type_url.into(),
            resource_names_subscribe: texts(add),
            resource_names_unsubscribe: texts(remove),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn receive(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let response =
            tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("a response in time")?;
        let response = response.expect("an open stream");
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        self.requests.send(ack).await.unwrap();
        for resource in &response.resources {
            self.version.insert(resource.name.clone(), resource.version.clone());
        }
        Ok(response)
    }

    async fn assert_silent(&mut self) {
        let more = tokio::time::timeout(SILENCE, self.responses.message()).await;
        assert!(more.is_err(), "{more:?}");
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|r| r.name.as_str()).collect()
}

fn mesh() -> Fixture {
    Fixture::default()
        .service("reviews", Some("10.96.0.1"), &[(80, Protocol::Http)])
        .endpoints("reviews", 80, &[("10.1.0.1", 8080, "v1"), ("10.1.0.2", 8080, "v2")])
        .subsets("reviews", &["v1", "v2"])
        .service("redis", Some("10.96.0.2"), &[(6379, Protocol::Tcp)])
        .endpoints("redis", 6379, &[("10.1.0.3", 6379, "v1")])
}

fn envoy() -> Node {
    node("sidecar~10.9.0.1~client.default~default.svc.cluster.local", &[])
}

fn osier() -> Node {
    let mut n = node(
        "sidecar~10.9.0.1~client.default~default.svc.cluster.local",
        &[(schema::VERSION_METADATA_KEY, "1")],
    );
    n.client_features.push(schema::FEATURE_ON_DEMAND.into());
    n
}

const REVIEWS: &str = "outbound|80||reviews.default.svc.cluster.local";
const REVIEWS_V1: &str = "outbound|80|v1|reviews.default.svc.cluster.local";
const REVIEWS_V2: &str = "outbound|80|v2|reviews.default.svc.cluster.local";

#[tokio::test]
async fn a_stream_that_is_old_is_asked_to_come_again() {
    let pilot = Pilot::with_max_age(mesh().build(), Some(Duration::from_millis(400))).await;
    let mut client = pilot.delta(envoy()).await;
    client.subscribe(CLUSTER, &["*"]).await;
    client.receive().await.expect("it is served until then");
    let ended = tokio::time::timeout(PATIENCE, client.responses.message()).await.expect("an end in time");
    let status = ended.expect_err("a stream that ends with a reason");
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("connect again"), "{}", status.message());
}

#[tokio::test]
async fn on_demand_clusters_and_endpoints_come_ahead_of_the_virtual_host() {
    let pilot =
        Pilot::start(mesh().rule("reviews", vec![split("reviews", &[("v1", 90), ("v2", 10)])]).build()).await;
    let mut client = pilot.delta(osier()).await;
    client.subscribe(VIRTUAL_HOST, &["80/reviews", "80/nobody.example.com", "81/reviews"]).await;
    let clusters = client.receive().await.unwrap();
    assert_eq!(clusters.type_url, CLUSTER);
    assert_eq!(BTreeSet::from_iter(names(&clusters)), ["PassthroughCluster", REVIEWS_V1, REVIEWS_V2].into());
    let identity = ControlPlaneIdentity::from_control_plane(clusters.control_plane.as_ref()).unwrap();
    assert!(identity.confirms(schema::FEATURE_ON_DEMAND));
    let endpoints = client.receive().await.unwrap();
    assert_eq!(endpoints.type_url, CLUSTER_LOAD_ASSIGNMENT);
    assert_eq!(BTreeSet::from_iter(names(&endpoints)), [REVIEWS_V1, REVIEWS_V2].into());
    let hosts = client.receive().await.unwrap();
    assert_eq!(hosts.type_url, VIRTUAL_HOST);
    assert_eq!(BTreeSet::from_iter(names(&hosts)), ["80/reviews", "80/nobody.example.com"].into());
    assert_eq!(hosts.removed_resources, ["81/reviews"], "absent is said, not kept silent");
    client.assert_silent().await;
}

#[tokio::test]
async fn on_demand_names_are_answered_one_by_one_and_kept_up_to_date() {
    let db = |ips: &[&str]| {
        let pods: Vec<_> = ips.iter().map(|ip| (*ip, 3306, "a")).collect();
        mesh().service("db", None, &[(3306, Protocol::Mysql)]).endpoints("db", 3306, &pods).build()
    };
    let pilot = Pilot::start(db(&["10.1.0.7"])).await;
    let mut client = pilot.delta(osier()).await;
    let addresses = |response: &DeltaDiscoveryResponse| {
        let one = |r: &Resource| {
            let table: NameTable = r.resource.as_ref().unwrap().unpack().unwrap();
            assert_eq!(table.table.keys().collect::<Vec<_>>(), [&r.name]);
            (r.name.clone(), table.table[&r.name].ips.join(" "))
        };
        response.resources.iter().map(one).collect::<BTreeMap<_, _>>()
    };
    client.subscribe(NAME_TABLE, &["db", "db.default.svc.cluster.local", "example.com"]).await;
    let first = client.receive().await.unwrap();
    assert_eq!(first.type_url, NAME_TABLE);
    let both =
        |ip: &str| [("db", ip), ("db.default.svc.cluster.local", ip)].map(|(n, ip)| (n.into(), ip.into()));
    assert_eq!(addresses(&first), BTreeMap::from(both("10.1.0.7")));
    assert_eq!(first.removed_resources, ["example.com"], "absent is said, not kept silent");
    // Endpoints are what a headless name stands for.
    let mut change = Change::default();
    change.endpoints.insert(key("db", "default"));
    change.endpoint_audience = Audience::Everybody;
    pilot.publish(db(&["10.1.0.8"]), change.clone());
    assert_eq!(addresses(&client.receive().await.unwrap()), BTreeMap::from(both("10.1.0.8")));
    // Those of others are not.
    change.endpoints = [key("reviews", "default")].into();
    pilot.publish(db(&["10.1.0.8"]), change);
    client.assert_silent().await;
    pilot.publish(mesh().build(), Change::everything());
    let gone = client.receive().await.unwrap();
    assert_eq!(BTreeSet::from_iter(gone.removed_resources), BTreeSet::from(both("").map(|(n, _)| n)));
}

#[tokio::test]
async fn who_asks_for_no_names_gets_the_whole_table() {
    let pilot = Pilot::start(mesh().build()).await;
    let mut client = pilot.delta(node("sidecar~10.9.0.1~a.default~default.svc.cluster.local", &[])).await;
    client.subscribe(NAME_TABLE, &[]).await;
    let table = client.receive().await.unwrap();
    assert_eq!(names(&table), [""]);
    let table: NameTable = table.resources[0].resource.as_ref().unwrap().unpack().unwrap();
    assert!(table.table.contains_key("reviews.default.svc.cluster.local"), "{table:?}");
}

#[tokio::test]
async fn on_demand_a_new_winner_is_sent_without_being_asked_for() {
    let pilot = Pilot::start(mesh().build()).await;
    let mut client = pilot.delta(osier()).await;
    client.subscribe(VIRTUAL_HOST, &["80/new.default"]).await;
    let mut winner = async || loop {
        let response = client.receive().await.unwrap();
        if response.type_url == VIRTUAL_HOST {
            let host: VirtualHost = response.resources[0].resource.as_ref().unwrap().unpack().unwrap();
            return host.name;
        }
    };
    assert_eq!(winner().await, "allow_any");
    pilot.publish(
        mesh().service("new", Some("10.96.0.9"), &[(80, Protocol::Http)]).build(),
        Change::everything(),
    );
    assert_eq!(winner().await, "new.default.svc.cluster.local:80");
    pilot.publish(mesh().build(), Change::everything());
    assert_eq!(winner().await, "allow_any");
}

#[tokio::test]
async fn on_demand_listeners_bring_their_clusters_and_route_configurations() {
    let pilot = Pilot::start(mesh().build()).await;
    let mut client = pilot.delta(osier()).await;
    client.subscribe(LISTENER, &["10.96.0.1_80", "0.0.0.0_80", "10.96.0.2_6379", "0.0.0.0_6379"]).await;
    let mut seen = Vec::new();
    let listeners = loop {
        let response = client.receive().await.unwrap();
        if response.type_url == LISTENER {
            break response;
        }
        seen.extend(names(&response).into_iter().map(|n| (response.type_url.clone(), n.to_string())));
    };
    assert_eq!(BTreeSet::from_iter(names(&listeners)), ["0.0.0.0_80", "10.96.0.2_6379"].into());
    let absent: BTreeSet<&str> = listeners.removed_resources.iter().map(String::as_str).collect();
    assert_eq!(absent, ["10.96.0.1_80", "0.0.0.0_6379"].into());
    let redis = "outbound|6379||redis.default.svc.cluster.local";
    for wanted in [(CLUSTER, redis), (CLUSTER_LOAD_ASSIGNMENT, redis), (CLUSTER, "PassthroughCluster")] {
        assert!(seen.contains(&(wanted.0.to_string(), wanted.1.to_string())), "{wanted:?} of {seen:?}");
    }
    // Route configurations go behind listeners, as in every push.
    let routes = client.receive().await.unwrap();
    assert_eq!((routes.type_url.as_str(), &names(&routes)[..]), (ROUTE_CONFIGURATION, &["80"][..]));
}

#[tokio::test]
async fn a_change_of_endpoints_sends_endpoints_and_nothing_else() {
    let before = mesh().build();
    let pilot = Pilot::start(before.clone()).await;
    let mut client = pilot.delta(envoy()).await;
    client.subscribe(CLUSTER, &["*"]).await;
    client.receive().await.unwrap();
    client.subscribe(CLUSTER_LOAD_ASSIGNMENT, &[REVIEWS, REVIEWS_V1, REVIEWS_V2]).await;
    client.receive().await.unwrap();
    client.subscribe(LISTENER, &["*"]).await;
    client.receive().await.unwrap();
    let misses = pilot.shared.metrics.cache_misses.get();

    let endpoints = vec![endpoint("10.1.0.1", 8080, "reviews", "v1")];
    let service = ServiceEndpoints { ports: vec![PortEndpoints { port: 80, endpoints: endpoints.into() }] };
    let mut after = before.clone();
    after.endpoints = Arc::new(before.endpoints.with([(key("reviews", "default"), Some(Arc::new(service)))]));
    let mut change = Change::default();
    change.endpoints.insert(key("reviews", "default"));
    change.endpoint_audience.add(&crate::model::Exports::Public);
    pilot.publish(after, change);
    let response = client.receive().await.unwrap();
    assert_eq!(response.type_url, CLUSTER_LOAD_ASSIGNMENT);
    assert_eq!(BTreeSet::from_iter(names(&response)), [REVIEWS, REVIEWS_V2].into(), "v1 is as it was");
    client.assert_silent().await;
    assert_eq!(pilot.shared.metrics.cache_misses.get() - misses, 3, "three load assignments were looked at");
}

#[tokio::test]
async fn a_change_of_a_rule_looks_only_at_what_rules_of_its_kind_make() {
    let before = mesh().build();
    let pilot = Pilot::start(before.clone()).await;
    let mut client = pilot.delta(envoy()).await;
    client.subscribe(CLUSTER, &["*"]).await;
    client.receive().await.unwrap();
    client.subscribe(CLUSTER_LOAD_ASSIGNMENT, &[REVIEWS, REVIEWS_V1, REVIEWS_V2]).await;
    client.receive().await.unwrap();
    client.subscribe(ROUTE_CONFIGURATION, &["80"]).await;
    client.receive().await.unwrap();
    let looked_at = || {
        let metrics = &pilot.shared.metrics;
        metrics.cache_misses.get() + metrics.cache_hits.get()
    };
    let rule = |kind| {
        let mut change = Change::default();
        change.rules.insert(ResourceKey::new(kind, "default", "reviews"));
        change.audience.add(&crate::model::Exports::Public);
        change
    };

    let known = looked_at();
    let after = mesh().rule("reviews", vec![split("reviews", &[("v1", 1)])]).build();
    let routed = MeshSnapshot { routes: after.routes, ..before.clone() };
    pilot.publish(routed.clone(), rule(RuleKind::VirtualService));
    assert_eq!(names(&client.receive().await.unwrap()), ["80"]);
    client.assert_silent().await;
    assert_eq!(looked_at() - known, 1, "one route configuration");

    let known = looked_at();
    let after = mesh().subsets("redis", &["v3"]).build();
    pilot.publish(MeshSnapshot { policies: after.policies, ..routed }, rule(RuleKind::DestinationRule));
    let made = client.receive().await.unwrap();
    assert!(names(&made).contains(&"outbound|6379|v3|redis.default.svc.cluster.local"));
    client.assert_silent().await;
    assert!(looked_at() - known > 5, "everything");
}

#[tokio::test]
async fn clients_of_one_namespace_share_what_is_encoded() {
    let pilot = Pilot::start(mesh().build()).await;
    let mut first = pilot.delta(envoy()).await;
    first.subscribe(CLUSTER_LOAD_ASSIGNMENT, &[REVIEWS]).await;
    first.receive().await.unwrap();
    let misses = pilot.shared.metrics.cache_misses.get();
    let mut second = pilot.delta(node("sidecar~10.9.0.2~other.default~default.svc.cluster.local", &[])).await;
    second.subscribe(CLUSTER_LOAD_ASSIGNMENT, &[REVIEWS]).await;
    second.receive().await.unwrap();
    assert_eq!(first.version, second.version);
    assert_eq!(pilot.shared.metrics.cache_misses.get(), misses);
}

#[tokio::test]
async fn a_client_that_comes_back_gets_only_what_it_lacks() {
    let pilot = Pilot::start(mesh().build()).await;
    let mut client = pilot.delta(envoy()).await;
    client.subscribe(CLUSTER, &["*"]).await;
    client.receive().await.unwrap();
    let mut held = client.version.clone();
    drop(client);
    held.insert("outbound|80||gone.default.svc.cluster.local".into(), "0123456789abcdef".into());
    held.remove(REVIEWS_V1);
    let mut again = pilot.delta(envoy()).await;
    let request = DeltaDiscoveryRequest {
        node: again.node.take(),
        type_url: CLUSTER.into(),
        resource_names_subscribe: vec!["*".into()],
        initial_resource_versions: held.into_iter().collect(),
        ..Default::default()
    };
    again.requests.send(request).await.unwrap();
    let response = again.receive().await.unwrap();
    assert_eq!(names(&response), [REVIEWS_V1]);
    let removed = if response.removed_resources.is_empty() {
        again.receive().await.unwrap().removed_resources
    } else {
        response.removed_resources
    };
    assert_eq!(removed, ["outbound|80||gone.default.svc.cluster.local"]);
}

#[tokio::test]
async fn a_first_message_without_a_usable_node_ends_the_stream_with_a_reason() {
    let pilot = Pilot::start(mesh().build()).await;
    for (bad, says) in [
        (Node::default(), "node.id"),
        (node("x", &[]), "is not TYPE~IP"),
        (node("waypoint~10.0.0.1~a.b~c", &[]), "`waypoint`"),
    ] {
        let mut client = pilot.delta(bad).await;
        client.subscribe(CLUSTER, &["*"]).await;
        let status = client.receive().await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(says), "{}", status.message());
    }
}

#[tokio::test]
async fn a_refusal_is_counted_and_shown_and_not_answered() {
    let pilot = Pilot::start(mesh().build()).await;
    let mut client = pilot.delta(envoy()).await;
    client.subscribe(CLUSTER, &["*"]).await;
    let response = client.responses.message().await.unwrap().unwrap();
    let nack = DeltaDiscoveryRequest {
        type_url: CLUSTER.into(),
        response_nonce: response.nonce,
        error_detail: Some(osier_proto::types::rpc::Status {
            code: 13,
            message: "field `foo` is not supported".into(),
            details: Vec::new(),
        }),
        ..Default::default()
    };
    client.requests.send(nack).await.unwrap();
    client.assert_silent().await;
    assert_eq!(pilot.shared.metrics.rejects.of(Kind::Cds).get(), 1);
    let seen = pilot.shared.connected.all();
    let status = seen[0].status(crate::r#gen::key::ResourceType::Cluster).unwrap();
    assert_eq!(status.refusal.unwrap().message, "field `foo` is not supported");
}

#[tokio::test]
async fn a_workload_leaves_with_the_end_of_its_stream_and_not_with_a_break() {
    let pilot = Pilot::start(mesh().build()).await;
    let registered = |name: &str| {
        let json = format!(
            r#"{{"name":"{name}","namespace":"default","service":"web","address":"127.64.0.1","appPort":80}}"#
        );
        node("sidecar~127.64.0.1~web.default~x", &[(osier_core::registration::METADATA_KEY, &json)])
    };
    let metrics = &pilot.shared.metrics;
    let until = async |what: &str, done: &dyn Fn() -> bool| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !done() {
            assert!(tokio::time::Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let mut polite = pilot.delta(registered("polite")).await;
    polite.subscribe(LISTENER, &["*"]).await;
    polite.receive().await.unwrap();
    assert_eq!((metrics.registered.get(), metrics.unregistered.get()), (1, 0));
    let Delta { requests, mut responses, .. } = polite;
    drop(requests);
    assert!(tokio::time::timeout(PATIENCE, responses.message()).await.unwrap().unwrap().is_none());
    until("the polite one is gone", &|| metrics.unregistered.get() == 1).await;

    let (mut broken, wire) = pilot.delta_over_wire(registered("broken")).await;
    broken.subscribe(LISTENER, &["*"]).await;
    broken.receive().await.unwrap();
    wire.abort();
    until("its stream is gone", &|| metrics.connected.get() == 0).await;
    tokio::time::sleep(SILENCE).await;
    assert_eq!((metrics.registered.get(), metrics.unregistered.get()), (2, 1), "ten seconds of grace");
}

#[tokio::test]
async fn state_of_the_world_clients_get_whole_sets() {
    let pilot = Pilot::start(mesh().build()).await;
    let (requests, receiver) = mpsc::channel(8);
    let first = DiscoveryRequest { node: Some(envoy()), type_url: CLUSTER.into(), ..Default::default() };
    requests.send(first).await.unwrap();
    let mut responses = pilot
        .client
        .clone()
        .stream_aggregated_resources(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    let mut receive = async || -> DiscoveryResponse {
        let response = tokio::time::timeout(PATIENCE, responses.message()).await.unwrap().unwrap().unwrap();
        let ack = DiscoveryRequest {
            type_url: response.type_url.clone(),
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        requests.send(ack).await.unwrap();
        response
    };
    let before = receive().await;
    pilot.publish(
        mesh().service("new", Some("10.96.0.9"), &[(80, Protocol::Http)]).build(),
        Change::everything(),
    );
    let after = receive().await;
    assert_eq!(after.resources.len(), before.resources.len() + 1);
    pilot.publish(Fixture::default().build(), Change::everything());
    let names: BTreeSet<String> = cluster_names(&receive().await.resources);
    assert!(!names.iter().any(|n| n.starts_with("outbound|")), "{names:?}");
}

fn cluster_names(resources: &[Any]) -> BTreeSet<String> {
    let name = |any: &Any| any.unpack::<osier_proto::types::cluster::Cluster>().unwrap().name;
    resources.iter().map(name).collect()
}

/// A mesh whose services, subsets and splits follow from a few numbers.
fn random_mesh(random: &mut StdRng) -> MeshSnapshot {
    let mut fixture = Fixture::default();
    for n in 0..4 {
        if random.random_bool(0.3) {
            continue;
        }
        let name = format!("s{n}");
        let ip = format!("10.96.1.{n}");
        fixture = fixture.service(&name, Some(&ip), &[(80, Protocol::Http)]).endpoints(
            &name,
            80,
            &[("10.1.0.1", 8080, "v1")],
        );
        let subsets: Vec<&str> = ["v1", "v2", "v3"].into_iter().filter(|_| random.random_bool(0.6)).collect();
        fixture = fixture.subsets(&name, &subsets);
        if !subsets.is_empty() && random.random_bool(0.8) {
            let weights: Vec<(&str, u32)> = subsets.iter().map(|s| (*s, random.random_range(1..9))).collect();
            fixture = fixture.rule(&name, vec![split(&name, &weights)]);
        }
    }
    fixture.build()
}

/// What a client holds.
#[derive(Default)]
struct Held {
    clusters: BTreeSet<String>,
    endpoints: BTreeSet<String>,
    /// Clusters that each route configuration or virtual host names.
    referred: BTreeMap<String, Vec<String>>,
}

impl Held {
    fn apply(&mut self, response: &DeltaDiscoveryResponse) {
        for resource in &response.resources {
            let any = resource.resource.as_ref().unwrap();
            let name = resource.name.clone();
            match response.type_url.as_str() {
                CLUSTER => drop(self.clusters.insert(name)),
                CLUSTER_LOAD_ASSIGNMENT => drop(self.endpoints.insert(name)),
                ROUTE_CONFIGURATION => {
                    let config: RouteConfiguration = any.unpack().unwrap();
                    self.referred.insert(name, config.virtual_hosts.iter().flat_map(clusters_of).collect());
                }
                VIRTUAL_HOST => drop(self.referred.insert(name, clusters_of(&any.unpack().unwrap()))),
                _ => {}
            }
        }
        for name in &response.removed_resources {
            match response.type_url.as_str() {
                CLUSTER => drop(self.clusters.remove(name)),
                CLUSTER_LOAD_ASSIGNMENT => drop(self.endpoints.remove(name)),
                _ => drop(self.referred.remove(name)),
            }
        }
    }

    fn check(&self, context: &str) {
        for (from, clusters) in &self.referred {
            for cluster in clusters {
                assert!(self.clusters.contains(cluster), "{context}: {from} refers to {cluster}");
            }
        }
    }
}

/// After every message, whatever changed: no route refers to a cluster that the client doesn't have.
#[tokio::test]
async fn no_route_ever_refers_to_an_unknown_cluster() {
    for (seed, demand) in (0..12).map(|seed| (seed, seed % 2 == 1)) {
        let mut random = StdRng::seed_from_u64(seed);
        let pilot = Pilot::start(random_mesh(&mut random)).await;
        let mut client = pilot.delta(if demand { osier() } else { envoy() }).await;
        let mut held = Held::default();
        if demand {
            client.subscribe(VIRTUAL_HOST, &["80/s0", "80/s1", "80/s2", "80/s3"]).await;
        } else {
            client.subscribe(CLUSTER, &["*"]).await;
            let response = client.receive().await.unwrap();
            held.apply(&response);
            client.subscribe(ROUTE_CONFIGURATION, &["80"]).await;
        }
        for step in 0..15 {
            let context = format!("seed {seed} step {step}");
            while let Ok(Ok(response)) =
                tokio::time::timeout(Duration::from_millis(60), client.receive_quietly()).await
            {
                // On demand the client keeps up to date what its routes name.
                if demand && response.type_url == CLUSTER {
                    let new: Vec<&str> =
                        names(&response).into_iter().filter(|n| !held.clusters.contains(*n)).collect();
                    if !new.is_empty() {
                        client.subscribe(CLUSTER, &new).await;
                    }
                }
                held.apply(&response);
                held.check(&context);
            }
            pilot.publish(random_mesh(&mut random), Change::everything());
        }
    }
}

impl Delta {
    /// As [`Delta::receive`], where it may well be that nothing comes.
    async fn receive_quietly(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let response = self.responses.message().await?.expect("an open stream");
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        self.requests.send(ack).await.unwrap();
        Ok(response)
    }
}

/// Knows one token.
#[derive(Debug)]
struct OneToken;

impl super::identity::Authenticate for OneToken {
    fn authenticate(&self, token: String) -> futures_util::future::BoxFuture<'_, Result<Caller, Denied>> {
        let identity = Identity { namespace: "edge".into(), service_account: "gateway".into() };
        let bound = |name: &str| Some(Pod { name: name.into(), uid: "u".into() });
        let answer = match token.as_str() {
            "good" => Ok(Caller { identity, pod: None }),
            "bound" => Ok(Caller { identity, pod: bound("gateway") }),
            "may not" => {
                let identity = Identity { service_account: "curious".into(), ..identity };
                Ok(Caller { identity, pod: bound("gateway") })
            }
            _ => Err(Denied::Token("it is not valid".into())),
        };
        Box::pin(std::future::ready(answer))
    }

    fn may_read_secrets<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> futures_util::future::BoxFuture<'a, Result<bool, Denied>> {
        Box::pin(std::future::ready(Ok(&*identity.service_account == "gateway")))
    }
}

#[tokio::test]
async fn only_who_proves_where_it_lives_gets_certificates_and_those_of_that_place() {
    use crate::model::{Credential, TlsSecret};
    let secret = |text: &str| {
        let own = TlsSecret { chain: text.as_bytes().into(), key: b"key".as_slice().into() };
        Arc::new(Credential { own: Some(own), roots: Some(b"roots".as_slice().into()) })
    };
    let named = |namespace: &str, text: &str| ((namespace.into(), "web".into()), secret(text));
    let with = |own: &str| MeshSnapshot {
        secrets: Arc::new([named("edge", own), named("shop", "other")].into()),
        ..MeshSnapshot::default()
    };
    let pilot = Pilot::start(with("first")).await;
    // The same streams behind the port that asks for tokens; what encrypts it is another matter.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = transport::service(Discovery {
        shared: pilot.shared.clone(),
        authenticate: Some(Arc::new(OneToken)),
    });
    tokio::spawn(
        transport::server().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let open = async |token: Option<&str>, node: Node| {
        let (requests, receiver) = mpsc::channel(64);
        let mut call = tonic::Request::new(ReceiverStream::new(receiver));
        if let Some(token) = token {
            call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
        let responses = client.delta_aggregated_resources(call).await.unwrap().into_inner();
        Delta { requests, responses, node: Some(node), version: BTreeMap::new() }
    };
    let names = ["kubernetes://edge/web", "kubernetes://shop/web"];
    let gateway = "router~10.0.0.1~gateway.edge~x";
    let as_account = |account: &'static str| node(gateway, &[("SERVICE_ACCOUNT", account)]);
    for (token, claimed, code) in [
        (None, node(gateway, &[]), Code::Unauthenticated),
        (Some("bad"), node(gateway, &[]), Code::Unauthenticated),
        (Some("good"), node("router~10.0.0.1~gateway.shop~x", &[]), Code::PermissionDenied),
        (Some("good"), as_account("other"), Code::PermissionDenied),
        (Some("bound"), node("router~10.0.0.1~gateway-2.edge~x", &[]), Code::PermissionDenied),
        (Some("bound"), node("sidecar~10.0.0.1~gateway-2.edge~x", &[]), Code::PermissionDenied),
    ] {
        let mut client = open(token, claimed.clone()).await;
        client.subscribe(osier_proto::types::SECRET, &names).await;
        assert_eq!(client.receive().await.unwrap_err().code(), code, "{token:?} {claimed:?}");
    }
    let mut client = open(Some("good"), as_account("gateway")).await;
    client.subscribe(osier_proto::types::SECRET, &names).await;
    let answer = client.receive().await.unwrap();
    let got: Vec<_> = answer.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!((got, answer.removed_resources), (vec![names[0]], vec![names[1].to_string()]));
    for (token, gets) in [("bound", 1), ("may not", 0)] {
        let mut client = open(Some(token), node(gateway, &[])).await;
        client.subscribe(osier_proto::types::SECRET, &names).await;
        assert_eq!(client.receive().await.unwrap().resources.len(), gets, "{token}");
    }
    // Others ask when they need one, and get roots without a right to keys.
    let sidecar = "sidecar~10.0.0.1~gateway.edge~x";
    let roots = "kubernetes://edge/web-cacert";
    for (token, wanted) in [("bound", &[roots, names[0]][..]), ("may not", &[roots])] {
        let mut client = open(Some(token), node(sidecar, &[])).await;
        client.subscribe(osier_proto::types::SECRET, &[roots]).await;
        let mut got: Vec<_> = client.receive().await.unwrap().resources.into_iter().map(|r| r.name).collect();
        client.subscribe(osier_proto::types::SECRET, &names).await;
        got.extend(client.receive().await.unwrap().resources.into_iter().map(|r| r.name));
        assert_eq!(got, wanted, "{token}");
    }
    let mut plain = pilot.delta(node(gateway, &[])).await;
    plain.subscribe(osier_proto::types::SECRET, &names).await;
    assert!(plain.receive().await.unwrap().resources.is_empty(), "nothing leaves unencrypted");
    let changed = ResourceKey::new(RuleKind::Secret, "edge", "web");
    pilot.publish(with("second"), Change { secrets: [changed].into(), ..Change::default() });
    let answer = client.receive().await.unwrap();
    assert_eq!(answer.resources[0].name, names[0]);
    let body = answer.resources[0].resource.clone().unwrap();
    assert!(body.value.windows(6).any(|bytes| bytes == b"second"), "the new one");
}
