//! HTTP for API servers (the webhooks, by TLS) and for whoever looks at the monitoring port. A client that is slow or silent holds up
//! nobody else and has a deadline, and so has the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use osier_proto::transport::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use rustls::{AlertDescription, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::preface::Prefaced;

/// API servers keep a handful open, and so do people and Prometheus.
const MAX_CONNECTIONS: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than API servers keep an idle connection, so that it is they who close it; also without any request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Who asks; every request has it among its extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Serves until `shutdown` is cancelled; requests that have begun get their answer. `purpose` is how logs call it.
pub async fn serve(
    purpose: &'static str,
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<ServerConfig>>,
    shutdown: CancellationToken,
) {
    let acceptor = tls.map(TlsAcceptor::from);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let router = router.clone().layer(Extension(Peer(peer)));
                let (acceptor, watcher) = (acceptor.clone(), graceful.watcher());
                tokio::spawn(async move {
                    arrived(purpose, stream, acceptor, router, watcher).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "{purpose}: cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // Who comes now is refused at once, instead of waiting for an answer that nobody gives.
    drop(listener);
    let _ = tokio::time::timeout(DRAIN_TIME, graceful.shutdown()).await;
}

async fn arrived(
    purpose: &'static str,
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    router: Router,
    watcher: Watcher,
) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        return connection(purpose, stream, builder().http1_only(), router, watcher).await;
    };
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return failed(purpose, &error),
        Err(_) => return tracing::debug!("{purpose}: no handshake in time"),
    };
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => {
            connection(purpose, Prefaced::new(stream), builder().http2_only(), router, watcher).await
        }
        _ => connection(purpose, stream, builder().http1_only(), router, watcher).await,
    }
}

/// A server of one version each: to find out by itself it would wait without limit.
fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    builder
}

async fn connection(
    purpose: &'static str,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    builder: auto::Builder<TokioExecutor>,
    router: Router,
    watcher: Watcher,
) {
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = watcher.watch(served.into_owned()).await {
        tracing::debug!(%error, "{purpose}: connection ended");
    }
}

/// An API server that doesn't trust us creates no pods: that is worth a word.
fn failed(purpose: &'static str, error: &std::io::Error) {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    let distrust = matches!(
        cause,
        Some(rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
        ))
    );
    if distrust {
        tracing::warn!(%error, "{purpose}: a client does not trust our certificate; is the caBundle of the webhook configuration ours?");
    } else {
        tracing::debug!(%error, "{purpose}: handshake failed");
    }
}
