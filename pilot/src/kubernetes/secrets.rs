//! The Secrets that workloads need, and no other: each is watched by its name, in the namespace of a gateway that serves an Ingress which
//! names it, or of workloads that a DestinationRule which names it (`credentialName`) selects.
//!
//! Needs list and watch of Secrets in these namespaces. A Secret that can't be used leaves the last good one in force.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use x509_parser::certificate::Validity;
use x509_parser::pem::parse_x509_pem;
use x509_parser::time::ASN1Time;

use crate::model::{Credential, Kind, ResourceKey, has_roots_of, roots_of};
use crate::snapshot::MeshSnapshot;
use crate::source::kubernetes::said;
use crate::store::check;
use crate::store::writer::Secrets as Feed;

/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Namespace and name.
type Name = (Arc<str>, Arc<str>);

/// Follows what is needed.
pub struct Secrets {
    /// Talks to the API server.
    pub client: Client,
    /// Says what is needed.
    pub snapshot: watch::Receiver<Arc<MeshSnapshot>>,
    /// Where certificates go.
    pub feed: Feed,
}

impl Secrets {
    /// Runs until the mesh ends.
    pub async fn run(mut self) {
        let mut tasks = JoinSet::new();
        let mut watched: BTreeMap<Name, AbortHandle> = BTreeMap::new();
        loop {
            let needed = needed(&self.snapshot.borrow_and_update());
            watched.retain(|name, task| {
                let keep = needed.contains(name);
                if !keep {
                    task.abort();
                    self.feed.remove(key(name));
                }
                keep
            });
            for name in needed {
                watched
                    .entry(name.clone())
                    .or_insert_with(|| tasks.spawn(follow(self.client.clone(), name, self.feed.clone())));
            }
            tokio::select! {
                changed = self.snapshot.changed() => if changed.is_err() {
                    return;
                },
                Some(_) = tasks.join_next() => {}
            }
        }
    }
}

/// Every name that an Ingress of ours gives, in every namespace that has a gateway, and every one that a DestinationRule gives: there too,
/// or in the namespace of the workloads that it selects.
fn needed(snapshot: &MeshSnapshot) -> BTreeSet<Name> {
    let ingresses = &snapshot.ingresses;
    let rules = || snapshot.policies.iter().filter(|rule| rule.credentials().next().is_some());
    let (of_gateways, of_workloads): (Vec<_>, Vec<_>) = rules().partition(|rule| rule.selector.is_none());
    let with_roots = |name: &Arc<str>| [name.clone(), roots_of(name).into()];
    let mut names: BTreeSet<Arc<str>> = ingresses.tls().iter().map(|tls| tls.secret.clone()).collect();
    names.extend(of_gateways.iter().flat_map(|rule| rule.credentials()).flat_map(with_roots));
    let mut needed = BTreeSet::new();
    if !names.is_empty() {
        let gateways =
            snapshot.workloads.iter().filter(|workload| ingresses.selector().selects(&workload.labels));
        let namespaces: BTreeSet<Arc<str>> = gateways.map(|gateway| gateway.namespace().clone()).collect();
        let named = |namespace: Arc<str>| names.iter().map(move |name| (namespace.clone(), name.clone()));
        needed.extend(namespaces.into_iter().flat_map(named));
    }
    for rule in of_workloads {
        let names = rule.credentials().flat_map(with_roots);
        needed.extend(names.map(|name| (rule.key.namespace.clone(), name)));
    }
    needed
}

fn key((namespace, name): &Name) -> ResourceKey {
    ResourceKey::new(Kind::Secret, namespace.clone(), name.clone())
}

/// A certificate that begins so soon is taken.
const SKEW: Duration = Duration::from_secs(5 * 60);

async fn follow(client: Client, name: Name, feed: Feed) {
    let api: Api<Secret> = Api::namespaced(client, &name.0);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", name.1));
    let mut events = pin!(watcher(api, config));
    let (mut there, mut good) = (false, false);
    let mut trouble = None;
    while let Some(event) = events.next().await {
        if event.is_ok() {
            trouble = None;
        }
        match event {
            Ok(Event::Init) => there = false,
            Ok(Event::InitApply(secret) | Event::Apply(secret)) => {
                there = true;
                let read = read(&secret);
                let own = read.as_ref().ok().and_then(|read| read.own.as_ref());
                let doubt = own.and_then(|own| doubt(&own.chain, ASN1Time::now()));
                match (read, doubt) {
                    (Ok(read), None) => {
                        good = true;
                        feed.put(key(&name), read);
                    }
                    // Others say better than we what is wrong with it; only a good one is worth more.
                    (Ok(read), Some(doubt)) if !good => {
                        tracing::warn!("Secret {}/{}: {doubt}; others will refuse it", name.0, name.1);
                        feed.put(key(&name), read);
                    }
                    (Ok(_), Some(reason)) | (Err(reason), _) => {
                        tracing::error!(
                            "Secret {}/{}: {reason}; what was good before stays in force",
                            name.0,
                            name.1
                        );
                    }
                }
            }
            Ok(Event::InitDone) if !there => {
                // Roots may stand beside the certificate as well.
                if has_roots_of(&name.1).is_none() {
                    tracing::warn!("Secret {}/{}: it is named, and it is not there", name.0, name.1);
                }
                good = false;
                feed.remove(key(&name));
            }
            Ok(Event::InitDone) => {}
            Ok(Event::Delete(_)) => {
                good = false;
                feed.remove(key(&name));
            }
            Err(error) => {
                let message = said(&error);
                if trouble.as_ref() != Some(&message) {
                    tracing::error!("Secret {}/{} can't be watched: {message}", name.0, name.1);
                }
                trouble = Some(message);
                sleep(RETRY).await;
            }
        }
    }
}

fn read(secret: &Secret) -> Result<Credential, String> {
    let data = secret.data.as_ref();
    let read = check::secret::read(|key| data.and_then(|data| data.get(key)).map(|bytes| &*bytes.0))?;
    read.ok_or_else(|| {
        "has no certificate (tls.crt and tls.key, or cert and key) and no roots (ca.crt, or cacert)".into()
    })
}

/// Why clients would not take a certificate chain at this time.
fn doubt(chain: &[u8], now: ASN1Time) -> Option<String> {
    let (_, pem) = parse_x509_pem(chain).ok()?;
    let leaf = pem.parse_x509().ok()?;
    let Validity { not_before, not_after } = leaf.validity();
    if now > *not_after {
        return Some(format!("the certificate has expired on {not_after}"));
    }
    // Clocks differ: who made it may be ahead of us.
    let soon = now.timestamp().saturating_add(SKEW.as_secs().cast_signed());
    (soon < not_before.timestamp()).then(|| format!("the certificate is not valid before {not_before}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#gen::fixture::pod;
    use crate::model::{
        Age, ClientTls, DestinationPolicy, ExportTo, ServerNames, ServerTrust, TrafficPolicy,
    };
    use crate::snapshot::PolicyIndex;

    #[test]
    fn what_rules_name_is_needed_where_it_is_used() {
        let rule = |name: &str, selector: Option<[(&str, &str); 1]>| DestinationPolicy {
            key: ResourceKey::new(Kind::DestinationRule, "shop", name),
            merged: vec![],
            age: Age { created: 0, name: name.into(), namespace: "shop".into() },
            host: osier_core::host::Host::new(name),
            export_to: ExportTo::default(),
            selector: selector.map(Into::into),
            policy: Some(TrafficPolicy {
                tls: Some(Arc::new(ClientTls::Outside {
                    own: None,
                    trust: ServerTrust::Secret(name.into()),
                    names: ServerNames::default(),
                })),
                ..TrafficPolicy::default()
            }),
            subsets: vec![],
        };
        let rules = [rule("selected", Some([("app", "a")])), rule("general", None)];
        let mut snapshot = MeshSnapshot {
            policies: Arc::new(PolicyIndex::build(rules.map(Arc::new), &ExportTo::default())),
            ..MeshSnapshot::default()
        };
        let shown = |snapshot: &MeshSnapshot| {
            needed(snapshot).iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect::<Vec<_>>()
        };
        assert_eq!(shown(&snapshot), ["shop/selected", "shop/selected-cacert"]);
        let gateway = pod("gateway", "10.0.0.1", [("istio", "ingressgateway")]);
        snapshot.workloads = Arc::new([Arc::new(gateway)]);
        let of_gateways = ["default/general", "default/general-cacert"];
        assert_eq!(shown(&snapshot), [of_gateways, ["shop/selected", "shop/selected-cacert"]].concat());
    }

    #[test]
    fn certificates_out_of_their_time_are_told() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a".into()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 2);
        params.not_after = rcgen::date_time_ymd(2020, 2, 3);
        let chain = params.self_signed(&key).unwrap().pem();
        let at = |seconds| doubt(chain.as_bytes(), ASN1Time::from_timestamp(seconds).unwrap());
        assert_eq!(at(1_579_000_000), None);
        assert!(at(1_570_000_000).unwrap().starts_with("the certificate is not valid before Jan"));
        assert!(at(1_590_000_000).unwrap().starts_with("the certificate has expired on Feb"));
    }
}
