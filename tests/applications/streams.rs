//! WebSocket, and TCP connections whose sides end one after the other, through two sidecars.

use osier_tests::{process, wait};

use crate::mesh::Mesh;

const WEBSOCKET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/applications/websocket_app.py");
const HALF_CLOSE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/applications/half_close.py");

#[test]
fn websocket_behind_sidecars() {
    let mesh = Mesh::start("chat", "http", 8081);
    let python = process::part("OSIER_TEST_PYTHON").get_program().to_string_lossy().into_owned();
    let address = process::free_address();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let servers = vec![mesh.serve("v1", "chat", address, &[&python, WEBSOCKET, "serve", "v1", &host, &port])];
    let wanted = "{\"greeting\": \"v1 at /room?a=1, chat\", \"large\": true, \"pong\": true, \
                  \"closed\": [4001, \"told to\"]}\n";
    let said = mesh.visit(&[], &format!("exec {python} {WEBSOCKET} call 'ws://chat:8081/room?a=1'"));
    assert_eq!(said, wanted, "by http_proxy");
    let local = process::free_address().port();
    let forward = format!("--forward={local}=chat:8081");
    let said = mesh.visit(
        &[&forward],
        &format!("exec {python} {WEBSOCKET} call 'ws://127.0.0.1:{local}/room?a=1' direct"),
    );
    assert_eq!(said, wanted, "by --forward");
    // Without CONNECT: the proxy itself is asked to upgrade.
    let said = mesh.visit(&[], &format!("exec {python} {WEBSOCKET} plain http://chat:8081/plain"));
    assert!(said.starts_with("HTTP/1.1 101 "), "{said:?}");
    assert!(said.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{said:?}");
    assert!(said.contains("v1 at /plain, chat"), "the first message follows: {said:?}");
    mesh.stop(servers);
}

#[test]
fn tcp_sides_end_one_after_the_other() {
    let mesh = Mesh::start("count", "tcp", 9001);
    let address = process::free_address();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let servers =
        vec![mesh.serve("v1", "count", address, &["python3", HALF_CLOSE, "serve", "v1", &host, &port])];
    let local = process::free_address().port();
    let forward = format!("--forward={local}=count:9001");
    let visit =
        |what: &str| mesh.visit(&[&forward], &format!("exec python3 {HALF_CLOSE} {what} 127.0.0.1 {local}"));
    assert_eq!(visit("call"), "go on True 4194304 \n", "the client's side ends first");
    assert_eq!(visit("first"), "go on\n", "the server's side ends first");
    let counted = mesh.path().join("counted");
    wait::until("what was sent after that arrives", || {
        std::fs::read_to_string(&counted).ok().filter(|text| text == "4194305\n")
    });
    mesh.stop(servers);
}
