//! A pod as JSON: fields that we don't know survive, and the ones that we touch have been looked at first.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::source::decode::decode;
use crate::source::json;
use crate::store::schema::Ignored;

/// Lists of containers. Ours are the same wherever they are.
pub(super) const CONTAINER_LISTS: [&str; 2] = ["containers", "initContainers"];

/// A pod, or the template of one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pod(Value);

/// What must be as Kubernetes has it.
#[derive(Deserialize)]
struct Shape {
    #[serde(default, rename = "metadata")]
    _metadata: Metadata,
    #[serde(rename = "spec")]
    _spec: Spec,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "generateName")]
    _generate_name: String,
    #[serde(rename = "labels")]
    _labels: BTreeMap<String, String>,
    #[serde(rename = "annotations")]
    _annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "containers")]
    _containers: Vec<Container>,
    #[serde(rename = "initContainers")]
    _init_containers: Vec<Container>,
    #[serde(rename = "volumes")]
    _volumes: Vec<Named>,
    #[serde(rename = "imagePullSecrets")]
    _pull_secrets: Vec<Map<String, Value>>,
    #[serde(rename = "hostNetwork")]
    _host_network: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    #[serde(rename = "name")]
    _name: String,
    #[serde(default, rename = "ports")]
    _ports: Vec<Port>,
    #[serde(default, rename = "env")]
    _env: Vec<Named>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(rename = "containerPort")]
    _number: u16,
    #[serde(default, rename = "name")]
    _name: Ignored,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "name")]
    _name: String,
}

impl Pod {
    /// Takes a pod whose shape fits; the field and why where it doesn't.
    pub(super) fn new(value: Value) -> Result<Self, String> {
        let node = json::node(value.clone());
        decode::<Shape>(&node).map_err(|error| error.to_string())?;
        Ok(Self(value))
    }

    /// One that a template was merged into: both had the shape of a pod.
    pub(super) fn merged(value: Value) -> Self {
        Self(value)
    }

    pub(super) fn into_value(self) -> Value {
        self.0
    }

    fn metadata_map(&self, key: &str) -> Option<&Map<String, Value>> {
        self.0["metadata"][key].as_object()
    }

    fn metadata_map_mut(&mut self, key: &str) -> &mut Map<String, Value> {
        object_mut(object_mut(&mut self.0, "metadata"), key)
    }

    /// A text of `metadata`, if it isn't empty.
    pub(super) fn metadata_text(&self, key: &str) -> Option<&str> {
        self.0["metadata"][key].as_str().filter(|text| !text.is_empty())
    }

    /// `metadata.ownerReferences`.
    pub(super) fn owner_references(&self) -> &[Value] {
        self.0["metadata"]["ownerReferences"].as_array().map_or(&[], Vec::as_slice)
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.metadata_map("labels")?.get(key)?.as_str()
    }

    /// The first of these labels that isn't empty.
    pub(super) fn first_label(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().find_map(|key| self.label(key).filter(|value| !value.is_empty()))
    }

    pub(super) fn default_label(&mut self, key: &str, value: &str) {
        self.metadata_map_mut("labels").entry(key).or_insert_with(|| value.into());
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata_map("annotations")?.get(key)?.as_str()
    }

    pub(super) fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.metadata_map("annotations").into_iter().flatten();
        all.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }

    pub(super) fn set_annotation(&mut self, key: &str, value: impl Into<String>) {
        self.metadata_map_mut("annotations").insert(key.into(), Value::String(value.into()));
    }

    pub(super) fn default_annotation(&mut self, key: &str, value: &str) {
        self.metadata_map_mut("annotations").entry(key).or_insert_with(|| value.into());
    }

    pub(super) fn remove_annotation(&mut self, key: &str) -> Option<String> {
        let removed = self.0["metadata"]["annotations"].as_object_mut()?.remove(key)?;
        removed.as_str().map(str::to_owned)
    }

    /// A field of `spec`.
    pub(super) fn spec(&self, key: &str) -> &Value {
        &self.0["spec"][key]
    }

    pub(super) fn spec_mut(&mut self) -> &mut Map<String, Value> {
        object_of(&mut self.0["spec"])
    }

    /// A list of `spec`; one that isn't there is empty.
    pub(super) fn list(&self, key: &str) -> &[Value] {
        self.spec(key).as_array().map_or(&[], Vec::as_slice)
    }

    /// Whether the list has an element with the name of this one.
    pub(super) fn has(&self, list: &str, item: &Value) -> bool {
        item["name"].as_str().is_some_and(|name| self.list(list).iter().any(|there| has_name(there, name)))
    }

    /// The same, made where it isn't there.
    pub(super) fn list_mut(&mut self, key: &str) -> &mut Vec<Value> {
        list_mut(self.spec_mut(), key)
    }

    /// Takes what isn't needed away again: a list that is empty says no more than none.
    pub(super) fn drop_empty(&mut self, key: &str) {
        let spec = self.spec_mut();
        if spec.get(key).and_then(Value::as_array).is_some_and(Vec::is_empty) {
            spec.remove(key);
        }
    }

    /// A container, whichever list it is in.
    pub(super) fn container_mut(&mut self, name: &str) -> Option<&mut Value> {
        let list =
            CONTAINER_LISTS.into_iter().find(|list| self.list(list).iter().any(|c| has_name(c, name)))?;
        self.list_mut(list).iter_mut().find(|c| has_name(c, name))
    }

    /// Removes a container, whichever list it is in.
    pub(super) fn take_container(&mut self, name: &str) -> Option<Value> {
        let (list, at) = CONTAINER_LISTS
            .into_iter()
            .find_map(|list| self.list(list).iter().position(|c| has_name(c, name)).map(|at| (list, at)))?;
        let taken = self.list_mut(list).remove(at);
        if list == "initContainers" {
            self.drop_empty(list);
        }
        Some(taken)
    }
}

/// Whether an element of a list has this name.
pub(super) fn has_name(item: &Value, name: &str) -> bool {
    item["name"] == name
}

/// The mapping under `key`, made where it isn't there.
pub(super) fn object_mut<'a>(
    parent: &'a mut (impl Parent + ?Sized),
    key: &str,
) -> &'a mut Map<String, Value> {
    object_of(parent.entry(key))
}

/// The list under `key`, made where it isn't there.
pub(super) fn list_mut<'a>(parent: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = parent.entry(key).or_insert(Value::Null);
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("was just made one")
}

/// The mapping that a value is, or is made.
pub(super) fn object_of(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("was just made one")
}

/// Something with named fields.
pub(super) trait Parent {
    /// The field's value, null where there was none.
    fn entry(&mut self, key: &str) -> &mut Value;
}

impl Parent for Value {
    fn entry(&mut self, key: &str) -> &mut Value {
        object_of(self).entry(key).or_insert(Value::Null)
    }
}

impl Parent for Map<String, Value> {
    fn entry(&mut self, key: &str) -> &mut Value {
        self.entry(key).or_insert(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_pod_is_named() {
        for (value, wanted) in [
            (json!([]), "must be a mapping"),
            (json!({}), "the field spec is required"),
            (json!({"spec": {"containers": [{}]}}), "spec.containers[0]: the field name is required"),
            (
                json!({"metadata": {"labels": {"a": 1}}, "spec": {}}),
                "metadata.labels.a: must be text, not the number 1; put it in quotes",
            ),
            (
                json!({"spec": {"initContainers": [{"name": "x", "ports": [{"containerPort": 70000}]}]}}),
                "spec.initContainers[0].ports[0].containerPort: 70000 is not between 0 and 65535",
            ),
        ] {
            let said = Pod::new(value).unwrap_err();
            assert!(said.contains(wanted), "{said}");
        }
    }

    #[test]
    fn null_is_nothing() {
        let mut pod = Pod::new(json!({"metadata": {"labels": null}, "spec": {"volumes": null}})).unwrap();
        assert_eq!(pod.list("volumes"), &[] as &[Value]);
        pod.default_label("a", "b");
        assert_eq!(pod.label("a"), Some("b"));
    }
}
