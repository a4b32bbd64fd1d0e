//! Whose a service account's token is: the API server knows.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::source::kubernetes::chain;
use crate::xds::identity::{AUDIENCE, Authenticate, Denied, Identity};

/// Asks the API server.
#[derive(Clone)]
pub struct Tokens(pub Client);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Authenticate for Tokens {
    fn authenticate(&self, token: String) -> BoxFuture<'_, Result<Identity, Denied>> {
        async move {
            let spec = TokenReviewSpec { token: Some(token), audiences: Some(vec![AUDIENCE.into()]) };
            let review = TokenReview { spec, ..TokenReview::default() };
            let api: Api<TokenReview> = Api::all(self.0.clone());
            let reviewed = api.create(&PostParams::default(), &review).await;
            let reviewed = reviewed.map_err(|error| Denied::Unknown(chain(&error)))?;
            identity(reviewed.status.unwrap_or_default())
        }
        .boxed()
    }
}

fn identity(status: TokenReviewStatus) -> Result<Identity, Denied> {
    if status.authenticated != Some(true) {
        return Err(Denied::Token(status.error.unwrap_or_else(|| "it is not valid".into())));
    }
    // An API server that knows no audiences names none, and then any token would do.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(Denied::Token(format!("it is not for {AUDIENCE}")));
    }
    let name = status.user.and_then(|user| user.username).unwrap_or_default();
    Identity::of_user(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_api_server_says_of_a_token() {
        let status = |authenticated: bool, audiences: &[&str], name: &str| {
            let status = serde_json::json!({
                "authenticated": authenticated, "audiences": audiences, "user": { "username": name },
            });
            identity(serde_json::from_value(status).unwrap()).map_err(|denied| denied.to_string())
        };
        let gateway = Identity { namespace: "edge".into(), service_account: "g".into() };
        assert_eq!(status(true, &["istio-ca"], "system:serviceaccount:edge:g"), Ok(gateway));
        for (authenticated, audiences, name, says) in [
            (false, &["istio-ca"][..], "system:serviceaccount:edge:g", "it is not valid"),
            (true, &[], "system:serviceaccount:edge:g", "it is not for istio-ca"),
            (true, &["vault"], "system:serviceaccount:edge:g", "it is not for istio-ca"),
            (true, &["istio-ca"], "kubernetes-admin", "is no service account"),
        ] {
            let error = status(authenticated, audiences, name).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
