//! Kubernetes' own kinds to services, endpoint slices and workloads.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use osier_core::host::Host;
use osier_core::labels::Labels;

use super::service_entry::{locality, tls_mode};
use super::{Check, Checked, Context, Path};
use crate::model::{
    Address, Exports, Health, LabelSelector, Locality, Location, Operator, Owner, Protocol, Requirement,
    Service, ServiceKey, ServiceKind, ServicePort, ServiceSource, TargetPort, Workload, WorkloadName,
};
use crate::store::schema::kubernetes as schema;

/// Part of a Service's endpoints, as an EndpointSlice says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Name of the Service, in the slice's namespace.
    pub service: Arc<str>,
    /// Ports by name.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Endpoints, those that are going among them.
    pub endpoints: Vec<SliceEndpoint>,
}

/// An endpoint of a [`Slice`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it takes traffic.
    pub health: Health,
    /// Namespace and name of its Pod.
    pub pod: Option<(Arc<str>, Arc<str>)>,
    /// Node that it runs on; may be empty.
    pub node: Arc<str>,
    /// Zone, where no Pod says more.
    pub locality: Locality,
    /// Its name below that of the Service; mostly empty.
    pub hostname: Arc<str>,
}

impl From<&schema::LabelSelector> for LabelSelector {
    fn from(written: &schema::LabelSelector) -> Self {
        let equal = |(key, value): (&String, &String)| Requirement {
            key: key.as_str().into(),
            operator: Operator::In,
            values: vec![value.as_str().into()],
        };
        let compared = |written: &schema::Requirement| Requirement {
            key: written.key.as_str().into(),
            operator: match written.operator {
                schema::Operator::In => Operator::In,
                schema::Operator::NotIn => Operator::NotIn,
                schema::Operator::Exists => Operator::Exists,
                schema::Operator::DoesNotExist => Operator::DoesNotExist,
            },
            values: written.values.iter().map(|value| value.as_str().into()).collect(),
        };
        let requirements = written.match_labels.iter().map(equal);
        Self { requirements: requirements.chain(written.match_expressions.iter().map(compared)).collect() }
    }
}

/// Checks a Service.
pub fn check_service(context: &Context, service: &schema::Service) -> Checked<Service> {
    let mut check = Check::new(context);
    let root = Path::Root("spec");
    let spec = &service.spec;
    let name = &context.key.name;
    let external = spec.r#type == "ExternalName";
    let kind = match (external, spec.cluster_ip.as_str()) {
        (true, _) => {
            ServiceKind::ExternalName(check.external_name(root.field("externalName"), &spec.external_name))
        }
        (false, "None") => ServiceKind::Headless,
        (false, _) => ServiceKind::ClusterIp,
    };
    let annotation = service.metadata.annotations.get("networking.istio.io/exportTo");
    let exports: Vec<String> =
        annotation.map(|csv| csv.split(',').map(|e| e.trim().to_owned()).collect()).unwrap_or_default();
    let at_export = Path::Root("metadata");
    let at_export = at_export.field("annotations");
    let checked = Service {
        key: ServiceKey {
            host: Host::new(&format!("{name}.{}.svc.{}", context.key.namespace, context.cluster_domain)),
            namespace: context.key.namespace.clone(),
        },
        name: name.clone(),
        source: ServiceSource::Kubernetes,
        resource: context.key.clone(),
        age: context.age.clone(),
        kind,
        addresses: if external { Vec::new() } else { check.cluster_ips(root, spec) },
        ports: check.service_ports(root.field("ports"), &spec.ports),
        export_to: check.export_to(at_export.key("networking.istio.io/exportTo"), &exports, true),
        exports: Exports::Public,
        location: Location::Internal,
        subject_alt_names: Vec::new(),
        selector: (!spec.selector.is_empty()).then(|| spec.selector.clone().into()),
        labels: service.metadata.labels.clone().into(),
        publish_not_ready: spec.publish_not_ready_addresses,
        node_local: spec.internal_traffic_policy == "Local",
        claimed: Vec::new(),
        automatic: Vec::new(),
    };
    check.finish(checked)
}

impl Check<'_> {
    fn external_name(&mut self, at: Path<'_>, text: &str) -> Host {
        match Host::parse_fqdn(text) {
            Ok(host) => host,
            Err(error) => {
                self.error(at, format!("{text:?} {error}"));
                Host::new(text)
            }
        }
    }

    fn cluster_ips(&mut self, at: Path<'_>, spec: &schema::ServiceSpec) -> Vec<IpNet> {
        let one = std::slice::from_ref(&spec.cluster_ip);
        let (field, texts) =
            if spec.cluster_ips.is_empty() { ("clusterIP", one) } else { ("clusterIPs", &*spec.cluster_ips) };
        let mut found = Vec::new();
        for text in texts.iter().filter(|t| !matches!(t.as_str(), "" | "None")) {
            match text.parse::<IpAddr>() {
                Ok(ip) => found.push(IpNet::from(ip)),
                Err(_) => self.error(at.field(field), format!("{text:?} is no IP address")),
            }
        }
        found
    }

    fn service_ports(&mut self, at: Path<'_>, ports: &[schema::ServicePort]) -> Vec<ServicePort> {
        let mut found: Vec<ServicePort> = Vec::new();
        for (index, port) in ports.iter().enumerate() {
            let here = at.index(index);
            let Some(number) = self.port(here.field("port"), port.port) else { continue };
            let app = port.app_protocol.as_deref().filter(|app| !app.is_empty());
            let transport = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
            if !transport.eq_ignore_ascii_case("TCP") {
                continue;
            }
            let target = match &port.target_port {
                None | Some(schema::IntOrText::Int(0)) => TargetPort::Number(number),
                Some(schema::IntOrText::Int(target)) => {
                    let target = u32::try_from(*target).unwrap_or(u32::MAX);
                    TargetPort::Number(self.port(here.field("targetPort"), target).unwrap_or(number))
                }
                Some(schema::IntOrText::Text(name)) => match name.parse() {
                    Ok(target) => TargetPort::Number(target),
                    Err(_) => TargetPort::Name(name.as_str().into()),
                },
            };
            if found.iter().any(|p| *p.name == *port.name) {
                self.error(here.field("name"), format!("{:?} is there twice", port.name));
            }
            if found.iter().any(|p| p.number == number) {
                self.error(here.field("port"), format!("{number} is there twice"));
            }
            let protocol = Protocol::of_kubernetes_port(transport, app, &port.name, number);
            if protocol == Protocol::Udp {
                continue;
            }
            found.push(ServicePort { number, name: port.name.as_str().into(), protocol, target });
        }
        found
    }
}

/// Checks an EndpointSlice. No value and no error: it says nothing that we use.
pub fn check_slice(context: &Context, slice: &schema::EndpointSlice) -> Checked<Option<Slice>> {
    let mut check = Check::new(context);
    let at = Path::Root("metadata");
    let Some(service) = slice.metadata.labels.get("kubernetes.io/service-name") else {
        check.warn(
            at.field("labels"),
            "has no label kubernetes.io/service-name, so that the slice belongs to no Service",
        );
        return check.finish(None);
    };
    if slice.address_type == "FQDN" {
        check.warn(
            Path::Root("addressType"),
            "FQDN is not used; a ServiceEntry with resolution DNS does this",
        );
        return check.finish(None);
    }
    let mut ports = Vec::new();
    let at = Path::Root("ports");
    for (index, port) in slice.ports.iter().enumerate() {
        if !port.protocol.is_empty() && !port.protocol.eq_ignore_ascii_case("TCP") {
            continue;
        }
        let Some(number) = port.port else { continue };
        if let Some(number) = check.port(at.index(index).field("port"), number) {
            ports.push((Arc::from(port.name.as_str()), number));
        }
    }
    let mut endpoints = Vec::new();
    let at = Path::Root("endpoints");
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        let addresses = check.slice_addresses(at.index(index).field("addresses"), &endpoint.addresses);
        let health = health(&endpoint.conditions);
        let pod = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod").map(|target| {
            let namespace =
                if target.namespace.is_empty() { &*context.key.namespace } else { &*target.namespace };
            (Arc::from(namespace), Arc::from(target.name.as_str()))
        });
        let zone = endpoint.zone.as_str().into();
        let locality = Locality { zone, ..Locality::default() };
        endpoints.push(SliceEndpoint {
            addresses,
            health,
            pod,
            node: endpoint.node_name.as_str().into(),
            locality,
            hostname: endpoint.hostname.as_str().into(),
        });
    }
    check.finish(Some(Slice { service: service.as_str().into(), ports, endpoints }))
}

impl Check<'_> {
    fn slice_addresses(&mut self, at: Path<'_>, texts: &[String]) -> Vec<IpAddr> {
        let mut found = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            match text.parse() {
                Ok(ip) => found.push(ip),
                Err(_) => self.error(at.index(index), format!("{text:?} is no IP address")),
            }
        }
        found
    }
}

/// Health from conditions. What is going gets nothing new, but is still known: its own sidecar keeps serving what was sent before
/// everybody had heard of it.
fn health(conditions: &schema::SliceConditions) -> Health {
    match (conditions.ready.unwrap_or(true), conditions.terminating.unwrap_or(false)) {
        (true, _) => Health::Healthy,
        (false, true) => Health::Draining,
        (false, false) => Health::Unhealthy,
    }
}

/// Checks a Pod. No value and no error: it has no address (yet), or has ended.
pub fn check_pod(context: &Context, pod: &schema::Pod) -> Checked<Option<Workload>> {
    let mut check = Check::new(context);
    let status = &pod.status;
    let root = Path::Root("status");
    let listed: Vec<&String> = status.pod_ips.iter().map(|p| &p.ip).collect();
    let texts = if listed.is_empty() { vec![&status.pod_ip] } else { listed };
    let mut addresses = Vec::new();
    for text in texts.into_iter().filter(|t| !t.is_empty()) {
        match text.parse() {
            Ok(ip) => addresses.push(Address::Ip(ip)),
            Err(_) => check.error(root.field("podIP"), format!("{text:?} is no IP address")),
        }
    }
    if addresses.is_empty() || matches!(status.phase.as_str(), "Succeeded" | "Failed") {
        return check.finish(None);
    }
    let labels = Labels::from(pod.metadata.labels.clone());
    let (namespace, name) = (&context.key.namespace, &context.key.name);
    let account = match pod.spec.service_account_name.as_str() {
        "" => "default",
        account => account,
    };
    let mut ports = BTreeMap::new();
    for port in pod.spec.containers.iter().flat_map(|c| &c.ports).filter(|p| !p.name.is_empty()) {
        if let Ok(number) = u16::try_from(port.container_port) {
            ports.insert(Arc::from(port.name.as_str()), number);
        }
    }
    let workload = Workload {
        key: context.key.clone(),
        age: context.age.clone(),
        names: Arc::new(WorkloadName::new(namespace, &owner(pod), name, &labels)),
        addresses,
        ports,
        health: pod_health(pod),
        service_account: account.into(),
        locality: locality("", &labels),
        network: labels.get("topology.istio.io/network").unwrap_or_default().into(),
        weight: 1,
        tls: tls_mode(&labels, false),
        node: pod.spec.node_name.as_str().into(),
        hostname: [pod.spec.hostname.as_str().into(), pod.spec.subdomain.as_str().into()],
        labels,
    };
    check.finish(Some(workload))
}

/// Region, zone and subzone that a Node's labels say.
pub fn node_locality(labels: &Labels) -> Locality {
    let first = |names: &[&str]| names.iter().find_map(|name| labels.get(name)).unwrap_or_default().into();
    Locality {
        region: first(&["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]),
        zone: first(&["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]),
        subzone: first(&["topology.istio.io/subzone"]),
    }
}

/// Ready, unless the Pod says otherwise; files written by hand often say nothing.
fn pod_health(pod: &schema::Pod) -> Health {
    if pod.metadata.deletion_timestamp.is_some() || pod.metadata.labels.contains_key("istio.io/draining") {
        return Health::Draining;
    }
    let ready = pod.status.conditions.iter().find(|c| c.r#type == "Ready");
    match (ready, pod.status.phase.as_str()) {
        (Some(condition), _) if condition.status == "True" => Health::Healthy,
        (None, "" | "Running") => Health::Healthy,
        _ => Health::Unhealthy,
    }
}

/// Name of the Deployment (or other owner) of a Pod, else the Pod's own.
fn owner(pod: &schema::Pod) -> Arc<str> {
    let owners = &pod.metadata.owner_references;
    let Some(owner) = owners.iter().find(|o| o.controller).or(owners.first()) else {
        return pod.metadata.name.as_str().into();
    };
    let owner = Owner { api_version: String::new(), kind: owner.kind.clone(), name: owner.name.clone() };
    owner.made_by(|key| pod.metadata.labels.get(key).map(String::as_str)).name.into()
}
