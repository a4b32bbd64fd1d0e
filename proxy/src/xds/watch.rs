//! The task that speaks with the control plane: one stream, reconnected for ever.
//!
//! LIFECYCLE of a response: it arrives and is compiled; what is refused is noted; what is ready is put in force; then the ACK or
//! NACK goes out. With a control plane that agreed to on-demand, the ACK waits until everything of the response is in force, so an
//! ACK means "in force". With others it goes out at once, since some of them send nothing more before they have it.
//!
//! Subscriptions follow references: endpoints of clusters held, route tables of listeners held; on demand also clusters that a
//! route in force, or a request that still runs on an old one, refers to, and names that the request path asked for.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use osier_proto::schema::FEATURE_ON_DEMAND;
use osier_proto::transport::Connection;
use osier_proto::types;
use osier_proto::xds::client::{Client, Content, Expired, Received, Refused, ResponseId, Update};
use osier_proto::xds::{Variant, WILDCARD};
use tokio::sync::{mpsc, watch as channel};
use tokio::time::Instant;

use super::connect::{self, ConnectError};
use super::demand::{Demand, GivenBack};
use super::held::{Kind, Source};
use super::state::State;
use super::{Command, Mode, Progress, Stats, dump, prefetch};
use crate::bootstrap::{Bootstrap, Dynamic};
use crate::dns::Directory;
use crate::on_demand::{Asked, OnDemand};

/// How long the control plane may take to end its side of a stream that we end.
const FAREWELL: Duration = Duration::from_secs(1);

/// The stream, or the way to one.
pub(super) enum Link {
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
pub(super) struct Unacknowledged {
    id: ResponseId,
    kind: Kind,
    names: BTreeSet<Arc<str>>,
    refused: Vec<Refused>,
}

/// The task.
pub(super) struct Watch {
    pub(super) bootstrap: Bootstrap,
    pub(super) state: State,
    pub(super) client: Client,
    pub(super) link: Link,
    attempts: usize,
    pub(super) demand: Option<Demand>,
    /// What DNS answers from.
    pub(super) directory: Option<Arc<Directory>>,
    asked: mpsc::UnboundedReceiver<Asked>,
    inbox: mpsc::Receiver<Command>,
    progress: channel::Sender<Progress>,
    pub(super) stats: Arc<Stats>,
    /// Names subscribed to because something refers to them.
    pub(super) subscribed: HashMap<Kind, HashSet<Arc<str>>>,
    pub(super) unacknowledged: Vec<Unacknowledged>,
    /// What came unasked, and until when it is kept.
    pub(super) spare: HashMap<(Kind, Arc<str>), Instant>,
    /// Listeners that were given back under the wildcard, until the server has answered for them.
    pub(super) given_back: HashMap<Arc<str>, GivenBack>,
    first: First,
    deadline: Option<Instant>,
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
        directory: Option<Arc<Directory>>,
        inbox: mpsc::Receiver<Command>,
        progress: channel::Sender<Progress>,
        stats: Arc<Stats>,
    ) -> Self {
        let limits = match &mode {
            Mode::All => crate::on_demand::Limits::default(),
            Mode::OnDemand(sidecar) => sidecar.limits.clone(),
        };
        let (tables, asked) = OnDemand::new(limits);
        let demand = match mode {
            Mode::OnDemand(sidecar) if bootstrap.dynamic.is_some() => Some(Demand::new(sidecar, tables)),
            _ => None,
        };
        let client = new_client(&bootstrap, &[]);
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
            directory,
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
    pub(super) fn subscribe_first(&mut self) {
        let Some(Dynamic { clusters, listeners, cluster_timeout, listener_timeout, .. }) =
            self.bootstrap.dynamic
        else {
            return;
        };
        self.first = First::default();
        if let Some(demand) = &self.demand {
            self.client = new_client(&self.bootstrap, &[FEATURE_ON_DEMAND]);
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
        self.client = new_client(&self.bootstrap, &[]);
        if self.directory.is_some() {
            self.client.subscribe_all(types::NAME_TABLE);
        }
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
        let opening = connect::open(dynamic.server.clone(), self.attempts, self.state.mesh_roots());
        self.link = Link::Connecting(Box::pin(opening));
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
        if *received.type_url == *types::NAME_TABLE && self.directory.is_some() {
            return self.on_name_tables(received);
        }
        let Some(kind) = Kind::of(&received.type_url) else {
            let reason = "this type was not asked for and is not supported".to_owned();
            self.client.applied(received.id, vec![Refused { name: received.type_url, reason }]);
            return;
        };
        self.give_up_on_demand(kind);
        let (refused, names) = self.apply(kind, received.updates);
        self.stats.response(kind, !refused.is_empty());
        for Refused { name, reason } in &refused {
            tracing::warn!(type_url = %received.type_url, %name, reason, "control plane: resource refused");
        }
        self.first_answer(kind, &names);
        self.unacknowledged.push(Unacknowledged { id: received.id, kind, names, refused });
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
            self.note_unwanted(kind, &name);
            names.insert(name);
        }
        (refused, names)
    }

    /// Takes out of force what has outlived its time to live.
    fn expire(&mut self, now: Instant) {
        for Expired { type_url, names } in self.client.expire(now.into_std()) {
            let Some(kind) = Kind::of(&type_url) else { continue };
            for name in names {
                tracing::info!(%type_url, %name, "control plane: its time to live ran out");
                self.state.remove(kind, &name);
                self.note_unwanted(kind, &name);
            }
        }
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

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Dump(query, reply) => {
                let _ = reply.send(dump::render(&self.bootstrap, &self.state, &query));
            }
            Command::Save(reply) => {
                self.save().await;
                let _ = reply.send(());
            }
            Command::Leave(reply) => {
                let mut told = false;
                if let Link::Open(connection) = std::mem::replace(&mut self.link, Link::None) {
                    told = connection.finish(FAREWELL).await;
                    self.stats.connected.store(false, Relaxed);
                }
                let _ = reply.send(told);
            }
        }
    }

    /// After each event: put in force what is ready, subscribe to what is now referred to, acknowledge, say how far we are.
    fn step(&mut self) {
        let now = Instant::now();
        self.expire(now);
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
        let expiry = self.client.deadline().map(Instant::from_std);
        self.deadline = [deadline, self.next_sweep(), kept, expiry].into_iter().flatten().chain(first).min();
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
        let on_demand = self.is_on_demand();
        for kind in [Kind::Cluster, Kind::Assignment, Kind::Routes, Kind::Secret] {
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

    /// Sends the ACK or NACK of every response that is in force as far as it can be.
    fn acknowledge(&mut self) {
        let on_demand = self.is_on_demand();
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

fn new_client(bootstrap: &Bootstrap, features: &[&str]) -> Client {
    let variant = bootstrap.dynamic.as_ref().map_or(Variant::Incremental, |dynamic| dynamic.server.variant);
    Client::new(variant, bootstrap.node.to_message(features), rand::random())
}
