//! Certificate, key and roots as files, for gRPC's `file_watcher`.
//!
//! Each version is a folder of its own; `..data` leads to the one in force and the files lead through it, so that one rename swaps all of
//! them, as Kubernetes does with mounted Secrets. Who asks once where `..data` leads, and reads there, has files that belong together; who
//! opens the three names one after the other can meet a swap between two of them, and has to look again.
//!
//! The folder must lie in memory: it is the one place where a key of the mesh is a file. It must be the agent's user's, and nobody else may
//! write there: who can rename `..data` says which key is used. The last version stays there when the agent ends: its readers go on.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

use super::Current;
use crate::identity::request::Pem;

/// Names of the files, as Istio's agent has them.
const CHAIN: &str = "cert-chain.pem";
/// The key.
const KEY: &str = "key.pem";
/// The roots.
const ROOTS: &str = "root-cert.pem";
/// What leads to the version in force.
const DATA: &str = "..data";
/// What it is called before it is in force.
const NEXT: &str = "..data_next";
/// What folders of versions begin with.
const VERSION: &str = "..version-";
/// The other file system that lies in memory (Linux, magic.h).
const RAMFS: FsType = FsType(0x8584_58f6);

/// A folder that may hold a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(PathBuf);

/// Why a folder is not written.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It can't be made or looked at.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It leads elsewhere, and who made it can let it lead elsewhere again.
    #[error("is a link: name the folder itself")]
    Link,
    /// Somebody else has a hand in it.
    #[error(
        "belongs to another user, or others may write there: it must be this user's (uid {user}), with a mode such as 0700"
    )]
    Open {
        /// Whose it should be.
        user: u32,
    },
    /// It isn't in memory.
    #[error("lies on a disk, and a key doesn't belong there: take one on tmpfs, or say --key-on-disk")]
    OnDisk,
}

impl Folder {
    /// Makes the folder where it is missing (for its user alone) and looks whose it is, and where it lies.
    pub fn open(path: &Path, may_lie_on_disk: bool) -> Result<Self, Refused> {
        // Without a slash at the end, which would lead through a link.
        let path = &path.components().collect::<PathBuf>();
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let found = fs::symlink_metadata(path)?;
        if found.is_symlink() {
            return Err(Refused::Link);
        }
        let user = nix::unistd::geteuid().as_raw();
        if found.uid() != user || found.mode() & 0o022 != 0 {
            return Err(Refused::Open { user });
        }
        let kind = statfs(path).map_err(io::Error::from)?.filesystem_type();
        if !may_lie_on_disk && kind != TMPFS_MAGIC && kind != RAMFS {
            return Err(Refused::OnDisk);
        }
        Ok(Self(path.clone()))
    }

    /// Puts a certificate in force for readers.
    pub fn write(&self, pem: &Pem) -> io::Result<()> {
        let version = format!("{VERSION}{:032x}", rand::random::<u128>());
        let folder = self.0.join(&version);
        DirBuilder::new().mode(0o700).create(&folder)?;
        for (name, mode, text) in
            [(CHAIN, 0o644, &pem.chain), (KEY, 0o600, &pem.key), (ROOTS, 0o644, &pem.roots)]
        {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(mode).open(folder.join(name))?;
            file.write_all(text.as_bytes())?;
            self.link(name)?;
        }
        let next = self.0.join(NEXT);
        remove(&next)?;
        symlink(&version, &next)?;
        fs::rename(&next, self.0.join(DATA))?;
        self.remove_others(&version)
    }

    /// Where readers look. What else has the name gives way.
    fn link(&self, name: &str) -> io::Result<()> {
        let (link, target) = (self.0.join(name), Path::new(DATA).join(name));
        if fs::read_link(&link).is_ok_and(|leads| leads == target) {
            return Ok(());
        }
        remove(&link)?;
        symlink(target, link)
    }

    fn remove_others(&self, current: &str) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(VERSION) && name != current {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes each certificate that comes in force. Ends with the first failure: readers would go on with what will end.
pub async fn keep(folder: Folder, mut current: Current) -> io::Result<()> {
    loop {
        let pem = current.borrow_and_update().clone();
        if let Some(pem) = pem {
            folder.write(&pem)?;
            tracing::info!(folder = %folder.0.display(), "certificate, key and roots are written");
        }
        if current.changed().await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn pem(word: &str) -> Pem {
        let part = |what: &str| format!("{what} {word}");
        Pem { chain: part("chain"), key: part("key"), roots: part("roots") }
    }

    fn read(folder: &Path) -> [String; 3] {
        [CHAIN, KEY, ROOTS].map(|name| fs::read_to_string(folder.join(name)).unwrap())
    }

    #[test]
    fn a_version_replaces_another_whole() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("certificates");
        let folder = Folder::open(&path, true).unwrap();
        // What somebody else left under these names gives way.
        fs::write(path.join(KEY), "old").unwrap();
        fs::write(path.join(NEXT), "old").unwrap();
        for word in ["one", "two", "three"] {
            folder.write(&pem(word)).unwrap();
            assert_eq!(read(&path), ["chain", "key", "roots"].map(|what| format!("{what} {word}")));
        }
        let versions = fs::read_dir(&path).unwrap().flatten();
        let versions = versions.filter(|entry| entry.file_name().to_string_lossy().starts_with(VERSION));
        assert_eq!(versions.count(), 1, "no key outlives its use");
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(path.join(KEY)), mode(path.clone())), (0o600, 0o700));
    }

    #[test]
    fn what_data_leads_to_is_of_one_version() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path(), true).unwrap();
        folder.write(&pem("0")).unwrap();
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| (1..200).for_each(|n| folder.write(&pem(&n.to_string())).unwrap()));
            while !writing.is_finished() {
                let version = place.path().join(fs::read_link(place.path().join(DATA)).unwrap());
                let texts = [CHAIN, KEY, ROOTS].map(|name| fs::read_to_string(version.join(name)).ok());
                let [Some(chain), Some(key), Some(roots)] = texts else { continue };
                let word = |text: &str| text.split(' ').next_back().unwrap().to_owned();
                assert!(word(&chain) == word(&key) && word(&key) == word(&roots), "{chain} {key} {roots}");
            }
        });
    }

    #[test]
    fn a_folder_in_which_others_have_a_hand_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("certificates");
        fs::create_dir(&path).unwrap();
        for (mode, fits) in [(0o700, true), (0o755, true), (0o770, false), (0o707, false), (0o1777, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let opened = Folder::open(&path, true);
            let as_it_should =
                if fits { opened.is_ok() } else { matches!(opened, Err(Refused::Open { .. })) };
            assert!(as_it_should, "{mode:o}: {opened:?}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let link = place.path().join("link");
        symlink(&path, &link).unwrap();
        for link in [link.clone(), link.join("")] {
            assert!(matches!(Folder::open(&link, true), Err(Refused::Link)), "{}", link.display());
        }
        // Somebody else's, whoever we are: only root can give folders away.
        let others = if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
            path
        } else {
            "/proc/1".into()
        };
        assert!(matches!(Folder::open(&others, true), Err(Refused::Open { .. })), "{}", others.display());
    }

    #[test]
    fn a_disk_gets_no_key_unless_told() {
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        assert!(matches!(Folder::open(disk.path(), false), Err(Refused::OnDisk)));
        assert!(Folder::open(disk.path(), true).is_ok());
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        assert!(Folder::open(memory.path(), false).is_ok());
    }
}
