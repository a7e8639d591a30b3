//! Deviations of makers' certificates: each tolerated of whom it is known, and of nobody else.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod pki;

use coffer_attestation::Reject;
use coffer_attestation::endorsement::{Endorsed, QUIRKS, Quirk, Roots, verify_chain};
use coffer_attestation::tpm::public::Public;
use coffer_attestation::tpm::template;
use pki::*;

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
    let same = judge(&Chain::good(), name(c.clone(), c.clone())).unwrap();
    assert_eq!(same.quirks, [], "equal elements ascend (X.690, 11.6)");
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
