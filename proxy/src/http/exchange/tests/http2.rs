//! HTTP/2 on either side.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};

use super::rig::*;
use crate::config::route::{Forward, RetryOn, RetryPolicy};
use crate::http::test_support::retry_policy;

type H2Client = h2::client::SendRequest<Bytes>;

async fn h2_client(proxy: &Proxy) -> H2Client {
    let tcp = TcpStream::connect(proxy.address).await.unwrap();
    let (client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

/// An HTTP/2 upstream; `serve` gets each request with its number.
async fn h2_upstream<F, Fut>(serve: F) -> std::net::SocketAddr
where
    F: Fn(usize, Request<RecvStream>, h2::server::SendResponse<Bytes>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = socket.accept().await {
            let (serve, count) = (serve.clone(), count.clone());
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    tokio::spawn(serve(number, request, respond));
                }
            });
        }
    });
    address
}

async fn read(body: &mut RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    (bytes, body.trailers().await.unwrap())
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://a.example{path}"))
        .header("content-type", "application/grpc")
        .body(())
        .unwrap()
}

pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("in time")
}

/// Answers like a gRPC server: the body again, and a status in the trailers.
async fn grpc_echo(_: usize, request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    assert_eq!(request.headers().get("te").map(|te| te.as_bytes()), Some(&b"trailers"[..]));
    assert_eq!(request.uri().authority().unwrap().as_str(), "a.example");
    let mut body = request.into_body();
    let (bytes, _) = read(&mut body).await;
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut send = respond.send_response(response, false).unwrap();
    send.send_data(bytes.into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "5".parse().unwrap());
    send.send_trailers(trailers).unwrap();
}

#[tokio::test]
async fn grpc_goes_through_with_its_trailers() {
    let address = h2_upstream(grpc_echo).await;
    let proxy = Proxy::start(vec![to(&cluster(&[address], http2), |_| {})]).await;
    let mut client = h2_client(&proxy).await;
    for round in 0..3 {
        let mut request = post("/service/method");
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        let (response, mut send) = client.send_request(request, false).unwrap();
        send.send_data(Bytes::from(vec![round; 1000]), true).unwrap();
        let mut response = within(response).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["server"], "envoy");
        let (bytes, trailers) = within(read(response.body_mut())).await;
        assert_eq!(bytes, vec![round; 1000]);
        assert_eq!(trailers.unwrap()["grpc-status"], "5");
    }
    let line = proxy.log(3).await.remove(0);
    assert!(line.starts_with("200 - via_upstream 1000 1000 1 all backend"), "{line}");
}

#[tokio::test]
async fn http2_to_http1_and_back() {
    let mirror = mirror().await;
    let proxy = Proxy::start(vec![to(&cluster(&[mirror.address], |_| {}), |_| {})]).await;
    let mut client = h2_client(&proxy).await;
    let (response, mut send) = client.send_request(post("/p?q"), false).unwrap();
    send.send_data("hello".into(), true).unwrap();
    let mut response = within(response).await.unwrap();
    let (bytes, _) = within(read(response.body_mut())).await;
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("POST /p?q HTTP/1.1\nhost: a.example\n"), "{text}");
    assert!(text.contains("transfer-encoding: chunked") && text.ends_with("\n\nhello"), "{text}");

    let address = h2_upstream(|_, request, mut respond| async move {
        let (head, mut body) = request.into_parts();
        assert_eq!((head.method.as_str(), head.uri.path()), ("PUT", "/x"));
        let (bytes, _) = read(&mut body).await;
        let response = Response::builder().status(201).header("x-up", "1").body(()).unwrap();
        respond.send_response(response, false).unwrap().send_data(bytes.into(), true).unwrap();
    })
    .await;
    let proxy = Proxy::start(vec![to(&cluster(&[address], http2), |_| {})]).await;
    let reply = proxy.ask("PUT /x HTTP/1.1\r\nHost: a\r\ncontent-length: 3\r\n\r\nabc").await;
    assert_eq!((reply.status(), reply.get("x-up"), &*reply.body), (201, Some("1"), "abc"));
}

#[tokio::test]
async fn a_refused_stream_goes_to_another_one_even_for_writes() {
    let address = h2_upstream(|number, request, mut respond| async move {
        if number < 2 {
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        let (bytes, _) = read(&mut request.into_body()).await;
        respond.send_response(Response::new(()), false).unwrap().send_data(bytes.into(), true).unwrap();
    })
    .await;
    let istio = |forward: &mut Forward| {
        let policy = RetryPolicy { on: RetryOn(RetryOn::REFUSED_STREAM), attempts: 2, ..retry_policy() };
        forward.retry = Some(Arc::new(policy));
    };
    let proxy = Proxy::start(vec![to(&cluster(&[address], http2), istio)]).await;
    let reply = proxy.ask("POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 3\r\n\r\nabc").await;
    assert_eq!((reply.status(), &*reply.body), (200, "abc"));
}

#[tokio::test]
async fn a_grpc_status_in_the_head_is_retried() {
    let address = h2_upstream(|number, _, mut respond| async move {
        let status = if number == 0 { "14" } else { "0" };
        let head =
            Response::builder().header("content-type", "application/grpc").header("grpc-status", status);
        respond.send_response(head.body(()).unwrap(), true).unwrap();
    })
    .await;
    let istio = |forward: &mut Forward| {
        let policy = RetryPolicy { on: RetryOn(RetryOn::UNAVAILABLE), attempts: 2, ..retry_policy() };
        forward.retry = Some(Arc::new(policy));
    };
    let proxy = Proxy::start(vec![to(&cluster(&[address], http2), istio)]).await;
    let mut client = h2_client(&proxy).await;
    let (response, _) = client.send_request(post("/"), true).unwrap();
    let response = within(response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "0");
    assert!(proxy.log(1).await[0].starts_with("200 - via_upstream 0 0 2 all"));
}

#[tokio::test]
async fn a_reset_after_the_deadline_is_what_the_deadline_did() {
    let address = h2_upstream(|_, request, mut respond| async move {
        if request.uri().path() == "/late" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        respond.send_reset(Reason::CANCEL);
    })
    .await;
    let proxy = Proxy::start(vec![to(&cluster(&[address], http2), |_| {})]).await;
    for (path, timeout, status) in [("/late", "20m", "4"), ("/early", "9S", "14"), ("/none", "", "14")] {
        let mut request = post(path);
        if !timeout.is_empty() {
            request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        let mut client = h2_client(&proxy).await;
        let response = within(client.send_request(request, true).unwrap().0).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], status, "{path}");
    }
}

#[tokio::test]
async fn a_time_out_of_the_clients_own_is_its_deadline() {
    let address = h2_upstream(|_, _, respond| async move {
        std::future::pending::<()>().await;
        drop(respond);
    })
    .await;
    let honoured = |forward: &mut Forward| forward.grpc_timeout_max = Some(None);
    let of_route = |forward: &mut Forward| forward.timeout = Some(Duration::from_millis(20));
    let by_client = Proxy::start(vec![to(&cluster(&[address], http2), honoured)]).await;
    let by_route = Proxy::start(vec![to(&cluster(&[address], http2), of_route)]).await;
    for (proxy, status) in [(by_client, "4"), (by_route, "14")] {
        let mut request = post("/");
        request
            .headers_mut()
            .insert("grpc-timeout", if status == "4" { "20m" } else { "9S" }.parse().unwrap());
        let mut client = h2_client(&proxy).await;
        let response = within(client.send_request(request, true).unwrap().0).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], status);
        assert!(proxy.log(1).await[0].starts_with("200 UT response_timeout"), "{:?}", proxy.log(1).await);
    }
}

#[tokio::test]
async fn a_reset_by_the_client_reaches_the_upstream() {
    let (note, mut noted) = tokio::sync::mpsc::unbounded_channel();
    let address = h2_upstream(move |_, _, mut respond| {
        let note = note.clone();
        async move {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data("first".into(), false).unwrap();
            let reason = std::future::poll_fn(|cx| send.poll_reset(cx)).await;
            note.send(reason.unwrap()).unwrap();
        }
    })
    .await;
    let proxy = Proxy::start(vec![to(&cluster(&[address], http2), |_| {})]).await;
    let mut client = h2_client(&proxy).await;
    let (response, mut send) = client.send_request(post("/stream"), false).unwrap();
    let mut response = within(response).await.unwrap();
    assert_eq!(within(response.body_mut().data()).await.unwrap().unwrap(), "first");
    send.send_reset(Reason::CANCEL);
    assert_eq!(within(noted.recv()).await.unwrap(), Reason::CANCEL);
    let line = proxy.log(1).await.remove(0);
    assert!(line.starts_with("200 DC downstream_remote_disconnect 0 5 1 all"), "{line}");
}

#[tokio::test]
async fn both_directions_of_a_stream_are_open_at_once() {
    let address = h2_upstream(|_, request, mut respond| async move {
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        let mut body = request.into_body();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            send.send_data(data, false).unwrap();
        }
        send.send_data(Bytes::new(), true).unwrap();
    })
    .await;
    let limit = |forward: &mut Forward| forward.timeout = Some(Duration::from_millis(1));
    let proxy = Proxy::start(vec![to(&cluster(&[address], http2), limit)]).await;
    let mut client = h2_client(&proxy).await;
    let (response, mut send) = client.send_request(post("/chat"), false).unwrap();
    let mut response = within(response).await.unwrap();
    for round in 0..20u8 {
        send.send_data(Bytes::from(vec![round; 10]), false).unwrap();
        let data = within(response.body_mut().data()).await.unwrap().unwrap();
        assert_eq!(data, vec![round; 10], "the route's limit doesn't run before the request is complete");
        response.body_mut().flow_control().release_capacity(10).unwrap();
    }
}
