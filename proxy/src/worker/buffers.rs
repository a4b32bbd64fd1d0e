//! Buffers of one worker: lent to whoever reads or writes, and kept for the next one.
//!
//! A busy worker keeps as many as it uses at a time, because getting each from the allocator costs more than a request's
//! parsing. What nobody has needed for [`LOOK`] is given up, down to [`ALWAYS_KEPT`]; the look happens only while there is
//! more than that, so an idle worker is not woken.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::BUFFER_SIZE;

/// Buffers that are kept however long nobody needs them.
const ALWAYS_KEPT: usize = 16;
/// Buffers that are kept at most: 4 MiB.
const MAX_KEPT: usize = 256;
/// Time between two looks at what nobody has needed.
const LOOK: Duration = Duration::from_secs(1);

/// The buffers that nobody uses.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    free: Vec<BytesMut>,
    /// The fewest that lay here since the last look: so many were needed by nobody.
    spare: usize,
    /// A look is coming.
    watched: bool,
}

impl Buffers {
    /// An empty buffer with room for [`BUFFER_SIZE`] bytes.
    pub(super) fn take(&self) -> BytesMut {
        let mut kept = self.0.lock();
        match kept.free.pop() {
            Some(buffer) => {
                kept.spare = kept.spare.min(kept.free.len());
                buffer
            }
            None => BytesMut::with_capacity(BUFFER_SIZE),
        }
    }

    /// Takes a buffer back. It is kept if nothing else refers to its memory and it did not grow.
    pub(super) fn give(self: &Arc<Self>, mut buffer: BytesMut, runtime: &Handle) {
        buffer.clear();
        let mut kept = self.0.lock();
        let fits = buffer.try_reclaim(BUFFER_SIZE) && buffer.capacity() <= 2 * BUFFER_SIZE;
        if !fits || kept.free.len() >= MAX_KEPT {
            return;
        }
        kept.free.push(buffer);
        if kept.free.len() > ALWAYS_KEPT && !kept.watched {
            kept.watched = true;
            kept.spare = 0;
            runtime.spawn(self.clone().watch());
        }
    }

    /// Buffers that lie here.
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
        let (buffers, runtime) = (Arc::<Buffers>::default(), Handle::current());
        let burst = |count: usize| {
            let taken: Vec<_> = (0..count).map(|_| buffers.take()).collect();
            taken.into_iter().for_each(|buffer| buffers.give(buffer, &runtime));
        };
        burst(300);
        assert_eq!(buffers.kept(), MAX_KEPT);
        // A load that goes on keeps what it uses at a time, and no more.
        for _ in 0..40 {
            tokio::time::sleep(LOOK / 4).await;
            burst(100);
        }
        assert_eq!(buffers.kept(), 100);
        tokio::time::sleep(3 * LOOK).await;
        assert_eq!(buffers.kept(), ALWAYS_KEPT);
        assert_eq!(runtime.metrics().num_alive_tasks(), 0, "nobody looks any more");
        burst(2);
        assert_eq!(buffers.kept(), ALWAYS_KEPT);
    }
}
