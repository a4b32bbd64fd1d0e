//! Small constructors of xDS messages: the words that every generator needs.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use osier_proto::Any;
use osier_proto::types::core::{
    self, AggregatedConfigSource, ApiVersion, ConfigSource, Locality, Metadata, SocketAddress,
    address::Address as AddressKind, config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
};
use osier_proto::types::listener::{self, Filter, FilterChain, ListenerFilter};
use prost::{Message, Name};
use prost_types::{ListValue, Struct, Value, value::Kind};

/// A duration on the wire.
pub fn duration(time: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: time.subsec_nanos() as i32,
    }
}

/// "Over this same stream"; a client waits for ever, as Istio has it.
pub fn over_ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        initial_fetch_timeout: Some(prost_types::Duration::default()),
        resource_api_version: ApiVersion::V3 as i32,
    }
}

/// A bare TCP address.
pub fn socket_address(host: &str, port: u16) -> SocketAddress {
    SocketAddress {
        protocol: core::socket_address::Protocol::Tcp as i32,
        address: host.to_string(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(port))),
        ipv4_compat: false,
    }
}

/// A TCP address.
pub fn address(host: &str, port: u16) -> core::Address {
    core::Address { address: Some(AddressKind::SocketAddress(socket_address(host, port))) }
}

/// A TCP address with an IP.
pub fn socket(address_: SocketAddr) -> core::Address {
    address(&address_.ip().to_string(), address_.port())
}

/// A port of both families' wildcard addresses: one socket.
pub fn both_families(port: u16) -> core::Address {
    let socket = SocketAddress { ipv4_compat: true, ..socket_address("::", port) };
    core::Address { address: Some(AddressKind::SocketAddress(socket)) }
}

/// A Unix domain socket.
pub fn pipe(path: &str) -> core::Address {
    core::Address { address: Some(AddressKind::Pipe(core::Pipe { path: path.to_string() })) }
}

/// A range of addresses.
pub fn range(ip: IpAddr, prefix: u8) -> core::CidrRange {
    core::CidrRange { address_prefix: ip.to_string(), prefix_len: Some(u32::from(prefix)) }
}

/// A network filter under its customary name.
pub fn network_filter<M: Message + Name>(name: &str, config: &M) -> Filter {
    Filter {
        name: name.to_string(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(Any::pack(config))),
    }
}

/// A listener filter under its customary name.
pub fn listener_filter<M: Message + Name>(name: &str, config: &M) -> ListenerFilter {
    ListenerFilter {
        name: name.to_string(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(Any::pack(config))),
        filter_disabled: None,
    }
}

/// A filter chain with one filter.
pub fn chain(name: &str, filter: Filter) -> FilterChain {
    FilterChain { name: name.to_string(), filters: vec![filter], ..Default::default() }
}

/// A text in a struct.
pub fn text(value: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

/// A number in a struct.
pub fn number(value: impl Into<f64>) -> Value {
    Value { kind: Some(Kind::NumberValue(value.into())) }
}

/// A struct in a struct.
pub fn object(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value { kind: Some(Kind::StructValue(structure(fields))) }
}

/// A list in a struct.
pub fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

/// A struct.
pub fn structure(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Struct {
    Struct { fields: fields.into_iter().map(|(key, value)| (key.to_string(), value)).collect() }
}

/// Metadata under Istio's key, which telemetry and status tools read.
pub fn istio_metadata(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Metadata {
    Metadata { filter_metadata: [("istio".to_string(), structure(fields))].into_iter().collect() }
}

/// Where a resource came from, as Istio's `config` metadata words it.
pub fn config_path(group: &str, kind: &str, namespace: &str, name: &str) -> Value {
    text(format!("/apis/{group}/namespaces/{namespace}/{kind}/{name}"))
}

/// A locality on the wire.
pub fn locality(region: &str, zone: &str, sub_zone: &str) -> Locality {
    Locality { region: region.to_string(), zone: zone.to_string(), sub_zone: sub_zone.to_string() }
}
