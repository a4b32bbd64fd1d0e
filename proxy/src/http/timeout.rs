//! How long a request may take: route, request headers and `grpc-timeout` taken together.
//!
//! Zero means "no limit" everywhere in Envoy's configuration and headers; here that is `None`.

use std::time::Duration;

use super::head::{Known, RequestHead};
use crate::config::listener::HttpTimeouts;
use crate::config::route::Forward;

/// The limits of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// From the end of the request to the end of the response, over all attempts.
    pub overall: Option<Duration>,
    /// Each attempt, up to the head of its response.
    pub per_try: Option<Duration>,
    /// Each attempt without progress, up to the head of its response.
    pub per_try_idle: Option<Duration>,
    /// Neither a byte received nor sent.
    pub stream_idle: Option<Duration>,
    /// From the start to the end, whatever happens.
    pub max_stream: Option<Duration>,
    /// The upstream shall learn the limit through `grpc-timeout`.
    pub tells_grpc: bool,
}

impl Timeouts {
    /// The limits of a request whose route isn't known yet.
    pub fn before_route(manager: &HttpTimeouts) -> Self {
        Self { stream_idle: manager.stream_idle, max_stream: manager.max_stream_duration, ..Self::default() }
    }

    /// The limits of a request, taking the headers that set them out of it.
    pub fn of(manager: &HttpTimeouts, forward: &Forward, head: &mut RequestHead) -> Self {
        let policy = forward.retry.as_deref();
        let grpc_limit = if head.is_grpc() { forward.grpc_timeout_max } else { None };
        let mut timeouts = Self {
            overall: match grpc_limit {
                Some(limit) => grpc_deadline(head, limit),
                None => forward.timeout,
            },
            per_try: policy.and_then(|policy| policy.per_try_timeout),
            per_try_idle: policy.and_then(|policy| policy.per_try_idle_timeout),
            stream_idle: forward.idle_timeout.unwrap_or(manager.stream_idle),
            max_stream: forward.max_stream_duration.or(manager.max_stream_duration),
            tells_grpc: grpc_limit.is_some(),
        };
        if head.fields.iter().any(|field| field.known.is_some_and(is_control)) {
            timeouts.take_headers(head);
        }
        for limit in [
            &mut timeouts.overall,
            &mut timeouts.per_try,
            &mut timeouts.per_try_idle,
            &mut timeouts.stream_idle,
            &mut timeouts.max_stream,
        ] {
            *limit = limit.filter(|limit| !limit.is_zero());
        }
        if timeouts.overall.is_some_and(|overall| timeouts.per_try.is_some_and(|per_try| per_try >= overall))
        {
            timeouts.per_try = None;
        }
        timeouts
    }

    /// Only internal requests still have these headers (`filters::forwarded`).
    fn take_headers(&mut self, head: &mut RequestHead) {
        let mut take = |name| {
            let value = head.fields.get(name).and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
            head.fields.remove(name);
            value.map(Duration::from_millis)
        };
        self.overall = take(Known::XEnvoyUpstreamRqTimeoutMs).or(self.overall);
        self.per_try = take(Known::XEnvoyUpstreamRqPerTryTimeoutMs).or(self.per_try);
        self.max_stream = take(Known::XEnvoyUpstreamStreamDurationMs).or(self.max_stream);
    }

    /// Tells the upstream how long this attempt may take: `x-envoy-expected-rq-timeout-ms`, and `grpc-timeout` where the
    /// route decides about it. `elapsed` is the time since the request was complete.
    pub fn announce(&self, elapsed: Duration, head: &mut RequestHead) {
        let left = self.overall.map(|overall| overall.saturating_sub(elapsed));
        let Some(expected) = self.per_try.into_iter().chain(left).min() else { return };
        // None is no limit, so an expired one is told as the least that there is.
        let expected = (expected.as_millis() as u64).max(1);
        head.fields.set_fmt(Known::XEnvoyExpectedRqTimeoutMs, format_args!("{expected}"));
        if self.tells_grpc {
            match expected {
                0..=99_999_999 => head.fields.set_fmt(Known::GrpcTimeout, format_args!("{expected}m")),
                _ => head.fields.set_fmt(Known::GrpcTimeout, format_args!("{}S", expected / 1000)),
            }
        }
    }
}

fn is_control(known: Known) -> bool {
    matches!(
        known,
        Known::XEnvoyUpstreamRqTimeoutMs
            | Known::XEnvoyUpstreamRqPerTryTimeoutMs
            | Known::XEnvoyUpstreamStreamDurationMs
    )
}

/// What the client's deadline allows, capped; a client without deadline gets the cap.
fn grpc_deadline(head: &RequestHead, limit: Option<Duration>) -> Option<Duration> {
    let limit = limit.filter(|limit| !limit.is_zero());
    let asked =
        head.fields.get(Known::GrpcTimeout).and_then(parse_grpc_timeout).filter(|asked| !asked.is_zero());
    asked.into_iter().chain(limit).min()
}

/// `grpc-timeout`: at most eight digits and a unit. Parts of a millisecond are rounded up.
pub fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_millis(number.div_ceil(1000)),
        b'n' => Duration::from_millis(number.div_ceil(1_000_000)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::route::RetryPolicy;
    use crate::http::test_support::{forward, retry_policy};

    fn millis(number: u64) -> Option<Duration> {
        Some(Duration::from_millis(number))
    }

    fn with(forward: &Forward, lines: &[(&str, &str)]) -> (Timeouts, RequestHead) {
        let mut head = RequestHead::new();
        for (name, value) in lines {
            head.fields.append(*name, value.as_bytes());
        }
        (Timeouts::of(&HttpTimeouts::default(), forward, &mut head), head)
    }

    fn announced(
        timeouts: Timeouts,
        elapsed: u64,
        head: &mut RequestHead,
    ) -> (Option<String>, Option<String>) {
        timeouts.announce(Duration::from_millis(elapsed), head);
        let get = |name| head.fields.get(name).map(|value| String::from_utf8(value.to_vec()).unwrap());
        (get(Known::XEnvoyExpectedRqTimeoutMs), get(Known::GrpcTimeout))
    }

    #[test]
    fn routes_decide_and_headers_override() {
        let route = Forward { timeout: millis(1000), ..forward() };
        assert_eq!(with(&route, &[]).0.overall, millis(1000));
        assert_eq!(with(&route, &[]).0.stream_idle, HttpTimeouts::default().stream_idle);
        assert_eq!(with(&Forward { idle_timeout: Some(None), ..forward() }, &[]).0.stream_idle, None);
        assert_eq!(
            with(&Forward { idle_timeout: Some(millis(5)), ..forward() }, &[]).0.stream_idle,
            millis(5)
        );
        let lines = [
            ("x-envoy-upstream-rq-timeout-ms", "50"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "20"),
            ("x-envoy-upstream-stream-duration-ms", "70"),
        ];
        let (timeouts, head) = with(&route, &lines);
        assert_eq!(
            (timeouts.overall, timeouts.per_try, timeouts.max_stream),
            (millis(50), millis(20), millis(70))
        );
        assert!(head.fields.is_empty());
        assert_eq!(with(&route, &[("x-envoy-upstream-rq-timeout-ms", "0")]).0.overall, None);
        let (timeouts, head) = with(&route, &[("x-envoy-upstream-rq-timeout-ms", "soon")]);
        assert_eq!((timeouts.overall, head.fields.len()), (millis(1000), 0));
    }

    #[test]
    fn a_try_cannot_outlast_the_whole() {
        let policy =
            |per_try| Some(std::sync::Arc::new(RetryPolicy { per_try_timeout: per_try, ..retry_policy() }));
        let route = |timeout, per_try| Forward { timeout, retry: policy(per_try), ..forward() };
        assert_eq!(with(&route(millis(100), millis(20)), &[]).0.per_try, millis(20));
        assert_eq!(with(&route(millis(100), millis(100)), &[]).0.per_try, None);
        assert_eq!(with(&route(None, millis(100)), &[]).0.per_try, millis(100));
    }

    #[test]
    fn grpc_deadlines() {
        let grpc = ("content-type", "application/grpc");
        let route = |grpc_timeout_max| Forward { timeout: millis(1000), grpc_timeout_max, ..forward() };
        for (limit, timeout, expected) in [
            (None, Some("5m"), millis(1000)),
            (Some(None), Some("5m"), millis(5)),
            (Some(None), None, None),
            (Some(millis(100)), Some("5m"), millis(5)),
            (Some(millis(100)), Some("5S"), millis(100)),
            (Some(millis(100)), None, millis(100)),
            (Some(millis(100)), Some("nonsense"), millis(100)),
        ] {
            let mut lines = vec![grpc];
            lines.extend(timeout.map(|timeout| ("grpc-timeout", timeout)));
            assert_eq!(with(&route(limit), &lines).0.overall, expected, "{limit:?} {timeout:?}");
        }
        let (timeouts, _) = with(&route(Some(None)), &[("grpc-timeout", "5m")]);
        assert_eq!(timeouts.overall, millis(1000), "not gRPC");
    }

    #[test]
    fn grpc_timeouts_are_parsed() {
        for (text, expected) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3_000)),
            ("4m", Some(4)),
            ("1u", Some(1)),
            ("2001u", Some(3)),
            ("1n", Some(1)),
            ("99999999H", Some(99_999_999 * 3_600_000)),
            ("", None),
            ("m", None),
            ("1", None),
            ("1x", None),
            ("-1m", None),
            ("123456789m", None),
        ] {
            assert_eq!(parse_grpc_timeout(text.as_bytes()), expected.and_then(millis), "{text}");
        }
    }

    #[test]
    fn the_upstream_is_told() {
        let route = Forward { timeout: millis(1000), ..forward() };
        let (timeouts, mut head) = with(&route, &[]);
        assert_eq!(announced(timeouts, 0, &mut head), (Some("1000".into()), None));
        assert_eq!(announced(timeouts, 400, &mut head), (Some("600".into()), None));
        assert_eq!(announced(timeouts, 5000, &mut head), (Some("1".into()), None));
        let (timeouts, mut head) = with(&forward(), &[]);
        assert_eq!(announced(timeouts, 0, &mut head), (None, None));
        let route = Forward { grpc_timeout_max: Some(None), ..forward() };
        let (timeouts, mut head) =
            with(&route, &[("content-type", "application/grpc"), ("grpc-timeout", "2S")]);
        assert_eq!(announced(timeouts, 0, &mut head), (Some("2000".into()), Some("2000m".into())));
        let (timeouts, mut head) =
            with(&route, &[("content-type", "application/grpc"), ("grpc-timeout", "999999S")]);
        assert_eq!(announced(timeouts, 0, &mut head).1, Some("999999S".into()));
    }
}
