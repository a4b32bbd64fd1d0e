//! Root and key of the certificate authority, in a Secret that is made once by whichever replica comes first.
//!
//! Name, type and keys of the Secret are Istio's. Its content never leaves this process but for the root certificate.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::ca::authority::{Authority, Unusable, new_root};

/// Name of the Secret.
pub const SECRET: &str = "istio-ca-secret";
const TYPE: &str = "istio.io/ca-root";
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
/// Who a root made here belongs to, in its subject.
const ORGANIZATION: &str = "cluster.local";

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API server doesn't give or take the Secret.
    #[error("Secret {namespace}/{SECRET}")]
    Api {
        /// Namespace of the Secret.
        namespace: String,
        /// What it said.
        #[source]
        source: kube::Error,
    },
    /// The Secret holds something else.
    #[error("Secret {namespace}/{SECRET}: {key} {reason}")]
    Content {
        /// Namespace of the Secret.
        namespace: String,
        /// Which part.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A root can't be made.
    #[error("a root certificate can't be made")]
    Make(#[from] rcgen::Error),
}

/// The authority in the Secret; made where there is none.
pub async fn load(client: &Client, namespace: &str) -> Result<Authority, AuthorityError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |source| AuthorityError::Api { namespace: namespace.into(), source };
    if let Some(secret) = api.get_opt(SECRET).await.map_err(failed)? {
        return read(namespace, &secret);
    }
    match api.create(&PostParams::default(), &new_secret(namespace)?).await {
        Ok(secret) => {
            tracing::info!(secret = SECRET, "made a root certificate");
            read(namespace, &secret)
        }
        // Another replica was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            read(namespace, &api.get(SECRET).await.map_err(failed)?)
        }
        Err(error) => Err(failed(error)),
    }
}

fn read(namespace: &str, secret: &Secret) -> Result<Authority, AuthorityError> {
    let wrong = |key, reason: String| AuthorityError::Content { namespace: namespace.into(), key, reason };
    let text = |key: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        let bytes = bytes.ok_or_else(|| wrong(key, "is not there".into()))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| wrong(key, "is no PEM".into()))
    };
    Authority::new(text(CERTIFICATE)?, &text(KEY)?).map_err(|unusable| match unusable {
        Unusable::Certificate(reason) => wrong(CERTIFICATE, reason),
        Unusable::Key(reason) => wrong(KEY, reason),
    })
}

fn new_secret(namespace: &str) -> Result<Secret, rcgen::Error> {
    let (certificate, key) = new_root(ORGANIZATION)?;
    let data = [(CERTIFICATE, certificate), (KEY, key)];
    let data: BTreeMap<String, ByteString> =
        data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect();
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.into()),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.into()),
        data: Some(data),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_secret_is_named() {
        let good = new_secret("n").unwrap();
        read("n", &good).unwrap();
        let with = |key: &str, value: Option<&str>| {
            let mut secret = good.clone();
            let data = secret.data.as_mut().unwrap();
            match value {
                Some(value) => data.insert(key.into(), ByteString(value.as_bytes().to_vec())),
                None => data.remove(key),
            };
            read("n", &secret).unwrap_err().to_string()
        };
        assert_eq!(with(KEY, None), "Secret n/istio-ca-secret: ca-key.pem is not there");
        assert!(with(KEY, Some("no key")).contains("ca-key.pem can't be read"));
        assert!(with(CERTIFICATE, Some("none")).contains("ca-cert.pem is no PEM"));
    }
}
