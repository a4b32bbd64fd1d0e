//! Route rules: what a VirtualService says.
//!
//! Short host names are expanded and everything is checked (regexes compile, weights add up), but nothing is translated: ports of
//! destinations are still optional, and static filters (`port`, `source_labels`, …) wait for the proxy that they are asked for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use osier_core::host::Host;
use osier_core::labels::Labels;

use super::export::ExportTo;
use super::resource::{Age, ResourceKey};

/// A VirtualService.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRule {
    /// The resource.
    pub key: ResourceKey,
    /// For "the oldest first".
    pub age: Age,
    /// Hosts or wildcards, short names expanded.
    pub hosts: Vec<Host>,
    /// Where the rules apply; never empty.
    pub gateways: Vec<GatewayRef>,
    /// Who sees it.
    pub export_to: ExportTo,
    /// HTTP routes in order.
    pub http: Vec<HttpRoute>,
    /// SNI routes in order.
    pub tls: Vec<TlsRoute>,
    /// TCP routes in order.
    pub tcp: Vec<L4Route>,
}

impl RouteRule {
    /// True if the rules apply to sidecars.
    pub fn for_mesh(&self) -> bool {
        self.gateways.contains(&GatewayRef::Mesh)
    }
}

/// A gateway, or the word `mesh`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GatewayRef {
    /// All sidecars.
    Mesh,
    /// A Gateway.
    Named {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
}

/// One entry of `http`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRoute {
    /// Name; may be empty.
    pub name: Arc<str>,
    /// Conditions, one of which must hold; empty is everything.
    pub matches: Vec<HttpMatch>,
    /// What happens.
    pub action: HttpAction,
    /// Header operations of the route.
    pub headers: HeaderOps,
    /// Path and host rewrite.
    pub rewrite: Rewrite,
    /// Whole exchange including retries; `None` is no limit.
    pub timeout: Option<Duration>,
    /// Retries; `None` is the mesh default.
    pub retries: Option<RetryPolicy>,
}

/// What an HTTP route does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpAction {
    /// Forward by weight. Entries of weight 0 are left out; a single destination has weight 1.
    Forward(Vec<WeightedDestination>),
    /// Answer 3xx.
    Redirect(Redirect),
    /// Answer a fixed response.
    Direct(DirectResponse),
}

/// One condition of an HTTP route; all its parts must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpMatch {
    /// Appended to the route's name; may be empty.
    pub name: Arc<str>,
    /// On the path without query.
    pub uri: Option<StringMatch>,
    /// Compare the path (exact, prefix) without case.
    pub ignore_uri_case: bool,
    /// On `:scheme`.
    pub scheme: Option<StringMatch>,
    /// On `:method`.
    pub method: Option<StringMatch>,
    /// On `:authority` as sent.
    pub authority: Option<StringMatch>,
    /// By lower-cased name; all must hold.
    pub headers: Vec<(Arc<str>, ValueMatch)>,
    /// By lower-cased name; none may hold.
    pub without_headers: Vec<(Arc<str>, ValueMatch)>,
    /// By name; all must hold.
    pub query: Vec<(Arc<str>, ValueMatch)>,
    /// Static: the listener's port.
    pub port: Option<u16>,
    /// Static: labels of the client.
    pub source_labels: Labels,
    /// Static: namespace of the client.
    pub source_namespace: Option<Arc<str>>,
    /// Static: replaces the rule's list where not empty.
    pub gateways: Vec<GatewayRef>,
}

impl HttpMatch {
    /// True if the condition on the request itself holds for every request.
    pub fn catches_all(&self) -> bool {
        let any_path = match &self.uri {
            None => true,
            Some(StringMatch::Prefix(p)) => p.is_empty() || &**p == "/",
            Some(StringMatch::Regex(r)) => matches!(&**r, "*" | ".*" | "/.*"),
            Some(StringMatch::Exact(_)) => false,
        };
        any_path
            && self.scheme.is_none()
            && self.method.is_none()
            && self.authority.is_none()
            && self.headers.is_empty()
            && self.without_headers.is_empty()
            && self.query.is_empty()
    }
}

/// Condition on a text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Starts with.
    Prefix(Arc<str>),
    /// RE2; matches whole.
    Regex(Arc<str>),
}

/// Condition on a header or query parameter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ValueMatch {
    /// It is there.
    Present,
    /// Its value.
    Text(StringMatch),
}

/// A destination: host, subset, port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Host, short name expanded.
    pub host: Host,
    /// Subset of its DestinationRule.
    pub subset: Option<Arc<str>>,
    /// Service port; inferred where `None`.
    pub port: Option<u16>,
}

/// A destination of an HTTP route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedDestination {
    /// Where to.
    pub destination: Destination,
    /// Share; at least 1.
    pub weight: u32,
    /// Header operations of this choice.
    pub headers: HeaderOps,
}

/// Header operations on requests and responses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct HeaderOps {
    /// On requests.
    pub request: HeaderChange,
    /// On responses.
    pub response: HeaderChange,
}

impl HeaderOps {
    /// True if nothing is changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Changes of one head; order: remove, set, add, each sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct HeaderChange {
    /// Overwrite: name and value template.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Append.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Delete.
    pub remove: Vec<Arc<str>>,
}

/// Rewrite of path and host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Rewrite {
    /// Path.
    pub path: Option<RewritePath>,
    /// Host.
    pub authority: Option<Authority>,
}

/// Rewrite of a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RewritePath {
    /// Replace what was matched: the prefix of a prefix match, else the whole path.
    Matched(Arc<str>),
    /// Replace matches of a regex.
    Regex(RegexRewrite),
}

/// `uriRegexRewrite`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegexRewrite {
    /// RE2.
    pub pattern: Arc<str>,
    /// Replacement with `\1`.
    pub replacement: Arc<str>,
}

/// A new host.
pub type Authority = Arc<str>;

/// `redirect`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// New path.
    pub path: RedirectPath,
    /// New host.
    pub authority: Option<Authority>,
    /// New scheme, `http` or `https`.
    pub scheme: Option<Arc<str>>,
    /// New port.
    pub port: Option<RedirectPort>,
}

/// Path of a redirect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RedirectPath {
    /// As it was.
    Keep,
    /// This.
    Replace(Arc<str>),
    /// This in place of the matched prefix.
    Prefix(Arc<str>),
}

/// Port of a redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RedirectPort {
    /// This number.
    Number(u16),
    /// The scheme's default.
    FromProtocol,
    /// The listener's.
    FromRequest,
}

/// `directResponse`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DirectResponse {
    /// Status.
    pub status: u16,
    /// Body; may be empty.
    pub body: Bytes,
}

/// Retries of a route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RetryPolicy {
    /// Retries, not tries; 0 switches them off.
    pub attempts: u32,
    /// Limit of each try.
    pub per_try_timeout: Option<Duration>,
    /// When to retry; `None` is the default list.
    pub on: Option<RetryOn>,
    /// Skip hosts that were tried.
    pub ignore_previous_hosts: bool,
    /// Move to other localities.
    pub remote_localities: bool,
    /// First interval; `None` is 25 ms. The longest is ten times that.
    pub backoff: Option<Duration>,
}

/// `retryOn`, checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct RetryOn {
    /// Envoy's condition words, in the order written.
    pub conditions: Vec<Arc<str>>,
    /// Status numbers from the list; they imply `retriable-status-codes`.
    pub statuses: Vec<u16>,
}

/// One entry of `tls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsRoute {
    /// Conditions, one of which must hold.
    pub matches: Vec<TlsMatch>,
    /// Where to.
    pub destinations: Vec<WeightedL4>,
}

/// A condition of a TLS route; all its parts must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsMatch {
    /// Server names or wildcards; at least one.
    pub sni: Vec<Host>,
    /// Everything else.
    pub l4: L4Match,
}

/// One entry of `tcp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct L4Route {
    /// Conditions, one of which must hold; empty is everything.
    pub matches: Vec<L4Match>,
    /// Where to.
    pub destinations: Vec<WeightedL4>,
}

/// A condition of a TCP route; all its parts must hold. All but the subnets are static.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct L4Match {
    /// The listener's port.
    pub port: Option<u16>,
    /// Original destination.
    pub destination_subnets: Vec<IpNet>,
    /// Labels of the client.
    pub source_labels: Labels,
    /// Namespace of the client.
    pub source_namespace: Option<Arc<str>>,
    /// Where it applies; empty is the rule's list.
    pub gateways: Vec<GatewayRef>,
}

/// A destination of a TLS or TCP route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WeightedL4 {
    /// Where to.
    pub destination: Destination,
    /// Share; at least 1.
    pub weight: u32,
}
