//! Requests that wait because the cluster's connection limit doesn't allow another connection: one queue for the whole
//! process, first come first served, so that no worker starves however the connections are spread over the pools.
//!
//! A freed place (or an idle connection) goes to the head of the queue as a [`Grant`] instead of back to a counter or a pool.
//! Invariants: a grant is a guard, so one that reaches nobody passes on by its drop; a waiter that gives up leaves the queue.
//! The lock is taken only while somebody waits or begins to; everyone else reads one counter.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::live::{ConnectionSlot, LiveState};

/// What ends a wait.
#[derive(Debug)]
pub(super) enum Grant {
    /// Open a connection.
    Slot(ConnectionSlot),
}

/// Who waits in one cluster.
#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    waiters: Mutex<VecDeque<Waiter>>,
    /// Length of the queue, readable without the lock.
    length: AtomicU32,
    next: AtomicU64,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    grant: oneshot::Sender<Grant>,
}

/// A place in the queue; leaving early is a drop.
#[derive(Debug)]
pub(super) struct Waiting {
    cluster: Arc<LiveState>,
    ticket: u64,
    grant: oneshot::Receiver<Grant>,
}

impl WaitQueue {
    /// True where somebody waits. Sequentially consistent with what pools and limits count: whoever frees something after
    /// a waiter has looked for it sees that waiter here.
    pub fn any(&self) -> bool {
        self.length.load(SeqCst) > 0
    }

    /// Gives `grant` to the first in the queue that still waits.
    pub fn give(&self, mut grant: Grant) -> Result<(), Grant> {
        loop {
            let Some(waiter) = self.pop() else { return Err(grant) };
            match waiter.grant.send(grant) {
                Ok(()) => return Ok(()),
                Err(refused) => grant = refused,
            }
        }
    }

    fn pop(&self) -> Option<Waiter> {
        let mut waiters = self.waiters.lock();
        let waiter = waiters.pop_front();
        self.length.store(waiters.len() as u32, SeqCst);
        waiter
    }

    fn leave(&self, ticket: u64) {
        let mut waiters = self.waiters.lock();
        if let Some(place) = waiters.iter().position(|waiter| waiter.ticket == ticket) {
            waiters.remove(place);
            self.length.store(waiters.len() as u32, SeqCst);
        }
    }
}

impl Waiting {
    /// Joins the end of the queue. The caller then looks once more for a free place, since one may have come free before.
    pub fn join(cluster: &Arc<LiveState>) -> Self {
        let queue = &cluster.waiting;
        let (sender, receiver) = oneshot::channel();
        let ticket = queue.next.fetch_add(1, Relaxed);
        let mut waiters = queue.waiters.lock();
        waiters.push_back(Waiter { ticket, grant: sender });
        queue.length.store(waiters.len() as u32, SeqCst);
        drop(waiters);
        Self { cluster: cluster.clone(), ticket, grant: receiver }
    }

    /// Waits for its turn.
    pub async fn granted(&mut self) -> Grant {
        // The sender is dropped without a grant only by `leave`, which our own drop calls.
        (&mut self.grant).await.expect("a waiter stays in the queue until it is granted or dropped")
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.cluster.waiting.leave(self.ticket);
    }
}
