//! What the two ends of a stream tell each other about themselves.
//!
//! A proxy announces in its node the features below and, in the node's metadata, the version of the schema that it knows; a newer
//! pilot emits only what that version declares. Pilot answers with [`ControlPlaneIdentity`], and only what it confirms there is in force.

use serde::{Deserialize, Serialize};

use crate::types::core::{ControlPlane, Node};

/// Version of the set of declared fields. Grows by one whenever a field or enum value is declared that older proxies would refuse.
pub const VERSION: u32 = 1;

/// Key in the node's metadata under which a proxy announces [`VERSION`] (a string, as all of Istio's metadata are).
pub const VERSION_METADATA_KEY: &str = "OSIER_SCHEMA";

/// Client feature: this client asks for listeners, virtual hosts, clusters and endpoints by name, at first use.
pub const FEATURE_ON_DEMAND: &str = "osier.on_demand";

/// Client features of the protocol itself: resources may have a time to live, and the wrapper that carries it over state of the world.
pub const UNDERSTOOD: [&str; 2] = ["xds.config.supports-resource-ttl", "xds.config.resource-in-sotw"];

/// What pilot says of itself in `ControlPlane.identifier`, as a JSON object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlPlaneIdentity {
    /// The program, e.g. `osier-pilot`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Which replica answered.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// Newest schema version that it can emit.
    #[serde(default)]
    pub schema: u32,
    /// Features of the client that it honours on this stream.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

impl ControlPlaneIdentity {
    /// The message for a response.
    pub fn to_control_plane(&self) -> ControlPlane {
        let identifier = serde_json::to_string(self).expect("strings and numbers always serialize");
        ControlPlane { identifier }
    }

    /// Reads a response's control plane; `None` where another server answered, whose identifier is free text.
    pub fn from_control_plane(control_plane: Option<&ControlPlane>) -> Option<Self> {
        serde_json::from_str(&control_plane?.identifier).ok()
    }

    /// True where the server honours `feature`.
    pub fn confirms(&self, feature: &str) -> bool {
        self.features.iter().any(|f| f == feature)
    }
}

/// True where the node announces `feature`.
pub fn announces(node: &Node, feature: &str) -> bool {
    node.client_features.iter().any(|f| f == feature)
}

/// The schema version that a node announces; `None` for clients that are not Osier's.
pub fn announced_version(node: &Node) -> Option<u32> {
    use prost_types::value::Kind;
    match node.metadata.as_ref()?.fields.get(VERSION_METADATA_KEY)?.kind.as_ref()? {
        Kind::StringValue(text) => text.parse().ok(),
        Kind::NumberValue(number) => Some(*number as u32),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_survives_the_wire() {
        let identity = ControlPlaneIdentity {
            name: "osier-pilot".into(),
            version: "0.1.0".into(),
            schema: VERSION,
            features: vec![FEATURE_ON_DEMAND.into()],
            ..Default::default()
        };
        let read = ControlPlaneIdentity::from_control_plane(Some(&identity.to_control_plane())).unwrap();
        assert_eq!(read, identity);
        assert!(read.confirms(FEATURE_ON_DEMAND));
    }

    #[test]
    fn other_servers_confirm_nothing() {
        for text in ["", "istiod-1", "{}", "{\"name\": 3}"] {
            let control_plane = ControlPlane { identifier: text.into() };
            assert_eq!(ControlPlaneIdentity::from_control_plane(Some(&control_plane)), None, "{text}");
        }
        assert_eq!(ControlPlaneIdentity::from_control_plane(None), None);
    }

    #[test]
    fn version_is_read_from_text_as_istio_sends_metadata() {
        let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue("7".into())) };
        let metadata = prost_types::Struct { fields: [(VERSION_METADATA_KEY.to_string(), value)].into() };
        assert_eq!(announced_version(&Node { metadata: Some(metadata), ..Default::default() }), Some(7));
        assert_eq!(announced_version(&Node::default()), None);
    }
}
