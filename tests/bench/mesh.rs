//! The rows that need a control plane: a pilot on a folder of generated services, and clients of it.
//!
//! Every endpoint is an address of 127.0.0.0/8 with the backend's port, so one backend answers for the whole mesh.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use osier_core::registration::{ADMIN_PORT, READINESS_PORT};
use osier_tests::process::{self, Program};
use osier_tests::{raw, wait};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::load::{self, Done};

/// Port of an explicit HTTP proxy on its workload's address.
const EXPLICIT_PROXY: u16 = 15007;

/// Worker threads of each client: what Istio gives a sidecar by default.
const CONCURRENCY: &str = "2";

/// Longest wait for an edit to be in force.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pilot and the folder that it reads.
pub struct Mesh {
    source: PathBuf,
    folder: PathBuf,
    xds: SocketAddr,
    programs: Vec<Program>,
}

impl Mesh {
    /// Starts pilot on `services` services with `endpoints` endpoints each, all of them the backend's `port`.
    pub fn start(folder: &Path, port: u16, services: u32, endpoints: u32) -> Result<Self> {
        let source = folder.join("source");
        std::fs::create_dir_all(&source)?;
        for (number, services) in
            (0..services).collect::<Vec<_>>().chunks(250).map(<[u32]>::to_vec).enumerate()
        {
            let text: String = services.iter().map(|service| definition(*service, endpoints, port)).collect();
            std::fs::write(source.join(format!("services-{number}.yaml")), text)?;
        }
        let (xds, monitoring) = (process::free_address(), process::free_address());
        let mut command = process::own("osier-pilot");
        command.arg("--source").arg(&source).args(["--xds-address", &xds.to_string()]);
        command.args(["--monitoring-address", &monitoring.to_string()]);
        let mut pilot = Program::start("pilot", &mut command, folder);
        pilot.wait_listening(monitoring);
        wait::until("pilot is ready", || {
            let ready = raw::exchange(
                monitoring,
                "GET",
                b"GET /ready HTTP/1.1\r\nhost: pilot\r\nconnection: close\r\n\r\n",
            )?;
            (ready.status() == 200).then_some(())
        });
        Ok(Self { source, folder: folder.to_owned(), xds, programs: vec![pilot] })
    }

    /// From now on clients reach pilot through a relay that holds everything back for `delay`, each way.
    pub fn delay(&mut self, delay: Duration) -> Result<()> {
        let listen = process::free_address();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--relay", &listen.to_string(), &self.xds.to_string()]);
        command.args(["--relay-delay-ms", &delay.as_millis().to_string()]);
        let mut relay = Program::start("delay", &mut command, &self.folder);
        relay.wait_listening(listen);
        self.programs.push(relay);
        self.xds = listen;
        Ok(())
    }

    /// Starts an osier sidecar with an address of its own.
    pub fn sidecar(&self, number: u8) -> Result<Client> {
        let ip = Ipv4Addr::new(127, 88, 1, number);
        let mut command = process::own("osier-proxy");
        command.args(["sidecar", "--concurrency", CONCURRENCY, "--pilot-address", &self.xds.to_string()]);
        for (flag, port) in [("--admin-address", ADMIN_PORT), ("--readiness-address", READINESS_PORT)] {
            command.args([flag, &SocketAddr::from((ip, port)).to_string()]);
        }
        command.env("INSTANCE_IP", ip.to_string()).env("POD_NAME", format!("client-{number}"));
        command.env("POD_NAMESPACE", "default").env("ISTIO_META_INTERCEPTION_MODE", "NONE");
        // Not the only one on this machine.
        command.env("PROXY_CONFIG", "{statusPort: 0}");
        Client::start(command, &format!("sidecar-{number}"), ip, &self.folder)
    }

    /// Starts Envoy as a client that subscribes to everything.
    pub fn envoy(&self, number: u8) -> Result<Client> {
        let ip = Ipv4Addr::new(127, 88, 2, number);
        let bootstrap = include_str!("config/envoy-mesh.yaml")
            .replace("{{IP}}", &ip.to_string())
            .replace("{{ADMIN}}", &process::free_address().port().to_string())
            .replace("{{XDS}}", &self.xds.port().to_string());
        let file = self.folder.join(format!("envoy-{number}.yaml"));
        std::fs::write(&file, bootstrap)?;
        let mut command = process::part("OSIER_TEST_ENVOY");
        command.args(["--concurrency", CONCURRENCY, "--disable-hot-restart", "--log-level", "error", "-c"]);
        Client::start(
            {
                command.arg(file);
                command
            },
            &format!("envoy-{number}"),
            ip,
            &self.folder,
        )
    }

    /// Saves a file as an editor does: whole, by renaming.
    fn save(&self, name: &str, text: &str) -> Result<()> {
        let draft = self.folder.join("draft");
        std::fs::write(&draft, text)?;
        std::fs::rename(draft, self.source.join(name)).context("cannot save")
    }
}

/// A sidecar with an explicit HTTP proxy.
pub struct Client {
    /// Where its explicit proxy listens.
    pub proxy: SocketAddr,
    program: Program,
}

impl Client {
    fn start(mut command: Command, name: &str, ip: Ipv4Addr, folder: &Path) -> Result<Self> {
        let mut program = Program::start(name, &mut command, folder);
        let proxy = SocketAddr::new(IpAddr::V4(ip), EXPLICIT_PROXY);
        program.wait_listening(proxy);
        Ok(Self { proxy, program })
    }

    /// The process; handed over to whoever measures it.
    pub fn into_program(self) -> Program {
        self.program
    }
}

/// Sends one request to each of the first `count` services; all must be answered.
pub fn use_services(proxy: SocketAddr, count: u32) -> Result<Done> {
    load::run(async {
        let mut stream = TcpStream::connect(proxy).await?;
        for service in 0..count {
            if !ask(&mut stream, &host(service)).await?.starts_with("http/1.1 200") {
                bail!("{} is not answered", host(service));
            }
        }
        Ok(Done::default())
    })
}

/// First requests to `count` services that were never used, on a kept connection: the time that each took longer than the
/// second request to the same service.
pub fn first_requests(proxy: SocketAddr, count: u32) -> Result<Done> {
    load::run(async {
        let mut stream = TcpStream::connect(proxy).await?;
        stream.set_nodelay(true)?;
        let mut done = Done::default();
        let begin = Instant::now();
        for service in 0..count {
            let mut times = [Duration::ZERO; 2];
            for time in &mut times {
                let started = Instant::now();
                let head = ask(&mut stream, &host(service)).await?;
                *time = started.elapsed();
                match head.starts_with("http/1.1 200") {
                    true => done.requests += 1,
                    false => done.errors += 1,
                }
            }
            done.latencies.push(times[0].saturating_sub(times[1]));
        }
        done.latencies.sort_unstable();
        done.elapsed = begin.elapsed();
        Ok(done)
    })
}

/// Saves `edits` versions of a VirtualService and measures the time until the answers of `first`, and of more sidecars up to
/// `count`, carry the new one. Each is asked every few milliseconds, so a figure is late by that much at most.
pub fn convergence(mesh: &Mesh, first: SocketAddr, count: u8, edits: u32) -> Result<Done> {
    let others: Vec<Client> = (2..=count).map(|number| mesh.sidecar(number)).collect::<Result<_>>()?;
    let proxies: Vec<SocketAddr> =
        std::iter::once(first).chain(others.iter().map(|client| client.proxy)).collect();
    follow(mesh, &proxies, edits)
}

fn follow(mesh: &Mesh, proxies: &[SocketAddr], edits: u32) -> Result<Done> {
    const PROBE: Duration = Duration::from_millis(4);
    load::run(async {
        let mut done = Done::default();
        let begin = Instant::now();
        let mut streams = Vec::new();
        for proxy in proxies {
            let stream = TcpStream::connect(proxy).await?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        for edit in 0..edits {
            mesh.save("edited.yaml", &edited(edit))?;
            let saved = Instant::now();
            let wanted = format!("x-edit: {edit}\r\n");
            let seen = streams.iter_mut().map(|stream| async {
                loop {
                    if ask(stream, &host(0)).await?.contains(&wanted) {
                        return anyhow::Ok(saved.elapsed());
                    }
                    if saved.elapsed() > PATIENCE {
                        bail!("edit {edit} is not in force after {PATIENCE:?}");
                    }
                    tokio::time::sleep(PROBE).await;
                }
            });
            for time in futures_util::future::join_all(seen).await {
                done.latencies.push(time?);
                done.requests += 1;
            }
        }
        done.latencies.sort_unstable();
        done.elapsed = begin.elapsed();
        Ok(done)
    })
}

/// Asks an explicit proxy for `http://host/` and returns the head of the answer in lower case.
async fn ask(stream: &mut TcpStream, host: &str) -> Result<String> {
    stream.write_all(format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await?;
    load::read_answer(stream, &mut vec![0; 8192]).await
}

fn host(service: u32) -> String {
    format!("service-{service}.default")
}

/// A Service and its EndpointSlice as Kubernetes writes them.
fn definition(service: u32, endpoints: u32, port: u16) -> String {
    let (third, fourth) = (service / 250, service % 250 + 1);
    let mut text = format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: service-{service}, namespace: default}}
spec:
  clusterIP: 10.{}.{third}.{fourth}
  selector: {{app: service-{service}}}
  ports: [{{name: http, port: 80, targetPort: {port}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: service-{service}-x, namespace: default, labels: {{kubernetes.io/service-name: service-{service}}}}}
addressType: IPv4
ports: [{{name: http, port: {port}, protocol: TCP}}]
endpoints:
",
        96
    );
    for endpoint in 0..endpoints {
        let _ = writeln!(
            text,
            "- {{addresses: [127.{}.{third}.{fourth}], conditions: {{ready: true}}}}",
            100 + endpoint
        );
    }
    text
}

fn edited(edit: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edited, namespace: default}}
spec:
  hosts: [service-0]
  http:
  - route: [{{destination: {{host: service-0}}}}]
    headers: {{response: {{set: {{x-edit: \"{edit}\"}}}}}}
"
    )
}
