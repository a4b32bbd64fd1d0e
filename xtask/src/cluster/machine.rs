//! What the cluster changes on the machine itself, and how it is put back: kernel settings, the bridge, one nftables table.
//!
//! What was there before is written down once, before the first change, and stays until `restore` has used it: an `up` on a running
//! cluster must not take the cluster's own settings for the machine's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::place::{BRIDGE, NODE_ADDRESS, PODS_PREFIX, Place, VIRTUAL};
use crate::run::run;

/// Kernel settings that we set.
const SETTINGS: [(&str, &str); 4] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/bridge/bridge-nf-call-iptables", "1"),
    // A pod's containers take some each; the default is used up by a few dozen pods.
    ("fs/inotify/max_user_instances", "1024"),
    ("vm/overcommit_memory", "1"),
];

/// Kernel settings that the kubelet, kube-proxy and CNI plugins set.
const SETTINGS_OF_OTHERS: [&str; 7] = [
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/conf/all/route_localnet",
    "net/bridge/bridge-nf-call-ip6tables",
];

/// Folders that the parts make outside the state folder, whatever they are told.
const FOLDERS: [&str; 12] = [
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/log/containers",
    "/var/log/pods",
    "/run/containerd",
    "/run/flannel",
    "/opt/containerd",
    "/opt/cni",
    "/etc/cni",
    "/usr/libexec/kubernetes",
    "/run/xtables.lock",
];

/// Our own nftables table.
const TABLE: &str = "osier-cluster";

/// The machine as it was.
#[derive(Serialize, Deserialize, Default)]
pub struct Before {
    settings: BTreeMap<String, String>,
    tables: Vec<String>,
    absent: Vec<PathBuf>,
}

impl Before {
    fn look() -> Result<Self> {
        let names = SETTINGS.iter().map(|(name, _)| *name).chain(SETTINGS_OF_OTHERS);
        let settings = names.filter_map(|name| Some((name.to_owned(), setting(name)?))).collect();
        let absent = FOLDERS.iter().map(PathBuf::from).filter(|path| !path.exists()).collect();
        Ok(Self { settings, tables: tables()?, absent })
    }

    /// What was written down; none when nothing was changed since the last `down`.
    pub fn recorded(place: &Place) -> Result<Option<Self>> {
        match std::fs::read(place.path("machine.json")) {
            Ok(content) => Ok(Some(serde_json::from_slice(&content).context("machine.json is broken")?)),
            Err(_) => Ok(None),
        }
    }

    /// Whether this nftables table was there.
    pub fn had_table(&self, table: &str) -> bool {
        self.tables.iter().any(|had| had == table)
    }
}

/// Sets the machine up.
pub fn prepare(place: &Place) -> Result<()> {
    if Before::recorded(place)?.is_none() {
        let before = Before::look()?;
        if before.tables.iter().any(|table| table.ends_with(" kube-proxy")) {
            bail!("another Kubernetes runs on this machine: there is a nftables table of a kube-proxy");
        }
        place.write("machine.json", &serde_json::to_string_pretty(&before)?)?;
    }
    for (name, value) in SETTINGS {
        set(name, value)?;
    }
    if !link_exists(BRIDGE) {
        let address = format!("{NODE_ADDRESS}/{PODS_PREFIX}");
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        // Of its own, else it takes that of the pod with the lowest one and changes with the pods.
        ip(&["link", "set", BRIDGE, "address", "0a:58:0a:f4:00:01"])?;
        ip(&["address", "add", &address, "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        // Virtual addresses are rewritten before they leave; one that nobody rewrites must not go out by the default route.
        ip(&["route", "add", VIRTUAL, "dev", BRIDGE])?;
    }
    let outer = format!("iifname \"{BRIDGE}\" oifname != \"{BRIDGE}\" reject");
    run(Command::new("nft").arg(format!(
        "add table inet {TABLE}; delete table inet {TABLE}; table inet {TABLE} {{
           chain way-out {{ type filter hook forward priority filter; {outer}; }}
         }}"
    )))
}

/// Puts back what `prepare` and the parts changed.
pub fn restore(place: &Place, before: &Before) -> Result<()> {
    if link_exists(BRIDGE) {
        // The pods' links go with their network namespaces, but not at once.
        for port in std::fs::read_dir(format!("/sys/class/net/{BRIDGE}/brif"))?.flatten() {
            let _ = ip(&["link", "delete", &port.file_name().to_string_lossy()]);
        }
        ip(&["link", "delete", BRIDGE])?;
    }
    for (name, value) in &before.settings {
        if setting(name).as_ref() != Some(value) {
            set(name, value)?;
        }
    }
    for path in &before.absent {
        let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    }
    let _ = std::fs::remove_file(place.path("machine.json"));
    Ok(())
}

/// All nftables tables, as `family name`.
pub fn tables() -> Result<Vec<String>> {
    let done = Command::new("nft").args(["list", "tables"]).stdin(Stdio::null()).output();
    let done = done.context("cannot start nft")?;
    let listed = String::from_utf8_lossy(&done.stdout).into_owned();
    Ok(listed.lines().filter_map(|line| line.strip_prefix("table ")).map(str::to_owned).collect())
}

/// Whether there is a network link of this name.
pub fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments))
}

fn setting(name: &str) -> Option<String> {
    Some(std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().to_owned())
}

fn set(name: &str, value: &str) -> Result<()> {
    std::fs::write(Path::new("/proc/sys").join(name), value)
        .with_context(|| format!("cannot set {name} to {value}"))
}
