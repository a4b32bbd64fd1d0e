//! An issuer of tokens for tests: keys of every kind, what they are in a key set, and what they sign. The suites that cross crates
//! use it as well, by its path.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
    RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// A key pair, or a secret.
pub enum Signer {
    /// RSA.
    Rsa(Box<RsaKeyPair>),
    /// A curve by its name in key sets, and a key on it.
    Curve(&'static str, Box<EcdsaKeyPair>),
    /// Ed25519.
    Ed25519(Box<Ed25519KeyPair>),
    /// A secret.
    Secret(Vec<u8>),
}

/// A part of a token.
pub fn part(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    /// A new RSA key.
    pub fn rsa() -> Self {
        Self::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key")))
    }

    /// A new key on a curve.
    pub fn curve(curve: &'static str) -> Self {
        let algorithm = match curve {
            "P-256" => &ECDSA_P256_SHA256_FIXED_SIGNING,
            "P-384" => &ECDSA_P384_SHA384_FIXED_SIGNING,
            _ => &ECDSA_P521_SHA512_FIXED_SIGNING,
        };
        Self::Curve(curve, Box::new(EcdsaKeyPair::generate(algorithm).expect("a key")))
    }

    /// A new Ed25519 key.
    pub fn ed25519() -> Self {
        Self::Ed25519(Box::new(Ed25519KeyPair::generate().expect("a key")))
    }

    /// This secret.
    pub fn secret(text: &str) -> Self {
        Self::Secret(text.as_bytes().to_vec())
    }

    /// The key in a set, with more fields, each with a comma before it.
    pub fn jwk(&self, more: &str) -> String {
        let fields = match self {
            Self::Rsa(pair) => {
                let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
                let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
                format!("\"kty\": \"RSA\", \"n\": \"{}\", \"e\": \"{}\"", part(n), part(e))
            }
            Self::Curve(curve, pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                format!(
                    "\"kty\": \"EC\", \"crv\": \"{curve}\", \"x\": \"{}\", \"y\": \"{}\"",
                    part(x),
                    part(y)
                )
            }
            Self::Ed25519(pair) => {
                format!("\"kty\": \"OKP\", \"crv\": \"Ed25519\", \"x\": \"{}\"", part(pair.public_key()))
            }
            Self::Secret(secret) => format!("\"kty\": \"oct\", \"k\": \"{}\"", part(secret)),
        };
        format!("{{{fields}{more}}}")
    }

    /// A token that says that it is signed by `algorithm`, and is, where the key can do that.
    pub fn token(&self, algorithm: &str, more: &str, payload: &str) -> String {
        let signed = format!("{}.{}", part(format!("{{\"alg\": \"{algorithm}\"{more}}}")), part(payload));
        let signature = self.sign(algorithm, signed.as_bytes());
        format!("{signed}.{}", part(signature))
    }

    /// Signs, as far as the key can.
    pub fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa(pair) => {
                let encoding: &'static dyn aws_lc_rs::signature::RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &SystemRandom::new(), message, &mut signature).expect("a signature");
                signature
            }
            Self::Curve(_, pair) => {
                pair.sign(&SystemRandom::new(), message).expect("a signature").as_ref().to_vec()
            }
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Secret(secret) => {
                let algorithm = match algorithm {
                    "HS384" => hmac::HMAC_SHA384,
                    "HS512" => hmac::HMAC_SHA512,
                    _ => hmac::HMAC_SHA256,
                };
                hmac::sign(&hmac::Key::new(algorithm, secret), message).as_ref().to_vec()
            }
        }
    }
}

/// A key set of these.
pub fn set(keys: &[String]) -> String {
    format!("{{\"keys\": [{}]}}", keys.join(", "))
}
