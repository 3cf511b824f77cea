//! What comes of a client's decision and a server's mode (policy.md 6.1).

use serde::Serialize;

use crate::policy::Mode;

/// What the client's host decides, before it knows whether an identity may answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Intent {
    /// No rule decides and `auto_mtls` is on: mutual TLS where the server takes it.
    Auto,
    /// A DestinationRule says DISABLE.
    Disable,
    /// A DestinationRule says ISTIO_MUTUAL.
    IstioMutual,
    /// The client is no workload of the mesh.
    NotInMesh,
    /// No rule decides and either `auto_mtls` is off or the service is external.
    Unset,
}

/// How a flow ends up.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    /// In a tunnel, if secure naming passes.
    Mtls,
    /// In the clear.
    Plaintext,
    /// The client's host does not let it out.
    RefusedByClient,
    /// The server's host does not take it.
    RefusedByServer,
}

/// The table of policy.md 6.1. `server` is the destination's mode, `None` where it is not in the mesh.
pub const fn outcome(client: Intent, server: Option<Mode>) -> Outcome {
    match (client, server) {
        (Intent::IstioMutual, None) => Outcome::RefusedByClient,
        (Intent::IstioMutual, Some(Mode::Disable)) => Outcome::RefusedByServer,
        (Intent::IstioMutual | Intent::Auto, Some(Mode::Permissive | Mode::Strict)) => {
            Outcome::Mtls
        }
        (Intent::NotInMesh | Intent::Disable | Intent::Unset, Some(Mode::Strict)) => {
            Outcome::RefusedByServer
        }
        (Intent::Auto | Intent::Disable | Intent::NotInMesh | Intent::Unset, _) => {
            Outcome::Plaintext
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_the_table_is_as_istio_has_it() {
        use Outcome::{Mtls as M, Plaintext as P, RefusedByClient as C, RefusedByServer as S};
        let servers = [
            None,
            Some(Mode::Disable),
            Some(Mode::Permissive),
            Some(Mode::Strict),
        ];
        for (client, row) in [
            (Intent::NotInMesh, [P, P, P, S]),
            (Intent::Disable, [P, P, P, S]),
            (Intent::IstioMutual, [C, S, M, M]),
            (Intent::Auto, [P, P, M, M]),
            (Intent::Unset, [P, P, P, S]),
        ] {
            assert_eq!(
                servers.map(|server| outcome(client, server)),
                row,
                "{client:?}"
            );
        }
    }
}
