//! TLS towards servers outside of the mesh, as DestinationRules say it: plain HTTP from the application, HTTPS from its sidecar (what
//! Istio calls TLS origination), to a real nginx.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use osier_tests::certificate::{Certified, Root};
use osier_tests::mesh::{OUTSIDE as HOST, Pilot, Sidecar, outside_entry};
use osier_tests::process::{self, Program};
use osier_tests::{nginx, wait};

/// nginx that speaks TLS alone, and says how it was spoken to. `/slow` lasts for a minute.
fn https(folder: &Path, root: &Root, clients: &Root) -> (Program, SocketAddr) {
    let address = process::free_address();
    let own = root.sign(HOST);
    let server = format!(
        "listen {address} ssl;
    set $k {};
    location = /slow {{ limit_rate 500; return 200 $k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k$k; }}
    ssl_certificate {}; ssl_certificate_key {};
    ssl_client_certificate {}; ssl_verify_client optional;
    location / {{ return 200 \"sni=$ssl_server_name host=$http_host client=$ssl_client_s_dn verified=$ssl_client_verify\\n\"; }}",
        "x".repeat(1000),
        own.certificate.display(),
        own.key.display(),
        clients.file().display()
    );
    (nginx::start(folder, address, &server), address)
}

fn rule(tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: outside, namespace: default}}
spec:
  host: {HOST}
  trafficPolicy: {{tls: {{{tls}}}}}
"
    )
}

/// What goes wrong stands in the access log.
const LOGS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
                    data: {mesh: 'accessLogFile: /dev/stdout'}\n";

struct Outside {
    client: Sidecar,
    _server: Program,
    // Last: the others show what they have written there.
    pilot: Pilot,
}

impl Outside {
    /// A client that proves nothing to the control plane.
    fn start() -> (Self, [Root; 3]) {
        let pilot = Pilot::start(&[("mesh.yaml", LOGS)], &[]);
        let client = Sidecar::start(&pilot, "client", "v1", None);
        Self::of(pilot, client)
    }

    /// The server beside them; with the root that signed it, one that signed nothing, and the one that it believes clients by.
    fn of(pilot: Pilot, client: Sidecar) -> (Self, [Root; 3]) {
        let roots = ["root", "other", "clients"].map(|name| Root::new(pilot.path(), name));
        let [root, _, clients] = &roots;
        let (server, address) = https(pilot.path(), root, clients);
        pilot.save("entry.yaml", &outside_entry(address.port()));
        (Self { client, _server: server, pilot }, roots)
    }

    /// What the client gets: status and text.
    fn ask(&self) -> (u16, String) {
        let answer = self.client.get(HOST, "/", "");
        (answer.status(), answer.text())
    }

    /// Puts a rule in force, and waits for what becomes of it.
    fn becomes(&self, tls: &str, status: u16, says: &str) {
        self.after(&[("rule.yaml", &rule(tls))], status, says);
    }

    /// Saves files, and waits until the answer is so: a 200 or 400 of the server's, or a 503 with what the access log says.
    fn after(&self, files: &[(&str, &str)], status: u16, says: &str) {
        let before = self.client.program.output().len();
        files.iter().for_each(|(name, text)| self.pilot.save(name, text));
        wait::until(&format!("{files:?}: {status} {says}"), || {
            let (got, text) = self.ask();
            let log = self.client.program.output();
            let failed = log[before..].lines().any(|line| line.contains(" 503 UF") && line.contains(says));
            (got == status && (text.contains(says) || (status == 503 && failed))).then_some(())
        });
    }
}

#[test]
fn an_application_speaks_http_and_its_sidecar_https() {
    let (outside, [root, other, clients]) = Outside::start();
    let file = |root: &Root| root.file().display().to_string();
    let (good, bad) = (file(&root), file(&other));

    // Without a rule nginx gets plaintext on its TLS port.
    wait::until("the host is known", || (outside.ask().0 == 400).then_some(()));
    outside.becomes(
        &format!("mode: SIMPLE, caCertificates: {good}"),
        200,
        "sni=outside.test host=outside.test",
    );
    outside.becomes(
        &format!("mode: SIMPLE, caCertificates: {bad}"),
        503,
        "TLS_error: certificate verify failed",
    );
    // The machine has roots, and none of them has signed this server.
    outside.becomes(
        "mode: SIMPLE",
        503,
        "TLS_error: certificate verify failed: its signer is not among the roots",
    );
    let on_another_system = Sidecar::start_with(&outside.pilot, "client", "v2", None, |command| {
        command.env("SSL_CERT_FILE", root.file());
    });
    let answer = wait::until("one whose system has that root", || {
        let answer = on_another_system.get(HOST, "/", "");
        (answer.status() == 200).then_some(answer)
    });
    assert!(answer.text().contains("sni=outside.test"), "{}", answer.text());
    outside.becomes("mode: SIMPLE, insecureSkipVerify: true", 200, "sni=outside.test");
    outside.becomes(
        &format!("mode: SIMPLE, caCertificates: {good}, subjectAltNames: [inside.test]"),
        503,
        "its names are outside.test, and none of them is one of inside.test (SAN)",
    );
    outside.becomes(
        &format!("mode: SIMPLE, caCertificates: {good}, sni: third.test, subjectAltNames: [outside.test]"),
        200,
        "sni=third.test",
    );
    let own = clients.sign("caller.test");
    let shows = format!(
        "mode: MUTUAL, caCertificates: {good}, clientCertificate: {}, privateKey: {}",
        own.certificate.display(),
        own.key.display()
    );
    outside.becomes(&shows, 200, "client=CN=caller.test verified=SUCCESS");
    outside.becomes("mode: DISABLE", 400, "plain HTTP request was sent to HTTPS port");
}

#[test]
fn files_are_read_again_when_they_change() {
    let (outside, [root, other, _]) = Outside::start();
    let trusted = outside.pilot.path().join("trusted.pem");
    let says = format!("mode: SIMPLE, caCertificates: {}", trusted.display());
    outside.becomes(&says, 503, "no roots yet (file-root:");
    put(&[&other], &trusted);
    outside.becomes(&says, 503, "its signer is not among the roots");
    put(&[&root], &trusted);
    outside.becomes(&says, 200, "sni=outside.test");
    // What is no certificate changes nothing. The sidecar says that it has seen it.
    std::fs::write(&trusted, "junk").expect("the test's folder can be written");
    let seen = || outside.client.program.output().contains("what was good before stays in force");
    wait::until("junk is seen", || seen().then_some(()));
    outside.becomes(&says, 200, "sni=outside.test");
}

/// Puts a bundle of roots at a place, whole.
fn put(roots: &[&Root], file: &Path) {
    let text: Vec<String> =
        roots.iter().map(|root| std::fs::read_to_string(root.file()).expect("a root")).collect();
    let draft = file.with_extension("draft");
    std::fs::write(&draft, text.concat()).expect("the test's folder can be written");
    std::fs::rename(&draft, file).expect("a file can be renamed");
}

#[test]
fn what_flows_is_cut_with_the_last_root_that_vouches_for_it() {
    let (outside, [root, other, _]) = Outside::start();
    let trusted = outside.pilot.path().join("trusted.pem");
    put(&[&root], &trusted);
    outside.becomes(&format!("mode: SIMPLE, caCertificates: {}", trusted.display()), 200, "sni=outside.test");
    let mut flow = TcpStream::connect(outside.client.proxy()).expect("the sidecar listens");
    flow.set_read_timeout(Some(wait::PATIENCE)).expect("a time-out");
    write!(flow, "GET http://{HOST}/slow HTTP/1.1\r\nhost: {HOST}\r\n\r\n").expect("it is taken");
    let mut piece = [0; 400];
    flow.read_exact(&mut piece).expect("it flows");
    assert!(piece.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&piece));

    let in_force = || outside.client.program.output().matches("another content is in force").count();
    put(&[&other, &root], &trusted);
    wait::until("both roots are believed", || (in_force() == 1).then_some(()));
    // More than can have been on its way.
    (0..4).for_each(|_| flow.read_exact(&mut piece).expect("it goes on: its root is still believed"));
    put(&[&other], &trusted);
    let mut rest = Vec::new();
    let _ = flow.read_to_end(&mut rest);
    assert!(rest.len() < 16_000, "it was not cut");
    wait::until("the access log says why", || {
        outside.client.program.output().contains("upstream_peer_no_longer_trusted").then_some(())
    });
}

/// A Secret in the client's namespace: what it shows, and whom it believes.
fn secret(name: &str, own: &Certified, roots: &Root) -> String {
    let entry = |key: &str, file: &Path| {
        let text = std::fs::read_to_string(file).expect("a file of the test's");
        format!("  {key}: {}\n", serde_json::Value::from(text))
    };
    let entries = [("tls.crt", &*own.certificate), ("tls.key", &*own.key), ("ca.crt", &*roots.file())];
    let entries: String = entries.map(|(key, file)| entry(key, file)).concat();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: default}}\ntype: kubernetes.io/tls\nstringData:\n{entries}"
    )
}

#[test]
fn secrets_go_to_selected_workloads_that_have_proved_who_they_are() {
    let pilot = Pilot::with_identity(&[("mesh.yaml", LOGS)], |_| ());
    let client = Sidecar::secured(&pilot, "client", None);
    let (outside, [root, other, clients]) = Outside::of(pilot, client);
    // At the port without encryption nobody gets anything.
    let unproven = Sidecar::start(&outside.pilot, "client", "v2", None);
    let selected =
        |tls: &str| rule(tls).replace("spec:\n", "spec:\n  workloadSelector: {matchLabels: {app: client}}\n");
    let own = clients.sign("caller.test");
    let rule = selected("mode: MUTUAL, credentialName: caller");
    outside.after(&[("rule.yaml", &rule)], 503, "TLS_error: there is no certificate to show yet");
    outside.after(
        &[("secret.yaml", &secret("caller", &own, &root))],
        200,
        "client=CN=caller.test verified=SUCCESS",
    );
    wait::until("the rule is in force there, too", || {
        let log = || unproven.program.output();
        (unproven.get(HOST, "/", "").status() == 503 && log().contains("there is no certificate to show yet"))
            .then_some(())
    });
    for sidecar in [&outside.client, &unproven] {
        let dump = sidecar.admin_get("/config_dump").text();
        assert!(dump.contains("kubernetes://default/caller") && !dump.contains("PRIVATE"), "{dump}");
    }
    outside.after(
        &[("secret.yaml", &secret("caller", &own, &other))],
        503,
        "TLS_error: certificate verify failed: its signer is not among the roots",
    );
    // Roots alone need no certificate beside them.
    let roots = std::fs::read_to_string(root.file()).expect("a root");
    let apart = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: bank-cacert, namespace: default}}\nstringData: {{cacert: {}}}\n",
        serde_json::Value::from(roots)
    );
    let rule = selected("mode: SIMPLE, credentialName: bank");
    outside.after(&[("rule.yaml", &rule), ("apart.yaml", &apart)], 200, "client= verified=NONE");
}
