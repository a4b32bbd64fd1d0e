//! HTTP/1, byte for byte.

use super::*;
use crate::config::listener::{Codec, HttpTimeouts};
use osier_core::drain::Phase;

fn manager() -> HttpManager {
    HttpManager { codec: Codec::Auto, ..test_support::manager() }
}

fn with_timeouts(change: impl FnOnce(&mut HttpTimeouts)) -> HttpManager {
    let mut manager = manager();
    change(&mut manager.timeouts);
    manager
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
const GOT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nGET /a";

#[tokio::test]
async fn requests_follow_each_other_on_one_connection() {
    let mut site = Site::start(manager()).await;
    let mut client = site.client().await;
    for _ in 0..3 {
        client.send(GET).await;
        client.expect(GOT).await;
    }
    client.send(GET.repeat(3)).await;
    client.expect(&GOT.repeat(3)).await;
    client.send("HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    client.expect("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n").await;
    client.send("GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let last = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nGET /a";
    assert_eq!(client.rest().await, (last.into(), None));
    assert!(matches!(site.ended().await, Ended::Closed));
}

#[tokio::test]
async fn a_slow_client_sends_byte_by_byte() {
    let site = Site::start(manager()).await;
    let mut client = site.client().await;
    let message = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for byte in message.as_bytes() {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    client.expect("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let mut text = String::new();
    while !text.ends_with("0\r\n\r\n") {
        text.push(char::from(client.0.read_u8().await.unwrap()));
    }
    assert_eq!(text.matches(['a', 'b', 'c']).collect::<String>(), "abc");
    client.send(GET).await;
    client.expect(GOT).await;
}

/// Bytes that differ everywhere, so that a lost, doubled or swapped piece shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[tokio::test]
async fn bodies_arrive_as_they_were_sent() {
    let site = Site::start(manager()).await;
    let mut client = site.client().await;
    for len in [1, 100, 4095, 4096, 4097, 16384, 65536, 3_000_000] {
        for chunk in [0, 7, 5000, 100_000] {
            if chunk == 7 && len > 65536 {
                continue;
            }
            let body = pattern(len);
            let (mut read, mut write) = client.0.split();
            let send = async {
                if chunk == 0 {
                    let head = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n");
                    write.write_all(head.as_bytes()).await.unwrap();
                    write.write_all(&body).await.unwrap();
                    return;
                }
                let mut bytes =
                    b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
                for piece in body.chunks(chunk) {
                    bytes.extend_from_slice(format!("{:x};x=y\r\n", piece.len()).as_bytes());
                    bytes.extend_from_slice(piece);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"0\r\n\r\n");
                write.write_all(&bytes).await.unwrap();
            };
            let receive = async {
                let mut buf = BytesMut::new();
                let limits = codec::Limits::default();
                let mut inbound_head = None;
                let mut data = Vec::new();
                loop {
                    if let Some(decoder) = &mut inbound_head {
                        let decoder: &mut codec::BodyDecoder = decoder;
                        match decoder.decode(&mut buf).unwrap() {
                            codec::Decoded::Data(piece) => {
                                data.extend_from_slice(&piece);
                                continue;
                            }
                            codec::Decoded::End => return data,
                            _ => {}
                        }
                    } else if let Some(end) = codec::HeadScan::default().find(&buf, &limits).unwrap() {
                        let mut head = ResponseHead::default();
                        let method = crate::http::head::Method::Post;
                        let received = codec::parse_response(&buf.split_to(end), &mut head, method).unwrap();
                        assert_eq!((head.status, received.persistent), (200, true));
                        inbound_head = Some(codec::BodyDecoder::new(received.framing, limits));
                        continue;
                    }
                    assert!(read.read_buf(&mut buf).await.unwrap() > 0);
                }
            };
            let both = async { tokio::join!(send, receive) };
            let ((), got) = tokio::time::timeout(DEADLINE, both).await.expect("in time");
            assert!(got == body, "length {len}, chunks of {chunk}");
        }
    }
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_uploading() {
    let mut site = Site::start(manager()).await;
    for length in ["Content-Length: 50000000", "Transfer-Encoding: chunked"] {
        let mut client = site.client().await;
        client.send(format!("POST /early HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n")).await;
        // What the client sends after the answer was written must not destroy it.
        let (mut read, mut write) = client.0.split();
        let upload = async {
            let noise = vec![b'1'; 65536];
            while write.write_all(&noise).await.is_ok() {}
        };
        let answer = async {
            let mut got = vec![0; 79];
            read.read_exact(&mut got).await.unwrap();
            String::from_utf8(got).unwrap()
        };
        let got = tokio::select! {
            () = upload => panic!("upload failed before the answer was read"),
            got = answer => got,
            () = tokio::time::sleep(DEADLINE) => panic!("no answer"),
        };
        assert_eq!(
            got,
            "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 9\r\nconnection: close\r\n\r\ntoo large"
                .get(..79)
                .unwrap()
        );
        drop(client);
        assert!(matches!(site.ended().await, Ended::Closed));
    }
}

#[tokio::test]
async fn a_small_unread_body_costs_no_connection() {
    let site = Site::start(manager()).await;
    let mut client = site.client().await;
    for (framing, body) in
        [("Content-Length: 5", "GET /"), ("Transfer-Encoding: chunked", "1\r\na\r\n0\r\n\r\n")]
    {
        // Neither if it came with the head, nor if it comes after the answer.
        for late in [0, 1, body.len()] {
            let (soon, late) = body.split_at(body.len() - late);
            client.send(format!("POST /a HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n{soon}")).await;
            client.expect("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nPOST /a").await;
            client.send(format!("{late}{GET}")).await;
            client.expect(GOT).await;
        }
    }
}

#[tokio::test]
async fn a_reply_that_is_cut_off_looks_cut_off() {
    let site = Site::start(manager()).await;
    for (path, reply) in [
        ("/cut", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n123"),
        ("/cut-chunked", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n123\r\n"),
        ("/nothing", ""),
    ] {
        let mut client = site.client().await;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!(client.rest().await, (reply.into(), None), "{path}");
    }
}

#[tokio::test]
async fn what_only_a_close_would_end_is_reset_when_it_is_cut() {
    let mut manager = manager();
    manager.http1.accept_http_10 = true;
    let site = Site::start(manager).await;
    let mut client = site.client().await;
    client.send("GET /cut-chunked HTTP/1.0\r\nHost: x\r\n\r\n").await;
    let (_, error) = client.rest().await;
    assert_eq!(error, Some(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn bytes_leave_when_they_are_flushed() {
    let mut site = Site::start(manager()).await;
    let mut client = site.client().await;
    client.send("GET /trickle HTTP/1.1\r\nHost: x\r\n\r\n").await;
    client
        .expect(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n",
        )
        .await;
    assert_eq!(site.event().await, "trickled");
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_the_connection_closed() {
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "x".repeat(61 * 1024));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(100));
    let fits = format!("GET /a HTTP/1.1\r\nHost: x\r\n{}\r\n", "a: b\r\n".repeat(99));
    let site = Site::start(manager()).await;
    let bad = "HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbad";
    let large =
        "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 5\r\nconnection: close\r\n\r\nlarge";
    let host = "HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhost?";
    let coding = "HTTP/1.1 501 Not Implemented\r\ncontent-length: 6\r\nconnection: close\r\n\r\ncoding";
    let low = "HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    for (request, reply) in [
        ("nonsense\r\n\r\n", bad),
        ("GET / HTTP/1.1\r\n\r\n", host),
        ("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", coding),
        ("GET / HTTP/1.1\nHost: x\n\n", bad),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", bad),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", bad),
        ("GET / HTTP/1.0\r\nHost: x\r\n\r\n", low),
        (&long, large),
        (&many, large),
    ] {
        let mut client = site.client().await;
        // A second request behind it must get nothing.
        client.send(format!("{request}{GET}")).await;
        assert_eq!(client.rest().await, (reply.into(), None), "{:.80}", request);
    }
    let mut client = site.client().await;
    client.send(fits).await;
    client.expect(GOT).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_or_breaks_the_rules_ends_the_request() {
    let mut site = Site::start(manager()).await;
    for (rest, event) in [("5\r\nab", "error DownstreamClosed"), ("x\r\n", "error DownstreamProtocol")] {
        let mut client = site.client().await;
        client.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        client.send(rest).await;
        client.0.shutdown().await.unwrap();
        assert_eq!(site.event().await, event);
        let (text, _) = client.rest().await;
        assert!(!text.contains("\r\n0\r\n\r\n"), "{text:?}");
    }
}

#[tokio::test]
async fn http_10_closes_unless_it_asks_for_more() {
    let mut manager = manager();
    manager.http1.accept_http_10 = true;
    manager.http1.default_host_for_http_10 = Some("d.example".into());
    let site = Site::start(manager).await;
    let mut client = site.client().await;
    client.send("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    client.expect("HTTP/1.0 200 OK\r\ncontent-length: 6\r\nconnection: keep-alive\r\n\r\nGET /a").await;
    client
        .send("POST /echo-chunked HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc")
        .await;
    let until_close = "HTTP/1.0 200 OK\r\nconnection: close\r\n\r\nabc";
    assert_eq!(client.rest().await, (until_close.into(), None));
    let mut client = site.client().await;
    client.send("GET /hints HTTP/1.0\r\n\r\n").await;
    let reply = "HTTP/1.0 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nhinted";
    assert_eq!(client.rest().await, (reply.into(), None));
}

#[tokio::test]
async fn interim_replies_come_before_the_reply() {
    let proxied = Site::start(HttpManager { proxy_100_continue: true, ..manager() }).await;
    let local = Site::start(manager()).await;
    let head = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    };
    for (site, path) in [(&proxied, "/continue"), (&local, "/echo")] {
        let mut client = site.client().await;
        client.send(head(path)).await;
        client.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
        client.send("abc").await;
        client.expect("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc").await;
        client.send("GET /hints HTTP/1.1\r\nHost: x\r\n\r\n").await;
        client.expect("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n").await;
    }
    // Without its 100 the client may send the body or not, so nothing may follow.
    let mut client = proxied.client().await;
    client.send(head("/early")).await;
    let reply = "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 9\r\nconnection: close\r\n\r\ntoo large";
    assert_eq!(client.rest().await, (reply.into(), None));
}

#[tokio::test]
async fn an_upgrade_makes_the_connection_raw() {
    let site = Site::start(manager()).await;
    let mut client = site.client().await;
    client.send("GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\nearly").await;
    client
        .expect("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: raw\r\n\r\nearly")
        .await;
    let bytes = pattern(300_000);
    let (mut read, mut write) = client.0.split();
    let send = async {
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, read) = tokio::join!(send, read.read_to_end(&mut got));
    read.unwrap();
    assert!(got == bytes);
}

#[tokio::test]
async fn bytes_behind_a_refused_upgrade_are_requests() {
    let site = Site::start(manager()).await;
    let mut client = site.client().await;
    let asks = "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n";
    client.send(format!("{asks}{GET}")).await;
    client.expect(&format!("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n{GOT}")).await;
}

#[tokio::test]
async fn connect_hands_the_connection_over() {
    let mut site = Site::start(manager()).await;
    let mut client = site.client().await;
    client.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\nhello").await;
    client.expect("HTTP/1.1 200 OK\r\n\r\n").await;
    let Ended::Tunnel { stream, buffered, authority } = site.ended().await else { panic!("no tunnel") };
    assert_eq!((&buffered[..], &authority[..]), (&b"hello"[..], &b"db:5432"[..]));
    stream.write_all(b"from behind").await.unwrap();
    client.expect("from behind").await;
}

#[tokio::test]
async fn a_silent_connection_is_closed_and_a_slow_head_answered() {
    let site = Site::start(with_timeouts(|timeouts| {
        timeouts.idle = Some(Duration::from_millis(100));
        timeouts.request_headers = Some(Duration::from_millis(100));
    }))
    .await;
    let mut client = site.client().await;
    assert_eq!(client.rest().await, (String::new(), None));
    let mut client = site.client().await;
    client.send("GET /a HT").await;
    let reply = "HTTP/1.1 408 Request Timeout\r\ncontent-length: 4\r\nconnection: close\r\n\r\nslow";
    assert_eq!(client.rest().await, (reply.into(), None));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_never_ends_is_answered_where_no_time_out_is_set() {
    let site = Site::start(with_timeouts(|timeouts| {
        (timeouts.idle, timeouts.stream_idle, timeouts.request_headers) = (None, None, None);
    }))
    .await;
    let mut client = site.client().await;
    client.send("GET /a HTTP/1.1\r\nx: ").await;
    let mut got = String::new();
    client.0.read_to_string(&mut got).await.expect("an end");
    assert!(got.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{got}");
}

#[tokio::test]
async fn a_drain_ends_connections_with_their_next_reply() {
    let mut site = Site::start(manager()).await;
    let mut client = site.client().await;
    client.send(GET).await;
    client.expect(GOT).await;
    site.worker.shared.drain.advance(Phase::DrainingInbound);
    client.send(GET).await;
    let last = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nGET /a";
    client.expect(last).await;
    assert_eq!(client.rest().await, (String::new(), None));
    drop(client);
    assert!(matches!(site.ended().await, Ended::Closed));
}

#[tokio::test]
async fn connections_have_a_last_request() {
    let mut limited = manager();
    limited.limits.max_requests_per_connection = Some(2);
    let old = with_timeouts(|timeouts| timeouts.max_connection_duration = Some(Duration::ZERO));
    let last = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nGET /a";
    let site = Site::start(limited).await;
    let mut client = site.client().await;
    client.send(GET.repeat(3)).await;
    assert_eq!(client.rest().await, (format!("{GOT}{last}"), None));
    let site = Site::start(old).await;
    let mut client = site.client().await;
    // Too old before its first request, it may be closed in silence; if it is served, it is told.
    if client.0.write_all(GET.as_bytes()).await.is_ok() {
        let (text, _) = client.rest().await;
        assert!(text.is_empty() || text == last, "{text}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed() {
    let mut site = Site::start(manager()).await;
    let mut client = site.client().await;
    client.send(format!("GET /hang HTTP/1.1\r\nHost: x\r\n\r\n{GET}")).await;
    assert_eq!(site.event().await, "hanging");
    drop(client);
    assert_eq!(site.event().await, "DownstreamClosed");
    assert!(matches!(site.ended().await, Ended::Closed));
}

#[tokio::test]
async fn a_waiting_connection_is_small_and_holds_no_buffer() {
    let mut site = Site::start(manager()).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = site.client().await;
        client.send(GET).await;
        client.expect(GOT).await;
        clients.push(client);
    }
    let worker = site.worker.clone();
    let returned = async {
        while worker.kept_buffers() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, returned).await.expect("a buffer comes back");
    drop(clients);
    site.ended().await;
    let worker = Worker::here(Arc::default());
    let (listener, chain) = listener(site.address, manager());
    let inputs = ConnectionInputs {
        source: site.address,
        destination: site.address,
        transport: TransportProtocol::RawBuffer,
        server_name: None,
        application_protocols: Vec::new(),
    };
    let connection = Arc::new(Connection::new(
        &worker,
        &listener,
        ListenerSource::Named("test".into()),
        chain,
        0,
        inputs,
        site.address,
    ));
    let client = site.client().await;
    let (note, _events) = mpsc::unbounded_channel();
    let handler = Paths { note };
    let future = serve(&worker, &connection, client.0.into(), BytesMut::new(), &handler);
    eprintln!("{} bytes", size_of_val(&future));
    assert!(size_of_val(&future) <= 2048, "{} bytes", size_of_val(&future));
}
