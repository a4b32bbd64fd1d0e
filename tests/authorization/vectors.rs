//! What Istio's policies must come to, one row each.

use super::shop::{HTTP, Question, Shop, TCP};

/// A mesh whose identities are also known under another trust domain.
const ALIASES: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: \"trustDomainAliases: [old.td]\"
---
";

fn policy_in(namespace: &str, metadata: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: {namespace}{metadata}}}, spec: {{{spec}}}}}\n---\n"
    )
}

fn policy(spec: &str) -> String {
    policy_in("foo", "", spec)
}

fn from(action: &str, source: &str) -> String {
    policy(&format!("action: {action}, rules: [{{from: [{{source: {{{source}}}}}]}}]"))
}

fn to(action: &str, operation: &str) -> String {
    policy(&format!("action: {action}, rules: [{{to: [{{operation: {{{operation}}}}}]}}]"))
}

fn when(action: &str, condition: &str) -> String {
    policy(&format!("action: {action}, rules: [{{when: [{{{condition}}}]}}]"))
}

/// A request of a mesh client.
fn of(peer: &str) -> Question {
    Question { peer: vec![peer.into()], ..Question::default() }
}

/// The usual client.
fn a() -> Question {
    of("spiffe://cluster.local/ns/bar/sa/web")
}

/// A client in plaintext.
fn p() -> Question {
    Question::default()
}

fn path(path: &str) -> Question {
    Question { path: path.into(), ..p() }
}

fn on(port: u16) -> Question {
    Question { port, ..p() }
}

fn host(host: &str) -> Question {
    Question { host: host.into(), ..p() }
}

fn with(values: &[&str]) -> Question {
    Question { headers: values.iter().map(|v| ("x-t".into(), (*v).into())).collect(), ..p() }
}

/// A number for people, the policies, what is asked, and whether it is allowed.
type Row = (u32, String, Question, bool);

#[test]
fn policies_and_what_they_let_through() {
    let merge = "{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, data: {mesh: \"pathNormalization: {normalization: MERGE_SLASHES}\"}}\n---\n";
    let web = "principals: [cluster.local/ns/bar/sa/web]";
    let both = to("DENY", "paths: [/x]") + &policy_in("istio-system", "", "rules: [{}]");
    let admin = || to("DENY", "paths: [/admin]");
    let dry = ", annotations: {istio.io/dry-run: 'true'}";
    let forwarded = |mut question: Question| {
        question.headers.push(("x-forwarded-for".into(), "10.0.0.5".into()));
        question
    };
    let selected =
        policy_in("istio-system", "", "selector: {matchLabels: {app: api}}, action: DENY, rules: [{}]");
    let elsewhere =
        policy_in("istio-system", "", "selector: {matchLabels: {app: x}}, action: DENY, rules: [{}]");
    let sni = |name: &str| Question { server_name: Some(name.into()), ..p() };
    let post = || Question { method: "POST".into(), ..p() };
    let rows: Vec<Row> = vec![
        (1, String::new(), p(), true),
        (1, String::new(), on(TCP), true),
        (2, policy(""), a(), false),
        (2, policy(""), on(TCP), false),
        (2, policy(""), on(7777), false),
        (3, policy("rules: [{}]"), p(), true),
        (4, policy_in("istio-system", "", "action: DENY, rules: [{}]") + &policy("rules: [{}]"), a(), false),
        (5, from("ALLOW", web), a(), true),
        (5, from("ALLOW", web), p(), false),
        (5, from("ALLOW", web), Question { port: TCP, ..a() }, true),
        (5, from("ALLOW", web), on(TCP), false),
        (6, ALIASES.to_owned() + &from("ALLOW", web), of("spiffe://old.td/ns/bar/sa/web"), true),
        (6, from("ALLOW", web), of("spiffe://old.td/ns/bar/sa/web"), false),
        (7, ALIASES.to_owned() + &from("ALLOW", "principals: [other.td/ns/bar/sa/web]"), a(), false),
        (8, from("ALLOW", "principals: ['*/ns/bar/sa/web']"), a(), true),
        (8, from("ALLOW", "principals: ['*/ns/bar/sa/web']"), of("spiffe://x/ns/bar/sa/web2"), false),
        (9, from("ALLOW", "principals: ['*']"), a(), true),
        (9, from("ALLOW", "principals: ['*']"), p(), false),
        (10, from("DENY", "notPrincipals: ['*']"), a(), true),
        (10, from("DENY", "notPrincipals: ['*']"), p(), false),
        (11, from("DENY", "notNamespaces: [bar]"), a(), true),
        (11, from("DENY", "notNamespaces: [bar]"), p(), false),
        (12, from("ALLOW", "namespaces: [ba]"), a(), false),
        (13, from("ALLOW", "namespaces: ['ba*']"), a(), true),
        (14, from("ALLOW", "serviceAccounts: [web]"), a(), false),
        (14, from("ALLOW", "serviceAccounts: [web]"), of("spiffe://cluster.local/ns/foo/sa/web"), true),
        (15, from("ALLOW", "serviceAccounts: [bar/web]"), a(), true),
        (
            15,
            from("ALLOW", "serviceAccounts: [bar/web]"),
            of("spiffe://cluster.local/ns/bar/sa/web-admin"),
            false,
        ),
        (16, from("ALLOW", "serviceAccounts: [bar/w.b]"), a(), false),
        (16, from("ALLOW", "serviceAccounts: [bar/w.b]"), of("spiffe://cluster.local/ns/bar/sa/w.b"), true),
        (17, to("ALLOW", "methods: [GET]"), p(), true),
        (17, to("ALLOW", "methods: [GET]"), post(), false),
        (17, to("ALLOW", "methods: [GET]"), on(TCP), false),
        (18, to("DENY", "methods: [GET]"), on(TCP), false),
        (18, to("DENY", "methods: [GET]"), post(), true),
        (19, to("DENY", "methods: [GET], ports: ['8080']"), on(TCP), true),
        (19, to("DENY", "methods: [GET], ports: ['8080']"), p(), false),
        (20, to("ALLOW", "ports: ['80']"), on(HTTP), false),
        (21, to("ALLOW", "ports: ['8080']"), on(HTTP), true),
        (22, admin(), path("/admin"), false),
        (22, admin(), path("/admin?x=1"), false),
        (22, admin(), path("/admin#y"), false),
        (22, admin(), path("/x/../admin"), false),
        (22, admin(), path("/%61dmin"), false),
        (22, admin(), path("/x\\..\\admin"), false),
        (23, admin(), path("//admin"), true),
        (23, admin(), path("/admin/"), true),
        (23, admin(), path("/ADMIN"), true),
        (23, admin(), path("/admin%2F"), true),
        (24, merge.to_owned() + &admin(), path("//admin"), false),
        (25, to("DENY", "paths: ['/a/{*}/c']"), path("/a/b/c"), false),
        (25, to("DENY", "paths: ['/a/{*}/c']"), path("/a/b/d/c"), true),
        (25, to("DENY", "paths: ['/a/{*}/c']"), path("/a//c"), true),
        (26, to("DENY", "paths: ['/a/{**}']"), path("/a/"), false),
        (26, to("DENY", "paths: ['/a/{**}']"), path("/a/b/c"), false),
        (26, to("DENY", "paths: ['/a/{**}']"), path("/a"), true),
        (27, to("ALLOW", "hosts: [api.foo]"), host("API.foo"), true),
        (27, to("ALLOW", "hosts: [api.foo]"), host("api.foo:8080"), false),
        (28, when("ALLOW", "key: 'request.headers[x-t]', values: [a]"), with(&["a"]), true),
        (28, when("ALLOW", "key: 'request.headers[x-t]', values: [a]"), with(&["b", "a"]), true),
        (28, when("ALLOW", "key: 'request.headers[x-t]', values: [a]"), with(&[]), false),
        (28, when("ALLOW", "key: 'request.headers[x-t]', values: [a]"), with(&["a,b"]), false),
        (29, when("DENY", "key: 'request.headers[x-t]', notValues: [a]"), with(&[]), false),
        (29, when("DENY", "key: 'request.headers[x-t]', notValues: [a]"), with(&["a"]), true),
        (29, when("DENY", "key: 'request.headers[x-t]', notValues: [a]"), with(&["b"]), false),
        (36, policy_in("foo", dry, "rules: [{to: [{operation: {paths: [/x]}}]}]"), p(), true),
        (37, policy_in("foo", dry, "action: DENY, rules: [{}]"), p(), true),
        (37, policy_in("istio-system", dry, "action: DENY, rules: [{}]") + &policy("rules: [{}]"), p(), true),
        (38, policy("action: CUSTOM, provider: {name: nobody}, rules: [{}]"), p(), false),
        (38, policy("action: CUSTOM, provider: {name: nobody}, rules: [{}]"), on(TCP), false),
        (41, from("ALLOW", "ipBlocks: [10.0.0.5]"), forwarded(p()), false),
        (41, from("ALLOW", "ipBlocks: [10.0.0.0/24]"), forwarded(p()), true),
        (42, from("ALLOW", "remoteIpBlocks: [10.0.0.5]"), forwarded(p()), true),
        (42, from("ALLOW", "remoteIpBlocks: [10.0.0.5]"), p(), false),
        (43, selected, p(), false),
        (43, elsewhere, p(), true),
        // What has no number in the list.
        (0, both.clone(), path("/x"), false),
        (0, both, path("/y"), true),
        (0, policy("action: AUDIT, rules: [{}]"), p(), true),
        (0, policy("action: AUDIT, rules: [{}]"), on(TCP), true),
        (0, policy("rules: [{from: [{source: {requestPrincipals: ['*']}}]}]"), a(), false),
        (0, policy_in("bar", "", ""), p(), true),
        (0, when("ALLOW", "key: connection.sni, values: ['*.foo']"), sni("api.foo"), true),
        (0, when("ALLOW", "key: connection.sni, values: ['*.foo']"), p(), false),
        (0, when("ALLOW", "key: destination.ip, values: [10.1.0.0/16]"), on(TCP), true),
        (0, when("ALLOW", "key: destination.ip, values: [10.2.0.0/16]"), on(TCP), false),
        (0, from("ALLOW", "trustDomains: ['clus*']"), a(), true),
        (0, from("ALLOW", "trustDomains: [cluster]"), a(), false),
        (
            0,
            ALIASES.to_owned() + &from("ALLOW", "trustDomains: [cluster.local]"),
            of("spiffe://old.td/ns/a/sa/b"),
            true,
        ),
        (0, from("ALLOW", "principals: ['cluster.local/*']"), a(), true),
        // A certificate with two names is either of them.
        (
            0,
            from("ALLOW", web),
            Question {
                peer: vec!["spiffe://x/ns/a/sa/b".into(), "spiffe://cluster.local/ns/bar/sa/web".into()],
                ..p()
            },
            true,
        ),
    ];
    let mut wrong = Vec::new();
    for (number, policies, question, allowed) in rows {
        let denial = Shop::new(&policies).denial(&question);
        if denial.is_none() != allowed {
            wrong.push(format!("vector {number}: {denial:?}, allowed: {allowed}\n{policies}{question:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_denial_names_its_policy() {
    let shop = Shop::new(&to("DENY", "paths: [/x]"));
    assert_eq!(shop.denial(&path("/x")).as_deref(), Some("ns[foo]-policy[p]-rule[0]"));
    assert_eq!(Shop::new(&policy("")).denial(&p()).as_deref(), Some("none"));
    let closed = Shop::new(&policy("action: CUSTOM, rules: [{}]"));
    assert_eq!(closed.denial(&p()).as_deref(), Some("AuthorizationPolicy_foo/p_is_not_supported"));
}

#[test]
fn a_dry_run_counts() {
    let dry = ", annotations: {istio.io/dry-run: 'true'}";
    let shop = Shop::new(&policy_in("foo", dry, "rules: [{to: [{operation: {paths: [/x]}}]}]"));
    for asked in ["/x", "/y", "/z"] {
        assert_eq!(shop.denial(&path(asked)), None);
    }
    let counts: Vec<_> = shop.counters.tallies().into_iter().filter(|(_, a, d)| a + d > 0).collect();
    let [(place, 1, 2)] = &counts[..] else { panic!("{counts:?}") };
    assert_eq!(place.names()[1], "http.inbound_0.0.0.0_8080;.rbac.istio_dry_run_allow_.shadow_denied");
}
