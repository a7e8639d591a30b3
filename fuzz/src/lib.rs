//! What several targets do with the fuzzer's bytes.
//!
//! A fuzzer finds no digest and no signature. Where one stands before what is to be tried, a target takes
//! something true and lets the fuzzer edit it.

pub mod bus;
pub mod chip;
pub mod guests;
pub mod kdf;
pub mod map;

/// Most edits of one input: a forgery that needs more than these is many steps from what is true.
const EDITS_MAX: usize = 8;

/// `original` with edits: four bytes each, what to do, where (big-endian), and a byte.
pub fn edited(original: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for edit in edits.chunks_exact(4).take(EDITS_MAX) {
        let [what, high, low, value] = *edit else { continue };
        let at = usize::from(u16::from_be_bytes([high, low])) % (bytes.len() + 1);
        match what % 6 {
            0 => bytes.insert(at, value),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            // A piece of itself once more, as repeated entries are.
            3 => {
                let end = bytes.len().min(at + usize::from(value));
                bytes.extend_from_within(at..end);
            }
            4 if at < bytes.len() => bytes[at] ^= value,
            _ if at < bytes.len() => bytes[at] = value,
            _ => {}
        }
    }
    bytes
}

/// True for one input in `n`, always the same: where looking at all would take the time of many others.
pub fn one_in(n: u32, data: &[u8]) -> bool {
    // FNV-1a.
    let hash =
        data.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    (hash >> 8) % n == 0
}

/// The signed part of a certificate or a list, with its header; none if the lengths do not hold.
pub fn signed_part(der: &[u8]) -> Option<&[u8]> {
    let content = der.get(header(der)?.0..)?;
    let (start, length) = header(content)?;
    content.get(..start.checked_add(length)?)
}

/// Bytes of a SEQUENCE's header, and of its content.
fn header(der: &[u8]) -> Option<(usize, usize)> {
    match *der {
        [0x30, length, ..] if length < 0x80 => Some((2, length.into())),
        [0x30, 0x81, length, ..] => Some((3, length.into())),
        [0x30, 0x82, high, low, ..] => Some((4, u16::from_be_bytes([high, low]).into())),
        _ => None,
    }
}
