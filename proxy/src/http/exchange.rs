//! One request from start to finish. Read [`handle`] first: it is the order of everything.
//!
//! `http::server` calls it with a head that was parsed and checked, a body to pull and a responder to push. Decisions are made by
//! pure functions (`normalize`, `router`, `filters`, `retry`); here they are put in order. What then goes on between client and
//! endpoint is `attempt`'s, what the client gets is `answer`'s. The whole exchange is one future on the connection's worker: no
//! task, no channel, no lock.
//!
//! Invariant: every exchange is recorded once, when it ends or is dropped.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;
use std::time::SystemTime;

use super::answer::Answer;
use super::attempt::Plan;
use super::body::RequestBody;
use super::clock::Clock;
use super::consult::Stop;
use super::filters::{client_certificate, direct, forwarded, header_ops, rewrite};
use super::head::{Known, RequestHead};
use super::normalize::{Normalized, normalize};
use super::replay::{BodyState, Peeked};
use super::reply::LocalReply;
use super::retry::RetryState;
use super::router;
use super::server::{Arrival, Handler, Responder};
use super::template::Context;
use super::timeout::Timeouts;
use super::upgrade::{self, Wish};
use crate::authz::{self, Facts};
use crate::config::cluster::ClusterHandle;
use crate::config::listener::{Direction, StripPort};
use crate::config::route::{
    Action, Forward, ForwardTarget, HeaderOps, HostRewrite, RequireTls, Route, VirtualHost, VirtualHosts,
};
use crate::error::{Kind, Progress, ProxyError, Side};
use crate::jwt::{Accepted, Refusal, Tokens};
use crate::on_demand::{Answer as HostAnswer, HostLookup};
use crate::telemetry;
use crate::telemetry::record::{Flags, RequestRecord};
use osier_core::on_demand::OUTSIDE;

/// What `http::server` calls for the requests of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Exchanges;

impl Handler for Exchanges {
    async fn handle(
        &self,
        arrival: Arrival<'_>,
        head: &mut RequestHead,
        body: RequestBody<'_>,
        responder: Responder<'_>,
    ) {
        handle(arrival, head, body, responder).await;
    }

    async fn refuse(
        &self,
        arrival: Arrival<'_>,
        head: Option<&RequestHead>,
        error: ProxyError,
        responder: Responder<'_>,
    ) {
        let mut head = head.cloned().unwrap_or_default();
        Exchange::begin(arrival, &mut head, responder).fail(error).await;
    }
}

/// Serves one request.
pub async fn handle(
    arrival: Arrival<'_>,
    head: &mut RequestHead,
    mut body: RequestBody<'_>,
    responder: Responder<'_>,
) {
    // Declared before the exchange, because its record refers to them until it is written.
    let host: Host<'_>;
    let target: Target<'_>;
    let mut exchange = Exchange::begin(arrival, head, responder);

    // Who asks, and what for?
    let wish = upgrade::wish(arrival.manager, exchange.incoming.head);
    if wish == Wish::Connect {
        return exchange.connect().await;
    }
    if let Some(reply) = exchange.settle() {
        return exchange.reply(reply).await;
    }

    // Does somebody outside let it in?
    if !arrival.manager.authorizers.is_empty() {
        // Few requests go this way, so its memory is not every request's.
        match Box::pin(exchange.consult(&mut body)).await {
            Ok(()) => {}
            Err(Stop::Reply(reply)) => return exchange.reply(*reply).await,
            Err(Stop::Fail(error)) => return exchange.fail(error).await,
        }
    }

    // For whom, by its tokens? And may it?
    if let Err(refusal) = exchange.authenticate() {
        let reply = direct::not_authenticated(refusal, exchange.incoming.head);
        return exchange.reply(reply).await;
    }
    if let Some(reply) = exchange.deny() {
        return exchange.reply(reply).await;
    }

    // Which virtual host and route take it?
    host = match find_host(&arrival, exchange.incoming.routing_head()).await {
        Ok(host) => host,
        Err(error) => return exchange.fail(error).await,
    };
    if exchange.must_use_tls(&host) {
        let reply = direct::to_https(exchange.incoming.head);
        return exchange.reply(reply).await;
    }
    let random = arrival.worker.random();
    let incoming = &exchange.incoming;
    let Some(route) = router::find_route(&host, incoming.routing_head(), &incoming.tokens, random) else {
        let detail = format!("virtual host {} has no route for this request", host.name);
        return exchange.fail(internal(Kind::NoRoute, detail)).await;
    };
    exchange.answer.matched(&host, route);

    // What does the route do with it?
    match &route.action {
        Action::Direct(fixed) => exchange.reply(direct::fixed(fixed)).await,
        Action::Redirect(redirect) => {
            let reply = direct::redirect(redirect, &route.matches, exchange.incoming.head);
            exchange.reply(reply).await;
        }
        Action::NonForwarding => {
            let detail = format!("route {} forwards nothing", route.name);
            exchange.fail(internal(Kind::NoRoute, detail)).await;
        }
        Action::Forward(forward) => {
            target = Target::choose(&arrival, forward, exchange.incoming.head, random);
            exchange.forward(forward, &target, wish, body).await;
        }
    }
}

/// A running exchange: everything that is known of it, so that it can be recorded whenever it ends.
pub(super) struct Exchange<'a> {
    pub(super) incoming: Incoming<'a>,
    pub(super) answer: Answer<'a>,
}

/// The client's request.
pub(super) struct Incoming<'a> {
    /// As the client sent it, and bit by bit as the upstream gets it.
    pub(super) head: &'a mut RequestHead,
    /// As policies saw it, where the upstream gets another and policies may come.
    pub(super) original: Option<Box<RequestHead>>,
    pub(super) clock: Clock,
    /// The head as routes are chosen by it, where an external authorizer has changed it since.
    pub(super) routed_by: Option<Box<RequestHead>>,
    /// How far its body has been read.
    pub(super) body: BodyState,
    /// What was read of the body for an external authorizer.
    pub(super) peeked: Peeked,
    /// May control this proxy by headers.
    internal: bool,
    /// What speaks for it.
    pub(super) tokens: Tokens<'a>,
}

impl Incoming<'_> {
    /// What routes are chosen by.
    fn routing_head(&self) -> &RequestHead {
        self.routed_by.as_deref().unwrap_or(self.head)
    }
}

impl<'a> Exchange<'a> {
    fn begin(arrival: Arrival<'a>, head: &'a mut RequestHead, responder: Responder<'a>) -> Self {
        let (clock, body) = (Clock::start(), BodyState::new(false));
        let downstream = arrival.connection.downstream();
        let mut record = RequestRecord::new(downstream, Some(head.version), clock.started());
        record.grpc = head.is_grpc();
        let line = head.method_str().len() + head.path().len() + head.authority().len();
        record.received_head = (line + head.fields.wire_len()) as u64;
        Self {
            incoming: Incoming {
                head,
                original: None,
                clock,
                routed_by: None,
                body,
                peeked: Peeked::default(),
                internal: false,
                tokens: Tokens::new(),
            },
            answer: Answer::new(arrival, responder, record),
        }
    }

    pub(super) async fn fail(&mut self, error: ProxyError) {
        self.answer.fail(&self.incoming, error).await;
    }

    async fn reply(&mut self, reply: LocalReply) {
        self.answer.reply(&self.incoming, reply).await;
    }

    async fn connect(&mut self) {
        self.incoming.clock.request_complete();
        if let Err(error) = self.answer.hand_over().await {
            self.answer.cut(&error);
        }
    }

    /// Settles who the client is and what it asks for. An answer, where it has to ask in another way.
    fn settle(&mut self) -> Option<LocalReply> {
        let Self { incoming, answer } = self;
        let Arrival { worker, connection, manager } = answer.arrival;
        let head = &mut *incoming.head;
        let origin = forwarded::settle(manager, connection.inputs.source, connection.encrypted, head);
        client_certificate::settle(manager.forward_certificate, connection, head);
        answer.record.downstream.remote = origin.remote;
        incoming.internal = origin.internal;
        if connection.direction == Direction::Inbound {
            head.fields.remove(Known::XEnvoyDecoratorOperation);
            if manager.peer_metadata.receive {
                answer.peer_told = head.fields.contains(Known::XEnvoyPeerMetadataId);
                answer.record.peer = worker.peers.take(&mut head.fields);
            }
        }
        strip_port(manager.strip_port, connection.inputs.destination.port(), head);
        let path = match normalize(head.path(), manager.normalize) {
            Normalized::Path(Cow::Borrowed(path)) if path.len() == head.path().len() => return None,
            Normalized::Path(path) => path.into_owned(),
            Normalized::Redirect(path) => return Some(direct::to_path(head, &path)),
            Normalized::Refused(details) => {
                let flags = Flags::DOWNSTREAM_PROTOCOL;
                return Some(LocalReply { flags, ..LocalReply::new(400, "", details) }.closing());
            }
        };
        head.set_path(&path);
        None
    }

    /// Verifies the request's tokens, where that is asked for.
    fn authenticate(&mut self) -> Result<(), Refusal> {
        let Self { incoming, answer } = self;
        let Arrival { worker, manager, .. } = answer.arrival;
        let Some(authentication) = manager.authentication.as_deref() else { return Ok(()) };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let checked = authentication.check(incoming.head, &worker.tokens, now, worker.random());
        authentication.tally.count(worker.id, checked.is_ok());
        incoming.tokens = checked.inspect_err(|_| answer.note_route_at_hand(incoming.head, &[]))?;
        Ok(())
    }

    /// The answer to what no policy allows, or one denies.
    fn deny(&mut self) -> Option<LocalReply> {
        let Self { incoming, answer } = self;
        let Arrival { worker, connection, manager } = answer.arrival;
        if manager.authorization.is_empty() {
            return None;
        }
        let remote = answer.record.downstream.remote.ip();
        let facts = Facts::of_connection(connection).with_request(incoming.head, remote, &incoming.tokens);
        let denial = authz::check(&manager.authorization, &facts, worker.id).err()?;
        answer.note_route_at_hand(incoming.head, &incoming.tokens);
        Some(direct::denied(denial, worker.shared.names_policies))
    }

    fn must_use_tls(&self, host: &VirtualHost) -> bool {
        let insecure = || self.incoming.head.fields.get(Known::XForwardedProto) != Some(b"https");
        match host.require_tls {
            RequireTls::None => false,
            RequireTls::ExternalOnly => !self.incoming.internal && insecure(),
            RequireTls::All => insecure(),
        }
    }

    /// Forwards the request to the cluster that was chosen.
    async fn forward(
        &mut self,
        forward: &'a Forward,
        target: &'a Target<'a>,
        wish: Wish,
        body: RequestBody<'_>,
    ) {
        let Self { incoming, answer } = self;
        let manager = answer.arrival.manager;
        answer.cluster_not_found_status = forward.cluster_not_found_status;
        answer.record.cluster_name = Some(target.name());
        if let Err(error) = upgrade::allow(manager, forward, incoming.head, wish) {
            return self.fail(error).await;
        }
        let Some(cluster) = target.handle().and_then(|handle| handle.current.load_full()) else {
            let detail = format!("cluster {} doesn't exist", target.name());
            return self.fail(internal(Kind::NoCluster, detail)).await;
        };
        answer.record.cluster = Some(cluster.clone());
        incoming.clock.limit(Timeouts::of(&manager.timeouts, forward, incoming.head));
        let retries = RetryState::new(forward.retry.as_deref(), incoming.head);
        let told = self.tells_peer(target);
        // A peer may say that it didn't process it, and then it moves even where nothing is retried.
        self.incoming.body = BodyState::new((retries.may_replay() || told) && wish == Wish::None);
        self.prepare(forward, target, told);
        let plan = Plan { forward, cluster: &cluster, wish };
        self.attempts(plan, retries, body).await;
    }

    /// True where the request tells a peer who sends it.
    fn tells_peer(&self, target: &Target<'_>) -> bool {
        let Arrival { worker, connection, manager } = self.answer.arrival;
        manager.peer_metadata.send
            && connection.direction != Direction::Inbound
            && worker.shared.node.told.is_some()
            && !is_outside_the_mesh(target.name())
    }

    /// Turns the client's head into the upstream's, as far as it is the same for every attempt.
    fn prepare(&mut self, forward: &Forward, target: &Target<'a>, tells_peer: bool) {
        let Self { incoming, answer } = self;
        if let Some(levels) = &mut answer.levels {
            levels.specific_first[0] = target.headers;
        }
        let changes = forward.rewrites()
            || target.host_rewrite.is_some()
            || answer.levels.is_some_and(|levels| levels.change_requests());
        if changes && answer.arrival.connection.is_policed() {
            incoming.original = Some(Box::new(incoming.head.clone()));
        }
        let head = &mut *incoming.head;
        if let (Some(levels), Some(route)) = (&mut answer.levels, answer.record.route) {
            header_ops::apply_to_request(levels, head, &answer.record);
            rewrite::rewrite_path(forward, &route.matches, head);
        }
        if !matches!(forward.host_rewrite, HostRewrite::Auto) {
            rewrite::rewrite_host(forward, target.host_rewrite, None, head);
        }
        if let Some(own) = answer.arrival.worker.shared.node.told.as_ref().filter(|_| tells_peer) {
            own.add_to(&mut head.fields);
        }
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        let Self { incoming, answer } = self;
        answer.complete_record(incoming);
        let Arrival { worker, connection, manager } = answer.arrival;
        let context = Context {
            record: &answer.record,
            request: Some(incoming.head),
            response: Some(&answer.head),
            trailers: answer.trailers.as_ref(),
        };
        if !answer.handed_over {
            worker.metrics.request(connection.direction, &answer.record);
        }
        telemetry::write_logs(worker, &manager.access_log, &context);
        worker.give_response(std::mem::take(&mut answer.head));
    }
}

/// A virtual host: of the table, or got on demand.
enum Host<'a> {
    Known(&'a VirtualHost),
    OnDemand(Arc<VirtualHost>),
}

impl Deref for Host<'_> {
    type Target = VirtualHost;

    fn deref(&self) -> &VirtualHost {
        match self {
            Self::Known(host) => host,
            Self::OnDemand(host) => host,
        }
    }
}

/// Finds the virtual host for a request; asks for it, and waits a while, where the table is filled on demand.
async fn find_host<'a>(arrival: &Arrival<'a>, head: &RequestHead) -> Result<Host<'a>, ProxyError> {
    let authority = head.authority();
    let Some(table) = arrival.manager.routes.as_deref() else {
        let name = arrival.manager.route_config_name.as_deref().unwrap_or_default();
        return Err(internal(Kind::NoRoute, format!("route table {name} is not there")));
    };
    let absent = || {
        let shown = String::from_utf8_lossy(authority);
        internal(Kind::NoRoute, format!("no virtual host for {shown} in route table {}", table.name))
    };
    let hosts = match &table.hosts {
        VirtualHosts::OnDemand(hosts) => hosts,
        VirtualHosts::Known(index) => {
            let found = router::find_host(index, authority, table.ignore_port_in_host);
            return found.map(|host| Host::Known(host)).ok_or_else(absent);
        }
    };
    let authority = std::str::from_utf8(authority).map_err(|_| absent())?;
    let answer = match hosts.get(authority, arrival.manager.explicit_proxy) {
        HostLookup::Known(host) => return Ok(Host::OnDemand(host)),
        HostLookup::Absent => return Err(absent()),
        HostLookup::Wait(wait) => wait.answer().await,
    };
    match answer {
        HostAnswer::Known(host) => Ok(Host::OnDemand(host)),
        HostAnswer::Absent => Err(absent()),
        HostAnswer::Silent => {
            Err(internal(Kind::NoConfiguration, format!("configuration for {authority} not received")))
        }
    }
}

/// The route that a denied request would have taken, where that is known without asking.
fn route_at_hand<'a>(
    arrival: &Arrival<'a>,
    head: &RequestHead,
    tokens: &[Accepted<'_>],
) -> Option<&'a Route> {
    let table = arrival.manager.routes.as_deref()?;
    let VirtualHosts::Known(index) = &table.hosts else { return None };
    let host = router::find_host(index, head.authority(), table.ignore_port_in_host)?;
    router::find_route(host, head, tokens, arrival.worker.random()).map(|route| &**route)
}

impl Answer<'_> {
    /// Metrics and logs show where a request was going that doesn't get there.
    pub(super) fn note_route_at_hand(&mut self, head: &RequestHead, tokens: &[Accepted<'_>]) {
        let Some(route) = route_at_hand(&self.arrival, head, tokens) else { return };
        self.record.route = Some(route);
        if let Action::Forward(forward) = &route.action
            && let ForwardTarget::Cluster(handle) = &forward.target
        {
            self.record.cluster_name = Some(&handle.name);
            self.record.cluster = handle.current.load_full();
        }
    }
}

/// The cluster that a route chose for a request.
pub(super) struct Target<'a> {
    cluster: Named<'a>,
    headers: Option<&'a HeaderOps>,
    host_rewrite: Option<&'a str>,
}

enum Named<'a> {
    /// The route holds it.
    Held(&'a Arc<ClusterHandle>),
    /// The request named it.
    Asked(Arc<ClusterHandle>),
    /// The request named one that nobody knows, or none.
    Unknown(Box<str>),
}

impl<'a> Target<'a> {
    fn choose(arrival: &Arrival<'_>, forward: &'a Forward, head: &RequestHead, random: u64) -> Self {
        let plain = |cluster| Self { cluster, headers: None, host_rewrite: None };
        match &forward.target {
            ForwardTarget::Cluster(handle) => plain(Named::Held(handle)),
            ForwardTarget::Weighted(clusters) => {
                let chosen = clusters.choose(random);
                Self {
                    cluster: Named::Held(&chosen.cluster),
                    headers: Some(&chosen.headers),
                    host_rewrite: chosen.host_rewrite.as_deref(),
                }
            }
            ForwardTarget::Header(name) => {
                let name = String::from_utf8_lossy(head.fields.get(name.as_name()).unwrap_or_default());
                match arrival.worker.shared.clusters.get(&name) {
                    Some(handle) => plain(Named::Asked(handle)),
                    None => plain(Named::Unknown(name.into())),
                }
            }
        }
    }

    fn handle(&self) -> Option<&ClusterHandle> {
        match &self.cluster {
            Named::Held(handle) => Some(handle),
            Named::Asked(handle) => Some(handle),
            Named::Unknown(_) => None,
        }
    }

    fn name(&self) -> &str {
        match &self.cluster {
            Named::Held(handle) => &handle.name,
            Named::Asked(handle) => &handle.name,
            Named::Unknown(name) => name,
        }
    }
}

/// Clusters behind which nobody understands peer metadata.
pub(super) fn is_outside_the_mesh(cluster: &str) -> bool {
    matches!(cluster, "PassthroughCluster" | "BlackHoleCluster") || cluster.starts_with(OUTSIDE)
}

fn strip_port(rule: StripPort, own: u16, head: &mut RequestHead) {
    if rule == StripPort::No {
        return;
    }
    let authority = head.authority();
    let host = router::without_port(authority);
    if host.len() == authority.len() {
        return;
    }
    let port =
        std::str::from_utf8(&authority[host.len() + 1..]).ok().and_then(|port| port.parse::<u16>().ok());
    if rule == StripPort::Any || port == Some(own) {
        let host = host.to_vec();
        head.set_authority(&host);
    }
}

fn internal(kind: Kind, detail: impl Into<Cow<'static, str>>) -> ProxyError {
    ProxyError::new(kind, Side::Internal, Progress::NothingSent, detail)
}

#[cfg(test)]
mod tests;
