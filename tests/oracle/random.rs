//! Random route tables and requests from a fixed seed: both proxies must choose the same route.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::case::Case;
use crate::pair::{Pair, bootstrap_with};

/// Tables to try, and requests for each.
const TABLES: u64 = 4;
const REQUESTS: usize = 150;

const HOSTS: [&str; 6] = ["a.test", "*.a.test", "b.*", "*.test", "c.b.test", "*"];
const SEGMENTS: [&str; 5] = ["", "one", "two", "One", "one%20two"];
const HEADERS: [&str; 3] = ["x-a", "x-b", "x-c"];
const VALUES: [&str; 4] = ["1", "12", "", "one two"];

#[test]
fn random_route_tables_choose_alike() {
    for seed in 0..TABLES {
        let mut random = StdRng::seed_from_u64(seed);
        let pair = Pair::start(&bootstrap(&mut random));
        for _ in 0..REQUESTS {
            let request = request(&mut random);
            let text = String::from_utf8_lossy(&request).into_owned();
            let case = Case { name: "random", listener: "http", requests: vec![request], half_close: false };
            let (envoy, osier) = pair.observe(&case);
            assert_eq!(envoy, osier, "seed {seed}, request:\n{text}");
        }
    }
}

/// The table's bootstrap with its virtual hosts replaced by random ones. Each route answers with its own name.
fn bootstrap(random: &mut StdRng) -> String {
    let mut hosts = String::from("            virtual_hosts:\n");
    for (number, host) in HOSTS.iter().enumerate() {
        let _ = writeln!(
            hosts,
            "            - name: host{number}\n              domains: [\"{host}\"]\n              routes:"
        );
        for route in 0..random.random_range(1..6) {
            let _ = writeln!(
                hosts,
                "              - {{match: {}, direct_response: {{status: 200, body: {{inline_string: \"{number}.{route}\"}}}}}}",
                condition(random)
            );
        }
    }
    bootstrap_with(&hosts, "")
}

fn condition(random: &mut StdRng) -> String {
    let path = path(random);
    let mut text = match random.random_range(0..5) {
        0 => format!("path: \"{path}\""),
        1 => format!("safe_regex: {{regex: \"{}.*\"}}", path.replace("One", "[A-Z]ne")),
        2 if path.len() > 1 && !path.ends_with('/') => format!("path_separated_prefix: \"{path}\""),
        3 => format!("prefix: \"{path}\", case_sensitive: false"),
        _ => format!("prefix: \"{path}\""),
    };
    if random.random_ratio(1, 3) {
        let (name, value) = (pick(random, &HEADERS), pick(random, &VALUES));
        let kind = match random.random_range(0..4) {
            0 => "present_match: true".to_owned(),
            1 if !value.is_empty() => format!("string_match: {{prefix: \"{value}\"}}"),
            2 => "string_match: {safe_regex: {regex: \"[0-9]+\"}}".to_owned(),
            _ => format!("string_match: {{exact: \"{value}\"}}"),
        };
        let invert = if random.random_ratio(1, 4) { ", invert_match: true" } else { "" };
        let _ = write!(text, ", headers: [{{name: {name}, {kind}{invert}}}]");
    }
    if random.random_ratio(1, 5) {
        let _ = write!(text, ", query_parameters: [{{name: q, string_match: {{exact: \"1\"}}}}]");
    }
    format!("{{{text}}}")
}

fn request(random: &mut StdRng) -> Vec<u8> {
    let host = pick(
        random,
        &["a.test", "x.a.test", "b.example", "z.test", "c.b.test", "other", "A.TEST", "a.test:80"],
    );
    let mut text = format!("GET {}", path(random));
    if random.random_ratio(1, 3) {
        text.push_str(pick(random, &["?q=1", "?q=2", "?a=b&q=1", "?q"]));
    }
    let _ = write!(text, " HTTP/1.1\r\nHost: {host}\r\n");
    for name in HEADERS {
        if random.random_ratio(1, 3) {
            let _ = write!(text, "{name}: {}\r\n", pick(random, &VALUES));
        }
    }
    text.push_str("\r\n");
    text.into_bytes()
}

fn path(random: &mut StdRng) -> String {
    let depth = random.random_range(1..4);
    (0..depth).map(|_| format!("/{}", pick(random, &SEGMENTS))).collect()
}

fn pick<'a>(random: &mut StdRng, choices: &[&'a str]) -> &'a str {
    choices[random.random_range(0..choices.len())]
}
