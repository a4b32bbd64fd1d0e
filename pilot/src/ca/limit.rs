//! How often somebody may ask for a certificate.
//!
//! Counted by caller: a pod where the token is bound to one, else a service account. Who is within its limit is soon forgotten, so
//! memory is bounded: by callers that have asked of late, and by `MOST`.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::xds::identity::Caller;

/// A caller's allowance: so many at once, and one more each time that `every` is over.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    burst: u32,
    every: Duration,
}

/// A proxy asks twice a day, and some times in a row when roots change.
const POD: Allowance = Allowance { burst: 20, every: Duration::from_secs(10) };
/// All workloads that share an account.
const ACCOUNT: Allowance = Allowance { burst: 500, every: Duration::from_millis(500) };
/// Callers that are remembered at most. Who comes when all of them have asked of late isn't counted: each has proved who it is, and
/// a flood of one is what is to be kept off.
const MOST: usize = 20_000;

/// When each caller will have its whole allowance again.
#[derive(Debug, Default)]
pub struct Limits(Mutex<HashMap<Caller, Instant>>);

impl Limits {
    /// Counts a request. Where it is one too many: how long to wait.
    pub fn admit(&self, caller: &Caller) -> Result<(), Duration> {
        let Allowance { burst, every } = if caller.pod.is_some() { POD } else { ACCOUNT };
        let now = Instant::now();
        let mut known = self.0.lock();
        let whole = known.get(caller).copied().unwrap_or(now).max(now) + every;
        let excess = whole.duration_since(now).saturating_sub(every * burst);
        if !excess.is_zero() {
            return Err(excess);
        }
        if known.len() >= MOST && !known.contains_key(caller) {
            known.retain(|_, whole| *whole > now);
            if known.len() >= MOST {
                return Ok(());
            }
        }
        known.insert(caller.clone(), whole);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::xds::identity::{Identity, Pod};

    fn caller(pod: Option<&str>) -> Caller {
        let identity = Identity { namespace: "a".into(), service_account: "web".into() };
        Caller { identity, pod: pod.map(|uid| Pod { name: "web".into(), uid: uid.into() }) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_one_is_kept_off_and_others_are_not() {
        let limits = Limits::default();
        let flood = caller(Some("flood"));
        for _ in 0..POD.burst {
            limits.admit(&flood).unwrap();
        }
        let wait = limits.admit(&flood).unwrap_err();
        assert_eq!(wait, POD.every);
        for other in [caller(Some("other")), caller(None)] {
            limits.admit(&other).unwrap();
        }
        advance(wait).await;
        limits.admit(&flood).unwrap();
        limits.admit(&flood).unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_who_is_within_its_limit_is_forgotten() {
        let limits = Limits::default();
        for number in 0..MOST + 10 {
            limits.admit(&caller(Some(&number.to_string()))).unwrap();
        }
        assert_eq!(limits.0.lock().len(), MOST);
        advance(POD.every).await;
        limits.admit(&caller(Some("late"))).unwrap();
        assert_eq!(limits.0.lock().len(), 1);
    }
}
