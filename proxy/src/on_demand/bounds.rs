//! What keeps the tables small: bounds on names, least recently used out first, and forgetting what nobody uses.
//!
//! Names that exist and names that were answered absent are counted apart, so that a flood of invented hosts cannot push out
//! those that work. A name that an open connection or a running request holds is never taken out. All of this runs on the xDS task.

use std::time::Duration;

use super::OnDemand;
use super::names::{Asked, Names, Shared, Table, Usage};

/// Bounds of on-demand names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Names that exist.
    pub known: usize,
    /// Names that were answered absent.
    pub absent: usize,
    /// Names that are waited for.
    pub waiting: usize,
    /// Longest wait of a request or connection for a name.
    pub patience: Duration,
    /// Longest wait of a DNS query for a name.
    pub look_up_patience: Duration,
    /// A name that nobody used for this long is forgotten.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            known: 4096,
            absent: 1024,
            waiting: 1024,
            // Longer than a virtual host may wait for its clusters.
            patience: Duration::from_secs(6),
            // Resolvers ask again after five seconds, and what is forwarded then takes its time, too.
            look_up_patience: Duration::from_secs(2),
            idle: Duration::from_secs(600),
        }
    }
}

/// A bound that is passed is undercut by this share of itself, so that the search for the oldest is rare.
const SLACK: usize = 8;

impl OnDemand {
    /// The bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes out the names that are too many, and returns them.
    pub(crate) fn trim(&self) -> Vec<Asked> {
        let mut out = Vec::new();
        for (shared, of_addresses) in [(&self.shared, false), (&self.look_ups, true)] {
            let counted = |table: &Table| (*table == Table::Addresses) == of_addresses;
            out.extend(self.excess(shared, &counted));
        }
        self.forget_all(&out);
        out
    }

    /// The names that are too many in the tables that `counted` says.
    fn excess(&self, shared: &Shared, counted: &dyn Fn(&Table) -> bool) -> Vec<Asked> {
        let (known, absent) = shared.answered();
        let mut out = Vec::new();
        for (count, limit, is_absent) in
            [(known, self.limits.known, false), (absent, self.limits.absent, true)]
        {
            if count > limit {
                let excess = count - limit + limit / SLACK;
                let eligible = |asked: &Asked, usage: &Usage| {
                    counted(&asked.table) && usage.absent == is_absent && !usage.in_use
                };
                out.extend(self.oldest(excess, eligible));
            }
        }
        if shared.waiting() > self.limits.waiting / 2 {
            out.extend(self.abandoned_before(u32::MAX).into_iter().filter(|asked| counted(&asked.table)));
        }
        out
    }

    /// Takes out names that were not used since `epoch`, and returns them.
    pub(crate) fn forget_idle(&self, epoch: u32) -> Vec<Asked> {
        let mut out = self.oldest(usize::MAX, |_, usage| usage.used <= epoch && !usage.in_use);
        out.extend(self.abandoned_before(epoch));
        self.forget_all(&out);
        out
    }

    /// Starts a new epoch: what is looked up from now on counts as used later.
    pub(crate) fn next_epoch(&self) -> u32 {
        // Both count in step.
        self.look_ups.next_epoch();
        self.shared.next_epoch()
    }

    /// Names that exist, the last used first.
    pub(crate) fn recently_used(&self) -> Vec<Asked> {
        let mut all = self.usage();
        all.retain(|(_, usage)| !usage.absent);
        all.sort_by(|(_, a), (_, b)| b.used.cmp(&a.used).then_with(|| a.name.cmp(&b.name)));
        all.into_iter().map(|(asked, _)| asked).collect()
    }

    /// True where nothing was asked for yet.
    pub(crate) fn is_empty(&self) -> bool {
        let is_empty = |shared: &Shared| shared.answered() == (0, 0) && shared.waiting() == 0;
        is_empty(&self.shared) && is_empty(&self.look_ups)
    }

    fn usage(&self) -> Vec<(Asked, Usage)> {
        let mut all = labelled(&Table::Listeners, &self.listeners.names);
        all.extend(labelled(&Table::Addresses, &self.addresses.names));
        for table in self.hosts.lock().iter() {
            all.extend(labelled(&Table::Hosts(table.route_config.clone()), &table.names));
        }
        all
    }

    fn oldest(&self, count: usize, eligible: impl Fn(&Asked, &Usage) -> bool) -> Vec<Asked> {
        let mut found = self.usage();
        found.retain(|(asked, usage)| eligible(asked, usage));
        if found.len() > count {
            found.select_nth_unstable_by_key(count, |(_, usage)| usage.used);
            found.truncate(count);
        }
        found.into_iter().map(|(asked, _)| asked).collect()
    }

    fn abandoned_before(&self, epoch: u32) -> Vec<Asked> {
        let mut out = Vec::new();
        let mut add = |table: Table, names: Vec<(Box<str>, u32)>| {
            let old = names.into_iter().filter(|(_, since)| *since <= epoch);
            out.extend(old.map(|(name, _)| Asked { table: table.clone(), name }));
        };
        add(Table::Listeners, self.listeners.names.abandoned());
        add(Table::Addresses, self.addresses.names.abandoned());
        for table in self.hosts.lock().iter() {
            add(Table::Hosts(table.route_config.clone()), table.names.abandoned());
        }
        out
    }

    fn forget_all(&self, names: &[Asked]) {
        for Asked { table, name } in names {
            match table {
                Table::Listeners => self.listeners.names.forget(name),
                Table::Hosts(route_config) => self.hosts(route_config).names.forget(name),
                Table::Addresses => self.addresses.names.forget(name),
            }
        }
    }
}

fn labelled<T>(label: &Table, names: &Names<T>) -> Vec<(Asked, Usage)> {
    let usage = names.usage().into_iter();
    usage.map(|u| (Asked { table: label.clone(), name: u.name.clone() }, u)).collect()
}
