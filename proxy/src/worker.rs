//! Workers: threads with a single-threaded runtime each, on which all traffic runs.
//!
//! A connection lives on one worker from its accept to its end. Everything that a request needs and that is not
//! configuration belongs to the worker (random numbers, buffers, upstream connections, metric slots), so nothing on the
//! request path is written by two threads. Locks here are taken by their own thread only, except for the rare
//! look from outside; they keep the futures `Send`, so that the runtime stays a choice.

mod shelf;
pub mod slot;

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;

use bytes::BytesMut;
use osier_core::drain::Drain;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use self::shelf::Shelf;
use self::slot::Slot;
use crate::authz::counters::Counters;
use crate::config::snapshot::{Clusters, SharedSnapshot, Snapshot};
use crate::config::tls::Secrets;
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::peer_metadata::PeerCache;
use crate::identity::renewal::OwnIdentity;
use crate::jwt::cache::TokenCache;
use crate::listener::orig_dst::OriginalDestination;
use crate::listener::plaintext_callers::PlaintextCallers;
use crate::listener::self_check::SelfCheck;
use crate::listener::server_first::ServerFirst;
use crate::node::Node;
use crate::tcp::splice::Pipe;
use crate::telemetry::access_log::{AccessLogs, Gathered};
use crate::telemetry::collector::Metrics;
use crate::telemetry::metrics::Shard;
use crate::upstream::pool::Pool;

/// Capacity of a pooled buffer.
pub const BUFFER_SIZE: usize = 16 * 1024;

/// Request heads that a worker keeps for reuse at most; about one for each request in flight at a time.
const KEPT_HEADS: usize = 64;

/// Heads with more memory than this are not kept.
const MAX_KEPT_HEAD: usize = 8 * 1024;

/// Pipes that a worker keeps at most; bulk connections come seldom in crowds.
const KEPT_PIPES: usize = 4;

/// What belongs to the whole process and every worker reads.
#[derive(Debug, Default)]
pub struct Shared {
    /// Listeners and routes in force.
    pub snapshot: SharedSnapshot,
    /// Clusters by name.
    pub clusters: Arc<Clusters>,
    /// How far the end has come.
    pub drain: Arc<Drain>,
    /// How the original destination of a captured connection is found.
    pub original_destination: OriginalDestination,
    /// Whether the pod's traffic comes to us.
    pub self_check: SelfCheck,
    /// Who this proxy is.
    pub node: Arc<Node>,
    /// Who it is to peers, by its certificate.
    pub identity: Arc<OwnIdentity>,
    /// Certificates and roots, and the peers that they vouch for.
    pub secrets: Arc<Secrets>,
    /// Who comes without a certificate.
    pub plaintext_callers: PlaintextCallers,
    /// Which servers speak first; `None` where that isn't looked for.
    pub server_first: Option<ServerFirst>,
    /// What all workers count.
    pub metrics: Metrics,
    /// What was allowed and denied.
    pub counters: Arc<Counters>,
    /// A 403 names the policy that denied.
    pub names_policies: bool,
    /// Where all workers log.
    pub access_logs: AccessLogs,
}

/// One thread's share of the work.
#[derive(Debug)]
pub struct Worker {
    /// Number, from 0.
    pub id: usize,
    /// The process's parts.
    pub shared: Arc<Shared>,
    /// What this worker counts.
    pub metrics: Arc<Shard>,
    /// What this worker logs.
    pub access_log: Arc<Gathered>,
    /// Workloads that have told who they are.
    pub peers: PeerCache,
    /// Tokens whose signatures were verified.
    pub tokens: TokenCache,
    /// Connections to endpoints.
    pub pool: Pool,
    handle: Handle,
    siblings: OnceLock<Box<[Weak<Worker>]>>,
    /// What moves under connections ([`Published::moves`](crate::config::snapshot::Published::moves)), told to this worker's own: so
    /// that those who wait for it share no lock with other workers.
    moves: watch::Sender<u64>,
    cached: Mutex<Arc<LocalSnapshot>>,
    random: AtomicU64,
    connections: AtomicUsize,
    buffers: Arc<Shelf<BytesMut>>,
    slots: Arc<Shelf<Box<Slot>>>,
    pipes: Mutex<Vec<Pipe>>,
    heads: Mutex<Vec<RequestHead>>,
    responses: Mutex<Vec<ResponseHead>>,
}

/// The snapshot in an `Arc` of this worker, so that a clone touches a counter that no other core touches.
#[derive(Debug, Default)]
pub struct LocalSnapshot(Arc<Snapshot>);

impl Deref for LocalSnapshot {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

impl Worker {
    /// A worker on the runtime that `handle` belongs to.
    pub fn new(id: usize, handle: Handle, shared: Arc<Shared>) -> Arc<Self> {
        let worker = Arc::new(Self {
            id,
            metrics: shared.metrics.shard(),
            access_log: shared.access_logs.worker(),
            peers: PeerCache::default(),
            tokens: TokenCache::default(),
            shared,
            pool: Pool::new(),
            handle,
            siblings: OnceLock::new(),
            moves: watch::Sender::new(0),
            cached: Mutex::default(),
            random: AtomicU64::new(rand::random()),
            connections: AtomicUsize::new(0),
            buffers: Arc::default(),
            slots: Arc::default(),
            pipes: Mutex::default(),
            heads: Mutex::default(),
            responses: Mutex::default(),
        });
        worker.spawn(follow(Arc::downgrade(&worker), worker.shared.snapshot.moves()));
        worker
    }

    /// A lone worker on the current runtime, for tests and tools.
    pub fn here(shared: Arc<Shared>) -> Arc<Self> {
        Self::new(0, Handle::current(), shared)
    }

    /// Runs `task` on this worker; callable from any thread.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }

    /// Follows whatever connections stand on: snapshots, certificates, roots.
    pub fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// The configuration in force.
    pub fn snapshot(&self) -> Arc<LocalSnapshot> {
        let mut cached = self.cached.lock();
        if cached.generation != self.shared.snapshot.generation() {
            *cached = Arc::new(LocalSnapshot(self.shared.snapshot.load()));
        }
        cached.clone()
    }

    /// The next random number (SplitMix64: good for choices, not for secrets).
    pub fn random(&self) -> u64 {
        // Only this thread writes, so a load and a store do; no locked instruction.
        let state = self.random.load(Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.store(state, Ordering::Relaxed);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// An empty buffer with room for [`BUFFER_SIZE`] bytes.
    pub fn take_buffer(&self) -> BytesMut {
        self.buffers.take().unwrap_or_else(|| BytesMut::with_capacity(BUFFER_SIZE))
    }

    /// Takes a buffer back. It is kept if nothing else refers to its memory and it did not grow.
    pub fn give_buffer(&self, mut buffer: BytesMut) {
        buffer.clear();
        if buffer.try_reclaim(BUFFER_SIZE) && buffer.capacity() <= 2 * BUFFER_SIZE {
            self.buffers.give(buffer, &self.handle);
        }
    }

    /// An empty request head, with the allocations of an earlier one where possible.
    pub fn take_head(&self) -> RequestHead {
        self.heads.lock().pop().unwrap_or_default()
    }

    /// Takes a request head back. It is kept if it did not grow.
    pub fn give_head(&self, mut head: RequestHead) {
        head.clear();
        let mut kept = self.heads.lock();
        if kept.len() < KEPT_HEADS && head.capacity() <= MAX_KEPT_HEAD {
            kept.push(head);
        }
    }

    /// An empty response head, with the allocations of an earlier one where possible.
    pub fn take_response(&self) -> ResponseHead {
        self.responses.lock().pop().unwrap_or_default()
    }

    /// Takes a response head back. It is kept if it did not grow.
    pub fn give_response(&self, mut head: ResponseHead) {
        head.clear();
        let mut kept = self.responses.lock();
        if kept.len() < KEPT_HEADS && head.fields.capacity() <= MAX_KEPT_HEAD {
            kept.push(head);
        }
    }

    /// Buffers that lie here for reuse.
    #[cfg(test)]
    pub fn kept_buffers(&self) -> usize {
        self.buffers.kept()
    }

    /// An empty pipe for bulk data.
    pub fn take_pipe(&self) -> std::io::Result<Pipe> {
        let kept = self.pipes.lock().pop();
        kept.map_or_else(Pipe::new, Ok)
    }

    /// Takes a pipe back. One that still holds bytes of a connection is closed.
    pub fn give_pipe(&self, pipe: Pipe) {
        let mut kept = self.pipes.lock();
        if kept.len() < KEPT_PIPES && pipe.is_empty() {
            kept.push(pipe);
        }
    }

    /// Open downstream connections, by which the least loaded worker is found.
    pub fn load(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a downstream connection until the guard is dropped. Taken before the hand-over, so that a burst spreads.
    pub fn occupy(self: &Arc<Self>) -> Occupied {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Occupied { worker: self.clone() }
    }

    /// All workers of the process, this one included (only this one where it stands alone).
    pub fn all(self: &Arc<Self>) -> Vec<Arc<Worker>> {
        match self.siblings.get() {
            Some(siblings) => siblings.iter().filter_map(Weak::upgrade).collect(),
            None => vec![self.clone()],
        }
    }
}

/// Tells a worker's connections, idle upstream ones first, that something moved. Ends with the worker.
async fn follow(worker: Weak<Worker>, mut moves: watch::Receiver<u64>) {
    while moves.changed().await.is_ok() {
        let Some(worker) = worker.upgrade() else { return };
        worker.pool.look_at_ground();
        worker.moves.send_replace(*moves.borrow_and_update());
    }
}

/// A connection that a worker is busy with.
#[derive(Debug)]
pub struct Occupied {
    worker: Arc<Worker>,
}

impl Occupied {
    /// The worker.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.worker.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The running threads.
#[derive(Debug)]
pub struct Workers {
    workers: Box<[Arc<Worker>]>,
    threads: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Workers {
    /// Starts `count` threads.
    pub fn start(count: usize, shared: &Arc<Shared>) -> std::io::Result<Self> {
        let mut workers = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for id in 0..count.max(1) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            workers.push(Worker::new(id, runtime.handle().clone(), shared.clone()));
            let (stop, stopped) = oneshot::channel();
            let run = move || {
                // An error means that the sender is gone, which stops the worker just as well.
                let _ = runtime.block_on(stopped);
            };
            threads.push((stop, std::thread::Builder::new().name(format!("worker-{id}")).spawn(run)?));
        }
        let all: Vec<_> = workers.iter().map(Arc::downgrade).collect();
        for worker in &workers {
            let first = worker.siblings.set(all.clone().into_boxed_slice());
            debug_assert!(first.is_ok(), "set once, here");
        }
        Ok(Self { workers: workers.into_boxed_slice(), threads })
    }

    /// The workers.
    pub fn all(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    /// Ends all threads; whatever still runs on them is dropped.
    pub fn stop(self) {
        let Self { workers, threads } = self;
        let (stops, joins): (Vec<_>, Vec<_>) = threads.into_iter().unzip();
        drop(workers);
        drop(stops);
        for join in joins {
            if join.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}

/// The worker among `workers` with the fewest connections; `preferred` wins ties, so that a lone connection stays put.
pub fn least_loaded(workers: &[Arc<Worker>], preferred: usize) -> &Arc<Worker> {
    let best = workers.iter().min_by_key(|w| (w.load(), w.id != preferred));
    best.expect("there is at least one worker")
}

/// How many workers to start when nothing is configured: the CPU limit of the control group, rounded up, at most the
/// CPUs that this process may use.
pub fn default_count() -> usize {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    // available_parallelism rounds a quota down (but not below 1); half a CPU more still pays for a worker.
    match std::fs::read_to_string("/sys/fs/cgroup/cpu.max").ok().as_deref().and_then(quota) {
        Some(limit) => limit.clamp(1, affinity().max(usable)),
        None => usable,
    }
}

/// CPUs of a control group's `cpu.max` (`200000 100000` is 2), rounded up; `None` is no limit.
fn quota(text: &str) -> Option<usize> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period) = (quota.parse::<usize>().ok()?, period.parse::<usize>().ok()?);
    (period > 0).then(|| quota.div_ceil(period))
}

/// CPUs that the scheduler may put this process on.
fn affinity() -> usize {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let counted =
        set.map(|set| (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu) == Ok(true)).count());
    counted.unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_limit_is_rounded_up() {
        for (text, count) in [
            ("max 100000\n", None),
            ("100000 100000\n", Some(1)),
            ("150000 100000\n", Some(2)),
            ("20000 100000\n", Some(1)),
            ("", None),
            ("1 0\n", None),
        ] {
            assert_eq!(quota(text), count, "{text:?}");
        }
        assert!(default_count() >= 1);
    }

    #[test]
    fn connections_go_to_the_least_loaded_worker() {
        let workers = Workers::start(3, &Arc::default()).expect("threads");
        let all = workers.all();
        let first = least_loaded(all, 1).occupy();
        assert_eq!(first.worker().id, 1, "ties prefer the acceptor's own worker");
        let second = least_loaded(all, 1).occupy();
        let third = least_loaded(all, 1).occupy();
        assert_eq!([second.worker().id, third.worker().id], [0, 2]);
        drop(second);
        assert_eq!(least_loaded(all, 1).id, 0);
        assert_eq!(all[0].all().len(), 3);
        drop((first, third));
        workers.stop();
    }

    #[tokio::test]
    async fn the_snapshot_is_reloaded_when_the_generation_moves() {
        let worker = Worker::here(Arc::default());
        let before = worker.snapshot();
        assert!(Arc::ptr_eq(&before, &worker.snapshot()));
        worker.shared.snapshot.publish(Snapshot::default());
        assert_eq!(worker.snapshot().generation, 1);
        assert_eq!(before.generation, 0, "who holds the old one keeps it");
    }

    #[tokio::test]
    async fn buffers_come_back_only_when_nobody_shares_them() {
        let worker = Worker::here(Arc::default());
        let mut buffer = worker.take_buffer();
        buffer.extend_from_slice(b"abc");
        let address = buffer.as_ptr();
        worker.give_buffer(buffer);
        let mut again = worker.take_buffer();
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
        again.extend_from_slice(b"shared");
        let shared = again.split().freeze();
        worker.give_buffer(again);
        assert_ne!(worker.take_buffer().as_ptr(), shared.as_ptr());
        assert_eq!(shared, "shared");
    }

    #[tokio::test]
    async fn random_numbers_spread() {
        let worker = Worker::here(Arc::default());
        let mut buckets = [0u32; 8];
        for _ in 0..8000 {
            buckets[(worker.random() % 8) as usize] += 1;
        }
        assert!(buckets.iter().all(|n| (800..1200).contains(n)), "{buckets:?}");
    }
}
