//! Rules of AuthorizationPolicies: YAML in, problems out.

use super::*;
use crate::model::{Kind, Severity};
use crate::source::decode::decode;
use crate::source::yaml::parse;

fn read(yaml: &str, annotations: &[(&str, &str)]) -> Read {
    let node = parse(yaml).unwrap_or_else(|e| panic!("{e}: {yaml}")).remove(0);
    let spec: schema::AuthorizationPolicy = decode(&node).unwrap_or_else(|e| panic!("{e}: {yaml}"));
    let context = Context::new(Kind::AuthorizationPolicy, "prod", "test", 7, &Arc::from("cluster.local"));
    let annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    check(&context, &Metadata { annotations, ..Metadata::default() }, &spec)
}

fn said(read: &Read) -> Vec<String> {
    let word = |severity| if severity == Severity::Error { "error" } else { "warn" };
    read.problems.iter().map(|p| format!("{} {}: {}", word(p.severity), p.field, p.message)).collect()
}

fn demand(read: &Read) -> Option<&Demand> {
    read.policy.as_ref().map(|policy| &policy.demands)
}

/// One rule with this source, operation or condition.
fn source(fields: &str) -> String {
    format!("rules: [{{from: [{{source: {{{fields}}}}}]}}]")
}

fn operation(fields: &str) -> String {
    format!("rules: [{{to: [{{operation: {{{fields}}}}}]}}]")
}

fn when(fields: &str) -> String {
    format!("rules: [{{when: [{{{fields}}}]}}]")
}

#[test]
fn what_is_accepted_without_a_word() {
    let long = format!("serviceAccounts: [{}]", vec!["a"; 16].join(", "));
    for yaml in [
        String::new(),
        "action: ALLOW".to_owned(),
        "rules: [{}]".to_owned(),
        "action: DENY, rules: [{}]".to_owned(),
        "action: AUDIT".to_owned(),
        source("principals: ['*'], notPrincipals: [a/ns/b/sa/c]"),
        source("namespaces: ['a*b'], notNamespaces: [b]"),
        source("serviceAccounts: [a, b/c], notServiceAccounts: [d]"),
        source(&long),
        source("trustDomains: ['*', 'a*', '*a'], notTrustDomains: [a]"),
        source("ipBlocks: [10.0.0.1, 10.0.0.0/8, '::1', 'fd00::/8'], notIpBlocks: [10.0.0.2]"),
        source("remoteIpBlocks: [10.0.0.1], notRemoteIpBlocks: [10.0.0.2]"),
        operation("hosts: [a.com, '*.a.com', '*'], notHosts: [b.com]"),
        operation("ports: ['0', '65535'], notPorts: ['80']"),
        operation("methods: [GET], notMethods: ['P*']"),
        operation(
            "paths: [/a, '/a*', '*a', '/a/{*}/c', '/a/{**}', '/{*}/b/{**}/c.m3u8'], notPaths: ['/{*}']",
        ),
        when("key: 'request.headers[x]', values: [a], notValues: [b]"),
        source("requestPrincipals: ['*', 'https://a/b'], notRequestPrincipals: ['*/c']"),
        when("key: request.auth.principal, values: [a/b]"),
        when("key: request.auth.audiences, values: [a]"),
        when("key: request.auth.presenter, notValues: [a]"),
        when("key: 'request.auth.claims[a][b.c]', values: ['a*'], notValues: [ab]"),
        when("key: source.ip, values: [10.0.0.0/8]"),
        when("key: remote.ip, notValues: [10.0.0.1]"),
        when("key: source.namespace, values: [a]"),
        when("key: source.principal, values: ['*']"),
        when("key: source.serviceAccount, values: [a/b]"),
        when("key: source.trustDomain, values: [a]"),
        when("key: destination.ip, values: ['::1']"),
        when("key: destination.port, values: ['80']"),
        when("key: connection.sni, values: ['*.a']"),
    ] {
        let read = read(&format!("{{{yaml}}}"), &[]);
        assert_eq!(said(&read), Vec::<String>::new(), "{yaml}");
        assert!(matches!(demand(&read), Some(Demand::Authorization(_))), "{yaml}");
    }
}

#[test]
fn what_is_refused_fails_closed_and_says_where() {
    let accounts = format!("serviceAccounts: [{}]", vec!["a"; 17].join(", "));
    let long = format!("serviceAccounts: [{}]", "a".repeat(321));
    let from = "spec.rules[0].from[0].source";
    let to = "spec.rules[0].to[0].operation";
    for (yaml, wanted) in [
        ("action: DENY".to_owned(), "spec.rules: must have a rule where action is DENY".to_owned()),
        ("provider: {name: a}".into(), "spec.provider: is for action CUSTOM only".into()),
        ("rules: [{from: []}]".into(), "spec.rules[0].from: must not be an empty list".into()),
        ("rules: [{to: []}]".into(), "spec.rules[0].to: must not be an empty list".into()),
        ("rules: [{when: []}]".into(), "spec.rules[0].when: must not be an empty list".into()),
        ("rules: [{from: [{}]}]".into(), format!("{from}: must have a field")),
        (source(""), format!("{from}: must have a field")),
        (operation(""), format!("{to}: must have a field")),
        (source("principals: ['']"), format!("{from}.principals[0]: is empty")),
        (source("requestPrincipals: ['']"), format!("{from}.requestPrincipals[0]: is empty")),
        (source("notRequestPrincipals: ['']"), format!("{from}.notRequestPrincipals[0]: is empty")),
        (
            source("serviceAccounts: [a], namespaces: [b]"),
            format!("{from}.serviceAccounts: excludes principals"),
        ),
        (source("serviceAccounts: ['a*']"), format!("{from}.serviceAccounts[0]: \"a*\" has a star")),
        (source("serviceAccounts: [a/b/c]"), format!("{from}.serviceAccounts[0]: \"a/b/c\" is neither")),
        (source("serviceAccounts: [/b]"), format!("{from}.serviceAccounts[0]: \"/b\" is neither")),
        (source(&accounts), format!("{from}.serviceAccounts: has 17 entries, 16 are allowed")),
        (source(&long), format!("{from}.serviceAccounts[0]: has 321 characters, 320 are allowed")),
        (source("trustDomains: [a/b]"), format!("{from}.trustDomains[0]: \"a/b\" has a slash")),
        (source("trustDomains: ['a*b']"), format!("{from}.trustDomains[0]: \"a*b\" has a star")),
        (source("trustDomains: ['*a*']"), format!("{from}.trustDomains[0]: \"*a*\" has a star")),
        (source("ipBlocks: [10.0.0]"), format!("{from}.ipBlocks[0]: \"10.0.0\" is neither an IP address")),
        (source("ipBlocks: [10.0.0.0/33]"), format!("{from}.ipBlocks[0]: \"10.0.0.0/33\" is neither")),
        (operation("ports: ['65536']"), format!("{to}.ports[0]: \"65536\" is no port number")),
        (operation("ports: ['+80']"), format!("{to}.ports[0]: \"+80\" is no port number")),
        (operation("ports: ['8*']"), format!("{to}.ports[0]: \"8*\" is no port number")),
        (operation("paths: ['/a{*}']"), format!("{to}.paths[0]: \"/a{{*}}\" has '{{'")),
        (operation("paths: ['/{id}']"), format!("{to}.paths[0]: \"/{{id}}\" has '{{'")),
        (
            operation("paths: ['/{**}/{*}']"),
            format!("{to}.paths[0]: \"/{{**}}/{{*}}\" has an operator after"),
        ),
        (operation("paths: ['/{*}/b*']"), format!("{to}.paths[0]: \"/{{*}}/b*\" has '*'")),
        (operation("paths: ['a/{*}']"), format!("{to}.paths[0]: \"a/{{*}}\" must begin with a slash")),
        (operation("notPaths: ['/a//{*}']"), format!("{to}.notPaths[0]: \"/a//{{*}}\" has an empty segment")),
        (when("key: source.ip"), "spec.rules[0].when[0]: needs values or notValues".into()),
        (
            when("key: 'destination.labels[a]', values: [b]"),
            "spec.rules[0].when[0].key: \"destination".into(),
        ),
        (when("key: 'request.headers[]', values: [b]"), "spec.rules[0].when[0].key: \"request".into()),
        (
            when("key: 'request.headers[a b]', values: [b]"),
            "spec.rules[0].when[0].key: \"a b\" is no name".into(),
        ),
        (
            operation(&format!("paths: ['/{{*}}/{}']", "a".repeat(254))),
            format!("{to}.paths[0]: has 257 characters"),
        ),
        (when("key: 'request.auth.claims[]', values: [b]"), "spec.rules[0].when[0].key: \"request".into()),
        (when("key: 'request.auth.claims[a]b]', values: [b]"), "spec.rules[0].when[0].key: \"request".into()),
        (when("key: 'request.auth.claims[a][]', values: [b]"), "spec.rules[0].when[0].key: \"request".into()),
        (when("key: 'request.auth.claims', values: [b]"), "spec.rules[0].when[0].key: \"request".into()),
        (
            when("key: 'experimental.envoy.filters.a[b]', values: [c]"),
            "spec.rules[0].when[0].key: is not".into(),
        ),
        (
            when("key: destination.port, values: [x]"),
            "spec.rules[0].when[0].values[0]: \"x\" is no port".into(),
        ),
        (
            when("key: source.ip, notValues: [x]"),
            "spec.rules[0].when[0].notValues[0]: \"x\" is neither".into(),
        ),
    ] {
        let read = read(&format!("{{{yaml}}}"), &[]);
        let said = said(&read);
        assert!(said[0].starts_with(&format!("error {wanted}")), "{yaml}\n{said:#?}\n{wanted}");
        let end = "error spec: can't be enforced: everything that is sent to all workloads of its namespace is refused";
        assert_eq!(said.last().map(String::as_str), Some(end), "{yaml}");
        assert_eq!(demand(&read), Some(&Demand::Unsupported), "{yaml}");
    }
}

#[test]
fn custom_names_whom_to_ask_and_asks_nobody_who_they_are() {
    let fields = "action: CUSTOM, provider: {name: a}";
    let dry = [("istio.io/dry-run", "true")];
    let read = self::read(&format!("{{{fields}, rules: [{{}}]}}"), &dry);
    assert_eq!(said(&read), [""; 0]);
    let Some(Demand::Authorization(policy)) = demand(&read) else { panic!("a policy") };
    let wanted = (AuthorizationAction::Custom, Some("a"), false);
    assert_eq!((policy.action, policy.provider.as_deref(), policy.dry_run), wanted);
    let identity = "can't be tested where action is CUSTOM";
    for (yaml, wanted) in [
        (
            "action: CUSTOM, rules: [{}]".to_owned(),
            "spec.provider.name: is required where action is CUSTOM".to_owned(),
        ),
        (
            "action: CUSTOM, provider: {name: ''}, rules: [{}]".into(),
            "spec.provider.name: is required where action is CUSTOM".into(),
        ),
        (
            fields.into(),
            "spec.rules: must have a rule where action is CUSTOM; `rules: [{}]` asks about everything".into(),
        ),
    ]
    .into_iter()
    .chain(
        [
            "principals",
            "namespaces",
            "serviceAccounts",
            "trustDomains",
            "requestPrincipals",
            "notPrincipals",
            "notNamespaces",
            "notRequestPrincipals",
            "notServiceAccounts",
            "notTrustDomains",
        ]
        .map(|name| {
            (
                format!("{fields}, {}", source(&format!("{name}: [a]"))),
                format!("spec.rules[0].from[0].source.{name}: {identity}"),
            )
        }),
    )
    .chain(
        [
            "source.namespace",
            "source.principal",
            "source.serviceAccount",
            "source.trustDomain",
            "request.auth.principal",
            "request.auth.audiences",
            "request.auth.presenter",
            "request.auth.claims[a]",
        ]
        .map(|key| {
            (
                format!("{fields}, {}", when(&format!("key: '{key}', values: [a]"))),
                format!("spec.rules[0].when[0].key: {identity}"),
            )
        }),
    ) {
        let read = self::read(&format!("{{{yaml}}}"), &[]);
        assert_eq!(said(&read)[0], format!("error {wanted}"), "{yaml}");
        assert_eq!(demand(&read), Some(&Demand::Unsupported), "{yaml}");
    }
    for yaml in [
        source("ipBlocks: [10.0.0.1]"),
        operation("paths: [/a]"),
        when("key: 'request.headers[a]', values: [b]"),
    ] {
        assert_eq!(said(&self::read(&format!("{{{fields}, {yaml}}}"), &[])), [""; 0], "{yaml}");
    }
}

#[test]
fn what_refuses_nothing_has_no_effect_when_it_is_wrong() {
    let wrong = "{action: AUDIT, rules: [{from: []}]}";
    assert!(demand(&read(wrong, &[])).is_none());
    let dry = [("istio.io/dry-run", "true")];
    assert!(demand(&read("{action: DENY}", &dry)).is_none());
    assert_eq!(demand(&read("{action: DENY}", &[("istio.io/dry-run", "yes")])), Some(&Demand::Unsupported));
    let Some(Demand::Authorization(policy)) = demand(&read("{rules: [{}]}", &dry)).cloned() else {
        panic!("a policy")
    };
    assert!(policy.dry_run);
}

#[test]
fn what_is_probably_not_meant_is_said() {
    let wide = "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}, {to: [{operation: {methods: [GET], ports: ['80']}}]}]}";
    assert_eq!(
        said(&read(wide, &[])),
        ["warn spec.rules[0]: tests HTTP only and names no ports: on TCP ports it denies every connection"]
    );
    let star = read(&format!("{{{}}}", source("principals: ['*/ns/a/sa/*']")), &[]);
    let text = "warn spec.rules[0].from[0].source.principals[0]: \"*/ns/a/sa/*\" has a star that is compared as a star";
    assert!(said(&star)[0].starts_with(text), "{:?}", said(&star));
    let scheme = read(&format!("{{{}}}", source("principals: ['spiffe://a/ns/b/sa/c']")), &[]);
    assert_eq!(
        said(&scheme),
        [
            "warn spec.rules[0].from[0].source.principals[0]: matches nobody: principals are written without spiffe://"
        ]
    );
}
