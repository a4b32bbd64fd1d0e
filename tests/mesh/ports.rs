//! A port in use: one clear sentence with the address and what to do, and exit status 1.

use std::net::TcpListener;
use std::process::{Command, Output};

use osier_tests::mesh::{Pilot, register, sidecar};
use osier_tests::process;

fn refused(what: &str, command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().expect("the program starts");
    let text = String::from_utf8_lossy(&stderr).into_owned();
    assert_eq!(status.code(), Some(1), "{what}: {text}");
    assert!(!text.contains("panicked"), "{what}: {text}");
    text
}

#[test]
fn a_port_in_use_is_one_sentence_and_exit_status_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let free = || process::free_address().to_string();
    let says = |text: &str, program: &str, more: &[&str]| {
        let last = text.lines().last().unwrap_or_default();
        let all = [&[program, &address, "in use"], more].concat();
        assert!(all.iter().all(|part| last.contains(part)), "{last:?} has not all of {all:?}\n{text}");
    };

    for (flag, other, purpose) in [
        ("--xds-address", "--monitoring-address", "xDS"),
        ("--monitoring-address", "--xds-address", "monitoring"),
    ] {
        let addresses = [flag, &address, other, &free()];
        let mut pilot = process::own("osier-pilot");
        pilot.arg("--source").arg(folder.path()).args(addresses);
        says(&refused("pilot", &mut pilot), "osier-pilot: ", &[purpose, flag]);
        let mut up = process::own("osier");
        up.arg("up").arg(folder.path()).args(addresses);
        says(&refused("osier up", &mut up), "osier-pilot: ", &[purpose, flag]);
    }

    let pilot = Pilot::start(&[], &[]);
    let registration = register("web", "v1", None);
    for flag in ["--admin-address", "--readiness-address"] {
        let mut command = sidecar(pilot.xds, &registration);
        // The last one of a flag that is given twice would be wrong usage.
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let at = arguments.iter().position(|argument| argument == flag).expect("the flag is there");
        let environment: Vec<_> =
            command.get_envs().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))).collect();
        command = process::own("osier-proxy");
        command.args(&arguments[..=at]).arg(&address).args(&arguments[at + 2..]).envs(environment);
        says(&refused("sidecar", &mut command), "osier-proxy: ", &[]);
    }

    let mut run = process::own("osier");
    let port = taken.local_addr().expect("an address").port();
    run.args(["run", "--service", "web", "--port", "1", "--pilot", &pilot.xds.to_string()])
        .arg(format!("--forward={port}=web:80"))
        .args(["--", "true"]);
    says(&refused("osier run", &mut run), "osier: ", &["--forward"]);
}
