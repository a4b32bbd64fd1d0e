//! Live state of clusters and endpoints: shared atomics that outlast configuration updates.
//!
//! Invariants:
//! - An [`EndpointState`] is known by its address within its cluster, and by how bytes are secured on the way there. All versions of a cluster share one [`LiveState`], so
//!   counts and limits go on where they were. A state lives as long as an endpoint set, a request or a connection holds it.
//! - What counts against a limit is counted by a permit ([`RequestPermit`], [`PendingPermit`], [`RetryPermit`],
//!   [`ConnectionPermit`]); only its drop gives the count back, so an abandoned future can't leak one.
//! - Limits are those of the newest version in force, and hold for the whole process.
//! - `removed` is set after the new endpoint set is in force and before connections are told to close: whoever sees it unset
//!   may use the endpoint, whoever sees it set must not pick it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::mailbox::{Notice, PoolMember};
use super::waiting::WaitQueue;
use crate::config::cluster::ClusterLimits;
use crate::config::endpoint::{Endpoint, EndpointSet, TransportHints};
use crate::error::{Kind, Progress, ProxyError, Side};

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Live state of a cluster.
#[derive(Debug)]
pub struct LiveState {
    /// Unique in this process.
    pub id: u64,
    /// The cluster's name, for messages.
    pub name: Arc<str>,
    /// Figures for `/stats` and `/clusters`.
    pub counters: ClusterCounters,
    /// Wakes requests that wait for the first endpoints.
    pub(super) known: Notify,
    /// Requests that wait for a connection which the limit doesn't allow.
    pub(super) waiting: WaitQueue,
    limits: LimitsInForce,
    /// Hash of the settings that connections must have been made with (see `ClusterSpec::connection_settings`).
    settings: AtomicU64,
    active_requests: AtomicU32,
    pending_requests: AtomicU32,
    active_retries: AtomicU32,
    connections: AtomicU32,
    endpoints: Mutex<HashMap<EndpointKey, Weak<EndpointState>>>,
    /// Pools with connections of this cluster.
    members: Mutex<Vec<Weak<PoolMember>>>,
}

/// What happened in a cluster so far.
#[derive(Debug, Default)]
pub struct ClusterCounters {
    /// Requests that ended, well or not.
    pub requests_completed: AtomicU64,
    /// Requests refused by `max_requests` or `max_pending_requests`.
    pub pending_overflow: AtomicU64,
    /// Requests that had to wait because of `max_connections`, and TCP connections refused by it.
    pub connection_overflow: AtomicU64,
    /// Retries refused by `max_retries`.
    pub retry_overflow: AtomicU64,
    /// Retries made.
    pub retries: AtomicU64,
    /// Requests that the upstream didn't answer in time.
    pub request_timeouts: AtomicU64,
    /// Connections opened.
    pub connections_opened: AtomicU64,
    /// Connect attempts that failed, time-outs included.
    pub connect_failures: AtomicU64,
    /// Connect attempts that took too long.
    pub connect_timeouts: AtomicU64,
}

/// What makes an endpoint another one: where it is, and how bytes are secured on the way there.
type EndpointKey = (SocketAddr, Arc<TransportHints>);

#[derive(Debug)]
struct LimitsInForce {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
}

/// Live state of an endpoint.
#[derive(Debug)]
pub struct EndpointState {
    /// Unique in this process; pools use it as key.
    pub id: u64,
    /// Where it is.
    pub address: SocketAddr,
    /// What decides how bytes are secured on the way there. No connection may serve where this is different.
    pub transport: Arc<TransportHints>,
    /// The cluster that it belongs to.
    pub cluster: Arc<LiveState>,
    /// Figures for `/clusters`.
    pub counters: EndpointCounters,
    active: AtomicU32,
    connections: AtomicU32,
    removed: AtomicBool,
    /// Wakes TCP connections that a removal closes.
    severed: Notify,
}

/// What happened at an endpoint so far.
#[derive(Debug, Default)]
pub struct EndpointCounters {
    /// Requests answered below 500.
    pub successes: AtomicU64,
    /// Requests answered with 500 and above, or not at all.
    pub errors: AtomicU64,
    /// Requests not answered in time.
    pub timeouts: AtomicU64,
    /// Connections opened.
    pub connections_opened: AtomicU64,
    /// Connect attempts that failed.
    pub connect_failures: AtomicU64,
}

impl LiveState {
    /// The state of a cluster that wasn't there before, without limits.
    pub fn new(name: impl Into<Arc<str>>) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            name: name.into(),
            counters: ClusterCounters::default(),
            known: Notify::new(),
            waiting: WaitQueue::default(),
            limits: LimitsInForce::unlimited(),
            settings: AtomicU64::new(0),
            active_requests: AtomicU32::new(0),
            pending_requests: AtomicU32::new(0),
            active_retries: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            endpoints: Mutex::default(),
            members: Mutex::default(),
        })
    }

    /// The state of the endpoint at `address` that says nothing of how bytes are secured.
    pub fn endpoint(self: &Arc<Self>, address: SocketAddr) -> Arc<EndpointState> {
        self.secured_endpoint(address, &Arc::default())
    }

    /// The state of the endpoint at `address`: the one that is there, or a new one.
    pub fn secured_endpoint(
        self: &Arc<Self>,
        address: SocketAddr,
        transport: &Arc<TransportHints>,
    ) -> Arc<EndpointState> {
        let mut endpoints = self.endpoints.lock();
        let key = (address, transport.clone());
        if let Some(state) = endpoints.get(&key).and_then(Weak::upgrade) {
            return state;
        }
        if endpoints.len() == endpoints.capacity() {
            endpoints.retain(|_, state| state.strong_count() > 0);
        }
        let state = Arc::new(EndpointState {
            id: NEXT_ID.fetch_add(1, Relaxed),
            address,
            transport: transport.clone(),
            cluster: self.clone(),
            counters: EndpointCounters::default(),
            active: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            removed: AtomicBool::new(false),
            severed: Notify::new(),
        });
        endpoints.insert(key, Arc::downgrade(&state));
        state
    }

    /// Every endpoint state in use, in no order. Original destination clusters have no other list of their hosts.
    pub fn endpoints_in_use(&self) -> Vec<Arc<EndpointState>> {
        self.endpoints.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Puts limits and connection settings in force. Connections with other settings are closed when idle.
    pub(crate) fn apply(self: &Arc<Self>, limits: &ClusterLimits, settings: u64) {
        self.limits.connections.store(limits.max_connections, Relaxed);
        self.limits.pending.store(limits.max_pending_requests, Relaxed);
        self.limits.requests.store(limits.max_requests, Relaxed);
        self.limits.retries.store(limits.max_retries, Relaxed);
        if self.settings.swap(settings, SeqCst) != settings {
            self.notify_pools(Notice::SettingsChanged);
        }
        // A limit that was raised lets those in who wait.
        while self.waiting.any() && self.serve_waiter() {}
    }

    /// Makes `set` the one that decides who is gone. Call it when the set is already what requests see.
    pub(crate) fn adopt(&self, set: &EndpointSet, close_connections: bool) {
        let members: HashMap<u64, bool> =
            set.iter().map(|endpoint| (endpoint.state.id, endpoint.spec.health.takes_traffic())).collect();
        let mut gone = Vec::new();
        for state in self.endpoints_in_use() {
            match members.get(&state.id) {
                Some(healthy) => {
                    state.removed.store(false, SeqCst);
                    if close_connections && !healthy {
                        state.severed.notify_waiters();
                    }
                }
                None => {
                    if !state.removed.swap(true, SeqCst) {
                        gone.push(state);
                    }
                }
            }
        }
        if !gone.is_empty() {
            self.notify_pools(Notice::EndpointsRemoved);
            if close_connections {
                gone.iter().for_each(|state| state.severed.notify_waiters());
            }
        }
        self.known.notify_waiters();
    }

    /// Endpoints of a new set may be picked as soon as it is in force.
    pub(crate) fn welcome(&self, set: &EndpointSet) {
        set.iter().for_each(|endpoint| endpoint.state.removed.store(false, SeqCst));
    }

    /// The cluster was removed: nobody is in it.
    pub(crate) fn retire(&self) {
        self.adopt(&EndpointSet::default(), false);
    }

    /// Takes a permit for one request to `endpoint`, which counts from now on as active there.
    pub fn admit(endpoint: Arc<Endpoint>) -> Result<RequestPermit, ProxyError> {
        let cluster = &endpoint.state.cluster;
        if !try_take(&cluster.active_requests, cluster.limits.requests.load(Relaxed)) {
            cluster.counters.pending_overflow.fetch_add(1, Relaxed);
            return Err(cluster.overflow("max_requests"));
        }
        endpoint.state.active.fetch_add(1, Relaxed);
        Ok(RequestPermit { endpoint, success: false })
    }

    /// Takes a permit for one request that waits for a connection.
    pub(super) fn admit_pending(self: &Arc<Self>) -> Result<PendingPermit, ProxyError> {
        if !try_take(&self.pending_requests, self.limits.pending.load(Relaxed)) {
            self.counters.pending_overflow.fetch_add(1, Relaxed);
            return Err(self.overflow("max_pending_requests"));
        }
        Ok(PendingPermit(self.clone()))
    }

    /// Takes a permit for one retry. `None`: the limit is reached, and the original failure goes to the client.
    pub fn admit_retry(self: &Arc<Self>) -> Option<RetryPermit> {
        if try_take(&self.active_retries, self.limits.retries.load(Relaxed)) {
            self.counters.retries.fetch_add(1, Relaxed);
            Some(RetryPermit(self.clone()))
        } else {
            self.counters.retry_overflow.fetch_add(1, Relaxed);
            None
        }
    }

    /// Counts one more connection if the limit allows it.
    pub(super) fn try_connection_slot(self: &Arc<Self>) -> Option<ConnectionSlot> {
        try_take(&self.connections, self.limits.connections.load(Relaxed))
            .then(|| ConnectionSlot(Some(self.clone())))
    }

    /// Gives a free place to whoever waits first; false where there is no place or nobody to take it.
    fn serve_waiter(self: &Arc<Self>) -> bool {
        self.try_connection_slot().is_some_and(|slot| match self.waiting.give_slot(slot) {
            None => true,
            Some(slot) => {
                slot.release();
                false
            }
        })
    }

    /// Connections made with other settings than these are not used again.
    pub(super) fn settings_in_force(&self) -> u64 {
        self.settings.load(SeqCst)
    }

    pub(super) fn overflow(&self, limit: &str) -> ProxyError {
        let detail = format!("cluster {} has reached {limit}", self.name);
        ProxyError::new(Kind::Overflow, Side::Internal, Progress::NothingSent, detail)
    }

    pub(super) fn join(&self, member: &Arc<PoolMember>) {
        let mut members = self.members.lock();
        members.retain(|other| other.strong_count() > 0);
        members.push(Arc::downgrade(member));
    }

    pub(super) fn notify_pools(&self, notice: Notice) {
        for member in self.members.lock().iter().filter_map(Weak::upgrade) {
            member.notify(notice);
        }
    }

    /// Asks the pools that have idle connections of this cluster to give one to those who wait.
    pub(super) fn ask_for_idle(&self) {
        for member in self.members.lock().iter().filter_map(Weak::upgrade) {
            if member.may_have_idle() {
                member.notify(Notice::GiveUpIdle);
            }
        }
    }

    /// Requests in flight.
    pub fn active_requests(&self) -> u32 {
        self.active_requests.load(Relaxed)
    }

    /// Requests waiting for a connection.
    pub fn pending_requests(&self) -> u32 {
        self.pending_requests.load(Relaxed)
    }

    /// Retries in flight.
    pub fn active_retries(&self) -> u32 {
        self.active_retries.load(Relaxed)
    }

    /// Open connections, and those being opened.
    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    /// Limits in force.
    pub fn limits(&self) -> ClusterLimits {
        ClusterLimits {
            max_connections: self.limits.connections.load(Relaxed),
            max_pending_requests: self.limits.pending.load(Relaxed),
            max_requests: self.limits.requests.load(Relaxed),
            max_retries: self.limits.retries.load(Relaxed),
        }
    }

    /// Envoy's names and the figures behind them, without the `cluster.<name>.` prefix.
    pub fn stats(&self) -> [(&'static str, u64); 14] {
        let counters = &self.counters;
        let active = u64::from(self.active_requests());
        [
            ("upstream_cx_active", u64::from(self.connections())),
            ("upstream_cx_connect_fail", counters.connect_failures.load(Relaxed)),
            ("upstream_cx_connect_timeout", counters.connect_timeouts.load(Relaxed)),
            ("upstream_cx_overflow", counters.connection_overflow.load(Relaxed)),
            ("upstream_cx_total", counters.connections_opened.load(Relaxed)),
            ("upstream_rq_active", active),
            ("upstream_rq_completed", counters.requests_completed.load(Relaxed)),
            ("upstream_rq_pending_active", u64::from(self.pending_requests())),
            ("upstream_rq_pending_overflow", counters.pending_overflow.load(Relaxed)),
            ("upstream_rq_retry", counters.retries.load(Relaxed)),
            ("upstream_rq_retry_active", u64::from(self.active_retries())),
            ("upstream_rq_retry_overflow", counters.retry_overflow.load(Relaxed)),
            ("upstream_rq_timeout", counters.request_timeouts.load(Relaxed)),
            ("upstream_rq_total", counters.requests_completed.load(Relaxed) + active),
        ]
    }
}

impl LimitsInForce {
    fn unlimited() -> Self {
        let most = || AtomicU32::new(u32::MAX);
        Self { connections: most(), pending: most(), requests: most(), retries: most() }
    }
}

impl EndpointState {
    /// True where no new pick may land here.
    pub fn is_removed(&self) -> bool {
        self.removed.load(SeqCst)
    }

    /// Requests in flight and connections with opaque bytes at this endpoint, over all workers.
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Open connections to this endpoint.
    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    /// Completes when open TCP connections to this endpoint have to close (`close_on_host_removal`).
    pub async fn severed(&self) {
        let mut severed = std::pin::pin!(self.severed.notified());
        severed.as_mut().enable();
        // It may have been removed while the connection was being opened.
        if !self.is_removed() {
            severed.await;
        }
    }

    /// Envoy's names and the figures behind them, as `/clusters` shows them.
    pub fn stats(&self) -> [(&'static str, u64); 8] {
        let (successes, errors) = (self.counters.successes.load(Relaxed), self.counters.errors.load(Relaxed));
        let active = u64::from(self.active());
        [
            ("cx_active", u64::from(self.connections())),
            ("cx_connect_fail", self.counters.connect_failures.load(Relaxed)),
            ("cx_total", self.counters.connections_opened.load(Relaxed)),
            ("rq_active", active),
            ("rq_error", errors),
            ("rq_success", successes),
            ("rq_timeout", self.counters.timeouts.load(Relaxed)),
            ("rq_total", successes + errors + active),
        ]
    }
}

/// One request in flight: counted at its cluster and its endpoint until this is dropped.
#[derive(Debug)]
pub struct RequestPermit {
    endpoint: Arc<Endpoint>,
    success: bool,
}

impl RequestPermit {
    /// The endpoint that the request goes to.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The response's status is known; what isn't answered below 500 counts as an error.
    pub fn answered(&mut self, status: u16) {
        self.success = status < 500;
    }

    /// No answer came in time.
    pub fn timed_out(&mut self) {
        self.success = false;
        let state = &self.endpoint.state;
        state.counters.timeouts.fetch_add(1, Relaxed);
        state.cluster.counters.request_timeouts.fetch_add(1, Relaxed);
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        let state = &self.endpoint.state;
        if self.success { &state.counters.successes } else { &state.counters.errors }.fetch_add(1, Relaxed);
        state.active.fetch_sub(1, Relaxed);
        state.cluster.active_requests.fetch_sub(1, Relaxed);
        state.cluster.counters.requests_completed.fetch_add(1, Relaxed);
    }
}

/// One request that waits for a connection.
#[derive(Debug)]
pub struct PendingPermit(Arc<LiveState>);

impl Drop for PendingPermit {
    fn drop(&mut self) {
        self.0.pending_requests.fetch_sub(1, Relaxed);
    }
}

/// One retry in flight.
#[derive(Debug)]
pub struct RetryPermit(Arc<LiveState>);

impl Drop for RetryPermit {
    fn drop(&mut self) {
        self.0.active_retries.fetch_sub(1, Relaxed);
    }
}

/// The right to have one more connection in a cluster. Its drop passes it on to whoever waits first.
#[derive(Debug)]
pub(super) struct ConnectionSlot(Option<Arc<LiveState>>);

impl ConnectionSlot {
    /// Gives the place back without looking for somebody who waits.
    fn release(mut self) {
        if let Some(cluster) = self.0.take() {
            cluster.connections.fetch_sub(1, SeqCst);
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let Some(cluster) = self.0.take() else { return };
        let within_limit = cluster.connections.load(SeqCst) <= cluster.limits.connections.load(Relaxed);
        let mut slot = Self(Some(cluster.clone()));
        if within_limit && cluster.waiting.any() {
            match cluster.waiting.give_slot(slot) {
                None => return,
                Some(back) => slot = back,
            }
        }
        slot.release();
        // Somebody may have begun to wait between the look and the release.
        while cluster.waiting.any() && cluster.serve_waiter() {}
    }
}

/// Which connections can stand in for each other: those to one endpoint (by its id) that were asked for by one name, where requests say
/// whom they ask for.
pub(super) type PlaceKey = (u64, Option<Arc<str>>);

/// One open connection (or one being opened): counted at its cluster and its endpoint until this is dropped.
#[derive(Debug)]
pub struct ConnectionPermit {
    endpoint: Arc<EndpointState>,
    /// Whom a request asked for, where that makes connections differ.
    asked: Option<Arc<str>>,
    /// Counts as active at the endpoint all the time, as a connection with opaque bytes does.
    busy: bool,
    _slot: ConnectionSlot,
}

impl ConnectionPermit {
    /// Takes a place if the cluster's limit allows one more connection.
    pub fn try_new(endpoint: &Arc<EndpointState>) -> Option<Self> {
        endpoint.cluster.try_connection_slot().map(|slot| Self::from_slot(slot, endpoint))
    }

    pub(super) fn from_slot(slot: ConnectionSlot, endpoint: &Arc<EndpointState>) -> Self {
        endpoint.connections.fetch_add(1, Relaxed);
        Self { endpoint: endpoint.clone(), asked: None, busy: false, _slot: slot }
    }

    /// The same for a connection that is asked for by a name.
    pub(super) fn asking(mut self, name: Option<Arc<str>>) -> Self {
        self.asked = name;
        self
    }

    /// Whom a request asked for, where that makes connections differ.
    pub(super) fn asked(&self) -> Option<&Arc<str>> {
        self.asked.as_ref()
    }

    /// The connection is at work as long as it is open, so least request sees it.
    pub(super) fn busy(mut self) -> Self {
        if !std::mem::replace(&mut self.busy, true) {
            self.endpoint.active.fetch_add(1, Relaxed);
        }
        self
    }

    /// The endpoint that the connection leads to.
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        &self.endpoint
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if self.busy {
            self.endpoint.active.fetch_sub(1, Relaxed);
        }
        self.endpoint.connections.fetch_sub(1, Relaxed);
    }
}

/// Adds one unless that would pass the limit.
fn try_take(counter: &AtomicU32, limit: u32) -> bool {
    if limit == u32::MAX {
        counter.fetch_add(1, SeqCst);
        return true;
    }
    counter.fetch_update(SeqCst, SeqCst, |count| (count < limit).then(|| count + 1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::endpoint::EndpointSpec;
    use crate::upstream::waiting::{Grant, Waiting, Want};

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    fn endpoint(state: &Arc<EndpointState>) -> Arc<Endpoint> {
        Arc::new(Endpoint { spec: EndpointSpec::default(), address: state.address, state: state.clone() })
    }

    fn join(live: &Arc<LiveState>) -> Waiting {
        Waiting::join(live, Want { place: (0, None), http2: false })
    }

    async fn slot(waiting: &mut Waiting) -> ConnectionSlot {
        let Grant::Slot(slot) = waiting.granted().await else { panic!("not a slot") };
        slot
    }

    fn limited(limits: ClusterLimits) -> Arc<LiveState> {
        let live = LiveState::new("c");
        live.apply(&limits, 1);
        live
    }

    #[test]
    fn each_limit_holds_and_each_drop_gives_back() {
        let live = limited(ClusterLimits {
            max_connections: 1,
            max_pending_requests: 1,
            max_requests: 2,
            max_retries: 1,
        });
        let state = live.endpoint(address(1));

        let (one, two) = (LiveState::admit(endpoint(&state)), LiveState::admit(endpoint(&state)));
        let refused = LiveState::admit(endpoint(&state)).expect_err("a third request");
        assert_eq!((refused.kind, refused.progress), (Kind::Overflow, Progress::NothingSent));
        assert_eq!(refused.detail, "cluster c has reached max_requests");
        assert_eq!((live.active_requests(), state.active()), (2, 2));
        drop((one, two));
        assert_eq!((live.active_requests(), state.active()), (0, 0));

        let pending = live.admit_pending().expect("the first");
        assert_eq!(live.admit_pending().expect_err("the second").kind, Kind::Overflow);
        drop(pending);
        drop(live.admit_pending().expect("free again"));
        assert_eq!(live.counters.pending_overflow.load(Relaxed), 2);

        let retry = live.admit_retry();
        assert!(retry.is_some() && live.admit_retry().is_none());
        drop(retry);
        assert!(live.admit_retry().is_some());

        let connection = ConnectionPermit::try_new(&state);
        assert!(connection.is_some() && ConnectionPermit::try_new(&state).is_none());
        assert_eq!(state.connections(), 1);
        drop(connection);
        assert_eq!((state.connections(), live.connections()), (0, 0));
    }

    #[test]
    fn outcomes_are_counted() {
        let state = LiveState::new("c").endpoint(address(1));
        for status in [200, 404, 500] {
            LiveState::admit(endpoint(&state)).expect("no limit").answered(status);
        }
        LiveState::admit(endpoint(&state)).expect("no limit").timed_out();
        let stats = state.stats();
        for (name, wanted) in [("rq_success", 2), ("rq_error", 2), ("rq_timeout", 1), ("rq_total", 4)] {
            assert!(stats.contains(&(name, wanted)), "{name}: {stats:?}");
        }
    }

    #[test]
    fn states_are_shared_while_used_and_dropped_after() {
        let live = LiveState::new("c");
        let (one, again) = (live.endpoint(address(1)), live.endpoint(address(1)));
        assert_eq!(one.id, again.id);
        drop((one, again));
        assert!(live.endpoints_in_use().is_empty());
        for last in 0..200 {
            live.endpoint(address(last));
        }
        assert!(live.endpoints.lock().len() < 50, "entries of dropped states are cleared away");
    }

    #[tokio::test]
    async fn freed_places_go_to_those_who_wait_in_order() {
        let live = limited(ClusterLimits { max_connections: 1, ..ClusterLimits::default() });
        let state = live.endpoint(address(1));
        let held = ConnectionPermit::try_new(&state).expect("the first");
        let (mut one, gone, mut two) = (join(&live), join(&live), join(&live));
        drop(gone);
        drop(held);
        assert!(live.try_connection_slot().is_none(), "the place is the first waiter's, nobody overtakes");
        drop(slot(&mut one).await);
        // A granted place that nobody takes passes on.
        let mut three = join(&live);
        drop(slot(&mut two).await);
        let held = slot(&mut three).await;
        assert_eq!(live.connections(), 1);
        drop((one, two, three, held));
        assert_eq!(live.connections(), 0);
        assert!(!live.waiting.any());
    }

    #[tokio::test]
    async fn a_raised_limit_lets_waiters_in_and_a_lowered_one_keeps_them_out() {
        let limits = |max_connections| ClusterLimits { max_connections, ..ClusterLimits::default() };
        let live = limited(limits(2));
        let state = live.endpoint(address(1));
        let held = [ConnectionPermit::try_new(&state), ConnectionPermit::try_new(&state)];
        let mut waiting = join(&live);
        live.apply(&limits(1), 1);
        let [one, two] = held;
        drop(one);
        assert_eq!(live.connections(), 1, "over the limit: the place is not passed on");
        live.apply(&limits(2), 1);
        let _slot = slot(&mut waiting).await;
        assert_eq!(live.connections(), 2);
        drop(two);
    }
}
