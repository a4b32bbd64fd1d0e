//! Everything that the proxy was told: what arrives, what is refused, what goes.
//!
//! One task owns this; it does no I/O and time is an argument. A resource that arrives is compiled and kept as the warming version
//! until `order` puts it in force; until then the version before serves. A refused version changes nothing. Equal content changes
//! nothing either, so a control plane that sends everything again disturbs nobody.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use osier_core::on_demand as naming;
use osier_proto::Any;
use tokio::time::Instant;

use super::held::{Kind, Revision, Source, Table};
use super::publish;
use crate::authz::counters::Counters;
use crate::compile::cluster::CompiledCluster;
use crate::compile::endpoint::Assignment;
use crate::compile::listener::CompiledListener;
use crate::compile::route::CompiledRoutes;
use crate::compile::{self, Context, References, Rejected, content_hash};
use crate::config::cluster::{Cluster, Discovery};
use crate::config::listener::Listener;
use crate::config::route::VirtualHost;
use crate::config::snapshot::{Clusters, SharedSnapshot};
use crate::config::tls::{ROOTS, Secret, Secrets, Trust};
use crate::identity::files;
use crate::listener::accept::Acceptors;
use crate::on_demand::OnDemand;
use crate::upstream::dns::{DnsResolver, DnsTask, discover};

/// Longest wait of an on-demand resource for the clusters that it names.
pub(super) const ON_DEMAND_WARMING: Duration = Duration::from_secs(5);

/// A cluster with what keeps its endpoints coming.
#[derive(Debug)]
pub(super) struct ClusterVersion {
    pub(super) compiled: CompiledCluster,
    pub(super) cluster: Arc<Cluster>,
    /// Look-ups of a STRICT_DNS cluster; they end with this version.
    _dns: Option<DnsTask>,
}

/// A listener as compiled, and as linked with the tables in force.
#[derive(Debug)]
pub(super) struct ListenerVersion {
    pub(super) compiled: CompiledListener,
    /// For the snapshot; one on demand is held by its table alone.
    pub(super) linked: Option<Arc<Listener>>,
}

/// A virtual host that came on its own.
#[derive(Debug)]
pub(super) struct HostVersion {
    /// Until it is in force: then its table alone holds it, which is how the table knows whether a request does too.
    pub(super) host: Option<Arc<VirtualHost>>,
    pub(super) references: References,
}

/// The owner of all that came over xDS or from the bootstrap file.
#[derive(Debug)]
pub(super) struct State {
    pub(super) clusters: Table<ClusterVersion>,
    pub(super) assignments: Table<Assignment>,
    pub(super) routes: Table<CompiledRoutes>,
    /// Without their content, which nobody may see.
    pub(super) secrets: Table<()>,
    pub(super) listeners: Table<ListenerVersion>,
    pub(super) hosts: Table<HostVersion>,
    /// Clusters, assignments, route tables and certificates that were answered absent, as long as somebody refers to them.
    pub(super) absent: HashSet<(Kind, Arc<str>)>,
    pub(super) handles: Arc<Clusters>,
    secret_handles: Arc<Secrets>,
    /// The control plane knows who we are: it has the roots of the mesh for us.
    identified: bool,
    counters: Arc<Counters>,
    pub(super) snapshot: SharedSnapshot,
    pub(super) on_demand: Option<Arc<OnDemand>>,
    resolver: Option<Arc<DnsResolver>>,
    /// Where listeners get their sockets.
    sockets: Option<Arc<Acceptors>>,
    /// Clusters by the assignment that they take endpoints from; may name clusters that have changed since.
    discovered: HashMap<Arc<str>, HashSet<Arc<str>>>,
    /// Listeners from xDS aren't put in force yet: the first clusters have not come.
    pub(super) hold_listeners: bool,
    /// Route tables that changed since listeners were linked.
    pub(super) changed_routes: HashSet<Arc<str>>,
    pub(super) snapshot_changed: bool,
    /// What is named has changed: subscriptions must be looked at.
    pub(super) references_changed: bool,
}

impl State {
    pub(super) fn new(
        handles: Arc<Clusters>,
        secret_handles: Arc<Secrets>,
        counters: Arc<Counters>,
        snapshot: SharedSnapshot,
        resolver: Option<Arc<DnsResolver>>,
        sockets: Option<Arc<Acceptors>>,
    ) -> Self {
        Self {
            clusters: Table::default(),
            assignments: Table::default(),
            routes: Table::default(),
            secrets: Table::default(),
            listeners: Table::default(),
            hosts: Table::default(),
            absent: HashSet::new(),
            handles,
            secret_handles,
            identified: false,
            counters,
            snapshot,
            on_demand: None,
            resolver,
            sockets,
            discovered: HashMap::new(),
            hold_listeners: false,
            changed_routes: HashSet::new(),
            snapshot_changed: false,
            references_changed: false,
        }
    }

    /// From now on the roots of the mesh are asked for.
    pub(super) fn identify(&mut self) {
        self.identified = true;
        self.references_changed = true;
    }

    /// The roots of the mesh in force.
    pub(super) fn mesh_roots(&self) -> Option<Arc<Trust>> {
        self.secret_handles.roots.trust()
    }

    /// Goes over to on-demand rules.
    pub(super) fn set_on_demand(&mut self, tables: Arc<OnDemand>) {
        self.on_demand = Some(tables);
        self.snapshot_changed = true;
    }

    /// Goes back to the rules for a control plane that sends everything. What was got by name goes.
    pub(super) fn give_up_on_demand(&mut self) {
        let hosts: Vec<_> = self.hosts.iter().map(|(name, _)| name.clone()).collect();
        hosts.iter().for_each(|name| self.forget(Kind::Host, name));
        let listeners: Vec<_> = self.listeners.iter().map(|(name, _)| name.clone()).collect();
        for name in listeners.iter().filter(|name| !self.is_bound(name)).collect::<Vec<_>>() {
            self.forget(Kind::Listener, name);
        }
        self.snapshot_changed |= self.on_demand.take().is_some();
    }

    /// Takes a resource of the bootstrap file, which nobody can change later.
    pub(super) fn fix(&mut self, kind: Kind, name: &str, body: &Any, now: Instant) -> Result<(), Rejected> {
        let source = Source::new(body.clone(), "");
        match kind {
            Kind::Cluster => {
                self.accept_cluster(name, source, now)?;
                self.clusters.fix(name);
            }
            _ => {
                self.accept_listener(name, source, now)?;
                self.listeners.fix(name);
            }
        }
        Ok(())
    }

    /// True where the bootstrap file holds a resource of that name, which therefore can't be changed.
    pub(super) fn is_fixed(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Cluster => self.clusters.get(name).is_some_and(|h| h.fixed),
            Kind::Listener => self.listeners.get(name).is_some_and(|h| h.fixed),
            _ => false,
        }
    }

    /// Takes a resource. `Err` names the field; what was in force stays.
    pub(super) fn accept(
        &mut self,
        kind: Kind,
        name: &str,
        source: Source,
        now: Instant,
    ) -> Result<(), Rejected> {
        if self.is_fixed(kind, name) {
            // As in Envoy: what the file says stays, and the control plane isn't told off for repeating it.
            tracing::debug!(name, kind = ?kind, "ignored: the bootstrap file holds it");
            return Ok(());
        }
        match kind {
            Kind::Cluster => self.accept_cluster(name, source, now),
            Kind::Assignment => self.accept_assignment(name, source),
            Kind::Routes => self.accept_routes(name, source, now),
            Kind::Secret => self.accept_secret(name, source),
            Kind::Listener => self.accept_listener(name, source, now),
            Kind::Host => self.accept_host(name, source, now),
        }?;
        self.absent.remove(&(kind, Arc::from(name)));
        Ok(())
    }

    fn accept_cluster(&mut self, name: &str, source: Source, now: Instant) -> Result<(), Rejected> {
        let hash = content_hash(&source.body);
        let Some(source) = self.clusters.unless_held(name, source, hash) else { return Ok(()) };
        let compiled = compile::cluster::compile(name, &source.body, &self.secret_handles)
            .map_err(|e| self.clusters.refuse(name, source.clone(), e))?;
        files::fill(&self.secret_handles);
        let before = self.clusters.active(name).map(|r| r.value.cluster.clone());
        let cluster = Cluster::new(compiled.spec.clone(), before.as_deref());
        match &compiled.spec.discovery {
            Discovery::Static => publish::set_inline_endpoints(&cluster, &compiled),
            Discovery::Eds(service) => {
                self.discovered.entry(service.clone()).or_default().insert(name.into());
            }
            _ => {}
        }
        let dns = self.resolver.as_ref().and_then(|resolver| discover(&cluster, resolver));
        let deadline = match self.on_demand {
            Some(_) => Some(now + ON_DEMAND_WARMING),
            None => compiled.fetch_timeout.map(|t| now + t),
        };
        let value = ClusterVersion { compiled, cluster, _dns: dns };
        self.clusters.warm(name, Revision { source, hash, value }, deadline);
        self.references_changed = true;
        Ok(())
    }

    fn accept_assignment(&mut self, name: &str, source: Source) -> Result<(), Rejected> {
        let hash = content_hash(&source.body);
        let Some(source) = self.assignments.unless_held(name, source, hash) else { return Ok(()) };
        let value = compile::endpoint::compile(name, &source.body)
            .map_err(|e| self.assignments.refuse(name, source.clone(), e))?;
        self.each_discovered_by(name, |cluster| publish::set_endpoints(cluster, &value));
        // Endpoints don't warm: what takes them decides.
        self.assignments.warm(name, Revision { source, hash, value }, None);
        self.assignments.activate(name);
        Ok(())
    }

    /// Calls `act` for every version of a cluster that takes its endpoints from `assignment`.
    fn each_discovered_by(&self, assignment: &str, act: impl Fn(&Cluster)) {
        for name in self.discovered.get(assignment).into_iter().flatten() {
            let versions = self.clusters.get(name).into_iter().flat_map(|held| held.revisions());
            for ClusterVersion { compiled, cluster, .. } in versions.map(|r| &r.value) {
                if matches!(&compiled.spec.discovery, Discovery::Eds(service) if **service == *assignment) {
                    act(cluster);
                }
            }
        }
    }

    fn accept_routes(&mut self, name: &str, source: Source, now: Instant) -> Result<(), Rejected> {
        let hash = content_hash(&source.body);
        let Some(source) = self.routes.unless_held(name, source, hash) else { return Ok(()) };
        let value = self
            .with_context(|context| compile::route::compile(name, &source.body, context))
            .map_err(|e| self.routes.refuse(name, source.clone(), e))?;
        self.routes.warm(name, Revision { source, hash, value }, Some(now + ON_DEMAND_WARMING));
        self.references_changed = true;
        Ok(())
    }

    /// Puts a certificate in force for new connections, or roots for all of them.
    fn accept_secret(&mut self, name: &str, source: Source) -> Result<(), Rejected> {
        let hash = content_hash(&source.body);
        let compiled = compile::tls::secret(name, &source.body);
        let source = Source { body: Any { value: Default::default(), ..source.body }, ..source };
        let Some(source) = self.secrets.unless_held(name, source, hash) else { return Ok(()) };
        let of_mesh = self.identified && name == ROOTS;
        let compiled = compiled.and_then(|secret| match secret {
            Secret::Certificate(_) if of_mesh => Err(Rejected {
                name: name.into(),
                field: "validation_context".into(),
                reason: "is needed: this name has the roots of the mesh".into(),
            }),
            secret => Ok(secret),
        });
        let secret = compiled.map_err(|e| self.secrets.refuse(name, source.clone(), e))?;
        match secret {
            Secret::Trust(roots) if of_mesh => {
                tracing::info!(roots = roots.roots().len(), "roots of the mesh in force");
                self.secret_handles.tell_roots(roots);
            }
            secret => self.secret_handles.handle(name).publish(secret),
        }
        // Connections that stand on what is gone now have to hear of it.
        self.snapshot.nudge();
        self.secrets.warm(name, Revision { source, hash, value: () }, None);
        self.secrets.activate(name);
        Ok(())
    }

    fn accept_listener(&mut self, name: &str, source: Source, now: Instant) -> Result<(), Rejected> {
        let hash = content_hash(&source.body);
        let Some(source) = self.listeners.unless_held(name, source, hash) else { return Ok(()) };
        let compiled = self
            .with_context(|context| compile::listener::compile(name, &source.body, context))
            .and_then(|compiled| self.address_is_free(compiled))
            .and_then(|compiled| self.open_socket(compiled))
            .map_err(|e| self.listeners.refuse(name, source.clone(), e))?;
        files::fill(&self.secret_handles);
        let timeouts = compiled.references.route_configs.iter().map(|r| r.fetch_timeout);
        let deadline = match self.on_demand {
            Some(_) => Some(now + ON_DEMAND_WARMING),
            None => timeouts.reduce(longest).flatten().map(|t| now + t),
        };
        let value = ListenerVersion { compiled, linked: None };
        self.listeners.warm(name, Revision { source, hash, value }, deadline);
        self.references_changed = true;
        Ok(())
    }

    /// Binds the port, so that a listener that can't have it is refused instead of being in force without a socket.
    fn open_socket(&self, compiled: CompiledListener) -> Result<CompiledListener, Rejected> {
        let listener = &compiled.listener;
        let Some(sockets) = self.sockets.as_ref().filter(|_| listener.bind_to_port) else {
            return Ok(compiled);
        };
        match sockets.open(listener) {
            Ok(_) => Ok(compiled),
            Err(error) => Err(Rejected {
                name: listener.name.to_string(),
                field: "address".into(),
                reason: format!("cannot bind {}: {}", error.address, error.reason),
            }),
        }
    }

    /// Two listeners can't have one address.
    fn address_is_free(&self, compiled: CompiledListener) -> Result<CompiledListener, Rejected> {
        let new = &compiled.listener;
        // On demand, a chain by SNI is a listener of its own with its parent's address.
        if new.address.port() == 0 || (self.on_demand.is_some() && !new.bind_to_port) {
            return Ok(compiled);
        }
        let shared = |other: &Listener| {
            let another = other.name != new.name && other.bind_to_port == new.bind_to_port;
            another.then(|| new.addresses().find(|own| other.addresses().any(|a| a == *own))).flatten()
        };
        let all = self.listeners.iter().flat_map(|(_, held)| held.revisions());
        let mut all = all.map(|r| &r.value.compiled.listener);
        match all.find_map(|other| shared(other).map(|address| (address, &other.name))) {
            None => Ok(compiled),
            Some((address, other)) => Err(Rejected {
                name: new.name.to_string(),
                field: "address".into(),
                reason: format!("{address} belongs to listener `{other}` already"),
            }),
        }
    }

    fn accept_host(&mut self, name: &str, source: Source, now: Instant) -> Result<(), Rejected> {
        let hash = content_hash(&source.body);
        let Some(source) = self.hosts.unless_held(name, source, hash) else { return Ok(()) };
        let compiled = self
            .with_context(|context| compile::route::compile_virtual_host(name, &source.body, context))
            .map_err(|e| self.hosts.refuse(name, source.clone(), e))?;
        let value = HostVersion { host: Some(compiled.host), references: compiled.references };
        self.hosts.warm(name, Revision { source, hash, value }, Some(now + ON_DEMAND_WARMING));
        self.references_changed = true;
        Ok(())
    }

    fn with_context<T>(&self, compile: impl FnOnce(Context<'_>) -> T) -> T {
        let cluster_exists = |name: &str| self.clusters.get(name).is_some_and(|h| h.newest().is_some());
        compile(Context {
            clusters: &self.handles,
            secrets: &self.secret_handles,
            on_demand: self.on_demand.as_deref(),
            counters: &self.counters,
            cluster_exists: &cluster_exists,
        })
    }

    /// Takes a resource away: the control plane says that it doesn't exist.
    pub(super) fn remove(&mut self, kind: Kind, name: &str) {
        if self.is_fixed(kind, name) {
            return;
        }
        if kind == Kind::Secret && self.identified && name == ROOTS {
            self.secret_handles.forget_told();
        }
        match kind {
            // Who serves with it goes on: connections that can't be made help nobody.
            Kind::Secret if self.secrets.get(name).is_some() => return,
            Kind::Cluster | Kind::Routes | Kind::Secret => {
                self.absent.insert((kind, name.into()));
            }
            // Who had endpoints keeps them, as in Envoy; who never had any now knows that there are none.
            Kind::Assignment => {
                self.absent.insert((kind, name.into()));
                self.each_discovered_by(name, publish::set_no_endpoints);
            }
            Kind::Host => {
                if let (Some(tables), Some((config, host))) = (&self.on_demand, naming::split_host_key(name))
                {
                    tables.hosts(config).publish(host, None);
                }
            }
            Kind::Listener => {
                if let Some(tables) = self.tables_wanting(name) {
                    tables.listeners().publish(name, None);
                }
            }
        }
        self.drop_held(kind, name);
    }

    /// The tables, if somebody asked for this listener by its name.
    pub(super) fn tables_wanting(&self, listener: &str) -> Option<&Arc<OnDemand>> {
        self.on_demand.as_ref().filter(|tables| tables.listeners().is_wanted(listener))
    }

    /// True for listeners that are sockets of their own, or come from the bootstrap file.
    pub(super) fn is_bound(&self, listener: &str) -> bool {
        self.listeners.get(listener).is_some_and(|held| {
            held.fixed || held.newest().is_some_and(|r| r.value.compiled.listener.bind_to_port)
        })
    }

    /// Forgets a resource that nobody wants any more.
    pub(super) fn forget(&mut self, kind: Kind, name: &str) {
        if !self.is_fixed(kind, name) {
            self.absent.remove(&(kind, Arc::from(name)));
            self.drop_held(kind, name);
        }
    }

    fn drop_held(&mut self, kind: Kind, name: &str) {
        let was_there = match kind {
            Kind::Cluster => self.drop_cluster(name),
            Kind::Assignment => self.assignments.remove(name).is_some(),
            Kind::Routes => {
                self.changed_routes.insert(name.into());
                self.routes.remove(name).is_some()
            }
            Kind::Secret => {
                self.secret_handles.forget(name);
                self.secrets.remove(name).is_some()
            }
            Kind::Listener => {
                let was_there = self.listeners.remove(name).is_some();
                self.snapshot_changed |= was_there;
                was_there
            }
            Kind::Host => self.hosts.remove(name).is_some(),
        };
        self.references_changed |= was_there;
    }

    fn drop_cluster(&mut self, name: &str) -> bool {
        if let Some(handle) = self.handles.get(name) {
            handle.remove();
        }
        let Some(held) = self.clusters.remove(name) else { return false };
        for revision in held.revisions() {
            if let Discovery::Eds(service) = &revision.value.compiled.spec.discovery
                && let Some(names) = self.discovered.get_mut(service)
            {
                names.remove(name);
                if names.is_empty() {
                    self.discovered.remove(service);
                }
            }
        }
        true
    }

    /// True where nothing waits for anything.
    pub(super) fn is_settled(&self) -> bool {
        self.clusters.is_settled()
            && self.routes.is_settled()
            && self.listeners.is_settled()
            && self.hosts.is_settled()
    }

    /// True where the newest accepted version of a resource isn't in force.
    pub(super) fn is_warming(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Cluster => self.clusters.get(name).is_some_and(|h| h.warming.is_some()),
            Kind::Assignment | Kind::Secret => false,
            Kind::Routes => self.routes.get(name).is_some_and(|h| h.warming.is_some()),
            Kind::Listener => self.listeners.get(name).is_some_and(|h| h.warming.is_some()),
            Kind::Host => self.hosts.get(name).is_some_and(|h| h.warming.is_some()),
        }
    }

    #[cfg(test)]
    pub(super) fn discovered_is_empty(&self) -> bool {
        self.discovered.is_empty()
    }

    /// Names that must be subscribed to because something held refers to them.
    pub(super) fn referred(&self, kind: Kind) -> HashSet<Arc<str>> {
        match kind {
            Kind::Assignment => {
                let versions = self.clusters.iter().flat_map(|(_, held)| held.revisions());
                let service = |version: &ClusterVersion| match &version.compiled.spec.discovery {
                    Discovery::Eds(service) => Some(service.clone()),
                    _ => None,
                };
                versions.filter_map(|r| service(&r.value)).collect()
            }
            Kind::Routes => {
                let versions = self.listeners.iter().flat_map(|(_, held)| held.revisions());
                let named = versions.flat_map(|r| &r.value.compiled.references.route_configs);
                named.map(|r| r.name.clone()).collect()
            }
            Kind::Secret => {
                let listeners = self.listeners.iter().flat_map(|(_, held)| held.revisions());
                let of_listeners = listeners.flat_map(|r| &r.value.compiled.references.secrets);
                let clusters = self.clusters.iter().flat_map(|(_, held)| held.revisions());
                let of_clusters = clusters.flat_map(|r| r.value.compiled.spec.transport.secrets());
                let named = of_listeners.chain(of_clusters).cloned();
                named.chain(self.identified.then(|| ROOTS.into())).collect()
            }
            // Who holds a handle, also a request that still runs on an old route, keeps the cluster.
            Kind::Cluster => self.handles.in_use().into_iter().filter(|n| !self.is_fixed(kind, n)).collect(),
            Kind::Listener | Kind::Host => HashSet::new(),
        }
    }
}

/// `None` is for ever.
fn longest(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    Some(a?.max(b?))
}
