//! Whether the process may get traffic: ready when nothing that it waits for is missing any more.
//!
//! Each part that must come first takes a [`Pending`] at the start and drops it when it is there, so that a part that is
//! forgotten cannot be missing silently, and the answer names what is still awaited.

use std::sync::Arc;

use parking_lot::Mutex;

/// What the process still waits for.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<Vec<&'static str>>>);

/// One thing that is awaited; dropping it says that it is there.
#[derive(Debug)]
pub struct Pending {
    readiness: Readiness,
    what: &'static str,
}

impl Readiness {
    /// The process is not ready until the result is dropped.
    pub fn wait_for(&self, what: &'static str) -> Pending {
        self.0.lock().push(what);
        Pending { readiness: self.clone(), what }
    }

    /// True when nothing is awaited.
    pub fn is_ready(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// What is awaited, in the order in which it was announced.
    pub fn awaited(&self) -> Vec<&'static str> {
        self.0.lock().clone()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut awaited = self.readiness.0.lock();
        if let Some(index) = awaited.iter().position(|what| *what == self.what) {
            awaited.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_everything_has_come() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        let (listeners, workers) = (readiness.wait_for("listeners"), readiness.wait_for("workers"));
        drop(listeners);
        assert_eq!((readiness.is_ready(), readiness.awaited()), (false, vec!["workers"]));
        drop(workers);
        assert!(readiness.is_ready());
    }
}
