//! Pods of both families, whichever comes first, and of IPv6 alone: calls over each family, in and out, go through the sidecar and are
//! counted there, whatever sets the rules.

use std::net::SocketAddr;
use std::path::Path;

use osier_tests::mesh::xds_cluster;
use osier_tests::process::{self, Program};
use osier_tests::wait;

use super::mesh::{Mesh, Setup, curl, start_sidecar};
use super::pod::{APPLICATION, Addresses, FAMILIES, Place, Pod, SIDECAR};

const YAML: &str = include_str!("families.yaml");
const RULES: &str = "-u 1337 -d 15090,15021,15020";

/// The pod's HTTP port of service `web`.
const HTTP: u16 = 8080;
/// Its TCP port, which `other` has as well.
const TCP: u16 = 9000;
/// A port of no service.
const UNKNOWN: u16 = 7000;
/// Calls of each kind over each family.
const CALLS: usize = 5;

/// What each family's sidecar must do.
struct Family<'m> {
    mesh: &'m Mesh,
    addresses: Addresses,
    /// The address of the Service `other`, whose application is on the node.
    other: SocketAddr,
}

impl Family<'_> {
    fn http(&self, place: Place, to: SocketAddr, expected: &str) {
        let url = format!("http://{to}/x");
        let answers: Vec<String> = (0..CALLS).map(|_| self.mesh.get(place, &url)).collect();
        let ok = answers.iter().all(|answer| answer.starts_with(expected) && answer.ends_with(" 200"));
        assert!(ok, "{url} from {place:?}: {answers:?} isn't {expected}\n{}", self.mesh.sidecar.output());
    }

    fn tcp(&self, place: Place, to: SocketAddr, expected: &str) {
        for _ in 0..CALLS {
            let answer = self.mesh.pod.ask(place, APPLICATION, APPLICATION, None, to);
            let what = format!("{to} from {place:?}");
            assert!(answer.starts_with(expected), "{what}: {answer:?}\n{}", self.mesh.sidecar.output());
        }
    }

    fn check(&self) {
        let Addresses { pod, node, inbound_source, .. } = self.addresses;
        let at = SocketAddr::new;
        // In: HTTP, TCP, and HTTP on a port that no service has; the application sees who asks it, of the same family.
        for port in [HTTP, UNKNOWN] {
            self.http(Place::Node, at(pod, port), &format!("/x from {inbound_source}"));
        }
        let local = at(pod, TCP);
        self.tcp(Place::Node, local, &format!("application {local} from {inbound_source}"));
        // Out: HTTP and TCP by a Service, which may choose an endpoint of either family, and to where no service is.
        self.http(Place::Pod, self.other, "/x from ");
        self.tcp(Place::Pod, at(self.other.ip(), TCP), "other ");
        let local = at(node, UNKNOWN);
        self.tcp(Place::Pod, local, &format!("node {local} from {pod}"));
    }
}

/// Applications of the pod and of the node, which end with the mesh.
fn populate(mesh: &mut Mesh) -> [Program; 3] {
    for (place, name, port) in
        [(Place::Pod, "application", TCP), (Place::Node, "other", 9001), (Place::Node, "node", UNKNOWN)]
    {
        mesh.pod.serve_application(place, name, port);
    }
    [(Place::Pod, "web", HTTP), (Place::Pod, "unknown", UNKNOWN), (Place::Node, "other", 8081)]
        .map(|(place, name, port)| mesh.serve_http(place, name, port))
}

/// Calls over every family of the pod.
fn check(mesh: &Mesh, families: &[Addresses]) {
    for addresses in families {
        let other = if addresses.pod.is_ipv4() { "10.96.7.8:80" } else { "[fd00:96::8]:80" };
        let other = other.parse().expect("an address");
        Family { mesh, addresses: *addresses, other }.check();
    }
}

/// Sum of a metric of the sidecar over the lines that have all these labels.
fn counted(text: &str, metric: &str, labels: &[&str]) -> usize {
    let lines = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")));
    let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum()
}

/// All calls of [`check`] are counted, each once.
fn check_counts(mesh: &Mesh, families: usize) {
    let metrics = || mesh.get(Place::Pod, "http://127.0.0.1:15000/stats/prometheus");
    let (inbound, outbound) = ("reporter=\"destination\"", "reporter=\"source\"");
    let (web, other) = ("destination_service_name=\"web\"", "destination_service_name=\"other\"");
    let (requests, opened) = ("istio_requests_total", "istio_tcp_connections_opened_total");
    for (metric, labels) in [
        (requests, &[inbound, web][..]),
        (requests, &[inbound, "destination_service_name=\"InboundPassthroughCluster"]),
        (requests, &[outbound, other]),
        (opened, &[inbound, web]),
        (opened, &[outbound, other]),
        (opened, &[outbound, "destination_service_name=\"PassthroughCluster\""]),
    ] {
        wait::until(&format!("{metric} {labels:?} is {}", families * CALLS), || {
            (counted(&metrics(), metric, labels) == families * CALLS).then_some(())
        });
    }
}

fn serves(families: &[Addresses], yaml: &str) {
    for backend in ["nft", "iptables-nft"] {
        let rules = format!("{RULES} --backend {backend}");
        let setup = Setup { families, mode: "REDIRECT", variables: &[], rules: Some(&rules), yaml };
        let mut mesh = Mesh::start(&setup);
        mesh.wait_ready();
        let _applications = populate(&mut mesh);
        check(&mesh, families);
        check_counts(&mesh, families.len());
    }
}

#[test]
fn ipv4_first() {
    serves(&FAMILIES, YAML);
}

#[test]
fn ipv6_first() {
    serves(&[FAMILIES[1], FAMILIES[0]], YAML);
}

#[test]
fn ipv6_alone() {
    // In such a cluster nobody else has IPv4 either.
    let documents: Vec<&str> =
        YAML.split("---\n").filter(|text| !text.contains("addressType: IPv4")).collect();
    serves(&FAMILIES[1..], &documents.join("---\n"));
}

#[test]
fn a_pod_of_which_one_family_is_not_captured_is_not_ready() {
    let rules = format!("{RULES} --backend iptables-legacy");
    let setup =
        Setup { families: &FAMILIES, mode: "REDIRECT", variables: &[], rules: Some(&rules), yaml: YAML };
    let mesh = Mesh::start_with(&setup, |pod, setup, folder| {
        let removed = pod.command(Place::Pod, "ip6tables-legacy").args(["-t", "nat", "-F"]).status();
        assert!(removed.expect("ip6tables starts").success());
        start_sidecar(pod, setup, folder)
    });
    let unturned = format!("[{}]:15002 was not turned to this sidecar", FAMILIES[1].pod);
    wait::until("the sidecar says which", || mesh.sidecar.output().contains(&unturned).then_some(()));
    assert!(mesh.ready().ends_with(" 503"), "{}", mesh.ready());
    mesh.pod.capture(&rules);
    mesh.wait_ready();
}

#[test]
fn tproxy_serves_both_families() {
    let setup = Setup {
        families: &FAMILIES,
        mode: "TPROXY",
        variables: &[],
        rules: Some("-u 1337 -m TPROXY -d 15090,15021,15020"),
        yaml: YAML,
    };
    let mut mesh = Mesh::start(&setup);
    mesh.wait_ready();
    let _applications = populate(&mut mesh);
    check(&mesh, &FAMILIES);
}

/// Envoy in the place of our sidecar.
fn start_envoy(pod: &Pod, setup: &Setup<'_>, folder: &Path) -> Program {
    let bootstrap = format!(
        "node:
  id: sidecar~{}~web-1.default~default.svc.cluster.local
  cluster: web.default
  metadata: {{NAMESPACE: default, INSTANCE_IPS: \"{}\", INTERCEPTION_MODE: REDIRECT}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 15000}}}}}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]
  cds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
  lds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
static_resources:
  clusters:
{}",
        setup.families[0].pod,
        setup.addresses(),
        xds_cluster(setup.pilot())
    );
    let file = folder.join("envoy.yaml");
    std::fs::write(&file, bootstrap).expect("the test's folder can be written");
    let envoy = process::part("OSIER_TEST_ENVOY");
    let mut command = pod.command(Place::Pod, "setpriv");
    command
        .args(["--regid", &SIDECAR.to_string(), "--clear-groups"])
        .arg(envoy.get_program())
        .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"])
        .arg(&file);
    Program::start("envoy", &mut command, folder)
}

#[test]
fn envoy_serves_as_the_sidecar_does() {
    let setup =
        Setup { families: &FAMILIES, mode: "REDIRECT", variables: &[], rules: Some(RULES), yaml: YAML };
    let mut mesh = Mesh::start_with(&setup, start_envoy);
    let applications = populate(&mut mesh);
    let page = |path: &str| curl(&mesh.pod, Place::Pod, &[&format!("http://127.0.0.1:15000{path}")]);
    wait::until("Envoy listens", || {
        let listeners = page("/listeners");
        ["virtualInbound::[::]:15006", "virtualOutbound::[::]:15001"]
            .iter()
            .all(|line| listeners.contains(line))
            .then_some(())
    });
    check(&mesh, &FAMILIES);
    let rejected = page("/stats?filter=update_rejected");
    assert!(rejected.lines().all(|line| line.ends_with(": 0")) && !rejected.is_empty(), "{rejected}");
    drop(applications);
}
