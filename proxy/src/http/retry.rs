//! Whether and when a request is tried again.
//!
//! [`RetryState`] is one request's budget: conditions of the route's policy (and of internal callers' headers), retries left,
//! back-off. It decides on outcomes and knows nothing of connections. Never retried: what has begun to reach the client, what a
//! limit refused (`overflow`, `x-envoy-overloaded`), and a request whose body can't be sent again.
//!
//! Beside the policy there is the *move*: where not a byte was sent, or the request is safe and a kept connection closed under it,
//! another endpoint gets it at once, as RFC 9110 9.2.2 allows every proxy. Moves cost no retry, but they are few.

use std::time::Duration;

use smallvec::SmallVec;

use super::head::{Known, Method, RequestHead, ResponseHead};
use crate::config::route::{RetryOn, RetryPolicy};
use crate::error::{Kind, Progress, ProxyError};

/// Moves of one request to another endpoint or connection, beside its policy's retries.
pub const MAX_MOVES: u32 = 3;

/// Envoy's default back-off, for callers that ask for retries where the route has no policy.
const DEFAULT_BACKOFF: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));

const GRPC_CONDITIONS: u32 = RetryOn::CANCELLED
    | RetryOn::DEADLINE_EXCEEDED
    | RetryOn::INTERNAL
    | RetryOn::RESOURCE_EXHAUSTED
    | RetryOn::UNAVAILABLE;

/// How an attempt ended, before anything of it reached the client.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// The head of a response.
    Response(&'a ResponseHead),
    /// No response. `reused`: on a connection that had carried a request before.
    Failed {
        /// Why.
        error: &'a ProxyError,
        /// The connection had carried a request before.
        reused: bool,
    },
}

/// What to do after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The outcome stands.
    Stands,
    /// The outcome stands, though the policy would retry: the budget is used up (URX).
    Exhausted,
    /// Send it to another endpoint or connection at once.
    Move,
    /// Retry under the policy, after [`RetryState::backoff`].
    Retry,
}

/// One request's budget of retries.
#[derive(Debug)]
pub struct RetryState {
    on: RetryOn,
    codes: SmallVec<[u16; 4]>,
    left: u32,
    moves_left: u32,
    retries: u32,
    base: Duration,
    max: Duration,
    safe: bool,
}

/// True where a request that failed so can be sent anew because nobody has looked at it. `kept`: it went over a kept connection, and has no
/// effects if it was looked at after all; `replayable`: all that was read of its body can be sent again.
pub fn is_unseen(error: &ProxyError, kept: bool, replayable: bool) -> bool {
    match (error.kind, error.progress) {
        (Kind::ConnectFailed | Kind::ConnectTimeout, _) => true,
        // Nothing of it left us, or the peer said that it looked at nothing.
        (Kind::UpstreamClosed | Kind::UpstreamReset | Kind::RefusedStream, Progress::NothingSent) => {
            replayable
        }
        // The peer closed a kept connection while the request was under way to it.
        (Kind::UpstreamClosed, Progress::Sent) => kept && replayable,
        _ => false,
    }
}

impl RetryState {
    /// The budget of a request, taking the headers that change it out of the head.
    pub fn new(policy: Option<&RetryPolicy>, head: &mut RequestHead) -> Self {
        let (base, max) = policy.map_or(DEFAULT_BACKOFF, |policy| (policy.backoff_base, policy.backoff_max));
        let mut state = Self {
            on: policy.map(|policy| policy.on).unwrap_or_default(),
            codes: policy.map(|policy| SmallVec::from_slice(&policy.status_codes)).unwrap_or_default(),
            left: policy.map_or(1, |policy| policy.attempts),
            moves_left: MAX_MOVES,
            retries: 0,
            base,
            max,
            safe: matches!(head.method(), Method::Get | Method::Head | Method::Options | Method::Trace),
        };
        if head.fields.iter().any(|field| field.known.is_some_and(is_control)) {
            state.take_headers(head);
        }
        state
    }

    /// Only internal requests still have these headers (`filters::forwarded`).
    fn take_headers(&mut self, head: &mut RequestHead) {
        for name in [Known::XEnvoyRetryOn, Known::XEnvoyRetryGrpcOn] {
            for word in head.fields.get_all(name).flat_map(super::head::tokens) {
                self.on.0 |= std::str::from_utf8(word).ok().and_then(condition).unwrap_or(0);
            }
        }
        let text = |value| std::str::from_utf8(value).unwrap_or_default();
        if self.on.0 != 0
            && let Some(most) =
                head.fields.get(Known::XEnvoyMaxRetries).and_then(|value| text(value).parse().ok())
        {
            self.left = most;
        }
        let codes = head.fields.get_all(Known::XEnvoyRetriableStatusCodes).flat_map(super::head::tokens);
        self.codes.extend(codes.filter_map(|code| text(code).parse::<u16>().ok()));
        head.fields.retain(|field| !field.known.is_some_and(is_control));
    }

    /// True where a response or a failure after the head was sent may lead to another attempt: then the body has to be kept.
    pub fn may_replay(&self) -> bool {
        (self.left > 0 && self.on.0 & !RetryOn::CONNECT_FAILURE != 0) || (self.safe && self.moves_left > 0)
    }

    /// The policy's retries are over, because something reached the client.
    pub fn forbid(&mut self) {
        self.left = 0;
        self.moves_left = 0;
        self.on = RetryOn::default();
    }

    /// What to do after an attempt. `replayable`: all that was read of the body can be sent again.
    pub fn judge(&mut self, outcome: Outcome<'_>, replayable: bool) -> Verdict {
        if let Outcome::Failed { error, reused } = outcome
            && self.moves_left > 0
            && is_unseen(error, reused && self.safe, replayable)
        {
            self.moves_left -= 1;
            return Verdict::Move;
        }
        let wanted = match outcome {
            Outcome::Response(head) => self.wants_after_response(head),
            Outcome::Failed { error, .. } => self.wants_after_failure(error),
        };
        if !wanted || !(replayable || nothing_sent(outcome)) {
            return Verdict::Stands;
        }
        if self.left == 0 {
            return Verdict::Exhausted;
        }
        self.left -= 1;
        self.retries += 1;
        Verdict::Retry
    }

    /// True where a request that a peer says it didn't process can go to another endpoint.
    pub fn can_move(&self, replayable: bool) -> bool {
        self.moves_left > 0 && replayable
    }

    fn wants_after_failure(&self, error: &ProxyError) -> bool {
        let on = self.on;
        match error.kind {
            Kind::ConnectFailed | Kind::ConnectTimeout => on.has(
                RetryOn::SERVER_ERROR
                    | RetryOn::GATEWAY_ERROR
                    | RetryOn::RESET
                    | RetryOn::RESET_BEFORE_REQUEST
                    | RetryOn::CONNECT_FAILURE,
            ),
            Kind::RefusedStream => on.has(
                RetryOn::SERVER_ERROR | RetryOn::GATEWAY_ERROR | RetryOn::RESET | RetryOn::REFUSED_STREAM,
            ),
            Kind::UpstreamClosed
            | Kind::UpstreamReset
            | Kind::UpstreamProtocol
            | Kind::LocalReset
            | Kind::PerTryTimeout => {
                on.has(RetryOn::SERVER_ERROR | RetryOn::GATEWAY_ERROR | RetryOn::RESET)
                    || (error.progress == Progress::NothingSent && on.has(RetryOn::RESET_BEFORE_REQUEST))
            }
            // Overflow says that there is too much already; the others are no matter of the endpoint.
            _ => false,
        }
    }

    fn wants_after_response(&self, head: &ResponseHead) -> bool {
        let (on, status) = (self.on, head.status);
        if on.0 == 0 || head.fields.contains(Known::XEnvoyOverloaded) {
            return false;
        }
        if head.fields.contains(Known::XEnvoyRateLimited) {
            return on.has(RetryOn::ENVOY_RATE_LIMITED);
        }
        (on.has(RetryOn::SERVER_ERROR) && (500..600).contains(&status))
            || (on.has(RetryOn::GATEWAY_ERROR) && matches!(status, 502..=504))
            || (on.has(RetryOn::RETRIABLE_4XX) && status == 409)
            || (on.has(RetryOn::STATUS_CODES) && self.codes.contains(&status))
            || (on.has(GRPC_CONDITIONS) && self.wants_after_grpc_status(head))
    }

    /// A status in the head: the answer has no body. One in real trailers comes too late.
    fn wants_after_grpc_status(&self, head: &ResponseHead) -> bool {
        let condition = match head.fields.get(Known::GrpcStatus) {
            Some(b"1") => RetryOn::CANCELLED,
            Some(b"4") => RetryOn::DEADLINE_EXCEEDED,
            Some(b"8") => RetryOn::RESOURCE_EXHAUSTED,
            Some(b"13") => RetryOn::INTERNAL,
            Some(b"14") => RetryOn::UNAVAILABLE,
            _ => return false,
        };
        self.on.has(condition)
    }

    /// How long to wait before the retry that was just granted: uniform in [0, min((2^n - 1) × base, max)), Envoy's jitter.
    pub fn backoff(&self, random: u64) -> Duration {
        let factor = 1u32.checked_shl(self.retries.min(31)).unwrap_or(u32::MAX) - 1;
        let ceiling = self.base.saturating_mul(factor).min(self.max);
        let micros = ceiling.as_micros() as u64;
        if micros == 0 { Duration::ZERO } else { Duration::from_micros(random % micros) }
    }
}

fn nothing_sent(outcome: Outcome<'_>) -> bool {
    match outcome {
        Outcome::Response(_) => false,
        // A stream that was refused was sent, and so may its body have been.
        Outcome::Failed { error, .. } => matches!(error.kind, Kind::ConnectFailed | Kind::ConnectTimeout),
    }
}

fn is_control(known: Known) -> bool {
    matches!(
        known,
        Known::XEnvoyRetryOn
            | Known::XEnvoyRetryGrpcOn
            | Known::XEnvoyMaxRetries
            | Known::XEnvoyRetriableStatusCodes
            | Known::XEnvoyRetriableHeaderNames
            | Known::XEnvoyHedgeOnPerTryTimeout
            | Known::XEnvoyUpstreamAltStatName
            | Known::XEnvoyUpstreamRqTimeoutAltResponse
    )
}

/// The condition that a word of `retry_on` names, and 0 for one that can't occur here; `None` for no such word.
pub fn condition(word: &str) -> Option<u32> {
    Some(match word {
        "5xx" => RetryOn::SERVER_ERROR,
        "gateway-error" => RetryOn::GATEWAY_ERROR,
        "reset" => RetryOn::RESET,
        "reset-before-request" => RetryOn::RESET_BEFORE_REQUEST,
        "connect-failure" => RetryOn::CONNECT_FAILURE,
        "refused-stream" => RetryOn::REFUSED_STREAM,
        "retriable-4xx" => RetryOn::RETRIABLE_4XX,
        "retriable-status-codes" => RetryOn::STATUS_CODES,
        "envoy-ratelimited" => RetryOn::ENVOY_RATE_LIMITED,
        "cancelled" => RetryOn::CANCELLED,
        "deadline-exceeded" => RetryOn::DEADLINE_EXCEEDED,
        "internal" => RetryOn::INTERNAL,
        "resource-exhausted" => RetryOn::RESOURCE_EXHAUSTED,
        "unavailable" => RetryOn::UNAVAILABLE,
        // HTTP/3 isn't spoken upstream.
        "http3-post-connect-failure" => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Side;
    use crate::http::test_support::retry_policy;

    fn on(words: &str) -> RetryOn {
        RetryOn(words.split(',').filter(|word| !word.is_empty()).map(|word| condition(word).unwrap()).sum())
    }

    fn state(words: &str, attempts: u32) -> RetryState {
        let policy = RetryPolicy { on: on(words), status_codes: [418].into(), attempts, ..retry_policy() };
        let mut head = RequestHead::new();
        head.set_method(b"POST");
        RetryState::new(Some(&policy), &mut head)
    }

    fn failed(kind: Kind, progress: Progress) -> ProxyError {
        ProxyError::new(kind, Side::Upstream, progress, "")
    }

    /// Istio's built-in policy.
    const ISTIO: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";

    #[test]
    fn conditions_on_responses() {
        type Case<'a> = (&'a str, u16, &'a [(&'a str, &'a str)], bool);
        let cases: &[Case<'_>] = &[
            ("5xx", 500, &[], true),
            ("5xx", 599, &[], true),
            ("5xx", 499, &[], false),
            ("gateway-error", 500, &[], false),
            ("gateway-error", 502, &[], true),
            ("gateway-error", 504, &[], true),
            ("retriable-4xx", 409, &[], true),
            ("retriable-4xx", 404, &[], false),
            ("retriable-status-codes", 418, &[], true),
            ("retriable-status-codes", 503, &[], false),
            ("reset,connect-failure,refused-stream", 503, &[], false),
            ("5xx", 503, &[("x-envoy-overloaded", "true")], false),
            ("5xx", 503, &[("x-envoy-ratelimited", "true")], false),
            ("envoy-ratelimited", 429, &[("x-envoy-ratelimited", "true")], true),
            ("cancelled", 200, &[("grpc-status", "1")], true),
            ("deadline-exceeded", 200, &[("grpc-status", "4")], true),
            ("internal", 200, &[("grpc-status", "13")], true),
            ("resource-exhausted", 200, &[("grpc-status", "8")], true),
            ("unavailable", 200, &[("grpc-status", "14")], true),
            ("unavailable", 200, &[("grpc-status", "0")], false),
            ("unavailable", 200, &[("grpc-status", "13")], false),
            (ISTIO, 503, &[], false),
            (ISTIO, 200, &[("grpc-status", "14")], true),
            (ISTIO, 200, &[("grpc-status", "1")], true),
        ];
        for (words, status, fields, expected) in cases {
            let mut head = ResponseHead::new(*status);
            fields.iter().for_each(|(name, value)| head.fields.append(*name, value.as_bytes()));
            let verdict = state(words, 1).judge(Outcome::Response(&head), true);
            let expected = if *expected { Verdict::Retry } else { Verdict::Stands };
            assert_eq!(verdict, expected, "{words} on {status} {fields:?}");
        }
    }

    #[test]
    fn conditions_on_failures() {
        use Progress::{NothingSent, Sent};
        for (words, kind, progress, expected) in [
            ("5xx", Kind::UpstreamClosed, Sent, true),
            ("5xx", Kind::PerTryTimeout, Sent, true),
            ("gateway-error", Kind::UpstreamReset, Sent, true),
            ("gateway-error", Kind::UpstreamProtocol, Sent, true),
            ("reset", Kind::UpstreamClosed, Sent, true),
            ("reset", Kind::UpstreamTimeout, Sent, false),
            ("reset-before-request", Kind::UpstreamClosed, Sent, false),
            ("reset-before-request", Kind::UpstreamProtocol, NothingSent, true),
            ("refused-stream", Kind::RefusedStream, Sent, true),
            ("refused-stream", Kind::UpstreamReset, Sent, false),
            ("connect-failure", Kind::UpstreamClosed, Sent, false),
            ("5xx,reset", Kind::Overflow, NothingSent, false),
            ("5xx,reset", Kind::NoHealthyUpstream, NothingSent, false),
            ("5xx,reset", Kind::DownstreamClosed, Sent, false),
            (ISTIO, Kind::RefusedStream, Sent, true),
            (ISTIO, Kind::UpstreamClosed, Sent, false),
            (ISTIO, Kind::PerTryTimeout, Sent, false),
        ] {
            let error = failed(kind, progress);
            let verdict = state(words, 1).judge(Outcome::Failed { error: &error, reused: false }, true);
            let expected = if expected { Verdict::Retry } else { Verdict::Stands };
            assert_eq!(verdict, expected, "{words} on {kind:?}, {progress:?}");
        }
    }

    #[test]
    fn what_never_left_us_moves_on_without_a_policy() {
        let error = failed(Kind::ConnectFailed, Progress::NothingSent);
        let refused = Outcome::Failed { error: &error, reused: false };
        let mut nothing = state("", 0);
        for _ in 0..MAX_MOVES {
            assert_eq!(nothing.judge(refused, false), Verdict::Move);
        }
        assert_eq!(nothing.judge(refused, false), Verdict::Stands);
        let mut policy = state("connect-failure", 2);
        policy.moves_left = 0;
        assert_eq!(
            policy.judge(refused, false),
            Verdict::Retry,
            "no body was read for a connect that failed"
        );
        assert_eq!(policy.judge(refused, false), Verdict::Retry);
        assert_eq!(policy.judge(refused, false), Verdict::Exhausted);
    }

    #[test]
    fn a_kept_connection_that_closes_is_replaced_for_safe_requests() {
        let closed = failed(Kind::UpstreamClosed, Progress::Sent);
        let unsent = failed(Kind::UpstreamClosed, Progress::NothingSent);
        let with = |method: &str| {
            let mut head = RequestHead::new();
            head.set_method(method.as_bytes());
            RetryState::new(None, &mut head)
        };
        for (method, error, reused, replayable, expected) in [
            ("GET", &closed, true, true, Verdict::Move),
            ("GET", &closed, false, true, Verdict::Stands),
            ("GET", &closed, true, false, Verdict::Stands),
            ("POST", &closed, true, true, Verdict::Stands),
            ("DELETE", &closed, true, true, Verdict::Stands),
            ("POST", &unsent, true, true, Verdict::Move),
            ("POST", &unsent, false, true, Verdict::Move),
            ("POST", &unsent, true, false, Verdict::Stands),
        ] {
            let verdict = with(method).judge(Outcome::Failed { error, reused }, replayable);
            assert_eq!(
                verdict, expected,
                "{method} {:?} reused {reused} replayable {replayable}",
                error.progress
            );
        }
    }

    #[test]
    fn a_body_that_cannot_be_sent_again_ends_it() {
        let error = failed(Kind::UpstreamReset, Progress::Sent);
        assert_eq!(
            state("5xx", 5).judge(Outcome::Failed { error: &error, reused: true }, false),
            Verdict::Stands
        );
        assert_eq!(state("5xx", 5).judge(Outcome::Response(&ResponseHead::new(503)), false), Verdict::Stands);
        assert!(state("5xx", 1).may_replay());
        assert!(!state("5xx", 0).may_replay());
        assert!(!state("connect-failure", 1).may_replay());
    }

    #[test]
    fn internal_callers_change_the_budget() {
        let mut head = RequestHead::new();
        head.set_method(b"POST");
        for (name, value) in [
            ("x-envoy-retry-on", "gateway-error, unknown"),
            ("x-envoy-retry-grpc-on", "unavailable"),
            ("x-envoy-max-retries", "7"),
            ("x-envoy-retriable-status-codes", "429, x, 431"),
            ("x-envoy-hedge-on-per-try-timeout", "true"),
            ("x-kept", "1"),
        ] {
            head.fields.append(name, value.as_bytes());
        }
        let state = RetryState::new(None, &mut head);
        assert_eq!(state.on, on("gateway-error,unavailable"));
        assert_eq!((state.left, &*state.codes), (7, &[429, 431][..]));
        assert_eq!(head.fields.len(), 1);
        assert_eq!(RetryState::new(None, &mut head).on, RetryOn::default());
    }

    #[test]
    fn backoff_grows_and_is_capped() {
        let mut state = state("5xx", 10);
        let mut ceilings = Vec::new();
        for _ in 0..6 {
            state.judge(Outcome::Response(&ResponseHead::new(503)), true);
            let longest = (0..2000u64).map(|n| state.backoff(n.wrapping_mul(0x9E37_79B9_7F4A_7C15))).max();
            ceilings.push(longest.unwrap().as_millis());
        }
        for (longest, ceiling) in ceilings.iter().zip([25, 75, 175, 250, 250, 250]) {
            assert!(*longest < ceiling && *longest >= ceiling * 9 / 10, "{ceilings:?}");
        }
        state.base = Duration::ZERO;
        assert_eq!(state.backoff(5), Duration::ZERO);
    }

    #[test]
    fn nothing_is_retried_once_the_client_got_something() {
        let mut state = state("5xx", 3);
        state.forbid();
        assert_eq!(state.judge(Outcome::Response(&ResponseHead::new(503)), true), Verdict::Stands);
        let error = failed(Kind::ConnectFailed, Progress::NothingSent);
        assert_eq!(state.judge(Outcome::Failed { error: &error, reused: false }, true), Verdict::Stands);
        assert!(!state.may_replay());
    }
}
