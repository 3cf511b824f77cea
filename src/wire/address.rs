//! Addresses that never cross a tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Tells whether the address is none that a workload can have: unspecified and `0/8`, loopback, link-local, multicast,
/// broadcast and the rest of `240/4`; of IPv6 also the IPv4-compatible and IPv4-mapped ones (RFC 6890).
pub const fn is_martian(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_martian_v4(address),
        IpAddr::V6(address) => is_martian_v6(address),
    }
}

const fn is_martian_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 0 || first == 127 || (first == 169 && second == 254) || first >= 224
}

const fn is_martian_v6(address: Ipv6Addr) -> bool {
    let compatible = matches!(address.segments(), [0, 0, 0, 0, 0, 0 | 0xffff, _, _]);
    compatible || address.is_unicast_link_local() || address.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn martians_are_known() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::10.0.0.1",
            "::ffff:10.0.0.1",
            "fe80::1",
            "febf::1",
            "ff02::1",
        ] {
            assert!(is_martian(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn addresses_of_workloads_are_no_martians() {
        for text in [
            "1.0.0.1",
            "10.0.0.1",
            "100.64.0.1",
            "126.0.0.1",
            "128.0.0.1",
            "169.253.0.1",
            "169.255.0.1",
            "172.16.0.1",
            "192.0.2.1",
            "192.168.0.1",
            "223.255.255.255",
            "2001:db8::1",
            "fd00::1",
            "fec0::1",
            "64:ff9b::1.2.3.4",
            "::1:0:0:0",
        ] {
            assert!(!is_martian(text.parse().unwrap()), "{text}");
        }
    }
}
