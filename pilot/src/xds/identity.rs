//! Who a client is, where it has to prove it: on the encrypted port, by the token of its service account.

use std::fmt::Debug;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::model::spiffe;

/// For whom tokens have to be made: Istio's audience, which injection writes into pods.
pub const AUDIENCE: &str = "istio-ca";
/// What Kubernetes calls a service account as a user begins with.
const USER: &str = "system:serviceaccount:";

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

    /// The name of it in a trust domain, as certificates have it.
    pub fn spiffe(&self, trust_domain: &str) -> String {
        spiffe(trust_domain, &self.namespace, &self.service_account)
    }
}

/// Who calls: a service account, and the pod that its token is bound to, where the token says so.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The service account.
    pub identity: Identity,
    /// The pod.
    pub pod: Option<Pod>,
}

/// A pod of the caller's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Its name.
    pub name: Arc<str>,
    /// What tells it from others of that name, before and after it.
    pub uid: Arc<str>,
}

impl From<Identity> for Caller {
    fn from(identity: Identity) -> Self {
        Self { identity, pod: None }
    }
}

/// Why a token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It is no token of a service account for us.
    #[error("the token is refused: {0}")]
    Token(String),
    /// Whoever knows can't be asked now.
    #[error("who you are and what you may can't be asked now: {0}")]
    Unknown(String),
}

/// Knows whose a token is.
pub trait Authenticate: Debug + Send + Sync {
    /// Whom a token was made for.
    fn authenticate(&self, token: String) -> BoxFuture<'_, Result<Caller, Denied>>;

    /// Whether a service account may read the Secrets of its namespace. Where nobody else has a say in it, everybody may.
    fn may_read_secrets<'a>(&'a self, _identity: &'a Identity) -> BoxFuture<'a, Result<bool, Denied>> {
        Box::pin(std::future::ready(Ok(true)))
    }
}

/// What is said to a caller that is denied.
pub fn refuse(denied: &Denied) -> Status {
    match denied {
        Denied::Token(_) => Status::unauthenticated(denied.to_string()),
        Denied::Unknown(_) => Status::unavailable(denied.to_string()),
    }
}

/// The caller that the metadata of a call prove.
pub async fn of_call(authenticate: &dyn Authenticate, metadata: &MetadataMap) -> Result<Caller, Status> {
    let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
    let token = header.and_then(|header| header.strip_prefix("Bearer ")).filter(|token| !token.is_empty());
    let Some(token) = token else {
        return Err(Status::unauthenticated(
            "this port needs `authorization: Bearer` with a service account's token",
        ));
    };
    authenticate.authenticate(token.to_owned()).await.map_err(|denied| refuse(&denied))
}
