//! Requests against scripted upstreams on real sockets: what the two halves see, what is safe to send again, and which
//! connections are used again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::balance::Tried;
use super::choose::ChooseBy;
use super::stream::{Receiver, Sender, UpstreamStream};
use crate::config::cluster::{Cluster, ClusterHandle, ClusterSpec, Discovery, UpstreamProtocol};
use crate::config::endpoint::{EndpointSet, EndpointSpec};
use crate::error::{Kind, Progress, ProxyError};
use crate::http::body::{BodyLength, Frame};
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead, Version};
use crate::worker::Worker;

const PATIENCE: Duration = Duration::from_secs(60);

/// What came back.
#[derive(Debug, Default)]
struct Answer {
    informational: Vec<u16>,
    status: u16,
    body: Vec<u8>,
    trailers: Option<Fields>,
    reused: bool,
}

/// A request to send.
#[derive(Debug, Clone, Default)]
struct Ask {
    head: RequestHead,
    pieces: Vec<Bytes>,
    trailers: Option<Fields>,
    length: Option<BodyLength>,
}

impl Ask {
    fn get(path: &str) -> Self {
        let mut head = RequestHead::new();
        head.set_path(path.as_bytes());
        head.set_authority(b"a.example");
        Self { head, ..Self::default() }
    }

    fn post(pieces: &[&'static [u8]]) -> Self {
        let mut ask = Self::get("/post");
        assert!(ask.head.set_method(b"POST"));
        ask.pieces = pieces.iter().map(|piece| Bytes::from_static(piece)).collect();
        ask.length = Some(BodyLength::Unknown);
        ask
    }

    async fn upload(&self, sender: &mut Sender<'_>) -> Result<(), ProxyError> {
        sender.send_head(&self.head, self.length.unwrap_or(BodyLength::Empty)).await?;
        for piece in &self.pieces {
            sender.send_data(piece.clone()).await?;
            sender.flush().await?;
        }
        if let Some(trailers) = &self.trailers {
            sender.send_trailers(trailers.clone());
        }
        sender.finish().await
    }
}

async fn download(receiver: &mut Receiver<'_>, answer: &mut Answer) -> Result<(), ProxyError> {
    let mut head = ResponseHead::default();
    loop {
        receiver.recv_head(&mut head).await?;
        if !head.is_informational() || head.status == 101 {
            break;
        }
        answer.informational.push(head.status);
    }
    answer.status = head.status;
    while let Some(frame) = receiver.frame().await? {
        match frame {
            Frame::Data(data) => answer.body.extend_from_slice(&data),
            Frame::Trailers(fields) => answer.trailers = Some(fields),
        }
    }
    assert!(receiver.is_end());
    Ok(())
}

/// A worker with a cluster.
struct Bench {
    worker: Arc<Worker>,
    cluster: Arc<Cluster>,
}

impl Bench {
    fn new(addresses: &[SocketAddr], protocol: UpstreamProtocol) -> Self {
        let spec = ClusterSpec { protocol, ..ClusterSpec::plain("c", Discovery::Static) };
        let bench = Self { worker: Worker::here(Arc::default()), cluster: Cluster::new(spec, None) };
        bench.endpoints(addresses);
        ClusterHandle::empty("c").publish(bench.cluster.clone());
        bench
    }

    fn endpoints(&self, addresses: &[SocketAddr]) {
        let specs = addresses.iter().map(|&address| (address, EndpointSpec::default()));
        let settings = self.cluster.spec.set_settings(0);
        self.cluster.set_endpoints(Arc::new(EndpointSet::build(specs, &self.cluster.live, settings)));
    }

    async fn open(&self) -> Result<UpstreamStream, ProxyError> {
        let (worker, cluster) = (&self.worker, &self.cluster);
        let random = || worker.random();
        let endpoint =
            worker.pool.choose(cluster, ChooseBy::default(), &mut Tried::default(), random).await?;
        UpstreamStream::open(worker, cluster, endpoint, Version::Http11, b"a").await
    }

    /// A whole exchange; on failure, the error and how far the stream had come.
    async fn run(&self, ask: &Ask) -> Result<Answer, ProxyError> {
        let mut stream = self.open().await?;
        let mut answer = Answer { reused: stream.is_reused(), ..Answer::default() };
        let (mut sender, mut receiver) = stream.split();
        let outcome = {
            let mut upload = std::pin::pin!(ask.upload(&mut sender));
            let mut download = std::pin::pin!(download(&mut receiver, &mut answer));
            let mut uploaded = false;
            timeout(PATIENCE, async {
                loop {
                    tokio::select! {
                        biased;
                        outcome = &mut download => return outcome,
                        outcome = &mut upload, if !uploaded => match outcome {
                            Ok(()) => uploaded = true,
                            failed => return failed,
                        },
                    }
                }
            })
            .await
            .expect("it ends")
        };
        outcome?;
        stream.finish();
        Ok(answer)
    }

    fn idle(&self) -> u32 {
        self.cluster.live.connections()
    }
}

/// An upstream that says `replies` in turn, each after it has read a request up to `reads`, then closes.
async fn scripted(script: Vec<Step>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        for step in script {
            match step {
                Step::Read(until) => read_until(&mut stream, &mut seen, until).await,
                Step::Say(bytes) => stream.write_all(bytes).await.unwrap(),
                Step::Reset => {
                    return socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                }
                Step::Eof => {
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                }
            }
        }
    });
    address
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Reads until these bytes.
    Read(&'static [u8]),
    Say(&'static [u8]),
    Reset,
    /// Reads to the end.
    Eof,
}

use Step::{Eof, Read, Reset, Say};

async fn read_until(stream: &mut TcpStream, seen: &mut Vec<u8>, until: &[u8]) {
    let mut byte = [0];
    while !seen.ends_with(until) {
        stream.read_exact(&mut byte).await.unwrap();
        seen.push(byte[0]);
    }
    seen.clear();
}

const HEAD_END: &[u8] = b"\r\n\r\n";

#[tokio::test]
async fn a_clean_exchange_leaves_its_connection_for_the_next() {
    let address = scripted(vec![
        Read(HEAD_END),
        Say(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"),
        Read(b"5\r\nhello\r\n5\r\nworld\r\n0\r\nx-sum: 9\r\n\r\n"),
        Say(b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n"),
        Read(HEAD_END),
        Say(b"HTTP/1.1 204 No Content\r\n\r\n"),
        Eof,
    ])
    .await;
    let bench = Bench::new(&[address], UpstreamProtocol::Http1);
    let answer = bench.run(&Ask::get("/1")).await.unwrap();
    assert_eq!((answer.status, &answer.body[..], answer.reused), (200, &b"hello"[..], false));
    assert_eq!(answer.informational, [103]);

    let mut post = Ask::post(&[b"hello", b"world"]);
    let mut trailers = Fields::new();
    trailers.append("x-sum", b"9");
    post.trailers = Some(trailers);
    let answer = bench.run(&post).await.unwrap();
    assert_eq!((answer.status, &answer.body[..], answer.reused), (201, &b"abc"[..], true));
    assert_eq!(answer.trailers.unwrap().get("x-t"), Some(&b"1"[..]));

    let answer = bench.run(&Ask::get("/3")).await.unwrap();
    assert_eq!((answer.status, answer.reused), (204, true));
    assert_eq!(bench.worker.kept_buffers(), 2, "buffers went back");
    let endpoint = bench.cluster.live.endpoint(address);
    assert_eq!((endpoint.active(), endpoint.counters.successes.load(SeqCst)), (0, 3));
}

#[tokio::test]
async fn failures_say_whose_and_whether_anything_was_sent() {
    use Kind::{UpstreamClosed, UpstreamProtocol as Protocol};
    use Progress::{ResponseStarted, Sent};
    let cases: Vec<(Vec<Step>, Kind, Progress)> = vec![
        (vec![Read(HEAD_END)], UpstreamClosed, Sent),
        (vec![Read(HEAD_END), Reset], UpstreamClosed, Sent),
        (vec![Read(HEAD_END), Say(b"HTTP/1.1 200 OK\r\nconte")], UpstreamClosed, Sent),
        (vec![Read(HEAD_END), Say(b"SSH-2.0-OpenSSH\r\n\r\n"), Eof], Protocol, Sent),
        (
            vec![Read(HEAD_END), Say(b"HTTP/1.1 101 Sure\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"), Eof],
            Protocol,
            Sent,
        ),
        (
            vec![Read(HEAD_END), Say(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel")],
            UpstreamClosed,
            ResponseStarted,
        ),
        (
            vec![Read(HEAD_END), Say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"), Eof],
            Protocol,
            ResponseStarted,
        ),
    ];
    for (script, kind, progress) in cases {
        let text = format!("{script:?}");
        let bench = Bench::new(&[scripted(script).await], UpstreamProtocol::Http1);
        let error = bench.run(&Ask::get("/")).await.expect_err("it fails");
        assert_eq!((error.kind, error.progress), (kind, progress), "{text}: {error}");
        assert_eq!(bench.idle(), 0, "{text}: the connection is gone");
    }
}

#[tokio::test]
async fn what_is_not_clean_is_not_used_again() {
    let cases: Vec<(&[u8], bool)> = vec![
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", false),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", false),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n", false),
    ];
    for (reply, kept) in cases {
        let address = scripted(vec![Read(HEAD_END), Say(reply), Eof]).await;
        let bench = Bench::new(&[address], UpstreamProtocol::Http1);
        assert_eq!(bench.run(&Ask::get("/")).await.unwrap().status, 200);
        assert_eq!(bench.idle() == 1, kept, "{}", reply.escape_ascii());
    }
    // Ends with the connection.
    let address = scripted(vec![Read(HEAD_END), Say(b"HTTP/1.1 200 OK\r\n\r\nto the end")]).await;
    let bench = Bench::new(&[address], UpstreamProtocol::Http1);
    assert_eq!(bench.run(&Ask::get("/")).await.unwrap().body, b"to the end");
    assert_eq!(bench.idle(), 0);
}

#[tokio::test]
async fn an_early_answer_is_received_although_the_upload_goes_nowhere() {
    // The upstream reads the head only, answers, and closes while megabytes are on their way.
    let big: &'static [u8] = vec![7u8; 1 << 20].leak();
    let ask = Ask::post(&[big; 16]);
    let reply = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig";
    for end in [vec![], vec![Eof]] {
        let script = [vec![Read(HEAD_END), Say(reply)], end].concat();
        let bench = Bench::new(&[scripted(script).await], UpstreamProtocol::Http1);
        match bench.run(&ask).await {
            Ok(answer) => assert_eq!((answer.status, &answer.body[..]), (413, &b"big"[..])),
            // A close with unread bytes is a reset, which may destroy the answer on its way.
            Err(error) => assert_eq!(error.kind, Kind::UpstreamClosed),
        }
        assert_eq!(bench.idle(), 0, "half an upload: not used again");
    }
}

#[tokio::test]
async fn a_close_between_requests_costs_nothing() {
    // Each connection serves one request and is closed by the upstream while idle.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                read_until(&mut stream, &mut Vec::new(), HEAD_END).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            });
        }
    });
    let bench = Bench::new(&[address], UpstreamProtocol::Http1);
    let mut unsafe_failures = 0;
    for _ in 0..300 {
        match bench.run(&Ask::get("/")).await {
            Ok(answer) => assert_eq!(answer.status, 200),
            Err(error) => {
                // The close and our write crossed each other; at worst that is known to be so.
                assert_eq!(error.kind, Kind::UpstreamClosed, "{error}");
                unsafe_failures += usize::from(error.progress != Progress::NothingSent);
            }
        }
    }
    assert!(unsafe_failures <= 30, "{unsafe_failures} of 300 requests lost to the race");
}

#[tokio::test]
async fn after_101_both_directions_are_raw() {
    let address = scripted(vec![
        Read(HEAD_END),
        Say(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nfirst"),
        Read(b"ping"),
        Say(b"pong"),
        Eof,
        Say(b"last"),
    ])
    .await;
    let bench = Bench::new(&[address], UpstreamProtocol::Http1);
    let mut ask = Ask::get("/");
    ask.head.fields.append("connection", b"upgrade");
    ask.head.fields.append("upgrade", b"echo");
    let mut stream = bench.open().await.unwrap();
    {
        let (mut sender, mut receiver) = stream.split();
        ask.upload(&mut sender).await.unwrap();
        let mut head = ResponseHead::default();
        receiver.recv_head(&mut head).await.unwrap();
        assert_eq!(head.status, 101);
    }
    assert!(stream.upgrade() && stream.upgrade());
    let (mut sender, mut receiver) = stream.split();
    let mut got = Vec::new();
    sender.send_data(Bytes::from_static(b"ping")).await.unwrap();
    sender.flush().await.unwrap();
    while !got.ends_with(b"pong") {
        let Some(Frame::Data(data)) = receiver.frame().await.unwrap() else { panic!("ended: {got:?}") };
        got.extend_from_slice(&data);
    }
    sender.finish().await.unwrap();
    while let Some(Frame::Data(data)) = receiver.frame().await.unwrap() {
        got.extend_from_slice(&data);
    }
    assert_eq!(got, b"firstponglast");
    stream.finish();
    assert_eq!(bench.idle(), 0, "a tunnel's connection is not used again");
}

/// What the scripted HTTP/2 upstream does with a request.
#[derive(Debug, Clone, Copy)]
enum H2Step {
    Echo,
    Refuse,
    Reset,
    EarlyAnswer,
    CutOff,
    Hints,
}

async fn h2_upstream(step: H2Step) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let accepted = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            accepted.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, reply))) = connection.accept().await {
                    tokio::spawn(h2_answer(step, request, reply));
                }
            });
        }
    });
    (address, connections)
}

async fn h2_answer(
    step: H2Step,
    request: http::Request<h2::RecvStream>,
    mut reply: h2::server::SendResponse<Bytes>,
) {
    let response = || http::Response::new(());
    let mut body = request.into_body();
    match step {
        H2Step::Refuse => reply.send_reset(h2::Reason::REFUSED_STREAM),
        H2Step::Reset => reply.send_reset(h2::Reason::INTERNAL_ERROR),
        H2Step::EarlyAnswer => {
            let mut stream = reply.send_response(response(), false).unwrap();
            stream.send_data(Bytes::from_static(b"early"), true).unwrap();
            written().await;
            reply.send_reset(h2::Reason::NO_ERROR);
        }
        H2Step::CutOff => {
            let mut response = response();
            response.headers_mut().insert("content-length", 100.into());
            let mut stream = reply.send_response(response, false).unwrap();
            stream.send_data(Bytes::from_static(b"some"), false).unwrap();
            written().await;
            stream.send_reset(h2::Reason::NO_ERROR);
        }
        H2Step::Hints | H2Step::Echo => {
            if let H2Step::Hints = step {
                let mut hints = response();
                *hints.status_mut() = http::StatusCode::EARLY_HINTS;
                reply.send_informational(hints).unwrap();
            }
            let mut stream = reply.send_response(response(), false).unwrap();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                stream.send_data(data, false).unwrap();
            }
            match body.trailers().await.unwrap() {
                Some(trailers) => stream.send_trailers(trailers).unwrap(),
                None => stream.send_data(Bytes::new(), true).unwrap(),
            }
        }
    }
}

/// A reset throws away what `h2` has not written yet: lets the connection's task, which shares our thread, write.
async fn written() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn http2_carries_bodies_trailers_and_hints() {
    let (address, connections) = h2_upstream(H2Step::Hints).await;
    let bench = Bench::new(&[address], UpstreamProtocol::Http2);
    let big: &'static [u8] = (0..=255u8).cycle().take(3 << 20).collect::<Vec<_>>().leak();
    let mut ask = Ask::post(&[b"small", big, b"end"]);
    let mut trailers = Fields::new();
    trailers.append("x-sum", b"9");
    ask.trailers = Some(trailers);
    for reused in [false, true] {
        let answer = bench.run(&ask).await.unwrap();
        assert_eq!((answer.status, answer.reused), (200, reused));
        assert_eq!(answer.informational, [103]);
        assert!(answer.body == [b"small", big, b"end"].concat());
        assert_eq!(answer.trailers.unwrap().get("x-sum"), Some(&b"9"[..]));
    }
    assert_eq!(bench.run(&Ask::get("/")).await.unwrap().body, b"");
    assert_eq!(connections.load(SeqCst), 1);
    assert_eq!(bench.cluster.live.active_requests(), 0);
}

#[tokio::test]
async fn http2_failures_say_whether_the_request_was_processed() {
    let cases = [
        (H2Step::Refuse, Kind::RefusedStream, Progress::NothingSent),
        (H2Step::Reset, Kind::UpstreamReset, Progress::Sent),
        (H2Step::CutOff, Kind::UpstreamReset, Progress::ResponseStarted),
    ];
    for (step, kind, progress) in cases {
        let bench = Bench::new(&[h2_upstream(step).await.0], UpstreamProtocol::Http2);
        let error = bench.run(&Ask::get("/")).await.expect_err("it fails");
        assert_eq!((error.kind, error.progress), (kind, progress), "{step:?}: {error}");
    }
    let bench = Bench::new(&[h2_upstream(H2Step::EarlyAnswer).await.0], UpstreamProtocol::Http2);
    let big: &'static [u8] = vec![7u8; 1 << 20].leak();
    let answer = bench.run(&Ask::post(&[big; 4])).await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"early"[..]));
}

#[tokio::test]
async fn streams_above_a_goaway_were_not_processed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bench = Bench::new(&[listener.local_addr().unwrap()], UpstreamProtocol::Http2);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // SETTINGS; then, when the request is there, GOAWAY with last stream 0.
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let mut seen = Vec::new();
        let mut buf = [0; 1024];
        while !seen.windows(9).any(|frame| frame[3] == 1 && frame[5..] == [0, 0, 0, 1]) {
            let read = stream.read(&mut buf).await.unwrap();
            seen.extend_from_slice(&buf[..read]);
        }
        stream.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await.unwrap();
        let _ = stream.read_to_end(&mut seen).await;
    });
    let error = bench.run(&Ask::get("/")).await.expect_err("refused");
    assert_eq!((error.kind, error.progress), (Kind::RefusedStream, Progress::NothingSent), "{error}");
}

#[tokio::test]
async fn a_request_that_timed_out_doubts_its_connection() {
    // Reads, and never says a word.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let bench = Bench::new(&[address], UpstreamProtocol::Http2);
    let mut stream = bench.open().await.unwrap();
    let (mut sender, mut receiver) = stream.split();
    Ask::get("/").upload(&mut sender).await.unwrap();
    let mut head = ResponseHead::default();
    assert!(timeout(Duration::from_millis(20), receiver.recv_head(&mut head)).await.is_err());
    stream.timed_out();
    let other = bench.open().await.unwrap();
    assert!(!other.is_reused(), "a new connection");
    let error = timeout(PATIENCE, async {
        let (_, mut receiver) = stream.split();
        receiver.recv_head(&mut head).await.expect_err("the connection is dropped")
    });
    assert_eq!(error.await.unwrap().kind, Kind::UpstreamClosed);
    assert_eq!(bench.cluster.live.endpoint(address).counters.timeouts.load(SeqCst), 1);
}

#[tokio::test]
async fn endpoints_come_and_go_under_load_without_a_failure() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let addresses = match protocol {
            UpstreamProtocol::Http2 => [h2_upstream(H2Step::Echo).await.0, h2_upstream(H2Step::Echo).await.0],
            _ => [h1_echo().await, h1_echo().await],
        };
        let bench = Arc::new(Bench::new(&addresses, protocol));
        let done = Arc::new(AtomicUsize::new(0));
        let clients = (0..8).map(|_| {
            let (bench, done) = (bench.clone(), done.clone());
            tokio::spawn(async move {
                for _ in 0..100 {
                    let answer = bench.run(&Ask::post(&[b"some", b"thing"])).await.expect("no failure");
                    assert_eq!((answer.status, &answer.body[..]), (200, &b"something"[..]));
                    done.fetch_add(1, SeqCst);
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        let deadline = Instant::now() + PATIENCE;
        for turn in 0.. {
            bench.endpoints(&addresses[turn % 2..turn % 2 + 1]);
            tokio::time::sleep(Duration::from_millis(1)).await;
            if done.load(SeqCst) == 800 {
                break;
            }
            assert!(
                Instant::now() < deadline
                    && !clients.iter().any(|task| task.is_finished() && done.load(SeqCst) == 0)
            );
        }
        for client in clients {
            client.await.unwrap();
        }
        assert_eq!(bench.cluster.live.active_requests(), 0);
    }
}

/// Answers chunked requests with their body.
async fn h1_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                let mut byte = [0];
                while stream.read_exact(&mut byte).await.is_ok() {
                    seen.push(byte[0]);
                    if seen.ends_with(b"\r\n0\r\n\r\n") {
                        let body = seen.windows(4).position(|end| end == HEAD_END).unwrap() + 4;
                        let reply = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", &seen[body..]]
                            .concat();
                        stream.write_all(&reply).await.unwrap();
                        seen.clear();
                    }
                }
            });
        }
    });
    address
}
