//! Keeps on each ServiceEntry which automatic addresses its hosts have (`status.addresses`, as Istio does), so that other replicas and
//! later ones give the same.
//!
//! The leader alone writes, and only what differs from what the resource says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::sleep;

use super::lease::while_leading;
use super::status;
use crate::model::{Kind, ResourceKey};
use crate::snapshot::{MeshSnapshot, ServiceIndex};
use crate::source::kubernetes::{chain, istio_kind};

/// What a burst of changes is waited for.
const QUIET: Duration = Duration::from_millis(200);
/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Writes addresses.
pub struct AddressWriter {
    /// Talks to the API server.
    pub client: Client,
    /// Who has which.
    pub mesh: watch::Receiver<Arc<MeshSnapshot>>,
}

impl AddressWriter {
    /// Runs while there is somebody to lead.
    pub async fn run(self, leads: watch::Receiver<bool>) {
        while_leading(leads, || self.write_changes(self.mesh.clone())).await;
    }

    async fn write_changes(&self, mut mesh: watch::Receiver<Arc<MeshSnapshot>>) {
        loop {
            let services = mesh.borrow_and_update().services.clone();
            let mut failed = false;
            for (key, addresses) in stale(&services) {
                if let Err(error) = self.write(&key, &addresses).await {
                    failed = true;
                    tracing::warn!("addresses of {key}: {}", chain(&error));
                }
            }
            if failed {
                sleep(RETRY).await;
                continue;
            }
            // Endpoints move more often than services.
            loop {
                if mesh.changed().await.is_err() {
                    return;
                }
                if !Arc::ptr_eq(&mesh.borrow_and_update().services, &services) {
                    break;
                }
            }
            sleep(QUIET).await;
        }
    }

    async fn write(&self, key: &ResourceKey, addresses: &[Value]) -> kube::Result<()> {
        let Some(resource) = istio_kind("ServiceEntry") else { return Ok(()) };
        let api = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        status::change(&api, &key.name, |object| put(&mut object.data, addresses)).await
    }
}

/// The ServiceEntries whose status says other addresses than their hosts have, with those that it should say.
fn stale(services: &ServiceIndex) -> BTreeMap<ResourceKey, Vec<Value>> {
    let mut differs = BTreeMap::new();
    for service in services.iter().filter(|service| service.resource.kind == Kind::ServiceEntry) {
        let (is_stale, addresses): &mut (bool, Vec<Value>) =
            differs.entry(service.resource.clone()).or_default();
        *is_stale |= service.claimed != service.automatic;
        let host = service.host().as_str();
        addresses.extend(service.automatic.iter().map(|ip| json!({ "value": ip.to_string(), "host": host })));
    }
    let differs = differs.into_iter().filter(|(_, (is_stale, _))| *is_stale);
    differs.map(|(key, (_, addresses))| (key, addresses)).collect()
}

/// Puts addresses into a resource's status, beside what else it says. False where they are there already.
fn put(object: &mut Value, addresses: &[Value]) -> bool {
    let said = object["status"]["addresses"].as_array().map_or(&[][..], Vec::as_slice);
    if said == addresses {
        return false;
    }
    match (addresses.is_empty(), object["status"].as_object_mut()) {
        (true, Some(status)) => drop(status.remove("addresses")),
        _ => object["status"]["addresses"] = Value::Array(addresses.to_vec()),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#gen::fixture::entry;
    use crate::model::{ExportTo, Protocol, Service, ServiceKind};

    fn tcp(host: &str, claimed: &[&str]) -> Service {
        let mut service = entry(host, ServiceKind::Dns, &[], &[(5432, Protocol::Tcp)]);
        service.claimed = claimed.iter().map(|ip| ip.parse().unwrap()).collect();
        service
    }

    #[test]
    fn what_differs_is_written_whole() {
        let mut several = [tcp("a.example.com", &["240.240.0.1", "2001:2::1"]), tcp("b.example.com", &[])];
        for service in &mut several {
            service.resource.name = "several".into();
        }
        let mut lost = tcp("lost.example.com", &["240.240.0.9", "2001:2::9"]);
        lost.addresses = vec!["192.0.2.1/32".parse().unwrap()];
        let settled = tcp("settled.example.com", &["240.240.0.3", "2001:2::3"]);
        let services = several.into_iter().chain([lost, settled]);
        let index = ServiceIndex::build(services, &ExportTo::default());
        let stale = stale(&index);
        let names: Vec<&str> = stale.keys().map(|key| &*key.name).collect();
        assert_eq!(names, ["lost.example.com", "several"]);
        let mut values = stale.into_values();
        assert_eq!(values.next(), Some(vec![]), "no longer eligible: taken back");
        let several = values.next().unwrap();
        assert_eq!(several.len(), 4);
        assert_eq!(several[0], json!({"value": "240.240.0.1", "host": "a.example.com"}));
        assert_eq!(several[2]["host"], "b.example.com");
    }

    #[test]
    fn what_else_status_says_stays() {
        let addresses = [json!({"value": "240.240.0.1", "host": "a"})];
        let mut object = json!({"spec": {}, "status": {"conditions": [1]}});
        assert!(put(&mut object, &addresses));
        assert_eq!(object["status"], json!({"conditions": [1], "addresses": addresses}));
        assert!(!put(&mut object, &addresses), "said already");
        assert!(put(&mut object, &[]));
        assert_eq!(object["status"], json!({"conditions": [1]}));
        assert!(!put(&mut object, &[]));
        let mut bare = json!({"spec": {}});
        assert!(put(&mut bare, &addresses));
        assert_eq!(bare["status"]["addresses"], json!(addresses));
    }
}
