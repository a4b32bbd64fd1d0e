//! What a Secret has of certificates.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::{Check, Checked, Context, Path};
use crate::model::{Credential, TlsSecret};
use crate::store::schema::kubernetes as schema;
use crate::webhook::certificate;

/// Where a certificate chain and its key are: as Istio's generic Secrets have them, and as `kubernetes.io/tls` has.
const KEYS: [(&str, &str); 2] = [("cert", "key"), ("tls.crt", "tls.key")];
/// Where roots are.
const ROOTS: [&str; 2] = ["cacert", "ca.crt"];

/// Checks a Secret of a file. As at an API server, `stringData` goes before `data`, which is in base64.
pub fn check(context: &Context, secret: &schema::Secret) -> Checked<Option<Credential>> {
    let mut check = Check::new(context);
    let mut entries: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for (name, encoded) in &secret.data {
        let packed: String = encoded.split_ascii_whitespace().collect();
        match BASE64_STANDARD.decode(packed) {
            Ok(bytes) => drop(entries.insert(name, bytes)),
            Err(_) => check.error(Path::Root("data").key(name), "is not in base64"),
        }
    }
    entries.extend(secret.string_data.iter().map(|(name, text)| (&**name, text.clone().into_bytes())));
    let found = read(|name| entries.get(name).map(Vec::as_slice)).unwrap_or_else(|reason| {
        check.error(Path::Root("data"), reason);
        None
    });
    check.finish(found)
}

/// Reads what a Secret's entries have; `None` where nothing has to do with certificates. What is wrong is told without its content.
pub fn read<'a>(entry: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Option<Credential>, String> {
    let own = KEYS.into_iter().find_map(|(chain, key)| entry(chain).zip(entry(key)));
    if let Some((chain, key)) = own {
        certificate::certified(chain, key).map_err(|error| error.to_string())?;
    }
    // Who issues certificates may leave this entry empty, or put there what is none.
    let is_root =
        |bytes: &&[u8]| CertificateDer::pem_slice_iter(bytes).next().is_some_and(|root| root.is_ok());
    let roots = ROOTS.into_iter().filter_map(&entry).find(is_root);
    if own.is_none() && roots.is_none() {
        return match ROOTS.into_iter().find(|name| entry(name).is_some()) {
            Some(name) => Err(format!("{name} has no certificate")),
            None => Ok(None),
        };
    }
    let own = own.map(|(chain, key)| TlsSecret { chain: chain.into(), key: key.into() });
    Ok(Some(Credential { own, roots: roots.map(Into::into) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn of(entries: &[(&str, &str)]) -> Result<Option<Credential>, String> {
        read(|name| entries.iter().find(|(known, _)| *known == name).map(|(_, text)| text.as_bytes()))
    }

    #[test]
    fn both_layouts_are_read_and_what_is_wrong_is_named() {
        let ((chain, key), (other, _)) = (make(), make());
        let own = || Some(TlsSecret { chain: chain.as_bytes().into(), key: key.as_bytes().into() });
        let roots = || Some(other.as_bytes().into());
        let (chain, key, other) = (&*chain, &*key, &*other);
        for (entries, own, roots) in [
            (&[("tls.crt", chain), ("tls.key", key)][..], own(), None),
            (&[("cert", chain), ("key", key)], own(), None),
            (&[("tls.crt", chain), ("tls.key", key), ("ca.crt", other)], own(), roots()),
            (&[("cert", chain), ("key", key), ("cacert", other)], own(), roots()),
            (&[("tls.crt", chain), ("tls.key", key), ("ca.crt", "")], own(), None),
            (&[("ca.crt", other)], None, roots()),
        ] {
            assert_eq!(of(entries), Ok(Some(Credential { own, roots })), "{:?}", entries.len());
        }
        assert_eq!(of(&[("password", "x"), ("tls.crt", chain)]), Ok(None), "that is none of ours");
        for (entries, says) in [
            (&[("tls.crt", "x"), ("tls.key", key)][..], "the certificate chain is empty"),
            (&[("tls.crt", chain), ("tls.key", "x")], "the private key is no PEM"),
            (&[("tls.crt", other), ("tls.key", key)], "does not fit"),
            (&[("ca.crt", "x")], "ca.crt has no certificate"),
        ] {
            let error = of(entries).unwrap_err();
            assert!(error.contains(says) && !error.contains("PRIVATE"), "{error}");
        }
    }
}
