//! Prometheus finds one port on a pod: the proxy's, which answers for the application too. Where the application's metrics are goes
//! to the proxy in `ISTIO_PROMETHEUS_ANNOTATIONS`.

use serde::{Deserialize, Serialize};

use osier_core::sidecar::OWN_PORTS;

use super::pod::Pod;
use super::syntax::Parsed;

/// The variable.
pub(super) const VARIABLE: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";
const PATH: &str = "/stats/prometheus";

/// What the annotations of an application say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Scrape {
    scrape: String,
    path: String,
    port: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    targets: Vec<Target>,
}

/// One place with metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Target {
    port: String,
    path: String,
}

impl Target {
    /// A list of `port:path`, with commas.
    pub(super) fn parse_list(text: &str) -> Parsed<Vec<Self>> {
        let target = |part: &str| {
            let (port, path) = part.split_once(':').unwrap_or((part, "/metrics"));
            match port.parse::<u16>() {
                Ok(number) if OWN_PORTS.contains(&number) => Err(format!("port {number} is the proxy's own")),
                Ok(number) if number > 0 && path.starts_with('/') => {
                    Ok(Self { port: port.to_owned(), path: path.to_owned() })
                }
                _ => Err(format!("{part:?} is not port:/path")),
            }
        };
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(target).collect()
    }
}

/// Points the annotations at the proxy. The value of the variable, where the application has metrics.
pub(super) fn rewrite(
    pod: &mut Pod,
    status_port: u16,
    targets: Vec<Target>,
) -> Result<Option<String>, String> {
    let text = |name| annotation(pod, name).map(|(_, value)| value).unwrap_or_default();
    let scrape = Scrape { scrape: text("scrape"), path: text("path"), port: text("port"), targets };
    if scrape.scrape.parse() == Ok(false) || scrape.port == status_port.to_string() {
        return Ok(None);
    }
    match scrape.port.parse::<u16>() {
        Ok(port) if OWN_PORTS.contains(&port) => {
            return Err(format!("prometheus.io/port: port {port} is the proxy's own"));
        }
        Err(_) | Ok(0) if !scrape.port.is_empty() => {
            return Err(format!("prometheus.io/port: {:?} is no port number (1 to 65535)", scrape.port));
        }
        _ => {}
    }
    for name in ["scrape", "path", "port"] {
        if let Some((key, _)) = annotation(pod, name) {
            pod.remove_annotation(&key);
        }
    }
    pod.set_annotation("prometheus.io/scrape", "true");
    pod.set_annotation("prometheus.io/port", status_port.to_string());
    pod.set_annotation("prometheus.io/path", PATH);
    let told = scrape != Scrape::default();
    Ok(told.then(|| serde_json::to_string(&scrape).unwrap_or_default()))
}

/// Puts back what [`rewrite`] changed, with what it gave.
pub(super) fn restore(pod: &mut Pod, variable: Option<&str>) {
    if pod.annotation("prometheus.io/path") != Some(PATH) {
        return;
    }
    let scrape: Scrape = variable.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    for (key, value) in [("scrape", scrape.scrape), ("port", scrape.port), ("path", scrape.path)] {
        let key = format!("prometheus.io/{key}");
        match value.is_empty() {
            true => drop(pod.remove_annotation(&key)),
            false => pod.set_annotation(&key, value),
        }
    }
}

/// `prometheus.io/<name>`, also with other characters between the words, as Prometheus' relabelling reads it.
fn annotation(pod: &Pod, name: &str) -> Option<(String, String)> {
    let plain = |key: &str| -> String {
        key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
    };
    let wanted = format!("prometheus_io_{name}");
    let found = pod.annotations().find(|(key, _)| plain(key) == wanted);
    found.map(|(key, value)| (key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: Value) -> Pod {
        Pod::new(json!({"metadata": {"annotations": annotations}, "spec": {}})).unwrap()
    }

    #[test]
    fn there_and_back() {
        let rewritten = json!({
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "15020",
            "prometheus.io/path": "/stats/prometheus",
        });
        for (before, variable) in [
            (json!({}), None),
            (
                json!({"prometheus.io/scrape": "true", "prometheus.io/port": "9090"}),
                Some(r#"{"scrape":"true","path":"","port":"9090"}"#),
            ),
            (json!({"prometheus.io/path": "/m"}), Some(r#"{"scrape":"","path":"/m","port":""}"#)),
        ] {
            let mut changed = pod(before.clone());
            assert_eq!(rewrite(&mut changed, 15020, vec![]).unwrap().as_deref(), variable, "{before}");
            assert_eq!(changed, pod(rewritten.clone()), "{before}");
            restore(&mut changed, variable);
            assert_eq!(changed, pod(before));
        }
    }

    #[test]
    fn what_is_left_alone() {
        for annotations in [
            json!({"prometheus.io/scrape": "false", "prometheus.io/port": "80"}),
            json!({"prometheus.io/port": "15020"}),
        ] {
            let mut changed = pod(annotations.clone());
            assert_eq!(rewrite(&mut changed, 15020, vec![]), Ok(None));
            assert_eq!(changed, pod(annotations));
        }
        let mut other_words = pod(json!({"prometheus.io.scrape": "false"}));
        assert_eq!(rewrite(&mut other_words, 15020, vec![]), Ok(None));
        for wrong in ["15090", "http", "0", "70000"] {
            let mut pod = pod(json!({"prometheus.io/port": wrong}));
            assert!(rewrite(&mut pod, 15020, vec![]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn targets() {
        let read = Target::parse_list("8080:/a, 9090").unwrap();
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            r#"[{"port":"8080","path":"/a"},{"port":"9090","path":"/metrics"}]"#
        );
        for (bad, wanted) in [
            ("15020:/x", "port 15020 is the proxy's own"),
            ("a:/x", "\"a:/x\" is not port:/path"),
            ("80:x", "\"80:x\" is not port:/path"),
            ("0:/x", "\"0:/x\" is not port:/path"),
        ] {
            assert_eq!(Target::parse_list(bad).unwrap_err(), wanted);
        }
    }
}
