//! Connections that must say something soon: a client that connects and is silent, or stops in the middle of HTTP/2's preface, would
//! hold its connection for ever, and the end of the server with it. After the preface HTTP/2's own pings find out who is gone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// The preface must have come by then.
const LIMIT: Duration = Duration::from_secs(10);
/// Length of HTTP/2's connection preface (RFC 9113, 3.4).
const PREFACE: usize = 24;

/// A connection whose reads fail where the preface doesn't come in time.
#[derive(Debug)]
pub struct Prefaced<S> {
    stream: S,
    awaited: Option<Awaited>,
}

#[derive(Debug)]
struct Awaited {
    bytes: usize,
    limit: Pin<Box<Sleep>>,
}

impl<S> Prefaced<S> {
    /// A connection that has just come.
    pub fn new(stream: S) -> Self {
        let awaited = Awaited { bytes: PREFACE, limit: Box::pin(tokio::time::sleep(LIMIT)) };
        Self { stream, awaited: Some(awaited) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefaced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let this = &mut *self;
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            if let Some(awaited) = &mut this.awaited {
                awaited.bytes = awaited.bytes.saturating_sub(buf.filled().len() - before);
            }
            this.awaited.take_if(|awaited| awaited.bytes == 0);
            return Poll::Ready(read);
        }
        let Some(awaited) = &mut this.awaited else { return Poll::Pending };
        ready!(awaited.limit.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefaced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: Connected> Connected for Prefaced<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection_before_its_preface_alone() {
        for (said, stays) in
            [("", false), ("PRI * HTTP/2.0\r\n", false), ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true)]
        {
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(said.as_bytes()).await.expect("room");
            let mut server = Prefaced::new(server);
            let reading = async {
                let mut read = Vec::new();
                server.read_to_end(&mut read).await
            };
            match tokio::time::timeout(LIMIT * 2, reading).await {
                Ok(ended) => {
                    assert!(!stays, "{said:?}");
                    assert_eq!(ended.expect_err("silence").kind(), io::ErrorKind::TimedOut);
                }
                Err(_) => assert!(stays, "{said:?}"),
            }
        }
    }
}
