//! The mesh on a real Kubernetes: one of our own (`cargo xtask cluster`; needs root and no cluster up yet), or a user's
//! (`OSIER_TEST_KUBECONFIG`, with images from `OSIER_TEST_HUB`).
//!
//! One list of checks, in order, as there is one cluster: its own life first, then the mesh on it, then a `down` after which the
//! machine is as it was. `OSIER_TEST_FULL=1` runs the full tables instead of one round of each.

mod api;
mod cluster;
mod faults;
mod figures;
mod injection;
mod kinds;
mod leftovers;
mod load;
mod permissions;
mod run;
mod traffic;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use cluster::Cluster;
use leftovers::Machine;
use run::Run;

fn main() -> ExitCode {
    let mut run = Run::new();
    let full = std::env::var_os("OSIER_TEST_FULL").is_some();
    if let Some(cluster) = Cluster::of_user() {
        mesh(&mut run, &cluster, full);
        return run.end();
    }
    let before = Machine::look();
    let mut started = None;
    if run.always("the cluster comes up", || started = Some(Cluster::up("nftables")))
        && let Some(cluster) = started.take()
    {
        own_cluster(&mut run, &cluster);
        if run.always("images of Osier", || drop(cluster.xtask(&["load-image", "--osier", "dev"]))) {
            mesh(&mut run, &cluster, full);
        }
        // With pods running: that they end is part of it.
        run.always("the cluster goes and leaves nothing", || {
            cluster.down();
            before.assert_same(&Machine::look());
        });
    }
    run.end()
}

/// What tests rely on in a cluster of our own.
fn own_cluster(run: &mut Run, cluster: &Cluster) {
    run.check("up on a running cluster starts nothing", || starts_nothing_twice(cluster));
    if run.wants("workload") {
        run.check("workload: an image made of a folder", || workload::load_image(cluster));
        run.check("workload: init container and native sidecar", || workload::deploy(cluster));
        run.check("workload: exec over SPDY and WebSocket, and logs", || workload::exec_and_logs(cluster));
        run.check("workload: a ClusterIP with kube-proxy on nftables", || workload::reach_service(cluster));
        run.check("workload: names", || workload::resolve(cluster));
        run.check("workload: addresses of the load balancer", || workload::reach_balancer(cluster));
        run.check("workload: kube-proxy changes to iptables", || changes_proxy_mode(cluster));
        run.check("workload: a ClusterIP with kube-proxy on iptables", || workload::reach_service(cluster));
        run.check("workload: an image that isn't there is asked for nowhere", || {
            workload::missing_image(cluster)
        });
    }
}

/// The mesh.
fn mesh(run: &mut Run, cluster: &Cluster, full: bool) {
    run.check("faults: kinds may come later", || faults::kinds_may_come_later(cluster));
    run.check("faults: missing rights are named", || faults::missing_rights_are_named(cluster));
    let installed = run.always("install: precheck and install", || {
        cluster.osier(&["precheck"]);
        cluster.osier(&["install", "--set", &format!("global.hub={}", cluster.hub("osier"))]);
    });
    if !installed {
        return;
    }
    run.check("injection: the selectors choose", || injection::the_selectors_choose(cluster));
    run.check("injection: broken annotations are refused", || {
        injection::broken_annotations_are_refused(cluster)
    });
    run.check("validation: wrong resources are refused", || injection::wrong_resources_are_refused(cluster));
    run.check("status: says what is refused", || injection::status_says_what_is_refused(cluster));
    run.check("faults: replicas share the work", || faults::replicas_share_the_work(cluster));
    run.check("faults: trust is mended", || faults::trust_is_mended(cluster));
    run.check("faults: odd workloads", || faults::odd_workloads(cluster));
    run.check("traffic: blue/green without a failed request", || traffic::blue_green(cluster));
    let (pods, rps, times) = if full { (10, 500, 5) } else { (4, 200, 1) };
    run.check("traffic: rolling restarts without a failed request", || {
        traffic::rolling_restarts(cluster, pods, rps, times);
    });
    let outage = Duration::from_secs(if full { 60 } else { 15 });
    run.check("traffic: outages without a failed request", || traffic::outages(cluster, outage));
    run.check("figures: start of a pod", || figures::start_of_a_pod(cluster, full));
    run.check("figures: endpoint change", || figures::endpoint_change(cluster, full));
    run.check("figures: many services", || figures::many_services(cluster, full));
    run.check("figures: admission", || figures::admission(cluster, full));
    run.check("roles: nothing that isn't needed", || permissions::nothing_is_granted_in_vain(cluster));
    run.check("kinds: every field is kept", || {
        cluster.osier(&["uninstall"]);
        kinds::every_field_is_kept(cluster);
    });
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
