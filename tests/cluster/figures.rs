//! What the mesh costs on a cluster, measured; printed, and held against what was promised where `OSIER_TEST_FULL` asks for it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use osier_tests::{process, wait};
use serde_json::{Value, json};

use crate::api::Api;
use crate::cluster::{Cluster, Namespace};
use crate::load::{image, sample};
use crate::pilot::Pilot;

/// A figure and its promise; the promise counts in a full run.
fn figure(what: &str, value: f64, unit: &str, most: f64, full: bool) {
    println!("  {what}: {value:.1} {unit} (at most {most} {unit})");
    assert!(!full || value <= most, "{what}: {value} {unit}, and at most {most} {unit} was promised");
}

fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 - 1.0) * share).round();
    values[at as usize]
}

/// From a pod's creation to its first answer over the network, with a sidecar and without one: the median of several.
pub fn start_of_a_pod(cluster: &Cluster, full: bool) {
    let rounds = if full { 10 } else { 3 };
    let measure = |namespace: &Namespace<'_>| {
        let mut times: Vec<f64> = (0..rounds).map(|number| first_answer(namespace, number)).collect();
        percentile(&mut times, 0.5)
    };
    let plain = measure(&cluster.namespace("start-plain", false));
    let injected = measure(&cluster.namespace("start-injected", true));
    println!("  pod to first answer: {plain:.2} s plain, {injected:.2} s with a sidecar");
    figure("a sidecar delays the start of a pod by", injected - plain, "s", 1.0, full);
}

fn first_answer(namespace: &Namespace<'_>, number: u32) -> f64 {
    let name = format!("pod-{number}");
    let image = image(namespace.cluster);
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - name: app\n    image: {image}\n    args: [internal, sample, --name, a, --version, v1, --listen, 0.0.0.0, --port, '8080']\n"
    );
    let started = Instant::now();
    namespace.apply(&manifest);
    let ip = namespace.cluster.until("the pod has an address", || {
        let said = namespace.try_kubectl(&["get", "pod", &name, "--output=jsonpath={.status.podIP}"]);
        Some(String::from_utf8_lossy(&said.stdout).into_owned()).filter(|ip| !ip.is_empty())
    });
    let address = format!("{ip}:8080").parse().expect("an address");
    namespace.cluster.until("the pod answers", || {
        let stream = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()?;
        drop(stream);
        let request = format!("GET / HTTP/1.1\r\nhost: {ip}\r\nconnection: close\r\n\r\n");
        let answer = osier_tests::raw::exchange(address, "GET", request.as_bytes())?;
        (answer.status() == 200).then_some(())
    });
    started.elapsed().as_secs_f64()
}

/// The slowest of a hundred admission calls, as pilot itself counts them.
pub fn admission(cluster: &Cluster, full: bool) {
    let metrics = cluster
        .kubectl(&["get", "--raw=/api/v1/namespaces/osier-system/services/osier-pilot:15014/proxy/metrics"]);
    let buckets = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix("sidecar_injection_time_seconds_bucket{le=\"")?;
        let (bound, count) = rest.split_once("\"} ")?;
        Some((bound.parse::<f64>().unwrap_or(f64::INFINITY), count.parse::<f64>().ok()?))
    });
    let buckets: Vec<(f64, f64)> = buckets.collect();
    let all = buckets.last().map_or(0.0, |(_, count)| *count);
    assert!(all > 0.0, "pods were injected by now: {metrics}");
    let bound =
        buckets.iter().find(|(_, count)| *count >= all * 0.99).map_or(f64::INFINITY, |(bound, _)| *bound);
    println!("  {all} admission calls");
    figure("99 of 100 admission calls take at most", bound * 1000.0, "ms", 10.0, full);
}

/// From an endpoint's change in the API server to requests of several clients that go there.
pub fn endpoint_change(cluster: &Cluster, full: bool) {
    let rounds = if full { 50 } else { 10 };
    let namespace = cluster.namespace("moving", true);
    namespace.apply(&sample(cluster, "a", "v1", 1));
    namespace.apply(&sample(cluster, "b", "v1", 1));
    namespace.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: moving}\nspec: {ports: [{name: http, port: 80}]}\n",
    );
    namespace.rolled_out("a-v1");
    namespace.rolled_out("b-v1");
    let address = |app: &str| {
        let path = "--output=jsonpath={.items[0].status.podIP}";
        namespace.kubectl(&["get", "pods", "-l", &format!("app={app}"), path]).trim().to_owned()
    };
    let addresses = [address("a"), address("b")];
    let slice = |address: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": "moving-1", "labels": { "kubernetes.io/service-name": "moving" } },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080 }],
            "endpoints": [{ "addresses": [address] }],
        })
    };
    let mut api = Api::open(cluster);
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", namespace.name);
    api.create(&slices, &slice(&addresses[0]));
    let image = image(cluster);
    let clients = ["one", "two", "three"];
    for client in clients {
        namespace.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {client}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - name: load\n    image: {image}\n    args: [internal, load, 'moving:80', --rps, '100', --changes]\n"
        ));
    }
    for client in clients {
        namespace.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{client}"), "--timeout=120s"]);
    }
    // Where each client saw what, from when on.
    let changes = |client: &str| {
        let said = namespace.try_kubectl(&["logs", client, "-c", "load"]);
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let change = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            Some((line["now"].as_str()?.to_owned(), line["at_ms"].as_f64()?))
        };
        text.lines().filter_map(change).collect::<Vec<_>>()
    };
    let all_see = |name: &str| {
        let sees = |client: &&str| changes(client).last().is_some_and(|(now, _)| now.starts_with(name));
        wait::until(&format!("all clients see {name}"), || clients.iter().all(sees).then_some(()));
    };
    all_see("a ");
    let mut moved = Vec::new();
    for round in 1..=rounds {
        let (address, name) = (&addresses[round % 2], ["a ", "b "][round % 2]);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64() * 1000.0;
        api.call("PUT", &format!("{slices}/moving-1"), "application/json", &slice(address));
        all_see(name);
        for client in clients {
            let (_, at) = changes(client).pop().expect("it has seen something");
            moved.push(at - since);
        }
    }
    let (half, most) = (percentile(&mut moved, 0.5), percentile(&mut moved, 0.99));
    println!("  {} changes seen, half of them within {half:.0} ms", moved.len());
    figure("99 of 100 endpoint changes are in force within", most, "ms", 200.0, full);
}

/// A pilot beside the cluster's own, over a thousand services with ten endpoints each.
pub fn many_services(cluster: &Cluster, full: bool) {
    let services = if full { 1000 } else { 100 };
    let namespace = cluster.namespace("many", false);
    let mut api = Api::open(cluster);
    let (core, discovery) = ("/api/v1/namespaces/many", "/apis/discovery.k8s.io/v1/namespaces/many");
    for number in 0..services {
        let name = format!("service-{number}");
        api.create(
            &format!("{core}/services"),
            &json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": name },
                // Without ClusterIP: the pool of addresses is not what is tested, and kube-proxy has no work with it.
                "spec": { "clusterIP": "None", "ports": [{ "name": "http", "port": 80 }] },
            }),
        );
        let endpoint = |last: u32| json!({ "addresses": [format!("10.{}.{}.{last}", 200 + number / 250, number % 250)] });
        api.create(
            &format!("{discovery}/endpointslices"),
            &json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
                "addressType": "IPv4",
                "ports": [{ "name": "http", "port": 8080 }],
                "endpoints": (1..=10).map(endpoint).collect::<Vec<_>>(),
            }),
        );
    }
    let program = std::path::PathBuf::from(process::own("osier-pilot").get_program());
    // Figures are of the programs that people run; a full run has built them for the images.
    let release = program.ancestors().nth(2).map(|target| target.join("release/osier-pilot"));
    let program = release.filter(|release| full && release.is_file()).unwrap_or(program);
    let started = Instant::now();
    let pilot = Pilot::start(cluster.command(program));
    pilot.wait_ready();
    let ready = started.elapsed().as_secs_f64();
    let memory = resident(pilot.program.pid());
    figure(&format!("pilot starts over {services} services within"), ready, "s", 5.0, full);
    figure(
        &format!("pilot over {services} services and {} endpoints has", services * 10),
        memory,
        "MiB",
        100.0,
        full,
    );
    drop(namespace);
}

/// Resident memory in MiB.
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line with its memory");
    line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
}
