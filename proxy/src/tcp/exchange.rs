//! One opaque connection from its filter chain to its end: cluster, endpoint, connect, copy, record.
//!
//! A failed connect moves on to another endpoint, up to the configured number of attempts: nothing was sent yet, so it is
//! safe whatever the protocol. From the first byte on the connection stays where it is; a configuration change or a removed
//! endpoint doesn't touch it, unless the cluster says `close_connections_on_host_health_failure`; only a policy that now denies
//! it ends it at once, and so does an end that no root vouches for any more. Policies are asked before anything is opened: a server that speaks first says nothing to whom they deny.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;

use super::copy::{self, Count as _, End};
use super::tally::Tally;
use crate::authz::{self, Facts};
use crate::config::cluster::{Cluster, ClusterHandle};
use crate::config::listener::{NetworkAction, TcpProxy};
use crate::error::{Kind, Progress, ProxyError, Side};
use crate::ext_authz::{DENIED, Question, Verdict, unanswered_details};
use crate::http::template::Context;
use crate::identity::vouch::{DISTRUSTED_CLIENT, DISTRUSTED_SERVER, Vouch};
use crate::io::Stream;
use crate::listener::connection::Connection;
use crate::telemetry::record::{Flags, RequestRecord};
use crate::telemetry::write_logs;
use crate::upstream::balance::Tried;
use crate::upstream::choose::ChooseBy;
use crate::upstream::connect::{TcpConnection, open_tcp};
use crate::worker::{BUFFER_SIZE, Worker};

/// Bytes that are kept of a client that is not let in yet.
const MOST_RECEIVED: usize = 4 * BUFFER_SIZE;

/// How often to draw again where an endpoint was tried already.
const REPICKS: u32 = 5;

/// Serves `downstream`, whose first bytes `received` were read during detection, until both sides have ended.
pub async fn run(
    worker: &Arc<Worker>,
    connection: &Connection,
    proxy: &TcpProxy,
    downstream: Stream,
    mut received: BytesMut,
) {
    let handle = choose(worker, connection, proxy);
    let mut record = connection.record();
    record.cluster_name = Some(&handle.name);
    let tally = Tally::new(worker, connection.direction);
    let exchange = Exchange { worker, connection, proxy, downstream: &downstream };
    let outcome = match exchange.let_in(&mut received, &mut record).await {
        Ok(()) => exchange.forward(&handle, received, &tally, &mut record).await,
        Err(refused) => Ok(refused),
    };
    if matches!(outcome, Ok(End::Broken(..) | End::Denied(_))) {
        // The client must not take a cut stream for a whole one.
        let _ = downstream.reset_on_close();
    }
    conclude(&outcome, &mut record);
    (record.received, record.sent) = tally.close(&record);
    record.complete = Some(record.started.elapsed());
    let context = Context { record: &record, request: None, response: None, trailers: None };
    write_logs(worker, &proxy.access_log, &context);
}

/// The cluster that takes the connection: the one that the SNI names, or one by weight.
fn choose(worker: &Worker, connection: &Connection, proxy: &TcpProxy) -> Arc<ClusterHandle> {
    let by_name = match &connection.inputs.server_name {
        Some(name) if proxy.cluster_from_sni => worker.shared.clusters.get(name),
        _ => None,
    };
    by_name.unwrap_or_else(|| proxy.clusters.choose(worker.random()).cluster.clone())
}

/// Says in the record how it ended, in Envoy's words.
fn conclude(outcome: &Result<End, ProxyError>, record: &mut RequestRecord<'_>) {
    let (flags, termination): (_, Option<Cow<'static, str>>) = match outcome {
        Ok(End::Complete | End::Broken(..)) => (Flags::default(), None),
        Ok(End::Idle) => (Flags::STREAM_IDLE, Some("idle_timeout".into())),
        Ok(End::TooOld) => (Flags::DURATION, Some("max_duration".into())),
        Ok(End::Severed) => (Flags::default(), Some("endpoint_removed".into())),
        Ok(End::Denied(details)) => (Flags::default(), Some(details.clone().into())),
        Err(error) => {
            let words = error.detail.split_whitespace();
            (failure_flags(error, record), Some(words.collect::<Vec<_>>().join("_").into()))
        }
    };
    record.flags.add(flags);
    record.termination_details = termination;
}

fn failure_flags(error: &ProxyError, record: &mut RequestRecord<'_>) -> Flags {
    match error.kind {
        Kind::NoCluster | Kind::NoConfiguration => Flags::NO_CLUSTER,
        Kind::NoHealthyUpstream => Flags::NO_HEALTHY_UPSTREAM,
        Kind::Overflow => Flags::OVERFLOW,
        Kind::UpstreamClosed => Flags::UPSTREAM_CLOSED,
        _ => {
            record.upstream_failure = Some(error.detail.clone());
            record.flags.add(Flags::RETRIES_EXHAUSTED);
            Flags::CONNECT_FAILURE
        }
    }
}

/// What the steps of one connection share.
struct Exchange<'a> {
    worker: &'a Arc<Worker>,
    connection: &'a Connection,
    proxy: &'a TcpProxy,
    downstream: &'a Stream,
}

impl Exchange<'_> {
    /// Asks external authorizers, then policies.
    async fn let_in(&self, received: &mut BytesMut, record: &mut RequestRecord<'_>) -> Result<(), End> {
        let Self { worker, connection, proxy, downstream } = self;
        let facts = Facts::of_connection(connection);
        for authorizer in proxy.authorizers.iter().filter(|authorizer| authorizer.is_for(&facts, worker.id)) {
            let verdict = tokio::select! {
                biased;
                verdict = authorizer.ask(worker, Question { connection, request: None }) => verdict,
                () = left(downstream, received) => return Err(End::Denied("downstream_closed".into())),
            };
            let words = match verdict {
                Verdict::Allowed(_) => continue,
                Verdict::Unanswered(_) if authorizer.fails_open => continue,
                Verdict::Denied(_) => DENIED.to_owned(),
                Verdict::Unanswered(reason) => unanswered_details(&reason).into_owned(),
                Verdict::Untellable(reason) => unanswered_details(reason).into_owned(),
            };
            record.flags.add(Flags::UNAUTHORIZED);
            return Err(End::Denied(words));
        }
        let denied = |denial: &authz::Denial| End::Denied(denial.details.to_string());
        authz::check(&proxy.authorization, &facts, worker.id).map_err(denied)
    }

    async fn forward(
        &self,
        handle: &ClusterHandle,
        received: BytesMut,
        tally: &Tally<'_>,
        record: &mut RequestRecord<'_>,
    ) -> Result<End, ProxyError> {
        let cluster = handle.current.load_full().ok_or_else(|| {
            let detail = format!("cluster {} does not exist", handle.name);
            ProxyError::new(Kind::NoCluster, Side::Internal, Progress::NothingSent, detail)
        })?;
        record.cluster = Some(cluster.clone());
        let TcpConnection { stream: upstream, vouch, permit } = self.connect(&cluster, record).await?;
        record.upstream_local = upstream.local_addr().ok();
        record.upstream_vouch = vouch.clone();
        let count = tally.open(record);
        if !received.is_empty() {
            upstream.write_all(&received).await.map_err(|error| {
                ProxyError::new(Kind::UpstreamClosed, Side::Upstream, Progress::Sent, error.to_string())
            })?;
            count.received(received.len() as u64);
        }
        self.worker.give_buffer(received);
        let end = tokio::select! {
            biased;
            end = copy::both_ways(self.worker, self.downstream, &upstream, self.proxy.idle_timeout, &count) => end,
            () = permit.endpoint().severed(), if cluster.spec.close_on_host_removal => End::Severed,
            () = lifetime(self.proxy.max_duration) => End::TooOld,
            details = self.forbidden_later(vouch.as_deref()) => End::Denied(details),
        };
        if matches!(end, End::Broken(..) | End::Denied(_)) {
            let _ = upstream.reset_on_close();
        }
        Ok(end)
    }

    /// Completes when policies have changed and the new ones deny this connection, or when no root vouches for one of its ends any more.
    async fn forbidden_later(&self, upstream: Option<&Vouch>) -> String {
        let Self { worker, connection, proxy, .. } = self;
        let mut moves = worker.moves();
        loop {
            if connection.is_distrusted() {
                return DISTRUSTED_CLIENT.into();
            }
            if upstream.is_some_and(|vouch| !vouch.holds()) {
                return DISTRUSTED_SERVER.into();
            }
            if let Some(details) = self.denied_since(proxy) {
                return details;
            }
            // The sender is the worker's, which serves us.
            let _ = moves.changed().await;
        }
    }

    /// What to say where other policies than those of `proxy` are in force, and deny this connection.
    fn denied_since(&self, proxy: &TcpProxy) -> Option<String> {
        if !self.connection.is_policed() {
            return None;
        }
        let current = self.connection.current(self.worker);
        let NetworkAction::Tcp(now) = &current.chain.action else { return None };
        if std::ptr::eq(&**now, proxy) {
            return None;
        }
        let facts = Facts::of_connection(self.connection);
        authz::still_allowed(&now.authorization, &facts).err().map(|denial| denial.details.to_string())
    }

    /// Connects to an endpoint of `cluster`, to another one where that fails.
    async fn connect(
        &self,
        cluster: &Arc<Cluster>,
        record: &mut RequestRecord<'_>,
    ) -> Result<TcpConnection, ProxyError> {
        let by = ChooseBy {
            original_destination: self.connection.original_destination(),
            own_end: self.connection.own_end(false),
            head: None,
        };
        let mut tried = Tried::avoiding(REPICKS);
        loop {
            let endpoint = self.worker.pool.choose(cluster, by, &mut tried, || self.worker.random()).await?;
            record.attempts += 1;
            record.endpoint = Some(endpoint.clone());
            match open_tcp(&endpoint.state, &cluster.spec).await {
                Err(error) if record.attempts < self.proxy.max_connect_attempts && may_retry(&error) => {
                    tracing::debug!(connection = self.connection.id, %error, "connect failed, trying again");
                }
                outcome => return outcome,
            }
        }
    }
}

fn may_retry(error: &ProxyError) -> bool {
    matches!(error.kind, Kind::ConnectFailed | Kind::ConnectTimeout)
}

/// Completes when the client has gone away. What it sends meanwhile is kept, up to a bound; then it has to wait with leaving.
async fn left(downstream: &Stream, received: &mut BytesMut) {
    while received.len() < MOST_RECEIVED {
        received.reserve(BUFFER_SIZE);
        match downstream.read_buf(received).await {
            // It has sent its end, and may wait for an answer.
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    std::future::pending().await
}

async fn lifetime(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
