//! A folder of YAML, a pilot on it, and what pilot says of its clients.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use osier_tests::process::{self, Program};
use osier_tests::{raw, wait};

/// Two versions of a service `echo`, each at a loopback address of its own.
pub struct Mesh {
    /// Where pilot serves xDS.
    pub xds: SocketAddr,
    /// Port of the service, and of its endpoints.
    pub port: u16,
    /// Where the processes' files lie.
    pub folder: tempfile::TempDir,
    monitoring: SocketAddr,
    /// Third byte of the endpoints' addresses.
    net: u8,
    pilot: Option<Program>,
}

impl Mesh {
    /// Starts pilot. `protocol` is the port's name (`http`, `grpc`).
    pub fn start(protocol: &str, v1: u32) -> Self {
        Self::start_at(protocol, v1, 0)
    }

    /// The same with the endpoints in 127.88.`net`.0/24, for tests that bind more than the service's port there.
    pub fn start_at(protocol: &str, v1: u32, net: u8) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("source");
        std::fs::create_dir(&source).expect("the test's folder can be written");
        let port = process::free_address().port();
        write(&source, "service.yaml", &service(protocol, port, net));
        write(&source, "rules.yaml", &rules(v1));
        let (xds, monitoring) = (process::free_address(), process::free_address());
        let mut mesh = Self { xds, port, folder, monitoring, net, pilot: None };
        mesh.start_pilot();
        mesh
    }

    /// Starts pilot again, at the same addresses.
    pub fn start_pilot(&mut self) {
        let mut command = process::own("osier-pilot");
        command.arg("--source").arg(self.folder.path().join("source"));
        command.args(["--xds-address", &self.xds.to_string()]);
        command.args(["--monitoring-address", &self.monitoring.to_string()]);
        let mut pilot = Program::start("pilot", &mut command, self.folder.path());
        pilot.wait_listening(self.monitoring);
        self.pilot = Some(pilot);
        wait::until("pilot is ready", || (self.get("/ready").0 == 200).then_some(()));
    }

    /// Ends pilot at once, as a crash does.
    pub fn stop_pilot(&mut self) {
        self.pilot = None;
    }

    /// Address of the endpoint of version 1 or 2.
    pub fn endpoint(&self, version: u8) -> SocketAddr {
        SocketAddr::from((self.endpoint_ip(version), self.port))
    }

    /// The same without its port.
    pub fn endpoint_ip(&self, version: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 88, self.net, version)
    }

    /// Saves another file of YAML.
    pub fn save(&self, name: &str, text: &str) {
        write(&self.folder.path().join("source"), name, text);
    }

    /// Removes a file of YAML.
    pub fn remove(&self, name: &str) {
        let path = self.folder.path().join("source").join(name);
        std::fs::remove_file(path).expect("the test's file is there");
    }

    /// Saves a split.
    pub fn set_split(&self, v1: u32) {
        self.save("rules.yaml", &rules(v1));
    }

    /// `GET` on pilot's monitoring address.
    pub fn get(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: pilot\r\nconnection: close\r\n\r\n");
        raw::exchange(self.monitoring, "GET", request.as_bytes())
            .map_or((0, String::new()), |a| (a.status(), a.text()))
    }

    /// Panics when any client refused anything.
    pub fn assert_nothing_refused(&self) {
        let (_, metrics) = self.get("/metrics");
        let refused: Vec<&str> = metrics
            .lines()
            .filter(|line| line.starts_with("pilot_total_xds_rejects") && !line.ends_with(" 0"))
            .collect();
        assert!(refused.is_empty(), "{refused:?}\n{}", self.get("/debug/syncz").1);
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    let draft = folder.join(format!(".{name}.draft"));
    std::fs::write(&draft, text).expect("the test's folder can be written");
    std::fs::rename(&draft, folder.join(name)).expect("a file can be renamed");
}

fn service(protocol: &str, port: u16, net: u8) -> String {
    let mut text = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: echo, namespace: default}}
spec:
  clusterIP: 10.96.0.10
  selector: {{app: echo}}
  ports: [{{name: {protocol}, port: {port}, targetPort: {port}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: echo-1
  namespace: default
  labels: {{kubernetes.io/service-name: echo}}
addressType: IPv4
ports: [{{name: {protocol}, port: {port}, protocol: TCP}}]
endpoints:
"
    );
    for version in [1, 2] {
        text.push_str(&format!(
            "- addresses: [127.88.{net}.{version}]
  conditions: {{ready: true}}
  targetRef: {{kind: Pod, name: echo-v{version}, namespace: default}}
"
        ));
    }
    for version in [1, 2] {
        text.push_str(&format!(
            "---
apiVersion: v1
kind: Pod
metadata:
  name: echo-v{version}
  namespace: default
  labels: {{app: echo, version: v{version}}}
spec:
  containers: [{{name: app, image: echo}}]
status:
  phase: Running
  podIP: 127.88.{net}.{version}
"
        ));
    }
    text
}

fn rules(v1: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: echo, namespace: default}}
spec:
  host: echo
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: echo, namespace: default}}
spec:
  hosts: [echo]
  http:
  - route:
    - {{destination: {{host: echo, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: echo, subset: v2}}, weight: {}}}
",
        100 - v1
    )
}
