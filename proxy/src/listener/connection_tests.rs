//! What a configuration change does to an open connection.

use osier_core::drain::Drain;

use super::*;
use crate::config::cluster::{ClusterHandle, WeightedClusters};
use crate::config::listener::{ChainMatch, DownstreamTransport, TcpProxy, TransportProtocol};
use crate::http::test_support::manager;
use crate::listener::filter_chain::ChainMatcher;
use crate::on_demand::{Limits, ListenerLookup, OnDemand};
use crate::worker::Shared;

fn http(codec: Codec, stat_prefix: &str) -> NetworkAction {
    NetworkAction::Http(Arc::new(HttpManager { codec, stat_prefix: stat_prefix.into(), ..manager() }))
}

fn tcp() -> NetworkAction {
    let clusters = WeightedClusters::single(ClusterHandle::empty("c"));
    NetworkAction::Tcp(Arc::new(TcpProxy {
        stat_prefix: "tcp".into(),
        clusters,
        cluster_from_sni: false,
        idle_timeout: None,
        max_duration: None,
        max_connect_attempts: 1,
        authorizers: Arc::default(),
        authorization: Arc::default(),
        access_log: Vec::new(),
    }))
}

/// A listener with one chain for connections to port 80.
fn listener(action: NetworkAction) -> Arc<Listener> {
    let matches = ChainMatch { destination_port: Some(80), ..ChainMatch::default() };
    let chain = FilterChain { name: "c".into(), matches, transport: DownstreamTransport::Plaintext, action };
    let chains = vec![Arc::new(chain)];
    let matcher = ChainMatcher::new(chains.iter().map(|c| &c.matches)).expect("no overlap");
    let address = "10.0.0.1:80".parse().expect("address");
    Arc::new(Listener { chains, matcher: Arc::new(matcher), ..Listener::plain("l", address) })
}

fn open(worker: &Worker, listener: &Arc<Listener>, source: ListenerSource) -> Connection {
    let inputs = ConnectionInputs {
        source: "10.0.0.2:4000".parse().expect("address"),
        destination: listener.address,
        transport: TransportProtocol::RawBuffer,
        server_name: None,
        application_protocols: Vec::new(),
    };
    let chain = listener.chain_for(&inputs).expect("chain").clone();
    let generation = worker.shared.snapshot.generation();
    Connection::new(worker, listener, source, chain, generation, inputs, listener.address)
}

fn named() -> ListenerSource {
    ListenerSource::Named("l".into())
}

fn prefix(current: &Current) -> &str {
    &current.http().expect("HTTP").stat_prefix
}

#[tokio::test]
async fn each_request_sees_the_newest_chain_and_other_kinds_end_politely() {
    for (before, after, ends, shown) in [
        (http(Codec::Auto, "old"), Some(http(Codec::Auto, "new")), false, "new"),
        (http(Codec::Auto, "old"), Some(http(Codec::Http2, "new")), false, "new"),
        (http(Codec::Http1, "old"), Some(http(Codec::Auto, "new")), false, "new"),
        (http(Codec::Http1, "old"), Some(http(Codec::Http2, "new")), true, "old"),
        (http(Codec::Auto, "old"), Some(tcp()), true, "old"),
        (http(Codec::Auto, "old"), None, true, "old"),
    ] {
        let worker = Worker::here(Arc::default());
        let first = listener(before);
        worker.shared.snapshot.publish(Snapshot::new([first.clone()]));
        let connection = open(&worker, &first, named());
        let current = connection.current(&worker);
        assert!(Arc::ptr_eq(&current, &connection.current(&worker)), "nothing moved, nothing is chosen");
        worker.shared.snapshot.publish(Snapshot::new(after.map(listener)));
        let current = connection.current(&worker);
        assert_eq!((current.ends, prefix(&current)), (ends, shown));
        // A change that is taken back is as if it had not been.
        worker.shared.snapshot.publish(Snapshot::new([first.clone()]));
        let current = connection.current(&worker);
        assert_eq!((current.ends, prefix(&current)), (false, "old"));
    }
}

#[tokio::test]
async fn a_listener_that_was_asked_for_is_followed_without_a_snapshot() {
    let (on_demand, _asked) = OnDemand::new(Limits::default());
    let table = on_demand.listeners();
    let first = listener(http(Codec::Auto, "old"));
    table.publish("10.0.0.1_80", Some(first.clone()));
    let ListenerLookup::Known(entry) = table.get(first.address) else { panic!("published") };
    let worker = Worker::here(Arc::default());
    let connection = open(&worker, &first, ListenerSource::OnDemand(entry));
    let current = connection.current(&worker);
    assert!(Arc::ptr_eq(&current, &connection.current(&worker)));
    table.publish("10.0.0.1_80", Some(listener(http(Codec::Auto, "new"))));
    assert_eq!(prefix(&connection.current(&worker)), "new");
    table.publish("10.0.0.1_80", None);
    let current = connection.current(&worker);
    assert_eq!((current.ends, prefix(&current)), (true, "new"));
    assert!(Arc::ptr_eq(&current, &connection.current(&worker)));
    table.publish("10.0.0.1_80", Some(listener(http(Codec::Auto, "back"))));
    let current = connection.current(&worker);
    assert_eq!((current.ends, prefix(&current)), (false, "back"));
}

#[tokio::test]
async fn inbound_drains_first_and_open_connections_are_counted() {
    let worker = Worker::here(Arc::new(Shared { drain: Drain::new(), ..Shared::default() }));
    let inbound = listener(tcp());
    let outbound =
        Arc::new(Listener { direction: Direction::Outbound, ..Listener::plain("o", inbound.address) });
    let connection = open(&worker, &inbound, named());
    let calling = Connection::new(
        &worker,
        &outbound,
        named(),
        inbound.chains[0].clone(),
        0,
        connection.inputs.clone(),
        inbound.address,
    );
    let drain = &worker.shared.drain;
    assert_eq!((connection.drains(&worker), calling.drains(&worker), drain.open()), (false, false, 2));
    drain.advance(Phase::DrainingInbound);
    assert_eq!((connection.drains(&worker), calling.drains(&worker)), (true, false));
    drain.advance(Phase::Draining);
    assert!(calling.drains(&worker));
    drop((connection, calling));
    assert_eq!(drain.open(), 0);
}
