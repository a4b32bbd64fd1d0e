//! TLS contexts between proxies of the mesh: what they show each other, and whom they believe.
//!
//! Certificates and roots are named, never sent: each proxy has its own (`default`) and the mesh's roots (`ROOTCA`) from whoever is
//! behind the cluster `sds-grpc` in its bootstrap. osier-proxy is that itself.

use osier_proto::Any;
use osier_proto::types::core::{
    self, ApiConfigSource, ApiVersion, ConfigSource, GrpcService, TransportSocket,
    api_config_source::ApiType, config_source::ConfigSourceSpecifier, grpc_service,
};
use osier_proto::types::matcher::{StringMatcher, string_matcher::MatchPattern};
use osier_proto::types::tls::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use prost::{Message, Name};

use crate::model::{MeshConfig, spiffe};

/// What the roots of the mesh are called.
pub const ROOTS: &str = "ROOTCA";

/// Mutual TLS towards clients of the mesh. `http`: what is within is HTTP.
pub fn server(mesh: &MeshConfig, http: bool) -> TransportSocket {
    // What a client of the mesh offers besides is no protocol of ours: `istio` only says that it is one.
    let protocols: &[&str] = if http { &["h2", "http/1.1"] } else { &[] };
    let of_domain = |domain: &str| name(MatchPattern::Prefix(format!("spiffe://{domain}/")));
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(protocols, mesh.trust_domains().map(of_domain).collect())),
        require_client_certificate: Some(true),
    };
    socket(&context)
}

/// Mutual TLS towards servers of the mesh. `accounts`: namespace and service account of each; empty where none is known.
pub fn client<'a>(
    mesh: &MeshConfig,
    server_name: String,
    accounts: impl Iterator<Item = (&'a str, &'a str)>,
    protocols: &[&str],
) -> TransportSocket {
    let of_account = |(namespace, account): (&str, &str)| {
        let of_domain = |domain: &str| name(MatchPattern::Exact(spiffe(domain, namespace, account)));
        mesh.trust_domains().map(of_domain).collect::<Vec<_>>()
    };
    let servers = accounts.flat_map(of_account).collect();
    let context =
        UpstreamTlsContext { common_tls_context: Some(common(protocols, servers)), sni: server_name };
    socket(&context)
}

fn common(protocols: &[&str], names: Vec<SubjectAltNameMatcher>) -> CommonTlsContext {
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            trusted_ca: None,
            match_typed_subject_alt_names: names,
        }),
        validation_context_sds_secret_config: Some(secret(ROOTS)),
    };
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
        }),
        tls_certificate_sds_secret_configs: vec![secret("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(validation)),
        alpn_protocols: protocols.iter().map(|protocol| protocol.to_string()).collect(),
        ..Default::default()
    }
}

fn name(pattern: MatchPattern) -> SubjectAltNameMatcher {
    let matcher = StringMatcher { match_pattern: Some(pattern), ..Default::default() };
    SubjectAltNameMatcher { san_type: SanType::Uri as i32, matcher: Some(matcher) }
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
