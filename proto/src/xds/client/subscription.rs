//! What is wanted of one type, what is held, and what the server does not know yet.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::State;
use crate::types::discovery::DeltaDiscoveryRequest;
use crate::xds::{Name, WILDCARD, has_legacy_wildcard};

/// State of one type. It outlives streams, apart from `introduced` and `unsent`.
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
        }
        self.unsent.insert(name, false);
    }

    pub fn unsubscribe_all(&mut self) {
        if std::mem::replace(&mut self.wildcard, false) {
            self.others.clear();
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

    /// Notes what is in force now, by the response with this number: a version, or that there is none.
    pub fn settle(&mut self, name: Name, version: Option<Name>, response: u64) {
        match (self.names.get_mut(&name), version) {
            (Some(wanted), _) if response <= wanted.since => {}
            (Some(wanted), version) => wanted.state = version.map_or(State::Absent, State::Held),
            (None, Some(version)) if self.wildcard => drop(self.others.insert(name, version)),
            (None, _) => drop(self.others.swap_remove(&name)),
        }
    }

    /// A new stream: its server knows nothing of us.
    pub fn restart(&mut self) {
        self.introduced = false;
        self.unsent.clear();
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
