//! Certificates that a host's services make for guests, and what peers make of them (SPEC 6.9): what is written two readers read alike;
//! with edits, nobody but the CA, and the TPM of a trusted host, makes a peer.
#![no_main]

use std::sync::LazyLock;

use coffer_exchange::peer::{Own, Peer, TrustedHost, check_peer};
use coffer_exchange::x509::Certificate;
use coffer_formats::endorsement::{GUEST_ID_OID, GuestId, HOST_LINK_OID};
use coffer_formats::launch::BoxKind;
use coffer_formats::{Digest, InstanceId, ObjectName, cbor};
use coffer_fuzz::{edited, one_in};
use coffer_services::endorsement::Endorsements;
use libfuzzer_sys::fuzz_target;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// When the originals are valid.
const NOW: u64 = include!("../originals/peer-now");
/// Name of the key by which the other host's TPM speaks.
const HAK: ObjectName = ObjectName(*include_bytes!("../originals/peer-hak.name"));

/// What services made once: a leaf and its CA.
#[derive(Clone, Copy)]
struct Chain {
    leaf: &'static [u8],
    ca: &'static [u8],
}

/// Of a host without a TPM, and of one with a TPM.
const ORIGINALS: [Chain; 2] = [
    Chain {
        leaf: include_bytes!("../originals/peer-leaf.der"),
        ca: include_bytes!("../originals/peer-ca.der"),
    },
    Chain {
        leaf: include_bytes!("../originals/peer-linked-leaf.der"),
        ca: include_bytes!("../originals/peer-linked-ca.der"),
    },
];

static OWN: LazyLock<GuestId> = LazyLock::new(|| guest(None, &[]));
static SERVICES: LazyLock<Endorsements> =
    LazyLock::new(|| Endorsements::new(None).expect("a CA without a TPM"));

/// A guest whose numbers are the bytes', then zeros.
fn guest(hak_name: Option<ObjectName>, bytes: &[u8]) -> GuestId {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
    GuestId {
        version: 1,
        box_kind: if byte(0) % 2 == 0 { BoxKind::Closed } else { BoxKind::Open },
        image_id: Digest([byte(1); 32]),
        signer: (byte(2) % 2 == 1).then_some(Digest([byte(2); 32])),
        svn: u32::from(byte(3)) << (byte(4) % 25),
        launch_digest: Digest([byte(5); 32]),
        instance_id: InstanceId([byte(6); 16]),
        incarnation: u64::from(byte(7)) << (byte(8) % 57),
        hak_name,
    }
}

/// A closed box on the host without a TPM, which trusts the other.
fn look(chain: &Chain, leaf: &[u8], ca: &[u8], now: u64) -> Option<Peer> {
    let own = Own { id: &OWN, ca: ORIGINALS[0].ca };
    let hosts = [TrustedHost { hak_name: HAK, pcr_digest: Some(Digest([4; 32])) }];
    let hosts = if chain.ca == own.ca { &[][..] } else { &hosts };
    check_peer(&own, leaf, ca, hosts, now).ok()
}

fuzz_target!(init: {
    for (chain, hak) in ORIGINALS.iter().zip([None, Some(HAK)]) {
        let peer = look(chain, chain.leaf, chain.ca, NOW).expect("the originals are peers");
        assert_eq!(peer.id, guest(hak, &[]));
        assert!(look(chain, chain.leaf, chain.ca, peer.not_after + 1).is_none());
    }
    let [own, linked] = &ORIGINALS;
    assert!(look(own, linked.leaf, linked.ca, NOW).is_none(), "a host that is not trusted");
    assert!(look(linked, linked.leaf, own.ca, NOW).is_none(), "another CA");
}, |data: &[u8]| {
    let Some((what, rest)) = data.split_first() else { return };
    let chain = &ORIGINALS[usize::from(what >> 7)];
    let (mut leaf, mut ca) = (chain.leaf.to_vec(), chain.ca.to_vec());
    match what % 8 {
        0 => return check_written(data, rest),
        1 => leaf = rest.to_vec(),
        2 => {
            let (first, second) = rest.split_at(rest.len() / 2);
            (leaf, ca) = (edited(&leaf, first), edited(&ca, second));
        }
        3 | 4 => ca = edited(&ca, rest),
        _ => leaf = edited(&leaf, rest),
    }
    let parsed = (two_readers(&leaf), two_readers(&ca));
    // Signatures take a hundred times as long as all the rest: they are tried for one in 16 of those that read.
    if parsed.0.is_some() && parsed.1.is_some() && !one_in(16, data) {
        return;
    }
    let Some(peer) = look(chain, &leaf, &ca, NOW) else { return };
    assert!(parsed.0.is_some_and(|tbs| tbs == signed(chain.leaf)), "a forged leaf");
    assert!(parsed.1.is_some_and(|tbs| tbs == signed(chain.ca)), "a forged CA");
    assert_eq!(peer.id, guest(peer.id.hak_name, &[]));
    assert_eq!(peer.id.hak_name.is_some(), chain.ca == ORIGINALS[1].ca);
});

fn signed(der: &[u8]) -> &[u8] {
    Certificate::parse(der).expect("an original").tbs
}

/// What is signed, if it is a certificate; as another reader takes it apart, if it takes it.
fn two_readers(der: &[u8]) -> Option<&[u8]> {
    let ours = Certificate::parse(der).ok()?;
    let Ok((rest, theirs)) = X509Certificate::from_der(der) else { return Some(ours.tbs) };
    assert!(rest.is_empty());
    let tbs = &theirs.tbs_certificate;
    assert_eq!(ours.tbs, tbs.as_ref());
    // Of a name that is none the other reader takes what it knows.
    assert!(ours.issuer.starts_with(tbs.issuer.as_raw()));
    assert!(ours.subject.starts_with(tbs.subject.as_raw()));
    assert_eq!(ours.spki, tbs.subject_pki.raw);
    assert_eq!(ours.signature, &*theirs.signature_value.data);
    let times = [tbs.validity.not_before, tbs.validity.not_after].map(|time| time.timestamp());
    assert_eq!([ours.not_before, ours.not_after].map(|time| time as i64), times);
    assert_eq!(ours.ca, tbs.is_ca());
    for (oid, found) in [(GUEST_ID_OID, ours.guest_id), (HOST_LINK_OID, ours.host_link)] {
        let same = tbs.extensions().iter().find(|extension| extension.oid.as_bytes() == oid);
        assert_eq!(found, same.map(|extension| extension.value));
    }
    Some(ours.tbs)
}

/// The certificate of any guest for any 65 bytes says who it is, and of which key.
fn check_written(data: &[u8], fields: &[u8]) {
    // Drawing a serial and signing take the time of ten others.
    if !one_in(4, data) {
        return;
    }
    let id = guest(Some(HAK).filter(|_| fields.len() % 2 == 1), fields);
    let mut point = [0; 65];
    point.iter_mut().zip(fields.iter().skip(9)).for_each(|(to, from)| *to = *from);
    let der = SERVICES.endorse(&id, &point).expect("the CA signs");
    let tbs = two_readers(&der).expect("what services write is read");
    let read = Certificate::parse(&der).expect("as before");
    assert!(read.guest_id.is_some_and(|bytes| bytes == cbor::encode(&id)) && !read.ca);
    assert!(read.spki.ends_with(&point) && read.tbs == tbs);
    assert_eq!(read.not_after - read.not_before, (24 * 60 + 5) * 60);
    let (_, theirs) = X509Certificate::from_der(&der).expect("by the other reader too");
    let names = theirs.subject_alternative_name().expect("once").expect("it is there");
    let uri = format!("coffer://image/{}", id.image_id);
    assert!(matches!(names.value.general_names[..],
        [x509_parser::extensions::GeneralName::URI(found)] if found == uri));
    assert_eq!(theirs.validity().not_after.timestamp() as u64, read.not_after);
}
