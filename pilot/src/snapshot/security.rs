//! Security policies by the workloads that they cover, and the labels of workloads by address.
//!
//! The labels that count are those of the Pods and WorkloadEntries at a proxy's addresses; where none is known there, those that
//! the proxy says of itself. Where several are known, one that is covered is enough.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use osier_core::labels::Labels;

use super::authorization::{KeyIndex, RequestPolicies};
use crate::model::{Coverage, Demand, MutualTls, ProxyView, Refusal, ResourceKey, SecurityPolicy, Workload};

/// All security policies.
#[derive(Debug, Clone, Default)]
pub struct SecurityIndex {
    /// Oldest first.
    policies: Vec<Arc<SecurityPolicy>>,
    pub(super) of_requests: RequestPolicies,
    /// Key sets of the issuers of tokens.
    pub keys: Arc<KeyIndex>,
    /// Namespace and labels of workloads; empty unless some policy looks at labels.
    workloads: HashMap<IpAddr, Vec<(Arc<str>, Labels)>>,
}

impl SecurityIndex {
    /// Indexes policies.
    pub fn build(
        policies: impl IntoIterator<Item = Arc<SecurityPolicy>>,
        workloads: &[Arc<Workload>],
        keys: Arc<KeyIndex>,
    ) -> Self {
        let mut index = Self { policies: policies.into_iter().collect(), keys, ..Self::default() };
        index.policies.sort_by(|a, b| a.age.cmp(&b.age).then_with(|| a.key.cmp(&b.key)));
        index.of_requests = RequestPolicies::build(&index.policies);
        if index.looks_at_labels() {
            for workload in workloads {
                for ip in workload.addresses.iter().filter_map(|a| a.ip()) {
                    let known = (workload.namespace().clone(), workload.labels.clone());
                    index.workloads.entry(ip).or_default().push(known);
                }
            }
        }
        index
    }

    /// All policies, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<SecurityPolicy>> {
        self.policies.iter()
    }

    /// True where it matters which labels workloads have.
    pub fn looks_at_labels(&self) -> bool {
        self.policies.iter().any(|p| matches!(p.covers, Coverage::Workloads(_)))
    }

    /// True where a policy may cover workloads of other namespaces.
    pub fn crosses_namespaces(&self, root: &str, key: &ResourceKey) -> bool {
        let policy = self.policies.iter().find(|p| p.key == *key);
        policy.is_some_and(|p| p.covers == Coverage::Mesh || *p.key.namespace == *root)
    }

    /// Addresses of workloads that have other labels in `later`.
    pub fn relabelled<'a>(&'a self, later: &'a Self) -> BTreeSet<IpAddr> {
        let all = self.workloads.keys().chain(later.workloads.keys());
        all.filter(|ip| self.workloads.get(*ip) != later.workloads.get(*ip)).copied().collect()
    }

    /// Why nothing may reach a port of a proxy's workload, if so.
    pub(super) fn refusal(&self, root: &str, view: &ProxyView, port: u16) -> Option<Refusal<'_>> {
        self.each(view).find_map(|labels| {
            let unsupported = self.unsupported(root, &view.namespace, labels);
            let strict = || {
                let decided = self.mutual_tls(root, &view.namespace, labels, port);
                decided
                    .filter(|(_, mode)| *mode == MutualTls::Strict && !view.mutual_tls)
                    .map(|(policy, _)| policy)
            };
            unsupported.or_else(strict).map(|policy| Refusal(policy))
        })
    }

    /// What of clients of a port is asked. Where the workload has several sets of labels, the strictest counts.
    pub(super) fn mode(&self, root: &str, view: &ProxyView, port: u16) -> MutualTls {
        let of = |labels| self.mode_at(root, &view.namespace, labels, port);
        self.each(view).map(of).max().unwrap_or(MutualTls::Permissive)
    }

    /// The same for a workload of these labels.
    pub(super) fn mode_at(&self, root: &str, namespace: &str, labels: &Labels, port: u16) -> MutualTls {
        self.mutual_tls(root, namespace, labels, port).map_or(MutualTls::Permissive, |(_, mode)| mode)
    }

    /// The ports that any PeerAuthentication of a namespace names.
    pub(super) fn ports_named_in(&self, namespace: &str) -> BTreeSet<u16> {
        let named = |policy: &Arc<SecurityPolicy>| match &policy.demands {
            Demand::MutualTls { ports, .. } if *policy.key.namespace == *namespace => {
                ports.keys().copied().collect()
            }
            _ => Vec::new(),
        };
        self.policies.iter().flat_map(named).collect()
    }

    /// Each set of labels that the workload behind a proxy may have.
    pub(super) fn each<'s>(&'s self, view: &'s ProxyView) -> impl Iterator<Item = &'s Labels> {
        let at = view.addresses.iter().filter_map(|ip| self.workloads.get(ip)).flatten();
        let mut known = at.filter(|(namespace, _)| *namespace == view.namespace).peekable();
        let said = known.peek().is_none().then_some(&view.labels);
        known.map(|(_, labels)| labels).chain(said)
    }

    fn unsupported(&self, root: &str, namespace: &str, labels: &Labels) -> Option<&Arc<SecurityPolicy>> {
        let unsupported = |policy: &&Arc<SecurityPolicy>| {
            policy.demands == Demand::Unsupported && covers(policy, root, namespace, labels)
        };
        self.policies.iter().find(unsupported)
    }

    /// The PeerAuthentication that decides about a port, and what it says. Port over workload over namespace over mesh; the oldest of
    /// each level.
    pub(super) fn mutual_tls(
        &self,
        root: &str,
        namespace: &str,
        labels: &Labels,
        port: u16,
    ) -> Option<(&Arc<SecurityPolicy>, MutualTls)> {
        let level = |of: &str, selected: bool| {
            self.policies.iter().find(|policy| {
                let selects = match &policy.covers {
                    Coverage::Workloads(selector) => selected && selector.selects(labels),
                    Coverage::Namespace | Coverage::Mesh => !selected,
                };
                selects && *policy.key.namespace == *of && matches!(policy.demands, Demand::MutualTls { .. })
            })
        };
        let levels = [level(namespace, true), level(namespace, false), level(root, false)];
        let decides = |policy: &Arc<SecurityPolicy>| match &policy.demands {
            Demand::MutualTls { mode, ports } => ports.get(&port).copied().or(*mode),
            Demand::Unsupported | Demand::Authorization(_) | Demand::Authentication(_) => None,
        };
        levels.into_iter().flatten().find_map(|policy| Some((policy, decides(policy)?)))
    }
}

/// True where a policy covers a workload of these labels.
pub fn covers(policy: &SecurityPolicy, root: &str, namespace: &str, labels: &Labels) -> bool {
    let here = *policy.key.namespace == *namespace || *policy.key.namespace == *root;
    match &policy.covers {
        Coverage::Mesh => true,
        Coverage::Namespace => here,
        Coverage::Workloads(selector) => here && selector.selects(labels),
    }
}
