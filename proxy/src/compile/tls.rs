//! TLS towards clients and upstreams (DownstreamTlsContext, UpstreamTlsContext), and secrets (SDS).

use std::collections::BTreeSet;
use std::sync::Arc;

use osier_proto::Any;
use osier_proto::types::core::{
    self, DataSource, TransportSocket, config_source::ConfigSourceSpecifier, data_source::Specifier,
    grpc_service::TargetSpecifier, transport_socket::ConfigType,
};
use osier_proto::types::tls::{
    self as xds, certificate_validation_context::TrustChainVerification,
    common_tls_context::ValidationContextType, downstream_tls_context::SessionTicketKeysType, secret,
    subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
};
use rustls::SupportedProtocolVersion;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use super::value::{aggregated, enumeration, extension, not_empty, plaintext, required};
use super::{At, Invalid, Rejected, decode, matcher, refs::Collector};
use crate::config::listener::DownstreamTransport;
use crate::config::tls::{
    Asked, Believing, ClientTls, NameKind, NameMatch, OWN, PeerCheck, ROOTS, Secret, SecretHandle, Secrets,
    ServerTls, Signer, Trust, client_config, provider, server_config,
};
use crate::identity::files::FileSecret;
use crate::identity::pem;

/// The cluster by which SDS means the workload's own identity; with Istio its agent is behind it.
const OWN_IDENTITY: &str = "sds-grpc";

/// How the bytes of a chain are secured.
pub(super) fn downstream(
    field: &str,
    socket: Option<&TransportSocket>,
    refs: &mut Collector<'_>,
) -> Result<DownstreamTransport, Invalid> {
    match socket.and_then(|socket| socket.config_type.as_ref()) {
        Some(ConfigType::TypedConfig(config)) if config.is::<xds::DownstreamTlsContext>() => {
            let context: xds::DownstreamTlsContext = extension(config).at(field)?;
            let tls = server(&context, refs).at("typed_config").at(field)?;
            Ok(DownstreamTransport::Tls(tls))
        }
        _ => plaintext(field, socket).map(|()| DownstreamTransport::Plaintext),
    }
}

/// What a cluster leaves to each request (`upstream_http_protocol_options`).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ByRequest {
    /// The ClientHello names whom the request is for.
    pub sni: bool,
    /// The certificate must be for that one.
    pub names: bool,
}

/// How bytes are secured towards upstreams; `None`: not at all.
pub(super) fn upstream(
    field: &str,
    socket: Option<&TransportSocket>,
    by_request: ByRequest,
    secrets: &Secrets,
) -> Result<Option<Arc<ClientTls>>, Invalid> {
    match socket.and_then(|socket| socket.config_type.as_ref()) {
        Some(ConfigType::TypedConfig(config)) if config.is::<xds::UpstreamTlsContext>() => {
            let context: xds::UpstreamTlsContext = extension(config).at(field)?;
            client(&context, by_request, secrets).at("typed_config").at(field).map(|tls| Some(Arc::new(tls)))
        }
        _ => plaintext(field, socket).map(|()| None),
    }
}

fn server(context: &xds::DownstreamTlsContext, refs: &mut Collector<'_>) -> Result<ServerTls, Invalid> {
    let common = required("common_tls_context", context.common_tls_context.as_ref())?;
    let mandatory = context.require_client_certificate.unwrap_or_default();
    let resumes = !matches!(
        context.session_ticket_keys_type,
        Some(SessionTicketKeysType::DisableStatelessSessionResumption(true))
    );
    let secrets = refs.context.secrets;
    let mut compiled = || {
        let versions = versions(common.tls_params.as_ref()).at("tls_params")?;
        let mut over_ads = |name: &str| refs.secret(name);
        let Some(certificate) = certificate(common, secrets, &mut over_ads)? else {
            return Err(Invalid::new("tls_certificates", "needs one, here or by SDS"));
        };
        let check = peer_check(common, mandatory, secrets, &mut over_ads)?;
        if check.is_none() && mandatory {
            let reason = "is needed with require_client_certificate: whom shall it be believed?";
            return Err(Invalid::new("validation_context", reason));
        }
        let config = server_config(&versions, certificate.clone(), check.clone(), resumes);
        let mut config = config.map_err(|error| Invalid::new("tls_params", error.to_string()))?;
        config.alpn_protocols = alpn(common);
        Ok(ServerTls::new(config, certificate, check))
    };
    compiled().at("common_tls_context")
}

fn client(
    context: &xds::UpstreamTlsContext,
    by_request: ByRequest,
    secrets: &Secrets,
) -> Result<ClientTls, Invalid> {
    let common = required("common_tls_context", context.common_tls_context.as_ref())?;
    let asked = match context.sni.as_str() {
        "" if by_request.sni => Asked::ByRequest,
        "" => Asked::Nobody,
        _ if by_request.sni => return Err(Invalid::new("sni", "contradicts auto_sni")),
        name => {
            let name = ServerName::try_from(name.to_owned());
            Asked::Always(
                name.map_err(|_| Invalid::new("sni", format!("`{}` is no host name", context.sni)))?,
            )
        }
    };
    let compiled = || {
        let versions = versions(common.tls_params.as_ref()).at("tls_params")?;
        let mut named = BTreeSet::new();
        let mut over_ads = |name: &str| {
            let handle = secrets.handle(name);
            named.insert(handle.name.clone());
            handle
        };
        let own = certificate(common, secrets, &mut over_ads)?;
        let Some(check) = peer_check(common, false, secrets, &mut over_ads)? else {
            return Err(Invalid::new(
                "validation_context",
                "is needed: without it any server would be believed (trust_chain_verification says so)",
            ));
        };
        let believing = |check: PeerCheck| {
            let config = client_config(&versions, own.clone(), check.clone());
            let mut config = config.map_err(|error| Invalid::new("tls_params", error.to_string()))?;
            config.alpn_protocols = alpn(common);
            Ok(Believing { config, check })
        };
        let http = believing(PeerCheck { asked: by_request.names, ..check.clone() })?;
        Ok(ClientTls::new(believing(check)?, http, asked, own.clone()).with_secrets(named))
    };
    compiled().at("common_tls_context")
}

fn alpn(common: &xds::CommonTlsContext) -> Vec<Vec<u8>> {
    common.alpn_protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}

fn versions(
    parameters: Option<&xds::TlsParameters>,
) -> Result<Vec<&'static SupportedProtocolVersion>, Invalid> {
    let Some(parameters) = parameters else { return Ok(vec![&TLS13, &TLS12]) };
    let least = enumeration("tls_minimum_protocol_version", parameters.tls_minimum_protocol_version)?;
    let most = enumeration("tls_maximum_protocol_version", parameters.tls_maximum_protocol_version)?;
    Ok(match (least, most) {
        (TlsProtocol::TlSv13, TlsProtocol::TlSv12) => {
            return Err(Invalid::new(
                "tls_maximum_protocol_version",
                "is below tls_minimum_protocol_version",
            ));
        }
        (TlsProtocol::TlSv13, _) => vec![&TLS13],
        (_, TlsProtocol::TlSv12) => vec![&TLS12],
        _ => vec![&TLS13, &TLS12],
    })
}

type OverAds<'a> = dyn FnMut(&str) -> Arc<SecretHandle> + 'a;

/// What is shown to peers.
fn certificate(
    common: &xds::CommonTlsContext,
    secrets: &Secrets,
    over_ads: &mut OverAds<'_>,
) -> Result<Option<Arc<SecretHandle>>, Invalid> {
    if common.tls_certificate_provider_instance.is_some() {
        return Err(Invalid::new("tls_certificate_provider_instance", PROVIDER));
    }
    let (inline, named) = (&common.tls_certificates, &common.tls_certificate_sds_secret_configs);
    match (inline.as_slice(), named.as_slice()) {
        ([one], []) => {
            let key = certified(one).at_index("tls_certificates", 0)?;
            Ok(Some(SecretHandle::new("", Secret::Certificate(key))))
        }
        ([], [one]) => {
            let handle = by_sds(one, Sort::Certificate, secrets, over_ads);
            handle.at_index("tls_certificate_sds_secret_configs", 0).map(Some)
        }
        ([], []) => Ok(None),
        _ => Err(Invalid::new("tls_certificates", "only one is supported")),
    }
}

/// Which peers are believed; `None`: nothing is said.
fn peer_check(
    common: &xds::CommonTlsContext,
    mandatory: bool,
    secrets: &Secrets,
    over_ads: &mut OverAds<'_>,
) -> Result<Option<PeerCheck>, Invalid> {
    let mut roots = |config: &xds::SdsSecretConfig| {
        let roots = by_sds(config, Sort::Roots, secrets, over_ads);
        roots.map(Signer::Roots).at("validation_context_sds_secret_config")
    };
    let (signer, names) = match &common.validation_context_type {
        None => return Ok(None),
        Some(ValidationContextType::ValidationContext(context)) => {
            let signer = signer(context).at("validation_context")?;
            let names = names(context).at("validation_context")?;
            (signer, names)
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            (roots(config)?, Arc::default())
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let mut combination = || {
                let field = "default_validation_context";
                let context = required(field, combined.default_validation_context.as_ref())?;
                if context.trusted_ca.is_some() {
                    return Err(Invalid::new("trusted_ca", "comes by SDS here")).at(field);
                }
                if is_anybody_believed(context).at(field)? {
                    let reason = "contradicts the roots that come by SDS";
                    return Err(Invalid::new("trust_chain_verification", reason)).at(field);
                }
                let config = combined.validation_context_sds_secret_config.as_ref();
                let trust = roots(required("validation_context_sds_secret_config", config)?)?;
                Ok((trust, names(context).at(field)?))
            };
            combination().at("combined_validation_context")?
        }
    };
    Ok(Some(PeerCheck { signer, names, asked: false, mandatory, known: secrets.known.clone() }))
}

/// The handle of a secret that comes by SDS: the workload's own identity, or over the stream where that is possible.
fn by_sds(
    config: &xds::SdsSecretConfig,
    sort: Sort,
    secrets: &Secrets,
    over_ads: &mut OverAds<'_>,
) -> Result<Arc<SecretHandle>, Invalid> {
    not_empty("name", &config.name)?;
    if !is_own_identity(config.sds_config.as_ref()) {
        aggregated("sds_config", config.sds_config.as_ref())?;
        return Ok(over_ads(&config.name));
    }
    let file = FileSecret::parse(&config.name);
    let (own_name, own) = match sort {
        Sort::Certificate => (OWN, &secrets.own),
        Sort::Roots => (ROOTS, &secrets.roots),
    };
    match (sort, file) {
        _ if config.name == own_name => Ok(own.clone()),
        (Sort::Certificate, Some(FileSecret::Certificate { .. }))
        | (Sort::Roots, Some(FileSecret::Roots(_) | FileSecret::System)) => Ok(secrets.file(&config.name)),
        _ => Err(Invalid::new(
            "name",
            format!("`{}` is not in `{OWN_IDENTITY}`; there are `{own_name}` and files", config.name),
        )),
    }
}

/// What a secret must be to be of use.
#[derive(Clone, Copy)]
enum Sort {
    Certificate,
    Roots,
}

fn is_own_identity(source: Option<&core::ConfigSource>) -> bool {
    let source = source.and_then(|source| source.config_source_specifier.as_ref());
    let Some(ConfigSourceSpecifier::ApiConfigSource(api)) = source else { return false };
    let target = |service: &core::GrpcService| match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(grpc)) => grpc.cluster_name == OWN_IDENTITY,
        None => false,
    };
    api.grpc_services.iter().any(target)
}

/// Compiles an SDS resource.
pub fn secret(name: &str, any: &Any) -> Result<Secret, Rejected> {
    let compiled = || {
        let message: xds::Secret = decode(any)?;
        if message.name != name {
            return Err(Invalid::new("name", format!("is `{}`, but the resource is `{name}`", message.name)));
        }
        match required("tls_certificate", message.r#type.as_ref())? {
            secret::Type::TlsCertificate(certificate) => {
                certified(certificate).at("tls_certificate").map(Secret::Certificate)
            }
            secret::Type::ValidationContext(context) => {
                if is_anybody_believed(context).at("validation_context")? {
                    let reason = "must be where a secret would be named";
                    return Err(Invalid::new("validation_context.trust_chain_verification", reason));
                }
                if !names(context).at("validation_context")?.is_empty() {
                    let reason = "must be where the roots are used";
                    return Err(Invalid::new("validation_context.match_typed_subject_alt_names", reason));
                }
                trust(context).at("validation_context").map(Secret::Trust)
            }
        }
    };
    compiled().map_err(|e: Invalid| e.in_resource(name))
}

/// Why a gRPC library's way to certificates isn't ours.
const PROVIDER: &str = "is for gRPC libraries: here certificates come inline or by SDS";

fn signer(context: &xds::CertificateValidationContext) -> Result<Signer, Invalid> {
    match (is_anybody_believed(context)?, &context.trusted_ca) {
        (true, None) => Ok(Signer::Anybody),
        (true, Some(_)) => Err(Invalid::new("trust_chain_verification", "contradicts `trusted_ca`")),
        (false, _) => Ok(Signer::Roots(SecretHandle::new("", Secret::Trust(trust(context)?)))),
    }
}

fn is_anybody_believed(context: &xds::CertificateValidationContext) -> Result<bool, Invalid> {
    if context.ca_certificate_provider_instance.is_some() {
        return Err(Invalid::new("ca_certificate_provider_instance", PROVIDER));
    }
    Ok(match enumeration("trust_chain_verification", context.trust_chain_verification)? {
        TrustChainVerification::VerifyTrustChain => false,
        TrustChainVerification::AcceptUntrusted => true,
    })
}

fn trust(context: &xds::CertificateValidationContext) -> Result<Arc<Trust>, Invalid> {
    let roots = certificates("trusted_ca", context.trusted_ca.as_ref())?;
    Trust::new(roots).map(Arc::new).map_err(|error| Invalid::new("trusted_ca", error))
}

fn names(context: &xds::CertificateValidationContext) -> Result<Arc<[NameMatch]>, Invalid> {
    let name = |(index, message): (usize, &xds::SubjectAltNameMatcher)| {
        let compiled = || {
            let kind = match enumeration("san_type", message.san_type)? {
                SanType::Uri => NameKind::Uri,
                SanType::Dns => NameKind::Dns,
                SanType::Email => NameKind::Email,
                SanType::IpAddress => NameKind::Ip,
                SanType::Unspecified => {
                    return Err(Invalid::new("san_type", "must be URI, DNS, EMAIL or IP_ADDRESS"));
                }
            };
            let value = matcher::string(required("matcher", message.matcher.as_ref())?).at("matcher")?;
            Ok(NameMatch { kind, value })
        };
        compiled().at_index("match_typed_subject_alt_names", index)
    };
    let of_any_kind = |(index, message)| {
        let value = matcher::string(message).at_index("match_subject_alt_names", index)?;
        Ok(NameMatch { kind: NameKind::Any, value })
    };
    let of_any_kind = context.match_subject_alt_names.iter().enumerate().map(of_any_kind);
    let typed = context.match_typed_subject_alt_names.iter().enumerate().map(name);
    // As in Envoy, which doesn't look at the old field where there is the new one.
    match context.match_typed_subject_alt_names.is_empty() {
        true => of_any_kind.collect(),
        false => typed.collect(),
    }
}

fn certified(certificate: &xds::TlsCertificate) -> Result<Arc<CertifiedKey>, Invalid> {
    let chain = certificates("certificate_chain", certificate.certificate_chain.as_ref())?;
    let key = bytes("private_key", certificate.private_key.as_ref())?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| Invalid::new("private_key", format!("is no PEM: {error}")))?;
    let certified = CertifiedKey::from_der(chain, key, &provider());
    let certified = certified.map_err(|error| Invalid::new("private_key", error.to_string()))?;
    Ok(Arc::new(certified))
}

fn certificates(field: &str, source: Option<&DataSource>) -> Result<Vec<CertificateDer<'static>>, Invalid> {
    pem::certificates(bytes(field, source)?).map_err(|error| Invalid::new(field, error.to_string()))
}

fn bytes<'a>(field: &str, source: Option<&'a DataSource>) -> Result<&'a [u8], Invalid> {
    match required(field, source.and_then(|source| source.specifier.as_ref()))? {
        Specifier::InlineBytes(bytes) => Ok(bytes),
        Specifier::InlineString(text) => Ok(text.as_bytes()),
        Specifier::Filename(_) => Err(Invalid::new(field, "must be inline: files are not read")),
    }
}
