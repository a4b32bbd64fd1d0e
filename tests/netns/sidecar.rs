//! `osier-proxy sidecar` in a pod, with pilot on its node: it notices whether its pod's traffic is captured, takes traffic by REDIRECT
//! and by TPROXY, and answers the kubelet.

use nix::sys::signal::Signal;
use osier_tests::process::Program;
use osier_tests::wait;

use super::mesh::{Mesh, Setup, curl};
use super::pod::{FAMILIES, Place};

const FLAGS: &str = "-u 1337 -d 15090,15021,15020";

/// A pod of IPv4, with rules or without.
fn start(mode: &str, variables: &[(&str, &str)], rules: Option<&str>) -> Mesh {
    Mesh::start(&Setup { families: &FAMILIES[..1], mode, variables, rules, yaml: YAML })
}

const YAML: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.7.7, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web-1, namespace: default}
spec: {address: 10.201.1.2, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: default}
spec:
  hosts: [db.example.com]
  resolution: STATIC
  ports: [{number: 5432, name: tcp, protocol: TCP}]
  endpoints: [{address: 10.201.1.3, ports: {tcp: 9000}}]
";

#[test]
fn a_pod_without_rules_is_not_ready_and_says_why() {
    let mesh = start("REDIRECT", &[], None);
    wait::until("the sidecar says why", || {
        mesh.ready().contains("did the init container istio-init run?").then_some(())
    });
    assert!(mesh.ready().ends_with(" 503"), "{}", mesh.ready());
    let (code, text) = mesh.tool("wait --timeoutSeconds 1 --periodMillis 100");
    assert!(code == Some(1) && text.contains("isn't ready after 1s: 503"), "{code:?} {text}");
    assert!(text.contains("did the init container istio-init run?"), "{text}");
    let told = |output: &str| output.matches("is not captured").count();
    assert_eq!(told(&mesh.sidecar.output()), 1, "{}", mesh.sidecar.output());
    mesh.pod.capture(FLAGS);
    mesh.wait_ready();
    assert_eq!(told(&mesh.sidecar.output()), 1, "{}", mesh.sidecar.output());
    assert_eq!(mesh.tool("wait --timeoutSeconds 5"), (Some(0), String::new()));
}

#[test]
fn the_kubelet_and_prometheus_get_their_answers() {
    let variables = [
        ("ISTIO_KUBE_APP_PROBERS", r#"{"/app-health/web/livez":{"httpGet":{"path":"/live","port":8080}}}"#),
        ("ISTIO_PROMETHEUS_ANNOTATIONS", r#"{"scrape":"true","path":"","port":"8080"}"#),
    ];
    let mut mesh = start("REDIRECT", &variables, Some(FLAGS));
    mesh.wait_ready();
    let _application = mesh.application("application");
    let pod = FAMILIES[0].pod;
    // From the node, as the kubelet asks; the application sees an address that no rule turns.
    assert_eq!(
        mesh.get(Place::Node, &format!("http://{pod}:15020/app-health/web/livez")),
        "/live from 127.0.0.6 200"
    );
    assert!(mesh.get(Place::Node, &format!("http://{pod}:15020/healthz/ready")).ends_with(" 200"));
    let text = mesh.get(Place::Node, &format!("http://{pod}:15020/stats/prometheus"));
    assert!(text.contains("\napp_requests 7\n") && text.contains("istio_agent_scrapes_total 1"), "{text}");
    let text = mesh.get(Place::Node, &format!("http://{pod}:15090/stats/prometheus"));
    assert!(text.contains("envoy_server_live") && !text.contains("app_requests"), "{text}");
    // Captured: through the sidecar, which is where the application sees it come from.
    assert_eq!(mesh.get(Place::Node, &format!("http://{pod}:8080/x")), "/x from 127.0.0.6 200");
    // The application's own Service is itself: out by the sidecar, and in again.
    assert_eq!(mesh.get(Place::Pod, "http://10.96.7.7/self"), "/self from 127.0.0.6 200");
    let refused = curl(
        &mesh.pod,
        Place::Node,
        &["-X", "POST", "-w", " %{http_code}", &format!("http://{pod}:15020/drain")],
    );
    assert_eq!(refused, "only from localhost\n 403");
}

#[test]
fn tproxy_serves_as_redirect_does() {
    let mut mesh = start("TPROXY", &[], Some("-u 1337 -m TPROXY -b 8080"));
    mesh.wait_ready();
    let _application = mesh.application("application");
    let pod = FAMILIES[0].pod;
    let answer = mesh.get(Place::Node, &format!("http://{pod}:8080/x"));
    assert!(answer.starts_with("/x from ") && answer.ends_with(" 200"), "{answer}");
    assert!(mesh.get(Place::Pod, "http://10.96.7.7/self").starts_with("/self from "));
    let text = mesh.get(Place::Pod, "http://127.0.0.1:15000/stats/prometheus");
    let inbound = text.lines().filter(|line| line.starts_with("istio_requests_total{"));
    let inbound = inbound.filter(|line| line.contains("reporter=\"destination\"")).count();
    assert!(inbound > 0, "{text}");
}

#[test]
fn an_end_that_was_announced_is_short_where_nothing_is_open() {
    let mut mesh = start("REDIRECT", &[("PROXY_CONFIG", "{terminationDrainDuration: 60s}")], Some(FLAGS));
    mesh.wait_ready();
    let _application = mesh.application("application");
    let pod = FAMILIES[0].pod;
    assert_eq!(mesh.tool("request --debug-port=15020 POST drain"), (Some(0), "OK\n".to_owned()));
    assert!(mesh.ready().contains("DRAINING"), "{}", mesh.ready());
    // Peers who don't know yet are served, and told.
    let answer = curl(&mesh.pod, Place::Node, &["-i", &format!("http://{pod}:8080/late")]);
    assert!(
        answer.contains("/late from ") && answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
    // The application's own calls go on, and their connections stay.
    let answer = curl(&mesh.pod, Place::Pod, &["-i", "http://10.96.7.7/out"]);
    assert!(
        answer.contains("/out from ") && !answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
    let began = std::time::Instant::now();
    mesh.sidecar.signal(Signal::SIGTERM);
    mesh.sidecar.wait_end();
    assert!(
        began.elapsed().as_secs() < 20,
        "it didn't wait for a drain time of a minute: {:?}",
        began.elapsed()
    );
}

#[test]
fn quitting_is_at_once() {
    let mut mesh = start("REDIRECT", &[], Some(FLAGS));
    mesh.wait_ready();
    let (code, text) = mesh.tool("request POST drain");
    assert!(code == Some(1) && text.contains("--debug-port=15020"), "{text}");
    assert_eq!(mesh.tool("request --debug-port=15020 POST quitquitquit"), (Some(0), "OK\n".to_owned()));
    assert!(mesh.sidecar.wait_end().success());
}

/// A name server that knows `outside.example` alone, and writes down what it is asked.
const NAME_SERVER: &str = "
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('10.201.1.1', 53))
print('serves', flush=True)
while True:
    query, peer = server.recvfrom(4096)
    at, labels = 12, []
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    name, kind = '.'.join(labels), query[at + 2]
    print('asked', name, kind, flush=True)
    question = query[12:at + 5]
    known = name == 'outside.example'
    record = b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x07\\0\\4' + bytes([198, 51, 100, 7]) if known and kind == 1 else b''
    head = query[:2] + (b'\\x81\\x80' if known else b'\\x81\\x83') + b'\\0\\1' + (b'\\0\\1' if record else b'\\0\\0') + b'\\0\\0\\0\\0'
    server.sendto(head + question + record, peer)
";

#[test]
fn names_are_answered_by_the_sidecar_and_lead_through_it() {
    for backend in ["nft", "iptables"] {
        let rules = format!("{FLAGS} --redirect-dns --backend {backend}");
        let mut mesh = start("REDIRECT", &[("ISTIO_META_DNS_CAPTURE", "true")], Some(&rules));
        let mut command = mesh.pod.command(Place::Node, "python3");
        command.args(["-c", NAME_SERVER]);
        let outside = Program::start("name server", &mut command, mesh.folder.path());
        wait::until("the name server serves", || outside.output().contains("serves").then_some(()));
        mesh.pod.serve_application(Place::Node, "db", 9000);
        mesh.wait_ready();
        let addresses = |name: &str| {
            let mut command = mesh.pod.command(Place::Pod, "getent");
            let output = command.args(["ahostsv4", name]).output().expect("getent starts");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines()
                .find(|line| line.contains("STREAM"))
                .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        };
        // However it is written, and without asking anybody else.
        for name in ["web", "web.default", "web.default.svc.cluster.local", "web.default.svc.cluster.local."]
        {
            assert_eq!(addresses(name).as_deref(), Some("10.96.7.7"), "{backend} {name}");
        }
        let automatic = addresses("db.example.com").unwrap_or_default();
        assert!(automatic.starts_with("240.240."), "{backend} {automatic}");
        assert!(!outside.output().contains("asked"), "{}", outside.output());
        // Everything else is the node's to answer, to whoever asks by the sidecar.
        assert_eq!(addresses("outside.example").as_deref(), Some("198.51.100.7"), "{backend}");
        assert_eq!(addresses("nobody.example."), None, "{backend}");
        assert!(outside.output().contains("asked outside.example 1"), "{}", outside.output());
        // The address that stands for the host is captured, and the sidecar knows whose it is.
        let script =
            "import socket; print(socket.create_connection(('db.example.com', 5432), 5).recv(99).decode())";
        let output =
            mesh.pod.command(Place::Pod, "python3").args(["-c", script]).output().expect("python starts");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(text.starts_with("db 10.201.1.3:9000 from "), "{backend} {text}");
        // Over TCP, too.
        let script = "
import socket, struct
query = struct.pack('>HHHHHH', 7, 0x100, 1, 0, 0, 0) + b'\\3web\\7default\\3svc\\7cluster\\5local\\0\\0\\1\\0\\1'
stream = socket.create_connection(('10.201.1.1', 53), 5)
stream.sendall(struct.pack('>H', len(query)) + query)
print(list(stream.recv(4096)[-4:]))
";
        let output =
            mesh.pod.command(Place::Pod, "python3").args(["-c", script]).output().expect("python starts");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(text, "[10, 96, 7, 7]\n", "{backend}");
        let page = mesh.get(Place::Pod, "http://127.0.0.1:15020/debug/ndsz");
        assert!(page.contains("10.96.7.7") && page.contains("outside.example"), "{page}");
        let figures = mesh.get(Place::Pod, "http://127.0.0.1:15020/stats/prometheus");
        for figure in
            ["istio_agent_dns_requests_total", "istio_agent_dns_upstream_request_duration_seconds_count"]
        {
            let value =
                figures.lines().find_map(|line| line.strip_prefix(figure)?.trim().parse::<f64>().ok());
            assert!(value.is_some_and(|value| value > 0.0), "{figure}: {figures}");
        }
    }
}
