//! Prometheus scrapes the sidecars and pilot: it takes everything without a warning, `promtool` finds nothing to complain of, and
//! the queries that dashboards make say what was sent.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use osier_tests::backend::Backend;
use osier_tests::mesh::{Pilot, Sidecar, admin_get, service, subsets};
use osier_tests::process::{self, Program};
use osier_tests::wait;
use serde_json::Value;

const RULES: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: default}
spec:
  hosts: [web]
  http:
  - route:
    - {destination: {host: web, subset: v1}, weight: 75}
    - {destination: {host: web, subset: v2}, weight: 25}
";

struct Prometheus {
    address: SocketAddr,
    program: Program,
}

impl Prometheus {
    fn start(pilot: &Pilot, sidecars: &[&Sidecar]) -> Self {
        let address = process::free_address();
        let targets: Vec<String> = sidecars.iter().map(|sidecar| format!("'{}'", sidecar.admin())).collect();
        let configuration = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
- job_name: pilot
  static_configs: [{{targets: ['{}']}}]
- job_name: sidecars
  metrics_path: /stats/prometheus
  static_configs: [{{targets: [{}]}}]
",
            pilot.monitoring,
            targets.join(", ")
        );
        let file = pilot.path().join("prometheus.yaml");
        std::fs::write(&file, configuration).expect("the test's folder can be written");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", pilot.path().join("series").display()))
            .arg(format!("--web.listen-address={address}"));
        let mut program = Program::start("prometheus", &mut command, pilot.path());
        program.wait_listening(address);
        wait::until("prometheus is ready", || (admin_get(address, "/-/ready").status() == 200).then_some(()));
        Self { address, program }
    }

    /// `data` of an answer of its API.
    fn api(&self, path: &str) -> Value {
        let text = admin_get(self.address, path).text();
        let answer: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"));
        assert_eq!(answer["status"], "success", "{path}: {text}");
        answer["data"].clone()
    }

    /// The values of a query, by a label.
    fn query(&self, query: &str, label: &str) -> Vec<(String, f64)> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let data = self.api(&format!("/api/v1/query?query={escaped}"));
        let mut values: Vec<(String, f64)> = data["result"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|series| {
                let value = series["value"][1].as_str().and_then(|value| value.parse().ok());
                (series["metric"][label].as_str().unwrap_or_default().to_owned(), value.expect("a number"))
            })
            .collect();
        values.sort_by(|a, b| a.0.cmp(&b.0));
        values
    }

    fn wait_for(&self, query: &str, label: &str, wanted: &[(&str, f64)]) {
        let wanted: Vec<(String, f64)> =
            wanted.iter().map(|(name, value)| ((*name).into(), *value)).collect();
        let mut last = Vec::new();
        wait::until(&format!("{query} is {wanted:?}"), || {
            last = self.query(query, label);
            (last == wanted).then_some(())
        });
    }
}

/// How many of `count` requests each version answered.
fn send(client: &Sidecar, host: &str, count: usize) -> [f64; 2] {
    let answers: Vec<String> = (0..count).map(|_| client.ask(host)).collect();
    let counts = ["v1", "v2"].map(|version| answers.iter().filter(|answer| *answer == version).count());
    assert_eq!(counts.iter().sum::<usize>(), count, "{answers:?}");
    counts.map(|count| count as f64)
}

/// What `promtool` may say, by the start of a name and the complaint: names that dashboards know from Envoy, Istio and istiod.
const KNOWN: &[(&str, &str)] = &[
    ("galley_validation_failed", "counter metrics should have \"_total\" suffix"),
    ("galley_validation_passed", "counter metrics should have \"_total\" suffix"),
    ("citadel_server_", "counter metrics should have \"_total\" suffix"),
    ("citadel_server_", "non-histogram and non-summary metrics should not have \"_count\" suffix"),
    ("envoy_", "counter metrics should have \"_total\" suffix"),
    ("pilot_", "counter metrics should have \"_total\" suffix"),
    ("xds_cache_reads", "counter metrics should have \"_total\" suffix"),
    ("istio_request_duration_milliseconds", "use base unit \"seconds\" instead of \"milliseconds\""),
];

/// `promtool check metrics`: format, types, and the rules for names and help texts.
fn promtool(what: &str, text: &str) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    let mut input = child.stdin.take().expect("a pipe");
    let text = text.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("promtool ends");
    writer.join().expect("no panic").expect("promtool reads");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // Its exit status for complaints; 1 is a page that it cannot read.
    const LINT: i32 = 3;
    assert!(matches!(output.status.code(), Some(0 | LINT)), "{what}: {}: {said}", output.status);
    let known = |line: &&str| {
        KNOWN
            .iter()
            .any(|(name, complaint)| line.starts_with(name) && line.ends_with(&format!(" {complaint}")))
    };
    let complaints: Vec<&str> = said.lines().filter(|line| !line.is_empty() && !known(line)).collect();
    assert!(complaints.is_empty(), "{what}: {complaints:#?}");
}

#[test]
fn prometheus_takes_and_understands_all_metrics() {
    let port = process::free_address().port();
    let pilot = Pilot::start(
        &[
            ("service.yaml", &service("web", "http", port)),
            ("subsets.yaml", &subsets("web")),
            ("rules.yaml", RULES),
        ],
        &[],
    );
    let servers = ["v1", "v2"].map(|version| {
        let backend = Backend::start(version);
        Sidecar::start(&pilot, "web", version, Some(backend.address))
    });
    let client = Sidecar::start(&pilot, "client", "v1", None);
    let host = format!("web:{port}");
    wait::until("both versions are there", || {
        let answers: Vec<String> = (0..20).map(|_| client.ask(&host)).collect();
        answers.iter().all(|answer| answer.starts_with('v')).then_some(())
    });
    let prometheus = Prometheus::start(&pilot, &[&servers[0], &servers[1], &client]);
    prometheus.wait_for("count by (job) (up == 1)", "job", &[("pilot", 1.0), ("sidecars", 3.0)]);

    // A rate needs a reading before and one after.
    let at_source =
        "sum by (destination_version) (istio_requests_total{reporter=\"source\",response_code=\"200\"})";
    let at_destination = "sum by (destination_version) (istio_requests_total{reporter=\"destination\"})";
    wait::until("a first reading", || {
        (prometheus.query(at_source, "destination_version").len() == 2).then_some(())
    });
    let before = prometheus.query(at_source, "destination_version");
    let sent = send(&client, &host, 600);
    let totals = [("v1", before[0].1 + sent[0]), ("v2", before[1].1 + sent[1])];
    prometheus.wait_for(at_source, "destination_version", &totals);
    prometheus.wait_for(at_destination, "destination_version", &totals);
    let share = |query: &str| {
        let values = prometheus.query(query, "destination_version");
        let [(_, v1), (_, v2)] = values.as_slice() else { panic!("{query}: {values:?}") };
        v1 / (v1 + v2)
    };
    let wanted = sent[0] / (sent[0] + sent[1]);
    for function in ["rate", "increase"] {
        let query = format!(
            "sum by (destination_version) ({function}(istio_requests_total{{reporter=\"source\",response_code=\"200\"}}[1m]))"
        );
        let share = share(&query);
        assert!((share - wanted).abs() < 0.03, "{query}: {share}, sent {wanted}");
        // Four standard deviations of 600 requests around the weight.
        assert!((share - 0.75).abs() < 0.08, "{query}: {share}");
    }
    let quantile = "histogram_quantile(0.99, sum by (le, destination_version) \
                    (rate(istio_request_duration_milliseconds_bucket{reporter=\"source\",response_code=\"200\"}[1m])))";
    let quantiles = prometheus.query(quantile, "destination_version");
    assert!(quantiles.len() == 2 && quantiles.iter().all(|(_, value)| *value > 0.0), "{quantiles:?}");
    let labels = "count by (source_workload, destination_workload, request_protocol, response_code, response_flags) \
                  (istio_requests_total{reporter=\"source\",response_code=\"200\"})";
    assert_eq!(
        prometheus.query(labels, "destination_workload"),
        [("web-v1".to_owned(), 1.0), ("web-v2".to_owned(), 1.0)]
    );
    assert_eq!(prometheus.query("pilot_xds", "job"), [("pilot".to_owned(), 3.0)]);
    assert_eq!(prometheus.query("sum(pilot_total_xds_rejects) or vector(0)", "job"), [(String::new(), 0.0)]);

    let targets = prometheus.api("/api/v1/targets?state=active");
    for target in targets["activeTargets"].as_array().expect("a list") {
        assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target:#}");
    }
    let log = prometheus.program.output();
    let warnings: Vec<&str> =
        log.lines().filter(|line| line.contains("level=warn") || line.contains("level=error")).collect();
    assert!(warnings.is_empty(), "{warnings:#?}");

    let pages = [("pilot", pilot.monitoring, "/metrics"), ("client", client.admin(), "/stats/prometheus")];
    let more = servers.iter().map(|server| ("server", server.admin(), "/stats/prometheus"));
    for (what, address, path) in pages.into_iter().chain(more) {
        let answer = admin_get(address, path);
        assert!(
            answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4"))
        );
        promtool(what, &answer.text());
    }
}
