//! Why a TPM did not serve a disk, by whose fault it is.

use std::io;

use coffer_formats::Reject;

/// Why the TPM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// It does not answer. Whether it did what it was asked is not known.
    #[error("the TPM does not answer: {0}")]
    Gone(#[source] io::Error),
    /// What it answered does not parse.
    #[error("the TPM's answer does not parse")]
    Malformed,
    /// Somebody else answered, or altered the answer.
    #[error("the answer is not the TPM's")]
    Forged,
    /// Its storage key is not what the template says.
    #[error("the TPM made another storage key than it was asked for")]
    BadStorageKey,
    /// Its storage key is another than the one remembered.
    #[error("it is another TPM, or it was cleared")]
    Other,
    /// The owner hierarchy has an auth value.
    #[error("the owner hierarchy of the TPM has an auth value")]
    OwnerAuth,
    /// It limits writes to its NV memory, still after 3 s.
    #[error("the TPM puts off writes to its memory (TPM_RC_NV_RATE)")]
    NvRate,
    /// It protects itself against guessing.
    #[error("the TPM is locked against guessing of auth values (TPM_RC_LOCKOUT)")]
    Lockout,
    /// It is busy with something else, still after 3 s.
    #[error("the TPM puts off every command")]
    Busy,
    /// It lost the session: it was started anew.
    #[error("the TPM was started anew")]
    SessionLost,
    /// It refused.
    #[error("the TPM answered {doing} with 0x{code:03x}")]
    Code {
        /// The command.
        doing: &'static str,
        /// TPM_RC.
        code: u32,
    },
    /// The system gives no randomness.
    #[error("the system gives no randomness")]
    NoEntropy,
}

impl TpmError {
    /// Stable kebab-case code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Gone(_) => "tpm-gone",
            Self::Malformed => "tpm-malformed",
            Self::Forged => "tpm-forged",
            Self::BadStorageKey => "tpm-storage-key",
            Self::Other => "tpm-other",
            Self::OwnerAuth => "tpm-owner-auth",
            Self::NvRate => "tpm-nv-rate",
            Self::Lockout => "tpm-lockout",
            Self::Busy => "tpm-busy",
            Self::SessionLost => "tpm-restarted",
            Self::Code { .. } => "tpm-refused",
            Self::NoEntropy => "no-entropy",
        }
    }

    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Gone(_) => "check that the TPM exists and that the monitor may open it",
            Self::Malformed | Self::Forged => {
                "something between the host and its TPM alters what they say"
            }
            Self::BadStorageKey => "the TPM does not do what it is asked: use another",
            Self::Other => "use the host the disk belongs to, or restore a backup",
            Self::OwnerAuth => "clear the owner auth value of the TPM",
            Self::NvRate => "flush less often",
            Self::Lockout => "wait for the lockout to end, or reset it with tpm2_dictionarylockout",
            Self::Busy | Self::SessionLost | Self::NoEntropy => "try again in a few seconds",
            Self::Code { .. } => "see the TPM's manual for the code",
        }
    }

    pub(crate) fn answered(doing: &'static str, code: u32) -> Self {
        match code {
            code::NV_RATE => Self::NvRate,
            code::LOCKOUT => Self::Lockout,
            code::RETRY | code::TESTING | code::YIELDED => Self::Busy,
            code::REFERENCE_S0..=code::REFERENCE_S6 => Self::SessionLost,
            _ => Self::Code { doing, code },
        }
    }

    /// TPM_RC without the number of the handle, parameter or session it is about (Part 2, 6.6.2).
    pub(crate) fn kind(&self) -> Option<u32> {
        match self {
            Self::Code { code, .. } if code & 0x80 != 0 => Some(code & 0xbf),
            Self::Code { code, .. } => Some(*code),
            _ => None,
        }
    }
}

impl From<Reject> for TpmError {
    fn from(_: Reject) -> Self {
        Self::Malformed
    }
}

/// Why a counter is not used.
#[derive(Debug, thiserror::Error)]
pub enum CounterError {
    // --- what the TPM holds
    /// There is no such index: never made, removed, or another TPM.
    #[error("the TPM has no counter {index:#010x}")]
    Missing {
        /// NV index.
        index: u32,
    },
    /// The index is something else than a counter as disks have it.
    #[error("index {index:#010x} of the TPM is no counter of a disk")]
    Foreign {
        /// NV index.
        index: u32,
    },
    /// The counter was made and never moved: its making was cut off, or it was removed and made again.
    #[error("the counter {index:#010x} was never moved")]
    NotWritten {
        /// NV index.
        index: u32,
    },
    /// The counter does not have this disk's auth value: it was removed and made again, or is another disk's.
    #[error("the counter {index:#010x} does not know this disk's secret")]
    Redefined {
        /// NV index.
        index: u32,
    },

    // --- its value
    /// It is further than expected.
    #[error("the counter is ahead: at {found}, not at {expected}")]
    Ahead {
        /// Where it should be.
        expected: u64,
        /// Where it is.
        found: u64,
    },
    /// It is not as far as expected: that is not the TPM which counted.
    #[error("the counter is behind: at {found}, not at {expected}")]
    Behind {
        /// Where it should be.
        expected: u64,
        /// Where it is.
        found: u64,
    },

    // --- making one
    /// The index is taken.
    #[error("the TPM already has an index {index:#010x}")]
    Taken {
        /// NV index.
        index: u32,
    },
    /// No room for another counter.
    #[error("the TPM has no room for another counter")]
    Full,

    /// The TPM fails.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

impl CounterError {
    /// Stable kebab-case code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "counter-missing",
            Self::Foreign { .. } => "counter-foreign",
            Self::NotWritten { .. } => "counter-not-written",
            Self::Redefined { .. } => "counter-redefined",
            Self::Ahead { .. } => "counter-ahead",
            Self::Behind { .. } => "counter-behind",
            Self::Taken { .. } => "counter-taken",
            Self::Full => "counter-full",
            Self::Tpm(error) => error.code(),
        }
    }

    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Missing { .. } => {
                "the TPM was cleared or is not the disk's: restore a backup under a new counter"
            }
            Self::Foreign { .. } => "check which index belongs to which disk",
            Self::NotWritten { .. } => "if its making was cut off, remove it and make it again",
            Self::Redefined { .. } => {
                "check which counter belongs to which disk; if this one does, it was made again: restore a backup"
            }
            Self::Ahead { .. } => {
                "give back the newest copy of the disk; an older one is not accepted"
            }
            Self::Behind { .. } => {
                "the TPM is not the disk's: restore a backup under a new counter"
            }
            Self::Taken { .. } => "take another number",
            Self::Full => "remove counters of disks that are gone, or use a ledger",
            Self::Tpm(error) => error.hint(),
        }
    }
}

/// Why a key is not sealed, or not unsealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    // --- the blob
    /// Not one of ours.
    #[error("this is no sealed key")]
    Foreign,
    /// Of a version not known here.
    #[error("the sealed key has format version {0}")]
    UnsupportedVersion(u32),
    /// Cut off, or damaged by accident.
    #[error("the sealed key is damaged")]
    Torn,
    /// Whole, but not what this TPM made: altered on purpose.
    #[error("the sealed key is not as the TPM made it")]
    Altered,
    /// Another TPM's, or this one's before it was cleared.
    #[error("the key was sealed by another TPM")]
    OtherTpm,

    // --- the host
    /// The registers are not what they were to be (or the blob names others than it was sealed to).
    #[error("the host did not boot as the key was sealed for")]
    PcrsMoved,
    /// Registers changed while they were read.
    #[error("the registers changed while the key was sealed")]
    PcrsUnstable,
    /// The SHA-256 bank is not active.
    #[error("the TPM has no SHA-256 bank")]
    NoBank,

    // --- the caller
    /// No registers, one twice, or one that is not there or not counted.
    #[error("a key is sealed to registers 0 to 15 and 17 to 20, each once, one at least")]
    BadRegisters,

    /// The TPM fails.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

impl SealError {
    /// Stable kebab-case code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Foreign => "seal-foreign",
            Self::UnsupportedVersion(_) => "seal-version",
            Self::Torn => "seal-torn",
            Self::Altered => "seal-altered",
            Self::OtherTpm => "seal-other-tpm",
            Self::PcrsMoved => "seal-pcrs-moved",
            Self::PcrsUnstable => "seal-pcrs-unstable",
            Self::NoBank => "seal-no-bank",
            Self::BadRegisters => "seal-registers",
            Self::Tpm(error) => error.code(),
        }
    }

    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Foreign => "name the file the key was sealed in",
            Self::UnsupportedVersion(_) => "use the version of coffer that sealed it",
            Self::Torn | Self::Altered => "restore the file from a backup",
            Self::OtherTpm => "seal the key anew on this host",
            Self::PcrsMoved => "boot what the key was sealed for, or seal it anew",
            Self::PcrsUnstable => "try again once the host has booted",
            Self::NoBank => "activate the TPM's SHA-256 bank",
            Self::BadRegisters => {
                "name registers that firmware and boot measure into, such as 0, 7 and 11"
            }
            Self::Tpm(error) => error.hint(),
        }
    }
}

/// TPM_RC values (Part 2, 6.6.3).
pub(crate) mod code {
    pub(crate) const AUTH_FAIL: u32 = 0x08e;
    pub(crate) const POLICY_FAIL: u32 = 0x09d;
    pub(crate) const INTEGRITY: u32 = 0x09f;
    pub(crate) const HANDLE: u32 = 0x08b;
    pub(crate) const BAD_AUTH: u32 = 0x0a2;
    pub(crate) const PCR_CHANGED: u32 = 0x128;
    pub(crate) const NV_UNINITIALIZED: u32 = 0x14a;
    pub(crate) const NV_SPACE: u32 = 0x14b;
    pub(crate) const NV_DEFINED: u32 = 0x14c;
    pub(crate) const YIELDED: u32 = 0x908;
    pub(crate) const TESTING: u32 = 0x90a;
    pub(crate) const REFERENCE_S0: u32 = 0x918;
    pub(crate) const REFERENCE_S6: u32 = 0x91e;
    pub(crate) const NV_RATE: u32 = 0x920;
    pub(crate) const LOCKOUT: u32 = 0x921;
    pub(crate) const RETRY: u32 = 0x922;
}
