//! Sends a request to an endpoint and its response to the client, again where the retry policy says so.
//!
//! An attempt: pick an endpoint, get a stream to it, then two things at once, in one task: the request's body goes up while the
//! response's head is awaited and, once that is accepted, its body goes down. The response has priority, since it may end the
//! exchange early. What a client that leaves, a limit that passes or an upstream that fails does to this is decided in one
//! place, the two `select!`s of [`Exchange::transfer`].

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::sleep;

use super::answer::Answer;
use super::body::{BodyLength, Frame, RequestBody};
use super::exchange::{Exchange, Incoming};
use super::filters::rewrite;
use super::head::{Known, Version};
use super::replay::{MAX_REPLAY, Peeked, ReplayBody};
use super::retry::{Outcome, RetryState, Verdict};
use super::server::{Arrival, Responder};
use super::upgrade::{self, Wish};
use crate::authz::{self, Facts};
use crate::config::cluster::Cluster;
use crate::config::route::{Forward, HostRewrite};
use crate::error::{Kind, Progress, ProxyError, Side};
use crate::identity::vouch::{DISTRUSTED_SERVER, Vouch};
use crate::telemetry::record::Flags;
use crate::upstream::balance::Tried;
use crate::upstream::choose::ChooseBy;
use crate::upstream::live::RetryPermit;
use crate::upstream::stream::{Receiver, Sender, UpstreamStream};

/// Bytes of interim responses (1xx) to one request. An HTTP/2 client that takes none of them would have them kept without end.
const MAX_INTERIM: usize = 256 * 1024;
/// What one of them counts beside its fields.
const INTERIM_LINE: usize = 32;

/// How long the upstream may go on in a tunnel whose client has sent its end.
const HALF_CLOSED: Duration = Duration::from_secs(60);

/// What all attempts of a request have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'p> {
    pub forward: &'p Forward,
    pub cluster: &'p Arc<Cluster>,
    pub wish: Wish,
}

/// How an attempt ended that didn't fail.
enum Ended {
    /// The client has got what it gets.
    Served,
    /// Client and upstream have switched protocols.
    Switched(Box<UpstreamStream>),
    /// The response says to try again, and the limits allow it.
    Again(RetryPermit),
}

/// Why an attempt failed before its response was accepted.
struct Failed {
    error: ProxyError,
    /// Its connection had carried a request before.
    reused: bool,
}

impl Exchange<'_> {
    /// Tries until a response is accepted or nothing is left to try.
    pub(super) async fn attempts(&mut self, plan: Plan<'_>, mut retries: RetryState, body: RequestBody<'_>) {
        let peeked = std::mem::take(&mut self.incoming.peeked);
        let mut body = ReplayBody::new(peeked, body, &self.incoming.body, MAX_REPLAY);
        let mut tried = Tried::new(plan.forward.retry.as_deref());
        // Counts this request as a retry for as long as the attempt that it was given for.
        let mut permit: Option<RetryPermit> = None;
        loop {
            self.answer.record.attempts += 1;
            self.incoming.clock.attempt_begins();
            let ended = self.attempt(&plan, &mut retries, &mut tried, &mut body).await;
            self.incoming.clock.attempt_ends();
            drop(permit.take());
            match ended {
                Ok(Ended::Served) => return,
                Ok(Ended::Switched(stream)) => {
                    return Box::pin(self.tunnel(*stream, body.into_inner())).await;
                }
                Ok(Ended::Again(granted)) => permit = Some(granted),
                Err(failed) => match self.judge(&plan, &mut retries, &failed) {
                    Decision::Give => return self.fail(failed.error).await,
                    Decision::Move => {
                        // In the eyes of the upstream it is the same attempt: nobody has looked at it yet.
                        self.answer.record.attempts -= 1;
                        tried.avoid();
                        body.rewind(&self.incoming.body);
                        continue;
                    }
                    Decision::Retry(granted) => permit = Some(granted),
                },
            }
            body.rewind(&self.incoming.body);
            let pause = sleep(retries.backoff(self.answer.arrival.worker.random())).map(Ok);
            let Self { incoming, answer } = self;
            if let Err(error) = while_wanted(incoming, &mut answer.responder, &mut body, pause).await {
                return self.fail(error).await;
            }
        }
    }

    /// What to do after a failed attempt.
    fn judge(&mut self, plan: &Plan<'_>, retries: &mut RetryState, failed: &Failed) -> Decision {
        let outcome = Outcome::Failed { error: &failed.error, reused: failed.reused };
        let flags = &mut self.answer.record.flags;
        match retries.judge(outcome, self.incoming.body.is_replayable()) {
            Verdict::Stands => Decision::Give,
            Verdict::Move => Decision::Move,
            Verdict::Exhausted => {
                flags.add(Flags::RETRIES_EXHAUSTED);
                Decision::Give
            }
            Verdict::Retry => match plan.cluster.live.admit_retry() {
                Some(permit) => Decision::Retry(permit),
                None => {
                    flags.add(Flags::OVERFLOW);
                    Decision::Give
                }
            },
        }
    }

    /// One attempt.
    async fn attempt(
        &mut self,
        plan: &Plan<'_>,
        retries: &mut RetryState,
        tried: &mut Tried,
        body: &mut ReplayBody<'_>,
    ) -> Result<Ended, Failed> {
        let mut stream =
            self.open(plan, tried, body).await.map_err(|error| Failed { error, reused: false })?;
        self.incoming.clock.opened();
        let reused = stream.is_reused();
        self.address(plan, stream.version());
        match self.transfer(plan, retries, &mut stream, body).await {
            Ok(Transferred::Served) => {
                stream.finish();
                Ok(Ended::Served)
            }
            Ok(Transferred::Again(permit)) => Ok(Ended::Again(permit)),
            Ok(Transferred::Switching) => Ok(Ended::Switched(Box::new(stream))),
            Err(error) => {
                if matches!(error.kind, Kind::UpstreamTimeout | Kind::PerTryTimeout) {
                    stream.timed_out();
                }
                Err(Failed { error, reused })
            }
        }
    }

    /// Picks an endpoint and gets a stream to it.
    async fn open(
        &mut self,
        plan: &Plan<'_>,
        tried: &mut Tried,
        body: &mut ReplayBody<'_>,
    ) -> Result<UpstreamStream, ProxyError> {
        let Self { incoming, answer } = self;
        let Answer { arrival, responder, record, .. } = answer;
        let worker = arrival.worker;
        let opened = async {
            let by = ChooseBy {
                original_destination: arrival.connection.original_destination(),
                own_end: arrival.connection.own_end(arrival.manager.explicit_proxy),
                head: Some(incoming.head),
            };
            let endpoint = worker.pool.choose(plan.cluster, by, tried, || worker.random()).await?;
            record.endpoint = Some(endpoint.clone());
            let (version, authority) = (incoming.head.version, incoming.head.authority());
            UpstreamStream::open(worker, plan.cluster, endpoint, version, authority).await
        };
        let stream = while_wanted(incoming, responder, body, opened).await?;
        record.upstream_local = stream.local_address();
        record.upstream_vouch = stream.vouch().cloned();
        Ok(stream)
    }

    /// Writes into the head what differs from attempt to attempt.
    fn address(&mut self, plan: &Plan<'_>, version: Version) {
        let Self { incoming, answer } = self;
        let head = &mut *incoming.head;
        if plan.wish == Wish::Upgrade && version == Version::Http11 {
            let worker = answer.arrival.worker;
            upgrade::add_key(head, || worker.random());
        }
        let elapsed = incoming.clock.since_request_complete().unwrap_or_default();
        incoming.clock.timeouts().announce(elapsed, head);
        if answer.host.is_some_and(|host| host.attempt_count_in_request) {
            let attempts = answer.record.attempts;
            head.fields.set_fmt(Known::XEnvoyAttemptCount, format_args!("{attempts}"));
        }
        if matches!(plan.forward.host_rewrite, HostRewrite::Auto) {
            let name = answer.record.endpoint.as_ref().and_then(|endpoint| endpoint.spec.hostname.as_deref());
            rewrite::rewrite_host(plan.forward, None, name, head);
        }
    }

    /// Moves both bodies. An error means that nothing was accepted and nothing has reached the client.
    async fn transfer(
        &mut self,
        plan: &Plan<'_>,
        retries: &mut RetryState,
        stream: &mut UpstreamStream,
        body: &mut ReplayBody<'_>,
    ) -> Result<Transferred, ProxyError> {
        let Self { incoming, answer } = self;
        let incoming = &*incoming;
        let vouch = stream.vouch().cloned();
        let mut forbidden = pin!(forbidden(answer, incoming, vouch.as_deref()));
        let (mut sender, mut receiver) = stream.split();
        let mut upload = pin!(upload(incoming, body, &mut sender));
        let length = tokio::select! {
            biased;
            received = receive_head(&mut receiver, answer, retries, plan.wish) => received,
            gone = upload.as_mut() => Err(gone),
            late = incoming.clock.expired() => Err(late),
            forbidden = forbidden.as_mut() => Err(forbidden),
        }?;
        incoming.clock.attempt_ends();
        if let Some(refusal) = answer.peers_refusal()
            && retries.can_move(incoming.body.is_replayable())
        {
            return Err(refusal);
        }
        let flags = &mut answer.record.flags;
        match retries.judge(Outcome::Response(&answer.head), incoming.body.is_replayable()) {
            Verdict::Retry => match plan.cluster.live.admit_retry() {
                Some(permit) => return Ok(Transferred::Again(permit)),
                None => flags.add(Flags::OVERFLOW),
            },
            Verdict::Exhausted => flags.add(Flags::RETRIES_EXHAUSTED),
            Verdict::Stands | Verdict::Move => {}
        }
        incoming.body.release();
        let sent = answer.send_head(incoming, length).await;
        if answer.head.status == 101 && sent.is_ok() {
            return Ok(Transferred::Switching);
        }
        let ended = match sent {
            Ok(()) => tokio::select! {
                biased;
                sent = answer.send_body(&mut receiver, &incoming.clock) => sent,
                gone = upload.as_mut() => Err(gone),
                late = incoming.clock.expired() => Err(late),
                forbidden = forbidden.as_mut() => Err(forbidden),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            answer.fail(incoming, error).await;
        }
        Ok(Transferred::Served)
    }

    /// Copies bytes both ways after a 101, until the upstream ends.
    async fn tunnel(&mut self, mut stream: UpstreamStream, mut body: RequestBody<'_>) {
        let Self { incoming, answer } = self;
        incoming.clock.tunnel_begins();
        let flushed = answer.responder.flush().await;
        if !(stream.upgrade() && body.upgrade(&answer.responder)) {
            let detail = "a body came with the request to upgrade";
            let (kind, side) = (Kind::DownstreamProtocol, Side::Downstream);
            return answer.cut(&ProxyError::new(kind, side, Progress::ResponseStarted, detail));
        }
        let incoming = &*incoming;
        let vouch = stream.vouch().cloned();
        let forbidden = forbidden(answer, incoming, vouch.as_deref());
        let (mut sender, mut receiver) = stream.split();
        let mut body = ReplayBody::new(Peeked::default(), body, &incoming.body, 0);
        let ended = match flushed {
            Ok(()) => tokio::select! {
                biased;
                sent = answer.send_body(&mut receiver, &incoming.clock) => sent,
                gone = upload_tunnel(incoming, &mut body, &mut sender) => Err(gone),
                late = incoming.clock.expired() => Err(late),
                forbidden = forbidden => Err(forbidden),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            answer.cut(&error);
        }
    }
}

/// What to do after a failed attempt.
enum Decision {
    /// The failure stands.
    Give,
    /// To another endpoint or connection, at once.
    Move,
    /// Again, after a pause.
    Retry(RetryPermit),
}

/// What a transfer has come to.
enum Transferred {
    Served,
    Again(RetryPermit),
    /// A 101 is with the client.
    Switching,
}

/// Completes when an exchange may not go on: policies that have changed deny it, or no root vouches for the upstream any more. (Of a
/// client that is no longer trusted the connection hears.)
fn forbidden<'a, 'f>(
    answer: &Answer<'a>,
    incoming: &'f Incoming<'a>,
    upstream: Option<&'f Vouch>,
) -> impl Future<Output = ProxyError> + use<'a, 'f> {
    let Arrival { worker, connection, manager } = answer.arrival;
    let remote = answer.record.downstream.remote.ip();
    async move {
        if upstream.is_none() && !connection.is_policed() {
            return std::future::pending().await;
        }
        let denied = || {
            let current = connection.current(worker);
            // The policies that have let it in.
            let now = current.http().filter(|now| !Arc::ptr_eq(now, manager))?;
            let head = incoming.original.as_deref().unwrap_or(incoming.head);
            let facts = Facts::of_connection(connection).with_request(head, remote, &incoming.tokens);
            authz::still_allowed(&now.authorization, &facts).err().map(|denial| denial.details.to_string())
        };
        let mut moves = worker.moves();
        loop {
            if upstream.is_some_and(|vouch| !vouch.holds()) {
                let (kind, side) = (Kind::UpstreamReset, Side::Upstream);
                return ProxyError::new(kind, side, Progress::Sent, DISTRUSTED_SERVER);
            }
            if connection.is_policed()
                && let Some(details) = denied()
            {
                let (kind, side) = (Kind::AccessDenied, Side::Downstream);
                return ProxyError::new(kind, side, Progress::Sent, details);
            }
            // The sender is the worker's, which serves us.
            let _ = moves.changed().await;
        }
    }
}

/// Does `work` unless the client leaves or a limit passes.
async fn while_wanted<T>(
    incoming: &Incoming<'_>,
    responder: &mut Responder<'_>,
    body: &mut ReplayBody<'_>,
    work: impl Future<Output = Result<T, ProxyError>>,
) -> Result<T, ProxyError> {
    tokio::select! {
        biased;
        done = work => done,
        gone = responder.gone() => Err(gone),
        gone = body.gone() => Err(gone),
        late = incoming.clock.expired() => Err(late),
    }
}

/// Waits for the head of the response and passes on what comes before it.
async fn receive_head(
    upstream: &mut Receiver<'_>,
    answer: &mut Answer<'_>,
    retries: &mut RetryState,
    wish: Wish,
) -> Result<BodyLength, ProxyError> {
    let mut interim = 0;
    loop {
        let Answer { head, responder, arrival, .. } = &mut *answer;
        head.clear();
        let length = tokio::select! {
            biased;
            received = upstream.recv_head(head) => received?,
            gone = responder.gone() => return Err(gone),
        };
        match head.status {
            101 if wish == Wish::Upgrade => return Ok(length),
            101 => {
                let detail = "101 to a request that didn't ask for it";
                let (side, progress) = (Side::Upstream, Progress::ResponseStarted);
                return Err(ProxyError::new(Kind::UpstreamProtocol, side, progress, detail));
            }
            100..=199 if interim > MAX_INTERIM => {
                let (side, progress) = (Side::Upstream, Progress::ResponseStarted);
                let detail = "interim responses without end";
                return Err(ProxyError::new(Kind::UpstreamProtocol, side, progress, detail));
            }
            // The server has said it already.
            100 if !arrival.manager.proxy_100_continue => interim += INTERIM_LINE,
            100..=199 => {
                // The client may act on it, so nothing may be tried again.
                retries.forbid();
                interim += INTERIM_LINE + head.fields.wire_len();
                responder.send_informational(head).await?;
            }
            _ => return Ok(length),
        }
    }
}

/// Sends head and body to the upstream, then watches whether the client stays. Returns only where it doesn't, or where its body
/// can't be read.
async fn upload(incoming: &Incoming<'_>, body: &mut ReplayBody<'_>, upstream: &mut Sender<'_>) -> ProxyError {
    let sent = async {
        upstream.send_head(incoming.head, body.length()).await?;
        upload_body(incoming, body, upstream).await
    };
    match sent.await {
        Ok(()) => body.gone().await,
        Err(error) => error,
    }
}

/// The client's direction of a tunnel. Its end leaves the other direction open for a while.
async fn upload_tunnel(
    incoming: &Incoming<'_>,
    body: &mut ReplayBody<'_>,
    upstream: &mut Sender<'_>,
) -> ProxyError {
    if let Err(error) = upload_body(incoming, body, upstream).await {
        return error;
    }
    sleep(HALF_CLOSED).await;
    let detail = "the client has sent its end long ago";
    ProxyError::new(Kind::DownstreamClosed, Side::Downstream, Progress::ResponseStarted, detail)
}

/// Sends the body to its end; fails where it can't be read. Where the upstream can't be written to, this waits for ever: it may
/// have answered early, and why it takes nothing more is what the receiving side finds out.
async fn upload_body(
    incoming: &Incoming<'_>,
    body: &mut ReplayBody<'_>,
    upstream: &mut Sender<'_>,
) -> Result<(), ProxyError> {
    let Incoming { clock, body: state, .. } = incoming;
    loop {
        // What was sent so far is flushed only before a wait, so that a small request leaves in one write.
        let frame = match body.frame(state, clock).now_or_never() {
            Some(frame) => frame?,
            None => {
                upstream.flush().await?;
                body.frame(state, clock).await?
            }
        };
        match frame {
            Some(Frame::Data(data)) => upstream.send_data(data).await?,
            Some(Frame::Trailers(trailers)) => upstream.send_trailers(trailers),
            None => {
                clock.request_complete();
                return upstream.finish().await;
            }
        }
        clock.touch();
    }
}
