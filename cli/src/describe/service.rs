//! One Service: how its ports are understood, who is behind it, which subsets and routes hold for it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service as Written, ServicePort as WrittenPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use osier_core::host::Host;
use osier_core::labels::Labels;
use osier_pilot::model::{
    Destination, DestinationPolicy, Health, HttpAction, HttpMatch, Kind, Protocol, ProxyView, ResourceKey,
    RouteRule, Service, ServiceKey, StringMatch, TrafficPolicy, ValueMatch,
};
use osier_pilot::snapshot::MeshSnapshot;

use super::mesh::View;
use super::page::Page;
use super::refused::Refused;

/// Describes a Service; with the labels of a pod, as what is in front of that pod.
pub fn describe(page: &mut Page, view: &View, written: &Written, pod: Option<&Labels>) {
    let (name, namespace) = (written.name_any(), written.namespace().unwrap_or_default());
    page.line(0, format!("Service: {name}.{namespace}"));
    let mesh = &*view.snapshot;
    let host = Host::new(&format!("{name}.{namespace}.svc.{}", mesh.cluster_domain));
    let key = ServiceKey { host: host.clone(), namespace: namespace.as_str().into() };
    let known = mesh.service_by_key(&key);
    let own = ResourceKey::new(Kind::Service, namespace.as_str(), name.as_str());
    let spec = written.spec.as_ref();
    if let Some(target) = spec.and_then(|spec| spec.external_name.as_ref()) {
        page.line(1, format!("stands for {target}"));
    }
    for port in spec.and_then(|spec| spec.ports.as_ref()).into_iter().flatten() {
        describe_port(page, port, &format!("{name}.{namespace}"));
        let proxied = known.filter(|_| transport(port) == "TCP");
        if let Some(service) = proxied {
            endpoints(page, mesh, service, port_number(port));
        }
    }
    match known {
        Some(service) => {
            let seen = View::seen_from(&service.key.namespace);
            let policy = mesh.destination_policy(&seen, service);
            if let Some(policy) = policy {
                destination_rule(page, view, &seen, service, policy, pod);
            }
            let here = pod.map(|labels| Here { service, policy: policy.map(|p| &**p), labels });
            routes(page, view, &seen, service, here.as_ref());
            view.remarks_on(&service.resource).for_each(|remark| page.warn(remark));
        }
        None if view.refused.iter().any(|refused| refused.key == own) => {}
        None => page.warn(format!("the mesh does not know service {name}.{namespace}: do discoverySelectors leave its namespace out?")),
    }
    let about = |refused: &&Refused| refused.key == own || refused.is_about(&host);
    view.refused.iter().filter(about).for_each(|refused| refused.describe(page, 0));
}

fn port_number(port: &WrittenPort) -> u16 {
    u16::try_from(port.port).unwrap_or(0)
}

fn transport(port: &WrittenPort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

/// The port as written, and how its protocol was told.
fn describe_port(page: &mut Page, port: &WrittenPort, service: &str) {
    let (name, number) = (port.name.as_deref().unwrap_or_default(), port_number(port));
    let transport = transport(port);
    let protocol = Protocol::of_kubernetes_port(transport, port.app_protocol.as_deref(), name, number);
    let label = if name.is_empty() { number.to_string() } else { format!("{name} {number}") };
    if transport != "TCP" {
        return page.line(1, format!("Port: {label}/{transport} passes by the mesh"));
    }
    let target = match &port.target_port {
        Some(IntOrString::Int(number)) => number.to_string(),
        Some(IntOrString::String(name)) => name.clone(),
        None => number.to_string(),
    };
    let shown =
        if protocol == Protocol::Auto { "unknown".into() } else { format!("{protocol:?}").to_uppercase() };
    let told = how_told(port.app_protocol.as_deref(), name, protocol);
    page.line(1, format!("Port: {label}/{shown} targets pod port {target} ({told})"));
    if protocol == Protocol::Auto {
        page.warn(format!(
            "port {label} of service {service} doesn't say what is spoken there, so each connection is looked at: \
             set appProtocol, or name it http, grpc, tcp, …"
        ));
    }
}

fn how_told(app_protocol: Option<&str>, name: &str, protocol: Protocol) -> String {
    let by_name = Protocol::of_kubernetes_port("TCP", None, name, 0) != Protocol::Auto;
    match app_protocol {
        Some(app) if protocol == Protocol::Auto => format!("appProtocol {app} is not known"),
        Some(app) => format!("by appProtocol {app}"),
        None if protocol == Protocol::Auto => "guessed for each connection".into(),
        None if by_name => "by its name".into(),
        None => "by its number".into(),
    }
}

/// How many endpoints a port has; a warning where none takes traffic.
fn endpoints(page: &mut Page, mesh: &MeshSnapshot, service: &Service, number: u16) {
    if service.port(number).is_none() {
        return;
    }
    let all = mesh.endpoints(&service.key, number).map_or(&[][..], |all| all);
    let ready = all.iter().filter(|endpoint| endpoint.health == Health::Healthy).count();
    let others = all.len() - ready;
    let more = if others == 0 { String::new() } else { format!(", and {others} that take no new traffic") };
    page.line(2, format!("{ready} ready {}{more}", if ready == 1 { "endpoint" } else { "endpoints" }));
    if ready > 0 {
        return;
    }
    let name = short(service.host(), mesh);
    let matching = service.selector.as_ref().map(|selector| {
        let namespace = &service.key.namespace;
        mesh.workloads.iter().filter(|w| w.namespace() == namespace && selector.selects(&w.labels)).count()
    });
    let why = match matching {
        None => "it has no selector, and no EndpointSlice names addresses".to_owned(),
        Some(0) => format!("no pod has the labels {}", labels(service.selector.as_ref())),
        Some(_) if others > 0 => "its pods are not ready".to_owned(),
        Some(_) => "its pods are not ready, or don't have that port".to_owned(),
    };
    page.warn(format!("port {number} of service {name} has no ready endpoint: {why}"));
}

fn labels(labels: Option<&Labels>) -> String {
    let pairs = labels.into_iter().flat_map(Labels::iter).map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(",")
}

/// A host as short as people write it.
fn short(host: &Host, mesh: &MeshSnapshot) -> String {
    let suffix = format!(".svc.{}", mesh.cluster_domain);
    host.as_str().strip_suffix(&suffix).unwrap_or(host.as_str()).to_owned()
}

fn destination_rule(
    page: &mut Page,
    view: &View,
    seen: &ProxyView,
    service: &Service,
    policy: &DestinationPolicy,
    pod: Option<&Labels>,
) {
    for key in std::iter::once(&policy.key).chain(&policy.merged) {
        page.line(0, format!("DestinationRule: {}.{} for \"{}\"", key.name, key.namespace, policy.host));
        view.remarks_on(key).for_each(|remark| page.warn(remark_on(key, remark)));
    }
    let mesh = &*view.snapshot;
    let counts: Vec<(&Arc<str>, usize)> = policy
        .subsets
        .iter()
        .map(|subset| {
            let of_port = |number| mesh.cluster_endpoints(seen, service, number, Some(&subset.name));
            let most =
                service.ports.iter().filter_map(|port| of_port(port.number)).map(|all| all.len()).max();
            (&subset.name, most.unwrap_or(0))
        })
        .collect();
    let list = |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    match pod {
        Some(pod) if !policy.subsets.is_empty() => {
            let (matching, other): (Vec<_>, Vec<_>) =
                policy.subsets.iter().partition(|s| s.labels.selects(pod));
            page.line(1, format!("Matching subsets: {}", list(matching.iter().map(|s| &*s.name).collect())));
            if !other.is_empty() {
                let names: Vec<&str> = other.iter().map(|s| &*s.name).collect();
                page.line(2, format!("(Non-matching subsets {})", names.join(", ")));
            }
        }
        None if !policy.subsets.is_empty() => {
            let subsets: Vec<String> =
                counts.iter().map(|(name, count)| format!("{name} ({count})")).collect();
            page.line(1, format!("Subsets, with their endpoints: {}", subsets.join(", ")));
        }
        _ => page.line(1, "No subsets"),
    }
    page.line(1, traffic_policy(policy.policy.as_ref()));
    for (name, count) in counts {
        if count == 0 {
            page.warn(format!(
                "subset {name} of DestinationRule {}.{} selects no endpoint",
                policy.key.name, policy.key.namespace
            ));
        }
    }
}

fn traffic_policy(policy: Option<&TrafficPolicy>) -> String {
    let Some(policy) = policy else { return "No traffic policy".into() };
    let mut parts = Vec::new();
    parts.extend(policy.load_balancer.map(|balancer| format!("load balancer {balancer:?}")));
    parts.extend(policy.connection_pool.as_ref().map(|_| "connection pool".to_owned()));
    let ports: Vec<String> = policy.ports.iter().map(|port| port.port.to_string()).collect();
    parts.extend((!ports.is_empty()).then(|| format!("own settings for port {}", ports.join(", "))));
    if parts.is_empty() {
        "No traffic policy".into()
    } else {
        format!("Traffic policy: {}", parts.join("; "))
    }
}

/// The pod that is described, as destinations may mean it.
struct Here<'a> {
    service: &'a Service,
    policy: Option<&'a DestinationPolicy>,
    labels: &'a Labels,
}

impl Here<'_> {
    fn is(&self, destination: &Destination) -> bool {
        let in_subset = |name: &Arc<str>| {
            self.policy.and_then(|policy| policy.subset(name)).is_some_and(|s| s.labels.selects(self.labels))
        };
        destination.host == *self.service.host() && destination.subset.as_ref().is_none_or(in_subset)
    }
}

/// The VirtualServices that hold for the service's ports.
fn routes(page: &mut Page, view: &View, seen: &ProxyView, service: &Service, here: Option<&Here<'_>>) {
    let mesh = &*view.snapshot;
    let mut rules: Vec<&Arc<RouteRule>> = Vec::new();
    for port in &service.ports {
        let http = mesh.virtual_service_for(seen, service, port.number).map(|(rule, _)| rule);
        let others = mesh.l4_rules_for(seen, service);
        for rule in http.into_iter().chain(others) {
            if !rules.iter().any(|known| known.key == rule.key) {
                rules.push(rule);
            }
        }
    }
    for rule in rules {
        let key = &rule.key;
        page.line(0, format!("VirtualService: {}.{}", key.name, key.namespace));
        for (number, route) in rule.http.iter().enumerate() {
            let name = if route.name.is_empty() { String::new() } else { format!(" {}", route.name) };
            page.line(1, format!("HTTP route {}{name}: {}", number + 1, conditions(&route.matches)));
            match &route.action {
                HttpAction::Forward(to) => {
                    let to = to.iter().map(|w| (&w.destination, w.weight)).collect();
                    destinations(page, mesh, to, here);
                }
                HttpAction::Redirect(redirect) => {
                    page.line(2, format!("redirected with {}", redirect.status))
                }
                HttpAction::Direct(answer) => page.line(2, format!("answered with {}", answer.status)),
            }
        }
        for route in &rule.tls {
            let names = route.matches.iter().flat_map(|matched| &matched.sni).map(|name| name.as_str());
            page.line(1, format!("TLS route: server name {}", names.collect::<Vec<_>>().join(", ")));
            destinations(
                page,
                mesh,
                route.destinations.iter().map(|w| (&w.destination, w.weight)).collect(),
                here,
            );
        }
        for route in &rule.tcp {
            let ports = route.matches.iter().filter_map(|matched| matched.port).map(|port| port.to_string());
            let ports = ports.collect::<Vec<_>>().join(", ");
            page.line(
                1,
                if ports.is_empty() { "TCP route".into() } else { format!("TCP route: port {ports}") },
            );
            destinations(
                page,
                mesh,
                route.destinations.iter().map(|w| (&w.destination, w.weight)).collect(),
                here,
            );
        }
        view.remarks_on(key).for_each(|remark| page.warn(remark_on(key, remark)));
    }
}

fn remark_on(key: &ResourceKey, remark: &str) -> String {
    format!("{:?} {}.{}: {remark}", key.kind, key.name, key.namespace)
}

/// Destinations with their shares, in percent where there are several.
fn destinations(page: &mut Page, mesh: &MeshSnapshot, to: Vec<(&Destination, u32)>, here: Option<&Here<'_>>) {
    let total: u64 = to.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let several = to.len() > 1;
    for (destination, weight) in to {
        let mut line = String::new();
        if several {
            line.push_str(&format!("{}% ", (u64::from(weight) * 100 + total / 2) / total.max(1)));
        }
        line.push_str(&format!("to {}", short(&destination.host, mesh)));
        line.extend(destination.subset.as_ref().map(|subset| format!(" subset {subset}")));
        line.extend(destination.port.map(|port| format!(" port {port}")));
        if here.is_some_and(|here| here.is(destination)) {
            line.push_str(" (this pod)");
        }
        page.line(2, line);
    }
}

/// The conditions of a route, any of which must hold.
fn conditions(matches: &[HttpMatch]) -> String {
    if matches.is_empty() || matches.iter().any(everything) {
        return "all requests".into();
    }
    matches.iter().map(condition).collect::<Vec<_>>().join(", or ")
}

fn everything(matched: &HttpMatch) -> bool {
    matched.catches_all()
        && matched.port.is_none()
        && matched.source_labels.is_empty()
        && matched.source_namespace.is_none()
}

fn condition(matched: &HttpMatch) -> String {
    let of =
        |what: &str, matched: &Option<StringMatch>| matched.as_ref().map(|m| format!("{what} {}", words(m)));
    let value = |what: &str, (name, matched): &(Arc<str>, ValueMatch)| match matched {
        ValueMatch::Present => format!("{what} {name}"),
        ValueMatch::Text(text) => format!("{what} {name} {}", words(text)),
    };
    let mut parts = Vec::new();
    parts.extend(of("path", &matched.uri));
    parts.extend(of("scheme", &matched.scheme));
    parts.extend(of("method", &matched.method));
    parts.extend(of("authority", &matched.authority));
    parts.extend(matched.headers.iter().map(|header| value("header", header)));
    parts.extend(matched.without_headers.iter().map(|header| value("not header", header)));
    parts.extend(matched.query.iter().map(|parameter| value("parameter", parameter)));
    parts.extend(matched.port.map(|port| format!("port {port}")));
    if !matched.source_labels.is_empty() {
        parts.push(format!("from pods with {}", labels(Some(&matched.source_labels))));
    }
    parts.extend(matched.source_namespace.as_ref().map(|namespace| format!("from namespace {namespace}")));
    parts.join(" and ")
}

fn words(matched: &StringMatch) -> String {
    match matched {
        StringMatch::Exact(text) => format!("= {text}"),
        StringMatch::Prefix(text) => format!("{text}*"),
        StringMatch::Regex(text) => format!("~ {text}"),
    }
}
