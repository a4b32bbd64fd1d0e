//! External authorizers.

use std::time::Duration;

use osier_proto::types::listener::Listener as Message;

use super::*;
use crate::compile::listener::CompiledListener;
use crate::config::listener::NetworkAction;
use crate::ext_authz::{Authorizer, BodyRule, Form, Patterns};

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
const GRPC: &str = "grpc_service: {envoy_grpc: {cluster_name: c, authority: a}, timeout: 600s}";
const V3: &str = "transport_api_version: V3";

fn compile(filters: &str) -> Result<CompiledListener, Rejected> {
    let any = pack::<Message>(&format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}, filter_chains: [{{filters: [{filters}]}}]}}"
    ));
    with_context(None, |context| super::super::listener::compile("l", &any, context))
}

fn http(filters: &str) -> String {
    format!(
        "{{name: hcm, typed_config: {{'@type': {FILTERS}.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h,
         route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*']}}]}}, http_filters: [{filters},
           {{name: router, typed_config: {{'@type': {FILTERS}.http.router.v3.Router}}}}]}}}}"
    )
}

fn tcp(filters: &str) -> String {
    format!(
        "{filters}, {{name: tcp, typed_config: {{'@type': {FILTERS}.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: t}}}}"
    )
}

fn filter(kind: &str, name: &str, fields: &str) -> String {
    format!(
        "{{name: {name}, typed_config: {{'@type': {FILTERS}.{kind}.{name}.v3.{}, {fields}}}}}",
        if name == "rbac" { "RBAC" } else { "ExtAuthz" }
    )
}

fn asks(fields: &str) -> String {
    filter("http", "ext_authz", fields)
}

/// What an HTTP authorizer needs at least.
fn over_http(fields: &str, service: &str) -> String {
    asks(&format!(
        "{V3}, http_service: {{server_uri: {{uri: 'http://a', cluster: c, timeout: 1s}}{service}}}{fields}"
    ))
}

const POLICY: &str = "{permissions: [{any: true}], principals: [{any: true}]}";

fn marks(kind: &str, prefix: &str, more: &str) -> String {
    let prefix_of_counts = if kind == "network" { ", stat_prefix: tcp." } else { "" };
    filter(
        kind,
        "rbac",
        &format!(
            "shadow_rules: {{action: DENY, policies: {{istio-ext-authz-p: {POLICY}}}}}, shadow_rules_stat_prefix: {prefix}{prefix_of_counts}{more}"
        ),
    )
}

fn marked(kind: &str) -> String {
    format!(
        ", filter_enabled_metadata: {{filter: envoy.filters.{kind}.rbac, path: [{{key: istio_ext_authz_shadow_effective_policy_id}}],
         value: {{string_match: {{prefix: istio-ext-authz}}}}}}"
    )
}

fn authorizers(compiled: &CompiledListener) -> &[Authorizer] {
    match &compiled.listener.chains[0].action {
        NetworkAction::Http(manager) => &manager.authorizers,
        NetworkAction::Tcp(proxy) => &proxy.authorizers,
    }
}

#[test]
fn istios_filters() {
    let filter = over_http(
        &format!(
            ", failure_mode_allow: true, failure_mode_allow_header_add: true, status_on_error: {{code: 503}}, clear_route_cache: true,
             with_request_body: {{max_request_bytes: 7, allow_partial_message: true}}, allowed_headers: {{patterns: [{{exact: x-a, ignore_case: true}}]}}{}",
            marked("http")
        ),
        ", path_prefix: /check, authorization_request: {headers_to_add: [{key: X-Add, value: '1'}]},
         authorization_response: {allowed_upstream_headers: {patterns: [{prefix: x-u}]}, allowed_client_headers: {patterns: [{suffix: -d}]},
           allowed_client_headers_on_success: {patterns: [{exact: x-s}]}}",
    );
    let compiled = compile(&http(&format!("{}, {filter}", marks("http", "istio_ext_authz_", "")))).unwrap();
    assert!(compiled.references.clusters.contains("c"), "a sidecar on demand asks for it");
    let [authorizer] = authorizers(&compiled) else { panic!("one authorizer") };
    assert_eq!((&*authorizer.cluster.name, authorizer.timeout), ("c", Some(Duration::from_secs(1))));
    assert!(authorizer.fails_open && authorizer.tells_fail_open && authorizer.routes_anew);
    assert_eq!(authorizer.status_on_error, 503);
    assert_eq!(authorizer.body, Some(BodyRule { most: 7, partial: true }));
    let mark = authorizer.mark.as_ref().expect("a mark");
    assert_eq!(&*mark.rules.rules[0].denial.policy, "istio-ext-authz-p");
    assert!(mark.name.holds(b"istio-ext-authz-p") && !mark.name.holds(b"p") && !mark.invert);
    let Form::Http(form) = &authorizer.form else { panic!("over HTTP") };
    assert_eq!((&*form.host, &*form.path_prefix, &*form.added[0].1), ("a", &b"/check"[..], &b"1"[..]));
    let NetworkAction::Http(manager) = &compiled.listener.chains[0].action else { panic!("HTTP") };
    assert!(manager.authorization.is_empty(), "the filter that marks does nothing else");

    let filter = filter_network(&format!(
        "stat_prefix: tcp., {V3}, {GRPC}, failure_mode_allow: true{}",
        marked("network")
    ));
    let compiled = compile(&tcp(&format!("{}, {filter}", marks("network", "istio_ext_authz_", "")))).unwrap();
    let [authorizer] = authorizers(&compiled) else { panic!("one authorizer") };
    let Form::Grpc(form) = &authorizer.form else { panic!("over gRPC") };
    assert_eq!((&*form.authority, authorizer.timeout), ("a", Some(Duration::from_secs(600))));
    assert!(authorizer.mark.is_some() && authorizer.fails_open && compiled.references.clusters.contains("c"));
}

fn filter_network(fields: &str) -> String {
    filter("network", "ext_authz", fields)
}

#[test]
fn defaults_are_envoys() {
    let compiled =
        compile(&http(&asks(&format!("{V3}, grpc_service: {{envoy_grpc: {{cluster_name: c}}}}")))).unwrap();
    let [authorizer] = authorizers(&compiled) else { panic!("one authorizer") };
    assert_eq!((authorizer.timeout, authorizer.status_on_error), (Some(Duration::from_millis(200)), 403));
    assert!(authorizer.mark.is_none() && authorizer.body.is_none() && !authorizer.fails_open);
    let Form::Grpc(form) = &authorizer.form else { panic!("over gRPC") };
    assert!(matches!(form.shown, Patterns::All) && &*form.authority == "c");
    let compiled = compile(&http(&over_http("", ""))).unwrap();
    let Form::Http(form) = &authorizers(&compiled)[0].form else { panic!("over HTTP") };
    assert!(matches!(&form.shown, Patterns::Some(none) if none.is_empty()));
    assert!(matches!(form.to_client_denied, Patterns::All));
}

#[test]
fn what_is_refused() {
    let at = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config";
    let second = "filter_chains[0].filters[0].typed_config.http_filters[1]";
    let under = |text: &str| format!("{at}.{text}");
    let enforced = filter("http", "rbac", &format!("rules: {{policies: {{p: {POLICY}}}}}"));
    let cases = [
        (http(&asks(GRPC)), under("transport_api_version: must be V3")),
        (http(&asks(V3)), under("services: is required")),
        (http(&asks(&format!("{V3}, grpc_service: {{}}"))), under("grpc_service.envoy_grpc: is required")),
        (http(&asks(&format!("{V3}, http_service: {{}}"))), under("http_service.server_uri: is required")),
        (
            http(&asks(&format!("{V3}, http_service: {{server_uri: {{uri: a, timeout: 1s}}}}"))),
            under("http_service.server_uri.cluster: is required"),
        ),
        (
            http(&asks(&format!("{V3}, http_service: {{server_uri: {{uri: a, cluster: c}}}}"))),
            under("http_service.server_uri.timeout: is required"),
        ),
        (http(&over_http("", ", path_prefix: a")), under("http_service.path_prefix: must begin with `/`")),
        (
            http(&over_http("", ", authorization_request: {headers_to_add: [{key: host, value: a}]}")),
            under("http_service.authorization_request.headers_to_add[0].key: `host` cannot be changed here"),
        ),
        (
            http(&over_http(
                "",
                ", authorization_request: {headers_to_add: [{key: a, value: '%PROTOCOL%'}]}",
            )),
            under("http_service.authorization_request.headers_to_add[0].value: has a command"),
        ),
        (
            http(&over_http(", allowed_headers: {}", ", authorization_request: {allowed_headers: {}}")),
            under("http_service.authorization_request.allowed_headers: excludes"),
        ),
        (http(&over_http(", status_on_error: {code: 100}", "")), under("status_on_error: 100 is no status")),
        (
            http(&over_http(", with_request_body: {}", "")),
            under("with_request_body.max_request_bytes: must be greater than 0"),
        ),
        (
            http(&over_http(&marked("http"), "")),
            under("filter_enabled_metadata.path: is left by no RBAC filter right before"),
        ),
        (
            http(&format!("{}, {}", marks("http", "other_", ""), over_http(&marked("http"), ""))),
            format!("{second}.typed_config.filter_enabled_metadata.path: is left by no RBAC filter"),
        ),
        (
            http(&format!(
                "{}, {}",
                marks("http", "istio_ext_authz_", &format!(", rules: {{policies: {{p: {POLICY}}}}}")),
                over_http(&marked("http"), "")
            )),
            format!("{second}.typed_config.filter_enabled_metadata.path: is left by no RBAC filter"),
        ),
        (
            http(&over_http(&marked("http").replace("http.rbac", "http.lua"), "")),
            under("filter_enabled_metadata.filter: must be `envoy.filters.http.rbac`"),
        ),
        (
            http(&format!("{enforced}, {}", over_http("", ""))),
            format!("{second}: must come before `jwt_authn` and before RBAC"),
        ),
        (
            tcp(&filter_network(&format!("{V3}, {GRPC}"))),
            "filter_chains[0].filters[0].typed_config.stat_prefix: must not be empty".into(),
        ),
        (
            tcp(&filter_network(&format!("stat_prefix: t, {V3}"))),
            "filter_chains[0].filters[0].typed_config.grpc_service: is required".into(),
        ),
        (
            format!(
                "{}, {}",
                filter_network(&format!("stat_prefix: t, {V3}, {GRPC}")),
                http(&over_http("", ""))
            ),
            "filter_chains[0].filters: RBAC and external authorizers of HTTP must be among".into(),
        ),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(yaml, text)| (&**yaml, &**text)).collect();
    refused(&cases, compile);
}
