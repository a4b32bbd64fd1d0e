//! Whether a client may have the keys in Secrets of its namespace: of a gateway, whose listeners depend on it, and of whoever names one.
//!
//! It is found out once a stream, when it first matters. Where nobody can say, a gateway has to come again; others go on without keys,
//! and the next request asks again: a stream carries everything else that its proxy knows, and must not end because an API server is down.

use std::sync::Arc;
use std::time::Duration;

use osier_proto::types;
use osier_proto::xds::server::Request;
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::identity::{self, Authenticate, Caller, Denied};
use crate::r#gen::key::SecretsOf;
use crate::r#gen::name;
use crate::model::has_roots_of;

/// An answer that takes longer is none. Nothing else is done for the stream meanwhile.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two questions.
const PAUSE: Duration = Duration::from_secs(10);

/// What a caller has proved, and who knows what it may.
pub(super) struct Proof {
    pub caller: Caller,
    pub authenticate: Arc<dyn Authenticate>,
}

/// What is known of one stream's rights.
#[derive(Default)]
pub(super) struct Rights {
    /// Of whom it must still be asked.
    unasked: Option<Proof>,
    /// A key was named.
    matters: bool,
    /// When it was asked in vain.
    last: Option<Instant>,
}

impl Rights {
    /// Of a caller that has proved who it is, or of one that hasn't.
    pub fn of(proof: Option<Proof>) -> Self {
        Self { unasked: proof, ..Self::default() }
    }

    /// Where its keys are, once it has been found out that it may have them.
    pub async fn find(&mut self, gateway: bool, request: &Request) -> Result<Option<SecretsOf>, Status> {
        self.matters |= gateway || names_a_key(request);
        let due = self.last.is_none_or(|last| last.elapsed() >= PAUSE);
        let Some(Proof { caller, authenticate }) = self.unasked.as_ref().filter(|_| self.matters && due)
        else {
            return Ok(None);
        };
        let account = caller.identity.user();
        let asked = timeout(PATIENCE, authenticate.may_read_secrets(&caller.identity)).await;
        match asked.unwrap_or_else(|_| Err(Denied::Unknown("no answer in time".into()))) {
            Ok(may) => {
                if !may {
                    let who = if gateway { "gateway" } else { "workload" };
                    tracing::warn!(
                        "the {who} of {account} gets no certificates: it needs the right to get secrets/tls, or to list secrets, in its namespace"
                    );
                }
                let proof = self.unasked.take().filter(|_| may);
                Ok(proof.map(|proof| SecretsOf { namespace: proof.caller.identity.namespace, keys: true }))
            }
            Err(denied) if gateway => Err(identity::refuse(&denied)),
            Err(denied) => {
                tracing::warn!("the workload of {account} gets no certificates yet: {denied}");
                self.last = Some(Instant::now());
                Ok(None)
            }
        }
    }
}

/// True where a request names a Secret whose key it wants.
fn names_a_key(request: &Request) -> bool {
    let is_key =
        |name: &String| name::parse_secret(name).is_some_and(|(_, secret)| has_roots_of(secret).is_none());
    match request {
        Request::Incremental(request) => {
            let held = request.initial_resource_versions.keys();
            request.type_url == types::SECRET
                && request.resource_names_subscribe.iter().chain(held).any(is_key)
        }
        Request::StateOfTheWorld(request) => {
            request.type_url == types::SECRET && request.resource_names.iter().any(is_key)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::BoxFuture;
    use osier_proto::types::discovery::DeltaDiscoveryRequest;

    use super::*;
    use crate::xds::identity::Identity;

    /// Knows nothing until it has been asked so often.
    #[derive(Debug)]
    struct Late(AtomicUsize, usize);

    impl Authenticate for Late {
        fn authenticate(&self, _: String) -> BoxFuture<'_, Result<Caller, Denied>> {
            Box::pin(std::future::pending())
        }

        fn may_read_secrets<'a>(&'a self, _: &'a Identity) -> BoxFuture<'a, Result<bool, Denied>> {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => Box::pin(std::future::pending()),
                times if times < self.1 => Box::pin(std::future::ready(Err(Denied::Unknown("down".into())))),
                _ => Box::pin(std::future::ready(Ok(true))),
            }
        }
    }

    fn request(names: &[&str]) -> Request {
        Request::Incremental(DeltaDiscoveryRequest {
            type_url: types::SECRET.to_owned(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..Default::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_goes_on_without_keys_until_somebody_can_say() {
        let knows = Arc::new(Late(AtomicUsize::new(0), 2));
        let proof = || {
            let identity = Identity { namespace: "shop".into(), service_account: "web".into() };
            Proof { caller: identity.into(), authenticate: knows.clone() }
        };
        let mut rights = Rights::of(Some(proof()));
        let (key, roots, nothing) =
            (request(&["kubernetes://shop/web"]), request(&["kubernetes://shop/web-cacert"]), request(&[]));
        assert_eq!(rights.find(false, &roots).await.unwrap(), None);
        assert_eq!(knows.0.load(Ordering::Relaxed), 0, "nobody is asked about roots");
        // Silence, an error, and nothing in between; then the answer.
        for wanted in [1, 1, 2, 2, 3] {
            let found = rights.find(false, if wanted == 1 { &key } else { &nothing }).await.unwrap();
            assert_eq!((found.is_some(), knows.0.load(Ordering::Relaxed)), (wanted == 3, wanted));
            tokio::time::advance(PAUSE / 2).await;
        }
        knows.0.store(0, Ordering::Relaxed);
        let mut gateway = Rights::of(Some(proof()));
        assert!(gateway.find(true, &nothing).await.is_err(), "it comes again");
    }
}
