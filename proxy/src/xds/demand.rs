//! On-demand rules of the xDS task: the agreement, names that are asked for and given back, what comes unasked, idle names.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use osier_core::on_demand as naming;
use osier_proto::schema::FEATURE_ON_DEMAND;
use osier_proto::types;
use osier_proto::xds::WILDCARD;
use osier_proto::xds::client::Content;
use tokio::time::Instant;

use super::held::Kind;
use super::watch::{Link, Watch};
use super::{Sidecar, prefetch};
use crate::on_demand::{Asked, OnDemand, Table};

/// How long a resource is kept that came unasked: the control plane expects that it will be asked for.
const SPARE_TIME: Duration = Duration::from_secs(10);
/// Idle names are looked for so many times in the time after which they are forgotten.
const SWEEPS_PER_IDLE_TIME: u32 = 10;

/// On-demand settings and state of this task.
pub(super) struct Demand {
    pub(super) sidecar: Sidecar,
    pub(super) tables: Arc<OnDemand>,
    /// The control plane has confirmed it.
    pub(super) agreed: bool,
    /// Names of the last run, until they are asked for.
    pub(super) prefetch: Vec<Asked>,
    /// When each epoch began, oldest first.
    pub(super) epochs: VecDeque<(Instant, u32)>,
    pub(super) next_sweep: Instant,
}

impl Demand {
    pub(super) fn new(sidecar: Sidecar, tables: Arc<OnDemand>) -> Self {
        Self {
            sidecar,
            tables,
            agreed: false,
            prefetch: Vec::new(),
            epochs: VecDeque::new(),
            next_sweep: Instant::now(),
        }
    }

    /// The listeners that are sockets are asked for with a wildcard.
    pub(super) fn is_wildcard(&self) -> bool {
        self.sidecar.listeners.iter().any(|name| name == WILDCARD)
    }
}

/// A listener that was given back.
pub(super) struct GivenBack {
    pub(super) until: Instant,
    pub(super) asked_again: bool,
}

impl Watch {
    /// Settles with the first response of a stream whether on-demand rules hold. False: the stream has to begin anew.
    pub(super) fn agree(&mut self) -> bool {
        let Some(demand) = &mut self.demand else { return true };
        match (self.client.confirms(FEATURE_ON_DEMAND), demand.agreed) {
            (Some(true), true) | (None, _) => true,
            (Some(true), false) => {
                tracing::info!("control plane: agreed to on-demand");
                demand.agreed = true;
                self.state.set_on_demand(demand.tables.clone());
                if let Some(directory) = &self.directory {
                    directory.ask_on_demand(demand.tables.addresses().clone());
                }
                let serves_names = self.directory.is_some();
                let prefetch = std::mem::take(&mut demand.prefetch).into_iter();
                for asked in prefetch.filter(|asked| serves_names || asked.table != Table::Addresses) {
                    demand.tables.expect(&asked);
                    let (type_url, name) = match resource_of(&asked) {
                        Some((kind, name)) => (kind.type_url(), name),
                        None => (types::NAME_TABLE, (*asked.name).into()),
                    };
                    self.client.subscribe(type_url, name);
                }
                true
            }
            (Some(false), _) => {
                tracing::info!("control plane: knows no on-demand; subscribing to everything");
                self.demand = None;
                self.unacknowledged.clear();
                self.subscribed.clear();
                self.given_back.clear();
                self.subscribe_first();
                self.stats.connected.store(false, Relaxed);
                self.link = Link::Waiting(Instant::now());
                false
            }
        }
    }

    /// Under the wildcard, the server answers for a name that is given back: that it isn't there any more. True where `content` is
    /// that answer; it says nothing of the resource. Who asked for the name again meanwhile gets an answer of their own.
    pub(super) fn was_given_back(&mut self, kind: Kind, name: &Arc<str>, content: &Content) -> bool {
        if kind != Kind::Listener {
            return false;
        }
        let Some(given_back) = self.given_back.remove(name) else { return false };
        if given_back.asked_again {
            self.client.subscribe(kind.type_url(), name.clone());
        } else if *content == Content::Absent {
            self.state.forget(kind, name);
        }
        *content == Content::Absent
    }

    /// What nobody asked for is kept for some time, where that makes sense: what it will be asked for by is on its way.
    pub(super) fn keep_spare(&mut self, kind: Kind, name: &Arc<str>) -> bool {
        if !self.is_on_demand() || !matches!(kind, Kind::Cluster | Kind::Assignment) {
            return false;
        }
        self.spare.insert((kind, name.clone()), Instant::now() + SPARE_TIME);
        true
    }

    /// On demand: true for a listener that is no socket and that nobody asked for.
    pub(super) fn is_unwanted(&self, listener: &str) -> bool {
        self.state.on_demand.is_some()
            && !self.state.is_bound(listener)
            && self.state.tables_wanting(listener).is_none()
    }

    /// True while the control plane has agreed to on-demand rules.
    pub(super) fn is_on_demand(&self) -> bool {
        self.demand.as_ref().is_some_and(|d| d.agreed)
    }

    /// A control plane that has gone back on its agreement sends everything: what was got by name holds until then.
    pub(super) fn give_up_on_demand(&mut self, kind: Kind) {
        if kind == Kind::Listener && self.demand.is_none() && self.state.on_demand.is_some() {
            self.state.give_up_on_demand();
        }
    }

    /// Notes that a listener came that nobody wants (any more), to forget it unless somebody asks.
    pub(super) fn note_unwanted(&mut self, kind: Kind, name: &Arc<str>) {
        if kind == Kind::Listener && self.is_unwanted(name) {
            self.spare.insert((kind, name.clone()), Instant::now() + SPARE_TIME);
        }
    }

    /// Somebody looked up a name that isn't known.
    pub(super) fn on_asked(&mut self, asked: Asked) {
        if self.demand.is_none() {
            return;
        }
        let Some((kind, name)) = resource_of(&asked) else {
            return self.client.subscribe(types::NAME_TABLE, &*asked.name);
        };
        if kind == Kind::Listener {
            // It may be held already: as a socket of its own, or since it was given back a moment ago.
            self.state.link(&name);
            if let Some(given_back) = self.given_back.get_mut(&name) {
                given_back.asked_again = true;
                return;
            }
        }
        self.client.subscribe(kind.type_url(), name);
    }

    pub(super) async fn save(&mut self) {
        if let Some(demand) = self.demand.as_ref().filter(|d| d.agreed)
            && let Some(file) = &demand.sidecar.state_file
        {
            prefetch::save(file, demand.tables.recently_used()).await;
        }
    }

    /// Keeps the tables within their bounds, forgets idle names, and notes what requests have let go of.
    pub(super) fn sweep(&mut self, now: Instant) {
        if self.spare.values().any(|until| *until <= now) {
            self.state.references_changed = true;
        }
        let Some(demand) = self.demand.as_mut().filter(|d| d.agreed) else { return };
        demand.tables.next_epoch();
        let mut out = demand.tables.trim();
        if demand.next_sweep <= now {
            let idle = demand.tables.limits().idle;
            demand.next_sweep = now + idle / SWEEPS_PER_IDLE_TIME;
            demand.epochs.push_back((now, demand.tables.next_epoch()));
            while let Some((began, epoch)) = demand.epochs.front().copied()
                && now.saturating_duration_since(began) >= idle
            {
                demand.epochs.pop_front();
                out.extend(demand.tables.forget_idle(epoch - 1));
            }
            // Requests that ran on old routes may have ended since.
            self.state.references_changed = true;
        }
        for asked in out {
            let Some((kind, name)) = resource_of(&asked) else {
                self.client.unsubscribe(types::NAME_TABLE, &asked.name);
                continue;
            };
            self.client.unsubscribe(kind.type_url(), &name);
            if kind == Kind::Listener && demand.is_wildcard() {
                self.given_back.insert(name, GivenBack { until: now + SPARE_TIME, asked_again: false });
            } else if !(kind == Kind::Listener && self.state.is_bound(&name)) {
                self.state.forget(kind, &name);
            }
        }
        self.expire_given_back(now);
        let old =
            |(kind, _): &(Kind, Arc<str>), until: &mut Instant| *kind == Kind::Listener && *until <= now;
        let expired: Vec<_> = self.spare.extract_if(old).map(|((_, name), _)| name).collect();
        for name in expired {
            if self.is_unwanted(&name) {
                self.state.forget(Kind::Listener, &name);
            }
        }
    }

    /// A server that doesn't answer for names that are given back isn't waited for.
    fn expire_given_back(&mut self, now: Instant) {
        let expired = self.given_back.extract_if(|_, given_back| given_back.until <= now);
        for (name, GivenBack { asked_again, .. }) in expired.collect::<Vec<_>>() {
            if asked_again {
                self.client.subscribe(types::LISTENER, name);
            } else if !self.state.is_bound(&name) {
                self.state.forget(Kind::Listener, &name);
            }
        }
    }

    /// Idle tables need no sweep: then nothing wakes this task.
    pub(super) fn next_sweep(&self) -> Option<Instant> {
        let demand = self.demand.as_ref().filter(|d| d.agreed && !d.tables.is_empty())?;
        Some(demand.next_sweep)
    }
}

/// The resource behind a name of a table; `None` for addresses of a host, which nothing that is held depends on.
fn resource_of(asked: &Asked) -> Option<(Kind, Arc<str>)> {
    Some(match &asked.table {
        Table::Listeners => (Kind::Listener, (*asked.name).into()),
        Table::Hosts(route_config) => (Kind::Host, naming::host_key(route_config, &asked.name).into()),
        Table::Addresses => return None,
    })
}
