//! Two clients with the same owner: one over our incremental machine, one that speaks state of the world as Envoy does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use osier_proto::types::core::Node;
use osier_proto::types::discovery::{DiscoveryRequest, DiscoveryResponse};
use osier_proto::types::rpc;
use osier_proto::types::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, VIRTUAL_HOST};
use osier_proto::xds::Version;
use osier_proto::xds::client::{self, Content as News, Received, Refused, State};
use osier_proto::xds::server::{Request, Response};

use super::Kind;
use super::world::{TYPES, World, read, short};

/// A client that refuses what is bad, and perhaps all that came with it.
#[derive(Clone, Copy)]
pub struct Refuses {
    pub all: bool,
}

/// A client and its owner.
pub trait Client {
    /// Asks for what this kind of client asks for at its start.
    fn start(&mut self, kind: Kind);
    fn want(&mut self, type_url: &'static str, name: &str, wanted: bool);
    fn wants(&self, type_url: &str, name: &str) -> bool;
    fn connected(&mut self);
    fn disconnected(&mut self, now: Instant) -> Instant;
    fn request(&mut self) -> Option<Request>;
    /// A response came; it is applied at `when`, and refused in part if it is bad.
    fn deliver(&mut self, response: Response, when: Instant, refuses: Option<Refuses>);
    /// Applies what is due.
    fn settle(&mut self, now: Instant);
    /// Nothing waits to be applied.
    fn is_settled(&self) -> bool;
    /// What is in force.
    fn store(&self) -> &World;
    /// The machine's own account of what is held is the owner's.
    fn check_books(&self, world: &World);
}

pub struct Incremental {
    machine: client::Client,
    follows_clusters: bool,
    store: World,
    /// Responses by the time at which they are applied; those of a type stay in order.
    waiting: Vec<(Instant, Received, Option<Refuses>)>,
}

impl Incremental {
    pub fn new(node: Node, seed: u64) -> Self {
        let machine = client::Client::new(node, seed);
        Self { machine, follows_clusters: false, store: World::default(), waiting: Vec::new() }
    }

    fn apply(&mut self, received: Received, refuses: Option<Refuses>) {
        let is_bad = |update: &client::Update| match &update.content {
            News::Present { resource, .. } => refuses.is_some() && read(resource).1.bad,
            News::Absent | News::Failed(_) => false,
        };
        let refuses_all = refuses.is_some_and(|refuses| refuses.all) && received.updates.iter().any(is_bad);
        let mut refused = Vec::new();
        for update in received.updates {
            if refuses_all || is_bad(&update) {
                refused.push(Refused { name: update.name, reason: "bad".into() });
                continue;
            }
            // The owner may have given it back since it came.
            if !update.asked || !self.machine.wants(&received.type_url, &update.name) {
                continue;
            }
            match update.content {
                News::Present { version, resource } => {
                    let (name, content) = read(&resource);
                    assert_eq!(
                        (name.as_str(), Version::parse(&version)),
                        (&*update.name, Some(Version::of(&resource)))
                    );
                    self.store.set(&received.type_url, &name, Some(content));
                }
                News::Absent => self.store.set(&received.type_url, &update.name, None),
                News::Failed(status) => panic!("{}: {}", update.name, status.message),
            }
        }
        self.machine.applied(received.id, refused);
        if self.follows_clusters && &*received.type_url == CLUSTER {
            self.follow_clusters();
        }
    }

    /// As Envoy: endpoints are wanted for the clusters that are there.
    fn follow_clusters(&mut self) {
        for name in World::all_names(CLUSTER_LOAD_ASSIGNMENT) {
            let wanted = self.store.get(CLUSTER, &name).is_some();
            if wanted != self.machine.wants(CLUSTER_LOAD_ASSIGNMENT, &name) {
                self.want(CLUSTER_LOAD_ASSIGNMENT, &name, wanted);
            }
        }
    }
}

impl Client for Incremental {
    fn start(&mut self, kind: Kind) {
        if kind == Kind::Incremental {
            self.follows_clusters = true;
            self.machine.subscribe_all(CLUSTER);
            self.machine.subscribe_all(LISTENER);
            for type_url in [ROUTE_CONFIGURATION, VIRTUAL_HOST] {
                World::all_names(type_url).iter().for_each(|name| self.want(type_url, name, true));
            }
        }
    }

    fn want(&mut self, type_url: &'static str, name: &str, wanted: bool) {
        if wanted {
            self.machine.subscribe(type_url, name);
        } else {
            self.machine.unsubscribe(type_url, name);
            self.store.set(type_url, name, None);
        }
    }

    fn wants(&self, type_url: &str, name: &str) -> bool {
        self.machine.wants(type_url, name)
    }

    fn connected(&mut self) {
        self.machine.on_connected();
    }

    fn disconnected(&mut self, now: Instant) -> Instant {
        self.machine.on_disconnected(now)
    }

    fn request(&mut self) -> Option<Request> {
        self.machine.next_request().map(Request::Incremental)
    }

    fn deliver(&mut self, response: Response, when: Instant, refuses: Option<Refuses>) {
        let Response::Incremental(response) = response else { panic!("the other variant") };
        let received = self.machine.on_response(response);
        let of_type = self.waiting.iter().filter(|(_, other, _)| other.type_url == received.type_url);
        let when = of_type.map(|(time, ..)| *time).max().unwrap_or(when).max(when);
        self.waiting.push((when, received, refuses));
    }

    fn settle(&mut self, now: Instant) {
        let (due, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(t, ..)| *t <= now);
        self.waiting = waiting;
        due.into_iter().for_each(|(_, received, refuses)| self.apply(received, refuses));
    }

    fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    fn store(&self) -> &World {
        &self.store
    }

    fn check_books(&self, world: &World) {
        for type_url in TYPES {
            for name in World::all_names(type_url).iter().filter(|name| self.machine.wants(type_url, name)) {
                let expected = match world.resource(type_url, name) {
                    Some(resource) => Some(State::Held(resource.version.to_string().into())),
                    None => Some(State::Absent),
                };
                let state = self.machine.state(type_url, name);
                // Under a wildcard, what never was is not known to be absent.
                let known = state.is_some() || expected != Some(State::Absent);
                assert!(
                    !known || state == expected,
                    "{} {name}: {state:?}, not {expected:?}",
                    short(type_url)
                );
            }
        }
    }
}

/// State of the world, as Envoy speaks it: one list of names per type, the latest nonce, the last accepted version.
pub struct StateOfTheWorld {
    node: Node,
    types: BTreeMap<&'static str, List>,
    store: World,
    connected: bool,
    node_sent: bool,
    answers: VecDeque<DiscoveryRequest>,
    waiting: Vec<(Instant, DiscoveryResponse, Option<Refuses>)>,
}

#[derive(Default)]
struct List {
    wildcard: bool,
    names: BTreeSet<String>,
    /// The first list went out on this stream.
    introduced: bool,
    version: String,
    nonce: String,
}

impl StateOfTheWorld {
    pub fn new(node: Node) -> Self {
        let types = TYPES.into_iter().map(|type_url| (type_url, List::default())).collect();
        let (store, answers, waiting) = (World::default(), VecDeque::new(), Vec::new());
        Self { node, types, store, connected: false, node_sent: false, answers, waiting }
    }

    fn apply(&mut self, response: DiscoveryResponse, refuses: Option<Refuses>) {
        let type_url =
            TYPES.into_iter().find(|t| *t == response.type_url).expect("a type that was asked for");
        let mut refused = false;
        let mut present = BTreeSet::new();
        for body in &response.resources {
            let (name, content) = read(body);
            assert!(present.insert(name.clone()), "{name} is twice in one response");
            match (content.bad && refuses.is_some(), self.wants(type_url, &name)) {
                (true, _) => refused = true,
                (false, true) => self.store.set(type_url, &name, Some(content)),
                (false, false) => {}
            }
        }
        if [CLUSTER, LISTENER].contains(&type_url) {
            let gone = World::all_names(type_url).into_iter().filter(|name| !present.contains(name));
            gone.for_each(|name| self.store.set(type_url, &name, None));
        }
        for error in &response.resource_errors {
            let name = &error.resource_name.as_ref().expect("a name").name;
            assert!(!present.contains(name), "{name} is there and is not");
            self.store.set(type_url, name, None);
        }
        let list = self.types.get_mut(type_url).expect("all types are there");
        list.nonce = response.nonce;
        if !refused {
            list.version = response.version_info;
        }
        let error_detail = refused.then(|| rpc::Status { code: 13, message: "bad".into(), details: vec![] });
        let request = DiscoveryRequest { error_detail, ..list.request(type_url) };
        self.answers.push_back(request);
        if type_url == CLUSTER {
            for name in World::all_names(CLUSTER_LOAD_ASSIGNMENT) {
                let wanted = self.store.get(CLUSTER, &name).is_some();
                if wanted != self.wants(CLUSTER_LOAD_ASSIGNMENT, &name) {
                    self.want(CLUSTER_LOAD_ASSIGNMENT, &name, wanted);
                }
            }
        }
    }
}

impl List {
    fn request(&self, type_url: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            type_url: type_url.into(),
            resource_names: self.names.iter().cloned().collect(),
            version_info: self.version.clone(),
            response_nonce: self.nonce.clone(),
            ..Default::default()
        }
    }
}

impl Client for StateOfTheWorld {
    fn start(&mut self, _kind: Kind) {
        for type_url in [CLUSTER, LISTENER] {
            let list = self.types.get_mut(type_url).expect("all types are there");
            list.wildcard = true;
        }
        for type_url in [ROUTE_CONFIGURATION, VIRTUAL_HOST] {
            World::all_names(type_url).iter().for_each(|name| self.want(type_url, name, true));
        }
    }

    fn want(&mut self, type_url: &'static str, name: &str, wanted: bool) {
        let list = self.types.get_mut(type_url).expect("all types are there");
        if wanted {
            list.names.insert(name.to_owned());
        } else {
            list.names.remove(name);
            self.store.set(type_url, name, None);
        }
        // Each change is told by itself: a name given back and wanted again in one would look as if nothing happened.
        if self.connected && list.introduced {
            self.answers.push_back(list.request(type_url));
        }
    }

    fn wants(&self, type_url: &str, name: &str) -> bool {
        self.types.get(type_url).is_some_and(|list| list.wildcard || list.names.contains(name))
    }

    fn connected(&mut self) {
        (self.connected, self.node_sent) = (true, false);
        for list in self.types.values_mut() {
            list.nonce.clear();
            list.introduced = false;
        }
    }

    fn disconnected(&mut self, now: Instant) -> Instant {
        self.connected = false;
        self.answers.clear();
        self.waiting.clear();
        now + Duration::from_millis(500)
    }

    fn request(&mut self) -> Option<Request> {
        if !self.connected {
            return None;
        }
        let mut request = self.answers.pop_front().or_else(|| {
            let new = |list: &List| !list.introduced && (list.wildcard || !list.names.is_empty());
            let (type_url, list) = self.types.iter_mut().find(|(_, list)| new(list))?;
            list.introduced = true;
            Some(list.request(type_url))
        })?;
        if !std::mem::replace(&mut self.node_sent, true) {
            request.node = Some(self.node.clone());
        }
        Some(Request::StateOfTheWorld(request))
    }

    fn deliver(&mut self, response: Response, when: Instant, refuses: Option<Refuses>) {
        let Response::StateOfTheWorld(response) = response else { panic!("the other variant") };
        let of_type = self.waiting.iter().filter(|(_, other, _)| other.type_url == response.type_url);
        let when = of_type.map(|(time, ..)| *time).max().unwrap_or(when).max(when);
        self.waiting.push((when, response, refuses));
    }

    fn settle(&mut self, now: Instant) {
        let (due, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(t, ..)| *t <= now);
        self.waiting = waiting;
        due.into_iter().for_each(|(_, response, refuses)| self.apply(response, refuses));
    }

    fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    fn store(&self) -> &World {
        &self.store
    }

    fn check_books(&self, _world: &World) {}
}
