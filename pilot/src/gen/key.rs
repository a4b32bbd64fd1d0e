//! What a resource is made from besides the snapshot: its type, its name, and the client's view of the mesh.
//!
//! The key is the generator's only other input *and* the key of the cache, so that nothing of one client can leak into what
//! another one gets. [`Views`] cuts a view down to what a resource depends on; that decides how much is shared.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use osier_core::on_demand::ListenerName;

use crate::r#gen::name::{OutboundName, OutsideName};
use crate::model::{Interception, ProxyKind, ProxyView};

/// Types of resources that we make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// SDS.
    Secret,
    /// LDS.
    Listener,
    /// RDS.
    Routes,
    /// VHDS.
    VirtualHost,
    /// NDS.
    NameTable,
}

impl ResourceType {
    /// All types, in the order of a push: make before break.
    pub const ALL: [ResourceType; 7] = [
        ResourceType::Cluster,
        ResourceType::Endpoints,
        ResourceType::Secret,
        ResourceType::Listener,
        ResourceType::Routes,
        ResourceType::VirtualHost,
        ResourceType::NameTable,
    ];

    /// Its type URL.
    pub fn url(self) -> &'static str {
        use osier_proto::types;
        match self {
            Self::Cluster => types::CLUSTER,
            Self::Endpoints => types::CLUSTER_LOAD_ASSIGNMENT,
            Self::Secret => types::SECRET,
            Self::Listener => types::LISTENER,
            Self::Routes => types::ROUTE_CONFIGURATION,
            Self::VirtualHost => types::VIRTUAL_HOST,
            Self::NameTable => types::NAME_TABLE,
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
    /// What it may have of Secrets: it has proved where it lives, and nobody listens.
    pub secrets_of: Option<SecretsOf>,
    /// HTTP/1.0 is served.
    pub http10: bool,
    /// It has an IPv6 address.
    pub ipv6: bool,
    /// Where applications find their explicit proxy (interception mode NONE).
    pub explicit_proxy: Option<SocketAddr>,
    /// Port of the application on 127.0.0.1, where the workload registered itself with one.
    pub app_port: Option<u16>,
}

/// What a client may have of Secrets: roots, and certificates with keys where its service account may read Secrets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretsOf {
    /// Where it lives: of no other namespace's.
    pub namespace: Arc<str>,
    /// Keys, too.
    pub keys: bool,
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

    /// This view with nothing in it that resources of the type don't depend on. Of listeners only those are meant that are made
    /// for connections to others; a workload's own depend on all of it.
    fn reduced(&self, kind: ResourceType, sensitivity: &Sensitivity) -> View {
        let seen = |(name, _): &(&String, &String)| sensitivity.labels.contains(*name);
        let labels = self.proxy.labels.iter().filter(seen).map(|(n, v)| (n.clone(), v.clone())).collect();
        let listener = kind == ResourceType::Listener;
        let one_by_one = matches!(kind, ResourceType::Routes | ResourceType::VirtualHost) || listener;
        let proxy_kind = match self.proxy.kind {
            // Clusters and endpoints are the same however they were asked for.
            ProxyKind::OnDemand if !one_by_one => ProxyKind::Envoy,
            other => other,
        };
        let interception = match (kind, self.proxy.interception) {
            // Where nothing is captured no cluster can go to the original destination, and other listeners are bound.
            (ResourceType::Cluster | ResourceType::Listener, Interception::None) => Interception::None,
            _ => Interception::default(),
        };
        // Automatic addresses: who finds them by DNS meets them as destinations.
        let by_address = listener || kind == ResourceType::NameTable;
        let local = sensitivity.node && kind == ResourceType::Endpoints;
        View {
            proxy: ProxyView {
                kind: proxy_kind,
                gateway: one_by_one && self.proxy.gateway,
                mutual_tls: kind == ResourceType::Cluster && self.proxy.mutual_tls,
                namespace: self.proxy.namespace.clone(),
                name: "".into(),
                labels,
                addresses: if by_address { self.families() } else { Box::default() },
                interception,
                dns_capture: by_address && self.proxy.dns_capture,
                node: if local { self.proxy.node.clone() } else { "".into() },
            },
            schema: self.schema,
            secrets_of: None,
            http10: listener && self.http10,
            ipv6: self.ipv6,
            explicit_proxy: None,
            app_port: None,
        }
    }

    /// Of the addresses only their families.
    fn families(&self) -> Box<[IpAddr]> {
        let own = &self.proxy.addresses;
        let v4 = own.iter().any(IpAddr::is_ipv4).then_some(Ipv4Addr::UNSPECIFIED.into());
        let v6 = own.iter().any(IpAddr::is_ipv6).then_some(Ipv6Addr::UNSPECIFIED.into());
        v4.into_iter().chain(v6).collect()
    }
}

/// The views of one client: whole, and cut down for each type.
#[derive(Debug)]
pub struct Views {
    whole: Arc<View>,
    reduced: [Arc<View>; ResourceType::ALL.len()],
}

impl Views {
    /// The views of a client, under rules that look at so much of it.
    pub fn new(whole: Arc<View>, sensitivity: &Sensitivity) -> Self {
        let reduced = ResourceType::ALL.map(|kind| Arc::new(whole.reduced(kind, sensitivity)));
        Self { whole, reduced }
    }

    /// Everything about the client.
    pub fn whole(&self) -> &Arc<View> {
        &self.whole
    }

    /// What a resource may depend on.
    pub fn of(&self, kind: ResourceType, name: &str) -> &Arc<View> {
        let own = match kind {
            ResourceType::Secret => true,
            // Their labels say what they serve.
            ResourceType::Listener | ResourceType::Routes if self.whole.proxy.gateway => true,
            ResourceType::Cluster => {
                OutboundName::parse(name).is_none() && OutsideName::parse(name).is_none()
            }
            ResourceType::Listener => match ListenerName::parse(name) {
                ListenerName::Address(address) | ListenerName::ServerName(address, _) => {
                    self.whole.proxy.addresses.contains(&address.ip())
                        || self.whole.explicit_proxy == Some(address)
                }
                ListenerName::Host(..) => false,
                ListenerName::Named(_) => true,
            },
            ResourceType::Endpoints
            | ResourceType::Routes
            | ResourceType::VirtualHost
            | ResourceType::NameTable => false,
        };
        if own { &self.whole } else { &self.reduced[kind as usize] }
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
                gateway: false,
                mutual_tls: false,
                namespace: namespace.into(),
                name: "client".into(),
                labels: labels.into(),
                addresses: ["10.9.0.1".parse().unwrap()].into(),
                interception: Interception::Redirect,
                dns_capture: false,
                node: "node-1".into(),
            },
            schema: None,
            secrets_of: None,
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
        let views = [&one, &two].map(|view| Views::new(Arc::new(view.clone()), &none));
        for (kind, name, shared) in [
            (ResourceType::Cluster, "outbound|80||a", true),
            (ResourceType::Cluster, "passthrough|80||a", true),
            (ResourceType::Cluster, "inbound|80||", false),
            (ResourceType::Endpoints, "outbound|80||a", true),
            (ResourceType::Routes, "80", true),
            (ResourceType::Listener, "0.0.0.0_80", true),
            (ResourceType::Listener, "10.96.0.1_80", true),
            (ResourceType::Listener, "redis_6379", true),
            (ResourceType::Listener, "10.9.0.1_80", false),
            (ResourceType::Listener, "virtualInbound", false),
        ] {
            assert_eq!(views[0].of(kind, name) == views[1].of(kind, name), shared, "{kind:?} {name}");
        }
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
