//! One HTTP/2 connection to an endpoint: who counts its streams, who drives it, and when it gets no new ones.
//!
//! The pool holds a connection as long as it may get new streams; each stream holds it too. When the last holder lets go,
//! h2 says GOAWAY and closes, and the driver task ends. So draining is simply leaving the pool. The driver owns the connection's place
//! under the cluster's limit, which is given back when the socket is closed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{Lifetimes, Place, Shared};
use crate::config::cluster::ClusterSpec;
use crate::error::{Kind, Progress, ProxyError, Side};
use crate::identity::vouch::Vouch;
use crate::io::batched::{Batched, Flusher, batched};
use crate::upstream::connect::Connected;
use crate::upstream::live::{ConnectionPermit, EndpointState, PlaceKey};

/// A connection that left a request unanswered has this long to answer a PING.
const SUSPECT_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes that a stream buffers before its sender has to wait.
const SEND_BUFFER: usize = 128 * 1024;
/// Bytes of a response's header section.
const MAX_HEADER_LIST: u32 = 60 * 1024;

/// A connection that carries many requests.
#[derive(Debug)]
pub struct Http2Connection {
    /// Opens streams. Taken for moments, by requests of this worker (and, rarely, of others).
    sender: Mutex<SendRequest<Bytes>>,
    endpoint: Arc<EndpointState>,
    /// Whom it was asked for, where requests say so.
    asked: Option<Arc<str>>,
    /// By what its peer is believed, where it has proved who it is.
    vouch: Option<Arc<Vouch>>,
    /// Our end of it.
    local: Option<SocketAddr>,
    settings: u64,
    opened: Instant,
    /// Our own limit of streams; the peer's may be lower.
    max_streams: u32,
    streams: AtomicU32,
    /// Streams begun so far.
    begun: AtomicU32,
    idle_since: Mutex<Instant>,
    /// The peer takes no new streams for good.
    closed: AtomicBool,
    doubt: Arc<Doubt>,
    owner: Weak<Shared>,
}

/// Whether a connection is half dead. Shared with the driver, which must not hold the connection itself.
#[derive(Debug, Default)]
struct Doubt {
    /// A request timed out, and no PING was answered since.
    suspect: AtomicBool,
    /// Wakes the driver.
    raised: Notify,
    /// Somebody wants to know what the peer can do, and it has not answered a PING yet. Its SETTINGS come before anything else that it
    /// says, so that with the first answer they are known.
    greeted: AtomicBool,
    /// Wakes who waits for that, or for the end of the connection.
    told: Notify,
    ended: AtomicBool,
}

/// What the driver of a connection needs.
pub(super) struct Driver {
    connection: Connection<Batched, Bytes>,
    flusher: Flusher,
    shared: Weak<Http2Connection>,
    doubt: Arc<Doubt>,
    keepalive: Option<(Duration, Duration)>,
    _permit: ConnectionPermit,
}

/// Speaks the preface on a fresh connection.
pub(super) async fn handshake(
    Connected { stream: io, vouch }: Connected,
    permit: ConnectionPermit,
    spec: &ClusterSpec,
    settings: u64,
    owner: &Arc<Shared>,
) -> Result<(Arc<Http2Connection>, Driver), ProxyError> {
    let (options, local) = (&spec.http2, io.local_addr().ok());
    let (io, flusher) = batched(io, BytesMut::new());
    let handshake = h2::client::Builder::new()
        .initial_window_size(options.initial_stream_window)
        .initial_connection_window_size(options.initial_connection_window)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_push(false)
        .handshake(io);
    let (endpoint, asked) = (permit.endpoint().clone(), permit.asked().cloned());
    let (sender, connection) = handshake.await.map_err(|error| {
        let detail = format!("{}: HTTP/2 preface: {error}", endpoint.address);
        ProxyError::new(Kind::ConnectFailed, Side::Upstream, Progress::NothingSent, detail)
    })?;
    let now = Instant::now();
    let shared = Arc::new(Http2Connection {
        sender: Mutex::new(sender),
        endpoint,
        asked,
        vouch,
        local,
        settings,
        opened: now,
        max_streams: options.max_concurrent_streams.max(1),
        streams: AtomicU32::new(0),
        begun: AtomicU32::new(0),
        idle_since: Mutex::new(now),
        closed: AtomicBool::new(false),
        doubt: Arc::default(),
        owner: Arc::downgrade(owner),
    });
    let driver = Driver {
        connection,
        flusher,
        shared: Arc::downgrade(&shared),
        doubt: shared.doubt.clone(),
        keepalive: options.keepalive,
        _permit: permit,
    };
    Ok((shared, driver))
}

impl Http2Connection {
    /// The endpoint at the other end.
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        &self.endpoint
    }

    /// What it can be used for.
    pub(super) fn place(&self) -> Place<'_> {
        Place { endpoint: &self.endpoint, asked: self.asked.as_ref() }
    }

    /// Streams that requests hold.
    pub(super) fn streams(&self) -> u32 {
        self.streams.load(SeqCst)
    }

    /// A stream for one request, if the limits of both ends allow it and nothing speaks against this connection.
    pub(super) fn try_lease(self: &Arc<Self>) -> Option<Http2Lease> {
        if self.doubt.suspect.load(SeqCst) {
            return None;
        }
        let limit = self.max_streams.min(self.peer_limit()?);
        let taken = self.streams.fetch_update(SeqCst, SeqCst, |count| (count < limit).then(|| count + 1));
        taken.ok()?;
        self.begun.fetch_add(1, SeqCst);
        Some(Http2Lease { connection: Some(self.clone()) })
    }

    #[cfg(test)]
    pub(super) fn is_doubted(&self) -> bool {
        self.doubt.suspect.load(SeqCst)
    }

    /// Whether it was made with these settings.
    pub(super) fn has_settings(&self, settings: u64) -> bool {
        self.settings == settings
    }

    /// Whether it may get new streams.
    pub(super) fn is_wanted(&self, now: Instant, lifetimes: &Lifetimes) -> bool {
        !self.endpoint.is_removed()
            && self.settings == self.endpoint.cluster.settings_in_force()
            && self.vouch.as_ref().is_none_or(|vouch| vouch.is_wanted())
            && lifetimes.max_requests.is_none_or(|most| self.begun.load(SeqCst) < most)
            && self.expires(lifetimes).is_none_or(|end| now < end)
            && !self.closed.load(SeqCst)
    }

    /// Streams that the peer allows; `None` where it takes no new one now.
    fn peer_limit(&self) -> Option<u32> {
        let mut sender = self.sender.lock();
        match sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Some(u32::try_from(sender.current_max_send_streams()).unwrap_or(u32::MAX)),
            Poll::Ready(Err(_)) => {
                // GOAWAY, or the end.
                self.closed.store(true, SeqCst);
                None
            }
            Poll::Pending => None,
        }
    }

    /// When it gets no new streams any more if nothing changes.
    pub(super) fn expires(&self, lifetimes: &Lifetimes) -> Option<Instant> {
        let idle = lifetimes.idle.filter(|_| self.streams() == 0);
        let idle = idle.and_then(|idle| self.idle_since.lock().checked_add(idle));
        let end = lifetimes.max_age.and_then(|age| self.opened.checked_add(age));
        idle.into_iter().chain(end).min()
    }

    pub(super) fn rest(&self, now: Instant) {
        *self.idle_since.lock() = now;
    }
}

/// One stream's right to exist. Dropped, the next request may have it.
#[derive(Debug)]
pub struct Http2Lease {
    /// There until the drop.
    connection: Option<Arc<Http2Connection>>,
}

impl Http2Lease {
    fn connection(&self) -> &Arc<Http2Connection> {
        self.connection.as_ref().expect("taken only by drop and cancel")
    }

    /// The endpoint at the other end.
    pub fn endpoint(&self) -> &Arc<EndpointState> {
        &self.connection().endpoint
    }

    /// What its connection can be used for.
    pub(in crate::upstream) fn place(&self) -> PlaceKey {
        self.connection().place().key()
    }

    /// By what the peer is believed.
    pub fn vouch(&self) -> Option<&Arc<Vouch>> {
        self.connection().vouch.as_ref()
    }

    /// Our own address.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.connection().local
    }

    /// Opens the stream. On failure nothing was sent.
    pub fn open(
        &self,
        request: http::Request<()>,
        end_of_stream: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.connection().sender.lock().send_request(request, end_of_stream)
    }

    /// A request on this connection was not answered in time: it gets no new streams until it answers a PING.
    pub fn doubt(&self) {
        let doubt = &self.connection().doubt;
        if !doubt.suspect.swap(true, SeqCst) {
            doubt.raised.notify_one();
        }
    }

    /// Whether the peer takes an extended CONNECT. On a young connection this may take a round trip. True where the connection has
    /// ended: what becomes of the request shows when it is sent.
    pub async fn takes_extended_connect(&self) -> bool {
        let connection = self.connection();
        let doubt = &connection.doubt;
        loop {
            let mut told = std::pin::pin!(doubt.told.notified());
            told.as_mut().enable();
            if connection.sender.lock().is_extended_connect_protocol_enabled() || doubt.ended.load(SeqCst) {
                return true;
            }
            if doubt.greeted.load(SeqCst) {
                return false;
            }
            doubt.raised.notify_one();
            told.await;
        }
    }

    /// True where the connection has carried a request before.
    pub fn is_reused(&self) -> bool {
        self.connection().begun.load(SeqCst) > 1
    }

    /// Gives the stream back without looking for somebody who waits.
    pub(super) fn cancel(mut self) {
        if let Some(connection) = self.connection.take() {
            connection.streams.fetch_sub(1, SeqCst);
        }
    }
}

impl Drop for Http2Lease {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let last = connection.streams.fetch_sub(1, SeqCst) == 1;
        let Some(owner) = connection.owner.upgrade() else { return };
        owner.stream_ended(&connection, last);
    }
}

impl Driver {
    /// Moves the connection's bytes until it ends. While nothing is doubted no timer runs.
    pub(super) async fn run(mut self) {
        let mut pings = self.connection.ping_pong().expect("taken once, here");
        let watch = watch(&self.shared, &self.doubt, &mut pings, self.keepalive);
        tokio::select! {
            ended = self.flusher.drive(&mut self.connection) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "HTTP/2 upstream connection ended");
                }
            }
            () = watch => tracing::debug!("HTTP/2 upstream connection didn't answer a PING"),
        }
        self.doubt.ended.store(true, SeqCst);
        self.doubt.told.notify_waiters();
        if let Some(connection) = self.shared.upgrade()
            && let Some(owner) = connection.owner.upgrade()
        {
            owner.connection_ended(&connection);
        }
    }
}

/// Pings when a request timed out, and as often as keepalive asks. Returns when a PING wasn't answered in time.
async fn watch(
    shared: &Weak<Http2Connection>,
    doubt: &Doubt,
    pings: &mut PingPong,
    keepalive: Option<(Duration, Duration)>,
) {
    loop {
        let patience = tokio::select! {
            () = doubt.raised.notified() => SUSPECT_PATIENCE,
            patience = interval(keepalive) => patience,
        };
        if pings.send_ping(Ping::opaque()).is_err() {
            // The connection is ending, or a PING is under way already.
            continue;
        }
        let deadline = sleep_until(Instant::now() + patience);
        tokio::select! {
            // An error is the connection's own end, which is near.
            pong = std::future::poll_fn(|cx| pings.poll_pong(cx)) => if pong.is_ok() {
                doubt.suspect.store(false, SeqCst);
                doubt.greeted.store(true, SeqCst);
                doubt.told.notify_waiters();
                if let Some(connection) = shared.upgrade()
                    && let Some(owner) = connection.owner.upgrade()
                {
                    owner.streams_free(&connection);
                }
            },
            () = deadline => return,
        }
    }
}

/// Waits for the next keepalive PING and says how long its answer may take; without keepalive it waits for ever.
async fn interval(keepalive: Option<(Duration, Duration)>) -> Duration {
    match keepalive {
        Some((interval, timeout)) => {
            tokio::time::sleep(interval).await;
            timeout
        }
        None => std::future::pending().await,
    }
}
