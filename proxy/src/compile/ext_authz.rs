//! External authorizers, of HTTP connection managers and of chains.
//!
//! A filter that is enabled by what an RBAC filter has left behind takes that filter's rules with it, as its [`Mark`]: so nothing of
//! one request has to be kept for the next filter.

use std::time::Duration;

use osier_proto::types::{
    core::{self, http_uri::HttpUpstreamType},
    http_ext_authz::{self as xds, ext_authz::Services},
    matcher::{self as messages, metadata_matcher::path_segment::Segment, value_matcher::MatchPattern},
    network_ext_authz,
};

use super::refs::Collector;
use super::value::{not_empty, required};
use super::{At, Invalid, matcher, route};
use crate::authz::Filter;
use crate::authz::counters::Place;
use crate::config::route::{HeaderName, ValueMatch};
use crate::ext_authz::{Authorizer, BodyRule, Form, GrpcForm, HttpForm, Mark, Patterns};
use crate::http::template::Template;

/// Key under which an RBAC filter leaves the name of the shadow rule that matched, after its prefix.
const SHADOW_POLICY: &str = "shadow_effective_policy_id";
/// Envoy's limit where none is given.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);
/// Envoy's status without an answer.
const FORBIDDEN: u16 = 403;
/// Headers of a denial that a client always gets.
const ALWAYS_TO_CLIENT: [&str; 4] = ["content-length", "location", "path", "www-authenticate"];

/// RBAC filters that have been read and that nothing has asked yet, with the prefixes of what their shadows leave.
pub(super) type Shadows = Vec<(Filter, Box<str>)>;

/// A filter of an HTTP connection manager.
pub(super) fn http(
    message: &xds::ExtAuthz,
    stat_prefix: &str,
    shadows: &mut Shadows,
    refs: &mut Collector<'_>,
) -> Result<Authorizer, Invalid> {
    version(message.transport_api_version)?;
    let body = message.with_request_body.as_ref();
    let (form, cluster, limit) = match required("services", message.services.as_ref())? {
        Services::HttpService(service) => http_service(message, service).at("http_service")?,
        Services::GrpcService(service) => {
            let (authority, cluster, limit) = grpc_service(service).at("grpc_service")?;
            let shown = match &message.allowed_headers {
                None => Patterns::All,
                Some(list) => patterns(list).at("allowed_headers")?,
            };
            let body_as_bytes = body.is_some_and(|body| body.pack_as_bytes);
            (Form::Grpc(GrpcForm { authority, shown, body_as_bytes }), cluster, limit)
        }
    };
    let status = message.status_on_error.as_ref().map_or(0, |status| status.code);
    Ok(Authorizer {
        cluster: refs.cluster("cluster", cluster, false)?,
        form,
        timeout: limit,
        body: body.map(body_rule).transpose().at("with_request_body")?,
        fails_open: message.failure_mode_allow,
        tells_fail_open: message.failure_mode_allow_header_add,
        status_on_error: status_code("status_on_error", status)?,
        routes_anew: message.clear_route_cache,
        mark: mark(message.filter_enabled_metadata.as_ref(), "envoy.filters.http.rbac", shadows)?,
        answers: refs.context.counters.answers(Place::ext_authz(stat_prefix, &message.stat_prefix)),
    })
}

/// A filter of a chain.
pub(super) fn network(
    message: &network_ext_authz::ExtAuthz,
    shadows: &mut Shadows,
    refs: &mut Collector<'_>,
) -> Result<Authorizer, Invalid> {
    not_empty("stat_prefix", &message.stat_prefix)?;
    version(message.transport_api_version)?;
    let service = required("grpc_service", message.grpc_service.as_ref())?;
    let (authority, cluster, timeout) = grpc_service(service).at("grpc_service")?;
    Ok(Authorizer {
        cluster: refs.cluster("grpc_service.envoy_grpc.cluster_name", cluster, false)?,
        form: Form::Grpc(GrpcForm { authority, shown: Patterns::All, body_as_bytes: false }),
        timeout,
        body: None,
        fails_open: message.failure_mode_allow,
        tells_fail_open: false,
        status_on_error: FORBIDDEN,
        routes_anew: false,
        mark: mark(message.filter_enabled_metadata.as_ref(), "envoy.filters.network.rbac", shadows)?,
        answers: refs.context.counters.answers(Place::network_ext_authz(&message.stat_prefix)),
    })
}

fn version(version: i32) -> Result<(), Invalid> {
    match version {
        version if version == core::ApiVersion::V3 as i32 => Ok(()),
        _ => Err(Invalid::new("transport_api_version", "must be V3")),
    }
}

/// A status that an answer may have; 0 is the default.
fn status_code(field: &str, code: i32) -> Result<u16, Invalid> {
    match u16::try_from(code) {
        Ok(0) => Ok(FORBIDDEN),
        Ok(code) if (200..600).contains(&code) => Ok(code),
        _ => Err(Invalid::new(field, format!("{code} is no status of an answer"))),
    }
}

fn body_rule(message: &xds::BufferSettings) -> Result<BodyRule, Invalid> {
    match message.max_request_bytes {
        0 => Err(Invalid::new("max_request_bytes", "must be greater than 0")),
        most => Ok(BodyRule { most: most as usize, partial: message.allow_partial_message }),
    }
}

/// A limit, where 0 switches it off.
fn timeout(value: Option<&prost_types::Duration>) -> Result<Option<Duration>, Invalid> {
    super::value::switch("timeout", value, Some(DEFAULT_TIMEOUT))
}

type Service<'m> = (Form, &'m str, Option<Duration>);

fn http_service<'m>(
    message: &'m xds::ExtAuthz,
    service: &'m xds::HttpService,
) -> Result<Service<'m>, Invalid> {
    let server = required("server_uri", service.server_uri.as_ref())?;
    let HttpUpstreamType::Cluster(cluster) =
        required("cluster", server.http_upstream_type.as_ref()).at("server_uri")?;
    // Here Envoy demands a limit.
    required("timeout", server.timeout.as_ref()).at("server_uri")?;
    let prefix = &service.path_prefix;
    if !prefix.is_empty() && !prefix.starts_with('/') {
        return Err(Invalid::new("path_prefix", "must begin with `/`"));
    }
    let request = service.authorization_request.as_ref();
    let older = request.and_then(|request| request.allowed_headers.as_ref());
    let shown = match (&message.allowed_headers, older) {
        (Some(_), Some(_)) => {
            let field = "authorization_request.allowed_headers";
            return Err(Invalid::new(field, "excludes `allowed_headers` of the filter"));
        }
        (Some(list), None) | (None, Some(list)) => patterns(list).at("allowed_headers")?,
        (None, None) => Patterns::none(),
    };
    let added = request.map(|request| &request.headers_to_add[..]).unwrap_or_default();
    let added = added.iter().enumerate();
    let added = added.map(|(index, header)| added_header(header).at_index("headers_to_add", index));
    let response = service.authorization_response.clone().unwrap_or_default();
    let list = |field: &str, list: Option<&messages::ListStringMatcher>| match list {
        Some(list) => patterns(list).at(field).at("authorization_response"),
        None => Ok(Patterns::none()),
    };
    let (_, after_scheme) = server.uri.split_once("://").unwrap_or_default();
    let form = HttpForm {
        host: after_scheme.split('/').next().unwrap_or_default().into(),
        path_prefix: prefix.as_bytes().into(),
        shown,
        added: added.collect::<Result<_, _>>().at("authorization_request")?,
        to_upstream: list("allowed_upstream_headers", response.allowed_upstream_headers.as_ref())?,
        to_client_denied: match list("allowed_client_headers", response.allowed_client_headers.as_ref())? {
            Patterns::Some(given) if !given.is_empty() => {
                let always = ALWAYS_TO_CLIENT.map(|name| ValueMatch::Exact(matcher::text(name, false)));
                Patterns::Some(given.into_iter().chain(always).collect())
            }
            _ => Patterns::All,
        },
        to_client_allowed: list(
            "allowed_client_headers_on_success",
            response.allowed_client_headers_on_success.as_ref(),
        )?,
    };
    Ok((Form::Http(form), cluster, timeout(server.timeout.as_ref()).at("server_uri")?))
}

fn added_header(header: &core::HeaderValue) -> Result<(HeaderName, Box<[u8]>), Invalid> {
    let name = route::header_name("key", &header.key, route::Pseudo::Refused)?;
    if !header.raw_value.is_empty() {
        return Err(Invalid::new("raw_value", "is not supported: use `value`"));
    }
    let template = Template::parse(&header.value).map_err(|error| Invalid::new("value", error))?;
    match template.as_literal() {
        Some(literal) => Ok((name, literal.into())),
        None => Err(Invalid::new("value", "has a command, which is not supported here")),
    }
}

/// Authority, cluster and limit of a gRPC service.
fn grpc_service(service: &core::GrpcService) -> Result<(Box<str>, &str, Option<Duration>), Invalid> {
    let core::grpc_service::TargetSpecifier::EnvoyGrpc(target) =
        required("envoy_grpc", service.target_specifier.as_ref())?;
    let cluster = &target.cluster_name;
    not_empty("envoy_grpc.cluster_name", cluster)?;
    let authority = if target.authority.is_empty() { cluster } else { &target.authority };
    Ok((authority.as_str().into(), cluster, timeout(service.timeout.as_ref())?))
}

fn patterns(list: &messages::ListStringMatcher) -> Result<Patterns, Invalid> {
    let pattern = |(index, message)| matcher::string(message).at_index("patterns", index);
    Ok(Patterns::Some(list.patterns.iter().enumerate().map(pattern).collect::<Result<_, _>>()?))
}

/// What a filter is enabled by: the shadow of the RBAC filter right before it.
fn mark(
    message: Option<&messages::MetadataMatcher>,
    left_by: &str,
    shadows: &mut Shadows,
) -> Result<Option<Mark>, Invalid> {
    let Some(message) = message else { return Ok(None) };
    let mut find = || {
        if message.filter != left_by {
            return Err(Invalid::new("filter", format!("must be `{left_by}`")));
        }
        let key = match &message.path[..] {
            [segment] => segment.segment.as_ref().map(|Segment::Key(key)| key.as_str()),
            _ => None,
        };
        let prefix = key.and_then(|key| key.strip_suffix(SHADOW_POLICY));
        let Some(prefix) = prefix else {
            return Err(Invalid::new("path", format!("must be one key that ends in `{SHADOW_POLICY}`")));
        };
        let value = required("value", message.value.as_ref())?;
        let Some(MatchPattern::StringMatch(name)) = &value.match_pattern else {
            return Err(Invalid::new("value", "must be a `string_match`"));
        };
        let name = matcher::string(name).at("value.string_match")?;
        let marks = |(filter, own): &(Filter, Box<str>)| **own == *prefix && filter.enforced.is_none();
        let Some((rules, tally)) =
            shadows.pop_if(|shadow| marks(shadow)).and_then(|(filter, _)| filter.shadow)
        else {
            return Err(Invalid::new("path", "is left by no RBAC filter right before that decides nothing"));
        };
        Ok(Mark { rules, tally, name, invert: message.invert })
    };
    find().at("filter_enabled_metadata").map(Some)
}
