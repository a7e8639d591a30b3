//! PCR selections (TPML_PCR_SELECTION; Part 2, 10.9): which registers Coffer quotes, and the strict reading
//! of what was signed.
//!
//! The most repeated fault in this field is to believe a register the signature does not cover. So a
//! selection is read to the bit: a bank named twice, a register no PC Client TPM has, a bitmap of another
//! width and a bank this build cannot compute are refused.

use super::hash::HashAlg;
use super::wire::{Reader, Writer};
use crate::Reject;

/// Registers of a VM quote, ascending, SHA-256 bank (SPEC 5.1).
pub const VM_SELECTION: &[u8] = &[0, 4, 9, 11, 12, 17];
/// Banks of a vTPM, both measured into (SPEC 3.6).
pub const VM_BANKS: [HashAlg; 2] = [HashAlg::Sha256, HashAlg::Sha384];
/// Registers of a host quote, ascending, SHA-256 bank: firmware, boot, kernel, UKI; not 10, IMA runs on (SPEC 5.3).
pub const HOST_SELECTION: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14];
/// Number of registers of a PC Client TPM.
pub const PCR_COUNT: u8 = 24;

/// Bytes of a selection bitmap on a PC Client TPM: 24 registers (PTP 1.05, 4.6.1).
const SIZE_OF_SELECT: u8 = 3;
/// Most bytes of a bitmap: PCR_SELECT_MAX of the libraries that reserve 32 registers.
const SIZE_OF_SELECT_MAX: u8 = 4;
/// Most banks a TPM can list (HASH_COUNT of today's libraries is 8); guards the loop, nothing else.
const BANKS_MAX: u32 = 16;

/// A TPML_PCR_SELECTION: banks in the order they were signed, each once, its registers ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selections(Vec<(HashAlg, u32)>);

impl Selections {
    /// The selection of these registers. Indices of 24 and above cannot be expressed and are left out.
    pub fn of(banks: &[(HashAlg, &[u8])]) -> Self {
        Self(banks.iter().map(|(bank, pcrs)| (*bank, bits(pcrs))).collect())
    }

    /// Reads a list that names at least one bank.
    pub fn read(r: &mut Reader<'_>) -> Result<Self, Reject> {
        let count = r.u32()?;
        match count {
            0 => return Err(Reject::SelectionMismatch),
            1..=BANKS_MAX => {}
            _ => return Err(Reject::LimitExceeded),
        }
        let mut banks: Vec<(HashAlg, u32)> = Vec::new();
        for _ in 0..count {
            let bank = HashAlg::from_id(r.u16()?).ok_or(Reject::BankNotAllowed)?;
            let bits = bitmap(r)?;
            if banks.iter().any(|(other, _)| *other == bank) {
                return Err(Reject::DuplicateBank);
            }
            banks.push((bank, bits));
        }
        Ok(Self(banks))
    }

    /// Appends the list.
    #[must_use]
    pub fn write(&self, w: Writer) -> Writer {
        let count = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.iter().fold(w.u32(count), |w, (bank, bits)| {
            let [a, b, c, _] = bits.to_le_bytes();
            w.u16(bank.id()).u8(SIZE_OF_SELECT).bytes(&[a, b, c])
        })
    }

    /// Every register selected, in the order in which the values are hashed (Part 3, 18.4).
    pub fn registers(&self) -> impl Iterator<Item = (HashAlg, u8)> + '_ {
        self.0.iter().flat_map(|(bank, bits)| {
            (0..PCR_COUNT).filter(move |pcr| bits >> pcr & 1 == 1).map(move |pcr| (*bank, pcr))
        })
    }

    /// True if registers are selected of this bank and of no other.
    pub fn is_only_of(&self, bank: HashAlg) -> bool {
        matches!(self.0.as_slice(), [(only, _)] if *only == bank)
    }
}

/// sizeofSelect and pcrSelect. A fourth byte can only select registers that are not there.
fn bitmap(r: &mut Reader<'_>) -> Result<u32, Reject> {
    let size = r.u8()?;
    match size {
        SIZE_OF_SELECT => {
            let [a, b, c] = r.array()?;
            Ok(u32::from_le_bytes([a, b, c, 0]))
        }
        SIZE_OF_SELECT_MAX => match r.array()? {
            [_, _, _, 0u8] => Err(Reject::Malformed),
            _ => Err(Reject::PcrOutOfRange),
        },
        _ => Err(Reject::Malformed),
    }
}

fn bits(pcrs: &[u8]) -> u32 {
    pcrs.iter().filter(|pcr| **pcr < PCR_COUNT).fold(0, |bits, pcr| bits | 1 << pcr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Result<Selections, Reject> {
        let mut r = Reader::new(bytes);
        let selection = Selections::read(&mut r)?;
        r.finish()?;
        Ok(selection)
    }

    const GOOD: [u8; 10] = [0, 0, 0, 1, 0, 0x0b, 3, 0x11, 0x0a, 0x02];

    #[test]
    fn reads_banks_in_their_order() {
        let one = read(&GOOD).unwrap();
        let registers = |s: &Selections| s.registers().collect::<Vec<_>>();
        assert_eq!(registers(&one), [0, 4, 9, 11, 17].map(|pcr| (HashAlg::Sha256, pcr)));
        assert!(one.is_only_of(HashAlg::Sha256) && !one.is_only_of(HashAlg::Sha384));
        let two = read(&[&[0, 0, 0, 2, 0, 0x0c, 3, 1, 0, 0x80], &GOOD[4..]].concat()).unwrap();
        assert_eq!(
            registers(&two)[..3],
            [(HashAlg::Sha384, 0), (HashAlg::Sha384, 23), (HashAlg::Sha256, 0)]
        );
        assert!(!HashAlg::ALL.iter().any(|bank| two.is_only_of(*bank)));
    }

    #[test]
    fn refuses_every_near_miss() {
        let cases: &[(&str, Vec<u8>, Reject)] = &[
            ("empty list", vec![0, 0, 0, 0], Reject::SelectionMismatch),
            (
                "a bank twice",
                [&[0, 0, 0, 2], &GOOD[4..], &GOOD[4..]].concat(),
                Reject::DuplicateBank,
            ),
            ("one bank of two", [&[0, 0, 0, 2], &GOOD[4..]].concat(), Reject::Malformed),
            ("17 banks", [&[0, 0, 0, 17], &GOOD[4..]].concat(), Reject::LimitExceeded),
            ("2^32-1 banks", vec![0xff; 10], Reject::LimitExceeded),
            ("SM3 bank", [&GOOD[..5], &[0x12], &GOOD[6..]].concat(), Reject::BankNotAllowed),
            ("no bitmap", vec![0, 0, 0, 1, 0, 0x0b, 0], Reject::Malformed),
            ("two-byte bitmap", vec![0, 0, 0, 1, 0, 0x0b, 2, 1, 0], Reject::Malformed),
            ("four-byte bitmap", [&GOOD[..6], &[4, 1, 0, 0, 0]].concat(), Reject::Malformed),
            ("register 24", [&GOOD[..6], &[4, 1, 0, 0, 1]].concat(), Reject::PcrOutOfRange),
            ("255-byte bitmap", [&GOOD[..6], &[255; 256]].concat(), Reject::Malformed),
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
            let selections = Selections::of(&[(HashAlg::Sha256, &pcrs)]);
            let bytes = selections.write(Writer::new()).finish();
            prop_assert_eq!(read(&bytes), Ok(selections));
        }

        #[test]
        fn writes_what_it_read(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(selections) = read(&bytes) {
                prop_assert_eq!(selections.write(Writer::new()).finish(), bytes);
            }
        }
    }
}
