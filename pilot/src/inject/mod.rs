//! Sidecar injection: a pod in, the same pod with a proxy in it out.
//!
//! Pure: what it goes by are the pod, its namespace, and an [`Injector`] (the injection values, the mesh configuration, the
//! revision). The webhook and `osier inject` call the same [`Injector::inject`].
//!
//! In order: an earlier injection is taken out (`previous`), it is decided whether to inject (`decision`), annotations are read
//! (`annotation`) and everything is decided (`plan`), the template's parts are made (`sidecar`) and merged in (`merge`), the user's
//! own `istio-proxy` over them, then probes (`probe`) and metrics (`scrape`) are led through the proxy. Injecting an injected pod
//! changes nothing. What is wrong with a pod is told all at once.

mod annotation;
mod decision;
pub mod manifest;
mod merge;
mod plan;
mod pod;
mod previous;
mod probe;
mod proxy_config;
mod scrape;
mod sidecar;
mod syntax;
mod template;
mod values;
mod workload;

use serde_json::Value;

pub use annotation::{INJECT, OVERRIDES, REVISION, Row, STATUS, Support, TABLE};
pub use decision::{IGNORED_NAMESPACES, Skipped};
pub use proxy_config::{FIELDS as PROXY_CONFIG_FIELDS, InterceptionMode, MeshSettings, ProxyConfig};
pub use values::Values;

use crate::model::{Owner, TLS_MODE_LABEL};
use annotation::Annotations;
use plan::Plan;
use pod::{CONTAINER_LISTS, Pod};
use previous::{Overrides, Status};

/// The container of the proxy.
pub const PROXY: &str = "istio-proxy";
/// The container that captures traffic.
pub const INIT: &str = "istio-init";
/// Revision of a control plane that was given none.
pub const DEFAULT_REVISION: &str = "default";

/// What holds for all pods.
#[derive(Debug, Clone)]
pub struct Injector {
    /// The injection values.
    pub values: Values,
    /// The mesh configuration, as far as injection reads it.
    pub mesh: MeshSettings,
    /// Revision of the control plane.
    pub revision: String,
}

/// One pod.
#[derive(Debug)]
pub struct Request<'a> {
    /// The pod, as JSON. Its namespace is not looked at: where it is made the request has it.
    pub pod: Value,
    /// Its namespace.
    pub namespace: &'a str,
    /// What is going to make it, where that isn't in its owner references (the template of a Deployment).
    pub made_by: Option<Owner>,
    /// Cluster, instead of that of the values.
    pub cluster: Option<&'a str>,
    /// Network, instead of that of the values.
    pub network: Option<&'a str>,
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Injected {
    /// The pod with its proxy, or why it is left as it is.
    pub outcome: Result<Value, Skipped>,
    /// What its owner should hear.
    pub warnings: Vec<String>,
}

/// Everything that is wrong with a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct Refusal(pub Vec<String>);

impl Default for Injector {
    fn default() -> Self {
        Self { values: Values::default(), mesh: MeshSettings::default(), revision: DEFAULT_REVISION.into() }
    }
}

impl Injector {
    /// Injects, or says why not.
    pub fn inject(&self, request: Request) -> Result<Injected, Refusal> {
        let one = |problem: String| Refusal(vec![problem]);
        let mut pod = Pod::new(request.pod.clone()).map_err(one)?;
        let mut warnings = Vec::new();
        if let Err(skipped) = decision::decide(&pod, request.namespace, &self.values, &mut warnings) {
            return Ok(Injected { outcome: Err(skipped), warnings });
        }
        previous::revert(&mut pod).map_err(one)?;
        let said = Annotations::read(&pod).map_err(Refusal)?;
        warnings.extend(annotation::warnings(&pod));
        warnings.extend(evasions(&pod));
        let (merge_metrics, targets) = (said.merge_metrics, said.scrape_targets.clone());
        let rewrites = said.rewrite_probes.unwrap_or(self.values.sidecar_injector_webhook.rewrite_probes);
        let overrides = previous::take_overrides(&mut pod);
        let plan = Plan::new(self, &pod, &request, said).map_err(one)?;

        let before = pod.clone();
        self.apply_templates(&mut pod, &plan);
        apply_overrides(&mut pod, &overrides);
        let has_proxy = pod.container_mut(PROXY).is_some();
        let has_application = plan.is_gateway() || pod.list("containers").iter().any(|c| !is_ours(c));
        if has_proxy && !has_application {
            return Err(one(format!(
                "spec.containers: there is no application beside {PROXY}; a proxy by itself takes the annotation \
                 inject.istio.io/templates: gateway"
            )));
        }
        if has_proxy {
            if rewrites && plan.status_port != 0 {
                let originals = probe::rewrite(&mut pod, plan.status_port, &[PROXY, INIT]).map_err(one)?;
                tell_proxy(&mut pod, probe::VARIABLE, originals);
            }
            if merge_metrics.unwrap_or(self.mesh.merge_metrics) && plan.status_port != 0 {
                let told = scrape::rewrite(&mut pod, plan.status_port, targets).map_err(one)?;
                tell_proxy(&mut pod, scrape::VARIABLE, told);
            }
        }
        order(&mut pod, &plan);
        self.describe(&mut pod, &before, &overrides, &plan);
        Ok(Injected { outcome: Ok(pod.into_value()), warnings })
    }

    /// Where a proxy finds the control plane.
    fn discovery_address(&self) -> String {
        let own = &self.values.global.proxy.discovery_address;
        if !own.is_empty() {
            return own.clone();
        }
        let suffix =
            if self.revision == DEFAULT_REVISION { String::new() } else { format!("-{}", self.revision) };
        format!("osier-pilot{suffix}.{}.svc:15012", self.values.global.istio_namespace)
    }

    fn apply_templates(&self, pod: &mut Pod, plan: &Plan) {
        for name in &plan.templates {
            let mut fragment = match name.as_str() {
                template::SIDECAR => sidecar::sidecar(plan),
                template::GATEWAY => sidecar::gateway(plan),
                custom => self.values.sidecar_injector_webhook.templates[custom].clone(),
            };
            let built_in = [template::SIDECAR, template::GATEWAY].contains(&name.as_str());
            if built_in {
                keep_own_volumes(pod, &mut fragment);
            } else {
                for container in take_ours(pod, &mut fragment) {
                    merge_container(pod, &container);
                }
            }
            let mut merged = pod.clone().into_value();
            merge::merge(&mut merged, fragment);
            *pod = Pod::merged(merged);
        }
    }

    /// Labels and annotations that say what the pod is.
    fn describe(&self, pod: &mut Pod, before: &Pod, overrides: &Overrides, plan: &Plan) {
        workload::canonical_labels(pod, &plan.workload.name);
        if plan.encrypted() {
            // By this callers know that the pod takes mutual TLS.
            pod.default_label(TLS_MODE_LABEL, "istio");
        }
        for (key, value) in &self.values.sidecar_injector_webhook.injected_annotations {
            pod.default_annotation(key, value);
        }
        let names = pod.list("containers").iter().filter_map(|c| c["name"].as_str());
        if let Some(first) = names.map(str::to_owned).find(|name| name != PROXY) {
            pod.default_annotation("kubectl.kubernetes.io/default-container", &first);
            pod.default_annotation("kubectl.kubernetes.io/default-logs-container", &first);
        }
        if *overrides != Overrides::default() {
            pod.set_annotation(OVERRIDES, serde_json::to_string(overrides).unwrap_or_default());
        }
        pod.set_annotation(REVISION, self.revision.clone());
        let status = Status::of(before, pod, &self.revision);
        pod.set_annotation(STATUS, serde_json::to_string(&status).unwrap_or_default());
    }
}

/// Containers whose traffic goes past the proxy because they run as its user or in its group.
fn evasions(pod: &Pod) -> Vec<String> {
    let of_pod = pod.spec("securityContext");
    let mut warnings = Vec::new();
    for list in CONTAINER_LISTS {
        for container in pod.list(list).iter().filter(|container| !is_ours(container)) {
            for (field, what) in [("runAsUser", "user"), ("runAsGroup", "group")] {
                let own = &container["securityContext"][field];
                let id = if own.is_null() { &of_pod[field] } else { own };
                if *id == sidecar::PROXY_ID {
                    warnings.push(format!(
                        "container {} runs as {what} {}, which is the proxy's: what it sends is not captured",
                        container["name"].as_str().unwrap_or_default(),
                        sidecar::PROXY_ID
                    ));
                }
            }
        }
    }
    let supplemental = of_pod["supplementalGroups"].as_array().into_iter().flatten();
    let groups = supplemental.map(|id| ("supplementalGroups", id)).chain([("fsGroup", &of_pod["fsGroup"])]);
    warnings.extend(groups.filter(|(_, id)| **id == sidecar::PROXY_ID).map(|(field, id)| {
        format!("{field} of the pod has {id}, which is the proxy's group: who takes it on is not captured")
    }));
    warnings
}

/// A volume that the user's pod has under one of our names stays as it is.
fn keep_own_volumes(pod: &Pod, fragment: &mut Value) {
    if let Some(volumes) = fragment["spec"].get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.retain(|volume| !pod.has("volumes", volume));
    }
}

/// Whether a container is one that injection makes.
fn is_ours(container: &Value) -> bool {
    [PROXY, INIT].iter().any(|name| pod::has_name(container, name))
}

/// Takes what a template says about our containers out of it, whichever list it says it in.
fn take_ours(pod: &Pod, fragment: &mut Value) -> Vec<Value> {
    let there = |c: &Value| is_ours(c) && CONTAINER_LISTS.iter().any(|list| pod.has(list, c));
    let mut taken = Vec::new();
    for list in CONTAINER_LISTS {
        if let Some(containers) = fragment["spec"].get_mut(list).and_then(Value::as_array_mut) {
            taken.extend(containers.extract_if(.., |c| there(c)));
        }
    }
    taken
}

/// Merges what is said about one of our containers into it. False where the pod doesn't have it.
fn merge_container(pod: &mut Pod, said: &Value) -> bool {
    let name = said["name"].as_str().unwrap_or_default();
    let Some(container) = pod.container_mut(name) else { return false };
    merge::merge(container, said.clone());
    true
}

/// The user's own words about our containers win. Containers of these names that no template has stay what they were.
fn apply_overrides(pod: &mut Pod, overrides: &Overrides) {
    for (list, containers) in
        [("containers", &overrides.containers), ("initContainers", &overrides.init_containers)]
    {
        for container in containers {
            let mut said = container.clone();
            if said["image"] == "auto" {
                let fields = pod::object_of(&mut said);
                fields.remove("image");
                // what the API server fills in is about an image called "auto"
                fields.remove("imagePullPolicy");
            }
            if !merge_container(pod, &said) {
                pod.list_mut(list).push(container.clone());
            }
        }
    }
}

fn tell_proxy(pod: &mut Pod, variable: &str, value: Option<String>) {
    let (Some(value), Some(proxy)) = (value, pod.container_mut(PROXY)) else { return };
    let env = pod::list_mut(pod::object_of(proxy), "env");
    env.retain(|there| !pod::has_name(there, variable));
    env.push(serde_json::json!({"name": variable, "value": value}));
}

/// Native: ours before all other init containers. Else capture begins after the user's init containers, which have no proxy yet.
fn order(pod: &mut Pod, plan: &Plan) {
    let (init, proxy) = (pod.take_container(INIT), pod.take_container(PROXY));
    if plan.native {
        let first: Vec<Value> = init.into_iter().chain(proxy).collect();
        if !first.is_empty() {
            pod.list_mut("initContainers").splice(..0, first);
        }
        return;
    }
    if let Some(init) = init {
        pod.list_mut("initContainers").push(init);
    }
    if let Some(proxy) = proxy {
        let containers = pod.list_mut("containers");
        let at = if plan.hold { 0 } else { containers.len() };
        containers.insert(at, proxy);
    }
}

#[cfg(test)]
mod tests;
