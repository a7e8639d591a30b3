//! A log that was read: its events, borrowed from the bytes received, with the digests of every bank.

use std::ops::Deref;

use crate::tpm::hash::{Ha, HashAlg};

use super::EventType;

/// How a log is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// TCG_PCR_EVENT throughout: SHA-1 only.
    Legacy,
    /// TCG_PCR_EVENT2 after a Spec ID event (PFP 1.06, 10.2.2).
    CryptoAgile,
}

/// One event of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Place in the log, from 0, the Spec ID event not counted.
    pub number: u32,
    /// Register extended; authentic once the log replays.
    pub pcr: u8,
    /// Claimed by whoever wrote the log; nothing measures it.
    pub kind: EventType,
    /// Digest in the log's bank ([`Log::bank`]); authentic once the log replays in that bank.
    pub digest: Ha,
    /// The digests of every bank this build computes, by [`HashAlg::ALL`].
    pub(super) banks: [Option<&'a [u8]>; HashAlg::ALL.len()],
    /// Claimed, unless [`Self::data_is_measured`] or [`Event::content`] says more.
    pub data: &'a [u8],
}

impl Event<'_> {
    /// Stands for no register, in a shown EV_NO_ACTION event that names none there is.
    pub const NO_PCR: u8 = 0xff;

    /// True if the data hashes to the digest, so that a replaying log makes the data authentic too.
    pub fn data_is_measured(&self) -> bool {
        self.digest.hash().digest(&[self.data]) == self.digest
    }

    /// True for events that extend their register; EV_NO_ACTION does not.
    pub fn is_measured(&self) -> bool {
        self.kind != EventType::NO_ACTION
    }

    /// The digest of one bank; authentic once the log replays in that bank.
    pub fn digest_in(&self, bank: HashAlg) -> Option<Ha> {
        let mut banks = HashAlg::ALL.into_iter().zip(self.banks);
        banks.find(|(hash, _)| *hash == bank).and_then(|(_, digest)| Ha::new(bank, digest?))
    }
}

/// The events of a log, on whatever ground they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log<'a> {
    pub(super) format: Format,
    pub(super) bank: HashAlg,
    pub(super) banks: Vec<HashAlg>,
    pub(super) events: Vec<Event<'a>>,
    /// Locality in which TPM2_Startup ran: the last byte of PCR 0's first value.
    pub(super) startup_locality: u8,
}

impl<'a> Log<'a> {
    /// How it is laid out.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The bank that [`Event::digest`] is of.
    pub fn bank(&self) -> HashAlg {
        self.bank
    }

    /// The banks every measured event has a digest in, as far as this build computes them.
    pub fn banks(&self) -> &[HashAlg] {
        &self.banks
    }

    /// The events after the Spec ID header, in order.
    pub fn events(&self) -> &[Event<'a>] {
        &self.events
    }

    /// The measured events of one register, in order.
    pub fn of_pcr(&self, pcr: u8) -> impl Iterator<Item = &Event<'a>> {
        self.events.iter().filter(move |e| e.pcr == pcr && e.is_measured())
    }

    /// Last byte of PCR 0's first value: 0, 3, or 4 with an H-CRTM.
    pub fn startup_locality(&self) -> u8 {
        self.startup_locality
    }
}

/// A log strictly read in a bank that is allowed. Only [`super::parse()`] and [`super::parse_bank`] make
/// one; verdicts ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog<'a>(pub(super) Log<'a>);

impl<'a> Deref for EventLog<'a> {
    type Target = Log<'a>;

    fn deref(&self) -> &Log<'a> {
        &self.0
    }
}
