//! The server's side of a decision, as egress, ingress, steering and `explain` ask for it.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::{
    policy::{
        Mode, ReasonCode,
        compiled::{
            authorize::{Call, Refusal},
            decide::{Decider, To},
            server::ServerMode,
            trace::{Silent, Trace},
        },
    },
    registry::index::RegisteredWorkload,
};

impl Decider {
    /// The server's mode at a workload, for packets to `address` and `port`.
    pub(crate) fn server_mode(
        &self,
        workload: &RegisteredWorkload,
        address: IpAddr,
        port: Option<u16>,
    ) -> ServerMode<'_> {
        self.modes
            .mode(&self.registry, workload, (address, port), &mut Silent)
    }

    /// A destination's mode; `None` where it is not in the mesh.
    pub(crate) fn server_of<T: Trace>(
        &self,
        endpoint: &RegisteredWorkload,
        to: To,
        trace: &mut T,
    ) -> Option<ServerMode<'_>> {
        endpoint.mesh_capable.then(|| {
            self.modes
                .mode(&self.registry, endpoint, (to.address, to.port), trace)
        })
    }

    /// Why plaintext from `source` is refused at a workload; `None` where it is taken.
    pub(crate) fn refuses_plaintext(
        &self,
        workload: &RegisteredWorkload,
        address: IpAddr,
        source: IpAddr,
        port: Option<u16>,
    ) -> Option<ReasonCode> {
        if self.server_mode(workload, address, port).mode == Mode::Strict {
            return Some(ReasonCode::ModeStrict);
        }
        let call = Call {
            identity: None,
            source,
            destination: address,
            port,
        };
        let authorization = self.authorizations.authorize(workload, &call, &mut Silent);
        authorization.refusal.map(Refusal::code)
    }

    /// Ports of packets to `address` that some rule for the workload tells apart; all others are decided alike.
    pub(crate) fn ports_told_apart(
        &self,
        workload: &RegisteredWorkload,
        address: IpAddr,
    ) -> BTreeSet<u16> {
        let mut ports = self.modes.ports(&self.registry, workload, address);
        ports.append(&mut self.authorizations.ports(workload));
        ports
    }

    /// Source networks that some rule for the workload tells apart.
    pub(crate) fn networks_told_apart(&self, workload: &RegisteredWorkload) -> BTreeSet<IpNetwork> {
        self.authorizations.networks(workload)
    }
}
