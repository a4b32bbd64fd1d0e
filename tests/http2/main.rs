//! HTTP/2 by people who know it: h2spec, h2load and nghttp against osier-proxy.

use std::net::SocketAddr;
use std::process::Command;

use osier_tests::backend::Backend;
use osier_tests::process::{self, Program};

/// Cases of h2spec that do not pass, as `PACKAGE NAME`, each with the reason.
const KNOWN: &[(&str, &str)] = &[(
    "http2/3.5 Sends invalid connection preface",
    "the listener takes HTTP/1 and HTTP/2 on one port: what is no preface is HTTP/1, and answered 400 as such",
)];

struct Proxy {
    address: SocketAddr,
    folder: tempfile::TempDir,
    _program: Program,
    _backend: Backend,
}

fn start() -> Proxy {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let backend = Backend::start("echo");
    let (address, admin) = (process::free_address(), process::free_address());
    let bootstrap = include_str!("bootstrap.yaml")
        .replace("{{ADMIN}}", &admin.port().to_string())
        .replace("{{PORT}}", &address.port().to_string())
        .replace("{{BACKEND}}", &backend.address.port().to_string());
    let file = folder.path().join("bootstrap.yaml");
    std::fs::write(&file, bootstrap).expect("the test's folder can be written");
    let mut command = process::own("osier-proxy");
    let mut program = Program::start("osier", command.arg("--config").arg(&file), folder.path());
    program.wait_listening(address);
    Proxy { address, folder, _program: program, _backend: backend }
}

#[test]
fn h2spec_finds_nothing_that_is_not_listed() {
    let proxy = start();
    let report = proxy.folder.path().join("report.xml");
    let output = process::part("OSIER_TEST_H2SPEC")
        .args([
            "--host",
            "127.0.0.1",
            "--port",
            &proxy.address.port().to_string(),
            "--timeout",
            "5",
            "--junit-report",
        ])
        .arg(&report)
        .args(["generic", "http2"])
        .output()
        .expect("h2spec starts");
    let text = std::fs::read_to_string(&report)
        .unwrap_or_else(|error| panic!("{error}\n{}", String::from_utf8_lossy(&output.stdout)));
    let cases: Vec<&str> = text.split("<testcase ").skip(1).collect();
    assert!(cases.len() > 100, "only {} cases ran", cases.len());
    let attribute = |case: &str, name: &str| {
        let start = case.find(&format!("{name}=\"")).map_or(0, |at| at + name.len() + 2);
        case[start..].split('"').next().unwrap_or("").to_owned()
    };
    let failed: Vec<String> = cases
        .iter()
        .filter(|case| {
            case.split("</testcase>")
                .next()
                .is_some_and(|case| case.contains("<failure") || case.contains("<error"))
        })
        .map(|case| format!("{} {}", attribute(case, "package"), attribute(case, "classname")))
        .collect();
    let known: Vec<&str> = KNOWN.iter().map(|(case, _)| *case).collect();
    assert_eq!(failed, known, "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn h2load_gets_every_answer() {
    let proxy = start();
    let output = Command::new("h2load")
        .args(["-n", "5000", "-c", "20", "-m", "20", &format!("http://{}/", proxy.address)])
        .output()
        .expect("h2load starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("5000 succeeded, 0 failed, 0 errored"), "{text}");
    assert!(text.contains("5000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{text}");
}

#[test]
fn h2load_uploads_every_byte() {
    let proxy = start();
    let upload = proxy.folder.path().join("upload");
    std::fs::write(&upload, vec![b'x'; 300_000]).expect("the test's folder can be written");
    let output = Command::new("h2load")
        .args(["-n", "200", "-c", "4", "-m", "10", "-d"])
        .arg(&upload)
        .arg(format!("http://{}/", proxy.address))
        .output()
        .expect("h2load starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("200 succeeded, 0 failed, 0 errored"), "{text}");
    assert!(text.contains("200 2xx, 0 3xx, 0 4xx, 0 5xx"), "{text}");
}

#[test]
fn nghttp_sees_trailers() {
    let proxy = start();
    let output = Command::new("nghttp")
        .args([
            "-v",
            "-H",
            "te: trailers",
            "-H",
            "x-do: trailer=x-after:body",
            &format!("http://{}/", proxy.address),
        ])
        .output()
        .expect("nghttp starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let body = text.find("backend echo").unwrap_or_else(|| panic!("no body: {text}"));
    assert!(text[body..].contains("x-after: body"), "{text}");
}
