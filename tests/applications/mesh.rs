//! A mesh as a user makes it: `osier up` on a folder, `osier run` for each program.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use osier_tests::mesh;
use osier_tests::process::{self, Program};

/// A control plane on a folder of its own.
pub struct Mesh {
    folder: tempfile::TempDir,
    xds: SocketAddr,
    pilot: Program,
}

impl Mesh {
    /// `osier up` with one Service, and the file `big` for every program of the mesh: one file, so that its date (and with
    /// it nginx's entity tag) is the same whoever serves it.
    pub fn start(service: &str, port_name: &str, port: u16) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("mesh");
        std::fs::create_dir(&source).expect("the test's folder can be written");
        let text = mesh::service(service, port_name, port);
        std::fs::write(source.join("service.yaml"), text).expect("the test's folder can be written");
        std::fs::write(folder.path().join("big"), big()).expect("the test's folder can be written");
        let (pilot, xds, _) = mesh::osier_up(folder.path());
        Self { folder, xds, pilot }
    }

    /// Saves a file of YAML beside that of the Service.
    pub fn save(&self, name: &str, text: &str) {
        std::fs::write(self.path().join("mesh").join(name), text).expect("the test's folder can be written");
    }

    /// Where the processes' files lie, and where they run.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `osier run`: `command` as a workload of `service`, with the options of `osier run` that `options` adds.
    fn command(&self, name: &str, service: &str, port: u16, options: &[&str], command: &[&str]) -> Command {
        let mut run = process::own("osier");
        run.args(["run", "--service", service, "--version", name, "--port", &port.to_string()])
            .args(["--pilot", &self.xds.to_string()])
            .args(options)
            .arg("--")
            .args(command)
            .current_dir(self.path());
        run
    }

    /// A server in the mesh: it is listening when this returns, and its sidecar is ready.
    pub fn serve(&self, name: &str, service: &str, address: SocketAddr, command: &[&str]) -> Program {
        let mut run = self.command(name, service, address.port(), &[], command);
        let mut program = Program::start(name, &mut run, self.path());
        program.wait_listening(address);
        program
    }

    /// Runs a shell script as a client in the mesh to its end, and gives what it wrote to the file `said`.
    pub fn visit(&self, options: &[&str], script: &str) -> String {
        let script = format!("set -e; exec > said; {script}");
        let port = process::free_address().port();
        let command = ["sh", "-c", &script];
        let mut run = self.command("visitor", "visitor", port, options, &command);
        // Nobody calls a visitor, so nobody is to be waited for.
        let mut program = Program::start("visitor", run.env("OSIER_DRAIN_TIME", "0s"), self.path());
        let status = program.wait_end();
        let said = std::fs::read_to_string(self.path().join("said")).unwrap_or_default();
        assert!(status.success(), "{status}: {said}\n{}", program.output());
        said
    }

    /// Ends everything politely: what a user's Ctrl-C does.
    pub fn stop(mut self, programs: Vec<Program>) {
        // Told together, as each sidecar takes its time to drain.
        programs.iter().for_each(|program| program.signal(Signal::SIGTERM));
        for mut program in programs {
            let status = program.wait_end();
            assert!(status.success(), "{status}\n{}", program.output());
        }
        self.pilot.signal(Signal::SIGTERM);
        let status = self.pilot.wait_end();
        assert!(status.success(), "{status}\n{}", self.pilot.output());
    }
}

/// A file that is larger than any buffer on its way; each line differs, so that order and place show.
pub fn big() -> String {
    (0..200_000).map(|line| format!("line {line}\n")).collect()
}
