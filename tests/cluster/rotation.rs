//! The authority of a cluster in time: its own root is renewed, another authority takes over and gives back, and nobody notices.

use std::process::Command;

use osier_tests::family::Family;
use serde_json::json;

use crate::cluster::{Cluster, Namespace};
use crate::load::{Load, sample};

const SYSTEM: &str = "--namespace=osier-system";

/// Certificate and key of an authority.
struct Signs {
    certificate: String,
    key: String,
    root: String,
    /// SHA-256 of the root, as openssl and the metrics of sidecars write it.
    fingerprint: String,
}

/// The steps of docs/security.md from the control plane's own root to one that is plugged in, and back, under load.
pub fn of_the_root_under_load(cluster: &Cluster) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let family = Family::make(folder.path(), "new");
    let namespace = cluster.namespace("rotation", true);
    namespace.apply(&sample(cluster, "web", "v1", 2));
    namespace.rolled_out("web-v1");
    let load = Load::start(&namespace, "load", "web:80", 50);
    renewed(cluster, &family);
    load.more(50);
    let new = Signs {
        certificate: family.text(".crt"),
        key: family.text(".key"),
        root: family.root(),
        fingerprint: family.fingerprint(),
    };
    let own = own(cluster, &family);
    for (from, to) in [(&own, &new), (&new, &own)] {
        let both = format!("{}{}", from.root, to.root);
        plug_in(cluster, from, &both);
        believed(&namespace, 2, from);
        mounted(&namespace, &[from, to]);
        plug_in(cluster, to, &both);
        // Whoever signs next begins in the middle of it.
        cluster.replace_pilot();
        believed(&namespace, 2, to);
        cluster.pilot_rolled_out();
        plug_in(cluster, to, &to.root);
        believed(&namespace, 1, to);
        mounted(&namespace, &[to]);
        load.more(100);
        load.assert_unharmed("a root was added, signs, and the one before is gone");
        // Who comes now is injected, knows the control plane and is known.
        namespace.kubectl(&["rollout", "restart", "deployment/web-v1"]);
        namespace.rolled_out("web-v1");
        load.more(100);
        load.assert_unharmed("new pods");
    }
    cluster.kubectl(&[SYSTEM, "delete", "secret", "cacerts"]);
    load.more(100);
    load.assert_unharmed("all is as it was");
}

fn secret(cluster: &Cluster, name: &str, key: &str) -> String {
    let template = format!("--output=go-template={{{{index .data \"{key}\" | base64decode}}}}");
    cluster.kubectl(&[SYSTEM, "get", "secret", name, &template])
}

/// The root that the control plane has made.
fn own(cluster: &Cluster, openssl: &Family) -> Signs {
    let (root, key) =
        (secret(cluster, "istio-ca-secret", "ca-cert.pem"), secret(cluster, "istio-ca-secret", "ca-key.pem"));
    std::fs::write(openssl.path("own.crt"), &root).expect("the test's folder can be written");
    let fingerprint = openssl.fingerprint_of("own.crt");
    Signs { certificate: root.clone(), key, root, fingerprint }
}

/// Puts an old root of the same key in the place of the control plane's own, and waits for the leader to renew it.
fn renewed(cluster: &Cluster, openssl: &Family) {
    let key = secret(cluster, "istio-ca-secret", "ca-key.pem");
    let write = |name: &str, text: &str| {
        std::fs::write(openssl.path(name), text).expect("the test's folder can be written");
    };
    write("own.key", &key);
    write("index", "");
    write(
        "ca.cnf",
        "[ca]\ndefault_ca=own\n[own]\ndatabase=index\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\npolicy=any\n\
         x509_extensions=root\n[any]\norganizationName=optional\n[root]\nbasicConstraints=critical,CA:TRUE\n\
         keyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n",
    );
    let end = Command::new("date")
        .args(["-u", "-d", "+30 days", "+%Y%m%d%H%M%SZ"])
        .output()
        .expect("date is there");
    let end = String::from_utf8_lossy(&end.stdout).trim().to_owned();
    openssl.openssl("req -new -key own.key -subj /O=cluster.local -out own.csr");
    openssl.openssl(&format!(
        "ca -batch -notext -selfsign -config ca.cnf -keyfile own.key -in own.csr -out old.crt -startdate 20200101000000Z \
         -enddate {end}"
    ));
    let old = std::fs::read_to_string(openssl.path("old.crt")).expect("a certificate");
    let patch = json!({ "stringData": { "ca-cert.pem": old } }).to_string();
    cluster.kubectl(&[SYSTEM, "patch", "secret", "istio-ca-secret", "--patch", &patch]);
    cluster.until("the leader renews the root", || {
        (secret(cluster, "istio-ca-secret", "ca-cert.pem") != old).then_some(())
    });
    assert_eq!(secret(cluster, "istio-ca-secret", "ca-key.pem"), key, "the key stays");
}

fn plug_in(cluster: &Cluster, signs: &Signs, roots: &str) {
    let Signs { certificate, key, .. } = signs;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "cacerts", "namespace": "osier-system" },
        "stringData": {
            "ca-cert.pem": certificate, "ca-key.pem": key, "cert-chain.pem": certificate, "root-cert.pem": roots,
        },
    });
    let done = cluster.feed(&["apply", "--filename=-"], &secret.to_string());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// Waits until every sidecar believes so many roots and has a certificate of this one.
fn believed(namespace: &Namespace<'_>, roots: usize, signs: &Signs) {
    let wanted = [
        format!("osier_mesh_roots{{signing=\"{}\"}} {roots}", signs.fingerprint),
        "osier_certificate_of_signing_root 1".to_owned(),
    ];
    namespace.cluster.until(&format!("every sidecar believes {roots} roots"), || {
        // Anew each time: pods that are going needn't hear of it.
        let pods =
            namespace.kubectl(&["get", "pods", "--field-selector=status.phase=Running", "--output=name"]);
        let believes = |pod: &str| {
            let metrics = namespace.proxy_metrics(pod);
            wanted.iter().all(|wanted| metrics.lines().any(|line| line == wanted))
        };
        pods.lines().all(believes).then_some(())
    });
}

/// Waits until the ConfigMap that pods mount has these roots.
fn mounted(namespace: &Namespace<'_>, signs: &[&Signs]) {
    let text: String = signs.iter().map(|signs| signs.root.replace(['\n', '\r'], "")).collect();
    let plain = |text: &str| text.replace(['\n', '\r'], "");
    namespace.cluster.until("the roots are where pods mount them", || {
        let map = namespace.get(&["configmap", "istio-ca-root-cert"]);
        let found = plain(map["data"]["root-cert.pem"].as_str().unwrap_or_default());
        (found.len() == text.len() && signs.iter().all(|signs| found.contains(&plain(&signs.root))))
            .then_some(())
    });
}
