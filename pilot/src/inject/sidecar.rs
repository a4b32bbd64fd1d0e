//! The parts of a pod that injection adds: the containers `istio-proxy` and `istio-init`, and volumes, under Istio's names.

use serde_json::{Map, Value, json};

use super::plan::Plan;
use super::proxy_config::InterceptionMode;
use super::{INIT, PROXY};

/// The user and group that the proxy runs as: what they send is not captured.
pub(super) const PROXY_ID: i64 = 1337;

/// `sidecar`: a proxy, captured traffic.
pub(super) fn sidecar(plan: &Plan) -> Value {
    let mut proxy = proxy(plan, "sidecar");
    if plan.native {
        proxy["restartPolicy"] = "Always".into();
    }
    if let Some(lifecycle) = lifecycle(plan) {
        proxy["lifecycle"] = lifecycle;
    }
    let mut spec = spec(plan);
    let mut first: Vec<Value> = init(plan).into_iter().collect();
    match plan.native {
        true => first.push(proxy),
        false => drop(spec.insert("containers".into(), json!([proxy]))),
    }
    if !first.is_empty() {
        spec.insert("initContainers".into(), first.into());
    }
    json!({ "spec": spec })
}

/// `gateway`: the proxy is the application.
pub(super) fn gateway(plan: &Plan) -> Value {
    let mut spec = spec(plan);
    spec.insert("containers".into(), json!([proxy(plan, "gateway")]));
    json!({ "spec": spec })
}

/// Volumes and pull secrets.
fn spec(plan: &Plan) -> Map<String, Value> {
    let mut volumes = vec![
        json!({"name": "istio-data", "emptyDir": {}}),
        json!({"name": "istio-podinfo", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
        ]}}),
        json!({"name": "istio-token", "projected": {"sources": [
            {"serviceAccountToken": {"path": "istio-token", "audience": "istio-ca", "expirationSeconds": 43200}},
        ]}}),
        json!({"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert", "optional": !plan.encrypted()}}),
    ];
    volumes.extend(plan.volumes.iter().cloned());
    let mut spec = Map::from_iter([("volumes".to_owned(), Value::Array(volumes))]);
    let secrets = &plan.values.global.image_pull_secrets;
    if !secrets.is_empty() {
        let secrets = secrets.iter().map(|name| json!({ "name": name })).collect();
        spec.insert("imagePullSecrets".into(), Value::Array(secrets));
    }
    spec
}

fn proxy(plan: &Plan, mode: &str) -> Value {
    let mut mounts = vec![
        json!({"name": "istio-data", "mountPath": "/var/lib/istio/data"}),
        json!({"name": "istio-podinfo", "mountPath": "/etc/istio/pod"}),
        json!({"name": "istio-token", "mountPath": "/var/run/secrets/tokens"}),
        json!({"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"}),
    ];
    mounts.extend(plan.mounts.iter().cloned());
    let mut container = json!({
        "name": PROXY,
        "image": plan.image,
        "args": [mode],
        "ports": [{"name": "http-envoy-prom", "containerPort": 15090, "protocol": "TCP"}],
        "env": environment(plan, mode),
        "resources": plan.resources,
        "securityContext": proxy_security(plan),
        "volumeMounts": mounts,
    });
    pull_policy(&mut container, plan);
    if plan.status_port != 0 {
        let ready = json!({"path": "/healthz/ready", "port": 15021});
        let probe = &plan.readiness;
        container["readinessProbe"] = json!({
            "httpGet": ready,
            "initialDelaySeconds": probe.initial_delay,
            "periodSeconds": probe.period,
            "timeoutSeconds": 3,
            "failureThreshold": probe.failures,
        });
        let startup = &plan.values.global.proxy.startup_probe;
        // of a native sidecar this is what the application waits for
        if startup.enabled || plan.native {
            container["startupProbe"] = json!({
                "httpGet": ready,
                "periodSeconds": 1,
                "timeoutSeconds": 3,
                "failureThreshold": startup.failure_threshold,
            });
        }
    }
    container
}

fn pull_policy(container: &mut Value, plan: &Plan) {
    let policy = &plan.values.global.image_pull_policy;
    if !policy.is_empty() {
        container["imagePullPolicy"] = policy.as_str().into();
    }
}

/// Draining begins before the application is stopped; a proxy that is no native sidecar can hold the application back instead.
fn lifecycle(plan: &Plan) -> Option<Value> {
    let own = &plan.values.global.proxy.lifecycle;
    if !own.is_empty() {
        return Some(Value::Object(own.clone()));
    }
    if plan.status_port == 0 {
        return None;
    }
    if plan.native {
        let port = format!("--debug-port={}", plan.status_port);
        return Some(
            json!({"preStop": {"exec": {"command": ["osier-proxy", "request", port, "POST", "drain"]}}}),
        );
    }
    plan.hold.then(|| json!({"postStart": {"exec": {"command": ["osier-proxy", "wait"]}}}))
}

fn proxy_security(plan: &Plan) -> Value {
    let privileged = plan.values.global.proxy.privileged;
    // a transparent socket needs the capability, and a capability needs root
    let transparent = plan.mode == InterceptionMode::Tproxy;
    let mut capabilities = json!({"drop": ["ALL"]});
    if transparent {
        capabilities["add"] = json!(["NET_ADMIN"]);
    }
    json!({
        "allowPrivilegeEscalation": privileged,
        "capabilities": capabilities,
        "privileged": privileged,
        "readOnlyRootFilesystem": true,
        "runAsGroup": PROXY_ID,
        "runAsNonRoot": !transparent,
        "runAsUser": if transparent { 0 } else { PROXY_ID },
    })
}

fn environment(plan: &Plan, mode: &str) -> Vec<Value> {
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let text = |name: &str, value: &str| json!({"name": name, "value": value});
    let global = &plan.values.global;
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("INSTANCE_IPS", "status.podIPs"),
        field("HOST_IP", "status.hostIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        text("DNS_DOMAIN", &format!("$(POD_NAMESPACE).svc.{}", global.proxy.cluster_domain)),
        text("PROXY_CONFIG", &Value::Object(plan.config.clone()).to_string()),
        text("OSIER_STATE_FILE", "/var/lib/istio/data/names"),
        field("ISTIO_META_NODE_NAME", "spec.nodeName"),
        text("ISTIO_META_CLUSTER_ID", &plan.cluster),
        text("ISTIO_META_WORKLOAD_NAME", &plan.workload.name),
        text("ISTIO_META_OWNER", &plan.workload.owner),
        text("ISTIO_META_MESH_ID", &plan.mesh_id),
    ];
    if plan.encrypted() {
        env.push(text("XDS_ROOT_CA", "/var/run/secrets/istio/root-cert.pem"));
    }
    if mode == "sidecar" {
        env.push(text("ISTIO_META_INTERCEPTION_MODE", plan.mode.text()));
        env.push(text("ISTIO_META_POD_PORTS", &plan.ports.to_string()));
        env.push(text("ISTIO_META_APP_CONTAINERS", &plan.app_containers));
    }
    let optional = [
        ("ISTIO_META_NETWORK", plan.network.as_str()),
        ("OSIER_LOG_LEVEL", &plan.log_level),
        ("OSIER_LOG_JSON", if global.log_as_json { "true" } else { "" }),
    ];
    env.extend(optional.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| text(name, value)));
    for (name, value) in &plan.metadata {
        env.retain(|variable| variable["name"] != name.as_str());
        env.push(text(name, value));
    }
    env
}

/// The init container that captures traffic.
fn init(plan: &Plan) -> Option<Value> {
    if plan.mode == InterceptionMode::None {
        return None;
    }
    let privileged = plan.values.global.proxy.privileged;
    let variable = |(name, value): (&String, &String)| json!({"name": name, "value": value});
    let mut container = json!({
        "name": INIT,
        "image": plan.init_image,
        "args": arguments(plan),
        "resources": plan.resources,
        "securityContext": {
            "allowPrivilegeEscalation": privileged,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "privileged": privileged,
            "readOnlyRootFilesystem": false,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
        },
    });
    if !plan.metadata.is_empty() {
        container["env"] = plan.metadata.iter().map(variable).collect();
    }
    pull_policy(&mut container, plan);
    Some(container)
}

fn arguments(plan: &Plan) -> Vec<String> {
    let captured = &plan.captured;
    // empty lists say something here: nothing is captured
    let mut arguments: Vec<String> =
        ["init", "-p", "15001", "-z", "15006", "-u", "1337", "-m", plan.mode.text()]
            .into_iter()
            .chain(["-i", &captured.include_ip_ranges, "-b", &captured.include_inbound_ports])
            .map(str::to_owned)
            .collect();
    let mut excluded = "15090,15021".to_owned();
    if plan.status_port != 0 {
        excluded.push_str(&format!(",{}", plan.status_port));
    }
    if !captured.exclude_inbound_ports.is_empty() {
        excluded.push_str(&format!(",{}", captured.exclude_inbound_ports));
    }
    for (flag, value) in [
        ("-d", &excluded),
        ("-x", &captured.exclude_ip_ranges),
        ("-q", &captured.include_outbound_ports),
        ("-o", &captured.exclude_outbound_ports),
        ("-k", &captured.virtual_interfaces),
        ("-c", &captured.exclude_interfaces),
    ] {
        if !value.is_empty() {
            arguments.extend([flag.to_owned(), value.clone()]);
        }
    }
    arguments
}
