//! Queries for others: sent as they came, answered as they come back.
//!
//! A query goes over the transport that it came by, with a number of its own; over UDP each has a socket of its own, so that whoever wants to
//! slip a false answer in has to guess both. An answer must be from the server asked, with that number and the question that was asked.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::select_ok;
use hickory_resolver::proto::op::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Bytes of the head of a message.
const HEAD: usize = 12;

/// No server sends bigger ones.
const BIGGEST_DATAGRAM: u16 = 16_384;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// As a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

/// Other servers, and how to ask them.
#[derive(Debug)]
pub(super) struct Upstreams {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) timeout: Duration,
    pub(super) parallel: bool,
}

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("resolv.conf names no server")]
    NoServers,
    #[error("{0}: no answer within {1:?}")]
    Silent(SocketAddr, Duration),
    #[error("{0}: {1}")]
    Broken(SocketAddr, io::Error),
}

impl Upstreams {
    /// The first answer that comes: from one server after the other, beginning anywhere, or from all at once.
    pub(super) async fn ask(
        &self,
        bytes: &[u8],
        query: &Message,
        transport: Transport,
    ) -> Result<Vec<u8>, ForwardError> {
        if self.servers.is_empty() {
            return Err(ForwardError::NoServers);
        }
        if self.parallel {
            let all =
                self.servers.iter().map(|server| Box::pin(self.ask_one(*server, bytes, query, transport)));
            return select_ok(all).await.map(|(answer, _)| answer);
        }
        let first = rand::random::<u32>() as usize % self.servers.len();
        let (before, from) = self.servers.split_at(first);
        let mut failed = ForwardError::NoServers;
        for server in from.iter().chain(before) {
            match self.ask_one(*server, bytes, query, transport).await {
                Ok(answer) => return Ok(answer),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn ask_one(
        &self,
        server: SocketAddr,
        bytes: &[u8],
        query: &Message,
        transport: Transport,
    ) -> Result<Vec<u8>, ForwardError> {
        let mut sent = bytes.to_vec();
        set_id(&mut sent, rand::random());
        let asked = async {
            match transport {
                Transport::Udp => over_udp(server, &sent, query).await,
                Transport::Tcp => over_tcp(server, &sent, query).await,
            }
        };
        match timeout(self.timeout, asked).await {
            Ok(Ok(mut answer)) => {
                set_id(&mut answer, query.metadata.id);
                Ok(answer)
            }
            Ok(Err(error)) => Err(ForwardError::Broken(server, error)),
            Err(_) => Err(ForwardError::Silent(server, self.timeout)),
        }
    }
}

async fn over_udp(server: SocketAddr, sent: &[u8], query: &Message) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(sent).await?;
    // As much as the server may send to whoever asks.
    let mut answer = vec![0; usize::from(query.max_payload().min(BIGGEST_DATAGRAM))];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Anything else is late, or false: the true one may still come.
        if is_answer(sent, &answer[..length], query) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, sent: &[u8], query: &Message) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, sent).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if is_answer(sent, &answer, query) {
        return Ok(answer);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"))
}

/// A message on a connection has its length before it.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

/// True for an answer to what was sent: its number, and its question, or none with an error.
fn is_answer(sent: &[u8], answer: &[u8], query: &Message) -> bool {
    let (Some(head), Some(own)) = (answer.get(..HEAD), sent.get(..HEAD)) else { return false };
    let is_response = head[2] & 0x80 != 0;
    if head[..2] != own[..2] || !is_response {
        return false;
    }
    let (questions, code) = (u16::from_be_bytes([head[4], head[5]]), head[3] & 0x0f);
    if questions == 0 {
        return code != 0;
    }
    // The first question is never compressed: its labels, each with its length, the root, type and class.
    let labels: usize =
        query.queries.first().map_or(0, |q| q.name().iter().map(|label| label.len() + 1).sum());
    let question = HEAD..HEAD + labels + 1 + 4;
    let same = |a: &[u8], b: &[u8]| a.eq_ignore_ascii_case(b);
    questions == 1 && answer.get(question.clone()).zip(sent.get(question)).is_some_and(|(a, b)| same(a, b))
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::Query;
    use hickory_resolver::proto::rr::{Name, RecordType};

    use super::*;

    fn message(id: u16, name: &str) -> Message {
        let mut message = Message::query();
        message.metadata.id = id;
        message.queries = vec![Query::query(Name::from_ascii(name).expect("a name"), RecordType::A)];
        message
    }

    #[test]
    fn only_an_answer_to_what_was_asked_counts() {
        let query = message(7, "a.example.");
        let sent = query.to_vec().expect("bytes");
        let answer = |id: u16, name: &str, is_response: bool| {
            let mut bytes = message(id, name).to_vec().expect("bytes");
            bytes[2] |= if is_response { 0x80 } else { 0 };
            bytes
        };
        for (what, bytes, counts) in [
            ("the answer", answer(7, "a.example.", true), true),
            ("its letters may differ", answer(7, "A.EXAMPLE.", true), true),
            ("another number", answer(8, "a.example.", true), false),
            ("another question", answer(7, "b.example.", true), false),
            ("a query", answer(7, "a.example.", false), false),
            ("half a head", answer(7, "a.example.", true)[..11].to_vec(), false),
            ("nothing", Vec::new(), false),
        ] {
            assert_eq!(is_answer(&sent, &bytes, &query), counts, "{what}");
        }
    }
}
