//! AuthorizationPolicies by the workloads that they cover.

use std::sync::Arc;

use hashbrown::HashMap;

use super::security::covers;
use super::{MeshSnapshot, SecurityIndex};
use crate::model::{Authorization, Demand, ProxyView, ResourceKey, SecurityPolicy};

/// AuthorizationPolicies that can be enforced, by namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct AuthorizationIndex(HashMap<Arc<str>, Vec<Arc<SecurityPolicy>>>);

impl AuthorizationIndex {
    pub(super) fn build<'p>(policies: impl IntoIterator<Item = &'p Arc<SecurityPolicy>>) -> Self {
        let mut index = Self::default();
        for policy in policies {
            if matches!(policy.demands, Demand::Authorization(_)) {
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
    fn authorizations(&self, root: &str, view: &ProxyView) -> Vec<(&ResourceKey, &Authorization)> {
        let labels: Vec<_> = self.each(view).collect();
        let of_root = self.authorization.of(root).filter(|_| *view.namespace != *root);
        let held = |policy: &&Arc<SecurityPolicy>| {
            labels.iter().any(|labels| covers(policy, root, &view.namespace, labels))
        };
        self.authorization
            .of(&view.namespace)
            .chain(of_root)
            .filter(held)
            .filter_map(|policy| match &policy.demands {
                Demand::Authorization(authorization) => Some((&policy.key, authorization)),
                Demand::Unsupported | Demand::MutualTls { .. } => None,
            })
            .collect()
    }
}

impl MeshSnapshot {
    /// The AuthorizationPolicies that hold for a proxy's workload.
    pub fn authorizations(&self, view: &ProxyView) -> Vec<(&ResourceKey, &Authorization)> {
        self.security.authorizations(&self.mesh.root_namespace, view)
    }
}
