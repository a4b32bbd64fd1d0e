//! One run: a world, a server stream, a client, and the connection between them.

mod client;
mod world;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use osier_proto::schema;
use osier_proto::types::core::Node;
use osier_proto::types::{CLUSTER, ROUTE_CONFIGURATION, VIRTUAL_HOST};
use osier_proto::xds::server::{Options, Scope, Step, Stream, Want};
use osier_proto::xds::{Request, Response, Variant};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use client::Client;
pub use world::World;
use world::{TYPES, short};

/// What a client asks for, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Delta, as Envoy asks: wildcards, and endpoints of the clusters that it has.
    Incremental,
    /// Delta, names only, which it asks for and gives back at random.
    OnDemand,
    /// SotW, as Envoy asks.
    StateOfTheWorld,
    /// SotW, names only, which it asks for and gives back at random.
    StateOfTheWorldByName,
}

impl Kind {
    fn variant(self) -> Variant {
        match self {
            Self::Incremental | Self::OnDemand => Variant::Incremental,
            Self::StateOfTheWorld | Self::StateOfTheWorldByName => Variant::StateOfTheWorld,
        }
    }

    fn asks_by_name(self) -> bool {
        matches!(self, Self::OnDemand | Self::StateOfTheWorldByName)
    }
}

/// What goes wrong in a run.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// The stream breaks.
    pub breaks: bool,
    /// Messages come twice.
    pub duplicates: bool,
    /// The client reads only now and then.
    pub slow: bool,
    /// Some resources are refused.
    pub nacks: bool,
    /// A client that refuses one resource refuses all of the response.
    pub strict: bool,
    /// Routes take up to a second to be applied, as if they warmed.
    pub late: bool,
    /// Every type takes its time, so that they are applied out of order.
    pub reorder: bool,
}

impl Faults {
    /// Each seed has its own set; the first one has none.
    pub fn of(seed: u64) -> Self {
        let bit = |n: u32| seed >> n & 1 == 1;
        Self {
            breaks: bit(0),
            slow: bit(1),
            nacks: bit(2),
            late: bit(3),
            reorder: bit(4),
            duplicates: bit(5),
            strict: bit(6),
        }
    }
}

const STEPS: usize = 400;
/// Rounds of healing, far more than any run needs.
const PATIENCE: usize = 5000;

pub struct Simulation {
    pub world: World,
    pub client: Client,
    kind: Kind,
    faults: Faults,
    keeps_order: bool,
    trace: bool,
    /// Decides what changes; the same for all variants of a seed.
    changes: SmallRng,
    /// Decides everything else.
    chance: SmallRng,
    now: Instant,
    server: Option<Stream>,
    retry_at: Instant,
    requests: VecDeque<Request>,
    /// One message is on its way at most, as in the transport.
    response: Option<Response>,
}

impl Simulation {
    pub fn new(kind: Kind, seed: u64, faults: Faults, trace: bool) -> Self {
        let now = Instant::now();
        let on_demand = kind == Kind::OnDemand;
        let client_features = on_demand.then(|| schema::FEATURE_ON_DEMAND.to_owned()).into_iter().collect();
        let node = Node { id: format!("sidecar~1.1.1.1~{seed}.a~b"), client_features, ..Default::default() };
        let mut client = Client::new(kind.variant(), node, seed);
        client.start(kind);
        let mut simulation = Self {
            world: World::default(),
            client,
            kind,
            faults,
            keeps_order: keeps_order(kind, faults),
            trace,
            changes: SmallRng::seed_from_u64(seed),
            chance: SmallRng::seed_from_u64(!seed),
            now,
            server: None,
            retry_at: now,
            requests: VecDeque::new(),
            response: None,
        };
        simulation.log(|| format!("{kind:?} {faults:?}"));
        simulation
    }

    pub fn run(&mut self) {
        for _ in 0..STEPS {
            self.now += Duration::from_millis(self.chance.random_range(0..40));
            match self.chance.random_range(0..14) {
                0 if self.faults.breaks && self.chance.random_ratio(1, 5) => self.disconnect(),
                0 => self.wish(),
                1..4 => self.deliver_request(),
                4..7 => self.serve(),
                7..10 => self.deliver_response(),
                // A fast peer on a fast network.
                10..12 => {
                    self.deliver_request();
                    self.serve();
                    self.deliver_response();
                    self.serve();
                    self.deliver_response();
                }
                _ => self.client.settle(self.now),
            }
            // Changes come at the same pace whatever the faults make of the rest.
            if self.changes.random_ratio(1, 6) {
                self.change();
            }
            self.reconnect();
            self.check();
        }
    }

    /// Lets everything come to rest, on a connection that holds, with nothing left that could be refused.
    pub fn heal(&mut self) {
        self.faults = Faults { breaks: false, duplicates: false, slow: false, ..self.faults };
        let changed = self.world.repair();
        self.push(changed);
        for _ in 0..PATIENCE {
            self.now += Duration::from_millis(200);
            self.reconnect();
            self.deliver_request();
            self.serve();
            self.deliver_response();
            self.client.settle(self.now);
            self.check();
            if self.is_at_rest() {
                return;
            }
        }
        panic!("no rest after {PATIENCE} rounds: {:?}", self.server);
    }

    fn is_at_rest(&mut self) -> bool {
        self.serve();
        self.collect_requests();
        let server = self.server.as_ref().is_some_and(|server| server.deadline().is_none());
        server && self.requests.is_empty() && self.response.is_none() && self.client.is_settled()
    }

    /// Both sides know the same: what the client wants of the world, all of it, and nothing else.
    pub fn assert_agreement(&self) {
        let server = self.server.as_ref().expect("it is connected");
        for type_url in TYPES {
            let wanted = self.world.of_type(type_url).filter(|(name, _)| self.client.wants(type_url, name));
            let expected: Vec<_> = wanted.map(|(name, content)| (name.clone(), content.clone())).collect();
            let found: Vec<_> =
                self.client.store().of_type(type_url).map(|(n, c)| (n.clone(), c.clone())).collect();
            assert_eq!(found, expected, "{}", short(type_url));
            for name in World::all_names(type_url) {
                assert_eq!(
                    server.wants(type_url, &name),
                    self.client.wants(type_url, &name),
                    "{} {name}",
                    short(type_url)
                );
            }
            if let Some(status) = server.status(type_url) {
                assert_eq!(
                    (status.unacknowledged, status.pending),
                    (0, false),
                    "{} {status:?}",
                    short(type_url)
                );
                // The last NACK of a resource that was given back stands until something else is ACKed.
                assert!(
                    status.refusal.is_none() || self.kind.asks_by_name(),
                    "{} {status:?}",
                    short(type_url)
                );
            }
        }
        self.client.check_books(&self.world);
    }

    /// What holds at every moment.
    fn check(&self) {
        for type_url in TYPES {
            for (name, content) in self.client.store().of_type(type_url) {
                assert!(
                    self.client.wants(type_url, name),
                    "{} {name} is kept and not wanted",
                    short(type_url)
                );
                assert!(
                    !content.bad || !self.faults.nacks,
                    "{} {name} was refused and is in force",
                    short(type_url)
                );
            }
        }
        if self.keeps_order {
            for (type_url, name, cluster) in self.client.store().references() {
                let known = self.client.store().get(CLUSTER, &cluster).is_some();
                assert!(known, "{} {name} refers to {cluster}, which is not there", short(type_url));
            }
        }
    }

    fn change(&mut self) {
        let changed = self.world.change(&mut self.changes);
        self.log(|| format!("world: {changed:?}"));
        self.push(changed);
    }

    fn push(&mut self, changed: Vec<(&'static str, String)>) {
        let Some(server) = &mut self.server else { return };
        for (type_url, name) in changed {
            let resources = self.world.resource(type_url, &name).into_iter().collect();
            server.push(type_url, Scope::names([name]), resources);
        }
    }

    /// An on-demand client changes its mind.
    fn wish(&mut self) {
        if self.kind.asks_by_name() {
            let type_url = TYPES[self.chance.random_range(0..TYPES.len())];
            let names = World::all_names(type_url);
            let name = &names[self.chance.random_range(0..names.len())];
            let wanted = !self.client.wants(type_url, name);
            self.log(|| format!("client: {}{} {name}", if wanted { '+' } else { '-' }, short(type_url)));
            self.client.want(type_url, name, wanted);
        }
    }

    fn disconnect(&mut self) {
        if self.server.take().is_some() {
            self.log(|| "connection: broken".into());
            self.requests.clear();
            self.response = None;
            self.retry_at = self.client.disconnected(self.now);
        }
    }

    fn reconnect(&mut self) {
        if self.server.is_none() && self.now >= self.retry_at {
            self.log(|| "connection: open".into());
            self.server = Some(Stream::new(self.kind.variant(), Options::default()));
            self.client.connected();
        }
    }

    fn collect_requests(&mut self) {
        while let Some(request) = self.client.request() {
            self.requests.push_back(request);
        }
    }

    fn deliver_request(&mut self) {
        if self.server.is_none() {
            return;
        }
        self.collect_requests();
        let Some(request) = self.requests.pop_front() else { return };
        if self.faults.duplicates && self.chance.random_ratio(1, 10) {
            self.requests.push_front(request.clone());
        }
        self.log(|| format!("-> {}", world::show_request(&request)));
        let server = self.server.as_mut().expect("checked above");
        server.on_request(request, self.now).expect("our own client breaks no rule");
    }

    /// The server works until there is something on its way, as its owner does.
    fn serve(&mut self) {
        if self.faults.slow && !self.chance.random_ratio(1, 6) {
            return;
        }
        let Some(server) = &mut self.server else { return };
        while self.response.is_none() {
            match server.next(self.now) {
                None => break,
                Some(Step::Send(response)) => self.response = Some(response),
                Some(Step::Generate(want)) => {
                    let resources = generate(&self.world, &want);
                    if &*want.type_url == VIRTUAL_HOST || &*want.type_url == ROUTE_CONFIGURATION {
                        let needed =
                            resources.iter().flat_map(|r| self.world.clusters_of(&want.type_url, &r.name));
                        server.push_ahead(CLUSTER, needed.collect());
                    }
                    server.answer(want, resources);
                }
            }
        }
    }

    fn deliver_response(&mut self) {
        let Some(response) = self.response.take() else { return };
        self.log(|| format!("<- {}", world::show_response(&response)));
        let twice = self.faults.duplicates && self.chance.random_ratio(1, 10);
        for response in std::iter::once(response.clone()).chain(twice.then_some(response)) {
            let delay = |reordered: bool, rng: &mut SmallRng| {
                if reordered { Duration::from_millis(rng.random_range(0..1000)) } else { Duration::ZERO }
            };
            let type_url = world::type_url(&response);
            let refers = [ROUTE_CONFIGURATION, VIRTUAL_HOST].contains(&type_url);
            let patience = delay(self.faults.reorder || (self.faults.late && refers), &mut self.chance);
            let refuses = self.faults.nacks.then_some(client::Refuses { all: self.faults.strict });
            self.client.deliver(response, self.now + patience, refuses);
        }
        self.client.settle(self.now);
    }

    fn log(&mut self, line: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{}", line());
        }
    }
}

/// Whether routes can only ever refer to clusters that are there: not where the client applies out of order or refuses, nor where
/// the server cannot know what there is to remove (state of the world after a reconnect).
fn keeps_order(kind: Kind, faults: Faults) -> bool {
    let Faults { breaks, nacks, reorder, slow, late, .. } = faults;
    let told = match kind {
        Kind::Incremental => true,
        Kind::StateOfTheWorld => !breaks,
        Kind::OnDemand | Kind::StateOfTheWorldByName => false,
    };
    told && !(nacks || reorder || (slow && late))
}

fn generate(world: &World, want: &Want) -> Vec<osier_proto::xds::Resource> {
    let names: Vec<String> = match &want.scope {
        Scope::All => world.of_type(&want.type_url).map(|(name, _)| name.clone()).collect(),
        Scope::Names(names) => names.iter().map(|name| name.to_string()).collect(),
    };
    names.iter().filter_map(|name| world.resource(&want.type_url, name)).collect()
}
