//! The pages under `docs/walkthroughs/`, run as a reader would: each command of a page in one shell, what it prints compared with
//! what the page shows.
//!
//! `osier_tests::walkthrough` reads a page and compares, `session` is the shell, `browser` does what a person would do in one.
//!
//! Invariants: nothing is run that the page doesn't say; only commands of the page wait. A page runs plain (no label that asks for
//! injection, no part that is marked for the mesh) or injected. What it made is gone afterwards, whether it passed or not.

mod browser;
mod session;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use osier_tests::process;

use osier_tests::walkthrough::expected;
use osier_tests::walkthrough::page::{self, Step};
use session::Session;

/// What the pages call the place of their images.
const HUB: &str = "localhost/osier-walkthrough";
/// The port of this machine that they forward.
const PORT: &str = "8080";

/// The cluster, and what is at hand beside it.
pub struct Environment<'a> {
    /// How to reach the cluster; a page gets a copy, as it chooses its namespace in it.
    pub kubeconfig: &'a Path,
    /// Folders with kubectl and osier, to come first on PATH.
    pub programs: &'a [PathBuf],
    /// Where the images are, when it isn't where the pages say.
    pub hub: Option<&'a str>,
    /// Folder for pictures of the browser's pages; it must exist.
    pub pictures: &'a Path,
}

/// Runs the page `docs/walkthroughs/<page>.md`.
pub fn run(page: &str, injected: bool, environment: &Environment<'_>) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/walkthroughs").join(format!("{page}.md"));
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    // Nobody else's port.
    let port = process::free_address().port().to_string();
    let hub = environment.hub.unwrap_or(HUB);
    let here = |text: &str| text.replace(PORT, &port).replace(HUB, hub);
    let steps: Vec<Step> =
        page::steps(&text, injected)?.into_iter().map(|step| change(step, &here)).collect();
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::copy(environment.kubeconfig, &kubeconfig).context("cannot copy the kubeconfig")?;
    let work = folder.path().join("work");
    std::fs::create_dir(&work)?;
    let traces = Traces { namespaces: page::namespaces(&steps), kubeconfig: &kubeconfig, environment };
    // A run that was cut short may have left something.
    traces.remove()?;
    let mut session = Session::start(&work, &kubeconfig, environment.programs)?;
    let outcome = steps.iter().try_for_each(|step| run_step(step, page, &port, &mut session, environment));
    drop(session);
    if outcome.is_err() {
        traces.show();
    }
    let removed = traces.remove();
    outcome.and(removed).with_context(|| format!("{page}, {}", if injected { "injected" } else { "plain" }))
}

/// The same command on this machine and cluster.
fn change(step: Step, here: &impl Fn(&str) -> String) -> Step {
    match step {
        Step::Run { line, command, prints } => Step::Run {
            line,
            command: here(&command),
            prints: prints.iter().map(|text| here(text)).collect(),
        },
        browse @ Step::Browse { .. } => browse,
    }
}

fn run_step(
    step: &Step,
    page: &str,
    port: &str,
    session: &mut Session,
    environment: &Environment<'_>,
) -> Result<()> {
    let started = Instant::now();
    match step {
        Step::Run { line, command, prints } => {
            let what = command.lines().next().unwrap_or_default();
            let done = session.run(command).with_context(|| format!("line {line}: {what}"))?;
            if done.status != 0 {
                bail!("line {line}: {what}\nended with {}:\n{}", done.status, done.output);
            }
            if let Err(difference) = expected::compare(prints, &done.output) {
                bail!("line {line}: {what}\n{difference}\nit printed:\n{}", done.output);
            }
            println!("    {:5.1} s  {what}", started.elapsed().as_secs_f64());
        }
        Step::Browse { line, words } => {
            browser::run(words, page, port, environment.pictures)
                .with_context(|| format!("line {line}: browser {}", words.join(" ")))?;
            println!("    {:5.1} s  browser {}", started.elapsed().as_secs_f64(), words.join(" "));
        }
    }
    Ok(())
}

/// What a page leaves on the cluster, and on this machine where that is the node.
struct Traces<'a> {
    namespaces: Vec<String>,
    kubeconfig: &'a Path,
    environment: &'a Environment<'a>,
}

impl Traces<'_> {
    /// Removes the page's namespaces, volumes that are claimed from them, and the folders of those.
    fn remove(&self) -> Result<()> {
        for namespace in &self.namespaces {
            self.kubectl(&["delete", "namespace", namespace, "--ignore-not-found", "--timeout=180s"])?;
        }
        let volumes: serde_json::Value =
            serde_json::from_str(&self.kubectl(&["get", "persistentvolumes", "--output=json"])?)?;
        for volume in volumes["items"].as_array().into_iter().flatten() {
            let of_ours = volume["spec"]["claimRef"]["namespace"]
                .as_str()
                .is_some_and(|namespace| self.namespaces.iter().any(|ours| ours == namespace));
            let Some(name) = volume["metadata"]["name"].as_str().filter(|_| of_ours) else { continue };
            self.kubectl(&["delete", "persistentvolume", name, "--timeout=60s"])?;
            // Only what pages make: in a folder of their own right below /tmp.
            let mut path =
                Path::new(volume["spec"]["hostPath"]["path"].as_str().unwrap_or_default()).ancestors();
            let own = path.find(|path| path.parent() == Some(Path::new("/tmp")));
            if let Some(folder) = own.filter(|path| path.to_string_lossy().starts_with("/tmp/walk-")) {
                let _ = std::fs::remove_dir_all(folder);
            }
        }
        Ok(())
    }

    /// Prints what there is, for whoever looks for the cause of a failure.
    fn show(&self) {
        for namespace in &self.namespaces {
            for arguments in [
                ["get", "pods,services,endpointslices", "--output=wide"].as_slice(),
                &["get", "events", "--field-selector=type!=Normal"],
                &[
                    "logs",
                    "--selector=!none",
                    "--container=istio-proxy",
                    "--tail=5",
                    "--prefix",
                    "--ignore-errors",
                ],
            ] {
                let shown = self.kubectl(&[arguments, &["--namespace", namespace]].concat());
                println!("{}", shown.unwrap_or_else(|error| format!("{error:#}")));
            }
        }
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("kubectl");
        command.args(arguments);
        session::equip(&mut command, self.kubeconfig, self.environment.programs);
        let done = command.output().context("cannot start kubectl")?;
        if !done.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }
}
