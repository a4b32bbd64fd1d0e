//! Both ways with real sockets.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

#[derive(Default)]
struct Counts {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Count for Arc<Counts> {
    fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let connect = TcpStream::connect(listener.local_addr().expect("address"));
    let (client, accepted) = tokio::join!(connect, listener.accept());
    (client.expect("connect"), accepted.expect("accept").0)
}

/// The client's socket, the endpoint's socket, and the copying between them.
async fn relay(idle: Option<Duration>) -> (TcpStream, TcpStream, tokio::task::JoinHandle<End>, Arc<Counts>) {
    let ((client, downstream), (upstream, endpoint)) = (pair().await, pair().await);
    let counts = Arc::new(Counts::default());
    let count = counts.clone();
    let task = tokio::spawn(async move {
        let worker = Worker::here(Arc::default());
        both_ways(&worker, &downstream.into(), &upstream.into(), idle, &count).await
    });
    (client, endpoint, task, counts)
}

#[tokio::test]
async fn half_close_is_passed_on_and_every_byte_arrives() {
    let (mut client, mut endpoint, task, counts) = relay(None).await;
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let expected = sent.clone();
    let send = tokio::spawn(async move {
        client.write_all(&sent).await.expect("send");
        client.shutdown().await.expect("half-close");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("answer");
        answer
    });
    let mut got = Vec::new();
    endpoint.read_to_end(&mut got).await.expect("request");
    assert!(got == expected);
    assert!(!task.is_finished(), "the other direction goes on");
    endpoint.write_all(b"late answer").await.expect("answer");
    drop(endpoint);
    assert_eq!(send.await.expect("client"), "late answer");
    assert!(matches!(task.await.expect("relay"), End::Complete));
    assert_eq!(counts.received.load(Relaxed), 3_000_000);
    assert_eq!(counts.sent.load(Relaxed), 11);
}

#[tokio::test]
async fn a_reset_ends_both_directions_and_names_the_side() {
    let (mut client, mut endpoint, task, _) = relay(None).await;
    client.write_all(b"x").await.expect("send");
    endpoint.read_u8().await.expect("byte");
    socket2::SockRef::from(&endpoint).set_linger(Some(Duration::ZERO)).expect("linger");
    drop(endpoint);
    assert!(matches!(task.await.expect("relay"), End::Broken(Side::Upstream, _)));
    assert_eq!(client.read(&mut [0; 8]).await.map_err(|e| e.kind()).unwrap_or(0), 0);
}

#[tokio::test]
async fn bulk_and_small_messages_alternate_without_losing_a_byte() {
    let (mut client, mut endpoint, task, counts) = relay(None).await;
    let message = |round: u8| vec![round; if round.is_multiple_of(3) { 700_000 } else { 100 }];
    let expected: usize = (0..30).map(|round| message(round).len()).sum();
    let echo = tokio::spawn(async move {
        let (mut read, mut write) = endpoint.split();
        tokio::io::copy(&mut read, &mut write).await.expect("echo");
    });
    for round in 0..30 {
        let sent = message(round);
        let mut got = vec![0; sent.len()];
        let (mut read, mut write) = client.split();
        let (sending, receiving) = tokio::join!(write.write_all(&sent), read.read_exact(&mut got));
        sending.expect("send");
        receiving.expect("receive");
        assert!(got == sent, "round {round}");
    }
    drop(client);
    echo.await.expect("endpoint");
    assert!(matches!(task.await.expect("relay"), End::Complete));
    assert_eq!(
        (counts.received.load(Relaxed), counts.sent.load(Relaxed)),
        (expected as u64, expected as u64)
    );
}

#[tokio::test]
async fn pipes_come_back_empty_or_not_at_all() {
    let worker = Worker::here(Arc::default());
    let (mut client, downstream) = pair().await;
    client.write_all(b"left behind").await.expect("send");
    downstream.readable().await.expect("readable");
    let mut pipe = worker.take_pipe().expect("pipe");
    assert_eq!(pipe.try_fill(&downstream).expect("fill"), 11);
    worker.give_pipe(pipe);
    let mut clean = worker.take_pipe().expect("pipe");
    assert!(clean.is_empty());
    assert_eq!(clean.try_fill(&downstream).expect_err("nothing is there").kind(), io::ErrorKind::WouldBlock);
    drop(client);
    downstream.readable().await.expect("readable");
    assert_eq!(clean.try_fill(&downstream).expect("end"), 0);
}

#[tokio::test]
async fn a_slow_reader_is_waited_for() {
    let (client, mut endpoint, task, _) = relay(None).await;
    let total = 8 << 20;
    let send = tokio::spawn(async move {
        endpoint.write_all(&vec![7; total]).await.expect("send");
    });
    let mut client = client;
    let mut got = 0;
    let mut buffer = vec![0; 1 << 20];
    while got < total {
        tokio::task::yield_now().await;
        got += client.read(&mut buffer).await.expect("read");
    }
    send.await.expect("sender");
    drop(client);
    assert!(matches!(task.await.expect("relay"), End::Complete | End::Broken(Side::Downstream, _)));
}

#[tokio::test(start_paused = true)]
async fn the_idle_time_out_counts_from_the_last_byte() {
    let activity = Activity::new();
    let begun = Instant::now();
    let limit = Duration::from_secs(10);
    let touch = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            activity.touch();
        }
    };
    tokio::join!(touch, activity.idle_for(limit));
    assert_eq!(begun.elapsed().as_secs(), 37);
}

#[tokio::test]
async fn silence_ends_a_connection_that_has_a_limit() {
    let (_client, _endpoint, task, _) = relay(Some(Duration::from_millis(30))).await;
    assert!(matches!(task.await.expect("relay"), End::Idle));
}
