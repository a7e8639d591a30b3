//! A quote on its way to being believed (SPEC 7.3, steps 4 to 7): received, authentic, bound, and at last
//! register values.
//!
//! Each stage is a type that only the stage before can make, so a check cannot be left out: register values
//! exist only for registers that the signature covers. Scheme and hash are the enrolled key's; what the
//! message says of them is only compared.

use subtle::ConstantTimeEq as _;

use crate::evidence::{PcrValue, QuotePart};
use crate::tpm::attest::{Attest, ClockInfo, QuoteInfo};
use crate::tpm::command::Hierarchy;
use crate::tpm::hash::{Ha, HashAlg};
use crate::tpm::name::Name;
use crate::tpm::public::{Key, Public, Scheme};
use crate::tpm::signature::Signature;
use crate::{Digest, Reject};

/// The key a quote has to be signed by, with everything about it that the message must not choose.
pub struct QuoteKey<'a> {
    key: &'a Key,
    scheme: Scheme,
    signer: Signer,
}

/// What qualifiedSigner has to be.
enum Signer {
    Is(Name),
    DangerousAnybody,
}

impl<'a> QuoteKey<'a> {
    /// A primary of the endorsement hierarchy, as Coffer's attestation keys are: of keys elsewhere a TPM
    /// obfuscates clock and firmware version (Part 1, 36.7).
    pub fn endorsement_primary(public: &'a Public) -> Self {
        Self::primary(public, Hierarchy::Endorsement)
    }

    /// A primary of another hierarchy.
    pub fn primary(public: &'a Public, hierarchy: Hierarchy) -> Self {
        Self::named(public, public.name().qualified_in(hierarchy))
    }

    /// A child of the parent with this qualified name, as tools that make an AK below the EK have it.
    pub fn child(public: &'a Public, parent: &Name) -> Self {
        Self::named(public, public.name().qualified_below(parent))
    }

    fn named(public: &'a Public, qualified: Name) -> Self {
        Self { key: public.key(), scheme: public.scheme(), signer: Signer::Is(qualified) }
    }

    /// A key known without its Name or its parent, from a PEM file say. Any qualifiedSigner is accepted, so
    /// nothing tells which object of the TPM signed; the scheme is the caller's word.
    pub fn dangerous_unnamed(key: &'a Key, scheme: Scheme) -> Self {
        Self { key, scheme, signer: Signer::DangerousAnybody }
    }
}

/// A quote as it came in. Nothing in it is believed.
pub struct ReceivedQuote<'a> {
    attest: &'a [u8],
    signature: &'a [u8],
}

impl<'a> ReceivedQuote<'a> {
    /// Takes a TPMS_ATTEST and a TPMT_SIGNATURE as received.
    pub fn new(attest: &'a [u8], signature: &'a [u8]) -> Self {
        Self { attest, signature }
    }

    /// Takes a quote from a message.
    pub fn of(part: &'a QuotePart) -> Self {
        Self::new(&part.attest, &part.signature)
    }

    /// Verifies the signature, then that the signed structure is a quote made by a TPM and signed under the
    /// qualified name this key has.
    ///
    /// The key comes from where the caller's trust comes from, never from beside the signature.
    pub fn authenticate(self, key: &QuoteKey<'_>) -> Result<AuthenticQuote, Reject> {
        let signature = Signature::parse_under(key.scheme, self.signature)?;
        key.key.verify(key.scheme, self.attest, &signature)?;
        let hash = key.scheme.hash().ok_or(Reject::SchemeMismatch)?;
        let (attest, info) = Attest::parse_quote(self.attest)?;
        match &key.signer {
            Signer::Is(name) if *name != attest.qualified_signer => Err(Reject::SignerNameMismatch),
            _ => Ok(AuthenticQuote { attest, info, hash }),
        }
    }
}

/// A quote the key's TPM made; when and for whom is still open.
pub struct AuthenticQuote {
    attest: Attest,
    info: QuoteInfo,
    hash: HashAlg,
}

impl AuthenticQuote {
    /// Checks that the quote was made for exactly this qualifying data; `otherwise` is the reject if not.
    pub fn bind(self, expected: &[u8], otherwise: Reject) -> Result<BoundQuote, Reject> {
        if self.attest.extra_data.ct_eq(expected).into() {
            let Self { attest, info, hash } = self;
            Ok(BoundQuote { attest, info, hash })
        } else {
            Err(otherwise)
        }
    }
}

/// A quote that answers what was asked.
pub struct BoundQuote {
    attest: Attest,
    info: QuoteInfo,
    hash: HashAlg,
}

impl BoundQuote {
    /// What else was signed.
    pub fn signed(&self) -> Signed {
        Signed::of(&self.attest)
    }

    /// The registers signed, in the order in which their values are hashed.
    pub fn selected(&self) -> impl Iterator<Item = (HashAlg, u8)> + '_ {
        self.info.selections.registers()
    }

    /// Checks that `values`, one for each register signed and in that order, hash to the signed digest. The
    /// hash is the signing scheme's, not the bank's (Part 3, 18.4).
    pub fn registers(self, values: &[Ha]) -> Result<QuotedRegisters, Reject> {
        let selected: Vec<(HashAlg, u8)> = self.selected().collect();
        if selected.is_empty() || selected.len() != values.len() {
            return Err(Reject::SelectionMismatch);
        }
        if selected.iter().zip(values).any(|((bank, _), value)| *bank != value.hash()) {
            return Err(Reject::Malformed);
        }
        let parts: Vec<&[u8]> = values.iter().map(Ha::as_bytes).collect();
        if self.hash.digest(&parts).as_bytes() != self.info.pcr_digest {
            return Err(Reject::PcrDigestMismatch);
        }
        let values = selected.into_iter().zip(values).map(|((bank, pcr), v)| (bank, pcr, *v));
        Ok(QuotedRegisters { values: values.collect(), signed: Signed::of(&self.attest) })
    }

    /// Checks that the signed selection is exactly `required` of the SHA-256 bank, that the values sent are
    /// for exactly these registers in ascending order, and that they hash to the signed digest.
    pub fn pcrs(self, required: &[u8], sent: &[PcrValue]) -> Result<QuotedPcrs, Reject> {
        if !self.info.selections.is_only_of(HashAlg::Sha256) {
            return Err(Reject::BankNotAllowed);
        }
        let selected: Vec<u8> = self.selected().map(|(_, pcr)| pcr).collect();
        if required.iter().any(|pcr| !selected.contains(pcr)) {
            return Err(Reject::PcrNotQuoted);
        }
        if selected != required || !sent.iter().map(|value| &value.index).eq(required) {
            return Err(Reject::SelectionMismatch);
        }
        let parts: Vec<&[u8]> = sent.iter().map(|value| value.digest.as_bytes()).collect();
        if self.hash.digest(&parts).as_bytes() != self.info.pcr_digest {
            return Err(Reject::PcrDigestMismatch);
        }
        let values = sent.iter().map(|value| (value.index, value.digest)).collect();
        Ok(QuotedPcrs { values, signed: Signed::of(&self.attest) })
    }
}

/// What else a quote signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed {
    /// The TPM's clock when it signed.
    pub clock_info: ClockInfo,
    /// The vendor's firmware version.
    pub firmware_version: u64,
    /// Qualified name of the key, as signed.
    pub qualified_signer: Name,
}

impl Signed {
    fn of(attest: &Attest) -> Self {
        Self {
            clock_info: attest.clock_info,
            firmware_version: attest.firmware_version,
            qualified_signer: attest.qualified_signer,
        }
    }
}

/// Register values of any banks that a TPM signed, under the key the caller trusts.
#[derive(Debug, Clone)]
pub struct QuotedRegisters {
    values: Vec<(HashAlg, u8, Ha)>,
    signed: Signed,
}

impl QuotedRegisters {
    /// The value of one register; one outside the signed selection has none.
    pub fn get(&self, bank: HashAlg, pcr: u8) -> Result<&Ha, Reject> {
        self.iter()
            .find(|(b, p, _)| (*b, *p) == (bank, pcr))
            .map(|(.., v)| v)
            .ok_or(Reject::PcrNotQuoted)
    }

    /// Every quoted register, in the order signed.
    pub fn iter(&self) -> impl Iterator<Item = (HashAlg, u8, &Ha)> {
        self.values.iter().map(|(bank, pcr, value)| (*bank, *pcr, value))
    }

    /// Checks that a verdict may rest on these registers of this bank: all are quoted, none can be reset by
    /// whoever likes, the bank is no weaker than SHA-256, and firmware measured into those it owns.
    pub fn rely_on(&self, bank: HashAlg, pcrs: &[u8]) -> Result<(), Reject> {
        if bank == HashAlg::Sha1 || !self.iter().any(|(quoted, ..)| quoted == bank) {
            return Err(Reject::BankNotAllowed);
        }
        for pcr in pcrs {
            judge_register(*pcr, self.get(bank, *pcr)?.as_bytes())?;
        }
        Ok(())
    }

    /// What else was signed.
    pub fn signed(&self) -> &Signed {
        &self.signed
    }
}

/// Register values of the SHA-256 bank that a TPM signed, for this challenge, under the key the caller trusts.
#[derive(Debug, Clone)]
pub struct QuotedPcrs {
    values: Vec<(u8, Digest)>,
    signed: Signed,
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

    /// Checks each register as [`QuotedRegisters::rely_on`] does.
    pub fn check_reliable(&self) -> Result<(), Reject> {
        self.iter().try_for_each(|(pcr, value)| judge_register(pcr, value.as_bytes()))
    }

    /// The TPM's clock when it signed.
    pub fn clock_info(&self) -> ClockInfo {
        self.signed.clock_info
    }

    /// What else was signed.
    pub fn signed(&self) -> &Signed {
        &self.signed
    }
}

/// PCR 16 and 23 belong to whoever resets them (PTP 1.05, 4.6.2). Firmware ends its part of PCR 0 to 7 with
/// a separator at least, so a value of all zeros or all ones there is a TPM that firmware never spoke to.
fn judge_register(pcr: u8, value: &[u8]) -> Result<(), Reject> {
    let all = |byte: u8| value.iter().all(|b| *b == byte);
    match pcr {
        DEBUG_PCR | APPLICATION_PCR => Err(Reject::PcrResettable),
        0..FIRMWARE_PCRS if all(0) || all(0xff) => Err(Reject::PcrUninitialised),
        _ => Ok(()),
    }
}

/// Resettable by anybody.
const DEBUG_PCR: u8 = 16;
/// Resettable by anybody.
const APPLICATION_PCR: u8 = 23;
/// PCR 0 to 7 are firmware's.
const FIRMWARE_PCRS: u8 = 8;

#[cfg(test)]
mod tests;
