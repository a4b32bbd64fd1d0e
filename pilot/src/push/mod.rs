//! From "something changed" to "this stream has something to send".
//!
//! [`debounce`] waits for quiet and merges; [`fanout`] puts one merged request into the mailbox of every connection that
//! the change can concern. A mailbox holds zero or one request, so a slow client costs one pending push however much changes.

pub mod debounce;
pub mod fanout;

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use crate::metrics::Reason;
use crate::snapshot::{Change, MeshSnapshot};
use debounce::Merge;

/// A snapshot, and what moved since the one before.
#[derive(Debug, Clone)]
pub struct PushRequest {
    /// What is to be in force.
    pub snapshot: Arc<MeshSnapshot>,
    /// What moved.
    pub change: Change,
    /// Why.
    pub reasons: BTreeSet<Reason>,
    /// When the first of the merged changes came.
    pub since: Instant,
}

impl PushRequest {
    /// A request for one change; the reasons follow from it.
    pub fn new(snapshot: Arc<MeshSnapshot>, change: Change) -> Self {
        let mut reasons = BTreeSet::new();
        if change.mesh
            || !change.rules.is_empty()
            || !change.ingresses.is_empty()
            || !change.secrets.is_empty()
            || change.roots
        {
            reasons.insert(Reason::Config);
        }
        if !change.services.is_empty() {
            reasons.insert(Reason::Service);
        }
        if !change.endpoints.is_empty() || !change.addresses.is_empty() {
            reasons.insert(Reason::Endpoint);
        }
        Self { snapshot, change, reasons, since: Instant::now() }
    }
}

impl Merge for PushRequest {
    fn merge(&mut self, later: Self) {
        self.snapshot = later.snapshot;
        self.change.merge(later.change);
        self.reasons.extend(later.reasons);
        self.since = self.since.min(later.since);
    }

    fn endpoints_only(&self) -> bool {
        self.change.endpoints_only()
    }
}
