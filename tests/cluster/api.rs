//! The API server over `kubectl proxy`: a request costs what the API server takes, and no process.

use std::net::SocketAddr;

use osier_tests::process::{self, Program};
use osier_tests::raw::{Connection, Response};
use serde_json::Value;

use crate::cluster::Cluster;

/// A connection to the API server.
pub struct Api {
    connection: Connection,
    _proxy: Program,
    _folder: tempfile::TempDir,
}

impl Api {
    /// Starts a proxy of its own.
    pub fn open(cluster: &Cluster) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address: SocketAddr = process::free_address();
        let mut command = cluster.command(cluster.kubectl_program());
        command.args([
            "proxy",
            "--address",
            &address.ip().to_string(),
            "--port",
            &address.port().to_string(),
        ]);
        let mut proxy = Program::start("kubectl-proxy", &mut command, folder.path());
        proxy.wait_listening(address);
        Self { connection: Connection::open(address), _proxy: proxy, _folder: folder }
    }

    /// One request that must succeed.
    pub fn call(&mut self, method: &str, path: &str, content: &str, body: &Value) -> Response {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.connection.send(request.as_bytes());
        let answer = self.connection.receive(method).expect("the API server answers");
        assert!(
            matches!(answer.status(), 200..=202),
            "{method} {path}: {} {}",
            answer.status(),
            answer.text()
        );
        answer
    }

    /// Makes an object.
    pub fn create(&mut self, path: &str, object: &Value) {
        self.call("POST", path, "application/json", object);
    }
}
