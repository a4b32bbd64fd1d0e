//! Hosts and their addresses, as the control plane said: one by one as they are asked for, or all in one table.
//!
//! The xDS task writes, DNS queries read. A table of all hosts is istiod's: short forms of Kubernetes names are added when it is taken, and
//! wildcards are looked up here. Asked one by one, the control plane decides on both.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use serde_json::{Value, json};

use super::Settings;
use crate::on_demand::{AddressLookup, AddressTable, AddressWait, HostAddresses};

/// What DNS answers from.
#[derive(Debug)]
pub struct Directory {
    source: ArcSwap<Source>,
    namespace: String,
    cluster_domain: String,
}

/// A host of a table of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The host; may be a wildcard.
    pub host: String,
    /// Its addresses.
    pub addresses: Arc<HostAddresses>,
    /// Kubernetes: the Service's name and namespace.
    pub short: Option<(String, String)>,
}

#[derive(Debug)]
enum Source {
    /// Nothing came yet.
    Nothing,
    /// Whoever needs a host asks for it.
    OnDemand(Arc<AddressTable>),
    /// All hosts there are.
    Whole(HashMap<Box<str>, Arc<HostAddresses>>),
}

/// What is known of a host.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// Its addresses.
    Known(Arc<HostAddresses>),
    /// The mesh has no such host.
    Absent,
    /// Nothing came from the control plane yet, of any host.
    Unready,
    /// Not answered yet.
    Wait(AddressWait),
}

impl Directory {
    /// Nothing came yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            source: ArcSwap::from_pointee(Source::Nothing),
            namespace: settings.namespace.clone(),
            cluster_domain: settings.cluster_domain.clone(),
        }
    }

    /// From now on hosts are asked for.
    pub fn ask_on_demand(&self, table: Arc<AddressTable>) {
        self.source.store(Arc::new(Source::OnDemand(table)));
    }

    /// From now on these are all hosts.
    pub fn replace(&self, rows: Vec<Row>) {
        let below = format!(".svc.{}", self.cluster_domain);
        let mut table: HashMap<Box<str>, Arc<HostAddresses>> = HashMap::with_capacity(rows.len());
        for Row { host, addresses, short } in &rows {
            let Some((name, namespace)) = short.as_ref().filter(|_| host.ends_with(&below)) else { continue };
            let own = (*namespace == self.namespace).then(|| name.clone());
            let forms =
                own.into_iter().chain([format!("{name}.{namespace}"), format!("{name}.{namespace}.svc")]);
            table.extend(forms.map(|form| (form.to_ascii_lowercase().into(), addresses.clone())));
        }
        // A host's own name wins over what is short for another.
        let own = |row: Row| (row.host.trim_end_matches('.').to_ascii_lowercase().into(), row.addresses);
        table.extend(rows.into_iter().map(own));
        self.source.store(Arc::new(Source::Whole(table)));
    }

    /// Looks a host up; lower-cased, without its final dot.
    pub(crate) fn get(&self, host: &str) -> Lookup {
        match &**self.source.load() {
            Source::Nothing => Lookup::Unready,
            Source::OnDemand(table) => match table.get(host) {
                AddressLookup::Known(addresses) => Lookup::Known(addresses),
                AddressLookup::Absent => Lookup::Absent,
                AddressLookup::Wait(wait) => Lookup::Wait(wait),
            },
            Source::Whole(table) => find(table, host).map_or(Lookup::Absent, Lookup::Known),
        }
    }

    /// True for names that nobody but the cluster can answer.
    pub(super) fn is_of_cluster(&self, host: &str) -> bool {
        let above = host.strip_suffix(&self.cluster_domain);
        above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
    }

    /// All that is known, as `/debug/ndsz` shows it.
    pub fn page(&self) -> Value {
        let ips = |addresses: &HostAddresses| json!({ "ips": addresses.0 });
        match &**self.source.load() {
            Source::Nothing => json!({ "state": "nothing came from the control plane yet", "table": {} }),
            Source::OnDemand(table) => {
                let mut known = serde_json::Map::new();
                let mut absent = Vec::new();
                for (host, addresses) in table.entries() {
                    match addresses {
                        Some(addresses) => drop(known.insert(host.into(), ips(&addresses))),
                        None => absent.push(host),
                    }
                }
                absent.sort();
                json!({ "state": "asked for as they are used", "table": known, "absent": absent })
            }
            Source::Whole(table) => {
                let rows = table.iter().map(|(host, addresses)| (host.to_string(), ips(addresses)));
                json!({ "state": "all hosts", "table": rows.collect::<serde_json::Map<_, _>>() })
            }
        }
    }
}

/// The exact host, else the wildcard that is nearest to it.
fn find(table: &HashMap<Box<str>, Arc<HostAddresses>>, host: &str) -> Option<Arc<HostAddresses>> {
    if let Some(addresses) = table.get(host) {
        return Some(addresses.clone());
    }
    let mut rest = host;
    while let Some((_, shorter)) = rest.split_once('.') {
        rest = shorter;
        if let Some(addresses) = table.get(format!("*.{rest}").as_str()) {
            return Some(addresses.clone());
        }
    }
    None
}
