//! Security policies that can't be enforced close what they cover, and nothing else.

use super::*;
use crate::model::MutualTls;
use crate::snapshot::Audience;

fn view(namespace: &str, labels: Labels, ip: &str) -> ProxyView {
    ProxyView {
        kind: ProxyKind::Envoy,
        gateway: false,
        mutual_tls: false,
        namespace: namespace.into(),
        name: "".into(),
        labels,
        addresses: [ip.parse().unwrap()].into(),
        interception: Interception::Redirect,
        dns_capture: false,
        node: "".into(),
    }
}

/// What is refused at a port of a workload with the label `app`; empty where nothing is.
fn refused(store: &Store, namespace: &str, app: &str, port: u16) -> String {
    let view = view(namespace, [("app", app)].into(), "10.0.0.250");
    store.snapshot().refusal(&view, port).map(|r| r.to_string()).unwrap_or_default()
}

fn object(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{{spec}}}}}\n---\n"
    )
}

fn authorization(namespace: &str, name: &str, spec: &str) -> String {
    object("AuthorizationPolicy", namespace, name, spec)
}

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    object("PeerAuthentication", namespace, name, spec)
}

const ROOT: &str = "istio-system";
const WEB: &str = "selector: {matchLabels: {app: web}}";
const UNSUPPORTED: &str = "AuthorizationPolicy shop/p is not supported";
const ROOT_POLICY: &str = "AuthorizationPolicy istio-system/p is not supported";
const STRICT: &str = "PeerAuthentication shop/p demands mutual TLS, and the workload has no certificate";

/// Refused in the whole namespace.
fn shop(cause: &str) -> [&str; 3] {
    [cause, cause, ""]
}

/// Policies, and for shop/web, shop/other and else/web what is refused at port 80.
type Row<'a> = (String, [&'a str; 3]);

fn check(rows: &[Row<'_>]) {
    for (yaml, wanted) in rows {
        let mut store = store();
        store.apply(updates(yaml));
        let got = [("shop", "web"), ("shop", "other"), ("else", "web")]
            .map(|(namespace, app)| refused(&store, namespace, app, 80));
        assert_eq!(got, *wanted, "{yaml}");
        store.apply(delete(yaml));
        assert_eq!(refused(&store, "shop", "web", 80), "", "open again after {yaml}");
    }
}

/// An AuthorizationPolicy that can't be enforced.
const CUSTOM: &str = "action: CUSTOM, rules: [{}]";

#[test]
fn authorization_policies_that_cannot_be_enforced_by_selection() {
    let u = UNSUPPORTED;
    let custom = |rest: &str| format!("{CUSTOM}, {rest}");
    check(&[
        (authorization("shop", "p", CUSTOM), [u, u, ""]),
        (authorization("shop", "p", "action: DENY"), [u, u, ""]),
        (authorization("shop", "p", &custom(WEB)), [u, "", ""]),
        (authorization("shop", "p", &custom("selector: {matchLabels: {}}")), [u, u, ""]),
        (authorization(ROOT, "p", CUSTOM), [ROOT_POLICY, ROOT_POLICY, ROOT_POLICY]),
        (authorization(ROOT, "p", &custom(WEB)), [ROOT_POLICY, "", ROOT_POLICY]),
        (authorization("third", "p", CUSTOM), ["", "", ""]),
        (authorization("shop", "p", "targetRefs: [{kind: Gateway, name: g}], rules: [{}]"), ["", "", ""]),
        (authorization("shop", "p", "action: AUDIT, rules: [{}]"), ["", "", ""]),
    ]);
}

#[test]
fn authorization_policies_by_selection() {
    let held = |store: &Store, namespace: &str, app: &str| -> Vec<String> {
        let view = view(namespace, [("app", app)].into(), "10.0.0.250");
        let snapshot = store.snapshot().clone();
        snapshot.authorizations(&view).iter().map(|(key, _)| key.to_string()).collect()
    };
    let (here, root) = ("AuthorizationPolicy shop/p", "AuthorizationPolicy istio-system/p");
    for (yaml, wanted) in [
        (authorization("shop", "p", ""), [here, here, ""]),
        (authorization("shop", "p", WEB), [here, "", ""]),
        (authorization("shop", "p", "action: AUDIT, rules: [{}]"), [here, here, ""]),
        (authorization(ROOT, "p", ""), [root, root, root]),
        (authorization(ROOT, "p", WEB), [root, "", root]),
        (authorization("third", "p", ""), ["", "", ""]),
        (authorization("shop", "p", "targetRefs: [{kind: Gateway, name: g}], rules: [{}]"), ["", "", ""]),
    ] {
        let mut store = store();
        store.apply(updates(&yaml));
        let got = [("shop", "web"), ("shop", "other"), ("else", "web")]
            .map(|(namespace, app)| held(&store, namespace, app).join(" "));
        assert_eq!(got, wanted.map(str::to_owned), "{yaml}");
        store.apply(delete(&yaml));
        assert!(held(&store, "shop", "web").is_empty(), "{yaml}");
    }
    // A workload of the root namespace has each of its policies once.
    let mut store = store();
    store.apply(updates(&authorization(ROOT, "p", "")));
    assert_eq!(held(&store, ROOT, "web"), [root]);
}

#[test]
fn what_cannot_be_read_holds_its_namespace() {
    let u = UNSUPPORTED;
    let nameless = |metadata: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{{metadata}}}, spec: {{}}}}"
        )
    };
    check(&[
        (authorization("shop", "p", "selectr: {matchLabels: {app: web}}"), [u, u, ""]),
        (authorization("shop", "p", "selector: {matchLabel: {app: web}}"), [u, u, ""]),
        (authorization("shop", "p", "selector: {matchLabels: {app: \"w*\"}}"), [u, u, ""]),
        (authorization("shop", "p", "action: ADUIT"), [u, u, ""]),
        (authorization("shop", "p", &format!("{WEB}, targetRefs: [{{kind: Gateway}}]")), [u, u, ""]),
        (authorization(ROOT, "p", "x: 1"), [ROOT_POLICY, ROOT_POLICY, ROOT_POLICY]),
        (nameless("name: P, namespace: shop"), shop("AuthorizationPolicy shop/P is not supported")),
        (nameless("namespace: shop"), shop("AuthorizationPolicy shop/ is not supported")),
        (nameless("name: p, namespace: 5"), ["AuthorizationPolicy p is not supported"; 3]),
        (peer("shop", "p", "mtls: {mode: STRIKT}"), shop("PeerAuthentication shop/p is not supported")),
        (
            peer("shop", "p", "portLevelMtls: {80: {mode: DISABLE}}"),
            shop("PeerAuthentication shop/p is not supported"),
        ),
    ]);
}

#[test]
fn request_authentications_with_and_without_rules() {
    let made = |spec: &str| object("RequestAuthentication", "shop", "p", spec);
    let r = "RequestAuthentication shop/p is not supported";
    check(&[
        // Without a place of its keys a rule can't be enforced.
        (made("jwtRules: [{issuer: i}]"), [r, r, ""]),
        (made(&format!("{WEB}, jwtRules: [{{issuer: i}}]")), [r, "", ""]),
        (made("jwtRules: [{issuer: 'https://i'}]"), ["", "", ""]),
        (made(WEB), ["", "", ""]),
    ]);
}

#[test]
fn rules_of_all_policies_that_cover_a_workload_are_joined_by_issuer() {
    let made =
        |namespace: &str, name: &str, spec: &str| object("RequestAuthentication", namespace, name, spec);
    let rule = |issuer: &str| format!("{{issuer: 'https://{issuer}'}}");
    let mut store = store();
    store.apply(updates(
        &(made("shop", "p", &format!("jwtRules: [{}, {}]", rule("c"), rule("a")))
            + &made(ROOT, "all", &format!("jwtRules: [{}]", rule("b")))
            + &made(ROOT, "web", &format!("{WEB}, jwtRules: [{}]", rule("a")))
            + &made("else", "p", &format!("jwtRules: [{}]", rule("d")))),
    ));
    let issuers = |namespace: &str, app: &str| {
        let view = view(namespace, [("app", app)].into(), "10.0.0.250");
        let snapshot = store.snapshot().clone();
        let rules = snapshot.token_rules(&view);
        rules
            .iter()
            .map(|(key, rule)| format!("{}/{} {}", key.namespace, key.name, rule.issuer))
            .collect::<Vec<_>>()
    };
    let (all, own) = ("istio-system/all https://b", ["shop/p https://a", "shop/p https://c"]);
    assert_eq!(issuers("shop", "web"), [own[0], "istio-system/web https://a", all, own[1]]);
    assert_eq!(issuers("shop", "other"), [own[0], all, own[1]]);
    assert_eq!(issuers("else", "x"), [all, "else/p https://d"]);
}

#[test]
fn fetched_keys_reach_those_whom_they_concern_and_failures_are_told() {
    let made =
        object("RequestAuthentication", "shop", "p", "jwtRules: [{issuer: i, jwksUri: 'https://k/keys'}]");
    let mut store = store();
    store.apply(updates(&made));
    let location = KeyLocation::Uri("https://k/keys".into());
    assert_eq!(store.snapshot().security.wanted_keys().keys().collect::<Vec<_>>(), [&location]);
    let workload = view("shop", Labels::default(), "10.0.0.250");
    let held = |store: &Store| {
        let snapshot = store.snapshot().clone();
        let (_, rule) = snapshot.token_rules(&workload)[0];
        snapshot.keys_of(rule).map(|keys| keys.to_string())
    };
    let mut fetched = |keys: Option<&str>, failure: Option<&str>| {
        let fetched = FetchedKeys { keys: keys.map(Into::into), failure: failure.map(Into::into) };
        let change = store.apply_with_keys(vec![], vec![(location.clone(), Some(fetched))]);
        let said = store.reports().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        (change, held(&store), said)
    };
    let (change, held, said) = fetched(None, Some("no answer"));
    assert!(change.is_none() && held.is_none());
    assert!(
        said.contains(
            "no keys of issuer \"i\" from https://k/keys: no answer; every token of issuer \"i\" is refused"
        ),
        "{said}"
    );
    let (change, held, said) = fetched(Some("1"), None);
    let change = change.expect("a change");
    assert!(change.concerns(&workload) && !change.concerns(&view("else", Labels::default(), "10.0.0.251")));
    assert_eq!((held.as_deref(), said.as_str()), (Some("1"), ""));
    let (change, held, said) = fetched(Some("1"), Some("no answer"));
    assert!(change.is_none(), "nothing that a client could see");
    assert_eq!(held.as_deref(), Some("1"));
    assert!(said.contains("the keys that were fetched before stay in force"), "{said}");
    let (change, held, _) = fetched(Some("2"), None);
    assert!(change.is_some() && held.as_deref() == Some("2"));
}

#[test]
fn peer_authentications_by_level() {
    let strict = "mtls: {mode: STRICT}";
    let root = "PeerAuthentication istio-system/p demands mutual TLS, and the workload has no certificate";
    check(&[
        (peer("shop", "p", strict), [STRICT, STRICT, ""]),
        (peer("shop", "p", "mtls: {mode: PERMISSIVE}"), ["", "", ""]),
        (peer("shop", "p", "mtls: {mode: DISABLE}"), ["", "", ""]),
        (peer("shop", "p", "mtls: {mode: UNSET}"), ["", "", ""]),
        (peer("shop", "p", &format!("{WEB}, {strict}")), [STRICT, "", ""]),
        (peer(ROOT, "p", strict), [root, root, root]),
        // unlike an AuthorizationPolicy's, a selector of the root namespace selects there only
        (peer(ROOT, "p", &format!("{WEB}, {strict}")), ["", "", ""]),
        (peer(ROOT, "p", strict) + &peer("shop", "q", "mtls: {mode: PERMISSIVE}"), ["", "", root]),
        (peer(ROOT, "p", strict) + &peer("shop", "q", "mtls: {}"), [root, root, root]),
        (
            peer("shop", "p", strict) + &peer("shop", "q", &format!("{WEB}, mtls: {{mode: DISABLE}}")),
            ["", STRICT, ""],
        ),
        // the first by age and name wins
        (peer("shop", "p", strict) + &peer("shop", "q", "mtls: {mode: DISABLE}"), [STRICT, STRICT, ""]),
        (peer("shop", "o", "mtls: {mode: DISABLE}") + &peer("shop", "p", strict), ["", "", ""]),
        (peer("shop", "p", strict) + &authorization("shop", "p", CUSTOM), [UNSUPPORTED, UNSUPPORTED, ""]),
    ]);
}

#[test]
fn ports_of_a_peer_authentication() {
    let mut store = store();
    let ports = "mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}, 81: {mode: UNSET}}";
    store.apply(updates(&peer("shop", "p", &format!("{WEB}, {ports}"))));
    assert_eq!(refused(&store, "shop", "web", 80), "");
    assert_eq!(refused(&store, "shop", "web", 81), STRICT);
    assert_eq!(refused(&store, "shop", "web", 82), STRICT);
}

#[test]
fn what_a_workload_keeps_whatever_its_namespace_says() {
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.1}}\n---\n";
    let own = |spec: &str| peer("shop", "p", &format!("{WEB}, {spec}"));
    let of_namespace = peer("shop", "all", "mtls: {mode: PERMISSIVE}");
    let none: &[(u16, MutualTls)] = &[];
    for (yaml, mode, kept, ports) in [
        (String::new(), MutualTls::Permissive, false, none),
        (peer(ROOT, "p", "mtls: {mode: DISABLE}"), MutualTls::Disable, false, none),
        (of_namespace.clone(), MutualTls::Permissive, false, none),
        (own("mtls: {mode: DISABLE}") + &of_namespace, MutualTls::Disable, true, none),
        (
            own("portLevelMtls: {80: {mode: PERMISSIVE}, 81: {mode: UNSET}}") + &of_namespace,
            MutualTls::Permissive,
            false,
            // Its namespace says the same by now; what that says later is nothing to this port.
            &[(80, MutualTls::Permissive)],
        ),
        (
            peer("shop", "p", "selector: {matchLabels: {app: other}}, portLevelMtls: {80: {mode: STRICT}}"),
            MutualTls::Permissive,
            false,
            none,
        ),
    ] {
        let mut store = store();
        store.apply(updates(&(pod.to_owned() + &yaml)));
        let snapshot = store.snapshot();
        let found = snapshot.mutual_tls_of(&snapshot.workloads[0]);
        let found = (found.mode, found.own, found.ports.into_iter().collect::<Vec<_>>());
        assert_eq!(found, (mode, kept, ports.to_vec()), "{yaml}");
    }
}

#[test]
fn the_labels_of_a_known_workload_count_more_than_what_a_proxy_says() {
    let pod = |app: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: shop, labels: {{app: {app}}}}}, status: {{podIP: 10.0.0.1}}}}\n---\n"
        )
    };
    let mut store = store();
    store.apply(updates(&(authorization("shop", "p", &format!("{CUSTOM}, {WEB}")) + &pod("web"))));
    let liar = view("shop", [("app", "other")].into(), "10.0.0.1");
    assert!(store.snapshot().refusal(&liar, 80).is_some());
    let change = store.apply(updates(&pod("other"))).unwrap();
    assert!(store.snapshot().refusal(&liar, 80).is_none());
    assert!(change.concerns_inbound(&liar) && change.endpoints_only(), "{change:?}");
    let change = store.apply(updates(&pod("web"))).unwrap();
    assert!(store.snapshot().refusal(&liar, 80).is_some() && change.concerns(&liar));
}

#[test]
fn a_change_reaches_those_whom_it_may_cover() {
    for (yaml, everybody) in [
        (authorization("shop", "p", WEB), false),
        // Callers elsewhere find in endpoints who takes mutual TLS.
        (peer("shop", "p", "mtls: {mode: STRICT}"), true),
        (authorization(ROOT, "p", WEB), true),
        ("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: 5}}".into(), true),
    ] {
        let mut store = store();
        for updates in [updates(&yaml), delete(&yaml)] {
            let change = store.apply(updates).unwrap();
            assert_eq!(change.audience == Audience::Everybody, everybody, "{yaml}");
            assert!(everybody || change.audience.includes("shop"), "{yaml}");
        }
        assert!(store.apply(delete(&yaml)).is_none(), "{yaml}");
    }
}

#[test]
fn states() {
    let mut store = store();
    let all = [
        authorization("shop", "refused", CUSTOM),
        authorization("shop", "audit", "action: AUDIT, rules: [{}]"),
        peer("shop", "strict", "mtls: {mode: STRICT}"),
    ];
    store.apply(updates(&all.concat()));
    assert_eq!(state(&store, "refused"), State::FailsClosed);
    assert_eq!(state(&store, "audit"), State::InForce);
    assert_eq!(state(&store, "strict"), State::InForce);
    // a policy that allowed and can't be read any more is not what it was
    store.apply(updates(&peer("shop", "strict", "mtls: {mode: PERMISSIVE}")));
    assert_eq!(refused(&store, "shop", "web", 80), "AuthorizationPolicy shop/refused is not supported");
    store.apply(delete(&all[0]));
    assert_eq!(refused(&store, "shop", "web", 80), "");
    store.apply(updates(&peer("shop", "strict", "mtls: {mode: PERMISIVE}")));
    assert_eq!(refused(&store, "shop", "web", 80), "PeerAuthentication shop/strict is not supported");
    assert_eq!(state(&store, "strict"), State::FailsClosed);
}

#[test]
fn a_policy_that_nobody_can_be_asked_for_says_why() {
    let provider = |name: &str, host: &str, port: u16| {
        format!("{{name: {name}, envoyExtAuthzGrpc: {{service: {host}, port: {port}}}}}")
    };
    let mesh = |providers: &[String]| {
        format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: istio, namespace: {ROOT}}}, data: {{mesh: \"extensionProviders: [{}]\"}}}}\n---\n",
            providers.join(", ")
        )
    };
    let guard = "{apiVersion: v1, kind: Service, metadata: {name: guard, namespace: shop}, spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}}\n---\n";
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.1}}\n---\n";
    let host = "guard.shop.svc.cluster.local";
    let policy = |name: &str, provider: &str, rest: &str| {
        authorization(
            "shop",
            name,
            &format!("action: CUSTOM, provider: {{name: {provider}}}, rules: [{{}}]{rest}"),
        )
    };
    let good = || mesh(&[provider("a", host, 80), provider("b", host, 80)]);
    for (yaml, wanted) in [
        (good() + &policy("p", "a", ""), vec![]),
        (good() + &policy("p", "a", "") + &policy("q", "a", ""), vec![]),
        (
            good() + &policy("p", "c", ""),
            vec!["p: \"c\" is no external authorizer of the mesh's extensionProviders"],
        ),
        (
            mesh(&[provider("a", "nobody.shop.svc.cluster.local", 80)]) + &policy("p", "a", ""),
            vec!["p: the service of \"a\" is not there"],
        ),
        (
            mesh(&[provider("a", host, 81)]) + &policy("p", "a", ""),
            vec!["p: the service of \"a\" has no port 81"],
        ),
        (
            good() + &policy("p", "a", "") + &policy("q", "b", &format!(", {WEB}")),
            vec![
                "p: several external authorizers for one workload: a, b",
                "q: several external authorizers for one workload: a, b",
            ],
        ),
        (
            good()
                + &policy("p", "a", &format!(", {WEB}"))
                + &policy("q", "b", ", selector: {matchLabels: {app: other}}"),
            vec![],
        ),
    ] {
        let mut store = store();
        store.apply(updates(&(guard.to_owned() + pod + &yaml)));
        let reports = store.reports();
        let said: Vec<String> = reports.iter().map(|r| format!("{}: {}", r.name, r.message)).collect();
        assert_eq!(said.len(), wanted.len(), "{said:?} {yaml}");
        for (said, wanted) in said.iter().zip(wanted) {
            assert!(
                said.starts_with(wanted) && said.ends_with("; what its rules match is denied"),
                "{said}, not {wanted}"
            );
        }
        assert!(reports.iter().all(|r| r.field == "spec.provider.name" && r.severity == Severity::Error));
    }
}
