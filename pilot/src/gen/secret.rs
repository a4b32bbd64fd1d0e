//! Certificates over SDS, for who has proved to live in their namespace.

use osier_proto::types::core::{DataSource, data_source::Specifier};
use osier_proto::types::tls::{Secret, TlsCertificate, secret};

use super::name;
use super::scope::Scope;

/// The certificate of a name; `None` where there is none, or where this client may not have it.
pub fn generate(scope: &Scope<'_>, name: &str) -> Option<Secret> {
    let (namespace, secret) = name::parse_secret(name)?;
    if scope.view().secrets_of.as_deref() != Some(namespace) {
        return None;
    }
    let found = scope.snapshot.secrets.get(&(namespace.into(), secret.into()))?;
    let source =
        |bytes: &[u8]| Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec().into())) });
    Some(Secret {
        name: name.to_string(),
        r#type: Some(secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: source(&found.chain),
            private_key: source(&found.key),
        })),
    })
}
