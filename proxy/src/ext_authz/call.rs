//! One call of an authorizer, over the worker's pool, with a limit for all of it.
//!
//! A call has no effects, so one that nobody has looked at goes to another endpoint or connection, as a request does.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout_at};

use super::Authorizer;
use crate::config::cluster::Cluster;
use crate::error::{Kind, Progress, ProxyError, Side};
use crate::http::body::{BodyLength, Frame};
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead, Version};
use crate::http::retry::{MAX_MOVES, is_unseen};
use crate::upstream::balance::Tried;
use crate::upstream::choose::ChooseBy;
use crate::upstream::stream::{Receiver, UpstreamStream, speaks_http2};
use crate::worker::Worker;

/// Bytes of an answer.
const MAX_ANSWER: usize = 1024 * 1024;
/// Interim responses before an answer.
const MAX_INTERIM: usize = 16;
/// Longest wait where there is no limit: what a timer can count.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// An answer.
pub(super) struct Response {
    pub head: ResponseHead,
    pub body: Bytes,
    pub trailers: Option<Fields>,
}

/// Sends a request to the authorizer and receives its whole response. `version`: what it is to be spoken to in; `host`: whom TLS asks
/// for.
pub(super) async fn call(
    authorizer: &Authorizer,
    worker: &Arc<Worker>,
    (version, host): (Version, &[u8]),
    head: &RequestHead,
    body: &Bytes,
) -> Result<Response, ProxyError> {
    let Some(cluster) = authorizer.cluster.current.load_full() else {
        let detail = format!("cluster {} doesn't exist", authorizer.cluster.name);
        return Err(ProxyError::new(Kind::NoCluster, Side::Internal, Progress::NothingSent, detail));
    };
    if version == Version::Http2 && !speaks_http2(&cluster, version) {
        let detail = format!("cluster {} doesn't speak HTTP/2, which gRPC needs", authorizer.cluster.name);
        return Err(ProxyError::new(Kind::UpstreamProtocol, Side::Internal, Progress::NothingSent, detail));
    }
    let deadline = Instant::now() + authorizer.timeout.unwrap_or(FOREVER);
    let (mut tried, mut moves) = (Tried::avoiding(1), 0);
    loop {
        match attempt(worker, &cluster, (version, host), head, body, deadline, &mut tried).await {
            Err(failed) if failed.unseen && moves < MAX_MOVES => moves += 1,
            Err(failed) => return Err(failed.error),
            Ok(response) => return Ok(response),
        }
    }
}

struct Failed {
    error: ProxyError,
    /// Nobody has looked at the request.
    unseen: bool,
}

async fn attempt(
    worker: &Arc<Worker>,
    cluster: &Arc<Cluster>,
    (version, host): (Version, &[u8]),
    head: &RequestHead,
    body: &Bytes,
    deadline: Instant,
    tried: &mut Tried,
) -> Result<Response, Failed> {
    let open = async {
        let endpoint = worker.pool.choose(cluster, ChooseBy::default(), tried, || worker.random()).await?;
        UpstreamStream::open(worker, cluster, endpoint, version, host).await
    };
    let opened = timeout_at(deadline, open).await.unwrap_or_else(|_| Err(late(Progress::NothingSent)));
    let failed = |error, kept| Failed { unseen: is_unseen(&error, kept, true), error };
    let mut stream = opened.map_err(|error| failed(error, false))?;
    match timeout_at(deadline, exchange(&mut stream, head, body)).await {
        Ok(Ok(response)) => {
            stream.finish();
            Ok(response)
        }
        Ok(Err(error)) => Err(failed(error, stream.is_reused())),
        Err(_) => {
            let error = late(stream.progress());
            stream.timed_out();
            Err(failed(error, false))
        }
    }
}

fn late(progress: Progress) -> ProxyError {
    ProxyError::new(Kind::UpstreamTimeout, Side::Upstream, progress, "no answer in time")
}

/// Both directions at once: an answer may come before all was sent.
async fn exchange(
    stream: &mut UpstreamStream,
    head: &RequestHead,
    body: &Bytes,
) -> Result<Response, ProxyError> {
    let (mut sender, mut receiver) = stream.split();
    let mut upload = pin!(async {
        let sent = async {
            sender.send_head(head, BodyLength::Known(body.len() as u64)).await?;
            if !body.is_empty() {
                sender.send_data(body.clone()).await?;
            }
            sender.finish().await
        };
        match sent.await {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
    });
    tokio::select! {
        biased;
        received = receive(&mut receiver) => received,
        error = upload.as_mut() => Err(error),
    }
}

async fn receive(receiver: &mut Receiver<'_>) -> Result<Response, ProxyError> {
    let broken = |detail: &'static str| {
        ProxyError::new(Kind::UpstreamProtocol, Side::Upstream, Progress::ResponseStarted, detail)
    };
    let mut head = ResponseHead::default();
    let mut interim = 0;
    loop {
        head.clear();
        receiver.recv_head(&mut head).await?;
        match head.status {
            101 => return Err(broken("101 to a request that didn't ask for it")),
            100..=199 if interim >= MAX_INTERIM => return Err(broken("interim responses without end")),
            100..=199 => interim += 1,
            _ => break,
        }
    }
    let (mut body, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = receiver.frame().await? {
        match frame {
            Frame::Data(data) if body.len() + data.len() > MAX_ANSWER => {
                return Err(broken("the answer is too large"));
            }
            Frame::Data(data) => body.extend_from_slice(&data),
            Frame::Trailers(fields) => trailers = Some(fields),
        }
    }
    Ok(Response { head, body: body.freeze(), trailers })
}
