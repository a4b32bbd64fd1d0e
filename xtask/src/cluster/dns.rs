//! CoreDNS as real clusters have it: a Deployment behind the Service `kube-dns`.
//!
//! It knows the cluster's names and forwards nothing: there is no outside.

use std::time::Duration;

use anyhow::Result;

use super::place::{DNS_SERVICE, DOMAIN, Place};
use super::{daemon, kubectl};

const PATIENCE: Duration = Duration::from_secs(90);

/// Applies it and waits until it answers.
pub fn start(place: &Place, image: &str) -> Result<()> {
    kubectl::apply(place, &manifests(image))?;
    let path = "--output=jsonpath={.status.availableReplicas}";
    let available = ["get", "deployment", "coredns", "--namespace=kube-system", path];
    daemon::wait(place, "kubelet", PATIENCE, || {
        kubectl::output(place, &available).is_ok_and(|replicas| replicas.trim() == "1")
    })
}

fn manifests(image: &str) -> String {
    format!(
        r"apiVersion: v1
kind: ServiceAccount
metadata: {{name: coredns, namespace: kube-system}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: osier-cluster-coredns}}
rules:
- {{apiGroups: [''], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}}
- {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: osier-cluster-coredns}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: osier-cluster-coredns}}
subjects: [{{kind: ServiceAccount, name: coredns, namespace: kube-system}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: coredns, namespace: kube-system}}
data:
  Corefile: |
    .:53 {{
        errors
        health {{
            lameduck 0s
        }}
        ready
        kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
            pods insecure
            ttl 5
        }}
        cache 5
        loop
        reload
    }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: coredns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{k8s-app: kube-dns}}}}
  template:
    metadata: {{labels: {{k8s-app: kube-dns}}}}
    spec:
      serviceAccountName: coredns
      dnsPolicy: Default
      priorityClassName: system-cluster-critical
      containers:
      - name: coredns
        image: {image}
        imagePullPolicy: Never
        args: [-conf, /etc/coredns/Corefile]
        ports:
        - {{name: dns, containerPort: 53, protocol: UDP}}
        - {{name: dns-tcp, containerPort: 53, protocol: TCP}}
        readinessProbe: {{httpGet: {{path: /ready, port: 8181}}, periodSeconds: 1}}
        livenessProbe: {{httpGet: {{path: /health, port: 8080}}, failureThreshold: 5}}
        volumeMounts: [{{name: configuration, mountPath: /etc/coredns}}]
        securityContext:
          allowPrivilegeEscalation: false
          readOnlyRootFilesystem: true
          capabilities: {{add: [NET_BIND_SERVICE], drop: [ALL]}}
      volumes: [{{name: configuration, configMap: {{name: coredns}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  clusterIP: {DNS_SERVICE}
  selector: {{k8s-app: kube-dns}}
  ports:
  - {{name: dns, port: 53, protocol: UDP}}
  - {{name: dns-tcp, port: 53, protocol: TCP}}
"
    )
}
