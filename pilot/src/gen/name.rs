//! Names of resources, written and read in one place: istiod's own, so that tools that know them work.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use osier_core::host::Host;
use osier_core::on_demand;

/// Original destination, where nothing better is known.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// No endpoints: connections are closed, requests answered 503.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// Original destination of inbound connections to ports without a service.
pub const INBOUND_PASSTHROUGH_V4: &str = "InboundPassthroughCluster";
/// The same over IPv6.
pub const INBOUND_PASSTHROUGH_V6: &str = "InboundPassthroughClusterIpv6";
/// Listener of captured outbound connections.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// Listener of captured inbound connections.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";
/// Route configuration of explicit-proxy listeners.
pub const HTTP_PROXY: &str = "http_proxy";
/// Prefix of the listeners that proxyless gRPC servers ask for.
pub const GRPC_INBOUND: &str = "xds.istio.io/grpc/lds/inbound/";
/// Where captured outbound connections arrive.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where captured inbound connections arrive.
pub const INBOUND_PORT: u16 = 15006;
/// Ports of the proxy itself; no service listener takes them.
pub const OWN_PORTS: [u16; 4] = [OUTBOUND_PORT, INBOUND_PORT, 15021, 15090];

/// Where gateways serve Ingresses without TLS; their Service maps port 80 to it.
pub const INGRESS_HTTP_PORT: u16 = 8080;

/// Where gateways serve Ingresses with TLS; their Service maps port 443 to it.
pub const INGRESS_TLS_PORT: u16 = 8443;

/// Route configuration of a gateway's port.
pub fn ingress_routes(port: u16) -> String {
    let scheme = if port == INGRESS_TLS_PORT { "https" } else { "http" };
    format!("{scheme}.{port}")
}

/// SDS name of what a Secret has: `kubernetes://<namespace>/<name>`.
pub fn secret(namespace: &str, name: &str) -> String {
    format!("kubernetes://{namespace}/{name}")
}

/// Namespace and name of a Secret.
pub fn parse_secret(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("kubernetes://")?.split_once('/')
}

/// Port of a gateway's route configuration.
pub fn parse_ingress_routes(name: &str) -> Option<u16> {
    let (scheme, port) = name.split_once('.')?;
    let port = port.parse().ok()?;
    (scheme.starts_with("http") && ingress_routes(port) == name).then_some(port)
}

/// Name of a cluster that belongs to a service port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OutboundName {
    /// Service port.
    pub port: u16,
    /// Subset; empty for all endpoints.
    pub subset: Arc<str>,
    /// Host name of the service.
    pub host: Arc<str>,
}

impl OutboundName {
    /// Reads `outbound|<port>|<subset>|<host>`.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('|');
        let (direction, port, subset, host) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if direction != "outbound" || parts.next().is_some() || host.is_empty() {
            return None;
        }
        Some(Self { port: port.parse().ok()?, subset: subset.into(), host: host.into() })
    }

    /// The same as a name that a ClientHello or an authority can have.
    pub fn server_name(&self) -> String {
        format!("outbound_.{}_.{}_.{}", self.port, self.subset, self.host)
    }
}

impl fmt::Display for OutboundName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outbound|{}|{}|{}", self.port, self.subset, self.host)
    }
}

/// Name of the cluster of a destination outside the mesh, which a client of an explicit proxy names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutsideName {
    /// Port.
    pub port: u16,
    /// An IP address or a DNS name.
    pub host: Arc<str>,
}

impl OutsideName {
    /// `None` where `host` can't be looked up.
    pub fn new(host: &str, port: u16) -> Option<Self> {
        // Underscores are not for host names, and there are hosts that have them.
        let found = host.parse::<IpAddr>().is_ok() || Host::parse_fqdn(&host.replace('_', "-")).is_ok();
        (found && port > 0).then(|| Self { port, host: host.into() })
    }

    /// Reads `passthrough|<port>||<host>`.
    pub fn parse(name: &str) -> Option<Self> {
        let (port, host) = name.strip_prefix(on_demand::OUTSIDE)?.split_once("||")?;
        Self::new(host, port.parse().ok()?)
    }
}

impl fmt::Display for OutsideName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}||{}", on_demand::OUTSIDE, self.port, self.host)
    }
}

/// `inbound|<port>||`.
pub fn inbound(port: u16) -> String {
    format!("inbound|{port}||")
}

/// Port of `inbound|<port>||`.
pub fn parse_inbound(name: &str) -> Option<u16> {
    name.strip_prefix("inbound|")?.strip_suffix("||")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outbound_names_are_istiods() {
        let name =
            OutboundName { port: 80, subset: "v1".into(), host: "reviews.default.svc.cluster.local".into() };
        assert_eq!(name.to_string(), "outbound|80|v1|reviews.default.svc.cluster.local");
        assert_eq!(OutboundName::parse(&name.to_string()), Some(name));
        for wrong in
            ["", "outbound|80|v1", "outbound|x||h", "inbound|80||", "outbound|80||", "outbound|80||h|x"]
        {
            assert_eq!(OutboundName::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_of_what_is_outside() {
        for (host, port, wanted) in [
            ("example.com", 443, Some("passthrough|443||example.com")),
            ("127.0.0.5", 80, Some("passthrough|80||127.0.0.5")),
            ("::1", 80, Some("passthrough|80||::1")),
            ("localhost", 80, Some("passthrough|80||localhost")),
            ("exa_mple", 80, Some("passthrough|80||exa_mple")),
            ("1.2.3", 80, None),
            ("a|b", 80, None),
            ("example.com", 0, None),
        ] {
            let name = OutsideName::new(host, port);
            assert_eq!(name.as_ref().map(ToString::to_string).as_deref(), wanted, "{host}");
            assert_eq!(wanted.and_then(OutsideName::parse), name);
        }
        for wrong in ["passthrough|x||h", "passthrough|80|v1|h", "passthrough|80||", "outbound|80||h"] {
            assert_eq!(OutsideName::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn inbound_names() {
        assert_eq!(inbound(8080), "inbound|8080||");
        assert_eq!(parse_inbound("inbound|8080||"), Some(8080));
        assert_eq!(parse_inbound("inbound|8080|x|"), None);
    }
}
