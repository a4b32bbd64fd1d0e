//! Who the client is, and what a request may claim about itself: `x-forwarded-*`, `x-request-id`, and the `x-envoy-*` headers
//! that only internal callers may set (Envoy's rules).
//!
//! A request is *internal* where `x-forwarded-for`, our own entry included, holds one single address and that address is in the
//! connection manager's internal ranges; without ranges, none is. It is an *edge* request where it is not internal and
//! we are the first trusted proxy (`use_remote_address`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::OnceLock;

use crate::config::listener::HttpManager;
use crate::http::fields::Fields;
use crate::http::head::{Known, RequestHead, Scheme, Version};

/// What was found out about a request's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The client; port 0 where it comes from `x-forwarded-for`.
    pub remote: SocketAddr,
    /// May control retries and time-outs by headers.
    pub internal: bool,
}

/// Headers by which internal callers control this proxy; nobody else may.
const INTERNAL_ONLY: [Known; 13] = [
    Known::XEnvoyRetriableStatusCodes,
    Known::XEnvoyRetriableHeaderNames,
    Known::XEnvoyRetryOn,
    Known::XEnvoyRetryGrpcOn,
    Known::XEnvoyMaxRetries,
    Known::XEnvoyUpstreamAltStatName,
    Known::XEnvoyUpstreamRqTimeoutMs,
    Known::XEnvoyUpstreamRqPerTryTimeoutMs,
    Known::XEnvoyUpstreamRqTimeoutAltResponse,
    Known::XEnvoyExpectedRqTimeoutMs,
    Known::XEnvoyForceTrace,
    Known::XEnvoyIpTags,
    Known::XEnvoyHedgeOnPerTryTimeout,
];

/// What a proxy of the mesh says of a request; at its edge nobody has said anything yet.
const NOT_AT_THE_EDGE: [Known; 3] =
    [Known::XEnvoyDecoratorOperation, Known::XEnvoyOriginalHost, Known::XEnvoyOriginalPath];

/// Settles `x-forwarded-for`, `x-forwarded-proto`, the scheme, `x-request-id` and the internal headers of a request that `peer`
/// sent, `encrypted` or not.
pub fn settle(manager: &HttpManager, peer: SocketAddr, encrypted: bool, head: &mut RequestHead) -> Origin {
    head.fields.remove(Known::XEnvoyInternal);
    let hops = manager.xff_trusted_hops as usize;
    let (claimed, single) = if manager.use_remote_address {
        let single = !head.fields.contains(Known::XForwardedFor);
        let claimed = if hops > 0 { from_the_right(&head.fields, hops - 1) } else { None };
        if !manager.skip_xff_append {
            append_forwarded_for(&mut head.fields, announced(peer.ip()));
        }
        (Some(claimed.unwrap_or(peer.ip())), single)
    } else {
        let single = hops == 0 && entries(&head.fields).count() == 1;
        (from_the_right(&head.fields, hops), single)
    };
    settle_scheme(manager, encrypted, head);
    let internal =
        single && claimed.is_some_and(|ip| manager.internal_addresses.iter().any(|net| net.contains(&ip)));
    let edge = manager.use_remote_address && !internal;
    if internal {
        head.fields.set(Known::XEnvoyInternal, b"true");
    } else {
        remove_internal(&mut head.fields, edge);
    }
    let remote = match claimed {
        Some(ip) if ip != peer.ip() => SocketAddr::new(ip, 0),
        _ => peer,
    };
    if edge {
        head.fields.set_fmt(Known::XEnvoyExternalAddress, format_args!("{}", remote.ip()));
    }
    if let Some(via) = &manager.via {
        append_listed(&mut head.fields, Known::Via, via.as_bytes(), b", ");
    }
    let keep = head.fields.contains(Known::XRequestId) && (!edge || manager.preserve_external_request_id);
    if manager.generate_request_id && !keep {
        // The thread's own generator: `Uuid::new_v4` would ask the kernel each time.
        let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        head.fields.set(Known::XRequestId, id.hyphenated().encode_lower(&mut text).as_bytes());
    }
    Origin { remote, internal }
}

/// One look at the fields decides for almost all requests that there is nothing to remove.
fn remove_internal(fields: &mut Fields, edge: bool) {
    let forbidden =
        |known: Known| INTERNAL_ONLY.contains(&known) || (edge && NOT_AT_THE_EDGE.contains(&known));
    let first = Known::XEnvoyAttemptCount as u8;
    let last = Known::XEnvoyUpstreamStreamDurationMs as u8;
    let suspicious = |known: Known| (first..=last).contains(&(known as u8)) && forbidden(known);
    if fields.iter().any(|field| field.known.is_some_and(suspicious)) {
        fields.retain(|field| !field.known.is_some_and(forbidden));
    }
}

/// `x-forwarded-proto` is what the first trusted proxy saw; HTTP/1 requests have no scheme of their own.
fn settle_scheme(manager: &HttpManager, encrypted: bool, head: &mut RequestHead) {
    let overwrite = manager.use_remote_address && manager.xff_trusted_hops == 0;
    if overwrite || !head.fields.contains(Known::XForwardedProto) {
        let proto: &[u8] = if encrypted { b"https" } else { b"http" };
        head.fields.set(Known::XForwardedProto, proto);
    }
    if head.version != Version::Http2 {
        head.scheme = match head.fields.get(Known::XForwardedProto) {
            Some(b"https") => Scheme::Https,
            _ => Scheme::Http,
        };
    }
}

/// Addresses of `x-forwarded-for`, the last one (our neighbour's) first.
fn entries(fields: &Fields) -> impl Iterator<Item = &[u8]> {
    let mut lines: smallvec::SmallVec<[&[u8]; 4]> = fields.get_all(Known::XForwardedFor).collect();
    lines.reverse();
    lines.into_iter().flat_map(|line| line.rsplit(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

fn from_the_right(fields: &Fields, skip: usize) -> Option<IpAddr> {
    entries(fields).nth(skip).and_then(|entry| std::str::from_utf8(entry).ok()?.parse().ok())
}

/// A peer on this machine is announced by the machine's own address, as Envoy does: loopback says nothing elsewhere.
fn announced(peer: IpAddr) -> IpAddr {
    if !peer.is_loopback() {
        return peer.to_canonical();
    }
    static OWN: OnceLock<IpAddr> = OnceLock::new();
    *OWN.get_or_init(|| own_address().unwrap_or(Ipv4Addr::LOCALHOST.into()))
}

/// The first IPv4 address of an interface that isn't loopback.
fn own_address() -> Option<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let addresses = interfaces.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
    addresses.map(IpAddr::from).find(|ip| !ip.is_loopback())
}

fn append_forwarded_for(fields: &mut Fields, address: IpAddr) {
    let mut text = [0u8; 46];
    let mut cursor = std::io::Cursor::new(&mut text[..]);
    // 45 characters is the longest address.
    let _ = std::io::Write::write_fmt(&mut cursor, format_args!("{address}"));
    let length = cursor.position() as usize;
    append_listed(fields, Known::XForwardedFor, &text[..length], b",");
}

/// Appends a member to a list header, on one line.
pub fn append_listed(fields: &mut Fields, name: Known, member: &[u8], separator: &[u8]) {
    let mut joined = Vec::new();
    for value in fields.get_all(name) {
        joined.extend_from_slice(value);
        joined.extend_from_slice(separator);
    }
    if joined.is_empty() {
        fields.set(name, member);
    } else {
        joined.extend_from_slice(member);
        fields.set(name, &joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::test_support::manager;

    const PEER: &str = "10.1.1.1:4000";

    fn settled(change: impl FnOnce(&mut HttpManager), lines: &[(&str, &str)]) -> (Origin, RequestHead) {
        settled_over(false, change, lines)
    }

    fn settled_over(
        encrypted: bool,
        change: impl FnOnce(&mut HttpManager),
        lines: &[(&str, &str)],
    ) -> (Origin, RequestHead) {
        let mut config = manager();
        change(&mut config);
        let mut head = RequestHead::new();
        for (name, value) in lines {
            head.fields.append(*name, value.as_bytes());
        }
        (settle(&config, PEER.parse().unwrap(), encrypted, &mut head), head)
    }

    fn value(head: &RequestHead, name: &str) -> Option<String> {
        head.fields.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    fn edge(hops: u32) -> impl FnOnce(&mut HttpManager) {
        move |config| {
            config.use_remote_address = true;
            config.xff_trusted_hops = hops;
        }
    }

    #[test]
    fn an_edge_says_whether_the_client_spoke_tls() {
        for (encrypted, wanted) in [(true, "https"), (false, "http")] {
            let (_, head) = settled_over(encrypted, edge(0), &[("x-forwarded-proto", "ftp")]);
            assert_eq!(value(&head, "x-forwarded-proto").unwrap(), wanted);
            assert_eq!(head.scheme == Scheme::Https, encrypted);
        }
    }

    #[test]
    fn a_sidecar_leaves_what_it_receives() {
        let (origin, head) = settled(|_| {}, &[("x-forwarded-for", "1.2.3.4, 5.6.7.8")]);
        assert_eq!(value(&head, "x-forwarded-for").unwrap(), "1.2.3.4, 5.6.7.8");
        assert_eq!(value(&head, "x-forwarded-proto").unwrap(), "http");
        assert_eq!(value(&head, "x-envoy-external-address"), None);
        assert_eq!(origin.remote, "5.6.7.8:0".parse().unwrap());
        let (origin, head) = settled(|_| {}, &[("x-forwarded-proto", "https")]);
        assert_eq!((value(&head, "x-forwarded-for"), origin.remote), (None, PEER.parse().unwrap()));
        assert_eq!(
            (value(&head, "x-forwarded-proto").unwrap(), head.scheme),
            ("https".to_owned(), Scheme::Https)
        );
    }

    #[test]
    fn an_edge_appends_and_overwrites() {
        let lines =
            [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https"), ("x-request-id", "theirs")];
        let (origin, head) = settled(edge(0), &lines);
        assert_eq!(value(&head, "x-forwarded-for").unwrap(), "1.2.3.4,10.1.1.1");
        assert_eq!(value(&head, "x-forwarded-proto").unwrap(), "http");
        assert_eq!(value(&head, "x-envoy-external-address").unwrap(), "10.1.1.1");
        assert_ne!(value(&head, "x-request-id").unwrap(), "theirs");
        assert_eq!(origin.remote, PEER.parse().unwrap());
        let (_, head) = settled(
            |config| {
                edge(0)(config);
                config.preserve_external_request_id = true;
                config.skip_xff_append = true;
            },
            &lines,
        );
        assert_eq!(value(&head, "x-request-id").unwrap(), "theirs");
        assert_eq!(value(&head, "x-forwarded-for").unwrap(), "1.2.3.4");
    }

    #[test]
    fn trusted_hops_count_from_the_right() {
        // Two trusted hops and four entries.
        let (origin, head) = settled(edge(2), &[("x-forwarded-for", "1.1.1.1, 2.2.2.2, 3.3.3.3")]);
        assert_eq!(origin.remote, "2.2.2.2:0".parse().unwrap());
        assert_eq!(value(&head, "x-envoy-external-address").unwrap(), "2.2.2.2");
        assert_eq!(value(&head, "x-forwarded-for").unwrap(), "1.1.1.1, 2.2.2.2, 3.3.3.3,10.1.1.1");
        let (origin, _) = settled(edge(2), &[("x-forwarded-for", "3.3.3.3")]);
        assert_eq!(origin.remote, PEER.parse().unwrap(), "too few entries");
        let (_, head) = settled(edge(1), &[("x-forwarded-proto", "https")]);
        assert_eq!(value(&head, "x-forwarded-proto").unwrap(), "https");
        let (origin, _) = settled(
            |config| config.xff_trusted_hops = 1,
            &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2001:db8::1, 3.3.3.3")],
        );
        assert_eq!(origin.remote, "[2001:db8::1]:0".parse().unwrap());
        let (origin, _) = settled(|_| {}, &[("x-forwarded-for", "not an address")]);
        assert_eq!(origin.remote, PEER.parse().unwrap());
    }

    #[test]
    fn only_internal_callers_may_control_us() {
        let lines = [
            ("x-forwarded-for", "10.9.9.9"),
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-max-retries", "9"),
            ("x-envoy-upstream-rq-timeout-ms", "1"),
            ("x-envoy-internal", "true"),
            ("x-envoy-decorator-operation", "op"),
            ("x-envoy-original-path", "/public"),
        ];
        let (origin, head) = settled(|_| {}, &lines);
        assert!(!origin.internal);
        let names: Vec<_> =
            head.fields.iter().filter(|f| f.name.starts_with(b"x-envoy")).map(|f| f.name).collect();
        assert_eq!(names, [&b"x-envoy-decorator-operation"[..], b"x-envoy-original-path"]);

        let ranges =
            |config: &mut HttpManager| config.internal_addresses = ["10.0.0.0/8".parse().unwrap()].into();
        let (origin, head) = settled(ranges, &lines);
        assert!(origin.internal);
        assert_eq!(value(&head, "x-envoy-internal").unwrap(), "true");
        assert_eq!(value(&head, "x-envoy-max-retries").unwrap(), "9");
        for others in ["10.9.9.9, 10.8.8.8", "192.0.2.1"] {
            let (origin, head) = settled(ranges, &[("x-forwarded-for", others), lines[1]]);
            assert!(!origin.internal && value(&head, "x-envoy-retry-on").is_none(), "{others}");
        }
        let (origin, head) = settled(edge(0), &lines);
        assert!(!origin.internal);
        for name in ["x-envoy-decorator-operation", "x-envoy-original-path", "x-envoy-max-retries"] {
            assert_eq!(value(&head, name), None, "{name} at the edge");
        }
    }

    #[test]
    fn request_ids_are_uuids_of_version_4() {
        let (_, head) = settled(|_| {}, &[]);
        let id = value(&head, "x-request-id").unwrap();
        assert_eq!(uuid::Uuid::parse_str(&id).unwrap().get_version_num(), 4);
        let (_, head) = settled(|_| {}, &[("x-request-id", "mine")]);
        assert_eq!(value(&head, "x-request-id").unwrap(), "mine");
        let (_, head) = settled(|config| config.generate_request_id = false, &[]);
        assert_eq!(value(&head, "x-request-id"), None);
    }

    #[test]
    fn via_is_appended() {
        let (_, head) = settled(|config| config.via = Some("osier".into()), &[("via", "1.1 a")]);
        assert_eq!(value(&head, "via").unwrap(), "1.1 a, osier");
    }

    #[test]
    fn loopback_is_announced_by_the_machines_address() {
        let announced = announced("127.0.0.1".parse().unwrap());
        assert!(own_address().is_none_or(|own| own == announced));
    }
}
