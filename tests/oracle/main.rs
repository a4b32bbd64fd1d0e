//! The oracle: the same bootstrap and the same raw requests to osier-proxy and to Envoy, answers compared field by field.
//!
//! `case` holds the table; `random` makes route tables and requests from a fixed seed, `authorization` RBAC rules, `authentication` tokens and who may issue them, `external` questions to an external authorizer; `difference` lists where we
//! differ, each with its reason. What the backend received is part of its answer, so forwarding is compared too.

mod authentication;
mod authorization;
mod case;
mod difference;
mod external;
mod pair;
mod random;

use case::Case;
use pair::{Observed, Pair};

/// Runs cases against both and fails with all differences at once.
fn compare(cases: &[Case]) {
    let pair = Pair::start(pair::BOOTSTRAP);
    let mut wrong = Vec::new();
    for case in cases {
        let (envoy, osier) = pair.observe(case);
        match (envoy == osier, difference::is_listed(case.name)) {
            (true, true) => wrong.push(format!("{}\n  is listed as a difference, but is none", case.name)),
            (false, false) => wrong.push(format!("{}\n{}", case.name, explain(&envoy, &osier))),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases differ:\n\n{}", wrong.len(), cases.len(), wrong.join("\n\n"));
}

/// The lines in which two observations differ.
fn explain(envoy: &[Observed], osier: &[Observed]) -> String {
    let (envoy, osier) = (format!("{envoy:#?}"), format!("{osier:#?}"));
    let missing = envoy
        .lines()
        .filter(|line| !osier.lines().any(|other| other == *line))
        .map(|line| format!("  envoy {line}"));
    let added = osier
        .lines()
        .filter(|line| !envoy.lines().any(|other| other == *line))
        .map(|line| format!("  osier {line}"));
    missing.chain(added).collect::<Vec<_>>().join("\n")
}

#[test]
fn hosts_and_routes() {
    compare(&case::routing());
}

#[test]
fn redirects_and_direct_answers() {
    compare(&case::redirects());
}

#[test]
fn rewrites_and_header_operations() {
    compare(&case::rewrites());
}

#[test]
fn forwarded_headers() {
    compare(&case::forwarding());
}

#[test]
fn failures_and_time_outs() {
    compare(&case::failures());
}

#[test]
fn retries() {
    compare(&case::retries());
}

#[test]
fn message_framing() {
    compare(&case::framing());
}

#[test]
fn refused_messages() {
    compare(&case::hostile());
}

#[test]
fn upgrades_and_connect() {
    compare(&case::upgrades());
}

#[test]
fn the_table_is_as_large_as_promised() {
    let all = [
        case::routing(),
        case::redirects(),
        case::rewrites(),
        case::forwarding(),
        case::failures(),
        case::retries(),
        case::framing(),
        case::hostile(),
        case::upgrades(),
    ];
    let mut names: Vec<&str> = all.iter().flatten().map(|case| case.name).collect();
    assert!(names.len() >= 150, "{} cases", names.len());
    names.sort_unstable();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before, "two cases have the same name");
}
