//! `osier version`: of this program, of the control plane, and of the proxies that are connected to it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use osier_core::stdout;
use serde_json::{Value, json};

use crate::output::{self, Output};
use crate::reach::{self, Pilot};

const OWN: &str = env!("CARGO_PKG_VERSION");

/// Shows the versions of this program, of the control plane and of the connected proxies.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier version
  osier version --remote=false
  osier version --short=false -o yaml")]
pub struct Arguments {
    /// Ask the mesh, too.
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    remote: bool,
    /// Versions only; `false` lists each pilot and each proxy.
    #[arg(long, short = 's', value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    short: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    mesh: reach::Arguments,
}

/// What the mesh says of itself.
struct Remote {
    /// Each pilot with its version.
    pilots: Vec<(Pilot, String)>,
    /// `/debug/syncz` of them all.
    proxies: Vec<Value>,
}

/// Prints the versions.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let remote = if arguments.remote { Some(ask(&arguments).await) } else { None };
    // What is known is told even where the mesh can't be asked.
    let (remote, failed) = match remote {
        Some(Ok(remote)) => (Some(remote), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    match arguments.output {
        Output::Table => stdout::print(format_args!("{}", lines(remote.as_ref(), arguments.short))),
        format => output::print(&document(remote.as_ref()), format)?,
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

async fn ask(arguments: &Arguments) -> Result<Remote> {
    let mesh = arguments.mesh.mesh(None).await?;
    let pages = mesh.of_pilots("/version").await?;
    let version = |page: Value| page["version"].as_str().unwrap_or("unknown").to_owned();
    let pilots = pages.into_iter().map(|(pilot, page)| (pilot, version(page))).collect();
    Ok(Remote { pilots, proxies: mesh.clients().await? })
}

fn version_of(proxy: &Value) -> &str {
    proxy["istio_version"].as_str().filter(|version| !version.is_empty()).unwrap_or("unknown")
}

fn lines(remote: Option<&Remote>, short: bool) -> String {
    let mut text = format!("client version: {OWN}\n");
    let Some(Remote { pilots, proxies }) = remote else { return text };
    if !short {
        for (pilot, version) in pilots {
            let revision = pilot.revision.as_ref().map(|r| format!(" (revision {r})")).unwrap_or_default();
            text.push_str(&format!("pilot {}: {version}{revision}\n", pilot.name));
        }
        for proxy in proxies {
            let name = proxy["proxy"].as_str().unwrap_or_default();
            text.push_str(&format!("proxy {name}: {}\n", version_of(proxy)));
        }
        return text;
    }
    let mut revisions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (pilot, version) in pilots {
        let of_version = revisions.entry(version).or_default();
        of_version.extend(pilot.revision.as_deref().filter(|revision| !of_version.contains(revision)));
    }
    let several = revisions.len() > 1;
    let planes = revisions.iter().map(|(version, revisions)| match several {
        true => format!("{version} ({})", revisions.join(", ")),
        false => (*version).to_owned(),
    });
    text.push_str(&format!("control plane version: {}\n", planes.collect::<Vec<_>>().join(", ")));
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    proxies.iter().for_each(|proxy| *counts.entry(version_of(proxy)).or_default() += 1);
    let counts: Vec<String> = counts
        .iter()
        .map(|(version, count)| {
            format!("{version} ({count} {})", if *count == 1 { "proxy" } else { "proxies" })
        })
        .collect();
    let counts = if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
    text.push_str(&format!("data plane version: {counts}\n"));
    text
}

/// With istioctl's keys.
fn document(remote: Option<&Remote>) -> Value {
    let mut document = json!({ "clientVersion": { "version": OWN } });
    if let Some(Remote { pilots, proxies }) = remote {
        let planes = pilots.iter().map(|(pilot, version)| {
            json!({ "Component": "pilot", "Revision": pilot.revision, "Info": { "version": version }, "Pod": pilot.name })
        });
        document["meshVersion"] = planes.collect();
        let proxies = proxies.iter().map(|p| json!({ "ID": p["proxy"], "IstioVersion": version_of(p) }));
        document["dataPlaneVersion"] = proxies.collect();
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote() -> Remote {
        let pilot = |name: &str, revision: &str, version: &str| {
            (Pilot::for_tests(name, Some(revision)), version.to_owned())
        };
        let proxy = |name: &str, version: &str| json!({"proxy": name, "istio_version": version});
        Remote {
            pilots: vec![
                pilot("p-1", "default", "0.1.0"),
                pilot("p-2", "default", "0.1.0"),
                pilot("c-1", "canary", "0.2.0"),
            ],
            proxies: vec![proxy("a.x", "0.1.0"), proxy("b.x", "0.1.0"), proxy("c.x", "")],
        }
    }

    #[test]
    fn versions_are_counted() {
        assert_eq!(lines(None, true), format!("client version: {OWN}\n"));
        assert_eq!(
            lines(Some(&remote()), true),
            format!(
                "client version: {OWN}\ncontrol plane version: 0.1.0 (default), 0.2.0 (canary)\n\
                 data plane version: 0.1.0 (2 proxies), unknown (1 proxy)\n"
            )
        );
        let mut one = remote();
        one.pilots.truncate(2);
        one.proxies.clear();
        let text = lines(Some(&one), true);
        assert!(text.ends_with("control plane version: 0.1.0\ndata plane version: none\n"), "{text}");
    }

    #[test]
    fn each_is_listed_where_that_is_wanted() {
        let text = lines(Some(&remote()), false);
        assert!(
            text.contains("pilot c-1: 0.2.0 (revision canary)\n") && text.contains("proxy a.x: 0.1.0\n"),
            "{text}"
        );
        let document = document(Some(&remote()));
        assert_eq!(document["meshVersion"][2]["Revision"], "canary");
        assert_eq!(document["dataPlaneVersion"][0], json!({"ID": "a.x", "IstioVersion": "0.1.0"}));
    }
}
