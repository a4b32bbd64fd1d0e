//! What a request does to a subscription (xDS protocol, "Wildcard subscriptions", "ACK/NACK", "Unsubscribing").

use std::time::Instant;

use indexmap::IndexSet;

use super::subscription::{Held, Subscription};
use super::{MAX_TYPES, ProtocolError, REMOVAL_WAIT, Reaction, Stream, Verdict, over_limit};
use crate::schema;
use crate::types::core::Node;
use crate::types::discovery::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::types::rpc;
use crate::xds::{Name, Version, WILDCARD, has_legacy_wildcard, is_full_set, key};

impl Stream {
    pub(super) fn on_incremental(
        &mut self,
        request: DeltaDiscoveryRequest,
        now: Instant,
    ) -> Result<Reaction, ProtocolError> {
        self.greet(request.node, &request.type_url)?;
        let legacy_wildcard = self.allows_legacy_wildcard(&request.type_url);
        let limit = self.max_names();
        if !request.initial_resource_versions.is_empty() {
            self.returning_until.get_or_insert(now + REMOVAL_WAIT);
        }
        let subscription = self.types.entry(key(&request.type_url)).or_default();
        let mut reaction = Reaction::new(&request.type_url);

        reaction.verdict = judge(subscription, &request.response_nonce, request.error_detail.as_ref(), now);
        // The ACK of something pushed ahead may come before the first subscription of its type; it is no wish for everything.
        let is_first =
            !subscription.seen && (request.response_nonce.is_empty() || subscription.nonce_sent.is_none());
        subscription.seen |= is_first || !request.resource_names_subscribe.is_empty();
        let mut asked: IndexSet<&str> = request.resource_names_subscribe.iter().map(String::as_str).collect();
        if is_first {
            subscription.answer_due = true;
            let nothing_named = asked.is_empty() && request.resource_names_unsubscribe.is_empty();
            if nothing_named && legacy_wildcard {
                subscription.wildcard = true;
                subscription.wanted.all = true;
            }
        }
        if asked.swap_remove(WILDCARD) && !subscription.wildcard {
            subscription.wildcard = true;
            subscription.wanted.all = true;
            subscription.answer_due = true;
        }
        if is_first {
            announce(subscription, &request.initial_resource_versions, &mut asked, limit);
        }
        // What is given back makes room first; a name in both lists ends up as not wanted.
        let (both, given_back): (Vec<&str>, Vec<&str>) = request
            .resource_names_unsubscribe
            .iter()
            .map(String::as_str)
            .partition(|name| *name == WILDCARD || asked.contains(name));
        given_back
            .into_iter()
            .for_each(|name| reaction.unsubscribed += usize::from(unsubscribe(subscription, name)));
        asked.into_iter().for_each(|name| reaction.count(subscribe(subscription, name, limit)));
        both.into_iter()
            .for_each(|name| reaction.unsubscribed += usize::from(unsubscribe(subscription, name)));
        Ok(reaction)
    }

    pub(super) fn on_state_of_the_world(
        &mut self,
        request: DiscoveryRequest,
        now: Instant,
    ) -> Result<Reaction, ProtocolError> {
        self.greet(request.node, &request.type_url)?;
        let legacy_wildcard = self.allows_legacy_wildcard(&request.type_url);
        let limit = self.max_names();
        let subscription = self.types.entry(key(&request.type_url)).or_default();
        let mut reaction = Reaction::new(&request.type_url);

        let restart = !subscription.seen || request.response_nonce.is_empty();
        if !restart {
            reaction.verdict =
                judge(subscription, &request.response_nonce, request.error_detail.as_ref(), now);
            if subscription.nonce_sent.as_ref() != Some(&request.response_nonce) {
                // The client's newer request will carry its names whole. But what it gave back here, and may want again there, it
                // will not have kept.
                let listed: IndexSet<&str> = request.resource_names.iter().map(String::as_str).collect();
                let dropped = subscription.names.iter().filter(|name| !listed.contains(&***name));
                subscription.doubted.extend(dropped.cloned());
                return Ok(reaction);
            }
        } else if subscription.seen {
            subscription.unacknowledged.clear();
        }
        subscription.seen = true;
        let mut names: IndexSet<&str> = request.resource_names.iter().map(String::as_str).collect();
        let named_all = names.swap_remove(WILDCARD);
        let all = named_all || (names.is_empty() && !subscription.explicit && legacy_wildcard);
        subscription.explicit |= !names.is_empty() || named_all;
        let becomes_wildcard = all && (!subscription.wildcard || restart);
        subscription.wildcard = all;
        if becomes_wildcard {
            subscription.wanted.all = true;
            subscription.answer_due = true;
            // A client that starts anew is shown everything.
            subscription.due.extend(subscription.held.keys().cloned());
        }

        let dropped: Vec<Name> =
            subscription.names.iter().filter(|n| !names.contains(&***n)).cloned().collect();
        for name in &dropped {
            subscription.names.shift_remove(name);
            if !subscription.wildcard && subscription.held.get(name).is_some_and(|held| held.rejected) {
                // Without it, the rest of what was refused may be welcome.
                subscription.want_rejected_again(name);
            }
        }
        reaction.unsubscribed = dropped.len();
        subscription.forget_uncovered();
        let doubted = std::mem::take(&mut subscription.doubted);
        for name in names {
            if restart || doubted.contains(name) || !subscription.names.contains(name) {
                reaction.count(subscribe(subscription, name, limit));
            }
        }
        // Where absence means removal, a response to a changed list of names must show the whole list.
        subscription.answer_due |= restart && !subscription.names.is_empty();
        if is_full_set(&request.type_url) {
            subscription
                .full_set
                .retain(|name, _| subscription.wildcard || subscription.names.contains(name));
        }
        Ok(reaction)
    }

    /// Checks what every request must have, and keeps the node of the first.
    fn greet(&mut self, node: Option<Node>, type_url: &str) -> Result<(), ProtocolError> {
        if self.node.is_none() {
            let node = node.filter(|node| !node.id.is_empty()).ok_or(ProtocolError::NoNode)?;
            let offered = &self.options.identity.features;
            self.identity.features =
                offered.iter().filter(|feature| schema::announces(&node, feature)).cloned().collect();
            self.node = Some(node);
        }
        if type_url.is_empty() {
            return Err(ProtocolError::NoType);
        }
        if self.types.len() >= MAX_TYPES && !self.types.contains_key(&key(type_url)) {
            return Err(ProtocolError::TooManyTypes);
        }
        Ok(())
    }

    /// gRPC clients never want everything: their empty list means that the last watch went away.
    fn allows_legacy_wildcard(&self, type_url: &str) -> bool {
        let agent = self.node.as_ref().map(|node| node.user_agent_name.as_str()).unwrap_or_default();
        has_legacy_wildcard(type_url)
            && !agent.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("grpc"))
    }
}

/// The part of a request that speaks about a response. Only `error_detail` makes it a NACK, never its code or a version.
fn judge(subscription: &mut Subscription, nonce: &str, error: Option<&rpc::Status>, now: Instant) -> Verdict {
    match error {
        Some(error) => Verdict::Nack(subscription.refuse(nonce, error, now)),
        None if nonce.is_empty() => Verdict::Spontaneous,
        None => match subscription.acknowledge(nonce, now) {
            Some(took) => Verdict::Ack { took },
            // The latest response may be echoed again and again, with changes of the subscription.
            None if subscription.nonce_sent.as_deref() == Some(nonce) => Verdict::Spontaneous,
            None => Verdict::Stale,
        },
    }
}

/// Takes in what a reconnecting client holds. Names at their present version are not sent again.
fn announce(
    subscription: &mut Subscription,
    versions: &std::collections::BTreeMap<String, String>,
    asked: &mut IndexSet<&str>,
    limit: usize,
) {
    for (name, version) in versions {
        let asked = asked.swap_remove(name.as_str());
        let name: Name = name.as_str().into();
        if asked || !subscription.wildcard {
            if subscription.names.len() >= limit {
                subscription.errors.insert(name.clone(), over_limit(&name, limit));
                continue;
            }
            subscription.explicit = true;
            subscription.names.insert(name.clone());
            subscription.wanted.names.insert(name.clone());
        }
        subscription.held.insert(name, Held { version: Version::parse(version), rejected: false });
    }
}

enum Subscribed {
    New,
    Again,
    OverLimit,
}

fn subscribe(subscription: &mut Subscription, name: &str, limit: usize) -> Subscribed {
    let name: Name = name.into();
    subscription.explicit = true;
    if !subscription.names.contains(&name) {
        if subscription.names.len() >= limit {
            subscription.errors.insert(name.clone(), over_limit(&name, limit));
            return Subscribed::OverLimit;
        }
        subscription.names.insert(name.clone());
        subscription.ahead.swap_remove(&name);
        subscription.want_for_client(name);
        subscription.answer_due = true;
        return Subscribed::New;
    }
    subscription.want_for_client(name);
    subscription.answer_due = true;
    Subscribed::Again
}

fn unsubscribe(subscription: &mut Subscription, name: &str) -> bool {
    subscription.explicit = true;
    if name == WILDCARD {
        let was = std::mem::replace(&mut subscription.wildcard, false);
        subscription.forget_uncovered();
        return was;
    }
    let Some(name) = subscription.names.shift_take(name) else { return false };
    if subscription.wildcard {
        // The client must learn whether the wildcard still gives it this resource.
        subscription.want_for_client(name);
        subscription.answer_due = true;
    } else {
        if subscription.held.get(&name).is_some_and(|held| held.rejected) {
            // Without it, the rest of what was refused may be welcome.
            subscription.want_rejected_again(&name);
        }
        subscription.forget(&name);
    }
    true
}

impl Reaction {
    fn new(type_url: &str) -> Self {
        let verdict = Verdict::Spontaneous;
        Self { type_url: type_url.into(), verdict, subscribed: 0, unsubscribed: 0, over_limit: 0 }
    }

    fn count(&mut self, subscribed: Subscribed) {
        match subscribed {
            Subscribed::New => self.subscribed += 1,
            Subscribed::OverLimit => self.over_limit += 1,
            Subscribed::Again => {}
        }
    }
}
