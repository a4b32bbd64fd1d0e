//! Says on each Ingress of ours where it is served: at the addresses of the gateways' Service.
//!
//! The leader alone writes. An Ingress that is no longer ours keeps what it says: whoever it belongs to now will say it anew.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use osier_core::labels::Labels;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::lease::while_leading;
use crate::model::ResourceKey;
use crate::snapshot::MeshSnapshot;
use crate::source::kubernetes::{chain, said};

/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Writes the addresses.
pub struct IngressStatus {
    /// Talks to the API server.
    pub client: Client,
    /// Where the gateways' Service is.
    pub namespace: String,
    /// Says which Ingresses are ours.
    pub snapshot: watch::Receiver<Arc<MeshSnapshot>>,
}

impl IngressStatus {
    /// Runs while there is somebody to lead.
    pub async fn run(self, leads: watch::Receiver<bool>) {
        while_leading(leads, || self.follow(self.snapshot.clone())).await;
    }

    async fn follow(&self, mut snapshot: watch::Receiver<Arc<MeshSnapshot>>) {
        let api: Api<Service> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut events = pin!(watcher(api, watcher::Config::default()));
        let mut services = BTreeMap::new();
        let mut listed = false;
        let mut written = BTreeMap::new();
        let mut again = None;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => listed |= note(&mut services, event),
                    Some(Err(error)) => {
                        tracing::warn!("services can't be watched: {}", said(&error));
                        sleep(RETRY).await;
                        continue;
                    }
                    None => return,
                },
                changed = snapshot.changed() => if changed.is_err() {
                    return;
                },
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
            if listed {
                let mesh = snapshot.borrow_and_update().clone();
                let complete = self.write(&mesh, &services, &mut written).await;
                again = (!complete).then(|| Instant::now() + RETRY);
            }
        }
    }

    /// False where something has to be tried again.
    async fn write(
        &self,
        snapshot: &MeshSnapshot,
        services: &BTreeMap<String, Service>,
        written: &mut BTreeMap<ResourceKey, Vec<Value>>,
    ) -> bool {
        let policy = &snapshot.mesh.ingress;
        let addresses =
            service_of(services, &policy.service, &policy.selector).map(addresses).unwrap_or_default();
        written.retain(|key, _| snapshot.ingresses.iter().any(|ingress| ingress.key == *key));
        let mut complete = true;
        for ingress in snapshot.ingresses.iter() {
            let key = &ingress.key;
            let before = written.get(key);
            if before == Some(&addresses) || (before.is_none() && addresses.is_empty()) {
                continue;
            }
            let api: Api<Ingress> = Api::namespaced(self.client.clone(), &key.namespace);
            let patch = json!({ "status": { "loadBalancer": { "ingress": addresses } } });
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => drop(written.insert(key.clone(), addresses.clone())),
                // Gone meanwhile.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::warn!("status of {key}: {}", chain(&error));
                    complete = false;
                }
            }
        }
        complete
    }
}

/// True once everything was listed.
fn note(services: &mut BTreeMap<String, Service>, event: Event<Service>) -> bool {
    match event {
        Event::Init => services.clear(),
        Event::InitApply(service) | Event::Apply(service) => {
            services.insert(service.name_any(), service);
        }
        Event::Delete(service) => drop(services.remove(&service.name_any())),
        Event::InitDone => return true,
    }
    false
}

/// The Service that the mesh configuration names, else the oldest one whose pods are the gateways.
fn service_of<'a>(
    services: &'a BTreeMap<String, Service>,
    name: &str,
    gateways: &Labels,
) -> Option<&'a Service> {
    let leads_there = |service: &&Service| {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone());
        selector.is_some_and(|selector| gateways.selects(&selector.into()))
    };
    services.get(name).or_else(|| {
        services.values().filter(leads_there).min_by_key(|s| s.creation_timestamp().map(|time| time.0))
    })
}

fn addresses(service: &Service) -> Vec<Value> {
    let external = service.spec.as_ref().and_then(|spec| spec.external_ips.as_deref()).unwrap_or_default();
    let balancers = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let balancers = balancers.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let given = balancers.iter().filter_map(|one| match (&one.ip, &one.hostname) {
        (Some(ip), _) => Some(json!({ "ip": ip })),
        (None, Some(name)) => Some(json!({ "hostname": name })),
        (None, None) => None,
    });
    external.iter().map(|ip| json!({ "ip": ip })).chain(given).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(all: Value) -> BTreeMap<String, Service> {
        let all: Vec<Service> = serde_json::from_value(all).unwrap();
        all.into_iter().map(|service| (service.name_any(), service)).collect()
    }

    #[test]
    fn the_named_service_else_the_one_of_the_gateways() {
        let service = |name: &str, created: &str, selector: Value| {
            json!({
                "metadata": { "name": name, "creationTimestamp": created }, "spec": { "selector": selector },
            })
        };
        let all = services(json!([
            service("young", "2026-01-02T00:00:00Z", json!({ "istio": "ingressgateway", "app": "g" })),
            service("old", "2026-01-01T00:00:00Z", json!({ "istio": "ingressgateway" })),
            service("other", "2025-01-01T00:00:00Z", json!({ "istio": "egress" })),
            service("nobody", "2025-01-01T00:00:00Z", Value::Null),
        ]));
        let gateways = Labels::from([("istio", "ingressgateway")]);
        let name = |named: &str| service_of(&all, named, &gateways).map(|service| service.name_any());
        assert_eq!(name("other").as_deref(), Some("other"));
        assert_eq!(name("absent").as_deref(), Some("old"));
        assert!(service_of(&all, "absent", &Labels::from([("istio", "x")])).is_none());
    }

    #[test]
    fn addresses_are_those_of_the_balancer_and_external_ones() {
        let all = services(json!([{
            "metadata": { "name": "g" },
            "spec": { "externalIPs": ["1.2.3.4"] },
            "status": { "loadBalancer": { "ingress": [{ "ip": "10.97.0.1" }, { "hostname": "lb.example" }, {}] } },
        }]));
        let wanted =
            [json!({ "ip": "1.2.3.4" }), json!({ "ip": "10.97.0.1" }), json!({ "hostname": "lb.example" })];
        assert_eq!(addresses(&all["g"]), wanted);
    }
}
