//! The client's side of an exchange: what it gets, and what is recorded of that.
//!
//! Everything that a client gets goes through [`Answer`]: the upstream's response, an answer of our own, or a cut. So the record is
//! right whichever it was. Invariants: after a head comes only its own body and end, or a cut; every failure takes its words
//! from `reply`'s table.

use std::borrow::Cow;

use futures_util::FutureExt as _;

use super::body::{BodyLength, Frame};
use super::clock::Clock;
use super::exchange::Incoming;
use super::fields::Fields;
use super::filters::{header_ops, response};
use super::head::{Known, ResponseHead};
use super::reply::{self, LocalReply, Situation};
use super::server::{Arrival, Responder};
use super::timeout::parse_grpc_timeout;
use crate::config::listener::Direction;
use crate::config::route::{Route, VirtualHost};
use crate::error::{Kind, ProxyError, Side};
use crate::ext_authz::Changes;
use crate::identity::vouch::DISTRUSTED_CLIENT;
use crate::telemetry::record::{Flags, RequestRecord};
use crate::upstream::stream::Receiver;

/// gRPC's status for a call that took too long.
const DEADLINE_EXCEEDED: u32 = 4;

/// What the client gets, and the record of it.
pub(super) struct Answer<'a> {
    pub(super) arrival: Arrival<'a>,
    pub(super) responder: Responder<'a>,
    /// Head of the response.
    pub(super) head: ResponseHead,
    /// Trailers of the response, kept where an access log may ask for them.
    pub(super) trailers: Option<Fields>,
    pub(super) record: RequestRecord<'a>,
    pub(super) host: Option<&'a VirtualHost>,
    pub(super) levels: Option<header_ops::Levels<'a>>,
    /// Status for a cluster that doesn't exist.
    pub(super) cluster_not_found_status: u16,
    /// What external authorizers have the client told.
    pub(super) additions: Vec<Changes>,
    /// The client told who it is, so it is told who answers.
    pub(super) peer_told: bool,
    /// Served, answered or cut. What is neither was dropped, because the client is gone.
    ended: bool,
    /// The connection goes on as another one, which counts for itself.
    pub(super) handed_over: bool,
}

impl<'a> Answer<'a> {
    pub(super) fn new(arrival: Arrival<'a>, responder: Responder<'a>, record: RequestRecord<'a>) -> Self {
        Self {
            arrival,
            responder,
            // Empty: status 0 is what a client got that left before there was one.
            head: ResponseHead { status: 0, ..arrival.worker.take_response() },
            trailers: None,
            record,
            host: None,
            levels: None,
            cluster_not_found_status: 503,
            additions: Vec::new(),
            peer_told: false,
            ended: false,
            handed_over: false,
        }
    }

    /// A route was found: its header operations apply from now on.
    pub(super) fn matched(&mut self, host: &'a VirtualHost, route: &'a Route) {
        let table = self.arrival.manager.routes.as_deref();
        self.host = Some(host);
        self.record.route = Some(route);
        self.levels = Some(header_ops::Levels {
            specific_first: [
                None,
                Some(&route.headers),
                Some(&host.headers),
                table.map(|table| &table.headers),
            ],
            most_specific_wins: table.is_some_and(|table| table.most_specific_wins),
        });
    }

    /// Sends the head of the upstream's response, after the filters.
    pub(super) async fn send_head(
        &mut self,
        incoming: &Incoming<'_>,
        length: BodyLength,
    ) -> Result<(), ProxyError> {
        let Arrival { worker, connection, manager } = self.arrival;
        self.hide_not_processed();
        let fields = &mut self.head.fields;
        if connection.direction == Direction::Inbound {
            let own =
                worker.shared.node.told.as_ref().filter(|_| manager.peer_metadata.send && self.peer_told);
            own.inspect(|own| own.add_to(fields));
        } else {
            fields.remove(Known::XEnvoyDecoratorOperation);
            if manager.peer_metadata.receive {
                self.record.peer = worker.peers.take(fields);
            }
        }
        if let Some(took) = incoming.clock.since_request_complete() {
            fields.set_fmt(Known::XEnvoyUpstreamServiceTime, format_args!("{}", took.as_millis()));
        }
        self.record.status = self.head.status;
        self.record.details = Cow::Borrowed("via_upstream");
        self.record.response_started = Some(incoming.clock.elapsed());
        if let Some(levels) = &self.levels {
            header_ops::apply_to_response(levels, &mut self.head, incoming.head, &self.record);
        }
        self.finish_head(incoming);
        self.responder.send_head(&self.head, length).await
    }

    /// Passes the upstream's body on, to its end. What was sent so far is flushed only before a wait, so that a small response
    /// leaves in one write.
    pub(super) async fn send_body(
        &mut self,
        upstream: &mut Receiver<'_>,
        clock: &Clock,
    ) -> Result<(), ProxyError> {
        loop {
            let frame = match upstream.frame().now_or_never() {
                Some(frame) => frame?,
                None => {
                    self.responder.flush().await?;
                    tokio::select! {
                        biased;
                        frame = upstream.frame() => frame?,
                        gone = self.responder.gone() => return Err(gone),
                    }
                }
            };
            clock.touch();
            match frame {
                Some(Frame::Data(data)) => self.responder.send_data(data).await?,
                Some(Frame::Trailers(trailers)) => self.send_trailers(trailers),
                None => break,
            }
            clock.touch();
        }
        self.responder.finish().await?;
        self.ended = true;
        Ok(())
    }

    fn send_trailers(&mut self, trailers: Fields) {
        self.note_grpc_status(&trailers);
        self.record.sent_head += trailers.wire_len() as u64;
        if !self.arrival.manager.access_log.is_empty() {
            self.trailers = Some(trailers.clone());
        }
        self.responder.send_trailers(trailers);
    }

    /// Answers in place of the upstream.
    pub(super) async fn reply(&mut self, incoming: &Incoming<'_>, mut reply: LocalReply) {
        self.record.flags.add(reply.flags);
        self.record.details = std::mem::take(&mut reply.details);
        self.record.status = reply.head.status;
        if incoming.head.upgrade().is_some() {
            // The client may have begun with what it hoped for: what follows is no request then.
            reply = reply.closing();
        }
        // A route that was found has its say in every answer, also in one that says why it can't be served.
        if let Some(levels) = &self.levels {
            header_ops::apply_to_response(levels, &mut reply.head, incoming.head, &self.record);
        }
        let (head, body) = reply.finish(self.record.grpc);
        self.head = head;
        self.finish_head(incoming);
        self.ended = true;
        let length = if body.is_empty() { BodyLength::Empty } else { BodyLength::Known(body.len() as u64) };
        let sent = async {
            self.responder.send_head(&self.head, length).await?;
            if !body.is_empty() {
                self.responder.send_data(body).await?;
            }
            self.responder.finish().await
        };
        if let Err(error) = sent.await {
            self.cut(&error);
        }
    }

    /// `CONNECT host:port` on an explicit-proxy listener: what follows is a connection of its own and goes back to where
    /// connections are told apart.
    pub(super) async fn hand_over(&mut self) -> Result<(), ProxyError> {
        self.head.status = 200;
        self.record.status = 200;
        self.record.details = Cow::Borrowed("connect");
        self.responder.send_head(&self.head, BodyLength::Unknown).await?;
        self.responder.hand_over();
        self.responder.finish().await?;
        self.ended = true;
        self.handed_over = true;
        Ok(())
    }

    /// Ends the exchange with a failure: an answer where that is still possible, else a cut.
    pub(super) async fn fail(&mut self, incoming: &Incoming<'_>, error: ProxyError) {
        if error.side != Side::Downstream {
            tracing::debug!(%error, cluster = self.record.cluster_name, "request failed");
        }
        self.record.upstream_failure = reply::transport_failure(&error);
        let situation = Situation {
            retried: self.record.attempts > 1,
            request_complete: incoming.clock.request_took().is_some(),
            cluster_not_found_status: self.cluster_not_found_status,
        };
        let not_processed = self.is_not_processed(&error);
        if not_processed && self.refuse_stream(&error) {
            self.ended = true;
            return;
        }
        match reply::from_error(&error, situation) {
            Some(mut reply) if !self.responder.has_begun() => {
                if not_processed {
                    self.mark_not_processed(&mut reply);
                }
                if matches!(error.kind, Kind::UpstreamReset | Kind::UpstreamTimeout)
                    && is_past_deadline(incoming)
                {
                    reply.grpc_status = Some(DEADLINE_EXCEEDED);
                }
                self.reply(incoming, reply).await;
            }
            _ => self.cut(&error),
        }
    }

    /// Ends the exchange without an answer, or within one.
    pub(super) fn cut(&mut self, error: &ProxyError) {
        let (flags, details) = reply::after_start(error);
        self.record.flags.add(flags);
        self.record.details = details;
        self.responder.abort();
        self.ended = true;
    }

    /// What every head gets last.
    fn finish_head(&mut self, incoming: &Incoming<'_>) {
        if self.host.is_some_and(|host| host.attempt_count_in_response) && self.record.attempts > 0 {
            let attempts = self.record.attempts;
            self.head.fields.set_fmt(Known::XEnvoyAttemptCount, format_args!("{attempts}"));
        }
        self.additions.iter().for_each(|additions| additions.apply_to_response(&mut self.head.fields));
        response::finish(self.arrival.manager, incoming.head, &mut self.head);
        self.record.status = self.head.status;
        self.record.sent_head = self.head.fields.wire_len() as u64;
        if self.record.grpc {
            self.record.grpc_status = grpc_status(&self.head.fields);
        }
    }

    fn note_grpc_status(&mut self, trailers: &Fields) {
        if self.record.grpc {
            self.record.grpc_status = grpc_status(trailers).or(self.record.grpc_status);
        }
    }

    /// Completes the record with what only its end knows.
    pub(super) fn complete_record(&mut self, incoming: &Incoming<'_>) {
        let record = &mut self.record;
        if !self.ended {
            let distrusted = self.arrival.connection.is_distrusted();
            let (flags, details) = match distrusted {
                true => (Flags::default(), DISTRUSTED_CLIENT),
                false => (Flags::DOWNSTREAM_CLOSED, "downstream_remote_disconnect"),
            };
            record.flags.add(flags);
            record.details = Cow::Borrowed(details);
        }
        record.received = incoming.body.received();
        record.sent = self.responder.body_bytes();
        record.request_complete = incoming.clock.request_took();
        record.complete = Some(incoming.clock.elapsed());
    }
}

/// Whoever has a part in a gRPC call knows its deadline, and each may notice first. A time-out or a reset after it is what the deadline
/// did: gRPC's own clients take a reset so. (Envoy says UNAVAILABLE, and a client sees now the one and now the other.)
fn is_past_deadline(incoming: &Incoming<'_>) -> bool {
    let deadline = incoming.head.fields.get(Known::GrpcTimeout).and_then(parse_grpc_timeout);
    deadline.is_some_and(|deadline| incoming.clock.elapsed() >= deadline)
}

fn grpc_status(fields: &Fields) -> Option<u32> {
    fields.get(Known::GrpcStatus).and_then(|value| std::str::from_utf8(value).ok()?.parse().ok())
}
