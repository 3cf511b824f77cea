//! Why a flow ends as it does: one code a reason, each of exactly one outcome.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::policy::compiled::outcome::Outcome;

macro_rules! reason_codes {
    ($($outcome:ident: $($variant:ident = $name:literal $text:literal,)*;)*) => {
        /// Why a flow ends as it does. Its name is what `explain`, logs and tests say.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum ReasonCode { $($(#[doc = $text] $variant,)*)* }

        impl ReasonCode {
            /// Every code, by outcome.
            pub const ALL: &'static [Self] = &[$($(Self::$variant,)*)*];

            /// The code's one name.
            pub const fn as_str(self) -> &'static str {
                match self { $($(Self::$variant => $name,)*)* }
            }

            /// The reason as a sentence without a full stop.
            pub const fn text(self) -> &'static str {
                match self { $($(Self::$variant => $text,)*)* }
            }

            /// How a flow with this reason ends.
            pub const fn outcome(self) -> Outcome {
                match self { $($(Self::$variant => Outcome::$outcome,)*)* }
            }
        }
    };
}

reason_codes! {
    Mtls:
        MutualAuto = "mutual_auto" "no DestinationRule decides, and both ends are in the mesh",
        MutualByRule = "mutual_by_rule" "a DestinationRule demands mutual TLS",
    ;
    Plaintext:
        ClientNotInMesh = "client_not_in_mesh" "the source is not in the mesh",
        DestinationModeDisable = "destination_mode_disable" "no DestinationRule decides, and the destination's mode is DISABLE",
        DestinationNotInMesh = "destination_not_in_mesh" "no DestinationRule decides, and the destination is not in the mesh",
        DestinationUnknown = "destination_unknown" "the destination is not in the registry",
        ExemptPort = "exempt_port" "the destination's port is exempt, so plaintext is accepted whatever policy says",
        NoRule = "no_rule" "no DestinationRule decides, and the service is external or `auto_mtls` is off",
        RuleDisable = "rule_disable" "a DestinationRule says DISABLE",
        SameHost = "same_host" "source and destination are on this host",
        UnnamedPort = "unnamed_port" "no service names this port of a mesh workload, and `unknown_destination` is `pass`",
    ;
    RefusedByClient:
        ClientWithoutIdentity = "client_without_identity" "mutual TLS is demanded, but the source has no identity",
        DestinationOutsideMesh = "not_in_mesh" "a DestinationRule demands mutual TLS, but the destination is not in the mesh",
        IdentityNotAccepted = "identity_not_accepted" "the identity of the endpoint is not among those that may answer",
        NoAuthorizedIdentity = "no_authorized_identity" "no identity may answer for the destination",
        UnknownDestination = "unknown_destination" "no service names this port of a mesh workload, and `unknown_destination` is `drop`",
        UnknownSource = "unknown_source" "the source is this host's but no workload's, its workloads must encrypt there, and `unknown_source` is `drop`",
    ;
    RefusedByServer:
        DeniedByPolicy = "denied_by_policy" "an AuthorizationPolicy denies it",
        ModeDisable = "mode_disable" "a DestinationRule demands mutual TLS, but the destination's mode is DISABLE",
        ModeStrict = "mode_strict" "it is plaintext, and the destination's mode is STRICT",
        NoMatchingAllow = "no_matching_allow" "AuthorizationPolicies allow others, and none of them matches",
    ;
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ReasonCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> =
            ReasonCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), ReasonCode::ALL.len());
    }
}
