//! Addresses of hosts by name, as DNS queries ask for them.

use std::net::IpAddr;
use std::sync::Arc;

use osier_core::on_demand as naming;

use super::Answer;
use super::names::{Found, Names, Waiting};

/// The hosts that were asked for so far.
#[derive(Debug)]
pub struct AddressTable {
    pub(super) names: Names<HostAddresses>,
}

/// Where a host is; at least one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddresses(pub Box<[IpAddr]>);

/// What is known of a host.
#[derive(Debug)]
pub enum AddressLookup {
    /// Its addresses.
    Known(Arc<HostAddresses>),
    /// The control plane says that the mesh has no such host.
    Absent,
    /// Not answered yet: [`AddressWait::answer`].
    Wait(AddressWait),
}

/// A host that was asked for.
#[derive(Debug)]
pub struct AddressWait(Waiting<HostAddresses>);

impl AddressTable {
    /// Looks a host up; lower-cased, without its final dot. What can't be a host is absent without being asked for.
    pub fn get(&self, host: &str) -> AddressLookup {
        let is_host = naming::host(host, true).is_some_and(|same| same == host);
        if !is_host {
            return AddressLookup::Absent;
        }
        match self.names.get(host) {
            Found::Entry(entry) => entry.current().map_or(AddressLookup::Absent, AddressLookup::Known),
            Found::Wait(waiting) => AddressLookup::Wait(AddressWait(waiting)),
        }
    }

    /// Puts addresses, or their absence, in force. For the xDS task, and for tests.
    pub fn publish(&self, host: &str, value: Option<Arc<HostAddresses>>) {
        self.names.publish(host, value);
    }

    /// True where an answer for this host is wanted. For the xDS task.
    pub(crate) fn is_wanted(&self, host: &str) -> bool {
        self.names.is_wanted(host)
    }

    /// All that is known, for people who look.
    pub fn entries(&self) -> Vec<(Box<str>, Option<Arc<HostAddresses>>)> {
        self.names.entries()
    }
}

impl AddressWait {
    /// Waits for the answer, at most as long as [`super::Limits::look_up_patience`].
    pub async fn answer(self) -> Answer<Arc<HostAddresses>> {
        match self.0.answer().await.map(|entry| entry.current()) {
            Some(Some(addresses)) => Answer::Known(addresses),
            Some(None) => Answer::Absent,
            None => Answer::Silent,
        }
    }
}
