//! What is there to talk to: services, who is behind them, and workloads.
//!
//! Events change one resource each and mark what may follow from it; [`Registry::settle`] then works out what really changed.
//! Same content: no effect. Pure: no I/O, no clock.
//!
//! Endpoints come from EndpointSlices; where a Service has none, from Pods that its selector matches; in both cases from
//! WorkloadEntries too. ServiceEntries bring their own, or select workloads. A slice's Pod that isn't there is waited for only where
//! [`Registry::wait_for_pods`] says that it will come; a folder is read whole, so such an endpoint simply has no labels.

mod endpoints;
mod index;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use osier_core::host::Host;

use crate::model::{Kind, Locality, ResourceKey, Service, ServiceKey, ServiceSource, Workload};
use crate::snapshot::ServiceEndpoints;
use crate::store::check::kubernetes::{Slice, SliceEndpoint};
use crate::store::check::service_entry::Entry;
use index::LabelIndex;

/// A change of one resource; `None` takes it out.
#[derive(Debug, Clone)]
pub enum Event {
    /// A Kubernetes Service.
    Service(ResourceKey, Option<Box<Service>>),
    /// A ServiceEntry.
    Entry(ResourceKey, Option<Entry>),
    /// An EndpointSlice.
    Slice(ResourceKey, Option<Slice>),
    /// A Pod or WorkloadEntry.
    Workload(ResourceKey, Option<Arc<Workload>>),
    /// Where the pods of a Node are, by its name.
    Node(Arc<str>, Option<Locality>),
}

/// What followed from some events.
#[derive(Debug, Default, PartialEq)]
pub struct Effects {
    /// Services that came, went or changed.
    pub services: BTreeSet<ServiceKey>,
    /// Services whose endpoints changed, with the new ones; `None` where the service is gone.
    pub endpoints: BTreeMap<ServiceKey, Option<Arc<ServiceEndpoints>>>,
    /// The list of workloads changed.
    pub workloads: bool,
}

/// Services, endpoints and workloads.
#[derive(Debug)]
pub struct Registry {
    cluster_domain: Arc<str>,
    /// Kubernetes Services.
    services: BTreeMap<ResourceKey, Arc<Service>>,
    /// ServiceEntries.
    entries: BTreeMap<ResourceKey, Arc<Entry>>,
    slices: BTreeMap<ResourceKey, Slice>,
    workloads: BTreeMap<ResourceKey, Arc<Workload>>,
    /// Where Nodes are.
    nodes: HashMap<Arc<str>, Locality>,
    /// Who defines a host, in order of precedence.
    definitions: HashMap<ServiceKey, Vec<Definition>>,
    /// Slices of a Service.
    slices_of: HashMap<ServiceKey, BTreeSet<ResourceKey>>,
    /// Services whose slices name a Pod.
    slices_with: HashMap<ResourceKey, BTreeSet<ServiceKey>>,
    /// Workloads by label.
    by_label: LabelIndex<ResourceKey>,
    /// Services by one label of their selector.
    selecting: LabelIndex<ServiceKey>,
    /// What was last worked out.
    endpoints: HashMap<ServiceKey, Arc<ServiceEndpoints>>,
    waits_for_pods: bool,
    dirty: Dirty,
}

/// One resource that defines a host.
#[derive(Debug, Clone)]
struct Definition {
    service: Arc<Service>,
    /// The ServiceEntry with its inline endpoints.
    entry: Option<Arc<Entry>>,
}

#[derive(Debug, Default)]
struct Dirty {
    services: BTreeSet<ServiceKey>,
    endpoints: BTreeSet<ServiceKey>,
    workloads: bool,
}

impl Registry {
    /// Nothing is there yet.
    pub fn new(cluster_domain: Arc<str>) -> Self {
        Self {
            cluster_domain,
            services: BTreeMap::new(),
            entries: BTreeMap::new(),
            slices: BTreeMap::new(),
            workloads: BTreeMap::new(),
            nodes: HashMap::new(),
            definitions: HashMap::new(),
            slices_of: HashMap::new(),
            slices_with: HashMap::new(),
            by_label: LabelIndex::default(),
            selecting: LabelIndex::default(),
            endpoints: HashMap::new(),
            waits_for_pods: false,
            dirty: Dirty::default(),
        }
    }

    /// Endpoints whose Pod is not known are held back until it is: an API server tells of both, in any order, and without the Pod
    /// nobody knows the endpoint's labels and identity.
    pub fn wait_for_pods(&mut self) {
        self.waits_for_pods = true;
    }

    /// Takes one change. What follows is worked out by [`Registry::settle`].
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Service(key, service) => self.apply_service(key, service.map(|s| Arc::new(*s))),
            Event::Entry(key, entry) => self.apply_entry(key, entry.map(Arc::new)),
            Event::Slice(key, slice) => self.apply_slice(key, slice),
            Event::Workload(key, workload) => self.apply_workload(key, workload),
            Event::Node(name, locality) => self.apply_node(name, locality),
        }
    }

    /// Works out what the events since the last call changed.
    pub fn settle(&mut self) -> Effects {
        let Dirty { services, endpoints, workloads } = std::mem::take(&mut self.dirty);
        let mut effects = Effects { workloads, ..Effects::default() };
        for key in services.union(&endpoints) {
            let new = self.definitions.contains_key(key).then(|| Arc::new(self.endpoints_of(key)));
            if self.endpoints.get(key) == new.as_ref() {
                continue;
            }
            match &new {
                Some(new) => self.endpoints.insert(key.clone(), new.clone()),
                None => self.endpoints.remove(key),
            };
            effects.endpoints.insert(key.clone(), new);
        }
        effects.services = services;
        effects
    }

    /// All services, as the snapshot wants them.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        let entries = self.entries.values().flat_map(|e| &e.services);
        self.services.values().chain(entries)
    }

    /// True if any namespace has a service of this host.
    pub fn defines(&self, host: &Host) -> bool {
        self.definitions.keys().any(|key| key.host.covers(host))
    }

    /// All workloads.
    pub fn workloads(&self) -> Arc<[Arc<Workload>]> {
        self.workloads.values().cloned().collect()
    }

    fn apply_service(&mut self, key: ResourceKey, service: Option<Arc<Service>>) {
        let old = match service.clone() {
            Some(new) => self.services.insert(key, new),
            None => self.services.remove(&key),
        };
        if old == service {
            return;
        }
        if let Some(old) = old {
            self.undefine(&old);
        }
        if let Some(new) = service {
            self.define(Definition { service: new, entry: None });
        }
    }

    fn apply_entry(&mut self, key: ResourceKey, entry: Option<Arc<Entry>>) {
        let old = match entry.clone() {
            Some(new) => self.entries.insert(key, new),
            None => self.entries.remove(&key),
        };
        if old == entry {
            return;
        }
        for service in old.iter().flat_map(|e| &e.services) {
            self.undefine(service);
        }
        for service in entry.iter().flat_map(|e| &e.services) {
            self.define(Definition { service: service.clone(), entry: entry.clone() });
        }
    }

    fn define(&mut self, definition: Definition) {
        let service = &definition.service;
        let key = service.key.clone();
        if let Some(selector) = &service.selector {
            self.selecting.add_selector(&key.namespace, selector, &key);
        }
        self.dirty.services.insert(key.clone());
        let same_host = self.definitions.entry(key).or_default();
        same_host.push(definition);
        let from_entry = |d: &Definition| d.service.source == ServiceSource::ServiceEntry;
        same_host.sort_by(|a, b| (from_entry(a), &a.service.age).cmp(&(from_entry(b), &b.service.age)));
    }

    fn undefine(&mut self, service: &Service) {
        let key = &service.key;
        self.dirty.services.insert(key.clone());
        let Some(same_host) = self.definitions.get_mut(key) else { return };
        same_host.retain(|d| d.service.resource != service.resource);
        let left: Vec<_> = same_host.iter().filter_map(|d| d.service.selector.clone()).collect();
        if same_host.is_empty() {
            self.definitions.remove(key);
        }
        if let Some(selector) = &service.selector {
            self.selecting.remove_selector(&key.namespace, selector, key);
        }
        // others of the same host may have used the same label
        for selector in left {
            self.selecting.add_selector(&key.namespace, &selector, key);
        }
    }

    fn apply_slice(&mut self, key: ResourceKey, slice: Option<Slice>) {
        let old = match slice.clone() {
            Some(new) => self.slices.insert(key.clone(), new),
            None => self.slices.remove(&key),
        };
        if old == slice {
            return;
        }
        for (slice, there) in old.iter().map(|s| (s, false)).chain(slice.iter().map(|s| (s, true))) {
            let service = self.kubernetes_service(&key.namespace, &slice.service);
            let of = self.slices_of.entry(service.clone()).or_default();
            if there {
                of.insert(key.clone())
            } else {
                of.remove(&key)
            };
            for (namespace, name) in slice.endpoints.iter().filter_map(|e| e.pod.as_ref()) {
                let pod = ResourceKey::new(Kind::Pod, namespace.clone(), name.clone());
                if there {
                    self.slices_with.entry(pod).or_default().insert(service.clone());
                } else {
                    self.forget_pod(&pod, &service);
                }
            }
            self.dirty.endpoints.insert(service);
        }
    }

    /// No slice of `service` may name `pod` any more. Kept where another slice still does.
    fn forget_pod(&mut self, pod: &ResourceKey, service: &ServiceKey) {
        let still_named = self.slices_of.get(service).into_iter().flatten().any(|slice| {
            let named =
                |e: &SliceEndpoint| e.pod.as_ref().is_some_and(|p| p.0 == pod.namespace && p.1 == pod.name);
            self.slices.get(slice).is_some_and(|s| s.endpoints.iter().any(named))
        });
        if still_named {
            return;
        }
        if let Some(services) = self.slices_with.get_mut(pod) {
            services.remove(service);
            if services.is_empty() {
                self.slices_with.remove(pod);
            }
        }
    }

    fn apply_workload(&mut self, key: ResourceKey, workload: Option<Arc<Workload>>) {
        let old = match workload.clone() {
            Some(new) => self.workloads.insert(key.clone(), new),
            None => self.workloads.remove(&key),
        };
        if old == workload {
            return;
        }
        self.dirty.workloads = true;
        if let Some(old) = &old {
            self.by_label.remove_labels(&key.namespace, &old.labels, &key);
            self.dirty.endpoints.extend(self.selecting.of_labels(&key.namespace, &old.labels));
        }
        if let Some(new) = &workload {
            self.by_label.add_labels(&key.namespace, &new.labels, &key);
            self.dirty.endpoints.extend(self.selecting.of_labels(&key.namespace, &new.labels));
        }
        if let Some(services) = self.slices_with.get(&key) {
            self.dirty.endpoints.extend(services.iter().cloned());
        }
    }

    /// Nodes seldom move, so everything is looked at again when one does.
    fn apply_node(&mut self, name: Arc<str>, locality: Option<Locality>) {
        let old = match locality.clone() {
            Some(new) => self.nodes.insert(name, new),
            None => self.nodes.remove(&name),
        };
        if old.unwrap_or_default() != locality.unwrap_or_default() {
            self.dirty.endpoints.extend(self.definitions.keys().cloned());
        }
    }

    /// The key that a Kubernetes Service of this name has or would have.
    fn kubernetes_service(&self, namespace: &Arc<str>, name: &Arc<str>) -> ServiceKey {
        let domain = &self.cluster_domain;
        let host = Host::new(&format!("{name}.{namespace}.svc.{domain}"));
        ServiceKey { host, namespace: namespace.clone() }
    }
}

#[cfg(test)]
mod tests;
