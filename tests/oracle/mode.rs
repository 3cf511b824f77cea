//! What a destination accepts: PeerAuthentication, else Policy and MeshPolicy (policy.md 1, 2).

use std::net::IpAddr;

use identun::{
    policy::{
        Mode,
        document::{PeerAuthentication, Policy, PortSelector},
    },
    registry::ResourceName,
};

use super::registry::{Host, Known, Service, selects};

/// A mode, and the resource that gives it; None: the setting `default_mode`, or nothing but UNSET.
pub(crate) type Given<'k> = (Mode, Option<&'k ResourceName>);

impl Known<'_> {
    /// The mode of the workload `server` for a packet to `address` and `port`; None where it is not in the mesh.
    pub(crate) fn mode(
        &self,
        server: &Host,
        address: IpAddr,
        port: Option<u16>,
    ) -> Option<Given<'_>> {
        if !server.in_mesh {
            return None;
        }
        let later = self.peer_authentication(server, port);
        Some(later.unwrap_or_else(|| self.alpha(server, address, port)))
    }

    /// Mesh, namespace and workload level, each with its oldest only; None where none applies.
    fn peer_authentication(&self, server: &Host, port: Option<u16>) -> Option<Given<'_>> {
        let root = &self.mesh.root_namespace;
        let (mut mesh, mut namespace, mut workload) = (None, None, None);
        for policy in &self.resources.peer_authentications {
            let own = &policy.resource.namespace;
            let level: &mut Option<&PeerAuthentication> = match &policy.selector {
                None if own == root => &mut mesh,
                None if *own == server.namespace => &mut namespace,
                Some(wanted)
                    if own != root
                        && *own == server.namespace
                        && selects(wanted, &server.labels) =>
                {
                    &mut workload
                }
                None | Some(_) => continue,
            };
            level.get_or_insert(policy);
        }
        mesh.or(namespace).or(workload)?;
        let mut given = (Mode::Permissive, None);
        for policy in [mesh, namespace, workload].into_iter().flatten() {
            if let Some(mode) = policy.mode.value {
                given = (mode, Some(&policy.resource));
            }
        }
        if let (Some(policy), Some(port)) = (workload, port)
            && let Some(entry) = policy.ports.get(&port)
            && let Some(mode) = entry.value
        {
            given = (mode, Some(&policy.resource));
        }
        Some(given)
    }

    /// The strictest of what holds for the services that the packet may be for.
    fn alpha(&self, server: &Host, address: IpAddr, port: Option<u16>) -> Given<'_> {
        let mut modes = Vec::new();
        for service in &self.services {
            let Some(number) = port else { continue };
            let mut ports = Vec::new();
            if service.covers(address) {
                ports.extend(service.numbered(number));
            }
            if let Some(endpoint) = service.endpoint(server.address) {
                ports.extend(service.behind(endpoint, number));
            }
            let of_port = |port| self.alpha_of(service, Some(port));
            modes.extend(ports.into_iter().map(of_port));
        }
        if modes.is_empty() {
            let services = self.services.iter().filter(|service| {
                service.endpoint(server.address).is_some() || service.covers(address)
            });
            modes.extend(services.map(|service| self.alpha_of(service, None)));
        }
        let strictest = modes.iter().map(|(mode, _)| *mode).max();
        let first = modes.iter().find(|(mode, _)| Some(*mode) == strictest);
        first
            .copied()
            .unwrap_or_else(|| self.alpha_around(&server.namespace))
    }

    /// Service level, then what is around it.
    fn alpha_of(&self, service: &Service<'_>, port: Option<(u16, &str)>) -> Given<'_> {
        let names = |policy: &Policy, port: Option<(u16, &str)>| {
            let targets = policy.targets.iter();
            let mut targets = targets.filter(|target| *target.host.value == *service.host);
            targets.any(|target| match port {
                None => target.ports.is_empty(),
                Some((number, name)) => target.ports.iter().any(|wanted| match &wanted.value {
                    PortSelector::Name(wanted) => **wanted == *name,
                    PortSelector::Number(wanted) => *wanted == number,
                }),
            })
        };
        let of_namespace = || {
            let policies = self.resources.policies.iter();
            policies.filter(|policy| policy.resource.namespace == *service.namespace())
        };
        let of_port = of_namespace().find(|policy| port.is_some() && names(policy, port));
        let whole = of_namespace().find(|policy| names(policy, None));
        match of_port.or(whole) {
            Some(policy) => (policy.mode.value, Some(&policy.resource)),
            None => self.alpha_around(service.namespace()),
        }
    }

    /// Namespace level, then the mesh's, then the setting.
    fn alpha_around(&self, namespace: &str) -> Given<'_> {
        let mut policies = self.resources.policies.iter();
        let default = policies.find(|policy| {
            *policy.resource.namespace == *namespace
                && &*policy.resource.name == "default"
                && policy.targets.is_empty()
        });
        if let Some(policy) = default {
            return (policy.mode.value, Some(&policy.resource));
        }
        match &self.resources.mesh_policy {
            Some(policy) => (policy.mode.value, Some(&policy.resource)),
            None => (self.mesh.default_mode, None),
        }
    }
}
