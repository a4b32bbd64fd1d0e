//! Listener (LDS): address, inspectors, filter chains and their network filters.

use std::sync::Arc;
use std::time::Duration;

use osier_core::on_demand::{CHAINS_BY_SERVER_NAME, METADATA_NAMESPACE};
use osier_proto::Any;
use osier_proto::types::{
    self, core,
    listener::{self as xds, filter::ConfigType as FilterConfig, filter_chain_match::ConnectionSourceType},
    tcp_proxy as tcp,
};

use super::value::{
    bounded, enumeration, extension, listening_address, metadata_value, not_empty, positive, ranges,
    required, switch, unsupported_extension,
};
use super::{
    At, Context, Invalid, References, Rejected, access_log, content_hash, decode, ext_authz, http_manager,
    rbac, refs::Collector, tls,
};
use crate::config::cluster::{WeightedCluster, WeightedClusters};
use crate::config::listener::{
    ChainMatch, Direction, FilterChain, Inspect, Listener, NetworkAction, Ports, SourceType, TcpProxy,
    TransportProtocol,
};
use crate::ext_authz::Authorizer;
use crate::listener::filter_chain::ChainMatcher;

/// A validated Listener and what it names. Route tables that come over RDS aren't linked yet.
#[derive(Debug)]
pub struct CompiledListener {
    /// The listener.
    pub listener: Listener,
    /// What it names.
    pub references: References,
}

/// Compiles an LDS resource.
pub fn compile(name: &str, any: &Any, context: Context<'_>) -> Result<CompiledListener, Rejected> {
    let compiled = || {
        let message: xds::Listener = decode(any)?;
        not_empty("name", &message.name)?;
        if message.name != name {
            let reason = format!("is `{}`, but the resource is `{name}`", message.name);
            return Err(Invalid::new("name", reason));
        }
        let mut refs = Collector::new(context);
        let listener = from_message(&message, content_hash(any), &mut refs)?;
        Ok(CompiledListener { listener, references: refs.found })
    };
    compiled().map_err(|e| e.in_resource(name))
}

fn from_message(message: &xds::Listener, hash: u64, refs: &mut Collector<'_>) -> Result<Listener, Invalid> {
    if message.api_listener.is_some() {
        return Err(Invalid::new("api_listener", "is for proxyless clients"));
    }
    enumeration::<xds::listener::DrainType>("drain_type", message.drain_type)?;
    let (address, ipv4_compat) = listening_address(message.address.as_ref()).at("address")?;
    let chains_by_server_name = chains_by_server_name(message.metadata.as_ref())?;
    let chains = chains(message, refs)?;
    let default_chain = match &message.default_filter_chain {
        None => None,
        Some(chain) if chain.filter_chain_match.as_ref().is_some_and(|m| *m != Default::default()) => {
            return Err(Invalid::new("default_filter_chain.filter_chain_match", "must be empty"));
        }
        Some(chain) => Some(Arc::new(filter_chain(chain, refs).at("default_filter_chain")?)),
    };
    if chains.is_empty() && default_chain.is_none() && !chains_by_server_name {
        return Err(Invalid::new("filter_chains", "needs at least one"));
    }
    let mut listener = Listener {
        ipv4_compat,
        bind_to_port: message.bind_to_port.unwrap_or(true),
        use_original_dst: message.use_original_dst.unwrap_or(false),
        transparent: message.transparent.unwrap_or(false),
        matcher: Arc::new(matcher(&chains)?),
        chains,
        default_chain,
        chains_by_server_name,
        direction: direction(message.traffic_direction)?,
        backlog: message.tcp_backlog_size,
        access_log: access_log::compile("access_log", &message.access_log)?,
        hash,
        ..Listener::plain(message.name.as_str(), address)
    };
    listener_filters(message, &mut listener)?;
    Ok(listener)
}

fn direction(value: i32) -> Result<Direction, Invalid> {
    Ok(match enumeration("traffic_direction", value)? {
        core::TrafficDirection::Unspecified => Direction::Unspecified,
        core::TrafficDirection::Inbound => Direction::Inbound,
        core::TrafficDirection::Outbound => Direction::Outbound,
    })
}

/// Osier's own mark on listeners whose chains come one by one.
fn chains_by_server_name(metadata: Option<&core::Metadata>) -> Result<bool, Invalid> {
    match metadata_value(metadata, METADATA_NAMESPACE, CHAINS_BY_SERVER_NAME) {
        None => Ok(false),
        Some(prost_types::value::Kind::BoolValue(value)) => Ok(*value),
        Some(_) => {
            let field = format!("metadata.filter_metadata[\"{METADATA_NAMESPACE}\"].{CHAINS_BY_SERVER_NAME}");
            Err(Invalid::new(field, "must be true or false"))
        }
    }
}

fn listener_filters(message: &xds::Listener, listener: &mut Listener) -> Result<(), Invalid> {
    let inspect = &mut listener.inspect;
    for (index, filter) in message.listener_filters.iter().enumerate() {
        let mut apply = || {
            let xds::listener_filter::ConfigType::TypedConfig(config) =
                required("typed_config", filter.config_type.as_ref())?;
            let disabled = match &filter.filter_disabled {
                Some(predicate) => ports(predicate, 0).at("filter_disabled")?,
                None => Ports::None,
            };
            if config.is::<types::tls_inspector::TlsInspector>() {
                inspect.tls = true;
                listener.tls_uninspected = disabled;
            } else if config.is::<types::http_inspector::HttpInspector>() {
                inspect.http = true;
                listener.http_uninspected = disabled;
            } else if config.is::<types::original_dst::OriginalDst>() {
                if disabled != Ports::None {
                    return Err(Invalid::new("filter_disabled", "is for inspectors only"));
                }
                listener.original_dst_filter = true;
            } else {
                return Err(unsupported_extension(config)).at("typed_config");
            }
            Ok(())
        };
        apply().at_index("listener_filters", index)?;
    }
    // Envoy adds the inspector by itself where a chain could not be matched without it.
    let needs_tls = |chain: &Arc<FilterChain>| match chain.matches.transport {
        Some(transport) => transport == TransportProtocol::Tls,
        None => !chain.matches.server_names.is_empty() || !chain.matches.application_protocols.is_empty(),
    };
    inspect.tls |= listener.chains_by_server_name || listener.chains.iter().any(needs_tls);
    *inspect = Inspect {
        timeout: switch(
            "listener_filters_timeout",
            message.listener_filters_timeout.as_ref(),
            Some(Duration::from_secs(15)),
        )?,
        continue_on_timeout: message.continue_on_listener_filters_timeout,
        ..inspect.clone()
    };
    Ok(())
}

/// Deepest nesting of conditions.
const MAX_DEPTH: u32 = 8;

/// The destination ports that a predicate means. A bounded depth: messages come from afar.
fn ports(predicate: &xds::ListenerFilterChainMatchPredicate, depth: u32) -> Result<Ports, Invalid> {
    use xds::listener_filter_chain_match_predicate::{MatchSet, Rule};
    if depth > MAX_DEPTH {
        return Err(Invalid::new("", format!("is nested more than {MAX_DEPTH} deep")));
    }
    let all_of = |field, set: &MatchSet| -> Result<Vec<Ports>, Invalid> {
        let one = |(index, rule)| ports(rule, depth + 1).at_index("rules", index).at(field);
        set.rules.iter().enumerate().map(one).collect()
    };
    Ok(match required("rule", predicate.rule.as_ref())? {
        Rule::OrMatch(set) => Ports::AnyOf(all_of("or_match", set)?),
        Rule::AndMatch(set) => Ports::AllOf(all_of("and_match", set)?),
        Rule::NotMatch(inner) => Ports::Not(Box::new(ports(inner, depth + 1).at("not_match")?)),
        Rule::AnyMatch(true) => Ports::All,
        Rule::AnyMatch(false) => return Err(Invalid::new("any_match", "must be true")),
        Rule::DestinationPortRange(range) => {
            let within = |port: i32| u16::try_from(port).ok();
            // Half open, so that 65536 is a valid end.
            match (within(range.start), within(range.end.saturating_sub(1))) {
                (Some(first), Some(last)) if first <= last => Ports::Range(first, last),
                _ => {
                    let reason = format!("[{}, {}) is no range of ports", range.start, range.end);
                    return Err(Invalid::new("destination_port_range", reason));
                }
            }
        }
    })
}

fn chains(message: &xds::Listener, refs: &mut Collector<'_>) -> Result<Vec<Arc<FilterChain>>, Invalid> {
    let compile = |(index, chain)| filter_chain(chain, refs).at_index("filter_chains", index).map(Arc::new);
    message.filter_chains.iter().enumerate().map(compile).collect()
}

fn matcher(chains: &[Arc<FilterChain>]) -> Result<ChainMatcher, Invalid> {
    ChainMatcher::new(chains.iter().map(|c| &c.matches)).map_err(|overlap| {
        let field = format!("filter_chains[{}].filter_chain_match", overlap.second);
        let first = &chains[overlap.first];
        Invalid::new(
            field,
            format!("is the same as that of filter_chains[{}] `{}`", overlap.first, first.name),
        )
    })
}

fn filter_chain(message: &xds::FilterChain, refs: &mut Collector<'_>) -> Result<FilterChain, Invalid> {
    let transport = tls::downstream("transport_socket", message.transport_socket.as_ref(), refs)?;
    Ok(FilterChain {
        name: message.name.as_str().into(),
        matches: match &message.filter_chain_match {
            Some(matches) => chain_match(matches).at("filter_chain_match")?,
            None => ChainMatch::default(),
        },
        transport,
        action: network_filters(&message.filters, refs)?,
    })
}

fn chain_match(message: &xds::FilterChainMatch) -> Result<ChainMatch, Invalid> {
    let port = |field: &str, value: u32| bounded(field, Some(value), 1..=u32::from(u16::MAX));
    let destination_port = match message.destination_port {
        Some(value) => port("destination_port", value)?.map(|p| p as u16),
        None => None,
    };
    let mut source_ports = Vec::with_capacity(message.source_ports.len());
    for (index, value) in message.source_ports.iter().enumerate() {
        source_ports.extend(port(&format!("source_ports[{index}]"), *value)?.map(|p| p as u16));
    }
    Ok(ChainMatch {
        destination_port,
        prefix_ranges: ranges("prefix_ranges", &message.prefix_ranges)?,
        server_names: server_names(&message.server_names)?,
        transport: match message.transport_protocol.as_str() {
            "" => None,
            "tls" => Some(TransportProtocol::Tls),
            "raw_buffer" => Some(TransportProtocol::RawBuffer),
            other => return Err(Invalid::new("transport_protocol", format!("`{other}` is not supported"))),
        },
        application_protocols: message.application_protocols.iter().map(|p| p.as_str().into()).collect(),
        direct_source_ranges: ranges("direct_source_prefix_ranges", &message.direct_source_prefix_ranges)?,
        source_type: match enumeration("source_type", message.source_type)? {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            ConnectionSourceType::External => SourceType::External,
        },
        source_ranges: ranges("source_prefix_ranges", &message.source_prefix_ranges)?,
        source_ports,
    })
}

fn server_names(names: &[String]) -> Result<Vec<Arc<str>>, Invalid> {
    let check = |(index, name): (usize, &String)| {
        let rest = name.strip_prefix("*.").unwrap_or(name);
        if rest.is_empty() || rest.contains('*') {
            let reason = format!("`{name}`: a wildcard can only be the whole first label");
            return Err(Invalid::new(format!("server_names[{index}]"), reason));
        }
        Ok(name.to_ascii_lowercase().into())
    };
    names.iter().enumerate().map(check).collect()
}

/// The terminal filter is the action; what may come before it is known here.
fn network_filters(filters: &[xds::Filter], refs: &mut Collector<'_>) -> Result<NetworkAction, Invalid> {
    let mut before = Before::default();
    let mut action = None;
    for (index, filter) in filters.iter().enumerate() {
        let last = index + 1 == filters.len();
        action = network_filter(filter, last, &mut before, refs).at_index("filters", index)?;
    }
    let Some(action) = action else {
        return Err(Invalid::new(
            "filters",
            "the last filter must be an HTTP connection manager or TCP proxy",
        ));
    };
    match action {
        NetworkAction::Http(_) if before.cluster_from_sni => {
            Err(Invalid::new("filters", "the SNI can only name a cluster for a TCP proxy"))
        }
        NetworkAction::Http(_) if !before.authorization.is_empty() || !before.authorizers.is_empty() => Err(
            Invalid::new("filters", "RBAC and external authorizers of HTTP must be among the `http_filters`"),
        ),
        action => Ok(action),
    }
}

/// What the filters before the last one say.
#[derive(Default)]
struct Before {
    cluster_from_sni: bool,
    authorizers: Vec<Authorizer>,
    authorization: ext_authz::Shadows,
}

fn network_filter(
    filter: &xds::Filter,
    last: bool,
    before: &mut Before,
    refs: &mut Collector<'_>,
) -> Result<Option<NetworkAction>, Invalid> {
    not_empty("name", &filter.name)?;
    let FilterConfig::TypedConfig(config) = required("typed_config", filter.config_type.as_ref())?;
    if config.is::<types::sni_cluster::SniCluster>() {
        before.cluster_from_sni = true;
        return Ok(None);
    }
    if config.is::<types::network_rbac::Rbac>() {
        let message: types::network_rbac::Rbac = extension(config)?;
        let filter = rbac::network(&message, refs.context.counters).at("typed_config")?;
        before.authorization.push((filter, message.shadow_rules_stat_prefix.into()));
        return Ok(None);
    }
    if config.is::<types::network_ext_authz::ExtAuthz>() {
        let authorizer =
            ext_authz::network(&extension(config)?, &mut before.authorization, refs).at("typed_config")?;
        if !before.authorization.is_empty() {
            // Here authorizers are always asked first.
            return Err(Invalid::new("", "must come before RBAC that isn't its own"));
        }
        before.authorizers.push(authorizer);
        return Ok(None);
    }
    let action = if config.is::<types::http_connection_manager::HttpConnectionManager>() {
        NetworkAction::Http(Arc::new(http_manager::compile(&extension(config)?, refs).at("typed_config")?))
    } else if config.is::<tcp::TcpProxy>() {
        let proxy = tcp_proxy(&extension(config)?, before, refs).at("typed_config")?;
        NetworkAction::Tcp(Arc::new(proxy))
    } else {
        return Err(unsupported_extension(config)).at("typed_config");
    };
    if !last {
        return Err(Invalid::new("", format!("terminal filter `{}` must be the last", filter.name)));
    }
    Ok(Some(action))
}

fn tcp_proxy(
    message: &tcp::TcpProxy,
    before: &mut Before,
    refs: &mut Collector<'_>,
) -> Result<TcpProxy, Invalid> {
    use tcp::tcp_proxy::ClusterSpecifier;
    not_empty("stat_prefix", &message.stat_prefix)?;
    let clusters = match required("cluster", message.cluster_specifier.as_ref())? {
        ClusterSpecifier::Cluster(name) => WeightedClusters::single(refs.cluster("cluster", name, false)?),
        ClusterSpecifier::WeightedClusters(weighted) => {
            let mut entries = Vec::with_capacity(weighted.clusters.len());
            for (index, entry) in weighted.clusters.iter().enumerate() {
                let mut compile = || {
                    bounded("weight", Some(entry.weight), 1..=u32::MAX)?;
                    Ok(WeightedCluster {
                        cluster: refs.cluster("name", &entry.name, false)?,
                        weight: entry.weight,
                        headers: Arc::default(),
                        host_rewrite: None,
                    })
                };
                entries.push(compile().at_index("clusters", index).at("weighted_clusters")?);
            }
            weights(entries).at("weighted_clusters")?
        }
    };
    Ok(TcpProxy {
        stat_prefix: message.stat_prefix.as_str().into(),
        clusters,
        cluster_from_sni: before.cluster_from_sni,
        authorizers: std::mem::take(&mut before.authorizers).into(),
        authorization: std::mem::take(&mut before.authorization)
            .into_iter()
            .map(|(filter, _)| filter)
            .collect(),
        idle_timeout: switch("idle_timeout", message.idle_timeout.as_ref(), Some(Duration::from_secs(3600)))?,
        max_duration: positive(
            "max_downstream_connection_duration",
            message.max_downstream_connection_duration.as_ref(),
        )?,
        max_connect_attempts: bounded("max_connect_attempts", message.max_connect_attempts, 1..=u32::MAX)?
            .unwrap_or(1),
        access_log: access_log::compile("access_log", &message.access_log)?,
    })
}

/// Sums weights; entries with none are left out.
pub(super) fn weights(mut entries: Vec<WeightedCluster>) -> Result<WeightedClusters, Invalid> {
    entries.retain(|e| e.weight > 0);
    let total: u64 = entries.iter().map(|e| u64::from(e.weight)).sum();
    if !(1..=u64::from(u32::MAX)).contains(&total) {
        let reason = format!("weights must add up to 1 at least and 4294967295 at most, not {total}");
        return Err(Invalid::new("clusters", reason));
    }
    Ok(WeightedClusters { entries: entries.into(), total })
}
