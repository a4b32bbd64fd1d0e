//! Who is at the other end: Istio's `x-envoy-peer-metadata` headers.
//!
//! Each side tells name, service and labels of its workload as a base64 protobuf `Struct`; the other side reads them for its
//! metrics and takes them out before the application sees them. Self-asserted, so for telemetry only.
//! What peers can make us keep is bounded: size of a header, length of a value, number of decoded peers.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use prost::Message as _;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use xxhash_rust::xxh3::xxh3_64;

use super::head::{Fields, Known};

/// Decoded peers that a worker keeps (as many as Istio's filter).
const CACHED_PEERS: usize = 500;
/// Longest header that is decoded.
const MAX_HEADER: usize = 8 * 1024;
/// Longest value that is kept of one field; names and labels of Kubernetes have at most 253 bytes.
const MAX_VALUE: usize = 256;

const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// Fields of the node's metadata that are told to peers.
const TOLD: [&str; 6] = ["NAME", "NAMESPACE", "WORKLOAD_NAME", "CLUSTER_ID", "OWNER", "LABELS"];
/// Labels that are told to peers.
const TOLD_LABELS: [&str; 4] = ["app", "version", CANONICAL_NAME, CANONICAL_REVISION];

/// A workload, as it describes itself. Empty texts are unknown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Peer {
    /// Pod or instance name.
    pub name: Box<str>,
    /// Name of the workload (Deployment and the like).
    pub workload: Box<str>,
    /// Namespace.
    pub namespace: Box<str>,
    /// Cluster (in the sense of Kubernetes).
    pub cluster: Box<str>,
    /// Label `app`.
    pub app: Box<str>,
    /// Label `version`.
    pub version: Box<str>,
    /// Canonical service.
    pub canonical_service: Box<str>,
    /// Canonical revision.
    pub canonical_revision: Box<str>,
}

impl Peer {
    /// Reads the fields of a node's metadata, or of a peer metadata header.
    pub fn from_struct(metadata: &Struct) -> Self {
        let labels = match metadata.fields.get("LABELS").and_then(|value| value.kind.as_ref()) {
            Some(Kind::StructValue(labels)) => labels,
            _ => &Struct::default(),
        };
        Self {
            name: text(metadata, "NAME"),
            workload: text(metadata, "WORKLOAD_NAME"),
            namespace: text(metadata, "NAMESPACE"),
            cluster: text(metadata, "CLUSTER_ID"),
            app: text(labels, "app"),
            version: text(labels, "version"),
            canonical_service: text(labels, CANONICAL_NAME),
            canonical_revision: text(labels, CANONICAL_REVISION),
        }
    }
}

fn text(fields: &Struct, key: &str) -> Box<str> {
    match fields.fields.get(key).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(value)) => {
            let end = value.floor_char_boundary(MAX_VALUE);
            value[..end].into()
        }
        _ => "".into(),
    }
}

/// What this proxy tells its peers; encoded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnMetadata {
    /// Node id.
    pub id: Box<str>,
    /// Base64 of the `Struct`.
    pub encoded: Box<str>,
}

impl OwnMetadata {
    /// From the node that the bootstrap declares.
    pub fn new(id: &str, metadata: &Struct) -> Self {
        let mut told = Struct::default();
        for key in TOLD {
            let Some(value) = metadata.fields.get(key) else { continue };
            let value = match &value.kind {
                Some(Kind::StructValue(labels)) => {
                    Value { kind: Some(Kind::StructValue(told_labels(labels))) }
                }
                _ => value.clone(),
            };
            told.fields.insert(key.to_owned(), value);
        }
        Self { id: id.into(), encoded: STANDARD.encode(told.encode_to_vec()).into() }
    }

    /// Writes the headers, replacing what the application may have set.
    pub fn add_to(&self, fields: &mut Fields) {
        fields.set(Known::XEnvoyPeerMetadata, self.encoded.as_bytes());
        fields.set(Known::XEnvoyPeerMetadataId, self.id.as_bytes());
    }
}

fn told_labels(labels: &Struct) -> Struct {
    let told = TOLD_LABELS.iter().filter_map(|key| labels.fields.get_key_value(*key));
    Struct { fields: told.map(|(key, value)| (key.clone(), value.clone())).collect() }
}

/// The hash of a header, and what it decoded to.
type Decoded = (u64, Arc<Peer>);

/// Peers by node id, decoded. One per worker.
#[derive(Debug, Default)]
pub struct PeerCache {
    /// With the hash of the header that they were decoded from: an id may come back with other labels.
    peers: Mutex<HashMap<Box<[u8]>, Decoded, foldhash::fast::RandomState>>,
}

impl PeerCache {
    /// Takes the headers out of `fields` and says who the peer is. `None`: it didn't say, or not in a way that can be read.
    pub fn take(&self, fields: &mut Fields) -> Option<Arc<Peer>> {
        let peer = self.peek(fields);
        fields.remove(Known::XEnvoyPeerMetadata);
        fields.remove(Known::XEnvoyPeerMetadataId);
        peer
    }

    fn peek(&self, fields: &Fields) -> Option<Arc<Peer>> {
        let encoded = fields.get(Known::XEnvoyPeerMetadata)?;
        let id = fields.get(Known::XEnvoyPeerMetadataId)?;
        if encoded.len() > MAX_HEADER || id.len() > MAX_VALUE {
            return None;
        }
        let hash = xxh3_64(encoded);
        let mut peers = self.peers.lock();
        if let Some((_, peer)) = peers.get(id).filter(|(seen, _)| *seen == hash) {
            return Some(peer.clone());
        }
        let peer = Arc::new(decode(encoded)?);
        if peers.len() >= CACHED_PEERS && !peers.contains_key(id) {
            // Peers are few and come back; who floods us with ids decides nothing but how often we decode.
            let any = peers.keys().next().cloned();
            any.and_then(|any| peers.remove(&any));
        }
        peers.insert(id.into(), (hash, peer.clone()));
        Some(peer)
    }
}

fn decode(encoded: &[u8]) -> Option<Peer> {
    let bytes = STANDARD.decode(encoded).ok()?;
    Struct::decode(&*bytes).ok().map(|metadata| Peer::from_struct(&metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(value: &str) -> Value {
        Value { kind: Some(Kind::StringValue(value.to_owned())) }
    }

    fn structure(fields: &[(&str, Value)]) -> Struct {
        Struct { fields: fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect() }
    }

    fn node(version: &str) -> Struct {
        let labels = structure(&[
            ("app", string("reviews")),
            ("version", string(version)),
            (CANONICAL_NAME, string("reviews")),
            (CANONICAL_REVISION, string(version)),
            ("secret", string("x")),
        ]);
        structure(&[
            ("NAME", string("reviews-1")),
            ("NAMESPACE", string("default")),
            ("WORKLOAD_NAME", string("reviews-v1")),
            ("CLUSTER_ID", string("Kubernetes")),
            ("ENVOY_PORT", string("15090")),
            ("LABELS", Value { kind: Some(Kind::StructValue(labels)) }),
        ])
    }

    fn told(version: &str) -> Fields {
        let mut fields = Fields::new();
        fields.append("a", b"b");
        OwnMetadata::new("sidecar~1.2.3.4~reviews-1.default~x", &node(version)).add_to(&mut fields);
        fields
    }

    #[test]
    fn what_one_side_tells_the_other_reads_and_removes() {
        let cache = PeerCache::default();
        let mut fields = told("v1");
        let peer = cache.take(&mut fields).unwrap();
        assert_eq!(
            (&*peer.workload, &*peer.namespace, &*peer.cluster),
            ("reviews-v1", "default", "Kubernetes")
        );
        assert_eq!((&*peer.app, &*peer.version, &*peer.canonical_service), ("reviews", "v1", "reviews"));
        assert_eq!(fields.iter().map(|field| field.name).collect::<Vec<_>>(), [b"a"]);
        assert!(Arc::ptr_eq(&peer, &cache.take(&mut told("v1")).unwrap()), "decoded once");
        assert_eq!(&*cache.take(&mut told("v2")).unwrap().version, "v2", "the same id with other labels");
    }

    #[test]
    fn only_what_peers_need_is_told() {
        let own = OwnMetadata::new("id", &node("v1"));
        let decoded = Struct::decode(&*STANDARD.decode(own.encoded.as_bytes()).unwrap()).unwrap();
        assert!(!decoded.fields.contains_key("ENVOY_PORT"));
        assert_eq!(Peer::from_struct(&decoded), Peer::from_struct(&node("v1")));
        assert!(!own.encoded.contains(&STANDARD.encode("secret")));
    }

    #[test]
    fn nonsense_is_removed_and_nobody() {
        let cache = PeerCache::default();
        for (id, encoded) in [("id", "not base64!"), ("id", "////"), ("id", &*"A".repeat(MAX_HEADER + 4))] {
            let mut fields = Fields::new();
            fields.append(Known::XEnvoyPeerMetadataId, id.as_bytes());
            fields.append(Known::XEnvoyPeerMetadata, encoded.as_bytes());
            assert!(cache.take(&mut fields).is_none());
            assert!(fields.is_empty());
        }
        let mut long = node("v1");
        long.fields.insert("NAME".into(), string(&"é".repeat(1000)));
        assert_eq!(Peer::from_struct(&long).name.len(), MAX_VALUE);
    }

    #[test]
    fn the_cache_is_bounded() {
        let cache = PeerCache::default();
        for number in 0..CACHED_PEERS + 100 {
            let mut fields = Fields::new();
            OwnMetadata::new(&format!("id{number}"), &node("v1")).add_to(&mut fields);
            assert!(cache.take(&mut fields).is_some());
        }
        assert_eq!(cache.peers.lock().len(), CACHED_PEERS);
    }
}
