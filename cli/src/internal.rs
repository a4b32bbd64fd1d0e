//! Hidden subcommands: the halves of the mesh and the sample application, each as a process of its own.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::{load, process, sample};

/// Programs within this program.
#[derive(clap::Subcommand)]
pub enum Command {
    /// osier-pilot.
    #[command(disable_help_flag = true)]
    Pilot {
        /// Its own arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// osier-proxy.
    #[command(disable_help_flag = true)]
    Proxy {
        /// Its own arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// The sample application.
    Sample(sample::Arguments),
    /// Steady load on one address.
    Load(load::Arguments),
    /// A user's program, tied to its parent.
    Exec {
        /// Program and arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Runs one of them, tied to the life of the parent.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Pilot { arguments } => {
            process::end_with_parent(Signal::SIGTERM)?;
            Ok(osier_pilot::program::main(named("osier-pilot", arguments)))
        }
        Command::Proxy { arguments } => {
            process::end_with_parent(Signal::SIGTERM)?;
            Ok(osier_proxy::program::main(named("osier-proxy", arguments)))
        }
        Command::Sample(arguments) => {
            process::end_with_parent(Signal::SIGKILL)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(sample::serve(arguments))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Load(arguments) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(load::run(arguments))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Exec { command } => {
            process::end_with_parent(Signal::SIGKILL)?;
            let error = std::process::Command::new(&command[0]).args(&command[1..]).exec();
            Err(error).with_context(|| format!("cannot run {}", command[0].display()))
        }
    }
}

fn named(program: &str, arguments: Vec<OsString>) -> Vec<OsString> {
    std::iter::once(OsString::from(program)).chain(arguments).collect()
}
