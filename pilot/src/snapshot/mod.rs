//! `MeshSnapshot`: the whole mesh at one moment, immutable, with the indexes that generators need.
//!
//! A snapshot is built completely and then frozen: no locks, no lazy parts. Its parts are shared by `Arc` with the snapshot
//! before it where nothing changed; a change of endpoints replaces only the endpoint index. What a client sees depends on its
//! [`ProxyView`] alone: its namespace decides visibility (`exportTo`, conflicts of hosts), its labels decide static filters.
//!
//! Where to look: `service` (which services a namespace sees), `route` (which VirtualService holds for a service), `policy`
//! (which DestinationRule), `security` (what is refused), `authorization` (which AuthorizationPolicies and RequestAuthentications), `authorizer` (who else is asked), `endpoint` (who is behind a port, and what a proxy serves itself), `ingress` (what gateways
//! serve), `change` (what moved).

mod allocation;
mod authorization;
mod authorizer;
mod change;
mod endpoint;
mod ingress;
mod policy;
mod route;
mod security;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use authorization::{KeyIndex, token_rules};
pub use authorizer::NoAuthorizer;
pub use change::{Audience, Change};
pub use endpoint::{AddressUse, EndpointIndex, InboundPort, PortEndpoints, ServerIdentity, ServiceEndpoints};
pub use ingress::{HostPath, IngressHost, IngressIndex, TlsHosts};
pub use policy::PolicyIndex;
pub use route::{ApplicableRoute, ExtraHost, RouteIndex, applies, l4_applies};
pub use security::{SecurityIndex, covers};
pub use service::{OriginalDestination, ServiceIndex};

use osier_core::host::Host;

use crate::model::{
    BackendPort, Coverage, Credential, DEFAULT_CLUSTER_DOMAIN, DestinationPolicy, EffectivePolicy, Endpoint,
    IngressBackend, MeshConfig, MutualTls, Protocol, ProxyView, Refusal, ResourceKey, RouteRule, Service,
    ServiceKey, ServiceKind, Workload,
};

/// Certificates by namespace and name.
pub type SecretIndex = BTreeMap<(Arc<str>, Arc<str>), Arc<Credential>>;

/// The whole mesh at one moment.
#[derive(Debug, Clone)]
pub struct MeshSnapshot {
    /// Counts up with each snapshot that is published.
    pub version: u64,
    /// Domain of Kubernetes services.
    pub cluster_domain: Arc<str>,
    /// Mesh-wide configuration.
    pub mesh: Arc<MeshConfig>,
    /// All services.
    pub services: Arc<ServiceIndex>,
    /// All endpoints.
    pub endpoints: Arc<EndpointIndex>,
    /// All VirtualServices.
    pub routes: Arc<RouteIndex>,
    /// All DestinationRules.
    pub policies: Arc<PolicyIndex>,
    /// All security policies.
    pub security: Arc<SecurityIndex>,
    /// The Ingresses that are ours.
    pub ingresses: Arc<IngressIndex>,
    /// Certificates of gateways, by namespace and name.
    pub secrets: Arc<SecretIndex>,
    /// The roots of the mesh, as PEM; `None` where it has no authority, or none yet.
    pub roots: Option<Arc<str>>,
    /// All Pods and WorkloadEntries, by their keys.
    pub workloads: Arc<[Arc<Workload>]>,
}

impl Default for MeshSnapshot {
    fn default() -> Self {
        Self {
            version: 0,
            cluster_domain: DEFAULT_CLUSTER_DOMAIN.into(),
            mesh: Arc::default(),
            services: Arc::default(),
            endpoints: Arc::default(),
            routes: Arc::default(),
            policies: Arc::default(),
            security: Arc::default(),
            ingresses: Arc::default(),
            secrets: Arc::default(),
            roots: None,
            workloads: Arc::new([]),
        }
    }
}

/// What of the clients of a workload is asked.
#[derive(Debug)]
pub struct WorkloadMutualTls<'s> {
    /// On ports that no PeerAuthentication names.
    pub mode: MutualTls,
    /// The PeerAuthentication that says so.
    pub policy: Option<&'s ResourceKey>,
    /// That one selects the workload, and goes before those of its namespace and of the mesh.
    pub own: bool,
    /// On those that such a one names.
    pub ports: BTreeMap<u16, MutualTls>,
}

impl MeshSnapshot {
    /// The Pod or WorkloadEntry of this key.
    pub fn workload(&self, key: &ResourceKey) -> Option<&Arc<Workload>> {
        let found = self.workloads.binary_search_by(|workload| workload.key.cmp(key)).ok()?;
        self.workloads.get(found)
    }

    /// The services that clients of `namespace` see: one per host, oldest first. ExternalName aliases are among them.
    pub fn services_visible_to(&self, namespace: &str) -> Vec<&Arc<Service>> {
        self.services.visible_to(namespace)
    }

    /// The service that `host` (lower-cased FQDN) means for clients of `namespace`: their own namespace's first, then
    /// Kubernetes, then the oldest. ExternalName aliases are returned as they are; see [`MeshSnapshot::resolve_alias`].
    pub fn service(&self, namespace: &str, host: &str) -> Option<&Arc<Service>> {
        self.services.get(namespace, host)
    }

    /// The service with exactly this key, whoever sees it.
    pub fn service_by_key(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.by_key(key)
    }

    /// The host that an ExternalName host stands for in the end, or `host` itself. `None` if aliases run in a circle.
    pub fn resolve_alias(&self, namespace: &str, host: &str) -> Option<osier_core::host::Host> {
        self.services.resolve_alias(namespace, host)
    }

    /// ExternalName services that `namespace` sees and that stand for `target` in the end.
    pub fn aliases_of(&self, namespace: &str, target: &str) -> Vec<&Arc<Service>> {
        self.services.aliases_of(namespace, target)
    }

    /// What a connection to `ip:port` was meant for, as clients in the namespace of `view` see it.
    pub fn resolve_original_destination(
        &self,
        view: &ProxyView,
        ip: IpAddr,
        port: u16,
    ) -> OriginalDestination<'_> {
        if let Some(found) = self.services.by_address(view, ip, port) {
            return found;
        }
        let headless = self.endpoints.at_address(ip).iter().filter(|used| used.service_port == port);
        let mut found: Vec<&Arc<Service>> = headless
            .filter_map(|used| self.services.by_key(&used.service))
            .filter(|s| s.kind == ServiceKind::Headless && self.sees(&view.namespace, s))
            .collect();
        found.sort_by_key(|s| &s.age);
        match found.first().and_then(|s| Some((*s, s.port(port)?))) {
            Some((service, port)) => OriginalDestination::Headless { service, port },
            None => OriginalDestination::Unknown,
        }
    }

    /// True if `service` is what clients of `namespace` mean by its host.
    pub fn sees(&self, namespace: &str, service: &Service) -> bool {
        self.services.get(namespace, service.host().as_str()).is_some_and(|s| s.key == service.key)
    }

    /// The VirtualService whose HTTP rules hold for a service port of `view`'s scope, and the routes of it that are left
    /// for this proxy. `None`: the service has its default route.
    pub fn virtual_service_for(
        &self,
        view: &ProxyView,
        service: &Service,
        port: u16,
    ) -> Option<(&Arc<RouteRule>, Vec<ApplicableRoute<'_>>)> {
        let protocol = service.port(port)?.protocol;
        if !protocol.may_be_http() {
            return None;
        }
        self.routes.http_for_host(view, service.host(), port)
    }

    /// Hosts that have a virtual host on an HTTP port of `view` though they are no service there:
    /// each with its VirtualService and the routes that are left.
    pub fn extra_hosts(&self, view: &ProxyView, port: u16) -> Vec<ExtraHost<'_>> {
        self.routes.extra_hosts(&self.services, view, port)
    }

    /// VirtualServices with `tls` or `tcp` rules for `host`, in candidate order. Use [`l4_applies`] on their matches.
    pub fn l4_rules_for(&self, view: &ProxyView, service: &Service) -> Vec<&Arc<RouteRule>> {
        self.routes.l4_for_host(view, service.host())
    }

    /// The DestinationRule that holds for traffic of `view` to a service, merged where several are.
    pub fn destination_policy(&self, view: &ProxyView, service: &Service) -> Option<&Arc<DestinationPolicy>> {
        self.policies.lookup(view, &self.mesh.root_namespace, &service.key)
    }

    /// What the DestinationRule of a service says about one port and subset, blocks composed.
    pub fn effective_policy(
        &self,
        view: &ProxyView,
        service: &Service,
        port: u16,
        subset: Option<&str>,
    ) -> EffectivePolicy {
        self.destination_policy(view, service).map(|p| p.effective(port, subset)).unwrap_or_default()
    }

    /// The endpoints of a service port. `None` if nothing is known of it (as opposed to: it has none).
    pub fn endpoints(&self, service: &ServiceKey, port: u16) -> Option<&Arc<[Endpoint]>> {
        self.endpoints.get(service)?.port(port)
    }

    /// The endpoints that a cluster of `view` has: those of the subset that its DestinationRule defines.
    /// `None` if no such subset is defined.
    pub fn cluster_endpoints(
        &self,
        view: &ProxyView,
        service: &Service,
        port: u16,
        subset: Option<&str>,
    ) -> Option<Arc<[Endpoint]>> {
        let all = self.endpoints(&service.key, port).cloned().unwrap_or_else(|| Arc::new([]));
        let Some(name) = subset else { return Some(self.on_node(view, service, all)) };
        let labels = &self.destination_policy(view, service)?.subset(name)?.labels;
        let chosen = all.iter().filter(|e| labels.selects(&e.labels)).cloned().collect();
        Some(self.on_node(view, service, chosen))
    }

    /// Who answers for a service.
    pub fn identities(&self, service: &ServiceKey) -> BTreeSet<ServerIdentity> {
        self.endpoints.get(service).map(|endpoints| endpoints.identities(service)).unwrap_or_default()
    }

    /// `internalTrafficPolicy: Local` leaves only the endpoints on the client's own node.
    fn on_node(&self, view: &ProxyView, service: &Service, endpoints: Arc<[Endpoint]>) -> Arc<[Endpoint]> {
        if !service.node_local {
            return endpoints;
        }
        let local = |e: &&Endpoint| !view.node.is_empty() && e.node == view.node;
        endpoints.iter().filter(local).cloned().collect()
    }

    /// The Service and the port of it that an Ingress of `namespace` means; `Err` says what is missing.
    pub fn ingress_backend(&self, namespace: &str, backend: &IngressBackend) -> Result<(Host, u16), String> {
        let name = &backend.service;
        let host = Host::new(&format!("{name}.{namespace}.svc.{}", self.cluster_domain));
        let Some(service) = self.service(namespace, host.as_str()) else {
            return Err(format!("there is no Service {name} in namespace {namespace}"));
        };
        let port = match &backend.port {
            // An alias has the ports of what it stands for.
            BackendPort::Number(number) if matches!(service.kind, ServiceKind::ExternalName(_)) => {
                Some(*number)
            }
            BackendPort::Number(number) => service.port(*number).map(|port| port.number),
            BackendPort::Name(name) => service.ports.iter().find(|p| p.name == *name).map(|p| p.number),
        };
        match (port, &backend.port) {
            (Some(port), _) => Ok((host, port)),
            (None, BackendPort::Number(port)) => Err(format!("the Service {name} has no port {port}")),
            (None, BackendPort::Name(port)) => Err(format!("the Service {name} has no port named {port}")),
        }
    }

    /// Why nothing may reach a port of a proxy's workload, if so.
    pub fn refusal(&self, view: &ProxyView, port: u16) -> Option<Refusal<'_>> {
        self.security.refusal(&self.mesh.root_namespace, view, port)
    }

    /// The same for a workload: on ports that no PeerAuthentication names, and on those that one does.
    pub fn mutual_tls_of(&self, workload: &Workload) -> WorkloadMutualTls<'_> {
        let (root, namespace) = (&self.mesh.root_namespace, workload.namespace());
        let at = |port| self.security.mutual_tls(root, namespace, &workload.labels, port);
        let named =
            |port| at(port).filter(|(policy, _)| policy.names_port(port)).map(|(_, mode)| (port, mode));
        // No port has the number 0.
        let decides = at(0);
        WorkloadMutualTls {
            mode: decides.map_or(MutualTls::Permissive, |(_, mode)| mode),
            policy: decides.map(|(policy, _)| &policy.key),
            own: decides.is_some_and(|(policy, _)| matches!(policy.covers, Coverage::Workloads(_))),
            ports: self.security.ports_named_in(namespace).into_iter().filter_map(named).collect(),
        }
    }

    /// Whether clients of a port of a proxy's workload must, may or can't speak mutual TLS.
    pub fn mutual_tls(&self, view: &ProxyView, port: u16) -> MutualTls {
        self.security.mode(&self.mesh.root_namespace, view, port)
    }

    /// The same for an endpoint of a service, as its clients have to take it.
    pub fn mutual_tls_at(&self, service: &ServiceKey, endpoint: &Endpoint) -> MutualTls {
        let (root, namespace) = (&self.mesh.root_namespace, endpoint.namespace(service));
        self.security.mode_at(root, namespace, &endpoint.labels, endpoint.port)
    }

    /// The ports of a proxy's workload on which something else may be demanded than on all others.
    pub fn ports_with_own_mode(&self, view: &ProxyView) -> BTreeSet<u16> {
        self.security.ports_named_in(&view.namespace)
    }

    /// The ports that a proxy serves itself: one per port of the workload, with the services behind it, oldest first; the
    /// oldest decides the protocol. Sorted by port.
    pub fn inbound_ports(&self, view: &ProxyView) -> Vec<InboundPort<'_>> {
        let mut found: Vec<InboundPort<'_>> = Vec::new();
        for used in view.addresses.iter().flat_map(|ip| self.endpoints.at_address(*ip)) {
            let Some(service) = self.services.by_key(&used.service) else { continue };
            // A pod address belongs to one namespace; a ServiceEntry elsewhere that names it does not open ports on it.
            if service.key.namespace != view.namespace {
                continue;
            }
            let Some(port) = service.port(used.service_port) else { continue };
            let at = match found.iter_mut().find(|p| p.port == used.endpoint_port) {
                Some(known) => known,
                None => {
                    found.push(InboundPort {
                        port: used.endpoint_port,
                        protocol: Protocol::Auto,
                        services: vec![],
                    });
                    found.last_mut().expect("just pushed")
                }
            };
            if !at.services.iter().any(|(s, p)| s.key == service.key && p.number == port.number) {
                at.services.push((service, port));
            }
        }
        for port in &mut found {
            port.services.sort_by(|(a, ap), (b, bp)| (&a.age, ap.number).cmp(&(&b.age, bp.number)));
            port.protocol = port.services[0].1.protocol;
        }
        found.sort_by_key(|p| p.port);
        found
    }
}

#[cfg(test)]
mod tests;
