//! Meshes in a few lines, for the tests of generators.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use osier_core::host::Host;
use osier_core::labels::Labels;

use crate::model::{
    Address, Age, Destination, DestinationPolicy, Endpoint, ExportTo, Exports, GatewayRef, Health,
    HttpAction, HttpMatch, HttpRoute, Kind, Locality, Location, MeshConfig, Protocol, ResourceKey, RouteRule,
    Service, ServiceKey, ServiceKind, ServicePort, ServiceSource, Subset, TargetPort, TlsMode,
    WeightedDestination, Workload, WorkloadName,
};
use crate::snapshot::{
    EndpointIndex, MeshSnapshot, PolicyIndex, PortEndpoints, RouteIndex, ServiceEndpoints, ServiceIndex,
};

/// A mesh under construction.
#[derive(Debug, Default, Clone)]
pub(crate) struct Fixture {
    pub mesh: MeshConfig,
    pub services: Vec<Service>,
    pub rules: Vec<Arc<RouteRule>>,
    pub policies: Vec<Arc<DestinationPolicy>>,
    /// Service, service port, endpoints.
    pub endpoints: Vec<(ServiceKey, u16, Vec<Endpoint>)>,
}

impl Fixture {
    /// Adds a Kubernetes Service of namespace `default`; `ip` `None` makes it headless.
    pub fn service(mut self, name: &str, ip: Option<&str>, ports: &[(u16, Protocol)]) -> Self {
        self.services.push(kubernetes(name, "default", ip, ports));
        self
    }

    /// Adds endpoints to a port of a Kubernetes Service; each is an address, a port, and the label `version`.
    pub fn endpoints(mut self, name: &str, port: u16, at: &[(&str, u16, &str)]) -> Self {
        let key = key(name, "default");
        let made = at.iter().map(|(ip, port, version)| endpoint(ip, *port, name, version)).collect();
        self.endpoints.push((key, port, made));
        self
    }

    /// Adds subsets by the label `version`.
    pub fn subsets(mut self, name: &str, versions: &[&str]) -> Self {
        let subset = |v: &&str| Subset { name: (*v).into(), labels: [("version", *v)].into(), policy: None };
        self.policies.push(Arc::new(DestinationPolicy {
            key: ResourceKey::new(Kind::DestinationRule, "default", name),
            merged: vec![],
            age: age(name, "default"),
            host: key(name, "default").host,
            export_to: ExportTo::default(),
            selector: None,
            policy: None,
            subsets: versions.iter().map(subset).collect(),
        }));
        self
    }

    /// Adds a VirtualService for a Kubernetes Service.
    pub fn rule(mut self, name: &str, http: Vec<HttpRoute>) -> Self {
        self.rules.push(Arc::new(rule(name, key(name, "default").host, http)));
        self
    }

    /// Freezes it.
    pub fn build(self) -> MeshSnapshot {
        let mut by_service: Vec<(ServiceKey, Vec<PortEndpoints>)> = Vec::new();
        for (key, port, endpoints) in self.endpoints {
            let port = PortEndpoints { port, endpoints: endpoints.into() };
            match by_service.iter_mut().find(|(k, _)| *k == key) {
                Some((_, ports)) => ports.push(port),
                None => by_service.push((key, vec![port])),
            }
        }
        let endpoints =
            by_service.into_iter().map(|(key, ports)| (key, Arc::new(ServiceEndpoints { ports })));
        MeshSnapshot {
            version: 1,
            services: Arc::new(ServiceIndex::build(self.services, &self.mesh.service_export)),
            endpoints: Arc::new(EndpointIndex::build(endpoints)),
            routes: Arc::new(RouteIndex::build(self.rules, &self.mesh.route_export)),
            policies: Arc::new(PolicyIndex::build(self.policies, &self.mesh.policy_export)),
            mesh: Arc::new(self.mesh),
            ..MeshSnapshot::default()
        }
    }
}

pub(crate) fn age(name: &str, namespace: &str) -> Age {
    Age { created: 0, name: name.into(), namespace: namespace.into() }
}

/// Key of a Kubernetes Service.
pub(crate) fn key(name: &str, namespace: &str) -> ServiceKey {
    ServiceKey {
        host: Host::new(&format!("{name}.{namespace}.svc.cluster.local")),
        namespace: namespace.into(),
    }
}

/// A Kubernetes Service.
pub(crate) fn kubernetes(
    name: &str,
    namespace: &str,
    ip: Option<&str>,
    ports: &[(u16, Protocol)],
) -> Service {
    let address = |ip: &str| IpNet::from(ip.parse::<IpAddr>().unwrap());
    Service {
        key: key(name, namespace),
        name: name.into(),
        source: ServiceSource::Kubernetes,
        resource: ResourceKey::new(Kind::Service, namespace, name),
        age: age(name, namespace),
        kind: if ip.is_some() { ServiceKind::ClusterIp } else { ServiceKind::Headless },
        addresses: ip.into_iter().map(address).collect(),
        ports: ports.iter().map(|(number, protocol)| port(*number, *protocol)).collect(),
        export_to: ExportTo::default(),
        exports: Exports::Public,
        location: Location::Internal,
        subject_alt_names: vec![],
        selector: None,
        labels: Labels::default(),
        publish_not_ready: false,
        node_local: false,
        claimed: vec![],
        automatic: vec![],
    }
}

/// A ServiceEntry.
pub(crate) fn entry(host: &str, kind: ServiceKind, addresses: &[&str], ports: &[(u16, Protocol)]) -> Service {
    let address = |a: &&str| a.parse::<IpNet>().unwrap_or_else(|_| IpNet::from(a.parse::<IpAddr>().unwrap()));
    Service {
        key: ServiceKey { host: Host::new(host), namespace: "default".into() },
        name: host.into(),
        source: ServiceSource::ServiceEntry,
        resource: ResourceKey::new(Kind::ServiceEntry, "default", host),
        kind,
        addresses: addresses.iter().map(address).collect(),
        location: Location::External,
        ..kubernetes("x", "default", None, ports)
    }
}

fn port(number: u16, protocol: Protocol) -> ServicePort {
    ServicePort { number, name: format!("p{number}").into(), protocol, target: TargetPort::Number(number) }
}

/// An endpoint of a workload with the label `version`.
pub(crate) fn endpoint(ip: &str, port: u16, app: &str, version: &str) -> Endpoint {
    let labels: Labels = [("app", app), ("version", version)].into();
    let instance: Arc<str> = format!("{app}-{version}").into();
    let address = ip.parse().map_or_else(|_| Address::Name(Host::new(ip)), Address::Ip);
    Endpoint {
        address,
        port,
        health: Health::Healthy,
        labels: labels.clone(),
        locality: Locality::default(),
        network: "".into(),
        weight: 1,
        service_account: "".into(),
        workload: Some(Arc::new(WorkloadName::new(&"default".into(), &instance, &instance, &labels))),
        tls: TlsMode::Disabled,
        node: "node-1".into(),
        hostname: "".into(),
    }
}

/// A Pod of namespace `default`.
pub(crate) fn pod<const N: usize>(name: &str, ip: &str, labels: [(&str, &str); N]) -> Workload {
    Workload {
        key: ResourceKey::new(Kind::Pod, "default", name),
        age: Age { created: 0, name: name.into(), namespace: "default".into() },
        names: Arc::default(),
        addresses: vec![Address::Ip(ip.parse().unwrap())],
        labels: labels.into(),
        ports: Default::default(),
        health: Health::Healthy,
        service_account: "web".into(),
        locality: Locality::default(),
        network: "".into(),
        weight: 1,
        tls: TlsMode::Istio,
        node: "".into(),
        hostname: ["".into(), "".into()],
    }
}

/// A VirtualService.
pub(crate) fn rule(name: &str, host: Host, http: Vec<HttpRoute>) -> RouteRule {
    RouteRule {
        key: ResourceKey::new(Kind::VirtualService, "default", name),
        age: age(name, "default"),
        hosts: vec![host],
        gateways: vec![GatewayRef::Mesh],
        export_to: ExportTo::default(),
        http,
        tls: vec![],
        tcp: vec![],
    }
}

/// A route to subsets of a Kubernetes Service, by weight.
pub(crate) fn split(name: &str, weights: &[(&str, u32)]) -> HttpRoute {
    let to = |(subset, weight): &(&str, u32)| WeightedDestination {
        destination: Destination {
            host: key(name, "default").host,
            subset: Some((*subset).into()).filter(|s: &Arc<str>| !s.is_empty()),
            port: None,
        },
        weight: *weight,
        headers: Default::default(),
    };
    route(vec![], HttpAction::Forward(weights.iter().map(to).collect()))
}

/// A route.
pub(crate) fn route(matches: Vec<HttpMatch>, action: HttpAction) -> HttpRoute {
    HttpRoute {
        name: "".into(),
        matches,
        action,
        headers: Default::default(),
        rewrite: Default::default(),
        timeout: None,
        retries: None,
    }
}
