//! The SNI handle of a SPIFFE ID (wire.md §5).

use aws_lc_rs::digest;

use crate::spiffe::SpiffeId;

/// The name under which a gateway finds the identity that a dialler wants: `<handle>.identun.alt` with handle =
/// base32-lower-nopad(SHA-256("identun-sni-v1" 0x00 ID)[0..20]), 32 characters.
///
/// It selects and proves nothing: the SPIFFE ID in the certificate is the authority.
pub fn server_name(id: &SpiffeId) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(b"identun-sni-v1\0");
    hash.update(id.as_str().as_bytes());
    let hash = hash.finish();
    let mut name = String::with_capacity(HANDLE_LEN + SUFFIX.len());
    for group in hash.as_ref().chunks_exact(5).take(HANDLE_LEN / 8) {
        push_base32(&mut name, group);
    }
    name.push_str(SUFFIX);
    name
}

/// Appends five bytes as eight characters (RFC 4648 §6, in lower case).
fn push_base32(out: &mut String, group: &[u8]) {
    let bits = group
        .iter()
        .fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
    for index in (0..8).rev() {
        let digit = (bits >> (index * 5)) & 0x1f;
        out.extend(u8::try_from(digit).map(|digit| match digit {
            0..26 => char::from(b'a' + digit),
            _ => char::from(b'2' + (digit - 26)),
        }));
    }
}

const HANDLE_LEN: usize = 32;
const SUFFIX: &str = ".identun.alt";

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: &str) -> String {
        server_name(&id.parse().unwrap())
    }

    #[test]
    fn base32_follows_the_vectors_of_rfc_4648() {
        let mut out = String::new();
        push_base32(&mut out, b"fooba");
        assert_eq!(out, "mzxw6ytb");
    }

    #[test]
    fn a_handle_is_one_label_of_32_characters() {
        let name = name("spiffe://cluster.local/ns/web/sa/front");
        let handle = name.strip_suffix(".identun.alt").unwrap();
        assert_eq!(handle.len(), 32);
        assert!(handle.chars().all(|c| matches!(c, 'a'..='z' | '2'..='7')));
        assert!(rustls::pki_types::ServerName::try_from(name).is_ok());
    }

    #[test]
    fn handles_do_not_change_between_versions() {
        assert_eq!(name("spiffe://td/a"), PINNED);
        assert_ne!(name("spiffe://td/a"), name("spiffe://td/A"));
    }

    const PINNED: &str = "iacufpvxwh5lwjls4dv2dwymlzdodlyn.identun.alt";
}
