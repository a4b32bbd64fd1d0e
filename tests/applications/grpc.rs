//! A gRPC service in Python (grpcio) behind two sidecars: every kind of call, metadata, failures, deadlines, cancelled streams.
//!
//! gRPC libraries use `http_proxy` with CONNECT; those that don't use `--forward`. Both ways end in the same routes.

use osier_tests::process::{self, Program};
use serde::Deserialize;
use std::collections::HashMap;

use crate::mesh::Mesh;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/applications/grpc_app.py");

/// What the client saw.
#[derive(Debug, Deserialize)]
struct Said {
    unary: HashMap<String, u32>,
    initial: Option<String>,
    trailing: bool,
    large: bool,
    server_stream: bool,
    client_stream: String,
    bidirectional: bool,
    failure: [String; 3],
    unknown: String,
    deadline: (String, bool),
}

fn python() -> String {
    process::part("OSIER_TEST_PYTHON").get_program().to_string_lossy().into_owned()
}

fn serve(mesh: &Mesh, name: &str) -> Program {
    let address = process::free_address();
    mesh.serve(name, "talk", address, &[&python(), SCRIPT, "serve", name, &address.to_string()])
}

fn call(mesh: &Mesh, options: &[&str], arguments: &str) -> String {
    mesh.visit(options, &format!("exec {} {SCRIPT} {arguments}", python()))
}

fn check(way: &str, text: &str) {
    let said: Said = serde_json::from_str(text).unwrap_or_else(|error| panic!("{way}: {error}: {text}"));
    let count = |name: &str| said.unary.get(&format!("{name} hello")).copied().unwrap_or(0);
    assert_eq!(count("v1") + count("v2"), 100, "{way}: {said:?}");
    // One connection of the client, and yet each call is balanced.
    assert!(count("v1") >= 20 && count("v2") >= 20, "{way}: {said:?}");
    assert_eq!(said.initial.as_deref(), Some("text"), "{way}: {said:?}");
    assert!(said.trailing && said.large && said.server_stream && said.bidirectional, "{way}: {said:?}");
    assert_eq!(said.client_stream, "499500", "{way}: {said:?}");
    assert_eq!(said.failure, ["NOT_FOUND", "nichts für dich: 100 %", "so it is"], "{way}: {said:?}");
    assert_eq!(said.unknown, "UNIMPLEMENTED", "{way}: {said:?}");
    assert_eq!(said.deadline, ("DEADLINE_EXCEEDED".into(), true), "{way}: {said:?}");
}

#[test]
fn grpc_behind_sidecars() {
    let mesh = Mesh::start("talk", "grpc", 7443);
    let servers = vec![serve(&mesh, "v1"), serve(&mesh, "v2")];
    let host = "talk.default.svc.cluster.local:7443";
    check("http_proxy", &call(&mesh, &[], &format!("call {host}")));
    let local = process::free_address().port();
    let forward = format!("--forward={local}={host}");
    check("--forward", &call(&mesh, &[&forward], &format!("call 127.0.0.1:{local} {host}")));
    check("--forward without a host", &call(&mesh, &[&forward], &format!("call 127.0.0.1:{local}")));
    mesh.stop(servers);
}

#[test]
fn a_stream_that_the_client_breaks_off_ends_at_the_server() {
    let mesh = Mesh::start("talk", "grpc", 7443);
    let servers = vec![serve(&mesh, "v1")];
    let said = call(&mesh, &[], "cancel talk:7443");
    assert_eq!(said, "{\"received\": 10, \"seen\": \"True\"}\n");
    mesh.stop(servers);
}
