//! Our .proto files against Envoy's own, as the crate `envoy-types` ships them: every message and field that we declare has the same
//! number, type and place in Envoy's API, shown by its descriptors and by bytes in both directions; and every field that we do not
//! declare is found by the check for unknown fields.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use osier_proto::Any;
use osier_proto::unknown::{ACCEPTED, unknown_fields};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage, SerializeOptions, Value,
};

/// Where the sources of `envoy-types` are, as Cargo knows.
static PACKAGE: LazyLock<PathBuf> = LazyLock::new(|| {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let run = |arguments: &[&str]| Command::new(&cargo).args(arguments).output().expect("cargo runs");
    let about = String::from_utf8(run(&["-vV"]).stdout).expect("text");
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host");
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    // Packages of other platforms were never fetched.
    let only = ["--filter-platform", host, "--manifest-path", manifest];
    let output = run(&[&["metadata", "--format-version", "1", "--locked", "--offline"][..], &only].concat());
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package =
        packages.iter().find(|package| package["name"] == "envoy-types").expect("it is a dependency");
    PathBuf::from(package["manifest_path"].as_str().expect("a path")).parent().expect("a folder").to_owned()
});

static THEIRS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let set =
        std::fs::read(PACKAGE.join("src/generated/types.bin")).expect("envoy-types ships its descriptors");
    DescriptorPool::decode(&set[..]).expect("a descriptor set")
});

/// Messages that `envoy-types` does not ship; `typed_structs_have_their_two_fields` holds their numbers.
const NOT_SHIPPED: &[&str] = &["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];

fn ours() -> impl Iterator<Item = MessageDescriptor> {
    let own = |name: &str| ["google.protobuf.", "osier.", "istio."].iter().any(|own| name.starts_with(own));
    let compared = move |name: &str| !own(name) && !NOT_SHIPPED.contains(&name);
    osier_proto::json::pool().all_messages().filter(move |message| compared(message.full_name()))
}

fn theirs(message: &MessageDescriptor) -> MessageDescriptor {
    let name = message.full_name();
    THEIRS.get_message_by_name(name).unwrap_or_else(|| panic!("Envoy has no message {name}"))
}

#[test]
fn there_is_something_to_compare() {
    assert!(ours().count() > 120, "{}", ours().count());
}

#[test]
fn every_field_is_declared_as_envoy_declares_it() {
    for message in ours() {
        let other = theirs(&message);
        for field in message.fields() {
            let name = field.full_name().to_owned();
            let there =
                other.get_field_by_name(field.name()).unwrap_or_else(|| panic!("Envoy has no field {name}"));
            assert_eq!(describe(&field), describe(&there), "{name}");
        }
    }
}

/// Everything about a field that shows on the wire or in JSON.
fn describe(field: &FieldDescriptor) -> String {
    let kind = match field.kind() {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(it) => it.full_name().to_owned(),
        scalar => format!("{scalar:?}"),
    };
    let oneof = field.containing_oneof().map(|oneof| oneof.name().to_owned());
    let (number, list, map, json) =
        (field.number(), field.is_list(), field.is_map(), field.json_name().to_owned());
    format!("{number} {kind} list={list} map={map} packed={} oneof={oneof:?} json={json}", field.is_packed())
}

#[test]
fn typed_structs_have_their_two_fields() {
    for name in NOT_SHIPPED {
        let message = osier_proto::json::pool().get_message_by_name(name).expect(name);
        let fields: Vec<_> = message.fields().map(|field| describe(&field)).collect();
        assert_eq!(
            fields,
            [
                "1 string list=false map=false packed=false oneof=None json=typeUrl",
                "2 google.protobuf.Struct list=false map=false packed=false oneof=None json=value",
            ]
        );
    }
}

#[test]
fn every_enum_value_is_envoys() {
    let ours =
        osier_proto::json::pool().all_enums().filter(|it| !it.full_name().starts_with("google.protobuf."));
    for it in ours {
        let other =
            THEIRS.get_enum_by_name(it.full_name()).unwrap_or_else(|| panic!("no enum {}", it.full_name()));
        for value in it.values() {
            let there = other.get_value_by_name(value.name()).map(|value| value.number());
            assert_eq!(there, Some(value.number()), "{}", value.full_name());
        }
    }
}

/// Sample values of a field, chosen so that reading them as any other type shows: large, negative, all values of an enum.
fn samples(
    field: &FieldDescriptor,
    depth: usize,
    declared: &impl Fn(&FieldDescriptor) -> bool,
) -> Vec<Value> {
    let one = |kind: &Kind| -> Vec<Value> {
        match kind {
            Kind::Double => vec![Value::F64(-1.5)],
            Kind::Float => vec![Value::F32(-1.5)],
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => vec![Value::I32(-7)],
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => vec![Value::I64(i64::MIN + 3)],
            Kind::Uint32 | Kind::Fixed32 => vec![Value::U32(u32::MAX - 1)],
            Kind::Uint64 | Kind::Fixed64 => vec![Value::U64(u64::MAX - 1)],
            Kind::Bool => vec![Value::Bool(true)],
            Kind::String => vec![Value::String("text é".into())],
            Kind::Bytes => vec![Value::Bytes(vec![0, 1, 254].into())],
            Kind::Enum(it) => shared_values(it).into_iter().map(Value::EnumNumber).collect(),
            Kind::Message(message) => vec![Value::Message(sample(message, depth, declared))],
        }
    };
    match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            let values = one(&entry.map_entry_value_field().kind());
            values.into_iter().map(|value| Value::Map([(MapKey::String("k".into()), value)].into())).collect()
        }
        kind if field.is_list() => {
            let values = one(&kind);
            vec![Value::List(values.iter().chain(&values).cloned().collect())]
        }
        kind => one(&kind),
    }
}

/// Numbers of an enum that both sides declare.
fn shared_values(it: &EnumDescriptor) -> Vec<i32> {
    let ours = osier_proto::json::pool().get_enum_by_name(it.full_name());
    let known = |number| ours.as_ref().is_none_or(|ours| ours.get_value(number).is_some());
    it.values().map(|value| value.number()).filter(|number| known(*number)).collect()
}

/// A message with its declared scalar fields set, and messages inside down to a small depth.
fn sample(
    message: &MessageDescriptor,
    depth: usize,
    declared: &impl Fn(&FieldDescriptor) -> bool,
) -> DynamicMessage {
    let mut sample = DynamicMessage::new(message.clone());
    if message.full_name() == "google.protobuf.Any" {
        let router = Any::pack(&osier_proto::types::http_router::Router {});
        sample.transcode_from(&router).expect("an Any is an Any");
        return sample;
    }
    if message.full_name().starts_with("google.protobuf.") {
        return well_known(message);
    }
    for field in message.fields().filter(|field| declared(field)) {
        let nested = matches!(field.kind(), Kind::Message(_));
        if nested && depth == 0 {
            continue;
        }
        if let Some(value) = samples(&field, depth.saturating_sub(1), declared).into_iter().next_back() {
            sample.set_field(&field, value);
        }
    }
    sample
}

fn well_known(message: &MessageDescriptor) -> DynamicMessage {
    let json = match message.name() {
        "Duration" => serde_json::json!("-3.000000005s"),
        "Timestamp" => serde_json::json!("2001-02-03T04:05:06.000000007Z"),
        "Struct" => serde_json::json!({"a": [1.5, null, {"b": "c"}]}),
        "Value" => serde_json::json!([true]),
        "ListValue" => serde_json::json!([1.5]),
        "BoolValue" => serde_json::json!(true),
        "StringValue" => serde_json::json!("text"),
        "BytesValue" => serde_json::json!("AAE="),
        "Int32Value" | "Int64Value" | "DoubleValue" | "FloatValue" => serde_json::json!(-7),
        "UInt32Value" | "UInt64Value" => serde_json::json!(4294967294u32),
        "Empty" => serde_json::json!({}),
        other => panic!("no sample of google.protobuf.{other}"),
    };
    DynamicMessage::deserialize(message.clone(), json).expect("the JSON form of a well-known type")
}

fn declared(field: &FieldDescriptor) -> bool {
    let ours = osier_proto::json::pool().get_message_by_name(field.parent_message().full_name());
    ours.is_none_or(|ours| ours.get_field(field.number()).is_some())
}

fn json(message: &DynamicMessage) -> serde_json::Value {
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .expect("every type is in its pool")
}

/// Encodes on one side, reads on the other, shows both.
fn compare(message: &DynamicMessage, other: MessageDescriptor) {
    let bytes = message.encode_to_vec();
    let read = DynamicMessage::decode(other, &bytes[..]).expect("the other side reads it");
    assert_eq!(json(&read), json(message), "{}", message.descriptor().full_name());
    assert_eq!(read.unknown_fields().count(), 0, "{}", message.descriptor().full_name());
    let back =
        DynamicMessage::decode(message.descriptor(), &read.encode_to_vec()[..]).expect("it comes back");
    assert_eq!(json(&back), json(message), "{}", message.descriptor().full_name());
}

#[test]
fn every_field_means_the_same_in_both_directions() {
    let mut fields = 0;
    for message in ours() {
        let other = theirs(&message);
        for (from, to) in [(&message, &other), (&other, &message)] {
            for field in from.fields().filter(declared) {
                for value in samples(&field, 2, &declared) {
                    let mut single = DynamicMessage::new(from.clone());
                    single.set_field(&field, value);
                    compare(&single, to.clone());
                }
                fields += 1;
            }
            compare(&sample(from, 3, &declared), to.clone());
        }
    }
    assert!(fields > 900, "{fields}");
}

#[test]
fn what_we_declare_is_never_called_unknown() {
    for message in ours() {
        let full = sample(&message, 3, &declared);
        let any = Any {
            type_url: format!("type.googleapis.com/{}", message.full_name()),
            value: full.encode_to_vec().into(),
        };
        assert_eq!(unknown_fields(&any), [], "{}", message.full_name());
    }
}

#[test]
fn what_we_do_not_declare_is_called_unknown_by_its_name() {
    let mut found = 0;
    for message in ours() {
        let any = |value: DynamicMessage| Any {
            type_url: format!("type.googleapis.com/{}", message.full_name()),
            value: value.encode_to_vec().into(),
        };
        for field in theirs(&message).fields().filter(|field| !declared(field)) {
            let mut single = DynamicMessage::new(theirs(&message));
            let value = samples(&field, 0, &|_| false).into_iter().next_back().expect("a sample");
            single.set_field(&field, value);
            let accepted =
                ACCEPTED.iter().any(|a| a.message == message.full_name() && a.number == field.number());
            let unknown = unknown_fields(&any(single));
            if accepted {
                assert_eq!(unknown, [], "{}", field.full_name());
            } else {
                assert_eq!(unknown.len(), 1, "{}", field.full_name());
                assert_eq!(unknown[0].path, field.name(), "{unknown:?}");
                found += 1;
            }
        }
    }
    assert!(found > 300, "{found}");
}

#[test]
fn accepted_fields_exist_under_their_number() {
    for accepted in ACCEPTED {
        let message = THEIRS.get_message_by_name(accepted.message).expect(accepted.message);
        let field = message.get_field(accepted.number).expect(accepted.field);
        assert_eq!(field.name(), accepted.field, "{}", accepted.message);
    }
}

/// `undeclared.txt` gives the check its names; it holds exactly what Envoy has and we do not.
#[test]
fn names_of_undeclared_fields_are_complete() {
    let mut lines = Vec::new();
    for message in ours().filter(|message| !message.is_map_entry()) {
        let other = theirs(&message);
        let mut undeclared: Vec<FieldDescriptor> = other.fields().filter(|field| !declared(field)).collect();
        undeclared.sort_by_key(FieldDescriptor::number);
        lines.extend(
            undeclared.iter().map(|f| format!("{} {} {}\n", message.full_name(), f.number(), f.name())),
        );
    }
    for it in
        osier_proto::json::pool().all_enums().filter(|it| !it.full_name().starts_with("google.protobuf."))
    {
        let other = THEIRS.get_enum_by_name(it.full_name()).expect("compared elsewhere");
        let undeclared = other.values().filter(|value| it.get_value(value.number()).is_none());
        lines.extend(undeclared.map(|v| format!("{} {} {}\n", it.full_name(), v.number(), v.name())));
    }
    lines.sort();
    let expected = lines.concat();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/undeclared.txt");
    if std::env::var_os("OSIER_UPDATE").is_some() {
        std::fs::write(path, expected).expect("it can be written");
    } else {
        let found = std::fs::read_to_string(path).expect("it is there");
        assert!(found == expected, "run this test with OSIER_UPDATE=1 to write {path}");
    }
}

/// The same through the Rust types of both crates, for one resource of each kind that uses much of the schema.
#[test]
fn typed_messages_of_both_crates_read_each_other() {
    use envoy_types::pb::envoy::config::{
        cluster::v3 as cluster, endpoint::v3 as endpoint, listener::v3 as listener, route::v3 as route,
    };
    use osier_proto::types;
    fn check<Ours: Message + Default, Theirs: Message + Default>(name: &str) {
        let descriptor = osier_proto::json::pool().get_message_by_name(name).expect(name);
        let bytes = sample(&descriptor, 4, &declared).encode_to_vec();
        let there = Theirs::decode(&bytes[..]).expect("they read ours").encode_to_vec();
        assert_eq!(there.len(), bytes.len(), "{name}: nothing was dropped");
        let back = Ours::decode(&there[..]).expect("we read theirs").encode_to_vec();
        let json_of =
            |bytes: &[u8]| json(&DynamicMessage::decode(descriptor.clone(), bytes).expect("it decodes"));
        assert_eq!(json_of(&back), json_of(&bytes), "{name}");
    }
    check::<types::listener::Listener, listener::Listener>("envoy.config.listener.v3.Listener");
    check::<types::route::RouteConfiguration, route::RouteConfiguration>(
        "envoy.config.route.v3.RouteConfiguration",
    );
    check::<types::cluster::Cluster, cluster::Cluster>("envoy.config.cluster.v3.Cluster");
    check::<types::endpoint::ClusterLoadAssignment, endpoint::ClusterLoadAssignment>(
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
    );
}
