//! Answers that the proxy makes itself: the only place that turns a [`ProxyError`] into status, body, flag and detail.
//!
//! [`from_error`] is the table. Status, body and the first word of the detail are Envoy's; in braces
//! after that word stands the cause in words of ours, because every failure has a stated cause.
//! gRPC requests get the same answer in their own form: HTTP 200 with `grpc-status` and `grpc-message`.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use super::head::{Known, ResponseHead};
use crate::error::{Kind, ProxyError, Side};
use crate::telemetry::record::Flags;

/// An answer of the proxy's own.
#[derive(Debug, Clone)]
pub struct LocalReply {
    /// Status, before it becomes a gRPC status, and fields beside those that every answer gets.
    pub head: ResponseHead,
    /// What gRPC clients get; `None`: what follows from the status.
    pub grpc_status: Option<u32>,
    /// Body; empty for none.
    pub body: Bytes,
    /// What logs and metrics say.
    pub flags: Flags,
    /// Response code details.
    pub details: Cow<'static, str>,
}

/// What the table looks at beside the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// More than one attempt was made.
    pub retried: bool,
    /// The whole request was received.
    pub request_complete: bool,
    /// Status of the route for a cluster that doesn't exist.
    pub cluster_not_found_status: u16,
}

impl Default for Situation {
    fn default() -> Self {
        Self { retried: false, request_complete: false, cluster_not_found_status: 503 }
    }
}

impl LocalReply {
    /// An answer without flags.
    pub fn new(status: u16, body: impl Into<Bytes>, details: impl Into<Cow<'static, str>>) -> Self {
        let (body, details) = (body.into(), details.into());
        Self { head: ResponseHead::new(status), grpc_status: None, body, flags: Flags::default(), details }
    }

    /// The connection ends after this reply: what follows the request may not be meant as a request.
    pub fn closing(mut self) -> Self {
        self.head.fields.set(Known::Connection, b"close");
        self
    }

    /// The head and body to send. `grpc`: in gRPC's form.
    pub fn finish(self, grpc: bool) -> (ResponseHead, Bytes) {
        let Self { mut head, body, .. } = self;
        if grpc {
            let status = self.grpc_status.unwrap_or_else(|| grpc_status(head.status));
            head.status = 200;
            head.fields.set(Known::ContentType, b"application/grpc");
            head.fields.set_fmt(Known::GrpcStatus, format_args!("{status}"));
            if !body.is_empty() {
                let message = percent_encode(&body, GRPC_MESSAGE);
                head.fields.set_fmt(Known::GrpcMessage, format_args!("{message}"));
            }
            return (head, Bytes::new());
        }
        if !body.is_empty() {
            head.fields.set_fmt(Known::ContentLength, format_args!("{}", body.len()));
            if !head.fields.contains(Known::ContentType) {
                head.fields.set(Known::ContentType, b"text/plain");
            }
        }
        (head, body)
    }
}

/// Bytes that `grpc-message` escapes: all but visible ASCII and space, and the percent sign.
const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

/// The gRPC status for an HTTP status.
pub fn grpc_status(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The answer to a failure; `None` where nobody is there to get one.
pub fn from_error(error: &ProxyError, situation: Situation) -> Option<LocalReply> {
    let late = if situation.request_complete { 504 } else { 408 };
    let (status, flag, body, word) = match error.kind {
        Kind::NoRoute => (404, Flags::NO_ROUTE, "", "route_not_found"),
        Kind::NoCluster => (situation.cluster_not_found_status, Flags::NO_CLUSTER, "", "cluster_not_found"),
        Kind::NoConfiguration => (503, Flags::NO_CLUSTER, "", "configuration_not_received"),
        Kind::NoHealthyUpstream => {
            (503, Flags::NO_HEALTHY_UPSTREAM, "no healthy upstream", "no_healthy_upstream")
        }
        Kind::UpstreamTimeout => {
            (504, Flags::UPSTREAM_TIMEOUT, "upstream request timeout", "response_timeout")
        }
        Kind::PerTryTimeout => {
            (504, Flags::UPSTREAM_TIMEOUT, "upstream request timeout", "upstream_per_try_timeout")
        }
        Kind::StreamIdle => (late, Flags::STREAM_IDLE, "stream timeout", "stream_idle_timeout"),
        Kind::RequestTimeout => (late, Flags::default(), "request timeout", "request_overall_timeout"),
        Kind::MaxStreamDuration => {
            (late, Flags::DURATION, "downstream duration timeout", "max_duration_timeout")
        }
        Kind::DownstreamProtocol => (400, Flags::DOWNSTREAM_PROTOCOL, "Bad Request", "http.codec_error"),
        Kind::HeadTooLarge => {
            (431, Flags::DOWNSTREAM_PROTOCOL, "Request Header Fields Too Large", "request_headers_too_large")
        }
        Kind::TransferCoding => {
            (501, Flags::DOWNSTREAM_PROTOCOL, "Not Implemented", "http1.invalid_transfer_encoding")
        }
        Kind::MissingHost => (400, Flags::default(), "", "missing_host_header"),
        Kind::LowVersion => (426, Flags::default(), "Upgrade Required", "low_version"),
        Kind::UpgradeRefused => (403, Flags::default(), "", "upgrade_failed"),
        Kind::AccessDenied => return Some(LocalReply::new(403, "RBAC: access denied", error.detail.clone())),
        Kind::DownstreamClosed => return None,
        Kind::ConnectFailed
        | Kind::ConnectTimeout
        | Kind::UpstreamClosed
        | Kind::UpstreamReset
        | Kind::RefusedStream
        | Kind::LocalReset
        | Kind::UpstreamProtocol
        | Kind::Overflow => return Some(reset(error, situation.retried)),
    };
    // What was asked of pilot is no secret, and the only way for a client to know what to look for.
    let body = match error.kind {
        Kind::NoConfiguration => Bytes::from(error.detail.clone().into_owned()),
        _ => Bytes::from_static(body.as_bytes()),
    };
    let mut reply = LocalReply { flags: flag, ..LocalReply::new(status, body, details(word, &error.detail)) };
    if error.kind == Kind::UpgradeRefused {
        reply = reply.closing();
    }
    Some(reply)
}

const BEFORE_START: &str = "upstream_reset_before_response_started";

/// The upstream failed before there was a response.
fn reset(error: &ProxyError, retried: bool) -> LocalReply {
    let (status, flag, reason) = match error.kind {
        Kind::ConnectFailed if error.side == Side::Internal => {
            (503, Flags::CONNECT_FAILURE, "local connection failure")
        }
        Kind::ConnectFailed => (503, Flags::CONNECT_FAILURE, "remote connection failure"),
        Kind::ConnectTimeout => (503, Flags::CONNECT_FAILURE, "connection timeout"),
        Kind::UpstreamClosed => (503, Flags::UPSTREAM_CLOSED, "connection termination"),
        Kind::UpstreamReset => (503, Flags::UPSTREAM_RESET, "remote reset"),
        Kind::RefusedStream => (503, Flags::UPSTREAM_RESET, "remote refused stream reset"),
        Kind::UpstreamProtocol => (502, Flags::UPSTREAM_PROTOCOL, "protocol error"),
        Kind::Overflow => (503, Flags::OVERFLOW, "overflow"),
        _ => (503, Flags::LOCAL_RESET, "local reset"),
    };
    let history = if retried { "retried and the latest reset reason" } else { "reset reason" };
    let body = format!("upstream connect error or disconnect/reset before headers. {history}: {reason}");
    let details = details(BEFORE_START, &format!("{reason}|{}", error.detail));
    let mut reply = LocalReply { flags: flag, ..LocalReply::new(status, body, details) };
    if error.kind == Kind::Overflow {
        reply.head.fields.set(Known::XEnvoyOverloaded, b"true");
    }
    reply
}

/// Flag and detail of a failure that comes too late for an answer: a part of the response is with the client.
pub fn after_start(error: &ProxyError) -> (Flags, Cow<'static, str>) {
    match from_error(error, Situation::default()) {
        None => (Flags::DOWNSTREAM_CLOSED, Cow::Borrowed("downstream_remote_disconnect")),
        Some(reply) => match reply.details.strip_prefix(BEFORE_START) {
            Some(cause) => (reply.flags, Cow::Owned(format!("upstream_reset_after_response_started{cause}"))),
            None => (reply.flags, reply.details),
        },
    }
}

/// `word{cause}`, without white space, so that a line of an access log can still be split at spaces.
pub fn details(word: &'static str, cause: &str) -> Cow<'static, str> {
    let cause = cause.trim_end_matches('|');
    if cause.is_empty() {
        return Cow::Borrowed(word);
    }
    let mut text = String::with_capacity(word.len() + cause.len() + 2);
    let _ = write!(text, "{word}{{");
    text.extend(cause.chars().map(|c| if c.is_whitespace() || c.is_control() { '_' } else { c }));
    text.push('}');
    Cow::Owned(text)
}

/// What `UPSTREAM_TRANSPORT_FAILURE_REASON` says of a failure: something where the way to the upstream failed.
pub fn transport_failure(error: &ProxyError) -> Option<Cow<'static, str>> {
    matches!(error.kind, Kind::ConnectFailed | Kind::ConnectTimeout).then(|| error.detail.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Progress;

    fn reply(kind: Kind, side: Side, detail: &'static str, situation: Situation) -> LocalReply {
        from_error(&ProxyError::new(kind, side, Progress::NothingSent, detail), situation).unwrap()
    }

    #[test]
    fn the_table() {
        let prefix = "upstream connect error or disconnect/reset before headers. reset reason: ";
        let upstream = |kind, status, flags, reason: &str| {
            (kind, status, flags, format!("{prefix}{reason}"), "upstream_reset_before_response_started")
        };
        for (kind, status, flags, body, word) in [
            (Kind::NoRoute, 404, "NR", String::new(), "route_not_found"),
            (Kind::NoCluster, 503, "NC", String::new(), "cluster_not_found"),
            (Kind::NoConfiguration, 503, "NC", "why so".to_owned(), "configuration_not_received"),
            (Kind::NoHealthyUpstream, 503, "UH", "no healthy upstream".to_owned(), "no_healthy_upstream"),
            upstream(Kind::ConnectFailed, 503, "UF", "remote connection failure"),
            upstream(Kind::ConnectTimeout, 503, "UF", "connection timeout"),
            upstream(Kind::UpstreamClosed, 503, "UC", "connection termination"),
            upstream(Kind::UpstreamReset, 503, "UR", "remote reset"),
            upstream(Kind::RefusedStream, 503, "UR", "remote refused stream reset"),
            upstream(Kind::LocalReset, 503, "LR", "local reset"),
            upstream(Kind::UpstreamProtocol, 502, "UPE", "protocol error"),
            upstream(Kind::Overflow, 503, "UO", "overflow"),
            (Kind::UpstreamTimeout, 504, "UT", "upstream request timeout".to_owned(), "response_timeout"),
            (
                Kind::PerTryTimeout,
                504,
                "UT",
                "upstream request timeout".to_owned(),
                "upstream_per_try_timeout",
            ),
            (Kind::StreamIdle, 408, "SI", "stream timeout".to_owned(), "stream_idle_timeout"),
            (Kind::RequestTimeout, 408, "-", "request timeout".to_owned(), "request_overall_timeout"),
            (
                Kind::MaxStreamDuration,
                408,
                "DT",
                "downstream duration timeout".to_owned(),
                "max_duration_timeout",
            ),
            (Kind::DownstreamProtocol, 400, "DPE", "Bad Request".to_owned(), "http.codec_error"),
            (
                Kind::HeadTooLarge,
                431,
                "DPE",
                "Request Header Fields Too Large".to_owned(),
                "request_headers_too_large",
            ),
            (
                Kind::TransferCoding,
                501,
                "DPE",
                "Not Implemented".to_owned(),
                "http1.invalid_transfer_encoding",
            ),
            (Kind::MissingHost, 400, "-", String::new(), "missing_host_header"),
            (Kind::LowVersion, 426, "-", "Upgrade Required".to_owned(), "low_version"),
            (Kind::UpgradeRefused, 403, "-", String::new(), "upgrade_failed"),
        ] {
            let made = reply(kind, Side::Upstream, "why so", Situation::default());
            assert_eq!((made.head.status, &*made.flags.to_string()), (status, flags), "{kind:?}");
            assert_eq!(made.body, body, "{kind:?}");
            assert!(made.details.starts_with(&format!("{word}{{")), "{kind:?}: {}", made.details);
            assert!(made.details.ends_with("why_so}"), "{kind:?}: {}", made.details);
            assert_eq!(made.head.fields.contains(Known::XEnvoyOverloaded), kind == Kind::Overflow);
        }
        let gone = ProxyError::new(Kind::DownstreamClosed, Side::Downstream, Progress::Sent, "");
        assert!(from_error(&gone, Situation::default()).is_none());
    }

    #[test]
    fn the_situation_changes_some() {
        let complete = Situation { request_complete: true, ..Situation::default() };
        for kind in [Kind::StreamIdle, Kind::RequestTimeout, Kind::MaxStreamDuration] {
            assert_eq!(reply(kind, Side::Internal, "", complete).head.status, 504, "{kind:?}");
        }
        let not_found = Situation { cluster_not_found_status: 404, ..Situation::default() };
        assert_eq!(reply(Kind::NoCluster, Side::Internal, "", not_found).head.status, 404);
        let retried = Situation { retried: true, ..Situation::default() };
        let made = reply(Kind::UpstreamClosed, Side::Upstream, "", retried);
        assert!(made.body.ends_with(b"retried and the latest reset reason: connection termination"));
        assert_eq!(made.details, "upstream_reset_before_response_started{connection_termination}");
        let local = reply(Kind::ConnectFailed, Side::Internal, "no port left", Situation::default());
        assert!(local.body.ends_with(b"reset reason: local connection failure"));
        assert_eq!(
            local.details,
            "upstream_reset_before_response_started{local_connection_failure|no_port_left}"
        );
        assert_eq!(reply(Kind::NoRoute, Side::Internal, "", Situation::default()).details, "route_not_found");
    }

    #[test]
    fn some_failures_come_too_late_for_an_answer() {
        let late = |kind| {
            let (flags, details) = after_start(&ProxyError::new(kind, Side::Upstream, Progress::Sent, "why"));
            (flags.to_string(), details.into_owned())
        };
        let text = |flags: &str, details: &str| (flags.to_owned(), details.to_owned());
        assert_eq!(
            late(Kind::UpstreamClosed),
            text("UC", "upstream_reset_after_response_started{connection_termination|why}")
        );
        assert_eq!(late(Kind::UpstreamTimeout), text("UT", "response_timeout{why}"));
        assert_eq!(late(Kind::DownstreamClosed), text("DC", "downstream_remote_disconnect"));
    }

    #[test]
    fn plain_answers_say_their_type() {
        let (head, body) = LocalReply::new(403, "no", "x").finish(false);
        assert_eq!((head.status, head.fields.get(Known::ContentType)), (403, Some(&b"text/plain"[..])));
        assert_eq!(head.fields.get(Known::ContentLength), Some(&b"2"[..]));
        assert_eq!(body, "no");
        let (head, body) = LocalReply::new(404, "", "x").finish(false);
        assert!(head.fields.is_empty() && body.is_empty());
        let mut html = LocalReply::new(200, "<p>", "direct_response");
        html.head.fields.set(Known::ContentType, b"text/html");
        let (head, _) = html.finish(false);
        assert_eq!(head.fields.get(Known::ContentType), Some(&b"text/html"[..]));
    }

    #[test]
    fn grpc_answers_are_trailers_only() {
        let (head, body) = LocalReply::new(503, "100% no\nhealthy é", "x").finish(true);
        assert_eq!((head.status, body.len()), (200, 0));
        let fields: Vec<_> = head.fields.iter().map(|field| (field.name, field.value)).collect();
        assert_eq!(
            fields,
            [
                (&b"content-type"[..], &b"application/grpc"[..]),
                (b"grpc-status", b"14"),
                (b"grpc-message", b"100%25 no%0Ahealthy %C3%A9")
            ]
        );
        for (status, grpc) in
            [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (504, 14), (500, 2), (200, 2)]
        {
            assert_eq!(grpc_status(status), grpc, "{status}");
        }
    }
}
