//! Opaque connections through a whole worker: cluster, endpoint, metrics, access log.

use std::net::SocketAddr;

use prometheus::core::Collector as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::authz::{Action, Condition, Denial, Filter, Rule, Rules};
use crate::config::cluster::{ClusterLimits, ClusterSpec, Discovery, WeightedCluster, WeightedClusters};
use crate::config::endpoint::{EndpointSet, EndpointSpec};
use crate::config::listener::{
    AccessLogConfig, AccessLogFormat, AccessLogSink, ConnectionInputs, Direction, DownstreamTransport,
    FilterChain, Listener, TransportProtocol,
};
use crate::config::snapshot::Snapshot;
use crate::config::tls::Secret;
use crate::http::template::Template;
use crate::identity::test_support::{Root, believing, roots};
use crate::identity::vouch::Vouch;
use crate::listener::connection::ListenerSource;
use crate::listener::filter_chain::ChainMatcher;

/// A worker, a proxy configuration, and a folder with its access log.
struct Setup {
    worker: Arc<Worker>,
    proxy: Arc<TcpProxy>,
    folder: tempfile::TempDir,
    /// By what clients are believed.
    vouch: Option<Arc<Vouch>>,
}

impl Setup {
    fn new(clusters: WeightedClusters, change: impl FnOnce(&mut TcpProxy)) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let format = "%RESPONSE_FLAGS% %UPSTREAM_CLUSTER_RAW% %BYTES_RECEIVED% %BYTES_SENT% \
                      %CONNECTION_TERMINATION_DETAILS% %UPSTREAM_REQUEST_ATTEMPT_COUNT%\n";
        let log = AccessLogConfig {
            sink: AccessLogSink::File(folder.path().join("log").to_str().expect("path").into()),
            format: AccessLogFormat::Text(Template::parse(format).expect("format")),
        };
        let mut proxy = TcpProxy {
            stat_prefix: "tcp".into(),
            clusters,
            cluster_from_sni: false,
            idle_timeout: None,
            max_duration: None,
            max_connect_attempts: 1,
            authorizers: Arc::default(),
            authorization: Arc::default(),
            access_log: vec![Arc::new(log)],
        };
        change(&mut proxy);
        Self { worker: Worker::here(Arc::default()), proxy: Arc::new(proxy), folder, vouch: None }
    }

    /// A listener whose one chain is this proxy.
    fn listener(proxy: Arc<TcpProxy>) -> Arc<Listener> {
        let chain = Arc::new(FilterChain {
            name: "tcp".into(),
            matches: Default::default(),
            transport: DownstreamTransport::Plaintext,
            action: NetworkAction::Tcp(proxy),
        });
        Arc::new(Listener {
            matcher: ChainMatcher::new([&chain.matches]).expect("one chain").into(),
            chains: vec![chain],
            direction: Direction::Outbound,
            ..Listener::plain("l", here())
        })
    }

    /// Puts a listener in force whose policy denies clients of `net`; no other changes.
    fn publish_denying(&self, net: &str) {
        let proxy = TcpProxy {
            clusters: self.proxy.clusters.clone(),
            stat_prefix: "tcp".into(),
            authorizers: Arc::default(),
            authorization: Arc::new([denying(net)]),
            access_log: Vec::new(),
            ..*self.proxy
        };
        self.worker.shared.snapshot.publish(Snapshot::new([Self::listener(Arc::new(proxy))]));
    }

    /// A connection with this SNI that was going to `destination`.
    fn connection(&self, destination: SocketAddr, server_name: Option<&str>) -> Connection {
        let listener = Self::listener(self.proxy.clone());
        let chain = listener.chains[0].clone();
        let inputs = ConnectionInputs {
            source: "192.0.2.1:1".parse().expect("address"),
            destination,
            transport: TransportProtocol::RawBuffer,
            server_name: server_name.map(Arc::from),
            application_protocols: Vec::new(),
        };
        let source = ListenerSource::Named("l".into());
        let connection = Connection::new(&self.worker, &listener, source, chain, 0, inputs, destination);
        connection.with_peer(self.vouch.clone(), None)
    }

    /// Runs one connection; returns the client's end.
    async fn client(
        &self,
        destination: SocketAddr,
        server_name: Option<&str>,
        received: &[u8],
    ) -> (TcpStream, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        let (accepted, _) = listener.accept().await.expect("accept");
        let connection = self.connection(destination, server_name);
        let (worker, proxy, received) = (self.worker.clone(), self.proxy.clone(), BytesMut::from(received));
        let task =
            tokio::spawn(async move { run(&worker, &connection, &proxy, accepted.into(), received).await });
        (client, task)
    }

    /// Sends nothing and reads to the end.
    async fn ask(&self, destination: SocketAddr, server_name: Option<&str>) -> String {
        let (mut client, task) = self.client(destination, server_name, b"").await;
        client.shutdown().await.expect("half-close");
        let answer = answer(client).await;
        task.await.expect("task");
        answer
    }

    fn log(self) -> String {
        self.worker.shared.access_logs.finish(Duration::from_secs(20));
        std::fs::read_to_string(self.folder.path().join("log")).expect("log")
    }
}

/// A gRPC authorizer that answers each call with this message, as text after `status: ` in a header for none.
async fn authorizer(answer: &'static [u8], fails_open: bool) -> crate::ext_authz::Authorizer {
    use crate::config::cluster::UpstreamProtocol;
    use crate::ext_authz::{Authorizer, Form, GrpcForm, Patterns};
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = socket.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = socket.accept().await {
            let Ok(mut connection) = h2::server::handshake(tcp).await else { continue };
            tokio::spawn(async move {
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let response = http::Response::builder().header("content-type", "application/grpc");
                    let mut body =
                        respond.send_response(response.body(()).expect("a head"), false).expect("sent");
                    let mut message = vec![0, 0, 0, 0, answer.len() as u8];
                    message.extend_from_slice(answer);
                    body.send_data(message.into(), false).expect("sent");
                    let status = if answer == UNAVAILABLE { "14" } else { "0" };
                    let trailers =
                        [(http::HeaderName::from_static("grpc-status"), status.parse().expect("a value"))];
                    body.send_trailers(trailers.into_iter().collect()).expect("sent");
                }
            });
        }
    });
    let mut spec = ClusterSpec::plain("authorizer", Discovery::Static);
    spec.protocol = UpstreamProtocol::Http2;
    let cluster = Cluster::new(spec, None);
    let set =
        EndpointSet::build([(address, EndpointSpec::default())], &cluster.live, cluster.spec.set_settings(1));
    cluster.set_endpoints(Arc::new(set));
    let handle = ClusterHandle::empty("authorizer");
    handle.publish(cluster);
    Authorizer {
        cluster: handle,
        form: Form::Grpc(GrpcForm { authority: "a".into(), shown: Patterns::All, body_as_bytes: false }),
        timeout: Some(Duration::from_secs(30)),
        body: None,
        fails_open,
        tells_fail_open: false,
        status_on_error: 403,
        routes_anew: false,
        mark: None,
        answers: Arc::default(),
    }
}

/// CheckResponse with status 7.
const DENIES: &[u8] = &[0x0a, 0x02, 0x08, 0x07];
/// The same with status 0.
const ALLOWS: &[u8] = &[0x0a, 0x00];
const UNAVAILABLE: &[u8] = b"unavailable";

#[tokio::test]
async fn an_external_authorizer_decides_before_anything_is_opened() {
    for (answer, fails_open, wanted, details) in [
        (ALLOWS, false, "up", "-"),
        (DENIES, true, "", "ext_authz_denied"),
        (UNAVAILABLE, false, "", "ext_authz_error{gRPC_status_14}"),
        (UNAVAILABLE, true, "up", "-"),
    ] {
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = upstream.local_addr().expect("address");
        let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = connections.clone();
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = upstream.accept().await {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let _ = tcp.write_all(b"up").await;
            }
        });
        let guard = authorizer(answer, fails_open).await;
        let cluster = Cluster::new(ClusterSpec::plain("up", Discovery::Static), None);
        let set = EndpointSet::build(
            [(address, EndpointSpec::default())],
            &cluster.live,
            cluster.spec.set_settings(1),
        );
        cluster.set_endpoints(Arc::new(set));
        let handle = ClusterHandle::empty("up");
        handle.publish(cluster);
        let setup =
            Setup::new(WeightedClusters::single(handle), |proxy| proxy.authorizers = Arc::new([guard]));
        let (client, task) = setup.client(here(), None, b"").await;
        let mut client = client;
        let mut got = String::new();
        let _ = client.read_to_string(&mut got).await;
        drop(client);
        task.await.expect("task");
        assert_eq!(got, wanted, "{details}");
        assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), usize::from(!wanted.is_empty()));
        let log = setup.log();
        assert!(log.contains(&format!(" {details} ")), "{log}");
        assert_eq!(log.starts_with("UAEX "), wanted.is_empty(), "{log}");
    }
}

fn here() -> SocketAddr {
    "127.0.0.1:9".parse().expect("address")
}

/// A filter that denies clients of `net`.
fn denying(net: &str) -> Filter {
    let rule = Rule {
        condition: Condition::DirectRemoteIp(net.parse().expect("a range")),
        denial: Denial::new("ns[a]-policy[b]-rule[0]", Default::default()),
    };
    let unmatched = Denial::new("none", Default::default());
    let rules = Rules { action: Action::Deny, rules: Box::new([rule]), unmatched };
    Filter { enforced: Some((rules, Default::default())), shadow: None }
}

fn handle_of(spec: ClusterSpec, addresses: &[SocketAddr]) -> Arc<ClusterHandle> {
    let handle = ClusterHandle::empty(spec.name.clone());
    let cluster = Cluster::new(spec, None);
    let endpoints = addresses.iter().map(|address| (*address, EndpointSpec::default()));
    let set = EndpointSet::build(endpoints, &cluster.live, cluster.spec.set_settings(1));
    cluster.set_endpoints(Arc::new(set));
    handle.publish(cluster);
    handle
}

fn cluster(name: &str, addresses: &[SocketAddr]) -> Arc<ClusterHandle> {
    handle_of(ClusterSpec::plain(name, Discovery::Static), addresses)
}

/// An endpoint that sends its name and then what it gets.
async fn echo(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                write.write_all(name.as_bytes()).await?;
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    address
}

async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.and_then(|l| l.local_addr()).expect("address")
}

async fn answer(mut client: TcpStream) -> String {
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("answer");
    answer
}

#[tokio::test]
async fn bytes_from_detection_go_first_and_everything_is_counted() {
    let setup = Setup::new(WeightedClusters::single(cluster("c", &[echo("hi ").await])), |_| {});
    let (mut client, task) = setup.client(here(), None, b"early ").await;
    client.write_all(b"late").await.expect("send");
    client.shutdown().await.expect("half-close");
    assert_eq!(answer(client).await, "hi early late");
    task.await.expect("task");
    let families = setup.worker.shared.metrics.collect();
    let value = |name: &str| {
        let family = families.iter().find(|f| f.name() == name).expect("family");
        family.get_metric()[0].get_counter().get_value()
    };
    assert_eq!(value("istio_tcp_connections_opened_total"), 1.0);
    assert_eq!(value("istio_tcp_connections_closed_total"), 1.0);
    assert_eq!(value("istio_tcp_received_bytes_total"), 10.0);
    assert_eq!(value("istio_tcp_sent_bytes_total"), 13.0);
    assert_eq!(setup.log(), "- c 10 13 - 1\n");
}

#[tokio::test]
async fn a_failed_connect_moves_on_to_another_endpoint() {
    let addresses = [closed_port().await, echo("good").await, closed_port().await];
    let clusters = WeightedClusters::single(cluster("c", &addresses));
    let setup = Setup::new(clusters, |p| p.max_connect_attempts = 3);
    for _ in 0..8 {
        assert_eq!(setup.ask(here(), None).await, "good");
    }
    let log = setup.log();
    assert!(log.lines().all(|l| l.starts_with("- c 0 4 - ")), "{log}");
    assert!(log.lines().any(|l| !l.ends_with(" 1")), "some began at a closed port: {log}");
}

#[tokio::test]
async fn failures_close_the_connection_and_say_why() {
    let gone = closed_port().await;
    let limits = ClusterLimits { max_connections: 0, ..ClusterLimits::default() };
    let full = ClusterSpec { limits, ..ClusterSpec::plain("full", Discovery::Static) };
    for (cluster, attempts, expected) in [
        (ClusterHandle::empty("nothing"), 3, "NC nothing 0 0 cluster_nothing_does_not_exist 0".to_owned()),
        (
            cluster("empty", &[]),
            3,
            "UH empty 0 0 cluster_empty_has_no_eligible_endpoint_among_0 0".to_owned(),
        ),
        (
            cluster("down", &[gone]),
            2,
            format!("UF,URX down 0 0 {gone}:_remote_connection_failure:_Connection_refused_(os_error_111) 2"),
        ),
        (
            handle_of(full, &[echo("").await]),
            3,
            "UO full 0 0 cluster_full_has_reached_max_connections 1".to_owned(),
        ),
    ] {
        let setup = Setup::new(WeightedClusters::single(cluster), |p| p.max_connect_attempts = attempts);
        assert_eq!(setup.ask(here(), None).await, "");
        assert_eq!(setup.log().trim_end(), expected);
    }
}

#[tokio::test]
async fn clusters_are_drawn_by_weight_or_named_by_the_sni() {
    let (red, blue) = (cluster("red", &[echo("r").await]), cluster("blue", &[echo("b").await]));
    let green = cluster("green.example", &[echo("g").await]);
    let single = WeightedClusters::single(red);
    let blue = WeightedCluster { weight: 3, cluster: blue, ..single.entries[0].clone() };
    let clusters = WeightedClusters { entries: Box::new([single.entries[0].clone(), blue]), total: 4 };
    let setup = Setup::new(clusters, |p| p.cluster_from_sni = true);
    let handle = setup.worker.shared.clusters.handle("green.example");
    handle.publish(green.current.load_full().expect("cluster"));
    let mut answers = String::new();
    for name in [None, Some("green.example"), Some("unknown.example")].iter().cycle().take(120) {
        answers.push_str(&setup.ask(here(), *name).await);
    }
    let count = |letter| answers.chars().filter(|c| *c == letter).count();
    assert_eq!((count('g'), answers.len()), (40, 120));
    assert!((40..=75).contains(&count('b')), "3 of 4 of 80: {}", count('b'));
}

#[tokio::test]
async fn an_original_destination_cluster_goes_where_the_client_was_going() {
    let address = echo("there").await;
    let spec = ClusterSpec::plain("PassthroughCluster", Discovery::OriginalDst(Default::default()));
    let setup = Setup::new(WeightedClusters::single(handle_of(spec, &[])), |_| {});
    assert_eq!(setup.ask(address, None).await, "there");
    assert_eq!(setup.log(), "- PassthroughCluster 0 5 - 1\n");
}

#[tokio::test]
async fn age_and_idleness_end_a_connection() {
    let limit = Some(Duration::from_millis(30));
    type Change = fn(&mut TcpProxy, Option<Duration>);
    let changes: [(Change, &str); 2] = [
        (|p, limit| p.max_duration = limit, "DT c 0 2 max_duration 1\n"),
        (|p, limit| p.idle_timeout = limit, "SI c 0 2 idle_timeout 1\n"),
    ];
    for (change, expected) in changes {
        let clusters = WeightedClusters::single(cluster("c", &[echo("hi").await]));
        let setup = Setup::new(clusters, |p| change(p, limit));
        let (client, task) = setup.client(here(), None, b"").await;
        assert_eq!(answer(client).await, "hi");
        task.await.expect("task");
        assert_eq!(setup.log(), expected);
    }
}

#[tokio::test]
async fn a_removed_endpoint_closes_only_where_the_cluster_says_so() {
    for close in [true, false] {
        let plain = ClusterSpec::plain("c", Discovery::Static);
        let handle = handle_of(ClusterSpec { close_on_host_removal: close, ..plain }, &[echo("hi").await]);
        let setup = Setup::new(WeightedClusters::single(handle.clone()), |_| {});
        let (mut client, task) = setup.client(here(), None, b"").await;
        let mut got = [0; 2];
        client.read_exact(&mut got).await.expect("greeting");
        let cluster = handle.current.load_full().expect("cluster");
        let nobody = std::iter::empty::<(SocketAddr, EndpointSpec)>();
        let set = EndpointSet::build(nobody, &cluster.live, cluster.spec.set_settings(2));
        cluster.set_endpoints(Arc::new(set));
        if close {
            assert_eq!(answer(client).await, "");
        } else {
            client.write_all(b"still").await.expect("send");
            client.shutdown().await.expect("half-close");
            assert_eq!(answer(client).await, "still");
        }
        task.await.expect("task");
    }
}

#[tokio::test]
async fn whom_a_policy_denies_gets_nothing_and_nobody_hears_of_it() {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = server.local_addr().expect("address");
    let clusters = WeightedClusters::single(cluster("c", &[address]));
    let setup = Setup::new(clusters, |proxy| proxy.authorization = Arc::new([denying("192.0.2.0/24")]));
    let (mut client, task) = setup.client(here(), None, b"early").await;
    let mut got = [0; 1];
    assert!(!matches!(client.read(&mut got).await, Ok(1..)), "nothing comes");
    task.await.expect("task");
    assert_eq!(setup.log(), "- c 0 0 rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[0]] 0\n");
    let waiting = tokio::time::timeout(Duration::from_millis(50), server.accept()).await;
    assert!(waiting.is_err(), "the server must not have been reached");
}

#[tokio::test]
async fn an_open_connection_ends_when_a_policy_comes_that_denies_it_and_only_then() {
    let setup = Setup::new(WeightedClusters::single(cluster("c", &[echo("hi").await])), |_| {});
    let (mut client, task) = setup.client(here(), None, b"").await;
    let mut got = [0; 2];
    client.read_exact(&mut got).await.expect("greeting");
    for (net, text) in [("198.51.100.0/24", b"a1"), ("203.0.113.0/24", b"b2")] {
        setup.publish_denying(net);
        client.write_all(text).await.expect("send");
        client.read_exact(&mut got).await.expect("it goes on");
        assert_eq!(&got, text);
    }
    setup.publish_denying("192.0.2.1/32");
    let read = tokio::time::timeout(Duration::from_secs(20), client.read(&mut got));
    let cut = read.await.expect("within the deadline").expect_err("cut, and not ended");
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset);
    task.await.expect("task");
    assert_eq!(setup.log(), "- c 4 6 rbac_access_denied_matched_policy[ns[a]-policy[b]-rule[0]] 1\n");
}

#[tokio::test]
async fn an_open_connection_ends_when_no_root_vouches_for_its_client_and_only_then() {
    let (old, new) = (Root::new("old"), Root::new("new"));
    let trust = believing(&[&old]);
    let mut setup = Setup::new(WeightedClusters::single(cluster("c", &[echo("hi").await])), |_| {});
    setup.vouch = Some(old.vouches_by(&trust, None));
    let (mut client, task) = setup.client(here(), None, b"").await;
    let mut got = [0; 2];
    client.read_exact(&mut got).await.expect("greeting");
    let believe = |of: &[&Root]| {
        trust.publish(Secret::Trust(roots(of)));
        setup.worker.shared.snapshot.nudge();
    };
    believe(&[&new, &old]);
    client.write_all(b"a1").await.expect("send");
    client.read_exact(&mut got).await.expect("it goes on");
    believe(&[&new]);
    let read = tokio::time::timeout(Duration::from_secs(20), client.read(&mut got));
    let cut = read.await.expect("within the deadline").expect_err("cut, and not ended");
    assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset);
    task.await.expect("task");
    assert_eq!(setup.log(), "- c 2 4 downstream_peer_no_longer_trusted 1\n");
}
