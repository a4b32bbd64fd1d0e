//! Runs checks one after the other and counts them as cargo's own tests are counted. A cluster is shared, so the order is that of
//! the list; one that fails does not stop those after it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// What has run so far.
pub struct Run {
    /// Words of the command line: only checks whose name has one of them run, where there are any.
    wanted: Vec<String>,
    passed: u32,
    failed: Vec<String>,
}

impl Run {
    /// Takes the command line of `cargo test`.
    pub fn new() -> Self {
        let wanted = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
        Self { wanted, passed: 0, failed: Vec::new() }
    }

    /// True where a check of this name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|word| name.contains(word.as_str()))
    }

    /// Runs one check, if it is wanted.
    pub fn check(&mut self, name: &str, check: impl FnOnce()) {
        if self.wants(name) {
            self.always(name, check);
        }
    }

    /// Runs one that others stand on. True if it holds.
    pub fn always(&mut self, name: &str, check: impl FnOnce()) -> bool {
        let started = Instant::now();
        // What a check leaves behind belongs to it alone.
        let done = catch_unwind(AssertUnwindSafe(check)).is_ok();
        let word = if done { "ok" } else { "FAILED" };
        println!("test {name} ... {word} ({:.1} s)", started.elapsed().as_secs_f64());
        if done {
            self.passed += 1;
        } else {
            self.failed.push(name.to_owned());
        }
        done
    }

    /// The last line, as libtest prints it.
    pub fn end(self) -> ExitCode {
        let failed = self.failed.len();
        for name in &self.failed {
            println!("failed: {name}");
        }
        let word = if failed == 0 { "ok" } else { "FAILED" };
        println!("test result: {word}. {} passed; {failed} failed; 0 ignored; 0 measured;", self.passed);
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
