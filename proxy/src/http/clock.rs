//! Watches the limits of one running request.
//!
//! Both directions of the exchange report what happens (`touch`, `request_complete`, …), and one future, [`Clock::expired`],
//! tells which limit was passed. It owns the only timer of a request: none where nothing is limited, and a timer that is set stays
//! until it fires and looks whether it fired too early, because moving it at each byte would cost more than the byte.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::timeout::Timeouts;
use crate::error::{Kind, Progress, ProxyError, Side};

/// Not yet, or not now.
const NEVER: u64 = u64::MAX;

/// What has happened when, in microseconds since the start. Atomic only so that both halves of the exchange can write it
/// through a shared reference; all of them run in one task.
#[derive(Debug)]
pub struct Clock {
    timeouts: Timeouts,
    started: Instant,
    request_complete: AtomicU64,
    /// Since when the body is not being read, because there is no stream to send it on.
    opening: AtomicU64,
    /// Begin of the attempt that is waiting for its response's head.
    attempt: AtomicU64,
    progress: AtomicU64,
    /// Something went through since `progress` was written. The time is taken once for all that happens between two
    /// waits, by [`Clock::expired`], which each of them ends with.
    touched: AtomicBool,
}

impl Clock {
    /// A clock that starts now, without limits.
    pub fn start() -> Self {
        Self {
            timeouts: Timeouts::default(),
            started: Instant::now(),
            request_complete: AtomicU64::new(NEVER),
            opening: AtomicU64::new(NEVER),
            attempt: AtomicU64::new(NEVER),
            progress: AtomicU64::new(0),
            touched: AtomicBool::new(false),
        }
    }

    /// The limits are known now.
    pub fn limit(&mut self, timeouts: Timeouts) {
        self.timeouts = timeouts;
    }

    /// The limits.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// When it started.
    pub fn started(&self) -> std::time::Instant {
        self.started.into_std()
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(NEVER - 1)
    }

    /// A byte went through, in either direction.
    pub fn touch(&self) {
        self.touched.store(true, Relaxed);
    }

    fn note_progress(&self) {
        let counts = self.timeouts.stream_idle.is_some() || self.timeouts.per_try_idle.is_some();
        if counts && self.touched.load(Relaxed) {
            self.touched.store(false, Relaxed);
            self.progress.store(self.now(), Relaxed);
        }
    }

    /// The last byte of the request is here. Only the first call counts.
    pub fn request_complete(&self) {
        if self.request_complete.load(Relaxed) == NEVER {
            self.request_complete.store(self.now(), Relaxed);
        }
    }

    /// How long ago the request was complete.
    pub fn since_request_complete(&self) -> Option<Duration> {
        let at = self.request_complete.load(Relaxed);
        (at != NEVER).then(|| self.elapsed().saturating_sub(Duration::from_micros(at)))
    }

    /// From the start to the request's last byte.
    pub fn request_took(&self) -> Option<Duration> {
        let at = self.request_complete.load(Relaxed);
        (at != NEVER).then(|| Duration::from_micros(at))
    }

    /// An attempt begins, with the search for a stream to send on.
    pub fn attempt_begins(&self) {
        let timeouts = &self.timeouts;
        if timeouts.overall.is_some() || timeouts.per_try.is_some() || timeouts.per_try_idle.is_some() {
            let now = self.now();
            self.opening.store(now, Relaxed);
            self.attempt.store(now, Relaxed);
        }
        self.touch();
    }

    /// There is a stream: the body is being read (on).
    pub fn opened(&self) {
        self.opening.store(NEVER, Relaxed);
        self.touch();
    }

    /// The attempt is over, or its response's head is here.
    pub fn attempt_ends(&self) {
        self.opening.store(NEVER, Relaxed);
        self.attempt.store(NEVER, Relaxed);
        self.touch();
    }

    /// The request has become a tunnel: only idleness counts, as for a connection.
    pub fn tunnel_begins(&mut self) {
        self.timeouts.overall = None;
        self.timeouts.max_stream = None;
        self.attempt_ends();
    }

    /// Waits until a limit is passed.
    pub async fn expired(&self) -> ProxyError {
        let mut timer = pin!(None::<Sleep>);
        std::future::poll_fn(|cx| self.poll_expired(cx, timer.as_mut())).await
    }

    fn poll_expired(&self, cx: &mut Context<'_>, mut timer: Pin<&mut Option<Sleep>>) -> Poll<ProxyError> {
        self.note_progress();
        loop {
            let Some((at, kind)) = self.next() else { return Poll::Pending };
            let deadline = self.started + Duration::from_micros(at);
            match timer.as_mut().as_pin_mut() {
                None => timer.set(Some(sleep_until(deadline))),
                Some(sleep) if sleep.deadline() > deadline => sleep.reset(deadline),
                Some(_) => {}
            }
            let Some(mut sleep) = timer.as_mut().as_pin_mut() else { return Poll::Pending };
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if Instant::now() >= deadline {
                return Poll::Ready(error(kind));
            }
            sleep.reset(deadline);
        }
    }

    /// The limit that is passed first if nothing happens, and when.
    fn next(&self) -> Option<(u64, Kind)> {
        // While we don't read, we can't know whether the request is complete; then it is not the client that is waited for.
        let complete = self.request_complete.load(Relaxed).min(self.opening.load(Relaxed));
        let attempt = self.attempt.load(Relaxed);
        let progress = self.progress.load(Relaxed);
        let after = |begin: u64, limit: Option<Duration>, kind: Kind| {
            let limit = u64::try_from(limit?.as_micros()).ok()?;
            (begin != NEVER).then(|| begin.checked_add(limit)).flatten().map(|at| (at, kind))
        };
        // A try's time runs once the request is there whole, as the route's does.
        let trying = if attempt == NEVER || complete == NEVER { NEVER } else { attempt.max(complete) };
        let waiting = if attempt == NEVER { NEVER } else { attempt.max(progress) };
        let timeouts = &self.timeouts;
        [
            after(complete, timeouts.overall, Kind::UpstreamTimeout),
            after(0, timeouts.max_stream, Kind::MaxStreamDuration),
            after(trying, timeouts.per_try, Kind::PerTryTimeout),
            after(waiting, timeouts.per_try_idle, Kind::PerTryTimeout),
            after(progress, timeouts.stream_idle, Kind::StreamIdle),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }
}

fn error(kind: Kind) -> ProxyError {
    ProxyError::new(kind, Side::Internal, Progress::Sent, "")
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    fn millis(number: u64) -> Option<Duration> {
        Some(Duration::from_millis(number))
    }

    fn clock(timeouts: Timeouts) -> Clock {
        let mut clock = Clock::start();
        clock.limit(timeouts);
        clock
    }

    /// What expires, and after how many milliseconds; `None` where nothing does within a minute.
    async fn outcome(clock: &Clock) -> Option<(Kind, u128)> {
        let error = timeout(Duration::from_secs(60), clock.expired()).await.ok()?;
        Some((error.kind, clock.elapsed().as_millis()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_routes_limit_runs_from_the_end_of_the_request() {
        let clock = clock(Timeouts { overall: millis(100), ..Timeouts::default() });
        assert_eq!(outcome(&clock).await, None, "the request isn't complete");
        let before = clock.elapsed().as_millis();
        clock.request_complete();
        assert_eq!(outcome(&clock).await, Some((Kind::UpstreamTimeout, before + 100)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tries_limit_runs_from_its_begin_or_the_end_of_the_request() {
        let timeouts = Timeouts { overall: millis(100), per_try: millis(30), ..Timeouts::default() };
        let clock = clock(timeouts);
        clock.attempt_begins();
        clock.opened();
        advance(Duration::from_millis(10)).await;
        clock.request_complete();
        assert_eq!(outcome(&clock).await, Some((Kind::PerTryTimeout, 40)));
        clock.attempt_ends();
        clock.attempt_begins();
        clock.opened();
        assert_eq!(outcome(&clock).await, Some((Kind::PerTryTimeout, 70)));
        clock.attempt_ends();
        assert_eq!(outcome(&clock).await, Some((Kind::UpstreamTimeout, 110)));
    }

    #[tokio::test(start_paused = true)]
    async fn limits_hold_while_there_is_no_stream_to_send_on() {
        let clock = clock(Timeouts { overall: millis(100), ..Timeouts::default() });
        clock.attempt_begins();
        assert_eq!(outcome(&clock).await, Some((Kind::UpstreamTimeout, 100)));
        clock.attempt_begins();
        clock.opened();
        assert_eq!(outcome(&clock).await, None, "the client is to send its body");
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_ends_with_each_byte() {
        let clock = clock(Timeouts { stream_idle: millis(50), ..Timeouts::default() });
        let mut expired = pin!(clock.expired());
        for _ in 0..5 {
            assert!(timeout(Duration::from_millis(40), expired.as_mut()).await.is_err());
            clock.touch();
        }
        assert_eq!(expired.await.kind, Kind::StreamIdle);
        assert_eq!(clock.elapsed().as_millis(), 250);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_comes_up_while_waiting_is_seen() {
        let clock = clock(Timeouts { overall: millis(10), max_stream: millis(1000), ..Timeouts::default() });
        let mut expired = pin!(clock.expired());
        assert!(timeout(Duration::from_millis(100), expired.as_mut()).await.is_err());
        clock.request_complete();
        assert_eq!(expired.await.kind, Kind::UpstreamTimeout);
        assert_eq!(clock.elapsed().as_millis(), 110, "not when the timer of the longer limit fires");
    }

    #[tokio::test(start_paused = true)]
    async fn tunnels_know_idleness_only() {
        let mut clock = clock(Timeouts {
            overall: millis(10),
            max_stream: millis(20),
            stream_idle: millis(500),
            ..Timeouts::default()
        });
        clock.request_complete();
        clock.tunnel_begins();
        assert_eq!(outcome(&clock).await, Some((Kind::StreamIdle, 500)));
        assert_eq!(outcome(&Clock::start()).await, None);
    }
}
