//! TLS towards clients, and certificates.

use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::compile::listener::{self, CompiledListener};
use crate::compile::tls;
use crate::config::listener::DownstreamTransport;

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

fn pem() -> (String, String) {
    let key = KeyPair::generate().expect("key");
    let certificate = CertificateParams::new(vec!["a".into()]).expect("name").self_signed(&key);
    (certificate.expect("certificate").pem(), key.serialize_pem())
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("text")
}

/// A listener whose chain has this in its `common_tls_context`, and beside it.
fn with_tls(common: &str, beside: &str) -> Result<CompiledListener, Rejected> {
    let yaml = format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}, filter_chains: [{{transport_socket: {{name: \
         tls, typed_config: {{\"@type\": {TLS}, common_tls_context: {{{common}}}{beside}}}}}, filters: [{{name: tcp, typed_config: \
         {{\"@type\": {TCP}, stat_prefix: x, cluster: c}}}}]}}]}}"
    );
    with_context(None, |context| {
        listener::compile("l", &pack::<osier_proto::types::listener::Listener>(&yaml), context)
    })
}

#[test]
fn a_chain_with_tls_names_its_certificate() {
    let named =
        format!("tls_certificate_sds_secret_configs: [{{name: 'kubernetes://a/b', sds_config: {V3}}}]");
    let compiled = with_tls(
        &format!(
            "{named}, alpn_protocols: [h2, http/1.1], tls_params: {{tls_minimum_protocol_version: TLSv1_3}}"
        ),
        ", require_client_certificate: false",
    )
    .expect("compiles");
    let names: Vec<_> = compiled.references.secrets.iter().map(|name| &**name).collect();
    assert_eq!(names, ["kubernetes://a/b"]);
    let DownstreamTransport::Tls(tls) = &compiled.listener.chains[0].transport else { panic!("no TLS") };
    assert_eq!(tls.for_client(&[]).alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    let (chain, key) = pem();
    let inline = format!(
        "tls_certificates: [{{certificate_chain: {{inline_string: {}}}, private_key: {{inline_string: {}}}}}]",
        quoted(&chain),
        quoted(&key)
    );
    let compiled = with_tls(&inline, "").expect("compiles");
    assert!(compiled.references.secrets.is_empty());
}

#[test]
fn what_is_wrong_with_tls_is_named() {
    let at = "filter_chains[0].transport_socket.typed_config";
    let (chain, key) = pem();
    let (other, _) = pem();
    let certificate = |chain: &str, key: &str| {
        format!("tls_certificates: [{{certificate_chain: {{{chain}}}, private_key: {{{key}}}}}]")
    };
    let text = |text: &str| format!("inline_string: {}", quoted(text));
    let first = "common_tls_context.tls_certificates[0]";
    for (common, beside, field, reason) in [
        (String::new(), "", "common_tls_context.tls_certificates", "needs one"),
        (
            certificate(&text(&chain), &text(&key)),
            ", require_client_certificate: true",
            "common_tls_context.validation_context",
            "is needed with require_client_certificate",
        ),
        (
            certificate("filename: /x", &text(&key)),
            "",
            &format!("{first}.certificate_chain"),
            "must be inline",
        ),
        (
            certificate(&text("x"), &text(&key)),
            "",
            &format!("{first}.certificate_chain"),
            "has no certificate",
        ),
        (certificate(&text(&chain), &text("x")), "", &format!("{first}.private_key"), "is no PEM"),
        (certificate(&text(&other), &text(&key)), "", &format!("{first}.private_key"), ""),
        (
            format!(
                "{}, tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_2}}",
                certificate(&text(&chain), &text(&key))
            ),
            "",
            "common_tls_context.tls_params.tls_maximum_protocol_version",
            "is below",
        ),
        (
            format!("tls_certificate_sds_secret_configs: [{{name: '', sds_config: {V3}}}]"),
            "",
            "common_tls_context.tls_certificate_sds_secret_configs[0].name",
            "must not be empty",
        ),
        (
            "tls_certificate_sds_secret_configs: [{name: a}]".to_owned(),
            "",
            "common_tls_context.tls_certificate_sds_secret_configs[0].sds_config",
            "is required",
        ),
    ] {
        let error = with_tls(&common, beside).expect_err(field);
        assert_eq!(error.field, format!("{at}.{field}"), "{error}");
        assert!(error.reason.starts_with(reason), "{error}");
        assert!(!error.to_string().contains("PRIVATE"), "{error}");
    }
}

#[test]
fn certificates_over_sds() {
    let (chain, key) = pem();
    let secret = |name: &str, chain: &str| {
        let yaml = format!(
            "{{name: {name}, tls_certificate: {{certificate_chain: {{inline_string: {}}}, private_key: {{inline_string: {}}}}}}}",
            quoted(chain),
            quoted(&key)
        );
        tls::secret("a", &pack::<osier_proto::types::tls::Secret>(&yaml))
    };
    assert!(secret("a", &chain).is_ok());
    assert_eq!(secret("b", &chain).expect_err("name").field, "name");
    let error = secret("a", &pem().0).expect_err("another's");
    assert_eq!(error.field, "tls_certificate.private_key", "{error}");
    let nothing = tls::secret("a", &pack::<osier_proto::types::tls::Secret>("{name: a}"));
    assert_eq!(nothing.expect_err("nothing").field, "tls_certificate");
}
