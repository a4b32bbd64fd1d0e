//! Keys: a token's, and certificates for the rows with TLS: one root, a server and a client of the mesh, ECDSA P-256 as pilot gives them; and how each side is
//! told of them, in Envoy's words and in rustls'.

use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;

use crate::subject::Kind;
use crate::tokens::Token;

const SERVER: &str = "spiffe://cluster.local/ns/bench/sa/server";
const CLIENT: &str = "spiffe://cluster.local/ns/bench/sa/client";
/// A name for clients that ask for one; accounts are what counts between proxies.
const NAME: &str = "bench";

/// What both sides of a handshake agree on.
#[derive(Debug, Clone, Copy)]
pub enum Group {
    /// Elliptic curves alone.
    X25519,
    /// With ML-KEM beside them.
    Hybrid,
}

impl Group {
    fn name(self) -> &'static str {
        match self {
            Self::X25519 => "X25519",
            Self::Hybrid => "X25519MLKEM768",
        }
    }
}

/// A chain and its key, as PEM.
struct Leaf {
    chain: String,
    key: String,
}

/// All of them.
pub struct Keys {
    root: String,
    server: Leaf,
    client: Leaf,
    /// What the row with tokens sends.
    pub token: Token,
}

impl Keys {
    /// New ones.
    pub fn new() -> Result<Self> {
        // Names differ, or Envoy takes what the root has signed for roots of their own.
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root of the benchmark");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let leaf = |account: &str| -> Result<Leaf> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![NAME.to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, account);
            params.use_authority_key_identifier_extension = true;
            params.subject_alt_names.push(SanType::URI(account.try_into()?));
            Ok(Leaf { chain: params.signed_by(&key, &root)?.pem(), key: key.serialize_pem() })
        };
        Ok(Self { root: root.pem(), server: leaf(SERVER)?, client: leaf(CLIENT)?, token: Token::new() })
    }

    /// A filter chain's transport socket: clients must show a certificate, and sessions are resumed where that is measured. Envoy has to
    /// be told to offer the group.
    pub fn server(&self, kind: Kind, protocols: &[&str], group: Group, resumed: bool) -> String {
        let mut context = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": true,
            "disable_stateless_session_resumption": !resumed,
            "common_tls_context": self.common(&self.server, CLIENT, protocols),
        });
        if kind != Kind::Osier {
            context["common_tls_context"]["tls_params"] = json!({ "ecdh_curves": [group.name()] });
        }
        format!("transport_socket: {}\n      ", json!({ "name": "tls", "typed_config": context }))
    }

    /// A cluster's transport socket.
    pub fn client(&self, protocols: &[&str]) -> String {
        let context = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": self.common(&self.client, SERVER, protocols),
        });
        format!("\n    transport_socket: {}", json!({ "name": "tls", "typed_config": context }))
    }

    fn common(&self, own: &Leaf, peer: &str, protocols: &[&str]) -> Value {
        json!({
            "alpn_protocols": protocols,
            "tls_certificates": [{
                "certificate_chain": { "inline_string": own.chain },
                "private_key": { "inline_string": own.key },
            }],
            "validation_context": {
                "trusted_ca": { "inline_string": self.root },
                "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer } }],
            },
        })
    }

    /// A client whose handshakes are all full ones, or all but the first resume what was before.
    pub fn connector(&self, group: Group, resumed: bool) -> Result<TlsConnector> {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![match group {
            Group::X25519 => kx_group::X25519,
            Group::Hybrid => kx_group::X25519MLKEM768,
        }];
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.root.as_bytes())?)?;
        let chain = CertificateDer::pem_slice_iter(self.client.chain.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(self.client.key.as_bytes())?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if !resumed {
            config.resumption = rustls::client::Resumption::disabled();
        }
        Ok(TlsConnector::from(Arc::new(config)))
    }

    /// By which a client calls the server.
    pub fn name() -> Result<ServerName<'static>> {
        ServerName::try_from(NAME).context("a name")
    }
}
