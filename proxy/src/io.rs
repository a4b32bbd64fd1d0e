//! A byte stream whose reader and writer share it without a lock or a split.
//!
//! All operations take `&self`: tokio's sockets keep one waker for reading and one for writing, so one task may read
//! while another future of the same task writes. Two readers at once (or two writers) would steal each other's waker and
//! are not allowed. An enum instead of a trait object: the calls inline, and TLS joins as a variant.

pub mod batched;
pub mod tls;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use tls::TlsStream;

/// A connection to a peer.
#[derive(Debug)]
pub enum Stream {
    /// Bytes as they are.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream>),
}

impl Stream {
    /// Reads what is there, without waiting. `Ok(0)` is the end of the stream; [`io::ErrorKind::WouldBlock`] means
    /// nothing is there yet.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let room = buf.len();
        match self {
            Self::Plain(tcp) => read_and_note(tcp, room, || tcp.try_read(buf)),
            Self::Tls(tls) => tls.try_read(buf),
        }
    }

    /// Like [`Stream::try_read`], appending to the spare capacity of `buf` (which must have some).
    pub fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        let room = buf.chunk_mut().len();
        match self {
            Self::Plain(tcp) => read_and_note(tcp, room, || tcp.try_read_buf(buf)),
            Self::Tls(tls) => tls.try_read_buf(buf),
        }
    }

    /// Waits until a read would not block. Holds no buffer. Uses the socket's own place for a reader's waker, which costs a
    /// third of the list that tokio's `readable` joins.
    pub async fn readable(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_read_ready(cx)).await
    }

    /// Waits until a write would not block.
    pub async fn writable(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_write_ready(cx)).await
    }

    /// Ready when a read would not block.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_read_ready(cx),
            Self::Tls(tls) => tls.poll_read_ready(cx),
        }
    }

    /// Reads some bytes into `buf`; none is the end of the stream. Asking for readiness first makes each read count against the
    /// task's share of its worker.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_read_ready(cx))?;
            match self.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done.map(drop)),
            }
        }
    }

    /// Ready when a write would not block.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => tcp.poll_write_ready(cx),
            Self::Tls(tls) => tls.poll_write_ready(cx),
        }
    }

    /// Reads some bytes; `Ok(0)` is the end of the stream. Cancel-safe.
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.try_read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable().await?,
                done => return done,
            }
        }
    }

    /// Appends some bytes to the spare capacity of `buf` (which must have some); `Ok(0)` is the end. Cancel-safe.
    pub async fn read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        loop {
            match self.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable().await?,
                done => return done,
            }
        }
    }

    /// Writes what fits, without waiting.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write(buf),
            Self::Tls(tls) => tls.try_write(buf),
        }
    }

    /// Writes what fits of several buffers, without waiting.
    pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.try_write_vectored(bufs),
            Self::Tls(tls) => tls.try_write_vectored(bufs),
        }
    }

    /// Writes everything. Not cancel-safe: how much was written is lost; use [`Stream::write_buf`] where that matters.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write_some(bytes).await?;
            bytes = &bytes[written..];
        }
        self.flush().await
    }

    /// Writes until `buf` is empty, advancing it after each write: after an error or a cancellation `buf` holds what
    /// wasn't handed to the kernel.
    pub async fn write_buf<B: Buf>(&self, buf: &mut B) -> io::Result<()> {
        while buf.has_remaining() {
            let mut slices = [IoSlice::new(&[]); 8];
            let used = buf.chunks_vectored(&mut slices);
            let written = match self.try_write_vectored(&slices[..used]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable().await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            buf.advance(written);
        }
        self.flush().await
    }

    async fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.try_write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                done => return done,
            }
        }
    }

    /// Sends FIN: the peer reads the end, and may go on sending.
    pub fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => SockRef::from(tcp).shutdown(Shutdown::Write),
            Self::Tls(tls) => tls.shutdown_write(),
        }
    }

    /// Makes the coming close a reset, so that the peer learns that its stream was cut and not ended.
    pub fn reset_on_close(&self) -> io::Result<()> {
        SockRef::from(self.socket()).set_linger(Some(std::time::Duration::ZERO))
    }

    /// False where the peer has closed or reset, or where bytes wait that nobody asked for: such a connection must not
    /// be used again. Costs one system call only if the socket was signalled since the last read.
    pub fn is_quiet(&self) -> bool {
        let mut byte = [0u8; 1];
        matches!(self.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Moves the connection to the caller's runtime. Nothing may be reading or writing it.
    pub fn rehome(self) -> io::Result<Self> {
        match self {
            Self::Plain(tcp) => TcpStream::from_std(tcp.into_std()?).map(Self::Plain),
            Self::Tls(tls) => tls.rehome().map(|tls| Self::Tls(Box::new(tls))),
        }
    }

    /// The socket, where bytes go over it as they are.
    pub fn as_tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(tcp) => Some(tcp),
            Self::Tls(_) => None,
        }
    }

    /// Address of the peer.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket().peer_addr()
    }

    /// Our address.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket().local_addr()
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.tcp(),
        }
    }

    /// Waits until nothing that was taken to be written waits here. Nothing does where bytes go as they are.
    pub async fn flush(&self) -> io::Result<()> {
        match self {
            Self::Tls(tls) if tls.holds_back() => self.writable().await,
            _ => Ok(()),
        }
    }
}

/// Reads, and notes that the socket is empty where the read left room: else the next read would ask the kernel only to hear
/// so, one system call per message. Tokio's own `poll_read` does the same.
fn read_and_note(
    tcp: &TcpStream,
    room: usize,
    read: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut partial = None;
    let outcome = tcp.try_io(Interest::READABLE, || match read()? {
        // This error makes tokio forget that the socket was readable; bytes that arrive from now on make it so again.
        count if 0 < count && count < room => {
            partial = Some(count);
            Err(io::ErrorKind::WouldBlock.into())
        }
        count => Ok(count),
    });
    partial.map_or(outcome, Ok)
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::Plain(tcp)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            tls => Self::poll_read(tls, cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => loop {
                match tls.try_write(buf) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready!(tls.poll_write_ready(cx))?
                    }
                    done => return Poll::Ready(done),
                }
            },
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => loop {
                match tls.try_write_vectored(bufs) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready!(tls.poll_write_ready(cx))?
                    }
                    done => return Poll::Ready(done),
                }
            },
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(tls) if tls.holds_back() => tls.poll_write_ready(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown_write())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Bytes, BytesMut};
    use tokio::net::TcpListener;

    async fn pair() -> (Stream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(connect, listener.accept());
        (client.unwrap().into(), accepted.unwrap().0.into())
    }

    #[tokio::test]
    async fn one_task_reads_and_writes_the_same_stream() {
        let (left, right) = pair().await;
        let sent = vec![7u8; 8 << 20];
        let echo = async {
            let mut buf = vec![0; 65536];
            loop {
                let read = right.read(&mut buf).await.unwrap();
                if read == 0 {
                    return right.shutdown_write().unwrap();
                }
                right.write_all(&buf[..read]).await.unwrap();
            }
        };
        let send = async {
            let mut parts =
                Bytes::copy_from_slice(&sent[..1000]).chain(Bytes::copy_from_slice(&sent[1000..]));
            left.write_buf(&mut parts).await.unwrap();
            left.shutdown_write().unwrap();
        };
        let receive = async {
            let mut got = BytesMut::new();
            loop {
                got.reserve(65536);
                if left.read_buf(&mut got).await.unwrap() == 0 {
                    return got;
                }
            }
        };
        let (_, _, got) = tokio::join!(echo, send, receive);
        assert!(got == sent);
    }

    #[tokio::test]
    async fn a_short_read_empties_the_socket_and_later_bytes_and_the_end_are_seen() {
        let (left, right) = pair().await;
        let mut buf = [0; 16];
        for _ in 0..3 {
            right.write_all(b"abc").await.unwrap();
            assert_eq!(left.read(&mut buf).await.unwrap(), 3);
            assert_eq!(left.try_read(&mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
        right.write_all(&[1; 20]).await.unwrap();
        assert_eq!(left.read(&mut buf).await.unwrap(), 16);
        assert_eq!(left.read(&mut buf).await.unwrap(), 4);
        right.write_all(b"end").await.unwrap();
        right.shutdown_write().unwrap();
        assert_eq!(left.read(&mut buf).await.unwrap(), 3);
        assert_eq!(left.read(&mut buf).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn quiet_until_the_peer_says_something_or_leaves() {
        let (left, right) = pair().await;
        assert!(left.is_quiet());
        drop(right);
        left.readable().await.unwrap();
        assert!(!left.is_quiet());
    }
}
