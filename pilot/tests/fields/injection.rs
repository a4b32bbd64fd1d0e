//! The page about injection: what pods and the mesh can say, made from the tables and types that injection reads.

use std::fmt::Write as _;

use osier_pilot::inject::{PROXY_CONFIG_FIELDS, Support, TABLE, Values};
use osier_pilot::store::schema::mesh::{Loss, SET_ASIDE};

use super::trace::{Use, fields};

const HEAD: &str = "# Injection

What a pod gets and what can be said about it. The same code injects in the webhook of a cluster and in `osier inject -f FILE`.

<!-- Made by `OSIER_UPDATE=1 cargo test -p osier-pilot --test fields`. -->

## Which pods

The webhook is called for pods that the labels of their namespace and their own choose, as in Istio: `istio-injection=enabled` or
`istio.io/rev=<revision>` on the namespace, `sidecar.istio.io/inject` and `istio.io/rev` on the pod. Of these the first line that fits decides:

| pod | injected |
|---|---|
| `spec.hostNetwork: true` | no |
| in kube-system, kube-public, kube-node-lease or local-path-storage | no |
| label (else annotation) `sidecar.istio.io/inject` is `true`, `false` | yes, no |
| selected by one of `neverInjectSelector` | no |
| selected by one of `alwaysInjectSelector` | yes |
| any other | as `global.proxy.autoInject` says |

## What is added

| what | where | note |
|---|---|---|
| container `istio-proxy` | native sidecar (default): in `initContainers`, before the user's, with `restartPolicy: Always`. Else: last of `containers`, first with `holdApplicationUntilProxyStarts` | runs as 1337:1337 without capabilities on a read-only root; as 0:1337 with NET_ADMIN for `TPROXY` |
| container `istio-init` | native: first of `initContainers`. Else: last of them, since those before it run without a proxy | root with NET_ADMIN and NET_RAW; not for `NONE` |
| volumes `istio-data`, `istio-podinfo`, `istio-token`, `istiod-ca-cert` | a volume that the pod has under such a name stays | scratch space; labels and annotations; a token for audience `istio-ca`; the ConfigMap `istio-ca-root-cert`, where there is one |
| labels `service.istio.io/canonical-name`, `service.istio.io/canonical-revision` | unless set | from `app.kubernetes.io/name`, `app`, the workload; `app.kubernetes.io/version`, `version`, `latest` |
| annotations `istio.io/rev`, `sidecar.istio.io/status` | | who injected, and what |
| annotations `kubectl.kubernetes.io/default-container`, `kubectl.kubernetes.io/default-logs-container` | unless set | the first container of the application |
| annotations `prometheus.io/scrape`, `prometheus.io/port`, `prometheus.io/path` | unless the pod says `prometheus.io/scrape: \"false\"` | the proxy's merged metrics; what the pod said goes to `ISTIO_PROMETHEUS_ANNOTATIONS` |
| probes and hooks of the application (`httpGet`, `tcpSocket`, `grpc`) | unless they name a `host`, or a port by a name that the container doesn't have | asked through the status port; what they were goes to `ISTIO_KUBE_APP_PROBERS` |

The label `security.istio.io/tlsMode: istio` tells callers to use mutual TLS; it is set where the sidecar reaches the control plane by TLS, and has a certificate therefore.

Injecting an injected pod replaces what was injected, and changes nothing where that is the same.

A classic Job (`sidecar.istio.io/nativeSidecar: \"false\"`) ends only when something calls `POST localhost:15020/quitquitquit`.

## The user's own `istio-proxy`

A container called `istio-proxy` or `istio-init` in the pod, in either list, is merged over ours by Kubernetes' strategic merge: its fields win. The
image `auto` is ours. What the pod said is kept in the annotation `proxy.istio.io/overrides`.

## Templates

`sidecar` is the default. `gateway` makes a container `istio-proxy` with image `auto` a proxy by itself: no init container, nothing captured.
Others come from the values, `sidecarInjectorWebhook.templates`: each is a part of a pod (`metadata`, `spec`) as YAML text, merged into the pod
by Kubernetes' strategic merge, with `$patch: delete`, `replace` and `merge`. What one says about `istio-proxy` is merged into ours, whichever list it
stands in. Go template actions (`{{ }}`) are refused.

## Variables of the proxy

Injection sets `POD_NAME`, `POD_NAMESPACE`, `INSTANCE_IP`, `INSTANCE_IPS`, `HOST_IP`, `SERVICE_ACCOUNT`, `DNS_DOMAIN`, `PROXY_CONFIG`, `OSIER_STATE_FILE`,
`ISTIO_META_NODE_NAME`, `ISTIO_META_CLUSTER_ID`, `ISTIO_META_WORKLOAD_NAME`, `ISTIO_META_OWNER`, `ISTIO_META_MESH_ID`, `ISTIO_META_INTERCEPTION_MODE`,
`ISTIO_META_POD_PORTS`, `ISTIO_META_APP_CONTAINERS`; where they are needed `ISTIO_META_NETWORK`, `OSIER_LOG_LEVEL`, `OSIER_LOG_JSON`,
`ISTIO_KUBE_APP_PROBERS`, `ISTIO_PROMETHEUS_ANNOTATIONS`; and each pair of `proxyMetadata`, which wins over all of these and is set for `istio-init`, too.
With `ISTIO_META_DNS_CAPTURE: \"true\"` among them the pod's DNS queries come to the sidecar, which answers for hosts of the mesh: [dns.md](dns.md).
";

const ANNOTATIONS: &str = "
## Annotations of pods

*supported*: as noted; a wrong value refuses the pod, with all that is wrong. *without effect*: taken, with a warning. *refused*: refuses the
pod by name. Other annotations below `sidecar.istio.io/`, `traffic.sidecar.istio.io/`, `proxy.istio.io/` and the like are typos: a warning.

| annotation | state | values |
|---|---|---|
";

const CONFIG: &str = "
## Fields of `proxy.istio.io/config`

Over those of `defaultConfig` in the mesh configuration, variable by variable for `proxyMetadata`. Fields that are in no table are refused as
typos. In `defaultConfig` a refused field is set aside with a warning instead, see [fields](istio-fields.md).

| field | state | note |
|---|---|---|
";

const VALUES: &str = "
## Injection values

Key `values` of the ConfigMap `osier-sidecar-injector[-<revision>]`, which the chart writes. Strict: with a field that is in no table the last good
values stay in force.

| field | note |
|---|---|
";

/// Why each value is there, by the end of its path where the name isn't enough.
const VALUE_NOTES: &[(&str, &str)] = &[
    ("global.hub", "default `osier`"),
    ("global.tag", "default: the version of the control plane"),
    ("global.istioNamespace", "default `osier-system`"),
    ("global.meshID", "default: the trust domain"),
    ("global.multiCluster.clusterName", "default `Kubernetes`; the path `/inject/cluster/<name>` wins"),
    ("global.network", "the pod's label `topology.istio.io/network` and the path `/inject/net/<name>` win"),
    ("global.proxy.autoInject", "default `enabled`"),
    ("global.proxy.clusterDomain", "default `cluster.local`"),
    (
        "global.proxy.discoveryAddress",
        "default `osier-pilot[-<revision>].<istioNamespace>.svc:15012`; a sidecar whose control plane is at port 15010 has no certificate, and speaks plaintext",
    ),
    ("global.proxy.image", "a name below `hub`, or a whole reference; default `proxy`"),
    ("global.proxy.lifecycle.<name>", "instead of the drain before the application stops"),
    ("global.proxy.nativeSidecar", "default `true`; Kubernetes has them from 1.29 on"),
    ("global.proxy.resources.<name>", "default: requests 25m and 32Mi, limits 2000m and 1024Mi"),
    ("global.proxy.startupProbe.enabled", "a native sidecar always has one: it holds the application back"),
    ("global.proxy_init.image", "default: the proxy's"),
];

/// The whole page.
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str(ANNOTATIONS);
    for row in TABLE {
        let state = match row.support {
            Support::Supported => "supported",
            Support::NoEffect => "without effect",
            Support::Refused => "refused",
        };
        let _ = writeln!(page, "| `{}` | {state} | {} |", row.key, row.note);
    }
    page.push_str(CONFIG);
    for (field, state, note) in config() {
        let _ = writeln!(page, "| `{field}` | {state} | {note} |");
    }
    page.push_str(VALUES);
    let values = fields::<Values>("");
    let known = |path: &str| values.contains_key(path);
    assert!(
        VALUE_NOTES.iter().all(|(path, _)| known(path)),
        "there are notes about values that there aren't"
    );
    for (path, what) in &values {
        let note = VALUE_NOTES.iter().find(|(noted, _)| noted == path).map_or("", |(_, note)| note);
        let note = if *what == Use::Dropped { "read by the chart" } else { note };
        let _ = writeln!(page, "| `{path}` | {note} |");
    }
    page
}

/// Fields of ProxyConfig with their state in an annotation.
fn config() -> Vec<(&'static str, &'static str, &'static str)> {
    let aside = SET_ASIDE.iter().filter_map(|row| Some((row.field.strip_prefix("defaultConfig.")?, row)));
    let mut rows: Vec<_> = aside
        .map(|(field, row)| match row.loss {
            _ if PROXY_CONFIG_FIELDS.contains(&field) => (field, "supported", ""),
            Loss::Nothing => (field, "without effect", row.why),
            Loss::Something => (field, "refused", row.why),
        })
        .collect();
    for field in PROXY_CONFIG_FIELDS {
        assert!(
            rows.iter().any(|(listed, ..)| listed == field),
            "{field} is no field of the mesh configuration"
        );
    }
    rows.sort_unstable();
    rows
}
