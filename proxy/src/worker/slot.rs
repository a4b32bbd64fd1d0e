//! Memory for the futures of exchanges: lent by the worker at a request's begin, given back at its end.
//!
//! Such a future has some kilobytes. Boxed, it would be an allocation per request; in the connection's own future, memory of
//! each idle connection; and where a task takes it by value, it is copied a dozen times on its way. In a slot it is written once.
#![allow(unsafe_code)] // Placing a future in memory that outlives it needs raw pointers; all of them are in this file.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::Worker;

/// Room in a slot. Larger futures don't compile: then make them smaller, or this larger.
const ROOM: usize = 8 * 1024;

/// Memory for one future.
#[repr(C, align(64))]
pub(super) struct Slot([MaybeUninit<u8>; ROOM]);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

/// A future in a slot of `W`'s worker.
///
/// Invariant: `slot` is there until the drop, and holds a valid `F` that is never moved.
pub struct Placed<W: Deref<Target = Worker>, F> {
    slot: Option<Box<Slot>>,
    worker: W,
    future: PhantomData<F>,
}

impl<W: Deref<Target = Worker>, F: Future> Placed<W, F> {
    /// Writes `future` into a slot.
    pub fn new(worker: W, future: F) -> Self {
        const {
            assert!(size_of::<F>() <= ROOM && align_of::<F>() <= align_of::<Slot>());
        }
        let mut slot = worker.slots.take().unwrap_or_else(|| Box::new(Slot([MaybeUninit::uninit(); ROOM])));
        // SAFETY: the slot has the size and alignment (checked above), is ours alone, and holds nothing that would need a drop.
        unsafe { (&raw mut *slot).cast::<F>().write(future) };
        Self { slot: Some(slot), worker, future: PhantomData }
    }

    fn place(&mut self) -> Option<*mut F> {
        self.slot.as_mut().map(|slot| (&raw mut **slot).cast())
    }
}

/// Moving this moves a pointer, not the future.
impl<W: Deref<Target = Worker>, F> Unpin for Placed<W, F> {}

impl<W: Deref<Target = Worker>, F: Future> Future for Placed<W, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(place) = self.place() else { unreachable!("the slot is there until the drop") };
        // SAFETY: by the invariant a valid `F` is there; `&mut self` makes us its only user, and it stays where it is until its drop.
        unsafe { Pin::new_unchecked(&mut *place) }.poll(cx)
    }
}

impl<W: Deref<Target = Worker>, F> Drop for Placed<W, F> {
    fn drop(&mut self) {
        let Some(mut slot) = self.slot.take() else { return };
        // SAFETY: by the invariant a valid `F` is there, and nobody can reach it any more. Should its drop panic, the slot is freed.
        unsafe { (&raw mut *slot).cast::<F>().drop_in_place() };
        self.worker.slots.give(slot, &self.worker.handle);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_future_runs_where_it_was_placed_and_gives_its_memory_back() {
        let worker = Worker::here(Arc::default());
        let dropped = Arc::new(());
        let held = dropped.clone();
        let placed = Placed::new(&*worker, async move {
            let data = [7u8; 4096];
            tokio::task::yield_now().await;
            (data.iter().map(|byte| usize::from(*byte)).sum::<usize>(), Arc::strong_count(&held))
        });
        let moved = Box::new(placed);
        assert_eq!(moved.await, (7 * 4096, 2));
        assert_eq!((Arc::strong_count(&dropped), worker.slots.kept()), (1, 1));

        // Given up half way, and as a task of its own.
        let held = dropped.clone();
        let placed = Placed::new(worker.clone(), async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        assert_eq!(worker.slots.kept(), 0);
        let task = tokio::spawn(placed);
        tokio::task::yield_now().await;
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert_eq!((Arc::strong_count(&dropped), worker.slots.kept()), (1, 1));
    }
}
