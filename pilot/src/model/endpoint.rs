//! Endpoints: one address of one service port.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use osier_core::host::Host;
use osier_core::labels::Labels;

use super::service::ServiceKey;
use super::workload::WorkloadName;

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An IP address.
    Ip(IpAddr),
    /// A name that the proxy resolves (DNS services only).
    Name(Host),
    /// A Unix socket's path, without `unix://`.
    Unix(Arc<str>),
}

impl Address {
    /// The IP address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        if let Self::Ip(ip) = self { Some(*ip) } else { None }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => name.fmt(f),
            Self::Unix(path) => write!(f, "unix://{path}"),
        }
    }
}

/// One address of one service port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Address.
    pub address: Address,
    /// Port there; 0 for Unix sockets.
    pub port: u16,
    /// Whether it takes traffic.
    pub health: Health,
    /// Labels of its workload; subsets select on them. Empty where no workload is known.
    pub labels: Labels,
    /// Region, zone and subzone.
    pub locality: Locality,
    /// Network for multi-network meshes; may be empty.
    pub network: Arc<str>,
    /// Share relative to others, at least 1.
    pub weight: u32,
    /// Service account; empty where unknown.
    pub service_account: Arc<str>,
    /// Namespace and names of its workload, for peer metadata and metrics.
    pub workload: Option<Arc<WorkloadName>>,
    /// Whether it takes mesh mTLS.
    pub tls: TlsMode,
    /// Node that it runs on; empty where unknown.
    pub node: Arc<str>,
    /// Its name below that of its service, for pods of a StatefulSet; mostly empty.
    pub hostname: Arc<str>,
}

impl Endpoint {
    /// The namespace of its workload, which is that of the service where nothing is known of it.
    pub fn namespace<'a>(&'a self, service: &'a ServiceKey) -> &'a Arc<str> {
        self.workload.as_ref().map_or(&service.namespace, |workload| &workload.namespace)
    }
}

/// Whether an endpoint takes traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Health {
    /// Takes traffic.
    Healthy,
    /// Known, but not ready.
    Unhealthy,
    /// Finishes what it has.
    Draining,
}

/// The label by which a workload says whether it takes mesh mTLS.
pub const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

/// Whether an endpoint takes mesh mTLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum TlsMode {
    /// Plaintext only.
    #[default]
    Disabled,
    /// A sidecar terminates mesh mTLS.
    Istio,
}

impl TlsMode {
    /// What a workload's labels say; `None` where they say nothing.
    pub fn of_labels(labels: &Labels) -> Option<Self> {
        labels.get(TLS_MODE_LABEL).map(|mode| if mode == "istio" { Self::Istio } else { Self::Disabled })
    }
}

/// Where an endpoint runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Subzone.
    pub subzone: Arc<str>,
}

impl Locality {
    /// Reads `region/zone/subzone`; missing parts are empty.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(Arc::from);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }

    /// Reads a label's value, where dots may stand for slashes.
    pub fn parse_label(text: &str) -> Self {
        if text.contains('/') { Self::parse(text) } else { Self::parse(&text.replace('.', "/")) }
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.region, &self.zone, &self.subzone];
        let used = parts.iter().rposition(|p| !p.is_empty()).map_or(0, |last| last + 1);
        for (index, part) in parts[..used].iter().enumerate() {
            write!(f, "{}{part}", if index > 0 { "/" } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localities() {
        for (text, wanted) in [
            ("", ["", "", ""]),
            ("r", ["r", "", ""]),
            ("r/z", ["r", "z", ""]),
            ("r/z/s/t", ["r", "z", "s/t"]),
        ] {
            let locality = Locality::parse(text);
            assert_eq!([&*locality.region, &*locality.zone, &*locality.subzone], wanted);
            assert_eq!(locality.to_string(), text);
        }
        assert_eq!(Locality::parse_label("r.z.s"), Locality::parse("r/z/s"));
        assert_eq!(Locality::parse_label("r.1/z"), Locality::parse("r.1/z"));
    }
}
