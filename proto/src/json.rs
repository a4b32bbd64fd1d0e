//! Messages to and from JSON (and YAML, once it is parsed into a JSON value), with every `Any` expanded.
//!
//! Names come out as Envoy writes them (`filter_chain_match`) and are accepted in both spellings. What does not fit the schema is
//! refused with the path of the field. Everything here goes through the reflection pool, which is decoded at first use: a process
//! that never shows its configuration never pays for it.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{
    Cardinality, DescriptorPool, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind,
    MessageDescriptor, ReflectMessage, SerializeOptions, Value as Reflected,
};
use serde_json::{Map, Value};

use crate::any::Any;
use crate::types::xds_typed_struct::TypedStruct;
use crate::unknown::is_accepted_name;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    DescriptorPool::decode(bytes).expect("build.rs wrote a valid descriptor set")
});

/// Descriptors of every declared message.
pub fn pool() -> &'static DescriptorPool {
    &POOL
}

/// A value that does not fit the schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct JsonError {
    /// Where, e.g. `static_resources.listeners[0].filter_chains[1].filters[0].typed_config.rout_config`; empty for the value itself.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

impl JsonError {
    fn new(path: &str, reason: impl Into<String>) -> Self {
        Self { path: path.to_owned(), reason: reason.into() }
    }
}

/// The JSON form of a message. An `Any` that cannot be expanded (its type is not declared, or its bytes are broken) is shown as an
/// `xds.type.v3.TypedStruct` that holds its type and bytes, so that a dump never fails because of one resource.
pub fn to_value<M: Message + Name>(message: &M) -> Value {
    let descriptor = descriptor(&M::full_name()).expect("every generated message is in the pool");
    let bytes = message.encode_to_vec();
    let dynamic =
        DynamicMessage::decode(descriptor, &bytes[..]).expect("what prost encodes, reflection decodes");
    dynamic_to_value(dynamic)
}

/// The JSON form of a packed message, with its `@type`.
pub fn any_to_value(any: &Any) -> Value {
    to_value(any)
}

/// Reads a message of a known type.
pub fn from_value<M: Message + Name + Default>(value: &Value) -> Result<M, JsonError> {
    let descriptor = descriptor(&M::full_name()).expect("every generated message is in the pool");
    let dynamic = dynamic_from_value(&descriptor, value)?;
    dynamic.transcode_to().map_err(|error| JsonError::new("", error.to_string()))
}

/// Reads a message that names its type in `@type`.
pub fn any_from_value(value: &Value) -> Result<Any, JsonError> {
    from_value(value)
}

fn descriptor(full_name: &str) -> Option<MessageDescriptor> {
    POOL.get_message_by_name(full_name)
}

fn dynamic_to_value(mut dynamic: DynamicMessage) -> Value {
    let options = SerializeOptions::new().use_proto_field_name(true);
    if let Ok(value) = dynamic.serialize_with_options(serde_json::value::Serializer, &options) {
        return value;
    }
    wrap_unreadable(&mut dynamic);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .unwrap_or_else(|error| Value::String(format!("cannot be shown: {error}")))
}

/// Replaces every `Any` that reflection cannot expand by a TypedStruct with its type and bytes.
fn wrap_unreadable(message: &mut DynamicMessage) {
    if message.descriptor().full_name() == "google.protobuf.Any" {
        *message = readable_any(message);
        return;
    }
    let fields: Vec<FieldDescriptor> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        match message.get_field_mut(&field) {
            Reflected::Message(inner) => wrap_unreadable(inner),
            Reflected::List(items) => items.iter_mut().for_each(wrap_value),
            Reflected::Map(entries) => entries.values_mut().for_each(wrap_value),
            _ => {}
        }
    }
}

fn wrap_value(value: &mut Reflected) {
    if let Reflected::Message(inner) = value {
        wrap_unreadable(inner);
    }
}

fn readable_any(any: &DynamicMessage) -> DynamicMessage {
    let typed: Any = any.transcode_to().unwrap_or_default();
    let inner =
        descriptor(typed.type_name()).and_then(|d| DynamicMessage::decode(d, typed.value.clone()).ok());
    let readable = match inner {
        Some(mut inner) => {
            wrap_unreadable(&mut inner);
            Any { type_url: typed.type_url, value: inner.encode_to_vec().into() }
        }
        None => Any::pack(&undecoded(&typed)),
    };
    let mut result = DynamicMessage::new(any.descriptor());
    result.transcode_from(&readable).expect("an Any is an Any");
    result
}

fn undecoded(any: &Any) -> TypedStruct {
    use prost_types::value::Kind;
    let hex = any.value.iter().map(|byte| format!("{byte:02x}")).collect();
    let bytes = prost_types::Value { kind: Some(Kind::StringValue(hex)) };
    let value = prost_types::Struct { fields: [("undecoded_hex".to_owned(), bytes)].into() };
    TypedStruct { type_url: any.type_url.clone(), value: Some(value) }
}

fn dynamic_from_value(descriptor: &MessageDescriptor, value: &Value) -> Result<DynamicMessage, JsonError> {
    if let Ok(message) = deserialize(descriptor, value) {
        return Ok(message);
    }
    let mut value = value.clone();
    tolerate(descriptor, &mut value);
    deserialize(descriptor, &value).map_err(|reason| {
        // The deserializer does not say where; the second walk finds the first field that fails on its own.
        locate(descriptor, &value, "").err().unwrap_or_else(|| JsonError::new("", reason))
    })
}

/// Takes out what the schema lacks and is tolerated all the same: fields that are accepted without effect, and the configuration of
/// optional extensions of unknown type, which is kept as a TypedStruct.
fn tolerate(descriptor: &MessageDescriptor, value: &mut Value) {
    let Value::Object(object) = value else { return };
    let name = descriptor.full_name();
    if name == "google.protobuf.Any" {
        let inner =
            object.get("@type").and_then(Value::as_str).and_then(|url| self::descriptor(type_name(url)));
        return inner.iter().for_each(|inner| tolerate(inner, value));
    }
    object.retain(|key, _| field_of(descriptor, key).is_some() || !is_accepted_name(name, key));
    let optional =
        ["is_optional", "isOptional"].iter().any(|key| object.get(*key) == Some(&Value::Bool(true)));
    for (key, value) in object {
        let Some(Kind::Message(inner)) = field_of(descriptor, key).map(|field| field.kind()) else {
            continue;
        };
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| tolerate(&inner, item)),
            Value::Object(entries) if inner.is_map_entry() => {
                if let Kind::Message(inner) = inner.map_entry_value_field().kind() {
                    entries.values_mut().for_each(|value| tolerate(&inner, value));
                }
            }
            value if optional && inner.full_name() == "google.protobuf.Any" => keep_unknown(value),
            value => tolerate(&inner, value),
        }
    }
}

fn keep_unknown(any: &mut Value) {
    let Value::Object(content) = any else { return };
    let Some(Value::String(type_url)) = content.get("@type").cloned() else { return };
    if descriptor(type_name(&type_url)).is_none() {
        content.remove("@type");
        let content = std::mem::take(content);
        *any = serde_json::json!({"@type": TypedStruct::type_url(), "type_url": type_url, "value": content});
    }
}

fn field_of(descriptor: &MessageDescriptor, key: &str) -> Option<FieldDescriptor> {
    descriptor.get_field_by_name(key).or_else(|| descriptor.get_field_by_json_name(key))
}

fn type_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}

fn deserialize(descriptor: &MessageDescriptor, value: &Value) -> Result<DynamicMessage, String> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor.clone(), value, &options)
        .map_err(|error| error.to_string())
}

/// Finds what is wrong with a value that does not deserialize.
fn locate(descriptor: &MessageDescriptor, value: &Value, path: &str) -> Result<(), JsonError> {
    if descriptor.full_name() == "google.protobuf.Any" {
        return locate_in_any(value, path);
    }
    if is_well_known(descriptor) {
        return deserialize(descriptor, value).map(drop).map_err(|reason| JsonError::new(path, reason));
    }
    let Value::Object(object) = value else {
        return Err(JsonError::new(
            path,
            format!("expected an object ({}), found {}", descriptor.name(), kind_of(value)),
        ));
    };
    for (name, value) in object {
        let path = join(path, name);
        let Some(field) = field_of(descriptor, name) else {
            return Err(JsonError::new(&path, format!("unknown field of {}", descriptor.full_name())));
        };
        locate_in_field(descriptor, &field, name, value, &path)?;
    }
    // Each field fits on its own, so two of them contradict each other (both alternatives of a oneof, both spellings of a name).
    deserialize(descriptor, value).map(drop).map_err(|reason| JsonError::new(path, reason))
}

fn locate_in_field(
    parent: &MessageDescriptor,
    field: &FieldDescriptor,
    name: &str,
    value: &Value,
    path: &str,
) -> Result<(), JsonError> {
    if value.is_null() {
        return Ok(());
    }
    let entry_value = field
        .is_map()
        .then(|| field.kind())
        .and_then(|kind| kind.as_message().map(|entry| entry.map_entry_value_field().kind()));
    match (entry_value, field.kind(), value) {
        (Some(Kind::Message(inner)), _, Value::Object(entries)) => {
            entries.iter().try_for_each(|(key, value)| locate(&inner, value, &format!("{path}[{key:?}]")))?;
        }
        (None, Kind::Message(inner), Value::Array(items)) if field.cardinality() == Cardinality::Repeated => {
            items
                .iter()
                .enumerate()
                .try_for_each(|(i, value)| locate(&inner, value, &format!("{path}[{i}]")))?;
        }
        (None, Kind::Message(inner), value) if field.cardinality() != Cardinality::Repeated => {
            locate(&inner, value, path)?;
        }
        _ => {}
    }
    let alone = Value::Object(Map::from_iter([(name.to_owned(), value.clone())]));
    deserialize(parent, &alone).map(drop).map_err(|reason| JsonError::new(path, reason))
}

fn locate_in_any(value: &Value, path: &str) -> Result<(), JsonError> {
    let Some(type_url) = value.get("@type").and_then(Value::as_str) else {
        return Err(JsonError::new(path, "needs \"@type\""));
    };
    let name = type_name(type_url);
    let Some(inner) = descriptor(name) else {
        return Err(JsonError::new(path, format!("type {name} is not supported")));
    };
    let content = match value {
        Value::Object(object) if is_well_known(&inner) => object.get("value").cloned().unwrap_or(Value::Null),
        Value::Object(object) => {
            let mut object = object.clone();
            object.remove("@type");
            Value::Object(object)
        }
        other => other.clone(),
    };
    locate(&inner, &content, path)
}

/// Types whose JSON form is not an object of their fields.
fn is_well_known(descriptor: &MessageDescriptor) -> bool {
    descriptor.full_name().starts_with("google.protobuf.")
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
