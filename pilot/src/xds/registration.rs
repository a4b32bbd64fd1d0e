//! Workloads that are part of the mesh for as long as their stream lives (`osier run`).
//!
//! A stream that its client ends takes the workload out at once: that is how a sidecar leaves politely. A stream that breaks
//! leaves it there for [`GRACE`], in which the proxy comes back (from a lost connection, or to a restarted pilot) and announces
//! it again. Several streams of one workload are counted.
//!
//! Where there is a state file, who is registered is kept in it, so that a restarted pilot starts with the same mesh: without it,
//! the proxies that come back first would be told that everyone else is gone.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
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
    state_file: Option<PathBuf>,
}

#[derive(Debug)]
struct State {
    registration: Registration,
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

/// A workload that is connected has the same name, or the same address.
#[derive(Debug, thiserror::Error)]
#[error("{by} is connected, and registered at {address}: a name has one address, and an address one name")]
pub struct Taken {
    by: ResourceKey,
    address: IpAddr,
}

impl Leases {
    /// Nobody registered, but for those in the state file: they have the grace of a broken stream to come back.
    /// A state file that cannot be read is reported and starts empty.
    pub fn new(
        registrations: Registrations,
        metrics: Arc<Metrics>,
        state_file: Option<PathBuf>,
    ) -> Arc<Self> {
        let leases = Arc::new(Self { registrations, live: Mutex::default(), metrics, state_file });
        for registration in leases.kept() {
            // Nobody is connected yet whom it could contradict.
            drop(leases.admit(&registration));
        }
        leases
    }

    /// Who was registered when the state file was written.
    fn kept(&self) -> Vec<Registration> {
        let Some(path) = &self.state_file else { return Vec::new() };
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the state file cannot be read; workloads have to register again");
                return Vec::new();
            }
        };
        serde_json::from_slice(&text).unwrap_or_else(|error| {
            tracing::warn!(file = %path.display(), %error, "the state file is not understood; workloads have to register again");
            Vec::new()
        })
    }

    /// Keeps who is registered. Called with `live` locked, so that an older list never replaces a newer one.
    fn keep(&self, live: &HashMap<ResourceKey, State>) {
        let Some(path) = &self.state_file else { return };
        let mut all: Vec<&Registration> = live.values().map(|state| &state.registration).collect();
        all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let draft = path.with_extension("draft");
        let written = serde_json::to_vec(&all)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&draft, text))
            .and_then(|()| std::fs::rename(&draft, path));
        if let Err(error) = written {
            tracing::warn!(file = %path.display(), %error, "the state file cannot be written; a restart would forget workloads");
        }
    }

    /// Registers a workload, or says something new of it.
    pub fn hold(self: &Arc<Self>, registration: &Registration) -> Result<Lease, Taken> {
        let (lease, news) = self.admit(registration)?;
        if news {
            self.keep(&self.live.lock());
        }
        Ok(lease)
    }

    /// Registers a workload without keeping it; true where the state file does not say so already.
    fn admit(self: &Arc<Self>, registration: &Registration) -> Result<(Lease, bool), Taken> {
        let key = Registrations::key(registration);
        let news = {
            let mut live = self.live.lock();
            let mut connected = live.iter().filter(|(_, state)| state.streams > 0);
            let other = connected.find(|(other, state)| {
                (**other == key) != (state.registration.address == registration.address)
            });
            if let Some((other, state)) = other {
                return Err(Taken { by: other.clone(), address: state.registration.address });
            }
            let known = live.get(&key).is_some_and(|state| state.registration == *registration);
            let state = live.entry(key.clone()).or_insert_with(|| State {
                registration: registration.clone(),
                streams: 0,
                arrivals: 0,
            });
            state.streams += 1;
            state.arrivals += 1;
            state.registration = registration.clone();
            !known
        };
        tracing::info!(workload = %key, address = %registration.address, "workload registered");
        self.metrics.registered.inc();
        self.registrations.upsert(registration.clone());
        Ok((Lease { leases: self.clone(), key: Some(key) }, news))
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
            self.keep(&live);
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
            service_account: None,
            app_port: Some(8080),
        }
    }

    fn start() -> (Arc<Leases>, Outputs) {
        let parts = Writer::new("cluster.local".into());
        tokio::spawn(parts.writer.run());
        (Leases::new(parts.registrations, Arc::default(), None), parts.outputs)
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
        let lease = leases.hold(&registration()).unwrap();
        assert_eq!(settled(&outputs).await, 1);
        lease.end();
        assert_eq!(settled(&outputs).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_breaks_leaves_ten_seconds_of_grace() {
        let (leases, outputs) = start();
        drop(leases.hold(&registration()).unwrap());
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(settled(&outputs).await, 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(settled(&outputs).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_in_time_stays() {
        let (leases, outputs) = start();
        drop(leases.hold(&registration()).unwrap());
        tokio::time::sleep(Duration::from_secs(5)).await;
        let again = leases.hold(&registration()).unwrap();
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
        let (one, two) = (leases.hold(&registration()).unwrap(), leases.hold(&registration()).unwrap());
        one.end();
        assert_eq!(settled(&outputs).await, 1);
        two.end();
        assert_eq!(settled(&outputs).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_knows_who_was_there_and_forgets_who_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        let start = || {
            let parts = Writer::new("cluster.local".into());
            tokio::spawn(parts.writer.run());
            (Leases::new(parts.registrations, Arc::default(), Some(file.clone())), parts.outputs)
        };
        let (first, _outputs) = start();
        let lease = first.hold(&registration()).unwrap();
        std::mem::forget(lease); // A killed pilot runs no destructor.
        let (second, _outputs) = start();
        assert_eq!(second.live.lock().len(), 1);
        tokio::time::sleep(GRACE + Duration::from_secs(1)).await;
        assert_eq!(second.live.lock().len(), 0);
        let (third, _outputs) = start();
        assert_eq!(third.live.lock().len(), 0, "the file follows");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_has_one_address_and_an_address_one_name() {
        let (leases, _outputs) = start();
        let held = leases.hold(&registration()).unwrap();
        let elsewhere = Registration { address: [127, 64, 0, 2].into(), ..registration() };
        let renamed = Registration { name: "web-2".into(), ..registration() };
        for other in [&elsewhere, &renamed] {
            let taken = leases.hold(other).unwrap_err().to_string();
            assert!(taken.contains("default/web-1 is connected") && taken.contains("127.64.0.1"), "{taken}");
        }
        drop(leases.hold(&registration()).unwrap());
        // Who is gone is in nobody's way, even before it is forgotten.
        drop(held);
        leases.hold(&elsewhere).unwrap();
    }
}
