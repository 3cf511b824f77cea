//! The little of rtnetlink that a TUN needs before anything runs: what an interface is, whose it is, and its settings.
//!
//! An interface of ours carries the alias [`ALIAS`] (`ip link` shows it), set before the device is made persistent:
//! after a crash no device of ours is left without it, and no other program's device has it.

use std::{fmt, io};

use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
    },
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoData, LinkAttribute, LinkInfo, LinkMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// The alias of an interface that identun made.
pub(super) const ALIAS: &str = "identun";

/// Of linux/if_link.h; the kernel tells it of devices that may have several queues.
const IFLA_TUN_NUM_QUEUES: u16 = 8;

/// An interface that exists.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Link {
    /// `tun`, `veth`, ...; `None` for hardware.
    pub(super) kind: Option<String>,
    /// It carries our alias.
    pub(super) is_ours: bool,
}

impl Link {
    pub(super) fn is_tun(&self) -> bool {
        self.kind.as_deref() == Some("tun")
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a {} interface",
            self.kind.as_deref().unwrap_or("hardware")
        )
    }
}

/// What to set on an interface of ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkSettings {
    /// Bytes of the largest IP packet.
    pub(super) mtu: u16,
    /// Packets that may wait for a reader (txqueuelen).
    pub(super) queue_length: u32,
}

/// Looks an interface up by name; `None` when there is none.
pub(super) fn find(name: &str) -> io::Result<Option<Link>> {
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    match exchange(RouteNetlinkMessage::GetLink(request), NLM_F_REQUEST) {
        Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(read_link(&link))),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's answer is not a link",
        )),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How many queues processes are attached to; `None` where the kernel does not tell.
pub(super) fn queues(name: &str) -> io::Result<Option<u32>> {
    let mut request = LinkMessage::default();
    request
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    let answer = exchange(RouteNetlinkMessage::GetLink(request), NLM_F_REQUEST)?;
    let Some(RouteNetlinkMessage::NewLink(link)) = answer else {
        return Ok(None);
    };
    let infos = link.attributes.iter().filter_map(|attribute| {
        let LinkAttribute::LinkInfo(infos) = attribute else {
            return None;
        };
        Some(infos)
    });
    let data = infos.flatten().find_map(|info| {
        let LinkInfo::Data(InfoData::Tun(data)) = info else {
            return None;
        };
        Some(data)
    });
    Ok(data.and_then(|data| {
        let attribute = data
            .iter()
            .find(|data| data.kind() == IFLA_TUN_NUM_QUEUES)?;
        let mut count = [0; size_of::<u32>()];
        (attribute.value_len() == count.len()).then(|| {
            attribute.emit_value(&mut count);
            u32::from_ne_bytes(count)
        })
    }))
}

/// Marks the interface as ours and sets its MTU and queue length, all or nothing.
pub(super) fn configure(name: &str, settings: LinkSettings) -> io::Result<()> {
    let mut request = LinkMessage::default();
    request.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::IfAlias(ALIAS.to_owned()),
        LinkAttribute::Mtu(settings.mtu.into()),
        LinkAttribute::TxQueueLen(settings.queue_length),
    ];
    exchange(
        RouteNetlinkMessage::SetLink(request),
        NLM_F_REQUEST | NLM_F_ACK,
    )
    .map(drop)
}

fn read_link(link: &LinkMessage) -> Link {
    let mut found = Link {
        kind: None,
        is_ours: false,
    };
    for attribute in &link.attributes {
        if let LinkAttribute::IfAlias(alias) = attribute {
            found.is_ours = alias == ALIAS;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            found.kind = infos.iter().find_map(|info| {
                let LinkInfo::Kind(kind) = info else {
                    return None;
                };
                Some(kind.to_string())
            });
        }
    }
    found
}

/// Sends one request and returns the message that answers it; `None` for a bare acknowledgement.
fn exchange(message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = 1;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let payload = NetlinkMessage::deserialize(&answer)
        .map_err(invalid)?
        .payload;
    if let NetlinkPayload::Error(error) = &payload
        && error.code.is_some()
    {
        return Err(error.to_io());
    }
    if let NetlinkPayload::InnerMessage(message) = payload {
        Ok(Some(message))
    } else {
        Ok(None)
    }
}
