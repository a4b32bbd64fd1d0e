//! The API server as a source: what is watched becomes the same updates that files become.
//!
//! `kind` says what is watched, `watch` follows one kind and never gives up, `collect` turns everything that came into one batch
//! for the store; `selection` (beside this folder) says which namespaces count.
//!
//! Invariants: nothing is handed over before every kind was listed once; an API server that goes away takes nothing back; a kind
//! that the API server doesn't have is an empty list until it has it; an object that can't be read is a report, and no reason to stop.

mod collect;
mod kind;
mod watch;

use std::sync::Arc;

use kube::Client;
use kube::runtime::watcher;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::store::writer::Feed;

use collect::Collector;
use kind::Watched;
use watch::Restart;

pub use kind::{istio_kind, istio_kinds};
pub use watch::{chain, said};

/// What of an API server is read, and as whom.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Namespace of the control plane: where its mesh configuration is.
    pub namespace: String,
    /// Configuration with a label `istio.io/rev` of another revision is left alone.
    pub revision: String,
    /// Domain of Kubernetes Services.
    pub cluster_domain: Arc<str>,
}

/// Name of an object of this revision; the default revision's have no suffix.
pub fn named(name: &str, revision: &str) -> String {
    if revision == "default" { name.to_owned() } else { format!("{name}-{revision}") }
}

/// Follows an API server until it is dropped.
#[derive(Debug)]
pub struct Follower {
    _tasks: JoinSet<()>,
}

/// Starts to follow; returns when everything was listed once and is in force. Waits for as long as the API server needs.
pub async fn follow(client: Client, scope: Scope, feed: Feed) -> Follower {
    let mut tasks = JoinSet::new();
    let (news, arriving) = mpsc::channel(1024);
    let restart = Restart::default();
    let watched = Watched::all(&scope);
    for (index, kind) in watched.iter().enumerate() {
        let task = watch::Watch {
            client: client.clone(),
            kind: kind.clone(),
            index,
            news: news.clone(),
            restart: restart.clone(),
        };
        tasks.spawn(task.run());
    }
    tasks.spawn(watch::follow_definitions(client, restart.clone()));
    let (done, synced) = oneshot::channel();
    let collector = Collector::new(watched, scope, feed, restart);
    tasks.spawn(collector.run(arriving, done));
    // Only a collector that ended without a word leaves this early; then nothing is served anyway.
    let _ = synced.await;
    Follower { _tasks: tasks }
}

/// How every watch is made: pages that stay small, and a server that hangs is noticed.
fn config() -> watcher::Config {
    watcher::Config::default().page_size(250)
}

#[cfg(test)]
mod tests;
