//! Services by host, address and port, and which of them a namespace sees.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;
use osier_core::host::Host;

use super::allocation;
use crate::model::{ExportTo, ProxyView, Service, ServiceKey, ServiceKind, ServicePort, ServiceSource};

/// All services.
#[derive(Debug, Default)]
pub struct ServiceIndex {
    /// Oldest first.
    all: Vec<Arc<Service>>,
    /// By host; of each host Kubernetes first, then the oldest. One per namespace.
    by_host: HashMap<Host, Vec<Arc<Service>>>,
    /// Single virtual addresses; of each address in the order of `by_host`.
    by_ip: HashMap<IpAddr, Vec<Arc<Service>>>,
    /// Automatic addresses.
    by_automatic: HashMap<IpAddr, Arc<Service>>,
    /// Address ranges, longest prefix first.
    by_range: Vec<(IpNet, Arc<Service>)>,
    /// Services with a wildcard host, most specific first.
    wildcards: Vec<Arc<Service>>,
    /// ExternalName services, oldest first.
    aliases: Vec<Arc<Service>>,
}

/// What a connection was meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OriginalDestination<'a> {
    /// A virtual address of a service.
    Vip {
        /// The service.
        service: &'a Arc<Service>,
        /// Its port.
        port: &'a ServicePort,
    },
    /// Inside of an address range of a ServiceEntry.
    Range {
        /// The range.
        range: IpNet,
        /// The service.
        service: &'a Arc<Service>,
        /// Its port.
        port: &'a ServicePort,
    },
    /// An endpoint of a headless service.
    Headless {
        /// The service.
        service: &'a Arc<Service>,
        /// Its port.
        port: &'a ServicePort,
    },
    /// None of those.
    Unknown,
}

impl ServiceIndex {
    /// Indexes services. `default_export` is the mesh's `defaultServiceExportTo`.
    ///
    /// Where one namespace has several services of one host, Kubernetes wins, then the oldest; the others are dropped.
    pub fn build(services: impl IntoIterator<Item: Into<Arc<Service>>>, default_export: &ExportTo) -> Self {
        Self::default().rebuilt(services, default_export)
    }

    /// The index that follows this one: automatic addresses stay where they were.
    #[must_use]
    pub fn rebuilt(
        &self,
        services: impl IntoIterator<Item: Into<Arc<Service>>>,
        default_export: &ExportTo,
    ) -> Self {
        let mut all: Vec<Arc<Service>> = services.into_iter().map(Into::into).collect();
        all.sort_by(|a, b| precedence(a, b));
        let mut index = Self::default();
        for mut service in all {
            let exports = service.export_to.resolve(&service.key.namespace, default_export);
            if service.exports != exports {
                Arc::make_mut(&mut service).exports = exports;
            }
            let same_host = index.by_host.entry(service.key.host.clone()).or_default();
            if same_host.iter().any(|s| s.key == service.key) {
                continue;
            }
            same_host.push(service.clone());
            index.all.push(service);
        }
        index.all.sort_by(|a, b| a.age.cmp(&b.age).then_with(|| a.key.cmp(&b.key)));
        allocation::allocate(&mut index.all, self);
        for service in index.all.iter().filter(|service| !service.automatic.is_empty()) {
            let same_host = index.by_host.get_mut(&service.key.host).into_iter().flatten();
            same_host.filter(|s| s.key == service.key).for_each(|s| *s = service.clone());
            index.by_automatic.extend(service.automatic.iter().map(|ip| (*ip, service.clone())));
        }
        let mut by_precedence: Vec<&Arc<Service>> = index.all.iter().collect();
        by_precedence.sort_by(|a, b| precedence(a, b));
        for service in by_precedence {
            for range in &service.addresses {
                if range.prefix_len() == range.max_prefix_len() {
                    index.by_ip.entry(range.addr()).or_default().push(service.clone());
                } else {
                    index.by_range.push((*range, service.clone()));
                }
            }
            if service.host().is_wildcard() {
                index.wildcards.push(service.clone());
            }
        }
        index.by_range.sort_by_key(|(range, _)| std::cmp::Reverse(range.prefix_len()));
        index.wildcards.sort_by(|a, b| a.host().by_specificity(b.host()));
        let is_alias = |s: &&Arc<Service>| matches!(s.kind, ServiceKind::ExternalName(_));
        index.aliases = index.all.iter().filter(is_alias).cloned().collect();
        index
    }

    /// Every service, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.all.iter()
    }

    /// Services whose automatic addresses are others than in `before`: one may have lost its own to somebody else.
    pub fn readdressed_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a ServiceKey> {
        let differs =
            |s: &&Arc<Service>| before.by_key(&s.key).is_some_and(|old| old.automatic != s.automatic);
        self.all.iter().filter(differs).map(|service| &service.key)
    }

    /// The service with exactly this key.
    pub fn by_key(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.by_host.get(&key.host)?.iter().find(|s| s.key == *key)
    }

    /// What `host` means for `namespace`.
    pub fn get(&self, namespace: &str, host: &str) -> Option<&Arc<Service>> {
        choose(self.by_host.get(host)?, namespace)
    }

    /// One service per host, oldest first.
    pub fn visible_to(&self, namespace: &str) -> Vec<&Arc<Service>> {
        let is_winner = |s: &&Arc<Service>| {
            s.exports.visible_to(namespace)
                && self.get(namespace, s.host().as_str()).is_some_and(|winner| Arc::ptr_eq(winner, s))
        };
        self.all.iter().filter(is_winner).collect()
    }

    /// The service at a virtual address that has this port.
    pub(super) fn by_address(
        &self,
        view: &ProxyView,
        ip: IpAddr,
        port: u16,
    ) -> Option<OriginalDestination<'_>> {
        let namespace = &*view.namespace;
        let seen = |s: &Arc<Service>| {
            s.port(port).is_some()
                && self.get(namespace, s.host().as_str()).is_some_and(|winner| winner.key == s.key)
        };
        let exact = self.by_ip.get(&ip).and_then(|services| {
            let mut seen = services.iter().filter(|s| seen(s));
            let first = seen.next()?;
            if *first.key.namespace == *namespace {
                return Some(first);
            }
            Some(seen.find(|s| *s.key.namespace == *namespace).unwrap_or(first))
        });
        let automatic = || self.by_automatic.get(&ip).filter(|s| view.dns_capture && seen(s));
        if let Some(service) = exact.or_else(automatic) {
            return Some(OriginalDestination::Vip { service, port: service.port(port)? });
        }
        let (range, service) = self.by_range.iter().find(|(range, s)| range.contains(&ip) && seen(s))?;
        Some(OriginalDestination::Range { range: *range, service, port: service.port(port)? })
    }

    /// Follows ExternalName aliases. `None` if they run in a circle.
    pub fn resolve_alias(&self, namespace: &str, host: &str) -> Option<Host> {
        let mut host = Host::new(host);
        let mut visited = Vec::new();
        while let Some(ServiceKind::ExternalName(target)) =
            self.get(namespace, host.as_str()).map(|s| &s.kind)
        {
            visited.push(host);
            if visited.contains(target) {
                return None;
            }
            host = target.clone();
        }
        Some(host)
    }

    /// ExternalName services that stand for `target` in the end.
    pub fn aliases_of(&self, namespace: &str, target: &str) -> Vec<&Arc<Service>> {
        let seen = self
            .aliases
            .iter()
            .filter(|s| self.get(namespace, s.host().as_str()).is_some_and(|winner| Arc::ptr_eq(winner, s)));
        seen.filter(|s| {
            self.resolve_alias(namespace, s.host().as_str()).is_some_and(|end| end.as_str() == target)
        })
        .collect()
    }
}

/// Kubernetes before ServiceEntry, then the oldest.
fn precedence(a: &Service, b: &Service) -> Ordering {
    let entry = |s: &Service| s.source == ServiceSource::ServiceEntry;
    entry(a).cmp(&entry(b)).then_with(|| a.age.cmp(&b.age)).then_with(|| a.key.cmp(&b.key))
}

/// Own namespace first, else the first that is visible.
fn choose<'a>(services: &'a [Arc<Service>], namespace: &str) -> Option<&'a Arc<Service>> {
    let mut visible = services.iter().filter(|s| s.exports.visible_to(namespace));
    let first = visible.next()?;
    if *first.key.namespace == *namespace {
        return Some(first);
    }
    Some(visible.find(|s| *s.key.namespace == *namespace).unwrap_or(first))
}
