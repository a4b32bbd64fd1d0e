//! External authorizers that are not ours, from the YAML of a CUSTOM policy to what clients get: Python's gRPC, and an HTTP server. In
//! front of osier-proxy, and of a stock Envoy with what pilot sends it.

use std::net::SocketAddr;

use osier_tests::backend::Backend;
use osier_tests::process::{self, Program};
use osier_tests::raw::Response;
use osier_tests::{raw, wait};

use crate::client::Client;
use crate::mesh::Mesh;
use crate::refused::osier;

/// An authorizer's service and provider, and a policy that asks it about everything under `/asked`.
fn asking(guard: SocketAddr, protocol: &str, provider: &str) -> String {
    let (ip, port) = (guard.ip(), guard.port());
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: guard, namespace: default}}
spec: {{clusterIP: 10.96.0.66, ports: [{{name: {protocol}, port: {port}, targetPort: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: guard-1, namespace: default, labels: {{kubernetes.io/service-name: guard}}}}
addressType: IPv4
ports: [{{name: {protocol}, port: {port}, protocol: TCP}}]
endpoints: [{{addresses: [{ip}], conditions: {{ready: true}}}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: istio, namespace: istio-system}}
data:
  mesh: |
    extensionProviders:
    - name: guard
      {provider}:
        service: guard.default.svc.cluster.local
        port: {port}
        timeout: 2s
        statusOnError: '503'
        includeRequestBodyInCheck: {{maxRequestBytes: 1000}}
{}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: asked, namespace: default}}
spec:
  selector: {{matchLabels: {{version: v1}}}}
  action: CUSTOM
  provider: {{name: guard}}
  rules: [{{to: [{{operation: {{paths: ['/asked*'], ports: ['{}']}}}}]}}]
",
        if provider == "envoyExtAuthzHttp" {
            "        includeRequestHeadersInCheck: [x-do]\n        headersToUpstreamOnAllow: [x-user]"
        } else {
            ""
        },
        "PORT"
    )
}

fn send(workload: SocketAddr, path: &str, header: &str, body: &str) -> Response {
    let text = format!(
        "POST {path} HTTP/1.1\r\nhost: {workload}\r\nconnection: close\r\n{header}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    raw::exchange(workload, "POST", text.as_bytes()).expect("an answer")
}

/// Asks until the answer is `wanted`.
fn until(workload: SocketAddr, header: &str, what: &str, wanted: impl Fn(&Response) -> bool) {
    wait::until(what, || wanted(&send(workload, "/asked", header, "")).then_some(()));
}

/// What a gRPC authorizer's answers come to.
fn over_grpc(mesh: &Mesh) {
    let workload = mesh.endpoint(1);
    let _application = Backend::start_at("app", ([127, 0, 0, 1], mesh.port).into());
    let guard = process::free_address();
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/proto");
    let start = || {
        let mut command = process::part("OSIER_TEST_PYTHON");
        command
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/authorizer.py"))
            .args([&guard.to_string(), protos]);
        let mut program = Program::start("authorizer", &mut command, mesh.folder.path());
        program.wait_listening(guard);
        program
    };
    let authorizer = start();
    mesh.save(
        "asking.yaml",
        &asking(guard, "grpc", "envoyExtAuthzGrpc").replace("PORT", &mesh.port.to_string()),
    );
    until(workload, "x-verdict: deny", "the policy is in force", |answer| answer.status() == 401);
    let denied = send(workload, "/asked?x", "x-verdict: deny", "abc");
    assert_eq!(
        (denied.status(), denied.header("x-denied"), &*denied.text()),
        (401, Some("yes"), "POST /asked?x 3")
    );
    let let_in = send(workload, "/asked", "x-verdict: allow\r\nx-user: me", "abc");
    let text = let_in.text();
    assert!(
        let_in.status() == 200 && text.contains("x-user: joe\n") && text.contains("body 3 bytes"),
        "{text}"
    );
    assert!(!text.contains("x-verdict") && !text.contains("x-user: me"), "{text}");
    assert_eq!(send(workload, "/else", "x-verdict: deny", "").status(), 200, "nobody is asked about it");
    for (verdict, status) in [("fail", 503), ("hang", 503)] {
        assert_eq!(
            send(workload, "/asked", &format!("x-verdict: {verdict}"), "").status(),
            status,
            "{verdict}"
        );
    }
    assert_eq!(send(workload, "/asked", "x-verdict: allow", &"x".repeat(5000)).status(), 413);
    assert_eq!(send(workload, "/asked", "x-verdict: die", "").status(), 503, "it dies in the middle");
    assert_eq!(send(workload, "/asked", "x-verdict: allow", "").status(), 503, "and is gone");
    drop(authorizer);
    let _authorizer = start();
    until(workload, "x-verdict: allow", "it is asked again", |answer| answer.status() == 200);
    mesh.assert_nothing_refused();
}

#[test]
fn a_grpc_authorizer_behind_osier() {
    let mesh = Mesh::start_at("http", 100, 31);
    let _proxy = osier(&mesh);
    over_grpc(&mesh);
}

#[test]
fn a_grpc_authorizer_behind_envoy() {
    let mesh = Mesh::start_at("http", 100, 32);
    let envoy = Client::envoy_at(&mesh, "DELTA_GRPC", mesh.endpoint_ip(1));
    over_grpc(&mesh);
    envoy.assert_nothing_rejected();
}

/// What an HTTP authorizer's answers come to.
fn over_http(mesh: &Mesh) {
    let workload = mesh.endpoint(1);
    let _application = Backend::start_at("app", ([127, 0, 0, 1], mesh.port).into());
    let guard = Backend::start("guard");
    let yaml = asking(guard.address, "http", "envoyExtAuthzHttp").replace("PORT", &mesh.port.to_string());
    mesh.save("asking.yaml", &yaml);
    // The application does what `x-do` says, too, as long as nobody is asked.
    let asked = |answer: &Response| answer.text().starts_with("backend guard");
    until(workload, "x-do: status=401", "the policy is in force", asked);
    let denied = send(workload, "/asked", "x-do: status=401", "abc");
    assert!(
        denied.status() == 401 && denied.text().starts_with("backend guard\nPOST /asked HTTP/1.1"),
        "{}",
        denied.text()
    );
    let let_in =
        send(workload, "/asked", "x-do: header=x-user:joe header=x-envoy-auth-headers-to-remove:x-do", "abc");
    assert!(let_in.status() == 200 && let_in.text().contains("x-user: joe\n"), "{}", let_in.text());
    for (script, status) in [("status=500", 503), ("abort", 503), ("sleep=10000", 503)] {
        assert_eq!(send(workload, "/asked", &format!("x-do: {script}"), "").status(), status, "{script}");
    }
    assert_eq!(send(workload, "/asked", "x-do: ", &"x".repeat(5000)).status(), 413);
    assert_eq!(send(workload, "/else", "x-do: ", "").status(), 200);
    mesh.assert_nothing_refused();
}

#[test]
fn an_http_authorizer_behind_osier() {
    let mesh = Mesh::start_at("http", 100, 33);
    let _proxy = osier(&mesh);
    over_http(&mesh);
}

#[test]
fn an_http_authorizer_behind_envoy() {
    let mesh = Mesh::start_at("http", 100, 34);
    let envoy = Client::envoy_at(&mesh, "DELTA_GRPC", mesh.endpoint_ip(1));
    over_http(&mesh);
    envoy.assert_nothing_rejected();
}
