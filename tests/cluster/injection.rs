//! Who gets a sidecar, and what a person hears who asks for something impossible. On the API server, with its own webhook calls.

use serde_json::Value;

use crate::cluster::Cluster;
use crate::load::image;

/// Labels of the namespace, labels of the pod, whether the pod is injected (istio-operations: the truth table of the selectors).
const TABLE: [(&str, &str, &str, bool); 9] = [
    ("enabled", "istio-injection=enabled", "", true),
    ("enabled", "", "sidecar.istio.io/inject: 'true'", true),
    ("enabled", "", "sidecar.istio.io/inject: 'false'", false),
    ("disabled", "istio-injection=disabled", "sidecar.istio.io/inject: 'true'", false),
    ("revision", "istio.io/rev=default", "", true),
    ("other", "istio.io/rev=another", "", false),
    ("none", "", "", false),
    ("none", "", "sidecar.istio.io/inject: 'true'", true),
    ("none", "", "istio.io/rev: default", true),
];

/// The table, each row by a dry run.
pub fn the_selectors_choose(cluster: &Cluster) {
    for name in ["enabled", "disabled", "revision", "other", "none"] {
        cluster.kubectl(&["create", "namespace", &format!("inject-{name}")]);
        let label = TABLE.iter().find(|row| row.0 == name && !row.1.is_empty()).map(|row| row.1);
        if let Some(label) = label {
            cluster.kubectl(&["label", "namespace", &format!("inject-{name}"), label]);
        }
    }
    for (namespace, _, label, injected) in TABLE {
        let pod = pod(cluster, label, "");
        let name = format!("inject-{namespace}");
        let said = cluster.feed(&["--namespace", &name, "create", "--dry-run=server", "-ojson", "-f-"], &pod);
        let made: Value = serde_json::from_slice(&said.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&said.stderr)));
        let containers = made["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
        let has = containers.iter().any(|container| container["name"] == "istio-proxy");
        assert_eq!(has, injected, "namespace {namespace}, pod {label:?}: {made}");
    }
    for name in ["enabled", "disabled", "revision", "other", "none"] {
        cluster.kubectl(&["delete", "namespace", &format!("inject-{name}"), "--wait=false"]);
    }
}

/// Annotations that can't be, all named at once.
pub fn broken_annotations_are_refused(cluster: &Cluster) {
    let namespace = cluster.namespace("inject-broken", true);
    let annotations = "sidecar.istio.io/proxyCPU: lots, status.sidecar.istio.io/port: '99999', \
                       traffic.sidecar.istio.io/includeOutboundIPRanges: nowhere";
    let said = namespace.feed(&["create", "-f-"], &pod(cluster, "", annotations));
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success(), "{text}");
    for name in ["proxyCPU", "status.sidecar.istio.io/port", "includeOutboundIPRanges"] {
        assert!(text.contains(name), "{name} is not named: {text}");
    }
}

/// Resources that are wrong are refused at `kubectl apply`, with field and reason; what we don't support yet is stored with a warning.
pub fn wrong_resources_are_refused(cluster: &Cluster) {
    let namespace = cluster.namespace("validate", false);
    let route = |extra: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: split}}\nspec:\n  hosts: [web]\n  \
             http:\n  - route: [{{destination: {{host: web}}, weight: 90}}]\n{extra}"
        )
    };
    // The webhook was seen to be asked before the configuration says Fail.
    cluster.until("the validating webhook is strict", || {
        let found = cluster.get(&["validatingwebhookconfigurations", "osier-validator-osier-system"]);
        (found["webhooks"][0]["failurePolicy"] == "Fail").then_some(())
    });
    for (yaml, wanted) in [
        (route("    timeout: soon\n"), "spec.http[0].timeout"),
        (route("    retries: {attempts: -1}\n"), "spec.http[0].retries.attempts"),
        (route("    match: [{uri: {regex: '('}}]\n"), "spec.http[0].match[0].uri"),
    ] {
        let said = namespace.feed(&["apply", "-f-"], &yaml);
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && text.contains(wanted), "{wanted}: {text}");
    }
    let said = namespace.feed(&["apply", "-f-"], &route(""));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let filter =
        "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: f}\nspec: {}\n";
    let said = namespace.feed(&["apply", "-f-"], filter);
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success() && text.contains("Warning") && text.contains("EnvoyFilter"), "{text}");
}

/// A resource that got past the webhook says on its status why it isn't in force, and that it is once it is mended.
pub fn status_says_what_is_refused(cluster: &Cluster) {
    let namespace = cluster.namespace("status", false);
    cluster.kubectl(&["delete", "validatingwebhookconfiguration", "osier-validator-osier-system"]);
    let rule = |timeout: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: web}}\nspec:\n  hosts: [web]\n  \
             http: [{{timeout: {timeout}, route: [{{destination: {{host: web}}}}]}}]\n"
        )
    };
    let accepted_of = |kind: &str| {
        let found = namespace.get(&[kind, "web"]);
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == "Accepted")
    };
    let accepted = || accepted_of("virtualservice");
    // A policy that can't be enforced yet, and so closes what it covers, says that too.
    namespace.apply("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web}\nspec: {action: CUSTOM, provider: {name: x}, rules: [{}]}\n");
    cluster.until("the policy says so", || {
        accepted_of("authorizationpolicy").filter(|c| c["status"] == "False")
    });
    namespace.apply(&rule("soon"));
    let condition = cluster.until("a condition", accepted);
    assert_eq!(condition["status"], "False", "{condition}");
    assert!(
        condition["message"].as_str().unwrap_or_default().contains("spec.http[0].timeout"),
        "{condition}"
    );
    namespace.apply(&rule("1s"));
    cluster.until("it is mended", || accepted().filter(|condition| condition["status"] == "True"));
    cluster.osier(&["install"]);
}

fn pod(cluster: &Cluster, label: &str, annotations: &str) -> String {
    let image = image(cluster);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: probe\n  labels: {{{label}}}\n  annotations: {{{annotations}}}\nspec:\n  \
         containers: [{{name: app, image: '{image}'}}]\n"
    )
}
