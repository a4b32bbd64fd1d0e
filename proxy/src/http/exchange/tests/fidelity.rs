//! What the accepted attempt receives is what the client sent, whatever happened to the attempts before it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::task::yield_now;

use super::rig::*;
use crate::config::route::{Forward, RetryOn, RetryPolicy};
use crate::http::replay::MAX_REPLAY;
use crate::http::test_support::retry_policy;

/// What an upstream does to one attempt.
#[derive(Debug, Clone)]
enum Fault {
    /// Closes before it reads anything.
    Close,
    /// Resets the connection after some bytes of the body.
    Reset(usize),
    /// Answers 503 before it has read the body, and closes.
    EarlyAnswer,
    /// Answers 503 after the whole body, and stays.
    LateAnswer,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Close),
        (0..40_000usize).prop_map(Fault::Reset),
        Just(Fault::EarlyAnswer),
        Just(Fault::LateAnswer)
    ]
}

#[derive(Debug, Clone)]
struct Upload {
    pieces: Vec<usize>,
    chunked: bool,
    trailers: bool,
    /// Pause after this piece.
    pause: usize,
}

fn upload() -> impl Strategy<Value = Upload> {
    let pieces = prop::collection::vec(prop_oneof![0..50usize, 1000..9000usize, 16_000..60_000usize], 0..8);
    (pieces, any::<bool>(), any::<bool>(), 0..8usize).prop_map(|(pieces, chunked, trailers, pause)| Upload {
        pieces,
        chunked,
        trailers: trailers && chunked,
        pause,
    })
}

/// A body in which no two places look alike.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 251) as u8 ^ (at % 251) as u8).collect()
}

/// What the accepted attempt has received.
type Accepted = Arc<Mutex<Vec<(Vec<u8>, Vec<String>)>>>;

async fn misbehave(fault: Option<Fault>, mut client: Client, accepted: Accepted) {
    match fault {
        Some(Fault::Close) => {}
        Some(Fault::Reset(after)) => {
            client.head().await;
            let _ = tokio::time::timeout(Duration::from_millis(20), client.exactly_or_end(after)).await;
            client.reset();
        }
        Some(Fault::EarlyAnswer) => {
            client.head().await;
            client.send("HTTP/1.1 503 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            client.rest_quietly().await;
        }
        Some(Fault::LateAnswer) => {
            let Some(head) = client.head().await else { return };
            let Some(_) = client.body(&head).await else { return };
            client.send("HTTP/1.1 503 X\r\ncontent-length: 2\r\n\r\nno").await;
            client.rest_quietly().await;
        }
        None => {
            let Some(head) = client.head().await else { return };
            let Some(body) = client.body(&head).await else { return };
            accepted.lock().push((body, client.trailers.clone()));
            client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            client.rest_quietly().await;
        }
    }
}

async fn run(faults: Vec<Fault>, upload: Upload, refused: usize) -> Result<(), TestCaseError> {
    let accepted = Accepted::default();
    let upstream = upstream({
        let (accepted, faults) = (accepted.clone(), faults.clone());
        move |number, client| misbehave(faults.get(number).cloned(), client, accepted.clone())
    })
    .await;
    let mut endpoints = vec![upstream.address];
    for _ in 0..refused {
        endpoints.push(nobody().await);
    }
    let retries = |forward: &mut Forward| {
        let on = RetryOn(RetryOn::SERVER_ERROR | RetryOn::CONNECT_FAILURE);
        let backoff_base = Duration::from_micros(10);
        let policy = RetryPolicy {
            on,
            attempts: 40,
            backoff_base,
            avoid_previous_hosts: false,
            host_selection_attempts: 5,
            ..retry_policy()
        };
        forward.retry = Some(Arc::new(policy));
    };
    let table = table(host(vec![to(&cluster(&endpoints, |_| {}), retries)]));
    let proxy = Proxy::with(table, |manager| manager.http1.enable_trailers = true).await;
    let mut client = proxy.client().await;
    let body = pattern(upload.pieces.iter().sum());
    let framing = match upload.chunked {
        true => "transfer-encoding: chunked".to_owned(),
        false => format!("content-length: {}", body.len()),
    };
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n")).await;
    let mut start = 0;
    for (number, piece) in upload.pieces.iter().enumerate() {
        let data = &body[start..start + piece];
        start += piece;
        if upload.chunked && !data.is_empty() {
            client.send([format!("{piece:x}\r\n").as_bytes(), data, b"\r\n"].concat()).await;
        } else {
            client.send(data).await;
        }
        if number == upload.pause {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        yield_now().await;
    }
    if upload.chunked {
        client.send(if upload.trailers { "0\r\nx-sum: 1\r\n\r\n" } else { "0\r\n\r\n" }).await;
    }
    let reply = client.reply().await;
    let received = accepted.lock().clone();
    prop_assert_eq!(reply.status(), 200, "{:?}", proxy.log(1).await);
    prop_assert_eq!(received.len(), 1, "accepted once");
    prop_assert!(received[0].0 == body, "{} bytes sent, {} received", body.len(), received[0].0.len());
    let trailers: &[String] = if upload.trailers { &["x-sum: 1".to_owned()] } else { &[] };
    prop_assert_eq!(&received[0].1, trailers);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 64, ..ProptestConfig::default() })]

    /// Refusals, closes, resets, early and late answers in any order; slow bodies in any pieces, with and without trailers.
    #[test]
    fn bytes_received_are_bytes_sent(
        faults in prop::collection::vec(fault(), 0..5),
        upload in upload(),
        refused in 0..3usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(faults, upload, refused))?;
    }
}

#[tokio::test]
async fn a_body_over_the_cap_is_streamed_and_not_retried() {
    let upstream = upstream(|_, mut client| async move {
        let Some(head) = client.head().await else { return };
        if client.body(&head).await.is_some() {
            client.send("HTTP/1.1 503 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            client.rest_quietly().await;
        }
    })
    .await;
    let retries = |forward: &mut Forward| {
        let policy = RetryPolicy { on: RetryOn(RetryOn::SERVER_ERROR), attempts: 3, ..retry_policy() };
        forward.retry = Some(Arc::new(policy));
    };
    let proxy = Proxy::start(vec![to(&cluster(&[upstream.address], |_| {}), retries)]).await;
    for (length, attempts) in [(MAX_REPLAY, 4), (MAX_REPLAY + 1, 1)] {
        for framing in ["content-length", "chunked"] {
            let before = upstream.connections();
            let mut client = proxy.client().await;
            let body = pattern(length);
            if framing == "chunked" {
                client.send("POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
                client.send([format!("{length:x}\r\n").as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()).await;
            } else {
                client.send(format!("POST / HTTP/1.1\r\nHost: a\r\ncontent-length: {length}\r\n\r\n")).await;
                client.send(body).await;
            }
            assert_eq!(client.reply().await.status(), 503);
            assert_eq!(upstream.connections() - before, attempts, "{length} bytes, {framing}");
        }
    }
}
