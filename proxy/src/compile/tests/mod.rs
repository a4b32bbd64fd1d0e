//! Every field that is read has a case that is accepted, with what comes of it, and one that is refused, with the text.
//!
//! Resources are written as YAML, as people know them from Envoy; `refused` compares the path and the beginning of the reason.

use osier_proto::json;
use prost::{Message, Name};

use super::*;

mod cluster;
mod ext_authz;
mod hostile;
mod http_manager;
mod jwt;
mod listener;
mod rbac;
mod route;
mod tls;

pub(super) const V3: &str = "{ads: {}, resource_api_version: V3}";

/// Packs a message that is written as YAML.
fn pack<M: Message + Name + Default>(yaml: &str) -> Any {
    let value: serde_json::Value = serde_saphyr::from_str(yaml).expect("valid YAML");
    let message: M = json::from_value(&value).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
    Any::pack(&message)
}

/// Compiles with clusters of which `known` exist.
fn with_context<T>(on_demand: Option<&OnDemand>, compile: impl FnOnce(Context<'_>) -> T) -> T {
    let clusters = Clusters::default();
    let cluster_exists = |name: &str| name == "known";
    compile(Context {
        clusters: &clusters,
        secrets: &Secrets::default(),
        on_demand,
        counters: &Counters::default(),
        cluster_exists: &cluster_exists,
    })
}

/// A table of refusals: each case is a change of the YAML and the beginning of the text after the resource's name.
fn refused<T>(cases: &[(&str, &str)], compile: impl Fn(&str) -> Result<T, Rejected>) {
    for (yaml, expected) in cases {
        match compile(yaml) {
            Ok(_) => panic!("accepted: {yaml}"),
            Err(error) => {
                let text = error.to_string();
                let (_, text) = text.split_once(": ").expect("the resource's name comes first");
                assert!(text.starts_with(expected), "{text}\nshould start with\n{expected}\n{yaml}");
            }
        }
    }
}

#[test]
fn what_is_not_declared_is_refused_by_name() {
    use osier_proto::types::cluster::Cluster;
    let mut any = pack::<Cluster>("{name: c, type: STATIC}");
    // Field 19 of Cluster (`outlier_detection`), an empty message.
    any.value = [&any.value[..], &[0x9a, 0x01, 0x00]].concat().into();
    let error = super::cluster::compile("c", &any, &Default::default()).unwrap_err();
    assert_eq!(error.field, "outlier_detection", "{error}");
    let other = pack::<osier_proto::types::core::Pipe>("{path: /x}");
    assert!(
        super::cluster::compile("c", &other, &Default::default()).unwrap_err().reason.starts_with("expected")
    );
    let broken = Any { type_url: Cluster::type_url(), value: vec![0x0a, 0x7f].into() };
    assert!(super::cluster::compile("c", &broken, &Default::default()).is_err());
}

#[test]
fn equal_content_has_equal_hashes() {
    use osier_proto::types::cluster::Cluster;
    let (a, b) = (pack::<Cluster>("{name: a}"), pack::<Cluster>("{name: b}"));
    assert_eq!(content_hash(&a), content_hash(&a.clone()));
    assert_ne!(content_hash(&a), content_hash(&b));
}
