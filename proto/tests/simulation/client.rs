//! The client machine, of either variant, with an owner that keeps what it is told.

use std::time::Instant;

use osier_proto::types::core::Node;
use osier_proto::types::{CLUSTER, CLUSTER_LOAD_ASSIGNMENT, LISTENER, ROUTE_CONFIGURATION, VIRTUAL_HOST};
use osier_proto::xds::client::{self, Content as News, Received, Refused, State};
use osier_proto::xds::{Request, Response, Variant, Version};

use super::Kind;
use super::world::{TYPES, World, read, short};

/// A client that refuses what is bad, and perhaps all that came with it.
#[derive(Clone, Copy)]
pub struct Refuses {
    pub all: bool,
}

/// A client and its owner.
pub struct Client {
    machine: client::Client,
    follows_clusters: bool,
    store: World,
    /// Responses by the time at which they are applied; those of a type stay in order.
    waiting: Vec<(Instant, Received, Option<Refuses>)>,
}

impl Client {
    pub fn new(variant: Variant, node: Node, seed: u64) -> Self {
        let machine = client::Client::new(variant, node, seed);
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
                    assert_eq!(name.as_str(), &*update.name);
                    if self.machine.variant() == Variant::Incremental {
                        assert_eq!(Version::parse(&version), Some(Version::of(&resource)));
                    }
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

    /// Asks for what this kind of client asks for at its start.
    pub fn start(&mut self, kind: Kind) {
        if !kind.asks_by_name() {
            self.follows_clusters = true;
            self.machine.subscribe_all(CLUSTER);
            self.machine.subscribe_all(LISTENER);
            for type_url in [ROUTE_CONFIGURATION, VIRTUAL_HOST] {
                World::all_names(type_url).iter().for_each(|name| self.want(type_url, name, true));
            }
        }
    }

    pub fn want(&mut self, type_url: &'static str, name: &str, wanted: bool) {
        if wanted {
            self.machine.subscribe(type_url, name);
        } else {
            self.machine.unsubscribe(type_url, name);
            self.store.set(type_url, name, None);
        }
    }

    pub fn wants(&self, type_url: &str, name: &str) -> bool {
        self.machine.wants(type_url, name)
    }

    pub fn connected(&mut self) {
        self.machine.on_connected();
    }

    pub fn disconnected(&mut self, now: Instant) -> Instant {
        self.machine.on_disconnected(now)
    }

    pub fn request(&mut self) -> Option<Request> {
        self.machine.next_request()
    }

    /// A response came; it is applied at `when`, and refused in part if it is bad.
    pub fn deliver(&mut self, response: Response, when: Instant, refuses: Option<Refuses>) {
        let received = self.machine.on_response(response, when);
        let of_type = self.waiting.iter().filter(|(_, other, _)| other.type_url == received.type_url);
        let when = of_type.map(|(time, ..)| *time).max().unwrap_or(when).max(when);
        self.waiting.push((when, received, refuses));
    }

    /// Applies what is due.
    pub fn settle(&mut self, now: Instant) {
        let (due, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(t, ..)| *t <= now);
        self.waiting = waiting;
        due.into_iter().for_each(|(_, received, refuses)| self.apply(received, refuses));
    }

    /// Nothing waits to be applied.
    pub fn is_settled(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What is in force.
    pub fn store(&self) -> &World {
        &self.store
    }

    /// The machine's own account of what is held is the owner's.
    pub fn check_books(&self, world: &World) {
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
