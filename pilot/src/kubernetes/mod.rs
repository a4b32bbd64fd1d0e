//! The control plane as a citizen of its cluster: how it reaches the API server, and what it keeps there.

mod authority;
mod lease;
mod status;
mod webhook;

use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::settings::Cluster;

/// A watch hears a bookmark once a minute; after this much silence the connection counts as lost.
const SILENCE: Duration = Duration::from_secs(150);
const CONNECT: Duration = Duration::from_secs(5);

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
