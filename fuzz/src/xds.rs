//! What must hold for any bytes that a control plane sends: a resource is taken or refused by name, and nothing panics. The first byte of
//! an input says of which type it is, the rest is the message.

use osier_proto::Any;
use osier_proto::types::cluster::Cluster;
use osier_proto::types::endpoint::ClusterLoadAssignment;
use osier_proto::types::listener::Listener;
use osier_proto::types::route::{RouteConfiguration, VirtualHost};
use osier_proto::types::tls::Secret;
use osier_proxy::authz::counters::Counters;
use osier_proxy::compile::{Context, Rejected, cluster, endpoint, listener, route, tls};
use osier_proxy::config::snapshot::Clusters;
use osier_proxy::config::tls::Secrets;
use prost::Name;

/// Checks one input.
pub fn check(input: &[u8]) {
    let [kind, value @ ..] = input else { return };
    let any = |type_url: String| Any { type_url, value: value.to_vec().into() };
    let (clusters, secrets, counters) = (Clusters::default(), Secrets::default(), Counters::default());
    let context = Context {
        clusters: &clusters,
        secrets: &secrets,
        on_demand: None,
        counters: &counters,
        cluster_exists: &|name| name == "known",
    };
    let refused: Option<Rejected> = match kind % 6 {
        0 => listener::compile("l", &any(Listener::type_url()), context).err(),
        1 => route::compile("r", &any(RouteConfiguration::type_url()), context).err(),
        2 => route::compile_virtual_host("r/h", &any(VirtualHost::type_url()), context).err(),
        3 => cluster::compile("c", &any(Cluster::type_url()), &secrets).err(),
        4 => endpoint::compile("c", &any(ClusterLoadAssignment::type_url())).err(),
        _ => tls::secret("s", &any(Secret::type_url())).err(),
    };
    if let Some(Rejected { name, reason, .. }) = refused {
        assert!(!name.is_empty() && !reason.is_empty(), "refused without a word");
    }
}
