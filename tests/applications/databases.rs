//! MariaDB (whose server speaks first), PostgreSQL and redis behind sidecars: by mutual TLS, in plaintext where PERMISSIVE takes it, and
//! under STRICT, which takes mutual TLS alone. No annotation says who speaks first.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use osier_tests::process::{self, Program};
use osier_tests::wait;

use crate::mesh::Mesh;

/// A server and its client program, as lines of a shell. `$port` is the server's, `$host` and `$at` are where a client finds it.
struct Database {
    /// Name of the Service's port, which says that it is opaque.
    port_name: &'static str,
    serve: &'static str,
    /// Prints 42.
    ask: &'static str,
}

const MARIADB: Database = Database {
    port_name: "tcp-mariadb",
    serve:
        "mariadb-install-db --no-defaults --skip-test-db --datadir=$PWD/data --user=root > install.log 2>&1
        exec mariadbd --no-defaults --user=root --datadir=$PWD/data --skip-grant-tables --skip-name-resolve \
        --bind-address=127.0.0.1 --port=$port --socket=$PWD/socket",
    ask: "mariadb --no-defaults --protocol=tcp -h $host -P $at --connect-timeout=10 -Nse 'SELECT 6 * 7'",
};

const POSTGRESQL: Database = Database {
    port_name: "tcp-postgresql",
    // It refuses to run as root.
    serve: "mkdir data; chmod 755 .; as=; bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
        if [ $(id -u) = 0 ]; then chown nobody data; as='setpriv --reuid=nobody --regid=nogroup --clear-groups'; fi
        $as $bin/initdb -D $PWD/data -A trust -U tester > install.log 2>&1
        exec $as $bin/postgres -D $PWD/data -c listen_addresses=127.0.0.1 -p $port -c unix_socket_directories=",
    ask: "PGCONNECT_TIMEOUT=10 psql -h $host -p $at -U tester -d postgres -Atc 'SELECT 6 * 7'",
};

const REDIS: Database = Database {
    port_name: "tcp-redis",
    serve: "exec redis-server --bind 127.0.0.1 --port $port --save '' --appendonly no",
    ask: "timeout 10 redis-cli -h $host -p $at eval 'return 6 * 7' 0",
};

/// Of the Service.
const PORT: u16 = 7777;

const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
";

/// A client that no sidecar knows, at the sidecar of the server.
fn stranger(database: &Database, sidecar: SocketAddr) -> Option<String> {
    let (host, at) = (sidecar.ip(), sidecar.port());
    let script = format!("host={host}; at={at}; {}", database.ask);
    let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where the sidecar of the server takes clients: at the Service's port.
fn sidecar(server: &Program) -> SocketAddr {
    wait::until("the server's sidecar says where it is", || {
        let text = server.output();
        let (_, rest) = text.split_once("http_proxy=http://")?;
        let proxy: SocketAddr = rest.split_whitespace().next()?.parse().ok()?;
        Some(SocketAddr::new(proxy.ip(), PORT))
    })
}

fn in_plaintext_and_by_mutual_tls(database: &Database) {
    let mesh = Mesh::start("db", database.port_name, PORT);
    let address = process::free_address();
    let script = format!("set -e; port={}; {}", address.port(), database.serve);
    let server = mesh.serve("db", "db", address, &["sh", "-c", &script]);
    let local = process::free_address().port();
    let forward = format!("--forward={local}=db.default.svc.cluster.local:{PORT}");
    let member = || mesh.visit(&[&forward], &format!("host=127.0.0.1; at={local}; {}", database.ask));
    let sidecar = sidecar(&server);

    // The socket opens once pilot has heard of the workload.
    wait::until("PERMISSIVE takes plaintext", || {
        stranger(database, sidecar).filter(|answer| answer == "42\n")
    });
    assert_eq!(member(), "42\n");
    assert_eq!(stranger(database, sidecar).as_deref(), Some("42\n"));
    mesh.save("strict.yaml", STRICT);
    wait::until_within(Duration::from_secs(60), "STRICT refuses plaintext", || {
        stranger(database, sidecar).is_none().then_some(())
    });
    assert_eq!(member(), "42\n");
    mesh.stop(vec![server]);
}

#[test]
fn mariadb_in_plaintext_and_by_mutual_tls() {
    in_plaintext_and_by_mutual_tls(&MARIADB);
}

#[test]
fn postgresql_in_plaintext_and_by_mutual_tls() {
    in_plaintext_and_by_mutual_tls(&POSTGRESQL);
}

#[test]
fn redis_in_plaintext_and_by_mutual_tls() {
    in_plaintext_and_by_mutual_tls(&REDIS);
}
