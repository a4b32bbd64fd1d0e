//! The proxy as an xDS client: subscriptions, warming, publication, and what is asked for on demand.
//!
//! [`start`] runs one task on the housekeeping runtime. It owns everything that the proxy was told (`state`), puts it in force in
//! order (`order`, `publish`), and speaks with the control plane (`watch`). The request path reads the snapshot, cluster handles
//! and [`on_demand`](crate::on_demand)'s tables, and never waits for this task except for a name that is asked for the first time.
//!
//! What is in force stays in force: a refused resource keeps its last good version, and a control plane that is away keeps all.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch as channel};

use crate::authz::counters::Counters;
use crate::bootstrap::Bootstrap;
use crate::compile::Rejected;
use crate::config::snapshot::{Clusters, SharedSnapshot};
use crate::config::tls::Secrets;
use crate::dns::Directory;
use crate::listener::accept::Acceptors;
use crate::upstream::dns::DnsResolver;

pub(crate) mod connect;
mod demand;
pub mod dump;
mod held;
mod name_table;
mod order;
mod prefetch;
mod publish;
mod state;
mod stats;
mod watch;

#[cfg(test)]
mod tests;

pub use dump::{DumpError, DumpQuery};
pub use stats::Stats;

use held::Kind;
use state::State;

/// What the xDS task works with.
#[derive(Debug)]
pub struct Options {
    /// Static resources, the node, and the server.
    pub bootstrap: Bootstrap,
    /// Handles of clusters.
    pub clusters: Arc<Clusters>,
    /// Handles of certificates and roots.
    pub secrets: Arc<Secrets>,
    /// Where denials are counted.
    pub counters: Arc<Counters>,
    /// Where listeners and routes are published.
    pub snapshot: SharedSnapshot,
    /// For STRICT_DNS clusters.
    pub resolver: Option<Arc<DnsResolver>>,
    /// How to subscribe.
    pub mode: Mode,
    /// What DNS answers from, where somebody asks it. It gets the names of the mesh.
    pub directory: Option<Arc<Directory>>,
    /// Where listeners get their sockets: one whose port cannot be had is refused. `None` opens none (tests).
    pub sockets: Option<Arc<Acceptors>>,
}

/// How to subscribe.
#[derive(Debug)]
pub enum Mode {
    /// As Envoy does: all listeners and clusters (`--config`).
    All,
    /// By name, at first use, where the control plane confirms it; as [`Mode::All`] otherwise (`sidecar`).
    OnDemand(Sidecar),
}

/// On-demand settings.
#[derive(Debug)]
pub struct Sidecar {
    /// Listeners that are sockets of their own, asked for at start: `virtualInbound`, `virtualOutbound`. `*` asks for all of
    /// them, where only the control plane knows their names (interception mode NONE).
    pub listeners: Vec<String>,
    /// Bounds and time-outs.
    pub limits: crate::on_demand::Limits,
    /// Where the names that were used are kept for the next start.
    pub state_file: Option<PathBuf>,
}

/// How far the first configuration has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Nothing has come.
    Waiting,
    /// Something has come, and not all of it is in force.
    Warming,
    /// The first configuration is in force. It stays so.
    Ready,
}

/// The way to the xDS task; it ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub struct Xds {
    commands: mpsc::Sender<Command>,
    progress: channel::Receiver<Progress>,
    stats: Arc<Stats>,
}

/// What others ask of the task.
#[derive(Debug)]
enum Command {
    Dump(DumpQuery, oneshot::Sender<Result<serde_json::Value, DumpError>>),
    Save(oneshot::Sender<()>),
    Leave(oneshot::Sender<bool>),
}

/// Puts the bootstrap's resources in force and starts the task on the current runtime.
pub fn start(options: Options) -> Result<Xds, Rejected> {
    let Options { bootstrap, clusters, secrets, counters, snapshot, resolver, mode, directory, sockets } =
        options;
    let mut state = State::new(clusters, secrets, counters, snapshot, resolver, sockets);
    if bootstrap.dynamic.as_ref().is_some_and(|dynamic| dynamic.server.tls.is_some()) {
        state.identify();
    }
    let now = tokio::time::Instant::now();
    for cluster in &bootstrap.clusters {
        state.fix(Kind::Cluster, &cluster.name, &cluster.body, now)?;
    }
    for listener in &bootstrap.listeners {
        state.fix(Kind::Listener, &listener.name, &listener.body, now)?;
    }
    // What needs nobody is in force before this returns.
    state.settle(now);
    let (commands, inbox) = mpsc::channel(16);
    let (progress_sender, progress) = channel::channel(Progress::Waiting);
    let stats = Arc::new(Stats::default());
    let watch = watch::Watch::new(bootstrap, state, mode, directory, inbox, progress_sender, stats.clone());
    tokio::spawn(watch.run());
    Ok(Xds { commands, progress, stats })
}

impl Xds {
    /// How far the first configuration has come.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Waits until the first configuration is in force.
    pub async fn ready(&self) {
        // The task ends only with the process.
        let _ = self.progress.clone().wait_for(|progress| *progress == Progress::Ready).await;
    }

    /// What `/config_dump` shows.
    pub async fn config_dump(&self, query: DumpQuery) -> Result<serde_json::Value, DumpError> {
        let (reply, answer) = oneshot::channel();
        let _ = self.commands.send(Command::Dump(query, reply)).await;
        answer.await.unwrap_or(Err(DumpError::Ended))
    }

    /// Writes down which names were used, for the next start. Call it when the process ends.
    pub async fn save(&self) {
        let (reply, done) = oneshot::channel();
        let _ = self.commands.send(Command::Save(reply)).await;
        let _ = done.await;
    }

    /// Tells the control plane that this workload leaves, by ending the stream; no other one is opened. What is in force stays.
    /// False where the control plane was away and may not have heard.
    pub async fn leave(&self) -> bool {
        let (reply, told) = oneshot::channel();
        let _ = self.commands.send(Command::Leave(reply)).await;
        told.await.unwrap_or(false)
    }

    /// Figures of the conversation with the control plane.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
}
