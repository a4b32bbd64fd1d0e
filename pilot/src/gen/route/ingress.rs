//! Virtual hosts of the Ingresses that a gateway serves.

use osier_proto::types::route::{
    DirectResponseAction, Route, RouteAction, RouteMatch, VirtualHost, route::Action,
    route_action::ClusterSpecifier, route_match::PathSpecifier,
};

use super::{everything, rule};
use crate::r#gen::scope::Scope;
use crate::r#gen::wire;
use crate::model::{Destination, PathRule};
use crate::snapshot::{HostPath, IngressHost};

/// Every virtual host on a port; `None` where the client serves none.
pub(super) fn virtual_hosts(scope: &Scope<'_>, port: u16) -> Option<Vec<VirtualHost>> {
    let ingresses = &scope.snapshot.ingresses;
    if !ingresses.served_by(&scope.view().proxy) {
        return None;
    }
    Some(ingresses.hosts().iter().map(|host| virtual_host(scope, host, port)).collect())
}

fn virtual_host(scope: &Scope<'_>, IngressHost { host, paths }: &IngressHost, port: u16) -> VirtualHost {
    let domain = host.as_ref().map_or("*", |host| host.as_str());
    VirtualHost {
        name: format!("{domain}:{port}"),
        domains: vec![domain.to_string()],
        routes: paths.iter().map(|path| route(scope, path)).collect(),
        include_request_attempt_count: true,
        ..Default::default()
    }
}

fn route(scope: &Scope<'_>, path: &HostPath) -> Route {
    let (namespace, name) = (&path.ingress.namespace, &path.ingress.name);
    Route {
        name: format!("{namespace}/{name}"),
        r#match: Some(condition(&path.matches)),
        action: Some(match scope.snapshot.ingress_backend(namespace, &path.backend) {
            Ok((host, port)) => {
                let destination = Destination { host, subset: None, port: Some(port) };
                let cluster = scope.cluster_of(&destination, port);
                let mut action = RouteAction {
                    cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
                    ..Default::default()
                };
                rule::times_and_retries(scope, &mut action, None);
                Action::Route(action)
            }
            // Said as a warning of the Ingress; whoever asks from outside needs not know more.
            Err(_) => Action::DirectResponse(DirectResponseAction { status: 503, body: None }),
        }),
        metadata: Some(wire::istio_metadata([(
            "config",
            wire::config_path("networking.k8s.io/v1", "ingress", namespace, name),
        )])),
        ..Default::default()
    }
}

fn condition(rule: &PathRule) -> RouteMatch {
    let path = match rule {
        PathRule::Exact(path) => PathSpecifier::Path(path.to_string()),
        PathRule::Below(path) if path.is_empty() => return everything(),
        PathRule::Below(path) => PathSpecifier::PathSeparatedPrefix(path.to_string()),
        PathRule::Beginning(path) => PathSpecifier::Prefix(path.to_string()),
    };
    RouteMatch { path_specifier: Some(path), ..Default::default() }
}
