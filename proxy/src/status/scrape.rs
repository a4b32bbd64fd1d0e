//! One page of metrics for the pod: the sidecar's and those of the application (`ISTIO_PROMETHEUS_ANNOTATIONS`), in Prometheus' text
//! format. A part that can't be had is left out and counted; the page is there all the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use osier_core::admin::Reply;
use osier_core::sidecar::OWN_PORTS;
use prometheus::TextEncoder;
use prometheus::proto::{LabelPair, MetricFamily, MetricType};
use serde::Deserialize;

use super::client::{self, Ask, Bound};
use crate::admin::Admin;
use crate::telemetry::collector::{counter, family};

/// Of one application's metrics.
const MOST_BODY: usize = 10 << 20;
/// Where Prometheus doesn't say how long it waits: its own default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_HEADER: &str = "x-prometheus-scrape-timeout-seconds";
/// So that applications that know other formats speak this one.
const ACCEPT: &str = "text/plain;version=0.0.4;q=1,*/*;q=0.1";

/// Where the application's metrics are, and how asking for them went.
#[derive(Debug, Default)]
pub struct Scrape {
    targets: Vec<Target>,
    scrapes: AtomicU64,
    failures: AtomicU64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    port: u16,
    path: String,
}

/// The pod's original annotations.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Raw {
    scrape: String,
    path: String,
    port: String,
    targets: Vec<RawTarget>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawTarget {
    port: String,
    path: String,
}

impl Scrape {
    /// Reads the variable, for a pod with this status port.
    pub fn parse(text: &str, status_port: u16) -> Result<Self, String> {
        let raw: Raw = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if raw.scrape == "false" {
            return Ok(Self::default());
        }
        let check = |port: &str, path: &str| {
            let port = match port {
                "" => 80,
                text => text
                    .parse()
                    .ok()
                    .filter(|port| *port > 0)
                    .ok_or_else(|| format!("`{text}` is not a port"))?,
            };
            // The sidecar would ask itself.
            if OWN_PORTS.contains(&port) || port == status_port {
                return Err(format!("port {port} is the sidecar's own"));
            }
            let path = if path.is_empty() { "/metrics" } else { path };
            Ok(Target { port, path: format!("/{}", path.trim_start_matches('/')) })
        };
        let mut targets = Vec::new();
        // A list stands for itself; a port beside it is one more place.
        if raw.targets.is_empty() || !raw.port.is_empty() {
            targets.push(check(&raw.port, &raw.path)?);
        }
        for target in &raw.targets {
            let target = check(&target.port, &target.path)?;
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        Ok(Self { targets, ..Self::default() })
    }

    /// The page, with `more` of the sidecar's own; `headers` are those of whoever scrapes.
    pub async fn page(&self, admin: &Admin, headers: &HeaderMap, more: Vec<MetricFamily>) -> Reply {
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        let limit = headers.get(TIMEOUT_HEADER).and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
        let limit = limit.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let limit = limit.unwrap_or(DEFAULT_TIMEOUT);
        let asked = join_all(self.targets.iter().map(|target| target.ask(headers, limit))).await;
        let mut applications = String::new();
        for (target, answer) in self.targets.iter().zip(asked) {
            match answer {
                Ok(text) => applications += &text,
                Err(error) => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(port = target.port, path = %target.path, %error, "no metrics of the application");
                }
            }
        }
        match self.own(admin, more) {
            Ok(own) => {
                Reply { content_type: "text/plain; version=0.0.4", ..Reply::text(own + &applications) }
            }
            Err(error) => Reply::status(http::StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn own(&self, admin: &Admin, more: Vec<MetricFamily>) -> prometheus::Result<String> {
        let mut families = admin.families();
        families.extend(more);
        // Applications have figures of their process under the usual names, too.
        for family in families.iter_mut().filter(|family| family.name().starts_with("process_")) {
            family.set_name(format!("istio_agent_{}", family.name()));
        }
        let failures = {
            let mut metric = counter(self.failures.load(Ordering::Relaxed));
            let mut label = LabelPair::default();
            label.set_name("type".to_owned());
            label.set_value("application".to_owned());
            metric.set_label(vec![label]);
            metric
        };
        let scrapes = counter(self.scrapes.load(Ordering::Relaxed));
        for (name, help, metric) in [
            ("istio_agent_scrapes_total", "Scrapes of this page.", scrapes),
            ("istio_agent_scrape_failures_total", "Scrapes without the application's part.", failures),
        ] {
            families.push(family(name, help, MetricType::COUNTER, vec![metric]));
        }
        TextEncoder::new().encode_to_string(&families)
    }
}

impl Target {
    async fn ask(&self, headers: &HeaderMap, limit: Duration) -> Result<String, String> {
        let asked = async {
            // By localhost, where metrics often are for nobody else.
            let mut failed = String::new();
            for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
                match self.ask_at(SocketAddr::new(address, self.port), headers).await {
                    Err(client::ClientError::Connect(to, error)) => {
                        failed = format!("{failed}cannot connect to {to}: {error}; ");
                    }
                    other => return other.map_err(|error| error.to_string()).and_then(text),
                }
            }
            Err(failed.trim_end_matches("; ").to_owned())
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(asked) => asked,
            Err(_) => Err(format!("no answer within {limit:?}")),
        }
    }

    async fn ask_at(
        &self,
        address: SocketAddr,
        headers: &HeaderMap,
    ) -> Result<http::Response<bytes::Bytes>, client::ClientError> {
        let uri: Uri = format!("http://localhost:{}{}", self.port, self.path).parse().unwrap_or_default();
        let mut own = HeaderMap::new();
        own.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
        let timeout = header::HeaderName::from_static(TIMEOUT_HEADER);
        for name in [header::USER_AGENT, timeout] {
            if let Some(value) = headers.get(&name) {
                own.insert(name, value.clone());
            }
        }
        let ask = Ask { method: &Method::GET, address, source: None, uri: &uri, headers: own };
        client::send(ask, Bound::Refuse(MOST_BODY)).await
    }
}

/// The metrics of an answer, in the text format.
fn text(response: http::Response<bytes::Bytes>) -> Result<String, String> {
    if response.status() != http::StatusCode::OK {
        return Err(format!("status {}", response.status().as_u16()));
    }
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_open = kind.is_some_and(|kind| kind.starts_with("application/openmetrics-text"));
    let body = String::from_utf8(response.into_body().to_vec()).map_err(|_| "not text".to_owned())?;
    Ok(if is_open { from_openmetrics(&body) } else { ended(body) })
}

/// With an end of its last line, so that something can follow.
fn ended(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// What the text format has of OpenMetrics: no end marker, no units, no exemplars, times in milliseconds, fewer types.
fn from_openmetrics(body: &str) -> String {
    let mut out = String::with_capacity(body.len());
    for line in body.lines() {
        if line == "# EOF" || line.starts_with("# UNIT ") {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.rsplit_once(' ').unwrap_or((rest, ""));
            let kind = match kind {
                "unknown" => "untyped",
                "info" | "stateset" | "gaugehistogram" => "gauge",
                other => other,
            };
            // A counter's family lacks the `_total` that its samples have.
            let suffix = if kind == "counter" && !name.ends_with("_total") { "_total" } else { "" };
            out += &format!("# TYPE {name}{suffix} {kind}\n");
        } else if line.starts_with('#') {
            out += &format!("{line}\n");
        } else {
            out += &sample(line);
        }
    }
    out
}

/// `name{labels} value [timestamp] [# exemplar]`.
fn sample(line: &str) -> String {
    let labels_end = labels_end(line);
    let (head, rest) = line.split_at(labels_end);
    let values = rest.split_once(" # ").map_or(rest, |(values, _)| values);
    let mut words = values.split_whitespace();
    let value = words.next().unwrap_or_default();
    match words.next().and_then(|time| time.parse::<f64>().ok()) {
        Some(seconds) => format!("{head} {value} {}\n", (seconds * 1000.0) as i64),
        None => format!("{head} {value}\n"),
    }
}

/// Where name and labels end; a label's value may hold anything, quoted.
fn labels_end(line: &str) -> usize {
    let Some(open) = line.find(['{', ' ']).filter(|at| line.as_bytes().get(*at) == Some(&b'{')) else {
        return line.find(' ').unwrap_or(line.len());
    };
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate().skip(open) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return at + 1,
            _ => {}
        }
    }
    line.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_say_where() {
        let targets = |text: &str| Scrape::parse(text, 15020).map(|scrape| scrape.targets);
        let target = |port, path: &str| Target { port, path: path.to_owned() };
        assert_eq!(targets(r#"{"scrape":"true"}"#), Ok(vec![target(80, "/metrics")]));
        assert_eq!(targets(r#"{"scrape":"","path":"m","port":"9090"}"#), Ok(vec![target(9090, "/m")]));
        assert_eq!(targets(r#"{"scrape":"false","port":"9090"}"#), Ok(vec![]));
        let list = r#"{"scrape":"true","targets":[{"port":"1","path":"/a"},{"port":"2","path":"/b"},{"port":"1","path":"/a"}]}"#;
        assert_eq!(targets(list), Ok(vec![target(1, "/a"), target(2, "/b")]));
        assert_eq!(targets(r#"{"port":"15020"}"#), Err("port 15020 is the sidecar's own".to_owned()));
        assert!(Scrape::parse(r#"{"port":"8000"}"#, 8000).is_err());
        assert_eq!(targets(r#"{"port":"http"}"#), Err("`http` is not a port".to_owned()));
        assert!(targets("{").is_err());
    }

    #[test]
    fn openmetrics_becomes_text() {
        let open = "# HELP a_seconds What.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds
a_seconds_total{x=\"} # \\\" \"} 1.5 1520879607.789 # {id=\"1\"} 0.67\na_seconds_created 1\n# TYPE b unknown\nb 2\n# EOF\n";
        let text = "# HELP a_seconds What.\n# TYPE a_seconds_total counter
a_seconds_total{x=\"} # \\\" \"} 1.5 1520879607789\na_seconds_created 1\n# TYPE b untyped\nb 2\n";
        assert_eq!(from_openmetrics(open), text);
        assert_eq!((ended("a 1".into()), ended(String::new())), ("a 1\n".into(), String::new()));
    }
}
