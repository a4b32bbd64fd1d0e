//! Random tokens, places and requirements from a fixed seed: both proxies must believe the same, and say the same of the rest.
//!
//! All requirements are in one bootstrap: each is for requests with its own number. What the backend received is compared too, so
//! that nothing is forwarded that one of them would have taken away. Where Osier is stricter on purpose, the reason stands there.

use std::fmt::Write as _;
use std::time::SystemTime;

use osier_tests::raw::Connection;
use osier_tests::tokens::{Signer, part, set};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::pair::{Pair, bootstrap_with};

/// Requirements, and requests for each.
const RULES: usize = 60;
const REQUESTS: usize = 100;

const ALGORITHMS: [&str; 13] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "HS256", "HS384",
    "HS512", "EdDSA",
];
const ISSUERS: [&str; 3] = ["one", "two", "https://three"];
const HEADERS: [&str; 2] = ["x-a", "x-b"];
/// Headers that tell of claims.
const TOLD: [&str; 4] = ["x-payload", "x-sub", "x-deep", "x-number"];

/// A provider, as far as requests are made for it.
struct Provider {
    issuer: &'static str,
    signers: Vec<usize>,
}

struct World {
    signers: Vec<(Signer, &'static [&'static str])>,
    rules: Vec<Vec<Provider>>,
    now: u64,
}

#[test]
fn random_tokens_are_believed_alike() {
    let mut random = StdRng::seed_from_u64(12);
    let mut world = World {
        signers: vec![
            (Signer::rsa(), &ALGORITHMS[..6]),
            (Signer::curve("P-256"), &["ES256"]),
            (Signer::curve("P-384"), &["ES384"]),
            (Signer::curve("P-521"), &["ES512"]),
            (Signer::secret("a secret"), &["HS256", "HS384", "HS512"]),
            (Signer::ed25519(), &["EdDSA"]),
        ],
        rules: Vec::new(),
        now: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs(),
    };
    let bootstrap = bootstrap(&mut random, &mut world);
    let pair = Pair::start(&bootstrap);
    let [mut envoy, mut osier] = pair.http().map(Connection::open);
    let mut texts = std::collections::BTreeMap::<String, usize>::new();
    let mut stricter = 0;
    for number in 0..RULES {
        for _ in 0..REQUESTS {
            let request = Request::random(&mut random, &world, number);
            let ask = |connection: &mut Connection| {
                connection.send(request.text.as_bytes());
                let answer = connection.receive(request.method).expect("an answer");
                let challenge = answer.header("www-authenticate").map(str::to_owned);
                (answer.status(), challenge, received(&answer.text()))
            };
            let (theirs, ours) = (ask(&mut envoy), ask(&mut osier));
            let doubtful = request.confused || request.several;
            if theirs != ours && doubtful && theirs.0 != 401 && ours.0 == 401 {
                // For Envoy any key that says no algorithm may verify any token, whatever that says of its own. And of several
                // tokens it takes the good one away before it finds the other bad, so that a requirement of less is satisfied.
                stricter += 1;
                continue;
            }
            let rule =
                || bootstrap.lines().filter(|l| l.contains(&format!("r{number:02}"))).collect::<String>();
            assert_eq!(theirs, ours, "request:\n{}\n{}", request.text, rule());
            let text = if ours.0 == 200 { "allowed".to_owned() } else { ours.2.join(" ") };
            *texts.entry(text).or_default() += 1;
        }
    }
    println!("{texts:#?}, stricter: {stricter}");
    let allowed = texts["allowed"];
    assert!(allowed > RULES * REQUESTS / 5 && texts.len() > 20, "{texts:#?}");
    assert!(stricter < RULES * REQUESTS / 20, "{stricter}");
}

/// What the backend says that it received, without what is new each time.
fn received(body: &str) -> Vec<String> {
    let new = ["x-request-id", "x-envoy-expected-rq-timeout-ms", "x-forwarded-proto", "content-length"];
    let mut lines: Vec<String> = body
        .lines()
        .filter(|line| !new.iter().any(|name| line.starts_with(name)))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

fn pick<T: Copy>(random: &mut StdRng, choices: &[T]) -> T {
    choices[random.random_range(0..choices.len())]
}

/// The table's bootstrap with one route, to the backend, behind the filter, and with a policy on claims for some.
fn bootstrap(random: &mut StdRng, world: &mut World) -> String {
    let (mut providers, mut rules, mut policies) = (String::new(), String::new(), String::new());
    for number in 0..RULES {
        let count = pick(random, &[1, 1, 2, 3]);
        let made: Vec<Provider> = (0..count)
            .map(|index| {
                let (provider, yaml) = provider(random, world, index);
                let _ = writeln!(providers, "                r{number:02}_{index}: {yaml}");
                provider
            })
            .collect();
        let names: Vec<String> =
            (0..count).map(|index| format!("{{provider_name: r{number:02}_{index}}}")).collect();
        let optional: Vec<String> = names
            .iter()
            .map(|name| format!("{{requires_any: {{requirements: [{name}, {{allow_missing: {{}}}}]}}}}"))
            .collect();
        let requires = match (&names[..], random.random_range(0..6)) {
            ([name], 0) => name.clone(),
            ([_], _) => optional[0].clone(),
            (_, 0) => format!("{{requires_any: {{requirements: [{}]}}}}", names.join(", ")),
            _ => format!(
                "{{requires_any: {{requirements: [{}, {{requires_all: {{requirements: [{}]}}}}]}}}}",
                names.join(", "),
                optional.join(", ")
            ),
        };
        let matches = format!("headers: [{{name: x-rule, string_match: {{exact: \"{number}\"}}}}]");
        let _ = writeln!(
            rules,
            "              - {{match: {{prefix: /, {matches}}}, requires: {requires}}} # r{number:02}"
        );
        if number % 3 == 0 {
            let claim = claim(random);
            let _ = writeln!(
                policies,
                "                  r{number:02}: {{permissions: [{{header: {{name: x-rule, string_match: {{exact: \"{number}\"}}}}}}], principals: [{claim}]}}"
            );
        }
        world.rules.push(made);
    }
    let hosts = "            virtual_hosts: [{name: any, domains: [\"*\"], routes: [{match: {prefix: \"/\"}, route: {cluster: echo}}]}]\n";
    let filters = format!(
        "          - name: envoy.filters.http.jwt_authn
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
              bypass_cors_preflight: true
              providers:
{providers}              rules:
{rules}          - name: envoy.filters.http.rbac
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: DENY
                policies:
{policies}"
    );
    bootstrap_with(hosts, &filters)
}

fn provider(random: &mut StdRng, world: &World, index: usize) -> (Provider, String) {
    let issuer = ISSUERS[index];
    let mut signers = Vec::new();
    let mut keys = Vec::new();
    for _ in 0..pick(random, &[1, 1, 2, 2, 3]) {
        let number = random.random_range(0..world.signers.len());
        let (signer, algorithms) = &world.signers[number];
        let kid = pick(random, &["", ", \"kid\": \"k1\"", ", \"kid\": \"k2\""]);
        // Envoy takes the signature of any token for one of Ed25519 where the key doesn't say what it is for.
        let algorithm = match random.random_ratio(1, 3) || algorithms[0] == "EdDSA" {
            true => format!(", \"alg\": \"{}\"", pick(random, algorithms)),
            false => String::new(),
        };
        keys.push(signer.jwk(&format!("{kid}{algorithm}")));
        signers.push(number);
    }
    let mut yaml = format!("{{local_jwks: {{inline_string: '{}'}}, payload_in_metadata: payload", set(&keys));
    if random.random_ratio(7, 8) {
        let _ = write!(yaml, ", issuer: \"{issuer}\"");
    }
    let mut add = |text: &str, share: u32| {
        if random.random_ratio(1, share) {
            yaml.push_str(text);
        }
    };
    add(", audiences: [us, \"https://api/\"]", 4);
    add(", forward: true", 3);
    add(", normalize_payload_in_metadata: {space_delimited_claims: [scope]}", 2);
    add(", clock_skew_seconds: 10", 8);
    if index == 0 {
        add(", forward_payload_header: X-Payload", 2);
        add(", pad_forward_payload_header: true", 3);
        add(
            ", claim_to_headers: [{header_name: x-sub, claim_name: sub}, {header_name: X-Deep, claim_name: a.b}, {header_name: x-number, claim_name: num}]",
            2,
        );
    }
    let places = [
        "",
        "",
        ", from_headers: [{name: X-A}]",
        ", from_headers: [{name: x-b, value_prefix: \"t=\"}, {name: x-a}]",
        ", from_params: [t]",
        ", from_cookies: [c], from_headers: [{name: authorization, value_prefix: \"Bearer \"}]",
    ];
    yaml.push_str(pick(random, &places));
    yaml.push('}');
    (Provider { issuer, signers }, yaml)
}

/// A condition on a claim.
fn claim(random: &mut StdRng) -> String {
    let path = pick(
        random,
        &["{key: sub}", "{key: iss}", "{key: aud}", "{key: scope}", "{key: a}, {key: b}", "{key: none}"],
    );
    let text = pick(
        random,
        &[
            "{string_match: {exact: joe}}",
            "{string_match: {prefix: o}}",
            "{string_match: {safe_regex: {regex: \".+\"}}}",
            "{string_match: {suffix: s}}",
            "{string_match: {exact: write}}",
        ],
    );
    let value = match random.random_ratio(1, 2) {
        true => format!("{{or_match: {{value_matchers: [{{list_match: {{one_of: {text}}}}}, {text}]}}}}"),
        false => text.to_owned(),
    };
    let invert = if random.random_ratio(1, 4) { ", invert: true" } else { "" };
    format!(
        "{{metadata: {{filter: envoy.filters.http.jwt_authn, path: [{{key: payload}}, {path}], value: {value}{invert}}}}}"
    )
}

struct Request {
    method: &'static str,
    text: String,
    /// A token says that it was signed in another way than it was.
    confused: bool,
    /// It has more than one.
    several: bool,
}

impl Request {
    fn random(random: &mut StdRng, world: &World, number: usize) -> Self {
        let method = pick(random, &["GET", "GET", "GET", "POST", "HEAD", "OPTIONS"]);
        let (mut query, mut lines, mut cookies) = (Vec::new(), String::new(), Vec::new());
        let mut confused = false;
        let count = pick(random, &[0, 1, 1, 1, 1, 1, 2]);
        for _ in 0..count {
            let (token, odd) = token(random, world, number);
            confused |= odd;
            match random.random_range(0..10) {
                // Envoy joins two lines of `authorization` to one, which is one odd token.
                0..=4 if !lines.contains("Authorization") => {
                    let prefix = pick(
                        random,
                        &["Bearer ", "Bearer ", "Bearer ", "Bearer ", "bearer ", "Bearer  ", ""],
                    );
                    let _ = write!(lines, "Authorization: {prefix}{token}\r\n");
                }
                // Of equal parameters Envoy looks at the first.
                5 if query.is_empty() => {
                    query.push(format!("{}={token}", pick(random, &["t", "access_token", "access%5Ftoken"])));
                }
                6 => cookies.push(format!("c={token}")),
                _ => {
                    let prefix = pick(random, &["", "", "t="]);
                    let _ = write!(lines, "{}: {prefix}{token}\r\n", pick(random, &HEADERS));
                }
            }
        }
        if random.random_ratio(1, 3) {
            query.push("x=1".into());
        }
        cookies.truncate(1);
        for cookie in cookies {
            let _ = write!(lines, "Cookie: x=y; {cookie}; z=\"1\"\r\n");
        }
        if random.random_ratio(1, 4) {
            let _ = write!(lines, "{}: forged\r\n", pick(random, &TOLD));
        }
        for (name, share) in [("Origin: https://a", 3), ("Access-Control-Request-Method: PUT", 3)] {
            if random.random_ratio(1, share) {
                let _ = write!(lines, "{name}\r\n");
            }
        }
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let path = pick(random, &["/", "/a/b", "/x/../y"]);
        let text =
            format!("{method} {path}{query} HTTP/1.1\r\nHost: any.test\r\nx-rule: {number}\r\n{lines}\r\n");
        Self { method, text, confused, several: count > 1 }
    }
}

/// A token of one of the rule's providers, mostly a good one; true: it says that it was signed in another way than it was.
fn token(random: &mut StdRng, world: &World, number: usize) -> (String, bool) {
    let providers = &world.rules[number];
    let provider = &providers[random.random_range(0..providers.len())];
    let mut odd = |share: u32| random.random_ratio(1, share);
    let (other_issuer, other_signer, other_algorithm, broken) = (odd(12), odd(12), odd(12), odd(10));
    let issuer = if other_issuer { pick(random, &["four", "", "one"]) } else { provider.issuer };
    let signer = match provider.signers.is_empty() || other_signer {
        true => random.random_range(0..world.signers.len()),
        false => pick(random, &provider.signers),
    };
    let (signer, algorithms) = &world.signers[signer];
    let algorithm = if other_algorithm { pick(random, &ALGORITHMS) } else { pick(random, algorithms) };
    let kid = pick(random, &["", "", "", ", \"kid\": \"k1\"", ", \"kid\": \"k2\"", ", \"kid\": \"\""]);
    let mut claims = vec![format!("\"iss\": \"{issuer}\"")];
    let mut add = |random: &mut StdRng, share: u32, choices: &[String]| {
        if random.random_ratio(1, share) {
            claims.push(choices[random.random_range(0..choices.len())].clone());
        }
    };
    let at = |name: &str, seconds: i64| format!("\"{name}\": {}", world.now as i64 + seconds);
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<String>>();
    add(random, 2, &texts(&["\"sub\": \"joe\"", "\"sub\": \"\"", "\"sub\": \"one\"", "\"sub\": \"Ünï ☃\""]));
    add(
        random,
        2,
        &texts(&["\"aud\": \"us\"", "\"aud\": [\"x\", \"http://api\"]", "\"aud\": [\"x\"]", "\"aud\": []"]),
    );
    add(
        random,
        2,
        &[at("exp", 3600), at("exp", 3600), at("exp", -30), at("exp", -3600), "\"exp\": 9e18".into()],
    );
    add(random, 4, &[at("nbf", -10), at("nbf", 30), at("nbf", 3600), "\"nbf\": 1.5".into()]);
    add(random, 3, &texts(&["\"scope\": \"read  write\"", "\"scope\": [\"write\", 1]", "\"scope\": \"\""]));
    add(
        random,
        3,
        &texts(&[
            "\"a\": {\"b\": \"deep\"}",
            "\"a\": {\"b\": true}",
            "\"a\": \"b\"",
            "\"a\": {\"b\": [\"joe\"]}",
            "\"a\": {\"b\": {\"x\": [\"\u{ff}~?>\u{fe}\", 1, 1.5, -3, null, true, {}]}}",
        ]),
    );
    add(random, 3, &texts(&["\"num\": 7", "\"num\": -1.25", "\"num\": 1e30", "\"num\": 0", "\"num\": null"]));
    add(
        random,
        12,
        &texts(&[
            "\"iat\": \"1\"",
            "\"iat\": -1",
            "\"iat\": 1e20",
            "\"jti\": 1",
            "\"jti\": \"x\"",
            "\"iat\": 5",
            "\"x\": \"\\u0000\"",
        ]),
    );
    let payload = match random.random_range(0..30) {
        0 => "{\"iss\": 1}".to_owned(),
        1 => "{\"iss\": \"one\", \"sub\": {}}".to_owned(),
        2 => "{\"iss\": \"one\", \"aud\": {}}".to_owned(),
        3 => "{\"iss\": \"one\", \"exp\": \"x\"}".to_owned(),
        4 => pick(random, &["[]", "x", "", "{\"iss\"}", "{\"exp\": -1}", "{\"nbf\": []}", "1"]).to_owned(),
        _ => format!("{{{}}}", claims.join(", ")),
    };
    let good = signer.token(algorithm, kid, &payload);
    let confused = !algorithms.contains(&algorithm);
    if !broken {
        return (good, confused);
    }
    let (head, signature) = good.rsplit_once('.').expect("three parts");
    let header = |text: &str| format!("{}.{}", part(text), &good[good.find('.').expect("three parts") + 1..]);
    let bad = match random.random_range(0..13) {
        0 => head.to_owned(),
        1 => format!("{good}.x"),
        2 => format!("{head}.{}", &signature[..signature.len() / 2]),
        3 => format!("{head}.*{signature}"),
        4 => format!("{head}."),
        5 => header("{\"alg\": \"none\"}"),
        6 => header("{\"alg\": 5}"),
        7 => header("{}"),
        8 => header("x"),
        9 => header(&format!("{{\"alg\": \"{algorithm}\", \"kid\": 7}}")),
        10 => format!("{head}.{}", part("forged")),
        11 => good.to_lowercase(),
        _ => format!("a{good}"),
    };
    (bad, confused)
}

/// What pilot sends to Envoy where a rule has no keys, and behind those that it has.
const NOBODYS_KEY: &str = r#"{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"none","x":"AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#;

#[test]
fn nobodys_key_verifies_nothing_and_spoils_nothing() {
    let signer = Signer::curve("P-256");
    let junk = r#"{"kty":"EC","crv":"P-256","x":"AA","y":"BB"}"#.to_owned();
    let nobody = NOBODYS_KEY.to_owned();
    let sets = [
        set(std::slice::from_ref(&nobody)),
        set(&[signer.jwk(""), junk.clone(), nobody.clone()]),
        set(&[junk, nobody]),
    ];
    let mut providers = String::new();
    let mut rules = String::new();
    for (number, keys) in sets.iter().enumerate() {
        let _ = writeln!(providers, "                p{number}: {{local_jwks: {{inline_string: '{keys}'}}}}");
        let _ = writeln!(
            rules,
            "              - {{match: {{prefix: /{number}}}, requires: {{provider_name: p{number}}}}}"
        );
    }
    let hosts = "            virtual_hosts: [{name: any, domains: [\"*\"], routes: [{match: {prefix: \"/\"}, direct_response: {status: 200}}]}]\n";
    let filters = format!(
        "          - name: envoy.filters.http.jwt_authn
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
              providers:
{providers}              rules:
{rules}"
    );
    let pair = Pair::start(&bootstrap_with(hosts, &filters));
    let good = signer.token("ES256", "", "{}");
    // Signatures that a verifier which didn't look at its key could take: all zeros, and the neutral element.
    let forged = [[0; 64], {
        let mut one = [0; 64];
        one[0] = 1;
        one
    }]
    .map(|signature| {
        format!("{}.{}.{}", part("{\"alg\": \"EdDSA\", \"kid\": \"none\"}"), part("{}"), part(signature))
    });
    let other = Signer::ed25519().token("EdDSA", ", \"kid\": \"none\"", "{}");
    for address in pair.http() {
        let mut connection = Connection::open(address);
        for (path, token, status) in [(0, &good, 401), (1, &good, 200), (2, &good, 401)].into_iter().chain(
            (0..3).flat_map(|path| [(path, &forged[0], 401), (path, &forged[1], 401), (path, &other, 401)]),
        ) {
            let request =
                format!("GET /{path} HTTP/1.1\r\nHost: any.test\r\nauthorization: Bearer {token}\r\n\r\n");
            connection.send(request.as_bytes());
            let answer = connection.receive("GET").expect("an answer");
            assert_eq!(answer.status(), status, "{address} {path} {token}: {}", answer.text());
        }
    }
}
