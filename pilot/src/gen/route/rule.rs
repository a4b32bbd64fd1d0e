//! HTTP routes of a VirtualService, for one client and one port.

use osier_proto::types::core::{DataSource, data_source};
use osier_proto::types::matcher::{RegexMatchAndSubstitute, RegexMatcher};
use osier_proto::types::route::{
    Decorator, DirectResponseAction, RedirectAction, Route, RouteAction, WeightedCluster,
    redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
    route::Action,
    route_action::{ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration},
    weighted_cluster::{ClusterWeight, cluster_weight},
};

use super::header::Operations;
use super::{matching, retry};
use crate::r#gen::scope::Scope;
use crate::r#gen::wire;
use crate::model::{
    DirectResponse, HttpAction, HttpMatch, HttpRoute, Redirect, RedirectPath, RedirectPort, RewritePath,
    RouteRule, StringMatch, WeightedDestination,
};
use crate::snapshot::ApplicableRoute;

/// The routes of a rule that are left for this client on this port. What follows a condition that everything meets is cut
/// already.
pub(super) fn routes(
    scope: &Scope<'_>,
    rule: &RouteRule,
    applicable: &[ApplicableRoute<'_>],
    port: u16,
) -> Vec<Route> {
    let mut routes = Vec::new();
    for ApplicableRoute { route, matches } in applicable {
        if matches.is_empty() {
            routes.extend(translate(scope, rule, route, None, port));
        }
        routes.extend(matches.iter().filter_map(|m| translate(scope, rule, route, Some(m), port)));
    }
    routes
}

/// The route of a service without a rule.
pub(super) fn default_route(scope: &Scope<'_>, host: &str, port: u16) -> Route {
    let cluster = crate::r#gen::name::OutboundName { port, subset: "".into(), host: host.into() }.to_string();
    let mut action =
        RouteAction { cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)), ..Default::default() };
    times_and_retries(scope, &mut action, None);
    Route {
        name: "default".into(),
        r#match: Some(matching::everything()),
        action: Some(Action::Route(action)),
        decorator: Some(decorator(format!("{host}:{port}/*"))),
        ..Default::default()
    }
}

/// `None` where the client can't take such a route.
fn translate(
    scope: &Scope<'_>,
    rule: &RouteRule,
    http: &HttpRoute,
    condition: Option<&HttpMatch>,
    port: u16,
) -> Option<Route> {
    let mut operations = Operations::of(&http.headers);
    let action = match &http.action {
        HttpAction::Forward(destinations) => {
            Action::Route(forward(scope, http, destinations, &mut operations, port))
        }
        // gRPC libraries refuse the whole table, or fail the call; no route at all says the same without harm.
        HttpAction::Redirect(_) | HttpAction::Direct(_) if scope.view().is_grpc() => return None,
        HttpAction::Redirect(r) => Action::Redirect(redirect(r, port)),
        HttpAction::Direct(d) => Action::DirectResponse(direct(d)),
    };
    Some(Route {
        name: name(http, condition),
        r#match: Some(condition.map_or_else(matching::everything, matching::translate)),
        action: Some(action),
        metadata: Some(wire::istio_metadata([(
            "config",
            wire::config_path(
                "networking.istio.io/v1",
                "virtual-service",
                &rule.key.namespace,
                &rule.key.name,
            ),
        )])),
        decorator: Some(decorator(operation(rule, http, condition, port))),
        request_headers_to_add: operations.request_add,
        request_headers_to_remove: operations.request_remove,
        response_headers_to_add: operations.response_add,
        response_headers_to_remove: operations.response_remove,
    })
}

/// `route`, or `route.match`.
fn name(http: &HttpRoute, condition: Option<&HttpMatch>) -> String {
    match condition.filter(|c| !c.name.is_empty()) {
        Some(condition) => format!("{}.{}", http.name, condition.name),
        None => http.name.to_string(),
    }
}

/// The operation's name in traces, as istiod writes it.
fn operation(rule: &RouteRule, http: &HttpRoute, condition: Option<&HttpMatch>, port: u16) -> String {
    let path = match condition.and_then(|c| c.uri.as_ref()) {
        Some(StringMatch::Exact(path)) => path.to_string(),
        Some(StringMatch::Prefix(path)) => format!("{path}*"),
        Some(StringMatch::Regex(path)) => path.to_string(),
        None => "/*".into(),
    };
    match &http.action {
        HttpAction::Forward(to) if to.len() == 1 => format!("{}:{port}{path}", to[0].destination.host),
        _ => format!("{}:{port}{path}", rule.key.name),
    }
}

fn decorator(operation: String) -> Decorator {
    Decorator { operation, propagate: None }
}

fn forward(
    scope: &Scope<'_>,
    http: &HttpRoute,
    destinations: &[WeightedDestination],
    operations: &mut Operations,
    port: u16,
) -> RouteAction {
    let mut action = RouteAction::default();
    times_and_retries(scope, &mut action, Some(http));
    match &http.rewrite.path {
        Some(RewritePath::Matched(path)) => action.prefix_rewrite = path.to_string(),
        Some(RewritePath::Regex(r)) => {
            action.regex_rewrite = Some(RegexMatchAndSubstitute {
                pattern: Some(RegexMatcher { regex: r.pattern.to_string() }),
                substitution: r.replacement.to_string(),
            });
        }
        None => {}
    }
    let cluster = |d: &WeightedDestination| scope.cluster_of(&d.destination, port);
    action.cluster_specifier = Some(match destinations {
        [one] => {
            operations.append(Operations::of(&one.headers));
            ClusterSpecifier::Cluster(cluster(one))
        }
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several.iter().map(|d| weight(d, cluster(d))).collect(),
            total_weight: None,
        }),
    });
    let authority =
        http.rewrite.authority.as_deref().map(str::to_string).or_else(|| operations.authority.take());
    action.host_rewrite_specifier = authority.map(HostRewriteSpecifier::HostRewriteLiteral);
    action
}

fn weight(destination: &WeightedDestination, name: String) -> ClusterWeight {
    let operations = Operations::of(&destination.headers);
    ClusterWeight {
        name,
        weight: Some(destination.weight),
        request_headers_to_add: operations.request_add,
        request_headers_to_remove: operations.request_remove,
        response_headers_to_add: operations.response_add,
        response_headers_to_remove: operations.response_remove,
        host_rewrite_specifier: operations
            .authority
            .map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
    }
}

/// Time-out (off unless written), the cap of `grpc-timeout`, and retries.
pub(super) fn times_and_retries(scope: &Scope<'_>, action: &mut RouteAction, http: Option<&HttpRoute>) {
    let timeout = http.and_then(|h| h.timeout);
    let whole = wire::duration(timeout.unwrap_or_default());
    let retries =
        retry::policy(http.and_then(|h| h.retries.as_ref()), scope.mesh().retries.as_ref(), timeout);
    if scope.view().is_grpc() {
        // gRPC libraries know neither `timeout` nor a cap that is not the limit itself.
        action.max_stream_duration = timeout.map(|_| MaxStreamDuration {
            max_stream_duration: Some(whole),
            grpc_timeout_header_max: Some(whole),
        });
        action.retry_policy = retry::for_grpc(retries);
    } else {
        action.timeout = Some(whole);
        // Zero: `grpc-timeout` is honoured without a cap.
        action.max_stream_duration =
            Some(MaxStreamDuration { max_stream_duration: None, grpc_timeout_header_max: Some(whole) });
        action.retry_policy = retries;
    }
}

fn redirect(redirect: &Redirect, listener_port: u16) -> RedirectAction {
    let code = match redirect.status {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let port = match redirect.port {
        None | Some(RedirectPort::FromProtocol) => 0,
        Some(RedirectPort::Number(port)) => port,
        Some(RedirectPort::FromRequest) => listener_port,
    };
    let scheme = redirect.scheme.as_deref();
    let implied = matches!((scheme.unwrap_or("http"), port), ("http", 80) | ("https", 443));
    RedirectAction {
        scheme_rewrite_specifier: scheme.map(|s| SchemeRewriteSpecifier::SchemeRedirect(s.to_string())),
        host_redirect: redirect.authority.as_deref().unwrap_or_default().to_string(),
        port_redirect: if implied { 0 } else { u32::from(port) },
        path_rewrite_specifier: match &redirect.path {
            RedirectPath::Keep => None,
            RedirectPath::Replace(path) => Some(PathRewriteSpecifier::PathRedirect(path.to_string())),
            RedirectPath::Prefix(path) => Some(PathRewriteSpecifier::PrefixRewrite(path.to_string())),
        },
        response_code: code as i32,
        strip_query: false,
    }
}

fn direct(response: &DirectResponse) -> DirectResponseAction {
    let body = &response.body;
    let specifier = match std::str::from_utf8(body) {
        Ok(text) => data_source::Specifier::InlineString(text.to_string()),
        Err(_) => data_source::Specifier::InlineBytes(body.clone()),
    };
    DirectResponseAction {
        status: u32::from(response.status),
        body: (!body.is_empty()).then_some(DataSource { specifier: Some(specifier) }),
    }
}
