//! The mesh in our own words: plain, validated values without protobuf, YAML or Kubernetes in them.
//!
//! Sources make them, `store` and `registry` keep them, `snapshot` indexes them, `gen` turns them into xDS.
//! Host names are lower-cased and fully qualified, durations are checked, and what is unsupported never gets here.

mod authentication;
mod authorization;
mod authorizer;
mod endpoint;
mod export;
mod ingress;
mod mesh;
mod owner;
mod policy;
mod resource;
mod route;
mod secret;
mod security;
mod selector;
mod service;
mod view;
mod workload;

pub use authentication::{FetchedKeys, KeyLocation, KeySource, TokenRule};
pub use authorization::{
    Account, Authorization, AuthorizationAction, AuthorizationRule, PathMatch, RequestPrincipal, Test,
    TextMatch, Values,
};
pub use authorizer::{AskedOver, Authorizer, HttpQuestion, ShownBody};
pub use endpoint::{Address, Endpoint, Health, Locality, TLS_MODE_LABEL, TlsMode};
pub use export::{ExportTo, Exports};
pub use ingress::{
    BackendPort, INGRESS_CONTROLLER, Ingress, IngressBackend, IngressMode, IngressPath, IngressPolicy,
    IngressRule, IngressTls, PathRule,
};
pub use mesh::{
    AccessLogEncoding, InboundTraffic, MeshConfig, OutboundTraffic, PathNormalization, TlsVersion,
    UpgradePolicy, spiffe, trust_domain,
};
pub use owner::Owner;
pub use policy::{
    CertificateFiles, ClientTls, ConnectionPool, DestinationPolicy, EffectivePolicy, HttpPool, LoadBalancer,
    OwnCertificate, PortPolicy, ServerNames, ServerTrust, Subset, TcpKeepalive, TcpPool, TrafficPolicy,
};
pub use resource::{Age, Kind, Origin, Report, ResourceKey, Severity};
pub use route::{
    Authority, Destination, DirectResponse, GatewayRef, HeaderChange, HeaderOps, HttpAction, HttpMatch,
    HttpRoute, L4Match, L4Route, Redirect, RedirectPath, RedirectPort, RegexRewrite, RetryOn, RetryPolicy,
    Rewrite, RewritePath, RouteRule, StringMatch, TlsMatch, TlsRoute, ValueMatch, WeightedDestination,
    WeightedL4,
};
pub use secret::{Credential, TlsSecret, has_roots_of, roots_of};
pub use security::{Coverage, Demand, MutualTls, Refusal, SecurityPolicy};
pub use selector::{LabelSelector, Operator, Requirement};
pub use service::{
    Location, Protocol, Service, ServiceKey, ServiceKind, ServicePort, ServiceSource, TargetPort,
};
pub use view::{Interception, ProxyKind, ProxyView};
pub use workload::{Workload, WorkloadName};

/// The domain under which Kubernetes services live where nothing else is said.
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";
