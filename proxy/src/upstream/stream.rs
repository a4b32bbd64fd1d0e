//! One request on its way to an endpoint: a stream of an HTTP/2 connection, or an HTTP/1 connection for itself.
//!
//! [`UpstreamStream::open`] takes the permits, then a connection of the worker's pool. [`UpstreamStream::split`] gives the two
//! halves, to be used at once by one task: **poll both**. A write that fails leaves the [`Sender`] waiting for ever, because
//! the upstream may have answered before it closed: what happened is what the [`Receiver`] says. Nothing is on the wire before
//! [`Sender::flush`] or [`Sender::finish`]. In the end [`UpstreamStream::finish`] gives the connection back if both messages have
//! ended cleanly; dropped without it, an HTTP/1 connection is closed and an HTTP/2 stream is reset.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use bytes::Bytes;

use super::live::{LiveState, RequestPermit};
use super::{h1, h2};
use crate::config::cluster::{Cluster, UpstreamProtocol};
use crate::config::endpoint::Endpoint;
use crate::error::{Progress, ProxyError};
use crate::http::body::{BodyLength, Frame};
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead, Version};
use crate::identity::vouch::Vouch;
use crate::worker::Worker;

/// A request's way to an endpoint.
#[derive(Debug)]
pub struct UpstreamStream {
    kind: Kind,
    /// Counts the request until the stream is dropped.
    permit: RequestPermit,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "lives in the request's future; a box would cost an allocation")]
enum Kind {
    H1(h1::Http1Stream),
    H2(h2::Http2Stream),
}

/// The request's half.
#[derive(Debug)]
pub enum Sender<'a> {
    /// On an HTTP/1 connection.
    H1(h1::Sender<'a>),
    /// On an HTTP/2 stream.
    H2(h2::Sender<'a>),
}

/// The response's half.
#[derive(Debug)]
pub struct Receiver<'a> {
    kind: ReceiverKind<'a>,
    permit: &'a mut RequestPermit,
}

#[derive(Debug)]
enum ReceiverKind<'a> {
    H1(h1::Receiver<'a>),
    H2(h2::Receiver<'a>),
}

impl UpstreamStream {
    /// Takes a connection to `endpoint`, idle or new. `downstream` is the version of the client's request, which decides where the
    /// cluster says so. `authority` is whom the request is for, which the endpoint may have to prove that it is. Whatever fails here,
    /// nothing was sent.
    pub async fn open(
        worker: &Arc<Worker>,
        cluster: &Arc<Cluster>,
        endpoint: Arc<Endpoint>,
        downstream: Version,
        authority: &[u8],
    ) -> Result<Self, ProxyError> {
        let permit = LiveState::admit(endpoint)?;
        let state = &permit.endpoint().state;
        let asked = cluster.spec.transport.asked(&state.transport, authority);
        let kind = if speaks_http2(cluster, downstream) {
            Kind::H2(h2::Http2Stream::new(worker.pool.http2(cluster, state, asked.as_ref()).await?))
        } else {
            let connection = worker.pool.http1(cluster, state, asked.as_ref()).await?;
            Kind::H1(h1::Http1Stream::new(connection, worker.clone(), cluster.spec.preserve_header_case))
        };
        Ok(Self { kind, permit })
    }

    /// Where it leads.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        self.permit.endpoint()
    }

    /// By what the endpoint is believed, where it has proved who it is.
    pub fn vouch(&self) -> Option<&Arc<Vouch>> {
        match &self.kind {
            Kind::H1(stream) => stream.vouch(),
            Kind::H2(stream) => stream.vouch(),
        }
    }

    /// Our own address on the connection.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::H1(stream) => stream.local_address(),
            Kind::H2(stream) => stream.local_address(),
        }
    }

    /// What is spoken on it.
    pub fn version(&self) -> Version {
        match self.kind {
            Kind::H1(_) => Version::Http11,
            Kind::H2(_) => Version::Http2,
        }
    }

    /// True where the connection has carried a request before: then the upstream may have closed it while we sent.
    pub fn is_reused(&self) -> bool {
        match &self.kind {
            Kind::H1(stream) => stream.is_reused(),
            Kind::H2(stream) => stream.is_reused(),
        }
    }

    /// What has been sent and received so far.
    pub fn progress(&self) -> Progress {
        match &self.kind {
            Kind::H1(stream) => stream.progress().get(),
            Kind::H2(stream) => stream.progress().get(),
        }
    }

    /// Both halves.
    pub fn split(&mut self) -> (Sender<'_>, Receiver<'_>) {
        let (sender, kind) = match &mut self.kind {
            Kind::H1(stream) => {
                let (sender, receiver) = stream.split();
                (Sender::H1(sender), ReceiverKind::H1(receiver))
            }
            Kind::H2(stream) => {
                let (sender, receiver) = stream.split();
                (Sender::H2(sender), ReceiverKind::H2(receiver))
            }
        };
        (sender, Receiver { kind, permit: &mut self.permit })
    }

    /// The upstream didn't answer in time. An HTTP/2 connection gets no new streams until it has answered a PING.
    pub fn timed_out(&mut self) {
        self.permit.timed_out();
        if let Kind::H2(stream) = &self.kind {
            stream.doubt();
        }
    }

    /// After a 101 (or a 2xx to CONNECT) was received: from here on the body of either direction is raw bytes, until the peer
    /// closes or [`Sender::finish`] says that we do. False, and no change, where the upstream has not switched protocols.
    pub fn upgrade(&mut self) -> bool {
        match &mut self.kind {
            Kind::H1(stream) => stream.upgrade(),
            Kind::H2(stream) => stream.upgrade(),
        }
    }

    /// The end of an exchange. The connection is used again if request and response have ended cleanly.
    pub fn finish(self) {
        match self.kind {
            Kind::H1(stream) => stream.finish(),
            Kind::H2(stream) => drop(stream),
        }
    }
}

/// Which protocol a request takes to the cluster.
pub fn speaks_http2(cluster: &Cluster, downstream: Version) -> bool {
    match cluster.spec.protocol {
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Downstream => downstream == Version::Http2,
    }
}

impl Sender<'_> {
    /// Sends the head. `length` decides the framing; hop-by-hop fields (but those of an upgrade) must not be among the fields.
    /// May be held back.
    pub async fn send_head(&mut self, head: &RequestHead, length: BodyLength) -> Result<(), ProxyError> {
        match self {
            Self::H1(sender) => {
                sender.send_head(head, length);
                Ok(())
            }
            Self::H2(sender) => {
                if head.upgrade().is_some() {
                    sender.may_upgrade().await?;
                }
                sender.send_head(head, length)
            }
        }
    }

    /// Sends a piece of the body; waits while the upstream doesn't read. May be held back.
    pub async fn send_data(&mut self, data: Bytes) -> Result<(), ProxyError> {
        match self {
            Self::H1(sender) => sender.send_data(data).await,
            Self::H2(sender) => sender.send_data(data).await,
        }
    }

    /// Notes the trailers; [`Sender::finish`] sends them where the framing has a place for them.
    pub fn send_trailers(&mut self, trailers: Fields) {
        match self {
            Self::H1(sender) => sender.send_trailers(trailers),
            Self::H2(sender) => sender.send_trailers(trailers),
        }
    }

    /// Puts on the wire what was held back. Call it before waiting for more of the body.
    pub async fn flush(&mut self) -> Result<(), ProxyError> {
        match self {
            Self::H1(sender) => sender.flush().await,
            Self::H2(sender) => sender.flush().await,
        }
    }

    /// Ends the request. In a tunnel: sends the end of the stream.
    pub async fn finish(&mut self) -> Result<(), ProxyError> {
        match self {
            Self::H1(sender) => sender.finish().await,
            Self::H2(sender) => sender.finish().await,
        }
    }
}

impl Receiver<'_> {
    /// Receives the next head into `head`: any number of 1xx (see [`ResponseHead::is_informational`]), then the response's, which may
    /// be a 101. Says what is known of the body behind it. Cancel-safe.
    pub async fn recv_head(&mut self, head: &mut ResponseHead) -> Result<BodyLength, ProxyError> {
        let length = match &mut self.kind {
            ReceiverKind::H1(receiver) => receiver.recv_head(head).await?,
            ReceiverKind::H2(receiver) => receiver.recv_head(head).await?,
        };
        if !head.is_informational() || head.status == 101 {
            self.permit.answered(head.status);
        }
        Ok(length)
    }

    /// The next frame of the body; `None` at its end. Cancel-safe.
    pub async fn frame(&mut self) -> Result<Option<Frame>, ProxyError> {
        match &mut self.kind {
            ReceiverKind::H1(receiver) => receiver.frame().await,
            ReceiverKind::H2(receiver) => receiver.frame().await,
        }
    }

    /// True where [`Receiver::frame`] has nothing more to give.
    pub fn is_end(&self) -> bool {
        match &self.kind {
            ReceiverKind::H1(receiver) => receiver.is_end(),
            ReceiverKind::H2(receiver) => receiver.is_end(),
        }
    }
}

/// How far a request has come, seen by both halves.
#[derive(Debug, Default)]
pub(super) struct SharedProgress(AtomicU8);

impl SharedProgress {
    pub fn get(&self) -> Progress {
        match self.0.load(Relaxed) {
            0 => Progress::NothingSent,
            1 => Progress::Sent,
            _ => Progress::ResponseStarted,
        }
    }

    /// A byte may have reached the upstream. Said before the write, so that nobody sees too little.
    pub fn sending(&self) {
        self.0.fetch_max(1, Relaxed);
    }

    /// The write failed and not a byte had been taken.
    pub fn not_sent(&self) {
        // An answer that has begun stays one.
        let _ = self.0.compare_exchange(1, 0, Relaxed, Relaxed);
    }

    pub fn answered(&self) {
        self.0.store(2, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_and_its_opening_stay_small() {
        assert!(size_of::<UpstreamStream>() <= 640, "{}", size_of::<UpstreamStream>());
        let open =
            |worker, cluster, endpoint| UpstreamStream::open(worker, cluster, endpoint, Version::Http11, b"");
        let size = size_of_output(&open);
        assert!(size <= 1024, "{size}");
    }

    fn size_of_output<F>(
        _: &impl Fn(&'static Arc<Worker>, &'static Arc<Cluster>, Arc<Endpoint>) -> F,
    ) -> usize {
        size_of::<F>()
    }
}
