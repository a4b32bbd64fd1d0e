//! "Not processed": the inbound side of one sidecar tells the outbound side of another that nothing of a request was delivered, because
//! the application took no connection. The caller's sidecar then sends it to another endpoint, whatever the method: it is no retry.
//!
//! While a pod is draining its application stops to listen before all peers have heard of it, so this is what keeps requests from
//! failing in a rollout. Over HTTP/2 a draining sidecar says it with REFUSED_STREAM (RFC 9113 8.7), which every client understands;
//! else it is a 503 with a header of ours beside the usual words.
//!
//! The header counts only from a peer that has told who it is, in answer to a request that told so too, and reaches no application: a
//! sidecar takes it out of what its own application answers, and out of what its application gets.

use super::answer::Answer;
use super::exchange::is_outside_the_mesh;
use super::head::Known;
use super::reply::{LocalReply, Situation, from_error};
use crate::config::listener::Direction;
use crate::error::{Kind, Progress, ProxyError, Side};

/// The only status that the header stands beside; no other response is searched for it.
pub(super) const STATUS: u16 = 503;

impl Answer<'_> {
    /// Inbound: true where the application got nothing of the request, and a peer is there to hear of it.
    pub(super) fn is_not_processed(&self, error: &ProxyError) -> bool {
        self.peer_told
            && self.arrival.connection.direction == Direction::Inbound
            && error.side == Side::Upstream
            && matches!(error.kind, Kind::ConnectFailed | Kind::ConnectTimeout)
    }

    /// Inbound: refuses the stream of an HTTP/2 client while draining. False where an answer has to say it.
    pub(super) fn refuse_stream(&mut self, error: &ProxyError) -> bool {
        let draining = self.arrival.connection.drains(self.arrival.worker);
        if !draining || self.responder.has_begun() || !self.responder.refuse() {
            return false;
        }
        if let Some(reply) = from_error(error, Situation::default()) {
            self.record.flags.add(reply.flags);
            self.record.details = reply.details;
        }
        true
    }

    /// Inbound: says it in an answer.
    pub(super) fn mark_not_processed(&self, reply: &mut LocalReply) {
        let fields = &mut reply.head.fields;
        fields.set(Known::XOsierNotProcessed, b"1");
        if let Some(own) = &self.arrival.worker.shared.node.told {
            own.add_to(fields);
        }
    }

    /// Outbound: the failure that the response stands for, where a peer says so.
    pub(super) fn peers_refusal(&self) -> Option<ProxyError> {
        let fields = &self.head.fields;
        let told = self.head.status == STATUS
            && self.arrival.connection.direction != Direction::Inbound
            && self.arrival.manager.peer_metadata.receive
            && fields.contains(Known::XOsierNotProcessed)
            && fields.contains(Known::XEnvoyPeerMetadataId)
            && self.record.cluster_name.is_some_and(|cluster| !is_outside_the_mesh(cluster));
        told.then(|| {
            let detail = "the peer's application took no connection";
            ProxyError::new(Kind::RefusedStream, Side::Upstream, Progress::NothingSent, detail)
        })
    }

    /// Both: what is between sidecars stays between them.
    pub(super) fn hide_not_processed(&mut self) {
        if self.head.status == STATUS {
            self.head.fields.remove(Known::XOsierNotProcessed);
        }
    }
}
