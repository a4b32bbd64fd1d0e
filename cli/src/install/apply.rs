//! Objects into a cluster and out of it: server-side apply under our own name, so that what others own stays theirs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PropagationPolicy,
};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::cluster::{FIELD_MANAGER, said};

/// What every object of ours has.
pub const PART_OF: &str = "app.kubernetes.io/part-of=osier";

/// Kinds of the chart: kind, group, plural, all of version v1. In the order of an installation.
const KINDS: [(&str, &str, &str); 15] = [
    ("Namespace", "", "namespaces"),
    ("CustomResourceDefinition", "apiextensions.k8s.io", "customresourcedefinitions"),
    ("ServiceAccount", "", "serviceaccounts"),
    ("ClusterRole", "rbac.authorization.k8s.io", "clusterroles"),
    ("ClusterRoleBinding", "rbac.authorization.k8s.io", "clusterrolebindings"),
    ("Role", "rbac.authorization.k8s.io", "roles"),
    ("RoleBinding", "rbac.authorization.k8s.io", "rolebindings"),
    ("ConfigMap", "", "configmaps"),
    ("Service", "", "services"),
    ("Deployment", "apps", "deployments"),
    ("IngressClass", "networking.k8s.io", "ingressclasses"),
    ("PodDisruptionBudget", "policy", "poddisruptionbudgets"),
    ("NetworkPolicy", "networking.k8s.io", "networkpolicies"),
    ("MutatingWebhookConfiguration", "admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    ("ValidatingWebhookConfiguration", "admissionregistration.k8s.io", "validatingwebhookconfigurations"),
];

/// True for what we made ourselves, and not somebody else under the same name.
pub fn is_ours(labels: &BTreeMap<String, String>) -> bool {
    labels.get("app.kubernetes.io/part-of").is_some_and(|value| value == "osier")
}

/// Kind and name, as messages have them.
pub fn label_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, metadata) = (text(&object["kind"]), &object["metadata"]);
    match metadata["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{}", text(&metadata["name"])),
        None => format!("{kind} {}", text(&metadata["name"])),
    }
}

/// Applies one object. With `dry_run` the API server only says whether it would take it.
pub async fn apply(client: &Client, object: &Value, dry_run: bool) -> Result<()> {
    let api = api_of(client, object)?;
    let name = object["metadata"]["name"].as_str().context("an object has a name")?;
    let parameters = PatchParams { dry_run, ..PatchParams::apply(FIELD_MANAGER).force() };
    let done = api.patch(name, &parameters, &Patch::Apply(object)).await;
    done.map(drop).map_err(said).with_context(|| format!("cannot apply {}", label_of(object)))
}

/// The object as it is in the cluster.
pub async fn get(client: &Client, object: &Value) -> Result<Option<DynamicObject>> {
    let name = object["metadata"]["name"].as_str().context("an object has a name")?;
    let found = api_of(client, object)?.get_opt(name).await;
    found.map_err(said).with_context(|| format!("cannot read {}", label_of(object)))
}

/// Everything of ours of one revision (`None`: of all), with its kind; definitions and namespaces apart, which are never removed.
pub async fn ours(client: &Client, revision: Option<&str>) -> Result<Vec<Value>> {
    let mut selector = PART_OF.to_owned();
    if let Some(revision) = revision {
        selector.push_str(&format!(",istio.io/rev={revision}"));
    }
    let mut found = Vec::new();
    let removable =
        KINDS.iter().filter(|(kind, ..)| !matches!(*kind, "Namespace" | "CustomResourceDefinition"));
    for &(kind, ..) in removable {
        let resource = resource(kind)?;
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let list = api.list(&ListParams::default().labels(&selector)).await;
        let list = list.map_err(said).with_context(|| format!("cannot list {}", resource.plural))?;
        for object in list {
            let metadata = &object.metadata;
            found.push(json!({
                "apiVersion": resource.api_version,
                "kind": kind,
                "metadata": { "name": metadata.name, "namespace": metadata.namespace },
            }));
        }
    }
    Ok(found)
}

/// Removes an object; one that is gone already is fine.
pub async fn delete(client: &Client, object: &Value) -> Result<()> {
    let name = object["metadata"]["name"].as_str().context("an object has a name")?;
    let parameters =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    match api_of(client, object)?.delete(name, &parameters).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        done => done.map(drop).map_err(said).with_context(|| format!("cannot remove {}", label_of(object))),
    }
}

fn resource(kind: &str) -> Result<ApiResource> {
    let Some((kind, group, plural)) = KINDS.iter().find(|(known, ..)| *known == kind) else {
        bail!("the chart has a {kind}, which is not known here");
    };
    Ok(ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural))
}

fn api_of(client: &Client, object: &Value) -> Result<Api<DynamicObject>> {
    let kind = object["kind"].as_str().context("an object has a kind")?;
    let resource = resource(kind)?;
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    })
}
