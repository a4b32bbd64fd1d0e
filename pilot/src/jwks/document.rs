//! What is fetched: key sets (RFC 7517), and what an issuer tells of itself (OpenID Connect Discovery 1.0). Pure.
//!
//! Of a key set only the fields go on that a signature is verified with: certificates and the like would be sent to every workload.

use serde_json::{Map, Value};

/// Most keys of a set.
const MAX_KEYS: usize = 256;

/// Fields of a key that mean something to who verifies.
const FIELDS: [&str; 9] = ["kty", "kid", "alg", "crv", "x", "y", "n", "e", "k"];

/// Why a document can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No JSON, or of another shape.
    #[error("is no JSON object")]
    Json,
    /// No list of keys.
    #[error("is no key set: it has no list `keys`")]
    NoList,
    /// Nothing in the list that could verify.
    #[error("has no key of a known type (RSA, EC, OKP, oct)")]
    NoKey,
    /// More than anybody has.
    #[error("has more than {MAX_KEYS} keys")]
    TooMany,
    /// An issuer that doesn't say where its keys are.
    #[error("says no jwks_uri")]
    NoUri,
    /// Where it says they are is no place to look at.
    #[error("says that jwks_uri is {0:?}, which {1}")]
    BadUri(String, NoUri),
}

/// A key set in its shortest form.
pub fn key_set(text: &[u8]) -> Result<String, Unusable> {
    let set = object(text)?;
    let Some(Value::Array(keys)) = set.get("keys") else { return Err(Unusable::NoList) };
    if keys.len() > MAX_KEYS {
        return Err(Unusable::TooMany);
    }
    let known: Vec<Value> = keys.iter().filter_map(key).collect();
    match known.is_empty() {
        true => Err(Unusable::NoKey),
        false => Ok(serde_json::json!({ "keys": known }).to_string()),
    }
}

fn key(key: &Value) -> Option<Value> {
    let fields = key.as_object()?;
    let needs: &[&str] = match fields.get("kty")?.as_str()? {
        "RSA" => &["n", "e"],
        "EC" => &["x", "y"],
        "OKP" => &["crv", "x"],
        "oct" => &["k"],
        _ => return None,
    };
    let texts = FIELDS.iter().filter_map(|name| Some((*name, fields.get(*name)?.as_str()?)));
    let kept: Map<String, Value> = texts.map(|(name, text)| (name.to_owned(), text.into())).collect();
    needs.iter().all(|name| kept.contains_key(*name)).then_some(Value::Object(kept))
}

/// Where an issuer says that its keys are.
pub fn jwks_uri(text: &[u8]) -> Result<Uri, Unusable> {
    let told = object(text)?;
    let uri = told.get("jwks_uri").and_then(Value::as_str).ok_or(Unusable::NoUri)?;
    Uri::parse(uri).map_err(|error| Unusable::BadUri(uri.to_owned(), error))
}

fn object(text: &[u8]) -> Result<Map<String, Value>, Unusable> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(Unusable::Json),
    }
}

/// A place that is fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// By TLS.
    pub encrypted: bool,
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// As it stands in `Host`.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

/// Why a text is no such place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoUri {
    /// Not even a URI.
    #[error("is no URI")]
    Syntax,
    /// Something that isn't fetched.
    #[error("is neither http:// nor https://")]
    Scheme,
    /// With a name and password in it.
    #[error("has a user in it")]
    User,
}

impl Uri {
    /// Reads a URI.
    pub fn parse(text: &str) -> Result<Self, NoUri> {
        let encrypted = match text.split_once("://") {
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => true,
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => false,
            _ => return Err(NoUri::Scheme),
        };
        let uri: hyper::Uri = text.parse().map_err(|_| NoUri::Syntax)?;
        let authority = uri.authority().ok_or(NoUri::Syntax)?;
        if authority.as_str().contains('@') {
            return Err(NoUri::User);
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(NoUri::Syntax);
        }
        Ok(Self {
            encrypted,
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if encrypted { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }

    /// Where a redirect from here leads.
    pub fn redirected(&self, location: &str) -> Result<Self, NoUri> {
        if location.starts_with('/') && !location.starts_with("//") {
            let uri: hyper::Uri = location.parse().map_err(|_| NoUri::Syntax)?;
            let path = uri.path_and_query().ok_or(NoUri::Syntax)?.as_str().to_owned();
            return Ok(Self { path, ..self.clone() });
        }
        Self::parse(location)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_set_keeps_what_verifies() {
        let text = br#"{"keys": [
            {"kty": "RSA", "kid": "1", "use": "sig", "n": "AQ", "e": "AQAB", "x5c": ["MII"], "x5t": "t"},
            {"kty": "EC", "crv": "P-256", "x": "a", "y": "b", "kid": 7},
            {"kty": "EC", "crv": "P-256", "x": "a"}, {"kty": "lattice"}, {"n": "1"}, 5]}"#;
        assert_eq!(
            key_set(text).unwrap(),
            r#"{"keys":[{"e":"AQAB","kid":"1","kty":"RSA","n":"AQ"},{"crv":"P-256","kty":"EC","x":"a","y":"b"}]}"#
        );
        let many =
            format!("{{\"keys\": [{}]}}", vec!["{\"kty\": \"oct\", \"k\": \"a\"}"; MAX_KEYS + 1].join(","));
        for (text, wanted) in [
            ("", Unusable::Json),
            ("<html>", Unusable::Json),
            ("[]", Unusable::Json),
            ("{}", Unusable::NoList),
            ("{\"keys\": {}}", Unusable::NoList),
            ("{\"keys\": []}", Unusable::NoKey),
            ("{\"keys\": [{\"kty\": \"RSA\", \"n\": 1, \"e\": \"AQAB\"}]}", Unusable::NoKey),
            (many.as_str(), Unusable::TooMany),
            (&format!("{}1{}", "[".repeat(1000), "]".repeat(1000)), Unusable::Json),
        ] {
            assert_eq!(key_set(text.as_bytes()), Err(wanted), "{}", &text[..text.len().min(60)]);
        }
    }

    #[test]
    fn an_issuer_says_where_its_keys_are() {
        let found = jwks_uri(br#"{"issuer": "https://i", "jwks_uri": "https://i/keys?x"}"#).unwrap();
        assert_eq!((found.path.as_str(), found.port), ("/keys?x", 443));
        assert_eq!(jwks_uri(b"{}"), Err(Unusable::NoUri));
        assert_eq!(jwks_uri(b"{\"jwks_uri\": 1}"), Err(Unusable::NoUri));
        let error = jwks_uri(b"{\"jwks_uri\": \"file:///etc/passwd\"}").unwrap_err();
        assert_eq!(
            error.to_string(),
            "says that jwks_uri is \"file:///etc/passwd\", which is neither http:// nor https://"
        );
    }

    #[test]
    fn uris() {
        let uri = Uri::parse("HTTP://[::1]:8080/a").unwrap();
        assert_eq!(
            (uri.encrypted, uri.host.as_str(), uri.port, uri.authority.as_str()),
            (false, "::1", 8080, "[::1]:8080")
        );
        assert_eq!(Uri::parse("https://a.example").unwrap().path, "/");
        for (text, wanted) in [
            ("", NoUri::Scheme),
            ("https://", NoUri::Syntax),
            ("https://a b", NoUri::Syntax),
            ("/a", NoUri::Scheme),
            ("a.example", NoUri::Scheme),
            ("file:///etc/passwd", NoUri::Scheme),
            ("ftp://a/b", NoUri::Scheme),
            ("https://user:password@a/", NoUri::User),
        ] {
            assert_eq!(Uri::parse(text), Err(wanted), "{text}");
        }
        let from = Uri::parse("https://a:8443/x?y").unwrap();
        let to =
            |location: &str| from.redirected(location).map(|uri| format!("{} {}", uri.authority, uri.path));
        assert_eq!(to("/z?q").unwrap(), "a:8443 /z?q");
        assert_eq!(to("https://b/z").unwrap(), "b /z");
        assert_eq!(to("//b/z"), Err(NoUri::Scheme));
        assert_eq!(to("z"), Err(NoUri::Scheme));
    }
}
