//! From settings to a clean end. Read this first.
//!
//! The order of the start: parts that everything shares, workers, configuration (static resources are in force when
//! [`xds::start`] returns), sockets, admin and readiness. Housekeeping runs on the calling thread's runtime; traffic runs on
//! the workers' threads. The end: inbound connections finish politely while outbound ones go on, then what is left is cut.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use nix::errno::Errno;
use osier_core::admin;
use osier_core::drain::{Drain, Phase};
use osier_core::logging::Logging;
use osier_core::readiness::{Pending, Readiness};
use osier_core::registration::METADATA_KEY;
use osier_proto::xds::WILDCARD;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin::{Admin, OnePage, Order};
use crate::config::snapshot::Clusters;
use crate::descriptors;
use crate::dns::{self, Directory, Dns};
use crate::identity::files;
use crate::identity::renewal::Renewal;
use crate::listener::accept::Acceptors;
use crate::listener::arrival;
use crate::listener::self_check::{NotCaptured, SelfCheck};
use crate::node::Node;
use crate::settings::{DrainSettings, Interception, PodSettings, Settings, SidecarSettings};
use crate::status::{self, Status};
use crate::telemetry::access_log::AccessLogs;
use crate::telemetry::collector::Metrics;
use crate::upstream::dns::DnsResolver;
use crate::worker::{Shared, Workers};
use crate::xds::{self, Mode, Options};

/// A workload that has told the control plane goodbye ends once nothing has been open for so long, and does not sit out the drain
/// time: nobody picks it any more. Peers hear of it within a tenth of a second (pilot's short path for endpoints); who had picked it
/// before opens a connection within this time, which counts, and idle connections to it are closed by peers as they hear. Whoever
/// was not told (a pod behind Kubernetes, a pilot that is away) is waited for as long as Istio waits.
const QUIET: Duration = Duration::from_secs(1);

/// What a sidecar waits for whose pod has no rules; also the words that people find when they look why a pod is not ready.
const CAPTURE: &str = "capture: traffic of this pod is not captured: did the init container istio-init run? (`osier-proxy init`)";

/// Between two looks whether traffic is captured, while it isn't.
const CAPTURE_PAUSE: Duration = Duration::from_millis(200);

/// How long the last access log lines may take.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Runs a proxy until it is told to end. Call it on the housekeeping runtime.
pub async fn run(settings: Settings, logging: Logging) -> anyhow::Result<()> {
    let started = (Instant::now(), SystemTime::now());
    let mut signals = Signals::listen()?;
    let readiness = Readiness::default();
    let configured = readiness.wait_for("configuration");

    let shared = share(&settings);
    let workers = Workers::start(settings.concurrency, &shared).context("cannot start workers")?;
    let most = settings.max_connections.unwrap_or_else(descriptors::connections);
    let acceptors = Arc::new(Acceptors::new(workers.all(), arrival::serve).at_most(most));

    let static_clusters = settings.bootstrap.clusters.iter().map(|cluster| cluster.name.clone()).collect();
    let Settings { bootstrap, sidecar, mut pod, gateway, .. } = settings;
    let captures = sidecar.as_ref().is_some_and(|sidecar| sidecar.interception != Interception::None);
    let dns = pod.as_mut().and_then(|pod| pod.dns.take());
    let directory = dns.as_ref().map(|settings| Arc::new(Directory::new(settings)));
    let node = bootstrap.node.clone();
    let secrets = shared.secrets.clone();
    if let Some(server) =
        bootstrap.dynamic.as_ref().map(|dynamic| &dynamic.server).filter(|s| s.tls.is_some())
    {
        // Who can prove to the control plane who it is has an identity in the mesh.
        let first = readiness.wait_for("a certificate");
        let renewal = Renewal {
            server: server.clone(),
            secrets: secrets.clone(),
            own: shared.identity.clone(),
            snapshot: shared.snapshot.clone(),
            as_text: false,
        };
        tokio::spawn(renewal.run(first, |_| ()));
    }
    tokio::spawn(files::keep(secrets.clone(), shared.snapshot.clone()));
    let registered = node.metadata.contains_key(METADATA_KEY);
    let xds = xds::start(Options {
        bootstrap,
        clusters: shared.clusters.clone(),
        secrets,
        counters: shared.counters.clone(),
        snapshot: shared.snapshot.clone(),
        resolver: DnsResolver::system().map(Arc::new).map_err(warn_about_dns).ok(),
        mode: sidecar.map_or(Mode::All, on_demand),
        directory: directory.clone(),
        sockets: Some(acceptors.clone()),
    })?;
    listen(&shared, &acceptors)?;

    let (orders, mut ordered) = mpsc::channel(4);
    let pages = Arc::new(Admin {
        shared: shared.clone(),
        acceptors: acceptors.clone(),
        xds: xds.clone(),
        readiness: readiness.clone(),
        logging: Arc::new(logging),
        orders,
        node,
        static_clusters,
        started,
        concurrency: settings.concurrency,
        baseline: Default::default(),
        failed: Default::default(),
    });
    if let Some(address) = settings.readiness {
        let probe = Arc::new(OnePage::readiness(pages.clone()));
        tokio::spawn(admin::serve(bind("readiness", address).await?, probe));
    }
    if let Some(pod) = pod {
        if captures {
            let captured = readiness.wait_for(CAPTURE);
            tokio::spawn(check_capture(pod.addresses.clone(), shared.clone(), captured));
        }
        let dns = match dns.zip(directory) {
            Some((settings, directory)) => Some(serve_dns(&settings, directory).await?),
            None => None,
        };
        serve_pod(pod, dns, &pages).await?;
    }
    if let Some(address) = settings.admin {
        tokio::spawn(admin::serve(bind("admin", address).await?, pages));
    }
    tokio::spawn(follow(shared.clone(), acceptors.clone()));
    let ready = xds.clone();
    tokio::spawn(async move {
        ready.ready().await;
        drop(configured);
        tracing::info!("ready");
    });

    let order = tokio::select! {
        order = ordered.recv() => order.unwrap_or(Order::Quit),
        // The clients of a gateway come by listeners that lead outwards.
        () = signals.received() => Order::Drain { inbound_only: !gateway },
    };
    // Others stop to pick us before we stop to serve.
    let nobody_comes = registered && xds.leave().await;
    end(order, settings.drain, nobody_comes, &shared, &acceptors, &mut signals, &mut ordered).await;
    xds.save().await;
    drop(acceptors);
    workers.stop();
    shared.access_logs.finish(LAST_LINES);
    Ok(())
}

fn share(settings: &Settings) -> Arc<Shared> {
    let node = &settings.bootstrap.node;
    let node = Node::new(&node.id, &node.cluster, node.metadata_struct());
    Arc::new(Shared {
        metrics: Metrics::new(node.workload.clone()),
        node: Arc::new(node),
        clusters: Arc::<Clusters>::default(),
        drain: Drain::new(),
        access_logs: AccessLogs::default(),
        names_policies: settings.names_policies,
        server_first: settings.server_first.then(Default::default),
        ..Shared::default()
    })
}

fn on_demand(sidecar: SidecarSettings) -> Mode {
    let listeners = match sidecar.interception {
        Interception::Redirect | Interception::Tproxy => {
            vec!["virtualInbound".to_owned(), "virtualOutbound".to_owned()]
        }
        // Only the control plane knows which sockets the workload has.
        Interception::None => vec![WILDCARD.to_owned()],
    };
    Mode::OnDemand(xds::Sidecar { listeners, limits: Default::default(), state_file: sidecar.state_file })
}

fn warn_about_dns(error: impl std::fmt::Display) {
    tracing::warn!(%error, "DNS cannot be used; clusters that need it stay without endpoints");
}

/// Opens the sockets of what is in force at the start. Without them the proxy would be of no use, so a failure ends it.
fn listen(shared: &Shared, acceptors: &Acceptors) -> anyhow::Result<()> {
    let failed = acceptors.apply(&shared.snapshot.load());
    let texts: Vec<String> = failed.iter().map(ToString::to_string).collect();
    anyhow::ensure!(texts.is_empty(), "{}", texts.join("\n"));
    Ok(())
}

/// Looks whether the pod's traffic comes to us, until it does. Before there is a listener for it, nobody can tell.
async fn check_capture(mut addresses: Vec<IpAddr>, shared: Arc<Shared>, captured: Pending) {
    let (mut seen, mut failures) = (0, 0u32);
    let inbound = loop {
        let snapshot = shared.snapshot.changed_since(seen).await;
        if let Some(listener) = snapshot.listeners.values().find(|listener| listener.original_dst_filter) {
            break listener.clone();
        }
        seen = snapshot.generation;
    };
    // Not every control plane takes both families of a pod.
    let taken = |ip: &IpAddr| inbound.addresses().any(|own| own.is_ipv4() == ip.is_ipv4());
    if addresses.iter().any(taken) {
        addresses.retain(taken);
    }
    loop {
        match all_arrive(&shared.self_check, &addresses).await {
            Ok(()) => break,
            Err(error) => {
                failures += 1;
                // The socket may open a moment after its listener is in force.
                if failures == 2 {
                    tracing::error!(%error, "{CAPTURE}");
                }
            }
        }
        tokio::time::sleep(CAPTURE_PAUSE).await;
    }
    if failures > 1 {
        tracing::info!("traffic of this pod is captured now");
    }
    drop(captured);
}

async fn all_arrive(check: &SelfCheck, addresses: &[IpAddr]) -> Result<(), NotCaptured> {
    for address in addresses {
        check.run(*address).await?;
    }
    Ok(())
}

/// The ports that the kubelet and Prometheus know.
async fn serve_pod(pod: PodSettings, dns: Option<Arc<Dns>>, pages: &Arc<Admin>) -> anyhow::Result<()> {
    let everywhere = |port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let metrics = Arc::new(OnePage::metrics(pages.clone()));
    tokio::spawn(admin::serve(bind("metrics", everywhere(status::METRICS_PORT)).await?, metrics));
    let PodSettings { status_port, probers, scrape, .. } = pod;
    if let Some(port) = status_port {
        let status = Arc::new(Status::new(pages.clone(), probers, scrape, dns));
        tokio::spawn(admin::serve(bind("status", everywhere(port)).await?, status));
    }
    Ok(())
}

/// Answers the pod's DNS queries. Without the socket they would all get lost, so a failure ends the process.
async fn serve_dns(settings: &dns::Settings, directory: Arc<Directory>) -> anyhow::Result<Arc<Dns>> {
    let system = dns::System::read().unwrap_or_else(|error| {
        tracing::error!(%error, "resolv.conf cannot be used: DNS answers for hosts of the mesh alone");
        dns::System::default()
    });
    let server = Dns::new(settings, system, directory);
    server.listen(dns::PORT).await?;
    Ok(server)
}

/// A listening socket; for `[::]` one of both families, or of IPv4 alone where the kernel has no IPv6.
async fn bind(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) =>
        {
            TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port())).await
        }
        bound => bound,
    };
    let socket = bound.with_context(|| format!("{what}: cannot listen on {address}"))?;
    tracing::info!(address = %socket.local_addr()?, "{what} listens");
    Ok(socket)
}

/// Keeps the sockets as the snapshot says.
async fn follow(shared: Arc<Shared>, acceptors: Arc<Acceptors>) {
    let mut seen = 0;
    loop {
        let snapshot = shared.snapshot.changed_since(seen).await;
        seen = snapshot.generation;
        for error in acceptors.apply(&snapshot) {
            tracing::error!(%error, "a listener has no socket");
        }
    }
}

/// Drains as ordered; returns when it is time to leave. A second signal cuts it short.
async fn end(
    order: Order,
    settings: DrainSettings,
    nobody_comes: bool,
    shared: &Shared,
    acceptors: &Acceptors,
    signals: &mut Signals,
    ordered: &mut mpsc::Receiver<Order>,
) {
    let Order::Drain { inbound_only } = order else { return };
    let phase = if inbound_only { Phase::DrainingInbound } else { Phase::Draining };
    // Told in advance (a native sidecar's preStop): whoever was to hear of it has heard, and the application has ended.
    let began = shared.drain.since();
    shared.drain.advance(phase);
    let time = settings.time.saturating_sub(began.unwrap_or_default());
    tracing::info!(?time, open = shared.drain.open(), "draining");
    let drained = async {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = shared.drain.emptied(), if began.is_some() => return,
            () = shared.drain.quiet_for(QUIET), if nobody_comes => return,
        }
        if settings.until_idle {
            // Nobody new: else a busy client would keep the process for ever.
            acceptors.close(inbound_only);
            shared.drain.emptied().await;
        }
    };
    tokio::select! {
        () = drained => tracing::info!(open = shared.drain.open(), "drained"),
        () = signals.received() => tracing::info!("told twice, ending now"),
        _ = ordered.recv() => tracing::info!("told to quit, ending now"),
    }
    shared.drain.advance(Phase::Closing);
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
