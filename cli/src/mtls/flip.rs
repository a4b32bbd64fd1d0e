//! A namespace to STRICT, in two phases: first everybody must take both, then plaintext is refused, and each step is waited for.
//!
//! The servers are asked whether they still take plaintext; a caller in plaintext stops it before anything is changed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use osier_core::say;
use serde_json::json;

use super::report::{Report, Workload, table_of};
use crate::cluster::{FIELD_MANAGER, said};
use crate::output;
use crate::reach::{self, Mesh};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// Which namespace, and how careful.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Arguments {
    /// The namespace.
    #[arg(value_name = "NAMESPACE")]
    namespace: String,
    /// A caller in plaintext counts if it was seen within this time.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = osier_core::duration::parse)]
    since: Duration,
    /// How long to watch for callers in plaintext where mutual TLS was off before.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = osier_core::duration::parse)]
    observe: Duration,
    /// How long sidecars have to follow each step.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = osier_core::duration::parse)]
    timeout: Duration,
    /// Do it although somebody calls in plaintext, or a sidecar can't be asked.
    #[arg(long)]
    force: bool,
    /// Say what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    mesh: reach::Arguments,
}

/// `osier mtls strict`.
pub(super) async fn strict(arguments: &Arguments) -> Result<ExitCode> {
    let namespace = &arguments.namespace;
    let mesh = arguments.mesh.mesh(None).await?;
    let report = read(&mesh, arguments).await?;
    if report.workloads.is_empty() {
        bail!("there are no workloads in namespace {namespace}");
    }
    refuse_callers(
        &report,
        arguments,
        "nothing was changed; --since TIME counts only who was seen within it",
    )?;
    let off = report.workloads.iter().any(|w| w.takes_mutual_tls && w.mode == "DISABLE");
    let Some(client) = client(&mesh, namespace, "STRICT")? else { return Ok(ExitCode::FAILURE) };
    if arguments.dry_run {
        if off {
            say!("PeerAuthentication of {namespace} would be PERMISSIVE for {:?} first", arguments.observe);
        }
        say!("PeerAuthentication of {namespace} would be STRICT");
        return Ok(ExitCode::SUCCESS);
    }
    if off {
        let policy = set(client, namespace, "PERMISSIVE").await?;
        wait(&mesh, arguments, &policy, "PERMISSIVE").await?;
        say!(
            "✔ sidecars of {namespace} take both; watching for callers in plaintext for {:?}",
            arguments.observe
        );
        observe(&mesh, arguments).await?;
    }
    let policy = set(client, namespace, "STRICT").await?;
    wait(&mesh, arguments, &policy, "STRICT").await?;
    say!("✔ sidecars of {namespace} refuse plaintext");
    exceptions(&read(&mesh, arguments).await?, &policy);
    Ok(ExitCode::SUCCESS)
}

/// `osier mtls permissive`.
pub(super) async fn permissive(arguments: &Arguments) -> Result<ExitCode> {
    let namespace = &arguments.namespace;
    let mesh = arguments.mesh.mesh(None).await?;
    let Some(client) = client(&mesh, namespace, "PERMISSIVE")? else { return Ok(ExitCode::FAILURE) };
    if arguments.dry_run {
        say!("PeerAuthentication of {namespace} would be PERMISSIVE");
        return Ok(ExitCode::SUCCESS);
    }
    let policy = set(client, namespace, "PERMISSIVE").await?;
    wait(&mesh, arguments, &policy, "PERMISSIVE").await?;
    say!("✔ sidecars of {namespace} take both");
    Ok(ExitCode::SUCCESS)
}

async fn read(mesh: &Mesh, arguments: &Arguments) -> Result<Report> {
    Report::read(mesh, Some(&arguments.namespace), Some(arguments.since)).await
}

/// Stops where somebody would be refused, or could be; `so` is what holds then. Who would change over with the mode would not.
fn refuse_callers(report: &Report, arguments: &Arguments, so: &str) -> Result<()> {
    if arguments.force {
        return Ok(());
    }
    let mut refused = report.callers.clone();
    refused.retain(|caller| !caller.would_follow);
    if !refused.is_empty() {
        bail!(
            "somebody calls {} in plaintext, and would be refused:\n{}\n{so}; --force goes on all the same",
            arguments.namespace,
            output::text(&table_of(&refused))
        );
    }
    if let Some((name, why)) = report.silent.first_key_value() {
        bail!("{name} can't be asked who calls it ({why}); {so}; --force goes on all the same");
    }
    Ok(())
}

/// Watches until nobody has called in plaintext for as long as it was asked for. Sidecars of callers change over a moment after the
/// servers', and end what they have open in plaintext: who has one is given the time for it.
async fn observe(mesh: &Mesh, arguments: &Arguments) -> Result<()> {
    let mut quiet = Instant::now();
    let deadline = quiet + arguments.observe + arguments.timeout;
    let mut before = read(mesh, arguments).await?;
    while quiet.elapsed() < arguments.observe {
        tokio::time::sleep(LOOK.min(arguments.observe)).await;
        let now = read(mesh, arguments).await?;
        let calling = now.clone().calling_since(&before);
        let may_change = calling.silent.is_empty() && calling.callers.iter().all(|c| c.caller_has_sidecar);
        if !may_change || Instant::now() > deadline {
            refuse_callers(&calling, arguments, "the mode stays PERMISSIVE")?;
        }
        if !calling.callers.is_empty() && !arguments.force {
            quiet = Instant::now();
        }
        before = now;
    }
    Ok(())
}

/// A cluster's client. A folder is its owner's to change: what to write there is printed.
fn client<'m>(mesh: &'m Mesh, namespace: &str, mode: &str) -> Result<Option<&'m Client>> {
    match mesh {
        Mesh::Cluster { client, .. } => Ok(Some(client)),
        Mesh::Local(_) => {
            eprintln!("osier: save this in the folder of `osier up`:");
            output::print(&policy("default", namespace, mode), output::Output::Yaml)?;
            Ok(None)
        }
    }
}

fn policy(name: &str, namespace: &str, mode: &str) -> serde_json::Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "mtls": { "mode": mode } },
    })
}

/// Writes the namespace's PeerAuthentication: of several without a selector the oldest is the one that holds. Its name.
async fn set(client: &Client, namespace: &str, mode: &str) -> Result<String> {
    let kind = GroupVersionKind::gvk("security.istio.io", "v1", "PeerAuthentication");
    let resource = ApiResource::from_gvk_with_plural(&kind, "peerauthentications");
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let all = api.list(&ListParams::default()).await.map_err(said)?;
    let selects = |object: &&DynamicObject| {
        object.data["spec"]["selector"]["matchLabels"].as_object().is_some_and(|labels| !labels.is_empty())
    };
    let oldest = all
        .iter()
        .filter(|object| !selects(object))
        .min_by_key(|object| (object.metadata.creation_timestamp.clone(), object.name_any()));
    let name = oldest.map_or_else(|| "default".to_owned(), |object| object.name_any());
    let patch = Patch::Apply(policy(&name, namespace, mode));
    let written = api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &patch).await;
    written.map_err(said).with_context(|| format!("cannot write PeerAuthentication {namespace}/{name}"))?;
    say!("PeerAuthentication {namespace}/{name} is {mode}");
    Ok(format!("{namespace}/{name}"))
}

/// Waits until pilots say the mode of the namespace's workloads, and sidecars do it.
async fn wait(mesh: &Mesh, arguments: &Arguments, policy: &str, mode: &str) -> Result<()> {
    let deadline = Instant::now() + arguments.timeout;
    loop {
        let report = read(mesh, arguments).await?;
        let late = late(&report, policy, mode);
        if late.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("after {:?} these do not do {mode} yet: {}", arguments.timeout, late.join(", "));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whom `policy` was to bring to `mode` and who isn't there yet. A sidecar that can't be asked is not waited for.
fn late<'r>(report: &'r Report, policy: &str, mode: &str) -> Vec<&'r str> {
    let is_late = |w: &&Workload| {
        let name = format!("{}.{}", w.name, w.namespace);
        let takes = report.taking_plaintext.contains(&name);
        let does = report.silent.contains_key(&name) || takes == (mode != "STRICT");
        w.mode != mode || (w.port_modes.is_empty() && !does)
    };
    let meant = report.workloads.iter().filter(|w| w.takes_mutual_tls && !w.has_its_own(policy));
    meant.filter(is_late).map(|w| w.name.as_str()).collect()
}

/// Says which workloads have words of their own.
fn exceptions(report: &Report, policy: &str) {
    for w in report.workloads.iter().filter(|w| w.has_its_own(policy) || !w.port_modes.is_empty()) {
        let ports: String =
            w.port_modes.iter().map(|(port, mode)| format!(", port {port}: {mode}")).collect();
        eprintln!("osier: {}/{} keeps what a policy of its own says: {}{ports}", w.namespace, w.name, w.mode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for() {
        let workload = |name: &str, policy: Option<&str>, mode: &str| Workload {
            namespace: "shop".into(),
            name: name.into(),
            workload: name.into(),
            addresses: Vec::new(),
            takes_mutual_tls: true,
            mode: mode.into(),
            policy: policy.map(Into::into),
            port_modes: Default::default(),
        };
        let report = Report {
            workloads: vec![
                workload("done", Some("shop/default"), "STRICT"),
                workload("takes-both-yet", Some("shop/default"), "STRICT"),
                workload("not-heard", Some("istio-system/mesh"), "PERMISSIVE"),
                workload("nothing-said", None, "PERMISSIVE"),
                workload("exception", Some("shop/legacy"), "PERMISSIVE"),
                workload("silent", Some("shop/default"), "STRICT"),
            ],
            taking_plaintext: ["takes-both-yet.shop", "not-heard.shop"].map(Into::into).into(),
            silent: [("silent.shop".into(), "away".into())].into(),
            ..Report::default()
        };
        assert_eq!(late(&report, "shop/default", "STRICT"), ["takes-both-yet", "not-heard", "nothing-said"]);
    }
}
