//! The outermost swap point: everything that listeners and routes decide, published as one value.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use tokio::sync::watch;

use super::cluster::ClusterHandle;
use super::listener::Listener;
use crate::on_demand::ListenerTable;

/// All listeners, each with its filter chains and their route tables already linked.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each publication; a worker or connection compares it to know that something changed.
    pub generation: u64,
    /// By listener name, as `/listeners` and `/config_dump` show them.
    pub listeners: HashMap<Arc<str>, Arc<Listener>>,
    /// Listeners by address, for the hand-over from a listener with `use_original_dst`:
    /// the exact `ip:port` first, then the wildcard address with the port.
    pub by_address: HashMap<SocketAddr, Arc<Listener>>,
    /// Listeners that are asked for by original destination at first use, where the control plane agreed to that.
    pub on_demand: Option<Arc<ListenerTable>>,
}

impl Snapshot {
    /// A snapshot of `listeners`, with the index by address. It gets its generation when it is published.
    pub fn new(listeners: impl IntoIterator<Item = Arc<Listener>>) -> Self {
        let listeners: HashMap<_, _> = listeners.into_iter().map(|l| (l.name.clone(), l)).collect();
        let by_address = listeners.values().flat_map(|l| l.addresses().map(|a| (a, l.clone()))).collect();
        Self { generation: 0, listeners, by_address, on_demand: None }
    }

    /// The listener that takes a connection whose original destination is `dst`: exact address, then wildcard.
    pub fn for_original_destination(&self, dst: SocketAddr) -> Option<&Arc<Listener>> {
        let wildcard: std::net::IpAddr = match dst {
            SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        self.by_address.get(&dst).or_else(|| self.by_address.get(&SocketAddr::new(wildcard, dst.port())))
    }
}

/// Where the current snapshot is published; readers load it without a lock.
pub type SharedSnapshot = Arc<Published>;

/// The snapshot in force, its generation beside it (so that a look costs one load), and a signal for those who wait.
#[derive(Debug)]
pub struct Published {
    current: ArcSwap<Snapshot>,
    generation: AtomicU64,
    changed: watch::Sender<u64>,
    /// Counts whatever moves under connections: snapshots, and certificates and roots beside them.
    moves: watch::Sender<u64>,
}

impl Default for Published {
    fn default() -> Self {
        Self {
            current: ArcSwap::default(),
            generation: AtomicU64::new(0),
            changed: watch::Sender::new(0),
            moves: watch::Sender::new(0),
        }
    }
}

impl Published {
    /// Puts `snapshot` in force and returns the generation that it got. Call it from one task only.
    pub fn publish(&self, mut snapshot: Snapshot) -> u64 {
        let generation = self.generation() + 1;
        snapshot.generation = generation;
        self.current.store(Arc::new(snapshot));
        self.generation.store(generation, Ordering::Release);
        self.changed.send_replace(generation);
        self.nudge();
        generation
    }

    /// Something that connections stand on has changed: a snapshot, a certificate, roots.
    pub fn nudge(&self) {
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// Follows whatever connections stand on.
    pub fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// The snapshot in force.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Generation of the snapshot in force; 0 before the first publication.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Waits for a generation after `seen` and returns its snapshot.
    pub async fn changed_since(&self, seen: u64) -> Arc<Snapshot> {
        // The sender lives in `self`, so the channel cannot close while we wait.
        let _ = self.changed.subscribe().wait_for(|now| *now > seen).await;
        self.load()
    }
}

/// Every cluster that anything names, by name: for look-ups that only a connection or request can make (the cluster
/// that an SNI or a header names), and for `/clusters`. Routes hold handles and never look here.
#[derive(Debug, Default)]
pub struct Clusters {
    by_name: RwLock<HashMap<Arc<str>, Arc<ClusterHandle>>>,
}

impl Clusters {
    /// The handle for `name`, if something made one.
    pub fn get(&self, name: &str) -> Option<Arc<ClusterHandle>> {
        self.by_name.read().get(name).cloned()
    }

    /// The handle for `name`, made empty where it is missing.
    pub fn handle(&self, name: &str) -> Arc<ClusterHandle> {
        if let Some(found) = self.get(name) {
            return found;
        }
        let mut clusters = self.by_name.write();
        if let Some(found) = clusters.get(name) {
            return found.clone();
        }
        let handle = ClusterHandle::empty(name);
        clusters.insert(handle.name.clone(), handle.clone());
        handle
    }

    /// Names of handles that something else holds: a route in force, or a request that runs on an old one.
    pub fn in_use(&self) -> Vec<Arc<str>> {
        let clusters = self.by_name.read();
        clusters.values().filter(|h| Arc::strong_count(h) > 1).map(|h| h.name.clone()).collect()
    }

    /// Forgets empty handles that nobody else holds.
    pub fn sweep(&self) {
        self.by_name.write().retain(|_, h| Arc::strong_count(h) > 1 || h.current.load().is_some());
    }

    /// All handles, sorted by name.
    pub fn all(&self) -> Vec<Arc<ClusterHandle>> {
        let mut all: Vec<_> = self.by_name.read().values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn publication_moves_the_generation_and_wakes_waiters() {
        let published = SharedSnapshot::default();
        assert_eq!(published.generation(), 0);
        let waiter = tokio::spawn({
            let published = published.clone();
            async move { published.changed_since(1).await.generation }
        });
        assert_eq!(published.publish(Snapshot::default()), 1);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        assert_eq!(published.publish(Snapshot::default()), 2);
        assert_eq!(waiter.await.expect("waiter"), 2);
        assert_eq!(published.load().generation, 2);
    }

    #[test]
    fn a_listener_of_both_families_is_found_by_either() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let both = Listener { ipv4_compat: true, ..Listener::plain("both", at("[::]:80")) };
        let exact = Listener::plain("exact", at("10.0.0.1:80"));
        let ipv6 = Listener::plain("ipv6", at("[::]:81"));
        let snapshot = Snapshot::new([both, exact, ipv6].map(Arc::new));
        let found = |text: &str| snapshot.for_original_destination(at(text)).map(|l| l.name.to_string());
        for (destination, name) in [
            ("10.0.0.1:80", Some("exact")),
            ("10.0.0.2:80", Some("both")),
            ("[fd00::1]:80", Some("both")),
            ("[fd00::1]:81", Some("ipv6")),
            ("10.0.0.1:81", None),
        ] {
            assert_eq!(found(destination).as_deref(), name, "{destination}");
        }
    }

    #[test]
    fn cluster_handles_are_one_per_name() {
        let clusters = Clusters::default();
        assert!(clusters.get("a").is_none());
        let first = clusters.handle("a");
        assert!(Arc::ptr_eq(&first, &clusters.handle("a")));
        clusters.handle("b");
        clusters.sweep();
        let names: Vec<_> = clusters.all().iter().map(|h| h.name.to_string()).collect();
        assert_eq!(names, ["a"], "b is empty and nobody holds it");
    }
}
