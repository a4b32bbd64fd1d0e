//! RBAC filters.

use osier_proto::types::listener::Listener as Message;

use super::*;
use crate::authz::{Action, Condition, Filter, NameMatch};
use crate::compile::listener::CompiledListener;
use crate::config::listener::NetworkAction;

const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network";
const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http";
const TEMPLATE: &str =
    "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";

fn compile(filters: &str) -> Result<CompiledListener, Rejected> {
    let any = pack::<Message>(&format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}, filter_chains: [{{filters: [{filters}]}}]}}"
    ));
    with_context(None, |context| super::super::listener::compile("l", &any, context))
}

fn over_http(fields: &str) -> String {
    format!(
        "{{name: hcm, typed_config: {{'@type': {NETWORK}.http_connection_manager.v3.HttpConnectionManager, stat_prefix: h,
         route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*']}}]}}, http_filters: [
           {{name: rbac, typed_config: {{'@type': {HTTP}.rbac.v3.RBAC, {fields}}}}},
           {{name: router, typed_config: {{'@type': {HTTP}.router.v3.Router}}}}]}}}}"
    )
}

fn over_tcp(fields: &str) -> String {
    format!(
        "{{name: rbac, typed_config: {{'@type': {NETWORK}.rbac.v3.RBAC, {fields}}}}},
         {{name: tcp, typed_config: {{'@type': {NETWORK}.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}}}"
    )
}

/// One policy with this permission and principal.
fn policy(permission: &str, principal: &str) -> String {
    format!("rules: {{policies: {{p: {{permissions: [{permission}], principals: [{principal}]}}}}}}")
}

fn filters(listener: &CompiledListener) -> &[Filter] {
    match &listener.listener.chains[0].action {
        NetworkAction::Http(manager) => &manager.authorization,
        NetworkAction::Tcp(proxy) => &proxy.authorization,
    }
}

#[test]
fn filters_of_requests_and_of_connections() {
    let compiled = compile(&over_http(
        "rules: {action: DENY, policies: {'ns[a]-policy[b c]-rule[0]': {permissions: [{any: true}], principals: [{any: true}]}}},
         shadow_rules: {action: ALLOW}, shadow_rules_stat_prefix: istio_dry_run_allow_",
    ))
    .unwrap();
    let [filter] = filters(&compiled) else { panic!("one filter") };
    let (enforced, _) = filter.enforced.as_ref().unwrap();
    assert_eq!(enforced.action, Action::Deny);
    let details = &enforced.rules[0].denial.details;
    assert_eq!(&**details, "rbac_access_denied_matched_policy[ns[a]-policy[b_c]-rule[0]]");
    let (shadow, _) = filter.shadow.as_ref().unwrap();
    assert!(shadow.rules.is_empty());
    assert_eq!(&*shadow.unmatched.details, "rbac_access_denied_matched_policy[none]");
    let tcp = compile(&over_tcp("stat_prefix: tcp., rules: {action: LOG}")).unwrap();
    let [filter] = filters(&tcp) else { panic!("one filter") };
    assert!(filter.shadow.is_none());
    assert_eq!(filter.enforced.as_ref().unwrap().0.action, Action::Log);
}

#[test]
fn every_kind_of_condition() {
    let template =
        format!("{{uri_template: {{name: t, typed_config: {{'@type': {TEMPLATE}, path_template: /a/*}}}}}}");
    for permission in [
        "{header: {name: ':method', string_match: {exact: GET}}}",
        "{url_path: {path: {prefix: /a}}}",
        "{destination_ip: {address_prefix: 10.0.0.0, prefix_len: 8}}",
        "{destination_port: 0}",
        "{destination_port_range: {start: 1, end: 65536}}",
        "{requested_server_name: {suffix: .test}}",
        "{not_rule: {or_rules: {rules: [{any: true}, {and_rules: {rules: [{any: true}]}}]}}}",
        &template,
    ] {
        compile(&over_http(&policy(permission, "{any: true}")))
            .unwrap_or_else(|e| panic!("{permission}: {e}"));
    }
    for principal in [
        "{authenticated: {}}",
        "{authenticated: {principal_name: {safe_regex: {regex: 'spiffe://.+/ns/a/(.+/|)sa/b(/.+)?'}}}}",
        "{source_ip: {address_prefix: 10.0.0.1, prefix_len: 32}}",
        "{direct_remote_ip: {address_prefix: '::1', prefix_len: 128}}",
        "{remote_ip: {address_prefix: 10.0.0.1, prefix_len: 32}}",
        "{header: {name: x}}",
        "{url_path: {path: {exact: /}}}",
        "{not_id: {or_ids: {ids: [{any: true}, {and_ids: {ids: [{any: true}]}}]}}}",
    ] {
        compile(&over_http(&policy("{any: true}", principal))).unwrap_or_else(|e| panic!("{principal}: {e}"));
    }
    let account = policy(
        "{any: true}",
        "{authenticated: {principal_name: {safe_regex: {regex: 'spiffe://.+/ns/a/(.+/|)sa/b(/.+)?'}}}}",
    );
    let compiled = compile(&over_http(&account)).unwrap();
    let rule = &filters(&compiled)[0].enforced.as_ref().unwrap().0.rules[0];
    assert!(
        matches!(&rule.condition, Condition::Principal(name) if matches!(**name, NameMatch::Account(_))),
        "{rule:?}"
    );
}

#[test]
fn what_is_refused() {
    const RULES: &str =
        "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config.rules.policies[\"p\"].";
    let permission = |text: &str| over_http(&policy(text, "{any: true}"));
    let principal = |text: &str| over_http(&policy("{any: true}", text));
    let under = |rest: &str| format!("{RULES}{rest}");
    let cases = [
        (permission(""), under("permissions: must not be empty")),
        (principal(""), under("principals: must not be empty")),
        (permission("{}"), under("permissions[0].rule: is required")),
        (principal("{}"), under("principals[0].identifier: is required")),
        (permission("{any: false}"), under("permissions[0].any: must be true")),
        (permission("{and_rules: {}}"), under("permissions[0].and_rules.rules: must not be empty")),
        (principal("{or_ids: {}}"), under("principals[0].or_ids.ids: must not be empty")),
        (permission("{not_rule: {}}"), under("permissions[0].not_rule.rule: is required")),
        (permission("{header: {}}"), under("permissions[0].header.name: must not be empty")),
        (permission("{url_path: {}}"), under("permissions[0].url_path.rule: is required")),
        (
            permission("{destination_port: 65536}"),
            under("permissions[0].destination_port: 65536 is not a port"),
        ),
        (
            permission("{destination_port_range: {start: 9, end: 9}}"),
            under("permissions[0].destination_port_range: [9, 9) is no range of ports"),
        ),
        (
            permission(&format!(
                "{{uri_template: {{name: t, typed_config: {{'@type': {TEMPLATE}, path_template: /a*}}}}}}"
            )),
            under("permissions[0].uri_template.typed_config.path_template: segment `a*` has `*`"),
        ),
        (
            permission(
                "{uri_template: {name: t, typed_config: {'@type': type.googleapis.com/envoy.config.core.v3.Pipe}}}",
            ),
            under("permissions[0].uri_template.typed_config: extension type"),
        ),
        (
            principal("{authenticated: {principal_name: {safe_regex: {regex: '('}}}}"),
            under("principals[0].authenticated.principal_name.safe_regex.regex"),
        ),
        (
            principal("{remote_ip: {address_prefix: x}}"),
            under("principals[0].remote_ip.address_prefix: `x` is not an IP address"),
        ),
        (over_tcp(""), "filter_chains[0].filters[0].typed_config.stat_prefix: must not be empty".into()),
        (
            format!(
                "{{name: rbac, typed_config: {{'@type': {NETWORK}.rbac.v3.RBAC, stat_prefix: t}}}}, {}",
                over_http("")
            ),
            "filter_chains[0].filters: RBAC and external authorizers of HTTP must be among the `http_filters`".into(),
        ),
    ];
    let cases: Vec<(&str, &str)> = cases.iter().map(|(yaml, text)| (&**yaml, &**text)).collect();
    refused(&cases, compile);
}
