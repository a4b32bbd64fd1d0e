//! The program as people start it: what it says, and how it ends.

#![allow(clippy::unwrap_used)] // Helpers of tests: a failure is the test's.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use osier_pilot::app::{AppError, Pilot};
use osier_pilot::settings::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_osier-pilot"));
    // A kubeconfig of whoever runs the tests is nobody's business here.
    command.args(args).stdin(Stdio::null()).env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command
}

fn output(args: &[&str]) -> Output {
    program(args).output().unwrap()
}

#[test]
fn wrong_usage_is_2_and_names_the_argument() {
    for args in [
        &["--sources", "x"][..],
        &["--source", "x", "--kubeconfig", "y"],
        &["--source", "x", "--xds-address", "nowhere"],
    ] {
        let out = output(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        let text = String::from_utf8_lossy(&out.stderr).to_string();
        assert!(text.contains("--source") || text.contains("--xds-address"), "{text}");
    }
}

#[test]
fn failures_are_1_with_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().to_str().unwrap();
    let missing = folder.path().join("missing");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let cases = [
        (vec!["--source", missing.to_str().unwrap()], "cannot read the folder"),
        (vec![], "name a folder with --source"),
        (vec!["--kubeconfig", missing.to_str().unwrap()], "missing can't be used"),
        (vec!["--source", source, "--xds-address", &address], "(choose another with --xds-address)"),
        (
            vec!["--source", source, "--xds-address", "127.0.0.1:0", "--monitoring-address", &address],
            "(choose another with --monitoring-address)",
        ),
    ];
    for (args, says) in cases {
        let out = output(&args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        let text = String::from_utf8_lossy(&out.stderr).to_string();
        let last = text.lines().last().unwrap_or_default();
        assert!(last.starts_with("osier-pilot: ") && last.contains(says), "{text}");
    }
}

#[test]
fn help_shows_every_flag_with_its_variable_and_examples() {
    let out = output(&["--help"]);
    assert!(out.status.success());
    let text = String::from_utf8_lossy(&out.stdout).to_string();
    for word in [
        "--source",
        "OSIER_PILOT_SOURCE",
        "--xds-address",
        "127.0.0.1:15010",
        "--monitoring-address",
        "Examples:",
    ] {
        assert!(text.contains(word), "no {word} in\n{text}");
    }
}

#[test]
fn a_signal_ends_it_politely() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().to_str().unwrap();
    let args = ["--source", source, "--xds-address", "127.0.0.1:0", "--monitoring-address", "127.0.0.1:0"];
    let log = folder.path().join("log");
    let mut child = program(&args).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    wait_for("the log says ready", || std::fs::read_to_string(&log).is_ok_and(|t| t.contains("ready")));
    Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert_eq!(wait(&mut child), Some(0));
}

fn wait(child: &mut Child) -> Option<i32> {
    let mut code = None;
    wait_for("the program ends", || {
        code = child.try_wait().unwrap().map(|status| status.code());
        code.is_some()
    });
    code.flatten()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.10
  ports: [{name: http, port: 80}]
";

/// A control plane inside of this process.
struct Embedded {
    monitoring: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), AppError>>,
}

impl Embedded {
    async fn start(folder: &Path) -> Self {
        let pilot = Pilot::bind(Settings::embedded(folder.to_path_buf())).await.unwrap();
        let monitoring = pilot.monitoring_address();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(pilot.run(shutdown.clone()));
        Self { monitoring, shutdown, task }
    }

    async fn get(&self, path: &str) -> String {
        self.get_from("127.0.0.1", path).await
    }

    async fn get_from(&self, own: &str, path: &str) -> String {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(own.parse().unwrap(), 0)).unwrap();
        let mut stream = socket.connect(self.monitoring).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    async fn until(&self, path: &str, wanted: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let text = self.get(path).await;
            if text.contains(wanted) {
                return;
            }
            assert!(Instant::now() < until, "no `{wanted}` in\n{text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn pages_follow_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("web.yaml"), SERVICE).unwrap();
    let pilot = Embedded::start(folder.path()).await;
    pilot.until("/ready", "200 OK").await;
    let first = pilot.get("/debug/registryz").await;
    assert!(
        first.contains("web.default.svc.cluster.local"),
        "what is there at the start is served from the start: {first}"
    );
    let rule = |field: &str| {
        let head = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: default}";
        format!("{head}\nspec: {{host: web, {field}: [{{name: v1, labels: {{version: v1}}}}]}}\n")
    };
    std::fs::write(folder.path().join("typo.yaml"), rule("subset")).unwrap();
    pilot.until("/debug/configz", "typo.yaml").await;
    pilot.until("/metrics", "osier_pilot_refused_resources 1").await;
    std::fs::write(folder.path().join("typo.yaml"), rule("subsets")).unwrap();
    pilot.until("/metrics", "osier_pilot_refused_resources 0").await;
    std::fs::write(folder.path().join("shop.yaml"), SERVICE.replace("web", "shop")).unwrap();
    pilot.until("/debug/registryz", "shop.default.svc.cluster.local").await;
    pilot.until("/metrics", "pilot_services 2").await;
    pilot.until("/debug/syncz", "[]").await;
    // Nothing that is sent follows from it, since no service has it.
    let alone = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: alone, namespace: default}\nspec: {address: 10.0.0.9}\n";
    std::fs::write(folder.path().join("alone.yaml"), alone).unwrap();
    pilot.until("/debug/workloadz", "10.0.0.9").await;
    std::fs::remove_file(folder.path().join("alone.yaml")).unwrap();
    pilot.until("/debug/workloadz", r#"{"root_namespace":"istio-system","workloads":[]}"#).await;
    pilot.shutdown.cancel();
    tokio::time::timeout(PATIENCE, pilot.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn what_is_of_all_namespaces_is_for_loopback_alone() {
    let folder = tempfile::tempdir().unwrap();
    let pilot = Embedded::start(folder.path()).await;
    pilot.until("/ready", "200 OK").await;
    let index = pilot.get("/").await;
    let names = index.lines().filter_map(|line| line.split(' ').next());
    let pages: Vec<_> = names.filter(|name| name.starts_with("/debug/") && name.ends_with('z')).collect();
    assert!(pages.len() >= 4, "{index}");
    for page in pages {
        // 127.0.0.6 is what a sidecar calls its application from, on behalf of anybody.
        assert!(pilot.get_from("127.0.0.6", page).await.starts_with("HTTP/1.1 403"), "{page}");
        assert!(pilot.get(page).await.starts_with("HTTP/1.1 200"), "{page}");
    }
    assert!(pilot.get_from("127.0.0.6", "/metrics").await.starts_with("HTTP/1.1 200"));
    pilot.shutdown.cancel();
    tokio::time::timeout(PATIENCE, pilot.task).await.unwrap().unwrap().unwrap();
}
