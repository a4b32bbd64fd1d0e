//! Rules of RequestAuthentications: YAML in, problems out.

use super::*;
use crate::model::{Coverage, Kind, Severity};
use crate::source::decode::decode;
use crate::source::yaml::parse;

fn read(yaml: &str) -> Read {
    let node = parse(&format!("{{{yaml}}}")).unwrap_or_else(|e| panic!("{e}: {yaml}")).remove(0);
    let spec: schema::RequestAuthentication = decode(&node).unwrap_or_else(|e| panic!("{e}: {yaml}"));
    let context = Context::new(Kind::RequestAuthentication, "prod", "test", 7, &Arc::from("cluster.local"));
    check(&context, &spec)
}

fn said(read: &Read) -> Vec<String> {
    let word = |severity| if severity == Severity::Error { "error" } else { "warn" };
    read.problems.iter().map(|p| format!("{} {}: {}", word(p.severity), p.field, p.message)).collect()
}

fn rules(read: &Read) -> &[TokenRule] {
    match read.policy.as_ref().map(|policy| &policy.demands) {
        Some(Demand::Authentication(rules)) => rules,
        other => panic!("{other:?}"),
    }
}

const KEYS: &str = "jwks: '{\"keys\": [{\"kty\": \"oct\", \"k\": \"c2VjcmV0\", \"use\": \"sig\"}]}'";

fn rule(fields: &str) -> String {
    let comma = if fields.is_empty() { "" } else { ", " };
    format!("jwtRules: [{{issuer: me, {KEYS}{comma}{fields}}}]")
}

#[test]
fn a_rule_is_what_it_says() {
    let read = read(&rule(
        "audiences: [a], fromHeaders: [{name: X-Token, prefix: 't '}], fromParams: [p], fromCookies: [c], forwardOriginalToken: true,
         outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-sub, claim: a.b}], spaceDelimitedClaims: [groups, scope],
         presence: OPTIONAL",
    ));
    assert!(read.problems.is_empty(), "{:?}", said(&read));
    let [rule] = rules(&read) else { panic!("one rule") };
    let texts = |list: &[&str]| list.iter().map(|text| Arc::from(*text)).collect::<Vec<Arc<str>>>();
    assert_eq!(
        *rule,
        TokenRule {
            issuer: "me".into(),
            audiences: texts(&["a"]),
            keys: KeySource::Inline("{\"keys\":[{\"k\":\"c2VjcmV0\",\"kty\":\"oct\"}]}".into()),
            headers: vec![("X-Token".into(), "t ".into())],
            parameters: texts(&["p"]),
            cookies: texts(&["c"]),
            forward: true,
            payload_header: Some("x-payload".into()),
            claim_headers: vec![("x-sub".into(), "a.b".into())],
            words: texts(&["scope", "permission", "groups"]),
        }
    );
}

#[test]
fn keys_are_somewhere() {
    let source = |fields: &str| {
        let read = read(&format!("jwtRules: [{{{fields}}}]"));
        assert!(read.problems.is_empty(), "{:?}", said(&read));
        rules(&read)[0].keys.clone()
    };
    let five = Duration::from_secs(5);
    let uri = |uri: &str, timeout| KeySource::Remote(KeyLocation::Uri(uri.into()), timeout);
    assert_eq!(source("issuer: me, jwksUri: 'https://a/keys'"), uri("https://a/keys", five));
    assert_eq!(
        source("issuer: me, jwks_uri: 'http://a/keys', timeout: 1.5s"),
        uri("http://a/keys", Duration::from_millis(1500))
    );
    assert_eq!(source("jwksUri: 'http://a/keys'"), uri("http://a/keys", five));
    let KeySource::Remote(location, _) = source("issuer: 'https://i/'") else { panic!("discovery") };
    assert_eq!(location.to_string(), "https://i/.well-known/openid-configuration");
}

#[test]
fn whom_it_covers() {
    let covers = |yaml: &str| read(yaml).policy.map(|policy| policy.covers.clone());
    assert_eq!(covers(&rule("")), Some(Coverage::Namespace));
    let web = Coverage::Workloads([("app", "web")].into());
    assert_eq!(covers(&format!("selector: {{matchLabels: {{app: web}}}}, {}", rule(""))), Some(web.clone()));
    assert_eq!(covers(&format!("targetRefs: [{{kind: Gateway, name: g}}], {}", rule(""))), None);
    assert_eq!(covers("selector: {matchLabels: {app: web}}"), None);
    // With a mistake it closes whom it covers, as far as that can be told.
    let broken = read("selector: {matchLabels: {app: web}}, jwtRules: [{issuer: me}]").policy.unwrap();
    assert_eq!((&broken.covers, &broken.demands), (&web, &Demand::Unsupported));
    assert_eq!(covers("selector: {matchLabels: {app: 'w*'}}"), Some(Coverage::Namespace));
}

#[test]
fn what_is_refused() {
    let at = "spec.jwtRules[0]";
    let many = |count: usize| (0..count).map(|n| format!("a{n}")).collect::<Vec<_>>().join(", ");
    for (yaml, wanted) in [
        ("jwtRules: [{issuer: me}]".to_owned(), format!("{at}: needs jwks or jwksUri")),
        ("jwtRules: [{}]".to_owned(), format!("{at}: needs jwks or jwksUri")),
        (rule("jwksUri: 'https://a'"), format!("{at}.jwks: excludes jwksUri")),
        (
            "jwtRules: [{issuer: me, jwksUri: 'ftp://a'}]".to_owned(),
            format!("{at}.jwksUri: \"ftp://a\" is neither"),
        ),
        (
            "jwtRules: [{issuer: me, jwksUri: 'file:///etc/passwd'}]".to_owned(),
            format!("{at}.jwksUri: \"file:"),
        ),
        (
            "jwtRules: [{issuer: me, jwksUri: 'https://u:p@a'}]".to_owned(),
            format!("{at}.jwksUri: \"https://u:p@a\" has a user"),
        ),
        (
            format!("jwtRules: [{{issuer: me, jwksUri: 'https://a/{}'}}]", "x".repeat(2048)),
            format!("{at}.jwksUri: has more"),
        ),
        ("jwtRules: [{issuer: me, jwks: '{}'}]".to_owned(), format!("{at}.jwks: is no key set")),
        ("jwtRules: [{issuer: me, jwks: 'x'}]".to_owned(), format!("{at}.jwks: is no JSON")),
        (
            "jwtRules: [{issuer: me, jwksUri: 'https://a', jwks_uri: 'https://a'}]".to_owned(),
            format!("{at}.jwks_uri: is jwksUri"),
        ),
        (rule("audiences: ['']"), format!("{at}.audiences[0]: is empty")),
        (rule("fromHeaders: [{prefix: x}]"), format!("{at}.fromHeaders[0].name: is required")),
        (rule("fromHeaders: [{name: 'a b'}]"), format!("{at}.fromHeaders[0].name: \"a b\" is no name")),
        (rule("fromHeaders: [{name: a, prefix: \"a\\nb\"}]"), format!("{at}.fromHeaders[0].prefix")),
        (rule("fromParams: [a, '']"), format!("{at}.fromParams[1]: is empty")),
        (rule("fromCookies: ['']"), format!("{at}.fromCookies[0]: is empty")),
        (rule("outputPayloadToHeader: 'a:b'"), format!("{at}.outputPayloadToHeader: \"a:b\" is no name")),
        (
            rule("outputClaimToHeaders: [{claim: c}]"),
            format!("{at}.outputClaimToHeaders[0].header: is required"),
        ),
        (
            rule("outputClaimToHeaders: [{header: h}]"),
            format!("{at}.outputClaimToHeaders[0].claim: is required"),
        ),
        (
            rule("outputClaimToHeaders: [{header: 'h!', claim: c}]"),
            format!("{at}.outputClaimToHeaders[0].header: \"h!\" may"),
        ),
        (
            rule(&format!("spaceDelimitedClaims: [{}]", many(65))),
            format!("{at}.spaceDelimitedClaims: has 65"),
        ),
        (rule("timeout: 0s"), format!("{at}.timeout: must be")),
        (rule("timeout: 2m"), format!("{at}.timeout: is more than 60s")),
        (rule("presence: REQUIRED"), format!("{at}.presence: REQUIRED is not supported")),
        (
            format!("jwtRules: [{{issuer: me, {KEYS}}}, {{issuer: me, {KEYS}}}]"),
            "spec.jwtRules[1].issuer: \"me\" is there twice".to_owned(),
        ),
        (
            format!(
                "selector: {{matchLabels: {{a: b}}}}, targetRefs: [{{kind: Gateway, name: g}}], {}",
                rule("")
            ),
            "spec.targetRefs: contradicts".to_owned(),
        ),
    ] {
        let read = read(&yaml);
        let said = said(&read);
        assert!(said[0].starts_with(&format!("error {wanted}")), "{said:?}\n{wanted}\n{yaml}");
        assert!(said.last().unwrap().contains("is refused"), "{said:?}");
        assert_eq!(read.policy.unwrap().demands, Demand::Unsupported, "{yaml}");
    }
    let unknown = parse("{jwtRules: [{issuer: me, jwksURI: 'https://a'}]}").unwrap().remove(0);
    let error = decode::<schema::RequestAuthentication>(&unknown).unwrap_err();
    assert!(format!("{error:?}").contains("jwksURI"), "{error:?}");
}
