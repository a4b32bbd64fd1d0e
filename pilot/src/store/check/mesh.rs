//! MeshConfig with its defaults.

use std::sync::Arc;

use super::{Check, Checked, Context, Path};
use crate::model::{
    self, AccessLogEncoding, InboundTraffic, IngressMode, IngressPolicy, LabelSelector, MeshConfig,
    OutboundTraffic, PathNormalization, TlsVersion, UpgradePolicy,
};
use crate::store::schema::destination_rule::H2UpgradePolicy;
use crate::store::schema::{kubernetes as written, mesh as schema};

/// Where the mesh configuration is in its ConfigMap.
pub const ROOT: &str = "data.mesh";

/// Checks the mesh configuration.
pub fn check(context: &Context, spec: &schema::MeshConfig) -> Checked<MeshConfig> {
    let mut check = Check::new(context);
    let root = Path::Root(ROOT);
    let default = MeshConfig::default();
    let encoding = match spec.access_log_encoding {
        None | Some(schema::AccessLogEncoding::Text) => AccessLogEncoding::Text,
        Some(schema::AccessLogEncoding::Json) => AccessLogEncoding::Json,
    };
    let format = some_text(&spec.access_log_format);
    if let (AccessLogEncoding::Json, Some(format)) = (encoding, &format)
        && !serde_json::from_str::<serde_json::Value>(format).is_ok_and(|v| v.is_object())
    {
        check.error(root.field("accessLogFormat"), "must be a JSON object where accessLogEncoding is JSON");
    }
    let connect = root.field("connectTimeout");
    let detection = root.field("protocolDetectionTimeout");
    let refresh = root.field("dnsRefreshRate");
    check.mesh_domain(root.field("trustDomain"), &spec.trust_domain);
    let mesh = MeshConfig {
        root_namespace: some_text(&spec.root_namespace).unwrap_or(default.root_namespace),
        trust_domain: some_text(&spec.trust_domain)
            .map_or(default.trust_domain, |text| model::trust_domain(&text)),
        trust_domain_aliases: check
            .trust_domains(root.field("trustDomainAliases"), &spec.trust_domain_aliases),
        outbound: match spec.outbound_traffic_policy.as_ref().map(|p| p.mode) {
            None | Some(Some(schema::OutboundMode::AllowAny)) => OutboundTraffic::AllowAny,
            // the block without a mode is the enum's zero
            Some(None | Some(schema::OutboundMode::RegistryOnly)) => OutboundTraffic::RegistryOnly,
        },
        inbound: match spec.inbound_traffic_policy.as_ref().and_then(|p| p.mode) {
            None | Some(schema::InboundMode::Passthrough) => InboundTraffic::Passthrough,
            Some(schema::InboundMode::Localhost) => InboundTraffic::Localhost,
        },
        service_export: check.export_to(
            root.field("defaultServiceExportTo"),
            &spec.default_service_export_to,
            true,
        ),
        route_export: check.export_to(
            root.field("defaultVirtualServiceExportTo"),
            &spec.default_virtual_service_export_to,
            false,
        ),
        policy_export: check.export_to(
            root.field("defaultDestinationRuleExportTo"),
            &spec.default_destination_rule_export_to,
            false,
        ),
        connect_timeout: check
            .duration(connect, spec.connect_timeout.as_ref())
            .unwrap_or(default.connect_timeout),
        detection_timeout: check
            .duration_or_zero(detection, spec.protocol_detection_timeout.as_ref())
            .filter(|timeout| !timeout.is_zero()),
        retries: spec
            .default_http_retry_policy
            .as_ref()
            .map(|retries| check.retries(root.field("defaultHttpRetryPolicy"), retries)),
        access_log_file: some_text(&spec.access_log_file),
        access_log_format: format,
        access_log_encoding: encoding,
        path_normalization: match spec.path_normalization.as_ref().and_then(|p| p.normalization) {
            None | Some(schema::NormalizationType::Default | schema::NormalizationType::Base) => {
                PathNormalization::Base
            }
            Some(schema::NormalizationType::None) => PathNormalization::None,
            Some(schema::NormalizationType::MergeSlashes) => PathNormalization::MergeSlashes,
            Some(schema::NormalizationType::DecodeAndMergeSlashes) => {
                PathNormalization::DecodeAndMergeSlashes
            }
        },
        upgrade: match spec.h2_upgrade_policy {
            Some(H2UpgradePolicy::Upgrade) => UpgradePolicy::Upgrade,
            None | Some(H2UpgradePolicy::Default | H2UpgradePolicy::DoNotUpgrade) => UpgradePolicy::Keep,
        },
        tcp_keepalive: spec
            .tcp_keepalive
            .as_ref()
            .map(|k| check.tcp_keepalive(root.field("tcpKeepalive"), k)),
        discovery_selectors: check
            .label_selectors(root.field("discoverySelectors"), &spec.discovery_selectors),
        ingress: ingress(spec),
        auto_mutual_tls: spec.enable_auto_mtls.unwrap_or(default.auto_mutual_tls),
        least_tls: match spec.mesh_mtls.as_ref().and_then(|tls| tls.min_protocol_version) {
            None | Some(schema::TlsProtocol::Auto | schema::TlsProtocol::Tls12) => TlsVersion::Tls12,
            Some(schema::TlsProtocol::Tls13) => TlsVersion::Tls13,
        },
        authorizers: check.authorizers(root.field("extensionProviders"), &spec.extension_providers),
        dns_refresh: check.duration(refresh, spec.dns_refresh_rate.as_ref()).unwrap_or(default.dns_refresh),
    };
    check.finish(mesh)
}

fn ingress(spec: &schema::MeshConfig) -> IngressPolicy {
    let default = IngressPolicy::default();
    let service = some_text(&spec.ingress_service).unwrap_or(default.service.clone());
    let selector = match (spec.ingress_selector.as_str(), &*service) {
        ("", service) if *service == *default.service => default.selector,
        // Gateways are labelled as their Service is called.
        ("", service) => [("istio", service)].into(),
        (label, _) => [("istio", label)].into(),
    };
    IngressPolicy {
        mode: match spec.ingress_controller_mode {
            None
            | Some(schema::IngressControllerMode::Unspecified | schema::IngressControllerMode::Strict) => {
                IngressMode::Strict
            }
            Some(schema::IngressControllerMode::Default) => IngressMode::Default,
            Some(schema::IngressControllerMode::Off) => IngressMode::Off,
        },
        class: some_text(&spec.ingress_class).unwrap_or(default.class),
        selector,
        service,
    }
}

impl Check<'_> {
    fn trust_domains(&mut self, at: Path<'_>, names: &[String]) -> Arc<[Arc<str>]> {
        for (index, name) in names.iter().enumerate() {
            self.require(!name.is_empty(), at.index(index), || "must not be empty".into());
            self.mesh_domain(at.index(index), name);
        }
        names.iter().map(|name| model::trust_domain(name)).collect()
    }

    fn mesh_domain(&mut self, at: Path<'_>, name: &str) {
        self.require(!name.contains(['/', '*']), at, || format!("{name:?} is no trust domain"));
    }

    fn label_selectors(
        &mut self,
        at: Path<'_>,
        selectors: &[written::LabelSelector],
    ) -> Arc<[LabelSelector]> {
        for (index, selector) in selectors.iter().enumerate() {
            let at = at.index(index);
            let at = at.field("matchExpressions");
            for (index, requirement) in selector.match_expressions.iter().enumerate() {
                let here = at.index(index);
                let wants_values =
                    matches!(requirement.operator, written::Operator::In | written::Operator::NotIn);
                if wants_values == requirement.values.is_empty() {
                    let wanted = if wants_values { "needs values" } else { "takes no values" };
                    self.error(here.field("values"), format!("{:?} {wanted}", requirement.operator));
                }
            }
        }
        selectors.iter().map(LabelSelector::from).collect()
    }
}

fn some_text(text: &str) -> Option<Arc<str>> {
    (!text.is_empty()).then(|| text.into())
}
