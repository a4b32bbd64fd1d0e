//! Who a client is, where it has to prove it: on the encrypted port, by the token of its service account.

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// For whom tokens have to be made: Istio's audience, which injection writes into pods.
pub const AUDIENCE: &str = "istio-ca";
/// What Kubernetes calls a service account as a user begins with.
const USER: &str = "system:serviceaccount:";

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub service_account: Arc<str>,
}

impl Identity {
    /// The service account that a token's user is.
    pub fn of_user(user: &str) -> Result<Self, Denied> {
        let account = user.strip_prefix(USER).and_then(|account| account.split_once(':'));
        let (namespace, service_account) =
            account.ok_or_else(|| Denied::Token(format!("{user:?} is no service account")))?;
        Ok(Self { namespace: namespace.into(), service_account: service_account.into() })
    }

    /// It as the user of a token.
    pub fn user(&self) -> String {
        format!("{USER}{}:{}", self.namespace, self.service_account)
    }

    /// The name of it in a trust domain, as certificates have it. `@` in a trust domain (an account of a cloud) becomes a dot.
    pub fn spiffe(&self, trust_domain: &str) -> String {
        let trust_domain = trust_domain.replace('@', ".");
        format!("spiffe://{trust_domain}/ns/{}/sa/{}", self.namespace, self.service_account)
    }
}

/// Why a token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is no token of a service account for us.
    #[error("the token is refused: {0}")]
    Token(String),
    /// Whoever knows can't be asked now.
    #[error("tokens can't be checked now: {0}")]
    Unknown(String),
}

/// Knows whose a token is.
pub trait Authenticate: Debug + Send + Sync {
    /// The service account that a token was made for.
    fn authenticate(&self, token: String) -> BoxFuture<'_, Result<Identity, Denied>>;
}

/// The caller that the metadata of a call prove.
pub async fn of_call(authenticate: &dyn Authenticate, metadata: &MetadataMap) -> Result<Identity, Status> {
    let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
    let token = header.and_then(|header| header.strip_prefix("Bearer ")).filter(|token| !token.is_empty());
    let Some(token) = token else {
        return Err(Status::unauthenticated(
            "this port needs `authorization: Bearer` with a service account's token",
        ));
    };
    authenticate.authenticate(token.to_owned()).await.map_err(|denied| match denied {
        Denied::Token(_) => Status::unauthenticated(denied.to_string()),
        Denied::Unknown(_) => Status::unavailable(denied.to_string()),
    })
}
