//! EK certificate chains: one of swtpm_setup's, and made ones with one defect each.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod swtpm;

use std::path::Path;
use std::process::Command;

use coffer_attestation::Reject;
use coffer_attestation::endorsement::{Endorsed, Roots, verify_chain};
use coffer_attestation::enroll::check_ek;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::template;
use coffer_attestation::tpm::wire::Writer;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SigningKey,
};
use swtpm::Swtpm;
use tempfile::TempDir;
use time::OffsetDateTime;

/// 2026-06-01, when the made chains are judged.
const NOW: u64 = 1_780_272_000;

#[test]
fn accepts_what_swtpm_setup_makes_as_software_and_only_as_software() {
    let ca = TempDir::new().unwrap();
    let state = TempDir::new().unwrap();
    let chain = manufacture(ca.path(), state.path());
    let leaf = std::fs::read(state.path().join("ek-rsa2048.crt")).unwrap();
    let mut tpm = Swtpm::start(state);
    let ek = Public::parse(&tpm.create_primary(&template::ek_rsa2048()).1).unwrap();
    check_ek(&ek).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let [issuer, root] = chain;

    let software = Roots { dangerous_software: vec![root.clone()], ..Roots::default() };
    let endorsed = verify_chain(&leaf, std::slice::from_ref(&issuer), &ek, &software, now).unwrap();
    assert_eq!(endorsed.manufacturer, "id:00001014");
    assert_eq!(endorsed.model, "swtpm");
    assert!(endorsed.software);
    let padded = [leaf.clone(), vec![0; 100]].concat();
    assert!(verify_chain(&padded, std::slice::from_ref(&issuer), &ek, &software, now).is_ok());
    let followed = [leaf.clone(), vec![1]].concat();
    let verdict = verify_chain(&followed, std::slice::from_ref(&issuer), &ek, &software, now);
    assert_eq!(verdict, Err(Reject::TrailingData));

    // With the root in both lists, software is what counts.
    let both = Roots { hardware: vec![root.clone()], dangerous_software: vec![root] };
    assert!(verify_chain(&leaf, std::slice::from_ref(&issuer), &ek, &both, now).unwrap().software);
    let none = Roots::default();
    let verdict = verify_chain(&leaf, std::slice::from_ref(&issuer), &ek, &none, now);
    assert_eq!(verdict, Err(Reject::UntrustedRoot));
    assert_eq!(verify_chain(&leaf, &[], &ek, &software, now), Err(Reject::UntrustedRoot));
    let other = Public::parse(&Swtpm::fresh().create_primary(&template::ek_rsa2048()).1).unwrap();
    let verdict = verify_chain(&leaf, &[issuer], &other, &software, now);
    assert_eq!(verdict, Err(Reject::EkMismatch));
}

/// Runs swtpm_setup with an authority of its own; returns the issuer's and the root's certificate.
fn manufacture(ca: &Path, state: &Path) -> [Vec<u8>; 2] {
    let path = |name: &str| ca.join(name).display().to_string();
    let localca = format!(
        "statedir = {}\nsigningkey = {}\nissuercert = {}\ncertserial = {}\n",
        ca.display(),
        path("signkey.pem"),
        path("issuercert.pem"),
        path("certserial"),
    );
    std::fs::write(ca.join("localca.conf"), localca).unwrap();
    std::fs::write(ca.join("options"), "--platform-manufacturer Coffer\n").unwrap();
    let setup = format!(
        "create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = {}\ncreate_certs_tool_options = {}\n",
        path("localca.conf"),
        path("options"),
    );
    std::fs::write(ca.join("setup.conf"), setup).unwrap();
    let output = Command::new("swtpm_setup")
        .args(["--tpm2", "--create-ek-cert", "--pcr-banks", "sha256", "--tpmstate"])
        .arg(state)
        .args(["--config", &path("setup.conf"), "--write-ek-cert-files"])
        .arg(state)
        .output()
        .expect("this test needs Debian's `swtpm-tools`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ["issuercert.pem", "swtpm-localca-rootca-cert.pem"].map(|name| {
        let pem = std::fs::read(ca.join(name)).unwrap();
        x509_parser::pem::parse_x509_pem(&pem).unwrap().1.contents
    })
}

/// A certificate to be, and its key.
struct Party {
    params: CertificateParams,
    key: KeyPair,
}

/// Root, intermediate and leaf; a case changes one of them before they are signed.
struct Chain {
    root: Party,
    intermediate: Party,
    leaf: Party,
}

impl Chain {
    fn good() -> Self {
        let authority = |name: &str| {
            let mut params = named(name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params
        };
        let mut leaf = named("ek");
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
        leaf.custom_extensions = vec![alternative_name(&[1, 2, 3])];
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let p256 = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self {
            root: Party { params: authority("root"), key: p384 },
            intermediate: Party { params: authority("intermediate"), key: p256() },
            leaf: Party { params: leaf, key: p256() },
        }
    }

    fn judge(&self) -> Result<Endorsed, Reject> {
        let (root, issuer, leaf) = self.sign();
        let roots = Roots { hardware: vec![root], ..Roots::default() };
        verify_chain(&leaf, &[issuer], &self.ek(), &roots, NOW)
    }

    fn sign(&self) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let root = self.root.params.self_signed(&self.root.key).unwrap();
        let issuer = issue(&self.intermediate, &self.root);
        (root.der().to_vec(), issuer, issue(&self.leaf, &self.intermediate))
    }

    /// The leaf's key as an EK of template L-2.
    fn ek(&self) -> Public {
        let template = template::ek_p256();
        let (x, y) = self.leaf.key.public_key_raw()[1..].split_at(32);
        let bytes =
            Writer::new().bytes(&template[..template.len() - 68]).tpm2b(x).tpm2b(y).finish();
        Public::parse(&bytes).unwrap()
    }
}

fn issue(subject: &Party, issuer: &Party) -> Vec<u8> {
    let issuer = Issuer::from_params(&issuer.params, &issuer.key);
    sign_with(subject, &issuer)
}

fn sign_with(subject: &Party, issuer: &Issuer<'_, impl SigningKey>) -> Vec<u8> {
    subject.params.signed_by(&subject.key, issuer).unwrap().der().to_vec()
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = at(NOW - 1_000_000);
    params.not_after = at(NOW + 1_000_000);
    params
}

fn at(unix: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix as i64).unwrap()
}

/// subjectAltName with a directory name of these TCG attributes.
fn alternative_name(attributes: &[u8]) -> CustomExtension {
    let der = |tag: u8, parts: &[Vec<u8>]| {
        let content = parts.concat();
        [vec![tag, u8::try_from(content.len()).unwrap()], content].concat()
    };
    let attribute = |n: &u8| {
        let oid = der(6, &[vec![0x67, 0x81, 0x05, 0x02, *n]]);
        let value = der(12, &[format!("id:0000000{n}").into_bytes()]);
        der(0x31, &[der(0x30, &[oid, value])])
    };
    let name = der(0x30, &attributes.iter().map(attribute).collect::<Vec<_>>());
    CustomExtension::from_oid_content(&[2, 5, 29, 17], der(0x30, &[der(0xa4, &[name])]))
}

#[test]
fn accepts_a_vendors_chain() {
    let expected = Endorsed {
        manufacturer: "id:00000001".into(),
        model: "id:00000002".into(),
        version: "id:00000003".into(),
        software: false,
    };
    assert_eq!(Chain::good().judge(), Ok(expected));
}

#[test]
fn accepts_a_leaf_past_its_end_and_an_intermediate_as_a_root() {
    let mut chain = Chain::good();
    chain.leaf.params.not_after = at(NOW - 1);
    assert!(chain.judge().is_ok());
    let (_, issuer, leaf) = chain.sign();
    let roots = Roots { hardware: vec![issuer], ..Roots::default() };
    assert!(verify_chain(&leaf, &[], &chain.ek(), &roots, NOW).is_ok());
}

#[test]
fn refuses_every_defect() {
    #[track_caller]
    fn check(name: &str, reject: Reject, change: impl FnOnce(&mut Chain)) {
        let mut chain = Chain::good();
        change(&mut chain);
        assert_eq!(chain.judge(), Err(reject), "{name}");
    }
    use Reject::BadEkCert as Bad;
    let ca = |n| IsCa::Ca(n);
    check("leaf is an authority", Bad, |c| {
        c.leaf.params.is_ca = ca(BasicConstraints::Unconstrained);
    });
    check("leaf may sign certificates", Bad, |c| {
        c.leaf.params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    });
    check("leaf without usage", Bad, |c| c.leaf.params.extended_key_usages.clear());
    check("leaf for servers", Bad, |c| {
        c.leaf.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    check("leaf not yet valid", Bad, |c| c.leaf.params.not_before = at(NOW + 1));
    check("leaf without names", Bad, |c| c.leaf.params.custom_extensions.clear());
    check("leaf without a model", Bad, |c| {
        c.leaf.params.custom_extensions = vec![alternative_name(&[1, 3])];
    });
    check("unknown critical extension", Bad, |c| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        c.leaf.params.custom_extensions.push(extension);
    });
    check("a name twice", Bad, |c| {
        c.leaf.params.custom_extensions.push(alternative_name(&[1, 2, 3]));
    });
    check("issuer is no authority", Bad, |c| c.intermediate.params.is_ca = IsCa::ExplicitNoCa);
    check("issuer says nothing of authority", Bad, |c| c.intermediate.params.is_ca = IsCa::NoCa);
    check("issuer may not sign certificates", Bad, |c| {
        c.intermediate.params.key_usages = vec![KeyUsagePurpose::CrlSign];
    });
    check("issuer expired", Bad, |c| c.intermediate.params.not_after = at(NOW - 1));
    check("issuer not yet valid", Bad, |c| c.intermediate.params.not_before = at(NOW + 1));
    check("root expired", Bad, |c| c.root.params.not_after = at(NOW - 1));
    check("root allows no intermediate", Bad, |c| {
        c.root.params.is_ca = ca(BasicConstraints::Constrained(0));
    });
    // A path length of zero on the last authority is fine: only the leaf is below it.
    let mut chain = Chain::good();
    chain.intermediate.params.is_ca = ca(BasicConstraints::Constrained(0));
    chain.root.params.is_ca = ca(BasicConstraints::Constrained(1));
    assert!(chain.judge().is_ok());
}

#[test]
fn refuses_a_leaf_signed_by_anybody_else() {
    let (chain, other) = (Chain::good(), Chain::good());
    let (root, issuer, leaf) = chain.sign();
    let (other_root, other_issuer, other_leaf) = other.sign();
    let roots = Roots { hardware: vec![root], ..Roots::default() };
    let judge =
        |leaf: &[u8], chain_: &[Vec<u8>]| verify_chain(leaf, chain_, &chain.ek(), &roots, NOW);
    assert!(judge(&leaf, std::slice::from_ref(&issuer)).is_ok());
    // Of the same names, but another key: the signature tells.
    assert_eq!(judge(&leaf, std::slice::from_ref(&other_issuer)), Err(Reject::BadEkCert));
    assert!(judge(&leaf, &[other_issuer.clone(), issuer.clone()]).is_ok());
    assert_eq!(judge(&other_leaf, std::slice::from_ref(&issuer)), Err(Reject::EkMismatch));
    let verdict = verify_chain(&other_leaf, &[other_issuer, other_root], &other.ek(), &roots, NOW);
    assert!(verdict.is_err(), "a chain that brings its own root: {verdict:?}");
    let own = chain.leaf.params.self_signed(&chain.leaf.key).unwrap();
    assert_eq!(judge(own.der(), std::slice::from_ref(&issuer)), Err(Reject::UntrustedRoot));
    let mut flipped = leaf.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(judge(&flipped, std::slice::from_ref(&issuer)), Err(Reject::BadEkCert));
    assert_eq!(
        judge(&leaf[..leaf.len() - 1], std::slice::from_ref(&issuer)),
        Err(Reject::BadEkCert)
    );
    assert_eq!(judge(&[], std::slice::from_ref(&issuer)), Err(Reject::BadEkCert));

    assert_eq!(judge(&leaf, &vec![issuer.clone(); 9]), Err(Reject::LimitExceeded));
    assert_eq!(judge(&leaf, &[vec![0x30; 16385]]), Err(Reject::LimitExceeded));
    assert_eq!(judge(&[leaf, vec![0; 16384]].concat(), &[issuer]), Err(Reject::LimitExceeded));
}

#[test]
fn a_root_that_cannot_be_read_stands_in_nobodys_way() {
    let chain = Chain::good();
    let (root, issuer, leaf) = chain.sign();
    let roots = Roots { hardware: vec![vec![0x30; 40], root], ..Roots::default() };
    assert!(verify_chain(&leaf, std::slice::from_ref(&issuer), &chain.ek(), &roots, NOW).is_ok());
    let roots = Roots { hardware: vec![vec![0x30; 40]], ..Roots::default() };
    let verdict = verify_chain(&leaf, &[issuer], &chain.ek(), &roots, NOW);
    assert_eq!(verdict, Err(Reject::UntrustedRoot));
}

#[test]
fn a_loop_of_authorities_ends() {
    let mut chain = Chain::good();
    // Two intermediates that issued each other.
    let mut back = Party { params: chain.root.params.clone(), key: KeyPair::generate().unwrap() };
    back.params.distinguished_name.push(DnType::CommonName, "back");
    chain.root = back;
    let forward = issue(&chain.intermediate, &chain.root);
    let backward = issue(&chain.root, &chain.intermediate);
    let leaf = issue(&chain.leaf, &chain.intermediate);
    let roots = Roots { hardware: vec![Chain::good().sign().0], ..Roots::default() };
    let path = [forward.clone(), backward.clone(), forward, backward];
    let verdict = verify_chain(&leaf, &path, &chain.ek(), &roots, NOW);
    assert_eq!(verdict, Err(Reject::UntrustedRoot));
}
