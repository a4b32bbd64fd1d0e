//! Why a request is not believed, in Envoy's words: they are the body of the answer.

/// What is wrong with a request's tokens, or with our keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum Refusal {
    #[error("Jwt is missing")]
    Missing,
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Form,
    #[error("Jwt header is an invalid Base64url encoded")]
    HeaderBase64,
    #[error("Jwt header is an invalid JSON")]
    HeaderJson,
    #[error("Jwt header [alg] field is required and must be a string")]
    Algorithm,
    #[error("Jwt header [alg] is not supported")]
    AlgorithmUnsupported,
    #[error("Jwt header [kid] field is not a string")]
    KeyId,
    #[error("Jwt payload is an invalid Base64url encoded")]
    PayloadBase64,
    #[error("Jwt payload is an invalid JSON")]
    PayloadJson,
    #[error("Jwt payload [{0}] field is not a string")]
    NotText(&'static str),
    #[error("Jwt payload [aud] field is not a string or string list")]
    AudienceType,
    #[error("Jwt payload [{0}] field is not an integer")]
    NotNumber(&'static str),
    #[error("Jwt payload [{0}] field is not a positive 64 bit integer")]
    OutOfRange(&'static str),
    #[error("Jwt signature is an invalid Base64url encoded")]
    SignatureBase64,
    #[error("Jwt issuer is not configured")]
    Issuer,
    #[error("Jwt not yet valid")]
    NotYet,
    #[error("Jwt is expired")]
    Expired,
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    #[error("Jwks doesn't have any valid public key")]
    NoKeys,
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoMatchingKey,
    #[error("Jwt ED25519 signature is wrong length")]
    SignatureLength,
    #[error("Jwt verification fails")]
    Signature,
}

impl Refusal {
    /// Status of the answer: who has proved to be somebody, but for others, is forbidden.
    pub fn status(self) -> u16 {
        if self == Self::Audience { 403 } else { 401 }
    }
}
