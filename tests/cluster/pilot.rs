//! A pilot of this machine beside the cluster's own, as another revision, so that it leaves that one in peace.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use osier_tests::process::{self, Program};
use osier_tests::{raw, wait};

/// How long the first list of a big cluster may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// One that runs; ended when dropped.
pub struct Pilot {
    /// The process.
    pub program: Program,
    monitoring: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Pilot {
    /// Starts `command`, which knows the cluster.
    pub fn start(mut command: Command) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (xds, monitoring) = (process::free_address(), process::free_address());
        command.args(["--xds-address", &xds.to_string(), "--monitoring-address", &monitoring.to_string()]);
        command.args(["--revision", "beside", "--admin-address", "127.0.0.1:0"]);
        let mut program = Program::start("osier-pilot", &mut command, folder.path());
        program.wait_listening(monitoring);
        Self { program, monitoring, _folder: folder }
    }

    /// What a page of it says: status and text.
    pub fn ask(&self, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let answer = raw::exchange(self.monitoring, "GET", request.as_bytes()).expect("pilot answers");
        (answer.status(), answer.text())
    }

    /// Waits until it has read the cluster.
    pub fn wait_ready(&self) {
        wait::until_within(PATIENCE, "pilot is ready", || (self.ask("/ready").0 == 200).then_some(()));
    }
}
