//! EK certificates: one of swtpm_setup's, and made ones with one defect each.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod pki;
mod swtpm;

use std::path::Path;
use std::process::Command;

use coffer_attestation::Reject;
use coffer_attestation::endorsement::{
    Endorsed, Quirk, Roots, TpmSpecification, inspect, verify_chain,
};
use coffer_attestation::enroll::check_ek;
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::template;
use pki::*;
use proptest::prelude::*;
use rcgen::{BasicConstraints, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
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

#[test]
fn an_attribute_is_printable_and_of_at_most_64_characters() {
    let judge = |model: &str| {
        let mut chain = Chain::good();
        let attributes = [(1, "id:00000001"), (2, model), (3, "id:00000003")];
        let attributes: Vec<_> =
            attributes.iter().map(|(n, text)| tpm_attribute(*n, text)).collect();
        let name = der(0xa4, &[der(0x30, &attributes)]);
        let content = der(0x30, &[name]);
        chain.leaf.params.custom_extensions = vec![extension(&[2, 5, 29, 17], false, content)];
        chain.judge().map(|endorsed| endorsed.model)
    };
    let longest = "m".repeat(64);
    assert_eq!(judge(&longest), Ok(longest.clone()));
    let bad = Err(Reject::BadEkCert);
    assert_eq!(judge(&"m".repeat(65)), bad);
    assert_eq!(judge(""), bad);
    assert_eq!(judge("m\u{1b}[31m"), bad);
}

#[test]
fn a_specification_is_read_to_its_end() {
    let judge = |attributes: &[Vec<u8>]| {
        let mut chain = Chain::good();
        let content = extension(&[2, 5, 29, 9], false, der(0x30, attributes));
        chain.leaf.params.custom_extensions.push(content);
        chain.judge().map(|endorsed| endorsed.specification)
    };
    let revision = |content: &[u8]| der(2, &[content.to_vec()]);
    let read = |family: &str, content: &[u8]| {
        let read = judge(&[specification_of(family, &[revision(content)])]);
        read.map(|specification| specification.map(|s| (s.family, s.revision)))
    };
    let found = |family: &str, revision: u32| Ok(Some((family.to_owned(), revision)));
    let bad = Err(Reject::BadEkCert);
    assert_eq!(read("2.0", &[1, 0x2d]), found("2.0", 301));
    assert_eq!(read("2.0", &[0x7f, 0xff, 0xff, 0xff]), found("2.0", 0x7fff_ffff));
    assert_eq!(read("2.0", &[0, 0x80, 0, 0, 0]), bad, "five bytes");
    let longest = "f".repeat(64);
    assert_eq!(read(&longest, &[116]), found(&longest, 116));
    assert_eq!(read(&"f".repeat(65), &[116]), bad);
    assert_eq!(read("2.0\n", &[116]), bad);
    // Other attributes are nobody's business; two specifications are one too many.
    let other = der(0x30, &[vec![6, 2, 0x2a, 3], der(0x31, &[vec![5, 0]])]);
    let one = specification_of("2.0", &[revision(&[116])]);
    assert_eq!(judge(std::slice::from_ref(&other)), Ok(None));
    assert!(judge(&[other, one.clone()]).unwrap().is_some());
    assert_eq!(judge(&[one.clone(), one]), Err(Reject::BadEkCert));
    let more = specification_of("2.0", &[revision(&[116]), vec![5, 0]]);
    assert_eq!(judge(&[more]), Err(Reject::BadEkCert), "a fourth field");
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
    assert_eq!(inspect(&[0x30; 16384]), Err(Reject::Malformed));
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

type Fixed = (Vec<u8>, Vec<u8>, Vec<u8>, Public);

static FIXED: std::sync::LazyLock<Fixed> = std::sync::LazyLock::new(|| {
    let chain = Chain::good();
    let (root, issuer, leaf) = chain.sign();
    (root, issuer, leaf, chain.ek())
});
