//! A token for the row with them: signed once, believed by both subjects' filters, which keep what they have verified.

use osier_tests::tokens::{Signer, set};

const ISSUER: &str = "https://issuer.bench";

/// The token that each request brings, and the filter that believes it.
pub struct Token {
    /// Of 2,048 bits of RSA, as most issuers have.
    signer: Signer,
}

impl Token {
    /// Of a new key.
    pub fn new() -> Self {
        Self { signer: Signer::rsa() }
    }

    /// The header line.
    pub fn header(&self) -> String {
        let claims = format!(
            "{{\"iss\": \"{ISSUER}\", \"sub\": \"caller\", \"aud\": [\"bench\"], \"exp\": 4102444800, \"scope\": \"read write\"}}"
        );
        format!("authorization: Bearer {}", self.signer.token("RS256", ", \"kid\": \"k\"", &claims))
    }

    /// The filter, in the shape that pilot gives it.
    pub fn filter(&self) -> String {
        let keys = set(&[self.signer.jwk(", \"kid\": \"k\", \"alg\": \"RS256\"")]);
        format!(
            "          - name: envoy.filters.http.jwt_authn
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
              providers:
                origins-0:
                  issuer: {ISSUER}
                  audiences: [bench]
                  local_jwks: {{inline_string: '{keys}'}}
                  jwt_cache_config: {{jwt_cache_size: 1000}}
                  payload_in_metadata: payload
                  forward: true
              rules:
              - match: {{prefix: /}}
                requires: {{requires_any: {{requirements: [{{provider_name: origins-0}}, {{allow_missing: {{}}}}]}}}}\n"
        )
    }
}
