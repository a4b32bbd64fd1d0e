//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use super::place::{LOOPBACK, NODE, NODE_ADDRESS, Place, SERVICES};
use super::program::Programs;
use super::{daemon, kubectl};

/// How long each may take on a machine that is busy with other work.
const PATIENCE: Duration = Duration::from_secs(90);

/// What service accounts of the mesh ask the API server, so that a test can hold it against their roles.
const AUDIT: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    userGroups: [system:serviceaccounts:osier-system]
  - level: None
";
const AUDIT_LOG: &str = "log/audit.log";

/// Starts etcd and the API server and waits until it is ready.
pub fn start_api(place: &Place, programs: &Programs) -> Result<()> {
    let client = format!("http://{LOOPBACK}:2379");
    let peer = format!("http://{LOOPBACK}:2380");
    let arguments = [
        format!("--name={NODE}"),
        format!("--data-dir={}", place.text("etcd")),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster={NODE}={peer}"),
        // The data live as long as the cluster: nothing of them is wanted after a power cut.
        "--unsafe-no-fsync".to_owned(),
    ];
    daemon::start(place, "etcd", &programs.etcd, arguments)?;
    let address: SocketAddr = format!("{LOOPBACK}:2379").parse().context("an address")?;
    daemon::wait(place, "etcd", PATIENCE, || TcpStream::connect(address).is_ok())?;
    place.write("audit.yaml", AUDIT)?;
    daemon::start(place, "kube-apiserver", &place.program("kube-apiserver"), api_arguments(place, &client))?;
    // kubectl takes a tenth of a second to start: not worth it before something listens.
    let address: SocketAddr = format!("{NODE_ADDRESS}:6443").parse().context("an address")?;
    daemon::wait(place, "kube-apiserver", PATIENCE, || TcpStream::connect(address).is_ok())?;
    daemon::wait(place, "kube-apiserver", PATIENCE, || {
        kubectl::output(place, &["get", "--raw=/readyz"]).is_ok()
    })
}

fn api_arguments(place: &Place, etcd: &str) -> Vec<String> {
    let pki = |name: &str| place.text(&format!("pki/{name}"));
    vec![
        format!("--etcd-servers={etcd}"),
        format!("--bind-address={NODE_ADDRESS}"),
        format!("--advertise-address={NODE_ADDRESS}"),
        "--secure-port=6443".to_owned(),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--service-account-key-file={}", pki("service-account.pub")),
        format!("--service-account-signing-key-file={}", pki("service-account.key")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        format!("--audit-policy-file={}", place.text("audit.yaml")),
        format!("--audit-log-path={}", place.text(AUDIT_LOG)),
        "--audit-log-maxbackup=1".to_owned(),
        "--profiling=false".to_owned(),
        "--event-ttl=15m".to_owned(),
        format!("--kubelet-client-certificate={}", pki("apiserver-kubelet-client.crt")),
        format!("--kubelet-client-key={}", pki("apiserver-kubelet-client.key")),
        format!("--kubelet-certificate-authority={}", pki("ca.crt")),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--requestheader-client-ca-file={}", pki("front-proxy-ca.crt")),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        format!("--proxy-client-cert-file={}", pki("front-proxy-client.crt")),
        format!("--proxy-client-key-file={}", pki("front-proxy-client.key")),
    ]
}

/// Starts the controller manager and the scheduler. Neither listens: one that hangs shows in what doesn't happen.
pub fn start_controllers(place: &Place) -> Result<()> {
    let pki = |name: &str| place.text(&format!("pki/{name}"));
    let arguments = [
        format!("--kubeconfig={}", pki("controller-manager.kubeconfig")),
        format!("--root-ca-file={}", pki("ca.crt")),
        format!("--service-account-private-key-file={}", pki("service-account.key")),
        format!("--cluster-signing-cert-file={}", pki("ca.crt")),
        format!("--cluster-signing-key-file={}", pki("ca.key")),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        "--profiling=false".to_owned(),
    ];
    let name = "kube-controller-manager";
    daemon::start(place, name, &place.program(name), arguments)?;
    let arguments = [
        format!("--kubeconfig={}", pki("scheduler.kubeconfig")),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
        "--profiling=false".to_owned(),
    ];
    let name = "kube-scheduler";
    daemon::start(place, name, &place.program(name), arguments)?;
    Ok(())
}
