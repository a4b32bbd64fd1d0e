//! From the YAML of a CUSTOM policy and its provider to whether a request is asked about, let in or denied, and to how the authorizer
//! is asked. (What becomes of its answers is tested where they come in: the exchanges of the proxy, and the oracle.)

use std::time::Duration;

use osier_proxy::ext_authz::{BodyRule, Form};

use super::shop::{Question, Shop, TCP, UNDECLARED};

const AUTHORIZER: &str = "
apiVersion: v1
kind: Service
metadata: {name: guard, namespace: bar}
spec:
  clusterIP: 10.96.0.7
  ports: [{name: http, port: 8000}, {name: grpc, port: 9000}]
---
";
const GUARD: &str = "service: guard.bar.svc.cluster.local";
const HTTP_CLUSTER: &str = "ask outbound|8000||guard.bar.svc.cluster.local";
const GRPC_CLUSTER: &str = "ask outbound|9000||guard.bar.svc.cluster.local";

fn mesh(providers: &str) -> String {
    format!(
        "{AUTHORIZER}{{apiVersion: v1, kind: ConfigMap, metadata: {{name: istio, namespace: istio-system}}, data: {{mesh: \"extensionProviders: [{providers}]\"}}}}\n---\n"
    )
}

fn http(fields: &str) -> String {
    mesh(&format!("{{name: web, envoyExtAuthzHttp: {{{GUARD}, port: 8000{fields}}}}}"))
}

fn grpc(fields: &str) -> String {
    mesh(&format!("{{name: opa, envoyExtAuthzGrpc: {{{GUARD}, port: 9000{fields}}}}}"))
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: foo}}, spec: {{{spec}}}}}\n---\n"
    )
}

fn custom(name: &str, provider: &str, rule: &str) -> String {
    policy(name, &format!("action: CUSTOM, provider: {{name: {provider}}}, rules: [{{{rule}}}]"))
}

fn path(path: &str) -> Question {
    Question { path: path.into(), ..Question::default() }
}

fn tcp() -> Question {
    Question { port: TCP, ..Question::default() }
}

fn undeclared() -> Question {
    Question { port: UNDECLARED, ..Question::default() }
}

#[test]
fn what_is_asked_about_and_what_is_denied() {
    let admin = "to: [{operation: {paths: ['/admin*']}}]";
    let bad =
        |name: &str| format!("istio-ext-authz-ns[foo]-policy[{name}]-rule[0]-deny-due-to-bad-CUSTOM-action");
    let deny = policy("d", "action: DENY, rules: [{to: [{operation: {paths: [/no]}}]}]");
    let both = mesh(&format!(
        "{{name: web, envoyExtAuthzHttp: {{{GUARD}, port: 8000}}}}, {{name: opa, envoyExtAuthzGrpc: {{{GUARD}, port: 9000}}}}"
    ));
    let ask = |cluster: &str| Some(cluster.to_owned());
    for (yaml, question, wanted) in [
        // 38: a provider that nobody knows, or that can't be asked, denies what matches and nothing else.
        (custom("p", "web", admin), path("/admin"), Some(bad("p"))),
        (custom("p", "web", admin), path("/open"), None),
        (grpc("") + &custom("p", "web", admin), path("/admin"), Some(bad("p"))),
        (
            http("").replace("guard.bar", "other.bar") + &custom("p", "web", admin),
            path("/admin"),
            Some(bad("p")),
        ),
        (
            http("").replace("port: 8000}}", "port: 8001}}") + &custom("p", "web", admin),
            path("/admin"),
            Some(bad("p")),
        ),
        (
            http("").replace("service: guard", "service: foo/guard") + &custom("p", "web", admin),
            path("/admin"),
            Some(bad("p")),
        ),
        (both.clone() + &custom("p", "web", admin) + &custom("q", "opa", ""), path("/x"), Some(bad("q"))),
        (both.clone() + &custom("p", "web", admin) + &custom("q", "opa", ""), tcp(), Some(bad("p"))),
        // 39, 40: what matches is asked about, and only that.
        (http("") + &custom("p", "web", admin), path("/admin/x?y"), ask(HTTP_CLUSTER)),
        (http("") + &custom("p", "web", admin), path("/x/../admin"), ask(HTTP_CLUSTER)),
        (http("") + &custom("p", "web", admin), path("/open"), None),
        (
            http("").replace("service: guard", "service: bar/guard") + &custom("p", "web", ""),
            path("/"),
            ask(HTTP_CLUSTER),
        ),
        (grpc("") + &custom("p", "opa", admin), path("/admin"), ask(GRPC_CLUSTER)),
        (
            both.clone()
                + &custom("p", "opa", admin)
                + &custom("q", "opa", "to: [{operation: {methods: [GET]}}]"),
            path("/x"),
            ask(GRPC_CLUSTER),
        ),
        // Asked first, then denied by others.
        (http("") + &custom("p", "web", "") + &deny, path("/no"), ask(HTTP_CLUSTER)),
        (
            http("") + &custom("p", "web", admin) + &deny,
            path("/no"),
            Some("ns[foo]-policy[d]-rule[0]".into()),
        ),
        // On opaque connections tests on HTTP are left out, and who is asked over HTTP isn't.
        (grpc("") + &custom("p", "opa", admin), tcp(), ask(GRPC_CLUSTER)),
        (grpc("") + &custom("p", "opa", "to: [{operation: {ports: ['8080']}}]"), tcp(), None),
        (http("") + &custom("p", "web", ""), tcp(), None),
        // Where nobody has said that bytes are opaque a client could go past it by not looking like HTTP.
        (http("") + &custom("p", "web", admin), undeclared(), Some(bad("p"))),
        (http("") + &custom("p", "web", "to: [{operation: {ports: ['8080']}}]"), undeclared(), None),
        (grpc("") + &custom("p", "opa", admin), undeclared(), ask(GRPC_CLUSTER)),
        // With a mistake it closes what it covers.
        (
            http("") + &policy("p", "action: CUSTOM, rules: [{}]"),
            path("/"),
            Some("AuthorizationPolicy_foo/p_is_not_supported".into()),
        ),
        (
            http("") + &custom("p", "web", "from: [{source: {namespaces: [a]}}]"),
            path("/"),
            Some("AuthorizationPolicy_foo/p_is_not_supported".into()),
        ),
    ] {
        assert_eq!(Shop::new(&yaml).denial(&question), wanted, "{question:?}\n{yaml}");
    }
}

#[test]
fn how_an_authorizer_is_asked() {
    let shop = Shop::new(&(http("") + &custom("p", "web", "")));
    let [plain] = &shop.manager().authorizers[..] else { panic!("one authorizer") };
    assert_eq!(
        (plain.timeout, plain.fails_open, plain.status_on_error, plain.body),
        (Some(Duration::from_secs(600)), false, 403, None)
    );
    assert!(matches!(plain.form, Form::Http(_)));
    let more = ", timeout: 2s, failOpen: true, statusOnError: '503', pathPrefix: /check, includeRequestBodyInCheck: {maxRequestBytes: 9, allowPartialMessage: true}";
    let shop = Shop::new(&(http(more) + &custom("p", "web", "")));
    let [web] = &shop.manager().authorizers[..] else { panic!("one authorizer") };
    assert_eq!((web.timeout, web.fails_open, web.status_on_error), (Some(Duration::from_secs(2)), true, 503));
    assert_eq!(web.body, Some(BodyRule { most: 9, partial: true }));
    let Form::Http(form) = &web.form else { panic!("over HTTP") };
    assert_eq!(*form.path_prefix, *b"/check");
    let shop = Shop::new(&(grpc("") + &custom("p", "opa", "")));
    let [opa] = &shop.tcp().authorizers[..] else { panic!("one authorizer") };
    let Form::Grpc(form) = &opa.form else { panic!("over gRPC") };
    assert_eq!(&*form.authority, "outbound_.9000_._.guard.bar.svc.cluster.local");
}
