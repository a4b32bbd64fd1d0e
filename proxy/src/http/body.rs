//! Bodies: frames with backpressure, in both directions.
//!
//! A request's body is pulled by the exchange, frame by frame; nothing is read ahead of it beyond one buffer. A
//! response's body is pushed through the [`Responder`].

use bytes::Bytes;

use super::fields::Fields;
use super::server::{Responder, h1, h2};
use crate::error::ProxyError;

/// A piece of a body.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// Some bytes.
    Data(Bytes),
    /// The trailers; nothing follows them.
    Trailers(Fields),
}

/// What is known of a body's length when its head is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// There is no body.
    Empty,
    /// That many bytes.
    Known(u64),
    /// It ends when it ends.
    Unknown,
}

/// The body of a request, pulled from the downstream connection.
#[derive(Debug)]
pub enum RequestBody<'a> {
    /// None, and nobody to be watched behind it. For requests that the proxy makes itself, and for tests.
    Empty,
    /// Read from an HTTP/1 connection.
    H1(h1::BodyReader<'a>),
    /// A stream of an HTTP/2 connection.
    H2(h2::BodyReader),
}

impl RequestBody<'_> {
    /// What the head said of the length.
    pub fn length(&self) -> BodyLength {
        match self {
            Self::Empty => BodyLength::Empty,
            Self::H1(reader) => reader.length(),
            Self::H2(reader) => reader.length(),
        }
    }

    /// The next frame; `None` at the end. Cancel-safe.
    pub async fn frame(&mut self) -> Result<Option<Frame>, ProxyError> {
        match self {
            Self::Empty => Ok(None),
            Self::H1(reader) => reader.frame().await,
            Self::H2(reader) => reader.frame().await,
        }
    }

    /// True where [`RequestBody::frame`] has nothing more to give.
    pub fn is_end(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::H1(reader) => reader.is_end(),
            Self::H2(reader) => reader.is_end(),
        }
    }

    /// After the end of the body: waits until an HTTP/1 client goes away. Never returns for HTTP/2, where
    /// [`Responder::gone`] tells. Cancel-safe.
    pub async fn gone(&mut self) -> ProxyError {
        match self {
            Self::H1(reader) => reader.gone().await,
            _ => std::future::pending().await,
        }
    }

    /// After a 101 (or a 2xx to CONNECT) has been sent and the body is at its end: from here on the frames are the raw bytes
    /// that the client sends, until it closes. False, and no change, where `responder` has not switched protocols: bytes
    /// that were sent on the mere hope of an upgrade never get through.
    pub fn upgrade(&mut self, responder: &Responder<'_>) -> bool {
        if !responder.is_upgraded() {
            return false;
        }
        match self {
            Self::H1(reader) => reader.upgrade(),
            // An extended CONNECT carries its bytes in DATA frames.
            Self::H2(reader) => reader.upgrade(),
            Self::Empty => false,
        }
    }
}
