//! redis as plain TCP, `redis-cli` in front of it.

use osier_tests::process;

use crate::mesh::{Mesh, big};

#[test]
fn redis_behind_sidecars() {
    let mesh = Mesh::start("cache", "tcp-redis", 6380);
    let address = process::free_address();
    let port = address.port().to_string();
    let command =
        ["redis-server", "--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"];
    let servers = vec![mesh.serve("redis", "cache", address, &command)];

    let local = process::free_address().port();
    let forward = format!("--forward={local}=cache.default.svc.cluster.local:6380");
    let visit = |script: &str| mesh.visit(&[&forward], &format!("cli='redis-cli -p {local}'; {script}"));
    // At the end, one connection waits for what another one sends.
    let script = "$cli ping; $cli set color blue; $cli get color
         $cli blpop queue 20 > popped & $cli rpush queue job > pushed; wait; cat popped";
    assert_eq!(visit(script), "PONG\nOK\nblue\nqueue\njob\n");

    assert!(visit("$cli -x set big < big > set; $cli --raw get big").trim_end() == big().trim_end());

    let many: String = (0..20_000).map(|at| format!("SET key:{at} {at}\r\n")).collect();
    std::fs::write(mesh.path().join("many"), many).expect("the test's folder can be written");
    let piped = visit("$cli --pipe < many; $cli get key:19999");
    assert!(piped.contains("errors: 0, replies: 20000"), "{piped}");
    assert!(piped.ends_with("19999\n"), "{piped}");

    mesh.stop(servers);
}
