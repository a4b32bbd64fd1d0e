//! How the cluster ends: processes first, then what they leave in the kernel and on disk.
//!
//! Every step also works on what an earlier, interrupted one has left. Nothing that isn't the cluster's is touched: processes are known
//! by pid or by our socket in their arguments, mounts by our folder, tables by not having been there before.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::machine::{self, Before};
use super::place::{BRIDGE, Place};
use super::progress::step;
use super::{daemon, node};
use crate::run::run;

/// Cgroups that the kubelet and containerd make, in each hierarchy.
const CGROUPS: [&str; 2] = ["kubepods", "k8s.io"];

/// What stays in the state folder: containerd's store of images.
const KEPT: &str = "containerd";

/// Ends the cluster.
pub fn down(place: &Place) -> Result<()> {
    step("ending the kubelet", || {
        daemon::stop(place, "load-balancer")?;
        daemon::stop(place, "kubelet")
    })?;
    step("ending pods", || end_pods(place))?;
    step("ending all other processes", || daemon::ALL.iter().try_for_each(|name| daemon::stop(place, name)))?;
    step("undoing changes to this machine", || leftovers(place))
}

/// Removes what a cluster whose processes have ended has left.
pub fn leftovers(place: &Place) -> Result<()> {
    end_shims(place)?;
    unmount(place.folder())?;
    // Without a record nothing was changed, and what looks like ours is somebody else's.
    if let Some(before) = Before::recorded(place)? {
        service_rules(place)?;
        remove_cgroups();
        remove_records(place);
        remove_tables(&before)?;
        machine::restore(place, &before)?;
    }
    remove_state(place)
}

/// Removes the imported images of a cluster that is down.
pub fn remove_images(place: &Place) -> Result<()> {
    std::fs::remove_dir_all(place.folder())
        .with_context(|| format!("cannot remove {}", place.folder().display()))
}

/// Ends all containers while containerd can still say which there are.
fn end_pods(place: &Place) -> Result<()> {
    if !daemon::is_running(place, "containerd") {
        return Ok(());
    }
    for (kind, removal) in [("tasks", &["remove", "--force"][..]), ("containers", &["remove"][..])] {
        let listed = node::containers(place).args([kind, "list", "--quiet"]).output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let names: Vec<&str> = listed.split_whitespace().collect();
        if !names.is_empty() {
            // One that ends meanwhile is no failure; what stays is ended with its shim.
            let _ = node::containers(place).arg(kind).args(removal).args(names).output();
        }
    }
    Ok(())
}

/// Ends shims that outlived containerd, and what ran in them. They are known by our socket in their arguments.
fn end_shims(place: &Place) -> Result<()> {
    let socket = place.text("containerd.sock");
    for item in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = item.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let line = std::fs::read(item.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let is_shim = words.next().is_some_and(|program| program.ends_with(b"containerd-shim-runc-v2"));
        if is_shim && words.any(|word| word == socket.as_bytes()) {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            for child in children.unwrap_or_default().split_whitespace() {
                daemon::end(child.parse()?)?;
            }
            daemon::end(pid)?;
        }
    }
    Ok(())
}

/// Undoes all mounts below `folder`, the innermost first.
fn unmount(folder: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let below = mounts.lines().filter_map(|line| {
        // Octal escapes stand for white space only, which our folders don't have.
        let point = Path::new(line.split(' ').nth(4)?);
        point.starts_with(folder).then(|| point.to_owned())
    });
    let below: Vec<PathBuf> = below.collect();
    for point in below.iter().rev() {
        run(Command::new("umount").arg("--lazy").arg(point))?;
    }
    Ok(())
}

/// Removes kube-proxy's rules, of both modes.
pub fn service_rules(place: &Place) -> Result<()> {
    let proxy = place.program("kube-proxy");
    if proxy.exists() {
        // It fails where one of several things to remove isn't there, having removed the others.
        let _ = Command::new(proxy).arg("--cleanup").output();
    }
    for table in machine::tables()? {
        if table.ends_with(" kube-proxy") {
            run(Command::new("nft").args(["delete", "table"]).args(table.split(' ')))?;
        } else if table.starts_with("ip ") || table.starts_with("ip6 ") {
            remove_chains(&table)?;
        }
    }
    Ok(())
}

/// Removes the chains of kube-proxy and of the port mapping plugin from a table that others may use too.
fn remove_chains(table: &str) -> Result<()> {
    let listed = Command::new("nft").args(["--handle", "list", "table"]).args(table.split(' ')).output()?;
    let script = removal(table, &String::from_utf8_lossy(&listed.stdout));
    if script.is_empty() {
        return Ok(());
    }
    run(Command::new("nft").arg(script))
}

/// The commands that remove our chains from a table as `nft --handle list table` prints it, and the jumps to them.
fn removal(table: &str, listing: &str) -> String {
    let ours = |name: &str| name.starts_with("KUBE-") || name.starts_with("CNI-");
    let (mut chain, mut chains, mut jumps) = ("", Vec::new(), String::new());
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["chain", name, ..] => {
                chain = *name;
                if ours(name) {
                    chains.push(*name);
                }
            }
            [.., "jump" | "goto", target, "#", "handle", handle] if ours(target) && !ours(chain) => {
                jumps += &format!("delete rule {table} {chain} handle {handle}\n");
            }
            _ => {}
        }
    }
    let flushes = chains.iter().map(|chain| format!("flush chain {table} {chain}\n"));
    let deletions = chains.iter().map(|chain| format!("delete chain {table} {chain}\n"));
    jumps + &flushes.chain(deletions).collect::<String>()
}

/// Removes tables that weren't there before: our own, and those that iptables made for kube-proxy, now without rules.
fn remove_tables(before: &Before) -> Result<()> {
    for table in machine::tables()?.iter().filter(|table| !before.had_table(table)) {
        let ours = table.ends_with(" osier-cluster");
        let of_iptables = ["filter", "nat", "mangle", "raw"]
            .iter()
            .any(|name| *table == format!("ip {name}") || *table == format!("ip6 {name}"));
        if ours || (of_iptables && is_empty(table)?) {
            run(Command::new("nft").args(["delete", "table"]).args(table.split(' ')))?;
        }
    }
    Ok(())
}

/// Whether a table has base chains only, without rules.
fn is_empty(table: &str) -> Result<bool> {
    let listed = Command::new("nft").args(["list", "table"]).args(table.split(' ')).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut lines = listed.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines
        .all(|line| line == "}" || ["table ", "chain ", "type "].iter().any(|word| line.starts_with(word))))
}

/// Removes the cluster's cgroups, leaves first.
fn remove_cgroups() {
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        CGROUPS.iter().for_each(|name| remove_cgroup(&hierarchy.path().join(name)));
    }
    // With cgroup v2 alone, the root is the one hierarchy.
    CGROUPS.iter().for_each(|name| remove_cgroup(&Path::new("/sys/fs/cgroup").join(name)));
}

fn remove_cgroup(folder: &Path) {
    for item in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if item.path().is_dir() {
            remove_cgroup(&item.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

/// Removes what plugins and runtimes note about our containers outside the state folder, where others may note theirs.
fn remove_records(place: &Place) {
    let _ = std::fs::remove_dir_all("/run/containerd/runc/k8s.io");
    for item in std::fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten() {
        let name = item.file_name().to_string_lossy().into_owned();
        let content = std::fs::read_to_string(item.path()).unwrap_or_default();
        if name.starts_with(&format!("{BRIDGE}-")) || content.contains(&place.text("containerd-state")) {
            let _ = std::fs::remove_file(item.path());
        }
    }
}

/// Empties the state folder but for images. The records of containers go with their pods.
fn remove_state(place: &Place) -> Result<()> {
    for item in std::fs::read_dir(place.folder())?.flatten() {
        let path = item.path();
        if item.file_name() == KEPT {
            let _ = std::fs::remove_dir_all(path.join("io.containerd.grpc.v1.cri"));
        } else if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        } else {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_chains_and_the_jumps_to_them_are_removed() {
        let listing = "table ip nat { # handle 1
\tchain DOCKER { # handle 2
\t\tiifname \"docker0\" counter packets 0 bytes 0 return # handle 3
\t}
\tchain KUBE-SERVICES { # handle 4
\t\tcounter packets 0 bytes 0 jump KUBE-NODEPORTS # handle 5
\t}
\tchain KUBE-NODEPORTS { # handle 6
\t}
\tchain OUTPUT { # handle 7
\t\ttype nat hook output priority dstnat; policy accept;
\t\t counter packets 9 bytes 540 jump KUBE-SERVICES # handle 8
\t\tcounter packets 9 bytes 540 jump DOCKER # handle 9
\t}
}";
        let wanted = "delete rule ip nat OUTPUT handle 8
flush chain ip nat KUBE-SERVICES
flush chain ip nat KUBE-NODEPORTS
delete chain ip nat KUBE-SERVICES
delete chain ip nat KUBE-NODEPORTS
";
        assert_eq!(removal("ip nat", listing), wanted);
        assert_eq!(removal("ip nat", "table ip nat { # handle 1\n}"), "");
    }
}
