//! Keeps the key sets that policies want: fetches what is new at once, all others again and again, and keeps what it has where a
//! fetch fails.
//!
//! One task, which nothing waits for. After a failure it tries again after a while that doubles; sooner where there is no key set yet,
//! since until then every token is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fetch::{FetchError, Fetcher};
use crate::deadline;
use crate::metrics::Metrics;
use crate::model::{FetchedKeys, KeyLocation};
use crate::snapshot::MeshSnapshot;
use crate::store::writer::Keys;

/// Wait after the first failure, where there is a key set.
const RETRY: Duration = Duration::from_secs(60);
/// The same where there is none.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait.
const MAX_RETRY: Duration = Duration::from_secs(3600);

/// Gets a key set. Boxed for tests, where time stands still.
type Fetch = dyn Fn(KeyLocation, Duration) -> BoxFuture<'static, Result<Arc<str>, FetchError>> + Send + Sync;

/// Keeps key sets.
pub struct Keeper {
    fetch: Box<Fetch>,
    /// From one fetch to the next.
    refresh: Duration,
    keys: Keys,
    metrics: Arc<Metrics>,
    known: BTreeMap<KeyLocation, Known>,
    running: JoinSet<(KeyLocation, Result<Arc<str>, FetchError>)>,
}

/// A key set that somebody wants.
struct Known {
    fetched: FetchedKeys,
    timeout: Duration,
    failures: u32,
    /// `None` while it is fetched.
    next: Option<Instant>,
}

impl Keeper {
    /// One that fetches every `refresh`, and tells the writer.
    pub fn new(fetcher: Fetcher, refresh: Duration, keys: Keys, metrics: Arc<Metrics>) -> Self {
        let fetch = move |location: KeyLocation, timeout| -> BoxFuture<'static, _> {
            let fetcher = fetcher.clone();
            Box::pin(async move { fetcher.fetch(&location, timeout).await })
        };
        Self::with(Box::new(fetch), refresh, keys, metrics)
    }

    fn with(fetch: Box<Fetch>, refresh: Duration, keys: Keys, metrics: Arc<Metrics>) -> Self {
        Self { fetch, refresh, keys, metrics, known: BTreeMap::new(), running: JoinSet::new() }
    }

    /// Runs until there are no snapshots any more.
    pub async fn run(mut self, mut snapshots: watch::Receiver<Arc<MeshSnapshot>>) {
        loop {
            let wanted = snapshots.borrow_and_update().security.wanted_keys();
            self.want(wanted);
            loop {
                self.start_what_is_due();
                let next = self.known.values().filter_map(|known| known.next).min();
                tokio::select! {
                    changed = snapshots.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    Some(ended) = self.running.join_next() => {
                        // A fetch that panicked says nothing of its own.
                        if let Ok((location, result)) = ended {
                            self.take(location, result);
                        }
                    }
                    () = deadline::reached(next) => {}
                }
            }
        }
    }

    fn want(&mut self, wanted: BTreeMap<KeyLocation, Duration>) {
        let keys = &self.keys;
        self.known.retain(|location, _| {
            let still = wanted.contains_key(location);
            if !still {
                keys.remove(location.clone());
            }
            still
        });
        for (location, timeout) in wanted {
            let now = Some(Instant::now());
            let known = self.known.entry(location).or_insert_with(|| Known {
                fetched: FetchedKeys::default(),
                timeout,
                failures: 0,
                next: now,
            });
            known.timeout = timeout;
        }
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        for (location, known) in &mut self.known {
            if known.next.is_some_and(|next| next <= now) {
                known.next = None;
                let (location, fetching) = (location.clone(), (self.fetch)(location.clone(), known.timeout));
                self.running.spawn(async move { (location, fetching.await) });
            }
        }
    }

    fn take(&mut self, location: KeyLocation, result: Result<Arc<str>, FetchError>) {
        let Some(known) = self.known.get_mut(&location) else { return };
        let wait = match result {
            Ok(keys) => {
                self.metrics.key_fetches.inc();
                known.failures = 0;
                known.fetched = FetchedKeys { keys: Some(keys), failure: None };
                self.refresh
            }
            Err(error) => {
                self.metrics.key_fetch_failures.inc();
                known.failures += 1;
                known.fetched.failure = Some(error.to_string().into());
                let first = if known.fetched.keys.is_some() { RETRY } else { FIRST_RETRY };
                let doubled = first.min(self.refresh).saturating_mul(1 << (known.failures - 1).min(20));
                doubled.min(MAX_RETRY)
            }
        };
        known.next = Some(Instant::now() + wait);
        self.keys.put(location, known.fetched.clone());
    }
}

/// Waits until every wanted key set was tried once, so that who starts doesn't tell clients first that they are gone.
pub async fn tried_once(mut snapshots: watch::Receiver<Arc<MeshSnapshot>>) {
    let tried = |snapshot: &Arc<MeshSnapshot>| {
        let keys = &snapshot.security.keys;
        snapshot.security.wanted_keys().keys().all(|location| keys.contains_key(location))
    };
    let _ = snapshots.wait_for(tried).await;
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
