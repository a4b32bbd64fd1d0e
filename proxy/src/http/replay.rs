//! The body of a request as attempts read it: what one attempt has read, the next one gets again.
//!
//! Frames are kept (not copied: they are shared `Bytes`) while another attempt is possible and they fit; what is too large
//! is streamed, and then the request can't be tried again. What an attempt has taken is kept before the attempt gets it, so
//! that an attempt that is dropped at any moment has lost nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use bytes::Bytes;

use super::body::{BodyLength, Frame, RequestBody};
use super::clock::Clock;
use crate::error::ProxyError;

/// Body bytes that are kept for a retry (Envoy's default). A larger body is streamed and not retried.
pub const MAX_REPLAY: usize = 1024 * 1024;

/// What the rest of the exchange needs to know of a body that an attempt is reading. Atomic for the same reason as [`Clock`].
#[derive(Debug)]
pub struct BodyState {
    /// Another attempt may follow: keep what is read.
    keep: AtomicBool,
    /// Everything that was read is kept.
    whole: AtomicBool,
    /// Bytes read from the client.
    received: AtomicU64,
}

impl BodyState {
    /// Nothing read; kept if `keep`.
    pub fn new(keep: bool) -> Self {
        Self { keep: AtomicBool::new(keep), whole: AtomicBool::new(true), received: AtomicU64::new(0) }
    }

    /// No other attempt will follow.
    pub fn release(&self) {
        self.keep.store(false, Relaxed);
    }

    /// True where the next attempt can send the body from its beginning.
    pub fn is_replayable(&self) -> bool {
        self.whole.load(Relaxed)
    }

    /// Bytes of it have come.
    pub fn receive(&self, bytes: usize) {
        self.received.store(self.received() + bytes as u64, Relaxed);
    }

    /// Bytes read from the client so far.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}

/// What was read of a body before there was anybody to send it to. The first attempt gets it as if it came then.
#[derive(Debug, Default)]
pub struct Peeked {
    frames: VecDeque<Frame>,
    bytes: usize,
    whole: bool,
}

impl Peeked {
    /// Nothing was read.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && !self.whole
    }

    /// The body has no more.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its pieces.
    pub fn data(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.iter().filter_map(|frame| match frame {
            Frame::Data(data) => Some(data),
            Frame::Trailers(_) => None,
        })
    }

    /// The next frame that was read; `None` at the end.
    pub fn push(&mut self, frame: Option<Frame>) {
        match frame {
            Some(frame) => {
                if let Frame::Data(data) = &frame {
                    self.bytes += data.len();
                }
                self.frames.push_back(frame);
            }
            None => self.whole = true,
        }
    }
}

/// A request's body with its memory.
#[derive(Debug)]
pub struct ReplayBody<'a> {
    /// Comes before what is still to be read.
    peeked: Peeked,
    body: RequestBody<'a>,
    kept: VecDeque<Frame>,
    kept_bytes: usize,
    /// Of the kept frames, the next to be read.
    next: usize,
    limit: usize,
}

impl<'a> ReplayBody<'a> {
    /// Remembers up to `limit` bytes of `body`.
    pub fn new(peeked: Peeked, body: RequestBody<'a>, state: &BodyState, limit: usize) -> Self {
        // A body that is announced to be too large isn't even begun to be kept.
        if let BodyLength::Known(length) = body.length()
            && length > limit as u64
        {
            state.release();
        }
        Self { peeked, body, kept: VecDeque::new(), kept_bytes: 0, next: 0, limit }
    }

    /// What the head said of the length.
    pub fn length(&self) -> BodyLength {
        self.body.length()
    }

    /// The next attempt begins.
    pub fn rewind(&mut self, state: &BodyState) {
        debug_assert!(state.is_replayable());
        self.next = 0;
    }

    /// The next frame for this attempt; `None` at the end. Cancel-safe.
    pub async fn frame(&mut self, state: &BodyState, clock: &Clock) -> Result<Option<Frame>, ProxyError> {
        if let Some(frame) = self.kept.get(self.next) {
            let frame = frame.clone();
            self.next += 1;
            self.forget_read(state);
            return Ok(Some(frame));
        }
        let frame = match self.peeked.frames.pop_front() {
            Some(frame) => Some(frame),
            None if self.peeked.whole => None,
            None => self.body.frame().await?,
        };
        let Some(frame) = frame else { return Ok(None) };
        clock.touch();
        let length = match &frame {
            Frame::Data(data) => data.len(),
            Frame::Trailers(fields) => fields.wire_len(),
        };
        if matches!(frame, Frame::Data(_)) {
            state.receive(length);
        }
        self.keep(&frame, length, state);
        Ok(Some(frame))
    }

    fn keep(&mut self, frame: &Frame, length: usize, state: &BodyState) {
        if !state.keep.load(Relaxed) || self.kept_bytes + length > self.limit {
            state.release();
            state.whole.store(false, Relaxed);
            self.forget_read(state);
            return;
        }
        self.kept_bytes += length;
        self.kept.push_back(frame.clone());
        self.next = self.kept.len();
    }

    /// Lets go of what nobody will ask for again.
    fn forget_read(&mut self, state: &BodyState) {
        if !state.keep.load(Relaxed) && self.next > 0 {
            state.whole.store(false, Relaxed);
            self.kept.drain(..self.next.min(self.kept.len()));
            self.next = 0;
        }
    }

    /// After the end: waits until an HTTP/1 client goes away.
    pub async fn gone(&mut self) -> ProxyError {
        self.body.gone().await
    }

    /// The body itself, for a tunnel.
    pub fn into_inner(self) -> RequestBody<'a> {
        self.body
    }
}
