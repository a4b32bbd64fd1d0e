//! HttpConnectionManager: how a chain serves HTTP.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use osier_proto::types::{
    self, core,
    http_connection_manager::{
        self as xds,
        http_connection_manager::{
            CodecType, ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
            ServerHeaderTransformation, StripPortMode,
        },
        http_filter::ConfigType as FilterConfig,
    },
};

use super::value::{
    aggregated, bounded, enumeration, extension, not_empty, positive, ranges, required, switch,
    unsupported_extension,
};
use super::{At, Invalid, access_log, ext_authz, jwt, rbac, refs::Collector, route};
use crate::config::listener::{
    CertificateDetails, Codec, EscapedSlashes, ForwardCertificate, Http1Options, Http2Options, HttpLimits,
    HttpManager, HttpTimeouts, Normalize, PeerMetadata, ServerHeader, StripPort,
};
use crate::ext_authz::Authorizer;
use crate::jwt::Authentication;

/// Name that Envoy writes into `server` unless told otherwise.
const DEFAULT_SERVER_NAME: &str = "envoy";

/// What becomes of `x-forwarded-client-cert`.
fn forward_certificate(message: &xds::HttpConnectionManager) -> Result<ForwardCertificate, Invalid> {
    let set = message.set_current_client_cert_details.unwrap_or_default();
    let details = CertificateDetails { subject: set.subject.unwrap_or_default(), uri: set.uri, dns: set.dns };
    let field = "forward_client_cert_details";
    Ok(match enumeration(field, message.forward_client_cert_details)? {
        ForwardClientCertDetails::Sanitize => ForwardCertificate::Remove,
        ForwardClientCertDetails::ForwardOnly => ForwardCertificate::KeepWhereProved,
        ForwardClientCertDetails::AppendForward => ForwardCertificate::Append(details),
        ForwardClientCertDetails::SanitizeSet => ForwardCertificate::Replace(details),
        ForwardClientCertDetails::AlwaysForwardOnly => ForwardCertificate::Keep,
    })
}

pub(super) fn compile(
    message: &xds::HttpConnectionManager,
    refs: &mut Collector<'_>,
) -> Result<HttpManager, Invalid> {
    not_empty("stat_prefix", &message.stat_prefix)?;
    request_id_extension(message)?;
    let filters = http_filters(message, refs)?;
    let (route_config_name, routes) = routes(message, refs)?;
    Ok(HttpManager {
        stat_prefix: message.stat_prefix.as_str().into(),
        codec: match enumeration("codec_type", message.codec_type)? {
            CodecType::Auto => Codec::Auto,
            CodecType::Http1 => Codec::Http1,
            CodecType::Http2 => Codec::Http2,
        },
        routes,
        route_config_name,
        server_header: server_header(message)?,
        forward_certificate: forward_certificate(message)?,
        generate_request_id: message.generate_request_id.unwrap_or(true),
        preserve_external_request_id: message.preserve_external_request_id,
        request_id_in_response: message.always_set_request_id_in_response,
        use_remote_address: message.use_remote_address.unwrap_or(false),
        skip_xff_append: message.skip_xff_append,
        xff_trusted_hops: message.xff_num_trusted_hops,
        internal_addresses: internal_addresses(message)?,
        via: Some(message.via.as_str()).filter(|v| !v.is_empty()).map(Into::into),
        strip_port: strip_port(message)?,
        normalize: Normalize {
            path: message.normalize_path.unwrap_or(false),
            merge_slashes: message.merge_slashes,
            escaped_slashes: escaped_slashes(message)?,
        },
        limits: limits(message)?,
        timeouts: timeouts(message)?,
        upgrades: upgrades(message)?,
        http1: match &message.http_protocol_options {
            Some(options) => http1_options(options).at("http_protocol_options")?,
            None => Http1Options::default(),
        },
        http2: match &message.http2_protocol_options {
            Some(options) => http2_options(options).at("http2_protocol_options")?,
            None => Http2Options::default(),
        },
        proxy_100_continue: message.proxy_100_continue,
        peer_metadata: filters.peer_metadata,
        explicit_proxy: filters.explicit_proxy,
        authorizers: filters.authorizers.into(),
        authentication: filters.authentication,
        authorization: filters.authorization.into_iter().map(|(filter, _)| filter).collect(),
        access_log: access_log::compile("access_log", &message.access_log)?,
    })
}

type Routes = (Option<Arc<str>>, Option<Arc<crate::config::route::RouteTable>>);

fn routes(message: &xds::HttpConnectionManager, refs: &mut Collector<'_>) -> Result<Routes, Invalid> {
    match required("route_specifier", message.route_specifier.as_ref())? {
        RouteSpecifier::Rds(rds) => {
            not_empty("rds.route_config_name", &rds.route_config_name)?;
            let fetch_timeout = aggregated("config_source", rds.config_source.as_ref()).at("rds")?;
            Ok((Some(refs.route_config(&rds.route_config_name, fetch_timeout)), None))
        }
        RouteSpecifier::RouteConfig(config) => {
            let table = route::inline(config, refs).at("route_config")?;
            Ok((None, Some(Arc::new(table))))
        }
    }
}

/// What the HTTP filters ask for, beside routing.
#[derive(Default)]
struct Filters {
    peer_metadata: PeerMetadata,
    explicit_proxy: bool,
    authorizers: Vec<Authorizer>,
    authentication: Option<Arc<Authentication>>,
    authorization: ext_authz::Shadows,
}

impl Filters {
    fn guard(&self) -> bool {
        !self.authorizers.is_empty() || self.authentication.is_some() || !self.authorization.is_empty()
    }
}

fn http_filters(message: &xds::HttpConnectionManager, refs: &mut Collector<'_>) -> Result<Filters, Invalid> {
    let filters = &message.http_filters;
    let mut found = Filters::default();
    let mut names = HashSet::new();
    let mut terminal = false;
    for (index, filter) in filters.iter().enumerate() {
        let last = index + 1 == filters.len();
        let is_terminal = http_filter(filter, &message.stat_prefix, &mut names, &mut found, refs)
            .at_index("http_filters", index)?;
        if is_terminal && !last {
            let reason = format!("the router `{}` must be the last filter", filter.name);
            return Err(Invalid::new("", reason)).at_index("http_filters", index);
        }
        terminal = is_terminal;
    }
    if !terminal {
        return Err(Invalid::new("http_filters", "the last filter must be the router"));
    }
    if found.explicit_proxy && found.guard() {
        // A CONNECT is handed over before anybody has looked at it.
        let reason = "an explicit proxy can't be guarded by RBAC, tokens or an external authorizer";
        return Err(Invalid::new("http_filters", reason));
    }
    Ok(found)
}

/// True for the router.
fn http_filter<'a>(
    filter: &'a xds::HttpFilter,
    stat_prefix: &str,
    names: &mut HashSet<&'a str>,
    found: &mut Filters,
    refs: &mut Collector<'_>,
) -> Result<bool, Invalid> {
    not_empty("name", &filter.name)?;
    let FilterConfig::TypedConfig(config) = required("typed_config", filter.config_type.as_ref())?;
    // Istio gives all its RBAC filters one name, which nothing refers to.
    if !names.insert(&filter.name) && !config.is::<types::http_rbac::Rbac>() {
        return Err(Invalid::new("name", format!("`{}` is there twice", filter.name)));
    }
    if config.is::<types::http_router::Router>() {
        return Ok(true);
    }
    if config.is::<types::peer_metadata::PeerMetadata>() {
        let config: types::peer_metadata::PeerMetadata = extension(config)?;
        found.peer_metadata = PeerMetadata { send: config.send, receive: config.receive };
    } else if config.is::<types::explicit_proxy::ExplicitProxy>() {
        found.explicit_proxy = true;
    } else if config.is::<types::http_rbac::Rbac>() {
        let message: types::http_rbac::Rbac = extension(config)?;
        let filter = rbac::http(&message, stat_prefix, refs.context.counters).at("typed_config")?;
        found.authorization.push((filter, message.shadow_rules_stat_prefix.into()));
    } else if config.is::<types::http_ext_authz::ExtAuthz>() {
        let message = extension(config)?;
        let authorizer =
            ext_authz::http(&message, stat_prefix, &mut found.authorization, refs).at("typed_config")?;
        if found.authentication.is_some() || !found.authorization.is_empty() {
            // Here authorizers are always asked first.
            return Err(Invalid::new("", "must come before `jwt_authn` and before RBAC that isn't its own"));
        }
        found.authorizers.push(authorizer);
    } else if config.is::<types::jwt_authn::JwtAuthentication>() {
        if found.authentication.is_some() {
            return Err(Invalid::new("", "tokens are verified once only"));
        }
        if found.authorization.iter().any(|(filter, _)| filter.looks_at_tokens()) {
            // Here tokens always come first, so that policies see their claims.
            return Err(Invalid::new("", "must come before RBAC that looks at claims"));
        }
        let counters = refs.context.counters;
        let filter = jwt::filter(&extension(config)?, stat_prefix, counters).at("typed_config")?;
        found.authentication = Some(Arc::new(filter));
    } else if !filter.is_optional {
        return Err(unsupported_extension(config)).at("typed_config");
    }
    Ok(false)
}

fn request_id_extension(message: &xds::HttpConnectionManager) -> Result<(), Invalid> {
    let Some(config) = message.request_id_extension.as_ref().and_then(|e| e.typed_config.as_ref()) else {
        return Ok(());
    };
    if config.is::<types::uuid_request_id::UuidRequestIdConfig>() {
        return Ok(());
    }
    Err(unsupported_extension(config)).at("typed_config").at("request_id_extension")
}

/// Peers whose requests are internal; without the field, none are (Envoy's default since 1.33).
fn internal_addresses(message: &xds::HttpConnectionManager) -> Result<Box<[IpNet]>, Invalid> {
    let Some(config) = &message.internal_address_config else { return Ok(Box::default()) };
    if config.unix_sockets {
        return Err(Invalid::new("unix_sockets", "is not supported")).at("internal_address_config");
    }
    Ok(ranges("cidr_ranges", &config.cidr_ranges).at("internal_address_config")?.into())
}

fn server_header(message: &xds::HttpConnectionManager) -> Result<ServerHeader, Invalid> {
    let name: Arc<str> = match message.server_name.as_str() {
        "" => DEFAULT_SERVER_NAME.into(),
        name => name.into(),
    };
    Ok(match enumeration("server_header_transformation", message.server_header_transformation)? {
        ServerHeaderTransformation::Overwrite => ServerHeader::Overwrite(name),
        ServerHeaderTransformation::AppendIfAbsent => ServerHeader::AppendIfAbsent(name),
        ServerHeaderTransformation::PassThrough => ServerHeader::PassThrough,
    })
}

fn strip_port(message: &xds::HttpConnectionManager) -> Result<StripPort, Invalid> {
    let any = matches!(message.strip_port_mode, Some(StripPortMode::StripAnyHostPort(true)));
    match (message.strip_matching_host_port, any) {
        (true, true) => Err(Invalid::new("strip_any_host_port", "excludes `strip_matching_host_port`")),
        (true, false) => Ok(StripPort::Matching),
        (false, true) => Ok(StripPort::Any),
        (false, false) => Ok(StripPort::No),
    }
}

fn escaped_slashes(message: &xds::HttpConnectionManager) -> Result<EscapedSlashes, Invalid> {
    let action = message.path_with_escaped_slashes_action;
    Ok(match enumeration("path_with_escaped_slashes_action", action)? {
        PathWithEscapedSlashesAction::ImplementationSpecificDefault
        | PathWithEscapedSlashesAction::KeepUnchanged => EscapedSlashes::Keep,
        PathWithEscapedSlashesAction::RejectRequest => EscapedSlashes::Reject,
        PathWithEscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::Redirect,
        PathWithEscapedSlashesAction::UnescapeAndForward => EscapedSlashes::Decode,
    })
}

fn limits(message: &xds::HttpConnectionManager) -> Result<HttpLimits, Invalid> {
    let mut limits = HttpLimits::default();
    if let Some(kib) = bounded("max_request_headers_kb", message.max_request_headers_kb, 1..=8192)? {
        limits.max_request_head_bytes = kib * 1024;
    }
    if let Some(shared) = &message.common_http_protocol_options {
        let count = bounded("max_headers_count", shared.max_headers_count, 1..=u32::MAX)
            .at("common_http_protocol_options")?;
        limits.max_request_headers = count.unwrap_or(limits.max_request_headers);
        limits.max_requests_per_connection = shared.max_requests_per_connection.filter(|n| *n != 0);
    }
    Ok(limits)
}

fn timeouts(message: &xds::HttpConnectionManager) -> Result<HttpTimeouts, Invalid> {
    let defaults = HttpTimeouts::default();
    let mut timeouts = HttpTimeouts {
        stream_idle: switch(
            "stream_idle_timeout",
            message.stream_idle_timeout.as_ref(),
            defaults.stream_idle,
        )?,
        request: switch("request_timeout", message.request_timeout.as_ref(), None)?,
        request_headers: switch("request_headers_timeout", message.request_headers_timeout.as_ref(), None)?,
        drain: fixed("drain_timeout", message.drain_timeout.as_ref(), defaults.drain)?,
        delayed_close: fixed(
            "delayed_close_timeout",
            message.delayed_close_timeout.as_ref(),
            defaults.delayed_close,
        )?,
        ..defaults
    };
    if let Some(shared) = &message.common_http_protocol_options {
        let mut apply = || {
            timeouts.idle = switch("idle_timeout", shared.idle_timeout.as_ref(), timeouts.idle)?;
            timeouts.max_connection_duration =
                switch("max_connection_duration", shared.max_connection_duration.as_ref(), None)?;
            timeouts.max_stream_duration =
                switch("max_stream_duration", shared.max_stream_duration.as_ref(), None)?;
            Ok(())
        };
        apply().at("common_http_protocol_options")?;
    }
    Ok(timeouts)
}

/// A duration where 0 means no time at all.
fn fixed(field: &str, value: Option<&prost_types::Duration>, default: Duration) -> Result<Duration, Invalid> {
    Ok(value.map(super::value::duration).transpose().at(field)?.unwrap_or(default))
}

fn upgrades(message: &xds::HttpConnectionManager) -> Result<Vec<Arc<str>>, Invalid> {
    let mut seen = HashSet::new();
    let mut enabled = Vec::new();
    for (index, config) in message.upgrade_configs.iter().enumerate() {
        let name = config.upgrade_type.to_ascii_lowercase();
        let check = || {
            not_empty("upgrade_type", &name)?;
            if seen.contains(&name) {
                return Err(Invalid::new("upgrade_type", format!("`{name}` is there twice")));
            }
            Ok(())
        };
        check().at_index("upgrade_configs", index)?;
        if config.enabled.unwrap_or(true) {
            enabled.push(name.as_str().into());
        }
        seen.insert(name);
    }
    Ok(enabled)
}

fn http1_options(options: &core::Http1ProtocolOptions) -> Result<Http1Options, Invalid> {
    Ok(Http1Options {
        accept_http_10: options.accept_http_10,
        default_host_for_http_10: Some(options.default_host_for_http_10.as_str())
            .filter(|h| !h.is_empty())
            .map(Into::into),
        enable_trailers: options.enable_trailers,
        preserve_header_case: header_case_kept(options)?,
        refuse_absolute_url: !options.allow_absolute_url.unwrap_or(true),
    })
}

/// True where header names are written as they came.
pub(super) fn header_case_kept(options: &core::Http1ProtocolOptions) -> Result<bool, Invalid> {
    use core::http1_protocol_options::header_key_format::HeaderFormat;
    let Some(format) = &options.header_key_format else { return Ok(false) };
    let HeaderFormat::StatefulFormatter(formatter) =
        required("header_key_format.stateful_formatter", format.header_format.as_ref())?;
    let path = "header_key_format.stateful_formatter";
    let config = required("typed_config", formatter.typed_config.as_ref()).at(path)?;
    if !config.is::<types::preserve_case::PreserveCaseFormatterConfig>() {
        return Err(unsupported_extension(config)).at("typed_config").at(path);
    }
    Ok(true)
}

pub(crate) fn http2_options(options: &core::Http2ProtocolOptions) -> Result<Http2Options, Invalid> {
    const MAX: u32 = i32::MAX as u32;
    let defaults = Http2Options::default();
    let keepalive = match &options.connection_keepalive {
        None => None,
        Some(settings) => keepalive(settings).at("connection_keepalive")?,
    };
    Ok(Http2Options {
        max_concurrent_streams: bounded("max_concurrent_streams", options.max_concurrent_streams, 1..=MAX)?
            .unwrap_or(defaults.max_concurrent_streams),
        initial_stream_window: bounded(
            "initial_stream_window_size",
            options.initial_stream_window_size,
            65_535..=MAX,
        )?
        .unwrap_or(defaults.initial_stream_window),
        initial_connection_window: bounded(
            "initial_connection_window_size",
            options.initial_connection_window_size,
            65_535..=MAX,
        )?
        .unwrap_or(defaults.initial_connection_window),
        allow_connect: options.allow_connect,
        keepalive,
    })
}

fn keepalive(settings: &core::KeepaliveSettings) -> Result<Option<(Duration, Duration)>, Invalid> {
    let interval = positive("interval", settings.interval.as_ref())?;
    let timeout = positive("timeout", settings.timeout.as_ref())?;
    let timeout = timeout.ok_or_else(|| Invalid::new("timeout", "is required"))?;
    Ok(interval.map(|interval| (interval, timeout)))
}
