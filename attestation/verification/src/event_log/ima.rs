//! IMA's measurement list (Linux, security/integrity/ima; templates `ima-ng` and `ima-sig`), binary or ASCII,
//! against PCR 10.
//!
//! What is extended is the hash of the template data, in the bank's own algorithm since Linux 5.8; it is
//! recomputed from the fields, and the SHA-1 beside it must agree. The list runs on between quote and
//! reading, so the quoted value is looked for after every entry: the longest prefix that leads to it counts,
//! and none is ever skipped. Refused as `ima-invalid`: violations, the `ima` template, weak file digests, paths
//! with a NUL, another register, a first entry that is not this boot's `boot_aggregate`.

use std::borrow::Cow;

use super::parse::u32_le;
use super::replay::Registers;
use crate::Reject;
use crate::tpm::hash::{Ha, HashAlg};
use crate::tpm::wire::Reader;

/// Most bytes of a list: 100,000 entries of 160 bytes.
const LIST_MAX: usize = 16 << 20;
/// Most entries: a busy server measures some 30,000 files between boots.
const ENTRIES_MAX: usize = 100_000;
/// Most bytes of template data: PATH_MAX (4096), a digest, and a signature of at most 1 KiB (RSA-8192).
const TEMPLATE_MAX: usize = 6 << 10;
/// The register (CONFIG_IMA_MEASURE_PCR_IDX).
const IMA_PCR: u8 = 10;
/// Name of the first entry.
const BOOT_AGGREGATE: &[u8] = b"boot_aggregate";

/// A list of which every entry is well-formed and says what it extended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImaList<'a> {
    entries: Vec<Entry<'a>>,
}

/// One file measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Digest of the file's contents.
    pub digest: Ha,
    /// Bytes hashed and extended.
    template: Cow<'a, [u8]>,
    /// Where in it the path and the signature stand.
    path: (usize, usize),
    signature: (usize, usize),
}

impl Entry<'_> {
    /// The path, as the kernel saw it; not necessarily UTF-8.
    pub fn path(&self) -> &[u8] {
        self.template.get(self.path.0..self.path.1).unwrap_or_default()
    }

    /// The file's signature; empty without one.
    pub fn signature(&self) -> &[u8] {
        self.template.get(self.signature.0..self.signature.1).unwrap_or_default()
    }

    /// What was extended into a bank (Linux 5.8 and later).
    pub fn extended(&self, bank: HashAlg) -> Ha {
        bank.digest(&[&self.template])
    }
}

impl<'a> ImaList<'a> {
    /// Reads `binary_runtime_measurements`.
    pub fn binary(bytes: &'a [u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(limited(bytes)?);
        Self::collect(|| if r.rest().is_empty() { None } else { Some(binary_entry(&mut r)) })
    }

    /// Reads `ascii_runtime_measurements`.
    pub fn ascii(bytes: &'a [u8]) -> Result<Self, Reject> {
        let text = std::str::from_utf8(limited(bytes)?).map_err(|_| Reject::ImaInvalid)?;
        let whole = text.is_empty() || text.ends_with('\n');
        let mut lines = text.split_terminator('\n');
        if !whole {
            return Err(Reject::ImaInvalid);
        }
        Self::collect(|| lines.next().map(ascii_entry))
    }

    fn collect(
        mut next: impl FnMut() -> Option<Result<Entry<'a>, Reject>>,
    ) -> Result<Self, Reject> {
        let mut entries = Vec::new();
        while let Some(entry) = next() {
            if entries.len() == ENTRIES_MAX {
                return Err(Reject::LimitExceeded);
            }
            entries.push(entry?);
        }
        Ok(Self { entries })
    }

    /// The entries, in order.
    pub fn entries(&self) -> &[Entry<'a>] {
        &self.entries
    }

    /// The entries that the quoted value of PCR 10 covers, in a list whose boot aggregate is that of the
    /// firmware's registers. Entries after them were measured later, and are not returned.
    pub fn covered(&self, firmware: &Registers, quoted: &Ha) -> Result<&[Entry<'a>], Reject> {
        let bank = quoted.hash();
        if bank == HashAlg::Sha1 || firmware.bank() != bank {
            return Err(Reject::BankNotAllowed);
        }
        let first = self.entries.first().ok_or(Reject::ImaInvalid)?;
        if first.path() != BOOT_AGGREGATE {
            return Err(Reject::ImaInvalid);
        }
        // After a kexec there is one more; each is of the same boot of the firmware.
        for entry in self.entries.iter().filter(|entry| entry.path() == BOOT_AGGREGATE) {
            if Some(entry.digest) != boot_aggregate(firmware) {
                return Err(Reject::ImaInvalid);
            }
        }
        let mut value = bank.zero();
        let mut covered = None;
        for (count, entry) in (1..).zip(&self.entries) {
            value = value.extend(entry.extended(bank).as_bytes());
            if value == *quoted {
                covered = Some(count);
            }
        }
        let covered = covered.and_then(|count: usize| self.entries.get(..count));
        covered.ok_or(Reject::ReplayMismatch)
    }
}

/// The digest of PCR 0 to 9 (`ima_calc_boot_aggregate_tfm`, Linux 5.8 and later, banks other than SHA-1;
/// before, and for SHA-1, PCR 0 to 7).
pub fn boot_aggregate(firmware: &Registers) -> Option<Ha> {
    let values: Option<Vec<Ha>> = (0..10).map(|pcr| firmware.get(pcr)).collect();
    let values = values?;
    let parts: Vec<&[u8]> = values.iter().map(Ha::as_bytes).collect();
    Some(firmware.bank().digest(&parts))
}

fn limited(bytes: &[u8]) -> Result<&[u8], Reject> {
    if bytes.len() > LIST_MAX { Err(Reject::LimitExceeded) } else { Ok(bytes) }
}

/// Register, SHA-1 of the template, its name, its data.
fn binary_entry<'a>(r: &mut Reader<'a>) -> Result<Entry<'a>, Reject> {
    let cut = |_| Reject::ImaInvalid;
    let pcr = u32_le(r).map_err(cut)?;
    let recorded = r.bytes(HashAlg::Sha1.size()).map_err(cut)?;
    let name = field(r, NAME_MAX)?;
    if name == b"ima" {
        // Its data has another layout, and its file digests are SHA-1 or MD5.
        return Err(Reject::ImaInvalid);
    }
    let template = field(r, TEMPLATE_MAX)?;
    entry(pcr, recorded, name, Cow::Borrowed(template))
}

/// `10 <template hash> <template> <algorithm>:<digest> <path>[ <signature>]`. The kernel writes spaces of a
/// path as underscores, into what it measures too.
fn ascii_entry<'a>(line: &str) -> Result<Entry<'a>, Reject> {
    let bad = || Reject::ImaInvalid;
    let mut words = line.split(' ');
    // The register is right-aligned to two places, and is never below 10 here.
    let pcr = words.next().filter(|pcr| *pcr == "10").ok_or_else(bad)?;
    let pcr = pcr.parse().map_err(|_| bad())?;
    let mut word = || words.next().ok_or_else(bad);
    let recorded = hex::decode(word()?).map_err(|_| bad())?;
    let name = word()?;
    let (hash, digest) = word()?.split_once(':').ok_or_else(bad)?;
    let digest = hex::decode(digest).map_err(|_| bad())?;
    let path = word()?;
    let signature = match name {
        "ima-sig" => Some(hex::decode(words.next().unwrap_or_default()).map_err(|_| bad())?),
        _ => None,
    };
    if words.next().is_some_and(|rest| !rest.is_empty()) || words.next().is_some() {
        return Err(bad());
    }
    let mut template = Vec::new();
    append(&mut template, &[hash.as_bytes(), b":\0", &digest]);
    append(&mut template, &[path.as_bytes(), b"\0"]);
    if let Some(signature) = signature {
        append(&mut template, &[&signature]);
    }
    if template.len() > TEMPLATE_MAX {
        return Err(Reject::LimitExceeded);
    }
    entry(pcr, &recorded, name.as_bytes(), Cow::Owned(template))
}

fn append(template: &mut Vec<u8>, parts: &[&[u8]]) {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    template.extend(u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
    parts.iter().for_each(|part| template.extend_from_slice(part));
}

/// Checks one entry: register, template, fields, and that the SHA-1 recorded is of them.
fn entry<'a>(
    pcr: u32,
    recorded: &[u8],
    name: &[u8],
    template: Cow<'a, [u8]>,
) -> Result<Entry<'a>, Reject> {
    let bad = Err(Reject::ImaInvalid);
    // Zeros mark a violation: the file changed while it was measured, and 0xff.. was extended.
    if pcr != u32::from(IMA_PCR) || recorded.iter().all(|b| *b == 0) {
        return bad;
    }
    if HashAlg::Sha1.digest(&[&template]).as_bytes() != recorded {
        return bad;
    }
    let mut r = Reader::new(&template);
    let at = |r: &Reader<'_>| template.len().saturating_sub(r.rest().len());
    let digest = file_digest(field(&mut r, TEMPLATE_MAX)?)?;
    let path = field(&mut r, TEMPLATE_MAX)?;
    let path_end = at(&r).saturating_sub(1);
    let Some((0, path)) = path.split_last() else { return bad };
    if path.is_empty() || path.contains(&0) {
        return bad;
    }
    let path = (path_end.saturating_sub(path.len()), path_end);
    let signature = match name {
        b"ima-ng" => (at(&r), at(&r)),
        b"ima-sig" => {
            let size = field(&mut r, TEMPLATE_MAX)?.len();
            (at(&r).saturating_sub(size), at(&r))
        }
        _ => return bad,
    };
    r.finish().map_err(|_| Reject::ImaInvalid)?;
    Ok(Entry { digest, template, path, signature })
}

/// `sha256:`, NUL, the digest.
fn file_digest(field: &[u8]) -> Result<Ha, Reject> {
    let mut hashes = HashAlg::ALL.into_iter().filter(|hash| *hash != HashAlg::Sha1);
    let digest = hashes.find_map(|hash| {
        let digest = field.strip_prefix(hash.name().as_bytes())?.strip_prefix(b":\0")?;
        Ha::new(hash, digest)
    });
    digest.ok_or(Reject::ImaInvalid)
}

fn field<'a>(r: &mut Reader<'a>, max: usize) -> Result<&'a [u8], Reject> {
    let size = u32_le(r).map_err(|_| Reject::ImaInvalid)?;
    let size = usize::try_from(size).ok().filter(|size| *size <= max);
    r.bytes(size.ok_or(Reject::LimitExceeded)?).map_err(|_| Reject::ImaInvalid)
}

/// Most bytes of a template's name: the kernel's own limit (TEMPLATE_NAME_LEN is 16).
const NAME_MAX: usize = 16;

#[cfg(test)]
mod tests;
