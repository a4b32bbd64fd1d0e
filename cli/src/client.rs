//! A small HTTP/1.1 client that keeps its connections and can go through an explicit HTTP proxy (`http_proxy`); and one exchange
//! over a stream that somebody else has opened.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Limit of one exchange.
const PATIENCE: Duration = Duration::from_secs(15);

/// Idle connections by the address that they go to.
pub struct Client {
    proxy: Option<SocketAddr>,
    idle: Mutex<HashMap<String, Vec<SendRequest<Full<Bytes>>>>>,
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as text.
    pub fn body_text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    /// Goes straight to each host.
    pub fn direct() -> Self {
        Self { proxy: None, idle: Mutex::default() }
    }

    /// Goes through the explicit proxy at `proxy`.
    pub fn through(proxy: SocketAddr) -> Self {
        Self { proxy: Some(proxy), idle: Mutex::default() }
    }

    /// Goes through `http_proxy` where that is set.
    pub fn from_environment() -> Result<Self> {
        let Ok(value) = std::env::var("http_proxy") else { return Ok(Self::direct()) };
        let address = value.trim_start_matches("http://").trim_end_matches('/');
        let proxy = address.parse().with_context(|| format!("http_proxy `{value}` is not http://IP:PORT"))?;
        Ok(Self::through(proxy))
    }

    /// `GET http://<host><path>`, on a kept connection where there is one.
    pub async fn get(&self, host: &str, path: &str) -> Result<Answer> {
        match tokio::time::timeout(PATIENCE, self.exchange(host, path)).await {
            Ok(outcome) => outcome,
            Err(_) => bail!("no answer from {host} within {} s", PATIENCE.as_secs()),
        }
    }

    async fn exchange(&self, host: &str, path: &str) -> Result<Answer> {
        let target = self.proxy.map_or_else(|| host.to_owned(), |proxy| proxy.to_string());
        let uri = if self.proxy.is_some() { format!("http://{host}{path}") } else { path.to_owned() };
        let request = Request::get(uri).header(HOST, host).body(Full::default())?;
        let mut connection = self.connection(&target).await?;
        let answer = send(&mut connection, request).await?;
        self.idle.lock().entry(target).or_default().push(connection);
        Ok(answer)
    }

    async fn connection(&self, target: &str) -> Result<SendRequest<Full<Bytes>>> {
        loop {
            let Some(mut kept) = self.idle.lock().get_mut(target).and_then(Vec::pop) else { break };
            if kept.ready().await.is_ok() {
                return Ok(kept);
            }
        }
        open(connect(target).await?).await
    }
}

/// A TCP connection.
pub async fn connect(target: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(target).await.with_context(|| format!("cannot connect to {target}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request without a body, over a stream of its own.
pub async fn once(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: Method,
    path: &str,
) -> Result<Answer> {
    let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
    let exchange = async { send(&mut open(stream).await?, request.body(Full::default())?).await };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(outcome) => outcome,
        Err(_) => bail!("no answer within {} s", PATIENCE.as_secs()),
    }
}

async fn open<S>(stream: S) -> Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

async fn send(connection: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Result<Answer> {
    let (head, body) = connection.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer { status: head.status.as_u16(), body })
}
