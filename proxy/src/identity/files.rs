//! Certificates and roots in files, by the names that SDS has for them: read when they are named, and again when they change.
//!
//! What can't be read leaves in force what was good before, and is told once. Folders are watched, not files: a file that is replaced by
//! another, and a link that leads elsewhere from now on (as Kubernetes changes mounted Secrets), are changes of a folder.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use osier_proto::Any;
use osier_proto::types::core::{DataSource, data_source::Specifier};
use osier_proto::types::tls::{self, CertificateValidationContext, TlsCertificate, secret};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::compile;
use crate::config::snapshot::SharedSnapshot;
use crate::config::tls::{Secret, Secrets, Trust};

/// `file-cert:<chain>~<key>`.
const CERTIFICATE: &str = "file-cert:";
/// `file-root:<roots>`.
const ROOTS: &str = "file-root:";
/// The path that stands for the roots of the system.
const SYSTEM: &str = "system";

/// Where systems have their roots, after `SSL_CERT_FILE`.
const SYSTEM_FILES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// After a change, for whoever changes several files.
const QUIET: Duration = Duration::from_millis(100);
/// As often, at most, where a folder never is quiet.
const MOST_PAUSES: usize = 20;
/// Between two looks, where the kernel can't tell of changes.
const PAUSE: Duration = Duration::from_secs(10);
/// No certificate and no bundle of roots is larger.
const MAX_BYTES: u64 = 4 << 20;

/// Which files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSecret {
    /// A chain, and its key.
    Certificate {
        /// The chain.
        chain: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// Roots.
    Roots(PathBuf),
    /// The roots of the system.
    System,
}

/// Why files are of no use.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// One can't be read.
    #[error("{}: {reason}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// They are no certificates, or don't belong together.
    #[error("{0}")]
    Content(String),
    /// Nobody knows where the roots of the system are.
    #[error("there are no system roots (SSL_CERT_FILE says where they are)")]
    NoSystem,
}

impl FileSecret {
    /// Reads a name; `None` where it is of another kind.
    pub fn parse(name: &str) -> Option<Self> {
        if let Some(files) = name.strip_prefix(CERTIFICATE) {
            let (chain, key) = files.split_once('~')?;
            let both = !chain.is_empty() && !key.is_empty() && !key.contains('~');
            return both.then(|| Self::Certificate { chain: chain.into(), key: key.into() });
        }
        match name.strip_prefix(ROOTS)? {
            "" => None,
            SYSTEM => Some(Self::System),
            path => Some(Self::Roots(path.into())),
        }
    }

    /// The files behind it.
    pub fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Certificate { chain, key } => vec![chain.clone(), key.clone()],
            Self::Roots(path) => vec![path.clone()],
            Self::System => system_file().into_iter().collect(),
        }
    }

    /// Reads them, as SDS sends them under `name`. Nothing that is no use to anybody is returned.
    pub fn read(&self, name: &str) -> Result<(tls::Secret, Secret), Unusable> {
        let secret = tls::Secret { name: name.to_owned(), r#type: Some(self.content()?) };
        let compiled = match (self, &secret.r#type) {
            (Self::System, Some(secret::Type::ValidationContext(context))) => in_system(context),
            _ => compile::tls::secret(name, &Any::pack(&secret))
                .map_err(|error| Unusable::Content(format!("{}: {}", error.field, error.reason))),
        };
        compiled.map(|compiled| (secret, compiled))
    }

    fn content(&self) -> Result<secret::Type, Unusable> {
        let roots = |path: &Path| {
            let context =
                CertificateValidationContext { trusted_ca: Some(inline(path)?), ..Default::default() };
            Ok(secret::Type::ValidationContext(context))
        };
        match self {
            Self::Certificate { chain, key } => Ok(secret::Type::TlsCertificate(TlsCertificate {
                certificate_chain: Some(inline(chain)?),
                private_key: Some(inline(key)?),
            })),
            Self::Roots(path) => roots(path),
            Self::System => roots(&system_file().ok_or(Unusable::NoSystem)?),
        }
    }
}

/// A system may have a root or two that nobody can use.
fn in_system(context: &CertificateValidationContext) -> Result<Secret, Unusable> {
    let source = context.trusted_ca.as_ref().and_then(|source| source.specifier.as_ref());
    let Some(Specifier::InlineBytes(pem)) = source else { return Err(Unusable::NoSystem) };
    let roots = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
    let trust = Trust::in_system(roots).map_err(Unusable::Content)?;
    Ok(Secret::Trust(Arc::new(trust)))
}

fn system_file() -> Option<PathBuf> {
    let said = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    said.into_iter().chain(SYSTEM_FILES.iter().map(PathBuf::from)).find(|path| path.is_file())
}

fn inline(path: &Path) -> Result<DataSource, Unusable> {
    let wrong = |reason: String| Unusable::File { file: path.into(), reason };
    let length = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if length > MAX_BYTES {
        return Err(wrong(format!("has {length} bytes; {MAX_BYTES} are the most")));
    }
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    Ok(DataSource { specifier: Some(Specifier::InlineBytes(bytes.into())) })
}

/// Fills handles of files that are empty yet, so that what names them can be used at once.
pub fn fill(secrets: &Secrets) {
    for handle in secrets.files() {
        if handle.certificate().is_some() || handle.trust().is_some() {
            continue;
        }
        // What is wrong is told by `keep`, which tries as well.
        if let Some(Ok((_, content))) = FileSecret::parse(&handle.name).map(|files| files.read(&handle.name))
        {
            handle.publish(content);
        }
    }
}

/// Keeps handles of files as the files are. Runs for as long as the process. Where roots change it is said by `snapshot`: clients of ours may
/// stand on them.
pub async fn keep(secrets: Arc<Secrets>, snapshot: SharedSnapshot) {
    let mut kept = Kept::default();
    let mut changes = None;
    loop {
        secrets.files_added.notified().await;
        // Nobody watches anything where there are no files.
        let changes = changes.get_or_insert_with(Changes::new);
        loop {
            let handles = secrets.files();
            let named: Vec<_> = handles
                .iter()
                .filter_map(|handle| Some((handle, FileSecret::parse(&handle.name)?)))
                .collect();
            if named.is_empty() {
                break;
            }
            changes.watch(named.iter().flat_map(|(_, files)| files.paths()));
            kept.only(handles.iter().map(|handle| handle.name.clone()).collect());
            for (handle, files) in &named {
                if let Some((_, content)) = kept.look(&handle.name, files) {
                    let roots = matches!(content, Secret::Trust(_));
                    handle.publish(content);
                    if roots {
                        snapshot.nudge();
                    }
                }
            }
            drop(named);
            drop(handles);
            tokio::select! {
                () = secrets.files_added.notified() => {}
                () = changes.next() => {}
            }
        }
    }
}

/// What was read last, so that only news are told.
#[derive(Debug, Default)]
pub struct Kept {
    good: HashMap<Arc<str>, tls::Secret>,
    bad: HashMap<Arc<str>, String>,
}

impl Kept {
    /// Reads files; something only where they are usable and other than before.
    pub fn look(&mut self, name: &Arc<str>, files: &FileSecret) -> Option<(tls::Secret, Secret)> {
        match files.read(name) {
            Ok((secret, content)) => {
                self.bad.remove(name);
                let before = self.good.insert(name.clone(), secret.clone());
                match before {
                    Some(before) if before == secret => return None,
                    Some(_) => tracing::info!("{name}: another content is in force"),
                    None => {}
                }
                Some((secret, content))
            }
            Err(error) => {
                let reason = error.to_string();
                if self.bad.get(name) != Some(&reason) {
                    let stays = if self.good.contains_key(name) {
                        "; what was good before stays in force"
                    } else {
                        ""
                    };
                    tracing::error!("{name}: {reason}{stays}");
                    self.bad.insert(name.clone(), reason);
                }
                None
            }
        }
    }

    /// True where nothing was ever looked at.
    pub fn is_empty(&self) -> bool {
        self.good.is_empty() && self.bad.is_empty()
    }

    /// Forgets all but these.
    pub fn only(&mut self, names: HashSet<Arc<str>>) {
        self.good.retain(|name, _| names.contains(name));
        self.bad.retain(|name, _| names.contains(name));
    }
}

/// Tells of changes in folders.
pub struct Changes {
    /// `None` where the kernel gives none.
    inotify: Option<AsyncFd<Watches>>,
}

/// As tokio wants to have it.
struct Watches(Inotify);

impl Watches {
    /// Watches the folder of a file; while that one isn't there, the nearest in which it, or what leads to it, can come to be.
    fn watch_folder_of(&self, file: &Path) {
        let what = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB;
        let mut watched = None;
        loop {
            let nearest = nearest_folder(file);
            // It may have come to be before the watch on what is above it.
            if watched.as_ref() == Some(&nearest) {
                return;
            }
            // One that is watched already stays so.
            let _ = self.0.add_watch(&nearest, what);
            watched = Some(nearest);
        }
    }
}

fn nearest_folder(file: &Path) -> PathBuf {
    let here = || PathBuf::from(if file.is_absolute() { "/" } else { "." });
    file.ancestors().skip(1).find(|folder| folder.is_dir()).map_or_else(here, Path::to_path_buf)
}

impl AsRawFd for Watches {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Changes {
    /// Watches nothing yet.
    #[expect(deprecated, reason = "what replaces it is unsafe; `Watches` owns its descriptor to its end")]
    pub fn new() -> Self {
        let made = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|inotify| AsyncFd::with_interest(Watches(inotify), tokio::io::Interest::READABLE));
        let inotify = made.map_err(|error| {
            tracing::warn!(%error, "certificates in files are read every {PAUSE:?}: the kernel doesn't tell of changes");
        });
        Self { inotify: inotify.ok() }
    }

    /// Watches the folders of these files too, and those to which links lead from there.
    pub fn watch(&self, files: impl Iterator<Item = PathBuf>) {
        let Some(inotify) = &self.inotify else { return };
        for file in files {
            let behind = std::fs::canonicalize(&file).ok();
            for file in [Some(file), behind].into_iter().flatten() {
                inotify.get_ref().watch_folder_of(&file);
            }
        }
    }

    /// Returns when something has changed and it has been quiet for a moment.
    pub async fn next(&self) {
        let Some(inotify) = &self.inotify else { return sleep(PAUSE).await };
        if wait(inotify).await.is_err() {
            sleep(PAUSE).await;
        }
        for _ in 0..MOST_PAUSES {
            if tokio::time::timeout(QUIET, wait(inotify)).await.is_err() {
                return;
            }
        }
    }
}

impl Default for Changes {
    fn default() -> Self {
        Self::new()
    }
}

async fn wait(inotify: &AsyncFd<Watches>) -> io::Result<()> {
    loop {
        let mut ready = inotify.readable().await?;
        let read = ready.try_io(|inotify| inotify.get_ref().0.read_events().map_err(io::Error::from));
        match read {
            Ok(events) => return events.map(drop),
            Err(_would_block) => {}
        }
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
