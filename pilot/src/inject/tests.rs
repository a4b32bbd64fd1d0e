//! Properties of injection, on pods that nobody would write.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use super::*;

/// Anything at all.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z$(){}/:0-9]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((field(), inner), 0..4).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Names that mean something in a pod.
fn field() -> impl Strategy<Value = String> {
    let names = [
        "name",
        "spec",
        "metadata",
        "containers",
        "initContainers",
        "volumes",
        "env",
        "ports",
        "containerPort",
        "image",
        "annotations",
        "labels",
        "livenessProbe",
        "httpGet",
        "port",
        "host",
        "lifecycle",
        "preStop",
        "$patch",
        "imagePullSecrets",
        "value",
    ];
    select(names.to_vec()).prop_map(str::to_owned)
}

fn probe() -> impl Strategy<Value = Value> {
    let port =
        || prop_oneof![Just(json!(80)), Just(json!(15020)), Just(json!("http")), Just(json!("nobody"))];
    prop_oneof![
        (port(), any::<bool>()).prop_map(|(port, host)| {
            let mut get = json!({"path": "/", "port": port});
            if host {
                get["host"] = "10.0.0.1".into();
            }
            json!({"httpGet": get, "timeoutSeconds": 1})
        }),
        port().prop_map(|port| json!({"tcpSocket": {"port": port}})),
        port().prop_map(|port| json!({"grpc": {"port": port}, "periodSeconds": 2})),
        anything(),
    ]
}

fn container() -> impl Strategy<Value = Value> {
    let names = select(vec!["app", "other", PROXY, INIT]);
    let image = prop_oneof![Just("auto"), Just("localhost/app:1")];
    (names, image, probe(), probe(), anything()).prop_map(|(name, image, live, hook, other)| {
        json!({
            "name": name,
            "image": image,
            "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": live,
            "lifecycle": {"preStop": hook},
            "resources": other,
        })
    })
}

/// Containers as Kubernetes has them: no name twice.
fn containers() -> impl Strategy<Value = Vec<Value>> {
    vec(container(), 0..4).prop_map(|mut all| {
        all.sort_by_key(|c| c["name"].to_string());
        all.dedup_by_key(|c| c["name"].clone());
        all
    })
}

fn annotations() -> impl Strategy<Value = Map<String, Value>> {
    let keys: Vec<&str> =
        TABLE.iter().map(|row| row.key).chain(["prometheus.io/port", "prometheus.io/scrape"]).collect();
    let values = select(vec![
        "true",
        "false",
        "",
        "*",
        "0",
        "15020",
        "10.0.0.0/8",
        "80,443",
        "NONE",
        "TPROXY",
        "gateway",
        "sidecar",
        "{}",
        "[]",
        "100m",
        "concurrency: 1",
        r#"{"containers":["app"]}"#,
        r#"{"containers":[{"name":"istio-proxy","image":"auto"}]}"#,
    ]);
    vec((select(keys), values), 0..3)
        .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect())
}

fn pod() -> impl Strategy<Value = Value> {
    (annotations(), containers(), containers(), vec(select(vec!["istio-data", "mine"]), 0..2)).prop_map(
        |(annotations, containers, mut init, volumes)| {
            init.retain(|c| !containers.iter().any(|other| other["name"] == c["name"]));
            let volumes: Vec<Value> =
                volumes.into_iter().map(|name| json!({"name": name, "emptyDir": {}})).collect();
            json!({
                "metadata": {"name": "a", "annotations": annotations},
                "spec": {"containers": containers, "initContainers": init, "volumes": volumes},
            })
        },
    )
}

fn inject(pod: &Value) -> Result<Injected, Refusal> {
    let request = Request { pod: pod.clone(), namespace: "a", made_by: None, cluster: None, network: None };
    Injector::default().inject(request)
}

proptest! {
    #[test]
    fn nothing_panics(pod in anything()) {
        let _ = inject(&pod);
    }

    #[test]
    fn twice_is_once(pod in pod()) {
        if let Ok(Injected { outcome: Ok(once), .. }) = inject(&pod) {
            let twice = inject(&once).expect("what was injected can be injected").outcome;
            prop_assert_eq!(twice, Ok(once));
        }
    }

    #[test]
    fn a_merge_takes_anything((mut base, patch) in (anything(), anything())) {
        merge::merge(&mut base, patch);
    }
}

/// Users and groups by which the kernel's rules know the proxy, wherever a pod may say them.
#[test]
fn who_is_not_captured_is_told() {
    let container = |context: Value| json!([{ "name": "app", "securityContext": context }]);
    for (spec, told) in [
        (json!({ "containers": container(json!({ "runAsUser": 1337 })) }), vec!["runs as user 1337"]),
        (json!({ "containers": container(json!({ "runAsGroup": 1337 })) }), vec!["runs as group 1337"]),
        (json!({ "initContainers": container(json!({ "runAsGroup": 1337 })) }), vec!["runs as group 1337"]),
        (
            json!({ "securityContext": { "runAsUser": 1337, "runAsGroup": 1337 }, "containers": container(Value::Null) }),
            vec!["runs as user 1337", "runs as group 1337"],
        ),
        (
            json!({ "securityContext": { "runAsUser": 1337 }, "containers": container(json!({ "runAsUser": 1 })) }),
            vec![],
        ),
        (
            json!({ "securityContext": { "fsGroup": 1337, "supplementalGroups": [7, 1337] } }),
            vec!["supplementalGroups of the pod has 1337", "fsGroup of the pod has 1337"],
        ),
        (json!({ "securityContext": { "fsGroup": 2000 }, "containers": container(Value::Null) }), vec![]),
    ] {
        let pod = Pod::new(json!({ "metadata": {}, "spec": spec })).expect("a pod");
        let warnings = evasions(&pod);
        assert_eq!(warnings.len(), told.len(), "{warnings:?}");
        assert!(warnings.iter().zip(&told).all(|(warning, text)| warning.contains(text)), "{warnings:?}");
    }
}
