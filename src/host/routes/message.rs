//! Our rules and routes as values, to and from netlink messages: recognising exactly what we would have made.

use std::fmt;

use rtnetlink::packet_route::{
    route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use crate::host::routes::{Family, LAST_METRIC, number};

/// A rule that looks at the mark and nothing else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct RuleSpec {
    pub(super) priority: u32,
    pub(super) mark: u32,
    pub(super) mask: u32,
    pub(super) action: RuleAction,
    /// 0 where the action is not a lookup.
    pub(super) table: u32,
    pub(super) protocol: RouteProtocol,
}

impl RuleSpec {
    /// `None` for a rule that looks at anything but the mark.
    pub(super) fn read(message: &RuleMessage) -> Option<Self> {
        let header = &message.header;
        let inverted = header.flags.contains(RuleFlags::Invert);
        if inverted || header.src_len != 0 || header.dst_len != 0 || header.tos != 0 {
            return None;
        }
        let (mark, mask) = mark(message);
        let mut rule = Self {
            priority: priority(message),
            mark,
            mask,
            action: header.action,
            table: header.table.into(),
            protocol: RouteProtocol::Unspec,
        };
        for attribute in &message.attributes {
            if let RuleAttribute::Table(table) = attribute {
                rule.table = *table;
            } else if let RuleAttribute::Protocol(protocol) = attribute {
                rule.protocol = *protocol;
            } else if !is_plain(attribute) {
                return None;
            }
        }
        Some(rule)
    }

    /// The message that adds or deletes it.
    pub(super) fn message(&self, family: Family) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = number(family);
        message.header.action = self.action;
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
            RuleAttribute::Protocol(self.protocol),
        ];
        if self.action == RuleAction::ToTable {
            message.attributes.push(RuleAttribute::Table(self.table));
        }
        message
    }
}

impl fmt::Display for RuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            priority,
            mark,
            mask,
            table,
            ..
        } = self;
        write!(f, "{priority}: fwmark {mark:#x}/{mask:#x} ")?;
        match table {
            0 => f.write_str("unreachable"),
            table => write!(f, "lookup {table}"),
        }
    }
}

/// One of our two default routes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum RouteSpec {
    /// To the device with this index.
    Device(u32),
    /// To nowhere, with the last metric.
    Unreachable,
}

impl RouteSpec {
    /// `None` for a route that we would not have made.
    pub(super) fn read(message: &RouteMessage, tun: Option<u32>) -> Option<Self> {
        let header = &message.header;
        if header.destination_prefix_length != 0 || header.protocol != RouteProtocol::Kernel {
            return None;
        }
        let (mut device, mut metric) = (None, 0);
        for attribute in &message.attributes {
            if let RouteAttribute::Oif(index) = attribute {
                device = Some(*index);
            } else if let RouteAttribute::Priority(priority) = attribute {
                metric = *priority;
            } else if matches!(
                attribute,
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_)
            ) {
                return None;
            }
        }
        if header.kind == RouteType::Unreachable && metric == LAST_METRIC {
            Some(Self::Unreachable)
        } else if header.kind == RouteType::Unicast && device.is_some() && device == tun {
            device.map(Self::Device)
        } else {
            None
        }
    }

    /// The message that adds or deletes it.
    pub(super) fn message(&self, family: Family, table: u32) -> RouteMessage {
        let mut message = in_table(family, table);
        match self {
            Self::Device(index) => {
                message.header.kind = RouteType::Unicast;
                message.header.scope = RouteScope::Link;
                message.attributes.push(RouteAttribute::Oif(*index));
            }
            Self::Unreachable => {
                message.header.kind = RouteType::Unreachable;
                message
                    .attributes
                    .push(RouteAttribute::Priority(LAST_METRIC));
            }
        }
        message
    }
}

impl fmt::Display for RouteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device(_) => "default over the TUN",
            Self::Unreachable => "unreachable default",
        })
    }
}

/// A default route in a table, protocol kernel.
pub(super) fn in_table(family: Family, table: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = number(family);
    message.header.protocol = RouteProtocol::Kernel;
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.push(RouteAttribute::Table(table));
    message
}

/// The table a route stands in.
pub(in crate::host) fn table(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Table(table) = attribute {
            Some(*table)
        } else {
            None
        }
    });
    attribute.unwrap_or_else(|| message.header.table.into())
}

/// A rule's priority; the kernel leaves 0 out.
pub(super) fn priority(message: &RuleMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|attribute| {
        if let RuleAttribute::Priority(priority) = attribute {
            Some(*priority)
        } else {
            None
        }
    });
    attribute.unwrap_or(0)
}

/// Mark and mask that a rule looks at; both 0 where it does not.
pub(super) fn mark(message: &RuleMessage) -> (u32, u32) {
    let (mut mark, mut mask) = (None, None);
    for attribute in &message.attributes {
        if let RuleAttribute::FwMark(value) = attribute {
            mark = Some(*value);
        } else if let RuleAttribute::FwMask(value) = attribute {
            mask = Some(*value);
        }
    }
    let mask = mask.unwrap_or_else(|| if mark.is_some() { u32::MAX } else { 0 });
    (mark.unwrap_or(0), mask)
}

/// What the kernel reports of a rule that has no selector but the mark.
fn is_plain(attribute: &RuleAttribute) -> bool {
    matches!(
        attribute,
        RuleAttribute::Priority(_)
            | RuleAttribute::FwMark(_)
            | RuleAttribute::FwMask(_)
            // -1: nothing is suppressed
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> RuleSpec {
        RuleSpec {
            priority: 300,
            mark: 0x1000_0000,
            mask: 0x3000_0000,
            action: RuleAction::ToTable,
            table: 7700,
            protocol: RouteProtocol::Kernel,
        }
    }

    #[test]
    fn a_rule_is_read_back_from_its_message() {
        let mut message = rule().message(Family::V6);
        assert_eq!(RuleSpec::read(&message), Some(rule()));
        message
            .attributes
            .push(RuleAttribute::SuppressPrefixLen(u32::MAX));
        assert_eq!(RuleSpec::read(&message), Some(rule()));
    }

    #[test]
    fn a_rule_that_looks_at_more_is_not_ours() {
        for attribute in [
            RuleAttribute::Iifname("eth0".into()),
            RuleAttribute::Source([10, 0, 0, 1].into()),
            RuleAttribute::SuppressPrefixLen(0),
            RuleAttribute::TunId(1),
        ] {
            let mut message = rule().message(Family::V4);
            message.attributes.push(attribute);
            assert_eq!(RuleSpec::read(&message), None);
        }
        let mut message = rule().message(Family::V4);
        message.header.flags = RuleFlags::Invert;
        assert_eq!(RuleSpec::read(&message), None);
    }

    #[test]
    fn a_mark_without_mask_is_the_whole_mark() {
        let mut message = RuleMessage::default();
        assert_eq!(mark(&message), (0, 0));
        message.attributes.push(RuleAttribute::FwMark(1));
        assert_eq!(mark(&message), (1, u32::MAX));
    }

    #[test]
    fn only_our_own_default_routes_are_recognised() {
        let (tun, table) = (7, 7700);
        for route in [RouteSpec::Device(tun), RouteSpec::Unreachable] {
            let message = route.message(Family::V4, table);
            assert_eq!(RouteSpec::read(&message, Some(tun)), Some(route));
            let mut other = message.clone();
            other.header.protocol = RouteProtocol::Boot;
            assert_eq!(RouteSpec::read(&other, Some(tun)), None);
            let mut other = message;
            other.header.destination_prefix_length = 8;
            assert_eq!(RouteSpec::read(&other, Some(tun)), None);
        }
        let message = RouteSpec::Device(tun).message(Family::V4, table);
        assert_eq!(RouteSpec::read(&message, Some(8)), None);
        assert_eq!(RouteSpec::read(&message, None), None);
    }
}
