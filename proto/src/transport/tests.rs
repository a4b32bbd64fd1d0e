//! The adapters over real sockets.

use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;

use super::*;
use crate::types::cluster::Cluster;
use crate::types::core::Node;
use crate::types::{self, CLUSTER};
use crate::xds::client::{Client, State};
use crate::xds::server::{Options, Step, Stream};
use crate::xds::{Resource, Variant};

/// Serves one cluster, `big`, to whoever asks.
struct OneCluster {
    padding: usize,
}

impl Handler for OneCluster {
    async fn serve(&self, mut link: Link) -> Result<(), Status> {
        let mut stream = Stream::new(link.variant, Options::default());
        while let Some(request) = link.request().await? {
            let invalid =
                |error: crate::xds::server::ProtocolError| Status::invalid_argument(error.to_string());
            stream.on_request(request, Instant::now()).map_err(invalid)?;
            while let Some(step) = stream.next(Instant::now()) {
                match step {
                    Step::Generate(want) => {
                        let alt_stat_name = "x".repeat(self.padding);
                        let cluster = Cluster { name: "big".into(), alt_stat_name, ..Default::default() };
                        let mut resources = vec![Resource::new("big", &cluster)];
                        resources.retain(|_| &*want.type_url == CLUSTER);
                        stream.answer(want, resources);
                    }
                    Step::Send(response) => {
                        if !link.ready().await || !link.send(response).await {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

async fn start(handler: OneCluster) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let serving =
        server().add_service(service(handler)).serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    uri
}

fn node() -> Node {
    Node { id: "sidecar~127.0.0.1~a.b~c".into(), ..Default::default() }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("an answer within a minute")
}

#[tokio::test]
async fn a_response_beyond_the_default_limit_arrives() {
    let uri = start(OneCluster { padding: 5 << 20 }).await;
    let mut connection =
        within(Connection::open(&endpoint(&uri).unwrap(), Variant::Incremental)).await.unwrap();
    let mut client = Client::incremental(node(), 1);
    client.subscribe(CLUSTER, "big");
    client.subscribe(CLUSTER, "none");
    client.on_connected();
    let received = within(connection.next(&mut client)).await.unwrap();
    assert_eq!(received.updates.len(), 2);
    client.applied(received.id, vec![]);
    assert!(matches!(client.state(CLUSTER, "big"), Some(State::Held(_))));
    assert_eq!(client.state(CLUSTER, "none"), Some(State::Absent));
}

#[tokio::test]
async fn the_servers_reason_reaches_the_client() {
    let uri = start(OneCluster { padding: 0 }).await;
    let mut connection =
        within(Connection::open(&endpoint(&uri).unwrap(), Variant::Incremental)).await.unwrap();
    let mut client = Client::incremental(Node::default(), 1);
    client.subscribe_all(CLUSTER);
    client.on_connected();
    let status = within(connection.next(&mut client)).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (tonic::Code::InvalidArgument, "the first request of a stream must carry node.id")
    );
}

#[tokio::test]
async fn requests_go_out_while_the_first_response_is_awaited() {
    let uri = start(OneCluster { padding: 0 }).await;
    let mut connection =
        within(Connection::open(&endpoint(&uri).unwrap(), Variant::Incremental)).await.unwrap();
    let mut client = Client::incremental(node(), 1);
    for type_url in [types::LISTENER, CLUSTER, types::ROUTE_CONFIGURATION, types::CLUSTER_LOAD_ASSIGNMENT] {
        client.subscribe(type_url, "x");
    }
    client.on_connected();
    for _ in 0..4 {
        let received = within(connection.next(&mut client)).await.unwrap();
        client.applied(received.id, vec![]);
    }
    assert_eq!(client.state(types::ROUTE_CONFIGURATION, "x"), Some(State::Absent));
}

#[tokio::test]
async fn state_of_the_world_works_too() {
    let uri = start(OneCluster { padding: 0 }).await;
    let endpoint = endpoint(&uri).unwrap();
    let mut connection = within(Connection::open(&endpoint, Variant::StateOfTheWorld)).await.unwrap();
    let mut client = Client::state_of_the_world(node(), 1);
    client.subscribe_all(CLUSTER);
    client.on_connected();
    let received = within(connection.next(&mut client)).await.unwrap();
    assert_eq!(&*received.updates[0].name, "big");
    client.applied(received.id, vec![]);
    assert!(matches!(client.state(CLUSTER, "big"), Some(State::Held(_))));
    let mut other = Client::incremental(node(), 1);
    assert!(within(connection.next(&mut other)).await.is_err(), "a client of the other variant");
}

#[tokio::test]
async fn an_unreachable_server_is_an_error_with_its_cause() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = within(Connection::open(&endpoint(&uri).unwrap(), Variant::Incremental)).await.err().unwrap();
    assert!(error.to_string().starts_with("cannot reach the xDS server: "), "{error}");
    assert!(endpoint("not a uri").is_err());
}
