//! The shell that runs a page's commands, one after the other, each to its end.
//!
//! Its variables, functions and background jobs live as long as it does; all processes that it has started end with it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use osier_tests::process;

/// Longer than any command of a page takes; those that wait have deadlines of their own.
const PATIENCE: Duration = Duration::from_secs(300);
/// Ends the output of each command.
const MARK: &str = "--osier-walkthrough-status--";

/// A running shell.
pub struct Session {
    shell: Child,
    input: ChildStdin,
    output: Receiver<String>,
    step: PathBuf,
}

/// How a command ended, and what it printed on both of its outputs.
pub struct Done {
    /// Exit status.
    pub status: i32,
    /// What it printed.
    pub output: String,
}

/// Variables that all commands have.
pub fn equip(command: &mut Command, kubeconfig: &Path, programs: &[PathBuf]) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(programs.iter().cloned().chain(std::env::split_paths(&path)));
    command
        .env("PATH", path.expect("folders of programs have no colon in them"))
        .env("KUBECONFIG", kubeconfig);
    // What kubectl keeps goes where the copy of the kubeconfig is.
    command.env("KUBECACHEDIR", kubeconfig.with_file_name("cache"));
}

impl Session {
    /// Starts one in `folder`.
    pub fn start(folder: &Path, kubeconfig: &Path, programs: &[PathBuf]) -> Result<Self> {
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc"]).current_dir(folder);
        equip(&mut command, kubeconfig, programs);
        let mut shell =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start bash")?;
        let mut input = shell.stdin.take().context("bash reads")?;
        let lines = BufReader::new(shell.stdout.take().context("bash writes")?).lines();
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        // As in a terminal, where both outputs are one.
        writeln!(input, "exec 2>&1")?;
        Ok(Self { shell, input, output, step: kubeconfig.with_file_name("step") })
    }

    /// Runs a command to its end. One that ends in `&` runs on.
    pub fn run(&mut self, command: &str) -> Result<Done> {
        // From a file, so that a command which reads its input doesn't get the next ones.
        std::fs::write(&self.step, command)?;
        writeln!(self.input, ". '{}' </dev/null; printf '\\n{MARK}%s\\n' $?", self.step.display())?;
        let (deadline, mut printed) = (Instant::now() + PATIENCE, Vec::new());
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match line.strip_prefix(MARK) {
                    Some(status) => return Ok(Done { status: status.parse()?, output: printed.join("\n") }),
                    None => printed.push(line),
                },
                Err(RecvTimeoutError::Timeout) => {
                    bail!("not within {PATIENCE:?}; printed so far:\n{}", printed.join("\n"))
                }
                Err(RecvTimeoutError::Disconnected) => bail!("it ended the shell:\n{}", printed.join("\n")),
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for pid in process::family(self.shell.id()) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        let _ = self.shell.wait();
    }
}
