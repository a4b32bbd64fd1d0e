//! Security policies, as far as they are read: whom they cover, and what must be refused there.
//!
//! What can't be enforced refuses everything: it fails closed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use osier_core::labels::Labels;

use super::authentication::TokenRule;
use super::authorization::Authorization;
use super::resource::{Age, ResourceKey};

/// An AuthorizationPolicy, PeerAuthentication or RequestAuthentication that can refuse something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityPolicy {
    /// The resource.
    pub key: ResourceKey,
    /// For "the oldest wins".
    pub age: Age,
    /// Whom it covers.
    pub covers: Coverage,
    /// What it demands there.
    pub demands: Demand,
}

/// The workloads that a policy covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Coverage {
    /// All: not even the policy's namespace can be read.
    Mesh,
    /// Those of its namespace; of all namespaces where that is the root namespace.
    Namespace,
    /// The same, with these labels.
    Workloads(Labels),
}

/// What a policy demands of those who send to the workloads that it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// Something that is not supported.
    Unsupported,
    /// A RequestAuthentication: a token that is not valid by any of its rules is refused.
    Authentication(Vec<TokenRule>),
    /// An AuthorizationPolicy: what it denies, or doesn't allow, is refused.
    Authorization(Authorization),
    /// A PeerAuthentication: plaintext is refused where it says so.
    MutualTls {
        /// On ports that are not named; `None` leaves it to the namespace and the mesh.
        mode: Option<MutualTls>,
        /// By port of the workload.
        ports: BTreeMap<u16, MutualTls>,
    },
}

/// What a PeerAuthentication makes of plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MutualTls {
    /// Plaintext only.
    Disable,
    /// Both are taken.
    Permissive,
    /// Plaintext is refused.
    Strict,
}

/// The policy because of which everything is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal<'a>(pub &'a SecurityPolicy);

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.demands {
            Demand::Unsupported | Demand::Authorization(_) | Demand::Authentication(_) => {
                write!(f, "{} is not supported", self.0.key)
            }
            Demand::MutualTls { .. } => {
                write!(f, "{} demands mutual TLS, and the workload has no certificate", self.0.key)
            }
        }
    }
}

impl SecurityPolicy {
    /// True for a PeerAuthentication that says for this port what it demands.
    pub fn names_port(&self, port: u16) -> bool {
        matches!(&self.demands, Demand::MutualTls { ports, .. } if ports.contains_key(&port))
    }

    /// A policy of which nothing but the name can be told: it holds its whole namespace.
    pub fn unreadable(key: ResourceKey, covers: Coverage) -> Arc<Self> {
        let age = Age { created: 0, name: key.name.clone(), namespace: key.namespace.clone() };
        Arc::new(Self { key, age, covers, demands: Demand::Unsupported })
    }
}
