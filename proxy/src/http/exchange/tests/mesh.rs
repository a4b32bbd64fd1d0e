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
