//! With which servers a client speaks mutual TLS, and which it believes.

use osier_tests::backend::Backend;
use osier_tests::mesh::{Pilot, Sidecar, service};
use osier_tests::{process, wait};

/// What goes wrong stands in the access log.
const LOGS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
                    data: {mesh: 'accessLogFile: /dev/stdout'}\n";

#[test]
fn endpoints_that_take_no_mutual_tls_get_plaintext_beside_those_that_do() {
    let port = process::free_address().port();
    let pilot = Pilot::with_identity(&[("service.yaml", &service("web", "http", port))], |_| ());
    let (with, without) = (Backend::start("with"), Backend::start("without"));
    let _secured = Sidecar::secured(&pilot, "web", Some(with.address));
    let _plain = Sidecar::start(&pilot, "web", "v2", Some(without.address));
    let client = Sidecar::secured(&pilot, "client", None);
    let host = format!("web:{port}");
    let (mut secured, mut plain) = (false, false);
    wait::until("both answer", || {
        let answer = client.get(&host, "/", "").text();
        let proven = answer.contains("URI=spiffe://cluster.local/ns/default/sa/client");
        match answer.lines().next() {
            Some("backend with") => {
                assert!(proven, "{answer}");
                secured = true;
            }
            Some("backend without") => {
                assert!(!proven, "{answer}");
                plain = true;
            }
            // Not all of it is known yet.
            _ => {}
        }
        (secured && plain).then_some(())
    });
}

#[test]
fn a_server_of_another_service_account_is_not_believed() {
    let port = process::free_address().port();
    let files = [("service.yaml", &*service("web", "http", port)), ("mesh.yaml", LOGS)];
    let pilot = Pilot::with_identity(&files, |_| ());
    let server = Sidecar::secured(&pilot, "web", Some(Backend::start("web").address));
    let client = Sidecar::secured(&pilot, "client", None);
    let entry = |account: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: alias, namespace: default}}
spec:
  hosts: [alias.test]
  location: MESH_INTERNAL
  ports: [{{number: {port}, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: {}, serviceAccount: {account}, labels: {{security.istio.io/tlsMode: istio}}}}]
",
            server.registration.address
        )
    };
    let host = format!("alias.test:{port}");
    pilot.save("alias.yaml", &entry("web"));
    wait::until("it is who it should be", || (client.ask(&host) == "web").then_some(()));
    pilot.save("alias.yaml", &entry("other"));
    wait::until("it is another", || (client.get(&host, "/", "").status() == 503).then_some(()));
    wait::until("the access log says why", || {
        let log = client.program.output();
        let mut failed = log.lines().filter(|line| line.contains(" 503 UF"));
        failed
            .any(|line| {
                line.contains(
                    "TLS_error: certificate verify failed: its names are spiffe://cluster.local/ns/default/sa/web, and none of \
                     them is one of spiffe://cluster.local/ns/default/sa/other (SAN)",
                )
            })
            .then_some(())
    });
}
