//! The cluster that a command is about.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Namespace of the control plane where nothing else is said.
pub const SYSTEM_NAMESPACE: &str = "osier-system";

/// Flags of every command that talks to an API server; named as kubectl's.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Cluster {
    /// File that says how to reach the API server. [default: as kubectl]
    #[arg(long, short = 'c', value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl Cluster {
    /// A client, as kubectl would make it; inside of a pod, as the pod's service account.
    pub async fn client(&self) -> Result<Client> {
        let config = match (&self.kubeconfig, &self.context) {
            (None, None) => kube::Config::infer()
                .await
                .context("there is no kubeconfig and this is no pod: name a kubeconfig with --kubeconfig")?,
            (file, context) => {
                let read = match file {
                    Some(file) => Kubeconfig::read_from(file)
                        .with_context(|| format!("cannot use the kubeconfig {}", file.display()))?,
                    None => Kubeconfig::read().context("cannot use the kubeconfig of kubectl")?,
                };
                let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
                kube::Config::from_custom_kubeconfig(read, &options)
                    .await
                    .context("the kubeconfig says no way to an API server")?
            }
        };
        Client::try_from(config).context("cannot set up a client of the API server")
    }
}

/// What the API server said, without the layers around it.
pub fn said(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        other => anyhow::Error::new(other).context("the API server can't be asked"),
    }
}
