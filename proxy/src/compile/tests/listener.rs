//! Listeners, filter chains, TCP proxies and access logs.

use std::time::Duration;

use osier_proto::types::listener::Listener as Message;

use super::*;
use crate::compile::listener::CompiledListener;
use crate::config::listener::{
    AccessLogFormat, AccessLogSink, Direction, NetworkAction, SourceType, TcpProxy, TransportProtocol,
};

fn compile(yaml: &str) -> Result<CompiledListener, Rejected> {
    let any = pack::<Message>(yaml);
    with_context(None, |context| super::super::listener::compile("l", &any, context))
}

const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

fn tcp_filter(fields: &str) -> String {
    format!("{{name: tcp, typed_config: {{'@type': {TCP}, {fields}}}}}")
}

/// A chain to cluster `c` with these fields added.
fn chain(fields: &str) -> String {
    format!("{{filters: [{}], {fields}}}", tcp_filter("stat_prefix: t, cluster: c"))
}

fn with_chains(chains: &[String], fields: &str) -> String {
    format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}, filter_chains: [{}], {fields}}}",
        chains.join(", ")
    )
}

fn with(fields: &str) -> String {
    with_chains(&[chain("")], fields)
}

fn tcp(fields: &str) -> Arc<TcpProxy> {
    let yaml = with_chains(&[format!("{{filters: [{}]}}", tcp_filter(fields))], "");
    let compiled = compile(&yaml).unwrap_or_else(|e| panic!("{fields}: {e}"));
    match &compiled.listener.chains[0].action {
        NetworkAction::Tcp(proxy) => proxy.clone(),
        NetworkAction::Http(_) => panic!("TCP"),
    }
}

use std::sync::Arc;

#[test]
fn defaults_are_envoys() {
    let listener = compile(&with("")).unwrap().listener;
    assert_eq!(listener.address, "127.0.0.1:80".parse().unwrap());
    assert!(listener.bind_to_port && !listener.use_original_dst && !listener.original_dst_filter);
    assert!(!listener.transparent && !listener.ipv4_compat);
    assert_eq!(listener.inspect.timeout, Some(Duration::from_secs(15)));
    assert!(!listener.inspect.tls && !listener.inspect.http && !listener.inspect.continue_on_timeout);
    assert_eq!(listener.direction, Direction::Unspecified);
    assert!(
        listener.default_chain.is_none() && listener.backlog.is_none() && !listener.chains_by_server_name
    );
    let proxy = tcp("stat_prefix: t, cluster: c");
    assert_eq!(
        (proxy.idle_timeout, proxy.max_duration, proxy.max_connect_attempts),
        (Some(Duration::from_secs(3600)), None, 1)
    );
}

#[test]
fn what_is_read() {
    let filter = |name: &str, kind: &str| {
        format!(
            "{{name: {name}, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.{kind}}}}}"
        )
    };
    let filters = [
        filter("t", "tls_inspector.v3.TlsInspector"),
        filter("h", "http_inspector.v3.HttpInspector"),
        filter("o", "original_dst.v3.OriginalDst"),
    ];
    let yaml = with(&format!(
        "listener_filters: [{}], listener_filters_timeout: 0s, continue_on_listener_filters_timeout: true,
         use_original_dst: true, transparent: true, bind_to_port: false, traffic_direction: INBOUND, tcp_backlog_size: 9,
         per_connection_buffer_limit_bytes: 1, drain_type: MODIFY_ONLY, enable_reuse_port: true, stat_prefix: s,
         connection_balance_config: {{exact_balance: {{}}}},
         metadata: {{filter_metadata: {{osier: {{chains_by_server_name: true}}}}}}",
        filters.join(", ")
    ));
    let listener = compile(&yaml).unwrap().listener;
    assert!(listener.inspect.tls && listener.inspect.http && listener.original_dst_filter);
    assert_eq!((listener.inspect.timeout, listener.inspect.continue_on_timeout), (None, true));
    assert!(
        listener.use_original_dst
            && listener.transparent
            && !listener.bind_to_port
            && listener.chains_by_server_name
    );
    assert_eq!((listener.direction, listener.backlog), (Direction::Inbound, Some(9)));
    assert_eq!(
        compile(&with("traffic_direction: OUTBOUND")).unwrap().listener.direction,
        Direction::Outbound
    );
    let only_default = with_chains(&[], &format!("default_filter_chain: {}", chain("name: d")));
    assert_eq!(&*compile(&only_default).unwrap().listener.default_chain.unwrap().name, "d");
    let by_name = with_chains(&[], "metadata: {filter_metadata: {osier: {chains_by_server_name: true}}}");
    assert!(compile(&by_name).unwrap().listener.inspect.tls);
}

#[test]
fn plaintext_is_taken_but_not_on_the_own_port_of_what_captures() {
    let captures = "listener_filters: [{name: o, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}]";
    let (own, other) =
        ("filter_chain_match: {destination_port: 80}", "filter_chain_match: {destination_port: 81}");
    for (chains, fields, takes) in [
        (&[own][..], captures, false),
        (&[own, other], captures, true),
        (&[own], "", true),
        (&[], &format!("{captures}, default_filter_chain: {}", chain("")), true),
    ] {
        let chains: Vec<String> = chains.iter().map(|matches| chain(matches)).collect();
        let listener = compile(&with_chains(&chains, fields)).unwrap().listener;
        assert_eq!(listener.takes_plaintext(), takes, "{chains:?} {fields}");
    }
}

/// A listener with this socket address.
fn at_address(fields: &str) -> String {
    with("").replace("address: 127.0.0.1, port_value: 80", fields)
}

#[test]
fn the_ipv6_wildcard_may_take_ipv4() {
    let of = |fields: &str| {
        let listener = compile(&at_address(fields)).unwrap().listener;
        (listener.ipv4_compat, listener.addresses().map(|a| a.to_string()).collect::<Vec<_>>())
    };
    let both = (true, vec!["[::]:80".to_owned(), "0.0.0.0:80".to_owned()]);
    assert_eq!(of("address: '::', port_value: 80, ipv4_compat: true"), both);
    assert_eq!(of("address: '::', port_value: 80"), (false, vec!["[::]:80".to_owned()]));
}

#[test]
fn inspectors_can_be_switched_off_by_port() {
    let inspector = |kind: &str, disabled: &str| {
        let package = "type.googleapis.com/envoy.extensions.filters.listener";
        format!("{{name: i, typed_config: {{'@type': {package}.{kind}}}, filter_disabled: {disabled}}}")
    };
    let range = |start: i32, end: i32| format!("{{destination_port_range: {{start: {start}, end: {end}}}}}");
    let http = |disabled: &str| {
        with(&format!("listener_filters: [{}]", inspector("http_inspector.v3.HttpInspector", disabled)))
    };
    let (low, high) = (range(80, 90), range(88, 65536));
    for (disabled, ports) in [
        (low.clone(), [(79, true), (80, false), (89, false), (90, true)]),
        (high.clone(), [(87, true), (88, false), (65535, false), (1, true)]),
        ("{any_match: true}".into(), [(1, false), (80, false), (90, false), (65535, false)]),
        (format!("{{not_match: {low}}}"), [(79, false), (80, true), (89, true), (90, false)]),
        (
            format!("{{or_match: {{rules: [{low}, {high}]}}}}"),
            [(79, true), (80, false), (95, false), (1, true)],
        ),
        (
            format!("{{and_match: {{rules: [{low}, {high}]}}}}"),
            [(87, true), (88, false), (89, false), (90, true)],
        ),
    ] {
        let listener = compile(&http(&disabled)).unwrap().listener;
        for (port, inspects) in ports {
            assert_eq!(listener.inspect_at(port).http, inspects, "{disabled} {port}");
        }
    }
    let at = "listener_filters[0].filter_disabled";
    for (yaml, wanted) in [
        (http("{}"), format!("{at}.rule: is required")),
        (http("{any_match: false}"), format!("{at}.any_match: must be true")),
        (http(&range(80, 80)), format!("{at}.destination_port_range: [80, 80) is no range")),
        (http(&range(-1, 80)), format!("{at}.destination_port_range: [-1, 80) is no range")),
        (
            http(&format!("{{not_match: {}}}", range(1, 65537))),
            format!("{at}.not_match.destination_port_range"),
        ),
        (
            with(&format!(
                "listener_filters: [{}]",
                inspector("original_dst.v3.OriginalDst", "{any_match: true}")
            )),
            format!("{at}: is for inspectors only"),
        ),
    ] {
        let error = compile(&yaml).unwrap_err().to_string();
        assert!(error.contains(&wanted), "{error}");
    }
}

#[test]
fn chain_matches() {
    let matches = "filter_chain_match: {destination_port: 81, prefix_ranges: [{address_prefix: 10.1.2.3, prefix_len: 16}],
        server_names: [Example.COM, '*.example.org'], transport_protocol: tls, application_protocols: [h2],
        source_type: EXTERNAL, source_prefix_ranges: [{address_prefix: '::1', prefix_len: 128}],
        direct_source_prefix_ranges: [{address_prefix: 10.0.0.0}], source_ports: [7, 8]}";
    let listener = compile(&with_chains(&[chain(matches)], "")).unwrap().listener;
    let found = &listener.chains[0].matches;
    assert_eq!(found.destination_port, Some(81));
    assert_eq!(found.prefix_ranges, ["10.1.0.0/16".parse().unwrap()]);
    assert_eq!(found.server_names, [Arc::from("example.com"), Arc::from("*.example.org")]);
    assert_eq!(found.transport, Some(TransportProtocol::Tls));
    assert_eq!(found.application_protocols, [Arc::from("h2")]);
    assert_eq!(found.source_type, SourceType::External);
    assert_eq!(found.source_ranges, ["::1/128".parse().unwrap()]);
    assert_eq!(found.direct_source_ranges, ["0.0.0.0/0".parse().unwrap()]);
    assert_eq!(found.source_ports, [7, 8]);
    assert!(listener.inspect.tls, "Envoy adds the inspector that the chain needs");
    let raw = "filter_chain_match: {transport_protocol: raw_buffer, application_protocols: [http/1.1], source_type: SAME_IP_OR_LOOPBACK}";
    let listener = compile(&with_chains(&[chain(raw)], "")).unwrap().listener;
    assert!(!listener.inspect.tls, "raw_buffer is matched without it");
    assert_eq!(listener.chains[0].matches.source_type, SourceType::SameIpOrLoopback);
}

#[test]
fn tcp_proxies() {
    let proxy = tcp(
        "stat_prefix: t, idle_timeout: 0s, max_connect_attempts: 4, max_downstream_connection_duration: 5s, weighted_clusters: {clusters: [{name: a, weight: 90}, {name: b, weight: 10}]}",
    );
    assert_eq!(
        (proxy.idle_timeout, proxy.max_duration, proxy.max_connect_attempts),
        (None, Some(Duration::from_secs(5)), 4)
    );
    assert_eq!(proxy.clusters.total, 100);
    assert_eq!(&*proxy.clusters.entries[1].cluster.name, "b");
    let sni = "{name: s, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.sni_cluster.v3.SniCluster}}";
    let yaml =
        with_chains(&[format!("{{filters: [{sni}, {}]}}", tcp_filter("stat_prefix: t, cluster: c"))], "");
    let compiled = compile(&yaml).unwrap();
    let NetworkAction::Tcp(proxy) = &compiled.listener.chains[0].action else { panic!() };
    assert!(proxy.cluster_from_sni);
    assert_eq!(compiled.references.clusters.iter().map(|c| &**c).collect::<Vec<_>>(), ["c"]);
}

#[test]
fn access_logs() {
    let template = |text: &str| crate::http::template::Template::parse(text).unwrap();
    let log = |kind: &str, fields: &str| {
        let yaml = with(&format!(
            "access_log: [{{name: a, typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.{kind}, {fields}}}}}]"
        ));
        compile(&yaml).map(|c| (*c.listener.access_log[0]).clone())
    };
    let file = |path: &str| log("file.v3.FileAccessLog", &format!("path: {path}")).unwrap().sink;
    assert_eq!(file("/dev/stdout"), AccessLogSink::Stdout);
    assert_eq!(file("/dev/stderr"), AccessLogSink::Stderr);
    assert_eq!(file("/tmp/x"), AccessLogSink::File("/tmp/x".into()));
    assert_eq!(log("stream.v3.StderrAccessLog", "").unwrap().sink, AccessLogSink::Stderr);
    let format = |fields: &str| {
        log("stream.v3.StdoutAccessLog", &format!("log_format: {{{fields}}}")).map(|l| l.format)
    };
    assert_eq!(
        format("text_format_source: {inline_string: '%PROTOCOL%'}").unwrap(),
        AccessLogFormat::Text(template("%PROTOCOL%"))
    );
    assert_eq!(format("text_format: '%%'").unwrap(), AccessLogFormat::Text(template("%%")));
    let json: AccessLogFormat = format("json_format: {b: '%PROTOCOL%', a: x}").unwrap();
    assert_eq!(
        json,
        AccessLogFormat::Json([("a".into(), template("x")), ("b".into(), template("%PROTOCOL%"))].into())
    );
    match log("stream.v3.StdoutAccessLog", "").unwrap().format {
        AccessLogFormat::Text(text) => assert_eq!(text.as_literal(), None, "Envoy's own"),
        other => panic!("{other:?}"),
    }
    let at = "access_log[0].typed_config.log_format.";
    for (fields, expected) in [
        ("text_format: '%NO_SUCH_THING%'", "text_format: "),
        ("text_format_source: {filename: /x}", "text_format_source: needs `inline_string`"),
        ("text_format: x, omit_empty_values: true", "omit_empty_values: is not supported"),
        ("json_format: {a: 3}", "json_format.a: must be text"),
        ("json_format: {a: '%'}", "json_format.a: "),
        ("", "format: is required"),
    ] {
        let error = format(fields).unwrap_err();
        let text = format!("{}: {}", error.field, error.reason);
        assert!(text.starts_with(&format!("{at}{expected}")), "{text}");
    }
    assert_eq!(log("file.v3.FileAccessLog", "").unwrap_err().field, "access_log[0].typed_config.path");
}

#[test]
fn what_is_refused() {
    let hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let pipe = "{'@type': type.googleapis.com/envoy.config.core.v3.Pipe}";
    let matched = |fields: &str| with_chains(&[chain(&format!("filter_chain_match: {{{fields}}}"))], "");
    let filters = |filters: &str| with_chains(&[format!("{{filters: [{filters}]}}")], "");
    let proxy = |fields: &str| filters(&tcp_filter(fields));
    let at = "filter_chains[0].filters[0].typed_config.";
    let matches = "filter_chains[0].filter_chain_match.";
    let cases = [
        (with("").replace("name: l,", "name: m,"), "name: is `m`".to_owned()),
        ("{name: l}".into(), "address: is required".into()),
        (with("").replace("127.0.0.1", "localhost"), "address.socket_address.address: `localhost` is not an IP".into()),
        (with("").replace("socket_address: {address: 127.0.0.1, port_value: 80}", "pipe: {path: /x}"), "address.pipe: is not supported here".into()),
        (at_address("address: 'fd00::1', port_value: 80, ipv4_compat: true"), "address.socket_address.ipv4_compat: is for `::` only, not for `fd00::1`".into()),
        (at_address("address: 0.0.0.0, port_value: 80, ipv4_compat: true"), "address.socket_address.ipv4_compat: is for `::` only, not for `0.0.0.0`".into()),
        (at_address("address: '::', ipv4_compat: true"), "address.socket_address.port_value: is required".into()),
        (with_chains(&[], ""), "filter_chains: needs at least one".into()),
        (with("api_listener: {}"), "api_listener: is for proxyless clients".into()),
        (with("listener_filters_timeout: -1s"), "listener_filters_timeout: must not be negative".into()),
        (with("listener_filters: [{name: x}]"), "listener_filters[0].typed_config: is required".into()),
        (with(&format!("listener_filters: [{{name: x, typed_config: {pipe}}}]")), "listener_filters[0].typed_config: extension type".into()),
        (with("metadata: {filter_metadata: {osier: {chains_by_server_name: 3}}}"), "metadata.filter_metadata[\"osier\"].chains_by_server_name: must be".into()),
        (with(&format!("default_filter_chain: {}", chain("filter_chain_match: {destination_port: 1}"))), "default_filter_chain.filter_chain_match: must be empty".into()),
        (with(&format!("access_log: [{{name: x, typed_config: {pipe}}}]")), "access_log[0].typed_config: extension type".into()),
        (with("access_log: [{name: x}]"), "access_log[0].typed_config: is required".into()),
        (with_chains(&[chain("name: a"), chain("name: b")], ""), "filter_chains[1].filter_chain_match: is the same as that of filter_chains[0] `a`".into()),
        (with_chains(&[chain("filter_chain_match: {server_names: [a.b, c.d]}"), chain("filter_chain_match: {server_names: [C.D]}")], ""), "filter_chains[1].filter_chain_match: is the same".into()),
        (with_chains(&[chain("transport_socket: {name: tls}")], ""), "filter_chains[0].transport_socket: transport socket `tls`".into()),
        (matched("destination_port: 0"), format!("{matches}destination_port: must be between 1")),
        (matched("source_ports: [1, 65536]"), format!("{matches}source_ports[1]: must be between 1")),
        (matched("prefix_ranges: [{address_prefix: x}]"), format!("{matches}prefix_ranges[0].address_prefix: `x` is not an IP")),
        (matched("source_prefix_ranges: [{address_prefix: 1.2.3.4, prefix_len: 33}]"), format!("{matches}source_prefix_ranges[0].prefix_len: 33 is too long")),
        (matched("direct_source_prefix_ranges: [{address_prefix: ''}]"), format!("{matches}direct_source_prefix_ranges[0].address_prefix")),
        (matched("server_names: ['*']"), format!("{matches}server_names[0]: `*`: a wildcard")),
        (matched("server_names: [a, 'b.*']"), format!("{matches}server_names[1]: `b.*`: a wildcard")),
        (matched("transport_protocol: quic"), format!("{matches}transport_protocol: `quic` is not supported")),
        (filters(""), "filter_chains[0].filters: the last filter must be".into()),
        (filters("{name: x}"), "filter_chains[0].filters[0].typed_config: is required".into()),
        (filters(&format!("{{typed_config: {pipe}}}")), "filter_chains[0].filters[0].name: must not be empty".into()),
        (filters(&format!("{{name: x, typed_config: {pipe}}}")), "filter_chains[0].filters[0].typed_config: extension type type.googleapis.com/envoy.config.core.v3.Pipe".into()),
        (filters(&[tcp_filter("stat_prefix: t, cluster: c"), tcp_filter("stat_prefix: t, cluster: c")].join(", ")), "filter_chains[0].filters[0]: terminal filter `tcp` must be the last".into()),
        (filters("{name: s, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.sni_cluster.v3.SniCluster}}"), "filter_chains[0].filters: the last filter must be".into()),
        (filters(&format!("{{name: x, typed_config: {{'@type': {hcm}}}}}")), format!("{at}stat_prefix: must not be empty")),
        (proxy("cluster: c"), format!("{at}stat_prefix: must not be empty")),
        (proxy("stat_prefix: t"), format!("{at}cluster: is required")),
        (proxy("stat_prefix: t, cluster: ''"), format!("{at}cluster: must not be empty")),
        (proxy("stat_prefix: t, cluster: c, idle_timeout: -3s"), format!("{at}idle_timeout: must not be negative")),
        (proxy("stat_prefix: t, cluster: c, max_connect_attempts: 0"), format!("{at}max_connect_attempts: must be between 1")),
        (proxy("stat_prefix: t, cluster: c, max_downstream_connection_duration: 0s"), format!("{at}max_downstream_connection_duration: must be at least 1ms")),
        (proxy("stat_prefix: t, weighted_clusters: {}"), format!("{at}weighted_clusters.clusters: weights must add up")),
        (proxy("stat_prefix: t, weighted_clusters: {clusters: [{name: a}]}"), format!("{at}weighted_clusters.clusters[0].weight: must be between 1")),
        (proxy("stat_prefix: t, weighted_clusters: {clusters: [{weight: 1}]}"), format!("{at}weighted_clusters.clusters[0].name: must not be empty")),
    ];
    let cases: Vec<_> = cases.iter().map(|(yaml, text)| (yaml.as_str(), text.as_str())).collect();
    refused(&cases, compile);
}
