//! Quotes through their stages, and near misses.

use super::*;
use crate::tpm::testing::{AttestDraft, SoftAk};

const EXTRA: Digest = Digest([5; 32]);
const REQUIRED: &[u8] = &[0, 4, 7];

fn values() -> Vec<(u8, Digest)> {
    REQUIRED.iter().map(|pcr| (*pcr, Digest([*pcr; 32]))).collect()
}

fn judge(ak: &SoftAk, part: &QuotePart) -> Result<QuotedPcrs, Reject> {
    ReceivedQuote::of(part)
        .authenticate(&QuoteKey::endorsement_primary(&ak.public))?
        .bind(EXTRA.as_bytes(), Reject::NonceMismatch)?
        .pcrs(REQUIRED, &part.pcrs)
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
    assert_eq!((clock.clock, clock.reset_count, clock.restart_count, clock.safe), (7, 2, 3, true));
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
        d.signer = SoftAk::new(1).public.name().to_bytes();
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
    check("one register short", Reject::PcrNotQuoted, |d| d.selection = list(0x0b, [0x81, 0, 0]));
    check("one register more", Reject::SelectionMismatch, |d| {
        d.selection = list(0x0b, [0x91, 4, 0]);
    });
    check("SHA-1 bank", Reject::BankNotAllowed, |d| d.selection = list(4, [0x91, 0, 0]));
    check("SHA-384 bank", Reject::BankNotAllowed, |d| d.selection = list(0x0c, [0x91, 0, 0]));
    check("values in reverse order", Reject::PcrDigestMismatch, |d| {
        let digests: Vec<_> = values().iter().rev().map(|(_, v)| v.0).collect();
        d.digest = Digest::of(&[&digests.concat()]).0.to_vec();
    });
    check("digest of 20 bytes", Reject::PcrDigestMismatch, |d| d.digest.truncate(20));
    check("digest of 31 bytes", Reject::Malformed, |d| d.digest.truncate(31));
    check("a bank twice", Reject::DuplicateBank, |d| {
        d.selection =
            [&[0, 0, 0, 2], &list(0x0b, [0x91, 0, 0])[4..], &list(0x0b, [0x91, 0, 0])[4..]]
                .concat();
    });
    check("two banks", Reject::BankNotAllowed, |d| {
        d.selection =
            [&[0, 0, 0, 2], &list(0x0b, [0x91, 0, 0])[4..], &list(0x0c, [1, 0, 0])[4..]].concat();
    });
}

#[test]
fn refuses_other_keys_and_schemes() {
    let (ak, other) = (SoftAk::new(1), SoftAk::new(2));
    let draft = AttestDraft::new(ak.public.endorsement_qualified_name(), &EXTRA, &values());
    let good = ak.quote(&draft, &values());
    assert_eq!(judge(&other, &good).map(drop), Err(Reject::BadSignature));
    let cases: &[(&str, Vec<u8>, Reject)] = &[
        ("null", vec![0, 0x10], Reject::NoSignature),
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

/// One bank of a selection.
fn bank(hash: HashAlg, bits: [u8; 3]) -> Vec<u8> {
    [&hash.id().to_be_bytes()[..], &[3], &bits].concat()
}

/// What a quote of these banks, signed over `signed`, says when `sent` is sent beside it.
fn registers(banks: &[Vec<u8>], signed: &[Ha], sent: &[Ha]) -> Result<QuotedRegisters, Reject> {
    let ak = SoftAk::new(1);
    let mut draft = AttestDraft::new(ak.public.endorsement_qualified_name(), &EXTRA, &[]);
    draft.selection = [(banks.len() as u32).to_be_bytes().to_vec(), banks.concat()].concat();
    let parts: Vec<&[u8]> = signed.iter().map(Ha::as_bytes).collect();
    draft.digest = Digest::of(&parts).0.to_vec();
    let part = ak.quote(&draft, &[]);
    ReceivedQuote::of(&part)
        .authenticate(&QuoteKey::endorsement_primary(&ak.public))?
        .bind(EXTRA.as_bytes(), Reject::NonceMismatch)?
        .registers(sent)
}

#[test]
fn registers_of_any_banks_stand_in_the_order_signed() {
    let [a, b] = [b"a", b"b"].map(|value| HashAlg::Sha256.digest(&[value]));
    let c = HashAlg::Sha384.digest(&[b"c"]);
    let banks = [bank(HashAlg::Sha384, [0x80, 0, 0]), bank(HashAlg::Sha256, [0x11, 0, 0])];
    let quoted = registers(&banks, &[c, a, b], &[c, a, b]).unwrap();
    let all: Vec<_> = quoted.iter().map(|(bank, pcr, value)| (bank, pcr, *value)).collect();
    let expected = [(HashAlg::Sha384, 7, c), (HashAlg::Sha256, 0, a), (HashAlg::Sha256, 4, b)];
    assert_eq!(all, expected);
    assert_eq!(quoted.get(HashAlg::Sha256, 4), Ok(&b));
    assert_eq!(quoted.get(HashAlg::Sha256, 7), Err(Reject::PcrNotQuoted), "of the other bank");
    assert_eq!(quoted.get(HashAlg::Sha384, 0), Err(Reject::PcrNotQuoted));
    assert_eq!(quoted.signed().firmware_version, 1);
    let refused = |sent: &[Ha]| registers(&banks, &[c, a, b], sent).map(drop);
    assert_eq!(refused(&[c, a]), Err(Reject::SelectionMismatch), "one short");
    assert_eq!(refused(&[c, a, b, b]), Err(Reject::SelectionMismatch), "one more");
    assert_eq!(refused(&[a, c, b]), Err(Reject::Malformed), "of the other bank");
    assert_eq!(refused(&[c, b, a]), Err(Reject::PcrDigestMismatch), "in another order");
    assert_eq!(registers(&[], &[], &[]).map(drop), Err(Reject::SelectionMismatch), "of nothing");
}

#[test]
fn a_verdict_rests_on_registers_that_firmware_began_and_nobody_resets() {
    let (zero, value) = (HashAlg::Sha256.zero(), HashAlg::Sha256.digest(&[b"x"]));
    let ones = Ha::new(HashAlg::Sha256, &[0xff; 32]).unwrap();
    // PCR 0, 7, 8, 16, 17 and 23, and one of the SHA-1 bank.
    let banks = [bank(HashAlg::Sha256, [0x81, 1, 0x83]), bank(HashAlg::Sha1, [1, 0, 0])];
    let quote = |pcr0: Ha, pcr7: Ha| {
        let values = [pcr0, pcr7, zero, value, zero, value, HashAlg::Sha1.digest(&[b"x"])];
        registers(&banks, &values, &values).unwrap()
    };
    let rely = |pcrs: &[u8]| quote(value, value).rely_on(HashAlg::Sha256, pcrs);
    assert_eq!(rely(&[0, 7, 8, 17]), Ok(()));
    assert_eq!(rely(&[16]), Err(Reject::PcrResettable));
    assert_eq!(rely(&[23]), Err(Reject::PcrResettable));
    assert_eq!(rely(&[0, 1]), Err(Reject::PcrNotQuoted));
    assert_eq!(quote(value, value).rely_on(HashAlg::Sha1, &[0]), Err(Reject::BankNotAllowed));
    assert_eq!(quote(value, value).rely_on(HashAlg::Sha384, &[0]), Err(Reject::BankNotAllowed));
    for untouched in [zero, ones] {
        let uninitialised = Err(Reject::PcrUninitialised);
        assert_eq!(quote(untouched, value).rely_on(HashAlg::Sha256, &[0]), uninitialised);
        assert_eq!(quote(value, untouched).rely_on(HashAlg::Sha256, &[0, 7]), uninitialised);
    }
}

#[test]
fn every_quoted_register_of_an_evidence_is_judged() {
    let reliable = |first: Digest| {
        let ak = SoftAk::new(1);
        let values = [(0, first), (4, Digest([4; 32])), (7, Digest([7; 32]))];
        let draft = AttestDraft::new(ak.public.endorsement_qualified_name(), &EXTRA, &values);
        judge(&ak, &ak.quote(&draft, &values)).and_then(|q| q.check_reliable())
    };
    assert_eq!(reliable(Digest([1; 32])), Ok(()));
    assert_eq!(reliable(Digest::ZERO), Err(Reject::PcrUninitialised));
}

#[test]
fn the_signer_is_where_its_key_is_said_to_be() {
    let ak = SoftAk::new(1);
    let (public, name) = (&ak.public, ak.public.name());
    let parent = SoftAk::new(2).public.endorsement_qualified_name();
    let (endorsement, owner) =
        (name.qualified_in(Hierarchy::Endorsement), name.qualified_in(Hierarchy::Owner));
    let child = name.qualified_below(&parent);
    let signers = [endorsement, owner, child];
    let verify = |signer: Name, key: &QuoteKey<'_>| {
        let draft = AttestDraft::new(signer, &EXTRA, &values());
        let part = ak.quote(&draft, &values());
        ReceivedQuote::of(&part).authenticate(key).map(drop)
    };
    for (key, expected) in [
        (QuoteKey::endorsement_primary(public), endorsement),
        (QuoteKey::primary(public, Hierarchy::Owner), owner),
        (QuoteKey::child(public, &parent), child),
    ] {
        for signer in signers {
            let verdict = if signer == expected { Ok(()) } else { Err(Reject::SignerNameMismatch) };
            assert_eq!(verify(signer, &key), verdict);
        }
    }
    let unnamed = QuoteKey::dangerous_unnamed(public.key(), public.scheme());
    assert!(signers.iter().all(|signer| verify(*signer, &unnamed).is_ok()));
}
