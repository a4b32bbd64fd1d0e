//! What `osier-proxy init` captures, with real packets: by nft, by iptables over nf_tables and by iptables with its own tables, in
//! IPv4 and in IPv6.

use std::net::SocketAddr;

use super::pod::{
    APPLICATION, Addresses, FAMILIES, Place, Pod, SIDECAR, echo_udp, ends, original_destination,
};

const BACKENDS: [&str; 3] = ["nft", "iptables-nft", "iptables-legacy"];
const INJECTED: &str =
    "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x 10.201.1.3/32,fd00:201::3 -b * -d 15090,15021,15020 -o 25";

/// A pod with a sidecar's two listeners and an application, on a node with servers.
fn populated() -> Pod {
    let mut pod = Pod::new(&FAMILIES);
    for (port, name) in [(15001, "outbound"), (15006, "inbound")] {
        pod.serve(Place::Pod, port, false, move |socket| {
            let (_, peer) = ends(socket);
            format!("{name} {} from {}", original_destination(socket), peer.ip())
        });
    }
    for port in [8080, 8081, 15008, 15020] {
        pod.serve_application(Place::Pod, "application", port);
    }
    for port in [25, 80, 443] {
        pod.serve_application(Place::Node, "node", port);
    }
    pod
}

/// One connection: by whom, from and to where, and what it meets.
struct Case {
    what: &'static str,
    place: Place,
    uid: u32,
    gid: u32,
    from_inbound_source: bool,
    to: fn(&Addresses) -> std::net::IpAddr,
    port: u16,
    /// `outbound`, `inbound`, `application` or `node`.
    meets: &'static str,
}

/// By an application.
const PLAIN: Case = Case {
    what: "",
    place: Place::Pod,
    uid: APPLICATION,
    gid: APPLICATION,
    from_inbound_source: false,
    to: |a| a.node,
    port: 80,
    meets: "",
};

fn check(pod: &Pod, backend: &str, cases: &[Case]) {
    for addresses in &FAMILIES {
        for case in cases {
            let to = SocketAddr::new((case.to)(addresses), case.port);
            let from = case.from_inbound_source.then_some(addresses.inbound_source);
            let answer = pod.ask(case.place, case.uid, case.gid, from, to);
            // Everybody says where the connection was going.
            let expected = format!("{} {to} from ", case.meets);
            let mut met = answer.starts_with(&expected);
            if let Some(from) = from {
                met &= answer.ends_with(&from.to_string());
            }
            assert!(
                met,
                "{backend}: {}, to {to}: {answer:?} is not {expected:?}\n{}",
                case.what,
                pod.ruleset()
            );
        }
    }
}

#[test]
fn each_kind_of_call_goes_where_it_should() {
    for backend in BACKENDS {
        let pod = populated();
        echo_udp(&pod, Place::Node, 9000);
        let said = pod.capture(&format!("{INJECTED} --backend {backend}"));
        assert_eq!(said, format!("traffic is captured (IPv4 and IPv6, set with {backend})\n"));
        let sidecar = || Case { uid: SIDECAR, gid: SIDECAR, ..PLAIN };
        let node = || Case { place: Place::Node, uid: 0, gid: 0, ..PLAIN };
        check(
            &pod,
            backend,
            &[
                Case { what: "application to another pod", meets: "outbound", ..PLAIN },
                Case {
                    what: "application to a Service",
                    to: |a| a.nobody,
                    port: 81,
                    meets: "outbound",
                    ..PLAIN
                },
                Case { what: "root to another pod", uid: 0, gid: 0, meets: "outbound", ..PLAIN },
                Case {
                    what: "application to its own pod",
                    to: |a| a.pod,
                    port: 8080,
                    meets: "application",
                    ..PLAIN
                },
                Case { what: "localhost", to: |a| a.loopback, port: 8080, meets: "application", ..PLAIN },
                Case { what: "excluded port", port: 25, meets: "node", ..PLAIN },
                Case { what: "excluded range", to: |a| a.other, meets: "node", ..PLAIN },
                Case { what: "sidecar to another pod", meets: "node", ..sidecar() },
                Case { what: "sidecar's group to another pod", uid: 0, meets: "node", ..sidecar() },
                Case {
                    what: "sidecar to its own pod",
                    to: |a| a.pod,
                    port: 8080,
                    meets: "inbound",
                    ..sidecar()
                },
                Case {
                    what: "sidecar to its own tunnel",
                    to: |a| a.pod,
                    port: 15008,
                    meets: "application",
                    ..sidecar()
                },
                Case {
                    what: "sidecar to localhost",
                    to: |a| a.loopback,
                    port: 8080,
                    meets: "application",
                    ..sidecar()
                },
                Case {
                    what: "inbound side to the application",
                    to: |a| a.pod,
                    port: 8080,
                    from_inbound_source: true,
                    meets: "application",
                    ..sidecar()
                },
                Case { what: "node to the pod", to: |a| a.pod, port: 8080, meets: "inbound", ..node() },
                Case {
                    what: "node to a port without a server",
                    to: |a| a.pod,
                    port: 9,
                    meets: "inbound",
                    ..node()
                },
                Case {
                    what: "excluded inbound port",
                    to: |a| a.pod,
                    port: 15020,
                    meets: "application",
                    ..node()
                },
                Case {
                    what: "tunnel from outside",
                    to: |a| a.pod,
                    port: 15008,
                    meets: "application",
                    ..node()
                },
            ],
        );
        for addresses in &FAMILIES {
            let to = SocketAddr::new(addresses.node, 9000);
            let answer = pod.ask_udp(Place::Pod, APPLICATION, to);
            assert!(answer.starts_with("hello from "), "{backend}: UDP to {to}: {answer}");
        }
    }
}

#[test]
fn lists_capture_what_they_name() {
    for backend in BACKENDS {
        let pod = populated();
        pod.capture(&format!("-i 10.201.1.1/32,fd00:201::1 -q 443 -b 8081 -u 1337 --backend {backend}"));
        let node = || Case { place: Place::Node, uid: 0, gid: 0, to: |a| a.pod, ..PLAIN };
        check(
            &pod,
            backend,
            &[
                Case { what: "included range", meets: "outbound", ..PLAIN },
                Case { what: "another range", to: |a| a.other, meets: "node", ..PLAIN },
                Case { what: "included port", to: |a| a.other, port: 443, meets: "outbound", ..PLAIN },
                Case { what: "inbound port", port: 8081, meets: "inbound", ..node() },
                Case { what: "another inbound port", port: 8080, meets: "application", ..node() },
            ],
        );
        // None at all, and an interface on which nothing is captured.
        pod.capture(&format!("-b '' --backend {backend}"));
        check(
            &pod,
            backend,
            &[
                Case { what: "no inbound port", port: 8081, meets: "application", ..node() },
                Case { what: "outbound as before", to: |a| a.other, meets: "outbound", ..PLAIN },
            ],
        );
        pod.capture(&format!("-c eth0 --backend {backend}"));
        check(
            &pod,
            backend,
            &[
                Case { what: "excluded interface, in", port: 8080, meets: "application", ..node() },
                Case { what: "excluded interface, out", meets: "node", ..PLAIN },
            ],
        );
        pod.capture(&format!("-k eth0 --backend {backend}"));
        check(
            &pod,
            backend,
            &[Case { what: "interface of a virtual machine", port: 8080, meets: "outbound", ..node() }],
        );
    }
}

#[test]
fn tproxy_keeps_both_ends() {
    for backend in BACKENDS {
        let mut pod = Pod::new(&FAMILIES);
        // A transparent socket's own address is where the connection was going.
        pod.serve(Place::Pod, 15006, true, |socket| {
            let (local, peer) = ends(socket);
            format!("inbound {local} from {}", peer.ip())
        });
        pod.serve(Place::Pod, 15001, false, |socket| {
            format!("outbound {} from ", original_destination(socket))
        });
        for port in [8080, 15020] {
            pod.serve_application(Place::Pod, "application", port);
        }
        pod.serve_application(Place::Node, "node", 80);
        let flags = format!("-m TPROXY -d 15090,15021,15020 --backend {backend}");
        pod.capture(&flags);
        let before = pod.ruleset();
        pod.capture(&flags);
        assert_eq!(pod.ruleset(), before, "{backend}: a second time changes nothing");
        // In this mode a sidecar is known by its group alone.
        let sidecar = || Case { uid: 0, gid: SIDECAR, to: |a| a.pod, port: 8080, ..PLAIN };
        let node = || Case { place: Place::Node, uid: 0, gid: 0, to: |a| a.pod, ..PLAIN };
        check(
            &pod,
            backend,
            &[
                Case { what: "node to the pod", port: 8080, meets: "inbound", ..node() },
                Case { what: "excluded port", port: 15020, meets: "application", ..node() },
                Case { what: "application to another pod", meets: "outbound", ..PLAIN },
                Case {
                    what: "application to its own pod",
                    to: |a| a.pod,
                    port: 8080,
                    meets: "application",
                    ..PLAIN
                },
                Case { what: "localhost", to: |a| a.loopback, port: 8080, meets: "application", ..PLAIN },
                Case { what: "sidecar to its own pod", meets: "inbound", ..sidecar() },
                Case { what: "sidecar to another pod", to: |a| a.node, port: 80, meets: "node", ..sidecar() },
                Case {
                    what: "inbound side to the application",
                    from_inbound_source: true,
                    meets: "application",
                    ..sidecar()
                },
            ],
        );
        for addresses in &FAMILIES {
            let to = SocketAddr::new(addresses.pod, 8080);
            let answer = pod.ask(Place::Node, 0, 0, None, to);
            // The node has two addresses, and chooses.
            let kept = [addresses.node, addresses.other].iter().any(|of| answer.ends_with(&of.to_string()));
            assert!(kept, "the client's address stays: {answer}");
        }
        pod.capture("--clean");
        let left = pod.ruleset();
        assert!(!left.contains("fwmark") && !left.to_lowercase().contains("istio"), "{backend}: {left}");
    }
}

#[test]
fn the_last_run_holds_whatever_was_before() {
    let pod = populated();
    let empty = |what: &str| {
        let left = pod.ruleset().to_lowercase();
        assert!(!left.contains("istio"), "{what}: {left}");
    };
    for backend in BACKENDS {
        pod.capture(&format!("{INJECTED} --redirect-dns --backend {backend}"));
        let first = pod.ruleset();
        pod.capture(&format!("{INJECTED} --redirect-dns --backend {backend}"));
        assert_eq!(pod.ruleset(), first, "{backend}: a second time changes nothing");
        pod.capture(&format!("-m TPROXY --drop-invalid --backend {backend}"));
        assert_ne!(pod.ruleset(), first);
        pod.capture(&format!("{INJECTED} --redirect-dns --backend {backend}"));
        // Tables that have been used stay behind, without anything in them.
        let used = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| line.to_lowercase().contains("istio"));
            let mut lines: Vec<String> = lines.map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(used(&pod.ruleset()), used(&first), "{backend}: what another run has set is gone");
    }
    // The last one was by iptables-legacy; nft takes its place.
    pod.capture(&format!("{INJECTED} --backend nft"));
    let rules = pod.ruleset();
    assert!(rules.contains("istio-proxy-nat") && !rules.contains("ISTIO_"), "{rules}");
    pod.capture("--clean");
    empty("after --clean");
    pod.capture("--clean");
    // Rules of Istio's own init container go as well, and those of others stay.
    let restore = "*nat\n:ISTIO_INBOUND - [0:0]\n:MINE - [0:0]\n-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp -j RETURN\n-A OUTPUT -p tcp --dport 7 -j MINE\nCOMMIT\n";
    let mut command = pod.command(Place::Pod, "iptables-nft-restore");
    command.arg("--noflush").stdin(std::process::Stdio::piped());
    let mut child = command.spawn().expect("iptables starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), restore.as_bytes())
        .expect("it reads");
    assert!(child.wait().expect("it ends").success());
    pod.capture(&format!("{INJECTED} --backend iptables-nft"));
    let rules = pod.ruleset();
    assert!(rules.contains("MINE") && rules.matches("jump ISTIO_INBOUND").count() == 2, "{rules}");
    pod.capture("--clean");
    empty("after --clean");
}

#[test]
fn a_pod_without_ipv6_gets_no_rules_for_it() {
    for backend in BACKENDS {
        let pod = Pod::new(&FAMILIES[..1]);
        let said = pod.capture(&format!("{INJECTED} --backend {backend}"));
        assert_eq!(said, format!("traffic is captured (IPv4, set with {backend})\n"));
        let rules = pod.ruleset();
        assert!(!rules.contains("::6"), "{backend}: {rules}");
        let printed = pod.capture(&format!("{INJECTED} --backend {backend} --dry-run"));
        assert_eq!(pod.ruleset(), rules, "{backend}: --dry-run sets nothing");
        assert!(printed.contains("15006"), "{printed}");
    }
}

#[test]
fn what_cannot_be_done_is_said_in_plain_words() {
    let pod = Pod::new(&FAMILIES[..1]);
    // A node without tools: their folder is empty.
    let program = osier_tests::process::own("osier-proxy");
    let program = program.get_program().to_string_lossy().into_owned();
    let script = format!("mount -t tmpfs none /usr/sbin && exec {program} init");
    let output = pod.command(Place::Pod, "sh").args(["-c", &script]).output().expect("sh starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for expected in
        ["neither nft nor iptables", "nft: not installed", "iptables-save: not installed", "NET_ADMIN"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // A container without NET_ADMIN.
    let mut command = pod.command(Place::Pod, "setpriv");
    command.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", &program, "init"]);
    let output = command.output().expect("setpriv starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("NET_ADMIN") && text.contains("ermi"), "{text}");
    let output = pod.init("-d 80,http -i 10.0.0.0/40");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--istio-local-exclude-ports: `http` is not a port"), "{text}");
    assert!(text.contains("--istio-service-cidr: `10.0.0.0/40` is not a network"), "{text}");
}
