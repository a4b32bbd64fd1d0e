//! The project's own tasks: `cargo xtask test | licences | prune | bench | image | gen | cluster | cluster-full`.
//!
//! Reading order: `suite` (what is tested and what each suite needs), `part` (how real parts are installed),
//! `run` (running and counting), `cache` (what is kept outside the clone), `cluster` (a real Kubernetes on this machine), `crd` (definitions of Istio's kinds),
//! `image` (Osier's own, and how one is made).

mod cache;
mod cluster;
mod crd;
mod image;
mod licence;
mod part;
mod run;
mod suite;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the Osier workspace")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run all tests, or the named suites. Installs the real parts that a suite needs and says so.
    ///
    /// Example: cargo xtask test unit oracle
    Test {
        /// Suites to run; all when none is named.
        suites: Vec<String>,
        /// List the suites and what each needs.
        #[arg(long)]
        list: bool,
        /// Cluster that the suite `cluster` runs on, instead of one of its own.
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// Where that cluster gets images from: a registry and path to which `cargo xtask image --hub` and its like were pushed.
        #[arg(long, value_name = "HUB", requires = "kubeconfig")]
        hub: Option<String>,
    },
    /// Run the suite `cluster` with the programs that people run, each figure held against its promise, long outages, every
    /// walkthrough plain and injected. Takes about an hour.
    ClusterFull,
    /// Check licences and banned crates of the whole dependency graph against deny.toml.
    Licences,
    /// Remove build output of old lock files from the cache folder.
    Prune,
    /// Compare Osier with Envoy, haproxy, nginx and a bare relay on this machine.
    ///
    /// Example: cargo xtask bench http1 --rounds 3 --seconds 5 --json
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to the benchmark program; `--help` lists its rows and options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Make the images osier/proxy, osier/pilot and osier/cli, or those of the walkthroughs' applications, as archives.
    ///
    /// Example: cargo xtask image --tag 0.1.0 --output images && docker load --input images/proxy.tar
    Image(image::osier::Build),
    /// Make files of the workspace anew that are made from something else.
    Gen {
        /// What to make.
        #[arg(value_enum)]
        what: Generated,
    },
    /// Run a real single-node Kubernetes on this machine, for tests. Needs root.
    ///
    /// Example: cargo xtask cluster up && cargo xtask cluster kubectl get pods -A
    Cluster {
        #[command(subcommand)]
        action: cluster::Action,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Generated {
    /// Definitions of Istio's kinds, for the Helm chart.
    Crds,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Test { list: true, .. } => {
            suite::print_list();
            Ok(true)
        }
        Task::Test { suites, kubeconfig, hub, .. } => {
            let given = [
                ("OSIER_TEST_KUBECONFIG", kubeconfig.map(PathBuf::into_os_string)),
                ("OSIER_TEST_HUB", hub.map(OsString::from)),
            ];
            let given = given.into_iter().filter_map(|(name, value)| Some((name, value?)));
            run::test(&suites, &given.collect::<Vec<_>>())
        }
        Task::ClusterFull => run::test(&["cluster".to_owned()], &[("OSIER_TEST_FULL", "1".into())]),
        Task::Licences => licence::check(),
        Task::Prune => cache::prune().map(|()| true),
        Task::Bench { arguments } => run::bench(&arguments),
        Task::Image(build) => image::osier::build(&build).map(|()| true),
        Task::Gen { what: Generated::Crds } => crd::generate().map(|()| true),
        Task::Cluster { action } => cluster::run(&action),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
