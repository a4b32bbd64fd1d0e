//! Listening sockets: bound, accepted from, handed over to workers, and updated without closing anything.
//!
//! A socket belongs to an address, not to a version of a listener: an update at the same address keeps the socket, and
//! connections find the newest version by the listener's name. A removed listener takes what the kernel has queued for it
//! already and then closes its socket; connections that it accepted go on.
//!
//! The accept loop of a socket runs on a worker, so that with one worker (the usual sidecar) a connection never crosses a
//! thread. With more, each goes to the least loaded one.
//!
//! All sockets together have a most of open connections ([`Acceptors::at_most`]): one more is closed at once, so that who floods us
//! doesn't take the descriptors that requests in flight need towards their upstreams.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::config::listener::{Direction, Listener};
use crate::config::snapshot::Snapshot;
use crate::worker::{Worker, least_loaded};

/// The kernel cuts a larger back-log down to `net.core.somaxconn`.
const MAX_BACKLOG: u32 = 65_535;

/// What no longer accepts: nothing, what isn't outbound, everything.
const NONE: u8 = 0;
const INBOUND: u8 = 1;
const ALL: u8 = 2;

/// Pause after accept failed because the process ran out of something.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What happens to an accepted connection; `super::arrival::serve` but for tests.
pub type Serve = fn(Accepted);

/// A connection that was just accepted, on the worker that will keep it.
#[derive(Debug)]
pub struct Accepted {
    /// The worker, which counts the connection.
    pub occupied: crate::worker::Occupied,
    /// The socket.
    pub tcp: TcpStream,
    /// The peer, in the form that its family has.
    pub peer: SocketAddr,
    /// Address that the listening socket is bound to.
    pub bound: SocketAddr,
    /// Name of the listener.
    pub listener: Arc<str>,
    /// Counts it as open at its listener.
    pub counted: Counted,
}

/// Connections of one listening socket.
#[derive(Debug, Default)]
struct Counts {
    total: AtomicU64,
    active: AtomicU64,
    refused: AtomicU64,
}

/// What [`Acceptors::counts`] tells of one listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count {
    /// Connections so far.
    pub total: u64,
    /// Those that are open.
    pub active: u64,
    /// Those that were closed at once, because there were too many already.
    pub refused: u64,
}

/// Open connections of all sockets together.
#[derive(Debug)]
struct Limit {
    open: AtomicU64,
    most: u64,
    /// That connections are refused was said; not again before there is some room.
    said: AtomicBool,
}

impl Default for Limit {
    fn default() -> Self {
        Self { open: AtomicU64::new(0), most: u64::MAX, said: AtomicBool::new(false) }
    }
}

/// One connection as its listening socket counts it, until this is dropped.
#[derive(Debug)]
pub struct Counted {
    counts: Arc<Counts>,
    limit: Arc<Limit>,
}

impl Counted {
    /// `None` where there are as many connections as there may be.
    fn new(counts: &Arc<Counts>, limit: &Arc<Limit>) -> Option<Self> {
        counts.total.fetch_add(1, Ordering::Relaxed);
        let open = limit.open.fetch_add(1, Ordering::Relaxed) + 1;
        if open > limit.most {
            limit.open.fetch_sub(1, Ordering::Relaxed);
            counts.refused.fetch_add(1, Ordering::Relaxed);
            if !limit.said.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    most = limit.most,
                    "too many open connections: further ones are closed at once"
                );
            }
            return None;
        }
        if open < limit.most - limit.most / 8 && limit.said.load(Ordering::Relaxed) {
            limit.said.store(false, Ordering::Relaxed);
        }
        counts.active.fetch_add(1, Ordering::Relaxed);
        Some(Self { counts: counts.clone(), limit: limit.clone() })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counts.active.fetch_sub(1, Ordering::Relaxed);
        self.limit.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A listening socket could not be had.
#[derive(Debug, Clone, thiserror::Error)]
#[error("listener {name}: cannot listen on {address}: {reason}")]
pub struct BindError {
    /// The listener.
    pub name: Arc<str>,
    /// Its address.
    pub address: SocketAddr,
    /// What the system says.
    pub reason: Arc<str>,
}

impl BindError {
    fn new(listener: &Listener, error: &io::Error) -> Self {
        Self { name: listener.name.clone(), address: listener.address, reason: error.to_string().into() }
    }
}

/// All listening sockets of the process.
#[derive(Debug)]
pub struct Acceptors {
    workers: Box<[Arc<Worker>]>,
    serve: Serve,
    sockets: Mutex<HashMap<Key, Bound>>,
    /// Directions that [`Acceptors::close`] has ended for good.
    closed: AtomicU8,
    limit: Arc<Limit>,
}

/// A socket is known by its address and whether it takes both families, which can't be changed once it is bound; listeners on port 0
/// each have their own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key(SocketAddr, bool, Option<Arc<str>>);

impl Key {
    fn of(listener: &Listener) -> Self {
        let name = (listener.address.port() == 0).then(|| listener.name.clone());
        Self(listener.address, listener.ipv4_compat, name)
    }
}

#[derive(Debug)]
struct Bound {
    address: SocketAddr,
    direction: Direction,
    /// Not yet accepting while it is here.
    socket: Option<Socket>,
    /// Name of the listener that connections belong to; dropped to stop.
    name: watch::Sender<Arc<str>>,
    counts: Arc<Counts>,
}

impl Acceptors {
    /// Sockets whose connections go to `workers` (at least one) and are served by `serve`.
    pub fn new(workers: &[Arc<Worker>], serve: Serve) -> Self {
        let (sockets, closed, limit) = (Mutex::default(), AtomicU8::new(NONE), Arc::default());
        Self { workers: workers.into(), serve, sockets, closed, limit }
    }

    /// With `most` connections at a time, of all sockets together.
    pub fn at_most(mut self, most: u64) -> Self {
        self.limit = Arc::new(Limit { most, ..Limit::default() });
        self
    }

    /// Binds the socket of `listener` if it isn't there; it takes connections from [`Acceptors::apply`] on.
    /// A control plane's listener that fails here is refused, and what is in force stays.
    pub fn open(&self, listener: &Listener) -> Result<SocketAddr, BindError> {
        let key = Key::of(listener);
        let mut sockets = self.sockets.lock();
        if let Some(bound) = sockets.get(&key) {
            return Ok(bound.address);
        }
        let opened = bind(listener);
        let (socket, address) = opened.map_err(|error| BindError::new(listener, &error))?;
        let name = watch::Sender::new(listener.name.clone());
        let (direction, counts) = (listener.direction, Arc::default());
        sockets.insert(key, Bound { address, direction, socket: Some(socket), name, counts });
        Ok(address)
    }

    /// Accepts for all listeners of `snapshot` and stops for those that are gone. Returns the listeners whose socket could
    /// not be had; the others are in force.
    pub fn apply(&self, snapshot: &Snapshot) -> Vec<BindError> {
        let mut failed = Vec::new();
        let mut wanted = HashMap::new();
        for listener in snapshot.listeners.values().filter(|l| l.bind_to_port && self.accepts(l.direction)) {
            match self.open(listener) {
                Ok(_) => drop(wanted.insert(Key::of(listener), listener)),
                Err(error) => failed.push(error),
            }
        }
        let mut sockets = self.sockets.lock();
        sockets.retain(|key, bound| {
            let Some(listener) = wanted.get(key) else { return false };
            bound.direction = listener.direction;
            bound.name.send_if_modified(|name| {
                let renamed = *name != listener.name;
                *name = listener.name.clone();
                renamed
            });
            let Some(socket) = bound.socket.take() else { return true };
            match socket.listen(listener.backlog.unwrap_or(MAX_BACKLOG).min(MAX_BACKLOG) as i32) {
                Ok(()) => self.start(socket.into(), bound),
                Err(error) => {
                    failed.push(BindError::new(listener, &error));
                    return false;
                }
            }
            true
        });
        failed
    }

    /// Stops accepting for good, on inbound listeners only or on all.
    pub fn close(&self, inbound_only: bool) {
        self.closed.fetch_max(if inbound_only { INBOUND } else { ALL }, Ordering::Relaxed);
        self.sockets.lock().retain(|_, bound| self.accepts(bound.direction));
    }

    fn accepts(&self, direction: Direction) -> bool {
        match self.closed.load(Ordering::Relaxed) {
            NONE => true,
            INBOUND => direction == Direction::Outbound,
            _ => false,
        }
    }

    /// Addresses in use with the names of their listeners, sorted by name.
    pub fn addresses(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let sockets = self.sockets.lock();
        let mut all: Vec<_> = sockets.values().map(|b| (b.name.borrow().clone(), b.address)).collect();
        all.sort();
        all
    }

    /// Connections per socket, sorted by name.
    pub fn counts(&self) -> Vec<(Arc<str>, SocketAddr, Count)> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let count = |counts: &Counts| Count {
            total: load(&counts.total),
            active: load(&counts.active),
            refused: load(&counts.refused),
        };
        let row = |b: &Bound| (b.name.borrow().clone(), b.address, count(&b.counts));
        let mut all: Vec<_> = self.sockets.lock().values().map(row).collect();
        all.sort();
        all
    }

    fn start(&self, socket: std::net::TcpListener, bound: &Bound) {
        let Bound { address: bound, name, counts, .. } = bound;
        let (bound, name, counts) = (*bound, name.subscribe(), counts.clone());
        let home = usize::from(bound.port()) % self.workers.len();
        let (workers, serve, limit) = (self.workers.clone(), self.serve, self.limit.clone());
        self.workers[home].spawn(async move {
            match TcpListener::from_std(socket) {
                Ok(socket) => Accept { socket, bound, name, counts, limit, workers, home, serve }.run().await,
                Err(error) => tracing::error!(%bound, %error, "cannot accept"),
            }
        });
    }
}

/// The accept loop of one socket.
struct Accept {
    socket: TcpListener,
    bound: SocketAddr,
    name: watch::Receiver<Arc<str>>,
    counts: Arc<Counts>,
    limit: Arc<Limit>,
    workers: Box<[Arc<Worker>]>,
    home: usize,
    serve: Serve,
}

impl Accept {
    async fn run(mut self) {
        loop {
            let accepted = tokio::select! {
                biased;
                renamed = self.name.changed() => match renamed {
                    Ok(()) => continue,
                    Err(_) => break,
                },
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => self.hand_over(tcp, peer),
                Err(error) => self.pause_after(&error).await,
            }
        }
        self.drain_queue();
    }

    /// Connections whose handshake is complete would be reset by closing the socket; they are ours to serve.
    fn drain_queue(self) {
        let queue = SockRef::from(&self.socket).try_clone();
        let Ok(queue) = queue.map(std::net::TcpListener::from) else { return };
        // Not through tokio: it waits for a readiness event that may not have been polled yet.
        while let Ok((tcp, peer)) = queue.accept() {
            match tcp.set_nonblocking(true).and_then(|()| TcpStream::from_std(tcp)) {
                Ok(tcp) => self.hand_over(tcp, peer),
                Err(error) => tracing::warn!(%peer, %error, "lost a connection that was queued"),
            }
        }
    }

    fn hand_over(&self, tcp: TcpStream, peer: SocketAddr) {
        let peer = canonical(peer);
        let Some(counted) = Counted::new(&self.counts, &self.limit) else { return };
        let occupied = least_loaded(&self.workers, self.home).occupy();
        let listener = self.name.borrow().clone();
        let (bound, serve) = (self.bound, self.serve);
        if occupied.worker().id == self.home {
            return serve(Accepted { occupied, tcp, peer, bound, listener, counted });
        }
        // Out of this runtime's poller and into the other's.
        let Ok(socket) = tcp.into_std() else { return };
        let worker = occupied.worker().clone();
        worker.spawn(async move {
            match TcpStream::from_std(socket) {
                Ok(tcp) => serve(Accepted { occupied, tcp, peer, bound, listener, counted }),
                Err(error) => tracing::warn!(%peer, %error, "lost a connection at the hand-over"),
            }
        });
    }

    /// Errors of accept belong to the connection that was lost, except those that say that the process ran out of something:
    /// with these the loop would spin.
    async fn pause_after(&self, error: &io::Error) {
        use nix::errno::Errno;
        let exhausted = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
        let code = error.raw_os_error().map(Errno::from_raw);
        if code.is_some_and(|code| exhausted.contains(&code)) {
            tracing::error!(listener = %*self.name.borrow(), %error, "cannot accept");
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
        } else {
            tracing::debug!(listener = %*self.name.borrow(), %error, "a connection was lost before it was accepted");
        }
    }
}

/// An address as its own family writes it: on a socket of both, IPv4 shows as `::ffff:a.b.c.d`.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    let mapped = match address {
        SocketAddr::V6(v6) => v6.ip().to_ipv4_mapped(),
        SocketAddr::V4(_) => None,
    };
    mapped.map_or(address, |ip| SocketAddr::new(ip.into(), address.port()))
}

/// A bound socket. Options that accepted sockets inherit on Linux (TCP_NODELAY) are set here once.
fn bind(listener: &Listener) -> io::Result<(Socket, SocketAddr)> {
    let address = listener.address;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!listener.ipv4_compat)?;
    }
    if listener.transparent {
        // Of IPv6 sockets too: it is the same switch.
        socket.set_ip_transparent_v4(true).map_err(|error| {
            io::Error::new(error.kind(), format!("{error} (a transparent socket needs NET_ADMIN)"))
        })?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket, bound))
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;
