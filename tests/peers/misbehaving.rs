//! osier-proxy as the client of an xDS server that misbehaves, as a test scripts it: what was in force stays in force, what is
//! refused is refused by name, and the proxy comes back, with pauses.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use osier_proto::schema::{ControlPlaneIdentity, FEATURE_ON_DEMAND};
use osier_proto::transport::{self, Handler, Link};
use osier_proto::types::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use osier_proto::types::{self, cluster::Cluster, listener::Listener, route};
use osier_proto::xds::server::{Request, Response};
use osier_proto::{Any, json};
use osier_tests::backend::Backend;
use osier_tests::mesh::{admin_get, register, sidecar, xds_cluster};
use osier_tests::process::{self, Program};
use osier_tests::{raw, wait};
use serde_json::{Value, json};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;

/// How long a stream, a request or an answer may take.
const LIMIT: Duration = Duration::from_secs(20);

/// An xDS server whose streams a test plays, one message at a time.
struct Server {
    address: SocketAddr,
    streams: mpsc::Receiver<Stream>,
    _runtime: tokio::runtime::Runtime,
}

/// One stream; dropping it ends the stream.
struct Stream {
    requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    responses: tokio::sync::mpsc::UnboundedSender<DeltaDiscoveryResponse>,
}

struct HandOver(mpsc::Sender<Stream>);

impl Handler for HandOver {
    async fn serve(&self, mut link: Link) -> Result<(), Status> {
        let (request_sender, requests) = mpsc::channel();
        let (responses, mut outgoing) = tokio::sync::mpsc::unbounded_channel();
        let _ = self.0.send(Stream { requests, responses });
        loop {
            tokio::select! {
                request = link.request() => match request? {
                    Some(Request::Incremental(request)) => drop(request_sender.send(request)),
                    Some(other) => return Err(Status::invalid_argument(format!("{other:?}"))),
                    None => return Ok(()),
                },
                response = outgoing.recv() => match response {
                    Some(response) => drop(link.send(Response::Incremental(response)).await),
                    None => return Ok(()),
                },
            }
        }
    }
}

impl Server {
    fn start() -> Self {
        Self::on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"))
    }

    fn on(listener: TcpListener) -> Self {
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let address = listener.local_addr().expect("an address");
        let (sender, streams) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
            let service = transport::service(HandOver(sender));
            let incoming = TcpListenerStream::new(listener);
            transport::server().add_service(service).serve_with_incoming(incoming).await
        });
        Self { address, streams, _runtime: runtime }
    }

    /// The next stream that the proxy opens.
    fn stream(&self) -> Stream {
        self.streams.recv_timeout(LIMIT).expect("the proxy opens a stream")
    }
}

impl Stream {
    /// The next request that fits.
    fn request(&self, what: &str, fits: impl Fn(&DeltaDiscoveryRequest) -> bool) -> DeltaDiscoveryRequest {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.requests.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(request) if fits(&request) => return request,
                Ok(_) => {}
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }

    fn send(&self, type_url: &str, nonce: &str, resources: Vec<Resource>) {
        self.send_raw(DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: nonce.into(),
            resources,
            ..Default::default()
        });
    }

    fn send_raw(&self, response: DeltaDiscoveryResponse) {
        self.responses.send(response).expect("the stream is open");
    }

    /// What the proxy says to the response of this type and nonce: `None` for an ACK, the message of a NACK.
    fn verdict(&self, type_url: &str, nonce: &str) -> Option<String> {
        let what = format!("the answer to nonce {nonce:?}");
        let request = self.request(&what, |r| r.type_url == type_url && r.response_nonce == nonce);
        request.error_detail.map(|status| status.message)
    }
}

/// The proxy under test, with the bootstrap of a stock client of an ADS server.
struct Proxy {
    /// Where the server's listener is to listen.
    listener: SocketAddr,
    admin: SocketAddr,
    program: Program,
    _folder: tempfile::TempDir,
}

impl Proxy {
    fn start(server: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("bootstrap.yaml");
        std::fs::write(&file, bootstrap(server)).expect("the test's folder can be written");
        let admin = process::free_address();
        let mut command = process::own("osier-proxy");
        command.arg("--config").arg(&file).args([
            "--concurrency",
            "1",
            "--admin-address",
            &admin.to_string(),
        ]);
        let mut program = Program::start("proxy", &mut command, folder.path());
        program.wait_listening(admin);
        Self { listener: process::free_address(), admin, program, _folder: folder }
    }

    /// Starts one, and puts in force that `/a` and `/b` lead to these backends.
    fn configured(server: &Server, a: &Backend, b: &Backend) -> (Self, Stream) {
        let proxy = Self::start(server.address);
        let stream = server.stream();
        proxy.configure(&stream, a, b);
        (proxy, stream)
    }

    fn configure(&self, stream: &Stream, a: &Backend, b: &Backend) {
        stream.send(
            types::CLUSTER,
            "clusters",
            vec![cluster("a", "1", a.address), cluster("b", "1", b.address)],
        );
        stream.send(types::LISTENER, "listeners", vec![self.routes(&["a", "b"])]);
        assert_eq!(stream.verdict(types::CLUSTER, "clusters"), None);
        assert_eq!(stream.verdict(types::LISTENER, "listeners"), None);
        self.wait_for("a", "a");
    }

    /// A listener that leads `/<name>` to the cluster of that name.
    fn routes(&self, names: &[&str]) -> Resource {
        let routes: Vec<Value> = names
            .iter()
            .map(|name| json!({"match": {"prefix": format!("/{name}")}, "route": {"cluster": name}}))
            .collect();
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "web",
            "route_config": {
                "name": "web",
                "validate_clusters": false,
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
            },
            "http_filters": [router()],
        });
        let listener = json!({
            "name": "web",
            "address": socket(self.listener),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        });
        resource("web", &names.join(" "), pack::<Listener>(listener))
    }

    /// The backend that answers `/<path>`, or the status and body of another answer.
    fn ask(&self, path: &str) -> String {
        let answer = admin_get(self.listener, &format!("/{path}"));
        let text = answer.text();
        match text.lines().next().and_then(|line| line.strip_prefix("backend ")) {
            Some(name) if answer.status() == 200 => name.to_owned(),
            _ => format!("{} {text}", answer.status()),
        }
    }

    fn wait_for(&self, path: &str, name: &str) {
        wait::until(&format!("/{path} is {name}"), || (self.ask(path) == name).then_some(()));
    }

    fn stat(&self, name: &str) -> u64 {
        let text = admin_get(self.admin, "/stats").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }
}

fn bootstrap(server: SocketAddr) -> String {
    format!(
        "node: {{id: sidecar~127.0.0.1~client.default~default.svc.cluster.local, cluster: client.default}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
{}",
        xds_cluster(server)
    )
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    })
}

fn pack<M: prost::Message + prost::Name + Default>(value: Value) -> Any {
    Any::pack(&json::from_value::<M>(&value).unwrap_or_else(|error| panic!("{error}: {value}")))
}

fn resource(name: &str, version: &str, body: Any) -> Resource {
    Resource { name: name.into(), version: version.into(), resource: Some(body), ..Default::default() }
}

fn cluster(name: &str, version: &str, backend: SocketAddr) -> Resource {
    let body = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(backend)}}]}],
        },
    });
    resource(name, version, pack::<Cluster>(body))
}

/// The same with a field that exists in Envoy's message and is not supported: `outlier_detection`, empty.
fn with_unsupported(mut cluster: Resource) -> Resource {
    const OUTLIER_DETECTION: [u8; 3] = [0x9a, 0x01, 0x00];
    let body = cluster.resource.take().expect("a cluster");
    let value = [&body.value[..], &OUTLIER_DETECTION].concat();
    cluster.resource = Some(Any { type_url: body.type_url, value: value.into() });
    cluster
}

/// Two backends that call themselves after the version that leads to them.
fn backends() -> [Backend; 2] {
    ["a", "b"].map(Backend::start)
}

#[test]
fn a_bad_resource_between_good_ones_is_refused_by_name() {
    let ([a, b], server) = (backends(), Server::start());
    let (proxy, stream) = Proxy::configured(&server, &a, &b);
    // Everything changes sides; `a` does so with a field that is not supported, and one is new and stays unknown.
    let bad = with_unsupported(cluster("a", "2", b.address));
    let unknown = with_unsupported(cluster("new", "1", b.address));
    stream.send(
        types::CLUSTER,
        "2",
        vec![bad, cluster("b", "2", a.address), unknown, cluster("c", "1", b.address)],
    );
    let refusal = stream.verdict(types::CLUSTER, "2").expect("a NACK");
    for name in ["a: outlier_detection: ", "new: outlier_detection: "] {
        assert!(refusal.contains(name), "{refusal}");
    }
    assert!(!refusal.contains("b: ") && !refusal.contains("c: "), "{refusal}");
    stream.send(types::LISTENER, "3", vec![proxy.routes(&["a", "b", "c", "new"])]);
    assert_eq!(stream.verdict(types::LISTENER, "3"), None);
    proxy.wait_for("b", "a");
    proxy.wait_for("c", "b");
    assert_eq!(proxy.ask("a"), "a", "its last good version is in force");
    assert!(proxy.ask("new").starts_with("503 "), "{}", proxy.ask("new"));
    assert_eq!(proxy.stat("cluster_manager.cds.update_rejected"), 1);
    let log = proxy.program.output();
    assert!(log.lines().any(|line| line.contains("refused") && line.contains("outlier_detection")), "{log}");

    // Mended: both take effect.
    stream.send(types::CLUSTER, "4", vec![cluster("a", "3", b.address), cluster("new", "2", a.address)]);
    assert_eq!(stream.verdict(types::CLUSTER, "4"), None);
    proxy.wait_for("a", "b");
    proxy.wait_for("new", "a");
}

#[test]
fn nonces_that_repeat_are_missing_or_are_strange_change_nothing() {
    let ([a, b], server) = (backends(), Server::start());
    let (proxy, stream) = Proxy::configured(&server, &a, &b);
    let long = "n".repeat(100_000);
    // The last one has no nonce: there is nothing to acknowledge it by.
    for (number, nonce) in ["same", "same", "clusters", "\u{0}\u{fffd}", &long, ""].into_iter().enumerate() {
        let (backend, name) = if number % 2 == 0 { (&b, "b") } else { (&a, "a") };
        stream.send(types::CLUSTER, nonce, vec![cluster("a", &format!("v{number}"), backend.address)]);
        if !nonce.is_empty() {
            assert_eq!(stream.verdict(types::CLUSTER, nonce), None);
        }
        proxy.wait_for("a", name);
    }
    // It still listens.
    stream.send(types::CLUSTER, "last", vec![cluster("a", "last", b.address)]);
    assert_eq!(stream.verdict(types::CLUSTER, "last"), None);
    proxy.wait_for("a", "b");
}

#[test]
fn types_and_names_that_nobody_asked_for_are_refused_or_passed_over() {
    const RUNTIME: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
    let ([a, b], server) = (backends(), Server::start());
    let (proxy, stream) = Proxy::configured(&server, &a, &b);
    let runtime = Any { type_url: RUNTIME.into(), value: Default::default() };
    stream.send(RUNTIME, "runtime", vec![resource("layer", "1", runtime.clone())]);
    let refusal = stream.verdict(RUNTIME, "runtime").expect("a NACK");
    assert!(refusal.contains(RUNTIME) && refusal.contains("not supported"), "{refusal}");

    let bytes = |bytes: &'static [u8]| Any { type_url: types::CLUSTER.into(), value: bytes.into() };
    let cases: [(Vec<Resource>, &str); 5] = [
        (vec![resource("a", "x", runtime)], "a: is a"),
        (vec![resource("a", "y", bytes(b"\xff\xff\xff\xff\xff"))], "a: "),
        (vec![cluster("a", "z", b.address), cluster("a", "z", b.address)], "a: is twice in one response"),
        (vec![resource("b", "w", cluster("other", "1", a.address).resource.expect("a body"))], "b: "),
        (vec![resource("a", "v", bytes(b""))], "a: "),
    ];
    for (number, (resources, says)) in cases.into_iter().enumerate() {
        let nonce = format!("case {number}");
        stream.send(types::CLUSTER, &nonce, resources);
        let refusal = stream.verdict(types::CLUSTER, &nonce).unwrap_or_else(|| panic!("{says}: taken"));
        assert!(refusal.starts_with(says), "{refusal:?} is not {says:?}");
        assert_eq!((proxy.ask("a"), proxy.ask("b")), ("a".into(), "b".into()), "{refusal}");
    }
    // Endpoints that nobody asked for, and a removal of what is not there.
    stream.send(types::CLUSTER_LOAD_ASSIGNMENT, "endpoints", vec![resource("nobody", "1", bytes(b""))]);
    stream.verdict(types::CLUSTER_LOAD_ASSIGNMENT, "endpoints");
    stream.send_raw(DeltaDiscoveryResponse {
        type_url: types::CLUSTER.into(),
        nonce: "removal".into(),
        removed_resources: vec!["nobody".into(), String::new()],
        ..Default::default()
    });
    assert_eq!(stream.verdict(types::CLUSTER, "removal"), None);
    assert_eq!((proxy.ask("a"), proxy.ask("b")), ("a".into(), "b".into()));
}

#[test]
fn a_huge_response_is_taken_and_one_that_is_too_large_ends_the_stream() {
    let ([a, b], server) = (backends(), Server::start());
    let (proxy, stream) = Proxy::configured(&server, &a, &b);
    let mut many: Vec<Resource> =
        (0..10_000).map(|number| cluster(&format!("cluster-{number}"), "1", b.address)).collect();
    many.push(cluster("a", "2", b.address));
    stream.send(types::CLUSTER, "many", many);
    assert_eq!(stream.verdict(types::CLUSTER, "many"), None);
    proxy.wait_for("a", "b");

    let padding =
        pack::<Cluster>(json!({"name": "a", "alt_stat_name": "x".repeat(transport::MAX_RESPONSE_BYTES)}));
    stream.send(types::CLUSTER, "too large", vec![resource("a", "3", padding)]);
    let again = server.stream();
    assert_eq!(proxy.ask("a"), "b", "what was in force stays");
    let first = again.request("the first request", |r| r.type_url == types::CLUSTER);
    assert_eq!(
        first.initial_resource_versions.get("a").map(String::as_str),
        Some("2"),
        "it says what it has"
    );
    again.send(types::CLUSTER, "1", vec![cluster("a", "4", a.address)]);
    assert_eq!(again.verdict(types::CLUSTER, "1"), None);
    proxy.wait_for("a", "a");
    let log = proxy.program.output();
    assert!(log.lines().any(|line| line.contains("not connected") && line.contains("too large")), "{log}");
}

/// Streams that end at once are opened again with pauses that grow; a server that answered once gets short ones, not none.
#[test]
fn streams_that_end_at_once_are_opened_again_with_pauses() {
    let ([a, b], server) = (backends(), Server::start());
    let (proxy, mut stream) = Proxy::configured(&server, &a, &b);
    let mut pause = Duration::from_millis(250);
    for round in 0..4 {
        let ended = Instant::now();
        drop(stream);
        stream = server.stream();
        let waited = ended.elapsed();
        assert!(waited >= pause, "round {round}: {waited:?} is less than {pause:?}");
        assert!(waited <= pause * 2 + Duration::from_secs(2), "round {round}: {waited:?}");
        pause *= 2;
        assert_eq!((proxy.ask("a"), proxy.ask("b")), ("a".into(), "b".into()));
    }
    // An answer makes the next pause short again.
    for round in 0..3 {
        stream.send(types::CLUSTER, "1", vec![cluster("a", &format!("r{round}"), a.address)]);
        assert_eq!(stream.verdict(types::CLUSTER, "1"), None);
        let ended = Instant::now();
        drop(stream);
        stream = server.stream();
        let waited = ended.elapsed();
        assert!(
            waited >= Duration::from_millis(250) && waited < Duration::from_secs(2),
            "round {round}: {waited:?}"
        );
    }
    let first = stream.request("the first request", |r| r.type_url == types::CLUSTER);
    assert_eq!(
        first.initial_resource_versions.get("b").map(String::as_str),
        Some("1"),
        "nothing is fetched twice"
    );
    assert_eq!(proxy.ask("b"), "b");
}

/// What answers in place of an xDS server.
struct Garbage {
    what: &'static str,
    /// Waits for the request before it answers.
    asked: bool,
    bytes: &'static [u8],
    /// A part of what the proxy says of it.
    says: &'static str,
}

const GARBAGE: &[Garbage] = &[
    Garbage { what: "another protocol", asked: false, bytes: b"220 mail.example.com ESMTP\r\n", says: "" },
    Garbage {
        what: "HTTP/1.1",
        asked: true,
        bytes: b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        says: "",
    },
    Garbage { what: "nothing at all", asked: false, bytes: b"", says: "" },
    Garbage {
        what: "a frame that is too large",
        asked: true,
        bytes: b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\xff\xff\xff\x00\x00\x00\x00\x00\x01",
        says: "",
    },
    Garbage {
        what: "a farewell",
        asked: true,
        bytes: b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0b",
        says: "",
    },
    Garbage {
        what: "a message that is no protobuf",
        asked: true,
        bytes: b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x13\x01\x04\x00\x00\x00\x01\x88\x5f\x10application/grpc\
                 \x00\x00\x0a\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x05\xff\xff\xff\xff\xff",
        says: "decode",
    },
    Garbage {
        what: "a refusal",
        asked: true,
        bytes: b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x22\x01\x05\x00\x00\x00\x01\x88\x5f\x10application/grpc\
                 \x40\x0bgrpc-status\x017",
        says: "PermissionDenied",
    },
];

/// Reads HTTP/2 until the head of a request has come.
fn wait_for_request(connection: &mut TcpStream) {
    const PREFACE: usize = 24;
    const HEADERS: u8 = 1;
    connection.read_exact(&mut [0; PREFACE]).expect("the client's preface");
    let mut head = [0; 9];
    while head[3] != HEADERS {
        connection.read_exact(&mut head).expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        connection.read_exact(&mut vec![0; length as usize]).expect("a whole frame");
    }
}

#[test]
fn garbage_is_survived() {
    let backends = backends();
    std::thread::scope(|scope| {
        for garbage in GARBAGE {
            let backends = &backends;
            scope.spawn(move || survives(garbage, backends));
        }
    });
}

fn survives(garbage: &Garbage, [a, b]: &[Backend; 2]) {
    let Garbage { what, asked, bytes, says } = garbage;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let server = Server::on(listener.try_clone().expect("a socket can be shared"));
    let (proxy, stream) = Proxy::configured(&server, a, b);
    // The next connection is not the server's: both accept from one socket, so the server has to go first.
    let Server { address, .. } = server;
    drop(stream);
    drop(server);
    listener.set_nonblocking(false).expect("a socket can block");
    let (mut connection, _) = listener.accept().expect("the proxy comes back");
    connection.set_read_timeout(Some(LIMIT)).expect("a time-out can be set");
    if *asked {
        wait_for_request(&mut connection);
    }
    connection.write_all(bytes).expect("garbage can be sent");
    // Until the proxy has had enough, or at most so long.
    connection.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out can be set");
    let _ = std::io::copy(&mut connection, &mut std::io::sink());
    drop(connection);
    assert_eq!((proxy.ask("a"), proxy.ask("b")), ("a".into(), "b".into()), "{what}");
    let server = Server::on(listener);
    assert_eq!(server.address, address);
    let stream = server.stream();
    let log = proxy.program.output();
    let reasons: Vec<&str> = log.lines().filter(|line| line.contains("not connected")).collect();
    assert!(reasons.len() == 2 && reasons[1].contains(says), "{what}: {log}");
    stream.send(types::CLUSTER, "1", vec![cluster("a", "2", b.address)]);
    assert_eq!(stream.verdict(types::CLUSTER, "1"), None, "{what}");
    proxy.wait_for("a", "b");
}

/// A control plane that agreed to be asked on demand and then says nothing: who is known is served, and who is not gets 503 with
/// the reason, since passing it on would go past policy.
#[test]
fn silence_on_demand_is_503_and_says_what_is_missing() {
    let server = Server::start();
    let registration = register("client", "v1", None);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let _proxy = Program::start("sidecar", &mut sidecar(server.address, &registration), folder.path());
    let stream = server.stream();
    let listener = stream.request("listeners", |r| r.type_url == types::LISTENER);
    assert!(
        listener.resource_names_subscribe.is_empty(),
        "all of them, as in interception mode NONE: {listener:?}"
    );
    let source = json!({"ads": {}, "resource_api_version": "V3"});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "proxy",
        "rds": {"route_config_name": "http_proxy", "config_source": source},
        "http_filters": [
            {"name": "e", "typed_config": {"@type": "type.googleapis.com/osier.filters.http.explicit_proxy.v1.ExplicitProxy"}},
            router(),
        ],
    });
    let listener = json!({
        "name": "proxy",
        "address": socket(registration.explicit_proxy()),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    });
    let identity = ControlPlaneIdentity {
        name: "silent".into(),
        features: vec![FEATURE_ON_DEMAND.into()],
        ..Default::default()
    };
    let respond = |type_url: &str, nonce: &str, resources: Vec<Resource>, removed_resources: Vec<String>| {
        stream.send_raw(DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: nonce.into(),
            resources,
            removed_resources,
            control_plane: Some(identity.to_control_plane()),
            ..Default::default()
        });
    };
    respond(types::LISTENER, "1", vec![resource("proxy", "1", pack::<Listener>(listener))], vec![]);
    stream.request("routes", |r| {
        r.type_url == types::ROUTE_CONFIGURATION
            && r.resource_names_subscribe.contains(&"http_proxy".to_owned())
    });
    let routes = json!({"name": "http_proxy", "vhds": {"config_source": source}});
    let routes = resource("http_proxy", "1", pack::<route::RouteConfiguration>(routes));
    respond(types::ROUTE_CONFIGURATION, "2", vec![routes], vec![]);
    assert_eq!(stream.verdict(types::LISTENER, "1"), None);

    let get = |host: &str| {
        let request = format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        raw::exchange(registration.explicit_proxy(), "GET", request.as_bytes()).expect("an answer")
    };
    let asked = |name: &str| {
        stream.request(name, |r| {
            r.type_url == types::VIRTUAL_HOST
                && r.resource_names_subscribe.contains(&format!("http_proxy/{name}"))
        })
    };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| get("known:80"));
        asked("known:80");
        let known = json!({
            "name": "known",
            "domains": ["known:80"],
            "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "here"}}}],
        });
        let name = "http_proxy/known:80";
        respond(
            types::VIRTUAL_HOST,
            "3",
            vec![resource(name, "1", pack::<route::VirtualHost>(known))],
            vec![],
        );
        assert_eq!(waiting.join().expect("no panic").text(), "here");

        let waiting = scope.spawn(|| get("absent:80"));
        asked("absent:80");
        respond(types::VIRTUAL_HOST, "4", vec![], vec!["http_proxy/absent:80".into()]);
        assert_eq!(waiting.join().expect("no panic").status(), 404, "absence is an answer");

        let begun = Instant::now();
        let waiting = scope.spawn(|| get("silent:80"));
        asked("silent:80");
        let mut served = 0;
        while !waiting.is_finished() {
            assert_eq!(get("known:80").text(), "here", "who is known is served");
            served += 1;
        }
        let answer = waiting.join().expect("no panic");
        let wanted = (503, "configuration for silent:80 not received".to_owned());
        assert_eq!((answer.status(), answer.text()), wanted);
        assert!(begun.elapsed() < Duration::from_secs(10) && served > 0, "{:?}, {served}", begun.elapsed());
    });
}
