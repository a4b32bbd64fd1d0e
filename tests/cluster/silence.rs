//! A control plane that says nothing: it runs and takes connections, and nobody gets an answer.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{Cluster, Namespace};
use crate::load::{Load, ask, sample};
use crate::mend::Mend;

const SYSTEM: &str = "--namespace=osier-system";
/// How long a sidecar waits for what it has asked for, and some more.
const BOUND: Duration = Duration::from_secs(6 + 3);

/// What a sidecar knows goes on; what it needs for the first time is waited for a while, and nothing goes there in plaintext instead.
/// As soon as the control plane is back, it is got.
pub fn first_use_of_a_service(cluster: &Cluster) {
    let silent = processes(cluster);
    if silent.is_empty() && !cluster.is_own() {
        println!("  only where the control plane's processes are on this machine");
        return;
    }
    assert!(!silent.is_empty(), "no process of this machine is the control plane's");
    let namespace = cluster.namespace("silence", true);
    namespace.apply(&sample(cluster, "known", "v1", 1));
    namespace.apply(&sample(cluster, "new", "v1", 1));
    namespace.rolled_out("known-v1");
    namespace.rolled_out("new-v1");
    let load = Load::start(&namespace, "load", "known:80", 50);

    // One that has ended meanwhile is silent, too.
    let send = |signal| {
        for pid in &silent {
            let _ = kill(*pid, signal);
        }
    };
    send(Signal::SIGSTOP);
    let mend = Mend(|| send(Signal::SIGCONT));
    let begun = Instant::now();
    let counts = ask(&namespace, "load", "new:80");
    println!("  first use: {counts:?} after {:.1} s", begun.elapsed().as_secs_f64());
    let why = counts.first_failure.clone().unwrap_or_default();
    assert!(counts.succeeded == 0 && counts.failed > 0, "{counts:?}");
    assert!(why.starts_with("503: configuration for ") && why.ends_with(" not received"), "{why}");
    assert!(u128::from(counts.slowest_ms) <= BOUND.as_millis(), "{counts:?}");
    let known = ask(&namespace, "load", "known:80");
    assert!(known.succeeded > 0 && known.failed == 0, "{known:?}");
    assert_eq!(came_to(&namespace, "new"), (0, 0), "nothing came while nobody said how");
    drop(mend);

    let since = Instant::now();
    let counts = cluster.until("what is new is got", || {
        Some(ask(&namespace, "load", "new:80")).filter(|counts| counts.failed == 0)
    });
    println!("  {counts:?} {:.1} s after pilot was back", since.elapsed().as_secs_f64());
    let (encrypted, plain) = came_to(&namespace, "new");
    assert!(encrypted > 0 && plain == 0, "{encrypted} by mutual TLS, {plain} in plaintext");
    load.assert_unharmed("a silent control plane");
}

/// Processes of all replicas, in this machine's numbers.
fn processes(cluster: &Cluster) -> Vec<Pid> {
    let pods = cluster.get(&["pods", SYSTEM, "--selector=app=osier-pilot"]);
    let pods = pods["items"].as_array().expect("a list");
    let uids: Vec<&str> = pods.iter().filter_map(|pod| pod["metadata"]["uid"].as_str()).collect();
    let numbers = std::fs::read_dir("/proc").expect("/proc can be read").flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_one = |pid: &i32| {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("comm").trim() == "osier-pilot" && uids.iter().any(|uid| read("cgroup").contains(uid))
    };
    numbers.filter(is_one).map(Pid::from_raw).collect()
}

/// What came to an application's pods, as its sidecars count it: requests by mutual TLS, and requests or connections in plaintext.
fn came_to(namespace: &Namespace<'_>, app: &str) -> (u64, u64) {
    let (mut encrypted, mut plain) = (0, 0);
    let pods = namespace.kubectl(&["get", "pods", "-l", &format!("app={app}"), "--output=name"]);
    for pod in pods.lines() {
        let metrics = namespace.proxy_metrics(pod);
        assert!(metrics.contains("istio_build"), "the sidecar answers: {metrics}");
        for line in metrics.lines().filter(|line| line.starts_with("istio_requests_total{")) {
            let count: u64 = line.rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a number");
            match line.contains("connection_security_policy=\"mutual_tls\"") {
                true => encrypted += count,
                false => plain += count,
            }
        }
        let page: Value =
            serde_json::from_str(&namespace.proxy_page(pod, "plaintext_callers")).expect("JSON");
        plain += page["callers"].as_array().map_or(0, |callers| callers.len() as u64);
    }
    (encrypted, plain)
}
