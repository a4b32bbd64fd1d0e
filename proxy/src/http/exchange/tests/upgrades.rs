//! Upgrades between versions: any client reaches any upstream.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::Request;
use tokio::net::{TcpListener, TcpStream};

use super::http2::within;
use super::rig::*;
use crate::config::cluster::ClusterSpec;

const ASK: &str = "GET /chat?x HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// An HTTP/1 upstream that upgrades and answers each `ping` with `pong`.
async fn h1_upstream() -> SocketAddr {
    let upstream = upstream(|_, mut client| async move {
        let head = client.head().await.unwrap().to_ascii_lowercase();
        assert!(head.starts_with("get /chat?x http/1.1\n"), "{head}");
        for line in ["host: a.example", "connection: upgrade", "upgrade: websocket", "sec-websocket-key: "] {
            assert!(head.contains(&format!("\n{line}")), "no {line} in {head}");
        }
        assert!(!head.contains("transfer-encoding") && !head.contains("content-length"), "{head}");
        client
            .send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nhi")
            .await;
        assert_eq!(client.exactly(4).await, b"ping");
        client.send("pong").await;
        assert_eq!(client.rest().await, b"", "the client's end arrives");
        client.send("bye").await;
    })
    .await;
    upstream.address
}

/// The same over HTTP/2. It offers extended CONNECT only where `offers`, and refuses it with `status` where that is not 200.
async fn h2_upstream(offers: bool, status: u16) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = socket.accept().await {
            let mut builder = h2::server::Builder::new();
            if offers {
                builder.enable_connect_protocol();
            }
            tokio::spawn(async move {
                let mut connection = builder.handshake::<_, Bytes>(tcp).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(serve_h2(request, respond, status));
                }
            });
        }
    });
    address
}

async fn serve_h2(request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>, status: u16) {
    assert_eq!(
        (request.method().as_str(), request.uri().to_string().as_str()),
        ("CONNECT", "http://a.example/chat?x")
    );
    assert_eq!(request.extensions().get::<Protocol>().map(Protocol::as_str), Some("websocket"));
    assert!(!request.body().is_end_stream(), "the stream is the tunnel");
    let response = http::Response::builder().status(status).body(()).unwrap();
    let mut send = respond.send_response(response, false).unwrap();
    if status != 200 {
        return send.send_data("refused".into(), true).unwrap();
    }
    let mut body = request.into_body();
    send.send_data("hi".into(), false).unwrap();
    assert_eq!(exactly(&mut body, 4).await, b"ping");
    send.send_data("pong".into(), false).unwrap();
    assert_eq!(rest(&mut body).await, b"", "the client's end arrives");
    send.send_data("bye".into(), true).unwrap();
}

async fn exactly(body: &mut RecvStream, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let data = within(body.data()).await.expect("more").unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    bytes
}

async fn rest(body: &mut RecvStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(data) = within(body.data()).await {
        bytes.extend_from_slice(&data.unwrap());
    }
    bytes
}

async fn proxy(upstream: SocketAddr, kind: impl FnOnce(&mut ClusterSpec)) -> Proxy {
    let routes = table(host(vec![to(&cluster(&[upstream], kind), |_| {})]));
    let change = |manager: &mut crate::config::listener::HttpManager| {
        manager.upgrades = vec!["websocket".into()];
        manager.http2.allow_connect = true;
    };
    Proxy::with(routes, change).await
}

/// An extended CONNECT; `early` is sent before the answer.
async fn connect(proxy: &Proxy, early: &'static str) -> (http::Response<RecvStream>, SendStream<Bytes>) {
    let tcp = TcpStream::connect(proxy.address).await.unwrap();
    let (mut client, mut connection) = h2::client::handshake(tcp).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    tokio::spawn(connection);
    // Before it answers, the proxy has said what it takes.
    within(pings.ping(h2::Ping::opaque())).await.unwrap();
    assert!(client.is_extended_connect_protocol_enabled());
    let mut request = Request::builder().method("CONNECT").uri("http://a.example/chat?x").body(()).unwrap();
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let (reply, mut send) = client.send_request(request, false).unwrap();
    if !early.is_empty() {
        send.send_data(early.into(), false).unwrap();
    }
    (within(reply).await.unwrap(), send)
}

async fn talks_over_h1(proxy: &Proxy) {
    let mut client = proxy.client().await;
    client.send(ASK).await;
    let head = client.head().await.unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("\nupgrade: websocket") && head.contains("\nconnection: upgrade"), "{head}");
    assert_eq!(client.exactly(2).await, b"hi");
    client.send("ping").await;
    assert_eq!(client.exactly(4).await, b"pong");
    tokio::io::AsyncWriteExt::shutdown(&mut client.tcp).await.unwrap();
    assert_eq!(client.rest().await, b"bye");
    let line = proxy.log(1).await.remove(0);
    assert!(line.starts_with("101 - via_upstream 4 9 1 all backend"), "{line}");
}

async fn talks_over_h2(proxy: &Proxy) {
    let (reply, mut send) = connect(proxy, "pi").await;
    assert_eq!(reply.status(), 200);
    assert!(!reply.headers().contains_key("upgrade") && !reply.headers().contains_key("connection"));
    let mut body = reply.into_body();
    assert_eq!(exactly(&mut body, 2).await, b"hi");
    send.send_data("ng".into(), false).unwrap();
    assert_eq!(exactly(&mut body, 4).await, b"pong");
    send.send_data(Bytes::new(), true).unwrap();
    assert_eq!(rest(&mut body).await, b"bye");
}

#[tokio::test]
async fn an_upgrade_reaches_an_http2_upstream() {
    let proxy = proxy(h2_upstream(true, 200).await, http2).await;
    talks_over_h1(&proxy).await;
    talks_over_h1(&proxy).await;
}

#[tokio::test]
async fn an_extended_connect_reaches_an_http1_upstream() {
    let proxy = proxy(h1_upstream().await, |_| {}).await;
    talks_over_h2(&proxy).await;
}

#[tokio::test]
async fn an_extended_connect_reaches_an_http2_upstream() {
    let proxy = proxy(h2_upstream(true, 200).await, http2).await;
    talks_over_h2(&proxy).await;
}

#[tokio::test]
async fn an_upstream_that_takes_none_is_named() {
    let proxy = proxy(h2_upstream(false, 200).await, http2).await;
    assert_eq!(proxy.ask(ASK).await.status(), 502, "as Envoy answers");
    let line = proxy.log(1).await.remove(0);
    assert!(line.contains("{protocol_error|127.0.0.1:"), "{line}");
    assert!(line.contains("_takes_no_extended_CONNECT}"), "{line}");
}

#[tokio::test]
async fn what_the_upstream_answers_instead_is_passed_on() {
    let proxy = proxy(h2_upstream(true, 404).await, http2).await;
    let reply = proxy.ask(ASK).await;
    assert_eq!((reply.status(), reply.body.as_str()), (404, "refused"));
    let (reply, _send) = connect(&proxy, "").await;
    assert_eq!(reply.status(), 404);
    assert_eq!(exactly(&mut reply.into_body(), 7).await, b"refused");
}

#[tokio::test]
async fn an_extended_connect_needs_its_protocol_enabled() {
    let routes = table(host(vec![to(&cluster(&[h1_upstream().await], |_| {}), |_| {})]));
    let proxy = Proxy::with(routes, |manager| manager.http2.allow_connect = true).await;
    let (reply, _send) = connect(&proxy, "").await;
    assert_eq!(reply.status(), 403);
}
