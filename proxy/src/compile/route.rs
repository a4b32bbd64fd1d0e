//! RouteConfiguration (RDS, and inline) and VirtualHost (VHDS).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use osier_proto::Any;
use osier_proto::types::{
    core::{HeaderValueOption, data_source, header_value_option::HeaderAppendAction},
    route::{
        self as xds, redirect_action as redirect, route as entry,
        route_action::{
            self as forward, ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier,
        },
        route_match::PathSpecifier,
        weighted_cluster::cluster_weight,
    },
    value::fractional_percent::DenominatorType,
};
use prost::Message as _;

use super::value::{aggregated, duration, enumeration, not_empty, required, switch};
use super::{
    At, Context, Invalid, References, Rejected, content_hash, decode, jwt, listener::weights, matcher,
    refs::Collector, retry,
};
use crate::config::cluster::{WeightedCluster, WeightedClusters};
use crate::config::route::{
    Action, AppendAction, DirectResponse, Forward, ForwardTarget, HeaderAdd, HeaderName, HeaderOps,
    HostIndex, HostRewrite, PathMatch, PathRewrite, Redirect, RedirectPath, RequireTls, RetryPolicy, Route,
    RouteMatch, RouteTable, VirtualHost, VirtualHosts,
};
use crate::http::template::Template;

/// Envoy's limit of a fixed answer's body.
const MAX_DIRECT_BODY: u32 = 4096;
/// The same for virtual hosts that come by themselves, where no configuration could say otherwise.
const MAX_DIRECT_BODY_ON_DEMAND: u32 = 1 << 20;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// A validated RouteConfiguration and what it names.
#[derive(Debug)]
pub struct CompiledRoutes {
    /// The table.
    pub table: Arc<RouteTable>,
    /// What it names.
    pub references: References,
}

/// A validated VirtualHost that came on its own, and what it names.
#[derive(Debug)]
pub struct CompiledVirtualHost {
    /// The virtual host.
    pub host: Arc<VirtualHost>,
    /// What it names.
    pub references: References,
    /// Content hash of the resource.
    pub hash: u64,
}

/// Compiles an RDS resource.
pub fn compile(name: &str, any: &Any, context: Context<'_>) -> Result<CompiledRoutes, Rejected> {
    let compiled = || {
        let message: xds::RouteConfiguration = decode(any)?;
        if message.name != name {
            let reason = format!("is `{}`, but the resource is `{name}`", message.name);
            return Err(Invalid::new("name", reason));
        }
        let mut refs = Collector::new(context);
        let table =
            table(&message, content_hash(any), message.validate_clusters.unwrap_or(false), &mut refs)?;
        Ok(CompiledRoutes { table: Arc::new(table), references: refs.found })
    };
    compiled().map_err(|e| e.in_resource(name))
}

/// Compiles a VHDS resource. Its `domains` decide nothing here: the control plane chose it for the host in the resource's name.
pub fn compile_virtual_host(
    name: &str,
    any: &Any,
    context: Context<'_>,
) -> Result<CompiledVirtualHost, Rejected> {
    let compiled = || -> Result<_, Invalid> {
        let message: xds::VirtualHost = decode(any)?;
        let mut refs = Collector::new(context);
        let mut scope =
            Scope { refs: &mut refs, clusters_must_exist: false, max_direct_body: MAX_DIRECT_BODY_ON_DEMAND };
        let host = virtual_host(&message, &mut scope)?;
        Ok(CompiledVirtualHost { host: Arc::new(host), references: refs.found, hash: content_hash(any) })
    };
    compiled().map_err(|e| e.in_resource(name))
}

/// Compiles a table inside an HTTP connection manager.
pub(super) fn inline(
    message: &xds::RouteConfiguration,
    refs: &mut Collector<'_>,
) -> Result<RouteTable, Invalid> {
    if message.vhds.is_some() {
        return Err(Invalid::new("vhds", "is not possible in an inline table"));
    }
    let hash = xxhash_rust::xxh3::xxh3_64(&message.encode_to_vec());
    table(message, hash, message.validate_clusters.unwrap_or(true), refs)
}

/// What routes are compiled with.
struct Scope<'a, 'b> {
    refs: &'a mut Collector<'b>,
    clusters_must_exist: bool,
    /// Longest body of a direct response.
    max_direct_body: u32,
}

fn table(
    message: &xds::RouteConfiguration,
    hash: u64,
    clusters_must_exist: bool,
    refs: &mut Collector<'_>,
) -> Result<RouteTable, Invalid> {
    let headers = header_ops(
        &message.request_headers_to_add,
        &message.request_headers_to_remove,
        &message.response_headers_to_add,
        &message.response_headers_to_remove,
    )?;
    let hosts = match &message.vhds {
        Some(vhds) => on_demand(message, vhds, refs)?,
        None => {
            let max_direct_body = message.max_direct_response_body_size_bytes.unwrap_or(MAX_DIRECT_BODY);
            let mut scope = Scope { refs, clusters_must_exist, max_direct_body };
            VirtualHosts::Known(host_index(message, &mut scope)?)
        }
    };
    Ok(RouteTable {
        name: message.name.as_str().into(),
        hosts,
        ignore_port_in_host: message.ignore_port_in_host_matching,
        headers,
        most_specific_wins: message.most_specific_header_mutations_wins,
        hash,
    })
}

fn on_demand(
    message: &xds::RouteConfiguration,
    vhds: &xds::Vhds,
    refs: &mut Collector<'_>,
) -> Result<VirtualHosts, Invalid> {
    aggregated("config_source", vhds.config_source.as_ref()).at("vhds")?;
    if !message.virtual_hosts.is_empty() {
        return Err(Invalid::new("virtual_hosts", "must be empty where `vhds` is set"));
    }
    not_empty("name", &message.name)?;
    match refs.context.on_demand {
        Some(tables) => Ok(VirtualHosts::OnDemand(tables.hosts(&message.name))),
        None => Err(Invalid::new("vhds", "needs a control plane that confirms `osier.on_demand`")),
    }
}

fn host_index(message: &xds::RouteConfiguration, scope: &mut Scope<'_, '_>) -> Result<HostIndex, Invalid> {
    let mut index = HostIndex::default();
    let mut names = HashSet::new();
    for (at, host) in message.virtual_hosts.iter().enumerate() {
        let mut add = || {
            if !names.insert(host.name.as_str()) {
                return Err(Invalid::new("name", format!("`{}` is there twice", host.name)));
            }
            if host.domains.is_empty() {
                return Err(Invalid::new("domains", "needs at least one"));
            }
            let compiled = Arc::new(virtual_host(host, scope)?);
            for (at, domain) in host.domains.iter().enumerate() {
                add_domain(&mut index, domain, &compiled).at_index("domains", at)?;
            }
            Ok(())
        };
        add().at_index("virtual_hosts", at)?;
    }
    Ok(index)
}

fn add_domain(index: &mut HostIndex, domain: &str, host: &Arc<VirtualHost>) -> Result<(), Invalid> {
    let stars = domain.matches('*').count();
    let at_one_end = domain.starts_with('*') || domain.ends_with('*');
    if domain.is_empty() || stars > 1 || (stars == 1 && !at_one_end) {
        return Err(Invalid::new("", format!("`{domain}`: a wildcard can only be at one end")));
    }
    if !index.insert(domain, host) {
        return Err(Invalid::new("", format!("`{domain}` belongs to another virtual host already")));
    }
    Ok(())
}

fn virtual_host(message: &xds::VirtualHost, scope: &mut Scope<'_, '_>) -> Result<VirtualHost, Invalid> {
    use xds::virtual_host::TlsRequirementType;
    not_empty("name", &message.name)?;
    let inherited = match &message.retry_policy {
        Some(policy) => Some(Arc::new(retry::compile(policy).at("retry_policy")?)),
        None => None,
    };
    let mut routes = Vec::with_capacity(message.routes.len());
    for (index, message) in message.routes.iter().enumerate() {
        routes.push(Arc::new(route(message, inherited.as_ref(), scope).at_index("routes", index)?));
    }
    Ok(VirtualHost {
        name: message.name.as_str().into(),
        routes,
        headers: header_ops(
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
        )?,
        require_tls: match enumeration("require_tls", message.require_tls)? {
            TlsRequirementType::None => RequireTls::None,
            TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            TlsRequirementType::All => RequireTls::All,
        },
        attempt_count_in_request: message.include_request_attempt_count,
        attempt_count_in_response: message.include_attempt_count_in_response,
    })
}

fn route(
    message: &xds::Route,
    inherited: Option<&Arc<RetryPolicy>>,
    scope: &mut Scope<'_, '_>,
) -> Result<Route, Invalid> {
    let action = match required("action", message.action.as_ref())? {
        entry::Action::Route(action) => {
            Action::Forward(Box::new(forward_action(action, inherited, scope).at("route")?))
        }
        entry::Action::Redirect(action) => {
            Action::Redirect(Box::new(redirect_action(action).at("redirect")?))
        }
        entry::Action::DirectResponse(action) => {
            Action::Direct(direct_response(action, scope.max_direct_body).at("direct_response")?)
        }
        entry::Action::NonForwardingAction(_) => Action::NonForwarding,
    };
    let decorator = match &message.decorator {
        None => None,
        Some(decorator) => {
            not_empty("decorator.operation", &decorator.operation)?;
            Some(decorator.operation.as_str().into())
        }
    };
    Ok(Route {
        name: message.name.as_str().into(),
        matches: route_match(required("match", message.r#match.as_ref())?).at("match")?,
        action,
        headers: header_ops(
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
        )?,
        decorator,
    })
}

pub(super) fn route_match(message: &xds::RouteMatch) -> Result<RouteMatch, Invalid> {
    let mut headers = Vec::with_capacity(message.headers.len());
    for (index, header) in message.headers.iter().enumerate() {
        headers.push(matcher::header(header).at_index("headers", index)?);
    }
    let mut query = Vec::with_capacity(message.query_parameters.len());
    for (index, parameter) in message.query_parameters.iter().enumerate() {
        query.push(matcher::query(parameter).at_index("query_parameters", index)?);
    }
    let mut claims = Vec::with_capacity(message.dynamic_metadata.len());
    for (index, claim) in message.dynamic_metadata.iter().enumerate() {
        claims.push(jwt::claim(claim).at_index("dynamic_metadata", index)?);
    }
    Ok(RouteMatch {
        path: path_match(message)?,
        headers,
        query,
        runtime_fraction: match &message.runtime_fraction {
            None => None,
            Some(fraction) => {
                let share = required("default_value", fraction.default_value.as_ref());
                Some(parts_per_million(share.at("runtime_fraction")?).at("runtime_fraction.default_value")?)
            }
        },
        grpc: message.grpc.is_some(),
        claims,
    })
}

fn path_match(message: &xds::RouteMatch) -> Result<PathMatch, Invalid> {
    let ignore_case = !message.case_sensitive.unwrap_or(true);
    Ok(match required("path_specifier", message.path_specifier.as_ref())? {
        PathSpecifier::Prefix(prefix) => PathMatch::Prefix(matcher::text(prefix, ignore_case)),
        PathSpecifier::Path(path) => PathMatch::Exact(matcher::text(path, ignore_case)),
        PathSpecifier::SafeRegex(regex) => PathMatch::Regex(matcher::whole(regex).at("safe_regex")?),
        PathSpecifier::ConnectMatcher(_) => PathMatch::Connect,
        PathSpecifier::PathSeparatedPrefix(prefix) => {
            if prefix.len() < 2 || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                let reason = format!("`{prefix}` must not be `/`, end with `/`, or contain `?` or `#`");
                return Err(Invalid::new("path_separated_prefix", reason));
            }
            PathMatch::SegmentPrefix(matcher::text(prefix, ignore_case))
        }
    })
}

fn parts_per_million(share: &osier_proto::types::value::FractionalPercent) -> Result<u32, Invalid> {
    let factor: u32 = match enumeration("denominator", share.denominator)? {
        DenominatorType::Hundred => 10_000,
        DenominatorType::TenThousand => 100,
        DenominatorType::Million => 1,
    };
    Ok(share.numerator.saturating_mul(factor).min(1_000_000))
}

fn forward_action(
    message: &xds::RouteAction,
    inherited: Option<&Arc<RetryPolicy>>,
    scope: &mut Scope<'_, '_>,
) -> Result<Forward, Invalid> {
    let must_exist = scope.clusters_must_exist;
    let target = match required("cluster_specifier", message.cluster_specifier.as_ref())? {
        ClusterSpecifier::Cluster(name) => {
            ForwardTarget::Cluster(scope.refs.cluster("cluster", name, must_exist)?)
        }
        ClusterSpecifier::ClusterHeader(name) => {
            ForwardTarget::Header(header_name("cluster_header", name, Pseudo::Allowed)?)
        }
        ClusterSpecifier::WeightedClusters(weighted) => {
            ForwardTarget::Weighted(weighted_clusters(weighted, scope).at("weighted_clusters")?)
        }
    };
    let (max_stream_duration, grpc_timeout_max) =
        stream_limits(message.max_stream_duration.as_ref()).at("max_stream_duration")?;
    Ok(Forward {
        target,
        rewrite: path_rewrite(message)?,
        host_rewrite: host_rewrite(message)?,
        append_x_forwarded_host: message.append_x_forwarded_host,
        timeout: switch("timeout", message.timeout.as_ref(), Some(DEFAULT_TIMEOUT))?,
        idle_timeout: match &message.idle_timeout {
            None => None,
            given => Some(switch("idle_timeout", given.as_ref(), None)?),
        },
        grpc_timeout_max,
        max_stream_duration,
        retry: match &message.retry_policy {
            Some(policy) => Some(Arc::new(retry::compile(policy).at("retry_policy")?)),
            None => inherited.cloned(),
        },
        upgrades: upgrades(&message.upgrade_configs)?,
        cluster_not_found_status: match enumeration(
            "cluster_not_found_response_code",
            message.cluster_not_found_response_code,
        )? {
            ClusterNotFoundResponseCode::ServiceUnavailable => 503,
            ClusterNotFoundResponseCode::NotFound => 404,
            ClusterNotFoundResponseCode::InternalServerError => 500,
        },
    })
}

fn weighted_clusters(
    message: &xds::WeightedCluster,
    scope: &mut Scope<'_, '_>,
) -> Result<WeightedClusters, Invalid> {
    let mut entries = Vec::with_capacity(message.clusters.len());
    for (index, cluster) in message.clusters.iter().enumerate() {
        entries.push(weighted_cluster(cluster, scope).at_index("clusters", index)?);
    }
    let compiled = weights(entries)?;
    if message.total_weight.is_some_and(|total| u64::from(total) != compiled.total) {
        return Err(Invalid::new("total_weight", format!("weights add up to {}", compiled.total)));
    }
    Ok(compiled)
}

fn weighted_cluster(
    message: &xds::weighted_cluster::ClusterWeight,
    scope: &mut Scope<'_, '_>,
) -> Result<WeightedCluster, Invalid> {
    let headers = header_ops(
        &message.request_headers_to_add,
        &message.request_headers_to_remove,
        &message.response_headers_to_add,
        &message.response_headers_to_remove,
    )?;
    Ok(WeightedCluster {
        cluster: scope.refs.cluster("name", &message.name, scope.clusters_must_exist)?,
        weight: message.weight.ok_or_else(|| Invalid::new("weight", "is required"))?,
        headers: Arc::new(headers),
        host_rewrite: message.host_rewrite_specifier.as_ref().map(|r| match r {
            cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host) => host.as_str().into(),
        }),
    })
}

fn path_rewrite(message: &xds::RouteAction) -> Result<PathRewrite, Invalid> {
    match (message.prefix_rewrite.as_str(), &message.regex_rewrite) {
        ("", None) => Ok(PathRewrite::Keep),
        (prefix, None) => Ok(PathRewrite::Prefix(header_safe("prefix_rewrite", prefix)?)),
        ("", Some(rewrite)) => {
            matcher::rewrite(rewrite).at("regex_rewrite").map(|(regex, by)| PathRewrite::Regex(regex, by))
        }
        _ => Err(Invalid::new("regex_rewrite", "excludes `prefix_rewrite`")),
    }
}

fn host_rewrite(message: &xds::RouteAction) -> Result<HostRewrite, Invalid> {
    Ok(match &message.host_rewrite_specifier {
        None | Some(HostRewriteSpecifier::AutoHostRewrite(false)) => HostRewrite::Keep,
        Some(HostRewriteSpecifier::AutoHostRewrite(true)) => HostRewrite::Auto,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            header_safe("host_rewrite_literal", host)?;
            HostRewrite::Literal(host.as_str().into())
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            HostRewrite::Header(header_name("host_rewrite_header", name, Pseudo::Allowed)?)
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(rewrite)) => {
            let (regex, by) = matcher::rewrite(rewrite).at("host_rewrite_path_regex")?;
            HostRewrite::PathRegex(regex, by)
        }
    })
}

type StreamLimits = (Option<Duration>, Option<Option<Duration>>);

fn stream_limits(message: Option<&forward::MaxStreamDuration>) -> Result<StreamLimits, Invalid> {
    let Some(message) = message else { return Ok((None, None)) };
    let max = switch("max_stream_duration", message.max_stream_duration.as_ref(), None)?;
    let grpc = match &message.grpc_timeout_header_max {
        None => None,
        Some(value) => {
            Some(duration(value).at("grpc_timeout_header_max").map(|d| (!d.is_zero()).then_some(d))?)
        }
    };
    Ok((max, grpc))
}

fn upgrades(configs: &[forward::UpgradeConfig]) -> Result<Vec<(Arc<str>, bool)>, Invalid> {
    let mut found: Vec<(Arc<str>, bool)> = Vec::with_capacity(configs.len());
    for (index, config) in configs.iter().enumerate() {
        let name = config.upgrade_type.to_ascii_lowercase();
        let field = format!("upgrade_configs[{index}].upgrade_type");
        not_empty(&field, &name)?;
        if found.iter().any(|(other, _)| **other == *name) {
            return Err(Invalid::new(field, format!("`{name}` is there twice")));
        }
        found.push((name.into(), config.enabled.unwrap_or(true)));
    }
    Ok(found)
}

fn redirect_action(message: &xds::RedirectAction) -> Result<Redirect, Invalid> {
    use redirect::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let given = |text: &str| Some(text).filter(|t| !t.is_empty()).map(Into::into);
    Ok(Redirect {
        status: match enumeration("response_code", message.response_code)? {
            RedirectResponseCode::MovedPermanently => 301,
            RedirectResponseCode::Found => 302,
            RedirectResponseCode::SeeOther => 303,
            RedirectResponseCode::TemporaryRedirect => 307,
            RedirectResponseCode::PermanentRedirect => 308,
        },
        scheme: match &message.scheme_rewrite_specifier {
            None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => {
                header_safe("scheme_redirect", scheme)?;
                given(scheme)
            }
        },
        host: header_safe("host_redirect", &message.host_redirect).map(|_| given(&message.host_redirect))?,
        port: match message.port_redirect {
            0 => None,
            port => Some(
                u16::try_from(port)
                    .map_err(|_| Invalid::new("port_redirect", format!("{port} is not a port")))?,
            ),
        },
        path: match &message.path_rewrite_specifier {
            None => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PathRedirect(path)) if path.is_empty() => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PathRedirect(path)) => {
                RedirectPath::Replace(header_safe("path_redirect", path)?)
            }
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
                RedirectPath::Prefix(header_safe("prefix_rewrite", prefix)?)
            }
            Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
                let (regex, by) = matcher::rewrite(rewrite).at("regex_rewrite")?;
                RedirectPath::Regex(regex, by)
            }
        },
        strip_query: message.strip_query,
    })
}

fn direct_response(message: &xds::DirectResponseAction, longest: u32) -> Result<DirectResponse, Invalid> {
    let status = match u16::try_from(message.status) {
        Ok(status @ 200..=599) => status,
        _ => return Err(Invalid::new("status", format!("{} is not between 200 and 599", message.status))),
    };
    let body = match message.body.as_ref().and_then(|b| b.specifier.as_ref()) {
        None => Bytes::new(),
        Some(data_source::Specifier::InlineString(text)) => Bytes::copy_from_slice(text.as_bytes()),
        Some(data_source::Specifier::InlineBytes(bytes)) => Bytes::copy_from_slice(bytes),
        Some(data_source::Specifier::Filename(_)) => {
            return Err(Invalid::new("body.filename", "is not supported: write the body inline"));
        }
    };
    if body.len() > longest as usize {
        let reason = format!("has {} bytes, {longest} are allowed", body.len());
        return Err(Invalid::new("body", reason));
    }
    Ok(DirectResponse { status, body })
}

fn header_ops(
    request_add: &[HeaderValueOption],
    request_remove: &[String],
    response_add: &[HeaderValueOption],
    response_remove: &[String],
) -> Result<HeaderOps, Invalid> {
    Ok(HeaderOps {
        request_remove: removals("request_headers_to_remove", request_remove)?,
        request_add: additions("request_headers_to_add", request_add)?,
        response_remove: removals("response_headers_to_remove", response_remove)?,
        response_add: additions("response_headers_to_add", response_add)?,
    })
}

fn removals(field: &str, names: &[String]) -> Result<Box<[HeaderName]>, Invalid> {
    let name =
        |(index, name): (usize, &String)| header_name("", name, Pseudo::Refused).at_index(field, index);
    names.iter().enumerate().map(name).collect()
}

fn additions(field: &str, options: &[HeaderValueOption]) -> Result<Box<[HeaderAdd]>, Invalid> {
    let add = |(index, option): (usize, &HeaderValueOption)| addition(option).at_index(field, index);
    options.iter().enumerate().map(add).collect()
}

fn addition(option: &HeaderValueOption) -> Result<HeaderAdd, Invalid> {
    let header = required("header", option.header.as_ref())?;
    let declared = enumeration("append_action", option.append_action)?;
    let action = match (option.append, declared) {
        (None | Some(true), HeaderAppendAction::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
        (Some(false), HeaderAppendAction::AppendIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
        (Some(_), _) => return Err(Invalid::new("append", "excludes `append_action`")),
        (None, HeaderAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
        (None, HeaderAppendAction::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
        (None, HeaderAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
    };
    header_safe("header.value", &header.value)?;
    if !header.raw_value.is_empty() {
        return Err(Invalid::new("header.raw_value", "is not supported: use `value`"));
    }
    Ok(HeaderAdd {
        name: header_name("header.key", &header.key, Pseudo::Refused)?,
        value: Template::parse(&header.value).map_err(|e| Invalid::new("header.value", e))?,
        action,
        keep_empty: option.keep_empty_value,
    })
}

#[derive(PartialEq)]
pub(super) enum Pseudo {
    Allowed,
    Refused,
}

pub(super) fn header_name(field: &str, name: &str, pseudo: Pseudo) -> Result<HeaderName, Invalid> {
    let (colon, rest) = match name.strip_prefix(':') {
        Some(rest) => (true, rest),
        None => (false, name),
    };
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if rest.is_empty() || !rest.bytes().all(token) {
        return Err(Invalid::new(field, format!("`{name}` is not a header name")));
    }
    if pseudo == Pseudo::Refused && (colon || name.eq_ignore_ascii_case("host")) {
        return Err(Invalid::new(field, format!("`{name}` cannot be changed here")));
    }
    Ok(name.into())
}

/// Text that ends up in a head: no control characters.
fn header_safe(field: &str, text: &str) -> Result<Box<[u8]>, Invalid> {
    if text.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
        return Err(Invalid::new(field, "must not contain control characters"));
    }
    Ok(text.as_bytes().into())
}
