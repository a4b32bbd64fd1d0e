//! What a resource names: handles to clusters, and route configurations that must come too.
//!
//! Collected while a resource is compiled, so that the xDS client knows what to subscribe to and what to wait for before the
//! resource may be put in force.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Context, Invalid};
use crate::config::cluster::ClusterHandle;
use crate::config::tls::SecretHandle;

/// What one resource names.
#[derive(Debug, Clone, Default)]
pub struct References {
    /// Clusters. The handles themselves are in what was compiled: nothing else may hold one, since who holds a handle keeps its
    /// cluster subscribed.
    pub clusters: BTreeSet<Arc<str>>,
    /// Certificates (SDS).
    pub secrets: BTreeSet<Arc<str>>,
    /// Route configurations (RDS).
    pub route_configs: Vec<RouteConfigRef>,
}

/// A route configuration that a listener names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteConfigRef {
    /// Its name.
    pub name: Arc<str>,
    /// How long the listener waits for it at first; `None` is for ever.
    pub fetch_timeout: Option<Duration>,
}

/// Collects [`References`].
#[derive(Debug)]
pub(crate) struct Collector<'a> {
    pub(super) context: Context<'a>,
    pub(super) found: References,
}

impl<'a> Collector<'a> {
    pub(super) fn new(context: Context<'a>) -> Self {
        Self { context, found: References::default() }
    }

    /// The handle for a cluster. With `must_exist`, a cluster that nobody has sent is refused.
    pub(super) fn cluster(
        &mut self,
        field: &str,
        name: &str,
        must_exist: bool,
    ) -> Result<Arc<ClusterHandle>, Invalid> {
        super::value::not_empty(field, name)?;
        if must_exist && !(self.context.cluster_exists)(name) {
            return Err(Invalid::new(field, format!("unknown cluster `{name}`")));
        }
        let handle = self.context.clusters.handle(name);
        self.found.clusters.insert(handle.name.clone());
        Ok(handle)
    }

    /// The handle of a certificate.
    pub(super) fn secret(&mut self, name: &str) -> Arc<SecretHandle> {
        let handle = self.context.secrets.handle(name);
        self.found.secrets.insert(handle.name.clone());
        handle
    }

    pub(super) fn route_config(&mut self, name: &str, fetch_timeout: Option<Duration>) -> Arc<str> {
        if let Some(known) = self.found.route_configs.iter().find(|r| *r.name == *name) {
            return known.name.clone();
        }
        let name: Arc<str> = name.into();
        self.found.route_configs.push(RouteConfigRef { name: name.clone(), fetch_timeout });
        name
    }
}
