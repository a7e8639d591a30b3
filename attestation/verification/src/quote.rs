//! A quote on its way to being believed (SPEC 7.3, steps 4 to 7): received, authentic, bound, and at last PCR values.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::testing::{AttestDraft, SoftAk};

    const EXTRA: Digest = Digest([5; 32]);
    const REQUIRED: &[u8] = &[0, 4, 7];

    fn values() -> Vec<(u8, Digest)> {
        REQUIRED.iter().map(|pcr| (*pcr, Digest([*pcr; 32]))).collect()
    }

    fn judge(ak: &SoftAk, part: &QuotePart) -> Result<QuotedPcrs, Reject> {
        ReceivedQuote::new(part)
            .authenticate(&ak.public)?
            .bind(&EXTRA, Reject::NonceMismatch)?
            .pcrs(REQUIRED)
    }

    /// Signs a changed attest, so that the signature is not what refuses.
    #[track_caller]
    fn check(what: &str, reject: Reject, change: impl FnOnce(&mut AttestDraft)) {
        let ak = SoftAk::new(1);
        let mut draft = AttestDraft::new(ak.public.endorsement_qualified_name(), &EXTRA, &values());
        change(&mut draft);
        let verdict = judge(&ak, &ak.quote(&draft, &values())).map(drop);
        assert_eq!(verdict, Err(reject), "{what}");
    }

    #[test]
    fn accepts_the_quote_the_near_misses_are_made_of() {
        let ak = SoftAk::new(1);
        let draft = AttestDraft::new(ak.public.endorsement_qualified_name(), &EXTRA, &values());
        let quoted = judge(&ak, &ak.quote(&draft, &values())).unwrap();
        assert_eq!(quoted.get(4), Ok(&Digest([4; 32])));
        assert_eq!(quoted.get(5), Err(Reject::PcrNotQuoted));
        let clock = quoted.clock_info();
        assert_eq!(
            (clock.clock, clock.reset_count, clock.restart_count, clock.safe),
            (7, 2, 3, true)
        );
    }

    #[test]
    fn refuses_structures_no_tpm_quotes_with() {
        check("magic (CVE-2024-29038)", Reject::BadMagic, |d| d.magic = 0xff54_4346);
        for kind in [0x8014, 0x8015, 0x8016, 0x8017, 0x8019, 0x801a, 0x801c] {
            check("type (GHSA-gwfg-w3jr-xh66)", Reject::WrongAttestType, |d| d.kind = kind);
        }
        check("trailing byte", Reject::TrailingData, |d| d.tail = vec![0]);
        check("clockInfo.safe of 2", Reject::Malformed, |d| d.safe = 2);
        check("no signer", Reject::Malformed, |d| d.signer.clear());
        check("signer as a handle", Reject::Malformed, |d| d.signer = vec![0x80, 0, 0, 0]);
        check("signer's name, not qualified name", Reject::SignerNameMismatch, |d| {
            d.signer = SoftAk::new(1).public.name().0.to_vec();
        });
        check("extraData too long", Reject::Malformed, |d| d.extra = vec![5; 67]);
    }

    #[test]
    fn refuses_other_qualifying_data() {
        check("empty", Reject::NonceMismatch, |d| d.extra.clear());
        check("prefix", Reject::NonceMismatch, |d| d.extra.truncate(31));
        check("nonce and more", Reject::NonceMismatch, |d| d.extra.push(0));
        check("as hex", Reject::NonceMismatch, |d| d.extra = hex::encode(EXTRA.0).into_bytes());
    }

    #[test]
    fn refuses_other_selections_and_digests() {
        let list = |bank: u16, bits: [u8; 3]| {
            [&1u32.to_be_bytes()[..], &bank.to_be_bytes(), &[3], &bits].concat()
        };
        check("nothing selected (CVE-2022-0317)", Reject::SelectionMismatch, |d| {
            d.selection = vec![0; 4];
            d.digest = Digest::of(&[]).0.to_vec();
        });
        check("no register selected", Reject::PcrNotQuoted, |d| d.selection = list(0x0b, [0; 3]));
        check("one register short", Reject::PcrNotQuoted, |d| {
            d.selection = list(0x0b, [0x81, 0, 0])
        });
        check("one register more", Reject::SelectionMismatch, |d| {
            d.selection = list(0x0b, [0x91, 4, 0]);
        });
        check("SHA-1 bank", Reject::BankNotAllowed, |d| d.selection = list(4, [0x91, 0, 0]));
        check("SHA-384 bank", Reject::BankNotAllowed, |d| d.selection = list(0x0c, [0x91, 0, 0]));
        check("values in reverse order", Reject::PcrDigestMismatch, |d| {
            let digests: Vec<_> = values().iter().rev().map(|(_, v)| v.0).collect();
            d.digest = Digest::of(&[&digests.concat()]).0.to_vec();
        });
        check("digest of 20 bytes", Reject::Malformed, |d| d.digest.truncate(20));
    }

    #[test]
    fn refuses_other_keys_and_schemes() {
        let (ak, other) = (SoftAk::new(1), SoftAk::new(2));
        let draft = AttestDraft::new(ak.public.endorsement_qualified_name(), &EXTRA, &values());
        let good = ak.quote(&draft, &values());
        assert_eq!(judge(&other, &good).map(drop), Err(Reject::BadSignature));
        let cases: &[(&str, Vec<u8>, Reject)] = &[
            ("null", vec![0, 0x10], Reject::SchemeMismatch),
            ("HMAC", vec![0, 5, 0, 0x0b], Reject::SchemeMismatch),
            ("DER", [&[0x30, 0x44][..], &[2; 68]].concat(), Reject::SchemeMismatch),
            ("r and s zero", [&good.signature[..4], &[0, 0, 0, 0]].concat(), Reject::BadSignature),
            (
                "r and s too large",
                [&good.signature[..4], &[0, 32], &[0xff; 32], &[0, 32], &[0xff; 32]].concat(),
                Reject::BadSignature,
            ),
            (
                "scalar of 33 bytes",
                [&good.signature[..4], &[0, 33, 0], &good.signature[6..]].concat(),
                Reject::Malformed,
            ),
            ("trailing byte", [&good.signature[..], &[0]].concat(), Reject::TrailingData),
            ("empty", vec![], Reject::Malformed),
        ];
        for (name, signature, reject) in cases {
            let part = QuotePart { signature: signature.clone(), ..good.clone() };
            assert_eq!(judge(&ak, &part).map(drop), Err(*reject), "{name}");
        }
        for attest in [[vec![0, 145], good.attest.clone()].concat(), vec![]] {
            let part = QuotePart { signature: ak.sign(&attest), attest, ..good.clone() };
            assert!(judge(&ak, &part).is_err(), "a TPM2B around the attest, or nothing");
        }
    }

    #[test]
    fn refuses_truncation_at_every_byte() {
        let ak = SoftAk::new(1);
        let draft = AttestDraft::new(ak.public.endorsement_qualified_name(), &EXTRA, &values());
        let attest = draft.encode();
        for len in 0..attest.len() {
            assert_eq!(Attest::parse(&attest[..len]), Err(Reject::Malformed), "{len} bytes");
        }
    }
}
