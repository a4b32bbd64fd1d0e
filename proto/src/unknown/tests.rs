//! Undeclared fields, values and types are found with their full path.

use prost::Message as _;
use prost::bytes::BufMut;

use super::*;
use crate::types::http_connection_manager::{self as hcm, HttpConnectionManager, HttpFilter};
use crate::types::{cluster, core, http_router, listener, route};

/// A message that has one more field than ours: number, then a string.
fn with_field(message: &impl prost::Message, number: u32, text: &str) -> Vec<u8> {
    let mut bytes = message.encode_to_vec();
    prost::encoding::string::encode(number, &text.to_owned(), &mut bytes);
    bytes
}

fn any<M: prost::Name>(bytes: Vec<u8>) -> Any {
    Any { type_url: M::type_url(), value: bytes.into() }
}

fn found(any: &Any) -> Vec<String> {
    unknown_fields(any).iter().map(ToString::to_string).collect()
}

/// A listener whose second chain has an HTTP connection manager with these filters.
fn listener_with(http_filters: Vec<HttpFilter>) -> Any {
    let manager = HttpConnectionManager { stat_prefix: "x".into(), http_filters, ..Default::default() };
    let config = listener::filter::ConfigType::TypedConfig(Any::pack(&manager));
    let filter = listener::Filter { name: "hcm".into(), config_type: Some(config) };
    let chain = listener::FilterChain { filters: vec![filter], ..Default::default() };
    Any::pack(&listener::Listener { filter_chains: vec![Default::default(), chain], ..Default::default() })
}

fn http_filter(config: Any, is_optional: bool) -> HttpFilter {
    let config_type = Some(hcm::http_filter::ConfigType::TypedConfig(config));
    HttpFilter { name: "f".into(), config_type, is_optional }
}

#[test]
fn declared_fields_are_fine() {
    let router = Any::pack(&http_router::Router {});
    assert_eq!(found(&listener_with(vec![http_filter(router, false)])), Vec::<String>::new());
}

#[test]
fn the_path_goes_through_lists_and_packed_messages() {
    let router = any::<http_router::Router>(with_field(&http_router::Router {}, 999, "?"));
    let plain = || http_filter(Any::pack(&http_router::Router {}), false);
    let resource = listener_with(vec![plain(), plain(), http_filter(router, false)]);
    assert_eq!(
        found(&resource),
        ["filter_chains[1].filters[0].typed_config.http_filters[2].typed_config.#999: \
         not supported (field 999 of envoy.extensions.filters.http.router.v3.Router)"]
    );
}

#[test]
fn fields_of_envoy_are_named() {
    let cluster = any::<cluster::Cluster>(with_field(&cluster::Cluster::default(), 19, "outlier detection"));
    assert_eq!(
        found(&cluster),
        ["outlier_detection: not supported (field 19 of envoy.config.cluster.v3.Cluster)"]
    );
}

#[test]
fn values_of_enums_are_checked() {
    let cluster = |lb_policy| Any::pack(&cluster::Cluster { lb_policy, ..Default::default() });
    assert_eq!(found(&cluster(cluster::cluster::LbPolicy::Random as i32)), Vec::<String>::new());
    assert_eq!(found(&cluster(2)), ["lb_policy: RING_HASH is not supported"]);
    assert_eq!(
        found(&cluster(77)),
        ["lb_policy: 77 is no value of envoy.config.cluster.v3.Cluster.LbPolicy"]
    );
    assert_eq!(
        found(&cluster(-1)),
        ["lb_policy: -1 is no value of envoy.config.cluster.v3.Cluster.LbPolicy"]
    );
}

#[test]
fn map_entries_are_named_by_their_key() {
    let unknown = Any { type_url: "type.googleapis.com/acme.Options".into(), value: Default::default() };
    let typed_extension_protocol_options = [("acme".to_owned(), unknown)].into();
    let cluster = cluster::Cluster { typed_extension_protocol_options, ..Default::default() };
    assert_eq!(
        found(&Any::pack(&cluster)),
        ["typed_extension_protocol_options[\"acme\"]: type acme.Options is not supported"]
    );
}

#[test]
fn an_optional_filter_of_unknown_type_is_skipped() {
    let lua = || Any { type_url: "type.googleapis.com/acme.Lua".into(), value: vec![0xff].into() };
    assert_eq!(found(&listener_with(vec![http_filter(lua(), true)])), Vec::<String>::new());
    assert_eq!(
        found(&listener_with(vec![http_filter(lua(), false)])),
        [
            "filter_chains[1].filters[0].typed_config.http_filters[0].typed_config: type acme.Lua is not supported"
        ]
    );
    // Known, but with more in it than we know: being optional does not mean that half of it may be dropped.
    let router = any::<http_router::Router>(with_field(&http_router::Router {}, 999, "?"));
    assert_eq!(found(&listener_with(vec![http_filter(router, true)])).len(), 1);
}

#[test]
fn accepted_fields_pass() {
    let mut bytes = route::VirtualHost { name: "v".into(), ..Default::default() }.encode_to_vec();
    prost::encoding::string::encode(5, &String::new(), &mut bytes);
    assert_eq!(found(&any::<route::VirtualHost>(bytes)), Vec::<String>::new());
}

#[test]
fn the_accepted_table_is_sorted_for_its_look_up() {
    assert!(ACCEPTED.is_sorted_by_key(|accepted| (accepted.message, accepted.number)));
}

#[test]
fn garbage_is_refused_and_never_panics() {
    let cases: &[(&[u8], &str)] = &[
        (&[0x0a, 0x7f], "malformed envoy.config.core.v3.Node"),
        (&[0x0a], "malformed envoy.config.core.v3.Node"),
        (&[0x0b], "malformed envoy.config.core.v3.Node"),
        // A message where the schema has one, as a number on the wire.
        (&[0x20, 1], "locality: malformed"),
    ];
    for (bytes, expected) in cases {
        let found = found(&any::<core::Node>(bytes.to_vec()));
        assert!(found[0].contains(expected.trim_start_matches("locality: ")), "{found:?}");
    }
    assert_eq!(found(&Any::default()), ["has no type"]);
    assert_eq!(
        found(&Any { type_url: "acme.Foo".into(), ..Default::default() }),
        ["type acme.Foo is not supported"]
    );
}

#[test]
fn depth_and_findings_are_bounded() {
    let mut config = Any::pack(&http_router::Router {});
    for _ in 0..200 {
        config = Any::pack(&core::TypedExtensionConfig { name: String::new(), typed_config: Some(config) });
    }
    let deep = found(&config);
    assert_eq!(deep.len(), 1);
    assert!(deep[0].ends_with(": is nested too deeply"), "{deep:?}");

    let mut bytes = Vec::new();
    (500..600).for_each(|number| prost::encoding::string::encode(number, &String::new(), &mut bytes));
    bytes.put_slice(&[]);
    assert_eq!(found(&any::<core::Node>(bytes)).len(), MAX_FINDINGS);
}

#[test]
fn the_page_shows_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/xds-accepted.md");
    let page = std::fs::read_to_string(path).unwrap_or_default();
    let rows: String =
        ACCEPTED.iter().map(|a| format!("| `{}` | `{}` | {} |\n", a.message, a.field, a.reason)).collect();
    let (head, shown) = page.split_once("|---|---|---|\n").unwrap_or_default();
    if std::env::var_os("OSIER_UPDATE").is_some() {
        std::fs::write(path, format!("{head}|---|---|---|\n{rows}")).unwrap();
    } else {
        assert_eq!(shown, rows, "run this test with OSIER_UPDATE=1 to write the page");
    }
}
