//! Child processes that end with us, whatever happens to us.
//!
//! Our own programs ask the kernel to be ended with their parent (`PR_SET_PDEATHSIG`, in `internal`); a user's program is
//! started through `osier internal exec`, which does the same and then becomes that program.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// Path of this very program.
pub fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the path of this program")
}

/// A command that runs `osier internal <arguments>`.
pub fn internal(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(this_program()?);
    command.arg("internal").args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

/// Asks a child to end (SIGTERM), and ends it after `patience`. True when it ended by itself.
pub async fn end(child: &mut Child, patience: Duration) -> bool {
    signal(child, Signal::SIGTERM);
    if tokio::time::timeout(patience, child.wait()).await.is_ok() {
        return true;
    }
    let _ = child.kill().await;
    false
}

/// Sends a signal to a child that is still there.
pub fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
    }
}

/// Has the kernel send `signal` to this process when its parent is gone.
pub fn end_with_parent(signal: Signal) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(signal).context("cannot tie this process to its parent")
}
