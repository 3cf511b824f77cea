//! The mesh that most tests use: `client` and `server` are in it, `naked` is not.

use crate::rig::Rig;

pub(crate) const CLIENT_4: &str = "198.18.1.2";
pub(crate) const CLIENT_6: &str = "fd00:1::2";
pub(crate) const SERVER_4: &str = "198.18.2.2";
pub(crate) const SERVER_6: &str = "fd00:2::2";
pub(crate) const NAKED_4: &str = "198.18.3.2";
pub(crate) const NAKED_6: &str = "fd00:3::2";
/// The service's port.
pub(crate) const PORT: u16 = 8_080;
/// A second port of the service.
pub(crate) const BULK_PORT: u16 = 5_001;

/// The Istio mTLS introduction's own pair.
pub(crate) const STRICT: &str = r#"apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata:
  name: default
spec:
  peers:
  - mtls:
      mode: STRICT
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata:
  name: default
  namespace: istio-system
spec:
  host: "*.local"
  trafficPolicy:
    tls:
      mode: ISTIO_MUTUAL
"#;

/// Servers take both, clients speak mutual TLS.
pub(crate) fn permissive() -> String {
    STRICT.replace("STRICT", "PERMISSIVE")
}

/// A WorkloadEntry; `gateway` where the host's address is not the workload's own.
pub(crate) fn workload(name: &str, address: &str, account: &str, gateway: Option<&str>) -> String {
    let annotations = gateway
        .map(|gateway| format!("\n  annotations: {{ identun.io/gateway: \"{gateway}\" }}"))
        .unwrap_or_default();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\n  namespace: default{annotations}\n\
         spec:\n  address: \"{address}\"\n  serviceAccount: {account}\n  labels: {{ app: {account} }}\n"
    )
}

/// A ServiceEntry over the workloads of one account.
pub(crate) fn service(account: &str, ports: &[u16]) -> String {
    let ports: String = ports
        .iter()
        .map(|port| format!("  - {{ number: {port}, name: tcp-{port}, protocol: TCP }}\n"))
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {account}\n  namespace: default\n\
         spec:\n  hosts: [{account}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  ports:\n{ports}  \
         workloadSelector:\n    labels: {{ app: {account} }}\n"
    )
}

/// The registry of the usual two hosts.
pub(crate) fn registry() -> String {
    [
        workload("client-4", CLIENT_4, "client", None),
        workload("client-6", CLIENT_6, "client", None),
        workload("server-4", SERVER_4, "server", None),
        workload("server-6", SERVER_6, "server", None),
        service("client", &[PORT]),
        service("server", &[PORT, BULK_PORT]),
    ]
    .join("---\n")
}

impl Rig {
    /// Files for the usual two hosts under `policy`.
    pub(crate) fn standard(&self, policy: &str) {
        self.write("policies/policy.yaml", policy);
        self.write("policies/registry.yaml", &registry());
        self.configure("client", &["client"], "");
        self.configure("server", &["server"], "");
    }
}
