//! Key sets (RFC 7517), and what a signature is held against.
//!
//! A key is for the algorithms of its kind only, and one with a curve for that curve's alone: who knows a public key must not be
//! able to sign with it as if it were a secret. Keys that can't be used are left out, as in Envoy; a set may be empty, and then
//! nobody is believed.

use aws_lc_rs::digest::{self, SHA256};
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    RsaPublicKeyComponents,
};
use base64::Engine as _;

use super::Refusal;
use super::claims::{Claim, Claims};
use super::token::{Algorithm, BASE64, Parsed};

/// Length of an Ed25519 signature.
const ED25519_SIGNATURE: usize = 64;
/// Shortest modulus of an RSA key in bytes (RFC 7518 3.3).
const MIN_MODULUS: usize = 256;
/// Longest that is computed with.
const MAX_MODULUS: usize = 1024;

/// Why a text is no key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoKeySet {
    /// Not even JSON.
    #[error("is no JSON object")]
    Json,
    /// Without the one field that it must have.
    #[error("has no list of `keys`")]
    Keys,
}

/// A key set.
#[derive(Debug)]
pub struct Keys {
    keys: Box<[Key]>,
    /// Of the text that it was read from: equal sets are equal.
    fingerprint: [u8; 32],
}

#[derive(Debug)]
struct Key {
    /// Empty without.
    id: Box<str>,
    algorithm: Option<Algorithm>,
    material: Material,
}

enum Material {
    Rsa(RsaPublicKeyComponents<Box<[u8]>>),
    /// With the one algorithm of its curve.
    Curve(Algorithm, ParsedPublicKey),
    Secret(Box<[u8]>),
}

impl Keys {
    /// Reads a key set.
    pub fn parse(text: &str) -> Result<Self, NoKeySet> {
        let set = Claims::parse(text.as_bytes()).map_err(|_| NoKeySet::Json)?;
        let Some(Claim::List(keys)) = set.get("keys") else { return Err(NoKeySet::Keys) };
        let key = |key: &Claim| match key {
            Claim::Map(fields) => Key::read(fields),
            _ => None,
        };
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest::digest(&SHA256, text.as_bytes()).as_ref());
        Ok(Self { keys: keys.iter().filter_map(key).collect(), fingerprint })
    }

    /// Stands for the whole set.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Holds a token's signature against the keys that may have made it.
    pub fn verify(&self, token: &Parsed<'_>) -> Result<(), Refusal> {
        if self.keys.is_empty() {
            return Err(Refusal::NoKeys);
        }
        let mut refusal = Refusal::NoMatchingKey;
        for key in self.keys.iter().filter(|key| key.may_have_signed(token)) {
            refusal = Refusal::Signature;
            match key.material.verify(token) {
                Err(Refusal::Signature) => {}
                decided => return decided,
            }
        }
        Err(refusal)
    }
}

impl Key {
    /// A key that can be used.
    fn read(fields: &Claims) -> Option<Self> {
        let text = |name: &str| match fields.get(name) {
            Some(Claim::Text(text)) => Some(&**text),
            _ => None,
        };
        let bytes = |name: &str| BASE64.decode(text(name)?).ok();
        let named = text("alg").filter(|name| !name.is_empty());
        let algorithm = match named {
            Some(name) => Some(Algorithm::find(name)?),
            None => None,
        };
        let material = match text("kty")? {
            "RSA" => Material::rsa(bytes("n")?, bytes("e")?)?,
            "EC" => Material::curve(algorithm, text("crv"), bytes("x")?, bytes("y")?)?,
            "OKP" if text("crv") == Some("Ed25519") => {
                Material::Curve(Algorithm::EdDsa, ParsedPublicKey::new(&ED25519, bytes("x")?).ok()?)
            }
            "oct" => Material::Secret(bytes("k").filter(|secret| !secret.is_empty())?.into()),
            _ => return None,
        };
        // A key that is for what it can't do is for nothing.
        let usable = algorithm.is_none_or(|algorithm| material.is_for(algorithm));
        usable.then(|| Self { id: text("kid").unwrap_or_default().into(), algorithm, material })
    }

    fn may_have_signed(&self, token: &Parsed<'_>) -> bool {
        (self.id.is_empty() || token.key_id.is_empty() || self.id == token.key_id)
            && self.algorithm.is_none_or(|algorithm| algorithm == token.algorithm)
    }
}

impl Material {
    fn rsa(modulus: Vec<u8>, exponent: Vec<u8>) -> Option<Self> {
        let (n, e): (Box<[u8]>, Box<[u8]>) =
            (without_zeros(&modulus).into(), without_zeros(&exponent).into());
        let usual = matches!(*e, [3] | [1, 0, 1]);
        let strong = (MIN_MODULUS..=MAX_MODULUS).contains(&n.len()) && n.last().is_some_and(|b| b % 2 == 1);
        (usual && strong).then_some(Self::Rsa(RsaPublicKeyComponents { n, e }))
    }

    fn curve(algorithm: Option<Algorithm>, curve: Option<&str>, x: Vec<u8>, y: Vec<u8>) -> Option<Self> {
        let of_curve = match curve {
            Some("P-256") => Some(Algorithm::Es256),
            Some("P-384") => Some(Algorithm::Es384),
            Some("P-521") => Some(Algorithm::Es512),
            Some(_) => return None,
            None => None,
        };
        let algorithm = of_curve.or(algorithm).unwrap_or(Algorithm::Es256);
        let (parameters, size) = match algorithm {
            Algorithm::Es256 => (&ECDSA_P256_SHA256_FIXED, 32),
            Algorithm::Es384 => (&ECDSA_P384_SHA384_FIXED, 48),
            Algorithm::Es512 => (&ECDSA_P521_SHA512_FIXED, 66),
            _ => return None,
        };
        // An uncompressed point (SEC 1, 2.3.3).
        let mut point = vec![4; 1 + 2 * size];
        for (number, end) in [(&x, 1 + size), (&y, 1 + 2 * size)] {
            let number = without_zeros(number);
            let start = end.checked_sub(number.len()).filter(|start| *start > end - size - 1)?;
            point[end - size..end].fill(0);
            point[start..end].copy_from_slice(number);
        }
        Some(Self::Curve(algorithm, ParsedPublicKey::new(parameters, point).ok()?))
    }

    fn is_for(&self, algorithm: Algorithm) -> bool {
        match self {
            Self::Rsa(_) => rsa_parameters(algorithm).is_some(),
            Self::Curve(own, _) => *own == algorithm,
            Self::Secret(_) => hmac_algorithm(algorithm).is_some(),
        }
    }

    fn verify(&self, token: &Parsed<'_>) -> Result<(), Refusal> {
        let (signed, signature) = (token.signed, &*token.signature);
        let verified = match self {
            Self::Rsa(key) => rsa_parameters(token.algorithm)
                .is_some_and(|parameters| key.verify(parameters, signed, signature).is_ok()),
            Self::Curve(own, _) if *own != token.algorithm => false,
            Self::Curve(Algorithm::EdDsa, _) if signature.len() != ED25519_SIGNATURE => {
                return Err(Refusal::SignatureLength);
            }
            Self::Curve(_, key) => key.verify_sig(signed, signature).is_ok(),
            Self::Secret(secret) => hmac_algorithm(token.algorithm).is_some_and(|algorithm| {
                hmac::verify(&hmac::Key::new(algorithm, secret), signed, signature).is_ok()
            }),
        };
        if verified { Ok(()) } else { Err(Refusal::Signature) }
    }
}

impl std::fmt::Debug for Material {
    /// Without what may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rsa(_) => "Rsa",
            Self::Curve(..) => "Curve",
            Self::Secret(_) => "Secret",
        })
    }
}

/// A number without the zeros that it begins with.
fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

fn rsa_parameters(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        Algorithm::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
        Algorithm::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
        Algorithm::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
        Algorithm::Ps256 => &RSA_PSS_2048_8192_SHA256,
        Algorithm::Ps384 => &RSA_PSS_2048_8192_SHA384,
        Algorithm::Ps512 => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn hmac_algorithm(algorithm: Algorithm) -> Option<hmac::Algorithm> {
    Some(match algorithm {
        Algorithm::Hs256 => hmac::HMAC_SHA256,
        Algorithm::Hs384 => hmac::HMAC_SHA384,
        Algorithm::Hs512 => hmac::HMAC_SHA512,
        _ => return None,
    })
}
