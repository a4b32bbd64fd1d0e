//! Certificates over SDS, for who has proved to live in their namespace, and the roots of the mesh, for who has proved who it is.

use osier_proto::types::core::{DataSource, data_source::Specifier};
use osier_proto::types::tls::{CertificateValidationContext, Secret, TlsCertificate, secret};

use super::name;
use super::scope::Scope;
use super::tls::ROOTS;

/// The secret of a name; `None` where there is none, or where this client may not have it.
pub fn generate(scope: &Scope<'_>, name: &str) -> Option<Secret> {
    let content = if name == ROOTS { roots(scope)? } else { certificate(scope, name)? };
    Some(Secret { name: name.to_string(), r#type: Some(content) })
}

/// An agent has them with its certificate; here they come as soon as they change.
fn roots(scope: &Scope<'_>) -> Option<secret::Type> {
    let roots = scope.snapshot.roots.as_ref().filter(|_| scope.view().proxy.mutual_tls)?;
    let trusted_ca = source(roots.as_bytes());
    let context = CertificateValidationContext { trusted_ca, ..CertificateValidationContext::default() };
    Some(secret::Type::ValidationContext(context))
}

fn certificate(scope: &Scope<'_>, name: &str) -> Option<secret::Type> {
    let (namespace, secret) = name::parse_secret(name)?;
    if scope.view().secrets_of.as_deref() != Some(namespace) {
        return None;
    }
    let found = scope.snapshot.secrets.get(&(namespace.into(), secret.into()))?;
    let (certificate_chain, private_key) = (source(&found.chain), source(&found.key));
    Some(secret::Type::TlsCertificate(TlsCertificate { certificate_chain, private_key }))
}

fn source(bytes: &[u8]) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec().into())) })
}
