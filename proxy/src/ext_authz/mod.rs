//! External authorizers: services that are asked whether a request or a connection is let in (Envoy's ext_authz).
//!
//! `compile::ext_authz` makes [`Authorizer`]s of messages. Their time is before tokens and policies: `http::consult` asks for a request,
//! `tcp::exchange` for a connection. An authorizer is asked with a request like the client's (`http`) or with a message
//! (`grpc`), by one `call` over the worker's pool, so that balancing, limits and mutual TLS are those of its cluster. The answer is a
//! [`Verdict`]; what it changes is data, which those who asked apply.
//!
//! Invariants: what an authorizer can't be shown whole is denied, whatever happens on errors ([`Verdict::Untellable`]); headers that
//! only an authorizer sets are never a client's; an answer can't change how a message is framed.

mod call;
mod grpc;
mod http;
#[cfg(test)]
pub(crate) mod test_support;
mod verdict;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

pub use self::grpc::GrpcForm;
pub use self::http::HttpForm;
pub use self::verdict::{Change, Changes, DENIED, How, Verdict, unanswered, unanswered_details};
use crate::authz::counters::Tally;
use crate::authz::{Facts, Rules};
use crate::config::cluster::ClusterHandle;
use crate::config::route::ValueMatch;
use crate::http::fields::Field;
use crate::http::head::RequestHead;
use crate::listener::connection::Connection;
use crate::worker::Worker;

/// Tells an authorizer whether it is shown the whole body.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";
/// Tells the upstream that a request was let in without an answer.
pub const FAILED_OPEN: &str = "x-envoy-auth-failure-mode-allowed";

/// An authorizer, and what is done with its answers.
#[derive(Debug)]
pub struct Authorizer {
    /// Where it is.
    pub cluster: Arc<ClusterHandle>,
    /// How it is asked.
    pub form: Form,
    /// How long it may take; `None` has no limit.
    pub timeout: Option<Duration>,
    /// It is shown the body.
    pub body: Option<BodyRule>,
    /// Without an answer the request is let in.
    pub fails_open: bool,
    /// And the upstream is told so.
    pub tells_fail_open: bool,
    /// Status of the refusal without an answer.
    pub status_on_error: u16,
    /// Routes are chosen by what it has made of the request, else by what the client sent.
    pub routes_anew: bool,
    /// Which requests it is asked for; `None`: all.
    pub mark: Option<Mark>,
    /// What came of it.
    pub answers: Arc<Answers>,
}

/// How an authorizer is asked.
#[derive(Debug)]
pub enum Form {
    /// With a request like the client's.
    Http(HttpForm),
    /// With a message.
    Grpc(GrpcForm),
}

/// How much of a body is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyRule {
    /// So many bytes at most.
    pub most: usize,
    /// Of a longer body its beginning; else it is refused.
    pub partial: bool,
}

/// Rules that say for which requests an authorizer is asked.
#[derive(Debug)]
pub struct Mark {
    /// Rules that decide nothing.
    pub rules: Rules,
    /// Where it is counted whether one of them matched.
    pub tally: Arc<Tally>,
    /// What the name of the one that matched must be.
    pub name: ValueMatch,
    /// The other way round.
    pub invert: bool,
}

/// What came of asking.
#[derive(Debug, Default)]
pub struct Answers {
    /// It let in.
    pub ok: AtomicU64,
    /// It denied.
    pub denied: AtomicU64,
    /// There was no answer.
    pub error: AtomicU64,
    /// And it was let in all the same.
    pub failure_mode_allowed: AtomicU64,
}

impl Answers {
    /// Each count with Envoy's name for it.
    pub fn counts(&self) -> [(&'static str, u64); 4] {
        [
            ("ok", &self.ok),
            ("denied", &self.denied),
            ("error", &self.error),
            ("failure_mode_allowed", &self.failure_mode_allowed),
        ]
        .map(|(name, count)| (name, count.load(Relaxed)))
    }
}

/// What an authorizer is shown of headers.
#[derive(Debug)]
pub enum Patterns {
    /// All.
    All,
    /// Those with such a name, without regard to case.
    Some(Box<[ValueMatch]>),
}

impl Patterns {
    /// None.
    pub fn none() -> Self {
        Self::Some(Box::default())
    }

    fn has(&self, field: &Field<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Some(patterns) if patterns.is_empty() => false,
            Self::Some(patterns) => {
                let name = field.name.to_ascii_lowercase();
                patterns.iter().any(|pattern| pattern.holds(&name))
            }
        }
    }
}

/// What an authorizer is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The client's connection.
    pub connection: &'a Connection,
    /// The request; `None` for an opaque connection.
    pub request: Option<Asked<'a>>,
}

/// A request that an authorizer is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its head.
    pub head: &'a RequestHead,
    /// What is shown of its body; `None`: nothing was read of it.
    pub body: Option<&'a ShownBody>,
    /// Bytes of the body; `None` where nobody knows.
    pub size: Option<u64>,
    /// When it came.
    pub time: SystemTime,
}

/// What is shown of a body.
#[derive(Debug, Clone)]
pub struct ShownBody {
    /// The bytes.
    pub bytes: Bytes,
    /// There is more.
    pub partial: bool,
}

impl Mark {
    fn holds(&self, facts: &Facts<'_>, worker: usize) -> bool {
        let matched = self.rules.matched(facts);
        self.tally.count(worker, matched.is_none());
        matched.is_some_and(|rule| self.name.holds(rule.denial.policy.as_bytes())) != self.invert
    }
}

impl Authorizer {
    /// True where it is to be asked. Counts that.
    pub fn is_for(&self, facts: &Facts<'_>, worker: usize) -> bool {
        self.mark.as_ref().is_none_or(|mark| mark.holds(facts, worker))
    }

    /// Takes out of a client's request what only this proxy or the authorizer may say.
    pub fn strip(&self, head: &mut RequestHead) {
        head.fields.remove(PARTIAL_BODY);
        head.fields.remove(FAILED_OPEN);
        if let Form::Http(form) = &self.form {
            head.fields.retain(|field| !form.sets_unseen(&field));
        }
    }

    /// Asks, and counts the answer.
    pub async fn ask(&self, worker: &Arc<Worker>, question: Question<'_>) -> Verdict {
        let verdict = match &self.form {
            Form::Http(form) => form.ask(self, worker, question).await,
            Form::Grpc(form) => form.ask(self, worker, question).await,
        };
        let count = match &verdict {
            Verdict::Allowed(_) => &self.answers.ok,
            Verdict::Denied(_) => &self.answers.denied,
            Verdict::Unanswered(reason) => {
                tracing::debug!(cluster = &*self.cluster.name, %reason, "no answer of an external authorizer");
                if self.fails_open {
                    self.answers.failure_mode_allowed.fetch_add(1, Relaxed);
                }
                &self.answers.error
            }
            Verdict::Untellable(_) => &self.answers.error,
        };
        count.fetch_add(1, Relaxed);
        verdict
    }
}
