//! A proxy that takes an Envoy bootstrap, as a client of osier-pilot and an explicit proxy (interception mode NONE).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use osier_tests::backend::Backend;
use osier_tests::mesh::xds_cluster;
use osier_tests::process::{self, Program};
use osier_tests::raw::{self, Response};
use osier_tests::wait;

use crate::mesh::Mesh;

/// A running proxy.
pub struct Client {
    proxy: SocketAddr,
    admin: SocketAddr,
    program: Program,
}

impl Client {
    /// Envoy; `last` makes its address unique on this machine.
    pub fn envoy(mesh: &Mesh, api: &str, last: u8) -> Self {
        Self::envoy_at(mesh, api, [127, 88, 1, last].into())
    }

    /// Envoy at an address. `api` is GRPC or DELTA_GRPC.
    pub fn envoy_at(mesh: &Mesh, api: &str, ip: Ipv4Addr) -> Self {
        Self::start("envoy", envoy_command(), mesh, api, ip)
    }

    /// osier-proxy; `last` as with Envoy.
    pub fn osier(mesh: &Mesh, api: &str, last: u8) -> Self {
        let mut command = process::own("osier-proxy");
        command.arg("--config");
        Self::start("osier-proxy", command, mesh, api, [127, 88, 1, last].into())
    }

    /// Envoy with a node and clusters of its own, as parts of a bootstrap.
    pub fn envoy_with(folder: &Path, api: &str, ip: Ipv4Addr, node: &str, clusters: &str) -> Self {
        Self::start_with("envoy", envoy_command(), folder, api, ip, node, clusters)
    }

    fn start(program: &str, command: Command, mesh: &Mesh, api: &str, ip: Ipv4Addr) -> Self {
        let node = format!(
            "node:
  id: sidecar~{ip}~client.default~default.svc.cluster.local
  cluster: client.default
  metadata: {{NAMESPACE: default, INSTANCE_IPS: \"{ip}\", INTERCEPTION_MODE: NONE}}
"
        );
        Self::start_with(program, command, mesh.folder.path(), api, ip, &node, &xds_cluster(mesh.xds))
    }

    fn start_with(
        program: &str,
        mut command: Command,
        folder: &Path,
        api: &str,
        ip: Ipv4Addr,
        node: &str,
        clusters: &str,
    ) -> Self {
        let admin = process::free_address();
        let bootstrap = format!(
            "{node}admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}
dynamic_resources:
  ads_config:
    api_type: {api}
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
  cds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
  lds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
static_resources:
  clusters:
{clusters}",
            admin.port(),
        );
        let name = format!("{program}-{ip}");
        let file = folder.join(format!("{name}.yaml"));
        std::fs::write(&file, bootstrap).expect("the test's folder can be written");
        let mut program = Program::start(&name, command.arg(&file), folder);
        program.wait_listening(admin);
        let proxy = SocketAddr::from((ip, 15007));
        program.wait_listening(proxy);
        Self { proxy, admin, program }
    }

    /// The process.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// `GET` through the proxy.
    pub fn get(&self, host: &str) -> Response {
        let request = format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        raw::exchange(self.proxy, "GET", request.as_bytes()).unwrap_or_default()
    }

    /// Which backend answers: `v1`, `v2`, or the status.
    pub fn ask(&self, host: &str) -> String {
        let answer = self.get(host);
        match answer.text().lines().next().and_then(|line| line.strip_prefix("backend ")) {
            Some(name) if answer.status() == 200 => name.to_owned(),
            _ => answer.status().to_string(),
        }
    }

    /// Panics when it refused anything.
    pub fn assert_nothing_rejected(&self) {
        let request =
            b"GET /stats?filter=update_rejected HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let text = raw::exchange(self.admin, "GET", request).unwrap_or_default().text();
        let rejected: Vec<&str> =
            text.lines().filter(|line| !line.trim().is_empty() && !line.ends_with(": 0")).collect();
        assert!(rejected.is_empty(), "{rejected:?}");
    }
}

fn envoy_command() -> Command {
    let mut command = process::part("OSIER_TEST_ENVOY");
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"]);
    command
}

/// Backends on the endpoints' addresses.
pub fn backends(mesh: &Mesh) -> [Backend; 2] {
    [1, 2].map(|version| Backend::start_at(&format!("v{version}"), mesh.endpoint(version)))
}

/// The client serves the split that the YAML says, and another one after an edit.
pub fn follows_the_split(mesh: &Mesh, client: &Client) {
    let host = format!("echo.default.svc.cluster.local:{}", mesh.port);
    wait::until("the service answers", || (client.get(&host).status() == 200).then_some(()));
    let v1 = (0..400).filter(|_| client.ask(&host) == "v1").count();
    // Four standard deviations around 300 of 400.
    assert!((265..=335).contains(&v1), "{v1} of 400 went to v1");
    mesh.set_split(0);
    wait::until("the edit is in force", || (0..20).all(|_| client.ask(&host) == "v2").then_some(()));
    client.assert_nothing_rejected();
    mesh.assert_nothing_refused();
}
