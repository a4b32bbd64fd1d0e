//! Serves downstream connections: bytes in, one call of a [`Handler`] per request, bytes out.
//!
//! A connection speaks HTTP/1 ([`h1`]) or HTTP/2 ([`h2`]); with [`Codec::Auto`] the first bytes decide. The handler writes
//! the reply itself, through a [`Responder`], while it may still be reading the request's body: the whole request is one
//! future. Limits, idle time-outs, drains and the politeness of closing are decided here; what a request means is not.
//!
//! The configuration is asked for anew before each request ([`Connection::current`]).

pub mod h1;
pub mod h2;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::body::{BodyLength, RequestBody};
use super::fields::Fields;
use super::h1 as codec;
use super::head::{RequestHead, ResponseHead};
use crate::config::listener::{Codec, HttpManager};
use crate::error::{Kind, Progress, ProxyError, Side};
use crate::io::Stream;
use crate::listener::connection::Connection;
use crate::worker::Worker;

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client has begun to say of a request, or of its protocol, must have come by then where no time-out says otherwise: control
/// planes switch `stream_idle_timeout` off for streams that are long silent, and a head of which a byte comes now and then is none.
const HEAD_TIME: Duration = Duration::from_secs(60);

/// Where a request came in.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The worker that serves the connection.
    pub worker: &'a Arc<Worker>,
    /// The connection.
    pub connection: &'a Arc<Connection>,
    /// The connection manager in force for this request.
    pub manager: &'a Arc<HttpManager>,
}

/// What is done with requests.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Serves one request: reads `body` as far as it cares, and writes the reply through `responder`. Returning before
    /// [`Responder::finish`] cuts the reply off (and sends none, where it had not begun).
    fn handle(
        &self,
        arrival: Arrival<'_>,
        head: &mut RequestHead,
        body: RequestBody<'_>,
        responder: Responder<'_>,
    ) -> impl Future<Output = ()> + Send;

    /// Answers what never became a request: malformed, too large, too slow, of a version that isn't accepted. `head` is there
    /// if it could be read. The connection is closed afterwards.
    fn refuse(
        &self,
        arrival: Arrival<'_>,
        head: Option<&RequestHead>,
        error: ProxyError,
        responder: Responder<'_>,
    ) -> impl Future<Output = ()> + Send;
}

/// How serving a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// The connection is closed.
    Closed,
    /// A CONNECT was accepted with [`Responder::hand_over`]: the bytes that follow are a connection of their own.
    Tunnel {
        /// The socket.
        stream: Stream,
        /// What the client sent behind its request already.
        buffered: BytesMut,
        /// Host and port that the client asked for.
        authority: Box<[u8]>,
    },
}

/// Serves a connection to its end. `buffered` is what was read of it before.
pub async fn serve<H: Handler>(
    worker: &Arc<Worker>,
    connection: &Arc<Connection>,
    stream: Stream,
    buffered: BytesMut,
    handler: &H,
) -> Ended {
    let current = connection.current(worker);
    let Some(manager) = current.http() else { return Ended::Closed };
    let mut inbound = codec::transfer::Inbound::new(buffered);
    let http2 = match manager.codec {
        Codec::Http1 => false,
        Codec::Http2 => true,
        Codec::Auto => match sniff(worker, manager, &stream, &mut inbound).await {
            Some(http2) => http2,
            None => return Ended::Closed,
        },
    };
    drop(current);
    if http2 {
        Box::pin(h2::serve(worker, connection, stream, inbound.take_buffered(), handler)).await;
        return Ended::Closed;
    }
    h1::serve(worker, connection, stream, inbound, handler).await
}

/// True for HTTP/2. `None` where the client says nothing in time, or leaves.
async fn sniff(
    worker: &Worker,
    manager: &HttpManager,
    stream: &Stream,
    inbound: &mut codec::transfer::Inbound,
) -> Option<bool> {
    let idle = manager.timeouts.idle;
    if inbound.buffered().is_empty() {
        let first = inbound.fill(stream, worker);
        let begun = match idle {
            Some(limit) => tokio::time::timeout(limit, first).await.ok()?,
            None => first.await,
        };
        if !begun.ok()? {
            return None;
        }
    }
    let decide = async {
        loop {
            let seen = inbound.buffered();
            let length = seen.len().min(PREFACE.len());
            if seen[..length] != PREFACE[..length] {
                return Some(false);
            }
            if length == PREFACE.len() {
                return Some(true);
            }
            if !inbound.fill(stream, worker).await.ok()? {
                return None;
            }
        }
    };
    tokio::time::timeout(preface_time(manager), decide).await.ok()?
}

/// How long HTTP/2's preface may take once its client is there.
fn preface_time(manager: &HttpManager) -> Duration {
    manager.timeouts.idle.map_or(HEAD_TIME, |idle| idle.min(HEAD_TIME))
}

/// Writes one reply. Bytes may be held back until [`Responder::flush`] or [`Responder::finish`], so that head, a small body
/// and its end leave in one write: flush before waiting for anything else.
///
/// A future of these methods that is dropped before it is ready may have written half of a piece; the reply then can't be
/// finished, and the connection (HTTP/1) or stream (HTTP/2) is reset.
#[derive(Debug)]
pub enum Responder<'a> {
    /// To an HTTP/1 client.
    H1(h1::Responder<'a>),
    /// To a stream of an HTTP/2 connection.
    H2(h2::Responder),
}

impl Responder<'_> {
    /// Sends a 1xx (but 101) at once. Not to HTTP/1.0 clients, who don't know them: there it does nothing.
    pub async fn send_informational(&mut self, head: &ResponseHead) -> Result<(), ProxyError> {
        match self {
            Self::H1(responder) => responder.send_informational(head).await,
            Self::H2(responder) => responder.send_informational(head),
        }
    }

    /// Sends the head of the reply. `length` decides the framing where method and status allow a body; hop-by-hop fields
    /// (but a 101's) must not be among the fields. May be held back.
    pub async fn send_head(&mut self, head: &ResponseHead, length: BodyLength) -> Result<(), ProxyError> {
        match self {
            Self::H1(responder) => {
                responder.send_head(head, length);
                Ok(())
            }
            Self::H2(responder) => responder.send_head(head, length),
        }
    }

    /// Sends a piece of the body; waits while the client doesn't read. May be held back. Where the reply has no body (HEAD,
    /// 204, 304), pieces are dropped.
    pub async fn send_data(&mut self, data: Bytes) -> Result<(), ProxyError> {
        match self {
            Self::H1(responder) => responder.send_data(data).await,
            Self::H2(responder) => responder.send_data(data).await,
        }
    }

    /// Notes the trailers; [`Responder::finish`] sends them where they are wanted.
    pub fn send_trailers(&mut self, trailers: Fields) {
        match self {
            Self::H1(responder) => responder.send_trailers(trailers),
            Self::H2(responder) => responder.send_trailers(trailers),
        }
    }

    /// Puts on the wire what was held back. Cheap if nothing was.
    pub async fn flush(&mut self) -> Result<(), ProxyError> {
        match self {
            Self::H1(responder) => responder.flush().await,
            Self::H2(responder) => responder.flush().await,
        }
    }

    /// Ends the reply. After an upgrade: sends the end of the stream.
    pub async fn finish(&mut self) -> Result<(), ProxyError> {
        match self {
            Self::H1(responder) => responder.finish().await,
            Self::H2(responder) => responder.finish().await,
        }
    }

    /// Cuts the reply off, so that the client sees that it is incomplete.
    pub fn abort(&mut self) {
        match self {
            Self::H1(responder) => responder.abort(),
            Self::H2(responder) => responder.abort(),
        }
    }

    /// Tells an HTTP/2 client that nobody has looked at its request, instead of an answer. False for HTTP/1, which has no word for it.
    pub fn refuse(&mut self) -> bool {
        match self {
            Self::H1(_) => false,
            Self::H2(responder) => {
                responder.refuse();
                true
            }
        }
    }

    /// Waits until an HTTP/2 client resets the stream or goes away. Never returns for HTTP/1, where
    /// [`RequestBody::gone`] and [`RequestBody::frame`] tell.
    pub async fn gone(&mut self) -> ProxyError {
        match self {
            Self::H1(_) => std::future::pending().await,
            Self::H2(responder) => responder.gone().await,
        }
    }

    /// True once a head (but a 1xx) was sent: no other status can follow.
    pub fn has_begun(&self) -> bool {
        match self {
            Self::H1(responder) => responder.has_begun(),
            Self::H2(responder) => responder.has_begun(),
        }
    }

    /// True after a 101, or a 2xx to CONNECT: the reply's "body" is raw bytes now.
    pub fn is_upgraded(&self) -> bool {
        match self {
            Self::H1(responder) => responder.is_upgraded(),
            Self::H2(responder) => responder.is_upgraded(),
        }
    }

    /// After a 2xx to CONNECT: leaves the connection to whoever serves it, as [`Ended::Tunnel`], instead of copying bytes
    /// here. False for HTTP/2, where a stream is not a connection.
    pub fn hand_over(&mut self) -> bool {
        match self {
            Self::H1(responder) => responder.hand_over(),
            Self::H2(_) => false,
        }
    }

    /// Bytes of the body that were taken so far.
    pub fn body_bytes(&self) -> u64 {
        match self {
            Self::H1(responder) => responder.body_bytes(),
            Self::H2(responder) => responder.body_bytes(),
        }
    }
}

/// The client went away or can't be written to.
fn downstream_closed(detail: impl ToString) -> ProxyError {
    downstream(Kind::DownstreamClosed, detail.to_string())
}

fn downstream(kind: Kind, detail: impl Into<std::borrow::Cow<'static, str>>) -> ProxyError {
    ProxyError::new(kind, Side::Downstream, Progress::NothingSent, detail)
}
