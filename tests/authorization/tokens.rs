//! From the YAML of a RequestAuthentication, with or without an AuthorizationPolicy, to what becomes of a request with a token.

use std::time::SystemTime;

use osier_tests::tokens::{Signer, set};

use super::shop::{Question, Shop};

/// The policies of a mesh, and who signs for the issuers `one` and `two`.
struct Mesh {
    one: Signer,
    two: Signer,
}

impl Mesh {
    fn new() -> Self {
        Self { one: Signer::curve("P-256"), two: Signer::ed25519() }
    }

    fn signer(&self, issuer: &str) -> &Signer {
        if issuer == "two" { &self.two } else { &self.one }
    }

    /// A rule for an issuer.
    fn rule(&self, issuer: &str, fields: &str) -> String {
        let keys = set(&[self.signer(issuer).jwk("")]);
        format!("{{issuer: {issuer}, jwks: '{keys}'{fields}}}")
    }

    /// A token of an issuer, with more claims.
    fn token(&self, issuer: &str, claims: &str) -> String {
        let algorithm = if issuer == "two" { "EdDSA" } else { "ES256" };
        self.signer(issuer).token(algorithm, "", &format!("{{\"iss\": \"{issuer}\"{claims}}}"))
    }

    fn bearer(&self, issuer: &str, claims: &str) -> Question {
        with(&[("authorization", &format!("Bearer {}", self.token(issuer, claims)))])
    }
}

fn with(lines: &[(&str, &str)]) -> Question {
    let headers = lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Question { headers, ..Question::default() }
}

fn authentication(namespace: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {{name: a, namespace: {namespace}}}, spec: {{{spec}}}}}\n---\n"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1beta1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: foo}}, spec: {{{spec}}}}}\n---\n"
    )
}

fn from(action: &str, source: &str) -> String {
    policy(&format!("action: {action}, rules: [{{from: [{{source: {{{source}}}}}]}}]"))
}

fn when(action: &str, condition: &str) -> String {
    policy(&format!("action: {action}, rules: [{{when: [{{{condition}}}]}}]"))
}

/// What is allowed, what is denied by a policy, and what is not even believed.
const ALLOWED: Option<&str> = None;
const DENIED: Option<&str> = Some("none");
const RULE: Option<&str> = Some("ns[foo]-policy[p]-rule[0]");

#[test]
fn tokens_and_what_they_let_through() {
    let mesh = Mesh::new();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let one = |fields: &str| authentication("foo", &format!("jwtRules: [{}]", mesh.rule("one", fields)));
    let both =
        authentication("foo", &format!("jwtRules: [{}, {}]", mesh.rule("two", ""), mesh.rule("one", "")));
    let apart = authentication(
        "foo",
        &format!(
            "jwtRules: [{}, {}]",
            mesh.rule("one", ", fromHeaders: [{name: a}]"),
            mesh.rule("two", ", fromHeaders: [{name: b}]")
        ),
    );
    let any = from("ALLOW", "requestPrincipals: ['one/*']");
    let needed = from("DENY", "notRequestPrincipals: ['*']");
    let claims = ", \"sub\": \"x\", \"groups\": [\"a\", \"b\"], \"scope\": \"read write\", \"aud\": [\"us\"], \"azp\": \"me\", \"deep\": {\"er\": \"y\"}, \"n\": 7";
    let expired = format!(", \"exp\": {}", now - 61);
    let skewed = format!(", \"exp\": {}", now - 30);
    let plain = Question::default;
    let (first, second) = (mesh.token("one", ", \"sub\": \"x\""), mesh.token("two", ""));
    let selected = |app: &str| {
        authentication(
            "istio-system",
            &format!("selector: {{matchLabels: {{app: {app}}}}}, jwtRules: [{}]", mesh.rule("one", "")),
        )
    };
    let bad = || with(&[("authorization", "Bearer x")]);
    let form = Some("401 Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections");
    let issuer = Some("401 Jwt issuer is not configured");
    let rows: Vec<(u32, String, Question, Option<&str>)> = vec![
        (30, one("") + &any, mesh.bearer("one", ", \"sub\": \"x\""), ALLOWED),
        (30, one("") + &any, plain(), DENIED),
        (30, one("") + &any, mesh.bearer("two", ", \"sub\": \"x\""), issuer),
        (30, one("") + &any, mesh.bearer("one", ""), DENIED),
        (31, one(""), plain(), ALLOWED),
        (31, one(""), mesh.bearer("one", &expired), Some("401 Jwt is expired")),
        (31, one(""), mesh.bearer("one", &skewed), ALLOWED),
        (31, one(""), bad(), form),
        (
            32,
            one(", audiences: [us]"),
            mesh.bearer("one", ", \"aud\": \"them\""),
            Some("403 Audiences in Jwt are not allowed"),
        ),
        (32, one(", audiences: [us]"), mesh.bearer("one", ", \"aud\": [\"https://us/\"]"), ALLOWED),
        (33, both.clone(), mesh.bearer("two", ""), ALLOWED),
        (33, both.clone(), mesh.bearer("one", ""), ALLOWED),
        (33, both.clone(), plain(), ALLOWED),
        (33, both, bad(), form),
        (34, apart.clone(), with(&[("a", &first), ("b", "x")]), ALLOWED),
        (34, apart.clone(), with(&[("a", "x"), ("b", &second)]), ALLOWED),
        (34, apart.clone() + &any, with(&[("a", "x"), ("b", &second)]), DENIED),
        (34, apart, with(&[("a", "x")]), form),
        // What has no number in the list.
        (0, needed.clone(), plain(), RULE),
        (0, one("") + &needed, plain(), RULE),
        (0, one("") + &needed, mesh.bearer("one", claims), ALLOWED),
        (0, selected("api") + &needed, mesh.bearer("one", claims), ALLOWED),
        (0, selected("api"), bad(), form),
        (0, selected("web"), bad(), ALLOWED),
        (0, authentication("bar", &format!("jwtRules: [{}]", mesh.rule("one", ""))), bad(), ALLOWED),
        // A policy that needs a token that nobody looks at.
        (0, any.clone(), mesh.bearer("one", ", \"sub\": \"x\""), DENIED),
        (0, one("") + &from("ALLOW", "requestPrincipals: ['*/x']"), mesh.bearer("one", claims), ALLOWED),
        (0, one("") + &from("ALLOW", "requestPrincipals: ['*ne/x']"), mesh.bearer("one", claims), ALLOWED),
        (0, one("") + &from("ALLOW", "requestPrincipals: ['one']"), mesh.bearer("one", claims), DENIED),
        (
            0,
            one("") + &when("ALLOW", "key: request.auth.principal, values: [one/x]"),
            mesh.bearer("one", claims),
            ALLOWED,
        ),
        (
            0,
            one("") + &when("ALLOW", "key: request.auth.audiences, values: [us]"),
            mesh.bearer("one", claims),
            ALLOWED,
        ),
        (
            0,
            one("") + &when("ALLOW", "key: request.auth.presenter, values: [me]"),
            mesh.bearer("one", claims),
            ALLOWED,
        ),
        (
            0,
            one("") + &when("ALLOW", "key: 'request.auth.claims[groups]', values: [b]"),
            mesh.bearer("one", claims),
            ALLOWED,
        ),
        (
            0,
            one("") + &when("ALLOW", "key: 'request.auth.claims[groups]', values: [c]"),
            mesh.bearer("one", claims),
            DENIED,
        ),
        (
            0,
            one("") + &when("DENY", "key: 'request.auth.claims[groups]', notValues: [b]"),
            mesh.bearer("one", claims),
            ALLOWED,
        ),
        (0, one("") + &when("DENY", "key: 'request.auth.claims[groups]', notValues: [b]"), plain(), RULE),
        (
            0,
            one("") + &when("ALLOW", "key: 'request.auth.claims[scope]', values: [write]"),
            mesh.bearer("one", claims),
            ALLOWED,
        ),
        (
            0,
            one("") + &when("ALLOW", "key: 'request.auth.claims[deep][er]', values: ['*']"),
            mesh.bearer("one", claims),
            ALLOWED,
        ),
        (
            0,
            one("") + &when("ALLOW", "key: 'request.auth.claims[n]', values: ['7']"),
            mesh.bearer("one", claims),
            DENIED,
        ),
        (
            0,
            one(", spaceDelimitedClaims: [sub]")
                + &when("ALLOW", "key: 'request.auth.claims[sub]', values: [x]"),
            mesh.bearer("one", claims),
            ALLOWED,
        ),
        // A rule whose keys aren't there believes nobody, and stops nobody who has no token.
        (
            0,
            authentication("foo", "jwtRules: [{issuer: one, jwksUri: 'http://127.0.0.1:1/keys'}]"),
            mesh.bearer("one", ""),
            Some("401 Jwks doesn't have any valid public key"),
        ),
        (
            0,
            authentication("foo", "jwtRules: [{issuer: one, jwksUri: 'http://127.0.0.1:1/keys'}]"),
            plain(),
            ALLOWED,
        ),
        // One with a mistake lets nobody through.
        (
            0,
            authentication("foo", "jwtRules: [{issuer: one, jwksUri: 'ftp://a'}]"),
            plain(),
            Some("RequestAuthentication_foo/a_is_not_supported"),
        ),
    ];
    let mut wrong = Vec::new();
    for (number, policies, question, wanted) in rows {
        let denial = Shop::new(&policies).denial(&question);
        if denial.as_deref() != wanted {
            wrong.push(format!("vector {number}: {denial:?}, wanted: {wanted:?}\n{policies}{question:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn what_is_told_comes_from_tokens_alone() {
    let mesh = Mesh::new();
    let rule = mesh.rule(
        "one",
        ", outputPayloadToHeader: x-p, outputClaimToHeaders: [{header: x-sub, claim: sub}], forwardOriginalToken: true",
    );
    let shop = Shop::new(&authentication("foo", &format!("jwtRules: [{rule}]")));
    let forged = with(&[("X-P", "forged"), ("x-sub", "root"), ("x-other", "kept")]);
    // Vector 35.
    assert_eq!(shop.forwarded(&forged), [("x-other".to_owned(), "kept".to_owned())]);
    let mut both = mesh.bearer("one", ", \"sub\": \"joe\"");
    both.headers.extend(forged.headers);
    let forwarded = shop.forwarded(&both);
    let value = |name: &str| {
        let of_name = forwarded.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
        of_name.collect::<Vec<_>>().join("|")
    };
    assert_eq!(value("x-sub"), "joe");
    let token = mesh.token("one", ", \"sub\": \"joe\"");
    assert_eq!(Some(value("x-p").as_str()), token.split('.').nth(1));
    assert!(value("authorization").starts_with("Bearer "));
}
