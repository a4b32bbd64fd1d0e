//! `osier mtls` on a cluster: who calls in plaintext, and a namespace that goes to STRICT and back while it is used.

use crate::cluster::Cluster;
use crate::load::{Load, sample};

/// Somebody without a sidecar keeps a namespace from STRICT for as long as he calls; who has one notices nothing of it.
pub fn to_strict_and_back(cluster: &Cluster) {
    let shop = cluster.namespace("shop", true);
    let batch = cluster.namespace("batch", false);
    shop.apply(&sample(cluster, "web", "v1", 2));
    shop.rolled_out("web-v1");
    let load = Load::start(&shop, "load", "web:80", 100);
    let report = Load::start(&batch, "report", "web.shop:80", 10);
    let address = batch.kubectl(&["get", "pod", "report", "--output=jsonpath={.status.podIP}"]);
    let caller = ["shop", "web-v1", "8080", "batch/report (no sidecar)", &address, "now"];

    let listed = cluster.osier(&["mtls", "-n", "shop"]);
    has_row(&listed, &["shop", "web-v1", "2", "PERMISSIVE", "1", "refuse 1 caller"]);
    has_row(&listed, &["shop", "load", "1", "PERMISSIVE", "0", "break nothing that was seen"]);
    has_row(&listed, &caller);
    let refused = refused(cluster, &["mtls", "strict", "shop"]);
    has_row(&refused, &caller);
    assert!(refused.contains("nothing was changed") && refused.contains("--since"), "{refused}");
    let policies = shop.get(&["peerauthentications"]);
    assert_eq!(policies["items"].as_array().map(Vec::len), Some(0), "{policies}");

    batch.kubectl(&["delete", "pod", "report", "--wait"]);
    drop(report);
    let said = goes_through(cluster, &["mtls", "strict", "shop", "--since", "2s"]);
    assert!(said.contains("sidecars of shop refuse plaintext"), "{said}");
    load.more(100);
    load.assert_unharmed("to STRICT");
    has_row(&cluster.osier(&["mtls", "-n", "shop"]), &["shop", "web-v1", "2", "STRICT", "change nothing"]);
    let report = Load::start(&batch, "report", "web.shop:80", 10);
    let counts = report.counts().expect("it has counted");
    assert!(counts.succeeded == 0 && counts.failed > 0, "without a sidecar: {counts:?}");

    cluster.osier(&["mtls", "permissive", "shop"]);
    cluster.until("who has no sidecar is served again", || {
        report.counts().filter(|counts| counts.succeeded > 0)
    });
    load.more(100);
    load.assert_unharmed("back to PERMISSIVE");
}

/// Where mutual TLS was off everybody called in plaintext: those who have a sidecar are given the time to change.
pub fn from_off_to_strict(cluster: &Cluster) {
    let shop = cluster.namespace("off", true);
    shop.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\nspec: {mtls: {mode: DISABLE}}\n",
    );
    shop.apply(&sample(cluster, "web", "v1", 2));
    shop.rolled_out("web-v1");
    let load = Load::start(&shop, "load", "web:80", 100);
    let listed = cluster.osier(&["mtls", "-n", "off"]);
    has_row(&listed, &["off", "web-v1", "2", "DISABLE", "1", "break nothing that was seen"]);
    has_row(&listed, &["off", "web-v1", "8080", "off/load (its sidecar follows)", "now"]);
    let said = cluster.osier(&["mtls", "strict", "off", "--observe", "3s"]);
    for step in ["sidecars of off take both", "sidecars of off refuse plaintext"] {
        assert!(said.contains(step), "{step}: {said}");
    }
    load.more(100);
    load.assert_unharmed("from no mutual TLS to STRICT");
}

/// Runs a command until it does not fail any more; what it prints then.
fn goes_through(cluster: &Cluster, arguments: &[&str]) -> String {
    cluster.until(&format!("osier {} goes through", arguments.join(" ")), || {
        let done = cluster.try_osier(arguments);
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
    })
}

/// Runs a command that must fail; what it says.
fn refused(cluster: &Cluster, arguments: &[&str]) -> String {
    let done = cluster.try_osier(arguments);
    assert!(!done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// Fails unless one line has all of these words.
fn has_row(text: &str, words: &[&str]) {
    assert!(
        text.lines().any(|line| words.iter().all(|word| line.contains(word))),
        "{words:?} in a line of:\n{text}"
    );
}
