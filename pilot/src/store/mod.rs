//! Configuration by kind and key: what is in force, what was refused, and what follows from a change.
//!
//! [`Store::apply`] takes a batch of updates from a source and returns the next snapshot with what moved. A refused resource counts
//! as not applied: its last good version stays. VirtualServices that point at something which only a refused version defines are
//! held back as well (their last good version stays, or none), so that nobody gets a route to a subset that is not there.
//! References to what is nowhere are warnings. One [`writer::Writer`] owns the store; everybody else reads snapshots.

pub mod check;
mod reference;
mod registration;
pub mod schema;
pub mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use osier_core::host::Host;
use serde::{Deserialize, Serialize};

use crate::model::{
    DestinationPolicy, ExportTo, FetchedKeys, Ingress, KeyLocation, Kind, MeshConfig, Origin, Report,
    ResourceKey, RouteRule, SecurityPolicy, Severity,
};
use crate::registry::{Effects, Event, Registry};
use crate::snapshot::{
    Audience, Change, EndpointIndex, IngressIndex, KeyIndex, MeshSnapshot, PolicyIndex, RouteIndex,
    SecretIndex, SecurityIndex,
};
use check::Resource;
use reference::{Finding, Subsets};

/// One resource that a source has news of.
#[derive(Debug, Clone)]
pub struct Update {
    /// Which.
    pub key: ResourceKey,
    /// What became of it.
    pub outcome: Outcome,
    /// Where it is, for reports.
    pub place: Place,
}

/// What became of a resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It passed its check.
    Applied(Resource),
    /// It did not. `hosts` are those that it would define, as far as they can be read; `None` if they can't.
    Refused {
        /// Hosts that rules may point at.
        hosts: Option<Vec<Host>>,
    },
    /// A security policy that did not pass, or that can't be enforced: what it covers is closed.
    FailsClosed(Arc<SecurityPolicy>),
    /// It is there and says nothing that we use (yet), e.g. a Pod without address. As if it were not there.
    Unused,
    /// It is gone.
    Deleted,
}

/// Finds the line of a field.
pub type LineOf = dyn Fn(&str) -> u32 + Send + Sync;

/// Where a resource is written.
#[derive(Clone, Default)]
pub struct Place {
    /// File and line.
    pub origin: Origin,
    /// Line of a field, where the source can tell.
    pub lines: Option<Arc<LineOf>>,
}

impl Place {
    /// Line of a field, else of the resource.
    pub fn line_of(&self, field: &str) -> u32 {
        self.lines.as_ref().map_or(self.origin.line, |lines| lines(field))
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.origin.fmt(f)
    }
}

/// How one resource fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResourceStatus {
    /// Which.
    pub key: ResourceKey,
    /// Its file; `None` for live registrations.
    pub file: Option<Arc<PathBuf>>,
    /// Its line.
    pub line: u32,
    /// What became of it.
    pub state: State,
}

/// What became of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As written.
    InForce,
    /// An older version, since the one that is written was refused or is held back.
    LastGood,
    /// Not at all, since it was refused.
    Refused,
    /// It can't be enforced, so everything that it covers is refused.
    FailsClosed,
    /// Not at all, since it waits for something that was refused.
    HeldBack,
    /// It says nothing that we use.
    Unused,
}

/// One known resource, whether in force or not.
#[derive(Debug)]
struct Known {
    place: Place,
    /// A version of it is in force.
    in_force: bool,
    unused: bool,
    fails_closed: bool,
}

/// A VirtualService: what is written, and what is in force.
#[derive(Debug)]
struct RouteState {
    wanted: Arc<RouteRule>,
    applied: Option<Arc<RouteRule>>,
}

/// All configuration, and the snapshot that it makes.
#[derive(Debug)]
pub struct Store {
    known: BTreeMap<ResourceKey, Known>,
    /// Those whose newest version was refused, with the hosts that it would define; `None` if they can't be read.
    refused: BTreeMap<ResourceKey, Option<Vec<Host>>>,
    routes: BTreeMap<ResourceKey, RouteState>,
    policies: BTreeMap<ResourceKey, Arc<DestinationPolicy>>,
    security: BTreeMap<ResourceKey, Arc<SecurityPolicy>>,
    ingresses: BTreeMap<ResourceKey, Arc<Ingress>>,
    /// Controllers of IngressClasses, by name.
    classes: BTreeMap<Arc<str>, Arc<str>>,
    secrets: Arc<SecretIndex>,
    /// The roots of the mesh, as PEM.
    roots: Option<Arc<str>>,
    /// Key sets of the issuers of tokens, as they were fetched.
    keys: Arc<KeyIndex>,
    mesh: Arc<MeshConfig>,
    registry: Registry,
    snapshot: Arc<MeshSnapshot>,
    findings: Vec<Finding>,
}

/// Which parts a batch touched.
#[derive(Default)]
struct Touched {
    mesh: bool,
    routes: bool,
    policies: BTreeSet<ResourceKey>,
    security: BTreeSet<ResourceKey>,
    ingresses: bool,
    secrets: BTreeSet<ResourceKey>,
    /// Key sets that came, went or changed.
    keys: BTreeSet<KeyLocation>,
    /// There is news of them, maybe only that a fetch failed.
    key_news: bool,
    refusals: bool,
}

impl Store {
    /// An empty store.
    pub fn new(cluster_domain: Arc<str>) -> Self {
        let snapshot = MeshSnapshot { cluster_domain: cluster_domain.clone(), ..MeshSnapshot::default() };
        Self {
            known: BTreeMap::new(),
            refused: BTreeMap::new(),
            routes: BTreeMap::new(),
            policies: BTreeMap::new(),
            security: BTreeMap::new(),
            ingresses: BTreeMap::new(),
            classes: BTreeMap::new(),
            secrets: Arc::default(),
            roots: None,
            keys: Arc::default(),
            mesh: snapshot.mesh.clone(),
            registry: Registry::new(cluster_domain),
            snapshot: Arc::new(snapshot),
            findings: Vec::new(),
        }
    }

    /// See [`Registry::wait_for_pods`].
    pub fn wait_for_pods(&mut self) {
        self.registry.wait_for_pods();
    }

    /// The mesh as it is now.
    pub fn snapshot(&self) -> &Arc<MeshSnapshot> {
        &self.snapshot
    }

    /// Takes the roots of the mesh, which the next batch puts into a snapshot.
    pub fn set_roots(&mut self, roots: Arc<str>) {
        self.roots = Some(roots);
    }

    /// Takes a batch. `None` if nothing that a client could see moved.
    pub fn apply(&mut self, updates: Vec<Update>) -> Option<Change> {
        self.apply_with_keys(updates, Vec::new())
    }

    /// The same with news of key sets; `None`: nobody wants it any more.
    pub fn apply_with_keys(
        &mut self,
        updates: Vec<Update>,
        keys: Vec<(KeyLocation, Option<FetchedKeys>)>,
    ) -> Option<Change> {
        let mut touched = Touched::default();
        for (location, fetched) in keys {
            let known = Arc::make_mut(&mut self.keys);
            let before = match fetched.clone() {
                Some(fetched) => known.insert(location.clone(), fetched),
                None => known.remove(&location),
            };
            touched.key_news = true;
            // Why a fetch failed is told, and changes nothing for a request.
            let set = |fetched: Option<FetchedKeys>| fetched.and_then(|fetched| fetched.keys);
            if set(before) != set(fetched) {
                touched.keys.insert(location);
            }
        }
        for update in updates {
            self.take(update, &mut touched);
        }
        let effects = self.registry.settle();
        let moved_routes = if touched.routes
            || touched.refusals
            || !touched.policies.is_empty()
            || !effects.services.is_empty()
        {
            self.settle_routes()
        } else {
            BTreeMap::new()
        };
        let references = touched.routes
            || touched.refusals
            || !touched.policies.is_empty()
            || !effects.services.is_empty();
        let change = self.publish(&touched, effects, moved_routes);
        if references || touched.mesh || touched.ingresses {
            let subsets = Subsets::new(self.policies.values());
            self.findings =
                reference::findings(&self.snapshot, &subsets, self.routes.values().map(|r| &r.wanted));
            self.findings.extend(reference::of_ingresses(&self.snapshot));
        }
        change
    }

    fn take(&mut self, update: Update, touched: &mut Touched) {
        let Update { key, outcome, place } = update;
        // what is written down wins over what registers itself under the same name
        if place.origin.file.is_none() && self.known.get(&key).is_some_and(|k| k.place.origin.file.is_some())
        {
            return;
        }
        let known = self.known.entry(key.clone()).or_insert_with(|| Known {
            place: Place::default(),
            in_force: false,
            unused: false,
            fails_closed: false,
        });
        known.place = place;
        known.unused = outcome == Outcome::Unused;
        known.fails_closed = matches!(outcome, Outcome::FailsClosed(_));
        touched.refusals |= self.refused.remove(&key).is_some();
        match outcome {
            Outcome::Refused { hosts } => {
                touched.refusals = true;
                self.refused.insert(key, hosts);
            }
            Outcome::Applied(resource) => {
                known.in_force = true;
                self.put(key, resource, touched);
            }
            Outcome::FailsClosed(policy) => self.put(key, Resource::Security(policy), touched),
            Outcome::Unused => {
                known.in_force = false;
                self.remove(&key, touched);
            }
            Outcome::Deleted => {
                self.known.remove(&key);
                self.remove(&key, touched);
            }
        }
    }

    fn put(&mut self, key: ResourceKey, resource: Resource, touched: &mut Touched) {
        match resource {
            // no rule looks at a Namespace's labels yet
            Resource::Namespace(_) => {}
            Resource::Node(locality) => self.registry.apply(Event::Node(key.name, Some(locality))),
            Resource::Service(service) => self.registry.apply(Event::Service(key, Some(service))),
            Resource::Entry(entry) => self.registry.apply(Event::Entry(key, Some(entry))),
            Resource::Slice(slice) => self.registry.apply(Event::Slice(key, Some(slice))),
            Resource::Workload(workload) => {
                self.registry.apply(Event::Workload(key, Some(Arc::new(*workload))));
            }
            Resource::Route(wanted) => {
                let state = self.routes.get(&key);
                touched.routes |= state.is_none_or(|s| s.wanted != wanted);
                let applied = state.and_then(|s| s.applied.clone());
                self.routes.insert(key, RouteState { wanted, applied });
            }
            Resource::Policy(policy) => {
                if self.policies.insert(key.clone(), policy.clone()) != Some(policy) {
                    touched.policies.insert(key);
                }
            }
            Resource::Security(policy) => {
                if self.security.insert(key.clone(), policy.clone()) != Some(policy) {
                    touched.security.insert(key);
                }
            }
            Resource::Secret(secret) => {
                let secrets = Arc::make_mut(&mut self.secrets);
                let name = (key.namespace.clone(), key.name.clone());
                if secrets.insert(name, secret.clone()) != Some(secret) {
                    touched.secrets.insert(key);
                }
            }
            Resource::Ingress(ingress) => {
                touched.ingresses |= self.ingresses.insert(key, ingress.clone()) != Some(ingress);
            }
            Resource::IngressClass(controller) => {
                touched.ingresses |= self.classes.insert(key.name, controller.clone()) != Some(controller);
            }
            Resource::Mesh(mesh) => {
                touched.mesh |= self.mesh != mesh;
                self.mesh = mesh;
            }
        }
    }

    fn remove(&mut self, key: &ResourceKey, touched: &mut Touched) {
        let key = key.clone();
        match key.kind {
            Kind::Namespace | Kind::Unsupported => {}
            Kind::Node => self.registry.apply(Event::Node(key.name, None)),
            Kind::Service => self.registry.apply(Event::Service(key, None)),
            Kind::ServiceEntry => self.registry.apply(Event::Entry(key, None)),
            Kind::EndpointSlice => self.registry.apply(Event::Slice(key, None)),
            Kind::Pod | Kind::WorkloadEntry => self.registry.apply(Event::Workload(key, None)),
            Kind::VirtualService => {
                touched.routes |= self.routes.remove(&key).is_some() || self.was_applied(&key)
            }
            Kind::DestinationRule => {
                if self.policies.remove(&key).is_some() {
                    touched.policies.insert(key);
                }
            }
            Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::RequestAuthentication => {
                if self.security.remove(&key).is_some() {
                    touched.security.insert(key);
                }
            }
            Kind::Secret => {
                let name = (key.namespace.clone(), key.name.clone());
                if Arc::make_mut(&mut self.secrets).remove(&name).is_some() {
                    touched.secrets.insert(key);
                }
            }
            Kind::Ingress => touched.ingresses |= self.ingresses.remove(&key).is_some(),
            Kind::IngressClass => touched.ingresses |= self.classes.remove(&key.name).is_some(),
            Kind::MeshConfig => {
                touched.mesh |= *self.mesh != MeshConfig::default();
                self.mesh = Arc::default();
            }
        }
    }

    fn was_applied(&self, key: &ResourceKey) -> bool {
        self.snapshot.routes.iter().any(|rule| rule.key == *key)
    }

    /// Decides which version of each VirtualService is in force. Returns what moved: old and new version.
    fn settle_routes(&mut self) -> BTreeMap<ResourceKey, [Option<Arc<RouteRule>>; 2]> {
        let mut before: BTreeMap<ResourceKey, Arc<RouteRule>> = BTreeMap::new();
        for rule in self.snapshot.routes.iter() {
            before.insert(rule.key.clone(), rule.clone());
        }
        let subsets = Subsets::new(self.policies.values());
        let held = |r: &RouteState| self.blocker_of(&r.wanted, &subsets).is_some();
        let held: BTreeSet<_> =
            self.routes.iter().filter(|(_, r)| held(r)).map(|(key, _)| key.clone()).collect();
        for (_, state) in self.routes.iter_mut().filter(|(key, _)| !held.contains(key)) {
            state.applied = Some(state.wanted.clone());
        }
        let mut moved = BTreeMap::new();
        for (key, state) in &self.routes {
            // those that are bound to gateways only are not in the snapshot
            let now = state.applied.clone().filter(|r| r.for_mesh());
            let old = before.remove(key);
            if old != now {
                moved.insert(key.clone(), [old, now]);
            }
        }
        moved.extend(before.into_iter().map(|(key, old)| (key, [Some(old), None])));
        moved
    }

    /// The refused resource that alone would define what a rule points at, if there is one. Its last good version, where there
    /// is one, counts as definition.
    fn blocker_of(&self, rule: &RouteRule, subsets: &Subsets) -> Option<&ResourceKey> {
        let blocks = |(key, hosts): &(&ResourceKey, &Option<Vec<Host>>)| {
            let defines = |host: &Host| match hosts {
                Some(hosts) => hosts.iter().any(|h| h.covers(host)),
                None => key.namespace == rule.key.namespace,
            };
            match key.kind {
                Kind::DestinationRule => reference::subsets_of(rule)
                    .any(|(host, subset)| defines(host) && !subsets.defined(host, subset)),
                Kind::Service | Kind::ServiceEntry => {
                    reference::hosts_of(rule).any(|host| defines(host) && !self.registry.defines(host))
                }
                _ => false,
            }
        };
        self.refused.iter().find(blocks).map(|(key, _)| key)
    }

    /// Builds the next snapshot out of what moved.
    fn publish(
        &mut self,
        touched: &Touched,
        mut effects: Effects,
        moved_routes: BTreeMap<ResourceKey, [Option<Arc<RouteRule>>; 2]>,
    ) -> Option<Change> {
        let old = self.snapshot.clone();
        let mut next = (*old).clone();
        next.mesh = self.mesh.clone();
        next.secrets = self.secrets.clone();
        next.roots = self.roots.clone();
        if touched.mesh || !effects.services.is_empty() {
            let services = self.registry.services().cloned();
            next.services = Arc::new(old.services.rebuilt(services, &self.mesh.service_export));
            effects.services.extend(next.services.readdressed_since(&old.services).cloned());
        }
        if touched.mesh || !moved_routes.is_empty() {
            let rules = self.routes.values().filter_map(|r| r.applied.clone());
            next.routes = Arc::new(RouteIndex::build(rules, &self.mesh.route_export));
        }
        if touched.mesh || !touched.policies.is_empty() {
            let policies = self.policies.values().cloned();
            next.policies = Arc::new(PolicyIndex::build(policies, &self.mesh.policy_export));
        }
        if touched.mesh || touched.ingresses {
            let ingresses = self.ingresses.values().cloned();
            next.ingresses = Arc::new(IngressIndex::build(ingresses, &self.classes, &self.mesh.ingress));
        }
        if effects.workloads {
            next.workloads = self.registry.workloads();
        }
        if !effects.endpoints.is_empty() {
            next.endpoints = Arc::new(EndpointIndex::with(&old.endpoints, effects.endpoints.clone()));
        }
        let ingresses = old.ingresses.moved(&next.ingresses);
        let mut change = Change {
            mesh: touched.mesh,
            ingresses,
            secrets: touched.secrets.clone(),
            roots: next.roots != old.roots,
            ..Change::default()
        };
        let relabelled = effects.workloads && old.security.looks_at_labels();
        if !touched.security.is_empty() || touched.key_news || relabelled {
            let policies = self.security.values().cloned();
            next.security = Arc::new(SecurityIndex::build(policies, &next.workloads, self.keys.clone()));
            let mut moved = touched.security.clone();
            moved.extend(next.security.with_keys_of(&touched.keys).cloned());
            note_security(&mut change, &moved, &old, &next);
        }
        note_services(&mut change, &effects.services, &old, &next);
        note_endpoints(&mut change, effects.endpoints.into_keys(), &old, &next);
        for (key, versions) in moved_routes {
            let exports =
                |rule: &Arc<RouteRule>| rule.export_to.resolve(&key.namespace, &self.mesh.route_export);
            versions.iter().flatten().for_each(|rule| change.audience.add(&exports(rule)));
            change.rules.insert(key);
        }
        note_policies(&mut change, &touched.policies, [&old, &next], &self.mesh.policy_export);
        // the list of workloads alone decides nothing that is sent
        let moved = !change.is_empty();
        next.version = old.version + u64::from(moved);
        self.snapshot = Arc::new(next);
        moved.then_some(change)
    }

    /// How every known resource fares, by key.
    pub fn statuses(&self) -> Vec<ResourceStatus> {
        let status = |(key, known): (&ResourceKey, &Known)| ResourceStatus {
            key: key.clone(),
            file: known.place.origin.file.clone(),
            line: known.place.origin.line,
            state: self.state(key, known),
        };
        self.known.iter().map(status).collect()
    }

    fn state(&self, key: &ResourceKey, known: &Known) -> State {
        if known.unused {
            return State::Unused;
        }
        if known.fails_closed {
            return State::FailsClosed;
        }
        let route = self.routes.get(key);
        let in_force = known.in_force && route.is_none_or(|r| r.applied.is_some());
        match (self.refused.contains_key(key), in_force) {
            (true, true) => State::LastGood,
            (true, false) => State::Refused,
            (false, false) => State::HeldBack,
            (false, true) if route.is_some_and(|r| r.applied.as_ref() != Some(&r.wanted)) => State::LastGood,
            (false, true) => State::InForce,
        }
    }

    /// What the store itself has to say: rules that are held back, and references to nothing.
    pub fn reports(&self) -> Vec<Report> {
        let mut reports = Vec::new();
        let subsets = Subsets::new(self.policies.values());
        for (key, state) in &self.routes {
            if state.applied.as_ref() == Some(&state.wanted) {
                continue;
            }
            let Some(blocker) = self.blocker_of(&state.wanted, &subsets) else { continue };
            let kept = if state.applied.is_some() { "; its last good version stays in force" } else { "" };
            let message = format!(
                "is held back: what it points at is defined by {blocker} only, which was refused{kept}"
            );
            reports.push(self.report(key, "", message, Severity::Error));
            let message = format!("{key} is held back until this resource is accepted");
            reports.push(self.report(blocker, "", message, Severity::Error));
        }
        for (key, known) in self.refused.keys().filter_map(|key| self.known.get_key_value(key)) {
            let message = match self.state(key, known) {
                State::LastGood => "is refused as it is now; its last good version stays in force",
                State::Refused => "is refused, and no version of it is in force",
                _ => continue,
            };
            reports.push(self.report(key, "", message.to_owned(), Severity::Notice));
        }
        for finding in &self.findings {
            reports.push(self.report(
                &finding.key,
                &finding.field,
                finding.message.clone(),
                Severity::Warning,
            ));
        }
        // What they match is denied, so they aren't in force as they are written.
        for finding in reference::of_authorizers(&self.snapshot, self.security.values()) {
            reports.push(self.report(&finding.key, &finding.field, finding.message, Severity::Error));
        }
        for finding in reference::of_key_sets(self.security.values(), &self.keys) {
            reports.push(self.report(&finding.key, &finding.field, finding.message, Severity::Warning));
        }
        reports
    }

    fn report(&self, key: &ResourceKey, field: &str, message: String, severity: Severity) -> Report {
        let place = self.known.get(key).map(|known| known.place.clone()).unwrap_or_default();
        Report {
            file: place.origin.file.clone(),
            line: place.line_of(field),
            kind: format!("{:?}", key.kind).into(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            field: field.to_owned(),
            message,
            severity,
        }
    }
}

/// Services that really differ, and who sees or hosts them.
fn note_services(
    change: &mut Change,
    keys: &BTreeSet<crate::model::ServiceKey>,
    old: &MeshSnapshot,
    next: &MeshSnapshot,
) {
    for key in keys {
        let versions = [old.services.by_key(key), next.services.by_key(key)];
        if versions[0] == versions[1] {
            continue;
        }
        versions.iter().flatten().for_each(|s| change.audience.add(&s.exports));
        change.services.insert(key.clone());
        // the ports of the proxies behind it may mean something else now
        for snapshot in [old, next] {
            change.addresses.extend(addresses(snapshot, key).into_iter().map(|(ip, ..)| ip));
        }
    }
}

fn note_endpoints(
    change: &mut Change,
    keys: impl Iterator<Item = crate::model::ServiceKey>,
    old: &MeshSnapshot,
    next: &MeshSnapshot,
) {
    for key in keys {
        let versions = [old.services.by_key(&key), next.services.by_key(&key)];
        versions.iter().flatten().for_each(|s| change.endpoint_audience.add(&s.exports));
        let (before, after) = (addresses(old, &key), addresses(next, &key));
        change.addresses.extend(before.symmetric_difference(&after).map(|(ip, ..)| *ip));
        if old.identities(&key) != next.identities(&key) {
            change.identities.insert(key.clone());
        }
        change.endpoints.insert(key);
    }
}

/// Address, service port and own port of every endpoint.
fn addresses(
    snapshot: &MeshSnapshot,
    key: &crate::model::ServiceKey,
) -> BTreeSet<(std::net::IpAddr, u16, u16)> {
    let ports = snapshot.endpoints.get(key).map_or(&[][..], |e| &e.ports);
    let of_port = |p: &crate::snapshot::PortEndpoints| {
        let port = p.port;
        p.endpoints.iter().filter_map(move |e| Some((e.address.ip()?, port, e.port))).collect::<Vec<_>>()
    };
    ports.iter().flat_map(of_port).collect()
}

fn note_policies(
    change: &mut Change,
    keys: &BTreeSet<ResourceKey>,
    snapshots: [&MeshSnapshot; 2],
    default: &ExportTo,
) {
    if keys.is_empty() {
        return;
    }
    for snapshot in snapshots {
        for policy in snapshot.policies.iter() {
            let own = std::iter::once(&policy.key).chain(&policy.merged).any(|key| keys.contains(key));
            if own {
                change.audience.add(&policy.export_to.resolve(&policy.key.namespace, default));
            }
        }
    }
    // a rule that is exported to others only still counts for clients of its own namespace where it hides another
    for key in keys {
        change.audience.add(&crate::model::Exports::Namespaces([key.namespace.clone()].into()));
        change.rules.insert(key.clone());
    }
}

/// Security policies that came, went or changed, and workloads that may be covered by others than before.
fn note_security(change: &mut Change, keys: &BTreeSet<ResourceKey>, old: &MeshSnapshot, next: &MeshSnapshot) {
    for key in keys {
        // What callers do depends on it, wherever they are.
        let tells_callers = key.kind == Kind::PeerAuthentication;
        let crosses = |s: &&MeshSnapshot| s.security.crosses_namespaces(&s.mesh.root_namespace, key);
        change.audience.merge(match tells_callers || [old, next].iter().any(crosses) {
            true => Audience::Everybody,
            false => Audience::Namespaces([key.namespace.clone()].into()),
        });
        change.rules.insert(key.clone());
    }
    change.addresses.extend(old.security.relabelled(&next.security));
}

#[cfg(test)]
mod tests;
