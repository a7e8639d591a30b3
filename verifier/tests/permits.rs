//! Leave to take volumes to other hosts, to reseal vaults and to join fleets: for the operator alone, signed with the release key, and never without its row in
//! the log (SPEC 7.5.1 to 7.5.3).
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod testkit;

use coffer_attestation::claims::VaultClaim;
use coffer_attestation::evidence::PcrValue;
use coffer_attestation::launch::BoxKind;
use coffer_attestation::permit::{
    FleetGrant, GRANT_LABEL, PERMIT_LABEL, RESEAL_LABEL, ResealPermit, VolumePermit,
};
use coffer_attestation::{Digest, InstanceId, Reject};
use coffer_verifier::api;
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use testkit::Scene;
use testkit::service::Service;
use testkit::vm::{Shape, Vm};

const VOLUME: InstanceId = InstanceId([5; 16]);

fn host(n: u8) -> String {
    let key = SigningKey::from_slice(&[n; 32]).unwrap();
    hex::encode(key.verifying_key().to_sec1_point(false).as_bytes())
}

fn request() -> api::NewVolumePermit {
    let (from, to) = (host(1), host(2));
    api::NewVolumePermit { volume: VOLUME, from, to, ttl_s: 60, dangerously_unattested: true }
}

const PATH: &str = "/v1/admin/volume-permits";

#[test]
fn a_permit_is_the_release_keys_and_stands_in_the_log() {
    let service = Service::start(&["default"], |_| {});
    let first = service.admin_post(PATH, &request()).ok::<api::Permitted>();
    let second = service.admin_post(PATH, &request()).ok::<api::Permitted>();
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
    service.admin_post(PATH, &request()).ok::<api::Permitted>();
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
    service.admin_post(PATH, &good).ok::<api::Permitted>();
    let after = service.get("/v1/admin/log").ok::<api::LogState>().rows;
    assert_eq!((rows, after), (1, 2), "what is refused leaves no row");
}

const RESEAL: &str = "/v1/admin/reseal-permits";

fn reseal() -> api::NewResealPermit {
    let to = [0, 7].map(|pcr| api::Register { pcr, value: Digest([pcr; 32]) }).to_vec();
    api::NewResealPermit { vault: VOLUME, from: Digest([1; 32]), to, ttl_s: 60 }
}

#[test]
fn a_permit_to_reseal_is_the_release_keys_and_stands_in_the_log() {
    let service = Service::start(&["default"], |_| {});
    let permitted = service.admin_post(RESEAL, &reseal()).ok::<api::Permitted>();
    let permit = ResealPermit {
        version: 1,
        vault: VOLUME,
        from: Digest([1; 32]),
        to: [0, 7].map(|index| PcrValue { index, digest: Digest([index; 32]) }).to_vec(),
        serial: permitted.serial,
        expiry: permitted.expires_at,
    };
    let bytes = hex::decode(&permitted.permit).unwrap();
    let (_, signature) = bytes.split_at(bytes.len() - 64);
    let rebuilt = permit.signed(|said| {
        let info = service.get("/v1/info").ok::<api::Info>();
        let key = VerifyingKey::from_sec1_bytes(&hex::decode(info.release_key).unwrap()).unwrap();
        assert!(said.starts_with(RESEAL_LABEL));
        key.verify(said, &Signature::from_slice(signature).unwrap()).unwrap();
        signature.to_vec()
    });
    assert_eq!(rebuilt, bytes);
    let rows = service.get("/v1/admin/decisions").ok::<api::Decisions>().decisions;
    let said = &rows[0].explanation;
    let to = format!("7={}", Digest([7; 32]));
    for part in [permitted.serial.to_hex(), VOLUME.to_hex(), Digest([1; 32]).to_hex(), to] {
        assert!(said.contains(&part), "{said}");
    }
}

#[test]
fn a_permit_to_reseal_is_the_operators_to_ask_for_and_has_to_make_sense() {
    let service = Service::start(&["default"], |_| {});
    assert_eq!(service.post(RESEAL, &reseal()).error().code, "unauthorized");
    let registers = |pcrs: &[u8]| {
        let register = |pcr: &u8| api::Register { pcr: *pcr, value: Digest([*pcr; 32]) };
        pcrs.iter().map(register).collect::<Vec<_>>()
    };
    for pcrs in [&[][..], &[7, 0], &[0, 0], &[0, 24]] {
        let bad = api::NewResealPermit { to: registers(pcrs), ..reseal() };
        assert_eq!(service.admin_post(RESEAL, &bad).error().code, "bad-request", "{pcrs:?}");
    }
    for ttl_s in [0, 30 * 24 * 3600 + 1] {
        let bad = api::NewResealPermit { ttl_s, ..reseal() };
        assert_eq!(service.admin_post(RESEAL, &bad).error().code, "bad-request", "{ttl_s}");
    }
    service.sql(&[
        "CREATE TRIGGER full_disk BEFORE INSERT ON decisions BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    ]);
    service.admin_post(RESEAL, &reseal()).refused(Reject::LogUnavailable);
    service.sql(&["DROP TRIGGER full_disk"]);
    let good = api::NewResealPermit { to: registers(&[0, 2, 23]), ..reseal() };
    service.admin_post(RESEAL, &good).ok::<api::Permitted>();
}

const GRANT: &str = "/v1/admin/fleet-grants";

fn grant() -> api::NewFleetGrant {
    api::NewFleetGrant {
        fleet: InstanceId([6; 16]),
        vault: VOLUME,
        to: host(1),
        encapsulated: "04".repeat(65),
        sealed: "05".repeat(48),
        ttl_s: 60,
        dangerously_unattested: true,
    }
}

#[test]
fn a_grant_is_the_release_keys_and_stands_in_the_log() {
    let service = Service::start(&["default"], |_| {});
    let permitted = service.admin_post(GRANT, &grant()).ok::<api::Permitted>();
    let granted = FleetGrant {
        version: 1,
        fleet: InstanceId([6; 16]),
        vault: VOLUME,
        recipient: hex::decode(host(1)).unwrap().try_into().unwrap(),
        encapsulated: [4; 65],
        sealed: [5; 48],
        serial: permitted.serial,
        expiry: permitted.expires_at,
    };
    let bytes = hex::decode(&permitted.permit).unwrap();
    let (_, signature) = bytes.split_at(bytes.len() - 64);
    let rebuilt = granted.signed(|said| {
        let info = service.get("/v1/info").ok::<api::Info>();
        let key = VerifyingKey::from_sec1_bytes(&hex::decode(info.release_key).unwrap()).unwrap();
        assert!(said.starts_with(GRANT_LABEL));
        key.verify(said, &Signature::from_slice(signature).unwrap()).unwrap();
        signature.to_vec()
    });
    assert_eq!(rebuilt, bytes);
    let rows = service.get("/v1/admin/decisions").ok::<api::Decisions>().decisions;
    let said = &rows[0].explanation;
    for part in [permitted.serial.to_hex(), "06".repeat(16), VOLUME.to_hex(), host(1)] {
        assert!(said.contains(&part), "{said}");
    }
}

#[test]
fn a_grant_is_the_operators_to_ask_for_and_has_to_make_sense() {
    let service = Service::start(&["default"], |_| {});
    assert_eq!(service.post(GRANT, &grant()).error().code, "unauthorized");
    for bad in [
        api::NewFleetGrant { to: "04".into(), ..grant() },
        api::NewFleetGrant { encapsulated: "04".repeat(64), ..grant() },
        api::NewFleetGrant { sealed: "05".repeat(49), ..grant() },
        api::NewFleetGrant { sealed: "zz".repeat(48), ..grant() },
        api::NewFleetGrant { ttl_s: 0, ..grant() },
        api::NewFleetGrant { ttl_s: 30 * 24 * 3600 + 1, ..grant() },
    ] {
        assert_eq!(service.admin_post(GRANT, &bad).error().code, "bad-request", "{bad:?}");
    }
    service.sql(&[
        "CREATE TRIGGER full_disk BEFORE INSERT ON decisions BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    ]);
    service.admin_post(GRANT, &grant()).refused(Reject::LogUnavailable);
    service.sql(&["DROP TRIGGER full_disk"]);
    service.admin_post(GRANT, &grant()).ok::<api::Permitted>();
}

fn vault(n: u8) -> VaultClaim {
    let transport_key = hex::decode(host(n)).unwrap().try_into().unwrap();
    VaultClaim { id: InstanceId([n; 16]), transport_key }
}

/// Whoever manages a host can name the operator a key of his own; what counts is what the measured monitor said.
#[test]
fn a_grant_is_for_the_vault_that_an_enrolled_host_showed() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let asked = |n: u8| api::NewFleetGrant {
        vault: InstanceId([n; 16]),
        to: host(n),
        dangerously_unattested: false,
        ..grant()
    };
    let refused = |scene: &Scene, request: &api::NewFleetGrant| {
        assert_eq!(scene.service.admin_post(GRANT, request).error().code, "unknown-vault");
    };
    // Evidence of a host that keeps no vault shows none.
    scene.secrets(&mut vm);
    refused(&scene, &asked(1));
    scene.host.vault = Some(vault(1));
    refused(&scene, &asked(1));
    scene.secrets(&mut vm);
    scene.service.admin_post(GRANT, &asked(1)).ok::<api::Permitted>();
    let said = scene.decisions()[0].explanation.clone();
    assert!(said.contains("to rack-7, vault 0101"), "{said}");
    let hosts = scene.service.get("/v1/admin/hosts").ok::<api::Hosts>().hosts;
    assert_eq!(hosts[0].vault, Some(InstanceId([1; 16])));
    // Another key, another vault's id, and one who was believed without evidence.
    refused(&scene, &asked(2));
    refused(&scene, &api::NewFleetGrant { vault: InstanceId([2; 16]), ..asked(1) });
    let believed = api::NewFleetGrant { dangerously_unattested: true, ..asked(2) };
    scene.service.admin_post(GRANT, &believed).ok::<api::Permitted>();
    let said = scene.decisions()[0].explanation.clone();
    assert!(said.contains("DANGEROUSLY a host that showed nothing"), "{said}");
    // What evidence that is refused shows is not remembered.
    scene.host.vault = Some(vault(2));
    let mut second = Vm::launch(&Shape { incarnation: 2, ..Shape::default() });
    scene.attest(&mut second).1.refused(Reject::LaunchMismatch);
    refused(&scene, &asked(2));
    // Nor what evidence shows that is good, but that the policies give nothing to.
    let mut open = Vm::launch(&Shape { launched_as: BoxKind::Open, ..Shape::default() });
    scene.attest(&mut open).1.refused(Reject::PolicyDenied);
    refused(&scene, &asked(2));
    // Another vault in the place of the one before; and a host that is removed is nobody's.
    scene.secrets(&mut vm);
    scene.service.admin_post(GRANT, &asked(2)).ok::<api::Permitted>();
    refused(&scene, &asked(1));
    scene.service.delete("/v1/admin/hosts/rack-7").no_content();
    refused(&scene, &asked(2));
}

#[test]
fn a_volume_leaves_for_and_from_vaults_that_enrolled_hosts_showed() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    let attested = api::NewVolumePermit { dangerously_unattested: false, ..request() };
    let refused = |scene: &Scene, request: &api::NewVolumePermit| {
        assert_eq!(scene.service.admin_post(PATH, request).error().code, "unknown-vault");
    };
    refused(&scene, &attested);
    scene.host.vault = Some(vault(1));
    scene.secrets(&mut vm);
    // One end known is not enough, whichever.
    refused(&scene, &attested);
    let back = api::NewVolumePermit { from: host(2), to: host(1), ..attested.clone() };
    refused(&scene, &back);
    let mut other = scene.another_host("rack-8");
    other.vault = Some(vault(2));
    std::mem::swap(&mut scene.host, &mut other);
    scene.secrets(&mut Vm::launch(&Shape::default()));
    scene.service.admin_post(PATH, &attested).ok::<api::Permitted>();
    let said = scene.decisions()[0].explanation.clone();
    assert!(said.contains("from rack-7") && said.contains("to rack-8"), "{said}");
    scene.service.admin_post(PATH, &back).ok::<api::Permitted>();
    // Two hosts that show one key: one of them lies.
    scene.host.vault = Some(vault(1));
    scene.secrets(&mut Vm::launch(&Shape::default()));
    refused(&scene, &attested);
}

const WEEK_S: u64 = 7 * 24 * 3600;
/// Longer than a step of a test takes.
const MARGIN_S: u64 = 600;

/// A host may be stolen, reinstalled or retired after it showed its vault: a grant months later must not be for it.
#[test]
fn a_vault_shown_is_believed_for_seven_days_and_again_once_it_is_shown_again() {
    let mut scene = Scene::new();
    let mut vm = Vm::launch(&Shape::default());
    scene.host.vault = Some(vault(1));
    let asked =
        api::NewFleetGrant { vault: InstanceId([1; 16]), dangerously_unattested: false, ..grant() };
    let told = |scene: &Scene| scene.service.admin_post(GRANT, &asked).error();
    let stale = |scene: &Scene, why: &str| {
        let error = told(scene);
        assert_eq!(error.code, "unknown-vault");
        assert!(error.message.contains("`rack-7`") && error.message.contains(why), "{error:?}");
        assert!(
            error.hint.as_ref().is_some_and(|it| it.contains("attest here again")),
            "{error:?}"
        );
    };
    let permitted =
        |scene: &Scene| scene.service.admin_post(GRANT, &asked).ok::<api::Permitted>().serial;
    let seen =
        |scene: &Scene| scene.service.get("/v1/admin/hosts").ok::<api::Hosts>().hosts[0].vault_seen;
    assert_eq!(seen(&scene), None);
    scene.secrets(&mut vm);
    let first = seen(&scene).unwrap();
    // Nor is a grant good for longer than that, however long it is asked for.
    let long = api::NewFleetGrant { ttl_s: 30 * 24 * 3600, ..asked.clone() };
    let expires = |asked| scene.service.admin_post(GRANT, asked).ok::<api::Permitted>().expires_at;
    assert_eq!(expires(&long), first + WEEK_S);
    assert!(expires(&asked) < first + WEEK_S);
    permitted(&scene);
    scene.service.later(WEEK_S - MARGIN_S);
    permitted(&scene);
    scene.service.later(MARGIN_S + 1);
    stale(&scene, "7 days and 0 h ago");
    scene.service.later(93 * 24 * 3600 + 7200);
    stale(&scene, "100 days and 2 h ago");
    assert_eq!(seen(&scene), Some(first), "asking shows nothing");
    let believed = api::NewFleetGrant { dangerously_unattested: true, ..asked.clone() };
    scene.service.admin_post(GRANT, &believed).ok::<api::Permitted>();

    scene.secrets(&mut vm);
    assert!(seen(&scene).unwrap() > first + 100 * 24 * 3600);
    permitted(&scene);
    // The clock was set back since; and a row from before it was noted when.
    scene.service.sql(&["UPDATE host_clocks SET vault_seen = vault_seen + 600"]);
    stale(&scene, "still to come");
    scene.service.sql(&["UPDATE host_clocks SET vault_seen = vault_seen - 600"]);
    permitted(&scene);
    scene.service.sql(&["UPDATE host_clocks SET vault_seen = NULL"]);
    stale(&scene, "not known when");
    scene.secrets(&mut vm);
    permitted(&scene);
    // Who shows none any more has none, and never showed it.
    scene.host.vault = None;
    scene.secrets(&mut vm);
    assert_eq!(seen(&scene), None);
    let error = told(&scene);
    assert!(error.message.contains("no enrolled host has shown"), "{error:?}");
}

#[test]
fn a_volume_leaves_only_for_and_from_vaults_shown_in_the_last_seven_days() {
    let mut scene = Scene::new();
    scene.host.vault = Some(vault(1));
    scene.secrets(&mut Vm::launch(&Shape::default()));
    let mut other = scene.another_host("rack-8");
    other.vault = Some(vault(2));
    let there = api::NewVolumePermit { dangerously_unattested: false, ..request() };
    let back = api::NewVolumePermit { from: host(2), to: host(1), ..there.clone() };
    let both = |scene: &Scene| {
        for asked in [&there, &back] {
            // Nor is a permit good for longer than the vault is believed that was shown longer ago.
            let asked = api::NewVolumePermit { ttl_s: 30 * 24 * 3600, ..asked.clone() };
            let permitted = scene.service.admin_post(PATH, &asked).ok::<api::Permitted>();
            let hosts = scene.service.get("/v1/admin/hosts").ok::<api::Hosts>().hosts;
            let shown = hosts.iter().filter_map(|host| host.vault_seen).min();
            assert_eq!(Some(permitted.expires_at), shown.map(|at| at + WEEK_S));
        }
    };
    let stale = |scene: &Scene, name: &str| {
        for asked in [&there, &back] {
            let error = scene.service.admin_post(PATH, asked).error();
            assert_eq!(error.code, "unknown-vault");
            assert!(error.message.contains(name), "{error:?}");
        }
    };
    scene.service.later(3 * 24 * 3600);
    std::mem::swap(&mut scene.host, &mut other);
    scene.secrets(&mut Vm::launch(&Shape::default()));
    both(&scene);
    // Whichever end it is, the one that is too old is told.
    scene.service.later(4 * 24 * 3600 + 1);
    stale(&scene, "`rack-7` showed");
    std::mem::swap(&mut scene.host, &mut other);
    scene.secrets(&mut Vm::launch(&Shape::default()));
    both(&scene);
    scene.service.later(3 * 24 * 3600);
    stale(&scene, "`rack-8` showed");
}

/// A software TPM's host is enrolled, and its evidence is good; the default policy gives it nothing, and so takes nothing from
/// it.
#[test]
fn a_host_that_the_policies_refuse_shows_no_vault() {
    let mut scene = Scene::with_policies(&["default"]);
    scene.host.vault = Some(vault(1));
    let mut vm = Vm::launch(&Shape::default());
    scene.attest(&mut vm).1.refused(Reject::PolicyDenied);
    let asked =
        api::NewFleetGrant { vault: InstanceId([1; 16]), dangerously_unattested: false, ..grant() };
    assert_eq!(scene.service.admin_post(GRANT, &asked).error().code, "unknown-vault");
}
