//! Whole connections over real sockets: hand-over by original destination, detection, chains, no chain.

use std::io::{Read, Write};
use std::net::TcpStream as Client;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::super::accept::Acceptors;
use super::super::orig_dst::OriginalDestination;
use super::*;
use crate::config::cluster::{Cluster, ClusterHandle, ClusterSpec, Discovery, WeightedClusters};
use crate::config::endpoint::{EndpointSet, EndpointSpec};
use crate::config::listener::{
    AccessLogConfig, AccessLogFormat, AccessLogSink, ChainMatch, DownstreamTransport, HttpManager, Inspect,
    TcpProxy, TransportProtocol,
};
use crate::config::tls::{Secret, SecretHandle, ServerTls};
use crate::http::template::Template;
use crate::http::test_support::manager;
use crate::listener::client_hello::tests::hello;
use crate::listener::filter_chain::ChainMatcher;
use crate::on_demand::{Limits, OnDemand};
use crate::worker::{Shared, Workers};

/// An endpoint that sends its name and closes.
fn endpoint(name: &'static str) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            let _ = socket.write_all(name.as_bytes());
            let _ = socket.shutdown(std::net::Shutdown::Write);
            let _ = socket.read_to_end(&mut Vec::new());
        }
    });
    address
}

fn chain(name: &'static str, matches: ChainMatch) -> Arc<FilterChain> {
    chain_to(name, endpoint(name), matches)
}

fn chain_to(name: &'static str, endpoint: SocketAddr, matches: ChainMatch) -> Arc<FilterChain> {
    let handle = ClusterHandle::empty(name);
    let cluster = Cluster::new(ClusterSpec::plain(name, Discovery::Static), None);
    let endpoints = [(endpoint, EndpointSpec::default())];
    let set = EndpointSet::build(endpoints, &cluster.live, cluster.spec.set_settings(1));
    cluster.set_endpoints(Arc::new(set));
    handle.publish(cluster);
    let proxy = TcpProxy {
        stat_prefix: name.into(),
        clusters: WeightedClusters::single(handle),
        cluster_from_sni: false,
        idle_timeout: None,
        max_duration: None,
        max_connect_attempts: 1,
        authorizers: Arc::default(),
        authorization: Arc::default(),
        access_log: Vec::new(),
    };
    Arc::new(FilterChain {
        name: name.into(),
        matches,
        transport: DownstreamTransport::Plaintext,
        action: NetworkAction::Tcp(Arc::new(proxy)),
    })
}

fn listener(name: &str, address: &str, chains: Vec<Arc<FilterChain>>) -> Listener {
    let matcher = Arc::new(ChainMatcher::new(chains.iter().map(|c| &c.matches)).expect("no overlap"));
    let inspect = Inspect {
        timeout: Some(Duration::from_millis(100)),
        continue_on_timeout: true,
        ..Inspect::default()
    };
    Listener { chains, matcher, inspect, ..Listener::plain(name, address.parse().expect("address")) }
}

/// A running proxy: workers, sockets, and the address of the first listener.
struct Proxy {
    workers: Workers,
    shared: Arc<Shared>,
    acceptors: Acceptors,
}

impl Proxy {
    fn start(shared: Shared, snapshot: Snapshot) -> Self {
        let shared = Arc::new(shared);
        let workers = Workers::start(2, &shared).expect("threads");
        let acceptors = Acceptors::new(workers.all(), serve);
        shared.snapshot.publish(snapshot);
        assert!(acceptors.apply(&shared.snapshot.load()).is_empty());
        Self { workers, shared, acceptors }
    }

    fn ask(&self, send: &[u8]) -> String {
        let mut client = Client::connect(self.acceptors.addresses()[0].1).expect("connect");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("time-out");
        client.write_all(send).expect("send");
        let mut answer = String::new();
        // A connection without a chain may be reset, because bytes of it were never read.
        let _ = client.read_to_string(&mut answer);
        answer
    }

    fn stop(self) {
        drop(self.acceptors);
        self.workers.stop();
    }
}

fn snapshot(listeners: Vec<Listener>) -> Snapshot {
    Snapshot::new(listeners.into_iter().map(Arc::new))
}

/// A listener for captured traffic, whose connections all were going to `destination`.
fn captured(
    destination: fn(SocketAddr, SocketAddr) -> Option<SocketAddr>,
    own: Listener,
) -> (Shared, Listener) {
    let shared =
        Shared { original_destination: OriginalDestination::Mocked(destination), ..Shared::default() };
    (shared, Listener { use_original_dst: true, ..own })
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

#[test]
fn captured_connections_go_to_the_listener_of_their_destination() {
    type Destination = fn(SocketAddr, SocketAddr) -> Option<SocketAddr>;
    let table: [(Destination, &str); 4] = [
        (|_, _| Some(address("10.0.0.1:80")), "exact"),
        (|_, _| Some(address("10.0.0.2:80")), "wildcard"),
        (|_, _| Some(address("10.0.0.1:81")), "catch-all"),
        (|_, _| None, "catch-all"),
    ];
    for (destination, expected) in table {
        let own = listener("virtualOutbound", "127.0.0.1:0", vec![chain("catch-all", ChainMatch::default())]);
        let (shared, own) = captured(destination, own);
        let unbound = |name, at, chain_name| Listener {
            bind_to_port: false,
            ..listener(name, at, vec![chain(chain_name, ChainMatch::default())])
        };
        let listeners = vec![
            own,
            unbound("10.0.0.1_80", "10.0.0.1:80", "exact"),
            unbound("0.0.0.0_80", "0.0.0.0:80", "wildcard"),
        ];
        let proxy = Proxy::start(shared, snapshot(listeners));
        assert_eq!(proxy.ask(b""), expected);
        proxy.stop();
    }
}

#[test]
fn the_protocol_decides_on_the_chain_and_a_silent_client_is_opaque() {
    let http = ["http/1.0", "http/1.1", "h2c"].map(Arc::from).to_vec();
    let chains = vec![
        chain("http", ChainMatch { application_protocols: http, ..ChainMatch::default() }),
        chain("a.example", ChainMatch { server_names: vec!["a.example".into()], ..ChainMatch::default() }),
        chain("tls", ChainMatch { transport: Some(TransportProtocol::Tls), ..ChainMatch::default() }),
        chain("opaque", ChainMatch::default()),
    ];
    let mut own = listener("auto", "127.0.0.1:0", chains);
    (own.inspect.tls, own.inspect.http) = (true, true);
    let proxy = Proxy::start(Shared::default(), snapshot(vec![own]));
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], "http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http"),
        (&hello(Some("a.example"), &[]), "a.example"),
        (&hello(Some("b.example"), &["h2"]), "tls"),
        (b"*1\r\n$4\r\nPING\r\n", "opaque"),
        (b"", "opaque"),
    ] {
        assert_eq!(proxy.ask(bytes), expected, "{:?}", bytes.escape_ascii().to_string());
    }
    proxy.stop();
}

#[test]
fn a_connection_without_a_chain_is_closed_and_logged() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("log");
    let log = AccessLogConfig {
        sink: AccessLogSink::File(path.to_str().expect("path").into()),
        format: AccessLogFormat::Text(
            Template::parse("%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n").expect("format"),
        ),
    };
    let only = ChainMatch { destination_port: Some(1), ..ChainMatch::default() };
    let own =
        Listener { access_log: vec![Arc::new(log)], ..listener("l", "127.0.0.1:0", vec![chain("c", only)]) };
    let proxy = Proxy::start(Shared::default(), snapshot(vec![own]));
    assert_eq!(proxy.ask(b"x"), "");
    let logs = proxy.shared.access_logs.clone();
    proxy.stop();
    logs.finish(Duration::from_secs(20));
    assert_eq!(std::fs::read_to_string(&path).expect("log"), "NR filter_chain_not_found\n");
}

#[test]
fn a_destination_that_is_asked_for_waits_and_silence_is_told_or_closes() {
    let limits = Limits { patience: Duration::from_millis(300), ..Limits::default() };
    let (on_demand, mut asked) = OnDemand::new(limits);
    let own = listener("virtualOutbound", "127.0.0.1:0", vec![chain("catch-all", ChainMatch::default())]);
    // Destinations by source port would be racy; they come one after the other instead.
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(80);
    let next = |_, _| {
        let port = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Some(SocketAddr::new([10, 0, 0, 1].into(), port))
    };
    let (shared, own) = captured(next, own);
    let snapshot = Snapshot { on_demand: Some(on_demand.listeners().clone()), ..snapshot(vec![own]) };
    let proxy = Proxy::start(shared, snapshot);
    // 10.0.0.1:80 is there, 10.0.0.1:81 is answered absent, those behind are not answered.
    let table = on_demand.listeners().clone();
    let answering = std::thread::spawn(move || {
        let found =
            Arc::new(listener("10.0.0.1_80", "10.0.0.1:80", vec![chain("found", ChainMatch::default())]));
        while let Some(asked) = asked.blocking_recv() {
            match asked.name.as_ref() {
                "10.0.0.1_80" => table.publish(&asked.name, Some(found.clone())),
                name if name.ends_with("_82") => return,
                name => table.publish(name, None),
            }
        }
    });
    let answers: Vec<_> = (0..3).map(|_| proxy.ask(b"")).collect();
    assert_eq!(answers, ["found", "catch-all", ""], "absent is the catch-all's, silence is nobody's");
    let answer = |port: u16, body: &str| {
        format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 42\r\nconnection: close\r\n\r\n{}",
            body.replace("PORT", &port.to_string())
        )
    };
    let why = "configuration for 10.0.0.1:PORT not received";
    assert_eq!(proxy.ask(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nsome"), answer(83, why));
    assert_eq!(proxy.ask(b"HEAD / HTTP/1.0\r\n\r\n"), answer(84, ""));
    for opaque in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"\x16\x03\x01", b"GET /"] {
        assert_eq!(proxy.ask(opaque), "", "{opaque:?}");
    }
    answering.join().expect("control plane");
    proxy.stop();
}

/// What comes back after a CONNECT to `authority` and, once that is accepted, `bytes`.
fn connect(address: SocketAddr, authority: &str, bytes: &[u8]) -> String {
    let mut client = Client::connect(address).expect("connect");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("time-out");
    // All in one: what follows the head belongs to the tunnel.
    let mut sent = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").into_bytes();
    sent.extend_from_slice(bytes);
    client.write_all(&sent).expect("send");
    let mut answer = String::new();
    let _ = client.read_to_string(&mut answer);
    answer
}

#[test]
fn a_connect_is_a_new_connection_to_where_it_says() {
    let (on_demand, mut asked) = OnDemand::new(Limits::default());
    let manager = HttpManager { explicit_proxy: true, ..manager() };
    let explicit = FilterChain {
        name: "explicit".into(),
        matches: ChainMatch::default(),
        transport: DownstreamTransport::Plaintext,
        action: NetworkAction::Http(Arc::new(manager)),
    };
    let own = listener("explicit", "127.0.0.1:0", vec![Arc::new(explicit)]);
    let snapshot = Snapshot { on_demand: Some(on_demand.listeners().clone()), ..snapshot(vec![own]) };
    let proxy = Proxy::start(Shared::default(), snapshot);
    let table = on_demand.listeners().clone();
    std::thread::spawn(move || {
        // Only connections to the service's address match: it comes from the listener, as the client named no address.
        let to_service =
            ChainMatch { prefix_ranges: vec!["10.96.0.1/32".parse().expect("net")], ..ChainMatch::default() };
        let redis =
            Arc::new(listener("redis.default_6379", "10.96.0.1:6379", vec![chain("redis", to_service)]));
        let http = ChainMatch { application_protocols: vec!["http/1.1".into()], ..ChainMatch::default() };
        let mut any = listener(
            "0.0.0.0_80",
            "0.0.0.0:80",
            vec![chain("http", http), chain("opaque", ChainMatch::default())],
        );
        any.inspect.http = true;
        let any = Arc::new(any);
        while let Some(asked) = asked.blocking_recv() {
            let value = match asked.name.as_ref() {
                "redis.default_6379" => Some(redis.clone()),
                "0.0.0.0_80" => Some(any.clone()),
                _ => None,
            };
            table.publish(&asked.name, value);
        }
    });
    let address = proxy.acceptors.addresses()[0].1;
    let accepted = "HTTP/1.1 200 OK\r\n\r\n";
    for (authority, bytes, expected) in [
        ("Redis.default:6379", &b""[..], "redis"),
        ("a.example:80", b"GET / HTTP/1.1\r\n", "http"),
        ("a.example:80", b"\x00", "opaque"),
        ("10.9.9.9:80", b"GET / HTTP/1.1\r\n", "http"),
        ("a.example:81", b"", ""),
    ] {
        let answer = connect(address, authority, bytes);
        assert_eq!(
            answer,
            format!("{accepted}{expected}"),
            "{authority} {:?}",
            bytes.escape_ascii().to_string()
        );
    }
    proxy.stop();
}

#[test]
fn authorities_of_connect() {
    for (text, expected) in [
        ("10.0.0.1:80", Some("10.0.0.1:80")),
        ("[fd00::1]:443", Some("[fd00::1]:443")),
        ("reviews.default:9080", Some("0.0.0.0:9080")),
        ("reviews", None),
        ("reviews:", None),
        ("reviews:70000", None),
        (":80", None),
        ("[fd00::1:80", None),
    ] {
        assert_eq!(parse_authority(text), expected.map(address), "{text}");
    }
}

/// TLS with a certificate for `host`, and that certificate.
fn tls_for(host: &str) -> (DownstreamTransport, CertificateDer<'static>) {
    let key = rcgen::KeyPair::generate().expect("key");
    let certificate = rcgen::CertificateParams::new(vec![host.into()]).expect("name").self_signed(&key);
    let der = certificate.expect("certificate").der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
    let provider = aws_lc_rs::default_provider();
    let certified =
        rustls::sign::CertifiedKey::from_der(vec![der.clone()], key, &provider).expect("they fit");
    let handle = SecretHandle::new("", Secret::Certificate(Arc::new(certified)));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(handle);
    (DownstreamTransport::Tls(ServerTls::new(config, crate::config::tls::SecretHandle::empty(""), None)), der)
}

/// What a client gets that trusts `roots` and asks for `host`; `named`: it says so beforehand.
fn ask_tls(
    proxy: &Proxy,
    roots: &[CertificateDer<'static>],
    host: &'static str,
    named: bool,
) -> std::io::Result<String> {
    let mut store = rustls::RootCertStore::empty();
    roots.iter().for_each(|root| store.add(root.clone()).expect("a root"));
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(store)
        .with_no_client_auth();
    config.enable_sni = named;
    let session = rustls::ClientConnection::new(Arc::new(config), host.try_into().expect("name"));
    let client = Client::connect(proxy.acceptors.addresses()[0].1)?;
    client.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut stream = rustls::StreamOwned::new(session.expect("session"), client);
    stream.write_all(b"hello")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn tls_is_ended_with_the_certificate_of_the_name_that_the_client_says() {
    let (a, a_root) = tls_for("a.example");
    let (b, b_root) = tls_for("www.b.example");
    let with = |name: &'static str, host: &str, transport: DownstreamTransport| {
        let matches = ChainMatch {
            server_names: vec![host.into()],
            transport: Some(TransportProtocol::Tls),
            ..ChainMatch::default()
        };
        let plain = chain(name, matches);
        let (name, matches) = (plain.name.clone(), plain.matches.clone());
        Arc::new(FilterChain { name, matches, transport, action: plain.action.clone() })
    };
    let mut own =
        listener("tls", "127.0.0.1:0", vec![with("a", "a.example", a), with("b", "*.b.example", b)]);
    own.inspect.tls = true;
    let proxy = Proxy::start(Shared::default(), snapshot(vec![own]));
    let roots = [a_root.clone(), b_root];
    assert_eq!(ask_tls(&proxy, &roots, "a.example", true).expect("a"), "a");
    assert_eq!(ask_tls(&proxy, &roots, "www.b.example", true).expect("b"), "b");
    for (host, named) in [("other.example", true), ("b.example", true), ("a.example", false)] {
        assert!(ask_tls(&proxy, &roots, host, named).is_err(), "{host}, named: {named}");
    }
    let refused = ask_tls(&proxy, &[a_root], "www.b.example", true).expect_err("another's certificate");
    assert!(refused.to_string().contains("certificate"), "{refused}");
    assert_eq!(proxy.ask(b"GET / HTTP/1.1\r\n\r\n"), "", "no chain for plaintext");
    // What fails concerns its own connection only.
    assert_eq!(ask_tls(&proxy, &roots, "a.example", true).expect("a"), "a");
    proxy.stop();
}

/// A port that takes mutual TLS and opaque plaintext, as a PERMISSIVE one, with this workload behind it.
fn permissive(workload: Arc<FilterChain>, server_first: bool) -> Proxy {
    let mut own = listener("inbound", "127.0.0.1:0", vec![workload]);
    own.inspect = Inspect { tls: true, ..Inspect::default() };
    own.direction = Direction::Inbound;
    let shared = Shared { server_first: server_first.then(Default::default), ..Shared::default() };
    Proxy::start(shared, snapshot(vec![own]))
}

#[test]
fn a_silent_client_of_a_server_that_speaks_first_is_served() {
    let proxy = permissive(chain("greeting", ChainMatch::default()), true);
    let began = std::time::Instant::now();
    assert_eq!(proxy.ask(b""), "greeting");
    assert_eq!(proxy.ask(b""), "greeting");
    // Far below what anybody would wait for a hello; how long exactly is the machine's business.
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // Who says hello is no silent client: this one offers nothing that the port's chains know.
    assert_eq!(
        proxy.ask(&hello(Some("a.example"), &["istio"])),
        "greeting",
        "unterminated, as the one chain says"
    );
    proxy.stop();
}

#[test]
fn behind_a_server_that_waits_a_silence_is_waited_out() {
    let echo = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = echo.local_addr().expect("address");
    std::thread::spawn(move || {
        while let Ok((mut socket, _)) = echo.accept() {
            std::thread::spawn(move || {
                let mut said = [0; 2];
                let _ = socket.read_exact(&mut said).and_then(|()| socket.write_all(&said));
            });
        }
    });
    for server_first in [true, false] {
        let proxy = permissive(chain_to("echo", address, ChainMatch::default()), server_first);
        let mut client = Client::connect(proxy.acceptors.addresses()[0].1).expect("connect");
        // Longer than a server has to speak.
        client.set_read_timeout(Some(Duration::from_millis(2500))).expect("time-out");
        assert!(client.read(&mut [0; 1]).is_err(), "nobody has said anything");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("time-out");
        client.write_all(b"hi").expect("send");
        let mut answer = [0; 2];
        client.read_exact(&mut answer).expect("the echo");
        assert_eq!(&answer, b"hi");
        proxy.stop();
    }
}
