//! Bad input: what is wrong is said, with file, line and field, in pilot's log and on its debug page; what was in force stays in
//! force; and what is mended takes effect.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
use osier_tests::{mesh, process, wait};

use crate::web::{Web, rules};

/// What pilot has to say: the text of each report.
fn reports(web: &Web) -> Vec<serde_json::Value> {
    web.pilot.page("/debug/configz")["reports"].as_array().cloned().unwrap_or_default()
}

/// Waits until both the page and the log have this report, and gives it.
fn wait_for_report(web: &Web, text: &str) -> serde_json::Value {
    wait::until(&format!("pilot reports: {text}\nit says {:#?}", reports(web)), || {
        let found = reports(web).into_iter().find(|report| report["text"] == text);
        found.filter(|_| web.pilot.log().contains(text))
    })
}

fn wait_for_no_report(web: &Web) {
    wait::until("nothing is left to report", || reports(web).is_empty().then_some(()));
}

#[test]
fn clients_that_say_nothing_do_not_keep_pilot_from_its_end() {
    let mut pilot = mesh::Pilot::start(&[], &[]);
    let silent = [pilot.xds, pilot.monitoring].into_iter().flat_map(|address| {
        ["", "P", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\n"].map(|said| {
            let mut client = TcpStream::connect(address).expect("pilot listens");
            client.write_all(said.as_bytes()).expect("pilot reads");
            client
        })
    });
    let silent: Vec<TcpStream> = silent.collect();
    assert!(pilot.end(Signal::SIGINT).success());
    drop(silent);
}

/// One mistake in a file that would otherwise move everything to v2.
struct Mistake {
    /// A line of the file, and what stands there instead.
    line: (&'static str, &'static str),
    /// Line of the report.
    at: u32,
    /// Field of the report.
    field: &'static str,
    /// Its message.
    says: &'static str,
}

const MISTAKES: &[Mistake] = &[
    Mistake {
        line: ("    timeout: 5s", "    timeout: 5s]"),
        at: 15,
        field: "spec.http[0].timeout",
        says: "\"5s]\" is not a duration such as",
    },
    Mistake { line: ("  - route:", "  - route: ["), at: 11, field: "", says: "is no YAML" },
    Mistake {
        line: ("    timeout: 5s", "    timeuot: 5s"),
        at: 15,
        field: "spec.http[0].timeuot",
        says: "unknown field, did you mean timeout?",
    },
    Mistake { line: ("  hosts:", "  nonsense:"), at: 7, field: "spec.nonsense", says: "unknown field" },
    Mistake {
        line: ("      weight: 100", "      weight: most"),
        at: 14,
        field: "spec.http[0].route[0].weight",
        says: "must be a whole number, not the text \"most\"",
    },
    Mistake {
        line: ("    timeout: 5s", "    retries: {attempts: -1}"),
        at: 15,
        field: "spec.http[0].retries.attempts",
        says: "-1 is negative",
    },
    Mistake {
        line: ("        host: web", "        host: {name: web}"),
        at: 12,
        field: "spec.http[0].route[0].destination.host",
        says: "must be text, not a mapping",
    },
    Mistake {
        line: ("  name: web", "  name: Web"),
        at: 4,
        field: "metadata.name",
        says: "lower-case letters",
    },
    Mistake {
        line: ("    timeout: 5s", "    fault: {abort: {httpStatus: 500, percentage: {value: 100}}}"),
        at: 15,
        field: "spec.http[0].fault",
        says: "is not supported",
    },
];

#[test]
fn a_mistake_is_reported_and_changes_nothing_until_it_is_mended() {
    let web = Web::start(&[], &[]);
    for Mistake { line: (right, wrong), at, field, says } in MISTAKES {
        let text = rules("v2");
        assert!(text.contains(right), "{right}");
        web.pilot.save("rules.yaml", &text.replacen(right, wrong, 1));
        let report = wait::until(&format!("`{wrong}` is reported"), || reports(&web).into_iter().next());
        let text = report["text"].as_str().unwrap_or_default().to_owned();
        assert_eq!(report["file"], "rules.yaml", "{text}");
        assert_eq!(report["line"], *at, "{text}");
        assert_eq!(report["field"], *field, "{text}");
        assert_eq!(report["severity"], "error", "{text}");
        assert!(text.starts_with(&format!("rules.yaml:{at}: ")) && text.contains(says), "{text}");
        wait::until("the log says the same", || web.pilot.log().contains(&text).then_some(()));
        assert_eq!(web.ask(), "v1", "{text}");

        web.pilot.save("rules.yaml", &rules("v2"));
        web.wait_for("v2");
        wait_for_no_report(&web);
        let resolved = format!("resolved: {text}");
        wait::until("the log says so", || web.pilot.log().contains(&resolved).then_some(()));
        web.pilot.save("rules.yaml", &rules("v1"));
        web.wait_for("v1");
    }
}

#[test]
fn the_second_resource_of_a_name_waits_for_the_first_to_go() {
    let web = Web::start(&[], &[]);
    web.pilot.save("second.yaml", &rules("v2"));
    let text = "second.yaml:1: VirtualService default/web: metadata.name: is defined in rules.yaml:1 already; this one \
                is not applied";
    let report = wait_for_report(&web, text);
    assert_eq!((&report["file"], &report["severity"]), (&"second.yaml".into(), &"error".into()));
    assert_eq!(web.ask(), "v1");
    web.pilot.remove("rules.yaml");
    web.wait_for("v2");
    wait_for_no_report(&web);
}

/// A reference to nothing is no reason to hold the rest of a rule back; who follows it is told why it fails.
#[test]
fn a_reference_to_nothing_is_reported_and_concerns_its_route_alone() {
    let web = Web::start(&[], &[]);
    let broken = |destination: &str| {
        rules("v2").replacen(
            "  - route:",
            &format!(
                "  - match: [{{uri: {{prefix: /broken}}}}]
    route: [{{destination: {{{destination}}}}}]
  - route:"
            ),
            1,
        )
    };
    for (destination, says) in [
        ("host: nowhere", "the host nowhere.default.svc.cluster.local is no service that default sees"),
        (
            "host: web, subset: v9",
            "no DestinationRule defines the subset v9 of web.default.svc.cluster.local",
        ),
        ("host: web, port: {number: 9}", "the service web.default.svc.cluster.local has no port 9"),
    ] {
        web.pilot.save("rules.yaml", &broken(destination));
        let text = format!(
            "rules.yaml:11: VirtualService default/web: spec.http[0].route: {says}; requests to it get 503"
        );
        assert_eq!(wait_for_report(&web, &text)["severity"], "warning");
        web.wait_for("v2");
        let answer = web.client.get(&web.host(), "/broken", "");
        assert_eq!(answer.status(), 503, "{destination}: {answer:?}");
        web.pilot.save("rules.yaml", &broken("host: web, subset: v1"));
        wait_for_no_report(&web);
        wait::until("the route works", || {
            (web.client.get(&web.host(), "/broken", "").status() == 200).then_some(())
        });
        web.pilot.save("rules.yaml", &rules("v1"));
        web.wait_for("v1");
    }
}

/// A rule that needs what a refused resource would define is held back with it, and goes into force with it.
#[test]
fn a_rule_that_needs_a_refused_resource_is_held_back() {
    let web = Web::start(&[], &[]);
    let subset = |ending: &str| {
        format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: more, namespace: default}}
spec:
  host: web
  subsets:
  - {{name: other, labels: {{version: v2}}{ending}}}
"
        )
    };
    web.pilot.save("more.yaml", &subset(", nonsense: 1"));
    wait_for_report(
        &web,
        "more.yaml:7: DestinationRule default/more: spec.subsets[0].nonsense: unknown field",
    );
    web.pilot.save("rules.yaml", &rules("other"));
    let held = wait::until("the rule is held back", || {
        let of_rule = |report: &serde_json::Value| report["file"] == "rules.yaml";
        reports(&web).into_iter().find(of_rule)
    });
    let text = held["text"].as_str().unwrap_or_default();
    assert!(
        text.contains("VirtualService default/web") && text.contains("DestinationRule default/more"),
        "{text}"
    );
    assert_eq!(web.ask(), "v1", "{text}");
    let resources = web.pilot.page("/debug/configz")["resources"].clone();
    let state = |kind: &str, name: &str| {
        let all = resources.as_array().expect("a list");
        let found = all.iter().find(|r| r["key"]["kind"] == kind && r["key"]["name"] == name);
        found.map(|r| r["state"].clone()).unwrap_or_default()
    };
    assert_eq!(state("VirtualService", "web"), "last-good");
    assert_eq!(state("DestinationRule", "more"), "refused");
    web.pilot.save("more.yaml", &subset(""));
    web.wait_for("v2");
    wait_for_no_report(&web);
}

/// Takes a port without listening on it: whoever connects is refused.
fn occupy(address: SocketAddr) -> OwnedFd {
    let socket =
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    bind(socket.as_raw_fd(), &SockaddrIn::from(address)).expect("a free port");
    socket
}

/// A new port of the service that is taken at one workload's address: that one refuses its listener, and says so; what it served
/// it serves, and everyone else has the new port.
#[test]
fn a_resource_that_only_one_client_cannot_take() {
    let web = Web::start(&[], &[]);
    web.pilot.remove("rules.yaml");
    let [refusing, willing] = &web.servers;
    let added = process::free_address().port();
    let taken = SocketAddr::new(refusing.registration.address, added);
    let _other = occupy(taken);
    let two_ports = |second: u16| {
        format!("{}  - {{name: http-more, port: {second}}}\n", mesh::service("web", "http", web.port))
            .replace("ports: [", "ports:\n  - ")
            .replace("}]\n", "}\n")
    };
    web.pilot.save("service.yaml", &two_ports(added));
    let node = |name: &str| {
        let clients = web.pilot.page("/debug/syncz");
        let found = clients.as_array().into_iter().flatten();
        found
            .filter(|c| c["proxy"] == format!("{name}.default"))
            .map(|c| c["osier"]["types"]["listener"].clone())
            .next()
    };
    let refused = wait::until("the client's refusal", || {
        node(&refusing.registration.name).filter(|listener| listener["state"] == "ERROR")
    });
    let error = refused["error"].as_str().unwrap_or_default();
    let name = format!("{}_{added}", refusing.registration.address);
    assert!(error.contains(&name) && error.contains("in use"), "{error}");
    let log = web.pilot.log();
    let line = log.lines().find(|line| line.contains(error));
    assert!(line.is_some_and(|line| line.contains(&refusing.registration.name)), "{error}\n{log}");
    wait::until("the other client has it all", || {
        node(&willing.registration.name).filter(|listener| listener["state"] == "SYNCED")
    });
    wait::until("the port of before is served", || web.is_balanced(web.port).then_some(()));
    let ask = |port: u16| web.client.ask(&format!("web:{port}"));
    wait::until("the other one serves the new port", || (ask(added) == "v2").then_some(()));
    assert!((0..20).all(|_| ask(added) == "v2"), "who asks where the port is not open is sent on");

    let free = process::free_address().port();
    web.pilot.save("service.yaml", &two_ports(free));
    wait::until("both serve a port that is free", || web.is_balanced(free).then_some(()));
    wait::until("no refusal is left", || {
        node(&refusing.registration.name).filter(|listener| listener["state"] == "SYNCED")
    });
    assert!(web.is_balanced(web.port));
}
