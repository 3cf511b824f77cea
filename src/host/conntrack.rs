//! Reads marked conntrack entries by netlink: what a restarted daemon knows of the flows it carried.

use std::{collections::BTreeSet, net::IpAddr};

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple},
};

use crate::{
    host::{HostError, HostSettings, netlink},
    wire::{FiveTuple, flow::protocol},
};

/// Entries read at most; a table that holds more loses the rest, whose flows are then opened anew by their next packet.
pub const MAX_FLOWS: usize = 65_536;
/// Attribute that makes the kernel compare marks only in these bits (linux/netfilter/nfnetlink_conntrack.h).
const CTA_MARK_MASK: u16 = 21;

/// What conntrack knows of flows in tunnels.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TunnelFlows {
    /// Original directions, in order, each once.
    pub flows: Vec<FiveTuple>,
    /// `false` when reading ended at [`MAX_FLOWS`]: there may be more.
    pub complete: bool,
}

/// The original direction of every entry whose conntrack mark is the tunnel's, both families, each once, at most
/// [`MAX_FLOWS`]. Ports are 0 for protocols without ports. Needs CAP_NET_ADMIN.
pub fn tunnel_flows(settings: &HostSettings) -> Result<TunnelFlows, HostError> {
    let request = NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
        ConntrackMessage::Get(vec![
            ConntrackAttribute::CtaMark(settings.tunnel_mark),
            ConntrackAttribute::Other(DefaultNla::new(
                CTA_MARK_MASK,
                settings.mark_mask.to_be_bytes().to_vec(),
            )),
        ]),
    );
    let mut flows = BTreeSet::new();
    let take = |message: NetfilterMessage| {
        if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = &message.inner
            && let Some((mark, flow)) = entry(attributes)
            // a kernel that does not know the filter sends everything
            && mark & settings.mark_mask == settings.tunnel_mark
        {
            flows.insert(flow);
        }
        flows.len() < MAX_FLOWS
    };
    let operation = "read the conntrack entries";
    netlink::dump(libc::NETLINK_NETFILTER, request, take).map_err(|source| {
        if source.raw_os_error() == Some(libc::EPERM) {
            HostError::Permission { operation }
        } else {
            HostError::Netlink { operation, source }
        }
    })?;
    Ok(TunnelFlows {
        complete: flows.len() < MAX_FLOWS,
        flows: flows.into_iter().collect(),
    })
}

/// Mark and original tuple of one entry.
fn entry(attributes: &[ConntrackAttribute]) -> Option<(u32, FiveTuple)> {
    let mark = attributes.iter().find_map(|attribute| {
        if let ConntrackAttribute::CtaMark(mark) = attribute {
            Some(*mark)
        } else {
            None
        }
    })?;
    let tuple = attributes.iter().find_map(|attribute| {
        if let ConntrackAttribute::CtaTupleOrig(tuple) = attribute {
            Some(tuple)
        } else {
            None
        }
    })?;
    Some((mark, five_tuple(tuple)?))
}

fn five_tuple(tuple: &[Tuple]) -> Option<FiveTuple> {
    let (mut source, mut destination): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    let (mut protocol, mut source_port, mut destination_port) = (None, 0, 0);
    for part in tuple {
        if let Tuple::Ip(parts) = part {
            for part in parts {
                if let IPTuple::SourceAddress(address) = part {
                    source = Some(*address);
                } else if let IPTuple::DestinationAddress(address) = part {
                    destination = Some(*address);
                }
            }
        } else if let Tuple::Proto(parts) = part {
            for part in parts {
                if let ProtoTuple::Protocol(number) = part {
                    protocol = Some(u8::from(*number));
                } else if let ProtoTuple::SourcePort(port) = part {
                    source_port = *port;
                } else if let ProtoTuple::DestinationPort(port) = part {
                    destination_port = *port;
                }
            }
        }
    }
    let protocol = protocol?;
    // GRE has keys where others have ports
    if !protocol::has_ports(protocol) {
        (source_port, destination_port) = (0, 0);
    }
    Some(FiveTuple {
        protocol,
        source: source?,
        source_port,
        destination: destination?,
        destination_port,
    })
}
