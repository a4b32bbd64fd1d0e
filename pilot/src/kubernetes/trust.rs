//! Tells the API server whom to trust when it calls our webhooks.
//!
//! The leader writes the roots into every webhook of our revision (tags of it included) that has another one. The validating webhook
//! is installed so that it may fail; once the API server has been seen to get a refusal from it, it may not any more.

use std::pin::pin;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt as _;
use kube::api::{ApiResource, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use super::lease::while_leading;
use crate::ca::in_force::Signs;
use crate::source::kubernetes::{chain, istio_kind, said};

/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Waits between two tries of the validating webhook; each is twice the one before.
const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// What the webhooks of our revision shall say.
pub struct Webhooks {
    /// Talks to the API server.
    pub client: Client,
    /// Namespace of the control plane.
    pub namespace: String,
    /// Its revision.
    pub revision: String,
    /// Says what the root certificates are.
    pub authority: Signs,
}

impl Webhooks {
    /// Runs while there is somebody to lead.
    pub async fn run(self, leads: watch::Receiver<bool>) {
        while_leading(leads, || self.follow(self.authority.clone())).await;
    }

    /// Looks at all of them anew when the roots have changed.
    async fn follow(&self, mut authority: Signs) {
        loop {
            let current = authority.borrow_and_update().clone();
            let both = async {
                let Some(authority) = &current else { return std::future::pending().await };
                let roots = authority.roots();
                tokio::join!(
                    self.keep(roots, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", false),
                    self.keep(
                        roots,
                        "ValidatingWebhookConfiguration",
                        "validatingwebhookconfigurations",
                        true
                    ),
                );
            };
            tokio::select! {
                () = both => return,
                changed = authority.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// Follows all configurations of one kind and mends each that differs.
    async fn keep(&self, roots: &str, kind: &str, plural: &str, validates: bool) {
        let kind_of = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
        let resource = ApiResource::from_gvk_with_plural(&kind_of, plural);
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let selector = format!("app.kubernetes.io/part-of=osier,istio.io/rev={}", self.revision);
        let mut stream = pin!(watcher(api.clone(), watcher::Config::default().labels(&selector)));
        while let Some(event) = stream.next().await {
            let done = match event {
                Ok(Event::Apply(found) | Event::InitApply(found)) => {
                    self.mend(&api, roots, &found, validates).await
                }
                Ok(_) => Ok(()),
                Err(error) => {
                    tracing::warn!("{plural} can't be watched: {}", said(&error));
                    sleep(RETRY).await;
                    continue;
                }
            };
            if let Err(error) = done {
                tracing::error!("{kind}: the webhook's certificate can't be told: {}", chain(&error));
                sleep(RETRY).await;
            }
        }
    }

    async fn mend(
        &self,
        api: &Api<DynamicObject>,
        roots: &str,
        found: &DynamicObject,
        validates: bool,
    ) -> kube::Result<()> {
        let name = found.name_any();
        let bundle = BASE64_STANDARD.encode(roots);
        let webhooks = found.data["webhooks"].as_array().map_or(&[][..], Vec::as_slice);
        let mut changes = Vec::new();
        for (index, webhook) in webhooks.iter().enumerate() {
            if webhook["clientConfig"]["caBundle"].as_str() != Some(&bundle) {
                changes.extend(replace(index, webhook, "clientConfig/caBundle", json!(bundle)));
            }
        }
        if !changes.is_empty() {
            patch(api, &name, changes).await?;
            tracing::info!(configuration = name, "the webhook's certificate is told");
            // The change comes back as an event, and then everything is as it shall be.
            return Ok(());
        }
        let lenient = |webhook: &Value| webhook["failurePolicy"] == "Ignore" && webhook["rules"].is_array();
        let of_ours = webhooks.iter().enumerate().filter(|(_, webhook)| lenient(webhook));
        let lenient: Vec<_> = of_ours.collect();
        if validates && !lenient.is_empty() {
            self.until_refused().await;
            let strict = lenient.into_iter().flat_map(|(i, w)| replace(i, w, "failurePolicy", json!("Fail")));
            patch(api, &name, strict.collect()).await?;
            tracing::info!(configuration = name, "what is wrong is refused from now on");
        }
        Ok(())
    }

    /// Asks the API server to try something that our webhook must refuse, until it does.
    async fn until_refused(&self) {
        let Some(resource) = istio_kind("VirtualService") else { return };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &self.namespace, &resource);
        let mut probe = DynamicObject::new("osier-validation-probe", &resource).data(json!({
            "spec": { "hosts": ["not a host"], "http": [{ "route": [{ "destination": { "host": "a" } }] }] },
        }));
        if self.revision != "default" {
            probe.labels_mut().insert("istio.io/rev".into(), self.revision.clone());
        }
        let parameters = PostParams { dry_run: true, ..PostParams::default() };
        let mut wait = SHORTEST;
        loop {
            match api.create(&parameters, &probe).await {
                Err(kube::Error::Api(status)) if status.message.contains("validation.osier.io") => return,
                Err(error) => tracing::debug!("the validating webhook isn't asked yet: {error}"),
                Ok(_) => tracing::debug!("the validating webhook isn't asked yet"),
            }
            sleep(wait).await;
            wait = (wait * 2).min(LONGEST);
        }
    }
}

/// A change of one webhook, which must still be the one that was looked at.
fn replace(index: usize, webhook: &Value, path: &str, value: Value) -> [Value; 2] {
    [
        json!({ "op": "test", "path": format!("/webhooks/{index}/name"), "value": webhook["name"] }),
        json!({ "op": "add", "path": format!("/webhooks/{index}/{path}"), "value": value }),
    ]
}

async fn patch(api: &Api<DynamicObject>, name: &str, changes: Vec<Value>) -> kube::Result<()> {
    let changes: json_patch::Patch =
        serde_json::from_value(Value::Array(changes)).map_err(kube::Error::SerdeError)?;
    api.patch(name, &PatchParams::default(), &Patch::Json::<()>(changes)).await.map(drop)
}
