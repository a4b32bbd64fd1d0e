//! What is kept between runs, outside the clone: `${XDG_CACHE_HOME:-$HOME/.cache}/osier/`.
//!
//! Entries are named by a hash of the lock file that they were made from, so a stale one is never used; old ones are pruned.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

/// How long an entry that nobody uses is kept.
const KEEP: Duration = Duration::from_secs(14 * 24 * 3600);

/// The project's cache folder, made if it isn't there.
pub fn folder() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    let folder = base.join("osier");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// The entry `kind-<hash of content>`, not made yet.
pub fn entry(kind: &str, content: &[u8]) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    Ok(folder()?.join(format!("{kind}-{:016x}", hasher.finish())))
}

/// Marks an entry as used now, so that `prune` keeps it.
pub fn touch(entry: &Path) -> Result<()> {
    let stamp = entry.join(".used");
    std::fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))
}

/// Removes entries that no run has used for two weeks, and build output of other lock files when there are more than two.
pub fn prune() -> Result<()> {
    let mut builds = Vec::new();
    for item in std::fs::read_dir(folder()?)? {
        let path = item?.path();
        let used = std::fs::metadata(path.join(".used"))
            .and_then(|m| m.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let is_build = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("target-"));
        if is_build {
            builds.push((used, path));
        } else if path.join(".used").exists() && used.elapsed().unwrap_or_default() > KEEP {
            remove(&path)?;
        }
    }
    builds.sort();
    builds.reverse();
    for (_, path) in builds.into_iter().skip(2) {
        remove(&path)?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    println!("removing {}", path.display());
    std::fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
}
