//! Random questions to an HTTP authorizer from a fixed seed: what both proxies let in is the same, and so is what the client gets, what the
//! upstream gets and what the authorizer was shown.
//!
//! Authorizer and upstream are the same backend, which does what `x-do` says: the authorizer is shown it, and where it lets in it has it
//! taken out. An authorizer that denies describes what it was asked, so that this is compared too. All settings are in one
//! bootstrap, each for requests with its own number.

use std::fmt::Write as _;

use osier_tests::raw::{Connection, Response};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::pair::{Pair, bootstrap_with};

const REQUESTS: usize = 600;

/// Settings of the filter, by the number of the requests that they are for.
const SETTINGS: [&str; 4] = [
    "",
    "failure_mode_allow: true, failure_mode_allow_header_add: true, status_on_error: {code: 503}, ",
    "with_request_body: {max_request_bytes: 8}, status_on_error: {code: 503}, ",
    "with_request_body: {max_request_bytes: 8, allow_partial_message: true}, failure_mode_allow: true, ",
];
/// What an Envoy's client adds to its question, of which nothing is in the request; and what differs from run to run.
/// How a body is framed is no part of it: Envoy passes on the authorizer's way, even to a HEAD.
/// A body that nobody reads ends Envoy's connection; we read what is left of a short one.
const NOT_COMPARED: [&str; 9] = [
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-internal",
    "x-forwarded-for",
    "x-envoy-upstream-service-time",
    "x-request-id",
    "date",
    "content-length",
    "transfer-encoding",
    "connection",
];

#[test]
fn random_questions_are_answered_alike() {
    let mut random = StdRng::seed_from_u64(13);
    let pair = Pair::start(&bootstrap());
    let mut counts = std::collections::BTreeMap::<u16, usize>::new();
    for _ in 0..REQUESTS {
        let (method, request) = request(&mut random);
        let ask = |address| {
            let mut connection = Connection::open(address);
            connection.send(request.as_bytes());
            observed(connection.receive(method).expect("an answer"))
        };
        let [envoy, osier] = pair.http().map(ask);
        assert_eq!(envoy, osier, "request:\n{request}");
        *counts.entry(osier.0).or_default() += 1;
    }
    for status in [200, 302, 401, 403, 413, 503] {
        assert!(counts.get(&status).is_some_and(|count| *count > 5), "{counts:?}");
    }
}

/// Status, header lines and body, as far as they are to be equal.
fn observed(response: Response) -> (u16, Vec<String>, Vec<String>) {
    let compared = |name: &str| !NOT_COMPARED.contains(&name.to_ascii_lowercase().as_str());
    // Envoy takes the type away where there is nothing that could be of it.
    let typed = |name: &str| !(response.body.is_empty() && name.eq_ignore_ascii_case("content-type"));
    let headers = response.headers.iter().filter(|(name, _)| compared(name) && typed(name));
    let mut headers: Vec<String> = headers.map(|(name, value)| format!("{name}: {value}")).collect();
    headers.sort();
    let text = response.text();
    let body = text.lines().filter(|line| line.split_once(": ").is_none_or(|(name, _)| compared(name)));
    (response.status(), headers, body.map(str::to_owned).collect())
}

/// The table's bootstrap with one route behind all settings.
fn bootstrap() -> String {
    let hosts = "            virtual_hosts: [{name: any, domains: [\"*\"], routes: [{match: {prefix: \"/\"}, route: {cluster: echo}}]}]\n";
    let mut filters = String::new();
    for (number, settings) in SETTINGS.iter().enumerate() {
        let _ = writeln!(
            filters,
            "          - name: marks-{number}
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              shadow_rules_stat_prefix: of_{number}_
              shadow_rules: {{action: DENY, policies: {{ask: {{permissions: [{{header: {{name: x-rule, string_match: {{exact: \"{number}\"}}}}}}], principals: [{{any: true}}]}}}}}}
          - name: asks-{number}
            typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz, transport_api_version: V3, {settings}
              filter_enabled_metadata: {{filter: envoy.filters.http.rbac, path: [{{key: of_{number}_shadow_effective_policy_id}}], value: {{string_match: {{prefix: as}}}}}},
              allowed_headers: {{patterns: [{{exact: x-do, ignore_case: true}}, {{prefix: x-show, ignore_case: true}}]}},
              http_service: {{server_uri: {{uri: \"http://echo\", cluster: echo, timeout: 2s}}, path_prefix: /check,
                authorization_request: {{headers_to_add: [{{key: x-added, value: one}}]}},
                authorization_response: {{allowed_upstream_headers: {{patterns: [{{exact: x-up, ignore_case: true}}]}},
                  allowed_client_headers_on_success: {{patterns: [{{exact: x-down}}]}}{}}}}}}}",
            if number == 2 { ", allowed_client_headers: {patterns: [{exact: x-down}]}" } else { "" }
        );
    }
    bootstrap_with(hosts, &filters)
}

/// A request, and its method.
fn request(random: &mut StdRng) -> (&'static str, String) {
    let method = pick(random, &["GET", "POST", "POST", "PUT", "HEAD"]);
    let number = random.random_range(0..SETTINGS.len() + 1);
    let mut script = vec![format!(
        "status={}",
        pick(random, &[200, 200, 200, 201, 204, 302, 401, 403, 404, 429, 500, 503])
    )];
    // An upstream that were told the same would do the same.
    script.push("header=x-envoy-auth-headers-to-remove:x-do,x-gone".into());
    for header in [
        "x-up:1",
        "x-up:2",
        "x-down:a",
        "x-down:b",
        "x-other:o",
        "location:/login",
        "set-cookie:a",
        "set-cookie:b",
        "www-authenticate:Basic",
        "content-type:a/b",
    ] {
        if random.random_ratio(1, 4) {
            script.push(format!("header={header}"));
        }
    }
    script
        .push(pick(random, &["", "", "", "body=3", "body=0", "chunks=2", "abort", "sleep=6000"]).to_owned());
    if script.last().is_some_and(|last| last == "sleep=6000") && random.random_ratio(15, 16) {
        script.pop();
    }
    // Without an answer nobody takes it out.
    let failing =
        script.iter().any(|word| word == "abort" || word == "sleep=6000" || word.starts_with("status=5"));
    let number = if failing && matches!(number, 1 | 3) { 0 } else { number };
    let script = if number == SETTINGS.len() { String::new() } else { script.join(" ") };
    let mut text = format!(
        "{method} {} HTTP/1.1\r\nHost: h.test\r\nx-rule: {number}\r\nx-do: {script}\r\n",
        pick(random, &["/", "/a?b=c", "/a/b", "/%41"])
    );
    for line in [
        "X-Show: 1",
        "x-show: 2",
        "x-show-more: 3",
        "Authorization: t",
        "x-gone: g",
        "x-hidden: h",
        "Cookie: c=d",
    ] {
        if random.random_ratio(1, 2) {
            let _ = write!(text, "{line}\r\n");
        }
    }
    let body = match method {
        "POST" | "PUT" => "x".repeat(pick(random, &[0, 1, 7, 8, 9, 30])),
        _ => String::new(),
    };
    if !body.is_empty() {
        let _ = write!(text, "Content-Length: {}\r\n", body.len());
    }
    (method, format!("{text}\r\n{body}"))
}

fn pick<T: Copy>(random: &mut StdRng, choices: &[T]) -> T {
    choices[random.random_range(0..choices.len())]
}
