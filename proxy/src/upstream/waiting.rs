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

use super::live::{ConnectionSlot, LiveState, PlaceKey};
use super::pool::{Http1Connection, Http2Lease};

/// What ends a wait.
#[derive(Debug)]
pub(super) enum Grant {
    /// Open a connection.
    Slot(ConnectionSlot),
    /// Use this one, which another request has finished with.
    Http1(Http1Connection),
    /// Use a stream of this one.
    Http2(Http2Lease),
}

/// What a request waits for, beside the right to open a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Want {
    /// Which connections are of use to it.
    pub place: PlaceKey,
    /// A stream of an HTTP/2 connection, or an HTTP/1 connection.
    pub http2: bool,
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
    want: Want,
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

    /// What the first in the queue waits for.
    pub fn first(&self) -> Option<Want> {
        self.waiters.lock().front().map(|waiter| waiter.want.clone())
    }

    /// Gives a place to the first in the queue. It comes back where nobody waits.
    pub fn give_slot(&self, slot: ConnectionSlot) -> Option<ConnectionSlot> {
        let first = |waiters: &VecDeque<Waiter>| (!waiters.is_empty()).then_some(0);
        self.give(Grant::Slot(slot), first).map(|grant| match grant {
            Grant::Slot(slot) => slot,
            Grant::Http1(_) | Grant::Http2(_) => unreachable!("it comes back as it was given"),
        })
    }

    /// Gives an idle connection to the first in the queue, if that one waits for its endpoint; else it comes back.
    pub fn give_http1(&self, connection: Http1Connection) -> Option<Http1Connection> {
        let want = Want { place: connection.place().key(), http2: false };
        let first =
            |waiters: &VecDeque<Waiter>| waiters.front().filter(|waiter| waiter.want == want).map(|_| 0);
        self.give(Grant::Http1(connection), first).map(|grant| match grant {
            Grant::Http1(connection) => connection,
            Grant::Slot(_) | Grant::Http2(_) => unreachable!("it comes back as it was given"),
        })
    }

    /// Gives a stream to the first in the queue that waits for one at its endpoint. Others in front can't use it, and lose nothing.
    pub fn give_http2(&self, lease: Http2Lease) -> Option<Http2Lease> {
        let want = Want { place: lease.place(), http2: true };
        let fitting = |waiters: &VecDeque<Waiter>| waiters.iter().position(|waiter| waiter.want == want);
        self.give(Grant::Http2(lease), fitting).map(|grant| match grant {
            Grant::Http2(lease) => lease,
            Grant::Slot(_) | Grant::Http1(_) => unreachable!("it comes back as it was given"),
        })
    }

    /// Gives `grant` to the waiter that `which` says, or to the next one if that has given up. It comes back where there is none.
    fn give(&self, mut grant: Grant, which: impl Fn(&VecDeque<Waiter>) -> Option<usize>) -> Option<Grant> {
        while let Some(waiter) = self.take(&which) {
            match waiter.grant.send(grant) {
                Ok(()) => return None,
                Err(refused) => grant = refused,
            }
        }
        Some(grant)
    }

    fn take(&self, which: impl Fn(&VecDeque<Waiter>) -> Option<usize>) -> Option<Waiter> {
        let mut waiters = self.waiters.lock();
        let place = which(&waiters)?;
        let waiter = waiters.remove(place);
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
    pub fn join(cluster: &Arc<LiveState>, want: Want) -> Self {
        let queue = &cluster.waiting;
        let (sender, receiver) = oneshot::channel();
        let ticket = queue.next.fetch_add(1, Relaxed);
        let mut waiters = queue.waiters.lock();
        waiters.push_back(Waiter { ticket, want, grant: sender });
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
