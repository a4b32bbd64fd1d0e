//! The one task that changes the store, and the handles through which others feed and follow it.
//!
//! Everything that waits is taken in one go, so that a burst makes one snapshot. The task ends when every feeding handle is gone.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use osier_core::registration::Registration;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::check::Resource;
use super::{Outcome, Place, ResourceStatus, Store, Update, registration};
use crate::model::{Credential, FetchedKeys, KeyLocation, Report, ResourceKey, Severity};
use crate::snapshot::{Change, MeshSnapshot};

/// A snapshot and what moved since the one published before.
#[derive(Debug, Clone)]
pub struct Published {
    /// The whole mesh.
    pub snapshot: Arc<MeshSnapshot>,
    /// What moved.
    pub change: Change,
}

/// How every resource fares, and everything that there is to say about them.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// By key.
    pub resources: Vec<ResourceStatus>,
    /// Worst first, then by file and line.
    pub reports: Vec<Report>,
}

/// What the task is fed with.
#[derive(Debug)]
enum Input {
    /// A source has read its resources; the reports replace its former ones.
    Batch {
        updates: Vec<Update>,
        reports: Vec<Report>,
        done: Option<oneshot::Sender<()>>,
    },
    Register(Box<Registration>, i64),
    Deregister(ResourceKey),
    Secret(ResourceKey, Option<Arc<Credential>>),
    Roots(Arc<str>),
    Keys(KeyLocation, Option<FetchedKeys>),
}

/// Feeds the writer from a source.
#[derive(Debug, Clone)]
pub struct Feed(mpsc::UnboundedSender<Input>);

impl Feed {
    /// Hands over what changed, with all reports that the source has now. False if the writer is gone.
    pub fn send(&self, updates: Vec<Update>, reports: Vec<Report>) -> bool {
        self.0.send(Input::Batch { updates, reports, done: None }).is_ok()
    }

    /// The same, and waits until it is in force.
    pub async fn send_and_wait(&self, updates: Vec<Update>, reports: Vec<Report>) {
        let (done, taken) = oneshot::channel();
        if self.0.send(Input::Batch { updates, reports, done: Some(done) }).is_ok() {
            let _ = taken.await;
        }
    }
}

/// Workloads that come and go with their xDS streams.
#[derive(Debug, Clone)]
pub struct Registrations(mpsc::UnboundedSender<Input>);

impl Registrations {
    /// A workload is there, or says something new of itself.
    pub fn upsert(&self, registration: Registration) {
        let _ = self.0.send(Input::Register(Box::new(registration), now()));
    }

    /// A workload is gone. Its key is that of [`Registrations::key`].
    pub fn remove(&self, key: ResourceKey) {
        let _ = self.0.send(Input::Deregister(key));
    }

    /// Key of the WorkloadEntry that a registration makes.
    pub fn key(registration: &Registration) -> ResourceKey {
        registration::key(registration)
    }
}

/// Certificates of gateways, which come on their own.
#[derive(Debug, Clone)]
pub struct Secrets(mpsc::UnboundedSender<Input>);

impl Secrets {
    /// A certificate is there, or is another one.
    pub fn put(&self, key: ResourceKey, secret: Credential) {
        let _ = self.0.send(Input::Secret(key, Some(Arc::new(secret))));
    }

    /// The roots of the mesh, as PEM, are others.
    pub fn set_roots(&self, roots: &str) {
        let _ = self.0.send(Input::Roots(roots.into()));
    }

    /// A certificate is gone, or nobody needs it any more.
    pub fn remove(&self, key: ResourceKey) {
        let _ = self.0.send(Input::Secret(key, None));
    }
}

/// Key sets of the issuers of tokens, which come on their own.
#[derive(Debug, Clone)]
pub struct Keys(mpsc::UnboundedSender<Input>);

impl Keys {
    /// A fetch has ended.
    pub fn put(&self, location: KeyLocation, fetched: FetchedKeys) {
        let _ = self.0.send(Input::Keys(location, Some(fetched)));
    }

    /// Nobody wants a key set any more.
    pub fn remove(&self, location: KeyLocation) {
        let _ = self.0.send(Input::Keys(location, None));
    }
}

/// Follows what the writer publishes.
#[derive(Debug)]
pub struct Outputs {
    /// The latest snapshot. Starts with an empty one of version 0.
    pub snapshot: watch::Receiver<Arc<MeshSnapshot>>,
    /// Every change with its snapshot, in order, for debouncing.
    pub changes: mpsc::UnboundedReceiver<Published>,
    /// How resources fare.
    pub status: watch::Receiver<Arc<Status>>,
}

/// Owns the store.
#[derive(Debug)]
pub struct Writer {
    store: Store,
    inputs: mpsc::UnboundedReceiver<Input>,
    source_reports: Vec<Report>,
    snapshot: watch::Sender<Arc<MeshSnapshot>>,
    changes: mpsc::UnboundedSender<Published>,
    status: watch::Sender<Arc<Status>>,
}

/// A writer with its handles.
#[derive(Debug)]
pub struct Parts {
    /// To be run.
    pub writer: Writer,
    /// For the source.
    pub feed: Feed,
    /// For xDS streams.
    pub registrations: Registrations,
    /// For certificates.
    pub secrets: Secrets,
    /// For key sets.
    pub keys: Keys,
    /// For push and debug.
    pub outputs: Outputs,
}

impl Writer {
    /// A writer with its handles, over an empty store.
    #[allow(clippy::new_ret_no_self, reason = "a writer is of no use without its handles")]
    pub fn new(cluster_domain: Arc<str>) -> Parts {
        let store = Store::new(cluster_domain);
        let (input, inputs) = mpsc::unbounded_channel();
        let (snapshot, snapshot_out) = watch::channel(store.snapshot().clone());
        let (changes, changes_out) = mpsc::unbounded_channel();
        let (status, status_out) = watch::channel(Arc::default());
        Parts {
            writer: Self { store, inputs, source_reports: Vec::new(), snapshot, changes, status },
            feed: Feed(input.clone()),
            secrets: Secrets(input.clone()),
            keys: Keys(input.clone()),
            registrations: Registrations(input),
            outputs: Outputs { snapshot: snapshot_out, changes: changes_out, status: status_out },
        }
    }

    /// See [`crate::registry::Registry::wait_for_pods`].
    pub fn wait_for_pods(mut self) -> Self {
        self.store.wait_for_pods();
        self
    }

    /// Runs until every feeding handle is gone.
    pub async fn run(mut self) {
        let mut waiting = Vec::new();
        while self.inputs.recv_many(&mut waiting, 1024).await > 0 {
            let (mut updates, mut keys, mut dones) = (Vec::new(), Vec::new(), Vec::new());
            for input in waiting.drain(..) {
                match input {
                    Input::Batch { updates: more, reports, done } => {
                        updates.extend(more);
                        self.source_reports = reports;
                        dones.extend(done);
                    }
                    Input::Register(registration, created) => {
                        updates.push(registration::update(&registration, created));
                    }
                    Input::Secret(key, secret) => {
                        let applied = |secret| Outcome::Applied(Resource::Secret(secret));
                        let outcome = secret.map_or(Outcome::Deleted, applied);
                        updates.push(Update { key, outcome, place: Place::default() });
                    }
                    Input::Roots(roots) => self.store.set_roots(roots),
                    Input::Keys(location, fetched) => keys.push((location, fetched)),
                    Input::Deregister(key) => {
                        updates.push(Update { key, outcome: Outcome::Deleted, place: Place::default() });
                    }
                }
            }
            self.step(updates, keys);
            for done in dones {
                let _ = done.send(());
            }
        }
    }

    fn step(&mut self, updates: Vec<Update>, keys: Vec<(KeyLocation, Option<FetchedKeys>)>) {
        let change = self.store.apply_with_keys(updates, keys);
        let snapshot = self.store.snapshot().clone();
        self.snapshot.send_replace(snapshot.clone());
        self.publish_status();
        if let Some(change) = change {
            info!(version = snapshot.version, moved = ?change.counts(), "the mesh changed");
            // whoever follows may have ended already
            let _ = self.changes.send(Published { snapshot, change });
        }
    }

    fn publish_status(&mut self) {
        let mut reports = self.source_reports.clone();
        reports.extend(self.store.reports());
        reports.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.cmp(b)));
        reports.dedup();
        let old = self.status.borrow().clone();
        for gone in old.reports.iter().filter(|r| r.severity == Severity::Error && !reports.contains(r)) {
            info!("resolved: {gone}");
        }
        for report in reports.iter().filter(|r| !old.reports.contains(r)) {
            match report.severity {
                Severity::Error => error!("{report}"),
                Severity::Warning => warn!("{report}"),
                Severity::Notice => info!("{report}"),
            }
        }
        self.status.send_replace(Arc::new(Status { resources: self.store.statuses(), reports }));
    }
}

/// Milliseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
