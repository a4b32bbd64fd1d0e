//! A security policy that pilot can't enforce closes the workloads that it selects, in front of a stock Envoy and of our own proxy,
//! says so in the access log, and opens them again when it is gone.

use std::net::SocketAddr;
use std::path::Path;

use osier_tests::backend::Backend;
use osier_tests::process::{self, Program};
use osier_tests::{raw, wait};

use crate::client::Client;
use crate::mesh::Mesh;

const CAUSE: &str = "AuthorizationPolicy default/echo is not supported";

/// Closes version 1 of the service.
const POLICY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: echo, namespace: default}
spec:
  selector: {matchLabels: {version: v1}}
  action: DENY
  rules: [{when: [{key: 'experimental.envoy.filters.a.b[c]', values: [d]}]}]
";

/// Lines that are short enough to be told.
const LOG: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: /dev/stdout
    accessLogFormat: 'log %RESPONSE_CODE% %ROUTE_NAME%'
";

/// What a client of the workload sees: status and body, or nothing where the connection is closed.
pub fn ask(workload: SocketAddr, path: &str) -> Option<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {workload}\r\nconnection: close\r\n\r\n");
    let answer = raw::exchange(workload, "GET", request.as_bytes()).filter(|a| a.status() > 0)?;
    Some((answer.status(), answer.text()))
}

fn is_closed_and_opened_again(mesh: &Mesh, proxy: &Program, refused: Option<(u16, String)>) {
    let workload = mesh.endpoint(1);
    let _application = Backend::start_at("app", ([127, 0, 0, 1], mesh.port).into());
    let serves = || ask(workload, "/").is_some_and(|(status, _)| status == 200).then_some(());
    wait::until("the workload answers", serves);
    mesh.save("policy.yaml", POLICY);
    wait::until("the policy closes it", || (ask(workload, "/") == refused).then_some(()));
    let line = format!("log {} {CAUSE}\n", refused.map_or(0, |(status, _)| status));
    // The first may have been one that was open when the policy came.
    wait::until(&line, || {
        let _ = ask(workload, "/");
        proxy.output().contains(&line).then_some(())
    });
    assert!(mesh.get("/debug/configz").1.contains("fails-closed"));
    mesh.remove("policy.yaml");
    wait::until("it is open again", serves);
    mesh.assert_nothing_refused();
}

/// What Istio answers where a policy denies.
pub fn forbidden() -> Option<(u16, String)> {
    Some((403, "RBAC: access denied".into()))
}

/// osier-proxy as the sidecar of version 1.
pub fn osier(mesh: &Mesh) -> Program {
    osier_with_admin(mesh, process::free_address())
}

/// The same with its admin interface at an address.
pub fn osier_with_admin(mesh: &Mesh, admin: SocketAddr) -> Program {
    let workload = mesh.endpoint(1);
    let mut command = process::own("osier-proxy");
    command
        .arg("sidecar")
        .args(["--pilot-address", &mesh.xds.to_string()])
        .args(["--admin-address", &admin.to_string()])
        .args(["--readiness-address", &process::free_address().to_string()])
        .args(["--concurrency", "1"])
        .env("INSTANCE_IP", workload.ip().to_string())
        .env("POD_NAME", "echo-v1")
        .env("POD_NAMESPACE", "default")
        .env("ISTIO_META_INTERCEPTION_MODE", "NONE")
        // Not the only one on this machine.
        .env("PROXY_CONFIG", "{statusPort: 0}");
    let folder: &Path = mesh.folder.path();
    let mut program = Program::start("osier-proxy", &mut command, folder);
    program.wait_listening(workload);
    program
}

#[test]
fn http_behind_envoy() {
    let mesh = Mesh::start_at("http", 100, 5);
    mesh.save("log.yaml", LOG);
    let envoy = Client::envoy_at(&mesh, "DELTA_GRPC", mesh.endpoint_ip(1));
    is_closed_and_opened_again(&mesh, envoy.program(), forbidden());
    envoy.assert_nothing_rejected();
}

#[test]
fn http_behind_osier() {
    let mesh = Mesh::start_at("http", 100, 6);
    mesh.save("log.yaml", LOG);
    let proxy = osier(&mesh);
    is_closed_and_opened_again(&mesh, &proxy, forbidden());
}

#[test]
fn tcp_behind_osier() {
    let mesh = Mesh::start_at("tcp", 100, 3);
    mesh.save("log.yaml", LOG);
    let proxy = osier(&mesh);
    is_closed_and_opened_again(&mesh, &proxy, None);
}

#[test]
fn tcp_behind_envoy() {
    let mesh = Mesh::start_at("tcp", 100, 4);
    mesh.save("log.yaml", LOG);
    let envoy = Client::envoy_at(&mesh, "GRPC", mesh.endpoint_ip(1));
    is_closed_and_opened_again(&mesh, envoy.program(), None);
    envoy.assert_nothing_rejected();
}
