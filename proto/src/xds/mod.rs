//! The xDS protocol as two synchronous state machines: [`client`] and [`server`].
//!
//! Neither does I/O or reads a clock; time is an argument. Both are pulled: the owner of a stream feeds in what arrived and then
//! asks for the next thing to do until there is none, so a slow peer never makes anything pile up, it only makes later changes merge.
//!
//! Versions are hashes of content, so a client that reconnects to another replica, or after a restart, gets nothing that it has.

pub mod client;
pub mod server;

use std::fmt;
use std::sync::{Arc, LazyLock};

use prost::Message;

use crate::any::Any;
use crate::types;
use crate::types::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

/// The two forms of the protocol: one method of the service each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `DeltaAggregatedResources`.
    Incremental,
    /// `StreamAggregatedResources`.
    StateOfTheWorld,
}

/// A request of either variant.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Delta.
    Incremental(DeltaDiscoveryRequest),
    /// SotW.
    StateOfTheWorld(DiscoveryRequest),
}

/// A response of either variant.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// Delta.
    Incremental(DeltaDiscoveryResponse),
    /// SotW.
    StateOfTheWorld(DiscoveryResponse),
}

/// A resource's name, or a type URL.
pub type Name = Arc<str>;

/// The name that stands for all resources of a type.
pub const WILDCARD: &str = "*";

/// A resource in the form in which it is sent: encoded once, shared by all streams.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Its name; that of a virtual host is `<route config>/<host>`.
    pub name: Name,
    /// Hash of `body`.
    pub version: Version,
    /// The encoded message.
    pub body: Any,
}

impl Resource {
    /// Encodes `message`. Equal content gives equal versions, on every replica.
    pub fn new<M: Message + prost::Name>(name: impl Into<Name>, message: &M) -> Self {
        Self::from_any(name, Any::pack(message))
    }

    /// Takes an encoded message as it is.
    pub fn from_any(name: impl Into<Name>, body: Any) -> Self {
        Self { name: name.into(), version: Version::of(&body), body }
    }
}

/// Version of one resource: the hash of its encoded content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u64);

impl Version {
    /// The version of this content.
    pub fn of(body: &Any) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(&body.value))
    }

    /// Reads the text form; `None` for what another server made up.
    pub fn parse(text: &str) -> Option<Self> {
        let ours = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        ours.then(|| u64::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Types in the order of a push: what is referred to goes before what refers to it. Removals go the other way round, other types last.
static PUSH_ORDER: LazyLock<[Name; 6]> = LazyLock::new(|| {
    use types::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, NAME_TABLE, ROUTE_CONFIGURATION, VIRTUAL_HOST};
    // An address that DNS tells has its listener first.
    [CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, VIRTUAL_HOST, NAME_TABLE]
        .map(Name::from)
});

/// Place of a type in a push.
pub(crate) fn push_order(type_url: &str) -> u8 {
    let place = PUSH_ORDER.iter().position(|known| **known == *type_url);
    place.unwrap_or(PUSH_ORDER.len()) as u8
}

/// Key of a type in maps that are in push order; for the types of every push it costs no allocation.
pub(crate) fn key(type_url: &str) -> (u8, Name) {
    let order = push_order(type_url);
    (order, PUSH_ORDER.get(usize::from(order)).cloned().unwrap_or_else(|| type_url.into()))
}

/// The types for which asking for nothing means asking for all.
pub(crate) fn has_legacy_wildcard(type_url: &str) -> bool {
    matches!(type_url, types::CLUSTER | types::LISTENER | types::NAME_TABLE)
}

/// The types of which a state-of-the-world response holds all resources, so that absence means removal.
pub(crate) fn is_full_set(type_url: &str) -> bool {
    matches!(type_url, types::CLUSTER | types::LISTENER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::core::{Metadata, Pipe};

    #[test]
    fn versions_follow_content_and_survive_text() {
        let pipe = |path: &str| Resource::new("p", &Pipe { path: path.into() }).version;
        assert_eq!(pipe("/a"), pipe("/a"));
        assert_ne!(pipe("/a"), pipe("/b"));
        assert_eq!(Version::parse(&pipe("/a").to_string()), Some(pipe("/a")));
        for foreign in ["", "7", "v1", "00000000000000zz", "+000000000000001"] {
            assert_eq!(Version::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn maps_encode_in_order_whatever_the_order_of_insertion() {
        let build = |keys: &[&str]| {
            let filter_metadata = keys.iter().map(|k| (k.to_string(), Default::default())).collect();
            Version::of(&Any::pack(&Metadata { filter_metadata }))
        };
        assert_eq!(build(&["a", "b", "c", "d"]), build(&["d", "c", "b", "a"]));
    }
}
