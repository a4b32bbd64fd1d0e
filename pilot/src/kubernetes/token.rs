//! Whose a service account's token is, and whether that account may read Secrets: the API server knows.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::source::kubernetes::chain;
use crate::xds::identity::{AUDIENCE, Authenticate, Caller, Denied, Identity, Pod};

/// Which pod a token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Rights on Secrets, one of which an account needs to be given those of its namespace: that of our chart, which gives nothing else (there
/// is no such subresource), and that of Istio's charts.
const RIGHTS: [(&str, Option<&str>); 2] = [("get", Some("tls")), ("list", None)];

/// Asks the API server.
#[derive(Clone)]
pub struct Tokens(pub Client);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Authenticate for Tokens {
    fn authenticate(&self, token: String) -> BoxFuture<'_, Result<Caller, Denied>> {
        async move {
            let spec = TokenReviewSpec { token: Some(token), audiences: Some(vec![AUDIENCE.into()]) };
            let review = TokenReview { spec, ..TokenReview::default() };
            let api: Api<TokenReview> = Api::all(self.0.clone());
            let reviewed = api.create(&PostParams::default(), &review).await;
            let reviewed = reviewed.map_err(|error| Denied::Unknown(chain(&error)))?;
            caller(reviewed.status.unwrap_or_default())
        }
        .boxed()
    }

    fn may_read_secrets<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<bool, Denied>> {
        async move {
            let api: Api<SubjectAccessReview> = Api::all(self.0.clone());
            for right in RIGHTS {
                let reviewed = api.create(&PostParams::default(), &question(identity, right)).await;
                let reviewed = reviewed.map_err(|error| Denied::Unknown(chain(&error)))?;
                if reviewed.status.is_some_and(|status| status.allowed) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        .boxed()
    }
}

/// Whether a service account has a right in its namespace.
fn question(identity: &Identity, (verb, subresource): (&str, Option<&str>)) -> SubjectAccessReview {
    let namespace = &identity.namespace;
    let groups =
        ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"];
    let attributes = ResourceAttributes {
        namespace: Some(namespace.to_string()),
        resource: Some("secrets".into()),
        subresource: subresource.map(str::to_owned),
        verb: Some(verb.into()),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: Some(identity.user()),
        groups: Some(groups.map(str::to_owned).to_vec()),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    SubjectAccessReview { spec, ..SubjectAccessReview::default() }
}

fn caller(status: TokenReviewStatus) -> Result<Caller, Denied> {
    if status.authenticated != Some(true) {
        return Err(Denied::Token(status.error.unwrap_or_else(|| "it is not valid".into())));
    }
    // An API server that knows no audiences names none, and then any token would do.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(Denied::Token(format!("it is not for {AUDIENCE}")));
    }
    let user = status.user.unwrap_or_default();
    let identity = Identity::of_user(&user.username.unwrap_or_default())?;
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([one]) => Some(Arc::from(one.as_str())),
        _ => None,
    };
    let pod = one(POD_NAME).zip(one(POD_UID)).map(|(name, uid)| Pod { name, uid });
    Ok(Caller { identity, pod })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_api_server_says_of_a_token() {
        let status = |authenticated: bool, audiences: &[&str], name: &str| {
            let status = serde_json::json!({
                "authenticated": authenticated, "audiences": audiences, "user": { "username": name },
            });
            caller(serde_json::from_value(status).unwrap()).map_err(|denied| denied.to_string())
        };
        let gateway = Identity { namespace: "edge".into(), service_account: "g".into() };
        assert_eq!(status(true, &["istio-ca"], "system:serviceaccount:edge:g"), Ok(gateway.into()));
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

    #[test]
    fn a_token_may_be_bound_to_a_pod() {
        let pod = |extra: serde_json::Value| {
            let status = serde_json::json!({
                "authenticated": true, "audiences": ["istio-ca"],
                "user": { "username": "system:serviceaccount:a:web", "extra": extra },
            });
            caller(serde_json::from_value(status).unwrap()).unwrap().pod
        };
        let bound = serde_json::json!({ POD_NAME: ["web-1"], POD_UID: ["u"] });
        assert_eq!(pod(bound), Some(Pod { name: "web-1".into(), uid: "u".into() }));
        assert_eq!(pod(serde_json::json!({ POD_NAME: ["web-1"] })), None);
        assert_eq!(pod(serde_json::json!({ POD_NAME: ["web-1", "web-2"], POD_UID: ["u"] })), None);
    }

    #[tokio::test]
    async fn the_api_server_says_who_may_read_secrets() {
        let identity = Identity { namespace: "edge".into(), service_account: "g".into() };
        for (right, allowed) in
            [("get tls", Some(true)), ("list ", Some(true)), ("watch ", Some(false)), ("", None)]
        {
            let client = crate::kubernetes::fake::client(move |(method, path, asked)| {
                assert_eq!(
                    (method.as_str(), path.as_str()),
                    ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews?")
                );
                assert_eq!(asked["spec"]["user"], "system:serviceaccount:edge:g");
                let asked = &asked["spec"]["resourceAttributes"];
                assert_eq!((&asked["namespace"], &asked["resource"]), (&json!("edge"), &json!("secrets")));
                let text = |key: &str| asked[key].as_str().unwrap_or_default().to_owned();
                let has = format!("{} {}", text("verb"), text("subresource")) == right;
                match right {
                    "" => (500, vec![crate::kubernetes::fake::status(500, "InternalError", "no")]),
                    _ => (201, vec![json!({ "spec": {}, "status": { "allowed": has } })]),
                }
            });
            assert_eq!(Tokens(client).may_read_secrets(&identity).await.ok(), allowed, "{right}");
        }
    }
}
