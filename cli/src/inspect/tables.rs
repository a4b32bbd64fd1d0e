//! Tables of a proxy's configuration: the columns that users of istioctl know.

use comfy_table::Table;
use serde_json::Value;

use crate::output::table;

/// A value of a cell.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The elements of a list; none where it is no list.
pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// NAME, ADDRESS, PORT, MATCH, DESTINATION; one row a filter chain.
pub fn listeners<'a>(resources: impl Iterator<Item = &'a Value>) -> Table {
    let mut table = table(&["NAME", "ADDRESS", "PORT", "MATCH", "DESTINATION"]);
    for listener in resources {
        let address = &listener["address"]["socket_address"];
        let (ip, port) = (text(&address["address"]), text(&address["port_value"]));
        let default = listener.get("default_filter_chain");
        for chain in list(&listener["filter_chains"]).iter().chain(default) {
            let row =
                [text(&listener["name"]), ip.clone(), port.clone(), chain_match(chain), chain_target(chain)];
            table.add_row(row);
        }
    }
    table
}

fn chain_match(chain: &Value) -> String {
    let criteria = &chain["filter_chain_match"];
    let mut parts = Vec::new();
    if let Some(names) = criteria["server_names"].as_array() {
        parts.push(format!("SNI: {}", names.iter().map(text).collect::<Vec<_>>().join(",")));
    }
    if let Some(protocol) = criteria["transport_protocol"].as_str() {
        parts.push(format!("Trans: {protocol}"));
    }
    if let Some(protocols) = criteria["application_protocols"].as_array() {
        parts.push(format!("App: {}", protocols.iter().map(text).collect::<Vec<_>>().join(",")));
    }
    if let Some(port) = criteria["destination_port"].as_u64() {
        parts.push(format!("Port: {port}"));
    }
    if parts.is_empty() { "ALL".into() } else { parts.join("; ") }
}

fn chain_target(chain: &Value) -> String {
    let targets: Vec<String> = list(&chain["filters"])
        .iter()
        .filter_map(|filter| {
            let config = &filter["typed_config"];
            if let Some(name) = config["rds"]["route_config_name"].as_str() {
                return Some(format!("Route: {name}"));
            }
            if let Some(name) = config["route_config"]["name"].as_str() {
                return Some(format!("Inline Route: {name}"));
            }
            if let Some(name) = config["cluster"].as_str() {
                return Some(format!("Cluster: {name}"));
            }
            let clusters = config["weighted_clusters"]["clusters"].as_array()?;
            let parts: Vec<String> =
                clusters.iter().map(|c| format!("{} ({})", text(&c["name"]), text(&c["weight"]))).collect();
            Some(format!("Clusters: {}", parts.join(", ")))
        })
        .collect();
    targets.join("; ")
}

/// NAME, VHOST NAME, DOMAINS, MATCH, DESTINATION; one row a route.
pub fn routes<'a>(resources: impl Iterator<Item = &'a Value>) -> Table {
    let mut table = table(&["NAME", "VHOST NAME", "DOMAINS", "MATCH", "DESTINATION"]);
    for config in resources {
        for host in list(&config["virtual_hosts"]) {
            let domains: Vec<String> = list(&host["domains"]).iter().map(text).collect();
            let shown = match domains.len() {
                0..=3 => domains.join(", "),
                more => format!("{}, + {} more", domains[..2].join(", "), more - 2),
            };
            for route in list(&host["routes"]) {
                let row = [
                    text(&config["name"]),
                    text(&host["name"]),
                    shown.clone(),
                    path_match(&route["match"]),
                    action(route),
                ];
                table.add_row(row);
            }
        }
    }
    table
}

fn path_match(matching: &Value) -> String {
    let mut shown = ["prefix", "path", "path_separated_prefix"]
        .iter()
        .find_map(|kind| {
            matching[kind]
                .as_str()
                .map(|path| if *kind == "path" { path.to_owned() } else { format!("{path}*") })
        })
        .or_else(|| matching["safe_regex"]["regex"].as_str().map(|regex| format!("regex {regex}")))
        .unwrap_or_else(|| "-".into());
    let headers = list(&matching["headers"]).len() + list(&matching["query_parameters"]).len();
    if headers > 0 {
        shown.push_str(&format!(" and {headers} conditions"));
    }
    shown
}

fn action(route: &Value) -> String {
    if let Some(cluster) = route["route"]["cluster"].as_str() {
        return cluster.to_owned();
    }
    if let Some(clusters) = route["route"]["weighted_clusters"]["clusters"].as_array() {
        let parts: Vec<String> =
            clusters.iter().map(|c| format!("{} ({})", text(&c["name"]), text(&c["weight"]))).collect();
        return parts.join(", ");
    }
    if route.get("redirect").is_some() {
        return "redirect".into();
    }
    match route["direct_response"]["status"].as_u64() {
        Some(status) => format!("direct response {status}"),
        None => "-".into(),
    }
}

/// SERVICE FQDN, PORT, SUBSET, DIRECTION, TYPE.
pub fn clusters<'a>(resources: impl Iterator<Item = &'a Value>) -> Table {
    let mut table = table(&["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE"]);
    for cluster in resources {
        let name = text(&cluster["name"]);
        let kind = cluster["type"].as_str().unwrap_or("STATIC").to_owned();
        let parts: Vec<&str> = name.split('|').collect();
        let row = match parts.as_slice() {
            [direction, port, subset, host] => {
                let host = if host.is_empty() { "-" } else { host };
                let subset = if subset.is_empty() { "-" } else { subset };
                [host.to_owned(), (*port).to_owned(), subset.to_owned(), (*direction).to_owned(), kind]
            }
            _ => [name.clone(), "-".into(), "-".into(), "-".into(), kind],
        };
        table.add_row(row);
    }
    table
}

/// ENDPOINT, STATUS, WEIGHT, CLUSTER.
pub fn endpoints<'a>(resources: impl Iterator<Item = &'a Value>) -> Table {
    let mut table = table(&["ENDPOINT", "STATUS", "WEIGHT", "CLUSTER"]);
    for assignment in resources {
        for endpoint in
            list(&assignment["endpoints"]).iter().flat_map(|locality| list(&locality["lb_endpoints"]))
        {
            let address = &endpoint["endpoint"]["address"]["socket_address"];
            let row = [
                format!("{}:{}", text(&address["address"]), text(&address["port_value"])),
                endpoint["health_status"].as_str().unwrap_or("HEALTHY").to_owned(),
                endpoint["load_balancing_weight"].as_u64().unwrap_or(1).to_string(),
                text(&assignment["cluster_name"]),
            ];
            table.add_row(row);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cluster_name_is_taken_apart() {
        let cluster = json!({"name": "outbound|80|v1|reviews.default.svc.cluster.local", "type": "EDS"});
        let shown = clusters([&cluster].into_iter()).to_string();
        assert!(
            shown.contains("reviews.default.svc.cluster.local")
                && shown.contains("v1")
                && shown.contains("outbound")
        );
    }

    #[test]
    fn a_weighted_route_shows_its_shares() {
        let route = json!({"route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 90}, {"name": "b", "weight": 10}]}}});
        assert_eq!(action(&route), "a (90), b (10)");
    }
}
