//! One ADS stream as the server sees it, incremental or state of the world.
//!
//! The owner generates resources; this decides what the client has to be told, when, and in which order. Invariants:
//! - what is referred to is sent before what refers to it, and removed after it (clusters, endpoints, listeners, routes, virtual hosts);
//! - what the client asks for is always answered, and never waits for an ACK of anything;
//! - nothing is sent twice unless it changed, was asked for again, or was refused together with what has now changed;
//! - pending changes are kept per name, so a client that does not read costs at most one copy of each resource.
//!
//! ```
//! use std::time::Instant;
//! use osier_proto::types::{self, cluster::Cluster, core::Node, discovery::DeltaDiscoveryRequest};
//! use osier_proto::xds::{Resource, server::{Options, Request, Response, Scope, Step, Stream}};
//!
//! let mut stream = Stream::incremental(Options::default());
//! let cluster = |name: &str| Resource::new(name, &Cluster { name: name.into(), ..Default::default() });
//! let request = DeltaDiscoveryRequest {
//!     node: Some(Node { id: "sidecar~10.0.0.1~a.b~b".into(), ..Default::default() }),
//!     type_url: types::CLUSTER.into(),
//!     resource_names_subscribe: vec!["a".into(), "b".into()],
//!     ..Default::default()
//! };
//! stream.on_request(Request::Incremental(request), Instant::now()).unwrap();
//! // A change elsewhere: what the client does not want is dropped here.
//! stream.push(types::CLUSTER, Scope::names(["c"]), vec![cluster("c")]);
//! while let Some(step) = stream.next(Instant::now()) {
//!     match step {
//!         Step::Generate(want) => stream.answer(want, vec![cluster("a")]), // there is no "b"
//!         Step::Send(Response::Incremental(response)) => {
//!             assert_eq!((response.resources.len(), &response.removed_resources[..]), (1, &["b".to_string()][..]));
//!         }
//!         Step::Send(Response::StateOfTheWorld(_)) => unreachable!("this stream is incremental"),
//!     }
//! }
//! ```

mod request;
mod send;
mod subscription;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indexmap::IndexSet;

use super::{Name, Resource, Variant, key};
pub use super::{Request, Response};
use crate::schema::{self, ControlPlaneIdentity};
use crate::types::core::Node;
use crate::types::rpc;
use subscription::Subscription;

/// Names of one type that an on-demand client may hold.
pub const MAX_NAMES_ON_DEMAND: usize = 4096;
/// Names of one type that any other client may hold; a wildcard costs none.
pub const MAX_NAMES: usize = 1 << 18;
/// Types on one stream.
pub const MAX_TYPES: usize = 64;
/// Responses of one type that may wait for their ACK before further changes of that type are merged instead of sent.
pub const MAX_UNACKNOWLEDGED: usize = 32;
/// How long the removal of clusters and endpoints waits for ACKs of the routes that no longer refer to them; and after a reconnect,
/// for the client to ask for its routes.
pub const REMOVAL_WAIT: Duration = Duration::from_secs(5);

/// What holds for a stream from its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the server says of itself. Its features are those that it can honour; a stream confirms those that its client announced.
    pub identity: ControlPlaneIdentity,
    /// Caps the names per type; `None` takes [`MAX_NAMES_ON_DEMAND`] or [`MAX_NAMES`].
    pub max_names: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        let identity = ControlPlaneIdentity {
            name: "osier-pilot".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            schema: schema::VERSION,
            features: vec![schema::FEATURE_ON_DEMAND.into()],
            ..Default::default()
        };
        Self { identity, max_names: None }
    }
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// Generate these and hand them to [`Stream::answer`].
    Generate(Want),
    /// Send this.
    Send(Response),
}

/// Resources that the stream needs from the generators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Which type.
    pub type_url: Name,
    /// Which of its resources.
    pub scope: Scope,
}

/// Resources of a type that an answer or a push speaks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All that the client may see; what is not given does not exist.
    All,
    /// These names; those that are not given do not exist.
    Names(Vec<Name>),
}

impl Scope {
    /// These names.
    pub fn names<T: Into<Name>>(names: impl IntoIterator<Item = T>) -> Self {
        Self::Names(names.into_iter().map(Into::into).collect())
    }
}

/// What a request meant, for logs, metrics and status. What has to be answered comes out of [`Stream::next`].
#[derive(Debug, Clone, PartialEq)]
pub struct Reaction {
    /// Type of the request.
    pub type_url: Name,
    /// What it said about an earlier response.
    pub verdict: Verdict,
    /// Names that were added.
    pub subscribed: usize,
    /// Names that were dropped.
    pub unsubscribed: usize,
    /// Names that were refused because of the cap.
    pub over_limit: usize,
}

/// What a request said about an earlier response.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Spontaneous,
    /// It is in force.
    Ack {
        /// Time since it was sent.
        took: Duration,
    },
    /// It was refused.
    Nack(Refusal),
    /// It speaks about a response that is no longer of interest.
    Stale,
}

/// A NACK.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// Nonce of the refused response.
    pub nonce: String,
    /// gRPC code; clients differ, so it means nothing.
    pub code: i32,
    /// The client's text, cut at 4 KiB.
    pub message: String,
    /// When it came.
    pub at: Instant,
}

/// A request that ends the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The first message has no node id.
    #[error("the first request of a stream must carry node.id")]
    NoNode,
    /// The message names no type.
    #[error("request without type_url")]
    NoType,
    /// More types than any client has.
    #[error("more than {MAX_TYPES} types on one stream")]
    TooManyTypes,
    /// Delta on a SotW stream or the other way round.
    #[error("request of the other protocol variant")]
    WrongVariant,
}

/// How far a client is with one type.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// All resources are wanted.
    pub wildcard: bool,
    /// Names that are wanted.
    pub names: usize,
    /// Nonce of the last response.
    pub nonce_sent: Option<String>,
    /// Nonce of the last response that was ACKed.
    pub nonce_acknowledged: Option<String>,
    /// Version text of the last response.
    pub version_sent: Option<String>,
    /// Version text of the last response that was ACKed.
    pub version_acknowledged: Option<String>,
    /// Responses without ACK or NACK.
    pub unacknowledged: usize,
    /// Changes that wait to be sent.
    pub pending: bool,
    /// The last NACK, until a later response is ACKed.
    pub refusal: Option<Refusal>,
}

/// One ADS stream.
#[derive(Debug)]
pub struct Stream {
    variant: Variant,
    options: Options,
    node: Option<Node>,
    /// Confirmed features, as they go out in each response.
    identity: ControlPlaneIdentity,
    types: BTreeMap<(u8, Name), Subscription>,
    last_nonce: u64,
    /// Until when removals wait for ACKs.
    removal_deadline: Option<Instant>,
    /// The client came with resources from an earlier stream; its routes may still refer to any of them until then.
    returning_until: Option<Instant>,
}

impl Stream {
    /// A `DeltaAggregatedResources` stream.
    pub fn incremental(options: Options) -> Self {
        Self::new(Variant::Incremental, options)
    }

    /// A `StreamAggregatedResources` stream.
    pub fn state_of_the_world(options: Options) -> Self {
        Self::new(Variant::StateOfTheWorld, options)
    }

    /// A stream of this variant.
    pub fn new(variant: Variant, options: Options) -> Self {
        let identity = ControlPlaneIdentity { features: Vec::new(), ..options.identity.clone() };
        Self {
            variant,
            options,
            node: None,
            identity,
            types: BTreeMap::new(),
            last_nonce: 0,
            removal_deadline: None,
            returning_until: None,
        }
    }

    /// The client, once its first request came.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// True where the client announced `feature` and this server honours it.
    pub fn has_feature(&self, feature: &str) -> bool {
        self.identity.confirms(feature)
    }

    /// Takes in a request.
    pub fn on_request(&mut self, request: Request, now: Instant) -> Result<Reaction, ProtocolError> {
        match (self.variant, request) {
            (Variant::Incremental, Request::Incremental(request)) => self.on_incremental(request, now),
            (Variant::StateOfTheWorld, Request::StateOfTheWorld(request)) => {
                self.on_state_of_the_world(request, now)
            }
            _ => Err(ProtocolError::WrongVariant),
        }
    }

    /// Hands over what [`Step::Generate`] asked for.
    pub fn answer(&mut self, want: Want, resources: Vec<Resource>) {
        if let Some(subscription) = self.types.get_mut(&key(&want.type_url)) {
            subscription.generating = subscription.generating.saturating_sub(1);
            subscription.offer(want.scope, resources);
        }
    }

    /// Says what changed. What the client does not want, or has already, is dropped.
    pub fn push(&mut self, type_url: &str, scope: Scope, resources: Vec<Resource>) {
        if let Some(subscription) = self.types.get_mut(&key(type_url)) {
            subscription.offer(scope, resources);
        }
    }

    /// Sends resources that the client did not ask for but will need next (on-demand clients only). They are not kept up to date
    /// unless the client asks for them.
    pub fn push_ahead(&mut self, type_url: &str, resources: Vec<Resource>) {
        if self.variant == Variant::Incremental && self.has_feature(schema::FEATURE_ON_DEMAND) {
            let subscription = self.types.entry(key(type_url)).or_default();
            resources.into_iter().for_each(|resource| subscription.offer_ahead(resource));
        }
    }

    /// True where the client wants this resource to be kept up to date.
    pub fn wants(&self, type_url: &str, name: &str) -> bool {
        self.types.get(&key(type_url)).is_some_and(|s| s.covers(name))
    }

    /// True where the client wants all resources of a type.
    pub fn is_wildcard(&self, type_url: &str) -> bool {
        self.types.get(&key(type_url)).is_some_and(|s| s.wildcard)
    }

    /// The names that the client asked for, in the order in which it did.
    pub fn names(&self, type_url: &str) -> impl Iterator<Item = &Name> {
        self.types.get(&key(type_url)).into_iter().flat_map(|s| s.names.iter())
    }

    /// How far the client is with a type; `None` where it never asked.
    pub fn status(&self, type_url: &str) -> Option<Status> {
        self.types.get(&key(type_url)).filter(|s| s.seen).map(Subscription::status)
    }

    /// When [`Stream::next`] has to be called again even if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.removal_deadline
    }

    fn max_names(&self) -> usize {
        let on_demand = self.has_feature(schema::FEATURE_ON_DEMAND);
        self.options.max_names.unwrap_or(if on_demand { MAX_NAMES_ON_DEMAND } else { MAX_NAMES })
    }
}

/// Names to generate, merged until the owner asks.
#[derive(Debug, Default)]
struct Wanted {
    all: bool,
    names: IndexSet<Name>,
}

impl Wanted {
    fn take(&mut self) -> Option<Scope> {
        let names = std::mem::take(&mut self.names);
        if std::mem::take(&mut self.all) {
            return Some(Scope::All);
        }
        (!names.is_empty()).then(|| Scope::Names(names.into_iter().collect()))
    }
}

fn not_found(name: &str) -> rpc::Status {
    rpc::Status { code: 5, message: format!("{name} does not exist"), details: Vec::new() }
}

fn over_limit(name: &str, limit: usize) -> rpc::Status {
    let message = format!("{name} is not served: this stream holds {limit} names of the type already");
    rpc::Status { code: 8, message, details: Vec::new() }
}
