//! What a downstream connection owns beside its socket: the inputs that its filter chain was chosen by, and that chain.
//!
//! A configuration change breaks no connection. An HTTP connection asks [`Connection::current`] for each request; when
//! the snapshot has moved, its chain is chosen anew from the stored inputs. Where no chain takes it any more, or the new
//! one wants another codec or transport, it keeps the old chain and [`Current::ends`] says to finish politely.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use osier_core::drain::{Open, Phase};
use parking_lot::Mutex;

use crate::config::listener::{
    CertificateDetails, Codec, ConnectionInputs, Direction, FilterChain, HttpManager, Listener, NetworkAction,
};
use crate::config::snapshot::Snapshot;
use crate::identity::peer::Peer;
use crate::identity::vouch::Vouch;
use crate::on_demand::ListenerEntry;
use crate::telemetry::record::{Downstream, RequestRecord};
use crate::worker::Worker;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Where a connection finds the newest version of its listener.
#[derive(Debug, Clone)]
pub enum ListenerSource {
    /// In the snapshot, by name.
    Named(Arc<str>),
    /// Asked for on demand. Holding the entry keeps the name in use.
    OnDemand(ListenerEntry),
}

impl ListenerSource {
    /// True where nothing that `current` was chosen from has changed.
    fn is_current(&self, current: &Current, worker: &Worker) -> bool {
        match self {
            Self::Named(_) => current.generation == worker.shared.snapshot.generation(),
            // Published one by one, without a new snapshot. Removed: the old version says so already, with `ends`.
            Self::OnDemand(entry) => {
                entry.is_current(&current.listener) || (current.ends && !entry.is_there())
            }
        }
    }

    fn current(&self, snapshot: &Snapshot) -> Option<Arc<Listener>> {
        match self {
            Self::Named(name) => snapshot.listeners.get(name).cloned(),
            Self::OnDemand(entry) => entry.current(),
        }
    }
}

/// What certificates and roots have done to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shaken {
    /// See [`Connection::is_distrusted`].
    Distrusted,
    /// See [`Connection::is_stale`].
    Stale,
}

/// A downstream connection whose filter chain is known.
#[derive(Debug)]
pub struct Connection {
    /// Number of the connection in this process, for logs.
    pub id: u64,
    /// What the chain was chosen by: peer, destination, SNI, ALPN.
    pub inputs: ConnectionInputs,
    /// The address that the socket is bound to; differs from `inputs.destination` where traffic was captured.
    pub local: SocketAddr,
    /// Name of the listener whose chains apply.
    pub listener: Arc<str>,
    source: ListenerSource,
    /// The client speaks TLS with us.
    pub encrypted: bool,
    /// Who the client has proved to be.
    pub peer: Option<Arc<Peer>>,
    /// By what.
    vouch: Option<Arc<Vouch>>,
    /// Who we have proved to be.
    pub own_name: Option<Arc<str>>,
    /// What `x-forwarded-client-cert` says of the client; made when it is wanted.
    forwarded: OnceLock<Box<[u8]>>,
    /// Which side of the workload that listener is.
    pub direction: Direction,
    /// When it was accepted.
    pub accepted: Instant,
    /// When it was accepted, by the calendar.
    pub accepted_at: SystemTime,
    current: Mutex<Arc<Current>>,
    _open: Open,
}

/// The chain of a connection at one moment. One per connection, so that cloning it touches no counter of another core.
#[derive(Debug)]
pub struct Current {
    /// Generation of the snapshot that it was chosen from.
    pub generation: u64,
    /// The chain.
    pub chain: Arc<FilterChain>,
    /// The version of the listener that it belongs to.
    listener: Arc<Listener>,
    /// The configuration has no such connection any more: finish the request in flight, then end politely.
    pub ends: bool,
}

impl Current {
    /// The HTTP connection manager of the chain, where it serves HTTP.
    pub fn http(&self) -> Option<&Arc<HttpManager>> {
        match &self.chain.action {
            NetworkAction::Http(manager) => Some(manager),
            NetworkAction::Tcp(_) => None,
        }
    }
}

impl Connection {
    /// A connection that `chain` of `listener` takes.
    pub fn new(
        worker: &Worker,
        listener: &Arc<Listener>,
        source: ListenerSource,
        chain: Arc<FilterChain>,
        generation: u64,
        inputs: ConnectionInputs,
        local: SocketAddr,
    ) -> Self {
        Self {
            encrypted: chain.transport.is_tls(),
            peer: None,
            vouch: None,
            own_name: None,
            forwarded: OnceLock::new(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            inputs,
            local,
            listener: listener.name.clone(),
            source,
            direction: listener.direction,
            accepted: Instant::now(),
            accepted_at: SystemTime::now(),
            current: Mutex::new(Arc::new(Current {
                generation,
                chain,
                listener: listener.clone(),
                ends: false,
            })),
            _open: worker.shared.drain.track(),
        }
    }

    /// The same, with a client that has shown a certificate.
    pub fn with_peer(mut self, vouch: Option<Arc<Vouch>>, own_name: Option<Arc<str>>) -> Self {
        self.peer = vouch.as_ref().map(|vouch| vouch.peer().clone());
        (self.vouch, self.own_name) = (vouch, own_name);
        self
    }

    /// True where the client has proved who it is: then the connection may be [`Shaken`].
    pub fn is_vouched_for(&self) -> bool {
        self.vouch.is_some()
    }

    /// True where no root vouches for the client any more: whatever it does must end.
    pub fn is_distrusted(&self) -> bool {
        self.vouch.as_ref().is_some_and(|vouch| !vouch.holds())
    }

    /// True where what we have shown is of a root that doesn't sign any more: the client should come anew while it still believes it.
    pub fn is_stale(&self) -> bool {
        self.vouch.as_ref().is_some_and(|vouch| !vouch.is_fresh())
    }

    /// Completes when the ground of the connection is gone, or (unless that is known already) worn; never where the client has proved
    /// nothing.
    pub async fn shaken(&self, worker: &Worker, known_stale: bool) -> Shaken {
        if self.vouch.is_none() {
            return std::future::pending().await;
        }
        let mut moves = worker.moves();
        loop {
            if self.is_distrusted() {
                return Shaken::Distrusted;
            }
            if !known_stale && self.is_stale() {
                return Shaken::Stale;
            }
            // The sender is the worker's, which serves us.
            let _ = moves.changed().await;
        }
    }

    /// What `x-forwarded-client-cert` says of the client; `None` where it has shown nothing.
    pub fn forwarded_certificate(&self, details: CertificateDetails) -> Option<&[u8]> {
        let peer = self.peer.as_deref()?;
        Some(self.forwarded.get_or_init(|| details.of(peer, self.own_name.as_deref()).into_bytes().into()))
    }

    /// The chain in force for this connection, chosen anew if the configuration has moved.
    pub fn current(&self, worker: &Worker) -> Arc<Current> {
        let mut current = self.current.lock();
        if !self.source.is_current(&current, worker) {
            *current = Arc::new(self.choose(&current, &worker.snapshot()));
        }
        current.clone()
    }

    /// True where policies may come to deny what is open. Listeners that were asked for by name are those of clients, where nobody is
    /// denied.
    pub fn is_policed(&self) -> bool {
        matches!(self.source, ListenerSource::Named(_))
    }

    /// Where the client was going, for clusters that take that as their endpoint. `None` where that is not known: an explicit
    /// proxy's client goes to the proxy itself, and sending it there again would never end.
    pub fn original_destination(&self) -> Option<SocketAddr> {
        let destination = self.inputs.destination;
        let to_us =
            destination == self.local && self.current.lock().listener.address.port() == destination.port();
        (!to_us && !destination.ip().is_unspecified()).then_some(destination)
    }

    /// The address at which the client reached us, where it is not the destination, or only since we are its `explicit` proxy:
    /// going there again would never end.
    pub fn own_end(&self, explicit: bool) -> Option<SocketAddr> {
        (explicit || self.inputs.destination != self.local).then_some(self.local)
    }

    /// Whom it came from and where it was going, for records.
    pub fn downstream(&self) -> Downstream<'_> {
        Downstream {
            connection_id: self.id,
            local: self.inputs.destination,
            remote: self.inputs.source,
            direct_remote: self.inputs.source,
            server_name: self.inputs.server_name.as_deref(),
            identity: self.peer.as_ref(),
            own_identity: self.own_name.as_ref(),
        }
    }

    /// The record of the connection as a whole, where it is opaque.
    pub fn record(&self) -> RequestRecord<'_> {
        RequestRecord {
            started_at: Some(self.accepted_at),
            ..RequestRecord::new(self.downstream(), None, self.accepted)
        }
    }

    /// True where the process (or this side of it) is draining: answer with `connection: close`, send GOAWAY.
    pub fn drains(&self, worker: &Worker) -> bool {
        worker.shared.drain.phase() >= self.drain_phase()
    }

    /// The phase from which on this connection ends politely.
    pub fn drain_phase(&self) -> Phase {
        match self.direction {
            Direction::Outbound => Phase::Draining,
            Direction::Inbound | Direction::Unspecified => Phase::DrainingInbound,
        }
    }

    fn choose(&self, old: &Current, snapshot: &Snapshot) -> Current {
        let generation = snapshot.generation;
        let Some(listener) = self.source.current(snapshot) else {
            let (chain, listener) = (old.chain.clone(), old.listener.clone());
            return Current { generation, chain, listener, ends: true };
        };
        let (chain, ends) = match listener.chain_for(&self.inputs) {
            Some(chain) if serves_alike(&old.chain, chain) => (chain, false),
            _ => (&old.chain, true),
        };
        Current { generation, chain: chain.clone(), listener, ends }
    }
}

/// True where a connection that `old` accepted can go on under `new`.
fn serves_alike(old: &FilterChain, new: &FilterChain) -> bool {
    if old.transport.is_tls() != new.transport.is_tls() {
        return false;
    }
    match (&old.action, &new.action) {
        (NetworkAction::Tcp(_), NetworkAction::Tcp(_)) => true,
        (NetworkAction::Http(old), NetworkAction::Http(new)) => {
            old.codec == new.codec || old.codec == Codec::Auto || new.codec == Codec::Auto
        }
        _ => false,
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
