//! Kubernetes' strategic merge of a part of a pod into a pod.
//!
//! Mappings are merged field by field; a list whose elements have a key is merged element by element, others are replaced. Of
//! fields that exclude each other (`value` and `valueFrom`, two kinds of probe) the patch's is kept. `null` removes a field, and
//! `$patch: delete` or `replace` an element or what was there.

use serde_json::{Map, Value};

/// Lists that are merged, with what tells their elements apart.
const KEYS: &[(&str, &[&str])] = &[
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("ephemeralContainers", &["name"]),
    ("volumes", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("resourceClaims", &["name"]),
    ("schedulingGates", &["name"]),
    ("hostAliases", &["ip"]),
    ("topologySpreadConstraints", &["topologyKey"]),
    ("ownerReferences", &["uid"]),
    ("env", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("volumeDevices", &["devicePath"]),
    // Kubernetes' own key lacks the protocol, and merges the two halves of a DNS server into one
    ("ports", &["containerPort", "protocol"]),
];

/// Fields of which an object has one.
const UNIONS: &[&[&str]] = &[&["value", "valueFrom"], &["exec", "httpGet", "tcpSocket", "grpc", "sleep"]];

/// What says how to merge.
const DIRECTIVE: &str = "$patch";

/// Merges `patch` into `base`.
pub(super) fn merge(base: &mut Value, patch: Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => merge_objects(base, patch),
        (base, patch) => *base = without_directives(patch),
    }
}

fn merge_objects(base: &mut Map<String, Value>, mut patch: Map<String, Value>) {
    if patch.remove(DIRECTIVE).is_some_and(|directive| directive == "replace") {
        base.clear();
    }
    for union in UNIONS {
        if union.iter().any(|field| patch.get(*field).is_some_and(|value| !value.is_null())) {
            base.retain(|field, _| !union.contains(&field.as_str()) || patch.contains_key(field));
        }
    }
    for (field, value) in patch {
        if value.is_null() {
            base.remove(&field);
            continue;
        }
        let keys = KEYS.iter().find(|(list, _)| *list == field).map(|(_, keys)| *keys);
        match (base.get_mut(&field), value, keys) {
            (Some(Value::Array(list)), Value::Array(items), Some(keys)) => {
                for item in items {
                    merge_item(list, item, keys, field == "volumes");
                }
            }
            (Some(there), value, _) => merge(there, value),
            (None, value, _) => {
                base.insert(field, without_directives(value));
            }
        }
    }
}

fn merge_item(list: &mut Vec<Value>, item: Value, keys: &[&str], one_source: bool) {
    let key = |item: &Value| -> Vec<Value> { keys.iter().map(|key| key_of(item, key)).collect() };
    let wanted = key(&item);
    let at = list.iter().position(|there| key(there) == wanted);
    match (at, item[DIRECTIVE].as_str()) {
        (Some(at), Some("delete")) => drop(list.remove(at)),
        (None, Some("delete")) => {}
        (Some(at), _) => {
            if one_source {
                keep_one_source(&mut list[at], &item);
            }
            merge(&mut list[at], item);
        }
        (None, _) => list.push(without_directives(item)),
    }
}

fn key_of(item: &Value, key: &str) -> Value {
    match &item[key] {
        Value::Null if key == "protocol" => "TCP".into(),
        value => value.clone(),
    }
}

/// A volume is of one kind: where the patch has another, the one that was there goes.
fn keep_one_source(volume: &mut Value, patch: &Value) {
    let source = patch.as_object().and_then(|patch| patch.keys().find(|key| *key != "name"));
    if let (Some(source), Some(volume)) = (source, volume.as_object_mut()) {
        volume.retain(|field, _| field == "name" || field == source);
    }
}

/// What is new has nothing to be merged into: directives and nulls mean nothing in it.
fn without_directives(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.remove(DIRECTIVE);
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(|value| *value = without_directives(value.take()));
        }
        Value::Array(items) => {
            items.retain(|item| item[DIRECTIVE] != "delete");
            items.iter_mut().for_each(|item| *item = without_directives(item.take()));
        }
        _ => {}
    }
    value
}

/// The first directive in a patch that this does not know.
pub(super) fn unknown_directive(patch: &Value) -> Option<String> {
    match patch {
        Value::Object(fields) => fields.iter().find_map(|(field, value)| match field.strip_prefix('$') {
            Some("patch") if ["merge", "replace", "delete"].iter().any(|known| value == known) => None,
            Some("patch") => Some(format!("$patch: {value} is none of merge, replace, delete")),
            Some(_) => Some(format!("the directive {field} is not supported")),
            None => unknown_directive(value),
        }),
        Value::Array(items) => items.iter().find_map(unknown_directive),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn table() {
        for (what, mut base, patch, wanted) in [
            (
                "elements with one key are merged, others come behind",
                json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}),
                json!({"env": [{"name": "C", "value": "3"}, {"name": "A", "value": "9"}]}),
                json!({"env": [{"name": "A", "value": "9"}, {"name": "B", "value": "2"}, {"name": "C", "value": "3"}]}),
            ),
            (
                "a value takes the place of a source",
                json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]}),
                json!({"env": [{"name": "A", "value": "9"}]}),
                json!({"env": [{"name": "A", "value": "9"}]}),
            ),
            (
                "a probe of another kind",
                json!({"readinessProbe": {"httpGet": {"port": 1}, "periodSeconds": 2}}),
                json!({"readinessProbe": {"exec": {"command": ["x"]}}}),
                json!({"readinessProbe": {"exec": {"command": ["x"]}, "periodSeconds": 2}}),
            ),
            (
                "a volume of another kind",
                json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
                json!({"volumes": [{"name": "v", "csi": {"driver": "d"}}]}),
                json!({"volumes": [{"name": "v", "csi": {"driver": "d"}}]}),
            ),
            (
                "lists without key are replaced",
                json!({"args": ["a", "b"], "tolerations": [{"key": "a"}]}),
                json!({"args": ["c"], "tolerations": [{"key": "b"}]}),
                json!({"args": ["c"], "tolerations": [{"key": "b"}]}),
            ),
            (
                "ports differ by protocol",
                json!({"ports": [{"containerPort": 53}]}),
                json!({"ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "protocol": "TCP", "name": "dns"}]}),
                json!({"ports": [{"containerPort": 53, "protocol": "TCP", "name": "dns"}, {"containerPort": 53, "protocol": "UDP"}]}),
            ),
            (
                "mounts by path",
                json!({"volumeMounts": [{"name": "a", "mountPath": "/x"}]}),
                json!({"volumeMounts": [{"name": "b", "mountPath": "/x"}]}),
                json!({"volumeMounts": [{"name": "b", "mountPath": "/x"}]}),
            ),
            (
                "null and directives",
                json!({"a": 1, "b": {"c": 1}, "containers": [{"name": "x"}, {"name": "y"}]}),
                json!({"a": null, "b": {"$patch": "replace", "d": 2}, "containers": [{"name": "x", "$patch": "delete"}, {"name": "z", "$patch": "delete"}]}),
                json!({"b": {"d": 2}, "containers": [{"name": "y"}]}),
            ),
        ] {
            merge(&mut base, patch);
            assert_eq!(base, wanted, "{what}");
        }
    }

    #[test]
    fn directives() {
        assert_eq!(unknown_directive(&json!({"a": [{"$patch": "delete", "name": "x"}]})), None);
        assert_eq!(
            unknown_directive(&json!({"a": {"$setElementOrder/env": []}})).unwrap(),
            "the directive $setElementOrder/env is not supported"
        );
        assert_eq!(
            unknown_directive(&json!({"$patch": "drop"})).unwrap(),
            "$patch: \"drop\" is none of merge, replace, delete"
        );
    }
}
