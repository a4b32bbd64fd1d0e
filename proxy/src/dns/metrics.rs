//! Figures of DNS, under the names that Istio's agent has for them.

use std::time::Duration;

use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntCounter};

/// Bounds of the buckets, in seconds.
const BUCKETS: [f64; 6] = [0.001, 0.005, 0.01, 0.1, 1.0, 5.0];

/// Counts since the start.
#[derive(Debug)]
pub(super) struct Metrics {
    /// Queries that came.
    pub(super) requests: IntCounter,
    /// Queries that were forwarded.
    pub(super) upstream_requests: IntCounter,
    /// Those that got no answer.
    pub(super) upstream_failures: IntCounter,
    upstream_duration: Histogram,
}

impl Metrics {
    /// All zero.
    pub(super) fn new() -> Self {
        let counter = |name: &str, help: &str| {
            IntCounter::new(format!("istio_agent_dns_{name}"), help).expect("the name is well-formed")
        };
        let duration = HistogramOpts::new(
            "istio_agent_dns_upstream_request_duration_seconds",
            "How long other servers took to answer.",
        );
        Self {
            requests: counter("requests_total", "DNS queries."),
            upstream_requests: counter("upstream_requests_total", "DNS queries that were forwarded."),
            upstream_failures: counter("upstream_failures_total", "Forwarded DNS queries without an answer."),
            upstream_duration: Histogram::with_opts(duration.buckets(BUCKETS.to_vec())).expect("well-formed"),
        }
    }

    /// Notes how long another server took.
    pub(super) fn took(&self, time: Duration) {
        self.upstream_duration.observe(time.as_secs_f64());
    }

    /// All of them.
    pub(super) fn collect(&self) -> Vec<MetricFamily> {
        let counters = [&self.requests, &self.upstream_requests, &self.upstream_failures];
        let counters = counters.into_iter().flat_map(|counter| counter.collect());
        counters.chain(self.upstream_duration.collect()).collect()
    }
}
