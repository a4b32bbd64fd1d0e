//! The server over real sockets, with another server of our own behind it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, TXT};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::on_demand::{Asked, HostAddresses, Limits, OnDemand, Table};

/// How long a test waits for something that must come.
const LONG: Duration = Duration::from_secs(30);

/// Another server: it knows one host, says of all others that they don't exist, and keeps silent about those that begin with `quiet`.
/// Before each true answer over UDP it sends two false ones.
struct Outside {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Outside {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = UdpSocket::bind(address).await.unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (udp, tcp) = (asked.clone(), asked.clone());
        let serve_udp = async move {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let Some(answer) = outside(&query, &udp) else { continue };
                let mut of_another = answer.clone();
                of_another.metadata.id ^= 1;
                let mut to_another = answer.clone();
                to_another.queries = vec![Query::query(name("bank.example"), RecordType::A)];
                for answer in [of_another, to_another, answer] {
                    socket.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
                }
            }
        };
        let serve_tcp = async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let length = stream.read_u16().await.unwrap();
                let mut query = vec![0; usize::from(length)];
                stream.read_exact(&mut query).await.unwrap();
                if let Some(answer) = outside(&Message::from_vec(&query).unwrap(), &tcp) {
                    forward::write_message(&mut stream, &answer.to_vec().unwrap()).await.unwrap();
                }
            }
        };
        let tasks = [tokio::spawn(serve_udp), tokio::spawn(serve_tcp)].map(AbortOnDropHandle::new);
        Self { address, asked, _tasks: tasks }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock())
    }
}

fn outside(query: &Message, asked: &Mutex<Vec<String>>) -> Option<Message> {
    let question = query.queries[0].clone();
    let host = question.name().to_string();
    asked.lock().push(format!("{host} {}", question.query_type()));
    if host.starts_with("quiet") {
        return None;
    }
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.add_query(question.clone());
    let data = match (host.to_lowercase().as_str(), question.query_type()) {
        ("outside.example.", RecordType::A) => Some(RData::A(A("198.51.100.1".parse().unwrap()))),
        (_, RecordType::TXT) => Some(RData::TXT(TXT::new(vec!["text".to_owned()]))),
        _ => None,
    };
    match data {
        Some(data) => drop(answer.add_answer(Record::from_rdata(question.name().clone(), 7, data))),
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    Some(answer)
}

fn settings() -> Settings {
    Settings {
        namespace: "default".into(),
        cluster_domain: "cluster.local".into(),
        forward_timeout: Duration::from_millis(500),
        forward_parallel: false,
    }
}

/// The server under test.
struct Server {
    dns: Arc<Dns>,
    directory: Arc<Directory>,
    address: SocketAddr,
}

impl Server {
    async fn start(settings: Settings, servers: &[SocketAddr]) -> Self {
        let directory = Arc::new(Directory::new(&settings));
        let search = Some(name("default.svc.cluster.local"));
        let system = System { servers: servers.to_vec(), search };
        let dns = Dns::new(&settings, system, directory.clone());
        let address = dns.listen(0).await.unwrap()[0];
        Self { dns, directory, address }
    }

    async fn udp(&self, query: &Message) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket.send(&query.to_vec().unwrap()).await.unwrap();
        let mut buffer = vec![0; 65_535];
        let length = tokio::time::timeout(LONG, socket.recv(&mut buffer)).await.expect("an answer").unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn tcp(&self, query: &Message) -> Message {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        forward::write_message(&mut stream, &query.to_vec().unwrap()).await.unwrap();
        read(&mut stream).await
    }

    fn figure(&self, name: &str) -> f64 {
        let families = self.dns.families();
        let family =
            families.iter().find(|f| f.name() == format!("istio_agent_dns_{name}")).expect("a family");
        family.get_metric()[0].get_counter().get_value()
    }
}

async fn read(stream: &mut TcpStream) -> Message {
    let read = async {
        let length = stream.read_u16().await.unwrap();
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    };
    tokio::time::timeout(LONG, read).await.expect("an answer")
}

fn name(text: &str) -> Name {
    // By its labels: any bytes can be in them.
    let labels = text.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
    let mut name = Name::from_labels(labels).unwrap();
    name.set_fqdn(true);
    name
}

fn query(host: &str, kind: RecordType) -> Message {
    let mut query = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name(host), kind));
    query
}

fn addresses(ips: &[&str]) -> Arc<HostAddresses> {
    Arc::new(HostAddresses(ips.iter().map(|ip| ip.parse().unwrap()).collect()))
}

fn row(host: &str, ips: &[&str], short: Option<(&str, &str)>) -> Row {
    let short = short.map(|(name, namespace)| (name.to_owned(), namespace.to_owned()));
    Row { host: host.into(), addresses: addresses(ips), short }
}

/// The answer in one line: code, canonical name, sorted addresses.
fn shown(answer: &Message) -> String {
    let mut words = vec![format!("{:?}", answer.metadata.response_code)];
    let mut ips = BTreeSet::new();
    for record in &answer.answers {
        match &record.data {
            RData::CNAME(canonical) => words.push(format!("-> {}", canonical.0)),
            data => drop(ips.insert(data.ip_addr().map_or_else(|| data.to_string(), |ip| ip.to_string()))),
        }
    }
    words.extend(ips);
    words.join(" ")
}

/// The hosts of a small mesh, as istiod sends them.
fn rows() -> Vec<Row> {
    vec![
        row("web.default.svc.cluster.local", &["10.96.0.1"], Some(("web", "default"))),
        row("web.other.svc.cluster.local", &["10.96.0.2", "fd00::2"], Some(("web", "other"))),
        row("db-0.db.default.svc.cluster.local", &["10.1.0.1"], Some(("db-0.db", "default"))),
        row("api.example.com", &["240.240.0.1", "2001:2::1"], None),
        row("*.wild.example.com", &["240.240.0.2"], None),
        row("single", &["240.240.0.3"], None),
    ]
}

/// `(host, type, answer, whether another server was asked)` for the mesh of [`rows`].
const ANSWERS: &[(&str, RecordType, &str, bool)] = &[
    ("web.default.svc.cluster.local", RecordType::A, "NoError 10.96.0.1", false),
    ("WEB.Default.svc.cluster.LOCAL", RecordType::A, "NoError 10.96.0.1", false),
    ("web.default.svc.cluster.local", RecordType::AAAA, "NoError", false),
    ("web.other.svc.cluster.local", RecordType::A, "NoError 10.96.0.2", false),
    ("web.other.svc.cluster.local", RecordType::AAAA, "NoError fd00::2", false),
    ("web", RecordType::A, "NoError 10.96.0.1", false),
    ("web.default", RecordType::A, "NoError 10.96.0.1", false),
    ("web.other.svc", RecordType::A, "NoError 10.96.0.2", false),
    ("db-0.db", RecordType::A, "NoError 10.1.0.1", false),
    // A resolver's first try at a name that isn't complete: no other try is needed.
    ("web.other.default.svc.cluster.local", RecordType::A, "NoError -> web.other. 10.96.0.2", false),
    ("api.example.com", RecordType::A, "NoError 240.240.0.1", false),
    ("api.example.com", RecordType::AAAA, "NoError 2001:2::1", false),
    (
        "api.example.com.default.svc.cluster.local",
        RecordType::A,
        "NoError -> api.example.com. 240.240.0.1",
        false,
    ),
    ("a.wild.example.com", RecordType::A, "NoError 240.240.0.2", false),
    ("a.b.wild.example.com", RecordType::A, "NoError 240.240.0.2", false),
    ("wild.example.com", RecordType::A, "NXDomain", true),
    ("single.default.svc.cluster.local", RecordType::A, "NoError -> single. 240.240.0.3", false),
    ("outside.example", RecordType::A, "NoError 198.51.100.1", true),
    ("nobody.default.svc.cluster.local", RecordType::A, "NXDomain", true),
    ("api.example.com.svc.cluster.local", RecordType::A, "NXDomain", true),
    ("web.default.svc.cluster.local", RecordType::TXT, "NoError text", true),
    ("1.0.96.10.in-addr.arpa", RecordType::PTR, "NXDomain", true),
    ("", RecordType::A, "NXDomain", true),
];

#[tokio::test]
async fn answers_from_a_table_of_all_hosts() {
    let outside = Outside::start().await;
    let server = Server::start(settings(), &[outside.address]).await;
    let before = server.udp(&query("outside.example", RecordType::A)).await;
    assert_eq!(shown(&before), "ServFail", "nothing came yet");
    assert_eq!(shown(&server.udp(&query("web", RecordType::TXT)).await), "NoError text");
    server.directory.replace(rows());
    outside.asked();
    for (host, kind, wanted, forwarded) in ANSWERS {
        let query = query(host, *kind);
        for answer in [server.udp(&query).await, server.tcp(&query).await] {
            assert_eq!(shown(&answer), *wanted, "{host} {kind}");
            assert_eq!(answer.metadata.id, query.metadata.id);
            assert_eq!(answer.queries, query.queries, "with the question as it was asked");
            let own = answer.answers.iter().all(|record| record.ttl == 30);
            assert_eq!(answer.metadata.authoritative, !forwarded, "{host}");
            assert!(own || *forwarded, "{host}");
        }
        assert_eq!(outside.asked().len(), if *forwarded { 2 } else { 0 }, "{host} {kind}");
    }
    let page = server.dns.page();
    assert_eq!(page["table"]["web.default"]["ips"], serde_json::json!(["10.96.0.1"]));
    assert_eq!(server.figure("requests_total"), (2 + 2 * ANSWERS.len()) as f64);
    let forwarded = ANSWERS.iter().filter(|(.., forwarded)| *forwarded).count();
    assert_eq!(server.figure("upstream_requests_total"), (1 + 2 * forwarded) as f64);
    assert_eq!(server.figure("upstream_failures_total"), 0.0);
}

/// Plays the control plane for hosts that are asked for: it knows `known`, and keeps silent about what has `silent` in it.
fn answer_on_demand(
    server: &Server,
    known: &'static [(&'static str, &'static [&'static str])],
) -> Arc<OnDemand> {
    let limits = Limits { look_up_patience: Duration::from_millis(300), ..Limits::default() };
    let (on_demand, mut asked) = OnDemand::new(limits);
    server.directory.ask_on_demand(on_demand.addresses().clone());
    let table = on_demand.addresses().clone();
    tokio::spawn(async move {
        while let Some(Asked { table: of, name }) = asked.recv().await {
            assert_eq!(of, Table::Addresses);
            let found = known.iter().find(|(host, _)| **host == *name);
            if !name.contains("silent") {
                table.publish(&name, found.map(|(_, ips)| addresses(ips)));
            }
        }
    });
    on_demand
}

#[tokio::test]
async fn hosts_that_are_asked_for_one_by_one() {
    let outside = Outside::start().await;
    let server = Server::start(settings(), &[outside.address]).await;
    let known: &[(&str, &[&str])] = &[
        ("web.default.svc.cluster.local", &["10.96.0.1"]),
        ("web", &["10.96.0.1"]),
        ("api.example.com", &["240.240.0.1"]),
        ("a.wild.example.com", &["240.240.0.2"]),
    ];
    let _on_demand = answer_on_demand(&server, known);
    for (host, wanted, forwarded) in [
        ("web.default.svc.cluster.local", "NoError 10.96.0.1", false),
        ("Web.default.svc.cluster.local", "NoError 10.96.0.1", false),
        ("web", "NoError 10.96.0.1", false),
        ("api.example.com.default.svc.cluster.local", "NoError -> api.example.com. 240.240.0.1", false),
        ("a.wild.example.com", "NoError 240.240.0.2", false),
        ("outside.example", "NoError 198.51.100.1", true),
        ("nobody.default.svc.cluster.local", "NXDomain", true),
        // Silence: nobody else knows what is the cluster's; about the rest others are asked.
        ("silent.default.svc.cluster.local", "ServFail", false),
        ("silent.example.com", "NXDomain", true),
        // The mesh has said that this one isn't there; that nothing is said of the shorter one changes nothing.
        ("a.silent.default.svc.cluster.local", "ServFail", false),
        // What can't be a host is not asked for.
        ("sla/sh.example.com", "NXDomain", true),
    ] {
        assert_eq!(shown(&server.udp(&query(host, RecordType::A)).await), wanted, "{host}");
        assert_eq!(outside.asked().len(), usize::from(forwarded), "{host}");
    }
    let page = server.dns.page();
    assert_eq!(page["table"]["web"]["ips"], serde_json::json!(["10.96.0.1"]));
    assert!(page["absent"].as_array().unwrap().contains(&"outside.example".into()), "{page}");
}

#[tokio::test]
async fn what_is_too_big_for_a_datagram_comes_over_tcp() {
    let server = Server::start(settings(), &[]).await;
    let many: Vec<String> = (1..=100).map(|n| format!("10.2.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    server.directory.replace(vec![row("many.example.com", &many, None)]);
    let plain = query("many.example.com", RecordType::A);
    let cut = server.udp(&plain).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = server.tcp(&plain).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);
    for (payload, truncated) in [(600, true), (4096, false), (100, true)] {
        let mut able = plain.clone();
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        able.set_edns(edns);
        let answer = server.udp(&able).await;
        assert_eq!((answer.metadata.truncation, answer.edns.is_some()), (truncated, true), "{payload}");
    }
    let mut firsts = BTreeSet::new();
    for _ in 0..50 {
        firsts.insert(server.tcp(&plain).await.answers[0].data.to_string());
    }
    assert!(firsts.len() > 5, "the order changes: {firsts:?}");
}

#[tokio::test]
async fn other_servers_are_tried_until_one_answers() {
    let outside = Outside::start().await;
    // One that nobody serves, and one that takes queries and never answers.
    let nobody = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 1);
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let silent_address = silent.local_addr().unwrap();
    let servers = [nobody, silent_address, outside.address];
    let ask = query("outside.example", RecordType::A);
    for parallel in [false, true] {
        let server = Server::start(Settings { forward_parallel: parallel, ..settings() }, &servers).await;
        server.directory.replace(rows());
        for _ in 0..4 {
            assert_eq!(shown(&server.udp(&ask).await), "NoError 198.51.100.1");
        }
        assert_eq!(outside.asked().len(), 4);
    }
    let server = Server::start(settings(), &[nobody, silent_address]).await;
    server.directory.replace(rows());
    for answer in [server.udp(&ask).await, server.tcp(&ask).await] {
        assert_eq!(shown(&answer), "ServFail");
    }
    assert_eq!(server.figure("upstream_failures_total"), 2.0);
    let server = Server::start(settings(), &[]).await;
    server.directory.replace(rows());
    assert_eq!(shown(&server.udp(&ask).await), "ServFail", "resolv.conf names no server");
}

#[tokio::test]
async fn what_is_no_query_for_one_name() {
    let server = Server::start(settings(), &[]).await;
    server.directory.replace(rows());
    let web = query("web", RecordType::A);
    let mut empty = web.clone();
    empty.queries.clear();
    assert_eq!(shown(&server.udp(&empty).await), "ServFail");
    let mut two = web.clone();
    two.add_query(Query::query(name("api.example.com"), RecordType::A));
    assert_eq!(shown(&server.udp(&two).await), "FormErr");
    let mut update = web.clone();
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(shown(&server.udp(&update).await), "NotImp");
    let mut chaos = web.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(shown(&server.udp(&chaos).await), "ServFail", "forwarded, and there is nobody");
    // An answer is no query: silence. The next query on the socket shows that it was read.
    let mut response = web.clone();
    response.metadata.message_type = MessageType::Response;
    assert!(matches!(answer::read(&response.to_vec().unwrap()), answer::Query::Drop));
    assert_eq!(shown(&server.udp(&web).await), "NoError 10.96.0.1");
}

#[tokio::test]
async fn connections_take_one_query_after_the_other_and_are_bounded() {
    let server = Server::start(settings(), &[]).await;
    server.directory.replace(rows());
    let web = query("web", RecordType::A);
    let mut open = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        for _ in 0..2 {
            forward::write_message(&mut stream, &web.to_vec().unwrap()).await.unwrap();
        }
        for _ in 0..2 {
            assert_eq!(shown(&read(&mut stream).await), "NoError 10.96.0.1");
        }
        open.push(stream);
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(tokio::time::timeout(LONG, stream.read(&mut [0])).await.expect("closed").unwrap_or(0), 0);
    // What announces more than a query can have ends its connection, and makes room.
    open[0].write_all(&[0xff, 0xff, 0, 0]).await.unwrap();
    assert_eq!(tokio::time::timeout(LONG, open[0].read(&mut [0])).await.expect("closed").unwrap_or(0), 0);
    assert_eq!(shown(&server.tcp(&web).await), "NoError 10.96.0.1");
}

#[tokio::test]
async fn queries_at_a_time_are_bounded() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = Server::start(settings(), &[silent.local_addr().unwrap()]).await;
    server.directory.replace(rows());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.address).await.unwrap();
    let asked = query("quiet.example", RecordType::A).to_vec().unwrap();
    for _ in 0..40 {
        for _ in 0..16 {
            socket.send(&asked).await.unwrap();
        }
        // Lets the server read: what the kernel drops tells nothing of its bound.
        tokio::task::yield_now().await;
    }
    // As many as there may be fail in the end, and no more.
    let mut failed = 0;
    let mut buffer = [0; 512];
    while tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await.is_ok() {
        failed += 1;
    }
    assert!((100..=512).contains(&failed), "{failed}");
    assert_eq!(shown(&server.udp(&query("web", RecordType::A)).await), "NoError 10.96.0.1");
}

fn any_query() -> impl Strategy<Value = Vec<u8>> {
    let host = "[a-z*_/-]{1,10}(\\.[a-z0-9]{1,10}){0,5}";
    (host, any::<u16>(), any::<u16>(), proptest::option::of(any::<u16>())).prop_map(
        |(host, kind, id, payload)| {
            let mut message = Message::new(id, MessageType::Query, OpCode::Query);
            message.add_query(Query::query(name(&host), RecordType::from(kind)));
            if let Some(payload) = payload {
                let mut edns = Edns::new();
                edns.set_max_payload(payload);
                message.set_edns(edns);
            }
            message.to_vec().unwrap()
        },
    )
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Whatever comes is dropped, or gets an answer that is one and has its number.
fn survives(bytes: &[u8]) -> Result<(), TestCaseError> {
    runtime().block_on(async {
        let directory = Arc::new(Directory::new(&settings()));
        directory.replace(rows());
        let dns = Dns::new(
            &settings(),
            System { search: Some(name("default.svc.cluster.local")), ..System::default() },
            directory,
        );
        for is_datagram in [true, false] {
            if let Some(answer) = dns.answer(bytes, is_datagram).await {
                prop_assert_eq!(&answer[..2], &bytes[..2]);
                prop_assert_eq!(answer[2] & 0x80, 0x80);
                prop_assert!(Message::from_vec(&answer).is_ok());
            }
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        survives(&bytes)?;
    }

    #[test]
    fn queries_with_wrong_bytes(
        query in any_query(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut query = query;
        for (at, byte) in changes {
            let at = at.index(query.len());
            query[at] = byte;
        }
        if let Some(cut) = cut {
            query.truncate(cut.index(query.len()));
        }
        survives(&query)?;
    }
}
