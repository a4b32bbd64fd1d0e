//! What an authority is made of, as people lay it out: the keys of a Secret `cacerts`, or files of the same names.
//!
//! Both of Istio's layouts: `ca-cert.pem` and so on, and the `tls.crt` of a Secret of type `kubernetes.io/tls`.

use super::authority::{Authority, Material, Part, Unusable};

/// Certificates are not revoked one by one.
const REVOKED: &str = "ca-crl.pem";

/// Which part is called what.
struct Layout {
    certificate: &'static str,
    key: &'static str,
    /// Nothing where the chain stands behind the certificate.
    chain: Option<&'static str>,
    roots: &'static str,
}

const ISTIO: Layout = Layout {
    certificate: "ca-cert.pem",
    key: "ca-key.pem",
    chain: Some("cert-chain.pem"),
    roots: "root-cert.pem",
};
const TLS: Layout = Layout { certificate: "tls.crt", key: "tls.key", chain: None, roots: "ca.crt" };
/// A root and its key.
const OWN: Layout =
    Layout { certificate: "ca-cert.pem", key: "ca-key.pem", chain: None, roots: "ca-cert.pem" };

/// Why a layout makes no authority. Says which part is at fault by its name there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} {reason}")]
pub struct Refused {
    name: &'static str,
    reason: String,
}

impl Layout {
    fn read<'a>(&self, get: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Material, Refused> {
        let text = |name: &'static str| {
            let bytes = get(name).ok_or_else(|| Refused { name, reason: "is not there".into() })?;
            let text = std::str::from_utf8(bytes).map(str::to_owned);
            text.map_err(|_| Refused { name, reason: "is no PEM".into() })
        };
        Ok(Material {
            certificate: text(self.certificate)?,
            key: text(self.key)?,
            chain: match self.chain.filter(|name| get(name).is_some()) {
                Some(name) => text(name)?,
                None => String::new(),
            },
            roots: text(self.roots)?,
        })
    }

    fn authority<'a>(&self, get: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Authority, Refused> {
        Authority::of(&self.read(get)?).map_err(|unusable| self.refused(unusable))
    }

    fn refused(&self, Unusable { part, reason }: Unusable) -> Refused {
        let name = match part {
            Part::Certificate => self.certificate,
            Part::Key => self.key,
            Part::Chain => self.chain.unwrap_or(self.certificate),
            Part::Roots => self.roots,
        };
        Refused { name, reason }
    }
}

/// The authority that people plug in.
pub fn plugged<'a>(get: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Authority, Refused> {
    if get(REVOKED).is_some_and(|list| !list.trim_ascii().is_empty()) {
        let reason = "is not supported: take the root out of the roots, or end the workload".into();
        return Err(Refused { name: REVOKED, reason });
    }
    // With neither, the name that most people use is missed.
    let layout = if get(ISTIO.certificate).is_none() && get(TLS.certificate).is_some() { TLS } else { ISTIO };
    layout.authority(get)
}

/// The authority of a root that a control plane has made.
pub fn own<'a>(get: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Authority, Refused> {
    OWN.authority(get)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ca::authority::tests::{Family, family};

    fn files(pairs: &[(&'static str, &str)]) -> BTreeMap<&'static str, String> {
        pairs.iter().map(|(name, text)| (*name, (*text).to_owned())).collect()
    }

    fn make(files: &BTreeMap<&'static str, String>) -> Result<Authority, String> {
        plugged(|name| files.get(name).map(|text| text.as_bytes())).map_err(|refused| refused.to_string())
    }

    #[test]
    fn both_layouts_are_read() {
        let Family { root, between, certificate, key, .. } = family();
        let chain = format!("{certificate}{between}{root}");
        let istio = files(&[
            ("ca-cert.pem", &certificate),
            ("ca-key.pem", &key),
            ("cert-chain.pem", &chain),
            ("root-cert.pem", &root),
        ]);
        let tls =
            files(&[("tls.crt", &format!("{certificate}{between}")), ("tls.key", &key), ("ca.crt", &root)]);
        let (istio, tls) = (make(&istio).unwrap(), make(&tls).unwrap());
        assert!(istio.is_same_as(&tls));
        assert_eq!(istio.roots(), root);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let (ours, other) = (family(), family());
        let good = files(&[
            ("ca-cert.pem", &ours.certificate),
            ("ca-key.pem", &ours.key),
            ("cert-chain.pem", &ours.between),
            ("root-cert.pem", &ours.root),
        ]);
        make(&good).unwrap();
        let with = |name: &'static str, text: Option<&str>| {
            let mut files = good.clone();
            match text {
                Some(text) => files.insert(name, text.to_owned()),
                None => files.remove(name),
            };
            make(&files).unwrap_err()
        };
        for (name, text, says) in [
            ("ca-cert.pem", None, "ca-cert.pem is not there"),
            ("ca-key.pem", None, "ca-key.pem is not there"),
            ("root-cert.pem", None, "root-cert.pem is not there"),
            ("ca-cert.pem", Some("half"), "ca-cert.pem is no PEM"),
            ("ca-cert.pem", Some(&ours.certificate[..ours.certificate.len() / 2]), "ca-cert.pem is no PEM"),
            ("ca-key.pem", Some(&other.key), "ca-key.pem is not that of the certificate"),
            ("cert-chain.pem", None, "cert-chain.pem from the certificate on leads to none of the roots"),
            ("cert-chain.pem", Some("x\0"), "leads to none of the roots"),
            ("root-cert.pem", Some(&other.root), "leads to none of the roots"),
            ("root-cert.pem", Some(""), "root-cert.pem there is none that holds now"),
            ("root-cert.pem", Some(&ours.ended), "root-cert.pem there is none that holds now"),
            ("root-cert.pem", Some(&ours.leaf), "root-cert.pem one is no certificate of an authority"),
            ("ca-cert.pem", Some(&ours.leaf), "ca-cert.pem is no certificate of an authority"),
            ("ca-cert.pem", Some(&ours.ended), "ca-cert.pem ended at"),
            ("ca-crl.pem", Some("-----BEGIN X509 CRL-----"), "ca-crl.pem is not supported"),
        ] {
            let said = match (name, text) {
                ("cert-chain.pem", Some(_)) => with(name, Some("")),
                _ => with(name, text),
            };
            assert!(said.contains(says) && !said.contains("PRIVATE"), "{name}: {said}");
        }
    }
}
