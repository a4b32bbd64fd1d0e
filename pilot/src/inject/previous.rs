//! What an earlier injection left in a pod, and how it is taken out again: injecting twice is injecting once.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::annotation::{OVERRIDES, STATUS};
use super::pod::{Pod, has_name};
use super::{INIT, PROXY, is_ours, probe, scrape};

/// Annotation [`STATUS`]: the names of what was added.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    // `null` is how others write that there are none
    pub init_containers: Option<Vec<String>>,
    pub containers: Option<Vec<String>>,
    pub volumes: Option<Vec<String>>,
    pub image_pull_secrets: Option<Vec<String>>,
    pub revision: String,
}

/// Annotation [`OVERRIDES`]: what the user wrote about our containers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Overrides {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub init_containers: Vec<Value>,
}

impl Status {
    /// What `after` has and `before` doesn't.
    pub(super) fn of(before: &Pod, after: &Pod, revision: &str) -> Self {
        let added = |list: &str| {
            let new = after.list(list).iter().filter(|item| !before.has(list, item));
            let names = new.filter_map(|item| item["name"].as_str());
            Some(names.map(str::to_owned).collect::<Vec<_>>()).filter(|names| !names.is_empty())
        };
        Self {
            init_containers: added("initContainers"),
            containers: added("containers"),
            volumes: added("volumes"),
            image_pull_secrets: added("imagePullSecrets"),
            revision: revision.to_owned(),
        }
    }
}

/// Takes an earlier injection out of `pod`.
pub(super) fn revert(pod: &mut Pod) -> Result<(), String> {
    if let Some(text) = pod.remove_annotation(STATUS) {
        remove_added(pod, written(STATUS, &text)?);
    }
    if let Some(text) = pod.remove_annotation(OVERRIDES) {
        put_back(pod, written(OVERRIDES, &text)?)?;
    }
    Ok(())
}

/// An annotation that injection wrote.
fn written<'t, T: Deserialize<'t>>(key: &str, text: &'t str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("{key}: is not what injection writes: {error}"))
}

fn remove_added(pod: &mut Pod, status: Status) {
    let proxy = pod.container_mut(PROXY).map(|container| container.clone()).unwrap_or_default();
    for (list, names) in [
        ("initContainers", status.init_containers),
        ("containers", status.containers),
        ("volumes", status.volumes),
        ("imagePullSecrets", status.image_pull_secrets),
    ] {
        let names = names.unwrap_or_default();
        if !names.is_empty() {
            pod.list_mut(list).retain(|item| !names.iter().any(|name| has_name(item, name)));
            pod.drop_empty(list);
        }
    }
    let variable = |name: &str| {
        let mut env = proxy["env"].as_array().into_iter().flatten();
        env.find(|variable| has_name(variable, name)).and_then(|variable| variable["value"].as_str())
    };
    if let Some(text) = variable(probe::VARIABLE) {
        probe::restore(pod, text);
    }
    scrape::restore(pod, variable(scrape::VARIABLE));
}

fn put_back(pod: &mut Pod, overrides: Overrides) -> Result<(), String> {
    for (list, containers) in
        [("containers", overrides.containers), ("initContainers", overrides.init_containers)]
    {
        if !containers.iter().all(is_ours) {
            return Err(format!(
                "{OVERRIDES}: is not what injection writes: {list} has others than {PROXY} and {INIT}"
            ));
        }
        if !containers.is_empty() {
            pod.list_mut(list).extend(containers);
        }
    }
    Ok(())
}

/// Takes the user's own containers with our names out, as overrides.
pub(super) fn take_overrides(pod: &mut Pod) -> Overrides {
    let mut take = |list: &str| {
        if !pod.list(list).iter().any(is_ours) {
            return Vec::new();
        }
        let all = std::mem::take(pod.list_mut(list));
        let (taken, kept) = all.into_iter().partition(is_ours);
        *pod.list_mut(list) = kept;
        if list == "initContainers" {
            pod.drop_empty(list);
        }
        taken
    };
    Overrides { containers: take("containers"), init_containers: take("initContainers") }
}
