//! A proxy as the control plane sees it: everything about a client that may change what it gets.

use std::net::IpAddr;
use std::sync::Arc;

use osier_core::labels::Labels;

/// A client of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProxyView {
    /// What kind of client it is.
    pub kind: ProxyKind,
    /// It takes clients in from outside of the mesh.
    pub gateway: bool,
    /// It has a certificate of the mesh: it can show who it is, and believes others.
    pub mutual_tls: bool,
    /// Namespace of its workload.
    pub namespace: Arc<str>,
    /// Name of its workload's instance (Pod or WorkloadEntry); may be empty.
    pub name: Arc<str>,
    /// Labels of its workload.
    pub labels: Labels,
    /// Its addresses; inbound ports are found by them.
    pub addresses: Box<[IpAddr]>,
    /// How traffic gets to it.
    pub interception: Interception,
    /// Node that it runs on; empty where unknown.
    pub node: Arc<str>,
    /// Its sidecar answers its DNS queries, so that it meets automatic addresses of services.
    pub dns_capture: bool,
}

impl ProxyView {
    /// True where it can use an address of the family of `ip`. Whose addresses aren't known counts as IPv4.
    pub fn speaks(&self, ip: IpAddr) -> bool {
        match self.addresses.is_empty() {
            true => ip.is_ipv4(),
            false => self.addresses.iter().any(|own| own.is_ipv4() == ip.is_ipv4()),
        }
    }
}

/// Kinds of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProxyKind {
    /// osier-proxy, which asks for what it uses.
    OnDemand,
    /// Envoy or another proxy that wants everything in its scope.
    Envoy,
    /// A gRPC library (`xds:///`).
    Grpc,
}

/// How traffic gets to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Interception {
    /// By iptables REDIRECT.
    #[default]
    Redirect,
    /// By iptables TPROXY.
    Tproxy,
    /// Not captured: only listeners bound to a port, and explicit proxying.
    None,
}
