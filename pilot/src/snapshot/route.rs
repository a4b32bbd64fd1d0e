//! VirtualServices by host, and the choice among them for a client.
//!
//! Candidates come in three groups, each oldest first: private ones of the client's namespace, those exported to it by name,
//! public ones. An exact host goes before wildcards, longer wildcards before shorter ones. Rules are never merged on sidecars;
//! a rule of which nothing is left for the proxy counts as absent.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use osier_core::host::Host;

use super::service::ServiceIndex;
use crate::model::{
    Age, ExportTo, Exports, GatewayRef, HttpMatch, HttpRoute, L4Match, ProxyView, RouteRule, Service,
    ServiceKind,
};

/// All VirtualServices that apply to sidecars.
#[derive(Debug, Default)]
pub struct RouteIndex {
    /// Oldest first.
    all: Vec<Entry>,
    exact: HashMap<Host, Vec<usize>>,
    /// Most specific first.
    wildcard: Vec<(Host, Vec<usize>)>,
}

#[derive(Debug)]
struct Entry {
    exports: Exports,
    rule: Arc<RouteRule>,
}

/// An HTTP route with the matches that are left for one proxy and port.
#[derive(Debug, Clone, PartialEq)]
pub struct ApplicableRoute<'a> {
    /// The route.
    pub route: &'a HttpRoute,
    /// Its matches that hold statically, in order; empty if the route has none, so that it takes everything.
    pub matches: Vec<&'a HttpMatch>,
}

/// A virtual host for something that is no service on its port.
#[derive(Debug, Clone)]
pub struct ExtraHost<'a> {
    /// Its host or wildcard.
    pub host: &'a Host,
    /// The rule that names it.
    pub rule: &'a Arc<RouteRule>,
    /// Routes that are left; at least one.
    pub routes: Vec<ApplicableRoute<'a>>,
}

/// True if a match's static conditions hold. A match that names gateways is tested for them and its port only.
pub fn applies(matched: &HttpMatch, view: &ProxyView, port: u16) -> bool {
    if matched.port.is_some_and(|p| p != port) {
        return false;
    }
    if !matched.gateways.is_empty() {
        return matched.gateways.contains(&GatewayRef::Mesh);
    }
    matched.source_labels.selects(&view.labels)
        && matched.source_namespace.as_ref().is_none_or(|ns| *ns == view.namespace)
}

/// The same for TLS and TCP, where all conditions are tested.
pub fn l4_applies(matched: &L4Match, view: &ProxyView, port: u16) -> bool {
    matched.port.is_none_or(|p| p == port)
        && (matched.gateways.is_empty() || matched.gateways.contains(&GatewayRef::Mesh))
        && matched.source_labels.selects(&view.labels)
        && matched.source_namespace.as_ref().is_none_or(|ns| *ns == view.namespace)
}

/// What is left of a rule's HTTP routes; ends with the first match that takes everything.
fn applicable<'a>(rule: &'a RouteRule, view: &ProxyView, port: u16) -> Vec<ApplicableRoute<'a>> {
    let mut routes = Vec::new();
    for route in &rule.http {
        let mut matches = Vec::new();
        let mut last = route.matches.is_empty();
        for matched in route.matches.iter().filter(|m| applies(m, view, port)) {
            matches.push(matched);
            if matched.catches_all() {
                last = true;
                break;
            }
        }
        if !matches.is_empty() || route.matches.is_empty() {
            routes.push(ApplicableRoute { route, matches });
        }
        if last {
            break;
        }
    }
    routes
}

impl RouteIndex {
    /// Indexes rules. `default_export` is the mesh's `defaultVirtualServiceExportTo`.
    pub fn build(rules: impl IntoIterator<Item = Arc<RouteRule>>, default_export: &ExportTo) -> Self {
        let mut rules: Vec<_> = rules.into_iter().filter(|r| r.for_mesh()).collect();
        rules.sort_by(|a, b| a.age.cmp(&b.age));
        let mut index = Self::default();
        let mut by_host: HashMap<Host, Vec<usize>> = HashMap::new();
        for (at, rule) in rules.into_iter().enumerate() {
            for host in &rule.hosts {
                by_host.entry(host.clone()).or_default().push(at);
            }
            let exports = rule.export_to.resolve(&rule.key.namespace, default_export);
            index.all.push(Entry { exports, rule });
        }
        let (wildcard, exact): (Vec<_>, Vec<_>) =
            by_host.into_iter().partition(|(host, _)| host.is_wildcard());
        index.exact = exact.into_iter().collect();
        index.wildcard = wildcard;
        index.wildcard.sort_by(|(a, _), (b, _)| a.by_specificity(b));
        index
    }

    /// Every rule that applies to sidecars, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<RouteRule>> {
        self.all.iter().map(|e| &e.rule)
    }

    /// Rules that clients of `namespace` see, in candidate order.
    pub fn candidates(&self, namespace: &str) -> Vec<&Arc<RouteRule>> {
        self.ordered(0..self.all.len(), namespace)
    }

    /// The rule whose HTTP routes hold for `host` on `port`.
    pub(super) fn http_for_host(
        &self,
        view: &ProxyView,
        host: &Host,
        port: u16,
    ) -> Option<(&Arc<RouteRule>, Vec<ApplicableRoute<'_>>)> {
        self.rules_for_host(&view.namespace, host).into_iter().find_map(|rule| {
            let routes = applicable(rule, view, port);
            (!routes.is_empty()).then_some((rule, routes))
        })
    }

    /// Rules with TLS or TCP routes that hold for `host`. Unlike HTTP, candidate order alone counts: all that match are used.
    pub(super) fn l4_for_host(&self, view: &ProxyView, host: &Host) -> Vec<&Arc<RouteRule>> {
        let wildcard =
            self.wildcard.iter().filter(|(pattern, _)| pattern.covers(host)).flat_map(|(_, at)| at);
        let all = self.exact.get(host).into_iter().flatten().chain(wildcard).copied();
        let with_l4 =
            all.filter(|at| !self.all[*at].rule.tls.is_empty() || !self.all[*at].rule.tcp.is_empty());
        self.ordered(with_l4, &view.namespace)
    }

    /// All visible rules for a host, the one to be used first at the front.
    fn rules_for_host(&self, namespace: &str, host: &Host) -> Vec<&Arc<RouteRule>> {
        let exact = self.exact.get(host).into_iter();
        let wildcard = self.wildcard.iter().filter(|(pattern, _)| pattern.covers(host)).map(|(_, at)| at);
        exact.chain(wildcard).flat_map(|at| self.ordered(at.iter().copied(), namespace)).collect()
    }

    /// Hosts of rules that are no services on `port`; see `MeshSnapshot::extra_hosts`.
    pub(super) fn extra_hosts(
        &self,
        services: &ServiceIndex,
        view: &ProxyView,
        port: u16,
    ) -> Vec<ExtraHost<'_>> {
        let here: Vec<_> =
            services.visible_to(&view.namespace).into_iter().filter(|s| serves(s, port)).collect();
        let hosts: HashSet<&str> = here.iter().map(|s| s.host().as_str()).collect();
        let wildcards: Vec<&Host> = here.iter().map(|s| s.host()).filter(|h| h.is_wildcard()).collect();
        let names_service = |host: &Host| match host.is_wildcard() {
            true => here.iter().any(|s| host.covers(s.host())),
            false => hosts.contains(host.as_str()),
        };
        let mut found = Vec::new();
        let mut claimed: HashSet<&Host> = HashSet::new();
        for rule in self.candidates(&view.namespace) {
            if port != 80
                && !rule.hosts.iter().any(|h| names_service(h) || wildcards.iter().any(|w| w.covers(h)))
            {
                continue;
            }
            for host in rule.hosts.iter().filter(|h| !names_service(h)) {
                let routes = applicable(rule, view, port);
                if !routes.is_empty() && claimed.insert(host) {
                    found.push(ExtraHost { host, rule, routes });
                }
            }
        }
        found
    }

    /// The visible ones of `at`, in candidate order, each once.
    fn ordered(&self, at: impl IntoIterator<Item = usize>, namespace: &str) -> Vec<&Arc<RouteRule>> {
        let mut found: Vec<(u8, &Age, &Arc<RouteRule>)> = Vec::new();
        for entry in at.into_iter().map(|at| &self.all[at]).filter(|e| e.exports.visible_to(namespace)) {
            let own = *entry.rule.key.namespace == *namespace;
            let group = match &entry.exports {
                Exports::Public | Exports::Hidden => 2,
                exports if own && exports.private_to(namespace) => 0,
                Exports::Namespaces(_) => 1,
            };
            found.push((group, &entry.rule.age, &entry.rule));
        }
        found.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        found.dedup_by(|a, b| Arc::ptr_eq(a.2, b.2));
        found.into_iter().map(|(_, _, rule)| rule).collect()
    }
}

/// True if a service takes part in the HTTP routes of a port.
fn serves(service: &Service, port: u16) -> bool {
    !matches!(service.kind, ServiceKind::ExternalName(_))
        && service.port(port).is_some_and(|p| p.protocol.may_be_http())
}
