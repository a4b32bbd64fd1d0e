//! Steady load on one address, each answer counted: what tests on a cluster drive a service with. Prints its counts as one line of
//! JSON every second, and at its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use osier_core::say;
use parking_lot::Mutex;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::client::Client;

/// Answers in flight at a time; what would be more is not sent, and counts as skipped.
const IN_FLIGHT: u64 = 512;

/// What to send where.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Host and port.
    target: String,
    /// Path.
    #[arg(long, default_value = "/")]
    path: String,
    /// Requests a second.
    #[arg(long, default_value_t = 100)]
    rps: u32,
    /// Print a line whenever the first line of the answers is another.
    #[arg(long)]
    changes: bool,
    /// Ends after so many seconds; 0 runs until SIGTERM.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
}

#[derive(Default)]
struct Counts {
    succeeded: AtomicU64,
    failed: AtomicU64,
    skipped: AtomicU64,
    in_flight: AtomicU64,
    first_failure: Mutex<Option<String>>,
    /// Milliseconds of the slowest answer.
    slowest: AtomicU64,
    /// First line of the last answer.
    last: Mutex<String>,
}

/// Sends until it is told to end.
pub async fn run(arguments: Arguments) -> Result<()> {
    let client = Arc::new(Client::from_environment()?);
    let counts = Arc::new(Counts::default());
    let mut terminate = signal(SignalKind::terminate())?;
    let mut ticks = interval(Duration::from_secs(1) / arguments.rps.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lines = interval(Duration::from_secs(1));
    let end = async {
        match arguments.seconds {
            0 => std::future::pending().await,
            seconds => tokio::time::sleep(Duration::from_secs(seconds)).await,
        }
    };
    tokio::pin!(end);
    loop {
        tokio::select! {
            _ = ticks.tick() => send(&arguments, &client, &counts),
            _ = lines.tick(), if !arguments.changes => counts.print(false),
            _ = terminate.recv() => break,
            () = &mut end => break,
        }
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while counts.in_flight.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    counts.print(true);
    Ok(())
}

fn send(arguments: &Arguments, client: &Arc<Client>, counts: &Arc<Counts>) {
    if counts.in_flight.load(Ordering::Relaxed) >= IN_FLIGHT {
        counts.skipped.fetch_add(1, Ordering::Relaxed);
        return;
    }
    counts.in_flight.fetch_add(1, Ordering::Relaxed);
    let (client, counts) = (client.clone(), counts.clone());
    let (target, path) = (arguments.target.clone(), arguments.path.clone());
    let changes = arguments.changes;
    tokio::spawn(async move {
        let started = Instant::now();
        let failure = match client.get(&target, &path).await {
            Ok(answer) if answer.status == 200 => {
                if changes {
                    counts.note(answer.body_text().lines().next().unwrap_or_default());
                }
                None
            }
            Ok(answer) => Some(format!("{}: {}", answer.status, answer.body_text().trim())),
            Err(error) => Some(format!("{error:#}")),
        };
        let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        counts.slowest.fetch_max(took, Ordering::Relaxed);
        match failure {
            None => counts.succeeded.fetch_add(1, Ordering::Relaxed),
            Some(failure) => {
                counts.first_failure.lock().get_or_insert(failure);
                counts.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
        counts.in_flight.fetch_sub(1, Ordering::Relaxed);
    });
}

impl Counts {
    /// Prints who answers, where that is somebody else than before.
    fn note(&self, now: &str) {
        let mut last = self.last.lock();
        if *last != now {
            let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            say!("{}", json!({ "now": now, "at_ms": at.as_millis() as u64 }));
            now.clone_into(&mut last);
        }
    }

    fn print(&self, last: bool) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let line = json!({
            "succeeded": read(&self.succeeded),
            "failed": read(&self.failed),
            "skipped": read(&self.skipped),
            "slowest_ms": read(&self.slowest),
            "first_failure": *self.first_failure.lock(),
            "last": last,
        });
        say!("{line}");
    }
}
