//! Ends plaintext flows that a change of policy forbids (steering.md L11). The kernel's rules hold their packets back
//! already; here both ends are made to learn of it at once, instead of waiting for what never comes.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    daemon::configuration::chained,
    host::{
        HostError, HostSettings,
        conntrack::{self, PlainFlow},
        sockets::{self, Destroyed},
    },
    io::{Command, Shards},
    policy::{Compiled, HostFacts, Steering},
    wire::{FiveTuple, protocol},
};

/// Ports of DHCP, which the rules let pass.
const DHCP: (u16, u16) = (67, 68);

/// Ends the plaintext flows that `new` forbids and `old` did not. To be called when the rules of `new` stand: no such
/// flow begins any more. What cannot be ended is logged; it is held back all the same.
pub fn cut(host: &HostSettings, shards: &Shards, old: &Compiled, new: &Compiled) {
    let [old, new] = [old, new].map(|policy| Boundary {
        steering: policy.steering(),
        facts: policy.host(),
    });
    if old.steering == new.steering {
        return;
    }
    match end(host, shards, |flow| new.forbids(flow) && !old.forbids(flow)) {
        Ok((flows, _)) if flows.is_empty() => {}
        Ok((flows, destroyed)) => tell(&flows, &destroyed),
        Err(error) => tracing::error!(
            error = %chained(error),
            "cannot end plaintext flows that policy no longer allows; nothing of them leaves this host, and they time out"
        ),
    }
}

/// Sockets first: the reset that tells the other end belongs to the flow's conntrack entry, and passes in plaintext for
/// that reason alone. Connections without a socket here live in another network namespace or machine, whose next packet
/// the shard answers. Then the entries, so that what comes next of a flow begins anew and meets the new rules.
fn end(
    host: &HostSettings,
    shards: &Shards,
    is_forbidden: impl Fn(&FiveTuple) -> bool,
) -> Result<(Vec<PlainFlow>, Destroyed), HostError> {
    let flows = conntrack::plain_flows(host, is_forbidden)?;
    let tcp = flows
        .iter()
        .filter(|flow| flow.tuple.protocol == protocol::TCP);
    let ends: BTreeSet<FiveTuple> = tcp
        .flat_map(|flow| [flow.tuple, flow.tuple.reversed()])
        .collect();
    let destroyed = match ends.is_empty() {
        true => Destroyed::default(),
        false => sockets::destroy(|tuple| ends.contains(tuple))?,
    };
    let ended: BTreeSet<_> = destroyed.connections.iter().copied().collect();
    // either end may be the local one: a captured packet shows which
    let left: Vec<_> = ends
        .into_iter()
        .filter(|tuple| !ended.contains(tuple) && !ended.contains(&tuple.reversed()))
        .collect();
    if !left.is_empty()
        && let Err(error) = shards.send_all(|| Command::Cut(left.clone()))
    {
        tracing::warn!(error = %error, "cannot pass on connections that are to be reset; they time out");
    }
    conntrack::delete(&flows)?;
    Ok((flows, destroyed))
}

fn tell(flows: &[PlainFlow], destroyed: &Destroyed) {
    tracing::info!(
        flows = flows.len(),
        connections = destroyed.connections.len(),
        "ended plaintext flows that policy no longer allows"
    );
    if flows.len() >= conntrack::MAX_FLOWS {
        tracing::warn!(
            bound = conntrack::MAX_FLOWS,
            "there may be more of them; nothing of them leaves this host, and they time out"
        );
    }
    for flow in flows {
        tracing::debug!(flow = %flow.tuple, "ended a plaintext flow");
    }
}

/// Where plaintext ends, in the words of the kernel's rules.
struct Boundary<'a> {
    steering: &'a Steering,
    facts: &'a HostFacts,
}

impl Boundary<'_> {
    /// Tells whether `flow`, as its first packet travelled, may not be plaintext. Flows that do not touch a workload of
    /// this host, or do not leave it, are nobody's business.
    fn forbids(&self, flow: &FiveTuple) -> bool {
        let port = self.facts.port;
        let is_exception = flow.protocol == protocol::UDP
            && (flow.source_port == port
                || flow.destination_port == port
                || (flow.source_port, flow.destination_port) == DHCP);
        if is_exception {
            return false;
        }
        match (self.is_here(flow.source), self.is_here(flow.destination)) {
            (true, false) if self.steering.speakers.contains(&flow.source) => {
                self.steering.captures(
                    flow.source,
                    flow.destination,
                    flow.protocol,
                    flow.service_port(),
                )
            }
            (true, false) => {
                self.steering
                    .captures_stray(flow.destination, flow.protocol, flow.service_port())
            }
            (false, true) => !self.steering.accepts_plaintext(
                flow.source,
                flow.destination,
                flow.protocol,
                flow.service_port(),
            ),
            (true, true) | (false, false) => false,
        }
    }

    fn is_here(&self, address: IpAddr) -> bool {
        self.facts.underlay.contains(&address) || self.steering.local.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_crosses_the_boundary_in_the_wrong_form_is_forbidden() {
        let [here, peer, outside] =
            ["10.0.0.1", "10.0.0.2", "192.0.2.1"].map(|text| text.parse().unwrap());
        let mut steering = Steering::default();
        steering.local.insert(here);
        steering.speakers.insert(here);
        steering.must.insert((here, peer, protocol::TCP, 80));
        steering.strict_all.insert(here);
        steering
            .permissive_port
            .insert((here, protocol::TCP, 8_080));
        steering.exempt.insert((protocol::TCP, 22));
        let facts = HostFacts {
            underlay: [here, "10.0.0.9".parse().unwrap()].into(),
            port: 15_008,
            ..HostFacts::default()
        };
        let boundary = Boundary {
            steering: &steering,
            facts: &facts,
        };
        let forbids = |protocol, from: (IpAddr, u16), to: (IpAddr, u16)| {
            boundary.forbids(&FiveTuple {
                protocol,
                source: from.0,
                source_port: from.1,
                destination: to.0,
                destination_port: to.1,
            })
        };
        let (tcp, udp, icmp) = (protocol::TCP, protocol::UDP, protocol::ICMP);
        // own flows: what must be in the tunnel, and nothing else
        assert!(forbids(tcp, (here, 40_000), (peer, 80)));
        assert!(!forbids(tcp, (here, 40_000), (peer, 81)));
        assert!(!forbids(udp, (here, 40_000), (outside, 53)));
        assert!(!forbids(
            tcp,
            (here, 40_000),
            ("10.0.0.9".parse().unwrap(), 80)
        ));
        // others' flows: what STRICT refuses
        assert!(forbids(tcp, (outside, 40_000), (here, 443)));
        assert!(forbids(udp, (outside, 53), (here, 53)));
        assert!(forbids(icmp, (outside, 0), (here, 0)));
        assert!(!forbids(tcp, (outside, 40_000), (here, 8_080)));
        assert!(!forbids(tcp, (outside, 40_000), (here, 22)));
        // the tunnel itself and DHCP
        assert!(!forbids(udp, (peer, 15_008), (here, 15_008)));
        assert!(!forbids(udp, (outside, 67), (here, 68)));
        // what is not of this host
        assert!(!forbids(tcp, (outside, 40_000), (peer, 80)));
        steering.strict_all.clear();
        let net = "192.0.2.0/24".parse().unwrap();
        steering.refuse_port.insert((net, here, 9_000, 9_999));
        steering.strict_port.insert((here, tcp, 443));
        let boundary = Boundary {
            steering: &steering,
            facts: &facts,
        };
        for (port, forbidden) in [(443, true), (444, false), (9_443, true)] {
            let flow = FiveTuple {
                protocol: tcp,
                source: outside,
                source_port: 40_000,
                destination: here,
                destination_port: port,
            };
            assert_eq!(boundary.forbids(&flow), forbidden);
        }
    }
}
