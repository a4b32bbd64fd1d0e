//! The cluster of this machine, through `cargo xtask cluster`; it ends with the test, whatever happens.

use std::process::{Command, Output, Stdio};
use std::time::Instant;

use osier_tests::process;

/// A cluster that is up.
pub struct Cluster;

impl Cluster {
    /// Starts one.
    pub fn up() -> Self {
        let status = run(process::own("xtask").args(["cluster", "status"]));
        assert!(!status.status.success(), "a cluster is up; end it first: cargo xtask cluster down");
        let cluster = Self;
        cluster.xtask(&["up"]);
        cluster
    }

    /// Ends it.
    pub fn down(self) {
        drop(self);
    }

    /// One thing that must hold, with its name and time in the output.
    pub fn check(&self, what: &str, check: fn(&Self)) {
        let started = Instant::now();
        check(self);
        println!("ok  {what} ({:.1} s)", started.elapsed().as_secs_f64());
    }

    /// `cargo xtask cluster …`; what it prints.
    pub fn xtask(&self, arguments: &[&str]) -> String {
        let done = run(process::own("xtask").arg("cluster").args(arguments));
        succeeded(&format!("cluster {}", arguments.join(" ")), done)
    }

    /// kubectl; what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        succeeded(&format!("kubectl {}", arguments.join(" ")), self.try_kubectl(arguments))
    }

    /// kubectl, where it may fail.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        run(process::own("xtask").args(["cluster", "kubectl"]).args(arguments))
    }

    /// All nftables rules of the machine.
    pub fn rules(&self) -> String {
        succeeded("nft list ruleset", run(Command::new("nft").args(["list", "ruleset"])))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let pods = self.try_kubectl(&["describe", "pods"]);
            eprintln!("{}", String::from_utf8_lossy(&pods.stdout));
        }
        let done = run(process::own("xtask").args(["cluster", "down"]));
        assert!(
            done.status.success() || std::thread::panicking(),
            "down: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

/// Runs a command; what the cluster says about its steps is shown.
fn run(command: &mut Command) -> Output {
    let done = command.stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|error| panic!("cannot start {:?}: {error}", command.get_program()));
    if command.get_args().any(|word| word == "up" || word == "down") {
        print!("{}", String::from_utf8_lossy(&done.stderr));
    }
    done
}

fn succeeded(what: &str, done: Output) -> String {
    assert!(done.status.success(), "{what}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
