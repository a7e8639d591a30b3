//! Deterministic CBOR maps (RFC 8949 section 4.2) with integers for keys, read a second time: unsigned integers, byte strings, booleans
//! and, for values, maps from text to integers.

use std::collections::BTreeMap;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An unsigned integer.
    Number(u64),
    /// A byte string.
    Bytes(Vec<u8>),
    /// A boolean.
    Bool(bool),
    /// A map from text to numbers, in the order it was written.
    Named(Vec<(String, u64)>),
}

impl Item {
    /// The number it is.
    pub fn number(&self) -> Option<u64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    /// The bytes it is, if so many.
    pub fn bytes(&self, length: usize) -> Option<&[u8]> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
            .filter(|bytes| bytes.len() == length)
            .map(Vec::as_slice)
    }

    /// The boolean it is.
    pub fn bool(&self) -> Option<bool> {
        if let Self::Bool(so) = self { Some(*so) } else { None }
    }
}

/// The map, if the bytes are exactly one, its keys ascending and all lengths in the shortest form.
pub fn read(bytes: &[u8]) -> Option<BTreeMap<u64, Item>> {
    let mut rest = bytes;
    let (5, count) = head(&mut rest)? else { return None };
    let mut map = BTreeMap::new();
    for _ in 0..count {
        let (0, key) = head(&mut rest)? else { return None };
        let ascending = map.last_key_value().is_none_or(|(last, _)| *last < key);
        map.insert(key, Some(item(&mut rest)?).filter(|_| ascending)?);
    }
    rest.is_empty().then_some(map)
}

fn item(rest: &mut &[u8]) -> Option<Item> {
    match head(rest)? {
        (0, number) => Some(Item::Number(number)),
        (2, length) => Some(Item::Bytes(take(rest, length)?.to_vec())),
        (5, count) => {
            let entries = (0..count).map(|_| {
                let (3, length) = head(rest)? else { return None };
                let name = String::from_utf8(take(rest, length)?.to_vec()).ok()?;
                let (0, value) = head(rest)? else { return None };
                Some((name, value))
            });
            Some(Item::Named(entries.collect::<Option<_>>()?))
        }
        (7, so @ (20 | 21)) => Some(Item::Bool(so == 21)),
        _ => None,
    }
}

/// Major type and argument.
fn head(rest: &mut &[u8]) -> Option<(u8, u64)> {
    let first = *take(rest, 1)?.first()?;
    let (major, low) = (first >> 5, u64::from(first & 31));
    let (width, least) = match low {
        0..24 => return Some((major, low)),
        24 => (1, 24),
        25 => (2, 1 << 8),
        26 => (4, 1 << 16),
        27 => (8, 1 << 32),
        _ => return None,
    };
    let argument = take(rest, width)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    (argument >= least && major != 7).then_some((major, argument))
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(taken)
}
