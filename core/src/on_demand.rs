//! The names of on-demand xDS, as proxy and pilot both write and read them (`docs/decisions/0004`).
//!
//! A proxy that announced the client feature `osier.on_demand`, and had it confirmed, subscribes to names only:
//! listeners by address (`10.0.0.1_80`, `0.0.0.0_80`),
//! one chain of a listener by SNI (`0.0.0.0_443/example.com`), virtual hosts by `<route config>/<host>`; where `CONNECT`
//! names a host that has no address, the listener of that host (`redis.default_6379`). The wildcard `*` means, for listeners,
//! those that are bound to a port: in interception mode NONE a proxy cannot know them otherwise.
//! Everything that makes or takes such a name apart is here, so that both halves cannot disagree.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Namespace of `filter_metadata` for what Osier tells Osier.
pub const METADATA_NAMESPACE: &str = "osier";

/// Key in a listener's `filter_metadata["osier"]`: `true` says that its chains must be asked for one by one, by SNI.
pub const CHAINS_BY_SERVER_NAME: &str = "chains_by_server_name";

/// What the clusters of destinations outside the mesh begin with, which clients of an explicit proxy name: `passthrough|443||example.com`.
pub const OUTSIDE: &str = "passthrough|";

/// Longest host that can be asked for: that of a DNS name, and a port.
pub const MAX_HOST: usize = 253 + 6;

/// The host part of a virtual host's key: lower-cased, the port cut unless `keep_port`, one final dot cut.
/// `None` for what no virtual host can have as its name: empty, too long, or with bytes that are not visible ASCII or are
/// one of `/`, `,`, `*`, `@`.
pub fn host(authority: &str, keep_port: bool) -> Option<Cow<'_, str>> {
    let (name, port) = split_port(authority);
    let name = name.strip_suffix('.').unwrap_or(name);
    let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b',' | b'*' | b'@');
    if name.is_empty() || authority.len() > MAX_HOST || !authority.bytes().all(allowed) {
        return None;
    }
    let upper = name.bytes().any(|b| b.is_ascii_uppercase());
    Some(match port.filter(|_| keep_port) {
        // Nothing lies between name and port: the authority is as it should be.
        Some(port) if !upper && authority.len() == name.len() + 1 + port.len() => Cow::Borrowed(authority),
        Some(port) => Cow::Owned(format!("{}:{port}", name.to_ascii_lowercase())),
        None if upper => Cow::Owned(name.to_ascii_lowercase()),
        None => Cow::Borrowed(name),
    })
}

/// Host and port of an authority that [`host`] has let through; the port of `http` where it names none. An IPv6 address has no brackets.
pub fn destination(authority: &str) -> Option<(&str, u16)> {
    let (name, port) = split_port(authority);
    let port = port.map_or(Some(80), |port| port.parse().ok()).filter(|port| *port > 0)?;
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    Some((bare.unwrap_or(name), port))
}

/// Splits `host:port`, `[v6]:port`, `host`, `[v6]` and bare `v6`. What follows the colon must be digits to be a port.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            (name, Some(port).filter(|p| !p.is_empty()))
        }
        _ => (authority, None),
    }
}

/// Resource name of a virtual host.
pub fn host_key(route_config: &str, host: &str) -> String {
    format!("{route_config}/{host}")
}

/// Takes a virtual host's name apart: route configuration and host. A host has no `/`, a route configuration may.
pub fn split_host_key(key: &str) -> Option<(&str, &str)> {
    key.rsplit_once('/').filter(|(config, host)| !config.is_empty() && !host.is_empty())
}

/// Name of the listener for one address, as Istio writes it.
pub fn listener_name(address: SocketAddr) -> String {
    let mut name = String::with_capacity(24);
    let _ = write!(name, "{}_{}", address.ip().to_canonical(), address.port());
    name
}

/// The listeners that can take a connection to `destination`: the exact address, then the wildcard one.
pub fn listener_names(destination: SocketAddr) -> [String; 2] {
    let ip = destination.ip().to_canonical();
    let wildcard: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    [listener_name(destination), listener_name(SocketAddr::new(wildcard, destination.port()))]
}

/// Name of the single chain of `listener` that takes connections with this SNI. `None` as for [`host`].
pub fn server_name_key(listener: &str, server_name: &str) -> Option<String> {
    host(server_name, true).map(|name| format!("{listener}/{name}"))
}

/// Name of the listener that takes a `CONNECT` to a host and port. `None` where the authority has no port, or [`host`] refuses it.
pub fn host_listener_name(authority: &str) -> Option<String> {
    let (_, port) = split_port(authority);
    let port: u16 = port?.parse().ok()?;
    host(authority, false).map(|host| format!("{host}_{port}"))
}

/// What the name of a listener asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenerName<'a> {
    /// `<ip>_<port>`: an address; the wildcard address stands for all.
    Address(SocketAddr),
    /// `<ip>_<port>/<sni>`: one chain of it.
    ServerName(SocketAddr, &'a str),
    /// `<host>_<port>`: a host that a client named instead of an address.
    Host(&'a str, u16),
    /// Anything else, e.g. `virtualInbound`.
    Named(&'a str),
}

impl<'a> ListenerName<'a> {
    /// Reads the name of a listener.
    pub fn parse(name: &'a str) -> Self {
        let (listener, server_name) = match name.rsplit_once('/') {
            Some((listener, server_name)) => (listener, Some(server_name)),
            None => (name, None),
        };
        let parts = listener.rsplit_once('_').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let address = parts.and_then(|(host, port)| Some(SocketAddr::new(host.parse().ok()?, port)));
        match (address, server_name) {
            (Some(address), None) => Self::Address(address),
            (Some(address), Some(server_name)) if !server_name.is_empty() => {
                Self::ServerName(address, server_name)
            }
            (None, None) => match parts {
                Some((host, port)) if !host.is_empty() => Self::Host(host, port),
                _ => Self::Named(name),
            },
            _ => Self::Named(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let table = [
            ("reviews", false, Some("reviews")),
            ("Reviews.Default", false, Some("reviews.default")),
            ("reviews:9080", false, Some("reviews")),
            ("reviews.default.svc.cluster.local.", false, Some("reviews.default.svc.cluster.local")),
            ("reviews.:80", false, Some("reviews")),
            ("10.0.0.1:80", false, Some("10.0.0.1")),
            ("[::1]:80", false, Some("[::1]")),
            ("[::1]", false, Some("[::1]")),
            ("::1", false, Some("::1")),
            ("reviews:", false, Some("reviews")),
            ("reviews:http", false, Some("reviews:http")),
            ("reviews:9080", true, Some("reviews:9080")),
            ("Reviews.:9080", true, Some("reviews:9080")),
            ("reviews.:9080", true, Some("reviews:9080")),
            ("reviews", true, Some("reviews")),
            ("", false, None),
            (".", false, None),
            (":80", false, None),
            ("a/b", false, None),
            ("*.example.com", false, None),
            ("user@host", false, None),
            ("a b", false, None),
            ("sch\u{f6}n", false, None),
        ];
        for (authority, keep_port, want) in table {
            assert_eq!(host(authority, keep_port).as_deref(), want, "{authority:?} keep_port={keep_port}");
        }
        assert_eq!(host(&"a".repeat(MAX_HOST + 1), false), None);
        assert!(matches!(host("reviews:80", true), Some(Cow::Borrowed(_))));
    }

    #[test]
    fn destinations() {
        for (authority, want) in [
            ("example.com", Some(("example.com", 80))),
            ("example.com:8080", Some(("example.com", 8080))),
            ("127.0.0.5:1", Some(("127.0.0.5", 1))),
            ("[::1]:443", Some(("::1", 443))),
            ("[::1]", Some(("::1", 80))),
            ("example.com:0", None),
            ("example.com:99999", None),
        ] {
            assert_eq!(destination(authority), want, "{authority}");
        }
    }

    #[test]
    fn keys_come_apart_as_they_were_made() {
        assert_eq!(split_host_key(&host_key("80", "reviews")), Some(("80", "reviews")));
        assert_eq!(split_host_key(&host_key("unix://a/b", "reviews")), Some(("unix://a/b", "reviews")));
        assert_eq!(split_host_key("80"), None);
        assert_eq!(split_host_key("80/"), None);
        assert_eq!(split_host_key("/reviews"), None);
    }

    #[test]
    fn listeners() {
        let v4 = SocketAddr::from(([10, 0, 0, 1], 80));
        assert_eq!(listener_names(v4), ["10.0.0.1_80", "0.0.0.0_80"]);
        let mapped = SocketAddr::new("::ffff:10.0.0.1".parse().unwrap(), 80);
        assert_eq!(listener_names(mapped), ["10.0.0.1_80", "0.0.0.0_80"]);
        let v6 = SocketAddr::new("2001:db8::1".parse().unwrap(), 443);
        assert_eq!(listener_names(v6), ["2001:db8::1_443", "::_443"]);

        assert_eq!(ListenerName::parse("10.0.0.1_80"), ListenerName::Address(v4));
        assert_eq!(ListenerName::parse("2001:db8::1_443"), ListenerName::Address(v6));
        let key = server_name_key("10.0.0.1_80", "Example.COM").unwrap();
        assert_eq!(ListenerName::parse(&key), ListenerName::ServerName(v4, "example.com"));
        let key = host_listener_name("Redis.default.:6379").unwrap();
        assert_eq!(ListenerName::parse(&key), ListenerName::Host("redis.default", 6379));
        assert_eq!(host_listener_name("redis.default"), None);
        assert_eq!(host_listener_name("a/b:80"), None);
        for other in ["virtualInbound", "10.0.0.1_x", "10.0.0.1_80/", "a_b/c", "10.0.0.1_99999"] {
            assert_eq!(ListenerName::parse(other), ListenerName::Named(other));
        }
    }
}
