//! Whether a pod that reached the injector is injected. (Whether it reaches it is up to the webhook's selectors.)

use super::annotation::INJECT;
use super::pod::Pod;
use super::values::{AutoInject, Values};
use crate::model::LabelSelector;

/// Namespaces whose pods are Kubernetes' own.
pub const IGNORED_NAMESPACES: [&str; 4] =
    ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Why a pod is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Skipped {
    /// What it does happens in the node's network.
    #[error("the pod uses the network of its node (hostNetwork)")]
    HostNetwork,
    /// It belongs to Kubernetes.
    #[error("pods of this namespace belong to Kubernetes")]
    Namespace,
    /// The pod says no.
    #[error("the pod's label or annotation sidecar.istio.io/inject says no")]
    Asked,
    /// A selector says no.
    #[error("the pod is selected by neverInjectSelector")]
    NeverSelector,
    /// Only pods that ask for it are injected.
    #[error("autoInject is disabled and the pod does not ask for injection")]
    Policy,
}

/// Decides, and says what was strange.
pub(super) fn decide(
    pod: &Pod,
    namespace: &str,
    values: &Values,
    warnings: &mut Vec<String>,
) -> Result<(), Skipped> {
    if pod.spec("hostNetwork") == true {
        return Err(Skipped::HostNetwork);
    }
    if IGNORED_NAMESPACES.contains(&namespace) {
        return Err(Skipped::Namespace);
    }
    match pod.label(INJECT).or_else(|| pod.annotation(INJECT)) {
        Some("true") => return Ok(()),
        Some("false") => return Err(Skipped::Asked),
        None | Some("") => {}
        Some(other) => {
            warnings.push(format!("{INJECT}: {other:?} is neither true nor false and has no effect"))
        }
    }
    let injector = &values.sidecar_injector_webhook;
    // One that asks for nothing selects nothing.
    let selects = |selector: &LabelSelector| {
        !selector.requirements.is_empty() && selector.selects(|key| pod.label(key))
    };
    if injector.never_inject_selector.iter().any(selects) {
        return Err(Skipped::NeverSelector);
    }
    if injector.always_inject_selector.iter().any(selects) {
        return Ok(());
    }
    match values.global.proxy.auto_inject {
        AutoInject::Enabled => Ok(()),
        AutoInject::Disabled => Err(Skipped::Policy),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn table() {
        let enabled = "sidecarInjectorWebhook:\n  neverInjectSelector:\n  - matchExpressions: [{key: job, operator: Exists}]\n  - matchLabels: {a: b, c: d}\n  - {}\n";
        let disabled = format!(
            "global: {{proxy: {{autoInject: disabled}}}}\n{enabled}  alwaysInjectSelector:\n  - matchExpressions: [{{key: app, operator: NotIn, values: [x, y]}}, {{key: app, operator: Exists}}]\n"
        );
        let pod = |labels: Value| json!({"metadata": {"labels": labels}, "spec": {}});
        let host = json!({"metadata": {"labels": {INJECT: "true"}}, "spec": {"hostNetwork": true}});
        let annotated = |value: &str| json!({"metadata": {"annotations": {INJECT: value}}, "spec": {}});
        let both =
            json!({"metadata": {"labels": {INJECT: "true"}, "annotations": {INJECT: "false"}}, "spec": {}});
        for (pod, namespace, values, wanted) in [
            (host, "a", enabled, Err(Skipped::HostNetwork)),
            (pod(json!({INJECT: "true"})), "kube-system", enabled, Err(Skipped::Namespace)),
            (pod(json!({INJECT: "false"})), "a", enabled, Err(Skipped::Asked)),
            (pod(json!({INJECT: "true", "job": "x"})), "a", &disabled, Ok(())),
            (annotated("false"), "a", enabled, Err(Skipped::Asked)),
            (annotated("true"), "a", &disabled, Ok(())),
            (both, "a", enabled, Ok(())),
            (pod(json!({INJECT: ""})), "a", enabled, Ok(())),
            (pod(json!({"job": "x"})), "a", enabled, Err(Skipped::NeverSelector)),
            (pod(json!({"a": "b"})), "a", enabled, Ok(())),
            (pod(json!({"a": "b", "c": "d"})), "a", enabled, Err(Skipped::NeverSelector)),
            (pod(json!({"app": "z"})), "a", &disabled, Ok(())),
            (pod(json!({"app": "z", "job": ""})), "a", &disabled, Err(Skipped::NeverSelector)),
            (pod(json!({"app": "x"})), "a", &disabled, Err(Skipped::Policy)),
            (pod(json!({})), "a", &disabled, Err(Skipped::Policy)),
            (pod(json!(null)), "a", enabled, Ok(())),
        ] {
            let values = Values::parse(values).unwrap();
            let read = Pod::new(pod.clone()).unwrap();
            assert_eq!(decide(&read, namespace, &values, &mut vec![]), wanted, "{pod} {namespace}");
        }
        let mut warnings = vec![];
        let odd = Pod::new(pod(json!({INJECT: "yes"}))).unwrap();
        assert_eq!(decide(&odd, "a", &Values::default(), &mut warnings), Ok(()));
        assert_eq!(
            warnings,
            ["sidecar.istio.io/inject: \"yes\" is neither true nor false and has no effect"]
        );
    }
}
