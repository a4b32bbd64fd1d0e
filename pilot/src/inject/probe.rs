//! The kubelet's probes go to the proxy's status port, which asks the application: the kubelet can't do mutual TLS, and what is
//! captured might answer for an application that is gone. What was asked is told to the proxy in `ISTIO_KUBE_APP_PROBERS`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::pod::{CONTAINER_LISTS, Pod};

/// The variable.
pub(super) const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";

const PROBES: [(&str, &str); 3] =
    [("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz")];
const HOOKS: [(&str, &str); 2] = [("preStop", "prestopz"), ("postStart", "poststartz")];

/// Calls `visit` with each probe and hook of the application, and the path that stands for it.
fn each(pod: &mut Pod, ours: &[&str], mut visit: impl FnMut(&mut Map<String, Value>, String, &Ports)) {
    for list in CONTAINER_LISTS {
        if pod.list(list).is_empty() {
            continue;
        }
        for container in pod.list_mut(list) {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            if ours.contains(&name.as_str()) {
                continue;
            }
            let ports = Ports::of(container);
            for (field, word) in PROBES {
                if let Some(probe) = container.get_mut(field).and_then(Value::as_object_mut) {
                    visit(probe, format!("/app-health/{name}/{word}"), &ports);
                }
            }
            for (field, word) in HOOKS {
                let hook = container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut(field));
                if let Some(hook) = hook.and_then(Value::as_object_mut) {
                    visit(hook, format!("/app-lifecycle/{name}/{word}"), &ports);
                }
            }
        }
    }
}

/// Points probes at the status port. The value of the variable, where there were any.
pub(super) fn rewrite(pod: &mut Pod, status_port: u16, ours: &[&str]) -> Result<Option<String>, String> {
    let mut originals = BTreeMap::new();
    let mut wrong = Vec::new();
    each(pod, ours, |probe, path, ports| {
        let original = original(probe, ports, status_port).unwrap_or_else(|why| {
            wrong.push(format!("the probe for {path}: {why}"));
            None
        });
        if let Some(original) = original {
            let headers = probe.get("httpGet").and_then(|get| get.get("httpHeaders")).cloned();
            let mut get = json!({"path": path, "port": status_port, "scheme": "HTTP"});
            if let Some(headers) = headers {
                get["httpHeaders"] = headers;
            }
            ["httpGet", "tcpSocket", "grpc"].iter().for_each(|kind| drop(probe.remove(*kind)));
            probe.insert("httpGet".into(), get);
            originals.insert(path, original);
        }
    });
    if !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    Ok((!originals.is_empty()).then(|| serde_json::to_string(&originals).unwrap_or_default()))
}

/// What the probe asks, with ports as numbers; `None` where it is to stay as it is. A port that is none would be hidden from the API
/// server, which refuses it.
fn original(probe: &Map<String, Value>, ports: &Ports, status_port: u16) -> Result<Option<Value>, String> {
    let kind = ["httpGet", "tcpSocket", "grpc"]
        .into_iter()
        .find(|kind| probe.get(*kind).is_some_and(Value::is_object));
    let Some(kind) = kind else { return Ok(None) };
    let mut handler = probe[kind].clone();
    // asks somebody else than this pod
    if handler["host"].as_str().is_some_and(|host| !host.is_empty()) {
        return Ok(None);
    }
    let Some(port) = ports.number(&handler["port"]) else { return Ok(None) };
    if port == u64::from(status_port) {
        return Ok(None);
    }
    if !(1..=u64::from(u16::MAX)).contains(&port) {
        return Err(format!("{kind}.port: {port} is no port number (1 to 65535)"));
    }
    handler["port"] = port.into();
    let mut original = Map::from_iter([(kind.to_owned(), handler)]);
    if let Some(timeout) = probe.get("timeoutSeconds") {
        original.insert("timeoutSeconds".into(), timeout.clone());
    }
    Ok(Some(Value::Object(original)))
}

/// Puts back what [`rewrite`] changed, with what it gave.
pub(super) fn restore(pod: &mut Pod, variable: &str) {
    let Ok(originals) = serde_json::from_str::<Map<String, Value>>(variable) else { return };
    each(pod, &[], |probe, path, _| {
        let rewritten = probe.get("httpGet").is_some_and(|get| get["path"] == path.as_str());
        if let Some(Value::Object(original)) = originals.get(&path).filter(|_| rewritten) {
            probe.remove("httpGet");
            let handler = original.iter().filter(|(field, _)| *field != "timeoutSeconds");
            probe.extend(handler.map(|(field, value)| (field.clone(), value.clone())));
        }
    });
}

/// Ports of a container by name.
struct Ports(BTreeMap<String, u64>);

impl Ports {
    fn of(container: &Value) -> Self {
        let ports = container["ports"].as_array().into_iter().flatten();
        Self(
            ports
                .filter_map(|p| Some((p["name"].as_str()?.to_owned(), p["containerPort"].as_u64()?)))
                .collect(),
        )
    }

    fn number(&self, port: &Value) -> Option<u64> {
        port.as_u64().or_else(|| self.0.get(port.as_str()?).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(container: Value) -> Pod {
        Pod::new(json!({"spec": {"containers": [container]}})).unwrap()
    }

    #[test]
    fn there_and_back() {
        let before = pod(json!({
            "name": "app",
            "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"path": "/live", "port": 8080, "scheme": "HTTPS", "httpHeaders": [{"name": "Host", "value": "x"}]}, "timeoutSeconds": 3},
            "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 5},
            "startupProbe": {"grpc": {"port": 9000, "service": "s"}},
            "lifecycle": {"preStop": {"httpGet": {"port": 8080}}, "postStart": {"exec": {"command": ["true"]}}},
        }));
        let mut changed = before.clone();
        let variable = rewrite(&mut changed, 15020, &[]).unwrap().unwrap();
        let wanted = json!({
            "/app-health/app/livez": {"httpGet": {"path": "/live", "port": 8080, "scheme": "HTTPS", "httpHeaders": [{"name": "Host", "value": "x"}]}, "timeoutSeconds": 3},
            "/app-health/app/readyz": {"tcpSocket": {"port": 8080}},
            "/app-health/app/startupz": {"grpc": {"port": 9000, "service": "s"}},
            "/app-lifecycle/app/prestopz": {"httpGet": {"port": 8080}},
        });
        assert_eq!(serde_json::from_str::<Value>(&variable).unwrap(), wanted);
        let container = &changed.list("containers")[0];
        assert_eq!(
            container["livenessProbe"],
            json!({"httpGet": {"path": "/app-health/app/livez", "port": 15020, "scheme": "HTTP", "httpHeaders": [{"name": "Host", "value": "x"}]}, "timeoutSeconds": 3})
        );
        assert_eq!(container["readinessProbe"]["periodSeconds"], 5);
        assert_eq!(container["startupProbe"]["grpc"], Value::Null);
        restore(&mut changed, &variable);
        assert_eq!(changed, before);
    }

    #[test]
    fn named_ports_become_numbers() {
        let mut changed = pod(json!({
            "name": "app",
            "ports": [{"name": "web", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"port": "web"}},
        }));
        let variable = rewrite(&mut changed, 15020, &[]).unwrap().unwrap();
        assert_eq!(variable, r#"{"/app-health/app/livez":{"httpGet":{"port":8080}}}"#);
    }

    #[test]
    fn what_is_left_alone() {
        for probe in [
            json!({"exec": {"command": ["x"]}}),
            json!({"httpGet": {"port": "nobody"}}),
            json!({"httpGet": {"port": 15020, "path": "/app-health/app/livez"}}),
            json!({"httpGet": {"port": 80, "host": "10.0.0.1"}}),
            json!({}),
        ] {
            let before = pod(json!({"name": "app", "livenessProbe": probe}));
            let mut changed = before.clone();
            assert_eq!(rewrite(&mut changed, 15020, &[]), Ok(None));
            assert_eq!(changed, before);
        }
        let mut ours = pod(json!({"name": "app", "livenessProbe": {"httpGet": {"port": 80}}}));
        assert_eq!(rewrite(&mut ours, 15020, &["app"]), Ok(None));
    }

    #[test]
    fn a_port_that_is_none_is_refused() {
        let mut pod = pod(json!({"name": "app", "livenessProbe": {"httpGet": {"port": 999_999}}}));
        assert_eq!(
            rewrite(&mut pod, 15020, &[]).unwrap_err(),
            "the probe for /app-health/app/livez: httpGet.port: 999999 is no port number (1 to 65535)"
        );
    }
}
