//! The task that speaks with the control plane: one delta stream, reconnected for ever.
//!
//! LIFECYCLE of a response: it arrives and is compiled; what is refused is noted; what is ready is put in force; then the ACK or
//! NACK goes out. With a control plane that agreed to on-demand, the ACK waits until everything of the response is in force, so an
//! ACK means "in force". With others it goes out at once, since some of them send nothing more before they have it.
//!
//! Subscriptions follow references: endpoints of clusters held, route tables of listeners held; on demand also clusters that a
//! route in force, or a request that still runs on an old one, refers to, and names that the request path asked for.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use osier_core::on_demand as naming;
use osier_proto::schema::FEATURE_ON_DEMAND;
use osier_proto::transport::Connection;
use osier_proto::types;
use osier_proto::xds::WILDCARD;
use osier_proto::xds::client::{Client, Content, Received, Refused, ResponseId, Update};
use tokio::sync::{mpsc, watch as channel};
use tokio::time::Instant;

use super::connect::{self, ConnectError};
use super::held::{Kind, Source};
use super::on_demand::{Asked, OnDemand};
use super::state::State;
use super::{Command, Mode, Progress, Sidecar, Stats, dump, prefetch};
use crate::bootstrap::{Bootstrap, Dynamic};

/// How long a resource is kept that came unasked: the control plane expects that it will be asked for.
const SPARE_TIME: Duration = Duration::from_secs(10);
/// Idle names are looked for so many times in the time after which they are forgotten.
const SWEEPS_PER_IDLE_TIME: u32 = 10;

/// The stream, or the way to one.
enum Link {
    /// There is no control plane.
    None,
    /// The next attempt is due then.
    Waiting(Instant),
    Connecting(Pin<Box<dyn Future<Output = Result<Connection, ConnectError>> + Send>>),
    Open(Box<Connection>),
}

/// What happened to the link.
enum Event {
    Connect,
    Connected(Result<Connection, ConnectError>),
    Response(Result<Received, tonic::Status>),
}

impl Link {
    async fn event(&mut self, client: &mut Client) -> Event {
        match self {
            Self::None => std::future::pending().await,
            Self::Waiting(until) => {
                tokio::time::sleep_until(*until).await;
                Event::Connect
            }
            Self::Connecting(connecting) => Event::Connected(connecting.as_mut().await),
            Self::Open(connection) => Event::Response(connection.next(client).await),
        }
    }
}

/// A response whose ACK waits until these are in force.
struct Unacknowledged {
    id: ResponseId,
    kind: Kind,
    names: BTreeSet<Arc<str>>,
    refused: Vec<Refused>,
}

/// On-demand settings and state of this task.
struct Demand {
    sidecar: Sidecar,
    tables: Arc<OnDemand>,
    /// The control plane has confirmed it.
    agreed: bool,
    /// Names of the last run, until they are asked for.
    prefetch: Vec<Asked>,
    /// When each epoch began, oldest first.
    epochs: VecDeque<(Instant, u32)>,
    next_sweep: Instant,
}

impl Demand {
    /// The listeners that are sockets are asked for with a wildcard.
    fn is_wildcard(&self) -> bool {
        self.sidecar.listeners.iter().any(|name| name == WILDCARD)
    }
}

/// The task.
pub(super) struct Watch {
    pub(super) bootstrap: Bootstrap,
    pub(super) state: State,
    client: Client,
    link: Link,
    attempts: usize,
    demand: Option<Demand>,
    asked: mpsc::UnboundedReceiver<Asked>,
    inbox: mpsc::Receiver<Command>,
    progress: channel::Sender<Progress>,
    stats: Arc<Stats>,
    /// Names subscribed to because something refers to them.
    subscribed: HashMap<Kind, HashSet<Arc<str>>>,
    unacknowledged: Vec<Unacknowledged>,
    /// What came unasked, and until when it is kept.
    spare: HashMap<(Kind, Arc<str>), Instant>,
    /// Listeners that were given back under the wildcard, until the server has answered for them.
    given_back: HashMap<Arc<str>, GivenBack>,
    first: First,
    deadline: Option<Instant>,
}

/// A listener that was given back.
struct GivenBack {
    until: Instant,
    asked_again: bool,
}

/// What must have come before the proxy is ready.
#[derive(Debug, Default)]
struct First {
    clusters: Option<Pending>,
    listeners: Option<Pending>,
    /// On demand: these names, answered in any way.
    names: BTreeSet<Arc<str>>,
}

/// A first answer that is waited for, at most until then; `None` is for ever.
#[derive(Debug)]
struct Pending {
    until: Option<Instant>,
}

impl Pending {
    fn new(timeout: Option<Duration>) -> Self {
        Self { until: timeout.map(|t| Instant::now() + t) }
    }
}

impl Watch {
    pub(super) fn new(
        bootstrap: Bootstrap,
        state: State,
        mode: Mode,
        inbox: mpsc::Receiver<Command>,
        progress: channel::Sender<Progress>,
        stats: Arc<Stats>,
    ) -> Self {
        let limits = match &mode {
            Mode::All => super::on_demand::Limits::default(),
            Mode::OnDemand(sidecar) => sidecar.limits.clone(),
        };
        let (tables, asked) = OnDemand::new(limits);
        let demand = match mode {
            Mode::OnDemand(sidecar) if bootstrap.dynamic.is_some() => Some(Demand {
                sidecar,
                tables,
                agreed: false,
                prefetch: Vec::new(),
                epochs: VecDeque::new(),
                next_sweep: Instant::now(),
            }),
            _ => None,
        };
        let client = Client::new(bootstrap.node.to_message(&[]), rand::random());
        let link = match bootstrap.dynamic {
            Some(_) => Link::Waiting(Instant::now()),
            None => Link::None,
        };
        Self {
            bootstrap,
            state,
            client,
            link,
            attempts: 0,
            demand,
            asked,
            inbox,
            progress,
            stats,
            subscribed: HashMap::new(),
            unacknowledged: Vec::new(),
            spare: HashMap::new(),
            given_back: HashMap::new(),
            first: First::default(),
            deadline: None,
        }
    }

    pub(super) async fn run(mut self) {
        if let Some(demand) = &mut self.demand
            && let Some(file) = &demand.sidecar.state_file
        {
            demand.prefetch = prefetch::load(file).await;
        }
        self.subscribe_first();
        self.step();
        loop {
            let deadline = self.deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
            tokio::select! {
                event = self.link.event(&mut self.client) => self.on_event(event),
                Some(asked) = self.asked.recv() => self.on_asked(asked),
                command = self.inbox.recv() => match command {
                    Some(command) => self.on_command(command).await,
                    None => return,
                },
                () = tokio::time::sleep_until(deadline) => {}
            }
            self.step();
        }
    }

    /// What the first stream asks for.
    fn subscribe_first(&mut self) {
        let Some(Dynamic { clusters, listeners, cluster_timeout, listener_timeout, .. }) =
            self.bootstrap.dynamic
        else {
            return;
        };
        self.first = First::default();
        if let Some(demand) = &self.demand {
            self.client = Client::new(self.bootstrap.node.to_message(&[FEATURE_ON_DEMAND]), rand::random());
            for name in &demand.sidecar.listeners {
                if name == WILDCARD {
                    self.client.subscribe_all(types::LISTENER);
                    self.first.listeners = Some(Pending::new(listener_timeout));
                } else {
                    self.client.subscribe(types::LISTENER, name.as_str());
                    self.first.names.insert(name.as_str().into());
                }
            }
            return;
        }
        self.client = Client::new(self.bootstrap.node.to_message(&[]), rand::random());
        if clusters {
            self.client.subscribe_all(types::CLUSTER);
            self.first.clusters = Some(Pending::new(cluster_timeout));
        }
        if listeners {
            self.client.subscribe_all(types::LISTENER);
            self.first.listeners = Some(Pending::new(listener_timeout));
        }
        // A listener before its clusters would answer its first requests with 503.
        self.state.hold_listeners = clusters;
        self.state.references_changed = true;
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Connect => self.connect(),
            Event::Connected(Ok(connection)) => {
                self.client.on_connected();
                self.link = Link::Open(Box::new(connection));
                self.stats.connected.store(true, Relaxed);
                tracing::info!("control plane: connected");
            }
            Event::Connected(Err(error)) => self.disconnected(&error.to_string()),
            Event::Response(Ok(received)) => self.on_received(received),
            Event::Response(Err(status)) => {
                self.disconnected(&format!("{:?}: {}", status.code(), status.message()));
            }
        }
    }

    fn connect(&mut self) {
        let Some(dynamic) = &self.bootstrap.dynamic else { return };
        self.stats.attempts.fetch_add(1, Relaxed);
        self.link = Link::Connecting(Box::pin(connect::open(dynamic.server.clone(), self.attempts)));
        self.attempts = self.attempts.wrapping_add(1);
    }

    fn disconnected(&mut self, reason: &str) {
        let now = Instant::now();
        let again = Instant::from_std(self.client.on_disconnected(now.into_std()));
        let seconds = again.saturating_duration_since(now).as_secs_f32();
        tracing::warn!(reason, again_in_s = seconds, "control plane: not connected; what is in force stays");
        self.stats.connected.store(false, Relaxed);
        self.link = Link::Waiting(again);
        // The next stream begins with the names that are wanted; nothing is owed on it.
        for (name, GivenBack { asked_again, .. }) in self.given_back.drain() {
            if asked_again {
                self.client.subscribe(types::LISTENER, name);
            }
        }
    }

    fn on_received(&mut self, received: Received) {
        if !self.agree() {
            return;
        }
        let Some(kind) = Kind::of(&received.type_url) else {
            let reason = "this type was not asked for and is not supported".to_owned();
            self.client.applied(received.id, vec![Refused { name: received.type_url, reason }]);
            return;
        };
        let (refused, names) = self.apply(kind, received.updates);
        self.stats.response(kind, !refused.is_empty());
        for Refused { name, reason } in &refused {
            tracing::warn!(type_url = %received.type_url, %name, reason, "control plane: resource refused");
        }
        self.first_answer(kind, &names);
        self.unacknowledged.push(Unacknowledged { id: received.id, kind, names, refused });
    }

    /// Settles with the first response of a stream whether on-demand rules hold. False: the stream has to begin anew.
    fn agree(&mut self) -> bool {
        let Some(demand) = &mut self.demand else { return true };
        match (self.client.confirms(FEATURE_ON_DEMAND), demand.agreed) {
            (Some(true), true) | (None, _) => true,
            (Some(true), false) => {
                tracing::info!("control plane: agreed to on-demand");
                demand.agreed = true;
                self.state.set_on_demand(demand.tables.clone());
                for asked in std::mem::take(&mut demand.prefetch) {
                    demand.tables.expect(&asked);
                    let (kind, name) = resource_of(asked.table.as_deref(), &asked.name);
                    self.client.subscribe(kind.type_url(), name);
                }
                true
            }
            (Some(false), _) => {
                tracing::info!("control plane: knows no on-demand; subscribing to everything");
                self.demand = None;
                self.unacknowledged.clear();
                self.subscribed.clear();
                self.state.give_up_on_demand();
                self.subscribe_first();
                self.stats.connected.store(false, Relaxed);
                self.link = Link::Waiting(Instant::now());
                false
            }
        }
    }

    /// Takes what a response brought. Returns what was refused, and the names that it was about.
    fn apply(&mut self, kind: Kind, updates: Vec<Update>) -> (Vec<Refused>, BTreeSet<Arc<str>>) {
        let mut refused = Vec::new();
        let mut names = BTreeSet::new();
        let (removals, rest): (Vec<Update>, Vec<Update>) = updates.into_iter().partition(|update| {
            // An address must be given up before another listener can take it.
            kind == Kind::Listener && update.content == Content::Absent
        });
        for update in removals.into_iter().chain(rest) {
            let Update { name, asked, content } = update;
            if (!asked && !self.keep_spare(kind, &name)) || self.was_given_back(kind, &name, &content) {
                continue;
            }
            match content {
                Content::Present { version, resource } => {
                    let source = Source::new(resource, &version);
                    if let Err(error) = self.state.accept(kind, &name, source, Instant::now()) {
                        // The client puts the name before it.
                        let reason = error.into_invalid().to_string();
                        refused.push(Refused { name: name.clone(), reason });
                    }
                }
                Content::Absent => self.state.remove(kind, &name),
                Content::Failed(status) => {
                    tracing::warn!(%name, reason = status.message, "control plane: no answer for this name");
                    continue;
                }
            }
            if kind == Kind::Listener && self.is_unwanted(&name) {
                self.spare.insert((kind, name.clone()), Instant::now() + SPARE_TIME);
            }
            names.insert(name);
        }
        (refused, names)
    }

    /// Under the wildcard, the server answers for a name that is given back: that it isn't there any more. True where `content` is
    /// that answer; it says nothing of the resource. Who asked for the name again meanwhile gets an answer of their own.
    fn was_given_back(&mut self, kind: Kind, name: &Arc<str>, content: &Content) -> bool {
        if kind != Kind::Listener {
            return false;
        }
        let Some(given_back) = self.given_back.remove(name) else { return false };
        if given_back.asked_again {
            self.client.subscribe(kind.type_url(), name.clone());
        } else if *content == Content::Absent {
            self.state.forget(kind, name);
        }
        *content == Content::Absent
    }

    /// What nobody asked for is kept for some time, where that makes sense: what it will be asked for by is on its way.
    fn keep_spare(&mut self, kind: Kind, name: &Arc<str>) -> bool {
        let on_demand = self.demand.as_ref().is_some_and(|d| d.agreed);
        if !on_demand || !matches!(kind, Kind::Cluster | Kind::Assignment) {
            return false;
        }
        self.spare.insert((kind, name.clone()), Instant::now() + SPARE_TIME);
        true
    }

    /// On demand: true for a listener that is no socket and that nobody asked for.
    fn is_unwanted(&self, listener: &str) -> bool {
        self.state.on_demand.is_some()
            && !self.state.is_bound(listener)
            && self.state.tables_wanting(listener).is_none()
    }

    fn first_answer(&mut self, kind: Kind, names: &BTreeSet<Arc<str>>) {
        match kind {
            Kind::Cluster => self.first.clusters = None,
            Kind::Listener => {
                self.first.listeners = None;
                self.first.names.retain(|name| !names.contains(name));
            }
            _ => {}
        }
    }

    /// Somebody looked up a name that isn't known.
    fn on_asked(&mut self, Asked { table, name }: Asked) {
        let (kind, name) = resource_of(table.as_deref(), &name);
        if kind == Kind::Listener {
            // It may be held already: as a socket of its own, or since it was given back a moment ago.
            self.state.link(&name);
            if let Some(given_back) = self.given_back.get_mut(&name) {
                given_back.asked_again = true;
                return;
            }
        }
        self.client.subscribe(kind.type_url(), name);
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Dump(query, reply) => {
                let _ = reply.send(dump::render(&self.bootstrap, &self.state, &query));
            }
            Command::Save(reply) => {
                self.save().await;
                let _ = reply.send(());
            }
        }
    }

    async fn save(&mut self) {
        if let Some(demand) = self.demand.as_ref().filter(|d| d.agreed)
            && let Some(file) = &demand.sidecar.state_file
        {
            prefetch::save(file, demand.tables.recently_used()).await;
        }
    }

    /// After each event: put in force what is ready, subscribe to what is now referred to, acknowledge, say how far we are.
    fn step(&mut self) {
        let now = Instant::now();
        self.release_listeners(now);
        let mut deadline = self.state.settle(now);
        self.sweep(now);
        while std::mem::take(&mut self.state.references_changed) {
            self.follow_references(now);
            deadline = self.state.settle(now);
        }
        self.acknowledge();
        self.report();
        let first = [&self.first.clusters, &self.first.listeners];
        let first = first.into_iter().flatten().filter_map(|p| p.until.filter(|u| *u > now));
        let kept = self.spare.values().copied().chain(self.given_back.values().map(|g| g.until)).min();
        self.deadline = [deadline, self.next_sweep(), kept].into_iter().flatten().chain(first).min();
    }

    /// Lets listeners go into force once the first clusters are there, or don't come.
    fn release_listeners(&mut self, now: Instant) {
        for first in [&mut self.first.clusters, &mut self.first.listeners] {
            if first.as_ref().is_some_and(|p| p.until.is_some_and(|until| until <= now)) {
                tracing::warn!("control plane: no first answer in time; going on without");
                *first = None;
            }
        }
        if self.state.hold_listeners && self.first.clusters.is_none() {
            // Put in force what is ready first: a response with all its clusters may just have come.
            self.state.settle(now);
            self.state.hold_listeners = !self.state.clusters.is_settled();
        }
    }

    /// Subscribes to what is referred to, and forgets what no longer is.
    fn follow_references(&mut self, now: Instant) {
        let on_demand = self.demand.as_ref().is_some_and(|d| d.agreed);
        for kind in [Kind::Cluster, Kind::Assignment, Kind::Routes] {
            if kind == Kind::Cluster && !on_demand {
                continue;
            }
            let wanted = self.state.referred(kind);
            let subscribed = self.subscribed.entry(kind).or_default();
            for name in wanted.iter().filter(|name| !subscribed.contains(*name)) {
                self.spare.remove(&(kind, name.clone()));
                self.client.subscribe(kind.type_url(), name.clone());
            }
            let mut gone: Vec<_> = subscribed.difference(&wanted).cloned().collect();
            for name in &gone {
                self.client.unsubscribe(kind.type_url(), name);
            }
            *subscribed = wanted;
            let expired = |((of, name), until): (&(Kind, Arc<str>), &Instant)| {
                (*of == kind && *until <= now).then(|| name.clone())
            };
            gone.extend(self.spare.iter().filter_map(expired));
            for name in gone {
                self.spare.remove(&(kind, name.clone()));
                self.state.forget(kind, &name);
            }
        }
        self.state.handles.sweep();
    }

    /// Keeps the tables within their bounds, forgets idle names, and notes what requests have let go of.
    fn sweep(&mut self, now: Instant) {
        if self.spare.values().any(|until| *until <= now) {
            self.state.references_changed = true;
        }
        let Some(demand) = self.demand.as_mut().filter(|d| d.agreed) else { return };
        demand.tables.next_epoch();
        let mut out = demand.tables.trim();
        if demand.next_sweep <= now {
            let idle = demand.tables.limits().idle;
            demand.next_sweep = now + idle / SWEEPS_PER_IDLE_TIME;
            demand.epochs.push_back((now, demand.tables.next_epoch()));
            while let Some((began, epoch)) = demand.epochs.front().copied()
                && now.saturating_duration_since(began) >= idle
            {
                demand.epochs.pop_front();
                out.extend(demand.tables.forget_idle(epoch - 1));
            }
            // Requests that ran on old routes may have ended since.
            self.state.references_changed = true;
        }
        for Asked { table, name } in out {
            let (kind, name) = resource_of(table.as_deref(), &name);
            self.client.unsubscribe(kind.type_url(), &name);
            if kind == Kind::Listener && demand.is_wildcard() {
                self.given_back.insert(name, GivenBack { until: now + SPARE_TIME, asked_again: false });
            } else if !(kind == Kind::Listener && self.state.is_bound(&name)) {
                self.state.forget(kind, &name);
            }
        }
        self.expire_given_back(now);
        let old =
            |(kind, _): &(Kind, Arc<str>), until: &mut Instant| *kind == Kind::Listener && *until <= now;
        let expired: Vec<_> = self.spare.extract_if(old).map(|((_, name), _)| name).collect();
        for name in expired {
            if self.is_unwanted(&name) {
                self.state.forget(Kind::Listener, &name);
            }
        }
    }

    /// A server that doesn't answer for names that are given back isn't waited for.
    fn expire_given_back(&mut self, now: Instant) {
        let expired = self.given_back.extract_if(|_, given_back| given_back.until <= now);
        for (name, GivenBack { asked_again, .. }) in expired.collect::<Vec<_>>() {
            if asked_again {
                self.client.subscribe(types::LISTENER, name);
            } else if !self.state.is_bound(&name) {
                self.state.forget(Kind::Listener, &name);
            }
        }
    }

    /// Idle tables need no sweep: then nothing wakes this task.
    fn next_sweep(&self) -> Option<Instant> {
        let demand = self.demand.as_ref().filter(|d| d.agreed && !d.tables.is_empty())?;
        Some(demand.next_sweep)
    }

    /// Sends the ACK or NACK of every response that is in force as far as it can be.
    fn acknowledge(&mut self) {
        let on_demand = self.demand.as_ref().is_some_and(|d| d.agreed);
        let state = &self.state;
        // Clusters and endpoints are never held back for: what waits for them is waited for.
        let waits = |response: &Unacknowledged| {
            on_demand
                && matches!(response.kind, Kind::Listener | Kind::Host | Kind::Routes)
                && response.names.iter().any(|name| state.is_warming(response.kind, name))
        };
        let (waiting, done): (Vec<_>, Vec<_>) = self.unacknowledged.drain(..).partition(waits);
        self.unacknowledged = waiting;
        for response in done {
            self.client.applied(response.id, response.refused);
        }
    }

    fn report(&mut self) {
        let first = &self.first;
        let answered = first.clusters.is_none() && first.listeners.is_none() && first.names.is_empty();
        let settled = self.state.is_settled() && !self.state.hold_listeners;
        let now = match (answered && settled, self.bootstrap.dynamic.is_some() && self.attempts == 0) {
            (true, _) => Progress::Ready,
            (false, true) => Progress::Waiting,
            (false, false) => Progress::Warming,
        };
        self.progress.send_if_modified(|before| {
            let changed = *before < now;
            *before = now.max(*before);
            changed
        });
    }
}

/// The resource behind a name of a table.
fn resource_of(route_config: Option<&str>, name: &str) -> (Kind, Arc<str>) {
    match route_config {
        None => (Kind::Listener, name.into()),
        Some(route_config) => (Kind::Host, naming::host_key(route_config, name).into()),
    }
}
