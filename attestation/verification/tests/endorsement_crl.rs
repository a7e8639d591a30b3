//! Revocation lists: whose they are, how old they may be, and what they say.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod pki;

use coffer_attestation::Reject;
use coffer_attestation::endorsement::{CrlPolicy, Roots, Warning, verify_chain};
use pki::*;
use proptest::prelude::*;
use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope,
    Issuer, KeyIdMethod, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

/// Serial numbers that `pki` gives.
const LEAF: &[u8] = &[0x42, 0x17];
const INTERMEDIATE: &[u8] = &[0x21, 0x05];
const OTHER: &[u8] = &[0x42, 0x18];

/// A list by this issuer, current, with these serial numbers.
fn list(issuer: &Party, serials: &[&[u8]]) -> Vec<u8> {
    list_with(issuer, serials, |_| ())
}

fn list_with(
    issuer: &Party,
    serials: &[&[u8]],
    change: impl FnOnce(&mut CertificateRevocationListParams),
) -> Vec<u8> {
    let revoked = |serial: &&[u8]| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: at(NOW - 1000),
        reason_code: Some(rcgen::RevocationReason::KeyCompromise),
        invalidity_date: None,
    };
    let mut params = CertificateRevocationListParams {
        this_update: at(NOW - 100),
        next_update: at(NOW + 100),
        crl_number: SerialNumber::from(7u64),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    change(&mut params);
    // Whether the issuer may sign lists is the verifier's to say.
    let mut signer = issuer.params.clone();
    signer.key_usages.push(KeyUsagePurpose::CrlSign);
    let issuer = Issuer::from_params(&signer, &issuer.key);
    params.signed_by(&issuer).unwrap().der().to_vec()
}

/// The verdict on a good chain under these lists.
fn judge(chain: &Chain, policy: CrlPolicy, lists: &[Vec<u8>]) -> Result<Vec<Warning>, Reject> {
    let (root, issuer, leaf) = chain.sign();
    let mut roots = hardware([&root]);
    roots.set_crl_policy(policy);
    lists.iter().for_each(|list| roots.add_crl(list).unwrap());
    verify_chain(&leaf, &[issuer], &chain.ek(), &roots, NOW).map(|endorsed| endorsed.warnings)
}

use CrlPolicy::{IfPresent, Required};

#[test]
fn what_a_list_names_is_revoked_under_either_policy() {
    let chain = Chain::good();
    let clean = [list(&chain.intermediate, &[OTHER]), list(&chain.root, &[])];
    let leaf = [list(&chain.intermediate, &[OTHER, LEAF]), list(&chain.root, &[])];
    let above = [list(&chain.intermediate, &[]), list(&chain.root, &[INTERMEDIATE])];
    // A serial number is its issuer's: the other's list does not touch it.
    let crossed = [list(&chain.intermediate, &[INTERMEDIATE]), list(&chain.root, &[LEAF])];
    for policy in [IfPresent, Required] {
        assert_eq!(judge(&chain, policy, &clean), Ok(vec![]));
        assert_eq!(judge(&chain, policy, &leaf), Err(Reject::Revoked));
        assert_eq!(judge(&chain, policy, &above), Err(Reject::Revoked));
        assert_eq!(judge(&chain, policy, &crossed), Ok(vec![]));
    }
}

#[test]
fn a_serial_with_needless_zeros_is_the_same_serial() {
    let mut chain = Chain::good();
    chain.leaf.params = ek("id:4E544300");
    let (root, issuer, leaf) = chain.sign();
    let leaf = resign(&leaf, &chain.intermediate.key, |f| f[SERIAL] = vec![2, 4, 0, 0, 0x42, 0x17]);
    let mut roots = hardware([&root]);
    let sent = [issuer];
    assert!(verify_chain(&leaf, &sent, &chain.ek(), &roots, NOW).is_ok());
    roots.add_crl(&list(&chain.intermediate, &[LEAF])).unwrap();
    assert_eq!(verify_chain(&leaf, &sent, &chain.ek(), &roots, NOW), Err(Reject::Revoked));
}

#[test]
fn where_lists_are_required_each_certificate_needs_a_current_one() {
    let chain = Chain::good();
    let (good, root) = (list(&chain.intermediate, &[]), list(&chain.root, &[]));
    let unusable = |name: &str, warning: Option<Warning>, bad: &[Vec<u8>]| {
        let lists = [bad, std::slice::from_ref(&root)].concat();
        assert_eq!(judge(&chain, Required, &lists), Err(Reject::CrlUnusable), "{name}");
        let warnings = Ok(warning.into_iter().collect());
        assert_eq!(judge(&chain, IfPresent, &lists), warnings, "{name}");
        // A good one beside it is enough.
        let lists = [lists, vec![good.clone()]].concat();
        assert_eq!(judge(&chain, Required, &lists), Ok(vec![]), "{name}");
    };
    unusable("missing", None, &[]);
    let old = list_with(&chain.intermediate, &[], |p| p.next_update = at(NOW - 1));
    unusable("out of date", Some(Warning::StaleCrl), &[old]);
    let young = list_with(&chain.intermediate, &[], |p| p.this_update = at(NOW + 1));
    unusable("of tomorrow", Some(Warning::StaleCrl), &[young]);
    let forged = list(&Chain::good().intermediate, &[]);
    unusable("by a namesake", Some(Warning::UnverifiedCrl), &[forged]);
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    unusable("flipped", Some(Warning::UnverifiedCrl), &[flipped]);
    // Signed by the leaf's issuer in the root's name.
    let issuer = Party { params: chain.root.params.clone(), key: p256() };
    assert_eq!(
        judge(&chain, Required, &[good.clone(), list(&issuer, &[])]),
        Err(Reject::CrlUnusable)
    );
    assert_eq!(judge(&chain, Required, std::slice::from_ref(&good)), Err(Reject::CrlUnusable));
    assert_eq!(judge(&chain, Required, &[good, root.clone()]), Ok(vec![]));
}

#[test]
fn a_revocation_does_not_lapse_with_its_list() {
    let chain = Chain::good();
    let old = list_with(&chain.intermediate, &[LEAF], |p| p.next_update = at(NOW - 1));
    assert_eq!(judge(&chain, IfPresent, std::slice::from_ref(&old)), Err(Reject::Revoked));
    // Nor does a newer list that no longer has it lift it.
    let new = list(&chain.intermediate, &[]);
    assert_eq!(judge(&chain, IfPresent, &[new, old]), Err(Reject::Revoked));
    // A list that is not the issuer's revokes nothing.
    let forged = list(&Chain::good().intermediate, &[LEAF]);
    assert_eq!(judge(&chain, IfPresent, &[forged]), Ok(vec![Warning::UnverifiedCrl]));
}

#[test]
fn an_issuer_without_crl_sign_signs_no_list() {
    let mut chain = Chain::good();
    chain.intermediate.params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let lists = [list(&chain.intermediate, &[LEAF]), list(&chain.root, &[])];
    assert_eq!(judge(&chain, Required, &lists), Err(Reject::CrlUnusable));
    assert_eq!(judge(&chain, IfPresent, &lists), Ok(vec![Warning::UnverifiedCrl]));
}

/// A list of one distribution point, for what this scope says.
fn scoped(issuer: &Party, uri: &str, scope: Option<CrlScope>, serials: &[&[u8]]) -> Vec<u8> {
    list_with(issuer, serials, |p| {
        p.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint { uris: vec![uri.to_owned()] },
            scope,
        });
    })
}

#[test]
fn a_list_speaks_of_what_is_in_its_scope() {
    let (here, elsewhere) = ("http://crl.example/a.crl", "http://crl.example/b.crl");
    let point = vec![CrlDistributionPoint { uris: vec![here.to_owned()] }];
    let mut chain = Chain::good();
    chain.intermediate.params.crl_distribution_points = point.clone();
    chain.leaf.params.crl_distribution_points = point;
    let (leaves, authorities) = (Some(CrlScope::UserCertsOnly), Some(CrlScope::CaCertsOnly));
    // Of the leaf, and of the intermediate; the other one's list speaks of everything.
    let of_leaf = |uri, scope, serials: &[&[u8]]| {
        [scoped(&chain.intermediate, uri, scope, serials), list(&chain.root, &[])]
    };
    let of_authority = |uri, scope, serials: &[&[u8]]| {
        [scoped(&chain.root, uri, scope, serials), list(&chain.intermediate, &[])]
    };
    for good in [
        of_leaf(here, None, &[]),
        of_leaf(here, leaves, &[]),
        of_authority(here, None, &[]),
        of_authority(here, authorities, &[]),
    ] {
        assert_eq!(judge(&chain, Required, &good), Ok(vec![]));
    }
    for other in [
        of_leaf(here, authorities, &[]),
        of_leaf(elsewhere, None, &[]),
        of_authority(here, leaves, &[]),
        of_authority(elsewhere, None, &[]),
    ] {
        assert_eq!(judge(&chain, Required, &other), Err(Reject::CrlUnusable));
        assert_eq!(judge(&chain, IfPresent, &other), Ok(vec![]));
    }
    let revoked = [of_leaf(here, None, &[LEAF]), of_authority(here, None, &[INTERMEDIATE])];
    for lists in revoked {
        assert_eq!(judge(&chain, IfPresent, &lists), Err(Reject::Revoked));
    }
}

#[test]
fn refuses_lists_that_do_not_say_what_they_seem_to() {
    let chain = Chain::good();
    let good = list(&chain.intermediate, &[LEAF]);
    let edited = |edit: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let [tbs, algorithm, _] = inside(&good).try_into().unwrap();
        let mut fields = inside(&tbs);
        edit(&mut fields);
        let tbs = der(0x30, &fields);
        let signature = rcgen::SigningKey::sign(&chain.intermediate.key, &tbs).unwrap();
        der(0x30, &[tbs, algorithm, der(3, &[vec![0], signature])])
    };
    let with_extension = |extension: Vec<u8>| {
        edited(&|fields: &mut Vec<Vec<u8>>| {
            let last = fields.last_mut().unwrap();
            let [list] = inside(last).try_into().unwrap();
            let all = [inside(&list), vec![extension.clone()]].concat();
            *last = der(0xa0, &[der(0x30, &all)]);
        })
    };
    let extension = |oid: &[u8], critical: u8, content: Vec<u8>| {
        let oid = der(6, &[oid.to_vec()]);
        der(0x30, &[oid, vec![1, 1, critical], der(4, &[content])])
    };
    let add = |der: &[u8]| Roots::new().add_crl(der);
    let idp = |field: Vec<u8>| extension(&[0x55, 0x1d, 0x1c], 0xff, der(0x30, &[field]));
    assert_eq!(add(&good), Ok(()));
    assert_eq!(add(&edited(&|_| ())), Ok(()));
    assert_eq!(add(&with_extension(extension(&[0x2a, 3], 0, vec![5, 0]))), Ok(()));
    assert_eq!(add(&with_extension(idp(vec![0x81, 1, 0xff]))), Ok(()), "leaves only");
    let unusable = Err(Reject::CrlUnusable);
    let unknown = extension(&[0x2a, 3], 0xff, vec![5, 0]);
    assert_eq!(add(&with_extension(unknown.clone())), unusable, "unknown critical extension");
    let delta = extension(&[0x55, 0x1d, 0x1b], 0xff, vec![2, 1, 1]);
    assert_eq!(add(&with_extension(delta)), unusable, "delta list");
    assert_eq!(add(&with_extension(idp(vec![0x84, 1, 0xff]))), unusable, "indirect list");
    assert_eq!(add(&with_extension(idp(vec![0x85, 1, 0xff]))), unusable, "attribute certificates");
    assert_eq!(add(&with_extension(idp(vec![0x83, 2, 1, 2]))), unusable, "some reasons");
    let entry = |extension: &Vec<u8>| {
        let list = edited(&|fields: &mut Vec<Vec<u8>>| {
            let at = fields.len() - 2;
            let [one] = inside(&fields[at]).try_into().unwrap();
            let mut parts = inside(&one);
            parts[2] = der(0x30, std::slice::from_ref(extension));
            fields[at] = der(0x30, &[der(0x30, &parts)]);
        });
        add(&list)
    };
    assert_eq!(entry(&unknown), unusable, "unknown critical extension of an entry");
    assert_eq!(entry(&extension(&[0x2a, 3], 0, vec![5, 0])), Ok(()), "one that is not critical");
    let reason = |critical| extension(&[0x55, 0x1d, 0x15], critical, vec![10, 1, 1]);
    assert_eq!(entry(&reason(0)), Ok(()));
    assert_eq!(entry(&reason(0xff)), Ok(()), "a reason is understood");
    assert_eq!(add(&edited(&|f| f[1] = der(0x30, &[vec![6, 2, 0x2a, 3]]))), unusable, "algorithms");
    assert_eq!(add(&[good.clone(), vec![0]].concat()), Err(Reject::TrailingData));
    assert_eq!(add(&good[..good.len() - 1]), unusable);
    assert_eq!(add(&[]), unusable);
    assert_eq!(add(&vec![0x30; 8 << 20]), unusable, "read, and none");
    assert_eq!(add(&vec![0x30; (8 << 20) + 1]), Err(Reject::LimitExceeded));
    // Without a next update it is never current.
    let endless = edited(&|fields| {
        fields.remove(4);
    });
    let lists = [endless, list(&chain.root, &[])];
    assert_eq!(judge(&chain, IfPresent, &lists), Err(Reject::Revoked));
}

#[test]
fn a_list_that_never_says_when_the_next_comes_is_not_current() {
    let chain = Chain::good();
    let good = list(&chain.intermediate, &[OTHER]);
    let [tbs, algorithm, _] = inside(&good).try_into().unwrap();
    let mut fields = inside(&tbs);
    fields.remove(4);
    let tbs = der(0x30, &fields);
    let signature = rcgen::SigningKey::sign(&chain.intermediate.key, &tbs).unwrap();
    let endless = der(0x30, &[tbs, algorithm, der(3, &[vec![0], signature])]);
    let lists = [endless, list(&chain.root, &[])];
    assert_eq!(judge(&chain, Required, &lists), Err(Reject::CrlUnusable));
    assert_eq!(judge(&chain, IfPresent, &lists), Ok(vec![Warning::StaleCrl]));
}

#[test]
fn a_list_has_at_most_250_000_entries() {
    let chain = Chain::good();
    let good = list(&chain.intermediate, &[OTHER]);
    let [tbs, algorithm, signature] = inside(&good).try_into().unwrap();
    let add = |entries: u32| {
        let mut fields = inside(&tbs);
        let at = fields.len() - 2;
        let date = der(0x17, &[b"260101000000Z".to_vec()]);
        let entry = |serial: u32| {
            let serial = der(2, &[(serial + 0x0100_0000).to_be_bytes().to_vec()]);
            der(0x30, &[serial, date.clone()])
        };
        fields[at] = der(0x30, &(0..entries).map(entry).collect::<Vec<_>>());
        let tbs = der(0x30, &fields);
        Roots::new().add_crl(&der(0x30, &[tbs, algorithm.clone(), signature.clone()]))
    };
    assert_eq!(add(250_000), Ok(()));
    assert_eq!(add(250_001), Err(Reject::LimitExceeded));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// However a list is changed, reading it does not panic, and it is never taken for the issuer's.
    #[test]
    fn a_mutated_list_is_nobodys(
        at in any::<prop::sample::Index>(),
        with in 1u8..,
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (root, issuer, leaf, ek, mut list) = FIXED.clone();
        let at = at.index(list.len());
        list[at] ^= with;
        if let Some(cut) = cut {
            list.truncate(cut.index(list.len()));
        }
        let mut roots = hardware([&root]);
        if roots.add_crl(&list).is_ok() {
            prop_assert!(verify_chain(&leaf, &[issuer], &ek, &roots, NOW).is_ok());
        }
    }
}

type Fixed = (Vec<u8>, Vec<u8>, Vec<u8>, coffer_attestation::tpm::public::Public, Vec<u8>);

static FIXED: std::sync::LazyLock<Fixed> = std::sync::LazyLock::new(|| {
    let chain = Chain::good();
    let (root, issuer, leaf) = chain.sign();
    (root, issuer, leaf, chain.ek(), list(&chain.intermediate, &[LEAF]))
});
