//! Stock Envoy as a client of osier-pilot, state of the world and delta, as an explicit proxy (interception mode NONE).

use osier_tests::wait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::client::{Client, backends, follows_the_split};
use crate::mesh::Mesh;

#[test]
fn envoy_follows_the_split_in_state_of_the_world() {
    let mesh = Mesh::start("http", 75);
    let _backends = backends(&mesh);
    follows_the_split(&mesh, &Client::envoy(&mesh, "GRPC", 1));
}

#[test]
fn envoy_follows_the_split_in_delta() {
    let mesh = Mesh::start("http", 75);
    let _backends = backends(&mesh);
    follows_the_split(&mesh, &Client::envoy(&mesh, "DELTA_GRPC", 2));
}

/// Services come, go and change their rules; after each change Envoy serves what the YAML says, and refuses nothing.
#[test]
fn envoy_takes_a_hundred_random_changes() {
    let mesh = Mesh::start("http", 100);
    let _backends = backends(&mesh);
    let envoys = [Client::envoy(&mesh, "GRPC", 3), Client::envoy(&mesh, "DELTA_GRPC", 4)];
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
    envoys.iter().for_each(Client::assert_nothing_rejected);
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
