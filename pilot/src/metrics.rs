//! The control plane's own metrics, under istiod's names (dashboards for them exist).
//!
//! Every label value is known beforehand, so each series is a handle made at the start: no look-up when it is counted,
//! and no text from a client can become a label.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry, TextEncoder,
    core::{Collector, Desc},
};

/// Kinds of resources that have a series of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Clusters.
    Cds,
    /// Endpoints.
    Eds,
    /// Listeners.
    Lds,
    /// Route configurations.
    Rds,
    /// Virtual hosts.
    Vhds,
    /// Name tables.
    Nds,
    /// Certificates.
    Sds,
    /// Everything that we don't serve.
    Other,
}

impl Kind {
    /// All kinds, in the order of a push.
    pub const ALL: [Kind; 8] =
        [Kind::Cds, Kind::Eds, Kind::Lds, Kind::Rds, Kind::Vhds, Kind::Sds, Kind::Nds, Kind::Other];

    /// The label's value.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Cds => "cds",
            Kind::Eds => "eds",
            Kind::Lds => "lds",
            Kind::Rds => "rds",
            Kind::Vhds => "vhds",
            Kind::Nds => "nds",
            Kind::Sds => "sds",
            Kind::Other => "other",
        }
    }
}

/// Why a push happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A mesh resource (VirtualService, DestinationRule, …) changed.
    Config,
    /// A service came, changed or went.
    Service,
    /// Endpoints changed.
    Endpoint,
    /// A workload registered or left.
    Proxy,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 4] = [Reason::Config, Reason::Service, Reason::Endpoint, Reason::Proxy];

    /// The label's value, as istiod words it.
    pub fn label(self) -> &'static str {
        match self {
            Reason::Config => "config",
            Reason::Service => "service",
            Reason::Endpoint => "endpoint",
            Reason::Proxy => "proxy",
        }
    }
}

/// All series of the control plane, and the registry that shows them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Streams that are open.
    pub connected: IntGauge,
    /// Responses sent, by kind.
    pub pushes: PerKind<IntCounter>,
    /// Responses that could not be sent, by kind.
    pub push_errors: PerKind<IntCounter>,
    /// Size of responses, by kind.
    pub config_size: PerKind<Histogram>,
    /// Time to generate and send one kind.
    pub push_time: PerKind<Histogram>,
    /// NACKs, by kind.
    pub rejects: PerKind<IntCounter>,
    /// Requests with the nonce of an older response, by kind.
    pub expired_nonce: PerKind<IntCounter>,
    /// What started pushes.
    pub triggers: PerReason<IntCounter>,
    /// Changes that came in.
    pub inbound_updates: PerReason<IntCounter>,
    /// From the first change to the last response.
    pub convergence: Histogram,
    /// Wait of a merged push in its mailbox.
    pub queue_time: Histogram,
    /// From the first change of a push to its start.
    pub debounce: Histogram,
    /// Time to hand a response to the transport.
    pub send_time: Histogram,
    /// Streams that were closed because the client did not read.
    pub write_timeout: IntCounter,
    /// Services in the mesh.
    pub services: IntGauge,
    /// VirtualServices in the mesh.
    pub virtual_services: IntGauge,
    /// Resources that are not in force as they are written.
    pub refused: IntGauge,
    /// Encoded resources found in the cache.
    pub cache_hits: IntCounter,
    /// Encoded resources that had to be made.
    pub cache_misses: IntCounter,
    /// Encoded resources in the cache.
    pub cache_size: IntGauge,
    /// Workloads that registered over their stream.
    pub registered: IntCounter,
    /// Workloads that left and were forgotten.
    pub unregistered: IntCounter,
    /// Requests to certify a key.
    pub csrs: IntCounter,
    /// Certificates issued to workloads.
    pub certificates_issued: IntCounter,
    /// When the authority in force ends, in seconds since 1970.
    pub authority_end: IntGauge,
    /// 1 while another authority is there and refused.
    pub authority_refused: IntGauge,
    /// Pods that were to be injected.
    pub injection: InjectionMetrics,
    /// Resources that the validating webhook let pass.
    pub validation_passed: IntCounter,
    /// Resources that the validating webhook refused.
    pub validation_failed: IntCounter,
    /// Key sets of issuers of tokens that were fetched.
    pub key_fetches: IntCounter,
    /// Those that couldn't be.
    pub key_fetch_failures: IntCounter,
}

/// Series of the injecting webhook.
#[derive(Debug)]
pub struct InjectionMetrics {
    /// Requests.
    pub requests: IntCounter,
    /// Pods that were injected.
    pub success: IntCounter,
    /// Pods that were refused, and requests that were none.
    pub failure: IntCounter,
    /// Pods that were left as they are.
    pub skip: IntCounter,
    /// Time of one.
    pub time: Histogram,
}

impl InjectionMetrics {
    fn new(r: &Registry) -> Self {
        Self {
            requests: counter(
                r,
                Opts::new("sidecar_injection_requests_total", "Pods that were to be injected."),
            ),
            success: counter(r, Opts::new("sidecar_injection_success_total", "Pods that were injected.")),
            failure: counter(
                r,
                Opts::new(
                    "sidecar_injection_failure_total",
                    "Pods that were refused, and requests that were none.",
                ),
            ),
            skip: counter(r, Opts::new("sidecar_injection_skip_total", "Pods that were left as they are.")),
            time: histogram(r, times("sidecar_injection_time_seconds", "Seconds to inject one pod.")),
        }
    }
}

/// One series for each [`Kind`].
#[derive(Debug)]
pub struct PerKind<T>([T; Kind::ALL.len()]);

impl<T> PerKind<T> {
    /// The series of a kind.
    pub fn of(&self, kind: Kind) -> &T {
        &self.0[kind as usize]
    }
}

/// One series for each [`Reason`].
#[derive(Debug)]
pub struct PerReason<T>([T; Reason::ALL.len()]);

impl<T> PerReason<T> {
    /// The series of a reason.
    pub fn of(&self, reason: Reason) -> &T {
        &self.0[reason as usize]
    }
}

impl Metrics {
    /// All series at zero, in a registry of their own.
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let version = env!("CARGO_PKG_VERSION");
        let info = gauge(
            r,
            Opts::new("pilot_info", "Version of the control plane.").const_label("version", version),
        );
        info.set(1);
        let cache_read = |kind| {
            counter(
                r,
                Opts::new("xds_cache_reads", "Look-ups in the cache of encoded resources.")
                    .const_label("type", kind),
            )
        };
        Self {
            connected: gauge(
                r,
                Opts::new("pilot_xds", "Clients connected over xDS.").const_label("version", version),
            ),
            pushes: per_kind(|k| {
                counter(r, labelled("pilot_xds_pushes", "Responses sent, by type.", k.label()))
            }),
            push_errors: per_kind(|k| {
                counter(
                    r,
                    labelled(
                        "pilot_xds_pushes",
                        "Responses sent, by type.",
                        &format!("{}_senderr", k.label()),
                    ),
                )
            }),
            config_size: per_kind(|k| {
                let opts = HistogramOpts::from(labelled(
                    "pilot_xds_config_size_bytes",
                    "Size of responses.",
                    k.label(),
                ));
                histogram(r, opts.buckets(SIZES.to_vec()))
            }),
            push_time: per_kind(|k| {
                let opts = HistogramOpts::from(labelled(
                    "pilot_xds_push_time",
                    "Seconds to generate and send a type.",
                    k.label(),
                ));
                histogram(r, opts.buckets(TIMES.to_vec()))
            }),
            rejects: per_kind(|k| {
                counter(r, labelled("pilot_total_xds_rejects", "Responses refused by clients.", k.label()))
            }),
            expired_nonce: per_kind(|k| {
                counter(
                    r,
                    labelled(
                        "pilot_xds_expired_nonce",
                        "Requests with the nonce of an older response.",
                        k.label(),
                    ),
                )
            }),
            triggers: per_reason(|t| {
                counter(r, labelled("pilot_push_triggers", "What started pushes.", t.label()))
            }),
            inbound_updates: per_reason(|t| {
                let label = match t {
                    Reason::Config => "config",
                    Reason::Service => "svc",
                    Reason::Endpoint => "eds",
                    Reason::Proxy => "proxy",
                };
                counter(r, labelled("pilot_inbound_updates", "Changes that came in, by type.", label))
            }),
            convergence: histogram(
                r,
                times(
                    "pilot_proxy_convergence_time",
                    "Seconds from a change to its last response to one client.",
                ),
            ),
            queue_time: histogram(
                r,
                times("pilot_proxy_queue_time", "Seconds that a push waited in a client's mailbox."),
            ),
            debounce: histogram(
                r,
                times("pilot_debounce_time", "Seconds from the first change of a push to its start."),
            ),
            send_time: histogram(
                r,
                times("pilot_xds_send_time", "Seconds to hand a response to the transport."),
            ),
            write_timeout: counter(
                r,
                Opts::new("pilot_xds_write_timeout", "Streams closed because the client did not read."),
            ),
            services: gauge(r, Opts::new("pilot_services", "Services known.")),
            virtual_services: gauge(r, Opts::new("pilot_virt_services", "VirtualServices in force.")),
            refused: gauge(
                r,
                Opts::new(
                    "osier_pilot_refused_resources",
                    "Resources that are not in force as they are written.",
                ),
            ),
            cache_hits: cache_read("hit"),
            cache_misses: cache_read("miss"),
            cache_size: gauge(r, Opts::new("xds_cache_size", "Encoded resources in the cache.")),
            registered: counter(
                r,
                Opts::new("auto_registration_success_total", "Workloads that registered."),
            ),
            unregistered: counter(
                r,
                Opts::new("auto_registration_deletes_total", "Registered workloads that left."),
            ),
            csrs: counter(r, Opts::new("citadel_server_csr_count", "Requests to certify a key.")),
            certificates_issued: counter(
                r,
                Opts::new("citadel_server_success_cert_issuance_count", "Certificates issued to workloads."),
            ),
            authority_end: gauge(
                r,
                Opts::new(
                    "citadel_server_root_cert_expiry_timestamp",
                    "When the authority that signs ends, its chain and its root included, in seconds since 1970.",
                ),
            ),
            authority_refused: gauge(
                r,
                Opts::new(
                    "osier_pilot_refused_authority",
                    "1 while the authority that is to sign is refused, and the one before signs.",
                ),
            ),
            injection: InjectionMetrics::new(r),
            validation_passed: counter(
                r,
                Opts::new("galley_validation_passed", "Resources that the validating webhook let pass."),
            ),
            validation_failed: counter(
                r,
                Opts::new("galley_validation_failed", "Resources that the validating webhook refused."),
            ),
            key_fetches: counter(
                r,
                Opts::new(
                    "pilot_jwks_resolver_network_fetch_success_total",
                    "Key sets of RequestAuthentications that were fetched.",
                ),
            ),
            key_fetch_failures: counter(
                r,
                Opts::new(
                    "pilot_jwks_resolver_network_fetch_fail_total",
                    "Fetches of key sets of RequestAuthentications that failed.",
                ),
            ),
            registry,
        }
    }

    /// All series in Prometheus' text format.
    pub fn render(&self) -> String {
        // An encoder that writes to memory fails only on malformed families, which the constructors above exclude.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Observes a duration in seconds.
pub fn observe(histogram: &Histogram, time: Duration) {
    histogram.observe(time.as_secs_f64());
}

const TIMES: [f64; 12] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
const SIZES: [f64; 7] = [1.0, 10_000.0, 100_000.0, 1_000_000.0, 4_000_000.0, 10_000_000.0, 40_000_000.0];

fn times(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(TIMES.to_vec())
}

fn labelled(name: &str, help: &str, kind: &str) -> Opts {
    Opts::new(name, help).const_label("type", kind)
}

fn per_kind<T>(make: impl Fn(Kind) -> T) -> PerKind<T> {
    PerKind(Kind::ALL.map(make))
}

fn per_reason<T>(make: impl Fn(Reason) -> T) -> PerReason<T> {
    PerReason(Reason::ALL.map(make))
}

fn counter(registry: &Registry, opts: Opts) -> IntCounter {
    register(registry, IntCounter::with_opts(opts))
}

fn gauge(registry: &Registry, opts: Opts) -> IntGauge {
    register(registry, IntGauge::with_opts(opts))
}

fn histogram(registry: &Registry, opts: HistogramOpts) -> Histogram {
    register(registry, Histogram::with_opts(opts))
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let metric = made.expect("names and labels are constants that the tests have registered");
    let names: Vec<String> = metric.desc().iter().map(|d: &&Desc| d.fq_name.clone()).collect();
    registry
        .register(Box::new(metric.clone()))
        .unwrap_or_else(|e| panic!("metric {names:?} is registered twice: {e}"));
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_have_istiods_names_and_labels() {
        let m = Metrics::new();
        m.pushes.of(Kind::Cds).inc();
        m.rejects.of(Kind::Rds).inc_by(2);
        m.triggers.of(Reason::Endpoint).inc();
        m.connected.set(3);
        observe(&m.convergence, Duration::from_millis(30));
        let text = m.render();
        for line in [
            "pilot_xds_pushes{type=\"cds\"} 1",
            "pilot_xds_pushes{type=\"eds\"} 0",
            "pilot_xds_pushes{type=\"cds_senderr\"} 0",
            "pilot_total_xds_rejects{type=\"rds\"} 2",
            "pilot_push_triggers{type=\"endpoint\"} 1",
            "pilot_proxy_convergence_time_bucket{le=\"0.05\"} 1",
            "pilot_proxy_convergence_time_count 1",
        ] {
            assert!(text.contains(line), "no `{line}` in\n{text}");
        }
        assert!(text.contains(&format!("pilot_xds{{version=\"{}\"}} 3", env!("CARGO_PKG_VERSION"))));
        assert!(text.contains("pilot_info{version="));
    }

    #[test]
    fn a_family_is_shown_once() {
        let text = Metrics::new().render();
        assert_eq!(text.matches("# TYPE pilot_xds_pushes ").count(), 1);
    }
}
