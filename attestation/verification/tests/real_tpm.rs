//! Commands, answers, quotes and credentials against a real TPM 2.0 implementation.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod swtpm;

use coffer_attestation::credential::{Credential, ENTROPY, make_credential};
use coffer_attestation::event_log::vm_launch_log;
use coffer_attestation::evidence::QuotePart;
use coffer_attestation::quote::{QuoteKey, QuotedPcrs, ReceivedQuote};
use coffer_attestation::tpm::alg;
use coffer_attestation::tpm::hash::{Ha, HashAlg};
use coffer_attestation::tpm::pcr::{HOST_SELECTION, Selections, VM_BANKS, VM_SELECTION};
use coffer_attestation::tpm::public::{Key, Public, Scheme};
use coffer_attestation::tpm::response::TpmError;
use coffer_attestation::tpm::wire::Writer;
use coffer_attestation::tpm::{command, response, template};
use coffer_attestation::{Digest, Reject, enroll};
use swtpm::Swtpm;

fn quote(tpm: &mut Swtpm, ak: u32, qualifying: &[u8], pcrs: &[u8]) -> QuotePart {
    let answer = tpm.send(&command::quote(ak, qualifying, pcrs));
    let (attest, signature) = response::quote(&answer).unwrap();
    QuotePart { attest, signature, pcrs: tpm.pcrs(pcrs), event_log: vec![] }
}

fn verify(
    part: &QuotePart,
    ak: &Public,
    extra: &Digest,
    pcrs: &[u8],
) -> Result<QuotedPcrs, Reject> {
    ReceivedQuote::of(part)
        .authenticate(&QuoteKey::endorsement_primary(ak))?
        .bind(extra.as_bytes(), Reject::NonceMismatch)?
        .pcrs(pcrs, &part.pcrs)
}

#[test]
fn quotes_verify_and_near_misses_do_not() {
    let mut tpm = Swtpm::fresh();
    let (handle, public) = tpm.create_primary(&template::host_ak());
    let ak = Public::parse(&public).unwrap();
    enroll::check_ak(&ak).unwrap();
    let extra = Digest([7; 32]);
    tpm.extend(4, &Digest([1; 32]));
    let good = quote(&mut tpm, handle, extra.as_bytes(), HOST_SELECTION);

    let quoted = verify(&good, &ak, &extra, HOST_SELECTION).unwrap();
    assert_eq!(quoted.get(4), Ok(&Digest::ZERO.extend(&Digest([1; 32]))));
    assert_eq!(quoted.get(10), Err(Reject::PcrNotQuoted));

    let reject = |part: &QuotePart, extra: &Digest, pcrs: &[u8]| {
        verify(part, &ak, extra, pcrs).map(drop).unwrap_err()
    };
    assert_eq!(reject(&good, &Digest([8; 32]), HOST_SELECTION), Reject::NonceMismatch);
    assert_eq!(reject(&good, &extra, &[0, 4]), Reject::SelectionMismatch);
    assert_eq!(reject(&good, &extra, &[4, 10]), Reject::PcrNotQuoted);
    let mut part = good.clone();
    part.attest[20] ^= 1;
    assert_eq!(reject(&part, &extra, HOST_SELECTION), Reject::BadSignature);
    let mut part = good.clone();
    *part.signature.last_mut().unwrap() ^= 1;
    assert_eq!(reject(&part, &extra, HOST_SELECTION), Reject::BadSignature);
    let mut part = good.clone();
    part.pcrs[4].digest = Digest([3; 32]);
    assert_eq!(reject(&part, &extra, HOST_SELECTION), Reject::PcrDigestMismatch);
    let mut part = good.clone();
    part.pcrs[4].index = 10;
    assert_eq!(reject(&part, &extra, HOST_SELECTION), Reject::SelectionMismatch);
    let mut part = good.clone();
    part.pcrs.pop();
    assert_eq!(reject(&part, &extra, HOST_SELECTION), Reject::SelectionMismatch);

    let (_, other) = tpm.create_primary(&template::vm_ak());
    let other = Public::parse(&other).unwrap();
    assert_ne!(other.name(), ak.name());
    assert_eq!(verify(&good, &other, &extra, HOST_SELECTION).unwrap_err(), Reject::BadSignature);
}

#[test]
fn one_seed_and_one_template_make_one_key() {
    let mut tpm = Swtpm::fresh();
    let (handle, first) = tpm.create_primary(&template::vm_ak());
    assert_eq!(response::read_public(&tpm.send(&command::read_public(handle))).unwrap(), first);
    response::ok(&tpm.send(&command::flush_context(handle))).unwrap();
    tpm.reset();
    assert_eq!(tpm.create_primary(&template::vm_ak()).1, first);
    assert_ne!(Swtpm::fresh().create_primary(&template::vm_ak()).1, first);
}

#[test]
fn a_measured_launch_replays_to_the_quoted_registers() {
    let mut tpm = Swtpm::with_banks(&VM_BANKS);
    let d = |b| Digest([b; 32]);
    let vm = vm_launch_log("coffer 0.1.0", &d(1), &d(2), &d(3), &d(4), b"launch record");
    tpm.measure(&vm.events, b"launch record");
    let (handle, public) = tpm.create_primary(&template::vm_ak());
    let ak = Public::parse(&public).unwrap();
    let part = quote(&mut tpm, handle, d(9).as_bytes(), VM_SELECTION);
    let quoted = verify(&part, &ak, &d(9), VM_SELECTION).unwrap();
    let log = coffer_attestation::event_log::parse(&vm.log).unwrap();
    assert_eq!(log.check_replay(&quoted), Ok(()));
    for bank in VM_BANKS {
        let replayed = log.registers(bank).unwrap();
        assert_eq!(replayed.check(tpm.pcrs_in(bank, VM_SELECTION)), Ok(()), "{bank}");
    }
}

#[test]
fn the_platform_hierarchy_closes_and_a_certificate_stays_readable() {
    const INDEX: u32 = 0x01c0_000a;
    // PPWRITE, PPREAD, OWNERREAD, AUTHREAD, NO_DA, PLATFORMCREATE.
    const ATTRIBUTES: u32 = 1 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 25 | 1 << 30;
    let mut tpm = Swtpm::fresh();
    let certificate: Vec<u8> = (0..900u32).map(|n| n as u8).collect();
    response::ok(&tpm.send(&command::nv_define(INDEX, 900, ATTRIBUTES))).unwrap();
    for (n, part) in certificate.chunks(512).enumerate() {
        response::ok(&tpm.send(&command::nv_write(INDEX, n as u16 * 512, part))).unwrap();
    }
    response::ok(&tpm.send(&command::hierarchy_disable_platform())).unwrap();

    let public = response::nv_read_public(&tpm.send(&command::nv_read_public(INDEX))).unwrap();
    assert_eq!((public.index, public.size), (INDEX, 900));
    let read = |tpm: &mut Swtpm, size, offset| {
        response::nv_read(&tpm.send(&command::nv_read(INDEX, size, offset))).unwrap()
    };
    let back = [read(&mut tpm, 512, 0), read(&mut tpm, 388, 512)].concat();
    assert_eq!(back, certificate);
    assert_eq!(response::get_random(&tpm.send(&command::get_random(16))).unwrap().len(), 16);
    let again = response::ok(&tpm.send(&command::nv_write(INDEX, 0, &[0])));
    assert!(matches!(again, Err(TpmError::Code(_))), "platform authorisation is gone: {again:?}");
}

#[test]
fn an_rsa_ek_activates_its_credential() {
    let mut tpm = Swtpm::fresh();
    activates(&mut tpm, &template::ek_rsa2048());
}

#[test]
fn a_p256_ek_activates_its_credential() {
    let mut tpm = Swtpm::fresh();
    activates(&mut tpm, &template::ek_p256());
}

#[test]
fn another_tpm_or_another_name_does_not_activate() {
    let (mut tpm, mut other) = (Swtpm::fresh(), Swtpm::fresh());
    for ek_template in [template::ek_rsa2048(), template::ek_p256()] {
        let (ek_handle, ek) = tpm.create_primary(&ek_template);
        let (ak_handle, ak) = tpm.create_primary(&template::host_ak());
        let (ek, ak) = (Public::parse(&ek).unwrap(), Public::parse(&ak).unwrap());
        let credential = make_credential(&ek, &ak.name(), &[5; 32], &[6; ENTROPY]).unwrap();
        let (other_ek, _) = other.create_primary(&ek_template);
        let (other_ak, _) = other.create_primary(&template::host_ak());
        assert!(activate(&mut other, other_ak, other_ek, &credential).is_err());
        let misnamed = make_credential(&ek, &ek.name(), &[5; 32], &[6; ENTROPY]).unwrap();
        assert!(activate(&mut tpm, ak_handle, ek_handle, &misnamed).is_err());
        for (tpm, handle) in [(&mut tpm, ek_handle), (&mut other, other_ek)] {
            response::ok(&tpm.send(&command::flush_context(handle))).unwrap();
        }
        response::ok(&tpm.send(&command::flush_context(ak_handle))).unwrap();
        response::ok(&other.send(&command::flush_context(other_ak))).unwrap();
    }
}

#[track_caller]
fn activates(tpm: &mut Swtpm, ek_template: &[u8]) {
    let (ek_handle, ek) = tpm.create_primary(ek_template);
    let (ak_handle, ak) = tpm.create_primary(&template::host_ak());
    let (ek, ak) = (Public::parse(&ek).unwrap(), Public::parse(&ak).unwrap());
    enroll::check_ek(&ek).unwrap();
    assert!(matches!(ek.key(), Key::Rsa(_) | Key::P256(_)));
    assert_eq!(enroll::check_ek(&ak), Err(Reject::BadEkTemplate));
    assert_eq!(enroll::check_ak(&ek), Err(Reject::BadAkAttributes));
    for n in 0..4 {
        let credential = make_credential(&ek, &ak.name(), &[5; 32], &[n; ENTROPY]).unwrap();
        assert_eq!(
            activate(tpm, ak_handle, ek_handle, &credential).as_deref(),
            Ok([5; 32].as_slice())
        );
    }
}

fn activate(
    tpm: &mut Swtpm,
    ak: u32,
    ek: u32,
    credential: &Credential,
) -> Result<Vec<u8>, TpmError> {
    let session = response::start_session(&tpm.send(&command::start_policy_session(&[1; 16])))?;
    response::ok(&tpm.send(&command::policy_secret_endorsement(session)))?;
    let (blob, secret) = (&credential.blob[2..], &credential.encrypted_secret[2..]);
    let answer = tpm.send(&command::activate_credential(ak, ek, session, blob, secret));
    let secret = response::activate_credential(&answer).map(|secret| secret.to_vec());
    if secret.is_err() {
        response::ok(&tpm.send(&command::flush_context(session)))?;
    }
    secret
}

/// AKs of every kind, below an EK or primary, over one bank or two: what people's TPMs have.
#[test]
fn quotes_of_other_keys_and_banks_verify() {
    let mut tpm = Swtpm::start(tempfile::TempDir::new().unwrap());
    let banks = Selections::of(&[(HashAlg::Sha256, &[0, 4]), (HashAlg::Sha384, &[7])]);
    for template in [
        ak_template(alg::ECC, 3, &[alg::ECDSA, alg::SHA256]),
        ak_template(alg::ECC, 4, &[alg::ECDSA, alg::SHA384]),
        ak_template(alg::ECC, 3, &[alg::ECDSA, alg::SHA384]),
        ak_template(alg::RSA, 2048, &[alg::RSASSA, alg::SHA256]),
        ak_template(alg::RSA, 2048, &[alg::RSAPSS, alg::SHA256]),
        ak_template(alg::RSA, 3072, &[alg::RSASSA, alg::SHA384]),
    ] {
        let (handle, public) = tpm.create_primary(&template);
        let ak = Public::parse(&public).unwrap();
        enroll::check_ak(&ak).unwrap();
        assert!(enroll::check_vak(&ak).is_err() || ak.scheme() == Scheme::Ecdsa(HashAlg::Sha256));
        let command = Writer::new()
            .u16(0x8002)
            .u32(0)
            .u32(0x158)
            .u32(handle)
            .bytes(&[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0])
            .tpm2b(b"nonce")
            .u16(alg::NULL);
        let mut command = banks.write(command).finish();
        let size = u32::try_from(command.len()).unwrap().to_be_bytes();
        command[2..6].copy_from_slice(&size);
        let (attest, signature) = response::quote(&tpm.send(&command)).unwrap();
        let values = [HashAlg::Sha256.zero(), HashAlg::Sha256.zero(), HashAlg::Sha384.zero()];
        let judge = |key: &QuoteKey<'_>, values: &[Ha]| {
            ReceivedQuote::new(&attest, &signature)
                .authenticate(key)?
                .bind(b"nonce", Reject::NonceMismatch)?
                .registers(values)
        };
        let quoted = judge(&QuoteKey::endorsement_primary(&ak), &values).unwrap();
        assert_eq!(quoted.get(HashAlg::Sha384, 7), Ok(&values[2]));
        assert_eq!(quoted.get(HashAlg::Sha384, 4), Err(Reject::PcrNotQuoted));
        // Nothing measured yet: the quote is good, and no verdict may rest on it.
        assert_eq!(quoted.rely_on(HashAlg::Sha256, &[0]), Err(Reject::PcrUninitialised));
        assert_eq!(quoted.rely_on(HashAlg::Sha512, &[0]), Err(Reject::BankNotAllowed));
        assert_eq!(
            judge(&QuoteKey::endorsement_primary(&ak), &values[..2]).map(drop),
            Err(Reject::SelectionMismatch)
        );
        let swapped = [values[2], values[1], values[0]];
        assert_eq!(
            judge(&QuoteKey::endorsement_primary(&ak), &swapped).map(drop),
            Err(Reject::Malformed)
        );
        let owner = QuoteKey::primary(&ak, command::Hierarchy::Owner);
        assert_eq!(judge(&owner, &values).map(drop), Err(Reject::SignerNameMismatch));
        let unnamed = QuoteKey::dangerous_unnamed(ak.key(), ak.scheme());
        assert!(judge(&unnamed, &values).is_ok());
        let other = match ak.scheme() {
            Scheme::RsaPss(hash) => Scheme::RsaSsa(hash),
            Scheme::RsaSsa(hash) => Scheme::RsaPss(hash),
            _ => Scheme::Ecdsa(HashAlg::Sha512),
        };
        let unnamed = QuoteKey::dangerous_unnamed(ak.key(), other);
        assert_eq!(judge(&unnamed, &values).map(drop), Err(Reject::SchemeMismatch));
        response::ok(&tpm.send(&command::flush_context(handle))).unwrap();
    }
}

/// A restricted signing key; `size` is a curve or a number of bits.
fn ak_template(kind: u16, size: u16, scheme: &[u16]) -> Vec<u8> {
    let head = Writer::new().u16(kind).u16(alg::SHA256).u32(template::AK_ATTRIBUTES).tpm2b(&[]);
    let head = scheme.iter().fold(head.u16(alg::NULL), |w, alg| w.u16(*alg)).u16(size);
    match kind {
        alg::ECC => head.u16(alg::NULL).tpm2b(&[]).tpm2b(&[]).finish(),
        _ => head.u32(0).tpm2b(&[]).finish(),
    }
}

/// The EKs that swtpm_setup makes: of the low and of the high range, with the policies of the profile.
#[test]
fn manufactured_eks_are_of_a_template_and_activate() {
    for (flags, handle) in [
        (&["--createek"][..], 0x8101_0016),
        (&["--createek", "--rsa-keysize", "3072"], 0x8101_001c),
        (&["--createek"], 0x8101_0001),
    ] {
        let dir = tempfile::TempDir::new().unwrap();
        let made = std::process::Command::new("swtpm_setup")
            .args(["--tpm2", "--pcr-banks", "sha256", "--overwrite", "--tpmstate"])
            .arg(dir.path())
            .args(flags)
            .output()
            .expect("these tests need Debian's `swtpm-tools`");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let mut tpm = Swtpm::start(dir);
        let answer = tpm.send(&command::read_public(handle));
        let Ok(public) = response::read_public(&answer) else {
            panic!("{flags:?}: no key at {handle:#x}")
        };
        let ek = Public::parse(&public).unwrap();
        assert_eq!(enroll::check_ek(&ek), Ok(()), "{flags:?}");
        let (ak_handle, ak) = tpm.create_primary(&template::host_ak());
        let ak = Public::parse(&ak).unwrap();
        let credential = make_credential(&ek, &ak.name(), &[5; 32], &[7; ENTROPY]).unwrap();
        let secret = activate_any(&mut tpm, ak_handle, handle, &ek, &credential);
        assert_eq!(secret.as_deref(), Ok([5; 32].as_slice()), "{flags:?}");
    }
}

/// ActivateCredential by the policy that the EK's template asks for: PolicyA, or PolicyB = PolicyA or PolicyC.
fn activate_any(
    tpm: &mut Swtpm,
    ak: u32,
    ek_handle: u32,
    ek: &Public,
    credential: &Credential,
) -> Result<Vec<u8>, TpmError> {
    let frame = |code: u32, body: Writer| {
        let body = body.finish();
        let size = u32::try_from(10 + body.len()).unwrap();
        Writer::new().u16(0x8001).u32(size).u32(code).bytes(&body).finish()
    };
    let hash = ek.name_alg();
    let start = Writer::new().u32(0x4000_0007).u32(0x4000_0007).tpm2b(&[1; 16]).tpm2b(&[]);
    let start = start.u8(1).u16(alg::NULL).u16(hash.id());
    let session = response::start_session(&tpm.send(&frame(0x176, start)))?;
    response::ok(&tpm.send(&command::policy_secret_endorsement(session)))?;
    if ek.attributes() == coffer_attestation::enroll::EK_HIGH_ATTRIBUTES {
        let digest = tpm.send(&frame(0x189, Writer::new().u32(session)));
        let policy_a = &digest[12..12 + hash.size()];
        // EK Credential Profile 2.6, B.6.5: PolicyAuthorizeNV of index 0x01C07F02, SHA-384.
        let policy_c = hex::decode(
            "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5\
             b4947c2d73e63005eed2dc2b3593d165",
        )
        .unwrap();
        let or = Writer::new().u32(session).u32(2).tpm2b(policy_a).tpm2b(&policy_c);
        response::ok(&tpm.send(&frame(0x171, or)))?;
    }
    let (blob, secret) = (&credential.blob[2..], &credential.encrypted_secret[2..]);
    let answer = tpm.send(&command::activate_credential(ak, ek_handle, session, blob, secret));
    response::activate_credential(&answer).map(|secret| secret.to_vec())
}
