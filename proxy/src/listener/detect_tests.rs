//! Tables over first bytes, and the waiting with real sockets.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::super::client_hello::tests::hello;
use super::*;

const BOTH: Inspect = Inspect { tls: true, http: true, timeout: None, continue_on_timeout: false };

#[test]
fn the_verdict_falls_as_early_as_the_bytes_allow() {
    let long_method = [b"A".repeat(MAX_METHOD + 1), b" / HTTP/1.1\r\n".to_vec()].concat();
    let table: &[(&[u8], Verdict)] = &[
        (b"", Verdict::Undecided),
        (b"G", Verdict::Undecided),
        (b"GET / HTTP/1.1\r", Verdict::Undecided),
        (b"GET / HTTP/1.1\r\n", Verdict::Http("http/1.1")),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Verdict::Http("http/1.1")),
        (b"GET / HTTP/1.1\n", Verdict::Http("http/1.1")),
        (b"M-SEARCH * HTTP/1.0\r\n", Verdict::Http("http/1.0")),
        (b"\r\nGET / HTTP/1.1\r\n", Verdict::Http("http/1.1")),
        (b"\r", Verdict::Undecided),
        (b"\r\n\r\n", Verdict::Opaque),
        (b"GET /\r\n", Verdict::Opaque),
        (b"GET  HTTP/1.1\r\n", Verdict::Opaque),
        (b"GET / HTTP/2.0\r\n", Verdict::Opaque),
        (b"GET /a b HTTP/1.1\r\n", Verdict::Opaque),
        (b"P", Verdict::Undecided),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Verdict::Undecided),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00", Verdict::Http("h2c")),
        (b"PRI * HTTP/2.0\r\n\r\nSN", Verdict::Opaque),
        (b"*1\r\n$4\r\nPING\r\n", Verdict::Opaque),
        (b"\x00", Verdict::Opaque),
        (b"SSH-2.0-OpenSSH", Verdict::Undecided),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", Verdict::Opaque),
        (&long_method[..MAX_METHOD], Verdict::Undecided),
        (&long_method, Verdict::Opaque),
        (&long_method[..MAX_METHOD + 1], Verdict::Opaque),
    ];
    for (bytes, verdict) in table {
        assert_eq!(judge(&BOTH, bytes), *verdict, "{:?}", bytes.escape_ascii().to_string());
    }
    assert_eq!(judge(&Inspect { http: false, ..BOTH }, b"GET / HTTP/1.1\r\n"), Verdict::Opaque);
    let tls = hello(Some("a.example"), &["h2"]);
    assert!(matches!(judge(&BOTH, &tls), Verdict::Tls(hello) if hello.protocols[..] == ["h2".into()]));
    assert_eq!(judge(&Inspect { tls: false, ..BOTH }, &tls), Verdict::Opaque);
}

async fn pair() -> (TcpStream, Stream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let connect = TcpStream::connect(listener.local_addr().expect("address"));
    let (client, accepted) = tokio::join!(connect, listener.accept());
    (client.expect("connect"), accepted.expect("accept").0.into())
}

#[tokio::test]
async fn bytes_that_were_read_go_on_with_the_connection() {
    let (mut client, stream) = pair().await;
    let hello = hello(Some("A.example"), &["h2", "http/1.1"]);
    let send = async {
        for part in hello.chunks(40) {
            client.write_all(part).await.expect("send");
            tokio::task::yield_now().await;
        }
    };
    let (_, found) = tokio::join!(send, detect(&stream, &BOTH, BytesMut::new()));
    let found = found.expect("detected");
    assert_eq!(found.transport, TransportProtocol::Tls);
    assert_eq!(found.server_name.as_deref(), Some("a.example"));
    assert_eq!(found.application_protocols, ["h2".into(), "http/1.1".into()]);
    assert_eq!(found.received, hello);
}

#[tokio::test]
async fn without_inspectors_nothing_is_read() {
    let (_client, stream) = pair().await;
    let found = detect(&stream, &Inspect::default(), BytesMut::new()).await.expect("detected");
    assert_eq!(found, Detected::default());
}

#[tokio::test]
async fn a_silent_client_is_closed_or_goes_on_as_the_listener_says() {
    let limit = Some(Duration::from_millis(20));
    let (_client, stream) = pair().await;
    let closing = Inspect { timeout: limit, ..BOTH };
    assert!(matches!(detect(&stream, &closing, BytesMut::new()).await, Err(DetectError::Timeout)));
    let going_on = Inspect { timeout: limit, continue_on_timeout: true, ..BOTH };
    let found = detect(&stream, &going_on, BytesMut::new()).await.expect("detected");
    assert_eq!(found, Detected::default());
}

#[tokio::test]
async fn what_came_before_a_time_out_is_kept() {
    let (mut client, stream) = pair().await;
    client.write_all(b"GET /slow").await.expect("send");
    let inspect = Inspect { timeout: Some(Duration::from_millis(50)), continue_on_timeout: true, ..BOTH };
    let found = detect(&stream, &inspect, BytesMut::from(&b""[..])).await.expect("detected");
    assert_eq!((&found.received[..], found.application_protocols.len()), (&b"GET /slow"[..], 0));
}

#[tokio::test]
async fn an_early_end_is_judged_by_what_came() {
    let (client, stream) = pair().await;
    drop(client);
    assert!(matches!(detect(&stream, &BOTH, BytesMut::new()).await, Err(DetectError::Closed)));
    let (mut client, stream) = pair().await;
    client.write_all(b"GET /").await.expect("send");
    client.shutdown().await.expect("half-close");
    let found = detect(&stream, &BOTH, BytesMut::new()).await.expect("detected");
    assert_eq!(found.received, b"GET /"[..]);
}

#[tokio::test]
async fn a_flood_without_an_end_is_opaque_after_the_limit() {
    let (mut client, stream) = pair().await;
    let send = async {
        let mut line = b"GET /".to_vec();
        line.resize(MAX_HELLO + 4096, b'a');
        client.write_all(&line).await.expect("send");
    };
    let (_, found) = tokio::join!(send, detect(&stream, &BOTH, BytesMut::new()));
    assert_eq!(found.expect("detected").received.len(), MAX_HELLO);
}

#[tokio::test]
async fn bytes_from_a_tunnel_are_judged_first() {
    let (_client, stream) = pair().await;
    let early = BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]);
    let found = detect(&stream, &BOTH, early).await.expect("detected");
    assert_eq!(found.application_protocols, ["http/1.1".into()]);
}
