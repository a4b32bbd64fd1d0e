//! What a worker lends and gets back all the time, kept for the next one who needs it.
//!
//! A busy worker keeps as many as it uses at a time, because getting each from the allocator costs more than a request's
//! parsing. What nobody has needed for [`LOOK`] is given up, down to [`ALWAYS_KEPT`]; the look happens only while there is
//! more than that, so an idle worker is not woken.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

/// Things that are kept however long nobody needs them.
const ALWAYS_KEPT: usize = 16;
/// Things that are kept at most.
const MAX_KEPT: usize = 256;
/// Time between two looks at what nobody has needed.
const LOOK: Duration = Duration::from_secs(1);

/// The things of one kind that nobody uses.
#[derive(Debug)]
pub(super) struct Shelf<T>(Mutex<Kept<T>>);

#[derive(Debug)]
struct Kept<T> {
    free: Vec<T>,
    /// The fewest that lay here since the last look: so many were needed by nobody.
    spare: usize,
    /// A look is coming.
    watched: bool,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(Mutex::new(Kept { free: Vec::new(), spare: 0, watched: false }))
    }
}

impl<T: Send + 'static> Shelf<T> {
    /// The thing that was given last.
    pub(super) fn take(&self) -> Option<T> {
        let mut kept = self.0.lock();
        let thing = kept.free.pop();
        kept.spare = kept.spare.min(kept.free.len());
        thing
    }

    /// Takes a thing back.
    pub(super) fn give(self: &Arc<Self>, thing: T, runtime: &Handle) {
        let mut kept = self.0.lock();
        if kept.free.len() >= MAX_KEPT {
            return;
        }
        kept.free.push(thing);
        if kept.free.len() > ALWAYS_KEPT && !kept.watched {
            kept.watched = true;
            kept.spare = 0;
            runtime.spawn(self.clone().watch());
        }
    }

    /// Things that lie here.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.0.lock().free.len()
    }

    async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let mut kept = self.0.lock();
            let all = kept.free.len();
            let needed = (all - kept.spare).max(ALWAYS_KEPT).min(all);
            let given_up = kept.free.split_off(needed);
            kept.spare = kept.free.len();
            kept.watched = kept.free.len() > ALWAYS_KEPT;
            let goes_on = kept.watched;
            drop(kept);
            drop(given_up);
            if !goes_on {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_nobody_needs_for_a_while_is_given_up() {
        let (shelf, runtime) = (Arc::<Shelf<u8>>::default(), Handle::current());
        let burst = |count: usize| {
            let taken: Vec<_> = (0..count).map(|_| shelf.take().unwrap_or_default()).collect();
            taken.into_iter().for_each(|thing| shelf.give(thing, &runtime));
        };
        burst(300);
        assert_eq!(shelf.kept(), MAX_KEPT);
        // A load that goes on keeps what it uses at a time, and no more.
        for _ in 0..40 {
            tokio::time::sleep(LOOK / 4).await;
            burst(100);
        }
        assert_eq!(shelf.kept(), 100);
        tokio::time::sleep(3 * LOOK).await;
        assert_eq!(shelf.kept(), ALWAYS_KEPT);
        assert_eq!(runtime.metrics().num_alive_tasks(), 0, "nobody looks any more");
        burst(2);
        assert_eq!(shelf.kept(), ALWAYS_KEPT);
    }
}
