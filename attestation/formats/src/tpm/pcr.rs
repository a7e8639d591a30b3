//! PCR selections (Part 2, 10.9): which registers Coffer quotes, and the strict reading of what was signed.
//!
//! One bank, SHA-256. A quote over another bank, two banks, no bank, or other registers is refused: the
//! most repeated fault in this field is to believe a register the signature does not cover.

use super::alg;
use super::wire::{Reader, Writer};
use crate::Reject;

/// Registers of a VM quote, ascending, SHA-256 bank (SPEC 5.1).
pub const VM_SELECTION: &[u8] = &[0, 4, 9, 11, 12, 17];
/// Registers of a host quote, ascending, SHA-256 bank: firmware, boot, kernel, UKI; not 10, IMA runs on (SPEC 5.3).
pub const HOST_SELECTION: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14];
/// Number of registers of a PC Client TPM.
pub const PCR_COUNT: u8 = 24;

/// Bytes of a selection bitmap on a PC Client TPM: 24 registers.
const SIZE_OF_SELECT: u8 = 3;
/// Most banks a TPM can list (HASH_COUNT of today's libraries is 8); guards the loop, nothing else.
const BANKS_MAX: u32 = 16;

/// Registers of the SHA-256 bank, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection(Vec<u8>);

impl Selection {
    /// Reads a TPML_PCR_SELECTION that names exactly one bank, SHA-256, with a three-byte bitmap.
    pub fn read(r: &mut Reader<'_>) -> Result<Self, Reject> {
        let count = r.u32()?;
        match count {
            0 => return Err(Reject::SelectionMismatch),
            1 => {}
            2..=BANKS_MAX => return Err(Reject::BankNotAllowed),
            _ => return Err(Reject::LimitExceeded),
        }
        let bank = r.u16()?;
        if r.u8()? != SIZE_OF_SELECT {
            return Err(Reject::Malformed);
        }
        let bitmap: [u8; SIZE_OF_SELECT as usize] = r.array()?;
        if bank != alg::SHA256 {
            return Err(Reject::BankNotAllowed);
        }
        let [a, b, c] = bitmap.map(u32::from);
        let bits = a | b << 8 | c << 16;
        Ok(Self((0..PCR_COUNT).filter(|pcr| bits >> pcr & 1 == 1).collect()))
    }

    /// The registers, ascending.
    pub fn indices(&self) -> &[u8] {
        &self.0
    }
}

/// Appends a TPML_PCR_SELECTION of the SHA-256 bank. Indices of 24 and above cannot be expressed and are left out.
#[must_use]
pub fn write_selection(w: Writer, pcrs: &[u8]) -> Writer {
    let [a, b, c, _] = bits(pcrs).to_le_bytes();
    w.u32(1).u16(alg::SHA256).u8(SIZE_OF_SELECT).bytes(&[a, b, c])
}

fn bits(pcrs: &[u8]) -> u32 {
    pcrs.iter().filter(|pcr| **pcr < PCR_COUNT).fold(0, |bits, pcr| bits | 1 << pcr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Selection, Reject> {
        let mut r = Reader::new(bytes);
        let selection = Selection::read(&mut r)?;
        r.finish()?;
        Ok(selection)
    }

    const GOOD: [u8; 10] = [0, 0, 0, 1, 0, 0x0b, 3, 0x11, 0x0a, 0x02];

    #[test]
    fn reads_one_sha256_bank() {
        assert_eq!(read(&GOOD).map(|s| s.0), Ok(vec![0, 4, 9, 11, 17]));
    }

    #[test]
    fn refuses_every_near_miss() {
        let cases: &[(&str, Vec<u8>, Reject)] = &[
            ("empty list", vec![0, 0, 0, 0], Reject::SelectionMismatch),
            ("two banks", [&[0, 0, 0, 2], &GOOD[4..], &GOOD[4..]].concat(), Reject::BankNotAllowed),
            ("2^32-1 banks", vec![0xff; 10], Reject::LimitExceeded),
            ("SHA-1 bank", [&GOOD[..5], &[4], &GOOD[6..]].concat(), Reject::BankNotAllowed),
            ("no bitmap", vec![0, 0, 0, 1, 0, 0x0b, 0], Reject::Malformed),
            ("two-byte bitmap", vec![0, 0, 0, 1, 0, 0x0b, 2, 1, 0], Reject::Malformed),
            ("four-byte bitmap", [&GOOD[..6], &[4, 1, 0, 0, 0]].concat(), Reject::Malformed),
            ("truncated", GOOD[..9].to_vec(), Reject::Malformed),
        ];
        for (name, bytes, reject) in cases {
            assert_eq!(read(bytes), Err(*reject), "{name}");
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_wrote(pcrs in proptest::collection::btree_set(0u8..24, 1..24)) {
            let pcrs: Vec<u8> = pcrs.into_iter().collect();
            let bytes = write_selection(Writer::new(), &pcrs).finish();
            prop_assert_eq!(read(&bytes).map(|s| s.0), Ok(pcrs));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&bytes);
        }
    }
}
