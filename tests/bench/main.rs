//! Side by side: Osier, Envoy, haproxy, nginx and a bare relay in one run, same backend, equal worker counts.
//!
//! Reading order: `row` (what is measured), `subject` (who is measured, with which file), `mesh` (rows with a control plane),
//! `keys` (rows with TLS), `tokens` (the row with them), `load` (what is sent), `usage` (CPU clocks, wake-ups, memory), `report`. Everything runs in a network namespace of its own, so the machine's settings
//! stay as they are and congestion control is the same everywhere. CPU time per request is the figure to steer by.

mod echo;
mod keys;
mod load;
mod mesh;
mod namespace;
mod report;
mod row;
mod subject;
mod tokens;
mod usage;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// Compares Osier with Envoy, haproxy, nginx and a bare relay on this machine.
#[derive(Parser, Debug)]
#[command(
    name = "cargo xtask bench",
    after_help = "\
Examples:
  cargo xtask bench
  cargo xtask bench http1 http2 --rounds 5 --seconds 5
  cargo xtask bench latency-1000rps --json"
)]
pub struct Arguments {
    /// Rows to measure; all without one.
    rows: Vec<row::Row>,
    /// Rounds; subjects take turns within each.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of load in each round.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Only these subjects.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<subject::Kind>,
    /// One JSON array instead of a table.
    #[arg(long)]
    json: bool,
    /// Serve as the bare relay or the echo backend (used by the benchmark itself).
    #[arg(long, hide = true, num_args = 2, value_names = ["LISTEN", "TARGET"])]
    relay: Option<Vec<std::net::SocketAddr>>,
    /// Hold back what the relay passes on, in both directions.
    #[arg(long, hide = true, default_value_t = 0)]
    relay_delay_ms: u64,
    /// See above.
    #[arg(long, hide = true)]
    echo: Option<std::net::SocketAddr>,
    /// See above.
    #[arg(long, hide = true)]
    grpc: Option<std::net::SocketAddr>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(pair) = &arguments.relay {
        return match arguments.relay_delay_ms {
            0 => echo::relay(pair[0], pair[1]),
            delay => echo::slow_relay(pair[0], pair[1], Duration::from_millis(delay)),
        };
    }
    if let Some(address) = arguments.echo {
        return echo::echo(address);
    }
    if let Some(address) = arguments.grpc {
        return echo::grpc(address);
    }
    match namespace::enter().and_then(|()| measure(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let rows = if arguments.rows.is_empty() { row::Row::all() } else { arguments.rows.clone() };
    let (mut results, mut failed) = (Vec::new(), Vec::new());
    for row in rows {
        eprintln!("bench: {}", row.name());
        let run = || row::run(row, arguments, Duration::from_secs(arguments.seconds));
        // What the other rows measured took minutes, and outlives even a program that doesn't start, which panics.
        match std::panic::catch_unwind(run) {
            Ok(Ok(figures)) => results.extend(figures),
            Ok(Err(error)) => failed.push(format!("{}: {error:#}", row.name())),
            Err(_) => failed.push(format!("{}: see above", row.name())),
        }
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        report::print(&results);
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}
