//! What is wanted of one type, what is held, and what the server does not know yet.

use std::collections::BTreeMap;
use std::time::Instant;

use indexmap::{IndexMap, IndexSet};

use super::{Answer, Change, State};
use crate::types::discovery::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::xds::{Name, WILDCARD, has_legacy_wildcard};

/// State of one type. It outlives streams, apart from what [`Subscription::restart`] clears.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// All resources are wanted.
    wildcard: bool,
    /// Names that are wanted, with what is known of them.
    names: IndexMap<Name, Wanted>,
    /// Versions held under the wildcard, without those in `names`.
    others: IndexMap<Name, Name>,
    /// The first request of the type went out on this stream.
    introduced: bool,
    /// Changes that the server does not know yet; true asks, false gives back.
    unsent: IndexMap<Name, bool>,
    /// When what is held, and has a time to live, is to be given up.
    expiries: IndexMap<Name, Instant>,

    /// State of the world only: the last accepted version.
    pub version: String,
    /// State of the world only: the nonce of the latest response that was answered.
    nonce: String,
    /// State of the world only: the names that the server was told last, the wildcard among them.
    told: IndexSet<Name>,
    /// State of the world only: names were told on this stream, so that naming none no longer means all.
    explicit: bool,
}

/// A name that is wanted.
#[derive(Debug)]
struct Wanted {
    state: State,
    /// The last response before it was wanted: what that one and older ones brought, the owner may have dropped since.
    since: u64,
}

impl Subscription {
    pub fn subscribe(&mut self, name: Name, since: u64) {
        let others = &mut self.others;
        self.names.entry(name.clone()).or_insert_with(|| {
            let (state, since) =
                others.swap_remove(&name).map_or((State::Waiting, since), |v| (State::Held(v), 0));
            Wanted { state, since }
        });
        self.unsent.insert(name, true);
    }

    pub fn subscribe_all(&mut self) {
        if !std::mem::replace(&mut self.wildcard, true) {
            self.unsent.insert(WILDCARD.into(), true);
        }
    }

    pub fn unsubscribe(&mut self, name: &str) {
        let Some((name, Wanted { state, .. })) = self.names.shift_remove_entry(name) else { return };
        if let (true, State::Held(version)) = (self.wildcard, state) {
            self.others.insert(name.clone(), version);
        } else {
            self.expiries.swap_remove(&name);
        }
        self.unsent.insert(name, false);
    }

    pub fn unsubscribe_all(&mut self) {
        if std::mem::replace(&mut self.wildcard, false) {
            self.others.clear();
            self.expiries.retain(|name, _| self.names.contains_key(name));
            self.unsent.insert(WILDCARD.into(), false);
        }
    }

    pub fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains_key(name)
    }

    pub fn asks_for(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    pub fn state(&self, name: &str) -> Option<State> {
        let other = || self.others.get(name).cloned().map(State::Held);
        self.names.get(name).map(|wanted| wanted.state.clone()).or_else(other)
    }

    pub fn has(&self, name: &str, version: &str) -> bool {
        !version.is_empty() && self.held_version(name).is_some_and(|held| &**held == version)
    }

    pub fn held(&self) -> impl Iterator<Item = (&Name, &Name)> {
        let named = self.names.iter().filter_map(|(name, wanted)| match &wanted.state {
            State::Held(version) => Some((name, version)),
            State::Waiting | State::Absent => None,
        });
        named.chain(&self.others)
    }

    fn held_version(&self, name: &str) -> Option<&Name> {
        match self.names.get(name).map(|wanted| &wanted.state) {
            Some(State::Held(version)) => Some(version),
            Some(State::Waiting | State::Absent) => None,
            None => self.others.get(name),
        }
    }

    /// Notes what is in force now, by the response with this number.
    pub fn settle(&mut self, change: Change, response: u64) {
        let Change { name, version, expires } = change;
        match (self.names.get_mut(&name), version) {
            (Some(wanted), _) if response <= wanted.since => return,
            (Some(wanted), version) => wanted.state = version.map_or(State::Absent, State::Held),
            (None, Some(version)) if self.wildcard => drop(self.others.insert(name.clone(), version)),
            (None, _) => drop(self.others.swap_remove(&name)),
        }
        self.live_until(&name, expires);
    }

    /// Sets, moves or lifts the end of what is held.
    pub fn live_until(&mut self, name: &Name, expires: Option<Instant>) {
        match expires.filter(|_| self.held_version(name).is_some()) {
            Some(expires) => drop(self.expiries.insert(name.clone(), expires)),
            None => drop(self.expiries.swap_remove(name)),
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.expiries.values().min().copied()
    }

    /// Gives up what has run out: as far as we know, it does not exist.
    pub fn expire(&mut self, now: Instant) -> Vec<Name> {
        let due = self.expiries.iter().filter(|(_, expires)| **expires <= now);
        let due: Vec<Name> = due.map(|(name, _)| name.clone()).collect();
        for name in &due {
            self.expiries.swap_remove(name);
            self.others.swap_remove(name);
            if let Some(wanted) = self.names.get_mut(name) {
                wanted.state = State::Absent;
            }
        }
        due
    }

    /// A new stream: its server knows nothing of us.
    pub fn restart(&mut self) {
        self.introduced = false;
        self.unsent.clear();
        self.nonce.clear();
        self.told.clear();
        self.explicit = false;
    }

    /// The request that tells the server what it does not know yet.
    ///
    /// `unsettled`: names in responses of an earlier stream whose outcome is not known yet. They are announced at no version, so that
    /// the server tells what they are now, whatever becomes of them here.
    pub fn request<'a>(
        &mut self,
        type_url: &str,
        unsettled: impl Iterator<Item = &'a Name>,
    ) -> Option<DeltaDiscoveryRequest> {
        if self.introduced {
            return self.change(type_url);
        }
        if !self.wildcard && self.names.is_empty() {
            self.unsent.clear();
            return None;
        }
        self.introduced = true;
        self.unsent.clear();
        let mut subscribe: Vec<String> = self.names.keys().map(|name| name.to_string()).collect();
        // A lone wildcard is asked for by naming nothing where that is the custom: every server knows that form.
        if self.wildcard && !(subscribe.is_empty() && has_legacy_wildcard(type_url)) {
            subscribe.insert(0, WILDCARD.into());
        }
        let mut versions: BTreeMap<String, String> =
            self.held().map(|(name, version)| (name.to_string(), version.to_string())).collect();
        versions
            .extend(unsettled.filter(|name| self.covers(name)).map(|name| (name.to_string(), String::new())));
        Some(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: subscribe,
            initial_resource_versions: versions,
            ..Default::default()
        })
    }

    /// State of the world: the list of names, where the server does not know it yet.
    pub fn request_whole(&mut self, type_url: &str) -> Option<DiscoveryRequest> {
        let first = !self.introduced && (self.wildcard || !self.names.is_empty());
        if !first && !self.introduced {
            self.unsent.clear();
        }
        self.introduced |= first;
        (first || !self.unsent.is_empty()).then(|| self.whole(type_url))
    }

    /// State of the world: the ACK or NACK of a response. `None` where the type was never asked for and an empty list would ask for
    /// everything.
    pub fn answer_whole(&mut self, answer: Answer) -> Option<DiscoveryRequest> {
        let wanted = self.wildcard || !self.names.is_empty();
        if !self.introduced && !wanted && has_legacy_wildcard(&answer.type_url) {
            return None;
        }
        self.introduced |= wanted;
        self.nonce = answer.nonce;
        let request = self.whole(&answer.type_url);
        Some(DiscoveryRequest { version_info: answer.version, error_detail: answer.error, ..request })
    }

    fn whole(&mut self, type_url: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names: self.list(type_url),
            version_info: self.version.clone(),
            response_nonce: self.nonce.clone(),
            ..Default::default()
        }
    }

    /// The list of names to tell. What was given back and is wanted again, or is asked for again, is missing from one list, and what
    /// remains unsent makes the next: the server would take it for held otherwise.
    fn list(&mut self, type_url: &str) -> Vec<String> {
        let (unsent, told) = (&self.unsent, &self.told);
        let is_again = |name: &Name| unsent.get(name) == Some(&true) && told.contains(name);
        let wildcard = self.wildcard.then(|| Name::from(WILDCARD));
        let all = wildcard.into_iter().chain(self.names.keys().cloned());
        let list: IndexSet<Name> = all.filter(|name| !is_again(name)).collect();
        let names_none_for_all = has_legacy_wildcard(type_url) && !self.explicit;
        if list.is_empty() && names_none_for_all && told.contains(WILDCARD) {
            // An empty list still means all: "all" has to be said before it can be taken back.
            self.explicit = true;
            return vec![WILDCARD.into()];
        }
        let told = std::mem::replace(&mut self.told, list);
        self.unsent.retain(|name, asked| *asked && told.contains(name));
        if names_none_for_all && self.told.len() == 1 && self.told.contains(WILDCARD) {
            return Vec::new();
        }
        self.explicit |= !self.told.is_empty();
        self.told.iter().map(|name| name.to_string()).collect()
    }

    fn change(&mut self, type_url: &str) -> Option<DeltaDiscoveryRequest> {
        if self.unsent.is_empty() {
            return None;
        }
        let (asked, given_back): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.unsent).into_iter().partition(|(_, asked)| *asked);
        let names =
            |changes: Vec<(Name, bool)>| changes.into_iter().map(|(name, _)| name.to_string()).collect();
        Some(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names(asked),
            resource_names_unsubscribe: names(given_back),
            ..Default::default()
        })
    }
}

/// Delta: an ACK or NACK says nothing else.
pub(super) fn answer(answer: Answer) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: answer.type_url.to_string(),
        response_nonce: answer.nonce,
        error_detail: answer.error,
        ..Default::default()
    }
}
