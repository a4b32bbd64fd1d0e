//! An incremental ADS client: subscriptions, what is held at which version, ACKs, and reconnecting.
//!
//! The owner decides what to ask for and what an update is worth; this speaks the protocol. Invariants:
//! - a response is ACKed or NACKed once, after its owner said what became of it ([`Client::applied`]), in the order of arrival per type;
//! - a version counts as held only when its resource was accepted, so what was refused is offered again after a reconnect;
//! - nothing is forgotten when the stream breaks: the next one begins with all names and held versions.
//!
//! ```
//! use std::time::Instant;
//! use osier_proto::types::{self, core::Node, discovery::DeltaDiscoveryResponse};
//! use osier_proto::xds::{Resource, client::{Client, Content}};
//!
//! let mut client = Client::new(Node { id: "sidecar~10.0.0.1~a.b~b".into(), ..Default::default() }, 7);
//! client.subscribe(types::CLUSTER, "a");
//! client.on_connected();
//! let request = client.next_request().unwrap();
//! assert_eq!(request.resource_names_subscribe, ["a"]);
//! assert!(client.next_request().is_none());
//!
//! // Whatever the stream brings:
//! let response = DeltaDiscoveryResponse { type_url: types::CLUSTER.into(), nonce: "1".into(), removed_resources: vec!["a".into()], ..Default::default() };
//! let received = client.on_response(response);
//! for update in &received.updates {
//!     match &update.content {
//!         Content::Present { version, resource } => println!("compile {} {version} {}", update.name, resource.type_url),
//!         Content::Absent => println!("{} does not exist", update.name),
//!         Content::Failed(status) => println!("{}: {}", update.name, status.message),
//!     }
//! }
//! client.applied(received.id, vec![]); // or the names that were refused, with the reason: that makes it a NACK
//! assert_eq!(client.next_request().unwrap().response_nonce, "1");
//! // The stream broke: reconnect then, and go on with on_connected().
//! let _retry_at = client.on_disconnected(Instant::now());
//! ```

mod backoff;
mod subscription;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

pub use backoff::Backoff;
use subscription::Subscription;

use super::{Name, key};
use crate::any::Any;
use crate::schema::{self, ControlPlaneIdentity};
use crate::types::core::{ControlPlane, Node};
use crate::types::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, ResourceError};
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
    /// In force at this version.
    Held(Name),
    /// The server said that it does not exist.
    Absent,
}

/// An incremental ADS client. It outlives its streams.
#[derive(Debug)]
pub struct Client {
    node: Node,
    types: BTreeMap<(u8, Name), Subscription>,
    responses: BTreeMap<ResponseId, Pending>,
    last_id: u64,
    connected: bool,
    node_sent: bool,
    answers: VecDeque<DeltaDiscoveryRequest>,
    control_plane: Option<ControlPlane>,
    backoff: Backoff,
}

/// A response between arrival and ACK.
#[derive(Debug)]
struct Pending {
    type_url: Name,
    nonce: String,
    changes: Vec<(Name, Option<Name>)>,
    refused: Vec<Refused>,
    outcome: Option<Option<rpc::Status>>,
}

impl Client {
    /// A client without subscriptions. The seed makes reconnect times repeatable.
    pub fn new(node: Node, seed: u64) -> Self {
        Self {
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
    pub fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        if !self.connected {
            return None;
        }
        let responses = &self.responses;
        let mut request = self.answers.pop_front().or_else(|| {
            self.types.iter_mut().find_map(|((_, type_url), subscription)| {
                let pending = responses.values().filter(|pending| pending.type_url == *type_url);
                subscription.request(
                    type_url,
                    pending.flat_map(|pending| pending.changes.iter().map(|(name, _)| name)),
                )
            })
        })?;
        if !std::mem::replace(&mut self.node_sent, true) {
            request.node = Some(self.node.clone());
        }
        Some(request)
    }

    /// Takes in a response. The updates are to be applied, and their outcome told to [`Client::applied`].
    pub fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Received {
        self.backoff.reset();
        if self.control_plane.is_none() || response.control_plane.is_some() {
            self.control_plane = Some(response.control_plane.unwrap_or_default());
        }
        self.last_id += 1;
        let id = ResponseId(self.last_id);
        let type_url: Name = response.type_url.as_str().into();
        let mut pending = Pending {
            type_url: type_url.clone(),
            nonce: response.nonce,
            changes: Vec::new(),
            refused: Vec::new(),
            outcome: None,
        };
        // While an earlier response waits for its outcome, what is held may not be what the owner is about to have.
        let settled = self.responses.values().all(|pending| pending.type_url != type_url);
        let subscription = self.types.entry(key(&type_url)).or_default();
        let mut updates = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for resource in response.resources {
            if !seen.insert(resource.name.clone()) {
                let reason = "is twice in one response".to_owned();
                pending.refused.push(Refused { name: resource.name.into(), reason });
                continue;
            }
            take_resource(subscription, resource, settled, &mut pending, &mut updates);
        }
        for name in response.removed_resources {
            let name: Name = name.into();
            let asked = subscription.covers(&name);
            if asked {
                pending.changes.push((name.clone(), None));
            }
            updates.push(Update { name, asked, content: Content::Absent });
        }
        for error in response.resource_errors {
            take_error(subscription, error, &mut pending, &mut updates);
        }
        self.responses.insert(id, pending);
        Received { id, type_url, updates }
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
            let Some(pending) = self.responses.remove(&id) else { continue };
            let subscription = self.subscription(type_url);
            for (name, version) in pending.changes {
                if pending.refused.iter().all(|refused| refused.name != name) {
                    subscription.settle(name, version, id.0);
                }
            }
            if !pending.nonce.is_empty() {
                self.answers.push_back(DeltaDiscoveryRequest {
                    type_url: type_url.to_string(),
                    response_nonce: pending.nonce,
                    error_detail: pending.outcome.flatten(),
                    ..Default::default()
                });
            }
        }
    }

    fn subscription(&mut self, type_url: &str) -> &mut Subscription {
        self.types.entry(key(type_url)).or_default()
    }
}

fn take_resource(
    subscription: &mut Subscription,
    resource: discovery::Resource,
    settled: bool,
    pending: &mut Pending,
    updates: &mut Vec<Update>,
) {
    let version: Name = resource.version.into();
    // An alias that was asked for stands for the resource; otherwise its own name does.
    let names = std::iter::once(resource.name).chain(resource.aliases).map(Name::from);
    let (mut asked, other): (Vec<Name>, Vec<Name>) = names.partition(|name| subscription.covers(name));
    let is_asked = !asked.is_empty();
    if !is_asked {
        asked.extend(other.into_iter().next());
    }
    for name in asked {
        match &resource.resource {
            Some(body) if body.type_url != *pending.type_url => {
                let reason = format!("is a {}, not a {}", body.type_url, pending.type_url);
                pending.refused.push(Refused { name, reason });
            }
            Some(_) if settled && subscription.has(&name, &version) => {}
            Some(body) => {
                if is_asked {
                    pending.changes.push((name.clone(), Some(version.clone())));
                }
                let content = Content::Present { version: version.clone(), resource: body.clone() };
                updates.push(Update { name, asked: is_asked, content });
            }
            // A heartbeat of what we hold says nothing new; VHDS says "not found" in this way.
            None if is_asked && subscription.state(&name) == Some(State::Waiting) => {
                pending.changes.push((name.clone(), None));
                updates.push(Update { name, asked: true, content: Content::Absent });
            }
            None => {}
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
        pending.changes.push((name.clone(), None));
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
