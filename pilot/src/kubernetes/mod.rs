//! The control plane as a citizen of its cluster: how it reaches the API server, and what it keeps there.

mod addresses;
mod authority;
#[cfg(test)]
pub mod fake;
mod ingress;
mod injection;
mod lease;
mod root;
mod secrets;
mod status;
mod token;
mod trust;

use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use osier_core::readiness::Pending;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ca::in_force::{InForce, Signs};
use crate::ca::own;
use crate::server;
use crate::settings::Cluster;
use crate::snapshot::MeshSnapshot;
use crate::source::kubernetes::named;
use crate::store::writer::Status;
use crate::webhook::certificate::{Current, server_config};
use crate::webhook::{self, Webhook};
use addresses::AddressWriter;
use authority::Authorities;
use ingress::IngressStatus;
use lease::Candidate;
use root::Roots;
use secrets::Secrets;
use status::StatusWriter;
pub use token::Tokens;
use trust::Webhooks;

/// A watch hears a bookmark once a minute; after this much silence the connection counts as lost.
const SILENCE: Duration = Duration::from_secs(150);
const CONNECT: Duration = Duration::from_secs(5);
/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// How long giving the lease back may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A kubeconfig can't be used.
    #[error("the kubeconfig {file} can't be used")]
    Kubeconfig {
        /// The file, as told.
        file: String,
        /// Why.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// Neither a pod's environment nor a kubeconfig.
    #[error(
        "nothing says where resources come from: there is no kubeconfig and this is no pod (name a folder with --source, or a \
         kubeconfig with --kubeconfig)"
    )]
    Nowhere(#[source] kube::config::InferConfigError),
    /// TLS or authentication can't be set up.
    #[error("the API server's client can't be made")]
    Client(#[source] kube::Error),
}

/// What the control plane does in its cluster beside serving xDS.
pub struct Citizen {
    /// Talks to the API server.
    pub client: Client,
    /// Who we are there.
    pub cluster: Cluster,
    /// What there is to say about resources.
    pub status: watch::Receiver<Arc<Status>>,
    /// The mesh, for what it gives to resources.
    pub mesh: watch::Receiver<Arc<MeshSnapshot>>,
    /// The handlers of the webhooks, and where they are served; `None` where nobody serves them here.
    pub webhook: Option<(Arc<Webhook>, TcpListener)>,
    /// Where gateways' certificates go; `None` where there is no port on which gateways could have them.
    pub gateways: Option<crate::store::writer::Secrets>,
    /// What our servers show.
    pub certificate: Arc<Current>,
    /// Where who signs certificates is put in force, and where it can be followed.
    pub authority: (InForce, Signs),
    /// Dropped once our servers can be called.
    pub starting: Pending,
    /// Ends it all.
    pub shutdown: CancellationToken,
}

impl Citizen {
    /// Runs until `shutdown`.
    pub async fn live(self) {
        let Self {
            client,
            cluster,
            status,
            mesh,
            webhook,
            gateways,
            certificate,
            authority,
            starting,
            shutdown,
        } = self;
        let (in_force, signs) = authority;
        let (leads, leadership) = watch::channel(false);
        let candidate = Candidate {
            client: client.clone(),
            namespace: cluster.namespace.clone(),
            name: named("osier-pilot-leader", &cluster.revision),
            identity: identity(),
        };
        let mut tasks = JoinSet::new();
        let candidate = tokio::spawn(candidate.run(leads, shutdown.clone()));
        tasks.spawn(StatusWriter { client: client.clone(), status }.run(leadership.clone()));
        tasks.spawn(AddressWriter { client: client.clone(), mesh: mesh.clone() }.run(leadership.clone()));
        let ingress = IngressStatus {
            client: client.clone(),
            namespace: cluster.namespace.clone(),
            snapshot: mesh.clone(),
        };
        tasks.spawn(ingress.run(leadership.clone()));
        if webhook.is_some() || gateways.is_some() {
            let authorities =
                Authorities { client: client.clone(), namespace: cluster.namespace.clone(), in_force };
            tasks.spawn(authorities.run(leadership.clone()));
            let name = format!("{}.{}.svc", named("osier-pilot", &cluster.revision), cluster.namespace);
            let names = vec![name.clone(), format!("{name}.{}", cluster.cluster_domain)];
            tasks.spawn(own::keep(signs.clone(), certificate.clone(), names, starting));
            if let Some(feed) = gateways {
                tasks.spawn(Secrets { client: client.clone(), snapshot: mesh.clone(), feed }.run());
                let (client, namespace, authority) =
                    (client.clone(), cluster.namespace.clone(), signs.clone());
                tasks.spawn(Roots { client, namespace, authority, snapshot: mesh }.run(leadership.clone()));
            }
            if let Some((webhook, listener)) = webhook {
                tasks.spawn(injection::follow(client.clone(), cluster.clone(), webhook.clone()));
                let config = match server_config(certificate.clone()) {
                    Ok(config) => config,
                    Err(error) => return tracing::error!("webhooks can't be served: {error}"),
                };
                let router = webhook::router(webhook);
                tasks.spawn(server::serve("webhook", listener, router, Some(config), shutdown.clone()));
                let Cluster { namespace, revision, .. } = cluster.clone();
                tasks.spawn(Webhooks { client, namespace, revision, authority: signs }.run(leadership));
            }
        } else {
            drop(starting);
        }
        shutdown.cancelled().await;
        // The candidate gives its lease back; everything else just ends.
        let _ = tokio::time::timeout(GOODBYE, candidate).await;
        tasks.shutdown().await;
    }
}

/// Different for each replica: the pod's name, else something of this process.
fn identity() -> String {
    let process = || format!("{}-{}", std::process::id(), rand::random::<u32>());
    std::env::var("POD_NAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(process)
}

/// A client as the settings say: a kubeconfig that was named, else the pod's own, else kubectl's.
pub async fn client(cluster: &Cluster) -> Result<Client, ClientError> {
    let mut config = match (&cluster.kubeconfig, &cluster.context) {
        (None, None) => Config::infer().await.map_err(ClientError::Nowhere)?,
        (file, context) => {
            let shown = file.as_ref().map_or_else(|| "of kubectl".into(), |file| file.display().to_string());
            let failed = |source| ClientError::Kubeconfig { file: shown.clone(), source };
            let read = file.as_ref().map_or_else(Kubeconfig::read, Kubeconfig::read_from);
            let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(read.map_err(failed)?, &options).await.map_err(failed)?
        }
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    Client::try_from(config).map_err(ClientError::Client)
}
