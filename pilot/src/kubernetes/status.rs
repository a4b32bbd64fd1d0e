//! Says on each resource of Istio's kinds how it fares, where there is something to say: a condition `Accepted` that is false while
//! the resource, as it is written, isn't in force, and true once it was mended.
//!
//! The leader alone writes. What is right from the start gets no status: a mesh of ten thousand good rules costs no write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, ListParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use super::lease::while_leading;
use crate::model::Severity;
use crate::source::kubernetes::{chain, istio_kind, istio_kinds};
use crate::store::writer::Status;

/// What a burst of changes is waited for.
const QUIET: Duration = Duration::from_millis(200);
/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(5);
const CONDITION: &str = "Accepted";
/// Longest message; Kubernetes' own conditions have the same bound.
const LONGEST: usize = 32_768;

/// Kind, namespace and name.
type Key = (Arc<str>, Arc<str>, Arc<str>);

/// Writes conditions.
pub struct StatusWriter {
    /// Talks to the API server.
    pub client: Client,
    /// What there is to say.
    pub status: watch::Receiver<Arc<Status>>,
}

impl StatusWriter {
    /// Runs while there is somebody to lead.
    pub async fn run(self, leads: watch::Receiver<bool>) {
        while_leading(leads, || self.write_changes(self.status.clone())).await;
    }

    async fn write_changes(&self, mut status: watch::Receiver<Arc<Status>>) {
        let mut written = self.said_before().await;
        loop {
            let wanted = wanted(&status.borrow_and_update());
            let keys: BTreeSet<&Key> = wanted.keys().chain(written.keys()).collect();
            let stale: Vec<Key> =
                keys.into_iter().filter(|key| wanted.get(*key) != written.get(*key)).cloned().collect();
            let mut failed = false;
            for key in stale {
                let message = wanted.get(&key);
                match self.write(&key, message).await {
                    Ok(()) => {
                        match message {
                            Some(message) => written.insert(key, message.clone()),
                            None => written.remove(&key),
                        };
                    }
                    Err(error) => {
                        failed = true;
                        tracing::warn!("status of {} {}/{}: {}", key.0, key.1, key.2, chain(&error));
                    }
                }
            }
            if failed {
                sleep(RETRY).await;
            } else if status.changed().await.is_err() {
                return;
            }
            sleep(QUIET).await;
        }
    }

    /// What an earlier leader has said and nobody has taken back.
    async fn said_before(&self) -> BTreeMap<Key, String> {
        let mut said = BTreeMap::new();
        for resource in istio_kinds() {
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
            // A kind that isn't there, or can't be read, has nothing to take back.
            for object in api.list(&ListParams::default()).await.into_iter().flatten() {
                let ours = conditions(&object).find(|c| c["type"] == CONDITION && c["status"] == "False");
                if let Some(message) = ours.and_then(|condition| condition["message"].as_str()) {
                    said.insert(key_of(&resource, &object), message.to_owned());
                }
            }
        }
        said
    }

    async fn write(&self, (kind, namespace, name): &Key, message: Option<&String>) -> kube::Result<()> {
        let Some(resource) = istio_kind(kind) else { return Ok(()) };
        let (status, reason, text) = match message {
            Some(message) => ("False", "Invalid", message.as_str()),
            None => ("True", "Accepted", "in force as it is written"),
        };
        let condition = json!({
            "type": CONDITION,
            "status": status,
            "reason": reason,
            "message": text,
            "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        });
        let api = Api::namespaced_with(self.client.clone(), namespace, &resource);
        change(&api, name, |object| {
            let others = conditions(object).filter(|c| c["type"] != CONDITION).cloned();
            object.data["status"]["conditions"] = others.chain([condition.clone()]).collect();
            if let Some(generation) = object.metadata.generation {
                object.data["status"]["observedGeneration"] = json!(generation);
            }
            true
        })
        .await
    }
}

/// Writes the status of a resource, if it is still there and `put` has something to change in it. What somebody else has changed
/// meanwhile is read again, never overwritten.
pub async fn change(
    api: &Api<DynamicObject>,
    name: &str,
    put: impl Fn(&mut DynamicObject) -> bool,
) -> kube::Result<()> {
    loop {
        let mut object = match api.get_status(name).await {
            // Gone meanwhile, or a version that isn't served: nobody reads it.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            found => found?,
        };
        if !put(&mut object) {
            return Ok(());
        }
        match api.replace_status(name, &PostParams::default(), &object).await {
            // Somebody else was faster, with something else.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            done => return done.map(drop),
        }
    }
}

fn conditions(object: &DynamicObject) -> impl Iterator<Item = &Value> {
    object.data["status"]["conditions"].as_array().into_iter().flatten()
}

fn key_of(resource: &ApiResource, object: &DynamicObject) -> Key {
    (resource.kind.as_str().into(), object.namespace().unwrap_or_default().into(), object.name_any().into())
}

/// What shall be said, by resource.
fn wanted(status: &Status) -> BTreeMap<Key, String> {
    let mut wanted: BTreeMap<Key, String> = BTreeMap::new();
    for report in status.reports.iter().filter(|report| report.severity == Severity::Error) {
        if report.namespace.is_empty() || istio_kind(&report.kind).is_none() {
            continue;
        }
        let key = (report.kind.clone(), report.namespace.clone(), report.name.clone());
        let line = match report.field.as_str() {
            "" => report.message.clone(),
            field => format!("{field}: {}", report.message),
        };
        let message = wanted.entry(key).or_default();
        if !message.is_empty() {
            message.push('\n');
        }
        message.push_str(&line);
    }
    for message in wanted.values_mut() {
        message.truncate(message.floor_char_boundary(LONGEST));
    }
    wanted
}
