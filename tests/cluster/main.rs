//! A real Kubernetes, started and ended by `cargo xtask cluster`, and what tests rely on in it. Needs root, and no cluster up yet.
//!
//! One test, as there is one cluster on a machine: its life from `up` to a `down` after which the machine is as it was.

mod cluster;
mod leftovers;
mod workload;

use cluster::Cluster;
use leftovers::Machine;

#[test]
fn the_cluster_lives_and_leaves_nothing() {
    let before = Machine::look();
    let cluster = Cluster::up();
    cluster.check("up on a running cluster starts nothing", starts_nothing_twice);
    cluster.check("an image made of a folder", workload::load_image);
    cluster.check("a pod with init container and native sidecar", workload::deploy);
    cluster.check("exec over SPDY and WebSocket, and logs", workload::exec_and_logs);
    cluster.check("a ClusterIP with kube-proxy on nftables", workload::reach_service);
    cluster.check("names", workload::resolve);
    cluster.check("addresses of the load balancer", workload::reach_balancer);
    cluster.check("kube-proxy changes to iptables", changes_proxy_mode);
    cluster.check("a ClusterIP with kube-proxy on iptables", workload::reach_service);
    cluster.check("an image that was not imported is asked for nowhere", workload::missing_image);
    // With pods running: that they end is part of it.
    cluster.down();
    before.assert_same(&Machine::look());
}

fn starts_nothing_twice(cluster: &Cluster) {
    let before = cluster.xtask(&["status"]);
    cluster.xtask(&["up"]);
    assert_eq!(cluster.xtask(&["status"]), before, "a pid has changed");
}

fn changes_proxy_mode(cluster: &Cluster) {
    assert!(cluster.rules().contains("table ip kube-proxy"), "nftables mode has a table of its own");
    cluster.xtask(&["up", "--kube-proxy", "iptables"]);
    let rules = cluster.rules();
    assert!(!rules.contains("table ip kube-proxy"), "the rules of the other mode are gone:\n{rules}");
    assert!(rules.contains("chain KUBE-SERVICES"), "the rules of this mode are there:\n{rules}");
}
