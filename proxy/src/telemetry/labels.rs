//! The labels of Istio's standard metrics, and the rules for their values.
//!
//! A label set is built once per combination of peer, service and endpoint workload, and interned; a request only names it.
//! Values come from configuration, from this node and from peers. The request's `Host` is never a label: clients choose it.

use std::sync::Arc;

use osier_core::on_demand::OUTSIDE;

use crate::config::cluster::{Cluster, ServiceLabels};
use crate::config::listener::Direction;
use crate::config::route::Route;
use crate::http::peer_metadata::Peer;
use crate::identity::peer::Peer as Identity;
use crate::telemetry::record::RequestRecord;

/// What an unknown value is called.
const UNKNOWN: &str = "unknown";

/// The revision of a workload that doesn't say.
const LATEST: &str = "latest";

/// Names of the labels of a [`LabelSet`], in the order in which they are emitted. The outcome's labels come between the
/// last two.
pub const NAMES: [&str; 21] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "connection_security_policy",
];

/// Values for [`NAMES`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelSet(pub [Arc<str>; NAMES.len()]);

/// What a label set is made of; equal facts make equal labels. Cheap to gather for each request.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The direction of the listener: inbound reports as `destination`.
    pub inbound: bool,
    /// The workload at the other end.
    pub peer: Option<&'a Arc<Peer>>,
    /// The service behind the cluster.
    pub service: Option<&'a Arc<ServiceLabels>>,
    /// What EDS says of the endpoint, where the peer said nothing (outbound).
    pub workload: Option<&'a Arc<str>>,
    /// Whom the other end has proved to be.
    pub identity: Option<&'a Arc<Identity>>,
    /// Whom we have proved to be to it.
    pub own_identity: Option<&'a Arc<str>>,
    /// The name that passthrough and black hole have instead of a service.
    pub stand_in: Option<&'static str>,
}

impl<'a> Facts<'a> {
    /// The facts of a request or connection on a listener of this direction.
    pub fn of(direction: Direction, record: &'a RequestRecord<'_>) -> Self {
        let inbound = direction == Direction::Inbound;
        let endpoint = record.endpoint.as_ref().filter(|_| !inbound && record.peer.is_none());
        let stand_in = stand_in(record.route, record.cluster_name);
        let service = record.cluster.as_ref().and_then(service).filter(|_| stand_in.is_none());
        let workload = endpoint.and_then(|e| e.spec.workload.as_ref());
        let (identity, own_identity) = match (inbound, &record.upstream_vouch) {
            (true, _) => (record.downstream.identity, record.downstream.own_identity),
            (false, Some(vouch)) => (Some(vouch.peer()), vouch.shown().and_then(|own| own.uris.first())),
            (false, None) => (None, None),
        };
        Self { inbound, peer: record.peer.as_ref(), service, workload, identity, own_identity, stand_in }
    }

    /// The labels, for a proxy beside `own`.
    pub fn labels(&self, own: &Peer) -> LabelSet {
        let peer = match (self.peer, self.workload) {
            (Some(peer), _) => Workload::of(peer),
            (None, Some(text)) => Workload::parse(text),
            (None, None) => Workload::default(),
        };
        let own = Workload::own(own);
        let (source, destination) = if self.inbound { (&peer, &own) } else { (&own, &peer) };
        let fallback = if self.inbound { own.canonical_service } else { UNKNOWN };
        let service = self.service.map(|s| &**s);
        let host = service.map_or(fallback, |s| &s.host);
        let name = self.stand_in.or(service.map(|s| s.short_name())).unwrap_or(fallback);
        let namespace = if self.inbound {
            own.namespace
        } else {
            service.map(|s| &*s.namespace).filter(|n| !n.is_empty()).unwrap_or(peer.namespace)
        };
        let peer_name = self.identity.and_then(|identity| identity.uris.first());
        let own_name = self.own_identity;
        let names = [peer_name, own_name].map(|name| name.map_or(UNKNOWN, |name| name));
        let [source_name, destination_name] = if self.inbound { names } else { [names[1], names[0]] };
        let policy = match (self.inbound, peer_name, own_name) {
            (true, Some(_), Some(_)) => "mutual_tls",
            (true, ..) => "none",
            (false, ..) => UNKNOWN,
        };
        let values = [
            if self.inbound { "destination" } else { "source" },
            source.workload,
            source.canonical_service,
            source.canonical_revision,
            source.namespace,
            source_name,
            source.app,
            source.version,
            source.cluster,
            destination.workload,
            destination.namespace,
            destination_name,
            destination.app,
            destination.version,
            host,
            destination.canonical_service,
            destination.canonical_revision,
            name,
            namespace,
            destination.cluster,
            policy,
        ];
        LabelSet(values.map(Arc::from))
    }
}

fn service(cluster: &Arc<Cluster>) -> Option<&Arc<ServiceLabels>> {
    cluster.spec.service.as_ref()
}

/// Traffic that belongs to no service is named after what happens to it.
fn stand_in(route: Option<&Route>, cluster: Option<&str>) -> Option<&'static str> {
    match route.map(|route| &*route.name) {
        Some("block_all") => return Some("BlackHoleCluster"),
        Some("allow_any") => return Some("PassthroughCluster"),
        _ => {}
    }
    const STAND_INS: [&str; 5] = [
        "BlackHoleCluster",
        "PassthroughCluster",
        "InboundPassthroughCluster",
        "InboundPassthroughClusterIpv4",
        "InboundPassthroughClusterIpv6",
    ];
    let outside = cluster.is_some_and(|name| name.starts_with(OUTSIDE)).then_some("PassthroughCluster");
    outside.or_else(|| STAND_INS.into_iter().find(|name| cluster == Some(name)))
}

impl ServiceLabels {
    /// The name, or what stands before the first dot of the host.
    fn short_name(&self) -> &str {
        match &*self.name {
            "" => self.host.split('.').next().unwrap_or_default(),
            name => name,
        }
    }
}

/// One side of a label set.
struct Workload<'a> {
    workload: &'a str,
    namespace: &'a str,
    cluster: &'a str,
    app: &'a str,
    version: &'a str,
    canonical_service: &'a str,
    canonical_revision: &'a str,
}

impl Default for Workload<'_> {
    fn default() -> Self {
        Self {
            workload: UNKNOWN,
            namespace: UNKNOWN,
            cluster: UNKNOWN,
            app: UNKNOWN,
            version: UNKNOWN,
            canonical_service: UNKNOWN,
            canonical_revision: LATEST,
        }
    }
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

impl<'a> Workload<'a> {
    /// The other end, as it described itself.
    fn of(peer: &'a Peer) -> Self {
        Self {
            workload: or(&peer.workload, UNKNOWN),
            namespace: or(&peer.namespace, UNKNOWN),
            cluster: or(&peer.cluster, UNKNOWN),
            app: or(&peer.app, UNKNOWN),
            version: or(&peer.version, UNKNOWN),
            canonical_service: or(&peer.canonical_service, UNKNOWN),
            canonical_revision: or(&peer.canonical_revision, LATEST),
        }
    }

    /// Our own workload; labels that the pod doesn't have stay empty.
    fn own(peer: &'a Peer) -> Self {
        Self { app: &peer.app, version: &peer.version, ..Self::of(peer) }
    }

    /// `workload;namespace;canonical-service;canonical-revision;cluster`, as EDS carries it.
    fn parse(text: &'a str) -> Self {
        let mut fields = text.split(';');
        let mut next = |otherwise| or(fields.next().unwrap_or_default(), otherwise);
        Self {
            workload: next(UNKNOWN),
            namespace: next(UNKNOWN),
            canonical_service: next(UNKNOWN),
            canonical_revision: next(LATEST),
            cluster: next(UNKNOWN),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(workload: &str) -> Arc<Peer> {
        Arc::new(Peer {
            workload: format!("{workload}-v1").into(),
            namespace: format!("{workload}-ns").into(),
            cluster: "kube".into(),
            app: workload.into(),
            version: "v1".into(),
            canonical_service: workload.into(),
            canonical_revision: "v1".into(),
            ..Peer::default()
        })
    }

    fn shown(facts: &Facts<'_>, own: &Peer) -> String {
        let labels = facts.labels(own);
        let pairs = NAMES.iter().zip(&labels.0).map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join(" ")
    }

    const NOTHING: Facts<'static> = Facts {
        inbound: false,
        peer: None,
        service: None,
        workload: None,
        identity: None,
        own_identity: None,
        stand_in: None,
    };

    fn reviews() -> Arc<ServiceLabels> {
        Arc::new(ServiceLabels {
            host: "reviews.ns.svc".into(),
            name: "reviews".into(),
            namespace: "ns".into(),
        })
    }

    #[test]
    fn the_client_reports_its_own_side_and_what_the_peer_said() {
        let (callee, service) = (peer("reviews"), reviews());
        let facts = Facts { peer: Some(&callee), service: Some(&service), ..NOTHING };
        assert_eq!(
            shown(&facts, &peer("page")),
            "reporter=source source_workload=page-v1 source_canonical_service=page source_canonical_revision=v1 \
             source_workload_namespace=page-ns source_principal=unknown source_app=page source_version=v1 \
             source_cluster=kube destination_workload=reviews-v1 destination_workload_namespace=reviews-ns \
             destination_principal=unknown destination_app=reviews destination_version=v1 \
             destination_service=reviews.ns.svc destination_canonical_service=reviews \
             destination_canonical_revision=v1 destination_service_name=reviews destination_service_namespace=ns \
             destination_cluster=kube connection_security_policy=unknown"
        );
    }

    #[test]
    fn the_server_falls_back_to_its_own_canonical_service() {
        let own = Peer { app: "".into(), ..(*peer("reviews")).clone() };
        let text = shown(&Facts { inbound: true, ..NOTHING }, &own);
        for expected in [
            "reporter=destination source_workload=unknown",
            "source_canonical_revision=latest",
            "destination_app= destination_version=v1 destination_service=reviews ",
            "destination_service_name=reviews destination_service_namespace=reviews-ns",
            "connection_security_policy=none",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn each_side_names_both_by_what_they_have_proved() {
        let (hour, now) = (std::time::Duration::from_secs(3600), std::time::SystemTime::now());
        let other = crate::identity::test_support::Root::new("root").peer(now - hour, now + hour);
        let own = Arc::from("spiffe://td/ns/a/sa/own");
        for (inbound, source, destination, policy) in
            [(false, &own, &other.uris[0], UNKNOWN), (true, &other.uris[0], &own, "mutual_tls")]
        {
            let facts = Facts { inbound, identity: Some(&other), own_identity: Some(&own), ..NOTHING };
            let text = shown(&facts, &peer("page"));
            for expected in [
                format!("source_principal={source} "),
                format!("destination_principal={destination} "),
                format!("connection_security_policy={policy}"),
            ] {
                assert!(text.contains(&expected), "{expected}: {text}");
            }
        }
    }

    #[test]
    fn endpoint_metadata_stands_in_for_a_silent_peer() {
        let workload = Arc::from("ratings-v2;prod;ratings;;east");
        let text = shown(&Facts { workload: Some(&workload), ..NOTHING }, &peer("page"));
        for expected in [
            "destination_workload=ratings-v2 destination_workload_namespace=prod",
            "destination_app=unknown",
            "destination_service=unknown destination_canonical_service=ratings destination_canonical_revision=latest",
            "destination_service_name=unknown destination_service_namespace=prod destination_cluster=east",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn passthrough_and_black_hole_are_names_and_never_the_host() {
        for (cluster, name) in [
            ("PassthroughCluster", Some("PassthroughCluster")),
            ("passthrough|443||example.com", Some("PassthroughCluster")),
            ("BlackHoleCluster", Some("BlackHoleCluster")),
            ("InboundPassthroughClusterIpv6", Some("InboundPassthroughClusterIpv6")),
            ("outbound|80||a", None),
        ] {
            assert_eq!(stand_in(None, Some(cluster)), name);
        }
        let text = shown(&Facts { stand_in: Some("PassthroughCluster"), ..NOTHING }, &peer("page"));
        assert!(text.contains("destination_service=unknown "), "{text}");
        assert!(text.contains("destination_service_name=PassthroughCluster"), "{text}");
    }

    #[test]
    fn a_service_without_a_name_has_its_hosts_first_label() {
        let service = Arc::new(ServiceLabels { name: "".into(), ..(*reviews()).clone() });
        let text = shown(&Facts { service: Some(&service), ..NOTHING }, &peer("page"));
        assert!(text.contains("destination_service_name=reviews "), "{text}");
    }
}
