//! Generators: pure functions from a [`Key`] and a snapshot to a resource, with istiod's names and contents.
//!
//! No generator does I/O, keeps anything, or looks at a client beyond the key's view. Nothing is emitted that a client's
//! announced schema does not declare: our whole output is of schema version 1, and what only Osier's proxy knows (a filter or
//! two) goes only to clients that announce a schema.

pub mod cluster;
pub mod endpoint;
#[cfg(test)]
pub(crate) mod fixture;
pub mod key;
pub mod listener;
pub mod name;
pub mod names;
pub mod route;
pub mod scope;
pub mod secret;
#[cfg(test)]
mod tests;
pub mod tls;
mod transport;
pub mod wire;

use std::sync::Arc;

use osier_core::on_demand;
use osier_proto::types::http_connection_manager::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use osier_proto::types::listener::{Listener, filter::ConfigType};
use osier_proto::types::tcp_proxy::{TcpProxy, tcp_proxy::ClusterSpecifier};
use osier_proto::xds::Resource;

use crate::snapshot::MeshSnapshot;
use key::{Key, ResourceType, Sensitivity, View};
use route::{ConfigName, Plan};
use scope::Scope;

/// A resource, and what it refers to.
#[derive(Debug, Clone)]
pub struct Generated {
    /// In the form in which it is sent.
    pub resource: Resource,
    /// Clusters that it names.
    pub clusters: Arc<[String]>,
    /// Route configurations that it names.
    pub routes: Arc<[String]>,
}

/// Makes a resource; `None` where the client has none of that name. `plan` gives the plan of a route configuration, which is
/// worth keeping: one configuration has many virtual hosts.
pub fn generate(
    key: &Key,
    snapshot: &MeshSnapshot,
    plan: impl FnOnce(&ConfigName) -> Option<Arc<Plan>>,
) -> Option<Generated> {
    let scope = Scope::new(snapshot, &key.view);
    let name = key.name.clone();
    let plain = |resource| Generated { resource, clusters: Arc::new([]), routes: Arc::new([]) };
    Some(match key.kind {
        ResourceType::Cluster => plain(Resource::new(name.clone(), &cluster::generate(&scope, &name)?)),
        ResourceType::Endpoints => plain(Resource::new(name.clone(), &endpoint::generate(&scope, &name)?)),
        ResourceType::Routes => plain(Resource::new(name.clone(), &route::generate(&scope, &name)?)),
        ResourceType::Secret => plain(Resource::new(name.clone(), &secret::generate(&scope, &name)?)),
        ResourceType::Listener => {
            let listener = listener::generate(&scope, &name)?;
            let (clusters, routes) = references(&listener);
            Generated {
                resource: Resource::new(name, &listener),
                clusters: clusters.into(),
                routes: routes.into(),
            }
        }
        ResourceType::NameTable => plain(Resource::new(name.clone(), &names::generate(&scope, &name)?)),
        ResourceType::VirtualHost => {
            let (config, host) = on_demand::split_host_key(&name)?;
            let config = ConfigName::parse(config)?;
            let plan = plan(&config)?;
            let made = route::for_host(&scope, &plan, host)?;
            let clusters = route::clusters_of(&made);
            Generated {
                resource: Resource::new(name, &made),
                clusters: clusters.into(),
                routes: Arc::new([]),
            }
        }
    })
}

/// Names of all resources of a type that a client with a wildcard gets. Types without wildcards have none.
pub fn names(kind: ResourceType, view: &View, snapshot: &MeshSnapshot) -> Vec<String> {
    let scope = Scope::new(snapshot, view);
    match kind {
        ResourceType::Cluster => cluster::names(&scope),
        ResourceType::Listener => listener::names(&scope),
        ResourceType::NameTable => names::names(&scope),
        ResourceType::Endpoints | ResourceType::Secret | ResourceType::Routes | ResourceType::VirtualHost => {
            Vec::new()
        }
    }
}

/// What of clients the rules of a snapshot look at.
pub fn sensitivity(snapshot: &MeshSnapshot) -> Sensitivity {
    let mut found = Sensitivity::default();
    for rule in snapshot.routes.iter() {
        let http = rule.http.iter().flat_map(|r| &r.matches).map(|m| &m.source_labels);
        let tls = rule.tls.iter().flat_map(|r| &r.matches).map(|m| &m.l4.source_labels);
        let tcp = rule.tcp.iter().flat_map(|r| &r.matches).map(|m| &m.source_labels);
        for labels in http.chain(tls).chain(tcp) {
            found.labels.extend(labels.iter().map(|(name, _)| name.clone()));
        }
    }
    for policy in snapshot.policies.iter() {
        let selected = policy.selector.iter().flat_map(|s| s.iter());
        found.labels.extend(selected.map(|(name, _)| name.clone()));
    }
    found.node = snapshot.services.iter().any(|s| s.node_local);
    found
}

/// Clusters and route configurations that a listener names.
fn references(listener: &Listener) -> (Vec<String>, Vec<String>) {
    let (mut clusters, mut routes) = (Vec::new(), Vec::new());
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    for filter in chains.flat_map(|c| &c.filters) {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
        if let Ok(tcp) = any.unpack::<TcpProxy>() {
            match tcp.cluster_specifier {
                Some(ClusterSpecifier::Cluster(name)) => clusters.push(name),
                Some(ClusterSpecifier::WeightedClusters(w)) => {
                    clusters.extend(w.clusters.into_iter().map(|c| c.name));
                }
                None => {}
            }
        } else if let Ok(http) = any.unpack::<HttpConnectionManager>() {
            match http.route_specifier {
                Some(RouteSpecifier::Rds(rds)) => routes.push(rds.route_config_name),
                Some(RouteSpecifier::RouteConfig(inline)) => {
                    clusters.extend(inline.virtual_hosts.iter().flat_map(route::clusters_of));
                }
                None => {}
            }
        }
    }
    for list in [&mut clusters, &mut routes] {
        list.sort();
        list.dedup();
    }
    (clusters, routes)
}
