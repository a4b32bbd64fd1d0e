//! The outermost swap point: everything that listeners and routes decide, published as one value.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::listener::Listener;

/// All listeners, each with its filter chains and their route tables already linked.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Grows by one with each publication; a worker or connection compares it to know that something changed.
    pub generation: u64,
    /// By listener name, as `/listeners` and `/config_dump` show them.
    pub listeners: HashMap<Arc<str>, Arc<Listener>>,
    /// Listeners by address, for the hand-over from a listener with `use_original_dst`:
    /// the exact `ip:port` first, then the wildcard address with the port.
    pub by_address: HashMap<SocketAddr, Arc<Listener>>,
}

impl Snapshot {
    /// The listener that takes a connection whose original destination is `dst`: exact address, then wildcard.
    pub fn for_original_destination(&self, dst: SocketAddr) -> Option<&Arc<Listener>> {
        let wildcard: std::net::IpAddr = match dst {
            SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        self.by_address.get(&dst).or_else(|| self.by_address.get(&SocketAddr::new(wildcard, dst.port())))
    }
}

/// Where the current snapshot is published; readers load it without a lock.
pub type SharedSnapshot = Arc<ArcSwap<Snapshot>>;
