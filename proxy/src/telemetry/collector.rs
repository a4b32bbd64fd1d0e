//! What the workers counted, merged and shown to Prometheus.
//!
//! Merging happens at a scrape, on the housekeeping thread. A series that no worker has touched for [`IDLE`] is forgotten,
//! so that endpoint and peer churn doesn't grow the memory for ever; Prometheus takes a later start from zero for a restart.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Histogram as ProtoHistogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::labels::{LabelSet, NAMES};
use super::metrics::{BUCKETS, Histogram, Outcome, Requests, Shard, UNKNOWN_STATUS};
use super::record::Flags;
use crate::http::peer_metadata::Peer;

/// A series without change is kept so long.
pub const IDLE: Duration = Duration::from_secs(30 * 60);

/// The shards of all workers, as one collector.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    own: Arc<Peer>,
    shards: Mutex<Vec<Arc<Shard>>>,
    seen: Mutex<Seen>,
}

/// Counts at earlier scrapes, to find what is idle.
#[derive(Debug, Default)]
struct Seen {
    requests: HashMap<(LabelSet, Outcome), (u64, Instant)>,
    connections: HashMap<(LabelSet, Flags), (u64, Instant)>,
}

/// The sum over all workers.
#[derive(Default)]
struct Merged {
    requests: HashMap<(LabelSet, Outcome), Requests>,
    connections: HashMap<(LabelSet, Flags), Sums>,
}

#[derive(Default, Clone, Copy)]
struct Sums {
    opened: u64,
    closed: u64,
    received: u64,
    sent: u64,
}

impl Metrics {
    /// Metrics of a proxy beside `own`.
    pub fn new(own: Arc<Peer>) -> Self {
        Self(Arc::new(Inner { own, shards: Mutex::default(), seen: Mutex::default() }))
    }

    /// A new worker's shard.
    pub fn shard(&self) -> Arc<Shard> {
        let shard = Arc::new(Shard::new(self.0.own.clone()));
        self.0.shards.lock().push(shard.clone());
        shard
    }

    /// Everything starts at zero again; open connections go on counting from here.
    pub fn reset(&self) {
        self.0.shards.lock().iter().for_each(|shard| shard.reset());
        *self.0.seen.lock() = Seen::default();
    }

    fn merge(&self) -> Merged {
        let mut merged = Merged::default();
        for shard in &*self.0.shards.lock() {
            shard.visit(
                |labels, outcome, counted| {
                    merged.requests.entry((labels.clone(), outcome)).or_default().add(counted);
                },
                |labels, flags, counted| {
                    let sums = merged.connections.entry((labels.clone(), flags)).or_default();
                    sums.opened += counted.opened.load(Relaxed);
                    sums.closed += counted.closed.load(Relaxed);
                    sums.received += counted.received.load(Relaxed);
                    sums.sent += counted.sent.load(Relaxed);
                },
            );
        }
        merged
    }

    /// Forgets series that did not change for [`IDLE`], `now` being the time.
    fn evict(&self, merged: &Merged, now: Instant) {
        let mut seen = self.0.seen.lock();
        let requests = merged.requests.iter().map(|(key, counted)| (key, counted.count));
        let idle_requests = idle(&mut seen.requests, requests, now);
        let connections = merged.connections.iter();
        let connections = connections.map(|(key, s)| (key, s.opened + s.closed + s.received + s.sent));
        let idle_connections = idle(&mut seen.connections, connections, now);
        if idle_requests.is_empty() && idle_connections.is_empty() {
            return;
        }
        let shards = self.0.shards.lock();
        // A worker's own count is part of the idle sum, and the sum stands still exactly if each part does. One that moved in
        // this very moment would only start anew.
        for shard in &*shards {
            shard.evict(
                |labels, outcome, _| idle_requests.contains_key(&(labels.clone(), outcome)),
                |labels, flags| idle_connections.contains_key(&(labels.clone(), flags)),
            );
        }
    }
}

/// Takes note of the counts; returns what has not changed for [`IDLE`], and forgets it.
fn idle<'a, K: Eq + Hash + Clone + 'a>(
    seen: &mut HashMap<K, (u64, Instant)>,
    counts: impl Iterator<Item = (&'a K, u64)>,
    now: Instant,
) -> HashMap<K, ()> {
    let mut idle = HashMap::new();
    for (key, count) in counts {
        match seen.get_mut(key) {
            Some((last, since)) if *last == count => {
                if now.saturating_duration_since(*since) >= IDLE {
                    idle.insert(key.clone(), ());
                }
            }
            Some(changed) => *changed = (count, now),
            None => drop(seen.insert(key.clone(), (count, now))),
        }
    }
    seen.retain(|key, _| !idle.contains_key(key));
    idle
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        // Families come and go with traffic and have labels that are fixed elsewhere; the registry only checks what is declared.
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let merged = self.merge();
        self.evict(&merged, Instant::now());
        let mut families = request_families(&merged);
        families.extend(connection_families(&merged));
        families.push(build_family());
        families
    }
}

fn request_families(merged: &Merged) -> Vec<MetricFamily> {
    let sorted: BTreeMap<Vec<String>, (Vec<LabelPair>, &Requests)> = merged
        .requests
        .iter()
        .map(|((labels, outcome), counted)| {
            let pairs = request_labels(labels, outcome);
            (pairs.iter().map(|p| p.value().to_owned()).collect(), (pairs, counted))
        })
        .collect();
    let family = |name: &str, help: &str, kind, make: &dyn Fn(&Requests) -> Metric| {
        let metrics = sorted.values().map(|(labels, counted)| {
            let mut metric = make(counted);
            metric.set_label(labels.clone());
            metric
        });
        family(name, help, kind, metrics.collect())
    };
    if sorted.is_empty() {
        return Vec::new();
    }
    vec![
        family("istio_requests_total", "Requests that have ended.", MetricType::COUNTER, &|r| {
            counter(r.count)
        }),
        family(
            "istio_request_duration_milliseconds",
            "From the start of a request to its last byte.",
            MetricType::HISTOGRAM,
            &|r| histogram(&r.duration),
        ),
        family("istio_request_bytes", "Bytes of requests, heads included.", MetricType::HISTOGRAM, &|r| {
            histogram(&r.received)
        }),
        family("istio_response_bytes", "Bytes of responses, heads included.", MetricType::HISTOGRAM, &|r| {
            histogram(&r.sent)
        }),
    ]
}

fn connection_families(merged: &Merged) -> Vec<MetricFamily> {
    let sorted: BTreeMap<Vec<String>, (Vec<LabelPair>, Sums)> = merged
        .connections
        .iter()
        .map(|((labels, flags), sums)| {
            let pairs = connection_labels(labels, *flags);
            (pairs.iter().map(|p| p.value().to_owned()).collect(), (pairs, *sums))
        })
        .collect();
    if sorted.is_empty() {
        return Vec::new();
    }
    let family = |name: &str, help: &str, value: fn(&Sums) -> u64| {
        let metrics = sorted.values().map(|(labels, sums)| {
            let mut metric = counter(value(sums));
            metric.set_label(labels.clone());
            metric
        });
        family(name, help, MetricType::COUNTER, metrics.collect())
    };
    vec![
        family("istio_tcp_connections_opened_total", "Opaque connections opened.", |s| s.opened),
        family("istio_tcp_connections_closed_total", "Opaque connections closed.", |s| s.closed),
        family("istio_tcp_sent_bytes_total", "Bytes sent to clients of opaque connections.", |s| s.sent),
        family("istio_tcp_received_bytes_total", "Bytes received from clients of opaque connections.", |s| {
            s.received
        }),
    ]
}

fn build_family() -> MetricFamily {
    let mut metric = gauge(1.0);
    metric.set_label(vec![pair("component", "proxy"), pair("tag", env!("CARGO_PKG_VERSION"))]);
    family("istio_build", "The version that runs.", MetricType::GAUGE, vec![metric])
}

/// The labels in Istio's order: the security policy comes last.
fn request_labels(labels: &LabelSet, outcome: &Outcome) -> Vec<LabelPair> {
    let mut pairs = common_labels(labels);
    let grpc_status = match outcome.grpc_status {
        None => String::new(),
        Some(UNKNOWN_STATUS) => "-1".to_owned(),
        Some(status) => status.to_string(),
    };
    pairs.extend([
        pair("request_protocol", if outcome.grpc { "grpc" } else { "http" }),
        pair("response_code", &outcome.code.to_string()),
        pair("grpc_response_status", &grpc_status),
        pair("response_flags", &outcome.flags.to_string()),
        policy(labels),
    ]);
    pairs
}

fn connection_labels(labels: &LabelSet, flags: Flags) -> Vec<LabelPair> {
    let mut pairs = common_labels(labels);
    pairs.extend([
        pair("request_protocol", "tcp"),
        pair("response_flags", &flags.to_string()),
        policy(labels),
    ]);
    pairs
}

fn common_labels(labels: &LabelSet) -> Vec<LabelPair> {
    let last = NAMES.len() - 1;
    NAMES[..last].iter().zip(&labels.0[..last]).map(|(name, value)| pair(name, value)).collect()
}

fn policy(labels: &LabelSet) -> LabelPair {
    pair(NAMES[NAMES.len() - 1], &labels.0[NAMES.len() - 1])
}

/// One family, for collectors that build their own.
pub fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

/// One label.
pub fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.to_owned());
    pair.set_value(value.to_owned());
    pair
}

/// A counter's sample, without labels.
pub fn counter(value: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    let mut metric = Metric::default();
    metric.set_counter(counter);
    metric
}

/// A gauge's sample, without labels.
pub fn gauge(value: f64) -> Metric {
    let mut gauge = prometheus::proto::Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::default();
    metric.set_gauge(gauge);
    metric
}

fn histogram(counted: &Histogram) -> Metric {
    let mut total = 0;
    let mut buckets = Vec::with_capacity(BUCKETS.len());
    for (bound, count) in BUCKETS.iter().zip(&counted.counts) {
        total += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(total);
        buckets.push(bucket);
    }
    let mut histogram = ProtoHistogram::default();
    histogram.set_sample_count(counted.counts.iter().sum());
    histogram.set_sample_sum(counted.sum);
    histogram.set_bucket(buckets);
    let mut metric = Metric::default();
    metric.set_histogram(histogram);
    metric
}

#[cfg(test)]
#[path = "collector_tests.rs"]
mod tests;
