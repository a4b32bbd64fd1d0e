//! Asking over HTTP: the authorizer gets a request like the client's, and its status is the verdict.
//!
//! It always sees host, method, path, `content-length` and `authorization`; other headers where the configuration says so. Lines of one
//! name arrive as one, so that an authorizer that looks at the first only has seen them all. 200 lets in, 5xx is no answer, and
//! anything else goes to the client.

use std::sync::Arc;

use bytes::Bytes;

use super::call::{Response, call};
use super::verdict::{Change, Changes, How, Verdict, denied};
use super::{Asked, Authorizer, PARTIAL_BODY, Patterns, Question};
use crate::config::route::HeaderName;
use crate::http::fields::{Field, Fields, tokens};
use crate::http::h1::hop_by_hop::is_connection_specific;
use crate::http::head::{Known, Method, Name, RequestHead, Version};
use crate::worker::Worker;

/// In an answer that lets in: headers that the upstream doesn't get. No client is told.
const TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";

/// What an HTTP authorizer is shown, and who hears of its answers.
#[derive(Debug)]
pub struct HttpForm {
    /// Whom TLS asks for. The client says whom its request is for, and must not choose who is asked about it.
    pub host: Box<str>,
    /// Comes before the path.
    pub path_prefix: Box<[u8]>,
    /// Headers of the client that it is shown, beside those that it always is.
    pub shown: Patterns,
    /// Headers that are set beside them.
    pub added: Box<[(HeaderName, Box<[u8]>)]>,
    /// Headers of an answer that lets in which become the request's.
    pub to_upstream: Patterns,
    /// Headers of an answer that denies which the client gets.
    pub to_client_denied: Patterns,
    /// Headers of an answer that lets in which the client gets.
    pub to_client_allowed: Patterns,
}

impl HttpForm {
    /// True for headers that the authorizer sets and is not shown: a client's would look like its.
    pub(super) fn sets_unseen(&self, field: &Field<'_>) -> bool {
        self.to_upstream.has(field) && !self.shows(field) && !field.known.is_some_and(is_own)
    }

    fn shows(&self, field: &Field<'_>) -> bool {
        field.known == Some(Known::Authorization) || self.shown.has(field)
    }

    pub(super) async fn ask(
        &self,
        authorizer: &Authorizer,
        worker: &Arc<Worker>,
        question: Question<'_>,
    ) -> Verdict {
        let Some(request) = question.request else {
            return Verdict::Untellable("an opaque connection can't be told over HTTP");
        };
        if request.head.method() == Method::Connect {
            return Verdict::Untellable("a CONNECT can't be told over HTTP");
        }
        let (head, body) = self.request(&request);
        match call(authorizer, worker, (Version::Http11, self.host.as_bytes()), &head, &body).await {
            Ok(response) => self.verdict(response),
            Err(error) => Verdict::Unanswered(error.detail),
        }
    }

    fn request(&self, asked: &Asked<'_>) -> (RequestHead, Bytes) {
        let mut head = RequestHead::new();
        head.scheme = asked.head.scheme;
        head.set_method(asked.head.method_str().as_bytes());
        head.set_authority(asked.head.authority());
        head.set_path(&[&self.path_prefix[..], asked.head.path()].concat());
        self.show(&asked.head.fields, &mut head.fields);
        if let Some(body) = asked.body {
            head.fields.set(PARTIAL_BODY, if body.partial { b"true" } else { b"false" });
        }
        for (name, value) in &self.added {
            head.fields.set(name.as_name(), value);
        }
        (head, asked.body.map(|body| body.bytes.clone()).unwrap_or_default())
    }

    fn show(&self, of: &Fields, to: &mut Fields) {
        for field in of.iter().filter(|field| self.shows(field) && !field.known.is_some_and(is_framing)) {
            let name = field.known.map_or(Name::Other(field.name), Name::Known);
            if !to.contains(name) {
                to.append(name, &of.get_all(name).collect::<Vec<_>>().join(&b","[..]));
            }
        }
    }

    fn verdict(&self, response: Response) -> Verdict {
        let Response { mut head, body, .. } = response;
        let remove = head.fields.get_all(TO_REMOVE).flat_map(tokens).map(Into::into).collect();
        head.fields.remove(TO_REMOVE);
        match head.status {
            200 => Verdict::Allowed(Box::new(Changes { remove, ..self.changes(&head.fields) })),
            500.. => Verdict::Unanswered(format!("status {}", head.status).into()),
            status => {
                let passed = head.fields.iter().filter(|field| self.to_client_denied.has(field));
                Verdict::Denied(Box::new(denied(status, body, passed.map(|f| (f.name, f.value, How::Add)))))
            }
        }
    }

    fn changes(&self, fields: &Fields) -> Changes {
        let those = |patterns: &Patterns, how| -> Vec<Change> {
            let matching = fields.iter().filter(|field| patterns.has(field));
            matching.map(|field| Change::new(field.name, field.value, how)).collect()
        };
        Changes {
            request: those(&self.to_upstream, How::Set),
            response: those(&self.to_client_allowed, How::Add),
            ..Changes::default()
        }
    }
}

/// Headers that this proxy has made itself, from what it knows of the connection.
fn is_own(known: Known) -> bool {
    matches!(
        known,
        Known::XForwardedClientCert | Known::XForwardedFor | Known::XForwardedProto | Known::XRequestId
    )
}

/// Headers that are about the client's message and connection.
fn is_framing(known: Known) -> bool {
    is_connection_specific(known)
        || matches!(known, Known::ContentLength | Known::Expect | Known::Te | Known::Trailer)
}
