//! The mesh on a real Kubernetes: one of our own (`cargo xtask cluster`; needs root and no cluster up yet), or a user's
//! (`OSIER_TEST_KUBECONFIG`, with images from `OSIER_TEST_HUB`).
//!
//! One list of checks, in order, as there is one cluster: its own life first, then the mesh on it, then a `down` after which the
//! machine is as it was. `OSIER_TEST_FULL=1` runs the full tables instead of one round of each.

mod api;
mod cluster;
mod faults;
mod figures;
mod identity;
mod injection;
mod kinds;
mod leftovers;
mod load;
mod mend;
mod mtls;
mod permissions;
mod pilot;
mod revisions;
mod rotation;
mod run;
mod silence;
mod strict;
mod traffic;
mod walkthrough;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use cluster::Cluster;
use leftovers::Machine;
use run::Run;
use walkthrough::Environment;

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
        // Figures are of the programs that people run.
        let profile = if full { "release" } else { "dev" };
        let images = run.always("images", || {
            cluster.xtask(&["load-image", "--osier", profile]);
            cluster.xtask(&["load-image", "--applications"]);
        });
        if images {
            mesh(&mut run, &cluster, full);
            other_proxy_mode(&mut run, &cluster);
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
    run.check("workload: an image made of a folder", || workload::load_image(cluster));
    run.check("workload: init container and native sidecar", || workload::deploy(cluster));
    run.check("workload: exec over SPDY and WebSocket, and logs", || workload::exec_and_logs(cluster));
    run.check("workload: a ClusterIP", || workload::reach_service(cluster));
    run.check("workload: names", || workload::resolve(cluster));
    run.check("workload: addresses of the load balancer", || workload::reach_balancer(cluster));
    run.check("workload: an image that isn't there is asked for nowhere", || {
        workload::missing_image(cluster)
    });
}

/// The same with the other way in which kube-proxy carries Services: a smoke test of the mesh on it.
fn other_proxy_mode(run: &mut Run, cluster: &Cluster) {
    run.check("iptables: kube-proxy changes", || changes_proxy_mode(cluster));
    run.check("iptables: workload, a ClusterIP", || workload::reach_service(cluster));
    run.check("iptables: walkthrough my-nginx, injected", || {
        install(cluster);
        walk(cluster, "my-nginx", true);
    });
}

/// The mesh.
fn mesh(run: &mut Run, cluster: &Cluster, full: bool) {
    run.check("faults: kinds may come later", || faults::kinds_may_come_later(cluster));
    run.check("faults: missing rights are named", || faults::missing_rights_are_named(cluster));
    let installed = run.always("install: precheck and install", || {
        cluster.osier(&["precheck"]);
        install(cluster);
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
    run.check("identity: a namespace of its own", || identity::a_namespace_of_its_own(cluster));
    run.check("identity: rotation of the root under load", || rotation::of_the_root_under_load(cluster));
    run.check("strict: the whole mesh", || strict::the_whole_mesh(cluster));
    run.check("strict: guestbook", || strict::guestbook(cluster));
    run.check("mtls: to STRICT and back", || mtls::to_strict_and_back(cluster));
    run.check("mtls: from off to STRICT", || mtls::from_off_to_strict(cluster));
    let (pods, rps, times) = if full { (10, 500, 5) } else { (4, 200, 1) };
    run.check("traffic: rolling restarts without a failed request", || {
        traffic::rolling_restarts(cluster, pods, rps, times);
    });
    run.check("revisions: canary and tag", || revisions::canary(cluster));
    run.check("revisions: upgrade without a failed request", || revisions::upgrade(cluster));
    let outage = Duration::from_secs(if full { 60 } else { 15 });
    run.check("traffic: outages without a failed request", || traffic::outages(cluster, outage));
    run.check("traffic: first use while pilot is silent", || silence::first_use_of_a_service(cluster));
    run.check("figures: start of a pod", || figures::start_of_a_pod(cluster, full));
    run.check("figures: endpoint change", || figures::endpoint_change(cluster, full));
    run.check("figures: many services", || figures::many_services(cluster, full));
    run.check("figures: admission", || figures::admission(cluster, full));
    for page in PAGES {
        if full {
            run.check(&format!("walkthrough: {page}, plain"), || walk(cluster, page, false));
        }
        run.check(&format!("walkthrough: {page}, injected"), || walk(cluster, page, true));
    }
    run.check("faults: roots are mended", || faults::roots_are_mended(cluster));
    // Last of what needs the control plane: by now all that it may do was done, a gateway's part by the page about Ingresses.
    run.check("roles: nothing that isn't needed", || permissions::nothing_is_granted_in_vain(cluster));
    run.check("kinds: every field is kept", || {
        cluster.osier(&["uninstall"]);
        kinds::every_field_is_kept(cluster);
    });
}

/// The pages under docs/walkthroughs.
const PAGES: [&str; 6] = ["my-nginx", "redis", "guestbook", "wordpress", "workloads", "ingress"];

/// Runs a page as a reader would.
fn walk(cluster: &Cluster, page: &str, injected: bool) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let osier = osier_tests::process::own("osier");
    let osier = std::path::Path::new(osier.get_program()).parent().expect("a program lies in a folder");
    let mut programs = vec![osier.to_owned()];
    if cluster.is_own() {
        programs.push(cluster.folder().join("bin"));
    }
    let environment = Environment {
        kubeconfig: cluster.kubeconfig(),
        programs: &programs,
        hub: cluster.own_hub(),
        pictures: folder.path(),
    };
    walkthrough::run(page, injected, &environment).unwrap_or_else(|error| panic!("{error:#}"));
}

/// Installs the control plane, or puts it back to what checks expect.
fn install(cluster: &Cluster) {
    cluster.osier(&["install", "--set", &format!("global.hub={}", cluster.hub("osier"))]);
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
