//! `osier demo`: a real mesh on this machine, without Kubernetes and without root.
//!
//! Reading order: `mesh` (the folder of YAML, pilot, and a sidecar with each sample), `load` (steady traffic, counted),
//! `table` (what the sidecars' own metrics say), `check` (the same story without a terminal, each figure asserted).

mod check;
mod load;
mod mesh;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

/// Shows a mesh at work: pilot on a folder of YAML, four sample services in several versions with a sidecar each, and traffic.
///
/// Prints a live table and three things to try. Ctrl-C ends everything.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier demo
  osier demo --dir ./mesh          keep the YAML in a folder of your own
  osier demo --check               run the story without a terminal and check each figure
  osier demo --check --json        the same, one JSON object per figure")]
pub struct Arguments {
    /// Folder for the YAML and the logs; a temporary one without it.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Requests per second from outside.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rps: u32,
    /// No certificates: the samples speak plaintext with each other.
    #[arg(long)]
    plaintext: bool,
    /// Run the story, check each figure, and set the exit status.
    #[arg(long)]
    check: bool,
    /// With --check: one JSON object per line.
    #[arg(long, requires = "check")]
    json: bool,
}

/// Runs the demo until Ctrl-C, or the check to its end.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let temporary = tempfile::Builder::new().prefix("osier-demo-").tempdir()?;
    let folder = arguments.dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let story = async {
        eprintln!("osier: starting pilot and the sample services in {}", folder.display());
        let mut mesh = mesh::Mesh::start(&folder, arguments.plaintext).await?;
        if arguments.check {
            let outcome = check::run(&mut mesh, arguments.plaintext, arguments.json).await;
            mesh.stop().await;
            return outcome;
        }
        let load = load::Load::start(mesh.client().explicit_proxy(), arguments.rps);
        table::show(&mesh, &load).await?;
        Ok(ExitCode::SUCCESS)
    };
    tokio::select! {
        outcome = story => outcome,
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
    }
}
