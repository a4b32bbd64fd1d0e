//! Keeps the workload's certificate in force: the first one, then another when half of its life is over.
//!
//! While there is no newer one, the old certificate stays in force to its last minute; tries come closer together towards it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use osier_core::readiness::Pending;
use tokio::time::sleep;

use super::authority::issue;
use super::request::Issued;
use crate::bootstrap::XdsServer;
use crate::config::tls::{Secret, Secrets};

/// The life that is asked for; the authority may give less.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Part of a life after which it is renewed, give or take [`JITTER`], so that pods that began together don't come together.
const PART: f64 = 0.5;
const JITTER: f64 = 0.01;
/// Waits after failures; each is twice the one before.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);

/// Who this workload is, as far as it has a certificate.
#[derive(Debug, Default)]
pub struct OwnIdentity {
    name: ArcSwapOption<Arc<str>>,
    /// When the certificate in force ends, in seconds since 1970; 0 before there is one.
    not_after: AtomicI64,
}

impl OwnIdentity {
    /// The name in the certificate in force: a SPIFFE ID.
    pub fn name(&self) -> Option<Arc<str>> {
        self.name.load().as_ref().map(|name| Arc::<str>::clone(name))
    }

    /// Seconds until the certificate ends; negative after that, `None` before there is one.
    pub fn seconds_left(&self) -> Option<i64> {
        match self.not_after.load(Relaxed) {
            0 => None,
            end => Some(end - now()),
        }
    }

    fn renew(&self, issued: &Issued) {
        // The same value as long as it is the same name: metrics know it by its place.
        if self.name().as_deref() != Some(&*issued.name) {
            self.name.store(Some(Arc::new(issued.name.clone())));
        }
        self.not_after.store(issued.not_after, Relaxed);
    }
}

/// Runs for as long as the process. `first` is dropped when the first certificate is in force.
pub async fn run(server: XdsServer, secrets: Arc<Secrets>, own: Arc<OwnIdentity>, first: Pending) {
    let mut first = Some(first);
    let mut attempt = 0;
    loop {
        let issued = obtain(&server, &mut attempt, &own).await;
        tracing::info!(identity = %issued.name, hours = (issued.not_after - now()) / 3600, "certificate in force");
        secrets.own.publish(Secret::Certificate(issued.certificate.clone()));
        secrets.roots.publish(Secret::Trust(issued.trust.clone()));
        own.renew(&issued);
        drop(first.take());
        sleep(until_renewal(&issued, now(), rand::random_range(-1.0..=1.0))).await;
    }
}

/// Asks until there is an answer. What keeps it is said once, and again when it changes.
async fn obtain(server: &XdsServer, attempt: &mut usize, own: &OwnIdentity) -> Issued {
    let (mut wait, mut said) = (SHORTEST, String::new());
    loop {
        match issue(server, *attempt, LIFE).await {
            Ok(issued) => return issued,
            Err(error) => {
                let reason = error.to_string();
                if reason != said {
                    tracing::warn!("no certificate: {reason}");
                    said = reason;
                }
            }
        }
        *attempt += 1;
        sleep(wait.mul_f64(rand::random_range(0.75..1.25))).await;
        wait = (wait * 2).min(longest_wait(own.seconds_left()));
    }
}

/// No wait is longer than a tenth of what is left.
fn longest_wait(seconds_left: Option<i64>) -> Duration {
    let Some(left) = seconds_left else { return Duration::from_secs(5) };
    Duration::from_secs(left.max(0) as u64 / 10).clamp(Duration::from_secs(1), LONGEST)
}

/// `jitter`: from -1 to 1.
fn until_renewal(issued: &Issued, now: i64, jitter: f64) -> Duration {
    let life = (issued.not_after - issued.not_before).max(0) as f64;
    let left = life * (PART + jitter * JITTER);
    let at = issued.not_after as f64 - left;
    // A clock that is wrong by hours must not make us ask without a pause.
    Duration::from_secs_f64((at - now as f64).max(1.0))
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_come_closer_together_towards_the_end() {
        for (left, longest) in [(None, 5), (Some(86_400), 60), (Some(300), 30), (Some(20), 2), (Some(-5), 1)]
        {
            assert_eq!(longest_wait(left), Duration::from_secs(longest), "{left:?}");
        }
    }
}
