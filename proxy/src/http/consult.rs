//! Asks the external authorizers of a request, in order: the part of an exchange between "who asks" and "whose tokens are these".
//!
//! Where an authorizer is to see the body, that much of it is read first, and kept for the upstream ([`Peeked`]). A client that
//! leaves takes the question with it.

use bytes::{Bytes, BytesMut};

use super::body::{BodyLength, Frame, RequestBody};
use super::exchange::{Exchange, Incoming};
use super::head::{Known, RequestHead, ResponseHead};
use super::replay::Peeked;
use super::reply::LocalReply;
use super::server::Arrival;
use super::timeout::Timeouts;
use crate::authz::Facts;
use crate::error::ProxyError;
use crate::ext_authz::{
    Asked, Authorizer, BodyRule, Changes, FAILED_OPEN, Question, ShownBody, Verdict, unanswered,
};

/// Why a request doesn't go on.
pub(super) enum Stop {
    /// The client gets this.
    Reply(Box<LocalReply>),
    /// It can't be served.
    Fail(ProxyError),
}

impl Exchange<'_> {
    /// Asks all authorizers that the request is for.
    pub(super) async fn consult(&mut self, body: &mut RequestBody<'_>) -> Result<(), Stop> {
        let manager = self.answer.arrival.manager;
        self.incoming.clock.limit(Timeouts::before_route(&manager.timeouts));
        for authorizer in manager.authorizers.iter() {
            authorizer.strip(self.incoming.head);
        }
        for authorizer in manager.authorizers.iter() {
            if self.is_for(authorizer) {
                let asked = self.ask(authorizer, body).await;
                asked.inspect_err(|_| self.answer.note_route_at_hand(self.incoming.head, &[]))?;
            }
        }
        Ok(())
    }

    fn is_for(&self, authorizer: &Authorizer) -> bool {
        let Arrival { worker, connection, .. } = self.answer.arrival;
        let remote = self.answer.record.downstream.remote.ip();
        let facts = Facts::of_connection(connection).with_request(self.incoming.head, remote, &[]);
        authorizer.is_for(&facts, worker.id)
    }

    async fn ask(&mut self, authorizer: &Authorizer, body: &mut RequestBody<'_>) -> Result<(), Stop> {
        let shown = match authorizer.body {
            // What follows an upgrade is no body.
            Some(rule) if self.incoming.head.upgrade().is_none() => self.peek(rule, body).await?,
            _ => None,
        };
        let Arrival { worker, connection, .. } = self.answer.arrival;
        let size = match body.length() {
            BodyLength::Empty => Some(0),
            BodyLength::Known(length) => Some(length),
            BodyLength::Unknown => None,
        };
        let head = &*self.incoming.head;
        let asked = Asked { head, body: shown.as_ref(), size, time: self.answer.record.started_at() };
        let verdict = tokio::select! {
            biased;
            verdict = authorizer.ask(worker, Question { connection, request: Some(asked) }) => verdict,
            gone = self.answer.responder.gone() => return Err(Stop::Fail(gone)),
            gone = body.gone() => return Err(Stop::Fail(gone)),
            late = self.incoming.clock.expired() => return Err(Stop::Fail(late)),
        };
        match verdict {
            Verdict::Allowed(changes) => self.change(authorizer, *changes),
            Verdict::Denied(reply) => return Err(Stop::Reply(reply)),
            Verdict::Unanswered(_) if authorizer.fails_open => {
                if authorizer.tells_fail_open {
                    self.incoming.head.fields.set(FAILED_OPEN, b"true");
                }
            }
            Verdict::Unanswered(reason) => {
                return Err(Stop::Reply(Box::new(unanswered(authorizer.status_on_error, &reason))));
            }
            Verdict::Untellable(reason) => {
                return Err(Stop::Reply(Box::new(unanswered(authorizer.status_on_error, reason))));
            }
        }
        Ok(())
    }

    fn change(&mut self, authorizer: &Authorizer, changes: Changes) {
        if !changes.leaves_request() {
            let Incoming { head, routed_by, .. } = &mut self.incoming;
            if authorizer.routes_anew {
                *routed_by = None;
            } else if routed_by.is_none() {
                *routed_by = Some(Box::new(RequestHead::clone(head)));
            }
            changes.apply_to_request(head);
        }
        if !changes.response.is_empty() {
            self.answer.additions.push(changes);
        }
    }

    /// Reads what an authorizer is shown of the body; `None` where there is no body.
    async fn peek(&mut self, rule: BodyRule, body: &mut RequestBody<'_>) -> Result<Option<ShownBody>, Stop> {
        if self.incoming.peeked.is_empty() && body.is_end() {
            return Ok(None);
        }
        let too_large =
            || Stop::Reply(Box::new(LocalReply::new(413, "Payload Too Large", "request_payload_too_large")));
        if let BodyLength::Known(length) = body.length()
            && length > rule.most as u64
            && !rule.partial
        {
            return Err(too_large());
        }
        self.let_body_come().await?;
        let Incoming { peeked, body: state, clock, .. } = &mut self.incoming;
        while !peeked.is_whole() && peeked.bytes() <= rule.most {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame.map_err(Stop::Fail)?,
                gone = self.answer.responder.gone() => return Err(Stop::Fail(gone)),
                late = clock.expired() => return Err(Stop::Fail(late)),
            };
            clock.touch();
            if let Some(Frame::Data(data)) = &frame {
                state.receive(data.len());
            }
            peeked.push(frame);
        }
        let partial = peeked.bytes() > rule.most;
        if partial && !rule.partial {
            return Err(too_large());
        }
        Ok(Some(ShownBody { bytes: beginning(peeked, rule.most), partial }))
    }

    /// A client that asks first is told to send: its upstream can't be asked yet.
    async fn let_body_come(&mut self) -> Result<(), Stop> {
        if self.incoming.head.expects_continue() {
            self.incoming.head.fields.remove(Known::Expect);
            let go_on = ResponseHead::new(100);
            self.answer.responder.send_informational(&go_on).await.map_err(Stop::Fail)?;
        }
        Ok(())
    }
}

/// The first bytes of a body, `most` of them at most.
fn beginning(peeked: &Peeked, most: usize) -> Bytes {
    let mut pieces = peeked.data();
    if let (Some(only), None) = (pieces.next(), pieces.next()) {
        return only.slice(..only.len().min(most));
    }
    let mut whole = BytesMut::with_capacity(peeked.bytes().min(most));
    for piece in peeked.data() {
        let left = most - whole.len();
        whole.extend_from_slice(&piece[..piece.len().min(left)]);
    }
    whole.freeze()
}
