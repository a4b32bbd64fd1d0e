//! What one client wants of one type, what it has, and what it still has to be told.

use std::collections::VecDeque;
use std::time::Instant;

use indexmap::{IndexMap, IndexSet};

use super::{Refusal, Scope, Status, Wanted};
use crate::types::rpc;
use crate::xds::{Name, Resource, Version};

/// State of one type on one stream.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// A request of this type came (state may exist before, for what was pushed ahead).
    pub seen: bool,
    /// All resources are wanted.
    pub wildcard: bool,
    /// A name was given at some time, so that an empty list no longer means all.
    pub explicit: bool,
    /// Names that are wanted.
    pub names: IndexSet<Name>,
    /// What the client has, as far as we know, or was sent last.
    pub held: IndexMap<Name, Held>,
    /// State of the world only: the full set, with what is about to be removed.
    pub full_set: IndexMap<Name, Resource>,

    /// State of the world only: names that a stale request did not list.
    pub doubted: IndexSet<Name>,

    /// To be generated.
    pub wanted: Wanted,
    /// Steps that were handed out and not answered yet.
    pub generating: usize,
    /// Names to be sent even if the client has them, because it needs to see them again.
    pub due: IndexSet<Name>,
    /// Those of them that the client asked for, and that it is therefore told about even if there is nothing.
    pub asked: IndexSet<Name>,
    /// To be sent.
    pub changed: IndexMap<Name, Resource>,
    /// To be sent although nobody asked.
    pub ahead: IndexMap<Name, Resource>,
    /// Asked for, and not there: to be said at once.
    pub absent: IndexSet<Name>,
    /// No longer there: to be said after everything else.
    pub gone: IndexSet<Name>,
    /// Names that are refused, with the reason.
    pub errors: IndexMap<Name, rpc::Status>,
    /// The client waits for a response, be it an empty one.
    pub answer_due: bool,

    /// Responses without ACK or NACK, oldest first.
    pub unacknowledged: VecDeque<Sent>,
    pub nonce_sent: Option<String>,
    pub nonce_acknowledged: Option<String>,
    pub version_sent: Option<String>,
    pub version_acknowledged: Option<String>,
    pub refusal: Option<Refusal>,
    /// Some of `held` is rejected, or some of these.
    pub any_rejected: bool,
    /// Removals in refused responses.
    pub rejected_removals: IndexSet<Name>,
}

/// One resource at the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// Last version sent or announced; `None` where it is not one of ours.
    pub version: Option<Version>,
    /// It was in a response that the client refused.
    pub rejected: bool,
}

/// A response that was sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub nonce: String,
    pub version: String,
    pub at: Instant,
    pub resources: Vec<(Name, Version)>,
    pub removed: Vec<Name>,
}

impl Subscription {
    pub fn covers(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Generates a resource for a client that asked for it.
    pub fn want_for_client(&mut self, name: Name) {
        self.asked.insert(name.clone());
        self.want_again(name);
    }

    /// Generates a resource and sees to it that it is sent even if the client has it.
    pub fn want_again(&mut self, name: Name) {
        self.due.insert(name.clone());
        self.wanted.names.insert(name);
    }

    /// Takes in the present state of some resources.
    pub fn offer(&mut self, scope: Scope, resources: Vec<Resource>) {
        let mut offered: IndexMap<Name, Resource> =
            resources.into_iter().map(|resource| (resource.name.clone(), resource)).collect();
        let expected: IndexSet<Name> = match scope {
            Scope::Names(names) => names.into_iter().collect(),
            Scope::All => {
                let known = self.held.keys().chain(self.changed.keys()).chain(&self.names).chain(&self.due);
                known.cloned().collect()
            }
        };
        for name in expected {
            match offered.shift_remove(&name) {
                Some(resource) => self.exists(resource),
                None => self.is_missing(&name),
            }
        }
        offered.into_values().for_each(|resource| self.exists(resource));
    }

    /// Takes in a resource that the client will want.
    pub fn offer_ahead(&mut self, resource: Resource) {
        if self.covers(&resource.name) {
            self.exists(resource);
        } else {
            self.ahead.insert(resource.name.clone(), resource);
        }
    }

    fn exists(&mut self, resource: Resource) {
        if !self.covers(&resource.name) {
            return;
        }
        self.gone.swap_remove(&resource.name);
        self.absent.swap_remove(&resource.name);
        // Asked for before it went out ahead: it goes once.
        self.ahead.swap_remove(&resource.name);
        let due = self.due.contains(&resource.name);
        let has_it = self.held.get(&resource.name).is_some_and(|held| held.version == Some(resource.version));
        if has_it && !due {
            self.changed.swap_remove(&resource.name);
            return;
        }
        if !has_it && self.any_rejected {
            self.want_rejected_again(&resource.name);
        }
        self.changed.insert(resource.name.clone(), resource);
    }

    fn is_missing(&mut self, name: &Name) {
        self.changed.swap_remove(name);
        self.ahead.swap_remove(name);
        if self.any_rejected && self.held.contains_key(name) {
            self.want_rejected_again(name);
        }
        if self.asked.contains(name) {
            self.absent.insert(name.clone());
        } else if self.held.contains_key(name) {
            self.gone.insert(name.clone());
        }
    }

    /// A NACK refuses a whole response, and what was good in it may have been dropped with the rest. Once something changes, all of
    /// it is sent again.
    pub fn want_rejected_again(&mut self, except: &str) {
        self.any_rejected = false;
        let mut rejected = Vec::new();
        for (name, held) in &mut self.held {
            if std::mem::take(&mut held.rejected) && &**name != except && !self.changed.contains_key(name) {
                rejected.push(name.clone());
            }
        }
        rejected.into_iter().for_each(|name| self.want_again(name));
        for name in std::mem::take(&mut self.rejected_removals) {
            if self.covers(&name) {
                self.want_for_client(name);
            }
        }
    }

    /// Forgets everything about a name that is no longer wanted.
    pub fn forget(&mut self, name: &str) {
        self.held.swap_remove(name);
        self.full_set.shift_remove(name);
        self.due.swap_remove(name);
        self.asked.swap_remove(name);
        self.wanted.names.swap_remove(name);
        self.changed.swap_remove(name);
        self.absent.swap_remove(name);
        self.gone.swap_remove(name);
        self.errors.swap_remove(name);
    }

    /// Forgets all that is not wanted (any more).
    pub fn forget_uncovered(&mut self) {
        let known: IndexSet<Name> =
            self.held.keys().chain(self.changed.keys()).chain(&self.due).cloned().collect();
        for name in known {
            if !self.covers(&name) {
                self.forget(&name);
            }
        }
        if !self.wildcard {
            self.wanted.all = false;
        }
    }

    /// Notes an ACK. `None` where no such response waits for one.
    pub fn acknowledge(&mut self, nonce: &str, now: Instant) -> Option<std::time::Duration> {
        let sent = self.settle(nonce)?;
        self.nonce_acknowledged = Some(sent.nonce);
        self.version_acknowledged = Some(sent.version);
        self.refusal = None;
        Some(now.saturating_duration_since(sent.at))
    }

    /// Notes a NACK.
    pub fn refuse(&mut self, nonce: &str, error: &rpc::Status, now: Instant) -> Refusal {
        let sent = self.settle(nonce);
        let (resources, removed) = sent.map(|sent| (sent.resources, sent.removed)).unwrap_or_default();
        self.any_rejected |= !resources.is_empty() || !removed.is_empty();
        self.rejected_removals.extend(removed);
        let mut changed_since = false;
        for (name, version) in resources {
            let is_pending = self.changed.contains_key(&name);
            match self.held.get_mut(&name).filter(|held| held.version == Some(version) && !is_pending) {
                Some(held) => held.rejected = true,
                None => changed_since = true,
            }
        }
        if changed_since {
            // The refusal crossed what may well be its cure.
            self.want_rejected_again("");
        }
        let message = truncated(&error.message, 4096).to_owned();
        let refusal = Refusal { nonce: nonce.to_owned(), code: error.code, message, at: now };
        self.refusal = Some(refusal.clone());
        refusal
    }

    /// Takes a response off the list, and with it all older ones: clients answer in order.
    fn settle(&mut self, nonce: &str) -> Option<Sent> {
        let position = self.unacknowledged.iter().position(|sent| sent.nonce == nonce)?;
        self.unacknowledged.drain(..=position).next_back()
    }

    pub fn has_unsent(&self) -> bool {
        !self.changed.is_empty()
            || !self.absent.is_empty()
            || !self.ahead.is_empty()
            || !self.errors.is_empty()
    }

    pub fn status(&self) -> Status {
        Status {
            wildcard: self.wildcard,
            names: self.names.len(),
            nonce_sent: self.nonce_sent.clone(),
            nonce_acknowledged: self.nonce_acknowledged.clone(),
            version_sent: self.version_sent.clone(),
            version_acknowledged: self.version_acknowledged.clone(),
            unacknowledged: self.unacknowledged.len(),
            pending: self.has_unsent() || !self.gone.is_empty() || self.answer_due,
            refusal: self.refusal.clone(),
        }
    }
}

fn truncated(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    &text[..end]
}
