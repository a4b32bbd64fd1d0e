//! The way to a clean end: phases that only go forward, and a count of what is still open.
//!
//! Readers on the request path ask [`Drain::phase`], one relaxed atomic load. Tasks that must act at once (HTTP/2 sends
//! GOAWAY) wait with [`Drain::reached`]. Nothing here ticks: without a drain nobody is woken.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How far the end has come. A later phase includes the earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Nothing is ending.
    Running,
    /// Inbound connections end politely; outbound ones go on, so that the application can still call out.
    DrainingInbound,
    /// All connections end politely.
    Draining,
    /// Whatever is left is cut.
    Closing,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Running, Self::DrainingInbound, Self::Draining, Self::Closing];
}

/// The process's drain state; one per process, shared by everything that serves.
#[derive(Debug)]
pub struct Drain {
    fast: AtomicU8,
    phase: watch::Sender<Phase>,
    /// When the first phase after [`Phase::Running`] was reached.
    began: OnceLock<Instant>,
    open: AtomicUsize,
    /// All that were ever opened.
    opened: AtomicUsize,
    emptied: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        let (phase, _) = watch::channel(Phase::Running);
        Self {
            fast: AtomicU8::new(0),
            phase,
            began: OnceLock::new(),
            open: AtomicUsize::new(0),
            opened: AtomicUsize::new(0),
            emptied: Notify::new(),
        }
    }
}

impl Drain {
    /// A process that is running.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.fast.load(Ordering::Relaxed))]
    }

    /// Goes to `phase`, unless a later one was reached already.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            if *now >= phase {
                return false;
            }
            *now = phase;
            self.began.get_or_init(Instant::now);
            self.fast.store(phase as u8, Ordering::Relaxed);
            true
        });
    }

    /// How long ago the drain began; `None` while the process is running.
    pub fn since(&self) -> Option<Duration> {
        self.began.get().map(Instant::elapsed)
    }

    /// Waits until `phase` or a later one is reached.
    pub async fn reached(&self, phase: Phase) {
        let mut seen = self.phase.subscribe();
        // The sender lives in `self`, so the channel cannot close while we wait.
        let _ = seen.wait_for(|now| *now >= phase).await;
    }

    /// Counts one open connection until the guard is dropped.
    pub fn track(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.opened.fetch_add(1, Ordering::Release);
        Open { drain: self.clone() }
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Waits until no tracked connection is open.
    pub async fn emptied(&self) {
        loop {
            let notified = self.emptied.notified();
            if self.open() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Waits until no tracked connection has been open for `time`, not even a short one.
    pub async fn quiet_for(&self, time: Duration) {
        loop {
            self.emptied().await;
            let before = self.opened.load(Ordering::Acquire);
            tokio::time::sleep(time).await;
            if self.open() == 0 && self.opened.load(Ordering::Acquire) == before {
                return;
            }
        }
    }
}

/// One open connection, as [`Drain`] counts it.
#[derive(Debug)]
pub struct Open {
    drain: Arc<Drain>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.drain.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.drain.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_go_forward_and_wake_those_who_wait() {
        let drain = Drain::new();
        let waiter = tokio::spawn({
            let drain = drain.clone();
            async move {
                drain.reached(Phase::Draining).await;
                drain.phase()
            }
        });
        drain.advance(Phase::DrainingInbound);
        assert!(!waiter.is_finished());
        drain.advance(Phase::Closing);
        drain.advance(Phase::Draining);
        assert_eq!(waiter.await.expect("waiter"), Phase::Closing);
        drain.reached(Phase::Draining).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_began_with_its_first_phase() {
        let drain = Drain::new();
        assert_eq!(drain.since(), None);
        drain.advance(Phase::DrainingInbound);
        tokio::time::sleep(Duration::from_secs(3)).await;
        drain.advance(Phase::Closing);
        assert_eq!(drain.since(), Some(Duration::from_secs(3)));
    }

    #[tokio::test]
    async fn emptied_waits_for_the_last_connection() {
        let drain = Drain::new();
        drain.emptied().await;
        let (first, second) = (drain.track(), drain.track());
        let waiter = tokio::spawn({
            let drain = drain.clone();
            async move { drain.emptied().await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        assert_eq!(drain.open(), 1);
        drop(second);
        waiter.await.expect("waiter");
    }
    #[tokio::test(start_paused = true)]
    async fn quiet_begins_again_with_each_connection() {
        let second = Duration::from_secs(1);
        let drain = Drain::new();
        let began = tokio::time::Instant::now();
        let waiter = tokio::spawn({
            let drain = drain.clone();
            async move {
                drain.quiet_for(second).await;
                began.elapsed()
            }
        });
        tokio::time::sleep(second / 2).await;
        drop(drain.track());
        tokio::time::sleep(second).await;
        let open = drain.track();
        tokio::time::sleep(5 * second).await;
        assert!(!waiter.is_finished());
        drop(open);
        // Seen at 2 s, while it was open; then quiet from 6.5 s on.
        assert_eq!(waiter.await.expect("waiter"), second * 15 / 2);
    }
}
