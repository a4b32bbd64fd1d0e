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
