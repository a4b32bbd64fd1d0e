//! Which replica of the control plane leads: it alone writes status and the webhooks' configuration. All replicas serve.
//!
//! A Lease as client-go keeps it. Clocks are not compared: a lease counts as expired when we have seen it unchanged for its whole
//! duration, so that a clock which is an hour off takes nothing from anybody. Every update carries the version that it was read at;
//! of two who try, the API server refuses one.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long a lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long steps down, before anybody else may step up.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often to try.
const RETRY: Duration = Duration::from_secs(2);

/// Does `work` for as long as we lead, and anew when we lead again. Returns when it ends by itself, or nobody runs for leader any more.
pub async fn while_leading<F: Future<Output = ()>>(mut leads: watch::Receiver<bool>, work: impl Fn() -> F) {
    while leads.wait_for(|leads| *leads).await.is_ok() {
        tokio::select! {
            () = work() => return,
            _ = leads.wait_for(|leads| !*leads) => {}
        }
    }
}

/// One candidate.
pub struct Candidate {
    /// Talks to the API server.
    pub client: Client,
    /// Namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who we are, different for each replica.
    pub identity: String,
}

/// A Lease as last seen, and when it last changed.
struct Seen {
    version: Option<String>,
    since: Instant,
}

impl Candidate {
    /// Runs until `shutdown`, says in `leads` whether we lead, and gives the lease back at the end.
    pub async fn run(self, leads: watch::Sender<bool>, shutdown: CancellationToken) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut seen = Seen { version: None, since: Instant::now() };
        let mut renewed = Instant::now();
        loop {
            let turn = tokio::select! {
                turn = timeout(DEADLINE, self.turn(&api, &mut seen, *leads.borrow())) => turn,
                () = shutdown.cancelled() => break,
            };
            let now = match turn {
                Ok(Ok(true)) => {
                    renewed = Instant::now();
                    true
                }
                Ok(Ok(false)) => false,
                failed => {
                    let error = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => "no answer".to_owned(),
                    };
                    tracing::debug!(lease = self.name, error, "the lease can't be renewed");
                    *leads.borrow() && renewed.elapsed() < DEADLINE
                }
            };
            leads.send_if_modified(|leads| {
                let changed = *leads != now;
                if changed {
                    tracing::info!(lease = self.name, identity = self.identity, leads = now, "leadership");
                }
                *leads = now;
                changed
            });
            tokio::select! {
                () = sleep(RETRY) => {}
                () = shutdown.cancelled() => break,
            }
        }
        if leads.send_replace(false) {
            let _ = timeout(RETRY, self.release(&api)).await;
        }
    }

    /// Takes the lease or renews it, where we may. True if it is ours now.
    async fn turn(&self, api: &Api<Lease>, seen: &mut Seen, leads: bool) -> kube::Result<bool> {
        let Some(lease) = api.get_opt(&self.name).await? else {
            return accepted(api.create(&PostParams::default(), &self.lease(None)).await);
        };
        if seen.version != lease.metadata.resource_version {
            *seen = Seen { version: lease.metadata.resource_version.clone(), since: Instant::now() };
        }
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        let duration = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|s| u64::try_from(s).ok());
        let expired = seen.since.elapsed() > duration.map_or(DURATION, Duration::from_secs);
        if holder != self.identity && !holder.is_empty() && !expired {
            return Ok(false);
        }
        if holder == self.identity && !leads {
            tracing::debug!(lease = self.name, "the lease is ours already");
        }
        let taken =
            accepted(api.replace(&self.name, &PostParams::default(), &self.lease(Some(lease))).await)?;
        // What we wrote ourselves is no sign of life of another.
        seen.version = None;
        Ok(taken)
    }

    /// The lease as we want it, after `before`.
    fn lease(&self, before: Option<Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let metadata = before.as_ref().map_or_else(
            || ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            |lease| lease.metadata.clone(),
        );
        let spec = before.and_then(|lease| lease.spec).unwrap_or_default();
        let ours = spec.holder_identity.as_deref() == Some(&*self.identity);
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: spec.acquire_time.filter(|_| ours).or(Some(now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + i32::from(!ours)),
                ..LeaseSpec::default()
            }),
        }
    }

    /// So that the next one need not wait.
    async fn release(&self, api: &Api<Lease>) -> kube::Result<()> {
        let mut lease = api.get(&self.name).await?;
        let Some(spec) = &mut lease.spec else { return Ok(()) };
        if spec.holder_identity.as_deref() == Some(&*self.identity) {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

/// Somebody who was faster is no failure.
fn accepted<T>(written: kube::Result<T>) -> kube::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;
    use crate::kubernetes::fake::{Call, client, status};

    /// The Lease of an API server, with its optimistic locking.
    #[derive(Default)]
    struct Server {
        lease: Option<Value>,
        version: u64,
        away: bool,
    }

    impl Server {
        fn answer(&mut self, (method, _, body): &Call) -> (u16, Vec<Value>) {
            if self.away {
                return (500, vec![status(500, "InternalError", "away")]);
            }
            let conflict = || (409, vec![status(409, "Conflict", "somebody was faster")]);
            match (method.as_str(), &self.lease) {
                ("GET", None) => (404, vec![status(404, "NotFound", "no lease")]),
                ("GET", Some(lease)) => (200, vec![lease.clone()]),
                ("POST", Some(_)) => conflict(),
                ("PUT", Some(lease))
                    if lease["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] =>
                {
                    conflict()
                }
                _ => {
                    self.version += 1;
                    let mut lease = body.clone();
                    lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
                    self.lease = Some(lease.clone());
                    (200, vec![lease])
                }
            }
        }

        fn holder(&self) -> String {
            let lease = self.lease.clone().unwrap_or_default();
            lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
        }
    }

    struct Replica {
        leads: watch::Receiver<bool>,
        shutdown: CancellationToken,
    }

    fn start(server: &Arc<Mutex<Server>>, identity: &str) -> Replica {
        let server = server.clone();
        let candidate = Candidate {
            client: client(move |call| server.lock().answer(call)),
            namespace: "osier-system".into(),
            name: "osier-pilot-leader".into(),
            identity: identity.into(),
        };
        let (leads, followed) = watch::channel(false);
        let shutdown = CancellationToken::new();
        tokio::spawn(candidate.run(leads, shutdown.clone()));
        Replica { leads: followed, shutdown }
    }

    async fn becomes(replica: &mut Replica, leads: bool) {
        let wait = replica.leads.wait_for(|now| *now == leads);
        timeout(Duration::from_secs(120), wait).await.expect("in time").expect("it runs");
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_one_leads_and_who_goes_gives_it_back() {
        let server = Arc::<Mutex<Server>>::default();
        let mut first = start(&server, "first");
        becomes(&mut first, true).await;
        let mut second = start(&server, "second");
        sleep(5 * DURATION).await;
        assert_eq!(
            (*first.leads.borrow(), *second.leads.borrow()),
            (true, false),
            "for as long as it renews"
        );
        first.shutdown.cancel();
        becomes(&mut first, false).await;
        let since = Instant::now();
        becomes(&mut second, true).await;
        assert!(since.elapsed() < DURATION, "a lease that was given back is not waited for");
        assert_eq!(server.lock().holder(), "second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_cannot_renew_steps_down_before_another_steps_up() {
        let server = Arc::<Mutex<Server>>::default();
        let mut first = start(&server, "first");
        becomes(&mut first, true).await;
        server.lock().away = true;
        let since = Instant::now();
        becomes(&mut first, false).await;
        assert!(since.elapsed() < DURATION, "{:?}", since.elapsed());
        server.lock().away = false;
        becomes(&mut first, true).await;
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_are_not_compared() {
        let server = Arc::<Mutex<Server>>::default();
        let lease = |renewed: &str| {
            json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": { "name": "osier-pilot-leader", "namespace": "osier-system", "resourceVersion": renewed },
                "spec": {
                    "holderIdentity": "other",
                    "leaseDurationSeconds": 15,
                    // Its clock is hours late: by our clock this has long expired.
                    "renewTime": "2000-01-01T00:00:00.000000Z",
                },
            })
        };
        server.lock().lease = Some(lease("1"));
        let mut ours = start(&server, "ours");
        for version in 2..10 {
            sleep(DURATION / 3).await;
            server.lock().lease = Some(lease(&version.to_string()));
            assert!(!*ours.leads.borrow(), "the other one renews it");
        }
        let since = Instant::now();
        becomes(&mut ours, true).await;
        assert!(since.elapsed() > DURATION * 2 / 3, "only after it was seen unchanged for its duration");
    }
}
