//! `osier` as a person uses it: a mesh of `osier up` and `osier run`, looked into with `proxy-status` and `proxy-config`;
//! `osier inject` and `osier install`.

mod inject;
mod install;

use std::net::SocketAddr;
use std::process::Output;

use nix::sys::signal::Signal;
use osier_tests::process::{self, Program};
use osier_tests::{mesh, raw, wait};
use serde_json::Value;

const SPLIT: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
";

/// A pilot with one workload of `reviews` that has called its own service.
struct Mesh {
    monitoring: SocketAddr,
    programs: Vec<Program>,
    _folder: tempfile::TempDir,
}

impl Mesh {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("mesh");
        std::fs::create_dir(&source).expect("the test's folder can be written");
        let documents = [mesh::service("reviews", "http", 9080), mesh::subsets("reviews"), SPLIT.to_owned()];
        std::fs::write(source.join("mesh.yaml"), documents.join("---\n"))
            .expect("the test's folder can be written");
        let (pilot, xds, monitoring) = mesh::osier_up(folder.path());

        let address = process::free_address();
        let sample = process::own("osier").get_program().to_owned();
        let mut run = process::own("osier");
        run.args(["run", "--service", "reviews", "--version", "v1", "--port", &address.port().to_string()])
            .args(["--pilot", &xds.to_string(), "--"])
            .arg(sample)
            .args(["internal", "sample", "--name", "reviews", "--version", "v1"]);
        let mut reviews = Program::start("reviews", &mut run, folder.path());
        reviews.wait_listening(address);
        let proxy = wait::until("the workload says where its proxy is", || {
            let text = reviews.output();
            let (_, rest) = text.split_once("http_proxy=http://")?;
            rest.split_whitespace().next()?.parse::<SocketAddr>().ok()
        });
        let request = b"GET http://reviews:9080/ HTTP/1.1\r\nhost: reviews:9080\r\nconnection: close\r\n\r\n";
        wait::until("the workload reaches its own service", || {
            (raw::exchange(proxy, "GET", request)?.status() == 200).then_some(())
        });
        Self { monitoring, programs: vec![reviews, pilot], _folder: folder }
    }

    fn osier(&self, arguments: &[&str]) -> Output {
        let mut command = process::own("osier");
        command.args(arguments).env("OSIER_PILOT_MONITORING_ADDRESS", self.monitoring.to_string());
        command.output().expect("osier can be started")
    }

    /// What a successful command prints.
    fn shown(&self, arguments: &[&str]) -> String {
        let output = self.osier(arguments);
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {}: {text}{errors}", output.status);
        text.into_owned()
    }

    /// Exit status and message of a command that fails.
    fn refused(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.osier(arguments);
        assert!(output.stdout.is_empty(), "{arguments:?} prints {}", String::from_utf8_lossy(&output.stdout));
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn stop(self) {
        for mut program in self.programs {
            program.signal(Signal::SIGTERM);
            let status = program.wait_end();
            assert!(status.success(), "{status}\n{}", program.output());
        }
    }
}

/// The line of `table` that holds all of `words`.
fn line<'t>(table: &'t str, words: &[&str]) -> &'t str {
    let found = table.lines().find(|line| words.iter().all(|word| line.contains(word)));
    found.unwrap_or_else(|| panic!("no line with {words:?} in:\n{table}"))
}

#[test]
fn a_mesh_can_be_looked_into() {
    let mesh = Mesh::start();

    // The last ACK may still be on its way.
    let status = wait::until("all types are in force", || {
        let table = mesh.shown(&["proxy-status"]);
        table.lines().find(|line| line.matches("SYNCED").count() == 5).map(str::to_owned)
    });
    for word in ["reviews-v1-", ".default", "127.", "sidecar", env!("CARGO_PKG_VERSION")] {
        assert!(status.contains(word), "{word} in {status}");
    }
    let json: Value = serde_json::from_str(&mesh.shown(&["ps", "-o", "json"])).expect("JSON");
    let name = json[0]["proxy"].as_str().expect("a name").to_owned();
    assert!(status.contains(&name), "{name} in {status}");

    let config = |what: &str| mesh.shown(&["proxy-config", what, &name]);
    line(&config("listeners"), &["15007", "Route: "]);
    let host = "reviews.default.svc.cluster.local";
    let v1 = format!("outbound|9080|v1|{host} (90)");
    line(&config("routes"), &["reviews:9080", "/*", &v1, "|v2|"]);
    line(&config("clusters"), &[host, "9080", "v1", "outbound", "EDS"]);
    line(&config("endpoints"), &["127.", "HEALTHY", &format!("outbound|9080|v1|{host}")]);
    let all = config("all");
    for header in ["DESTINATION", "DOMAINS", "SERVICE FQDN", "ENDPOINT"] {
        assert!(all.contains(header), "{header} in:\n{all}");
    }
    // The beginning of a name, or the address of an admin interface, is enough.
    assert_eq!(mesh.shown(&["pc", "clusters", "reviews"]), config("clusters"));
    let ip = json[0]["osier"]["node"].as_str().and_then(|node| node.split('~').nth(1)).expect("an address");
    assert_eq!(mesh.shown(&["pc", "c", &format!("{ip}:15000")]), config("clusters"));
    let yaml = mesh.shown(&["proxy-config", "clusters", &name, "-o", "yaml"]);
    assert!(yaml.contains(&format!("name: outbound|9080|v1|{host}")), "{yaml}");
    let json: Value = serde_json::from_str(&mesh.shown(&["pc", "all", &name, "-o", "json"])).expect("JSON");
    for part in ["listeners", "routes", "clusters", "endpoints"] {
        assert!(json[part].as_array().is_some_and(|list| !list.is_empty()), "{part} in {json}");
    }

    line(&mesh.shown(&["pc", "clusters", &name, "--fqdn", "reviews", "--subset", "v1"]), &["v1", "outbound"]);
    assert!(!mesh.shown(&["pc", "clusters", &name, "--subset", "v1"]).contains("v2"));
    assert!(mesh.shown(&["pc", "bootstrap", &name]).contains("\"node\""));
    line(&mesh.shown(&["pc", "log", &name, "--level", "http:debug"]), &["http", "debug"]);
    line(&mesh.shown(&["pc", "log", &name]), &["http", "debug"]);
    let detail = mesh.shown(&["ps", "reviews"]);
    line(&detail, &["VHDS", "SYNCED"]);
    assert!(detail.contains("osier-proxy, delta xDS from 127."), "{detail}");
    let version = mesh.shown(&["version"]);
    let own = env!("CARGO_PKG_VERSION");
    for part in ["client version: ", "control plane version: ", "data plane version: "] {
        line(&version, &[part, own]);
    }
    assert!(version.contains("(1 proxy)"), "{version}");

    // Whoever comes past the sidecars comes without a certificate.
    let endpoints = config("endpoints");
    let sidecar = line(&endpoints, &["outbound|9080|v1|"]).split_whitespace().next().unwrap_or_default();
    let endpoint: SocketAddr = sidecar.parse().expect("an address");
    let direct = b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: close\r\n\r\n";
    assert_eq!(raw::exchange(endpoint, "GET", direct).expect("PERMISSIVE").status(), 200);
    let table = mesh.shown(&["mtls"]);
    line(&table, &["default", "reviews-v1", "PERMISSIVE", "refuse 1 caller"]);
    line(&table, &["127.0.0.1", "now"]);
    let json: Value =
        serde_json::from_str(&mesh.shown(&["mtls", "-n", "default", "-o", "json"])).expect("JSON");
    assert_eq!(
        (&json["callers"][0]["connections"], &json["workloads"][0]["takes_mutual_tls"]),
        (&1.into(), &true.into())
    );
    let (code, message) = mesh.refused(&["mtls", "strict", "default"]);
    assert!(
        code == Some(1) && message.contains("would be refused") && message.contains("127.0.0.1"),
        "{message}"
    );
    for command in ["strict", "permissive"] {
        let (code, message) = mesh.refused(&["mtls", command, "istio-system"]);
        assert!(code == Some(1) && message.contains("the mesh's root namespace"), "{message}");
    }

    let (code, message) = mesh.refused(&["proxy-config", "routes", "nobody"]);
    assert_eq!(code, Some(1));
    assert!(message.contains("`nobody`") && message.contains("osier proxy-status"), "{message}");
    let (code, message) = mesh.refused(&["proxy-config", "roots", &name]);
    assert_eq!(code, Some(2));
    assert!(message.contains("'roots'") && message.contains("listeners"), "{message}");
    mesh.stop();
}

#[test]
fn without_a_pilot_there_is_one_clear_sentence() {
    let nobody = process::free_address();
    let mut command = process::own("osier");
    let output =
        command.args(["proxy-status", "--pilot-monitoring", &nobody.to_string()]).output().expect("osier");
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains(&nobody.to_string()) && message.contains("--pilot-monitoring"), "{message}");
}

#[test]
fn log_levels_of_pilot_are_changed_while_it_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [xds, monitoring, admin] = std::array::from_fn(|_| process::free_address().to_string());
    let mut up = process::own("osier");
    up.arg("up").arg(folder.path()).args(["--xds-address", &xds, "--monitoring-address", &monitoring]);
    let mut pilot = Program::start("up", up.args(["--admin-address", &admin]), folder.path());
    pilot.wait_listening(admin.parse().expect("an address"));

    let levels = |arguments: &[&str]| {
        let mut command = process::own("osier");
        command.args(["admin", "log", "--admin-address", &admin]).args(arguments).output().expect("osier")
    };
    let shown = levels(&["--level", "store:debug"]);
    let text = String::from_utf8_lossy(&shown.stdout);
    line(&text, &["store", "debug"]);
    line(&text, &["xds", "info"]);
    let json: Value = serde_json::from_slice(&levels(&["-o", "json"]).stdout).expect("JSON");
    assert_eq!(json[0]["levels"]["store"], "debug");
    let refused = levels(&["--level", "nothing:debug"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("there is no part `nothing`"), "{refused:?}");
    // And it acts: of two broken files, the second is only on the page.
    let save = |name: &str| {
        std::fs::write(folder.path().join(name), "kind: [").expect("the test's folder can be written");
    };
    save("first.yaml");
    wait::until("the first file is in the log", || pilot.output().contains("first.yaml").then_some(()));
    assert!(levels(&["--level", "off"]).status.success());
    save("second.yaml");
    let request = b"GET /debug/configz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let monitoring = monitoring.parse().expect("an address");
    wait::until("the second file is on the page", || {
        raw::exchange(monitoring, "GET", request)?.text().contains("second.yaml").then_some(())
    });
    assert!(!pilot.output().contains("second.yaml"), "{}", pilot.output());
    pilot.signal(Signal::SIGTERM);
    assert!(pilot.wait_end().success());
}

#[test]
fn a_proxy_by_its_address_is_no_matter_of_a_mesh() {
    let nobody = process::free_address().to_string();
    let mut command = process::own("osier");
    command.args(["proxy-config", "listeners", &nobody]).env("KUBECONFIG", "/nowhere");
    let output = command.output().expect("osier can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&nobody) && !said.contains("mesh"), "{said}");
}

#[test]
fn as_a_plugin_of_kubectl_it_has_that_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plugin = folder.path().join("kubectl-osier");
    std::os::unix::fs::symlink(process::own("osier").get_program(), &plugin).expect("a link");
    let help = std::process::Command::new(&plugin).args(["proxy-status", "--help"]).output().expect("osier");
    let text = String::from_utf8_lossy(&help.stdout);
    assert!(text.contains("Usage: kubectl osier proxy-status"), "{text}");
    assert!(text.contains("\n  kubectl osier proxy-status\n"), "{text}");
}
