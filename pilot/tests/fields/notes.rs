//! What the tables say beside what the types say. A path may end in `*`: all fields that begin so.

/// About a field of a kind.
pub struct Note {
    /// Kind, as in the heading.
    pub kind: &'static str,
    /// Path.
    pub path: &'static str,
    /// Instead of what the type says.
    pub state: Option<&'static str>,
    /// Note.
    pub text: &'static str,
}

const fn note(kind: &'static str, path: &'static str, text: &'static str) -> Note {
    Note { kind, path, state: None, text }
}

const fn state(kind: &'static str, path: &'static str, state: &'static str, text: &'static str) -> Note {
    Note { kind, path, state: Some(state), text }
}

const IDLE: &str = "without effect";

const TLS_MODE: &str =
    "a gRPC library without a proxy takes ISTIO_MUTUAL and DISABLE; for the others it has no cluster";
const IN_FILES: &str = "a file that the proxy finds where it runs; read again when it changes";
const ROOTS_IN_FILES: &str = "a file that the proxy finds where it runs, read again when it changes; without one, the roots of its system";
const CREDENTIAL: &str = "a Secret of the client's own namespace, for gateways and for workloads that `workloadSelector` selects, over encrypted xDS \
                          and where their service account may read Secrets; its roots are in the Secret `<name>-cacert`, else beside its certificate";
const SNI: &str = "without one, HTTP asks for whom each request is for (and, where no names are given, the certificate must be for that \
                   host); opaque bytes ask for nobody";
const SERVER_NAMES: &str = "URIs (`://`), mail addresses (`@`), IP addresses, else host names; without any, those of the ServiceEntry";

/// All notes.
pub const NOTES: &[Note] = &[
    note(
        "VirtualService",
        "spec.gateways[]",
        "rules for gateways are kept and not used; those for `mesh` are applied",
    ),
    note("VirtualService", "spec.http[].match[].headers.<name>.*", "no value at all: the header is there"),
    note("VirtualService", "spec.http[].match[].uri.regex", "RE2, at most 1,024 bytes"),
    note("VirtualService", "spec.http[].directResponse.body.bytes", "base64"),
    note(
        "VirtualService",
        "spec.http[].retries.retryOn",
        "`retriable-headers` and `http3-post-connect-failure` have no effect and are warned of",
    ),
    note("DestinationRule", "spec.trafficPolicy.tls.mode", TLS_MODE),
    note("DestinationRule", "spec.trafficPolicy.tls.clientCertificate", IN_FILES),
    note("DestinationRule", "spec.trafficPolicy.tls.credentialName", CREDENTIAL),
    note("DestinationRule", "spec.trafficPolicy.tls.privateKey", IN_FILES),
    note("DestinationRule", "spec.trafficPolicy.tls.caCertificates", ROOTS_IN_FILES),
    note("DestinationRule", "spec.trafficPolicy.tls.sni", SNI),
    note("DestinationRule", "spec.trafficPolicy.tls.subjectAltNames[]", SERVER_NAMES),
    note("DestinationRule", "spec.trafficPolicy.portLevelSettings[].tls.mode", TLS_MODE),
    note("DestinationRule", "spec.trafficPolicy.portLevelSettings[].tls.clientCertificate", IN_FILES),
    note("DestinationRule", "spec.trafficPolicy.portLevelSettings[].tls.credentialName", CREDENTIAL),
    note("DestinationRule", "spec.trafficPolicy.portLevelSettings[].tls.privateKey", IN_FILES),
    note("DestinationRule", "spec.trafficPolicy.portLevelSettings[].tls.caCertificates", ROOTS_IN_FILES),
    note("DestinationRule", "spec.trafficPolicy.portLevelSettings[].tls.sni", SNI),
    note("DestinationRule", "spec.trafficPolicy.portLevelSettings[].tls.subjectAltNames[]", SERVER_NAMES),
    note("DestinationRule", "spec.subsets[].trafficPolicy.tls.mode", TLS_MODE),
    note("DestinationRule", "spec.subsets[].trafficPolicy.tls.clientCertificate", IN_FILES),
    note("DestinationRule", "spec.subsets[].trafficPolicy.tls.credentialName", CREDENTIAL),
    note("DestinationRule", "spec.subsets[].trafficPolicy.tls.privateKey", IN_FILES),
    note("DestinationRule", "spec.subsets[].trafficPolicy.tls.caCertificates", ROOTS_IN_FILES),
    note("DestinationRule", "spec.subsets[].trafficPolicy.tls.sni", SNI),
    note("DestinationRule", "spec.subsets[].trafficPolicy.tls.subjectAltNames[]", SERVER_NAMES),
    note("DestinationRule", "spec.subsets[].trafficPolicy.portLevelSettings[].tls.mode", TLS_MODE),
    note(
        "DestinationRule",
        "spec.subsets[].trafficPolicy.portLevelSettings[].tls.clientCertificate",
        IN_FILES,
    ),
    note(
        "DestinationRule",
        "spec.subsets[].trafficPolicy.portLevelSettings[].tls.credentialName",
        CREDENTIAL,
    ),
    note("DestinationRule", "spec.subsets[].trafficPolicy.portLevelSettings[].tls.privateKey", IN_FILES),
    note(
        "DestinationRule",
        "spec.subsets[].trafficPolicy.portLevelSettings[].tls.caCertificates",
        ROOTS_IN_FILES,
    ),
    note("DestinationRule", "spec.subsets[].trafficPolicy.portLevelSettings[].tls.sni", SNI),
    note(
        "DestinationRule",
        "spec.subsets[].trafficPolicy.portLevelSettings[].tls.subjectAltNames[]",
        SERVER_NAMES,
    ),
    note("ServiceEntry", "spec.location", "MESH_EXTERNAL: plaintext unless a DestinationRule says otherwise"),
    note(
        "ServiceEntry",
        "spec.subjectAltNames[]",
        "whom servers are believed to be, unless a DestinationRule says it",
    ),
    state("ServiceEntry", "spec.endpoints[].network", IDLE, "there is one network yet"),
    note("ServiceEntry", "spec.endpoints[].serviceAccount", "whom servers are believed to be"),
    state("WorkloadEntry", "spec.network", IDLE, "there is one network yet"),
    note("WorkloadEntry", "spec.serviceAccount", "whom servers are believed to be"),
    note(
        "Secret",
        "data.<name>",
        "base64; tls.crt and tls.key, or cert and key; ca.crt, or cacert; others are not looked at",
    ),
    note("Pod", "spec.serviceAccountName", "whom servers are believed to be"),
    state("EndpointSlice", "endpoints[].conditions.serving", IDLE, "`ready` and `terminating` decide"),
    note("MeshConfig", "trustDomain", "principals of AuthorizationPolicies are also meant in the aliases"),
    note("MeshConfig", "rootNamespace", "where rules hold for all namespaces"),
    note("ServiceEntry", "spec.resolution", "DNS_ROUND_ROBIN and DYNAMIC_DNS are refused"),
    note(
        "AuthorizationPolicy",
        "spec.provider.name",
        "one of the mesh's `extensionProviders`; one for all policies of a workload",
    ),
    note(
        "MeshConfig",
        "extensionProviders[].envoyExtAuthzHttp.timeout",
        "10 minutes where it is left out, as with Istio",
    ),
    note(
        "MeshConfig",
        "extensionProviders[].envoyExtAuthzGrpc.timeout",
        "10 minutes where it is left out, as with Istio",
    ),
    note(
        "MeshConfig",
        "extensionProviders[].envoyExtAuthzHttp.includeAdditionalHeadersInCheck.<name>",
        "as it is written: a value with a % is refused, for commands of Envoy's are not supported",
    ),
    note(
        "MeshConfig",
        "extensionProviders[].envoyExtAuthzHttp.includeHeadersInCheck[]",
        "the older name of `includeRequestHeadersInCheck`",
    ),
    note(
        "AuthorizationPolicy",
        "spec.rules[].when[].key",
        "`experimental.envoy.filters.*` is not supported and fails closed",
    ),
    state("AuthorizationPolicy", "spec.targetRef", IDLE, "gateways and waypoints, which there are none of"),
    state(
        "AuthorizationPolicy",
        "spec.targetRefs[]",
        IDLE,
        "gateways and waypoints, which there are none of",
    ),
    note(
        "PeerAuthentication",
        "spec.mtls.mode",
        "STRICT refuses everything where the workload has no certificate",
    ),
    note(
        "PeerAuthentication",
        "spec.portLevelMtls.<name>.mode",
        "STRICT refuses everything where the workload has no certificate",
    ),
    note(
        "RequestAuthentication",
        "spec.jwtRules[].jwksUri",
        "fetched by the control plane; without it and `jwks` the issuer is asked (OpenID Connect Discovery)",
    ),
    note("RequestAuthentication", "spec.jwtRules[].jwks_uri", "the older spelling of `jwksUri`"),
    note("RequestAuthentication", "spec.jwtRules[].timeout", "60s at most"),
    note(
        "RequestAuthentication",
        "spec.jwtRules[].presence",
        "REQUIRED is refused: it takes an AuthorizationPolicy",
    ),
    state("RequestAuthentication", "spec.targetRef", IDLE, "gateways and waypoints, which there are none of"),
    state(
        "RequestAuthentication",
        "spec.targetRefs[]",
        IDLE,
        "gateways and waypoints, which there are none of",
    ),
    note(
        "MeshConfig",
        "ingressClass",
        "what the annotation `kubernetes.io/ingress.class` has to say; `istio` where it is left out",
    ),
    note(
        "MeshConfig",
        "ingressControllerMode",
        "OFF: no Ingress is ours; DEFAULT: also those that name no class, or one that isn't there; STRICT, also where it is left out: \
         those with our annotation, or with a class whose controller is `istio.io/ingress-controller`",
    ),
    note(
        "MeshConfig",
        "ingressSelector",
        "gateways are the pods with this value of the label `istio`; where it is left out, that of `ingressService`, else \
         `ingressgateway`",
    ),
    note("MeshConfig", "ingressService", "the Service whose addresses stand in the status of Ingresses"),
    note("Ingress", "spec.rules[].host", "`*.` stands for one label or more"),
    note(
        "Ingress",
        "spec.rules[].http.paths[].pathType",
        "ImplementationSpecific is Prefix; where the path ends in `.*` or `/*`, everything that begins with what is before it",
    ),
    state("Ingress", "spec.rules[].http.paths[].backend.resource", "refused", "only Services are served"),
    state("Ingress", "spec.defaultBackend.resource", "refused", "only Services are served"),
    note("Ingress", "spec.tls[].hosts[]", "none: every host that no other entry names"),
    note(
        "Ingress",
        "spec.tls[].secretName",
        "in the namespace of the gateway, with `tls.crt` and `tls.key` or `cert` and `key`; only gateways that prove over the \
         encrypted port of pilot where they live get it",
    ),
    note("Service", "spec.internalTrafficPolicy", "Local: endpoints on the client's node only"),
    note("Service", "spec.ports[].protocol", "only TCP is proxied"),
    note("EndpointSlice", "addressType", "FQDN slices are left out"),
    note(
        "every kind",
        "metadata.annotations.<name>",
        "`networking.istio.io/exportTo` of Services, `istio.io/dry-run` of AuthorizationPolicies",
    ),
    note(
        "every kind",
        "metadata.creationTimestamp",
        "decides which of two is the older; else the time at which it was first read",
    ),
    note("every kind", "metadata.ownerReferences[].*", "names the workload of a Pod"),
    note(
        "ConfigMap",
        "data.<name>",
        "only the key `mesh` of the ConfigMap `istio`, see [MeshConfig](istio-fields.md#meshconfig)",
    ),
];
