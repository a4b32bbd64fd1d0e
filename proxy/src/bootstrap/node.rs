//! Who a proxy says it is: the node of xDS, in plain words.

use osier_proto::schema;
use osier_proto::types::core;
use serde_json::{Map, Value};

use crate::config::endpoint::Locality;

/// Identity towards the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// `sidecar~IP~NAME.NAMESPACE~DOMAIN` for sidecars; free text otherwise.
    pub id: String,
    /// Service cluster.
    pub cluster: String,
    /// Where it runs.
    pub locality: Locality,
    /// What the control plane should know beside that (`NAMESPACE`, `LABELS`, …).
    pub metadata: Map<String, Value>,
}

impl Node {
    pub(super) fn from_message(message: Option<&core::Node>) -> Self {
        let Some(message) = message else { return Self::default() };
        Self {
            id: message.id.clone(),
            cluster: message.cluster.clone(),
            locality: message.locality.as_ref().map_or_else(Locality::default, |l| Locality {
                region: l.region.as_str().into(),
                zone: l.zone.as_str().into(),
                sub_zone: l.sub_zone.as_str().into(),
            }),
            metadata: message.metadata.as_ref().map(to_json).unwrap_or_default(),
        }
    }

    /// The metadata, as peers are told of it.
    pub fn metadata_struct(&self) -> prost_types::Struct {
        from_json(&self.metadata)
    }

    /// The message of a stream's first request, with what this build is and can do.
    pub(crate) fn to_message(&self, features: &[&str]) -> core::Node {
        let mut metadata = from_json(&self.metadata);
        let version = prost_types::value::Kind::StringValue(schema::VERSION.to_string());
        metadata
            .fields
            .insert(schema::VERSION_METADATA_KEY.into(), prost_types::Value { kind: Some(version) });
        core::Node {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            metadata: Some(metadata),
            locality: (self.locality != Locality::default()).then(|| core::Locality {
                region: self.locality.region.to_string(),
                zone: self.locality.zone.to_string(),
                sub_zone: self.locality.sub_zone.to_string(),
            }),
            user_agent_name: "osier-proxy".into(),
            user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
                env!("CARGO_PKG_VERSION").into(),
            )),
            client_features: features.iter().map(|f| (*f).to_owned()).collect(),
        }
    }
}

fn to_json(message: &prost_types::Struct) -> Map<String, Value> {
    message.fields.iter().map(|(key, value)| (key.clone(), value_to_json(value))).collect()
}

fn value_to_json(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        Some(Kind::NumberValue(value)) => {
            serde_json::Number::from_f64(*value).map_or(Value::Null, Value::Number)
        }
        Some(Kind::StringValue(value)) => Value::String(value.clone()),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(value_to_json).collect()),
        Some(Kind::StructValue(object)) => Value::Object(to_json(object)),
    }
}

fn from_json(object: &Map<String, Value>) -> prost_types::Struct {
    let fields = object.iter().map(|(key, value)| (key.clone(), value_from_json(value))).collect();
    prost_types::Struct { fields }
}

fn value_from_json(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(value_from_json).collect() })
        }
        Value::Object(object) => Kind::StructValue(from_json(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_survives_both_ways_and_the_schema_version_is_announced() {
        let Value::Object(metadata) =
            json!({"NAMESPACE": "shop", "LABELS": {"app": "a"}, "L": [1.5, null, true]})
        else {
            unreachable!()
        };
        let node = Node {
            id: "sidecar~1.2.3.4~a.shop~shop.svc.cluster.local".into(),
            cluster: "a.shop".into(),
            locality: Locality { region: "r".into(), ..Locality::default() },
            metadata,
        };
        let message = node.to_message(&[schema::FEATURE_ON_DEMAND]);
        assert!(schema::announces(&message, schema::FEATURE_ON_DEMAND));
        assert_eq!(schema::announced_version(&message), Some(schema::VERSION));
        let mut read = Node::from_message(Some(&message));
        read.metadata.remove(schema::VERSION_METADATA_KEY);
        assert_eq!(read, node);
    }
}
