//! Python's gRPC as a proxyless client (`xds:///`) of osier-pilot.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use osier_tests::process::{self, Program};
use serde::Deserialize;

use crate::mesh::Mesh;

#[derive(Deserialize)]
pub struct Outcome {
    /// How often each server answered.
    pub answers: HashMap<String, u32>,
    /// What the other calls came to.
    pub errors: Vec<String>,
}

fn peer(arguments: &[&str]) -> std::process::Command {
    let mut command = process::part("OSIER_TEST_PYTHON");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/grpc_peer.py")).args(arguments);
    command
}

fn servers(mesh: &Mesh) -> Vec<Program> {
    [1, 2]
        .map(|version| {
            let address = mesh.endpoint(version);
            serve(&format!("v{version}"), address, mesh.folder.path())
        })
        .into()
}

/// The bootstrap of a gRPC library beside a workload.
fn bootstrap(mesh: &Mesh, ip: IpAddr, name: &str) -> String {
    let bootstrap = serde_json::json!({
        "xds_servers": [{
            "server_uri": mesh.xds.to_string(),
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": format!("sidecar~{ip}~{name}.default~default.svc.cluster.local"),
            "metadata": {"NAMESPACE": "default", "GENERATOR": "grpc", "INSTANCE_IPS": ip.to_string()},
        },
        "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
    });
    bootstrap.to_string()
}

/// A server that pilot configures, at an address of its own.
pub fn xds_server(mesh: &Mesh, name: &str, address: SocketAddr) -> Program {
    serve_xds(name, address, &bootstrap(mesh, address.ip(), &format!("echo-{name}")), mesh.folder.path())
}

/// The same with a bootstrap.
pub fn serve_xds(name: &str, address: SocketAddr, bootstrap: &str, folder: &Path) -> Program {
    let mut command = peer(&["serve-xds", name, &address.to_string()]);
    command.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap);
    let mut program = Program::start(name, &mut command, folder);
    program.wait_listening(address);
    program
}

/// A server that nobody configures.
pub fn serve(name: &str, address: SocketAddr, folder: &Path) -> Program {
    let mut program = Program::start(name, &mut peer(&["serve", name, &address.to_string()]), folder);
    program.wait_listening(address);
    program
}

/// Calls a target, again and again.
pub fn call(mesh: &Mesh, target: &str, count: u32) -> Outcome {
    let bootstrap = bootstrap(mesh, Ipv4Addr::LOCALHOST.into(), "client");
    call_with(&["call", target, &count.to_string()], &bootstrap)
}

/// Calls as the arguments say: `call` or `call-xds` (with credentials of the mesh), target, how often, seconds of patience.
pub fn call_with(arguments: &[&str], bootstrap: &str) -> Outcome {
    let output = peer(arguments).env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap).output().expect("Python starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_proxyless_client_follows_the_split() {
    let mesh = Mesh::start("grpc", 75);
    let _servers = servers(&mesh);
    let outcome = call(&mesh, &format!("xds:///echo.default.svc.cluster.local:{}", mesh.port), 400);
    assert_eq!(outcome.errors, Vec::<String>::new());
    let v1 = outcome.answers.get("v1").copied().unwrap_or(0);
    // Four standard deviations around 300 of 400.
    assert!((265..=335).contains(&v1), "{:?}", outcome.answers);
    mesh.assert_nothing_refused();
}

#[test]
fn a_proxyless_client_may_use_the_short_name() {
    let mesh = Mesh::start("grpc", 0);
    let _servers = servers(&mesh);
    let outcome = call(&mesh, &format!("xds:///echo:{}", mesh.port), 20);
    assert_eq!(
        (outcome.errors.len(), outcome.answers.get("v2").copied()),
        (0, Some(20)),
        "{:?}",
        outcome.errors
    );
    mesh.assert_nothing_refused();
}
