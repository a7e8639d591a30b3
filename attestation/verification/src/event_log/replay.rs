//! Replays a log, all registers of a bank in one pass, and holds them against quoted values.

use super::{EventLog, Log};
use crate::Reject;
use crate::quote::{QuotedPcrs, QuotedRegisters};
use crate::tpm::hash::{Ha, HashAlg};
use crate::tpm::pcr::PCR_COUNT;

/// The registers of one bank as logs leave them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    bank: HashAlg,
    values: [Ha; PCR_COUNT as usize],
}

impl Registers {
    /// Registers nothing was measured into. PCR 0 starts with the startup locality; 17 to 22 start at zero,
    /// as a DRTM hash sequence leaves them (Part 1, 17.3; PTP 1.05, 6.6).
    pub fn reset(bank: HashAlg, startup_locality: u8) -> Self {
        let mut values = [bank.zero(); PCR_COUNT as usize];
        let mut first = vec![0; bank.size()];
        if let Some(last) = first.last_mut() {
            *last = startup_locality;
        }
        if let (Some(value), Some(pcr0)) = (Ha::new(bank, &first), values.first_mut()) {
            *pcr0 = value;
        }
        Self { bank, values }
    }

    /// The bank.
    pub fn bank(&self) -> HashAlg {
        self.bank
    }

    /// One register; none that does not exist.
    pub fn get(&self, pcr: u8) -> Option<Ha> {
        self.values.get(usize::from(pcr)).copied()
    }

    /// Extends a register; a digest of another bank or a register that does not exist is refused.
    pub fn extend(&mut self, pcr: u8, digest: &Ha) -> Result<(), Reject> {
        let value = self.values.get_mut(usize::from(pcr)).ok_or(Reject::PcrOutOfRange)?;
        if digest.hash() != self.bank {
            return Err(Reject::BankNotAllowed);
        }
        *value = value.extend(digest.as_bytes());
        Ok(())
    }

    /// Checks that every value is what the logs replay to, and names the first register that is not.
    pub fn check(&self, quoted: impl IntoIterator<Item = (u8, Ha)>) -> Result<(), (u8, Reject)> {
        for (pcr, value) in quoted {
            if value.hash() != self.bank {
                return Err((pcr, Reject::BankNotAllowed));
            }
            if self.get(pcr) != Some(value) {
                return Err((pcr, Reject::ReplayMismatch));
            }
        }
        Ok(())
    }
}

/// Quoted registers as values of their bank.
pub(crate) fn values(quoted: &QuotedPcrs) -> Vec<(u8, Ha)> {
    quoted.iter().map(|(pcr, value)| (pcr, Ha::from(*value))).collect()
}

impl Log<'_> {
    /// Replays the log in a bank; none if a measured event has no digest in it.
    pub fn registers(&self, bank: HashAlg) -> Option<Registers> {
        let mut registers = Registers::reset(bank, self.startup_locality);
        for event in self.events.iter().filter(|event| event.is_measured()) {
            let digest = if bank == self.bank { event.digest } else { event.digest_in(bank)? };
            registers.extend(event.pcr, &digest).ok()?;
        }
        Some(registers)
    }

    /// The value a register of the log's bank has after this log.
    pub fn replay(&self, pcr: u8) -> Ha {
        let registers = self.registers(self.bank);
        registers.and_then(|all| all.get(pcr)).unwrap_or(self.bank.zero())
    }
}

impl EventLog<'_> {
    /// Checks that every quoted register is what this log replays to, and names the first that is not.
    pub fn check_replay(&self, quoted: &QuotedPcrs) -> Result<(), (u8, Reject)> {
        self.check_values(values(quoted))
    }

    /// The same for a quote of whatever banks, each bank by itself.
    pub fn check_replay_of(&self, quoted: &QuotedRegisters) -> Result<(), (u8, Reject)> {
        for bank in HashAlg::ALL {
            let of_bank = quoted.iter().filter(|(hash, ..)| *hash == bank);
            self.check_values(of_bank.map(|(_, pcr, value)| (pcr, *value)).collect())?;
        }
        Ok(())
    }

    fn check_values(&self, quoted: Vec<(u8, Ha)>) -> Result<(), (u8, Reject)> {
        let Some((first, value)) = quoted.first() else { return Ok(()) };
        // SHA-1 is in no verdict, though the log keeps it for showing.
        let bank = Some(value.hash()).filter(|bank| *bank != HashAlg::Sha1);
        let registers = bank.and_then(|bank| self.registers(bank));
        registers.ok_or((*first, Reject::BankNotAllowed))?.check(quoted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::secure_boot::tests::quoted;
    use super::super::{EventType, LogBuilder, parse};
    use super::*;
    use crate::Digest;

    #[test]
    fn a_register_of_another_bank_or_number_is_refused() {
        let mut registers = Registers::reset(HashAlg::Sha384, 0);
        let digest = HashAlg::Sha384.digest(&[b"x"]);
        assert_eq!(registers.extend(4, &digest), Ok(()));
        let expected = HashAlg::Sha384.zero().extend(digest.as_bytes());
        assert_eq!(registers.check([(4, expected), (5, HashAlg::Sha384.zero())]), Ok(()));
        assert_eq!(registers.check([(4, digest)]), Err((4, Reject::ReplayMismatch)));
        assert_eq!(registers.check([(24, digest)]), Err((24, Reject::ReplayMismatch)));
        let other = HashAlg::Sha256.digest(&[b"x"]);
        assert_eq!(registers.check([(4, other)]), Err((4, Reject::BankNotAllowed)));
        assert_eq!(registers.extend(4, &other), Err(Reject::BankNotAllowed));
        assert_eq!(registers.extend(24, &digest), Err(Reject::PcrOutOfRange));
    }

    #[test]
    fn a_log_replays_to_the_quoted_registers_or_names_the_first_that_differs() {
        let digest = Digest([1; 32]);
        let bytes = LogBuilder::new().event(4, EventType::IPL, digest, b"x").finish();
        let log = parse(&bytes).unwrap();
        let (extended, zero) = (log.replay(4).sha256().unwrap(), Digest::ZERO);
        let check = |values: &[(u8, Digest)]| log.check_replay(&quoted(values));
        assert_eq!(check(&[(4, extended), (5, zero)]), Ok(()));
        assert_eq!(check(&[(4, zero), (5, extended)]), Err((4, Reject::ReplayMismatch)));
        assert_eq!(check(&[(4, extended), (5, extended)]), Err((5, Reject::ReplayMismatch)));
    }

    #[test]
    fn pcr_0_starts_with_the_locality() {
        let registers = Registers::reset(HashAlg::Sha256, 3);
        let first = registers.get(0).unwrap();
        assert_eq!(first.as_bytes().split_last(), Some((&3, &[0; 31][..])));
        assert_eq!(registers.get(1), Some(HashAlg::Sha256.zero()));
    }
}
