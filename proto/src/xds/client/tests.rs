//! The client machine: one table or story per rule of the protocol.

use super::*;
use crate::types::core::Pipe;
use crate::types::discovery::{self, DeltaDiscoveryResponse};
use crate::types::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER};

fn client() -> Client {
    Client::incremental(
        Node {
            id: "me".into(),
            client_features: vec![schema::FEATURE_ON_DEMAND.into()],
            ..Default::default()
        },
        1,
    )
}

/// The next request in short form: `CDS +a -b held:c nonce:1 nack:text node`.
fn sent(client: &mut Client) -> String {
    let request = match client.next_request() {
        None => return String::new(),
        Some(Request::Incremental(request)) => request,
        Some(Request::StateOfTheWorld(request)) => panic!("{request:?}"),
    };
    let mut text = match request.type_url.as_str() {
        CLUSTER => "CDS".to_owned(),
        CLUSTER_LOAD_ASSIGNMENT => "EDS".to_owned(),
        LISTENER => "LDS".to_owned(),
        other => other.to_owned(),
    };
    request.resource_names_subscribe.iter().for_each(|name| text.push_str(&format!(" +{name}")));
    request.resource_names_unsubscribe.iter().for_each(|name| text.push_str(&format!(" -{name}")));
    request.initial_resource_versions.iter().for_each(|(name, v)| text.push_str(&format!(" {name}={v}")));
    if !request.response_nonce.is_empty() {
        text.push_str(&format!(" ack:{}", request.response_nonce));
    }
    if let Some(error) = request.error_detail {
        text.push_str(&format!(" nack:{}", error.message));
    }
    if request.node.is_some() {
        text.push_str(" node");
    }
    text
}

fn response(
    nonce: &str,
    type_url: &str,
    present: &[(&str, &str)],
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    let resource = |(name, version): &(&str, &str)| discovery::Resource {
        name: name.to_string(),
        version: version.to_string(),
        resource: Some(Any { type_url: type_url.into(), value: version.to_string().into_bytes().into() }),
        ..Default::default()
    };
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources: present.iter().map(resource).collect(),
        removed_resources: removed.iter().map(|name| name.to_string()).collect(),
        ..Default::default()
    }
}

fn receive(client: &mut Client, response: DeltaDiscoveryResponse) -> Received {
    client.on_response(Response::Incremental(response), Instant::now())
}

/// Updates in short form: `a=1`, `a=gone`, `a=text`, with `?` where nobody asked.
fn updates(received: &Received) -> Vec<String> {
    let show = |update: &Update| {
        let content = match &update.content {
            Content::Present { version, .. } => version.to_string(),
            Content::Absent => "gone".into(),
            Content::Failed(status) => status.message.clone(),
        };
        format!("{}={content}{}", update.name, if update.asked { "" } else { "?" })
    };
    received.updates.iter().map(show).collect()
}

fn refused(name: &str, reason: &str) -> Refused {
    Refused { name: name.into(), reason: reason.into() }
}

#[test]
fn subscriptions_before_and_after_the_first_request() {
    let mut c = client();
    c.subscribe(CLUSTER, "a");
    c.subscribe_all(LISTENER);
    assert_eq!(sent(&mut c), "", "not connected");
    c.on_connected();
    assert_eq!(sent(&mut c), "CDS +a node");
    assert_eq!(sent(&mut c), "LDS", "a lone wildcard names nothing");
    assert_eq!(sent(&mut c), "");
    c.subscribe(CLUSTER, "b");
    c.unsubscribe(CLUSTER, "a");
    c.subscribe(CLUSTER_LOAD_ASSIGNMENT, "b");
    c.unsubscribe(CLUSTER_LOAD_ASSIGNMENT, "b");
    assert_eq!(sent(&mut c), "CDS +b -a");
    assert_eq!(sent(&mut c), "", "wanted and given back before anyone heard of it");
    c.subscribe(LISTENER, "x");
    c.unsubscribe_all(LISTENER);
    assert_eq!(sent(&mut c), "LDS +x -*");
}

#[test]
fn an_update_counts_as_held_when_it_was_applied() {
    let mut c = client();
    c.subscribe(CLUSTER, "a");
    c.subscribe(CLUSTER, "b");
    c.on_connected();
    sent(&mut c);
    let received = receive(&mut c, response("1", CLUSTER, &[("a", "v1"), ("b", "v1")], &[]));
    assert_eq!(updates(&received), ["a=v1", "b=v1"]);
    assert_eq!(c.state(CLUSTER, "a"), Some(State::Waiting));
    assert_eq!(sent(&mut c), "", "no ACK before the outcome is known");
    c.applied(received.id, vec![refused("b", "field foo is not supported")]);
    assert_eq!(sent(&mut c), "CDS ack:1 nack:b: field foo is not supported");
    assert_eq!(c.state(CLUSTER, "a"), Some(State::Held("v1".into())));
    assert_eq!(c.state(CLUSTER, "b"), Some(State::Waiting));
    c.on_connected();
    assert_eq!(sent(&mut c), "CDS +a +b a=v1 node");
}

#[test]
fn what_is_held_at_the_same_version_is_no_update() {
    let mut c = client();
    c.subscribe(CLUSTER, "a");
    c.on_connected();
    let first = receive(&mut c, response("1", CLUSTER, &[("a", "v1")], &[]));
    let again = receive(&mut c, response("2", CLUSTER, &[("a", "v1")], &[]));
    assert_eq!(updates(&again), ["a=v1"], "the first one may still be refused");
    c.applied(first.id, vec![]);
    c.applied(again.id, vec![]);
    let third = receive(&mut c, response("3", CLUSTER, &[("a", "v1")], &[]));
    assert_eq!(updates(&third), Vec::<String>::new());
}

#[test]
fn responses_are_settled_in_the_order_of_arrival() {
    let mut c = client();
    c.subscribe(CLUSTER, "a");
    c.on_connected();
    sent(&mut c);
    let first = receive(&mut c, response("1", CLUSTER, &[("a", "v1")], &[]));
    let second = receive(&mut c, response("2", CLUSTER, &[("a", "v2")], &[]));
    let other_type = receive(&mut c, response("3", LISTENER, &[], &[]));
    c.applied(second.id, vec![]);
    c.applied(other_type.id, vec![]);
    assert_eq!(sent(&mut c), "LDS ack:3", "types don't wait for each other");
    assert_eq!(sent(&mut c), "");
    c.applied(first.id, vec![]);
    c.applied(first.id, vec![refused("a", "too late to say so")]);
    assert_eq!(
        (sent(&mut c), sent(&mut c), sent(&mut c)),
        ("CDS ack:1".into(), "CDS ack:2".into(), String::new())
    );
    assert_eq!(c.state(CLUSTER, "a"), Some(State::Held("v2".into())));
}

#[test]
fn a_change_back_while_the_change_is_being_applied_is_an_update() {
    let mut c = client();
    c.subscribe(CLUSTER, "a");
    c.on_connected();
    let first = receive(&mut c, response("1", CLUSTER, &[("a", "v1")], &[]));
    c.applied(first.id, vec![]);
    let change = receive(&mut c, response("2", CLUSTER, &[("a", "v2")], &[]));
    let back = receive(&mut c, response("3", CLUSTER, &[("a", "v1")], &[]));
    assert_eq!(updates(&back), ["a=v1"], "held at v1, but v2 is on its way into force");
    c.applied(change.id, vec![]);
    c.applied(back.id, vec![]);
    assert_eq!(c.state(CLUSTER, "a"), Some(State::Held("v1".into())));
}

#[test]
fn absence_is_known_and_what_nobody_asked_for_is_marked() {
    let mut c = client();
    c.subscribe(CLUSTER, "a");
    c.on_connected();
    let received = receive(&mut c, response("1", CLUSTER, &[("ahead", "v1")], &["a", "ghost"]));
    assert_eq!(updates(&received), ["ahead=v1?", "a=gone", "ghost=gone?"]);
    c.applied(received.id, vec![]);
    assert_eq!(c.state(CLUSTER, "a"), Some(State::Absent));
    assert_eq!(c.state(CLUSTER, "ahead"), None);
    c.subscribe(CLUSTER, "ahead");
    let asked = receive(&mut c, response("2", CLUSTER, &[("ahead", "v1")], &[]));
    assert_eq!(updates(&asked), ["ahead=v1"]);
}

#[test]
fn errors_of_single_resources() {
    let mut c = client();
    c.subscribe(CLUSTER, "a");
    c.subscribe(CLUSTER, "b");
    let error = |name: &str, code| ResourceError {
        resource_name: Some(discovery::ResourceName { name: name.into() }),
        error_detail: Some(rpc::Status { code, message: "busy".into(), details: vec![] }),
    };
    let mut message = response("1", CLUSTER, &[], &[]);
    message.resource_errors = vec![error("a", 5), error("b", 14)];
    let received = receive(&mut c, message);
    assert_eq!(updates(&received), ["a=gone", "b=busy"]);
    c.applied(received.id, vec![]);
    assert_eq!((c.state(CLUSTER, "a"), c.state(CLUSTER, "b")), (Some(State::Absent), Some(State::Waiting)));
    assert!(is_transient(&rpc::Status { code: 14, ..Default::default() }));
    assert!(!is_transient(&rpc::Status { code: 7, ..Default::default() }));
}

#[test]
fn malformed_responses_are_refused_by_name() {
    let mut c = client();
    c.subscribe(CLUSTER, "a");
    c.on_connected();
    sent(&mut c);
    let mut message = response("1", CLUSTER, &[("a", "v1"), ("a", "v2"), ("b", "v1")], &[]);
    message.resources[2].resource = Some(Any::pack(&Pipe::default()));
    let received = receive(&mut c, message);
    assert_eq!(updates(&received), Vec::<String>::new());
    c.applied(received.id, vec![]);
    let nack = sent(&mut c);
    assert!(nack.starts_with("CDS ack:1 nack:a: is twice in one response; b: is a type.googleapis.com/envoy.config.core.v3.Pipe"), "{nack}");
}

#[test]
fn an_alias_that_was_asked_for_stands_for_the_resource() {
    let mut c = client();
    c.subscribe(CLUSTER, "80/short");
    let mut message = response("1", CLUSTER, &[("80/long", "v1")], &[]);
    message.resources[0].aliases = vec!["80/short".into(), "80/other".into()];
    assert_eq!(updates(&receive(&mut c, message)), ["80/short=v1"]);
}

#[test]
fn a_resource_without_body_is_absence_or_a_heartbeat() {
    let mut c = client();
    c.subscribe(CLUSTER, "a");
    let bare = |nonce: &str| {
        let mut message = response(nonce, CLUSTER, &[("a", "v1")], &[]);
        message.resources[0].resource = None;
        message
    };
    let received = receive(&mut c, bare("1"));
    assert_eq!(updates(&received), ["a=gone"]);
    c.applied(received.id, vec![]);
    let received = receive(&mut c, response("2", CLUSTER, &[("a", "v1")], &[]));
    c.applied(received.id, vec![]);
    assert_eq!(updates(&receive(&mut c, bare("3"))), Vec::<String>::new());
}

#[test]
fn a_break_forgets_nothing_but_the_acks() {
    let mut c = client();
    c.subscribe_all(CLUSTER);
    c.subscribe(CLUSTER, "a");
    c.on_connected();
    assert_eq!(sent(&mut c), "CDS +* +a node");
    let before = receive(&mut c, response("1", CLUSTER, &[("a", "v1"), ("b", "v1")], &[]));
    let now = Instant::now();
    assert!(c.on_disconnected(now) > now);
    assert_eq!(sent(&mut c), "");
    c.on_connected();
    assert_eq!(sent(&mut c), "CDS +* +a a= b= node", "what becomes of them is not known yet: tell us again");
    c.applied(before.id, vec![]);
    assert_eq!(sent(&mut c), "", "the nonce died with its stream");
    c.on_disconnected(now);
    c.on_connected();
    assert_eq!(sent(&mut c), "CDS +* +a a=v1 b=v1 node");
}

#[test]
fn what_was_dropped_and_wanted_again_is_not_taken_for_held() {
    let mut c = client();
    c.subscribe(CLUSTER, "a");
    c.on_connected();
    let old = receive(&mut c, response("1", CLUSTER, &[("a", "v1")], &[]));
    c.unsubscribe(CLUSTER, "a");
    c.subscribe(CLUSTER, "a");
    c.applied(old.id, vec![]);
    assert_eq!(c.state(CLUSTER, "a"), Some(State::Waiting));
    assert_eq!(updates(&receive(&mut c, response("2", CLUSTER, &[("a", "v1")], &[]))), ["a=v1"]);
}

#[test]
fn the_server_confirms_features_on_each_stream_anew() {
    let mut c = client();
    c.on_connected();
    assert_eq!(c.confirms(schema::FEATURE_ON_DEMAND), None);
    let mut message = response("1", CLUSTER, &[], &[]);
    let features = vec![schema::FEATURE_ON_DEMAND.into(), "other".into()];
    message.control_plane = Some(ControlPlaneIdentity { features, ..Default::default() }.to_control_plane());
    receive(&mut c, message);
    assert_eq!(c.confirms(schema::FEATURE_ON_DEMAND), Some(true));
    assert_eq!(c.confirms("other"), Some(false), "we never announced it");
    c.on_disconnected(Instant::now());
    c.on_connected();
    assert_eq!(c.confirms(schema::FEATURE_ON_DEMAND), None);
    receive(&mut c, response("1", CLUSTER, &[], &[]));
    assert_eq!(c.confirms(schema::FEATURE_ON_DEMAND), Some(false));
}

#[test]
fn the_text_of_a_nack_is_bounded() {
    let all: Vec<Refused> = (0..1000).map(|i| refused(&format!("cluster-{i}"), &"x".repeat(100))).collect();
    let message = nack(&all).unwrap().message;
    assert!(message.len() < MAX_NACK_TEXT + 100, "{}", message.len());
    assert!(message.starts_with("cluster-0: xx") && message.ends_with(" more"), "{message}");
}

/// Time to live, in both variants: at each moment something comes, or what has run out is asked for.
#[test]
fn time_to_live() {
    enum Then {
        /// The resource, with so many seconds to live.
        Comes(Option<i64>),
        /// A new content of it that is refused.
        IsRefused(i64),
        /// A resource without content.
        Heartbeat(Option<i64>),
        /// Nothing ran out.
        Stays,
        RunsOut,
    }
    use Then::{Comes, Heartbeat, IsRefused, RunsOut, Stays};
    let stories: &[(&str, &[(u64, Then)])] = &[
        ("none lives for ever", &[(0, Comes(None)), (1000, Stays)]),
        ("it runs out", &[(0, Comes(Some(10))), (9, Stays), (10, RunsOut), (11, Stays)]),
        ("heartbeats keep it", &[(0, Comes(Some(10))), (9, Heartbeat(Some(10))), (18, Stays), (19, RunsOut)]),
        ("a heartbeat may shorten it", &[(0, Comes(Some(10))), (1, Heartbeat(Some(2))), (3, RunsOut)]),
        (
            "the same again keeps it",
            &[(0, Comes(Some(10))), (9, Comes(Some(10))), (18, Stays), (19, RunsOut)],
        ),
        ("the same again without one lifts it", &[(0, Comes(Some(10))), (9, Comes(None)), (1000, Stays)]),
        ("it may come later", &[(0, Comes(None)), (9, Comes(Some(1))), (10, RunsOut)]),
        ("what is refused changes nothing", &[(0, Comes(Some(10))), (5, IsRefused(100)), (10, RunsOut)]),
        (
            "a late heartbeat revives nothing",
            &[(0, Comes(Some(1))), (1, RunsOut), (2, Heartbeat(Some(9))), (99, Stays)],
        ),
        (
            "it may come again",
            &[(0, Comes(Some(1))), (1, RunsOut), (2, Comes(Some(9))), (10, Stays), (11, RunsOut)],
        ),
    ];
    for (variant, by_name) in [
        (Variant::Incremental, true),
        (Variant::Incremental, false),
        (Variant::StateOfTheWorld, true),
        (Variant::StateOfTheWorld, false),
    ] {
        for (story, moments) in stories {
            let place = format!("{story} ({variant:?}, by name: {by_name})");
            let mut c = Client::new(variant, Node { id: "me".into(), ..Default::default() }, 1);
            if by_name {
                c.subscribe(CLUSTER, "a");
            } else {
                c.subscribe_all(CLUSTER);
            }
            c.on_connected();
            let start = Instant::now();
            for (seconds, then) in *moments {
                let now = start + Duration::from_secs(*seconds);
                let body = |text: &str| {
                    let name = "a".to_owned();
                    Any::pack(&crate::types::cluster::Cluster {
                        name,
                        alt_stat_name: text.into(),
                        ..Default::default()
                    })
                };
                let (ttl, resource) = match then {
                    Comes(ttl) => (*ttl, Some(body("good"))),
                    IsRefused(ttl) => (Some(*ttl), Some(body("bad"))),
                    Heartbeat(ttl) => (*ttl, None),
                    Stays | RunsOut => {
                        let names: Vec<Name> = c.expire(now).into_iter().flat_map(|e| e.names).collect();
                        let expected: &[Name] = if matches!(then, RunsOut) { &["a".into()] } else { &[] };
                        assert_eq!(names, expected, "{place} at {seconds}");
                        assert!(
                            !matches!(then, RunsOut) || c.held(CLUSTER).count() == 0,
                            "{place} at {seconds}"
                        );
                        continue;
                    }
                };
                let version = resource
                    .as_ref()
                    .map_or_else(String::new, |body| crate::xds::Version::of(body).to_string());
                let ttl = ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
                let resource =
                    discovery::Resource { name: "a".into(), version, resource, ttl, ..Default::default() };
                let response = match variant {
                    Variant::Incremental => Response::Incremental(DeltaDiscoveryResponse {
                        type_url: CLUSTER.into(),
                        nonce: "n".into(),
                        resources: vec![resource],
                        ..Default::default()
                    }),
                    Variant::StateOfTheWorld => Response::StateOfTheWorld(discovery::DiscoveryResponse {
                        type_url: CLUSTER.into(),
                        nonce: "n".into(),
                        resources: vec![Any::pack(&resource)],
                        ..Default::default()
                    }),
                };
                let received = c.on_response(response, now);
                let bad = matches!(then, IsRefused(_));
                c.applied(received.id, bad.then(|| refused("a", "bad")).into_iter().collect());
            }
        }
    }
}

#[test]
fn a_heartbeat_keeps_what_is_still_being_applied() {
    let mut c = client();
    c.subscribe(CLUSTER, "a");
    c.on_connected();
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    let with_ttl = |nonce: &str, mut message: DeltaDiscoveryResponse, body: bool| {
        message.nonce = nonce.into();
        message.resources[0].ttl = Some(prost_types::Duration { seconds: 10, nanos: 0 });
        message.resources[0].resource.take_if(|_| !body);
        Response::Incremental(message)
    };
    let message = response("", CLUSTER, &[("a", "v1")], &[]);
    let first = c.on_response(with_ttl("1", message.clone(), true), start);
    let beat = c.on_response(with_ttl("2", message, false), start + 9 * second);
    assert_eq!(updates(&beat), Vec::<String>::new(), "it is no word of absence");
    c.applied(first.id, vec![]);
    c.applied(beat.id, vec![]);
    assert_eq!(c.deadline(), Some(start + 19 * second));
    c.unsubscribe(CLUSTER, "a");
    assert_eq!(c.deadline(), None, "nobody waits for what is not wanted");
}
