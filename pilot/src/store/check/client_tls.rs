//! `tls` of a DestinationRule to [`ClientTls`]: which fields go with which mode.

use std::sync::Arc;

use super::{Check, Path};
use crate::model::{CertificateFiles, ClientTls, OwnCertificate, ServerNames, ServerTrust, has_roots_of};
use crate::store::schema::destination_rule::{ClientTlsMode, ClientTlsSettings};

impl Check<'_> {
    /// How bytes are secured; `None` where the rule doesn't say. Without a mode it is DISABLE, as in Istio.
    pub(super) fn client_tls(
        &mut self,
        at: Path<'_>,
        tls: Option<&ClientTlsSettings>,
    ) -> Option<Arc<ClientTls>> {
        let tls = tls?;
        let mode = tls.mode.unwrap_or(ClientTlsMode::Disable);
        self.unused(at, tls, mode);
        Some(Arc::new(match mode {
            ClientTlsMode::Disable => ClientTls::Plaintext,
            ClientTlsMode::IstioMutual => ClientTls::Mesh(self.server_names(at, tls)),
            ClientTlsMode::Simple | ClientTlsMode::Mutual => {
                let credential = self.credential(at, tls);
                let own = (mode == ClientTlsMode::Mutual).then(|| match credential.clone() {
                    Some(name) => OwnCertificate::Secret(name),
                    None => OwnCertificate::Files(self.certificate_files(at, tls)),
                });
                let trust = self.server_trust(at, tls, credential);
                ClientTls::Outside { own, trust, names: self.server_names(at, tls) }
            }
        }))
    }

    /// Fields that the mode has no use for. With ISTIO_MUTUAL a file would be another identity than the workload's: that is refused.
    fn unused(&mut self, at: Path<'_>, tls: &ClientTlsSettings, mode: ClientTlsMode) {
        let (is_plain, is_mesh) = (mode == ClientTlsMode::Disable, mode == ClientTlsMode::IstioMutual);
        let shows = mode == ClientTlsMode::Mutual;
        for (field, given, used) in [
            ("clientCertificate", !tls.client_certificate.is_empty(), shows),
            ("privateKey", !tls.private_key.is_empty(), shows),
            ("caCertificates", !tls.ca_certificates.is_empty(), !is_plain && !is_mesh),
            ("credentialName", !tls.credential_name.is_empty(), !is_plain && !is_mesh),
            ("insecureSkipVerify", tls.insecure_skip_verify == Some(true), !is_plain && !is_mesh),
            ("subjectAltNames", !tls.subject_alt_names.is_empty(), !is_plain),
            ("sni", !tls.sni.is_empty(), !is_plain),
        ] {
            let here = at.field(field);
            match given && !used {
                true if is_mesh => {
                    self.error(here, "is not for ISTIO_MUTUAL: it goes by the mesh's certificates")
                }
                true => self.warn(here, "is not used with this mode"),
                false => {}
            }
        }
    }

    /// The Secret that has the certificate and the roots. Files beside it would be another truth.
    fn credential(&mut self, at: Path<'_>, tls: &ClientTlsSettings) -> Option<Arc<str>> {
        let name = &*tls.credential_name;
        if name.is_empty() {
            return None;
        }
        for (field, given) in [
            ("clientCertificate", &tls.client_certificate),
            ("privateKey", &tls.private_key),
            ("caCertificates", &tls.ca_certificates),
        ] {
            if !given.is_empty() {
                self.error(at.field(field), "contradicts credentialName");
            }
        }
        if has_roots_of(name).is_some() {
            self.error(at.field("credentialName"), "ends in `-cacert`: that is the Secret with its roots");
        }
        let of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if !name.chars().all(of_name) {
            let here = at.field("credentialName");
            self.error(here, format!("{name:?} is no name of a Secret; only those are supported"));
        }
        Some(name.into())
    }

    fn certificate_files(&mut self, at: Path<'_>, tls: &ClientTlsSettings) -> CertificateFiles {
        let mut file = |field: &str, path: &str| {
            if path.is_empty() {
                self.error(at.field(field), "is required with MUTUAL");
            }
            self.file_path(at.field(field), path);
            Arc::from(path)
        };
        CertificateFiles {
            certificate: file("clientCertificate", &tls.client_certificate),
            key: file("privateKey", &tls.private_key),
        }
    }

    fn server_trust(
        &mut self,
        at: Path<'_>,
        tls: &ClientTlsSettings,
        credential: Option<Arc<str>>,
    ) -> ServerTrust {
        if tls.insecure_skip_verify == Some(true) {
            for (field, given) in [
                ("caCertificates", !tls.ca_certificates.is_empty()),
                ("subjectAltNames", !tls.subject_alt_names.is_empty()),
                ("credentialName", credential.is_some() && tls.mode == Some(ClientTlsMode::Simple)),
            ] {
                if given {
                    self.error(at.field(field), "contradicts insecureSkipVerify");
                }
            }
            return ServerTrust::Anybody;
        }
        if let Some(name) = credential {
            return ServerTrust::Secret(name);
        }
        match &*tls.ca_certificates {
            "" | "system" => ServerTrust::System,
            path => {
                self.file_path(at.field("caCertificates"), path);
                ServerTrust::File(path.into())
            }
        }
    }

    /// A path is part of the name of a resource, in which `~` has a meaning.
    fn file_path(&mut self, at: Path<'_>, path: &str) {
        if path.contains('~') || path.chars().any(char::is_control) {
            self.error(at, "is a path with ~ or a control character, which is not supported");
        }
    }

    fn server_names(&mut self, at: Path<'_>, tls: &ClientTlsSettings) -> ServerNames {
        let of_host = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !tls.sni.is_empty()
            && (!tls.sni.chars().all(of_host) || tls.sni.parse::<std::net::IpAddr>().is_ok())
        {
            self.error(at.field("sni"), format!("{:?} is no host name", tls.sni));
        }
        for (index, name) in tls.subject_alt_names.iter().enumerate() {
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
                let here = at.field("subjectAltNames");
                self.error(here.index(index), format!("{name:?} is no name that a certificate can have"));
            }
        }
        ServerNames {
            sni: (!tls.sni.is_empty()).then(|| tls.sni.as_str().into()),
            alternatives: tls.subject_alt_names.iter().map(|name| name.as_str().into()).collect(),
        }
    }
}
