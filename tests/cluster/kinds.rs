//! Istio's kinds come back from the API server as they went in: no field is pruned, in any version.

use serde_json::{Map, Value, json};

use crate::cluster::{Cluster, succeeded};

/// Writes an object with every field of its schema, for each version of each kind, and reads it back.
pub fn every_field_is_kept(cluster: &Cluster) {
    let definitions = cluster.get(&["customresourcedefinitions", "-l", "app.kubernetes.io/part-of=osier"]);
    let definitions = definitions["items"].as_array().expect("a list").clone();
    assert_eq!(definitions.len(), 15);
    for definition in definitions {
        let spec = &definition["spec"];
        let (group, kind) = (text(&spec["group"]), text(&spec["names"]["kind"]));
        for version in spec["versions"].as_array().expect("a list") {
            let schema = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
            let branches = branches(schema);
            for branch in 0..branches {
                let name = format!("whole-{branch}-{}", text(&version["name"]));
                let object = json!({
                    "apiVersion": format!("{group}/{}", text(&version["name"])),
                    "kind": kind,
                    "metadata": { "name": name, "namespace": "default" },
                    "spec": fill(schema, branch),
                });
                let said = cluster.feed(&["create", "--output=json", "--filename=-"], &object.to_string());
                let stored: Value =
                    serde_json::from_str(&succeeded(&format!("{object}"), said)).expect("JSON");
                assert_eq!(stored["spec"], object["spec"], "{kind} {}", version["name"]);
                let resource =
                    format!("{}.{}.{group}", text(&spec["names"]["plural"]), text(&version["name"]));
                cluster.kubectl(&["delete", &resource, &name, "--wait=false"]);
            }
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Of how many alternatives the widest choice within a schema consists.
fn branches(schema: &Value) -> usize {
    match schema {
        Value::Object(fields) => {
            let here = ["oneOf", "anyOf"].iter().filter_map(|key| fields.get(*key)?.as_array()).map(Vec::len);
            here.chain(fields.values().map(branches)).max().unwrap_or(1).max(1)
        }
        Value::Array(items) => items.iter().map(branches).max().unwrap_or(1),
        _ => 1,
    }
}

/// A value with all fields of a schema; of fields that exclude each other the one that `branch` chooses.
fn fill(schema: &Value, branch: usize) -> Value {
    if let Some(choice) = schema["enum"].as_array() {
        return choice[branch % choice.len()].clone();
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return json!("8080");
    }
    match text(&schema["type"]) {
        "object" => object(schema, branch),
        "array" => {
            let least = schema["minItems"].as_u64().unwrap_or(1).max(1);
            (0..least).map(|_| fill(&schema["items"], branch)).collect()
        }
        "boolean" => json!(true),
        "integer" => json!(schema["minimum"].as_i64().unwrap_or(1).max(1)),
        "number" => json!(1.5),
        _ => string(schema),
    }
}

fn string(schema: &Value) -> Value {
    match text(&schema["format"]) {
        "byte" => return json!("YWFh"),
        "date-time" => return json!("2026-01-01T00:00:00Z"),
        _ => {}
    }
    if text(&schema["pattern"]).contains("{64}") {
        return json!("a".repeat(64));
    }
    let least = usize::try_from(schema["minLength"].as_u64().unwrap_or(1)).unwrap_or(1);
    json!("a".repeat(least.max(1)))
}

fn object(schema: &Value, branch: usize) -> Value {
    let mut fields: Map<String, Value> = Map::new();
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        fields.insert(name.clone(), fill(below, branch));
    }
    if let Value::Object(below) = &schema["additionalProperties"] {
        fields.insert("key".into(), fill(&Value::Object(below.clone()), branch));
    }
    let choices = schema["allOf"].as_array().into_iter().flatten().chain(std::iter::once(schema));
    for choice in choices {
        for key in ["oneOf", "anyOf"] {
            let alternatives: Vec<Vec<&str>> =
                choice[key].as_array().into_iter().flatten().map(|one| required(one)).collect();
            let named: Vec<&Vec<&str>> = alternatives.iter().filter(|names| !names.is_empty()).collect();
            let Some(kept) = (!named.is_empty()).then(|| named[branch % named.len()]) else { continue };
            for name in named.iter().flat_map(|names| names.iter()) {
                if !kept.contains(name) {
                    fields.remove(*name);
                }
            }
        }
    }
    Value::Object(fields)
}

/// Fields that an alternative requires; none for the one that forbids all of them.
fn required(alternative: &Value) -> Vec<&str> {
    let direct = alternative["required"].as_array().into_iter().flatten();
    direct.filter_map(Value::as_str).collect()
}
