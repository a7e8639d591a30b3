//! Leave to take volumes to other hosts: for the operator alone, signed with the release key, and never without its row in
//! the log (SPEC 7.5.1, 11.17.1).
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod testkit;

use coffer_attestation::permit::{PERMIT_LABEL, VolumePermit};
use coffer_attestation::{InstanceId, Reject};
use coffer_verifier::api;
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use testkit::service::Service;

const VOLUME: InstanceId = InstanceId([5; 16]);

fn host(n: u8) -> String {
    let key = SigningKey::from_slice(&[n; 32]).unwrap();
    hex::encode(key.verifying_key().to_sec1_point(false).as_bytes())
}

fn request() -> api::NewVolumePermit {
    api::NewVolumePermit { volume: VOLUME, from: host(1), to: host(2), ttl_s: 60 }
}

const PATH: &str = "/v1/admin/volume-permits";

#[test]
fn a_permit_is_the_release_keys_and_stands_in_the_log() {
    let service = Service::start(&["default"], |_| {});
    let first = service.admin_post(PATH, &request()).ok::<api::VolumePermitted>();
    let second = service.admin_post(PATH, &request()).ok::<api::VolumePermitted>();
    assert_ne!(first.serial, second.serial, "each is good for one restoring");

    let permit = VolumePermit {
        version: 1,
        volume: VOLUME,
        sender: hex::decode(host(1)).unwrap().try_into().unwrap(),
        recipient: hex::decode(host(2)).unwrap().try_into().unwrap(),
        serial: first.serial,
        expiry: first.expires_at,
    };
    let bytes = hex::decode(&first.permit).unwrap();
    let (signed, signature) = bytes.split_at(bytes.len() - 64);
    let rebuilt = permit.signed(|said| {
        let info = service.get("/v1/info").ok::<api::Info>();
        let key = VerifyingKey::from_sec1_bytes(&hex::decode(info.release_key).unwrap()).unwrap();
        assert!(said.starts_with(PERMIT_LABEL));
        key.verify(said, &Signature::from_slice(signature).unwrap()).unwrap();
        signature.to_vec()
    });
    assert_eq!(rebuilt, bytes, "{} bytes before the signature", signed.len());

    let rows = service.get("/v1/admin/decisions").ok::<api::Decisions>().decisions;
    let said = &rows[1].explanation;
    for part in [first.serial.to_hex(), VOLUME.to_hex(), host(1), host(2)] {
        assert!(said.contains(&part), "{said}");
    }
}

#[test]
fn a_permit_that_cannot_be_logged_is_not_given() {
    let service = Service::start(&["default"], |_| {});
    service.sql(&[
        "CREATE TRIGGER full_disk BEFORE INSERT ON decisions BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    ]);
    service.admin_post(PATH, &request()).refused(Reject::LogUnavailable);
    service.sql(&["DROP TRIGGER full_disk"]);
    service.admin_post(PATH, &request()).ok::<api::VolumePermitted>();
}

#[test]
fn a_permit_is_the_operators_to_ask_for_and_has_to_make_sense() {
    let service = Service::start(&["default"], |_| {});
    assert_eq!(service.post(PATH, &request()).error().code, "unauthorized");
    let good = request();
    for bad in [
        api::NewVolumePermit { from: "04".into(), ..good.clone() },
        api::NewVolumePermit { to: format!("04{}", "11".repeat(64)), ..good.clone() },
        api::NewVolumePermit { to: good.from.clone(), ..good.clone() },
        api::NewVolumePermit { ttl_s: 0, ..good.clone() },
        api::NewVolumePermit { ttl_s: 30 * 24 * 3600 + 1, ..good.clone() },
    ] {
        assert_eq!(service.admin_post(PATH, &bad).error().code, "bad-request", "{bad:?}");
    }
    let rows = service.get("/v1/admin/log").ok::<api::LogState>().rows;
    service.admin_post(PATH, &good).ok::<api::VolumePermitted>();
    let after = service.get("/v1/admin/log").ok::<api::LogState>().rows;
    assert_eq!((rows, after), (1, 2), "what is refused leaves no row");
}
