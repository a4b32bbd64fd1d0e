//! When key sets are fetched, and what is kept; with a scripted fetch and time that is told.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::*;
use crate::model::{Age, Coverage, Demand, KeySource, Kind, ResourceKey, SecurityPolicy, TokenRule};
use crate::snapshot::SecurityIndex;
use crate::store::writer::{Outputs, Parts, Writer};

/// What the next fetches come to, and when each was asked for.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<Option<&'static str>>>,
    asked: Mutex<Vec<u64>>,
}

struct Rig {
    script: Arc<Script>,
    outputs: Outputs,
    wanted: watch::Sender<Arc<MeshSnapshot>>,
    started: Instant,
}

fn wanting(uris: &[&str]) -> Arc<MeshSnapshot> {
    let rule = |uri: &&str| TokenRule {
        issuer: (*uri).into(),
        audiences: vec![],
        keys: KeySource::Remote(KeyLocation::Uri((*uri).into()), Duration::from_secs(5)),
        headers: vec![],
        parameters: vec![],
        cookies: vec![],
        forward: false,
        payload_header: None,
        claim_headers: vec![],
        words: vec![],
    };
    let policy = SecurityPolicy {
        key: ResourceKey::new(Kind::RequestAuthentication, "a", "p"),
        age: Age { created: 0, name: "p".into(), namespace: "a".into() },
        covers: Coverage::Namespace,
        demands: Demand::Authentication(uris.iter().map(rule).collect()),
    };
    let security = SecurityIndex::build([Arc::new(policy)], &[], Arc::default());
    Arc::new(MeshSnapshot { security: Arc::new(security), ..MeshSnapshot::default() })
}

impl Rig {
    fn start(answers: &[Option<&'static str>]) -> Self {
        let script =
            Arc::new(Script { answers: Mutex::new(answers.iter().copied().collect()), ..Script::default() });
        let Parts { writer, keys, outputs, feed, .. } = Writer::new("cluster.local".into());
        tokio::spawn(async move {
            writer.run().await;
            drop(feed);
        });
        let (told, started) = (script.clone(), Instant::now());
        let fetch = move |_, _| -> BoxFuture<'static, _> {
            told.asked.lock().push(started.elapsed().as_secs());
            let answer = told.answers.lock().pop_front().flatten();
            Box::pin(async move { answer.map(Into::into).ok_or(FetchError::Redirects) })
        };
        let keeper = Keeper::with(Box::new(fetch), Duration::from_secs(1200), keys, Arc::new(Metrics::new()));
        let (wanted, snapshots) = watch::channel(wanting(&["u"]));
        tokio::spawn(keeper.run(snapshots));
        Self { script, outputs, wanted, started }
    }

    fn fetched(&self) -> Option<FetchedKeys> {
        let snapshot = self.outputs.snapshot.borrow();
        snapshot.security.keys.get(&KeyLocation::Uri("u".into())).cloned()
    }

    /// Lets time pass up to a second.
    async fn until(&self, second: u64) {
        tokio::time::sleep_until(self.started + Duration::from_secs(second)).await;
        // The writer is another task.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    fn asked(&self) -> Vec<u64> {
        self.script.asked.lock().clone()
    }
}

fn keys(text: &str, failed: bool) -> Option<FetchedKeys> {
    let failure = failed.then(|| FetchError::Redirects.to_string().into());
    Some(FetchedKeys { keys: Some(text.into()), failure })
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_again_and_outlive_a_failure() {
    let rig = Rig::start(&[Some("1"), None, None, None, Some("2"), Some("3")]);
    rig.until(1).await;
    assert_eq!(rig.fetched(), keys("1", false));
    rig.until(1201).await;
    assert_eq!(rig.fetched(), keys("1", true));
    rig.until(1261).await;
    assert_eq!((rig.fetched(), rig.asked()), (keys("1", true), vec![0, 1200, 1260]));
    rig.until(1700).await;
    assert_eq!((rig.fetched(), rig.asked()), (keys("2", false), vec![0, 1200, 1260, 1380, 1620]));
    rig.until(2821).await;
    assert_eq!((rig.fetched(), rig.asked().last()), (keys("3", false), Some(&2820)));
}

#[tokio::test(start_paused = true)]
async fn without_keys_it_tries_sooner_and_the_wait_has_an_end() {
    let rig = Rig::start(&[]);
    rig.until(64).await;
    assert_eq!(rig.asked(), [0, 1, 3, 7, 15, 31, 63]);
    let failed = rig.fetched().unwrap();
    assert!(failed.keys.is_none() && failed.failure.is_some());
    rig.until(20_000).await;
    let asked = rig.asked();
    let waits: Vec<u64> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(waits.iter().max(), Some(&3600), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_goes_and_what_is_new_is_fetched_at_once() {
    let rig = Rig::start(&[Some("1"), Some("2"), Some("3")]);
    rig.until(10).await;
    rig.wanted.send_replace(wanting(&["v"]));
    rig.until(11).await;
    assert_eq!((rig.fetched(), rig.asked()), (None, vec![0, 10]));
    rig.wanted.send_replace(wanting(&["u", "v"]));
    rig.until(12).await;
    assert_eq!((rig.fetched(), rig.asked()), (keys("3", false), vec![0, 10, 11]));
}

#[tokio::test(start_paused = true)]
async fn who_starts_waits_for_the_first_try_only() {
    let rig = Rig::start(&[]);
    tried_once(rig.outputs.snapshot.clone()).await;
    let (sender, snapshots) = watch::channel(wanting(&["u"]));
    let waiting = tokio::time::timeout(Duration::from_secs(1), tried_once(snapshots.clone()));
    assert!(waiting.await.is_err());
    let mut tried = (*wanting(&["u"])).clone();
    let index = [(KeyLocation::Uri("u".into()), FetchedKeys::default())].into();
    let policies: Vec<_> = tried.security.iter().cloned().collect();
    tried.security = Arc::new(SecurityIndex::build(policies, &[], Arc::new(index)));
    sender.send_replace(Arc::new(tried));
    tried_once(snapshots).await;
}
