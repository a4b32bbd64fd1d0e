//! Sockets, and the bounds of what they take in.
//!
//! Each query is a task, and there are at most [`IN_FLIGHT`]: a datagram beyond that is dropped, as networks do, and its resolver asks again; on
//! a connection the next query waits.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hickory_resolver::proto::op::{Message, ResponseCode};
use nix::errno::Errno;
use prometheus::proto::MetricFamily;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::answer::{self, Decision, Query};
use super::directory::Directory;
use super::forward::{Transport, Upstreams, write_message};
use super::metrics::Metrics;
use super::{Settings, System};

/// Queries at a time.
const IN_FLIGHT: usize = 512;
/// Connections at a time.
const CONNECTIONS: usize = 64;
/// A query is small; what is bigger than this is none.
const BIGGEST_QUERY: usize = 4096;
/// How long a connection may stay without a query, and a query may take to come.
const IDLE: Duration = Duration::from_secs(10);
/// After an error of a listening socket, so that it doesn't fill the log.
const PAUSE: Duration = Duration::from_millis(100);

/// The server.
#[derive(Debug)]
pub struct Dns {
    directory: Arc<Directory>,
    search: Option<hickory_resolver::proto::rr::Name>,
    upstreams: Upstreams,
    metrics: Metrics,
    in_flight: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Dns {
    /// Answers from `directory`, and for the rest from the servers of `system`.
    pub fn new(settings: &Settings, system: System, directory: Arc<Directory>) -> Arc<Self> {
        let upstreams = Upstreams {
            servers: system.servers,
            timeout: settings.forward_timeout,
            parallel: settings.forward_parallel,
        };
        Arc::new(Self {
            directory,
            search: system.search,
            upstreams,
            metrics: Metrics::new(),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        })
    }

    /// Serves on loopback: IPv4, and IPv6 where the kernel has it. Gives the addresses.
    pub async fn listen(self: &Arc<Self>, port: u16) -> anyhow::Result<Vec<SocketAddr>> {
        let mut listens = Vec::new();
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let address = SocketAddr::new(ip, port);
            match self.listen_on(address).await {
                Ok(bound) => listens.push(bound),
                Err(error) if ip.is_ipv6() && has_no_such_family(&error) => {}
                Err(error) => return Err(error).with_context(|| format!("DNS: cannot listen on {address}")),
            }
        }
        Ok(listens)
    }

    /// Serves UDP and TCP at one address.
    async fn listen_on(self: &Arc<Self>, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let socket = UdpSocket::bind(bound).await?;
        tracing::info!(address = %bound, "DNS listens");
        tokio::spawn(self.clone().serve_udp(Arc::new(socket)));
        tokio::spawn(self.clone().serve_tcp(listener));
        Ok(bound)
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; BIGGEST_QUERY];
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // Mostly news that nobody waits for an answer any more.
                    tracing::debug!(%error, "DNS: nothing received");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = self.in_flight.clone().try_acquire_owned() else { continue };
            let (dns, socket, query) = (self.clone(), socket.clone(), buffer[..length].to_vec());
            tokio::spawn(async move {
                if let Some(answer) = dns.answer(&query, true).await {
                    // Who has left needs no answer.
                    let _ = socket.send_to(&answer, peer).await;
                }
                drop(permit);
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "DNS: no connection can be accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            // One too many is closed: who it belongs to comes again.
            let Ok(permit) = self.connections.clone().try_acquire_owned() else { continue };
            let dns = self.clone();
            tokio::spawn(async move {
                if let Err(error) = dns.serve_connection(stream).await {
                    tracing::debug!(%error, "DNS: connection ended");
                }
                drop(permit);
            });
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let received = timeout(IDLE, read_query(&mut stream)).await;
            let Some(query) = received.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? else {
                return Ok(());
            };
            // It is never closed.
            let _permit = self.in_flight.acquire().await.map_err(io::Error::other)?;
            match self.answer(&query, false).await {
                Some(answer) => timeout(IDLE, write_message(&mut stream, &answer)).await??,
                None => return Ok(()),
            }
        }
    }

    /// The answer to a query; `None` for what is none.
    pub(super) async fn answer(&self, bytes: &[u8], is_datagram: bool) -> Option<Vec<u8>> {
        self.metrics.requests.inc();
        let (query, look_up) = match answer::read(bytes) {
            Query::Drop => return None,
            Query::Refuse(answer) => return answer::encode(&answer, usize::from(u16::MAX)),
            Query::LookUp(query) => (query, true),
            Query::Forward(query) => (query, false),
        };
        let limit = if is_datagram { answer::datagram_limit(&query) } else { usize::from(u16::MAX) };
        let asked = query.queries.first().map(|asked| asked.name().clone())?;
        let decision = match look_up {
            true => answer::decide(&self.directory, &asked, self.search.as_ref()).await,
            false => Decision::Forward,
        };
        match decision {
            Decision::Known(addresses, canonical) => {
                answer::encode(&answer::known(&query, &addresses, canonical), limit)
            }
            Decision::Fail => self.fail(&query, limit),
            Decision::Forward => {
                let transport = if is_datagram { Transport::Udp } else { Transport::Tcp };
                match self.forward(bytes, &query, transport).await {
                    Some(answer) => Some(answer),
                    None => self.fail(&query, limit),
                }
            }
        }
    }

    fn fail(&self, query: &Message, limit: usize) -> Option<Vec<u8>> {
        answer::encode(&answer::failure(query, ResponseCode::ServFail), limit)
    }

    async fn forward(&self, bytes: &[u8], query: &Message, transport: Transport) -> Option<Vec<u8>> {
        self.metrics.upstream_requests.inc();
        let started = Instant::now();
        match self.upstreams.ask(bytes, query, transport).await {
            Ok(answer) => {
                self.metrics.took(started.elapsed());
                Some(answer)
            }
            Err(error) => {
                self.metrics.upstream_failures.inc();
                tracing::debug!(%error, "DNS: a query that was forwarded got no answer");
                None
            }
        }
    }

    /// Figures, for Prometheus.
    pub fn families(&self) -> Vec<MetricFamily> {
        self.metrics.collect()
    }

    /// All hosts that are known, as `/debug/ndsz` shows them.
    pub fn page(&self) -> Value {
        self.directory.page()
    }
}

/// The next query of a connection; `None` where there is none any more.
async fn read_query(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > BIGGEST_QUERY {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a query of {length} bytes")));
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(Some(query))
}

fn has_no_such_family(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL].iter().any(|errno| code == Some(*errno as i32))
}
