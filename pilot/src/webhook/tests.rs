//! The webhook as an API server meets it: over its router, and over TLS.

use axum::http::Request as HttpRequest;
use base64::Engine as _;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::certificate::{Current, server_config};
use super::*;
use crate::inject::Values;
use crate::server::serve;

fn webhook() -> Arc<Webhook> {
    let webhook = waiting();
    webhook.set_injector(Injector::default());
    webhook
}

fn waiting() -> Arc<Webhook> {
    Webhook::new("cluster.local".into(), Arc::new(Metrics::new()))
}

fn request(path: &str, content: &str, body: impl Into<Body>) -> HttpRequest<Body> {
    HttpRequest::post(path).header("content-type", content).body(body.into()).unwrap()
}

async fn send(webhook: &Arc<Webhook>, request: HttpRequest<Body>) -> (StatusCode, String) {
    let response = router(webhook.clone()).oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn review(kind: &str, group: &str, object: Value) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "7",
            "kind": {"group": group, "version": "v1", "kind": kind},
            "resource": {"group": group, "version": "v1", "resource": "x"},
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {"username": "u"},
            "object": object,
            "dryRun": false,
        },
    })
    .to_string()
}

async fn answer(webhook: &Arc<Webhook>, path: &str, review: String) -> Value {
    let (status, body) = send(webhook, request(path, "application/json; charset=utf-8", review)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&answer["kind"], &answer["response"]["uid"]), (&json!("AdmissionReview"), &json!("7")));
    answer["response"].clone()
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-", "labels": {"app": "web"}, "unknown": [1]},
        "spec": {
            "containers": [{"name": "app", "image": "a", "someday": {"a": 1.5}}],
            "volumes": [{"name": "kube-api-access-x", "projected": {"sources": []}}],
            "notYet": true,
        },
    })
}

fn patched(mut pod: Value, response: &Value) -> Value {
    assert_eq!(response["patchType"], "JSONPatch");
    let patch =
        base64::engine::general_purpose::STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

#[tokio::test]
async fn a_pod_is_patched_and_keeps_what_we_do_not_know() {
    let webhook = webhook();
    let response = answer(&webhook, "/inject", review("Pod", "", pod())).await;
    let made = patched(pod(), &response);
    assert_eq!(made["spec"]["initContainers"][1]["name"], "istio-proxy");
    assert_eq!(made["spec"]["containers"], pod()["spec"]["containers"]);
    assert_eq!((&made["metadata"]["unknown"], &made["spec"]["notYet"]), (&json!([1]), &json!(true)));
    let env = made["spec"]["initContainers"][1]["env"].as_array().unwrap();
    let owner = env.iter().find(|v| v["name"] == "ISTIO_META_OWNER").unwrap();
    assert_eq!(owner["value"], "kubernetes://apis/v1/namespaces/shop/pods/web");
    let again = answer(&webhook, "/inject", review("Pod", "", made)).await;
    assert_eq!(again, json!({"uid": "7", "allowed": true}), "injecting again changes nothing");
    let text = webhook.metrics.render();
    for line in [
        "sidecar_injection_requests_total 2",
        "sidecar_injection_success_total 2",
        "sidecar_injection_failure_total 0",
        "sidecar_injection_time_seconds_count 2",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
}

#[tokio::test]
async fn the_path_says_where_pods_live() {
    let response = answer(&webhook(), "/inject/cluster/a--slash--b/net/n1", review("Pod", "", pod())).await;
    let made = patched(pod(), &response);
    let env = made["spec"]["initContainers"][1]["env"].as_array().unwrap().clone();
    let value = |name: &str| env.iter().find(|v| v["name"] == name).map(|v| v["value"].clone());
    assert_eq!(value("ISTIO_META_CLUSTER_ID"), Some(json!("a/b")));
    assert_eq!(value("ISTIO_META_NETWORK"), Some(json!("n1")));
    let (status, body) = send(&webhook(), request("/inject/zone/a", "application/json", "{}")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("not \"zone/a\""), "{body}");
}

#[tokio::test]
async fn skipped_and_refused_pods() {
    let webhook = webhook();
    let mut skipped = pod();
    skipped["spec"]["hostNetwork"] = true.into();
    assert_eq!(
        answer(&webhook, "/inject", review("Pod", "", skipped)).await,
        json!({"uid": "7", "allowed": true})
    );
    let mut broken = pod();
    broken["metadata"]["annotations"] = json!({
        "sidecar.istio.io/proxyCPU": "much",
        "status.sidecar.istio.io/port": "x",
        "sidecar.istio.io/agentLogLevel": "x",
    });
    let response = answer(&webhook, "/inject", review("Pod", "", broken)).await;
    assert_eq!(response["allowed"], false);
    assert_eq!(
        response["status"]["message"],
        "status.sidecar.istio.io/port: \"x\" is no port number (0 to 65535); \
         sidecar.istio.io/proxyCPU: \"much\" is no quantity such as 100m or 128Mi"
    );
    let mut warned = pod();
    warned["metadata"]["annotations"] = json!({"sidecar.istio.io/agentLogLevel": "x"});
    let response = answer(&webhook, "/inject", review("Pod", "", warned)).await;
    assert_eq!(response["warnings"].as_array().map(Vec::len), Some(1), "{response}");
    let text = webhook.metrics.render();
    assert!(
        text.contains("sidecar_injection_skip_total 1") && text.contains("sidecar_injection_failure_total 1")
    );
}

#[tokio::test]
async fn another_injector_holds_from_the_next_request_on() {
    let webhook = webhook();
    let values = Values::parse("global: {hub: example.org/osier, tag: '9'}").unwrap();
    webhook.set_injector(Injector { values, revision: "canary".into(), ..Injector::default() });
    let made = patched(pod(), &answer(&webhook, "/inject", review("Pod", "", pod())).await);
    assert_eq!(made["spec"]["initContainers"][1]["image"], "example.org/osier/proxy:9");
    assert_eq!(made["metadata"]["annotations"]["istio.io/rev"], "canary");
    assert!(made.to_string().contains("osier-pilot-canary.osier-system.svc:15012"));
}

#[tokio::test]
async fn pods_are_put_off_until_the_values_are_read() {
    let webhook = waiting();
    let body = review("Pod", "", pod());
    let (status, said) = send(&webhook, request("/inject", "application/json", body.clone())).await;
    assert_eq!(
        (status, said.as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "the injection values have not been read yet\n")
    );
    webhook.set_injector(Injector::default());
    assert_eq!(answer(&webhook, "/inject", body).await["allowed"], true);
}

#[tokio::test]
async fn what_is_no_review_is_told_why() {
    let webhook = webhook();
    let old = r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":null}"#;
    let no_request = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#;
    let service = review("Service", "", json!({}));
    let no_object = review("Pod", "", Value::Null);
    for path in ["/inject", "/validate"] {
        for (content, body, wanted) in [
            ("text/plain", "{}", "the content type must be application/json, not \"text/plain\""),
            ("application/json", "garbage", "the body is no AdmissionReview: expected value at line 1"),
            ("application/json", "", "the body is no AdmissionReview: EOF"),
            ("application/json", old, "must be a AdmissionReview of admission.k8s.io/v1"),
            ("application/json", no_request, "the AdmissionReview has no request"),
        ] {
            let (status, said) = send(&webhook, request(path, content, body.to_owned())).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
            assert!(said.contains(wanted), "{said}");
        }
        let large = vec![b' '; MAX_BODY + 1];
        let (status, _) = send(&webhook, request(path, "application/json", large)).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    }
    for (body, wanted) in [(service, "is about a Service"), (no_object, "has no object")] {
        let (status, said) = send(&webhook, request("/inject", "application/json", body)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(said.contains(wanted), "{said}");
    }
}

#[tokio::test]
async fn resources_are_refused_with_field_and_reason() {
    let webhook = webhook();
    let object = |spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "a", "namespace": "shop"}, "spec": spec});
    let group = "networking.istio.io";
    let wrong =
        object(json!({"hosts": ["a"], "http": [{"redirect": {"uri": "/"}, "timeout": "x"}], "htp": []}));
    let response = answer(&webhook, "/validate", review("VirtualService", group, wrong)).await;
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["message"], "spec.htp: unknown field, did you mean http?");
    let good = object(json!({"hosts": ["a"], "http": [{"redirect": {"uri": "/"}}]}));
    let response = answer(&webhook, "/validate", review("VirtualService", group, good)).await;
    assert_eq!(response["allowed"], true, "{response}");
    let text = webhook.metrics.render();
    assert!(text.contains("galley_validation_failed 1") && text.contains("galley_validation_passed 1"));
}

/// 10 ms are promised of an optimized build; this one isn't, and shares its machine.
#[tokio::test]
async fn an_admission_call_is_quick() {
    let webhook = webhook();
    let body = review("Pod", "", pod());
    let mut times = Vec::new();
    for _ in 0..200 {
        let start = Instant::now();
        let (status, _) = send(&webhook, request("/inject", "application/json", body.clone())).await;
        times.push(start.elapsed());
        assert_eq!(status, StatusCode::OK);
    }
    times.sort();
    let (median, p99) = (times[100], times[198]);
    eprintln!("admission call: median {median:?}, p99 {p99:?}");
    assert!(p99 < Duration::from_millis(100), "{p99:?}");
}

/// A certificate for `localhost`: chain and key, PEM.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// Asks `/httpsReady` over this protocol, trusting just this certificate.
async fn ready_over(protocol: &str, address: std::net::SocketAddr, trusted: &str) -> Result<String, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream =
        connector.connect("localhost".try_into().unwrap(), stream).await.map_err(|e| e.to_string())?;
    let stream = TokioIo::new(stream);
    let request = HttpRequest::get("https://localhost/httpsReady").header("host", "localhost");
    let request = request.body(Body::empty()).unwrap();
    let response = if protocol == "h2" {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        sender.send_request(request).await
    } else {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    let body = response.map_err(|e| e.to_string())?.into_body();
    let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

async fn ready(address: std::net::SocketAddr, trusted: &str) -> Result<String, String> {
    ready_over("http/1.1", address, trusted).await
}

#[tokio::test]
async fn over_tls_with_a_certificate_that_is_swapped() {
    let current = Arc::new(Current::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let config = server_config(current.clone()).unwrap();
    let server = tokio::spawn(serve("webhook", listener, router(webhook()), Some(config), shutdown.clone()));

    let (first, key) = certificate();
    assert!(ready(address, &first).await.is_err(), "there is no certificate yet");
    current.set(first.as_bytes(), key.as_bytes()).unwrap();
    // two that never finish their handshake, one that sends garbage
    let silent = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let mut garbage = TcpStream::connect(address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(ready(address, &first).await.unwrap(), "ready\n");

    assert_eq!(ready_over("h2", address, &first).await.unwrap(), "ready\n", "as API servers speak");

    let (second, second_key) = certificate();
    assert!(current.set(second.as_bytes(), key.as_bytes()).is_err(), "the key of the first");
    assert!(current.set(b"", key.as_bytes()).is_err());
    assert_eq!(ready(address, &first).await.unwrap(), "ready\n", "what can't be used changes nothing");
    current.set(second.as_bytes(), second_key.as_bytes()).unwrap();
    assert_eq!(ready(address, &second).await.unwrap(), "ready\n");
    assert!(ready(address, &first).await.is_err(), "the first is no longer shown");

    drop(silent);
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(20), server).await.unwrap().unwrap();
}
