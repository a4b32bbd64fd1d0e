//! From settings to a running control plane, and down again.
//!
//! Start: bind the ports (a port in use is found before anything else happens), read the source once, then serve xDS. So the first
//! client already meets the whole mesh; until then /ready says what is awaited. End: streams are told that we go, then the tasks stop.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use osier_core::logging::Logging;
use osier_core::readiness::Readiness;
use osier_proto::transport;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch::Receiver;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;

use crate::admin::Admin;
use crate::ca::in_force::{InForce, Signs};
use crate::ca::limit::Limits;
use crate::ca::local::{Local, LocalError};
use crate::ca::service::Certificates;
use crate::ca::{self, own};
use crate::debug::{self, ConfigView, Pages};
use crate::jwks::fetch::Fetcher;
use crate::jwks::keeper::{self, Keeper};
use crate::kubernetes::{self, Citizen, ClientError};
use crate::metrics::{Metrics, Reason, observe};
use crate::preface::Prefaced;
use crate::push::PushRequest;
use crate::push::debounce::{self, Debounced, Timing};
use crate::push::fanout::Fanout;
use crate::server;
use crate::settings::Settings;
use crate::snapshot::Change;
use crate::source::folder::Folder;
use crate::source::kubernetes::{self as api_server, Scope};
use crate::source::watch;
use crate::store::State;
use crate::store::writer::{Feed, Outputs, Parts, Published, Secrets, Status, Writer};
use crate::webhook::Webhook;
use crate::webhook::certificate::{Current, server_config};
use crate::xds::cache::Cache;
use crate::xds::callers::Callers;
use crate::xds::encrypted;
use crate::xds::identity::Authenticate;
use crate::xds::registration::Leases;
use crate::xds::service::Discovery;
use crate::xds::status::Connected;
use crate::xds::stream::Shared;

/// Clients that may wait until they are accepted; after a restart all come at once.
const BACKLOG: u32 = 4096;
/// What clients have to end after they were told that we go.
const END_TIME: Duration = Duration::from_secs(8);
/// How long the first client waits for the first key sets; only while there are policies that want some.
const FIRST_KEYS: Duration = Duration::from_secs(5);

/// Why the control plane could not start, or went down.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A port is taken, or not ours to take.
    #[error("cannot listen on {address} for {purpose} (choose another with {flag})")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What it is for.
        purpose: &'static str,
        /// The flag that sets it.
        flag: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The folder cannot be read.
    #[error("cannot read the folder {}", folder.display())]
    Source {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        #[source]
        source: std::io::Error,
    },
    /// Nothing says how to reach an API server.
    #[error(transparent)]
    ApiServer(#[from] ClientError),
    /// Somebody must say who callers are.
    #[error("--encrypted-xds-address needs --identity-folder where resources come from a folder")]
    NoIdentityFolder,
    /// The certificate authority can't be used.
    #[error(transparent)]
    Identity(#[from] LocalError),
    /// A server ended by itself.
    #[error("the {purpose} server ended: {reason}")]
    Server {
        /// Which.
        purpose: &'static str,
        /// Why.
        reason: String,
    },
}

/// Where resources come from.
enum Source {
    Folder(PathBuf),
    ApiServer(kube::Client),
}

/// What follows a source; ends when dropped.
#[allow(dead_code, reason = "held for their end")]
enum Follower {
    Folder(watch::Follower),
    ApiServer(api_server::Follower),
}

/// A control plane whose ports are bound.
pub struct Pilot {
    settings: Settings,
    source: Source,
    xds: TcpSocket,
    monitoring: TcpListener,
    webhook: Option<TcpListener>,
    encrypted: Option<TcpListener>,
}

/// Runs a control plane until `shutdown` is cancelled, with the admin interface beside it.
pub async fn run(settings: Settings, logging: Logging, shutdown: CancellationToken) -> Result<(), AppError> {
    let admin = settings.admin_address();
    let pilot = Pilot::bind(settings).await?;
    let mut beside = JoinSet::new();
    if let Some(address) = admin {
        let listener = listen(address, "administration", "--admin-address").await?;
        let pages = Admin { logging: Arc::new(logging) };
        beside.spawn(osier_core::admin::serve(listener, Arc::new(pages)));
    }
    // Once in the life of the process.
    Box::pin(pilot.run(shutdown)).await
}

impl Pilot {
    /// Binds the ports and looks at the source. Nothing is served yet.
    pub async fn bind(settings: Settings) -> Result<Self, AppError> {
        let source = match &settings.source {
            Some(folder) => Self::folder(folder).await?,
            None => Source::ApiServer(kubernetes::client(&settings.cluster).await?),
        };
        let xds = bound(settings.xds_address, "xDS", "--xds-address")?;
        let monitoring = listen(settings.monitoring_address, "monitoring", "--monitoring-address").await?;
        let webhook = match settings.webhook_address {
            Some(address) => Some(listen(address, "webhooks", "--webhook-address").await?),
            None => None,
        };
        let encrypted = match settings.encrypted_xds_address {
            Some(address) => Some(listen(address, "encrypted xDS", "--encrypted-xds-address").await?),
            None => None,
        };
        Ok(Self { settings, source, xds, monitoring, webhook, encrypted })
    }

    async fn folder(folder: &PathBuf) -> Result<Source, AppError> {
        let metadata = tokio::fs::metadata(folder).await;
        let is_folder = metadata.and_then(|m| match m.is_dir() {
            true => Ok(()),
            false => Err(std::io::Error::from(std::io::ErrorKind::NotADirectory)),
        });
        is_folder.map_err(|source| AppError::Source { folder: folder.clone(), source })?;
        Ok(Source::Folder(folder.clone()))
    }

    /// Where xDS is served.
    pub fn xds_address(&self) -> SocketAddr {
        self.xds.local_addr().unwrap_or(self.settings.xds_address)
    }

    /// Where metrics and debug pages are served.
    pub fn monitoring_address(&self) -> SocketAddr {
        self.monitoring.local_addr().unwrap_or(self.settings.monitoring_address)
    }

    /// Serves until `shutdown` is cancelled.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AppError> {
        let (xds_address, monitoring_address) = (self.xds_address(), self.monitoring_address());
        let metrics = Arc::new(Metrics::new());
        let Parts { writer, feed, registrations, secrets, keys, outputs } =
            Writer::new(self.settings.cluster.cluster_domain.as_str().into());
        let Outputs { snapshot, changes, status } = outputs;
        let fanout = Fanout::new(metrics.clone());
        let shared = Arc::new(Shared {
            fanout: fanout.clone(),
            cache: Cache::new(metrics.clone()),
            connected: Connected::default(),
            callers: Callers::default(),
            leases: Leases::new(registrations, metrics.clone(), self.settings.state_file.clone()),
            pushes: Semaphore::new(self.settings.concurrent_pushes()),
            metrics: metrics.clone(),
            max_age: Some(self.settings.max_connection_age).filter(|age| !age.is_zero()),
            shutdown: shutdown.clone(),
        });
        let mut tasks = JoinSet::new();
        let writer = match &self.source {
            Source::Folder(_) => writer,
            Source::ApiServer(_) => writer.wait_for_pods(),
        };
        tasks.spawn(writer.run());
        tasks.spawn(push(
            changes,
            shared.clone(),
            Timing::new(self.settings.debounce_after, self.settings.debounce_max),
        ));
        tasks.spawn(count_reports(status.clone(), metrics.clone()));
        let fetcher = Fetcher::new(&self.settings.jwks_blocked.0);
        let keeper = Keeper::new(fetcher, self.settings.jwks_refresh, keys, metrics.clone());
        tasks.spawn(keeper.run(snapshot.clone()));
        let mut citizen = None;
        let mut callers: Option<Arc<dyn Authenticate>> = None;
        let certificate = Arc::new(Current::default());
        let (in_force, authority) = InForce::new(metrics.clone());
        tasks.spawn(tell_roots(authority.clone(), secrets.clone()));
        let readiness = Readiness::default();
        let reading = readiness.wait_for("configuration");
        let config = Arc::new(Config { status: status.clone() });
        let pages = Pages {
            metrics: metrics.clone(),
            shared: shared.clone(),
            known: snapshot.clone(),
            config,
            readiness: readiness.clone(),
        };
        let monitoring =
            server::serve("monitoring", self.monitoring, debug::router(pages), None, shutdown.clone());
        let monitoring = tokio::spawn(monitoring);
        if let Source::ApiServer(client) = &self.source {
            let cluster = self.settings.cluster.clone();
            let webhook = self.webhook.map(|listener| {
                (Webhook::new(cluster.cluster_domain.as_str().into(), metrics.clone()), listener)
            });
            let starting = readiness.wait_for("the servers' certificate");
            let gateways = self.encrypted.is_some().then_some(secrets);
            callers = Some(Arc::new(kubernetes::Tokens(client.clone())));
            let (client, shutdown, mesh) = (client.clone(), shutdown.clone(), snapshot.clone());
            let certificate = certificate.clone();
            let lives = Citizen {
                client,
                cluster,
                status,
                mesh,
                webhook,
                gateways,
                certificate,
                authority: (in_force, authority.clone()),
                starting,
                shutdown,
            };
            citizen = Some(tokio::spawn(lives.live()));
        } else if let (Some(folder), Some(listener)) = (&self.settings.identity_folder, &self.encrypted) {
            let address = listener.local_addr().map_err(|e| ended("encrypted xDS")(e.to_string()))?;
            let local = Local::make(folder)?;
            callers = Some(Arc::new(local.tokens()?));
            local.tell_address(address)?;
            let names = vec!["localhost".to_owned(), address.ip().to_string()];
            let starting = readiness.wait_for("the servers' certificate");
            tasks.spawn(own::keep(authority.clone(), certificate.clone(), names, starting));
            local.offer(&in_force)?;
            tasks.spawn(local.follow(in_force));
        } else if self.encrypted.is_some() {
            return Err(AppError::NoIdentityFolder);
        }
        let failed =
            |source| AppError::Listen { address: xds_address, purpose: "xDS", flag: "--xds-address", source };
        let xds = self.xds.listen(BACKLOG).map_err(failed)?;
        let _follower = tokio::select! {
            follower = read(&self.source, &self.settings, feed) => follower?,
            () = shutdown.cancelled() => return Ok(()),
        };
        // Clients of an earlier process have keys; they are not to be told first that there are none.
        tokio::select! {
            _ = tokio::time::timeout(FIRST_KEYS, keeper::tried_once(snapshot.clone())) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        // The first push would wait for quiet; the first client should not.
        fanout.publish(PushRequest::new(snapshot.borrow().clone(), Change::everything()));
        drop(reading);
        tracing::info!(xds = %xds_address, monitoring = %monitoring_address, source = %self.source, "ready");

        let incoming = patient(TcpIncoming::from(xds).with_nodelay(Some(true))).map_ok(Prefaced::new);
        let service = transport::service(Discovery { shared: shared.clone(), authenticate: None });
        let xds = transport::server()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        let encrypted = async {
            let (Some(listener), Some(callers)) = (self.encrypted, callers) else { return Ok(()) };
            let failed = ended("encrypted xDS");
            let tls = server_config(certificate).map_err(|e| failed(e.to_string()))?;
            let certificates = Certificates {
                authority,
                authenticate: callers.clone(),
                mesh: snapshot.clone(),
                limits: Limits::default(),
                metrics: shared.metrics.clone(),
            };
            let discovery = transport::service(Discovery { shared, authenticate: Some(callers) });
            let server =
                transport::server().add_service(discovery).add_service(ca::service::service(certificates));
            let incoming = encrypted::incoming(listener, tls).map_ok(Prefaced::new);
            let served = server.serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
            served.await.map_err(|e| ended("encrypted xDS")(e.to_string()))
        };
        let servers = async {
            tokio::try_join!(
                encrypted,
                async { xds.await.map_err(|e| ended("xDS")(e.to_string())) },
                async { monitoring.await.map_err(|e| ended("monitoring")(e.to_string())) },
            )?;
            if let Some(citizen) = citizen {
                let _ = citizen.await;
            }
            Ok(())
        };
        // Who doesn't hear that we go is left behind.
        let late = async {
            shutdown.cancelled().await;
            tokio::time::sleep(END_TIME).await;
        };
        let ended = tokio::select! {
            ended = servers => ended,
            () = late => {
                tracing::info!("connections are left that did not end");
                Ok(())
            }
        };
        tasks.shutdown().await;
        ended
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::ApiServer(_) => f.write_str("API server"),
        }
    }
}

fn ended(purpose: &'static str) -> impl FnOnce(String) -> AppError {
    move |reason| AppError::Server { purpose, reason }
}

/// Tells the mesh what its roots are.
async fn tell_roots(mut authority: Signs, secrets: Secrets) {
    while let Ok(()) = authority.changed().await {
        if let Some(authority) = authority.borrow_and_update().clone() {
            secrets.set_roots(authority.roots());
        }
    }
}

/// Reads the source once, and follows it from then on.
async fn read(source: &Source, settings: &Settings, feed: Feed) -> Result<Follower, AppError> {
    let cluster_domain: Arc<str> = settings.cluster.cluster_domain.as_str().into();
    match source {
        Source::Folder(path) => {
            let failed = |source| AppError::Source { folder: path.clone(), source };
            let mut folder = Folder::new(path, cluster_domain);
            let scanning = tokio::task::spawn_blocking(move || folder.scan().map(|scan| (folder, scan)));
            let (folder, scan) = scanning.await.map_err(io::Error::other).flatten().map_err(failed)?;
            feed.send_and_wait(scan.updates, scan.reports).await;
            let follower = watch::Follower::start(folder, feed, watch::Timing::default());
            follower.map(Follower::Folder).map_err(failed)
        }
        Source::ApiServer(client) => {
            let scope = Scope {
                namespace: settings.cluster.namespace.clone(),
                revision: settings.cluster.revision.clone(),
                cluster_domain,
            };
            Ok(Follower::ApiServer(api_server::follow(client.clone(), scope, feed).await))
        }
    }
}

/// Waits a moment after each connection that can't be accepted: where the process has run out of something, the next one can't
/// either. Said once for as long as it lasts.
fn patient<C>(incoming: impl Stream<Item = io::Result<C>>) -> impl Stream<Item = io::Result<C>> {
    let mut failing = false;
    incoming.then(move |accepted| {
        let first = !std::mem::replace(&mut failing, accepted.is_err());
        async move {
            if let Err(error) = &accepted {
                if first {
                    tracing::error!(%error, "xDS: cannot accept");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            accepted
        }
    })
}

/// Takes an address without listening there yet: whoever finds somebody listening must find all that goes with it.
fn bound(address: SocketAddr, purpose: &'static str, flag: &'static str) -> Result<TcpSocket, AppError> {
    let socket = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    socket().map_err(|source| AppError::Listen { address, purpose, flag, source })
}

async fn listen(
    address: SocketAddr,
    purpose: &'static str,
    flag: &'static str,
) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(|source| AppError::Listen { address, purpose, flag, source })
}

/// From changes of the mesh to the streams: merge, wait for quiet, put in force, tell.
async fn push(mut changes: mpsc::UnboundedReceiver<Published>, shared: Arc<Shared>, timing: Timing) {
    let (requests, merged) = mpsc::unbounded_channel();
    let metrics = shared.metrics.clone();
    let counted = async move {
        while let Some(Published { snapshot, change }) = changes.recv().await {
            let request = PushRequest::new(snapshot, change);
            request.reasons.iter().for_each(|reason| metrics.inbound_updates.of(*reason).inc());
            if requests.send(request).is_err() {
                break;
            }
        }
    };
    let pushed = debounce::run(merged, timing, |debounced| {
        publish(&shared, debounced);
        std::future::ready(())
    });
    tokio::join!(counted, pushed);
}

fn publish(shared: &Shared, debounced: Debounced<PushRequest>) {
    let Debounced { request, events, first } = debounced;
    let metrics = &shared.metrics;
    observe(&metrics.debounce, first.elapsed());
    request.reasons.iter().for_each(|reason: &Reason| metrics.triggers.of(*reason).inc());
    let snapshot = &request.snapshot;
    metrics.services.set(snapshot.services.iter().count() as i64);
    metrics.virtual_services.set(snapshot.routes.iter().count() as i64);
    tracing::debug!(version = snapshot.version, events, reasons = ?request.reasons, "push");
    let config_changed = !request.change.endpoints_only();
    shared.fanout.publish(request);
    if config_changed {
        shared.cache.sweep();
    }
}

async fn count_reports(mut status: Receiver<Arc<Status>>, metrics: Arc<Metrics>) {
    while status.changed().await.is_ok() {
        let not_as_written =
            |state| matches!(state, State::Refused | State::LastGood | State::HeldBack | State::FailsClosed);
        let refused = status.borrow().resources.iter().filter(|r| not_as_written(r.state)).count();
        metrics.refused.set(refused as i64);
    }
}

/// What the writer says of the resources.
#[derive(Debug)]
struct Config {
    status: Receiver<Arc<Status>>,
}

impl ConfigView for Config {
    fn show(&self) -> Value {
        let status = self.status.borrow();
        let reports = status.reports.iter().map(|report| {
            let mut shown = serde_json::to_value(report).unwrap_or_default();
            shown["text"] = json!(report.to_string());
            shown
        });
        json!({ "resources": status.resources, "reports": reports.collect::<Vec<_>>() })
    }
}
