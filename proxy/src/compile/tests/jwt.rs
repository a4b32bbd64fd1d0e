//! The filter that verifies tokens, and conditions on claims.

use osier_proto::types::listener::Listener as Message;
use osier_proto::types::route::RouteConfiguration;

use super::*;
use crate::compile::listener::CompiledListener;
use crate::config::listener::{HttpManager, NetworkAction};
use crate::jwt::requirement::Requirement;

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
const KEYS: &str = "local_jwks: {inline_string: '{\"keys\": []}'}";
const ONE: &str = "rules: [{match: {prefix: /}, requires: {requires_any: {requirements: [{provider_name: p}, {allow_missing: {}}]}}}]";

fn with_filters(filters: &str) -> Result<CompiledListener, Rejected> {
    let any = pack::<Message>(&format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}, filter_chains: [{{filters: [
           {{name: hcm, typed_config: {{'@type': {FILTERS}.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h,
             route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*']}}]}}, http_filters: [{filters},
             {{name: router, typed_config: {{'@type': {FILTERS}.http.router.v3.Router}}}}]}}}}]}}]}}"
    ));
    with_context(None, |context| super::super::listener::compile("l", &any, context))
}

fn filter(fields: &str) -> String {
    format!(
        "{{name: jwt, typed_config: {{'@type': {FILTERS}.http.jwt_authn.v3.JwtAuthentication, {fields}}}}}"
    )
}

fn rbac(condition: &str) -> String {
    format!(
        "{{name: rbac, typed_config: {{'@type': {FILTERS}.http.rbac.v3.RBAC,
           rules: {{policies: {{p: {{permissions: [{{any: true}}], principals: [{{metadata: {condition}}}]}}}}}}}}}}"
    )
}

fn manager(listener: &CompiledListener) -> &HttpManager {
    match &listener.listener.chains[0].action {
        NetworkAction::Http(manager) => manager,
        NetworkAction::Tcp(_) => panic!("no HTTP"),
    }
}

#[test]
fn istios_filter() {
    let provider = format!(
        "{{issuer: me, audiences: [a], {KEYS}, forward: true, from_headers: [{{name: X-Token, value_prefix: 't '}}], from_params: [t],
          from_cookies: [c], forward_payload_header: X-Payload, payload_in_metadata: payload, claim_to_headers: [{{header_name: x-sub, claim_name: a.b}}],
          normalize_payload_in_metadata: {{space_delimited_claims: [scope, permission]}}, clear_route_cache: true}}"
    );
    let formula = "rules: [{match: {prefix: /}, requires: {requires_any: {requirements: [{provider_name: p}, {provider_name: q}, {requires_all: {requirements: [
        {requires_any: {requirements: [{provider_name: p}, {allow_missing: {}}]}}, {requires_any: {requirements: [{provider_name: q}, {allow_missing: {}}]}}]}}]}}}]";
    let compiled = with_filters(&filter(&format!(
        "bypass_cors_preflight: true, providers: {{p: {provider}, q: {{{KEYS}}}}}, {formula}"
    )))
    .unwrap();
    let authentication = manager(&compiled).authentication.as_deref().expect("a filter");
    let [p, q] = &authentication.providers[..] else { panic!("two providers") };
    assert!(authentication.passes_preflight && p.forward && !q.forward);
    assert_eq!((&*p.issuer, &*q.issuer, p.skew, p.metadata.as_deref()), ("me", "", 60, Some("payload")));
    assert_eq!(*p.claim_headers[0].1, ["a".into(), "b".into()]);
    assert_eq!(*p.words, ["scope".into(), "permission".into()]);
    assert_eq!(*authentication.told_headers, ["x-payload".into(), "x-sub".into()]);
    let optional = |check| Requirement::AnyOfOrMissing([Requirement::Valid(check)].into());
    let all = Requirement::AllOf([optional(0), optional(1)].into());
    let wanted = Requirement::AnyOf([Requirement::Valid(0), Requirement::Valid(1), all].into());
    assert_eq!(authentication.rules[0].requirement, Some(wanted));
    assert_eq!(authentication.checks.len(), 2);
}

#[test]
fn filters_of_others() {
    let with = |fields: &str| with_filters(&filter(&format!("providers: {{p: {{{KEYS}}}}}, {fields}")));
    for (fields, wanted) in [
        (
            "rules: [{match: {path: /health}}, {match: {prefix: /}, requires: {provider_name: p}}]",
            [None, Some(Requirement::Valid(0))],
        ),
        (
            "rules: [{match: {prefix: /}, requires: {}}, {match: {prefix: /}, requirement_name: named}], requirement_map: {named: {provider_and_audiences: {provider_name: p, audiences: [x]}}}",
            [None, Some(Requirement::Valid(0))],
        ),
    ] {
        let compiled = with(fields).unwrap();
        let rules = &manager(&compiled).authentication.as_deref().unwrap().rules;
        assert_eq!(rules.iter().map(|rule| rule.requirement.clone()).collect::<Vec<_>>(), wanted, "{fields}");
    }
    assert!(with("").is_ok() && with_filters(&filter("")).is_ok());
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let at = "filter_chains[0].filters[0].typed_config.http_filters";
    let cases = [
        (format!("providers: {{p: {{}}}}, {ONE}"), "typed_config.providers[\"p\"].local_jwks: is required"),
        (
            "providers: {p: {local_jwks: {inline_string: '<html>'}}}".to_owned(),
            "typed_config.providers[\"p\"].local_jwks: is no JSON",
        ),
        (
            "providers: {p: {local_jwks: {inline_string: '{}'}}}".to_owned(),
            "typed_config.providers[\"p\"].local_jwks: has no list",
        ),
        (
            "providers: {p: {local_jwks: {filename: /x}}}".to_owned(),
            "typed_config.providers[\"p\"].local_jwks.filename: is not supported",
        ),
        (
            format!("providers: {{p: {{{KEYS}, from_headers: [{{name: 'a b'}}]}}}}"),
            "typed_config.providers[\"p\"].from_headers[0].name",
        ),
        (
            format!("providers: {{p: {{{KEYS}, from_params: ['']}}}}"),
            "typed_config.providers[\"p\"].from_params[0]: must not",
        ),
        (
            format!("providers: {{p: {{{KEYS}, from_cookies: [a, '']}}}}"),
            "typed_config.providers[\"p\"].from_cookies[1]: must not",
        ),
        (
            format!("providers: {{p: {{{KEYS}, forward_payload_header: ':x'}}}}"),
            "typed_config.providers[\"p\"].forward_payload_header",
        ),
        (
            format!("providers: {{p: {{{KEYS}, claim_to_headers: [{{header_name: x}}]}}}}"),
            "typed_config.providers[\"p\"].claim_to_headers[0].claim_name",
        ),
        (
            format!("providers: {{p: {{{KEYS}, claim_to_headers: [{{claim_name: x}}]}}}}"),
            "typed_config.providers[\"p\"].claim_to_headers[0].header_name",
        ),
        ("rules: [{}]".to_owned(), "typed_config.rules[0].match: is required"),
        (
            "rules: [{match: {prefix: /}, requires: {provider_name: p}}]".to_owned(),
            "typed_config.rules[0].requires.provider_name: there is no provider",
        ),
        (
            "rules: [{match: {prefix: /}, requirement_name: p}]".to_owned(),
            "typed_config.rules[0].requirement_name: `p` is not",
        ),
        (
            "rules: [{match: {prefix: /}, requires: {allow_missing: {}}}]".to_owned(),
            "typed_config.rules[0].requires.allow_missing",
        ),
        (
            format!(
                "providers: {{p: {{{KEYS}}}}}, rules: [{{match: {{prefix: /}}, requires: {{requires_any: {{requirements: [{{allow_missing: {{}}}}, {{allow_missing: {{}}}}]}}}}}}]"
            ),
            "typed_config.rules[0].requires.requires_any.requirements: must name",
        ),
        (
            format!(
                "providers: {{p: {{{KEYS}}}}}, rules: [{{match: {{prefix: /}}, requires: {{requires_all: {{requirements: [{{provider_name: p}}]}}}}}}]"
            ),
            "typed_config.rules[0].requires.requires_all.requirements: must be two",
        ),
    ];
    for (fields, expected) in cases {
        let error = with_filters(&filter(&fields)).map(drop).expect_err(&fields);
        let text = error.to_string();
        assert!(text.starts_with(&format!("l: {at}[0].{expected}")), "{text}\n{expected}\n{fields}");
    }
    let plain = format!("providers: {{p: {{{KEYS}}}}}");
    for (filters, expected) in [
        (
            format!("{}, {}", filter(&plain), filter(&plain).replace("name: jwt", "name: other")),
            "[1]: tokens are verified once",
        ),
        (
            format!(
                "{}, {}",
                rbac(
                    "{filter: envoy.filters.http.jwt_authn, path: [{key: payload}, {key: iss}], value: {string_match: {exact: x}}}"
                ),
                filter(&plain)
            ),
            "[1]: must come before RBAC that looks at claims",
        ),
    ] {
        let text = with_filters(&filters).map(drop).expect_err(&filters).to_string();
        assert!(text.starts_with(&format!("l: {at}{expected}")), "{text}");
    }
}

#[test]
fn remote_keys_are_refused_by_name() {
    // Field 3 of JwtProvider, an empty message, within the filter's providers.
    let provider = [0x0a, 0x01, b'p', 0x12, 0x02, 0x1a, 0x00];
    let filter = [&[0x0a, provider.len() as u8][..], &provider].concat();
    let any =
        Any { type_url: osier_proto::types::jwt_authn::JwtAuthentication::type_url(), value: filter.into() };
    let unknown = osier_proto::unknown::unknown_fields(&any);
    assert!(unknown[0].to_string().contains("remote_jwks"), "{unknown:?}");
}

#[test]
fn conditions_on_claims() {
    let jwt = "filter: envoy.filters.http.jwt_authn";
    let text = "{string_match: {safe_regex: {regex: .+}}}";
    for condition in [
        format!("{{{jwt}, path: [{{key: payload}}, {{key: iss}}], value: {text}}}"),
        format!(
            "{{{jwt}, path: [{{key: payload}}, {{key: a}}, {{key: b}}], value: {{or_match: {{value_matchers: [{{list_match: {{one_of: {text}}}}}, {text}]}}}}, invert: true}}"
        ),
    ] {
        with_filters(&rbac(&condition)).unwrap();
    }
    let at = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config.rules.policies[\"p\"].principals[0].metadata";
    for (condition, expected) in [
        (
            format!("{{filter: other, path: [{{key: a}}, {{key: b}}], value: {text}}}"),
            "filter: `other` leaves",
        ),
        (format!("{{{jwt}, path: [{{key: payload}}], value: {text}}}"), "path: must name a claim"),
        (format!("{{{jwt}, path: [{{key: payload}}, {{key: ''}}], value: {text}}}"), "path[1].key: must not"),
        (format!("{{{jwt}, path: [{{key: payload}}, {{}}], value: {text}}}"), "path[1].key: is required"),
        (format!("{{{jwt}, path: [{{key: payload}}, {{key: a}}]}}"), "value: is required"),
        (
            format!("{{{jwt}, path: [{{key: payload}}, {{key: a}}], value: {{list_match: {{}}}}}}"),
            "value.list_match.one_of: is required",
        ),
    ] {
        let text = with_filters(&rbac(&condition)).map(drop).expect_err(&condition).to_string();
        assert!(text.starts_with(&format!("l: {at}.{expected}")), "{text}");
    }
    let routes = |claim: &str| {
        let any = pack::<RouteConfiguration>(&format!(
            "{{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /, dynamic_metadata: [{claim}]}}, redirect: {{}}}}]}}]}}"
        ));
        with_context(None, |context| super::super::route::compile("r", &any, context))
    };
    assert!(routes(&format!("{{{jwt}, path: [{{key: payload}}, {{key: a}}], value: {text}}}")).is_ok());
    let error = routes("{filter: x}").unwrap_err().to_string();
    assert!(error.contains("match.dynamic_metadata[0].filter: `x` leaves no metadata"), "{error}");
}
