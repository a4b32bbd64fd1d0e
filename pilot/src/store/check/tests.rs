//! Every row of the reference's tables that accepts, warns or refuses: YAML in, problems out.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::*;
use crate::model::*;
use crate::source::decode::decode;
use crate::source::yaml::parse;
use crate::store::schema;

fn context(kind: Kind) -> Context {
    Context::new(kind, "prod", "test", 7, &Arc::from("cluster.local"))
}

fn read<T: DeserializeOwned>(yaml: &str) -> Result<T, String> {
    let node = parse(yaml).unwrap_or_else(|e| panic!("{e}: {yaml}")).remove(0);
    decode(&node).map_err(|e| format!("error {e}"))
}

fn shown(problems: &[Problem]) -> Vec<String> {
    let word = |s| match s {
        Severity::Error => "error",
        Severity::Warning => "warn",
        Severity::Notice => "notice",
    };
    problems.iter().map(|p| format!("{} {}: {}", word(p.severity), p.field, p.message)).collect()
}

fn route(yaml: &str) -> Result<RouteRule, Vec<String>> {
    let spec: schema::virtual_service::VirtualService = read(yaml).map_err(|e| vec![e])?;
    let checked = virtual_service::check(&context(Kind::VirtualService), &spec);
    let problems = shown(&checked.problems);
    checked.value.ok_or(problems)
}

fn route_problems(yaml: &str) -> Vec<String> {
    match read::<schema::virtual_service::VirtualService>(yaml) {
        Err(error) => vec![error],
        Ok(spec) => shown(&virtual_service::check(&context(Kind::VirtualService), &spec).problems),
    }
}

/// Each row: YAML, and the beginning of each problem; none means accepted without a word.
fn table(problems: impl Fn(&str) -> Vec<String>, rows: &[(&str, &[&str])]) {
    for (yaml, wanted) in rows {
        let got = problems(yaml);
        let same = got.len() == wanted.len() && got.iter().zip(*wanted).all(|(g, w)| g.starts_with(w));
        assert!(same, "{yaml}\n got {got:#?}\n wanted {wanted:#?}");
    }
}

const TO: &str = "http: [{route: [{destination: {host: a}}]}]";

#[test]
fn virtual_service_top_level() {
    let with = |rest: &str| format!("{rest}, {}", "http: [{route: [{destination: {host: a}}]}]");
    let rows: &[(&str, &[&str])] = &[
        ("hosts: [a]", &[]),
        ("hosts: [a.b.c, '*.foo.com', 10.0.0.1]", &[]),
        ("hosts: [a, a]", &["error spec.hosts[1]: \"a\" is there twice"]),
        (
            "hosts: [a, a.prod.svc.cluster.local]",
            &["error spec.hosts[1]: \"a.prod.svc.cluster.local\" is there twice"],
        ),
        ("hosts: [a.com, '*.com']", &["error spec.hosts[1]: \"*.com\" overlaps a.com"]),
        ("hosts: ['*']", &["error spec.hosts[0]: * is allowed only"]),
        ("hosts: ['*'], gateways: [gw, mesh]", &["error spec.hosts[0]: * is allowed only"]),
        ("hosts: ['*'], gateways: [gw]", &[]),
        ("hosts: ['a.*.com']", &["error spec.hosts[0]: \"a.*.com\" has a wildcard outside"]),
        ("hosts: [a_b.com]", &["error spec.hosts[0]: \"a_b.com\" has the label \"a_b\""]),
        ("hosts: []", &["error spec.hosts: is empty; VirtualServices that others delegate to"]),
        ("hosts: [a], gateways: [mesh, gw, ns/gw, ./gw, gw.ns.svc.cluster.local]", &[]),
        ("hosts: [a], gateways: [a/b/c]", &["error spec.gateways[0]: \"a/b/c\" is not of the form"]),
        ("hosts: [a], gateways: ['']", &["error spec.gateways[0]: is empty"]),
        ("hosts: [a], exportTo: ['.', other]", &[]),
        ("hosts: [a], exportTo: ['*']", &[]),
        ("hosts: [a], exportTo: ['~']", &["error spec.exportTo[0]: ~ is allowed for services only"]),
        ("hosts: [a], exportTo: ['*', a]", &["error spec.exportTo[0]: * includes all others"]),
        ("hosts: [a], exportTo: ['.', prod]", &["error spec.exportTo[1]: \"prod\" is there twice"]),
        ("hosts: [a], exportTo: [b_d]", &["error spec.exportTo[0]: \"b_d\" is no name"]),
        ("hosts: [a], typo: 1", &["error typo: unknown field"]),
    ];
    for (yaml, wanted) in rows {
        table(route_problems, &[(&format!("{{{}}}", with(yaml)), wanted)]);
    }
    table(route_problems, &[("hosts: [a]", &["error spec: needs at least one of http, tls and tcp"])]);
    let rule =
        route(&format!("{{hosts: [a, b.c], gateways: [gw, ./x, ns/y, old.ns.svc.local], {TO}}}")).unwrap();
    assert_eq!(rule.hosts, ["a.prod.svc.cluster.local", "b.c"].map(Host::new), "any dot: taken as it is");
    let named =
        |namespace: &str, name: &str| GatewayRef::Named { namespace: namespace.into(), name: name.into() };
    assert_eq!(
        rule.gateways,
        [named("prod", "gw"), named("prod", "x"), named("ns", "y"), named("ns", "old")]
    );
    assert!(!rule.for_mesh());
    assert!(route(&format!("{{hosts: [a], {TO}}}")).unwrap().for_mesh(), "no gateways: mesh");
}

fn http_problems(route: &str) -> Vec<String> {
    let strip = |p: String| {
        p.replace(" spec.http[0].", " ").replace(" http[0].", " ").replace(" spec.http[0]:", " :")
    };
    route_problems(&format!("{{hosts: [a], http: [{{{route}}}]}}")).into_iter().map(strip).collect()
}

#[test]
fn http_routes() {
    let to = "route: [{destination: {host: a}}]";
    let with = |rest: &str| http_problems(&format!("{to}, {rest}"));
    table(
        http_problems,
        &[
            ("", &["error : needs one of route, redirect and directResponse"]),
            ("name: x", &["error : needs one of"]),
            ("redirect: {uri: /x}, directResponse: {status: 200}", &["error : has more than one of"]),
            (
                "redirect: {uri: /x}, rewrite: {uri: /y}",
                &["error rewrite: is allowed together with route only"],
            ),
            (
                "directResponse: {status: 200}, rewrite: {uri: /y}",
                &["error rewrite: is allowed together with route only"],
            ),
        ],
    );
    table(
        with,
        &[
            ("redirect: {uri: /x}", &["error : has more than one of"]),
            ("timeout: 1ms", &[]),
            ("timeout: 0s", &["error timeout: must be at least 1ms"]),
            ("timeout: 1500us", &["error timeout: \"1500us\" is not a whole number of milliseconds"]),
            ("timeout: 5", &["error timeout: must be text, not the number 5"]),
            ("timeout: soon", &["error timeout: \"soon\" is not a duration"]),
            ("fault: {}", &["error fault: is not supported yet"]),
            ("mirror: {host: b}", &["error mirror: is not supported yet"]),
            ("mirrors: []", &["error mirrors: is not supported yet"]),
            ("mirrorPercentage: {value: 1}", &["error mirrorPercentage: is not supported yet"]),
            ("mirrorPercent: 5", &["error mirrorPercent: is not supported yet"]),
            ("corsPolicy: {}", &["error corsPolicy: is not supported yet"]),
            ("delegate: {name: x}", &["error delegate: is not supported yet"]),
            ("retires: {attempts: 1}", &["error retires: unknown field, did you mean retries?"]),
        ],
    );
}

#[test]
fn http_matches() {
    let with = |m: &str| http_problems(&format!("match: [{{{m}}}], route: [{{destination: {{host: a}}}}]"));
    table(
        with,
        &[
            ("", &[]),
            ("uri: {exact: /a}", &[]),
            ("uri: {prefix: ''}", &[]),
            ("uri: {regex: '/a.*'}", &[]),
            ("uri: {}", &[]),
            (
                "uri: {exact: a, prefix: b}",
                &["error match[0].uri: has more than one of exact, prefix and regex"],
            ),
            ("uri: {regex: ''}", &["error match[0].uri.regex: is empty"]),
            ("uri: {regex: '(a'}", &["error match[0].uri.regex: regular expression `(a`"]),
            ("uri: {suffix: a}", &["error match[0].uri.suffix: unknown field"]),
            ("scheme: {prefix: ''}", &["error match[0].scheme.prefix: is empty"]),
            ("method: {prefix: ''}", &["error match[0].method.prefix: is empty"]),
            ("authority: {regex: ''}", &["error match[0].authority.regex: is empty"]),
            ("headers: {x-a: {exact: ''}}", &[]),
            ("headers: {x-a: {}}", &[]),
            ("headers: {x-a: {regex: '*'}}", &[]),
            ("headers: {x-a: null}", &["error match[0].headers.x-a: has no condition"]),
            ("headers: {'x a': {}}", &["error match[0].headers.x a: \"x a\" is no header name"]),
            ("headers: {uri: {exact: /}}", &["warn match[0].headers.uri: is ignored among the headers"]),
            (
                "headers: {'@request.auth.claims.a': {exact: b}}",
                &["error match[0].headers[\"@request.auth.claims.a\"]: conditions on JWT"],
            ),
            ("withoutHeaders: {x-a: {}}", &[]),
            ("queryParams: {a: {exact: b}, c: {}, d: {regex: e}}", &[]),
            ("port: 80", &[]),
            ("port: 65536", &["error match[0].port: 65536 is no port number"]),
            ("port: -1", &["error match[0].port: -1 is not between 0"]),
            ("sourceLabels: {app: a}, sourceNamespace: b, gateways: [mesh]", &[]),
            ("sourceLabels: {app: '*'}", &["error match[0].sourceLabels.app: wildcards are not supported"]),
            ("statPrefix: x", &["error match[0].statPrefix: is not supported yet"]),
            ("ignoreUriCase: 'true'", &["error match[0].ignoreUriCase: must be true or false"]),
        ],
    );
    let long = "a".repeat(1025);
    let got = with(&format!("uri: {{regex: {long}}}"));
    assert_eq!(got, ["error match[0].uri.regex: has 1025 characters, 1024 are allowed"]);
    let rule = route("{hosts: [a], http: [{match: [{headers: {X-A: {exact: b}, y: {}, z: {regex: '*'}}}], route: [{destination: {host: a}}]}]}").unwrap();
    let text = |t: &str| ValueMatch::Text(StringMatch::Exact(t.into()));
    let wanted: Vec<(Arc<str>, ValueMatch)> =
        vec![("x-a".into(), text("b")), ("y".into(), ValueMatch::Present), ("z".into(), ValueMatch::Present)];
    assert_eq!(rule.http[0].matches[0].headers, wanted, "names are lower-cased");
}

#[test]
fn destinations_and_weights() {
    let with = |r: &str| http_problems(&format!("route: [{r}]"));
    let d = "destination: {host: a}";
    table(
        with,
        &[
            ("{destination: {host: a.b.c, subset: v1, port: {number: 80}}}", &[]),
            ("{}", &["error route[0].destination: is required"]),
            ("{destination: {}}", &["error route[0].destination.host: is required"]),
            ("{destination: {host: '*'}}", &["error route[0].destination.host: * is no destination"]),
            ("{destination: {host: a_b}}", &["error route[0].destination.host: \"a_b\" has the label"]),
            (
                "{destination: {host: a, subset: v_1}}",
                &["error route[0].destination.subset: \"v_1\" is no name"],
            ),
            (
                "{destination: {host: a, port: {number: 0}}}",
                &["error route[0].destination.port.number: 0 is no port"],
            ),
            ("{destination: {host: a, port: 80}}", &["error route[0].destination.port: must be a mapping"]),
            (&format!("{{{d}, weight: -5}}"), &[]),
            (&format!("{{{d}, weight: 0}}"), &[]),
            (&format!("{{{d}, weight: 0}}, {{{d}, weight: 0}}"), &["error route: all weights are 0"]),
            (&format!("{{{d}, weight: -1}}, {{{d}, weight: 2}}"), &["error route[0].weight: -1 is negative"]),
            (&format!("{{{d}, weight: 1}}, {{{d}, weight: 2}}"), &[]),
        ],
    );
    let rule = route(
        "{hosts: [a], http: [{route: [{destination: {host: a}, weight: 0}, {destination: {host: b, subset: v1, port: {number: 8}}, weight: 30}, {destination: {host: c.d}, weight: 3}]}]}",
    )
    .unwrap();
    let HttpAction::Forward(to) = &rule.http[0].action else { panic!() };
    let shape: Vec<_> =
        to.iter().map(|d| (d.destination.host.as_str(), d.weight, d.destination.port)).collect();
    assert_eq!(
        shape,
        [("b.prod.svc.cluster.local", 30, Some(8)), ("c.d", 3, None)],
        "zero weights are dropped"
    );
}

#[test]
fn redirects_direct_responses_and_rewrites() {
    let redirect = |r: &str| http_problems(&format!("redirect: {{{r}}}"));
    table(
        redirect,
        &[
            ("uri: /a", &[]),
            ("port: 8443", &[]),
            ("derivePort: FROM_REQUEST_PORT", &[]),
            ("", &["error redirect: needs at least one of"]),
            ("redirectCode: 302", &["error redirect: needs at least one of"]),
            ("uri: /a, prefixRewrite: /b", &["error redirect: has both uri and prefixRewrite"]),
            ("port: 1, derivePort: FROM_REQUEST_PORT", &["error redirect: has both port and derivePort"]),
            ("port: 0", &["error redirect.port: 0 is no port"]),
            (
                "derivePort: SOMEHOW",
                &[
                    "error redirect.derivePort: \"SOMEHOW\" is none of FROM_PROTOCOL_DEFAULT, FROM_REQUEST_PORT",
                ],
            ),
            ("scheme: https", &[]),
            ("scheme: ftp", &["error redirect.scheme: \"ftp\" is neither http nor https"]),
            ("uri: /a, redirectCode: 308", &[]),
            ("uri: /a, redirectCode: 304", &["error redirect.redirectCode: 304 is none of"]),
            ("uri: /a, redirectCode: 200", &["error redirect.redirectCode: 200 is none of"]),
        ],
    );
    table(
        http_problems,
        &[
            ("match: [{uri: {prefix: /a}}], redirect: {prefixRewrite: /b}", &[]),
            (
                "match: [{uri: {exact: /a}}], redirect: {prefixRewrite: /b}",
                &["error redirect.prefixRewrite: needs every uri match"],
            ),
            ("directResponse: {status: 200, body: {string: hi}}", &[]),
            ("directResponse: {status: 199}", &["error directResponse.status: 199 is not between"]),
            ("directResponse: {status: 600}", &["error directResponse.status: 600 is not between"]),
            ("directResponse: {}", &["error directResponse.status: 0 is not between"]),
            (
                "directResponse: {status: 200, body: {string: a, bytes: YQ==}}",
                &["error directResponse.body: has both"],
            ),
            (
                "directResponse: {status: 200, body: {bytes: '!'}}",
                &["error directResponse.body.bytes: is no base64"],
            ),
        ],
    );
    for (size, wanted) in
        [(100 * 1024, ""), (100 * 1024 + 1, "warn"), (1024 * 1024, "warn"), (1024 * 1024 + 1, "error")]
    {
        let got = http_problems(&format!(
            "directResponse: {{status: 200, body: {{string: {}}}}}",
            "a".repeat(size)
        ));
        assert_eq!(got.first().map_or("", |p| p.split(' ').next().unwrap()), wanted, "{size}");
    }
    let rewrite =
        |r: &str| http_problems(&format!("route: [{{destination: {{host: a}}}}], rewrite: {{{r}}}"));
    table(
        rewrite,
        &[
            ("uri: /", &[]),
            ("authority: b", &[]),
            ("uriRegexRewrite: {match: '^/(.*)', rewrite: '/x/\\1'}", &[]),
            ("", &["error rewrite: needs at least one of"]),
            (
                "uri: /, uriRegexRewrite: {match: a, rewrite: b}",
                &["error rewrite: has both uri and uriRegexRewrite"],
            ),
            ("uriRegexRewrite: {match: a}", &["error rewrite.uriRegexRewrite.rewrite: is required"]),
            ("uriRegexRewrite: {rewrite: a}", &["error rewrite.uriRegexRewrite.match: is required"]),
            (
                "uriRegexRewrite: {match: '(', rewrite: a}",
                &["error rewrite.uriRegexRewrite.match: regular expression"],
            ),
            (
                "uriRegexRewrite: {match: a, rewrite: '\\1'}",
                &["error rewrite.uriRegexRewrite.rewrite: substitution"],
            ),
        ],
    );
}

#[test]
fn retries() {
    let with = |r: &str| http_problems(&format!("route: [{{destination: {{host: a}}}}], retries: {{{r}}}"));
    table(
        with,
        &[
            ("", &[]),
            ("attempts: 3", &[]),
            ("attempts: -1", &["error retries.attempts: -1 is negative"]),
            ("attempts: 0, perTryTimeout: 1s", &["error retries.perTryTimeout: needs attempts above 0"]),
            ("retryOn: 5xx", &["error retries.retryOn: needs attempts above 0"]),
            (
                "retryRemoteLocalities: false",
                &["error retries.retryRemoteLocalities: needs attempts above 0"],
            ),
            ("attempts: 1, perTryTimeout: 0s", &["error retries.perTryTimeout: must be at least 1ms"]),
            (
                "attempts: 1, backoff: 100us",
                &["error retries.backoff: \"100us\" is not a whole number of milliseconds"],
            ),
            ("attempts: 1, retryOn: '5xx,gateway-error,503'", &[]),
            (
                "attempts: 1, retryOn: '5xx, reset'",
                &["error retries.retryOn: \" reset\" is no retry condition"],
            ),
            (
                "attempts: 1, retryOn: sometimes",
                &["error retries.retryOn: \"sometimes\" is no retry condition"],
            ),
            ("attempts: 1, retryOn: '99'", &["error retries.retryOn: \"99\" is no retry condition"]),
            (
                "attempts: 1, retryOn: http3-post-connect-failure",
                &["warn retries.retryOn: \"http3-post-connect-failure\" has no effect"],
            ),
        ],
    );
    let all = "5xx,gateway-error,reset,reset-before-request,connect-failure,refused-stream,retriable-4xx,retriable-status-codes,envoy-ratelimited,cancelled,deadline-exceeded,internal,resource-exhausted,unavailable";
    table(with, &[(&format!("attempts: 1, retryOn: '{all}'"), &[])]);
    let rule = route("{hosts: [a], http: [{route: [{destination: {host: a}}], timeout: 2s, retries: {attempts: 2, perTryTimeout: 500ms, retryOn: '5xx,429'}}]}").unwrap();
    assert_eq!(rule.http[0].timeout, Some(Duration::from_secs(2)));
    let retries = rule.http[0].retries.clone().unwrap();
    assert_eq!((retries.attempts, retries.per_try_timeout), (2, Some(Duration::from_millis(500))));
    let on = retries.on.unwrap();
    assert_eq!((on.conditions, on.statuses), (vec![Arc::from("5xx")], vec![429]));
    assert!(retries.ignore_previous_hosts && !retries.remote_localities);
    let off = route("{hosts: [a], http: [{route: [{destination: {host: a}}], retries: {}}]}").unwrap();
    assert_eq!(off.http[0].retries.as_ref().unwrap().attempts, 0, "an empty block switches retries off");
    assert_eq!(route(&format!("{{hosts: [a], {TO}}}")).unwrap().http[0].retries, None);
}

#[test]
fn header_operations() {
    let with = |r: &str| http_problems(&format!("route: [{{destination: {{host: a}}}}], headers: {{{r}}}"));
    table(
        with,
        &[
            ("request: {set: {a: b}, add: {c: '%REQ(x)%'}, remove: [d]}, response: {set: {e: '100%%'}}", &[]),
            (
                "request: {set: {a: '100%'}}",
                &["error headers.request.set.a: has a percent sign without a command"],
            ),
            ("request: {set: {a: '%lower%'}}", &["error headers.request.set.a: has a percent sign"]),
            ("request: {set: {'a b': c}}", &["error headers.request.set.a b: \"a b\" is no header name"]),
            ("request: {set: {a: \"x\\r\\ny: z\"}}", &["error headers.request.set.a: has a line break"]),
            ("request: {set: {host: b}}", &[]),
            ("request: {set: {':authority': b}}", &[]),
            ("request: {set: {':path': b}}", &["warn headers.request.set.:path: can't be set"]),
            ("response: {set: {host: b}}", &["warn headers.response.set.host: can't be set"]),
            ("request: {remove: [host]}", &["error headers.request.remove[0]: \"host\" can't be removed"]),
            (
                "request: {remove: [':path']}",
                &["error headers.request.remove[0]: \":path\" can't be removed"],
            ),
            ("request: {set: {a: 1}}", &["error headers.request.set.a: must be text, not the number 1"]),
        ],
    );
    let both =
        "route: [{destination: {host: a}, headers: {request: {set: {host: c}}}}], rewrite: {authority: b}";
    table(
        http_problems,
        &[(both, &["error rewrite.authority: the host is set by a header operation as well"])],
    );
    let rule = route("{hosts: [a], http: [{route: [{destination: {host: a}}], headers: {request: {remove: [z, b], set: {y: '1', x: '2'}}}}]}").unwrap();
    let change = &rule.http[0].headers.request;
    assert_eq!(change.remove, ["b", "z"].map(Arc::from), "sorted");
    assert_eq!(change.set.iter().map(|(n, _)| &**n).collect::<Vec<_>>(), ["x", "y"]);
}

#[test]
fn tls_and_tcp_routes() {
    let to = "route: [{destination: {host: a}}]";
    table(
        |r| route_problems(&format!("{{hosts: [a.com, '*.b.com'], {r}}}")),
        &[
            (
                &format!("tls: [{{match: [{{sniHosts: [a.com, x.b.com, '*.y.b.com'], port: 443}}], {to}}}]"),
                &[],
            ),
            (&format!("tls: [{{{to}}}]"), &["error spec.tls[0].match: is required"]),
            (
                &format!("tls: [{{match: [{{port: 1}}], {to}}}]"),
                &["error spec.tls[0].match[0].sniHosts: needs at least one"],
            ),
            (
                &format!("tls: [{{match: [{{sniHosts: [c.com]}}], {to}}}]"),
                &["error spec.tls[0].match[0].sniHosts[0]: \"c.com\" is not covered"],
            ),
            (
                &format!("tls: [{{match: [{{sniHosts: ['*.com']}}], {to}}}]"),
                &["error spec.tls[0].match[0].sniHosts[0]: \"*.com\" is not covered"],
            ),
            (
                "tls: [{match: [{sniHosts: [a.com]}]}]",
                &["error spec.tls[0].route: needs at least one destination"],
            ),
            (&format!("tcp: [{{{to}}}]"), &[]),
            (
                &format!(
                    "tcp: [{{match: [{{port: 80, destinationSubnets: [10.0.0.0/8, 1.2.3.4], sourceLabels: {{a: b}}, sourceNamespace: c, gateways: [mesh]}}], {to}}}]"
                ),
                &[],
            ),
            (
                &format!("tcp: [{{match: [{{destinationSubnets: [10.0.0.0/33]}}], {to}}}]"),
                &["error spec.tcp[0].match[0].destinationSubnets[0]: \"10.0.0.0/33\" is neither"],
            ),
            (
                &format!("tcp: [{{match: [{{sourceSubnet: x}}], {to}}}]"),
                &["error tcp[0].match[0].sourceSubnet: is not supported yet"],
            ),
            ("tcp: [{}]", &["error spec.tcp[0].route: needs at least one destination"]),
            (
                "tcp: [{route: [{destination: {host: a}, weight: 0}, {destination: {host: b}, weight: 0}]}]",
                &["error spec.tcp[0].route: all weights are 0"],
            ),
        ],
    );
    let ip = route_problems(&format!(
        "{{hosts: ['10.0.0.1'], tls: [{{match: [{{sniHosts: ['10.0.0.1']}}], {to}}}]}}"
    ));
    assert_eq!(ip.len(), 1, "{ip:?}");
    assert!(ip[0].starts_with("warn spec.tls[0].match[0].sniHosts[0]: \"10.0.0.1\" is an address"), "{ip:?}");
}

#[test]
fn unreachable_routes() {
    let to = "route: [{destination: {host: a}}]";
    table(
        |r| route_problems(&format!("{{hosts: [a], http: [{r}]}}")),
        &[
            (
                &format!("{{{to}}}, {{{to}}}"),
                &["warn spec.http[1]: is never reached: entry 0 takes everything"],
            ),
            (
                &format!("{{match: [{{uri: {{prefix: /}}}}], {to}}}, {{{to}}}"),
                &["warn spec.http[1]: is never reached"],
            ),
            (&format!("{{match: [{{uri: {{prefix: /}}, port: 80}}], {to}}}, {{{to}}}"), &[]),
            (&format!("{{match: [{{uri: {{prefix: /a}}}}], {to}}}, {{{to}}}"), &[]),
        ],
    );
}

fn policy_problems(yaml: &str) -> Vec<String> {
    match read::<schema::destination_rule::DestinationRule>(yaml) {
        Err(error) => vec![error],
        Ok(spec) => shown(&destination_rule::check(&context(Kind::DestinationRule), &spec).problems),
    }
}

#[test]
fn destination_rules() {
    table(
        policy_problems,
        &[
            ("host: a", &[]),
            ("host: '*.foo.com'", &[]),
            ("host: '*'", &[]),
            ("subsets: []", &["error spec.host: is required"]),
            ("host: a_b", &["error spec.host: \"a_b\" has the label"]),
            ("{host: a, trafficPolicy: {}}", &["error spec.trafficPolicy: is empty"]),
            ("{host: a, subsets: [{name: v1, labels: {version: v1}}, {name: v2}]}", &[]),
            (
                "{host: a, subsets: [{name: v1}, {name: v1}]}",
                &["error spec.subsets[1].name: \"v1\" is there twice"],
            ),
            ("{host: a, subsets: [{labels: {a: b}}]}", &["error spec.subsets[0].name: is required"]),
            ("{host: a, subsets: [{name: v.1}]}", &["error spec.subsets[0].name: \"v.1\" is no name"]),
            (
                "{host: a, subsets: [{name: v1, trafficPolicy: {}}]}",
                &["error spec.subsets[0].trafficPolicy: is empty"],
            ),
            ("{host: a, exportTo: ['~']}", &["error spec.exportTo[0]: ~ is allowed"]),
            ("{host: a, workloadSelector: {matchLabels: {app: b}}}", &[]),
            (
                "{host: a, workloadSelector: {matchLabels: {app: '*'}}}",
                &["error spec.workloadSelector.matchLabels.app: wildcards"],
            ),
        ],
    );
    let with = |p: &str| {
        let strip = |p: String| p.replace(" spec.trafficPolicy.", " ").replace(" trafficPolicy.", " ");
        policy_problems(&format!("{{host: a, trafficPolicy: {{{p}}}}}"))
            .into_iter()
            .map(strip)
            .collect::<Vec<_>>()
    };
    table(
        with,
        &[
            ("loadBalancer: {simple: ROUND_ROBIN}", &[]),
            ("loadBalancer: {simple: LEAST_CONN}", &[]),
            (
                "loadBalancer: {simple: FASTEST}",
                &[
                    "error loadBalancer.simple: \"FASTEST\" is none of UNSPECIFIED, LEAST_CONN, LEAST_REQUEST, ROUND_ROBIN, RANDOM, PASSTHROUGH",
                ],
            ),
            (
                "loadBalancer: {consistentHash: {useSourceIp: true}}",
                &["error loadBalancer.consistentHash: is not supported yet"],
            ),
            (
                "loadBalancer: {localityLbSetting: {}}",
                &["error loadBalancer.localityLbSetting: is not supported yet"],
            ),
            ("loadBalancer: {warmup: {duration: 1s}}", &["error loadBalancer.warmup: is not supported yet"]),
            ("outlierDetection: {}", &["error outlierDetection: is not supported yet"]),
            ("tunnel: {}", &["error tunnel: is not supported yet"]),
            ("proxyProtocol: {}", &["error proxyProtocol: is not supported yet"]),
            ("retryBudget: {}", &["error retryBudget: is not supported yet"]),
            ("tls: {mode: DISABLE}", &[]),
            ("tls: {}", &[]),
            ("tls: {sni: a}", &["warn tls.sni: is not used with this mode"]),
            ("tls: {mode: ISTIO_MUTUAL}", &[]),
            ("tls: {mode: ISTIO_MUTUAL, sni: a.b, subjectAltNames: ['spiffe://td/ns/a/sa/b']}", &[]),
            (
                "tls: {mode: ISTIO_MUTUAL, clientCertificate: /c, privateKey: /k, caCertificates: /r, insecureSkipVerify: true}",
                &[
                    "error tls.clientCertificate: is not for ISTIO_MUTUAL",
                    "error tls.privateKey: is not for ISTIO_MUTUAL",
                    "error tls.caCertificates: is not for ISTIO_MUTUAL",
                    "error tls.insecureSkipVerify: is not for ISTIO_MUTUAL",
                ],
            ),
            ("tls: {mode: SIMPLE}", &[]),
            ("tls: {mode: SIMPLE, sni: a.b, subjectAltNames: [a.b], caCertificates: /etc/root.pem}", &[]),
            (
                "tls: {mode: SIMPLE, clientCertificate: /c, privateKey: /k}",
                &["warn tls.clientCertificate: is not used", "warn tls.privateKey: is not used"],
            ),
            ("tls: {mode: SIMPLE, insecureSkipVerify: true}", &[]),
            (
                "tls: {mode: SIMPLE, insecureSkipVerify: true, caCertificates: /r, subjectAltNames: [a]}",
                &[
                    "error tls.caCertificates: contradicts insecureSkipVerify",
                    "error tls.subjectAltNames: contradicts insecureSkipVerify",
                ],
            ),
            ("tls: {mode: SIMPLE, sni: 10.0.0.1}", &["error tls.sni: \"10.0.0.1\" is no host name"]),
            ("tls: {mode: SIMPLE, sni: 'a b'}", &["error tls.sni: \"a b\" is no host name"]),
            (
                "tls: {mode: SIMPLE, subjectAltNames: ['']}",
                &["error tls.subjectAltNames[0]: \"\" is no name"],
            ),
            ("tls: {mode: SIMPLE, caCertificates: 'a~b'}", &["error tls.caCertificates: is a path with ~"]),
            ("tls: {mode: SIMPLE, caCrl: /crl}", &["error tls.caCrl: is not supported yet"]),
            (
                "tls: {mode: SIMPLE, credentialName: a}",
                &["warn spec.workloadSelector: without one only gateways get what credentialName names"],
            ),
            (
                "tls: {mode: SIMPLE, credentialName: 'kubernetes://a/b'}",
                &[
                    "error tls.credentialName: \"kubernetes://a/b\" is no name of a Secret",
                    "warn spec.workloadSelector: without one only gateways",
                ],
            ),
            (
                "tls: {mode: MUTUAL, credentialName: a, clientCertificate: /c, privateKey: /k, caCertificates: /r}",
                &[
                    "error tls.clientCertificate: contradicts credentialName",
                    "error tls.privateKey: contradicts credentialName",
                    "error tls.caCertificates: contradicts credentialName",
                    "warn spec.workloadSelector: without one only gateways",
                ],
            ),
            (
                "tls: {mode: SIMPLE, credentialName: a, insecureSkipVerify: true}",
                &["error tls.credentialName: contradicts insecureSkipVerify"],
            ),
            (
                "tls: {mode: ISTIO_MUTUAL, credentialName: a}",
                &["error tls.credentialName: is not for ISTIO_MUTUAL"],
            ),
            ("tls: {credentialName: a}", &["warn tls.credentialName: is not used with this mode"]),
            ("tls: {mode: MUTUAL, clientCertificate: /c, privateKey: /k}", &[]),
            (
                "tls: {mode: MUTUAL}",
                &["error tls.clientCertificate: is required", "error tls.privateKey: is required"],
            ),
            ("connectionPool: {}", &["error connectionPool: needs tcp or http"]),
            (
                "connectionPool: {tcp: {maxConnections: 1, connectTimeout: 1s, idleTimeout: 0s, maxConnectionDuration: 1h, tcpKeepalive: {probes: 3, time: 10s, interval: 5s}}}",
                &[],
            ),
            (
                "connectionPool: {tcp: {maxConnections: -1}}",
                &["error connectionPool.tcp.maxConnections: -1 is negative"],
            ),
            (
                "connectionPool: {tcp: {connectTimeout: 0s}}",
                &["error connectionPool.tcp.connectTimeout: must be at least 1ms"],
            ),
            (
                "connectionPool: {tcp: {tcpKeepalive: {time: 1500ms}}}",
                &["error connectionPool.tcp.tcpKeepalive.time: must be a whole number of seconds"],
            ),
            (
                "connectionPool: {http: {http1MaxPendingRequests: 1, http2MaxRequests: 2, maxRequestsPerConnection: 3, maxRetries: 4, idleTimeout: 1s, h2UpgradePolicy: UPGRADE, maxConcurrentStreams: 5}}",
                &[],
            ),
            (
                "connectionPool: {http: {http1MaxPendingRequests: -1}}",
                &["error connectionPool.http.http1MaxPendingRequests: -1"],
            ),
            (
                "connectionPool: {http: {http2MaxRequests: -1}}",
                &["error connectionPool.http.http2MaxRequests: -1"],
            ),
            (
                "connectionPool: {http: {maxRequestsPerConnection: -1}}",
                &["error connectionPool.http.maxRequestsPerConnection: -1"],
            ),
            ("connectionPool: {http: {maxRetries: -1}}", &["error connectionPool.http.maxRetries: -1"]),
            (
                "connectionPool: {http: {maxConcurrentStreams: -1}}",
                &["error connectionPool.http.maxConcurrentStreams: -1"],
            ),
            (
                "connectionPool: {http: {idleTimeout: 0s}}",
                &["error connectionPool.http.idleTimeout: must be at least 1ms"],
            ),
            ("connectionPool: {http: {useClientProtocol: true}}", &[]),
            (
                "connectionPool: {http: {useClientProtocol: true, h2UpgradePolicy: UPGRADE}}",
                &["error connectionPool.http.useClientProtocol: contradicts"],
            ),
            (
                "connectionPool: {http: {http2KeepAlive: {interval: 1s}}}",
                &["error connectionPool.http.http2KeepAlive: is not supported yet"],
            ),
            (
                "connectionPool: {http: {http1MaxPendingRequest: 1}}",
                &[
                    "error connectionPool.http.http1MaxPendingRequest: unknown field, did you mean http1MaxPendingRequests?",
                ],
            ),
            ("portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]", &[]),
            (
                "portLevelSettings: [{loadBalancer: {simple: RANDOM}}]",
                &["error portLevelSettings[0].port.number: 0 is no port"],
            ),
            (
                "portLevelSettings: [{port: {number: 80}}, {port: {number: 80}}]",
                &["error portLevelSettings[1].port.number: 80 is there twice"],
            ),
        ],
    );
}

fn entry(yaml: &str) -> Checked<service_entry::Entry> {
    let spec: schema::service_entry::ServiceEntry = read(yaml).unwrap();
    service_entry::check(&context(Kind::ServiceEntry), &Labels::default(), &spec, &Default::default())
}

#[test]
fn service_entries() {
    let http = "ports: [{number: 80, name: http, protocol: HTTP}]";
    let tcp = "ports: [{number: 80, name: tcp, protocol: TCP}]";
    let problems = |yaml: &str| match read::<schema::service_entry::ServiceEntry>(&format!("{{{yaml}}}")) {
        Err(error) => vec![error],
        Ok(_) => shown(&entry(&format!("{{{yaml}}}")).problems),
    };
    table(
        problems,
        &[
            (&format!("hosts: [a.com], {http}"), &[]),
            (http, &["error spec.hosts: needs at least one host"]),
            (&format!("hosts: ['*'], {http}"), &["error spec.hosts[0]: * would be every host"]),
            (&format!("hosts: ['*.a.com'], {http}"), &[]),
            (
                &format!("hosts: ['*a.com'], {http}"),
                &["warn spec.hosts[0]: \"*a.com\" has a wildcard inside"],
            ),
            (
                &format!("hosts: ['*.a.com'], resolution: DNS, {http}"),
                &["error spec.hosts[0]: \"*.a.com\" can't be looked up"],
            ),
            (&format!("hosts: ['*.a.com'], resolution: DNS, endpoints: [{{address: b.com}}], {http}"), &[]),
            (&format!("hosts: [a.com, a.com], {http}"), &["error spec.hosts[1]: \"a.com\" is there twice"]),
            (&format!("hosts: [a.com], addresses: [1.2.3.4, 10.0.0.0/8], {tcp}"), &[]),
            (&format!("hosts: [a.com], addresses: [10.0.0.0/8], resolution: STATIC, {tcp}"), &[]),
            (
                &format!("hosts: [a.com], addresses: [10.0.0.0/8], resolution: DNS, {tcp}"),
                &["error spec.addresses[0]: \"10.0.0.0/8\" is a range"],
            ),
            (
                &format!("hosts: [a.com], addresses: [a], {tcp}"),
                &["error spec.addresses[0]: \"a\" is neither"],
            ),
            ("hosts: [a.com]", &["warn spec.ports: is empty"]),
            (
                "hosts: [a.com], ports: [{number: 80, name: a, protocol: HTTP}, {number: 80, name: b, protocol: HTTP}]",
                &["error spec.ports[1].number: 80 is there twice"],
            ),
            (
                "hosts: [a.com], ports: [{number: 80, name: a, protocol: HTTP}, {number: 81, name: a, protocol: HTTP}]",
                &["error spec.ports[1].name: \"a\" is there twice"],
            ),
            (
                "hosts: [a.com], ports: [{number: 80, name: a_b, protocol: HTTP}]",
                &["error spec.ports[0].name: \"a_b\" is no name"],
            ),
            (
                "hosts: [a.com], ports: [{number: 80, name: a, protocol: GOPHER}]",
                &["error spec.ports[0].protocol: \"GOPHER\"", "warn spec.ports[0]: without addresses"],
            ),
            (
                "hosts: [a.com], ports: [{number: 0, name: a, protocol: HTTP}]",
                &["error spec.ports[0].number: 0 is no port"],
            ),
            (
                "hosts: [a.com], ports: [{number: 80, name: a, protocol: HTTP, targetPort: 70000}]",
                &["error spec.ports[0].targetPort: 70000"],
            ),
            (
                &format!("hosts: [a.com], {tcp}"),
                &["warn spec.ports[0]: without addresses all traffic to port 80"],
            ),
            ("hosts: [a.com], ports: [{number: 80, name: a}]", &["warn spec.ports[0]: without addresses"]),
            (
                &format!("hosts: [a.com, b.com], resolution: STATIC, {tcp}"),
                &["error spec.ports[0]: is neither HTTP nor TLS"],
            ),
            (&format!("hosts: [a.com, b.com], addresses: [1.2.3.4], {tcp}"), &[]),
            (&format!("hosts: [a.com, b.com], resolution: STATIC, {http}"), &[]),
            (
                &format!(
                    "hosts: [a.com], resolution: STATIC, endpoints: [{{address: 1.2.3.4, ports: {{http: 8080}}}}], {http}"
                ),
                &[],
            ),
            (
                &format!(
                    "hosts: [a.com], resolution: STATIC, endpoints: [{{address: 1.2.3.4, ports: {{web: 8080}}}}], {http}"
                ),
                &["error spec.endpoints[0].ports.web: is no port of the entry"],
            ),
            (
                &format!("hosts: [a.com], resolution: STATIC, endpoints: [{{address: b.com}}], {http}"),
                &["error spec.endpoints[0].address: is a name"],
            ),
            (
                &format!("hosts: [a.com], resolution: STATIC, endpoints: [{{address: 'unix:///x'}}], {http}"),
                &[],
            ),
            (
                &format!(
                    "hosts: [a.com], resolution: STATIC, endpoints: [{{address: 'unix:///x', ports: {{http: 1}}}}], {http}"
                ),
                &["error spec.endpoints[0].address: is a Unix socket"],
            ),
            (
                &format!("hosts: [a.com], resolution: STATIC, endpoints: [{{address: 'unix://x'}}], {http}"),
                &["error spec.endpoints[0].address: is no absolute path"],
            ),
            (
                &format!(
                    "hosts: [a.com], resolution: DNS, endpoints: [{{address: b.com}}, {{address: 1.2.3.4}}], {http}"
                ),
                &[],
            ),
            (
                &format!("hosts: [a.com], resolution: DNS, endpoints: [{{address: b_c}}], {http}"),
                &["error spec.endpoints[0].address: \"b_c\" is no IP address"],
            ),
            (
                &format!("hosts: [a.com], resolution: STATIC, endpoints: [{{}}], {http}"),
                &["error spec.endpoints[0].address: is required"],
            ),
            (
                &format!("hosts: [a.com], endpoints: [{{address: 1.2.3.4}}], {http}"),
                &["error spec.endpoints: has no meaning with resolution NONE"],
            ),
            (
                &format!(
                    "hosts: [a.com], resolution: STATIC, workloadSelector: {{labels: {{a: b}}}}, {http}"
                ),
                &[],
            ),
            (
                &format!(
                    "hosts: [a.com], resolution: STATIC, workloadSelector: {{labels: {{a: b}}}}, endpoints: [{{address: 1.2.3.4}}], {http}"
                ),
                &["error spec.workloadSelector: excludes endpoints"],
            ),
            (
                &format!("hosts: [a.com], workloadSelector: {{labels: {{a: b}}}}, {http}"),
                &["warn spec.workloadSelector: has no effect"],
            ),
            (
                &format!("hosts: [a.com], resolution: STATIC, workloadSelector: {{}}, {http}"),
                &["warn spec.workloadSelector.labels: is empty"],
            ),
            (
                &format!(
                    "hosts: [a.com], resolution: STATIC, workloadSelector: {{labels: {{a: '*'}}}}, {http}"
                ),
                &["error spec.workloadSelector.labels.a: wildcards"],
            ),
            (&format!("hosts: [a.com], exportTo: ['~'], {http}"), &[]),
            (
                &format!("hosts: [a.com], exportTo: ['~', a], {http}"),
                &["error spec.exportTo[0]: ~ excludes all others"],
            ),
            (
                &format!("hosts: [a.com], resolution: DNS_ROUND_ROBIN, {http}"),
                &["error spec.resolution: DNS_ROUND_ROBIN is not supported yet"],
            ),
            (
                &format!("hosts: ['*.a.com'], resolution: DYNAMIC_DNS, {http}"),
                &["error spec.resolution: DYNAMIC_DNS is not supported yet", "error spec.hosts[0]"],
            ),
            (
                &format!("hosts: [a.com], resolution: SOMETIMES, {http}"),
                &["error resolution: \"SOMETIMES\" is none of NONE, STATIC, DNS"],
            ),
        ],
    );
    let made = entry("{hosts: [a.com, b.com], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 53, name: dns, protocol: UDP}], endpoints: [{address: 1.2.3.4}, {address: 1.2.3.5, ports: {http: 9000}, weight: 5}]}").value.unwrap();
    assert_eq!(made.services.len(), 2, "each host is a service of its own");
    assert_eq!(made.services[0].ports.len(), 1, "UDP is left out");
    let ports: Vec<_> = made.endpoints.iter().map(|e| (e.ports[0], e.weight)).collect();
    assert_eq!(ports, [((80, 8080), 1), ((80, 9000), 5)], "own port, else the target port");
}

#[test]
fn workload_entries() {
    let check = |yaml: &str, labels: Labels| {
        let spec: schema::service_entry::WorkloadEntry = read(yaml).unwrap();
        service_entry::check_workload(&context(Kind::WorkloadEntry), &labels, &spec)
    };
    let problems = |yaml: &str| shown(&check(yaml, Labels::default()).problems);
    table(
        problems,
        &[
            ("address: 1.2.3.4", &[]),
            ("address: a.com", &[]),
            ("address: 'unix:///x'", &[]),
            ("labels: {a: b}", &["error spec.address: is required"]),
            (
                "{address: 'unix:///x', ports: {a: 1}}",
                &["error spec.ports: is not allowed with a Unix socket"],
            ),
            ("{address: 1.2.3.4, ports: {a: 0}}", &["error spec.ports.a: 0 is no port"]),
        ],
    );
    let labels = Labels::from([("app", "meta"), ("istio-locality", "r.z.s")]);
    let made =
        check("{address: 1.2.3.4, labels: {app: spec, version: v1}, weight: 0, serviceAccount: sa}", labels)
            .value
            .unwrap();
    assert_eq!(made.labels.get("app"), Some("meta"), "labels of the metadata win");
    assert_eq!(made.labels.get("version"), Some("v1"));
    assert_eq!((made.weight, made.tls), (1, TlsMode::Istio), "0 is 1; an identity means mTLS");
    assert_eq!(made.locality, Locality::parse("r/z/s"));
    assert_eq!((&*made.names.canonical_service, &*made.names.canonical_revision), ("meta", "v1"));
    let plain =
        check("address: 1.2.3.4", Labels::from([("security.istio.io/tlsMode", "istio")])).value.unwrap();
    assert_eq!(plain.tls, TlsMode::Istio);
    assert_eq!(check("address: 1.2.3.4", Labels::default()).value.unwrap().tls, TlsMode::Disabled);
}

#[test]
fn kubernetes_services() {
    let service = |yaml: &str| {
        let object: schema::kubernetes::Service = read(yaml).unwrap();
        kubernetes::check_service(&context(Kind::Service), &object)
    };
    let kind = |yaml: &str| service(yaml).value.unwrap().kind;
    assert_eq!(kind("spec: {clusterIP: 10.0.0.1}"), ServiceKind::ClusterIp);
    assert_eq!(
        kind("spec: {type: LoadBalancer, clusterIP: 10.0.0.1, unknown: fine}"),
        ServiceKind::ClusterIp
    );
    assert_eq!(kind("spec: {clusterIP: None}"), ServiceKind::Headless);
    assert_eq!(
        kind("spec: {type: ExternalName, externalName: Example.com}"),
        ServiceKind::ExternalName(Host::new("example.com"))
    );
    table(
        |yaml| shown(&service(yaml).problems),
        &[
            ("spec: {type: ExternalName}", &["error spec.externalName: \"\" is empty"]),
            ("spec: {clusterIP: x}", &["error spec.clusterIP: \"x\" is no IP address"]),
            ("spec: {ports: [{port: 0}]}", &["error spec.ports[0].port: 0 is no port"]),
            (
                "spec: {ports: [{port: 80, name: a}, {port: 81, name: a}]}",
                &["error spec.ports[1].name: \"a\" is there twice"],
            ),
            (
                "metadata: {annotations: {networking.istio.io/exportTo: '*,a'}}",
                &["error metadata.annotations[\"networking.istio.io/exportTo\"][0]: * includes"],
            ),
        ],
    );
    let made = service(
        "{metadata: {annotations: {networking.istio.io/exportTo: '., other'}}, spec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1, 'fd00::1'], ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc-x, port: 81, targetPort: web}, {name: dns, port: 53, protocol: UDP}, {name: raw, port: 9, appProtocol: tcp}], selector: {app: a}}}",
    )
    .value
    .unwrap();
    assert_eq!(made.host().as_str(), "test.prod.svc.cluster.local");
    assert_eq!(made.addresses.len(), 2);
    assert_eq!(made.export_to, ExportTo::from([".", "other"]));
    let ports: Vec<_> = made.ports.iter().map(|p| (p.number, p.protocol, p.target.clone())).collect();
    let wanted = [
        (80, Protocol::Http, TargetPort::Number(8080)),
        (81, Protocol::Grpc, TargetPort::Name("web".into())),
        (9, Protocol::Tcp, TargetPort::Number(9)),
    ];
    assert_eq!(ports, wanted, "UDP is left out");
}

#[test]
fn endpoint_slice_conditions() {
    let slice = |conditions: &str| {
        let yaml = format!(
            "{{metadata: {{labels: {{kubernetes.io/service-name: a}}}}, addressType: IPv4, ports: [{{name: http, port: 80}}], endpoints: [{{addresses: [1.2.3.4], conditions: {{{conditions}}}}}]}}"
        );
        let object: schema::kubernetes::EndpointSlice = read(&yaml).unwrap();
        kubernetes::check_slice(&context(Kind::EndpointSlice), &object).value.unwrap().unwrap()
    };
    for (conditions, wanted) in [
        ("", Some(Health::Healthy)),
        ("ready: true", Some(Health::Healthy)),
        ("ready: true, serving: true, terminating: false", Some(Health::Healthy)),
        ("ready: false, serving: true, terminating: true", Some(Health::Draining)),
        ("ready: false, serving: false, terminating: true", Some(Health::Draining)),
        ("ready: false", Some(Health::Unhealthy)),
        ("ready: false, terminating: false", Some(Health::Unhealthy)),
    ] {
        assert_eq!(slice(conditions).endpoints.first().map(|e| e.health), wanted, "{conditions}");
    }
    let checked = |yaml: &str| kubernetes::check_slice(&context(Kind::EndpointSlice), &read(yaml).unwrap());
    let lost = checked("{addressType: IPv4}");
    assert_eq!((lost.value, lost.problems.len()), (Some(None), 1), "without a service it is not used");
    let fqdn = checked("{metadata: {labels: {kubernetes.io/service-name: a}}, addressType: FQDN}");
    assert_eq!(fqdn.value, Some(None));
}

#[test]
fn pods() {
    let pod = |yaml: &str| kubernetes::check_pod(&context(Kind::Pod), &read(yaml).unwrap()).value.unwrap();
    let health = |yaml: &str| pod(yaml).map(|w| w.health);
    let ready = |status: &str| {
        format!(
            "{{status: {{podIP: 1.2.3.4, phase: Running, conditions: [{{type: Ready, status: '{status}'}}]}}}}"
        )
    };
    for (yaml, wanted) in [
        (ready("True").as_str(), Some(Health::Healthy)),
        (ready("False").as_str(), Some(Health::Unhealthy)),
        ("{status: {podIP: 1.2.3.4}}", Some(Health::Healthy)),
        ("{status: {podIP: 1.2.3.4, phase: Pending}}", Some(Health::Unhealthy)),
        ("{status: {podIP: 1.2.3.4, phase: Succeeded}}", None),
        ("{status: {phase: Running}}", None),
        (
            "{metadata: {deletionTimestamp: '2024-01-01T00:00:00Z'}, status: {podIP: 1.2.3.4}}",
            Some(Health::Draining),
        ),
        (
            "{metadata: {labels: {istio.io/draining: 'true'}}, status: {podIP: 1.2.3.4}}",
            Some(Health::Draining),
        ),
    ] {
        assert_eq!(health(yaml), wanted, "{yaml}");
    }
    let made = pod("{metadata: {name: web-abc-x1, labels: {pod-template-hash: abc, app: web}, ownerReferences: [{kind: ReplicaSet, name: web-abc, controller: true}]}, spec: {serviceAccountName: sa, nodeName: n1, containers: [{ports: [{name: http, containerPort: 8080}]}]}, status: {podIP: 1.2.3.4, podIPs: [{ip: 1.2.3.4}, {ip: 'fd00::4'}]}}").unwrap();
    assert_eq!(&*made.names.workload, "web", "the Deployment's name");
    assert_eq!(
        (made.addresses.len(), made.ports["http"], &*made.service_account, &*made.node),
        (2, 8080, "sa", "n1")
    );
    assert_eq!((&*made.names.canonical_service, &*made.names.canonical_revision), ("web", "latest"));
    let owner = |yaml: &str| pod(yaml).unwrap().names.workload.to_string();
    assert_eq!(owner("{metadata: {name: p}, status: {podIP: 1.2.3.4}}"), "p");
    assert_eq!(
        owner(
            "{metadata: {name: p-0, ownerReferences: [{kind: StatefulSet, name: p}]}, status: {podIP: 1.2.3.4}}"
        ),
        "p"
    );
}

#[test]
fn mesh_config() {
    let check = |yaml: &str| mesh::check(&context(Kind::MeshConfig), &read(yaml).unwrap());
    let problems = |yaml: &str| match read::<schema::mesh::MeshConfig>(yaml) {
        Err(error) => vec![error],
        Ok(_) => shown(&check(yaml).problems),
    };
    table(
        problems,
        &[
            ("{}", &[]),
            ("{connectTimeout: 0s}", &["error data.mesh.connectTimeout: must be at least 1ms"]),
            ("{protocolDetectionTimeout: 0s}", &[]),
            ("{defaultConfig: {}}", &["error defaultConfig: unknown field"]),
            (
                "{outboundTrafficPolicy: {mode: SOMETIMES}}",
                &["error outboundTrafficPolicy.mode: \"SOMETIMES\" is none of"],
            ),
            (
                "{accessLogEncoding: JSON, accessLogFormat: '%START_TIME%'}",
                &["error data.mesh.accessLogFormat: must be a JSON object"],
            ),
            ("{accessLogEncoding: JSON, accessLogFormat: '{\"a\": \"%START_TIME%\"}'}", &[]),
            (
                "{defaultHttpRetryPolicy: {attempts: 0, retryOn: 5xx}}",
                &["error data.mesh.defaultHttpRetryPolicy.retryOn: needs attempts"],
            ),
            ("{defaultServiceExportTo: ['~']}", &[]),
            (
                "{defaultDestinationRuleExportTo: ['~']}",
                &["error data.mesh.defaultDestinationRuleExportTo[0]"],
            ),
        ],
    );
    let made = |yaml: &str| check(yaml).value.unwrap();
    assert_eq!(made("{}"), MeshConfig::default());
    assert_eq!(
        made("{outboundTrafficPolicy: {}}").outbound,
        OutboundTraffic::RegistryOnly,
        "the enum's zero"
    );
    assert_eq!(made("{outboundTrafficPolicy: {mode: ALLOW_ANY}}").outbound, OutboundTraffic::AllowAny);
    assert_eq!(made("{inboundTrafficPolicy: {mode: LOCALHOST}}").inbound, InboundTraffic::Localhost);
    assert_eq!(made("{protocolDetectionTimeout: 100ms}").detection_timeout, Some(Duration::from_millis(100)));
    assert_eq!(
        made("{pathNormalization: {normalization: MERGE_SLASHES}}").path_normalization,
        PathNormalization::MergeSlashes
    );
    assert_eq!(made("{h2UpgradePolicy: UPGRADE}").upgrade, UpgradePolicy::Upgrade);
    assert_eq!(made("{dnsRefreshRate: 5s}").dns_refresh, Duration::from_secs(5));
    assert_eq!(&*made("{rootNamespace: root}").root_namespace, "root");
    for (yaml, mode, label) in [
        ("{ingressControllerMode: UNSPECIFIED}", IngressMode::Strict, "ingressgateway"),
        (
            "{ingressControllerMode: 'OFF', ingressService: istio-ingressgateway}",
            IngressMode::Off,
            "ingressgateway",
        ),
        ("{ingressControllerMode: DEFAULT, ingressService: edge}", IngressMode::Default, "edge"),
        ("{ingressService: edge, ingressSelector: other}", IngressMode::Strict, "other"),
    ] {
        let ingress = made(yaml).ingress;
        assert_eq!((ingress.mode, ingress.selector.get("istio")), (mode, Some(label)), "{yaml}");
    }
    assert_eq!(&*made("{ingressClass: edge}").ingress.class, "edge");
}
