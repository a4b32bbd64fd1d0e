//! The life of one stream, as one task that owns all of its state.
//!
//! Requests go before pushes: an ACK is cheap, and a client at its start waits. Nothing is taken from the state machine before
//! the transport has room for it, so that behind a client that does not read changes merge instead of piling up.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use osier_proto::transport::{Link, Requests, Responses};
use osier_proto::types;
use osier_proto::types::core::Node;
use osier_proto::xds::server::{
    Options, ProtocolError, Request, Response, Scope, Status as TypeStatus, Step, Stream, Verdict, Want,
};
use osier_proto::xds::{Name, Resource, Variant};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::cache::Cache;
use super::callers::Callers;
use super::identity::{self, Authenticate, Caller, Identity};
use super::node::{Client, NodeError};
use super::registration::{Lease, Leases};
use super::rights::{Proof, Rights};
use super::status::{Connected, ConnectionStatus};
use crate::deadline;
use crate::r#gen::key::{Key, ResourceType, SecretsOf, View, Views};
use crate::r#gen::name::OutboundName;
use crate::r#gen::{self, Generated};
use crate::metrics::{Kind, Metrics, observe};
use crate::model::{Address, Kind as RuleKind, ResourceKey, ServiceKey, ServiceKind, TlsMode};
use crate::push::PushRequest;
use crate::push::fanout::{Fanout, Registered};
use crate::snapshot::{Change, MeshSnapshot};

/// A client that takes nothing for this long is let go: it will come back and ask for what it lacks.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// After this many resources others get a turn on the thread.
const TURN: usize = 64;

/// What all streams share.
#[derive(Debug)]
pub struct Shared {
    /// Who hears of changes.
    pub fanout: Arc<Fanout>,
    /// Encoded resources.
    pub cache: Cache,
    /// Who is connected.
    pub connected: Connected,
    /// How many streams each caller has.
    pub callers: Callers,
    /// Workloads that live with their streams.
    pub leases: Arc<Leases>,
    /// Bounds the pushes that are generated at a time.
    pub pushes: Semaphore,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// How old a stream gets, give or take a tenth: replicas that come later get their share of clients. `None`: any age.
    pub max_age: Option<Duration>,
    /// Ends all streams.
    pub shutdown: CancellationToken,
}

/// Serves a stream to its end. On the encrypted port, `authenticate` says who may come.
pub async fn serve(
    shared: Arc<Shared>,
    link: Link,
    authenticate: Option<Arc<dyn Authenticate>>,
) -> Result<(), Status> {
    let Link { variant, remote, metadata, mut requests, responses } = link;
    let caller = match &authenticate {
        Some(authenticate) => Some(identity::of_call(&**authenticate, &metadata).await?),
        None => None,
    };
    let place = caller.as_ref().map(|caller| {
        let place = shared.callers.admit(caller);
        place.ok_or_else(|| Status::resource_exhausted("this workload has too many streams already"))
    });
    let _place = place.transpose()?;
    // Registered before anything is read: no change can fall between.
    let (registered, snapshot) = shared.fanout.register();
    let first = tokio::select! {
        first = requests.next() => first?,
        () = shared.shutdown.cancelled() => None,
    };
    let Some(first) = first else { return Ok(()) };
    let proof = authenticate.zip(caller).map(|(authenticate, caller)| Proof { caller, authenticate });
    let mut served =
        Served::new(shared.clone(), registered, snapshot, Stream::new(variant, Options::default()));
    let ended = match served.begin(first, variant == Variant::Incremental, remote, proof).await {
        Ok(()) => served.run(&mut requests, &responses).await,
        Err(status) => Err(status),
    };
    shared.connected.remove(served.registered.id());
    if let Some(client) = &served.client {
        let error = ended.as_ref().err().map(Status::message);
        tracing::info!(node = %client.id, error, "client disconnected");
    }
    ended
}

struct Served {
    shared: Arc<Shared>,
    registered: Registered,
    snapshot: Arc<MeshSnapshot>,
    stream: Stream,
    client: Option<Arc<Client>>,
    /// Whether it may have keys.
    rights: Rights,
    lease: Option<Lease>,
    status: Option<Arc<ConnectionStatus>>,
    /// Why the client refused last, as it was logged.
    refusal: Option<Box<str>>,
    /// What resources may depend on of the client.
    views: Option<Views>,
    /// The machine may have something to do.
    busy: bool,
    /// Since when the transport has no room.
    blocked: Option<Instant>,
    /// When the change came whose last response isn't sent yet.
    converging: Option<Instant>,
}

impl Served {
    fn new(shared: Arc<Shared>, registered: Registered, snapshot: Arc<MeshSnapshot>, stream: Stream) -> Self {
        Self {
            shared,
            registered,
            snapshot,
            stream,
            client: None,
            rights: Rights::default(),
            lease: None,
            status: None,
            refusal: None,
            views: None,
            busy: false,
            blocked: None,
            converging: None,
        }
    }

    /// The first request says who it is.
    async fn begin(
        &mut self,
        first: Request,
        incremental: bool,
        remote: Option<SocketAddr>,
        proof: Option<Proof>,
    ) -> Result<(), Status> {
        let client = Client::parse(node_of(&first)).map_err(refuse_node)?;
        let client = Arc::new(match &proof {
            Some(proof) => proven(&proof.caller, client, &self.snapshot)?,
            None => unproven(client),
        });
        self.rights = Rights::of(proof);
        self.registered.identify(client.view.proxy.clone());
        let peer = remote.map(|a| a.to_string()).unwrap_or_default();
        let status = Arc::new(ConnectionStatus::new(&client, peer, incremental));
        self.shared.connected.add(self.registered.id(), status.clone());
        tracing::info!(node = %client.id, user_agent = %client.user_agent, incremental, "client connected");
        self.status = Some(status);
        let lease = client.registration.as_ref().map(|r| self.shared.leases.hold(r)).transpose();
        self.lease = lease.map_err(|taken| Status::already_exists(taken.to_string()))?;
        self.client = Some(client);
        self.see(self.snapshot.clone());
        self.find_rights(&first).await?;
        self.request(first)
    }

    /// Finds out whether the client may have the keys in Secrets of its namespace, where this request makes it matter.
    async fn find_rights(&mut self, request: &Request) -> Result<(), Status> {
        let Some(client) = &self.client else { return Ok(()) };
        let Some(secrets_of) = self.rights.find(client.view.proxy.gateway, request).await? else {
            return Ok(());
        };
        let view = View { secrets_of: Some(secrets_of), ..(*client.view).clone() };
        self.client = Some(Arc::new(Client { view: Arc::new(view), ..(**client).clone() }));
        self.views = None;
        self.see(self.snapshot.clone());
        Ok(())
    }

    async fn run(&mut self, requests: &mut Requests, responses: &Responses) -> Result<(), Status> {
        let shutdown = self.shared.shutdown.clone();
        let old =
            self.shared.max_age.map(|age| Instant::now() + age.mul_f64(0.9 + rand::random::<f64>() / 5.0));
        loop {
            let room_until = self.blocked.map(|since| since + SEND_TIMEOUT);
            let deadline = self.stream.deadline().map(Instant::from_std);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(Status::unavailable("the control plane is going down")),
                () = deadline::reached(old), if old.is_some() => {
                    return Err(Status::unavailable("this connection has reached its age: connect again"));
                }
                request = requests.next() => match request {
                    Ok(Some(request)) => {
                        self.find_rights(&request).await?;
                        self.request(request)?;
                    }
                    // The client says that it leaves.
                    Ok(None) => {
                        self.lease.take().into_iter().for_each(Lease::end);
                        return Ok(());
                    }
                    // The transport broke: the client comes back.
                    Err(_) => return Ok(()),
                },
                ready = responses.ready(), if self.busy => {
                    if !ready || !self.send(responses).await {
                        return Ok(());
                    }
                }
                () = deadline::reached(room_until), if self.busy => {
                    self.shared.metrics.write_timeout.inc();
                    return Err(Status::deadline_exceeded("the client does not read its responses"));
                }
                () = deadline::reached(deadline), if !self.busy => self.busy = true,
                mail = self.registered.mail(), if !self.busy => self.push(mail).await,
            }
        }
    }

    /// Sends the next response, if there is one; there is room for it. False where the client is gone.
    async fn send(&mut self, responses: &Responses) -> bool {
        self.blocked = None;
        let Some(response) = self.next_response().await else { return true };
        let kind = self.count(&response);
        let started = Instant::now();
        let sent = responses.send(response).await;
        if !sent {
            self.shared.metrics.push_errors.of(kind).inc();
        }
        observe(&self.shared.metrics.send_time, started.elapsed());
        self.blocked = Some(Instant::now());
        sent
    }

    fn request(&mut self, request: Request) -> Result<(), Status> {
        let reaction = self.stream.on_request(request, std::time::Instant::now()).map_err(refuse_request)?;
        self.busy = true;
        let kind = kind_of(&reaction.type_url);
        let metrics = &self.shared.metrics;
        match &reaction.verdict {
            Verdict::Spontaneous | Verdict::Ack { .. } => {}
            Verdict::Stale => metrics.expired_nonce.of(kind).inc(),
            Verdict::Nack(refusal) => {
                metrics.rejects.of(kind).inc();
                // A client may say it again for each response; told once, it is known.
                if self.refusal.as_deref() != Some(&*refusal.message) {
                    let node = self.client.as_ref().map_or("", |c| &c.id);
                    let (r#type, nonce) = (kind.label(), &refusal.nonce);
                    tracing::warn!(node, r#type, nonce, "refused: {}", refusal.message);
                    self.refusal = Some(refusal.message.as_str().into());
                }
            }
        }
        if reaction.over_limit > 0 {
            let node = self.client.as_ref().map_or("", |c| &c.id);
            tracing::warn!(
                node,
                r#type = kind.label(),
                names = reaction.over_limit,
                "too many names on one stream"
            );
        }
        self.note(&reaction.type_url);
        Ok(())
    }

    /// Generates what the machine asks for until it has something to send, or nothing more to do.
    async fn next_response(&mut self) -> Option<Response> {
        loop {
            match self.stream.next(std::time::Instant::now()) {
                Some(Step::Generate(want)) => self.answer(want).await,
                Some(Step::Send(response)) => return Some(response),
                None => {
                    self.busy = false;
                    if let Some(since) = self.converging.take() {
                        observe(&self.shared.metrics.convergence, since.elapsed());
                    }
                    return None;
                }
            }
        }
    }

    async fn answer(&mut self, want: Want) {
        let Some(kind) = ResourceType::of_url(&want.type_url) else {
            // Types that we don't serve have no resources.
            self.stream.answer(want, Vec::new());
            return;
        };
        let started = Instant::now();
        let names = self.names_of(kind, &want.scope);
        let resources = self.generate(kind, &names).await;
        self.stream.answer(want, resources);
        observe(self.shared.metrics.push_time.of(kind_of(kind.url())), started.elapsed());
    }

    /// The names of a scope. All: those of the wildcard, and those that were asked for beside it.
    fn names_of(&self, kind: ResourceType, scope: &Scope) -> Vec<Name> {
        let (Scope::All, Some(client)) = (scope, &self.client) else {
            return if let Scope::Names(names) = scope { names.clone() } else { Vec::new() };
        };
        let mut names: Vec<Name> =
            r#gen::names(kind, &client.view, &self.snapshot).into_iter().map(Name::from).collect();
        names.extend(self.stream.names(kind.url()).cloned());
        names.sort();
        names.dedup();
        names
    }

    /// Makes resources, and for clients that ask on demand puts what these refer to on its way ahead of them.
    async fn generate(&mut self, kind: ResourceType, names: &[Name]) -> Vec<Resource> {
        let mut resources = Vec::with_capacity(names.len());
        let (mut clusters, mut routes) = (BTreeSet::new(), BTreeSet::new());
        for (at, name) in names.iter().enumerate() {
            if let Some(made) = self.one(kind, name) {
                if self.is_on_demand() {
                    clusters.extend(made.clusters.iter().cloned());
                    routes.extend(made.routes.iter().cloned());
                }
                resources.push(made.resource);
            }
            if at % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
        }
        self.ahead(ResourceType::Cluster, &clusters);
        self.ahead(ResourceType::Endpoints, &clusters);
        self.ahead(ResourceType::Routes, &routes);
        resources
    }

    /// Sends what the client will need next, unless it is kept up to date already.
    fn ahead(&mut self, kind: ResourceType, names: &BTreeSet<String>) {
        let unknown = names.iter().filter(|name| !self.stream.wants(kind.url(), name));
        let resources: Vec<Resource> =
            unknown.filter_map(|name| self.one(kind, name)).map(|made| made.resource).collect();
        if !resources.is_empty() {
            self.stream.push_ahead(kind.url(), resources);
        }
    }

    fn one(&self, kind: ResourceType, name: &str) -> Option<Generated> {
        let view = self.views.as_ref()?.of(kind, name).clone();
        self.shared.cache.get(&Key { kind, name: name.into(), view }, &self.snapshot)
    }

    fn is_on_demand(&self) -> bool {
        self.client.as_ref().is_some_and(|c| c.view.is_on_demand())
    }

    /// Takes a snapshot as the one to generate from.
    fn see(&mut self, snapshot: Arc<MeshSnapshot>) {
        let Some(client) = &self.client else { return };
        let same_rules = Arc::ptr_eq(&snapshot.routes, &self.snapshot.routes)
            && Arc::ptr_eq(&snapshot.policies, &self.snapshot.policies)
            && Arc::ptr_eq(&snapshot.services, &self.snapshot.services);
        if !same_rules || self.views.is_none() {
            let sensitivity = self.shared.cache.sensitivity(&snapshot);
            self.views = Some(Views::new(client.view.clone(), &sensitivity));
        }
        self.snapshot = snapshot;
    }

    /// Offers the machine what a change can have touched; it sends what differs.
    async fn push(&mut self, mail: PushRequest) {
        let shared = self.shared.clone();
        // A closed semaphore is one more way to be going down.
        let Ok(_permit) = shared.pushes.acquire().await else { return };
        self.see(mail.snapshot.clone());
        self.converging = Some(self.converging.map_or(mail.since, |s| s.min(mail.since)));
        let subscribed: Vec<ResourceType> =
            ResourceType::ALL.into_iter().filter(|k| self.stream.status(k.url()).is_some()).collect();
        for kind in subscribed {
            let scope = match self.touched(kind, &mail.change) {
                Touched::Nothing => continue,
                Touched::Names(names) => Scope::Names(names),
                Touched::Everything if self.stream.is_wildcard(kind.url()) => Scope::All,
                Touched::Everything => Scope::Names(self.stream.names(kind.url()).cloned().collect()),
            };
            let names = self.names_of(kind, &scope);
            let resources = self.generate(kind, &names).await;
            self.stream.push(kind.url(), scope, resources);
        }
        self.busy = true;
    }

    /// Which resources of a type a change can have touched.
    fn touched(&self, kind: ResourceType, change: &Change) -> Touched {
        let by_rule = || change.rules.iter().any(|rule| rule_touches(rule.kind, kind));
        if change.mesh || !change.services.is_empty() || by_rule() {
            return Touched::Everything;
        }
        let Some(client) = &self.client else { return Touched::Nothing };
        if kind == ResourceType::Secret && (change.roots || !change.secrets.is_empty()) {
            return Touched::Everything;
        }
        // Which clusters a gateway has follows from its routes.
        if client.view.proxy.gateway && !change.ingresses.is_empty() && kind != ResourceType::Endpoints {
            return Touched::Everything;
        }
        let own = change.concerns_inbound(&client.view.proxy);
        let has_kind = |wanted: &[ServiceKind]| {
            let service = |key| self.snapshot.service_by_key(key);
            change.endpoints.iter().filter_map(service).any(|s| wanted.contains(&s.kind))
        };
        match kind {
            ResourceType::Endpoints => Touched::Names(self.names_of_hosts(kind, &change.endpoints)),
            // Endpoints of DNS services are in the cluster itself, those of the workload make inbound clusters.
            ResourceType::Cluster if own || has_kind(&[ServiceKind::Dns]) => Touched::Everything,
            // A cluster says who may answer.
            ResourceType::Cluster if change.identities.is_empty() => Touched::Nothing,
            ResourceType::Cluster if self.stream.is_wildcard(kind.url()) => Touched::Everything,
            ResourceType::Cluster => Touched::Names(self.names_of_hosts(kind, &change.identities)),
            ResourceType::Listener if own || has_kind(&[ServiceKind::Headless]) => Touched::Everything,
            ResourceType::NameTable if !has_kind(&[ServiceKind::Headless]) => Touched::Nothing,
            ResourceType::NameTable if self.stream.is_wildcard(kind.url()) => Touched::Everything,
            ResourceType::NameTable => Touched::Names(self.names_below(change)),
            _ => Touched::Nothing,
        }
    }

    /// The subscribed hosts that are, or may be short for, a service whose endpoints changed, or a pod of it.
    fn names_below(&self, change: &Change) -> Vec<Name> {
        let first = |key: &'_ ServiceKey| -> Box<str> {
            key.host.as_str().split('.').next().unwrap_or_default().into()
        };
        let services: BTreeSet<Box<str>> = change.endpoints.iter().map(first).collect();
        let below = |name: &&Name| name.split('.').take(2).any(|label| services.contains(label));
        self.stream.names(ResourceType::NameTable.url()).filter(below).cloned().collect()
    }

    /// The subscribed names that belong to these services.
    fn names_of_hosts(&self, kind: ResourceType, services: &BTreeSet<ServiceKey>) -> Vec<Name> {
        let hosts: BTreeSet<&str> = services.iter().map(|key| key.host.as_str()).collect();
        let belongs = |name: &&Name| OutboundName::parse(name).is_some_and(|n| hosts.contains(&*n.host));
        self.stream.names(kind.url()).filter(belongs).cloned().collect()
    }

    fn count(&self, response: &Response) -> Kind {
        use prost::Message;
        let (type_url, size) = match response {
            Response::Incremental(r) => (&r.type_url, r.encoded_len()),
            Response::StateOfTheWorld(r) => (&r.type_url, r.encoded_len()),
        };
        let kind = kind_of(type_url);
        self.shared.metrics.pushes.of(kind).inc();
        self.shared.metrics.config_size.of(kind).observe(size as f64);
        self.note(type_url);
        kind
    }

    /// Keeps the status that others see up to date.
    fn note(&self, type_url: &str) {
        let Some(kind) = ResourceType::of_url(type_url) else { return };
        let status: Option<TypeStatus> = self.stream.status(type_url);
        if let (Some(seen), Some(status)) = (&self.status, status) {
            seen.note(kind, status);
        }
    }
}

/// A client that has proved who it is. It can't be of another namespace or service account, nor another pod than the one that its token
/// is bound to; that pod's labels and addresses are those that the cluster knows. Of Secrets it gets those of its own namespace.
fn proven(caller: &Caller, mut client: Client, snapshot: &MeshSnapshot) -> Result<Client, Status> {
    let Caller { identity: Identity { namespace, service_account }, pod } = caller;
    let refused = |claimed: String| {
        Status::permission_denied(format!(
            "service account {namespace}/{service_account} can't speak for a workload of {claimed}"
        ))
    };
    let claimed = &client.view.proxy.namespace;
    if claimed != namespace {
        return Err(refused(format!("namespace {claimed}")));
    }
    if let Some(claimed) = client.service_account.as_deref().filter(|claimed| *claimed != &**service_account)
    {
        return Err(refused(format!("service account {claimed}")));
    }
    let secrets_of = SecretsOf { namespace: namespace.clone(), keys: false };
    let mut view = View { secrets_of: Some(secrets_of), ..(*client.view).clone() };
    if let Some(pod) = pod {
        if view.proxy.name != pod.name {
            let claimed = &view.proxy.name;
            return Err(Status::permission_denied(format!(
                "the token is that of pod {}, which can't speak for pod {claimed}",
                pod.name
            )));
        }
        take_from_cluster(&mut view, snapshot);
    }
    // Who can prove who it is here has a certificate from here.
    view.proxy.mutual_tls = true;
    client.view = Arc::new(view);
    if let Some(registration) = &mut client.registration {
        registration.service_account = Some(service_account.to_string());
    }
    Ok(client)
}

/// Labels and addresses of a pod as the cluster has them. One that isn't known yet (it has just begun, or its namespace doesn't count)
/// is as it says: it is that pod at least.
fn take_from_cluster(view: &mut View, snapshot: &MeshSnapshot) {
    let key = ResourceKey::new(RuleKind::Pod, view.proxy.namespace.clone(), view.proxy.name.clone());
    let Some(pod) = snapshot.workload(&key) else { return };
    view.proxy.labels = pod.labels.clone();
    let addresses: Box<[IpAddr]> = pod.addresses.iter().filter_map(Address::ip).collect();
    if !addresses.is_empty() {
        view.ipv6 = addresses.iter().any(IpAddr::is_ipv6);
        view.proxy.addresses = addresses;
    }
}

fn node_of(request: &Request) -> Option<&Node> {
    match request {
        Request::Incremental(request) => request.node.as_ref(),
        Request::StateOfTheWorld(request) => request.node.as_ref(),
    }
}

/// A client of which nobody knows who it is: others must not be told that it can prove anything. Envoy and gRPC have their
/// certificates from an agent beside them; those whose workload is labelled as one that takes mutual TLS are told where it holds.
fn unproven(mut client: Client) -> Client {
    if let Some(registration) = &mut client.registration {
        registration.service_account = None;
    }
    let has_agent =
        client.view.schema.is_none() && TlsMode::of_labels(&client.view.proxy.labels) == Some(TlsMode::Istio);
    if has_agent {
        let mut view = (*client.view).clone();
        view.proxy.mutual_tls = true;
        client.view = Arc::new(view);
    }
    client
}

/// Whether rules of a kind make resources of a type: those that the cache makes from them, too.
fn rule_touches(rule: RuleKind, kind: ResourceType) -> bool {
    match rule {
        RuleKind::VirtualService => {
            matches!(kind, ResourceType::Listener | ResourceType::Routes | ResourceType::VirtualHost)
        }
        // Callers find in endpoints who takes mutual TLS, or in the cluster where that decides for all of them.
        RuleKind::PeerAuthentication => {
            matches!(kind, ResourceType::Listener | ResourceType::Cluster | ResourceType::Endpoints)
        }
        rule if rule.is_security() => kind == ResourceType::Listener,
        // Neither routes nor policies have a say in what a host's addresses are.
        RuleKind::DestinationRule if kind == ResourceType::NameTable => false,
        _ => true,
    }
}

/// Which resources a change can have touched.
enum Touched {
    Nothing,
    Names(Vec<Name>),
    Everything,
}

fn kind_of(type_url: &str) -> Kind {
    match type_url {
        types::CLUSTER => Kind::Cds,
        types::CLUSTER_LOAD_ASSIGNMENT => Kind::Eds,
        types::LISTENER => Kind::Lds,
        types::ROUTE_CONFIGURATION => Kind::Rds,
        types::VIRTUAL_HOST => Kind::Vhds,
        types::NAME_TABLE => Kind::Nds,
        types::SECRET => Kind::Sds,
        _ => Kind::Other,
    }
}

fn refuse_node(error: NodeError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn refuse_request(error: ProtocolError) -> Status {
    match error {
        ProtocolError::NoNode | ProtocolError::NoType | ProtocolError::WrongVariant => {
            Status::invalid_argument(error.to_string())
        }
        ProtocolError::TooManyTypes => Status::resource_exhausted(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::Pod;
    use super::super::node::tests::node;
    use super::*;
    use crate::r#gen::fixture::pod;

    fn caller(name: &str) -> Caller {
        let identity = Identity { namespace: "default".into(), service_account: "web".into() };
        let pod = Some(Pod { name: name.into(), uid: "u".into() });
        Caller { identity, pod }
    }

    #[test]
    fn a_pod_is_what_the_cluster_knows_of_it() {
        let snapshot = MeshSnapshot {
            workloads: [pod("web-1", "10.0.0.7", [("app", "web")])].into_iter().map(Arc::new).collect(),
            ..MeshSnapshot::default()
        };
        let claims = |name: &str| {
            let node = node(&format!("sidecar~10.0.0.66~{name}.default~x"), &[]);
            Client::parse(Some(&node)).unwrap()
        };
        let known = proven(&caller("web-1"), claims("web-1"), &snapshot).unwrap();
        assert_eq!(known.view.proxy.labels.get("app"), Some("web"));
        assert_eq!(*known.view.proxy.addresses, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        let early = proven(&caller("web-2"), claims("web-2"), &snapshot).unwrap();
        assert_eq!(*early.view.proxy.addresses, ["10.0.0.66".parse::<IpAddr>().unwrap()]);
        let refused = proven(&caller("web-2"), claims("web-1"), &snapshot).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        assert!(refused.message().contains("can't speak for pod web-1"), "{}", refused.message());
    }
}
