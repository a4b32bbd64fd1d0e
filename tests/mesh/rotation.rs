//! The authority of a mesh and its roots in time: one that is plugged in, roots that are added, that sign and that go, under load.
//!
//! Authorities are made by openssl, as people make them, and openssl is the client whose connection must end with its root.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use osier_tests::family::Family;
use osier_tests::mesh::IDENTITY;
use osier_tests::wait;

use crate::identity::{MESH, Secured, Shown, ask, shown};
use crate::load::Load;

/// Plugs an authority in, file by file, as an editor would.
fn plug_in(secured: &Secured, family: &Family, roots: &str) {
    plug_into(&secured.pilot.path().join(IDENTITY), family, roots);
}

fn plug_into(identity: &Path, family: &Family, roots: &str) {
    let folder = identity.join("cacerts");
    fs::create_dir_all(&folder).expect("the test's folder can be written");
    for (name, text) in [
        ("ca-cert.pem", family.text(".crt")),
        ("ca-key.pem", family.text(".key")),
        ("cert-chain.pem", family.text(".crt") + &family.root()),
        ("root-cert.pem", roots.to_owned()),
    ] {
        let draft = folder.join("draft");
        fs::write(&draft, text).expect("the test's folder can be written");
        fs::rename(&draft, folder.join(name)).expect("a file can be renamed");
    }
}

/// Waits until every sidecar believes so many roots, and has a certificate of this family's, which signs.
fn wait_for_roots(secured: &Secured, roots: usize, family: &Family) {
    let signing = family.fingerprint();
    let wanted = [
        format!("osier_mesh_roots{{signing=\"{signing}\"}} {roots}"),
        "osier_certificate_of_signing_root 1".into(),
    ];
    for sidecar in [&secured.server, &secured.client] {
        wait::until(
            &format!("{} believes {roots} roots, and {} signs", sidecar.registration.name, family.name),
            || {
                let page = sidecar.admin_get("/stats/prometheus").text();
                wanted.iter().all(|wanted| page.lines().any(|line| line == wanted)).then_some(())
            },
        );
    }
}

/// A connection of openssl's that stays open. What it says appears in a file.
struct Open {
    client: Child,
    said: PathBuf,
}

impl Open {
    fn to(address: SocketAddr, shown: &Shown, folder: &Path, name: &str) -> Self {
        let said = folder.join(format!("said-{name}"));
        let file = fs::File::create(&said).expect("the test's folder can be written");
        let client = Command::new("openssl")
            .args(["s_client", "-quiet", "-connect", &address.to_string(), "-alpn", MESH])
            .arg("-cert")
            .arg(&shown.certificate)
            .arg("-key")
            .arg(&shown.key)
            .arg("-cert_chain")
            .arg(&shown.chain)
            .stdin(Stdio::piped())
            .stdout(file)
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is there");
        let mut open = Self { client, said };
        open.asks();
        open
    }

    /// Sends one request more and waits for its answer.
    fn asks(&mut self) {
        let answers = || {
            let mut text = Vec::new();
            fs::File::open(&self.said)
                .and_then(|mut file| file.read_to_end(&mut text))
                .expect("what was said");
            String::from_utf8_lossy(&text).matches("HTTP/1.1 200").count()
        };
        let before = answers();
        let request = b"GET / HTTP/1.1\r\nhost: web\r\n\r\n";
        self.client.stdin.as_mut().expect("its input").write_all(request).expect("it is running");
        wait::until("openssl has its answer", || (answers() > before).then_some(()));
    }

    fn has_ended(&mut self) -> bool {
        self.client.try_wait().expect("a child").is_some()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

const CALLER: &str = "spiffe://cluster.local/ns/other/sa/caller";

/// From one plugged-in authority to another, step by step as it is told to people, without a failed request. `port`: name of the
/// service's port, which says what proxies speak.
fn rotate(port: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (old, new) = (Family::make(folder.path(), "old"), Family::make(folder.path(), "new"));
    let (old_root, both, new_root) = (old.root(), old.root() + &new.root(), new.root());
    let mut secured = Secured::plugged_in(port, |identity| plug_into(identity, &old, &old_root));
    wait_for_roots(&secured, 1, &old);
    let load = Load::start(secured.client.proxy(), &secured.host(), Load::status_200);

    // Too early: nobody believes that root yet.
    plug_in(&secured, &new, &new_root);
    wait::until("it is refused by name", || {
        secured.pilot.log().contains("its root is none that the mesh believes yet").then_some(())
    });

    plug_in(&secured, &old, &both);
    wait_for_roots(&secured, 2, &old);
    load.wait_for(50);
    let folder = secured.pilot.path().to_owned();
    let by_old = shown(&folder, "by-old", &old.authority(&old_root), CALLER);
    let by_new = shown(&folder, "by-new", &new.authority(&new_root), CALLER);

    // The new one signs; the control plane goes away in the middle of it.
    plug_in(&secured, &new, &both);
    secured.pilot.kill();
    load.wait_for(50);
    secured.pilot.restart();
    wait_for_roots(&secured, 2, &new);
    load.wait_for(200);
    let mut opened_by_old = Open::to(secured.inbound(), &by_old, &folder, "old");
    let mut opened_by_new = Open::to(secured.inbound(), &by_new, &folder, "new");

    plug_in(&secured, &new, &new_root);
    wait_for_roots(&secured, 1, &new);
    wait::until("who stands on the old root alone is cut", || opened_by_old.has_ended().then_some(()));
    opened_by_new.asks();
    assert!(!opened_by_new.has_ended(), "the other stands on a root that is still believed");
    load.wait_for(200);
    let (succeeded, failures) = load.stop();
    assert!(failures.is_empty(), "{} of {succeeded}: {failures:#?}", failures.len());
}

#[test]
fn the_root_is_rotated_under_load_over_http1() {
    rotate("http");
}

#[test]
fn the_root_is_rotated_under_load_over_http2() {
    rotate("http2");
}

/// Peers look at a few signatures, however many are shown.
#[test]
fn a_chain_too_long_is_refused_and_one_of_several_is_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let family = Family::make(folder.path(), "deep");
    let secured = Secured::plugged_in("http", |identity| plug_into(identity, &family, &family.root()));
    for (between, good) in [(1, true), (4, true), (12, false)] {
        let [certificate, chain, key] = family.deep(between, CALLER);
        let shown = Shown { certificate, chain, key };
        let answer = ask(secured.inbound(), Some(&shown), MESH, folder.path());
        assert_eq!(answer.starts_with("HTTP/1.1 200"), good, "{between}: {answer}");
    }
    assert_eq!(secured.client.ask(&secured.host()), "web");
}
