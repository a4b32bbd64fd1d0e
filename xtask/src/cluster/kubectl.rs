//! kubectl, as we call it ourselves and as it is given to the user.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::place::Place;

/// kubectl with the cluster's kubeconfig; nothing of the user's own is read or written.
pub fn command(place: &Place, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Command> {
    let program = place.program("kubectl");
    if !program.exists() {
        bail!("there is no cluster here: start one with `cargo xtask cluster up`");
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("KUBECONFIG", place.kubeconfig())
        .env("KUBECACHEDIR", place.path("kubectl-cache"));
    Ok(command)
}

/// What kubectl prints; its error where it fails.
pub fn output(place: &Place, arguments: &[&str]) -> Result<String> {
    let done = command(place, arguments)?.stdin(Stdio::null()).output().context("cannot start kubectl")?;
    if !done.status.success() {
        bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Applies manifests.
pub fn apply(place: &Place, manifests: &str) -> Result<()> {
    let mut child = command(place, ["apply", "--filename=-"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start kubectl")?;
    child.stdin.take().context("kubectl reads")?.write_all(manifests.as_bytes())?;
    if !child.wait()?.success() {
        bail!("kubectl could not apply the manifests");
    }
    Ok(())
}
