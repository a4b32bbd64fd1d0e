//! What a resource is made from besides the snapshot: its type, its name, and the client's view of the mesh.
//!
//! The key is the generator's only other input *and* the key of the cache, so that nothing of one client can leak into what
//! another one gets. [`View::reduced`] cuts a view down to what a type depends on; that decides how much is shared.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{Interception, ProxyKind, ProxyView};

/// Types of resources that we make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS.
    Routes,
    /// VHDS.
    VirtualHost,
}

impl ResourceType {
    /// All types, in the order of a push: make before break.
    pub const ALL: [ResourceType; 5] = [
        ResourceType::Cluster,
        ResourceType::Endpoints,
        ResourceType::Listener,
        ResourceType::Routes,
        ResourceType::VirtualHost,
    ];

    /// Its type URL.
    pub fn url(self) -> &'static str {
        use osier_proto::types;
        match self {
            Self::Cluster => types::CLUSTER,
            Self::Endpoints => types::CLUSTER_LOAD_ASSIGNMENT,
            Self::Listener => types::LISTENER,
            Self::Routes => types::ROUTE_CONFIGURATION,
            Self::VirtualHost => types::VIRTUAL_HOST,
        }
    }

    /// The type of a URL; `None` for what we don't make.
    pub fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.url() == url)
    }
}

/// Which resource, for which view of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// What it is.
    pub kind: ResourceType,
    /// Its name on the wire.
    pub name: Arc<str>,
    /// Who sees it.
    pub view: Arc<View>,
}

/// A client, as far as resources may depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct View {
    /// The client as the model sees it.
    pub proxy: ProxyView,
    /// Osier's proxy, and the schema that it declares; `None` for everybody else.
    pub schema: Option<u32>,
    /// HTTP/1.0 is served.
    pub http10: bool,
    /// It has an IPv6 address.
    pub ipv6: bool,
    /// Where applications find their explicit proxy (interception mode NONE).
    pub explicit_proxy: Option<SocketAddr>,
    /// Port of the application on 127.0.0.1, where the workload registered itself with one.
    pub app_port: Option<u16>,
}

/// What of clients the mesh's rules look at at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sensitivity {
    /// Names of labels in conditions on clients.
    pub labels: BTreeSet<String>,
    /// Some service is local to nodes.
    pub node: bool,
}

impl View {
    /// True for a gRPC library.
    pub fn is_grpc(&self) -> bool {
        self.proxy.kind == ProxyKind::Grpc
    }

    /// True where the client asks for virtual hosts and listeners one by one.
    pub fn is_on_demand(&self) -> bool {
        self.proxy.kind == ProxyKind::OnDemand
    }

    /// This view with nothing in it that resources of the type don't depend on.
    pub fn reduced(&self, kind: ResourceType, sensitivity: &Sensitivity) -> View {
        if kind == ResourceType::Listener {
            return self.clone();
        }
        let seen = |(name, _): &(&String, &String)| sensitivity.labels.contains(*name);
        let labels = self.proxy.labels.iter().filter(seen).map(|(n, v)| (n.clone(), v.clone())).collect();
        let routes = matches!(kind, ResourceType::Routes | ResourceType::VirtualHost);
        let proxy_kind = match self.proxy.kind {
            // Whether virtual hosts come one by one shows only in routes.
            ProxyKind::OnDemand if !routes => ProxyKind::Envoy,
            other => other,
        };
        let interception = match (kind, self.proxy.interception) {
            // Where nothing is captured no cluster can go to the original destination.
            (ResourceType::Cluster, Interception::None) => Interception::None,
            _ => Interception::default(),
        };
        let node = if sensitivity.node && kind == ResourceType::Endpoints {
            self.proxy.node.clone()
        } else {
            "".into()
        };
        View {
            proxy: ProxyView {
                kind: proxy_kind,
                namespace: self.proxy.namespace.clone(),
                name: "".into(),
                labels,
                addresses: Box::default(),
                interception,
                node,
            },
            schema: self.schema,
            http10: false,
            ipv6: self.ipv6,
            explicit_proxy: None,
            app_port: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A sidecar with captured traffic, behind a stock Envoy.
    pub(crate) fn view<const N: usize>(namespace: &str, labels: [(&str, &str); N]) -> View {
        View {
            proxy: ProxyView {
                kind: ProxyKind::Envoy,
                namespace: namespace.into(),
                name: "client".into(),
                labels: labels.into(),
                addresses: ["10.9.0.1".parse().unwrap()].into(),
                interception: Interception::Redirect,
                node: "node-1".into(),
            },
            schema: None,
            http10: false,
            ipv6: false,
            explicit_proxy: None,
            app_port: None,
        }
    }

    #[test]
    fn clients_of_one_namespace_share_what_does_not_depend_on_them() {
        let mut one = view("default", [("app", "a"), ("version", "1")]);
        let mut two = view("default", [("app", "b"), ("version", "1")]);
        one.proxy.addresses = ["10.9.0.2".parse().unwrap()].into();
        two.proxy.name = "other".into();
        let none = Sensitivity::default();
        for kind in [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Routes] {
            assert_eq!(one.reduced(kind, &none), two.reduced(kind, &none), "{kind:?}");
        }
        assert_ne!(one.reduced(ResourceType::Listener, &none), two.reduced(ResourceType::Listener, &none));
        let by_app = Sensitivity { labels: ["app".to_string()].into(), node: false };
        assert_ne!(one.reduced(ResourceType::Routes, &by_app), two.reduced(ResourceType::Routes, &by_app));
        let by_version = Sensitivity { labels: ["version".to_string()].into(), node: false };
        assert_eq!(
            one.reduced(ResourceType::Routes, &by_version),
            two.reduced(ResourceType::Routes, &by_version)
        );
    }

    #[test]
    fn nodes_matter_only_to_endpoints_and_only_where_a_service_is_local() {
        let one = view("default", []);
        let mut two = one.clone();
        two.proxy.node = "node-2".into();
        let local = Sensitivity { node: true, ..Default::default() };
        assert_ne!(
            one.reduced(ResourceType::Endpoints, &local),
            two.reduced(ResourceType::Endpoints, &local)
        );
        assert_eq!(one.reduced(ResourceType::Cluster, &local), two.reduced(ResourceType::Cluster, &local));
        let none = Sensitivity::default();
        assert_eq!(one.reduced(ResourceType::Endpoints, &none), two.reduced(ResourceType::Endpoints, &none));
    }

    #[test]
    fn urls() {
        for kind in ResourceType::ALL {
            assert_eq!(ResourceType::of_url(kind.url()), Some(kind));
        }
        assert_eq!(ResourceType::of_url("type.googleapis.com/x"), None);
    }
}
