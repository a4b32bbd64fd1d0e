//! TLS over a socket, with the rules of [`Stream`](super::Stream): all operations take `&self`, and reads and writes don't wait.
//!
//! What was taken to be written may wait here, encrypted, while the socket takes no more: [`TlsStream::poll_write_ready`] is ready
//! only when it has left, and who waits to read sends it on as well. The lock is never contended: one task uses a connection.

use std::io::{self, BufRead as _, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, Reader, ServerConfig, ServerConnection,
};
use socket2::SockRef;
use tokio::net::TcpStream;

/// A connection whose ends speak TLS. Which of them we are makes no difference once the handshake is done.
#[derive(Debug)]
pub struct TlsStream {
    tcp: TcpStream,
    session: Mutex<Connection>,
}

/// The socket, as rustls reads and writes it.
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buf)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.try_write(buf)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends what is encrypted already.
fn send(session: &mut Connection, tcp: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        session.write_tls(&mut Raw(tcp))?;
    }
    Ok(())
}

/// Sends what goes now; what doesn't waits.
fn send_some(session: &mut Connection, tcp: &TcpStream) -> io::Result<()> {
    match send(session, tcp) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        done => done,
    }
}

/// Decrypts what came. A peer that breaks the protocol is told why, as far as that goes.
fn decrypt(session: &mut Connection, tcp: &TcpStream) -> io::Result<()> {
    let done = session.process_new_packets();
    let sent = send_some(session, tcp);
    done.map_err(invalid)?;
    sent
}

/// As an error of the stream.
pub(crate) fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl TlsStream {
    /// Completes a handshake as the server. `received` was read of the client's side already.
    pub async fn accept(tcp: TcpStream, received: &[u8], config: Arc<ServerConfig>) -> io::Result<Self> {
        let session = ServerConnection::new(config).map_err(invalid)?;
        Self::handshake(tcp, received, session.into()).await
    }

    /// Completes a handshake as the client.
    pub async fn connect(
        tcp: TcpStream,
        config: Arc<ClientConfig>,
        server: ServerName<'static>,
    ) -> io::Result<Self> {
        let session = ClientConnection::new(config, server).map_err(invalid)?;
        Self::handshake(tcp, &[], session.into()).await
    }

    async fn handshake(tcp: TcpStream, mut received: &[u8], mut session: Connection) -> io::Result<Self> {
        loop {
            while session.wants_write() {
                tcp.writable().await?;
                send_some(&mut session, &tcp)?;
            }
            if !session.is_handshaking() && received.is_empty() {
                return Ok(Self { tcp, session: Mutex::new(session) });
            }
            if received.is_empty() {
                let read = session.read_tls(&mut Raw(&tcp));
                match read {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        tcp.readable().await?;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            } else {
                session.read_tls(&mut received)?;
            }
            decrypt(&mut session, &tcp)?;
        }
    }

    /// The certificates that the peer has shown, verified by now; its own first.
    pub fn peer_certificates(&self) -> Option<Box<[CertificateDer<'static>]>> {
        let session = self.session.lock();
        session.peer_certificates().map(|chain| chain.iter().map(|one| one.clone().into_owned()).collect())
    }

    /// True where no certificate was shown, but a session of before taken up.
    pub fn is_resumed(&self) -> bool {
        self.session.lock().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Moves the connection to the caller's runtime. Nothing may be reading or writing it.
    pub fn rehome(mut self) -> io::Result<Self> {
        // The socket under another number: what is registered with the other runtime goes with the old one.
        let socket = SockRef::from(&self.tcp).try_clone()?;
        self.tcp = TcpStream::from_std(socket.into())?;
        Ok(self)
    }

    /// Reads what is there. A peer that leaves without saying so ends in an error, since what it sent may be cut.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_with(|reader| reader.read(buf))
    }

    /// The same, into the spare capacity of `buf`.
    pub fn try_read_buf<B: BufMut>(&self, buf: &mut B) -> io::Result<usize> {
        self.read_with(|reader| {
            let decrypted = reader.fill_buf()?;
            let taken = decrypted.len().min(buf.chunk_mut().len());
            buf.put_slice(&decrypted[..taken]);
            reader.consume(taken);
            Ok(taken)
        })
    }

    fn read_with(&self, mut read: impl FnMut(&mut Reader<'_>) -> io::Result<usize>) -> io::Result<usize> {
        let mut session = self.session.lock();
        loop {
            match read(&mut session.reader()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            session.read_tls(&mut Raw(&self.tcp))?;
            decrypt(&mut session, &self.tcp)?;
        }
    }

    /// Takes what fits.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        self.try_write_vectored(&[IoSlice::new(buf)])
    }

    /// Takes what fits of several buffers.
    pub fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut session = self.session.lock();
        send(&mut session, &self.tcp)?;
        let taken = session.writer().write_vectored(bufs)?;
        send_some(&mut session, &self.tcp)?;
        Ok(taken)
    }

    /// Ready when a read would not block.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut session = self.session.lock();
        // Until the socket says that it takes no more, so that the task is woken when it does.
        while session.wants_write() && self.tcp.poll_write_ready(cx)?.is_ready() {
            send_some(&mut session, &self.tcp)?;
        }
        let decrypted = match session.process_new_packets() {
            Ok(state) => state.plaintext_bytes_to_read() > 0 || state.peer_has_closed(),
            Err(_) => true,
        };
        if decrypted { Poll::Ready(Ok(())) } else { self.tcp.poll_read_ready(cx) }
    }

    /// Ready when nothing waits any more, and a write would not block.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut session = self.session.lock();
        loop {
            ready!(self.tcp.poll_write_ready(cx))?;
            if !session.wants_write() {
                return Poll::Ready(Ok(()));
            }
            send_some(&mut session, &self.tcp)?;
        }
    }

    /// True where something waits for the socket.
    pub fn holds_back(&self) -> bool {
        self.session.lock().wants_write()
    }

    /// Says that nothing more comes, and sends FIN.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.say_goodbye()?;
        SockRef::from(&self.tcp).shutdown(Shutdown::Write)
    }

    fn say_goodbye(&self) -> io::Result<()> {
        let mut session = self.session.lock();
        session.send_close_notify();
        send_some(&mut session, &self.tcp)
    }

    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // A peer that hears nothing would take what it got for cut. Said twice is said once.
        let _ = self.say_goodbye();
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
