//! `osier check-inject`: which webhooks would put a sidecar into a pod, and why or why not.
//!
//! The selectors of every webhook that injects (ours, their tags, Istio's) are evaluated as the API server does, then what the
//! webhook itself decides about a pod that it is asked about.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ListParams;
use kube::core::{Expression, Selector, SelectorExt as _};
use kube::{Api, Client, ResourceExt as _};
use osier_core::say;
use osier_pilot::inject::{IGNORED_NAMESPACES, INJECT};
use serde::Serialize;

use crate::cluster::{Scope, said};
use crate::output::{self, Output};
use crate::pods::Name;

type Labels = BTreeMap<String, String>;

/// Shows which webhooks would inject a pod, and why or why not.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  osier check-inject shop-6d5f-x2x1z.default
  osier check-inject deployment/shop -n default
  osier check-inject -n default -l app=shop,version=v1")]
pub struct Arguments {
    /// Pod, POD.NAMESPACE, or deployment/NAME.
    #[arg(value_name = "NAME", required_unless_present_any = ["labels", "namespace"])]
    name: Option<String>,
    /// Labels of a pod that isn't there yet.
    #[arg(long, short = 'l', value_name = "KEY=VALUE,…", conflicts_with = "name", value_parser = labels)]
    labels: Option<Labels>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    scope: Scope,
}

fn labels(text: &str) -> Result<Labels, String> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
            _ => Err(format!("`{pair}` is not KEY=VALUE")),
        })
        .collect()
}

/// A pod that is or might be, as far as injection looks at it.
#[derive(Debug, Default)]
struct Candidate {
    namespace: String,
    namespace_labels: Labels,
    labels: Labels,
    annotations: Labels,
    host_network: bool,
}

/// What one configuration does with a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Verdict {
    webhook: String,
    revision: String,
    injected: bool,
    reason: String,
}

/// Prints what each webhook does.
pub async fn run(arguments: Arguments) -> Result<ExitCode> {
    let (client, namespace) = arguments.scope.client().await?;
    let pod = match &arguments.name {
        Some(name) => Some(Name::parse(name, &namespace)?.pod(&client).await?),
        None => None,
    };
    let candidate = match &pod {
        Some(pod) => of_pod(&client, pod).await?,
        None => Candidate {
            namespace_labels: namespace_labels(&client, &namespace).await?,
            namespace,
            labels: arguments.labels.unwrap_or_default(),
            ..Candidate::default()
        },
    };
    let api: Api<MutatingWebhookConfiguration> = Api::all(client);
    let mut configurations = api.list(&ListParams::default()).await.map_err(said)?.items;
    configurations.retain(injects);
    configurations.sort_by_key(|configuration| configuration.name_any());
    let verdicts = configurations.iter().map(|c| verdict(c, &candidate)).collect::<Result<Vec<_>>>()?;
    match arguments.output {
        Output::Table if verdicts.is_empty() => {
            say!(
                "No webhook injects sidecars: `osier install` puts a control plane with one into the cluster."
            );
        }
        Output::Table => {
            say!("{}", table(&verdicts));
            if let Some(pod) = &pod {
                say!("\n{}", as_it_is(pod, &verdicts));
            }
        }
        format => output::print(&verdicts, format)?,
    }
    let several: Vec<&str> = verdicts.iter().filter(|v| v.injected).map(|v| &*v.webhook).collect();
    if several.len() > 1 {
        eprintln!(
            "osier: several webhooks would inject: {}; let only one select the pod",
            several.join(", ")
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn of_pod(client: &Client, pod: &Pod) -> Result<Candidate> {
    let namespace = pod.namespace().unwrap_or_default();
    Ok(Candidate {
        namespace_labels: namespace_labels(client, &namespace).await?,
        namespace,
        labels: pod.labels().clone(),
        annotations: pod.annotations().clone(),
        host_network: pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)),
    })
}

async fn namespace_labels(client: &Client, name: &str) -> Result<Labels> {
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace = api.get_opt(name).await.map_err(said)?;
    Ok(namespace.with_context(|| format!("there is no namespace {name}"))?.labels().clone())
}

/// The pod that is there, which may have been made when other labels held.
fn as_it_is(pod: &Pod, verdicts: &[Verdict]) -> String {
    let name = format!("Pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let would = verdicts.iter().any(|verdict| verdict.injected);
    match (has_sidecar(pod), would) {
        (true, _) => {
            let revision = pod.annotations().get("istio.io/rev");
            let revision = revision.map(|r| format!(" of revision {r}")).unwrap_or_default();
            let later = if would { "" } else { ", and would get none today" };
            format!("{name} has a sidecar{revision}{later}.")
        }
        (false, true) => {
            format!("{name} has no sidecar: it was made before a webhook selected it. Make it anew.")
        }
        (false, false) => format!("{name} has no sidecar."),
    }
}

/// True if the pod has a sidecar, in either place.
pub fn has_sidecar(pod: &Pod) -> bool {
    let containers = |spec: &k8s_openapi::api::core::v1::PodSpec| {
        let init = spec.init_containers.iter().flatten();
        spec.containers.iter().chain(init).any(|container| container.name == "istio-proxy")
    };
    pod.spec.as_ref().is_some_and(containers)
}

fn table(verdicts: &[Verdict]) -> String {
    let mut table = output::table(&["WEBHOOK", "REVISION", "INJECTED", "REASON"]);
    for verdict in verdicts {
        let mark = if verdict.injected { "✔" } else { "✘" };
        table.add_row([&*verdict.webhook, &verdict.revision, mark, &verdict.reason]);
    }
    output::text(&table)
}

/// True for a configuration that injects sidecars: it is asked about new pods, under the path of an injector.
fn injects(configuration: &MutatingWebhookConfiguration) -> bool {
    let asked = |webhook: &MutatingWebhook| {
        let config = &webhook.client_config;
        let path = config.service.as_ref().and_then(|service| service.path.as_deref());
        let by_path = path.or(config.url.as_deref()).is_some_and(|path| path.contains("/inject"));
        let about_pods = webhook.rules.iter().flatten().any(|rule| {
            let has = |list: &Option<Vec<String>>, wanted: &str| {
                list.iter().flatten().any(|item| item == wanted || item == "*")
            };
            has(&rule.operations, "CREATE") && has(&rule.api_groups, "") && has(&rule.resources, "pods")
        });
        by_path && about_pods
    };
    configuration.webhooks.iter().flatten().any(asked)
}

/// A requirement that doesn't hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Missing {
    whose: Whose,
    expression: Expression,
    found: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Namespace,
    Pod,
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::Namespace { "namespace" } else { "pod" })
    }
}

fn verdict(configuration: &MutatingWebhookConfiguration, candidate: &Candidate) -> Result<Verdict> {
    let name = configuration.name_any();
    let revision = configuration.labels().get("istio.io/rev").cloned().unwrap_or_else(|| "-".into());
    let verdict =
        |injected, reason| Verdict { webhook: name.clone(), revision: revision.clone(), injected, reason };
    let mut failed = Vec::new();
    for webhook in configuration.webhooks.iter().flatten() {
        let of = |selector: &Option<LabelSelector>| {
            let selector = selector.clone().unwrap_or_default();
            Selector::try_from(selector)
                .with_context(|| format!("webhook {name}, {}: selector", webhook.name))
        };
        let (namespace, pod) = (of(&webhook.namespace_selector)?, of(&webhook.object_selector)?);
        let parts = [
            (Whose::Namespace, namespace, &candidate.namespace_labels),
            (Whose::Pod, pod, &candidate.labels),
        ];
        let missing: Vec<Missing> =
            parts.iter().flat_map(|(whose, s, labels)| missing(*whose, s, labels)).collect();
        if !missing.is_empty() {
            failed.push(missing);
            continue;
        }
        let selected = why_selected(&parts);
        if let Some(reason) = refused_by_webhook(candidate) {
            return Ok(verdict(false, format!("{selected}, but {reason}")));
        }
        let reason = match webhook.match_conditions.as_ref().is_some_and(|conditions| !conditions.is_empty())
        {
            true => {
                format!("{selected}, if the webhook's matchConditions hold (they are not evaluated here)")
            }
            false => selected,
        };
        return Ok(verdict(true, reason));
    }
    Ok(verdict(false, why_not(&failed)))
}

fn missing(whose: Whose, selector: &Selector, labels: &Labels) -> Vec<Missing> {
    let failing = selector.clone().into_iter().filter(|expression| !expression.matches(labels));
    failing
        .map(|expression| Missing { whose, found: labels.get(key(&expression)).cloned(), expression })
        .collect()
}

fn key(expression: &Expression) -> &str {
    match expression {
        Expression::In(key, _)
        | Expression::NotIn(key, _)
        | Expression::Equal(key, _)
        | Expression::NotEqual(key, _)
        | Expression::Exists(key)
        | Expression::DoesNotExist(key) => key,
    }
}

/// `key=value` for what a requirement wants to be there; `None` if it only wants something not to be.
fn wanted(expression: &Expression) -> Option<String> {
    match expression {
        Expression::In(key, values) => {
            Some(format!("{key}={}", values.iter().cloned().collect::<Vec<_>>().join("|")))
        }
        Expression::Equal(key, value) => Some(format!("{key}={value}")),
        Expression::Exists(key) => Some(key.clone()),
        Expression::NotIn(..) | Expression::NotEqual(..) | Expression::DoesNotExist(_) => None,
    }
}

fn why_selected(parts: &[(Whose, Selector, &Labels)]) -> String {
    let mut labels = Vec::new();
    for (whose, selector, of) in parts {
        for expression in selector.clone() {
            if wanted(&expression).is_some() {
                let key = key(&expression);
                labels.push(format!("{whose} label {key}={}", of.get(key).map_or("", |value| value)));
            }
        }
    }
    if labels.is_empty() { "no label forbids it".into() } else { labels.join(" and ") }
}

/// What a webhook's own rules say of a pod that it is asked about.
fn refused_by_webhook(candidate: &Candidate) -> Option<String> {
    if candidate.host_network {
        return Some("the pod has the network of its node (hostNetwork)".into());
    }
    if IGNORED_NAMESPACES.contains(&&*candidate.namespace) {
        return Some(format!("pods of {} are never injected", candidate.namespace));
    }
    let by_label = candidate.labels.get(INJECT).filter(|value| !value.is_empty());
    let by_annotation = candidate.annotations.get(INJECT).filter(|_| by_label.is_none());
    by_annotation.filter(|value| *value == "false").map(|_| format!("annotation {INJECT}=false forbids it"))
}

/// One sentence about webhooks that all don't select the pod: what forbids it, else what is missing.
fn why_not(failed: &[Vec<Missing>]) -> String {
    let forbidden = failed.iter().find(|missing| missing.iter().all(|m| wanted(&m.expression).is_none()));
    if let Some(missing) = forbidden {
        let labels: Vec<String> = missing
            .iter()
            .map(|m| format!("{} label {}={}", m.whose, key(&m.expression), m.found.as_deref().unwrap_or("")))
            .collect();
        return format!("{} forbids it", labels.join(" and "));
    }
    if failed.iter().flatten().any(|m| key(&m.expression) == "istio.io/deactivated") {
        return "it is switched off: tag default points at another revision".into();
    }
    let mut labels: BTreeMap<Whose, BTreeSet<String>> = BTreeMap::new();
    for missing in failed.iter().flatten() {
        labels.entry(missing.whose).or_default().extend(wanted(&missing.expression));
    }
    let lists = labels.iter().filter(|(_, wanted)| !wanted.is_empty()).map(|(whose, wanted)| {
        format!("{whose} label {}", wanted.iter().cloned().collect::<Vec<_>>().join(" or "))
    });
    format!("no {}", lists.collect::<Vec<_>>().join(", no "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn webhook(name: &str, namespace: Value, object: Value) -> Value {
        json!({
            "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"service": {"name": "osier-pilot", "namespace": "osier-system", "path": "/inject"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
            "namespaceSelector": {"matchExpressions": namespace}, "objectSelector": {"matchExpressions": object},
        })
    }

    fn configuration(name: &str, revision: &str, webhooks: Value) -> MutatingWebhookConfiguration {
        let metadata = json!({"name": name, "labels": {"istio.io/rev": revision}});
        serde_json::from_value(json!({"metadata": metadata, "webhooks": webhooks})).expect("a configuration")
    }

    /// The entries of a revision; with `default`, those of the default one.
    fn revision(rev: &str, default: bool) -> MutatingWebhookConfiguration {
        let not = |key: &str| json!({"key": key, "operator": "DoesNotExist"});
        let is = |key: &str, value: &str| json!({"key": key, "operator": "In", "values": [value]});
        let not_off = || json!({"key": "sidecar.istio.io/inject", "operator": "NotIn", "values": ["false"]});
        let mut entries = vec![
            webhook(
                "rev.namespace.x",
                json!([is("istio.io/rev", rev), not("istio-injection")]),
                json!([not_off()]),
            ),
            webhook(
                "rev.object.x",
                json!([not("istio.io/rev"), not("istio-injection")]),
                json!([not_off(), is("istio.io/rev", rev)]),
            ),
        ];
        if default {
            entries.push(webhook(
                "namespace.x",
                json!([is("istio-injection", "enabled")]),
                json!([not_off()]),
            ));
            entries.push(webhook(
                "object.x",
                json!([not("istio-injection"), not("istio.io/rev")]),
                json!([is("sidecar.istio.io/inject", "true"), not("istio.io/rev")]),
            ));
        }
        configuration(&format!("osier-sidecar-injector-{rev}"), rev, json!(entries))
    }

    fn map(text: &str) -> Labels {
        labels(text).expect(text)
    }

    #[test]
    fn the_table_of_namespace_and_pod_labels() {
        let (default, r1) = (revision("default", true), revision("r1", false));
        // namespace labels, pod labels, who injects
        for (namespace, pod, wanted) in [
            ("istio-injection=enabled", "", "default"),
            ("istio-injection=enabled", "sidecar.istio.io/inject=true", "default"),
            ("istio-injection=enabled", "istio.io/rev=r1", "default"),
            ("istio-injection=enabled", "sidecar.istio.io/inject=false", ""),
            ("istio-injection=disabled", "sidecar.istio.io/inject=true", ""),
            ("istio-injection=disabled", "istio.io/rev=r1", ""),
            ("istio.io/rev=r1", "", "r1"),
            ("istio.io/rev=r1", "istio.io/rev=default", "r1"),
            ("istio.io/rev=r1", "sidecar.istio.io/inject=false", ""),
            ("istio-injection=enabled,istio.io/rev=r1", "", "default"),
            ("", "sidecar.istio.io/inject=true", "default"),
            ("", "sidecar.istio.io/inject=true,istio.io/rev=r1", "r1"),
            ("", "istio.io/rev=r1", "r1"),
            ("", "", ""),
        ] {
            let candidate =
                Candidate { namespace_labels: map(namespace), labels: map(pod), ..Candidate::default() };
            let by: Vec<String> = [&default, &r1]
                .into_iter()
                .map(|configuration| verdict(configuration, &candidate).expect("selectors are valid"))
                .filter(|verdict| verdict.injected)
                .map(|verdict| verdict.revision)
                .collect();
            assert_eq!(by.join(" "), wanted, "namespace {namespace}, pod {pod}");
        }
    }

    #[test]
    fn reasons() {
        let default = revision("default", true);
        let pod = |namespace: &str, labels: &str| Candidate {
            namespace: "shop".into(),
            namespace_labels: map(namespace),
            labels: map(labels),
            ..Candidate::default()
        };
        let with_annotation = Candidate {
            annotations: map("sidecar.istio.io/inject=false"),
            ..pod("istio-injection=enabled", "")
        };
        let on_node = Candidate { host_network: true, ..pod("istio-injection=enabled", "") };
        let system = Candidate { namespace: "kube-system".into(), ..pod("istio-injection=enabled", "") };
        for (candidate, injected, reason) in [
            (pod("istio-injection=enabled", ""), true, "namespace label istio-injection=enabled"),
            (pod("", "sidecar.istio.io/inject=true"), true, "pod label sidecar.istio.io/inject=true"),
            (
                pod("istio-injection=enabled", "sidecar.istio.io/inject=false"),
                false,
                "pod label sidecar.istio.io/inject=false forbids it",
            ),
            (
                pod("istio-injection=disabled", "sidecar.istio.io/inject=true"),
                false,
                "namespace label istio-injection=disabled forbids it",
            ),
            (
                pod("", ""),
                false,
                "no namespace label istio-injection=enabled or istio.io/rev=default, \
                 no pod label istio.io/rev=default or sidecar.istio.io/inject=true",
            ),
            (
                with_annotation,
                false,
                "namespace label istio-injection=enabled, but annotation sidecar.istio.io/inject=false forbids it",
            ),
            (
                on_node,
                false,
                "namespace label istio-injection=enabled, but the pod has the network of its node (hostNetwork)",
            ),
            (
                system,
                false,
                "namespace label istio-injection=enabled, but pods of kube-system are never injected",
            ),
        ] {
            let verdict = verdict(&default, &candidate).expect("selectors are valid");
            assert_eq!((verdict.injected, &*verdict.reason), (injected, reason));
        }
    }

    #[test]
    fn only_injectors_are_looked_at() {
        assert!(injects(&revision("default", true)));
        let mut other = webhook("x", json!([]), json!([]));
        other["clientConfig"]["service"]["path"] = json!("/mutate");
        assert!(!injects(&configuration("other", "x", json!([other]))));
        let mut services = webhook("x", json!([]), json!([]));
        services["rules"][0]["resources"] = json!(["services"]);
        assert!(!injects(&configuration("services", "x", json!([services]))));
    }

    #[test]
    fn the_table() {
        let verdicts = [
            Verdict { webhook: "a".into(), revision: "default".into(), injected: true, reason: "r".into() },
            Verdict { webhook: "istio-b".into(), revision: "-".into(), injected: false, reason: "s".into() },
        ];
        assert_eq!(
            table(&verdicts),
            "WEBHOOK  REVISION  INJECTED  REASON\na        default   ✔         r\nistio-b  -         ✘         s"
        );
    }
}
