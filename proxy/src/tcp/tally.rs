//! Counts one opaque connection into the metrics while it runs, so that a long-lived one shows up before its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::copy::Count;
use crate::config::listener::Direction;
use crate::telemetry::metrics::Connections;
use crate::telemetry::record::RequestRecord;
use crate::worker::Worker;

/// The counts of one connection.
pub struct Tally<'a> {
    worker: &'a Worker,
    direction: Direction,
    opened: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

/// Counts bytes under the labels that the connection was opened with.
pub struct Counting<'a> {
    tally: &'a Tally<'a>,
    labels: Arc<Connections>,
}

impl<'a> Tally<'a> {
    /// A connection that has just come.
    pub fn new(worker: &'a Worker, direction: Direction) -> Self {
        let zero = AtomicU64::default;
        Self { worker, direction, opened: zero(), received: zero(), sent: zero() }
    }

    /// The endpoint is known and connected.
    pub fn open(&'a self, record: &RequestRecord<'_>) -> Counting<'a> {
        let labels = self.worker.metrics.connections(self.direction, record);
        Connections::count(&labels.opened, 1);
        self.opened.store(1, Relaxed);
        Counting { tally: self, labels }
    }

    /// The connection has ended, under the flags that it has now. Returns the bytes received and sent.
    pub fn close(&self, record: &RequestRecord<'_>) -> (u64, u64) {
        let labels = self.worker.metrics.connections(self.direction, record);
        if self.opened.load(Relaxed) == 0 {
            Connections::count(&labels.opened, 1);
        }
        Connections::count(&labels.closed, 1);
        (self.received.load(Relaxed), self.sent.load(Relaxed))
    }
}

impl Count for Counting<'_> {
    fn received(&self, bytes: u64) {
        Connections::count(&self.labels.received, bytes);
        Connections::count(&self.tally.received, bytes);
    }

    fn sent(&self, bytes: u64) {
        Connections::count(&self.labels.sent, bytes);
        Connections::count(&self.tally.sent, bytes);
    }
}
