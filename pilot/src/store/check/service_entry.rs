//! ServiceEntry to services with inline endpoints, and WorkloadEntry to [`Workload`].

use std::net::IpAddr;
use std::sync::Arc;

use osier_core::host::Host;
use osier_core::labels::Labels;

use super::{Check, Checked, Context, Path};
use crate::model::{
    Address, Exports, Health, Locality, Location, Protocol, Service, ServiceKey, ServiceKind, ServicePort,
    ServiceSource, TargetPort, TlsMode, Workload, WorkloadName,
};
use crate::store::schema::service_entry as schema;

/// A checked ServiceEntry.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// One per host.
    pub services: Vec<Arc<Service>>,
    /// `endpoints`.
    pub endpoints: Vec<InlineEndpoint>,
}

/// One of a ServiceEntry's `endpoints`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineEndpoint {
    /// Where it is.
    pub address: Address,
    /// Port by service port number; 0 for Unix sockets.
    pub ports: Vec<(u16, u16)>,
    /// Labels.
    pub labels: Labels,
    /// Locality.
    pub locality: Locality,
    /// Network.
    pub network: Arc<str>,
    /// At least 1.
    pub weight: u32,
    /// Service account; may be empty.
    pub service_account: Arc<str>,
    /// Whether it takes mesh mTLS.
    pub tls: TlsMode,
}

/// Checks a ServiceEntry. What its status says wrong is as good as not said.
pub fn check(
    context: &Context,
    labels: &Labels,
    spec: &schema::ServiceEntry,
    status: &schema::ServiceEntryStatus,
) -> Checked<Entry> {
    let mut check = Check::new(context);
    let root = Path::Root("spec");
    let kind = check.resolution(root.field("resolution"), spec.resolution);
    let hosts = check.entry_hosts(root.field("hosts"), spec, &kind);
    let ports = check.entry_ports(root.field("ports"), &spec.ports);
    let addresses = check.entry_addresses(root.field("addresses"), &spec.addresses, &kind);
    check.ambiguous_ports(root, spec, &ports, &kind);
    let selector = check.workload_selector(root, spec, &kind);
    let endpoints = check.entry_endpoints(root.field("endpoints"), spec, &kind);
    let export_to = check.export_to(root.field("exportTo"), &spec.export_to, true);
    let service = |host: Host| Service {
        key: ServiceKey { host: host.clone(), namespace: context.key.namespace.clone() },
        name: host.shared().clone(),
        source: ServiceSource::ServiceEntry,
        resource: context.key.clone(),
        age: context.age.clone(),
        kind: kind.clone(),
        addresses: addresses.clone(),
        ports: ports.clone(),
        export_to: export_to.clone(),
        exports: Exports::Public,
        location: match spec.location {
            Some(schema::Location::MeshInternal) => Location::Internal,
            Some(schema::Location::MeshExternal) | None => Location::External,
        },
        subject_alt_names: spec.subject_alt_names.iter().map(|n| n.as_str().into()).collect(),
        selector: selector.clone(),
        labels: labels.clone(),
        publish_not_ready: false,
        node_local: false,
        claimed: claimed(status, &host),
        automatic: Vec::new(),
    };
    let services = hosts.into_iter().map(service).map(Arc::new).collect();
    check.finish(Entry { services, endpoints })
}

/// Automatic addresses of a host, as status has them.
fn claimed(status: &schema::ServiceEntryStatus, host: &Host) -> Vec<IpAddr> {
    let own = status.addresses.iter().filter(|address| Host::new(&address.host) == *host);
    own.filter_map(|address| address.value.parse().ok()).collect()
}

impl Check<'_> {
    fn resolution(&mut self, at: Path<'_>, resolution: Option<schema::Resolution>) -> ServiceKind {
        use schema::Resolution;
        let name = match resolution {
            None | Some(Resolution::None) => return ServiceKind::Passthrough,
            Some(Resolution::Static) => return ServiceKind::Static,
            Some(Resolution::Dns) => return ServiceKind::Dns,
            Some(Resolution::DnsRoundRobin) => "DNS_ROUND_ROBIN",
            Some(Resolution::DynamicDns) => "DYNAMIC_DNS",
        };
        self.error(at, format!("{name} is not supported yet"));
        ServiceKind::Dns
    }

    fn entry_hosts(&mut self, at: Path<'_>, spec: &schema::ServiceEntry, kind: &ServiceKind) -> Vec<Host> {
        self.require(!spec.hosts.is_empty(), at, || "needs at least one host".into());
        let mut hosts: Vec<Host> = Vec::new();
        for (index, text) in spec.hosts.iter().enumerate() {
            let here = at.index(index);
            if text == "*" {
                self.error(here, "* would be every host; name a domain, e.g. *.example.com");
                continue;
            }
            let host = match Host::parse_pattern(text) {
                Ok(host) => host,
                Err(error) => {
                    self.error(here, format!("{text:?} {error}"));
                    continue;
                }
            };
            if host.is_wildcard() && !text.starts_with("*.") {
                self.warn(
                    here,
                    format!("{text:?} has a wildcard inside of a label, which clients can't look up"),
                );
            }
            if host.is_wildcard() && *kind == ServiceKind::Dns && spec.endpoints.is_empty() {
                self.error(
                    here,
                    format!("{text:?} can't be looked up: with DNS a wildcard host needs endpoints"),
                );
            }
            if hosts.contains(&host) {
                self.error(here, format!("{text:?} is there twice"));
            }
            hosts.push(host);
        }
        hosts
    }

    fn entry_ports(&mut self, at: Path<'_>, ports: &[schema::ServicePort]) -> Vec<ServicePort> {
        if ports.is_empty() {
            self.warn(at, "is empty: nothing is generated for this entry");
        }
        let mut found: Vec<ServicePort> = Vec::new();
        for (index, port) in ports.iter().enumerate() {
            let here = at.index(index);
            let protocol = match port.protocol.as_str() {
                "" => Some(Protocol::Auto),
                text => Protocol::of_keyword(text),
            };
            if protocol.is_none() {
                self.error(
                    here.field("protocol"),
                    format!("{:?} is no protocol that is known here", port.protocol),
                );
            }
            match port.name.as_str() {
                "" => self.error(here.field("name"), "is required"),
                name => self.label_name(here.field("name"), name),
            }
            let target = self.optional_port(here.field("targetPort"), port.target_port);
            let Some(number) = self.port(here.field("number"), port.number) else { continue };
            if found.iter().any(|p| p.number == number) {
                self.error(here.field("number"), format!("{number} is there twice"));
            }
            if found.iter().any(|p| *p.name == *port.name) {
                self.error(here.field("name"), format!("{:?} is there twice", port.name));
            }
            found.push(ServicePort {
                number,
                name: port.name.as_str().into(),
                protocol: protocol.unwrap_or(Protocol::Auto),
                target: TargetPort::Number(target.unwrap_or(number)),
            });
        }
        found.retain(|p| p.protocol != Protocol::Udp);
        found
    }

    fn entry_addresses(&mut self, at: Path<'_>, texts: &[String], kind: &ServiceKind) -> Vec<ipnet::IpNet> {
        let found = self.subnets(at, texts);
        for (index, text) in texts.iter().enumerate() {
            if text.contains('/') && *kind == ServiceKind::Dns {
                self.error(
                    at.index(index),
                    format!("{text:?} is a range, which resolution DNS does not allow"),
                );
            }
        }
        found
    }

    /// Ports on which hosts can't be told apart.
    fn ambiguous_ports(
        &mut self,
        at: Path<'_>,
        spec: &schema::ServiceEntry,
        ports: &[ServicePort],
        kind: &ServiceKind,
    ) {
        let opaque = |p: &ServicePort| !p.protocol.is_http() && !p.protocol.is_tls();
        for (index, port) in ports.iter().enumerate().filter(|(_, p)| opaque(p)) {
            let list = at.field("ports");
            if spec.hosts.len() > 1 && *kind != ServiceKind::Passthrough {
                self.error(
                    list.index(index),
                    "is neither HTTP nor TLS, so that the entry's hosts can't be told apart on it",
                );
            } else if spec.addresses.is_empty() {
                // Where it gets addresses by itself, who looks its host up meets those.
                let whose = match *kind {
                    ServiceKind::Passthrough => "",
                    _ => ", of pods without ISTIO_META_DNS_CAPTURE",
                };
                let message = format!(
                    "without addresses all traffic to port {} that nobody else claims goes here{whose}",
                    port.number
                );
                self.warn(list.index(index), message);
            }
        }
    }

    fn workload_selector(
        &mut self,
        at: Path<'_>,
        spec: &schema::ServiceEntry,
        kind: &ServiceKind,
    ) -> Option<Labels> {
        let selector = spec.workload_selector.as_ref()?;
        let here = at.field("workloadSelector");
        if !spec.endpoints.is_empty() {
            self.error(here, "excludes endpoints");
        }
        if *kind == ServiceKind::Passthrough {
            self.warn(here, "has no effect with resolution NONE");
        }
        if selector.labels.is_empty() {
            self.warn(here.field("labels"), "is empty and selects every workload of the namespace");
        }
        Some(self.selector(here.field("labels"), &selector.labels))
    }

    fn entry_endpoints(
        &mut self,
        at: Path<'_>,
        spec: &schema::ServiceEntry,
        kind: &ServiceKind,
    ) -> Vec<InlineEndpoint> {
        if *kind == ServiceKind::Passthrough && !spec.endpoints.is_empty() {
            self.error(at, "has no meaning with resolution NONE");
        }
        let mut found = Vec::new();
        for (index, endpoint) in spec.endpoints.iter().enumerate() {
            let here = at.index(index);
            let Some(address) = self.address(here.field("address"), &endpoint.address) else { continue };
            match (&address, kind) {
                (Address::Name(_), ServiceKind::Static) => {
                    self.error(
                        here.field("address"),
                        "is a name; with resolution STATIC it must be an IP address",
                    );
                }
                (Address::Unix(_), ServiceKind::Dns) => {
                    self.error(
                        here.field("address"),
                        "is a Unix socket, which resolution DNS does not allow",
                    );
                }
                (Address::Unix(_), _) if !endpoint.ports.is_empty() || spec.ports.len() != 1 => {
                    self.error(
                        here.field("address"),
                        "is a Unix socket: it takes no ports, and the entry must have just one",
                    );
                }
                _ => {}
            }
            for (name, number) in &endpoint.ports {
                let at_ports = here.field("ports");
                let _ = self.port(at_ports.key(name), *number);
                if !spec.ports.iter().any(|p| p.name == *name) {
                    self.error(at_ports.key(name), "is no port of the entry");
                }
            }
            let port = |p: &schema::ServicePort| {
                let own = endpoint.ports.get(&p.name).copied();
                let target = if p.target_port > 0 { p.target_port } else { p.number };
                let number = if matches!(address, Address::Unix(_)) { 0 } else { own.unwrap_or(target) };
                Some((u16::try_from(p.number).ok()?, u16::try_from(number).ok()?))
            };
            let labels: Labels = endpoint.labels.clone().into();
            found.push(InlineEndpoint {
                ports: spec.ports.iter().filter_map(port).collect(),
                address,
                tls: tls_mode(&labels, !endpoint.service_account.is_empty()),
                locality: locality(&endpoint.locality, &labels),
                network: endpoint.network.as_str().into(),
                weight: endpoint.weight.max(1),
                service_account: endpoint.service_account.as_str().into(),
                labels,
            });
        }
        found
    }

    /// An IP address, `unix:///path`, or a name.
    fn address(&mut self, at: Path<'_>, text: &str) -> Option<Address> {
        if text.is_empty() {
            self.error(at, "is required");
            return None;
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            let one = !ip.is_unspecified() && !ip.is_multicast();
            self.require(one, at, || format!("{ip} is no address of a workload"));
            return Some(Address::Ip(ip));
        }
        if let Some(path) = text.strip_prefix("unix://") {
            self.require(path.starts_with('/') || path.starts_with('@'), at, || "is no absolute path".into());
            return Some(Address::Unix(path.into()));
        }
        match Host::parse_fqdn(text) {
            Ok(host) => Some(Address::Name(host)),
            Err(error) => {
                self.error(at, format!("{text:?} is no IP address, and as a name it {error}"));
                None
            }
        }
    }
}

/// Checks a WorkloadEntry. `labels` are those of its metadata, which win over those of its spec.
pub fn check_workload(context: &Context, labels: &Labels, spec: &schema::WorkloadEntry) -> Checked<Workload> {
    let mut check = Check::new(context);
    let root = Path::Root("spec");
    let address = check.address(root.field("address"), &spec.address);
    if matches!(address, Some(Address::Unix(_))) && !spec.ports.is_empty() {
        check.error(root.field("ports"), "is not allowed with a Unix socket");
    }
    let at_ports = root.field("ports");
    let mut ports = std::collections::BTreeMap::new();
    for (name, number) in &spec.ports {
        if let Some(port) = check.port(at_ports.key(name), *number) {
            ports.insert(Arc::from(name.as_str()), port);
        }
    }
    let labels = Labels::from(spec.labels.clone()).overlaid_with(labels);
    let (namespace, name) = (&context.key.namespace, &context.key.name);
    let workload = Workload {
        key: context.key.clone(),
        age: context.age.clone(),
        names: Arc::new(WorkloadName::new(namespace, &owner(name, &labels), name, &labels)),
        addresses: address.into_iter().collect(),
        ports,
        health: if labels.get("istio.io/draining").is_some() { Health::Draining } else { Health::Healthy },
        service_account: spec.service_account.as_str().into(),
        locality: locality(&spec.locality, &labels),
        network: spec.network.as_str().into(),
        weight: spec.weight.max(1),
        tls: tls_mode(&labels, !spec.service_account.is_empty()),
        node: "".into(),
        hostname: Default::default(),
        labels,
    };
    check.finish(workload)
}

/// The workload's name: label `service.istio.io/workload-name`, else the WorkloadEntry's own.
fn owner(name: &Arc<str>, labels: &Labels) -> Arc<str> {
    labels.get("service.istio.io/workload-name").map_or_else(|| name.clone(), Arc::from)
}

/// The label decides, else whether there is an identity.
pub(super) fn tls_mode(labels: &Labels, has_identity: bool) -> TlsMode {
    let by_identity = if has_identity { TlsMode::Istio } else { TlsMode::Disabled };
    TlsMode::of_labels(labels).unwrap_or(by_identity)
}

/// The field, else the label.
pub(super) fn locality(text: &str, labels: &Labels) -> Locality {
    let label = labels.get("istio-locality").or_else(|| labels.get("topology.istio.io/locality"));
    match (text, label) {
        ("", Some(label)) => Locality::parse_label(label),
        (text, _) => Locality::parse(text),
    }
}
