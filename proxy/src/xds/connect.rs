//! The channel to the control plane: the addresses of a bootstrap in turn, over TCP (encrypted or not) or a Unix domain socket.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use osier_proto::transport::{self, Connection};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::bootstrap::{XdsServer, XdsTarget};
use crate::config::tls::{Trust, provider};
use crate::identity::pem;
use crate::io::tls::invalid;

/// Why the control plane could not be reached.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConnectError {
    #[error("{target}: {source}")]
    Io {
        target: XdsTarget,
        #[source]
        source: io::Error,
    },
    #[error("{target}: {source}")]
    Grpc {
        target: XdsTarget,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("{}: {reason}", file.display())]
    File { file: PathBuf, reason: String },
    #[error("{target}: TLS: {source}")]
    Tls {
        target: XdsTarget,
        #[source]
        source: io::Error,
    },
    #[error("{target}: no connection within {} s", limit.as_secs_f32())]
    Timeout { target: XdsTarget, limit: std::time::Duration },
}

/// Connects to the `attempt`th address (counting round) and opens a stream.
pub(super) async fn open(
    server: XdsServer,
    attempt: usize,
    mesh: Option<Arc<Trust>>,
) -> Result<Connection, ConnectError> {
    let (channel, authorization) = channel(&server, attempt, mesh.as_deref()).await?;
    Ok(Connection::over(channel, server.variant, authorization))
}

/// A channel to the `attempt`th address (counting round), and what calls must carry. An encrypted server is known by the roots of its
/// file, and by those of the mesh: where roots change, the file (a ConfigMap that the kubelet brings) is a minute late.
pub(crate) async fn channel(
    server: &XdsServer,
    attempt: usize,
    mesh: Option<&Trust>,
) -> Result<(Channel, Option<AsciiMetadataValue>), ConnectError> {
    let target = server.targets[attempt % server.targets.len()].clone();
    let connecting = connect(server, target.clone(), mesh);
    let authorization = match &server.tls {
        Some(tls) => Some(authorization(&tls.token).await?),
        None => None,
    };
    match tokio::time::timeout(server.connect_timeout, connecting).await {
        Ok(channel) => Ok((channel?, authorization)),
        Err(_) => Err(ConnectError::Timeout { target, limit: server.connect_timeout }),
    }
}

async fn connect(
    server: &XdsServer,
    target: XdsTarget,
    mesh: Option<&Trust>,
) -> Result<Channel, ConnectError> {
    let io_error = |source| ConnectError::Io { target: target.clone(), source };
    let grpc_error = |source| ConnectError::Grpc { target: target.clone(), source };
    // Connected here rather than by tonic, so that an error says what the system said.
    match &target {
        XdsTarget::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(io_error)?;
            stream.set_nodelay(true).map_err(io_error)?;
            if let Some(tls) = &server.tls {
                let stream = encrypted(stream, host, (&tls.roots, mesh), &target).await?;
                return over(&endpoint(server, &target), stream).await.map_err(grpc_error);
            }
            over(&endpoint(server, &target), stream).await.map_err(grpc_error)
        }
        XdsTarget::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(io_error)?;
            over(&endpoint(server, &target), stream).await.map_err(grpc_error)
        }
    }
}

/// The token, as a call carries it.
async fn authorization(file: &Path) -> Result<AsciiMetadataValue, ConnectError> {
    let wrong = |reason: String| ConnectError::File { file: file.into(), reason };
    let token = tokio::fs::read_to_string(file).await.map_err(|error| wrong(error.to_string()))?;
    let mut value = AsciiMetadataValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_| wrong("is no token".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Sends nothing before the server has shown that it is `host`, by a root of the file or of the mesh.
async fn encrypted(
    stream: TcpStream,
    host: &str,
    (roots, mesh): (&Path, Option<&Trust>),
    target: &XdsTarget,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let wrong = |reason: String| ConnectError::File { file: roots.into(), reason };
    let pem = tokio::fs::read(roots).await.map_err(|error| wrong(error.to_string()))?;
    let mut store = mesh.map_or_else(RootCertStore::empty, |mesh| mesh.roots().clone());
    for certificate in pem::certificates(&pem).map_err(|error| wrong(error.to_string()))? {
        store.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    let failed = |source: io::Error| ConnectError::Tls { target: target.clone(), source };
    let other = |error: rustls::Error| failed(invalid(error));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(other)?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(failed)
}

fn endpoint(server: &XdsServer, target: &XdsTarget) -> Endpoint {
    let authority = match target {
        XdsTarget::Tcp(..) => target.to_string(),
        XdsTarget::Unix(_) => "localhost".into(),
    };
    let endpoint = transport::endpoint(&format!("http://{authority}"))
        // A host that is no URI authority still resolved: only the header suffers.
        .unwrap_or_else(|_| Endpoint::from_static("http://localhost"));
    match server.keepalive {
        Some((interval, timeout)) => endpoint.http2_keep_alive_interval(interval).keep_alive_timeout(timeout),
        None => endpoint,
    }
}

async fn over<S>(endpoint: &Endpoint, stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(stream);
    let connector = service_fn(move |_| {
        let stream = stream.take();
        // The channel isn't kept: when the connection ends, another one is made from the start.
        std::future::ready(
            stream.map(TokioIo::new).ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "closed")),
        )
    });
    endpoint.connect_with_connector(connector).await
}
