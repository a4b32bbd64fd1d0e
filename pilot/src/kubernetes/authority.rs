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
    use std::sync::Arc;

    use kube::ResourceExt as _;
    use parking_lot::Mutex;
    use serde_json::json;
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::*;
    use crate::ca::authority::Authority;
    use crate::ca::authority::tests::family;
    use crate::ca::in_force::Signs;
    use crate::kubernetes::fake;
    use crate::metrics::Metrics;

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

    /// The Secrets of an API server, by name; each change has a version of its own.
    type Secrets = Arc<Mutex<(BTreeMap<String, Secret>, u64)>>;

    fn put(secrets: &Secrets, mut secret: Secret) -> Secret {
        let mut all = secrets.lock();
        all.1 += 1;
        secret.metadata.resource_version = Some(all.1.to_string());
        all.0.insert(secret.name_any(), secret.clone());
        secret
    }

    /// An API server that has them. Its watches end after what they have to say, so that they are asked again.
    fn server(secrets: &Secrets) -> Client {
        let secrets = secrets.clone();
        fake::client(move |(method, path, body)| {
            let secret = || serde_json::from_value::<Secret>(body.clone()).unwrap();
            let (found, version) = {
                let all = secrets.lock();
                let name =
                    [PLUGGED, OWN].into_iter().find(|name| path.contains(&format!("metadata.name%3D{name}")));
                (name.and_then(|name| all.0.get(name).cloned()), all.1)
            };
            match (method.as_str(), path.contains("watch=true")) {
                ("GET", false) => {
                    let items: Vec<Secret> = found.into_iter().collect();
                    let list = json!({ "kind": "SecretList", "apiVersion": "v1", "metadata": { "resourceVersion": version.to_string() }, "items": items });
                    (200, vec![list])
                }
                ("GET", true) => {
                    let event = |secret: Secret| json!({ "type": "MODIFIED", "object": secret });
                    (200, found.map(event).into_iter().collect())
                }
                ("POST", _) => (201, vec![json!(put(&secrets, secret()))]),
                ("PUT", _) => (200, vec![json!(put(&secrets, secret()))]),
                other => panic!("{other:?} {path}"),
            }
        })
    }

    fn follow(secrets: &Secrets, leads: bool) -> (Signs, watch::Sender<bool>, JoinHandle<()>) {
        follow_with(secrets, leads, Arc::default())
    }

    fn follow_with(
        secrets: &Secrets,
        leads: bool,
        metrics: Arc<Metrics>,
    ) -> (Signs, watch::Sender<bool>, JoinHandle<()>) {
        let (in_force, signs) = InForce::new(metrics);
        let (leader, leadership) = watch::channel(leads);
        let authorities = Authorities { client: server(secrets), namespace: "n".into(), in_force };
        (signs, leader, tokio::spawn(authorities.run(leadership)))
    }

    async fn until(signs: &mut Signs, what: &str, holds: impl Fn(&Authority) -> bool) -> Arc<Authority> {
        let holds = |authority: &Option<Arc<Authority>>| authority.as_deref().is_some_and(&holds);
        let found = timeout(Duration::from_secs(20), signs.wait_for(holds)).await;
        found.unwrap_or_else(|_| panic!("in time: {what}")).unwrap().clone().unwrap()
    }

    #[tokio::test]
    async fn a_root_is_made_once_and_renewed_by_the_leader_alone() {
        let secrets = Secrets::default();
        let (mut signs, _follower, task) = follow(&secrets, false);
        let made = until(&mut signs, "a root", |_| true).await;
        // A root that is as good as over, of the same key.
        let mut secret = secrets.lock().0[OWN].clone();
        let data = secret.data.as_mut().unwrap();
        let key = rcgen::KeyPair::from_pem(std::str::from_utf8(&data[KEY].0).unwrap()).unwrap();
        let mut old = rcgen::CertificateParams::default();
        old.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        old.distinguished_name = rcgen::DistinguishedName::new();
        old.distinguished_name.push(rcgen::DnType::OrganizationName, ORGANIZATION);
        let (now, day) = (std::time::SystemTime::now(), Duration::from_secs(86_400));
        (old.not_before, old.not_after) = ((now - 90 * day).into(), (now + 10 * day).into());
        let old = old.self_signed(&key).unwrap().pem();
        data.insert(CERTIFICATE.into(), ByteString(old.clone().into_bytes()));
        put(&secrets, secret);
        let seen = until(&mut signs, "the old root", |authority| !authority.is_same_as(&made)).await;
        let end = |authority: &Authority| authority.life().1;
        assert!(end(&seen) < end(&made), "who doesn't lead leaves it as it is");
        let (mut led, _leader, leading) = follow(&secrets, true);
        let year = 365 * 86_400;
        until(&mut led, "a renewed root", |authority| end(authority) > end(&seen) + year).await;
        let renewed =
            until(&mut signs, "a renewed root", |authority| end(authority) > end(&seen) + year).await;
        assert!(renewed.is_believed_by_those_of(&made));
        task.abort();
        leading.abort();
    }

    #[tokio::test]
    async fn what_is_plugged_in_comes_first_and_a_bad_one_changes_nothing() {
        let secrets = Secrets::default();
        put(&secrets, new_secret("n").unwrap());
        let family = family();
        let plugged = |certificate: &str| {
            let mut secret = new_secret("n").unwrap();
            secret.metadata.name = Some(PLUGGED.into());
            let parts = [
                (CERTIFICATE, certificate),
                (KEY, &family.key),
                ("cert-chain.pem", &family.between),
                ("root-cert.pem", &family.root),
            ];
            let parts = parts.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())));
            secret.data = Some(parts.into());
            secret
        };
        put(&secrets, plugged(&family.certificate));
        let metrics = Arc::<Metrics>::default();
        let (mut signs, _leader, task) = follow_with(&secrets, true, metrics.clone());
        let good =
            until(&mut signs, "the plugged-in one", |authority| authority.roots() == family.root).await;
        put(&secrets, plugged("half"));
        let refused = async {
            while metrics.authority_refused.get() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(20), refused).await.expect("it is refused");
        assert!(signs.borrow().as_ref().is_some_and(|signs| Arc::ptr_eq(signs, &good)));
        let more = family.root.clone() + &crate::ca::authority::tests::family().root;
        let mut with_more = plugged(&family.certificate);
        with_more.data.as_mut().unwrap().insert("root-cert.pem".into(), ByteString(more.into_bytes()));
        put(&secrets, with_more);
        let next = until(&mut signs, "two roots", |authority| authority.count_of_roots() == 2).await;
        assert!(next.is_believed_by_those_of(&good));
        assert_eq!(metrics.authority_refused.get(), 0);
        task.abort();
    }
}
