//! Services: named destinations with ports, from Kubernetes or from a ServiceEntry.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use osier_core::host::Host;
use osier_core::labels::Labels;

use super::export::{ExportTo, Exports};
use super::resource::{Age, ResourceKey};
use super::view::ProxyView;

/// Label of a ServiceEntry; `false` keeps automatic addresses away.
const AUTOMATIC_ADDRESSES: &str = "networking.istio.io/enable-autoallocate-ip";

/// Identity of a service: host names are unique per namespace only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// FQDN, or the host of a ServiceEntry (may be a wildcard).
    pub host: Host,
    /// Namespace of the resource.
    pub namespace: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.host)
    }
}

/// A destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Host and namespace.
    pub key: ServiceKey,
    /// Kubernetes: the Service's name. ServiceEntry: the host.
    pub name: Arc<str>,
    /// Which API it came from.
    pub source: ServiceSource,
    /// The resource behind it.
    pub resource: ResourceKey,
    /// For "the oldest wins".
    pub age: Age,
    /// How its endpoints are found.
    pub kind: ServiceKind,
    /// Virtual addresses: ClusterIPs, or a ServiceEntry's addresses and CIDRs.
    pub addresses: Vec<IpNet>,
    /// Ports, in the order written. UDP ports are left out.
    pub ports: Vec<ServicePort>,
    /// `exportTo` as written.
    pub export_to: ExportTo,
    /// `exportTo` with the mesh default filled in; set when the snapshot is built.
    pub exports: Exports,
    /// Inside or outside of the mesh.
    pub location: Location,
    /// Names that the server's certificate may carry (ServiceEntry).
    pub subject_alt_names: Vec<Arc<str>>,
    /// Which workloads are its endpoints, where no slices or inline endpoints say so.
    pub selector: Option<Labels>,
    /// Labels of the resource.
    pub labels: Labels,
    /// `publishNotReadyAddresses`: selected pods count as ready.
    pub publish_not_ready: bool,
    /// `internalTrafficPolicy: Local`: only endpoints on the client's node.
    pub node_local: bool,
    /// Automatic addresses that the resource's status says it has.
    pub claimed: Vec<IpAddr>,
    /// Automatic addresses that it does have; set when the snapshot is built.
    pub automatic: Vec<IpAddr>,
}

impl Service {
    /// FQDN, or the host of a ServiceEntry.
    pub fn host(&self) -> &Host {
        &self.key.host
    }

    /// True for what gets addresses by itself: a ServiceEntry without any, whose clients are not meant to keep their own
    /// destination, and whose host can be looked up.
    pub fn wants_automatic_addresses(&self) -> bool {
        self.source == ServiceSource::ServiceEntry
            && self.addresses.is_empty()
            && self.kind != ServiceKind::Passthrough
            && !self.host().is_wildcard()
            && self.labels.get(AUTOMATIC_ADDRESSES) != Some("false")
    }

    /// The addresses at which `view` meets it: its own, else the automatic ones for whoever finds them by DNS.
    pub fn addresses_for(&self, view: &ProxyView) -> Cow<'_, [IpNet]> {
        if !self.addresses.is_empty() || !view.dns_capture {
            return Cow::Borrowed(&self.addresses);
        }
        self.automatic.iter().filter(|ip| view.speaks(**ip)).map(|ip| IpNet::from(*ip)).collect()
    }

    /// The port with this service port number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.number == number)
    }
}

/// Which API a service came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceSource {
    /// A Kubernetes Service; wins over a ServiceEntry of the same host.
    Kubernetes,
    /// A ServiceEntry.
    ServiceEntry,
}

/// How a service's endpoints are found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServiceKind {
    /// Kubernetes Service with a virtual address: endpoints by EDS.
    ClusterIp,
    /// Kubernetes Service without one: sidecars connect to the original destination.
    Headless,
    /// Alias of another host; has no cluster and no listener of its own.
    ExternalName(Host),
    /// ServiceEntry STATIC: endpoints by EDS.
    Static,
    /// ServiceEntry DNS: every endpoint's name (or the host itself) is resolved by the proxy.
    Dns,
    /// ServiceEntry NONE: original destination.
    Passthrough,
}

/// Inside or outside of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Location {
    /// Part of the mesh.
    Internal,
    /// MESH_EXTERNAL.
    External,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Number that clients use.
    pub number: u16,
    /// Name; may be empty.
    pub name: Arc<str>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where endpoints listen.
    pub target: TargetPort,
}

/// Port at the endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TargetPort {
    /// This number.
    Number(u16),
    /// The container port of this name.
    Name(Arc<str>),
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1 towards endpoints.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// HTTP/2 with gRPC semantics.
    Grpc,
    /// gRPC-Web, HTTP/2 towards endpoints.
    GrpcWeb,
    /// TLS that isn't terminated here.
    Https,
    /// TLS that isn't terminated here.
    Tls,
    /// Opaque.
    Tcp,
    /// Opaque.
    Mongo,
    /// Opaque.
    Redis,
    /// Opaque, server speaks first.
    Mysql,
    /// Not proxied at all.
    Udp,
    /// Found out per connection.
    Auto,
}

impl Protocol {
    /// Declared to be HTTP of any version.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// HTTP, or may turn out to be: gets routes.
    pub fn may_be_http(self) -> bool {
        self.is_http() || self == Self::Auto
    }

    /// HTTP/2 towards endpoints.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// TLS routed by SNI.
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// Protocol of a Kubernetes Service port. `transport` is `protocol`, e.g. `TCP` (the default) or `UDP`.
    pub fn of_kubernetes_port(transport: &str, app_protocol: Option<&str>, name: &str, number: u16) -> Self {
        if transport.eq_ignore_ascii_case("UDP") {
            return Self::Udp;
        }
        if let Some(app) = app_protocol {
            return match app {
                "kubernetes.io/h2c" => Self::Http2,
                "kubernetes.io/ws" => Self::Http,
                "kubernetes.io/wss" => Self::Https,
                _ => Self::of_text(app).unwrap_or(Self::Auto),
            };
        }
        match Self::of_text(name) {
            Some(protocol) => protocol,
            None if matches!(number, 25 | 53 | 3306 | 27017) => Self::Tcp,
            None => Self::Auto,
        }
    }

    /// The text up to the first `-`, as Kubernetes port names carry it.
    fn of_text(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        if lower.starts_with("grpc-web") {
            return Some(Self::GrpcWeb);
        }
        Self::of_keyword(lower.split('-').next().unwrap_or_default())
    }

    /// The exact word, without case: `protocol` of a ServiceEntry port.
    pub fn of_keyword(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "http" => Self::Http,
            "http2" => Self::Http2,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "https" => Self::Https,
            "tls" => Self::Tls,
            "tcp" => Self::Tcp,
            "mongo" => Self::Mongo,
            "redis" => Self::Redis,
            "mysql" => Self::Mysql,
            "udp" => Self::Udp,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_selection() {
        use Protocol::*;
        for (transport, app, name, number, wanted) in [
            ("TCP", None, "http", 80, Http),
            ("TCP", None, "HTTP-web", 80, Http),
            ("TCP", None, "http2", 80, Http2),
            ("TCP", None, "http2-api", 80, Http2),
            ("TCP", None, "grpc", 80, Grpc),
            ("TCP", None, "grpc-x", 80, Grpc),
            ("TCP", None, "grpc-web", 80, GrpcWeb),
            ("TCP", None, "grpc-web-x", 80, GrpcWeb),
            ("TCP", None, "https", 443, Https),
            ("TCP", None, "tls-x", 443, Tls),
            ("TCP", None, "tcp", 80, Tcp),
            ("TCP", None, "mongo", 1, Mongo),
            ("TCP", None, "redis-main", 6379, Redis),
            ("TCP", None, "mysql", 1, Mysql),
            ("TCP", None, "udp", 1, Udp),
            ("UDP", Some("http"), "http", 80, Udp),
            ("TCP", None, "httpfoo", 80, Auto),
            ("TCP", None, "web", 80, Auto),
            ("TCP", None, "", 80, Auto),
            ("TCP", None, "", 25, Tcp),
            ("TCP", None, "", 53, Tcp),
            ("TCP", None, "web", 3306, Tcp),
            ("TCP", None, "", 27017, Tcp),
            ("TCP", None, "http", 3306, Http),
            ("TCP", Some("http"), "tcp", 80, Http),
            ("TCP", Some("HTTP"), "tcp", 80, Http),
            ("TCP", Some("mystery"), "http", 80, Auto),
            ("TCP", Some("mystery"), "http", 3306, Auto),
            ("TCP", Some("kubernetes.io/h2c"), "http", 80, Http2),
            ("TCP", Some("kubernetes.io/ws"), "tcp", 80, Http),
            ("TCP", Some("kubernetes.io/wss"), "tcp", 80, Https),
        ] {
            let got = Protocol::of_kubernetes_port(transport, app, name, number);
            assert_eq!(got, wanted, "{transport} {app:?} {name:?} {number}");
        }
        assert_eq!(Protocol::of_keyword("HTTP"), Some(Http));
        assert_eq!(Protocol::of_keyword("http-x"), None, "no cutting for ServiceEntry ports");
    }
}
