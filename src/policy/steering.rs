//! What the kernel must do for the compiled policy: the elements of the nft sets (ruleset.md). A pure value; `host`
//! renders it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;

/// Stands in for every source that is this host's and in no `speakers`, in sets where a source stands.
pub const ANY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
];

/// (source, destination, protocol, destination port).
pub type PortRule = (IpAddr, IpAddr, u8, u16);

/// The elements of every set.
///
/// In `must`, `must_all`, `plain` and their networks [`ANY`] may stand for a source.
///
/// A packet from a local workload is looked up in this order, and the first hit decides: `must`, `plain`, `must_net`,
/// `plain_net`, `must_all`, `must_all_net`. No two elements of one network set overlap, and none of `must_net` overlaps
/// one of `plain_net`. What is in none of them is plaintext. What a later set says just as well is in no earlier one.
///
/// A plaintext packet to a local workload, unless it belongs to a flow that the workload opened, is looked up in this
/// order: `exempt` takes it, `refuse_port`, `refuse_portless` and `strict_port` refuse it, and so does `strict_all`
/// but for `permissive_port`.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Steering {
    /// Local workload source, destination, protocol (6, 17, 132), port: into the tunnel.
    pub must: BTreeSet<PortRule>,
    /// Local workload source, destination: every protocol and port, except those in `plain`.
    pub must_all: BTreeSet<(IpAddr, IpAddr)>,
    /// As `must` for destination networks that are not one address.
    pub must_net: BTreeSet<(IpAddr, IpNetwork, u8, u16)>,
    /// As `must_all` for destination networks.
    pub must_all_net: BTreeSet<(IpAddr, IpNetwork)>,
    /// Exceptions from `must_net`, `must_all` and `must_all_net`: plaintext by policy.
    pub plain: BTreeSet<PortRule>,
    /// As `plain` for destination networks: exceptions from `must_all_net`.
    pub plain_net: BTreeSet<(IpAddr, IpNetwork, u8, u16)>,
    /// Local address that takes only tunnel traffic, whoever sends to it.
    pub strict_all: BTreeSet<IpAddr>,
    /// Local address, protocol, port: tunnel only, whoever sends to it.
    pub strict_port: BTreeSet<(IpAddr, u8, u16)>,
    /// Exceptions from `strict_all`.
    pub permissive_port: BTreeSet<(IpAddr, u8, u16)>,
    /// Source network, local address, first and last port of TCP, UDP and SCTP: no plaintext. No two overlap.
    pub refuse_port: BTreeSet<(IpNetwork, IpAddr, u16, u16)>,
    /// Source network, local address: no plaintext without ports. No two overlap.
    pub refuse_portless: BTreeSet<(IpNetwork, IpAddr)>,
    /// Addresses of mesh workloads.
    pub peers: BTreeSet<IpAddr>,
    /// Local ports that accept plaintext whatever policy says (protocol, port).
    pub exempt: BTreeSet<(u8, u16)>,
    /// Addresses of local workloads (those captured and spoken for).
    pub local: BTreeSet<IpAddr>,
    /// Addresses that packets are captured from: those of local workloads, and those of workloads that this host has the
    /// key of. What the host sends from another address is looked up under [`ANY`] when it begins a flow.
    pub speakers: BTreeSet<IpAddr>,
}

impl Steering {
    /// The sets' own answer for a packet, in the kernel's lookup order: `true` sends it into the tunnel. `port` is `None`
    /// for a packet without ports.
    pub fn captures(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        port: Option<u16>,
    ) -> bool {
        if let Some(port) = port {
            let exact = (source, destination, protocol, port);
            let in_net = |set: &BTreeSet<(IpAddr, IpNetwork, u8, u16)>| {
                set.iter().any(|&(from, network, number, to)| {
                    (from, number, to) == (source, protocol, port) && network.contains(destination)
                })
            };
            if self.must.contains(&exact) {
                return true;
            }
            if self.plain.contains(&exact) {
                return false;
            }
            if in_net(&self.must_net) {
                return true;
            }
            if in_net(&self.plain_net) {
                return false;
            }
        }
        let mut networks = self.must_all_net.iter();
        self.must_all.contains(&(source, destination))
            || networks.any(|(from, network)| *from == source && network.contains(destination))
    }

    /// The same for a packet that begins a flow and comes from an own address that is not among `speakers`.
    pub fn captures_stray(&self, destination: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        let like = |any: &IpAddr| any.is_ipv4() == destination.is_ipv4();
        let mut any = ANY.into_iter().filter(like);
        any.any(|any| self.captures(any, destination, protocol, port))
    }

    /// The sets' own answer for a plaintext packet from elsewhere to a local workload, in the kernel's lookup order:
    /// `false` refuses it, if it does not belong to a flow that the workload opened.
    pub fn accepts_plaintext(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        port: Option<u16>,
    ) -> bool {
        let Some(port) = port else {
            let mut refused = self.refuse_portless.iter();
            return !refused.any(|(from, to)| *to == destination && from.contains(source))
                && !self.strict_all.contains(&destination);
        };
        let exact = (destination, protocol, port);
        let mut refused = self.refuse_port.iter();
        if self.exempt.contains(&(protocol, port)) {
            true
        } else if refused.any(|(from, to, first, last)| {
            *to == destination && (*first..=*last).contains(&port) && from.contains(source)
        }) || self.strict_port.contains(&exact)
        {
            false
        } else {
            !self.strict_all.contains(&destination) || self.permissive_port.contains(&exact)
        }
    }

    /// What `other` does not hold just so: of the sets of networks, which are rendered as a whole, those that differ.
    /// Where little differs, two such remainders are much quicker to compare in the kernel's words than the wholes.
    #[must_use]
    pub fn beyond(&self, other: &Self) -> Self {
        Self {
            must: only(&self.must, &other.must),
            must_all: only(&self.must_all, &other.must_all),
            must_net: whole(&self.must_net, &other.must_net),
            must_all_net: whole(&self.must_all_net, &other.must_all_net),
            plain: only(&self.plain, &other.plain),
            plain_net: whole(&self.plain_net, &other.plain_net),
            strict_all: only(&self.strict_all, &other.strict_all),
            strict_port: only(&self.strict_port, &other.strict_port),
            permissive_port: only(&self.permissive_port, &other.permissive_port),
            refuse_port: whole(&self.refuse_port, &other.refuse_port),
            refuse_portless: whole(&self.refuse_portless, &other.refuse_portless),
            peers: only(&self.peers, &other.peers),
            exempt: only(&self.exempt, &other.exempt),
            local: only(&self.local, &other.local),
            speakers: only(&self.speakers, &other.speakers),
        }
    }
}

fn only<T: Copy + Ord>(set: &BTreeSet<T>, other: &BTreeSet<T>) -> BTreeSet<T> {
    set.difference(other).copied().collect()
}

fn whole<T: Copy + Ord>(set: &BTreeSet<T>, other: &BTreeSet<T>) -> BTreeSet<T> {
    if set == other {
        BTreeSet::new()
    } else {
        set.clone()
    }
}
