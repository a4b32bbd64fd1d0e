//! A real Kubernetes on this machine, for tests: `cargo xtask cluster up | down | status | load-image | kubectl`.
//!
//! One node, all parts real: etcd, kube-apiserver, controller manager, scheduler, kubelet, containerd, kube-proxy, CoreDNS, each a
//! plain process of this machine. Needs root. Nothing in it reaches the outside: no image is pulled, pods have no way out.
//!
//! Reading order: `place` (addresses, names, where state lies), `program` (what is built and installed), `machine` (bridge, kernel
//! settings), `certificate`, `control_plane`, `node`, `image`, `dns`, `address` (load balancer), `clean` (how it all ends);
//! `daemon` and `kubectl` are what they stand on, `progress` is what is shown.
//!
//! Invariants: `up` starts what doesn't run and nothing twice; `down` ends processes by their own pid and leaves no process, mount,
//! link, nftables table, cgroup or changed kernel setting behind. Only imported images stay, for the next start.

mod address;
mod certificate;
mod clean;
mod control_plane;
mod daemon;
mod dns;
mod image;
mod kubectl;
mod machine;
mod node;
mod place;
mod program;
mod progress;

use std::os::unix::process::CommandExt;

use anyhow::{Result, bail};
use clap::Subcommand;

use node::ProxyMode;
use place::Place;
use program::Programs;

/// What to do with the cluster.
#[derive(Subcommand)]
pub enum Action {
    /// Build what is missing, start what doesn't run, wait until node and name service are ready.
    Up {
        /// How kube-proxy carries Services. On a running cluster, kube-proxy alone is restarted when this differs.
        #[arg(long, value_enum, default_value_t = ProxyMode::Nftables)]
        kube_proxy: ProxyMode,
    },
    /// End the cluster and undo what it changed on this machine.
    Down {
        /// Remove the imported images as well.
        #[arg(long)]
        images: bool,
    },
    /// Say what runs, whether the node is ready, and where the kubeconfig is. Fails when the cluster isn't ready.
    Status,
    /// Import an image: from an archive, or made from a folder.
    ///
    /// Examples: cargo xtask cluster load-image app.tar
    ///           cargo xtask cluster load-image localhost/app:1 folder --entrypoint /app
    LoadImage(image::Load),
    /// Run kubectl against the cluster.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// Passed on to kubectl.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Give addresses to Services of type LoadBalancer until it is ended. `up` starts it.
    #[command(hide = true)]
    AssignAddresses,
}

/// Does it. True when all went well.
pub fn run(action: &Action) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the cluster needs root: it sets up network namespaces, mounts and cgroups");
    }
    let place = Place::open()?;
    match action {
        Action::Up { kube_proxy } => up(&place, *kube_proxy).map(|()| true),
        Action::Down { images } => {
            clean::down(&place)?;
            if *images {
                clean::remove_images(&place)?;
            }
            Ok(true)
        }
        Action::Status => status(&place),
        Action::LoadImage(load) => image::load(&place, load).map(|()| true),
        Action::Kubectl { arguments } => Err(kubectl::command(&place, arguments)?.exec().into()),
        Action::AssignAddresses => address::assign(&place),
    }
}

fn up(place: &Place, mode: ProxyMode) -> Result<()> {
    let programs = Programs::ensure()?;
    if daemon::ALL.iter().all(|name| !daemon::is_running(place, name)) {
        // What a machine that lost power, or an `up` that failed, has left.
        progress::step("cleaning up after an earlier run", || clean::leftovers(place))?;
    }
    programs.link(place)?;
    progress::step("bridge and kernel settings", || machine::prepare(place))?;
    progress::step("certificates", || certificate::issue(place))?;
    progress::step("containerd", || node::start_containerd(place))?;
    progress::step("etcd and kube-apiserver", || control_plane::start_api(place, &programs))?;
    progress::step("controller manager and scheduler", || control_plane::start_controllers(place))?;
    let images = progress::step("images of the cluster itself", || image::import_own(place, &programs))?;
    progress::step("kubelet and kube-proxy", || node::start_node(place, mode))?;
    progress::step("node is ready", || node::wait_ready(place))?;
    progress::step("load balancer", || address::start(place))?;
    progress::step("CoreDNS", || dns::start(place, &images.coredns))?;
    println!("kubeconfig: {}", place.kubeconfig().display());
    Ok(())
}

/// Prints one line for each process, then the node. True when all is well.
fn status(place: &Place) -> Result<bool> {
    let mut well = true;
    for name in daemon::ALL {
        let running = daemon::pid(place, name);
        well &= running.is_some();
        println!("{name:<24}{}", running.map_or("not running".into(), |pid| format!("running, pid {pid}")));
    }
    if well {
        let ready = node::is_ready(place)?;
        println!("{:<24}{}", "node", if ready { "ready" } else { "not ready" });
        println!("{:<24}{}", "kube-proxy mode", node::mode(place)?);
        println!("{:<24}{}", "kubeconfig", place.kubeconfig().display());
        well = ready;
    }
    Ok(well)
}
