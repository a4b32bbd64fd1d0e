//! A control plane on loopback that a test plays: streams come out one by one, requests and responses as messages.

use std::collections::{BTreeMap, HashMap, HashSet};

use osier_proto::schema::{ControlPlaneIdentity, FEATURE_ON_DEMAND};
use osier_proto::transport::{self, Handler, Link};
use osier_proto::types::core::ControlPlane;
use osier_proto::types::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use osier_proto::types::rpc;
use osier_proto::xds::server::{Request, Response};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;

use super::*;
use crate::bootstrap::{Bootstrap, Dynamic, Node, XdsServer, XdsTarget};
use crate::dns::Directory;
use crate::on_demand::Limits;

/// The server; dropping it ends all streams.
pub(super) struct Server {
    pub(super) target: XdsTarget,
    links: mpsc::UnboundedReceiver<(Link, oneshot::Sender<()>)>,
    serving: tokio::task::JoinHandle<()>,
}

struct HandOver(mpsc::UnboundedSender<(Link, oneshot::Sender<()>)>);

impl Handler for HandOver {
    async fn serve(&self, link: Link) -> Result<(), Status> {
        let (alive, ended) = oneshot::channel();
        let _ = self.0.send((link, alive));
        // The stream lives as long as its session.
        let _ = ended.await;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    pub(super) async fn start() -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub(super) fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let (sender, links) = mpsc::unbounded_channel();
        let serving = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let service = transport::service(HandOver(sender));
            transport::server().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        let target = XdsTarget::Tcp(address.ip().to_string(), address.port());
        Self { target, links, serving }
    }

    /// The next stream.
    pub(super) async fn session(&mut self) -> Session {
        tokio::time::timeout(LONG, self.session_patient()).await.expect("a stream")
    }
}

/// One stream.
pub(super) struct Session {
    link: Link,
    nonce: u32,
    pub(super) identity: Option<ControlPlane>,
    _alive: oneshot::Sender<()>,
}

impl Session {
    /// The next request; `None` where the client ended the stream.
    pub(super) async fn request(&mut self) -> Option<DeltaDiscoveryRequest> {
        match tokio::time::timeout(LONG, self.link.request()).await.expect("a request") {
            Ok(Some(Request::Incremental(request))) => Some(request),
            Ok(Some(other)) => panic!("{other:?}"),
            Ok(None) | Err(_) => None,
        }
    }

    /// Requests until one of this type that fits.
    pub(super) async fn request_of(&mut self, type_url: &str) -> DeltaDiscoveryRequest {
        loop {
            let request = self.request().await.expect("the stream goes on");
            if request.type_url == type_url {
                return request;
            }
        }
    }

    /// Requests until one of this kind that fits.
    pub(super) async fn request_where(
        &mut self,
        kind: Kind,
        fits: impl Fn(&DeltaDiscoveryRequest) -> bool,
    ) -> DeltaDiscoveryRequest {
        loop {
            let request = self.request().await.expect("the stream goes on");
            if request.type_url == kind.type_url() && fits(&request) {
                return request;
            }
        }
    }

    /// Sends a response; gives its nonce.
    pub(super) async fn send(&mut self, kind: Kind, resources: &[(&str, Any)], removed: &[&str]) -> String {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            nonce: nonce.clone(),
            resources: resources.iter().map(|(name, body)| resource(name, body)).collect(),
            removed_resources: removed.iter().map(|n| (*n).to_owned()).collect(),
            control_plane: self.identity.clone(),
            ..Default::default()
        };
        self.send_raw(response).await;
        nonce
    }

    pub(super) async fn send_raw(&mut self, response: DeltaDiscoveryResponse) {
        assert!(self.link.send(Response::Incremental(response)).await, "the client is there");
    }

    /// The ACK (`None`) or NACK of a response.
    pub(super) async fn verdict(&mut self, kind: Kind, nonce: &str) -> Option<String> {
        let request = self.request_where(kind, |r| r.response_nonce == nonce).await;
        request.error_detail.map(|status| status.message)
    }
}

pub(super) fn resource(name: &str, body: &Any) -> Resource {
    let version = osier_proto::xds::Version::of(body).to_string();
    Resource { name: name.into(), version, resource: Some(body.clone()), ..Default::default() }
}

/// What Osier's pilot says of itself.
pub(super) fn pilot() -> Option<ControlPlane> {
    let identity = ControlPlaneIdentity {
        name: "fake".into(),
        features: vec![FEATURE_ON_DEMAND.into()],
        ..Default::default()
    };
    Some(identity.to_control_plane())
}

/// A proxy's xDS client under test.
pub(super) struct Proxy {
    pub(super) xds: Xds,
    pub(super) clusters: Arc<Clusters>,
    pub(super) snapshot: SharedSnapshot,
    pub(super) directory: Arc<Directory>,
}

pub(super) fn bootstrap(target: &XdsTarget) -> Bootstrap {
    Bootstrap {
        node: Node { id: "sidecar~10.0.0.1~a.b~b.svc".into(), cluster: "a.b".into(), ..Node::default() },
        dynamic: Some(Dynamic {
            server: XdsServer::new(target.clone(), None),
            listeners: true,
            clusters: true,
            listener_timeout: Some(Duration::from_secs(15)),
            cluster_timeout: Some(Duration::from_secs(15)),
        }),
        ..Bootstrap::default()
    }
}

pub(super) fn proxy(target: &XdsTarget, mode: Mode) -> Proxy {
    proxy_with(target, mode, false)
}

/// `asks_for_names`: one that answers DNS queries, too.
pub(super) fn proxy_with(target: &XdsTarget, mode: Mode, asks_for_names: bool) -> Proxy {
    let directory = Arc::new(Directory::new(&crate::dns::Settings {
        namespace: "default".into(),
        cluster_domain: "cluster.local".into(),
        forward_timeout: Duration::from_secs(5),
        forward_parallel: false,
    }));
    let (clusters, snapshot) = (Arc::<Clusters>::default(), SharedSnapshot::default());
    let options = Options {
        secrets: Default::default(),
        bootstrap: bootstrap(target),
        clusters: clusters.clone(),
        counters: Arc::default(),
        snapshot: snapshot.clone(),
        resolver: None,
        mode,
        directory: asks_for_names.then(|| directory.clone()),
        sockets: None,
    };
    Proxy { xds: start(options).unwrap(), clusters, snapshot, directory }
}

pub(super) fn sidecar(limits: Limits) -> Mode {
    Mode::OnDemand(Sidecar { listeners: vec!["virtualInbound".into()], limits, state_file: None })
}

/// A pilot that answers every name that it is asked for, on demand.
pub(super) struct Pilot {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    resources: Mutex<HashMap<(&'static str, String), Any>>,
    /// Names that it does not answer.
    silent: Mutex<HashSet<String>>,
    /// Send a change of this resource to whoever holds it.
    changed: Mutex<Vec<(Kind, String)>>,
    wake: tokio::sync::Notify,
    subscribed: Mutex<BTreeMap<(Kind, String), bool>>,
    nacks: Mutex<Vec<String>>,
    answers: std::sync::atomic::AtomicUsize,
}

impl Shared {
    fn is_wildcard(&self) -> bool {
        self.subscribed.lock().contains_key(&(Kind::Listener, "*".to_owned()))
    }

    /// Under the wildcard, a name that is given back is answered as gone.
    async fn release(&self, session: &mut Session, names: &[String]) {
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        session.send(Kind::Listener, &[], &names).await;
    }
}

impl Pilot {
    /// Serves the first and all later streams of `server`.
    pub(super) fn serve(mut server: Server) -> Self {
        let shared = Arc::<Shared>::default();
        tokio::spawn({
            let shared = shared.clone();
            async move {
                loop {
                    let mut session = server.session_patient().await;
                    session.identity = pilot();
                    tokio::spawn(answer(session, shared.clone()));
                }
            }
        });
        Self { shared }
    }

    /// Puts a resource in; who holds an older one gets it.
    pub(super) fn set(&self, kind: Kind, name: &str, body: Any) {
        self.shared.resources.lock().insert((kind.type_url(), name.to_owned()), body);
        self.changed(kind, name);
    }

    pub(super) fn remove(&self, kind: Kind, name: &str) {
        self.shared.resources.lock().remove(&(kind.type_url(), name.to_owned()));
        self.changed(kind, name);
    }

    fn changed(&self, kind: Kind, name: &str) {
        self.shared.changed.lock().push((kind, name.to_owned()));
        self.shared.wake.notify_one();
    }

    pub(super) fn keep_silent_about(&self, name: &str) {
        self.shared.silent.lock().insert(name.to_owned());
    }

    /// Whether a name is subscribed to; `None` where it never was.
    pub(super) fn subscribed(&self, kind: Kind, name: &str) -> Option<bool> {
        self.shared.subscribed.lock().get(&(kind, name.to_owned())).copied()
    }

    pub(super) fn nacks(&self) -> Vec<String> {
        self.shared.nacks.lock().clone()
    }
}

impl Server {
    async fn session_patient(&mut self) -> Session {
        let Some((link, alive)) = self.links.recv().await else { std::future::pending().await };
        Session { link, nonce: 0, identity: None, _alive: alive }
    }
}

async fn answer(mut session: Session, shared: Arc<Shared>) {
    loop {
        let request = tokio::select! {
            request = session.link.request() => match request {
                Ok(Some(Request::Incremental(request))) => request,
                _ => return,
            },
            () = shared.wake.notified() => {
                let changed = std::mem::take(&mut *shared.changed.lock());
                for (kind, name) in changed {
                    if shared.subscribed.lock().get(&(kind, name.clone())) == Some(&true) {
                        respond(&mut session, &shared, kind, &[name]).await;
                    }
                }
                continue;
            }
        };
        let kind = Kind::of(&request.type_url).expect("a known type");
        if let Some(rpc::Status { message, .. }) = request.error_detail {
            shared.nacks.lock().push(message);
        }
        {
            let mut subscribed = shared.subscribed.lock();
            for name in &request.resource_names_unsubscribe {
                subscribed.insert((kind, name.clone()), false);
            }
            for name in &request.resource_names_subscribe {
                subscribed.insert((kind, name.clone()), true);
            }
        }
        let silent = shared.silent.lock().clone();
        let gone = request.resource_names_unsubscribe.iter().filter(|_| shared.is_wildcard()).cloned();
        let gone: Vec<_> = gone.filter(|_| kind == Kind::Listener).collect();
        if !gone.is_empty() {
            shared.release(&mut session, &gone).await;
        }
        let first = kind == Kind::Listener && request.node.is_some();
        if first && request.resource_names_subscribe.is_empty() {
            shared.subscribed.lock().insert((kind, "*".into()), true);
            respond(&mut session, &shared, kind, &["virtualInbound".into()]).await;
        }
        let names: Vec<_> =
            request.resource_names_subscribe.into_iter().filter(|n| !silent.contains(n)).collect();
        if !names.is_empty() {
            respond(&mut session, &shared, kind, &names).await;
        }
    }
}

async fn respond(session: &mut Session, shared: &Shared, kind: Kind, names: &[String]) {
    shared.answers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let (mut there, mut gone) = (Vec::new(), Vec::new());
    for name in names {
        match shared.resources.lock().get(&(kind.type_url(), name.clone())) {
            Some(body) => there.push((name.as_str(), body.clone())),
            None => gone.push(name.as_str()),
        }
    }
    session.nonce += 1;
    let response = DeltaDiscoveryResponse {
        type_url: kind.type_url().into(),
        nonce: session.nonce.to_string(),
        resources: there.iter().map(|(name, body)| resource(name, body)).collect(),
        removed_resources: gone.iter().map(|n| (*n).to_owned()).collect(),
        control_plane: session.identity.clone(),
        ..Default::default()
    };
    // A client that is gone needs no answer.
    let _ = session.link.send(Response::Incremental(response)).await;
}
