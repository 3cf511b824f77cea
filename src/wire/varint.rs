//! Variable-length integers of RFC 9000 §16: 1, 2, 4 or 8 bytes, of which the first two bits tell how many.

/// The largest value that can be written.
pub const MAX: u64 = (1 << 62) - 1;

/// Appends `value` in its shortest form; values above [`MAX`] are written as [`MAX`].
pub fn encode(value: u64, out: &mut Vec<u8>) {
    let value = value.min(MAX);
    let bytes = value.to_be_bytes();
    let (len, prefix) = match value {
        0..=0x3f => (1, 0x00),
        0x40..=0x3fff => (2, 0x40),
        0x4000..=0x3fff_ffff => (4, 0x80),
        _ => (8, 0xc0),
    };
    let start = out.len();
    out.extend(bytes.iter().skip(bytes.len() - len));
    if let Some(first) = out.get_mut(start) {
        *first |= prefix;
    }
}

/// The value at the beginning of `bytes` and what follows it; `None` when it is cut off. Longer forms than needed are
/// taken, as RFC 9000 §16 demands.
#[inline]
pub fn decode(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (&first, _) = bytes.split_first()?;
    let (field, rest) = bytes.split_at_checked(1 << (first >> 6))?;
    let value = field
        .iter()
        .fold(0, |value, &byte| (value << 8) | u64::from(byte));
    Some((value & (MAX >> (62 - (8 * field.len() - 2))), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_rfc_9000_appendix_a_1_decode() {
        let examples: [(&[u8], u64); 5] = [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (bytes, value) in examples {
            assert_eq!(decode(bytes), Some((value, &[][..])));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_a_cut_one_is_not(value in 0..=MAX, shift in 0..62_u32) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            encode(value, &mut bytes);
            prop_assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
            bytes.push(7);
            prop_assert_eq!(decode(&bytes), Some((value, &[7][..])));
        }
    }
}
