//! Files that clients of SDS ask for, read and watched once for all streams together.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use osier_proto::types::tls::Secret;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::identity::files::Watcher;

/// What the files of one name hold; `None` while they never were of use.
type Content = Arc<ArcSwapOption<Secret>>;

/// Files by their names, as SDS has them.
#[derive(Debug)]
pub struct Files {
    named: Mutex<HashMap<Arc<str>, Content>>,
    /// Hears when a stream asks for other files than before.
    asked: Notify,
    changed: watch::Sender<()>,
}

impl Default for Files {
    fn default() -> Self {
        Self { named: Mutex::default(), asked: Notify::new(), changed: watch::Sender::new(()) }
    }
}

impl Files {
    /// Keeps what streams ask for as the files are. Runs for as long as the process.
    pub async fn keep(&self) -> Infallible {
        let mut watcher = Watcher::default();
        loop {
            let named = self.asked_for();
            let mut any = false;
            watcher.look(named.keys().cloned().collect(), |name, secret, _| {
                named[name].store(Some(Arc::new(secret)));
                any = true;
            });
            drop(named);
            if any {
                self.changed.send_replace(());
            }
            tokio::select! {
                () = self.asked.notified() => {}
                () = watcher.changed() => {}
            }
        }
    }

    /// What a stream asks for. Others are forgotten, with what they hold.
    fn asked_for(&self) -> HashMap<Arc<str>, Content> {
        let mut named = self.named.lock();
        named.retain(|_, content| Arc::strong_count(content) > 1);
        named.clone()
    }
}

/// The files that one stream asks for.
pub struct Asked {
    files: Arc<Files>,
    held: HashMap<Arc<str>, Content>,
    changed: watch::Receiver<()>,
}

impl Asked {
    /// None yet.
    pub fn new(files: Arc<Files>) -> Self {
        let changed = files.changed.subscribe();
        Self { files, held: HashMap::new(), changed }
    }

    /// Asks for these, and for no others any more. What is new is there after [`Asked::changed`], unless somebody asked for it already.
    pub fn only(&mut self, names: HashSet<Arc<str>>) {
        if names.len() == self.held.len() && names.iter().all(|name| self.held.contains_key(name)) {
            return;
        }
        let mut named = self.files.named.lock();
        let held = |name: Arc<str>| (name.clone(), named.entry(name).or_default().clone());
        self.held = names.into_iter().map(held).collect();
        drop(named);
        self.files.asked.notify_one();
    }

    /// What the files of a name hold, if they are asked for and of use.
    pub fn get(&self, name: &str) -> Option<Arc<Secret>> {
        self.held.get(name)?.load_full()
    }

    /// Completes when some files hold something else.
    pub async fn changed(&mut self) {
        if self.changed.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.held.is_empty() {
            self.held.clear();
            self.files.asked.notify_one();
        }
    }
}
