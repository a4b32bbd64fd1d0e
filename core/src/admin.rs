//! A small HTTP/1 server for people and scripts: administration and probes. Never on the request path.
//!
//! Browsers reach loopback too, so a page on the internet could talk to an admin port: requests whose `Host` is a name that
//! isn't `localhost` (DNS rebinding) and requests that a foreign page sends (`Origin`) are refused.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// A client must have sent its request by then.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// A client must take something of an answer within this time.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// Connections at once; probes and a person need a handful. One more takes the place of the oldest that waits for a request: who opens
/// many and says nothing keeps no probe out.
const MAX_CONNECTIONS: usize = 64;

/// One request. Bodies are not read: parameters are in the query.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// GET, POST, …
    pub method: Method,
    /// Path without the query.
    pub path: String,
    /// Decoded parameters, in order; `?usedonly` has an empty value.
    pub query: Vec<(String, String)>,
    /// All headers.
    pub headers: HeaderMap,
    /// Who asks; `None` where there is no connection.
    pub peer: Option<SocketAddr>,
}

impl Request {
    /// A parameter's first value.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// True where a parameter is there, whatever its value.
    pub fn has(&self, name: &str) -> bool {
        self.parameter(name).is_some()
    }
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    /// Content type.
    pub content_type: &'static str,
    /// Body.
    pub body: Bytes,
}

impl Reply {
    /// 200 with text.
    pub fn text(body: impl Into<Bytes>) -> Self {
        Self { status: StatusCode::OK, content_type: "text/plain; charset=UTF-8", body: body.into() }
    }

    /// 200 with JSON.
    pub fn json(body: &serde_json::Value) -> Self {
        Self { content_type: "application/json", ..Self::text(format!("{body:#}\n")) }
    }

    /// Another status with text.
    pub fn status(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, ..Self::text(body) }
    }
}

/// What answers.
pub trait Pages: Send + Sync + 'static {
    /// Refuse what a browser may send for a foreign page. Off only for pages that neither show nor change anything of worth,
    /// and that are asked for by names too (probes).
    const GUARDED: bool = true;

    /// The answer to a request.
    fn answer(&self, request: Request) -> impl Future<Output = Reply> + Send;
}

/// Serves `pages` until the future is dropped.
pub async fn serve(listener: TcpListener, pages: Arc<impl Pages>) {
    let mut places = Places::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let waits = Arc::new(AtomicBool::new(true));
                let serving = connection(stream, peer, pages.clone(), waits.clone());
                places.give(tokio::spawn(serving).abort_handle(), waits);
            }
            Err(error) => {
                tracing::warn!(%error, "admin: cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The connections there are, oldest first.
#[derive(Default)]
struct Places(Vec<Place>);

struct Place {
    serving: AbortHandle,
    /// No request is being answered.
    waits: Arc<AtomicBool>,
}

impl Places {
    fn give(&mut self, serving: AbortHandle, waits: Arc<AtomicBool>) {
        self.0.retain(|place| !place.serving.is_finished());
        if self.0.len() >= MAX_CONNECTIONS {
            let waiting = self.0.iter().position(|place| place.waits.load(Ordering::Relaxed));
            self.0.remove(waiting.unwrap_or(0)).serving.abort();
        }
        self.0.push(Place { serving, waits });
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, pages: Arc<impl Pages>, waits: Arc<AtomicBool>) {
    // Who takes nothing of an answer for so long gives its place to others. The kernel watches it.
    if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(WRITE_LIMIT)) {
        tracing::debug!(%error, "admin: no limit on writing");
    }
    let service = service_fn(move |request| {
        let (pages, waits) = (pages.clone(), waits.clone());
        async move {
            waits.store(false, Ordering::Relaxed);
            let answer = answer(&*pages, request, peer).await;
            waits.store(true, Ordering::Relaxed);
            Ok::<_, Infallible>(response(answer))
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = serving.await {
        tracing::debug!(%error, "admin: connection ended");
    }
}

async fn answer<P: Pages>(pages: &P, request: http::Request<Incoming>, peer: SocketAddr) -> Reply {
    if let Err(reason) = check_origin(request.headers())
        && P::GUARDED
    {
        return Reply::status(StatusCode::FORBIDDEN, reason);
    }
    let query = request.uri().query().map(parse_query).unwrap_or_default();
    let (head, _) = request.into_parts();
    let (method, path, headers) = (head.method, head.uri.path().to_owned(), head.headers);
    pages.answer(Request { method, path, query, headers, peer: Some(peer) }).await
}

fn response(reply: Reply) -> http::Response<Full<Bytes>> {
    let mut response = http::Response::new(Full::new(reply.body));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// Refuses what a browser sends on behalf of a foreign page; for pages that aren't guarded as a whole.
pub fn check_origin(headers: &HeaderMap) -> Result<(), &'static str> {
    let host = match headers.get(HOST).map(|host| host.to_str()) {
        None => "",
        Some(Ok(host)) => host,
        Some(Err(_)) => return Err("Host is not text\n"),
    };
    if !is_address(host) {
        return Err("Host must be an IP address or localhost\n");
    }
    match headers.get(ORIGIN) {
        Some(origin) if origin.as_bytes() != format!("http://{host}").as_bytes() => {
            Err("requests of other sites are refused\n")
        }
        _ => Ok(()),
    }
}

/// A rebound name is a name; an address cannot be rebound. Nothing at all is HTTP/1.0.
fn is_address(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    host.is_empty()
        || name.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok()
        || host.parse::<SocketAddr>().is_ok()
}

/// `a=b&c` decoded; `+` and `%20` are spaces.
fn parse_query(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, tail)) = rest.split_first() {
            let escaped = (*first == b'%').then(|| tail.split_at_checked(2)).flatten();
            let value =
                escaped.and_then(|(hex, _)| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
            match (value, first) {
                (Some(value), _) => {
                    bytes.push(value);
                    rest = &tail[2..];
                }
                (None, b'+') => {
                    bytes.push(b' ');
                    rest = tail;
                }
                (None, other) => {
                    bytes.push(*other);
                    rest = tail;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Echo;

    impl Pages for Echo {
        async fn answer(&self, request: Request) -> Reply {
            Reply::text(format!("{} {} {:?}", request.method, request.path, request.query))
        }
    }

    async fn ask(request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let mut client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        let serving = tokio::spawn(serve(listener, Arc::new(Echo)));
        client.write_all(request.as_bytes()).await.expect("send");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("answer");
        serving.abort();
        answer
    }

    #[tokio::test]
    async fn names_are_refused_where_it_matters() {
        let answer = ask("GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn who_says_nothing_keeps_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let serving = tokio::spawn(serve(listener, Arc::new(Echo)));
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS + 8 {
            silent.push(TcpStream::connect(address).await.expect("connect"));
        }
        let mut client = TcpStream::connect(address).await.expect("connect");
        client
            .write_all(b"GET /a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await
            .expect("send");
        let mut answer = String::new();
        let answered = tokio::time::timeout(HEAD_LIMIT / 2, client.read_to_string(&mut answer)).await;
        answered.expect("before the silent ones run into their limit").expect("answer");
        assert!(answer.ends_with("GET /a []"), "{answer}");
        serving.abort();
    }

    #[tokio::test]
    async fn requests_are_parsed_and_answered() {
        let answer = ask(
            "POST /logging?level=debug&filter=a%2Eb+c&usedonly HTTP/1.1\r\nHost: localhost:15000\r\nConnection: close\r\n\r\n",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with(
            "POST /logging [(\"level\", \"debug\"), (\"filter\", \"a.b c\"), (\"usedonly\", \"\")]"
        ));
    }

    #[test]
    fn foreign_pages_are_refused() {
        let headers = |host: Option<&'static str>, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            host.map(|host| headers.insert(HOST, HeaderValue::from_static(host)));
            origin.map(|origin| headers.insert(ORIGIN, HeaderValue::from_static(origin)));
            headers
        };
        for (host, origin, allowed) in [
            (None, None, true),
            (Some("localhost"), None, true),
            (Some("LOCALHOST:15000"), None, true),
            (Some("127.0.0.1:15000"), None, true),
            (Some("10.0.0.7"), None, true),
            (Some("[::1]:15000"), None, true),
            (Some("::1"), None, true),
            (Some("evil.example:15000"), None, false),
            (Some("localhost.evil.example"), None, false),
            (Some("127.0.0.1:15000"), Some("http://127.0.0.1:15000"), true),
            (Some("127.0.0.1:15000"), Some("https://evil.example"), false),
            (Some("127.0.0.1:15000"), Some("null"), false),
        ] {
            assert_eq!(check_origin(&headers(host, origin)).is_ok(), allowed, "{host:?} {origin:?}");
        }
    }

    #[test]
    fn queries_with_broken_escapes_stay_as_they_are() {
        for (query, expected) in [("%", "%"), ("%4", "%4"), ("%zz", "%zz"), ("%41%", "A%"), ("%C3%A4", "ä")]
        {
            assert_eq!(parse_query(query), [(expected.to_owned(), String::new())], "{query}");
        }
    }
}
