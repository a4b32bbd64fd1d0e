//! `osier mtls`: who still calls in plaintext, what STRICT would break, and the way there.
//!
//! `report` asks pilots for workloads and their modes, and each sidecar for its callers; `flip` changes a namespace in two phases.

mod flip;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use osier_core::say;

use crate::output::{self, Output};
use crate::reach;
use report::Report;

/// Shows who calls in plaintext and what STRICT mutual TLS would break; brings a namespace there.
#[derive(clap::Args, Clone, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  osier mtls
  osier mtls -n shop --since 1h
  osier mtls strict shop
  osier mtls permissive shop"
)]
pub struct Arguments {
    #[command(subcommand)]
    to: Option<To>,
    #[command(flatten)]
    list: List,
}

/// What is shown.
#[derive(clap::Args, Clone, Debug)]
struct List {
    /// Only workloads of this namespace.
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only callers that were seen within this time. [default: all that sidecars remember]
    #[arg(long, value_name = "TIME", value_parser = osier_core::duration::parse)]
    since: Option<Duration>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    mesh: reach::Arguments,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum To {
    /// Refuse plaintext in a namespace, once nobody calls in plaintext any more.
    Strict(flip::Arguments),
    /// Take plaintext again.
    Permissive(flip::Arguments),
}

/// Shows, or changes.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.to {
        Some(To::Strict(flip)) => flip::strict(&flip).await,
        Some(To::Permissive(flip)) => flip::permissive(&flip).await,
        None => list(arguments.list).await,
    }
}

async fn list(list: List) -> Result<ExitCode> {
    // The namespace chooses what is shown, not which mesh.
    let mesh = list.mesh.mesh(None).await?;
    let report = Report::read(&mesh, list.namespace.as_deref(), list.since).await?;
    match list.output {
        Output::Table => say!("{report}"),
        format => output::print(&report, format)?,
    }
    Ok(ExitCode::SUCCESS)
}
