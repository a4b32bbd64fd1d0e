//! The pool against real sockets: what is reused, what is closed and when, and who is served under limits.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::task::Poll;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::config::cluster::{ClusterHandle, ClusterLimits, Discovery, UpstreamProtocol};
use crate::config::endpoint::EndpointSet;

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Answers each byte with a byte, on any number of connections, and counts them.
#[derive(Debug, Default)]
struct Echo {
    accepted: AtomicUsize,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

impl Echo {
    async fn start() -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let echo = Arc::new(Self::default());
        let server = echo.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(server.clone().serve(stream));
            }
        });
        (echo, address)
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        self.accepted.fetch_add(1, SeqCst);
        let open = self.open.fetch_add(1, SeqCst) + 1;
        self.most_open.fetch_max(open, SeqCst);
        let mut byte = [0];
        while stream.read_exact(&mut byte).await.is_ok() {
            if byte == *b"q" || stream.write_all(&byte).await.is_err() {
                break;
            }
        }
        self.open.fetch_sub(1, SeqCst);
    }

    fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }

    fn open(&self) -> usize {
        self.open.load(SeqCst)
    }
}

/// One request on a connection of the echo server.
async fn ask(lease: &Http1Connection) {
    let io = &lease.io;
    io.write_all(b"x").await.unwrap();
    let mut byte = [0];
    assert_eq!(io.read(&mut byte).await.unwrap(), 1);
}

fn spec() -> ClusterSpec {
    ClusterSpec::plain("c", Discovery::Static)
}

fn limited(max_connections: u32) -> ClusterSpec {
    ClusterSpec { limits: ClusterLimits { max_connections, ..ClusterLimits::default() }, ..spec() }
}

fn cluster(spec: ClusterSpec, addresses: &[SocketAddr]) -> Arc<Cluster> {
    let cluster = Cluster::new(spec, None);
    cluster.set_endpoints(endpoints(&cluster, addresses));
    ClusterHandle::empty("c").publish(cluster.clone());
    cluster
}

fn endpoints(cluster: &Cluster, addresses: &[SocketAddr]) -> Arc<EndpointSet> {
    let specs = addresses.iter().map(|&address| (address, EndpointSpec::default()));
    Arc::new(EndpointSet::build(specs, &cluster.live, cluster.spec.set_settings(0)))
}

async fn get(pool: &Pool, cluster: &Arc<Cluster>, address: SocketAddr) -> Http1Connection {
    let endpoint = cluster.live.endpoint(address);
    timeout(PATIENCE, pool.http1(cluster, &endpoint, None)).await.expect("served").unwrap()
}

fn local(lease: &Http1Connection) -> SocketAddr {
    lease.io.local_addr().unwrap()
}

/// A request that reuses or opens a connection; the connection's own address.
async fn round(pool: &Pool, cluster: &Arc<Cluster>, address: SocketAddr) -> SocketAddr {
    let lease = get(pool, cluster, address).await;
    ask(&lease).await;
    let local = local(&lease);
    pool.check_in(lease);
    local
}

#[tokio::test]
async fn the_connection_used_last_is_used_first() {
    let (echo, address) = Echo::start().await;
    let (pool, cluster) = (Pool::new(), cluster(spec(), &[address]));
    let (one, two) = (get(&pool, &cluster, address).await, get(&pool, &cluster, address).await);
    assert!(!one.is_reused());
    let (first, second) = (local(&one), local(&two));
    pool.check_in(one);
    pool.check_in(two);
    let again = get(&pool, &cluster, address).await;
    assert!(again.is_reused());
    assert_eq!(local(&again), second);
    assert_eq!(local(&get(&pool, &cluster, address).await), first);
    assert_eq!(echo.accepted(), 2);
    drop(again);
    until("leases that are dropped close", || echo.open() == 0).await;
    assert_eq!(cluster.live.connections(), 0);
}

#[tokio::test]
async fn a_connection_that_is_not_quiet_is_not_used() {
    let (echo, address) = Echo::start().await;
    let (pool, cluster) = (Pool::new(), cluster(spec(), &[address]));
    // One that the peer closes, one with bytes that nobody asked for.
    for junk in [&b"q"[..], b"x"] {
        let lease = get(&pool, &cluster, address).await;
        let before = local(&lease);
        lease.io.write_all(junk).await.unwrap();
        lease.io.readable().await.unwrap();
        pool.check_in(lease);
        assert_ne!(round(&pool, &cluster, address).await, before);
    }
    assert_eq!(echo.accepted(), 3, "the good one in between was used");
}

#[tokio::test]
async fn requests_age_and_idle_time_end_a_connection() {
    let (echo, address) = Echo::start().await;
    let pool = Pool::new();
    let requests = cluster(ClusterSpec { max_requests_per_connection: Some(2), ..spec() }, &[address]);
    for _ in 0..4 {
        round(&pool, &requests, address).await;
    }
    assert_eq!(echo.accepted(), 2);
    until("both are closed", || echo.open() == 0).await;

    let short = Some(Duration::from_millis(20));
    for spec in [
        ClusterSpec { idle_timeout: short, ..spec() },
        ClusterSpec { max_connection_duration: short, ..spec() },
    ] {
        let cluster = cluster(spec, &[address]);
        round(&pool, &cluster, address).await;
        until("the pool closes it without being asked", || echo.open() == 0).await;
    }
    assert!(pool.0.state.lock().sweep_at.is_none(), "no timer without connections");
}

#[tokio::test]
async fn a_close_of_an_idle_connection_is_noticed() {
    let (echo, address) = Echo::start().await;
    let (pool, cluster) = (Pool::new(), cluster(spec(), &[address]));
    let lease = get(&pool, &cluster, address).await;
    ask(&lease).await;
    // A second handle on the socket makes the server close after the connection has become idle.
    let io = lease.io.local_addr().unwrap();
    pool.check_in(lease);
    until("it is watched", || {
        let state = pool.0.state.lock();
        state.slots.values().any(|slot| slot.idle.iter().any(Http1Connection::is_watched))
    })
    .await;
    // Use after watching: the waker must not fire for our own answer, and watching starts anew.
    assert_eq!(round(&pool, &cluster, address).await, io);
    let lease = get(&pool, &cluster, address).await;
    lease.io.write_all(b"q").await.unwrap();
    pool.check_in(lease);
    until("the server closed it", || echo.open() == 0).await;
    until("the pool closes its half", || cluster.live.connections() == 0).await;
}

#[tokio::test]
async fn removal_and_new_settings_close_idle_connections_at_once_and_no_others() {
    let (echo, address) = Echo::start().await;
    let (pool, handle) = (Pool::new(), ClusterHandle::empty("c"));
    let cluster = Cluster::new(spec(), None);
    cluster.set_endpoints(endpoints(&cluster, &[address]));
    handle.publish(cluster.clone());
    let busy = get(&pool, &cluster, address).await;
    ask(&busy).await;
    round(&pool, &cluster, address).await;
    assert_eq!(echo.open(), 2);

    cluster.set_endpoints(endpoints(&cluster, &[]));
    until("the idle one is closed", || echo.open() == 1).await;
    ask(&busy).await;
    pool.check_in(busy);
    until("the busy one is closed when it is done", || echo.open() == 0).await;

    cluster.set_endpoints(endpoints(&cluster, &[address]));
    round(&pool, &cluster, address).await;
    handle.publish(Cluster::new(ClusterSpec { idle_timeout: None, ..spec() }, Some(&cluster)));
    let kept = round(&pool, &cluster, address).await;
    assert_eq!(round(&pool, &cluster, address).await, kept, "another idle time-out closes nothing");
    handle.publish(Cluster::new(ClusterSpec { protocol: UpstreamProtocol::Http2, ..spec() }, Some(&cluster)));
    until("made with former settings", || echo.open() == 0).await;
}

#[tokio::test]
async fn replayed_configuration_opens_nothing() {
    let (echo, address) = Echo::start().await;
    let (pool, handle) = (Pool::new(), ClusterHandle::empty("c"));
    let mut cluster = cluster(spec(), &[address]);
    handle.publish(cluster.clone());
    for _ in 0..1000 {
        cluster = Cluster::new(spec(), Some(&cluster));
        cluster.set_endpoints(endpoints(&cluster, &[address]));
        handle.publish(cluster.clone());
        round(&pool, &cluster, address).await;
    }
    assert_eq!(echo.accepted(), 1);
}

#[tokio::test]
async fn pending_requests_are_limited() {
    let (_echo, address) = Echo::start().await;
    let mut spec = limited(1);
    spec.limits.max_pending_requests = 1;
    let (pool, cluster) = (Pool::new(), cluster(spec, &[address]));
    let held = get(&pool, &cluster, address).await;
    let endpoint = cluster.live.endpoint(address);
    let mut waiting = Box::pin(pool.http1(&cluster, &endpoint, None));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert_eq!(cluster.live.pending_requests(), 1);
    let refused = pool.http1(&cluster, &endpoint, None).await.expect_err("one waits already");
    assert_eq!((refused.kind, refused.progress), (Kind::Overflow, Progress::NothingSent));
    assert_eq!(refused.detail, "cluster c has reached max_pending_requests");
    let connection = local(&held);
    pool.check_in(held);
    assert_eq!(
        local(&timeout(PATIENCE, waiting).await.expect("served").unwrap()),
        connection,
        "the waiter gets the very connection"
    );
    assert_eq!(cluster.live.pending_requests(), 0);
}

#[tokio::test]
async fn an_idle_connection_makes_room_for_another_endpoint() {
    let ((echo_one, one), (echo_two, two)) = (Echo::start().await, Echo::start().await);
    // The idle connection is in the same pool, then in another one.
    for pools in [[Pool::new(), Pool::new()], {
        let pool = Pool::new();
        [pool.clone(), pool]
    }] {
        let cluster = cluster(limited(1), &[one, two]);
        for _ in 0..3 {
            round(&pools[0], &cluster, one).await;
            round(&pools[1], &cluster, two).await;
        }
        assert_eq!(cluster.live.connections(), 1);
    }
    assert_eq!((echo_one.most_open.load(SeqCst), echo_two.most_open.load(SeqCst)), (1, 1));
}

#[tokio::test]
async fn a_waiter_learns_that_its_endpoint_is_gone() {
    let (_echo, address) = Echo::start().await;
    let (pool, cluster) = (Pool::new(), cluster(limited(1), &[address]));
    let held = get(&pool, &cluster, address).await;
    let endpoint = cluster.live.endpoint(address);
    let mut waiting = Box::pin(pool.http1(&cluster, &endpoint, None));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    cluster.set_endpoints(endpoints(&cluster, &[]));
    pool.check_in(held);
    let error = timeout(PATIENCE, waiting).await.expect("it ends").expect_err("removed");
    assert_eq!((error.kind, error.progress), (Kind::ConnectFailed, Progress::NothingSent));
    assert_eq!(cluster.live.connections(), 0, "the place was given back");
}

/// Runs `worker` on as many threads with a runtime and a pool each, waits for all, and then looks at what they have left.
fn on_workers<F: Future<Output = ()>>(
    count: usize,
    worker: impl Fn(usize, Pool) -> F + Send + Clone + 'static,
    look: impl FnOnce(),
) {
    let (done, ended) = mpsc::channel();
    let (stop, _) = tokio::sync::watch::channel(());
    for id in 0..count {
        let (worker, done, mut stopped) = (worker.clone(), done.clone(), stop.subscribe());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let pool = Pool::new();
            runtime.block_on(worker(id, pool.clone()));
            done.send(()).unwrap();
            // Pools answer others as long as their runtime runs; the error is the sender's end.
            let _ = runtime.block_on(stopped.changed());
        });
    }
    for _ in 0..count {
        ended.recv_timeout(PATIENCE).expect("every worker is served");
    }
    look();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn four_workers_share_one_connection_and_nobody_starves() {
    let (echo, address) = Echo::start().await;
    let cluster = cluster(limited(1), &[address]);
    let served = Arc::new(AtomicUsize::new(0));
    let longest = Arc::new(AtomicUsize::new(0));
    let start = Arc::new(tokio::sync::Barrier::new(4));
    let run = {
        let (cluster, served, longest) = (cluster.clone(), served.clone(), longest.clone());
        move |_: usize, pool: Pool| {
            let (cluster, served, longest) = (cluster.clone(), served.clone(), longest.clone());
            let start = start.clone();
            async move {
                start.wait().await;
                let endpoint = cluster.live.endpoint(address);
                for _ in 0..100 {
                    let mut lease = Box::pin(pool.http1(&cluster, &endpoint, None));
                    let lease = match futures_util::poll!(&mut lease) {
                        Poll::Ready(lease) => lease.unwrap(),
                        Poll::Pending => {
                            let before = served.load(SeqCst);
                            let lease = lease.await.unwrap();
                            longest.fetch_max(served.load(SeqCst) - before, SeqCst);
                            lease
                        }
                    };
                    served.fetch_add(1, SeqCst);
                    ask(&lease).await;
                    pool.check_in(lease);
                }
            }
        }
    };
    let look = move || {
        assert!(!cluster.live.waiting.any());
        assert_eq!(cluster.live.connections(), 1);
    };
    tokio::task::spawn_blocking(move || on_workers(4, run, look)).await.unwrap();
    assert_eq!(served.load(SeqCst), 400);
    assert_eq!((echo.accepted(), echo.most_open.load(SeqCst)), (1, 1), "the connection goes round");
    // At most three others were in line before, behind the one that had the connection.
    let longest = longest.load(SeqCst);
    assert!((1..=4).contains(&longest), "somebody waited for {longest} requests of others");
}

/// An HTTP/2 server that answers 200 when told to.
#[derive(Debug, Default)]
struct H2Server {
    accepted: AtomicUsize,
    open: AtomicUsize,
    /// Sends GOAWAY on all connections.
    leave: tokio::sync::Notify,
}

impl H2Server {
    async fn start(max_streams: u32) -> (Arc<Self>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Arc::new(Self::default());
        let accept = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accept.accepted.fetch_add(1, SeqCst);
                accept.open.fetch_add(1, SeqCst);
                let server = accept.clone();
                tokio::spawn(async move {
                    server.serve(stream, max_streams).await;
                    server.open.fetch_sub(1, SeqCst);
                });
            }
        });
        (server, address)
    }

    async fn serve(&self, stream: TcpStream, max_streams: u32) {
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(max_streams);
        let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
        loop {
            tokio::select! {
                () = self.leave.notified() => connection.graceful_shutdown(),
                request = connection.accept() => {
                    let Some(Ok((_, mut reply))) = request else { return };
                    let _ = reply.send_response(http::Response::new(()), true);
                }
            }
        }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}

async fn stream(pool: &Pool, cluster: &Arc<Cluster>, address: SocketAddr) -> Http2Lease {
    let endpoint = cluster.live.endpoint(address);
    timeout(PATIENCE, pool.http2(cluster, &endpoint, None)).await.expect("served").unwrap()
}

async fn ask_h2(lease: &Http2Lease) {
    let request = http::Request::get("http://a.example/").body(()).unwrap();
    let (answer, _) = lease.open(request, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_burst_opens_one_http2_connection_and_a_full_one_gets_company() {
    let (server, address) = H2Server::start(2).await;
    let (pool, cluster) = (Pool::new(), cluster(spec(), &[address]));
    let endpoint = cluster.live.endpoint(address);
    let burst = futures_util::future::join_all((0..2).map(|_| pool.http2(&cluster, &endpoint, None))).await;
    assert!(burst.iter().all(Result::is_ok));
    assert_eq!(server.accepted(), 1, "single flight");
    for lease in burst.iter().flatten() {
        ask_h2(lease).await;
    }
    // The peer's limit is known now: the third stream needs another connection.
    let third = stream(&pool, &cluster, address).await;
    ask_h2(&third).await;
    assert_eq!(server.accepted(), 2);
    drop(burst);
    let more = [stream(&pool, &cluster, address).await, stream(&pool, &cluster, address).await];
    assert_eq!(server.accepted(), 2, "freed streams are used first");
    drop((third, more));
    cluster.set_endpoints(endpoints(&cluster, &[]));
    until("a removed endpoint's connections close", || server.open.load(SeqCst) == 0).await;
    until("and give their places back", || cluster.live.connections() == 0).await;
}

#[tokio::test]
async fn streams_end_before_a_removed_connection_closes() {
    let (server, address) = H2Server::start(10).await;
    let (pool, cluster) = (Pool::new(), cluster(spec(), &[address]));
    let lease = stream(&pool, &cluster, address).await;
    cluster.set_endpoints(endpoints(&cluster, &[]));
    until("it left the pool", || pool.0.state.lock().slots.values().all(|slot| slot.http2.is_empty())).await;
    ask_h2(&lease).await;
    assert_eq!(server.open.load(SeqCst), 1);
    drop(lease);
    until("it closes with its last stream", || server.open.load(SeqCst) == 0).await;
}

/// A request may have been routed, and its endpoint picked, just before the configuration changed.
#[tokio::test]
async fn who_was_routed_before_a_change_gets_a_stream_on_one_connection() {
    let (server, address) = H2Server::start(10).await;
    let (pool, handle) = (Pool::new(), ClusterHandle::empty("c"));
    let former = Cluster::new(ClusterSpec { protocol: UpstreamProtocol::Http2, ..spec() }, None);
    former.set_endpoints(endpoints(&former, &[address]));
    handle.publish(former.clone());
    let endpoint = former.live.endpoint(address);
    handle.publish(Cluster::new(spec(), Some(&former)));
    for (number, change) in ["other settings", "the endpoint is removed as well"].into_iter().enumerate() {
        let lease = timeout(PATIENCE, pool.http2(&former, &endpoint, None)).await.expect(change).unwrap();
        ask_h2(&lease).await;
        assert_eq!(server.accepted(), number + 1, "{change}");
        assert!(
            pool.0.state.lock().slots.values().all(|slot| slot.http2.is_empty()),
            "nobody else may have it"
        );
        drop(lease);
        until("it closes with its stream", || server.open.load(SeqCst) == 0).await;
        former.set_endpoints(endpoints(&former, &[]));
    }
}

#[tokio::test]
async fn after_goaway_new_streams_go_elsewhere() {
    let (server, address) = H2Server::start(10).await;
    let (pool, cluster) = (Pool::new(), cluster(spec(), &[address]));
    let lease = stream(&pool, &cluster, address).await;
    ask_h2(&lease).await;
    server.leave.notify_waiters();
    let second = timeout(PATIENCE, async {
        loop {
            let lease = stream(&pool, &cluster, address).await;
            if server.accepted() == 2 {
                return lease;
            }
            drop(lease);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    ask_h2(&second.await.expect("a new connection")).await;
}

#[tokio::test]
async fn a_doubted_connection_gets_no_stream_until_it_answers_a_ping() {
    let (server, address) = H2Server::start(10).await;
    let (pool, cluster) = (Pool::new(), cluster(spec(), &[address]));
    let lease = stream(&pool, &cluster, address).await;
    ask_h2(&lease).await;
    lease.doubt();
    // It answers the PING, so this very connection is good again.
    until("the doubt is over", || {
        let state = pool.0.state.lock();
        state.slots.values().flat_map(|slot| &slot.http2).all(|connection| !connection.is_doubted())
    })
    .await;
    ask_h2(&stream(&pool, &cluster, address).await).await;
    assert_eq!(server.accepted(), 1);

    // One that is half dead: connected, but nobody reads or answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    cluster.set_endpoints(endpoints(&cluster, &[address]));
    let lease = stream(&pool, &cluster, address).await;
    lease.doubt();
    let second = stream(&pool, &cluster, address).await;
    assert_eq!(cluster.live.endpoint(address).connections(), 2, "a new connection meanwhile");
    until("it is dropped", || cluster.live.endpoint(address).connections() == 1).await;
    let request = http::Request::get("http://a.example/").body(()).unwrap();
    assert!(lease.open(request, true).is_err());
    drop(second);
}

#[tokio::test]
async fn a_failed_connect_fails_all_who_wait_for_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (pool, cluster) = (Pool::new(), cluster(spec(), &[address]));
    let endpoint = cluster.live.endpoint(address);
    let outcomes =
        futures_util::future::join_all((0..20).map(|_| pool.http2(&cluster, &endpoint, None))).await;
    for outcome in outcomes {
        let error = outcome.expect_err("nobody listens");
        assert_eq!((error.kind, error.progress), (Kind::ConnectFailed, Progress::NothingSent));
    }
    assert_eq!(endpoint.counters.connect_failures.load(SeqCst), 1, "single flight");
    assert_eq!((cluster.live.pending_requests(), cluster.live.connections()), (0, 0));
}

#[tokio::test]
async fn who_waits_survives_the_one_that_began_to_connect() {
    let (server, address) = H2Server::start(10).await;
    let (pool, cluster) = (Pool::new(), cluster(spec(), &[address]));
    let endpoint = cluster.live.endpoint(address);
    let mut first = Box::pin(pool.http2(&cluster, &endpoint, None));
    assert!(futures_util::poll!(&mut first).is_pending());
    let mut second = Box::pin(pool.http2(&cluster, &endpoint, None));
    assert!(futures_util::poll!(&mut second).is_pending());
    drop(first);
    ask_h2(&second.await.unwrap()).await;
    assert_eq!(server.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn four_workers_share_one_http2_connection() {
    let (server, address) = H2Server::start(2).await;
    let spec = ClusterSpec { protocol: UpstreamProtocol::Http2, ..limited(1) };
    let cluster = cluster(spec, &[address]);
    let begun = Arc::new(AtomicUsize::new(0));
    let run = move |_: usize, pool: Pool| {
        let (cluster, begun) = (cluster.clone(), begun.clone());
        async move {
            begun.fetch_add(1, SeqCst);
            until("all began", || begun.load(SeqCst) == 4).await;
            for _ in 0..50 {
                ask_h2(&stream(&pool, &cluster, address).await).await;
            }
        }
    };
    tokio::task::spawn_blocking(move || on_workers(4, run, || ())).await.unwrap();
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn original_destinations_are_forgotten_when_idle_or_crowded() {
    let (echo, address) = Echo::start().await;
    let (pool, cluster) = (Pool::new(), Cluster::new(ClusterSpec::plain("c", Discovery::Static), None));
    let host = pool.original_host(&cluster.live, address);
    round(&pool, &cluster, address).await;
    let in_use = LiveState::admit(pool.original_host(&cluster.live, "10.9.9.9:1".parse().unwrap())).unwrap();
    for port in 0..3 * MAX_HOSTS as u16 {
        pool.original_host(&cluster.live, SocketAddr::from(([10, 0, 0, 1], port)));
    }
    assert!(pool.0.state.lock().hosts.len() <= MAX_HOSTS + 1);
    assert!(pool.0.state.lock().hosts.contains_key(&(cluster.live.id, "10.9.9.9:1".parse().unwrap())));
    until("its idle connection is closed", || echo.open() == 0).await;
    drop(in_use);
    pool.0.state.lock().forget_hosts(Instant::now());
    assert!(pool.0.state.lock().hosts.is_empty());
    drop(host);
}
