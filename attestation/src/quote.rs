//! A quote on its way to being believed (SPEC 5.4): received, authentic, bound, and at last PCR values.
//!
//! Each stage is a type that only the stage before can make, so a check cannot be left out: register values
//! exist only for registers that the signature covers.

use subtle::ConstantTimeEq as _;

use crate::evidence::QuotePart;
use crate::tpm::attest::{Attest, ClockInfo};
use crate::tpm::public::Public;
use crate::tpm::signature::Signature;
use crate::{Digest, Reject};

/// A quote as it came in. Nothing in it is believed.
pub struct ReceivedQuote<'a> {
    part: &'a QuotePart,
}

impl<'a> ReceivedQuote<'a> {
    /// Takes a quote from a message.
    pub fn new(part: &'a QuotePart) -> Self {
        Self { part }
    }

    /// Verifies the signature by `key`, then that the signed structure is a quote made by a TPM and signed
    /// under the qualified name this key has as a primary of the endorsement hierarchy.
    ///
    /// The key comes from where the caller's trust comes from, never from beside the signature.
    pub fn authenticate(self, key: &Public) -> Result<AuthenticQuote<'a>, Reject> {
        let signature = Signature::parse(&self.part.signature)?;
        key.verify(&self.part.attest, &signature)?;
        let attest = Attest::parse(&self.part.attest)?;
        if attest.qualified_signer != key.endorsement_qualified_name() {
            return Err(Reject::SignerNameMismatch);
        }
        Ok(AuthenticQuote { part: self.part, attest })
    }
}

/// A quote the key's TPM made; when and for whom is still open.
pub struct AuthenticQuote<'a> {
    part: &'a QuotePart,
    attest: Attest,
}

impl<'a> AuthenticQuote<'a> {
    /// Checks that the quote was made for exactly this qualifying data; `otherwise` is the reject if not.
    pub fn bind(self, expected: &Digest, otherwise: Reject) -> Result<BoundQuote<'a>, Reject> {
        if self.attest.extra_data.ct_eq(expected.as_bytes()).into() {
            Ok(BoundQuote { part: self.part, attest: self.attest })
        } else {
            Err(otherwise)
        }
    }
}

/// A quote that answers what was asked.
pub struct BoundQuote<'a> {
    part: &'a QuotePart,
    attest: Attest,
}

impl BoundQuote<'_> {
    /// Checks that the signed selection is exactly `required`, that the values sent are for exactly these
    /// registers in ascending order, and that they hash to the signed digest (Part 3, 18.4).
    pub fn pcrs(self, required: &[u8]) -> Result<QuotedPcrs, Reject> {
        let selected = self.attest.selection.indices();
        if required.iter().any(|pcr| !selected.contains(pcr)) {
            return Err(Reject::PcrNotQuoted);
        }
        let sent = self.part.pcrs.iter().map(|value| &value.index);
        if selected != required || !sent.eq(required) {
            return Err(Reject::SelectionMismatch);
        }
        let values: Vec<&[u8]> = self.part.pcrs.iter().map(|v| v.digest.as_bytes()).collect();
        if Digest::of(&values) != self.attest.pcr_digest {
            return Err(Reject::PcrDigestMismatch);
        }
        let values = self.part.pcrs.iter().map(|v| (v.index, v.digest)).collect();
        Ok(QuotedPcrs { values, clock_info: self.attest.clock_info })
    }
}

/// Register values that a TPM signed, for this challenge, under the key the caller trusts.
#[derive(Debug, Clone)]
pub struct QuotedPcrs {
    values: Vec<(u8, Digest)>,
    clock_info: ClockInfo,
}

impl QuotedPcrs {
    /// The value of one register; a register outside the signed selection has none.
    pub fn get(&self, pcr: u8) -> Result<&Digest, Reject> {
        self.iter().find(|(index, _)| *index == pcr).map(|(_, v)| v).ok_or(Reject::PcrNotQuoted)
    }

    /// Every quoted register, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &Digest)> {
        self.values.iter().map(|(pcr, value)| (*pcr, value))
    }

    /// The TPM's clock when it signed.
    pub fn clock_info(&self) -> ClockInfo {
        self.clock_info
    }
}
