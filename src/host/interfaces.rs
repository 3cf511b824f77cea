//! Reads interfaces and their addresses; needs no right.

use std::{collections::BTreeSet, net::IpAddr};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
};

use crate::host::{HostError, netlink};

/// Tells whether there is an interface of this name.
pub(in crate::host) fn exists(name: &str) -> Result<bool, HostError> {
    Ok(links()?.iter().any(|link| link.name == name))
}

/// The number of the interface of this name.
pub(in crate::host) fn index(name: &str) -> Option<u32> {
    let links = links().ok()?;
    links
        .iter()
        .find(|link| link.name == name)
        .map(|link| link.index)
}

/// Every address except the TUN's, loopback and link-local.
pub(in crate::host) fn addresses(tun_name: &str) -> Result<BTreeSet<IpAddr>, HostError> {
    let links = links()?;
    let tun = links
        .iter()
        .find(|link| link.name == tun_name)
        .map(|link| link.index);
    let mut addresses = BTreeSet::new();
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    read("list the addresses", request, |message| {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && Some(message.header.index) != tun
            && let Some(address) = own_address(&message.attributes)
            && !is_confined(address)
        {
            addresses.insert(address);
        }
    })?;
    Ok(addresses)
}

/// The smallest MTU of the interfaces that are up, without loopback and the TUN. Where none is, that of the Ethernet links:
/// one of them will be, and a daemon that is started meanwhile should not have to be started again.
pub(in crate::host) fn smallest_mtu(tun_name: &str) -> Result<u16, HostError> {
    let links = links()?;
    let smallest = |is_counted: fn(&Link) -> bool| {
        let counted = links.iter().filter(|link| {
            !link.flags.contains(LinkFlags::Loopback) && link.name != tun_name && is_counted(link)
        });
        counted
            .map(|link| u16::try_from(link.mtu).unwrap_or(u16::MAX))
            .min()
    };
    smallest(|link| link.flags.contains(LinkFlags::Up))
        .or_else(|| smallest(|link| link.is_ethernet))
        .ok_or(HostError::NoUnderlay)
}

struct Link {
    index: u32,
    name: String,
    flags: LinkFlags,
    is_ethernet: bool,
    mtu: u32,
}

fn links() -> Result<Vec<Link>, HostError> {
    let mut links = Vec::new();
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    read("list the interfaces", request, |message| {
        let RouteNetlinkMessage::NewLink(message) = message else {
            return;
        };
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            flags: message.header.flags,
            is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            mtu: u32::MAX,
        };
        for attribute in message.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                link.name = name;
            } else if let LinkAttribute::Mtu(mtu) = attribute {
                link.mtu = mtu;
            }
        }
        links.push(link);
    })?;
    Ok(links)
}

fn read(
    operation: &'static str,
    request: RouteNetlinkMessage,
    mut take: impl FnMut(RouteNetlinkMessage),
) -> Result<(), HostError> {
    let take = |message| {
        take(message);
        true
    };
    netlink::dump(libc::NETLINK_ROUTE, request, take)
        .map_err(|source| HostError::Netlink { operation, source })
}

/// IFA_LOCAL where it is given: on point-to-point links IFA_ADDRESS is the other end.
fn own_address(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let mut own = None;
    for attribute in attributes {
        if let AddressAttribute::Local(address) = attribute {
            return Some(*address);
        } else if let AddressAttribute::Address(address) = attribute {
            own = Some(*address);
        }
    }
    own
}

/// Loopback and link-local addresses mean something else on every host.
fn is_confined(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    }
}
