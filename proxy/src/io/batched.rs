//! Collects what `h2` writes while its connection is polled, so that all of it leaves in one system call.
//!
//! `h2` flushes after each DATA frame above a few hundred bytes: sixteen streams of one connection would cost sixteen calls.
//! So it writes to a [`Batched`], and who drives the connection lets [`Flusher::drive`] send what was collected whenever `h2`
//! waits. Invariants: bytes leave in order; nothing is held back while the driver is parked, unless the socket takes no
//! more; memory is held only that long.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Stream;

/// Most that is collected.
const MAX_HELD: usize = 64 * 1024;
/// A write of this much goes to the socket without being copied, behind what was collected before.
const LARGE: usize = 16 * 1024;
/// Buffers of one write: what is held, and what `h2` brings.
const SLICES: usize = 8;

thread_local! {
    /// Memory for the connection that is being polled; a parked one has none.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The stream and what is collected for it.
#[derive(Debug)]
struct Shared {
    stream: Stream,
    /// Never contended: the two ends are used by the one task that drives the connection.
    held: Mutex<Vec<u8>>,
}

/// `h2`'s end of a connection.
#[derive(Debug)]
pub struct Batched {
    shared: Arc<Shared>,
    /// Bytes that were read before `h2` came.
    prefix: BytesMut,
}

/// The driver's end of a connection.
#[derive(Debug)]
pub struct Flusher {
    shared: Arc<Shared>,
}

/// Divides `stream` into `h2`'s end and the driver's; `prefix` was read from it already.
pub fn batched(stream: Stream, prefix: BytesMut) -> (Batched, Flusher) {
    let shared = Arc::new(Shared { stream, held: Mutex::default() });
    (Batched { shared: shared.clone(), prefix }, Flusher { shared })
}

impl Flusher {
    /// Polls `work`, which writes to the other end, and then sends what it wrote.
    pub async fn drive<F: Future>(&self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            let done = work.as_mut().poll(cx);
            self.flush(cx);
            done
        })
        .await
    }

    /// Sends what was collected; what the socket doesn't take now is sent when the task is woken for it.
    pub fn flush(&self, cx: &mut Context<'_>) {
        let mut held = self.shared.held.lock();
        if !held.is_empty() && self.shared.poll_send(&mut held, cx).is_ready() && held.capacity() <= MAX_HELD
        {
            SPARE.set(std::mem::take(&mut held));
        }
    }
}

impl Shared {
    /// Ready when nothing is held any more. After an error too: the peer is gone, which `h2` learns when it reads.
    fn poll_send(&self, held: &mut Vec<u8>, cx: &mut Context<'_>) -> Poll<()> {
        while !held.is_empty() {
            match self.stream.try_write(held) {
                Ok(written) if 0 < written && written < held.len() => drop(held.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if ready!(self.stream.poll_write_ready(cx)).is_err() {
                        held.clear();
                    }
                }
                Ok(_) | Err(_) => held.clear(),
            }
        }
        Poll::Ready(())
    }

    /// Sends `bufs` behind what is held. Says how much of `bufs` was taken.
    fn poll_send_with(
        &self,
        held: &mut Vec<u8>,
        bufs: &[IoSlice<'_>],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut slices = [IoSlice::new(&[]); SLICES];
            slices[0] = IoSlice::new(held);
            for (slot, buf) in slices[1..].iter_mut().zip(bufs) {
                *slot = IoSlice::new(buf);
            }
            match self.stream.try_write_vectored(&slices[..SLICES.min(bufs.len() + 1)]) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(written) if written > held.len() => {
                    let taken = written - held.len();
                    held.clear();
                    return Poll::Ready(Ok(taken));
                }
                Ok(written) => drop(held.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.stream.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for Batched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return self.shared.stream.poll_read(cx, buf);
        }
        let taken = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..taken]);
        self.prefix.advance(taken);
        if self.prefix.is_empty() {
            self.prefix = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Batched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut held = self.shared.held.lock();
        let length: usize = bufs.iter().map(|buf| buf.len()).sum();
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        if length >= LARGE || held.len() + length > MAX_HELD {
            return self.shared.poll_send_with(&mut held, bufs, cx);
        }
        if held.capacity() == 0 {
            *held = SPARE.take();
        }
        bufs.iter().for_each(|buf| held.extend_from_slice(buf));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The driver's business.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.shared.poll_send(&mut self.shared.held.lock(), cx));
        Poll::Ready(self.shared.stream.shutdown_write())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (Stream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(connect, listener.accept());
        (client.unwrap().into(), accepted.unwrap().0.into())
    }

    #[tokio::test]
    async fn small_writes_leave_together_when_the_driver_waits() {
        let (left, right) = pair().await;
        let (mut batched, flusher) = batched(left, BytesMut::new());
        let work = async {
            for _ in 0..3 {
                batched.write_all(b"abc").await.unwrap();
                batched.flush().await.unwrap();
            }
            assert!(right.is_quiet(), "nothing leaves while there is more to do");
            tokio::task::yield_now().await;
        };
        flusher.drive(work).await;
        let mut buf = [0; 64];
        assert_eq!(right.read(&mut buf).await.unwrap(), 9);
        assert_eq!(&buf[..9], b"abcabcabc");
        assert_eq!(batched.shared.held.lock().capacity(), 0, "a parked connection holds no memory");
    }

    #[tokio::test]
    async fn order_is_kept_between_small_and_large_writes_and_a_slow_reader() {
        let (left, right) = pair().await;
        let (mut batched, flusher) = batched(left, BytesMut::new());
        let sizes =
            [1, 300, LARGE, 5, 3 * MAX_HELD, 7, LARGE - 1, LARGE - 1, LARGE - 1, LARGE - 1, LARGE - 1, 9];
        let mut wanted = Vec::new();
        let parts: Vec<Vec<u8>> = (0..40u8)
            .flat_map(|round| sizes.map(|size| vec![round.wrapping_mul(31).wrapping_add(size as u8); size]))
            .collect();
        parts.iter().for_each(|part| wanted.extend_from_slice(part));
        let write = async {
            for part in &parts {
                batched.write_all(part).await.unwrap();
            }
            batched.shutdown().await.unwrap();
        };
        let read = async {
            let mut got = BytesMut::new();
            loop {
                got.reserve(3000);
                tokio::task::yield_now().await;
                if right.read_buf(&mut got).await.unwrap() == 0 {
                    return got;
                }
            }
        };
        let ((), got) = tokio::join!(flusher.drive(write), read);
        assert!(got == wanted);
    }

    #[tokio::test]
    async fn what_was_read_before_comes_first() {
        use tokio::io::AsyncReadExt;
        let (left, right) = pair().await;
        let (mut batched, _flusher) = batched(left, BytesMut::from(&b"early "[..]));
        right.write_all(b"late").await.unwrap();
        let mut got = [0; 10];
        batched.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"early late");
    }
}
