//! The demo's mesh: its YAML, its pilot, and one sample process with a sidecar for each instance.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::Child;

use crate::client::Client;
use crate::process;
use crate::run::{Workload, WorkloadSpec};

/// Longest wait for pilot.
const PILOT_READY: Duration = Duration::from_secs(20);

/// Where pilot keeps the keys of the mesh, below the folder of the YAML.
const IDENTITY: &str = ".identity";

/// Longest wait for a sample.
const SAMPLE_READY: Duration = Duration::from_secs(10);

/// `(service, version, how many, what it calls)`.
const SAMPLES: &[(&str, &str, usize, &[&str])] = &[
    ("stock", "v1", 1, &[]),
    ("reviews", "v1", 2, &[]),
    ("reviews", "v2", 1, &[]),
    ("catalog", "v1", 2, &["stock:7070"]),
    ("shop", "v1", 1, &["catalog:7000", "reviews:9080"]),
];

/// `(service, port)`.
const SERVICES: &[(&str, u16)] = &[("shop", 8080), ("catalog", 7000), ("reviews", 9080), ("stock", 7070)];

/// Where traffic from outside goes.
pub const ENTRY: &str = "shop:8080";

/// One running sample with its sidecar.
pub struct Instance {
    /// Service.
    pub service: &'static str,
    /// Version.
    pub version: &'static str,
    /// Port of the sample on 127.0.0.1.
    pub port: u16,
    /// Its sidecar.
    pub workload: Workload,
    program: Child,
}

/// All processes of the demo.
pub struct Mesh {
    folder: PathBuf,
    pilot: Child,
    xds: SocketAddr,
    monitoring: SocketAddr,
    /// Encrypted xDS and certificates; none where the demo runs in plaintext.
    encrypted: Option<SocketAddr>,
    instances: Vec<Instance>,
    client: Workload,
}

impl Mesh {
    /// Writes the YAML and starts everything; ready when each sidecar is.
    pub async fn start(folder: &Path, plaintext: bool) -> Result<Self> {
        std::fs::create_dir_all(folder.join("logs"))
            .with_context(|| format!("cannot make {}", folder.join("logs").display()))?;
        write_services(folder)?;
        write_split(folder, 90)?;
        let (xds, monitoring) = (free_port()?, free_port()?);
        let encrypted = if plaintext { None } else { Some(free_port()?) };
        let pilot = start_pilot(folder, xds, monitoring, encrypted).await?;
        let client = Workload::start(&spec(folder, xds, !plaintext, "visitor", None, None)).await?;
        let mut mesh = Self {
            folder: folder.to_owned(),
            pilot,
            xds,
            monitoring,
            encrypted,
            instances: Vec::new(),
            client,
        };
        for (service, version, count, calls) in SAMPLES {
            for _ in 0..*count {
                let instance = mesh.start_instance(service, version, calls).await?;
                mesh.instances.push(instance);
            }
        }
        Ok(mesh)
    }

    /// The workload that traffic from outside goes through.
    pub fn client(&self) -> &Workload {
        &self.client
    }

    /// All running samples.
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// File with the split of `reviews`.
    pub fn split_file(&self) -> PathBuf {
        self.folder.join("reviews-split.yaml")
    }

    /// Where pilot answers `/debug` and `/metrics`.
    pub fn monitoring(&self) -> SocketAddr {
        self.monitoring
    }

    /// Saves a new split: `v1` percent to version v1, the rest to v2.
    pub fn set_split(&self, v1: u32) -> Result<()> {
        write_split(&self.folder, v1)
    }

    /// Takes one instance of a service out as a rollout does: drain, then end.
    pub async fn stop_one(&mut self, service: &str, version: &str) -> Result<()> {
        let found = self.instances.iter().position(|i| i.service == service && i.version == version);
        let mut instance =
            self.instances.remove(found.with_context(|| format!("no {service} {version} runs"))?);
        instance.workload.leave(Duration::from_secs(15)).await;
        process::end(&mut instance.program, Duration::from_secs(5)).await;
        Ok(())
    }

    /// Ends pilot at once, as a crash would.
    pub async fn kill_pilot(&mut self) -> Result<()> {
        self.pilot.kill().await.context("cannot end pilot")
    }

    /// Starts pilot again at the same addresses.
    pub async fn restart_pilot(&mut self) -> Result<()> {
        self.pilot = start_pilot(&self.folder, self.xds, self.monitoring, self.encrypted).await?;
        Ok(())
    }

    /// Ends all processes: programs first, sidecars without waiting for a drain that nobody needs any more, pilot last.
    pub async fn stop(&mut self) {
        for instance in &mut self.instances {
            let _ = instance.program.kill().await;
        }
        self.instances.clear();
        let _ = self.pilot.kill().await;
    }

    async fn start_instance(
        &self,
        service: &'static str,
        version: &'static str,
        calls: &[&str],
    ) -> Result<Instance> {
        let port = free_port()?.port();
        let spec = spec(&self.folder, self.xds, self.encrypted.is_some(), service, Some(version), Some(port));
        let workload = Workload::start(&spec).await.with_context(|| format!("{service} {version}"))?;
        let mut command = process::internal(&["sample", "--name", service, "--version", version])?;
        command.args(["--port", &port.to_string()]).envs(workload.environment());
        for call in calls {
            command.args(["--call", call]);
        }
        let program = command.spawn().context("cannot start a sample")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let deadline = Instant::now() + SAMPLE_READY;
        while tokio::net::TcpStream::connect(address).await.is_err() {
            if Instant::now() > deadline {
                bail!("{service} {version} does not listen on {address} after {} s", SAMPLE_READY.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Instance { service, version, port, workload, program })
    }
}

fn spec(
    folder: &Path,
    pilot: SocketAddr,
    encrypted: bool,
    service: &str,
    version: Option<&str>,
    port: Option<u16>,
) -> WorkloadSpec {
    let log = format!("{service}{}.log", version.map_or(String::new(), |version| format!("-{version}")));
    WorkloadSpec {
        service: service.to_owned(),
        version: version.map(str::to_owned),
        namespace: "default".into(),
        labels: Default::default(),
        app_port: port,
        pilot,
        service_account: service.to_owned(),
        identity_folder: encrypted.then(|| folder.join(IDENTITY)),
        log: Some(folder.join("logs").join(log)),
    }
}

async fn start_pilot(
    folder: &Path,
    xds: SocketAddr,
    monitoring: SocketAddr,
    encrypted: Option<SocketAddr>,
) -> Result<Child> {
    let encrypted: Vec<OsString> = match encrypted {
        Some(address) => vec![
            "--encrypted-xds-address".into(),
            address.to_string().into(),
            "--identity-folder".into(),
            folder.join(IDENTITY).into(),
        ],
        None => Vec::new(),
    };
    let log = std::fs::File::options().create(true).append(true).open(folder.join("logs/pilot.log"))?;
    let mut pilot = process::internal(&["pilot", "--source"])?
        .arg(folder)
        .arg("--state-file")
        .arg(folder.join(crate::up::STATE_FILE))
        .args(["--xds-address", &xds.to_string(), "--monitoring-address", &monitoring.to_string()])
        .args(encrypted)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot start pilot")?;
    let client = Client::direct();
    let deadline = Instant::now() + PILOT_READY;
    while Instant::now() < deadline {
        if let Some(status) = pilot.try_wait()? {
            bail!("pilot ended at its start ({status}); see {}", folder.join("logs/pilot.log").display());
        }
        if client.get(&monitoring.to_string(), "/ready").await.is_ok_and(|answer| answer.status == 200) {
            return Ok(pilot);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!(
        "pilot is not ready after {} s; see {}",
        PILOT_READY.as_secs(),
        folder.join("logs/pilot.log").display()
    )
}

/// A port on 127.0.0.1 that was free a moment ago.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn write_services(folder: &Path) -> Result<()> {
    let services: Vec<String> = SERVICES
        .iter()
        .map(|(name, port)| {
            format!(
                "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  \
                 selector:\n    app: {name}\n  ports:\n  - name: http\n    port: {port}\n"
            )
        })
        .collect();
    write_whole(&folder.join("services.yaml"), &services.join("---\n"))
}

fn write_split(folder: &Path, v1: u32) -> Result<()> {
    let text = format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: reviews
  namespace: default
spec:
  host: reviews
  subsets:
  - name: v1
    labels:
      version: v1
  - name: v2
    labels:
      version: v2
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
  namespace: default
spec:
  hosts:
  - reviews
  http:
  - route:
    - destination:
        host: reviews
        subset: v1
      weight: {v1}
    - destination:
        host: reviews
        subset: v2
      weight: {}
",
        100 - v1
    );
    write_whole(&folder.join("reviews-split.yaml"), &text)
}

/// Writes a file so that a reader sees the old content or the new, never half of it.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).with_context(|| format!("cannot write {}", draft.display()))?;
    std::fs::rename(&draft, path).with_context(|| format!("cannot write {}", path.display()))
}
