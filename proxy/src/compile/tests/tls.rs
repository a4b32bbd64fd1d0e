//! TLS towards clients, and certificates.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::compile::listener::{self, CompiledListener};
use crate::compile::tls;
use crate::config::listener::DownstreamTransport;
use crate::config::tls::ClientTls;

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

const UPSTREAM: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const AGENT: &str = "{api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds-grpc}}]}}";
const OPTIONS: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// The TLS of a cluster with these fields in its context and in what it takes from requests.
fn upstream(context: &str, of_requests: &str, secrets: &Secrets) -> Result<Arc<ClientTls>, Rejected> {
    let yaml = format!(
        "{{name: c, typed_extension_protocol_options: {{{}: {{\"@type\": {OPTIONS}, explicit_http_config: {{http_protocol_options: {{}}}}, \
         upstream_http_protocol_options: {{{of_requests}}}}}}}, transport_socket: {{name: tls, typed_config: {{\"@type\": {UPSTREAM}, {context}}}}}}}",
        osier_proto::types::HTTP_PROTOCOL_OPTIONS
    );
    let cluster = pack::<osier_proto::types::cluster::Cluster>(&yaml);
    let compiled = crate::compile::cluster::compile("c", &cluster, secrets)?;
    Ok(compiled.spec.transport.otherwise.clone().expect("TLS"))
}

#[test]
fn files_are_named_and_kept() {
    let secrets = Secrets::default();
    let named = |name: &str| format!("{{name: '{name}', sds_config: {AGENT}}}");
    let context = format!(
        "common_tls_context: {{tls_certificate_sds_secret_configs: [{}], combined_validation_context: {{default_validation_context: {{}}, \
         validation_context_sds_secret_config: {}}}}}",
        named("file-cert:/a~/b"),
        named("file-root:/c")
    );
    let tls = upstream(&context, "", &secrets).expect("compiles");
    let files = || {
        let mut names: Vec<_> = secrets.files().iter().map(|handle| handle.name.to_string()).collect();
        names.sort();
        names
    };
    assert_eq!(files(), ["file-cert:/a~/b", "file-root:/c"]);
    assert!(!tls.is_ready(), "there is nothing to show yet");
    drop(tls);
    assert!(files().is_empty(), "nobody holds them");
    let common = |roots: &str| {
        format!(
            "common_tls_context: {{combined_validation_context: {{default_validation_context: {{}}, validation_context_sds_secret_config: {}}}}}",
            named(roots)
        )
    };
    assert!(upstream(&common("file-root:system"), "", &secrets).is_ok());
    for (wrong, says) in
        [("file-cert:/a~/b", "is not in `sds-grpc`"), ("default", "is not in"), ("x", "is not in")]
    {
        let error = upstream(&common(wrong), "", &secrets).expect_err(wrong);
        assert!(error.reason.contains(says), "{wrong}: {error}");
    }
}

#[test]
fn connections_stand_on_roots_that_can_change() {
    let secrets = Secrets::default();
    let combined = |name: &str| {
        format!(
            "combined_validation_context: {{default_validation_context: {{}}, validation_context_sds_secret_config: {{name: '{name}', \
             sds_config: {AGENT}}}}}"
        )
    };
    let stands = |believe: &str| {
        let tls = upstream(&format!("common_tls_context: {{{believe}}}"), "", &secrets).expect(believe);
        tls.before().is_some()
    };
    assert!(stands(&combined("ROOTCA")));
    assert!(stands(&combined("file-root:/a")));
    assert!(stands(&combined("file-root:system")));
    assert!(!stands(&format!("validation_context: {{trusted_ca: {{inline_string: {}}}}}", quoted(&pem().0))));
    assert!(!stands("validation_context: {trust_chain_verification: ACCEPT_UNTRUSTED}"));
}

#[test]
fn a_client_whose_signer_nobody_looks_at_has_proved_nothing() {
    let (chain, key) = pem();
    let (chain, key) = (quoted(&chain), quoted(&key));
    let stands = |believe: &str| {
        let shown = format!(
            "tls_certificates: [{{certificate_chain: {{inline_string: {chain}}}, private_key: {{inline_string: {key}}}}}]"
        );
        let compiled = with_tls(&format!("{shown}, validation_context: {{{believe}}}"), "").expect(believe);
        let DownstreamTransport::Tls(tls) = &compiled.listener.chains[0].transport else { panic!("no TLS") };
        tls.before().is_some()
    };
    assert!(stands(&format!("trusted_ca: {{inline_string: {chain}}}")));
    assert!(!stands("trust_chain_verification: ACCEPT_UNTRUSTED"));
}

#[test]
fn whom_an_upstream_is_asked_for() {
    let believe = "common_tls_context: {validation_context: {trust_chain_verification: ACCEPT_UNTRUSTED}}";
    let address = "192.0.2.1".parse().unwrap();
    let asked = |context: &str, of_requests: &str, authority: &str| {
        let tls = upstream(&format!("{believe}{context}"), of_requests, &Secrets::default()).expect(context);
        let by_request = tls.asked_by(authority.as_bytes());
        tls.server_name(by_request.as_deref(), address).map(|name| name.to_str().into_owned())
    };
    let name = |text: &str| Some(text.to_owned());
    assert_eq!(asked("", "", "a.example"), name("192.0.2.1"), "an address is no name: none is sent");
    assert_eq!(asked(", sni: b.example", "", "a.example"), name("b.example"));
    for (authority, wanted) in [
        ("A.example:80", name("a.example")),
        ("10.0.0.1:80", name("10.0.0.1")),
        ("[2001:db8::1]:80", name("2001:db8::1")),
        ("a b", None),
        ("", None),
    ] {
        assert_eq!(asked("", "auto_sni: true", authority), wanted, "{authority}");
    }
    let refused = |context: &str, of_requests: &str| {
        upstream(&format!("{believe}{context}"), of_requests, &Secrets::default())
            .expect_err(of_requests)
            .to_string()
    };
    assert!(refused(", sni: a", "auto_sni: true").contains("sni: contradicts auto_sni"));
    assert!(refused("", "auto_san_validation: true").contains("is supported with auto_sni only"));
}

#[test]
fn whom_an_upstream_must_be() {
    let (chain, _) = pem();
    let with = |context: &str| {
        upstream(&format!("common_tls_context: {{{context}}}"), "", &Secrets::default())
            .map(drop)
            .map_err(|e| e.to_string())
    };
    let roots = format!("trusted_ca: {{inline_string: {}}}", quoted(&chain));
    assert_eq!(with(&format!("validation_context: {{{roots}}}")), Ok(()));
    for kind in ["URI", "DNS", "EMAIL", "IP_ADDRESS"] {
        let names = format!("match_typed_subject_alt_names: [{{san_type: {kind}, matcher: {{exact: a}}}}]");
        assert_eq!(with(&format!("validation_context: {{{roots}, {names}}}")), Ok(()), "{kind}");
    }
    assert_eq!(
        with(&format!("validation_context: {{{roots}, match_subject_alt_names: [{{exact: a}}]}}")),
        Ok(())
    );
    for (context, says) in [
        (String::new(), "validation_context: is needed"),
        (
            format!("validation_context: {{{roots}, trust_chain_verification: ACCEPT_UNTRUSTED}}"),
            "trust_chain_verification: contradicts `trusted_ca`",
        ),
        ("validation_context: {}".to_owned(), "trusted_ca"),
        (
            "validation_context: {ca_certificate_provider_instance: {instance_name: a}}".to_owned(),
            "ca_certificate_provider_instance: is for gRPC libraries",
        ),
        (
            format!(
                "tls_certificate_provider_instance: {{instance_name: a}}, validation_context: {{{roots}}}"
            ),
            "tls_certificate_provider_instance: is for gRPC libraries",
        ),
        (
            format!(
                "validation_context: {{{roots}, match_typed_subject_alt_names: [{{matcher: {{exact: a}}}}]}}"
            ),
            "san_type: must be URI, DNS, EMAIL or IP_ADDRESS",
        ),
    ] {
        let error = with(&context).expect_err(says);
        assert!(error.contains(says), "{context}: {error}");
    }
}
