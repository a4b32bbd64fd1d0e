//! Traffic through sidecars on a cluster: what a rule does, and what may happen without a request failing. Retries are off.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{Cluster, Namespace};
use crate::load::{Load, sample};
use crate::mend::Mend;

/// Routes `web` by weight, with retries off.
fn split(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web}}
spec:
  host: web
  subsets:
  - {{name: v1, labels: {{version: v1}}}}
  - {{name: v2, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: web}}
spec:
  hosts: [web]
  http:
  - retries: {{attempts: 0}}
    route:
    - {{destination: {{host: web, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: web, subset: v2}}, weight: {v2}}}
"
    )
}

/// The same without versions.
const NO_RETRIES: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - retries: {attempts: 0}
    route: [{destination: {host: web}}]
";

/// Two versions behind one Service, moved between while a client counts.
pub fn blue_green(cluster: &Cluster) {
    let namespace = cluster.namespace("blue-green", true);
    namespace.apply(&sample(cluster, "web", "v1", 2));
    namespace.apply(&sample(cluster, "web", "v2", 2));
    namespace.apply(&split(100, 0));
    namespace.rolled_out("web-v1");
    namespace.rolled_out("web-v2");
    let load = Load::start(&namespace, "load", "web:80", 200);
    for (v1, v2) in [(90, 10), (50, 50), (0, 100), (100, 0)] {
        namespace.apply(&split(v1, v2));
        load.more(400);
    }
    load.assert_unharmed("blue/green");
    let served = |version: &str| {
        let path = "--output=jsonpath={.items[*].metadata.name}";
        let pods = namespace.kubectl(&["get", "pods", "-l", &format!("version={version}"), path]);
        let pod = pods.split_whitespace().next().expect("a pod").to_owned();
        namespace.proxy_metrics(&pod)
    };
    let requests = served("v2");
    assert!(requests.contains("istio_requests_total"), "{requests}");
}

/// Every pod of a Deployment is replaced, again and again, while a client counts.
pub fn rolling_restarts(cluster: &Cluster, pods: u32, rps: u32, times: u32) {
    let namespace = cluster.namespace("rolling", true);
    namespace.apply(&sample(cluster, "web", "v1", pods));
    namespace.apply(NO_RETRIES);
    namespace.rolled_out("web-v1");
    let load = Load::start(&namespace, "load", "web:80", rps);
    for number in 1..=times {
        namespace.kubectl(&["rollout", "restart", "deployment/web-v1"]);
        namespace.rolled_out("web-v1");
        load.more(u64::from(rps));
        load.assert_unharmed(&format!("rolling restart {number} of {pods} pods at {rps} requests a second"));
    }
}

/// Things that go away for a while, while a client counts.
pub fn outages(cluster: &Cluster, time: Duration) {
    let namespace = cluster.namespace("outages", true);
    namespace.apply(&sample(cluster, "web", "v1", 2));
    namespace.apply(NO_RETRIES);
    namespace.rolled_out("web-v1");
    let load = Load::start(&namespace, "load", "web:80", 200);

    if cluster.is_own() {
        let server = daemon(cluster, "kube-apiserver");
        kill(server, Signal::SIGSTOP).expect("the API server is there");
        let mend = Mend(|| kill(server, Signal::SIGCONT).expect("the API server is there"));
        stays(time);
        drop(mend);
        cluster.until("the API server answers", || {
            cluster.try_kubectl(&["get", "--raw=/readyz"]).status.success().then_some(())
        });
        load.more(200);
        load.assert_unharmed("the API server hung");
    }

    cluster.replace_pilot();
    cluster.pilot_rolled_out();
    load.more(200);
    load.assert_unharmed("pilot restarted");

    cluster.kubectl(&["-n", "osier-system", "scale", "deployment/osier-pilot", "--replicas=0"]);
    cluster.kubectl(&[
        "-n",
        "osier-system",
        "wait",
        "--for=delete",
        "pod",
        "-l",
        "app=osier-pilot",
        "--timeout=60s",
    ]);
    stays(time);
    load.assert_unharmed("pilot away");
    cluster.kubectl(&["-n", "osier-system", "scale", "deployment/osier-pilot", "--replicas=1"]);
    cluster.pilot_rolled_out();
    // What changes afterwards reaches everybody.
    namespace.kubectl(&["scale", "deployment/web-v1", "--replicas=3"]);
    namespace.rolled_out("web-v1");
    load.more(400);
    load.assert_unharmed("pilot came back");
    reaches_new_pod(&namespace);
}

/// The newest pod gets its share.
fn reaches_new_pod(namespace: &Namespace<'_>) {
    let newest = "--output=jsonpath={.items[-1:].metadata.name}";
    let pod =
        namespace.kubectl(&["get", "pods", "-l", "app=web", "--sort-by=.metadata.creationTimestamp", newest]);
    namespace.cluster.until("the new pod gets requests", || {
        namespace.proxy_metrics(pod.trim()).contains("reporter=\"destination\"").then_some(())
    });
}

/// An outage is a time, not a condition.
fn stays(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::sleep(left);
    }
}

fn daemon(cluster: &Cluster, name: &str) -> Pid {
    let status = cluster.xtask(&["status"]);
    let line = status.lines().find(|line| line.starts_with(name)).expect("a daemon of the cluster");
    let pid = line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid");
    Pid::from_raw(pid)
}
