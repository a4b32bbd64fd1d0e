//! A client behind a sidecar with a static configuration: where connections were going is known after REDIRECT.

use std::process::{Command, Stdio};

use osier_tests::process::{self, Program};
use osier_tests::wait;

/// User that the sidecar runs as; its own connections are not captured, as with Istio.
const SIDECAR: &str = "1337";

/// Two namespaces with a cable between: `client` (10.200.N.1) and `server` (10.200.N.2). Removed when dropped.
struct Net {
    client: String,
    server: String,
    third: u8,
}

impl Net {
    fn new(third: u8) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this suite needs root: it makes network namespaces");
        let pid = std::process::id();
        let net =
            Self { client: format!("osier-c{third}-{pid}"), server: format!("osier-s{third}-{pid}"), third };
        let (client, server) = (&net.client, &net.server);
        for line in [
            format!("netns add {client}"),
            format!("netns add {server}"),
            format!("link add veth0 netns {client} type veth peer name veth0 netns {server}"),
            format!("-n {client} addr add 10.200.{third}.1/24 dev veth0"),
            format!("-n {server} addr add 10.200.{third}.2/24 dev veth0"),
            format!("-n {server} addr add 10.200.{third}.3/24 dev veth0"),
            format!("-n {client} link set veth0 up"),
            format!("-n {server} link set veth0 up"),
            format!("-n {client} link set lo up"),
            format!("-n {server} link set lo up"),
        ] {
            let done = Command::new("ip").args(line.split(' ')).status().expect("ip starts");
            assert!(done.success(), "ip {line}");
        }
        net
    }

    fn ip(&self, last: u8) -> String {
        format!("10.200.{}.{last}", self.third)
    }

    /// A command in one of the namespaces.
    fn command(namespace: &str, program: &std::ffi::OsStr) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        command
    }

    /// Redirects what `user`-less processes send to the sidecar's port 15001.
    fn capture_outbound(&self) {
        let rules = format!(
            "table ip osier {{
  chain output {{
    type nat hook output priority -100;
    meta skuid {SIDECAR} return
    ip daddr 127.0.0.0/8 return
    tcp dport 1-65535 redirect to :15001
  }}
}}
"
        );
        let mut nft = Self::command(&self.client, "nft".as_ref());
        let mut child = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft starts");
        std::io::Write::write_all(child.stdin.as_mut().expect("a pipe"), rules.as_bytes())
            .expect("nft reads");
        assert!(child.wait().expect("nft ends").success());
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in [&self.client, &self.server] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// A program in a namespace, as the sidecar's user.
fn sidecar(net: &Net, bootstrap: &str, folder: &std::path::Path) -> Program {
    let file = folder.join("bootstrap.yaml");
    std::fs::write(&file, bootstrap).expect("the test's folder can be written");
    let program = process::own("osier-proxy");
    let mut command = Net::command(&net.client, "setpriv".as_ref());
    command
        .args(["--reuid", SIDECAR, "--clear-groups"])
        .arg(program.get_program())
        .arg("--config")
        .arg(&file);
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("permissions");
    Program::start("osier", &mut command, folder)
}

fn server(net: &Net, name: &str, ip: &str, port: u16, folder: &std::path::Path) -> Program {
    let script = "
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = (sys.argv[1] + ' ' + self.headers.get('x-via-osier', 'direct')).encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), Handler).serve_forever()
";
    let mut command = Net::command(&net.server, "python3".as_ref());
    command.args(["-c", script, name, ip, &port.to_string()]);
    Program::start(name, &mut command, folder)
}

/// `curl` in the client's namespace; what it printed.
fn curl(net: &Net, arguments: &[&str]) -> String {
    let mut command = Net::command(&net.client, "curl".as_ref());
    let output = command.args(["-s", "-m", "10"]).args(arguments).output().expect("curl starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn captured_connections_keep_their_destination() {
    let net = Net::new(1);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let _first = server(&net, "first", &net.ip(2), 80, folder.path());
    let _second = server(&net, "second", &net.ip(3), 80, folder.path());
    let _other = server(&net, "other", &net.ip(2), 9999, folder.path());
    let mut proxy =
        sidecar(&net, &include_str!("bootstrap.yaml").replace("{{SERVER}}", &net.ip(2)), folder.path());
    // Before the capture, plain calls show that the servers are there.
    for (ip, port, name) in [(net.ip(2), 80, "first"), (net.ip(3), 80, "second"), (net.ip(2), 9999, "other")]
    {
        let url = format!("http://{ip}:{port}/");
        wait::until(name, || (curl(&net, &[&url]) == format!("{name} direct")).then_some(()));
    }
    wait::until("the sidecar is ready", || {
        (curl(&net, &["-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:15000/ready"]) == "200")
            .then_some(())
    });
    net.capture_outbound();
    // Port 80 of the first server has a listener of its own, which routes and adds a header.
    assert_eq!(curl(&net, &[&format!("http://{}/", net.ip(2))]), "first routed", "{}", proxy.output());
    // Everything else is passed through to where it was going.
    assert_eq!(curl(&net, &[&format!("http://{}/", net.ip(3))]), "second direct", "{}", proxy.output());
    assert_eq!(curl(&net, &[&format!("http://{}:9999/", net.ip(2))]), "other direct", "{}", proxy.output());
    // A dead port is refused to the client as a closed connection, and the sidecar goes on.
    assert_eq!(curl(&net, &[&format!("http://{}:81/", net.ip(2))]), "");
    assert_eq!(curl(&net, &[&format!("http://{}/", net.ip(3))]), "second direct");
    proxy.signal(nix::sys::signal::Signal::SIGTERM);
    proxy.wait_end();
}
