//! Who may call whom on a cluster, by certificates that every pod gets for its service account.

use crate::cluster::Cluster;
use crate::load::{Load, sample};

const ONLY_OWN: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: own}
spec: {rules: [{from: [{source: {namespaces: [vault]}}]}]}
";

/// A namespace that takes mutual TLS only, and callers of its own only: who has no sidecar, or is of another namespace, gets nothing.
/// A control plane that is replaced meanwhile changes nothing of that, for whoever has called before and for who calls for the first time.
pub fn a_namespace_of_its_own(cluster: &Cluster) {
    let vault = cluster.namespace("vault", true);
    vault.apply(&sample(cluster, "web", "v1", 2));
    vault.apply(ONLY_OWN);
    vault.rolled_out("web-v1");
    let own = Load::start(&vault, "own", "web:80", 50);
    cluster.replace_pilot();
    let (plain, meshed) = (cluster.namespace("no-mesh", false), cluster.namespace("meshed", true));
    let outside = Load::start(&plain, "outside", "web.vault:80", 10);
    let elsewhere = Load::start(&meshed, "elsewhere", "web.vault:80", 10);
    cluster.pilot_rolled_out();
    own.more(200);
    own.assert_unharmed("callers of its own");
    for (who, load, says) in [("outside", outside, ""), ("elsewhere", elsewhere, "RBAC: access denied")] {
        let counts = load.counts().expect("it has counted");
        assert_eq!(counts.succeeded, 0, "{who}: {counts:?}");
        let said = counts.first_failure.clone().unwrap_or_default();
        assert!(said.contains(says), "{who}: {counts:?}");
    }
    let pods =
        vault.kubectl(&["get", "pods", "-l", "app=web", "--output=jsonpath={.items[*].metadata.name}"]);
    let metrics: String = pods.split_whitespace().map(|pod| vault.proxy_metrics(pod)).collect();
    let served =
        |line: &&str| line.starts_with("istio_requests_total{") && line.contains("response_code=\"200\"");
    let good: Vec<&str> = metrics.lines().filter(served).collect();
    let own_name = "source_principal=\"spiffe://cluster.local/ns/vault/sa/default\"";
    let proved =
        |line: &&&str| line.contains(own_name) && line.contains("connection_security_policy=\"mutual_tls\"");
    assert!(!good.is_empty() && good.iter().filter(proved).count() == good.len(), "{good:#?}");
}
