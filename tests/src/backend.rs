//! A backend that answers with what it received, as JSON, and behaves as a request's `x-do` header tells it.
//!
//! HTTP/1.1 and HTTP/2 (prior knowledge) on one port, by hyper: a codec that is not ours.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;

type Body = BoxBody<Bytes, Infallible>;

/// A running backend; its thread ends with the process.
#[derive(Clone)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections that it accepted.
    pub connections: Arc<AtomicU64>,
    /// Requests that it saw.
    pub requests: Arc<AtomicU64>,
}

impl Backend {
    /// Starts one that calls itself `name`, on a free port of 127.0.0.1.
    pub fn start(name: &str) -> Self {
        Self::start_at(name, (Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Starts one at an address.
    pub fn start_at(name: &str, address: SocketAddr) -> Self {
        let listener =
            std::net::TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let backend = Self {
            address: listener.local_addr().expect("a bound socket has an address"),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let (name, serving) = (name.to_owned(), backend.clone());
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(serving.serve(listener, name.into()));
        });
        backend
    }

    async fn serve(self, listener: std::net::TcpListener, name: Arc<str>) {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
        while let Ok((stream, _)) = listener.accept().await {
            self.connections.fetch_add(1, Ordering::Relaxed);
            let _ = stream.set_nodelay(true);
            let (name, requests) = (name.clone(), self.requests.clone());
            let service = service_fn(move |request| {
                requests.fetch_add(1, Ordering::Relaxed);
                answer(name.clone(), request)
            });
            tokio::spawn(async move {
                let mut server = auto::Builder::new(TokioExecutor::new());
                server.http1().preserve_header_case(true);
                let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    }
}

/// `x-do` commands, separated by spaces: `status=N`, `header=NAME:VALUE`, `sleep=MS`, `body=N` (bytes), `chunks=N`,
/// `trailer=NAME:VALUE`, `abort` (the connection ends without an answer).
async fn answer(name: Arc<str>, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
    let (head, body) = request.into_parts();
    let collected = body.collect().await.map_err(std::io::Error::other)?;
    let trailers = collected.trailers().cloned();
    let body = collected.to_bytes();
    let mut status = 200;
    let mut headers = HeaderMap::new();
    let mut pieces = None;
    let mut sent_trailers = HeaderMap::new();
    let script = head.headers.get("x-do").and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    for command in script.split(' ').filter(|command| !command.is_empty()) {
        let (verb, value) = command.split_once('=').unwrap_or((command, ""));
        match verb {
            "status" => status = value.parse().unwrap_or(500),
            "sleep" => tokio::time::sleep(Duration::from_millis(value.parse().unwrap_or(0))).await,
            "header" => insert(&mut headers, value),
            "trailer" => insert(&mut sent_trailers, value),
            "body" => pieces = Some(vec![Bytes::from(vec![b'x'; value.parse().unwrap_or(0)])]),
            "chunks" => pieces = Some(vec![Bytes::from_static(b"chunk "); value.parse().unwrap_or(0)]),
            "abort" => return Err(std::io::Error::other("told to")),
            _ => {}
        }
    }
    let described = describe(&name, &head, &body, trailers.as_ref());
    let body = match (pieces, sent_trailers.is_empty()) {
        (None, true) => Full::new(Bytes::from(described)).boxed(),
        (pieces, _) => {
            let pieces = pieces.unwrap_or_else(|| vec![Bytes::from(described)]);
            let mut frames: Vec<_> = pieces.into_iter().map(Frame::data).map(Ok).collect();
            if !sent_trailers.is_empty() {
                frames.push(Ok(Frame::trailers(sent_trailers)));
            }
            BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() =
        hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = headers;
    Ok(response)
}

fn insert(headers: &mut HeaderMap, pair: &str) {
    let Some((name, value)) = pair.split_once(':') else { return };
    if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
        headers.append(name, value);
    }
}

/// What was received, one line a fact, so that a difference reads well.
fn describe(name: &str, head: &http::request::Parts, body: &Bytes, trailers: Option<&HeaderMap>) -> String {
    let version = match head.version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    };
    let mut lines = vec![
        format!("backend {name}"),
        format!("{} {} {version}", head.method, head.uri.path_and_query().map_or("", |path| path.as_str())),
    ];
    if let Some(authority) = head.uri.authority().filter(|_| head.version == Version::HTTP_2) {
        lines.push(format!("host: {authority}"));
    }
    let mut fields: Vec<String> = head
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    fields.sort();
    lines.extend(fields);
    lines.push(format!("body {} bytes {:016x}", body.len(), checksum(body)));
    for (name, value) in trailers.into_iter().flatten() {
        lines.push(format!("trailer {name}: {}", String::from_utf8_lossy(value.as_bytes())));
    }
    lines.join("\n") + "\n"
}

/// FNV-1a: enough to see that a body arrived as it was.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
