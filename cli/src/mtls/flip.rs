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

use super::report::{Caller, Report, Workload, table_of};
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
    refuse_root(&report, arguments, "strict")?;
    if report.workloads.is_empty() {
        bail!("there are no workloads in namespace {namespace}");
    }
    let since = "nothing was changed; --since TIME counts only who was seen within it";
    let refused = report.callers.iter().filter(|caller| caller.would_be_refused());
    refuse_callers(refused, &report, arguments, since)?;
    let off = is_off(&report);
    let Some(client) = client(&mesh, namespace, "STRICT")? else { return Ok(ExitCode::FAILURE) };
    if arguments.dry_run {
        if off {
            say!("PeerAuthentication of {namespace} would be PERMISSIVE for {:?} first", arguments.observe);
        }
        say!("PeerAuthentication of {namespace} would be STRICT");
        return Ok(ExitCode::SUCCESS);
    }
    if off {
        set(client, namespace, "PERMISSIVE").await?;
        wait(&mesh, arguments, "PERMISSIVE", arguments.force).await?;
        say!(
            "✔ sidecars of {namespace} take both; watching for callers in plaintext for {:?}",
            arguments.observe
        );
        observe(&mesh, arguments).await?;
    }
    set(client, namespace, "STRICT").await?;
    wait(&mesh, arguments, "STRICT", false).await?;
    say!("✔ sidecars of {namespace} refuse plaintext");
    exceptions(&read(&mesh, arguments).await?);
    Ok(ExitCode::SUCCESS)
}

/// `osier mtls permissive`.
pub(super) async fn permissive(arguments: &Arguments) -> Result<ExitCode> {
    let namespace = &arguments.namespace;
    let mesh = arguments.mesh.mesh(None).await?;
    refuse_root(&read(&mesh, arguments).await?, arguments, "permissive")?;
    let Some(client) = client(&mesh, namespace, "PERMISSIVE")? else { return Ok(ExitCode::FAILURE) };
    if arguments.dry_run {
        say!("PeerAuthentication of {namespace} would be PERMISSIVE");
        return Ok(ExitCode::SUCCESS);
    }
    set(client, namespace, "PERMISSIVE").await?;
    wait(&mesh, arguments, "PERMISSIVE", false).await?;
    say!("✔ sidecars of {namespace} take both");
    Ok(ExitCode::SUCCESS)
}

async fn read(mesh: &Mesh, arguments: &Arguments) -> Result<Report> {
    Report::read(mesh, Some(&arguments.namespace), Some(arguments.since)).await
}

/// The root namespace's policy is the whole mesh's, and here callers of one namespace are looked at. `--force` is about callers.
fn refuse_root(report: &Report, arguments: &Arguments, command: &str) -> Result<()> {
    let namespace = &arguments.namespace;
    if report.root_namespaces.contains(namespace) {
        bail!(
            "{namespace} is the mesh's root namespace: its PeerAuthentication without a selector holds for every namespace, and callers of \
             one are looked at here; go through the namespaces by `osier mtls {command} NAMESPACE`, then apply the policy of the whole mesh \
             yourself. Nothing was changed"
        );
    }
    Ok(())
}

/// What the namespace's policy decides takes no mutual TLS yet.
fn is_off(report: &Report) -> bool {
    report.workloads.iter().any(|w| w.takes_mutual_tls && !w.own_policy && w.mode == "DISABLE")
}

/// Stops where there are such callers, or could be; `so` is what holds then.
fn refuse_callers<'c>(
    callers: impl Iterator<Item = &'c Caller>,
    report: &Report,
    arguments: &Arguments,
    so: &str,
) -> Result<()> {
    if arguments.force {
        return Ok(());
    }
    let callers: Vec<Caller> = callers.cloned().collect();
    if !callers.is_empty() {
        bail!(
            "somebody calls {} in plaintext, and would be refused:\n{}\n{so}; --force goes on all the same",
            arguments.namespace,
            output::text(&table_of(&callers))
        );
    }
    if let Some((name, why)) = report.unasked().next() {
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
        if !is_quiet(&now.clone().calling_since(&before), arguments, Instant::now() > deadline)? {
            quiet = Instant::now();
        }
        before = now;
    }
    Ok(())
}

/// Whether nobody calls whom STRICT would concern. Who can't change over ends it, and at the deadline whoever it is.
fn is_quiet(calling: &Report, arguments: &Arguments, is_late: bool) -> Result<bool> {
    let callers = || calling.callers.iter().filter(|caller| !caller.own_policy);
    if is_late || callers().any(|caller| !caller.caller_has_sidecar) {
        refuse_callers(callers(), calling, arguments, "the mode stays PERMISSIVE")?;
    }
    Ok(arguments.force || (callers().next().is_none() && calling.unasked().next().is_none()))
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

/// Writes the namespace's PeerAuthentication: of several without a selector the oldest is the one that holds.
async fn set(client: &Client, namespace: &str, mode: &str) -> Result<()> {
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
    Ok(())
}

/// Waits until pilots say the mode of the namespace's workloads, and sidecars do it. `may_be_unknown`: it goes on after that time
/// although it isn't known of some.
async fn wait(mesh: &Mesh, arguments: &Arguments, mode: &str, may_be_unknown: bool) -> Result<()> {
    let deadline = Instant::now() + arguments.timeout;
    loop {
        let late = Late::of(&read(mesh, arguments).await?, mode);
        if late.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let text = format!("after {:?} {}", arguments.timeout, late.text(mode));
            if late.behind.is_empty() && may_be_unknown {
                eprintln!("osier: {text}");
                return Ok(());
            }
            bail!("{text}; PeerAuthentication of {} stays {mode}", arguments.namespace);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whom the namespace's policy was to bring to a mode and who isn't there yet, as far as is known.
#[derive(Debug, Default, PartialEq, Eq)]
struct Late {
    /// Pilot or the sidecar says another mode.
    behind: Vec<String>,
    /// Nobody but pilot says anything, with the reason.
    unknown: Vec<String>,
}

impl Late {
    fn of(report: &Report, mode: &str) -> Self {
        let mut late = Self::default();
        for w in report.workloads.iter().filter(|w| w.takes_mutual_tls && !w.own_policy) {
            let name = w.full_name();
            let does = report.taking_plaintext.contains(&name) == (mode != "STRICT");
            match report.silent.get(&name) {
                _ if w.mode != mode => late.behind.push(w.name.clone()),
                Some(why) => late.unknown.push(format!("{} ({why})", w.name)),
                None if !report.sidecars.contains(&name) => {} // A gateway.
                None if does || has_exceptions(w) => {}
                None => late.behind.push(w.name.clone()),
            }
        }
        late
    }

    fn is_empty(&self) -> bool {
        self.behind.is_empty() && self.unknown.is_empty()
    }

    fn text(&self, mode: &str) -> String {
        let behind = format!("these do not do {mode} yet: {}", self.behind.join(", "));
        let unknown = format!("these can't be asked whether they do {mode}: {}", self.unknown.join(", "));
        match (self.behind.is_empty(), self.unknown.is_empty()) {
            (false, false) => format!("{behind}; {unknown}"),
            (false, true) => behind,
            (true, _) => unknown,
        }
    }
}

/// Some port does something else. A sidecar says of all of them together whether plaintext is taken.
fn has_exceptions(w: &Workload) -> bool {
    w.port_modes.values().any(|mode| *mode != w.mode)
}

/// Says which workloads have words of their own.
fn exceptions(report: &Report) {
    for w in report.workloads.iter().filter(|w| w.own_policy || !w.port_modes.is_empty()) {
        let ports: String =
            w.port_modes.iter().map(|(port, mode)| format!(", port {port}: {mode}")).collect();
        eprintln!("osier: {}/{} keeps what a policy of its own says: {}{ports}", w.namespace, w.name, w.mode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(more: &[&str]) -> Arguments {
        <Command as clap::Parser>::parse_from([&["strict", "shop"], more].concat()).arguments
    }

    fn workload(name: &str, own_policy: bool, mode: &str) -> Workload {
        Workload {
            namespace: "shop".into(),
            name: name.into(),
            workload: name.into(),
            addresses: Vec::new(),
            takes_mutual_tls: true,
            mode: mode.into(),
            policy: None,
            own_policy,
            port_modes: Default::default(),
        }
    }

    fn caller(own_policy: bool, has_sidecar: bool) -> Caller {
        Caller {
            namespace: "shop".into(),
            workload: "web".into(),
            pod: "web-1".into(),
            port: 80,
            caller: Some("batch/report".into()),
            caller_has_sidecar: has_sidecar,
            would_follow: false,
            own_policy,
            address: "10.0.0.9".into(),
            connections: 1,
            open: 0,
            last_seen: 0,
            age: 0,
        }
    }

    fn calling(callers: &[Caller]) -> Report {
        Report { callers: callers.to_vec(), ..Report::default() }
    }

    #[test]
    fn who_is_waited_for() {
        let mut exception = workload("port", false, "STRICT");
        exception.port_modes.insert("80".into(), "PERMISSIVE".into());
        let mut same = workload("same-at-its-port", false, "STRICT");
        same.port_modes.insert("80".into(), "STRICT".into());
        let workloads = vec![
            workload("done", false, "STRICT"),
            workload("takes-both-yet", false, "STRICT"),
            workload("not-heard", false, "PERMISSIVE"),
            workload("exception", true, "PERMISSIVE"),
            exception,
            same,
            workload("silent", false, "STRICT"),
            workload("silent-and-not-heard", false, "PERMISSIVE"),
            workload("gateway", false, "STRICT"),
        ];
        let sidecars = workloads[..8].iter().map(Workload::full_name).collect();
        let takes = ["takes-both-yet.shop", "not-heard.shop", "port.shop", "same-at-its-port.shop"];
        let report = Report {
            workloads,
            sidecars,
            taking_plaintext: takes.map(Into::into).into(),
            silent: ["silent.shop", "silent-and-not-heard.shop"]
                .map(|name| (name.into(), "away".into()))
                .into(),
            ..Report::default()
        };
        let late = Late::of(&report, "STRICT");
        assert_eq!(late.behind, ["takes-both-yet", "not-heard", "same-at-its-port", "silent-and-not-heard"]);
        assert_eq!(late.unknown, ["silent (away)"]);
        let unknown = Late { behind: vec![], ..late };
        assert!(!unknown.is_empty(), "who can't be asked is not done");
        assert_eq!(unknown.text("STRICT"), "these can't be asked whether they do STRICT: silent (away)");
    }

    #[test]
    fn the_root_namespace_is_refused() {
        let report = Report { root_namespaces: ["shop".into()].into(), ..Report::default() };
        let refused = refuse_root(&report, &arguments(&["--force"]), "strict").expect_err("the whole mesh");
        let said = refused.to_string();
        assert!(said.contains("every namespace") && said.contains("osier mtls strict NAMESPACE"), "{said}");
        let elsewhere = Report { root_namespaces: ["istio-system".into()].into(), ..Report::default() };
        refuse_root(&elsewhere, &arguments(&[]), "strict").expect("one namespace");
    }

    #[test]
    fn a_policy_of_its_own_does_not_make_a_namespace_off() {
        let off = |workloads| is_off(&Report { workloads, ..Report::default() });
        assert!(!off(vec![workload("legacy", true, "DISABLE"), workload("web", false, "STRICT")]));
        assert!(off(vec![workload("legacy", true, "STRICT"), workload("web", false, "DISABLE")]));
    }

    #[test]
    fn who_keeps_a_namespace_from_being_quiet() {
        let quiet = |report: &Report, late| is_quiet(report, &arguments(&[]), late);
        let has_sidecar = calling(&[caller(false, true)]);
        assert!(!quiet(&has_sidecar, false).expect("it may change over"));
        let said = quiet(&has_sidecar, true).expect_err("it did not").to_string();
        assert!(said.contains("batch/report") && said.contains("stays PERMISSIVE"), "{said}");
        quiet(&calling(&[caller(false, false)]), false).expect_err("nothing can change over");
        for is_late in [false, true] {
            let kept = calling(&[caller(true, false), caller(true, true)]);
            assert!(quiet(&kept, is_late).expect("these are taken on"), "{is_late}");
        }
        let silent = Report { silent: [("new.shop".into(), "away".into())].into(), ..Report::default() };
        assert!(!quiet(&silent, false).expect("it may come"));
        let said = quiet(&silent, true).expect_err("it did not").to_string();
        assert!(said.contains("new.shop"), "{said}");
        let forced = is_quiet(&has_sidecar, &arguments(&["--force"]), true);
        assert!(forced.expect("whoever calls"));
    }

    #[test]
    fn who_is_silent_and_keeps_its_own_policy_stops_nothing() {
        let named = |own_policy| {
            let silent = [("legacy.shop".into(), "away".into())].into();
            let workloads = vec![workload("legacy", own_policy, "PERMISSIVE")];
            let report = Report { workloads, silent, ..Report::default() };
            refuse_callers([].iter(), &report, &arguments(&[]), "so").map_err(|error| error.to_string())
        };
        assert_eq!(named(true), Ok(()));
        let said = named(false).expect_err("its callers count");
        assert!(said.contains("legacy.shop") && said.contains("away"), "{said}");
    }

    #[test]
    fn would_follow_at_the_deadline_names_it_too() {
        let mut following = caller(false, true);
        following.would_follow = true;
        let said = is_quiet(&calling(&[following]), &arguments(&[]), true).expect_err("for ever").to_string();
        assert!(said.contains("10.0.0.9"), "{said}");
    }
}
