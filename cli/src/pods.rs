//! Which pods a name means: `POD`, `POD.NAMESPACE`, or `KIND/NAME[.NAMESPACE]` with what selects pods.

use std::fmt;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::core::Selector;
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use crate::cluster::said;

/// Kinds that select pods: what people call them, and group, kind, plural.
const KINDS: [(&[&str], &str, &str, &str); 7] = [
    (&["deployment", "deployments", "deploy"], "apps", "Deployment", "deployments"),
    (&["statefulset", "statefulsets", "sts"], "apps", "StatefulSet", "statefulsets"),
    (&["daemonset", "daemonsets", "ds"], "apps", "DaemonSet", "daemonsets"),
    (&["replicaset", "replicasets", "rs"], "apps", "ReplicaSet", "replicasets"),
    (&["job", "jobs"], "batch", "Job", "jobs"),
    (&["service", "services", "svc"], "", "Service", "services"),
    (
        &["replicationcontroller", "replicationcontrollers", "rc"],
        "",
        "ReplicationController",
        "replicationcontrollers",
    ),
];

/// A name as written, resolved with the namespace of names without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// `None` is a pod.
    kind: Option<ApiResource>,
    /// Name of the object.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_ref().map_or("pod", |kind| &kind.kind);
        write!(f, "{} {}/{}", kind.to_lowercase(), self.namespace, self.name)
    }
}

impl Name {
    /// Reads a name; `namespace` is for those without one.
    pub fn parse(text: &str, namespace: &str) -> Result<Self> {
        let (kind, rest) = match text.split_once('/') {
            None => (None, text),
            Some(("pod" | "pods" | "po", rest)) => (None, rest),
            Some((kind, rest)) => (Some(resource(kind)?), rest),
        };
        let (name, namespace) = rest.rsplit_once('.').unwrap_or((rest, namespace));
        if name.is_empty() || namespace.is_empty() || name.contains('/') {
            bail!("`{text}` is no name of pods: write POD, POD.NAMESPACE or deployment/NAME[.NAMESPACE]");
        }
        Ok(Self { kind, name: name.to_owned(), namespace: namespace.to_owned() })
    }

    /// The pods that it means; never none. Those that run come first.
    pub async fn pods(&self, client: &Client) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let Some(kind) = &self.kind else {
            let found = pods.get_opt(&self.name).await.map_err(said)?;
            return Ok(vec![found.with_context(|| format!("there is no {self}"))?]);
        };
        let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), &self.namespace, kind);
        let object = objects.get_opt(&self.name).await.map_err(said)?;
        let object = object.with_context(|| format!("there is no {self}"))?;
        let Some(selector) = selector_of(&object.data["spec"]["selector"]) else {
            bail!("{self} selects no pods: name a pod");
        };
        let mut found = pods.list(&ListParams::default().labels_from(&selector)).await.map_err(said)?.items;
        if found.is_empty() {
            bail!("{self} has no pods");
        }
        found.sort_by_key(|pod| (!runs(pod), pod.name_any()));
        Ok(found)
    }

    /// The one pod that is asked where only one can be: the first that runs.
    pub async fn pod(&self, client: &Client) -> Result<Pod> {
        let first = self.pods(client).await?.into_iter().next();
        first.with_context(|| format!("{self} has no pods"))
    }
}

/// True while its containers run, and shall go on running.
pub fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// A `spec.selector`: plain labels (Service, ReplicationController) or a label selector. `None` if it selects nothing.
fn selector_of(value: &Value) -> Option<Selector> {
    let plain = value.get("matchLabels").is_none() && value.get("matchExpressions").is_none();
    let selector: LabelSelector = match plain {
        true => LabelSelector {
            match_labels: serde_json::from_value(value.clone()).ok()?,
            match_expressions: None,
        },
        false => serde_json::from_value(value.clone()).ok()?,
    };
    Selector::try_from(selector).ok().filter(|selector| !selector.selects_all())
}

fn resource(kind: &str) -> Result<ApiResource> {
    let lower = kind.to_lowercase();
    let known = KINDS.iter().find(|(names, ..)| names.contains(&&*lower));
    let Some((_, group, kind, plural)) = known else {
        let names: Vec<&str> = KINDS.iter().map(|(names, ..)| names[0]).collect();
        bail!("`{kind}` is no kind that has pods: use pod, {}", names.join(", "));
    };
    Ok(ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_say_kind_name_and_namespace() {
        for (text, shown) in [
            ("web-1", "pod here/web-1"),
            ("web-1.shop", "pod shop/web-1"),
            ("pod/web-1.shop", "pod shop/web-1"),
            ("a.b.shop", "pod shop/a.b"),
            ("deployment/web", "deployment here/web"),
            ("deploy/web.shop", "deployment shop/web"),
            ("STS/db.shop", "statefulset shop/db"),
            ("svc/web", "service here/web"),
        ] {
            assert_eq!(Name::parse(text, "here").expect(text).to_string(), shown, "{text}");
        }
        for wrong in ["", "web.", ".shop", "deployment/", "secret/x", "a/b/c"] {
            assert!(Name::parse(wrong, "here").is_err(), "{wrong}");
        }
        let error = Name::parse("cronjob/x", "here").expect_err("has no pods of its own").to_string();
        assert!(error.contains("`cronjob`") && error.contains("deployment"), "{error}");
    }

    #[test]
    fn selectors_of_services_and_workloads() {
        for (selector, shown) in [
            (json!({"app": "web"}), Some("app=web")),
            (json!({"matchLabels": {"app": "web"}}), Some("app=web")),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}),
                Some("app in (a,b)"),
            ),
            (json!(null), None),
            (json!({}), None),
        ] {
            assert_eq!(selector_of(&selector).map(|s| s.to_string()).as_deref(), shown, "{selector}");
        }
    }
}
