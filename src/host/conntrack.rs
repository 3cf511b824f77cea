//! Conntrack entries by netlink: what a restarted daemon knows of the flows it carried, and the plaintext flows that a
//! change of policy ends.

use std::{collections::BTreeSet, net::IpAddr};

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{
        ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Tuple,
    },
};

use crate::{
    host::{HostError, HostSettings, netlink},
    wire::{FiveTuple, flow::protocol},
};

/// Entries read at most; a table that holds more loses the rest, whose flows are then opened anew by their next packet.
pub const MAX_FLOWS: usize = 65_536;
/// Attribute that makes the kernel compare marks only in these bits (linux/netfilter/nfnetlink_conntrack.h).
pub(in crate::host) const CTA_MARK_MASK: u16 = 21;
/// Attributes that tell entries with the same tuple apart: which one, and in which zone.
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

/// States of TCP connections that nothing depends on: the opening segment was not answered, so it will come again; both ends
/// are done (linux/netfilter/nf_conntrack_tcp.h: SYN_SENT, TIME_WAIT, CLOSE). A busy host has more of these than of all
/// others.
const OVER: [u8; 3] = [1, 7, 8];

/// What conntrack knows of flows in tunnels.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TunnelFlows {
    /// Original directions, in order, each once.
    pub flows: Vec<FiveTuple>,
    /// `false` when reading ended at [`MAX_FLOWS`]: there may be more.
    pub complete: bool,
}

/// The original direction of every entry whose conntrack mark is the tunnel's, both families, each once, at most
/// [`MAX_FLOWS`]; TCP connections that are over, or were not answered yet, are left out. Ports are 0 for protocols without ports. Needs CAP_NET_ADMIN.
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
            && !is_over(attributes)
        {
            flows.insert(flow);
        }
        flows.len() < MAX_FLOWS
    };
    netlink::dump(libc::NETLINK_NETFILTER, request, take).map_err(failed(READ))?;
    Ok(TunnelFlows {
        complete: flows.len() < MAX_FLOWS,
        flows: flows.into_iter().collect(),
    })
}

/// A flow that no tunnel carries.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PlainFlow {
    /// Its original direction. Ports are 0 for protocols without ports.
    pub tuple: FiveTuple,
    /// What names its entry.
    name: Vec<ConntrackAttribute>,
}

/// The flows without the tunnel's mark that `is_wanted` asks for, at most [`MAX_FLOWS`]. Also those that conntrack takes
/// for closed: a reset that it saw may have been refused after that. Needs CAP_NET_ADMIN.
pub fn plain_flows(
    settings: &HostSettings,
    is_wanted: impl Fn(&FiveTuple) -> bool,
) -> Result<Vec<PlainFlow>, HostError> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let request = NetfilterMessage::new(header, ConntrackMessage::Get(Vec::new()));
    let mut flows = Vec::new();
    let take = |message: NetfilterMessage| {
        if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner
            && let Some((mark, tuple)) = entry(&attributes)
            && mark & settings.mark_mask != settings.tunnel_mark
            && is_wanted(&tuple)
        {
            let name = attributes.into_iter().filter(names).collect();
            flows.push(PlainFlow { tuple, name });
        }
        flows.len() < MAX_FLOWS
    };
    netlink::dump(libc::NETLINK_NETFILTER, request, take).map_err(failed(READ))?;
    Ok(flows)
}

/// Deletes the entries of `flows`: whatever comes next of them is a flow of its own. One that is gone is no error.
/// Needs CAP_NET_ADMIN.
pub fn delete(flows: &[PlainFlow]) -> Result<(), HostError> {
    let operation = "delete conntrack entries";
    let mut requests =
        netlink::Requests::new(libc::NETLINK_NETFILTER).map_err(failed(operation))?;
    for flow in flows {
        let family = if flow.tuple.source.is_ipv4() {
            NetfilterProtoFamily::IPv4
        } else {
            NetfilterProtoFamily::IPv6
        };
        let message = ConntrackMessage::Delete(flow.name.clone());
        let header = NetfilterHeader::new(family, 0, 0);
        match requests.act(NetfilterMessage::new(header, message)) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            result => result.map_err(failed(operation))?,
        }
    }
    Ok(())
}

const READ: &str = "read the conntrack entries";

fn failed(operation: &'static str) -> impl FnOnce(std::io::Error) -> HostError {
    move |source| match source.raw_os_error() {
        Some(libc::EPERM) => HostError::Permission { operation },
        _ => HostError::Netlink { operation, source },
    }
}

/// What the kernel needs to find an entry again and no other that has taken its place.
fn names(attribute: &ConntrackAttribute) -> bool {
    if let ConntrackAttribute::Other(other) = attribute {
        matches!(other.kind(), CTA_ID | CTA_ZONE)
    } else {
        matches!(attribute, ConntrackAttribute::CtaTupleOrig(_))
    }
}

fn is_over(attributes: &[ConntrackAttribute]) -> bool {
    let states = attributes.iter().filter_map(|attribute| {
        let ConntrackAttribute::CtaProtoInfo(parts) = attribute else {
            return None;
        };
        parts.iter().find_map(tcp_state)
    });
    states.into_iter().any(|state| OVER.contains(&state))
}

fn tcp_state(part: &ProtoInfo) -> Option<u8> {
    let ProtoInfo::TCP(parts) = part else {
        return None;
    };
    parts.iter().find_map(|part| {
        if let ProtoInfoTCP::State(state) = part {
            Some(*state)
        } else {
            None
        }
    })
}

/// Mark and original tuple of one entry. The kernel leaves a mark of 0 out.
fn entry(attributes: &[ConntrackAttribute]) -> Option<(u32, FiveTuple)> {
    let mark = attributes.iter().find_map(|attribute| {
        if let ConntrackAttribute::CtaMark(mark) = attribute {
            Some(*mark)
        } else {
            None
        }
    });
    let tuple = attributes.iter().find_map(|attribute| {
        if let ConntrackAttribute::CtaTupleOrig(tuple) = attribute {
            Some(tuple)
        } else {
            None
        }
    })?;
    Some((mark.unwrap_or(0), five_tuple(tuple)?))
}

pub(in crate::host) fn five_tuple(tuple: &[Tuple]) -> Option<FiveTuple> {
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
