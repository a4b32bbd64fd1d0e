//! DestinationRules by namespace and host: merging, and the search that finds the one for a client and a service.

use std::sync::Arc;

use hashbrown::HashMap;
use osier_core::host::Host;

use crate::model::{DestinationPolicy, ExportTo, Exports, ProxyView, ServiceKey};

/// All DestinationRules.
#[derive(Debug, Default)]
pub struct PolicyIndex {
    by_namespace: HashMap<Arc<str>, NamespacePolicies>,
}

#[derive(Debug, Default)]
struct NamespacePolicies {
    exact: HashMap<Host, Vec<Entry>>,
    /// Most specific first.
    wildcard: Vec<(Host, Vec<Entry>)>,
}

/// One rule after merging.
#[derive(Debug)]
struct Entry {
    exports: Exports,
    policy: Arc<DestinationPolicy>,
}

impl PolicyIndex {
    /// Indexes and merges rules. `default_export` is the mesh's `defaultDestinationRuleExportTo`.
    pub fn build(rules: impl IntoIterator<Item = Arc<DestinationPolicy>>, default_export: &ExportTo) -> Self {
        let mut rules: Vec<_> = rules.into_iter().collect();
        // those with a selector first, then the oldest
        rules.sort_by(|a, b| (a.selector.is_none(), &a.age).cmp(&(b.selector.is_none(), &b.age)));
        let mut grouped: HashMap<Arc<str>, HashMap<Host, Vec<Entry>>> = HashMap::new();
        for rule in rules {
            let namespace = rule.key.namespace.clone();
            let exports = match rule.selector {
                Some(_) => Exports::Namespaces([namespace.clone()].into()),
                None => rule.export_to.resolve(&namespace, default_export),
            };
            let same_host = grouped.entry(namespace).or_default().entry(rule.host.clone()).or_default();
            add(same_host, Entry { exports, policy: rule });
        }
        let sorted = |hosts: HashMap<Host, Vec<Entry>>| {
            let (wildcard, exact): (Vec<_>, Vec<_>) =
                hosts.into_iter().partition(|(host, _)| host.is_wildcard());
            let mut policies = NamespacePolicies { exact: exact.into_iter().collect(), wildcard };
            policies.wildcard.sort_by(|(a, _), (b, _)| a.by_specificity(b));
            policies
        };
        Self { by_namespace: grouped.into_iter().map(|(ns, hosts)| (ns, sorted(hosts))).collect() }
    }

    /// The rule for traffic of `view` to `service`.
    pub fn lookup(
        &self,
        view: &ProxyView,
        root: &str,
        service: &ServiceKey,
    ) -> Option<&Arc<DestinationPolicy>> {
        let client = &*view.namespace;
        let in_client_namespace = |entry: &Entry| match client == root {
            true => entry.exports.private_to(root),
            false => entry.exports.visible_to(client),
        };
        if let Some(hit) = self.most_specific(client, &service.host, in_client_namespace) {
            return at_proxy(view, &hit);
        }
        for namespace in [&*service.namespace, root] {
            // the most specific host is chosen first; if it isn't exported, less specific ones are not tried
            let entries = self.most_specific(namespace, &service.host, |_| true).unwrap_or_default();
            let exported: Vec<_> = entries.into_iter().filter(|e| e.exports.visible_to(client)).collect();
            if !exported.is_empty() {
                return at_proxy(view, &exported);
            }
        }
        None
    }

    /// Rules of one namespace for the most specific host that has any which `wanted` takes.
    fn most_specific(
        &self,
        namespace: &str,
        host: &Host,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Option<Vec<&Entry>> {
        let policies = self.by_namespace.get(namespace)?;
        let exact = policies.exact.get(host);
        let wildcard =
            policies.wildcard.iter().filter(|(pattern, _)| pattern.covers(host)).map(|(_, entries)| entries);
        exact.into_iter().chain(wildcard).find_map(|entries| {
            let taken: Vec<_> = entries.iter().filter(|e| wanted(e)).collect();
            (!taken.is_empty()).then_some(taken)
        })
    }

    /// Every rule after merging, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<DestinationPolicy>> {
        self.by_namespace.values().flat_map(|n| {
            n.exact.values().flatten().chain(n.wildcard.iter().flat_map(|(_, e)| e)).map(|e| &e.policy)
        })
    }
}

/// The first whose selector matches the proxy, else the first without a selector.
fn at_proxy<'a>(view: &ProxyView, entries: &[&'a Entry]) -> Option<&'a Arc<DestinationPolicy>> {
    let selected = |e: &&&Entry| e.policy.selector.as_ref().is_some_and(|s| s.selects(&view.labels));
    let general = |e: &&&Entry| e.policy.selector.is_none();
    entries.iter().find(selected).or_else(|| entries.iter().find(general)).map(|e| &e.policy)
}

/// Adds a rule to the older ones of its host, merging it where their conditions allow.
fn add(entries: &mut Vec<Entry>, new: Entry) {
    let mut keep_apart = true;
    for old in entries.iter_mut() {
        if old.policy.selector != new.policy.selector {
            continue;
        }
        let same = old.exports == new.exports;
        let wider = new.exports.proper_superset_of(&old.exports);
        if same || wider {
            merge(&mut old.policy, &new.policy);
        }
        if same {
            keep_apart = false;
            break;
        }
    }
    if keep_apart {
        entries.push(new);
    }
}

/// The older rule's policy wins whole; subsets are added where their name is new.
fn merge(old: &mut Arc<DestinationPolicy>, new: &DestinationPolicy) {
    let old = Arc::make_mut(old);
    if old.policy.is_none() {
        old.policy.clone_from(&new.policy);
    }
    for subset in &new.subsets {
        if old.subset(&subset.name).is_none() {
            old.subsets.push(subset.clone());
        }
    }
    old.merged.push(new.key.clone());
    old.merged.extend(new.merged.iter().cloned());
}
