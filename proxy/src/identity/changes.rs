//! Tells when files may be others than they were.
//!
//! Folders are watched, not files: a file that is replaced by another, and a link that leads elsewhere from now on (as Kubernetes changes
//! mounted Secrets), are changes of a folder. What decides where a path leads is watched, from its root: the folder of each link on the way,
//! and each folder itself, as it may be moved away. What the kernel doesn't tell of (other machines' writes on a network's file system, other
//! names of the same file) is found because all is looked at again after a while.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until, timeout_at};

/// After a change, for whoever changes several files.
const QUIET: Duration = Duration::from_millis(100);
/// As long, at most, where a folder never is quiet.
const LONGEST: Duration = Duration::from_secs(2);
/// Between two looks, where the kernel tells of changes.
const AGAIN: Duration = Duration::from_secs(600);
/// The same where it doesn't.
const PAUSE: Duration = Duration::from_secs(10);
/// The kernel follows no more.
const MOST_LINKS: usize = 40;

/// The folder itself: it is moved or removed, and another may come in its place.
const ITSELF: AddWatchFlags = AddWatchFlags::IN_MOVE_SELF.union(AddWatchFlags::IN_DELETE_SELF);
/// What is in it.
const CONTENT: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ATTRIB);
/// What is watched already is watched for that too (`IN_MASK_ADD` of Linux's inotify.h).
const TOO: AddWatchFlags = AddWatchFlags::from_bits_retain(0x2000_0000);
/// A folder that became a link meanwhile is not that folder.
const HOW: AddWatchFlags = AddWatchFlags::IN_ONLYDIR.union(AddWatchFlags::IN_DONT_FOLLOW).union(TOO);

/// Changes on the ways to files.
pub struct Changes {
    /// `None` where the kernel gives none.
    inotify: Option<AsyncFd<Watches>>,
    watched: HashSet<WatchDescriptor>,
    /// There is something that can't be watched.
    blind: bool,
    looked: Instant,
    /// When the first and the last change came of those that nobody was told of. The kernel tells only once.
    untold: Option<(Instant, Instant)>,
}

impl Changes {
    /// Watches nothing yet.
    #[expect(deprecated, reason = "what replaces it is unsafe; `Watches` owns its descriptor to its end")]
    pub fn new() -> Self {
        let made = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|inotify| AsyncFd::with_interest(Watches(inotify), tokio::io::Interest::READABLE));
        let inotify = made.map_err(|error| warn(&error)).ok();
        let blind = inotify.is_none();
        Self { inotify, watched: HashSet::new(), blind, looked: Instant::now(), untold: None }
    }

    /// Watches the ways to these files, and no others any more. To be called before they are looked at.
    pub fn watch(&mut self, files: impl Iterator<Item = PathBuf>) {
        self.looked = Instant::now();
        let Some(inotify) = &self.inotify else { return };
        let inotify = &inotify.get_ref().0;
        let mut ways = Ways { inotify, watched: HashSet::new(), failed: false };
        for file in files {
            ways.add(&file);
        }
        let Ways { watched, failed, .. } = ways;
        for other in self.watched.difference(&watched) {
            // One whose folder has gone has gone with it.
            let _ = inotify.rm_watch(*other);
        }
        (self.watched, self.blind) = (watched, failed);
    }

    /// Completes when something has changed and it has been quiet for a moment, or when it is time to look again. Who stops waiting misses
    /// nothing: what was seen until then is told by the next call.
    pub async fn next(&mut self) {
        loop {
            let due = match self.untold {
                Some((first, last)) => (last + QUIET).min(first + LONGEST),
                None => self.looked + if self.blind { PAUSE } else { AGAIN },
            };
            // Something that never is quiet doesn't let a time-out end.
            if Instant::now() >= due {
                break;
            }
            let Some(inotify) = &self.inotify else { break sleep_until(due).await };
            match timeout_at(due, read(inotify)).await {
                Err(_elapsed) => break,
                Ok(Ok(())) => {
                    let now = Instant::now();
                    self.untold = Some((self.untold.map_or(now, |(first, _)| first), now));
                }
                Ok(Err(error)) => {
                    warn(&error);
                    (self.inotify, self.blind) = (None, true);
                }
            }
        }
        (self.untold, self.looked) = (None, Instant::now());
    }
}

fn warn(error: &io::Error) {
    tracing::warn!(%error, "certificates in files are read every {PAUSE:?}: the kernel doesn't tell of changes");
}

/// As tokio wants to have it.
struct Watches(Inotify);

impl AsRawFd for Watches {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

async fn read(inotify: &AsyncFd<Watches>) -> io::Result<()> {
    loop {
        let mut ready = inotify.readable().await?;
        let read = ready.try_io(|inotify| inotify.get_ref().0.read_events().map_err(io::Error::from));
        match read {
            Ok(events) => return events.map(drop),
            Err(_would_block) => {}
        }
    }
}

/// Ways that are being watched.
struct Ways<'a> {
    inotify: &'a Inotify,
    watched: HashSet<WatchDescriptor>,
    failed: bool,
}

impl Ways<'_> {
    /// Goes from the root to the file as the kernel does, and watches each folder before it looks what is in it.
    fn add(&mut self, file: &Path) {
        let mut here = PathBuf::from("/");
        let mut ahead = steps(&std::path::absolute(file).unwrap_or_else(|_| file.into()));
        let mut links = 0;
        while let Some(step) = ahead.pop() {
            if step == ".." {
                here.pop();
                continue;
            }
            let there = here.join(step);
            self.watch(&here, ITSELF);
            let leads_on = |there: &Path| {
                !ahead.is_empty() && fs::symlink_metadata(there).is_ok_and(|found| found.is_dir())
            };
            if leads_on(&there) {
                here = there;
                continue;
            }
            // A link, the file, or something that is missing: another can come in its place. It may have come before the watch.
            self.watch(&here, CONTENT);
            match fs::read_link(&there) {
                Ok(target) if links < MOST_LINKS => {
                    links += 1;
                    ahead.extend(steps(&target));
                }
                Err(_) if leads_on(&there) => here = there,
                _ => return,
            }
        }
    }

    fn watch(&mut self, folder: &Path, what: AddWatchFlags) {
        match self.inotify.add_watch(folder, what | HOW) {
            Ok(watch) => {
                self.watched.insert(watch);
            }
            Err(_) => self.failed = true,
        }
    }
}

/// The parts of a path, the first one last.
fn steps(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter(|part| *part != Component::CurDir).rev();
    parts.map(|part| part.as_os_str().to_owned()).collect()
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
