//! The Ingresses that are ours, merged: hosts with their paths in the order in which they are tried, and certificates by host.
//!
//! Of two Ingresses that say the same host and path, or the same TLS host, the older one has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use osier_core::host::Host;
use osier_core::labels::Labels;

use crate::model::{Ingress, IngressBackend, IngressPolicy, PathRule, ProxyView, ResourceKey};

/// All Ingresses that are ours.
#[derive(Debug, Default)]
pub struct IngressIndex {
    /// Oldest first.
    all: Vec<Arc<Ingress>>,
    selector: Labels,
    hosts: Vec<IngressHost>,
    tls: Vec<TlsHosts>,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressHost {
    /// Lower-cased; may be a wildcard. `None`: every other host.
    pub host: Option<Host>,
    /// Paths in the order in which they are tried.
    pub paths: Vec<HostPath>,
}

/// One path of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPath {
    /// What it takes.
    pub matches: PathRule,
    /// Who answers.
    pub backend: IngressBackend,
    /// The Ingress that says so; its namespace is the backend's.
    pub ingress: ResourceKey,
}

/// Hosts that share a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsHosts {
    /// Empty: every other host, and clients that name none.
    pub hosts: Vec<Host>,
    /// Name of the Secret, in the gateway's namespace.
    pub secret: Arc<str>,
    /// The Ingress that says so, and which of its entries.
    pub ingress: (ResourceKey, usize),
}

impl IngressIndex {
    /// Indexes those that are ours. `controllers` are those of the classes, by name.
    pub fn build(
        ingresses: impl IntoIterator<Item = Arc<Ingress>>,
        controllers: &BTreeMap<Arc<str>, Arc<str>>,
        policy: &IngressPolicy,
    ) -> Self {
        let is_ours = |ingress: &Arc<Ingress>| {
            let controller = ingress.class.as_ref().and_then(|class| controllers.get(class));
            policy.takes(ingress, controller.map(|controller| &**controller))
        };
        let mut all: Vec<Arc<Ingress>> = ingresses.into_iter().filter(is_ours).collect();
        all.sort_by(|a, b| a.age.cmp(&b.age).then_with(|| a.key.cmp(&b.key)));
        Self { selector: policy.selector.clone(), hosts: hosts(&all), tls: tls(&all), all }
    }

    /// Every Ingress that is ours, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Ingress>> {
        self.all.iter()
    }

    /// True where a client is one of the gateways that serve them.
    pub fn served_by(&self, view: &ProxyView) -> bool {
        view.gateway && self.selector.selects(&view.labels)
    }

    /// Labels of the gateways that serve them.
    pub fn selector(&self) -> &Labels {
        &self.selector
    }

    /// All hosts.
    pub fn hosts(&self) -> &[IngressHost] {
        &self.hosts
    }

    /// All certificates.
    pub fn tls(&self) -> &[TlsHosts] {
        &self.tls
    }

    /// The Ingresses that differ.
    pub fn moved(&self, later: &Self) -> BTreeSet<ResourceKey> {
        let by_key = |index: &Self| -> BTreeMap<ResourceKey, Arc<Ingress>> {
            index.all.iter().map(|ingress| (ingress.key.clone(), ingress.clone())).collect()
        };
        let (before, after) = (by_key(self), by_key(later));
        let keys = before.keys().chain(after.keys());
        keys.filter(|key| before.get(*key) != after.get(*key)).cloned().collect()
    }
}

fn hosts(all: &[Arc<Ingress>]) -> Vec<IngressHost> {
    let mut found: BTreeMap<Option<Host>, Vec<HostPath>> = BTreeMap::new();
    for ingress in all {
        let path = |matches: PathRule, backend: &IngressBackend| HostPath {
            matches,
            backend: backend.clone(),
            ingress: ingress.key.clone(),
        };
        for rule in &ingress.rules {
            let paths = rule.paths.iter().map(|p| path(p.matches.clone(), &p.backend));
            found.entry(rule.host.clone()).or_default().extend(paths);
        }
        if let Some(backend) = &ingress.default_backend {
            let hosts: BTreeSet<_> =
                ingress.rules.iter().map(|rule| rule.host.clone()).chain([None]).collect();
            for host in hosts {
                found.entry(host).or_default().push(path(PathRule::Below("".into()), backend));
            }
        }
    }
    let in_order = |(host, mut paths): (Option<Host>, Vec<HostPath>)| {
        paths.sort_by_key(|path| rank(&path.matches));
        let mut seen = BTreeSet::new();
        paths.retain(|path| seen.insert(rank(&path.matches)));
        IngressHost { host, paths }
    };
    found.into_iter().map(in_order).filter(|host| !host.paths.is_empty()).collect()
}

/// Exact paths first, then the longest; the text at the end makes equal ones equal.
fn rank(rule: &PathRule) -> (u8, std::cmp::Reverse<usize>, u8, Arc<str>) {
    let (exact, text, kind) = match rule {
        PathRule::Exact(text) => (0, text, 0),
        PathRule::Below(text) => (1, text, 0),
        PathRule::Beginning(text) => (1, text, 1),
    };
    (exact, std::cmp::Reverse(text.len()), kind, text.clone())
}

fn tls(all: &[Arc<Ingress>]) -> Vec<TlsHosts> {
    let mut taken: BTreeSet<Host> = BTreeSet::new();
    let mut any_taken = false;
    let mut found = Vec::new();
    for ingress in all {
        for (at, entry) in ingress.tls.iter().enumerate() {
            let any = entry.hosts.is_empty() || entry.hosts.iter().any(|host| host.as_str() == "*");
            let hosts: Vec<Host> = match any {
                true => Vec::new(),
                false => entry.hosts.iter().filter(|host| taken.insert((*host).clone())).cloned().collect(),
            };
            if (any && !std::mem::replace(&mut any_taken, true)) || !hosts.is_empty() {
                let ingress = (ingress.key.clone(), at);
                found.push(TlsHosts { hosts, secret: entry.secret.clone(), ingress });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Age, BackendPort, IngressMode, IngressPath, IngressRule, IngressTls, Kind};

    fn backend(service: &str) -> IngressBackend {
        IngressBackend { service: service.into(), port: BackendPort::Number(80) }
    }

    fn ingress(name: &str, created: i64, rules: Vec<IngressRule>) -> Ingress {
        Ingress {
            key: ResourceKey::new(Kind::Ingress, "default", name),
            age: Age { created, name: name.into(), namespace: "default".into() },
            annotated_class: None,
            class: None,
            default_backend: None,
            rules,
            tls: vec![],
        }
    }

    fn rule(host: &str, paths: &[(PathRule, &str)]) -> IngressRule {
        let path = |(matches, service): &(PathRule, &str)| IngressPath {
            matches: matches.clone(),
            backend: backend(service),
        };
        IngressRule {
            host: (!host.is_empty()).then(|| Host::new(host)),
            paths: paths.iter().map(path).collect(),
        }
    }

    fn build(all: Vec<Ingress>) -> IngressIndex {
        let policy = IngressPolicy { mode: IngressMode::Default, ..IngressPolicy::default() };
        IngressIndex::build(all.into_iter().map(Arc::new), &BTreeMap::new(), &policy)
    }

    fn below(text: &str) -> PathRule {
        PathRule::Below(text.into())
    }

    #[test]
    fn exact_paths_first_then_the_longest_then_the_oldest() {
        let exact = PathRule::Exact("/a".into());
        let young = ingress("young", 2, vec![rule("x.y", &[(below("/a/b"), "deep"), (below("/a"), "late")])]);
        let old = ingress(
            "old",
            1,
            vec![rule("x.y", &[(below(""), "all"), (below("/a"), "early"), (exact, "exact")])],
        );
        let index = build(vec![young, old]);
        let [host] = index.hosts() else { panic!("{:?}", index.hosts()) };
        let order: Vec<&str> = host.paths.iter().map(|path| &*path.backend.service).collect();
        assert_eq!(order, ["exact", "deep", "early", "all"]);
    }

    #[test]
    fn the_default_backend_takes_what_no_rule_takes() {
        let mut one = ingress("one", 1, vec![rule("x.y", &[(below("/a"), "a")]), rule("empty", &[])]);
        one.default_backend = Some(backend("rest"));
        let index =
            build(vec![one, ingress("two", 2, vec![rule("z", &[(below("/z"), "z")]), rule("none", &[])])]);
        let shown: Vec<(&str, Vec<&str>)> = index
            .hosts()
            .iter()
            .map(|h| {
                let host = h.host.as_ref().map_or("*", |host| host.as_str());
                (host, h.paths.iter().map(|p| &*p.backend.service).collect())
            })
            .collect();
        assert_eq!(
            shown,
            [("*", vec!["rest"]), ("empty", vec!["rest"]), ("x.y", vec!["a", "rest"]), ("z", vec!["z"])]
        );
    }

    #[test]
    fn a_tls_host_belongs_to_the_oldest() {
        let tls = |hosts: &[&str], secret: &str| IngressTls {
            hosts: hosts.iter().map(|host| Host::new(host)).collect(),
            secret: secret.into(),
        };
        let mut old = ingress("old", 1, vec![]);
        old.tls = vec![tls(&["a", "b"], "ab"), tls(&[], "any")];
        let mut young = ingress("young", 2, vec![]);
        young.tls = vec![tls(&["b", "c"], "bc"), tls(&["a"], "late"), tls(&["*"], "late")];
        let index = build(vec![young, old]);
        let shown: Vec<(&str, Vec<&str>)> =
            index.tls().iter().map(|t| (&*t.secret, t.hosts.iter().map(|h| h.as_str()).collect())).collect();
        assert_eq!(shown, [("ab", vec!["a", "b"]), ("any", vec![]), ("bc", vec!["c"])]);
    }
}
