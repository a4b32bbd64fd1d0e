//! Load from a pod on a service, each answer counted by the pod itself.

use serde_json::Value;

use crate::cluster::{Cluster, Namespace};

/// Image with the load generator and the sample application.
pub fn image(cluster: &Cluster) -> String {
    format!("{}/cli:{}", cluster.hub("osier"), env!("CARGO_PKG_VERSION"))
}

/// A Deployment of the sample application with its Service on port 80.
pub fn sample(cluster: &Cluster, name: &str, version: &str, replicas: u32) -> String {
    let image = image(cluster);
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}-{version}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}, version: {version}}}}}
  template:
    metadata: {{labels: {{app: {name}, version: {version}}}}}
    spec:
      terminationGracePeriodSeconds: 20
      containers:
      - name: app
        image: {image}
        args: [internal, sample, --name, {name}, --version, {version}, --listen, 0.0.0.0, --port, '8080']
        ports: [{{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
        resources: {{requests: {{cpu: 1m, memory: 8Mi}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"
    )
}

/// A pod that sends requests until it is told to stop.
pub struct Load<'n> {
    namespace: &'n Namespace<'n>,
    name: String,
}

/// What a load has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Answers 200.
    pub succeeded: u64,
    /// Everything else.
    pub failed: u64,
    /// Not sent, since too much was in flight.
    pub skipped: u64,
    /// The slowest answer, in milliseconds.
    pub slowest_ms: u64,
    /// What the first failure said.
    pub first_failure: Option<String>,
}

impl Counts {
    /// Reads a line of the load generator.
    fn read(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let number = |field: &str| line[field].as_u64().unwrap_or_default();
        Some(Self {
            succeeded: number("succeeded"),
            failed: number("failed"),
            skipped: number("skipped"),
            slowest_ms: number("slowest_ms"),
            first_failure: line["first_failure"].as_str().map(str::to_owned),
        })
    }
}

/// A second of requests on `target` from a container that is there already; `pod` may be `deployment/NAME`.
pub fn ask(namespace: &Namespace<'_>, pod: &str, target: &str) -> Counts {
    let load = ["osier", "internal", "load", target, "--rps", "10", "--seconds", "1"];
    let said = namespace.kubectl(&[&["exec", pod, "--"], &load[..]].concat());
    said.lines().last().and_then(Counts::read).expect("a last line with counts")
}

impl<'n> Load<'n> {
    /// Starts one of `rps` requests a second on `target`, and waits until answers come.
    pub fn start(namespace: &'n Namespace<'n>, name: &str, target: &str, rps: u32) -> Self {
        let image = image(namespace.cluster);
        namespace.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  terminationGracePeriodSeconds: 5
  restartPolicy: Never
  containers:
  - name: load
    image: {image}
    args: [internal, load, '{target}', --rps, '{rps}']
    resources: {{requests: {{cpu: 1m, memory: 8Mi}}}}
"
        ));
        let load = Self { namespace, name: name.to_owned() };
        load.more(u64::from(rps));
        load
    }

    /// Waits until `count` more answers have come, good or bad.
    pub fn more(&self, count: u64) {
        let all = || self.counts().map_or(0, |counts| counts.succeeded + counts.failed);
        let before = all();
        self.namespace.cluster.until("answers to the load", || (all() >= before + count).then_some(()));
    }

    /// What was counted so far; `None` before the first line.
    pub fn counts(&self) -> Option<Counts> {
        let said = self.namespace.try_kubectl(&["logs", &self.name, "-c", "load", "--tail=1"]);
        Counts::read(&String::from_utf8_lossy(&said.stdout))
    }

    /// Fails if anything failed so far.
    pub fn assert_unharmed(&self, after: &str) {
        let counts = self.counts().expect("the load counts");
        assert_eq!(counts.failed, 0, "{after}: {counts:?}");
        println!("  {after}: {} answers, 0 failed, slowest {} ms", counts.succeeded, counts.slowest_ms);
    }
}
