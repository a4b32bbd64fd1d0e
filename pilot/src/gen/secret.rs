//! Certificates over SDS, for who has proved to live in their namespace, and the roots of the mesh, for who has proved who it is.

use osier_proto::types::core::{DataSource, data_source::Specifier};
use osier_proto::types::tls::{CertificateValidationContext, Secret, TlsCertificate, secret};

use super::name;
use super::scope::Scope;
use super::tls::ROOTS;
use crate::model::has_roots_of;

/// The secret of a name; `None` where there is none, or where this client may not have it.
pub fn generate(scope: &Scope<'_>, name: &str) -> Option<Secret> {
    let content = if name == ROOTS { roots(scope)? } else { credential(scope, name)? };
    Some(Secret { name: name.to_string(), r#type: Some(content) })
}

/// An agent has them with its certificate; here they come as soon as they change.
fn roots(scope: &Scope<'_>) -> Option<secret::Type> {
    let roots = scope.snapshot.roots.as_ref().filter(|_| scope.view().proxy.mutual_tls)?;
    Some(trusted(roots.as_bytes()))
}

/// Roots in a Secret of their own go before those beside a certificate.
fn credential(scope: &Scope<'_>, name: &str) -> Option<secret::Type> {
    let (namespace, secret) = name::parse_secret(name)?;
    let may = scope.view().secrets_of.as_ref().filter(|may| *may.namespace == *namespace)?;
    let found = |secret: &str| scope.snapshot.secrets.get(&(namespace.into(), secret.into()));
    match has_roots_of(secret) {
        Some(beside) => {
            let roots = [secret, beside].into_iter().find_map(|name| found(name)?.roots.as_deref());
            Some(trusted(roots?))
        }
        None if may.keys => {
            let own = found(secret)?.own.as_ref()?;
            let (certificate_chain, private_key) = (source(&own.chain), source(&own.key));
            Some(secret::Type::TlsCertificate(TlsCertificate { certificate_chain, private_key }))
        }
        None => None,
    }
}

fn trusted(roots: &[u8]) -> secret::Type {
    let context =
        CertificateValidationContext { trusted_ca: source(roots), ..CertificateValidationContext::default() };
    secret::Type::ValidationContext(context)
}

fn source(bytes: &[u8]) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec().into())) })
}
