//! Tokens whose keys are fetched: from an issuer that goes away and comes back with others, and from places that answer nonsense or
//! lead where nobody may go.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use osier_tests::backend::Backend;
use osier_tests::mesh::{Pilot, Sidecar, service};
use osier_tests::raw::Response;
use osier_tests::tokens::{Signer, set};
use osier_tests::{process, wait};
use parking_lot::Mutex;

/// A server of one document; its thread ends with the process.
struct Document {
    address: SocketAddr,
    /// The whole answer; `None`: the connection is cut.
    answer: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicUsize>,
}

impl Document {
    fn start(answer: String) -> Self {
        Self::start_at("127.0.0.1", answer)
    }

    fn start_at(ip: &str, answer: String) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("an address");
        let address = listener.local_addr().expect("a bound socket has an address");
        let document = Self { address, answer: Arc::new(Mutex::new(Some(answer))), asked: Arc::default() };
        let (answer, asked) = (document.answer.clone(), document.asked.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let Some(answer) = answer.lock().clone() else { continue };
                let mut request = [0; 4096];
                if stream.read(&mut request).is_ok() {
                    let _ = stream.write_all(answer.as_bytes());
                    asked.fetch_add(1, Relaxed);
                }
            }
        });
        document
    }

    fn uri(&self) -> String {
        format!("http://{}/keys", self.address)
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}")
}

fn keys(signer: &Signer, kid: &str) -> String {
    ok(&set(&[signer.jwk(&format!(", \"kid\": \"{kid}\""))]))
}

fn token(signer: &Signer, issuer: &str, kid: &str) -> String {
    let token = signer.token(
        "ES256",
        &format!(", \"kid\": \"{kid}\""),
        &format!("{{\"iss\": \"{issuer}\", \"sub\": \"joe\"}}"),
    );
    format!("authorization: Bearer {token}\r\n")
}

/// A service `web` behind a sidecar that verifies tokens, and a client.
struct Guarded {
    client: Sidecar,
    _server: Sidecar,
    pilot: Pilot,
    port: u16,
}

impl Guarded {
    fn start(rules: &str, options: &[&str]) -> Self {
        let port = process::free_address().port();
        let service = service("web", "http", port);
        let policy = format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: tokens, namespace: default}}\nspec:\n  jwtRules: [{rules}]\n"
        );
        let files = [("service.yaml", &*service), ("tokens.yaml", &*policy)];
        let pilot = Pilot::start(&files, &[&["--jwks-refresh", "100ms"], options].concat());
        let backend = Backend::start("web");
        let server = Sidecar::start(&pilot, "web", "v1", Some(backend.address));
        let client = Sidecar::start(&pilot, "client", "v1", None);
        let guarded = Self { client, _server: server, pilot, port };
        wait::until("the service answers", || (guarded.get("").status() == 200).then_some(()));
        guarded
    }

    fn get(&self, headers: &str) -> Response {
        self.client.get(&format!("web:{}", self.port), "/", headers)
    }

    fn wait_for(&self, headers: &str, status: u16, text: &str) {
        wait::until(&format!("{status} {text:?}"), || {
            let answer = self.get(headers);
            (answer.status() == status && answer.text().contains(text)).then_some(())
        });
    }

    fn wait_for_report(&self, text: &str) {
        wait::until(&format!("pilot reports {text}: {}", self.pilot.log()), || {
            let page = self.pilot.page("/debug/configz")["reports"].to_string();
            (page.contains(text) && self.pilot.log().contains(text)).then_some(())
        });
    }
}

#[test]
fn keys_outlive_their_issuer_and_follow_its_rotation() {
    let (first, second) = (Signer::curve("P-256"), Signer::curve("P-256"));
    let issuer = Document::start(keys(&first, "1"));
    let mut guarded = Guarded::start(&format!("{{issuer: me, jwksUri: '{}'}}", issuer.uri()), &[]);
    let (old, new) = (token(&first, "me", "1"), token(&second, "me", "2"));
    guarded.wait_for(&old, 200, "backend web");
    let no_key = "Jwks doesn't have key to match kid or alg from Jwt";
    guarded.wait_for(&new, 401, no_key);
    // It is fetched again and again, also where nothing changes.
    let before = issuer.asked.load(Relaxed);
    wait::until("it is asked again", || (issuer.asked.load(Relaxed) > before + 1).then_some(()));

    *issuer.answer.lock() = None;
    guarded.wait_for_report("the keys that were fetched before stay in force");
    for _ in 0..20 {
        assert_eq!(guarded.get(&old).status(), 200);
    }

    *issuer.answer.lock() = Some(keys(&second, "2"));
    guarded.wait_for(&new, 200, "backend web");
    guarded.wait_for(&old, 401, no_key);
    wait::until("nothing is left to report", || {
        guarded.pilot.page("/debug/configz")["reports"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    let metrics = guarded.pilot.get("/metrics").text();
    let counted = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).expect("the count");
        line.trim().parse::<f64>().expect("a number")
    };
    assert!(counted("pilot_jwks_resolver_network_fetch_success_total ") >= 2.0);
    assert!(counted("pilot_jwks_resolver_network_fetch_fail_total ") >= 1.0);

    // A pilot that never got any believes nobody, and nobody else is harmed.
    *issuer.answer.lock() = None;
    guarded.pilot.kill();
    guarded.pilot.restart();
    guarded.wait_for(&new, 401, "Jwks doesn't have any valid public key");
    guarded.wait_for("", 200, "backend web");
    guarded.wait_for_report("is refused");
    *issuer.answer.lock() = Some(keys(&second, "2"));
    guarded.wait_for(&new, 200, "backend web");
}

#[test]
fn a_restarted_pilot_does_not_take_keys_away() {
    let signer = Signer::curve("P-256");
    let issuer = Document::start(keys(&signer, "1"));
    let mut guarded = Guarded::start(&format!("{{issuer: me, jwksUri: '{}'}}", issuer.uri()), &[]);
    let token = token(&signer, "me", "1");
    guarded.wait_for(&token, 200, "backend web");
    let before = issuer.asked.load(Relaxed);
    guarded.pilot.kill();
    guarded.pilot.restart();
    wait::until("the new one has asked", || (issuer.asked.load(Relaxed) > before).then_some(()));
    for _ in 0..50 {
        assert_eq!(guarded.get(&token).status(), 200);
    }
}

#[test]
fn places_that_answer_nonsense_or_lead_astray_give_no_keys() {
    let signer = Signer::curve("P-256");
    let inner = Document::start_at("127.0.0.2", keys(&signer, "1"));
    let astray = Document::start(format!(
        "HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
        inner.uri()
    ));
    let garbage = Document::start(ok("<html>sign in</html>"));
    let huge = Document::start(ok(&format!("{{\"keys\": [{}]}}", " ".repeat(1 << 20))));
    let good = Document::start(keys(&signer, "1"));
    let rules: Vec<String> =
        [("astray", &astray), ("garbage", &garbage), ("huge", &huge), ("inner", &inner), ("good", &good)]
            .map(|(issuer, place)| format!("{{issuer: {issuer}, jwksUri: '{}'}}", place.uri()))
            .into();
    let guarded = Guarded::start(&rules.join(", "), &["--jwks-blocked", "127.0.0.2"]);
    let blocked = "127.0.0.2 is at 127.0.0.2, which is blocked (BLOCKED_CIDRS_IN_JWKS_URIS)";
    for (issuer, place, why) in [
        ("astray", &astray, blocked.to_owned()),
        ("inner", &inner, blocked.to_owned()),
        ("garbage", &garbage, format!("what {} answers is no JSON object", garbage.address)),
        ("huge", &huge, format!("{} answers with more than 524288 bytes", huge.address)),
    ] {
        let report = format!("no keys of issuer \\\"{issuer}\\\" from {}: {why}", place.uri());
        wait::until(&format!("pilot reports {report}"), || {
            guarded.pilot.page("/debug/configz")["reports"].to_string().contains(&report).then_some(())
        });
        guarded.wait_for(&token(&signer, issuer, "1"), 401, "");
    }
    assert_eq!(inner.asked.load(Relaxed), 0);
    guarded.wait_for(&token(&signer, "good", "1"), 200, "backend web");
    guarded.wait_for("", 200, "backend web");
}
