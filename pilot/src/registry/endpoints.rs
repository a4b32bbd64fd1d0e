//! The endpoints of one service, from all that contributes to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use osier_core::labels::Labels;

use super::{Definition, Registry};
use crate::model::{
    Address, Endpoint, Health, Kind, Locality, ResourceKey, Service, ServiceKey, ServiceKind, ServicePort,
    ServiceSource, TargetPort, TlsMode, Workload,
};
use crate::snapshot::{PortEndpoints, ServiceEndpoints};

/// Endpoints of one port by where they are: the first to name an address keeps it.
type Found = BTreeMap<(Address, u16), Endpoint>;

impl Registry {
    /// Endpoints of a service, by port, each sorted by address. Ports are those of the definition that wins.
    pub(super) fn endpoints_of(&self, key: &ServiceKey) -> ServiceEndpoints {
        let definitions = self.definitions.get(key).map_or(&[][..], Vec::as_slice);
        let Some(winner) = definitions.first() else { return ServiceEndpoints::default() };
        if matches!(winner.service.kind, ServiceKind::ExternalName(_) | ServiceKind::Passthrough) {
            return ServiceEndpoints::default();
        }
        let of_port = |port: &ServicePort| {
            let mut found = Found::new();
            for definition in definitions.iter().filter(|d| d.service.source == winner.service.source) {
                self.collect(definition, port, &mut found);
            }
            PortEndpoints { port: port.number, endpoints: found.into_values().collect() }
        };
        ServiceEndpoints { ports: winner.service.ports.iter().map(of_port).collect() }
    }

    fn collect(&self, definition: &Definition, port: &ServicePort, found: &mut Found) {
        let service = &definition.service;
        // another entry of the same host may have other target ports
        let Some(port) = service.port(port.number) else { return };
        match service.source {
            ServiceSource::Kubernetes => {
                let has_slices = self.slices_of.get(&service.key).is_some_and(|slices| !slices.is_empty());
                self.add_from_slices(service, port, found);
                self.add_from_workloads(service, port, found, |w| w.key.kind != Kind::Pod || !has_slices);
            }
            ServiceSource::ServiceEntry => {
                self.add_from_entry(definition, port, found);
                self.add_from_workloads(service, port, found, |_| true);
            }
        }
    }

    fn add_from_slices(&self, service: &Service, port: &ServicePort, found: &mut Found) {
        let slices =
            self.slices_of.get(&service.key).into_iter().flatten().filter_map(|key| self.slices.get(key));
        for slice in slices {
            let Some((_, number)) = slice.ports.iter().find(|(name, _)| *name == port.name) else { continue };
            for endpoint in &slice.endpoints {
                let pod = endpoint.pod.as_ref().and_then(|(namespace, name)| {
                    self.workloads.get(&ResourceKey::new(Kind::Pod, namespace.clone(), name.clone()))
                });
                if pod.is_none() && endpoint.pod.is_some() && self.waits_for_pods {
                    continue;
                }
                for ip in &endpoint.addresses {
                    let address = Address::Ip(*ip);
                    let mut made = match pod {
                        Some(pod) => of_workload(pod, address.clone(), *number),
                        None => bare(address.clone(), *number),
                    };
                    // the slice knows better, except that a Pod may be marked as draining
                    if made.health != Health::Draining {
                        made.health = endpoint.health;
                    }
                    if made.node.is_empty() {
                        made.node = endpoint.node.clone();
                    }
                    // A Pod's label says most, then its Node's labels; the slice knows the zone alone.
                    let of_node = || self.nodes.get(&made.node).cloned().unwrap_or_default();
                    for known in [of_node(), endpoint.locality.clone()] {
                        if made.locality == Locality::default() {
                            made.locality = known;
                        }
                    }
                    made.hostname = endpoint.hostname.clone();
                    found.entry((address, *number)).or_insert(made);
                }
            }
        }
    }

    fn add_from_workloads(
        &self,
        service: &Service,
        port: &ServicePort,
        found: &mut Found,
        wanted: impl Fn(&Workload) -> bool,
    ) {
        let Some(selector) = &service.selector else { return };
        for key in self.by_label.candidates(&service.key.namespace, selector) {
            let Some(workload) = self.workloads.get(&key) else { continue };
            if !selector.selects(&workload.labels) || !wanted(workload) {
                continue;
            }
            for address in &workload.addresses {
                let by_name = matches!(address, Address::Name(_));
                if by_name && service.kind != ServiceKind::Dns {
                    continue;
                }
                let Some(number) = port_at(workload, address, port) else { continue };
                let mut made = of_workload(workload, address.clone(), number);
                if service.publish_not_ready && made.health == Health::Unhealthy {
                    made.health = Health::Healthy;
                }
                if workload.hostname[1] == service.name {
                    made.hostname = workload.hostname[0].clone();
                }
                found.entry((address.clone(), number)).or_insert(made);
            }
        }
    }

    fn add_from_entry(&self, definition: &Definition, port: &ServicePort, found: &mut Found) {
        let service = &definition.service;
        let inline = definition.entry.as_ref().map_or(&[][..], |e| &e.endpoints);
        for endpoint in inline {
            let Some((_, number)) =
                endpoint.ports.iter().find(|(service_port, _)| *service_port == port.number)
            else {
                continue;
            };
            let made = Endpoint {
                labels: endpoint.labels.clone(),
                locality: endpoint.locality.clone(),
                network: endpoint.network.clone(),
                weight: endpoint.weight,
                service_account: endpoint.service_account.clone(),
                tls: endpoint.tls,
                ..bare(endpoint.address.clone(), *number)
            };
            found.entry((endpoint.address.clone(), *number)).or_insert(made);
        }
        if service.kind == ServiceKind::Dns && inline.is_empty() && service.selector.is_none() {
            let TargetPort::Number(number) = port.target else { return };
            let address = Address::Name(service.host().clone());
            found.entry((address.clone(), number)).or_insert_with(|| bare(address, number));
        }
    }
}

/// Port of a selected workload: 0 for Unix sockets, `None` where a named port is not there.
fn port_at(workload: &Workload, address: &Address, port: &ServicePort) -> Option<u16> {
    if matches!(address, Address::Unix(_)) {
        return Some(0);
    }
    if workload.key.kind == Kind::WorkloadEntry
        && let Some(own) = workload.ports.get(&port.name)
    {
        return Some(*own);
    }
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => workload.ports.get(name).copied(),
    }
}

fn of_workload(workload: &Workload, address: Address, port: u16) -> Endpoint {
    Endpoint {
        address,
        port,
        health: workload.health,
        labels: workload.labels.clone(),
        locality: workload.locality.clone(),
        network: workload.network.clone(),
        weight: workload.weight,
        service_account: workload.service_account.clone(),
        workload: Some(workload.names.clone()),
        tls: workload.tls,
        node: workload.node.clone(),
        hostname: "".into(),
    }
}

/// An endpoint of which only the address is known.
fn bare(address: Address, port: u16) -> Endpoint {
    let empty = || Arc::<str>::from("");
    Endpoint {
        address,
        port,
        health: Health::Healthy,
        labels: Labels::default(),
        locality: Locality::default(),
        network: empty(),
        weight: 1,
        service_account: empty(),
        workload: None,
        tls: TlsMode::Disabled,
        node: empty(),
        hostname: empty(),
    }
}
