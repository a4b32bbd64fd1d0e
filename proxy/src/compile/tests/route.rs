//! Route tables, virtual hosts, routes and retries.

use std::sync::Arc;
use std::time::Duration;

use osier_proto::types::route::{RouteConfiguration, VirtualHost as HostMessage};

use super::*;
use crate::compile::route::CompiledRoutes;
use crate::config::route::{
    Action, AppendAction, Forward, ForwardTarget, HeaderName, HostRewrite, PathMatch, PathRewrite, Redirect,
    RedirectPath, RequireTls, RetryOn, RetryPolicy, Route, RouteTable, ValueMatch, VirtualHost, VirtualHosts,
};
use crate::on_demand::Limits;

fn compile(yaml: &str) -> Result<CompiledRoutes, Rejected> {
    let any = pack::<RouteConfiguration>(yaml);
    with_context(None, |context| super::super::route::compile("r", &any, context))
}

fn with_host(fields: &str) -> String {
    format!("{{name: r, virtual_hosts: [{{name: v, domains: ['*'], {fields}}}]}}")
}

fn with_route(fields: &str) -> String {
    with_host(&format!("routes: [{{{fields}}}]"))
}

fn with_match(fields: &str) -> String {
    with_route(&format!("match: {{{fields}}}, non_forwarding_action: {{}}"))
}

fn with_action(fields: &str) -> String {
    with_route(&format!("match: {{prefix: /}}, route: {{{fields}}}"))
}

fn host(table: &RouteTable) -> Arc<VirtualHost> {
    match &table.hosts {
        VirtualHosts::Known(index) => index.catch_all.clone().unwrap(),
        VirtualHosts::OnDemand(_) => panic!("known"),
    }
}

fn route(yaml: &str) -> Arc<Route> {
    host(&compile(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}")).table).routes[0].clone()
}

fn forward(fields: &str) -> Forward {
    // The compiled route lives in an Arc; the test takes it apart.
    let route = Arc::into_inner(route(&with_action(fields))).unwrap();
    match route.action {
        Action::Forward(forward) => *forward,
        other => panic!("{other:?}"),
    }
}

fn redirect(fields: &str) -> Redirect {
    let route = Arc::into_inner(route(&with_route(&format!("match: {{prefix: /}}, redirect: {{{fields}}}"))))
        .unwrap();
    match route.action {
        Action::Redirect(redirect) => *redirect,
        other => panic!("{other:?}"),
    }
}

fn retry(fields: &str) -> RetryPolicy {
    RetryPolicy::clone(&forward(&format!("cluster: c, retry_policy: {{{fields}}}")).retry.unwrap())
}

#[test]
fn tables_and_hosts() {
    let compiled = compile(
        "{name: r, ignore_port_in_host_matching: true, most_specific_header_mutations_wins: true, validate_clusters: false,
          request_headers_to_add: [{header: {key: x-a, value: 'v %PROTOCOL%'}}], request_headers_to_remove: [x-b],
          response_headers_to_add: [{header: {key: x-c, value: v}, append_action: ADD_IF_ABSENT}], response_headers_to_remove: [x-d],
          virtual_hosts: [{name: a, domains: [A.example, '*.b.example', 'c.*'], require_tls: EXTERNAL_ONLY, include_request_attempt_count: true,
            include_attempt_count_in_response: true}, {name: b, domains: ['*'], require_tls: ALL}]}",
    )
    .unwrap();
    let table = &compiled.table;
    assert!(table.ignore_port_in_host && table.most_specific_wins);
    assert_eq!(&*table.name, "r");
    assert_eq!(table.headers.request_remove[0], HeaderName::from("x-b"));
    assert_eq!(table.headers.response_remove[0], HeaderName::from("x-d"));
    assert_eq!(table.headers.response_add[0].action, AppendAction::AddIfAbsent);
    assert_eq!(table.headers.request_add[0].action, AppendAction::AppendIfExistsOrAdd);
    let VirtualHosts::Known(index) = &table.hosts else { panic!() };
    let a = &index.exact[&b"a.example"[..]];
    assert_eq!(
        (a.require_tls, a.attempt_count_in_request, a.attempt_count_in_response),
        (RequireTls::ExternalOnly, true, true)
    );
    assert_eq!((index.suffixes.len(), index.prefixes.len()), (1, 1));
    assert_eq!(index.catch_all.as_ref().unwrap().require_tls, RequireTls::All);
}

#[test]
fn header_operations() {
    let add = |fields: &str| {
        let yaml = with_route(&format!(
            "match: {{prefix: /}}, non_forwarding_action: {{}}, request_headers_to_add: [{{header: {{key: k, value: v}}, {fields}}}]"
        ));
        route(&yaml).headers.request_add[0].clone()
    };
    assert_eq!(add("append: true").action, AppendAction::AppendIfExistsOrAdd);
    assert_eq!(add("append: false").action, AppendAction::OverwriteIfExistsOrAdd);
    assert_eq!(add("append_action: OVERWRITE_IF_EXISTS").action, AppendAction::OverwriteIfExists);
    assert_eq!(add("append_action: OVERWRITE_IF_EXISTS_OR_ADD").action, AppendAction::OverwriteIfExistsOrAdd);
    assert!(add("keep_empty_value: true").keep_empty && !add("").keep_empty);
}

#[test]
fn matches() {
    let path = |fields: &str| Arc::into_inner(route(&with_match(fields))).unwrap().matches.path;
    assert!(matches!(path("prefix: /A"), PathMatch::Prefix(t) if &*t.value == b"/A" && !t.ignore_case));
    assert!(
        matches!(path("path: /A, case_sensitive: false"), PathMatch::Exact(t) if &*t.value == b"/a" && t.ignore_case)
    );
    assert!(matches!(path("path_separated_prefix: /a"), PathMatch::SegmentPrefix(t) if &*t.value == b"/a"));
    assert!(matches!(path("connect_matcher: {}"), PathMatch::Connect));
    let PathMatch::Regex(regex) = path("safe_regex: {regex: '/a+'}") else { panic!() };
    assert!(regex.is_match(b"/aa") && !regex.is_match(b"/aab"), "the whole path");

    let all = route(&with_match(
        "prefix: /, grpc: {}, runtime_fraction: {default_value: {numerator: 5, denominator: TEN_THOUSAND}, runtime_key: k}",
    ));
    assert!(all.matches.grpc);
    assert_eq!(all.matches.runtime_fraction, Some(500));
    let header = |fields: &str| {
        Arc::into_inner(route(&with_match(&format!("prefix: /, headers: [{{name: X-A, {fields}}}]"))))
            .unwrap()
            .matches
            .headers
            .remove(0)
    };
    assert!(matches!(header("").value, ValueMatch::Present(true)));
    assert!(matches!(header("present_match: false").value, ValueMatch::Present(false)));
    assert!(matches!(header("exact_match: v").value, ValueMatch::Exact(_)));
    assert!(matches!(header("prefix_match: v").value, ValueMatch::Prefix(_)));
    assert!(matches!(header("suffix_match: v").value, ValueMatch::Suffix(_)));
    assert!(matches!(header("contains_match: v").value, ValueMatch::Contains(_)));
    assert!(matches!(header("range_match: {start: -1, end: 9}").value, ValueMatch::Range(-1, 9)));
    assert!(matches!(header("safe_regex_match: {regex: v}").value, ValueMatch::Regex(_)));
    for (fields, check) in [
        (
            "exact: V, ignore_case: true",
            (|v| matches!(v, ValueMatch::Exact(t) if t.ignore_case && &*t.value == b"v"))
                as fn(&ValueMatch) -> bool,
        ),
        ("prefix: v", |v| matches!(v, ValueMatch::Prefix(_))),
        ("suffix: v", |v| matches!(v, ValueMatch::Suffix(_))),
        ("contains: v", |v| matches!(v, ValueMatch::Contains(_))),
        ("safe_regex: {regex: v}", |v| matches!(v, ValueMatch::Regex(_))),
    ] {
        assert!(check(&header(&format!("string_match: {{{fields}}}")).value), "{fields}");
    }
    let inverted = header("exact_match: v, invert_match: true, treat_missing_header_as_empty: true");
    assert!(inverted.invert && inverted.missing_as_empty);
    let query = |fields: &str| {
        Arc::into_inner(route(&with_match(&format!("prefix: /, query_parameters: [{{name: q, {fields}}}]"))))
            .unwrap()
            .matches
            .query
            .remove(0)
    };
    assert!(matches!(query("").value, ValueMatch::Present(true)));
    assert!(matches!(query("present_match: false").value, ValueMatch::Present(false)));
    assert!(matches!(query("string_match: {exact: v}").value, ValueMatch::Exact(_)));
}

#[test]
fn forwards() {
    let plain = forward("cluster: c");
    assert!(matches!(&plain.target, ForwardTarget::Cluster(handle) if &*handle.name == "c"));
    assert_eq!(
        (plain.timeout, plain.idle_timeout, plain.grpc_timeout_max),
        (Some(Duration::from_secs(15)), None, None)
    );
    assert!(plain.retry.is_none() && !plain.append_x_forwarded_host);
    assert_eq!(plain.cluster_not_found_status, 503);
    assert!(matches!(plain.rewrite, PathRewrite::Keep) && matches!(plain.host_rewrite, HostRewrite::Keep));

    let seconds = Duration::from_secs;
    let timed = forward(
        "cluster: c, timeout: 0s, idle_timeout: 0s, max_stream_duration: {max_stream_duration: 3s, grpc_timeout_header_max: 0s}",
    );
    assert_eq!(
        (timed.timeout, timed.idle_timeout, timed.grpc_timeout_max, timed.max_stream_duration),
        (None, Some(None), Some(None), Some(seconds(3)))
    );
    assert_eq!(
        forward("cluster: c, max_stream_duration: {grpc_timeout_header_max: 4s}").grpc_timeout_max,
        Some(Some(seconds(4)))
    );
    assert_eq!(forward("cluster: c, idle_timeout: 2s").idle_timeout, Some(Some(seconds(2))));
    assert!(
        matches!(forward("cluster_header: X-C").target, ForwardTarget::Header(name) if name == HeaderName::from("x-c"))
    );
    assert!(
        matches!(forward("cluster: c, prefix_rewrite: /p").rewrite, PathRewrite::Prefix(p) if &*p == b"/p")
    );
    assert!(
        matches!(forward("cluster: c, regex_rewrite: {pattern: {regex: '(a)'}, substitution: '\\1b'}").rewrite, PathRewrite::Regex(_, by) if &*by == b"${1}b")
    );
    assert!(
        matches!(forward("cluster: c, host_rewrite_literal: h").host_rewrite, HostRewrite::Literal(h) if &*h == "h")
    );
    assert!(matches!(forward("cluster: c, auto_host_rewrite: true").host_rewrite, HostRewrite::Auto));
    assert!(matches!(forward("cluster: c, auto_host_rewrite: false").host_rewrite, HostRewrite::Keep));
    assert!(matches!(forward("cluster: c, host_rewrite_header: x").host_rewrite, HostRewrite::Header(_)));
    assert!(matches!(
        forward("cluster: c, host_rewrite_path_regex: {pattern: {regex: a}, substitution: b}").host_rewrite,
        HostRewrite::PathRegex(..)
    ));
    assert!(forward("cluster: c, append_x_forwarded_host: true").append_x_forwarded_host);
    assert_eq!(
        forward("cluster: c, cluster_not_found_response_code: NOT_FOUND").cluster_not_found_status,
        404
    );
    assert_eq!(
        forward("cluster: c, cluster_not_found_response_code: INTERNAL_SERVER_ERROR")
            .cluster_not_found_status,
        500
    );
    assert_eq!(
        forward(
            "cluster: c, upgrade_configs: [{upgrade_type: WebSocket}, {upgrade_type: b, enabled: false}]"
        )
        .upgrades,
        [("websocket".into(), true), ("b".into(), false)]
    );

    let weighted = forward(
        "weighted_clusters: {total_weight: 100, clusters: [{name: a, weight: 90, host_rewrite_literal: h, request_headers_to_add: [{header: {key: k, value: v}}]}, {name: b, weight: 10}, {name: z, weight: 0}]}",
    );
    let ForwardTarget::Weighted(clusters) = weighted.target else { panic!() };
    assert_eq!((clusters.total, clusters.entries.len()), (100, 2));
    assert_eq!(clusters.entries[0].host_rewrite.as_deref(), Some("h"));
    assert_eq!(clusters.entries[0].headers.request_add.len(), 1);
}

#[test]
fn retries() {
    let plain = retry("");
    let expected = RetryPolicy {
        on: RetryOn(0),
        status_codes: [].into(),
        attempts: 1,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        avoid_previous_hosts: false,
        host_selection_attempts: 1,
        previous_priorities: None,
        backoff_base: Duration::from_millis(25),
        backoff_max: Duration::from_millis(250),
    };
    assert_eq!(plain, expected);
    let istio = retry(
        "retry_on: 'connect-failure,refused-stream, unavailable,cancelled,retriable-status-codes', num_retries: 2, retriable_status_codes: [503],
         per_try_timeout: 2s, per_try_idle_timeout: 3s, host_selection_retry_max_attempts: 5, retry_back_off: {base_interval: 0.1s},
         retry_host_predicate: [{name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}],
         retry_priority: {name: q, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 2}}",
    );
    let on = RetryOn::CONNECT_FAILURE
        | RetryOn::REFUSED_STREAM
        | RetryOn::UNAVAILABLE
        | RetryOn::CANCELLED
        | RetryOn::STATUS_CODES;
    assert_eq!((istio.on, istio.attempts, &*istio.status_codes), (RetryOn(on), 2, &[503][..]));
    assert_eq!(
        (istio.per_try_timeout, istio.per_try_idle_timeout),
        (Some(Duration::from_secs(2)), Some(Duration::from_secs(3)))
    );
    assert_eq!(
        (istio.avoid_previous_hosts, istio.host_selection_attempts, istio.previous_priorities),
        (true, 5, Some(2))
    );
    assert_eq!((istio.backoff_base, istio.backoff_max), (Duration::from_millis(100), Duration::from_secs(1)));
    assert_eq!(
        retry("retry_back_off: {base_interval: 1s, max_interval: 2s}").backoff_max,
        Duration::from_secs(2)
    );
    assert_eq!(retry("num_retries: 0").attempts, 0);
    let words = "5xx,gateway-error,reset,reset-before-request,connect-failure,refused-stream,retriable-4xx,retriable-status-codes,envoy-ratelimited,cancelled,deadline-exceeded,internal,resource-exhausted,unavailable";
    assert_eq!(retry(&format!("retry_on: '{words}'")).on, RetryOn((1 << 14) - 1), "one bit each");

    let table = compile(&with_host("retry_policy: {num_retries: 7}, routes: [{match: {prefix: /}, route: {cluster: c}}, {match: {prefix: /}, route: {cluster: c, retry_policy: {num_retries: 3}}}]")).unwrap().table;
    let attempts = |route: &Route| match &route.action {
        Action::Forward(f) => f.retry.as_ref().unwrap().attempts,
        _ => panic!(),
    };
    assert_eq!(
        host(&table).routes.iter().map(|r| attempts(r)).collect::<Vec<_>>(),
        [7, 3],
        "the route's own wins"
    );
}

#[test]
fn redirects_and_direct_responses() {
    let plain = redirect("");
    assert_eq!(
        (plain.status, plain.scheme, plain.host, plain.port, plain.strip_query),
        (301, None, None, None, false)
    );
    assert!(matches!(plain.path, RedirectPath::Keep));
    let all = redirect(
        "https_redirect: true, host_redirect: h, port_redirect: 81, path_redirect: /p, response_code: PERMANENT_REDIRECT, strip_query: true",
    );
    assert_eq!(
        (all.status, all.scheme.as_deref(), all.host.as_deref(), all.port, all.strip_query),
        (308, Some("https"), Some("h"), Some(81), true)
    );
    assert!(matches!(all.path, RedirectPath::Replace(p) if &*p == b"/p"));
    assert_eq!(redirect("scheme_redirect: ftp").scheme.as_deref(), Some("ftp"));
    assert!(matches!(redirect("prefix_rewrite: /p").path, RedirectPath::Prefix(_)));
    assert!(matches!(
        redirect("regex_rewrite: {pattern: {regex: a}, substitution: b}").path,
        RedirectPath::Regex(..)
    ));
    for (code, status) in [("FOUND", 302), ("SEE_OTHER", 303), ("TEMPORARY_REDIRECT", 307)] {
        assert_eq!(redirect(&format!("response_code: {code}")).status, status);
    }
    let direct = |fields: &str| match &route(&with_route(&format!(
        "match: {{prefix: /}}, direct_response: {{{fields}}}"
    )))
    .action
    {
        Action::Direct(direct) => (direct.status, direct.body.to_vec()),
        other => panic!("{other:?}"),
    };
    assert_eq!(direct("status: 200, body: {inline_string: hi}"), (200, b"hi".to_vec()));
    assert_eq!(direct("status: 599, body: {inline_bytes: aGk=}"), (599, b"hi".to_vec()));
    assert_eq!(direct("status: 204"), (204, Vec::new()));
    let named = route(&with_route(
        "name: nn, match: {prefix: /}, non_forwarding_action: {}, decorator: {operation: o, propagate: false}",
    ));
    assert_eq!((&*named.name, named.decorator.as_deref()), ("nn", Some("o")));
    assert!(matches!(named.action, Action::NonForwarding));
}

#[test]
fn clusters_are_checked_where_asked() {
    let yaml = with_action("cluster: unknown");
    assert_eq!(
        compile(&yaml).unwrap().references.clusters.iter().map(|c| &**c).collect::<Vec<_>>(),
        ["unknown"]
    );
    let checked = |yaml: &str| compile(&yaml.replacen("name: r,", "name: r, validate_clusters: true,", 1));
    assert_eq!(checked(&yaml).unwrap_err().field, "virtual_hosts[0].routes[0].route.cluster");
    assert!(checked(&with_action("cluster: known")).is_ok());
    let weighted =
        with_action("weighted_clusters: {clusters: [{name: known, weight: 1}, {name: unknown, weight: 1}]}");
    assert_eq!(
        checked(&weighted).unwrap_err().field,
        "virtual_hosts[0].routes[0].route.weighted_clusters.clusters[1].name"
    );
}

#[test]
fn virtual_hosts_on_demand() {
    let yaml = format!("{{name: r, vhds: {{config_source: {V3}}}}}");
    assert_eq!(compile(&yaml).unwrap_err().field, "vhds", "only where the control plane has confirmed it");
    let (on_demand, _asked) = OnDemand::new(Limits::default());
    let compile = |yaml: &str| {
        let any = pack::<RouteConfiguration>(yaml);
        with_context(Some(&on_demand), |context| super::super::route::compile("r", &any, context))
    };
    let table = compile(&yaml).unwrap().table;
    assert!(
        matches!(&table.hosts, VirtualHosts::OnDemand(hosts) if Arc::ptr_eq(hosts, &on_demand.hosts("r")))
    );
    let both =
        format!("{{name: r, vhds: {{config_source: {V3}}}, virtual_hosts: [{{name: v, domains: ['*']}}]}}");
    assert_eq!(compile(&both).unwrap_err().field, "virtual_hosts");
    assert_eq!(compile("{name: r, vhds: {}}").unwrap_err().field, "vhds.config_source");

    let host = |yaml: &str| {
        let any = pack::<HostMessage>(yaml);
        with_context(None, |context| super::super::route::compile_virtual_host("r/h", &any, context))
    };
    let compiled =
        host("{name: v, domains: [a, a, '*'], routes: [{match: {prefix: /}, route: {cluster: c}}]}").unwrap();
    assert_eq!(&*compiled.host.name, "v");
    assert!(compiled.references.clusters.contains("c"));
    let error = host("{name: v, routes: [{match: {prefix: /}}]}").unwrap_err();
    assert_eq!((error.name.as_str(), error.field.as_str()), ("r/h", "routes[0].action"));
}

#[test]
fn what_is_refused() {
    let route = "virtual_hosts[0].routes[0].";
    let matched = "virtual_hosts[0].routes[0].match.";
    let action = "virtual_hosts[0].routes[0].route.";
    let hosts = |hosts: &str| format!("{{name: r, virtual_hosts: [{hosts}]}}");
    let header = |fields: &str| with_match(&format!("prefix: /, headers: [{{{fields}}}]"));
    let retry = |fields: &str| with_action(&format!("cluster: c, retry_policy: {{{fields}}}"));
    let redirect = |fields: &str| with_route(&format!("match: {{prefix: /}}, redirect: {{{fields}}}"));
    let direct = |fields: &str| with_route(&format!("match: {{prefix: /}}, direct_response: {{{fields}}}"));
    let add = |fields: &str| with_host(&format!("request_headers_to_add: [{{{fields}}}]"));
    let pipe = "typed_config: {'@type': type.googleapis.com/envoy.config.core.v3.Pipe}";
    let cases = [
        ("{name: s}".to_owned(), "name: is `s`".to_owned()),
        (hosts("{domains: ['*']}"), "virtual_hosts[0].name: must not be empty".into()),
        (hosts("{name: v}"), "virtual_hosts[0].domains: needs at least one".into()),
        (
            hosts("{name: v, domains: [a]}, {name: v, domains: [b]}"),
            "virtual_hosts[1].name: `v` is there twice".into(),
        ),
        (
            hosts("{name: v, domains: [a]}, {name: w, domains: [b, A]}"),
            "virtual_hosts[1].domains[1]: `A` belongs to another".into(),
        ),
        (hosts("{name: v, domains: ['*', '*']}"), "virtual_hosts[0].domains[1]: `*` belongs".into()),
        (hosts("{name: v, domains: ['a*b']}"), "virtual_hosts[0].domains[0]: `a*b`: a wildcard".into()),
        (hosts("{name: v, domains: ['*a*']}"), "virtual_hosts[0].domains[0]: `*a*`: a wildcard".into()),
        (hosts("{name: v, domains: ['']}"), "virtual_hosts[0].domains[0]: ".into()),
        (
            add("header: {value: v}"),
            "virtual_hosts[0].request_headers_to_add[0].header.key: `` is not a header name".into(),
        ),
        (
            add("header: {key: 'a b', value: v}"),
            "virtual_hosts[0].request_headers_to_add[0].header.key: `a b` is not".into(),
        ),
        (
            add("header: {key: ':path', value: v}"),
            "virtual_hosts[0].request_headers_to_add[0].header.key: `:path` cannot be changed".into(),
        ),
        (
            add("header: {key: Host, value: v}"),
            "virtual_hosts[0].request_headers_to_add[0].header.key: `Host` cannot be changed".into(),
        ),
        (
            add("header: {key: k, value: \"a\\nb\"}"),
            "virtual_hosts[0].request_headers_to_add[0].header.value: must not contain control".into(),
        ),
        (
            add("header: {key: k, value: '%NOPE%'}"),
            "virtual_hosts[0].request_headers_to_add[0].header.value: ".into(),
        ),
        (
            add("header: {key: k, value: v}, append: true, append_action: ADD_IF_ABSENT"),
            "virtual_hosts[0].request_headers_to_add[0].append: excludes".into(),
        ),
        (add(""), "virtual_hosts[0].request_headers_to_add[0].header: is required".into()),
        (
            with_host("response_headers_to_remove: [x, ':status']"),
            "virtual_hosts[0].response_headers_to_remove[1]: `:status` cannot be changed".into(),
        ),
        (
            with_host("request_headers_to_remove: ['']"),
            "virtual_hosts[0].request_headers_to_remove[0]: `` is not".into(),
        ),
        (with_route("match: {prefix: /}"), format!("{route}action: is required")),
        (with_route("non_forwarding_action: {}"), format!("{route}match: is required")),
        (
            with_route("match: {prefix: /}, non_forwarding_action: {}, decorator: {}"),
            format!("{route}decorator.operation: must not be empty"),
        ),
        (with_match(""), format!("{matched}path_specifier: is required")),
        (with_match("path_separated_prefix: /"), format!("{matched}path_separated_prefix: `/` must not be")),
        (
            with_match("path_separated_prefix: /a/"),
            format!("{matched}path_separated_prefix: `/a/` must not be"),
        ),
        (
            with_match("path_separated_prefix: '/a?'"),
            format!("{matched}path_separated_prefix: `/a?` must not be"),
        ),
        (
            with_match("safe_regex: {regex: '('}"),
            format!("{matched}safe_regex.regex: regular expression `(`"),
        ),
        (with_match("safe_regex: {}"), format!("{matched}safe_regex.regex: must not be empty")),
        (
            with_match("prefix: /, runtime_fraction: {}"),
            format!("{matched}runtime_fraction.default_value: is required"),
        ),
        (header(""), format!("{matched}headers[0].name: must not be empty")),
        (header("name: a, prefix_match: ''"), format!("{matched}headers[0].prefix_match: must not be empty")),
        (header("name: a, suffix_match: ''"), format!("{matched}headers[0].suffix_match: must not be empty")),
        (
            header("name: a, contains_match: ''"),
            format!("{matched}headers[0].contains_match: must not be empty"),
        ),
        (
            header("name: a, safe_regex_match: {regex: '['}"),
            format!("{matched}headers[0].safe_regex_match.regex: regular expression"),
        ),
        (
            header("name: a, string_match: {}"),
            format!("{matched}headers[0].string_match.match_pattern: is required"),
        ),
        (
            header("name: a, string_match: {prefix: ''}"),
            format!("{matched}headers[0].string_match.prefix: must not be empty"),
        ),
        (
            header("name: a, string_match: {safe_regex: {regex: a}, ignore_case: true}"),
            format!("{matched}headers[0].string_match.ignore_case: has no effect"),
        ),
        (
            with_match("prefix: /, query_parameters: [{}]"),
            format!("{matched}query_parameters[0].name: must not be empty"),
        ),
        (
            with_match("prefix: /, query_parameters: [{name: q, string_match: {}}]"),
            format!("{matched}query_parameters[0].string_match.match_pattern"),
        ),
        (with_action(""), format!("{action}cluster_specifier: is required")),
        (with_action("cluster: ''"), format!("{action}cluster: must not be empty")),
        (with_action("cluster_header: ''"), format!("{action}cluster_header: `` is not a header name")),
        (
            with_action("weighted_clusters: {}"),
            format!("{action}weighted_clusters.clusters: weights must add up"),
        ),
        (
            with_action("weighted_clusters: {clusters: [{name: a}]}"),
            format!("{action}weighted_clusters.clusters[0].weight: is required"),
        ),
        (
            with_action("weighted_clusters: {clusters: [{name: a, weight: 0}]}"),
            format!("{action}weighted_clusters.clusters: weights must add up"),
        ),
        (
            with_action(
                "weighted_clusters: {clusters: [{name: a, weight: 4294967295}, {name: b, weight: 1}]}",
            ),
            format!("{action}weighted_clusters.clusters: weights must add up"),
        ),
        (
            with_action("weighted_clusters: {total_weight: 3, clusters: [{name: a, weight: 2}]}"),
            format!("{action}weighted_clusters.total_weight: weights add up to 2"),
        ),
        (
            with_action("weighted_clusters: {clusters: [{weight: 2}]}"),
            format!("{action}weighted_clusters.clusters[0].name: must not be empty"),
        ),
        (with_action("cluster: c, timeout: -1s"), format!("{action}timeout: must not be negative")),
        (with_action("cluster: c, idle_timeout: -1s"), format!("{action}idle_timeout: must not be negative")),
        (
            with_action("cluster: c, max_stream_duration: {max_stream_duration: -1s}"),
            format!("{action}max_stream_duration.max_stream_duration: must not be negative"),
        ),
        (
            with_action("cluster: c, max_stream_duration: {grpc_timeout_header_max: -1s}"),
            format!("{action}max_stream_duration.grpc_timeout_header_max: must not be negative"),
        ),
        (
            with_action("cluster: c, prefix_rewrite: /a, regex_rewrite: {pattern: {regex: a}}"),
            format!("{action}regex_rewrite: excludes `prefix_rewrite`"),
        ),
        (with_action("cluster: c, regex_rewrite: {}"), format!("{action}regex_rewrite.pattern: is required")),
        (
            with_action("cluster: c, regex_rewrite: {pattern: {regex: a}, substitution: '\\3'}"),
            format!("{action}regex_rewrite.substitution: substitution"),
        ),
        (
            with_action("cluster: c, host_rewrite_literal: \"a\\r\\nb\""),
            format!("{action}host_rewrite_literal: must not contain control"),
        ),
        (
            with_action("cluster: c, host_rewrite_header: 'a b'"),
            format!("{action}host_rewrite_header: `a b` is not"),
        ),
        (
            with_action("cluster: c, host_rewrite_path_regex: {pattern: {regex: ''}}"),
            format!("{action}host_rewrite_path_regex.pattern.regex: must not be empty"),
        ),
        (
            with_action("cluster: c, upgrade_configs: [{upgrade_type: a}, {upgrade_type: A}]"),
            format!("{action}upgrade_configs[1].upgrade_type: `a` is there twice"),
        ),
        (
            retry("retry_on: 'reset,retriable-headers'"),
            format!("{action}retry_policy.retry_on: condition `retriable-headers` is not supported"),
        ),
        (
            retry("retriable_status_codes: [503, 700]"),
            format!("{action}retry_policy.retriable_status_codes[1]: 700 is not a status"),
        ),
        (
            retry("per_try_timeout: -1s"),
            format!("{action}retry_policy.per_try_timeout: must not be negative"),
        ),
        (
            retry("per_try_idle_timeout: -1s"),
            format!("{action}retry_policy.per_try_idle_timeout: must not be negative"),
        ),
        (
            retry("host_selection_retry_max_attempts: -1"),
            format!("{action}retry_policy.host_selection_retry_max_attempts: -1 is out of range"),
        ),
        (
            retry(&format!("retry_host_predicate: [{{name: x, {pipe}}}]")),
            format!("{action}retry_policy.retry_host_predicate[0].typed_config: extension type"),
        ),
        (
            retry("retry_host_predicate: [{name: x}]"),
            format!("{action}retry_policy.retry_host_predicate[0].typed_config: is required"),
        ),
        (
            retry(&format!("retry_priority: {{name: x, {pipe}}}")),
            format!("{action}retry_policy.retry_priority.typed_config: extension type"),
        ),
        (
            retry(
                "retry_priority: {name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig}}",
            ),
            format!("{action}retry_policy.retry_priority.typed_config.update_frequency: must be at least 1"),
        ),
        (
            retry("retry_back_off: {}"),
            format!("{action}retry_policy.retry_back_off.base_interval: is required"),
        ),
        (
            retry("retry_back_off: {base_interval: 0s}"),
            format!("{action}retry_policy.retry_back_off.base_interval: must be at least 1ms"),
        ),
        (
            retry("retry_back_off: {base_interval: 2s, max_interval: 1s}"),
            format!("{action}retry_policy.retry_back_off.max_interval: must not be shorter"),
        ),
        (
            with_host("retry_policy: {retry_on: nope}"),
            "virtual_hosts[0].retry_policy.retry_on: condition `nope`".into(),
        ),
        (redirect("port_redirect: 65536"), format!("{route}redirect.port_redirect: 65536 is not a port")),
        (
            redirect("host_redirect: \"a\\rb\""),
            format!("{route}redirect.host_redirect: must not contain control"),
        ),
        (
            redirect("path_redirect: \"\\n\""),
            format!("{route}redirect.path_redirect: must not contain control"),
        ),
        (
            redirect("prefix_rewrite: \"\\n\""),
            format!("{route}redirect.prefix_rewrite: must not contain control"),
        ),
        (
            redirect("scheme_redirect: \"\\n\""),
            format!("{route}redirect.scheme_redirect: must not contain control"),
        ),
        (
            redirect("regex_rewrite: {pattern: {regex: '('}}"),
            format!("{route}redirect.regex_rewrite.pattern.regex: regular expression"),
        ),
        (direct("status: 199"), format!("{route}direct_response.status: 199 is not between")),
        (direct("status: 600"), format!("{route}direct_response.status: 600 is not between")),
        (
            direct("status: 200, body: {filename: /etc/passwd}"),
            format!("{route}direct_response.body.filename: is not supported"),
        ),
        (
            direct(&format!("status: 200, body: {{inline_string: {}}}", "x".repeat(4097))),
            format!("{route}direct_response.body: has 4097 bytes"),
        ),
    ];
    let cases: Vec<_> = cases.iter().map(|(yaml, text)| (yaml.as_str(), text.as_str())).collect();
    refused(&cases, compile);
}
