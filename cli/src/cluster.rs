//! The cluster that a command is about.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Heading of flags that say what is asked, in help texts.
pub const WHICH: &str = "Which mesh";

/// How long an API server has for its first answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Under which name fields of objects are ours (server-side apply).
pub const FIELD_MANAGER: &str = "osier";

/// Namespace of the control plane where nothing else is said.
pub const SYSTEM_NAMESPACE: &str = "osier-system";

/// Flags of every command that talks to an API server; named as kubectl's.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Cluster {
    /// File that says how to reach the API server. [default: as kubectl]
    #[arg(long, short = 'c', value_name = "FILE", help_heading = WHICH)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "NAME", help_heading = WHICH)]
    pub context: Option<String>,
}

/// Flags of every command about pods: the cluster, and where in it a name without a namespace is.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Scope {
    #[command(flatten)]
    pub cluster: Cluster,
    /// Namespace of names without one. [default: that of the kubeconfig's context]
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

impl Scope {
    /// A client, and the namespace of names without one.
    pub async fn client(&self) -> Result<(Client, String)> {
        let client = self.cluster.client().await?;
        let namespace = self.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        Ok((client, namespace))
    }
}

/// Flags that say which control plane; the first is named as istioctl's.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ControlPlane {
    /// Namespace of the control plane. [default: osier-system]
    #[arg(
        id = "system_namespace",
        long = "istioNamespace",
        alias = "istio-namespace",
        short = 'i',
        value_name = "NAMESPACE"
    )]
    pub namespace: Option<String>,
    /// Revision of the control plane. [default: all]
    #[arg(long, short = 'r', value_name = "NAME", help_heading = WHICH)]
    pub revision: Option<String>,
}

impl ControlPlane {
    /// Namespace that it lives in.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(SYSTEM_NAMESPACE)
    }

    /// Label selector of its pods.
    pub fn selector(&self) -> String {
        match &self.revision {
            Some(revision) => format!("app=osier-pilot,istio.io/rev={revision}"),
            None => "app=osier-pilot".into(),
        }
    }
}

impl Cluster {
    /// True if a flag says something.
    pub fn given(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

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
        let url = config.cluster_url.clone();
        let client = Client::try_from(config).context("cannot set up a client of the API server")?;
        // Whatever the answer is, somebody is there. A server that takes connections and is silent would hold each command for ever.
        match tokio::time::timeout(ANSWER, client.apiserver_version()).await {
            Ok(_) => Ok(client),
            Err(_) => bail!("the API server {url} does not answer within {} s", ANSWER.as_secs()),
        }
    }
}

/// What the API server said, without the layers around it.
pub fn said(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        other => anyhow::Error::new(other).context("the API server can't be asked"),
    }
}
