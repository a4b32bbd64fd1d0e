//! The way to a clean end: phases that only go forward, and a count of what is still open.
//!
//! Readers on the request path ask [`Drain::phase`], one relaxed atomic load. Tasks that must act at once (HTTP/2 sends
//! GOAWAY) wait with [`Drain::reached`]. Nothing here ticks: without a drain nobody is woken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

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
    open: AtomicUsize,
    emptied: Notify,
}

impl Default for Drain {
    fn default() -> Self {
        let (phase, _) = watch::channel(Phase::Running);
        Self { fast: AtomicU8::new(0), phase, open: AtomicUsize::new(0), emptied: Notify::new() }
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
            self.fast.store(phase as u8, Ordering::Relaxed);
            true
        });
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
}
