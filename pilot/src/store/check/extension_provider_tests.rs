//! Rules of extension providers: YAML in, problems out.

use super::*;
use crate::model::{Kind, MeshConfig};
use crate::source::decode::decode;
use crate::source::yaml::parse;
use crate::store::check::Context;
use crate::store::check::mesh::check;

fn read(providers: &str) -> (Option<MeshConfig>, Vec<String>) {
    let yaml = format!("{{extensionProviders: [{providers}]}}");
    let node = parse(&yaml).unwrap_or_else(|e| panic!("{e}: {yaml}")).remove(0);
    let spec: schema::MeshConfig = match decode(&node) {
        Ok(spec) => spec,
        Err(error) => return (None, vec![format!("{}: {}", error.path, error.message)]),
    };
    let context = Context::new(Kind::MeshConfig, "istio-system", "istio", 0, &"cluster.local".into());
    let checked = check(&context, &spec);
    (checked.value, checked.problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect())
}

fn http(fields: &str) -> String {
    format!("{{name: a, envoyExtAuthzHttp: {{service: a.b.svc.cluster.local, port: 80{fields}}}}}")
}

fn grpc(fields: &str) -> String {
    format!("{{name: a, envoyExtAuthzGrpc: {{service: a.b.svc.cluster.local, port: 80{fields}}}}}")
}

#[test]
fn what_is_written_is_what_is_meant() {
    let (mesh, said) = read(
        "{name: tele, prometheus: {}}, {name: opa, envoyExtAuthzGrpc: {service: opa/opa.opa.svc.cluster.local, port: 9191,
          timeout: 1s, failOpen: true, clearRouteCache: true, statusOnError: '503',
          includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true, packAsBytes: true}}},
         {name: web, envoyExtAuthzHttp: {service: w.x, port: 80, pathPrefix: /check, includeRequestHeadersInCheck: [X-A],
          includeHeadersInCheck: ['x-b*'], includeAdditionalHeadersInCheck: {x-c: d}, headersToUpstreamOnAllow: ['*-e'],
          headersToDownstreamOnDeny: [f], headersToDownstreamOnAllow: [g]}}",
    );
    assert_eq!(said, [""; 0]);
    let exact = |text: &str| TextMatch::Exact(text.into());
    let opa = Authorizer {
        name: "opa".into(),
        namespace: Some("opa".into()),
        host: Host::new("opa.opa.svc.cluster.local"),
        port: 9191,
        timeout: Some(std::time::Duration::from_secs(1)),
        fails_open: true,
        routes_anew: true,
        status_on_error: Some(503),
        body: Some(ShownBody { most: 10, partial: true, as_bytes: true }),
        over: AskedOver::Grpc,
    };
    let web = Authorizer {
        name: "web".into(),
        namespace: None,
        host: Host::new("w.x"),
        port: 80,
        timeout: None,
        fails_open: false,
        routes_anew: false,
        status_on_error: None,
        body: None,
        over: AskedOver::Http(HttpQuestion {
            path_prefix: "/check".into(),
            shown: vec![exact("x-a"), TextMatch::Prefix("x-b".into())],
            added: vec![("x-c".into(), "d".into())],
            to_upstream: vec![TextMatch::Suffix("-e".into())],
            to_client_denied: vec![exact("f")],
            to_client_allowed: vec![exact("g")],
        }),
    };
    assert_eq!(mesh.expect("it is taken").authorizers, [opa, web]);
}

#[test]
fn what_is_refused() {
    let at = |field: &str, kind: &str| format!("data.mesh.extensionProviders[0].{kind}.{field}");
    for (yaml, wanted) in [
        (http("").replace("name: a, ", ""), "data.mesh.extensionProviders[0].name: is required".to_owned()),
        (http("") + ", " + &grpc(""), "data.mesh.extensionProviders[1].name: \"a\" is there twice".into()),
        (http("").replace("name: a,", "name: A,"), "data.mesh.extensionProviders[0].name: \"A\" is no name".into()),
        (
            "{name: a, envoyExtAuthzHttp: {service: b.c, port: 1}, envoyExtAuthzGrpc: {service: b.c, port: 1}}".into(),
            "data.mesh.extensionProviders[0].envoyExtAuthzGrpc: excludes envoyExtAuthzHttp".into(),
        ),
        (http(", pathPrefix: a"), at("pathPrefix: \"a\" must begin", "envoyExtAuthzHttp")),
        (http(", pathPrefix: '/a?b'"), at("pathPrefix: \"/a?b\" must begin", "envoyExtAuthzHttp")),
        (http(", statusOnError: '99'"), at("statusOnError: \"99\" is no HTTP status", "envoyExtAuthzHttp")),
        (grpc(", statusOnError: '600'"), at("statusOnError: \"600\" is no HTTP status", "envoyExtAuthzGrpc")),
        (grpc(", timeout: 0s"), at("timeout: must be at least 1ms", "envoyExtAuthzGrpc")),
        (http("").replace("port: 80", "port: 0"), at("port: 0 is no port number", "envoyExtAuthzHttp")),
        (http("").replace("a.b.svc.cluster.local", "'*.b.svc.cluster.local'"), at("service: \"*.b.svc.cluster.local\" is neither", "envoyExtAuthzHttp")),
        (http("").replace("service: a.b.svc.cluster.local, ", ""), at("service: \"\" is neither", "envoyExtAuthzHttp")),
        (http(", headersToUpstreamOnAllow: ['*']"), at("headersToUpstreamOnAllow[0]: a star alone", "envoyExtAuthzHttp")),
        (http(", headersToDownstreamOnDeny: ['a b']"), at("headersToDownstreamOnDeny[0]: \"a b\" is no name", "envoyExtAuthzHttp")),
        (http(", headersToDownstreamOnAllow: ['a*b']"), at("headersToDownstreamOnAllow[0]: \"a*b\" is no name", "envoyExtAuthzHttp")),
        (http(", includeAdditionalHeadersInCheck: {Content-Length: '1'}"), at("includeAdditionalHeadersInCheck", "envoyExtAuthzHttp")),
        (http(", includeAdditionalHeadersInCheck: {x: '%REQ(a)%'}"), at("includeAdditionalHeadersInCheck", "envoyExtAuthzHttp")),
        (http(", includeRequestBodyInCheck: {maxRequestBytes: 0}"), at("includeRequestBodyInCheck.maxRequestBytes: must be", "envoyExtAuthzHttp")),
        (
            http(", includeRequestBodyInCheck: {maxRequestBytes: 1, packAsBytes: true}"),
            at("includeRequestBodyInCheck.packAsBytes: is for gRPC only", "envoyExtAuthzHttp"),
        ),
        (grpc(", pathPrefix: /a"), "extensionProviders[0].envoyExtAuthzGrpc.pathPrefix: unknown field".into()),
        (http(", headersToUpstream: [a]"), "extensionProviders[0].envoyExtAuthzHttp.headersToUpstream: unknown field".into()),
        ("{name: a, envoyExtAuthzHtpp: {}}".into(), "extensionProviders[0].envoyExtAuthzHtpp: unknown field".into()),
    ] {
        let (mesh, said) = read(&yaml);
        assert!(mesh.is_none(), "{yaml}");
        assert!(said[0].starts_with(&wanted), "{yaml}: {said:?}, not {wanted}");
    }
}
