//! `osier` as a person uses it: a mesh of `osier up` and `osier run`, looked into with `proxy-status` and `proxy-config`;
//! and `osier inject`.

mod inject;

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
