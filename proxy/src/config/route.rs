//! Route tables, virtual hosts and routes (RDS, VHDS), with every matcher built.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use regex::bytes::Regex;

use super::cluster::{ClusterHandle, WeightedClusters};
use crate::http::head::{Known, Name};
use crate::http::template::Template;
use crate::jwt::ClaimCondition;

/// One RouteConfiguration.
#[derive(Debug)]
pub struct RouteTable {
    /// Resource name, e.g. `80` or `reviews.default.svc.cluster.local:9080`.
    pub name: Arc<str>,
    /// Which virtual host serves a `Host`.
    pub hosts: VirtualHosts,
    /// Port of `Host` is ignored when virtual hosts are looked up.
    pub ignore_port_in_host: bool,
    /// Header operations of the whole table.
    pub headers: HeaderOps,
    /// Apply route level operations last instead of first (`most_specific_header_mutations_wins`).
    pub most_specific_wins: bool,
    /// Content hash of the resource.
    pub hash: u64,
}

/// How virtual hosts are found.
#[derive(Debug)]
pub enum VirtualHosts {
    /// All are here. Look-up: exact, longest `*.suffix`, longest `prefix.*`, `*`.
    Known(HostIndex),
    /// One by one on demand, by exact key; the value is shared with the xDS client.
    OnDemand(Arc<crate::on_demand::HostTable>),
}

/// Virtual hosts by lower-cased domain; [`HostIndex::insert`] fills it, `http::router` looks up.
#[derive(Debug, Default)]
pub struct HostIndex {
    /// Domains without a wildcard.
    pub exact: HostMap,
    /// `*.foo.com` as `.foo.com`, by length, longest first.
    pub suffixes: Vec<(usize, HostMap)>,
    /// `foo.*` as `foo.`, by length, longest first.
    pub prefixes: Vec<(usize, HostMap)>,
    /// Domain `*`.
    pub catch_all: Option<Arc<VirtualHost>>,
}

/// Virtual hosts by exact text.
pub type HostMap = HashMap<Box<[u8]>, Arc<VirtualHost>, foldhash::fast::RandomState>;

impl HostIndex {
    /// Adds a domain: exact, `*.suffix`, `prefix.*` or `*`. False, and no change, where it is there already.
    pub fn insert(&mut self, domain: &str, host: &Arc<VirtualHost>) -> bool {
        let domain = domain.to_ascii_lowercase();
        let map = match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
            (Some(""), _) => {
                let free = self.catch_all.is_none();
                self.catch_all.get_or_insert_with(|| host.clone());
                return free;
            }
            (Some(suffix), _) => (Self::of_length(&mut self.suffixes, suffix.len()), suffix),
            (_, Some(prefix)) => (Self::of_length(&mut self.prefixes, prefix.len()), prefix),
            (None, None) => (&mut self.exact, domain.as_str()),
        };
        let (map, text) = map;
        match map.entry(text.as_bytes().into()) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(host.clone());
                true
            }
        }
    }

    fn of_length(maps: &mut Vec<(usize, HostMap)>, length: usize) -> &mut HostMap {
        let at = maps.partition_point(|(other, _)| *other > length);
        if maps.get(at).is_none_or(|(other, _)| *other != length) {
            maps.insert(at, (length, HostMap::default()));
        }
        &mut maps[at].1
    }
}

/// A header name of the configuration: lower-cased, and looked up among the known ones once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderName {
    /// One that the proxy knows.
    Known(Known),
    /// Any other.
    Other(Box<[u8]>),
}

impl HeaderName {
    /// For look-ups.
    pub fn as_name(&self) -> Name<'_> {
        match self {
            Self::Known(known) => Name::Known(*known),
            Self::Other(name) => Name::Other(name),
        }
    }
}

impl From<&str> for HeaderName {
    fn from(name: &str) -> Self {
        match Known::find(name.as_bytes()) {
            Some(known) => Self::Known(known),
            None => Self::Other(name.to_ascii_lowercase().into_bytes().into()),
        }
    }
}

/// What a header condition or `%REQ()%` looks at: a pseudo header or a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// `:method`.
    Method,
    /// `:path`, with the query.
    Path,
    /// `:authority`, or `host`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// A header; names that begin with `:` and aren't above find nothing.
    Header(HeaderName),
}

impl From<&str> for Subject {
    fn from(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            name => Self::Header(name.into()),
        }
    }
}

/// A named group of routes.
#[derive(Debug)]
pub struct VirtualHost {
    /// Name, e.g. `reviews.default.svc.cluster.local:9080`.
    pub name: Arc<str>,
    /// Routes in order; the first that matches wins.
    pub routes: Vec<Arc<Route>>,
    /// Header operations of all its routes.
    pub headers: HeaderOps,
    /// Redirect plain HTTP to HTTPS.
    pub require_tls: RequireTls,
    /// Add `x-envoy-attempt-count` to upstream requests.
    pub attempt_count_in_request: bool,
    /// Add `x-envoy-attempt-count` to responses.
    pub attempt_count_in_response: bool,
}

/// `require_tls` of a virtual host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequireTls {
    /// Any transport.
    #[default]
    None,
    /// External requests only.
    ExternalOnly,
    /// All requests.
    All,
}

/// One match and its action.
#[derive(Debug)]
pub struct Route {
    /// Name for logs and metrics; may be empty.
    pub name: Arc<str>,
    /// When it applies.
    pub matches: RouteMatch,
    /// What it does.
    pub action: Action,
    /// Header operations of this route.
    pub headers: HeaderOps,
    /// `decorator.operation`, for traces; as in Envoy, a connection manager that traces nothing adds no
    /// `x-envoy-decorator-operation` either.
    pub decorator: Option<Arc<str>>,
}

/// Conditions of a route; all must hold.
#[derive(Debug)]
pub struct RouteMatch {
    /// On the path without query and fragment.
    pub path: PathMatch,
    /// On headers and pseudo headers (`:method`, `:authority`, `:scheme`, `:path`).
    pub headers: Vec<HeaderMatch>,
    /// On query parameters as they are written; the first occurrence counts.
    pub query: Vec<QueryMatch>,
    /// Share of requests that may match, as parts per million.
    pub runtime_fraction: Option<u32>,
    /// Only requests with content type `application/grpc…`.
    pub grpc: bool,
    /// On the claims of verified tokens.
    pub claims: Vec<ClaimCondition>,
}

/// Path condition.
#[derive(Debug)]
pub enum PathMatch {
    /// Byte prefix.
    Prefix(Text),
    /// Whole path.
    Exact(Text),
    /// `/foo` matches `/foo` and `/foo/…`, not `/foobar`. Kept without trailing slash.
    SegmentPrefix(Text),
    /// Whole path.
    Regex(Regex),
    /// CONNECT requests.
    Connect,
}

/// A literal and its case rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The literal; lower-cased when `ignore_case`.
    pub value: Box<[u8]>,
    /// Compare ASCII letters without case.
    pub ignore_case: bool,
}

/// Condition on one header.
#[derive(Debug)]
pub struct HeaderMatch {
    /// Which one.
    pub subject: Subject,
    /// What one of its lines must be.
    pub value: ValueMatch,
    /// Turn the result round: no line may be that.
    pub invert: bool,
    /// A missing header counts as the empty string.
    pub missing_as_empty: bool,
}

/// Condition on one query parameter.
#[derive(Debug)]
pub struct QueryMatch {
    /// Name, as it is written.
    pub name: Box<[u8]>,
    /// What its first value must be.
    pub value: ValueMatch,
}

/// Condition on a value.
#[derive(Debug)]
pub enum ValueMatch {
    /// There (true) or not there (false).
    Present(bool),
    /// Equal.
    Exact(Text),
    /// Starts with.
    Prefix(Text),
    /// Ends with.
    Suffix(Text),
    /// Contains.
    Contains(Text),
    /// Matches whole.
    Regex(Regex),
    /// Decimal integer in `[start, end)`.
    Range(i64, i64),
}

/// What a matched route does.
#[derive(Debug)]
pub enum Action {
    /// Send to a cluster.
    Forward(Box<Forward>),
    /// Answer 3xx.
    Redirect(Box<Redirect>),
    /// Answer a fixed response.
    Direct(DirectResponse),
    /// `non_forwarding_action`: only for proxyless servers; here it answers 404.
    NonForwarding,
}

/// Envoy's RouteAction.
#[derive(Debug)]
pub struct Forward {
    /// Where to.
    pub target: ForwardTarget,
    /// Path rewrite.
    pub rewrite: PathRewrite,
    /// Host rewrite.
    pub host_rewrite: HostRewrite,
    /// Append the old host to `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// Whole exchange including retries; `None` is off. Envoy's default of 15 s is filled in by `compile`.
    pub timeout: Option<Duration>,
    /// Stream without progress; `None` leaves the connection manager's.
    pub idle_timeout: Option<Option<Duration>>,
    /// Cap on `grpc-timeout`; `Some(None)`: honoured without cap; `None`: ignored.
    pub grpc_timeout_max: Option<Option<Duration>>,
    /// Longest life of the stream.
    pub max_stream_duration: Option<Duration>,
    /// Retries; `None` is no policy.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Upgrades switched on or off for this route.
    pub upgrades: Vec<(Arc<str>, bool)>,
    /// Status for a cluster that doesn't exist (503, or 404).
    pub cluster_not_found_status: u16,
}

impl Forward {
    /// True where the upstream is asked for another path or host than the client asked for.
    pub fn rewrites(&self) -> bool {
        !matches!((&self.rewrite, &self.host_rewrite), (PathRewrite::Keep, HostRewrite::Keep))
    }
}

/// Cluster choice of a route.
#[derive(Debug)]
pub enum ForwardTarget {
    /// One cluster.
    Cluster(Arc<ClusterHandle>),
    /// By weight, with one random number a request.
    Weighted(WeightedClusters),
    /// The cluster whose name a request header carries.
    Header(HeaderName),
}

/// Path rewrite of a forward.
#[derive(Debug)]
pub enum PathRewrite {
    /// None.
    Keep,
    /// Replace what the path condition matched.
    Prefix(Box<[u8]>),
    /// Replace all matches of the regex; the replacement is in the `regex` crate's syntax.
    Regex(Regex, Box<[u8]>),
}

/// Host rewrite of a forward.
#[derive(Debug)]
pub enum HostRewrite {
    /// None.
    Keep,
    /// This host.
    Literal(Arc<str>),
    /// The host name of the endpoint that is picked.
    Auto,
    /// The value of this request header.
    Header(HeaderName),
    /// Regex over the path.
    PathRegex(Regex, Box<[u8]>),
}

/// Envoy's RetryPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Codes for `retriable-status-codes`.
    pub status_codes: Box<[u16]>,
    /// Retries, not tries.
    pub attempts: u32,
    /// Limit of each try.
    pub per_try_timeout: Option<Duration>,
    /// Limit of a try without progress.
    pub per_try_idle_timeout: Option<Duration>,
    /// Pick again where a host was tried already.
    pub avoid_previous_hosts: bool,
    /// How often to pick again.
    pub host_selection_attempts: u32,
    /// Move to other priorities after this many tries each (`previous_priorities`).
    pub previous_priorities: Option<u32>,
    /// First interval.
    pub backoff_base: Duration,
    /// Longest interval.
    pub backoff_max: Duration,
}

/// Set of retry conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn(pub u32);

impl RetryOn {
    /// Any 5xx or no answer.
    pub const SERVER_ERROR: u32 = 1;
    /// 502, 503, 504.
    pub const GATEWAY_ERROR: u32 = 1 << 1;
    /// No answer at all.
    pub const RESET: u32 = 1 << 2;
    /// Reset before the head was sent upstream.
    pub const RESET_BEFORE_REQUEST: u32 = 1 << 3;
    /// Could not connect.
    pub const CONNECT_FAILURE: u32 = 1 << 4;
    /// HTTP/2 REFUSED_STREAM.
    pub const REFUSED_STREAM: u32 = 1 << 5;
    /// 409.
    pub const RETRIABLE_4XX: u32 = 1 << 6;
    /// Listed codes.
    pub const STATUS_CODES: u32 = 1 << 7;
    /// `x-envoy-ratelimited` in the answer.
    pub const ENVOY_RATE_LIMITED: u32 = 1 << 8;
    /// gRPC status 1 in the response head.
    pub const CANCELLED: u32 = 1 << 9;
    /// gRPC status 4.
    pub const DEADLINE_EXCEEDED: u32 = 1 << 10;
    /// gRPC status 13.
    pub const INTERNAL: u32 = 1 << 11;
    /// gRPC status 8.
    pub const RESOURCE_EXHAUSTED: u32 = 1 << 12;
    /// gRPC status 14.
    pub const UNAVAILABLE: u32 = 1 << 13;

    /// True where any of `bits` is in the set.
    pub fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }
}

/// Envoy's RedirectAction.
#[derive(Debug)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// New scheme.
    pub scheme: Option<Box<str>>,
    /// New host.
    pub host: Option<Box<str>>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: RedirectPath,
    /// Drop the query.
    pub strip_query: bool,
}

/// Path of a redirect.
#[derive(Debug)]
pub enum RedirectPath {
    /// As it was.
    Keep,
    /// This, with its own query if it has one.
    Replace(Box<[u8]>),
    /// Replace the matched prefix.
    Prefix(Box<[u8]>),
    /// Replace all matches.
    Regex(Regex, Box<[u8]>),
}

/// A fixed answer.
#[derive(Debug, Clone)]
pub struct DirectResponse {
    /// Status.
    pub status: u16,
    /// Body; empty for none.
    pub body: Bytes,
}

/// Header operations of one level, on requests and on responses.
#[derive(Debug, Default, Clone)]
pub struct HeaderOps {
    /// Names to delete from requests.
    pub request_remove: Box<[HeaderName]>,
    /// Values to add to requests, in order.
    pub request_add: Box<[HeaderAdd]>,
    /// Names to delete from responses.
    pub response_remove: Box<[HeaderName]>,
    /// Values to add to responses.
    pub response_add: Box<[HeaderAdd]>,
}

/// One header to add.
#[derive(Debug, Clone)]
pub struct HeaderAdd {
    /// Its name.
    pub name: HeaderName,
    /// Value with its `%COMMAND%`s parsed.
    pub value: Template,
    /// What to do where the header is there.
    pub action: AppendAction,
    /// Add even where the value comes out empty.
    pub keep_empty: bool,
}

/// `append_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    /// Add another line.
    AppendIfExistsOrAdd,
    /// Only where it isn't there.
    AddIfAbsent,
    /// Replace or add.
    OverwriteIfExistsOrAdd,
    /// Replace only where it is there.
    OverwriteIfExists,
}
