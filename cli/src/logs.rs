//! `osier logs`: what the proxies of pods say, through the API server.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, Client, ResourceExt as _};

use crate::cluster::{Scope, said};
use crate::pods::Name;

/// Shows the log of a pod's sidecar; for a Deployment and the like, that of all its pods.
#[derive(clap::Args, Clone, Debug)]
#[command(
    // As kubectl logs has it.
    mut_arg("kubeconfig", |kubeconfig| kubeconfig.short(None)),
    after_help = "\
Examples:
  osier logs shop-6d5f-x2x1z.default
  osier logs deployment/shop -n default -f --tail 20
  osier logs shop-6d5f-x2x1z --since 10m -c shop"
)]
pub struct Arguments {
    /// Pod, POD.NAMESPACE, or deployment/NAME.
    #[arg(value_name = "NAME")]
    name: String,
    /// Go on with what is said from now on.
    #[arg(long, short = 'f')]
    follow: bool,
    /// Only what is younger than this, as 10m.
    #[arg(long, value_name = "TIME", value_parser = osier_core::duration::parse)]
    since: Option<Duration>,
    /// Only so many lines of each pod.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..))]
    tail: Option<i64>,
    /// Container.
    #[arg(long, short = 'c', value_name = "NAME", default_value = "istio-proxy")]
    container: String,
    /// Before the container's last restart.
    #[arg(long, short = 'p', conflicts_with = "follow")]
    previous: bool,
    #[command(flatten)]
    scope: Scope,
}

/// Prints the log.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let (client, namespace) = arguments.scope.client().await?;
    let pods = Name::parse(&arguments.name, &namespace)?.pods(&client).await?;
    let parameters = LogParams {
        container: Some(arguments.container.clone()),
        follow: arguments.follow,
        since_seconds: arguments.since.map(whole_seconds),
        tail_lines: arguments.tail,
        previous: arguments.previous,
        ..LogParams::default()
    };
    if let [pod] = pods.as_slice() {
        print_log(&client, pod, &parameters, "").await?;
        return Ok(ExitCode::SUCCESS);
    }
    let logs = pods.iter().map(async |pod| {
        let prefix = format!("[pod/{}/{}] ", pod.name_any(), arguments.container);
        let done = print_log(&client, pod, &parameters, &prefix).await;
        done.inspect_err(|error| eprintln!("osier: {}: {error:#}", pod.name_any())).is_ok()
    });
    // One after the other, unless none of them ends.
    let at_once = if arguments.follow { pods.len() } else { 1 };
    let good: Vec<bool> = stream::iter(logs).buffered(at_once).collect().await;
    Ok(if good.into_iter().all(|good| good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The API server takes whole seconds, and at least one.
fn whole_seconds(time: Duration) -> i64 {
    let rounded = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i64::try_from(rounded).unwrap_or(i64::MAX).max(1)
}

async fn print_log(client: &Client, pod: &Pod, parameters: &LogParams, prefix: &str) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let log = api.log_stream(&pod.name_any(), parameters).await.map_err(said)?;
    let mut lines = log.lines();
    while let Some(line) = lines.try_next().await.context("the log broke off")? {
        let written = writeln!(std::io::stdout().lock(), "{prefix}{line}");
        // Whoever read it has seen enough.
        if written.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_seconds() {
        for (time, seconds) in [("10m", 600), ("1500ms", 2), ("0s", 1)] {
            assert_eq!(whole_seconds(osier_core::duration::parse(time).expect(time)), seconds, "{time}");
        }
    }
}
