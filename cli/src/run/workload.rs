//! A workload of the mesh without Kubernetes: an address of its own and a sidecar process that registers it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use osier_core::registration::{ADMIN_PORT, EXPLICIT_PROXY_PORT, READINESS_PORT, Registration};
use tokio::process::Child;

use osier_pilot::xds::identity::Identity;

use crate::client::Client;
use crate::identity::{self, Proof};
use crate::process;

/// How long a sidecar may take to become ready.
const READY: Duration = Duration::from_secs(20);

/// After this long it is said what is waited for.
const SLOW: Duration = Duration::from_secs(2);

/// What to start.
#[derive(Debug, Clone)]
pub struct WorkloadSpec {
    /// Service (label `app`).
    pub service: String,
    /// Label `version`.
    pub version: Option<String>,
    /// Namespace.
    pub namespace: String,
    /// Further labels.
    pub labels: BTreeMap<String, String>,
    /// Port of the program on 127.0.0.1; none for a pure client.
    pub app_port: Option<u16>,
    /// Where pilot serves xDS.
    pub pilot: SocketAddr,
    /// Who it is to others.
    pub service_account: String,
    /// Where pilot keeps what proves that; `None` for a workload without a certificate.
    pub identity_folder: Option<PathBuf>,
    /// File for the sidecar's messages; our standard error without one.
    pub log: Option<PathBuf>,
}

/// A running sidecar and the registration that lives with it.
pub struct Workload {
    registration: Registration,
    sidecar: Child,
}

impl Workload {
    /// Starts the sidecar and waits until it is ready.
    pub async fn start(spec: &WorkloadSpec) -> Result<Self> {
        let registration = registration(spec)?;
        let mut workload = Self { sidecar: start_sidecar(spec, &registration)?, registration };
        workload.wait_ready(spec.pilot).await?;
        Ok(workload)
    }

    /// The workload's own address.
    pub fn address(&self) -> IpAddr {
        self.registration.address
    }

    /// Name of its WorkloadEntry.
    pub fn name(&self) -> &str {
        &self.registration.name
    }

    /// Where its explicit HTTP proxy listens.
    pub fn explicit_proxy(&self) -> SocketAddr {
        self.registration.explicit_proxy()
    }

    /// Where its admin interface listens.
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::new(self.address(), ADMIN_PORT)
    }

    /// Environment for a program that is to use the sidecar.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let proxy = format!("http://{}", self.explicit_proxy());
        // The address beside its network: not every HTTP library knows networks here.
        let direct = "localhost,127.0.0.1,127.0.0.0/8".to_owned();
        vec![
            ("http_proxy", proxy.clone()),
            ("HTTP_PROXY", proxy),
            ("no_proxy", direct.clone()),
            ("NO_PROXY", direct),
        ]
    }

    /// Waits for the end of the sidecar, which nobody asked for.
    pub async fn sidecar_ended(&mut self) -> String {
        match self.sidecar.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Drains the sidecar and ends it; the registration goes with it.
    pub async fn leave(&mut self, patience: Duration) {
        if !process::end(&mut self.sidecar, patience).await {
            eprintln!(
                "osier: the sidecar of {} did not drain within {} s and was ended",
                self.name(),
                patience.as_secs()
            );
        }
    }

    async fn wait_ready(&mut self, pilot: SocketAddr) -> Result<()> {
        let client = Client::direct();
        let host = SocketAddr::new(self.address(), READINESS_PORT).to_string();
        let started = Instant::now();
        let (deadline, mut said) = (started + READY, false);
        let mut last = "it does not answer".to_owned();
        while Instant::now() < deadline {
            if !said && started.elapsed() > SLOW {
                said = true;
                eprintln!("osier: waiting for pilot at {pilot}; `osier up DIR` starts one");
            }
            if let Some(status) = self.sidecar.try_wait()? {
                bail!("the sidecar ended at its start ({status}); its messages say why");
            }
            match client.get(&host, "/healthz/ready").await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => last = answer.body_text().trim().to_owned(),
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!(
            "the sidecar is not ready after {} s ({last}); is pilot running at {pilot}? `osier up DIR` starts one",
            READY.as_secs()
        )
    }
}

fn registration(spec: &WorkloadSpec) -> Result<Registration> {
    let suffix: u32 = rand::random_range(0..0x10_0000);
    let version = spec.version.as_deref().map_or(String::new(), |version| format!("-{version}"));
    Ok(Registration {
        name: format!("{}{version}-{suffix:05x}", spec.service),
        namespace: spec.namespace.clone(),
        service: spec.service.clone(),
        version: spec.version.clone(),
        labels: spec.labels.clone(),
        address: free_address()?,
        service_account: None,
        app_port: spec.app_port,
    })
}

/// An address in 127.64.0.0/10 on which the sidecar's own ports are free.
fn free_address() -> Result<IpAddr> {
    for _ in 0..64 {
        let address =
            Ipv4Addr::new(127, rand::random_range(64..128), rand::random(), rand::random_range(1..255));
        let free = |port| TcpListener::bind((address, port)).is_ok();
        if [ADMIN_PORT, READINESS_PORT, EXPLICIT_PROXY_PORT].into_iter().all(free) {
            return Ok(address.into());
        }
    }
    bail!(
        "found no free address in 127.64.0.0/10: do other programs listen on 0.0.0.0:{ADMIN_PORT}, :{EXPLICIT_PROXY_PORT} or :{READINESS_PORT}?"
    )
}

fn start_sidecar(spec: &WorkloadSpec, registration: &Registration) -> Result<Child> {
    registration.check().map_err(anyhow::Error::msg)?;
    let address = registration.address;
    let mut command = process::internal(&["proxy", "sidecar"])?;
    let identity = Identity {
        namespace: registration.namespace.as_str().into(),
        service_account: spec.service_account.as_str().into(),
    };
    let proof = match &spec.identity_folder {
        Some(folder) => identity::proof(folder, &registration.name, &identity)?,
        None => None,
    };
    if let Some(Proof { roots, token, .. }) = &proof {
        command.arg("--pilot-root-file").arg(roots).arg("--token-file").arg(token);
    }
    let pilot = proof.as_ref().map_or(spec.pilot, |proof| proof.pilot);
    command
        .args(["--pilot-address", &pilot.to_string()])
        .env("SERVICE_ACCOUNT", &spec.service_account)
        .args(["--admin-address", &SocketAddr::new(address, ADMIN_PORT).to_string()])
        .args(["--readiness-address", &SocketAddr::new(address, READINESS_PORT).to_string()])
        .args(["--concurrency", "1"])
        .env("INSTANCE_IP", address.to_string())
        .env("POD_NAME", &registration.name)
        .env("POD_NAMESPACE", &registration.namespace)
        .env("ISTIO_META_WORKLOAD_NAME", workload_name(registration))
        .env("ISTIO_META_INTERCEPTION_MODE", "NONE")
        .env("ISTIO_META_OSIER_REGISTER", serde_json::to_string(registration)?)
        .env("ISTIO_METAJSON_LABELS", serde_json::to_string(&registration.all_labels())?)
        // Ctrl-C in a terminal goes to the whole group; the sidecar is told once, by us, and drains.
        .process_group(0);
    // Its standard output is where access logs go by the usual setting; the program's own stays the program's.
    match &spec.log {
        Some(path) => {
            let open = || std::fs::File::options().create(true).append(true).open(path);
            let file = open().with_context(|| format!("cannot write {}", path.display()))?;
            command.stdout(file.try_clone()?).stderr(file);
        }
        None => {
            command.stdout(io::stderr().as_fd().try_clone_to_owned()?);
        }
    }
    command.spawn().context("cannot start the sidecar")
}

/// What a Deployment would be called: service and version.
fn workload_name(registration: &Registration) -> String {
    match &registration.version {
        Some(version) => format!("{}-{version}", registration.service),
        None => registration.service.clone(),
    }
}
