//! Fields at constant offsets of fixed-size structures.

/// The `N` bytes at `offset`.
pub(crate) fn get<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes
        .get(offset..offset + N)
        .and_then(|field| field.try_into().ok())
        .expect("offsets are constants that lie inside the structure")
}

/// Little-endian, as every integer of the format.
pub(crate) fn get_u64(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(get(bytes, offset))
}

/// Little-endian.
pub(crate) fn get_u32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(get(bytes, offset))
}

/// Copies `field` to `offset`.
pub(crate) fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    bytes
        .get_mut(offset..offset + field.len())
        .expect("offsets are constants that lie inside the structure")
        .copy_from_slice(field);
}
