//! The node: containerd, kubelet, kube-proxy, and their configuration.

use std::fmt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::place::{BRIDGE, DNS_SERVICE, DOMAIN, LOOPBACK, NODE, NODE_ADDRESS, PODS, Place};
use super::{clean, daemon, kubectl};

const PATIENCE: Duration = Duration::from_secs(90);

/// How kube-proxy carries Services.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProxyMode {
    /// In a table of its own, with maps.
    Nftables,
    /// In iptables chains, still the most common on real clusters.
    Iptables,
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// Starts containerd and waits until it answers.
pub fn start_containerd(place: &Place) -> Result<()> {
    let registry = format!("http://{LOOPBACK}:9");
    place.write("containerd.toml", &containerd_configuration(place))?;
    // Every registry is a port on which nothing listens: an image that wasn't imported fails at once and asks nobody.
    place.write(
        "registries/_default/hosts.toml",
        &format!(
            "server = \"{registry}\"\n[host.\"{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        ),
    )?;
    place.write("cni/10-osier.conflist", &network_configuration(place))?;
    let arguments = ["--config".to_owned(), place.text("containerd.toml")];
    daemon::start(place, "containerd", "containerd".as_ref(), arguments)?;
    daemon::wait(place, "containerd", PATIENCE, || {
        let done = containers(place).args(["images", "list", "--quiet"]).output();
        done.is_ok_and(|done| done.status.success())
    })
}

/// `ctr` on the cluster's images and containers.
pub fn containers(place: &Place) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(place.path("containerd.sock")).args(["--namespace", "k8s.io"]);
    command.stdin(Stdio::null());
    command
}

/// Starts the kubelet, and kube-proxy in this mode; kube-proxy is restarted when it runs in the other one.
pub fn start_node(place: &Place, mode: ProxyMode) -> Result<()> {
    place.write("kubelet.yaml", &kubelet_configuration(place))?;
    // Nothing of the machine's own name service reaches pods.
    place.write("resolv.conf", &format!("nameserver {LOOPBACK}\n"))?;
    let arguments = [
        format!("--config={}", place.text("kubelet.yaml")),
        format!("--kubeconfig={}", place.text("pki/kubelet.kubeconfig")),
        format!("--root-dir={}", place.text("kubelet")),
        format!("--hostname-override={NODE}"),
        format!("--node-ip={NODE_ADDRESS}"),
    ];
    daemon::start(place, "kubelet", &place.program("kubelet"), arguments)?;
    if daemon::is_running(place, "kube-proxy") && self::mode(place)? != mode.to_string() {
        daemon::stop(place, "kube-proxy")?;
        clean::service_rules(place)?;
    }
    place.write("kube-proxy.mode", &mode.to_string())?;
    let arguments = [
        format!("--kubeconfig={}", place.text("pki/kube-proxy.kubeconfig")),
        format!("--proxy-mode={mode}"),
        format!("--cluster-cidr={PODS}"),
        format!("--hostname-override={NODE}"),
        format!("--healthz-bind-address={NODE_ADDRESS}:10256"),
        format!("--metrics-bind-address={NODE_ADDRESS}:10249"),
        "--nodeport-addresses=primary".to_owned(),
        // Neither the machine's connection tracking nor its own priority is changed.
        "--oom-score-adj=0".to_owned(),
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-tcp-timeout-established=0s".to_owned(),
        "--conntrack-tcp-timeout-close-wait=0s".to_owned(),
    ];
    daemon::start(place, "kube-proxy", &place.program("kube-proxy"), arguments)?;
    Ok(())
}

/// The mode in which kube-proxy was started.
pub fn mode(place: &Place) -> Result<String> {
    std::fs::read_to_string(place.path("kube-proxy.mode")).context("kube-proxy was not started")
}

/// Waits until the node is ready and kube-proxy has written its first rules.
pub fn wait_ready(place: &Place) -> Result<()> {
    daemon::wait(place, "kubelet", PATIENCE, || is_ready(place).unwrap_or(false))?;
    let health = format!("{NODE_ADDRESS}:10256");
    daemon::wait(place, "kube-proxy", PATIENCE, || std::net::TcpStream::connect(&health).is_ok())
}

/// Whether the API server says that the node is ready.
pub fn is_ready(place: &Place) -> Result<bool> {
    let path = "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    Ok(kubectl::output(place, &["get", "node", NODE, path])?.trim() == "True")
}

fn containerd_configuration(place: &Place) -> String {
    let file = |name: &str| place.text(name);
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
# Snapshotters of file systems that this machine may lack.
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Without CAP_SYS_RESOURCE nobody may lower the score, and no pod would start.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{registries}"
"#,
        root = file("containerd"),
        state = file("containerd-state"),
        socket = file("containerd.sock"),
        opt = file("opt"),
        pause = super::image::PAUSE,
        cni = file("cni"),
        registries = file("registries"),
    )
}

fn network_configuration(place: &Place) -> String {
    let bridge = serde_json::json!({
        "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": false, "hairpinMode": true,
        "ipam": {
            "type": "host-local", "dataDir": place.text("addresses"),
            "ranges": [[{ "subnet": PODS }]], "routes": [{ "dst": "0.0.0.0/0" }],
        },
    });
    let ports = serde_json::json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    let plugins = serde_json::json!([bridge, ports]);
    serde_json::json!({ "cniVersion": "0.4.0", "name": BRIDGE, "plugins": plugins }).to_string()
}

fn kubelet_configuration(place: &Place) -> String {
    let file = |name: &str| place.text(name);
    format!(
        r"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {NODE_ADDRESS}
port: 10250
readOnlyPort: 0
healthzPort: 0
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: '{ca}'}}}}
authorization: {{mode: Webhook}}
# Signed by us: a request for a certificate would wait for somebody's approval, and exec and logs with it.
tlsCertFile: '{certificate}'
tlsPrivateKeyFile: '{key}'
serverTLSBootstrap: false
rotateCertificates: false
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: [pods]
containerRuntimeEndpoint: 'unix://{socket}'
clusterDNS: [{DNS_SERVICE}]
clusterDomain: {DOMAIN}
resolvConf: '{resolver}'
oomScoreAdj: 0
podLogsDir: '{logs}'
volumePluginDir: '{plugins}'
maxPods: 500
serializeImagePulls: false
# Else it leaves chains in the machine's tables.
makeIPTablesUtilChains: false
# Imported images can't be had again by pulling: never delete one.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {{memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}}
",
        ca = file("pki/ca.crt"),
        certificate = file("pki/kubelet-server.crt"),
        key = file("pki/kubelet-server.key"),
        socket = file("containerd.sock"),
        resolver = file("resolv.conf"),
        logs = file("pod-logs"),
        plugins = file("volume-plugins"),
    )
}
