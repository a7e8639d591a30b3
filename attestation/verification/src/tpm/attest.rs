//! What a TPM attests to (TPMS_ATTEST; Part 2, 10.12): every type told apart, read strictly.
//!
//! Read only after the signature over the same bytes was verified. A structure without the magic (an
//! unrestricted key can sign anything), of another type, with an ill-formed flag or with bytes left over is
//! refused (tpm2-tools CVE-2024-29038 and GHSA-gwfg-w3jr-xh66 are why).

use super::name::Name;
use crate::Reject;
use crate::tpm::hash::HashAlg;
use crate::tpm::pcr::Selections;
use crate::tpm::wire::{Reader, Writer};

/// TPM_GENERATED_VALUE: `\xffTCG` (Part 2, 6.2).
const MAGIC: u32 = 0xff54_4347;
/// Most bytes of extraData: TPM2B_DATA holds a TPMT_HA, 2 bytes and a SHA-512 digest (Part 2, 10.4.3).
const EXTRA_DATA_MAX: usize = 66;
/// Most bytes of a digest (SHA-512).
const DIGEST_MAX: usize = 64;
/// Most bytes of certified NV data: MAX_NV_BUFFER_SIZE is 1024 in the reference code, 2048 in libtpms.
const NV_CONTENTS_MAX: usize = 2048;

/// TPM_ST_ATTEST_* (Part 2, 6.9).
mod tag {
    pub const NV: u16 = 0x8014;
    pub const COMMAND_AUDIT: u16 = 0x8015;
    pub const SESSION_AUDIT: u16 = 0x8016;
    pub const CERTIFY: u16 = 0x8017;
    pub const QUOTE: u16 = 0x8018;
    pub const TIME: u16 = 0x8019;
    pub const CREATION: u16 = 0x801a;
    pub const NV_DIGEST: u16 = 0x801c;
}

/// TPMS_CLOCK_INFO (Part 2, 10.11.1): signed by the TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockInfo {
    /// Milliseconds the TPM was powered; does not run backwards.
    pub clock: u64,
    /// TPM Resets since the last TPM2_Clear.
    pub reset_count: u32,
    /// TPM Restarts and Resumes since the last TPM Reset.
    pub restart_count: u32,
    /// False if the clock may repeat values after an unorderly shutdown.
    pub safe: bool,
}

/// A TPMS_ATTEST. Every field is signed by the TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attest {
    /// Qualified name of the signing key.
    pub qualified_signer: Name,
    /// What the caller gave as qualifying data.
    pub extra_data: Vec<u8>,
    /// Clock and reset counters.
    pub clock_info: ClockInfo,
    /// Vendor's firmware version.
    pub firmware_version: u64,
    /// What is attested.
    pub attested: Attested,
}

/// TPMU_ATTEST: one arm for each TPM_ST_ATTEST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attested {
    /// TPMS_QUOTE_INFO.
    Quote(QuoteInfo),
    /// TPMS_CERTIFY_INFO: an object is loaded in this TPM.
    Certify {
        /// Name of the object.
        name: Name,
        /// Its qualified name.
        qualified_name: Name,
    },
    /// TPMS_CREATION_INFO: an object was made by this TPM.
    Creation {
        /// Name of the object.
        object_name: Name,
        /// Hash of TPMS_CREATION_DATA.
        creation_hash: Vec<u8>,
    },
    /// TPMS_TIME_ATTEST_INFO.
    Time {
        /// Milliseconds since the TPM's power-on.
        time: u64,
        /// The clock once more.
        clock_info: ClockInfo,
        /// The firmware version once more.
        firmware_version: u64,
    },
    /// TPMS_COMMAND_AUDIT_INFO.
    CommandAudit {
        /// Audit counter.
        counter: u64,
        /// Hash algorithm of the audit, TPM_ALG_ID.
        digest_alg: u16,
        /// The audit digest.
        audit_digest: Vec<u8>,
        /// Digest of the audited command codes.
        command_digest: Vec<u8>,
    },
    /// TPMS_SESSION_AUDIT_INFO.
    SessionAudit {
        /// True if nothing else was done in between.
        exclusive: bool,
        /// The session's audit digest.
        session_digest: Vec<u8>,
    },
    /// TPMS_NV_CERTIFY_INFO.
    Nv {
        /// Name of the index.
        index_name: Name,
        /// Where the data starts.
        offset: u16,
        /// The data.
        contents: Vec<u8>,
    },
    /// TPMS_NV_DIGEST_CERTIFY_INFO.
    NvDigest {
        /// Name of the index.
        index_name: Name,
        /// Hash of its contents.
        digest: Vec<u8>,
    },
}

/// TPMS_QUOTE_INFO (Part 2, 10.12.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuoteInfo {
    /// Registers the digest covers.
    pub selections: Selections,
    /// Digest, under the signing scheme's hash, over the concatenated values of the selected registers.
    pub pcr_digest: Vec<u8>,
}

impl Attest {
    /// Reads a TPMS_ATTEST with nothing before and nothing after it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        let mut r = Reader::new(bytes);
        if r.u32()? != MAGIC {
            return Err(Reject::BadMagic);
        }
        let kind = r.u16()?;
        let attest = Self {
            qualified_signer: name(&mut r)?,
            extra_data: r.tpm2b(EXTRA_DATA_MAX)?.to_vec(),
            clock_info: clock_info(&mut r)?,
            firmware_version: u64_of(&mut r)?,
            attested: Attested::read(kind, &mut r)?,
        };
        r.finish()?;
        Ok(attest)
    }

    /// Reads a TPMS_ATTEST that has to be a quote. Any other type is [`Reject::WrongAttestType`] before
    /// anything else of it is read.
    pub fn parse_quote(bytes: &[u8]) -> Result<(Self, QuoteInfo), Reject> {
        let mut r = Reader::new(bytes);
        if r.u32()? != MAGIC {
            return Err(Reject::BadMagic);
        }
        if r.u16()? != tag::QUOTE {
            return Err(Reject::WrongAttestType);
        }
        let attest = Self::parse(bytes)?;
        match &attest.attested {
            Attested::Quote(info) => {
                let info = info.clone();
                Ok((attest, info))
            }
            _ => Err(Reject::WrongAttestType),
        }
    }

    /// Writes the structure: what [`Self::parse`] reads.
    pub fn write(&self) -> Vec<u8> {
        let w = Writer::new().u32(MAGIC).u16(self.attested.tag());
        let w = w.tpm2b(&self.qualified_signer.to_bytes()).tpm2b(&self.extra_data);
        let w = write_clock_info(w, &self.clock_info).bytes(&self.firmware_version.to_be_bytes());
        self.attested.write(w).finish()
    }
}

impl Attested {
    fn read(kind: u16, r: &mut Reader<'_>) -> Result<Self, Reject> {
        Ok(match kind {
            tag::QUOTE => {
                let (selections, pcr_digest) = (Selections::read(r)?, digest(r)?);
                // TPM2_Quote hashes even no value; only an audit may have no digest yet.
                if pcr_digest.is_empty() {
                    return Err(Reject::Malformed);
                }
                Self::Quote(QuoteInfo { selections, pcr_digest })
            }
            tag::CERTIFY => Self::Certify { name: name(r)?, qualified_name: name(r)? },
            tag::CREATION => Self::Creation { object_name: name(r)?, creation_hash: digest(r)? },
            tag::TIME => Self::Time {
                time: u64_of(r)?,
                clock_info: clock_info(r)?,
                firmware_version: u64_of(r)?,
            },
            tag::COMMAND_AUDIT => Self::CommandAudit {
                counter: u64_of(r)?,
                digest_alg: r.u16()?,
                audit_digest: digest(r)?,
                command_digest: digest(r)?,
            },
            tag::SESSION_AUDIT => {
                Self::SessionAudit { exclusive: yes_no(r)?, session_digest: digest(r)? }
            }
            tag::NV => Self::Nv {
                index_name: name(r)?,
                offset: r.u16()?,
                contents: r.tpm2b(NV_CONTENTS_MAX)?.to_vec(),
            },
            tag::NV_DIGEST => Self::NvDigest { index_name: name(r)?, digest: digest(r)? },
            _ => return Err(Reject::WrongAttestType),
        })
    }

    fn tag(&self) -> u16 {
        match self {
            Self::Quote(_) => tag::QUOTE,
            Self::Certify { .. } => tag::CERTIFY,
            Self::Creation { .. } => tag::CREATION,
            Self::Time { .. } => tag::TIME,
            Self::CommandAudit { .. } => tag::COMMAND_AUDIT,
            Self::SessionAudit { .. } => tag::SESSION_AUDIT,
            Self::Nv { .. } => tag::NV,
            Self::NvDigest { .. } => tag::NV_DIGEST,
        }
    }

    fn write(&self, w: Writer) -> Writer {
        match self {
            Self::Quote(info) => info.selections.write(w).tpm2b(&info.pcr_digest),
            Self::Certify { name, qualified_name } => {
                w.tpm2b(&name.to_bytes()).tpm2b(&qualified_name.to_bytes())
            }
            Self::Creation { object_name, creation_hash } => {
                w.tpm2b(&object_name.to_bytes()).tpm2b(creation_hash)
            }
            Self::Time { time, clock_info, firmware_version } => {
                write_clock_info(w.bytes(&time.to_be_bytes()), clock_info)
                    .bytes(&firmware_version.to_be_bytes())
            }
            Self::CommandAudit { counter, digest_alg, audit_digest, command_digest } => w
                .bytes(&counter.to_be_bytes())
                .u16(*digest_alg)
                .tpm2b(audit_digest)
                .tpm2b(command_digest),
            Self::SessionAudit { exclusive, session_digest } => {
                w.u8((*exclusive).into()).tpm2b(session_digest)
            }
            Self::Nv { index_name, offset, contents } => {
                w.tpm2b(&index_name.to_bytes()).u16(*offset).tpm2b(contents)
            }
            Self::NvDigest { index_name, digest } => w.tpm2b(&index_name.to_bytes()).tpm2b(digest),
        }
    }
}

fn name(r: &mut Reader<'_>) -> Result<Name, Reject> {
    Name::parse(r.tpm2b(Name::MAX)?)
}

/// A digest of one of the widths there are, or none.
fn digest(r: &mut Reader<'_>) -> Result<Vec<u8>, Reject> {
    let digest = r.tpm2b(DIGEST_MAX)?;
    let width = digest.is_empty() || HashAlg::ALL.iter().any(|hash| hash.size() == digest.len());
    if width { Ok(digest.to_vec()) } else { Err(Reject::Malformed) }
}

fn clock_info(r: &mut Reader<'_>) -> Result<ClockInfo, Reject> {
    Ok(ClockInfo {
        clock: u64_of(r)?,
        reset_count: r.u32()?,
        restart_count: r.u32()?,
        safe: yes_no(r)?,
    })
}

/// TPMI_YES_NO has two values.
fn yes_no(r: &mut Reader<'_>) -> Result<bool, Reject> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Reject::Malformed),
    }
}

/// Eight bytes, big-endian.
fn u64_of(r: &mut Reader<'_>) -> Result<u64, Reject> {
    r.array().map(u64::from_be_bytes)
}

fn write_clock_info(w: Writer, info: &ClockInfo) -> Writer {
    w.bytes(&info.clock.to_be_bytes())
        .u32(info.reset_count)
        .u32(info.restart_count)
        .u8(info.safe.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_name() -> impl Strategy<Value = Name> {
        any::<bool>().prop_flat_map(|wide| {
            let hash = if wide { HashAlg::Sha384 } else { HashAlg::Sha256 };
            proptest::collection::vec(any::<u8>(), 1..9).prop_map(move |b| Name::of(hash, &b))
        })
    }

    fn any_digest() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![Just(vec![]), proptest::collection::vec(any::<u8>(), 32..33), Just(vec![7; 48])]
    }

    fn any_clock() -> impl Strategy<Value = ClockInfo> {
        any::<(u64, u32, u32, bool)>().prop_map(|(clock, reset_count, restart_count, safe)| {
            ClockInfo { clock, reset_count, restart_count, safe }
        })
    }

    fn any_attested() -> impl Strategy<Value = Attested> {
        let pcrs = proptest::collection::btree_set(0u8..24, 0..24);
        prop_oneof![
            (pcrs, any::<[u8; 32]>()).prop_map(|(pcrs, pcr_digest)| {
                let pcr_digest = pcr_digest.to_vec();
                let pcrs: Vec<u8> = pcrs.into_iter().collect();
                let selections = Selections::of(&[(HashAlg::Sha256, &pcrs), (HashAlg::Sha1, &[1])]);
                Attested::Quote(QuoteInfo { selections, pcr_digest })
            }),
            (any_name(), any_name())
                .prop_map(|(name, qualified_name)| Attested::Certify { name, qualified_name }),
            (any_name(), any_digest()).prop_map(|(object_name, creation_hash)| {
                Attested::Creation { object_name, creation_hash }
            }),
            (any::<u64>(), any_clock(), any::<u64>()).prop_map(
                |(time, clock_info, firmware_version)| Attested::Time {
                    time,
                    clock_info,
                    firmware_version
                }
            ),
            (any::<u64>(), any::<u16>(), any_digest(), any_digest()).prop_map(
                |(counter, digest_alg, audit_digest, command_digest)| Attested::CommandAudit {
                    counter,
                    digest_alg,
                    audit_digest,
                    command_digest
                }
            ),
            (any::<bool>(), any_digest()).prop_map(|(exclusive, session_digest)| {
                Attested::SessionAudit { exclusive, session_digest }
            }),
            (any_name(), any::<u16>(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(
                |(index_name, offset, contents)| Attested::Nv { index_name, offset, contents }
            ),
            (any_name(), any_digest())
                .prop_map(|(index_name, digest)| Attested::NvDigest { index_name, digest }),
        ]
    }

    fn any_attest() -> impl Strategy<Value = Attest> {
        let extra = proptest::collection::vec(any::<u8>(), 0..66);
        (any_name(), extra, any_clock(), any::<u64>(), any_attested()).prop_map(
            |(qualified_signer, extra_data, clock_info, firmware_version, attested)| Attest {
                qualified_signer,
                extra_data,
                clock_info,
                firmware_version,
                attested,
            },
        )
    }

    proptest! {
        #[test]
        fn reads_what_it_wrote(attest in any_attest()) {
            let bytes = attest.write();
            prop_assert_eq!(Attest::parse(&bytes), Ok(attest.clone()));
            let is_quote = matches!(attest.attested, Attested::Quote(_));
            let quote = Attest::parse_quote(&bytes);
            if is_quote {
                prop_assert!(quote.is_ok());
            } else {
                prop_assert_eq!(quote, Err(Reject::WrongAttestType));
            }
        }

        #[test]
        fn writes_what_it_read(attest in any_attest(), at: usize, bit in 0u8..8, cut: usize) {
            let mut bytes = attest.write();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok(read) = Attest::parse(&bytes) {
                prop_assert_eq!(read.write(), bytes.clone());
            }
            bytes.truncate(cut % bytes.len());
            prop_assert!(Attest::parse(&bytes).is_err());
        }
    }

    #[test]
    fn refuses_every_near_miss() {
        let good = Attest {
            qualified_signer: Name::of(HashAlg::Sha256, b"x"),
            extra_data: vec![1; 32],
            clock_info: ClockInfo { clock: 1, reset_count: 2, restart_count: 3, safe: true },
            firmware_version: 4,
            attested: Attested::SessionAudit { exclusive: true, session_digest: vec![5; 32] },
        }
        .write();
        assert!(Attest::parse(&good).is_ok());
        let patched = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        let cases: &[(&str, Vec<u8>, Reject)] = &[
            ("magic", patched(0, 0xfe), Reject::BadMagic),
            ("TPM2B around it", [&[0, 145], &good[..]].concat(), Reject::BadMagic),
            ("little-endian", good.iter().rev().copied().collect(), Reject::BadMagic),
            ("no such type", patched(5, 0x1b), Reject::WrongAttestType),
            ("extraData of 67 bytes", patched(43, 67), Reject::Malformed),
            ("safe is 2", patched(44 + 32 + 16, 2), Reject::Malformed),
            ("exclusive is 2", patched(44 + 32 + 25, 2), Reject::Malformed),
            ("trailing byte", [&good[..], &[0]].concat(), Reject::TrailingData),
        ];
        for (what, bytes, reject) in cases {
            assert_eq!(Attest::parse(bytes), Err(*reject), "{what}");
        }
    }
}
