//! The machine as the cluster finds it and must leave it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Kernel settings that a cluster changes.
const SETTINGS: [&str; 6] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "fs/inotify/max_user_instances",
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/keys/root_maxkeys",
];

/// Programs of a cluster, by the beginnings of their names.
const PROGRAMS: [&str; 7] = ["kube", "etcd", "containerd", "coredns", "pause", "load-balancer", "httpd"];

/// Folders that a cluster makes.
const FOLDERS: [&str; 6] = [
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/log/containers",
    "/var/log/pods",
    "/run/containerd",
    "/run/netns",
];

/// One line for each thing that a cluster could leave.
pub struct Machine(BTreeSet<String>);

impl Machine {
    /// What is there now.
    pub fn look() -> Self {
        let mut lines = BTreeSet::new();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts can be read");
        lines.extend(mounts.lines().filter_map(|line| Some(format!("mount {}", line.split(' ').nth(4)?))));
        lines.extend(names("/sys/class/net").map(|name| format!("link {name}")));
        lines.extend(names("/run/netns").map(|name| format!("network namespace {name}")));
        lines.extend(rules().lines().map(|line| format!("nftables {line}")));
        for hierarchy in names("/sys/fs/cgroup") {
            let folder = Path::new("/sys/fs/cgroup").join(&hierarchy);
            for name in ["kubepods", "k8s.io"].iter().filter(|name| folder.join(name).exists()) {
                lines.insert(format!("cgroup {hierarchy}/{name}"));
            }
        }
        for name in SETTINGS {
            let value = std::fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
            lines.insert(format!("setting {name} = {}", value.trim()));
        }
        lines.extend(
            FOLDERS.iter().filter(|path| Path::new(path).exists()).map(|path| format!("folder {path}")),
        );
        lines.extend(processes());
        Self(lines)
    }

    /// Fails with what was left and what is missing.
    pub fn assert_same(&self, after: &Self) {
        let left: Vec<_> = after.0.difference(&self.0).collect();
        let lost: Vec<_> = self.0.difference(&after.0).collect();
        assert!(left.is_empty() && lost.is_empty(), "left on the machine: {left:#?}\nlost: {lost:#?}");
    }
}

/// All nftables rules; the counters of others run on.
fn rules() -> String {
    let done = Command::new("nft").args(["--stateless", "list", "ruleset"]).output();
    String::from_utf8(done.expect("nft is installed").stdout).expect("nft prints text")
}

/// Processes of a cluster that run. One that has ended and isn't collected yet doesn't.
fn processes() -> Vec<String> {
    let mut found = Vec::new();
    for pid in names("/proc").filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if PROGRAMS.iter().any(|start| name.starts_with(start)) && !status.contains("State:\tZ") {
            found.push(format!("process {pid} {}", name.trim()));
        }
    }
    found
}

fn names(folder: &str) -> impl Iterator<Item = String> + use<> {
    let items = std::fs::read_dir(folder).into_iter().flatten().flatten();
    items.map(|item| item.file_name().to_string_lossy().into_owned())
}
