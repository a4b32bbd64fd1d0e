//! What processes used: CPU clocks in nanoseconds, wake-ups, memory.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// What a set of processes has used up to a moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// CPU time, user and system.
    pub cpu: Duration,
    /// Times that a thread gave up the CPU of its own accord: each is a wake-up later.
    pub wakeups: u64,
}

impl Usage {
    /// Of these processes, now.
    pub fn of(pids: &[u32]) -> Result<Self> {
        let mut total = Self::default();
        for pid in pids {
            let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(*pid)?))
                .context("a process is gone")?;
            total.cpu += Duration::from(clock_gettime(clock)?);
            for thread in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
                let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
                total.wakeups += number_after(&status, "voluntary_ctxt_switches:");
            }
        }
        Ok(total)
    }

    /// What was used since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            wakeups: self.wakeups.saturating_sub(before.wakeups),
        }
    }
}

/// Resident and proportional set size in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// RSS.
    pub rss_kib: u64,
    /// PSS.
    pub pss_kib: u64,
}

impl Memory {
    /// Of these processes, now.
    pub fn of(pids: &[u32]) -> Self {
        let mut total = Self::default();
        for pid in pids {
            let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            total.rss_kib += number_after(&text, "Rss:");
            total.pss_kib += number_after(&text, "Pss:");
        }
        total
    }
}

fn number_after(text: &str, key: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(key));
    line.and_then(|line| line[key.len()..].split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
