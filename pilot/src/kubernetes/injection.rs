//! What injection goes by, from ConfigMaps of the control plane's namespace: the injection values and the mesh configuration. Live:
//! a change holds for pods made from then on. What can't be read is told, and the last good version stays.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::select_all;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::time::sleep;

use crate::inject::{Injector, MeshSettings, Values};
use crate::settings::Cluster;
use crate::source::kubernetes::{named, said};
use crate::webhook::Webhook;

/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// The ConfigMaps and the key of each: the values first, then the mesh configuration, of which the first that is there holds.
const SOURCES: [(&str, &str); 3] =
    [("osier-sidecar-injector", "values"), ("osier", "mesh"), ("istio", "mesh")];

/// Follows them for ever.
pub async fn follow(client: Client, cluster: Cluster, webhook: Arc<Webhook>) {
    let api: Api<ConfigMap> = Api::namespaced(client, &cluster.namespace);
    let streams = SOURCES.iter().enumerate().map(|(index, (name, _))| {
        let selector = format!("metadata.name={}", named(name, &cluster.revision));
        let stream = watcher(api.clone(), watcher::Config::default().fields(&selector));
        stream.map(move |event| (index, event)).boxed()
    });
    let mut events = select_all(streams);
    let mut texts: [Option<String>; 3] = Default::default();
    // until all were asked for, what isn't there may only not have come yet
    let mut asked = [false; 3];
    while let Some((index, event)) = events.next().await {
        let key = SOURCES[index].1;
        match event {
            Ok(Event::Apply(map) | Event::InitApply(map)) => {
                texts[index] = map.data.and_then(|mut data| data.remove(key));
            }
            Ok(Event::Delete(_)) => texts[index] = None,
            Ok(Event::Init) => continue,
            Ok(Event::InitDone) => asked[index] = true,
            Err(error) => {
                tracing::warn!(map = SOURCES[index].0, "the ConfigMap can't be watched: {}", said(&error));
                sleep(RETRY).await;
                continue;
            }
        }
        if asked.contains(&false) {
            continue;
        }
        match injector(&texts, &cluster.revision) {
            Ok(injector) => webhook.set_injector(injector),
            Err(why) => tracing::error!(namespace = cluster.namespace, "{why}; pods are injected as before"),
        }
    }
}

fn injector([values, ours, istio]: &[Option<String>; 3], revision: &str) -> Result<Injector, String> {
    let values = Values::parse(values.as_deref().unwrap_or_default())
        .map_err(|error| format!("ConfigMap {}: {error}", named(SOURCES[0].0, revision)))?;
    let (source, mesh) = match (ours, istio) {
        (Some(text), _) => (SOURCES[1].0, text.as_str()),
        (None, Some(text)) => (SOURCES[2].0, text.as_str()),
        (None, None) => (SOURCES[1].0, ""),
    };
    let mesh = MeshSettings::parse(mesh)
        .map_err(|error| format!("ConfigMap {}: data.mesh: {error}", named(source, revision)))?;
    Ok(Injector { values, mesh, revision: revision.to_owned() })
}
