//! Files that are read, and files that are refused with the field that is wrong.

use osier_proto::xds::Variant;

use super::*;

fn parse(yaml: &str) -> Result<Bootstrap, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bootstrap.yaml");
    std::fs::write(&path, yaml).unwrap();
    load(&path).map_err(|e| e.to_string().replace(&format!("{}: ", path.display()), ""))
}

const STATIC: &str = r#"
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}
static_resources:
  listeners:
  - name: in
    address: {socket_address: {address: 127.0.0.1, port_value: 10000}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: /}, route: {cluster: app}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: app
    connect_timeout: 1s
    type: STATIC
    load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 80}}}}]}]}
"#;

const ADS: &str = r#"
node: {id: "sidecar~10.0.0.5~app.default~default.svc.cluster.local", cluster: app.default, metadata: {NAMESPACE: default, INSTANCE_IPS: "10.0.0.5"}}
dynamic_resources:
  ads_config: {api_type: GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: xds}}]}
  cds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}
  lds_config: {ads: {}, resource_api_version: V3}
static_resources:
  clusters:
  - name: xds
    type: STRICT_DNS
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {connection_keepalive: {interval: 30s, timeout: 5s}}}
    load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: pilot.local, port_value: 15010}}}}]}]}
"#;

#[test]
fn static_resources() {
    let bootstrap = parse(STATIC).unwrap();
    assert_eq!(bootstrap.admin, Some("127.0.0.1:15000".parse().unwrap()));
    assert_eq!(bootstrap.listeners.len(), 1);
    assert_eq!(bootstrap.clusters.len(), 1);
    assert!(bootstrap.dynamic.is_none());
}

#[test]
fn a_stock_envoy_bootstrap_with_ads() {
    let bootstrap = parse(ADS).unwrap();
    assert_eq!(bootstrap.node.metadata["NAMESPACE"], "default");
    let dynamic = bootstrap.dynamic.unwrap();
    assert_eq!(
        dynamic.server,
        XdsServer {
            tls: None,
            cluster: "xds".into(),
            variant: Variant::StateOfTheWorld,
            targets: vec![XdsTarget::Tcp("pilot.local".into(), 15010)],
            connect_timeout: Duration::from_secs(1),
            keepalive: Some((Duration::from_secs(30), Duration::from_secs(5))),
        }
    );
    let delta = parse(&ADS.replace("api_type: GRPC", "api_type: DELTA_GRPC")).unwrap();
    assert_eq!(delta.dynamic.unwrap().server.variant, Variant::Incremental);
    assert!(dynamic.listeners && dynamic.clusters);
    assert_eq!((dynamic.cluster_timeout, dynamic.listener_timeout), (None, Some(Duration::from_secs(15))));
}

#[test]
fn a_unix_socket_is_for_xds_only() {
    let pipe = ADS
        .replace("STRICT_DNS", "STATIC")
        .replace("socket_address: {address: pilot.local, port_value: 15010}", "pipe: {path: /run/xds.sock}");
    let bootstrap = parse(&pipe).unwrap();
    assert_eq!(bootstrap.dynamic.unwrap().server.targets, [XdsTarget::Unix("/run/xds.sock".into())]);
    assert!(bootstrap.clusters.is_empty(), "no request can be sent there");
    let unused =
        STATIC.replace("socket_address: {address: 127.0.0.1, port_value: 80}", "pipe: {path: /run/x}");
    let error = parse(&unused).unwrap_err();
    assert!(
        error.contains("static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0]"),
        "{error}"
    );
}

#[test]
fn json_is_read_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bootstrap.json");
    let value: Value = serde_saphyr::from_str(STATIC).unwrap();
    std::fs::write(&path, serde_json::to_vec(&value).unwrap()).unwrap();
    assert_eq!(load(&path).unwrap().listeners.len(), 1);
    std::fs::write(&path, b"{\"node\": }").unwrap();
    assert!(load(&path).unwrap_err().to_string().contains("line 1"));
    let missing = folder.path().join("missing.yaml");
    assert!(load(&missing).unwrap_err().to_string().contains("missing.yaml"));
}

#[test]
fn what_is_wrong_is_named() {
    let cases = [
        (STATIC, "admin:", "adminn:", "adminn: unknown field"),
        (STATIC, "domains:", "domain:", "virtual_hosts[0].domain: unknown field"),
        (
            STATIC,
            "connect_timeout: 1s",
            "connect_timeout: soon",
            "static_resources.clusters[0].connect_timeout: ",
        ),
        (
            STATIC,
            "connect_timeout: 1s",
            "connect_timeout: 0s",
            "static_resources.clusters[0].connect_timeout: must be at least 1ms",
        ),
        (
            STATIC,
            "cluster: app}",
            "cluster: nobody}",
            "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route.cluster: unknown cluster `nobody`",
        ),
        (STATIC, "name: app\n", "name: \"\"\n", "static_resources.clusters[0].name: must not be empty"),
        (
            STATIC,
            "route_config:\n            name: local",
            "rds: {route_config_name: r, config_source: {ads: {}, resource_api_version: V3}}\n          x:\n            name: local",
            ".x: unknown field",
        ),
        (ADS, "node: {id", "node: {user_agent_name", "node: needs `id` and `cluster`"),
        (ADS, "api_type: GRPC", "api_type: REST", "dynamic_resources.ads_config.api_type"),
        (
            ADS,
            "cluster_name: xds}}]",
            "cluster_name: other}}]",
            "dynamic_resources.ads_config.grpc_services[0].envoy_grpc.cluster_name: there is no static cluster `other`",
        ),
        (
            ADS,
            "resource_api_version: V3, initial",
            "initial",
            "dynamic_resources.cds_config.resource_api_version: must be V3",
        ),
        (
            ADS,
            "http2_protocol_options: {connection_keepalive: {interval: 30s, timeout: 5s}}",
            "http_protocol_options: {}",
            "xDS needs HTTP/2",
        ),
        (ADS, "type: STRICT_DNS", "type: EDS", "must be STATIC or STRICT_DNS"),
    ];
    for (base, from, to, expected) in cases {
        assert!(base.contains(from), "{from}");
        let error = parse(&base.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(expected), "{error}\nshould contain\n{expected}");
    }
    let twice = format!("{STATIC}\nadmin: {{}}\n");
    assert!(parse(&twice).unwrap_err().contains("admin"), "a key that is there twice is refused");
    assert!(parse("static_resources: [").is_err());
}
