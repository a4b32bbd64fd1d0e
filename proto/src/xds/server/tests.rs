//! Each row of the protocol's tables, as a conversation: requests in, responses out in the short form `CDS +new -removed !error`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;
use crate::any::Any;
use crate::types::core::Pipe;
use crate::types::discovery::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::types::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, VIRTUAL_HOST};
use crate::xds::Version;

/// A stream, the world that the generators would see, and a clock.
struct Rig {
    stream: Stream,
    world: BTreeMap<(&'static str, String), u32>,
    now: Instant,
    last_nonce: BTreeMap<String, String>,
}

fn node(features: &[&str]) -> Option<Node> {
    let client_features = features.iter().map(|f| f.to_string()).collect();
    Some(Node { id: "sidecar~1.1.1.1~a.b~c".into(), client_features, ..Default::default() })
}

fn resource(type_url: &str, name: &str, content: u32) -> Resource {
    let mut body = Any::pack(&Pipe { path: format!("{name}:{content}") });
    body.type_url = type_url.to_owned();
    Resource::from_any(name, body)
}

impl Rig {
    fn new(stream: Stream) -> Self {
        Self { stream, world: BTreeMap::new(), now: Instant::now(), last_nonce: BTreeMap::new() }
    }

    fn incremental() -> Self {
        Self::new(Stream::incremental(Options::default()))
    }

    fn sotw() -> Self {
        Self::new(Stream::state_of_the_world(Options::default()))
    }

    /// Sets resources in the world without telling the stream.
    fn exist(&mut self, type_url: &'static str, names: &[&str]) {
        self.world.extend(names.iter().map(|name| ((type_url, name.to_string()), 1)));
    }

    /// Changes one resource (`None` removes it) and tells the stream.
    fn change(&mut self, type_url: &'static str, name: &str, content: Option<u32>) {
        match content {
            Some(content) => self.world.insert((type_url, name.to_owned()), content),
            None => self.world.remove(&(type_url, name.to_owned())),
        };
        let resources = content.map(|content| resource(type_url, name, content)).into_iter().collect();
        self.stream.push(type_url, Scope::names([name]), resources);
    }

    fn generate(&self, want: &Want) -> Vec<Resource> {
        let of_type = self.world.iter().filter(|((type_url, _), _)| **type_url == *want.type_url);
        let wanted = |name: &str| match &want.scope {
            Scope::All => true,
            Scope::Names(names) => names.iter().any(|n| **n == *name),
        };
        of_type.filter(|((_, name), _)| wanted(name)).map(|((t, name), c)| resource(t, name, *c)).collect()
    }

    /// Everything that the stream has to send now.
    fn sent(&mut self) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some(step) = self.stream.next(self.now) {
            match step {
                Step::Generate(want) => {
                    let resources = self.generate(&want);
                    self.stream.answer(want, resources);
                }
                Step::Send(response) => sent.push(self.show(response)),
            }
        }
        sent
    }

    fn show(&mut self, response: Response) -> String {
        let name_of = |any: &Any| {
            let pipe = <Pipe as prost::Message>::decode(any.value.clone()).unwrap();
            pipe.path.split(':').next().unwrap().to_owned()
        };
        let (type_url, nonce, resources, removed, errors) = match response {
            Response::Incremental(r) => {
                let names: Vec<String> = r.resources.iter().map(|r| r.name.clone()).collect();
                for resource in &r.resources {
                    assert_eq!(
                        Version::parse(&resource.version),
                        Some(Version::of(resource.resource.as_ref().unwrap()))
                    );
                }
                (r.type_url, r.nonce, names, r.removed_resources, r.resource_errors)
            }
            Response::StateOfTheWorld(r) => {
                (r.type_url, r.nonce, r.resources.iter().map(name_of).collect(), vec![], r.resource_errors)
            }
        };
        assert_ne!(self.last_nonce.insert(type_url.clone(), nonce.clone()), Some(nonce), "nonces are unique");
        let mut text = short(&type_url).to_owned();
        resources.iter().for_each(|name| text.push_str(&format!(" +{name}")));
        removed.iter().for_each(|name| text.push_str(&format!(" -{name}")));
        errors.iter().for_each(|e| text.push_str(&format!(" !{}", e.resource_name.as_ref().unwrap().name)));
        text
    }

    fn delta(&mut self, request: DeltaDiscoveryRequest) -> Reaction {
        self.stream.on_request(Request::Incremental(request), self.now).unwrap()
    }

    /// An incremental change of subscription: `+a -b`.
    fn ask(&mut self, type_url: &str, change: &str) -> Vec<String> {
        let pick = |sign: char| {
            change.split_whitespace().filter_map(|w| w.strip_prefix(sign)).map(String::from).collect()
        };
        self.delta(DeltaDiscoveryRequest {
            node: node(&[]),
            type_url: type_url.into(),
            resource_names_subscribe: pick('+'),
            resource_names_unsubscribe: pick('-'),
            ..Default::default()
        });
        self.sent()
    }

    fn delta_ack(&mut self, type_url: &str, error: Option<&str>) -> Verdict {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.into(),
            response_nonce: self.last_nonce[type_url].clone(),
            error_detail: error.map(status),
            ..Default::default()
        };
        self.delta(request).verdict
    }

    /// A state-of-the-world request with the latest nonce.
    fn list(&mut self, type_url: &str, names: &[&str]) -> Vec<String> {
        let nonce = self.last_nonce.get(type_url).cloned().unwrap_or_default();
        self.list_with(type_url, names, &nonce, None);
        self.sent()
    }

    fn list_with(&mut self, type_url: &str, names: &[&str], nonce: &str, error: Option<&str>) -> Reaction {
        let request = DiscoveryRequest {
            node: node(&[]),
            type_url: type_url.into(),
            resource_names: names.iter().map(|n| n.to_string()).collect(),
            response_nonce: nonce.into(),
            error_detail: error.map(status),
            ..Default::default()
        };
        self.stream.on_request(Request::StateOfTheWorld(request), self.now).unwrap()
    }
}

fn status(text: &str) -> rpc::Status {
    rpc::Status { code: 0, message: text.into(), details: vec![] }
}

fn short(type_url: &str) -> &str {
    match type_url {
        CLUSTER => "CDS",
        CLUSTER_LOAD_ASSIGNMENT => "EDS",
        LISTENER => "LDS",
        ROUTE_CONFIGURATION => "RDS",
        VIRTUAL_HOST => "VHDS",
        other => other,
    }
}

#[test]
fn the_first_request_must_say_who_it_is() {
    let mut rig = Rig::incremental();
    let request = DeltaDiscoveryRequest { type_url: CLUSTER.into(), ..Default::default() };
    let refused = rig.stream.on_request(Request::Incremental(request), rig.now);
    assert_eq!(refused, Err(ProtocolError::NoNode));
    let request = DeltaDiscoveryRequest { node: node(&[]), ..Default::default() };
    assert_eq!(rig.stream.on_request(Request::Incremental(request), rig.now), Err(ProtocolError::NoType));
    let request = Request::StateOfTheWorld(DiscoveryRequest::default());
    assert_eq!(rig.stream.on_request(request, rig.now), Err(ProtocolError::WrongVariant));
}

#[test]
fn types_per_stream_are_bounded() {
    let mut rig = Rig::incremental();
    for i in 0..MAX_TYPES {
        rig.ask(&format!("type{i}"), "+a");
    }
    let request = DeltaDiscoveryRequest { type_url: "one more".into(), ..Default::default() };
    assert_eq!(
        rig.stream.on_request(Request::Incremental(request), rig.now),
        Err(ProtocolError::TooManyTypes)
    );
}

#[test]
fn delta_wildcard_table() {
    // (requests, what each is answered)
    let cases: &[(&str, &[(&str, &str)])] = &[
        ("legacy wildcard", &[("", "CDS +a +b")]),
        (
            "legacy wildcard, then a name: the wildcard stays",
            &[("", "CDS +a +b"), ("+a", "CDS +a"), ("-a", "CDS +a")],
        ),
        ("wildcard, a name that is not there", &[("+*", "CDS +a +b"), ("+x", "CDS -x"), ("-x", "CDS -x")]),
        ("wildcard given back", &[("+* +a", "CDS +a +b"), ("-*", ""), ("+b", "CDS +b")]),
        ("named once: an empty list is nothing", &[("+a", "CDS +a"), ("-a", ""), ("", "")]),
        ("asked for and given back at once: no subscription", &[("+* -*", "CDS")]),
        ("in both lists: not wanted", &[("+a -a", "CDS"), ("", "")]),
        ("asked again: answered again", &[("+a", "CDS +a"), ("+a", "CDS +a")]),
        ("phantom", &[("+a", "CDS +a"), ("-x", "")]),
        ("absent", &[("+x", "CDS -x")]),
    ];
    for (what, conversation) in cases {
        let mut rig = Rig::incremental();
        rig.exist(CLUSTER, &["a", "b"]);
        for (request, expected) in *conversation {
            let expected: Vec<String> =
                [*expected].iter().filter(|e| !e.is_empty()).map(|e| e.to_string()).collect();
            assert_eq!(rig.ask(CLUSTER, request), expected, "{what}: {request:?}");
        }
    }
}

#[test]
fn types_without_wildcard_answer_an_empty_first_request_with_nothing() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER_LOAD_ASSIGNMENT, &["a"]);
    assert_eq!(rig.ask(CLUSTER_LOAD_ASSIGNMENT, ""), ["EDS"]);
}

#[test]
fn grpc_clients_never_get_everything() {
    let mut rig = Rig::sotw();
    rig.exist(LISTENER, &["a", "b"]);
    let grpc = Node { user_agent_name: "gRPC C-core Linux".into(), ..node(&[]).unwrap() };
    let request = DiscoveryRequest { node: Some(grpc), type_url: LISTENER.into(), ..Default::default() };
    rig.stream.on_request(Request::StateOfTheWorld(request), rig.now).unwrap();
    assert_eq!(rig.sent(), Vec::<String>::new());
}

#[test]
fn changes_reach_only_those_who_want_them_and_only_once() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER, &["a"]);
    rig.ask(CLUSTER, "+a +x");
    rig.change(CLUSTER, "other", Some(1));
    rig.change(CLUSTER, "a", Some(1));
    assert_eq!(rig.sent(), Vec::<String>::new());
    rig.change(CLUSTER, "a", Some(2));
    rig.change(CLUSTER, "x", Some(1));
    assert_eq!(rig.sent(), ["CDS +a +x"]);
    rig.change(CLUSTER, "x", None);
    assert_eq!(rig.sent(), ["CDS -x"]);
    rig.change(CLUSTER, "x", None);
    assert_eq!(rig.sent(), Vec::<String>::new());
    rig.change(CLUSTER, "a", Some(3));
    rig.change(CLUSTER, "a", Some(2));
    assert_eq!(rig.sent(), Vec::<String>::new(), "changed and changed back before it was sent");
}

#[test]
fn a_push_goes_out_in_order_and_removals_go_last_in_reverse() {
    let mut rig = Rig::incremental();
    let types = [CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, VIRTUAL_HOST];
    for type_url in types {
        rig.exist(type_url, &["old"]);
        rig.ask(type_url, "+old +new");
        rig.delta_ack(type_url, None);
    }
    for type_url in types.iter().rev() {
        rig.change(type_url, "old", None);
        rig.change(type_url, "new", Some(1));
    }
    let additions = ["CDS +new", "EDS +new", "LDS +new", "RDS +new", "VHDS +new"];
    assert_eq!(rig.sent(), [&additions[..], &["VHDS -old", "RDS -old", "LDS -old"]].concat());
    // The client may still use the old routes; clusters go when it has said otherwise.
    for type_url in [LISTENER, ROUTE_CONFIGURATION] {
        rig.delta_ack(type_url, None);
        assert_eq!(rig.sent(), Vec::<String>::new());
    }
    rig.delta_ack(VIRTUAL_HOST, None);
    assert_eq!(rig.sent(), ["EDS -old", "CDS -old"]);
}

#[test]
fn removals_wait_for_a_silent_client_only_so_long() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER, &["a"]);
    rig.exist(ROUTE_CONFIGURATION, &["r"]);
    rig.ask(CLUSTER, "");
    rig.ask(ROUTE_CONFIGURATION, "+r");
    rig.change(ROUTE_CONFIGURATION, "r", Some(2));
    rig.change(CLUSTER, "a", None);
    assert_eq!(rig.sent(), ["RDS +r"]);
    let deadline = rig.stream.deadline().unwrap();
    assert_eq!(deadline, rig.now + REMOVAL_WAIT);
    rig.now = deadline - Duration::from_millis(1);
    assert_eq!(rig.sent(), Vec::<String>::new());
    rig.now = deadline;
    assert_eq!(rig.sent(), ["CDS -a"]);
    assert_eq!(rig.stream.deadline(), None);
}

#[test]
fn a_removal_that_is_taken_back_is_not_sent() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER, &["a"]);
    rig.ask(CLUSTER, "");
    rig.change(CLUSTER, "a", None);
    rig.change(CLUSTER, "a", Some(1));
    assert_eq!(rig.sent(), Vec::<String>::new());
}

#[test]
fn a_nack_waits_for_a_change_and_then_repeats_all_that_was_refused() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER, &["bad", "good"]);
    rig.ask(CLUSTER, "");
    let Verdict::Nack(refusal) = rig.delta_ack(CLUSTER, Some("bad: no")) else { panic!("a NACK") };
    assert_eq!(refusal.message, "bad: no");
    assert_eq!(rig.stream.status(CLUSTER).unwrap().refusal, Some(refusal));
    assert_eq!(rig.sent(), Vec::<String>::new());
    rig.change(CLUSTER, "bad", Some(1));
    assert_eq!(rig.sent(), Vec::<String>::new(), "the same content again is no fix");
    rig.change(CLUSTER, "bad", Some(0));
    let sent = rig.sent();
    assert_eq!(sent, ["CDS +bad +good"]);
    rig.delta_ack(CLUSTER, None);
    assert_eq!(rig.stream.status(CLUSTER).unwrap().refusal, None);
    rig.change(CLUSTER, "bad", Some(2));
    assert_eq!(rig.sent(), ["CDS +bad"]);
}

#[test]
fn what_was_refused_with_something_bad_comes_again_once_that_is_gone() {
    for end in ["removed", "given back"] {
        let mut rig = Rig::incremental();
        rig.exist(CLUSTER, &["bad", "good"]);
        assert_eq!(rig.ask(CLUSTER, "+bad +good +none"), ["CDS +bad +good -none"]);
        rig.delta_ack(CLUSTER, Some("no"));
        if end == "removed" {
            rig.change(CLUSTER, "bad", None);
            assert_eq!(rig.sent(), ["CDS +good -none", "CDS -bad"], "{end}");
        } else {
            assert_eq!(rig.ask(CLUSTER, "-bad"), ["CDS +good -none"], "{end}");
        }
    }
}

#[test]
fn a_nack_that_crosses_the_removal_of_what_is_bad_repeats_the_rest() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER, &["bad", "good"]);
    rig.exist(ROUTE_CONFIGURATION, &["r"]);
    rig.ask(CLUSTER, "");
    rig.ask(ROUTE_CONFIGURATION, "+r");
    rig.change(CLUSTER, "bad", None);
    assert_eq!(rig.sent(), Vec::<String>::new(), "the removal waits for the routes");
    rig.delta_ack(CLUSTER, Some("no"));
    assert_eq!(rig.sent(), Vec::<String>::new());
    rig.delta_ack(ROUTE_CONFIGURATION, None);
    assert_eq!(rig.sent(), ["CDS -bad", "CDS +good"]);
}

#[test]
fn a_nack_that_crosses_its_cure_repeats_the_rest() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER, &["bad", "good"]);
    rig.ask(CLUSTER, "");
    let refused = rig.last_nonce[CLUSTER].clone();
    rig.change(CLUSTER, "bad", Some(2));
    assert_eq!(rig.sent(), ["CDS +bad"]);
    rig.last_nonce.insert(CLUSTER.into(), refused);
    rig.delta_ack(CLUSTER, Some("no"));
    assert_eq!(rig.sent(), ["CDS +good"]);
}

#[test]
fn a_stale_nonce_does_not_lose_delta_subscriptions() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER, &["a", "b"]);
    rig.ask(CLUSTER, "+a");
    let request = DeltaDiscoveryRequest {
        type_url: CLUSTER.into(),
        response_nonce: "from another life".into(),
        resource_names_subscribe: vec!["b".into()],
        ..Default::default()
    };
    assert_eq!(rig.delta(request).verdict, Verdict::Stale);
    assert_eq!(rig.sent(), ["CDS +b"]);
}

#[test]
fn acks_say_how_long_they_took_and_are_not_answered() {
    let mut rig = Rig::incremental();
    rig.ask(CLUSTER, "");
    rig.now += Duration::from_millis(7);
    assert_eq!(rig.delta_ack(CLUSTER, None), Verdict::Ack { took: Duration::from_millis(7) });
    assert_eq!(rig.sent(), Vec::<String>::new());
    let status = rig.stream.status(CLUSTER).unwrap();
    assert_eq!((status.unacknowledged, status.nonce_acknowledged), (0, status.nonce_sent));
}

#[test]
fn reconnecting_clients_get_what_differs_and_lose_ghosts() {
    // (type, names asked for beside what is held, answers)
    let cases: &[(&'static str, &[&str], &[&str])] = &[
        (CLUSTER_LOAD_ASSIGNMENT, &[], &["EDS +changed", "EDS -ghost"]),
        (CLUSTER_LOAD_ASSIGNMENT, &["same", "new"], &["EDS +changed +new", "EDS -ghost"]),
        (CLUSTER, &[], &["CDS +changed +new", "CDS -ghost"]),
        (CLUSTER, &["*"], &["CDS +changed +new", "CDS -ghost"]),
        (CLUSTER, &["*", "same"], &["CDS +changed +new", "CDS -ghost"]),
        (CLUSTER, &["same", "x"], &["CDS +changed -x", "CDS -ghost"]),
    ];
    for (type_url, asked, answers) in cases {
        let mut rig = Rig::incremental();
        rig.exist(type_url, &["same", "changed", "new"]);
        let version = |name| resource(type_url, name, 1).version.to_string();
        let versions = [("same", version("same")), ("changed", "other".into()), ("ghost", version("ghost"))];
        rig.delta(DeltaDiscoveryRequest {
            node: node(&[]),
            type_url: type_url.to_string(),
            resource_names_subscribe: asked.iter().map(|name| name.to_string()).collect(),
            initial_resource_versions: versions.map(|(n, v)| (n.to_owned(), v)).into(),
            ..Default::default()
        });
        let (at_once, later) = answers.split_at(1);
        assert_eq!(rig.sent(), at_once, "{type_url} {asked:?}");
        // The client's routes may still use what is gone, and it has not asked for them yet.
        rig.now = rig.stream.deadline().unwrap();
        assert_eq!(rig.sent(), later, "{type_url} {asked:?}");
    }
}

#[test]
fn a_changed_cluster_brings_its_endpoints_again() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER, &["a", "b"]);
    rig.exist(CLUSTER_LOAD_ASSIGNMENT, &["a", "b"]);
    rig.ask(CLUSTER, "");
    assert_eq!(rig.ask(CLUSTER_LOAD_ASSIGNMENT, "+a +b"), ["EDS +a +b"]);
    rig.change(CLUSTER, "a", Some(2));
    assert_eq!(rig.sent(), ["CDS +a", "EDS +a"]);
    // Endpoints asked for before clusters, as Envoy does after a reconnect.
    let mut rig = Rig::sotw();
    rig.exist(CLUSTER, &["a"]);
    rig.exist(CLUSTER_LOAD_ASSIGNMENT, &["a"]);
    assert_eq!(rig.list(CLUSTER_LOAD_ASSIGNMENT, &["a"]), ["EDS +a"]);
    assert_eq!(rig.list(CLUSTER, &[]), ["CDS +a"]);
    assert_eq!(rig.list(CLUSTER_LOAD_ASSIGNMENT, &["a"]), ["EDS +a"]);
}

#[test]
fn an_answer_does_not_wait_for_the_ack_of_anything() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER, &["a"]);
    rig.ask(CLUSTER, "");
    for content in 2..100 {
        rig.change(CLUSTER, "a", Some(content));
        rig.sent();
    }
    assert_eq!(
        rig.stream.status(CLUSTER).unwrap().unacknowledged,
        MAX_UNACKNOWLEDGED,
        "pushes are merged from here on"
    );
    rig.exist(CLUSTER_LOAD_ASSIGNMENT, &["a"]);
    assert_eq!(
        rig.ask(CLUSTER_LOAD_ASSIGNMENT, "+a"),
        ["CDS +a", "EDS +a"],
        "what goes before it goes with it"
    );
    rig.delta_ack(CLUSTER, None);
    assert_eq!(rig.stream.status(CLUSTER).unwrap().unacknowledged, 0);
}

#[test]
fn what_is_pushed_ahead_goes_before_the_answer_and_is_not_a_subscription() {
    let mut rig = Rig::incremental();
    rig.delta(DeltaDiscoveryRequest {
        node: node(&[schema::FEATURE_ON_DEMAND]),
        type_url: VIRTUAL_HOST.into(),
        resource_names_subscribe: vec!["80/a".into()],
        ..Default::default()
    });
    let Some(Step::Generate(want)) = rig.stream.next(rig.now) else { panic!("a want") };
    rig.stream.answer(want, vec![resource(VIRTUAL_HOST, "80/a", 1)]);
    rig.stream.push_ahead(CLUSTER, vec![resource(CLUSTER, "c", 1)]);
    rig.stream.push_ahead(CLUSTER_LOAD_ASSIGNMENT, vec![resource(CLUSTER_LOAD_ASSIGNMENT, "c", 1)]);
    assert_eq!(rig.sent(), ["CDS +c", "EDS +c", "VHDS +80/a"]);
    rig.change(CLUSTER, "c", Some(2));
    assert_eq!(rig.sent(), Vec::<String>::new());
    assert_eq!(rig.delta_ack(CLUSTER, None), Verdict::Ack { took: Duration::ZERO });
    assert_eq!(rig.sent(), Vec::<String>::new(), "the ACK of it is no wish for everything");
    assert_eq!(rig.ask(CLUSTER, "+c"), ["CDS +c"]);
}

#[test]
fn what_is_asked_for_before_it_went_out_ahead_goes_once() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER, &["c"]);
    rig.delta(DeltaDiscoveryRequest {
        node: node(&[schema::FEATURE_ON_DEMAND]),
        type_url: VIRTUAL_HOST.into(),
        resource_names_subscribe: vec!["80/a".into()],
        ..Default::default()
    });
    let Some(Step::Generate(want)) = rig.stream.next(rig.now) else { panic!("a want") };
    rig.stream.answer(want, vec![resource(VIRTUAL_HOST, "80/a", 1)]);
    rig.stream.push_ahead(CLUSTER, vec![resource(CLUSTER, "c", 1), resource(CLUSTER, "d", 1)]);
    assert_eq!(rig.ask(CLUSTER, "+c"), ["CDS +c +d", "VHDS +80/a"]);
}

#[test]
fn features_are_confirmed_only_to_those_who_announce_them() {
    for (announced, confirmed) in [(&[schema::FEATURE_ON_DEMAND][..], true), (&[][..], false)] {
        let mut rig = Rig::incremental();
        rig.delta(DeltaDiscoveryRequest {
            node: node(announced),
            type_url: CLUSTER.into(),
            ..Default::default()
        });
        let Some(Step::Generate(want)) = rig.stream.next(rig.now) else { panic!("a want") };
        rig.stream.answer(want, vec![]);
        let Some(Step::Send(Response::Incremental(response))) = rig.stream.next(rig.now) else {
            panic!("a response")
        };
        let identity = ControlPlaneIdentity::from_control_plane(response.control_plane.as_ref()).unwrap();
        assert_eq!(identity.confirms(schema::FEATURE_ON_DEMAND), confirmed);
        rig.stream.push_ahead(CLUSTER_LOAD_ASSIGNMENT, vec![resource(CLUSTER_LOAD_ASSIGNMENT, "c", 1)]);
        assert_eq!(rig.stream.next(rig.now).is_some(), confirmed);
    }
}

#[test]
fn names_are_capped_and_the_refusal_is_no_absence() {
    let mut rig = Rig::new(Stream::incremental(Options { max_names: Some(2), ..Options::default() }));
    rig.exist(CLUSTER, &["a", "b", "c"]);
    assert_eq!(rig.ask(CLUSTER, "+a +b +c"), ["CDS +a +b !c"]);
    assert_eq!(rig.ask(CLUSTER, "-a +c"), ["CDS +c"], "what is given back makes room");
    assert!(!rig.stream.wants(CLUSTER, "a") && rig.stream.wants(CLUSTER, "c"));
}

#[test]
fn sotw_decision_table() {
    let mut rig = Rig::sotw();
    rig.exist(CLUSTER, &["a", "b"]);
    rig.exist(CLUSTER_LOAD_ASSIGNMENT, &["a", "b"]);
    // Nothing to ask yet, as Envoy says it.
    assert_eq!(rig.list(CLUSTER_LOAD_ASSIGNMENT, &[]), Vec::<String>::new());
    assert_eq!(rig.list(CLUSTER_LOAD_ASSIGNMENT, &["a"]), ["EDS +a"]);
    assert_eq!(rig.list(CLUSTER_LOAD_ASSIGNMENT, &["a"]), Vec::<String>::new(), "a plain ACK");
    assert_eq!(rig.list(CLUSTER_LOAD_ASSIGNMENT, &["a", "b"]), ["EDS +b"], "only what was added");
    assert_eq!(rig.list(CLUSTER_LOAD_ASSIGNMENT, &["b"]), Vec::<String>::new(), "names removed");
    assert_eq!(rig.list(CLUSTER_LOAD_ASSIGNMENT, &["b", "a"]), ["EDS +a"], "named again, sent again");
    assert_eq!(rig.list(CLUSTER_LOAD_ASSIGNMENT, &[]), Vec::<String>::new(), "all given back");
    rig.change(CLUSTER_LOAD_ASSIGNMENT, "a", Some(2));
    assert_eq!(rig.sent(), Vec::<String>::new());
    // A NACK is not answered, and a stale request is not either.
    assert_eq!(rig.list(CLUSTER, &[]), ["CDS +a +b"]);
    let nonce = rig.last_nonce[CLUSTER].clone();
    assert!(matches!(rig.list_with(CLUSTER, &[], &nonce, Some("no")).verdict, Verdict::Nack(_)));
    assert_eq!(rig.sent(), Vec::<String>::new());
    assert_eq!(rig.list_with(CLUSTER, &["a"], "elsewhere", None).verdict, Verdict::Stale);
    assert_eq!(rig.sent(), Vec::<String>::new());
    assert!(rig.stream.is_wildcard(CLUSTER));
}

#[test]
fn sotw_wildcard_table() {
    let cases: &[&[(&[&str], &str)]] = &[
        &[(&[], "LDS +a +b"), (&["*", "a"], "LDS +a +b"), (&["a"], "")],
        &[(&[], "LDS +a +b"), (&["a"], "LDS +a"), (&[], "")],
        &[(&["a"], "LDS +a"), (&["a", "b"], "LDS +a +b"), (&[], ""), (&[], "")],
        &[(&["*"], "LDS +a +b"), (&[], "")],
        &[(&["x"], "LDS !x")],
    ];
    for conversation in cases {
        let mut rig = Rig::sotw();
        rig.exist(LISTENER, &["a", "b"]);
        for (names, expected) in *conversation {
            let expected: Vec<String> =
                [*expected].iter().filter(|e| !e.is_empty()).map(|e| e.to_string()).collect();
            assert_eq!(rig.list(LISTENER, names), expected, "{names:?} in {conversation:?}");
        }
    }
}

#[test]
fn sotw_sends_again_what_a_stale_request_gave_back() {
    let mut rig = Rig::sotw();
    rig.exist(CLUSTER_LOAD_ASSIGNMENT, &["a", "b"]);
    rig.list(CLUSTER_LOAD_ASSIGNMENT, &["a", "b"]);
    let first = rig.last_nonce[CLUSTER_LOAD_ASSIGNMENT].clone();
    rig.list(CLUSTER_LOAD_ASSIGNMENT, &["a", "b"]);
    rig.change(CLUSTER_LOAD_ASSIGNMENT, "a", Some(2));
    assert_eq!(rig.sent(), ["EDS +a"]);
    // Sent before the second response came: "b" was given back, and so thrown away.
    assert_eq!(rig.list_with(CLUSTER_LOAD_ASSIGNMENT, &["a"], &first, None).verdict, Verdict::Stale);
    assert_eq!(rig.list(CLUSTER_LOAD_ASSIGNMENT, &["a", "b"]), ["EDS +b"]);
}

#[test]
fn a_name_that_vanishes_before_its_answer_was_sent_is_answered_absent() {
    let mut rig = Rig::incremental();
    rig.exist(CLUSTER, &["a"]);
    let names = vec!["a".to_owned()];
    let request = DeltaDiscoveryRequest {
        resource_names_subscribe: names,
        type_url: CLUSTER.into(),
        ..Default::default()
    };
    rig.delta(DeltaDiscoveryRequest { node: node(&[]), ..request });
    let Some(Step::Generate(want)) = rig.stream.next(rig.now) else { panic!("a want") };
    rig.stream.answer(want, vec![resource(CLUSTER, "a", 1)]);
    rig.change(CLUSTER, "a", None);
    assert_eq!(rig.sent(), ["CDS -a"]);
}

#[test]
fn sotw_removes_clusters_in_a_second_phase() {
    let mut rig = Rig::sotw();
    rig.exist(CLUSTER, &["old"]);
    rig.exist(ROUTE_CONFIGURATION, &["r"]);
    rig.list(CLUSTER, &[]);
    rig.list(CLUSTER, &[]);
    rig.list(ROUTE_CONFIGURATION, &["r"]);
    rig.list(ROUTE_CONFIGURATION, &["r"]);
    rig.change(CLUSTER, "old", None);
    rig.change(CLUSTER, "new", Some(1));
    rig.change(ROUTE_CONFIGURATION, "r", Some(2));
    assert_eq!(rig.sent(), ["CDS +old +new", "RDS +r"]);
    assert_eq!(rig.list(CLUSTER, &[]), Vec::<String>::new());
    assert_eq!(rig.list(ROUTE_CONFIGURATION, &["r"]), ["CDS +new !old"]);
}

#[test]
fn sotw_keeps_one_response_in_flight_and_merges_the_rest() {
    let mut rig = Rig::sotw();
    rig.exist(CLUSTER, &["a"]);
    rig.list(CLUSTER, &[]);
    for content in 2..1000 {
        rig.change(CLUSTER, "a", Some(content));
        rig.change(CLUSTER, "b", Some(content));
        assert_eq!(rig.sent(), Vec::<String>::new());
    }
    assert_eq!(rig.list(CLUSTER, &[]), ["CDS +a +b"]);
}

#[test]
fn unknown_types_are_answered_with_nothing_and_the_stream_stays() {
    let mut rig = Rig::incremental();
    assert_eq!(rig.ask("acme/Unknown", "+a"), ["acme/Unknown -a"]);
    assert_eq!(rig.ask("acme/Unknown", ""), Vec::<String>::new());
    let mut rig = Rig::sotw();
    assert_eq!(rig.list("acme/Unknown", &["a"]), ["acme/Unknown !a"]);
}

#[test]
fn nack_texts_are_cut_at_a_character() {
    let mut rig = Rig::incremental();
    rig.ask(CLUSTER, "");
    let Verdict::Nack(refusal) = rig.delta_ack(CLUSTER, Some(&"é".repeat(5000))) else { panic!("a NACK") };
    assert_eq!(refusal.message.len(), 4096);
}
