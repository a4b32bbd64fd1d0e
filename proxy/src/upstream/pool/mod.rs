//! Upstream connections of one worker: kept when idle, shared where the protocol can, closed as soon as they must not be used.
//!
//! [`Pool::http1`] and [`Pool::http2`] get a request its connection; `LIFECYCLE.md` beside this file draws the states. A connection
//! is found by its place (the endpoint, which stands for cluster and address, and the name that was asked for where requests say one) and
//! protocol, and used only if it was made with the settings in force, and while roots vouch for its peer and what it was shown is not of
//! a root that signs no more. Limits hold for the whole process while pools are per worker: who may not open a connection waits in the
//! cluster's queue (`waiting`), and pools pass on to it what comes free, or what they are asked for (`mailbox`).

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connect::connect;
use super::live::{ConnectionPermit, ConnectionSlot, EndpointState, LiveState, PlaceKey};
use super::mailbox::{Mailbox, PoolMember};
use super::waiting::{Grant, Waiting, Want};
use crate::config::cluster::{Cluster, ClusterSpec};
use crate::config::endpoint::{Endpoint, EndpointSpec};
use crate::config::tls::Within;
use crate::error::{Kind, Progress, ProxyError, Side};

mod http1;
mod http2;
mod sweep;
#[cfg(test)]
mod tests;

pub use http1::Http1Connection;
pub use http2::{Http2Connection, Http2Lease};

/// Streams that a connection is expected to take before its peer has said so (RFC 9113 6.5.2 recommends at least 100).
const EXPECTED_STREAMS: u32 = 100;
/// An original destination without a request for this long is forgotten.
const HOST_IDLE: Duration = Duration::from_secs(60);
/// Original destinations remembered at most, beside those that have requests in flight.
const MAX_HOSTS: usize = 1024;

/// The upstream connections of one worker. Clones are the same pool. Use it on its worker's runtime only.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<Shared>);

#[derive(Debug, Default)]
pub(super) struct Shared {
    mailbox: Arc<Mailbox>,
    /// Taken by this worker alone, except that a stream lent to another worker ends over there.
    state: Mutex<State>,
}

/// Invariants (see `check_invariants`):
/// - A connection is in at most one place: an idle list, a lease, a grant under way. HTTP/2 connections are in their slot
///   as long as they may get new streams, and only then.
/// - Idle connections are newest last; the one used last is used first, so that the others can grow old and be closed.
/// - The member's counts are those of the slots of its cluster.
/// - Somebody waits in a slot only while a connect is under way there; its end, however it comes, ends the wait.
/// - `sweep_at` is no later than the first moment at which something has to be closed or watched. Where nothing has to be, it is
///   `None`, and the pool's task sleeps without a timer.
#[derive(Debug, Default)]
struct State {
    slots: HashMap<PlaceKey, Slot, foldhash::fast::RandomState>,
    members: HashMap<u64, Weak<PoolMember>, foldhash::fast::RandomState>,
    /// Endpoints of original destination clusters, by cluster and address.
    hosts: HashMap<(u64, SocketAddr), Host, foldhash::fast::RandomState>,
    sweep_at: Option<Instant>,
    /// The pool's task is running.
    tended: bool,
}

/// An original destination that this worker has sent something to.
#[derive(Debug)]
struct Host {
    endpoint: Arc<Endpoint>,
    used: Instant,
}

/// Where a connection leads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    endpoint: &'a Arc<EndpointState>,
    /// Whom it is asked for, where requests say so.
    asked: Option<&'a Arc<str>>,
}

impl Place<'_> {
    pub(super) fn key(self) -> PlaceKey {
        (self.endpoint.id, self.asked.cloned())
    }
}

/// The connections of one place.
#[derive(Debug)]
struct Slot {
    endpoint: Arc<EndpointState>,
    member: Arc<PoolMember>,
    idle: Vec<Http1Connection>,
    /// Of HTTP/2 connections.
    lifetimes: Lifetimes,
    http2: Vec<Arc<Http2Connection>>,
    /// HTTP/2 connects under way.
    connecting: u32,
    /// Requests that wait for a stream here.
    waiters: VecDeque<StreamWaiter>,
}

/// A request that waits for a stream.
#[derive(Debug)]
struct StreamWaiter {
    /// Settings of the version of the cluster that it was routed by.
    settings: u64,
    granted: oneshot::Sender<StreamGrant>,
}

/// How long connections are kept: what the newest version of the cluster says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Lifetimes {
    idle: Option<Duration>,
    max_age: Option<Duration>,
    max_requests: Option<u32>,
}

/// What ends the wait for a stream in a slot.
#[derive(Debug)]
enum StreamGrant {
    Lease(Http2Lease),
    /// The connect failed.
    Failed(ProxyError),
    /// Neither: look anew.
    Again,
}

/// What a look for a stream comes to.
#[derive(Debug)]
enum Look {
    Lease(Http2Lease),
    /// A connect is under way.
    Wait(oneshot::Receiver<StreamGrant>),
    /// Another connection is needed and there is no place for it.
    NoPlace,
}

impl Lifetimes {
    fn of(spec: &ClusterSpec) -> Self {
        Self {
            idle: spec.idle_timeout,
            max_age: spec.max_connection_duration,
            max_requests: spec.max_requests_per_connection,
        }
    }
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// An HTTP/1 connection to `endpoint`: an idle one, or a new one, or the first that comes free where the cluster may have
    /// no more. `asked`: the name that the endpoint must answer to, where the request says it.
    pub async fn http1(
        &self,
        cluster: &Cluster,
        endpoint: &Arc<EndpointState>,
        asked: Option<&Arc<str>>,
    ) -> Result<Http1Connection, ProxyError> {
        let place = Place { endpoint, asked };
        match self.check_out(&cluster.spec, place) {
            Some(connection) => Ok(connection),
            None => Box::pin(self.new_http1(cluster, place)).await,
        }
    }

    async fn new_http1(&self, cluster: &Cluster, place: Place<'_>) -> Result<Http1Connection, ProxyError> {
        let Place { endpoint, asked } = place;
        let live = &endpoint.cluster;
        let _pending = live.admit_pending()?;
        let permit = match live.try_connection_slot() {
            Some(slot) => ConnectionPermit::from_slot(slot, endpoint),
            None => match self.wait_in_line(place, false).await? {
                Grant::Slot(slot) => ConnectionPermit::from_slot(slot, endpoint),
                Grant::Http1(connection) => match connection.take_over() {
                    Ok(connection) => return Ok(connection),
                    Err(permit) => permit,
                },
                Grant::Http2(_) => unreachable!("granted to those who want HTTP/2"),
            },
        };
        let permit = permit.asking(asked.cloned());
        let connected = connect(&permit, &cluster.spec, Within::Http1).await?;
        Ok(Http1Connection::new(connected, permit, cluster))
    }

    /// A stream on an HTTP/2 connection to `endpoint`, opening one where all are full. `asked` as in [`Pool::http1`].
    pub async fn http2(
        &self,
        cluster: &Arc<Cluster>,
        endpoint: &Arc<EndpointState>,
        asked: Option<&Arc<str>>,
    ) -> Result<Http2Lease, ProxyError> {
        let place = Place { endpoint, asked };
        match self.0.find_stream(&cluster.spec, place) {
            Some(lease) => Ok(lease),
            None => Box::pin(self.new_http2(cluster, place)).await,
        }
    }

    async fn new_http2(&self, cluster: &Arc<Cluster>, place: Place<'_>) -> Result<Http2Lease, ProxyError> {
        let _pending = place.endpoint.cluster.admit_pending()?;
        loop {
            let grant = match self.look_for_stream(cluster, place) {
                Look::Lease(lease) => return Ok(lease),
                Look::Wait(granted) => granted.await.unwrap_or(StreamGrant::Again),
                Look::NoPlace => match self.wait_in_line(place, true).await? {
                    Grant::Http2(lease) => return Ok(lease),
                    Grant::Slot(slot) => {
                        self.connect_http2(cluster, place, slot);
                        StreamGrant::Again
                    }
                    Grant::Http1(_) => unreachable!("granted to those who want HTTP/1"),
                },
            };
            match grant {
                StreamGrant::Lease(lease) => return Ok(lease),
                StreamGrant::Failed(error) => return Err(error),
                StreamGrant::Again => {}
            }
        }
    }

    /// The endpoint of an original destination cluster at `address`. It is forgotten, and its idle connections are closed, when
    /// nobody has used it for [`HOST_IDLE`].
    pub(super) fn original_host(&self, live: &Arc<LiveState>, address: SocketAddr) -> Arc<Endpoint> {
        let now = Instant::now();
        let mut state = self.0.state.lock();
        if let Some(host) = state.hosts.get_mut(&(live.id, address)) {
            host.used = now;
            return host.endpoint.clone();
        }
        if state.hosts.len() >= MAX_HOSTS {
            state.forget_hosts(now);
        }
        let endpoint =
            Arc::new(Endpoint { spec: EndpointSpec::default(), address, state: live.endpoint(address) });
        state.hosts.insert((live.id, address), Host { endpoint: endpoint.clone(), used: now });
        let wake = sweep::schedule(&mut state.sweep_at, now + HOST_IDLE);
        self.0.settle(state, wake);
        endpoint
    }

    /// Waits for the cluster's limit: for a place to open a connection, or a connection that others have finished with.
    async fn wait_in_line(&self, place: Place<'_>, http2: bool) -> Result<Grant, ProxyError> {
        let endpoint = place.endpoint;
        let live = &endpoint.cluster;
        live.counters.connection_overflow.fetch_add(1, Relaxed);
        let mut waiting = Waiting::join(live, Want { place: place.key(), http2 });
        // What came free before we joined was given to nobody.
        if let Some(slot) = live.try_connection_slot() {
            return Ok(Grant::Slot(slot));
        }
        live.ask_for_idle();
        let grant = waiting.granted().await;
        if endpoint.is_removed() {
            let detail =
                format!("{} was removed while the request waited for a connection", endpoint.address);
            return Err(ProxyError::new(Kind::ConnectFailed, Side::Internal, Progress::NothingSent, detail));
        }
        Ok(grant)
    }

    fn check_out(&self, spec: &ClusterSpec, place: Place<'_>) -> Option<Http1Connection> {
        let mut state = self.0.state.lock();
        let slot = state.slots.get_mut(&place.key())?;
        let (now, lifetimes) = (Instant::now(), Lifetimes::of(spec));
        while let Some(mut connection) = slot.take_idle() {
            connection.follow(lifetimes);
            if connection.is_wanted(now) && connection.wake() {
                return Some(connection);
            }
        }
        None
    }

    /// Certificates or roots have changed: lets go of connections whose ground has.
    pub fn look_at_ground(&self) {
        let mut state = self.0.state.lock();
        state.look_at_ground();
        self.0.check_invariants(&state);
    }

    /// Takes a connection back after request and response have ended cleanly: others may use it.
    pub fn check_in(&self, mut connection: Http1Connection) {
        let now = Instant::now();
        connection.rest(now);
        let live = connection.endpoint().cluster.clone();
        if !connection.is_wanted(now) {
            return;
        }
        let look = sweep::first_look(now, &connection);
        let mut state = self.0.state.lock();
        state.slot(&self.0, connection.place()).put_idle(connection);
        let wake = sweep::schedule(&mut state.sweep_at, look);
        self.0.settle(state, wake);
        if live.waiting.any() {
            self.0.give_up_idle(&live);
        }
    }

    /// Looks for a stream; where there is none, sees to it that enough connections are being opened.
    fn look_for_stream(&self, cluster: &Arc<Cluster>, place: Place<'_>) -> Look {
        let expected = EXPECTED_STREAMS.min(cluster.spec.http2.max_concurrent_streams.max(1)) as usize;
        let (granted, receiver) = oneshot::channel();
        let (connecting, enough) = {
            let mut state = self.0.state.lock();
            let slot = state.slot(&self.0, place);
            slot.lifetimes = Lifetimes::of(&cluster.spec);
            if let Some(lease) = slot.find_stream(Instant::now()) {
                return Look::Lease(lease);
            }
            slot.waiters.retain(|waiter| !waiter.granted.is_closed());
            slot.waiters.push_back(StreamWaiter { settings: cluster.connection_settings, granted });
            let connecting = slot.connecting as usize;
            (connecting > 0, slot.waiters.len() <= connecting * expected)
        };
        match (!enough).then(|| place.endpoint.cluster.try_connection_slot()) {
            Some(Some(slot)) => self.connect_http2(cluster, place, slot),
            Some(None) if !connecting => return Look::NoPlace,
            Some(None) | None => {}
        }
        Look::Wait(receiver)
    }

    /// Opens an HTTP/2 connection in a task of its own, so that it serves others if the request that asked for it goes away.
    fn connect_http2(&self, cluster: &Arc<Cluster>, place: Place<'_>, slot: ConnectionSlot) {
        let connecting = Connecting::new(&self.0, place);
        let permit = ConnectionPermit::from_slot(slot, place.endpoint).asking(place.asked.cloned());
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let connected = async {
                let connected = connect(&permit, &cluster.spec, Within::Http2).await?;
                let settings = cluster.connection_settings;
                http2::handshake(connected, permit, &cluster.spec, settings, &connecting.shared).await
            };
            let outcome = connected.await;
            connecting.end(outcome);
        });
    }
}

/// An HTTP/2 connect under way. It ends for those who wait also where its task is dropped.
struct Connecting {
    shared: Arc<Shared>,
    endpoint: Arc<EndpointState>,
    asked: Option<Arc<str>>,
}

impl Connecting {
    fn new(shared: &Arc<Shared>, place: Place<'_>) -> Self {
        shared.state.lock().slot(shared, place).connecting += 1;
        let Place { endpoint, asked } = place;
        Self { shared: shared.clone(), endpoint: endpoint.clone(), asked: asked.cloned() }
    }

    fn place(&self) -> Place<'_> {
        Place { endpoint: &self.endpoint, asked: self.asked.as_ref() }
    }

    fn end(self, outcome: Result<(Arc<Http2Connection>, http2::Driver), ProxyError>) {
        match outcome {
            Ok((connection, driver)) => {
                tokio::spawn(driver.run());
                self.shared.connected(connection);
            }
            Err(error) => self.shared.connect_failed(self.place(), &error),
        }
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let slot = state.slot(&self.shared, self.place());
        slot.connecting -= 1;
        if slot.connecting == 0 {
            // Served they are not; let them look anew.
            slot.dismiss_waiters(|| StreamGrant::Again);
        }
        self.shared.settle(state, false);
    }
}

impl State {
    /// The slot of `place`, made where it isn't there.
    fn slot(&mut self, shared: &Shared, place: Place<'_>) -> &mut Slot {
        let Self { slots, members, .. } = self;
        slots.entry(place.key()).or_insert_with(|| {
            let endpoint = place.endpoint;
            let live = &endpoint.cluster;
            let member = members.get(&live.id).and_then(Weak::upgrade).unwrap_or_else(|| {
                let member = PoolMember::new(shared.mailbox.clone(), live.id);
                live.join(&member);
                members.insert(live.id, Arc::downgrade(&member));
                member
            });
            Slot {
                endpoint: endpoint.clone(),
                member,
                lifetimes: Lifetimes::default(),
                idle: Vec::new(),
                http2: Vec::new(),
                connecting: 0,
                waiters: VecDeque::new(),
            }
        })
    }
}

impl Shared {
    /// Ends a change of the state: starts the pool's task at the first connection, wakes it where its plan has changed.
    fn settle(self: &Arc<Self>, mut state: parking_lot::MutexGuard<'_, State>, wake: bool) {
        self.check_invariants(&state);
        let start = !std::mem::replace(&mut state.tended, true);
        drop(state);
        if start {
            tokio::spawn(sweep::tend(Arc::downgrade(self), self.mailbox.clone()));
        } else if wake {
            self.mailbox.wake.notify_one();
        }
    }

    /// A stream on one of the connections that are there.
    fn find_stream(&self, spec: &ClusterSpec, place: Place<'_>) -> Option<Http2Lease> {
        let mut state = self.state.lock();
        let slot = state.slots.get_mut(&place.key())?;
        slot.lifetimes = Lifetimes::of(spec);
        slot.find_stream(Instant::now())
    }

    fn connected(self: &Arc<Self>, connection: Arc<Http2Connection>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let slot = state.slot(self, connection.place());
        let end = connection.expires(&slot.lifetimes);
        slot.serve_those_of(&connection);
        if connection.is_wanted(now, &slot.lifetimes) {
            slot.member.http2.fetch_add(1, SeqCst);
            slot.http2.push(connection);
        }
        slot.serve_waiters(now);
        let wake = end.is_some_and(|end| sweep::schedule(&mut state.sweep_at, end));
        self.settle(state, wake);
    }

    /// Those who wait for nothing but this connect learn of its failure.
    fn connect_failed(&self, place: Place<'_>, error: &ProxyError) {
        let mut state = self.state.lock();
        let slot = state.slot(self, place);
        if slot.connecting == 1 {
            slot.dismiss_waiters(|| StreamGrant::Failed(error.clone()));
        }
    }

    /// A stream has ended: whoever waits may have it, here or at another worker.
    fn stream_ended(self: &Arc<Self>, connection: &Arc<Http2Connection>, last: bool) {
        let now = Instant::now();
        if last {
            connection.rest(now);
        }
        let mut state = self.state.lock();
        let State { slots, sweep_at, .. } = &mut *state;
        if let Some(slot) = slots.get_mut(&connection.place().key())
            && slot.http2.iter().any(|other| Arc::ptr_eq(other, connection))
        {
            slot.serve_waiters(now);
            let end = connection.expires(&slot.lifetimes);
            let wake = last && end.is_some_and(|end| sweep::schedule(sweep_at, end));
            self.settle(state, wake);
        } else {
            drop(state);
        }
        let live = &connection.endpoint().cluster;
        if live.waiting.any() {
            self.give_up_idle(live);
        }
    }

    /// A connection that was doubted takes streams again.
    fn streams_free(self: &Arc<Self>, connection: &Arc<Http2Connection>) {
        let mut state = self.state.lock();
        if let Some(slot) = state.slots.get_mut(&connection.place().key()) {
            slot.serve_waiters(Instant::now());
        }
        drop(state);
        let live = &connection.endpoint().cluster;
        if live.waiting.any() {
            self.give_up_idle(live);
        }
    }

    /// A connection is closed: it leaves, and who waits for it looks anew.
    fn connection_ended(self: &Arc<Self>, connection: &Arc<Http2Connection>) {
        let mut state = self.state.lock();
        if let Some(slot) = state.slots.get_mut(&connection.place().key()) {
            slot.remove_http2(|other| Arc::ptr_eq(other, connection));
        }
        self.settle(state, false);
    }

    /// Gives what is idle in this pool to those who wait for a connection of the cluster, first come first served: the very
    /// connection where it leads to the right endpoint, else its place.
    fn give_up_idle(self: &Arc<Self>, live: &Arc<LiveState>) {
        while let Some(want) = live.waiting.first() {
            let mut state = self.state.lock();
            let fitting = state.slots.get_mut(&want.place);
            if want.http2 {
                if let Some(lease) = fitting.and_then(|slot| slot.find_stream(Instant::now())) {
                    drop(state);
                    if live.waiting.give_http2(lease).is_some() {
                        return;
                    }
                    continue;
                }
            } else if let Some(connection) = fitting.and_then(Slot::take_idle) {
                drop(state);
                // Not taken: it is dropped, and its place goes to the one who is first now.
                drop(live.waiting.give_http1(connection));
                continue;
            }
            let mut of_cluster = state.slots.values_mut().filter(|slot| slot.endpoint.cluster.id == live.id);
            let freed = of_cluster.find_map(Slot::take_unused);
            drop(state);
            match freed {
                Some(Unused::Http1(connection)) => drop(connection),
                // Its place comes free when its driver has closed it; more than one need not go for one waiter.
                Some(Unused::Http2(connection)) => return drop(connection),
                None => return,
            }
        }
    }

    fn check_invariants(&self, state: &State) {
        if !cfg!(debug_assertions) {
            return;
        }
        let mut counted: HashMap<u64, (u32, u32, &PoolMember)> = HashMap::new();
        for (key, slot) in &state.slots {
            let of_cluster = counted.entry(slot.member.cluster).or_insert((0, 0, &slot.member));
            of_cluster.0 += slot.idle.len() as u32;
            of_cluster.1 += slot.http2.len() as u32;
            debug_assert!(slot.idle.is_sorted_by_key(Http1Connection::idle_since), "idle newest last");
            debug_assert!(slot.idle.iter().all(|connection| connection.place().key() == *key));
            let waiting = slot.waiters.iter().any(|waiter| !waiter.granted.is_closed());
            debug_assert!(!waiting || slot.connecting > 0, "somebody waits for nothing");
            let unwatched = slot.idle.iter().any(|connection| !connection.is_watched());
            debug_assert!(!unwatched || state.sweep_at.is_some(), "nobody will look after idle connections");
        }
        for (idle, http2, member) in counted.values() {
            debug_assert_eq!((*idle, *http2), (member.idle.load(SeqCst), member.http2.load(SeqCst)));
        }
    }
}

/// A connection that no request uses.
enum Unused {
    Http1(Http1Connection),
    Http2(Arc<Http2Connection>),
}

impl Slot {
    /// The connection used last.
    fn take_idle(&mut self) -> Option<Http1Connection> {
        let connection = self.idle.pop()?;
        self.member.idle.fetch_sub(1, SeqCst);
        Some(connection)
    }

    fn put_idle(&mut self, connection: Http1Connection) {
        self.idle.push(connection);
        self.member.idle.fetch_add(1, SeqCst);
    }

    /// The oldest idle connection, or an HTTP/2 connection without streams.
    fn take_unused(&mut self) -> Option<Unused> {
        if !self.idle.is_empty() {
            self.member.idle.fetch_sub(1, SeqCst);
            return Some(Unused::Http1(self.idle.remove(0)));
        }
        let place = self.http2.iter().position(|connection| connection.streams() == 0)?;
        self.member.http2.fetch_sub(1, SeqCst);
        Some(Unused::Http2(self.http2.remove(place)))
    }

    /// Lets HTTP/2 connections go: they finish their streams and close.
    fn remove_http2(&mut self, gone: impl Fn(&Arc<Http2Connection>) -> bool) {
        let before = self.http2.len();
        self.http2.retain(|connection| !gone(connection));
        self.member.http2.fetch_sub((before - self.http2.len()) as u32, SeqCst);
    }

    /// A stream on the first connection that takes one; connections that take none for good leave.
    fn find_stream(&mut self, now: Instant) -> Option<Http2Lease> {
        let lifetimes = self.lifetimes;
        if self.http2.iter().any(|connection| !connection.is_wanted(now, &lifetimes)) {
            self.remove_http2(|connection| !connection.is_wanted(now, &lifetimes));
        }
        self.http2.iter().find_map(Http2Connection::try_lease)
    }

    /// Gives free streams to those who wait.
    fn serve_waiters(&mut self, now: Instant) {
        while !self.waiters.is_empty() {
            let Some(lease) = self.find_stream(now) else { return };
            let Some(waiter) = self.waiters.pop_front() else { return lease.cancel() };
            waiter.give(lease);
        }
    }

    /// Gives streams of a fresh connection to those who wait for one with its settings, also where it isn't wanted any more by now.
    /// Looking anew would open such a connection for them again, and again in vain, for as long as they wait.
    fn serve_those_of(&mut self, connection: &Arc<Http2Connection>) {
        while let Some(place) =
            self.waiters.iter().position(|waiter| connection.has_settings(waiter.settings))
        {
            let Some(lease) = connection.try_lease() else { return };
            let Some(waiter) = self.waiters.remove(place) else { return lease.cancel() };
            waiter.give(lease);
        }
    }

    fn dismiss_waiters(&mut self, grant: impl Fn() -> StreamGrant) {
        for waiter in self.waiters.drain(..) {
            // Who doesn't listen any more needs no answer.
            let _ = waiter.granted.send(grant());
        }
    }
}

impl StreamWaiter {
    /// Call it with the pool locked.
    fn give(self, lease: Http2Lease) {
        if let Err(StreamGrant::Lease(lease)) = self.granted.send(StreamGrant::Lease(lease)) {
            // We hold the lock that a lease's drop takes.
            lease.cancel();
        }
    }
}
