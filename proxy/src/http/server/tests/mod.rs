//! Both servers over loopback sockets, with a handler that does what the path says.

mod ground;
mod h1;
mod h2;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::config::listener::{
    ChainMatch, ConnectionInputs, Direction, DownstreamTransport, FilterChain, Inspect, Listener,
    NetworkAction, TransportProtocol,
};
use crate::http::body::Frame;
use crate::http::test_support;
use crate::identity::vouch::Vouch;
use crate::listener::connection::ListenerSource;

/// Whatever takes longer has failed; generous, because the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(30);

/// A server on a port of its own.
struct Site {
    address: SocketAddr,
    worker: Arc<Worker>,
    events: mpsc::UnboundedReceiver<String>,
    ended: mpsc::UnboundedReceiver<Ended>,
}

impl Site {
    async fn start(manager: HttpManager) -> Self {
        Self::vouched(manager, None).await
    }

    /// Clients are believed by `vouch`.
    async fn vouched(manager: HttpManager, vouch: Option<Arc<Vouch>>) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let worker = Worker::here(Arc::default());
        let (note, events) = mpsc::unbounded_channel();
        let (report, ended) = mpsc::unbounded_channel();
        let (listener, chain) = listener(address, manager);
        let handler = Paths { note };
        tokio::spawn({
            let worker = worker.clone();
            async move {
                while let Ok((tcp, peer)) = socket.accept().await {
                    tcp.set_nodelay(true).unwrap();
                    let inputs = ConnectionInputs {
                        source: peer,
                        destination: address,
                        transport: TransportProtocol::RawBuffer,
                        server_name: None,
                        application_protocols: Vec::new(),
                    };
                    let connection = Connection::new(
                        &worker,
                        &listener,
                        ListenerSource::Named("test".into()),
                        chain.clone(),
                        0,
                        inputs,
                        address,
                    );
                    let connection = connection.with_peer(vouch.clone(), None);
                    let (worker, handler, report) = (worker.clone(), handler.clone(), report.clone());
                    tokio::spawn(async move {
                        let connection = Arc::new(connection);
                        let ended = serve(&worker, &connection, tcp.into(), BytesMut::new(), &handler).await;
                        let _ = report.send(ended);
                    });
                }
            }
        });
        Self { address, worker, events, ended }
    }

    async fn client(&self) -> Client {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Client(tcp)
    }

    /// The next thing that the handler noted.
    async fn event(&mut self) -> String {
        tokio::time::timeout(DEADLINE, self.events.recv()).await.expect("an event").unwrap()
    }

    /// How the next connection to end did.
    async fn ended(&mut self) -> Ended {
        tokio::time::timeout(DEADLINE, self.ended.recv()).await.expect("an end").unwrap()
    }
}

fn listener(address: SocketAddr, manager: HttpManager) -> (Arc<Listener>, Arc<FilterChain>) {
    let chain = Arc::new(FilterChain {
        name: "test".into(),
        matches: ChainMatch::default(),
        transport: DownstreamTransport::Plaintext,
        action: NetworkAction::Http(Arc::new(manager)),
    });
    let listener = Arc::new(Listener {
        inspect: Inspect::default(),
        direction: Direction::Inbound,
        ..Listener::plain("test", address)
    });
    (listener, chain)
}

/// A raw client.
struct Client(TcpStream);

impl Client {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads as many bytes as `text` has, and compares.
    async fn expect(&mut self, text: &str) {
        let mut got = vec![0; text.len()];
        match tokio::time::timeout(DEADLINE, self.0.read_exact(&mut got)).await {
            Ok(Ok(_)) => assert_eq!(String::from_utf8_lossy(&got), text),
            Ok(Err(error)) => panic!("{error} in {:?}, wanted {text:?}", String::from_utf8_lossy(&got)),
            Err(_) => panic!("only {:?} of {text:?}", String::from_utf8_lossy(&got)),
        }
    }

    /// Reads to the end; an error counts as the end, and is reported.
    async fn rest(&mut self) -> (String, Option<std::io::ErrorKind>) {
        let mut got = Vec::new();
        let read = tokio::time::timeout(DEADLINE, self.0.read_to_end(&mut got)).await.expect("an end");
        (String::from_utf8_lossy(&got).into_owned(), read.err().map(|error| error.kind()))
    }
}

/// Does what the path says, and tells about it.
#[derive(Clone)]
struct Paths {
    note: mpsc::UnboundedSender<String>,
}

impl Paths {
    fn tell(&self, what: impl Into<String>) {
        let _ = self.note.send(what.into());
    }

    async fn serve(
        &self,
        head: &RequestHead,
        body: &mut RequestBody<'_>,
        responder: &mut Responder<'_>,
    ) -> Result<(), ProxyError> {
        match head.path() {
            b"/echo" => echo(body, responder, body.length()).await,
            b"/echo-chunked" => echo(body, responder, BodyLength::Unknown).await,
            b"/early" => reply(responder, 413, "too large").await,
            b"/cut" => {
                responder.send_head(&ResponseHead::new(200), BodyLength::Known(10)).await?;
                responder.send_data(Bytes::from_static(b"123")).await
            }
            b"/cut-chunked" => {
                responder.send_head(&ResponseHead::new(200), BodyLength::Unknown).await?;
                responder.send_data(Bytes::from_static(b"123")).await?;
                responder.flush().await?;
                responder.abort();
                Ok(())
            }
            b"/nothing" => Ok(()),
            b"/continue" => {
                responder.send_informational(&ResponseHead::new(100)).await?;
                echo(body, responder, body.length()).await
            }
            b"/hints" => {
                let mut hints = ResponseHead::new(103);
                hints.fields.append("link", b"</a>");
                responder.send_informational(&hints).await?;
                reply(responder, 200, "hinted").await
            }
            b"/upgrade" => self.upgrade(head, body, responder).await,
            b"/hang" => {
                self.tell("hanging");
                let error =
                    tokio::select! { error = body.gone() => error, error = responder.gone() => error };
                self.tell(format!("{:?}", error.kind));
                Err(error)
            }
            b"/trickle" => {
                responder.send_head(&ResponseHead::new(200), BodyLength::Unknown).await?;
                for piece in ["a", "b", "c"] {
                    responder.send_data(Bytes::from_static(piece.as_bytes())).await?;
                    responder.flush().await?;
                    self.tell("trickled");
                }
                responder.finish().await
            }
            _ if head.method() == crate::http::head::Method::Connect => {
                responder.send_head(&ResponseHead::new(200), BodyLength::Empty).await?;
                assert!(responder.hand_over());
                responder.finish().await
            }
            _ => {
                let text = format!("{} {}", head.method_str(), String::from_utf8_lossy(head.path()));
                reply(responder, 200, &text).await
            }
        }
    }

    async fn upgrade(
        &self,
        head: &RequestHead,
        body: &mut RequestBody<'_>,
        responder: &mut Responder<'_>,
    ) -> Result<(), ProxyError> {
        assert!(!body.upgrade(responder), "nothing was switched yet");
        if head.upgrade() == Some(b"raw") {
            let mut switching = ResponseHead::new(101);
            switching.fields.append("connection", b"Upgrade");
            switching.fields.append("upgrade", b"raw");
            responder.send_head(&switching, BodyLength::Empty).await?;
        } else {
            return reply(responder, 403, "").await;
        }
        responder.flush().await?;
        assert!(body.upgrade(responder));
        while let Some(Frame::Data(data)) = body.frame().await? {
            responder.send_data(data).await?;
            responder.flush().await?;
        }
        responder.finish().await
    }
}

impl Handler for Paths {
    async fn handle(
        &self,
        _: Arrival<'_>,
        head: &mut RequestHead,
        mut body: RequestBody<'_>,
        mut responder: Responder<'_>,
    ) {
        if let Err(error) = self.serve(head, &mut body, &mut responder).await {
            self.tell(format!("error {:?}", error.kind));
        }
    }

    async fn refuse(
        &self,
        _: Arrival<'_>,
        head: Option<&RequestHead>,
        error: ProxyError,
        mut responder: Responder<'_>,
    ) {
        let (status, text) = match error.kind {
            Kind::HeadTooLarge => (431, "large"),
            Kind::RequestTimeout => (408, "slow"),
            Kind::LowVersion => (426, ""),
            Kind::MissingHost => (400, "host?"),
            Kind::TransferCoding => (501, "coding"),
            _ => (400, "bad"),
        };
        if error.kind == Kind::LowVersion {
            assert!(head.is_some(), "the head was read");
        }
        let _ = reply(&mut responder, status, text).await;
    }
}

async fn reply(responder: &mut Responder<'_>, status: u16, text: &str) -> Result<(), ProxyError> {
    let length = if text.is_empty() { BodyLength::Empty } else { BodyLength::Known(text.len() as u64) };
    responder.send_head(&ResponseHead::new(status), length).await?;
    responder.send_data(Bytes::copy_from_slice(text.as_bytes())).await?;
    responder.finish().await
}

async fn echo(
    body: &mut RequestBody<'_>,
    responder: &mut Responder<'_>,
    length: BodyLength,
) -> Result<(), ProxyError> {
    responder.send_head(&ResponseHead::new(200), length).await?;
    while let Some(frame) = body.frame().await? {
        match frame {
            Frame::Data(data) => responder.send_data(data).await?,
            Frame::Trailers(fields) => responder.send_trailers(fields),
        }
        responder.flush().await?;
    }
    responder.finish().await
}
