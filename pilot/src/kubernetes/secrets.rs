//! The Secrets that gateways need, and no other: each is watched by its name, in the namespace of a gateway that serves an Ingress
//! which names it.
//!
//! Needs get, list and watch of Secrets in the namespaces of gateways. A Secret that can't be used leaves the last good one in force.

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

use crate::model::{Kind, ResourceKey, TlsSecret};
use crate::snapshot::MeshSnapshot;
use crate::source::kubernetes::said;
use crate::store::writer::Secrets as Feed;
use crate::webhook::certificate;

/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Where a certificate chain and its key are: as Istio's generic Secrets have them, and as `kubernetes.io/tls` has.
const KEYS: [(&str, &str); 2] = [("cert", "key"), ("tls.crt", "tls.key")];

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

/// Every name that an Ingress of ours gives, in every namespace that has a gateway.
fn needed(snapshot: &MeshSnapshot) -> BTreeSet<Name> {
    let ingresses = &snapshot.ingresses;
    if ingresses.tls().is_empty() {
        return BTreeSet::new();
    }
    let gateways =
        snapshot.workloads.iter().filter(|workload| ingresses.selector().selects(&workload.labels));
    let namespaces: BTreeSet<Arc<str>> = gateways.map(|gateway| gateway.namespace().clone()).collect();
    let named =
        |namespace: Arc<str>| ingresses.tls().iter().map(move |tls| (namespace.clone(), tls.secret.clone()));
    namespaces.into_iter().flat_map(named).collect()
}

fn key((namespace, name): &Name) -> ResourceKey {
    ResourceKey::new(Kind::Secret, namespace.clone(), name.clone())
}

async fn follow(client: Client, name: Name, feed: Feed) {
    let api: Api<Secret> = Api::namespaced(client, &name.0);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", name.1));
    let mut events = pin!(watcher(api, config));
    let (mut there, mut good) = (false, false);
    let mut trouble = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => there = false,
            Ok(Event::InitApply(secret) | Event::Apply(secret)) => {
                there = true;
                let read = read(&secret);
                let doubt = read.as_ref().ok().and_then(|tls| doubt(&tls.chain, ASN1Time::now()));
                match (read, doubt) {
                    (Ok(tls), None) => {
                        good = true;
                        feed.put(key(&name), tls);
                    }
                    // Clients say better than we what is wrong with it; only a good one is worth more.
                    (Ok(tls), Some(doubt)) if !good => {
                        tracing::warn!("Secret {}/{}: {doubt}; clients will refuse it", name.0, name.1);
                        feed.put(key(&name), tls);
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
                tracing::warn!("Secret {}/{}: an Ingress names it, and it is not there", name.0, name.1);
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

fn read(secret: &Secret) -> Result<TlsSecret, String> {
    let data = secret.data.as_ref();
    let bytes = |key: &str| data.and_then(|data| data.get(key)).map(|bytes| &*bytes.0);
    let found = KEYS.into_iter().find_map(|(chain, key)| bytes(chain).zip(bytes(key)));
    let Some((chain, key)) = found else {
        return Err("has neither tls.crt and tls.key nor cert and key".into());
    };
    certificate::certified(chain, key).map_err(|error| error.to_string())?;
    Ok(TlsSecret { chain: chain.into(), key: key.into() })
}

/// Why clients would not take a certificate chain at this time.
fn doubt(chain: &[u8], now: ASN1Time) -> Option<String> {
    let (_, pem) = parse_x509_pem(chain).ok()?;
    let leaf = pem.parse_x509().ok()?;
    let Validity { not_before, not_after } = leaf.validity();
    if now > *not_after {
        return Some(format!("the certificate has expired on {not_after}"));
    }
    (now < *not_before).then(|| format!("the certificate is not valid before {not_before}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

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

    #[test]
    fn both_layouts_are_read_and_what_is_wrong_is_named() {
        let make = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate =
                rcgen::CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap();
            (certificate.pem(), key.serialize_pem())
        };
        let (chain, key) = make();
        let (other, _) = make();
        let secret = |pairs: &[(&str, &str)]| Secret {
            data: Some(pairs.iter().map(|(k, v)| ((*k).into(), ByteString(v.as_bytes().to_vec()))).collect()),
            ..Secret::default()
        };
        let wanted = Ok(TlsSecret { chain: chain.as_bytes().into(), key: key.as_bytes().into() });
        assert_eq!(read(&secret(&[("tls.crt", &chain), ("tls.key", &key)])), wanted);
        assert_eq!(read(&secret(&[("cert", &chain), ("key", &key)])), wanted);
        for (pairs, says) in [
            (&[("tls.crt", chain.as_str())][..], "has neither"),
            (&[("tls.crt", "x"), ("tls.key", &key)], "the certificate chain is empty"),
            (&[("tls.crt", &chain), ("tls.key", "x")], "the private key is no PEM"),
            (&[("tls.crt", &other), ("tls.key", &key)], "does not fit"),
        ] {
            let error = read(&secret(pairs)).unwrap_err();
            assert!(error.contains(says) && !error.contains("PRIVATE"), "{error}");
        }
    }
}
