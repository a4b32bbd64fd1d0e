//! Which workload a pod belongs to: what made it, and how that is called in metrics.

use serde_json::Value;

use super::pod::Pod;
use crate::model::Owner;

/// The workload of a pod.
pub(super) struct Workload {
    pub name: String,
    /// As node metadata has it: `kubernetes://apis/apps/v1/namespaces/a/deployments/b`.
    pub owner: String,
}

impl Workload {
    /// Of a pod with its owner references, or one that `made_by` is going to make.
    pub(super) fn of(pod: &Pod, namespace: &str, made_by: Option<&Owner>) -> Self {
        let owner = made_by.cloned().or_else(|| controller(pod)).unwrap_or_else(|| itself(pod));
        let Owner { api_version, kind, name } = &owner;
        let kind = kind.to_lowercase();
        Self {
            name: pod.first_label(&["service.istio.io/workload-name"]).unwrap_or(name).to_owned(),
            owner: format!("kubernetes://apis/{api_version}/namespaces/{namespace}/{kind}s/{name}"),
        }
    }
}

fn controller(pod: &Pod) -> Option<Owner> {
    let references = pod.owner_references();
    let reference = references.iter().find(|r| r["controller"] == true).or(references.first())?;
    let text = |key: &str| reference[key].as_str().map(str::to_owned);
    let owner = Owner {
        api_version: text("apiVersion").unwrap_or_default(),
        kind: text("kind")?,
        name: text("name")?,
    };
    Some(owner.made_by(|key| pod.label(key)))
}

fn itself(pod: &Pod) -> Owner {
    let generated = || pod.metadata_text("generateName").map(|text| text.trim_end_matches('-'));
    let name = pod.metadata_text("name").or_else(generated).unwrap_or("unknown");
    Owner { api_version: "v1".into(), kind: "Pod".into(), name: name.to_owned() }
}

/// Labels that say which service, and which revision of it, a pod is: its own, else made of others.
pub(super) fn canonical_labels(pod: &mut Pod, workload: &str) {
    const NAME: &str = "service.istio.io/canonical-name";
    const REVISION: &str = "service.istio.io/canonical-revision";
    let name = pod.first_label(&[NAME, "app.kubernetes.io/name", "app"]).unwrap_or(workload);
    // a workload's name may be longer than a label's value
    let name = name.get(..63).unwrap_or(name).trim_matches(['-', '_', '.']).to_owned();
    let revision =
        pod.first_label(&[REVISION, "app.kubernetes.io/version", "version"]).unwrap_or("latest").to_owned();
    pod.default_label(NAME, &name);
    pod.default_label(REVISION, &revision);
}

/// The ports of all containers, as node metadata has them.
pub(super) fn ports(pod: &Pod, ours: &[&str]) -> Value {
    let lists = ["containers", "initContainers"].map(|list| pod.list(list));
    let containers = lists.into_iter().flatten().filter(|c| !ours.iter().any(|name| c["name"] == *name));
    let ports = containers.flat_map(|c| c["ports"].as_array().map_or(&[] as &[Value], Vec::as_slice));
    let port = |port: &Value| {
        let fields = ["name", "containerPort", "protocol"].into_iter();
        fields.filter(|f| !port[*f].is_null()).map(|f| (f.to_owned(), port[f].clone())).collect()
    };
    Value::Array(ports.map(|p| Value::Object(port(p))).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn owners() {
        let owned = |kind: &str, api: &str, name: &str, labels: Value| {
            json!({"metadata": {"name": "x-1", "labels": labels, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Other", "name": "o"},
                {"apiVersion": api, "kind": kind, "name": name, "controller": true},
            ]}, "spec": {}})
        };
        for (pod, name, owner) in [
            (
                owned("ReplicaSet", "apps/v1", "web-5d4", json!({"pod-template-hash": "5d4"})),
                "web",
                "apps/v1 deployments web",
            ),
            (owned("ReplicaSet", "apps/v1", "web", json!({})), "web", "apps/v1 replicasets web"),
            (
                owned("ReplicaSet", "apps/v1", "web-5d4", json!({"rollouts-pod-template-hash": "5d4"})),
                "web",
                "argoproj.io/v1alpha1 rollouts web",
            ),
            (owned("StatefulSet", "apps/v1", "db", json!({})), "db", "apps/v1 statefulsets db"),
            (owned("Job", "batch/v1", "clean-28412345", json!({})), "clean", "batch/v1 cronjobs clean"),
            (owned("Job", "batch/v1", "clean-1", json!({})), "clean-1", "batch/v1 jobs clean-1"),
            (
                owned("ReplicationController", "v1", "web-3", json!({"deploymentconfig": "web"})),
                "web",
                "apps.openshift.io/v1 deploymentconfigs web",
            ),
            (
                owned("StatefulSet", "apps/v1", "db", json!({"service.istio.io/workload-name": "mine"})),
                "mine",
                "apps/v1 statefulsets db",
            ),
            (json!({"metadata": {"generateName": "run-"}, "spec": {}}), "run", "v1 pods run"),
            (json!({"metadata": {"name": "one"}, "spec": {}}), "one", "v1 pods one"),
        ] {
            let workload = Workload::of(&Pod::new(pod.clone()).unwrap(), "ns", None);
            let (api, rest) = owner.split_once(' ').unwrap();
            let wanted = format!("kubernetes://apis/{api}/namespaces/ns/{}", rest.replace(' ', "/"));
            assert_eq!((workload.name.as_str(), workload.owner.as_str()), (name, wanted.as_str()), "{pod}");
        }
    }

    #[test]
    fn long_names_are_cut() {
        let mut pod = Pod::new(json!({"spec": {}})).unwrap();
        canonical_labels(&mut pod, &format!("{}-{}", "a".repeat(62), "b".repeat(10)));
        assert_eq!(pod.label("service.istio.io/canonical-name"), Some("a".repeat(62).as_str()));
        assert_eq!(pod.label("service.istio.io/canonical-revision"), Some("latest"));
    }
}
