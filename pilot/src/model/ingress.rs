//! Ingress: hosts and paths that are served to clients outside of the mesh, as Kubernetes itself words them.

use std::sync::Arc;

use osier_core::host::Host;
use osier_core::labels::Labels;

use super::resource::{Age, ResourceKey};

/// Controller of the IngressClasses that are ours: Istio's name, so that classes which exist go on to work.
pub const INGRESS_CONTROLLER: &str = "istio.io/ingress-controller";

/// An Ingress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// The resource.
    pub key: ResourceKey,
    /// For "the oldest wins".
    pub age: Age,
    /// Annotation `kubernetes.io/ingress.class`; where it is there, it alone decides.
    pub annotated_class: Option<Arc<str>>,
    /// `ingressClassName`.
    pub class: Option<Arc<str>>,
    /// Who answers what no rule takes.
    pub default_backend: Option<IngressBackend>,
    /// Hosts and their paths.
    pub rules: Vec<IngressRule>,
    /// Hosts that are served with TLS.
    pub tls: Vec<IngressTls>,
}

/// One host of an Ingress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressRule {
    /// `None`: every host.
    pub host: Option<Host>,
    /// Its paths; none leaves everything to the default backend.
    pub paths: Vec<IngressPath>,
}

/// One path of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressPath {
    /// What it takes.
    pub matches: PathRule,
    /// Who answers.
    pub backend: IngressBackend,
}

/// Which paths are meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathRule {
    /// This one.
    Exact(Arc<str>),
    /// This one and those below it; without final slash, so that `""` is every path.
    Below(Arc<str>),
    /// Those that begin with this text (`/foo.*` and `/foo/*` as Istio reads them).
    Beginning(Arc<str>),
}

/// A port of a Service in the Ingress' own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IngressBackend {
    /// Name of the Service.
    pub service: Arc<str>,
    /// Which of its ports.
    pub port: BackendPort,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BackendPort {
    /// By number.
    Number(u16),
    /// By name.
    Name(Arc<str>),
}

/// Hosts with a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressTls {
    /// Empty: every host.
    pub hosts: Vec<Host>,
    /// Name of the Secret, in the namespace of the gateway.
    pub secret: Arc<str>,
}

/// Which Ingresses are ours, and who serves them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressPolicy {
    /// `ingressControllerMode`.
    pub mode: IngressMode,
    /// `ingressClass`: what the annotation has to say.
    pub class: Arc<str>,
    /// Labels of the gateways that serve them.
    pub selector: Labels,
    /// `ingressService`: the Service whose addresses stand in their status.
    pub service: Arc<str>,
}

impl Default for IngressPolicy {
    fn default() -> Self {
        Self {
            mode: IngressMode::Strict,
            class: "istio".into(),
            selector: Labels::from([("istio", "ingressgateway")]),
            service: "istio-ingressgateway".into(),
        }
    }
}

/// `ingressControllerMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IngressMode {
    /// None are ours.
    Off,
    /// Those that name our class, and those that name none.
    Default,
    /// Those that name our class.
    Strict,
}

impl IngressPolicy {
    /// Whether an Ingress is ours. `controller` is that of the class that `ingressClassName` names, if there is such a class.
    pub fn takes(&self, ingress: &Ingress, controller: Option<&str>) -> bool {
        match (self.mode, &ingress.annotated_class, controller) {
            (IngressMode::Off, ..) => false,
            (_, Some(annotated), _) => *annotated == self.class,
            (_, None, Some(controller)) => controller == INGRESS_CONTROLLER,
            (mode, None, None) => mode == IngressMode::Default,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;

    #[test]
    fn whose_an_ingress_is() {
        use IngressMode::*;
        for (mode, annotation, controller, ours) in [
            (Strict, Some("istio"), None, true),
            (Strict, Some("nginx"), None, false),
            (Strict, Some(""), None, false),
            (Strict, None, None, false),
            (Strict, None, Some(INGRESS_CONTROLLER), true),
            (Strict, None, Some("k8s.io/ingress-nginx"), false),
            (Strict, Some("istio"), Some("k8s.io/ingress-nginx"), true),
            (Strict, Some("nginx"), Some(INGRESS_CONTROLLER), false),
            (Default, None, None, true),
            (Default, None, Some("k8s.io/ingress-nginx"), false),
            (Default, Some("istio"), None, true),
            (Default, Some("nginx"), None, false),
            (Off, Some("istio"), None, false),
            (Off, None, Some(INGRESS_CONTROLLER), false),
            (Off, None, None, false),
        ] {
            let key = ResourceKey::new(Kind::Ingress, "default", "i");
            let ingress = Ingress {
                age: Age { created: 0, name: "i".into(), namespace: "default".into() },
                key,
                annotated_class: annotation.map(Into::into),
                class: controller.map(|_| "some".into()),
                default_backend: None,
                rules: vec![],
                tls: vec![],
            };
            let policy = IngressPolicy { mode, ..IngressPolicy::default() };
            assert_eq!(policy.takes(&ingress, controller), ours, "{mode:?} {annotation:?} {controller:?}");
        }
    }
}
