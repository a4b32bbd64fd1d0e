//! AuthorizationPolicies and RequestAuthentications by the workloads that they cover.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::security::covers;
use super::{MeshSnapshot, SecurityIndex};
use crate::model::{
    Authorization, Demand, FetchedKeys, KeyLocation, KeySource, ProxyView, ResourceKey, SecurityPolicy,
    TokenRule,
};

/// Key sets that were fetched, or that could not be.
pub type KeyIndex = BTreeMap<KeyLocation, FetchedKeys>;

/// Policies on requests that can be enforced, by namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestPolicies(HashMap<Arc<str>, Vec<Arc<SecurityPolicy>>>);

impl RequestPolicies {
    pub(super) fn build<'p>(policies: impl IntoIterator<Item = &'p Arc<SecurityPolicy>>) -> Self {
        let mut index = Self::default();
        for policy in policies {
            if matches!(policy.demands, Demand::Authorization(_) | Demand::Authentication(_)) {
                index.0.entry(policy.key.namespace.clone()).or_default().push(policy.clone());
            }
        }
        index
    }

    fn of<'s>(&'s self, namespace: &str) -> impl Iterator<Item = &'s Arc<SecurityPolicy>> {
        self.0.get(namespace).into_iter().flatten()
    }
}

impl SecurityIndex {
    /// The policies that hold for a proxy's workload. Where several sets of labels are known for it, each that is covered counts.
    fn on_requests<'s>(
        &'s self,
        root: &'s str,
        view: &'s ProxyView,
    ) -> impl Iterator<Item = &'s SecurityPolicy> {
        let labels: Vec<_> = self.each(view).collect();
        let of_root = self.of_requests.of(root).filter(|_| *view.namespace != *root);
        let held = move |policy: &&Arc<SecurityPolicy>| {
            labels.iter().any(|labels| covers(policy, root, &view.namespace, labels))
        };
        self.of_requests.of(&view.namespace).chain(of_root).filter(held).map(|policy| &**policy)
    }

    /// The policies that need one of these key sets.
    pub fn with_keys_of<'s>(
        &'s self,
        locations: &'s BTreeSet<KeyLocation>,
    ) -> impl Iterator<Item = &'s ResourceKey> {
        let needs = |rule: &TokenRule| match &rule.keys {
            KeySource::Remote(location, _) => locations.contains(location),
            KeySource::Inline(_) => false,
        };
        let policies = self.iter().filter(move |policy| token_rules(policy).any(|(_, rule)| needs(rule)));
        policies.map(|policy| &policy.key)
    }

    /// Where key sets of RequestAuthentications are that have to be fetched, and the time for it.
    pub fn wanted_keys(&self) -> BTreeMap<KeyLocation, Duration> {
        let mut wanted = BTreeMap::new();
        for (_, rule) in self.iter().flat_map(|policy| token_rules(policy)) {
            if let KeySource::Remote(location, timeout) = &rule.keys {
                let longest: &mut Duration = wanted.entry(location.clone()).or_default();
                *longest = (*longest).max(*timeout);
            }
        }
        wanted
    }
}

/// The rules of a RequestAuthentication, with their numbers; of other policies none.
pub fn token_rules(policy: &SecurityPolicy) -> impl Iterator<Item = (usize, &TokenRule)> {
    let rules: &[TokenRule] = match &policy.demands {
        Demand::Authentication(rules) => rules,
        _ => &[],
    };
    rules.iter().enumerate()
}

impl MeshSnapshot {
    /// The AuthorizationPolicies that hold for a proxy's workload.
    pub fn authorizations<'s>(&'s self, view: &'s ProxyView) -> Vec<(&'s ResourceKey, &'s Authorization)> {
        let policies = self.security.on_requests(&self.mesh.root_namespace, view);
        let authorization = |policy: &'s SecurityPolicy| match &policy.demands {
            Demand::Authorization(authorization) => Some((&policy.key, authorization)),
            _ => None,
        };
        policies.filter_map(authorization).collect()
    }

    /// The rules of all RequestAuthentications that hold for a proxy's workload, by issuer.
    pub fn token_rules<'s>(&'s self, view: &'s ProxyView) -> Vec<(&'s ResourceKey, &'s TokenRule)> {
        let policies = self.security.on_requests(&self.mesh.root_namespace, view);
        let mut rules: Vec<_> = policies
            .flat_map(|policy| token_rules(policy).map(move |(_, rule)| (&policy.key, rule)))
            .collect();
        // Stable, so that of equal issuers the oldest policy comes first, like everywhere.
        rules.sort_by(|(_, a), (_, b)| a.issuer.cmp(&b.issuer));
        rules
    }

    /// The key set of a rule; `None`: there is none, and no token is valid.
    pub fn keys_of<'s>(&'s self, rule: &'s TokenRule) -> Option<&'s Arc<str>> {
        match &rule.keys {
            KeySource::Inline(keys) => Some(keys),
            KeySource::Remote(location, _) => self.security.keys.get(location)?.keys.as_ref(),
        }
    }
}
