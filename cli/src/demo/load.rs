//! Steady traffic from outside the mesh, each answer counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::mesh::ENTRY;
use crate::client::{Answer, Client};

/// What came back so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answers 200.
    pub succeeded: AtomicU64,
    /// Everything else.
    pub failed: AtomicU64,
    /// Answers in which version v1 of `reviews` took part.
    pub v1: AtomicU64,
    /// The same for v2.
    pub v2: AtomicU64,
    /// What the first failure said.
    pub first_failure: parking_lot::Mutex<Option<String>>,
}

/// A moment of a [`Tally`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    /// Answers 200.
    pub succeeded: u64,
    /// Everything else.
    pub failed: u64,
    /// Answers with reviews v1.
    pub v1: u64,
    /// Answers with reviews v2.
    pub v2: u64,
}

impl Tally {
    /// The counts now.
    pub fn read(&self) -> Reading {
        Reading {
            succeeded: self.succeeded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            v1: self.v1.load(Ordering::Relaxed),
            v2: self.v2.load(Ordering::Relaxed),
        }
    }

    fn count(&self, outcome: anyhow::Result<Answer>) {
        let failure = match outcome {
            Ok(answer) if answer.status == 200 => {
                let body = answer.body_text();
                self.succeeded.fetch_add(1, Ordering::Relaxed);
                self.v1.fetch_add(u64::from(body.contains("reviews v1")), Ordering::Relaxed);
                self.v2.fetch_add(u64::from(body.contains("reviews v2")), Ordering::Relaxed);
                return;
            }
            Ok(answer) => format!("{}: {}", answer.status, answer.body_text().trim()),
            Err(error) => format!("{error:#}"),
        };
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.first_failure.lock().get_or_insert(failure);
    }
}

/// Traffic that flows until this is dropped.
pub struct Load {
    /// What came back.
    pub tally: Arc<Tally>,
    task: JoinHandle<()>,
}

impl Load {
    /// Sends `rps` requests per second to the shop, through the sidecar at `proxy`.
    pub fn start(proxy: SocketAddr, rps: u32) -> Self {
        let tally = Arc::new(Tally::default());
        let task = tokio::spawn(send(Arc::new(Client::through(proxy)), rps, tally.clone()));
        Self { tally, task }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn send(client: Arc<Client>, rps: u32, tally: Arc<Tally>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rps);
    // A late answer doesn't hold the next request back; a stalled machine doesn't cause a burst.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (client, tally) = (client.clone(), tally.clone());
        tokio::spawn(async move { tally.count(client.get(ENTRY, "/").await) });
    }
}
