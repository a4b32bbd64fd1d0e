//! Workloads on the cluster: an image of Debian's static busybox, a pod as the mesh will make them, its Services.
//!
//! A static busybox on an empty root crashes where it needs the C library's name service (and on `wget -T`): addresses are given as
//! numbers and with their port.

use std::net::SocketAddr;
use std::os::unix::fs::symlink;

use osier_tests::{raw, wait};

use crate::cluster::Cluster;

const YAML: &str = include_str!("workload.yaml");
const IMAGE: &str = "localhost/osier-test/busybox:1";
/// Applets that the pods run.
const APPLETS: [&str; 7] = ["sh", "httpd", "wget", "ip", "id", "cat", "nslookup"];

/// Makes the image of a folder.
pub fn load_image(cluster: &Cluster) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let programs = folder.path().join("bin");
    std::fs::create_dir(&programs).expect("the test's folder can be written");
    std::fs::copy("/bin/busybox", programs.join("busybox")).expect("busybox is installed");
    for applet in APPLETS {
        symlink("busybox", programs.join(applet)).expect("the test's folder can be written");
    }
    let folder = folder.path().to_string_lossy();
    cluster.xtask(&["load-image", IMAGE, &folder, "--entrypoint", "/bin/sh"]);
}

/// Applies the workload and waits for it.
pub fn deploy(cluster: &Cluster) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("workload.yaml");
    std::fs::write(&file, YAML).expect("the test's folder can be written");
    cluster.kubectl(&["apply", "--filename", &file.to_string_lossy()]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    // The init container ran first, then the sidecar served what it wrote, then the app asked the sidecar for it.
    assert_eq!(exec(cluster, "app", &["cat", "/shared/from-sidecar"]).trim(), "written by init");
    assert_eq!(exec(cluster, "app", &["ip", "link", "show", "dev", "lo"]).matches("mtu 60000").count(), 1);
    assert!(exec(cluster, "sidecar", &["id"]).starts_with("uid=1337 gid=1337"));
}

/// Exec by both protocols, and logs.
pub fn exec_and_logs(cluster: &Cluster) {
    let kubectl = field(cluster, &["config", "view", "--output=jsonpath={.clusters[0].cluster.server}"]);
    assert_eq!(kubectl, "https://10.244.0.1:6443");
    for websockets in ["true", "false"] {
        let mut command = osier_tests::process::own("xtask");
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
        command.args([
            "cluster",
            "kubectl",
            "exec",
            "deployment/web",
            "-c",
            "app",
            "--",
            "cat",
            "/shared/index.html",
        ]);
        let done = command.output().expect("kubectl starts");
        assert_eq!(String::from_utf8_lossy(&done.stdout), "written by init\n", "WebSockets: {websockets}");
    }
    assert_eq!(cluster.kubectl(&["logs", "deployment/web", "-c", "app"]), "serving\n");
}

/// A ClusterIP, from the host, from another pod's place, and from the own pod (hairpin).
pub fn reach_service(cluster: &Cluster) {
    let address = field(cluster, &["get", "service", "web", "--output=jsonpath={.spec.clusterIP}"]);
    assert!(address.starts_with("10.96."), "{address}");
    wait_for_page(&address);
    let url = format!("http://{address}:80/index.html");
    assert_eq!(exec(cluster, "app", &["wget", "-q", "-O", "-", &url]), "written by init\n");
}

/// The name service, as pods ask it.
pub fn resolve(cluster: &Cluster) {
    let address = field(cluster, &["get", "service", "web", "--output=jsonpath={.spec.clusterIP}"]);
    let answer = exec(cluster, "app", &["nslookup", "web.default.svc.cluster.local"]);
    assert!(answer.contains(&address), "{answer}");
}

/// An address from the pool, and one that was asked for.
pub fn reach_balancer(cluster: &Cluster) {
    let address = |service: &str| {
        wait::until(&format!("an address of {service}"), || {
            let path = "--output=jsonpath={.status.loadBalancer.ingress[0].ip}";
            Some(field(cluster, &["get", "service", service, path])).filter(|address| !address.is_empty())
        })
    };
    let any = address("any-address");
    assert!(any.starts_with("10.97.0."), "{any}");
    assert_eq!(address("wanted-address"), "10.97.0.77");
    wait_for_page(&any);
    wait_for_page("10.97.0.77");
}

/// A pod whose image isn't there fails at once, at a port of this machine on which nobody listens.
pub fn missing_image(cluster: &Cluster) {
    cluster.kubectl(&["run", "missing", "--image=registry.example/none:1", "--restart=Never"]);
    let path = "--output=jsonpath={.status.containerStatuses[0].state.waiting.message}";
    let message = wait::until("the kubelet says that there is no image", || {
        Some(field(cluster, &["get", "pod", "missing", path]))
            .filter(|message| message.contains("registry.example"))
    });
    assert!(message.contains("127.10.244.1:9: connect: connection refused"), "{message}");
}

/// Waits until the page comes at this address, port 80, from the host.
fn wait_for_page(address: &str) {
    let socket: SocketAddr = format!("{address}:80").parse().expect("an address");
    let request = format!("GET /index.html HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    // kube-proxy writes its rules a moment after the Service is there.
    wait::until(&format!("a listener at {socket}"), || {
        std::net::TcpStream::connect_timeout(&socket, std::time::Duration::from_secs(1)).ok()
    });
    let answer = raw::exchange(socket, "GET", request.as_bytes()).expect("an answer");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "written by init\n"));
}

fn exec(cluster: &Cluster, container: &str, command: &[&str]) -> String {
    cluster.kubectl(&[&["exec", "deployment/web", "-c", container, "--"], command].concat())
}

fn field(cluster: &Cluster, arguments: &[&str]) -> String {
    cluster.kubectl(arguments).trim().to_owned()
}
