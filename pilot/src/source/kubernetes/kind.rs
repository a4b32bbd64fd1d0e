//! What is watched.

use kube::api::{ApiResource, GroupVersionKind};

use super::{Scope, named};

/// Which namespaces of a kind are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Where {
    /// All of them, or a kind without namespaces.
    Everywhere,
    /// One object.
    Object {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// What an object of a kind is to the collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The mesh configuration; of two that are there, the one that is watched first holds.
    MeshConfig,
    /// Says which namespaces there are, and which labels they have.
    Namespace,
    /// Belongs to a namespace, and counts if that one does.
    Workload,
    /// The same, and may be meant for another revision.
    Configuration,
    /// Belongs to the cluster.
    Cluster,
}

/// One kind that is watched.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Its versions, the preferred one first.
    pub versions: Vec<ApiResource>,
    /// Where.
    pub place: Where,
    /// What it is for.
    pub role: Role,
}

/// Names of the mesh configuration, the preferred one first. Istio's is read by those who move from it.
const MESH_CONFIG: [&str; 2] = ["osier", "istio"];

/// Istio's kinds: group, kind, plural, versions.
const ISTIO: [(&str, &str, &str, &[&str]); 15] = [
    ("networking.istio.io", "VirtualService", "virtualservices", NETWORKING),
    ("networking.istio.io", "DestinationRule", "destinationrules", NETWORKING),
    ("networking.istio.io", "ServiceEntry", "serviceentries", NETWORKING),
    ("networking.istio.io", "WorkloadEntry", "workloadentries", NETWORKING),
    ("networking.istio.io", "WorkloadGroup", "workloadgroups", NETWORKING),
    ("networking.istio.io", "Gateway", "gateways", NETWORKING),
    ("networking.istio.io", "Sidecar", "sidecars", NETWORKING),
    ("networking.istio.io", "EnvoyFilter", "envoyfilters", &["v1alpha3"]),
    ("networking.istio.io", "ProxyConfig", "proxyconfigs", &["v1beta1"]),
    ("security.istio.io", "AuthorizationPolicy", "authorizationpolicies", SECURITY),
    ("security.istio.io", "PeerAuthentication", "peerauthentications", SECURITY),
    ("security.istio.io", "RequestAuthentication", "requestauthentications", SECURITY),
    ("telemetry.istio.io", "Telemetry", "telemetries", &["v1", "v1alpha1"]),
    ("extensions.istio.io", "TrafficExtension", "trafficextensions", &["v1alpha1"]),
    ("extensions.istio.io", "WasmPlugin", "wasmplugins", &["v1alpha1"]),
];
const NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY: &[&str] = &["v1", "v1beta1"];

/// Istio's kinds, each in its preferred version.
pub fn istio_kinds() -> impl Iterator<Item = ApiResource> {
    let newest = |(group, kind, plural, versions): (&str, &str, &str, &[&str])| {
        resource(group, kind, plural, &versions[..1], Role::Configuration).versions.pop()
    };
    ISTIO.into_iter().filter_map(newest)
}

/// One of Istio's kinds, in its preferred version.
pub fn istio_kind(kind: &str) -> Option<ApiResource> {
    istio_kinds().find(|resource| resource.kind == kind)
}

impl Watched {
    /// Everything that is watched.
    pub fn all(scope: &Scope) -> Vec<Self> {
        let config_map = |name: &str| {
            let name = named(name, &scope.revision);
            Self {
                place: Where::Object { namespace: scope.namespace.clone(), name },
                ..core("ConfigMap", "configmaps", Role::MeshConfig)
            }
        };
        let mut all: Vec<Self> = MESH_CONFIG.into_iter().map(config_map).collect();
        all.push(core("Namespace", "namespaces", Role::Namespace));
        all.push(core("Node", "nodes", Role::Cluster));
        all.push(core("Service", "services", Role::Workload));
        all.push(core("Pod", "pods", Role::Workload));
        all.push(resource("discovery.k8s.io", "EndpointSlice", "endpointslices", &["v1"], Role::Workload));
        all.push(resource("networking.k8s.io", "Ingress", "ingresses", &["v1"], Role::Configuration));
        all.push(resource("networking.k8s.io", "IngressClass", "ingressclasses", &["v1"], Role::Cluster));
        for (group, kind, plural, versions) in ISTIO {
            all.push(resource(group, kind, plural, versions, Role::Configuration));
        }
        all
    }

    /// Kind, for reports.
    pub fn kind(&self) -> &str {
        self.versions.first().map_or("", |resource| &resource.kind)
    }

    /// `virtualservices.networking.istio.io`, as kubectl and RBAC write it.
    pub fn resource(&self) -> String {
        match self.versions.first() {
            Some(resource) if resource.group.is_empty() => resource.plural.clone(),
            Some(resource) => format!("{}.{}", resource.plural, resource.group),
            None => String::new(),
        }
    }
}

fn core(kind: &str, plural: &str, role: Role) -> Watched {
    resource("", kind, plural, &["v1"], role)
}

fn resource(group: &str, kind: &str, plural: &str, versions: &[&str], role: Role) -> Watched {
    let of_version = |version: &&str| {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    };
    let versions = versions.iter().map(of_version);
    Watched { versions: versions.collect(), place: Where::Everywhere, role }
}
