//! Waits for quiet, with a ceiling, and merges what came meanwhile.
//!
//! The loop is istiod's: the first event sets the start, every event resets the quiet time and is merged; when the timer
//! fires and no push is running, push if the start is `max` ago or the last event `after` ago, else arm for the rest; when
//! a running push ends the same test is made at once. What only moves endpoints waits `after_endpoints`, which is shorter:
//! such a push is cheap and its delay is felt as failed requests. Time is tokio's, so tests run on a paused clock.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::deadline;

/// Something that can wait and be united with what comes later.
pub trait Merge: Send + 'static {
    /// Unites a later event into this one.
    fn merge(&mut self, later: Self);
    /// True where nothing but endpoints changed.
    fn endpoints_only(&self) -> bool;
}

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Quiet time before a push.
    pub after: Duration,
    /// The same for changes of endpoints alone.
    pub after_endpoints: Duration,
    /// Longest wait of the first event.
    pub max: Duration,
}

impl Timing {
    /// The short window for endpoints derived from the usual one.
    pub fn new(after: Duration, max: Duration) -> Self {
        Self { after, after_endpoints: after / 5, max }
    }
}

/// One merged request, and what its wait was.
#[derive(Debug)]
pub struct Debounced<T> {
    /// All events since the last push.
    pub request: T,
    /// How many there were.
    pub events: u64,
    /// When the first came.
    pub first: Instant,
}

/// The pending request and its times.
struct Pending<T> {
    request: T,
    events: u64,
    first: Instant,
    last: Instant,
}

impl<T: Merge> Pending<T> {
    /// When this may be pushed at the earliest.
    fn due(&self, timing: &Timing) -> Instant {
        let after = if self.request.endpoints_only() { timing.after_endpoints } else { timing.after };
        (self.last + after).min(self.first + timing.max)
    }
}

/// Runs until the sender of events is gone; what is pending then is still pushed. `push` is called with one merged
/// request at a time: while its future runs events go on accumulating.
pub async fn run<T, F, Fut>(mut events: mpsc::UnboundedReceiver<T>, timing: Timing, mut push: F)
where
    T: Merge,
    F: FnMut(Debounced<T>) -> Fut,
    Fut: Future<Output = ()>,
{
    let mut pending: Option<Pending<T>> = None;
    loop {
        let due = pending.as_ref().map(|p| p.due(&timing));
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            () = deadline::reached(due) => {
                if let Some(p) = pending.take() {
                    let push = push(Debounced { request: p.request, events: p.events, first: p.first });
                    if !collect_while(push, &mut events, &mut pending).await { break; }
                }
                continue;
            }
        };
        let Some(event) = event else { break };
        add(&mut pending, event);
    }
    if let Some(p) = pending {
        push(Debounced { request: p.request, events: p.events, first: p.first }).await;
    }
}

/// Drives a running push and merges what comes meanwhile. False when the sender is gone.
async fn collect_while<T: Merge>(
    push: impl Future<Output = ()>,
    events: &mut mpsc::UnboundedReceiver<T>,
    pending: &mut Option<Pending<T>>,
) -> bool {
    tokio::pin!(push);
    loop {
        tokio::select! {
            () = &mut push => return true,
            event = events.recv() => match event {
                Some(event) => add(pending, event),
                None => { push.await; return false; }
            }
        }
    }
}

fn add<T: Merge>(pending: &mut Option<Pending<T>>, event: T) {
    let now = Instant::now();
    match pending {
        Some(p) => {
            p.request.merge(event);
            p.events += 1;
            p.last = now;
        }
        None => *pending = Some(Pending { request: event, events: 1, first: now, last: now }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use parking_lot::Mutex;

    #[derive(Debug)]
    struct Event(Vec<u32>, bool);

    impl Merge for Event {
        fn merge(&mut self, later: Self) {
            self.0.extend(later.0);
            self.1 &= later.1;
        }
        fn endpoints_only(&self) -> bool {
            self.1
        }
    }

    const TIMING: Timing = Timing {
        after: Duration::from_millis(100),
        after_endpoints: Duration::from_millis(20),
        max: Duration::from_secs(10),
    };

    type Pushed = Arc<Mutex<Vec<(u64, Vec<u32>)>>>;

    /// Starts the loop; each push takes `takes`. Returns the sender and what was pushed, with the time since the start.
    fn start(takes: Duration) -> (mpsc::UnboundedSender<Event>, Pushed) {
        let (tx, rx) = mpsc::unbounded_channel();
        let pushed: Pushed = Arc::default();
        let seen = pushed.clone();
        let zero = Instant::now();
        tokio::spawn(run(rx, TIMING, move |d: Debounced<Event>| {
            seen.lock().push((zero.elapsed().as_millis() as u64, d.request.0));
            tokio::time::sleep(takes)
        }));
        (tx, pushed)
    }

    async fn at(zero: Instant, ms: u64) {
        tokio::time::sleep_until(zero + Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_quiet_and_merges() {
        let (tx, pushed) = start(Duration::ZERO);
        let zero = Instant::now();
        for (ms, n) in [(0, 1), (60, 2), (120, 3)] {
            at(zero, ms).await;
            tx.send(Event(vec![n], false)).unwrap();
        }
        at(zero, 1000).await;
        assert_eq!(*pushed.lock(), [(220, vec![1, 2, 3])]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_steady_stream_is_cut_at_the_ceiling() {
        let (tx, pushed) = start(Duration::ZERO);
        let zero = Instant::now();
        for n in 0..250 {
            at(zero, n * 50).await;
            tx.send(Event(vec![n as u32], false)).unwrap();
        }
        let first = pushed.lock()[0].0;
        assert!((10_000..10_051).contains(&first), "pushed at {first}");
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_alone_take_the_short_path() {
        let (tx, pushed) = start(Duration::ZERO);
        let zero = Instant::now();
        tx.send(Event(vec![1], true)).unwrap();
        at(zero, 1000).await;
        tx.send(Event(vec![2], true)).unwrap();
        tx.send(Event(vec![3], false)).unwrap();
        at(zero, 2000).await;
        assert_eq!(*pushed.lock(), [(20, vec![1]), (1100, vec![2, 3])]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_push_at_a_time_and_the_test_is_made_when_it_ends() {
        let (tx, pushed) = start(Duration::from_millis(500));
        let zero = Instant::now();
        tx.send(Event(vec![1], false)).unwrap();
        at(zero, 150).await;
        tx.send(Event(vec![2], false)).unwrap();
        at(zero, 550).await;
        tx.send(Event(vec![3], false)).unwrap();
        at(zero, 5000).await;
        // the first runs from 100 to 600; at 600 the last event is only 50 ms old, so the rest is waited for
        assert_eq!(*pushed.lock(), [(100, vec![1]), (650, vec![2, 3])]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_pending_at_the_end_is_pushed() {
        let (tx, pushed) = start(Duration::ZERO);
        tx.send(Event(vec![7], false)).unwrap();
        drop(tx);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(pushed.lock().len(), 1);
    }
}
