//! Who is measured. Each subject is started from the file under `config/`, with one worker and kept upstream connections.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use osier_tests::process::{self, Program};
use serde::Serialize;

use crate::mesh::Mesh;

/// A proxy that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// osier-proxy.
    Osier,
    /// Envoy from the Python environment of the tests.
    Envoy,
    /// Two of them that speak HTTP/1.1 to each other, where it matters.
    EnvoyH1,
    /// The same over HTTP/2.
    EnvoyH2,
    /// Debian's haproxy.
    Haproxy,
    /// Debian's nginx.
    Nginx,
    /// A bare TCP relay on tokio.
    Relay,
}

impl Kind {
    /// Those of most rows, in the order in which they take turns.
    pub const USUAL: [Kind; 5] = [Kind::Osier, Kind::Envoy, Kind::Haproxy, Kind::Nginx, Kind::Relay];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Osier => "osier",
            Kind::Envoy => "envoy",
            Kind::EnvoyH1 => "envoy-h1",
            Kind::EnvoyH2 => "envoy-h2",
            Kind::Haproxy => "haproxy",
            Kind::Nginx => "nginx",
            Kind::Relay => "relay",
        }
    }
}

/// Addresses of what is behind the subjects.
#[derive(Debug, Clone, Copy)]
pub struct Targets {
    /// HTTP/1.1.
    pub http1: SocketAddr,
    /// HTTP/2 with prior knowledge.
    pub http2: SocketAddr,
    /// TCP echo.
    pub echo: SocketAddr,
}

/// What a row wants of a subject.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Protocol towards the backend: `http1` or `http2`.
    pub cluster: &'static str,
    /// Filters of Envoy before the router.
    pub rules: String,
    /// How clients are met, as a part of a filter chain; nothing is plaintext.
    pub downstream: String,
    /// How the backend is met, as a part of a cluster.
    pub upstream: String,
}

/// A running subject.
pub struct Subject {
    /// Which one.
    pub kind: Kind,
    /// Its HTTP listener.
    pub http: SocketAddr,
    /// Its TCP listener.
    pub tcp: SocketAddr,
    programs: Vec<Program>,
}

impl Subject {
    /// Starts one in front of `targets`, with one worker.
    pub fn start(kind: Kind, targets: Targets, wanted: &Wanted, folder: &Path) -> Result<Self> {
        let cluster = wanted.cluster;
        let (http, tcp, admin) = (process::free_address(), process::free_address(), process::free_address());
        let fill = |text: &str| {
            let folder = folder.display().to_string();
            let values = [
                ("{{ADMIN}}", admin.port().to_string()),
                ("{{PORT}}", http.port().to_string()),
                ("{{TCP}}", tcp.port().to_string()),
                ("{{BACKEND}}", targets.http1.port().to_string()),
                ("{{BACKEND2}}", targets.http2.port().to_string()),
                ("{{ECHO}}", targets.echo.port().to_string()),
                ("{{CLUSTER}}", cluster.to_owned()),
                ("{{FOLDER}}", folder),
                ("{{RULES}}", wanted.rules.clone()),
                ("{{DOWNSTREAM}}", wanted.downstream.clone()),
                ("{{UPSTREAM}}", wanted.upstream.clone()),
            ];
            values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
        };
        let file = |name: &str, text: &str| -> Result<std::path::PathBuf> {
            let path = folder.join(format!("{}-{}-{name}", kind.name(), http.port()));
            std::fs::write(&path, fill(text)).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        let mut commands = Vec::new();
        match kind {
            Kind::Osier => {
                let mut command = process::own("osier-proxy");
                command.args(["--concurrency", "1", "--config"]);
                command.arg(file("bootstrap.yaml", include_str!("config/osier.yaml"))?);
                commands.push(command);
            }
            Kind::Envoy | Kind::EnvoyH1 | Kind::EnvoyH2 => {
                let mut command = process::part("OSIER_TEST_ENVOY");
                command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"]);
                command.arg(file("bootstrap.yaml", include_str!("config/osier.yaml"))?);
                commands.push(command);
            }
            Kind::Haproxy => {
                let mut command = Command::new("haproxy");
                command
                    .args(["-db", "-q", "-f"])
                    .arg(file("haproxy.cfg", include_str!("config/haproxy.cfg"))?);
                commands.push(command);
            }
            Kind::Nginx => {
                let mut command = Command::new("nginx");
                command.arg("-c").arg(file("nginx.conf", include_str!("config/nginx.conf"))?);
                commands.push(command);
            }
            Kind::Relay => {
                let back = if cluster == "http2" { targets.http2 } else { targets.http1 };
                for (listen, target) in [(http, back), (tcp, targets.echo)] {
                    let mut command = Command::new(std::env::current_exe()?);
                    command.args(["--relay", &listen.to_string(), &target.to_string()]);
                    commands.push(command);
                }
            }
        }
        let mut programs = Vec::new();
        for (number, mut command) in commands.into_iter().enumerate() {
            let name = format!("{}-{}-{number}", kind.name(), http.port());
            programs.push(Program::start(&name, &mut command, folder));
        }
        programs[0].wait_listening(http);
        programs.last_mut().context("a subject has a program")?.wait_listening(tcp);
        Ok(Self { kind, http, tcp, programs })
    }

    /// A client of `mesh`: what runs beside an application. Only Osier and Envoy can be one.
    pub fn start_in_mesh(kind: Kind, mesh: &Mesh) -> Result<Self> {
        let client = if kind == Kind::Osier { mesh.sidecar(1)? } else { mesh.envoy(1)? };
        Ok(Self { kind, http: client.proxy, tcp: client.proxy, programs: vec![client.into_program()] })
    }

    /// All its processes, masters and workers.
    pub fn pids(&self) -> Vec<u32> {
        self.programs.iter().flat_map(|program| process::family(program.pid())).collect()
    }
}
