//! The client over state of the world: one story per rule of the protocol.

use std::time::Instant;

use super::super::{Client, Content, Received, Refused, State};
use crate::any::Any;
use crate::types::cluster::Cluster;
use crate::types::core::{Node, Pipe};
use crate::types::discovery::{self, DiscoveryResponse, ResourceError, ResourceName};
use crate::types::endpoint::ClusterLoadAssignment;
use crate::types::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, rpc};
use crate::xds::{Request, Response, Version};

fn client() -> Client {
    Client::state_of_the_world(Node { id: "me".into(), ..Default::default() }, 1)
}

/// The next request in short form: `CDS [a b] at:version nonce:1 nack:text node`.
fn sent(client: &mut Client) -> String {
    let request = match client.next_request() {
        None => return String::new(),
        Some(Request::StateOfTheWorld(request)) => request,
        Some(Request::Incremental(request)) => panic!("{request:?}"),
    };
    let mut text = match request.type_url.as_str() {
        CLUSTER => "CDS",
        CLUSTER_LOAD_ASSIGNMENT => "EDS",
        LISTENER => "LDS",
        other => other,
    }
    .to_owned();
    text.push_str(&format!(" [{}]", request.resource_names.join(" ")));
    for (what, value) in [("at", &request.version_info), ("nonce", &request.response_nonce)] {
        if !value.is_empty() {
            text.push_str(&format!(" {what}:{value}"));
        }
    }
    if let Some(error) = request.error_detail {
        text.push_str(&format!(" nack:{}", error.message));
    }
    if request.node.is_some() {
        text.push_str(" node");
    }
    text
}

/// A cluster whose content is this number.
fn cluster(name: &str, content: &str) -> Any {
    Any::pack(&Cluster { name: name.into(), alt_stat_name: content.into(), ..Default::default() })
}

fn assignment(name: &str) -> Any {
    Any::pack(&ClusterLoadAssignment { cluster_name: name.into(), ..Default::default() })
}

/// A response whose nonce is `n` and whose version is `v<n>`.
fn response(n: u32, type_url: &str, resources: Vec<Any>) -> DiscoveryResponse {
    DiscoveryResponse {
        type_url: type_url.into(),
        nonce: n.to_string(),
        version_info: format!("v{n}"),
        resources,
        ..Default::default()
    }
}

fn receive(client: &mut Client, response: DiscoveryResponse) -> Received {
    client.on_response(Response::StateOfTheWorld(response), Instant::now())
}

/// Receives and accepts; the updates in short form: `a@v1`, `a gone`, with `?` where nobody asked.
fn take(client: &mut Client, response: DiscoveryResponse) -> Vec<String> {
    let received = receive(client, response);
    client.applied(received.id, vec![]);
    updates(&received)
}

fn updates(received: &Received) -> Vec<String> {
    let show = |update: &super::super::Update| {
        let content = match &update.content {
            Content::Present { version, .. } => format!("@{version}"),
            Content::Absent => " gone".into(),
            Content::Failed(status) => format!(" {}", status.message),
        };
        format!("{}{content}{}", update.name, if update.asked { "" } else { "?" })
    };
    received.updates.iter().map(show).collect()
}

#[test]
fn each_request_tells_all_names_and_the_last_good_version() {
    let mut c = client();
    c.subscribe_all(CLUSTER);
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "a");
    c.on_connected();
    assert_eq!(sent(&mut c), "CDS [] node", "a lone wildcard names nothing");
    assert_eq!(sent(&mut c), "EDS [a]");
    assert_eq!(sent(&mut c), "");
    assert_eq!(take(&mut c, response(1, CLUSTER, vec![cluster("a", "1")])), ["a@v1"]);
    assert_eq!(sent(&mut c), "CDS [] at:v1 nonce:1");
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "b");
    assert_eq!(sent(&mut c), "EDS [a b]");
    take(&mut c, response(2, CLUSTER_LOAD_ASSIGNMENT, vec![assignment("a")]));
    c.unsubscribe(CLUSTER_LOAD_ASSIGNMENT, "a");
    assert_eq!(sent(&mut c), "EDS [b] at:v2 nonce:2", "the ACK carries the change");
    c.unsubscribe(CLUSTER_LOAD_ASSIGNMENT, "b");
    assert_eq!(sent(&mut c), "EDS [] at:v2 nonce:2", "nothing is wanted any more");
    assert_eq!(sent(&mut c), "");
}

#[test]
fn a_nack_gives_the_last_good_version_and_the_good_resources_count() {
    let mut c = client();
    c.subscribe_all(CLUSTER);
    c.on_connected();
    sent(&mut c);
    take(&mut c, response(1, CLUSTER, vec![cluster("a", "1"), cluster("b", "1")]));
    sent(&mut c);
    let second = receive(&mut c, response(2, CLUSTER, vec![cluster("a", "2"), cluster("b", "2")]));
    c.applied(second.id, vec![Refused { name: "b".into(), reason: "bad".into() }]);
    assert_eq!(sent(&mut c), "CDS [] at:v1 nonce:2 nack:b: bad");
    let held = |version: &str, name: &str| {
        Some(State::Held(Version::of(&cluster(name, version)).to_string().into()))
    };
    assert_eq!((c.state(CLUSTER, "a"), c.state(CLUSTER, "b")), (held("2", "a"), held("1", "b")));
    assert_eq!(take(&mut c, response(3, CLUSTER, vec![cluster("a", "2"), cluster("b", "3")])), ["b@v3"]);
    assert_eq!(sent(&mut c), "CDS [] at:v3 nonce:3");
}

#[test]
fn absence_means_removal_for_full_sets_and_nothing_for_others() {
    let mut c = client();
    c.subscribe_all(CLUSTER);
    c.subscribe(LISTENER, "never");
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "a");
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "b");
    c.on_connected();
    take(&mut c, response(1, CLUSTER, vec![cluster("a", "1"), cluster("b", "1")]));
    take(&mut c, response(2, CLUSTER_LOAD_ASSIGNMENT, vec![assignment("a"), assignment("b")]));
    assert_eq!(take(&mut c, response(3, CLUSTER, vec![cluster("b", "1")])), ["a gone"]);
    assert_eq!(take(&mut c, response(4, CLUSTER_LOAD_ASSIGNMENT, vec![])), Vec::<String>::new());
    assert_eq!(c.held(CLUSTER_LOAD_ASSIGNMENT).count(), 2);
    assert_eq!(take(&mut c, response(5, CLUSTER, vec![])), ["b gone"], "an empty set removes all");
    assert_eq!(take(&mut c, response(6, LISTENER, vec![])), Vec::<String>::new());
    assert_eq!(c.state(LISTENER, "never"), Some(State::Waiting), "it may be on its way");
    let mut absent = response(7, LISTENER, vec![]);
    absent.resource_errors = vec![ResourceError {
        resource_name: Some(ResourceName { name: "never".into() }),
        error_detail: Some(rpc::Status { code: 5, ..Default::default() }),
    }];
    assert_eq!(take(&mut c, absent), ["never gone"]);
}

#[test]
fn what_is_about_to_be_held_is_removed_as_well() {
    let mut c = client();
    c.subscribe_all(CLUSTER);
    c.on_connected();
    let first = receive(&mut c, response(1, CLUSTER, vec![cluster("a", "1")]));
    let second = receive(&mut c, response(2, CLUSTER, vec![]));
    assert_eq!(updates(&second), ["a gone"]);
    c.applied(first.id, vec![]);
    c.applied(second.id, vec![]);
    assert_eq!(c.held(CLUSTER).count(), 0);
}

#[test]
fn what_cannot_be_named_is_refused_and_removes_nothing() {
    let mut c = client();
    c.subscribe_all(CLUSTER);
    c.on_connected();
    sent(&mut c);
    take(&mut c, response(1, CLUSTER, vec![cluster("a", "1"), cluster("b", "1")]));
    sent(&mut c);
    let broken = Any { type_url: CLUSTER.into(), value: vec![0x0a, 0x7f].into() };
    let other = Any::pack(&Pipe { path: "p".into() });
    let resources = vec![broken, cluster("c", "1"), cluster("c", "2"), other];
    assert_eq!(take(&mut c, response(2, CLUSTER, resources)), Vec::<String>::new());
    let nack = sent(&mut c);
    let expected =
        "CDS [] at:v1 nonce:2 nack:resources[0]: has no name; c: is twice in one response; p: is a ";
    assert!(nack.starts_with(expected), "{nack}");
    assert_eq!(c.held(CLUSTER).count(), 2);
}

#[test]
fn names_beside_and_after_the_wildcard() {
    let mut c = client();
    c.subscribe_all(CLUSTER);
    c.on_connected();
    assert_eq!(sent(&mut c), "CDS [] node");
    c.subscribe(CLUSTER, "a");
    assert_eq!(sent(&mut c), "CDS [* a]");
    c.unsubscribe(CLUSTER, "a");
    assert_eq!(sent(&mut c), "CDS [*]", "an empty list would mean none now");
    c.unsubscribe_all(CLUSTER);
    assert_eq!(sent(&mut c), "CDS []");

    c.subscribe_all(LISTENER);
    assert_eq!(sent(&mut c), "LDS []");
    c.unsubscribe_all(LISTENER);
    assert_eq!(
        (sent(&mut c), sent(&mut c)),
        ("LDS [*]".into(), "LDS []".into()),
        "else it would still mean all"
    );
    assert_eq!(sent(&mut c), "");
}

#[test]
fn what_is_wanted_again_is_missing_from_one_list() {
    let mut c = client();
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "a");
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "b");
    c.on_connected();
    assert_eq!(sent(&mut c), "EDS [a b] node");
    c.unsubscribe(CLUSTER_LOAD_ASSIGNMENT, "a");
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "a");
    assert_eq!((sent(&mut c), sent(&mut c)), ("EDS [b]".into(), "EDS [b a]".into()));
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "c");
    c.unsubscribe(CLUSTER_LOAD_ASSIGNMENT, "c");
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "c");
    assert_eq!(sent(&mut c), "EDS [b a c]", "nobody had heard of it");
    assert_eq!(sent(&mut c), "");
}

#[test]
fn a_change_waits_for_the_answer_to_a_response_that_came() {
    let mut c = client();
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "a");
    c.on_connected();
    sent(&mut c);
    let received = receive(&mut c, response(1, CLUSTER_LOAD_ASSIGNMENT, vec![assignment("a")]));
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "b");
    assert_eq!(sent(&mut c), "", "without the nonce it would be stale");
    c.applied(received.id, vec![]);
    assert_eq!(sent(&mut c), "EDS [a b] at:v1 nonce:1");
}

#[test]
fn the_nonce_dies_with_the_stream_and_the_version_does_not() {
    let mut c = client();
    c.subscribe_all(CLUSTER);
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "a");
    c.on_connected();
    take(&mut c, response(1, CLUSTER, vec![cluster("a", "1"), cluster("b", "1")]));
    let unsettled = receive(&mut c, response(2, CLUSTER, vec![cluster("a", "2")]));
    c.on_disconnected(Instant::now());
    c.on_connected();
    assert_eq!(sent(&mut c), "CDS [] at:v1 node");
    assert_eq!(sent(&mut c), "EDS [a]");
    c.applied(unsettled.id, vec![]);
    assert_eq!(sent(&mut c), "", "there is nobody left to ACK");
    assert_eq!(take(&mut c, response(1, CLUSTER, vec![cluster("c", "1")])), ["c@v1", "a gone"]);
}

#[test]
fn a_type_that_nobody_asked_for_is_not_asked_for_by_its_ack() {
    let mut c = client();
    c.on_connected();
    assert_eq!(take(&mut c, response(1, CLUSTER, vec![cluster("a", "1")])), ["a@v1?"]);
    assert_eq!(sent(&mut c), "", "an empty list of clusters would ask for all of them");
    take(&mut c, response(2, CLUSTER_LOAD_ASSIGNMENT, vec![assignment("a")]));
    assert_eq!(sent(&mut c), "EDS [] at:v2 nonce:2 node");
}

#[test]
fn wrapped_resources_are_unwrapped() {
    let mut c = client();
    c.subscribe_all(CLUSTER);
    c.on_connected();
    let wrapped = discovery::Resource {
        name: "a".into(),
        version: "of its own".into(),
        resource: Some(cluster("a", "1")),
        ..Default::default()
    };
    let wrapped = Any::pack(&wrapped);
    assert_eq!(
        take(&mut c, response(1, CLUSTER, vec![wrapped, cluster("b", "1")])),
        ["a@of its own", "b@v1"]
    );
    assert_eq!(
        take(&mut c, response(2, CLUSTER, vec![cluster("a", "1"), cluster("b", "1")])),
        Vec::<String>::new()
    );
}
