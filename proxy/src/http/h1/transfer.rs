//! The two halves of an HTTP/1 connection: the codec joined with a [`Stream`].
//!
//! [`Inbound`] reads heads and bodies, [`Outbound`] writes them; each is used by servers and by clients. They borrow the
//! stream per call, so one task can run both at once. Buffers come from the worker when they are needed and go back with
//! `release`: a connection that waits holds none.
//!
//! `Outbound` holds small writes back, so that a head, a small body and its last chunk leave in one system call.
//! Whoever is about to wait for something else calls [`Outbound::flush`] first.

use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};

use super::{BodyDecoder, BodyEncoder, Decoded, Framing, HeadScan, Limits, Malformed, encode::WrongLength};
use crate::http::body::Frame;
use crate::http::fields::Fields;
use crate::io::Stream;
use crate::worker::{BUFFER_SIZE, Worker};

/// Room for the next read of a peer that filled the buffer: a long body costs fewer system calls then.
const LARGE_READ: usize = 64 * 1024;
/// Less room than this is not worth a system call.
const MIN_READ: usize = 2 * 1024;
/// Pieces up to this are copied behind what is held back; larger ones are written from where they are.
const COPY_LIMIT: usize = 4 * 1024;

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer broke the protocol, or closed within a message ([`Malformed::Truncated`]).
    #[error("{0}")]
    Malformed(#[from] Malformed),
}

/// Why nothing more can be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The body doesn't have the length that its head announced.
    #[error("{0}")]
    WrongLength(#[from] WrongLength),
}

/// The reading half.
#[derive(Debug)]
pub struct Inbound {
    buf: BytesMut,
    scan: HeadScan,
    body: BodyDecoder,
    closed: bool,
    /// The last read left no room: more is waiting.
    filled: bool,
}

impl Inbound {
    /// A half whose first bytes were read by someone else.
    pub fn new(buffered: BytesMut) -> Self {
        let body = BodyDecoder::new(Framing::None, Limits::default());
        Self { buf: buffered, scan: HeadScan::default(), body, closed: false, filled: false }
    }

    /// What was read and not used yet.
    pub fn buffered(&self) -> &[u8] {
        &self.buf
    }

    /// Takes what was read and not used yet.
    pub fn take_buffered(&mut self) -> BytesMut {
        std::mem::take(&mut self.buf)
    }

    /// True where no byte of a next message has been seen.
    pub fn is_idle(&self) -> bool {
        self.buf.is_empty() && self.body.is_done()
    }

    /// Reads once. False at the end of the stream. Cancel-safe.
    pub async fn fill(&mut self, stream: &Stream, worker: &Worker) -> io::Result<bool> {
        if self.closed {
            return Ok(false);
        }
        if self.buf.capacity() == 0 && !self.filled {
            // Waiting costs no buffer.
            stream.readable().await?;
        }
        self.make_room(worker);
        let read = stream.read_buf(&mut self.buf).await?;
        Ok(self.note(read))
    }

    fn note(&mut self, read: usize) -> bool {
        self.closed |= read == 0;
        self.filled = self.buf.len() == self.buf.capacity();
        !self.closed
    }

    /// Where the head in [`Inbound::buffered`] ends, if it is there whole. Parse it, then call [`Inbound::begin_body`].
    pub fn find_head(&mut self, limits: &Limits) -> Result<Option<usize>, Malformed> {
        self.scan.find(&self.buf, limits)
    }

    /// Reads until a head is there and says where it ends; `None` if the peer closed before its first byte. Cancel-safe.
    pub async fn head(
        &mut self,
        stream: &Stream,
        worker: &Worker,
        limits: &Limits,
    ) -> Result<Option<usize>, ReadError> {
        loop {
            if let Some(end) = self.find_head(limits)? {
                return Ok(Some(end));
            }
            if !self.fill(stream, worker).await? {
                return if self.scan.is_untouched() { Ok(None) } else { Err(Malformed::Truncated.into()) };
            }
        }
    }

    /// Leaves the head behind and begins the body; `limits` hold for trailers.
    pub fn begin_body(&mut self, head_end: usize, framing: Framing, limits: Limits) {
        self.buf.advance(head_end);
        self.scan = HeadScan::default();
        self.body = BodyDecoder::new(framing, limits);
    }

    /// The next frame of the body, `None` at its end. Cancel-safe.
    pub async fn frame(&mut self, stream: &Stream, worker: &Worker) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(ready) = self.ready_frame()? {
                return Ok(ready);
            }
            if !self.fill(stream, worker).await? {
                self.body.closed()?;
            }
        }
    }

    /// The next frame if it has been read already: `None` means that more bytes are needed, `Some(None)` is the end.
    pub fn ready_frame(&mut self) -> Result<Option<Option<Frame>>, Malformed> {
        Ok(match self.body.decode(&mut self.buf)? {
            Decoded::More => None,
            Decoded::Data(data) => Some(Some(Frame::Data(data))),
            Decoded::Trailers(fields) => Some(Some(Frame::Trailers(fields))),
            Decoded::End => Some(None),
        })
    }

    /// True when the message is over.
    pub fn body_is_done(&self) -> bool {
        self.body.is_done()
    }

    /// Bytes of the body that are still to come, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        self.body.remaining()
    }

    /// Gives the buffer back if it is empty.
    pub fn release(&mut self, worker: &Worker) {
        self.filled = false;
        if self.buf.is_empty() && self.buf.capacity() > 0 {
            worker.give_buffer(std::mem::take(&mut self.buf));
        }
    }

    fn make_room(&mut self, worker: &Worker) {
        if self.buf.capacity() - self.buf.len() >= MIN_READ {
            return;
        }
        if self.filled {
            self.buf.reserve(LARGE_READ);
        } else if self.buf.capacity() == 0 {
            self.buf = worker.take_buffer();
        } else {
            self.buf.reserve(BUFFER_SIZE);
        }
    }
}

/// The writing half.
#[derive(Debug)]
pub struct Outbound {
    out: BytesMut,
    /// Bytes of `out` that are written.
    flushed: usize,
    encoder: BodyEncoder,
    /// A write of a piece was given up half way: nothing sensible can follow.
    torn: bool,
    written: u64,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            out: BytesMut::new(),
            flushed: 0,
            encoder: BodyEncoder::new(Framing::None),
            torn: false,
            written: 0,
        }
    }
}

impl Outbound {
    /// Appends a head with `write` and begins a body that is framed as `framing`.
    pub fn head(&mut self, worker: &Worker, framing: Framing, write: impl FnOnce(&mut BytesMut)) {
        if self.out.capacity() == 0 {
            self.out = worker.take_buffer();
        }
        write(&mut self.out);
        self.encoder = BodyEncoder::new(framing);
    }

    /// Takes a piece of the body. On return it is written or held back.
    pub async fn data(&mut self, stream: &Stream, data: Bytes) -> Result<(), WriteError> {
        self.refuse_if_torn()?;
        if data.len() <= COPY_LIMIT && self.out.len() + data.len() + 24 <= BUFFER_SIZE {
            self.encoder.piece(&data, &mut self.out)?;
            return Ok(());
        }
        if !self.encoder.before(data.len(), &mut self.out)? {
            return Ok(());
        }
        self.torn = true;
        self.write_with(stream, data).await?;
        self.torn = false;
        self.out.extend_from_slice(self.encoder.after());
        Ok(())
    }

    /// Ends the body. What it appends is held back; [`Outbound::flush`] follows.
    pub fn end(&mut self, trailers: Option<&Fields>, preserve_case: bool) -> Result<(), WrongLength> {
        self.encoder.end(trailers, preserve_case, &mut self.out)
    }

    /// True where something is held back.
    pub fn holds_back(&self) -> bool {
        self.flushed < self.out.len()
    }

    /// Writes what is held back. Cancel-safe.
    pub async fn flush(&mut self, stream: &Stream) -> io::Result<()> {
        self.refuse_if_torn()?;
        self.write_with(stream, Bytes::new()).await
    }

    /// Bytes that were handed to the kernel since the connection began.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Gives the buffer back if nothing is held back.
    pub fn release(&mut self, worker: &Worker) {
        if self.out.is_empty() && self.out.capacity() > 0 {
            worker.give_buffer(std::mem::take(&mut self.out));
        }
    }

    fn refuse_if_torn(&self) -> io::Result<()> {
        if self.torn { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    /// Writes what is held back, and then `data`.
    async fn write_with(&mut self, stream: &Stream, mut data: Bytes) -> io::Result<()> {
        while self.flushed < self.out.len() || !data.is_empty() {
            let held = &self.out[self.flushed..];
            let outcome = match (held.is_empty(), data.is_empty()) {
                (false, true) => stream.try_write(held),
                (true, _) => stream.try_write(&data),
                (false, false) => stream.try_write_vectored(&[IoSlice::new(held), IoSlice::new(&data)]),
            };
            match outcome {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.written += written as u64;
                    let of_held = written.min(self.out.len() - self.flushed);
                    self.flushed += of_held;
                    data.advance(written - of_held);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.flushed = 0;
        stream.flush().await
    }
}
