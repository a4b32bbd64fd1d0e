//! How one worker's pool learns what concerns its connections: an endpoint removed, settings changed, somebody in need.
//!
//! A pool joins a cluster (one [`PoolMember`]) with its first connection there. What it has to look at is kept as flags of
//! the member, never as a list of events: a thousand updates before the worker looks are one look, and nothing is lost.
//! Sending wakes the worker's pool task; nothing here waits or ticks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst};
use std::task::Wake;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// What a pool has to look at in one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Notice {
    /// Endpoints are gone: close their idle connections, give them no new streams.
    EndpointsRemoved = 1,
    /// Connections made with other settings are not used again.
    SettingsChanged = 1 << 1,
    /// Requests elsewhere wait for a connection: give up an idle one.
    GiveUpIdle = 1 << 2,
}

/// One pool's part in one cluster.
#[derive(Debug, Default)]
pub(super) struct PoolMember {
    /// Where its notices go.
    pub mailbox: Arc<Mailbox>,
    /// The cluster's `LiveState::id`.
    pub cluster: u64,
    /// Idle HTTP/1 connections that this pool has in the cluster.
    pub idle: AtomicU32,
    /// HTTP/2 connections that this pool has in the cluster.
    pub http2: AtomicU32,
    notices: AtomicU8,
}

/// Wakes one pool.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    members: Mutex<Vec<Arc<PoolMember>>>,
    /// Wakes the pool's task, also for its own reasons.
    pub wake: Notify,
    /// A watched idle connection has become readable.
    touched: AtomicBool,
}

/// As a waker, the mailbox is what idle connections are registered with: when a peer closes one, the pool looks.
impl Wake for Mailbox {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.touched.swap(true, SeqCst) {
            self.wake.notify_one();
        }
    }
}

/// The notices of one member at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Notices(u8);

impl Notices {
    pub fn has(self, notice: Notice) -> bool {
        self.0 & notice as u8 != 0
    }
}

impl PoolMember {
    pub fn new(mailbox: Arc<Mailbox>, cluster: u64) -> Arc<Self> {
        Arc::new(Self { mailbox, cluster, ..Self::default() })
    }

    /// True where this pool may have a connection in the cluster that nobody uses.
    pub fn may_have_idle(&self) -> bool {
        self.idle.load(SeqCst) > 0 || self.http2.load(SeqCst) > 0
    }

    /// Leaves a notice and wakes the pool, unless it is already there.
    pub fn notify(self: &Arc<Self>, notice: Notice) {
        let before = self.notices.fetch_or(notice as u8, SeqCst);
        if before == 0 {
            self.mailbox.members.lock().push(self.clone());
        }
        if before & notice as u8 == 0 {
            self.mailbox.wake.notify_one();
        }
    }
}

impl Mailbox {
    /// True once after a watched connection became readable.
    pub fn take_touched(&self) -> bool {
        self.touched.swap(false, SeqCst)
    }

    /// Takes everything that was left so far.
    pub fn take(&self) -> Vec<(Arc<PoolMember>, Notices)> {
        let members = std::mem::take(&mut *self.members.lock());
        let noticed = members.into_iter().map(|member| {
            let notices = Notices(member.notices.swap(0, SeqCst));
            (member, notices)
        });
        noticed.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_merge_and_none_is_lost() {
        let mailbox = Arc::new(Mailbox::default());
        let (one, two) = (PoolMember::new(mailbox.clone(), 1), PoolMember::new(mailbox.clone(), 2));
        for _ in 0..1000 {
            one.notify(Notice::EndpointsRemoved);
            one.notify(Notice::SettingsChanged);
            two.notify(Notice::GiveUpIdle);
        }
        let taken = mailbox.take();
        assert_eq!(taken.len(), 2);
        assert!(taken[0].1.has(Notice::EndpointsRemoved) && taken[0].1.has(Notice::SettingsChanged));
        assert!(!taken[0].1.has(Notice::GiveUpIdle) && taken[1].1.has(Notice::GiveUpIdle));
        assert!(mailbox.take().is_empty());
        one.notify(Notice::EndpointsRemoved);
        assert_eq!(mailbox.take().len(), 1, "a notice after taking counts again");
    }
}
