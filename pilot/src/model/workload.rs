//! Workloads: running instances, from Pods and WorkloadEntries.

use std::collections::BTreeMap;
use std::sync::Arc;

use osier_core::labels::Labels;

use super::endpoint::{Address, Health, Locality, TlsMode};
use super::resource::{Age, ResourceKey};

/// A running instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The Pod or WorkloadEntry.
    pub key: ResourceKey,
    /// For "the oldest wins".
    pub age: Age,
    /// Names for metrics and peer metadata.
    pub names: Arc<WorkloadName>,
    /// Where it is. A Pod may have one address per family.
    pub addresses: Vec<Address>,
    /// Labels that selectors and subsets see.
    pub labels: Labels,
    /// Pod: container ports by name. WorkloadEntry: `ports`, by name of the service's port.
    pub ports: BTreeMap<Arc<str>, u16>,
    /// Whether it takes traffic.
    pub health: Health,
    /// Service account; empty where unknown.
    pub service_account: Arc<str>,
    /// Region, zone and subzone.
    pub locality: Locality,
    /// Network; may be empty.
    pub network: Arc<str>,
    /// Share relative to others, at least 1.
    pub weight: u32,
    /// Whether it takes mesh mTLS.
    pub tls: TlsMode,
    /// Node that it runs on; empty where unknown.
    pub node: Arc<str>,
    /// Pod: `spec.hostname` and `spec.subdomain`, which is the Service below which it has a name. Mostly empty.
    pub hostname: [Arc<str>; 2],
}

impl Workload {
    /// Its namespace.
    pub fn namespace(&self) -> &Arc<str> {
        &self.key.namespace
    }
}

/// How a workload is called in metrics and peer metadata.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct WorkloadName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name of the owner: the Deployment of a Pod, or the WorkloadEntry itself.
    pub workload: Arc<str>,
    /// Name of the Pod or WorkloadEntry.
    pub instance: Arc<str>,
    /// Canonical service: label `service.istio.io/canonical-name`, else `app.kubernetes.io/name`, else `app`, else the workload.
    pub canonical_service: Arc<str>,
    /// Canonical revision: label `service.istio.io/canonical-revision`, else `app.kubernetes.io/version`, else `version`, else `latest`.
    pub canonical_revision: Arc<str>,
}

impl WorkloadName {
    /// Fills the canonical names in from labels.
    pub fn new(namespace: &Arc<str>, workload: &Arc<str>, instance: &Arc<str>, labels: &Labels) -> Self {
        let first =
            |names: [&str; 3]| names.into_iter().filter_map(|n| labels.get(n)).find(|v| !v.is_empty());
        let service = first(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
        let revision = first(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
        Self {
            namespace: namespace.clone(),
            workload: workload.clone(),
            instance: instance.clone(),
            canonical_service: service.map_or_else(|| workload.clone(), Arc::from),
            canonical_revision: revision.map_or_else(|| "latest".into(), Arc::from),
        }
    }
}
