//! `osier inject`: puts proxies into YAML before it is applied, as the webhook of a cluster does it when pods are made.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use osier_pilot::inject::manifest::{self, Manifest};
use osier_pilot::inject::{DEFAULT_REVISION, Injector, MeshSettings, Values};
use osier_pilot::source::check_mesh_config;

/// Puts proxies into YAML: Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs, and Lists of them.
///
/// Everything else comes out as it went in. What is injected is read from no cluster: give the mesh configuration and the injection
/// values that hold there.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier inject -f app.yaml | kubectl apply -f -
  osier inject -f app.yaml -o injected.yaml --revision canary
  kubectl get deployment web -o yaml | osier inject -f - | kubectl apply -f -")]
pub struct Arguments {
    /// YAML or JSON; - is standard input.
    #[arg(short, long = "filename", value_name = "FILE")]
    file: PathBuf,
    /// Where to write; else standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The mesh configuration (key `mesh` of its ConfigMap) [default: all defaults].
    #[arg(long, alias = "meshConfigFile", value_name = "FILE")]
    mesh_config_file: Option<PathBuf>,
    /// The injection values (key `values` of their ConfigMap) [default: all defaults].
    #[arg(long, alias = "valuesFile", value_name = "FILE")]
    values_file: Option<PathBuf>,
    /// Revision of the control plane that the proxies belong to.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_REVISION)]
    revision: String,
}

/// Injects, or writes nothing.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let injector = injector(arguments)?;
    let name = if is_standard(&arguments.file) {
        "standard input".into()
    } else {
        arguments.file.display().to_string()
    };
    let text = read(&arguments.file)?;
    let Manifest { text, notes } = manifest::inject(&injector, &text).with_context(|| name)?;
    for note in notes {
        eprintln!("osier: {note}");
    }
    match arguments.output.as_deref().filter(|path| !is_standard(path)) {
        Some(path) => fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?,
        None => match io::stdout().lock().write_all(text.as_bytes()) {
            // whoever reads has seen enough
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written.context("cannot write to standard output")?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn injector(arguments: &Arguments) -> Result<Injector> {
    let mut injector = Injector { revision: arguments.revision.clone(), ..Injector::default() };
    if let Some(path) = &arguments.values_file {
        let wrong = |error| anyhow!("{}: {error}", path.display());
        injector.values = Values::parse(&read(path)?).map_err(wrong)?;
    }
    if let Some(path) = &arguments.mesh_config_file {
        let wrong = |error| anyhow!("{}: {error}", path.display());
        let text = read(path)?;
        check_mesh_config(&text).map_err(|wrong| anyhow!("{}: {}", path.display(), wrong.join("; ")))?;
        injector.mesh = MeshSettings::parse(&text).map_err(wrong)?;
    }
    Ok(injector)
}

fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

fn read(path: &Path) -> Result<String> {
    if is_standard(path) {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(text);
    }
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod contract;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    const POD: &str =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: app, image: x}]}\n";

    /// Runs with files of these texts; what was written, or what was said instead.
    fn inject(pod: &str, values: &str, mesh: &str, more: &[&str]) -> Result<String, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("the test's folder can be written");
            path.display().to_string()
        };
        let out = folder.path().join("out.yaml");
        let arguments = [
            "inject".to_owned(),
            "-f".into(),
            file("pod.yaml", pod),
            "--valuesFile".into(),
            file("values.yaml", values),
            "--meshConfigFile".into(),
            file("mesh.yaml", mesh),
            "-o".into(),
            out.display().to_string(),
        ];
        let arguments = arguments.iter().map(String::as_str).chain(more.iter().copied());
        let command = Command::try_parse_from(arguments).map_err(|e| e.to_string())?;
        match run(&command.arguments) {
            Ok(_) => Ok(fs::read_to_string(&out).expect("it was written")),
            Err(error) => {
                assert!(!out.exists(), "nothing is written where something is wrong");
                Err(format!("{error:#}").replace(&folder.path().display().to_string(), ""))
            }
        }
    }

    #[test]
    fn files_say_what_is_injected() {
        let made = inject(
            POD,
            "global: {hub: example.org/mesh, tag: '3'}",
            "defaultConfig: {concurrency: 7}",
            &["--revision", "canary"],
        )
        .unwrap();
        for part in [
            "example.org/mesh/proxy:3",
            "\\\"concurrency\\\":7",
            "osier-pilot-canary.osier-system.svc",
            "istio.io/rev: canary",
        ] {
            assert!(made.contains(part), "no {part} in\n{made}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file() {
        for (pod, values, mesh, wanted) in [
            ("a: [", "", "", "/pod.yaml: line"),
            (POD, "globl: {}", "", "/values.yaml: globl: unknown field, did you mean global?"),
            (
                POD,
                "",
                "defaultConfig: {concurrency: x}",
                "/mesh.yaml: defaultConfig.concurrency: must be a whole number",
            ),
            (
                "kind: Pod\nmetadata: {name: a, annotations: {sidecar.istio.io/nativeSidecar: x}}\nspec: {containers: []}\n",
                "",
                "",
                "/pod.yaml: Pod a (line 1): sidecar.istio.io/nativeSidecar: \"x\" is neither true nor false",
            ),
        ] {
            let said = inject(pod, values, mesh, &[]).unwrap_err();
            assert!(said.starts_with(wanted), "{said}");
        }
    }
}
