//! What is refused, with which words; which keys verify what; which tokens satisfy what.

use std::sync::Arc;

use super::cache::{Scope, TokenCache};
use super::keys::{Keys, NoKeySet};
use super::place::Places;
use super::provider::{Audiences, Provider};
use super::requirement::{Check, Requirement};
use super::test_support::{Signer, part, set};
use super::token::Parsed;
use super::{Accepted, Authentication, ClaimCondition, ClaimValue, Refusal, Rule, Tokens};
use crate::config::route::{PathMatch, Text, ValueMatch};
use crate::http::head::{Method, RequestHead};
use crate::http::test_support::path_match;

const NOW: u64 = 1_000_000;

fn text(value: &str) -> Text {
    Text { value: value.as_bytes().into(), ignore_case: false }
}

fn provider(keys: &str) -> Provider {
    let keys = Keys::parse(keys).expect("a key set");
    Provider {
        issuer: "me".into(),
        audiences: Audiences::default(),
        scope: Scope::new(keys.fingerprint(), &[]),
        keys,
        skew: 60,
        places: Places::new(&[], &[], &[]),
        forward: false,
        payload_header: None,
        pad_payload: false,
        claim_headers: Box::default(),
        metadata: Some("payload".into()),
        words: Box::default(),
    }
}

fn filter(providers: Vec<Provider>, requirement: Requirement) -> Authentication {
    let told = providers.iter().flat_map(|provider| provider.told_headers().cloned()).collect();
    Authentication {
        checks: (0..providers.len()).map(|provider| Check { provider, audiences: None }).collect(),
        providers: providers.into(),
        rules: [Rule { matches: path_match(PathMatch::Prefix(text("/"))), requirement: Some(requirement) }]
            .into(),
        passes_preflight: true,
        told_headers: told,
        tally: Arc::default(),
    }
}

/// Istio's requirement for several rules.
fn istios(count: usize) -> Requirement {
    let optional = |check| Requirement::AnyOfOrMissing([Requirement::Valid(check)].into());
    if count == 1 {
        return optional(0);
    }
    let all = Requirement::AllOf((0..count).map(optional).collect());
    Requirement::AnyOf((0..count).map(Requirement::Valid).chain([all]).collect())
}

fn request(lines: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::new();
    head.set_path(b"/");
    for (name, value) in lines {
        head.fields.append(*name, value.as_bytes());
    }
    head
}

fn ask<'f>(filter: &'f Authentication, head: &mut RequestHead) -> Result<Tokens<'f>, Refusal> {
    filter.check(head, &TokenCache::default(), NOW, 0)
}

/// Asks twice with one cache, which must change nothing.
fn with_bearer(filter: &Authentication, token: &str) -> Result<(), Refusal> {
    let cache = TokenCache::default();
    let bearer = format!("Bearer {token}");
    let once = || {
        let mut head = request(&[("authorization", &bearer)]);
        filter.check(&mut head, &cache, NOW, 0).map(drop)
    };
    let first = once();
    assert_eq!(once(), first);
    first
}

#[test]
fn what_is_wrong_is_said_in_envoys_words() {
    let signer = Signer::secret("secret");
    let filter = filter(vec![provider(&set(&[signer.jwk("")]))], Requirement::Valid(0));
    let header = part("{\"alg\": \"HS256\"}");
    let of = |payload: &str| signer.token("HS256", "", payload);
    let mine = |claims: &str| of(&format!("{{\"iss\": \"me\"{claims}}}"));
    let form = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";
    for (token, wanted) in [
        ("a.b".to_owned(), form),
        ("a.b.c.d".to_owned(), form),
        (format!("{}.", mine("")), form),
        (format!("{header}..{header}"), form),
        ("A*.b.c".to_owned(), "Jwt header is an invalid Base64url encoded"),
        (format!("{}.b.c", part("x")), "Jwt header is an invalid JSON"),
        (format!("{}.b.c", part("[]")), "Jwt header is an invalid JSON"),
        (format!("{}.b.c", part("{}")), "Jwt header [alg] field is required and must be a string"),
        (format!("{}.b.c", part("{\"alg\": 1}")), "Jwt header [alg] field is required and must be a string"),
        (format!("{}.b.c", part("{\"alg\": \"none\"}")), "Jwt header [alg] is not supported"),
        (format!("{}.b.c", part("{\"alg\": \"hs256\"}")), "Jwt header [alg] is not supported"),
        (
            format!("{}.b.c", part("{\"alg\": \"HS256\", \"kid\": 1}")),
            "Jwt header [kid] field is not a string",
        ),
        (format!("{header}.*.c"), "Jwt payload is an invalid Base64url encoded"),
        (of("x"), "Jwt payload is an invalid JSON"),
        (of("{\"iss\": \"me\", \"iss\": \"me\"}"), "Jwt payload is an invalid JSON"),
        (of("{\"iss\": 1}"), "Jwt payload [iss] field is not a string"),
        (of("{\"iss\": null}"), "Jwt payload [iss] field is not a string"),
        (mine(", \"sub\": []"), "Jwt payload [sub] field is not a string"),
        (mine(", \"iat\": \"1\""), "Jwt payload [iat] field is not an integer"),
        (mine(", \"iat\": -1"), "Jwt payload [iat] field is not a positive 64 bit integer"),
        (mine(", \"nbf\": true"), "Jwt payload [nbf] field is not an integer"),
        (mine(", \"nbf\": 1e20"), "Jwt payload [nbf] field is not a positive 64 bit integer"),
        (mine(", \"exp\": {}"), "Jwt payload [exp] field is not an integer"),
        (mine(", \"exp\": -0.5"), "Jwt payload [exp] field is not a positive 64 bit integer"),
        (mine(", \"jti\": 1"), "Jwt payload [jti] field is not a string"),
        (mine(", \"aud\": 1"), "Jwt payload [aud] field is not a string or string list"),
        (mine(", \"aud\": [\"a\", 1]"), "Jwt payload [aud] field is not a string or string list"),
        (format!("{header}.{}.*", part("{}")), "Jwt signature is an invalid Base64url encoded"),
        (of("{}"), "Jwt issuer is not configured"),
        (of("{\"iss\": \"me \"}"), "Jwt issuer is not configured"),
        (mine(", \"nbf\": 1000061"), "Jwt not yet valid"),
        (mine(", \"exp\": 999939"), "Jwt is expired"),
        (mine(", \"exp\": 0"), "Jwt is expired"),
        (signer.token("RS256", "", "{\"iss\": \"me\"}"), "Jwt verification fails"),
        (Signer::secret("other").token("HS256", "", "{\"iss\": \"me\"}"), "Jwt verification fails"),
        (format!("{}A", mine("")), "Jwt verification fails"),
    ] {
        let refusal = with_bearer(&filter, &token).expect_err(&token);
        assert_eq!((refusal.to_string().as_str(), refusal.status()), (wanted, 401), "{token}");
    }
    for claims in [
        "",
        ", \"nbf\": 1000060, \"exp\": 999940.9, \"iat\": 1e12, \"jti\": \"\", \"aud\": \"x\"",
        ", \"aud\": []",
    ] {
        assert_eq!(with_bearer(&filter, &mine(claims)), Ok(()), "{claims}");
    }
    let padded = format!("{header}.{}==", part("{\"iss\": \"me\"   }"));
    let padded = format!("{padded}.{}", part(signer.sign("HS256", padded.as_bytes())));
    assert_eq!(with_bearer(&filter, &padded), Ok(()), "{padded}");
    assert_eq!(ask(&filter, &mut request(&[])).map(drop), Err(Refusal::Missing));
}

#[test]
fn a_token_is_for_its_audience() {
    let signer = Signer::secret("secret");
    let mut strict = provider(&set(&[signer.jwk("")]));
    strict.audiences = Audiences::new(["https://api/", "b"]);
    let filter = filter(vec![strict], Requirement::Valid(0));
    for (audience, allowed) in [
        ("\"api\"", true),
        ("\"http://api\"", true),
        ("\"api/\"", true),
        ("[\"x\", \"b\"]", true),
        ("\"api//\"", false),
        ("\"API\"", false),
        ("\"x\"", false),
        ("[]", false),
    ] {
        let token = signer.token("HS256", "", &format!("{{\"iss\": \"me\", \"aud\": {audience}}}"));
        let wanted = if allowed { Ok(()) } else { Err(Refusal::Audience) };
        assert_eq!(with_bearer(&filter, &token), wanted, "{audience}");
    }
    assert_eq!(with_bearer(&filter, &signer.token("HS256", "", "{\"iss\": \"me\"}")), Err(Refusal::Audience));
    assert_eq!(
        (Refusal::Audience.status(), Refusal::Audience.to_string().as_str()),
        (403, "Audiences in Jwt are not allowed")
    );
}

#[test]
fn every_algorithm_verifies_with_keys_of_its_kind_only() {
    let signers = [
        (Signer::rsa(), &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"][..]),
        (Signer::curve("P-256"), &["ES256"]),
        (Signer::curve("P-384"), &["ES384"]),
        (Signer::curve("P-521"), &["ES512"]),
        (Signer::ed25519(), &["EdDSA"]),
        (Signer::secret("secret"), &["HS256", "HS384", "HS512"]),
    ];
    let all: Vec<&str> = signers.iter().flat_map(|(_, algorithms)| algorithms.iter().copied()).collect();
    for (signer, algorithms) in &signers {
        let keys = Keys::parse(&set(&[signer.jwk("")])).unwrap();
        for algorithm in &all {
            let token = signer.token(algorithm, "", "{}");
            let verified = keys.verify(&Parsed::read(token.as_bytes(), &[]).unwrap());
            assert_eq!(verified.is_ok(), algorithms.contains(algorithm), "{algorithm} {verified:?}");
            let mut forged = token.clone().into_bytes();
            let at = forged.iter().position(|byte| *byte == b'.').unwrap() + 2;
            forged[at] ^= 1;
            if let Ok(forged) = Parsed::read(&forged, &[]) {
                assert!(keys.verify(&forged).is_err(), "{algorithm}");
            }
        }
        // A secret that is a public key's text is how a verifier is confused.
        let confused = Signer::Secret(signer.jwk("").into_bytes()).token("HS256", "", "{}");
        assert!(keys.verify(&Parsed::read(confused.as_bytes(), &[]).unwrap()).is_err());
    }
}

#[test]
fn a_key_is_chosen_by_kid_and_alg() {
    let (one, two) = (Signer::secret("one"), Signer::secret("two"));
    let keys = |first: &str, second: &str| Keys::parse(&set(&[one.jwk(first), two.jwk(second)])).unwrap();
    let both = keys(", \"kid\": \"1\"", ", \"kid\": \"2\", \"alg\": \"HS512\"");
    for (signer, algorithm, kid, wanted) in [
        (&one, "HS256", "1", Ok(())),
        (&one, "HS256", "2", Err(Refusal::NoMatchingKey)),
        (&two, "HS512", "2", Ok(())),
        (&two, "HS512", "1", Err(Refusal::Signature)),
        (&two, "HS256", "2", Err(Refusal::NoMatchingKey)),
        (&one, "HS256", "3", Err(Refusal::NoMatchingKey)),
        (&two, "HS512", "", Ok(())),
        (&two, "HS256", "", Err(Refusal::Signature)),
    ] {
        let token = signer.token(algorithm, &format!(", \"kid\": \"{kid}\""), "{}");
        let parsed = Parsed::read(token.as_bytes(), &[]).unwrap();
        assert_eq!(both.verify(&parsed), wanted, "{algorithm} {kid}");
    }
    let without_kid = one.token("HS256", "", "{}");
    let any = keys("", "");
    let named = one.token("HS256", ", \"kid\": \"x\"", "{}");
    for token in [&without_kid, &named] {
        assert_eq!(any.verify(&Parsed::read(token.as_bytes(), &[]).unwrap()), Ok(()));
    }
}

#[test]
fn keys_that_cannot_be_used_are_left_out() {
    let rsa = Signer::rsa().jwk("");
    let curve = Signer::curve("P-256").jwk("");
    let short = part([0xff; 128]);
    for jwk in [
        "{}".to_owned(),
        "1".to_owned(),
        rsa.replace("RSA", "rsa"),
        rsa.replace("\"e\": \"AQAB\"", "\"e\": \"Ag\""),
        rsa.replace("\"n\"", "\"m\""),
        format!("{{\"kty\": \"RSA\", \"n\": \"{short}\", \"e\": \"AQAB\"}}"),
        Signer::rsa().jwk(", \"alg\": \"ES256\""),
        Signer::rsa().jwk(", \"alg\": \"RSA-OAEP\""),
        curve.replace("P-256", "P-384"),
        curve.replace("P-256", "secp256k1"),
        curve.replace("\"x\": \"", "\"x\": \"AA*"),
        curve.replace("\"x\": \"", "\"z\": \"").replace("\"y\"", "\"x\""),
        Signer::curve("P-256").jwk(", \"alg\": \"ES384\""),
        Signer::ed25519().jwk("").replace("Ed25519", "X25519"),
        "{\"kty\": \"OKP\", \"crv\": \"Ed25519\", \"x\": \"AAAA\"}".to_owned(),
        "{\"kty\": \"oct\", \"k\": \"\"}".to_owned(),
        Signer::secret("x").jwk(", \"alg\": \"RS256\""),
    ] {
        let keys = Keys::parse(&set(std::slice::from_ref(&jwk))).unwrap();
        let token = Signer::secret("x").token("HS256", "", "{}");
        assert_eq!(keys.verify(&Parsed::read(token.as_bytes(), &[]).unwrap()), Err(Refusal::NoKeys), "{jwk}");
    }
    for (text, wanted) in [
        ("", NoKeySet::Json),
        ("[]", NoKeySet::Json),
        ("<html>", NoKeySet::Json),
        ("{}", NoKeySet::Keys),
        ("{\"keys\": {}}", NoKeySet::Keys),
        ("{\"keys\": [], \"keys\": []}", NoKeySet::Json),
    ] {
        assert_eq!(Keys::parse(text).err(), Some(wanted), "{text}");
    }
}

#[test]
fn signatures_of_ed25519_have_one_length() {
    let signer = Signer::ed25519();
    let keys = Keys::parse(&set(&[signer.jwk("")])).unwrap();
    let token = format!("{}.{}.{}", part("{\"alg\": \"EdDSA\"}"), part("{}"), part([1; 63]));
    assert_eq!(keys.verify(&Parsed::read(token.as_bytes(), &[]).unwrap()), Err(Refusal::SignatureLength));
}

/// Two issuers at two headers of their own, or both at `authorization`.
fn two(shared: bool) -> (Signer, Signer, Authentication) {
    let (one, two) = (Signer::secret("one"), Signer::secret("two"));
    let places = |name: &str| match shared {
        true => Places::new(&[], &[], &[]),
        false => Places::new(&[(name, "")], &[], &[]),
    };
    let first = Provider { issuer: "1".into(), places: places("a"), ..provider(&set(&[one.jwk("")])) };
    let second = Provider { issuer: "2".into(), places: places("b"), ..provider(&set(&[two.jwk("")])) };
    let filter = filter(vec![first, second], istios(2));
    (one, two, filter)
}

#[test]
fn istios_requirement_of_one_rule() {
    let signer = Signer::secret("secret");
    let mut places = provider(&set(&[signer.jwk("")]));
    places.places = Places::new(&[("a", ""), ("b", "")], &[], &[]);
    let filter = filter(vec![places], istios(1));
    let good = signer.token("HS256", "", "{\"iss\": \"me\"}");
    let bad = signer.token("HS256", "", "{\"iss\": \"you\"}");
    for (lines, wanted) in [
        (&[][..], Ok(0)),
        (&[("a", &*good)], Ok(1)),
        (&[("a", &*bad)], Err(Refusal::Issuer)),
        (&[("a", &*good), ("b", &*good)], Ok(2)),
        // An application could take either.
        (&[("a", &*good), ("b", &*bad)], Err(Refusal::Issuer)),
        (&[("a", &*bad), ("b", &*good)], Err(Refusal::Issuer)),
        (&[("a", &*good), ("a", "x")], Err(Refusal::Form)),
        (&[("a", "x"), ("b", &*bad)], Err(Refusal::Issuer)),
    ] {
        let mut head = request(lines);
        assert_eq!(ask(&filter, &mut head).map(|tokens| tokens.len()), wanted, "{lines:?}");
    }
}

#[test]
fn istios_requirement_of_two_rules() {
    let accepted = |result: Result<Tokens<'_>, Refusal>| {
        result.map(|tokens| tokens.iter().map(|t| t.token.issuer.to_string()).collect::<Vec<_>>().join(","))
    };
    let (one, other, apart) = two(false);
    let first = one.token("HS256", "", "{\"iss\": \"1\"}");
    let second = other.token("HS256", "", "{\"iss\": \"2\"}");
    for (lines, wanted) in [
        (&[][..], Ok("")),
        (&[("a", &*first)], Ok("1")),
        (&[("b", &*second)], Ok("2")),
        (&[("a", &*first), ("b", &*second)], Ok("1")),
        (&[("a", &*first), ("b", "x")], Ok("1")),
        (&[("a", "x"), ("b", &*second)], Ok("2")),
        (&[("a", "x")], Err(Refusal::Form)),
        (&[("b", &*first)], Err(Refusal::Issuer)),
        // What says more than whose a token is not.
        (&[("a", "x"), ("b", &*first)], Err(Refusal::Form)),
        (&[("a", &*second), ("b", "x")], Err(Refusal::Form)),
    ] {
        let mut head = request(lines);
        assert_eq!(accepted(ask(&apart, &mut head)), wanted.map(str::to_owned), "{lines:?}");
    }
    let (one, other, shared) = two(true);
    let bearer = |signer: &Signer, issuer: &str| {
        format!("Bearer {}", signer.token("HS256", "", &format!("{{\"iss\": \"{issuer}\"}}")))
    };
    for (value, wanted) in [
        (bearer(&one, "1"), Ok("1")),
        (bearer(&other, "2"), Ok("2")),
        (bearer(&one, "3"), Err(Refusal::Issuer)),
        // Whose keys they are is who the issuer must be.
        (bearer(&other, "1"), Err(Refusal::Signature)),
    ] {
        let mut head = request(&[("authorization", &value)]);
        assert_eq!(accepted(ask(&shared, &mut head)), wanted.map(str::to_owned), "{value}");
    }
}

#[test]
fn without_keys_nobody_is_believed() {
    let signer = Signer::secret("secret");
    let filter = filter(vec![provider("{\"keys\": []}")], istios(1));
    assert_eq!(with_bearer(&filter, &signer.token("HS256", "", "{\"iss\": \"me\"}")), Err(Refusal::NoKeys));
    assert!(ask(&filter, &mut request(&[])).is_ok());
}

#[test]
fn the_upstream_is_told_and_clients_tell_nothing() {
    let signer = Signer::secret("secret");
    let telling = || Provider {
        payload_header: Some("x-payload".into()),
        claim_headers: [
            ("x-sub".into(), ["sub".into()].into()),
            ("x-deep".into(), ["a".into(), "b".into()].into()),
            ("x-list".into(), ["list".into()].into()),
        ]
        .into(),
        ..provider(&set(&[signer.jwk("")]))
    };
    let payload = "{\"iss\": \"me\", \"sub\": \"joe\", \"a\": {\"b\": true}, \"list\": [1]}";
    let bearer = format!("Bearer {}", signer.token("HS256", "", payload));
    let forged =
        [("X-Payload", "forged"), ("x-sub", "admin"), ("x-sub", "root"), ("X-DEEP", "1"), ("x-list", "1")];
    let value = |head: &RequestHead, name: &str| {
        let values: Vec<_> = head.fields.get_all(name).map(String::from_utf8_lossy).collect();
        values.join("|")
    };
    let filter = filter(vec![telling()], istios(1));
    let mut head = request(&forged);
    assert!(ask(&filter, &mut head).unwrap().is_empty());
    assert!(head.fields.is_empty(), "{head:?}");
    let mut head = request(&forged);
    head.fields.append("authorization", bearer.as_bytes());
    assert_eq!(ask(&filter, &mut head).unwrap().len(), 1);
    let names: Vec<_> = head.fields.iter().map(|field| String::from_utf8_lossy(field.name)).collect();
    assert_eq!(names, ["x-payload", "x-sub", "x-deep", "x-list"]);
    assert_eq!(value(&head, "x-payload"), part(payload));
    assert_eq!((value(&head, "x-sub"), value(&head, "x-deep")), ("joe".into(), "true".into()));

    let staying = Provider { forward: true, pad_payload: true, ..telling() };
    let filter = super::tests::filter(vec![staying], istios(1));
    let mut head = request(&[("authorization", &bearer)]);
    assert_eq!(ask(&filter, &mut head).unwrap().len(), 1);
    assert_eq!(value(&head, "authorization"), bearer);
    assert_eq!(value(&head, "x-payload").len() % 4, 0);
    assert!(value(&head, "x-payload").starts_with(&part(payload)));

    // A browser's question has no token, and is no way to say what only we may say.
    let mut head = request(&forged);
    head.set_method(b"OPTIONS");
    head.fields.append("origin", b"https://a");
    head.fields.append("access-control-request-method", b"PUT");
    head.fields.append("authorization", b"Bearer x");
    assert_eq!(head.method(), Method::Options);
    assert!(ask(&filter, &mut head).unwrap().is_empty());
    assert_eq!(value(&head, "x-sub"), "");
    head.set_method(b"GET");
    assert_eq!(ask(&filter, &mut head).map(drop), Err(Refusal::Form));
}

#[test]
fn a_kept_token_expires_and_is_nothing_with_other_keys() {
    let (signer, other) = (Signer::secret("secret"), Signer::secret("other"));
    let keys = |signer: &Signer| set(&[signer.jwk("")]);
    let cache = TokenCache::default();
    let token = signer.token("HS256", "", "{\"iss\": \"me\", \"exp\": 1000000}");
    let check = |provider: &Provider, now: u64| provider.check(token.as_bytes(), None, &cache, now).map(drop);
    let before = provider(&keys(&signer));
    assert_eq!(check(&before, NOW), Ok(()));
    assert_eq!(check(&before, NOW + 60), Ok(()));
    assert_eq!(check(&before, NOW + 61), Err(Refusal::Expired));
    // The same keys in a newer configuration: found again.
    assert!(cache.get(&provider(&keys(&signer)).scope.id(token.as_bytes())).is_some());
    let rotated = provider(&keys(&other));
    assert_eq!(check(&rotated, NOW), Err(Refusal::Signature));
    assert_eq!(check(&provider("{\"keys\": []}"), NOW), Err(Refusal::NoKeys));
    // What else a provider asks is asked of kept tokens, too.
    assert_eq!(
        check(&Provider { issuer: "you".into(), ..provider(&keys(&signer)) }, NOW),
        Err(Refusal::Issuer)
    );
    let strict = Provider { audiences: Audiences::new(["a"]), ..provider(&keys(&signer)) };
    assert_eq!(check(&strict, NOW), Err(Refusal::Audience));
    assert_eq!(check(&before, NOW), Ok(()));
}

#[test]
fn conditions_on_claims() {
    let signer = Signer::secret("secret");
    let mut wordy = provider(&set(&[signer.jwk("")]));
    wordy.words = ["scope".into()].into();
    wordy.scope = Scope::new(wordy.keys.fingerprint(), &wordy.words);
    let payload = "{\"iss\": \"me\", \"sub\": \"joe\", \"n\": 7, \"scope\": \"read write\", \"a\": {\"b\": [\"x\", 7]}}";
    let token = signer.token("HS256", "", payload);
    let token = wordy.check(token.as_bytes(), None, &TokenCache::default(), NOW).unwrap();
    let held = [Accepted { provider: &wordy, token }];
    let exact = |value: &str| ClaimValue::Text(ValueMatch::Exact(text(value)));
    let any =
        |value: &str| ClaimValue::AnyOf([ClaimValue::ListWith(Box::new(exact(value))), exact(value)].into());
    for (path, value, wanted) in [
        (&["sub"][..], exact("joe"), true),
        (&["sub"], exact("jo"), false),
        (&["sub"], any("joe"), true),
        (&["n"], any("7"), false),
        (&["scope"], exact("read write"), false),
        (&["scope"], any("write"), true),
        (&["a", "b"], any("x"), true),
        (&["a", "b"], any("7"), false),
        (&["a"], any("x"), false),
        (&["none"], any("x"), false),
    ] {
        let path: Box<[Box<str>]> = path.iter().map(|name| (*name).into()).collect();
        let shown = format!("{path:?} {value:?}");
        let mut condition = ClaimCondition { key: "payload".into(), path, value, invert: false };
        assert_eq!(condition.holds(&held), wanted, "{shown}");
        assert!(!condition.holds(&[]), "{shown}");
        condition.invert = true;
        assert_eq!(condition.holds(&held), !wanted, "{shown}");
        assert!(condition.holds(&[]), "{shown}");
        condition.key = "other".into();
        assert!(condition.holds(&held), "{shown}");
    }
}
