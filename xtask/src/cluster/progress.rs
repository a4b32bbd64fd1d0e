//! What is shown while the cluster starts and ends: one line a step, with its seconds.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};

/// Does one step and shows how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprint!("{what:<40}");
    let _ = std::io::stderr().flush();
    let started = Instant::now();
    let outcome = work();
    let mark = if outcome.is_ok() { "" } else { "  failed" };
    eprintln!("{:>6.1} s{mark}", started.elapsed().as_secs_f64());
    outcome.with_context(|| what.to_owned())
}
