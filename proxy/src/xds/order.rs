//! The order in which things come into force: clusters, then routes and certificates, then listeners, then virtual hosts.
//!
//! A version is ready when what it needs is there: a cluster needs its first endpoints and an answer for its certificates, a listener an answer for its route tables and certificates, and on
//! demand everything needs an answer for each cluster that it names. One that isn't ready waits until its time is up; the version
//! before serves meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;

use osier_core::on_demand as naming;
use tokio::time::Instant;

use super::held::{Held, Kind};
use super::publish;
use super::state::{ClusterVersion, HostVersion, ListenerVersion, State};
use crate::compile::route::CompiledRoutes;
use crate::config::cluster::Discovery;
use crate::config::snapshot::Snapshot;

impl State {
    /// Puts in force what is ready, in order. Returns when to look again.
    pub(super) fn settle(&mut self, now: Instant) -> Option<Instant> {
        self.settle_clusters(now);
        self.settle_routes(now);
        self.settle_listeners(now);
        self.settle_hosts(now);
        self.publish_snapshot();
        self.next_deadline()
    }

    fn settle_clusters(&mut self, now: Instant) {
        let ready = |_: &Held<ClusterVersion>, version: &ClusterVersion| {
            let spec = &version.compiled.spec;
            let endpoints = match &spec.discovery {
                Discovery::Eds(service) => {
                    version.cluster.endpoints.load().known
                        || self.assignments.active(service).is_some()
                        || self.absent.contains(&(Kind::Assignment, service.clone()))
                }
                _ => true,
            };
            endpoints && spec.transport.secrets().all(|name| self.secret_is_answered(name))
        };
        for name in self.clusters.due(now, ready) {
            let Some(revision) = self.clusters.activate(&name) else { continue };
            let version = &revision.value;
            if let Discovery::Eds(service) = &version.compiled.spec.discovery {
                match self.assignments.active(service) {
                    Some(assignment) => publish::set_endpoints(&version.cluster, &assignment.value),
                    None => publish::set_no_endpoints(&version.cluster),
                }
            }
            self.handles.handle(&name).publish(version.cluster.clone());
        }
    }

    fn settle_routes(&mut self, now: Instant) {
        let ready = |_: &Held<_>, routes: &CompiledRoutes| self.are_answered(&routes.references.clusters);
        for name in self.routes.due(now, ready) {
            self.routes.activate(&name);
            self.changed_routes.insert(name);
            // What only the version before named is no longer needed.
            self.references_changed = true;
        }
    }

    fn settle_listeners(&mut self, now: Instant) {
        self.relink();
        let ready = |held: &Held<_>, version: &ListenerVersion| {
            let references = &version.compiled.references;
            let table_is_there = |name: &Arc<str>| {
                self.routes.active(name).is_some() || self.absent.contains(&(Kind::Routes, name.clone()))
            };
            (held.fixed || !self.hold_listeners)
                && references.route_configs.iter().all(|r| table_is_there(&r.name))
                && references.secrets.iter().all(|name| self.secret_is_answered(name))
                && self.are_answered(&references.clusters)
        };
        for name in self.listeners.due(now, ready) {
            self.listeners.activate(&name);
            self.link(&name);
            self.references_changed = true;
        }
    }

    /// Links listeners anew whose route tables changed.
    fn relink(&mut self) {
        let changed = std::mem::take(&mut self.changed_routes);
        if changed.is_empty() {
            return;
        }
        let uses = |held: &Held<ListenerVersion>| {
            held.active.as_ref().is_some_and(|revision| {
                let names = &revision.value.compiled.references.route_configs;
                names.iter().any(|r| changed.contains(&r.name))
            })
        };
        let names = self.listeners.iter().filter(|(_, held)| uses(held)).map(|(name, _)| name.clone());
        names.collect::<Vec<_>>().iter().for_each(|name| self.link(name));
    }

    /// Links a listener with the tables in force and publishes it: one that is a socket, and every one of a control plane that sends
    /// everything, in the snapshot; one that was asked for by name in its table.
    pub(super) fn link(&mut self, name: &Arc<str>) {
        let table = |name: &str| self.routes.active(name).map(|r| r.value.table.clone());
        let Some(active) = self.listeners.active(name) else { return };
        let linked = Arc::new(publish::link(&active.value.compiled.listener, &table));
        if let Some(tables) = self.tables_wanting(name) {
            tables.listeners().publish(name, Some(linked.clone()));
        }
        if self.belongs_into_snapshot(name) {
            self.snapshot_changed = true;
            if let Some(active) = self.listeners.active_mut(name) {
                active.value.linked = Some(linked);
            }
        }
    }

    fn belongs_into_snapshot(&self, listener: &str) -> bool {
        self.on_demand.is_none() || self.is_bound(listener)
    }

    fn settle_hosts(&mut self, now: Instant) {
        let ready = |_: &Held<_>, host: &HostVersion| self.are_answered(&host.references.clusters);
        for name in self.hosts.due(now, ready) {
            self.references_changed = true;
            let Some(host) = self.hosts.activate(&name).and_then(|active| active.value.host.take()) else {
                continue;
            };
            if let (Some(tables), Some((config, key))) = (&self.on_demand, naming::split_host_key(&name)) {
                tables.hosts(config).publish(key, Some(host));
            }
        }
    }

    /// On demand: true where each cluster is in force, or known not to be there.
    fn are_answered(&self, clusters: &BTreeSet<Arc<str>>) -> bool {
        self.on_demand.is_none() || clusters.iter().all(|name| self.is_answered(name))
    }

    fn secret_is_answered(&self, name: &Arc<str>) -> bool {
        self.secrets.get(name).is_some() || self.absent.contains(&(Kind::Secret, name.clone()))
    }

    fn is_answered(&self, cluster: &Arc<str>) -> bool {
        match self.clusters.get(cluster) {
            Some(held) => held.active.is_some() || (held.warming.is_none() && held.refused.is_some()),
            None => self.absent.contains(&(Kind::Cluster, cluster.clone())),
        }
    }

    fn publish_snapshot(&mut self) {
        if !std::mem::take(&mut self.snapshot_changed) {
            return;
        }
        let listeners = self.listeners.iter().filter(|(name, _)| self.belongs_into_snapshot(name));
        let linked = listeners.filter_map(|(_, held)| held.active.as_ref()?.value.linked.clone());
        let mut snapshot = Snapshot::new(linked);
        snapshot.on_demand = self.on_demand.as_ref().map(|tables| tables.listeners().clone());
        self.snapshot.publish(snapshot);
    }

    fn next_deadline(&self) -> Option<Instant> {
        [self.clusters.deadline(), self.routes.deadline(), self.listeners.deadline(), self.hosts.deadline()]
            .into_iter()
            .flatten()
            .min()
    }
}
