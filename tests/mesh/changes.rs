//! A thousand random valid changes of configuration under load, with retries off: no request fails, and each answer is what one
//! version of the configuration, and not a mixture of two, says.
//!
//! Every change bears its number: the route sets it on request and response. So it is known when a change is in force, and an
//! answer tells which version it was routed by. The seed is printed; `OSIER_TEST_SEED` repeats a run.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::signal::Signal;
use osier_tests::backend::Backend;
use osier_tests::mesh::Sidecar;
use osier_tests::raw::Response;
use osier_tests::wait;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::load::Load;
use crate::web::{self, Web};

const CHANGES: usize = 1000;

/// The configuration of `web`, as it is changed.
#[derive(Clone)]
struct Config {
    number: usize,
    /// Weights of v1 and v2; one of them is above 0.
    weights: [u32; 2],
    /// `/load` has a route of its own, matched in one of several ways.
    matched: Option<&'static str>,
    timeout: Option<u32>,
    response_headers: u32,
    balancer: Option<&'static str>,
    pool: Option<u32>,
    /// Names of the subsets that select v1 and v2, and how many more there are. Each name is a cluster of its own.
    subsets: [String; 2],
    extra_subsets: u32,
    /// Name of the port: it decides on the protocol.
    port_name: &'static str,
}

const MATCHES: [&str; 5] = [
    "{uri: {prefix: /lo}}",
    "{uri: {regex: '/l.*d'}}",
    "{uri: {exact: /load}, method: {exact: GET}}",
    "{withoutHeaders: {x-absent: {}}}",
    "{uri: {exact: /nothing}}, {headers: {host: {regex: '.*'}}}, {uri: {prefix: /load}}",
];
const BALANCERS: [&str; 3] = ["ROUND_ROBIN", "RANDOM", "LEAST_REQUEST"];
const PORT_NAMES: [&str; 4] = ["http", "http2", "grpc", "http-other"];

impl Config {
    fn service(&self, port: u16) -> String {
        osier_tests::mesh::service("web", self.port_name, port)
    }

    /// DestinationRule and VirtualService in one file, so that they change together.
    fn rules(&self) -> String {
        let Self { number, weights, matched, timeout, .. } = self;
        let mut policy = String::new();
        if let Some(balancer) = self.balancer {
            policy += &format!("    loadBalancer: {{simple: {balancer}}}\n");
        }
        if let Some(limit) = self.pool {
            policy += &format!(
                "    connectionPool: {{tcp: {{maxConnections: {limit}}}, http: {{http2MaxRequests: {limit}, maxRequestsPerConnection: {}}}}}\n",
                limit % 7
            );
        }
        if !policy.is_empty() {
            policy = format!("  trafficPolicy:\n{policy}");
        }
        let extra: String = (0..self.extra_subsets)
            .map(|extra| format!("  - {{name: extra-{extra}, labels: {{version: v{}}}}}\n", 1 + extra % 2))
            .collect();
        let headers: String =
            (0..self.response_headers).map(|at| format!(", x-more-{at}: '{number}'")).collect();
        let rest = format!(
            "    retries: {{attempts: 0}}
{}    headers:
      request: {{set: {{x-change: '{number}'}}}}
      response: {{set: {{x-change: '{number}'{headers}}}}}
    route:
    - {{destination: {{host: web, subset: {}}}, weight: {}}}
    - {{destination: {{host: web, subset: {}}}, weight: {}}}
",
            timeout.map(|seconds| format!("    timeout: {seconds}s\n")).unwrap_or_default(),
            self.subsets[0],
            weights[0],
            self.subsets[1],
            weights[1]
        );
        let routes = match matched {
            Some(matched) => format!("  - match: [{matched}]\n{rest}  - name: others\n{rest}"),
            None => format!("  - name: all\n{rest}"),
        };
        format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web, namespace: default}}
spec:
  host: web
{policy}  subsets:
  - {{name: {}, labels: {{version: v1}}}}
  - {{name: {}, labels: {{version: v2}}}}
{extra}---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: web, namespace: default}}
spec:
  hosts: [web]
  http:
{routes}",
            self.subsets[0], self.subsets[1]
        )
    }
}

/// A change of something else than `web` itself.
fn other(random: &mut StdRng, port: u16) -> (String, Option<String>) {
    let number = random.random_range(0..8);
    let name = format!("other-{number}.yaml");
    if random.random_bool(0.3) {
        return (name, None);
    }
    let text = match random.random_range(0..3) {
        0 => osier_tests::mesh::service(&format!("other-{number}"), "http", port),
        1 => format!(
            "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: other-{number}, namespace: default}}
spec:
  hosts: [other-{number}.example.com]
  ports: [{{number: {port}, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1}}]
"
        ),
        _ => format!(
            "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: other-{number}, namespace: default}}
spec:
  hosts: [other-{number}]
  http:
  - route: [{{destination: {{host: web}}}}]
"
        ),
    };
    (name, Some(text))
}

/// An endpoint without a sidecar. Its backend goes on, so that what is on its way when it is taken out still arrives.
struct Plain {
    address: SocketAddr,
    version: u8,
    _backend: Backend,
}

impl Plain {
    fn start(number: u8, port: u16) -> Self {
        let version = 1 + number % 2;
        let ip = web_address(number);
        let address = SocketAddr::new(ip.into(), port);
        Self { address, version, _backend: Backend::start_at(&format!("v{version}"), address) }
    }

    fn yaml(&self, number: usize) -> String {
        format!(
            "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: plain-{number}, namespace: default}}
spec:
  address: {}
  labels: {{app: web, version: v{}}}
",
            self.address.ip(),
            self.version
        )
    }
}

/// Addresses outside of those that sidecars take.
fn web_address(number: u8) -> std::net::Ipv4Addr {
    [127, 130, rand::random(), 1 + number].into()
}

/// What each change allows, by its number.
#[derive(Default)]
struct Story(Mutex<Vec<[u32; 2]>>);

impl Story {
    /// The answer must be that of one version: the response's number, the request's and the backend have to fit.
    fn judge(&self, answer: &Response, newest: &mut u64) -> Result<(), String> {
        Load::status_200(answer, newest)?;
        let text = answer.text();
        let number = answer.header("x-change").and_then(|number| number.parse::<u64>().ok());
        let Some(number) = number else { return Err(format!("no number: {answer:?}")) };
        if !text.lines().any(|line| line == format!("x-change: {number}")) {
            return Err(format!("the response is of change {number}, and the request was not: {text}"));
        }
        if number < *newest {
            return Err(format!("change {number} after {newest}"));
        }
        *newest = number;
        let weights = self.0.lock()[number as usize];
        let allowed =
            |version: usize| weights[version] > 0 && text.starts_with(&format!("backend v{}\n", version + 1));
        if allowed(0) || allowed(1) {
            Ok(())
        } else {
            Err(format!("change {number} has {weights:?}: {text}"))
        }
    }
}

#[test]
fn a_thousand_random_changes_under_load_fail_no_request() {
    let seed = match std::env::var("OSIER_TEST_SEED") {
        Ok(text) => text.parse().expect("OSIER_TEST_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let web = Web::start(&[], &["--debounce-after", "5ms"]);
    let plain: Vec<Plain> = (0..4).map(|number| Plain::start(number, web.port)).collect();
    let mut guest: Option<Sidecar> = None;
    let mut leaving: Vec<Sidecar> = Vec::new();
    let mut config = Config {
        number: 0,
        weights: [50, 50],
        matched: None,
        timeout: None,
        response_headers: 0,
        balancer: None,
        pool: None,
        subsets: ["v1".into(), "v2".into()],
        extra_subsets: 0,
        port_name: "http",
    };
    let story = Arc::new(Story::default());
    story.0.lock().push(config.weights);
    web.pilot.remove("subsets.yaml");
    web.pilot.save("rules.yaml", &config.rules());
    wait_for_change(&web, 0);
    let judge = story.clone();
    let load =
        Load::start(web.client.proxy(), &web.host(), move |answer, newest| judge.judge(answer, newest));
    let begun = Instant::now();
    let mut done: Vec<String> = Vec::new();
    for number in 1..=CHANGES {
        config.number = number;
        let what = change(&mut random, &mut config, &web, &plain, &mut guest, &mut leaving);
        story.0.lock().push(config.weights);
        web.pilot.save("rules.yaml", &config.rules());
        done.push(format!("{number}: {what}"));
        wait_for_change(&web, number);
        leaving.retain_mut(|sidecar| !sidecar.program.has_ended());
        let failures = load.failures();
        let recent = &done[done.len().saturating_sub(5)..];
        assert!(failures.is_empty(), "seed {seed}, after {recent:#?}: {failures:#?}");
    }
    let (succeeded, failures) = load.stop();
    assert!(failures.is_empty(), "seed {seed}: {} of {succeeded}: {failures:#?}", failures.len());
    let (_, refused) = (web.pilot.log(), web.pilot.get("/metrics").text());
    let refused: Vec<&str> = refused
        .lines()
        .filter(|line| line.starts_with("pilot_total_xds_rejects") && !line.ends_with(" 0"))
        .collect();
    assert!(refused.is_empty(), "seed {seed}: {refused:?}");
    let reports = web.pilot.page("/debug/configz")["reports"].clone();
    let errors = reports.as_array().into_iter().flatten().filter(|report| report["severity"] == "error");
    assert_eq!(errors.count(), 0, "seed {seed}: {reports:#}");
    println!("{CHANGES} changes, {succeeded} requests, {:.1} s", begun.elapsed().as_secs_f64());
}

/// Makes one change and says which.
fn change(
    random: &mut StdRng,
    config: &mut Config,
    web: &Web,
    plain: &[Plain],
    guest: &mut Option<Sidecar>,
    leaving: &mut Vec<Sidecar>,
) -> String {
    if config.number.is_multiple_of(50) {
        return come_or_go(random, web, guest, leaving);
    }
    match random.random_range(0..12) {
        0 | 1 => {
            config.weights =
                *[[100, 0], [0, 100], [1, 99], [50, 50], [90, 10], [3, 4]].choose(random).unwrap_or(&[1, 1]);
            format!("weights {:?}", config.weights)
        }
        2 => {
            config.matched = random.random_bool(0.7).then(|| MATCHES.choose(random).copied()).flatten();
            format!("match {:?}", config.matched)
        }
        3 => {
            config.timeout = random.random_bool(0.7).then(|| random.random_range(20..60));
            format!("timeout {:?}", config.timeout)
        }
        4 => {
            config.response_headers = random.random_range(0..4);
            format!("{} more headers", config.response_headers)
        }
        5 => {
            config.balancer = random.random_bool(0.8).then(|| BALANCERS.choose(random).copied()).flatten();
            format!("balancer {:?}", config.balancer)
        }
        6 => {
            config.pool = random.random_bool(0.7).then(|| random.random_range(100..1000));
            format!("connection pool {:?}", config.pool)
        }
        7 => {
            config.extra_subsets = random.random_range(0..4);
            let version = random.random_range(0..2);
            config.subsets[version] = format!("v{}-{}", version + 1, random.random_range(0..5));
            format!("subsets {:?} and {} more", config.subsets, config.extra_subsets)
        }
        8 => {
            let (number, entry) =
                plain.iter().enumerate().collect::<Vec<_>>()[random.random_range(0..plain.len())];
            let name = format!("plain-{number}.yaml");
            let there = random.random_bool(0.5);
            web.pilot.save(&name, &if there { entry.yaml(number) } else { "# nobody\n".into() });
            format!("endpoint {number} {there}")
        }
        9 => {
            let file = if random.random_bool(0.5) { "/dev/null" } else { "''" };
            let mode = if random.random_bool(0.5) { "REGISTRY_ONLY" } else { "ALLOW_ANY" };
            let more = format!("    outboundTrafficPolicy: {{mode: {mode}}}\n");
            web.pilot.save("mesh.yaml", &crate::disk::access_log(file, &more));
            format!("mesh: access log {file}, {mode}")
        }
        10 => {
            config.port_name = PORT_NAMES.choose(random).copied().unwrap_or("http");
            web.pilot.save("service.yaml", &config.service(web.port));
            format!("port {}", config.port_name)
        }
        _ => {
            let (name, text) = other(random, web.port);
            let what = text.as_deref().and_then(|text| text.lines().nth(1)).unwrap_or("gone").to_owned();
            web.pilot.save(&name, &text.unwrap_or_else(|| "# gone\n".into()));
            format!("{name} {what}")
        }
    }
}

/// A third sidecar comes, or leaves politely.
fn come_or_go(
    random: &mut StdRng,
    web: &Web,
    guest: &mut Option<Sidecar>,
    leaving: &mut Vec<Sidecar>,
) -> String {
    match guest.take() {
        Some(sidecar) => {
            sidecar.program.signal(Signal::SIGTERM);
            leaving.push(sidecar);
            "a sidecar leaves".into()
        }
        None => {
            let version = ["v1", "v2"][random.random_range(0..2)];
            *guest = Some(web::server(&web.pilot, version));
            format!("a sidecar of {version} comes")
        }
    }
}

/// Waits until an answer bears this number.
fn wait_for_change(web: &Web, number: usize) {
    let number = number.to_string();
    wait::until(&format!("change {number} is in force"), || {
        let answer = web.client.get(&web.host(), "/load", "");
        (answer.header("x-change") == Some(&number)).then_some(())
    });
}
