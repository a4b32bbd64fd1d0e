//! One request to the application: a connection of its own, an answer with a bound, no more.

use std::io;
use std::net::{IpAddr, SocketAddr};

use bytes::{Bytes, BytesMut};
use http::{Method, Response, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

use super::tls;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, io::Error),
    /// No TLS.
    #[error("TLS with {0}: {1}")]
    Tls(SocketAddr, io::Error),
    /// No answer, or not a whole one.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// More than anybody wants.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// What becomes of an answer that is longer than wanted.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// The beginning is enough.
    Cut(usize),
    /// Only all of it is of use.
    Refuse(usize),
}

/// Connects, from `source` where one is given.
pub async fn connect(address: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream, ClientError> {
    let failed = |error| ClientError::Connect(address, error);
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(failed)?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0)).map_err(failed)?;
    }
    let stream = socket.connect(address).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// A request without a body; `uri` is absolute, and `headers` go as they are.
#[derive(Debug)]
pub struct Ask<'a> {
    /// How.
    pub method: &'a Method,
    /// Where to.
    pub address: SocketAddr,
    /// Where from, unless the kernel may choose.
    pub source: Option<IpAddr>,
    /// What for.
    pub uri: &'a Uri,
    /// As whom.
    pub headers: http::HeaderMap,
}

/// Asks; TLS, whose certificate nobody looks at, where the scheme says so.
pub async fn send(ask: Ask<'_>, bound: Bound) -> Result<Response<Bytes>, ClientError> {
    let stream = connect(ask.address, ask.source).await?;
    let response = match ask.uri.scheme_str() == Some("https") {
        false => over_http1(stream, ask).await?,
        true => {
            let host = ask.uri.host().unwrap_or_default();
            let secured = tls::connect(stream, host).await;
            let secured = secured.map_err(|error| ClientError::Tls(ask.address, error))?;
            match secured.get_ref().1.alpn_protocol() == Some(b"h2") {
                true => over_http2(secured, ask).await?,
                false => over_http1(secured, ask).await?,
            }
        }
    };
    let (head, body) = response.into_parts();
    Ok(Response::from_parts(head, read(body, bound).await?))
}

async fn over_http1<S>(stream: S, ask: Ask<'_>) -> Result<Response<Incoming>, ClientError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer: the sender goes at the end of this function, and the body keeps what it needs.
    tokio::spawn(async move { connection.await.map_err(log_end) });
    let path = ask.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = http::Request::new(Empty::<Bytes>::new());
    *request.method_mut() = ask.method.clone();
    *request.headers_mut() = ask.headers;
    let authority = ask.uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    if let Ok(host) = http::HeaderValue::from_str(authority) {
        request.headers_mut().entry(header::HOST).or_insert(host);
    }
    request.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
    *request.uri_mut() = path.parse().unwrap_or_default();
    Ok(sender.send_request(request).await?)
}

async fn over_http2<S>(stream: S, ask: Ask<'_>) -> Result<Response<Incoming>, ClientError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(async move { connection.await.map_err(log_end) });
    let mut request = http::Request::new(Empty::<Bytes>::new());
    *request.method_mut() = ask.method.clone();
    *request.headers_mut() = ask.headers;
    let host = request.headers_mut().remove(header::HOST);
    let authority = host.as_ref().and_then(|host| host.to_str().ok()?.parse().ok());
    let mut parts = ask.uri.clone().into_parts();
    parts.authority = authority.or(parts.authority);
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_else(|_| ask.uri.clone());
    Ok(sender.send_request(request).await?)
}

fn log_end(error: hyper::Error) {
    tracing::debug!(%error, "connection to the application ended");
}

async fn read(mut body: Incoming, bound: Bound) -> Result<Bytes, ClientError> {
    let (Bound::Cut(most) | Bound::Refuse(most)) = bound;
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if read.len() + data.len() > most {
            match bound {
                Bound::Refuse(most) => return Err(ClientError::TooLong(most)),
                Bound::Cut(_) => read.extend_from_slice(&data[..most - read.len()]),
            }
            break;
        }
        read.extend_from_slice(&data);
    }
    Ok(read.freeze())
}
