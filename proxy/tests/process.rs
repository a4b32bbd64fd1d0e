//! The binary as people and scripts meet it: exit statuses, messages, traffic, signals.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_osier-proxy"));
    command.env_clear().stdin(Stdio::null());
    command
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port")
}

/// An HTTP/1 server that answers each connection with one fixed response.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(socket.try_clone().expect("clone")).lines();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                let _ = socket
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\nbackend");
            });
        }
    });
    address
}

fn bootstrap(listener: SocketAddr, admin: SocketAddr, backend: SocketAddr) -> String {
    let address =
        |a: SocketAddr| format!("{{socket_address: {{address: {}, port_value: {}}}}}", a.ip(), a.port());
    format!(
        r#"
admin: {{address: {admin}}}
static_resources:
  listeners:
  - name: web
    address: {listener}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config:
            name: web
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: web}}}}]}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: web
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: web
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {backend}}}}}]}}]
"#,
        listener = address(listener),
        admin = address(admin),
        backend = address(backend),
    )
}

/// A file with this text, and the folder that goes with it.
fn file_with(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("envoy.yaml");
    std::fs::write(&file, text).expect("file");
    (folder, file)
}

/// A running proxy, ended at the latest with the test.
struct Proxy {
    child: Child,
    listener: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Proxy {
    fn start(arguments: &[&str]) -> Self {
        let (listener, admin) = (free_address(), free_address());
        let (folder, file) = file_with(&bootstrap(listener, admin, backend()));
        let mut command = command();
        command.arg("--config").arg(&file).args(["--concurrency", "1"]).args(arguments);
        let child = command.stderr(Stdio::piped()).spawn().expect("the binary starts");
        let proxy = Self { child, listener, admin, _folder: folder };
        let begun = Instant::now();
        while !proxy.get(admin, "/ready").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            assert!(begun.elapsed() < LIMIT, "never ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        proxy
    }

    fn get(&self, address: SocketAddr, path: &str) -> std::io::Result<String> {
        send(address, &format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"))
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let id = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(id, signal).expect("signal");
    }

    fn wait_until_draining(&self) {
        let begun = Instant::now();
        while !self.get(self.admin, "/ready").is_ok_and(|answer| answer.contains("DRAINING")) {
            assert!(begun.elapsed() < LIMIT, "never drains");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait(&mut self) -> i32 {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("status") {
                return status.code().unwrap_or(-1);
            }
            assert!(begun.elapsed() < LIMIT, "never ends");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(address: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.write_all(request.as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().expect("the binary starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn serves_then_drains_and_leaves_with_zero() {
    let mut proxy = Proxy::start(&["--drain-time", "5s"]);
    let answer = proxy.get(proxy.listener, "/").expect("answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("backend"), "{answer}");
    let metrics = proxy.get(proxy.admin, "/stats/prometheus").expect("metrics");
    assert!(metrics.contains("istio_requests_total{"), "{metrics}");
    proxy.signal(nix::sys::signal::Signal::SIGTERM);
    proxy.wait_until_draining();
    // While it drains it still answers, and says that the connection ends, though the client would have kept it.
    let answer = send(proxy.listener, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").expect("answer");
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("backend"), "{answer}");
    assert_eq!(proxy.wait(), 0);
}

#[test]
fn a_second_signal_and_quitquitquit_cut_the_drain_short() {
    let mut proxy = Proxy::start(&["--drain-time", "1h"]);
    proxy.signal(nix::sys::signal::Signal::SIGTERM);
    proxy.wait_until_draining();
    proxy.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(proxy.wait(), 0);
    let mut proxy = Proxy::start(&["--drain-time", "1h"]);
    let quit = "POST /quitquitquit HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert!(send(proxy.admin, quit).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")));
    assert_eq!(proxy.wait(), 0);
}

#[test]
fn wrong_usage_and_wrong_files_are_status_2_and_say_what() {
    assert_eq!(run(&["--nonsense"]).status.code(), Some(2));
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--config FILE"), "{}", stderr(&output));
    let (_folder, file) = file_with("static_resources: {listeners: [{name: a, nonsense: 1}]}\n");
    let output = run(&["--config", file.to_str().expect("path"), "--log-level", "loud"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("static_resources.listeners[0].nonsense"), "{text}");
    assert!(text.contains("--log-level: `loud`"), "both mistakes: {text}");
    assert!(run(&["--help"]).status.success());
}

#[test]
fn a_port_in_use_is_status_1_and_names_the_listener() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address");
    let (_folder, file) = file_with(&bootstrap(address, free_address(), backend()));
    let output = run(&["--config", file.to_str().expect("path")]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("web") && text.contains(&address.to_string()) && text.contains("in use"), "{text}");
}
