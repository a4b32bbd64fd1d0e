//! A table of names that are filled in from afar: many readers on the request path, one writer (the xDS task).
//!
//! A known name costs a reader one hash and three atomic loads: no lock, no allocation. An unknown name takes a short lock, is
//! handed to the writer once, however many ask, and gives the reader something to wait for, with a bound.
//! Invariants: only the writer inserts and removes; an entry, once made, keeps its place until it is forgotten, so that a
//! connection can hold it and see each later version; a name that somebody waits for is never lost between look-up and wait,
//! because publishing and starting to wait take the same lock.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use hashbrown::{HashMap, HashTable};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// A write copies one shard; with 4,096 names that is some 128 pointers.
const SHARDS: usize = 32;

/// What tables share that are counted together: the way to the writer, and a clock that costs readers one load.
#[derive(Debug)]
pub(super) struct Shared {
    /// Grows with each batch of the writer. Readers stamp entries with it, which orders them by last use.
    epoch: AtomicU32,
    /// Names that are waited for, over all tables.
    waiting: AtomicUsize,
    /// Names that were answered, over all tables: there, and absent.
    known: AtomicUsize,
    absent: AtomicUsize,
    asked: mpsc::UnboundedSender<Asked>,
    /// Longest wait of a reader.
    patience: Duration,
    /// Names that may be waited for at a time; beyond it a reader isn't even let in.
    waiting_limit: usize,
}

/// A name that a reader asked for and that isn't in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The table.
    pub table: Table,
    /// The name within the table.
    pub name: Box<str>,
}

/// Which table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Table {
    /// That of listeners.
    Listeners,
    /// That of virtual hosts of this route configuration.
    Hosts(Arc<str>),
    /// That of addresses of hosts, for DNS.
    Addresses,
}

impl Shared {
    /// `asked` is unbounded in form only: a name is sent when it starts to be waited for, and `waiting_limit` bounds these.
    pub(super) fn new(
        patience: Duration,
        waiting_limit: usize,
        asked: mpsc::UnboundedSender<Asked>,
    ) -> Arc<Self> {
        Arc::new(Self {
            epoch: AtomicU32::new(1),
            waiting: AtomicUsize::new(0),
            known: AtomicUsize::new(0),
            absent: AtomicUsize::new(0),
            asked,
            patience,
            waiting_limit,
        })
    }

    /// Starts a new epoch and returns it.
    pub(super) fn next_epoch(&self) -> u32 {
        self.epoch.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How many names are known to be there, and how many to be absent.
    pub(super) fn answered(&self) -> (usize, usize) {
        (self.known.load(Ordering::Relaxed), self.absent.load(Ordering::Relaxed))
    }

    fn counter(&self, absent: bool) -> &AtomicUsize {
        if absent { &self.absent } else { &self.known }
    }
}

/// A name that was answered. Connections that use it hold it; [`Entry::current`] is always the newest version.
#[derive(Debug)]
pub struct Entry<T> {
    name: Box<str>,
    used: AtomicU32,
    /// Empty: answered absent.
    value: ArcSwapOption<T>,
}

impl<T> Entry<T> {
    /// The name that was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True where `value` is what is in force.
    pub fn is_current(&self, value: &Arc<T>) -> bool {
        self.value.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, value))
    }

    /// False: the control plane says that there is nothing under this name.
    pub fn is_there(&self) -> bool {
        self.value.load().is_some()
    }

    /// What is in force under this name; `None`: the control plane says that there is nothing.
    pub fn current(&self) -> Option<Arc<T>> {
        self.value.load_full()
    }

    fn touch(&self, epoch: u32) {
        // Reading first keeps the cache line shared between workers.
        if self.used.load(Ordering::Relaxed) != epoch {
            self.used.store(epoch, Ordering::Relaxed);
        }
    }
}

/// What the writer sees of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) name: Box<str>,
    /// Epoch of the last look-up.
    pub(super) used: u32,
    pub(super) absent: bool,
    /// A connection or request holds the entry or what it holds.
    pub(super) in_use: bool,
}

/// Result of a look-up.
#[derive(Debug)]
pub(super) enum Found<T> {
    /// Answered, there or absent.
    Entry(Arc<Entry<T>>),
    /// Not answered yet.
    Wait(Waiting<T>),
}

/// A name that was asked for; one for all who wait.
#[derive(Debug)]
struct Slot<T> {
    answer: OnceLock<Arc<Entry<T>>>,
    answered: Notify,
    since: u32,
}

/// Something to wait for.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    /// Empty where too many names are waited for already.
    slot: Option<Arc<Slot<T>>>,
    /// Counted from the look-up, so that waiting for two names in turn takes no longer than for one.
    deadline: Instant,
}

impl<T> Waiting<T> {
    /// Waits for the answer; `None`: it didn't come in time.
    pub(super) async fn answer(self) -> Option<Arc<Entry<T>>> {
        let slot = self.slot?;
        let answered = async {
            loop {
                let notified = slot.answered.notified();
                tokio::pin!(notified);
                notified.as_mut().enable();
                if let Some(entry) = slot.answer.get() {
                    return entry.clone();
                }
                notified.await;
            }
        };
        tokio::time::timeout_at(self.deadline, answered).await.ok()
    }
}

type Shard<T> = HashTable<Arc<Entry<T>>>;

/// The table.
#[derive(Debug)]
pub(super) struct Names<T> {
    /// Says in [`Asked`] which table this is.
    label: Table,
    shards: [ArcSwap<Shard<T>>; SHARDS],
    waiting: Mutex<HashMap<Box<str>, Arc<Slot<T>>>>,
    hasher: foldhash::fast::RandomState,
    shared: Arc<Shared>,
}

impl<T> Names<T> {
    pub(super) fn new(label: Table, shared: Arc<Shared>) -> Self {
        let empty = Arc::new(HashTable::new());
        Self {
            label,
            shards: std::array::from_fn(|_| ArcSwap::new(empty.clone())),
            waiting: Mutex::default(),
            hasher: foldhash::fast::RandomState::default(),
            shared,
        }
    }

    /// Looks `name` up, and asks for it where it isn't known.
    pub(super) fn get(&self, name: &str) -> Found<T> {
        match self.known(name) {
            Some(entry) => Found::Entry(entry),
            None => self.ask(name),
        }
    }

    /// Looks `name` up without asking for it.
    pub(super) fn known(&self, name: &str) -> Option<Arc<Entry<T>>> {
        let hash = self.hasher.hash_one(name);
        let shard = self.shards[Self::shard_of(hash)].load();
        let entry = shard.find(hash, |e| *e.name == *name)?;
        entry.touch(self.shared.epoch());
        Some(entry.clone())
    }

    #[cold]
    fn ask(&self, name: &str) -> Found<T> {
        let deadline = Instant::now() + self.shared.patience;
        let mut waiting = self.waiting.lock();
        if let Some(entry) = self.known(name) {
            return Found::Entry(entry);
        }
        if let Some(slot) = waiting.get(name) {
            return Found::Wait(Waiting { slot: Some(slot.clone()), deadline });
        }
        if self.shared.waiting() >= self.shared.waiting_limit {
            return Found::Wait(Waiting { slot: None, deadline });
        }
        let slot =
            Arc::new(Slot { answer: OnceLock::new(), answered: Notify::new(), since: self.shared.epoch() });
        waiting.insert(name.into(), slot.clone());
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        // A closed channel means that the process is ending: the wait runs into its bound.
        let _ = self.shared.asked.send(Asked { table: self.label.clone(), name: name.into() });
        Found::Wait(Waiting { slot: Some(slot), deadline })
    }

    fn shard_of(hash: u64) -> usize {
        // The hash table uses the low bits for the place and the top seven for the tag.
        (hash >> 40) as usize % SHARDS
    }

    /// Puts a version in force, or absence, and wakes who waits. For the writer only.
    pub(super) fn publish(&self, name: &str, value: Option<Arc<T>>) {
        let mut waiting = self.waiting.lock();
        let entry = match self.known_to_writer(name) {
            Some(entry) => {
                let absent = value.is_none();
                let was_absent = entry.value.swap(value).is_none();
                self.shared.counter(was_absent).fetch_sub(1, Ordering::Relaxed);
                self.shared.counter(absent).fetch_add(1, Ordering::Relaxed);
                entry
            }
            None => self.insert(name, value),
        };
        if let Some(slot) = waiting.remove(name) {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            // The writer answers a slot once, as it has just taken it out.
            let _ = slot.answer.set(entry);
            slot.answered.notify_waiters();
        }
    }

    /// As `known`, but it doesn't count as use.
    pub(super) fn known_to_writer(&self, name: &str) -> Option<Arc<Entry<T>>> {
        let hash = self.hasher.hash_one(name);
        self.shards[Self::shard_of(hash)].load().find(hash, |e| *e.name == *name).cloned()
    }

    /// True where the name is answered, or somebody waits or waited for it: an answer is wanted.
    pub(super) fn is_wanted(&self, name: &str) -> bool {
        self.waiting.lock().contains_key(name) || self.known_to_writer(name).is_some()
    }

    /// Notes that an answer is wanted without sending for it: the writer does that itself.
    pub(super) fn expect(&self, name: &str) {
        let mut waiting = self.waiting.lock();
        if self.known_to_writer(name).is_none() && !waiting.contains_key(name) {
            let slot = Slot { answer: OnceLock::new(), answered: Notify::new(), since: self.shared.epoch() };
            waiting.insert(name.into(), Arc::new(slot));
            self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn insert(&self, name: &str, value: Option<Arc<T>>) -> Arc<Entry<T>> {
        self.shared.counter(value.is_none()).fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            name: name.into(),
            used: AtomicU32::new(self.shared.epoch()),
            value: ArcSwapOption::new(value),
        });
        let hash = self.hasher.hash_one(name);
        let shard = &self.shards[Self::shard_of(hash)];
        let mut copy = Shard::clone(&shard.load());
        copy.insert_unique(hash, entry.clone(), |e| self.hasher.hash_one(&*e.name));
        shard.store(Arc::new(copy));
        entry
    }

    /// Takes a name out; the next look-up asks again. Who holds the entry keeps it. For the writer only.
    pub(super) fn forget(&self, name: &str) {
        let mut waiting = self.waiting.lock();
        if waiting.remove(name).is_some() {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        let hash = self.hasher.hash_one(name);
        let shard = &self.shards[Self::shard_of(hash)];
        let mut copy = Shard::clone(&shard.load());
        if let Ok(found) = copy.find_entry(hash, |e| *e.name == *name) {
            let (entry, _) = found.remove();
            self.shared.counter(entry.value.load().is_none()).fetch_sub(1, Ordering::Relaxed);
            copy.shrink_to(0, |e| self.hasher.hash_one(&*e.name));
            shard.store(Arc::new(copy));
        }
    }

    /// What is known, by name: there, or absent. For people who look: it copies the names.
    pub(super) fn entries(&self) -> Vec<(Box<str>, Option<Arc<T>>)> {
        let shards = self.shards.iter().map(|shard| shard.load_full());
        shards.flat_map(|s| s.iter().map(|e| (e.name.clone(), e.current())).collect::<Vec<_>>()).collect()
    }

    /// All answered names. For the writer only: it copies the names.
    pub(super) fn usage(&self) -> Vec<Usage> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.load().iter().map(|entry| {
                let value = entry.value.load();
                let held = value.as_ref().is_some_and(|v| Arc::strong_count(v) > 1);
                Usage {
                    name: entry.name.clone(),
                    used: entry.used.load(Ordering::Relaxed),
                    absent: value.is_none(),
                    in_use: held || Arc::strong_count(entry) > 1,
                }
            }));
        }
        all
    }

    /// Names that were asked for, are not answered, and that nobody waits for any more, with the epoch of their asking.
    pub(super) fn abandoned(&self) -> Vec<(Box<str>, u32)> {
        let waiting = self.waiting.lock();
        waiting
            .iter()
            .filter(|(_, slot)| Arc::strong_count(slot) == 1)
            .map(|(name, slot)| (name.clone(), slot.since))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(patience: Duration) -> (Names<u32>, mpsc::UnboundedReceiver<Asked>) {
        let (sender, asked) = mpsc::unbounded_channel();
        (Names::new(Table::Listeners, Shared::new(patience, 3, sender)), asked)
    }

    fn waiting(found: Found<u32>) -> Waiting<u32> {
        match found {
            Found::Wait(waiting) => waiting,
            Found::Entry(entry) => panic!("{entry:?} is known"),
        }
    }

    fn value(found: Found<u32>) -> Option<u32> {
        match found {
            Found::Entry(entry) => entry.current().map(|v| *v),
            Found::Wait(_) => panic!("not known"),
        }
    }

    #[tokio::test]
    async fn a_name_is_asked_for_once_and_wakes_all_who_wait() {
        let (names, mut asked) = table(Duration::from_secs(60));
        let (first, second) = (waiting(names.get("a")), waiting(names.get("a")));
        assert_eq!(asked.recv().await.unwrap().name, "a".into());
        assert!(asked.try_recv().is_err());
        let (both, ()) = tokio::join!(async { tokio::join!(first.answer(), second.answer()) }, async {
            names.publish("a", Some(Arc::new(7)))
        });
        assert_eq!(both.0.unwrap().current().as_deref(), Some(&7));
        assert_eq!(both.1.unwrap().current().as_deref(), Some(&7));
        assert_eq!(value(names.get("a")), Some(7));
        assert_eq!(names.shared.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_after_the_bound_and_is_not_absence() {
        let (names, _asked) = table(Duration::from_secs(5));
        let start = tokio::time::Instant::now();
        assert!(waiting(names.get("a")).answer().await.is_none());
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        names.publish("a", None);
        assert_eq!(value(names.get("a")), None, "absent is an answer");
    }

    #[tokio::test]
    async fn an_answer_between_look_up_and_wait_is_not_lost() {
        let (names, _asked) = table(Duration::from_secs(60));
        let late = waiting(names.get("a"));
        names.publish("a", Some(Arc::new(1)));
        assert_eq!(late.answer().await.unwrap().current().as_deref(), Some(&1));
    }

    #[test]
    fn a_holder_sees_new_versions_and_absence() {
        let (names, _asked) = table(Duration::ZERO);
        names.publish("a", Some(Arc::new(1)));
        let Found::Entry(held) = names.get("a") else { panic!("known") };
        names.publish("a", Some(Arc::new(2)));
        assert_eq!(held.current().as_deref(), Some(&2));
        names.publish("a", None);
        assert_eq!(held.current(), None);
    }

    #[tokio::test]
    async fn too_many_unanswered_names_are_refused_at_once() {
        let (names, mut asked) = table(Duration::from_secs(60));
        for name in ["a", "b", "c"] {
            assert!(waiting(names.get(name)).slot.is_some());
        }
        assert!(waiting(names.get("d")).answer().await.is_none());
        assert!(waiting(names.get("a")).slot.is_some(), "who asks for the same name joins in");
        assert_eq!(std::iter::from_fn(|| asked.try_recv().ok()).count(), 3);
        assert_eq!(names.abandoned().len(), 3);
        names.forget("a");
        assert!(waiting(names.get("d")).slot.is_some());
    }

    #[test]
    fn forgetting_takes_out_one_name_and_leaves_holders_alone() {
        let (names, _asked) = table(Duration::ZERO);
        for n in 0..500u32 {
            names.publish(&n.to_string(), Some(Arc::new(n)));
        }
        let Found::Entry(held) = names.get("250") else { panic!("known") };
        assert_eq!(names.usage().iter().filter(|u| u.in_use).count(), 1);
        names.forget("250");
        assert_eq!(held.current().as_deref(), Some(&250));
        assert!(matches!(names.get("250"), Found::Wait(_)));
        assert!((0..500u32).filter(|n| *n != 250).all(|n| value(names.get(&n.to_string())) == Some(n)));
    }

    #[test]
    fn look_ups_stamp_entries_with_the_epoch() {
        let (names, _asked) = table(Duration::ZERO);
        names.publish("old", None);
        names.publish("new", None);
        let epoch = names.shared.next_epoch();
        let _ = names.get("new");
        let used: HashMap<_, _> = names.usage().into_iter().map(|u| (u.name, u.used)).collect();
        assert_eq!(used["new"], epoch);
        assert_eq!(used["old"], epoch - 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn readers_and_the_writer_together_lose_nobody() {
        let (sender, mut asked) = mpsc::unbounded_channel();
        let shared = Shared::new(Duration::from_secs(60), 10_000, sender);
        let names = Arc::new(Names::<u32>::new(Table::Listeners, shared));
        let writer = tokio::spawn({
            let names = names.clone();
            async move {
                while let Some(Asked { name, .. }) = asked.recv().await {
                    names.publish(&name, Some(Arc::new(name.parse().unwrap())));
                    if name.ends_with('7') {
                        names.forget(&name);
                    }
                }
            }
        });
        let readers: Vec<_> = (0..4)
            .map(|seed| {
                let names = names.clone();
                tokio::spawn(async move {
                    for n in 0..1_000u32 {
                        let n = n.wrapping_mul(seed * 2 + 1) % 300;
                        let entry = match names.get(&n.to_string()) {
                            Found::Entry(entry) => entry,
                            Found::Wait(waiting) => waiting.answer().await.expect("answered"),
                        };
                        assert_eq!(entry.current().as_deref(), Some(&n));
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.await.unwrap();
        }
        writer.abort();
    }
}
