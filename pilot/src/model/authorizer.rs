//! External authorizers of the mesh: the extension providers that AuthorizationPolicies of action CUSTOM name.

use std::sync::Arc;
use std::time::Duration;

use osier_core::host::Host;

use super::authorization::TextMatch;

/// An extension provider that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorizer {
    /// Its name; none else has it.
    pub name: Arc<str>,
    /// Namespace of its service, where that is said.
    pub namespace: Option<Arc<str>>,
    /// Its service.
    pub host: Host,
    /// Port of the service.
    pub port: u16,
    /// How long it may take; `None` is Istio's ten minutes.
    pub timeout: Option<Duration>,
    /// Without an answer what it was asked for is let in.
    pub fails_open: bool,
    /// Routes are chosen by what it has made of a request.
    pub routes_anew: bool,
    /// Status of the refusal without an answer; `None` is 403.
    pub status_on_error: Option<u16>,
    /// It is shown the body.
    pub body: Option<ShownBody>,
    /// How it is asked.
    pub over: AskedOver,
}

/// How much of a body is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownBody {
    /// So many bytes.
    pub most: u32,
    /// Of a longer body its beginning; else it is refused.
    pub partial: bool,
    /// As bytes, not as text.
    pub as_bytes: bool,
}

/// How an authorizer is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskedOver {
    /// `envoy.service.auth.v3`.
    Grpc,
    /// With a request like the client's.
    Http(HttpQuestion),
}

/// What an HTTP authorizer is shown, and who hears of its answers. Names of headers have their stars.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpQuestion {
    /// Comes before the path.
    pub path_prefix: String,
    /// Headers of the client.
    pub shown: Vec<TextMatch>,
    /// Headers that are set.
    pub added: Vec<(String, String)>,
    /// Of an answer that lets in, to the upstream.
    pub to_upstream: Vec<TextMatch>,
    /// Of an answer that denies, to the client; empty: all.
    pub to_client_denied: Vec<TextMatch>,
    /// Of an answer that lets in, to the client.
    pub to_client_allowed: Vec<TextMatch>,
}
