//! The rows: what is measured, for whom, and with which load.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use osier_tests::process::{self, Program};
use osier_tests::raw;

use crate::Arguments;
use crate::keys::{Group, Keys};
use crate::load::{self, Done};
use crate::mesh::{self, Mesh};
use crate::report::Figures;
use crate::subject::{Kind, Subject, Targets, Wanted};
use crate::usage::{Memory, Usage};

/// After this long nothing is left of the start, or of a load: memory that was freed has gone back to the system.
const SETTLED: Duration = Duration::from_secs(5);
/// Services that are asked once.
const FIRST_REQUESTS: u32 = 500;
/// Sidecars that follow an edit.
const FOLLOWERS: u8 = 20;
/// Edits that they follow.
const EDITS: u32 = 50;

/// Rules of the row `authorization`.
const RULES: u32 = 100;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Row {
    /// One hop, 1 KiB, 64 kept connections, saturated.
    Http1,
    /// Two proxies in a line.
    Http1TwoHops,
    /// The same with 64 KiB.
    #[value(name = "http1-64k")]
    Http164k,
    /// A new connection for each request.
    Http1NewConnection,
    /// One hop as in `http1`, behind 100 rules of an AuthorizationPolicy, of which the last matches.
    Authorization,
    /// The same, and each request brings a token signed with RSA, which both subjects keep as verified.
    Tokens,
    /// Two proxies in a line with mutual TLS between them, as sidecars of a mesh are.
    MtlsPair,
    /// Mutual TLS towards clients that open a connection for each request: full handshakes with X25519.
    MtlsHandshakes,
    /// The same with X25519MLKEM768.
    MtlsHandshakesHybrid,
    /// The same with X25519, where each connection resumes the session of one before.
    MtlsResumed,
    /// HTTP/2 on both sides, 64 connections with one stream each.
    Http2,
    /// gRPC unary calls, 4 connections with 16 streams each.
    Grpc,
    /// 1 KiB echo over plain TCP.
    Tcp,
    /// 1,000 requests per second, open loop.
    #[value(name = "latency-1000rps")]
    Latency1000rps,
    /// A sidecar with its xDS stream open (a server with its file), and nothing happens.
    Idle,
    /// Memory of the same right after the start.
    MemoryIdle,
    /// Memory with 1,000 idle connections, upstream ones beside them.
    #[value(name = "memory-1000-connections")]
    Memory1000Connections,
    /// `memory-1000-connections` with mutual TLS towards the clients.
    #[value(name = "memory-1000-mtls-connections")]
    Memory1000MtlsConnections,
    /// Memory of a sidecar in a mesh of 5,000 services with 10 endpoints each, 20 of them in use.
    #[value(name = "memory-5000-services")]
    Memory5000Services,
    /// First requests to services that the sidecar has not used before: what they take longer than the second.
    FirstRequest,
    /// The same with pilot 2 ms away.
    #[value(name = "first-request-2ms")]
    FirstRequest2ms,
    /// From a saved file to answers by it, in each of 20 sidecars.
    Convergence,
}

impl Row {
    /// All rows in the order of the table.
    pub fn all() -> Vec<Row> {
        <Row as clap::ValueEnum>::value_variants().to_vec()
    }

    /// Name on the command line and in reports.
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or(String::new(), |value| value.get_name().to_owned())
    }

    /// Protocol towards the backend.
    fn cluster(self) -> &'static str {
        if matches!(self, Row::Http2 | Row::Grpc) { "http2" } else { "http1" }
    }

    /// Who is measured.
    fn kinds(self) -> &'static [Kind] {
        match self {
            Row::MtlsPair => &[Kind::Osier, Kind::EnvoyH1, Kind::EnvoyH2],
            Row::MtlsHandshakes
            | Row::MtlsHandshakesHybrid
            | Row::MtlsResumed
            | Row::Memory1000MtlsConnections => &[Kind::Osier, Kind::Envoy],
            _ => &Kind::USUAL,
        }
    }

    /// What a subject has to be for this row where it stands alone, or before the backend.
    fn wanted(self, kind: Kind, keys: &Keys) -> Wanted {
        let downstream = match self {
            Row::MtlsPair => keys.server(kind, &["h2", "http/1.1"], Group::X25519, false),
            Row::MtlsHandshakes | Row::Memory1000MtlsConnections => {
                keys.server(kind, &["http/1.1"], Group::X25519, false)
            }
            Row::MtlsHandshakesHybrid => keys.server(kind, &["http/1.1"], Group::Hybrid, false),
            Row::MtlsResumed => keys.server(kind, &["http/1.1"], Group::X25519, true),
            _ => String::new(),
        };
        let rules = match self {
            Row::Authorization => rules(),
            Row::Tokens => keys.token.filter() + &rules(),
            _ => String::new(),
        };
        Wanted { cluster: self.cluster(), rules, downstream, upstream: String::new() }
    }

    /// Why a subject has no figure in this row.
    fn absent(self, kind: Kind) -> Option<&'static str> {
        match (self, kind) {
            (Row::Http2 | Row::Grpc, Kind::Nginx) => {
                Some("nginx has no HTTP/2 upstream with prior knowledge")
            }
            (Row::Authorization | Row::Tokens, Kind::Haproxy | Kind::Nginx | Kind::Relay) => {
                Some("takes no such rules")
            }
            (Row::Idle, Kind::Relay) => Some("a relay has nothing to keep alive"),
            (Row::Memory5000Services | Row::Convergence, Kind::Haproxy | Kind::Nginx | Kind::Relay)
            | (Row::FirstRequest | Row::FirstRequest2ms, Kind::Haproxy | Kind::Nginx | Kind::Relay) => {
                Some("no client of a control plane")
            }
            (Row::FirstRequest | Row::FirstRequest2ms, Kind::Envoy) => {
                Some("subscribes to everything: it asks for nothing at first use")
            }
            (Row::Convergence, Kind::Envoy) => {
                Some("20 Envoys do not fit beside the load on a small machine")
            }
            _ => None,
        }
    }
}

/// The backend: nginx from memory, a gRPC server and a TCP echo.
struct Backend {
    targets: Targets,
    _programs: Vec<Program>,
}

impl Backend {
    fn start(row: Row, folder: &Path) -> Result<Self> {
        let (http1, nginx2, grpc, echo) = (
            process::free_address(),
            process::free_address(),
            process::free_address(),
            process::free_address(),
        );
        std::fs::write(folder.join("64k"), vec![b'x'; 64 * 1024])?;
        let config = include_str!("config/backend.conf")
            .replace("{{FOLDER}}", &folder.display().to_string())
            .replace("{{BACKEND}}", &http1.port().to_string())
            .replace("{{BACKEND2}}", &nginx2.port().to_string())
            .replace("{{BODY}}", &"x".repeat(1024));
        let file = folder.join("backend.conf");
        std::fs::write(&file, config)?;
        let own = |flag: &str, address: std::net::SocketAddr| -> Result<Command> {
            let mut command = Command::new(std::env::current_exe()?);
            command.args([flag, &address.to_string()]);
            Ok(command)
        };
        let mut nginx = Program::start("backend", Command::new("nginx").arg("-c").arg(&file), folder);
        let mut echo_program = Program::start("echo", &mut own("--echo", echo)?, folder);
        let mut grpc_program = Program::start("grpc", &mut own("--grpc", grpc)?, folder);
        nginx.wait_listening(http1);
        echo_program.wait_listening(echo);
        grpc_program.wait_listening(grpc);
        let http2 = if row == Row::Grpc { grpc } else { nginx2 };
        Ok(Self {
            targets: Targets { http1, http2, echo },
            _programs: vec![nginx, echo_program, grpc_program],
        })
    }

    /// Connections that nginx has accepted since its start.
    fn accepted(&self) -> u64 {
        let answer = raw::exchange(self.targets.http1, "GET", b"GET /status HTTP/1.1\r\nhost: bench\r\n\r\n");
        let text = answer.map(|answer| answer.text()).unwrap_or_default();
        text.lines().nth(2).and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }
}

impl Row {
    /// Rows whose sidecars are clients of a control plane, with the number of services that it knows.
    fn services(self) -> Option<u32> {
        match self {
            Row::Idle | Row::MemoryIdle | Row::Convergence => Some(20),
            Row::FirstRequest | Row::FirstRequest2ms => Some(FIRST_REQUESTS),
            Row::Memory5000Services => Some(5000),
            _ => None,
        }
    }

    /// True where a second round would measure the same processes again.
    fn has_one_round(self) -> bool {
        self.services().is_some()
            || matches!(self, Row::Memory1000Connections | Row::Memory1000MtlsConnections)
    }
}

/// Measures one row for all subjects that it applies to, in turns.
pub fn run(row: Row, arguments: &Arguments, time: Duration) -> Result<Vec<Figures>> {
    let folder = tempfile::tempdir()?;
    let backend = Backend::start(row, folder.path())?;
    let mut mesh = row
        .services()
        .map(|services| Mesh::start(folder.path(), backend.targets.http1.port(), services, 10))
        .transpose()?;
    if let (Row::FirstRequest2ms, Some(mesh)) = (row, &mut mesh) {
        mesh.delay(Duration::from_millis(2))?;
    }
    let chosen = |kind: &&Kind| arguments.subjects.is_empty() || arguments.subjects.contains(kind);
    let keys = Keys::new()?;
    let mut figures = Vec::new();
    let mut lines = Vec::new();
    for kind in row.kinds().iter().filter(chosen).copied() {
        match row.absent(kind) {
            Some(reason) => figures.push(Figures::absent(row.name(), kind, reason)),
            None => lines.push(start_line(row, kind, &backend, mesh.as_ref(), &keys, folder.path())?),
        }
    }
    let mut measured: Vec<Vec<Round>> = lines.iter().map(|_| Vec::new()).collect();
    let rounds = if row.has_one_round() { 1 } else { arguments.rounds };
    for _ in 0..rounds {
        if row == Row::Idle {
            measured = idle(&lines)?.into_iter().map(|round| vec![round]).collect();
            continue;
        }
        for (line, rounds) in lines.iter().zip(&mut measured) {
            rounds.push(match &mesh {
                Some(mesh) => mesh_round(row, line, mesh)?,
                None => round(row, line, &backend, &keys, folder.path(), time)?,
            });
        }
    }
    figures.extend(lines.iter().zip(&measured).map(|(line, rounds)| Figures::new(row, line[0].kind, rounds)));
    Ok(figures)
}

/// One subject, or two in a line: the first is the one that is called.
fn start_line(
    row: Row,
    kind: Kind,
    backend: &Backend,
    mesh: Option<&Mesh>,
    keys: &Keys,
    folder: &Path,
) -> Result<Vec<Subject>> {
    if let (Kind::Osier | Kind::Envoy, Some(mesh)) = (kind, mesh) {
        return Ok(vec![Subject::start_in_mesh(kind, mesh)?]);
    }
    let last = Subject::start(kind, backend.targets, &row.wanted(kind, keys), folder)?;
    let targets = Targets { http1: last.http, http2: last.http, ..backend.targets };
    let first = match (row, kind) {
        (Row::Http1TwoHops, _) => Wanted { cluster: "http1", ..Wanted::default() },
        (Row::MtlsPair, Kind::EnvoyH2) => {
            Wanted { cluster: "http2", upstream: keys.client(&["h2"]), ..Wanted::default() }
        }
        (Row::MtlsPair, _) => {
            Wanted { cluster: "http1", upstream: keys.client(&["http/1.1"]), ..Wanted::default() }
        }
        _ => return Ok(vec![last]),
    };
    Ok(vec![Subject::start(kind, targets, &first, folder)?, last])
}

/// Rules in the shape that pilot gives them: a method, a path and a client each.
fn rules() -> String {
    let mut text = String::from(
        "          - name: envoy.filters.http.rbac
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                policies:\n",
    );
    for number in 0..RULES {
        let path = if number + 1 == RULES { "/".to_owned() } else { format!("/service-{number}/") };
        let _ = writeln!(
            text,
            "                  'ns[bench]-policy[p]-rule[{number:03}]':
                    permissions: [{{and_rules: {{rules: [
                      {{or_rules: {{rules: [{{header: {{name: ':method', string_match: {{exact: GET}}}}}}]}}}},
                      {{or_rules: {{rules: [{{url_path: {{path: {{prefix: '{path}'}}}}}}]}}}}]}}}}]
                    principals: [{{and_ids: {{ids: [{{or_ids: {{ids: [{{direct_remote_ip: {{address_prefix: 0.0.0.0, prefix_len: 0}}}}]}}}}]}}}}]"
        );
    }
    text
}

/// What one round measured.
#[derive(Debug, Clone, Default)]
pub struct Round {
    /// What the load did.
    pub done: Done,
    /// What the proxies used for it.
    pub usage: Usage,
    /// What they hold after it.
    pub memory: Memory,
    /// What bulk data cost, in the row that sends it.
    pub bulk: Option<Bulk>,
    /// What each connection holds, in rows of idle ones.
    pub kib_per_connection: Option<f64>,
}

/// Bytes that went through in both directions, and the CPU time for them.
#[derive(Debug, Clone, Copy)]
pub struct Bulk {
    /// Bytes.
    pub bytes: u64,
    /// CPU time of the subject.
    pub cpu: Duration,
}

/// A round of a row with a control plane.
fn mesh_round(row: Row, line: &[Subject], mesh: &Mesh) -> Result<Round> {
    let client = &line[0];
    let done = match row {
        Row::Memory5000Services => mesh::use_services(client.http, 20)?,
        Row::FirstRequest | Row::FirstRequest2ms => mesh::first_requests(client.http, FIRST_REQUESTS)?,
        Row::Convergence => mesh::convergence(mesh, client.http, FOLLOWERS, EDITS)?,
        _ => Done::default(),
    };
    std::thread::sleep(SETTLED);
    Ok(Round { done, memory: Memory::of(&client.pids()), ..Round::default() })
}

/// Connections of the rows of idle ones.
const CONNECTIONS: u32 = 1000;

/// Memory with many connections that were used once.
fn idle_connections(row: Row, subject: &Subject, keys: &Keys) -> Result<Round> {
    let pids = subject.pids();
    let before = Memory::of(&pids);
    let tls = match row {
        Row::Memory1000MtlsConnections => Some(keys.connector(Group::X25519, false)?),
        _ => None,
    };
    let kept = load::idle_connections(subject.http, CONNECTIONS, tls.as_ref())?;
    std::thread::sleep(SETTLED);
    let memory = Memory::of(&pids);
    drop(kept);
    let grown = memory.rss_kib.saturating_sub(before.rss_kib);
    let kib_per_connection = Some(grown as f64 / f64::from(CONNECTIONS));
    Ok(Round { memory, kib_per_connection, ..Round::default() })
}

fn round(
    row: Row,
    line: &[Subject],
    backend: &Backend,
    keys: &Keys,
    folder: &Path,
    time: Duration,
) -> Result<Round> {
    let pids: Vec<u32> = line.iter().flat_map(Subject::pids).collect();
    let first = &line[0];
    if matches!(row, Row::Memory1000Connections | Row::Memory1000MtlsConnections) {
        return idle_connections(row, first, keys);
    }
    send(row, first, keys, folder, Duration::from_secs(1))?;
    let (accepted, before) = (backend.accepted(), Usage::of(&pids)?);
    let done = send(row, first, keys, folder, time)?;
    let usage = Usage::of(&pids)?.since(before);
    let opened = backend.accepted().saturating_sub(accepted + 1);
    let kept = matches!(
        row,
        Row::Http1
            | Row::Authorization
            | Row::Tokens
            | Row::Http1TwoHops
            | Row::MtlsPair
            | Row::Http164k
            | Row::Latency1000rps
    );
    if kept && opened > 256 + done.requests / 100 {
        bail!(
            "{}: {opened} backend connections for {} requests: they are not kept",
            first.kind.name(),
            done.requests
        );
    }
    let bulk = if row == Row::Tcp { Some(bulk(first, &pids, time)?) } else { None };
    Ok(Round { done, usage, memory: Memory::of(&pids), bulk, ..Round::default() })
}

fn bulk(subject: &Subject, pids: &[u32], time: Duration) -> Result<Bulk> {
    let before = Usage::of(pids)?;
    let bytes = load::tcp_bulk(subject.tcp, time)?;
    Ok(Bulk { bytes, cpu: Usage::of(pids)?.since(before).cpu })
}

fn send(row: Row, subject: &Subject, keys: &Keys, folder: &Path, time: Duration) -> Result<Done> {
    match row {
        Row::Http1 | Row::Authorization | Row::Http1TwoHops | Row::MtlsPair => {
            load::http1(subject.http, "/", None, time)
        }
        Row::Tokens => load::http1(subject.http, "/", Some(&keys.token.header()), time),
        Row::MtlsHandshakes => {
            load::new_connections(subject.http, Some(keys.connector(Group::X25519, false)?), time)
        }
        Row::MtlsHandshakesHybrid => {
            load::new_connections(subject.http, Some(keys.connector(Group::Hybrid, false)?), time)
        }
        Row::MtlsResumed => {
            load::new_connections(subject.http, Some(keys.connector(Group::X25519, true)?), time)
        }
        Row::Http164k => load::http1(subject.http, "/64k", None, time),
        Row::Http1NewConnection => load::new_connections(subject.http, None, time),
        Row::Http2 => load::http2(subject.http, 64, 1, None, time),
        Row::Grpc => {
            let message = folder.join("message");
            let mut bytes = vec![0, 0, 0, 4, 0];
            bytes.resize(5 + 1024, b'x');
            std::fs::write(&message, bytes).context("cannot write the message")?;
            load::http2(subject.http, 4, 16, Some(&message), time)
        }
        Row::Tcp => load::tcp(subject.tcp, time),
        Row::Latency1000rps => load::open_loop(subject.http, 1000, time),
        _ => Ok(Done::default()),
    }
}

/// All subjects at once over two minutes: nobody sends anything.
fn idle(lines: &[Vec<Subject>]) -> Result<Vec<Round>> {
    const WATCH: Duration = Duration::from_secs(120);
    let pids: Vec<Vec<u32>> = lines.iter().map(|line| line[0].pids()).collect();
    std::thread::sleep(SETTLED);
    let before: Vec<Usage> = pids.iter().map(|pids| Usage::of(pids)).collect::<Result<_>>()?;
    let started = Instant::now();
    std::thread::sleep(WATCH);
    pids.iter()
        .zip(before)
        .map(|(pids, before)| {
            let done = Done { elapsed: started.elapsed(), ..Done::default() };
            Ok(Round {
                done,
                usage: Usage::of(pids)?.since(before),
                memory: Memory::of(pids),
                ..Round::default()
            })
        })
        .collect()
}
