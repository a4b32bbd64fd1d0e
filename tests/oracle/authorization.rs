//! Random RBAC rules and requests from a fixed seed: both proxies must let the same through.
//!
//! All rules are in one bootstrap: each is for requests with its own number, so that a start of the proxies serves for all of them.

use std::fmt::Write as _;

use osier_tests::raw::Connection;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::case::Case;
use crate::pair::{BOOTSTRAP, Observed, Pair, bootstrap_with};

/// Rules of each action, and requests for each rule.
const RULES: usize = 100;
const REQUESTS: usize = 25;

const PATHS: [&str; 10] = ["/", "/a", "/a/b", "/a/b/c", "/a/", "/A", "/a//c", "/x.y", "/a/b?q=/a", "/%41/b"];
const NAMES: [&str; 2] = ["x-a", "X-B"];
const VALUES: [&str; 5] = ["1", "12", "one two", "One", "-7"];
const HOSTS: [&str; 4] = ["a.test", "A.test", "b.a.test", "a.test:80"];
const METHODS: [&str; 4] = ["GET", "POST", "HEAD", "PURGE"];
const CLIENTS: [&str; 3] = ["10.0.0.1", "10.0.0.9", "fd00::1"];

#[test]
fn random_rules_decide_alike() {
    let mut random = StdRng::seed_from_u64(11);
    let bootstrap = bootstrap(&mut random);
    let pair = Pair::start(&bootstrap);
    let [mut envoy, mut osier] = pair.http().map(Connection::open);
    let mut counts = [0_usize; 2];
    for number in 0..2 * RULES {
        for _ in 0..REQUESTS {
            let (method, request) = request(&mut random, number);
            let ask = |connection: &mut Connection| {
                connection.send(request.as_bytes());
                let answer = connection.receive(method).expect("an answer");
                (answer.status(), answer.header("content-length").map(str::to_owned), answer.text())
            };
            let (theirs, ours) = (ask(&mut envoy), ask(&mut osier));
            let rule = || {
                bootstrap.lines().filter(|line| line.contains(&format!("r{number:03}:"))).collect::<String>()
            };
            assert_eq!(theirs, ours, "request:\n{request}{}", rule());
            counts[usize::from(ours.0 == 403)] += 1;
        }
    }
    let [allowed, denied] = counts;
    assert!(allowed > RULES && denied > RULES, "{allowed} allowed, {denied} denied");
}

#[test]
fn a_denied_connection_gets_nothing_from_either() {
    let filter = |range: &str| {
        format!(
            "      - name: envoy.filters.network.rbac
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC
          stat_prefix: tcp.
          rules: {{action: DENY, policies: {{p: {{permissions: [{{any: true}}], principals: [{{direct_remote_ip: {{address_prefix: {range}, prefix_len: 8}}}}]}}}}}}
"
        )
    };
    let tcp = "      - name: envoy.filters.network.tcp_proxy\n";
    let ask = Case {
        name: "rbac",
        listener: "tcp",
        requests: vec![b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_vec()],
        // Envoy gives up a connection whose client has sent its end before the upstream was there, now and then.
        half_close: false,
    };
    for (range, answered) in [("127.0.0.0", false), ("10.0.0.0", true)] {
        let pair = Pair::start(&BOOTSTRAP.replace(tcp, &format!("{}{tcp}", filter(range))));
        let (envoy, osier) = pair.observe(&ask);
        assert_eq!(envoy, osier, "{range}");
        assert_eq!(envoy == [Observed::Nothing], !answered, "{envoy:?}");
    }
}

/// The table's bootstrap with one route, which answers, behind the rules.
fn bootstrap(random: &mut StdRng) -> String {
    let hosts = "            virtual_hosts: [{name: any, domains: [\"*\"], routes: [{match: {prefix: \"/\"}, direct_response: {status: 200, body: {inline_string: ok}}}]}]\n";
    let mut text = String::new();
    for (action, first) in [("DENY", 0), ("ALLOW", RULES)] {
        let _ = writeln!(
            text,
            "          - name: envoy.filters.http.rbac
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: {action}
                policies:"
        );
        for number in first..first + RULES {
            let _ = writeln!(
                text,
                "                  r{number:03}: {{permissions: [{}], principals: [{{and_ids: {{ids: [{{header: {{name: x-rule, string_match: {{exact: \"{number}\"}}}}}}, {}]}}}}]}}",
                condition(random, false, 3),
                condition(random, true, 3)
            );
        }
        if action == "ALLOW" {
            // Those for rules of the other filter.
            let _ = writeln!(
                text,
                "                  rest: {{permissions: [{{header: {{name: x-rule, range_match: {{start: 0, end: {RULES}}}}}}}], principals: [{{any: true}}]}}"
            );
        }
    }
    bootstrap_with(hosts, &text)
}

/// A permission, or a principal.
fn condition(random: &mut StdRng, principal: bool, depth: u32) -> String {
    let [all, any, list, not] = if principal {
        ["and_ids", "or_ids", "ids", "not_id"]
    } else {
        ["and_rules", "or_rules", "rules", "not_rule"]
    };
    match random.random_range(0..if depth == 0 { 7 } else { 11 }) {
        0 => header(random),
        1 => header(random),
        2 => format!("{{url_path: {{path: {}}}}}", text(random, &PATHS)),
        3 if principal => format!("{{direct_remote_ip: {}}}", range(random, &["127.0.0.1", "10.0.0.1"])),
        4 if principal => format!("{{remote_ip: {}}}", range(random, &CLIENTS)),
        5 if principal => {
            pick(random, &["{authenticated: {}}", "{authenticated: {principal_name: {prefix: s}}}"])
                .to_owned()
        }
        3 => format!("{{destination_ip: {}}}", range(random, &["127.0.0.1", "10.0.0.1"])),
        4 => pick(random, &["{destination_port_range: {start: 1, end: 65536}}", "{destination_port: 1}"])
            .to_owned(),
        5 => template(random),
        6 if !principal => format!("{{requested_server_name: {}}}", text(random, &HOSTS)),
        6 => "{any: true}".to_owned(),
        7 | 8 => format!("{{{not}: {}}}", condition(random, principal, depth - 1)),
        kind => {
            let count = random.random_range(1..3);
            let inner: Vec<String> = (0..count).map(|_| condition(random, principal, depth - 1)).collect();
            format!("{{{}: {{{list}: [{}]}}}}", if kind == 9 { all } else { any }, inner.join(", "))
        }
    }
}

fn header(random: &mut StdRng) -> String {
    let (name, values): (&str, &[&str]) = match random.random_range(0..5) {
        0 => (":method", &METHODS),
        1 => (":authority", &HOSTS),
        2 => (":path", &PATHS),
        _ => (pick(random, &NAMES), &VALUES),
    };
    let kind = match random.random_range(0..6) {
        0 => format!("present_match: {}", random.random_bool(0.5)),
        1 => "range_match: {start: -10, end: 12}".to_owned(),
        _ => format!("string_match: {}", text(random, values)),
    };
    let invert = if random.random_ratio(1, 4) { ", invert_match: true" } else { "" };
    let empty = if random.random_ratio(1, 6) { ", treat_missing_header_as_empty: true" } else { "" };
    format!("{{header: {{name: \"{name}\", {kind}{invert}{empty}}}}}")
}

/// A condition on a text that is like one of these.
fn text(random: &mut StdRng, values: &[&str]) -> String {
    let value = pick(random, values);
    let half = value.len().div_ceil(2);
    let (start, end) = (&value[..half], &value[value.len() - half..]);
    let case = if random.random_ratio(1, 4) { ", ignore_case: true" } else { "" };
    match random.random_range(0..5) {
        0 => format!("{{prefix: \"{start}\"{case}}}"),
        1 => format!("{{suffix: \"{end}\"{case}}}"),
        2 => format!("{{contains: \"{start}\"{case}}}"),
        3 => format!("{{safe_regex: {{regex: '{}.*'}}}}", start.replace('.', "[.]").replace('?', "[?]")),
        _ => format!("{{exact: \"{value}\"{case}}}"),
    }
}

fn template(random: &mut StdRng) -> String {
    let template = pick(random, &["/*", "/a/*", "/a/**", "/**", "/*/b", "/a/*/c", "/**/c", "/a/b"]);
    format!(
        "{{uri_template: {{name: t, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: \"{template}\"}}}}}}"
    )
}

fn range(random: &mut StdRng, addresses: &[&str]) -> String {
    let address = pick(random, addresses);
    format!("{{address_prefix: \"{address}\", prefix_len: {}}}", pick(random, &[8, 29, 32]))
}

/// A request for a rule, and its method.
fn request(random: &mut StdRng, number: usize) -> (&'static str, String) {
    let method = pick(random, &METHODS);
    let mut text = format!(
        "{method} {} HTTP/1.1\r\nHost: {}\r\nx-rule: {number}\r\n",
        pick(random, &PATHS),
        pick(random, &HOSTS)
    );
    for name in NAMES {
        for _ in 0..pick(random, &[0, 1, 1, 2]) {
            let _ = write!(text, "{name}: {}\r\n", pick(random, &VALUES));
        }
    }
    if random.random_ratio(1, 2) {
        let _ = write!(text, "x-forwarded-for: {}\r\n", pick(random, &CLIENTS));
    }
    text.push_str("\r\n");
    (method, text)
}

fn pick<T: Copy>(random: &mut StdRng, choices: &[T]) -> T {
    choices[random.random_range(0..choices.len())]
}
