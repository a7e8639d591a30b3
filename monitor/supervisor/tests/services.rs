//! ENDORSE against a real swtpm: what a monitor certifies, and every way in which a peer is none of ours (SPEC 6.9).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coffer_exchange::peer::{Own, Peer, PeerRefusal, TrustedHost, check_peer};
use coffer_exchange::permit::FleetGrant;
use coffer_exchange::x509::Certificate;
use coffer_formats::channel::{Answer, Request};
use coffer_formats::endorsement::GuestId;
use coffer_formats::launch::BoxKind;
use coffer_formats::{Digest, InstanceId, ObjectName};
use coffer_host_tpm::HostTpm;
use coffer_monitor::evidence::host_link;
use coffer_services::Services;
use coffer_services::endorsement::{Endorsements, Link};
use coffer_vault::{FleetKey, Identity, Root, Vault, WrappedFleetKey};
use common::{MONITOR, TestTpm};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};

const IMAGE: u8 = 7;

/// What guests of one host have.
struct Host {
    hak_name: Option<ObjectName>,
    services: Services,
}

impl Host {
    fn answer(&self, vm: &GuestId, request: Request) -> Answer {
        let guest = GuestId { hak_name: self.hak_name, ..vm.clone() };
        self.services.answer(&guest, request)
    }
}

fn services(host_tpm: Option<HostTpm>) -> Host {
    let hak_name = host_tpm.as_ref().map(HostTpm::ak_name);
    let link = host_tpm.map(|tpm| -> Link { Box::new(move |leaf| host_link(&tpm, leaf)) });
    let endorsements = Arc::new(Endorsements::new(link).unwrap());
    let vault = Err("this host keeps no sealed store".into());
    Host { hak_name, services: Services { vault, endorsements, pace: Arc::default() } }
}

fn start(tpm: &TestTpm) -> HostTpm {
    HostTpm::start(Path::new(MONITOR), &tpm.tcti.parse().unwrap(), &tpm.event_log).unwrap()
}

fn vm(n: u8, image: u8, box_kind: BoxKind) -> GuestId {
    GuestId {
        version: 1,
        box_kind,
        image_id: Digest([image; 32]),
        signer: Some(Digest([9; 32])),
        svn: 4,
        launch_digest: Digest([n; 32]),
        instance_id: InstanceId([n; 16]),
        incarnation: 1,
        hak_name: None,
    }
}

fn point() -> [u8; 65] {
    let key = SigningKey::from_slice(&[3; 32]).unwrap();
    key.verifying_key().to_sec1_point(false).as_bytes().try_into().unwrap()
}

fn id(services: &Host, vm: &GuestId) -> (GuestId, Vec<u8>) {
    match services.answer(vm, Request::GetId) {
        Answer::Id(id, ca) => (*id, ca.into()),
        other => panic!("{other:?}"),
    }
}

fn endorse(services: &Host, vm: &GuestId) -> (Vec<u8>, Vec<u8>) {
    match services.answer(vm, Request::Endorse(point().to_vec().into())) {
        Answer::Endorsed(certificate, ca) => (certificate.into(), ca.into()),
        other => panic!("{other:?}"),
    }
}

fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

/// A closed box of [`IMAGE`] on `ours` looks at `chain`.
fn look(
    ours: &Host,
    chain: &(Vec<u8>, Vec<u8>),
    hosts: &[TrustedHost],
    at: u64,
) -> Result<Peer, PeerRefusal> {
    let (id, ca) = id(ours, &vm(1, IMAGE, BoxKind::Closed));
    check_peer(&Own { id: &id, ca: &ca }, &chain.0, &chain.1, hosts, at)
}

fn any_boot(host: &HostTpm) -> TrustedHost {
    TrustedHost { hak_name: host.ak_name(), pcr_digest: None }
}

#[test]
fn two_boxes_of_one_image_know_each_other_and_no_other() {
    let ours = services(None);
    let peer = |vm: GuestId| look(&ours, &endorse(&ours, &vm), &[], now());
    let twin = peer(vm(2, IMAGE, BoxKind::Closed)).unwrap();
    assert_eq!(twin.id, id(&ours, &vm(2, IMAGE, BoxKind::Closed)).0);
    assert_eq!((twin.id.svn, twin.id.signer), (4, Some(Digest([9; 32]))));
    assert!(twin.spki.ends_with(&point()));
    assert!((now() + 86_000..now() + 86_401).contains(&twin.not_after));
    assert_eq!(peer(vm(2, IMAGE + 1, BoxKind::Closed)), Err(PeerRefusal::OtherImage));
    assert_eq!(peer(vm(2, IMAGE, BoxKind::Open)), Err(PeerRefusal::NotClosed));
}

#[test]
fn a_certificate_holds_for_a_day() {
    let ours = services(None);
    let chain = endorse(&ours, &vm(2, IMAGE, BoxKind::Closed));
    let at = |seconds: i64| look(&ours, &chain, &[], now().checked_add_signed(seconds).unwrap());
    assert!(at(-200).is_ok() && at(86_000).is_ok());
    assert_eq!(at(-400), Err(PeerRefusal::Expired));
    assert_eq!(at(86_500), Err(PeerRefusal::Expired));
}

#[test]
fn no_byte_of_a_certificate_can_be_another() {
    let ours = services(None);
    let (certificate, ca) = endorse(&ours, &vm(2, IMAGE, BoxKind::Closed));
    for at in 0..certificate.len() {
        let mut other = certificate.clone();
        other[at] ^= 1;
        let found = look(&ours, &(other, ca.clone()), &[], now());
        assert_eq!(found, Err(PeerRefusal::Forged), "byte {at}");
    }
    for at in 0..ca.len() {
        let mut other = ca.clone();
        other[at] ^= 1;
        assert!(look(&ours, &(certificate.clone(), other), &[], now()).is_err(), "byte {at}");
    }
    assert!(look(&ours, &(certificate, ca), &[], now()).is_ok());
}

#[test]
fn what_an_endorsed_guest_signs_is_no_endorsement() {
    let ours = services(None);
    let (leaf, ca) = endorse(&ours, &vm(2, IMAGE, BoxKind::Closed));
    // A guest as a CA; a CA as a guest.
    assert_eq!(look(&ours, &(leaf.clone(), leaf), &[], now()), Err(PeerRefusal::Forged));
    assert_eq!(look(&ours, &(ca.clone(), ca), &[], now()), Err(PeerRefusal::Forged));
}

#[test]
fn another_monitor_is_believed_only_by_its_hosts_tpm() {
    let (tpm, other_tpm) = (TestTpm::start(), TestTpm::start());
    let (host, other) = (start(&tpm), start(&other_tpm));
    let (ours, theirs) = (services(Some(host.clone())), services(Some(other.clone())));
    let chain = endorse(&theirs, &vm(2, IMAGE, BoxKind::Closed));
    let check = |hosts: &[TrustedHost]| look(&ours, &chain, hosts, now());

    assert_eq!(check(&[]), Err(PeerRefusal::NotOfThisHost));
    assert_eq!(check(&[any_boot(&host)]), Err(PeerRefusal::NotOfThisHost));
    let peer = check(&[any_boot(&host), any_boot(&other)]).unwrap();
    assert_eq!(peer.id.hak_name, Some(other.ak_name()));

    // As it booted, and as it did not.
    let quoted = other.attest_alone(Digest::ZERO).unwrap().quote.pcrs.clone();
    let values: Vec<&[u8]> = quoted.iter().map(|value| value.digest.as_bytes()).collect();
    let booted = |digest| [TrustedHost { hak_name: other.ak_name(), pcr_digest: Some(digest) }];
    assert!(check(&booted(Digest::of(&values))).is_ok());
    assert_eq!(check(&booted(Digest::ZERO)), Err(PeerRefusal::NotOfThisHost));

    // A monitor without a TPM; it may say whose it is not.
    let alone = services(None);
    let chain = endorse(&alone, &vm(2, IMAGE, BoxKind::Closed));
    let trusted = [any_boot(&host), any_boot(&other)];
    assert_eq!(look(&ours, &chain, &trusted, now()), Err(PeerRefusal::NotOfThisHost));
}

#[test]
fn a_quote_of_a_trusted_host_is_worth_nothing_beside_another_key() {
    let (tpm, other_tpm) = (TestTpm::start(), TestTpm::start());
    let ours = services(Some(start(&tpm)));
    let other = start(&other_tpm);
    let theirs = services(Some(other.clone()));
    let (certificate, ca) = endorse(&theirs, &vm(2, IMAGE, BoxKind::Closed));
    // Both certificates again, by a key that the TPM never heard of; names and quote are left.
    let key = SigningKey::from_slice(&[5; 32]).unwrap();
    let (leaf, ca) =
        (signed(Certificate::parse(&certificate).unwrap().tbs, &key), forge(&ca, &key));
    let (own, own_ca) = id(&ours, &vm(1, IMAGE, BoxKind::Closed));
    let own = Own { id: &own, ca: &own_ca };
    let found = check_peer(&own, &leaf, &ca, &[any_boot(&other)], now());
    assert_eq!(found, Err(PeerRefusal::Forged));
    // They are well made: where the CA needs no quote they pass.
    let (twin, _) = id(&theirs, &vm(1, IMAGE, BoxKind::Closed));
    let found = check_peer(&Own { id: &twin, ca: &ca }, &leaf, &ca, &[], now());
    assert!(found.is_ok(), "{found:?}");
}

/// The CA's certificate with this key in place of the CA's, signed by it.
fn forge(ca: &[u8], key: &SigningKey) -> Vec<u8> {
    let parsed = Certificate::parse(ca).unwrap();
    let at = parsed.tbs.windows(parsed.spki.len()).position(|part| part == parsed.spki).unwrap();
    let mut tbs = parsed.tbs.to_vec();
    let point = key.verifying_key().to_sec1_point(false);
    tbs[at + 26..at + 91].copy_from_slice(point.as_bytes());
    signed(&tbs, key)
}

fn signed(tbs: &[u8], key: &SigningKey) -> Vec<u8> {
    let signature: p256::ecdsa::Signature = key.sign(tbs);
    let signature = signature.to_der();
    let algorithm = hex::decode("300a06082a8648ce3d040302").unwrap();
    let bits = [&[3, signature.as_bytes().len() as u8 + 1, 0], signature.as_bytes()].concat();
    let body = [tbs, &algorithm, &bits].concat();
    [&[0x30, 0x82], &u16::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

fn with_vault(dir: &Path) -> Host {
    let vault = Vault::open_under(dir, Root::DangerouslySoftware, Some(release_key())).unwrap();
    let mut host = services(None);
    host.services.vault = Ok(vault);
    host
}

fn verifier() -> SigningKey {
    SigningKey::from_slice(&[5; 32]).unwrap()
}

fn release_key() -> [u8; 65] {
    verifier().verifying_key().to_sec1_point(false).as_bytes().try_into().unwrap()
}

fn join(host: &Host, key: &FleetKey) {
    let vault = host.services.vault.as_ref().unwrap();
    let (id, recipient) = (InstanceId(vault.id()), vault.transport_key());
    let WrappedFleetKey { encapsulated, sealed } = key.wrap(&id, &recipient).unwrap();
    let grant = FleetGrant {
        version: 1,
        fleet: key.id(),
        vault: id,
        recipient,
        encapsulated,
        sealed,
        serial: InstanceId([1; 16]),
        expiry: u64::MAX,
    };
    let sign = |bytes: &[u8]| Signer::<Signature>::sign(&verifier(), bytes).to_bytes().to_vec();
    vault.join(&grant.signed(sign)).unwrap();
}

fn seal(services: &Host, vm: &GuestId, to: &str, data: &[u8]) -> Result<Vec<u8>, String> {
    seal_for(services, vm, to, false, data)
}

fn seal_for(
    services: &Host,
    vm: &GuestId,
    to: &str,
    fleet: bool,
    data: &[u8],
) -> Result<Vec<u8>, String> {
    match services.answer(vm, Request::Seal(to.into(), fleet, data.to_vec().into())) {
        Answer::Sealed(blob) => Ok(blob.into()),
        Answer::Refused(line) => Err(code(&line)),
        other => panic!("{other:?}"),
    }
}

fn unseal(services: &Host, vm: &GuestId, blob: &[u8]) -> Result<(Vec<u8>, Identity), String> {
    match services.answer(vm, Request::Unseal(blob.to_vec().into())) {
        Answer::Unsealed(data, box_kind, image_id, signer, svn) => {
            Ok((data.into(), Identity { box_kind, image_id, signer, svn }))
        }
        Answer::Refused(line) => Err(code(&line)),
        other => panic!("{other:?}"),
    }
}

/// A counter of the signer of all images here.
fn counter(services: &Host, vm: &GuestId, name: &str, advance: bool) -> Result<u64, String> {
    let of = format!("signer:{}", Digest([9; 32]));
    match services.answer(vm, Request::Counter(of, name.into(), advance)) {
        Answer::Counter(value) => Ok(value),
        Answer::Refused(line) => Err(code(&line)),
        other => panic!("{other:?}"),
    }
}

fn code(line: &str) -> String {
    line.split_once(": ").unwrap().0.into()
}

#[test]
fn what_is_sealed_opens_for_whom_it_was_sealed_and_says_by_whom() {
    let dir = tempfile::tempdir().unwrap();
    let ours = with_vault(dir.path());
    let by = vm(1, IMAGE, BoxKind::Closed);
    let GuestId { box_kind, image_id, signer, svn, .. } = by;
    let sealer = Identity { box_kind, image_id, signer, svn };
    // To an image: another instance of it, and no other image, and no open box.
    let blob = seal(&ours, &by, &format!("image:{}", by.image_id), b"data").unwrap();
    let mut twin = vm(2, IMAGE, BoxKind::Closed);
    assert_eq!(unseal(&ours, &twin, &blob), Ok((b"data".to_vec(), sealer)));
    let mut other = vm(3, IMAGE + 1, BoxKind::Closed);
    assert_eq!(unseal(&ours, &other, &blob), Err("not-owner".into()));
    let open = vm(4, IMAGE, BoxKind::Open);
    assert_eq!(unseal(&ours, &open, &blob), Err("not-owner".into()));

    // To a signer and a version: a newer image of his, none older, and nobody else's.
    let to = format!("signer:{},svn=4", by.signer.unwrap());
    let blob = seal(&ours, &by, &to, b"data").unwrap();
    assert_eq!(unseal(&ours, &other, &blob), Ok((b"data".to_vec(), sealer)));
    twin.svn = 3;
    assert_eq!(unseal(&ours, &twin, &blob), Err("svn-too-low".into()));
    other.signer = Some(Digest([8; 32]));
    assert_eq!(unseal(&ours, &other, &blob), Err("not-owner".into()));

    let to_open = seal(&ours, &by, "open", b"data").unwrap();
    assert!(unseal(&ours, &open, &to_open).is_ok());
    assert_eq!(unseal(&ours, &by, &to_open), Err("not-owner".into()));

    // Bounds, and what is no policy.
    assert!(seal(&ours, &by, "open", &vec![7; 64 << 10]).is_ok());
    assert_eq!(seal(&ours, &by, "open", &vec![7; (64 << 10) + 1]), Err("too-large".into()));
    assert_eq!(seal(&ours, &by, "image:00", b"data"), Err("bad-owner".into()));
}

#[test]
fn sealed_data_outlives_the_monitor_and_not_the_host() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let by = vm(1, IMAGE, BoxKind::Closed);
    let to = format!("image:{}", by.image_id);
    let blob = seal(&with_vault(dir.path()), &by, &to, b"data").unwrap();
    assert!(unseal(&with_vault(dir.path()), &by, &blob).is_ok());
    let other_host = with_vault(elsewhere.path());
    assert_eq!(unseal(&other_host, &by, &blob), Err("sealed-foreign".into()));
    assert_eq!(unseal(&services(None), &by, &blob), Err("no-vault".into()));
}

#[test]
fn sealed_for_a_fleet_it_opens_on_a_host_of_the_fleet_and_on_no_other() {
    let folders = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let [here, there, other, none] = folders.each_ref().map(|folder| with_vault(folder.path()));
    let by = vm(1, IMAGE, BoxKind::Closed);
    let to = format!("image:{}", by.image_id);
    assert_eq!(seal_for(&here, &by, &to, true, b"data"), Err("no-fleet".into()));
    let [key, another] = [(); 2].map(|()| FleetKey::draw().unwrap());
    for (host, key) in [(&here, &key), (&there, &key), (&other, &another)] {
        join(host, key);
    }
    let blob = seal_for(&here, &by, &to, true, b"data").unwrap();
    let GuestId { box_kind, image_id, signer, svn, .. } = by;
    let opened = (b"data".to_vec(), Identity { box_kind, image_id, signer, svn });
    let twin = vm(2, IMAGE, BoxKind::Closed);
    assert_eq!(unseal(&there, &twin, &blob), Ok(opened));
    let other_image = vm(3, IMAGE + 1, BoxKind::Closed);
    assert_eq!(unseal(&there, &other_image, &blob), Err("not-owner".into()));
    assert_eq!(unseal(&other, &twin, &blob), Err("other-fleet".into()));
    assert_eq!(unseal(&none, &twin, &blob), Err("no-fleet".into()));
    // What was not sealed for it does not.
    let own = seal(&here, &by, &to, b"data").unwrap();
    assert_eq!(unseal(&there, &twin, &own), Err("sealed-foreign".into()));
    assert!(unseal(&here, &twin, &own).is_ok());
}

#[test]
fn counters_are_the_appliances_and_move_once_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let ours = with_vault(dir.path());
    let one = vm(1, IMAGE, BoxKind::Closed);
    let read = |vm: &GuestId| counter(&ours, vm, "a", false).unwrap();
    assert_eq!(read(&one), 0);
    let start = Instant::now();
    // From several connections at once.
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| counter(&ours, &one, "a", true).unwrap());
        }
    });
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(20), "{took:?}");
    assert_eq!(read(&one), 3);
    // Another image of the same signer has the same; another signer's has not.
    let mut other = vm(2, IMAGE + 1, BoxKind::Closed);
    assert_eq!(read(&other), 3);
    other.signer = Some(Digest([8; 32]));
    assert_eq!(counter(&ours, &other, "a", false), Err("not-owner".into()));
    let nobody = Request::Counter("us".into(), "a".into(), false);
    let Answer::Refused(line) = ours.answer(&one, nobody) else { panic!("it is no policy") };
    assert_eq!(code(&line), "bad-owner");
    assert_eq!(counter(&ours, &one, "a b", false), Err("bad-name".into()));
}

#[test]
fn tools_read_what_we_write() {
    let tpm = TestTpm::start();
    let ours = services(Some(start(&tpm)));
    let (certificate, ca) = endorse(&ours, &vm(2, IMAGE, BoxKind::Closed));
    let dir = tempfile::tempdir().unwrap();
    let pem = |name: &str, der: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(dir.path().join("der"), der).unwrap();
        let made = openssl(&["x509", "-inform", "der", "-in"], &[&dir.path().join("der")]);
        std::fs::write(&path, made).unwrap();
        path
    };
    let (leaf, ca) = (pem("leaf.pem", &certificate), pem("ca.pem", &ca));
    let text = openssl(&["x509", "-noout", "-text", "-in"], &[&leaf]);
    assert!(text.contains(&format!("URI:coffer://image/{}", "07".repeat(32))), "{text}");
    assert!(text.contains("TLS Web Server Authentication, TLS Web Client Authentication"));
    // A tool that does not know our critical extension refuses, and else takes the chain.
    let verify =
        |more: &[&str]| openssl(&[&["verify"], more, &["-CAfile"]].concat(), &[&ca, &leaf]);
    assert!(verify(&[]).contains("unhandled critical extension"));
    assert!(verify(&["-ignore_critical"]).ends_with("leaf.pem: OK\n"));
}

fn openssl(arguments: &[&str], paths: &[&Path]) -> String {
    let output = Command::new("openssl")
        .args(arguments)
        .args(paths)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
    out.unwrap() + &err.unwrap()
}
