//! Encoded resources, shared between streams.
//!
//! An entry remembers the parts of the snapshot that it was made from. Parts are shared between snapshots where nothing
//! changed, so an entry is good for as long as its parts are still the snapshot's own. There is nothing to invalidate, and a
//! stream with an older snapshot cannot be given newer content, nor spoil the entry of a stream with a newer one for long.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::r#gen::key::{Key, ResourceType, Sensitivity, View};
use crate::r#gen::name::OutboundName;
use crate::r#gen::route::{ConfigName, Plan};
use crate::r#gen::scope::Scope;
use crate::r#gen::{self, Generated};
use crate::metrics::Metrics;
use crate::model::MeshConfig;
use crate::snapshot::{
    EndpointIndex, IngressIndex, MeshSnapshot, PolicyIndex, RouteIndex, SecretIndex, SecurityIndex,
    ServiceEndpoints, ServiceIndex,
};

/// Enough that two pushes seldom meet in one.
const SHARDS: usize = 16;
/// Entries of one shard; when it is full, what is out of date is dropped, and if that is not enough, everything.
const SHARD_CAPACITY: usize = 60_000 / SHARDS;

/// The cache.
#[derive(Debug)]
pub struct Cache {
    shards: [Mutex<HashMap<Key, Entry, foldhash::fast::RandomState>>; SHARDS],
    plans: Mutex<HashMap<PlanKey, PlanEntry>>,
    sensitivity: Mutex<Option<(Parts, Arc<Sensitivity>)>>,
    hasher: foldhash::fast::RandomState,
    metrics: Arc<Metrics>,
}

type PlanKey = (String, Arc<View>);

#[derive(Debug)]
struct Entry {
    parts: Parts,
    made: Option<Generated>,
}

#[derive(Debug)]
struct PlanEntry {
    parts: Parts,
    plan: Option<Arc<Plan>>,
}

/// Parts of a snapshot, compared by identity. `Weak`: an entry keeps no old snapshot alive, and no address is reused while
/// an entry refers to it.
#[derive(Debug, Clone)]
struct Parts {
    mesh: Weak<MeshConfig>,
    services: Weak<ServiceIndex>,
    policies: Weak<PolicyIndex>,
    routes: Option<Weak<RouteIndex>>,
    security: Option<Weak<SecurityIndex>>,
    ingresses: Option<Weak<IngressIndex>>,
    secrets: Option<Weak<SecretIndex>>,
    roots: Option<Arc<str>>,
    all_endpoints: Option<Weak<EndpointIndex>>,
    endpoints: Option<Weak<ServiceEndpoints>>,
}

impl Parts {
    /// The parts that a resource is made from.
    fn of(key: &Key, snapshot: &MeshSnapshot) -> Self {
        let config =
            matches!(key.kind, ResourceType::Listener | ResourceType::Routes | ResourceType::VirtualHost);
        let outbound = OutboundName::parse(&key.name);
        let by_name = || {
            let name = outbound.as_ref()?;
            let service = snapshot.service(&key.view.proxy.namespace, &name.host)?;
            snapshot.endpoints.get(&service.key)
        };
        let service_endpoints = match key.kind {
            ResourceType::Cluster | ResourceType::Endpoints => by_name().map(Arc::downgrade),
            _ => None,
        };
        // Listeners depend on who has which address; so do the clusters of the workload itself.
        let listener = key.kind == ResourceType::Listener;
        // What callers speak depends on the mode of those whom they call.
        let secured =
            matches!(key.kind, ResourceType::Listener | ResourceType::Cluster | ResourceType::Endpoints);
        // Names of headless services stand for their endpoints.
        let all = listener
            || key.kind == ResourceType::NameTable
            || (key.kind == ResourceType::Cluster && outbound.is_none());
        Self {
            mesh: Arc::downgrade(&snapshot.mesh),
            services: Arc::downgrade(&snapshot.services),
            policies: Arc::downgrade(&snapshot.policies),
            routes: config.then(|| Arc::downgrade(&snapshot.routes)),
            security: secured.then(|| Arc::downgrade(&snapshot.security)),
            ingresses: (config && key.view.proxy.gateway).then(|| Arc::downgrade(&snapshot.ingresses)),
            secrets: (key.kind == ResourceType::Secret).then(|| Arc::downgrade(&snapshot.secrets)),
            roots: snapshot.roots.clone().filter(|_| key.kind == ResourceType::Secret),
            all_endpoints: all.then(|| Arc::downgrade(&snapshot.endpoints)),
            endpoints: service_endpoints,
        }
    }

    /// Everything that is not an endpoint.
    fn of_config(snapshot: &MeshSnapshot) -> Self {
        Self {
            mesh: Arc::downgrade(&snapshot.mesh),
            services: Arc::downgrade(&snapshot.services),
            policies: Arc::downgrade(&snapshot.policies),
            routes: Some(Arc::downgrade(&snapshot.routes)),
            security: None,
            ingresses: None,
            secrets: None,
            roots: None,
            all_endpoints: None,
            endpoints: None,
        }
    }

    /// Some part is no longer in any snapshot.
    fn is_dead(&self) -> bool {
        self.services.strong_count() == 0 || self.mesh.strong_count() == 0
    }
}

impl PartialEq for Parts {
    fn eq(&self, other: &Self) -> bool {
        fn same<T>(a: &Option<Weak<T>>, b: &Option<Weak<T>>) -> bool {
            match (a, b) {
                (Some(a), Some(b)) => a.ptr_eq(b),
                (None, None) => true,
                _ => false,
            }
        }
        self.mesh.ptr_eq(&other.mesh)
            && self.services.ptr_eq(&other.services)
            && self.policies.ptr_eq(&other.policies)
            && same(&self.routes, &other.routes)
            && same(&self.security, &other.security)
            && same(&self.ingresses, &other.ingresses)
            && same(&self.secrets, &other.secrets)
            && self.roots == other.roots
            && same(&self.all_endpoints, &other.all_endpoints)
            && same(&self.endpoints, &other.endpoints)
    }
}

impl Cache {
    /// An empty cache.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            plans: Mutex::default(),
            sensitivity: Mutex::default(),
            hasher: foldhash::fast::RandomState::default(),
            metrics,
        }
    }

    /// The resource of a key in a snapshot; `None` where there is none of that name.
    pub fn get(&self, key: &Key, snapshot: &MeshSnapshot) -> Option<Generated> {
        let parts = Parts::of(key, snapshot);
        let shard = &self.shards[(self.hash(key) as usize) % SHARDS];
        if let Some(entry) = shard.lock().get(key).filter(|e| e.parts == parts) {
            self.metrics.cache_hits.inc();
            return entry.made.clone();
        }
        self.metrics.cache_misses.inc();
        let made = r#gen::generate(key, snapshot, |config| self.plan(config, &key.view, snapshot));
        let mut entries = shard.lock();
        if entries.len() >= SHARD_CAPACITY {
            let before = entries.len();
            entries.retain(|_, e| !e.parts.is_dead());
            if entries.len() >= SHARD_CAPACITY {
                entries.clear();
            }
            self.metrics.cache_size.sub((before - entries.len()) as i64);
        }
        if entries.insert(key.clone(), Entry { parts, made: made.clone() }).is_none() {
            self.metrics.cache_size.inc();
        }
        made
    }

    /// Drops what no snapshot can give any more.
    pub fn sweep(&self) {
        for shard in &self.shards {
            let mut entries = shard.lock();
            let before = entries.len();
            entries.retain(|_, e| !e.parts.is_dead());
            self.metrics.cache_size.sub((before - entries.len()) as i64);
        }
        self.plans.lock().retain(|_, e| !e.parts.is_dead());
    }

    /// What of clients the rules of a snapshot look at.
    pub fn sensitivity(&self, snapshot: &MeshSnapshot) -> Arc<Sensitivity> {
        let parts = Parts::of_config(snapshot);
        let mut kept = self.sensitivity.lock();
        if let Some((_, sensitivity)) = kept.as_ref().filter(|(of, _)| *of == parts) {
            return sensitivity.clone();
        }
        let sensitivity = Arc::new(r#gen::sensitivity(snapshot));
        *kept = Some((parts, sensitivity.clone()));
        sensitivity
    }

    fn plan(&self, config: &ConfigName, view: &Arc<View>, snapshot: &MeshSnapshot) -> Option<Arc<Plan>> {
        let key = (format!("{config:?}"), view.clone());
        let parts = Parts::of_config(snapshot);
        if let Some(entry) = self.plans.lock().get(&key).filter(|e| e.parts == parts) {
            return entry.plan.clone();
        }
        let plan = Plan::build(&Scope::new(snapshot, view), config).map(Arc::new);
        self.plans.lock().insert(key, PlanEntry { parts, plan: plan.clone() });
        plan
    }

    fn hash(&self, key: &impl Hash) -> u64 {
        self.hasher.hash_one(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#gen::fixture::{Fixture, age, key};
    use crate::r#gen::key::tests::view;
    use crate::model::{
        Coverage, Demand, Kind, MutualTls, Protocol, ResourceKey, SecurityPolicy, ServiceKind, TlsMode,
    };

    #[test]
    fn what_callers_are_told_follows_the_mode_of_those_whom_they_call() {
        let mut fixture = Fixture::default()
            .service("web", Some("10.96.0.1"), &[(80, Protocol::Http)])
            .endpoints("web", 80, &[("10.0.0.1", 80, "v1")])
            .service("own", None, &[(80, Protocol::Http)])
            .endpoints("own", 80, &[("10.0.0.2", 80, "v1")]);
        assert_eq!(fixture.services[1].kind, ServiceKind::Headless);
        fixture.endpoints.iter_mut().flat_map(|(_, _, all)| all).for_each(|e| e.tls = TlsMode::Istio);
        let snapshot = fixture.build();
        let off = SecurityPolicy {
            key: ResourceKey::new(Kind::PeerAuthentication, "default", "off"),
            age: age("off", "default"),
            covers: Coverage::Namespace,
            demands: Demand::MutualTls { mode: Some(MutualTls::Disable), ports: Default::default() },
        };
        let security = SecurityIndex::build([Arc::new(off)], &[], Arc::default());
        let off = MeshSnapshot { security: Arc::new(security), ..snapshot.clone() };
        let mut client = view("default", []);
        client.proxy.mutual_tls = true;
        let cache = Cache::new(Arc::default());
        for (kind, name) in [(ResourceType::Endpoints, "web"), (ResourceType::Cluster, "own")] {
            let name = format!("outbound|80||{}", key(name, "default").host).into();
            let key = Key { kind, name, view: Arc::new(client.clone()) };
            let encrypted = |snapshot: &MeshSnapshot| {
                let made = cache.get(&key, snapshot).expect("there is one");
                let value = made.resource.body.value;
                let says = |text: &[u8]| value.windows(text.len()).any(|part| part == text);
                says(b"tlsMode") || says(b"UpstreamTlsContext")
            };
            assert_eq!([&snapshot, &off, &snapshot].map(encrypted), [true, false, true], "{key:?}");
        }
    }
}
