//! What the control plane may do is what it does: the roles of the chart against the audit log of the API server.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cluster::Cluster;

/// One thing that somebody may do: verb, API group, resource with subresource.
type Grant = (String, String, String);

/// Everything granted was used by now, and nothing was denied. `*` of Istio's groups counts where a resource of the group was used.
pub fn nothing_is_granted_in_vain(cluster: &Cluster) {
    if !cluster.is_own() {
        println!("  only on a cluster of our own: the audit log of another is not ours to read");
        return;
    }
    let log =
        std::fs::read_to_string(cluster.folder().join("log/audit.log")).expect("the audit log can be read");
    let (mut used, mut denied) = (BTreeSet::new(), BTreeSet::new());
    for line in log.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if text(&event["user"]["username"]) != "system:serviceaccount:osier-system:osier-pilot" {
            continue;
        }
        let object = &event["objectRef"];
        let resource = match object["subresource"].as_str() {
            Some(below) => format!("{}/{below}", text(&object["resource"])),
            None => text(&object["resource"]),
        };
        let grant: Grant = (text(&event["verb"]), text(&object["apiGroup"]), resource);
        if event["responseStatus"]["code"] == 403 {
            denied.insert(grant);
        } else {
            used.insert(grant);
        }
    }
    assert_eq!(denied, BTreeSet::new(), "the control plane asked for what it may not do");
    let in_vain: Vec<Grant> =
        granted(cluster).into_iter().filter(|grant| !used.iter().any(|used| covers(grant, used))).collect();
    assert!(in_vain.is_empty(), "granted and not used: {in_vain:?}\nused: {used:?}");
}

fn covers((verb, group, resource): &Grant, (used_verb, used_group, used): &Grant) -> bool {
    let same = match resource.as_str() {
        "*" => !used.contains('/'),
        "*/status" => used.ends_with("/status"),
        resource => resource == used,
    };
    same && verb == used_verb && group == used_group
}

fn granted(cluster: &Cluster) -> BTreeSet<Grant> {
    let mut granted = BTreeSet::new();
    let roles = [
        cluster.get(&["clusterrole", "osier-pilot-osier-system"]),
        cluster.get(&["role", "osier-pilot", "--namespace=osier-system"]),
    ];
    for rule in roles.iter().flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
        let list = |key: &str| rule[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        for group in list("apiGroups") {
            for resource in list("resources") {
                granted.extend(list("verbs").map(|verb| (verb.into(), group.into(), resource.into())));
            }
        }
    }
    granted
}
