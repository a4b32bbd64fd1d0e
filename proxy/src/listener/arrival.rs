//! One connection from its accept to its end, by way of its filter chain.
//!
//! The order: where was it going (SO_ORIGINAL_DST), which listener takes it, what does it speak, which chain is that, and TLS
//! where the chain ends it. Then the chain's network filter has it to its end. What fails before that closes the connection; there is nobody to
//! answer, but for a client that speaks HTTP/1 where the control plane was silent (`untold`).
//! A CONNECT on an explicit proxy starts the same way again, with the destination that it names.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::ServerConfig;
use socket2::SockRef;

use super::accept::{Accepted, canonical};
use super::connection::{Connection, ListenerSource};
use super::detect::{DetectError, Detected, detect};
use super::plaintext_callers::PlaintextCall;
use super::server_first::{Server, ServerFirst};
use super::untold;
use crate::config::listener::{
    ConnectionInputs, Direction, DownstreamTransport, FilterChain, Inspect, Listener, NetworkAction,
    TransportProtocol,
};
use crate::config::snapshot::Snapshot;
use crate::http::exchange::Exchanges;
use crate::http::server::{self, Ended};
use crate::http::template::Context;
use crate::io::Stream;
use crate::io::tls::{TlsStream, invalid};
use crate::on_demand::{Answer, ListenerLookup};
use crate::telemetry::record::{Downstream, Flags, RequestRecord};
use crate::telemetry::write_logs;
use crate::upstream::choose::ChooseBy;
use crate::worker::Worker;

/// How long a TLS handshake may take, once the client has said hello.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Why a connection got no filter chain.
#[derive(Debug, thiserror::Error)]
pub enum ArrivalError {
    /// Its listener was removed while it was in the queue.
    #[error("the listener is gone")]
    ListenerGone,
    /// No chain matches (flag NR).
    #[error("no filter chain matches")]
    NoChain,
    /// The control plane did not say in time what to do with it.
    #[error("configuration for {0} not received")]
    NoConfiguration(String),
    /// A CONNECT to something that isn't `host:port`, or that nobody takes.
    #[error("nothing takes connections to {0}")]
    NoDestination(String),
    /// It was our own, to see whether it comes here.
    #[error("the check of capture has arrived")]
    SelfCheck,
    /// The client and we agree on no TLS, or it left.
    #[error("TLS handshake: {0}")]
    Handshake(#[source] io::Error),
    /// It took too long.
    #[error("no TLS handshake within {} s", HANDSHAKE_TIME.as_secs())]
    HandshakeTimeout,
    /// Protocol detection ended it.
    #[error(transparent)]
    Detect(#[from] DetectError),
}

/// The ends of a socket, each as its own family writes it.
#[derive(Debug, Clone, Copy)]
struct Ends {
    peer: SocketAddr,
    local: SocketAddr,
}

/// The listener that takes a connection, and where the connection was going.
#[derive(Debug)]
struct Target {
    listener: Arc<Listener>,
    source: ListenerSource,
    destination: SocketAddr,
}

/// A connection with its chain.
struct Arrived {
    connection: Arc<Connection>,
    chain: Arc<FilterChain>,
    stream: Stream,
    received: BytesMut,
    /// For as long as it is open.
    plaintext: Option<PlaintextCall>,
}

/// Serves a connection on the worker that it was handed to; returns at once.
pub fn serve(accepted: Accepted) {
    tokio::spawn(async move {
        let Accepted { occupied, tcp, peer, bound, listener, counted } = accepted;
        let worker = occupied.worker().clone();
        let local = match bound.ip().is_unspecified() {
            true => tcp.local_addr().map_or(bound, canonical),
            false => bound,
        };
        let ends = Ends { peer, local };
        if let Err(error) = run(&worker, tcp, ends, &listener).await {
            tracing::debug!(%peer, %local, %listener, %error, "connection closed");
        }
        drop((occupied, counted));
    });
}

async fn run(
    worker: &Arc<Worker>,
    tcp: tokio::net::TcpStream,
    ends: Ends,
    listener: &Arc<str>,
) -> Result<(), ArrivalError> {
    let target = match accept(worker, &tcp, ends, listener).await {
        Err(error @ ArrivalError::NoConfiguration(_)) => {
            // Apart: hardly any connection is such a one.
            Box::pin(untold::tell(tcp.into(), &error.to_string())).await;
            return Err(error);
        }
        accepted => accepted?,
    };
    let mut arrived = admit(worker, target, tcp.into(), BytesMut::new(), ends).await?;
    loop {
        match arrived.run(worker).await {
            Ended::Closed => return Ok(()),
            Ended::Tunnel { stream, buffered, authority } => {
                let target = tunnel(worker, &authority).await?;
                arrived = admit(worker, target, stream, buffered, ends).await?;
            }
        }
    }
}

impl Arrived {
    async fn run(self, worker: &Arc<Worker>) -> Ended {
        let Self { connection, chain, stream, received, plaintext: _plaintext } = self;
        match &chain.action {
            NetworkAction::Tcp(proxy) => {
                let copying = crate::tcp::exchange::run(worker, &connection, proxy, stream, received);
                // Much smaller than the HTTP branch, whose size it would take beside it.
                Box::pin(copying).await;
                Ended::Closed
            }
            NetworkAction::Http(_) => {
                // The connection itself holds the chain in force.
                drop(chain);
                server::serve(worker, &connection, stream, received, &Exchanges).await
            }
        }
    }
}

/// Finds the listener for a socket that was accepted by `name`: itself, or the one of the original destination.
async fn accept(
    worker: &Worker,
    tcp: &tokio::net::TcpStream,
    ends: Ends,
    name: &Arc<str>,
) -> Result<Target, ArrivalError> {
    let snapshot = worker.snapshot();
    let bound = snapshot.listeners.get(name).ok_or(ArrivalError::ListenerGone)?;
    let captures = bound.use_original_dst || bound.original_dst_filter;
    let find_original = || worker.shared.original_destination.of(SockRef::from(tcp), ends.peer, ends.local);
    let original = captures.then(find_original).flatten();
    if worker.shared.self_check.takes(ends.peer, original.unwrap_or(ends.local)) {
        return Err(ArrivalError::SelfCheck);
    }
    if let Some(destination) = original.filter(|_| bound.use_original_dst)
        && let Some(target) = find(&snapshot, destination).await?
    {
        return Ok(target);
    }
    Ok(Target {
        listener: bound.clone(),
        source: ListenerSource::Named(name.clone()),
        destination: original.unwrap_or(ends.local),
    })
}

/// The listener for the authority of a CONNECT. A host name has no address here: the control plane knows the listener of a
/// host that is in the mesh; for others it is the wildcard listener of the port, and what is sent through the tunnel says the
/// name again (`Host`, SNI).
async fn tunnel(worker: &Worker, authority: &[u8]) -> Result<Target, ArrivalError> {
    let text = String::from_utf8_lossy(authority);
    let nobody = || ArrivalError::NoDestination(text.clone().into_owned());
    let destination = parse_authority(&text).ok_or_else(nobody)?;
    let snapshot = worker.snapshot();
    if let Some(table) = snapshot.on_demand.as_ref().filter(|_| destination.ip().is_unspecified()) {
        let found = on_demand(table.get_host(&text), destination, || text.clone().into_owned()).await?;
        if let Some(target) = found {
            let destination = SocketAddr::new(target.listener.address.ip(), destination.port());
            return Ok(Target { destination, ..target });
        }
    }
    find(&snapshot, destination).await?.ok_or_else(nobody)
}

fn parse_authority(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, port) = text.rsplit_once(':')?;
    let valid = !host.is_empty() && !host.contains(['[', ']', ':']);
    valid.then_some(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port.parse().ok()?))
}

/// The listener that takes connections to `destination`; `None`: nobody's, the capturing listener's own chains decide.
async fn find(snapshot: &Snapshot, destination: SocketAddr) -> Result<Option<Target>, ArrivalError> {
    if let Some(listener) = snapshot.for_original_destination(destination) {
        let source = ListenerSource::Named(listener.name.clone());
        return Ok(Some(Target { listener: listener.clone(), source, destination }));
    }
    let Some(table) = &snapshot.on_demand else { return Ok(None) };
    on_demand(table.get(destination), destination, || destination.to_string()).await
}

/// What the control plane said of something that was asked for.
async fn on_demand(
    lookup: ListenerLookup,
    destination: SocketAddr,
    what: impl FnOnce() -> String,
) -> Result<Option<Target>, ArrivalError> {
    let entry = match lookup {
        ListenerLookup::Known(entry) => entry,
        ListenerLookup::Absent => return Ok(None),
        ListenerLookup::Wait(wait) => match wait.answer().await {
            Answer::Known(entry) => entry,
            Answer::Absent => return Ok(None),
            Answer::Silent => return Err(ArrivalError::NoConfiguration(what())),
        },
    };
    let listener = entry.current();
    Ok(listener.map(|listener| Target { listener, source: ListenerSource::OnDemand(entry), destination }))
}

/// Finds the protocol and the chain. `received` was read already.
async fn admit(
    worker: &Arc<Worker>,
    target: Target,
    stream: Stream,
    received: BytesMut,
    ends: Ends,
) -> Result<Arrived, ArrivalError> {
    let generation = worker.shared.snapshot.generation();
    let Target { mut listener, mut source, destination } = target;
    let inspect = listener.inspect_at(destination.port());
    let server =
        received.is_empty().then(|| may_speak_first(&listener, &inspect, destination, ends)).flatten();
    let first = worker.shared.server_first.as_ref().zip(server);
    let detected = match first {
        // Apart: hardly any connection is such a one.
        Some((first, server)) => {
            Box::pin(detect_silence(worker, first, server, &stream, &inspect, ends)).await?
        }
        None => detect(&stream, &inspect, received).await?,
    };
    let Detected { transport, server_name, application_protocols, received } = detected;
    let inputs =
        ConnectionInputs { source: ends.peer, destination, transport, server_name, application_protocols };
    if let Some(target) = for_server_name(worker, &listener, &inputs).await? {
        (listener, source) = (target.listener, target.source);
    }
    let Some(chain) = listener.chain_for(&inputs).cloned() else {
        log_unmatched(worker, &listener, &inputs);
        return Err(ArrivalError::NoChain);
    };
    let unproved = listener.direction == Direction::Inbound && matches!(stream, Stream::Plain(_));
    let unproved = unproved && matches!(chain.transport, DownstreamTransport::Plaintext);
    let callers = &worker.shared.plaintext_callers;
    let plaintext = unproved.then(|| callers.arrived(ends.peer.ip(), inputs.destination.port()));
    let (stream, received, vouch) = match &chain.transport {
        DownstreamTransport::Plaintext => (stream, received, None),
        // Apart: who speaks plaintext doesn't carry its size.
        DownstreamTransport::Tls(tls) => {
            let (config, before) = (tls.for_client(&inputs.application_protocols), tls.before());
            let stream = Box::pin(handshake(stream, received, config)).await?;
            let (shown, known) = (stream.peer_certificates(), &worker.shared.secrets.known);
            if stream.is_resumed() {
                let again = tls.look_again(shown.as_deref()).map_err(invalid);
                again.map_err(ArrivalError::Handshake)?;
            }
            let ended = before.map(|before| before.ended(shown.as_deref(), known)).transpose();
            let vouch = ended.map_err(ArrivalError::Handshake)?.flatten();
            (Stream::Tls(Box::new(stream)), BytesMut::new(), vouch)
        }
    };
    let connection =
        Connection::new(worker, &listener, source, chain.clone(), generation, inputs, ends.local);
    if let (Some(first), Some(_)) = (&worker.shared.server_first, &vouch)
        && !inspect.http
    {
        first.proved(ends.peer.ip());
    }
    let own_name = vouch.as_ref().and_then(|_| worker.shared.identity.name());
    let connection = connection.with_peer(vouch, own_name);
    Ok(Arrived { connection: Arc::new(connection), chain, stream, received, plaintext })
}

/// The server behind a port that takes mutual TLS and opaque plaintext: it may be one that speaks first.
fn may_speak_first<'l>(
    listener: &'l Listener,
    inspect: &Inspect,
    destination: SocketAddr,
    ends: Ends,
) -> Option<Server<'l>> {
    if !inspect.tls || inspect.http || listener.direction != Direction::Inbound {
        return None;
    }
    let inputs = ConnectionInputs {
        source: ends.peer,
        destination,
        transport: TransportProtocol::RawBuffer,
        server_name: None,
        application_protocols: Vec::new(),
    };
    let chain = listener.chain_for(&inputs)?;
    let (DownstreamTransport::Plaintext, NetworkAction::Tcp(proxy)) = (&chain.transport, &chain.action)
    else {
        return None;
    };
    let elsewhere = destination != ends.local;
    let by = ChooseBy {
        original_destination: elsewhere.then_some(destination),
        own_end: elsewhere.then_some(ends.local),
        head: None,
    };
    Some(Server { port: destination.port(), proxy, by })
}

/// What a client speaks, where its silence may say it.
async fn detect_silence(
    worker: &Worker,
    first: &ServerFirst,
    server: Server<'_>,
    stream: &Stream,
    inspect: &Inspect,
    ends: Ends,
) -> Result<Detected, DetectError> {
    let mut received = BytesMut::with_capacity(512);
    tokio::select! {
        biased;
        read = stream.read_buf(&mut received) => if read? == 0 {
            return Err(DetectError::Closed);
        },
        () = first.silence_is_plaintext(worker, ends.peer.ip(), server) => return Ok(Detected::default()),
    }
    detect(stream, inspect, received).await
}

async fn handshake(
    stream: Stream,
    received: BytesMut,
    config: Arc<ServerConfig>,
) -> Result<TlsStream, ArrivalError> {
    // Within a tunnel that is encrypted itself there is no other TLS.
    let Stream::Plain(tcp) = stream else {
        return Err(ArrivalError::Handshake(io::ErrorKind::Unsupported.into()));
    };
    let accepting = TlsStream::accept(tcp, &received, config);
    match tokio::time::timeout(HANDSHAKE_TIME, accepting).await {
        Ok(done) => done.map_err(ArrivalError::Handshake),
        Err(_) => Err(ArrivalError::HandshakeTimeout),
    }
}

/// The listener with the one chain for this connection's SNI, where chains are asked for one by one.
async fn for_server_name(
    worker: &Worker,
    listener: &Listener,
    inputs: &ConnectionInputs,
) -> Result<Option<Target>, ArrivalError> {
    let Some(name) = inputs.server_name.as_deref().filter(|_| listener.chains_by_server_name) else {
        return Ok(None);
    };
    let snapshot = worker.snapshot();
    let Some(table) = &snapshot.on_demand else { return Ok(None) };
    let lookup = table.get_server_name(&listener.name, name);
    on_demand(lookup, inputs.destination, || format!("{} at {}", name, listener.name)).await
}

/// The listener's own access log has a line for a connection that no chain takes.
fn log_unmatched(worker: &Worker, listener: &Listener, inputs: &ConnectionInputs) {
    let downstream = Downstream {
        connection_id: 0,
        local: inputs.destination,
        remote: inputs.source,
        direct_remote: inputs.source,
        server_name: inputs.server_name.as_deref(),
        identity: None,
        own_identity: None,
    };
    let mut record = RequestRecord::new(downstream, None, std::time::Instant::now());
    record.flags = Flags::NO_ROUTE;
    record.details = "filter_chain_not_found".into();
    record.complete = Some(record.started.elapsed());
    let context = Context { record: &record, request: None, response: None, trailers: None };
    write_logs(worker, &listener.access_log, &context);
}

#[cfg(test)]
#[path = "arrival_tests.rs"]
mod tests;
