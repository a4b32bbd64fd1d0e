//! Filters that ask an external authorizer, from AuthorizationPolicies of action CUSTOM, in Istio's shape: an RBAC filter whose shadow
//! says what is to be asked about, and the filter that asks where it has said so. Where nobody can be asked, what would be is denied.

use std::collections::BTreeMap;

use osier_proto::types::core::{
    ApiVersion, GrpcService, HeaderValue, HttpUri,
    grpc_service::{EnvoyGrpc, TargetSpecifier},
    http_uri::HttpUpstreamType,
};
use osier_proto::types::http_connection_manager::HttpFilter;
use osier_proto::types::http_ext_authz::{
    AuthorizationRequest, AuthorizationResponse, BufferSettings, ExtAuthz, HttpService, ext_authz::Services,
};
use osier_proto::types::http_rbac;
use osier_proto::types::listener::Filter;
use osier_proto::types::matcher::{
    ListStringMatcher, MetadataMatcher, StringMatcher, ValueMatcher, metadata_matcher::PathSegment,
    metadata_matcher::path_segment::Segment, string_matcher::MatchPattern,
    value_matcher::MatchPattern as OnValue,
};
use osier_proto::types::network_ext_authz;
use osier_proto::types::network_rbac;
use osier_proto::types::rbac::{Policy, Rbac, rbac::Action};
use osier_proto::types::value::HttpStatus;

use std::time::Duration;

use super::filter::http_filter;
use crate::r#gen::name::OutboundName;
use crate::r#gen::wire;
use crate::model::{AskedOver, Authorizer, HttpQuestion, Protocol, Service, TextMatch};
use crate::snapshot::NoAuthorizer;

/// Begins the names of rules that say what is to be asked about.
pub(super) const MARK: &str = "istio-ext-authz";
/// Ends the names of those for which nobody can be asked.
const BAD: &str = "deny-due-to-bad-CUSTOM-action";
/// Prefix of what the marking filter leaves for the next one.
const SHADOW_PREFIX: &str = "istio_ext_authz_";
const RBAC_HTTP: &str = "envoy.filters.http.rbac";
const RBAC_TCP: &str = "envoy.filters.network.rbac";
const TCP_STATS: &str = "tcp.";
/// Istio's, where nothing is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// What is to be asked about, and who is asked.
pub(super) struct Custom<'s> {
    /// Rules by Istio's names for them.
    pub rules: BTreeMap<String, Policy>,
    /// Or why nobody is.
    pub authorizer: Result<(&'s Authorizer, &'s Service), NoAuthorizer>,
}

impl Custom<'_> {
    /// Filters of an HTTP chain.
    pub(super) fn http(&self) -> Vec<HttpFilter> {
        let (authorizer, service) = match &self.authorizer {
            Ok(found) => *found,
            Err(_) => {
                let rbac = http_rbac::Rbac { rules: Some(self.denied()), ..Default::default() };
                return vec![http_filter(RBAC_HTTP, &rbac)];
            }
        };
        let marking = http_rbac::Rbac {
            shadow_rules: Some(self.marking()),
            shadow_rules_stat_prefix: SHADOW_PREFIX.into(),
            ..Default::default()
        };
        let asking = http_filter("envoy.filters.http.ext_authz", &asking(authorizer, service));
        vec![http_filter(RBAC_HTTP, &marking), asking]
    }

    /// Filters of a chain of opaque bytes at a port of this protocol. An HTTP authorizer can't be asked about them: as with Istio, it is
    /// not where the port is declared to be opaque. Elsewhere clients choose whether they look like HTTP, and nobody goes past the
    /// authorizer that way.
    pub(super) fn tcp(&self, protocol: Protocol) -> Vec<Filter> {
        let rbac = |rbac: network_rbac::Rbac| wire::network_filter(RBAC_TCP, &rbac);
        let stat_prefix = TCP_STATS.to_owned();
        let (authorizer, service) = match &self.authorizer {
            Ok(found) if matches!(found.0.over, AskedOver::Grpc) => *found,
            Ok(_) if protocol != Protocol::Auto => return Vec::new(),
            Ok(_) | Err(_) => {
                let rules = Some(self.denied());
                return vec![rbac(network_rbac::Rbac { rules, stat_prefix, ..Default::default() })];
            }
        };
        let asking = network_ext_authz::ExtAuthz {
            stat_prefix: stat_prefix.clone(),
            grpc_service: Some(over_grpc(authorizer, service)),
            failure_mode_allow: authorizer.fails_open,
            transport_api_version: ApiVersion::V3 as i32,
            filter_enabled_metadata: Some(where_marked(RBAC_TCP)),
        };
        let marking = network_rbac::Rbac {
            shadow_rules: Some(self.marking()),
            shadow_rules_stat_prefix: SHADOW_PREFIX.into(),
            stat_prefix,
            ..Default::default()
        };
        vec![rbac(marking), wire::network_filter("envoy.filters.network.ext_authz", &asking)]
    }

    fn marking(&self) -> Rbac {
        Rbac { action: Action::Deny as i32, policies: self.rules.clone() }
    }

    fn denied(&self) -> Rbac {
        let bad = |(name, policy): (&String, &Policy)| (format!("{name}-{BAD}"), policy.clone());
        Rbac { action: Action::Deny as i32, policies: self.rules.iter().map(bad).collect() }
    }
}

fn asking(authorizer: &Authorizer, service: &Service) -> ExtAuthz {
    let mut filter = ExtAuthz {
        transport_api_version: ApiVersion::V3 as i32,
        failure_mode_allow: authorizer.fails_open,
        clear_route_cache: authorizer.routes_anew,
        status_on_error: authorizer.status_on_error.map(|code| HttpStatus { code: code.into() }),
        with_request_body: authorizer.body.map(|body| BufferSettings {
            max_request_bytes: body.most,
            allow_partial_message: body.partial,
            pack_as_bytes: body.as_bytes,
        }),
        filter_enabled_metadata: Some(where_marked(RBAC_HTTP)),
        ..Default::default()
    };
    filter.services = Some(match &authorizer.over {
        AskedOver::Grpc => Services::GrpcService(over_grpc(authorizer, service)),
        AskedOver::Http(question) => {
            filter.allowed_headers = names(&question.shown);
            Services::HttpService(over_http(authorizer, question, service))
        }
    });
    filter
}

fn over_http(authorizer: &Authorizer, question: &HttpQuestion, service: &Service) -> HttpService {
    let added = question.added.iter().map(|(key, value)| HeaderValue {
        key: key.clone(),
        value: value.clone(),
        ..Default::default()
    });
    let response = AuthorizationResponse {
        allowed_upstream_headers: names(&question.to_upstream),
        allowed_client_headers: names(&question.to_client_denied),
        allowed_client_headers_on_success: names(&question.to_client_allowed),
    };
    HttpService {
        server_uri: Some(HttpUri {
            uri: format!("http://{}", service.host()),
            http_upstream_type: Some(HttpUpstreamType::Cluster(cluster(authorizer, service).to_string())),
            timeout: Some(timeout(authorizer)),
        }),
        path_prefix: question.path_prefix.clone(),
        authorization_request: (!question.added.is_empty())
            .then(|| AuthorizationRequest { headers_to_add: added.collect(), ..Default::default() }),
        authorization_response: (response != AuthorizationResponse::default()).then_some(response),
    }
}

fn over_grpc(authorizer: &Authorizer, service: &Service) -> GrpcService {
    let name = cluster(authorizer, service);
    // A bar is no character of an authority, and servers refuse it.
    let (cluster_name, authority) = (name.to_string(), name.server_name());
    GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc { cluster_name, authority })),
        timeout: Some(timeout(authorizer)),
    }
}

fn timeout(authorizer: &Authorizer) -> prost_types::Duration {
    wire::duration(authorizer.timeout.unwrap_or(DEFAULT_TIMEOUT))
}

fn cluster(authorizer: &Authorizer, service: &Service) -> OutboundName {
    let host = service.host().shared().clone();
    OutboundName { port: authorizer.port, subset: "".into(), host }
}

/// Where the filter before has left the name of one of our rules.
fn where_marked(filter: &str) -> MetadataMatcher {
    let key = format!("{SHADOW_PREFIX}shadow_effective_policy_id");
    let name = StringMatcher { match_pattern: Some(MatchPattern::Prefix(MARK.into())), ignore_case: false };
    MetadataMatcher {
        filter: filter.into(),
        path: vec![PathSegment { segment: Some(Segment::Key(key)) }],
        value: Some(ValueMatcher { match_pattern: Some(OnValue::StringMatch(name)) }),
        invert: false,
    }
}

/// Names of headers; `None` for none.
fn names(patterns: &[TextMatch]) -> Option<ListStringMatcher> {
    let pattern = |name: &TextMatch| {
        let pattern = match name {
            TextMatch::Exact(text) => MatchPattern::Exact(text.to_string()),
            TextMatch::Prefix(text) => MatchPattern::Prefix(text.to_string()),
            TextMatch::Suffix(text) => MatchPattern::Suffix(text.to_string()),
            TextMatch::Present => MatchPattern::Prefix(String::new()),
        };
        StringMatcher { match_pattern: Some(pattern), ignore_case: true }
    };
    (!patterns.is_empty()).then(|| ListStringMatcher { patterns: patterns.iter().map(pattern).collect() })
}
