//! What happens when something fails, and what is said about it.

use std::sync::Arc;
use std::time::Duration;

use super::rig::*;
use crate::config::cluster::ClusterSpec;
use crate::config::route::{Forward, RetryOn, RetryPolicy};
use crate::http::test_support::retry_policy;

fn retrying(on: u32, attempts: u32) -> impl FnOnce(&mut Forward) {
    move |forward| {
        let backoff_base = Duration::from_millis(1);
        let policy = RetryPolicy { on: RetryOn(on), attempts, backoff_base, ..retry_policy() };
        forward.retry = Some(Arc::new(policy));
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";

#[tokio::test]
async fn a_cluster_without_endpoints_has_no_healthy_upstream() {
    let proxy = Proxy::start(vec![to(&cluster(&[], |_| {}), |_| {})]).await;
    let reply = proxy.ask(GET).await;
    assert_eq!((reply.status(), &*reply.body), (503, "no healthy upstream"));
    let line = proxy.log(1).await.remove(0);
    assert!(line.starts_with("503 UH no_healthy_upstream{"), "{line}");
}

#[tokio::test]
async fn a_refused_connection_is_a_503_that_says_so() {
    let proxy = Proxy::start(vec![to(&cluster(&[nobody().await], |_| {}), |_| {})]).await;
    let reply = proxy.ask(POST).await;
    assert_eq!(reply.status(), 503);
    let prefix =
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
    assert_eq!(reply.body, prefix);
    let line = proxy.log(1).await.remove(0);
    assert!(
        line.starts_with("503 UF upstream_reset_before_response_started{remote_connection_failure|"),
        "{line}"
    );
}

#[tokio::test]
async fn a_refused_connection_moves_to_another_endpoint() {
    let mirror = mirror().await;
    let endpoints = [nobody().await, nobody().await, mirror.address];
    let proxy = Proxy::start(vec![to(&cluster(&endpoints, |_| {}), |_| {})]).await;
    for _ in 0..20 {
        let reply = proxy.ask(POST).await;
        assert_eq!(reply.status(), 200);
        assert!(
            reply.body.contains("x-envoy-attempt-count: 1") && reply.body.ends_with("hello"),
            "{}",
            reply.body
        );
    }
}

#[tokio::test]
async fn a_status_is_retried_as_the_policy_says() {
    let upstream = upstream(|number, mut client| async move {
        let Some(request) = client.request().await else { return };
        assert_eq!(request.body, "hello");
        let attempt = format!("x-envoy-attempt-count: {}", number + 1);
        assert!(request.head.contains(&attempt), "{attempt} in {}", request.head);
        let status = if number < 2 { 503 } else { 200 };
        client.send(format!("HTTP/1.1 {status} X\r\ncontent-length: 2\r\n\r\nno")).await;
        client.rest().await;
    })
    .await;
    let to = to(&cluster(&[upstream.address], |_| {}), retrying(RetryOn::GATEWAY_ERROR, 2));
    let proxy = Proxy::start(vec![to]).await;
    assert_eq!(proxy.ask(POST).await.status(), 200);
    let line = proxy.log(1).await.remove(0);
    assert!(line.starts_with("200 - via_upstream 5 2 3 all"), "{line}");
}

#[tokio::test]
async fn exhausted_retries_give_the_last_answer() {
    let upstream = upstream(|_, mut client| async move {
        while client.request().await.is_some() {
            client.send("HTTP/1.1 503 X\r\ncontent-length: 4\r\n\r\nlast").await;
        }
    })
    .await;
    let to = to(&cluster(&[upstream.address], |_| {}), retrying(RetryOn::SERVER_ERROR, 2));
    let proxy = Proxy::start(vec![to]).await;
    let reply = proxy.ask(POST).await;
    assert_eq!((reply.status(), &*reply.body), (503, "last"));
    let line = proxy.log(1).await.remove(0);
    assert!(line.starts_with("503 URX via_upstream 5 4 3 all"), "{line}");
}

#[tokio::test]
async fn without_a_policy_a_write_is_never_sent_twice() {
    let upstream = upstream(|_, mut client| async move {
        client.request().await;
    })
    .await;
    let proxy = Proxy::start(vec![to(&cluster(&[upstream.address], |_| {}), |_| {})]).await;
    let reply = proxy.ask(POST).await;
    assert_eq!(reply.status(), 503);
    assert!(reply.body.ends_with("reset reason: connection termination"), "{}", reply.body);
    assert_eq!(upstream.connections(), 1);
    let line = proxy.log(1).await.remove(0);
    assert!(
        line.starts_with("503 UC upstream_reset_before_response_started{connection_termination|"),
        "{line}"
    );
}

#[tokio::test]
async fn a_kept_connection_that_closes_costs_no_request() {
    // Each connection answers one request, takes a second one and closes without an answer.
    let upstream = upstream(|_, mut client| async move {
        client.request().await;
        client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        client.request().await;
    })
    .await;
    let proxy = Proxy::start(vec![to(&cluster(&[upstream.address], |_| {}), |_| {})]).await;
    for _ in 0..4 {
        assert_eq!(proxy.ask(GET).await.status(), 200);
    }
}

#[tokio::test]
async fn a_slow_answer_times_out() {
    let upstream = upstream(|_, mut client| async move {
        client.request().await;
        client.rest().await;
    })
    .await;
    let endpoints = [upstream.address];
    let limit = |forward: &mut Forward| forward.timeout = Some(Duration::from_millis(50));
    let proxy = Proxy::start(vec![to(&cluster(&endpoints, |_| {}), limit)]).await;
    let reply = proxy.ask(POST).await;
    assert_eq!((reply.status(), &*reply.body), (504, "upstream request timeout"));
    assert!(proxy.log(1).await[0].starts_with("504 UT response_timeout"));

    let per_try = |forward: &mut Forward| {
        let per_try_timeout = Some(Duration::from_millis(20));
        let backoff_base = Duration::from_millis(1);
        let on = RetryOn(RetryOn::RESET);
        let policy = RetryPolicy { on, attempts: 2, per_try_timeout, backoff_base, ..retry_policy() };
        forward.retry = Some(Arc::new(policy));
    };
    let proxy = Proxy::start(vec![to(&cluster(&endpoints, |_| {}), per_try)]).await;
    let reply = proxy.ask(POST).await;
    assert_eq!((reply.status(), &*reply.body), (504, "upstream request timeout"));
    let line = proxy.log(1).await.remove(0);
    assert!(line.starts_with("504 UT,URX upstream_per_try_timeout 5 24 3 all"), "{line}");
}

#[tokio::test]
async fn a_response_that_breaks_off_is_cut_off() {
    let upstream = upstream(|_, mut client| async move {
        client.request().await;
        client.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n123").await;
    })
    .await;
    let proxy =
        Proxy::start(vec![to(&cluster(&[upstream.address], |_| {}), retrying(RetryOn::SERVER_ERROR, 3))])
            .await;
    let mut client = proxy.client().await;
    client.send(GET).await;
    let head = client.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "));
    assert_eq!(client.body(&head).await, None, "the client sees that it is incomplete");
    assert_eq!(upstream.connections(), 1, "not retried once it had begun");
    let line = proxy.log(1).await.remove(0);
    assert!(
        line.starts_with("200 UC upstream_reset_after_response_started{connection_termination"),
        "{line}"
    );
}

#[tokio::test]
async fn an_early_answer_stops_the_upload() {
    let upstream = upstream(|_, mut client| async move {
        client.head().await;
        client.send("HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig").await;
        client.rest().await;
    })
    .await;
    let proxy = Proxy::start(vec![to(&cluster(&[upstream.address], |_| {}), |_| {})]).await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\nbegin").await;
    let reply = client.reply().await;
    assert_eq!((reply.status(), &*reply.body), (413, "big"));
    assert_eq!(reply.get("x-envoy-upstream-service-time"), None, "the request was not complete");
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_with_it() {
    let (note, mut noted) = tokio::sync::mpsc::unbounded_channel();
    let upstream = upstream(move |_, mut client| {
        let note = note.clone();
        async move {
            client.request().await;
            note.send("asked").unwrap();
            client.rest().await;
            note.send("closed").unwrap();
        }
    })
    .await;
    let proxy = Proxy::start(vec![to(&cluster(&[upstream.address], |_| {}), |_| {})]).await;
    let mut client = proxy.client().await;
    client.send(POST).await;
    assert_eq!(tokio::time::timeout(DEADLINE, noted.recv()).await.unwrap(), Some("asked"));
    drop(client);
    assert_eq!(tokio::time::timeout(DEADLINE, noted.recv()).await.unwrap(), Some("closed"));
    let line = proxy.log(1).await.remove(0);
    assert!(line.starts_with("0 DC downstream_remote_disconnect 5 0 1 all backend"), "{line}");
}

#[tokio::test]
async fn a_limit_of_requests_overflows() {
    let mirror = mirror().await;
    let none = |spec: &mut ClusterSpec| spec.limits.max_requests = 0;
    let to = to(&cluster(&[mirror.address], none), retrying(RetryOn::SERVER_ERROR, 3));
    let proxy = Proxy::start(vec![to]).await;
    let reply = proxy.ask(GET).await;
    assert_eq!((reply.status(), reply.get("x-envoy-overloaded")), (503, Some("true")));
    assert!(reply.body.ends_with("reset reason: overflow"), "{}", reply.body);
    let line = proxy.log(1).await.remove(0);
    assert!(line.starts_with("503 UO upstream_reset_before_response_started{overflow|"), "{line}");
}

#[tokio::test]
async fn retries_are_limited_over_the_whole_cluster() {
    let upstream = upstream(|_, mut client| async move {
        while client.request().await.is_some() {
            client.send("HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await;
    let none = |spec: &mut ClusterSpec| spec.limits.max_retries = 0;
    let to = to(&cluster(&[upstream.address], none), retrying(RetryOn::SERVER_ERROR, 3));
    let proxy = Proxy::start(vec![to]).await;
    assert_eq!(proxy.ask(GET).await.status(), 503);
    let line = proxy.log(1).await.remove(0);
    assert!(line.starts_with("503 UO via_upstream 0 0 1 all"), "{line}");
}

#[tokio::test]
async fn what_the_upstream_may_not_say_is_a_502() {
    for answer in
        ["garbage\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"]
    {
        let upstream = upstream(move |_, mut client| async move {
            client.request().await;
            client.send(answer).await;
            client.rest().await;
        })
        .await;
        let proxy = Proxy::start(vec![to(&cluster(&[upstream.address], |_| {}), |_| {})]).await;
        let reply = proxy.ask(GET).await;
        assert_eq!(reply.status(), 502, "{answer}");
        assert!(reply.body.ends_with("reset reason: protocol error"), "{}", reply.body);
        assert!(proxy.log(1).await[0].starts_with("502 UPE "));
    }
}

/// Each is passed on, but there is an end to what one request may bring.
#[tokio::test]
async fn interim_responses_without_end_are_a_502() {
    let upstream = upstream(|_, mut client| async move {
        let Some(_) = client.request().await else { return };
        let hints = format!("HTTP/1.1 103 Early Hints\r\nlink: {}\r\n\r\n", "x".repeat(8192));
        client.send(hints.repeat(40)).await;
        client.rest_quietly().await;
    })
    .await;
    let proxy = Proxy::start(vec![to(&cluster(&[upstream.address], |_| {}), |_| {})]).await;
    let mut client = proxy.client().await;
    client.send(GET).await;
    let mut hints = 0;
    let last = loop {
        let head = client.head().await.expect("an answer");
        if !head.starts_with("HTTP/1.1 103 ") {
            break head;
        }
        hints += 1;
    };
    assert!(last.starts_with("HTTP/1.1 502 "), "{last}");
    assert!((30..=33).contains(&hints), "{hints}");
    let line = proxy.log(1).await.remove(0);
    assert!(line.contains("interim_responses_without_end"), "{line}");
}
