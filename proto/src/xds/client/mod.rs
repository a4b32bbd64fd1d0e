//! An ADS client of either variant: subscriptions, what is held at which version, ACKs, time to live, and reconnecting.
//!
//! The owner decides what to ask for and what an update is worth; this speaks the protocol. To the owner both variants look alike: a
//! state-of-the-world response is read as what is new in it (`whole`). Invariants:
//! - a response is ACKed or NACKed once, after its owner said what became of it ([`Client::applied`]), in the order of arrival per type;
//! - a version counts as held only when its resource was accepted, so what was refused is offered again after a reconnect;
//! - nothing is forgotten when the stream breaks: the next one begins with all names and held versions;
//! - a resource with a time to live is given up when it runs out ([`Client::expire`]), unless a heartbeat came.
//!
//! ```
//! use std::time::Instant;
//! use osier_proto::types::{self, core::Node, discovery::DeltaDiscoveryResponse};
//! use osier_proto::xds::{Request, Response, client::{Client, Content}};
//!
//! let mut client = Client::incremental(Node { id: "sidecar~10.0.0.1~a.b~b".into(), ..Default::default() }, 7);
//! client.subscribe(types::CLUSTER, "a");
//! client.on_connected();
//! let Some(Request::Incremental(request)) = client.next_request() else { panic!("there is one") };
//! assert_eq!(request.resource_names_subscribe, ["a"]);
//! assert!(client.next_request().is_none());
//!
//! // Whatever the stream brings:
//! let response = DeltaDiscoveryResponse { type_url: types::CLUSTER.into(), nonce: "1".into(), removed_resources: vec!["a".into()], ..Default::default() };
//! let received = client.on_response(Response::Incremental(response), Instant::now());
//! for update in &received.updates {
//!     match &update.content {
//!         Content::Present { version, resource } => println!("compile {} {version} {}", update.name, resource.type_url),
//!         Content::Absent => println!("{} does not exist", update.name),
//!         Content::Failed(status) => println!("{}: {}", update.name, status.message),
//!     }
//! }
//! client.applied(received.id, vec![]); // or the names that were refused, with the reason: that makes it a NACK
//! let Some(Request::Incremental(request)) = client.next_request() else { panic!("an ACK is due") };
//! assert_eq!(request.response_nonce, "1");
//! // The stream broke: reconnect then, and go on with on_connected().
//! let _retry_at = client.on_disconnected(Instant::now());
//! ```

mod backoff;
mod subscription;
#[cfg(test)]
mod tests;
mod whole;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

pub use backoff::Backoff;
use subscription::Subscription;

use super::{Name, Request, Response, Variant, key};
use crate::any::Any;
use crate::schema::{self, ControlPlaneIdentity};
use crate::types::core::{ControlPlane, Node};
use crate::types::discovery::ResourceError;
use crate::types::rpc;

/// Most text of a NACK, so that a thousand bad resources don't make a megabyte.
const MAX_NACK_TEXT: usize = 8 * 1024;

/// gRPC status code of a resource that does not exist.
const NOT_FOUND: i32 = 5;

/// Identifies a response that was received and not settled by [`Client::applied`] yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResponseId(u64);

/// What a response brought.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// To be handed back to [`Client::applied`].
    pub id: ResponseId,
    /// Type of all its resources.
    pub type_url: Name,
    /// In the order of the response. What is held at that very version already is left out.
    pub updates: Vec<Update>,
}

/// Resources of one type whose time to live ran out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// Their type.
    pub type_url: Name,
    /// Their names.
    pub names: Vec<Name>,
}

/// News of one resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The resource's name.
    pub name: Name,
    /// False where nobody asked for it (the server expects that it will be needed); it is not counted as held.
    pub asked: bool,
    /// What is new.
    pub content: Content,
}

/// What is new about a resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// It is this now.
    Present {
        /// The server's version, opaque.
        version: Name,
        /// The encoded resource.
        resource: Any,
    },
    /// It does not exist, or is not visible to this client.
    Absent,
    /// The server could not say; what was held stays in force. See [`is_transient`].
    Failed(rpc::Status),
}

/// True where a resource's error says nothing about the resource itself, so that asking again later is worth it.
pub fn is_transient(status: &rpc::Status) -> bool {
    const PERMISSION_DENIED: i32 = 7;
    !matches!(status.code, NOT_FOUND | PERMISSION_DENIED)
}

/// A resource that its owner could not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The resource's name.
    pub name: Name,
    /// Why, for people at the other end.
    pub reason: String,
}

/// What is known of a name that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing yet.
    Waiting,
    /// In force at this version; over state of the world, where resources have none, it is the hash of the content.
    Held(Name),
    /// The server said that it does not exist.
    Absent,
}

/// An ADS client. It outlives its streams.
#[derive(Debug)]
pub struct Client {
    variant: Variant,
    node: Node,
    types: BTreeMap<(u8, Name), Subscription>,
    responses: BTreeMap<ResponseId, Pending>,
    last_id: u64,
    connected: bool,
    node_sent: bool,
    answers: VecDeque<Answer>,
    control_plane: Option<ControlPlane>,
    backoff: Backoff,
}

/// A response between arrival and ACK.
#[derive(Debug)]
struct Pending {
    type_url: Name,
    nonce: String,
    /// `version_info`; empty for delta.
    version: String,
    changes: Vec<Change>,
    refused: Vec<Refused>,
    outcome: Option<Option<rpc::Status>>,
}

/// What a response does to one resource, once it is accepted.
#[derive(Debug)]
struct Change {
    name: Name,
    /// `None` where there is none any more.
    version: Option<Name>,
    expires: Option<Instant>,
}

/// An ACK or NACK that is due.
#[derive(Debug)]
struct Answer {
    type_url: Name,
    nonce: String,
    error: Option<rpc::Status>,
    /// State of the world: the last accepted version of the type.
    version: String,
}

/// What a response of either variant says.
struct News {
    resources: Vec<Incoming>,
    removed: Vec<Name>,
    errors: Vec<ResourceError>,
    refused: Vec<Refused>,
}

/// A resource as it came.
struct Incoming {
    /// Its own name, and those that it was asked for by.
    names: Vec<Name>,
    /// Equal where the resource is.
    version: Name,
    /// What people call its version.
    shown: Name,
    ttl: Option<Duration>,
    /// `None` is a heartbeat, or says that it does not exist.
    body: Option<Any>,
}

impl Client {
    /// A `DeltaAggregatedResources` client without subscriptions. The seed makes reconnect times repeatable.
    pub fn incremental(node: Node, seed: u64) -> Self {
        Self::new(Variant::Incremental, node, seed)
    }

    /// A `StreamAggregatedResources` client without subscriptions.
    pub fn state_of_the_world(node: Node, seed: u64) -> Self {
        Self::new(Variant::StateOfTheWorld, node, seed)
    }

    /// A client of this variant.
    pub fn new(variant: Variant, mut node: Node, seed: u64) -> Self {
        node.client_features.extend(schema::UNDERSTOOD.map(str::to_owned));
        Self {
            variant,
            node,
            types: BTreeMap::new(),
            responses: BTreeMap::new(),
            last_id: 0,
            connected: false,
            node_sent: false,
            answers: VecDeque::new(),
            control_plane: None,
            backoff: Backoff::new(seed),
        }
    }

    /// Which of the two methods it speaks.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Asks for a resource. Asking again makes the server send it again.
    pub fn subscribe(&mut self, type_url: &str, name: impl Into<Name>) {
        let last_id = self.last_id;
        self.subscription(type_url).subscribe(name.into(), last_id);
    }

    /// Asks for all resources of a type.
    pub fn subscribe_all(&mut self, type_url: &str) {
        self.subscription(type_url).subscribe_all();
    }

    /// No longer wants a resource. What the server sends of it from now on is [`Update::asked`] `false`.
    pub fn unsubscribe(&mut self, type_url: &str, name: &str) {
        self.subscription(type_url).unsubscribe(name);
    }

    /// No longer wants all resources of a type; those asked for by name stay.
    pub fn unsubscribe_all(&mut self, type_url: &str) {
        self.subscription(type_url).unsubscribe_all();
    }

    /// True where the resource is wanted, by name or with all.
    pub fn wants(&self, type_url: &str, name: &str) -> bool {
        self.types.get(&key(type_url)).is_some_and(|s| s.covers(name))
    }

    /// True where the resource is wanted by its name, be there a wildcard beside it or not.
    pub fn asks_for(&self, type_url: &str, name: &str) -> bool {
        self.types.get(&key(type_url)).is_some_and(|s| s.asks_for(name))
    }

    /// What is known of a resource; `None` where it is not wanted.
    pub fn state(&self, type_url: &str, name: &str) -> Option<State> {
        self.types.get(&key(type_url))?.state(name)
    }

    /// All resources of a type that are held, with their versions.
    pub fn held(&self, type_url: &str) -> impl Iterator<Item = (&Name, &Name)> {
        self.types.get(&key(type_url)).into_iter().flat_map(|s| s.held())
    }

    /// What the server of this stream says of itself; `None` before its first response.
    pub fn control_plane(&self) -> Option<&ControlPlane> {
        self.control_plane.as_ref()
    }

    /// Whether the server of this stream honours `feature`; `None` before its first response.
    pub fn confirms(&self, feature: &str) -> Option<bool> {
        let control_plane = self.control_plane.as_ref()?;
        let identity = ControlPlaneIdentity::from_control_plane(Some(control_plane));
        let announced = schema::announces(&self.node, feature);
        Some(announced && identity.is_some_and(|identity| identity.confirms(feature)))
    }

    /// A stream is open: everything that is wanted is asked for again, with what is held.
    pub fn on_connected(&mut self) {
        self.connected = true;
        self.node_sent = false;
        self.control_plane = None;
        self.types.values_mut().for_each(Subscription::restart);
    }

    /// The stream ended, or could not be opened. Says when to try again.
    pub fn on_disconnected(&mut self, now: Instant) -> Instant {
        self.connected = false;
        self.answers.clear();
        // Their owner still settles them, and then what was accepted counts as held; there is nobody left to ACK.
        self.responses.values_mut().for_each(|pending| pending.nonce.clear());
        now + self.backoff.pause()
    }

    /// The next request to send; `None` until something changes.
    pub fn next_request(&mut self) -> Option<Request> {
        if !self.connected {
            return None;
        }
        let mut request = self.next_answer().or_else(|| self.next_change())?;
        if !std::mem::replace(&mut self.node_sent, true) {
            let node = Some(self.node.clone());
            match &mut request {
                Request::Incremental(request) => request.node = node,
                Request::StateOfTheWorld(request) => request.node = node,
            }
        }
        Some(request)
    }

    fn next_answer(&mut self) -> Option<Request> {
        while let Some(answer) = self.answers.pop_front() {
            let subscription = self.types.entry(key(&answer.type_url)).or_default();
            match self.variant {
                Variant::Incremental => return Some(Request::Incremental(subscription::answer(answer))),
                Variant::StateOfTheWorld => match subscription.answer_whole(answer) {
                    Some(request) => return Some(Request::StateOfTheWorld(request)),
                    None => continue,
                },
            }
        }
        None
    }

    fn next_change(&mut self) -> Option<Request> {
        let (variant, responses) = (self.variant, &self.responses);
        self.types.iter_mut().find_map(|((_, type_url), subscription)| {
            let mut pending = responses.values().filter(|pending| pending.type_url == *type_url);
            match variant {
                Variant::Incremental => {
                    let names = pending.flat_map(|pending| pending.changes.iter().map(|change| &change.name));
                    subscription.request(type_url, names).map(Request::Incremental)
                }
                // It would be stale, and the ACK that is to come carries the names as well.
                Variant::StateOfTheWorld if pending.any(|pending| !pending.nonce.is_empty()) => None,
                Variant::StateOfTheWorld => {
                    subscription.request_whole(type_url).map(Request::StateOfTheWorld)
                }
            }
        })
    }

    /// Takes in a response. The updates are to be applied, and their outcome told to [`Client::applied`].
    pub fn on_response(&mut self, response: Response, now: Instant) -> Received {
        self.backoff.reset();
        let (type_url, nonce, version, control_plane) = match &response {
            Response::Incremental(r) => (&r.type_url, r.nonce.clone(), String::new(), &r.control_plane),
            Response::StateOfTheWorld(r) => {
                (&r.type_url, r.nonce.clone(), r.version_info.clone(), &r.control_plane)
            }
        };
        if self.control_plane.is_none() || control_plane.is_some() {
            self.control_plane = Some(control_plane.clone().unwrap_or_default());
        }
        self.last_id += 1;
        let id = ResponseId(self.last_id);
        let type_url: Name = type_url.as_str().into();
        // While an earlier response waits for its outcome, what is held may not be what the owner is about to have.
        let earlier = self.responses.values_mut().filter(|pending| pending.type_url == type_url);
        let mut unsettled: Vec<&mut Change> = earlier.flat_map(|pending| &mut pending.changes).collect();
        let subscription = self.types.entry(key(&type_url)).or_default();
        let news = match response {
            Response::Incremental(response) => News::of_incremental(response),
            Response::StateOfTheWorld(response) => News::of_whole(response, subscription, &unsettled),
        };
        let mut pending = Pending {
            type_url: type_url.clone(),
            nonce,
            version,
            changes: Vec::new(),
            refused: news.refused,
            outcome: None,
        };
        let mut updates = Vec::new();
        let mut seen = HashSet::new();
        for resource in news.resources {
            if !seen.insert(resource.names[0].clone()) {
                let reason = "is twice in one response".to_owned();
                pending.refused.push(Refused { name: resource.names[0].clone(), reason });
                continue;
            }
            take_resource(subscription, resource, &mut unsettled, now, &mut pending, &mut updates);
        }
        for name in news.removed {
            let asked = subscription.covers(&name);
            if asked {
                pending.changes.push(Change { name: name.clone(), version: None, expires: None });
            }
            updates.push(Update { name, asked, content: Content::Absent });
        }
        for error in news.errors {
            take_error(subscription, error, &mut pending, &mut updates);
        }
        if !pending.refused.is_empty() {
            // What is refused is not held, so it must not be in force either.
            let refused: HashSet<&Name> = pending.refused.iter().map(|refused| &refused.name).collect();
            updates.retain(|update| !refused.contains(&update.name));
        }
        self.responses.insert(id, pending);
        Received { id, type_url, updates }
    }

    /// When [`Client::expire`] has to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.types.values().filter_map(Subscription::deadline).min()
    }

    /// Gives up what has outlived its time to live: it is to be taken out of force.
    pub fn expire(&mut self, now: Instant) -> Vec<Expired> {
        let expired = self.types.iter_mut().map(|((_, type_url), subscription)| Expired {
            type_url: type_url.clone(),
            names: subscription.expire(now),
        });
        expired.filter(|expired| !expired.names.is_empty()).collect()
    }

    /// Says what became of a response: everything in it is in force but what is listed here. An empty list makes an ACK.
    pub fn applied(&mut self, id: ResponseId, refused: Vec<Refused>) {
        let Some(pending) = self.responses.get_mut(&id).filter(|pending| pending.outcome.is_none()) else {
            return;
        };
        pending.refused.extend(refused);
        pending.outcome = Some(nack(&pending.refused));
        let type_url = pending.type_url.clone();
        self.settle_in_order(&type_url);
    }

    /// Responses of a type are settled in the order in which they came: the last word on a resource is the last response's, and most
    /// servers know only the latest nonce of a type.
    fn settle_in_order(&mut self, type_url: &Name) {
        let of_type = self.responses.iter().filter(|(_, pending)| pending.type_url == *type_url);
        let settled: Vec<ResponseId> =
            of_type.take_while(|(_, p)| p.outcome.is_some()).map(|(id, _)| *id).collect();
        for id in settled {
            let Some(Pending { nonce, version, changes, refused, outcome, .. }) = self.responses.remove(&id)
            else {
                continue;
            };
            let subscription = self.types.entry(key(type_url)).or_default();
            for change in changes {
                if refused.iter().all(|refused| refused.name != change.name) {
                    subscription.settle(change, id.0);
                }
            }
            let error = outcome.flatten();
            if error.is_none() {
                subscription.version = version;
            }
            if !nonce.is_empty() {
                let version = subscription.version.clone();
                self.answers.push_back(Answer { type_url: type_url.clone(), nonce, error, version });
            }
        }
    }

    fn subscription(&mut self, type_url: &str) -> &mut Subscription {
        self.types.entry(key(type_url)).or_default()
    }
}

fn take_resource(
    subscription: &mut Subscription,
    resource: Incoming,
    unsettled: &mut [&mut Change],
    now: Instant,
    pending: &mut Pending,
    updates: &mut Vec<Update>,
) {
    let Incoming { names, version, shown, ttl, body } = resource;
    let expires = ttl.map(|ttl| now + ttl);
    // An alias that was asked for stands for the resource; otherwise its own name does.
    let (mut asked, other): (Vec<Name>, Vec<Name>) =
        names.into_iter().partition(|name| subscription.covers(name));
    let is_asked = !asked.is_empty();
    if !is_asked {
        asked.extend(other.into_iter().next());
    }
    for name in asked {
        match &body {
            Some(body) if body.type_url != *pending.type_url => {
                let reason = format!("is a {}, not a {}", body.type_url, pending.type_url);
                pending.refused.push(Refused { name, reason });
            }
            Some(_) if unsettled.is_empty() && subscription.has(&name, &version) => {
                subscription.live_until(&name, expires);
            }
            Some(body) => {
                if is_asked {
                    let version = Some(version.clone());
                    pending.changes.push(Change { name: name.clone(), version, expires });
                }
                let content = Content::Present { version: shown.clone(), resource: body.clone() };
                updates.push(Update { name, asked: is_asked, content });
            }
            None => {
                let mut coming = unsettled.iter_mut().filter(|change| change.name == name).peekable();
                // VHDS says "not found" in this way; of what is there, it is a heartbeat.
                if is_asked && coming.peek().is_none() && subscription.state(&name) == Some(State::Waiting) {
                    pending.changes.push(Change { name: name.clone(), version: None, expires: None });
                    updates.push(Update { name, asked: true, content: Content::Absent });
                    continue;
                }
                coming.filter(|change| change.version.is_some()).for_each(|change| change.expires = expires);
                subscription.live_until(&name, expires);
            }
        }
    }
}

fn take_error(
    subscription: &Subscription,
    error: ResourceError,
    pending: &mut Pending,
    updates: &mut Vec<Update>,
) {
    let Some(name) = error.resource_name.map(|name| Name::from(name.name)) else { return };
    let status = error.error_detail.unwrap_or_default();
    let asked = subscription.covers(&name);
    let content = if status.code == NOT_FOUND { Content::Absent } else { Content::Failed(status) };
    if asked && content == Content::Absent {
        pending.changes.push(Change { name: name.clone(), version: None, expires: None });
    }
    updates.push(Update { name, asked, content });
}

fn nack(refused: &[Refused]) -> Option<rpc::Status> {
    const INVALID_ARGUMENT: i32 = 3;
    if refused.is_empty() {
        return None;
    }
    let mut message = String::new();
    for (i, Refused { name, reason }) in refused.iter().enumerate() {
        if message.len() + name.len() + reason.len() > MAX_NACK_TEXT && i > 0 {
            message.push_str(&format!("; and {} more", refused.len() - i));
            break;
        }
        let separator = if i == 0 { "" } else { "; " };
        message.push_str(&format!("{separator}{name}: {reason}"));
    }
    Some(rpc::Status { code: INVALID_ARGUMENT, message, details: Vec::new() })
}
