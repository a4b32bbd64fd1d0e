//! The sidecar's DNS server: hosts of the mesh are answered here, everything else is forwarded to the servers of resolv.conf.
//!
//! Runs on the housekeeping runtime, on loopback, in pods with `ISTIO_META_DNS_CAPTURE`: their queries are turned to [`PORT`].
//! [`Directory`] holds what the control plane said of hosts; `answer` decides on a query and makes the answer; `forward` asks other servers;
//! `server` is sockets and bounds. Invariants: only addresses (A, AAAA) of hosts that the mesh knows are answered from here;
//! what isn't a query is refused or dropped, and never panics; queries, connections and their sizes are bounded.
//!
//! Absence and silence differ, as for all that is asked for at first use. A host that the control plane answered absent is
//! forwarded. Where no answer comes in time, names below the cluster's domain get SERVFAIL, so that nobody takes a wrong address for theirs, and others
//! are forwarded, so that the world outside stays in reach while the control plane is away. Before the control plane has said
//! anything at all, every query for an address gets SERVFAIL: applications start after that.

mod answer;
mod directory;
mod forward;
mod metrics;
mod server;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::system_conf::read_system_conf;

pub use directory::{Directory, Row};
pub use server::Dns;

/// Where the rules turn DNS queries to.
pub const PORT: u16 = 15053;

/// What the pod's environment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Namespace of the pod.
    pub namespace: String,
    /// Domain of the cluster's services, e.g. `cluster.local`.
    pub cluster_domain: String,
    /// How long another server may take.
    pub forward_timeout: Duration,
    /// Ask all other servers at once, instead of one after the other.
    pub forward_parallel: bool,
}

/// What resolv.conf says.
#[derive(Debug, Clone, Default)]
pub struct System {
    /// Other servers, in the order written.
    pub servers: Vec<SocketAddr>,
    /// What resolvers put behind short names first.
    pub search: Option<Name>,
}

impl System {
    /// As this machine's resolv.conf says.
    pub fn read() -> Result<Self, NetError> {
        let (config, _) = read_system_conf()?;
        let servers = config.name_servers().iter().map(|server| SocketAddr::new(server.ip, 53)).collect();
        let search = config.search().first().cloned().map(|mut name| {
            name.set_fqdn(true);
            name
        });
        Ok(Self { servers, search })
    }
}
