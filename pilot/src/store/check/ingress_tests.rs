//! Ingresses: what is accepted and as what, and what is refused.

use std::sync::Arc;

use super::*;
use crate::model::Kind;
use crate::source::decode::decode;
use crate::source::yaml::parse;

fn checked(spec: &str) -> Result<Checked<Ingress>, String> {
    let context = Context::new(Kind::Ingress, "prod", "test", 7, &Arc::from("cluster.local"));
    let node = parse(&format!("metadata: {{}}\nspec: {spec}")).expect("YAML").remove(0);
    let ingress: schema::Ingress = decode(&node).map_err(|error| error.to_string())?;
    Ok(check(&context, &ingress))
}

fn problems(spec: &str) -> Vec<String> {
    match checked(spec) {
        Err(error) => vec![error],
        Ok(checked) => checked.problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect(),
    }
}

const TO: &str = "backend: {service: {name: web, port: {number: 80}}}";

fn path_rule(path: &str) -> PathRule {
    let spec = format!("{{rules: [{{http: {{paths: [{{{path}, {TO}}}]}}}}]}}");
    let ingress = checked(&spec).expect("decodes").value.expect("accepted");
    ingress.rules[0].paths[0].matches.clone()
}

#[test]
fn path_types() {
    let below = |text: &str| PathRule::Below(text.into());
    for (path, wanted) in [
        ("path: /a, pathType: Exact", PathRule::Exact("/a".into())),
        ("path: /a/, pathType: Exact", PathRule::Exact("/a/".into())),
        ("path: /, pathType: Prefix", below("")),
        ("path: /a, pathType: Prefix", below("/a")),
        ("path: /a/, pathType: Prefix", below("/a")),
        ("path: /a//, pathType: Prefix", below("/a")),
        ("path: /a/*, pathType: Prefix", below("/a/*")),
        ("path: /a, pathType: ImplementationSpecific", below("/a")),
        ("path: /a", below("/a")),
        ("path: /a/*", PathRule::Beginning("/a".into())),
        ("path: /a.*", PathRule::Beginning("/a".into())),
        ("path: ''", below("")),
        ("pathType: ImplementationSpecific", below("")),
    ] {
        assert_eq!(path_rule(path), wanted, "{path}");
    }
}

#[test]
fn what_is_refused_is_named() {
    let with = |path: &str| format!("{{rules: [{{http: {{paths: [{{{path}}}]}}}}]}}");
    let at = "spec.rules[0].http.paths[0]";
    for (spec, wanted) in [
        (
            with(&format!("path: a, pathType: Prefix, {TO}")),
            format!("{at}.path: \"a\" does not begin with a slash"),
        ),
        (with(&format!("pathType: Exact, {TO}")), format!("{at}.path: \"\" does not begin with a slash")),
        (with(&format!("path: /a?b, pathType: Exact, {TO}")), format!("{at}.path: \"/a?b\" is no path")),
        (with(&format!("path: /a, pathType: Regex, {TO}")), format!("{at}.pathType: \"Regex\" is none of")),
        (with("path: /a"), format!("{at}: the field backend is required")),
        (with("path: /a, backend: {}"), format!("{at}.backend.service: is required")),
        (
            with("path: /a, backend: {resource: {kind: Bucket, name: x}}"),
            format!("{at}.backend.resource: only Services are served"),
        ),
        (
            with("path: /a, backend: {service: {name: web, port: {number: 70000}}}"),
            format!("{at}.backend.service.port.number: 70000 is no port number"),
        ),
        (
            with("path: /a, backend: {service: {name: web, port: {number: 80, name: http}}}"),
            format!("{at}.backend.service.port: has a name and a number"),
        ),
        (
            with("path: /a, backend: {service: {name: web, port: {}}}"),
            format!("{at}.backend.service.port.number: 0 is no port number"),
        ),
        ("{rules: [{host: 'a b', http: {paths: []}}]}".to_owned(), "spec.rules[0].host: \"a b\"".to_owned()),
        ("{rules: [{host: '*a.b'}]}".to_owned(), "spec.rules[0].host: \"*a.b\"".to_owned()),
        ("{}".to_owned(), "spec: needs rules or a defaultBackend".to_owned()),
        (
            "{rules: [{host: a.b}], tls: [{hosts: [a.b]}]}".to_owned(),
            "spec.tls[0].secretName: is not there".to_owned(),
        ),
    ] {
        let got = problems(&spec);
        assert!(got.len() == 1 && got[0].starts_with(&wanted), "{spec}\n got {got:#?}\n wanted {wanted}");
    }
}

#[test]
fn hosts_and_certificates() {
    let spec = "{ingressClassName: istio, rules: [{host: '*'}, {host: A.b}], tls: [{secretName: s}, {hosts: ['*.b'], secretName: t}]}";
    let ingress = checked(spec).expect("decodes").value.expect("accepted");
    let hosts: Vec<_> =
        ingress.rules.iter().map(|rule| rule.host.as_ref().map(|host| host.as_str())).collect();
    assert_eq!(hosts, [None, Some("a.b")]);
    assert_eq!(ingress.class.as_deref(), Some("istio"));
    let tls: Vec<_> = ingress.tls.iter().map(|tls| (tls.hosts.len(), &*tls.secret)).collect();
    assert_eq!(tls, [(0, "s"), (1, "t")]);
}
