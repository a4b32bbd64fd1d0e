//! A network namespace for the whole run: loopback only, cubic everywhere, and nothing of the machine is changed.

use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

/// Moves this process, and all that it starts, into a network namespace of its own. Without root, a user namespace comes first.
///
/// Must be called before any thread exists.
pub fn enter() -> Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    if uid.is_root() {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).context(
            "cannot make an unprivileged network namespace: run as root, or allow user namespaces",
        )?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    if !Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success() {
        bail!("cannot bring up the loopback device: is iproute2 installed?");
    }
    // Where cubic is not the machine's default, the kernel may not allow it here; reno paces nothing either.
    set("net/ipv4/tcp_congestion_control", &["cubic", "reno"]);
    set("net/ipv4/ip_local_port_range", &["1025 65000"]);
    set("net/core/somaxconn", &["4096"]);
    Ok(())
}

/// Sets the first of `values` that the kernel takes, and says when it is not the first.
fn set(key: &str, values: &[&str]) {
    let path = format!("/proc/sys/{key}");
    let taken = values.iter().position(|value| std::fs::write(&path, value).is_ok());
    if taken != Some(0) {
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        eprintln!("bench: {key} is `{}`: `{}` was refused", there.trim(), values[0]);
    }
}
