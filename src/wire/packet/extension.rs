//! The chain of IPv6 extension headers (RFC 8200 §4), walked within bounds.

use super::{FragmentInfo, IPV6_HEADER, Network};
use crate::wire::field::{get16, get32};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// How many extension headers a packet may have.
const MAX_HEADERS: usize = 8;
/// Option type of the jumbo payload (RFC 2675 §2).
const JUMBO_PAYLOAD: u8 = 0xc2;

/// Finds upper layer and fragment facts of an IPv6 packet; the bytes may end anywhere after the last extension header.
///
/// Refused: more than eight headers, hop-by-hop options that are not first, routing headers of type 0 or with segments
/// left (RFC 5095), jumbo payloads, two fragment headers.
pub(super) fn walk(bytes: &[u8]) -> Option<Network> {
    let mut protocol = *bytes.get(6)?;
    let mut at = IPV6_HEADER;
    let mut fragment = None;
    let mut has_fragment_header = false;
    for count in 0..=MAX_HEADERS {
        let len = match protocol {
            HOP_BY_HOP if count > 0 => return None,
            FRAGMENT if has_fragment_header => return None,
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                8 * (usize::from(*bytes.get(at + 1)?) + 1)
            }
            AUTHENTICATION => 4 * (usize::from(*bytes.get(at + 1)?) + 2),
            FRAGMENT => 8,
            _ => {
                return Some(Network {
                    transport: at,
                    protocol,
                    dont_fragment: true,
                    fragment,
                });
            }
        };
        let header = bytes.get(at..)?.get(..len)?;
        match protocol {
            HOP_BY_HOP => check_options(header.get(2..)?)?,
            ROUTING => check_routing(header)?,
            FRAGMENT => {
                has_fragment_header = true;
                fragment = fragment_info(header)?;
            }
            _ => {}
        }
        protocol = *header.first()?;
        at += len;
        if fragment.is_some_and(|fragment| fragment.offset > 0) {
            return Some(Network {
                transport: at,
                protocol,
                dont_fragment: true,
                fragment,
            });
        }
    }
    None
}

/// `None`: refused. `Some(None)`: an atomic fragment (RFC 6946), which is a whole packet.
fn fragment_info(header: &[u8]) -> Option<Option<FragmentInfo>> {
    let field = get16(header, 2)?;
    let (offset, more) = (field & 0xfff8, field & 1 != 0);
    let id = get32(header, 4)?;
    Some((offset > 0 || more).then_some(FragmentInfo { id, offset, more }))
}

fn check_routing(header: &[u8]) -> Option<()> {
    match header {
        [_, _, 0, ..] => None,
        [_, _, _, 0, ..] => Some(()),
        _ => None,
    }
}

fn check_options(mut options: &[u8]) -> Option<()> {
    loop {
        options = match options {
            [] => return Some(()),
            [0, rest @ ..] => rest,
            [JUMBO_PAYLOAD, ..] => return None,
            [_, len, rest @ ..] => rest.get(usize::from(*len)..)?,
            [_] => return None,
        };
    }
}
