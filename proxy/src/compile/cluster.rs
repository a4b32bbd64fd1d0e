//! Cluster (CDS).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use osier_proto::Any;
use osier_proto::types::{
    self, cluster as xds,
    cluster::cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, LbConfig, LbPolicy},
    core,
    upstream_http::{HttpProtocolOptions, http_protocol_options as upstream},
};
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use super::http_manager::{header_case_kept, http2_options};
use super::value::{
    aggregated, as_text, bounded, enumeration, extension, ip_socket_address, metadata_value, not_empty,
    positive, required, switch,
};
use super::{At, Invalid, Rejected, content_hash, decode, endpoint, tls};
use crate::config::cluster::{
    BalancePolicy, BindAddress, ClusterLimits, ClusterSpec, Discovery, DnsFamily, DnsSettings, OriginalDst,
    ServiceLabels, TcpKeepalive, TransportMatch, UpstreamProtocol, UpstreamTransport,
};
use crate::config::endpoint::{DEFAULT_OVERPROVISIONING, EndpointSpec};
use crate::config::tls::Secrets;

const DEFAULT_DNS_REFRESH: Duration = Duration::from_secs(5);
const DEFAULT_PANIC_THRESHOLD: u32 = 50;
const ORIGINAL_DST_HEADER: &str = "x-envoy-original-dst-host";

/// A validated Cluster, and what the xDS client needs to bring it to life.
#[derive(Debug, Clone)]
pub struct CompiledCluster {
    /// What was configured.
    pub spec: ClusterSpec,
    /// Endpoints of a STATIC cluster.
    pub endpoints: Vec<(SocketAddr, EndpointSpec)>,
    /// Percent that a healthy endpoint counts for, where the endpoints are inline.
    pub overprovisioning: u32,
    /// How long an EDS cluster waits for its first endpoints; `None` is for ever.
    pub fetch_timeout: Option<Duration>,
}

/// Compiles a CDS resource.
pub fn compile(name: &str, any: &Any, secrets: &Secrets) -> Result<CompiledCluster, Rejected> {
    let cluster = || {
        let message: xds::Cluster = decode(any)?;
        not_empty("name", &message.name)?;
        if message.name != name {
            let reason = format!("is `{}`, but the resource is `{name}`", message.name);
            return Err(Invalid::new("name", reason));
        }
        from_message(&message, content_hash(any), secrets)
    };
    cluster().map_err(|e| e.in_resource(name))
}

fn from_message(message: &xds::Cluster, hash: u64, secrets: &Secrets) -> Result<CompiledCluster, Invalid> {
    positive("cleanup_interval", message.cleanup_interval.as_ref())?;
    let found = discovery(message)?;
    let http = http_options(message)?;
    let name: Arc<str> = message.name.as_str().into();
    let spec = ClusterSpec {
        stat_name: match message.alt_stat_name.as_str() {
            "" => name.clone(),
            other => other.into(),
        },
        balance: balance(message, &found.discovery)?,
        discovery: found.discovery,
        connect_timeout: positive("connect_timeout", message.connect_timeout.as_ref())?
            .unwrap_or(Duration::from_secs(5)),
        limits: limits(message)?,
        tcp_keepalive: keepalive(message),
        bind_address: bind_address(message)?,
        transport: transport(message, http.by_request, secrets)?,
        panic_threshold: panic_threshold(message)?,
        close_on_host_removal: message.close_connections_on_host_health_failure,
        service: service(message.metadata.as_ref()),
        protocol: http.protocol,
        http2: http.http2,
        preserve_header_case: http.preserve_header_case,
        max_requests_per_connection: http.max_requests_per_connection,
        idle_timeout: http.idle_timeout,
        max_connection_duration: http.max_connection_duration,
        hash,
        name,
    };
    Ok(CompiledCluster {
        spec,
        endpoints: found.endpoints,
        overprovisioning: found.overprovisioning,
        fetch_timeout: found.fetch_timeout,
    })
}

/// How bytes are secured, towards which endpoints.
fn transport(
    message: &xds::Cluster,
    by_request: tls::ByRequest,
    secrets: &Secrets,
) -> Result<UpstreamTransport, Invalid> {
    let socket = message.transport_socket.as_ref();
    let otherwise = tls::upstream("transport_socket", socket, by_request, secrets)?;
    let one = |(index, entry): (usize, &xds::cluster::TransportSocketMatch)| {
        let compiled = || {
            let socket = required("transport_socket", entry.transport_socket.as_ref())?;
            let wanted = entry.r#match.as_ref().map(endpoint::texts).transpose().at("match")?;
            let tls = tls::upstream("transport_socket", Some(socket), by_request, secrets)?;
            Ok(TransportMatch { wanted: wanted.unwrap_or_default(), tls })
        };
        compiled().at_index("transport_socket_matches", index)
    };
    let matches: Arc<[TransportMatch]> =
        message.transport_socket_matches.iter().enumerate().map(one).collect::<Result<_, _>>()?;
    let mut bytes = message.transport_socket.as_ref().map(Message::encode_to_vec).unwrap_or_default();
    message.transport_socket_matches.iter().for_each(|entry| bytes.extend(entry.encode_to_vec()));
    let is_plain = bytes.is_empty();
    bytes.extend([u8::from(by_request.sni), u8::from(by_request.names)]);
    let hash = if is_plain { 0 } else { xxh3_64(&bytes) };
    let asks = by_request.sni && !is_plain;
    Ok(UpstreamTransport { otherwise, matches, asks, hash })
}

/// Where endpoints come from.
struct Found {
    discovery: Discovery,
    endpoints: Vec<(SocketAddr, EndpointSpec)>,
    overprovisioning: u32,
    fetch_timeout: Option<Duration>,
}

impl Found {
    fn elsewhere(discovery: Discovery) -> Self {
        Self {
            discovery,
            endpoints: Vec::new(),
            overprovisioning: DEFAULT_OVERPROVISIONING,
            fetch_timeout: None,
        }
    }
}

fn discovery(message: &xds::Cluster) -> Result<Found, Invalid> {
    let ClusterDiscoveryType::Type(kind) =
        message.cluster_discovery_type.unwrap_or(ClusterDiscoveryType::Type(0));
    let kind: DiscoveryType = enumeration("type", kind)?;
    only_for(message.eds_cluster_config.is_some(), "eds_cluster_config", kind == DiscoveryType::Eds)?;
    let inline = matches!(kind, DiscoveryType::Static | DiscoveryType::StrictDns);
    only_for(message.load_assignment.is_some(), "load_assignment", inline)?;
    only_for(message.respect_dns_ttl, "respect_dns_ttl", kind == DiscoveryType::StrictDns)?;
    let original_dst = matches!(message.lb_config, Some(LbConfig::OriginalDstLbConfig(_)));
    only_for(original_dst, "original_dst_lb_config", kind == DiscoveryType::OriginalDst)?;
    match kind {
        DiscoveryType::Static => {
            let Some(assignment) = &message.load_assignment else {
                // BlackHoleCluster: a cluster without anybody in it.
                return Ok(Found::elsewhere(Discovery::Static));
            };
            Ok(Found {
                endpoints: endpoint::addresses(assignment).at("load_assignment")?,
                overprovisioning: endpoint::overprovisioning(assignment).at("load_assignment")?,
                ..Found::elsewhere(Discovery::Static)
            })
        }
        DiscoveryType::StrictDns => dns(message),
        DiscoveryType::Eds => {
            let config = required("eds_cluster_config", message.eds_cluster_config.as_ref())?;
            let service = match config.service_name.as_str() {
                "" => message.name.as_str(),
                other => other,
            };
            let fetch_timeout =
                aggregated("eds_config", config.eds_config.as_ref()).at("eds_cluster_config")?;
            Ok(Found { fetch_timeout, ..Found::elsewhere(Discovery::Eds(service.into())) })
        }
        DiscoveryType::OriginalDst => original_destination(message),
    }
}

fn only_for(given: bool, field: &str, fits: bool) -> Result<(), Invalid> {
    if given && !fits {
        return Err(Invalid::new(field, "does not fit the cluster's `type`"));
    }
    Ok(())
}

fn dns(message: &xds::Cluster) -> Result<Found, Invalid> {
    let assignment = required("load_assignment", message.load_assignment.as_ref())?;
    let family = match enumeration("dns_lookup_family", message.dns_lookup_family)? {
        DnsLookupFamily::Auto => DnsFamily::Auto,
        DnsLookupFamily::V4Only => DnsFamily::V4Only,
        DnsLookupFamily::V6Only => DnsFamily::V6Only,
        DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
        DnsLookupFamily::All => DnsFamily::All,
    };
    let settings = DnsSettings {
        names: endpoint::names(assignment).at("load_assignment")?,
        refresh: positive("dns_refresh_rate", message.dns_refresh_rate.as_ref())?
            .unwrap_or(DEFAULT_DNS_REFRESH),
        respect_ttl: message.respect_dns_ttl,
        family,
    };
    if endpoint::overprovisioning(assignment).at("load_assignment")? != DEFAULT_OVERPROVISIONING {
        let reason = format!("only {DEFAULT_OVERPROVISIONING} is supported with STRICT_DNS");
        return Err(Invalid::new("load_assignment.policy.overprovisioning_factor", reason));
    }
    Ok(Found::elsewhere(Discovery::StrictDns(settings)))
}

fn original_destination(message: &xds::Cluster) -> Result<Found, Invalid> {
    let Some(LbConfig::OriginalDstLbConfig(config)) = &message.lb_config else {
        return Ok(Found::elsewhere(Discovery::OriginalDst(OriginalDst::default())));
    };
    let header = match (config.use_http_header, config.http_header_name.as_str()) {
        (true, "") => Some(ORIGINAL_DST_HEADER.into()),
        (true, name) => Some(name.to_ascii_lowercase().into()),
        (false, "") => None,
        (false, _) => {
            let reason = "needs `use_http_header`";
            return Err(Invalid::new("original_dst_lb_config.http_header_name", reason));
        }
    };
    let port = bounded(
        "original_dst_lb_config.upstream_port_override",
        config.upstream_port_override,
        0..=u32::from(u16::MAX),
    )?;
    // Envoy reads 0 as "no override".
    let port_override = port.map(|p| p as u16).filter(|p| *p != 0);
    Ok(Found::elsewhere(Discovery::OriginalDst(OriginalDst { header, port_override })))
}

fn balance(message: &xds::Cluster, discovery: &Discovery) -> Result<BalancePolicy, Invalid> {
    let choices = match &message.lb_config {
        Some(LbConfig::LeastRequestLbConfig(c)) => {
            bounded("least_request_lb_config.choice_count", c.choice_count, 2..=u32::MAX)?
        }
        _ => None,
    };
    let policy = match enumeration("lb_policy", message.lb_policy)? {
        LbPolicy::RoundRobin => BalancePolicy::RoundRobin,
        LbPolicy::LeastRequest => BalancePolicy::LeastRequest { choices: choices.unwrap_or(2) },
        LbPolicy::Random => BalancePolicy::Random,
        LbPolicy::ClusterProvided => BalancePolicy::ClusterProvided,
    };
    let provided = policy == BalancePolicy::ClusterProvided;
    if provided != matches!(discovery, Discovery::OriginalDst(_)) {
        return Err(Invalid::new("lb_policy", "CLUSTER_PROVIDED goes with ORIGINAL_DST and nothing else"));
    }
    Ok(policy)
}

fn limits(message: &xds::Cluster) -> Result<ClusterLimits, Invalid> {
    let mut limits = ClusterLimits::default();
    let mut seen = false;
    for (index, threshold) in message.circuit_breakers.iter().flat_map(|c| &c.thresholds).enumerate() {
        let priority = enumeration::<core::RoutingPriority>("priority", threshold.priority)
            .at_index("thresholds", index)
            .at("circuit_breakers")?;
        // No route has high priority here (the field isn't declared), and of several defaults the first counts.
        if priority == core::RoutingPriority::Default && !seen {
            seen = true;
            limits = ClusterLimits {
                max_connections: threshold.max_connections.unwrap_or(limits.max_connections),
                max_pending_requests: threshold.max_pending_requests.unwrap_or(limits.max_pending_requests),
                max_requests: threshold.max_requests.unwrap_or(limits.max_requests),
                max_retries: threshold.max_retries.unwrap_or(limits.max_retries),
            };
        }
    }
    Ok(limits)
}

fn keepalive(message: &xds::Cluster) -> Option<TcpKeepalive> {
    let options = message.upstream_connection_options.as_ref()?.tcp_keepalive.as_ref()?;
    let seconds = |value: Option<u32>| value.map(|v| Duration::from_secs(v.into()));
    Some(TcpKeepalive {
        time: seconds(options.keepalive_time),
        interval: seconds(options.keepalive_interval),
        probes: options.keepalive_probes,
    })
}

fn bind_address(message: &xds::Cluster) -> Result<Option<BindAddress>, Invalid> {
    let Some(config) = &message.upstream_bind_config else { return Ok(None) };
    bind_addresses(config).at("upstream_bind_config")
}

fn bind_addresses(config: &core::BindConfig) -> Result<Option<BindAddress>, Invalid> {
    const EXTRA: &str = "extra_source_addresses";
    let extra = match (&config.source_address, &config.extra_source_addresses[..]) {
        (None, []) => return Ok(None),
        (_, []) => None,
        (_, [extra]) => Some(extra),
        (_, several) => return Err(Invalid::new(EXTRA, format!("has {}, one is supported", several.len()))),
    };
    let first = required("source_address", config.source_address.as_ref())?;
    let first = ip_socket_address(first).at("source_address")?;
    let Some(extra) = extra else { return Ok(Some(first.into())) };
    let read = required("address", extra.address.as_ref()).and_then(|a| ip_socket_address(a).at("address"));
    let second = read.at_index(EXTRA, 0)?;
    if first.is_ipv4() == second.is_ipv4() {
        let reason = format!("{} is of the same family as source_address", second.ip());
        return Err(Invalid::new("address", reason)).at_index(EXTRA, 0);
    }
    Ok(Some(BindAddress { first, second: Some(second) }))
}

fn panic_threshold(message: &xds::Cluster) -> Result<u32, Invalid> {
    let Some(percent) = message.common_lb_config.as_ref().and_then(|c| c.healthy_panic_threshold) else {
        return Ok(DEFAULT_PANIC_THRESHOLD);
    };
    if !(0.0..=100.0).contains(&percent.value) {
        let reason = format!("must be between 0 and 100, is {}", percent.value);
        return Err(Invalid::new("common_lb_config.healthy_panic_threshold.value", reason));
    }
    // Envoy compares whole percents.
    Ok(percent.value as u32)
}

/// `filter_metadata["istio"]["services"][0]`, which pilot writes for metrics.
fn service(metadata: Option<&core::Metadata>) -> Option<Arc<ServiceLabels>> {
    use prost_types::value::Kind;
    let Kind::ListValue(services) = metadata_value(metadata, "istio", "services")? else { return None };
    let Some(Kind::StructValue(first)) = &services.values.first()?.kind else { return None };
    let text = |key: &str| first.fields.get(key).and_then(|v| as_text(v.kind.as_ref()?));
    Some(Arc::new(ServiceLabels {
        host: text("host")?.into(),
        name: text("name")?.into(),
        namespace: text("namespace")?.into(),
    }))
}

/// HTTP settings of a cluster.
struct HttpOptions {
    protocol: UpstreamProtocol,
    http2: crate::config::listener::Http2Options,
    preserve_header_case: bool,
    max_requests_per_connection: Option<u32>,
    idle_timeout: Option<Duration>,
    max_connection_duration: Option<Duration>,
    /// Whom TLS asks for.
    by_request: tls::ByRequest,
}

fn http_options(message: &xds::Cluster) -> Result<HttpOptions, Invalid> {
    let mut found = HttpOptions {
        protocol: UpstreamProtocol::Http1,
        http2: crate::config::listener::Http2Options::default(),
        preserve_header_case: false,
        max_requests_per_connection: None,
        idle_timeout: Some(Duration::from_secs(3600)),
        max_connection_duration: None,
        by_request: tls::ByRequest::default(),
    };
    for (key, config) in &message.typed_extension_protocol_options {
        let field = format!("typed_extension_protocol_options[\"{key}\"]");
        if key != types::HTTP_PROTOCOL_OPTIONS {
            return Err(Invalid::new(field, "is not supported"));
        }
        let options: HttpProtocolOptions =
            extension(config).map_err(|e| Invalid::new(field.clone(), e.reason))?;
        apply_http_options(&options, &mut found).at(&field)?;
    }
    Ok(found)
}

fn apply_http_options(options: &HttpProtocolOptions, found: &mut HttpOptions) -> Result<(), Invalid> {
    use upstream::UpstreamProtocolOptions as Version;
    use upstream::explicit_http_config::ProtocolConfig;
    match required("explicit_http_config", options.upstream_protocol_options.as_ref())? {
        Version::ExplicitHttpConfig(config) => {
            match required("protocol_config", config.protocol_config.as_ref()).at("explicit_http_config")? {
                ProtocolConfig::HttpProtocolOptions(http1) => {
                    found.preserve_header_case =
                        header_case_kept(http1).at("http_protocol_options").at("explicit_http_config")?;
                }
                ProtocolConfig::Http2ProtocolOptions(http2) => {
                    found.protocol = UpstreamProtocol::Http2;
                    found.http2 =
                        http2_options(http2).at("http2_protocol_options").at("explicit_http_config")?;
                }
            }
        }
        Version::UseDownstreamProtocolConfig(config) => {
            found.protocol = UpstreamProtocol::Downstream;
            if let Some(http1) = &config.http_protocol_options {
                found.preserve_header_case = header_case_kept(http1)
                    .at("http_protocol_options")
                    .at("use_downstream_protocol_config")?;
            }
            if let Some(http2) = &config.http2_protocol_options {
                found.http2 =
                    http2_options(http2).at("http2_protocol_options").at("use_downstream_protocol_config")?;
            }
        }
    }
    if let Some(names) = &options.upstream_http_protocol_options {
        if names.auto_san_validation && !names.auto_sni {
            let reason = "is supported with auto_sni only";
            return Err(Invalid::new("upstream_http_protocol_options.auto_san_validation", reason));
        }
        found.by_request = tls::ByRequest { sni: names.auto_sni, names: names.auto_san_validation };
    }
    if let Some(shared) = &options.common_http_protocol_options {
        apply_shared_options(shared, found).at("common_http_protocol_options")?;
    }
    Ok(())
}

fn apply_shared_options(shared: &core::HttpProtocolOptions, found: &mut HttpOptions) -> Result<(), Invalid> {
    for (field, given) in [
        ("max_headers_count", shared.max_headers_count.is_some()),
        ("max_stream_duration", shared.max_stream_duration.is_some()),
    ] {
        if given {
            return Err(Invalid::new(field, "is not supported for upstreams"));
        }
    }
    found.idle_timeout = switch("idle_timeout", shared.idle_timeout.as_ref(), found.idle_timeout)?;
    found.max_connection_duration =
        switch("max_connection_duration", shared.max_connection_duration.as_ref(), None)?;
    found.max_requests_per_connection = shared.max_requests_per_connection.filter(|n| *n != 0);
    Ok(())
}
