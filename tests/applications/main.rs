//! Real applications behind sidecars, as a user starts them: `osier up` on a folder, `osier run` for each program.
//!
//! The applications listen on 127.0.0.1 only, and the services' ports differ from theirs, so a call that arrives went
//! through both sidecars.

use std::net::SocketAddr;
use std::path::Path;

use nix::sys::signal::Signal;
use osier_tests::backend::Backend;
use osier_tests::process::{self, Program};

/// A control plane on a folder of its own.
struct Mesh {
    folder: tempfile::TempDir,
    xds: SocketAddr,
    pilot: Program,
}

impl Mesh {
    /// `osier up` with one Service, and the file `big` for every program of the mesh: one file, so that its date (and with
    /// it nginx's entity tag) is the same whoever serves it.
    fn start(service: &str, port_name: &str, port: u16) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let source = folder.path().join("mesh");
        std::fs::create_dir(&source).expect("the test's folder can be written");
        let text = format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {service}, namespace: default}}
spec:
  selector: {{app: {service}}}
  ports: [{{name: {port_name}, port: {port}}}]
"
        );
        std::fs::write(source.join("service.yaml"), text).expect("the test's folder can be written");
        std::fs::write(folder.path().join("big"), big()).expect("the test's folder can be written");
        let (xds, monitoring) = (process::free_address(), process::free_address());
        let mut up = process::own("osier");
        up.arg("up").arg(&source).args(["--xds-address", &xds.to_string()]);
        up.args(["--monitoring-address", &monitoring.to_string()]);
        let mut pilot = Program::start("up", &mut up, folder.path());
        pilot.wait_listening(xds);
        Self { folder, xds, pilot }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `osier run`: `command` as a workload of `service`, with the options of `osier run` that `options` adds.
    fn run(&self, name: &str, service: &str, port: u16, options: &[&str], command: &[&str]) -> Program {
        let mut run = process::own("osier");
        run.args(["run", "--service", service, "--version", name, "--port", &port.to_string()])
            .args(["--pilot", &self.xds.to_string()])
            .args(options)
            .arg("--")
            .args(command)
            .current_dir(self.path());
        Program::start(name, &mut run, self.path())
    }

    /// A server in the mesh: it is listening when this returns, and its sidecar is ready.
    fn serve(&self, name: &str, service: &str, address: SocketAddr, command: &[&str]) -> Program {
        let mut program = self.run(name, service, address.port(), &[], command);
        program.wait_listening(address);
        program
    }

    /// Runs a shell script as a client in the mesh to its end, and gives what it wrote to the file `said`.
    fn visit(&self, options: &[&str], script: &str) -> String {
        let script = format!("set -e; exec > said; {script}");
        let port = process::free_address().port();
        let mut program = self.run("visitor", "visitor", port, options, &["sh", "-c", &script]);
        let status = program.wait_end();
        let said = std::fs::read_to_string(self.path().join("said")).unwrap_or_default();
        assert!(status.success(), "{status}: {said}\n{}", program.output());
        said
    }

    /// Ends everything politely: what a user's Ctrl-C does.
    fn stop(mut self, programs: Vec<Program>) {
        // Told together, as each sidecar takes its time to drain.
        programs.iter().for_each(|program| program.signal(Signal::SIGTERM));
        for mut program in programs {
            let status = program.wait_end();
            assert!(status.success(), "{status}\n{}", program.output());
        }
        self.pilot.signal(Signal::SIGTERM);
        let status = self.pilot.wait_end();
        assert!(status.success(), "{status}\n{}", self.pilot.output());
    }
}

/// nginx in one process, so that its end is the end of all of it.
fn nginx(mesh: &Mesh, name: &str) -> Program {
    let address = process::free_address();
    let folder = mesh.path().join(format!("nginx-{name}"));
    std::fs::create_dir(&folder).expect("the test's folder can be written");
    let (at, shared) = (folder.display(), mesh.path().display());
    let configuration = format!(
        "daemon off;
master_process off;
pid {at}/pid;
error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path {at}/body;
  proxy_temp_path {at}/proxy;
  fastcgi_temp_path {at}/fastcgi;
  uwsgi_temp_path {at}/uwsgi;
  scgi_temp_path {at}/scgi;
  server {{
    listen {address};
    location = /who {{ return 200 \"{name}\\n\"; }}
    location = /big {{ root {shared}; }}
    location = /peer {{ return 200 \"$http_host $remote_addr $server_protocol\\n\"; }}
  }}
}}
"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, configuration).expect("the test's folder can be written");
    let file = file.display().to_string();
    let program = nginx_program();
    mesh.serve(name, "web", address, &[&program, "-e", "stderr", "-c", &file])
}

/// Debian puts nginx where a user's PATH does not always lead.
fn nginx_program() -> String {
    let own = "/usr/sbin/nginx";
    if Path::new(own).is_file() { own.to_owned() } else { "nginx".to_owned() }
}

/// A file that is larger than any buffer on its way; each line differs, so that order and place show.
fn big() -> String {
    (0..200_000).map(|line| format!("line {line}\n")).collect()
}

#[test]
fn nginx_behind_sidecars() {
    let mesh = Mesh::start("web", "http", 8080);
    let servers = vec![nginx(&mesh, "one"), nginx(&mesh, "two")];

    let who = mesh.visit(&[], "curl -sS -f 'http://web:8080/who?[1-200]'");
    let count = |name: &str| who.lines().filter(|line| *line == name).count();
    assert_eq!(count("one") + count("two"), 200, "{who}");
    assert!(count("one") > 40 && count("two") > 40, "one {} two {}", count("one"), count("two"));

    let web = "http://web.default.svc.cluster.local:8080";
    assert!(mesh.visit(&[], &format!("curl -sS -f {web}/big")) == big(), "a large file arrives as it is");
    let script = format!(
        "curl -sS -f {web}/peer
         curl -sS -r 7-13 -w '%{{http_code}}\\n' {web}/big
         tag=$(curl -sS -f -I {web}/big | tr -d '\\r' | sed -n 's/^[eE][tT]ag: //p')
         curl -sS -o rest -w '%{{http_code}} %{{size_download}}\\n' -H \"if-none-match: $tag\" {web}/big
         curl -sS -o rest -w '%{{http_code}}\\n' {web}/absent"
    );
    assert_eq!(
        mesh.visit(&[], &script),
        "web.default.svc.cluster.local:8080 127.0.0.1 HTTP/1.1\nline 1\n206\n304 0\n404\n"
    );
    mesh.stop(servers);
}

#[test]
fn redis_behind_sidecars() {
    let mesh = Mesh::start("cache", "tcp-redis", 6380);
    let address = process::free_address();
    let port = address.port().to_string();
    let command =
        ["redis-server", "--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"];
    let servers = vec![mesh.serve("redis", "cache", address, &command)];

    let local = process::free_address().port();
    let forward = format!("--forward={local}=cache.default.svc.cluster.local:6380");
    let visit = |script: &str| mesh.visit(&[&forward], &format!("cli='redis-cli -p {local}'; {script}"));
    // At the end, one connection waits for what another one sends.
    let script = "$cli ping; $cli set color blue; $cli get color
         $cli blpop queue 20 > popped & $cli rpush queue job > pushed; wait; cat popped";
    assert_eq!(visit(script), "PONG\nOK\nblue\nqueue\njob\n");

    assert!(visit("$cli -x set big < big > set; $cli --raw get big").trim_end() == big().trim_end());

    let many: String = (0..20_000).map(|at| format!("SET key:{at} {at}\r\n")).collect();
    std::fs::write(mesh.path().join("many"), many).expect("the test's folder can be written");
    let piped = visit("$cli --pipe < many; $cli get key:19999");
    assert!(piped.contains("errors: 0, replies: 20000"), "{piped}");
    assert!(piped.ends_with("19999\n"), "{piped}");

    mesh.stop(servers);
}

/// What the mesh does not know is looked up for the client, over HTTP and CONNECT, unless that is forbidden.
#[test]
fn outside_the_mesh() {
    let mesh = Mesh::start("web", "http", 8080);
    let outside = Backend::start_at("outside", ([127, 0, 0, 5], 0).into());
    let port = outside.address.port();
    let local = Backend::start("local");
    // All of them are on this machine, which `no_proxy` would keep from the proxy.
    let get = "curl -sS --noproxy '' -m 20 -w '%{http_code}\\n'";
    let script = format!(
        "{get} http://127.0.0.5:{port}/ | sed -n '1p;$p'
         {get} -p http://127.0.0.5:{port}/ | sed -n '1p;$p'
         {get} http://localhost:{0}/ | sed -n '1p;$p'
         {get} -p http://localhost:{0}/ | sed -n '1p;$p'
         {get} -o rest http://nobody.invalid:{0}/
         {get} -o rest $http_proxy/
         {get} -o rest -p $http_proxy/",
        local.address.port()
    );
    assert_eq!(
        mesh.visit(&[], &script),
        "backend outside\n200\nbackend outside\n200\nbackend local\n200\nbackend local\n200\n503\n503\n503\n"
    );

    let only = "apiVersion: v1
kind: ConfigMap
metadata: {name: istio}
data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}
";
    std::fs::write(mesh.path().join("mesh/only.yaml"), only).expect("the test's folder can be written");
    let script = format!(
        "until [ \"$({get} -o rest http://127.0.0.5:{port}/)\" = 502 ]; do sleep 0.05; done
         {get} -o rest -p http://127.0.0.5:{port}/ || echo closed
         {get} -o rest -p http://localhost:{}/ || echo closed",
        local.address.port()
    );
    assert_eq!(mesh.visit(&[], &script), "000\nclosed\n000\nclosed\n");
    mesh.stop(Vec::new());
}
