//! Command lines and environments, good and bad.

use clap::Parser as _;

use super::*;

fn environment(pairs: &[(&str, &str)]) -> Environment {
    let variables = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Environment { variables, labels_file: "/nonexistent".into() }
}

fn check(words: &[&str], environment: &Environment) -> Result<Settings, String> {
    let raw = Raw::try_parse_from([&["osier-proxy"], words].concat()).map_err(|error| error.to_string())?;
    Settings::check(raw, environment).map_err(|mistakes| mistakes.to_string())
}

const POD: [(&str, &str); 2] = [("POD_NAME", "web-1"), ("INSTANCE_IP", "10.0.0.7")];

#[test]
fn a_file_is_enough() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("envoy.yaml");
    std::fs::write(&file, "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}\n")
        .expect("file");
    let file = file.to_str().expect("path");
    let settings = check(&["--config", file, "--concurrency", "3"], &environment(&[])).expect("settings");
    assert_eq!(settings.admin, Some("127.0.0.1:9901".parse().expect("address")));
    assert_eq!((settings.concurrency, settings.readiness), (3, None));
    assert_eq!(settings.drain, DrainSettings { time: DRAIN_TIME, until_idle: false });
    assert!(!settings.names_policies);
    let other =
        ["--config", file, "--admin-address", "127.0.0.1:1", "--drain-time", "1m", "--name-denying-policy"];
    let settings = check(&other, &environment(&[])).expect("settings");
    assert!(settings.names_policies);
    assert_eq!(settings.admin, Some("127.0.0.1:1".parse().expect("address")));
    assert_eq!(settings.drain.time.as_secs(), 60);
}

#[test]
fn all_mistakes_are_reported_together() {
    let words = [
        "--config",
        "/nonexistent.yaml",
        "--log-level",
        "loud",
        "--drain-time",
        "5",
        "--admin-address",
        "0.0.0.0:1",
    ];
    let text = check(&words, &environment(&[])).expect_err("wrong");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with("/nonexistent.yaml: No such file"), "{text}");
    assert!(lines[1].contains("0.0.0.0:1 is not a loopback address"), "{text}");
    assert!(lines[2].starts_with("--log-level: `loud`"), "{text}");
    assert!(lines[3].starts_with("--drain-time: `5` is not a duration"), "{text}");
}

#[test]
fn dns_is_answered_where_it_is_captured() {
    let dns = |pairs: &[(&str, &str)]| {
        let all = [&POD, &[("POD_NAMESPACE", "shop"), ("DNS_DOMAIN", "shop.svc.mesh.test")], pairs].concat();
        let settings = check(&["sidecar", "--pilot-address", "127.0.0.1:15010"], &environment(&all))?;
        Ok::<_, String>(settings.pod.and_then(|pod| pod.dns))
    };
    assert_eq!(dns(&[]), Ok(None));
    assert_eq!(dns(&[("ISTIO_META_DNS_CAPTURE", "false")]), Ok(None));
    let settings = dns(&[("ISTIO_META_DNS_CAPTURE", "true"), ("DNS_FORWARD_TIMEOUT", "2s")]);
    let settings = settings.expect("settings").expect("captured");
    assert_eq!((&*settings.namespace, &*settings.cluster_domain), ("shop", "mesh.test"));
    assert_eq!((settings.forward_timeout.as_secs(), settings.forward_parallel), (2, false));
    let parallel = r#"{proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true", DNS_FORWARD_PARALLEL: "true"}}"#;
    let settings = dns(&[("PROXY_CONFIG", parallel)]).expect("settings").expect("captured");
    assert_eq!((settings.forward_timeout.as_secs(), settings.forward_parallel), (5, true));
    for (name, value, says) in [
        ("ISTIO_META_DNS_CAPTURE", "maybe", "ISTIO_META_DNS_CAPTURE is neither true nor false"),
        ("DNS_FORWARD_TIMEOUT", "5", "DNS_FORWARD_TIMEOUT: `5` is not a duration like 5s"),
        ("DNS_FORWARD_TIMEOUT", "0s", "DNS_FORWARD_TIMEOUT: `0s` is not a duration like 5s"),
    ] {
        let text = dns(&[(name, value)]).expect_err("wrong");
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn modes_exclude_each_other_and_one_is_needed() {
    assert!(
        check(&[], &environment(&[]))
            .expect_err("none")
            .contains("one of --config FILE, `sidecar` and `gateway`")
    );
    assert!(check(&["--config", "x", "sidecar"], &environment(&[])).is_err());
    assert!(check(&["--concurrency", "0", "--config", "x"], &environment(&[])).is_err());
}

#[test]
fn a_sidecar_is_what_its_environment_says() {
    let folder = tempfile::tempdir().expect("folder");
    let labels_file = folder.path().join("labels");
    std::fs::write(&labels_file, "app=\"web\"\nversion=\"v1\"\nbroken\n").expect("file");
    let mut environment = environment(&[
        ("POD_NAME", "web-1"),
        ("POD_NAMESPACE", "shop"),
        ("INSTANCE_IP", "10.0.0.7"),
        ("SERVICE_ACCOUNT", "web"),
        ("ISTIO_META_WORKLOAD_NAME", "web-v1"),
        ("ISTIO_META_CLUSTER_ID", "east"),
        ("ISTIO_METAJSON_LABELS", r#"{"version": "v2"}"#),
        ("PROXY_CONFIG", "discoveryAddress: pilot.mesh:15010\nconcurrency: 2\nterminationDrainDuration: 7s"),
    ]);
    environment.labels_file = labels_file;
    let settings = check(&["sidecar"], &environment).expect("settings");
    let node = &settings.bootstrap.node;
    assert_eq!(node.id, "sidecar~10.0.0.7~web-1.shop~shop.svc.cluster.local");
    assert_eq!(node.cluster, "web.shop");
    assert_eq!(
        serde_json::Value::Object(node.metadata.clone()),
        serde_json::json!({
            "NAME": "web-1", "NAMESPACE": "shop", "INSTANCE_IPS": "10.0.0.7", "SERVICE_ACCOUNT": "web",
            "WORKLOAD_NAME": "web-v1", "CLUSTER_ID": "east", "LABELS": {
                "app": "web", "version": "v2",
                "service.istio.io/canonical-name": "web", "service.istio.io/canonical-revision": "v2",
            },
        })
    );
    let dynamic = settings.bootstrap.dynamic.as_ref().expect("xDS");
    assert_eq!(dynamic.server.targets, [XdsTarget::Tcp("pilot.mesh".into(), 15010)]);
    assert_eq!((settings.concurrency, settings.drain.time.as_secs()), (2, 7));
    assert_eq!(settings.admin.expect("admin").to_string(), "127.0.0.1:15000");
    assert_eq!(settings.readiness.expect("readiness").to_string(), "[::]:15021");
    let pod = settings.pod.expect("a pod");
    assert_eq!(settings.sidecar.expect("sidecar").interception, Interception::Redirect);
    assert_eq!((pod.addresses, pod.status_port), (vec![[10, 0, 0, 7].into()], Some(15020)));
}

#[test]
fn flags_win_over_proxy_config() {
    let environment = environment(&[
        POD[0],
        POD[1],
        ("ISTIO_META_INTERCEPTION_MODE", "NONE"),
        (
            "PROXY_CONFIG",
            "{discoveryAddress: 'a:1', concurrency: 2, proxyMetadata: {EXIT_ON_ZERO_ACTIVE_CONNECTIONS: 'true'}}",
        ),
    ]);
    let words = ["sidecar", "--pilot-address", "[::1]:15010", "--concurrency", "4"];
    let settings = check(&words, &environment).expect("settings");
    let dynamic = settings.bootstrap.dynamic.as_ref().expect("xDS");
    assert_eq!(dynamic.server.targets, [XdsTarget::Tcp("::1".into(), 15010)]);
    assert_eq!(settings.concurrency, 4);
    assert!(settings.drain.until_idle);
    let sidecar = settings.sidecar.expect("sidecar");
    assert!(sidecar.interception == Interception::None);
    assert_eq!(settings.pod.expect("a pod").status_port, Some(15020));
}

#[test]
fn who_registers_itself_has_no_pod() {
    let environment = environment(&[
        POD[0],
        POD[1],
        ("ISTIO_META_INTERCEPTION_MODE", "NONE"),
        ("ISTIO_META_OSIER_REGISTER", "{}"),
    ]);
    let settings = check(&["sidecar", "--pilot-address", "a:1"], &environment).expect("settings");
    assert!(settings.pod.is_none(), "its machine has other sidecars, and each port once");
    let unasked =
        [POD[0], POD[1], ("ISTIO_META_INTERCEPTION_MODE", "NONE"), ("PROXY_CONFIG", "{statusPort: 0}")];
    let unasked = self::environment(&unasked);
    let settings = check(&["sidecar", "--pilot-address", "a:1"], &unasked).expect("settings");
    assert!(settings.pod.is_none(), "nobody asks here");
}

#[test]
fn a_gateway_is_a_router_that_captures_nothing() {
    let environment = environment(&[POD[0], POD[1], ("ISTIO_META_INTERCEPTION_MODE", "REDIRECT")]);
    let settings = check(&["gateway", "--pilot-address", "a:1"], &environment).expect("settings");
    assert!(settings.gateway && settings.sidecar.is_none());
    assert_eq!(settings.bootstrap.node.id, "router~10.0.0.7~web-1.default~default.svc.cluster.local");
    assert_eq!(settings.pod.expect("a pod").status_port, Some(15020));
    assert_eq!(settings.readiness.expect("readiness").to_string(), "[::]:15021");
    let server = &settings.bootstrap.dynamic.as_ref().expect("xDS").server;
    assert_eq!(server.tls, None);
    let words = ["gateway", "--pilot-address", "a:1", "--pilot-root-file", "root.pem"];
    let settings = check(&words, &environment).expect("settings");
    let tls = settings.bootstrap.dynamic.and_then(|dynamic| dynamic.server.tls).expect("TLS");
    assert_eq!((tls.roots, tls.token), ("root.pem".into(), TOKEN_FILE.into()));
    let text = check(&["gateway", "--state-file", "x"], &environment).expect_err("wrong");
    assert!(text.contains("--state-file"), "{text}");
}

#[test]
fn a_sidecars_mistakes_name_their_variables() {
    let environment = environment(&[
        ("INSTANCE_IP", "localhost"),
        ("ISTIO_METAJSON_LABELS", "{"),
        ("PROXY_CONFIG", "tracing: {}"),
        ("MINIMUM_DRAIN_DURATION", "soon"),
        ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "perhaps"),
        ("ISTIO_META_INTERCEPTION_MODE", "SOMEHOW"),
    ]);
    let text = check(&["sidecar", "--pilot-address", "pilot"], &environment).expect_err("wrong");
    for expected in [
        "PROXY_CONFIG: ",
        "tracing",
        "MINIMUM_DRAIN_DURATION: `soon` is not a duration",
        "EXIT_ON_ZERO_ACTIVE_CONNECTIONS is neither",
        "INSTANCE_IP: `localhost` is not an IP address",
        "POD_NAME is needed",
        "ISTIO_METAJSON_LABELS: ",
        "pilot address `pilot` is not HOST:PORT",
        "ISTIO_META_INTERCEPTION_MODE: `SOMEHOW` is none of",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn addresses_of_pilots() {
    for (text, expected) in [
        ("a.b:1", Ok(XdsTarget::Tcp("a.b".into(), 1))),
        ("unix:/run/x", Ok(XdsTarget::Unix("/run/x".into()))),
        ("a:0", Err(())),
        (":1", Err(())),
        ("a", Err(())),
        ("::1:1", Err(())),
        ("http://a:1", Err(())),
        ("[a]:1", Err(())),
    ] {
        assert_eq!(xds_target(text).map_err(|_| ()), expected, "{text}");
    }
}

#[test]
fn what_injection_says_of_the_application_is_checked() {
    let with = |name: &'static str, text: &'static str| {
        check(&["sidecar", "--pilot-address", "a:1"], &environment(&[POD[0], POD[1], (name, text)]))
    };
    let probers = r#"{"/app-health/web/livez":{"httpGet":{"path":"live","port":8080},"timeoutSeconds":3}}"#;
    let settings = with("ISTIO_KUBE_APP_PROBERS", probers).expect("settings");
    let pod = settings.pod.expect("a pod");
    assert!(pod.probers.get("/app-health/web/livez").is_some());
    let settings =
        with("PROXY_CONFIG", "{statusPort: 0, holdApplicationUntilProxyStarts: true}").expect("settings");
    assert_eq!(settings.pod.expect("a pod").status_port, None);
    for (name, text, expected) in [
        ("ISTIO_KUBE_APP_PROBERS", r#"{"/x":{"tcpSocket":{"port":1}}}"#, "/x stands for no probe"),
        (
            "ISTIO_KUBE_APP_PROBERS",
            r#"{"/app-health/web/livez":{}}"#,
            "exactly one of httpGet, tcpSocket and grpc",
        ),
        (
            "ISTIO_KUBE_APP_PROBERS",
            r#"{"/app-health/web/livez":{"tcpSocket":{"port":"web"}}}"#,
            "invalid type",
        ),
        ("ISTIO_PROMETHEUS_ANNOTATIONS", r#"{"port":"15090"}"#, "port 15090 is the sidecar's own"),
    ] {
        let error = with(name, text).expect_err("wrong");
        assert!(error.starts_with(&format!("{name}: ")) && error.contains(expected), "{error}");
    }
}
