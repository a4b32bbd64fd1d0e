//! The parts of these tests: a proxy on a port of its own, scripted upstreams, raw clients.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::config::cluster::{Cluster, ClusterHandle, ClusterSpec, Discovery, UpstreamProtocol};
use crate::config::endpoint::{EndpointSet, EndpointSpec};
use crate::config::listener::{
    AccessLogConfig, AccessLogFormat, AccessLogSink, ChainMatch, ConnectionInputs, Direction,
    DownstreamTransport, FilterChain, HttpManager, Listener, NetworkAction, TransportProtocol,
};
use crate::config::route::{
    Action, Forward, ForwardTarget, HeaderOps, HostIndex, PathMatch, RequireTls, Route, RouteTable, Text,
    VirtualHost, VirtualHosts,
};
use crate::http::exchange::Exchanges;
use crate::http::server::{self, Ended};
use crate::http::template::Template;
use crate::http::test_support::{forward, manager, path_match};
use crate::listener::connection::{Connection, ListenerSource};
use crate::listener::filter_chain::ChainMatcher;
use crate::worker::{Shared, Worker};

/// Whatever takes longer has failed; generous, because the machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What a line of the access log says in these tests.
const LOG: &str = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% \
    %UPSTREAM_REQUEST_ATTEMPT_COUNT% %ROUTE_NAME% %UPSTREAM_CLUSTER_RAW%\n";

pub fn route(name: &str, prefix: &str, action: Action) -> Route {
    let prefix = PathMatch::Prefix(Text { value: prefix.as_bytes().into(), ignore_case: false });
    Route {
        name: name.into(),
        matches: path_match(prefix),
        action,
        headers: HeaderOps::default(),
        decorator: None,
    }
}

/// A route for everything to `cluster`, changed by `change`.
pub fn to(cluster: &Arc<ClusterHandle>, change: impl FnOnce(&mut Forward)) -> Route {
    let mut forward = Forward { target: ForwardTarget::Cluster(cluster.clone()), ..forward() };
    change(&mut forward);
    route("all", "/", Action::Forward(Box::new(forward)))
}

pub fn host(routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: "any".into(),
        routes: routes.into_iter().map(Arc::new).collect(),
        headers: HeaderOps::default(),
        require_tls: RequireTls::None,
        attempt_count_in_request: true,
        attempt_count_in_response: false,
    }
}

pub fn table(host: VirtualHost) -> RouteTable {
    let mut index = HostIndex::default();
    index.insert("*", &Arc::new(host));
    RouteTable {
        name: "table".into(),
        hosts: VirtualHosts::Known(index),
        ignore_port_in_host: true,
        headers: HeaderOps::default(),
        most_specific_wins: false,
        hash: 0,
    }
}

/// A cluster of these endpoints.
pub fn cluster(endpoints: &[SocketAddr], change: impl FnOnce(&mut ClusterSpec)) -> Arc<ClusterHandle> {
    let mut spec = ClusterSpec::plain("backend", Discovery::Static);
    spec.connect_timeout = Duration::from_secs(5);
    change(&mut spec);
    let cluster = Cluster::new(spec, None);
    let set = EndpointSet::build(
        endpoints.iter().map(|address| (*address, EndpointSpec::default())),
        &cluster.live,
        cluster.spec.set_settings(1),
    );
    cluster.set_endpoints(Arc::new(set));
    let handle = ClusterHandle::empty("backend");
    handle.publish(cluster);
    handle
}

pub fn http2(spec: &mut ClusterSpec) {
    spec.protocol = UpstreamProtocol::Http2;
}

/// A proxy with one listener.
pub struct Proxy {
    pub address: SocketAddr,
    pub worker: Arc<Worker>,
    pub ended: tokio::sync::mpsc::UnboundedReceiver<Ended>,
    log: tempfile::NamedTempFile,
}

impl Proxy {
    /// Serves these routes.
    pub async fn start(routes: Vec<Route>) -> Self {
        Self::with(table(host(routes)), |_| {}).await
    }

    /// Serves this table with a connection manager that `change` has changed.
    pub async fn with(table: RouteTable, change: impl FnOnce(&mut HttpManager)) -> Self {
        Self::beside(Arc::default(), Direction::Outbound, table, change).await
    }

    /// The same on one side of a workload.
    pub async fn beside(
        shared: Arc<Shared>,
        direction: Direction,
        table: RouteTable,
        change: impl FnOnce(&mut HttpManager),
    ) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut manager = manager();
        manager.routes = Some(Arc::new(table));
        manager.access_log = vec![Arc::new(AccessLogConfig {
            sink: AccessLogSink::File(log.path().to_str().unwrap().into()),
            format: AccessLogFormat::Text(Template::parse(LOG).unwrap()),
        })];
        change(&mut manager);
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let worker = Worker::here(shared);
        let (report, ended) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(accept(socket, worker.clone(), direction, manager, report));
        Self { address, worker, ended, log }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Sends a request on a connection of its own and returns the whole reply.
    pub async fn ask(&self, request: &str) -> Reply {
        let mut client = self.client().await;
        client.send(request).await;
        client.reply().await
    }

    /// What the workers have counted, as Prometheus reads it.
    pub fn metrics(&self) -> String {
        let registry = prometheus::Registry::new();
        registry.register(Box::new(self.worker.shared.metrics.clone())).unwrap();
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    /// The lines of the access log, once there are `count`.
    pub async fn log(&self, count: usize) -> Vec<String> {
        let lines = async {
            loop {
                self.worker.shared.access_logs.finish(Duration::from_secs(1));
                let text = std::fs::read_to_string(self.log.path()).unwrap();
                if text.lines().count() >= count {
                    return text.lines().map(str::to_owned).collect();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, lines).await.expect("lines in the access log")
    }
}

/// A listener of one chain.
pub fn listener(address: SocketAddr, direction: Direction, manager: HttpManager) -> Listener {
    let chain = Arc::new(FilterChain {
        name: "test".into(),
        matches: ChainMatch::default(),
        transport: DownstreamTransport::Plaintext,
        action: NetworkAction::Http(Arc::new(manager)),
    });
    Listener {
        matcher: ChainMatcher::new([&chain.matches]).unwrap().into(),
        chains: vec![chain],
        direction,
        ..Listener::plain("test", address)
    }
}

async fn accept(
    socket: TcpListener,
    worker: Arc<Worker>,
    direction: Direction,
    manager: HttpManager,
    report: tokio::sync::mpsc::UnboundedSender<Ended>,
) {
    let address = socket.local_addr().unwrap();
    let listener = Arc::new(listener(address, direction, manager));
    let chain = listener.chains[0].clone();
    while let Ok((tcp, peer)) = socket.accept().await {
        tcp.set_nodelay(true).unwrap();
        let inputs = ConnectionInputs {
            source: peer,
            destination: address,
            transport: TransportProtocol::RawBuffer,
            server_name: None,
            application_protocols: Vec::new(),
        };
        let source = ListenerSource::Named("test".into());
        let connection = Connection::new(&worker, &listener, source, chain.clone(), 0, inputs, address);
        let (worker, report) = (worker.clone(), report.clone());
        tokio::spawn(async move {
            let connection = Arc::new(connection);
            let served = server::serve(&worker, &connection, tcp.into(), BytesMut::new(), &Exchanges);
            let _ = report.send(served.await);
        });
    }
}

/// A raw connection, of a client or of an upstream.
pub struct Client {
    pub tcp: TcpStream,
    seen: Vec<u8>,
    /// Trailers of the last chunked body.
    pub trailers: Vec<String>,
}

/// A head and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Up to the empty line, lower-cased but for the first line.
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status")
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Self::of(tcp)
    }

    pub fn of(tcp: TcpStream) -> Self {
        Self { tcp, seen: Vec::new(), trailers: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.tcp.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn fill(&mut self) -> bool {
        let read = tokio::time::timeout(DEADLINE, self.tcp.read_buf(&mut self.seen)).await;
        match read {
            Ok(read) => read.unwrap_or(0) > 0,
            Err(_) => panic!("nothing after {:?}", String::from_utf8_lossy(&self.seen)),
        }
    }

    /// Reads a head; `None` where the peer closes before one.
    pub async fn head(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.seen.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.seen.drain(..end + 4).collect();
                return Some(String::from_utf8(head).unwrap().replace("\r\n", "\n").trim_end().to_owned());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    pub async fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.seen.len() < count {
            assert!(self.fill().await, "closed after {:?}", String::from_utf8_lossy(&self.seen));
        }
        self.seen.drain(..count).collect()
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.seen.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.seen.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The body that `head` announces; `None` where it is cut off.
    pub async fn body(&mut self, head: &str) -> Option<Vec<u8>> {
        let lower = head.to_ascii_lowercase();
        let value = |name: &str| lower.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if value("transfer-encoding:") == Some("chunked") {
            let mut body = Vec::new();
            loop {
                let size = usize::from_str_radix(self.line().await?.split(';').next()?.trim(), 16).ok()?;
                if size == 0 {
                    self.trailers.clear();
                    loop {
                        match self.line().await? {
                            line if line.is_empty() => return Some(body),
                            line => self.trailers.push(line),
                        }
                    }
                }
                while self.seen.len() < size + 2 {
                    if !self.fill().await {
                        return None;
                    }
                }
                body.extend(self.seen.drain(..size + 2).take(size));
            }
        }
        if let Some(length) = value("content-length:").and_then(|text| text.parse::<usize>().ok()) {
            while self.seen.len() < length {
                if !self.fill().await {
                    return None;
                }
            }
            return Some(self.seen.drain(..length).collect());
        }
        if head.starts_with("HTTP/") {
            while self.fill().await {}
            return Some(std::mem::take(&mut self.seen));
        }
        Some(Vec::new())
    }

    /// A whole request, as an upstream sees it.
    pub async fn request(&mut self) -> Option<Reply> {
        let head = self.head().await?;
        let body = self.body(&head).await?;
        Some(Reply { head, body: String::from_utf8_lossy(&body).into_owned() })
    }

    /// A whole reply.
    pub async fn reply(&mut self) -> Reply {
        self.request().await.expect("a whole reply")
    }

    /// Reads so many bytes, or to the end.
    pub async fn exactly_or_end(&mut self, count: usize) {
        while self.seen.len() < count && self.fill().await {}
    }

    /// Reads to the end, however long that takes.
    pub async fn rest_quietly(&mut self) {
        let mut buffer = [0; 4096];
        while self.tcp.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    }

    /// Closes with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Reads to the end.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await {}
        std::mem::take(&mut self.seen)
    }
}

/// Listens, and gives each connection with its number to `serve`.
pub async fn upstream<F, Fut>(serve: F) -> Upstream
where
    F: Fn(usize, Client) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = socket.accept().await {
            tcp.set_nodelay(true).unwrap();
            let number = counted.fetch_add(1, SeqCst);
            tokio::spawn(serve(number, Client::of(tcp)));
        }
    });
    Upstream { address, connections }
}

pub struct Upstream {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

/// An upstream that answers each request with its head (and body) as text.
pub async fn mirror() -> Upstream {
    upstream(|_, mut client| async move {
        while let Some(request) = client.request().await {
            let text = format!("{}\n\n{}", request.head, request.body);
            let head = format!("HTTP/1.1 200 OK\r\nx-up: 1\r\ncontent-length: {}\r\n\r\n", text.len());
            client.send(head + &text).await;
        }
    })
    .await
}

/// An address where nobody listens.
pub async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
