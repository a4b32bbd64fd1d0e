//! `osier admin log`: the log levels of pilots, shown and changed while they run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Result;
use futures_util::future::try_join_all;
use hyper::Method;
use osier_core::say;
use osier_pilot::settings::ADMIN_PORT;
use serde::Serialize;

use crate::levels;
use crate::output::{self, Output};
use crate::reach::{self, Mesh, Place};

/// Manages running control planes.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier admin log
  osier admin log --level xds:debug,store:debug
  osier admin log --level info --revision canary
  osier admin log --admin-address 127.0.0.1:9876 -o json")]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum What {
    /// Shows the log levels of all replicas of pilot, changed first where that is asked for.
    #[command(visible_alias = "l")]
    Log(Log),
}

#[derive(clap::Args, Clone, Debug)]
struct Log {
    /// New levels: `debug` for everything, `xds:debug,store:info` for parts. A replica that starts later begins with its own.
    #[arg(long, value_name = "LEVELS")]
    level: Option<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Admin address of a pilot outside of a cluster, as given to `osier up`.
    #[arg(long, env = "OSIER_PILOT_ADMIN_ADDRESS", value_name = "IP:PORT", help_heading = crate::cluster::WHICH)]
    admin_address: Option<SocketAddr>,
    #[command(flatten)]
    mesh: reach::Arguments,
}

/// One pilot and its levels.
#[derive(Debug, Serialize)]
struct Shown {
    pilot: String,
    levels: BTreeMap<String, String>,
}

/// `osier admin`.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let What::Log(log) = arguments.what;
    let query = log.level.as_deref().map(levels::query).transpose()?.unwrap_or_default();
    let (mesh, places) = places(&log).await?;
    let path = format!("/logging{query}");
    let asked = places.iter().map(async |(pilot, place)| {
        let answer = mesh.ask(place, Method::POST, &path).await?;
        anyhow::Ok(Shown { pilot: pilot.clone(), levels: levels::read(&answer.body_text()) })
    });
    let shown = try_join_all(asked).await?;
    match log.output {
        Output::Table => say!("{}", table(&shown)),
        format => output::print(&shown, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Pilots by name, and where their admin interface is.
async fn places(log: &Log) -> Result<(Mesh, Vec<(String, Place)>)> {
    if let Some(address) = log.admin_address {
        return Ok((Mesh::Local(address), vec![(address.to_string(), Place::Address(address))]));
    }
    let mesh = log.mesh.mesh(None).await?;
    let pilots = mesh.pilots().await?;
    let places = pilots.iter().map(|pilot| (pilot.name.clone(), pilot.at(ADMIN_PORT))).collect();
    Ok((mesh, places))
}

/// SCOPE and LOG LEVEL; with several pilots ISTIOD first.
fn table(shown: &[Shown]) -> String {
    let several = shown.len() > 1;
    let mut table = match several {
        true => output::table(&["ISTIOD", "SCOPE", "LOG LEVEL"]),
        false => output::table(&["SCOPE", "LOG LEVEL"]),
    };
    for Shown { pilot, levels } in shown {
        for (scope, level) in levels {
            let row = several.then_some(pilot).into_iter().chain([scope, level]);
            table.add_row(row.collect::<Vec<_>>());
        }
    }
    output::text(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_of_one_and_of_several() {
        let of = |pilot: &str, level: &str| Shown {
            pilot: pilot.into(),
            levels: BTreeMap::from([("store".into(), "info".into()), ("xds".into(), level.into())]),
        };
        assert_eq!(table(&[of("p-1", "debug")]), "SCOPE  LOG LEVEL\nstore  info\nxds    debug");
        assert_eq!(
            table(&[of("p-1", "debug"), of("p-2", "info")]),
            "ISTIOD  SCOPE  LOG LEVEL\np-1     store  info\np-1     xds    debug\np-2     store  info\np-2     xds    info"
        );
    }
}
