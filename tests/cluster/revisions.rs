//! Control planes side by side, and one that is replaced: what a pod belongs to, and that no request fails meanwhile.

use serde_json::Value;

use crate::cluster::Cluster;
use crate::load::{Load, image, sample};

/// A second revision beside the first, a tag that points at it, and its end.
pub fn canary(cluster: &Cluster) {
    let hub = format!("global.hub={}", cluster.hub("osier"));
    cluster.osier(&["install", "--revision", "canary", "--set", &hub]);
    cluster.osier(&["tag", "set", "prod", "--revision", "canary"]);
    for (name, label, revision) in [
        ("rev-canary", "istio.io/rev=canary", "canary"),
        ("rev-tag", "istio.io/rev=prod", "canary"),
        ("rev-default", "istio-injection=enabled", "default"),
    ] {
        cluster.kubectl(&["create", "namespace", name]);
        cluster.kubectl(&["label", "namespace", name, label]);
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: probe}}\nspec: {{containers: [{{name: app, image: '{}'}}]}}\n",
            image(cluster)
        );
        let said = cluster.feed(&["--namespace", name, "create", "--dry-run=server", "-ojson", "-f-"], &pod);
        let made: Value = serde_json::from_slice(&said.stdout)
            .unwrap_or_else(|_| panic!("{label}: {}", String::from_utf8_lossy(&said.stderr)));
        assert_eq!(made["metadata"]["annotations"]["istio.io/rev"], revision, "{label}: {made}");
        cluster.kubectl(&["delete", "namespace", name, "--wait=false"]);
    }
    let listed = cluster.osier(&["tag", "list"]);
    assert!(listed.contains("prod") && listed.contains("canary"), "{listed}");
    cluster.osier(&["tag", "remove", "prod", "-y"]);
    cluster.osier(&["uninstall", "--revision", "canary"]);
    // The other one is whole.
    cluster.kubectl(&["get", "deployment", "osier-pilot", "--namespace=osier-system"]);
    let gone = cluster.try_kubectl(&["get", "mutatingwebhookconfiguration", "osier-sidecar-injector-canary"]);
    assert!(!gone.status.success());
}

/// Installing again and upgrading, under load; what was chosen stays.
pub fn upgrade(cluster: &Cluster) {
    let hub = format!("global.hub={}", cluster.hub("osier"));
    cluster.osier(&["install", "--set", &hub, "--set", "pilot.podAnnotations.round=one"]);
    let namespace = cluster.namespace("upgrade", true);
    namespace.apply(&sample(cluster, "web", "v1", 2));
    namespace.rolled_out("web-v1");
    let load = Load::start(&namespace, "load", "web:80", 200);
    cluster.osier(&["install", "--set", &hub, "--set", "pilot.podAnnotations.round=two"]);
    load.assert_unharmed("installed again");
    cluster.osier(&["upgrade", "--set", "pilot.podAnnotations.more=three"]);
    load.more(200);
    load.assert_unharmed("upgraded");
    let found = cluster.get(&["deployment", "osier-pilot", "--namespace=osier-system"]);
    let annotations = &found["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(
        (&annotations["round"], &annotations["more"]),
        (&"two".into(), &"three".into()),
        "{annotations}"
    );
    let said = cluster.try_osier(&["upgrade", "--revision", "nobody"]);
    let text = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && text.contains("there is no control plane nobody"), "{text}");
    cluster.osier(&["install", "--set", &hub]);
}
