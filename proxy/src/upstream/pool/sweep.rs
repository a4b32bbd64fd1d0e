//! The pool's task: closes what is idle for too long or must not be used any more, and notices when a peer closes an idle
//! connection.
//!
//! It sleeps until a notice comes or `sweep_at`, which is set only while something needs it. A connection that was idle for
//! [`WATCH_AFTER`] is registered with the mailbox as waker: until then it is probably used again soon, and afterwards its close
//! by the peer wakes the pool, so that sockets don't pile up half closed. Then nothing ticks until its idle time is over.

use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{HOST_IDLE, Http1Connection, Shared, Slot, State};
use crate::upstream::live::LiveState;
use crate::upstream::mailbox::{Mailbox, Notice};

/// Idle time after which a connection is watched.
const WATCH_AFTER: Duration = Duration::from_secs(2);

/// Brings the next sweep forward to `at`; true where the task has to hear of it.
pub(super) fn schedule(sweep_at: &mut Option<Instant>, at: Instant) -> bool {
    let sooner = sweep_at.is_none_or(|planned| at < planned);
    if sooner {
        *sweep_at = Some(at);
    }
    sooner
}

/// When a connection that becomes idle `now` has to be looked at.
pub(super) fn first_look(now: Instant, connection: &Http1Connection) -> Instant {
    let watch = now + WATCH_AFTER;
    connection.expires().map_or(watch, |end| end.min(watch))
}

/// Runs as long as the pool lives.
pub(super) async fn tend(pool: Weak<Shared>, mailbox: Arc<Mailbox>) {
    let waker = Waker::from(mailbox.clone());
    loop {
        let Some(shared) = pool.upgrade() else { return };
        let next = shared.look_around(&waker);
        drop(shared);
        match next {
            Some(at) => tokio::select! {
                () = mailbox.wake.notified() => {}
                () = sleep_until(at) => {}
            },
            None => mailbox.wake.notified().await,
        }
    }
}

impl Shared {
    /// Does what notices ask and what time has brought; when to look again.
    fn look_around(self: &Arc<Self>, waker: &Waker) -> Option<Instant> {
        let touched = self.mailbox.take_touched();
        let mut needy: Vec<Arc<LiveState>> = Vec::new();
        let mut changed = touched;
        for (member, notices) in self.mailbox.take() {
            changed |= notices.has(Notice::EndpointsRemoved) || notices.has(Notice::SettingsChanged);
            if notices.has(Notice::GiveUpIdle) {
                let state = self.state.lock();
                let slot = state.slots.values().find(|slot| slot.member.cluster == member.cluster);
                needy.extend(slot.map(|slot| slot.endpoint.cluster.clone()));
            }
        }
        for live in needy {
            self.give_up_idle(&live);
        }
        let now = Instant::now();
        let mut state = self.state.lock();
        if changed || state.sweep_at.is_some_and(|at| at <= now) {
            state.sweep(now, touched, waker);
        }
        self.check_invariants(&state);
        state.sweep_at
    }
}

impl State {
    fn sweep(&mut self, now: Instant, touched: bool, waker: &Waker) {
        let mut next = None;
        if let Some(forgotten) = now.checked_sub(HOST_IDLE) {
            self.forget_hosts(forgotten);
        }
        for host in self.hosts.values() {
            // One with a request in flight is past its time; look again after as long.
            let end = host.used + HOST_IDLE;
            schedule(&mut next, if end > now { end } else { now + HOST_IDLE });
        }
        self.slots.retain(|_, slot| {
            slot.sweep(now, touched, waker, &mut next);
            slot.is_used()
        });
        self.sweep_at = next;
        self.members.retain(|_, member| member.strong_count() > 0);
    }

    /// Lets go of what is idle, and gives no new streams, where a connection's ground is gone. Nothing else is due.
    pub(super) fn look_at_ground(&mut self) {
        let now = Instant::now();
        self.slots.retain(|_, slot| {
            slot.leave_what_is_unwanted(now);
            slot.is_used()
        });
    }

    /// Forgets original destinations that were not used after `since` and have no request in flight.
    pub(super) fn forget_hosts(&mut self, since: Instant) {
        let mut forgotten = HashSet::new();
        self.hosts.retain(|_, host| {
            let keep = host.used > since || host.endpoint.state.active() > 0;
            if !keep {
                forgotten.insert(host.endpoint.state.id);
            }
            keep
        });
        if forgotten.is_empty() {
            return;
        }
        for (_, slot) in self.slots.iter_mut().filter(|((endpoint, _), _)| forgotten.contains(endpoint)) {
            slot.remove_http2(|_| true);
            while slot.take_idle().is_some() {}
        }
    }
}

impl Slot {
    fn is_used(&self) -> bool {
        !self.idle.is_empty() || !self.http2.is_empty() || self.connecting > 0 || !self.waiters.is_empty()
    }

    fn leave_what_is_unwanted(&mut self, now: Instant) {
        let (before, lifetimes) = (self.idle.len(), self.lifetimes);
        self.idle.retain(|connection| connection.is_wanted(now));
        self.member.idle.fetch_sub((before - self.idle.len()) as u32, SeqCst);
        self.remove_http2(|connection| !connection.is_wanted(now, &lifetimes));
    }

    fn sweep(&mut self, now: Instant, touched: bool, waker: &Waker, next: &mut Option<Instant>) {
        let lifetimes = self.lifetimes;
        let before = self.idle.len();
        self.idle.retain_mut(|connection| {
            let keep = connection.is_wanted(now)
                && !(touched && connection.is_watched() && !connection.watch(waker));
            if !keep {
                return false;
            }
            let look = connection.idle_since() + WATCH_AFTER;
            if !connection.is_watched() && look <= now && !connection.watch(waker) {
                return false;
            }
            if !connection.is_watched() {
                schedule(next, look);
            }
            if let Some(end) = connection.expires() {
                schedule(next, end);
            }
            true
        });
        self.member.idle.fetch_sub((before - self.idle.len()) as u32, SeqCst);
        self.remove_http2(|connection| !connection.is_wanted(now, &lifetimes));
        for end in self.http2.iter().filter_map(|connection| connection.expires(&lifetimes)) {
            schedule(next, end);
        }
    }
}
