//! Processes that outlive the command that started them: a pid file and a log file each.
//!
//! A pid alone is not a name, as it is given again: the file also holds when the process started. A process that has ended and that
//! nobody has collected yet (state Z) doesn't run.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::place::Place;

/// All of the cluster's, in the order in which they end.
pub const ALL: [&str; 8] = [
    "load-balancer",
    "kubelet",
    "kube-proxy",
    "kube-scheduler",
    "kube-controller-manager",
    "kube-apiserver",
    "etcd",
    "containerd",
];

/// How long one may take to end when asked, before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts `program` as the daemon `name` if it doesn't run. True when it was started.
pub fn start(
    place: &Place,
    name: &str,
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<bool> {
    if is_running(place, name) {
        return Ok(false);
    }
    std::fs::create_dir_all(place.path("log"))?;
    let log = File::create(place.path(&format!("log/{name}.log")))?;
    // setsid replaces itself by the program: the pid is the daemon's, and no terminal takes it along at its end.
    let child = Command::new("setsid")
        .arg(program)
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let pid = child.id();
    let born = born(pid).with_context(|| format!("{name} ended at once"))?;
    place.write(&format!("run/{name}.pid"), &format!("{pid} {born}"))?;
    Ok(true)
}

/// Its pid, if it runs.
pub fn pid(place: &Place, name: &str) -> Option<u32> {
    let content = std::fs::read_to_string(place.path(&format!("run/{name}.pid"))).ok()?;
    let (pid, recorded) = content.split_once(' ')?;
    let pid = pid.parse().ok()?;
    (born(pid)? == recorded).then_some(pid)
}

/// Whether it runs.
pub fn is_running(place: &Place, name: &str) -> bool {
    pid(place, name).is_some()
}

/// Ends it and waits for its end.
pub fn stop(place: &Place, name: &str) -> Result<()> {
    if let Some(pid) = pid(place, name) {
        // Its own children too: it leads their process group.
        end_by(pid, -1).with_context(|| format!("cannot end {name}"))?;
    }
    let _ = std::fs::remove_file(place.path(&format!("run/{name}.pid")));
    Ok(())
}

/// Ends a process: asks, then kills.
pub fn end(pid: u32) -> Result<()> {
    end_by(pid, 1)
}

/// Ends a process (sign 1) or a process group (sign -1, as kill(2) has it), and waits for the end of the process itself.
fn end_by(pid: u32, sign: i32) -> Result<()> {
    let Some(recorded) = born(pid) else { return Ok(()) };
    let target = Pid::from_raw(sign * i32::try_from(pid).context("a pid fits")?);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let _ = kill(target, signal);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if born(pid).as_ref() != Some(&recorded) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    bail!("process {pid} doesn't end")
}

/// Tries `probe` until it says yes. Gives up at the limit, or when the daemon that it waits for has ended.
pub fn wait(place: &Place, name: &str, limit: Duration, mut probe: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !probe() {
        if !is_running(place, name) {
            bail!("{name} has ended; the end of its log:\n{}", tail(place, name));
        }
        if Instant::now() > deadline {
            bail!("not within {} s; the end of the log of {name}:\n{}", limit.as_secs(), tail(place, name));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The last lines of its log.
fn tail(place: &Place, name: &str) -> String {
    let log = std::fs::read(place.path(&format!("log/{name}.log"))).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// When a process started, in the kernel's ticks; none for one that isn't there or has ended.
fn born(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything; state is the first field after it, the start the twentieth.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18).map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_does_not_run_before_it_is_collected() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        assert!(born(child.id()).is_some());
        end(child.id()).expect("it ends though nobody has collected it");
        assert!(
            Path::new(&format!("/proc/{}", child.id())).exists(),
            "it was collected, so nothing was shown"
        );
        assert_eq!(born(child.id()), None);
        child.wait().expect("it can be collected");
    }
}
