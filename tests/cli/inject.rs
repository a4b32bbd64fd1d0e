//! `osier inject` as a part of a pipe.

use std::io::Write as _;
use std::process::{Output, Stdio};

use osier_tests::process;

const SERVICE: &str = "# to the letter\napiVersion: v1\nkind: Service\nmetadata: {name: web}\n";
const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec: {containers: [{name: app, image: localhost/app:1}]}
";

fn inject(input: &str) -> (Option<i32>, String, String) {
    let mut command = process::own("osier");
    command.args(["inject", "-f", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("osier can be started");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("osier reads it");
    drop(stdin);
    let Output { status, stdout, stderr } = child.wait_with_output().expect("osier ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn yaml_goes_through_a_pipe() {
    let (code, made, said) = inject(&format!("{SERVICE}---\n{DEPLOYMENT}"));
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert!(made.starts_with(&format!("{SERVICE}---\n")), "{made}");
    assert!(made.contains("name: istio-proxy") && made.contains("name: istio-init"), "{made}");
    // once more: nothing changes
    assert_eq!(inject(&made), (Some(0), made, String::new()));
}

#[test]
fn what_is_left_alone_and_what_is_refused_is_said() {
    let host = DEPLOYMENT.replace("{containers", "{hostNetwork: true, containers");
    let (code, made, said) = inject(&host);
    assert_eq!((code, made), (Some(0), host));
    assert_eq!(
        said,
        "osier: Deployment web is not injected: the pod uses the network of its node (hostNetwork)\n"
    );
    let broken = DEPLOYMENT.replace(
        "    spec:",
        "    metadata: {annotations: {sidecar.istio.io/bootstrapOverride: mine}}\n    spec:",
    );
    let (code, made, said) = inject(&broken);
    assert_eq!((code, made.as_str()), (Some(1), ""));
    assert_eq!(
        said,
        "osier: standard input: Deployment web (line 1): sidecar.istio.io/bootstrapOverride: is not supported: a sidecar has no bootstrap file\n"
    );
}
