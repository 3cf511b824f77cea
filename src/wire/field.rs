//! Big-endian header fields at an offset of a packet, without a way to panic.

/// The 16-bit field at `offset`, or `None` past the end.
#[inline]
pub(crate) fn get16(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|field| u16::from_be_bytes(*field))
}

/// The 32-bit field at `offset`, or `None` past the end.
#[inline]
pub(crate) fn get32(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|field| u32::from_be_bytes(*field))
}

/// Writes the 16-bit field at `offset`; nothing is written past the end.
#[inline]
pub(crate) fn put16(bytes: &mut [u8], offset: usize, value: u16) {
    if let Some(field) = bytes.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
        *field = value.to_be_bytes();
    }
}

/// Writes the 32-bit field at `offset`; nothing is written past the end.
#[inline]
pub(crate) fn put32(bytes: &mut [u8], offset: usize, value: u32) {
    if let Some(field) = bytes.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
        *field = value.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_past_the_end_is_none_and_is_not_written() {
        let mut bytes = [1, 2, 3, 4, 5];
        assert_eq!(get16(&bytes, 3), Some(0x0405));
        assert_eq!(get16(&bytes, 4), None);
        assert_eq!(get32(&bytes, 1), Some(0x0203_0405));
        assert_eq!(get32(&bytes, usize::MAX), None);
        put16(&mut bytes, 4, 0xffff);
        put32(&mut bytes, 2, 0xffff_ffff);
        assert_eq!(bytes, [1, 2, 3, 4, 5]);
        put32(&mut bytes, 1, 0x0908_0706);
        put16(&mut bytes, 0, 0x0a0b);
        assert_eq!(bytes, [0x0a, 0x0b, 8, 7, 6]);
    }
}
