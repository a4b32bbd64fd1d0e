//! What moved between two snapshots, and whom it can concern.
//!
//! A change may name too much, never too little: whoever generates compares content anyway.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Exports, ProxyView, ResourceKey, ServiceKey};

/// What moved between two snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// The mesh configuration moved: everything may.
    pub mesh: bool,
    /// Rules (VirtualServices, DestinationRules) that came, went or changed.
    pub rules: BTreeSet<ResourceKey>,
    /// Ingresses that came, went or changed, as far as they are ours. Gateways alone care.
    pub ingresses: BTreeSet<ResourceKey>,
    /// Certificates of gateways that came, went or changed.
    pub secrets: BTreeSet<ResourceKey>,
    /// The roots of the mesh are others.
    pub roots: bool,
    /// Services that came, went or changed.
    pub services: BTreeSet<ServiceKey>,
    /// Services whose endpoints changed.
    pub endpoints: BTreeSet<ServiceKey>,
    /// Those of them for which others answer than before: with that clusters change.
    pub identities: BTreeSet<ServiceKey>,
    /// Addresses whose own ports may have changed (inbound listeners of the proxies there).
    pub addresses: BTreeSet<IpAddr>,
    /// Clients that see any of the rules and services.
    pub audience: Audience,
    /// Clients that see any of the services whose endpoints changed.
    pub endpoint_audience: Audience,
}

/// Namespaces of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audience {
    /// All.
    Everybody,
    /// These; may be none.
    Namespaces(BTreeSet<Arc<str>>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Namespaces(BTreeSet::new())
    }
}

impl Audience {
    /// Adds everybody who sees something exported so.
    pub fn add(&mut self, exports: &Exports) {
        match (&mut *self, exports) {
            (Self::Everybody, _) | (_, Exports::Hidden) => {}
            (_, Exports::Public) => *self = Self::Everybody,
            (Self::Namespaces(names), Exports::Namespaces(more)) => names.extend(more.iter().cloned()),
        }
    }

    /// Adds another audience.
    pub fn merge(&mut self, other: Audience) {
        match (&mut *self, other) {
            (Self::Everybody, _) => {}
            (_, Self::Everybody) => *self = Self::Everybody,
            (Self::Namespaces(names), Self::Namespaces(more)) => names.extend(more),
        }
    }

    /// True if clients of `namespace` are among them.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::Everybody => true,
            Self::Namespaces(names) => names.contains(namespace),
        }
    }
}

impl Change {
    /// Everything may have moved.
    pub fn everything() -> Self {
        Self { mesh: true, ..Self::default() }
    }

    /// Nothing moved.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Only endpoints moved: listeners and routes towards services are as before.
    pub fn endpoints_only(&self) -> bool {
        !self.mesh
            && self.rules.is_empty()
            && self.ingresses.is_empty()
            && self.secrets.is_empty()
            && !self.roots
            && self.services.is_empty()
    }

    /// Joins a later change to this one.
    pub fn merge(&mut self, later: Change) {
        self.mesh |= later.mesh;
        self.rules.extend(later.rules);
        self.ingresses.extend(later.ingresses);
        self.secrets.extend(later.secrets);
        self.roots |= later.roots;
        self.services.extend(later.services);
        self.endpoints.extend(later.endpoints);
        self.identities.extend(later.identities);
        self.addresses.extend(later.addresses);
        self.audience.merge(later.audience);
        self.endpoint_audience.merge(later.endpoint_audience);
    }

    /// True if anything that this client may have could have moved.
    pub fn concerns(&self, view: &ProxyView) -> bool {
        self.mesh
            || self.audience.includes(&view.namespace)
            || self.endpoint_audience.includes(&view.namespace)
            || self.concerns_inbound(view)
            || (self.roots && view.mutual_tls)
            || (view.gateway && !self.ingresses.is_empty())
            || self.secrets.iter().any(|secret| secret.namespace == view.namespace)
    }

    /// True if the ports that this client serves itself may have moved.
    pub fn concerns_inbound(&self, view: &ProxyView) -> bool {
        self.mesh || view.addresses.iter().any(|ip| self.addresses.contains(ip))
    }

    /// For logs and metrics: how many of each.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        [
            ("mesh", usize::from(self.mesh)),
            ("rules", self.rules.len()),
            ("ingresses", self.ingresses.len()),
            ("secrets", self.secrets.len()),
            ("roots", usize::from(self.roots)),
            ("services", self.services.len()),
            ("endpoints", self.endpoints.len()),
        ]
        .into()
    }
}
