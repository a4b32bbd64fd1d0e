//! The live table: service, version, share, requests per second, latency, errors and callers, from the sidecars' own metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::{Cell, CellAlignment, Table, presets};

use super::load::Load;
use super::mesh::{Instance, Mesh};
use crate::client::Client;

/// Time between two readings.
const REFRESH: Duration = Duration::from_secs(1);

/// What one version of a service did so far, as its sidecars reported it (reporter `destination`).
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Requests.
    pub requests: f64,
    /// Requests that ended with 5xx or without a response.
    pub errors: f64,
    /// Requests that came by mutual TLS.
    pub encrypted: f64,
    /// Who has proved to be a caller: SPIFFE IDs.
    pub callers: BTreeSet<String>,
    /// Upper bound in milliseconds and how many requests were at or below it.
    pub buckets: Vec<(f64, f64)>,
}

impl Figures {
    /// Adds what one sidecar's `/stats/prometheus` says.
    pub fn add(&mut self, metrics: &str) {
        for line in metrics.lines().filter(|line| line.contains("reporter=\"destination\"")) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            if series.starts_with("istio_requests_total{") {
                self.requests += value;
                if label(series, "connection_security_policy") == Some("mutual_tls") {
                    self.encrypted += value;
                }
                let caller = label(series, "source_principal").filter(|id| id.starts_with("spiffe://"));
                self.callers.extend(caller.map(str::to_owned));
                if label(series, "response_code").is_some_and(|code| code.starts_with('5') || code == "0") {
                    self.errors += value;
                }
            } else if series.starts_with("istio_request_duration_milliseconds_bucket{") {
                let bound = label(series, "le").and_then(|le| le.parse().ok()).unwrap_or(f64::INFINITY);
                match self.buckets.iter_mut().find(|(known, _)| *known == bound) {
                    Some((_, count)) => *count += value,
                    None => self.buckets.push((bound, value)),
                }
            }
        }
        self.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    }

    /// What happened since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let earlier: BTreeMap<u64, f64> =
            before.buckets.iter().map(|(bound, count)| (bound.to_bits(), *count)).collect();
        Self {
            requests: (self.requests - before.requests).max(0.0),
            errors: (self.errors - before.errors).max(0.0),
            encrypted: (self.encrypted - before.encrypted).max(0.0),
            callers: self.callers.clone(),
            buckets: self
                .buckets
                .iter()
                .map(|(bound, count)| (*bound, count - earlier.get(&bound.to_bits()).unwrap_or(&0.0)))
                .collect(),
        }
    }

    /// The quantile in milliseconds, interpolated within its bucket as Prometheus does.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total = self.buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
        let wanted = q * total;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in &self.buckets {
            if *count >= wanted {
                return Some(match bound.is_finite() && count > &below {
                    true => low + (bound - low) * (wanted - below) / (count - below),
                    false => low,
                });
            }
            (low, below) = (*bound, *count);
        }
        None
    }
}

/// Value of a label of a series in Prometheus' text format.
fn label<'a>(series: &'a str, name: &str) -> Option<&'a str> {
    let start = series.find(&format!("{name}=\""))? + name.len() + 2;
    series[start..].split('"').next()
}

/// Reads all sidecars and adds up by service and version.
pub async fn read(
    client: &Client,
    instances: &[Instance],
) -> BTreeMap<(&'static str, &'static str), Figures> {
    let mut all: BTreeMap<_, Figures> = BTreeMap::new();
    for instance in instances {
        let figures = all.entry((instance.service, instance.version)).or_default();
        let host = instance.workload.admin().to_string();
        if let Ok(answer) = client.get(&host, "/stats/prometheus").await {
            figures.add(&answer.body_text());
        }
    }
    all
}

/// Prints the table again and again; ends only with an error.
pub async fn show(mesh: &Mesh, load: &Load) -> Result<()> {
    let client = Client::direct();
    let terminal = std::io::stdout().is_terminal();
    let mut before = read(&client, mesh.instances()).await;
    let mut at = Instant::now();
    loop {
        tokio::time::sleep(REFRESH).await;
        let now = read(&client, mesh.instances()).await;
        let seconds = at.elapsed().as_secs_f64();
        at = Instant::now();
        let table = render(&now, &before, seconds);
        before = now;
        let tally = load.tally.read();
        let mut out = std::io::stdout().lock();
        if terminal {
            write!(out, "\x1b[H\x1b[2J")?;
        }
        writeln!(out, "{table}\n\nfrom outside: {} answered, {} failed\n", tally.succeeded, tally.failed)?;
        writeln!(out, "{}", things_to_try(mesh))?;
        out.flush()?;
    }
}

fn render(
    now: &BTreeMap<(&'static str, &'static str), Figures>,
    before: &BTreeMap<(&'static str, &'static str), Figures>,
    seconds: f64,
) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "SERVICE",
        "VERSION",
        "SHARE",
        "RPS",
        "P50 ms",
        "P99 ms",
        "ERRORS/s",
        "CALLED BY",
    ]);
    let empty = Figures::default();
    let recent: BTreeMap<_, Figures> =
        now.iter().map(|(key, figures)| (*key, figures.since(before.get(key).unwrap_or(&empty)))).collect();
    for ((service, version), figures) in &recent {
        let of_service: f64 = recent.iter().filter(|((s, _), _)| s == service).map(|(_, f)| f.requests).sum();
        let share = if of_service > 0.0 { 100.0 * figures.requests / of_service } else { 0.0 };
        let latency = |q| figures.quantile(q).map_or("-".to_owned(), |ms| format!("{ms:.1}"));
        let mut row = vec![Cell::new(service), Cell::new(version)];
        let numbers = [
            format!("{share:.0} %"),
            format!("{:.0}", figures.requests / seconds),
            latency(0.5),
            latency(0.99),
            format!("{:.0}", figures.errors / seconds),
        ];
        row.extend(numbers.map(|number| Cell::new(number).set_alignment(CellAlignment::Right)));
        row.push(Cell::new(callers(figures)));
        table.add_row(row);
    }
    table
}

/// Service accounts of those who have proved who they are.
fn callers(figures: &Figures) -> String {
    let account = |id: &String| id.rsplit_once("/sa/").map_or(id.clone(), |(_, account)| account.to_owned());
    let known: Vec<String> = figures.callers.iter().map(account).collect();
    if known.is_empty() {
        "nobody known (plaintext)".to_owned()
    } else {
        format!("{} (mTLS)", known.join(", "))
    }
}

fn things_to_try(mesh: &Mesh) -> String {
    let file = mesh.split_file().display().to_string();
    let broken =
        mesh.instances().iter().find(|instance| instance.version == "v2").map_or(0, |instance| instance.port);
    format!(
        "Three things to try in another terminal:
  1. move the split:     sed -i 's/weight: 90/weight: 50/; s/weight: 10/weight: 50/' {file}
  2. break version v2:   curl -X POST 'http://127.0.0.1:{broken}/fail?percent=50'
  3. retry around it:    sed -i 's/^  - route:/  - retries: {{attempts: 3, retryOn: 5xx}}\\n    route:/' {file}
Look into it:  osier proxy-status --pilot-monitoring {monitoring}
               osier proxy-config routes shop --pilot-monitoring {monitoring}
Ctrl-C ends everything.",
        monitoring = mesh.monitoring()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = r#"
istio_requests_total{reporter="destination",response_code="200"} 90
istio_requests_total{reporter="destination",response_code="503",connection_security_policy="mutual_tls",source_principal="spiffe://cluster.local/ns/default/sa/shop"} 10
istio_requests_total{reporter="source",response_code="200"} 5
istio_request_duration_milliseconds_bucket{reporter="destination",le="0.5"} 50
istio_request_duration_milliseconds_bucket{reporter="destination",le="1"} 100
istio_request_duration_milliseconds_bucket{reporter="destination",le="+Inf"} 100
"#;

    #[test]
    fn figures_come_from_the_destination_side() {
        let mut figures = Figures::default();
        figures.add(METRICS);
        assert_eq!((figures.requests, figures.errors), (100.0, 10.0));
        assert_eq!(figures.encrypted, 10.0);
        assert_eq!(callers(&figures), "shop (mTLS)");
        assert_eq!(figures.quantile(0.5), Some(0.5));
        assert_eq!(figures.quantile(0.75), Some(0.75));
        let nothing = figures.since(&figures.clone());
        assert_eq!((nothing.requests, nothing.quantile(0.5)), (0.0, None));
    }
}
