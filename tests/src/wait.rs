//! Waiting for a condition: never for a time.

use std::time::{Duration, Instant};

/// How long a condition may take on a machine that is busy with other work.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Tries `probe` until it gives a value; panics with `what` when it didn't within [`PATIENCE`].
pub fn until<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, probe)
}

/// The same with another patience.
pub fn until_within<T>(patience: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
