//! Networks inside networks, cut into pieces that do not overlap, as the kernel's interval sets want them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// Cuts `network` into as few disjoint pieces as the `inside` ones need. `answer` tells what holds in a piece: it is
/// given the innermost network that the piece is in, and the piece. Neighbours with one answer are joined.
///
/// `inside` are parts of `network`, sorted and without host bits.
pub(super) fn tiles<A: Copy + PartialEq>(
    network: IpNetwork,
    inside: &[IpNetwork],
    mut answer: impl FnMut(IpNetwork, IpNetwork) -> A,
) -> Vec<(IpNetwork, A)> {
    let mut tiles = Vec::new();
    cut(network, network, inside, &mut answer, &mut tiles);
    tiles
}

fn cut<A: Copy + PartialEq>(
    network: IpNetwork,
    around: IpNetwork,
    inside: &[IpNetwork],
    answer: &mut impl FnMut(IpNetwork, IpNetwork) -> A,
    tiles: &mut Vec<(IpNetwork, A)>,
) {
    let (innermost, inside) = match inside.split_first() {
        Some((first, rest)) if *first == network => (network, rest),
        _ => (around, inside),
    };
    let Some([lower, upper]) = halves(network).filter(|_| !inside.is_empty()) else {
        return tiles.push((network, answer(innermost, network)));
    };
    let middle = inside.partition_point(|inner| inner.network() < upper.network());
    let (in_lower, in_upper) = inside.split_at(middle);
    let start = tiles.len();
    cut(lower, innermost, in_lower, answer, tiles);
    cut(upper, innermost, in_upper, answer, tiles);
    if let Some(&[(left, one), (right, other)]) = tiles.get(start..)
        && (left, right) == (lower, upper)
        && one == other
    {
        tiles.truncate(start);
        tiles.push((network, one));
    }
}

/// Every address of the family that `address` belongs to.
pub(super) fn family(address: IpAddr) -> IpNetwork {
    let all = match address {
        IpAddr::V4(_) => IpNetwork::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => IpNetwork::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    all.unwrap_or_else(|_| IpNetwork::from(address))
}

/// `inner` is a part of `outer`, or the same.
pub(super) fn is_inside(inner: IpNetwork, outer: IpNetwork) -> bool {
    inner.prefix() >= outer.prefix()
        && inner.is_ipv4() == outer.is_ipv4()
        && outer.contains(inner.network())
}

/// `None` for a single address.
fn halves(network: IpNetwork) -> Option<[IpNetwork; 2]> {
    let prefix = network.prefix().checked_add(1)?;
    let upper = match network.network() {
        IpAddr::V4(first) => {
            let bit = 1_u32.checked_shl(32_u32.checked_sub(prefix.into())?)?;
            IpAddr::from((u32::from(first) | bit).to_be_bytes())
        }
        IpAddr::V6(first) => {
            let bit = 1_u128.checked_shl(128_u32.checked_sub(prefix.into())?)?;
            IpAddr::from((u128::from(first) | bit).to_be_bytes())
        }
    };
    Some([
        IpNetwork::new(network.network(), prefix).ok()?,
        IpNetwork::new(upper, prefix).ok()?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    /// The pieces of `network` that are in none of `holes`.
    fn without(network: &str, holes: &[&str]) -> Vec<String> {
        let holes: Vec<_> = holes.iter().map(|hole| net(hole)).collect();
        let tiles = tiles(net(network), &holes, |innermost, _| {
            !holes.contains(&innermost)
        });
        let rest = tiles.into_iter().filter(|(_, is_outside)| *is_outside);
        rest.map(|(piece, _)| piece.to_string()).collect()
    }

    #[test]
    fn a_network_with_holes_is_cut_into_the_rest() {
        assert_eq!(without("10.0.0.0/8", &[]), ["10.0.0.0/8"]);
        assert_eq!(without("10.0.0.0/8", &["10.0.0.0/8"]), [""; 0]);
        assert_eq!(
            without("10.0.0.0/8", &["10.0.0.0/10", "10.64.0.0/10"]),
            ["10.128.0.0/9"]
        );
        assert_eq!(
            without("fd00::/126", &["fd00::2/128"]),
            ["fd00::/127", "fd00::3/128"]
        );
        assert_eq!(without("10.0.0.1/32", &[]), ["10.0.0.1/32"]);
        assert_eq!(without("::/0", &["8000::/1"]), ["::/1"]);
    }

    #[test]
    fn pieces_with_one_answer_are_joined() {
        let inside = ["10.0.0.0/24", "10.0.0.0/26", "10.0.0.64/26", "10.0.0.64/32"].map(net);
        let one = tiles(net("10.0.0.0/16"), &inside, |_, _| ());
        assert_eq!(one, [(net("10.0.0.0/16"), ())]);
        let two = tiles(net("10.0.0.0/16"), &inside, |innermost, _| {
            innermost.prefix() == 26
        });
        let within = two.iter().filter(|(_, is_within)| *is_within);
        let within: Vec<_> = within.map(|(piece, _)| piece.to_string()).collect();
        assert_eq!(within.first().unwrap(), "10.0.0.0/26");
        assert!(!within.contains(&"10.0.0.64/32".to_owned()), "{within:?}");
        assert_eq!(within.len(), 1 + 6, "{within:?}");
    }
}
