//! The xDS server of a bootstrap: `ads_config` and the static cluster that it names.

use std::path::PathBuf;
use std::time::Duration;

use osier_proto::types;
use osier_proto::types::{
    cluster::{Cluster, cluster::ClusterDiscoveryType, cluster::DiscoveryType},
    core::{self, address, api_config_source::ApiType, grpc_service::TargetSpecifier},
    endpoint::lb_endpoint::HostIdentifier,
    upstream_http::{
        HttpProtocolOptions,
        http_protocol_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig},
    },
};
use osier_proto::xds::Variant;

use crate::compile::value::{extension, host_and_port, plaintext, positive};
use crate::compile::{At, Invalid};

/// Where the xDS stream goes, and which form of the protocol is spoken there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdsServer {
    /// Name of the cluster, for messages.
    pub cluster: String,
    /// `DELTA_GRPC` or `GRPC`.
    pub variant: Variant,
    /// Addresses, tried in turn.
    pub targets: Vec<XdsTarget>,
    /// Limit of one connect.
    pub connect_timeout: Duration,
    /// How the server is known and we are, where the stream is encrypted.
    pub tls: Option<XdsTls>,
    /// HTTP/2 PING interval and time-out: finds a server that is gone without a word.
    pub keepalive: Option<(Duration, Duration)>,
}

/// TLS towards the control plane. Both files are read at each connect, since both are renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdsTls {
    /// Root certificates that the server must be known by, PEM.
    pub roots: PathBuf,
    /// Token that says who we are.
    pub token: PathBuf,
}

/// One address of an xDS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum XdsTarget {
    /// Host (an IP, or a name that is looked up at each connect) and port.
    Tcp(String, u16),
    /// Unix domain socket.
    Unix(PathBuf),
}

impl std::fmt::Display for XdsTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl XdsServer {
    /// A server at one address, as sidecars know it.
    pub fn new(target: XdsTarget, tls: Option<XdsTls>) -> Self {
        Self {
            cluster: "xds-grpc".into(),
            variant: Variant::Incremental,
            targets: vec![target],
            connect_timeout: Duration::from_secs(5),
            tls,
            keepalive: Some((Duration::from_secs(30), Duration::from_secs(10))),
        }
    }
}

pub(super) fn from_ads_config(
    config: &core::ApiConfigSource,
    clusters: &[Cluster],
) -> Result<XdsServer, Invalid> {
    let variant = match ApiType::try_from(config.api_type) {
        Ok(ApiType::Grpc) => Variant::StateOfTheWorld,
        Ok(ApiType::DeltaGrpc) => Variant::Incremental,
        _ => return Err(Invalid::new("api_type", "must be GRPC or DELTA_GRPC")),
    };
    if config.transport_api_version != core::ApiVersion::V3 as i32 {
        return Err(Invalid::new("transport_api_version", "must be V3"));
    }
    let [service] = config.grpc_services.as_slice() else {
        return Err(Invalid::new("grpc_services", "must be one"));
    };
    if service.timeout.is_some() {
        return Err(Invalid::new("grpc_services[0].timeout", "is not supported here"));
    }
    let name = match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(target)) if !target.authority.is_empty() => {
            return Err(Invalid::new("grpc_services[0].envoy_grpc.authority", "is not supported here"));
        }
        Some(TargetSpecifier::EnvoyGrpc(target)) => target.cluster_name.as_str(),
        None => return Err(Invalid::new("grpc_services[0]", "needs `envoy_grpc`")),
    };
    let field = "grpc_services[0].envoy_grpc.cluster_name";
    let cluster = clusters
        .iter()
        .find(|c| c.name == name)
        .ok_or_else(|| Invalid::new(field, format!("there is no static cluster `{name}`")))?;
    from_cluster(cluster, variant).map_err(|e| Invalid::new(field, format!("cluster `{name}`: {e}")))
}

fn from_cluster(cluster: &Cluster, variant: Variant) -> Result<XdsServer, Invalid> {
    let kind = match cluster.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => kind,
        None => DiscoveryType::Static as i32,
    };
    if kind != DiscoveryType::Static as i32 && kind != DiscoveryType::StrictDns as i32 {
        return Err(Invalid::new("type", "must be STATIC or STRICT_DNS for xDS"));
    }
    plaintext("transport_socket", cluster.transport_socket.as_ref())?;
    let targets = targets(cluster)?;
    if targets.is_empty() {
        return Err(Invalid::new("load_assignment", "needs an endpoint"));
    }
    Ok(XdsServer {
        cluster: cluster.name.clone(),
        variant,
        targets,
        connect_timeout: positive("connect_timeout", cluster.connect_timeout.as_ref())?
            .unwrap_or(Duration::from_secs(5)),
        tls: None,
        keepalive: http2_keepalive(cluster)?,
    })
}

fn targets(cluster: &Cluster) -> Result<Vec<XdsTarget>, Invalid> {
    endpoint_addresses(cluster)
        .map(|address| match address.and_then(|a| a.address.as_ref()) {
            Some(address::Address::Pipe(pipe)) => Ok(XdsTarget::Unix(pipe.path.clone().into())),
            _ => host_and_port(address).map(|(host, port)| XdsTarget::Tcp(host.to_owned(), port)),
        })
        .collect::<Result<_, _>>()
        .at("load_assignment")
}

/// True where an endpoint is a Unix domain socket.
pub(super) fn has_pipe(cluster: &Cluster) -> bool {
    endpoint_addresses(cluster)
        .any(|a| matches!(a.and_then(|a| a.address.as_ref()), Some(address::Address::Pipe(_))))
}

fn endpoint_addresses(cluster: &Cluster) -> impl Iterator<Item = Option<&core::Address>> {
    let groups = cluster.load_assignment.iter().flat_map(|a| &a.endpoints);
    groups.flat_map(|g| &g.lb_endpoints).map(|e| match &e.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => endpoint.address.as_ref(),
        None => None,
    })
}

/// Makes sure that the cluster speaks HTTP/2, as gRPC must.
fn http2_keepalive(cluster: &Cluster) -> Result<Option<(Duration, Duration)>, Invalid> {
    let config = cluster.typed_extension_protocol_options.get(types::HTTP_PROTOCOL_OPTIONS);
    let Some(config) = config else { return Err(no_http2()) };
    let options: HttpProtocolOptions = extension(config)?;
    let Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) = options.upstream_protocol_options
    else {
        return Err(no_http2());
    };
    match explicit.protocol_config {
        Some(ProtocolConfig::Http2ProtocolOptions(http2)) => {
            Ok(crate::compile::http_manager::http2_options(&http2)?.keepalive)
        }
        _ => Err(no_http2()),
    }
}

fn no_http2() -> Invalid {
    Invalid::new(
        "typed_extension_protocol_options",
        "xDS needs HTTP/2: set `explicit_http_config.http2_protocol_options`",
    )
}
