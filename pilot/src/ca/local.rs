//! The authority of a mesh without Kubernetes (`osier up`): root, key, and a key that signs tokens, in a folder of the user's own.
//!
//! An authority of one's own goes into the folder `cacerts` there, with the names that Istio's Secret has. It is followed: another one
//! signs as soon as its files belong together.
//!
//! Who may read the folder may be anybody in that mesh: it is the user's own, mode 0700, or it is refused. `osier run` makes a token
//! for its workload with the key; the control plane takes it as an API server's.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use notify::{RecursiveMode, Watcher as _};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::authority::{Authority, Unusable, new_root};
use super::in_force::InForce;
use super::material;
use crate::xds::identity::{AUDIENCE, Authenticate, Caller, Denied, Identity};

/// The root certificate: what workloads know the control plane by.
pub const ROOT: &str = "root-cert.pem";
/// Root and its key in one file, so that there is never one without the other.
const AUTHORITY: &str = "ca.pem";
const TOKEN_KEY: &str = "token-key";
/// The folder of an authority that its owner plugs in.
const PLUGGED: &str = "cacerts";
/// How long nothing may move before it is read: files are written one by one.
const QUIET: Duration = Duration::from_millis(50);
/// How often it is read without a hint of the system.
const LOOK: Duration = Duration::from_secs(60);
/// Where the control plane serves encrypted xDS.
const ADDRESS: &str = "address";

/// Why the folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Files can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others could take our keys, or give us theirs.
    #[error("{}: must belong to you alone (chmod 700): it holds the mesh's keys", .0.display())]
    Open(PathBuf),
    /// What it holds can't be used.
    #[error("{}: {reason}; remove the folder, and a new authority is made", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        reason: Unusable,
    },
    /// A root can't be made.
    #[error("a root certificate can't be made: {0}")]
    Make(#[from] rcgen::Error),
    /// A token can't be made.
    #[error("a token can't be made: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Local(PathBuf);

/// Makes tokens and knows them again.
pub struct LocalTokens(Vec<u8>);

impl std::fmt::Debug for LocalTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalTokens")
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    aud: String,
    exp: u64,
}

impl Local {
    /// The folder at `path`, made where it is missing.
    pub fn make(path: &Path) -> Result<Self, LocalError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| LocalError::Io { path: path.into(), source })?;
        Self::open(path)
    }

    /// The folder at `path`, which must be there.
    pub fn open(path: &Path) -> Result<Self, LocalError> {
        let metadata = fs::metadata(path).map_err(|source| LocalError::Io { path: path.into(), source })?;
        let ours = metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
        if !metadata.is_dir() || !ours {
            return Err(LocalError::Open(path.into()));
        }
        Ok(Self(path.into()))
    }

    /// The authority; made where there is none.
    pub fn authority(&self) -> Result<Authority, LocalError> {
        let make = || {
            let (root, key) = new_root("cluster.local")?;
            Ok(format!("{root}{key}").into_bytes())
        };
        let pem = String::from_utf8_lossy(&self.keep(AUTHORITY, make)?).into_owned();
        // The key comes last.
        let (root, key) = pem.split_at(pem.find("-----BEGIN PRIVATE KEY-----").unwrap_or(pem.len()));
        let authority = Authority::new(root.to_owned(), key)
            .map_err(|reason| LocalError::Unusable { path: self.0.join(AUTHORITY), reason })?;
        Ok(authority)
    }

    /// Offers the plugged-in authority, where there is one, else the folder's own. Its roots are what workloads know us by.
    pub fn offer(&self, in_force: &InForce) -> Result<(), LocalError> {
        let plugged = self.0.join(PLUGGED);
        if plugged.is_dir() {
            let failed = |source| LocalError::Io { path: plugged.clone(), source };
            let files = files(&plugged).map_err(failed)?;
            let authority = material::plugged(|name| files.get(name).map(Vec::as_slice));
            in_force.offer(&plugged.display().to_string(), authority);
        } else {
            in_force.offer(&self.0.display().to_string(), Ok(self.authority()?));
        }
        match in_force.current() {
            Some(authority) => self.write(ROOT, authority.roots().as_bytes()),
            None => Ok(()),
        }
    }

    /// Puts the authority in force that is to sign, then each other one that takes its place, to the end of the process.
    pub async fn follow(self, in_force: InForce) {
        let moved = Arc::new(Notify::new());
        let hint = moved.clone();
        let on_event = move |event: notify::Result<notify::Event>| {
            // Reading a file makes events of its own.
            if !matches!(&event, Ok(event) if event.kind.is_access()) {
                hint.notify_one();
            }
        };
        let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
            watcher.watch(&self.0, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        let _watcher = watcher.inspect_err(|error| {
            tracing::warn!("{} can't be watched and is polled: {error}", self.0.display())
        });
        loop {
            if let Err(error) = self.offer(&in_force) {
                in_force.refuse(&error.to_string());
            }
            tokio::select! {
                () = moved.notified() => {}
                () = sleep(LOOK) => {}
            }
            while timeout(QUIET, moved.notified()).await.is_ok() {}
        }
    }

    /// Makes and knows tokens.
    pub fn tokens(&self) -> Result<LocalTokens, LocalError> {
        self.keep(TOKEN_KEY, || Ok(rand::random::<[u8; 32]>().to_vec())).map(LocalTokens)
    }

    /// Says where encrypted xDS is served.
    pub fn tell_address(&self, address: SocketAddr) -> Result<(), LocalError> {
        self.write(ADDRESS, address.to_string().as_bytes())
    }

    /// Says that there is none.
    pub fn forget_address(&self) {
        let _ = fs::remove_file(self.0.join(ADDRESS));
    }

    /// Where encrypted xDS is served, as it was told last.
    pub fn address(&self) -> Option<SocketAddr> {
        fs::read_to_string(self.0.join(ADDRESS)).ok()?.parse().ok()
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The content of a file; made where it is missing, and nobody sees half of it.
    fn keep(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<Vec<u8>, LocalError>,
    ) -> Result<Vec<u8>, LocalError> {
        let path = self.0.join(name);
        let failed = |source| LocalError::Io { path: path.clone(), source };
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read => return read.map_err(failed),
        }
        let whole = self.0.join(format!("{name}.{}", std::process::id()));
        private(&whole, &make()?).map_err(failed)?;
        // Another process may have been faster: its file stays.
        let linked = fs::hard_link(&whole, &path);
        let _ = fs::remove_file(&whole);
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
            _ => fs::read(&path).map_err(failed),
        }
    }

    /// Puts a file into the folder in the place of what was there.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), LocalError> {
        let (path, whole) = (self.0.join(name), self.0.join(format!("{name}.{}", std::process::id())));
        let written = private(&whole, content).and_then(|()| fs::rename(&whole, &path));
        written.map_err(|source| LocalError::Io { path, source })
    }
}

/// All files of a folder.
fn files(folder: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().is_file() {
            files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
        }
    }
    Ok(files)
}

fn private(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(content)
}

impl LocalTokens {
    /// A token for a service account.
    pub fn mint(&self, identity: &Identity, life: Duration) -> Result<String, LocalError> {
        let end = SystemTime::now() + life;
        let claims = Claims {
            sub: identity.user(),
            aud: AUDIENCE.into(),
            exp: end.duration_since(UNIX_EPOCH).map_or(0, |end| end.as_secs()),
        };
        let key = EncodingKey::from_secret(&self.0);
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)?)
    }

    fn check(&self, token: &str) -> Result<Identity, Denied> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        let key = DecodingKey::from_secret(&self.0);
        let decoded = jsonwebtoken::decode::<Claims>(token, &key, &validation);
        let claims = decoded.map_err(|error| Denied::Token(error.to_string()))?.claims;
        Identity::of_user(&claims.sub)
    }
}

impl Authenticate for LocalTokens {
    fn authenticate(&self, token: String) -> BoxFuture<'_, Result<Caller, Denied>> {
        std::future::ready(self.check(&token).map(Caller::from)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::ca::authority::tests::family;

    fn web() -> Identity {
        Identity { namespace: "a".into(), service_account: "web".into() }
    }

    #[test]
    fn a_folder_keeps_its_authority_and_its_tokens() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("identity");
        let local = Local::make(&path).unwrap();
        let root = local.authority().unwrap().roots().to_owned();
        let again = Local::open(&path).unwrap();
        assert_eq!(again.authority().unwrap().roots(), root);
        for name in [AUTHORITY, TOKEN_KEY] {
            local.tokens().unwrap();
            assert_eq!(fs::metadata(path.join(name)).unwrap().mode() & 0o777, 0o600, "{name}");
        }
        let token = local.tokens().unwrap().mint(&web(), Duration::from_secs(60)).unwrap();
        assert_eq!(again.tokens().unwrap().check(&token), Ok(web()));
        local.tell_address("127.0.0.1:7".parse().unwrap()).unwrap();
        assert_eq!(again.address(), Some("127.0.0.1:7".parse().unwrap()));
    }

    #[test]
    fn a_plugged_in_authority_comes_first_and_half_of_one_changes_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let local = Local::make(&parent.path().join("identity")).unwrap();
        let (in_force, signs) = InForce::new(Arc::default());
        local.offer(&in_force).unwrap();
        let (own_root, own) = (local.authority().unwrap().roots().to_owned(), signs.borrow().clone());
        assert_eq!(fs::read_to_string(local.file(ROOT)).unwrap(), own_root);
        let (family, plugged) = (family(), local.file(PLUGGED));
        fs::create_dir(&plugged).unwrap();
        let write = |name: &str, content: &str| fs::write(plugged.join(name), content).unwrap();
        write("ca-cert.pem", &family.certificate);
        local.offer(&in_force).unwrap();
        write("ca-key.pem", &family.key);
        write("cert-chain.pem", &family.between);
        // Nobody believes this root yet.
        write("root-cert.pem", &family.root);
        local.offer(&in_force).unwrap();
        assert!(Arc::ptr_eq(signs.borrow().as_ref().unwrap(), own.as_ref().unwrap()));
        assert_eq!(fs::read_to_string(local.file(ROOT)).unwrap(), own_root);
        // A control plane that starts takes it.
        let (in_force, signs) = InForce::new(Arc::default());
        local.offer(&in_force).unwrap();
        assert_eq!(signs.borrow().as_ref().unwrap().roots(), family.root);
        assert_eq!(fs::read_to_string(local.file(ROOT)).unwrap(), family.root);
    }

    #[tokio::test]
    async fn a_folder_that_changes_is_read_again() {
        let parent = tempfile::tempdir().unwrap();
        let local = Local::make(&parent.path().join("identity")).unwrap();
        let (in_force, mut signs) = InForce::new(Arc::default());
        let task = tokio::spawn(local.clone().follow(in_force));
        let own = signs.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        // The same authority, and one root more.
        let pem = fs::read_to_string(local.file(AUTHORITY)).unwrap();
        let (root, key) = pem.split_at(pem.find("-----BEGIN PRIVATE KEY-----").unwrap());
        let more = format!("{root}{}", family().root);
        fs::create_dir(local.file(PLUGGED)).unwrap();
        for (name, content) in [("ca-cert.pem", root), ("ca-key.pem", key), ("root-cert.pem", &more)] {
            fs::write(local.file(PLUGGED).join(name), content).unwrap();
        }
        let roots = |authority: &Option<Arc<Authority>>| authority.as_ref().map(|a| a.count_of_roots());
        timeout(Duration::from_secs(10), signs.wait_for(|authority| roots(authority) == Some(2)))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(own.count_of_roots(), 1);
        task.abort();
    }

    #[test]
    fn tokens_of_others_and_old_ones_are_refused() {
        let (parent, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tokens = Local::make(&parent.path().join("a")).unwrap().tokens().unwrap();
        let others = Local::make(&other.path().join("a")).unwrap().tokens().unwrap();
        let foreign = others.mint(&web(), Duration::from_secs(60)).unwrap();
        assert!(tokens.check(&foreign).is_err());
        assert!(tokens.check("a.b.c").is_err());
        let claims = |aud: &str, sub: &str, exp: u64| {
            let claims = Claims { sub: sub.into(), aud: aud.into(), exp };
            let key = EncodingKey::from_secret(&tokens.0);
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
        };
        let later = 4_000_000_000;
        assert!(tokens.check(&claims(AUDIENCE, "system:serviceaccount:a:web", later)).is_ok());
        for (aud, sub, exp) in [
            ("vault", "system:serviceaccount:a:web", later),
            (AUDIENCE, "root", later),
            (AUDIENCE, "system:serviceaccount:a:web", 1_000_000_000),
        ] {
            assert!(tokens.check(&claims(aud, sub, exp)).is_err(), "{aud} {sub} {exp}");
        }
    }

    #[test]
    fn a_folder_that_others_may_enter_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("identity");
        Local::make(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(Local::open(&path), Err(LocalError::Open(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(path.join(AUTHORITY), "nonsense").unwrap();
        let error = Local::open(&path).unwrap().authority().unwrap_err().to_string();
        assert!(error.contains("ca.pem") && error.contains("remove the folder"), "{error}");
    }
}
