//! Configuration that isn't in force as it is written, and whom it is about.

use futures_util::future::join_all;
use kube::api::DynamicObject;
use kube::{Api, Client};
use osier_core::host::Host;
use osier_pilot::model::{DEFAULT_CLUSTER_DOMAIN, Kind, ResourceKey, Severity};
use osier_pilot::source::kubernetes::istio_kinds;
use osier_pilot::store::State;

use super::mesh::{Judgement, named};
use super::page::Page;

/// One such resource.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Which.
    pub key: ResourceKey,
    /// What became of it.
    pub state: State,
    /// Why.
    pub reasons: Vec<String>,
    /// Hosts that it is about; none for kinds that know none.
    pub hosts: Vec<Host>,
}

/// All of a judgement, without hosts.
pub fn of(judgement: &Judgement) -> Vec<Refused> {
    let not_in_force = |state: &State| !matches!(state, State::InForce | State::Unused);
    let of_ours = |key: &ResourceKey| {
        key.kind.is_security()
            || matches!(
                key.kind,
                Kind::VirtualService | Kind::DestinationRule | Kind::ServiceEntry | Kind::Service
            )
    };
    let refused = judgement.states.iter().filter(|(key, state)| not_in_force(state) && of_ours(key));
    refused
        .map(|(key, state)| {
            let reports = judgement.reports.iter();
            let why = reports.filter(|(r, severity)| *severity == Severity::Error && r.key == named(key));
            Refused {
                key: key.clone(),
                state: *state,
                reasons: why.map(|(remark, _)| remark.text.clone()).collect(),
                hosts: Vec::new(),
            }
        })
        .collect()
}

/// The same, with the hosts that the API server's objects name.
pub async fn with_hosts(client: &Client, judgement: &Judgement) -> Vec<Refused> {
    let filled = of(judgement).into_iter().map(async |mut refused| {
        refused.hosts = hosts(client, &refused.key).await;
        refused
    });
    join_all(filled).await
}

async fn hosts(client: &Client, key: &ResourceKey) -> Vec<Host> {
    let kind = format!("{:?}", key.kind);
    let Some(resource) = istio_kinds().find(|resource| resource.kind == kind) else { return Vec::new() };
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
    // One that is gone in the meantime is about nobody.
    let Ok(Some(object)) = api.get_opt(&key.name).await else { return Vec::new() };
    let spec = &object.data["spec"];
    let several = spec["hosts"].as_array().cloned().unwrap_or_default();
    let texts = several.iter().chain([&spec["host"]]).filter_map(|host| host.as_str());
    texts.map(|text| expand(text, &key.namespace)).collect()
}

/// A host as it counts: short names are those of the namespace.
fn expand(text: &str, namespace: &str) -> Host {
    if text == "*" || text.contains('.') {
        return Host::new(text);
    }
    Host::new(&format!("{text}.{namespace}.svc.{DEFAULT_CLUSTER_DOMAIN}"))
}

impl Refused {
    /// True if it would say something of traffic to `host`.
    pub fn is_about(&self, host: &Host) -> bool {
        self.hosts.iter().any(|own| own == host || own.covers(host))
    }

    /// True for a security policy that may cover workloads of the namespace.
    pub fn may_cover(&self, namespace: &str, root: &str) -> bool {
        self.key.kind.is_security() && (*self.key.namespace == *namespace || *self.key.namespace == *root)
    }

    /// Says so.
    pub fn describe(&self, page: &mut Page, depth: usize) {
        let state = match self.state {
            State::LastGood => "is refused as it is now; its last good version is in force",
            State::HeldBack => "is held back",
            State::FailsClosed => "can't be enforced, so that what it covers is closed",
            _ => "is refused, and no version of it is in force",
        };
        let ResourceKey { kind, namespace, name } = &self.key;
        page.line(depth, format!("{kind:?}: {name}.{namespace} {state}"));
        self.reasons.iter().for_each(|reason| page.line(depth + 1, reason));
        page.warn(format!("{kind:?} {name}.{namespace} {state}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_hosts_are_of_the_namespace() {
        let refused = |hosts: &[&str]| Refused {
            key: ResourceKey::new(Kind::VirtualService, "shop", "x"),
            state: State::Refused,
            reasons: vec![],
            hosts: hosts.iter().map(|host| expand(host, "shop")).collect(),
        };
        let reviews = Host::new("reviews.shop.svc.cluster.local");
        for hosts in [
            &["reviews"][..],
            &["ratings", "reviews.shop.svc.cluster.local"],
            &["*.svc.cluster.local"],
            &["*"],
        ] {
            assert!(refused(hosts).is_about(&reviews), "{hosts:?}");
        }
        for hosts in [&["ratings"][..], &["reviews.other.svc.cluster.local"], &[]] {
            assert!(!refused(hosts).is_about(&reviews), "{hosts:?}");
        }
    }
}
