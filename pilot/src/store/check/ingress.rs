//! Ingresses and their classes. What the API server lets through and we can't do is refused by name.

use osier_core::host::Host;

use super::{Check, Checked, Context, Path};
use crate::model::{BackendPort, Ingress, IngressBackend, IngressPath, IngressRule, IngressTls, PathRule};
use crate::store::schema::ingress as schema;

/// The annotation of times before there were classes.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Checks an Ingress.
pub fn check(context: &Context, ingress: &schema::Ingress) -> Checked<Ingress> {
    let mut check = Check::new(context);
    let root = Path::Root("spec");
    let schema::IngressSpec { ingress_class_name, default_backend, rules, tls } = &ingress.spec;
    let checked = Ingress {
        key: context.key.clone(),
        age: context.age.clone(),
        annotated_class: ingress
            .metadata
            .annotations
            .get(CLASS_ANNOTATION)
            .map(|class| class.as_str().into()),
        class: ingress_class_name.as_deref().map(Into::into),
        default_backend: default_backend
            .as_ref()
            .and_then(|backend| check.ingress_backend(root.field("defaultBackend"), backend)),
        rules: check.ingress_rules(root.field("rules"), rules),
        tls: check.ingress_tls(root.field("tls"), tls),
    };
    check.require(default_backend.is_some() || !rules.is_empty(), root, || {
        "needs rules or a defaultBackend".into()
    });
    check.finish(checked)
}

impl Check<'_> {
    fn ingress_rules(&mut self, at: Path<'_>, rules: &[schema::Rule]) -> Vec<IngressRule> {
        let mut checked = Vec::with_capacity(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            let here = at.index(index);
            let host = match rule.host.as_str() {
                "" | "*" => None,
                text => self.ingress_host(here.field("host"), text),
            };
            let http = here.field("http");
            let mut paths = Vec::new();
            for (index, path) in rule.http.iter().flat_map(|http| &http.paths).enumerate() {
                let paths_field = http.field("paths");
                paths.extend(self.ingress_path(paths_field.index(index), path));
            }
            checked.push(IngressRule { host, paths });
        }
        checked
    }

    fn ingress_host(&mut self, at: Path<'_>, text: &str) -> Option<Host> {
        match Host::parse_pattern(text) {
            Ok(host) if host.is_wildcard() && text != "*" && !text.starts_with("*.") => {
                self.error(at, format!("{text:?}: a wildcard stands for whole labels"));
                None
            }
            Ok(host) => Some(host),
            Err(error) => {
                self.error(at, format!("{text:?} {error}"));
                None
            }
        }
    }

    fn ingress_path(&mut self, at: Path<'_>, path: &schema::HttpPath) -> Option<IngressPath> {
        let matches = self.path_rule(at, path);
        let backend = self.ingress_backend(at.field("backend"), &path.backend);
        Some(IngressPath { matches: matches?, backend: backend? })
    }

    fn path_rule(&mut self, at: Path<'_>, path: &schema::HttpPath) -> Option<PathRule> {
        let text = path.path.as_str();
        let here = at.field("path");
        let free = path.path_type == schema::PathType::ImplementationSpecific && text.is_empty();
        if !(free || text.starts_with('/')) {
            self.error(here, format!("{text:?} does not begin with a slash"));
            return None;
        }
        if text.contains(['?', '#']) {
            self.error(here, format!("{text:?} is no path: it has a query or a fragment"));
            return None;
        }
        let below = |text: &str| PathRule::Below(text.trim_end_matches('/').into());
        Some(match path.path_type {
            schema::PathType::Exact => PathRule::Exact(text.into()),
            schema::PathType::Prefix => below(text),
            schema::PathType::ImplementationSpecific => {
                match text.strip_suffix(".*").or(text.strip_suffix("/*")) {
                    Some(beginning) => PathRule::Beginning(beginning.into()),
                    None => below(text),
                }
            }
        })
    }

    fn ingress_backend(&mut self, at: Path<'_>, backend: &schema::Backend) -> Option<IngressBackend> {
        if backend.resource.is_some() {
            self.error(at.field("resource"), "only Services are served");
            return None;
        }
        let Some(service) = &backend.service else {
            self.error(at.field("service"), "is required");
            return None;
        };
        let at = at.field("service");
        let at_port = at.field("port");
        let port = match (&service.port.name, service.port.number) {
            (name, 0) if !name.is_empty() => BackendPort::Name(name.as_str().into()),
            (name, number) if name.is_empty() => {
                BackendPort::Number(self.port(at_port.field("number"), number)?)
            }
            _ => {
                self.error(at_port, "has a name and a number");
                return None;
            }
        };
        self.label_name(at.field("name"), &service.name);
        Some(IngressBackend { service: service.name.as_str().into(), port })
    }

    fn ingress_tls(&mut self, at: Path<'_>, entries: &[schema::Tls]) -> Vec<IngressTls> {
        let mut checked = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let here = at.index(index);
            let hosts_field = here.field("hosts");
            let hosts = entry.hosts.iter().enumerate();
            let hosts =
                hosts.filter_map(|(at, host)| self.ingress_host(hosts_field.index(at), host)).collect();
            if entry.secret_name.is_empty() {
                self.warn(here.field("secretName"), "is not there, so that there is no TLS for these hosts");
                continue;
            }
            checked.push(IngressTls { hosts, secret: entry.secret_name.as_str().into() });
        }
        checked
    }
}

#[cfg(test)]
#[path = "ingress_tests.rs"]
mod tests;
