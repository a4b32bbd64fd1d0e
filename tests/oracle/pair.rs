//! Envoy and osier-proxy with the same bootstrap, in front of the same backend, each with ports of its own.

use std::net::SocketAddr;
use std::time::Duration;

use osier_tests::backend::Backend;
use osier_tests::process::{self, Program};
use osier_tests::raw::{After, Connection, Response};

use crate::case::Case;

/// The bootstrap of the table.
pub const BOOTSTRAP: &str = include_str!("bootstrap.yaml");

/// The same with other virtual hosts, and with `filters` before its own HTTP filters. Both are lines of YAML with their indent.
pub fn bootstrap_with(virtual_hosts: &str, filters: &str) -> String {
    const FILTERS: &str = "          http_filters:\n";
    let start = BOOTSTRAP.find("            virtual_hosts:").expect("the bootstrap has virtual hosts");
    let end = BOOTSTRAP.find(FILTERS).expect("the bootstrap has filters");
    let (before, after) = (&BOOTSTRAP[..start], &BOOTSTRAP[end + FILTERS.len()..]);
    format!("{before}{virtual_hosts}{FILTERS}{filters}{after}")
}

/// How long a connection is watched for its close.
const MOMENT: Duration = Duration::from_millis(150);
/// And where its answer said so. Both wait for the client's close first.
const ANNOUNCED: Duration = Duration::from_secs(3);

/// What came back for one request of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// An answer, normalised, and what the connection did after it.
    Answer { line: String, headers: Vec<String>, body: Vec<String>, trailers: Vec<String>, after: After },
    /// The connection ended without an answer.
    Nothing,
}

struct Proxy {
    http: SocketAddr,
    tcp: SocketAddr,
    tcp_dead: SocketAddr,
    _program: Program,
}

/// Both proxies.
pub struct Pair {
    envoy: Proxy,
    osier: Proxy,
    _folder: tempfile::TempDir,
    _backend: Backend,
}

impl Pair {
    /// Starts both and waits until they listen.
    pub fn start(bootstrap: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let backend = Backend::start("echo");
        let closed = process::free_address();
        let start = |name: &str| {
            let ports = [(); 4].map(|()| process::free_address());
            let mut text = bootstrap.to_owned();
            let names = ["{{ADMIN}}", "{{HTTP}}", "{{TCP}}", "{{TCP_DEAD}}"];
            for (name, address) in
                names.iter().zip(ports).chain([(&"{{BACKEND}}", backend.address), (&"{{CLOSED}}", closed)])
            {
                text = text.replace(name, &address.port().to_string());
            }
            let file = folder.path().join(format!("{name}.yaml"));
            std::fs::write(&file, text).expect("the test's folder can be written");
            let mut command = match name {
                "envoy" => {
                    let mut command = process::part("OSIER_TEST_ENVOY");
                    command.args([
                        "--concurrency",
                        "1",
                        "--disable-hot-restart",
                        "--log-level",
                        "warning",
                        "-c",
                    ]);
                    command
                }
                _ => {
                    let mut command = process::own("osier-proxy");
                    command.args(["--concurrency", "1", "--config"]);
                    command
                }
            };
            let mut program = Program::start(name, command.arg(&file), folder.path());
            program.wait_listening(ports[1]);
            program.wait_listening(ports[2]);
            Proxy { http: ports[1], tcp: ports[2], tcp_dead: ports[3], _program: program }
        };
        Self { envoy: start("envoy"), osier: start("osier"), _backend: backend, _folder: folder }
    }

    /// Where both serve HTTP, Envoy first.
    pub fn http(&self) -> [SocketAddr; 2] {
        [self.envoy.http, self.osier.http]
    }

    /// Sends a case to both.
    pub fn observe(&self, case: &Case) -> (Vec<Observed>, Vec<Observed>) {
        (observe(&self.envoy, case), observe(&self.osier, case))
    }
}

fn observe(proxy: &Proxy, case: &Case) -> Vec<Observed> {
    let address = match case.listener {
        "tcp" => proxy.tcp,
        "tcp-dead" => proxy.tcp_dead,
        _ => proxy.http,
    };
    let mut connection = Connection::open(address);
    let mut seen = Vec::new();
    for request in &case.requests {
        connection.send(request);
        if case.half_close {
            connection.finish();
        }
        let method = String::from_utf8_lossy(request).split(' ').next().unwrap_or("").to_owned();
        loop {
            let Some(response) = connection.receive(&method) else {
                seen.push(Observed::Nothing);
                return seen;
            };
            let informational = (100..200).contains(&response.status()) && response.status() != 101;
            let after = if informational { After::Open } else { connection.after(patience(&response)) };
            seen.push(normalise(response, after));
            if !informational {
                break;
            }
        }
    }
    seen
}

fn patience(response: &Response) -> Duration {
    match response.header("connection") {
        Some(value) if value.eq_ignore_ascii_case("close") => ANNOUNCED,
        _ => MOMENT,
    }
}

/// What the backend saw of the time that was left, which is some milliseconds less in a retry.
const TIME_LEFT: &str = "x-envoy-expected-rq-timeout-ms";

/// The time that was left, up to the next full second.
fn full_seconds(value: &str) -> String {
    value.parse::<u64>().map_or_else(|_| value.to_owned(), |left| (left.div_ceil(1000) * 1000).to_string())
}

/// How many digits that adds to a body of the backend.
fn added_digits(text: &str) -> usize {
    let left = text.lines().find_map(|line| line.strip_prefix(TIME_LEFT)?.strip_prefix(": "));
    left.map_or(0, |left| full_seconds(left).len() - left.len())
}

/// Takes out what differs from run to run: times, ids, ports; and words without a meaning (RFC 9112 4: a client ignores the
/// reason phrase): Envoy knows none for 418.
fn normalise(response: Response, after: After) -> Observed {
    let added = added_digits(&response.text());
    let mut headers: Vec<String> = response
        .headers
        .iter()
        .map(|(name, value)| {
            let value = match name.to_ascii_lowercase().as_str() {
                "date" | "x-envoy-upstream-service-time" | "x-request-id" => "*".to_owned(),
                "content-length" if added > 0 => value
                    .parse::<usize>()
                    .map_or_else(|_| value.clone(), |length| (length + added).to_string()),
                _ => value.clone(),
            };
            format!("{name}: {value}")
        })
        .collect();
    headers.sort();
    let body = response
        .text()
        .lines()
        .map(|line| match line.split_once(": ") {
            Some((name @ "x-request-id", value)) if !value.is_empty() => format!("{name}: *"),
            Some((TIME_LEFT, value)) => format!("{TIME_LEFT}: {}", full_seconds(value)),
            _ => line.to_owned(),
        })
        .collect();
    let trailers = response.trailers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let line = response.line.replace("418 I'm a teapot", "418 Unknown");
    Observed::Answer { line, headers, body, trailers, after }
}
