//! AdmissionReview v1: what the API server asks and how it is answered.
//!
//! Objects stay JSON, so that fields that we don't know survive.

use axum::response::{IntoResponse, Json, Response};
use base64::Engine as _;
use json_patch::Patch;
use serde::Deserialize;
use serde_json::{Value, json};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// A request.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Review {
    /// To be repeated in the answer.
    pub uid: String,
    /// Kind of the object.
    pub kind: GroupVersionKind,
    /// Namespace; empty for kinds without.
    #[serde(default)]
    pub namespace: String,
    /// Name; empty where it is not given yet.
    #[serde(default)]
    pub name: String,
    /// `CREATE`, `UPDATE`, `DELETE` or `CONNECT`.
    pub operation: String,
    /// The object; none where it is deleted.
    #[serde(default)]
    pub object: Option<Value>,
    /// As it was.
    #[serde(default)]
    pub old_object: Option<Value>,
}

/// Which kind.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct GroupVersionKind {
    /// Group; empty for the core.
    #[serde(default)]
    pub group: String,
    /// Kind.
    pub kind: String,
}

impl Review {
    /// Reads the body of a request.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Envelope {
            #[serde(default)]
            api_version: String,
            #[serde(default)]
            kind: String,
            request: Option<Review>,
        }
        let envelope: Envelope =
            serde_json::from_slice(body).map_err(|error| format!("the body is no {KIND}: {error}"))?;
        let Envelope { api_version, kind, request } = envelope;
        if (api_version.as_str(), kind.as_str()) != (API_VERSION, KIND) {
            return Err(format!(
                "the body must be a {KIND} of {API_VERSION}, not {kind:?} of {api_version:?}"
            ));
        }
        request.ok_or_else(|| format!("the {KIND} has no request"))
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer(Value);

impl Answer {
    /// Let it pass.
    pub(super) fn allowed(uid: String) -> Self {
        Self(json!({"uid": uid, "allowed": true}))
    }

    /// Let it pass, changed.
    pub(super) fn patched(uid: String, patch: &Patch) -> Self {
        if patch.0.is_empty() {
            return Self::allowed(uid);
        }
        let patch = serde_json::to_vec(patch).unwrap_or_default();
        let patch = base64::engine::general_purpose::STANDARD.encode(patch);
        Self(json!({"uid": uid, "allowed": true, "patchType": "JSONPatch", "patch": patch}))
    }

    /// Refuse it.
    pub(super) fn denied(uid: String, errors: &[String]) -> Self {
        let status = json!({"message": errors.join("; "), "reason": "Invalid", "code": 422});
        Self(json!({"uid": uid, "allowed": false, "status": status}))
    }

    /// And say these things to who asked.
    pub(super) fn with_warnings(mut self, warnings: Vec<String>) -> Self {
        if !warnings.is_empty() {
            self.0["warnings"] = warnings.into();
        }
        self
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        Json(json!({"apiVersion": API_VERSION, "kind": KIND, "response": self.0})).into_response()
    }
}
