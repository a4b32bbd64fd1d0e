//! `osier proxy-status`: who is connected to which pilot, and whether it acknowledged what was sent.

use std::process::ExitCode;

use anyhow::{Result, bail};
use comfy_table::Table;
use osier_core::say;
use serde_json::Value;

use super::tables::text;
use crate::output::{self, Output, table};
use crate::pods::Name;
use crate::reach::{self, Mesh};

/// Shows each connected proxy and whether it acknowledged what was sent; with a name, that one's resources and refusals.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier proxy-status
  osier proxy-status shop-6d5f-x2x1z.default
  osier proxy-status deployment/shop -n default
  osier proxy-status --pilot-monitoring 127.0.0.1:25014 -o json")]
pub struct Arguments {
    /// Pod, POD.NAMESPACE, deployment/NAME, or the beginning of a name that this command shows. [default: all proxies]
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Namespace of names without one; without a name, only proxies of this namespace.
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    mesh: reach::Arguments,
}

/// Types of resources: the columns, and what pilot calls them.
const TYPES: [(&str, &str); 6] = [
    ("CDS", "cluster"),
    ("LDS", "listener"),
    ("EDS", "endpoint"),
    ("RDS", "route"),
    ("VHDS", "virtual_host"),
    ("NDS", "name_table"),
];

/// Prints the status.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let mesh = arguments.mesh.mesh(arguments.namespace.as_deref()).await?;
    let clients = mesh.clients().await?;
    let shown = match (&arguments.name, &arguments.namespace) {
        (Some(name), _) => named(&mesh, clients, name).await?,
        (None, Some(namespace)) => clients.into_iter().filter(|client| is_in(client, namespace)).collect(),
        (None, None) => clients,
    };
    match arguments.output {
        Output::Table if shown.is_empty() => say!("No proxy is connected."),
        Output::Table => {
            say!("{}", output::text(&status(&shown)));
            if arguments.name.is_some() {
                shown.iter().for_each(|client| say!("\n{}", detail(client)));
            }
        }
        format => output::print(&shown, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn is_in(client: &Value, namespace: &str) -> bool {
    client["proxy"].as_str().and_then(|name| name.rsplit_once('.')).is_some_and(|(_, of)| of == namespace)
}

/// The clients that a name means.
async fn named(mesh: &Mesh, clients: Vec<Value>, text: &str) -> Result<Vec<Value>> {
    let Mesh::Cluster { client, namespace, .. } = mesh else {
        return Ok(vec![reach::one_named(&clients, text)?.clone()]);
    };
    let name = Name::parse(text, namespace)?;
    let pods = name.pods(client).await?;
    let names: Vec<String> = pods
        .iter()
        .filter_map(|pod| {
            Some(format!("{}.{}", pod.metadata.name.as_ref()?, pod.metadata.namespace.as_ref()?))
        })
        .collect();
    let found: Vec<Value> =
        clients.into_iter().filter(|client| names.iter().any(|name| client["proxy"] == **name)).collect();
    if found.is_empty() {
        bail!(
            "{name} has no sidecar that is connected to pilot: `osier describe` and `osier logs` of the pod say more"
        );
    }
    Ok(found)
}

/// NAME, CLUSTER (where one is known), ADDRESS, TYPE, one column a type, ISTIOD, VERSION: pilot's word for how far the proxy is,
/// and why it refused.
fn status(clients: &[Value]) -> Table {
    let clusters = clients.iter().any(|client| cluster(client).is_some());
    let mut header = vec!["NAME"];
    header.extend(clusters.then_some("CLUSTER"));
    header.extend(["ADDRESS", "TYPE"]);
    header.extend(TYPES.map(|(column, _)| column));
    header.extend(["ISTIOD", "VERSION"]);
    let mut table = table(&header);
    for client in clients {
        let mut row = vec![text(&client["proxy"])];
        row.extend(clusters.then(|| cluster(client).unwrap_or("-").to_owned()));
        row.push(reach::address(client).unwrap_or("-").to_owned());
        row.push(text(&client["proxy_type"]));
        row.extend(TYPES.map(|(_, name)| {
            let of_type = &client["osier"]["types"][name];
            match of_type["error"].as_str() {
                Some(error) => format!("{}: {error}", state(of_type)),
                None => state(of_type),
            }
        }));
        row.push(text(&client["istiod"]));
        row.push(filled(&client["istio_version"]).unwrap_or("-").to_owned());
        table.add_row(row);
    }
    table
}

fn cluster(client: &Value) -> Option<&str> {
    filled(&client["cluster_id"])
}

fn filled(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.is_empty())
}

fn state(of_type: &Value) -> String {
    text(&of_type["state"]).replace('_', " ")
}

/// One proxy: each type with its state, its versions and how many it asked for; then what it refused.
fn detail(client: &Value) -> String {
    let mut table = table(&["TYPE", "STATE", "SENT", "ACKNOWLEDGED", "RESOURCES"]);
    let mut refusals = String::new();
    for (column, name) in TYPES {
        let of_type = &client["osier"]["types"][name];
        let asked = if of_type["wildcard"] == true { "all".to_owned() } else { text(&of_type["names"]) };
        let version = |key: &str| filled(&of_type[key]).unwrap_or("-").to_owned();
        table.add_row([
            column.to_owned(),
            state(of_type),
            version("version_sent"),
            version("version_acked"),
            asked,
        ]);
        if let Some(error) = of_type["error"].as_str() {
            refusals.push_str(&format!("\n{column} was refused: {error}"));
        }
    }
    let osier = &client["osier"];
    let (name, protocol) = (text(&client["proxy"]), text(&osier["protocol"]));
    let on_demand = if osier["on_demand"] == true { ", asks for what it uses" } else { "" };
    let program = filled(&osier["user_agent"]).unwrap_or("a program without a name");
    format!(
        "{name}: {program}, {protocol} xDS from {}{on_demand}\n{}{refusals}",
        text(&osier["peer"]),
        output::text(&table)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn client(name: &str, cluster: &str, route: Value) -> Value {
        let synced = json!({"state": "SYNCED", "version_sent": "7", "version_acked": "7", "names": 2, "wildcard": false});
        json!({
            "proxy": name, "proxy_type": "sidecar", "istio_version": "0.1.0", "istiod": "osier-pilot-1", "cluster_id": cluster,
            "osier": {
                "node": format!("sidecar~10.1.0.7~{name}~default.svc.cluster.local"), "peer": "10.1.0.7:4711",
                "user_agent": "osier-proxy", "protocol": "delta", "on_demand": true,
                "types": {"cluster": synced, "listener": synced, "endpoint": synced, "route": route,
                    "virtual_host": {"state": "NOT_SENT", "names": 0, "wildcard": false},
                    "name_table": {"state": "NOT_SENT", "names": 0, "wildcard": false}},
            },
        })
    }

    #[test]
    fn the_table_of_all() {
        let synced = json!({"state": "SYNCED"});
        let clients =
            [client("web-1.shop", "", synced.clone()), client("db.shop", "", json!({"state": "STALE"}))];
        assert_eq!(
            output::text(&status(&clients)),
            "\
NAME        ADDRESS   TYPE     CDS     LDS     EDS     RDS     VHDS      NDS       ISTIOD         VERSION
web-1.shop  10.1.0.7  sidecar  SYNCED  SYNCED  SYNCED  SYNCED  NOT SENT  NOT SENT  osier-pilot-1  0.1.0
db.shop     10.1.0.7  sidecar  SYNCED  SYNCED  SYNCED  STALE   NOT SENT  NOT SENT  osier-pilot-1  0.1.0"
        );
        let clients = [client("web-1.shop", "Kubernetes", synced.clone()), client("vm.shop", "", synced)];
        assert_eq!(
            output::text(&status(&clients)),
            "\
NAME        CLUSTER     ADDRESS   TYPE     CDS     LDS     EDS     RDS     VHDS      NDS       ISTIOD         VERSION
web-1.shop  Kubernetes  10.1.0.7  sidecar  SYNCED  SYNCED  SYNCED  SYNCED  NOT SENT  NOT SENT  osier-pilot-1  0.1.0
vm.shop     -           10.1.0.7  sidecar  SYNCED  SYNCED  SYNCED  SYNCED  NOT SENT  NOT SENT  osier-pilot-1  0.1.0"
        );
    }

    #[test]
    fn one_proxy_with_what_it_refused() {
        let refused = json!({
            "state": "ERROR", "version_sent": "8", "version_acked": "7", "names": 1, "wildcard": false, "error": "80: no cluster a",
        });
        assert_eq!(
            detail(&client("web-1.shop", "", refused)),
            "\
web-1.shop: osier-proxy, delta xDS from 10.1.0.7:4711, asks for what it uses
TYPE  STATE     SENT  ACKNOWLEDGED  RESOURCES
CDS   SYNCED    7     7             2
LDS   SYNCED    7     7             2
EDS   SYNCED    7     7             2
RDS   ERROR     8     7             1
VHDS  NOT SENT  -     -             0
NDS   NOT SENT  -     -             0
RDS was refused: 80: no cluster a"
        );
    }

    #[test]
    fn a_namespace_is_the_last_part_of_a_name() {
        let web = client("web.v1.shop", "", json!({}));
        assert!(is_in(&web, "shop") && !is_in(&web, "v1.shop") && !is_in(&web, "web"));
    }
}
