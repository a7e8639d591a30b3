//! Hosts of one fleet open what each of them sealed for it, and no others do.

use coffer_exchange::permit::{FleetGrant, ResealPermit};
use coffer_formats::{Digest, InstanceId};

use super::support::*;
use crate::*;

fn grant(key: &FleetKey, vault: &Vault) -> FleetGrant {
    let (id, recipient) = (InstanceId(vault.id()), vault.transport_key());
    let WrappedFleetKey { encapsulated, sealed } = key.wrap(&id, &recipient).unwrap();
    FleetGrant {
        version: 1,
        fleet: key.id(),
        vault: id,
        recipient,
        encapsulated,
        sealed,
        serial: InstanceId([1; 16]),
        expiry: u64::MAX,
    }
}

fn signed_by(verifier: u8, grant: &FleetGrant) -> Vec<u8> {
    grant.signed(|bytes| Verifier::new(verifier).sign(bytes))
}

fn join(vault: &Vault, key: &FleetKey) -> Result<(), VaultError> {
    vault.join(&signed_by(1, &grant(key, vault)))
}

fn fleet(vault: &Vault) -> Option<String> {
    vault.info().unwrap().fleet
}

#[test]
fn what_is_sealed_for_a_fleet_opens_on_its_hosts_and_on_no_other() {
    let sites = [(); 4].map(|()| Site::new());
    let [here, there, other, none] = sites.each_ref().map(|site| site.open().unwrap());
    let me = signed(1, 7, 3);
    assert_eq!(refused(here.seal(&me, &by(7, 3), true, b"x")), "no-fleet");
    let (key, another) = (FleetKey::draw().unwrap(), FleetKey::draw().unwrap());
    for (vault, key) in [(&here, &key), (&there, &key), (&other, &another)] {
        join(vault, key).unwrap();
        assert_eq!(fleet(vault), Some(key.id().to_hex()));
    }
    let blob = here.seal(&me, &by(7, 3), true, b"of the fleet").unwrap();
    assert_eq!(blob.len(), 12 + SEALED_OVERHEAD);
    for vault in [&here, &there] {
        let unsealed = vault.unseal(&signed(2, 7, 4), &blob).unwrap();
        assert_eq!((&**unsealed.data, unsealed.sealed_by), (&b"of the fleet"[..], me));
    }
    assert_eq!(refused(other.unseal(&me, &blob)), "other-fleet");
    assert_eq!(refused(none.unseal(&me, &blob)), "no-fleet");
    // Nor where the blob is made to name that fleet, or that vault.
    let mut renamed = blob.clone();
    renamed[16..32].copy_from_slice(&another.id().0);
    assert_eq!(refused(other.unseal(&me, &renamed)), "sealed-corrupt");
    for vault in [&here, &none] {
        renamed[12] = 0;
        renamed[16..32].copy_from_slice(&vault.id());
        assert_eq!(refused(vault.unseal(&me, &renamed)), "sealed-corrupt");
    }
    // What is not for the fleet is this host's, as it was.
    let own = here.seal(&me, &by(7, 3), false, b"of this host").unwrap();
    assert_eq!(refused(there.unseal(&me, &own)), "sealed-foreign");
    assert_eq!(&**here.unseal(&me, &own).unwrap().data, b"of this host");
    // It outlives the host's reboot.
    drop(there);
    sites[1].boot(false);
    let there = sites[1].open().unwrap();
    assert_eq!(&**there.unseal(&me, &blob).unwrap().data, b"of the fleet");
}

#[test]
fn a_fleets_policies_are_a_hosts() {
    let sites = [(); 2].map(|()| Site::new());
    let [here, there] = sites.each_ref().map(|site| site.open().unwrap());
    let key = FleetKey::draw().unwrap();
    for vault in [&here, &there] {
        join(vault, &key).unwrap();
    }
    let guests = [closed(1), signed(1, 7, 5), signed(3, 7, 5), open_box(closed(1))];
    let old = signed(3, 7, 4);
    let cases: [(Owner, &[usize]); 3] =
        [(image(1), &[0, 1]), (by(7, 5), &[1, 2]), (Owner::Open, &[3])];
    for (owner, may) in cases {
        let blob = here.seal(&guests[0], &owner, true, b"data").unwrap();
        for (who, guest) in guests.iter().enumerate() {
            match (may.contains(&who), there.unseal(guest, &blob)) {
                (true, unsealed) => assert_eq!(unsealed.unwrap().sealed_by, guests[0]),
                (false, unsealed) => assert_eq!(refused(unsealed), "not-owner", "{owner} {who}"),
            }
        }
        if owner == by(7, 5) {
            assert_eq!(refused(there.unseal(&old, &blob)), "svn-too-low");
        }
    }
    let blob = here.seal(&guests[0], &image(1), true, b"data").unwrap();
    for at in 0..blob.len() {
        let mut altered = blob.clone();
        altered[at] ^= 1;
        let expected = match at {
            12 => "sealed-foreign",
            16..32 => "other-fleet",
            _ => "sealed-corrupt",
        };
        assert_eq!(refused(there.unseal(&guests[0], &altered)), expected, "byte {at}");
    }
    assert_eq!(
        refused(here.seal(&guests[0], &image(1), true, &vec![0; SEALED_MAX + 1])),
        "too-large"
    );
    let largest = here.seal(&guests[0], &image(1), true, &vec![7; SEALED_MAX]).unwrap();
    assert_eq!(there.unseal(&guests[0], &largest).unwrap().data.len(), SEALED_MAX);
}

#[test]
fn a_host_joins_by_its_verifiers_grant_for_this_vault_only() {
    let sites = [(); 2].map(|()| Site::new());
    let [vault, other] = sites.each_ref().map(|site| site.open().unwrap());
    let key = FleetKey::draw().unwrap();
    let (good, others) = (grant(&key, &vault), grant(&key, &other));
    let check = |grant: &[u8], expected: &str| {
        let error = vault.join(grant).unwrap_err();
        assert_eq!(error.code(), "bad-permit", "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(fleet(&vault), None);
    };
    let bad = |grant: FleetGrant, why: &str| check(&signed_by(1, &grant), why);
    bad(others.clone(), "another vault");
    bad(FleetGrant { vault: good.vault, ..others.clone() }, "another vault");
    bad(FleetGrant { recipient: good.recipient, ..others.clone() }, "another vault");
    bad(FleetGrant { expiry: 1, ..good.clone() }, "expired");
    bad(FleetGrant { version: 2, ..good.clone() }, "parse");
    // A key that is sealed to another vault, or in another fleet's name, or altered.
    let foreign = FleetGrant { vault: good.vault, recipient: good.recipient, ..others };
    bad(foreign, "no key of its fleet");
    bad(
        FleetGrant { fleet: FleetKey::draw().unwrap().id(), ..good.clone() },
        "no key of its fleet",
    );
    let mut altered = good.clone();
    altered.sealed[0] ^= 1;
    bad(altered, "no key of its fleet");
    bad(FleetGrant { encapsulated: [4; 65], ..good.clone() }, "no key of its fleet");
    check(&signed_by(2, &good), "not the verifier's");
    check(b"", "parse");
    let mut bytes = signed_by(1, &good);
    for at in 0..bytes.len() {
        bytes[at] ^= 1;
        assert_eq!(refused(vault.join(&bytes)), "bad-permit", "byte {at}");
        bytes[at] ^= 1;
    }
    // Leave to reseal is none to join.
    let from = vault.info().unwrap().sealed_to.unwrap();
    let (serial, expiry) = (good.serial, good.expiry);
    let reseal = ResealPermit { version: 1, vault: good.vault, from, to: vec![], serial, expiry };
    check(&reseal.signed(|bytes| Verifier::new(1).sign(bytes)), "not the verifier's");
    let folder = tempfile::tempdir().unwrap();
    let unnamed = software(folder.path()).unwrap();
    assert_eq!(refused(join(&unnamed, &key)), "no-verifier");

    vault.join(&bytes).unwrap();
    // Again changes nothing, with this grant or another; and a host stays where it is.
    let (me, to) = (closed(1), image(1));
    let blob = vault.seal(&me, &to, true, b"x").unwrap();
    vault.join(&bytes).unwrap();
    join(&vault, &key).unwrap();
    assert_eq!(refused(join(&vault, &FleetKey::draw().unwrap())), "other-fleet");
    assert_eq!(fleet(&vault), Some(key.id().to_hex()));
    assert_eq!(&**vault.unseal(&me, &blob).unwrap().data, b"x");
}

/// A host that is cut off while it joins is in the fleet or in none, and can be told again.
#[test]
fn joining_may_be_cut_off_anywhere() {
    let key = FleetKey::draw().unwrap();
    let mut cuts = 0;
    loop {
        let folder = tempfile::tempdir().unwrap();
        let point = Some(Verifier::new(1).point());
        let (steps, left) = fuse(i64::MAX);
        let open = |steps| {
            Vault::open_in_steps(folder.path(), Root::DangerouslySoftware, point, steps).unwrap()
        };
        let vault = open(steps);
        left.store(cuts, std::sync::atomic::Ordering::SeqCst);
        let told = join(&vault, &key).is_ok();
        drop(vault);
        let vault = open(fuse(i64::MAX).0);
        let joined = fleet(&vault);
        assert!(joined.is_none() || joined == Some(key.id().to_hex()), "after {cuts} steps");
        assert!(joined.is_some() || !told, "after {cuts} steps");
        join(&vault, &key).unwrap();
        assert_eq!(fleet(&vault), Some(key.id().to_hex()), "after {cuts} steps");
        if told {
            return assert!(cuts > 2, "only {cuts} steps");
        }
        cuts += 1;
    }
}

#[test]
fn a_key_file_is_read_as_it_is_written() {
    let key = FleetKey::draw().unwrap();
    let file = key.encode();
    assert_eq!(file.len(), FLEET_KEY_FILE);
    assert!(FleetKey::decode(&file).is_some_and(|read| read.id() == key.id()));
    assert_ne!(FleetKey::draw().unwrap().id(), key.id());
    for at in 0..file.len() {
        let mut altered = file.clone();
        altered[at] ^= 1;
        assert!(FleetKey::decode(&altered).is_none(), "byte {at}");
    }
    assert!(FleetKey::decode(&file[1..]).is_none() && FleetKey::decode(&[]).is_none());
    assert!(FleetKey::decode(&[&file[..], &[0]].concat()).is_none());
    assert_eq!(key.wrap(&InstanceId([0; 16]), &[4; 65]).unwrap_err().code(), "bad-key");
    // The id commits to the key, by a fixed construction.
    let secret = &file[FLEET_KEY_FILE - 32..];
    let Digest(digest) = Digest::of(&[b"coffer/fleet-id/v1\0", secret]);
    assert_eq!(key.id().0, digest[..16]);
}
