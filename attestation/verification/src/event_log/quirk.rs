//! Every irregularity a log may show, in one place: whether a verdict may still rest on the log, and why
//! it is safe to read on.
//!
//! There is one reader ([`super::parse`]); it says what it met. The strict one refuses where
//! [`Quirk::refusal`] names a code; the showing one notes all of them. What no reader can step over, such
//! as an event that is cut off, is no quirk: it ends the reading of both.

use std::fmt;

use serde::Serialize;

use crate::Reject;

macro_rules! quirks {
    ($( $(#[$doc:meta])* $name:ident = $code:literal, $refusal:expr, $why:literal; )*) => {
        /// What is irregular about a log or one of its events.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Quirk {
            $( $(#[$doc])* $name, )*
        }

        impl Quirk {
            /// Every quirk.
            pub const ALL: &'static [Self] = &[$( Self::$name, )*];

            /// Stable kebab-case name.
            pub fn code(self) -> &'static str {
                match self { $( Self::$name => $code, )* }
            }

            /// What a verdict says to it; none if a verdict may rest on such a log.
            pub fn refusal(self) -> Option<Reject> {
                match self { $( Self::$name => $refusal, )* }
            }

            /// Why reading on is safe.
            pub fn why_safe(self) -> &'static str {
                match self { $( Self::$name => $why, )* }
            }
        }
    };
}

quirks! {
    // Tolerated by both readers.
    /// The Spec ID event carries vendor information.
    VendorInfo = "vendor-info", None,
        "its length is stated, nothing reads it, and no register depends on it";
    /// An event lists its banks in another order than the header.
    DigestOrder = "digest-order", None,
        "each digest names its algorithm, each bank still stands there once, and replay is per bank";
    /// A bank of an algorithm nothing here computes, such as SM3.
    UnknownBank = "unknown-bank", None,
        "it is skipped by the size the header states; the other banks replay without it";
    /// EV_EFI_HCRTM_EVENT begins PCR 0 without a StartupLocality event before it.
    HcrtmWithoutLocality = "hcrtm-without-locality", None,
        "an H-CRTM starts PCR 0 at 4; a wrong start replays to another value than was quoted";
    /// EV_NO_ACTION that names a register other than PCR 0.
    NoActionElsewhere = "no-action-elsewhere", None,
        "EV_NO_ACTION extends nothing, so the register it names is not touched";

    // Shown, never the ground of a verdict.
    /// A log of TPM 1.2 style: SHA-1 digests only.
    LegacyFormat = "legacy-format", Some(Reject::BankNotAllowed),
        "the layout is fixed and bounded; SHA-1 is shown and nothing rests on it";
    /// No bank of SHA-256 or stronger.
    WeakBanksOnly = "weak-banks-only", Some(Reject::BankNotAllowed),
        "the events read as in any log; SHA-1 is shown and nothing rests on it";
    /// Nothing but zeros, or nothing but ones, after the last event.
    Padding = "padding", Some(Reject::Malformed),
        "a dump of the whole log area; Linux exports none, and no event has such a head";
    /// EV_NO_ACTION for a register that does not exist, often 0xFFFFFFFF.
    NoActionNowhere = "no-action-nowhere", Some(Reject::Malformed),
        "EV_NO_ACTION extends nothing, so no register is needed";
    /// EV_NO_ACTION with digests that are not zero.
    NoActionDigest = "no-action-digest", Some(Reject::Malformed),
        "EV_NO_ACTION extends nothing, whatever its digest";
    /// EV_NO_ACTION that lists other banks than the header.
    NoActionBanks = "no-action-banks", Some(Reject::Malformed),
        "the sizes of its digests are known, and EV_NO_ACTION extends nothing";
    /// An event in the debug register, PCR 16.
    DebugRegister = "debug-register", Some(Reject::Malformed),
        "anybody can reset PCR 16, so nothing is derived from it";
    /// StartupLocality that is repeated, late, in another register or of another value.
    StrayLocality = "stray-locality", Some(Reject::Malformed),
        "it is not taken for PCR 0's first value";
    /// A second Spec ID event.
    SpecIdAgain = "spec-id-again", Some(Reject::Malformed),
        "the banks stay those of the first; EV_NO_ACTION extends nothing";
}

impl fmt::Display for Quirk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Serialize for Quirk {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.code())
    }
}
