//! Endpoints by service, and services by endpoint address.
//!
//! This part alone is replaced when only endpoints change. The address side is split into shards, so that a change copies only
//! the shards that its addresses fall into.

use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::model::{Address, Endpoint, Protocol, Service, ServiceKey, ServicePort, TlsMode};

const SHARDS: usize = 64;

type Shard = HashMap<IpAddr, Vec<AddressUse>>;

/// All endpoints.
#[derive(Debug, Clone)]
pub struct EndpointIndex {
    by_service: Arc<HashMap<ServiceKey, Arc<ServiceEndpoints>>>,
    by_address: Box<[Arc<Shard>]>,
}

/// Endpoints of one service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceEndpoints {
    /// By service port.
    pub ports: Vec<PortEndpoints>,
}

/// Endpoints of one service port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortEndpoints {
    /// Service port.
    pub port: u16,
    /// Its endpoints, sorted by address.
    pub endpoints: Arc<[Endpoint]>,
}

/// Who answers at some endpoints of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerIdentity {
    /// Whether they take mutual TLS.
    pub tls: TlsMode,
    /// Namespace of the account.
    pub namespace: Arc<str>,
    /// Service account; empty where unknown.
    pub service_account: Arc<str>,
}

/// One service port that an address serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AddressUse {
    /// The service.
    pub service: ServiceKey,
    /// Its port.
    pub service_port: u16,
    /// The port at the address.
    pub endpoint_port: u16,
}

/// A port that a proxy serves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundPort<'a> {
    /// Port of the workload.
    pub port: u16,
    /// Protocol, as the oldest service says.
    pub protocol: Protocol,
    /// Services behind it with their ports, oldest first; at least one.
    pub services: Vec<(&'a Arc<Service>, &'a ServicePort)>,
}

impl ServiceEndpoints {
    /// Endpoints of one service port.
    pub fn port(&self, number: u16) -> Option<&Arc<[Endpoint]>> {
        self.ports.iter().find(|p| p.port == number).map(|p| &p.endpoints)
    }

    /// Who answers for the service: what its clients are told of certificates. Few, however many endpoints there are.
    pub fn identities(&self, service: &ServiceKey) -> BTreeSet<ServerIdentity> {
        let identity = |endpoint: &Endpoint| ServerIdentity {
            tls: endpoint.tls,
            namespace: endpoint.namespace(service).clone(),
            service_account: endpoint.service_account.clone(),
        };
        self.ports.iter().flat_map(|port| port.endpoints.iter().map(identity)).collect()
    }

    fn uses(&self) -> impl Iterator<Item = (IpAddr, u16, u16)> {
        let of_port = |p: &PortEndpoints| {
            let port = p.port;
            p.endpoints
                .clone()
                .iter()
                .filter_map(|e| Some((ip(&e.address)?, port, e.port)))
                .collect::<Vec<_>>()
        };
        self.ports.iter().flat_map(of_port)
    }
}

fn ip(address: &Address) -> Option<IpAddr> {
    address.ip()
}

impl Default for EndpointIndex {
    fn default() -> Self {
        Self { by_service: Arc::default(), by_address: (0..SHARDS).map(|_| Arc::default()).collect() }
    }
}

impl EndpointIndex {
    /// Indexes the endpoints of all services.
    pub fn build(services: impl IntoIterator<Item = (ServiceKey, Arc<ServiceEndpoints>)>) -> Self {
        Self::default().with(services.into_iter().map(|(key, endpoints)| (key, Some(endpoints))))
    }

    /// This index with some services replaced, or taken out where `None`. Unchanged shards are shared.
    #[must_use]
    pub fn with(
        &self,
        changed: impl IntoIterator<Item = (ServiceKey, Option<Arc<ServiceEndpoints>>)>,
    ) -> Self {
        let mut next = self.clone();
        let by_service = Arc::make_mut(&mut next.by_service);
        for (key, endpoints) in changed {
            let old = match endpoints.clone() {
                Some(new) => by_service.insert(key.clone(), new),
                None => by_service.remove(&key),
            };
            if let Some(old) = old {
                remove_uses(&mut next.by_address, &key, &old);
            }
            if let Some(new) = endpoints {
                add_uses(&mut next.by_address, &key, &new);
            }
        }
        next
    }

    /// Endpoints of a service.
    pub fn get(&self, service: &ServiceKey) -> Option<&Arc<ServiceEndpoints>> {
        self.by_service.get(service)
    }

    /// Everything that an address serves.
    pub fn at_address(&self, ip: IpAddr) -> &[AddressUse] {
        self.by_address[shard_of(ip)].get(&ip).map_or(&[], Vec::as_slice)
    }

    /// Services with endpoints.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceKey, &Arc<ServiceEndpoints>)> {
        self.by_service.iter()
    }
}

fn shard_of(ip: IpAddr) -> usize {
    // a fixed seed: the place of an address must be the same in every snapshot
    (foldhash::fast::FixedState::with_seed(0).hash_one(ip) as usize) % SHARDS
}

fn remove_uses(shards: &mut [Arc<Shard>], key: &ServiceKey, endpoints: &ServiceEndpoints) {
    for (ip, _, _) in endpoints.uses() {
        let shard = Arc::make_mut(&mut shards[shard_of(ip)]);
        if let Some(uses) = shard.get_mut(&ip) {
            uses.retain(|used| used.service != *key);
            if uses.is_empty() {
                shard.remove(&ip);
            }
        }
    }
}

fn add_uses(shards: &mut [Arc<Shard>], key: &ServiceKey, endpoints: &ServiceEndpoints) {
    for (ip, service_port, endpoint_port) in endpoints.uses() {
        let used = AddressUse { service: key.clone(), service_port, endpoint_port };
        let uses = Arc::make_mut(&mut shards[shard_of(ip)]).entry(ip).or_default();
        if !uses.contains(&used) {
            uses.push(used);
        }
    }
}

#[cfg(test)]
mod tests {
    use osier_core::host::Host;

    use super::*;
    use crate::model::{Health, Locality, TlsMode};

    fn key(host: &str) -> ServiceKey {
        ServiceKey { host: Host::new(host), namespace: "ns".into() }
    }

    fn endpoints(port: u16, at: &[(&str, u16)]) -> Arc<ServiceEndpoints> {
        let one = |(ip, port): &(&str, u16)| Endpoint {
            address: Address::Ip(ip.parse().unwrap()),
            port: *port,
            health: Health::Healthy,
            labels: Default::default(),
            locality: Locality::default(),
            network: "".into(),
            weight: 1,
            service_account: "".into(),
            workload: None,
            tls: TlsMode::Disabled,
            node: "".into(),
            hostname: "".into(),
        };
        Arc::new(ServiceEndpoints {
            ports: vec![PortEndpoints { port, endpoints: at.iter().map(one).collect() }],
        })
    }

    #[test]
    fn a_change_replaces_only_its_own_service_and_shards() {
        let first = EndpointIndex::build([
            (key("a"), endpoints(80, &[("10.0.0.1", 8080), ("10.0.0.2", 8080)])),
            (key("b"), endpoints(90, &[("10.0.0.1", 9090)])),
        ]);
        let second = first.with([(key("a"), Some(endpoints(80, &[("10.0.0.2", 8080), ("10.0.0.3", 8080)])))]);
        let hosts = |index: &EndpointIndex, ip: &str| {
            index
                .at_address(ip.parse().unwrap())
                .iter()
                .map(|u| u.service.host.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(hosts(&first, "10.0.0.1"), ["a", "b"], "the old snapshot is untouched");
        assert_eq!(hosts(&second, "10.0.0.1"), ["b"]);
        assert_eq!(hosts(&second, "10.0.0.3"), ["a"]);
        assert!(Arc::ptr_eq(first.get(&key("b")).unwrap(), second.get(&key("b")).unwrap()));
        let shared =
            (0..SHARDS).filter(|s| Arc::ptr_eq(&first.by_address[*s], &second.by_address[*s])).count();
        assert!(shared >= SHARDS - 3, "{shared} shards are shared");
        let third = second.with([(key("a"), None)]);
        assert!(third.get(&key("a")).is_none());
        assert!(third.at_address("10.0.0.3".parse().unwrap()).is_empty());
    }
}
