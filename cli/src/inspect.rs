//! `osier proxy-status` and `osier proxy-config`: what pilot sent, and what a proxy has in force.
//!
//! Status comes from pilot's `/debug/syncz`, configuration from the proxy's own admin interface.

mod tables;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use osier_core::registration::ADMIN_PORT;
use serde_json::Value;

use crate::client::Client;

/// Shows each connected proxy and whether it acknowledged what was sent.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier proxy-status
  osier proxy-status --pilot-monitoring 127.0.0.1:25014 -o json")]
pub struct StatusArguments {
    #[command(flatten)]
    common: Common,
}

/// Shows what a proxy has in force.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier proxy-config routes shop-v1-0a1b2
  osier proxy-config endpoints 127.0.0.1:15000 -o json
  osier proxy-config all shop -o yaml")]
pub struct ConfigArguments {
    /// What to show.
    #[arg(value_enum)]
    what: What,
    /// Name of the proxy as `osier proxy-status` shows it (the beginning is enough), or IP:PORT of its admin interface.
    name: String,
    #[command(flatten)]
    common: Common,
}

/// Where pilot is asked, and how the answer is shown.
#[derive(clap::Args, Clone, Debug)]
struct Common {
    /// Pilot's monitoring address, which knows all proxies.
    #[arg(
        long,
        env = "OSIER_PILOT_MONITORING_ADDRESS",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:15014"
    )]
    pilot_monitoring: SocketAddr,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Part of a proxy's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    #[value(alias = "listener", alias = "l")]
    Listeners,
    #[value(alias = "route", alias = "r")]
    Routes,
    #[value(alias = "cluster", alias = "c")]
    Clusters,
    #[value(alias = "endpoint", alias = "ep")]
    Endpoints,
    All,
}

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
    Yaml,
}

/// Prints the status of all proxies.
pub async fn status(arguments: StatusArguments) -> Result<ExitCode> {
    let proxies = syncz(arguments.common.pilot_monitoring).await?;
    match arguments.common.output {
        Output::Table if proxies.as_array().is_none_or(Vec::is_empty) => println!("No proxy is connected."),
        Output::Table => println!("{}", tables::status(&proxies)),
        format => print_value(&proxies, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a part of a proxy's configuration.
pub async fn config(arguments: ConfigArguments) -> Result<ExitCode> {
    let admin = find_admin(&arguments.name, arguments.common.pilot_monitoring).await?;
    let dump = fetch(admin, "/config_dump?include_eds").await?;
    let parts: &[What] = match arguments.what {
        What::All => &[What::Listeners, What::Routes, What::Clusters, What::Endpoints],
        _ => std::slice::from_ref(&arguments.what),
    };
    if arguments.common.output != Output::Table {
        let mut shown = serde_json::Map::new();
        for part in parts {
            shown.insert(
                format!("{part:?}").to_lowercase(),
                Value::Array(resources(&dump, *part).cloned().collect()),
            );
        }
        print_value(&Value::Object(shown), arguments.common.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (number, part) in parts.iter().enumerate() {
        if number > 0 {
            println!();
        }
        let table = match part {
            What::Listeners => tables::listeners(resources(&dump, *part)),
            What::Routes => tables::routes(resources(&dump, *part)),
            What::Clusters => tables::clusters(resources(&dump, *part)),
            _ => tables::endpoints(resources(&dump, *part)),
        };
        println!("{table}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Resources of one kind in a config dump, static and dynamic, without their wrappers.
fn resources(dump: &Value, part: What) -> impl Iterator<Item = &Value> {
    let (sections, field): (&[&str], &str) = match part {
        What::Listeners => (&["static_listeners", "dynamic_listeners"], "listener"),
        What::Routes => (&["static_route_configs", "dynamic_route_configs"], "route_config"),
        What::Clusters => (&["static_clusters", "dynamic_active_clusters"], "cluster"),
        _ => (&["static_endpoint_configs", "dynamic_endpoint_configs"], "endpoint_config"),
    };
    let configs = dump["configs"].as_array().map(Vec::as_slice).unwrap_or_default();
    configs
        .iter()
        .flat_map(move |config| sections.iter().filter_map(move |section| config[section].as_array()))
        .flatten()
        .map(move |entry| match entry.get("active_state") {
            Some(state) => &state[field],
            None => &entry[field],
        })
        .filter(|value| value.is_object())
}

/// Admin address of a proxy: as given, or that of the one connected proxy whose name begins so.
async fn find_admin(name: &str, pilot: SocketAddr) -> Result<SocketAddr> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let proxies = syncz(pilot).await?;
    let list = proxies.as_array().map(Vec::as_slice).unwrap_or_default();
    let matching: Vec<&Value> = list
        .iter()
        .filter(|proxy| proxy["proxy"].as_str().is_some_and(|known| known.starts_with(name)))
        .collect();
    match matching.as_slice() {
        [] => {
            bail!("no connected proxy has a name that begins with `{name}`; `osier proxy-status` lists them")
        }
        [proxy] => {
            let address = tables::address(proxy).context("pilot does not know the proxy's address")?;
            Ok(SocketAddr::new(address.parse()?, ADMIN_PORT))
        }
        several => {
            let names: Vec<&str> = several.iter().filter_map(|proxy| proxy["proxy"].as_str()).collect();
            bail!("`{name}` is the beginning of several names: {}", names.join(", "))
        }
    }
}

async fn syncz(pilot: SocketAddr) -> Result<Value> {
    fetch(pilot, "/debug/syncz").await.context("is pilot running there? --pilot-monitoring names its address")
}

async fn fetch(address: SocketAddr, path: &str) -> Result<Value> {
    let answer = Client::direct().get(&address.to_string(), path).await?;
    if answer.status != 200 {
        bail!("http://{address}{path} answered {}: {}", answer.status, answer.body_text().trim());
    }
    serde_json::from_slice(&answer.body).with_context(|| format!("http://{address}{path} is not JSON"))
}

fn print_value(value: &Value, format: Output) -> Result<()> {
    match format {
        Output::Yaml => print!("{}", serde_saphyr::to_string(value)?),
        _ => println!("{}", serde_json::to_string_pretty(value)?),
    }
    Ok(())
}
