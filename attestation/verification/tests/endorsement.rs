//! EK certificates and their chains: one of swtpm_setup's, and made ones with one defect each.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod pki;
mod swtpm;

use std::path::Path;
use std::process::Command;

use coffer_attestation::Reject;
use coffer_attestation::endorsement::{
    Endorsed, QUIRKS, Quirk, Roots, TpmSpecification, Warning, inspect, verify_chain,
};
use coffer_attestation::enroll::check_ek;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::template;
use pki::*;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use swtpm::Swtpm;
use tempfile::TempDir;

#[test]
fn accepts_what_swtpm_setup_makes_as_software_and_only_as_software() {
    let ca = TempDir::new().unwrap();
    let state = TempDir::new().unwrap();
    let [issuer, root] = manufacture(ca.path(), state.path());
    let leaf = std::fs::read(state.path().join("ek-rsa2048.crt")).unwrap();
    let mut tpm = Swtpm::start(state);
    let ek = Public::parse(&tpm.create_primary(&template::ek_rsa2048()).1).unwrap();
    check_ek(&ek).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let judge = |leaf: &[u8], sent: &[&Vec<u8>], ek: &Public, roots: &Roots| {
        let sent: Vec<_> = sent.iter().map(|der| der.to_vec()).collect();
        verify_chain(leaf, &sent, ek, roots, now)
    };

    let mut software = Roots::new();
    software.add_dangerous_software(&root).unwrap();
    let endorsed = judge(&leaf, &[&issuer], &ek, &software).unwrap();
    assert_eq!(endorsed.manufacturer, "id:00001014");
    assert_eq!(endorsed.model, "swtpm");
    assert!(endorsed.software && endorsed.warnings.is_empty() && endorsed.quirks.is_empty());
    assert_eq!(endorsed.specification.unwrap().family, "2.0");
    let padded = [leaf.clone(), vec![0; 100]].concat();
    let quirks = judge(&padded, &[&issuer], &ek, &software).unwrap().quirks;
    assert_eq!(quirks, [Quirk::ZeroPadding]);
    // Unwritten NV is ff in ST's chips alone.
    for tail in [vec![1], vec![0xff; 100]] {
        let followed = [leaf.clone(), tail].concat();
        assert_eq!(judge(&followed, &[&issuer], &ek, &software), Err(Reject::TrailingData));
    }
    // The host may send the root too, and the operator may hold the issuer.
    assert!(judge(&leaf, &[&root, &issuer], &ek, &software).is_ok());
    let mut held = software.clone();
    held.add_intermediate(&issuer).unwrap();
    assert!(judge(&leaf, &[], &ek, &held).is_ok());

    // With the root in both lists, in either order, software is what counts.
    let mut both = hardware([&root]);
    both.add_dangerous_software(&root).unwrap();
    assert!(judge(&leaf, &[&issuer], &ek, &both).unwrap().software);
    assert_eq!(both.len(), (0, 1));
    software.add_hardware(&root).unwrap();
    assert!(judge(&leaf, &[&issuer], &ek, &software).unwrap().software);

    let untrusted = Err(Reject::UntrustedRoot);
    assert_eq!(judge(&leaf, &[&issuer], &ek, &Roots::new()), untrusted);
    assert_eq!(judge(&leaf, &[&issuer, &root], &ek, &Roots::new()), untrusted);
    let maker = hardware([&Chain::good().sign().0]);
    assert_eq!(judge(&leaf, &[&issuer], &ek, &maker), untrusted);
    assert_eq!(judge(&leaf, &[], &ek, &software), untrusted);
    let other = Public::parse(&Swtpm::fresh().create_primary(&template::ek_rsa2048()).1).unwrap();
    assert_eq!(judge(&leaf, &[&issuer], &other, &software), Err(Reject::EkMismatch));

    let report = inspect(&padded).unwrap();
    assert_eq!(report.key.as_deref(), Some("RSA-2048"));
    assert_eq!(report.tpm.unwrap().vendor, Some("swtpm (IBM)"));
    assert_eq!((report.size, report.refused_as_ek), ((leaf.len(), 100), None));
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

#[test]
fn accepts_a_makers_chain() {
    let expected = Endorsed {
        manufacturer: "id:00000001".into(),
        model: "id:00000002".into(),
        version: "id:00000003".into(),
        specification: None,
        software: false,
        quirks: vec![],
        warnings: vec![],
    };
    assert_eq!(Chain::good().judge(), Ok(expected));
}

/// A change of one good chain, and what then comes out.
#[track_caller]
fn refuses(reject: Reject, name: &str, change: impl FnOnce(&mut Chain)) {
    let mut chain = Chain::good();
    change(&mut chain);
    assert_eq!(chain.judge(), Err(reject), "{name}");
}

#[track_caller]
fn accepts(name: &str, change: impl FnOnce(&mut Chain)) -> Endorsed {
    let mut chain = Chain::good();
    change(&mut chain);
    chain.judge().unwrap_or_else(|reject| panic!("{name}: {reject:?}"))
}

#[test]
fn refuses_a_leaf_outside_the_profile() {
    let bad = |name: &str, change: fn(&mut Chain)| refuses(Reject::BadEkCert, name, change);
    bad("an authority", |c| c.leaf.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    bad("no basic constraints", |c| c.leaf.params.is_ca = IsCa::NoCa);
    bad("a path length without being an authority", |c| {
        c.leaf.params.is_ca = IsCa::NoCa;
        let content = der(0x30, &[vec![2, 1, 0]]);
        c.leaf.params.custom_extensions.push(extension(&[2, 5, 29, 19], true, content));
    });
    bad("basic constraints that are not critical", |c| {
        c.leaf.params.is_ca = IsCa::NoCa;
        let content = der(0x30, &[]);
        c.leaf.params.custom_extensions.push(extension(&[2, 5, 29, 19], false, content));
    });
    bad("may sign certificates", |c| c.leaf.params.key_usages.push(KeyUsagePurpose::KeyCertSign));
    bad("may sign CRLs", |c| c.leaf.params.key_usages.push(KeyUsagePurpose::CrlSign));
    bad("an RSA key's usage", |c| {
        c.leaf.params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    });
    bad("a usage that is not critical", |c| {
        c.leaf.params.key_usages.clear();
        let content = vec![3, 2, 3, 8];
        c.leaf.params.custom_extensions.push(extension(&[2, 5, 29, 15], false, content));
    });
    bad("no purpose", |c| c.leaf.params.extended_key_usages.clear());
    bad("for servers", |c| {
        c.leaf.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    bad("for attestation", |c| {
        c.leaf.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 3])];
    });
    bad("for anything", |c| {
        c.leaf.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    });
    bad("no names", |c| c.leaf.params.custom_extensions.clear());
    for missing in [[1, 2], [1, 3], [2, 3]] {
        refuses(Reject::BadEkCert, "an attribute missing", |c| {
            c.leaf.params.custom_extensions = vec![tpm_name("id:00000001", &missing)];
        });
    }
    bad("a manufacturer twice", |c| {
        c.leaf.params.custom_extensions = vec![tpm_name("id:00000001", &[1, 1, 2, 3])];
    });
    for maker in ["", "Intel", "id:INTC", "id:494e5443\n", "id:494E544"] {
        refuses(Reject::BadEkCert, maker, |c| {
            c.leaf.params.custom_extensions = vec![tpm_name(maker, &[1, 2, 3])];
        });
    }
    bad("two directory names", |c| {
        let name = directory_name("id:00000001", &[1, 2, 3]);
        let content = der(0x30, &[name.clone(), name]);
        c.leaf.params.custom_extensions = vec![extension(&[2, 5, 29, 17], true, content)];
    });
    bad("a name that does not read", |c| {
        let content = der(0x30, &[directory_name("id:00000001", &[1, 2, 3]), vec![0x82, 1, 0xff]]);
        c.leaf.params.custom_extensions = vec![extension(&[2, 5, 29, 17], true, content)];
    });
    bad("names that are not critical under an empty subject", |c| {
        c.leaf.params.distinguished_name = DistinguishedName::new();
    });
    bad("names twice", |c| {
        c.leaf.params.custom_extensions.push(tpm_name("id:00000001", &[1, 2, 3]));
    });
    bad("no authority key", |c| c.leaf.params.use_authority_key_identifier_extension = false);
    bad("a critical authority key", |c| {
        c.leaf.params.use_authority_key_identifier_extension = false;
        let content = der(0x30, &[vec![0x80, 1, 1]]);
        c.leaf.params.custom_extensions.push(extension(&[2, 5, 29, 35], true, content));
    });
    bad("an unknown critical extension", |c| {
        c.leaf.params.custom_extensions.push(extension(&[1, 2, 3, 4], true, vec![5, 0]));
    });
    bad("name constraints", |c| {
        c.leaf.params.custom_extensions.push(extension(&[2, 5, 29, 30], false, constraints()));
    });
    bad("a critical specification", |c| {
        c.leaf.params.custom_extensions.push(specification(true, &[2, 1, 116]));
    });
    bad("a specification that does not read", |c| {
        c.leaf.params.custom_extensions.push(specification(false, &[2, 2, 116]));
    });
    bad("a negative revision", |c| {
        c.leaf.params.custom_extensions.push(specification(false, &[2, 1, 0x80]));
    });
    // secp256k1, and Ed25519.
    for algorithm in [&[6, 5, 0x2b, 0x81, 4, 0, 0x0a][..], &[6, 3, 0x2b, 0x65, 0x70]] {
        let verdict = Chain::good().judge_resigned(|f| {
            let mut parts = inside(&f[KEY]);
            parts[0] = match algorithm.len() {
                7 => der(0x30, &[inside(&parts[0])[0].clone(), algorithm.to_vec()]),
                _ => der(0x30, &[algorithm.to_vec()]),
            };
            f[KEY] = der(0x30, &parts);
        });
        assert_eq!(verdict, Err(Reject::WeakKey));
    }
}

#[test]
fn accepts_a_leaf_within_the_profile() {
    accepts("without a key usage", |c| c.leaf.params.key_usages.clear());
    accepts("with several purposes", |c| {
        c.leaf.params.extended_key_usages.insert(0, ExtendedKeyUsagePurpose::ServerAuth);
        let other = ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 4, 1, 311, 122, 2]);
        c.leaf.params.extended_key_usages.push(other);
    });
    accepts("with an empty subject and critical names", |c| {
        c.leaf.params.distinguished_name = DistinguishedName::new();
        c.leaf.params.custom_extensions[0].set_criticality(true);
    });
    accepts("with an unknown extension", |c| {
        c.leaf.params.custom_extensions.push(extension(&[1, 2, 3, 4], false, vec![5, 0]));
    });
    let endorsed = accepts("with a specification", |c| {
        c.leaf.params.custom_extensions.push(specification(false, &[2, 1, 116]));
    });
    let expected = TpmSpecification { family: "2.0".into(), level: 0, revision: 116 };
    assert_eq!(endorsed.specification, Some(expected));
}

/// subjectDirectoryAttributes with a tpmSpecification of level 0 and this revision, DER.
fn specification(critical: bool, revision: &[u8]) -> rcgen::CustomExtension {
    let oid = der(6, &[vec![0x67, 0x81, 0x05, 0x02, 0x10]]);
    let family = der(12, &[b"2.0".to_vec()]);
    let value = der(0x30, &[family, vec![2, 1, 0], revision.to_vec()]);
    let attribute = der(0x30, &[oid, der(0x31, &[value])]);
    extension(&[2, 5, 29, 9], critical, der(0x30, &[attribute]))
}

/// Name constraints that permit one DNS name.
fn constraints() -> Vec<u8> {
    der(0x30, &[der(0xa0, &[der(0x30, &[der(0x82, &[b"a.example".to_vec()])])])])
}

#[test]
fn refuses_what_is_wrong_above_the_leaf() {
    let bad = |name: &str, change: fn(&mut Chain)| refuses(Reject::BadEkChain, name, change);
    let constrained = |n| IsCa::Ca(BasicConstraints::Constrained(n));
    bad("issuer is no authority", |c| c.intermediate.params.is_ca = IsCa::ExplicitNoCa);
    bad("issuer is another EK", |c| {
        c.intermediate.params = ek("id:00000001");
        c.intermediate.params.distinguished_name.push(rcgen::DnType::CommonName, "another");
    });
    bad("issuer says nothing of authority", |c| c.intermediate.params.is_ca = IsCa::NoCa);
    bad("issuer may not sign certificates", |c| {
        c.intermediate.params.key_usages = vec![KeyUsagePurpose::CrlSign];
    });
    bad("issuer is for servers", |c| {
        c.intermediate.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    bad("issuer had expired when it issued", |c| {
        c.intermediate.params.not_before = at(NOW - 2_000_000);
        c.intermediate.params.not_after = at(NOW - 1_000_001);
    });
    bad("root had expired when the leaf was issued", |c| {
        c.root.params.not_before = at(NOW - 2_000_000);
        c.root.params.not_after = at(NOW - 1_000_001);
    });
    bad("issuer not yet valid", |c| c.intermediate.params.not_before = at(NOW + 1));
    bad("root not yet valid", |c| c.root.params.not_before = at(NOW + 1));
    bad("leaf not yet valid", |c| c.leaf.params.not_before = at(NOW + 1));
    refuses(Reject::BadEkChain, "root allows no intermediate", |c| {
        c.root.params.is_ca = constrained(0);
    });
    bad("issuer with an unknown critical extension", |c| {
        c.intermediate.params.custom_extensions = vec![extension(&[1, 2, 3, 4], true, vec![5, 0])];
    });
    for critical in [true, false] {
        refuses(Reject::BadEkChain, "issuer with name constraints", |c| {
            c.intermediate.params.custom_extensions =
                vec![extension(&[2, 5, 29, 30], critical, constraints())];
        });
    }
    bad("issuer with a critical policy of unknown qualifier", |c| {
        c.intermediate.params.custom_extensions = vec![policies(&[0x2b, 6, 1])];
    });
}

#[test]
fn accepts_what_authorities_have() {
    let constrained = |n| IsCa::Ca(BasicConstraints::Constrained(n));
    accepts("path lengths that just do", |c| {
        c.intermediate.params.is_ca = constrained(0);
        c.root.params.is_ca = constrained(1);
    });
    accepts("no key usage", |c| c.intermediate.params.key_usages.clear());
    accepts("an authority for EK certificates", |c| {
        c.intermediate.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::Other(EK_CERTIFICATE.to_vec())];
    });
    accepts("an authority for anything", |c| {
        c.intermediate.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    });
    // As ST's: critical, with the URL of a statement.
    accepts("a critical policy", |c| {
        c.intermediate.params.custom_extensions = vec![policies(&[0x2b, 6, 1, 5, 5, 7, 2, 1])];
    });
    accepts("a P-384 issuer", |c| {
        c.intermediate.key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    });
    // A renewed authority is younger than what it issued under its first certificate.
    accepts("an issuer younger than the leaf", |c| {
        c.intermediate.params.not_before = at(NOW - 10);
    });
}

/// Critical certificatePolicies: anyPolicy with one qualifier.
fn policies(qualifier: &[u8]) -> rcgen::CustomExtension {
    let qualifier = der(0x30, &[der(6, &[qualifier.to_vec()]), der(22, &[b"http://a".to_vec()])]);
    let any = der(6, &[vec![0x55, 0x1d, 0x20, 0]]);
    let policy = der(0x30, &[any, der(0x30, &[qualifier])]);
    extension(&[2, 5, 29, 32], true, der(0x30, &[policy]))
}

#[test]
fn expiry_since_is_a_warning() {
    let leaf = accepts("leaf", |c| c.leaf.params.not_after = at(NOW - 1));
    assert_eq!(leaf.warnings, [Warning::LeafExpired]);
    let issuer = accepts("issuer", |c| c.intermediate.params.not_after = at(NOW - 1));
    assert_eq!(issuer.warnings, [Warning::AuthorityExpired]);
    let all = accepts("all", |c| {
        c.root.params.not_after = at(NOW - 1);
        c.intermediate.params.not_after = at(NOW - 1);
        c.leaf.params.not_after = at(NOW - 1);
    });
    assert_eq!(all.warnings, [Warning::LeafExpired, Warning::AuthorityExpired]);
    // RFC 5280, 4.1.2.5: no well-defined end.
    let endless = accepts("endless", |c| c.leaf.params.not_after = at(253_402_300_799));
    assert_eq!(endless.warnings, []);
}

#[test]
fn refuses_a_leaf_signed_by_anybody_else() {
    let (chain, other) = (Chain::good(), Chain::good());
    let (root, issuer, leaf) = chain.sign();
    let (other_root, other_issuer, other_leaf) = other.sign();
    let roots = hardware([&root]);
    let judge = |leaf: &[u8], sent: &[&Vec<u8>]| {
        let sent: Vec<_> = sent.iter().map(|der| der.to_vec()).collect();
        verify_chain(leaf, &sent, &chain.ek(), &roots, NOW)
    };
    assert!(judge(&leaf, &[&issuer]).is_ok());
    // Of the same names, but another key: the signature tells.
    assert_eq!(judge(&leaf, &[&other_issuer]), Err(Reject::BadEkCert));
    assert!(judge(&leaf, &[&other_issuer, &issuer]).is_ok());
    assert_eq!(judge(&other_leaf, &[&issuer]), Err(Reject::EkMismatch));
    let forged = verify_chain(&other_leaf, &[other_issuer, other_root], &other.ek(), &roots, NOW);
    assert_eq!(forged, Err(Reject::BadEkChain), "an issuer not signed by the root it names");

    let own = chain.leaf.params.self_signed(&chain.leaf.key).unwrap();
    assert_eq!(judge(own.der(), &[&issuer]), Err(Reject::UntrustedRoot));
    // An authority for attestation keys, ours among them, vouches for no EK.
    let ours = Party { params: authority("Coffer AK CA"), key: p256() };
    let certificate = ours.params.self_signed(&ours.key).unwrap().der().to_vec();
    let by_us = issue(&chain.leaf, &ours);
    assert_eq!(judge(&by_us, &[&certificate]), Err(Reject::UntrustedRoot));

    let mut flipped = leaf.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(judge(&flipped, &[&issuer]), Err(Reject::BadEkCert));
    assert_eq!(judge(&leaf[..leaf.len() - 1], &[&issuer]), Err(Reject::BadEkCert));
    assert_eq!(judge(&[], &[&issuer]), Err(Reject::BadEkCert));
    let followed = [issuer.clone(), vec![0]].concat();
    assert_eq!(judge(&leaf, &[&followed]), Err(Reject::TrailingData));
    assert_eq!(judge(&leaf, &[&vec![0x30; 40], &issuer]), Err(Reject::BadEkChain));
}

#[test]
fn limits_are_kept() {
    let chain = Chain::good();
    let (root, issuer, leaf) = chain.sign();
    let roots = hardware([&root]);
    let judge = |leaf: &[u8], sent: &[Vec<u8>]| verify_chain(leaf, sent, &chain.ek(), &roots, NOW);
    assert!(judge(&leaf, &vec![issuer.clone(); 8]).is_ok());
    let over = Err(Reject::LimitExceeded);
    assert_eq!(judge(&leaf, &vec![issuer.clone(); 9]), over);
    assert_eq!(judge(&leaf, &[vec![0x30; (16 << 10) + 1]]), over);
    assert_eq!(judge(&vec![0x30; 1 << 20], std::slice::from_ref(&issuer)), over);
    let padded = |size: usize| [leaf.clone(), vec![0; size - leaf.len()]].concat();
    assert!(judge(&padded(16 << 10), std::slice::from_ref(&issuer)).is_ok());
    assert_eq!(judge(&padded((16 << 10) + 1), std::slice::from_ref(&issuer)), over);
}

/// A leaf's chain with so many intermediates: those from the lowest up, and the root.
fn ladder(rungs: usize) -> (Chain, Vec<Vec<u8>>) {
    let mut chain = Chain::good();
    let mut issuer = Party { params: authority("rung 0"), key: p256() };
    let root = issuer.params.self_signed(&issuer.key).unwrap().der().to_vec();
    let mut sent = vec![];
    for n in 1..=rungs {
        let next = Party { params: authority(&format!("rung {n}")), key: p256() };
        sent.insert(0, issue(&next, &issuer));
        issuer = next;
    }
    chain.intermediate = issuer;
    (chain, [sent, vec![root]].concat())
}

#[test]
fn eight_intermediates_are_the_most() {
    for (rungs, expected) in [(8, Ok(())), (9, Err(Reject::LimitExceeded))] {
        let (chain, mut sent) = ladder(rungs);
        let mut roots = hardware([&sent.pop().unwrap()]);
        // The host may send eight; the operator holds the rest.
        sent.split_off(7).iter().for_each(|der| roots.add_intermediate(der).unwrap());
        let leaf = issue(&chain.leaf, &chain.intermediate);
        let verdict = verify_chain(&leaf, &sent, &chain.ek(), &roots, NOW);
        assert_eq!(verdict.map(drop), expected, "{rungs}");
    }
}

#[test]
fn a_circle_of_authorities_ends() {
    let mut chain = Chain::good();
    // Two intermediates that issued each other.
    chain.root = Party { params: authority("back"), key: p256() };
    let forward = issue(&chain.intermediate, &chain.root);
    let backward = issue(&chain.root, &chain.intermediate);
    let leaf = issue(&chain.leaf, &chain.intermediate);
    let roots = hardware([&Chain::good().sign().0]);
    let sent = [forward.clone(), backward.clone(), forward, backward];
    let verdict = verify_chain(&leaf, &sent, &chain.ek(), &roots, NOW);
    assert_eq!(verdict, Err(Reject::LimitExceeded));
    // The same with a way out of it is fine: the way is taken.
    let root = Party { params: authority("root"), key: p256() };
    let out = issue(&chain.root, &root);
    let trusted = hardware([&root.params.self_signed(&root.key).unwrap().der().to_vec()]);
    let sent = [sent.as_slice(), &[out]].concat();
    assert!(verify_chain(&leaf, &sent, &chain.ek(), &trusted, NOW).is_ok());
}

#[test]
fn many_namesakes_use_up_the_budget() {
    let chain = Chain::good();
    let (root, issuer, leaf) = chain.sign();
    let mut roots = hardware([&root]);
    // Each of the intermediate's name, none its issuer.
    for _ in 0..64 {
        roots.add_intermediate(&Chain::good().sign().1).unwrap();
    }
    let verdict = verify_chain(&leaf, &[], &chain.ek(), &roots, NOW);
    assert_eq!(verdict, Err(Reject::BadEkCert));
    roots.add_intermediate(&Chain::good().sign().1).unwrap();
    let verdict = verify_chain(&leaf, &[], &chain.ek(), &roots, NOW);
    assert_eq!(verdict, Err(Reject::LimitExceeded));
    // What the host sends is tried first.
    assert!(verify_chain(&leaf, &[issuer], &chain.ek(), &roots, NOW).is_ok());
}

#[test]
fn an_intermediate_may_be_a_root_and_a_root_must_be_readable() {
    let chain = Chain::good();
    let (_, issuer, leaf) = chain.sign();
    assert!(verify_chain(&leaf, &[], &chain.ek(), &hardware([&issuer]), NOW).is_ok());
    let mut roots = Roots::new();
    assert_eq!(roots.add_hardware(&[0x30; 40]), Err(Reject::BadEkChain));
    let odd = Party {
        params: authority("odd"),
        key: KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
    };
    let odd = odd.params.self_signed(&odd.key).unwrap();
    assert_eq!(roots.add_hardware(odd.der()), Err(Reject::WeakKey));
    assert!(roots.is_empty());
}

#[test]
fn nothing_a_certificate_points_to_is_fetched() {
    // A listener would see a fetch of the second URL; the first is where clouds keep credentials.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let local = format!("http://{}/ca.crt", listener.local_addr().unwrap());
    let urls = ["http://169.254.169.254/latest/meta-data".to_owned(), local];
    let mut chain = Chain::good();
    chain.leaf.params.custom_extensions.push(authority_access(&urls));
    chain.leaf.params.crl_distribution_points =
        vec![rcgen::CrlDistributionPoint { uris: urls.to_vec() }];
    assert!(chain.judge().is_ok());
    let (root, _, leaf) = chain.sign();
    let verdict = verify_chain(&leaf, &[], &chain.ek(), &hardware([&root]), NOW);
    assert_eq!(verdict, Err(Reject::UntrustedRoot), "the issuer is not gone and got");
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    let report = inspect(&leaf).unwrap();
    assert_eq!((report.issuer_urls, report.crl_urls), (urls.to_vec(), urls.to_vec()));
}

/// authorityInfoAccess with caIssuers at these URLs.
fn authority_access(urls: &[String]) -> rcgen::CustomExtension {
    let method = der(6, &[vec![0x2b, 6, 1, 5, 5, 7, 0x30, 2]]);
    let access =
        |url: &String| der(0x30, &[method.clone(), der(0x86, &[url.clone().into_bytes()])]);
    let all = urls.iter().map(access).collect::<Vec<_>>();
    extension(&[1, 3, 6, 1, 5, 5, 7, 1, 1], false, der(0x30, &all))
}

/// A quirk is tolerated of the makers it is known of and of nobody else.
#[track_caller]
fn quirk(quirk: Quirk, judge: impl Fn(&Chain) -> Result<Endorsed, Reject>, otherwise: Reject) {
    const MAKERS: [&str; 4] = ["id:49465800", "id:4E544300", "id:53544D20", "id:494E5443"];
    let known = QUIRKS.iter().find(|known| known.quirk == quirk).unwrap();
    for maker in MAKERS {
        let id = u32::from_str_radix(&maker[3..], 16).unwrap();
        let mut chain = Chain::good();
        chain.leaf.params = ek(maker);
        let verdict = judge(&chain).map(|endorsed| endorsed.quirks);
        if known.makers.is_empty() || known.makers.contains(&id) {
            assert_eq!(verdict, Ok(vec![quirk]), "{maker}");
        } else {
            assert_eq!(verdict, Err(otherwise), "{maker}");
        }
    }
}

#[test]
fn padding_is_tolerated_of_those_who_pad() {
    let padded = |byte| move |c: &Chain| c.judge_changed(|leaf| [leaf, vec![byte; 300]].concat());
    quirk(Quirk::ZeroPadding, padded(0), Reject::TrailingData);
    quirk(Quirk::OnesPadding, padded(0xff), Reject::TrailingData);
    let mixed = |c: &Chain| c.judge_changed(|leaf| [leaf, vec![0xff, 0]].concat());
    let mut chain = Chain::good();
    chain.leaf.params = ek("id:53544D20");
    assert_eq!(mixed(&chain), Err(Reject::TrailingData));
}

#[test]
fn a_disordered_issuer_is_tolerated_of_nuvoton() {
    // A multi-valued RDN, in and out of order, as the intermediate is named.
    let attribute = |last: u8, text: &str| {
        let oid = vec![6, 3, 0x55, 4, last];
        der(0x30, &[oid, der(19, &[text.as_bytes().to_vec()])])
    };
    let name = |first: Vec<u8>, second: Vec<u8>| der(0x30, &[der(0x31, &[first, second])]);
    let (c, o) = (attribute(6, "TW"), attribute(10, "Nuvoton"));
    // The intermediate is the root here: its subject is renamed, and a root's own signature is not looked at.
    let judge = |chain: &Chain, name: Vec<u8>| {
        let (_, issuer, leaf) = chain.sign();
        let issuer = resign(&issuer, &p256(), |f| f[SUBJECT] = name.clone());
        let leaf = resign(&leaf, &chain.intermediate.key, |f| f[ISSUER] = name.clone());
        verify_chain(&leaf, &[], &chain.ek(), &hardware([&issuer]), NOW)
    };
    quirk(
        Quirk::UnorderedIssuer,
        |chain| judge(chain, name(o.clone(), c.clone())),
        Reject::BadEkCert,
    );
    let ordered = judge(&Chain::good(), name(c.clone(), o.clone())).unwrap();
    assert_eq!(ordered.quirks, []);
    // The same name in the other order is another name.
    let chain = Chain::good();
    let (_, issuer, leaf) = chain.sign();
    let issuer = resign(&issuer, &p256(), |f| f[SUBJECT] = name(o.clone(), c.clone()));
    let leaf = resign(&leaf, &chain.intermediate.key, |f| f[ISSUER] = name(c.clone(), o.clone()));
    let verdict = verify_chain(&leaf, &[], &chain.ek(), &hardware([&issuer]), NOW);
    assert_eq!(verdict, Err(Reject::UntrustedRoot));
}

#[test]
fn leading_zeros_of_a_serial_are_tolerated_of_nuvoton() {
    let serial = |content: &'static [u8]| {
        move |c: &Chain| c.judge_resigned(|f| f[SERIAL] = der(2, &[content.to_vec()]))
    };
    quirk(Quirk::SerialLeadingZeros, serial(&[0, 0, 0x42]), Reject::BadEkCert);
    let nuvoton = || {
        let mut chain = Chain::good();
        chain.leaf.params = ek("id:4E544300");
        chain
    };
    let longest: &[u8] = &[0x42; 20];
    for good in [&[0x42], [0, 0x80].as_slice(), longest] {
        assert_eq!(serial(Box::leak(good.into()))(&nuvoton()).unwrap().quirks, []);
    }
    let too_long: &[u8] = &[0x42; 21];
    for bad in [&[0x80], [0].as_slice(), &[0xff, 1], &[], too_long] {
        let verdict = serial(Box::leak(bad.into()))(&nuvoton());
        assert_eq!(verdict, Err(Reject::BadEkCert), "{bad:02x?}");
    }
}

#[test]
fn trailing_zeros_of_a_key_usage_are_tolerated_of_infineon() {
    let usage = |content: &'static [u8]| {
        move |c: &Chain| {
            c.judge_resigned(|f| {
                edit_extension(f, &[0x55, 0x1d, 0x0f], |parts| {
                    *parts.last_mut().unwrap() = der(4, &[content.to_vec()]);
                });
            })
        }
    };
    // keyAgreement, with the three bits after it written out.
    quirk(Quirk::KeyUsageTrailingZeros, usage(&[3, 2, 0, 8]), Reject::BadEkCert);
    assert_eq!(usage(&[3, 2, 3, 8])(&Chain::good()).unwrap().quirks, []);
    assert_eq!(usage(&[3, 2, 3, 8, 5, 0])(&Chain::good()), Err(Reject::BadEkCert));
}

#[test]
fn a_default_written_out_is_tolerated() {
    let judge = |c: &Chain| {
        c.judge_resigned(|f| {
            edit_extension(f, &[0x55, 0x1d, 0x13], |parts| {
                *parts.last_mut().unwrap() = der(4, &[vec![0x30, 3, 1, 1, 0]]);
            });
        })
    };
    quirk(Quirk::ExplicitDefault, judge, Reject::BadEkCert);
}

#[test]
fn a_key_marked_for_oaep_is_tolerated_of_infineon() {
    let modulus = [vec![0xc5; 255], vec![0xc5]].concat();
    let spki = |algorithm: &[u8]| {
        let number = der(2, &[vec![0], modulus.clone()]);
        let key = der(0x30, &[number, vec![2, 3, 1, 0, 1]]);
        let algorithm = der(0x30, &[der(6, &[algorithm.to_vec()]), vec![5, 0]]);
        der(0x30, &[algorithm, der(3, &[vec![0], key])])
    };
    let template = template::ek_rsa2048();
    let ek_public = [&template[..template.len() - 256], &modulus].concat();
    let ek_public = Public::parse(&ek_public).unwrap();
    let judge = |chain: &Chain, algorithm: &[u8]| {
        let (root, issuer, leaf) = chain.sign();
        let leaf = resign(&leaf, &chain.intermediate.key, |f| {
            f[KEY] = spki(algorithm);
            edit_extension(f, &[0x55, 0x1d, 0x0f], |parts| {
                *parts.last_mut().unwrap() = der(4, &[vec![3, 2, 5, 0x20]]);
            });
        });
        verify_chain(&leaf, &[issuer], &ek_public, &hardware([&root]), NOW)
    };
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
    const OAEP: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 7];
    assert_eq!(judge(&Chain::good(), RSA).unwrap().quirks, []);
    quirk(Quirk::RsaesOaepKey, |chain| judge(chain, OAEP), Reject::BadEkCert);
    // An authority with such a key signs nothing.
    let issuer = resign(&Chain::good().sign().1, &p256(), |f| f[KEY] = spki(OAEP));
    assert_eq!(Roots::new().add_hardware(&issuer), Err(Reject::WeakKey));
}

#[test]
fn deviations_nobody_is_known_for_are_refused() {
    let chain = Chain::good();
    let refused = |leaf: &dyn Fn(Vec<u8>) -> Vec<u8>| chain.judge_changed(leaf);
    let bad = Err(Reject::BadEkCert);
    // An over-long length of the whole certificate.
    let long = |leaf: Vec<u8>| [&[0x30, 0x83, 0][..], &leaf[2..4], &leaf[4..]].concat();
    assert_eq!(refused(&long), bad);
    // Indefinite length.
    let endless = |leaf: Vec<u8>| [&[0x30, 0x80][..], &leaf[4..], &[0, 0]].concat();
    assert_eq!(refused(&endless), bad);
    // TPM 1.2's prefix in NV.
    let prefixed =
        |leaf: Vec<u8>| [&[0x10, 1, 0][..], &(leaf.len() as u16).to_be_bytes(), &leaf].concat();
    assert_eq!(refused(&prefixed), bad);
    // A fourth element behind the signature.
    let fourth = |leaf: Vec<u8>| der(0x30, &[inside(&leaf), vec![vec![5, 0]]].concat());
    assert_eq!(refused(&fourth), bad);
    // The two names of the algorithm differ.
    let algorithms = chain.judge_resigned(|f| f[2] = der(0x30, &[vec![6, 3, 0x2a, 3, 4]]));
    assert_eq!(algorithms, bad);
    assert_eq!(chain.judge_resigned(|f| f[0] = vec![0xa0, 3, 2, 1, 1]), bad, "version 2");
    assert_eq!(chain.judge_resigned(|f| f[ISSUER] = vec![0x30, 0]), bad, "no issuer");
    assert!(chain.judge_resigned(|_| ()).is_ok());
}

#[test]
fn what_stands_outside_the_signature_cannot_be_changed() {
    let chain = Chain::good();
    let change = |edit: fn(&mut Vec<Vec<u8>>)| {
        chain.judge_changed(|leaf| {
            let mut parts = inside(&leaf);
            edit(&mut parts);
            der(0x30, &parts)
        })
    };
    assert!(change(|_| ()).is_ok());
    let bad = Err(Reject::BadEkCert);
    // A tag of another class, which x509-parser does not tell from the right one.
    assert_eq!(change(|parts| parts[1][2] ^= 0x40), bad);
    // Bits of the signature said to be unused.
    assert_eq!(change(|parts| parts[2][2] = 1), bad);
}

#[test]
fn accepts_an_authority_with_p521() {
    use p521::ecdsa::signature::Signer as _;
    let key = p521::ecdsa::SigningKey::from_slice(&[&[1][..], &[7; 65]].concat()).unwrap();
    let point = key.verifying_key().to_sec1_point(false);
    let ec = vec![6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    let algorithm = der(0x30, &[ec, vec![6, 5, 0x2b, 0x81, 4, 0, 0x23]]);
    let spki = der(0x30, &[algorithm, der(3, &[vec![0], point.as_bytes().to_vec()])]);
    let sha512 = der(0x30, &[der(6, &[vec![0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4]])]);
    let chain = Chain::good();
    let (_, issuer, leaf) = chain.sign();
    let root = resign(&issuer, &p256(), |f| f[KEY] = spki.clone());
    let [tbs, _, _] = inside(&leaf).try_into().unwrap();
    let mut fields = inside(&tbs);
    fields[2] = sha512.clone();
    let tbs = der(0x30, &fields);
    let sign = |message: &[u8]| {
        let signature: p521::ecdsa::Signature = key.sign(message);
        der(
            0x30,
            &[
                tbs.clone(),
                sha512.clone(),
                der(3, &[vec![0], signature.to_der().as_bytes().to_vec()]),
            ],
        )
    };
    let judge = |leaf: &[u8]| verify_chain(leaf, &[], &chain.ek(), &hardware([&root]), NOW);
    assert!(judge(&sign(&tbs)).is_ok());
    assert_eq!(judge(&sign(b"other")), Err(Reject::BadEkCert));
}

#[test]
fn a_signature_over_sha1_is_weak() {
    let chain = Chain::good();
    let sha1 = der(0x30, &[der(6, &[vec![0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]])]);
    let verdict = chain.judge_changed(|leaf| {
        let [tbs, _, signature] = inside(&leaf).try_into().unwrap();
        let mut fields = inside(&tbs);
        fields[2] = sha1.clone();
        der(0x30, &[der(0x30, &fields), sha1.clone(), signature])
    });
    assert_eq!(verdict, Err(Reject::WeakHash));
}

#[test]
fn a_report_tells_what_a_certificate_says() {
    let mut chain = Chain::good();
    chain.leaf.params = ek("id:494E5443");
    chain.leaf.params.distinguished_name.push(rcgen::DnType::CommonName, "e\u{1b}[31mk");
    chain.leaf.params.custom_extensions.push(specification(false, &[2, 1, 116]));
    let report = inspect(&chain.sign().2).unwrap();
    assert_eq!(report.tpm.as_ref().unwrap().vendor, Some("Intel"));
    assert_eq!(report.issuer, "CN=intermediate");
    assert!(!report.subject.contains('\u{1b}'), "{}", report.subject);
    assert_eq!((report.serial.as_str(), report.authority), ("4217", false));
    assert_eq!(report.key.as_deref(), Some("ECC P-256"));
    assert_eq!(report.signature_algorithm, "ecdsa-with-SHA256");
    assert_eq!(report.extended_key_usage, ["2.23.133.8.1"]);
    assert_eq!(report.specification.as_ref().unwrap().revision, 116);
    assert_eq!(report.not_after.unix, (NOW + 1_000_000) as i64);
    assert_eq!(report.refused_as_ek, None);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["tpm"]["manufacturer"], "id:494E5443");

    let report = inspect(&chain.sign().1).unwrap();
    assert!(report.authority && report.tpm.is_none());
    assert_eq!(report.refused_as_ek, Some(Reject::BadEkCert));
    assert_eq!(inspect(b"0"), Err(Reject::Malformed));
    assert_eq!(inspect(&[0x30; 16385]), Err(Reject::LimitExceeded));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is changed in a leaf or an issuer, the verdict is a verdict, and not the good one.
    #[test]
    fn a_mutated_certificate_never_passes_nor_panics(
        at in any::<prop::sample::Index>(),
        with in 1u8..,
        which in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (root, mut issuer, mut leaf, ek) = FIXED.clone();
        let target = if which { &mut leaf } else { &mut issuer };
        let at = at.index(target.len());
        target[at] ^= with;
        if let Some(cut) = cut {
            target.truncate(cut.index(target.len()));
        }
        let _ = inspect(target);
        let verdict = verify_chain(&leaf, &[issuer], &ek, &hardware([&root]), NOW);
        prop_assert!(verdict.is_err());
    }

    #[test]
    fn any_bytes_get_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let (root, issuer, _, ek) = FIXED.clone();
        let _ = inspect(&bytes);
        prop_assert!(verify_chain(&bytes, &[issuer], &ek, &hardware([&root]), NOW).is_err());
        prop_assert!(Roots::new().add_hardware(&bytes).is_err());
    }
}

static FIXED: std::sync::LazyLock<(Vec<u8>, Vec<u8>, Vec<u8>, Public)> =
    std::sync::LazyLock::new(|| {
        let chain = Chain::good();
        let (root, issuer, leaf) = chain.sign();
        (root, issuer, leaf, chain.ek())
    });
