//! A pod with a sidecar and an application in it, and pilot on its node.

use std::net::SocketAddr;
use std::path::Path;

use osier_tests::process::{self, Program};
use osier_tests::wait;

use super::pod::{Addresses, Place, Pod, SIDECAR};

/// How a pod is to be.
pub struct Setup<'s> {
    /// Its families, that of its first address first.
    pub families: &'s [Addresses],
    /// REDIRECT or TPROXY.
    pub mode: &'s str,
    /// What else is in its sidecar's environment.
    pub variables: &'s [(&'s str, &'s str)],
    /// Flags of `osier-proxy init`; without them it doesn't run.
    pub rules: Option<&'s str>,
    /// What pilot is told. The pod is `web-1`.
    pub yaml: &'s str,
}

impl Setup<'_> {
    /// Where pilot serves.
    pub fn pilot(&self) -> SocketAddr {
        SocketAddr::new(self.families[0].node, 15010)
    }

    /// As the kubelet writes it; the server is the node's.
    fn resolv_conf(&self) -> String {
        let search = "search default.svc.cluster.local svc.cluster.local cluster.local";
        format!("nameserver {}\n{search}\noptions ndots:5 timeout:5 attempts:1\n", self.families[0].node)
    }

    /// The pod's addresses, as `status.podIPs` gives them to its sidecar.
    pub fn addresses(&self) -> String {
        self.families.iter().map(|family| family.pod.to_string()).collect::<Vec<_>>().join(",")
    }
}

/// A pod with its sidecar, and pilot on the node.
pub struct Mesh {
    /// Both ends.
    pub pod: Pod,
    /// The sidecar.
    pub sidecar: Program,
    _pilot: Program,
    /// Where its files are.
    pub folder: tempfile::TempDir,
}

impl Mesh {
    /// With `osier-proxy sidecar`.
    pub fn start(setup: &Setup<'_>) -> Self {
        Self::start_with(setup, start_sidecar)
    }

    /// With whatever `sidecar` starts.
    pub fn start_with(setup: &Setup<'_>, sidecar: fn(&Pod, &Setup<'_>, &Path) -> Program) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("permissions");
        let pod = Pod::new(setup.families);
        pod.resolv_conf(&setup.resolv_conf());
        if let Some(flags) = setup.rules {
            pod.capture(flags);
        }
        let source = path.join("source");
        std::fs::create_dir(&source).expect("the test's folder can be written");
        std::fs::write(source.join("web.yaml"), setup.yaml).expect("the test's folder can be written");
        let pilot = process::own("osier-pilot");
        let mut command = pod.command(Place::Node, &pilot.get_program().to_string_lossy());
        command.arg("--source").arg(&source).args(["--xds-address", &setup.pilot().to_string()]);
        let pilot = Program::start("pilot", &mut command, path);
        let sidecar = sidecar(&pod, setup, path);
        Self { pod, sidecar, _pilot: pilot, folder }
    }

    /// What a page says, and its status.
    pub fn get(&self, place: Place, url: &str) -> String {
        curl(&self.pod, place, &["-w", " %{http_code}", url])
    }

    /// What the readiness port says.
    pub fn ready(&self) -> String {
        self.get(Place::Pod, "http://127.0.0.1:15021/healthz/ready")
    }

    /// Waits until the sidecar is ready.
    pub fn wait_ready(&self) {
        wait::until("the sidecar is ready", || self.ready().ends_with(" 200").then_some(()));
    }

    /// A tool of the sidecar's own program, run in the pod.
    pub fn tool(&self, words: &str) -> (Option<i32>, String) {
        let program = process::own("osier-proxy");
        let mut command = self.pod.command(Place::Pod, &program.get_program().to_string_lossy());
        let output = command.args(words.split(' ')).output().expect("the tool starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// An application on port 8080 of the pod.
    pub fn application(&mut self, name: &str) -> Program {
        self.serve_http(Place::Pod, name, 8080)
    }

    /// An HTTP server there, for both families, that says what it was asked and by whom.
    pub fn serve_http(&self, place: Place, name: &str, port: u16) -> Program {
        let script = "
import http.server, socket, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        if self.path == '/slow': time.sleep(1)
        peer = self.client_address[0].removeprefix('::ffff:')
        body = {'/metrics': b'app_requests 7\\n'}.get(self.path, f'{self.path} from {peer}'.encode())
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(('::', int(sys.argv[1])), Handler).serve_forever()
";
        let mut command = self.pod.command(place, "python3");
        command.args(["-c", script, &port.to_string()]);
        let program = Program::start(name, &mut command, self.folder.path());
        wait::until("the application answers", || {
            self.get(place, &format!("http://127.0.0.1:{port}/up")).starts_with("/up").then_some(())
        });
        program
    }
}

/// What `curl` prints there.
pub fn curl(pod: &Pod, place: Place, words: &[&str]) -> String {
    let output =
        pod.command(place, "curl").args(["-sS", "-m", "10"]).args(words).output().expect("curl starts");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// `osier-proxy sidecar` in the pod.
pub fn start_sidecar(pod: &Pod, setup: &Setup<'_>, folder: &Path) -> Program {
    let program = process::own("osier-proxy");
    let mut command = pod.command(Place::Pod, "setpriv");
    let group = SIDECAR.to_string();
    match setup.mode {
        // As injection runs it: root of the sidecar's group, with NET_ADMIN.
        "TPROXY" => command.args(["--regid", &group, "--clear-groups"]),
        _ => command.args(["--reuid", &group, "--regid", &group, "--clear-groups"]),
    };
    command
        .arg(program.get_program())
        .args(["sidecar", "--concurrency", "1", "--pilot-address", &setup.pilot().to_string()])
        .env("POD_NAME", "web-1")
        .env("POD_NAMESPACE", "default")
        .env("DNS_DOMAIN", "default.svc.cluster.local")
        .env("INSTANCE_IPS", setup.addresses())
        .env("ISTIO_META_WORKLOAD_NAME", "web")
        .env("ISTIO_META_INTERCEPTION_MODE", setup.mode)
        .envs(setup.variables.iter().copied());
    Program::start("sidecar", &mut command, folder)
}
