//! Opens connections to endpoints: local address, keepalive, TLS, time-out, and errors that say whose fault it was.
//!
//! The time-out is one for the connect and the TLS handshake together. Nothing has been sent when a connect fails, so the caller may always try another endpoint.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::live::{ConnectionPermit, EndpointState};
use crate::config::cluster::{ClusterSpec, TcpKeepalive};
use crate::config::tls::Within;
use crate::error::{Kind, Progress, ProxyError, Side};
use crate::identity::vouch::Vouch;
use crate::io::Stream;
use crate::io::tls::{TlsStream, invalid};

/// A connection to an endpoint for opaque bytes, counted at its cluster until dropped.
#[derive(Debug)]
pub struct TcpConnection {
    /// The socket, with TLS where the endpoint wants it.
    pub stream: Stream,
    /// By what the endpoint is believed, where it has proved who it is.
    pub vouch: Option<Arc<Vouch>>,
    /// Its place among the cluster's connections.
    pub permit: ConnectionPermit,
}

/// Opens a connection for opaque bytes. Where the cluster's limit is reached it fails with [`Kind::Overflow`]: unlike a
/// request, a connection doesn't wait.
pub async fn open_tcp(
    endpoint: &Arc<EndpointState>,
    spec: &ClusterSpec,
) -> Result<TcpConnection, ProxyError> {
    let Some(permit) = ConnectionPermit::try_new(endpoint) else {
        endpoint.cluster.counters.connection_overflow.fetch_add(1, Relaxed);
        return Err(endpoint.cluster.overflow("max_connections"));
    };
    let permit = permit.busy();
    let Connected { stream, vouch } = connect(&permit, spec, Within::Opaque).await?;
    Ok(TcpConnection { stream, vouch, permit })
}

/// A socket to an endpoint, and by what the endpoint is believed.
pub(super) struct Connected {
    pub(super) stream: Stream,
    pub(super) vouch: Option<Arc<Vouch>>,
}

/// Connects to the permit's endpoint and counts the outcome.
pub(super) async fn connect(
    permit: &ConnectionPermit,
    spec: &ClusterSpec,
    within: Within,
) -> Result<Connected, ProxyError> {
    let endpoint = permit.endpoint();
    let attempt = secured(endpoint, spec, within, permit.asked().map(|name| &**name));
    let outcome = match tokio::time::timeout(spec.connect_timeout, attempt).await {
        Ok(outcome) => outcome.map_err(|failure| failure.into_error(endpoint)),
        Err(_) => {
            endpoint.cluster.counters.connect_timeouts.fetch_add(1, Relaxed);
            let detail = format!("{} did not accept within {:?}", endpoint.address, spec.connect_timeout);
            Err(ProxyError::new(Kind::ConnectTimeout, Side::Upstream, Progress::NothingSent, detail))
        }
    };
    let (cluster, counters) = (&endpoint.cluster.counters, &endpoint.counters);
    let [of_cluster, of_endpoint] = match &outcome {
        Ok(_) => [&cluster.connections_opened, &counters.connections_opened],
        Err(_) => [&cluster.connect_failures, &counters.connect_failures],
    };
    of_cluster.fetch_add(1, Relaxed);
    of_endpoint.fetch_add(1, Relaxed);
    outcome
}

/// Why a dial failed: before the peer was asked, or by the way to it.
#[derive(Debug, thiserror::Error)]
enum DialFailure {
    #[error("local address {0} cannot reach {1}: one is IPv4, the other IPv6")]
    Family(SocketAddr, SocketAddr),
    #[error("local connection failure: {0}")]
    Local(io::Error),
    #[error("remote connection failure: {0}")]
    Remote(io::Error),
    #[error("TLS_error: {0}")]
    Tls(String),
    #[error("TLS_error: what the request asks for is no name that a certificate can have")]
    NoName,
    #[error("TLS_error: there is no certificate to show yet")]
    NoCertificate,
}

impl DialFailure {
    fn into_error(self, endpoint: &EndpointState) -> ProxyError {
        let side = match self {
            Self::Remote(_) | Self::Tls(_) => Side::Upstream,
            Self::Local(_) | Self::Family(..) | Self::NoCertificate | Self::NoName => Side::Internal,
        };
        let detail: Cow<'static, str> = format!("{}: {self}", endpoint.address).into();
        ProxyError::new(Kind::ConnectFailed, side, Progress::NothingSent, detail)
    }
}

async fn secured(
    endpoint: &EndpointState,
    spec: &ClusterSpec,
    within: Within,
    asked: Option<&str>,
) -> Result<Connected, DialFailure> {
    let Some(tls) = spec.transport.towards(&endpoint.transport) else {
        let stream = dial(endpoint.address, spec).await.map(Stream::Plain)?;
        return Ok(Connected { stream, vouch: None });
    };
    if !tls.is_ready() {
        return Err(DialFailure::NoCertificate);
    }
    let tcp = dial(endpoint.address, spec).await?;
    let server_name = tls.server_name(asked, endpoint.address.ip()).ok_or(DialFailure::NoName)?;
    let (before, session) = (tls.before(), tls.session(endpoint.address));
    let handshake = TlsStream::connect(tcp, tls.config(within, session.as_ref()), server_name.clone());
    let failed = |error| DialFailure::Tls(reason(error));
    let stream = Box::pin(handshake).await.map_err(failed)?;
    let chain = stream.peer_certificates();
    if stream.is_resumed() {
        tls.look_again(within, chain.as_deref(), &server_name).map_err(invalid).map_err(failed)?;
    }
    let vouch = before
        .map(|before| before.ended(chain.as_deref(), tls.known()))
        .transpose()
        .map_err(failed)?
        .flatten();
    if let (Some(session), Some(vouch)) = (session, &vouch) {
        session.is_believed_until(vouch.peer().not_after);
    }
    Ok(Connected { stream: Stream::Tls(Box::new(stream)), vouch })
}

/// Why a handshake failed. What a certificate lacks is told in whole words.
fn reason(error: io::Error) -> String {
    use rustls::{CertificateError as Lacks, Error};
    let Some(Error::InvalidCertificate(lacks)) =
        error.get_ref().and_then(|inner| inner.downcast_ref::<Error>())
    else {
        return error.to_string();
    };
    let why: Cow<'_, str> = match lacks {
        Lacks::Expired | Lacks::ExpiredContext { .. } => "it has ended".into(),
        Lacks::NotValidYet | Lacks::NotValidYetContext { .. } => "it has not begun yet".into(),
        Lacks::UnknownIssuer => "its signer is not among the roots".into(),
        Lacks::InvalidPurpose | Lacks::InvalidPurposeContext { .. } => "it is not for servers".into(),
        Lacks::Other(other) => other.0.to_string().into(),
        other => other.to_string().into(),
    };
    format!("certificate verify failed: {why}")
}

async fn dial(address: SocketAddr, spec: &ClusterSpec) -> Result<TcpStream, DialFailure> {
    let socket = prepare(address, spec)?;
    socket.connect(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => {
            DialFailure::Local(error)
        }
        _ => DialFailure::Remote(error),
    })
}

fn prepare(address: SocketAddr, spec: &ClusterSpec) -> Result<TcpSocket, DialFailure> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))
        .map_err(DialFailure::Local)?;
    socket.set_nonblocking(true).map_err(DialFailure::Local)?;
    socket.set_tcp_nodelay(true).map_err(DialFailure::Local)?;
    if let Some(bind) = spec.bind_address {
        let local = bind.towards(address).ok_or(DialFailure::Family(bind.first, address))?;
        // The port is chosen at connect, per destination: else one local address has 28,000 connections in all.
        // Kernels that don't know the option only lose that.
        let _ = setsockopt(&socket, IpBindAddressNoPort, &true);
        socket.bind(&local.into()).map_err(DialFailure::Local)?;
    }
    if let Some(keepalive) = &spec.tcp_keepalive {
        set_keepalive(&socket, keepalive).map_err(DialFailure::Local)?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

fn set_keepalive(socket: &Socket, keepalive: &TcpKeepalive) -> io::Result<()> {
    let mut settings = socket2::TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        settings = settings.with_time(time);
    }
    if let Some(interval) = keepalive.interval {
        settings = settings.with_interval(interval);
    }
    if let Some(probes) = keepalive.probes {
        settings = settings.with_retries(probes);
    }
    SockRef::from(socket).set_tcp_keepalive(&settings)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;
    use crate::config::cluster::{BindAddress, ClusterLimits, Discovery};
    use crate::config::endpoint::EndpointSet;
    use crate::upstream::live::LiveState;

    fn spec() -> ClusterSpec {
        ClusterSpec::plain("c", Discovery::Static)
    }

    fn local(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    async fn listen() -> (TcpListener, Arc<EndpointState>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = LiveState::new("c").endpoint(listener.local_addr().unwrap());
        (listener, endpoint)
    }

    #[tokio::test]
    async fn connects_from_the_bind_address_with_its_options() {
        let (listener, endpoint) = listen().await;
        let keepalive = TcpKeepalive {
            time: Some(Duration::from_secs(30)),
            interval: Some(Duration::from_secs(5)),
            probes: Some(4),
        };
        let spec = ClusterSpec {
            bind_address: Some(local("127.0.0.6:0").into()),
            tcp_keepalive: Some(keepalive),
            ..spec()
        };
        let connection = open_tcp(&endpoint, &spec).await.unwrap();
        let (_, peer) = listener.accept().await.unwrap();
        assert_eq!(peer.ip().to_string(), "127.0.0.6");
        let socket = SockRef::from(connection.stream.as_tcp().unwrap());
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(5));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
        assert_eq!((endpoint.connections(), endpoint.counters.connections_opened.load(Relaxed)), (1, 1));
        assert_eq!(endpoint.active(), 1, "least request counts it");
        drop(connection);
        assert_eq!((endpoint.connections(), endpoint.active()), (0, 0));
    }

    #[tokio::test]
    async fn connects_from_the_bind_address_of_the_endpoints_family() {
        let (v4, v6) = (local("127.0.0.6:0"), local("[::1]:0"));
        for (first, second) in [(v4, v6), (v6, v4)] {
            let bind = BindAddress { first, second: Some(second) };
            let spec = ClusterSpec { bind_address: Some(bind), ..spec() };
            for (to, from) in [("127.0.0.1:0", v4), ("[::1]:0", v6)] {
                let listener = TcpListener::bind(to).await.unwrap();
                let endpoint = LiveState::new("c").endpoint(listener.local_addr().unwrap());
                let _connection = open_tcp(&endpoint, &spec).await.unwrap();
                assert_eq!(listener.accept().await.unwrap().1.ip(), from.ip());
            }
        }
    }

    #[tokio::test]
    async fn a_refused_connect_is_the_upstreams_failure_and_nothing_was_sent() {
        let (listener, endpoint) = listen().await;
        drop(listener);
        let error = open_tcp(&endpoint, &spec()).await.expect_err("nobody listens");
        assert_eq!((error.kind, error.side), (Kind::ConnectFailed, Side::Upstream));
        assert_eq!(error.progress, Progress::NothingSent);
        assert!(error.detail.contains("remote connection failure: Connection refused"), "{}", error.detail);
        assert_eq!((endpoint.connections(), endpoint.counters.connect_failures.load(Relaxed)), (0, 1));
    }

    #[tokio::test]
    async fn a_local_address_that_is_not_ours_is_our_failure() {
        let (_listener, endpoint) = listen().await;
        for (from, text) in [("192.0.2.1:0", "local connection failure"), ("[::1]:0", "one is IPv4")] {
            let spec = ClusterSpec { bind_address: Some(local(from).into()), ..spec() };
            let error = open_tcp(&endpoint, &spec).await.expect_err("not our address");
            assert_eq!((error.kind, error.side), (Kind::ConnectFailed, Side::Internal), "{from}");
            assert!(error.detail.contains(text), "{}", error.detail);
        }
    }

    #[tokio::test]
    async fn a_silent_peer_ends_in_a_time_out() {
        // A full backlog drops SYNs: the only way on loopback to be met with silence.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let endpoint = LiveState::new("c").endpoint(address);
        let spec = ClusterSpec { connect_timeout: Duration::from_millis(300), ..spec() };
        let mut connections = Vec::new();
        let error = loop {
            match open_tcp(&endpoint, &spec).await {
                Ok(connection) => connections.push(connection),
                Err(error) => break error,
            }
            assert!(connections.len() < 100, "the backlog never fills");
        };
        assert_eq!((error.kind, error.side), (Kind::ConnectTimeout, Side::Upstream));
        assert_eq!(endpoint.cluster.counters.connect_timeouts.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn removal_severs_open_connections_and_those_being_opened() {
        let (_listener, endpoint) = listen().await;
        let connection = open_tcp(&endpoint, &spec()).await.unwrap();
        let mut severed = std::pin::pin!(connection.permit.endpoint().severed());
        assert!(futures_util::poll!(&mut severed).is_pending());
        endpoint.cluster.adopt(&EndpointSet::default(), true);
        severed.await;
        connection.permit.endpoint().severed().await;
    }

    #[tokio::test]
    async fn the_limit_closes_the_door_without_waiting() {
        let (_listener, endpoint) = listen().await;
        endpoint.cluster.apply(&ClusterLimits { max_connections: 1, ..ClusterLimits::default() }, 0);
        let _first = open_tcp(&endpoint, &spec()).await.unwrap();
        let error = open_tcp(&endpoint, &spec()).await.expect_err("over the limit");
        assert_eq!(error.kind, Kind::Overflow);
        assert_eq!(error.detail, "cluster c has reached max_connections");
        assert_eq!(endpoint.cluster.counters.connection_overflow.load(Relaxed), 1);
    }
}
