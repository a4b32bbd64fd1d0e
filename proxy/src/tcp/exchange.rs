//! One opaque connection from its filter chain to its end: cluster, endpoint, connect, copy.
//!
//! A failed connect moves on to another endpoint, up to the configured number of attempts: nothing was sent yet, so it is
//! safe whatever the protocol. From the first byte on the connection stays where it is; a configuration change or a removed
//! endpoint doesn't touch it, unless the cluster says `close_connections_on_host_health_failure`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::BytesMut;

use super::copy::{self, Count, End};
use crate::config::cluster::{Cluster, ClusterHandle, Discovery};
use crate::config::listener::TcpProxy;
use crate::error::{Kind, Progress, ProxyError, Side};
use crate::io::Stream;
use crate::listener::connection::Connection;
use crate::upstream::balance::{Tried, pick};
use crate::upstream::connect::{TcpConnection, open_tcp};
use crate::upstream::live::EndpointState;
use crate::worker::Worker;

/// How often to draw again where an endpoint was tried already.
const REPICKS: u32 = 5;

/// Bytes moved, for the record.
#[derive(Debug, Default)]
struct Moved {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Count for Moved {
    fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }
}

/// Serves `downstream`, whose first bytes `received` were read during detection, until both sides have ended.
pub async fn run(
    worker: &Worker,
    connection: &Connection,
    proxy: &TcpProxy,
    downstream: Stream,
    received: BytesMut,
) {
    let moved = Moved::default();
    let outcome = match choose(worker, connection, proxy) {
        Ok(cluster) => forward(worker, connection, proxy, &cluster, &downstream, received, &moved).await,
        Err(error) => Err(error),
    };
    match outcome {
        Ok(end) => {
            if matches!(end, End::Broken(..)) {
                // The client must not take a cut stream for a whole one.
                let _ = downstream.reset_on_close();
            }
            tracing::debug!(connection = connection.id, ?end, "connection ended");
        }
        Err(error) => tracing::debug!(connection = connection.id, %error, "connection closed"),
    }
}

/// The cluster that takes the connection.
fn choose(worker: &Worker, connection: &Connection, proxy: &TcpProxy) -> Result<Arc<Cluster>, ProxyError> {
    let by_name = match &connection.inputs.server_name {
        Some(name) if proxy.cluster_from_sni => worker.shared.clusters.get(name),
        _ => None,
    };
    let current = |handle: &ClusterHandle| {
        handle.current.load_full().ok_or_else(|| {
            let detail = format!("cluster {} does not exist", handle.name);
            ProxyError::new(Kind::NoCluster, Side::Internal, Progress::NothingSent, detail)
        })
    };
    match by_name {
        Some(handle) => current(&handle),
        None => current(&proxy.clusters.choose(worker.random()).cluster),
    }
}

async fn forward(
    worker: &Worker,
    connection: &Connection,
    proxy: &TcpProxy,
    cluster: &Cluster,
    downstream: &Stream,
    received: BytesMut,
    moved: &Moved,
) -> Result<End, ProxyError> {
    let TcpConnection { stream, permit } = connect(worker, connection, proxy, cluster).await?;
    let upstream = Stream::from(stream);
    if !received.is_empty() {
        let sent = upstream.write_all(&received).await;
        sent.map_err(|error| {
            ProxyError::new(Kind::UpstreamClosed, Side::Upstream, Progress::Sent, error.to_string())
        })?;
        moved.received(received.len() as u64);
        worker.give_buffer(received);
    }
    let end = tokio::select! {
        biased;
        end = copy::both_ways(worker, downstream, &upstream, proxy.idle_timeout, moved) => end,
        () = permit.endpoint().severed(), if cluster.spec.close_on_host_removal => End::Severed,
        () = lifetime(proxy.max_duration) => End::TooOld,
    };
    if matches!(end, End::Broken(..)) {
        let _ = upstream.reset_on_close();
    }
    Ok(end)
}

async fn lifetime(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Connects to an endpoint of `cluster`, to another one where that fails.
async fn connect(
    worker: &Worker,
    connection: &Connection,
    proxy: &TcpProxy,
    cluster: &Cluster,
) -> Result<TcpConnection, ProxyError> {
    let mut tried = Tried::avoiding(REPICKS);
    let mut attempt = 1;
    loop {
        let endpoint = pick_endpoint(worker, connection, cluster, &mut tried)?;
        match open_tcp(&endpoint, &cluster.spec).await {
            Err(error) if attempt < proxy.max_connect_attempts && error.kind != Kind::Overflow => {
                tracing::debug!(connection = connection.id, %error, attempt, "connect failed, trying again");
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

fn pick_endpoint(
    worker: &Worker,
    connection: &Connection,
    cluster: &Cluster,
    tried: &mut Tried,
) -> Result<Arc<EndpointState>, ProxyError> {
    if let Discovery::OriginalDst(settings) = &cluster.spec.discovery {
        let mut address = connection.inputs.destination;
        address.set_port(settings.port_override.unwrap_or(address.port()));
        return Ok(cluster.live.endpoint(address));
    }
    let set = cluster.endpoints.load();
    let picked = pick(&set, cluster.spec.balance, tried, || worker.random()).ok_or_else(|| {
        let detail = format!("cluster {} has no healthy endpoint", cluster.spec.name);
        ProxyError::new(Kind::NoHealthyUpstream, Side::Upstream, Progress::NothingSent, detail)
    })?;
    let endpoint = picked.endpoint.state.clone();
    tried.record(picked);
    Ok(endpoint)
}
