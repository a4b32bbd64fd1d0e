//! `osier proxy-config`: what a proxy has in force, as its own admin interface says.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use hyper::Method;
use osier_core::{say, stdout};
use serde_json::{Map, Value};

use super::tables::{self, list};
use crate::levels;
use crate::output::{self, Output};
use crate::reach;

/// Shows what a proxy has in force.
#[derive(clap::Args, Clone, Debug)]
#[command(
    subcommand_value_name = "listeners|routes|clusters|endpoints|all|bootstrap|log",
    after_help = "\
Examples:
  osier proxy-config routes shop-6d5f-x2x1z.default
  osier proxy-config clusters deployment/shop -n default --fqdn reviews
  osier proxy-config endpoints 127.0.0.1:15000 -o json
  osier proxy-config log deployment/shop --level http:debug"
)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

/// Part of a proxy's configuration.
#[derive(clap::Subcommand, Clone, Debug)]
enum What {
    /// Listeners, one row a filter chain.
    #[command(visible_aliases = ["listener", "l"])]
    Listeners {
        #[command(flatten)]
        proxy: Proxy,
        /// Only listeners on this port.
        #[arg(long, value_name = "PORT")]
        port: Option<u16>,
        /// Only listeners on this address.
        #[arg(long, value_name = "IP")]
        address: Option<String>,
    },
    /// Routes, one row a route.
    #[command(visible_aliases = ["route", "r"])]
    Routes {
        #[command(flatten)]
        proxy: Proxy,
        /// Only the route configuration of this name.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Clusters.
    #[command(visible_aliases = ["cluster", "c"])]
    Clusters {
        #[command(flatten)]
        proxy: Proxy,
        /// Only clusters whose host contains this.
        #[arg(long, value_name = "HOST")]
        fqdn: Option<String>,
        /// Only clusters of this service port.
        #[arg(long, value_name = "PORT")]
        port: Option<u16>,
        /// Only clusters of this subset.
        #[arg(long, value_name = "NAME")]
        subset: Option<String>,
        /// Only `inbound` or `outbound` clusters.
        #[arg(long, value_name = "DIRECTION")]
        direction: Option<String>,
    },
    /// Endpoints, one row an address.
    #[command(visible_aliases = ["endpoint", "ep"])]
    Endpoints {
        #[command(flatten)]
        proxy: Proxy,
        /// Only endpoints of this cluster.
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
        /// Only endpoints on this port.
        #[arg(long, value_name = "PORT")]
        port: Option<u16>,
        /// Only endpoints with this address.
        #[arg(long, value_name = "IP")]
        address: Option<String>,
        /// Only endpoints in this state: healthy, unhealthy or draining.
        #[arg(long, value_name = "STATE")]
        status: Option<String>,
    },
    /// Listeners, routes, clusters and endpoints.
    #[command(visible_alias = "a")]
    All {
        #[command(flatten)]
        proxy: Proxy,
    },
    /// What the proxy was started with; JSON where nothing else is asked for.
    #[command(visible_alias = "b")]
    Bootstrap {
        #[command(flatten)]
        proxy: Proxy,
    },
    /// Log levels, and changes of them.
    #[command(visible_alias = "o")]
    Log {
        #[command(flatten)]
        proxy: Running,
        /// New levels: `debug` for everything, `http:debug,xds:info` for parts.
        #[arg(long, value_name = "LEVELS")]
        level: Option<String>,
    },
}

/// A proxy, or what one said.
#[derive(clap::Args, Clone, Debug)]
struct Proxy {
    /// Pod, POD.NAMESPACE, deployment/NAME, the name (or its beginning) that `osier proxy-status` shows, or IP:PORT of its admin interface.
    #[arg(id = "proxy", value_name = "NAME", required_unless_present = "file")]
    name: Option<String>,
    /// Namespace of names without one.
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// File with a proxy's `/config_dump?include_eds` to read instead of asking one.
    #[arg(long, short = 'f', value_name = "FILE", conflicts_with_all = ["proxy", "namespace"])]
    file: Option<PathBuf>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    mesh: reach::Arguments,
}

/// A proxy that runs.
#[derive(clap::Args, Clone, Debug)]
struct Running {
    /// Pod, POD.NAMESPACE, deployment/NAME, the name (or its beginning) that `osier proxy-status` shows, or IP:PORT of its admin interface.
    #[arg(value_name = "NAME")]
    name: String,
    /// Namespace of names without one.
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    mesh: reach::Arguments,
}

/// Resources of one kind: where they are in a config dump, and how they are called in output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Listeners,
    Routes,
    Clusters,
    Endpoints,
}

const ALL: [Part; 4] = [Part::Listeners, Part::Routes, Part::Clusters, Part::Endpoints];

/// Prints a part of a proxy's configuration.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.what {
        What::Log { proxy, level } => log(&proxy, level.as_deref()).await?,
        What::Bootstrap { proxy } => {
            let dump = proxy.dump().await?;
            let bootstrap = list(&dump["configs"]).iter().find_map(|config| config.get("bootstrap"));
            output::print(bootstrap.context("the proxy's configuration has no bootstrap")?, proxy.output)?;
        }
        What::All { proxy } => {
            let dump = proxy.dump().await?;
            show(&ALL.map(|part| (part, resources(&dump, part))), proxy.output)?;
        }
        What::Listeners { proxy, port, address } => {
            one(&proxy, Part::Listeners, |listener| {
                let bound = &listener["address"]["socket_address"];
                is_number(port, &bound["port_value"]) && is_text(address.as_deref(), &bound["address"])
            })
            .await?;
        }
        What::Routes { proxy, name } => {
            one(&proxy, Part::Routes, |config| is_text(name.as_deref(), &config["name"])).await?;
        }
        What::Clusters { proxy, fqdn, port, subset, direction } => {
            let wanted = ClusterFilter { fqdn, port, subset, direction };
            one(&proxy, Part::Clusters, |cluster| wanted.takes(cluster["name"].as_str().unwrap_or("")))
                .await?;
        }
        What::Endpoints { proxy, cluster, port, address, status } => {
            let dump = proxy.dump().await?;
            let assignments = resources(&dump, Part::Endpoints).into_iter();
            let of_cluster = assignments.filter(|a| is_text(cluster.as_deref(), &a["cluster_name"]));
            let left = of_cluster.map(|assignment| {
                keep_endpoints(assignment, |endpoint| {
                    let at = &endpoint["endpoint"]["address"]["socket_address"];
                    let state = endpoint["health_status"].as_str().unwrap_or("HEALTHY");
                    is_number(port, &at["port_value"])
                        && is_text(address.as_deref(), &at["address"])
                        && status.as_ref().is_none_or(|status| status.eq_ignore_ascii_case(state))
                })
            });
            let filtered = port.is_some() || address.is_some() || status.is_some();
            let left = left.filter(|a| !filtered || endpoints(a) > 0).collect();
            show(&[(Part::Endpoints, left)], proxy.output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn one(proxy: &Proxy, part: Part, takes: impl Fn(&Value) -> bool) -> Result<()> {
    let mut found = resources(&proxy.dump().await?, part);
    found.retain(takes);
    show(&[(part, found)], proxy.output)
}

impl Proxy {
    async fn dump(&self) -> Result<Value> {
        let Some(name) = &self.name else {
            // Without a name there is a file.
            let file = self.file.clone().unwrap_or_default();
            let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            return serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", file.display()));
        };
        let mesh = self.mesh.of_proxy(name, self.namespace.as_deref()).await?;
        let admin = mesh.admin(name).await?;
        mesh.page(&admin, "/config_dump?include_eds").await
    }
}

/// Shows the log levels of a proxy, changed first where that is asked for.
async fn log(proxy: &Running, levels: Option<&str>) -> Result<()> {
    let query = levels.map(levels::query).transpose()?.unwrap_or_default();
    let mesh = proxy.mesh.of_proxy(&proxy.name, proxy.namespace.as_deref()).await?;
    let admin = mesh.admin(&proxy.name).await?;
    let answer = mesh.ask(&admin, Method::POST, &format!("/logging{query}")).await?.body_text();
    match proxy.output {
        Output::Table => stdout::print(format_args!("{answer}")),
        format => output::print(&levels::read(&answer), format)?,
    }
    Ok(())
}

/// What is wanted of the parts of a cluster's name.
struct ClusterFilter {
    fqdn: Option<String>,
    port: Option<u16>,
    subset: Option<String>,
    direction: Option<String>,
}

impl ClusterFilter {
    fn takes(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.split('|').collect();
        let [direction, port, subset, host] = parts[..] else {
            let of_its_parts = self.port.is_some() || self.subset.is_some() || self.direction.is_some();
            return !of_its_parts && self.fqdn.as_ref().is_none_or(|fqdn| name.contains(fqdn.as_str()));
        };
        self.fqdn.as_ref().is_none_or(|fqdn| host.contains(fqdn.as_str()))
            && self.port.is_none_or(|wanted| port.parse() == Ok(wanted))
            && self.subset.as_ref().is_none_or(|wanted| subset == wanted)
            && self.direction.as_ref().is_none_or(|wanted| direction == wanted)
    }
}

fn is_number(wanted: Option<u16>, value: &Value) -> bool {
    wanted.is_none_or(|wanted| value.as_u64() == Some(wanted.into()))
}

fn is_text(wanted: Option<&str>, value: &Value) -> bool {
    wanted.is_none_or(|wanted| value.as_str() == Some(wanted))
}

/// An assignment with only those endpoints that are wanted.
fn keep_endpoints(mut assignment: Value, takes: impl Fn(&Value) -> bool) -> Value {
    for locality in assignment["endpoints"].as_array_mut().into_iter().flatten() {
        if let Some(endpoints) = locality["lb_endpoints"].as_array_mut() {
            endpoints.retain(&takes);
        }
    }
    assignment
}

fn endpoints(assignment: &Value) -> usize {
    list(&assignment["endpoints"]).iter().map(|locality| list(&locality["lb_endpoints"]).len()).sum()
}

fn show(parts: &[(Part, Vec<Value>)], format: Output) -> Result<()> {
    if format != Output::Table {
        let named = |(part, found): &(Part, Vec<Value>)| {
            (format!("{part:?}").to_lowercase(), Value::Array(found.clone()))
        };
        return output::print(&parts.iter().map(named).collect::<Map<_, _>>(), format);
    }
    for (number, (part, found)) in parts.iter().enumerate() {
        if number > 0 {
            say!();
        }
        let found = found.iter();
        let table = match part {
            Part::Listeners => tables::listeners(found),
            Part::Routes => tables::routes(found),
            Part::Clusters => tables::clusters(found),
            Part::Endpoints => tables::endpoints(found),
        };
        say!("{}", output::text(&table));
    }
    Ok(())
}

/// Resources of one kind in a config dump, static and dynamic, without their wrappers.
fn resources(dump: &Value, part: Part) -> Vec<Value> {
    let (sections, field): (&[&str], &str) = match part {
        Part::Listeners => (&["static_listeners", "dynamic_listeners"], "listener"),
        Part::Routes => (&["static_route_configs", "dynamic_route_configs"], "route_config"),
        Part::Clusters => (&["static_clusters", "dynamic_active_clusters"], "cluster"),
        Part::Endpoints => (&["static_endpoint_configs", "dynamic_endpoint_configs"], "endpoint_config"),
    };
    let configs = list(&dump["configs"]).iter();
    configs
        .flat_map(|config| sections.iter().flat_map(|section| list(&config[section])))
        .map(|entry| entry.get("active_state").unwrap_or(entry)[field].clone())
        .filter(Value::is_object)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn clusters_are_picked_by_the_parts_of_their_names() {
        let filter =
            |fqdn: Option<&str>, port, subset: Option<&str>, direction: Option<&str>| ClusterFilter {
                fqdn: fqdn.map(Into::into),
                port,
                subset: subset.map(Into::into),
                direction: direction.map(Into::into),
            };
        let name = "outbound|80|v1|reviews.default.svc.cluster.local";
        assert!(filter(None, None, None, None).takes(name));
        assert!(filter(Some("reviews"), Some(80), Some("v1"), Some("outbound")).takes(name));
        for wrong in [
            filter(Some("ratings"), None, None, None),
            filter(None, Some(8080), None, None),
            filter(None, None, Some("v2"), None),
            filter(None, None, None, Some("inbound")),
        ] {
            assert!(!wrong.takes(name));
        }
        assert!(filter(Some("Passthrough"), None, None, None).takes("PassthroughCluster"));
        assert!(!filter(None, Some(80), None, None).takes("PassthroughCluster"));
    }

    #[test]
    fn resources_and_endpoints_of_a_dump() {
        let at = |port: u16| json!({"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": port}}}});
        let dump = json!({"configs": [
            {"dynamic_listeners": [{"name": "l", "active_state": {"listener": {"name": "l"}}}, {"name": "warming"}]},
            {"static_endpoint_configs": [{"endpoint_config": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [at(80), at(81)]}]}}]},
        ]});
        assert_eq!(resources(&dump, Part::Listeners), [json!({"name": "l"})]);
        let assignment = resources(&dump, Part::Endpoints).remove(0);
        let left = keep_endpoints(assignment, |e| {
            is_number(Some(81), &e["endpoint"]["address"]["socket_address"]["port_value"])
        });
        assert_eq!(endpoints(&left), 1);
    }
}
