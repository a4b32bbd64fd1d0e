//! Virtual hosts, listeners and addresses of hosts that are asked for at first use (`docs/decisions/0004`): the side of those who ask.
//!
//! A route configuration with `vhds` holds a [`HostTable`]; the snapshot of a sidecar holds the one [`ListenerTable`], its DNS server
//! the one [`AddressTable`], whose names are counted apart: what an application looks up pushes out nothing that carries traffic. All answer
//! from memory without a lock where the name is known, there or absent, and otherwise wait, with a bound, for the xDS task, which
//! alone writes them. Absence and silence stay apart all the way: absent is a decision of the control plane, silence is none.

use std::net::SocketAddr;
use std::sync::Arc;

use osier_core::on_demand as naming;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::config::listener::Listener;
use crate::config::route::VirtualHost;

mod addresses;
mod bounds;
mod names;

pub use addresses::{AddressLookup, AddressTable, AddressWait, HostAddresses};
pub use bounds::Limits;
pub use names::{Asked, Entry, Table};
use names::{Found, Names, Shared, Waiting};

/// All tables of a proxy.
#[derive(Debug)]
pub struct OnDemand {
    shared: Arc<Shared>,
    listeners: Arc<ListenerTable>,
    /// One per route configuration that came with `vhds`; it outlasts the configuration's versions.
    hosts: Mutex<Vec<Arc<HostTable>>>,
    /// What `shared` is to the others.
    look_ups: Arc<Shared>,
    addresses: Arc<AddressTable>,
    limits: Limits,
}

impl OnDemand {
    /// Empty tables, and where names come out that must be subscribed to.
    pub fn new(limits: Limits) -> (Arc<Self>, mpsc::UnboundedReceiver<Asked>) {
        let (sender, asked) = mpsc::unbounded_channel();
        let shared = Shared::new(limits.patience, limits.waiting, sender.clone());
        let look_ups = Shared::new(limits.look_up_patience, limits.waiting, sender);
        let listeners = Arc::new(ListenerTable { names: Names::new(Table::Listeners, shared.clone()) });
        let addresses = Arc::new(AddressTable { names: Names::new(Table::Addresses, look_ups.clone()) });
        let hosts = Mutex::default();
        (Arc::new(Self { shared, listeners, hosts, look_ups, addresses, limits }), asked)
    }

    /// The table of listeners.
    pub fn listeners(&self) -> &Arc<ListenerTable> {
        &self.listeners
    }

    /// Notes that an answer for this name is wanted, before anybody asks.
    pub(super) fn expect(&self, asked: &Asked) {
        match &asked.table {
            Table::Listeners => self.listeners.names.expect(&asked.name),
            Table::Hosts(route_config) => self.hosts(route_config).names.expect(&asked.name),
            Table::Addresses => self.addresses.names.expect(&asked.name),
        }
    }

    /// The table of addresses.
    pub fn addresses(&self) -> &Arc<AddressTable> {
        &self.addresses
    }

    /// The table of a route configuration's virtual hosts, made where it is missing.
    pub fn hosts(&self, route_config: &str) -> Arc<HostTable> {
        let mut tables = self.hosts.lock();
        if let Some(table) = tables.iter().find(|t| *t.route_config == *route_config) {
            return table.clone();
        }
        let route_config: Arc<str> = route_config.into();
        let names = Names::new(Table::Hosts(route_config.clone()), self.shared.clone());
        let table = Arc::new(HostTable { route_config, names });
        tables.push(table.clone());
        table
    }
}

/// Virtual hosts of one route configuration that were asked for so far.
#[derive(Debug)]
pub struct HostTable {
    route_config: Arc<str>,
    names: Names<VirtualHost>,
}

/// What is known of a host.
#[derive(Debug)]
pub enum HostLookup {
    /// Its virtual host.
    Known(Arc<VirtualHost>),
    /// The control plane says that it has none (404, flag NR).
    Absent,
    /// Not answered yet: [`HostWait::answer`].
    Wait(HostWait),
}

/// A host that was asked for.
#[derive(Debug)]
pub struct HostWait(Waiting<VirtualHost>);

/// How a wait ended.
#[derive(Debug)]
pub enum Answer<T> {
    /// There.
    Known(T),
    /// Answered absent.
    Absent,
    /// No answer within the bound: 503 (TCP: close), "configuration for X not received".
    Silent,
}

impl HostTable {
    /// The route configuration's name.
    pub fn route_config(&self) -> &Arc<str> {
        &self.route_config
    }

    /// Looks up the virtual host for a request's authority. `keep_port`: explicit-proxy listeners look up `host:port`.
    /// An authority that cannot be a name is absent without being asked for.
    pub fn get(&self, authority: &str, keep_port: bool) -> HostLookup {
        let Some(host) = naming::host(authority, keep_port) else { return HostLookup::Absent };
        match self.names.get(&host) {
            Found::Entry(entry) => entry.current().map_or(HostLookup::Absent, HostLookup::Known),
            Found::Wait(waiting) => HostLookup::Wait(HostWait(waiting)),
        }
    }

    /// Puts a virtual host, or its absence, in force. For the xDS task, and for tests.
    pub fn publish(&self, host: &str, value: Option<Arc<VirtualHost>>) {
        self.names.publish(host, value);
    }
}

impl HostWait {
    /// Waits for the answer, at most as long as [`Limits::patience`].
    pub async fn answer(self) -> Answer<Arc<VirtualHost>> {
        match self.0.answer().await.map(|entry| entry.current()) {
            Some(Some(host)) => Answer::Known(host),
            Some(None) => Answer::Absent,
            None => Answer::Silent,
        }
    }
}

/// Listeners by original destination.
#[derive(Debug)]
pub struct ListenerTable {
    names: Names<Listener>,
}

/// A listener's place: hold it with the connection, and ask it for the current version.
pub type ListenerEntry = Arc<Entry<Listener>>;

/// What is known of a destination.
#[derive(Debug)]
pub enum ListenerLookup {
    /// Its listener.
    Known(ListenerEntry),
    /// The control plane says that there is none: the catch-all decides.
    Absent,
    /// Not answered yet: [`ListenerWait::answer`].
    Wait(ListenerWait),
}

/// A destination that was asked for: its exact address, and the wildcard address with its port.
#[derive(Debug)]
pub struct ListenerWait {
    exact: Found<Listener>,
    wildcard: Option<Found<Listener>>,
}

impl ListenerTable {
    /// Looks up the listener that takes connections to `destination`: the exact address wins over the wildcard.
    pub fn get(&self, destination: SocketAddr) -> ListenerLookup {
        let [exact, wildcard] = naming::listener_names(destination);
        let exact = self.names.get(&exact);
        if let Found::Entry(entry) = &exact
            && entry.current().is_some()
        {
            return ListenerLookup::Known(entry.clone());
        }
        // Both are asked for at once, so that a first use costs one round trip.
        let wildcard = self.names.get(&wildcard);
        match (&exact, &wildcard) {
            (Found::Entry(_), Found::Entry(entry)) if entry.current().is_some() => {
                ListenerLookup::Known(entry.clone())
            }
            (Found::Entry(_), Found::Entry(_)) => ListenerLookup::Absent,
            _ => ListenerLookup::Wait(ListenerWait { exact, wildcard: Some(wildcard) }),
        }
    }

    /// Looks up the one chain of `listener` for an SNI, where that listener says that its chains are asked for one by one.
    /// An SNI that cannot be a name is absent without being asked for.
    pub fn get_server_name(&self, listener: &str, server_name: &str) -> ListenerLookup {
        let Some(key) = naming::server_name_key(listener, server_name) else { return ListenerLookup::Absent };
        self.get_one(&key)
    }

    /// Looks up the listener for the host and port of a `CONNECT`, where the client has no address.
    pub fn get_host(&self, authority: &str) -> ListenerLookup {
        let Some(key) = naming::host_listener_name(authority) else { return ListenerLookup::Absent };
        self.get_one(&key)
    }

    /// Looks up one name.
    fn get_one(&self, key: &str) -> ListenerLookup {
        match self.names.get(key) {
            Found::Entry(entry) if entry.current().is_some() => ListenerLookup::Known(entry),
            Found::Entry(_) => ListenerLookup::Absent,
            exact => ListenerLookup::Wait(ListenerWait { exact, wildcard: None }),
        }
    }

    /// Puts a listener, or its absence, in force. For the xDS task, and for tests.
    pub fn publish(&self, name: &str, value: Option<Arc<Listener>>) {
        self.names.publish(name, value);
    }

    /// True where an answer for this name is wanted. For the xDS task.
    pub(super) fn is_wanted(&self, name: &str) -> bool {
        self.names.is_wanted(name)
    }
}

impl ListenerWait {
    /// Waits for the answer, at most as long as [`Limits::patience`].
    pub async fn answer(self) -> Answer<ListenerEntry> {
        async fn settled(found: Found<Listener>) -> Option<ListenerEntry> {
            match found {
                Found::Entry(entry) => Some(entry),
                Found::Wait(waiting) => waiting.answer().await,
            }
        }
        // Both were asked for at once, and both bounds count from then.
        for found in std::iter::once(self.exact).chain(self.wildcard) {
            match settled(found).await {
                Some(entry) if entry.current().is_some() => return Answer::Known(entry),
                Some(_) => {}
                None => return Answer::Silent,
            }
        }
        Answer::Absent
    }
}

#[cfg(test)]
mod tests;
