//! IAK certificates, and an hAK that a TPM certifies by its IAK.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod pki;
mod swtpm;

use coffer_attestation::endorsement::device::{
    DeviceRoots, VouchedIak, check_iak, verify_iak_chain,
};
use coffer_attestation::endorsement::{inspect, verify_certified_ak};
use coffer_attestation::tpm::command::Hierarchy;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::template;
use coffer_attestation::tpm::testing::{SoftAk, with_point};
use coffer_attestation::tpm::wire::{Reader, Writer};
use coffer_attestation::{Digest, Nonce, Reject, binding};
use pki::*;
use rcgen::{
    CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SubjectPublicKeyInfo,
};
use swtpm::Swtpm;

const HOST: &str = "rack-7";

/// What an IAK certificate has.
fn iak_params() -> CertificateParams {
    let mut params = named("iak");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 3])];
    params.custom_extensions = vec![module_name(2, b"serial 7")];
    params.use_authority_key_identifier_extension = true;
    params
}

/// hardwareModuleName with hwType 2.23.133.1.`kind`.
fn module_name(kind: u8, serial: &[u8]) -> CustomExtension {
    extension(&[2, 5, 29, 17], true, der(0x30, &[module(kind, serial)]))
}

fn module(kind: u8, serial: &[u8]) -> Vec<u8> {
    module_with(kind, serial, &[], &[])
}

/// The same with more fields in it, and more after it.
fn module_with(kind: u8, serial: &[u8], fields: &[Vec<u8>], after: &[Vec<u8>]) -> Vec<u8> {
    let id = der(6, &[vec![0x2b, 6, 1, 5, 5, 7, 8, 4]]);
    let known = [der(6, &[vec![0x67, 0x81, 0x05, 0x01, kind]]), der(4, &[serial.to_vec()])];
    let module = der(0x30, &[&known, fields].concat());
    der(0xa0, &[id, der(0xa0, &[&[module], after].concat())])
}

/// A device maker, and an IAK in software.
struct Device {
    chain: Chain,
    iak: Public,
}

impl Device {
    fn good() -> Self {
        let mut chain = Chain::good();
        chain.leaf.params = iak_params();
        let (x, y) = chain.leaf.key.public_key_raw()[1..].split_at(32);
        let iak = Public::parse(&with_point(&template::vm_ak(), x, y)).unwrap();
        Self { chain, iak }
    }

    fn judge(&self) -> Result<VouchedIak, Reject> {
        let (root, issuer, leaf) = self.chain.sign();
        let roots = DeviceRoots::new(hardware([&root]));
        verify_iak_chain(&leaf, &[issuer], &self.iak, &roots, NOW)
    }
}

#[test]
fn accepts_an_iak_certificate() {
    let device = Device::good();
    let vouched = device.judge().unwrap();
    assert_eq!(vouched.hardware.serial, hex::encode("serial 7"));
    assert!(!vouched.software && vouched.warnings.is_empty());
    let report = inspect(&device.chain.sign().2).unwrap();
    assert_eq!(report.hardware, Some(vouched.hardware));
    assert_eq!(report.refused_as_ek, Some(Reject::BadEkCert), "an IAK's is no EK certificate");
}

#[test]
fn refuses_what_is_no_iak_certificate() {
    #[track_caller]
    fn check(name: &str, reject: Reject, change: impl FnOnce(&mut Device)) {
        let mut device = Device::good();
        change(&mut device);
        assert_eq!(device.judge(), Err(reject), "{name}");
    }
    let leaf = |name: &str, change: fn(&mut CertificateParams)| {
        check(name, Reject::BadEkCert, |d| change(&mut d.chain.leaf.params));
    };
    leaf("for an EK", |p| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(EK_CERTIFICATE.to_vec())];
    });
    leaf("no purpose", |p| p.extended_key_usages.clear());
    leaf("an authority", |p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    leaf("does not sign", |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
    leaf("signs certificates", |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign));
    leaf("signs CRLs", |p| p.key_usages.push(KeyUsagePurpose::CrlSign));
    leaf("a usage that is not critical", |p| {
        p.key_usages.clear();
        p.custom_extensions.push(extension(&[2, 5, 29, 15], false, vec![3, 2, 7, 0x80]));
    });
    leaf("names that are not critical under an empty subject", |p| {
        p.distinguished_name = rcgen::DistinguishedName::new();
        p.custom_extensions[0].set_criticality(false);
    });
    leaf("no module name", |p| p.custom_extensions.clear());
    leaf("an EK's names", |p| p.custom_extensions = vec![tpm_name("id:00000001", &[1, 2, 3])]);
    leaf("of a TPM 1.2", |p| p.custom_extensions = vec![module_name(1, b"serial 7")]);
    leaf("no serial", |p| p.custom_extensions = vec![module_name(2, b"")]);
    leaf("an endless serial", |p| p.custom_extensions = vec![module_name(2, &[7; 129])]);
    leaf("two modules", |p| {
        let content = der(0x30, &[module(2, b"a"), module(2, b"b")]);
        p.custom_extensions = vec![extension(&[2, 5, 29, 17], true, content)];
    });
    leaf("a module name of three fields", |p| {
        let content = der(0x30, &[module_with(2, b"serial 7", &[vec![5, 0]], &[])]);
        p.custom_extensions = vec![extension(&[2, 5, 29, 17], true, content)];
    });
    leaf("two module names in one", |p| {
        let content = der(0x30, &[module_with(2, b"serial 7", &[], &[vec![5, 0]])]);
        p.custom_extensions = vec![extension(&[2, 5, 29, 17], true, content)];
    });
    check("another key", Reject::EkMismatch, |d| d.iak = Device::good().iak);
    check("issuer is for EKs", Reject::BadEkChain, |d| {
        d.chain.intermediate.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::Other(EK_CERTIFICATE.to_vec())];
    });
    check("issuer is no authority", Reject::BadEkChain, |d| {
        d.chain.intermediate.params.is_ca = IsCa::NoCa;
    });
    let device = Device::good();
    let (_, issuer, leaf) = device.chain.sign();
    let others = DeviceRoots::new(hardware([&Chain::good().sign().0]));
    let verdict = verify_iak_chain(&leaf, &[issuer], &device.iak, &others, NOW);
    assert_eq!(verdict, Err(Reject::UntrustedRoot), "a root of the same name");
    let verdict = verify_iak_chain(&leaf, &[], &device.iak, &DeviceRoots::default(), NOW);
    assert_eq!(verdict, Err(Reject::UntrustedRoot));
}

#[test]
fn accepts_what_iak_certificates_have() {
    #[track_caller]
    fn check(name: &str, change: fn(&mut CertificateParams)) {
        let mut device = Device::good();
        change(&mut device.chain.leaf.params);
        assert!(device.judge().is_ok(), "{name}: {:?}", device.judge());
    }
    check("no key usage", |p| p.key_usages.clear());
    check("an empty subject", |p| p.distinguished_name = rcgen::DistinguishedName::new());
    check("names that are not critical", |p| p.custom_extensions[0].set_criticality(false));
    check("the longest serial", |p| p.custom_extensions = vec![module_name(2, &[7; 128])]);
    check("another name beside it", |p| {
        let other = der(0xa0, &[vec![6, 2, 0x2a, 3], der(0xa0, &[vec![5, 0]])]);
        let content = der(0x30, &[other, module(2, b"serial 7")]);
        p.custom_extensions = vec![extension(&[2, 5, 29, 17], true, content)];
    });
    let device = Device::good();
    let (root, issuer, leaf) = device.chain.sign();
    let roots = DeviceRoots::new(hardware([&root]));
    let judge = |leaf: &[u8]| {
        verify_iak_chain(leaf, std::slice::from_ref(&issuer), &device.iak, &roots, NOW).map(drop)
    };
    assert_eq!(judge(&[&leaf[..], &[0; 9]].concat()), Ok(()), "padding of NV");
    assert_eq!(judge(&[&leaf[..], &[0, 1]].concat()), Err(Reject::TrailingData));
    let own = device.chain.leaf.params.self_signed(&device.chain.leaf.key).unwrap();
    assert_eq!(judge(own.der()), Err(Reject::UntrustedRoot), "one that vouches for itself");
}

#[test]
fn an_iak_signs_only_what_its_tpm_made() {
    check_iak(&Device::good().iak).unwrap();
    let template = template::vm_ak();
    let point = SoftAk::new(1).public;
    let (x, y) = point.as_bytes()[22..].split_at(34);
    for bit in [1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 17, 1 << 18, 1 << 11] {
        let mut bytes = with_point(&template, &x[..32], &y[..32]);
        let attributes = template::AK_ATTRIBUTES ^ bit;
        bytes[4..8].copy_from_slice(&attributes.to_be_bytes());
        let iak = Public::parse(&bytes).unwrap();
        assert_eq!(check_iak(&iak), Err(Reject::BadAkAttributes), "bit {bit:#x}");
    }
    // A policy is the device maker's to choose.
    let mut bytes = with_point(&template, &x[..32], &y[..32]);
    bytes[4..8].copy_from_slice(&(template::AK_ATTRIBUTES | 1 << 7).to_be_bytes());
    check_iak(&Public::parse(&bytes).unwrap()).unwrap();
}

/// TPM2_Certify with empty passwords and the signing key's own scheme; TPMS_ATTEST and TPMT_SIGNATURE.
fn certify(tpm: &mut Swtpm, object: u32, signer: u32, qualifying: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let password = |w: Writer| w.u32(0x4000_0009).tpm2b(&[]).u8(0).tpm2b(&[]);
    let sessions = password(password(Writer::new())).finish();
    let body = Writer::new()
        .u32(0x148)
        .u32(object)
        .u32(signer)
        .u32(sessions.len() as u32)
        .bytes(&sessions)
        .tpm2b(qualifying)
        .u16(0x0010)
        .finish();
    let command = Writer::new().u16(0x8002).u32(6 + body.len() as u32).bytes(&body).finish();
    let answer = tpm.send(&command);
    let mut r = Reader::new(&answer);
    assert_eq!(r.u16(), Ok(0x8002), "{answer:02x?}");
    let (_, code, size) = (r.u32().unwrap(), r.u32().unwrap(), r.u32().unwrap());
    assert_eq!(code, 0);
    let parameters = r.bytes(size as usize).unwrap();
    let mut r = Reader::new(parameters);
    let attest = r.tpm2b(1024).unwrap().to_vec();
    (attest, r.rest().to_vec())
}

#[test]
fn a_tpm_certifies_its_hak_by_its_iak() {
    let mut tpm = Swtpm::fresh();
    // Its own role, so its own `unique`: any restricted signing primary will do.
    let (iak_handle, iak) = tpm.create_primary(&template::vm_ak());
    let (ak_handle, ak) = tpm.create_primary(&template::host_ak());
    let (iak, ak) = (Public::parse(&iak).unwrap(), Public::parse(&ak).unwrap());

    // The device maker certifies the IAK.
    let maker = Party { params: authority("device maker"), key: p256() };
    let root = maker.params.self_signed(&maker.key).unwrap().der().to_vec();
    let leaf = sign_with(&iak_params(), &spki(&iak), &maker);
    let roots = DeviceRoots::new(hardware([&root]));
    verify_iak_chain(&leaf, &[], &iak, &roots, NOW).unwrap();

    let nonce = Nonce([7; 32]);
    let qualifying = binding::iak_certify(HOST, &nonce);
    let (attest, signature) = certify(&mut tpm, ak_handle, iak_handle, qualifying.as_bytes());
    let judge = |iak: &Public, ak: &Public, host: &str, nonce: u8| {
        verify_certified_ak(iak, ak, host, &Nonce([nonce; 32]), &attest, &signature)
    };
    assert_eq!(judge(&iak, &ak, HOST, 7), Ok(()));
    assert_eq!(judge(&iak, &ak, "rack-8", 7), Err(Reject::NonceMismatch));
    assert_eq!(judge(&iak, &ak, HOST, 8), Err(Reject::NonceMismatch));
    assert_eq!(judge(&iak, &iak, HOST, 7), Err(Reject::HostMismatch));
    assert_eq!(judge(&ak, &ak, HOST, 7), Err(Reject::BadSignature));

    let mut flipped = attest.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let verdict = verify_certified_ak(&iak, &ak, HOST, &nonce, &flipped, &signature);
    assert_eq!(verdict, Err(Reject::BadSignature));
    // A quote by the same IAK for the same nonce is no certification.
    let quote = tpm.send(&coffer_attestation::tpm::command::quote(iak_handle, &qualifying.0, &[0]));
    let (quote, signature) = coffer_attestation::tpm::response::quote(&quote).unwrap();
    let verdict = verify_certified_ak(&iak, &ak, HOST, &nonce, &quote, &signature);
    assert_eq!(verdict, Err(Reject::WrongAttestType));
}

/// SubjectPublicKeyInfo of a P-256 key.
fn spki(public: &Public) -> SubjectPublicKeyInfo {
    let bytes = public.as_bytes();
    let at = bytes.len() - 68;
    let point = [&[4], &bytes[at + 2..at + 34], &bytes[at + 36..]].concat();
    let ec = vec![6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    let curve = vec![6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let spki = der(0x30, &[der(0x30, &[ec, curve]), der(3, &[vec![0], point])]);
    SubjectPublicKeyInfo::from_der(&spki).unwrap()
}

/// Qualified name as a primary of the endorsement hierarchy.
fn qualified(public: &Public) -> Vec<u8> {
    public.name().qualified_in(Hierarchy::Endorsement).to_bytes()
}

#[test]
fn a_statement_the_iak_signed_is_read_strictly() {
    let (iak, ak) = (SoftAk::new(1), SoftAk::new(2));
    let nonce = Nonce([7; 32]);
    #[derive(Clone)]
    struct Draft {
        magic: u32,
        kind: u16,
        signer: Vec<u8>,
        extra: Vec<u8>,
        name: Vec<u8>,
        qualified: Vec<u8>,
        tail: Vec<u8>,
    }
    let good = Draft {
        magic: 0xff54_4347,
        kind: 0x8017,
        signer: qualified(&iak.public),
        extra: binding::iak_certify(HOST, &nonce).0.to_vec(),
        name: ak.public.name().to_bytes(),
        qualified: qualified(&ak.public),
        tail: vec![],
    };
    let judge = |change: &dyn Fn(&mut Draft)| {
        let mut draft = good.clone();
        change(&mut draft);
        let attest = Writer::new()
            .u32(draft.magic)
            .u16(draft.kind)
            .tpm2b(&draft.signer)
            .tpm2b(&draft.extra)
            .bytes(&[0; 25])
            .tpm2b(&draft.name)
            .tpm2b(&draft.qualified)
            .bytes(&draft.tail)
            .finish();
        let signature = iak.sign(&attest);
        verify_certified_ak(&iak.public, &ak.public, HOST, &nonce, &attest, &signature)
    };
    assert_eq!(judge(&|_| ()), Ok(()));
    assert_eq!(judge(&|d| d.magic ^= 1), Err(Reject::BadMagic));
    // TPMS_CREATION_INFO: a name and a hash, of an object that need not be loaded any more.
    let creation = |d: &mut Draft| (d.kind, d.qualified) = (0x801a, vec![7; 32]);
    assert_eq!(judge(&creation), Err(Reject::WrongAttestType));
    assert_eq!(judge(&|d| d.kind = 0x801a), Err(Reject::Malformed), "no hash has this length");
    assert_eq!(judge(&|d| d.tail = vec![0]), Err(Reject::TrailingData));
    assert_eq!(judge(&|d| d.signer[9] ^= 1), Err(Reject::SignerNameMismatch));
    assert_eq!(
        judge(&|d| d.signer = iak.public.name().to_bytes()),
        Err(Reject::SignerNameMismatch)
    );
    assert_eq!(judge(&|d| d.extra.clear()), Err(Reject::NonceMismatch));
    let bare = Digest::of(&[HOST.as_bytes(), nonce.as_bytes()]);
    assert_eq!(judge(&|d| d.extra = bare.0.to_vec()), Err(Reject::NonceMismatch), "no label");
    assert_eq!(judge(&|d| d.name[9] ^= 1), Err(Reject::HostMismatch));
    // An hAK of the owner hierarchy.
    let owner = |d: &mut Draft| {
        let name = Digest::of(&[&0x4000_0001u32.to_be_bytes(), &d.name]);
        d.qualified = [&[0, 11], &name.0[..]].concat();
    };
    assert_eq!(judge(&owner), Err(Reject::BadAkAttributes));
}

#[test]
fn one_device_makers_key_is_no_other() {
    let device = Device::good();
    let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let (root, issuer, leaf) = device.chain.sign();
    let leaf = resign(&leaf, &other, |_| ());
    let roots = DeviceRoots::new(hardware([&root]));
    let verdict = verify_iak_chain(&leaf, &[issuer], &device.iak, &roots, NOW);
    assert_eq!(verdict, Err(Reject::BadEkCert));
}
