//! What must hold for any token, key set or request with tokens. Shared by the fuzz target and by `proxy/tests/corpora.rs`.
//!
//! The first byte of an input says what the rest is. Checked: nothing panics; no token verifies but those that the secret's owner has
//! signed; and a request has no token left at a place from which it was taken away.

use osier_proxy::http::head::RequestHead;
use osier_proxy::jwt::claims::Claims;
use osier_proxy::jwt::keys::Keys;
use osier_proxy::jwt::place::{Place, Places};
use osier_proxy::jwt::token::Parsed;

/// The secret is `secret`; the other keys are those of RFC 8037 and RFC 7517, whose owners sign nothing here.
const KEYS: &str = r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"},
    {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
    {"kty": "EC", "crv": "P-256", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;

/// What was signed with the secret.
const SIGNED: &[u8] =
    b"eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJtZSIsInN1YiI6ImpvZSIsImV4cCI6NDEwMjQ0NDgwMCwiYSI6eyJiIjpbIngiXX19";

/// Checks one input.
pub fn check(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 3 {
        0 => token(rest),
        1 => key_set(rest),
        _ => request(rest),
    }
}

fn token(text: &[u8]) {
    let words = ["scope".into(), "sub".into()];
    let Ok(parsed) = Parsed::read(text, &words) else { return };
    let _ = parsed.token.check_time(0, 60);
    let _ = parsed.token.check_time(u64::MAX, u64::MAX);
    for name in ["iss", "sub", "a"] {
        if let Some(claim) = parsed.token.tested().get(name) {
            let _ = claim.to_string();
        }
    }
    let keys = Keys::parse(KEYS).expect("a key set");
    if keys.verify(&parsed).is_ok() {
        assert_eq!(parsed.signed, SIGNED, "nobody else has the secret");
    }
}

fn key_set(text: &[u8]) {
    let _ = Claims::parse(text);
    let Ok(keys) = std::str::from_utf8(text).map_err(drop).and_then(|text| Keys::parse(text).map_err(drop))
    else {
        return;
    };
    let foreign = [SIGNED, b".AAAA"].concat();
    let parsed = Parsed::read(&foreign, &[]).expect("a token");
    assert!(keys.verify(&parsed).is_err(), "three bytes are no signature");
}

/// A path, and then header lines.
fn request(text: &[u8]) {
    let mut head = RequestHead::new();
    let mut lines = text.split(|byte| *byte == b'\n');
    head.set_path(lines.next().unwrap_or_default());
    for line in lines {
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        if let Ok(name) = std::str::from_utf8(&line[..at]) {
            head.fields.append(name, line.get(at + 1..).unwrap_or_default());
        }
    }
    let places = Places::new(
        &[("authorization", "Bearer "), ("x-token", ""), ("X-Other", "t=")],
        &["access_token", "t"],
        &["session"],
    );
    let found: Vec<Place> = places.find(&head).iter().map(|found| found.place).collect();
    for place in &found {
        places.remove(*place, &mut head);
    }
    let left = places.find(&head);
    assert!(left.iter().all(|found| found.place == Place::Cookie), "{left:?} after {found:?}");
}
