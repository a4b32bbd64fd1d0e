//! Serves an HTTP/1 connection: one request after the other, pipelined ones too.
//!
//! Between requests the connection waits without a buffer, and the exchange's future exists only while there is a request.
//! The connection is kept only if both messages ended where their framing says. When we close while the client may still
//! be sending, we send our end first and read on for a moment (RFC 9112 9.6): closing with unread bytes would make the
//! kernel send a reset, which can destroy the reply on its way.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use super::{Arrival, Ended, HEAD_TIME, Handler, downstream, downstream_closed};
use crate::config::listener::HttpManager;
use crate::error::{Kind, ProxyError};
use crate::http::body::{BodyLength, Frame, RequestBody};
use crate::http::fields::Fields;
use crate::http::h1::encode::{self, ConnectionWord, HeadStyle};
use crate::http::h1::transfer::{Inbound, Outbound, ReadError, WriteError};
use crate::http::h1::{self as codec, Framing, Limits, Malformed, Received, RequestRules, hop_by_hop};
use crate::http::head::{Known, Method, RequestHead, ResponseHead, Version};
use crate::io::Stream;
use crate::listener::connection::Connection;
use crate::worker::Worker;
use crate::worker::slot::Placed;

/// An unread rest of a request body up to this is read away, so that the connection can be kept.
const MAX_DISCARD: u64 = 64 * 1024;
/// Lingering ends after this many times the configured delay, however busy the client is.
const MAX_LINGER: u32 = 5;

/// Serves `stream` until it ends.
pub(super) async fn serve<H: Handler>(
    worker: &Arc<Worker>,
    connection: &Arc<Connection>,
    stream: Stream,
    inbound: Inbound,
    handler: &H,
) -> Ended {
    let mut server = Server { worker, connection, stream, inbound, outbound: Outbound::default(), served: 0 };
    let mut timer = pin!(tokio::time::sleep_until(Instant::now()));
    let mut shaken = pin!(connection.shaken(worker, true));
    loop {
        let current = connection.current(worker);
        let Some(manager) = current.http() else { break };
        let verdict = tokio::select! {
            biased;
            verdict = server.turn(handler, manager, timer.as_mut()) => verdict,
            // Whatever it was doing: the client must not take what it has got for all.
            _ = &mut shaken, if connection.is_vouched_for() => Verdict::Reset,
        };
        match verdict {
            Verdict::Keep => {}
            Verdict::Close => break,
            Verdict::Linger => {
                server.linger(manager).await;
                break;
            }
            Verdict::Reset => {
                // Without the option the close is an ordinary one; nothing else can be done.
                let _ = server.stream.reset_on_close();
                break;
            }
            Verdict::Tunnel(authority) => {
                let buffered = server.inbound.take_buffered();
                return Ended::Tunnel { stream: server.stream, buffered, authority };
            }
        }
    }
    server.inbound.release(worker);
    server.outbound.release(worker);
    Ended::Closed
}

struct Server<'a> {
    worker: &'a Arc<Worker>,
    connection: &'a Arc<Connection>,
    stream: Stream,
    inbound: Inbound,
    outbound: Outbound,
    /// Requests so far.
    served: u64,
}

/// What comes next on a connection.
enum Next {
    /// A head, up to this byte of the buffer.
    Head(usize),
    /// Something that is not a request.
    Refuse(ProxyError),
    /// The client left, or said nothing for too long.
    Gone,
}

/// What becomes of the connection after a request.
enum Verdict {
    Keep,
    Close,
    Linger,
    Reset,
    Tunnel(Box<[u8]>),
}

impl Server<'_> {
    /// Waits for a request and serves it.
    async fn turn<H: Handler>(
        &mut self,
        handler: &H,
        manager: &Arc<HttpManager>,
        timer: Pin<&mut Sleep>,
    ) -> Verdict {
        match self.next(manager, timer).await {
            Next::Gone => Verdict::Close,
            Next::Head(end) => {
                // The configuration may have moved while the connection was idle.
                let current = self.connection.current(self.worker);
                let Some(manager) = current.http() else { return Verdict::Close };
                let ends = current.ends || self.connection.is_stale();
                let worker = self.worker;
                Placed::new(&**worker, self.exchange(handler, manager, ends, end)).await
            }
            Next::Refuse(error) => Box::pin(self.refuse(handler, manager, None, error)).await,
        }
    }

    /// Waits for a head. While nothing arrives, no buffer is held.
    async fn next(&mut self, manager: &HttpManager, timer: Pin<&mut Sleep>) -> Next {
        let limits = limits(manager);
        if self.inbound.is_idle() {
            self.inbound.release(self.worker);
            self.outbound.release(self.worker);
            if !self.idle(manager, timer).await {
                return Next::Gone;
            }
        }
        // Most heads arrive whole, behind the first byte or already before it.
        let found = self.inbound.find_head(&limits);
        if matches!(found, Ok(None)) {
            return self.rest_of_head(manager, &limits).await;
        }
        match found {
            Ok(end) => end.map_or(Next::Gone, Next::Head),
            Err(error) => Next::Refuse(malformed(error)),
        }
    }

    /// Waits for the first bytes of a request and reads them; false where none come.
    async fn idle(&mut self, manager: &HttpManager, mut timer: Pin<&mut Sleep>) -> bool {
        let now = Instant::now();
        let timeouts = &manager.timeouts;
        let idle_until = timeouts.idle.map(|limit| now + limit);
        let ends_at =
            timeouts.max_connection_duration.map(|limit| Instant::from_std(self.connection.accepted) + limit);
        let Some(deadline) = idle_until.into_iter().chain(ends_at).min() else {
            return self.inbound.fill(&self.stream, self.worker).await.unwrap_or(false);
        };
        // A timer that was set for an earlier wait goes on; when it fires too early, it is set anew. So a busy
        // connection touches the timer wheel once per idle period, not once per request.
        if timer.is_elapsed() || timer.deadline() > deadline || timer.deadline() <= now {
            timer.as_mut().reset(deadline);
        }
        let mut fill = pin!(self.inbound.fill(&self.stream, self.worker));
        loop {
            tokio::select! {
                biased;
                filled = &mut fill => return filled.unwrap_or(false),
                () = &mut timer => {
                    if Instant::now() >= deadline {
                        return false;
                    }
                    timer.as_mut().reset(deadline);
                }
            }
        }
    }

    /// Reads a head whose beginning is there, within its time.
    async fn rest_of_head(&mut self, manager: &HttpManager, limits: &Limits) -> Next {
        let limit = manager.timeouts.request_headers.or(manager.timeouts.stream_idle).unwrap_or(HEAD_TIME);
        let head = self.inbound.head(&self.stream, self.worker, limits);
        let Ok(found) = tokio::time::timeout(limit, head).await else {
            return Next::Refuse(downstream(Kind::RequestTimeout, "request head took too long"));
        };
        match found {
            Ok(Some(end)) => Next::Head(end),
            Err(ReadError::Malformed(error)) if error != Malformed::Truncated => {
                Next::Refuse(malformed(error))
            }
            Ok(None) | Err(_) => Next::Gone,
        }
    }

    /// One request from its head to the end of its reply.
    async fn exchange<H: Handler>(
        &mut self,
        handler: &H,
        manager: &Arc<HttpManager>,
        connection_ends: bool,
        end: usize,
    ) -> Verdict {
        let mut head = self.worker.take_head();
        let verdict = match self.accept(manager, end, &mut head) {
            Ok(received) => self.handle(handler, manager, connection_ends, received, &mut head).await,
            Err(error) => {
                let known = (error.kind == Kind::LowVersion).then_some(&head);
                self.refuse(handler, manager, known, error).await
            }
        };
        self.worker.give_head(head);
        verdict
    }

    /// Parses the head and applies what the connection manager says of it.
    fn accept(
        &mut self,
        manager: &HttpManager,
        end: usize,
        head: &mut RequestHead,
    ) -> Result<Received, ProxyError> {
        let rules = RequestRules { secure: false, refuse_absolute: manager.http1.refuse_absolute_url };
        let block = self.inbound.buffered().get(..end).unwrap_or_default();
        let received = codec::parse_request(block, head, &rules).map_err(malformed)?;
        if head.version == Version::Http10 {
            if !manager.http1.accept_http_10 {
                return Err(downstream(Kind::LowVersion, "HTTP/1.0 is not accepted"));
            }
            if let (b"", Some(host)) = (head.authority(), &manager.http1.default_host_for_http_10) {
                head.set_authority(host.as_bytes());
            }
            if head.authority().is_empty() {
                return Err(downstream(Kind::MissingHost, "HTTP/1.0 request without Host, and no default"));
            }
        }
        self.inbound.begin_body(end, received.framing, limits(manager));
        self.served += 1;
        Ok(received)
    }

    async fn handle<H: Handler>(
        &mut self,
        handler: &H,
        manager: &Arc<HttpManager>,
        connection_ends: bool,
        received: Received,
        head: &mut RequestHead,
    ) -> Verdict {
        let Self { worker, connection, stream, inbound, outbound, served } = self;
        let signals = Signals::new(received.framing, head.expects_continue());
        if signals.awaits_continue.load(Relaxed) && !manager.proxy_100_continue {
            head.fields.remove(Known::Expect);
            let mut interim = Reply::new(head, received.persistent);
            let mut responder = Responder {
                reply: &mut interim,
                outbound,
                stream,
                worker,
                connection,
                manager,
                signals: &signals,
            };
            if responder.send_informational(&ResponseHead::new(100)).await.is_err() {
                return Verdict::Close;
            }
        }
        let most = manager.limits.max_requests_per_connection.is_some_and(|most| *served >= u64::from(most));
        let mut reply = Reply::new(head, received.persistent && !connection_ends && !most);
        let tunnel = (head.method() == Method::Connect).then(|| Box::from(head.authority()));
        let body = RequestBody::H1(BodyReader {
            length: match received.framing {
                Framing::None => BodyLength::Empty,
                Framing::Length(length) => BodyLength::Known(length),
                Framing::Chunked | Framing::UntilClose => BodyLength::Unknown,
            },
            keep_trailers: manager.http1.enable_trailers,
            inbound,
            stream,
            worker,
            signals: &signals,
        });
        let arrival = Arrival { worker, connection, manager };
        let responder =
            Responder { reply: &mut reply, outbound, stream, worker, connection, manager, signals: &signals };
        handler.handle(arrival, head, body, super::Responder::H1(responder)).await;
        self.verdict(manager, &reply, tunnel).await
    }

    async fn refuse<H: Handler>(
        &mut self,
        handler: &H,
        manager: &Arc<HttpManager>,
        head: Option<&RequestHead>,
        error: ProxyError,
    ) -> Verdict {
        let Self { worker, connection, stream, outbound, .. } = self;
        let signals = Signals::new(Framing::None, false);
        let mut reply = Reply { close: true, ..Reply::default() };
        if let Some(head) = head {
            reply.method = head.method();
        }
        let arrival = Arrival { worker, connection, manager };
        let responder =
            Responder { reply: &mut reply, outbound, stream, worker, connection, manager, signals: &signals };
        handler.refuse(arrival, head, error, super::Responder::H1(responder)).await;
        if reply.complete { Verdict::Linger } else { Verdict::Close }
    }

    /// Decides what becomes of the connection.
    async fn verdict(&mut self, manager: &HttpManager, reply: &Reply, tunnel: Option<Box<[u8]>>) -> Verdict {
        if reply.handed_over && self.outbound.flush(&self.stream).await.is_ok() {
            return tunnel.map_or(Verdict::Close, Verdict::Tunnel);
        }
        if !reply.complete {
            return if reply.begun { self.cut(reply).await } else { Verdict::Close };
        }
        if reply.upgraded {
            return Verdict::Close;
        }
        let patience = manager.timeouts.delayed_close;
        if !self.inbound.body_is_done() && (reply.close || !self.discard_rest(patience).await) {
            return Verdict::Linger;
        }
        match (reply.close, reply.asked_to_close && self.inbound.is_idle()) {
            (false, _) => Verdict::Keep,
            // Who asked for the close sends nothing more.
            (true, true) => Verdict::Close,
            (true, false) => Verdict::Linger,
        }
    }

    /// Gives the client what there is of an unfinished reply; that the end is missing tells the rest.
    async fn cut(&mut self, reply: &Reply) -> Verdict {
        let patience = std::time::Duration::from_secs(1);
        let flushed = tokio::time::timeout(patience, self.outbound.flush(&self.stream)).await;
        match flushed {
            Ok(Ok(())) if !reply.until_close => Verdict::Close,
            _ => Verdict::Reset,
        }
    }

    /// Reads away what the handler left of the body, if that is little and comes soon; true where the body ended.
    async fn discard_rest(&mut self, patience: std::time::Duration) -> bool {
        if self.inbound.remaining().is_some_and(|left| left > MAX_DISCARD) {
            return false;
        }
        let Self { inbound, stream, worker, .. } = self;
        let discard = async {
            let mut discarded = 0;
            while discarded <= MAX_DISCARD {
                match inbound.frame(stream, worker).await {
                    Ok(None) => return true,
                    Ok(Some(Frame::Data(data))) => discarded += data.len() as u64,
                    Ok(Some(Frame::Trailers(_))) => {}
                    Err(_) => return false,
                }
            }
            false
        };
        tokio::time::timeout(patience, discard).await.unwrap_or(false)
    }

    /// Sends our end of the stream, and reads until the client's, or until it has been silent for a while.
    async fn linger(&mut self, manager: &HttpManager) {
        if self.outbound.flush(&self.stream).await.is_err() || self.stream.shutdown_write().is_err() {
            return;
        }
        let silence = manager.timeouts.delayed_close;
        let until = Instant::now() + silence * MAX_LINGER;
        let mut rest = self.inbound.take_buffered();
        loop {
            rest.clear();
            if rest.try_reclaim(4096) || rest.capacity() == 0 {
                rest.reserve(4096);
            }
            let deadline = until.min(Instant::now() + silence);
            match tokio::time::timeout_at(deadline, self.stream.read_buf(&mut rest)).await {
                Ok(Ok(read)) if read > 0 => {}
                _ => return,
            }
        }
    }
}

fn limits(manager: &HttpManager) -> Limits {
    Limits {
        max_head_bytes: manager.limits.max_request_head_bytes as usize,
        max_headers: manager.limits.max_request_headers as usize,
    }
}

fn malformed(error: Malformed) -> ProxyError {
    match error {
        Malformed::TooLarge => downstream(Kind::HeadTooLarge, "request head is too large"),
        Malformed::TooManyFields => downstream(Kind::HeadTooLarge, "request has too many header fields"),
        Malformed::NoHost => downstream(Kind::MissingHost, "request without Host"),
        Malformed::TransferCoding => downstream(Kind::TransferCoding, "unsupported transfer coding"),
        Malformed::Truncated => downstream(Kind::DownstreamClosed, "client closed within its request"),
        error => downstream(Kind::DownstreamProtocol, error.to_string()),
    }
}

fn read_failed(error: ReadError) -> ProxyError {
    match error {
        ReadError::Io(error) => downstream_closed(error),
        ReadError::Malformed(error) => malformed(error),
    }
}

/// What the two halves of one exchange tell each other. Atomic only so that the future may move between threads.
#[derive(Debug)]
struct Signals {
    body_done: AtomicBool,
    /// Bytes of the body that are still to come; `u64::MAX` where unknown.
    body_left: AtomicU64,
    /// The client waits for a 100 before it sends its body.
    awaits_continue: AtomicBool,
}

impl Signals {
    fn new(framing: Framing, expects_continue: bool) -> Self {
        let left = match framing {
            Framing::None => 0,
            Framing::Length(length) => length,
            Framing::Chunked | Framing::UntilClose => u64::MAX,
        };
        Self {
            body_done: AtomicBool::new(left == 0),
            body_left: AtomicU64::new(left),
            awaits_continue: AtomicBool::new(expects_continue && left > 0),
        }
    }
}

/// The body of a request on an HTTP/1 connection.
#[derive(Debug)]
pub struct BodyReader<'a> {
    length: BodyLength,
    keep_trailers: bool,
    inbound: &'a mut Inbound,
    stream: &'a Stream,
    worker: &'a Worker,
    signals: &'a Signals,
}

impl BodyReader<'_> {
    pub(in crate::http) fn length(&self) -> BodyLength {
        self.length
    }

    pub(in crate::http) fn is_end(&self) -> bool {
        self.inbound.body_is_done()
    }

    pub(in crate::http) async fn frame(&mut self) -> Result<Option<Frame>, ProxyError> {
        loop {
            let frame = self.inbound.frame(self.stream, self.worker).await.map_err(read_failed)?;
            // A client that sends doesn't wait (any more).
            self.signals.awaits_continue.store(false, Relaxed);
            self.signals.body_left.store(self.inbound.remaining().unwrap_or(u64::MAX), Relaxed);
            self.signals.body_done.store(self.inbound.body_is_done(), Relaxed);
            match frame {
                Some(Frame::Trailers(_)) if !self.keep_trailers => {}
                Some(Frame::Trailers(mut fields)) => {
                    hop_by_hop::strip_trailers(&mut fields);
                    return Ok(Some(Frame::Trailers(fields)));
                }
                frame => return Ok(frame),
            }
        }
    }

    pub(in crate::http) async fn gone(&mut self) -> ProxyError {
        if !self.is_end() {
            std::future::pending::<()>().await;
        }
        // A next request may be read here; one buffer of it, and then the client has to wait with leaving.
        while self.inbound.buffered().len() < crate::worker::BUFFER_SIZE / 2 {
            match self.inbound.fill(self.stream, self.worker).await {
                Ok(true) => {}
                Ok(false) => return downstream_closed("client closed while its request was served"),
                Err(error) => return downstream_closed(error),
            }
        }
        std::future::pending().await
    }

    pub(in crate::http) fn upgrade(&mut self) -> bool {
        if !self.inbound.body_is_done() {
            return false;
        }
        self.inbound.begin_body(0, Framing::UntilClose, Limits::default());
        true
    }
}

/// How far a reply has come.
#[derive(Debug, Default)]
struct Reply {
    method: Method,
    version: Version,
    /// A head that is no 1xx was sent.
    begun: bool,
    complete: bool,
    /// The connection ends after this reply.
    close: bool,
    /// The client asked for that.
    asked_to_close: bool,
    upgraded: bool,
    /// Only the close ends the body, so a body that is cut off needs a reset.
    until_close: bool,
    handed_over: bool,
    trailers: Option<Fields>,
    body_bytes: u64,
}

impl Reply {
    fn new(head: &RequestHead, keep: bool) -> Self {
        Self {
            method: head.method(),
            version: head.version,
            close: !keep,
            asked_to_close: !keep,
            ..Self::default()
        }
    }
}

/// Writes the reply on an HTTP/1 connection.
#[derive(Debug)]
pub struct Responder<'a> {
    reply: &'a mut Reply,
    outbound: &'a mut Outbound,
    stream: &'a Stream,
    worker: &'a Worker,
    connection: &'a Connection,
    manager: &'a HttpManager,
    signals: &'a Signals,
}

impl Responder<'_> {
    pub(super) async fn send_informational(&mut self, head: &ResponseHead) -> Result<(), ProxyError> {
        debug_assert!(head.is_informational() && head.status != 101 && !self.reply.begun);
        if self.reply.version == Version::Http10 {
            return Ok(());
        }
        if head.status == 100 {
            self.signals.awaits_continue.store(false, Relaxed);
        }
        let style = self.style(ConnectionWord::Silent);
        self.outbound.head(self.worker, Framing::None, |out| {
            encode::write_response(out, head, Framing::None, style);
        });
        self.flush().await
    }

    pub(super) fn send_head(&mut self, head: &ResponseHead, length: BodyLength) {
        debug_assert!(!self.reply.begun, "one head per reply");
        self.reply.begun = true;
        let tunnel = self.reply.method == Method::Connect && (200..300).contains(&head.status);
        self.reply.upgraded = head.status == 101 || tunnel;
        let framing = encode::response_framing(self.reply.method, self.reply.version, head.status, length);
        let word =
            if self.reply.upgraded { ConnectionWord::Silent } else { self.connection_word(head, framing) };
        let length_of_absent_body = match length {
            BodyLength::Known(length) if self.reply.method == Method::Head => Some(length),
            _ => None,
        };
        let style = HeadStyle { length_of_absent_body, ..self.style(word) };
        let body = if self.reply.upgraded { Framing::UntilClose } else { framing };
        self.reply.until_close = body == Framing::UntilClose;
        self.outbound.head(self.worker, body, |out| encode::write_response(out, head, framing, style));
    }

    /// Decides whether the connection ends after this reply, and what to say about it.
    fn connection_word(&mut self, head: &ResponseHead, framing: Framing) -> ConnectionWord {
        let lifetime = self.manager.timeouts.max_connection_duration;
        let too_old = lifetime.is_some_and(|limit| self.connection.accepted.elapsed() >= limit);
        // A client that never got its 100 may send the body or not: where the next request begins can't be known. And a
        // refused upload that is long is better cut than read.
        let unread = !self.signals.body_done.load(Relaxed);
        let unsure = unread && self.signals.awaits_continue.load(Relaxed);
        let refused = unread && head.status >= 400 && self.signals.body_left.load(Relaxed) > MAX_DISCARD;
        let asked = head.fields.get(Known::Connection).is_some_and(|value| value == b"close");
        // Behind a CONNECT may come bytes for the tunnel that there is not.
        let no_tunnel = self.reply.method == Method::Connect;
        self.reply.close |= asked
            || no_tunnel
            || framing == Framing::UntilClose
            || too_old
            || unsure
            || refused
            || self.connection.drains(self.worker);
        match (self.reply.close, self.reply.version) {
            (true, _) => ConnectionWord::Close,
            (false, Version::Http10) => ConnectionWord::KeepAlive,
            (false, _) => ConnectionWord::Silent,
        }
    }

    fn style(&self, connection: ConnectionWord) -> HeadStyle {
        let preserve_case = self.manager.http1.preserve_header_case;
        HeadStyle { preserve_case, version: self.reply.version, connection, ..HeadStyle::default() }
    }

    pub(super) async fn send_data(&mut self, data: Bytes) -> Result<(), ProxyError> {
        self.reply.body_bytes += data.len() as u64;
        self.outbound.data(self.stream, data).await.map_err(write_failed)
    }

    pub(super) fn send_trailers(&mut self, trailers: Fields) {
        self.reply.trailers = Some(trailers).filter(|_| self.manager.http1.enable_trailers);
    }

    pub(super) async fn flush(&mut self) -> Result<(), ProxyError> {
        if !self.outbound.holds_back() {
            return Ok(());
        }
        self.outbound.flush(self.stream).await.map_err(downstream_closed)
    }

    pub(super) async fn finish(&mut self) -> Result<(), ProxyError> {
        debug_assert!(self.reply.begun, "a reply begins with its head");
        let trailers = self.reply.trailers.take();
        let preserve_case = self.manager.http1.preserve_header_case;
        self.outbound.end(trailers.as_ref(), preserve_case).map_err(|error| write_failed(error.into()))?;
        self.flush().await?;
        if self.reply.upgraded && !self.reply.handed_over {
            self.stream.shutdown_write().map_err(downstream_closed)?;
        }
        self.reply.complete = true;
        Ok(())
    }

    pub(super) fn abort(&mut self) {
        self.reply.complete = false;
        self.reply.close = true;
    }

    pub(super) fn has_begun(&self) -> bool {
        self.reply.begun
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.reply.upgraded
    }

    pub(super) fn hand_over(&mut self) -> bool {
        self.reply.handed_over = self.reply.upgraded && self.reply.method == Method::Connect;
        self.reply.handed_over
    }

    pub(super) fn body_bytes(&self) -> u64 {
        self.reply.body_bytes
    }
}

fn write_failed(error: WriteError) -> ProxyError {
    match error {
        WriteError::Io(error) if error.kind() == io::ErrorKind::WriteZero => {
            downstream_closed("cannot write")
        }
        WriteError::Io(error) => downstream_closed(error),
        // The upstream's framing was checked when it was read, so this is a mistake of ours or of an HTTP/2 upstream.
        WriteError::WrongLength(error) => ProxyError::new(
            Kind::UpstreamProtocol,
            crate::error::Side::Upstream,
            crate::error::Progress::ResponseStarted,
            error.to_string(),
        ),
    }
}
