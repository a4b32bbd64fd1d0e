//! One HTTP/1 connection to an endpoint, between requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Waker};

use tokio::time::Instant;

use super::{Lifetimes, Place};
use crate::config::cluster::Cluster;
use crate::identity::vouch::Vouch;
use crate::io::Stream;
use crate::upstream::connect::Connected;
use crate::upstream::live::{ConnectionPermit, EndpointState};

/// A connection that carries one request at a time. While it is idle it holds no buffer. Dropped by a request, it is closed;
/// only [`super::Pool::check_in`] makes it available to others.
#[derive(Debug)]
pub struct Http1Connection {
    /// The bytes.
    pub(crate) io: Stream,
    /// By what its peer is believed, where it has proved who it is.
    vouch: Option<Arc<Vouch>>,
    /// Our end of it.
    local: Option<SocketAddr>,
    permit: ConnectionPermit,
    settings: u64,
    /// What the cluster said when it was used last.
    lifetimes: Lifetimes,
    opened: Instant,
    idle_since: Instant,
    /// Requests that were sent on it, the current one included.
    requests: u32,
    /// Registered with the pool's waker, so that a close is noticed while it is idle.
    watched: bool,
}

impl Http1Connection {
    pub(super) fn new(connected: Connected, permit: ConnectionPermit, cluster: &Cluster) -> Self {
        let Connected { stream: io, vouch } = connected;
        let now = Instant::now();
        Self {
            local: io.local_addr().ok(),
            io,
            vouch,
            permit,
            settings: cluster.connection_settings,
            lifetimes: Lifetimes::of(&cluster.spec),
            opened: now,
            idle_since: now,
            requests: 1,
            watched: false,
        }
    }

    /// The endpoint at the other end.
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        self.permit.endpoint()
    }

    /// What it can be used for.
    pub(in crate::upstream) fn place(&self) -> Place<'_> {
        Place { endpoint: self.endpoint(), asked: self.permit.asked() }
    }

    /// By what its peer is believed.
    pub(crate) fn vouch(&self) -> Option<&Arc<Vouch>> {
        self.vouch.as_ref()
    }

    /// Our own address.
    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        self.local
    }

    /// True where it has carried a request before: then the peer may be closing it just now.
    pub(crate) fn is_reused(&self) -> bool {
        self.requests > 1
    }

    /// Whether it may be used for another request after this one.
    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        let endpoint = self.endpoint();
        !endpoint.is_removed()
            && self.settings == endpoint.cluster.settings_in_force()
            && self.vouch.as_ref().is_none_or(|vouch| vouch.is_wanted())
            && self.lifetimes.max_requests.is_none_or(|most| self.requests < most)
            && self.expires().is_none_or(|end| now < end)
    }

    /// When it is closed if nobody uses it.
    pub(super) fn expires(&self) -> Option<Instant> {
        let idle = self.lifetimes.idle.and_then(|idle| self.idle_since.checked_add(idle));
        let end = self.lifetimes.max_age.and_then(|age| self.opened.checked_add(age));
        idle.into_iter().chain(end).min()
    }

    pub(super) fn idle_since(&self) -> Instant {
        self.idle_since
    }

    pub(super) fn follow(&mut self, lifetimes: Lifetimes) {
        self.lifetimes = lifetimes;
    }

    pub(super) fn rest(&mut self, now: Instant) {
        self.idle_since = now;
    }

    /// Takes it out of idleness. False where the peer closed it, or sent what nobody asked for.
    pub(super) fn wake(&mut self) -> bool {
        if self.watched {
            self.watched = false;
            // Replaces the pool's waker, else every answer would wake the pool.
            let _ = self.io.poll_read_ready(&mut Context::from_waker(Waker::noop()));
        }
        self.requests = self.requests.saturating_add(1);
        self.io.is_quiet()
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watched
    }

    /// Registers the pool's waker. False where the connection isn't quiet any more.
    pub(super) fn watch(&mut self, waker: &Waker) -> bool {
        // The read attempt makes the registration wait for what comes next.
        if !self.io.is_quiet() {
            return false;
        }
        self.watched = true;
        self.io.poll_read_ready(&mut Context::from_waker(waker)).is_pending()
    }

    /// Wakes a connection that may come from another worker and moves it to the caller's runtime. Where it can't be used,
    /// its place is left, to open another one with.
    pub(super) fn take_over(mut self) -> Result<Self, ConnectionPermit> {
        let quiet = self.wake();
        match self.io.rehome() {
            Ok(io) if quiet => Ok(Self { io, ..self }),
            Ok(_) | Err(_) => Err(self.permit),
        }
    }
}
