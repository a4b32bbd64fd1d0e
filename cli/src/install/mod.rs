//! `osier install`, `upgrade`, `uninstall`, `precheck`, `tag`: the control plane into a cluster, and out of it.
//!
//! `chart` fills the Helm chart's templates in, `values` says with what, `apply` talks to the API server, `precheck` looks at the
//! cluster first, `tag` gives revisions names. What was chosen is kept in a ConfigMap beside the control plane, so that an upgrade keeps it.

mod apply;
mod chart;
mod precheck;
mod tag;
mod values;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::ListParams;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, ResourceExt as _};
use osier_core::say;
use osier_pilot::inject::{MeshSettings, Values};
use osier_pilot::source::check_mesh_config;
use osier_pilot::source::kubernetes::named;
use serde_json::{Value, json};

use crate::cluster::{Cluster, SYSTEM_NAMESPACE, said};
use values::Chosen;

pub use precheck::{Arguments as PrecheckArguments, run as precheck};
pub use tag::{Arguments as TagArguments, run as tag};

/// Installs the control plane, or brings an installed one to what is asked.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier install
  osier install --set pilot.replicaCount=2 --set meshConfig.accessLogFile=/dev/stdout
  osier install --revision canary
  osier install --output yaml | kubectl apply --server-side -f -")]
pub struct InstallArguments {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    chosen: Chosen,
}

/// Brings an installed control plane to this version; what was chosen for it stays.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier upgrade
  osier upgrade --revision canary --set pilot.replicaCount=2")]
pub struct UpgradeArguments {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    chosen: Chosen,
}

/// Removes a control plane. Istio's kinds and what people wrote stay, and so do the sidecars that are there.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier uninstall
  osier uninstall --revision canary
  osier uninstall --purge")]
pub struct UninstallArguments {
    #[command(flatten)]
    cluster: Cluster,
    /// Control plane to remove.
    #[arg(long, short = 'r', value_name = "NAME", default_value = "default", conflicts_with = "purge")]
    revision: String,
    /// Remove the control planes of all revisions.
    #[arg(long)]
    purge: bool,
    /// Say what would be removed.
    #[arg(long)]
    dry_run: bool,
}

/// Where to, and how far.
#[derive(clap::Args, Clone, Debug)]
struct Target {
    #[command(flatten)]
    cluster: Cluster,
    /// Namespace of the control plane.
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    namespace: String,
    /// Let the API server check everything, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the manifests and talk to no cluster.
    #[arg(long, short = 'o', value_enum)]
    output: Option<Format>,
    /// How long to wait until the control plane is ready; 0s doesn't wait.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = osier_core::duration::parse)]
    readiness_timeout: Duration,
}

/// How manifests are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Yaml,
    Json,
}

/// `osier install`.
pub async fn install(arguments: InstallArguments) -> Result<ExitCode> {
    put(&arguments.target, &arguments.chosen.overlay(json!({}))?).await
}

/// `osier upgrade`.
pub async fn upgrade(arguments: UpgradeArguments) -> Result<ExitCode> {
    let target = &arguments.target;
    let client = target.cluster.client().await?;
    let revision = arguments.chosen.revision.as_deref().unwrap_or("default");
    let kept = kept_values(&client, &target.namespace, revision).await?;
    let Some(kept) = kept else {
        bail!("there is no control plane {revision} in {}: `osier install` makes one", target.namespace);
    };
    put(target, &arguments.chosen.overlay(kept)?).await
}

/// Makes the cluster be as `chosen` says.
async fn put(target: &Target, chosen: &Value) -> Result<ExitCode> {
    let mut values = values::complete(chosen)?;
    // Sidecars look for the control plane where it is.
    values["global"]["istioNamespace"] = target.namespace.as_str().into();
    let definitions = chart::definitions()?;
    let mut objects = chart::render(&target.namespace, &values)?;
    check_configuration(&objects)?;
    let revision = revision_of(&values);
    objects.push(record(&target.namespace, revision, chosen)?);
    let namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": target.namespace },
    });
    if let Some(format) = target.output {
        print(std::iter::once(&namespace).chain(&definitions).chain(&objects), format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let client = target.cluster.client().await?;
    let dry = target.dry_run;
    if apply::get(&client, &namespace).await?.is_none() {
        apply::apply(&client, &namespace, dry).await?;
        if dry {
            // Nothing can be tried in a namespace that isn't there.
            say!("{} would be made, and in it:", apply::label_of(&namespace));
            objects.iter().for_each(|object| say!("  {}", apply::label_of(object)));
            return Ok(ExitCode::SUCCESS);
        }
    }
    let left_alone = put_definitions(&client, &definitions, dry).await?;
    let others = if left_alone == 0 {
        String::new()
    } else {
        format!(" ({left_alone} belong to somebody else and stay as they are)")
    };
    say!("✔ Istio's kinds are defined{others}");
    for object in &mut objects {
        tag::respect_default(&client, object).await?;
        apply::apply(&client, object, dry).await?;
    }
    if dry {
        say!("✔ the API server would take all {} objects; nothing was changed", objects.len());
        return Ok(ExitCode::SUCCESS);
    }
    remove_former(&client, revision, &objects).await?;
    say!("✔ control plane {revision} is in namespace {}", target.namespace);
    if !target.readiness_timeout.is_zero() {
        wait_ready(&client, target, revision).await?;
        say!("✔ control plane {revision} is ready");
    }
    Ok(ExitCode::SUCCESS)
}

/// Holds what the control plane will read against its own rules: what it can't read it would refuse when nobody looks any more.
fn check_configuration(objects: &[Value]) -> Result<()> {
    let texts = |key: &'static str| objects.iter().filter_map(move |object| object["data"][key].as_str());
    for text in texts("values") {
        Values::parse(text).map_err(|error| anyhow!("{error}"))?;
    }
    for text in texts("mesh") {
        check_mesh_config(text).map_err(|wrong| anyhow!("meshConfig: {}", wrong.join("; ")))?;
        MeshSettings::parse(text).map_err(|error| anyhow!("meshConfig: {error}"))?;
    }
    Ok(())
}

/// Defines what isn't defined, and renews what is ours. How many belong to somebody else.
async fn put_definitions(client: &Client, definitions: &[Value], dry: bool) -> Result<usize> {
    let mut left_alone = 0;
    for definition in definitions {
        let there = apply::get(client, definition).await?;
        if there.is_some_and(|there| !apply::is_ours(there.labels())) {
            left_alone += 1;
        } else {
            apply::apply(client, definition, dry).await?;
        }
    }
    Ok(left_alone)
}

/// What an older version of the chart had made and this one does not.
async fn remove_former(client: &Client, revision: &str, objects: &[Value]) -> Result<()> {
    let wanted: Vec<String> = objects.iter().map(apply::label_of).collect();
    for object in apply::ours(client, Some(revision)).await? {
        let label = apply::label_of(&object);
        if !wanted.contains(&label) && object["metadata"]["name"] != json!(null) && !is_tag(&object) {
            apply::delete(client, &object).await?;
        }
    }
    Ok(())
}

/// Tags belong to whoever set them, not to the chart.
fn is_tag(object: &Value) -> bool {
    object["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("istio-revision-tag-"))
}

/// `osier uninstall`.
pub async fn uninstall(arguments: UninstallArguments) -> Result<ExitCode> {
    let client = arguments.cluster.client().await?;
    let revision = (!arguments.purge).then_some(arguments.revision.as_str());
    let mut objects = apply::ours(&client, revision).await?;
    if objects.is_empty() {
        bail!(
            "there is nothing of {} to remove",
            revision.map_or("any control plane".into(), |r| format!("control plane {r}"))
        );
    }
    // Webhooks first: nobody shall be asked who isn't there any more.
    objects.reverse();
    for object in &objects {
        if arguments.dry_run {
            say!("would remove {}", apply::label_of(object));
        } else {
            apply::delete(&client, object).await?;
            say!("removed {}", apply::label_of(object));
        }
    }
    if !arguments.dry_run {
        say!(
            "✔ removed; Istio's kinds, what is written in them, and injected sidecars stay until their pods are restarted"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn revision_of(values: &Value) -> &str {
    values["revision"].as_str().filter(|revision| !revision.is_empty()).unwrap_or("default")
}

/// Where what was chosen is kept.
fn record(namespace: &str, revision: &str, chosen: &Value) -> Result<Value> {
    Ok(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": named("osier-installed", revision),
            "namespace": namespace,
            "labels": { "app.kubernetes.io/part-of": "osier", "istio.io/rev": revision },
        },
        "data": { "version": env!("CARGO_PKG_VERSION"), "values": serde_saphyr::to_string(chosen)? },
    }))
}

async fn kept_values(client: &Client, namespace: &str, revision: &str) -> Result<Option<Value>> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let name = named("osier-installed", revision);
    let Some(kept) = api.get_opt(&name).await.map_err(said)? else { return Ok(None) };
    let text = kept.data.and_then(|mut data| data.remove("values")).unwrap_or_default();
    let values = serde_saphyr::from_str(&text)
        .with_context(|| format!("ConfigMap {namespace}/{name}: values: is no YAML"))?;
    Ok(Some(values))
}

fn print<'a>(objects: impl Iterator<Item = &'a Value>, format: Format) -> Result<()> {
    match format {
        Format::Yaml => {
            for object in objects {
                say!("---\n{}", serde_saphyr::to_string(object)?.trim_end());
            }
        }
        Format::Json => {
            let items: Vec<&Value> = objects.collect();
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
            say!("{}", serde_json::to_string_pretty(&list)?);
        }
    }
    Ok(())
}

/// Waits until the Deployment has all its replicas and the API server gets answers from its webhooks; says what keeps its pods when
/// time is out.
async fn wait_ready(client: &Client, target: &Target, revision: &str) -> Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), &target.namespace);
    let name = named("osier-pilot", revision);
    let ready = await_condition(api, &name, |deployment: Option<&Deployment>| {
        let Some(deployment) = deployment else { return false };
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        deployment.status.as_ref().is_some_and(|status| {
            status.observed_generation == deployment.metadata.generation
                && status.updated_replicas.unwrap_or(0) == wanted
                && status.ready_replicas.unwrap_or(0) == wanted
                && status.replicas.unwrap_or(0) == wanted
        })
    });
    // A webhook that the API server doesn't trust yet refuses every pod that is to be injected.
    let injector = named("osier-sidecar-injector", revision);
    let trusted = await_condition(
        Api::all(client.clone()),
        &injector,
        |found: Option<&MutatingWebhookConfiguration>| {
            let webhooks = found.and_then(|found| found.webhooks.as_ref());
            webhooks.is_some_and(|all| all.iter().all(|webhook| webhook.client_config.ca_bundle.is_some()))
        },
    );
    // The control plane makes this webhook strict once the API server was seen to reach it.
    let validator = format!("{}-{}", named("osier-validator", revision), target.namespace);
    let reached = await_condition(
        Api::all(client.clone()),
        &validator,
        |found: Option<&ValidatingWebhookConfiguration>| {
            let webhooks = found.and_then(|found| found.webhooks.as_ref());
            webhooks.is_some_and(|all| {
                all.iter().all(|webhook| webhook.failure_policy.as_deref() == Some("Fail"))
            })
        },
    );
    let all = async {
        ready.await.context("cannot follow the Deployment")?;
        trusted.await.context("cannot follow the webhooks")?;
        reached.await.context("cannot follow the webhooks")
    };
    // Boxed: each holds watched objects of its own.
    match tokio::time::timeout(target.readiness_timeout, Box::pin(all)).await {
        Ok(done) => done.map(drop),
        Err(_) => {
            let why = why_not_ready(client, &target.namespace, revision).await;
            bail!("control plane {revision} is not ready after {:?}:\n{why}", target.readiness_timeout)
        }
    }
}

/// What the pods themselves say.
async fn why_not_ready(client: &Client, namespace: &str, revision: &str) -> String {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let selector = ListParams::default().labels(&format!("app=osier-pilot,istio.io/rev={revision}"));
    let pods = api.list(&selector).await.map(|list| list.items).unwrap_or_default();
    if pods.is_empty() {
        return format!("  there are no pods: kubectl -n {namespace} describe replicasets says why");
    }
    let mut lines = Vec::new();
    for pod in pods {
        let status = pod.status.clone().unwrap_or_default();
        let waiting = status.container_statuses.into_iter().flatten().filter_map(|container| {
            let state = container.state?;
            let waiting = state
                .waiting
                .map(|w| format!("{} {}", w.reason.unwrap_or_default(), w.message.unwrap_or_default()));
            waiting.or_else(|| {
                state.running.map(|_| "runs and is not ready; its log says what it waits for".into())
            })
        });
        let conditions = status.conditions.into_iter().flatten().filter(|c| c.status == "False");
        let said = waiting.chain(conditions.filter_map(|condition| condition.message));
        let said: Vec<String> = said.filter(|text| !text.trim().is_empty()).collect();
        if !said.is_empty() {
            lines.push(format!("  pod {}: {}", pod.name_any(), said.join("; ")));
        }
    }
    if lines.is_empty() {
        return format!(
            "  its pods are ready, and the API server was not seen to reach their webhooks: kubectl -n {namespace} logs -l \
             app=osier-pilot says more"
        );
    }
    lines.join("\n")
}
