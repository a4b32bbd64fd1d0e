//! Requests with tokens: what the client gets, what the upstream sees, what routes and the log say.

use std::sync::Arc;

use super::rig::*;
use crate::authz::counters::{Place, Tally};
use crate::authz::{Action, Condition, Denial, Filter, Rule, Rules};
use crate::config::listener::{Direction, HttpManager};
use crate::config::route::{PathMatch, Text, ValueMatch};
use crate::http::test_support::path_match;
use crate::jwt::cache::Scope;
use crate::jwt::keys::Keys;
use crate::jwt::place::Places;
use crate::jwt::provider::{Audiences, Provider};
use crate::jwt::requirement::{Check, Requirement};
use crate::jwt::test_support::{Signer, set};
use crate::jwt::{self, Authentication, ClaimCondition, ClaimValue};
use crate::worker::Shared;

fn text(value: &str) -> Text {
    Text { value: value.as_bytes().into(), ignore_case: false }
}

fn claim(name: &str, value: &str) -> ClaimCondition {
    let value = ClaimValue::Text(ValueMatch::Exact(text(value)));
    ClaimCondition { key: "payload".into(), path: [name.into()].into(), value, invert: false }
}

fn authentication(signer: &Signer, requirement: Requirement, tally: Arc<Tally>) -> Authentication {
    let keys = Keys::parse(&set(&[signer.jwk("")])).expect("a key set");
    let provider = Provider {
        issuer: "me".into(),
        audiences: Audiences::new(["us"]),
        scope: Scope::new(keys.fingerprint(), &[]),
        keys,
        skew: 60,
        places: Places::new(&[], &[], &[]),
        forward: false,
        payload_header: None,
        pad_payload: false,
        claim_headers: [("x-sub".into(), ["sub".into()].into())].into(),
        metadata: Some("payload".into()),
        words: Box::default(),
    };
    Authentication {
        told_headers: provider.told_headers().cloned().collect(),
        providers: [provider].into(),
        checks: [Check { provider: 0, audiences: None }].into(),
        rules: [jwt::Rule {
            matches: path_match(PathMatch::Prefix(text("/"))),
            requirement: Some(requirement),
        }]
        .into(),
        passes_preflight: true,
        tally,
    }
}

/// Only `joe` may do anything.
fn joe_only() -> Filter {
    let denial = || Denial::new("none", Arc::default());
    let rule = Rule { condition: Condition::Claim(Box::new(claim("sub", "joe"))), denial: denial() };
    let rules = Rules { action: Action::Allow, rules: Box::new([rule]), unmatched: denial() };
    Filter { enforced: Some((rules, Arc::default())), shadow: None }
}

async fn proxy(filter: Authentication, authorization: Vec<Filter>, mirror: &Upstream) -> Proxy {
    let mut staff = to(&cluster(&[mirror.address], |_| {}), |_| {});
    staff.name = "staff".into();
    staff.matches.claims = vec![claim("group", "staff")];
    let all = to(&cluster(&[mirror.address], |_| {}), |_| {});
    let change = |manager: &mut HttpManager| {
        manager.authentication = Some(Arc::new(filter));
        manager.authorization = authorization.into();
    };
    let shared = Arc::new(Shared::default());
    Proxy::beside(shared, Direction::Inbound, table(host(vec![staff, all])), change).await
}

fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a:80\r\n{lines}\r\n")
}

fn bearer(signer: &Signer, claims: &str) -> String {
    let token = signer.token("HS256", "", &format!("{{\"iss\": \"me\", \"aud\": \"us\"{claims}}}"));
    format!("Authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn who_is_not_believed_is_answered_as_envoy_does_and_goes_nowhere() {
    let (mirror, signer, tally) = (mirror().await, Signer::secret("s"), Arc::<Tally>::default());
    let proxy = proxy(authentication(&signer, Requirement::Valid(0), tally.clone()), vec![], &mirror).await;
    let long = format!("/{}\"", "x".repeat(300));
    let wrong_audience = signer.token("HS256", "", "{\"iss\": \"me\", \"aud\": \"them\"}");
    let invalid = ", error=\"invalid_token\"";
    for (request, status, body, challenge) in [
        (get("/p?q", ""), 401, "Jwt is missing", "Bearer realm=\"http://a:80/p?q\"".to_owned()),
        (
            get("/a\"b", "authorization: Bearer x.y\r\n"),
            401,
            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            format!("Bearer realm=\"http://a:80/a%22b\"{invalid}"),
        ),
        (
            get(&long, &bearer(&signer, ", \"exp\": 1")),
            401,
            "Jwt is expired",
            format!("Bearer realm=\"http://a:80/{}\"{invalid}", "x".repeat(255)),
        ),
        (
            get("/", &format!("authorization: Bearer {wrong_audience}\r\n")),
            403,
            "Audiences in Jwt are not allowed",
            format!("Bearer realm=\"http://a:80/\"{invalid}"),
        ),
    ] {
        let reply = proxy.ask(&request).await;
        assert_eq!((reply.status(), &*reply.body), (status, body));
        assert_eq!(reply.get("www-authenticate"), Some(&*challenge));
        assert_eq!(reply.get("content-type"), Some("text/plain"));
    }
    let grpc = get("/", "content-type: application/grpc\r\n");
    let reply = proxy.ask(&grpc).await;
    assert_eq!((reply.status(), reply.get("grpc-status")), (200, Some("16")));
    assert_eq!(reply.get("grpc-message"), Some("Jwt is missing"));
    assert_eq!((mirror.connections(), tally.sums()), (0, (0, 5)));
    let log = proxy.log(5).await;
    assert_eq!(log[0], "401 - jwt_authn_access_denied{Jwt_is_missing} 0 14 0 all backend", "{log:?}");
    assert!(
        log[3].starts_with("403 - jwt_authn_access_denied{Audiences_in_Jwt_are_not_allowed} "),
        "{log:?}"
    );
    assert_eq!(Place::jwt("x").names()[1], "http.x.jwt_authn.denied");
}

#[tokio::test]
async fn claims_reach_policies_routes_and_the_upstream() {
    let (mirror, signer, tally) = (mirror().await, Signer::secret("s"), Arc::<Tally>::default());
    let filter =
        authentication(&signer, Requirement::AnyOfOrMissing([Requirement::Valid(0)].into()), tally.clone());
    let proxy = proxy(filter, vec![joe_only()], &mirror).await;
    assert_eq!(proxy.ask(&get("/", "")).await.status(), 403);
    assert_eq!(proxy.ask(&get("/", &bearer(&signer, ", \"sub\": \"eve\""))).await.status(), 403);
    let reply = proxy.ask(&get("/?access_token=", &bearer(&signer, ", \"sub\": \"joe\""))).await;
    assert_eq!(reply.status(), 401, "an empty token is one, and not valid");
    let forged = bearer(&signer, ", \"sub\": \"joe\", \"group\": \"staff\"") + "X-Sub: root\r\n";
    let reply = proxy.ask(&get("/", &forged)).await;
    assert_eq!(reply.status(), 200);
    let seen = reply.body.to_lowercase();
    assert!(seen.contains("x-sub: joe") && !seen.contains("root"), "{seen}");
    assert!(!seen.contains("authorization"), "{seen}");
    assert_eq!(proxy.ask(&get("/", &bearer(&signer, ", \"sub\": \"joe\""))).await.status(), 200);
    let log = proxy.log(5).await;
    assert!(log[3].contains(" staff ") && log[4].contains(" all "), "{log:?}");
    assert_eq!(tally.sums(), (4, 1));
}
