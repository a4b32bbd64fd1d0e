//! Who signs in a cluster: the Secret `cacerts` where people plug in an authority of theirs, else root and key in a Secret that is
//! made once by whichever replica comes first, and whose root the leader renews before it ends.
//!
//! Names, type and keys of the Secrets are Istio's. Their content never leaves this process but for the roots. Both are followed: what
//! is good signs from then on in every replica, what is not is refused by name.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::RETRY;
use crate::ca::authority::{Unusable, new_root, renewed_root};
use crate::ca::in_force::InForce;
use crate::ca::material;
use crate::source::kubernetes::{chain, said};

/// An authority that people plug in.
const PLUGGED: &str = "cacerts";
/// The one that control planes make.
const OWN: &str = "istio-ca-secret";
const TYPE: &str = "istio.io/ca-root";
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
/// Who a root made here belongs to, in its subject.
const ORGANIZATION: &str = "cluster.local";
/// Part of its life that a root of our own has left when it is renewed.
const RENEWED_AT: f64 = 0.2;
/// How often to look whether it is time: certificates end without an event, and clocks are set. The first look of each replica is at
/// another time.
const LOOK: Duration = Duration::from_secs(3600);

/// Follows the Secrets.
pub struct Authorities {
    /// Talks to the API server.
    pub client: Client,
    /// Namespace of the control plane.
    pub namespace: String,
    /// Where authorities go.
    pub in_force: InForce,
}

/// A Secret, as far as it is known.
#[derive(Default)]
struct Known {
    secret: Option<Secret>,
    listed: bool,
    seen: bool,
}

impl Known {
    fn note(&mut self, event: Event<Secret>) {
        match event {
            Event::Init => self.seen = false,
            Event::InitApply(secret) | Event::Apply(secret) => {
                self.secret = Some(secret);
                self.seen = true;
            }
            Event::InitDone => {
                self.listed = true;
                if !self.seen {
                    self.secret = None;
                }
            }
            Event::Delete(_) => self.secret = None,
        }
    }
}

/// Why a root can't be made or renewed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("the API server doesn't take it")]
    Api(#[source] kube::Error),
    #[error("it can't be made")]
    Make(#[from] rcgen::Error),
    #[error(transparent)]
    Renew(#[from] Unusable),
}

impl Authorities {
    /// Runs for as long as the process. `leads`: whether this replica may renew.
    pub async fn run(self, mut leads: watch::Receiver<bool>) {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let follow = |name: &str| {
            watcher(api.clone(), watcher::Config::default().fields(&format!("metadata.name={name}")))
        };
        let (mut plugged_events, mut own_events) = (pin!(follow(PLUGGED)), pin!(follow(OWN)));
        let (mut plugged, mut own) = (Known::default(), Known::default());
        let mut look = Instant::now() + LOOK.mul_f64(rand::random());
        loop {
            let failed = tokio::select! {
                Some(event) = plugged_events.next() => event.map(|event| plugged.note(event)).err(),
                Some(event) = own_events.next() => event.map(|event| own.note(event)).err(),
                Ok(()) = leads.changed() => None,
                () = sleep_until(look) => None,
                else => return,
            };
            if let Some(error) = failed {
                self.in_force.refuse(&format!(
                    "Secrets of {} can't be watched: {}",
                    self.namespace,
                    said(&error)
                ));
                tokio::time::sleep(RETRY).await;
                continue;
            }
            if look <= Instant::now() {
                look = Instant::now() + LOOK;
            }
            if plugged.listed && own.listed {
                let leads = *leads.borrow_and_update();
                if let Err(error) =
                    self.decide(&api, plugged.secret.as_ref(), own.secret.as_ref(), leads).await
                {
                    self.in_force.refuse(&format!("{}: {}", self.place(OWN), chain(&error)));
                    look = look.min(Instant::now() + RETRY);
                }
            }
        }
    }

    /// Offers what is there. Where there is nothing, or it is about to end, makes another: the watch brings it back.
    async fn decide(
        &self,
        api: &Api<Secret>,
        plugged: Option<&Secret>,
        own: Option<&Secret>,
        leads: bool,
    ) -> Result<(), Failed> {
        if let Some(secret) = plugged {
            self.in_force.offer(&self.place(PLUGGED), material::plugged(data(secret)));
            return Ok(());
        }
        let Some(secret) = own else {
            return match self.in_force.current() {
                Some(_) => {
                    self.in_force.refuse(&format!("{}: is gone", self.place(OWN)));
                    Ok(())
                }
                None => self.make(api).await,
            };
        };
        let authority = material::own(data(secret));
        let renew = leads && authority.as_ref().is_ok_and(|authority| is_due(authority.life(), now()));
        self.in_force.offer(&self.place(OWN), authority);
        if renew { self.renew(api, secret).await } else { Ok(()) }
    }

    async fn make(&self, api: &Api<Secret>) -> Result<(), Failed> {
        match api.create(&PostParams::default(), &new_secret(&self.namespace)?).await {
            Ok(_) => tracing::info!(secret = OWN, "made a root certificate"),
            // Another replica was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(Failed::Api(error)),
        }
        Ok(())
    }

    async fn renew(&self, api: &Api<Secret>, secret: &Secret) -> Result<(), Failed> {
        let mut renewed = secret.clone();
        let data = renewed.data.get_or_insert_default();
        let text = |key: &str| {
            let bytes = data.get(key).map(|bytes| bytes.0.clone()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let root = renewed_root(&text(CERTIFICATE), &text(KEY))?;
        data.insert(CERTIFICATE.into(), ByteString(root.into_bytes()));
        match api.replace(OWN, &PostParams::default(), &renewed).await {
            Ok(_) => tracing::info!(secret = OWN, "renewed the root certificate, with the same key"),
            // Somebody else has changed it, which the watch will tell.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(Failed::Api(error)),
        }
        Ok(())
    }

    fn place(&self, secret: &str) -> String {
        format!("Secret {}/{secret}", self.namespace)
    }
}

/// The data of a Secret, by key.
fn data<'a>(secret: &'a Secret) -> impl Fn(&str) -> Option<&'a [u8]> {
    move |key| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| &*bytes.0)
}

fn is_due((begin, end): (i64, i64), now: i64) -> bool {
    let life = (end - begin).max(0) as f64;
    ((end - now) as f64) <= life * RENEWED_AT
}

fn now() -> i64 {
    crate::store::writer::now() / 1000
}

fn new_secret(namespace: &str) -> Result<Secret, rcgen::Error> {
    let (certificate, key) = new_root(ORGANIZATION)?;
    let data = [(CERTIFICATE, certificate), (KEY, key)];
    let data: BTreeMap<String, ByteString> =
        data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect();
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(OWN.into()),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.into()),
        data: Some(data),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_secret_is_named() {
        let own = |secret: &Secret| material::own(data(secret));
        let good = new_secret("n").unwrap();
        own(&good).unwrap();
        let with = |key: &str, value: Option<&str>| {
            let mut secret = good.clone();
            let data = secret.data.as_mut().unwrap();
            match value {
                Some(value) => data.insert(key.into(), ByteString(value.as_bytes().to_vec())),
                None => data.remove(key),
            };
            own(&secret).unwrap_err().to_string()
        };
        assert_eq!(with(KEY, None), "ca-key.pem is not there");
        assert!(with(KEY, Some("no key")).contains("ca-key.pem is no PEM"));
        assert!(with(CERTIFICATE, Some("none")).contains("ca-cert.pem is no PEM"));
    }

    #[test]
    fn a_root_is_renewed_when_a_fifth_of_its_life_is_left() {
        for (now, due) in [(0, false), (799, false), (801, true), (2000, true)] {
            assert_eq!(is_due((0, 1000), now), due, "{now}");
        }
    }
}
