//! The reader for people: any PC's log, as bounded as for a verdict, with notes instead of refusals.
//!
//! What it returns is no [`super::EventLog`], so no verdict can be had from it.

use std::ops::Deref;

use super::{Log, Quirk, parse};
use crate::Reject;
use crate::tpm::hash::HashAlg;

/// Most notes kept: one per event is plenty to see what is wrong with a log.
const NOTES_MAX: usize = 4096;

/// A log read for showing. Nothing in it is to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownLog<'a> {
    log: Log<'a>,
    quirks: Vec<(Option<u32>, Quirk)>,
    broken: Option<Reject>,
}

impl ShownLog<'_> {
    /// What was irregular, with the number of the event if it is one's.
    pub fn quirks(&self) -> &[(Option<u32>, Quirk)] {
        &self.quirks
    }

    /// Why reading ended before the end; the events up to there are shown.
    pub fn broken(&self) -> Option<Reject> {
        self.broken
    }
}

impl<'a> Deref for ShownLog<'a> {
    type Target = Log<'a>;

    fn deref(&self) -> &Log<'a> {
        &self.log
    }
}

/// Reads as much of a log as can be read, in the bank asked for or its strongest of SHA-256, SHA-384,
/// SHA-512 and SHA-1, in this order. Fails only if the header is none, or the bank is not there.
pub fn show(bytes: &[u8], bank: Option<HashAlg>) -> Result<ShownLog<'_>, Reject> {
    let mut quirks = Vec::new();
    let note = &mut |event: Option<u32>, quirk: Quirk| {
        if quirks.len() < NOTES_MAX && !quirks.contains(&(None, quirk)) {
            quirks.push((event, quirk));
        }
        Ok(())
    };
    let (mut reading, mut r) = parse::begin(bytes, bank, note)?;
    let broken = loop {
        match reading.event(&mut r, note) {
            Ok(true) => {}
            Ok(false) => break None,
            Err(reject) => break Some(reject),
        }
    };
    Ok(ShownLog { log: reading.log, quirks, broken })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{EventType, Format, LogBuilder};
    use super::*;
    use crate::Digest;

    const D: Digest = Digest([9; 32]);

    fn good() -> LogBuilder {
        LogBuilder::new().event(4, EventType::IPL, D, b"abc")
    }

    /// A log each quirk of which has its own name, and what a verdict says to it.
    #[track_caller]
    fn check(bytes: &[u8], quirk: Quirk) {
        let shown = show(bytes, None).unwrap();
        assert!(shown.quirks().iter().any(|(_, q)| *q == quirk), "{quirk}: {:?}", shown.quirks());
        assert_eq!(shown.broken(), None, "{quirk}");
        assert_eq!(parse::parse(bytes).map(drop), quirk.refusal().map_or(Ok(()), Err), "{quirk}");
    }

    /// A log of SHA-256 and one bank more, the second bank first in its events if `swapped`.
    fn two_banks(other: u16, swapped: bool, vendor: &[u8]) -> Vec<u8> {
        let size: u16 = 32;
        let mut spec = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x02\0\0\0\x0b\0\x20\0".to_vec();
        spec.extend([other.to_le_bytes(), size.to_le_bytes()].concat());
        spec.push(vendor.len() as u8);
        spec.extend(vendor);
        let mut log = [&[0, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20]].concat();
        log.extend((spec.len() as u32).to_le_bytes());
        log.extend(spec);
        log.extend([4, 0, 0, 0, 13, 0, 0, 0, 2, 0, 0, 0]);
        let sha256 = [&[0x0b, 0][..], &D.0].concat();
        let second = [&other.to_le_bytes()[..], &[7; 32]].concat();
        log.extend(if swapped { [second, sha256] } else { [sha256, second] }.concat());
        log.extend([0; 4]);
        log
    }

    fn legacy(first: &[u8]) -> Vec<u8> {
        let event = |kind: u8, digest: u8, data: &[u8]| {
            let mut event = vec![0, 0, 0, 0, kind, 0, 0, 0];
            event.extend([digest; 20]);
            event.extend((data.len() as u32).to_le_bytes());
            event.extend(data);
            event
        };
        let head = if first.is_empty() { vec![] } else { event(3, 0, first) };
        [head, event(8, 1, b"v"), event(4, 2, &[0; 4])].concat()
    }

    #[test]
    fn notes_what_a_verdict_refuses_and_what_it_does_not() {
        let no_action = |pcr: u8, digest: Digest, data: &[u8]| {
            good().event(pcr, EventType::NO_ACTION, digest, data).finish()
        };
        let sm3 = 0x12;
        check(&two_banks(sm3, false, b"maker"), Quirk::VendorInfo);
        check(&two_banks(sm3, false, b""), Quirk::UnknownBank);
        check(&two_banks(sm3, true, b""), Quirk::DigestOrder);
        let hcrtm = LogBuilder::new().event(0, EventType::EFI_HCRTM_EVENT, D, b"HCRTM").finish();
        check(&hcrtm, Quirk::HcrtmWithoutLocality);
        check(&no_action(6, Digest::ZERO, b"x"), Quirk::NoActionElsewhere);
        check(&legacy(b""), Quirk::LegacyFormat);
        check(&legacy(b"Spec ID Event02\0\0\0\0\0\0\x02\x01\x02\0"), Quirk::LegacyFormat);
        check(&[good().finish(), vec![0; 400]].concat(), Quirk::Padding);
        check(&[good().finish(), vec![0xff; 3]].concat(), Quirk::Padding);
        check(&no_action(0, D, b"x"), Quirk::NoActionDigest);
        check(&no_action(24, Digest::ZERO, b"x"), Quirk::NoActionNowhere);
        check(&good().event(16, EventType::IPL, D, b"").finish(), Quirk::DebugRegister);
        check(&no_action(0, Digest::ZERO, b"StartupLocality\0\x02"), Quirk::StrayLocality);
        check(&no_action(0, Digest::ZERO, b"Spec ID Event03\0"), Quirk::SpecIdAgain);
        let mut sha1 = good().finish();
        sha1.truncate(32);
        sha1.extend(b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x01\0\0\0\x04\0\x14\0\0");
        sha1[28] = 33;
        check(&sha1, Quirk::WeakBanksOnly);
        let mut bankless = [good().finish(), vec![0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]].concat();
        bankless.extend([0; 4]);
        bankless.extend(LogBuilder::new().event(5, EventType::IPL, D, b"").finish().split_off(65));
        check(&bankless, Quirk::NoActionBanks);
    }

    #[test]
    fn every_quirk_says_why_it_is_safe() {
        for quirk in Quirk::ALL {
            assert!(quirk.why_safe().len() > 20 && !quirk.code().is_empty());
        }
    }

    #[test]
    fn shows_a_legacy_log_in_its_one_bank() {
        let bytes = legacy(b"");
        let shown = show(&bytes, None).unwrap();
        assert_eq!((shown.format(), shown.bank()), (Format::Legacy, HashAlg::Sha1));
        assert_eq!(shown.events().len(), 2);
        assert_eq!(show(&bytes, Some(HashAlg::Sha256)).map(drop), Err(Reject::BankNotAllowed));
    }

    #[test]
    fn keeps_what_stands_before_the_break() {
        let mut bytes = good().event(4, EventType::IPL, D, b"def").finish();
        bytes.pop();
        let shown = show(&bytes, None).unwrap();
        assert_eq!((shown.events().len(), shown.broken()), (1, Some(Reject::Malformed)));
        assert_eq!(show(b"no log", None).map(drop), Err(Reject::Malformed));
    }

    #[test]
    fn a_measured_event_no_reader_can_place_ends_the_reading() {
        let event = |pcr: u8| LogBuilder::new().event(pcr, EventType::IPL, D, b"").finish();
        let nowhere = good().event(24, EventType::IPL, D, b"").finish();
        let bankless = [two_banks(0x12, false, b""), event(4).split_off(65)].concat();
        for bytes in [nowhere, bankless] {
            let shown = show(&bytes, None).unwrap();
            assert_eq!((shown.events().len(), shown.broken()), (1, Some(Reject::Malformed)));
        }
        let next = good().event(23, EventType::IPL, D, b"").finish();
        assert_eq!(show(&next, None).unwrap().broken(), None);
    }

    #[test]
    fn as_many_notes_are_kept_as_there_may_be_events() {
        let log = |events: usize| {
            let add = |log: LogBuilder, _| log.event(24, EventType::NO_ACTION, D, b"");
            (0..events).fold(LogBuilder::new(), add).finish()
        };
        assert_eq!(show(&log(2), None).unwrap().quirks().len(), 4, "two of each event");
        assert_eq!(show(&log(4096), None).unwrap().quirks().len(), NOTES_MAX);
        let mut banks = two_banks(0x12, false, b"");
        banks.splice(56..57, [3]);
        banks.splice(28..29, [41]);
        banks.splice(68..68, [0x13, 0, 0x20, 0]);
        banks.truncate(32 + 41);
        let notes = [(None, Quirk::UnknownBank)];
        assert_eq!(show(&banks, None).unwrap().quirks(), notes, "once for the header");
    }

    #[test]
    fn a_bank_it_cannot_compute_is_stepped_over() {
        let bytes = two_banks(0x12, true, b"");
        assert_eq!(show(&bytes, None).unwrap().events()[0].digest.sha256(), Some(D));
        assert_eq!(show(&bytes, None).unwrap().banks(), [HashAlg::Sha256]);
    }

    proptest! {
        #[test]
        fn never_panics(tail in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..120) {
            let mut log = good().finish();
            log.truncate(cut);
            log.extend(tail);
            let strict = parse::parse(&log);
            let shown = show(&log, Some(HashAlg::Sha256));
            // What a verdict may rest on is shown the same.
            if let Ok(strict) = strict {
                prop_assert_eq!(&*strict, &*shown.unwrap());
            }
        }
    }
}
