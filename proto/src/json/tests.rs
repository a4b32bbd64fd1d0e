//! JSON of messages, both directions, and what wrong JSON is told.

use serde_json::json;

use super::*;
use crate::types::{cluster::Cluster, core::Pipe, listener::Listener, route};

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

fn listener() -> Value {
    json!({
        "name": "l",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 80}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
            "@type": HCM,
            "stat_prefix": "x",
            "stream_idle_timeout": "1.500s",
            "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"]}]},
            "use_remote_address": true,
        }}]}],
        "metadata": {"filter_metadata": {"istio": {"a": [1, null, {"b": "c"}]}}},
    })
}

#[test]
fn round_trips_with_any_expanded_and_names_in_snake_case() {
    let read: Listener = from_value(&listener()).unwrap();
    let shown = to_value(&read);
    assert_eq!(
        shown.pointer("/filter_chains/0/filters/0/typed_config/stream_idle_timeout"),
        Some(&json!("1.500s"))
    );
    assert_eq!(
        shown.pointer("/filter_chains/0/filters/0/typed_config/use_remote_address"),
        Some(&json!(true))
    );
    assert_eq!(from_value::<Listener>(&shown).unwrap(), read);
}

#[test]
fn camel_case_is_accepted() {
    let cluster: Cluster =
        from_value(&json!({"name": "c", "connectTimeout": "2s", "lbPolicy": "RANDOM"})).unwrap();
    assert_eq!(cluster.connect_timeout.unwrap().seconds, 2);
}

#[test]
fn errors_name_the_path_of_the_field() {
    let mutate = |pointer: &str, key: &str, value: Value| {
        let mut document = listener();
        document.pointer_mut(pointer).unwrap()[key] = value;
        from_value::<Listener>(&document).unwrap_err().to_string()
    };
    let hcm = "/filter_chains/0/filters/0/typed_config";
    let cases = [
        (
            mutate("", "filter_chain", json!([])),
            "filter_chain: unknown field of envoy.config.listener.v3.Listener",
        ),
        (
            mutate(hcm, "rout_config", json!({})),
            "filter_chains[0].filters[0].typed_config.rout_config: unknown field of",
        ),
        (mutate(hcm, "stat_prefix", json!(7)), "filter_chains[0].filters[0].typed_config.stat_prefix: "),
        (
            mutate(hcm, "stream_idle_timeout", json!("soon")),
            "filter_chains[0].filters[0].typed_config.stream_idle_timeout: ",
        ),
        (mutate(hcm, "codec_type", json!("HTTP9")), "filter_chains[0].filters[0].typed_config.codec_type: "),
        (
            mutate(hcm, "@type", json!("x/envoy.Foo")),
            "filter_chains[0].filters[0].typed_config: type envoy.Foo is not supported",
        ),
        (
            mutate("/address/socket_address", "port_value", json!("http")),
            "address.socket_address.port_value: ",
        ),
        (mutate("/address", "pipe", json!({"path": "/x"})), "address: "),
        (mutate("/metadata/filter_metadata", "istio", json!(3)), "metadata.filter_metadata[\"istio\"]: "),
        (
            mutate("", "filter_chains", json!([[]])),
            "filter_chains[0]: expected an object (FilterChain), found a list",
        ),
    ];
    for (found, expected) in cases {
        assert!(found.starts_with(expected), "{found}\nshould start with\n{expected}");
    }
}

#[test]
fn any_without_type_or_with_wrong_content_is_refused() {
    assert_eq!(any_from_value(&json!({"path": "/x"})).unwrap_err().to_string(), "needs \"@type\"");
    let wrong = json!({"@type": "type.googleapis.com/envoy.config.core.v3.Pipe", "pth": "/x"});
    assert_eq!(any_from_value(&wrong).unwrap_err().path, "pth");
    let right = json!({"@type": "type.googleapis.com/envoy.config.core.v3.Pipe", "path": "/x"});
    assert_eq!(any_from_value(&right).unwrap(), Any::pack(&Pipe { path: "/x".into() }));
}

#[test]
fn a_dump_survives_unknown_types_and_broken_bytes() {
    let url = "type.googleapis.com/envoy.config.core.v3.Pipe".to_owned();
    let broken = Any { type_url: url, value: vec![0x0a, 0x7f].into() };
    let unknown = Any { type_url: "type.googleapis.com/acme.Foo".into(), value: vec![1, 2].into() };
    let policy = route::RetryPolicy {
        retry_host_predicate: [broken, unknown]
            .map(|any| route::retry_policy::RetryHostPredicate {
                name: "n".into(),
                config_type: Some(route::retry_policy::retry_host_predicate::ConfigType::TypedConfig(any)),
            })
            .into(),
        ..Default::default()
    };
    let shown = any_to_value(&Any::pack(&policy));
    let config = &shown["retry_host_predicate"][1]["typed_config"];
    assert_eq!(config["type_url"], "type.googleapis.com/acme.Foo");
    assert_eq!(config["value"]["undecoded_hex"], "0102");
    assert_eq!(shown["retry_host_predicate"][0]["typed_config"]["value"]["undecoded_hex"], "0a7f");
}

#[test]
fn fields_that_are_accepted_without_effect_are_accepted_here_too() {
    let cluster =
        json!({"name": "c", "track_timeout_budgets": true, "trackClusterStats": {"timeout_budgets": true}});
    assert_eq!(from_value::<Cluster>(&cluster).unwrap().name, "c");
    let mut inside = listener();
    inside["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]["virtual_clusters"] =
        json!([{"name": "v"}]);
    from_value::<Listener>(&inside).unwrap();
    // Tolerance for one field hides no other.
    let cluster = json!({"name": "c", "track_timeout_budgets": true, "outlier_detection": {}});
    let error = from_value::<Cluster>(&cluster).unwrap_err();
    assert_eq!(error.path, "outlier_detection");
}

#[test]
fn an_optional_filter_of_unknown_type_is_kept_as_a_typed_struct() {
    use crate::types::http_connection_manager::{HttpFilter, http_filter::ConfigType};
    let filter = |optional: bool| json!({"name": "f", "is_optional": optional, "typed_config": {"@type": "x/acme.Lua", "code": "?"}});
    let Some(ConfigType::TypedConfig(config)) = from_value::<HttpFilter>(&filter(true)).unwrap().config_type
    else {
        panic!("it has a config")
    };
    assert_eq!(config.unpack::<TypedStruct>().unwrap().type_url, "x/acme.Lua");
    let error = from_value::<HttpFilter>(&filter(false)).unwrap_err();
    assert_eq!(error.to_string(), "typed_config: type acme.Lua is not supported");
}
