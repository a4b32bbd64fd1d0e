//! What is sent next (xDS protocol, "Eventual consistency considerations").
//!
//! In this order: resources to generate; what is new or changed, in push order; removals, in reverse. Removals of clusters and endpoints
//! wait until routes and listeners are ACKed, because a client may go on using its old routes until then; a client that comes back from
//! an earlier stream has not even asked for its routes yet. A client that asks gets
//! its answer whatever waits elsewhere: it may hold back an ACK until it has that answer.

use std::time::Instant;

use indexmap::{IndexMap, IndexSet};

use super::subscription::{Held, Sent, Subscription};
use super::{MAX_UNACKNOWLEDGED, REMOVAL_WAIT, Response, Step, Stream, Want, not_found};
use crate::types::discovery::{self, DeltaDiscoveryResponse, DiscoveryResponse, ResourceError, ResourceName};
use crate::types::{self, rpc};
use crate::xds::{Name, Resource, Variant, Version, is_full_set, key, push_order};

/// Types that refer to others: the first place in push order that does.
const FIRST_REFERRING: u8 = 2;

impl Stream {
    /// What to do next; `None` until something arrives, changes, or [`Stream::deadline`] passes.
    pub fn next(&mut self, now: Instant) -> Option<Step> {
        if let Some(want) = self.next_want() {
            return Some(Step::Generate(want));
        }
        let due = self.next_answer().or_else(|| self.next_change());
        if let Some(type_url) = due {
            return Some(Step::Send(self.send(&type_url, now)));
        }
        let type_url = self.next_removal(now)?;
        Some(Step::Send(self.send_removals(&type_url, now)))
    }

    fn next_want(&mut self) -> Option<Want> {
        self.types.iter_mut().find_map(|((_, type_url), subscription)| {
            let scope = subscription.wanted.take()?;
            subscription.generating += 1;
            Some(Want { type_url: type_url.clone(), scope })
        })
    }

    /// The first type whose client waits for an answer that is ready, or what has to go before it.
    fn next_answer(&self) -> Option<Name> {
        let ((order, _), _) = self.types.iter().find(|(_, s)| s.answer_due && s.generating == 0)?;
        let ready = |s: &Subscription| (s.answer_due || s.has_unsent()) && s.generating == 0;
        let first = self.types.iter().find(|((o, _), s)| o <= order && ready(s));
        first.map(|((_, type_url), _)| type_url.clone())
    }

    /// The first type with a change. A client that does not acknowledge keeps everything later waiting too, or a route could
    /// overtake its cluster.
    fn next_change(&self) -> Option<Name> {
        let limit = match self.variant {
            Variant::Incremental => MAX_UNACKNOWLEDGED,
            // A request that answers an older response is stale there, so there is only ever one.
            Variant::StateOfTheWorld => 1,
        };
        let ((_, type_url), first) = self.types.iter().find(|(_, s)| s.has_unsent())?;
        (first.unacknowledged.len() < limit && first.generating == 0).then(|| type_url.clone())
    }

    fn next_removal(&mut self, now: Instant) -> Option<Name> {
        let quiet = self.types.values().all(|s| !s.has_unsent() && s.generating == 0);
        let last = self.types.iter().rev().find(|(_, s)| !s.gone.is_empty()).map(|((_, t), _)| t.clone());
        let Some(type_url) = last.filter(|_| quiet) else {
            self.removal_deadline = None;
            return None;
        };
        let settled =
            self.types.iter().all(|((order, _), s)| *order < FIRST_REFERRING || s.unacknowledged.is_empty());
        if push_order(&type_url) < FIRST_REFERRING {
            let patience = (!settled).then(|| *self.removal_deadline.get_or_insert(now + REMOVAL_WAIT));
            if let Some(deadline) = patience.max(self.returning_until).filter(|deadline| now < *deadline) {
                self.removal_deadline = Some(deadline);
                return None;
            }
        }
        Some(type_url)
    }

    /// Sends all that is new, changed, or asked for and absent.
    fn send(&mut self, type_url: &Name, now: Instant) -> Response {
        if push_order(type_url) >= FIRST_REFERRING {
            // What waits to be removed may have been in use until just now.
            self.removal_deadline = None;
        }
        let subscription = self.types.get_mut(&key(type_url)).expect("the caller found it there");
        subscription.answer_due = false;
        let changed = std::mem::take(&mut subscription.changed);
        let ahead = std::mem::take(&mut subscription.ahead);
        let absent = std::mem::take(&mut subscription.absent);
        let errors = std::mem::take(&mut subscription.errors);
        let is_first = subscription.nonce_sent.is_none();
        for name in &absent {
            subscription.held.swap_remove(name);
            subscription.full_set.shift_remove(name);
        }
        for name in changed.keys().chain(&absent) {
            subscription.due.swap_remove(name);
            subscription.asked.swap_remove(name);
        }
        for resource in changed.values() {
            let held = Held { version: Some(resource.version), rejected: false };
            subscription.held.insert(resource.name.clone(), held);
        }
        let names: Vec<Name> = changed.keys().cloned().collect();
        let response = match self.variant {
            Variant::Incremental => {
                let resources = changed.into_values().chain(ahead.into_values()).collect();
                self.incremental_response(type_url, resources, absent, errors, now)
            }
            Variant::StateOfTheWorld => {
                self.state_of_the_world_response(type_url, changed, absent, errors, now)
            }
        };
        self.refresh_dependents(type_url, &names, is_first);
        response
    }

    fn send_removals(&mut self, type_url: &Name, now: Instant) -> Response {
        let subscription = self.types.get_mut(&key(type_url)).expect("the caller found it there");
        let gone = std::mem::take(&mut subscription.gone);
        let mut was_rejected = false;
        for name in &gone {
            was_rejected |= subscription.held.swap_remove(name).is_some_and(|held| held.rejected);
            subscription.full_set.shift_remove(name);
        }
        if was_rejected {
            subscription.want_rejected_again("");
        }
        match self.variant {
            Variant::Incremental => {
                self.incremental_response(type_url, Vec::new(), gone, IndexMap::new(), now)
            }
            Variant::StateOfTheWorld => {
                self.state_of_the_world_response(type_url, IndexMap::new(), gone, IndexMap::new(), now)
            }
        }
    }

    /// A cluster that changed warms again at an Envoy, and waits for endpoints even if those did not change. On a new stream the
    /// same holds for a listener and its routes.
    fn refresh_dependents(&mut self, type_url: &str, names: &[Name], is_first: bool) {
        let (dependent, of_all) = match type_url {
            types::CLUSTER => (types::CLUSTER_LOAD_ASSIGNMENT, false),
            types::LISTENER => (types::ROUTE_CONFIGURATION, true),
            _ => return,
        };
        if names.is_empty() || (of_all && !is_first) {
            return;
        }
        let Some(subscription) = self.types.get_mut(&key(dependent)) else { return };
        let affected: Vec<Name> =
            if of_all { subscription.held.keys().cloned().collect() } else { names.to_vec() };
        for name in affected {
            if subscription.held.contains_key(&name) && subscription.covers(&name) {
                subscription.want_again(name);
            }
        }
    }

    fn incremental_response(
        &mut self,
        type_url: &Name,
        resources: Vec<Resource>,
        removed: IndexSet<Name>,
        errors: IndexMap<Name, rpc::Status>,
        now: Instant,
    ) -> Response {
        let removed_resources = removed.iter().map(|name| name.to_string()).collect();
        let (nonce, system_version_info) = self.note_sent(type_url, &resources, removed, now);
        Response::Incremental(DeltaDiscoveryResponse {
            system_version_info,
            resources: resources.into_iter().map(to_wire).collect(),
            type_url: type_url.to_string(),
            nonce,
            removed_resources,
            control_plane: Some(self.identity.to_control_plane()),
            resource_errors: errors.into_iter().map(to_error).collect(),
        })
    }

    fn state_of_the_world_response(
        &mut self,
        type_url: &Name,
        changed: IndexMap<Name, Resource>,
        removed: IndexSet<Name>,
        errors: IndexMap<Name, rpc::Status>,
        now: Instant,
    ) -> Response {
        let resources: Vec<Resource> = if is_full_set(type_url) {
            let full_set = &mut self.types.get_mut(&key(type_url)).expect("it is being sent").full_set;
            full_set.extend(changed);
            full_set.values().cloned().collect()
        } else {
            changed.into_values().collect()
        };
        let absent: Vec<_> = removed.iter().map(|name| (name.clone(), not_found(name))).collect();
        let (nonce, version_info) = self.note_sent(type_url, &resources, removed, now);
        Response::StateOfTheWorld(DiscoveryResponse {
            version_info,
            resources: resources.into_iter().map(|resource| resource.body).collect(),
            canary: false,
            type_url: type_url.to_string(),
            nonce,
            control_plane: Some(self.identity.to_control_plane()),
            resource_errors: absent.into_iter().chain(errors).map(to_error).collect(),
        })
    }

    /// Gives the response a nonce and a version, and waits for its ACK.
    fn note_sent(
        &mut self,
        type_url: &Name,
        resources: &[Resource],
        removed: IndexSet<Name>,
        now: Instant,
    ) -> (String, String) {
        self.last_nonce += 1;
        let nonce = self.last_nonce.to_string();
        let version = version_of_all(resources).to_string();
        let subscription: &mut Subscription = self.types.get_mut(&key(type_url)).expect("it is being sent");
        let resources = resources.iter().map(|resource| (resource.name.clone(), resource.version)).collect();
        subscription.unacknowledged.push_back(Sent {
            nonce: nonce.clone(),
            version: version.clone(),
            at: now,
            resources,
            removed: removed.into_iter().collect(),
        });
        subscription.nonce_sent = Some(nonce.clone());
        subscription.version_sent = Some(version.clone());
        (nonce, version)
    }
}

/// A version of a response, equal for equal content in whatever order.
fn version_of_all(resources: &[Resource]) -> Version {
    let hash = |resource: &Resource| {
        xxhash_rust::xxh3::xxh3_64_with_seed(resource.name.as_bytes(), resource.version.0)
    };
    Version(resources.iter().map(hash).fold(0, u64::wrapping_add))
}

fn to_wire(resource: Resource) -> discovery::Resource {
    discovery::Resource {
        name: resource.name.to_string(),
        version: resource.version.to_string(),
        resource: Some(resource.body),
        ..Default::default()
    }
}

fn to_error((name, error): (Name, rpc::Status)) -> ResourceError {
    let resource_name = Some(ResourceName { name: name.to_string() });
    ResourceError { resource_name, error_detail: Some(error) }
}
