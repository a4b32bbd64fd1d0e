//! Scraping what shards counted.

use prometheus::{Registry, TextEncoder};

use super::*;
use crate::config::listener::Direction;
use crate::telemetry::metrics::{Connections, MAX_LABEL_SETS};
use crate::telemetry::record::{Downstream, RequestRecord};

fn own() -> Arc<Peer> {
    Arc::new(Peer {
        workload: "page-v1".into(),
        namespace: "shop".into(),
        app: "page".into(),
        ..Peer::default()
    })
}

fn record<'a>(status: u16) -> RequestRecord<'a> {
    let address = "10.0.0.1:80".parse().expect("address");
    let downstream = Downstream {
        connection_id: 1,
        local: address,
        remote: address,
        direct_remote: address,
        server_name: None,
        identity: None,
        own_identity: None,
    };
    let mut record = RequestRecord::new(downstream, None, Instant::now());
    record.status = status;
    record.complete = Some(Duration::from_millis(7));
    (record.received, record.received_head) = (100, 50);
    (record.sent, record.sent_head) = (2000, 90);
    record
}

fn peer(name: &str) -> Arc<Peer> {
    Arc::new(Peer { workload: name.into(), ..Peer::default() })
}

fn scrape(metrics: &Metrics) -> String {
    let registry = Registry::new();
    registry.register(Box::new(metrics.clone())).expect("registered");
    TextEncoder::new().encode_to_string(&registry.gather()).expect("encoded")
}

/// The sample lines of a family, each reduced to the labels named here.
fn samples(text: &str, family: &str, labels: &[&str]) -> Vec<String> {
    let lines = text.lines().filter(|l| l.starts_with(&format!("{family}{{")));
    lines
        .map(|line| {
            let (inside, value) = line.rsplit_once("} ").expect("labels");
            let shown = inside.split(',').filter(|p| labels.iter().any(|l| p.contains(&format!("{l}=\""))));
            format!(
                "{} {value}",
                shown.map(|p| p.trim_start_matches(&format!("{family}{{"))).collect::<Vec<_>>().join(",")
            )
        })
        .collect()
}

#[test]
fn workers_are_merged_and_labels_stand_in_istios_order() {
    let metrics = Metrics::new(own());
    let (one, two) = (metrics.shard(), metrics.shard());
    let caller = peer("curl");
    for shard in [&one, &one, &two] {
        let mut record = record(200);
        // Each worker decoded the peer for itself: other objects, same labels.
        record.peer = Some(if Arc::ptr_eq(shard, &two) { peer("curl") } else { caller.clone() });
        shard.request(Direction::Inbound, &record);
    }
    let mut failed = record(503);
    failed.flags.add(Flags::CONNECT_FAILURE);
    two.request(Direction::Inbound, &failed);
    let text = scrape(&metrics);
    let line =
        text.lines().find(|l| l.starts_with("istio_requests_total{") && l.contains("curl")).expect("series");
    assert_eq!(
        line,
        "istio_requests_total{reporter=\"destination\",source_workload=\"curl\",source_canonical_service=\"unknown\",\
         source_canonical_revision=\"latest\",source_workload_namespace=\"unknown\",source_principal=\"unknown\",\
         source_app=\"unknown\",source_version=\"unknown\",source_cluster=\"unknown\",destination_workload=\"page-v1\",\
         destination_workload_namespace=\"shop\",destination_principal=\"unknown\",destination_app=\"page\",\
         destination_version=\"\",destination_service=\"unknown\",destination_canonical_service=\"unknown\",\
         destination_canonical_revision=\"latest\",destination_service_name=\"unknown\",\
         destination_service_namespace=\"shop\",destination_cluster=\"unknown\",request_protocol=\"http\",\
         response_code=\"200\",grpc_response_status=\"\",response_flags=\"-\",connection_security_policy=\"none\"} 3"
    );
    assert_eq!(
        samples(&text, "istio_requests_total", &["response_code", "response_flags"]),
        ["response_code=\"200\",response_flags=\"-\" 3", "response_code=\"503\",response_flags=\"UF\" 1",]
    );
}

#[test]
fn histograms_are_cumulative_over_istios_buckets() {
    let metrics = Metrics::new(own());
    let shard = metrics.shard();
    shard.request(Direction::Outbound, &record(200));
    let mut slow = record(200);
    slow.complete = Some(Duration::from_secs(7200));
    shard.request(Direction::Outbound, &slow);
    let mut exact = record(200);
    exact.complete = Some(Duration::from_millis(10));
    shard.request(Direction::Outbound, &exact);
    let text = scrape(&metrics);
    let buckets = samples(&text, "istio_request_duration_milliseconds_bucket", &["le"]);
    assert_eq!(buckets.len(), 20);
    assert_eq!(buckets[0], "le=\"0.5\" 0");
    assert_eq!(buckets[2..4], ["le=\"5\" 0", "le=\"10\" 2"]);
    assert_eq!(buckets[18..], ["le=\"3600000\" 2", "le=\"+Inf\" 3"]);
    assert_eq!(samples(&text, "istio_request_bytes_sum", &[]), [" 450"]);
    assert_eq!(samples(&text, "istio_response_bytes_sum", &[]), [" 6270"]);
    assert_eq!(samples(&text, "istio_request_duration_milliseconds_sum", &[]), [" 7200017"]);
}

#[test]
fn connections_count_while_they_are_open() {
    let metrics = Metrics::new(own());
    let shard = metrics.shard();
    let open = shard.connections(Direction::Outbound, &record(0));
    Connections::count(&open.opened, 1);
    Connections::count(&open.received, 10);
    Connections::count(&open.sent, 20);
    let text = scrape(&metrics);
    for (family, value) in [
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 0),
        ("istio_tcp_received_bytes_total", 10),
        ("istio_tcp_sent_bytes_total", 20),
    ] {
        assert_eq!(
            samples(&text, family, &["request_protocol"]),
            [format!("request_protocol=\"tcp\" {value}")]
        );
    }
    assert!(!text.contains("istio_requests_total"), "no HTTP yet");
    assert!(text.contains("istio_build{component=\"proxy\""));
}

#[test]
fn idle_series_are_forgotten_and_open_connections_are_not() {
    let metrics = Metrics::new(own());
    let shard = metrics.shard();
    shard.request(Direction::Outbound, &record(200));
    shard.request(Direction::Outbound, &record(404));
    let open = shard.connections(Direction::Outbound, &record(0));
    let start = Instant::now();
    metrics.evict(&metrics.merge(), start);
    shard.request(Direction::Outbound, &record(404));
    metrics.evict(&metrics.merge(), start + IDLE / 2);
    metrics.evict(&metrics.merge(), start + IDLE);
    let text = scrape(&metrics);
    assert_eq!(samples(&text, "istio_requests_total", &["response_code"]), ["response_code=\"404\" 2"]);
    assert!(text.contains("istio_tcp_connections_opened_total{"));
    drop(open);
    metrics.evict(&metrics.merge(), start + IDLE * 2);
    metrics.evict(&metrics.merge(), start + IDLE * 3);
    assert!(!scrape(&metrics).contains("istio_tcp"));
    shard.request(Direction::Outbound, &record(200));
    assert_eq!(
        samples(&scrape(&metrics), "istio_requests_total", &["response_code"]),
        ["response_code=\"200\" 1"]
    );
}

#[test]
fn made_up_peers_and_statuses_do_not_fill_the_memory() {
    let metrics = Metrics::new(own());
    let shard = metrics.shard();
    for number in 0..MAX_LABEL_SETS + 500 {
        let mut record = record(200);
        record.peer = Some(peer(&format!("made-up-{number}")));
        shard.request(Direction::Inbound, &record);
    }
    for status in 0..1000 {
        let mut record = record(200);
        (record.grpc, record.grpc_status) = (true, Some(status));
        shard.request(Direction::Inbound, &record);
    }
    let text = scrape(&metrics);
    let series = samples(&text, "istio_requests_total", &["source_workload", "grpc_response_status"]);
    assert!(series.len() <= MAX_LABEL_SETS + 1 + 18, "{}", series.len());
    assert!(series.contains(&"source_workload=\"unknown\",grpc_response_status=\"\" 500".to_owned()));
    assert!(series.contains(&"source_workload=\"unknown\",grpc_response_status=\"-1\" 983".to_owned()));
}
