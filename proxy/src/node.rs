//! Who this proxy is: the node that it announces over xDS, and the workload that it stands beside.

use std::sync::Arc;

use prost_types::Struct;

use crate::http::peer_metadata::{OwnMetadata, Peer};

/// The identity of this process in the mesh; not to be confused with a SPIFFE identity, which is proved.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// `node.id`, e.g. `sidecar~10.0.0.1~reviews-v1-abc.default~default.svc.cluster.local`.
    pub id: Arc<str>,
    /// `node.cluster`.
    pub cluster: Arc<str>,
    /// `node.metadata`.
    pub metadata: Struct,
    /// The workload, as metrics show it.
    pub workload: Arc<Peer>,
    /// What peers are told; `None` for a node without metadata.
    pub told: Option<Arc<OwnMetadata>>,
}

impl Node {
    /// A node with this metadata.
    pub fn new(id: &str, cluster: &str, metadata: Struct) -> Self {
        let workload = Arc::new(Peer::from_struct(&metadata));
        let told = (!metadata.fields.is_empty()).then(|| Arc::new(OwnMetadata::new(id, &metadata)));
        Self { id: id.into(), cluster: cluster.into(), metadata, workload, told }
    }
}
