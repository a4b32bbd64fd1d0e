//! Listeners, filter chains and what a chain does with a connection (LDS).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::cluster::WeightedClusters;
use super::route::RouteTable;
use super::tls::ServerTls;
use crate::authz::Filter;
use crate::ext_authz::Authorizer;
use crate::http::template::Template;
use crate::jwt::Authentication;
use crate::listener::filter_chain::ChainMatcher;

/// One address that connections arrive on, or are handed to by their original destination.
#[derive(Debug)]
pub struct Listener {
    /// Resource name, e.g. `virtualOutbound` or `10.0.0.1_80`.
    pub name: Arc<str>,
    /// Address of the listener.
    pub address: SocketAddr,
    /// It is `[::]`, and takes IPv4 as well.
    pub ipv4_compat: bool,
    /// False for listeners that are only reached through one with `use_original_dst`.
    pub bind_to_port: bool,
    /// Hand each connection to the listener of its original destination (SO_ORIGINAL_DST), if there is one.
    pub use_original_dst: bool,
    /// The socket takes connections to any address (IP_TRANSPARENT), as TPROXY hands them over: what it shows as its own address is
    /// where a connection was going. Needs NET_ADMIN. Holds for a socket from its opening on.
    pub transparent: bool,
    /// Restore the original destination before the chains are matched, without handing the connection over.
    pub original_dst_filter: bool,
    /// What must be read of a connection before its chain is known; see [`Listener::inspect_at`].
    pub inspect: Inspect,
    /// Destination ports whose connections no TLS inspector looks at.
    pub tls_uninspected: Ports,
    /// Destination ports whose connections no HTTP inspector looks at.
    pub http_uninspected: Ports,
    /// Ordered chains; the most specific match wins (see [`ChainMatch`]).
    pub chains: Vec<Arc<FilterChain>>,
    /// `chains[].matches`, compiled: `ChainMatcher::new(chains.iter().map(|c| &c.matches))`, which refuses overlaps.
    pub matcher: Arc<ChainMatcher>,
    /// Chain for connections that no other chain matches. Without one they are closed (flag `NR`).
    pub default_chain: Option<Arc<FilterChain>>,
    /// The chains above are not all: for a connection with an SNI, ask for the one that takes it
    /// (`ListenerTable::get_server_name`); these are for connections without, and for names that are answered absent.
    pub chains_by_server_name: bool,
    /// Which side of the workload this is, for metrics and draining.
    pub direction: Direction,
    /// Listen back-log; `None` is the kernel's maximum.
    pub backlog: Option<u32>,
    /// Access logs for connections that no chain took.
    pub access_log: Vec<Arc<AccessLogConfig>>,
    /// Content hash of the resource; an update with an equal hash changes nothing.
    pub hash: u64,
}

impl Listener {
    /// A listener without chains, and with what Envoy takes for everything that isn't said.
    pub fn plain(name: impl Into<Arc<str>>, address: SocketAddr) -> Self {
        Self {
            name: name.into(),
            address,
            ipv4_compat: false,
            bind_to_port: true,
            use_original_dst: false,
            transparent: false,
            original_dst_filter: false,
            inspect: Inspect { timeout: Some(Duration::from_secs(15)), ..Inspect::default() },
            tls_uninspected: Ports::default(),
            http_uninspected: Ports::default(),
            chains: Vec::new(),
            matcher: Arc::default(),
            default_chain: None,
            chains_by_server_name: false,
            direction: Direction::default(),
            backlog: None,
            access_log: Vec::new(),
            hash: 0,
        }
    }

    /// Every address of it: one, or the wildcards of both families.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let ipv4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), self.address.port());
        std::iter::once(self.address).chain(self.ipv4_compat.then_some(ipv4))
    }

    /// What must be read of a connection to this port. Where a server may speak first, that is nothing.
    pub fn inspect_at(&self, port: u16) -> Inspect {
        Inspect {
            tls: self.inspect.tls && !self.tls_uninspected.contains(port),
            http: self.inspect.http && !self.http_uninspected.contains(port),
            ..self.inspect.clone()
        }
    }

    /// True where plaintext comes through to the workload. Where connections are captured, a chain for the listener's own port is none
    /// of its ways: it keeps what was sent to the proxy itself from going round.
    pub fn takes_plaintext(&self) -> bool {
        let captures = self.original_dst_filter || self.use_original_dst;
        let own = |chain: &FilterChain| chain.matches.destination_port == Some(self.address.port());
        let chains = self.chains.iter().chain(&self.default_chain);
        chains.filter(|chain| !(captures && own(chain))).any(|chain| !chain.transport.is_tls())
    }

    /// The chain that takes a connection; `None`: it is closed with flag `NR`.
    pub fn chain_for(&self, inputs: &ConnectionInputs) -> Option<&Arc<FilterChain>> {
        match self.matcher.find(inputs) {
            Some(index) => self.chains.get(index),
            None => self.default_chain.as_ref(),
        }
    }
}

/// The traffic direction that the control plane declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Direction {
    /// Not declared.
    #[default]
    Unspecified,
    /// Towards the local workload; metrics report as `destination`.
    Inbound,
    /// From the local workload; metrics report as `source`.
    Outbound,
}

/// Which inspectors run before the filter chain is chosen.
#[derive(Debug, Clone, Default)]
pub struct Inspect {
    /// Look for a TLS ClientHello (transport protocol, SNI, ALPN).
    pub tls: bool,
    /// Look for an HTTP/1 request line or the HTTP/2 preface.
    pub http: bool,
    /// Give up after this time; `None` waits for ever.
    pub timeout: Option<Duration>,
    /// On time-out go on with what is known instead of closing.
    pub continue_on_timeout: bool,
}

/// A set of ports, as conditions of a listener filter put it together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Ports {
    /// No port.
    #[default]
    None,
    /// Every port.
    All,
    /// From the first to the last.
    Range(u16, u16),
    /// Ports in any of these.
    AnyOf(Vec<Ports>),
    /// Ports in all of these.
    AllOf(Vec<Ports>),
    /// Ports that are not in this.
    Not(Box<Ports>),
}

impl Ports {
    /// True if a port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Range(first, last) => (*first..=*last).contains(&port),
            Self::AnyOf(sets) => sets.iter().any(|set| set.contains(port)),
            Self::AllOf(sets) => sets.iter().all(|set| set.contains(port)),
            Self::Not(set) => !set.contains(port),
        }
    }
}

/// What is known of a connection when its chain is chosen. Kept with the connection: a later request matches anew with it.
#[derive(Debug, Clone)]
pub struct ConnectionInputs {
    /// Peer address.
    pub source: SocketAddr,
    /// Where the connection was going (original destination, or the local address).
    pub destination: SocketAddr,
    /// What the inspectors saw; `RawBuffer` if they didn't run or found nothing.
    pub transport: TransportProtocol,
    /// SNI of the ClientHello, lower-cased.
    pub server_name: Option<Arc<str>>,
    /// ALPN of the ClientHello, or what HTTP inspection found (`http/1.0`, `http/1.1`, `h2c`).
    pub application_protocols: Vec<Arc<str>>,
}

/// `transport_protocol` of a filter chain match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TransportProtocol {
    /// Not TLS.
    #[default]
    RawBuffer,
    /// A ClientHello was seen.
    Tls,
}

/// Envoy's FilterChainMatch. Matching goes through the criteria in the fixed order of Envoy's documentation (destination port,
/// destination IP, server name, transport protocol, application protocols, directly connected source, source type, source IP,
/// source port); at each step the most specific candidates survive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ChainMatch {
    /// Original destination port.
    pub destination_port: Option<u16>,
    /// Destination addresses; empty matches all.
    pub prefix_ranges: Vec<IpNet>,
    /// Lower-cased exact names, or `*.suffix`; empty matches all.
    pub server_names: Vec<Arc<str>>,
    /// `tls` or `raw_buffer`; `None` matches both.
    pub transport: Option<TransportProtocol>,
    /// Any of these; empty matches all.
    pub application_protocols: Vec<Arc<str>>,
    /// Directly connected peers; empty matches all.
    pub direct_source_ranges: Vec<IpNet>,
    /// Local or external sources only.
    pub source_type: SourceType,
    /// Peers; empty matches all.
    pub source_ranges: Vec<IpNet>,
    /// Peer ports; empty matches all.
    pub source_ports: Vec<u16>,
}

/// `source_type` of a filter chain match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SourceType {
    /// Any source.
    #[default]
    Any,
    /// The peer has the destination's own address, or a loopback one.
    SameIpOrLoopback,
    /// The peer is another host.
    External,
}

/// How one kind of connection is handled.
#[derive(Debug)]
pub struct FilterChain {
    /// Name for logs; may be empty.
    pub name: Arc<str>,
    /// When the chain applies.
    pub matches: ChainMatch,
    /// How the bytes are secured downstream.
    pub transport: DownstreamTransport,
    /// What happens to the connection.
    pub action: NetworkAction,
}

/// Downstream transport security.
#[derive(Debug, Clone)]
pub enum DownstreamTransport {
    /// Bytes as they are.
    Plaintext,
    /// TLS, ended here.
    Tls(ServerTls),
}

impl DownstreamTransport {
    /// True where bytes are encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// The terminal network filter of a chain.
#[derive(Debug, Clone)]
pub enum NetworkAction {
    /// Copy bytes to an upstream.
    Tcp(Arc<TcpProxy>),
    /// Serve HTTP.
    Http(Arc<HttpManager>),
}

/// Envoy's TcpProxy filter.
#[derive(Debug)]
pub struct TcpProxy {
    /// Statistics prefix.
    pub stat_prefix: Arc<str>,
    /// Where the bytes go.
    pub clusters: WeightedClusters,
    /// Take the cluster's name from the SNI (filter `sni_cluster`), falling back to `clusters`.
    pub cluster_from_sni: bool,
    /// Close after this long without a byte either way; `None` never.
    pub idle_timeout: Option<Duration>,
    /// Close after this long in any case.
    pub max_duration: Option<Duration>,
    /// Connect attempts before giving up.
    pub max_connect_attempts: u32,
    /// Who else is asked before.
    pub authorizers: Arc<[Authorizer]>,
    /// Who may connect.
    pub authorization: Arc<[Filter]>,
    /// Access logs.
    pub access_log: Vec<Arc<AccessLogConfig>>,
}

/// What becomes of `x-forwarded-client-cert`, by which an application learns who its client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardCertificate {
    /// It is removed.
    #[default]
    Remove,
    /// It stays where the client has shown a certificate, and is removed elsewhere.
    KeepWhereProved,
    /// Where the client has shown a certificate, that is added; elsewhere the header is removed.
    Append(CertificateDetails),
    /// It says what certificate the client has shown, and nothing else.
    Replace(CertificateDetails),
    /// It stays.
    Keep,
}

/// What is told of a client's certificate, beside who we are and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CertificateDetails {
    /// The subject.
    pub subject: bool,
    /// The URI names.
    pub uri: bool,
    /// The DNS names.
    pub dns: bool,
}

/// Envoy's HttpConnectionManager, with its route table linked.
#[derive(Debug, Clone)]
pub struct HttpManager {
    /// Statistics prefix.
    pub stat_prefix: Arc<str>,
    /// Which HTTP version the downstream speaks.
    pub codec: Codec,
    /// The route table, linked when the snapshot is built. `None`: RDS named one that hasn't come (404, flag NR).
    pub routes: Option<Arc<RouteTable>>,
    /// Name of the RDS resource, where the table isn't inline.
    pub route_config_name: Option<Arc<str>>,
    /// What happens to the response's `server` header.
    pub server_header: ServerHeader,
    /// What becomes of `x-forwarded-client-cert`.
    pub forward_certificate: ForwardCertificate,
    /// Generate `x-request-id` where missing.
    pub generate_request_id: bool,
    /// Keep the request id of the client, even at an edge.
    pub preserve_external_request_id: bool,
    /// Put the request id into the response as well.
    pub request_id_in_response: bool,
    /// Append the peer to `x-forwarded-for` and take it as the client address (`use_remote_address`).
    pub use_remote_address: bool,
    /// Do not append to `x-forwarded-for`.
    pub skip_xff_append: bool,
    /// Trusted hops in `x-forwarded-for`.
    pub xff_trusted_hops: u32,
    /// Addresses whose requests are internal (`internal_address_config`); Envoy's default, and Istio's, is none.
    pub internal_addresses: Box<[IpNet]>,
    /// Add `via` with this text.
    pub via: Option<Arc<str>>,
    /// Drop the port of `Host` before matching.
    pub strip_port: StripPort,
    /// Path normalisation before matching.
    pub normalize: Normalize,
    /// Size, count and rate limits.
    pub limits: HttpLimits,
    /// Time-outs of the connection and its streams.
    pub timeouts: HttpTimeouts,
    /// Upgrade types that are allowed, lower-cased, e.g. `websocket`. `connect` allows CONNECT.
    pub upgrades: Vec<Arc<str>>,
    /// HTTP/1 switches.
    pub http1: Http1Options,
    /// HTTP/2 switches.
    pub http2: Http2Options,
    /// Send `Expect: 100-continue` to the upstream and its 100 back, instead of answering 100 here.
    pub proxy_100_continue: bool,
    /// HTTP peer metadata headers, where the control plane asked for them.
    pub peer_metadata: PeerMetadata,
    /// `CONNECT host:port` opens a new original destination (explicit-proxy listeners only).
    pub explicit_proxy: bool,
    /// Who else is asked, before tokens are looked at.
    pub authorizers: Arc<[Authorizer]>,
    /// Whose tokens requests have.
    pub authentication: Option<Arc<Authentication>>,
    /// Who may ask for what.
    pub authorization: Arc<[Filter]>,
    /// Access logs.
    pub access_log: Vec<Arc<AccessLogConfig>>,
}

/// `codec_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Codec {
    /// Sniff the HTTP/2 preface.
    #[default]
    Auto,
    /// HTTP/1 only.
    Http1,
    /// HTTP/2 with prior knowledge only.
    Http2,
}

/// `server_header_transformation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerHeader {
    /// Replace by this name.
    Overwrite(Arc<str>),
    /// Set this name where the upstream sent none.
    AppendIfAbsent(Arc<str>),
    /// Leave as it is.
    PassThrough,
}

/// Which ports of `Host` are dropped before matching.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StripPort {
    /// None.
    #[default]
    No,
    /// The one equal to the listener's port.
    Matching,
    /// Any.
    Any,
}

/// Path normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Normalize {
    /// RFC 3986 dot segments, backslashes, unreserved percent-decoding.
    pub path: bool,
    /// `//` to `/`.
    pub merge_slashes: bool,
    /// What to do with escaped slashes.
    pub escaped_slashes: EscapedSlashes,
}

/// `path_with_escaped_slashes_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    /// Keep `%2F` and `%5C` as they are.
    #[default]
    Keep,
    /// 400.
    Reject,
    /// Decode and redirect to the decoded path (307).
    Redirect,
    /// Decode and go on.
    Decode,
}

/// Limits that a hostile client meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// Bytes of a request head (Envoy: 60 KiB).
    pub max_request_head_bytes: u32,
    /// Header lines of a request (Envoy: 100).
    pub max_request_headers: u32,
    /// Requests on one connection before it is ended politely; `None` has no limit.
    pub max_requests_per_connection: Option<u32>,
    /// Stream resets per second and connection that a client may cause before GOAWAY.
    pub max_resets_per_second: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_request_head_bytes: 60 * 1024,
            max_request_headers: 100,
            max_requests_per_connection: None,
            max_resets_per_second: 200,
        }
    }
}

/// Time-outs of an HTTP connection manager; `None` switches one off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpTimeouts {
    /// Connection without an active stream.
    pub idle: Option<Duration>,
    /// Longest life of a connection.
    pub max_connection_duration: Option<Duration>,
    /// Stream without progress.
    pub stream_idle: Option<Duration>,
    /// Longest life of a stream.
    pub max_stream_duration: Option<Duration>,
    /// From the first byte of a request to its last.
    pub request: Option<Duration>,
    /// From the first byte of a request to the end of its head.
    pub request_headers: Option<Duration>,
    /// Between the two GOAWAYs of a drain.
    pub drain: Duration,
    /// Wait for the peer's close after a local error reply.
    pub delayed_close: Duration,
}

impl Default for HttpTimeouts {
    fn default() -> Self {
        Self {
            idle: Some(Duration::from_secs(3600)),
            max_connection_duration: None,
            stream_idle: Some(Duration::from_secs(300)),
            max_stream_duration: None,
            request: None,
            request_headers: None,
            drain: Duration::from_secs(5),
            delayed_close: Duration::from_secs(1),
        }
    }
}

/// `http_protocol_options`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http1Options {
    /// Accept HTTP/1.0.
    pub accept_http_10: bool,
    /// Host for HTTP/1.0 requests without one.
    pub default_host_for_http_10: Option<Arc<str>>,
    /// Forward chunked trailers.
    pub enable_trailers: bool,
    /// Emit header names as they came (HTTP/1 on both sides).
    pub preserve_header_case: bool,
    /// Allow absolute-form targets (default true).
    pub refuse_absolute_url: bool,
}

/// `http2_protocol_options`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Http2Options {
    /// SETTINGS_MAX_CONCURRENT_STREAMS.
    pub max_concurrent_streams: u32,
    /// Stream window in bytes.
    pub initial_stream_window: u32,
    /// Connection window in bytes.
    pub initial_connection_window: u32,
    /// Extended CONNECT.
    pub allow_connect: bool,
    /// PING interval and time-out.
    pub keepalive: Option<(Duration, Duration)>,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 1024,
            initial_stream_window: 1024 * 1024,
            initial_connection_window: 4 * 1024 * 1024,
            allow_connect: false,
            keepalive: None,
        }
    }
}

/// Which peer metadata headers are written and read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerMetadata {
    /// Add our own to requests (outbound), and to responses whose request carried some (inbound).
    pub send: bool,
    /// Read the peer's, and remove them before the application sees them.
    pub receive: bool,
}

/// One access log of a listener, chain or route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// Where lines go.
    pub sink: AccessLogSink,
    /// Text format with `%COMMAND%`s, or JSON keys with formats; `None` is Istio's default text format.
    pub format: AccessLogFormat,
}

/// Target of an access log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AccessLogSink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to.
    File(Arc<str>),
}

/// Shape of an access log line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AccessLogFormat {
    /// Istio's default line.
    #[default]
    Default,
    /// Text with `%COMMAND%`s, with its line end.
    Text(Template),
    /// JSON object: key and text with `%COMMAND%`s, in order.
    Json(Box<[(Box<str>, Template)]>),
}

impl ConnectionInputs {
    /// True where the peer is this host itself, as `source_type` means it.
    pub fn is_local(&self) -> bool {
        let source: IpAddr = self.source.ip().to_canonical();
        source.is_loopback() || source == self.destination.ip().to_canonical()
    }
}
