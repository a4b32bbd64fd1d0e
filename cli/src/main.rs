//! Osier for people: a mesh on this machine (`demo`, `up`, `run`), one in a cluster (`install`, `inject`, `tag`, …), and looks into both
//! (`proxy-status`, `proxy-config`, `describe`, `logs`, …).
//!
//! Both halves of the mesh are in this program as libraries; hidden subcommands run them as processes of their own, so one
//! file is all that `osier demo` and `osier run` need. Commands fail with one sentence that says what to do; exit status 2
//! is wrong usage, 1 any other failure.

#![deny(clippy::print_stdout, reason = "`osier_core::say!` ends politely where nobody reads")]

mod admin;
/// The proxy's own, with its settings: this program is a sidecar, too.
#[path = "../../proxy/src/allocator.rs"]
mod allocator;
mod check_inject;
mod client;
mod cluster;
mod demo;
mod describe;
mod identity;
mod inject;
mod inspect;
mod install;
mod internal;
mod levels;
mod load;
mod logs;
mod mtls;
mod output;
mod plugin;
mod pods;
mod process;
mod reach;
mod run;
mod sample;
mod up;
mod version;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "osier",
    version,
    about = "A service mesh: see it run, run your own programs in it, look into it"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Up(up::Arguments),
    Run(run::Arguments),
    #[command(visible_alias = "kube-inject")]
    Inject(inject::Arguments),
    #[command(visible_alias = "ps")]
    ProxyStatus(inspect::status::Arguments),
    #[command(visible_alias = "pc")]
    ProxyConfig(inspect::config::Arguments),
    Install(install::InstallArguments),
    Upgrade(install::UpgradeArguments),
    Uninstall(install::UninstallArguments),
    Precheck(install::PrecheckArguments),
    Tag(install::TagArguments),
    Version(version::Arguments),
    CheckInject(check_inject::Arguments),
    Describe(describe::Arguments),
    Mtls(mtls::Arguments),
    Logs(logs::Arguments),
    Admin(admin::Arguments),
    #[command(subcommand, visible_alias = "x", alias = "exp")]
    Experimental(Experimental),
    #[command(hide = true, subcommand)]
    Internal(internal::Command),
}

/// Commands under the names that istioctl has them under.
#[derive(Subcommand)]
enum Experimental {
    CheckInject(check_inject::Arguments),
    Describe(describe::Arguments),
    Precheck(install::PrecheckArguments),
}

fn main() -> ExitCode {
    let outcome = match parse().command {
        Command::Internal(command) => internal::run(command),
        Command::Demo(arguments) => blocking(demo::run(arguments)),
        Command::Up(arguments) => up::run(arguments),
        Command::Run(arguments) => blocking(run::run(arguments)),
        Command::Inject(arguments) => inject::run(&arguments),
        Command::ProxyStatus(arguments) => blocking(inspect::status::run(arguments)),
        Command::ProxyConfig(arguments) => blocking(inspect::config::run(arguments)),
        Command::Install(arguments) => blocking(install::install(arguments)),
        Command::Upgrade(arguments) => blocking(install::upgrade(arguments)),
        Command::Uninstall(arguments) => blocking(install::uninstall(arguments)),
        Command::Describe(arguments) | Command::Experimental(Experimental::Describe(arguments)) => {
            blocking(describe::run(arguments))
        }
        Command::Mtls(arguments) => blocking(mtls::run(arguments)),
        Command::Admin(arguments) => blocking(admin::run(arguments)),
        Command::Logs(arguments) => blocking(logs::run(arguments)),
        Command::Precheck(arguments) | Command::Experimental(Experimental::Precheck(arguments)) => {
            blocking(install::precheck(arguments))
        }
        Command::Tag(arguments) => blocking(install::tag(arguments)),
        Command::Version(arguments) => blocking(version::run(arguments)),
        Command::CheckInject(arguments) | Command::Experimental(Experimental::CheckInject(arguments)) => {
            blocking(check_inject::run(arguments))
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("osier: {error:#}");
        ExitCode::FAILURE
    })
}

/// The command line, under the name that the program was found by. Wrong usage ends the process with status 2.
fn parse() -> Arguments {
    let command = Arguments::command();
    let command = match plugin::is_plugin(std::env::args_os().next().as_deref()) {
        true => plugin::renamed(command),
        false => command,
    };
    Arguments::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

fn blocking(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_place_in_the_reference() {
        let page = include_str!("../../docs/reference/cli.md");
        for command in Arguments::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let named = format!("`osier {}", command.get_name());
            assert!(page.contains(&named), "docs/reference/cli.md does not have {named}`");
        }
    }

    #[test]
    fn every_command_can_be_parsed() {
        Arguments::command().debug_assert();
    }
}
