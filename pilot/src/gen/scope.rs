//! A snapshot seen through one view: what the generators ask again and again.

use std::sync::Arc;

use osier_core::host::Host;

use crate::r#gen::key::View;
use crate::r#gen::name::OutboundName;
use crate::model::{Destination, Interception, MeshConfig, OutboundTraffic, Service};
use crate::snapshot::MeshSnapshot;

/// The mesh as one client sees it.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The whole mesh.
    pub snapshot: &'a MeshSnapshot,
    view: &'a View,
}

impl<'a> Scope<'a> {
    /// `snapshot` through `view`.
    pub fn new(snapshot: &'a MeshSnapshot, view: &'a View) -> Self {
        Self { snapshot, view }
    }

    /// The client.
    pub fn view(&self) -> &'a View {
        self.view
    }

    /// Mesh-wide configuration.
    pub fn mesh(&self) -> &'a MeshConfig {
        &self.snapshot.mesh
    }

    /// The service that a host means for this client.
    pub fn service(&self, host: &str) -> Option<&'a Arc<Service>> {
        self.snapshot.service(&self.view.proxy.namespace, host)
    }

    /// The service that a host means, where it may be a short form of a Kubernetes name; an alias is followed.
    pub fn service_by_any_name(&self, host: &str) -> Option<&'a Arc<Service>> {
        let (domain, namespace) = (&self.snapshot.cluster_domain, &self.view.proxy.namespace);
        let written = Host::new(host).as_str().trim_end_matches('.').to_string();
        let forms = [
            written.clone(),
            format!("{written}.{domain}"),
            format!("{written}.svc.{domain}"),
            format!("{written}.{namespace}.svc.{domain}"),
        ];
        let full = forms.into_iter().find(|form| self.service(form).is_some())?;
        self.service(self.snapshot.resolve_alias(namespace, &full)?.as_str())
    }

    /// All services that this client sees, oldest first; aliases are among them.
    pub fn services(&self) -> Vec<&'a Arc<Service>> {
        self.snapshot.services_visible_to(&self.view.proxy.namespace)
    }

    /// True where unknown destinations are let through.
    pub fn allows_unknown(&self) -> bool {
        self.mesh().outbound == OutboundTraffic::AllowAny
    }

    /// True where a client may name a destination outside the mesh: unknown ones pass, and nothing is captured.
    pub fn reaches_outside(&self) -> bool {
        self.view.proxy.interception == Interception::None && self.allows_unknown()
    }

    /// True where a wildcard of a service or rule means this host on this port.
    pub fn is_covered(&self, host: &str, port: u16) -> bool {
        let view = &self.view.proxy;
        let by_service = |s: &&Arc<Service>| s.host().covers_name(host) && s.port(port).is_some();
        self.services().iter().any(by_service)
            || self.snapshot.extra_hosts(view, port).iter().any(|extra| extra.host.covers_name(host))
    }

    /// Name of the cluster of a route's destination. The port is the given one, else the only one of the service, else
    /// that of the listener; an alias is followed.
    pub fn cluster_of(&self, destination: &Destination, listener_port: u16) -> String {
        let host = self
            .snapshot
            .resolve_alias(&self.view.proxy.namespace, destination.host.as_str())
            .unwrap_or_else(|| destination.host.clone());
        let only_port = || match self.service(host.as_str())?.ports.as_slice() {
            [one] => Some(one.number),
            _ => None,
        };
        let port = destination.port.or_else(only_port).unwrap_or(listener_port);
        let subset = destination.subset.clone().unwrap_or_default();
        OutboundName { port, subset, host: host.shared().clone() }.to_string()
    }
}
