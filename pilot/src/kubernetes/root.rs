//! Tells every namespace whom its workloads may trust: the root certificates, in the ConfigMap that Istio's pods mount.
//!
//! The leader alone writes. A ConfigMap of that name that another made (an Istio beside us) stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{PartialObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use osier_core::labels::Labels;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::lease::while_leading;
use crate::ca::in_force::Signs;
use crate::model::LabelSelector;
use crate::snapshot::MeshSnapshot;
use crate::source::kubernetes::{chain, said};

/// Name of the ConfigMaps.
const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";
/// So that an uninstallation finds them.
const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "osier");
/// Says whose a ConfigMap is: the namespace of a control plane, so that two of them in a cluster don't fight.
const OWNER: &str = "osier.io/control-plane";
/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Writes the root certificates.
pub struct Roots {
    /// Talks to the API server.
    pub client: Client,
    /// Namespace of the control plane.
    pub namespace: String,
    /// Says what the root certificates are.
    pub authority: Signs,
    /// Says which namespaces count.
    pub snapshot: watch::Receiver<Arc<MeshSnapshot>>,
}

/// A ConfigMap, as far as it matters.
struct Seen {
    root: Option<String>,
    owner: String,
}

#[derive(Default)]
struct Known {
    namespaces: BTreeMap<String, Labels>,
    maps: BTreeMap<String, Seen>,
    /// Namespaces whose ConfigMap is another's, as far as that was said.
    foreign: BTreeSet<String>,
    namespaces_listed: bool,
    maps_listed: bool,
}

impl Roots {
    /// Runs while there is somebody to lead.
    pub async fn run(mut self, leads: watch::Receiver<bool>) {
        // Before the mesh was read nobody knows which namespaces count.
        if self.snapshot.wait_for(|mesh| mesh.version > 0).await.is_err() {
            return;
        }
        while_leading(leads, || self.follow(self.snapshot.clone(), self.authority.clone())).await;
    }

    async fn follow(&self, mut snapshot: watch::Receiver<Arc<MeshSnapshot>>, mut authority: Signs) {
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        let maps: Api<ConfigMap> = Api::all(self.client.clone());
        let named = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let mut namespaces = pin!(watcher(namespaces, watcher::Config::default()));
        let mut maps = pin!(watcher(maps, named));
        let mut known = Known::default();
        let mut again = None;
        loop {
            let failed = tokio::select! {
                Some(event) = namespaces.next() => event.map(|event| known.note_namespace(event)).err(),
                Some(event) = maps.next() => event.map(|event| known.note_map(event)).err(),
                Ok(()) = snapshot.changed() => None,
                Ok(()) = authority.changed() => None,
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => None,
                else => return,
            };
            if let Some(error) = failed {
                tracing::warn!("{NAME} can't be kept: {}", said(&error));
                sleep(RETRY).await;
            }
            if known.namespaces_listed && known.maps_listed {
                let Some(authority) = authority.borrow_and_update().clone() else { continue };
                let mesh = snapshot.borrow_and_update().mesh.clone();
                let complete = self.write(authority.roots(), &mesh.discovery_selectors, &mut known).await;
                again = (!complete).then(|| Instant::now() + RETRY);
            }
        }
    }

    /// False where something has to be tried again.
    async fn write(&self, root: &str, selectors: &[LabelSelector], known: &mut Known) -> bool {
        let counts = |labels: &Labels| selectors.is_empty() || selectors.iter().any(|s| s.matches(labels));
        let Known { namespaces, maps, foreign, .. } = known;
        let mut complete = true;
        for (namespace, _) in namespaces.iter().filter(|(_, labels)| counts(labels)) {
            let seen = maps.get(namespace);
            if seen.is_some_and(|seen| seen.root.as_deref() == Some(root)) {
                continue;
            }
            if seen.is_some_and(|seen| seen.owner != self.namespace) {
                if foreign.insert(namespace.clone()) {
                    tracing::warn!(
                        "ConfigMap {namespace}/{NAME} is another's and stays: workloads there don't trust us"
                    );
                }
                continue;
            }
            match self.put(namespace, root, seen.is_some()).await {
                Ok(()) => drop(maps.insert(namespace.clone(), self.ours(root))),
                Err(error) => {
                    tracing::warn!("ConfigMap {namespace}/{NAME}: {}", chain(&error));
                    complete = false;
                }
            }
        }
        complete
    }

    fn ours(&self, root: &str) -> Seen {
        Seen { root: Some(root.to_owned()), owner: self.namespace.clone() }
    }

    async fn put(&self, namespace: &str, root: &str, there: bool) -> kube::Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let data = BTreeMap::from([(KEY.to_owned(), root.to_owned())]);
        if there {
            let patch = Patch::Merge(json!({ "data": data }));
            return api.patch(NAME, &PatchParams::default(), &patch).await.map(drop);
        }
        let mut map = ConfigMap { data: Some(data), ..ConfigMap::default() };
        map.metadata.name = Some(NAME.into());
        let labels = [(PART_OF.0, PART_OF.1), (OWNER, self.namespace.as_str())];
        map.metadata.labels = Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        match api.create(&PostParams::default(), &map).await {
            // Somebody was faster, which the watch will tell; or the namespace is going.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            done => done.map(drop),
        }
    }
}

impl Known {
    fn note_namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) {
        match event {
            Event::Init => self.namespaces.clear(),
            Event::InitApply(one) | Event::Apply(one) => match one.metadata.deletion_timestamp {
                None => drop(self.namespaces.insert(one.name_any(), one.labels().clone().into())),
                Some(_) => drop(self.namespaces.remove(&one.name_any())),
            },
            Event::Delete(one) => drop(self.namespaces.remove(&one.name_any())),
            Event::InitDone => self.namespaces_listed = true,
        }
    }

    fn note_map(&mut self, event: Event<ConfigMap>) {
        match event {
            Event::Init => self.maps.clear(),
            Event::InitApply(map) | Event::Apply(map) => {
                let owner = map.labels().get(OWNER).cloned().unwrap_or_default();
                let root = map.data.as_ref().and_then(|data| data.get(KEY)).cloned();
                self.maps.insert(map.namespace().unwrap_or_default(), Seen { root, owner });
            }
            Event::Delete(map) => drop(self.maps.remove(&map.namespace().unwrap_or_default())),
            Event::InitDone => self.maps_listed = true,
        }
    }
}
