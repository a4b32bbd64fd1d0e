//! Certificates and roots in files, by the names that SDS has for them: read when they are named, and again when they change.
//!
//! What can't be read leaves in force what was good before, and is told once. Whoever writes a DestinationRule names files on other people's
//! machines: only regular ones of a bounded size are read, and nothing is ever waited for.

use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use osier_proto::Any;
use osier_proto::types::core::{DataSource, data_source::Specifier};
use osier_proto::types::tls::{self, CertificateValidationContext, TlsCertificate, secret};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::changes::Changes;
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
    fn paths(&self) -> Vec<PathBuf> {
        match self {
            Self::Certificate { chain, key } => vec![chain.clone(), key.clone()],
            Self::Roots(path) => vec![path.clone()],
            Self::System => system_file().into_iter().collect(),
        }
    }

    /// Reads them, as SDS sends them under `name`. Nothing that is no use to anybody is returned.
    fn read(&self, name: &str) -> Result<(tls::Secret, Secret), Unusable> {
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
    let bytes = regular(path).map_err(|reason| Unusable::File { file: path.into(), reason })?;
    Ok(DataSource { specifier: Some(Specifier::InlineBytes(bytes.into())) })
}

/// What a regular file has. Opening a pipe doesn't wait for its writer, and a terminal doesn't become ours.
fn regular(path: &Path) -> Result<Vec<u8>, String> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
    let file = opened.map_err(|error| error.to_string())?;
    // Asked of what is open: another may have the name by now.
    if !file.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("is no regular file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("has more than {MAX_BYTES} bytes"));
    }
    Ok(bytes)
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
    let mut watcher = Watcher::default();
    loop {
        let handles: HashMap<_, _> =
            secrets.files().into_iter().map(|handle| (handle.name.clone(), handle)).collect();
        watcher.look(handles.keys().cloned().collect(), |name, _, content| {
            let roots = matches!(content, Secret::Trust(_));
            handles[name].publish(content);
            if roots {
                snapshot.nudge();
            }
        });
        drop(handles);
        tokio::select! {
            () = secrets.files_added.notified() => {}
            () = watcher.changed() => {}
        }
    }
}

/// Reads files by their names, and knows when to look again. One for all that a process names: the kernel gives a user a hundred watchers
/// or so, for all pods of a node.
#[derive(Default)]
pub struct Watcher {
    /// `None` while no file is named.
    changes: Option<Changes>,
    kept: Kept,
}

impl Watcher {
    /// Reads the files of these names; `news` hears of what is usable and other than before. Other names are forgotten.
    pub fn look(&mut self, names: HashSet<Arc<str>>, mut news: impl FnMut(&Arc<str>, tls::Secret, Secret)) {
        let parsed = names.iter().filter_map(|name| Some((name, FileSecret::parse(name)?)));
        let named: Vec<_> = parsed.collect();
        self.kept.only(&names);
        if named.is_empty() {
            self.changes = None;
            return;
        }
        let changes = self.changes.get_or_insert_with(Changes::new);
        changes.watch(named.iter().flat_map(|(_, files)| files.paths()));
        for (name, files) in named {
            if let Some((secret, content)) = self.kept.look(name, &files) {
                news(name, secret, content);
            }
        }
    }

    /// Completes when it has to be looked again; while no file is named, never. Who stops waiting misses nothing.
    pub async fn changed(&mut self) {
        match &mut self.changes {
            Some(changes) => changes.next().await,
            None => std::future::pending().await,
        }
    }
}

/// What was read last, so that only news are told.
#[derive(Debug, Default)]
struct Kept {
    good: HashMap<Arc<str>, tls::Secret>,
    bad: HashMap<Arc<str>, String>,
}

impl Kept {
    /// Reads files; something only where they are usable and other than before.
    fn look(&mut self, name: &Arc<str>, files: &FileSecret) -> Option<(tls::Secret, Secret)> {
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

    /// Forgets all but these.
    fn only(&mut self, names: &HashSet<Arc<str>>) {
        self.good.retain(|name, _| names.contains(name));
        self.bad.retain(|name, _| names.contains(name));
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
