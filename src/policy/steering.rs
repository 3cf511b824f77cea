//! What the kernel must do for the compiled policy: the elements of the nft sets (ruleset.md). A pure value; `host`
//! renders it.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

/// (source, destination, protocol, destination port).
pub type PortRule = (IpAddr, IpAddr, u8, u16);

/// The elements of every set.
///
/// A packet from a local workload is looked up in this order, and the first hit decides: `must`, `plain`, `must_net`,
/// `plain_net`, `must_all`, `must_all_net`. No two elements of one network set overlap, and none of `must_net` overlaps
/// one of `plain_net`. What is in none of them is plaintext.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
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
    /// Local address whose every port takes only tunnel traffic.
    pub strict_all: BTreeSet<IpAddr>,
    /// Local address, protocol, port: tunnel only.
    pub strict_port: BTreeSet<(IpAddr, u8, u16)>,
    /// Exceptions from `strict_all`.
    pub permissive_port: BTreeSet<(IpAddr, u8, u16)>,
    /// Addresses of remote mesh workloads.
    pub peers: BTreeSet<IpAddr>,
    /// Local ports that accept plaintext whatever policy says (protocol, port).
    pub exempt: BTreeSet<(u8, u16)>,
    /// Addresses of local workloads (those captured and spoken for).
    pub local: BTreeSet<IpAddr>,
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
}
