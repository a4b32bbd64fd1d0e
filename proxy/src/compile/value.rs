//! Small values that many messages share: durations, addresses, ranges, names of extensions.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use osier_proto::Any;
use osier_proto::types::core::{self, address, config_source, socket_address};
use prost::{Message, Name};

use super::{At, Invalid};

/// Envoy's own limit for durations, far beyond any sensible one.
const MAX_SECONDS: i64 = 315_576_000_000;

/// A duration that isn't negative.
pub(crate) fn duration(value: &prost_types::Duration) -> Result<Duration, Invalid> {
    let (seconds, nanos) = (value.seconds, value.nanos);
    if seconds < 0 || nanos < 0 {
        return Err(Invalid::new("", "must not be negative"));
    }
    if seconds > MAX_SECONDS || nanos > 999_999_999 {
        return Err(Invalid::new("", "is not a valid duration"));
    }
    Ok(Duration::new(seconds as u64, nanos as u32))
}

/// A duration where 0 switches off, and absence is `default`.
pub(crate) fn switch(
    field: &str,
    value: Option<&prost_types::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>, Invalid> {
    match value {
        Some(value) => duration(value).at(field).map(|d| (!d.is_zero()).then_some(d)),
        None => Ok(default),
    }
}

/// A duration of at least a millisecond, where given.
pub(crate) fn positive(
    field: &str,
    value: Option<&prost_types::Duration>,
) -> Result<Option<Duration>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    match duration(value).at(field)? {
        d if d < Duration::from_millis(1) => Err(Invalid::new(field, "must be at least 1ms")),
        d => Ok(Some(d)),
    }
}

/// A number within bounds, where given.
pub(crate) fn bounded(
    field: &str,
    value: Option<u32>,
    bounds: std::ops::RangeInclusive<u32>,
) -> Result<Option<u32>, Invalid> {
    match value {
        Some(v) if !bounds.contains(&v) => Err(Invalid::new(
            field,
            format!("must be between {} and {}, is {v}", bounds.start(), bounds.end()),
        )),
        other => Ok(other),
    }
}

/// An enum value that is declared.
pub(crate) fn enumeration<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, Invalid> {
    E::try_from(value).map_err(|_| Invalid::new(field, format!("value {value} is not supported")))
}

pub(crate) fn not_empty(field: &str, value: &str) -> Result<(), Invalid> {
    if value.is_empty() { Err(Invalid::new(field, "must not be empty")) } else { Ok(()) }
}

/// A message that must be there.
pub(crate) fn required<'a, T>(field: &str, value: Option<&'a T>) -> Result<&'a T, Invalid> {
    value.ok_or_else(|| Invalid::new(field, "is required"))
}

/// Host (an IP or a name) and port of an address that isn't a pipe.
pub(crate) fn host_and_port(value: Option<&core::Address>) -> Result<(&str, u16), Invalid> {
    match required("", value)?.address.as_ref() {
        Some(address::Address::SocketAddress(a)) => {
            one_family(a).at("socket_address").map(|port| (a.address.as_str(), port))
        }
        Some(address::Address::Pipe(_)) => Err(Invalid::new("pipe", "is not supported here")),
        None => Err(Invalid::new("", "is empty")),
    }
}

/// The port of an address that nothing listens at for both families.
fn one_family(value: &core::SocketAddress) -> Result<u16, Invalid> {
    if value.ipv4_compat {
        return Err(Invalid::new("ipv4_compat", "is for the address `::` of a listener"));
    }
    port(value)
}

fn port(value: &core::SocketAddress) -> Result<u16, Invalid> {
    enumeration::<socket_address::Protocol>("protocol", value.protocol)?;
    not_empty("address", &value.address)?;
    match value.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => {
            u16::try_from(port).map_err(|_| Invalid::new("port_value", format!("{port} is not a port")))
        }
        None => Err(Invalid::new("port_value", "is required")),
    }
}

/// An address whose host is an IP.
pub(crate) fn ip_address(value: Option<&core::Address>) -> Result<SocketAddr, Invalid> {
    let (host, port) = host_and_port(value)?;
    Ok(SocketAddr::new(ip("socket_address.address", host)?, port))
}

/// Where something listens; true: for IPv4 as well, which only `::` can.
pub(crate) fn listening_address(value: Option<&core::Address>) -> Result<(SocketAddr, bool), Invalid> {
    let socket = match required("", value)?.address.as_ref() {
        Some(address::Address::SocketAddress(socket)) if socket.ipv4_compat => socket,
        _ => return ip_address(value).map(|address| (address, false)),
    };
    let ip = ip("socket_address.address", &socket.address)?;
    if ip != IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        return Err(Invalid::new("socket_address.ipv4_compat", format!("is for `::` only, not for `{ip}`")));
    }
    Ok((SocketAddr::new(ip, port(socket).at("socket_address")?), true))
}

/// A bare socket address whose host is an IP.
pub(crate) fn ip_socket_address(value: &core::SocketAddress) -> Result<SocketAddr, Invalid> {
    let port = one_family(value)?;
    Ok(SocketAddr::new(ip("address", &value.address)?, port))
}

fn ip(field: &str, host: &str) -> Result<IpAddr, Invalid> {
    host.parse().map_err(|_| Invalid::new(field, format!("`{host}` is not an IP address")))
}

/// A CIDR range; bits after the prefix are cut, as Envoy does.
pub(crate) fn range(value: &core::CidrRange) -> Result<IpNet, Invalid> {
    let address = ip("address_prefix", &value.address_prefix)?;
    let prefix = u8::try_from(value.prefix_len.unwrap_or(0)).unwrap_or(u8::MAX);
    let net = IpNet::new(address, prefix).map_err(|_| {
        let text = format!("{} is too long for {address}", value.prefix_len.unwrap_or(0));
        Invalid::new("prefix_len", text)
    })?;
    Ok(net.trunc())
}

/// CIDR ranges.
pub(crate) fn ranges(field: &str, values: &[core::CidrRange]) -> Result<Vec<IpNet>, Invalid> {
    values.iter().enumerate().map(|(i, v)| range(v).at_index(field, i)).collect()
}

/// The config source of a resource that comes over the aggregated stream. Returns how long to wait for the resource at first;
/// `None` is for ever.
pub(crate) fn aggregated(
    field: &str,
    value: Option<&core::ConfigSource>,
) -> Result<Option<Duration>, Invalid> {
    use config_source::ConfigSourceSpecifier as Specifier;
    let value = required(field, value)?;
    let check = || {
        match value.config_source_specifier {
            Some(Specifier::Ads(_) | Specifier::Self_(_)) => {}
            Some(Specifier::ApiConfigSource(_)) => {
                return Err(Invalid::new("api_config_source", "is not supported here: use `ads`"));
            }
            None => return Err(Invalid::new("", "needs `ads`")),
        }
        if value.resource_api_version != core::ApiVersion::V3 as i32 {
            return Err(Invalid::new("resource_api_version", "must be V3"));
        }
        switch("initial_fetch_timeout", value.initial_fetch_timeout.as_ref(), Some(Duration::from_secs(15)))
    };
    check().at(field)
}

/// A transport socket that leaves bytes as they are; anything else is refused with its type.
pub(crate) fn plaintext(field: &str, value: Option<&core::TransportSocket>) -> Result<(), Invalid> {
    let Some(socket) = value else { return Ok(()) };
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = &socket.config_type else {
        return match socket.name.as_str() {
            "envoy.transport_sockets.raw_buffer" => Ok(()),
            name => Err(Invalid::new(field, format!("transport socket `{name}` needs `typed_config`"))),
        };
    };
    if config.is::<osier_proto::types::raw_buffer::RawBuffer>() {
        return Ok(());
    }
    Err(unsupported_extension(config)).at("typed_config").at(field)
}

/// An extension that nobody here implements.
pub(crate) fn unsupported_extension(config: &Any) -> Invalid {
    Invalid::new("", format!("extension type {} is not supported", config.type_url))
}

/// Decodes the configuration of an extension; its fields were checked with the resource that holds it.
pub(crate) fn extension<M: Message + Name + Default>(config: &Any) -> Result<M, Invalid> {
    config.unpack().map_err(|e| Invalid::new("", e)).at("typed_config")
}

/// Text of a metadata entry, e.g. `filter_metadata["istio"]["workload"]`.
pub(crate) fn metadata_value<'a>(
    metadata: Option<&'a core::Metadata>,
    namespace: &str,
    key: &str,
) -> Option<&'a prost_types::value::Kind> {
    metadata?.filter_metadata.get(namespace)?.fields.get(key)?.kind.as_ref()
}

/// Text of a protobuf value, if it is one.
pub(crate) fn as_text(kind: &prost_types::value::Kind) -> Option<&str> {
    match kind {
        prost_types::value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}
