//! Reads a log into events. Little-endian throughout, unlike the TPM.
//!
//! The grammar is in one place; a [`Judge`] says what becomes of the irregular. The strict one, here, refuses
//! by [`Quirk::refusal`]; the one of [`super::show`] takes notes.

use coffer_exchange::event_log::SPEC_ID;

use super::{Event, EventLog, EventType, Format, Log, Quirk, STARTUP_LOCALITY};
use crate::Reject;
use crate::evidence::EVENT_LOG_MAX;
use crate::tpm::hash::HashAlg;
use crate::tpm::pcr::PCR_COUNT;
use crate::tpm::wire::Reader;

/// Most events: a GRUB boot logs about 100, one per script line; a server with many boot entries a few hundred.
const EVENTS_MAX: usize = 4096;
/// Most bytes of one event's data: the largest seen are dbx variables of about 24 KiB.
const EVENT_DATA_MAX: usize = 128 << 10;
/// Most banks in the header: TPMs implement up to five.
const BANKS_MAX: usize = 8;
/// The debug register: never part of a firmware log.
const DEBUG_PCR: u32 = 16;

/// Parses a whole log for a verdict in the SHA-256 bank. Logs of TPM 1.2 style and logs without SHA-256 are
/// [`Reject::BankNotAllowed`].
pub fn parse(bytes: &[u8]) -> Result<EventLog<'_>, Reject> {
    parse_bank(bytes, HashAlg::Sha256)
}

/// Parses a whole log for a verdict in a bank. SHA-1 is never one.
pub fn parse_bank(bytes: &[u8], bank: HashAlg) -> Result<EventLog<'_>, Reject> {
    let refuse = &mut |_: Option<u32>, quirk: Quirk| quirk.refusal().map_or(Ok(()), Err);
    if bank == HashAlg::Sha1 {
        return Err(Reject::BankNotAllowed);
    }
    let (mut reading, mut r) = begin(bytes, Some(bank), refuse)?;
    while reading.event(&mut r, refuse)? {}
    Ok(EventLog(reading.log))
}

/// What becomes of an irregularity: an error ends the reading.
pub(super) type Judge<'j> = &'j mut dyn FnMut(Option<u32>, Quirk) -> Result<(), Reject>;

/// Reads the header. Without a bank asked for, the strongest of the SHA-2 banks is the log's, SHA-1 at last.
pub(super) fn begin<'a>(
    bytes: &'a [u8],
    bank: Option<HashAlg>,
    judge: Judge<'_>,
) -> Result<(Reading<'a>, Reader<'a>), Reject> {
    if bytes.len() > EVENT_LOG_MAX {
        return Err(Reject::LimitExceeded);
    }
    let mut r = Reader::new(bytes);
    let header = header(&mut r.clone(), judge)?;
    let (format, sizes) = match header {
        // Its first event is one of the log.
        Header::None => (Format::Legacy, vec![Bank::SHA1]),
        Header::SpecId { length, banks } => {
            r.bytes(length)?;
            (Format::CryptoAgile, banks)
        }
        Header::LegacySpecId { length } => {
            r.bytes(length)?;
            (Format::Legacy, vec![Bank::SHA1])
        }
    };
    let banks: Vec<HashAlg> = sizes.iter().filter_map(|b| HashAlg::from_id(b.algorithm)).collect();
    if !banks.iter().any(|bank| *bank != HashAlg::Sha1) && format == Format::CryptoAgile {
        judge(None, Quirk::WeakBanksOnly)?;
    }
    let preferred = [HashAlg::Sha256, HashAlg::Sha384, HashAlg::Sha512, HashAlg::Sha1];
    let bank = bank.or_else(|| preferred.into_iter().find(|bank| banks.contains(bank)));
    let bank = bank.filter(|bank| banks.contains(bank)).ok_or(Reject::BankNotAllowed)?;
    let log = Log { format, bank, banks, events: Vec::new(), startup_locality: 0 };
    Ok((Reading { log, sizes, pcr0_begun: false, locality_seen: false }, r))
}

/// A bank as the header lists it.
#[derive(Clone, Copy)]
struct Bank {
    algorithm: u16,
    size: usize,
}

impl Bank {
    const SHA1: Self = Self { algorithm: HashAlg::Sha1.id(), size: HashAlg::Sha1.size() };
}

enum Header {
    None,
    LegacySpecId { length: usize },
    SpecId { length: usize, banks: Vec<Bank> },
}

/// TCG_PCR_EVENT with TCG_EfiSpecIDEventStruct (PFP 1.06, 10.4.5.1).
fn header(r: &mut Reader<'_>, judge: Judge<'_>) -> Result<Header, Reject> {
    let before = r.rest().len();
    let (pcr, kind, digest, data) = (u32_le(r)?, u32_le(r)?, r.array::<20>()?, sized(r)?);
    let length = before.saturating_sub(r.rest().len());
    if kind != EventType::NO_ACTION.0 {
        // A TPM 1.2 log: it starts with a measured event and holds SHA-1 only.
        judge(None, Quirk::LegacyFormat)?;
        return Ok(Header::None);
    }
    if LEGACY_SPEC_IDS.iter().any(|id| data.starts_with(id)) {
        judge(None, Quirk::LegacyFormat)?;
        return Ok(Header::LegacySpecId { length });
    }
    let mut spec = Reader::new(data);
    if pcr != 0 || digest != [0; 20] || spec.array::<16>()? != *SPEC_ID {
        return Err(Reject::Malformed);
    }
    Ok(Header::SpecId { length, banks: banks(&mut spec, judge)? })
}

fn banks(spec: &mut Reader<'_>, judge: Judge<'_>) -> Result<Vec<Bank>, Reject> {
    // Platform class, versions and UINTN size do not change how the log is read.
    spec.bytes(8)?;
    let count = usize::try_from(u32_le(spec)?).map_err(|_| Reject::LimitExceeded)?;
    if count > BANKS_MAX {
        return Err(Reject::LimitExceeded);
    }
    let mut banks: Vec<Bank> = Vec::with_capacity(count);
    for _ in 0..count {
        let bank = Bank { algorithm: u16_le(spec)?, size: usize::from(u16_le(spec)?) };
        let known = HashAlg::from_id(bank.algorithm);
        if banks.iter().any(|b| b.algorithm == bank.algorithm)
            || known.is_some_and(|hash| hash.size() != bank.size)
            || !(20..=64).contains(&bank.size)
        {
            return Err(Reject::Malformed);
        }
        if known.is_none() {
            judge(None, Quirk::UnknownBank)?;
        }
        banks.push(bank);
    }
    let vendor = usize::from(spec.u8()?);
    spec.bytes(vendor)?;
    if vendor != 0 {
        judge(None, Quirk::VendorInfo)?;
    }
    spec.clone().finish()?;
    Ok(banks)
}

/// A log being read.
pub(super) struct Reading<'a> {
    pub(super) log: Log<'a>,
    sizes: Vec<Bank>,
    /// Something extended PCR 0.
    pcr0_begun: bool,
    locality_seen: bool,
}

impl<'a> Reading<'a> {
    /// Reads the next event, if there is one.
    pub(super) fn event(&mut self, r: &mut Reader<'a>, judge: Judge<'_>) -> Result<bool, Reject> {
        if r.rest().is_empty() {
            return Ok(false);
        }
        if is_padding(r.rest()) {
            judge(None, Quirk::Padding)?;
            return Ok(false);
        }
        if self.log.events.len() == EVENTS_MAX {
            return Err(Reject::LimitExceeded);
        }
        let number = u32::try_from(self.log.events.len()).map_err(|_| Reject::LimitExceeded)?;
        let (pcr, kind) = (u32_le(r)?, EventType(u32_le(r)?));
        let measured = kind != EventType::NO_ACTION;
        let pcr = register(pcr, measured, number, judge)?;
        let banks = match self.log.format {
            Format::Legacy => legacy_digest(r)?,
            Format::CryptoAgile => self.digests(r, measured, number, judge)?,
        };
        if !measured && banks.iter().flatten().any(|d| d.iter().any(|b| *b != 0)) {
            judge(Some(number), Quirk::NoActionDigest)?;
        }
        let data = sized(r)?;
        let mut event = Event { number, pcr, kind, digest: self.log.bank.zero(), banks, data };
        match event.digest_in(self.log.bank) {
            Some(digest) => event.digest = digest,
            // EV_NO_ACTION extends nothing; its digest may be of another bank.
            None if !measured => {}
            // Not reached: a measured event has every bank of the header.
            None => return Err(Reject::Malformed),
        }
        self.startup(&event, judge)?;
        self.log.events.push(event);
        Ok(true)
    }

    /// TPML_DIGEST_VALUES: every bank of the header once, in whatever order.
    fn digests(
        &self,
        r: &mut Reader<'a>,
        measured: bool,
        number: u32,
        judge: Judge<'_>,
    ) -> Result<[Option<&'a [u8]>; HashAlg::ALL.len()], Reject> {
        let count = usize::try_from(u32_le(r)?).map_err(|_| Reject::Malformed)?;
        if count != self.sizes.len() {
            if measured {
                return Err(Reject::Malformed);
            }
            judge(Some(number), Quirk::NoActionBanks)?;
        }
        let mut banks = [None; HashAlg::ALL.len()];
        let mut seen = [false; BANKS_MAX];
        let mut ordered = true;
        // Ends at the first bank that is not in the header or stands twice, whatever the count.
        for place in 0..count {
            let algorithm = u16_le(r)?;
            let mut known = self.sizes.iter().zip(&mut seen).enumerate();
            let (index, (bank, seen)) =
                known.find(|(_, (b, _))| b.algorithm == algorithm).ok_or(Reject::Malformed)?;
            if std::mem::replace(seen, true) {
                return Err(Reject::Malformed);
            }
            ordered &= index == place;
            let digest = r.bytes(bank.size)?;
            for (hash, slot) in HashAlg::ALL.into_iter().zip(&mut banks) {
                if hash.id() == algorithm {
                    *slot = Some(digest);
                }
            }
        }
        if !ordered {
            judge(Some(number), Quirk::DigestOrder)?;
        }
        Ok(banks)
    }

    /// What an event says of PCR 0's first value. It stands before anything extends PCR 0, and once.
    fn startup(&mut self, event: &Event<'_>, judge: Judge<'_>) -> Result<(), Reject> {
        if event.is_measured() {
            let hcrtm = event.kind == EventType::EFI_HCRTM_EVENT;
            if event.pcr == 0 && hcrtm && !self.pcr0_begun && !self.locality_seen {
                judge(Some(event.number), Quirk::HcrtmWithoutLocality)?;
                self.log.startup_locality = HCRTM_LOCALITY;
            }
            self.pcr0_begun |= event.pcr == 0;
            return Ok(());
        }
        if event.data.starts_with(SPEC_ID) {
            judge(Some(event.number), Quirk::SpecIdAgain)?;
        }
        match event.data.strip_prefix(STARTUP_LOCALITY) {
            None => {}
            // 0, 3 and, with an H-CRTM, 4 (PFP 1.06, 10.4.5.3).
            Some([locality @ (0 | 3 | HCRTM_LOCALITY)])
                if event.pcr == 0 && !self.pcr0_begun && !self.locality_seen =>
            {
                self.locality_seen = true;
                self.log.startup_locality = *locality;
            }
            Some(_) => judge(Some(event.number), Quirk::StrayLocality)?,
        }
        Ok(())
    }
}

/// The register of an event.
fn register(pcr: u32, measured: bool, number: u32, judge: Judge<'_>) -> Result<u8, Reject> {
    let index = u8::try_from(pcr).ok().filter(|index| *index < PCR_COUNT);
    match index {
        None if measured => return Err(Reject::Malformed),
        None => judge(Some(number), Quirk::NoActionNowhere)?,
        Some(_) if pcr == DEBUG_PCR => judge(Some(number), Quirk::DebugRegister)?,
        Some(1..) if !measured => judge(Some(number), Quirk::NoActionElsewhere)?,
        Some(_) => {}
    }
    Ok(index.unwrap_or(Event::NO_PCR))
}

/// TCG_PCR_EVENT has one digest, SHA-1.
fn legacy_digest<'a>(r: &mut Reader<'a>) -> Result<[Option<&'a [u8]>; HashAlg::ALL.len()], Reject> {
    let digest = r.bytes(HashAlg::Sha1.size())?;
    Ok(HashAlg::ALL.map(|hash| (hash == HashAlg::Sha1).then_some(digest)))
}

/// No event begins so: a register of 0 or 2^32-1, a type of the same, and no digests or 2^32-1.
fn is_padding(rest: &[u8]) -> bool {
    let all = |byte: u8| rest.iter().all(|b| *b == byte);
    matches!(rest.first(), Some(0 | 0xff)) && (all(0) || all(0xff))
}

fn sized<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], Reject> {
    let size = usize::try_from(u32_le(r)?).map_err(|_| Reject::LimitExceeded)?;
    if size > EVENT_DATA_MAX {
        return Err(Reject::LimitExceeded);
    }
    r.bytes(size)
}

pub(super) fn u16_le(r: &mut Reader<'_>) -> Result<u16, Reject> {
    r.array().map(u16::from_le_bytes)
}

pub(super) fn u32_le(r: &mut Reader<'_>) -> Result<u32, Reject> {
    r.array().map(u32::from_le_bytes)
}

pub(super) fn u64_le(r: &mut Reader<'_>) -> Result<u64, Reject> {
    r.array().map(u64::from_le_bytes)
}

/// The first events of TPM 1.2 logs that have one: of BIOS and of EFI (EFI Platform Specification 1.22, 7.4).
const LEGACY_SPEC_IDS: [&[u8]; 2] = [b"Spec ID Event00\0", b"Spec ID Event02\0"];
/// PCR 0's first value when a hardware root of trust measured before TPM2_Startup (Part 1, 34.3).
const HCRTM_LOCALITY: u8 = 4;

#[cfg(test)]
mod tests;
