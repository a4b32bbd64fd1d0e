//! One pod: its sidecar, its ports, and the Services in front of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, Service as Written};
use kube::ResourceExt as _;
use osier_core::labels::Labels;
use osier_pilot::model::ProxyView;

use super::mesh::View;
use super::page::Page;
use super::service;
use crate::check_inject::has_sidecar;
use crate::pods::runs;

/// User that the proxy runs as; what others send as this user is not captured.
const PROXY_USER: i64 = 1337;

/// Describes a pod; `services` are those of its namespace.
pub fn describe(page: &mut Page, view: &View, pod: &Pod, services: &[Written]) {
    let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
    page.line(0, format!("Pod: {name}.{namespace}"));
    let injected = has_sidecar(pod);
    if let Some(revision) = pod.annotations().get("istio.io/rev").filter(|_| injected) {
        page.line(1, format!("Pod revision: {revision}"));
    }
    page.line(1, format!("Pod ports: {}", ports(pod)));
    warn_of_pod(page, view, pod, injected);

    let labels = Labels::from(pod.labels().clone());
    for written in services.iter().filter(|service| selects(service, pod.labels())) {
        page.rule();
        service::describe(page, view, written, Some(&labels));
    }
    let seen = ProxyView {
        name: name.as_str().into(),
        labels,
        addresses: addresses(pod).into(),
        ..View::seen_from(&namespace.as_str().into())
    };
    show_policies(page, view, &seen);
    warn_of_ports(page, view, &seen);
    let root = &*view.snapshot.mesh.root_namespace;
    let covering: Vec<_> =
        view.refused.iter().filter(|refused| refused.may_cover(&namespace, root)).collect();
    if !covering.is_empty() {
        page.rule();
        covering.iter().for_each(|refused| refused.describe(page, 0));
    }
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let always = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten().filter(always);
    spec.map(|spec| &spec.containers).into_iter().flatten().chain(sidecars)
}

/// `9080 (reviews), 15090 (istio-proxy)`.
fn ports(pod: &Pod) -> String {
    let of = |container: &Container| {
        let ports = container.ports.clone().unwrap_or_default();
        let name = container.name.clone();
        ports.into_iter().map(move |port| match port.protocol.as_deref() {
            None | Some("TCP") => format!("{} ({name})", port.container_port),
            Some(other) => format!("{}/{other} ({name})", port.container_port),
        })
    };
    let all: Vec<String> = containers(pod).flat_map(of).collect();
    if all.is_empty() { "none are declared".into() } else { all.join(", ") }
}

fn selects(service: &Written, labels: &BTreeMap<String, String>) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| {
        !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    })
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
    ips.filter_map(|ip| ip.ip.parse().ok()).collect()
}

fn warn_of_pod(page: &mut Page, view: &View, pod: &Pod, injected: bool) {
    let name = format!("{}.{}", pod.name_any(), pod.namespace().unwrap_or_default());
    if !injected {
        page.warn(format!("pod {name} has no sidecar: `osier check-inject` says why"));
    }
    if !runs(pod) {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("unknown");
        let phase = if pod.metadata.deletion_timestamp.is_some() { "ending" } else { phase };
        page.warn(format!("pod {name} does not run: it is {phase}"));
    } else if injected {
        let status = pod.status.as_ref();
        let all = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
        let mut all =
            all.chain(status.and_then(|s| s.init_container_statuses.as_ref()).into_iter().flatten());
        if all.any(|container| container.name == "istio-proxy" && !container.ready) {
            page.warn(format!(
                "the sidecar of {name} is not ready: `osier logs` of the pod says what it waits for"
            ));
        } else if view.connected.as_ref().is_some_and(|connected| !connected.contains(&name)) {
            page.warn(format!(
                "the sidecar of {name} is connected to no pilot: it keeps what it has, and learns nothing new"
            ));
        }
    }
    if pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
        page.warn(format!("pod {name} has the network of its node: nothing of its traffic is captured"));
    }
    let labels = pod.labels();
    if !["app", "app.kubernetes.io/name"].iter().any(|key| labels.contains_key(*key)) {
        page.warn(format!(
            "pod {name} has no label app (or app.kubernetes.io/name): metrics call it by its workload's name"
        ));
    }
    let user_of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.run_as_user);
    for container in containers(pod).filter(|container| injected && container.name != "istio-proxy") {
        let user =
            container.security_context.as_ref().and_then(|context| context.run_as_user).or(user_of_pod);
        if user == Some(PROXY_USER) {
            page.warn(format!("container {} of {name} runs as user {PROXY_USER}, the proxy's own: its traffic is not captured", container.name));
        }
    }
}

/// The AuthorizationPolicies that hold for it, in the order in which they are asked.
fn show_policies(page: &mut Page, view: &View, seen: &ProxyView) {
    let mut policies = view.snapshot.authorizations(seen);
    if policies.is_empty() {
        return;
    }
    policies.sort_by_key(|(key, policy)| (policy.action, (*key).clone()));
    page.rule();
    page.line(0, "AuthorizationPolicies:");
    for (key, policy) in policies {
        let action = format!("{:?}", policy.action).to_uppercase();
        let dry_run = if policy.dry_run { ", dry run" } else { "" };
        page.line(1, format!("{}.{} ({action}{dry_run})", key.name, key.namespace));
    }
}

/// Ports of the pod that several services see differently, and such that take nothing.
fn warn_of_ports(page: &mut Page, view: &View, seen: &ProxyView) {
    for inbound in view.snapshot.inbound_ports(seen) {
        let differ = inbound.services.iter().any(|(_, port)| port.protocol != inbound.protocol);
        if differ {
            let all: Vec<String> = inbound
                .services
                .iter()
                .map(|(service, port)| {
                    format!("{:?} for {} port {}", port.protocol, service.name, port.number).to_lowercase()
                })
                .collect();
            page.warn(format!(
                "pod port {} is {}: the oldest service decides, so it is taken as {}",
                inbound.port,
                all.join(", "),
                format!("{:?}", inbound.protocol).to_lowercase()
            ));
        }
        if let Some(refusal) = view.snapshot.refusal(seen, inbound.port) {
            page.warn(format!("everything that reaches pod port {} is refused: {refusal}", inbound.port));
        }
    }
}
