//! Workloads that register themselves over their xDS stream (`osier run`).

use std::sync::Arc;

use osier_core::labels::Labels;
use osier_core::registration::Registration;

use super::check::Resource;
use super::{Outcome, Place, Update};
use crate::model::{Address, Age, Health, Kind, Locality, ResourceKey, TlsMode, Workload, WorkloadName};

/// Key of the WorkloadEntry that a registration makes.
pub fn key(registration: &Registration) -> ResourceKey {
    ResourceKey::new(Kind::WorkloadEntry, registration.namespace.as_str(), registration.name.as_str())
}

/// The WorkloadEntry of a registration. `created` are milliseconds since 1970.
pub(super) fn update(registration: &Registration, created: i64) -> Update {
    let key = key(registration);
    let labels: Labels = registration.all_labels().into();
    let owner: Arc<str> = match &registration.version {
        Some(version) => format!("{}-{version}", registration.service).into(),
        None => registration.service.as_str().into(),
    };
    let workload = Workload {
        age: Age { created, name: key.name.clone(), namespace: key.namespace.clone() },
        names: Arc::new(WorkloadName::new(&key.namespace, &owner, &key.name, &labels)),
        addresses: vec![Address::Ip(registration.address)],
        ports: Default::default(),
        // a pure client takes no traffic
        health: if registration.app_port.is_some() { Health::Healthy } else { Health::Unhealthy },
        service_account: registration.service_account.as_deref().unwrap_or_default().into(),
        locality: Locality::default(),
        network: "".into(),
        weight: 1,
        tls: if registration.service_account.is_some() { TlsMode::Istio } else { TlsMode::Disabled },
        node: "".into(),
        hostname: Default::default(),
        labels,
        key: key.clone(),
    };
    let outcome = Outcome::Applied(Resource::Workload(Box::new(workload)));
    Update { key, outcome, place: Place::default() }
}
