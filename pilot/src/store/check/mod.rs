//! From what people write to the model: every rule of validation, with the path of the field that breaks it.
//!
//! A check reports everything that it finds, not just the first thing. A resource with one error is refused whole (its last good
//! version stays in force); warnings and notices do not keep it from being applied.

pub mod authentication;
pub mod authorization;
mod client_tls;
pub mod destination_rule;
mod extension_provider;
pub mod ingress;
pub mod kubernetes;
pub mod mesh;
pub mod secret;
pub mod security;
pub mod service_entry;
pub mod virtual_service;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use osier_core::host::{self, Host};
use osier_core::labels::Labels;
use osier_core::{duration, re2};

use super::schema::virtual_service::HttpRetry;
use crate::model::{Age, ExportTo, GatewayRef, Kind, ResourceKey, RetryOn, RetryPolicy, Severity};

/// Longest regex that Istio takes.
const MAX_REGEX: usize = 1024;

/// True for what can be the name of a header (RFC 9110 5.6.2).
fn is_header_name(name: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(token)
}

/// What a check needs to know of a resource besides its spec.
#[derive(Debug, Clone)]
pub struct Context {
    /// The resource.
    pub key: ResourceKey,
    /// Its age.
    pub age: Age,
    /// Domain of Kubernetes services, for short names.
    pub cluster_domain: Arc<str>,
}

/// One thing to say about a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path, e.g. `spec.http[0].timeout`.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked<T> {
    /// The value, unless something is an error.
    pub value: Option<T>,
    /// Everything that there is to say.
    pub problems: Vec<Problem>,
}

/// Where we are in a resource; made text only when there is something to say.
#[derive(Clone, Copy)]
pub enum Path<'a> {
    /// A field of the root.
    Root(&'a str),
    /// A field of another.
    Field(&'a Path<'a>, &'a str),
    /// A key of a free mapping.
    Key(&'a Path<'a>, &'a str),
    /// An element of a list.
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    /// The path of a field of what is here.
    pub fn field<'a>(&'a self, name: &'a str) -> Path<'a> {
        Path::Field(self, name)
    }

    /// The path of a key of the free mapping that is here.
    pub fn key<'a>(&'a self, name: &'a str) -> Path<'a> {
        Path::Key(self, name)
    }

    /// The path of an element of the list that is here.
    pub fn index(&self, at: usize) -> Path<'_> {
        Path::Index(self, at)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Key(parent, name) if name.is_empty() || name.contains(['.', '[', ']', '"']) => {
                write!(f, "{parent}[\"{name}\"]")
            }
            Self::Key(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, at) => write!(f, "{parent}[{at}]"),
        }
    }
}

/// Collects problems while one resource is checked.
pub struct Check<'c> {
    /// The resource.
    pub context: &'c Context,
    problems: Vec<Problem>,
}

impl<'c> Check<'c> {
    /// Nothing found yet.
    pub fn new(context: &'c Context) -> Self {
        Self { context, problems: Vec::new() }
    }

    /// The value, unless an error was found.
    pub fn finish<T>(self, value: T) -> Checked<T> {
        let refused = self.has_errors();
        Checked { value: (!refused).then_some(value), problems: self.problems }
    }

    /// Refuses the resource.
    pub fn error(&mut self, at: Path<'_>, message: impl Into<String>) {
        self.problems.push(Problem {
            field: at.to_string(),
            message: message.into(),
            severity: Severity::Error,
        });
    }

    /// Says that something is probably not what was meant.
    pub fn warn(&mut self, at: Path<'_>, message: impl Into<String>) {
        self.problems.push(Problem {
            field: at.to_string(),
            message: message.into(),
            severity: Severity::Warning,
        });
    }

    /// True where something was found that refuses it.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Refuses unless `holds`.
    pub fn require(&mut self, holds: bool, at: Path<'_>, message: impl FnOnce() -> String) {
        if !holds {
            self.error(at, message());
        }
    }

    fn namespace(&self) -> &Arc<str> {
        &self.context.key.namespace
    }

    /// A duration of at least 1 ms and whole milliseconds.
    pub fn duration(&mut self, at: Path<'_>, text: Option<&String>) -> Option<Duration> {
        let parsed = self.duration_or_zero(at, text)?;
        if parsed.is_zero() {
            self.error(at, "must be at least 1ms; leave it out for no limit");
            return None;
        }
        Some(parsed)
    }

    /// The same, where zero is allowed.
    pub fn duration_or_zero(&mut self, at: Path<'_>, text: Option<&String>) -> Option<Duration> {
        let text = text?;
        match duration::parse(text) {
            Err(error) => self.error(at, format!("{text:?} {error}")),
            Ok(parsed) if parsed.subsec_nanos() % 1_000_000 != 0 => {
                self.error(at, format!("{text:?} is not a whole number of milliseconds"));
            }
            Ok(parsed) => return Some(parsed),
        }
        None
    }

    /// A duration in whole seconds.
    pub fn seconds(&mut self, at: Path<'_>, text: Option<&String>) -> Option<Duration> {
        let parsed = self.duration(at, text)?;
        self.require(parsed.subsec_nanos() == 0, at, || "must be a whole number of seconds".into());
        Some(parsed)
    }

    /// A port number from 1 to 65535.
    pub fn port(&mut self, at: Path<'_>, number: u32) -> Option<u16> {
        match u16::try_from(number) {
            Ok(port) if port > 0 => Some(port),
            _ => {
                self.error(at, format!("{number} is no port number (1 to 65535)"));
                None
            }
        }
    }

    /// A port number, where 0 means unset.
    pub fn optional_port(&mut self, at: Path<'_>, number: u32) -> Option<u16> {
        if number == 0 { None } else { self.port(at, number) }
    }

    /// A whole number that is not negative, where 0 means unset.
    pub fn limit(&mut self, at: Path<'_>, number: i32) -> Option<u32> {
        match u32::try_from(number) {
            Ok(0) => None,
            Ok(number) => Some(number),
            Err(_) => {
                self.error(at, format!("{number} is negative"));
                None
            }
        }
    }

    /// A regex that both RE2 and the proxy take.
    pub fn regex(&mut self, at: Path<'_>, pattern: &str) {
        if pattern.len() > MAX_REGEX {
            self.error(at, format!("has {} characters, {MAX_REGEX} are allowed", pattern.len()));
        } else if let Err(error) = re2::full_match(pattern) {
            self.error(at, error.to_string());
        }
    }

    /// A DNS label, e.g. the name of a subset.
    pub fn label_name(&mut self, at: Path<'_>, text: &str) {
        self.require(host::is_label(text), at, || {
            format!("{text:?} is no name (at most 63 letters, digits and inner hyphens)")
        });
    }

    /// A host that may be a wildcard, an IP address, or a short name, which is expanded in the resource's namespace.
    pub fn host(&mut self, at: Path<'_>, text: &str) -> Option<Host> {
        if text.parse::<std::net::IpAddr>().is_ok() {
            return Some(Host::new(text));
        }
        match Host::parse_pattern(text) {
            Err(error) => {
                self.error(at, format!("{text:?} {error}"));
                None
            }
            Ok(host) if host.as_str() == "*" || text.contains('.') => Some(host),
            Ok(host) => {
                let Context { key, cluster_domain, .. } = self.context;
                Some(Host::new(&format!("{host}.{}.svc.{cluster_domain}", key.namespace)))
            }
        }
    }

    /// `exportTo`. `hidden`: `~` is allowed.
    pub fn export_to(&mut self, at: Path<'_>, entries: &[String], hidden: bool) -> ExportTo {
        let own = self.namespace().clone();
        let resolved = |e: &String| if e == "." { own.to_string() } else { e.clone() };
        for (index, entry) in entries.iter().enumerate() {
            let here = at.index(index);
            match entry.as_str() {
                "." => {}
                "*" if entries.len() > 1 => self.error(here, "* includes all others and must be alone"),
                "*" => {}
                "~" if !hidden => self.error(here, "~ is allowed for services only"),
                "~" if entries.len() > 1 => self.error(here, "~ excludes all others and must be alone"),
                "~" => {}
                name => self.label_name(here, name),
            }
            if entries[..index].iter().any(|earlier| resolved(earlier) == resolved(entry)) {
                self.error(here, format!("{entry:?} is there twice"));
            }
        }
        ExportTo(entries.iter().map(|e| Arc::from(e.as_str())).collect())
    }

    /// `gateways`: `mesh`, `name`, `./name`, `ns/name`, and the old `name.ns.svc…`.
    pub fn gateways(&mut self, at: Path<'_>, entries: &[String]) -> Vec<GatewayRef> {
        let mut gateways = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let named = |namespace: &str, name: &str| GatewayRef::Named {
                namespace: namespace.into(),
                name: name.into(),
            };
            let own = self.namespace().clone();
            gateways.push(match (entry.as_str(), entry.split_once('/')) {
                ("mesh", _) => GatewayRef::Mesh,
                (_, Some((namespace, name))) => {
                    let namespace = if namespace == "." { &own } else { namespace };
                    if !host::is_label(namespace) || name.is_empty() || name.contains('/') {
                        self.error(at.index(index), format!("{entry:?} is not of the form namespace/name"));
                    }
                    named(namespace, name)
                }
                ("", None) => {
                    self.error(at.index(index), "is empty");
                    continue;
                }
                (text, None) => match text.split('.').collect::<Vec<_>>()[..] {
                    [name, namespace, "svc", ..] => named(namespace, name),
                    _ => named(&own, text),
                },
            });
        }
        gateways
    }

    /// Labels of a selector: no wildcards.
    pub fn selector(&mut self, at: Path<'_>, labels: &BTreeMap<String, String>) -> Labels {
        for (name, value) in labels {
            if name.contains('*') || value.contains('*') {
                self.error(at.key(name), "wildcards are not supported in selectors");
            } else if name.is_empty() {
                self.error(at.key(name), "is an empty name");
            }
        }
        labels.clone().into()
    }

    /// `retries`, of a route or of the mesh.
    pub fn retries(&mut self, at: Path<'_>, retry: &HttpRetry) -> RetryPolicy {
        let attempts = self.limit(at.field("attempts"), retry.attempts).unwrap_or(0);
        let extras = [
            ("perTryTimeout", retry.per_try_timeout.is_some()),
            ("retryOn", !retry.retry_on.is_empty()),
            ("retryRemoteLocalities", retry.retry_remote_localities.is_some()),
        ];
        for (name, set) in extras {
            if set && retry.attempts == 0 {
                self.error(
                    at.field(name),
                    "needs attempts above 0 (attempts that are left out are 0: retries off)",
                );
            }
        }
        RetryPolicy {
            attempts,
            per_try_timeout: self.duration(at.field("perTryTimeout"), retry.per_try_timeout.as_ref()),
            on: self.retry_on(at.field("retryOn"), &retry.retry_on),
            ignore_previous_hosts: retry.retry_ignore_previous_hosts.unwrap_or(true),
            remote_localities: retry.retry_remote_localities.unwrap_or(false),
            backoff: self.duration(at.field("backoff"), retry.backoff.as_ref()),
        }
    }

    fn retry_on(&mut self, at: Path<'_>, text: &str) -> Option<RetryOn> {
        if text.is_empty() {
            return None;
        }
        let mut on = RetryOn::default();
        for word in text.split(',') {
            match word {
                "5xx"
                | "gateway-error"
                | "reset"
                | "reset-before-request"
                | "connect-failure"
                | "refused-stream"
                | "retriable-4xx"
                | "retriable-status-codes"
                | "envoy-ratelimited"
                | "cancelled"
                | "deadline-exceeded"
                | "internal"
                | "resource-exhausted"
                | "unavailable" => {
                    on.conditions.push(word.into());
                }
                "retriable-headers" | "http3-post-connect-failure" => {
                    self.warn(at, format!("{word:?} has no effect: nothing here can meet it"));
                }
                number => match number.parse::<u16>() {
                    Ok(status) if (100..600).contains(&status) && number.len() == 3 => {
                        on.statuses.push(status)
                    }
                    _ => self.error(at, format!("{word:?} is no retry condition")),
                },
            }
        }
        Some(on)
    }
}

/// A resource that passed its check.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// A Namespace.
    Namespace(Labels),
    /// Where the pods of a Node are.
    Node(crate::model::Locality),
    /// A Service.
    Service(Box<crate::model::Service>),
    /// An EndpointSlice.
    Slice(kubernetes::Slice),
    /// A Pod or WorkloadEntry.
    Workload(Box<crate::model::Workload>),
    /// A ServiceEntry.
    Entry(service_entry::Entry),
    /// A VirtualService.
    Route(Arc<crate::model::RouteRule>),
    /// A DestinationRule.
    Policy(Arc<crate::model::DestinationPolicy>),
    /// A certificate of a gateway.
    Secret(Arc<crate::model::Credential>),
    /// An Ingress.
    Ingress(Arc<crate::model::Ingress>),
    /// The controller of an IngressClass.
    IngressClass(Arc<str>),
    /// An AuthorizationPolicy, PeerAuthentication or RequestAuthentication.
    Security(Arc<crate::model::SecurityPolicy>),
    /// The mesh configuration.
    Mesh(Arc<crate::model::MeshConfig>),
}

impl Context {
    /// A context for a resource of this kind.
    pub fn new(kind: Kind, namespace: &str, name: &str, created: i64, cluster_domain: &Arc<str>) -> Self {
        let (namespace, name) = (Arc::<str>::from(namespace), Arc::<str>::from(name));
        Self {
            age: Age { created, name: name.clone(), namespace: namespace.clone() },
            key: ResourceKey { kind, namespace, name },
            cluster_domain: cluster_domain.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
