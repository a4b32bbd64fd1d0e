//! Clusters that lack something, and replicas that go: what a person reads, and what stays.

use std::process::Command;

use osier_tests::{process, wait};

use crate::cluster::Cluster;
use crate::load::image;
use crate::pilot::Pilot;

/// Before anything is installed: Istio's kinds are not there, and then they are.
pub fn kinds_may_come_later(cluster: &Cluster) {
    let pilot = Pilot::start(cluster.command(process::own("osier-pilot").get_program()));
    pilot.wait_ready();
    let manifests = cluster.osier(&["install", "--output", "yaml"]);
    let definitions: Vec<&str> = manifests
        .split("---\n")
        .filter(|document| document.contains("kind: CustomResourceDefinition"))
        .collect();
    let said = cluster.feed(&["apply", "--server-side", "--filename=-"], &definitions.join("---\n"));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let rule = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: later, namespace: default}\nspec: \
                {hosts: [later], http: [{route: [{destination: {host: later}}]}]}\n";
    cluster.until("the definition is served", || {
        cluster.feed(&["apply", "--filename=-"], rule).status.success().then_some(())
    });
    wait::until("pilot knows the rule", || pilot.ask("/debug/configz").1.contains("\"later\"").then_some(()));
    cluster.kubectl(&["delete", "virtualservice", "later"]);
}

/// A service account that may do nothing: pilot says what it lacks, and waits.
pub fn missing_rights_are_named(cluster: &Cluster) {
    cluster.kubectl(&["create", "serviceaccount", "nobody", "--namespace=default"]);
    let token = cluster.kubectl(&["create", "token", "nobody", "--namespace=default"]);
    let view = cluster.kubectl(&["config", "view", "--raw", "--minify", "--output=json"]);
    let mut config: serde_json::Value = serde_json::from_str(&view).expect("JSON");
    config["users"][0]["user"] = serde_json::json!({ "token": token.trim() });
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, config.to_string()).expect("the test's folder can be written");
    let mut command = process::own("osier-pilot");
    command.arg("--kubeconfig").arg(&file);
    let pilot = Pilot::start(command);
    for resource in ["services", "endpointslices.discovery.k8s.io", "pods"] {
        let wanted = format!("lacks get, list and watch of {resource}");
        wait::until(&wanted, || pilot.program.output().contains(&wanted).then_some(()));
    }
    let (status, text) = pilot.ask("/ready");
    assert_eq!((status, text.contains("waiting for configuration")), (503, true), "{text}");
    cluster.kubectl(&["delete", "serviceaccount", "nobody", "--namespace=default"]);
}

/// Two replicas: one leads, and when it goes the other does; both serve.
pub fn replicas_share_the_work(cluster: &Cluster) {
    cluster.osier(&[
        "install",
        "--set",
        "pilot.replicaCount=2",
        "--set",
        &format!("global.hub={}", cluster.hub("osier")),
    ]);
    let holder = || {
        let lease = cluster.get(&["lease", "osier-pilot-leader", "--namespace=osier-system"]);
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    };
    let first = cluster.until("somebody leads", || Some(holder()).filter(|holder| !holder.is_empty()));
    cluster.kubectl(&["--namespace=osier-system", "delete", "pod", &first, "--wait=false"]);
    cluster.until("another leads", || Some(holder()).filter(|now| !now.is_empty() && *now != first));
    cluster.osier(&["install", "--set", &format!("global.hub={}", cluster.hub("osier"))]);
}

/// A webhook configuration that trusts somebody else is mended, so that pods can be made again.
pub fn trust_is_mended(cluster: &Cluster) {
    let bundle = || {
        let found = cluster.get(&["mutatingwebhookconfigurations", "osier-sidecar-injector"]);
        found["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned()
    };
    let good = cluster.until("the root is told", || Some(bundle()).filter(|bundle| !bundle.is_empty()));
    // What belongs to nobody: the root of the cluster itself.
    let other =
        cluster.kubectl(&["get", "configmap", "kube-root-ca.crt", "--output=jsonpath={.data.ca\\.crt}"]);
    let other = encode(other.as_bytes());
    let patch = format!(
        "[{{\"op\":\"replace\",\"path\":\"/webhooks/0/clientConfig/caBundle\",\"value\":\"{other}\"}}]"
    );
    cluster.kubectl(&[
        "patch",
        "mutatingwebhookconfiguration",
        "osier-sidecar-injector",
        "--type=json",
        "--patch",
        &patch,
    ]);
    cluster.until("it is as before", || (bundle() == good).then_some(()));
}

/// The root that workloads mount comes back where somebody wrote another. It is there as soon as there are gateways.
pub fn roots_are_mended(cluster: &Cluster) {
    let root = || {
        let found = cluster.get(&["configmap", "istio-ca-root-cert", "--namespace=default"]);
        found["data"]["root-cert.pem"].as_str().unwrap_or_default().to_owned()
    };
    let good = root();
    assert!(good.starts_with("-----BEGIN CERTIFICATE-----"), "{good}");
    let patch = "--patch={\"data\":{\"root-cert.pem\":\"another\"}}";
    cluster.kubectl(&[
        "patch",
        "configmap",
        "istio-ca-root-cert",
        "--namespace=default",
        "--type=merge",
        patch,
    ]);
    cluster.until("it is as before", || (root() == good).then_some(()));
}

/// A pod whose service account gives no token is injected and runs; a Service that selects nothing says so to who calls it.
pub fn odd_workloads(cluster: &Cluster) {
    let namespace = cluster.namespace("odd", true);
    let image = image(cluster);
    namespace.apply(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: nothing}}
spec: {{selector: {{app: nothing}}, ports: [{{name: http, port: 80}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: caller}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: load, image: '{image}', args: [internal, load, 'nothing:80', --rps, '5']}}
"
    ));
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/caller", "--timeout=120s"]);
    cluster.until("the caller hears why", || {
        let said = namespace.try_kubectl(&["logs", "caller", "-c", "load", "--tail=1"]);
        String::from_utf8_lossy(&said.stdout).contains("503: no healthy upstream").then_some(())
    });
}

fn encode(bytes: &[u8]) -> String {
    let mut child = Command::new("base64")
        .arg("--wrap=0")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("base64 starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("it reads"), bytes).expect("it reads");
    let done = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}
