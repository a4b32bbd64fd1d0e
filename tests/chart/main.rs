//! The chart, by Helm itself: it lints, and what Helm makes of it is what `osier install` makes of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;

use osier_tests::process;
use serde_json::Value;

/// Values that take every branch of the templates.
const VALUES: [(&str, &str); 8] = [
    ("as they are", "{}"),
    ("a revision that looks like a number", "revision: '12'\nmeshConfig: {accessLogFile: /dev/stdout}"),
    (
        "replicas and placement",
        "pilot:\n  replicaCount: 3\n  nodeSelector: {zone: a}\n  tolerations: [{operator: Exists}]\n  affinity: {podAntiAffinity: {}}\n  \
         priorityClassName: system-cluster-critical\n  env: [{name: OSIER_PILOT_LOG, value: 'debug'}]\n  podAnnotations: {a: 'true'}",
    ),
    ("a gateway", "gateways: {ingress: {enabled: true}}"),
    (
        "a gateway of a revision, without a class",
        "revision: canary\nglobal: {imagePullSecrets: [key]}\ngateways:\n  ingress: {enabled: true, ingressClass: '', \
         service: {type: NodePort, annotations: {a: b}}}",
    ),
    (
        "everything by default",
        "sidecarInjectorWebhook: {enableNamespacesByDefault: true, reinvocationPolicy: IfNeeded}",
    ),
    (
        "images from elsewhere",
        "global: {hub: registry.example/osier, tag: 'x', imagePullPolicy: '', imagePullSecrets: [key]}",
    ),
    (
        "injection",
        "networkPolicy: {enabled: true}\nsidecarInjectorWebhook:\n  neverInjectSelector: [{matchLabels: {a: b}}]\n  \
         injectedAnnotations: {x: 'y: z'}\n  templates: {extra: \"spec:\\n  hostAliases: []\\n\"}\n  defaultTemplates: [sidecar, extra]",
    ),
];

fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/charts/osier")
}

fn helm(arguments: &[&str]) -> Output {
    process::part("OSIER_TEST_HELM").args(arguments).output().expect("helm starts")
}

/// Objects by kind, namespace and name.
fn by_name(objects: impl IntoIterator<Item = Value>) -> BTreeMap<String, Value> {
    let name = |object: Value| {
        let metadata = &object["metadata"];
        (format!("{} {} {}", object["kind"], metadata["namespace"], metadata["name"]), object)
    };
    objects.into_iter().filter(|object| !object.is_null()).map(name).collect()
}

#[test]
fn helm_and_osier_install_make_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("values.yaml");
    let values = file.to_str().expect("a path is text");
    let chart = chart();
    let chart = chart.to_str().expect("a path is text");
    for (what, text) in VALUES {
        std::fs::write(&file, text).expect("the test's folder can be written");
        let made = helm(&[
            "template",
            "osier",
            chart,
            "--namespace",
            "osier-system",
            "--include-crds",
            "--values",
            values,
        ]);
        assert!(made.status.success(), "{what}: {}", String::from_utf8_lossy(&made.stderr));
        let by_helm: Vec<Value> =
            serde_saphyr::from_multiple(&String::from_utf8_lossy(&made.stdout)).expect("YAML");
        let mut ours = process::own("osier");
        let made =
            ours.args(["install", "--output", "json", "--values", values]).output().expect("osier starts");
        assert!(made.status.success(), "{what}: {}", String::from_utf8_lossy(&made.stderr));
        let list: Value = serde_json::from_slice(&made.stdout).expect("JSON");
        let ours = list["items"].as_array().expect("a list").iter().filter(|object| {
            // What the command itself adds.
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            object["kind"] != "Namespace" && !name.starts_with("osier-installed")
        });
        let (by_helm, ours) = (by_name(by_helm), by_name(ours.cloned()));
        let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&by_helm), names(&ours), "{what}");
        for (name, object) in &by_helm {
            assert_eq!(texts_parsed(object), texts_parsed(&ours[name]), "{what}: {name}");
        }
    }
}

/// YAML within a ConfigMap is compared by what it says.
fn texts_parsed(object: &Value) -> Value {
    let mut object = object.clone();
    if object["kind"] == "ConfigMap" {
        for text in object["data"].as_object_mut().into_iter().flat_map(|data| data.values_mut()) {
            *text = serde_saphyr::from_str(text.as_str().unwrap_or_default()).expect("YAML in a ConfigMap");
        }
    }
    object
}

#[test]
fn helm_finds_nothing_wrong() {
    let chart = chart();
    let said = helm(&["lint", "--strict", chart.to_str().expect("a path is text")]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
}

#[test]
fn helm_refuses_what_osier_refuses() {
    let chart = chart();
    let chart = chart.to_str().expect("a path is text");
    for setting in ["pilot.replicaCountt=2", "pilot.replicaCount=many", "global.imagePullPolicy=Sometimes"] {
        assert!(
            !helm(&["template", "osier", chart, "--set", setting]).status.success(),
            "Helm takes {setting}"
        );
        let said = process::own("osier")
            .args(["install", "-o", "yaml", "--set", setting])
            .output()
            .expect("osier starts");
        assert_eq!(said.status.code(), Some(1), "osier takes {setting}");
    }
}

#[test]
fn versions_agree() {
    let version = env!("CARGO_PKG_VERSION");
    let read = |name: &str| std::fs::read_to_string(chart().join(name)).expect("a file of the chart");
    assert!(read("Chart.yaml").contains(&format!("appVersion: {version}\n")));
    assert!(read("values.yaml").contains(&format!("  tag: {version}\n")));
}
