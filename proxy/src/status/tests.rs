//! Probes and metrics against real servers on loopback, over the pages as they are served.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use osier_core::admin::{Pages as _, Request};
use osier_core::drain::Phase;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::Status;
use super::probers::Probers;
use super::scrape::Scrape;
use crate::admin::tests::admin;
use crate::admin::{OnePage, Order};

const POD: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A server that answers each connection with what `answer` makes of the request and of who asks.
async fn serve(
    answer: impl Fn(&str, SocketAddr) -> String + Send + Sync + 'static,
) -> (u16, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let text = answer(&String::from_utf8_lossy(&head), peer);
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    (port, AbortOnDropHandle::new(task))
}

fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

fn status(probers: &str, scrape: &str) -> (Status, tokio::sync::mpsc::Receiver<Order>) {
    let (admin, orders) = admin();
    let probers = Probers::parse(probers, POD, Some(super::source(POD)), 15020).expect("probers");
    (Status::new(admin, probers, Scrape::parse(scrape, 15020).expect("targets"), None), orders)
}

fn get(path: &str) -> Request {
    Request { path: path.to_owned(), ..Request::default() }
}

async fn ask(status: &Status, request: Request) -> (u16, String) {
    let reply = status.answer(request).await;
    (reply.status.as_u16(), String::from_utf8(reply.body.to_vec()).expect("text"))
}

const NO_SCRAPE: &str = r#"{"scrape":"false"}"#;

#[tokio::test]
async fn an_http_probe_is_the_applications_answer() {
    let (port, _server) = serve(|head, peer| {
        assert_eq!(peer.ip().to_string(), "127.0.0.6", "an address that is not captured");
        let line = head.lines().next().unwrap_or_default();
        match line {
            "GET /fine?x=1 HTTP/1.1" => {
                let seen: Vec<_> =
                    head.lines().filter(|line| line.contains("host:") || line.contains("x-")).collect();
                response("200 OK", "", &seen.join(","))
            }
            "GET /sick HTTP/1.1" => response("503 Service Unavailable", "", "sick"),
            "GET /a/there HTTP/1.1" => response("302 Found", "location: here\r\n", ""),
            "GET /a/here HTTP/1.1" => response("204 No Content", "", ""),
            "GET /away HTTP/1.1" => response("301 Moved", "location: https://other.example/\r\n", ""),
            "GET /round HTTP/1.1" => response("307 Again", "location: /round\r\n", ""),
            "GET /long HTTP/1.1" => response("200 OK", "", &"x".repeat(20_000)),
            "GET /silent HTTP/1.1" => String::new(),
            other => panic!("{other}"),
        }
    })
    .await;
    let prober = |name: &str, path: &str| {
        format!(r#""/app-health/{name}/livez":{{"httpGet":{{"path":"{path}","port":{port}}}}}"#)
    };
    let paths = ["fine?x=1", "/sick", "/a/there", "/away", "/round", "/long", "/silent"];
    let all: Vec<_> = paths.iter().enumerate().map(|(at, path)| prober(&format!("c{at}"), path)).collect();
    let dead = format!(r#""/app-lifecycle/c/prestopz":{{"httpGet":{{"port":{}}}}}"#, free_port().await);
    let (status, _orders) = status(&format!("{{{},{dead}}}", all.join(",")), NO_SCRAPE);
    let probe = |at: usize| get(&format!("/app-health/c{at}/livez"));
    let mut headers = HeaderMap::new();
    headers.insert("host", "10.0.0.7:15020".parse().expect("a value"));
    headers.insert("x-kubelet", "yes".parse().expect("a value"));
    headers.insert("connection", "close".parse().expect("a value"));
    let (code, text) = ask(&status, Request { headers: headers.clone(), ..probe(0) }).await;
    assert_eq!((code, text), (200, format!("host: 10.0.0.7:{port},x-kubelet: yes")));
    headers.insert("host", "web.example".parse().expect("a value"));
    let (_, text) = ask(&status, Request { headers, ..probe(0) }).await;
    assert!(text.starts_with("host: web.example,"), "a probe's own Host stays: {text}");
    assert_eq!(ask(&status, probe(1)).await, (503, "sick".to_owned()));
    assert_eq!(ask(&status, probe(2)).await.0, 204, "a redirect to the same host is followed");
    assert_eq!(ask(&status, probe(3)).await.0, 200, "one to another host is fine");
    let (code, text) = ask(&status, probe(4)).await;
    assert_eq!((code, text.as_str()), (500, "stopped after 10 redirects\n"));
    assert_eq!(ask(&status, probe(5)).await.1.len(), 10 * 1024);
    assert_eq!(ask(&status, probe(6)).await.0, 500);
    let (code, text) = ask(&status, get("/app-lifecycle/c/prestopz")).await;
    assert!(code == 500 && text.contains("Connection refused"), "{code} {text}");
    let (code, text) = ask(&status, get("/app-health/nobody/livez")).await;
    assert_eq!((code, text.as_str()), (400, "this pod has no probe /app-health/nobody/livez\n"));
}

/// Of an address where nobody listens.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address").port()
}

#[tokio::test]
async fn tcp_and_silence() {
    let (port, _server) = serve(|_, _| String::new()).await;
    // Accepts nothing, so that a request is never answered.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent_port = silent.local_addr().expect("an address").port();
    let (status, _orders) = status(
        &format!(
            r#"{{"/app-health/a/readyz":{{"tcpSocket":{{"port":{port}}}}},
                "/app-health/b/readyz":{{"tcpSocket":{{"port":{}}}}},
                "/app-health/c/startupz":{{"httpGet":{{"port":{silent_port}}},"timeoutSeconds":1}}}}"#,
            free_port().await
        ),
        NO_SCRAPE,
    );
    assert_eq!(ask(&status, get("/app-health/a/readyz")).await.0, 200);
    assert_eq!(ask(&status, get("/app-health/b/readyz")).await.0, 500);
    let (code, text) = ask(&status, get("/app-health/c/startupz")).await;
    assert_eq!((code, text), (500, format!("no answer from 127.0.0.1:{silent_port} within 1s\n")));
}

#[tokio::test]
async fn https_needs_no_trust_and_may_be_http2() {
    for (protocols, expected) in [(vec![&b"http/1.1"[..]], "HTTP/1.1"), (vec![b"h2"], "HTTP/2.0")] {
        let port = serve_tls(protocols).await;
        let text = format!(
            r#"{{"/app-health/a/livez":{{"httpGet":{{"port":{port},"path":"/x","scheme":"HTTPS"}}}}}}"#
        );
        let (status, _orders) = status(&text, NO_SCRAPE);
        let (code, text) = ask(&status, get("/app-health/a/livez")).await;
        assert_eq!((code, text), (200, format!("{expected} /x")));
    }
}

/// An HTTPS server with a certificate that nobody trusts.
async fn serve_tls(protocols: Vec<&[u8]>) -> u16 {
    let key = rcgen::generate_simple_self_signed(vec!["nobody.example".to_owned()]).expect("a certificate");
    let (certificate, key) = (key.cert.der().clone(), key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], rustls::pki_types::PrivateKeyDer::Pkcs8(key.into()))
        .expect("a key pair");
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        let stream = acceptor.accept(stream).await.expect("a handshake");
        let service =
            hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                let text = format!("{:?} {}", request.version(), request.uri().path());
                Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::<Bytes>::from(
                    text,
                )))
            });
        let executor = hyper_util::rt::TokioExecutor::new();
        let builder = hyper_util::server::conn::auto::Builder::new(executor);
        let _ = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
    });
    port
}

#[tokio::test]
async fn grpc_health_is_asked_by_service() {
    let port = serve_health().await;
    let prober = |name: &str, service: &str| {
        format!(r#""/app-health/{name}/livez":{{"grpc":{{"port":{port},"service":{service}}}}}"#)
    };
    let all = [prober("fine", "\"fine\""), prober("sick", "\"sick\""), prober("all", "null")].join(",");
    let (status, _orders) = status(&format!("{{{all}}}"), NO_SCRAPE);
    assert_eq!(ask(&status, get("/app-health/fine/livez")).await.0, 200);
    let (code, text) = ask(&status, get("/app-health/sick/livez")).await;
    assert_eq!((code, text.as_str()), (500, "status is NotServing\n"));
    let (code, text) = ask(&status, get("/app-health/all/livez")).await;
    assert_eq!((code, text.as_str()), (500, "the server doesn't know grpc.health.v1.Health\n"));
}

/// A server that speaks gRPC's bytes by hand: the service `fine` is served, `sick` isn't, and without a name nothing is known.
async fn serve_health() -> u16 {
    use http_body_util::BodyExt as _;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service =
                hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = request.into_body().collect().await.expect("a message").to_bytes();
                    let (message, code) = match &asked[5..] {
                        b"\x0a\x04fine" => (&b"\0\0\0\0\x02\x08\x01"[..], "0"),
                        b"\x0a\x04sick" => (&b"\0\0\0\0\x02\x08\x02"[..], "0"),
                        _ => (&b""[..], "12"),
                    };
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", code.parse().expect("a value"));
                    let body = http_body_util::Full::new(Bytes::from_static(message));
                    let body = body.with_trailers(async move { Some(Ok(trailers)) });
                    let response =
                        http::Response::builder().header("content-type", "application/grpc").body(body);
                    Ok::<_, std::convert::Infallible>(response.expect("a response"))
                });
            let executor = hyper_util::rt::TokioExecutor::new();
            let serving = hyper::server::conn::http2::Builder::new(executor);
            let serving = serving.serve_connection(hyper_util::rt::TokioIo::new(stream), service);
            tokio::spawn(serving);
        }
    });
    port
}

#[tokio::test]
async fn metrics_of_both_are_on_one_page() {
    let (plain, _server) = serve(|head, _| {
        assert!(head.starts_with("GET /m HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("accept: text/plain;version=0.0.4"), "{head}");
        assert!(head.contains("x-prometheus-scrape-timeout-seconds: 3"), "{head}");
        response("200 OK", "content-type: text/plain\r\n", "process_cpu_seconds_total 5\napp 1")
    })
    .await;
    let (open, _server) = serve(|_, _| {
        let kind = "content-type: application/openmetrics-text; version=1.0.0\r\n";
        response("200 OK", kind, "other 2 # {a=\"b\"} 1\n# EOF\n")
    })
    .await;
    let (broken, _server) = serve(|_, _| response("500 Broken", "", "no")).await;
    let targets = [(plain, "/m"), (open, "/metrics"), (broken, "/metrics")];
    let targets = targets.map(|(port, path)| format!(r#"{{"port":"{port}","path":"{path}"}}"#)).join(",");
    let (status, _orders) = status("{}", &format!(r#"{{"scrape":"true","targets":[{targets}]}}"#));
    let mut headers = HeaderMap::new();
    headers.insert("x-prometheus-scrape-timeout-seconds", "3".parse().expect("a value"));
    let (code, text) = ask(&status, Request { headers, ..get("/stats/prometheus") }).await;
    assert_eq!(code, 200);
    for expected in [
        "\nprocess_cpu_seconds_total 5\napp 1\nother 2\n",
        "\nistio_agent_process_resident_memory_bytes ",
        "\nistio_agent_scrapes_total 1\n",
        "\nistio_agent_scrape_failures_total{type=\"application\"} 1\n",
        "\nenvoy_server_live ",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let families: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert!(!families.iter().any(|family| family.starts_with("process_")), "{families:?}");
}

#[tokio::test]
async fn orders_come_from_inside_the_pod() {
    let (status, mut orders) = status("{}", NO_SCRAPE);
    let from = |peer: &str, method: Method, path: &str| Request {
        method,
        peer: Some(peer.parse().expect("an address")),
        ..get(path)
    };
    for path in ["/drain", "/quitquitquit"] {
        assert_eq!(ask(&status, from("10.0.0.9:1", Method::POST, path)).await.0, 403);
        assert_eq!(ask(&status, Request { method: Method::POST, ..get(path) }).await.0, 403);
        assert_eq!(ask(&status, from("127.0.0.1:1", Method::GET, path)).await.0, 405);
        let mut browser = from("127.0.0.1:1", Method::POST, path);
        browser.headers.insert("host", "localhost:15020".parse().expect("a value"));
        browser.headers.insert("origin", "https://evil.example".parse().expect("a value"));
        assert_eq!(ask(&status, browser).await.0, 403);
    }
    let drain = status.admin.shared.drain.clone();
    assert_eq!(ask(&status, get("/healthz/ready")).await, (200, "LIVE\n".to_owned()));
    assert_eq!(ask(&status, from("[::1]:1", Method::POST, "/drain")).await.0, 200);
    assert_eq!(drain.phase(), Phase::DrainingInbound);
    assert_eq!(ask(&status, get("/healthz/ready")).await, (503, "DRAINING\n".to_owned()));
    assert!(orders.try_recv().is_err(), "nobody ends");
    assert_eq!(ask(&status, from("[::ffff:127.0.0.1]:1", Method::POST, "/quitquitquit")).await.0, 200);
    assert_eq!(orders.try_recv().expect("an order"), Order::Quit);
    assert_eq!(ask(&status, get("/")).await.0, 404);
    assert_eq!(ask(&status, Request { method: Method::POST, ..get("/stats/prometheus") }).await.0, 405);
}

#[tokio::test]
async fn the_metrics_port_has_nothing_else() {
    let (admin, _orders) = admin();
    let metrics = OnePage::metrics(admin);
    let page = metrics.answer(get("/stats/prometheus")).await;
    assert!(page.status == StatusCode::OK && page.body.starts_with(b"# HELP "));
    assert_eq!(metrics.answer(get("/healthz/ready")).await.status, StatusCode::NOT_FOUND);
    let post = Request { method: Method::POST, ..get("/stats/prometheus") };
    assert_eq!(metrics.answer(post).await.status, StatusCode::METHOD_NOT_ALLOWED);
}
