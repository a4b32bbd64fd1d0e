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
    note(
        "DestinationRule",
        "spec.trafficPolicy.tls.mode",
        "of these only DISABLE is applied; the others are refused",
    ),
    note(
        "DestinationRule",
        "spec.trafficPolicy.portLevelSettings[].tls.mode",
        "of these only DISABLE is applied; the others are refused",
    ),
    note(
        "DestinationRule",
        "spec.subsets[].trafficPolicy.tls.mode",
        "of these only DISABLE is applied; the others are refused",
    ),
    note(
        "DestinationRule",
        "spec.subsets[].trafficPolicy.portLevelSettings[].tls.mode",
        "of these only DISABLE is applied; the others are refused",
    ),
    state("ServiceEntry", "spec.location", IDLE, "of use for mutual TLS and telemetry, which come later"),
    state("ServiceEntry", "spec.subjectAltNames[]", IDLE, "of use for mutual TLS, which comes later"),
    state("ServiceEntry", "spec.endpoints[].network", IDLE, "there is one network yet"),
    state(
        "ServiceEntry",
        "spec.endpoints[].serviceAccount",
        IDLE,
        "of use for mutual TLS, which comes later",
    ),
    state("WorkloadEntry", "spec.network", IDLE, "there is one network yet"),
    state("WorkloadEntry", "spec.serviceAccount", IDLE, "of use for mutual TLS, which comes later"),
    state("Pod", "spec.serviceAccountName", IDLE, "of use for mutual TLS, which comes later"),
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
