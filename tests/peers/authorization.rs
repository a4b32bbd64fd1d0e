//! AuthorizationPolicies in force: in front of a stock Envoy, of osier-proxy, and in a gRPC server without a proxy.

use std::net::SocketAddr;

use osier_tests::backend::Backend;
use osier_tests::mesh::admin_get;
use osier_tests::process;
use osier_tests::raw::{self, After, Connection};
use osier_tests::tokens::{Signer, set};
use osier_tests::wait;

use crate::client::Client;
use crate::grpc;
use crate::mesh::Mesh;
use crate::refused::{ask, forbidden, osier, osier_with_admin};

/// How long a connection that must stay open is watched.
const MOMENT: std::time::Duration = std::time::Duration::from_millis(300);

fn policy(name: &str, action: &str, rule: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: default}}
spec:
  selector: {{matchLabels: {{version: v1}}}}
  action: {action}
  rules: [{{{rule}}}]
---
"
    )
}

/// What of a workload is open is decided by path, and a request that is denied goes no further.
fn paths_are_guarded(mesh: &Mesh) {
    let workload = mesh.endpoint(1);
    let application = Backend::start_at("app", ([127, 0, 0, 1], mesh.port).into());
    let status = |path: &str| ask(workload, path).map_or(0, |(status, _)| status);
    wait::until("the workload answers", || (status("/admin") == 200).then_some(()));
    let deny = policy("deny", "DENY", "to: [{operation: {paths: [/admin, '/items/{*}/secret']}}]");
    let allow = policy(
        "allow",
        "ALLOW",
        "to: [{operation: {methods: [GET], paths: ['/admin*', '/items/*', '/open']}}]",
    );
    mesh.save("policy.yaml", &(deny + &allow));
    wait::until("the policies hold", || (ask(workload, "/admin") == forbidden()).then_some(()));
    let before = application.requests.load(std::sync::atomic::Ordering::Relaxed);
    for (path, wanted) in [
        ("/open", 200),
        ("/open?x", 200),
        ("/items/1/public", 200),
        ("/items/1/secret", 403),
        ("/items/1/./secret", 403),
        ("/%61dmin", 403),
        ("/else", 403),
    ] {
        assert_eq!(status(path), wanted, "{path}");
    }
    assert_eq!(application.requests.load(std::sync::atomic::Ordering::Relaxed) - before, 3);
    mesh.remove("policy.yaml");
    wait::until("it is open again", || (status("/else") == 200).then_some(()));
    mesh.assert_nothing_refused();
}

#[test]
fn paths_behind_envoy() {
    let mesh = Mesh::start_at("http", 100, 11);
    let envoy = Client::envoy_at(&mesh, "DELTA_GRPC", mesh.endpoint_ip(1));
    paths_are_guarded(&mesh);
    envoy.assert_nothing_rejected();
}

#[test]
fn paths_behind_osier() {
    let mesh = Mesh::start_at("http", 100, 12);
    let _proxy = osier(&mesh);
    paths_are_guarded(&mesh);
}

#[test]
fn an_open_connection_ends_when_it_is_denied_and_not_before() {
    let mesh = Mesh::start_at("tcp", 100, 13);
    let admin = process::free_address();
    let _proxy = osier_with_admin(&mesh, admin);
    let workload = mesh.endpoint(1);
    let _application = Backend::start_at("app", ([127, 0, 0, 1], mesh.port).into());
    let request = format!("GET / HTTP/1.1\r\nhost: {workload}\r\n\r\n");
    let mut open = Connection::open(workload);
    let mut serves = || {
        open.send(request.as_bytes());
        open.receive("GET").map(|answer| answer.status())
    };
    assert_eq!(serves(), Some(200));
    let by_port = |port: u16| policy("ports", "DENY", &format!("to: [{{operation: {{ports: ['{port}']}}}}]"));
    mesh.save("policy.yaml", &by_port(1));
    // In force where a new connection is judged by it: the counts of the filter say so.
    wait::until("another port's policy is in force", || {
        assert_eq!(ask(workload, "/").map(|(status, _)| status), Some(200));
        has_decided(admin).then_some(())
    });
    assert_eq!(serves(), Some(200), "it concerns nobody here");
    assert_eq!(open.after(MOMENT), After::Open);
    mesh.save("policy.yaml", &by_port(mesh.port));
    wait::until("it is cut", || (open.after(MOMENT) == After::Closed).then_some(()));
    assert_eq!(ask(workload, "/"), None, "and no other gets in");
    mesh.assert_nothing_refused();
}

/// True once a filter for connections has decided something.
fn has_decided(admin: SocketAddr) -> bool {
    let page = admin_get(admin, "/stats/prometheus").text();
    page.lines().any(|line| line.starts_with("envoy_tcp_rbac_allowed") && !line.ends_with(" 0"))
}

#[test]
fn a_grpc_server_without_a_proxy_decides_itself() {
    let mesh = Mesh::start_at("grpc", 100, 14);
    let server = mesh.endpoint(1);
    let target = |address: SocketAddr| format!("ipv4:{address}");
    let _server = grpc::xds_server(&mesh, "v1", server);
    let answers = |count| grpc::call(&mesh, &target(server), count);
    wait::until("it serves", || answers(1).answers.contains_key("v1").then_some(()));
    mesh.save("policy.yaml", &policy("deny", "DENY", "to: [{operation: {paths: ['/osier.test.Echo/{*}']}}]"));
    let denied = || {
        let errors = answers(1).errors;
        errors.iter().any(|error| error.contains("PERMISSION_DENIED")).then_some(())
    };
    wait::until("it denies", denied);
    mesh.save("policy.yaml", &policy("allow", "ALLOW", "to: [{operation: {paths: ['/osier.test.Echo/*']}}]"));
    wait::until("it allows", || answers(1).answers.contains_key("v1").then_some(()));
    mesh.save("policy.yaml", &policy("allow", "ALLOW", "from: [{source: {namespaces: [default]}}]"));
    wait::until("nobody has proved to be of the namespace", denied);
    mesh.assert_nothing_refused();
}

/// Whose tokens are valid is known behind a workload, and what they say is looked at.
fn tokens_are_verified(mesh: &Mesh) {
    let workload = mesh.endpoint(1);
    let _application = Backend::start_at("app", ([127, 0, 0, 1], mesh.port).into());
    let signer = Signer::curve("P-256");
    let answer = |headers: &str| {
        let request = format!("GET / HTTP/1.1\r\nhost: {workload}\r\n{headers}connection: close\r\n\r\n");
        let answer = raw::exchange(workload, "GET", request.as_bytes()).unwrap_or_default();
        (answer.status(), answer.text())
    };
    let bearer = |issuer: &str, group: &str| {
        let claims = format!("{{\"iss\": \"{issuer}\", \"sub\": \"joe\", \"groups\": [\"{group}\"]}}");
        format!("authorization: Bearer {}\r\n", signer.token("ES256", "", &claims))
    };
    wait::until("the workload answers", || (answer("").0 == 200).then_some(()));
    let authentication = format!(
        "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: default}}
spec:
  selector: {{matchLabels: {{version: v1}}}}
  jwtRules:
  - {{issuer: me, jwks: '{}'}}
  - {{issuer: away, jwksUri: 'http://127.0.0.1:1/keys'}}
---
",
        set(&[signer.jwk("")])
    );
    let rule = "from: [{source: {requestPrincipals: ['me/*']}}], when: [{key: 'request.auth.claims[groups]', values: [staff]}]";
    mesh.save("tokens.yaml", &(authentication + &policy("staff", "ALLOW", rule)));
    wait::until("the policies hold", || (answer("").0 == 403).then_some(()));
    assert_eq!(answer(&bearer("me", "staff")).0, 200);
    assert_eq!(answer(&bearer("me", "guests")), (403, "RBAC: access denied".into()));
    let unknown = answer(&bearer("you", "staff"));
    assert_eq!(unknown, (401, "Jwt issuer is not configured".into()));
    // Where keys aren't there nobody is believed.
    assert_eq!(answer(&bearer("away", "staff")).0, 401);
    mesh.remove("tokens.yaml");
    wait::until("it is open again", || (answer("").0 == 200).then_some(()));
    mesh.assert_nothing_refused();
}

#[test]
fn tokens_behind_envoy() {
    let mesh = Mesh::start_at("http", 100, 21);
    let envoy = Client::envoy_at(&mesh, "DELTA_GRPC", mesh.endpoint_ip(1));
    tokens_are_verified(&mesh);
    envoy.assert_nothing_rejected();
}

#[test]
fn tokens_behind_osier() {
    let mesh = Mesh::start_at("http", 100, 22);
    let _proxy = osier(&mesh);
    tokens_are_verified(&mesh);
}
