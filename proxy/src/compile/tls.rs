//! TLS towards clients (DownstreamTlsContext) and certificates (SDS).

use std::sync::Arc;

use osier_proto::Any;
use osier_proto::types::core::{
    DataSource, TransportSocket, data_source::Specifier, transport_socket::ConfigType,
};
use osier_proto::types::tls::{self as xds, secret, tls_parameters::TlsProtocol};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};

use super::value::{aggregated, enumeration, extension, not_empty, plaintext, required};
use super::{At, Invalid, Rejected, decode, refs::Collector};
use crate::config::listener::DownstreamTransport;
use crate::config::tls::{SecretHandle, ServerTls};

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

fn server(context: &xds::DownstreamTlsContext, refs: &mut Collector<'_>) -> Result<ServerTls, Invalid> {
    if context.require_client_certificate == Some(true) {
        return Err(Invalid::new("require_client_certificate", "is not supported yet"));
    }
    let common = required("common_tls_context", context.common_tls_context.as_ref())?;
    let mut compiled = || {
        let versions = versions(common.tls_params.as_ref()).at("tls_params")?;
        let certificate: Arc<dyn ResolvesServerCert> = certificate(common, refs)?;
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder
            .with_protocol_versions(&versions)
            .map_err(|error| Invalid::new("tls_params", error.to_string()))?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(certificate);
        config.alpn_protocols = common.alpn_protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        config.send_tls13_tickets = 1;
        // Sessions that clients keep themselves: no memory here, and they survive an update of the listener not longer than its key.
        config.ticketer = aws_lc_rs::Ticketer::new()
            .map_err(|error| Invalid::new("", format!("tickets can't be made: {error}")))?;
        Ok(ServerTls(Arc::new(config)))
    };
    compiled().at("common_tls_context")
}

fn versions(
    parameters: Option<&xds::TlsParameters>,
) -> Result<Vec<&'static rustls::SupportedProtocolVersion>, Invalid> {
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

fn certificate(
    common: &xds::CommonTlsContext,
    refs: &mut Collector<'_>,
) -> Result<Arc<SecretHandle>, Invalid> {
    let (inline, named) = (&common.tls_certificates, &common.tls_certificate_sds_secret_configs);
    match (inline.as_slice(), named.as_slice()) {
        ([one], []) => {
            let key = certified(one).at_index("tls_certificates", 0)?;
            Ok(SecretHandle::new("", Some(key)))
        }
        ([], [one]) => {
            let mut named = || {
                not_empty("name", &one.name)?;
                aggregated("sds_config", one.sds_config.as_ref())?;
                Ok(refs.secret(&one.name))
            };
            named().at_index("tls_certificate_sds_secret_configs", 0)
        }
        ([], []) => Err(Invalid::new("tls_certificates", "needs one, here or by SDS")),
        _ => Err(Invalid::new("tls_certificates", "only one is supported")),
    }
}

/// Compiles an SDS resource.
pub fn secret(name: &str, any: &Any) -> Result<Arc<CertifiedKey>, Rejected> {
    let compiled = || {
        let message: xds::Secret = decode(any)?;
        if message.name != name {
            return Err(Invalid::new("name", format!("is `{}`, but the resource is `{name}`", message.name)));
        }
        let secret::Type::TlsCertificate(certificate) = required("tls_certificate", message.r#type.as_ref())?;
        certified(certificate).at("tls_certificate")
    };
    compiled().map_err(|e: Invalid| e.in_resource(name))
}

fn certified(certificate: &xds::TlsCertificate) -> Result<Arc<CertifiedKey>, Invalid> {
    let chain = bytes("certificate_chain", certificate.certificate_chain.as_ref())?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| Invalid::new("certificate_chain", format!("is no PEM: {error}")))?;
    if chain.is_empty() {
        return Err(Invalid::new("certificate_chain", "has no certificate"));
    }
    let key = bytes("private_key", certificate.private_key.as_ref())?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|error| Invalid::new("private_key", format!("is no PEM: {error}")))?;
    let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
    let certified = certified.map_err(|error| Invalid::new("private_key", error.to_string()))?;
    Ok(Arc::new(certified))
}

fn bytes<'a>(field: &str, source: Option<&'a DataSource>) -> Result<&'a [u8], Invalid> {
    match required(field, source.and_then(|source| source.specifier.as_ref()))? {
        Specifier::InlineBytes(bytes) => Ok(bytes),
        Specifier::InlineString(text) => Ok(text.as_bytes()),
        Specifier::Filename(_) => Err(Invalid::new(field, "must be inline: files are not read")),
    }
}
