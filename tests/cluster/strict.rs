//! STRICT for the whole mesh: each way to a workload takes mutual TLS, who has none gets nothing, and what can't have any goes on:
//! the kubelet's probes, and scrapes.

use osier_tests::walkthrough::page::{self, Step};

use crate::cluster::{Cluster, Namespace};
use crate::load::{ask, image, sample};

const EVERYBODY: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: everybody}
spec: {mtls: {mode: STRICT}}
";

/// Puts STRICT in force for everybody, by the root namespace, until that is dropped.
fn strict(cluster: &Cluster) -> Namespace<'_> {
    let name = "istio-system";
    // The one of a check before may be on its way.
    cluster.until("the root namespace can be made", || {
        cluster.try_kubectl(&["create", "namespace", name]).status.success().then_some(())
    });
    let root = Namespace { cluster, name };
    root.apply(EVERYBODY);
    root
}

/// A StatefulSet under its headless Service, a Service of all its pods, and one of its first pod alone. What it answers at `/` is a
/// metric in Prometheus' format, which its sidecar hands on.
fn stateful(cluster: &Cluster) -> String {
    let image = image(cluster);
    format!(
        "apiVersion: v1
kind: ServiceAccount
metadata: {{name: web}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: web}}
spec:
  serviceName: web
  replicas: 2
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata:
      labels: {{app: web}}
      annotations: {{prometheus.io/scrape: 'true', prometheus.io/port: '8080'}}
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 5
      containers:
      - name: app
        image: {image}
        args: [internal, sample, --name, web, --version, '1', --listen, 0.0.0.0, --port, '8080']
        ports: [{{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
        livenessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
        resources: {{requests: {{cpu: 1m, memory: 8Mi}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{clusterIP: None, selector: {{app: web}}, ports: [{{name: http, port: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: all}}
spec: {{selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: first}}
spec:
  selector: {{statefulset.kubernetes.io/pod-name: web-0}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"
    )
}

/// Pods of a StatefulSet by their own names, by a Service, and by themselves.
pub fn the_whole_mesh(cluster: &Cluster) {
    let _strict = strict(cluster);
    let (meshed, plain) = (cluster.namespace("strict", true), cluster.namespace("strict-outside", false));
    meshed.apply(&stateful(cluster));
    meshed.apply(&sample(cluster, "client", "v1", 1));
    plain.apply(&sample(cluster, "client", "v1", 1));
    // Nobody is ready but by a probe that came through.
    meshed.kubectl(&["rollout", "status", "statefulset/web", "--timeout=120s"]);
    meshed.rolled_out("client-v1");
    plain.rolled_out("client-v1");
    refuse_plaintext(&meshed);

    for (from, to) in [
        ("deployment/client-v1", "web-0.web:8080"),
        ("deployment/client-v1", "web-1.web:8080"),
        ("deployment/client-v1", "all:80"),
        ("web-0", "web-1.web:8080"),
        ("web-1", "web-0.web:8080"),
        ("web-0", "first:80"),
    ] {
        let counts = ask(&meshed, from, to);
        assert!(counts.succeeded > 0 && counts.failed == 0, "{from} to {to}: {counts:?}");
    }
    let address = meshed.kubectl(&["get", "pod", "web-0", "--output=jsonpath={.status.podIP}"]);
    for to in ["web-0.web.strict:8080", "all.strict:80", "first.strict:80", &format!("{address}:8080")] {
        let counts = ask(&plain, "deployment/client-v1", to);
        assert!(counts.succeeded == 0 && counts.failed > 0, "from outside to {to}: {counts:?}");
    }
    for pod in ["web-0", "web-1"] {
        let scraped = scrape(&meshed, pod);
        assert!(scraped.lines().any(|line| line == "web 1"), "the application's own metrics: {scraped}");
        proved(&scraped, "istio_requests_total", "strict", &["default", "web"], "web");
    }
    // Who calls itself is seen as itself, by a Service that nobody else stands behind.
    let own = scrape(&meshed, "web-0");
    let itself = |line: &&str| {
        line.contains("reporter=\"source\"")
            && line.contains("destination_service=\"first.strict.svc.cluster.local\"")
    };
    assert!(own.lines().any(|line| itself(&line)), "{own}");
    let pods = meshed.get(&["pods", "--selector=app=web"]);
    for pod in pods["items"].as_array().expect("a list") {
        for container in pod["status"]["containerStatuses"].as_array().expect("a list") {
            assert_eq!(
                (&container["ready"], &container["restartCount"]),
                (&true.into(), &0.into()),
                "{container}"
            );
        }
    }
}

/// The guestbook of the walkthrough, used by a client in the mesh: web and redis speak mutual TLS all the way.
pub fn guestbook(cluster: &Cluster) {
    let _strict = strict(cluster);
    let meshed = cluster.namespace("strict-guestbook", true);
    let plain = cluster.namespace("strict-visitor", false);
    guestbook_of_the_walkthrough(cluster).iter().for_each(|manifests| meshed.apply(manifests));
    let curl = format!("{}/curl:1", cluster.hub(WALKTHROUGHS));
    for namespace in [&meshed, &plain] {
        namespace.kubectl(&["run", "visitor", "--image", &curl, "--command", "--", "sleep", "1000"]);
        namespace.kubectl(&["wait", "--for=condition=Ready", "pod/visitor", "--timeout=120s"]);
    }
    ["redis-leader", "redis-follower", "frontend"].iter().for_each(|name| meshed.rolled_out(name));
    refuse_plaintext(&meshed);

    let curl = |namespace: &Namespace<'_>, words: &[&str]| {
        let curl = ["exec", "visitor", "--", "curl", "-sS", "-m", "10"];
        let said = namespace.try_kubectl(&[&curl, words].concat());
        (said.status.success(), String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned())
    };
    let page = "http://frontend.strict-guestbook/";
    // A follower is one once it has come to its leader.
    cluster.until("what was written is read", || {
        let written =
            curl(&meshed, &["-d", "entry=by mutual TLS", "-o", "/dev/null", "-w", "%{http_code}", page]);
        assert_eq!(written, (true, "303".to_owned()));
        curl(&meshed, &[page]).1.contains("<li>by mutual TLS</li>").then_some(())
    });
    let (answered, said) = curl(&plain, &[page]);
    assert!(!answered, "{said}");
    let pod = |selector: &str| {
        meshed.kubectl(&["get", "pods", "-l", selector, "--output=jsonpath={.items[0].metadata.name}"])
    };
    let of = |selector: &str| scrape(&meshed, &pod(selector));
    let (frontend, leader, follower) = (of("tier=frontend"), of("role=leader"), of("role=follower"));
    for (scraped, metric) in [
        (&frontend, "istio_requests_total"),
        (&leader, "istio_tcp_connections_opened_total"),
        (&follower, "istio_tcp_connections_opened_total"),
    ] {
        proved(scraped, metric, "strict-guestbook", &["default"], "default");
    }
}

/// Where the images of walkthroughs are in their pages.
const WALKTHROUGHS: &str = "localhost/osier-walkthrough";

/// What the page applies; one pod of each kind is enough.
fn guestbook_of_the_walkthrough(cluster: &Cluster) -> Vec<String> {
    let page = include_str!("../../docs/walkthroughs/guestbook.md");
    let steps = page::steps(page, true).expect("the page can be read");
    let applied = steps.iter().filter_map(|step| match step {
        Step::Run { command, .. } => {
            command.strip_prefix("kubectl apply -f - <<'EOF'\n")?.strip_suffix("\nEOF").map(str::to_owned)
        }
        Step::Browse { .. } => None,
    });
    let here = |text: String| {
        let text = text.replace(WALKTHROUGHS, cluster.hub(WALKTHROUGHS));
        text.replace("replicas: 2", "replicas: 1").replace("replicas: 3", "replicas: 1")
    };
    applied.map(here).collect()
}

/// Waits until every sidecar says that it takes no plaintext.
fn refuse_plaintext(namespace: &Namespace<'_>) {
    let pods = namespace.kubectl(&["get", "pods", "--output=name"]);
    for pod in pods.lines() {
        namespace.cluster.until(&format!("{pod} takes no plaintext"), || {
            let page = namespace.proxy_page(pod, "plaintext_callers");
            let page: serde_json::Value = serde_json::from_str(&page).ok()?;
            (page["takes_plaintext"] == false).then_some(())
        });
    }
}

/// What a Prometheus without a sidecar gets: the API server asks where the pod's annotations say.
fn scrape(namespace: &Namespace<'_>, pod: &str) -> String {
    let found = namespace.get(&["pod", pod]);
    let said = |key: &str| found["metadata"]["annotations"][key].as_str().unwrap_or_default().to_owned();
    assert_eq!(said("prometheus.io/scrape"), "true", "{found}");
    let (port, path) = (said("prometheus.io/port"), said("prometheus.io/path"));
    namespace.kubectl(&[
        "get",
        "--raw",
        &format!("/api/v1/namespaces/{}/pods/{pod}:{port}/proxy{path}", namespace.name),
    ])
}

/// Fails unless all that a sidecar of `namespace` has taken came to `own` by mutual TLS, from each of `callers` and nobody else:
/// service accounts.
fn proved(scraped: &str, metric: &str, namespace: &str, callers: &[&str], own: &str) {
    let start = format!("{metric}{{");
    let taken = |line: &&str| line.starts_with(&start) && line.contains("reporter=\"destination\"");
    let taken: Vec<&str> = scraped.lines().filter(taken).collect();
    let name = |of: &str, account: &str| {
        format!("{of}_principal=\"spiffe://cluster.local/ns/{namespace}/sa/{account}\"")
    };
    let (own, callers) = (name("destination", own), callers.iter().map(|account| name("source", account)));
    let callers: Vec<String> = callers.collect();
    let secured = |line: &&str| {
        line.contains("connection_security_policy=\"mutual_tls\"")
            && line.contains(&own)
            && callers.iter().any(|caller| line.contains(caller))
    };
    assert!(taken.iter().all(secured), "{taken:#?}");
    assert!(callers.iter().all(|caller| taken.iter().any(|line| line.contains(caller))), "{taken:#?}");
}
