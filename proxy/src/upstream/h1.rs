//! A request on an HTTP/1 connection.
//!
//! The codec's two halves ([`Outbound`], [`Inbound`]) with what a client has to know: how far the request has come, whether the
//! connection can be used again, and when it has stopped being HTTP. Buffers are the worker's; they are given back when the
//! exchange ends, before the connection goes back to its pool.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use bytes::{Bytes, BytesMut};

use super::pool::Http1Connection;
use super::stream::SharedProgress;
use crate::error::{Kind, Progress, ProxyError, Side};
use crate::http::body::{BodyLength, Frame};
use crate::http::fields::Fields;
use crate::http::h1::encode::{request_framing, write_request};
use crate::http::h1::hop_by_hop::strip_trailers;
use crate::http::h1::transfer::{Inbound, Outbound, ReadError, WriteError};
use crate::http::h1::{Framing, HeadStyle, Limits, Malformed, parse_response};
use crate::http::head::{Known, Method, RequestHead, ResponseHead, Version};
use crate::identity::vouch::Vouch;
use crate::io::Stream;
use crate::worker::Worker;

/// What the response's parser has to know of the request.
const ASKED_PLAIN: u8 = 0;
const ASKED_HEAD: u8 = 1;
const ASKED_CONNECT: u8 = 2;
const ASKED_UPGRADE: u8 = 3;

/// An HTTP/1 connection with the request that it carries.
#[derive(Debug)]
pub struct Http1Stream {
    connection: Http1Connection,
    worker: Arc<Worker>,
    shared: Shared,
    request: Request,
    response: Response,
}

/// What both halves see.
#[derive(Debug, Default)]
struct Shared {
    progress: SharedProgress,
    asked: AtomicU8,
}

#[derive(Debug)]
struct Request {
    out: Outbound,
    preserve_case: bool,
    trailers: Option<Fields>,
    /// Everything is written.
    ended: bool,
    tunnel: bool,
}

#[derive(Debug)]
struct Response {
    inbound: Inbound,
    /// The head (not a 1xx) is here, so the body's state means something.
    begun: bool,
    /// The upstream keeps the connection open after this response.
    persistent: bool,
    /// It has switched protocols.
    tunnel: bool,
}

impl Http1Stream {
    pub(super) fn new(connection: Http1Connection, worker: Arc<Worker>, preserve_case: bool) -> Self {
        Self {
            connection,
            worker,
            shared: Shared::default(),
            request: Request {
                out: Outbound::default(),
                preserve_case,
                trailers: None,
                ended: false,
                tunnel: false,
            },
            response: Response {
                inbound: Inbound::new(BytesMut::new()),
                begun: false,
                persistent: false,
                tunnel: false,
            },
        }
    }

    pub(super) fn vouch(&self) -> Option<&Arc<Vouch>> {
        self.connection.vouch()
    }

    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        self.connection.local_address()
    }

    pub(super) fn is_reused(&self) -> bool {
        self.connection.is_reused()
    }

    pub(super) fn progress(&self) -> &SharedProgress {
        &self.shared.progress
    }

    pub(super) fn split(&mut self) -> (Sender<'_>, Receiver<'_>) {
        let (io, worker, shared) = (&self.connection.io, &*self.worker, &self.shared);
        let sender = Sender { io, worker, shared, request: &mut self.request };
        (sender, Receiver { io, worker, shared, response: &mut self.response })
    }

    pub(super) fn upgrade(&mut self) -> bool {
        if !self.response.tunnel {
            return false;
        }
        if !std::mem::replace(&mut self.request.tunnel, true) {
            self.request.ended = false;
            self.request.out.head(&self.worker, Framing::UntilClose, |_| {});
            self.response.inbound.begin_body(0, Framing::UntilClose, Limits::default());
        }
        true
    }

    pub(super) fn finish(mut self) {
        let Response { inbound, begun, persistent, tunnel } = &mut self.response;
        inbound.release(&self.worker);
        self.request.out.release(&self.worker);
        let clean = *begun && inbound.is_idle() && self.request.ended;
        if clean && *persistent && !*tunnel {
            self.worker.pool.check_in(self.connection);
        }
    }
}

/// The request's half.
#[derive(Debug)]
pub struct Sender<'a> {
    io: &'a Stream,
    worker: &'a Worker,
    shared: &'a Shared,
    request: &'a mut Request,
}

impl Sender<'_> {
    pub(super) fn send_head(&mut self, head: &RequestHead, length: BodyLength) {
        let asked = match head.method() {
            Method::Head => ASKED_HEAD,
            Method::Connect => ASKED_CONNECT,
            _ if head.fields.contains(Known::Upgrade) => ASKED_UPGRADE,
            _ => ASKED_PLAIN,
        };
        self.shared.asked.store(asked, Relaxed);
        let framing = request_framing(length);
        let style = HeadStyle { preserve_case: self.request.preserve_case, ..HeadStyle::default() };
        self.request.out.head(self.worker, framing, |out| write_request(out, head, framing, style));
    }

    pub(super) async fn send_data(&mut self, data: Bytes) -> Result<(), ProxyError> {
        self.shared.progress.sending();
        match self.request.out.data(self.io, data).await {
            Ok(()) => {
                self.settle_progress();
                Ok(())
            }
            Err(WriteError::Io(_)) => match self.failed().await {},
            Err(WriteError::WrongLength(error)) => Err(self.wrong_length(error)),
        }
    }

    pub(super) fn send_trailers(&mut self, trailers: Fields) {
        self.request.trailers = Some(trailers);
    }

    pub(super) async fn flush(&mut self) -> Result<(), ProxyError> {
        if self.request.out.holds_back() {
            self.shared.progress.sending();
            if self.request.out.flush(self.io).await.is_err() {
                match self.failed().await {}
            }
        }
        Ok(())
    }

    pub(super) async fn finish(&mut self) -> Result<(), ProxyError> {
        if self.request.ended {
            return Ok(());
        }
        let trailers = self.request.trailers.take();
        if let Err(error) = self.request.out.end(trailers.as_ref(), self.request.preserve_case) {
            return Err(self.wrong_length(error));
        }
        self.flush().await?;
        if self.request.tunnel && self.io.shutdown_write().is_err() {
            match self.failed().await {}
        }
        self.request.ended = true;
        Ok(())
    }

    /// Nothing more can be written. The upstream may have answered before it closed, so the receiver says what happened.
    async fn failed(&mut self) -> Infallible {
        self.settle_progress();
        std::future::pending().await
    }

    fn settle_progress(&self) {
        if self.request.out.written() == 0 {
            self.shared.progress.not_sent();
        }
    }

    /// The body that the client sends is not what its head said, which the codec of the downstream should have noticed.
    fn wrong_length(&self, error: impl ToString) -> ProxyError {
        let progress = self.shared.progress.get();
        ProxyError::new(Kind::DownstreamProtocol, Side::Downstream, progress, error.to_string())
    }
}

/// The response's half.
#[derive(Debug)]
pub struct Receiver<'a> {
    io: &'a Stream,
    worker: &'a Worker,
    shared: &'a Shared,
    response: &'a mut Response,
}

impl Receiver<'_> {
    pub(super) async fn recv_head(&mut self, head: &mut ResponseHead) -> Result<BodyLength, ProxyError> {
        let limits = Limits::default();
        let inbound = &mut self.response.inbound;
        let end = match inbound.head(self.io, self.worker, &limits).await {
            Ok(Some(end)) => end,
            Ok(None) => return Err(self.fail(Kind::UpstreamClosed, "closed without a response")),
            Err(error) => return Err(self.read_failed(error)),
        };
        if self.shared.progress.get() == Progress::NothingSent {
            // Said before it was asked: the parting word of a connection that is being closed.
            return Err(self.fail(Kind::UpstreamClosed, "sent a response before the request"));
        }
        let asked = self.shared.asked.load(Relaxed);
        let method = match asked {
            ASKED_HEAD => Method::Head,
            ASKED_CONNECT => Method::Connect,
            _ => Method::Get,
        };
        let received = match parse_response(&inbound.buffered()[..end], head, method) {
            Ok(received) => received,
            Err(error) => return Err(self.read_failed(ReadError::Malformed(error))),
        };
        inbound.begin_body(end, received.framing, limits);
        if head.is_informational() && head.status != 101 {
            return Ok(BodyLength::Empty);
        }
        self.response.tunnel = match head.status {
            101 if asked == ASKED_UPGRADE => true,
            101 => return Err(self.fail(Kind::UpstreamProtocol, "switches protocols without being asked")),
            status => asked == ASKED_CONNECT && (200..300).contains(&status),
        };
        self.shared.progress.answered();
        self.response.begun = true;
        self.response.persistent = received.persistent && head.version == Version::Http11;
        Ok(match received.framing {
            Framing::None | Framing::Length(0) => BodyLength::Empty,
            Framing::Length(length) => BodyLength::Known(length),
            Framing::Chunked | Framing::UntilClose => BodyLength::Unknown,
        })
    }

    pub(super) async fn frame(&mut self) -> Result<Option<Frame>, ProxyError> {
        match self.response.inbound.frame(self.io, self.worker).await {
            Ok(Some(Frame::Trailers(mut fields))) => {
                strip_trailers(&mut fields);
                Ok(Some(Frame::Trailers(fields)))
            }
            Ok(frame) => Ok(frame),
            Err(error) => Err(self.read_failed(error)),
        }
    }

    pub(super) fn is_end(&self) -> bool {
        self.response.begun && self.response.inbound.body_is_done()
    }

    fn read_failed(&self, error: ReadError) -> ProxyError {
        match error {
            ReadError::Io(error) => self.fail(Kind::UpstreamClosed, error.to_string()),
            ReadError::Malformed(error @ Malformed::Truncated) => {
                self.fail(Kind::UpstreamClosed, error.to_string())
            }
            ReadError::Malformed(error) => self.fail(Kind::UpstreamProtocol, error.to_string()),
        }
    }

    fn fail(&self, kind: Kind, what: impl std::fmt::Display) -> ProxyError {
        let peer = self.io.peer_addr().map_or_else(|_| "upstream".into(), |address| address.to_string());
        ProxyError::new(kind, Side::Upstream, self.shared.progress.get(), format!("{peer}: {what}"))
    }
}
