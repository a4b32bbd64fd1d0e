//! One key set from where it is: a few GETs, within bounds of time and size.
//!
//! A URI of a policy is written by whoever may write policies, and asked for by the control plane, which may reach what they may not.
//! So every address that is connected to is held against `Fetcher::blocked`, after names were resolved and after each redirect;
//! and what comes back is shown to nobody unless it is a key set.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_rustls::ConfigBuilderExt as _;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::document::{self, NoUri, Unusable, Uri};
use crate::model::KeyLocation;

/// Largest answer that is read. Sets of large providers have some 20 KiB.
const MAX_BODY: usize = 512 * 1024;
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;

/// Why there are no keys from a place.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It takes too long.
    #[error("no answer within {0:?}")]
    Time(Duration),
    /// Its name has no address.
    #[error("cannot find the address of {0}: {1}")]
    Address(String, #[source] io::Error),
    /// Operators don't want it to be asked.
    #[error("{0} is at {1}, which is blocked (BLOCKED_CIDRS_IN_JWKS_URIS)")]
    Blocked(String, IpAddr),
    /// Nobody listens there.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, #[source] io::Error),
    /// No way to know whom to trust.
    #[error("there are no root certificates of this machine: {0}")]
    Roots(Arc<str>),
    /// Its certificate, or the protocol.
    #[error("TLS with {0}: {1}")]
    Tls(String, #[source] io::Error),
    /// Something on the way to an answer.
    #[error("HTTP with {0}: {1}")]
    Http(String, #[source] hyper::Error),
    /// Another answer than a document.
    #[error("{0} answers {1}")]
    Status(String, StatusCode),
    /// More than is read.
    #[error("{0} answers with more than {MAX_BODY} bytes")]
    TooLarge(String),
    /// Round and round.
    #[error("more than {MAX_REDIRECTS} redirects")]
    Redirects,
    /// To where nobody goes.
    #[error("{0} redirects to {1:?}, which {2}")]
    BadRedirect(String, String, NoUri),
    /// From an encrypted place to one that isn't.
    #[error("{0} redirects to a place without TLS")]
    Downgrade(String),
    /// The place of the policy itself.
    #[error("{0:?} {1}")]
    BadUri(String, NoUri),
    /// An answer that is none.
    #[error("what {0} answers {1}")]
    Unusable(String, Unusable),
}

/// Fetches key sets.
#[derive(Debug, Clone)]
pub struct Fetcher {
    /// Addresses that are not connected to.
    blocked: Arc<[IpNet]>,
    /// With the root certificates of this machine (also `SSL_CERT_FILE`, `SSL_CERT_DIR`).
    tls: Result<Arc<ClientConfig>, Arc<str>>,
}

impl Fetcher {
    /// One that connects to none of these addresses.
    pub fn new(blocked: &[IpNet]) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = || -> Result<ClientConfig, String> {
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?;
            Ok(config.with_native_roots().map_err(|error| error.to_string())?.with_no_client_auth())
        };
        Self { blocked: blocked.into(), tls: tls().map(Arc::new).map_err(Into::into) }
    }

    /// The key set at a place, in its shortest form. `timeout` is for each document.
    pub async fn fetch(&self, location: &KeyLocation, timeout: Duration) -> Result<Arc<str>, FetchError> {
        let text = location.to_string();
        let uri = Uri::parse(&text).map_err(|error| FetchError::BadUri(text, error))?;
        let uri = match location {
            KeyLocation::Uri(_) => uri,
            KeyLocation::Issuer(_) => {
                let (from, body) = self.document(uri, timeout).await?;
                document::jwks_uri(&body).map_err(|error| FetchError::Unusable(from, error))?
            }
        };
        let (from, body) = self.document(uri, timeout).await?;
        let keys = document::key_set(&body).map_err(|error| FetchError::Unusable(from, error))?;
        Ok(keys.into())
    }

    /// A document, and who has answered with it in the end.
    async fn document(&self, uri: Uri, timeout: Duration) -> Result<(String, Bytes), FetchError> {
        let late = |_| FetchError::Time(timeout);
        tokio::time::timeout(timeout, self.follow(uri)).await.map_err(late).flatten()
    }

    async fn follow(&self, mut uri: Uri) -> Result<(String, Bytes), FetchError> {
        for _ in 0..=MAX_REDIRECTS {
            let next = match self.get(&uri).await? {
                Answer::Document(body) => return Ok((uri.authority, body)),
                Answer::Redirect(location) => uri.redirected(&location).map_err(|error| {
                    FetchError::BadRedirect(uri.authority.clone(), location.clone(), error)
                })?,
            };
            if uri.encrypted && !next.encrypted {
                return Err(FetchError::Downgrade(uri.authority));
            }
            uri = next;
        }
        Err(FetchError::Redirects)
    }

    async fn get(&self, uri: &Uri) -> Result<Answer, FetchError> {
        let stream = self.connect(uri).await?;
        if !uri.encrypted {
            return ask(uri, stream).await;
        }
        let config = self.tls.clone().map_err(FetchError::Roots)?;
        let failed = |error| FetchError::Tls(uri.authority.clone(), error);
        let name = ServerName::try_from(uri.host.clone()).map_err(|error| failed(io::Error::other(error)))?;
        ask(uri, TlsConnector::from(config).connect(name, stream).await.map_err(failed)?).await
    }

    /// Connects to an address that may be asked. One that may not spoils the others: a name that has both is a way to try.
    async fn connect(&self, uri: &Uri) -> Result<TcpStream, FetchError> {
        let unknown = |error| FetchError::Address(uri.host.clone(), error);
        let found = tokio::net::lookup_host((uri.host.as_str(), uri.port)).await.map_err(unknown)?;
        let addresses: Vec<SocketAddr> = found.collect();
        let is_blocked = |ip: IpAddr| self.blocked.iter().any(|net| net.contains(&ip.to_canonical()));
        if let Some(address) = addresses.iter().find(|address| is_blocked(address.ip())) {
            return Err(FetchError::Blocked(uri.host.clone(), address.ip().to_canonical()));
        }
        TcpStream::connect(&addresses[..])
            .await
            .map_err(|error| FetchError::Connect(uri.authority.clone(), error))
    }
}

enum Answer {
    Document(Bytes),
    Redirect(String),
}

async fn ask<S>(uri: &Uri, stream: S) -> Result<Answer, FetchError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error| FetchError::Http(uri.authority.clone(), error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with the sender, or when this future is dropped.
    let mut connection = tokio::task::JoinSet::from_iter([async { connection.await.map_or((), |()| ()) }]);
    let request = Request::get(uri.path.as_str())
        .header(HOST, uri.authority.as_str())
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("osier-pilot/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new());
    let Ok(request) = request else {
        return Err(FetchError::BadUri(uri.path.clone(), NoUri::Syntax));
    };
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    if status.is_redirection()
        && let Some(location) = response.headers().get(LOCATION)
    {
        return Ok(Answer::Redirect(String::from_utf8_lossy(location.as_bytes()).into_owned()));
    }
    if !status.is_success() {
        return Err(FetchError::Status(uri.authority.clone(), status));
    }
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    connection.abort_all();
    match body {
        Ok(body) => Ok(Answer::Document(body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLarge(uri.authority.clone())),
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(failed(*error)),
            Err(_) => Err(FetchError::TooLarge(uri.authority.clone())),
        },
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
