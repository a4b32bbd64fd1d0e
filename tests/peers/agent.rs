//! `osier-proxy agent` beside a stock Envoy and beside Python's gRPC, in a mesh where everything is STRICT: both ends of mutual TLS with
//! our sidecar, and with each other.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use osier_pilot::ca::local::{Local, ROOT};
use osier_tests::backend::Backend;
use osier_tests::certificate::Root;
use osier_tests::mesh::{IDENTITY, OUTSIDE, Pilot, Sidecar, outside_entry, register, service, xds_cluster};
use osier_tests::process::{self, Program};
use osier_tests::{nginx, raw, wait};

use crate::client::Client;
use crate::grpc;

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: all, namespace: istio-system}\n\
                      spec: {mtls: {mode: STRICT}}\n";

/// A workload that is a Pod to pilot, with a service account of its name, at an address of its own.
struct Pod {
    name: &'static str,
    ip: Ipv4Addr,
    port: u16,
}

impl Pod {
    fn address(&self) -> SocketAddr {
        (self.ip, self.port).into()
    }

    /// Where its application listens behind a proxy.
    fn application(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    fn yaml(&self, protocol: &str) -> String {
        let Self { name, ip, port } = self;
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: {protocol}, port: {port}, targetPort: {port}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: {protocol}, port: {port}, protocol: TCP}}]
endpoints:
- addresses: [{ip}]
  conditions: {{ready: true}}
  targetRef: {{kind: Pod, name: {name}, namespace: default}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{app: {name}, security.istio.io/tlsMode: istio}}}}
spec: {{serviceAccountName: {name}, containers: [{{name: app, image: app}}]}}
status: {{phase: Running, podIP: {ip}}}
"
        )
    }

    /// Starts an agent for it.
    fn agent(&self, pilot: &Pilot) -> Agent {
        let keys = Local::open(&pilot.path().join(IDENTITY)).expect("a pilot with an identity");
        let (address, token) = pilot.proof(&keys, &register(self.name, "v1", None), self.name);
        let memory = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let socket = memory.path().join("uds/socket");
        let mut command = process::own("osier-proxy");
        command.args(["agent", "--pilot-address", &address.to_string()]);
        command.arg("--pilot-root-file").arg(keys.file(ROOT)).arg("--token-file").arg(token);
        command.arg("--socket").arg(&socket).arg("--folder").arg(memory.path().join("certificates"));
        let program = Program::start(&format!("agent-{}", self.name), &mut command, pilot.path());
        wait::until("the agent has a certificate", || {
            memory.path().join("certificates/key.pem").exists().then_some(())
        });
        Agent { _program: program, socket, memory }
    }
}

struct Agent {
    _program: Program,
    socket: PathBuf,
    memory: tempfile::TempDir,
}

fn refused_nothing(pilot: &Pilot) {
    let metrics = pilot.get("/metrics").text();
    let refused: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("pilot_total_xds_rejects") && !line.ends_with(" 0"))
        .collect();
    assert!(refused.is_empty(), "{refused:?}\n{}", pilot.get("/debug/syncz").text());
}

/// Envoy with its certificates from the agent.
fn envoy(pilot: &Pilot, pod: &Pod, agent: &Agent) -> Client {
    let (name, ip) = (pod.name, pod.ip);
    let node = format!(
        "node:
  id: sidecar~{ip}~{name}.default~default.svc.cluster.local
  cluster: {name}.default
  metadata:
    NAMESPACE: default
    INSTANCE_IPS: \"{ip}\"
    INTERCEPTION_MODE: NONE
    LABELS: {{app: {name}, security.istio.io/tlsMode: istio}}
"
    );
    let clusters = format!(
        "{}  - name: sds-grpc
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: sds-grpc
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{pipe: {{path: {}}}}}}}}}]}}]
",
        xds_cluster(pilot.xds),
        agent.socket.display()
    );
    Client::envoy_with(pilot.path(), "DELTA_GRPC", ip, &node, &clusters)
}

/// nginx that speaks TLS alone.
fn https(folder: &Path, root: &Root) -> (Program, SocketAddr) {
    let address = process::free_address();
    let own = root.sign(OUTSIDE);
    let server = format!(
        "listen {address} ssl; ssl_certificate {}; ssl_certificate_key {};
    location / {{ return 200 \"backend $ssl_server_name\\n\"; }}",
        own.certificate.display(),
        own.key.display()
    );
    (nginx::start(folder, address, &server), address)
}

fn outside(port: u16, roots: &Path) -> String {
    let tls = format!("mode: SIMPLE, caCertificates: {}", roots.display());
    format!("{}---\n{}", outside_entry(port), rule(OUTSIDE, &tls))
}

fn rule(host: &str, tls: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {}, namespace: default}}
spec: {{host: {host}, trafficPolicy: {{tls: {{{tls}}}}}}}
",
        host.replace('.', "-")
    )
}

#[test]
fn envoy_and_our_sidecar_believe_each_other() {
    let pod = Pod { name: "echo", ip: Ipv4Addr::new(127, 88, 20, 1), port: process::free_address().port() };
    let port = process::free_address().port();
    let files = [
        ("strict.yaml", STRICT),
        ("echo.yaml", &*pod.yaml("http")),
        ("web.yaml", &*service("web", "http", port)),
    ];
    let pilot = Pilot::with_identity(&files, |_| ());
    let _application = Backend::start_at("behind-envoy", pod.application());
    let sidecar = Sidecar::secured(&pilot, "web", Some(Backend::start("web").address));
    let agent = pod.agent(&pilot);
    let envoy = envoy(&pilot, &pod, &agent);

    let (web, echo) = (format!("web:{port}"), format!("echo:{}", pod.port));
    let host = format!("web.default.svc.cluster.local:{port}");
    wait::until("Envoy reaches the sidecar", || (envoy.ask(&host) == "web").then_some(()));
    let seen = envoy.get(&host).text();
    assert!(
        seen.contains("By=spiffe://cluster.local/ns/default/sa/web;")
            && seen.contains("URI=spiffe://cluster.local/ns/default/sa/echo"),
        "{seen}"
    );
    wait::until("the sidecar reaches Envoy", || (sidecar.ask(&echo) == "behind-envoy").then_some(()));
    let seen = sidecar.get(&echo, "/", "").text();
    assert!(seen.contains("URI=spiffe://cluster.local/ns/default/sa/web"), "{seen}");
    let plain =
        raw::exchange(pod.address(), "GET", b"GET / HTTP/1.1\r\nhost: echo\r\nconnection: close\r\n\r\n");
    assert_eq!(plain.unwrap_or_default().status(), 0, "Envoy takes no plaintext: {web}");

    // The agent hands files on as well.
    let root = Root::new(pilot.path(), "outside");
    let (_nginx, address) = https(pilot.path(), &root);
    pilot.save("outside.yaml", &outside(address.port(), &root.file()));
    wait::until("Envoy speaks TLS outwards", || (envoy.ask(OUTSIDE) == "outside.test").then_some(()));
    wait::until("the sidecar does, too", || (sidecar.ask(OUTSIDE) == "outside.test").then_some(()));
    envoy.assert_nothing_rejected();
    refused_nothing(&pilot);
}

/// The bootstrap of a gRPC library that reads what the agent has written.
fn bootstrap(pilot: &Pilot, pod: &Pod, agent: &Agent) -> String {
    let file = |name: &str| agent.memory.path().join("certificates").join(name).display().to_string();
    let bootstrap = serde_json::json!({
        "xds_servers": [{
            "server_uri": pilot.xds.to_string(),
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": format!("sidecar~{}~{}.default~default.svc.cluster.local", pod.ip, pod.name),
            "metadata": {
                "NAMESPACE": "default",
                "GENERATOR": "grpc",
                "INSTANCE_IPS": pod.ip.to_string(),
                "LABELS": {"app": pod.name, "security.istio.io/tlsMode": "istio"},
            },
        },
        "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {
            "certificate_file": file("cert-chain.pem"),
            "private_key_file": file("key.pem"),
            "ca_certificate_file": file("root-cert.pem"),
            "refresh_interval": "1s",
        }}},
        "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
    });
    bootstrap.to_string()
}

/// A call over HTTP/1 to a sidecar, which speaks HTTP/2 with the server: gRPC is a POST with five bytes before its (empty) message.
fn call_through(sidecar: &Sidecar, host: &str) -> String {
    let head = format!(
        "POST http://{host}/osier.test.Echo/Call HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/grpc\r\nte: trailers\r\n\
         content-length: 5\r\nconnection: close\r\n\r\n"
    );
    let answer = raw::exchange(sidecar.proxy(), "POST", &[head.as_bytes(), &[0; 5]].concat());
    let answer = answer.unwrap_or_default();
    format!("{} {}", answer.status(), answer.text())
}

#[test]
fn grpc_without_a_proxy_believes_and_is_believed() {
    let at =
        |name, last| Pod { name, ip: Ipv4Addr::new(127, 88, 21, last), port: process::free_address().port() };
    let (server, caller) = (at("server", 1), at("caller", 2));
    let port = process::free_address().port();
    let files = [
        ("strict.yaml", STRICT),
        ("server.yaml", &*server.yaml("grpc")),
        ("caller.yaml", &*caller.yaml("grpc")),
        ("web.yaml", &*service("web", "grpc", port)),
        (
            "rules.yaml",
            &*(rule("server", "mode: ISTIO_MUTUAL") + "---\n" + &rule("web", "mode: ISTIO_MUTUAL")),
        ),
    ];
    let pilot = Pilot::with_identity(&files, |_| ());
    let [of_server, of_caller] = [&server, &caller].map(|pod| pod.agent(&pilot));
    let _server =
        grpc::serve_xds("server", server.address(), &bootstrap(&pilot, &server, &of_server), pilot.path());
    let behind = process::free_address();
    let _behind = grpc::serve("behind-sidecar", behind, pilot.path());
    let sidecar = Sidecar::secured(&pilot, "web", Some(behind));

    let known = bootstrap(&pilot, &caller, &of_caller);
    let call = |host: &str, port: u16| {
        let target = format!("xds:///{host}.default.svc.cluster.local:{port}");
        grpc::call_with(&["call-xds", &target, "1"], &known)
    };
    wait::until("one without a proxy answers another", || {
        call("server", server.port).answers.contains_key("server").then_some(())
    });
    wait::until("a sidecar answers", || {
        call("web", port).answers.contains_key("behind-sidecar").then_some(())
    });
    let target = format!("server:{}", server.port);
    wait::until("a sidecar is answered", || call_through(&sidecar, &target).contains("server").then_some(()));

    // Who shows nothing gets nothing.
    let plain = grpc::call_with(&["call", &format!("ipv4:{}", server.address()), "1", "2"], &known);
    assert!(plain.answers.is_empty(), "{:?}", plain.answers);
    // A server that is another than the rule says is not believed.
    pilot.save(
        "rules.yaml",
        &rule("server", "mode: ISTIO_MUTUAL, subjectAltNames: ['spiffe://cluster.local/ns/a/sa/b']"),
    );
    wait::until("another server is wanted", || {
        let outcome =
            grpc::call_with(&["call-xds", &format!("xds:///server:{}", server.port), "1", "2"], &known);
        outcome.answers.is_empty().then_some(())
    });
    refused_nothing(&pilot);
}
