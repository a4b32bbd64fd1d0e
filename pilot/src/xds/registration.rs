//! Workloads that are part of the mesh for as long as their stream lives (`osier run`).
//!
//! A stream that its client ends takes the workload out at once: that is how a sidecar leaves politely. A stream that breaks
//! leaves it there for [`GRACE`], in which the proxy comes back (from a lost connection, or to a restarted pilot) and announces
//! it again. Several streams of one workload are counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use osier_core::registration::Registration;
use parking_lot::Mutex;

use crate::metrics::Metrics;
use crate::model::ResourceKey;
use crate::store::writer::Registrations;

/// How long a workload outlives a stream that broke.
pub const GRACE: Duration = Duration::from_secs(10);

/// All workloads that registered.
#[derive(Debug)]
pub struct Leases {
    registrations: Registrations,
    live: Mutex<HashMap<ResourceKey, State>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    streams: usize,
    /// Grows with every new stream, so that a grace period that ends knows whether somebody came back in it.
    arrivals: u64,
}

/// One stream's share in its workload's registration. Dropping it is leaving without a word.
#[derive(Debug)]
pub struct Lease {
    leases: Arc<Leases>,
    key: Option<ResourceKey>,
}

impl Leases {
    /// Nobody registered.
    pub fn new(registrations: Registrations, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { registrations, live: Mutex::default(), metrics })
    }

    /// Registers a workload, or says something new of it.
    pub fn hold(self: &Arc<Self>, registration: &Registration) -> Lease {
        let key = Registrations::key(registration);
        {
            let mut live = self.live.lock();
            let state = live.entry(key.clone()).or_default();
            state.streams += 1;
            state.arrivals += 1;
        }
        tracing::info!(workload = %key, address = %registration.address, "workload registered");
        self.metrics.registered.inc();
        self.registrations.upsert(registration.clone());
        Lease { leases: self.clone(), key: Some(key) }
    }

    /// One stream less. Returns the arrivals so far if it was the last one.
    fn leave(&self, key: &ResourceKey) -> Option<u64> {
        let mut live = self.live.lock();
        let state = live.get_mut(key)?;
        state.streams = state.streams.saturating_sub(1);
        (state.streams == 0).then_some(state.arrivals)
    }

    /// Forgets a workload unless somebody arrived since.
    fn forget(&self, key: ResourceKey, arrivals: u64) {
        {
            let mut live = self.live.lock();
            if !live.get(&key).is_some_and(|s| s.streams == 0 && s.arrivals == arrivals) {
                return;
            }
            live.remove(&key);
        }
        tracing::info!(workload = %key, "workload left");
        self.metrics.unregistered.inc();
        self.registrations.remove(key);
    }
}

impl Lease {
    /// The client ended its stream: the workload leaves at once.
    pub fn end(mut self) {
        if let Some(key) = self.key.take()
            && let Some(arrivals) = self.leases.leave(&key)
        {
            self.leases.forget(key, arrivals);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let Some(arrivals) = self.leases.leave(&key) else { return };
        let leases = self.leases.clone();
        // Outside of a runtime the process is going down, and the registration with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(GRACE).await;
                leases.forget(key, arrivals);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::snapshot::MeshSnapshot;
    use crate::store::writer::{Outputs, Writer};

    fn registration() -> Registration {
        Registration {
            name: "web-1".into(),
            namespace: "default".into(),
            service: "web".into(),
            version: None,
            labels: BTreeMap::new(),
            address: [127, 64, 0, 1].into(),
            app_port: Some(8080),
        }
    }

    fn start() -> (Arc<Leases>, Outputs) {
        let parts = Writer::new("cluster.local".into());
        tokio::spawn(parts.writer.run());
        (Leases::new(parts.registrations, Arc::default()), parts.outputs)
    }

    fn workloads(snapshot: &MeshSnapshot) -> usize {
        snapshot.workloads.len()
    }

    /// Lets the writer take what it was given.
    async fn settled(outputs: &Outputs) -> usize {
        tokio::time::sleep(Duration::from_millis(1)).await;
        workloads(&outputs.snapshot.borrow())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ends_takes_its_workload_out_at_once() {
        let (leases, outputs) = start();
        let lease = leases.hold(&registration());
        assert_eq!(settled(&outputs).await, 1);
        lease.end();
        assert_eq!(settled(&outputs).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_breaks_leaves_ten_seconds_of_grace() {
        let (leases, outputs) = start();
        drop(leases.hold(&registration()));
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(settled(&outputs).await, 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(settled(&outputs).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_in_time_stays() {
        let (leases, outputs) = start();
        drop(leases.hold(&registration()));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let again = leases.hold(&registration());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(settled(&outputs).await, 1);
        // A second break starts a grace period of its own.
        drop(again);
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(settled(&outputs).await, 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(settled(&outputs).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_of_several_streams_counts() {
        let (leases, outputs) = start();
        let (one, two) = (leases.hold(&registration()), leases.hold(&registration()));
        one.end();
        assert_eq!(settled(&outputs).await, 1);
        two.end();
        assert_eq!(settled(&outputs).await, 0);
    }
}
