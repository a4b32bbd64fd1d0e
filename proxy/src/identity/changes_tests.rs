//! Ways that come to lead elsewhere.

use std::future::Future;
use std::os::unix::fs::{MetadataExt as _, symlink};

use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn watching(file: &Path) -> Changes {
    let mut changes = Changes::new();
    changes.watch([file.to_path_buf()].into_iter());
    changes
}

async fn in_time(told: impl Future<Output = ()>) -> bool {
    timeout(PATIENCE, told).await.is_ok()
}

/// Folders `one` and `two` with a file `it`, and `other`, in a new place.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for folder in ["one", "two"] {
        fs::create_dir(place.path().join(folder)).unwrap();
        fs::write(place.path().join(folder).join("it"), folder).unwrap();
    }
    fs::create_dir(place.path().join("other")).unwrap();
    place
}

fn replace_link(link: &Path, target: impl AsRef<Path>) {
    let next = link.with_extension("next");
    symlink(target, &next).unwrap();
    fs::rename(next, link).unwrap();
}

#[tokio::test]
async fn a_change_anywhere_on_the_way_is_told() {
    type Make = fn(&Path);
    let cases: [(&str, &str, Make, Make); 7] = [
        ("the file", "one/it", |_| (), |at| fs::write(at.join("one/it"), "new").unwrap()),
        (
            "a link in the middle",
            "current/it",
            |at| symlink("one", at.join("current")).unwrap(),
            |at| replace_link(&at.join("current"), "two"),
        ),
        (
            "one that an absolute link leads to",
            "current/it",
            |at| {
                symlink(at.join("other/link"), at.join("current")).unwrap();
                symlink("../one", at.join("other/link")).unwrap();
            },
            |at| replace_link(&at.join("other/link"), "../two"),
        ),
        (
            "a file behind a link",
            "current/it",
            |at| symlink("one", at.join("current")).unwrap(),
            |at| fs::write(at.join("one/it"), "new").unwrap(),
        ),
        (
            "a folder that gives way to another",
            "one/it",
            |_| (),
            |at| {
                fs::rename(at.join("one"), at.join("old")).unwrap();
                fs::rename(at.join("two"), at.join("one")).unwrap();
            },
        ),
        (
            "what was missing",
            "other/deep/it",
            |_| (),
            |at| {
                fs::create_dir(at.join("other/deep")).unwrap();
                fs::write(at.join("other/deep/it"), "new").unwrap();
            },
        ),
        (
            "a link that led nowhere",
            "current/it",
            |at| symlink("later", at.join("current")).unwrap(),
            |at| fs::rename(at.join("one"), at.join("later")).unwrap(),
        ),
    ];
    for (what, file, before, change) in cases {
        let place = place();
        before(place.path());
        let mut changes = watching(&place.path().join(file));
        change(place.path());
        assert!(in_time(changes.next()).await, "{what}");
        assert!(!changes.blind, "{what}: all of it can be watched");
    }
}

#[tokio::test]
async fn who_stops_waiting_is_told_the_next_time() {
    let place = place();
    let mut changes = watching(&place.path().join("one/it"));
    fs::write(place.path().join("one/it"), "new").unwrap();
    let begun = Instant::now();
    while changes.untold.is_none() {
        assert!(begun.elapsed() < PATIENCE, "the kernel tells nothing");
        // Shorter than it waits for quiet.
        let _ = timeout(QUIET / 20, changes.next()).await;
    }
    assert!(in_time(changes.next()).await);
    assert!(changes.untold.is_none(), "and that once");
}

#[tokio::test(start_paused = true)]
async fn it_is_looked_again_after_a_while_and_sooner_where_nothing_can_be_watched() {
    let place = place();
    let mut changes = watching(&place.path().join("one/it"));
    let begun = Instant::now();
    changes.next().await;
    assert!(begun.elapsed() >= AGAIN && begun.elapsed() < AGAIN * 2, "{:?}", begun.elapsed());
    changes.inotify = None;
    changes.blind = true;
    let begun = Instant::now();
    changes.next().await;
    assert!(begun.elapsed() >= PAUSE && begun.elapsed() < PAUSE * 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn links_in_a_circle_and_what_is_no_folder_end() {
    let place = place();
    symlink("circle", place.path().join("circle")).unwrap();
    for file in ["circle/it", "one/it/it", "..", "other/../one/./it", ""] {
        watching(&place.path().join(file));
    }
}

#[tokio::test]
async fn what_is_not_named_any_more_is_not_watched() {
    let place = place();
    let folder = fs::metadata(place.path().join("one")).unwrap().ino();
    let mut changes = watching(&place.path().join("one/it"));
    let descriptor = changes.inotify.as_ref().unwrap().get_ref().as_raw_fd();
    let watched = || {
        let told = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap();
        told.contains(&format!(" ino:{folder:x} "))
    };
    assert!(watched());
    changes.watch([place.path().join("two/it")].into_iter());
    assert!(!watched());
}
