//! What pilot writes into pods is what the proxy reads: every golden file of injection is given to the proxy's own settings.
//!
//! It stands here because this is the one crate that has both halves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use clap::{CommandFactory as _, Parser as _};
use osier_pilot::inject::{INIT, PROXY};
use osier_proxy::capture::plan::Capture;
use osier_proxy::settings::Settings;
use osier_proxy::settings::environment::Environment;
use osier_proxy::settings::raw::{Raw, RawMode, Tool};
use serde_json::Value;

/// Our containers of all golden files, with the case that they are of.
fn containers(name: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pilot/tests/inject");
    let mut found = Vec::new();
    for case in fs::read_dir(folder).expect("golden files").flatten() {
        let text = fs::read_to_string(case.path().join("output.yaml")).unwrap_or_default();
        let documents: Vec<Value> = serde_saphyr::from_str_multiple(&text).expect("golden files are YAML");
        let mut next = documents;
        while let Some(value) = next.pop() {
            match value {
                Value::Object(fields)
                    if fields.get("name").is_some_and(|n| n == name) && fields.contains_key("image") =>
                {
                    found.push((case.file_name().to_string_lossy().into_owned(), Value::Object(fields)));
                }
                Value::Object(fields) => next.extend(fields.into_iter().map(|(_, value)| value)),
                Value::Array(items) => next.extend(items),
                _ => {}
            }
        }
    }
    assert!(found.len() > 15, "{} containers {name}", found.len());
    found
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Variables as the kubelet sets them.
fn environment(container: &Value) -> Environment {
    let field = |path: &str| match path {
        "status.podIP" | "status.hostIP" => "10.0.0.7",
        "status.podIPs" => "10.0.0.7,fd00::7",
        _ => "some-name",
    };
    let mut variables = BTreeMap::new();
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().expect("a name").to_owned();
        let value = match &variable["valueFrom"]["fieldRef"]["fieldPath"] {
            Value::String(path) => field(path).to_owned(),
            _ => variable["value"].as_str().expect("a value").replace("$(POD_NAMESPACE)", "some-name"),
        };
        variables.insert(name, value);
    }
    Environment { variables, labels_file: "/nonexistent".into() }
}

fn parse(arguments: &[String]) -> Raw {
    Raw::try_parse_from(std::iter::once("osier-proxy".to_owned()).chain(arguments.iter().cloned()))
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

#[test]
fn the_proxy_takes_its_environment() {
    let command = Raw::command();
    let sidecar = command.find_subcommand("sidecar").expect("a mode");
    let known: BTreeSet<String> = sidecar
        .get_arguments()
        .filter_map(|argument| Some(argument.get_env()?.to_string_lossy().into_owned()))
        .collect();
    for (case, container) in containers(PROXY) {
        let arguments = words(&container["args"]);
        // a mode that the proxy has not got yet
        if arguments == ["gateway"] {
            continue;
        }
        let environment = environment(&container);
        let settings = Settings::check(parse(&arguments), &environment);
        let settings = settings.unwrap_or_else(|mistakes| panic!("{case}: {mistakes}"));
        assert!(settings.sidecar.is_some(), "{case}");
        let own = environment.variables.keys().filter(|name| name.starts_with("OSIER_"));
        for name in own {
            assert!(known.contains(name), "{case}: the proxy does not read {name}");
        }
        let lifecycle = &container["lifecycle"];
        for hook in ["preStop", "postStart"] {
            let command = words(&lifecycle[hook]["exec"]["command"]);
            if command.first().is_some_and(|program| program == "osier-proxy") {
                assert!(matches!(parse(&command[1..]).mode, Some(RawMode::Tool(_))), "{case}: {command:?}");
            }
        }
    }
}

#[test]
fn the_init_container_takes_its_arguments() {
    for (case, container) in containers(INIT) {
        let raw = parse(&words(&container["args"]));
        let Some(RawMode::Tool(Tool::Init(flags))) = raw.mode else { panic!("{case}: no init") };
        if let Err(mistakes) = Capture::check(&flags, &environment(&container)) {
            panic!("{case}: {}", mistakes.0.join(", "));
        }
    }
}
