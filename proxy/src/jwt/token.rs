//! A token's three parts, read strictly; nothing of it is believed yet.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::Refusal;
use super::claims::{Claim, Claims};

/// Issuers pad or not, and Envoy takes both.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// How a token is signed. There is no `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "names of RFC 7518 and RFC 8037")]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    Hs256,
    Hs384,
    Hs512,
    EdDsa,
}

impl Algorithm {
    /// By its name.
    pub fn find(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "HS256" => Self::Hs256,
            "HS384" => Self::Hs384,
            "HS512" => Self::Hs512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// `iss`; empty without.
    pub issuer: Box<str>,
    /// `aud`.
    pub audiences: Box<[Box<str>]>,
    /// `nbf` in seconds since 1970; 0 without.
    pub not_before: u64,
    /// `exp`; without, it is valid for ever.
    pub expires: Option<u64>,
    /// Everything, as it is written.
    pub claims: Claims,
    /// The same with claims of words as lists, where there are such.
    normalized: Option<Claims>,
    /// Its second part.
    pub payload: Box<str>,
}

/// A token with what is needed to verify it.
#[derive(Debug)]
pub struct Parsed<'t> {
    /// What it says.
    pub token: Token,
    /// How it is signed.
    pub algorithm: Algorithm,
    /// `kid`; empty without.
    pub key_id: Box<str>,
    /// What is signed.
    pub signed: &'t [u8],
    /// By whoever holds the key.
    pub signature: Vec<u8>,
}

impl<'t> Parsed<'t> {
    /// Reads a token; `words` are the claims that are lists of words.
    pub fn read(text: &'t [u8], words: &[Box<str>]) -> Result<Self, Refusal> {
        let mut parts = text.split(|byte| *byte == b'.');
        let mut part = || parts.next().filter(|part| !part.is_empty()).ok_or(Refusal::Form);
        let (header, payload, signature) = (part()?, part()?, part()?);
        if parts.next().is_some() {
            return Err(Refusal::Form);
        }
        let signed = &text[..header.len() + 1 + payload.len()];
        let header = BASE64.decode(header).map_err(|_| Refusal::HeaderBase64)?;
        let header = Claims::parse(&header).map_err(|_| Refusal::HeaderJson)?;
        let Some(Claim::Text(algorithm)) = header.get("alg") else { return Err(Refusal::Algorithm) };
        let algorithm = Algorithm::find(algorithm).ok_or(Refusal::AlgorithmUnsupported)?;
        let key_id = match header.get("kid") {
            None => "".into(),
            Some(Claim::Text(id)) => id.clone(),
            Some(_) => return Err(Refusal::KeyId),
        };
        let token = Token::read(payload, words)?;
        let signature = BASE64.decode(signature).map_err(|_| Refusal::SignatureBase64)?;
        Ok(Self { token, algorithm, key_id, signed, signature })
    }
}

impl Token {
    fn read(payload: &[u8], words: &[Box<str>]) -> Result<Self, Refusal> {
        let json = BASE64.decode(payload).map_err(|_| Refusal::PayloadBase64)?;
        let claims = Claims::parse(&json).map_err(|_| Refusal::PayloadJson)?;
        let issuer = text(&claims, "iss")?.unwrap_or_default();
        text(&claims, "sub")?;
        number(&claims, "iat")?;
        let not_before = number(&claims, "nbf")?.unwrap_or(0);
        let expires = number(&claims, "exp")?;
        text(&claims, "jti")?;
        let audiences = match claims.get("aud") {
            None => Box::default(),
            Some(Claim::Text(audience)) => [audience.clone()].into(),
            Some(Claim::List(list)) => {
                let texts = list.iter().map(|claim| match claim {
                    Claim::Text(audience) => Ok(audience.clone()),
                    _ => Err(Refusal::AudienceType),
                });
                texts.collect::<Result<_, _>>()?
            }
            Some(_) => return Err(Refusal::AudienceType),
        };
        let has_words = words.iter().any(|name| matches!(claims.get(name), Some(Claim::Text(_))));
        let normalized = has_words.then(|| claims.clone().with_words(words));
        let payload = String::from_utf8_lossy(payload).into();
        Ok(Self { issuer, audiences, not_before, expires, claims, normalized, payload })
    }

    /// The claims as conditions on them see them.
    pub fn tested(&self) -> &Claims {
        self.normalized.as_ref().unwrap_or(&self.claims)
    }

    /// Holds it against the clock, in seconds since 1970.
    pub fn check_time(&self, now: u64, skew: u64) -> Result<(), Refusal> {
        if now.saturating_add(skew) < self.not_before {
            return Err(Refusal::NotYet);
        }
        match self.expires {
            Some(end) if now > end.saturating_add(skew) => Err(Refusal::Expired),
            _ => Ok(()),
        }
    }
}

fn text(claims: &Claims, name: &'static str) -> Result<Option<Box<str>>, Refusal> {
    match claims.get(name) {
        None => Ok(None),
        Some(Claim::Text(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Refusal::NotText(name)),
    }
}

/// Seconds; a fraction is cut.
fn number(claims: &Claims, name: &'static str) -> Result<Option<u64>, Refusal> {
    match claims.get(name) {
        None => Ok(None),
        Some(Claim::Number(number)) if *number < 0.0 || *number >= u64::MAX as f64 => {
            Err(Refusal::OutOfRange(name))
        }
        Some(Claim::Number(number)) => Ok(Some(*number as u64)),
        Some(_) => Err(Refusal::NotNumber(name)),
    }
}
