//! Kernel settings of the TUN; no other device's and no global setting is ever written. They vanish with the device.
//! They are set by netlink, which needs no writable /proc/sys.

use std::{fs, path::Path};

use netlink_packet_core::DefaultNla;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute,
};

/// IFLA_INET_CONF with NLA_F_NESTED (linux/if_link.h)
const INET_CONF: u16 = 1 | 0x8000;
/// IPV4_DEVCONF_RP_FILTER (linux/ip.h)
const RP_FILTER: u16 = 8;

/// What the TUN needs. `rp_filter` 2 (loose): inner sources are not routed over the TUN, and the kernel takes the larger
/// of the device's and the global value, so this also undoes a global strict mode. `addr_gen_mode` 1: no link-local
/// address, hence no router solicitations into the tunnel; to be set before the device is up.
pub(in crate::host) fn of_tun() -> LinkAttribute {
    // one attribute: its length, its type, its value
    let mut loose = Vec::from(8_u16.to_ne_bytes());
    loose.extend(RP_FILTER.to_ne_bytes());
    loose.extend(2_u32.to_ne_bytes());
    let mut settings = vec![AfSpecUnspec::Inet(vec![AfSpecInet::Other(
        DefaultNla::new(INET_CONF, loose),
    )])];
    if has_ipv6() {
        settings.push(AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )]));
    }
    LinkAttribute::AfSpecUnspec(settings)
}

/// Tells whether the kernel has IPv6 at all.
pub(in crate::host) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").is_dir()
}

/// Tells whether IPv6 is switched off on this device: then no route can lead there.
pub(in crate::host) fn ipv6_disabled(tun_name: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{tun_name}/disable_ipv6");
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}
