//! The channel to the control plane: the addresses of a bootstrap in turn, over TCP or a Unix domain socket.

use std::io;

use hyper_util::rt::TokioIo;
use osier_proto::transport::{self, Connection};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::bootstrap::{XdsServer, XdsTarget};

/// Why the control plane could not be reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
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
    #[error("{target}: no connection within {} s", limit.as_secs_f32())]
    Timeout { target: XdsTarget, limit: std::time::Duration },
}

/// Connects to the `attempt`th address (counting round) and opens a stream.
pub(super) async fn open(server: XdsServer, attempt: usize) -> Result<Connection, ConnectError> {
    let target = server.targets[attempt % server.targets.len()].clone();
    let connecting = channel(&server, target.clone());
    match tokio::time::timeout(server.connect_timeout, connecting).await {
        Ok(channel) => Ok(Connection::over(channel?, server.variant)),
        Err(_) => Err(ConnectError::Timeout { target, limit: server.connect_timeout }),
    }
}

async fn channel(server: &XdsServer, target: XdsTarget) -> Result<Channel, ConnectError> {
    let io_error = |source| ConnectError::Io { target: target.clone(), source };
    let grpc_error = |source| ConnectError::Grpc { target: target.clone(), source };
    // Connected here rather than by tonic, so that an error says what the system said.
    match &target {
        XdsTarget::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(io_error)?;
            stream.set_nodelay(true).map_err(io_error)?;
            over(&endpoint(server, &target), stream).await.map_err(grpc_error)
        }
        XdsTarget::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(io_error)?;
            over(&endpoint(server, &target), stream).await.map_err(grpc_error)
        }
    }
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
