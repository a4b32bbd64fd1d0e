//! Serves an HTTP/2 connection on the `h2` crate, one task per stream on the same worker.
//!
//! `h2` keeps the protocol: framing, flow control, stream states. What is added: limits of the connection manager, a
//! bound on how many streams a client may reset per second (CVE-2023-44487), polite ends (a GOAWAY that refuses nothing, a
//! round trip, then the final one), idle time-outs and keepalive pings, and the end of a connection whose client nobody vouches for
//! any more.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::{Connection as H2Connection, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Arrival, Handler, downstream, downstream_closed, preface_time};
use crate::config::listener::HttpManager;
use crate::error::{Kind, ProxyError};
use crate::http::body::{BodyLength, Frame, RequestBody};
use crate::http::fields::Fields;
use crate::http::h1::hop_by_hop;
use crate::http::h2::{
    Uncrossable, fields_from_h2, fields_to_h2, request_from_h2, response_to_h2, upgrade_from_h2,
};
use crate::http::head::{Known, Method, RequestHead, ResponseHead};
use crate::io::Stream;
use crate::io::batched::{Batched, Flusher, batched};
use crate::listener::connection::{Connection, Shaken};
use crate::worker::Worker;
use crate::worker::slot::Placed;

/// Bytes that `h2` buffers per stream beyond what the peer's window allows to send.
const MAX_SEND_BUFFER: usize = 128 * 1024;

/// Serves `stream` until it ends.
pub(super) async fn serve<H: Handler>(
    worker: &Arc<Worker>,
    connection: &Arc<Connection>,
    stream: Stream,
    buffered: BytesMut,
    handler: &H,
) {
    let current = connection.current(worker);
    let Some(manager) = current.http() else { return };
    let (io, flusher) = batched(stream, buffered);
    let handshake = flusher.drive(builder(manager).handshake::<_, Bytes>(io));
    let Ok(Ok(mut h2)) = tokio::time::timeout(preface_time(manager), handshake).await else { return };
    let pings = manager
        .http2
        .keepalive
        .and_then(|(every, limit)| h2.ping_pong().map(|pings| Keepalive { pings, every, limit }));
    let meter = Arc::new(Meter::new(manager.limits.max_resets_per_second));
    let server = Server { worker, connection, handler, meter, flusher, ends_at: None, served: 0 };
    server.run(h2, pings).await;
}

fn builder(manager: &HttpManager) -> h2::server::Builder {
    let options = &manager.http2;
    let resets = usize::try_from(manager.limits.max_resets_per_second).unwrap_or(usize::MAX).max(1);
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(options.max_concurrent_streams)
        .initial_window_size(options.initial_stream_window)
        .initial_connection_window_size(options.initial_connection_window)
        .max_header_list_size(manager.limits.max_request_head_bytes)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .max_pending_accept_reset_streams(resets);
    if options.allow_connect {
        builder.enable_connect_protocol();
    }
    builder
}

struct Server<'a, H> {
    worker: &'a Arc<Worker>,
    connection: &'a Arc<Connection>,
    handler: &'a H,
    meter: Arc<Meter>,
    flusher: Flusher,
    /// Set once the connection is ending politely: when patience ends.
    ends_at: Option<Instant>,
    served: u64,
}

/// What happened on the connection.
#[allow(clippy::large_enum_variant, reason = "made and taken apart at once, never kept")]
enum Event {
    Request(http::Request<RecvStream>, SendResponse<Bytes>),
    Closed,
    Drain,
    Timer,
    Flood,
    Shaken(Shaken),
    PingLost,
}

impl<H: Handler> Server<'_, H> {
    async fn run(mut self, mut h2: H2Connection<Batched, Bytes>, mut pings: Option<Keepalive>) {
        let drain = &self.worker.shared.drain;
        let mut drained = pin!(drain.reached(self.connection.drain_phase()));
        let mut timer = pin!(tokio::time::sleep_until(self.next_timer()));
        let mut keepalive = pin!(async {
            match &mut pings {
                Some(pings) => pings.run().await,
                None => std::future::pending().await,
            }
        });
        let meter = self.meter.clone();
        let mut flood = pin!(meter.flood.notified());
        let (worker, connection) = (self.worker, self.connection);
        let mut shaken = pin!(connection.shaken(worker, false));
        loop {
            let event = tokio::select! {
                biased;
                () = &mut flood => Event::Flood,
                accepted = poll_fn(|cx| self.poll_accept(&mut h2, cx)) => match accepted {
                    Some(Ok((request, respond))) => Event::Request(request, respond),
                    Some(Err(_)) | None => Event::Closed,
                },
                () = &mut drained, if self.ends_at.is_none() => Event::Drain,
                how = &mut shaken, if connection.is_vouched_for() => Event::Shaken(how),
                () = &mut timer => Event::Timer,
                () = &mut keepalive => Event::PingLost,
            };
            match event {
                Event::Request(request, respond) => self.request(&mut h2, request, respond),
                Event::Drain => self.end_politely(&mut h2),
                Event::Timer => {
                    if !self.time_has_come(&mut h2) {
                        return;
                    }
                }
                Event::Flood => return self.end_at_once(&mut h2, Reason::ENHANCE_YOUR_CALM).await,
                Event::Shaken(Shaken::Distrusted) => {
                    return self.end_at_once(&mut h2, Reason::INADEQUATE_SECURITY).await;
                }
                Event::Shaken(Shaken::Stale) => {
                    self.end_politely(&mut h2);
                    shaken.set(connection.shaken(worker, true));
                }
                Event::Closed | Event::PingLost => return,
            }
            let next = self.next_timer();
            // Set only when the deadline moves closer, or has passed; a later one is found out when the timer fires.
            if timer.is_elapsed() || next < timer.deadline() {
                timer.as_mut().reset(next);
            }
        }
    }

    /// Ready with the next request. While there is one after the other, what is written for those before is collected.
    #[allow(clippy::type_complexity, reason = "what `h2` gives")]
    fn poll_accept(
        &self,
        h2: &mut H2Connection<Batched, Bytes>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(http::Request<RecvStream>, SendResponse<Bytes>), h2::Error>>> {
        let accepted = h2.poll_accept(cx);
        if !matches!(accepted, Poll::Ready(Some(Ok(_)))) {
            self.flusher.flush(cx);
        }
        accepted
    }

    /// Accepts one request and gives it a task.
    fn request(
        &mut self,
        h2: &mut H2Connection<Batched, Bytes>,
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let current = self.connection.current(self.worker);
        let Some(manager) = current.http() else { return };
        self.served += 1;
        let most = manager.limits.max_requests_per_connection;
        if current.ends || most.is_some_and(|most| self.served >= u64::from(most)) {
            self.end_politely(h2);
        }
        let (parts, recv) = request.into_parts();
        let mut head = self.worker.take_head();
        let max_headers = manager.limits.max_request_headers as usize;
        let length = body_length(&parts.headers, &recv);
        let mut read = request_from_h2(parts, &mut head, max_headers);
        if manager.http2.allow_connect {
            read = read.and_then(|()| upgrade_from_h2(&mut head));
        }
        if let Err(error) = read {
            self.worker.give_head(head);
            respond.send_reset(match error {
                Uncrossable::TooManyFields => Reason::ENHANCE_YOUR_CALM,
                Uncrossable::Part(_) => Reason::PROTOCOL_ERROR,
            });
            return;
        }
        let upgrade = head.upgrade().is_some();
        let stream = Arc::new(StreamMark { meter: self.meter.clone(), reset: false.into() });
        self.meter.active.fetch_add(1, Relaxed);
        let task = serve_stream(
            self.handler.clone(),
            self.worker.clone(),
            self.connection.clone(),
            manager.clone(),
            head,
            BodyReader::new(recv, length, upgrade, stream.clone()),
            respond,
            stream,
        );
        tokio::spawn(Placed::new(self.worker.clone(), task));
    }

    /// GOAWAY with the reason, and whatever is in flight is cut.
    async fn end_at_once(&self, h2: &mut H2Connection<Batched, Bytes>, reason: Reason) {
        h2.abrupt_shutdown(reason);
        let closed = self.flusher.drive(poll_fn(|cx| h2.poll_closed(cx)));
        let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
    }

    /// GOAWAY in two steps; streams in flight finish.
    fn end_politely(&mut self, h2: &mut H2Connection<Batched, Bytes>) {
        if self.ends_at.is_none() {
            let current = self.connection.current(self.worker);
            let patience = current.http().map_or(Duration::from_secs(5), |manager| manager.timeouts.drain);
            self.ends_at = Some(Instant::now() + patience);
            h2.graceful_shutdown();
        }
    }

    /// When the connection has to be looked at again.
    fn next_timer(&self) -> Instant {
        let now = Instant::now();
        if let Some(ends_at) = self.ends_at {
            return if ends_at > now { ends_at } else { now + Duration::from_secs(1) };
        }
        let current = self.connection.current(self.worker);
        let timeouts = current.http().map(|manager| &manager.timeouts);
        let idle = timeouts.and_then(|timeouts| timeouts.idle).map(|limit| self.meter.idle_since() + limit);
        let oldest = timeouts.and_then(|timeouts| timeouts.max_connection_duration);
        let oldest = oldest.map(|limit| Instant::from_std(self.connection.accepted) + limit);
        idle.into_iter().chain(oldest).min().unwrap_or_else(|| now + Duration::from_secs(86_400))
    }

    /// The timer fired: ends what is idle or too old. False where the connection is to be dropped.
    fn time_has_come(&mut self, h2: &mut H2Connection<Batched, Bytes>) -> bool {
        match self.ends_at {
            // The client had its time to close; only streams in flight hold the connection.
            Some(_) => self.meter.active.load(Relaxed) > 0,
            None => {
                if self.next_timer() <= Instant::now() {
                    self.end_politely(h2);
                }
                true
            }
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "the start of a task, called from one place")]
async fn serve_stream<H: Handler>(
    handler: H,
    worker: Arc<Worker>,
    connection: Arc<Connection>,
    manager: Arc<HttpManager>,
    mut head: RequestHead,
    body: BodyReader,
    respond: SendResponse<Bytes>,
    stream: Arc<StreamMark>,
) {
    let arrival = Arrival { worker: &worker, connection: &connection, manager: &manager };
    let responder = Responder::new(respond, &head, stream);
    let responder = super::Responder::H2(responder);
    if head.authority().is_empty() {
        let error = downstream(Kind::MissingHost, "request without :authority and host");
        handler.refuse(arrival, Some(&head), error, responder).await;
    } else {
        handler.handle(arrival, &mut head, RequestBody::H2(body), responder).await;
    }
    worker.give_head(head);
}

fn body_length(headers: &http::HeaderMap, recv: &RecvStream) -> BodyLength {
    if recv.is_end_stream() {
        return BodyLength::Empty;
    }
    let length =
        headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    length.map_or(BodyLength::Unknown, BodyLength::Known)
}

/// What streams tell their connection.
#[derive(Debug)]
struct Meter {
    active: AtomicUsize,
    last_end: Mutex<Instant>,
    resets: Mutex<ResetRate>,
    flood: Notify,
}

/// Resets within the running second.
#[derive(Debug)]
struct ResetRate {
    limit: u32,
    since: Instant,
    count: u32,
}

impl Meter {
    fn new(max_resets_per_second: u32) -> Self {
        let now = Instant::now();
        Self {
            active: AtomicUsize::new(0),
            last_end: Mutex::new(now),
            resets: Mutex::new(ResetRate { limit: max_resets_per_second, since: now, count: 0 }),
            flood: Notify::new(),
        }
    }

    /// Since when no stream is open; now, while there is one.
    fn idle_since(&self) -> Instant {
        if self.active.load(Relaxed) > 0 { Instant::now() } else { *self.last_end.lock() }
    }

    fn note_reset(&self) {
        let mut rate = self.resets.lock();
        let now = Instant::now();
        if now.duration_since(rate.since) >= Duration::from_secs(1) {
            rate.since = now;
            rate.count = 0;
        }
        rate.count += 1;
        if rate.count > rate.limit {
            self.flood.notify_one();
        }
    }
}

/// One open stream, as its connection counts it.
#[derive(Debug)]
struct StreamMark {
    meter: Arc<Meter>,
    reset: std::sync::atomic::AtomicBool,
}

impl StreamMark {
    /// What an error of `h2` means; a reset by the client is counted once.
    fn failed(&self, error: &h2::Error) -> ProxyError {
        if error.is_reset() && error.is_remote() && !self.reset.swap(true, Relaxed) {
            self.meter.note_reset();
        }
        if error.is_library() {
            return downstream(Kind::DownstreamProtocol, error.to_string());
        }
        downstream_closed(error)
    }

    fn was_reset(&self, reason: Reason) -> ProxyError {
        if !self.reset.swap(true, Relaxed) {
            self.meter.note_reset();
        }
        downstream_closed(format_args!("client reset the stream: {reason}"))
    }
}

impl Drop for StreamMark {
    fn drop(&mut self) {
        *self.meter.last_end.lock() = Instant::now();
        self.meter.active.fetch_sub(1, Relaxed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum BodyState {
    /// What comes belongs to the tunnel that was asked for, and waits until it is there.
    Held,
    Data,
    Trailers,
    Done,
}

/// The body of a request on an HTTP/2 stream.
#[derive(Debug)]
pub struct BodyReader {
    recv: RecvStream,
    length: BodyLength,
    /// Bytes of the last frame: the client may send that much more once the next frame is asked for.
    unreleased: usize,
    state: BodyState,
    stream: Arc<StreamMark>,
}

impl BodyReader {
    fn new(recv: RecvStream, length: BodyLength, upgrade: bool, stream: Arc<StreamMark>) -> Self {
        let (length, state) =
            if upgrade { (BodyLength::Empty, BodyState::Held) } else { (length, BodyState::Data) };
        Self { recv, length, unreleased: 0, state, stream }
    }

    /// The tunnel is there.
    pub(in crate::http) fn upgrade(&mut self) -> bool {
        if self.state == BodyState::Held {
            self.state = BodyState::Data;
        }
        true
    }

    pub(in crate::http) fn length(&self) -> BodyLength {
        self.length
    }

    pub(in crate::http) fn is_end(&self) -> bool {
        matches!(self.state, BodyState::Held | BodyState::Done) || self.recv.is_end_stream()
    }

    pub(in crate::http) async fn frame(&mut self) -> Result<Option<Frame>, ProxyError> {
        self.release();
        loop {
            match self.state {
                BodyState::Held | BodyState::Done => return Ok(None),
                BodyState::Data => match self.recv.data().await {
                    Some(Ok(data)) => {
                        self.unreleased = data.len();
                        if !data.is_empty() {
                            return Ok(Some(Frame::Data(data)));
                        }
                    }
                    Some(Err(error)) => return Err(self.failed(&error)),
                    None => self.state = BodyState::Trailers,
                },
                BodyState::Trailers => {
                    let trailers = self.recv.trailers().await.map_err(|error| self.failed(&error))?;
                    self.state = BodyState::Done;
                    if let Some(trailers) = trailers {
                        let mut fields = Fields::new();
                        fields_from_h2(&trailers, &mut fields);
                        hop_by_hop::strip_trailers(&mut fields);
                        return Ok(Some(Frame::Trailers(fields)));
                    }
                }
            }
        }
    }

    fn release(&mut self) {
        let released = std::mem::take(&mut self.unreleased);
        if released > 0 {
            // Fails only if more is released than was received, or the stream is gone; then it doesn't matter.
            let _ = self.recv.flow_control().release_capacity(released);
        }
    }

    fn failed(&mut self, error: &h2::Error) -> ProxyError {
        self.state = BodyState::Done;
        self.stream.failed(error)
    }
}

impl Drop for BodyReader {
    fn drop(&mut self) {
        self.release();
    }
}

/// Writes the reply on an HTTP/2 stream.
#[derive(Debug)]
pub struct Responder {
    respond: SendResponse<Bytes>,
    body: Option<SendStream<Bytes>>,
    /// The last piece waits for the next one or the end, so that the end needs no frame of its own.
    held: Bytes,
    trailers: Option<Fields>,
    method: Method,
    /// An extended CONNECT.
    extended: bool,
    /// Pieces are dropped: HEAD, 204, 304.
    bodyless: bool,
    begun: bool,
    ended: bool,
    upgraded: bool,
    body_bytes: u64,
    stream: Arc<StreamMark>,
}

impl Responder {
    fn new(respond: SendResponse<Bytes>, head: &RequestHead, stream: Arc<StreamMark>) -> Self {
        Self {
            respond,
            body: None,
            held: Bytes::new(),
            trailers: None,
            method: head.method(),
            extended: head.upgrade().is_some(),
            bodyless: false,
            begun: false,
            ended: false,
            upgraded: false,
            body_bytes: 0,
            stream,
        }
    }

    pub(super) fn send_informational(&mut self, head: &ResponseHead) -> Result<(), ProxyError> {
        let response = response_to_h2(head).map_err(crossing)?;
        self.respond.send_informational(response).map_err(|error| self.stream.failed(&error))
    }

    pub(super) fn send_head(&mut self, head: &ResponseHead, length: BodyLength) -> Result<(), ProxyError> {
        debug_assert!(!self.begun, "one head per reply");
        let mut response = response_to_h2(head).map_err(crossing)?;
        self.bodyless = self.method == Method::Head || matches!(head.status, 204 | 304);
        self.upgraded = self.method == Method::Connect && (200..300).contains(&head.status);
        if self.extended && head.status == 101 {
            *response.status_mut() = http::StatusCode::OK;
            self.upgraded = true;
        }
        // To HEAD, the fields may say another length than the body that isn't there.
        let says =
            self.bodyless && (self.method != Method::Head || head.fields.contains(Known::ContentLength));
        if let BodyLength::Known(length) = length
            && !says
            && !self.upgraded
        {
            response.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
        }
        let end = !self.upgraded && (self.bodyless || length == BodyLength::Empty);
        let sent = self.respond.send_response(response, end);
        self.body = Some(sent.map_err(|error| self.stream.failed(&error))?);
        self.begun = true;
        self.ended = end;
        Ok(())
    }

    pub(super) async fn send_data(&mut self, data: Bytes) -> Result<(), ProxyError> {
        self.body_bytes += data.len() as u64;
        if self.bodyless || data.is_empty() {
            return Ok(());
        }
        self.flush().await?;
        self.held = data;
        Ok(())
    }

    pub(super) fn send_trailers(&mut self, trailers: Fields) {
        self.trailers = Some(trailers);
    }

    pub(super) async fn flush(&mut self) -> Result<(), ProxyError> {
        while !self.held.is_empty() {
            self.push(false).await?;
        }
        Ok(())
    }

    pub(super) async fn finish(&mut self) -> Result<(), ProxyError> {
        if self.ended {
            return Ok(());
        }
        let trailers = self.trailers.take().filter(|fields| !fields.is_empty());
        while !self.held.is_empty() {
            self.push(trailers.is_none()).await?;
        }
        if self.ended {
            return Ok(());
        }
        let Some(body) = &mut self.body else { return Err(downstream_closed("no reply to finish")) };
        let sent = match trailers {
            Some(fields) => body.send_trailers(fields_to_h2(&fields)),
            None => body.send_data(Bytes::new(), true),
        };
        sent.map_err(|error| self.stream.failed(&error))?;
        self.ended = true;
        Ok(())
    }

    /// Sends as much of what is held back as the client's windows allow, and waits until that is something.
    async fn push(&mut self, and_end: bool) -> Result<(), ProxyError> {
        let Some(body) = &mut self.body else { return Err(downstream_closed("no reply to continue")) };
        body.reserve_capacity(self.held.len());
        let mut room = body.capacity();
        if room == 0 {
            room = match poll_fn(|cx| body.poll_capacity(cx)).await {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Err(self.stream.failed(&error)),
                None => return Err(downstream_closed("stream is closed")),
            };
        }
        let piece = self.held.split_to(room.min(self.held.len()));
        let end = and_end && self.held.is_empty();
        body.send_data(piece, end).map_err(|error| self.stream.failed(&error))?;
        self.ended = end;
        Ok(())
    }

    pub(super) fn abort(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }

    pub(super) fn refuse(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            self.respond.send_reset(Reason::REFUSED_STREAM);
        }
    }

    pub(super) async fn gone(&mut self) -> ProxyError {
        let outcome = poll_fn(|cx| match &mut self.body {
            Some(body) => body.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        });
        match outcome.await {
            Ok(reason) => self.stream.was_reset(reason),
            Err(error) => self.stream.failed(&error),
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.upgraded
    }

    pub(super) fn body_bytes(&self) -> u64 {
        self.body_bytes
    }
}

impl Drop for Responder {
    /// A reply that was given up must not look complete, nor like a wish of the client.
    fn drop(&mut self) {
        self.abort();
    }
}

fn crossing(error: Uncrossable) -> ProxyError {
    ProxyError::new(
        Kind::UpstreamProtocol,
        crate::error::Side::Upstream,
        crate::error::Progress::ResponseStarted,
        error.to_string(),
    )
}

/// PING after PING, each with a time-out.
struct Keepalive {
    pings: PingPong,
    every: Duration,
    limit: Duration,
}

impl Keepalive {
    /// Returns when a PING was not answered in time.
    async fn run(&mut self) {
        loop {
            tokio::time::sleep(self.every).await;
            // An error means that the connection is going down, which its driver notices.
            if self.pings.send_ping(Ping::opaque()).is_err() {
                return std::future::pending().await;
            }
            match tokio::time::timeout(self.limit, poll_fn(|cx| self.pings.poll_pong(cx))).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) => return,
            }
        }
    }
}
