//! Which virtual hosts a route configuration has, and which domains each one answers to.
//!
//! Every host keeps its own name; a short variant that equals some real host is dropped, and of other duplicates the first
//! (oldest) keeps the domain. So domains are unique over the configuration, which Envoy demands.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use osier_core::host::Host;

use super::ConfigName;
use crate::r#gen::scope::Scope;
use crate::model::{Service, ServiceKind};

/// Catch-all where unknown hosts pass through.
pub(super) const ALLOW_ANY: &str = "allow_any";
/// Catch-all where they are refused.
pub(super) const BLOCK_ALL: &str = "block_all";

/// Virtual hosts of a route configuration.
#[derive(Debug, Default)]
pub struct Plan {
    hosts: Vec<PlannedHost>,
    by_domain: HashMap<String, usize>,
    /// `*.foo` as `.foo`, longest first.
    suffixes: Vec<(String, usize)>,
    /// It is asked with the ports of hosts.
    pub(super) keeps_port: bool,
}

/// One virtual host.
#[derive(Debug)]
pub struct PlannedHost {
    /// Its name.
    pub name: String,
    /// The hosts that it answers to.
    pub domains: Vec<String>,
    pub(super) what: What,
}

/// What a virtual host stands for.
#[derive(Debug)]
pub(super) enum What {
    /// A service port.
    Service { service: Arc<Service>, port: u16 },
    /// A host that only a VirtualService names.
    Extra { host: Host, port: u16 },
    /// Everything else.
    CatchAll,
}

impl What {
    pub(super) fn is_catch_all(&self) -> bool {
        matches!(self, Self::CatchAll)
    }
}

impl Plan {
    /// The plan of a configuration; `None` where the client has none of that name.
    pub fn build(scope: &Scope<'_>, config: &ConfigName) -> Option<Self> {
        let hosts = match config {
            ConfigName::Service { host, port } => only(scope, host, *port)?,
            ConfigName::Grpc(outbound) => only(scope, &outbound.host, outbound.port)?,
            ConfigName::Port(port) => Domains::new(scope).all(Some(*port))?,
            // Gateways get it whole.
            ConfigName::Ingress(_) => return None,
            ConfigName::Proxy => Domains::new(scope).all(None)?,
        };
        let mut plan = Self { hosts, keeps_port: config.keeps_port(), ..Self::default() };
        for (at, host) in plan.hosts.iter().enumerate() {
            for domain in &host.domains {
                plan.by_domain.insert(domain.clone(), at);
                if let Some(suffix) = domain.strip_prefix('*').filter(|s| !s.is_empty()) {
                    plan.suffixes.push((suffix.to_string(), at));
                }
            }
        }
        plan.suffixes.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        Some(plan)
    }

    /// All virtual hosts, by name, the catch-all last.
    pub fn hosts(&self) -> &[PlannedHost] {
        &self.hosts
    }

    /// The virtual host that answers to a host: its exact name, the longest `*.suffix`, the catch-all.
    pub fn lookup(&self, host: &str) -> Option<&PlannedHost> {
        let suffix = || {
            let covers =
                |(suffix, _): &&(String, usize)| host.len() > suffix.len() && host.ends_with(suffix.as_str());
            self.suffixes.iter().find(covers).map(|(_, at)| at)
        };
        let at = self.by_domain.get(host).or_else(suffix).or_else(|| self.by_domain.get("*"))?;
        self.hosts.get(*at)
    }
}

/// A configuration of one service port, where the port of the listener tells the service already.
fn only(scope: &Scope<'_>, host: &str, port: u16) -> Option<Vec<PlannedHost>> {
    let service = scope.service(host)?;
    if !service.port(port)?.protocol.may_be_http() && !scope.view().is_grpc() {
        return None;
    }
    Some(vec![PlannedHost {
        name: format!("{host}:{port}"),
        domains: vec!["*".to_string()],
        what: What::Service { service: service.clone(), port },
    }])
}

/// Gives domains out, each once.
struct Domains<'a> {
    scope: &'a Scope<'a>,
    /// Real hosts: no short variant may take them.
    real: HashSet<String>,
    taken: HashSet<String>,
}

impl<'a> Domains<'a> {
    fn new(scope: &'a Scope<'a>) -> Self {
        Self { scope, real: HashSet::new(), taken: HashSet::new() }
    }

    /// All virtual hosts on a port, or on all ports.
    fn all(mut self, only_port: Option<u16>) -> Option<Vec<PlannedHost>> {
        let mut wanted: Vec<(String, What, u16)> = Vec::new();
        let mut ports: Vec<u16> = only_port.into_iter().collect();
        for service in self.scope.services() {
            if matches!(service.kind, ServiceKind::ExternalName(_)) {
                continue;
            }
            for port in service.ports.iter().filter(|p| p.protocol.may_be_http()) {
                if only_port.is_none_or(|only| only == port.number) {
                    let what = What::Service { service: service.clone(), port: port.number };
                    wanted.push((service.host().to_string(), what, port.number));
                    ports.push(port.number);
                }
            }
        }
        ports.push(80);
        ports.sort_unstable();
        ports.dedup();
        for port in ports.into_iter().filter(|p| only_port.is_none_or(|only| only == *p)) {
            for extra in self.scope.snapshot.extra_hosts(&self.scope.view().proxy, port) {
                let what = What::Extra { host: extra.host.clone(), port };
                wanted.push((extra.host.to_string(), what, port));
            }
        }
        if wanted.is_empty() && only_port.is_some() {
            return None;
        }
        self.real = wanted.iter().map(|(host, ..)| host.clone()).collect();
        let with_port = only_port.is_none();
        let mut hosts: Vec<PlannedHost> = wanted
            .into_iter()
            .filter_map(|(host, what, port)| self.host(&host, what, port, with_port))
            .collect();
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        hosts.extend(self.catch_all());
        Some(hosts)
    }

    /// One virtual host with the domains that are still free; `None` if none is.
    fn host(&mut self, host: &str, what: What, port: u16, with_port: bool) -> Option<PlannedHost> {
        let mut candidates = self.variants(host);
        if let What::Service { service, .. } = &what {
            let aliases = self.scope.snapshot.aliases_of(&self.scope.view().proxy.namespace, host);
            for alias in aliases {
                candidates.extend(self.variants(alias.host().as_str()));
            }
            if service.kind == ServiceKind::Headless {
                let pods: Vec<String> = candidates.iter().map(|name| format!("*.{name}")).collect();
                candidates.extend(pods);
            }
            let single = |a: &&ipnet::IpNet| a.prefix_len() == a.max_prefix_len();
            candidates.extend(service.addresses.iter().filter(single).map(|a| match a.addr() {
                std::net::IpAddr::V4(ip) => ip.to_string(),
                std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            }));
        }
        let mut domains = Vec::new();
        for name in candidates {
            if name != host && self.real.contains(&name) {
                continue;
            }
            // An explicit proxy is asked for `host:port`, and for the bare host where the port is 80.
            let forms = match with_port {
                false => vec![name],
                true if name.contains('*') => Vec::from_iter((port == 80).then_some(name)),
                true if port == 80 => vec![format!("{name}:80"), name],
                true => vec![format!("{name}:{port}")],
            };
            domains.extend(forms.into_iter().filter(|form| self.taken.insert(form.clone())));
        }
        (!domains.is_empty()).then(|| PlannedHost { name: format!("{host}:{port}"), domains, what })
    }

    /// A host's own name, with its final dot, and its short forms.
    fn variants(&self, host: &str) -> Vec<String> {
        let mut names = vec![host.to_string()];
        if host.contains('*') || host.parse::<std::net::IpAddr>().is_ok() {
            return names;
        }
        names.push(format!("{host}."));
        let suffix = format!(".svc.{}", self.scope.snapshot.cluster_domain);
        if let Some((name, namespace)) = host.strip_suffix(&suffix).and_then(|head| head.rsplit_once('.')) {
            if *namespace == *self.scope.view().proxy.namespace {
                names.push(name.to_string());
            }
            names.push(format!("{name}.{namespace}.svc"));
            names.push(format!("{name}.{namespace}"));
        }
        names
    }

    /// Unless some host is `*` itself.
    fn catch_all(&self) -> Option<PlannedHost> {
        let name = if self.scope.allows_unknown() { ALLOW_ANY } else { BLOCK_ALL };
        let free = !self.taken.contains("*") && !self.scope.view().is_grpc();
        free.then(|| PlannedHost { name: name.into(), domains: vec!["*".into()], what: What::CatchAll })
    }
}
