//! A mesh of real processes on loopback: pilot on a folder of YAML, and sidecars that register their workloads with it.
//!
//! Each process has an address of its own in 127.0.0.0/8 and is started as `osier run` starts it (interception mode NONE), so any
//! number of meshes can run beside each other.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;

use osier_core::registration::{ADMIN_PORT, EXPLICIT_PROXY_PORT, METADATA_KEY, READINESS_PORT, Registration};

use osier_pilot::ca::local::{Local, ROOT};
use osier_pilot::xds::identity::Identity;

use crate::process::{self, Program};
use crate::raw::{self, Response};
use crate::wait;

/// Folder of a pilot's keys, below that of the test.
pub const IDENTITY: &str = "identity";

/// Pilot's own ports, on an address of its own.
const XDS_PORT: u16 = 15010;
const MONITORING_PORT: u16 = 15014;

/// A pilot on a folder of its own.
pub struct Pilot {
    /// Where it serves xDS.
    pub xds: SocketAddr,
    /// Where it serves metrics and debug pages.
    pub monitoring: SocketAddr,
    options: Vec<String>,
    program: Option<Program>,
    starts: u32,
    // After the program, which shows its output at its end.
    folder: tempfile::TempDir,
}

impl Pilot {
    /// Starts one on these files, with further flags.
    pub fn start(files: &[(&str, &str)], options: &[&str]) -> Self {
        let mut pilot = Self::prepare(files);
        pilot.options = options.iter().map(|option| (*option).to_owned()).collect();
        pilot.restart();
        pilot
    }

    fn prepare(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("source")).expect("the test's folder can be written");
        let address = free_loopback(&[XDS_PORT, MONITORING_PORT]).into();
        let (xds, monitoring) =
            (SocketAddr::new(address, XDS_PORT), SocketAddr::new(address, MONITORING_PORT));
        let pilot = Self { xds, monitoring, folder, options: Vec::new(), program: None, starts: 0 };
        files.iter().for_each(|(name, text)| pilot.save(name, text));
        pilot
    }

    /// Starts one that gives certificates. `prepare` gets the folder of its keys before it does.
    pub fn with_identity(files: &[(&str, &str)], prepare: impl FnOnce(&Path)) -> Self {
        let encrypted = process::free_address().to_string();
        let mut pilot = Self::prepare(files);
        let folder = pilot.path().join(IDENTITY);
        Local::make(&folder).expect("a folder of our own");
        prepare(&folder);
        let options = ["--encrypted-xds-address", &encrypted, "--identity-folder", &folder.to_string_lossy()];
        pilot.options = options.map(str::to_owned).to_vec();
        pilot.restart();
        pilot
    }

    /// Where it serves encrypted xDS, and a file with a token of `keys` for a workload of a service account.
    pub fn proof(&self, keys: &Local, registration: &Registration, account: &str) -> (SocketAddr, PathBuf) {
        let own = Local::open(&self.path().join(IDENTITY)).expect("a pilot with an identity");
        let identity =
            Identity { namespace: registration.namespace.as_str().into(), service_account: account.into() };
        let tokens = keys.tokens().expect("a key for tokens");
        let token = tokens.mint(&identity, Duration::from_secs(3600)).expect("a token");
        let file = self.path().join(format!("token-{}", registration.name));
        std::fs::write(&file, token).expect("the test's folder can be written");
        (own.address().expect("an address"), file)
    }

    /// Starts it at the addresses that it has always had.
    pub fn restart(&mut self) {
        self.starts += 1;
        let mut command = process::own("osier-pilot");
        command
            .arg("--source")
            .arg(self.source())
            .arg("--state-file")
            .arg(self.path().join("registrations.json"))
            .args(["--xds-address", &self.xds.to_string()])
            .args(["--monitoring-address", &self.monitoring.to_string()])
            .args(&self.options);
        let mut program = Program::start(&format!("pilot-{}", self.starts), &mut command, self.folder.path());
        program.wait_listening(self.monitoring);
        wait::until("pilot is ready", || (self.get("/ready").status() == 200).then_some(()));
        self.program = Some(program);
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        self.program = None;
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.program.as_ref().expect("pilot is running").pid()
    }

    /// Asks it to end, and waits until it has.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        let mut program = self.program.take().expect("pilot is running");
        program.signal(signal);
        program.wait_end()
    }

    /// Folder for files of the test.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    /// Saves a file of YAML, whole.
    pub fn save(&self, name: &str, text: &str) {
        let draft = self.source().join(format!(".{name}.draft"));
        std::fs::write(&draft, text).expect("the test's folder can be written");
        std::fs::rename(&draft, self.source().join(name)).expect("a file can be renamed");
    }

    /// Removes a file of YAML.
    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.source().join(name)).expect("the file is there");
    }

    /// What it has logged since its last start.
    pub fn log(&self) -> String {
        self.program.as_ref().map(Program::output).unwrap_or_default()
    }

    /// `GET` on the monitoring address; an empty answer when it is not there.
    pub fn get(&self, path: &str) -> Response {
        admin_get(self.monitoring, path)
    }

    /// A page as JSON.
    pub fn page(&self, path: &str) -> serde_json::Value {
        let text = self.get(path).text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }
}

/// A sidecar that registers a workload.
pub struct Sidecar {
    /// What it registers.
    pub registration: Registration,
    /// Its process.
    pub program: Program,
}

impl Sidecar {
    /// Starts one, and waits until it is ready. `app` is the program behind it, on 127.0.0.1; `None` for a pure client.
    pub fn start(pilot: &Pilot, service: &str, version: &str, app: Option<SocketAddr>) -> Self {
        Self::start_with(pilot, service, version, app, |_| ())
    }

    /// The same after `prepare` has had its command.
    pub fn start_with(
        pilot: &Pilot,
        service: &str,
        version: &str,
        app: Option<SocketAddr>,
        prepare: impl FnOnce(&mut std::process::Command),
    ) -> Self {
        let registration = register(service, version, app.map(|app| app.port()));
        let mut command = sidecar(pilot.xds, &registration);
        prepare(&mut command);
        Self::run(pilot, command, registration)
    }

    /// Starts one whose service account is called as its service, with a certificate.
    pub fn secured(pilot: &Pilot, service: &str, app: Option<SocketAddr>) -> Self {
        let registration = register(service, "v1", app.map(|app| app.port()));
        let keys = Local::open(&pilot.path().join(IDENTITY)).expect("a pilot with an identity");
        let (address, token) = pilot.proof(&keys, &registration, service);
        let mut command = sidecar(address, &registration);
        command.arg("--pilot-root-file").arg(keys.file(ROOT)).arg("--token-file").arg(token);
        Self::run(pilot, command, registration)
    }

    fn run(pilot: &Pilot, mut command: std::process::Command, registration: Registration) -> Self {
        let mut program = Program::start(&registration.name, &mut command, pilot.path());
        let readiness = SocketAddr::new(registration.address, READINESS_PORT);
        program.wait_listening(readiness);
        wait::until(&format!("{} is ready", registration.name), || {
            (admin_get(readiness, "/healthz/ready").status() == 200).then_some(())
        });
        Self { registration, program }
    }

    /// Where its explicit HTTP proxy listens.
    pub fn proxy(&self) -> SocketAddr {
        self.registration.explicit_proxy()
    }

    /// Where its admin interface listens.
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::new(self.registration.address, ADMIN_PORT)
    }

    /// `GET` on its admin interface.
    pub fn admin_get(&self, path: &str) -> Response {
        admin_get(self.admin(), path)
    }

    /// `GET http://<host><path>` through it, on a connection of its own, with further header lines.
    pub fn get(&self, host: &str, path: &str, headers: &str) -> Response {
        let request =
            format!("GET http://{host}{path} HTTP/1.1\r\nhost: {host}\r\n{headers}connection: close\r\n\r\n");
        raw::exchange(self.proxy(), "GET", request.as_bytes()).unwrap_or_default()
    }

    /// Which [`crate::backend::Backend`] answers a `GET`: its name, or the status and body of another answer.
    pub fn ask(&self, host: &str) -> String {
        let answer = self.get(host, "/", "");
        let text = answer.text();
        match text.lines().next().and_then(|line| line.strip_prefix("backend ")) {
            Some(name) if answer.status() == 200 => name.to_owned(),
            _ => format!("{} {text}", answer.status()),
        }
    }
}

/// `GET` on an admin interface; an empty answer when nobody listens.
pub fn admin_get(address: SocketAddr, path: &str) -> Response {
    if std::net::TcpStream::connect(address).is_err() {
        return Response::default();
    }
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    raw::exchange(address, "GET", request.as_bytes()).unwrap_or_default()
}

/// A workload at an address of its own.
pub fn register(service: &str, version: &str, app_port: Option<u16>) -> Registration {
    let address = free_loopback(&[ADMIN_PORT, READINESS_PORT, EXPLICIT_PROXY_PORT]);
    Registration {
        name: format!("{service}-{version}-{:08x}", u32::from(address)),
        namespace: "default".into(),
        service: service.into(),
        version: Some(version.into()),
        labels: Default::default(),
        address: address.into(),
        service_account: None,
        app_port,
    }
}

/// The command that `osier run` starts a workload's sidecar with.
pub fn sidecar(pilot: SocketAddr, registration: &Registration) -> std::process::Command {
    let Registration { address, name, namespace, service, version, .. } = registration;
    let json = |value: serde_json::Value| value.to_string();
    let workload = format!("{service}-{}", version.as_deref().unwrap_or_default());
    let mut command = process::own("osier-proxy");
    command
        .args(["sidecar", "--pilot-address", &pilot.to_string(), "--concurrency", "1"])
        .args(["--admin-address", &SocketAddr::new(*address, ADMIN_PORT).to_string()])
        .args(["--readiness-address", &SocketAddr::new(*address, READINESS_PORT).to_string()])
        .env("INSTANCE_IP", address.to_string())
        .env("POD_NAME", name)
        .env("POD_NAMESPACE", namespace)
        .env("ISTIO_META_WORKLOAD_NAME", workload)
        .env("ISTIO_META_INTERCEPTION_MODE", "NONE")
        .env(format!("ISTIO_META_{METADATA_KEY}"), json(serde_json::json!(registration)))
        .env("ISTIO_METAJSON_LABELS", json(serde_json::json!(registration.all_labels())));
    command
}

/// An address in 127.64.0.0/10 on which these ports are free. They stay so: outgoing connections have other addresses.
fn free_loopback(ports: &[u16]) -> Ipv4Addr {
    wait::until("a loopback address with free ports", || {
        let address =
            Ipv4Addr::new(127, rand::random_range(64..128), rand::random(), rand::random_range(1..255));
        ports.iter().all(|port| TcpListener::bind((address, *port)).is_ok()).then_some(address)
    })
}

/// `osier up` on the folder `mesh` of `folder`, and where it serves xDS and monitoring; it is listening.
pub fn osier_up(folder: &Path) -> (Program, SocketAddr, SocketAddr) {
    let (xds, monitoring) = (process::free_address(), process::free_address());
    let mut up = process::own("osier");
    up.arg("up").arg(folder.join("mesh")).args(["--xds-address", &xds.to_string()]);
    up.args(["--monitoring-address", &monitoring.to_string()]);
    let mut pilot = Program::start("up", &mut up, folder);
    pilot.wait_listening(xds);
    (pilot, xds, monitoring)
}

/// A static cluster `xds` of an Envoy bootstrap, as an item of its `clusters`.
pub fn xds_cluster(address: SocketAddr) -> String {
    format!(
        "  - name: xds
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]
",
        address.ip(),
        address.port()
    )
}

/// A DestinationRule with the subsets v1 and v2, by the label `version`.
pub fn subsets(host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {host}, namespace: default}}
spec:
  host: {host}
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
"
    )
}

/// A Kubernetes Service of namespace `default` that selects its workloads by the label `app`.
pub fn service(name: &str, port_name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: {port_name}, port: {port}}}]
"
    )
}

/// A host outside of the mesh.
pub const OUTSIDE: &str = "outside.test";

/// The ServiceEntry of [`OUTSIDE`]: its port 80 is port `target` of this machine.
pub fn outside_entry(target: u16) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: outside, namespace: default}}
spec:
  hosts: [{OUTSIDE}]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {target}}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1}}]
"
    )
}
