//! HTTP/2, with the client of the `h2` crate.

use std::future::poll_fn;

use ::h2::client::SendRequest;
use ::h2::{Reason, RecvStream};
use osier_core::drain::Phase;

use super::*;
use crate::config::listener::Codec;

pub(super) fn manager() -> HttpManager {
    HttpManager { codec: Codec::Auto, ..test_support::manager() }
}

/// A client, and the end of its connection.
pub(super) async fn client(
    site: &Site,
) -> (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), ::h2::Error>>) {
    let tcp = TcpStream::connect(site.address).await.unwrap();
    let (client, connection) = ::h2::client::handshake(tcp).await.unwrap();
    let driver = tokio::spawn(connection);
    (client, driver)
}

pub(super) fn get(path: &str) -> http::Request<()> {
    http::Request::builder().uri(format!("http://x{path}")).body(()).unwrap()
}

pub(super) fn post(path: &str) -> http::Request<()> {
    http::Request::builder().method("POST").uri(format!("http://x{path}")).body(()).unwrap()
}

pub(super) async fn read(mut body: RecvStream) -> Result<(Vec<u8>, Option<http::HeaderMap>), ::h2::Error> {
    let mut data = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len()).unwrap();
        data.extend_from_slice(&piece);
    }
    Ok((data, body.trailers().await?))
}

pub(super) async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("in time")
}

#[tokio::test]
async fn streams_are_served_side_by_side() {
    let site = Site::start(manager()).await;
    let (mut client, _driver) = client(&site).await;
    let mut replies = Vec::new();
    for i in 0..200 {
        client = in_time(client.ready()).await.unwrap();
        let (reply, _) = client.send_request(get(&format!("/{i}")), true).unwrap();
        replies.push(reply);
    }
    for (i, reply) in replies.into_iter().enumerate() {
        let reply = in_time(reply).await.unwrap();
        assert_eq!(reply.status(), 200);
        let text = format!("GET /{i}");
        assert_eq!(reply.headers()["content-length"], text.len().to_string());
        assert_eq!(in_time(read(reply.into_body())).await.unwrap().0, text.as_bytes());
    }
}

#[tokio::test]
async fn bodies_and_trailers_come_back() {
    let site = Site::start(manager()).await;
    let (client, _driver) = client(&site).await;
    let body: Vec<u8> = (0..2_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (reply, mut send) = client.ready().await.unwrap().send_request(post("/echo"), false).unwrap();
    let upload = async {
        let mut rest = Bytes::from(body.clone());
        while !rest.is_empty() {
            send.reserve_capacity(rest.len());
            let room = poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
            send.send_data(rest.split_to(room), false).unwrap();
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "5".parse().unwrap());
        trailers.insert("content-length", "5".parse().unwrap());
        send.send_trailers(trailers).unwrap();
    };
    let download = async { read(reply.await.unwrap().into_body()).await.unwrap() };
    let ((), (data, trailers)) = in_time(async { tokio::join!(upload, download) }).await;
    assert!(data == body);
    let trailers = trailers.unwrap();
    assert_eq!(trailers["x-sum"], "5");
    assert!(!trailers.contains_key("content-length"), "trailers say nothing of framing");
}

#[tokio::test]
async fn an_early_answer_ends_the_stream_and_only_that() {
    let site = Site::start(manager()).await;
    let (mut client, _driver) = client(&site).await;
    let (reply, mut send) = client.send_request(post("/early"), false).unwrap();
    let reply = in_time(reply).await.unwrap();
    assert_eq!(reply.status(), 413);
    assert_eq!(in_time(read(reply.into_body())).await.unwrap().0, b"too large");
    let reason = in_time(poll_fn(|cx| send.poll_reset(cx))).await.unwrap();
    assert_eq!(reason, Reason::NO_ERROR);
    let (reply, _) = client.send_request(get("/a"), true).unwrap();
    assert_eq!(in_time(reply).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_reply_that_is_cut_off_is_reset() {
    let site = Site::start(manager()).await;
    let (mut client, _driver) = client(&site).await;
    for path in ["/cut", "/cut-chunked"] {
        let (reply, _) = client.send_request(get(path), true).unwrap();
        let outcome = in_time(async { read(reply.await?.into_body()).await }).await;
        assert_eq!(outcome.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR), "{path}");
    }
    let (reply, _) = client.send_request(get("/nothing"), true).unwrap();
    assert_eq!(in_time(reply).await.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
}

#[tokio::test]
async fn bodyless_replies_have_no_data() {
    let site = Site::start(manager()).await;
    let (mut client, _driver) = client(&site).await;
    let head = http::Request::builder().method("HEAD").uri("http://x/a").body(()).unwrap();
    let (reply, _) = client.send_request(head, true).unwrap();
    let reply = in_time(reply).await.unwrap();
    assert_eq!(reply.headers()["content-length"], "7");
    assert!(reply.body().is_end_stream());
}

#[tokio::test]
async fn an_extended_connect_carries_raw_bytes() {
    let mut manager = manager();
    manager.http2.allow_connect = true;
    let site = Site::start(manager).await;
    let (mut client, _driver) = client(&site).await;
    // The setting has to arrive before it may be used.
    let (reply, _) = client.send_request(get("/a"), true).unwrap();
    in_time(reply).await.unwrap();
    assert!(client.is_extended_connect_protocol_enabled());
    let mut request = http::Request::builder().method("CONNECT").uri("http://x/upgrade").body(()).unwrap();
    request.extensions_mut().insert(::h2::ext::Protocol::from_static("raw"));
    let (reply, mut send) = client.send_request(request, false).unwrap();
    let reply = in_time(reply).await.unwrap();
    assert_eq!(reply.status(), 200);
    assert!(!reply.headers().contains_key("content-length"));
    let mut body = reply.into_body();
    for piece in ["one", "two"] {
        send.send_data(Bytes::from_static(piece.as_bytes()), false).unwrap();
        assert_eq!(in_time(body.data()).await.unwrap().unwrap(), piece);
    }
    send.send_data(Bytes::new(), true).unwrap();
    assert!(in_time(read(body)).await.unwrap().0.is_empty());
}

#[tokio::test]
async fn interim_replies_come_before_the_reply() {
    let site = Site::start(manager()).await;
    let (mut client, _driver) = client(&site).await;
    let (mut reply, _) = client.send_request(get("/hints"), true).unwrap();
    let hints = in_time(poll_fn(|cx| reply.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!((hints.status().as_u16(), &hints.headers()["link"]), (103, &"</a>".parse().unwrap()));
    assert_eq!(in_time(reply).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_reset_is_noticed() {
    let mut site = Site::start(manager()).await;
    let (mut client, _driver) = client(&site).await;
    let (_reply, mut send) = client.send_request(post("/hang"), false).unwrap();
    assert_eq!(site.event().await, "hanging");
    send.send_reset(Reason::CANCEL);
    assert_eq!(site.event().await, "DownstreamClosed");
    let (_reply, _) = client.send_request(get("/hang"), true).unwrap();
    assert_eq!(site.event().await, "error DownstreamClosed");
    assert_eq!(site.event().await, "hanging");
    drop((client, _reply));
    _driver.abort();
    assert_eq!(site.event().await, "DownstreamClosed");
}

#[tokio::test]
async fn invalid_requests_end_their_stream() {
    let site = Site::start(manager()).await;
    let (mut client, _driver) = client(&site).await;
    let mut many = get("/a");
    for i in 0..101 {
        let name = http::HeaderName::try_from(format!("x-{i}")).unwrap();
        many.headers_mut().insert(name, "1".parse().unwrap());
    }
    let (reply, _) = client.send_request(many, true).unwrap();
    assert_eq!(in_time(reply).await.unwrap_err().reason(), Some(Reason::ENHANCE_YOUR_CALM));
    let user = http::Request::builder().uri("http://u@x/").body(()).unwrap();
    let (reply, _) = client.send_request(user, true).unwrap();
    assert_eq!(in_time(reply).await.unwrap_err().reason(), Some(Reason::PROTOCOL_ERROR));
    let mut long = get("/a");
    long.headers_mut().insert("x-long", "x".repeat(61 * 1024).parse().unwrap());
    let (reply, _) = client.send_request(long, true).unwrap();
    assert_eq!(in_time(reply).await.unwrap().status(), 431);
    let (reply, _) = client.send_request(get("/a"), true).unwrap();
    assert_eq!(in_time(reply).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let mut manager = manager();
    manager.limits.max_resets_per_second = 20;
    let mut site = Site::start(manager).await;
    let (mut client, driver) = client(&site).await;
    let flood = async {
        loop {
            client = match client.ready().await {
                Ok(client) => client,
                Err(error) => return error,
            };
            let Ok((_reply, mut send)) = client.send_request(post("/hang"), false) else { continue };
            send.send_reset(Reason::CANCEL);
            tokio::task::yield_now().await;
        }
    };
    let error = in_time(flood).await;
    let ended = in_time(driver).await.unwrap();
    let errors = [Some(error), ended.err()];
    // What was still on its way when the server closed makes the kernel send a reset, which may overtake the GOAWAY.
    let told = |error: &::h2::Error| error.reason() == Some(Reason::ENHANCE_YOUR_CALM) || error.is_io();
    assert!(errors.iter().flatten().any(told), "{errors:?}");
    assert!(matches!(site.ended().await, Ended::Closed));
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_closes() {
    let mut site = Site::start(manager()).await;
    let (mut client, driver) = client(&site).await;
    let (reply, mut send) = client.send_request(post("/echo"), false).unwrap();
    send.send_data(Bytes::from_static(b"before "), false).unwrap();
    let reply = in_time(reply).await.unwrap();
    site.worker.shared.drain.advance(Phase::Draining);
    // Refused once the final GOAWAY is there.
    let refused = async {
        while client.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    in_time(refused).await;
    send.send_data(Bytes::from_static(b"after"), true).unwrap();
    assert_eq!(in_time(read(reply.into_body())).await.unwrap().0, b"before after");
    drop(client);
    in_time(driver).await.unwrap().unwrap();
    assert!(matches!(site.ended().await, Ended::Closed));
}

#[tokio::test]
async fn an_idle_connection_is_told_to_go() {
    let mut manager = manager();
    manager.timeouts.idle = Some(Duration::from_millis(200));
    let mut site = Site::start(manager).await;
    let (client, driver) = client(&site).await;
    in_time(driver).await.unwrap().unwrap();
    drop(client);
    assert!(matches!(site.ended().await, Ended::Closed));
}

#[tokio::test]
async fn a_connection_has_a_last_request() {
    let mut manager = manager();
    manager.limits.max_requests_per_connection = Some(2);
    let site = Site::start(manager).await;
    let (mut client, driver) = client(&site).await;
    for _ in 0..2 {
        let (reply, _) = client.send_request(get("/a"), true).unwrap();
        assert_eq!(in_time(reply).await.unwrap().status(), 200);
    }
    in_time(driver).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_unanswered_ping_ends_the_connection() {
    let mut manager = manager();
    manager.http2.keepalive = Some((Duration::from_millis(50), Duration::from_millis(100)));
    let mut site = Site::start(manager).await;
    let mut client = site.client().await;
    client.send(PREFACE).await;
    client.send(b"\0\0\0\x04\0\0\0\0\0").await;
    assert!(matches!(site.ended().await, Ended::Closed));
}

#[tokio::test]
async fn the_preface_may_come_in_pieces() {
    let site = Site::start(manager()).await;
    let mut client = site.client().await;
    for byte in PREFACE {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    client.send(b"\0\0\0\x04\0\0\0\0\0").await;
    let mut header = [0; 9];
    in_time(client.0.read_exact(&mut header)).await.unwrap();
    assert_eq!(header[3], 4, "SETTINGS come first");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_says_its_preface_is_let_go() {
    for codec in [Codec::Auto, Codec::Http2] {
        let mut unlimited = manager();
        (unlimited.codec, unlimited.timeouts.idle) = (codec, None);
        let site = Site::start(unlimited).await;
        let mut client = site.client().await;
        client.send(&PREFACE[..20]).await;
        // Perhaps the server's own SETTINGS, then the end.
        client.0.read_to_end(&mut Vec::new()).await.expect("an end");
    }
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// `GET / HTTP/2`, `:authority: x`, as HPACK writes it.
const GET_HPACK: &[u8] = b"\x82\x84\x86\x01\x01x";

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, stream][..], payload].concat()
}

/// A client that writes frames as it likes.
async fn raw_client(site: &Site) -> Client {
    let mut client = site.client().await;
    client.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    client
}

/// Sends until the server ends the connection, which must come of itself: the client stays.
async fn flood(site: &mut Site, client: &mut Client, frames: usize, frame: &[u8]) {
    for _ in 0..frames {
        if client.0.write_all(frame).await.is_err() {
            break;
        }
    }
    assert!(matches!(site.ended().await, Ended::Closed));
}

#[tokio::test]
async fn a_header_block_without_end_ends_the_connection() {
    let fields = b"\0\x01a\x01b".repeat(3000);
    for (frames, block) in [(2000, &fields[..]), (100_000, b"")] {
        let mut site = Site::start(manager()).await;
        let mut client = raw_client(&site).await;
        client.send(frame(HEADERS, 0, 1, GET_HPACK)).await;
        flood(&mut site, &mut client, frames, &frame(CONTINUATION, 0, 1, block)).await;
        assert!(site.events.try_recv().is_err(), "nothing came of it");
    }
}

/// The kind of the first frame that says what becomes of a stream.
async fn answered(client: &mut Client) -> u8 {
    loop {
        let mut header = [0; 9];
        in_time(client.0.read_exact(&mut header)).await.unwrap();
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let mut payload = vec![0; length];
        in_time(client.0.read_exact(&mut payload)).await.unwrap();
        if matches!(header[3], HEADERS | RST_STREAM | GOAWAY) {
            return header[3];
        }
    }
}

#[tokio::test]
async fn a_path_without_a_slash_is_refused() {
    let mut site = Site::start(manager()).await;
    let mut client = raw_client(&site).await;
    client.send(frame(HEADERS, END_HEADERS | 1, 1, b"\x82\x04\x05admin\x86\x01\x01x")).await;
    assert_eq!(answered(&mut client).await, RST_STREAM);
    assert!(site.events.try_recv().is_err(), "nobody saw the request");
}

#[tokio::test]
async fn what_a_head_refers_to_counts_as_if_it_were_written_out() {
    let mut site = Site::start(manager()).await;
    let mut client = raw_client(&site).await;
    // One field of 127 bytes goes into the table, then thousands of bytes refer to it: 1 KiB stands for 150 KiB.
    let block = [GET_HPACK, b"\x40\x01a\x7e", &[b'v'; 126], &[0xbe; 1000]].concat();
    client.send(frame(HEADERS, END_HEADERS | 1, 1, &block)).await;
    let kind = answered(&mut client).await;
    // A 431, which the codec gives by itself.
    assert_eq!(kind, HEADERS);
    assert!(site.events.try_recv().is_err(), "nobody saw the request");
}
