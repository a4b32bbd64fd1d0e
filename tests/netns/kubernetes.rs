//! Pods as Kubernetes makes them: each in a network namespace with an address of its own, its traffic captured in both directions
//! by its sidecar; a Service with a cluster address that nobody but the sidecars knows.
//!
//! `my-nginx.yaml` is what `kubectl get service,endpointslice -o yaml` prints for the Deployment of the Kubernetes tutorial
//! (`run: my-nginx`, port 80, two replicas).

use std::path::Path;
use std::process::{Command, Stdio};

use osier_tests::nginx;
use osier_tests::process::{self, Program};
use osier_tests::wait;

const YAML: &str = include_str!("my-nginx.yaml");
/// User that sidecars run as; their own connections are not captured, as with Istio.
const SIDECAR: &str = "1337";
const NODE: &str = "10.244.7.254";
const CLUSTER_IP: &str = "10.96.178.14";

/// Namespaces on one bridge; removed when dropped. The node is the namespace with the bridge.
struct Cluster {
    namespaces: Vec<String>,
    programs: Vec<Program>,
    folder: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.programs.clear();
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

impl Cluster {
    /// A node with pilot on the folder `source`.
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this suite needs root: it makes network namespaces");
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("permissions");
        let mut cluster =
            Self { namespaces: vec![format!("osier-node-{}", std::process::id())], programs: vec![], folder };
        let node = cluster.namespaces[0].clone();
        ip(&format!("netns add {node}"));
        ip(&format!("-n {node} link add pods type bridge"));
        ip(&format!("-n {node} addr add {NODE}/24 dev pods"));
        ip(&format!("-n {node} link set pods up"));
        ip(&format!("-n {node} link set lo up"));
        let source = cluster.path().join("source");
        std::fs::create_dir(&source).expect("the test's folder can be written");
        std::fs::write(source.join("my-nginx.yaml"), YAML).expect("the test's folder can be written");
        let pilot = process::own("osier-pilot");
        let mut command = inside(&node, pilot.get_program().to_string_lossy().as_ref());
        command.arg("--source").arg(source).args(["--xds-address", &format!("{NODE}:15010")]);
        cluster.programs.push(Program::start("pilot", &mut command, cluster.folder.path()));
        let page = |path: &str| {
            run(inside(&node, "curl").args(["-sS", "-m", "10", &format!("http://127.0.0.1:15014{path}")]))
        };
        wait::until("pilot is ready", || (page("/ready") == "ready\n").then_some(()));
        let reports: serde_json::Value = serde_json::from_str(&page("/debug/configz")).expect("JSON");
        assert_eq!(reports["reports"], serde_json::json!([]), "what Kubernetes prints is taken as it is");
        cluster
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A pod with a sidecar, both directions captured. Gives its namespace.
    fn pod(&mut self, name: &str, address: &str) -> String {
        let namespace = format!("osier-{name}-{}", std::process::id());
        self.namespaces.push(namespace.clone());
        let node = self.namespaces[0].clone();
        let cable = format!("veth{}", self.namespaces.len());
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add eth0 netns {namespace} type veth peer name {cable} netns {node}"));
        ip(&format!("-n {node} link set {cable} master pods"));
        ip(&format!("-n {node} link set {cable} up"));
        ip(&format!("-n {namespace} addr add {address}/24 dev eth0"));
        ip(&format!("-n {namespace} link set eth0 up"));
        ip(&format!("-n {namespace} link set lo up"));
        ip(&format!("-n {namespace} route add default via {NODE}"));
        capture(&namespace);
        let proxy = process::own("osier-proxy");
        let mut command = inside(&namespace, "setpriv");
        command
            .args(["--reuid", SIDECAR, "--clear-groups"])
            .arg(proxy.get_program())
            .args(["sidecar", "--concurrency", "1", "--pilot-address", &format!("{NODE}:15010")])
            .env("POD_NAME", name)
            .env("POD_NAMESPACE", "default")
            .env("INSTANCE_IP", address)
            .env("ISTIO_META_WORKLOAD_NAME", name.rsplitn(3, '-').last().unwrap_or(name));
        let program = Program::start(name, &mut command, self.path());
        self.programs.push(program);
        let ready = "http://127.0.0.1:15021/healthz/ready";
        wait::until("the sidecar is ready", || {
            let status =
                run(inside(&namespace, "curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", ready]));
            (status == "200").then_some(())
        });
        namespace
    }

    /// A replica: nginx on port 80 of all addresses, in one process, so that its end is the end of all of it.
    fn nginx(&mut self, name: &str, address: &str) {
        let namespace = self.pod(name, address);
        let folder = self.path().join(format!("nginx-{name}"));
        std::fs::create_dir(&folder).expect("the test's folder can be written");
        let server = format!(
            "listen 80;
    location / {{ return 200 \"{name} $server_addr $http_host $http_x_forwarded_proto\\n\"; }}"
        );
        let file = nginx::configure(&folder, &server);
        let mut command = inside(&namespace, "nginx");
        command.args(["-e", "stderr", "-c"]).arg(&file);
        self.programs.push(Program::start(&format!("{name}-nginx"), &mut command, self.folder.path()));
    }
}

fn ip(line: &str) {
    assert!(Command::new("ip").args(line.split(' ')).status().expect("ip starts").success(), "ip {line}");
}

fn inside(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]);
    command
}

fn run(command: &mut Command) -> String {
    let output = command.stderr(Stdio::null()).output().expect("the program starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the init container does.
fn capture(namespace: &str) {
    let proxy = process::own("osier-proxy");
    let mut command = inside(namespace, &proxy.get_program().to_string_lossy());
    command.args(["init", "-u", SIDECAR, "-d", "15090,15021,15020"]);
    assert!(command.stdout(Stdio::null()).status().expect("init starts").success());
}

#[test]
fn nginx_with_the_yaml_that_kubernetes_itself_produces() {
    let mut cluster = Cluster::new();
    let replicas = ["my-nginx-5b56ccd65f-8v2tq", "my-nginx-5b56ccd65f-x7k9d"];
    cluster.nginx(replicas[0], "10.244.7.2");
    cluster.nginx(replicas[1], "10.244.7.3");
    let client = cluster.pod("curl", "10.244.7.9");
    let curl = |arguments: &str| {
        let fixed = ["-sS", "-m", "10", "--resolve", "my-nginx:80:10.96.178.14"];
        run(inside(&client, "curl").args(fixed).args(arguments.split(' ')))
    };
    wait::until("the service answers", || curl("http://my-nginx/").starts_with("my-nginx-").then_some(()));

    let balanced = |count: u32| {
        let answers = curl(&format!("http://my-nginx/?[1-{count}]"));
        replicas.map(|replica| answers.lines().filter(|line| line.starts_with(replica)).count() as u32)
    };
    wait::until("both replicas are there", || balanced(10).iter().all(|count| *count > 0).then_some(()));
    let counts = balanced(200);
    assert_eq!(counts.iter().sum::<u32>(), 200, "{counts:?}");
    assert!(counts.iter().all(|count| *count > 40), "{counts:?}");
    // The server sees the address that the request went to, the host that the client named, and what the sidecars add.
    let answers = curl("http://my-nginx/?[1-10]");
    for line in answers.lines() {
        let of = |index: usize, address: &str| line == format!("{} {address} my-nginx http", replicas[index]);
        assert!(of(0, "10.244.7.2") || of(1, "10.244.7.3"), "{line}");
    }
    // A pod by its own address, and the cluster address without a name.
    assert!(curl("http://10.244.7.3/").starts_with(replicas[1]));
    assert!(curl(&format!("http://{CLUSTER_IP}/")).starts_with("my-nginx-"));

    let metrics = |namespace: &str| {
        run(inside(namespace, "curl").args(["-sS", "http://127.0.0.1:15000/stats/prometheus"]))
    };
    let counted = |text: &str, reporter: &str| {
        let labels = [format!("reporter=\"{reporter}\""), "destination_service_name=\"my-nginx\"".into()];
        let lines = text.lines().filter(|line| line.starts_with("istio_requests_total{"));
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    let text = metrics(&client);
    assert!(counted(&text, "source") >= 210.0, "{text}");
    for namespace in &cluster.namespaces[1..3] {
        let text = metrics(namespace);
        assert!(
            text.contains("reporter=\"destination\"") && text.contains("source_workload=\"curl\""),
            "{text}"
        );
    }

    // One replica goes, as the endpoint controller says it: not ready, terminating.
    let leaving = "ready: true
      serving: true
      terminating: false";
    let gone = "ready: false
      serving: true
      terminating: true";
    let file = cluster.path().join("source/my-nginx.yaml");
    std::fs::write(file, YAML.replacen(leaving, gone, 1)).expect("the test's folder can be written");
    wait::until("only the other one is asked", || (balanced(30)[0] == 0).then_some(()));
    assert_eq!(balanced(50), [0, 50]);
}
