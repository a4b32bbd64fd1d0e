//! A request on a stream of an HTTP/2 connection.
//!
//! `h2` does framing and flow control. What is added: the last piece is held back, so that the end needs no frame of its own;
//! capacity is given back when the next frame is asked for, so a slow client slows the upstream down; and errors are sorted into
//! those that say that the request wasn't processed (REFUSED_STREAM, GOAWAY below our stream) and all others.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use parking_lot::Mutex;

use super::pool::Http2Lease;
use super::stream::SharedProgress;
use crate::error::{Kind, Progress, ProxyError, Side};
use crate::http::body::{BodyLength, Frame};
use crate::http::fields::Fields;
use crate::http::h1::hop_by_hop::strip_trailers;
use crate::http::h2::{fields_from_h2, fields_to_h2, request_to_h2, response_from_h2};
use crate::http::head::{Known, Method, RequestHead, ResponseHead};
use crate::identity::vouch::Vouch;

/// A stream with the request that it carries.
#[derive(Debug)]
pub struct Http2Stream {
    // Before the lease: the stream is over when its place is given to the next.
    request: Request,
    response: Response,
    shared: Shared,
    lease: Http2Lease,
}

/// What both halves see.
#[derive(Debug, Default)]
struct Shared {
    progress: SharedProgress,
    handover: Mutex<Handover>,
}

/// How the sender, which opens the stream, gives the receiver its end of it.
#[derive(Debug, Default)]
struct Handover {
    answer: Option<ResponseFuture>,
    tunnel: bool,
    /// What an extended CONNECT asked for.
    upgrade: Option<Box<[u8]>>,
    waits: Option<Waker>,
}

#[derive(Debug, Default)]
struct Request {
    body: Option<SendStream<Bytes>>,
    /// The last piece waits for the next one or the end.
    held: Bytes,
    trailers: Option<Fields>,
    ended: bool,
    /// A tunnel was asked for and isn't there yet: the end of the request's body is not that of the stream.
    awaits_tunnel: bool,
}

#[derive(Debug)]
enum Response {
    /// Nothing has been asked yet.
    Unasked,
    /// The head is awaited.
    Awaited(ResponseFuture),
    /// The head is here.
    Body(Body),
}

#[derive(Debug)]
struct Body {
    recv: RecvStream,
    /// Bytes of the last frame: the upstream may send that much more once the next frame is asked for.
    unreleased: usize,
    /// What `content-length` said, less what came.
    missing: u64,
    state: BodyState,
    tunnel: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyState {
    Data,
    Trailers,
    Done,
}

impl Http2Stream {
    pub(super) fn new(lease: Http2Lease) -> Self {
        Self { request: Request::default(), response: Response::Unasked, shared: Shared::default(), lease }
    }

    pub(super) fn vouch(&self) -> Option<&Arc<Vouch>> {
        self.lease.vouch()
    }

    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        self.lease.local_address()
    }

    pub(super) fn is_reused(&self) -> bool {
        self.lease.is_reused()
    }

    pub(super) fn progress(&self) -> &SharedProgress {
        &self.shared.progress
    }

    pub(super) fn doubt(&self) {
        self.lease.doubt();
    }

    pub(super) fn upgrade(&mut self) -> bool {
        let tunnel = matches!(&self.response, Response::Body(body) if body.tunnel);
        self.request.awaits_tunnel &= !tunnel;
        tunnel
    }

    pub(super) fn split(&mut self) -> (Sender<'_>, Receiver<'_>) {
        let (lease, shared) = (&self.lease, &self.shared);
        let sender = Sender { lease, shared, request: &mut self.request };
        (sender, Receiver { lease, shared, response: &mut self.response })
    }
}

/// The request's half.
#[derive(Debug)]
pub struct Sender<'a> {
    lease: &'a Http2Lease,
    shared: &'a Shared,
    request: &'a mut Request,
}

impl Sender<'_> {
    pub(super) fn send_head(&mut self, head: &RequestHead, length: BodyLength) -> Result<(), ProxyError> {
        let request = request_to_h2(head).map_err(|error| {
            let detail = format!("the request can't be sent over HTTP/2: {error}");
            ProxyError::new(Kind::LocalReset, Side::Internal, Progress::NothingSent, detail)
        })?;
        let upgrade = head.upgrade().map(Box::from);
        let tunnel = head.method() == Method::Connect || upgrade.is_some();
        let end = length == BodyLength::Empty && !tunnel;
        let (answer, body) = self.lease.open(request, end).map_err(|error| not_opened(self.lease, &error))?;
        self.shared.progress.sending();
        self.request.body = Some(body);
        self.request.ended = end;
        self.request.awaits_tunnel = tunnel;
        let mut handover = self.shared.handover.lock();
        handover.answer = Some(answer);
        handover.tunnel = tunnel;
        handover.upgrade = upgrade;
        if let Some(waker) = handover.waits.take() {
            waker.wake();
        }
        Ok(())
    }

    /// Waits until it is known whether the upstream takes an extended CONNECT (RFC 8441 3).
    pub(super) async fn may_upgrade(&self) -> Result<(), ProxyError> {
        if self.lease.takes_extended_connect().await {
            return Ok(());
        }
        let detail = format!("{} takes no extended CONNECT", self.lease.endpoint().address);
        Err(ProxyError::new(Kind::UpstreamProtocol, Side::Upstream, Progress::NothingSent, detail))
    }

    pub(super) async fn send_data(&mut self, data: Bytes) -> Result<(), ProxyError> {
        if !data.is_empty() {
            self.flush().await?;
            self.request.held = data;
        }
        Ok(())
    }

    pub(super) fn send_trailers(&mut self, trailers: Fields) {
        self.request.trailers = Some(trailers);
    }

    pub(super) async fn flush(&mut self) -> Result<(), ProxyError> {
        while !self.request.held.is_empty() {
            self.push(false).await;
        }
        Ok(())
    }

    pub(super) async fn finish(&mut self) -> Result<(), ProxyError> {
        if self.request.awaits_tunnel {
            return self.flush().await;
        }
        let trailers = self.request.trailers.take().filter(|fields| !fields.is_empty());
        while !self.request.held.is_empty() {
            self.push(trailers.is_none()).await;
        }
        if self.request.ended {
            return Ok(());
        }
        let Some(body) = &mut self.request.body else { match self.failed().await {} };
        let sent = match trailers {
            Some(fields) => body.send_trailers(fields_to_h2(&fields)),
            None => body.send_data(Bytes::new(), true),
        };
        if sent.is_err() {
            match self.failed().await {}
        }
        self.request.ended = true;
        Ok(())
    }

    /// Sends as much of what is held back as the upstream's windows allow, and waits until that is something.
    async fn push(&mut self, and_end: bool) {
        let Request { body: Some(body), held, .. } = &mut *self.request else { match self.failed().await {} };
        body.reserve_capacity(held.len());
        let mut room = body.capacity();
        if room == 0 {
            match poll_fn(|cx| body.poll_capacity(cx)).await {
                Some(Ok(capacity)) => room = capacity,
                Some(Err(_)) | None => match self.failed().await {},
            }
        }
        let piece = held.split_to(room.min(held.len()));
        let end = and_end && held.is_empty();
        match body.send_data(piece, end) {
            Ok(()) => self.request.ended = end,
            Err(_) => match self.failed().await {},
        }
    }

    /// Nothing more can be sent. The upstream may have answered before it reset the stream, so the receiver says what happened.
    async fn failed(&self) -> Infallible {
        std::future::pending().await
    }
}

/// The response's half.
#[derive(Debug)]
pub struct Receiver<'a> {
    lease: &'a Http2Lease,
    shared: &'a Shared,
    response: &'a mut Response,
}

impl Receiver<'_> {
    pub(super) async fn recv_head(&mut self, head: &mut ResponseHead) -> Result<BodyLength, ProxyError> {
        poll_fn(|cx| self.poll_head(cx, head)).await
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
    ) -> Poll<Result<BodyLength, ProxyError>> {
        if let Response::Unasked = self.response {
            let mut handover = self.shared.handover.lock();
            match handover.answer.take() {
                Some(answer) => *self.response = Response::Awaited(answer),
                None => {
                    handover.waits = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
        let Response::Awaited(answer) = &mut *self.response else {
            return Poll::Ready(Err(self.fail(Kind::LocalReset, "the response's head was received already")));
        };
        match answer.poll_informational(cx) {
            Poll::Ready(Some(Ok(informational))) => {
                response_from_h2(&informational.into_parts().0, head);
                return Poll::Ready(Ok(BodyLength::Empty));
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(self.failed(&error))),
            // The response itself is next.
            Poll::Ready(None) => {}
            Poll::Pending => return Poll::Pending,
        }
        let response = match Pin::new(answer).poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(response)) => response,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(self.failed(&error))),
        };
        let (parts, recv) = response.into_parts();
        response_from_h2(&parts, head);
        self.shared.progress.answered();
        let tunnel = self.take_tunnel(head);
        let announced =
            head.fields.get(Known::ContentLength).and_then(|value| std::str::from_utf8(value).ok());
        let announced = announced.and_then(|text| text.parse::<u64>().ok());
        let length = match announced {
            _ if recv.is_end_stream() => BodyLength::Empty,
            _ if tunnel => BodyLength::Unknown,
            Some(length) => BodyLength::Known(length),
            None => BodyLength::Unknown,
        };
        let missing = if let BodyLength::Known(length) = length { length } else { 0 };
        *self.response =
            Response::Body(Body { recv, unreleased: 0, missing, state: BodyState::Data, tunnel });
        Poll::Ready(Ok(length))
    }

    /// True where the response makes a tunnel of the stream. That of an upgrade becomes the 101 that it would be over HTTP/1.
    fn take_tunnel(&self, head: &mut ResponseHead) -> bool {
        let mut handover = self.shared.handover.lock();
        let tunnel = handover.tunnel && (200..300).contains(&head.status);
        if let Some(upgrade) = handover.upgrade.take().filter(|_| tunnel) {
            head.status = 101;
            head.fields.remove(Known::ContentLength);
            head.fields.append(Known::Connection, b"Upgrade");
            head.fields.append(Known::Upgrade, &upgrade);
        }
        tunnel
    }

    pub(super) async fn frame(&mut self) -> Result<Option<Frame>, ProxyError> {
        let Response::Body(body) = &mut *self.response else {
            return Err(self.fail(Kind::LocalReset, "the response's head wasn't received yet"));
        };
        body.release();
        loop {
            match body.state {
                BodyState::Done => return Ok(None),
                BodyState::Data => match body.recv.data().await {
                    Some(Ok(data)) => {
                        body.unreleased = data.len();
                        body.missing = body.missing.saturating_sub(data.len() as u64);
                        if !data.is_empty() {
                            return Ok(Some(Frame::Data(data)));
                        }
                    }
                    // The response is complete, and the upstream doesn't want the rest of the request (RFC 9113 8.1).
                    Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) && body.missing == 0 => {
                        body.state = BodyState::Done;
                    }
                    Some(Err(error)) => {
                        body.state = BodyState::Done;
                        return Err(self.failed(&error));
                    }
                    None => body.state = BodyState::Trailers,
                },
                BodyState::Trailers => {
                    body.state = BodyState::Done;
                    match body.recv.trailers().await {
                        Ok(None) => {}
                        Ok(Some(trailers)) => {
                            let mut fields = Fields::new();
                            fields_from_h2(&trailers, &mut fields);
                            strip_trailers(&mut fields);
                            return Ok(Some(Frame::Trailers(fields)));
                        }
                        Err(error) if error.reason() == Some(Reason::NO_ERROR) => {}
                        Err(error) => return Err(self.failed(&error)),
                    }
                }
            }
        }
    }

    pub(super) fn is_end(&self) -> bool {
        match &self.response {
            Response::Body(body) => body.state == BodyState::Done || body.recv.is_end_stream(),
            Response::Unasked | Response::Awaited(_) => false,
        }
    }

    /// What an error of the stream means.
    fn failed(&self, error: &h2::Error) -> ProxyError {
        let unprocessed =
            error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
        if unprocessed && self.shared.progress.get() != Progress::ResponseStarted {
            self.shared.progress.not_sent();
            return self.fail(Kind::RefusedStream, error);
        }
        let kind = match () {
            () if error.is_io() => Kind::UpstreamClosed,
            () if error.is_library() => Kind::UpstreamProtocol,
            () if error.is_go_away() => Kind::UpstreamClosed,
            () if error.is_reset() => Kind::UpstreamReset,
            () => Kind::LocalReset,
        };
        self.fail(kind, error)
    }

    fn fail(&self, kind: Kind, what: impl std::fmt::Display) -> ProxyError {
        let detail = format!("{}: {what}", self.lease.endpoint().address);
        ProxyError::new(kind, Side::Upstream, self.shared.progress.get(), detail)
    }
}

impl Body {
    fn release(&mut self) {
        let released = std::mem::take(&mut self.unreleased);
        if released > 0 {
            // Fails only if the stream is gone; then it doesn't matter.
            let _ = self.recv.flow_control().release_capacity(released);
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.release();
    }
}

/// The stream was never opened, so nothing was sent.
fn not_opened(lease: &Http2Lease, error: &h2::Error) -> ProxyError {
    let kind = if error.is_go_away() { Kind::RefusedStream } else { Kind::UpstreamClosed };
    let detail = format!("{}: {error}", lease.endpoint().address);
    ProxyError::new(kind, Side::Upstream, Progress::NothingSent, detail)
}
