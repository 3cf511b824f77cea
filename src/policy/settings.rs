//! What the daemon's configuration says about the mesh and this host.

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::spiffe::{SpiffeId, TrustDomain};

/// Server-side mode.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// Only plaintext is accepted.
    Disable,
    /// Both are accepted.
    Permissive,
    /// Only mutual TLS is accepted.
    Strict,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disable => "DISABLE",
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        })
    }
}

/// What happens to packets for an address of a mesh host that no service or workload of the registry explains.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownDestination {
    /// They are refused.
    Drop,
    /// They pass as plaintext.
    Pass,
}

/// What happens to packets that this host sends from an address of its own that no workload has, where its workloads would
/// have to encrypt.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownSource {
    /// They are refused: whoever gives the host another address must not switch encryption off.
    #[default]
    Drop,
    /// They pass as plaintext.
    Pass,
}

/// What becomes of AuthorizationPolicies that speak of requests (layer 7), which packets do not show.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum L7 {
    /// The file is refused.
    Reject,
    /// ALLOW rules with such parts are dropped; in DENY rules such parts match everything (policy.md 5.5).
    StrictDrop,
}

/// Settings that every host of the mesh has alike.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    /// The trust domain of every workload identity.
    pub trust_domain: TrustDomain,
    /// Other names of the same trust domain; secure naming accepts them too.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The DNS domain of service names: a short host becomes HOST.NAMESPACE.svc.DOMAIN.
    pub domain: Arc<str>,
    /// The namespace whose DestinationRules hold for the whole mesh.
    pub root_namespace: Arc<str>,
    /// Namespace of a namespaced resource without metadata.namespace.
    pub default_namespace: Arc<str>,
    /// The mode where no policy gives one.
    pub default_mode: Mode,
    /// Mutual TLS between workloads of the mesh where no DestinationRule decides.
    pub auto_mtls: bool,
    /// What happens to packets for a mesh workload's port that no service names.
    pub unknown_destination: UnknownDestination,
    /// What happens to packets from an own address that no workload has.
    pub unknown_source: UnknownSource,
    /// What becomes of AuthorizationPolicies that speak of requests.
    pub l7: L7,
}

impl Default for MeshSettings {
    /// Istio's names; peers in the mesh are encrypted, plaintext is still accepted (policy.md 1.6).
    #[expect(
        clippy::expect_used,
        reason = "the name is a constant, and a test parses it"
    )]
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".parse().expect("a valid trust domain"),
            trust_domain_aliases: Vec::new(),
            domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            default_namespace: "default".into(),
            default_mode: Mode::Permissive,
            auto_mtls: true,
            unknown_destination: UnknownDestination::Drop,
            unknown_source: UnknownSource::Drop,
            l7: L7::Reject,
        }
    }
}

/// What is true of this host.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// Every address of the host's interfaces, the TUN's own excluded.
    pub underlay: BTreeSet<IpAddr>,
    /// UDP port of the tunnels.
    pub port: u16,
    /// Identities whose keys this host holds.
    pub identities: BTreeSet<SpiffeId>,
    /// Local ports that accept plaintext whatever policy says: (protocol, port).
    pub exempt: BTreeSet<(u8, u16)>,
    /// Workloads live behind interfaces of it: it need not be one itself.
    pub forwards: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_encrypts_within_the_mesh_and_still_takes_plaintext() {
        let mesh = MeshSettings::default();
        assert_eq!(mesh.trust_domain.as_str(), "cluster.local");
        assert_eq!(
            (mesh.default_mode, mesh.auto_mtls),
            (Mode::Permissive, true)
        );
        assert_eq!(
            Mode::Strict.to_string(),
            serde_json::to_value(Mode::Strict).unwrap()
        );
    }
}
