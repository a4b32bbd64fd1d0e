//! From compiled resources to what the request path reads: endpoint sets, linked listeners, the snapshot.

use std::sync::Arc;

use crate::compile::cluster::CompiledCluster;
use crate::compile::endpoint::Assignment;
use crate::config::cluster::Cluster;
use crate::config::endpoint::{EndpointSet, EndpointSpec, SetSettings};
use crate::config::listener::{FilterChain, HttpManager, Listener, NetworkAction};
use crate::config::route::RouteTable;

/// Gives a cluster the endpoints of an assignment; equal content changes nothing.
pub(super) fn set_endpoints(cluster: &Cluster, assignment: &Assignment) {
    let now = cluster.endpoints.load();
    if now.known && now.hash == assignment.hash {
        return;
    }
    let settings = SetSettings {
        overprovisioning: assignment.overprovisioning,
        ..cluster.spec.set_settings(assignment.hash)
    };
    let set = EndpointSet::build(assignment.endpoints.iter().cloned(), &cluster.live, settings);
    cluster.set_endpoints(Arc::new(set));
}

/// Gives a cluster that nobody knows endpoints for an empty set: requests are answered (UH) instead of waiting.
pub(super) fn set_no_endpoints(cluster: &Cluster) {
    if !cluster.endpoints.load().known {
        let nobody = std::iter::empty::<(std::net::SocketAddr, EndpointSpec)>();
        let set = EndpointSet::build(nobody, &cluster.live, cluster.spec.set_settings(0));
        cluster.set_endpoints(Arc::new(set));
    }
}

/// Gives a STATIC cluster the endpoints that came with it.
pub(super) fn set_inline_endpoints(cluster: &Cluster, compiled: &CompiledCluster) {
    let settings = SetSettings {
        overprovisioning: compiled.overprovisioning,
        ..cluster.spec.set_settings(cluster.spec.hash)
    };
    let set = EndpointSet::build(compiled.endpoints.iter().cloned(), &cluster.live, settings);
    cluster.set_endpoints(Arc::new(set));
}

/// The listener with its RDS tables linked; what needs no table is shared.
pub(super) fn link(listener: &Listener, tables: &dyn Fn(&str) -> Option<Arc<RouteTable>>) -> Listener {
    let chain = |chain: &Arc<FilterChain>| link_chain(chain, tables);
    Listener {
        name: listener.name.clone(),
        chains: listener.chains.iter().map(chain).collect(),
        matcher: listener.matcher.clone(),
        default_chain: listener.default_chain.as_ref().map(chain),
        inspect: listener.inspect.clone(),
        access_log: listener.access_log.clone(),
        tls_uninspected: listener.tls_uninspected.clone(),
        http_uninspected: listener.http_uninspected.clone(),
        ..*listener
    }
}

fn link_chain(
    chain: &Arc<FilterChain>,
    tables: &dyn Fn(&str) -> Option<Arc<RouteTable>>,
) -> Arc<FilterChain> {
    match &chain.action {
        NetworkAction::Http(manager) => match &manager.route_config_name {
            Some(name) => {
                let manager = HttpManager { routes: tables(name), ..HttpManager::clone(manager) };
                Arc::new(FilterChain {
                    name: chain.name.clone(),
                    matches: chain.matches.clone(),
                    transport: chain.transport.clone(),
                    action: NetworkAction::Http(Arc::new(manager)),
                })
            }
            None => chain.clone(),
        },
        NetworkAction::Tcp(_) => chain.clone(),
    }
}
