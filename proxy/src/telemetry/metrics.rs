//! Istio's standard metrics: counted per worker, merged when they are scraped.
//!
//! A request costs one look-up by the addresses of what it used anyway (peer, service, endpoint) in its worker's own table,
//! and a few additions; no label is read and nothing is shared between workers. The table's lock is taken by its worker, and
//! by the collector for the time of a copy.
//!
//! Bounds: at most [`MAX_LABEL_SETS`] label sets per worker. Peers describe themselves, so one that makes up names would
//! otherwise fill the memory; beyond the bound its requests count under an unknown peer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::labels::{Facts, LabelSet};
use super::record::{Flags, RequestRecord};
use crate::config::cluster::ServiceLabels;
use crate::config::listener::Direction;
use crate::http::peer_metadata::Peer;
use crate::identity::peer::Peer as Identity;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Label sets of one worker.
pub const MAX_LABEL_SETS: usize = 4096;

/// Remembered combinations of addresses; they are forgotten all at once.
const MAX_RECENT: usize = 4096;

/// Stands for a `grpc-status` that gRPC doesn't know; written as `-1`, as Envoy does.
pub const UNKNOWN_STATUS: u32 = u32::MAX;

/// Upper bounds of the histograms' buckets, in milliseconds or bytes.
pub const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// How a request ended, as far as labels say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// `request_protocol` is `grpc`.
    pub grpc: bool,
    /// `response_code`.
    pub code: u16,
    /// `grpc_response_status`.
    pub grpc_status: Option<u32>,
    /// `response_flags`.
    pub flags: Flags,
}

/// A histogram over [`BUCKETS`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// Observations per bucket, the last one above all bounds.
    pub counts: [u64; BUCKETS.len() + 1],
    /// Sum of all observations.
    pub sum: f64,
}

impl Histogram {
    fn observe(&mut self, value: f64) {
        self.counts[BUCKETS.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
    }

    fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.sum += other.sum;
    }
}

/// Requests with the same labels.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    /// How many.
    pub count: u64,
    /// Milliseconds.
    pub duration: Histogram,
    /// Bytes from the client, with the head.
    pub received: Histogram,
    /// Bytes to the client, with the head.
    pub sent: Histogram,
}

impl Requests {
    /// Adds what another worker counted.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.duration.add(&other.duration);
        self.received.add(&other.received);
        self.sent.add(&other.sent);
    }
}

/// Opaque connections with the same labels. Open connections hold it and count into it as bytes move.
#[derive(Debug, Default)]
pub struct Connections {
    /// Connections opened.
    pub opened: AtomicU64,
    /// Connections closed.
    pub closed: AtomicU64,
    /// Bytes from the client.
    pub received: AtomicU64,
    /// Bytes to the client.
    pub sent: AtomicU64,
}

impl Connections {
    /// Adds to one of the counts. Only the connection's own worker does so, hence no locked instruction.
    pub fn count(counter: &AtomicU64, by: u64) {
        counter.store(counter.load(Relaxed) + by, Relaxed);
    }
}

/// What one worker has counted.
#[derive(Debug)]
pub struct Shard {
    own: Arc<Peer>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    recent: Map<Addresses, (Held, usize)>,
    by_labels: Map<LabelSet, usize>,
    sets: Vec<Set>,
}

/// The facts by address. Two that are equal are the same objects, because [`Held`] keeps them alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Addresses {
    inbound: bool,
    peer: usize,
    service: usize,
    workload: usize,
    identity: usize,
    own_identity: usize,
    stand_in: usize,
}

/// Keeps the objects behind [`Addresses`] alive.
type Held = (
    Option<Arc<Peer>>,
    Option<Arc<ServiceLabels>>,
    Option<Arc<str>>,
    Option<Arc<Identity>>,
    Option<Arc<str>>,
);

/// Everything counted under one label set.
#[derive(Debug)]
struct Set {
    labels: LabelSet,
    requests: Vec<(Outcome, Requests)>,
    connections: Vec<(Flags, Arc<Connections>)>,
}

impl Facts<'_> {
    fn addresses(&self) -> Addresses {
        Addresses {
            inbound: self.inbound,
            peer: self.peer.map_or(0, |p| Arc::as_ptr(p).addr()),
            service: self.service.map_or(0, |s| Arc::as_ptr(s).addr()),
            workload: self.workload.map_or(0, |w| Arc::as_ptr(w).addr()),
            identity: self.identity.map_or(0, |i| Arc::as_ptr(i).addr()),
            own_identity: self.own_identity.map_or(0, |n| Arc::as_ptr(n).addr()),
            stand_in: self.stand_in.map_or(0, |s| s.as_ptr().addr()),
        }
    }

    fn held(&self) -> Held {
        (
            self.peer.cloned(),
            self.service.cloned(),
            self.workload.cloned(),
            self.identity.cloned(),
            self.own_identity.cloned(),
        )
    }
}

impl Shard {
    /// An empty shard of a proxy beside `own`.
    pub fn new(own: Arc<Peer>) -> Self {
        Self { own, table: Mutex::default() }
    }

    /// Counts a request that has ended.
    pub fn request(&self, direction: Direction, record: &RequestRecord<'_>) {
        let facts = Facts::of(direction, record);
        let outcome = Outcome {
            grpc: record.grpc,
            code: record.status,
            // A made-up status must not make a series of its own.
            grpc_status: record
                .grpc_status
                .filter(|_| record.grpc)
                .map(|s| if s <= 16 { s } else { UNKNOWN_STATUS }),
            flags: record.flags,
        };
        let mut table = self.table.lock();
        let requests = table.set(&self.own, &facts).requests(outcome);
        requests.count += 1;
        requests.duration.observe(milliseconds(record.complete.unwrap_or_default()));
        requests.received.observe((record.received + record.received_head) as f64);
        requests.sent.observe((record.sent + record.sent_head) as f64);
    }

    /// Where an opaque connection counts, under the flags that it has so far.
    pub fn connections(&self, direction: Direction, record: &RequestRecord<'_>) -> Arc<Connections> {
        let facts = Facts::of(direction, record);
        self.table.lock().set(&self.own, &facts).connections(record.flags)
    }

    /// Calls `visit` with everything counted so far.
    pub(super) fn visit(
        &self,
        mut requests: impl FnMut(&LabelSet, Outcome, &Requests),
        mut connections: impl FnMut(&LabelSet, Flags, &Connections),
    ) {
        for set in &self.table.lock().sets {
            set.requests.iter().for_each(|(outcome, counted)| requests(&set.labels, *outcome, counted));
            set.connections.iter().for_each(|(flags, counted)| connections(&set.labels, *flags, counted));
        }
    }

    /// Sets everything to zero.
    pub(super) fn reset(&self) {
        let mut table = self.table.lock();
        for Set { requests, connections, .. } in &mut table.sets {
            requests.clear();
            for counter in connections.iter().flat_map(|(_, c)| [&c.opened, &c.closed, &c.received, &c.sent])
            {
                counter.store(0, Relaxed);
            }
            connections.retain(|(_, held)| Arc::strong_count(held) > 1);
        }
        table.forget_empty_sets();
    }

    /// Forgets what `idle` says of. What counted on since the collector looked has another count, and stays.
    pub(super) fn evict(
        &self,
        mut idle_requests: impl FnMut(&LabelSet, Outcome, u64) -> bool,
        mut idle_connections: impl FnMut(&LabelSet, Flags) -> bool,
    ) {
        let mut table = self.table.lock();
        for Set { labels, requests, connections } in &mut table.sets {
            requests.retain(|(outcome, counted)| !idle_requests(labels, *outcome, counted.count));
            connections
                .retain(|(flags, held)| Arc::strong_count(held) > 1 || !idle_connections(labels, *flags));
        }
        table.forget_empty_sets();
    }
}

impl Table {
    fn set(&mut self, own: &Peer, facts: &Facts<'_>) -> &mut Set {
        let addresses = facts.addresses();
        let index = match self.recent.get(&addresses) {
            Some((_, index)) => *index,
            None => self.intern(own, facts, addresses),
        };
        &mut self.sets[index]
    }

    fn intern(&mut self, own: &Peer, facts: &Facts<'_>, addresses: Addresses) -> usize {
        let mut labels = facts.labels(own);
        if self.sets.len() >= MAX_LABEL_SETS && !self.by_labels.contains_key(&labels) {
            labels = Facts { peer: None, ..*facts }.labels(own);
        }
        let index = match self.by_labels.entry(labels) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(vacant) => {
                let labels = vacant.key().clone();
                self.sets.push(Set { labels, requests: Vec::new(), connections: Vec::new() });
                *vacant.insert(self.sets.len() - 1)
            }
        };
        if self.recent.len() >= MAX_RECENT {
            self.recent.clear();
        }
        self.recent.insert(addresses, (facts.held(), index));
        index
    }

    fn forget_empty_sets(&mut self) {
        let before = self.sets.len();
        self.sets.retain(|set| !set.requests.is_empty() || !set.connections.is_empty());
        if self.sets.len() < before {
            // Indices have moved.
            self.recent.clear();
            let sets = self.sets.iter().enumerate();
            self.by_labels = sets.map(|(index, set)| (set.labels.clone(), index)).collect();
        }
    }
}

impl Set {
    fn requests(&mut self, outcome: Outcome) -> &mut Requests {
        // Nearly always one or two entries: a walk beats a map.
        let known = self.requests.iter().position(|(other, _)| *other == outcome);
        let index = known.unwrap_or_else(|| {
            self.requests.push((outcome, Requests::default()));
            self.requests.len() - 1
        });
        &mut self.requests[index].1
    }

    fn connections(&mut self, flags: Flags) -> Arc<Connections> {
        if let Some((_, known)) = self.connections.iter().find(|(other, _)| *other == flags) {
            return known.clone();
        }
        let connections = Arc::<Connections>::default();
        self.connections.push((flags, connections.clone()));
        connections
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
