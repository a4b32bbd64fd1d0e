//! TLS contexts: what proxies of the mesh show each other, what they show servers of somebody else's, and whom they believe.
//!
//! Certificates and roots are named, never part of it: each proxy has its own (`default`), the mesh's roots (`ROOTCA`), and those that lie in
//! its files (`file-cert:`, `file-root:`) from whoever is behind the cluster `sds-grpc` in its bootstrap. osier-proxy is that itself.
//! What Secrets have (`kubernetes://`) it asks us for. gRPC libraries have certificates from a provider of theirs.

use std::sync::Arc;

use osier_proto::Any;
use osier_proto::types::core::{
    self, ApiConfigSource, ApiVersion, ConfigSource, GrpcService, TransportSocket,
    api_config_source::ApiType, config_source::ConfigSourceSpecifier, grpc_service,
};
use osier_proto::types::matcher::{StringMatcher, string_matcher::MatchPattern};
use osier_proto::types::tls::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
    SdsSecretConfig, SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
    certificate_validation_context::TrustChainVerification,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use prost::{Message, Name};

use super::{name, wire};
use crate::model::{CertificateFiles, MeshConfig, OwnCertificate, ServerTrust, TlsVersion, roots_of, spiffe};

/// Which protocols any TLS of ours speaks.
const VERSIONS: TlsParameters = TlsParameters {
    tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
    tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
};

/// What gRPC libraries call the provider of certificates in their bootstrap.
const PROVIDER: &str = "default";

/// What the roots of the mesh are called.
pub const ROOTS: &str = "ROOTCA";

/// Mutual TLS towards clients of the mesh. `http`: what is within is HTTP.
pub fn server(mesh: &MeshConfig, http: bool) -> TransportSocket {
    // What a client of the mesh offers besides is no protocol of ours: `istio` only says that it is one.
    let protocols: &[&str] = if http { &["h2", "http/1.1"] } else { &[] };
    let of_domain = |domain: &str| uri(MatchPattern::Prefix(format!("spiffe://{domain}/")));
    let least = match mesh.least_tls {
        TlsVersion::Tls12 => TlsProtocol::TlSv12,
        TlsVersion::Tls13 => TlsProtocol::TlSv13,
    };
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(TlsParameters { tls_minimum_protocol_version: least as i32, ..VERSIONS }),
            ..of_mesh(mesh.trust_domains().map(of_domain).collect(), protocols)
        }),
        require_client_certificate: Some(true),
        ..Default::default()
    };
    socket(&context)
}

/// Mutual TLS towards servers of the mesh, which must have one of `names`; any of the mesh where there is none.
pub fn client(server_name: String, names: Vec<SubjectAltNameMatcher>, protocols: &[&str]) -> TransportSocket {
    let context =
        UpstreamTlsContext { common_tls_context: Some(of_mesh(names, protocols)), sni: server_name };
    socket(&context)
}

/// TLS towards a server of somebody else's. Secrets are those of `namespace`. An empty `server_name` leaves it to each request, or
/// names none.
pub fn outside(
    namespace: &str,
    (own, trust): (Option<&OwnCertificate>, &ServerTrust),
    server_name: String,
    names: Vec<SubjectAltNameMatcher>,
    protocols: &[&str],
) -> TransportSocket {
    let shown = |own: &OwnCertificate| match own {
        OwnCertificate::Files(CertificateFiles { certificate, key }) => {
            secret(&format!("file-cert:{certificate}~{key}"))
        }
        OwnCertificate::Secret(name) => handed_on(namespace, name),
    };
    let roots = |named: SdsSecretConfig| combined(named, names);
    let believed = match trust {
        ServerTrust::Anybody => ValidationContextType::ValidationContext(CertificateValidationContext {
            trust_chain_verification: TrustChainVerification::AcceptUntrusted as i32,
            ..Default::default()
        }),
        ServerTrust::System => roots(secret("file-root:system")),
        ServerTrust::File(path) => roots(secret(&format!("file-root:{path}"))),
        ServerTrust::Secret(name) => roots(handed_on(namespace, &roots_of(name))),
    };
    let common = common(own.map(shown), believed, protocols);
    socket(&UpstreamTlsContext { common_tls_context: Some(common), sni: server_name })
}

/// Mutual TLS of a gRPC server. It can't look at names of clients: whoever the mesh's roots vouch for may come.
pub fn grpc_server() -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(provided(Vec::new())),
        require_client_certificate: Some(true),
        ..Default::default()
    };
    socket(&context)
}

/// Mutual TLS of a gRPC client towards servers that have one of these names. It knows only the field that doesn't say of which kind.
pub fn grpc_client(names: Vec<SubjectAltNameMatcher>) -> TransportSocket {
    socket(&UpstreamTlsContext { common_tls_context: Some(provided(names)), ..Default::default() })
}

/// From the provider that the library has.
fn provided(names: Vec<SubjectAltNameMatcher>) -> CommonTlsContext {
    let named = |name: &str| CertificateProviderPluginInstance {
        instance_name: PROVIDER.to_string(),
        certificate_name: name.to_string(),
    };
    CommonTlsContext {
        tls_certificate_provider_instance: Some(named("default")),
        validation_context_type: Some(ValidationContextType::ValidationContext(
            CertificateValidationContext {
                ca_certificate_provider_instance: Some(named(ROOTS)),
                match_subject_alt_names: names.into_iter().filter_map(|name| name.matcher).collect(),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

/// The names of service accounts (namespace and name) in every trust domain that is the mesh's.
pub fn accounts<'a>(
    mesh: &MeshConfig,
    accounts: impl Iterator<Item = (&'a str, &'a str)>,
) -> Vec<SubjectAltNameMatcher> {
    let of_account = |(namespace, account): (&str, &str)| {
        let of_domain = |domain: &str| uri(MatchPattern::Exact(spiffe(domain, namespace, account)));
        mesh.trust_domains().map(of_domain).collect::<Vec<_>>()
    };
    accounts.flat_map(of_account).collect()
}

/// Names as people write them: of which kind each is, it shows.
pub fn alternatives<'a>(written: impl IntoIterator<Item = &'a Arc<str>>) -> Vec<SubjectAltNameMatcher> {
    let kind = |text: &str| match text {
        text if text.contains("://") => SanType::Uri,
        text if text.contains('@') => SanType::Email,
        text if text.parse::<std::net::IpAddr>().is_ok() => SanType::IpAddress,
        _ => SanType::Dns,
    };
    let matcher = |text: &Arc<str>| alternative(kind(text), MatchPattern::Exact(text.to_string()));
    written.into_iter().map(matcher).collect()
}

/// What proxies of the mesh show each other, and whom they believe.
fn of_mesh(names: Vec<SubjectAltNameMatcher>, protocols: &[&str]) -> CommonTlsContext {
    common(Some(secret("default")), combined(secret(ROOTS), names), protocols)
}

fn common(
    own: Option<SdsSecretConfig>,
    believed: ValidationContextType,
    protocols: &[&str],
) -> CommonTlsContext {
    CommonTlsContext {
        tls_params: Some(VERSIONS),
        tls_certificate_sds_secret_configs: own.into_iter().collect(),
        validation_context_type: Some(believed),
        alpn_protocols: protocols.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

/// Whoever these roots vouch for, under one of the names.
fn combined(roots: SdsSecretConfig, names: Vec<SubjectAltNameMatcher>) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: names,
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(roots),
    })
}

fn uri(pattern: MatchPattern) -> SubjectAltNameMatcher {
    alternative(SanType::Uri, pattern)
}

/// A name of this kind.
fn alternative(kind: SanType, pattern: MatchPattern) -> SubjectAltNameMatcher {
    let matcher = StringMatcher { match_pattern: Some(pattern), ..Default::default() };
    SubjectAltNameMatcher { san_type: kind as i32, matcher: Some(matcher) }
}

fn secret(name: &str) -> SdsSecretConfig {
    let target = grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
        cluster_name: "sds-grpc".into(),
        ..Default::default()
    });
    let source = ApiConfigSource {
        api_type: ApiType::Grpc as i32,
        transport_api_version: ApiVersion::V3 as i32,
        grpc_services: vec![GrpcService { target_specifier: Some(target), ..Default::default() }],
        set_node_on_first_message_only: true,
    };
    SdsSecretConfig {
        name: name.to_string(),
        sds_config: Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(source)),
            initial_fetch_timeout: Some(prost_types::Duration::default()),
            resource_api_version: ApiVersion::V3 as i32,
        }),
    }
}

/// What a Secret has, from the control plane itself. A client to which it isn't given doesn't wait for it at its start.
fn handed_on(namespace: &str, name: &str) -> SdsSecretConfig {
    let patience = prost_types::Duration { seconds: 5, nanos: 0 };
    SdsSecretConfig {
        name: name::secret(namespace, name),
        sds_config: Some(ConfigSource { initial_fetch_timeout: Some(patience), ..wire::over_ads() }),
    }
}

fn socket<M: Message + Name>(context: &M) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_string(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(Any::pack(context))),
    }
}

/// Bytes as they are.
pub fn plaintext() -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.raw_buffer".to_string(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(Any::pack(
            &osier_proto::types::raw_buffer::RawBuffer {},
        ))),
    }
}
