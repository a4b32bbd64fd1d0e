//! Stock Envoy as a client of osier-pilot, state of the world and delta, as an explicit proxy (interception mode NONE).

use std::net::SocketAddr;

use osier_tests::backend::Backend;
use osier_tests::process::{self, Program};
use osier_tests::raw::{self, Response};
use osier_tests::wait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::mesh::Mesh;

/// A running Envoy.
pub struct Envoy {
    proxy: SocketAddr,
    admin: SocketAddr,
    program: Program,
}

impl Envoy {
    /// `api` is GRPC or DELTA_GRPC; `ip` is the node's address, unique on this machine.
    pub fn start(mesh: &Mesh, api: &str, ip: &str) -> Self {
        let admin = process::free_address();
        let bootstrap = format!(
            "node:
  id: sidecar~{ip}~client.default~default.svc.cluster.local
  cluster: client.default
  metadata: {{NAMESPACE: default, INSTANCE_IPS: \"{ip}\", INTERCEPTION_MODE: NONE}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}
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
  - name: xds
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]
",
            admin.port(),
            mesh.xds.port()
        );
        let file = mesh.folder.path().join(format!("envoy-{ip}.yaml"));
        std::fs::write(&file, bootstrap).expect("the test's folder can be written");
        let mut command = process::part("OSIER_TEST_ENVOY");
        command
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"])
            .arg(&file);
        let mut program = Program::start(&format!("envoy-{ip}"), &mut command, mesh.folder.path());
        program.wait_listening(admin);
        let proxy = SocketAddr::new(ip.parse().expect("an address"), 15007);
        program.wait_listening(proxy);
        Self { proxy, admin, program }
    }

    /// The process.
    pub fn program(&self) -> &Program {
        &self.program
    }

    fn get(&self, host: &str) -> Response {
        let request = format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        raw::exchange(self.proxy, "GET", request.as_bytes()).unwrap_or_default()
    }

    /// Which backend answers: `v1`, `v2`, or the status.
    fn ask(&self, host: &str) -> String {
        let answer = self.get(host);
        match answer.text().lines().next().and_then(|line| line.strip_prefix("backend ")) {
            Some(name) if answer.status() == 200 => name.to_owned(),
            _ => answer.status().to_string(),
        }
    }

    /// Panics when it refused anything.
    pub fn assert_nothing_rejected(&self) {
        let request =
            b"GET /stats?filter=update_rejected HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n";
        let text = raw::exchange(self.admin, "GET", request).unwrap_or_default().text();
        let rejected: Vec<&str> =
            text.lines().filter(|line| !line.trim().is_empty() && !line.ends_with(": 0")).collect();
        assert!(rejected.is_empty(), "{rejected:?}");
    }
}

/// Backends on the endpoints' addresses.
fn backends(mesh: &Mesh) -> [Backend; 2] {
    [1, 2].map(|version| Backend::start_at(&format!("v{version}"), mesh.endpoint(version)))
}

fn follows_the_split(api: &str, ip: &str) {
    let mesh = Mesh::start("http", 75);
    let _backends = backends(&mesh);
    let envoy = Envoy::start(&mesh, api, ip);
    let host = format!("echo.default.svc.cluster.local:{}", mesh.port);
    wait::until("the service answers", || (envoy.get(&host).status() == 200).then_some(()));
    let v1 = (0..400).filter(|_| envoy.ask(&host) == "v1").count();
    assert!((265..=335).contains(&v1), "{v1} of 400 went to v1");
    mesh.set_split(0);
    wait::until("the edit is in force", || (0..20).all(|_| envoy.ask(&host) == "v2").then_some(()));
    envoy.assert_nothing_rejected();
    mesh.assert_nothing_refused();
}

#[test]
fn envoy_follows_the_split_in_state_of_the_world() {
    follows_the_split("GRPC", "127.88.1.1");
}

#[test]
fn envoy_follows_the_split_in_delta() {
    follows_the_split("DELTA_GRPC", "127.88.1.2");
}

/// Services come, go and change their rules; after each change Envoy serves what the YAML says, and refuses nothing.
#[test]
fn envoy_takes_a_hundred_random_changes() {
    let mesh = Mesh::start("http", 100);
    let _backends = backends(&mesh);
    let envoys = [Envoy::start(&mesh, "GRPC", "127.88.1.3"), Envoy::start(&mesh, "DELTA_GRPC", "127.88.1.4")];
    let mut random = StdRng::seed_from_u64(7);
    for change in 0..100 {
        let winner = random.random_range(1..=2);
        mesh.set_split(if winner == 1 { 100 } else { 0 });
        let other = format!("other-{}", random.random_range(0..5));
        let host = format!("{other}.example.com:{}", mesh.port);
        let there = random.random_bool(0.6);
        mesh.save(
            &format!("{other}.yaml"),
            &if there { external(&other, mesh.port, winner) } else { String::new() },
        );
        for envoy in &envoys {
            let main = format!("echo.default.svc.cluster.local:{}", mesh.port);
            let (wanted, name) = (format!("v{winner}"), format!("change {change}: echo is v{winner}"));
            wait::until(&name, || (envoy.ask(&main) == wanted).then_some(()));
            let name = format!("change {change}: {other} is {there}");
            wait::until(&name, || ((envoy.ask(&host) == wanted) == there).then_some(()));
        }
    }
    envoys.iter().for_each(Envoy::assert_nothing_rejected);
    mesh.assert_nothing_refused();
}

/// A ServiceEntry whose endpoint is that of a version, with a rule of its own.
fn external(name: &str, port: u16, version: u8) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.example.com]
  ports: [{{number: {port}, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.88.0.{version}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.example.com]
  http:
  - match: [{{uri: {{prefix: /}}}}]
    timeout: 5s
    headers: {{request: {{set: {{x-version: v{version}}}}}}}
    route: [{{destination: {{host: {name}.example.com}}}}]
"
    )
}
