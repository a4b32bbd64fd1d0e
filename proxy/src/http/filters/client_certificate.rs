//! `x-forwarded-client-cert`: what the client has shown, told to the application.
//!
//! The last element of the header is ours. What stands before it, a client says of others; it is worth as much as the client is.

use std::fmt::Write as _;

use super::forwarded::append_listed;
use crate::config::listener::{CertificateDetails, ForwardCertificate};
use crate::http::head::{Known, RequestHead};
use crate::identity::peer::Peer;
use crate::listener::connection::Connection;

/// Settles the header of a request.
pub fn settle(rule: ForwardCertificate, connection: &Connection, head: &mut RequestHead) {
    const NAME: Known = Known::XForwardedClientCert;
    let proved = connection.peer.is_some();
    match rule {
        ForwardCertificate::Keep => {}
        ForwardCertificate::KeepWhereProved if proved => {}
        ForwardCertificate::Append(details) if proved => {
            if let Some(element) = connection.forwarded_certificate(details) {
                append_listed(&mut head.fields, NAME, element, b",");
            }
        }
        ForwardCertificate::Replace(details) if proved => {
            if let Some(element) = connection.forwarded_certificate(details) {
                head.fields.set(NAME, element);
            }
        }
        _ => {
            head.fields.remove(NAME);
        }
    }
}

impl CertificateDetails {
    /// The element for a client, with `own` for who we are.
    pub fn of(self, peer: &Peer, own: Option<&str>) -> String {
        let mut element = String::new();
        if let Some(own) = own {
            let _ = write!(element, "By={own};");
        }
        let _ = write!(element, "Hash={}", peer.fingerprint());
        if self.subject {
            let _ = write!(element, ";Subject=\"{}\"", peer.subject.replace('"', "\\\""));
        }
        let mut each = |key: &str, values: &[std::sync::Arc<str>]| {
            for value in values {
                let _ = write!(element, ";{key}={value}");
            }
        };
        if self.uri {
            each("URI", &peer.uris);
        }
        if self.dns {
            each("DNS", &peer.dns);
        }
        element
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_says_who_showed_what_to_whom() {
        let peer = Peer {
            uris: ["spiffe://cluster.local/ns/a/sa/web".into()].into(),
            dns: ["web.a".into()].into(),
            emails: Box::default(),
            ips: Box::default(),
            subject: "CN=\"web\"".into(),
            chain: [].into(),
            hash: [0xab; 32],
            not_before: 0,
            not_after: 0,
        };
        let hash = "ab".repeat(32);
        let all = CertificateDetails { subject: true, uri: true, dns: true };
        assert_eq!(
            all.of(&peer, Some("spiffe://cluster.local/ns/a/sa/api")),
            format!(
                "By=spiffe://cluster.local/ns/a/sa/api;Hash={hash};Subject=\"CN=\\\"web\\\"\";\
                 URI=spiffe://cluster.local/ns/a/sa/web;DNS=web.a"
            )
        );
        assert_eq!(CertificateDetails::default().of(&peer, None), format!("Hash={hash}"));
    }
}
