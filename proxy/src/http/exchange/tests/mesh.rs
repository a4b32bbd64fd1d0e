//! Two proxies in a row, and configuration that comes on demand or changes.

use std::sync::Arc;
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};

use super::rig::*;
use crate::config::listener::{Codec, Direction, HttpManager, PeerMetadata};
use crate::config::route::{Action, DirectResponse, VirtualHosts};
use crate::config::snapshot::Snapshot;
use crate::http::test_support::manager;
use crate::node::Node;
use crate::on_demand::{Limits, OnDemand};
use crate::worker::Shared;

fn node(workload: &str) -> Arc<Shared> {
    let value = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields = [("WORKLOAD_NAME".to_owned(), value(workload)), ("NAMESPACE".to_owned(), value("default"))];
    let node = Node::new(&format!("sidecar~{workload}"), "", Struct { fields: fields.into() });
    Arc::new(Shared { node: Arc::new(node), ..Shared::default() })
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is_and_the_application_does_not() {
    let metadata = PeerMetadata { send: true, receive: true };
    let mirror = mirror().await;
    let inbound_table = table(host(vec![to(&cluster(&[mirror.address], |_| {}), |_| {})]));
    let inbound = Proxy::beside(node("server"), Direction::Inbound, inbound_table, |manager| {
        manager.peer_metadata = metadata;
    })
    .await;
    let outbound_table = table(host(vec![to(&cluster(&[inbound.address], |_| {}), |_| {})]));
    let outbound = Proxy::beside(node("client"), Direction::Outbound, outbound_table, |manager| {
        manager.peer_metadata = metadata;
    })
    .await;
    let reply = outbound.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(reply.status(), 200);
    assert!(!reply.head.contains("peer-metadata"), "{}", reply.head);
    assert!(!reply.body.contains("peer-metadata"), "{}", reply.body);
    let text = inbound.metrics();
    assert!(text.contains(r#"source_workload="client""#), "{text}");
    let text = outbound.metrics();
    assert!(text.contains(r#"destination_workload="server""#), "{text}");

    // A caller that tells nothing is told nothing.
    let reply = inbound.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!reply.head.contains("peer-metadata"), "{}", reply.head);
}

#[tokio::test]
async fn a_host_that_is_got_on_demand() {
    let mirror = mirror().await;
    let limits = Limits { patience: Duration::from_millis(50), ..Limits::default() };
    let (on_demand, mut asked) = OnDemand::new(limits);
    let hosts = on_demand.hosts("80");
    let mut table = table(host(vec![]));
    table.hosts = VirtualHosts::OnDemand(hosts.clone());
    let proxy = Proxy::with(table, |_| {}).await;

    let request = "GET / HTTP/1.1\r\nHost: A.example:80\r\n\r\n";
    let reply = proxy.ask(request).await;
    assert_eq!((reply.status(), &*reply.body), (503, "configuration for A.example:80 not received"));
    let _ = asked.recv().await.expect("the name was asked for");
    hosts.publish("a.example", Some(Arc::new(host(vec![to(&cluster(&[mirror.address], |_| {}), |_| {})]))));
    assert_eq!(proxy.ask(request).await.status(), 200);
    hosts.publish("a.example", None);
    assert_eq!(proxy.ask(request).await.status(), 404);
    let lines = proxy.log(3).await;
    assert!(
        lines[0]
            .starts_with("503 NC configuration_not_received{configuration_for_A.example:80_not_received}")
    );
    assert!(lines[2].starts_with("404 NR route_not_found{no_virtual_host_for_A.example:80"), "{}", lines[2]);
}

#[tokio::test]
async fn an_open_connection_follows_the_configuration() {
    let manager = |status| {
        let fixed = DirectResponse { status, body: Default::default() };
        let table = table(host(vec![route("fixed", "/", Action::Direct(fixed))]));
        HttpManager { routes: Some(Arc::new(table)), codec: Codec::Http1, ..manager() }
    };
    let listener = |proxy: &Proxy, manager| Arc::new(listener(proxy.address, Direction::Outbound, manager));
    let proxy = Proxy::start(vec![]).await;
    let publish = |listeners: Vec<_>| proxy.worker.shared.snapshot.publish(Snapshot::new(listeners));
    let mut client = proxy.client().await;
    let mut ask = async || {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let reply = client.reply().await;
        (reply.status(), reply.get("connection").map(str::to_owned))
    };
    assert_eq!(ask().await, (404, None));
    publish(vec![listener(&proxy, manager(201))]);
    assert_eq!(ask().await, (201, None), "each request matches anew");
    publish(vec![listener(&proxy, manager(202))]);
    assert_eq!(ask().await, (202, None));
    let http2_only = HttpManager { codec: Codec::Http2, ..manager(203) };
    publish(vec![listener(&proxy, http2_only)]);
    assert_eq!(ask().await, (202, Some("close".to_owned())), "served as before, and ended politely");
}

const METADATA: PeerMetadata = PeerMetadata { send: true, receive: true };

/// The inbound side of a sidecar beside `application`.
async fn inbound(application: std::net::SocketAddr) -> Proxy {
    let table = table(host(vec![to(&cluster(&[application], |_| {}), |_| {})]));
    Proxy::beside(node("server"), Direction::Inbound, table, |manager| manager.peer_metadata = METADATA).await
}

/// The outbound side of a client's sidecar, without retries, over these peers.
async fn outbound(peers: &[std::net::SocketAddr], over_http2: bool) -> Proxy {
    let cluster = cluster(peers, |spec| {
        if over_http2 {
            http2(spec);
        }
    });
    let table = table(host(vec![to(&cluster, |forward| forward.retry = None)]));
    Proxy::beside(node("client"), Direction::Outbound, table, |manager| manager.peer_metadata = METADATA)
        .await
}

#[tokio::test]
async fn what_an_application_did_not_take_goes_to_another_endpoint() {
    for (over_http2, draining) in [(false, false), (false, true), (true, false), (true, true)] {
        let mirror = mirror().await;
        let (gone, serving) = (inbound(nobody().await).await, inbound(mirror.address).await);
        if draining {
            gone.worker.shared.drain.advance(osier_core::drain::Phase::DrainingInbound);
        }
        let outbound = outbound(&[gone.address, serving.address], over_http2).await;
        for at in 0..20 {
            let reply = match at % 2 {
                0 => outbound.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await,
                // Not safe, and with a body: nothing of it was delivered, so it may go again.
                _ => outbound.ask("POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 5\r\n\r\nhello").await,
            };
            assert_eq!(reply.status(), 200, "HTTP/2: {over_http2}, draining: {draining}: {}", reply.head);
            assert!(reply.body.contains("x-envoy-attempt-count: 1"), "it is no retry: {}", reply.body);
            assert!(at % 2 == 0 || reply.body.ends_with("hello"), "{}", reply.body);
        }
        assert!(gone.log(1).await[0].contains("UF"), "the sidecar itself says what happened");
        let lines = outbound.log(20).await;
        assert!(lines.iter().all(|line| line.starts_with("200 - via_upstream")), "{lines:?}");
    }
}

#[tokio::test]
async fn where_nobody_takes_it_the_answer_says_what_happened() {
    let gone = inbound(nobody().await).await;
    let outbound = outbound(&[gone.address], false).await;
    let reply = outbound.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(reply.status(), 503);
    assert!(reply.body.ends_with("reset reason: remote connection failure"), "{}", reply.body);
    assert!(!reply.head.contains("not-processed"), "{}", reply.head);
    // A client that isn't a peer gets what it always got.
    let reply = gone.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((reply.status(), reply.head.contains("not-processed")), (503, false));
}

#[tokio::test]
async fn only_a_peer_is_believed() {
    // An application that says what only sidecars say, and one that is no peer at all.
    let liar = || {
        upstream(|_, mut client| async move {
            while client.request().await.is_some() {
                client.send("HTTP/1.1 503 No\r\nx-osier-not-processed: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
            }
        })
    };
    let (behind, outside) = (liar().await, liar().await);
    for peer in [inbound(behind.address).await.address, outside.address] {
        let outbound = outbound(&[peer], false).await;
        let reply = outbound.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((reply.status(), reply.head.contains("not-processed")), (503, false));
        assert_eq!(outbound.log(1).await.len(), 1);
    }
    assert_eq!((behind.connections(), outside.connections()), (1, 1), "nobody is asked twice");
}
