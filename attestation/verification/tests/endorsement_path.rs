//! The way from an EK certificate to a root: authorities with one defect each, limits, and what is not done.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod pki;

use coffer_attestation::Reject;
use coffer_attestation::endorsement::{Roots, Warning, inspect, verify_chain};
use pki::*;
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};

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
    let last_second = accepts("the last second", |c| {
        c.root.params.not_after = at(NOW);
        c.intermediate.params.not_after = at(NOW);
        c.leaf.params.not_after = at(NOW);
    });
    assert_eq!(last_second.warnings, []);
    accepts("the first second", |c| {
        c.root.params.not_before = at(NOW);
        c.intermediate.params.not_before = at(NOW);
        c.leaf.params.not_before = at(NOW);
    });
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
    assert_eq!(forged, Err(Reject::UntrustedRoot), "a chain that brings its own root");
    // An issuer whose own issuer was sent and did not sign it.
    let mut unsigned = issuer.clone();
    *unsigned.last_mut().unwrap() ^= 1;
    assert_eq!(judge(&leaf, &[&unsigned, &root]), Err(Reject::BadEkChain));
    assert_eq!(judge(&leaf, &[&unsigned]), Err(Reject::UntrustedRoot));

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
    assert_eq!(judge(&leaf, &[vec![0x30; 16 << 10]]), Err(Reject::BadEkChain), "read, and none");
    let endless = verify_chain(&leaf, &[], &chain.ek(), &roots, u64::MAX);
    assert_eq!(endless, over, "a time no certificate can state");
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
    assert_eq!(verdict, Err(Reject::UntrustedRoot));
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
fn roots_are_counted_by_kind_and_software_comes_first() {
    let mut roots = Roots::new();
    assert!(roots.is_empty());
    // One authority with a certificate in either list.
    let mut chain = Chain::good();
    let (first, issuer, leaf) = chain.sign();
    chain.root.params.serial_number = Some(rcgen::SerialNumber::from(7u64));
    let second = chain.root.params.self_signed(&chain.root.key).unwrap().der().to_vec();
    roots.add_hardware(&first).unwrap();
    roots.add_dangerous_software(&second).unwrap();
    roots.add_hardware(&issuer).unwrap();
    assert_eq!((roots.len(), roots.is_empty()), ((2, 1), false));
    let mut two = hardware([&first]);
    two.add_dangerous_software(&second).unwrap();
    let endorsed = verify_chain(&leaf, &[issuer], &chain.ek(), &two, NOW).unwrap();
    assert!(endorsed.software);
}

#[test]
fn an_operator_loads_at_most_4096_certificates_and_lists() {
    let issuer = Chain::good().sign().1;
    let mut roots = Roots::new();
    (0..4096).for_each(|_| roots.add_intermediate(&issuer).unwrap());
    assert_eq!(roots.add_intermediate(&issuer), Err(Reject::LimitExceeded));
    assert_eq!(roots.add_hardware(&issuer), Err(Reject::LimitExceeded));
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
    assert_eq!(judge(&sign(b"other")), Err(Reject::UntrustedRoot));
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
