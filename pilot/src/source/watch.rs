//! Follows a folder: reads it again when the system says that something moved, and now and then anyway.
//!
//! The system's word is only a hint: every scan compares content. The slow poll finds what no hint comes for (files behind links to
//! elsewhere, a root that is itself a swapped link, network file systems).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher};
use tracing::{info, warn};

use super::folder::{Folder, Scan};
use crate::model::{Report, Severity};
use crate::store::writer::Feed;

/// How long to wait for quiet, and how often to look without a hint.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// No hint for this long: scan.
    pub quiet: Duration,
    /// Scan at the latest when the first hint is this old.
    pub longest: Duration,
    /// Scan without a hint.
    pub poll: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(10),
            longest: Duration::from_millis(200),
            poll: Duration::from_secs(3),
        }
    }
}

/// What wakes the thread up.
enum Wake {
    Hint,
    Stop,
}

/// A thread that follows a folder; ends when dropped.
#[derive(Debug)]
pub struct Follower {
    wake: Sender<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Follows `folder`, which may have been scanned before, and feeds what changes.
    pub fn start(folder: Folder, feed: Feed, timing: Timing) -> std::io::Result<Self> {
        let (wake, woken) = channel();
        let hint = wake.clone();
        let thread = std::thread::Builder::new()
            .name("source".into())
            .spawn(move || follow(folder, feed, timing, hint, woken))?;
        Ok(Self { wake, thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.wake.send(Wake::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn follow(mut folder: Folder, feed: Feed, timing: Timing, hint: Sender<Wake>, woken: Receiver<Wake>) {
    let _watcher = watch(&folder, hint);
    let mut unreadable = false;
    let mut last_reports: Option<Vec<Report>> = None;
    // the first scan finds what changed before the watch began
    let mut wait = Duration::ZERO;
    loop {
        if !wait_for_change(&woken, wait, timing) {
            return;
        }
        let begin = Instant::now();
        let scanned = folder.scan();
        // a large folder is looked at less often, so that idling stays cheap
        wait = timing.poll.max(begin.elapsed() * 100);
        let scan = match scanned {
            Ok(scan) => scan,
            Err(error) => {
                if !unreadable {
                    warn!(
                        "the folder {} can't be read, everything stays as it is: {error}",
                        folder.root().display()
                    );
                }
                unreadable = true;
                let mut reports = last_reports.clone().unwrap_or_default();
                reports.push(unreadable_report(&folder, &error));
                if !feed.send(Vec::new(), reports) {
                    return;
                }
                continue;
            }
        };
        if std::mem::take(&mut unreadable) {
            info!("the folder {} can be read again", folder.root().display());
            last_reports = None;
        }
        let Scan { updates, reports, again } = scan;
        if again {
            wait = timing.longest;
        }
        if updates.is_empty() && last_reports.as_ref() == Some(&reports) {
            continue;
        }
        if !feed.send(updates, reports.clone()) {
            return;
        }
        last_reports = Some(reports);
    }
}

fn unreadable_report(folder: &Folder, error: &std::io::Error) -> Report {
    Report {
        file: Some(Arc::new(folder.root().to_owned())),
        line: 0,
        kind: "".into(),
        namespace: "".into(),
        name: "".into(),
        field: String::new(),
        message: format!("the folder can't be read, everything stays as it is: {error}"),
        severity: Severity::Error,
    }
}

fn watch(folder: &Folder, hint: Sender<Wake>) -> Option<notify::RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        // reading a file makes events of its own
        let matters = !matches!(&event, Ok(event) if event.kind.is_access());
        if matters {
            let _ = hint.send(Wake::Hint);
        }
    };
    let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
        watcher.watch(folder.root(), RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| warn!("{} can't be watched and is polled: {error}", folder.root().display()))
        .ok()
}

/// Waits for a hint and then for quiet, or for the poll. False: stop.
fn wait_for_change(woken: &Receiver<Wake>, poll: Duration, timing: Timing) -> bool {
    match woken.recv_timeout(poll) {
        Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
        Err(RecvTimeoutError::Timeout) => return true,
        Ok(Wake::Hint) => {}
    }
    let end = Instant::now() + timing.longest;
    loop {
        let left = end.saturating_duration_since(Instant::now()).min(timing.quiet);
        match woken.recv_timeout(left) {
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => return true,
            Ok(Wake::Hint) if Instant::now() >= end => return true,
            Ok(Wake::Hint) => {}
        }
    }
}
