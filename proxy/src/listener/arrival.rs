//! One connection from its accept to its filter chain.
//!
//! The order: where was it going (SO_ORIGINAL_DST), which listener takes it, what does it speak, which chain is that. Then
//! the chain's network filter has it to its end. Whatever fails here closes the connection; there is nobody to answer.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use socket2::SockRef;

use super::accept::Accepted;
use super::connection::{Connection, ListenerSource};
use super::detect::{DetectError, detect};
use crate::config::listener::{ConnectionInputs, FilterChain, Listener, NetworkAction};
use crate::config::snapshot::Snapshot;
use crate::http::template::Context;
use crate::io::Stream;
use crate::telemetry::record::{Downstream, Flags, RequestRecord};
use crate::telemetry::write_logs;
use crate::worker::Worker;

/// Why a connection got no filter chain.
#[derive(Debug, thiserror::Error)]
pub enum ArrivalError {
    /// Its listener was removed while it was in the queue.
    #[error("the listener is gone")]
    ListenerGone,
    /// No chain matches (flag NR).
    #[error("no filter chain matches")]
    NoChain,
    /// The control plane did not say in time what to do with this destination.
    #[error("configuration for {0} not received")]
    NoConfiguration(String),
    /// Protocol detection ended it.
    #[error(transparent)]
    Detect(#[from] DetectError),
}

/// Serves a connection on the worker that it was handed to; returns at once.
pub fn serve(accepted: Accepted) {
    tokio::spawn(async move {
        let Accepted { occupied, tcp, peer, bound, listener } = accepted;
        let worker = occupied.worker().clone();
        let local = match bound.ip().is_unspecified() {
            true => tcp.local_addr().unwrap_or(bound),
            false => bound,
        };
        let arrived = match accept(&worker, &tcp, peer, local, &listener).await {
            Ok(target) => admit(&worker, target, tcp.into(), BytesMut::new(), peer, local).await,
            Err(error) => Err(error),
        };
        match arrived {
            Ok(arrived) => arrived.run(worker).await,
            Err(error) => tracing::debug!(%peer, %local, %listener, %error, "connection closed"),
        }
        drop(occupied);
    });
}

/// The listener that takes a connection, and where the connection was going.
#[derive(Debug, Clone)]
pub struct Target {
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
}

impl Arrived {
    async fn run(self, worker: Arc<Worker>) {
        let Self { connection, chain, stream, received } = self;
        match &chain.action {
            NetworkAction::Tcp(proxy) => {
                crate::tcp::exchange::run(&worker, &connection, proxy, stream, received).await;
            }
            NetworkAction::Http(_) => {
                tracing::error!(listener = %connection.listener, "no HTTP");
            }
        }
    }
}

/// Finds the listener for a socket that was accepted by `name`: itself, or the one of the original destination.
async fn accept(
    worker: &Worker,
    tcp: &tokio::net::TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    name: &Arc<str>,
) -> Result<Target, ArrivalError> {
    let snapshot = worker.snapshot();
    let bound = snapshot.listeners.get(name).ok_or(ArrivalError::ListenerGone)?;
    let captures = bound.use_original_dst || bound.original_dst_filter;
    let original =
        captures.then(|| worker.shared.original_destination.of(SockRef::from(tcp), peer, local)).flatten();
    let own = Target {
        listener: bound.clone(),
        source: ListenerSource::Named(name.clone()),
        destination: original.unwrap_or(local),
    };
    match original {
        Some(destination) if bound.use_original_dst => Ok(find(&snapshot, destination).await?.unwrap_or(own)),
        _ => Ok(own),
    }
}

/// The listener that takes connections to `destination`; `None`: nobody's, the capturing listener's own chains decide.
async fn find(snapshot: &Snapshot, destination: SocketAddr) -> Result<Option<Target>, ArrivalError> {
    let known = snapshot.for_original_destination(destination);
    Ok(known.map(|listener| Target {
        listener: listener.clone(),
        source: ListenerSource::Named(listener.name.clone()),
        destination,
    }))
}

/// Finds the protocol and the chain. `received` was read already.
async fn admit(
    worker: &Arc<Worker>,
    target: Target,
    stream: Stream,
    received: BytesMut,
    peer: SocketAddr,
    local: SocketAddr,
) -> Result<Arrived, ArrivalError> {
    let Target { listener, source, destination } = target;
    let detected = detect(&stream, &listener.inspect, received).await?;
    let inputs = ConnectionInputs {
        source: peer,
        destination,
        transport: detected.transport,
        server_name: detected.server_name,
        application_protocols: detected.application_protocols,
    };
    let generation = worker.shared.snapshot.generation();
    let Some(chain) = listener.chain_for(&inputs).cloned() else {
        log_unmatched(worker, &listener, &inputs);
        return Err(ArrivalError::NoChain);
    };
    let connection = Connection::new(worker, &listener, source, chain.clone(), generation, inputs, local);
    Ok(Arrived { connection: Arc::new(connection), chain, stream, received: detected.received })
}

/// The listener's own access log has a line for a connection that no chain takes.
fn log_unmatched(worker: &Worker, listener: &Listener, inputs: &ConnectionInputs) {
    let downstream = Downstream {
        connection_id: 0,
        local: inputs.destination,
        remote: inputs.source,
        direct_remote: inputs.source,
        server_name: inputs.server_name.as_deref(),
    };
    let mut record = RequestRecord::new(downstream, None);
    record.flags = Flags::NO_ROUTE;
    record.details = "filter_chain_not_found".into();
    record.complete = Some(record.started.elapsed());
    let context = Context { record: &record, request: None, response: None, trailers: None };
    write_logs(worker, &listener.access_log, &context);
}
