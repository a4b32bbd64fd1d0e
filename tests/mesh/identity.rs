//! Who is who: sidecars with certificates of the mesh, and what becomes of those who have none, or others.
//!
//! openssl is the client that is not ours: it shows what it is given, to the sidecar's own port.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use osier_pilot::ca::authority::{Authority, new_root};
use osier_pilot::ca::local::{Local, ROOT};
use osier_tests::backend::Backend;
use osier_tests::mesh::{IDENTITY, Pilot, Sidecar, service};
use osier_tests::{process, wait};

pub const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: all, namespace: istio-system}\n\
                      spec: {mtls: {mode: STRICT}}\n";

/// A service `web` behind a sidecar, and a client, both with certificates.
pub struct Secured {
    pub server: Sidecar,
    pub client: Sidecar,
    pub pilot: Pilot,
    port: u16,
}

impl Secured {
    fn start(files: &[(&str, &str)]) -> Self {
        Self::with("http", files, |_| ())
    }

    /// The same where an authority is plugged in: `plug_in` puts it into the folder of identities.
    pub fn plugged_in(port_name: &str, plug_in: impl FnOnce(&Path)) -> Self {
        Self::with(port_name, &[("strict.yaml", STRICT)], plug_in)
    }

    pub fn with(port_name: &str, files: &[(&str, &str)], plug_in: impl FnOnce(&Path)) -> Self {
        let port = process::free_address().port();
        let service = service("web", port_name, port);
        let pilot = Pilot::with_identity(&[&[("service.yaml", &*service)], files].concat(), plug_in);
        let backend = Backend::start("web");
        let server = Sidecar::secured(&pilot, "web", Some(backend.address));
        let client = Sidecar::secured(&pilot, "client", None);
        let secured = Self { server, client, pilot, port };
        secured.wait_for("web");
        secured
    }

    pub fn host(&self) -> String {
        format!("web:{}", self.port)
    }

    fn wait_for(&self, wanted: &str) {
        let mut last = String::new();
        wait::until(&format!("{wanted:?} is answered"), || {
            last = self.client.ask(&self.host());
            last.starts_with(wanted).then_some(())
        });
    }

    /// Where the server's sidecar takes connections.
    pub fn inbound(&self) -> SocketAddr {
        SocketAddr::new(self.server.registration.address, self.port)
    }
}

/// Which requests a sidecar counted, by `connection_security_policy`, with both principals.
fn counted(sidecar: &Sidecar) -> String {
    let page = sidecar.admin_get("/stats/prometheus").text();
    let lines = page.lines().filter(|line| line.starts_with("istio_requests_total{"));
    lines.collect::<Vec<_>>().join("\n")
}

/// A client certificate with its key, as files.
pub struct Shown {
    pub certificate: PathBuf,
    /// What is shown behind it; may be empty.
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// Has `authority` certify a key of openssl's making.
pub fn shown(folder: &Path, name: &str, authority: &Authority, spiffe: &str) -> Shown {
    shown_for(folder, name, authority, spiffe, None)
}

/// The same for so long.
fn shown_for(
    folder: &Path,
    name: &str,
    authority: &Authority,
    spiffe: &str,
    life: Option<Duration>,
) -> Shown {
    let file = |ending: &str| folder.join(format!("{name}.{ending}"));
    let (key, request, certificate) = (file("key"), file("csr"), file("crt"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=x",
        ])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&request)
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("openssl is there").success());
    let request = std::fs::read_to_string(&request).expect("the request");
    let chain = authority.workload(&request, spiffe, life).expect("a certificate");
    let between = file("chain");
    std::fs::write(&certificate, &chain[0]).expect("the test's folder can be written");
    std::fs::write(&between, chain[1..chain.len() - 1].concat()).expect("the test's folder can be written");
    Shown { certificate, chain: between, key }
}

/// What comes back for a request that openssl sends; empty where there is no session.
pub fn ask(address: SocketAddr, shown: Option<&Shown>, protocols: &str, folder: &Path) -> String {
    let request = folder.join("request");
    std::fs::write(
        &request,
        "GET / HTTP/1.1\r\nhost: web\r\nx-forwarded-client-cert: By=spiffe://x\r\nconnection: close\r\n\r\n",
    )
    .expect("the test's folder can be written");
    let mut command = Command::new("timeout");
    command.args([
        "5",
        "openssl",
        "s_client",
        "-quiet",
        "-connect",
        &address.to_string(),
        "-alpn",
        protocols,
    ]);
    if let Some(Shown { certificate, chain, key }) = shown {
        command.arg("-cert").arg(certificate).arg("-key").arg(key);
        if std::fs::metadata(chain).is_ok_and(|file| file.len() > 0) {
            command.arg("-cert_chain").arg(chain);
        }
    }
    let said = command
        .stdin(std::fs::File::open(&request).expect("the request"))
        .stderr(Stdio::null())
        .output()
        .expect("openssl is there");
    String::from_utf8_lossy(&said.stdout).into_owned()
}

/// What curl gets for a request; empty where there is no session.
fn curl(address: SocketAddr, shown: Option<&Shown>) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--insecure", "--max-time", "5"]).arg(format!("https://{address}/"));
    if let Some(Shown { certificate, key, .. }) = shown {
        curl.arg("--cert").arg(certificate).arg("--key").arg(key);
    }
    String::from_utf8_lossy(&curl.output().expect("curl is there").stdout).into_owned()
}

const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";
const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
pub const MESH: &str = "istio-http/1.1,istio,http/1.1";

#[test]
fn strict_takes_certificates_of_the_mesh_and_nothing_else() {
    let secured = Secured::start(&[("strict.yaml", STRICT)]);
    let answer = secured.client.get(&secured.host(), "/", "x-forwarded-client-cert: By=forged\r\n").text();
    let seen = answer.lines().find(|line| line.contains("x-forwarded-client-cert")).unwrap_or_default();
    assert!(seen.contains(&format!("By={WEB};Hash=")) && seen.contains(&format!("URI={CLIENT}")), "{answer}");
    assert!(!answer.contains("forged"), "what the application says of others is not passed on: {answer}");
    for (sidecar, policy) in [(&secured.server, "mutual_tls"), (&secured.client, "unknown")] {
        let counted = counted(sidecar);
        for wanted in [
            format!("source_principal=\"{CLIENT}\""),
            format!("destination_principal=\"{WEB}\""),
            format!("connection_security_policy=\"{policy}\""),
        ] {
            assert!(counted.contains(&wanted), "{wanted}: {counted}");
        }
    }

    let folder = secured.pilot.path();
    let authority =
        Local::open(&folder.join(IDENTITY)).and_then(|local| local.authority()).expect("the authority");
    let (root, key) = new_root("another").expect("a root");
    let foreign = Authority::new(root, &key).expect("an authority");
    let inbound = secured.inbound();
    let good = shown(folder, "good", &authority, "spiffe://cluster.local/ns/other/sa/caller");
    let answer = ask(inbound, Some(&good), MESH, folder);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // A peer's own element stays before ours: the last one counts.
    assert!(
        answer.contains("By=spiffe://x,By=")
            && answer.contains("URI=spiffe://cluster.local/ns/other/sa/caller"),
        "{answer}"
    );
    // curl is as good a client: what counts is what it shows.
    let said = curl(inbound, Some(&good));
    assert!(said.contains("URI=spiffe://cluster.local/ns/other/sa/caller"), "{said}");
    let expired = shown_for(folder, "expired", &authority, CLIENT, Some(Duration::from_secs(1)));
    wait::until("who has ended is refused", || {
        ask(inbound, Some(&expired), MESH, folder).is_empty().then_some(())
    });
    assert_eq!(curl(inbound, Some(&expired)), "");
    let strangers = [
        ("no certificate", None),
        ("no name of a mesh", Some(shown(folder, "name", &authority, "https://cluster.local/ns/a/sa/b"))),
        ("foreign root", Some(shown(folder, "foreign", &foreign, CLIENT))),
        (
            "foreign trust domain",
            Some(shown(folder, "domain", &authority, "spiffe://elsewhere/ns/default/sa/client")),
        ),
    ];
    for (what, shown) in strangers {
        assert_eq!(ask(inbound, shown.as_ref(), MESH, folder), "", "{what}");
        assert_eq!(curl(inbound, shown.as_ref()), "", "{what}");
    }
    let plain = osier_tests::raw::exchange(
        inbound,
        "GET",
        b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n",
    );
    assert_eq!(plain.unwrap_or_default().status(), 0, "plaintext is closed");
    secured.wait_for("web");
}

#[test]
fn permissive_takes_both_and_a_change_of_mode_fails_no_request() {
    let secured = Secured::start(&[]);
    let plain = || {
        let request =
            b"GET / HTTP/1.1\r\nhost: web\r\nx-forwarded-client-cert: By=forged\r\nconnection: close\r\n\r\n";
        osier_tests::raw::exchange(secured.inbound(), "GET", request).unwrap_or_default()
    };
    assert_eq!(plain().status(), 200);
    assert!(!plain().text().contains("forged"), "who has shown nothing says nothing of certificates");
    assert!(counted(&secured.server).contains("connection_security_policy=\"mutual_tls\""));
    let ask_for = |time: Duration| {
        let end = std::time::Instant::now() + time;
        let mut failed = Vec::new();
        while std::time::Instant::now() < end {
            failed.extend(Some(secured.client.ask(&secured.host())).filter(|answer| answer != "web"));
        }
        failed
    };
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask_for(Duration::from_secs(4)));
        secured.pilot.save("mode.yaml", STRICT);
        wait::until("plaintext is refused", || (plain().status() == 0).then_some(()));
        secured.pilot.remove("mode.yaml");
        wait::until("plaintext is taken again", || (plain().status() == 200).then_some(()));
        assert_eq!(asking.join().expect("the client ends"), Vec::<String>::new());
    });
}

#[test]
fn certificates_outlive_their_authority_and_others_get_none() {
    let mut secured = Secured::start(&[("strict.yaml", STRICT)]);
    secured.pilot.kill();
    secured.wait_for("web");
    secured.pilot.restart();
    secured.wait_for("web");
    // A token of another mesh proves nothing here.
    let folder = secured.pilot.path();
    let elsewhere = Local::make(&folder.join("elsewhere")).expect("a folder");
    elsewhere.authority().expect("an authority");
    let registration = osier_tests::mesh::register("stranger", "v1", None);
    let proof = secured.pilot.proof(&elsewhere, &registration, "web");
    let mut command = osier_tests::mesh::sidecar(proof.0, &registration);
    command.arg("--pilot-root-file").arg(folder.join(IDENTITY).join(ROOT)).arg("--token-file").arg(proof.1);
    let stranger = process::Program::start("stranger", &mut command, folder);
    wait::until("the stranger is refused", || stranger.output().contains("Unauthenticated").then_some(()));
    let readiness = SocketAddr::new(registration.address, osier_core::registration::READINESS_PORT);
    assert_ne!(osier_tests::mesh::admin_get(readiness, "/healthz/ready").status(), 200);
}
