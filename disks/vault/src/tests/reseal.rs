//! A host that is upgraded keeps its vault by its verifier's leave, and not otherwise.

use std::sync::atomic::Ordering;

use coffer_exchange::permit::{ResealPermit, VolumePermit};
use coffer_formats::evidence::PcrValue;
use coffer_formats::{Digest, InstanceId};

use super::support::*;
use crate::*;

/// The registers of a [`Site`] as they are in one build, or in the other.
fn values(upgraded: bool) -> Vec<PcrValue> {
    let eleven = match upgraded {
        true => Digest::ZERO.extend(&Digest([7; 32])),
        false => Digest::ZERO,
    };
    let values = [(0, Digest::ZERO), (7, Digest::ZERO), (11, eleven)];
    values.map(|(index, digest)| PcrValue { index, digest }).to_vec()
}

/// Leave to go from where the vault is to one of the builds.
fn leave(vault: &Vault, upgraded: bool, serial: u8) -> ResealPermit {
    ResealPermit {
        version: 1,
        vault: InstanceId(vault.id()),
        from: vault.info().unwrap().sealed_to.unwrap(),
        to: values(upgraded),
        serial: InstanceId([serial; 16]),
        expiry: u64::MAX,
    }
}

fn signed_by(verifier: u8, permit: &ResealPermit) -> Vec<u8> {
    permit.signed(|bytes| Verifier::new(verifier).sign(bytes))
}

#[test]
fn an_upgraded_host_opens_its_vault_by_its_verifiers_leave_only() {
    let site = Site::new();
    let vault = site.open().unwrap();
    let (id, at_first) = (vault.id(), vault.info().unwrap());
    assert_eq!((at_first.registers.as_slice(), at_first.resealed_to), (&[0, 7, 11][..], None));
    let blob = vault.seal(&closed(1), &image(1), false, b"before").unwrap();
    vault.counter(&closed(1), &image(1), "n", true).unwrap();
    drop(vault);
    site.boot(true);
    assert_eq!(refused(site.open()), "seal-pcrs-moved");

    site.boot(false);
    let vault = site.open().unwrap();
    let permit = signed_by(1, &leave(&vault, true, 1));
    vault.reseal(&permit).unwrap();
    let resealed = vault.info().unwrap();
    assert_eq!(resealed.sealed_to, at_first.sealed_to);
    assert!(resealed.resealed_to.is_some() && resealed.resealed_to != at_first.sealed_to);
    // Asked again, it is done already.
    vault.reseal(&permit).unwrap();
    assert_eq!(vault.info().unwrap(), resealed);
    drop(vault);
    // As before it still boots; and as it was resealed for.
    assert_eq!(site.open().unwrap().id(), id);
    site.boot(true);
    for _ in 0..2 {
        let vault = site.open().unwrap();
        assert_eq!(vault.id(), id);
        assert_eq!(&**vault.unseal(&closed(1), &blob).unwrap().data, b"before");
        assert_eq!(vault.counter(&closed(1), &image(1), "n", false).unwrap(), 1);
        let info = vault.info().unwrap();
        assert_eq!((info.sealed_to, info.resealed_to), (resealed.resealed_to, None));
    }
    // What it is now is what it was resealed for; the way back is to be permitted too.
    site.boot(false);
    assert_eq!(refused(site.open()), "seal-pcrs-moved");
}

#[test]
fn leave_is_the_verifiers_and_for_this_vault_and_from_where_it_is() {
    let (site, other) = (Site::new(), Site::new());
    let vault = site.open().unwrap();
    let good = leave(&vault, true, 1);
    let check = |permit: &[u8], code: &str, expected: &str| {
        let error = vault.reseal(permit).unwrap_err();
        let said = (error.code(), error.to_string().contains(expected));
        assert_eq!(said, (code, true), "{error}");
        assert_eq!(vault.info().unwrap().resealed_to, None, "{error}");
    };
    let bad = |permit: ResealPermit, why: &str| check(&signed_by(1, &permit), "bad-permit", why);
    let third = Site::new();
    let elsewhere = InstanceId(other.open().unwrap().id());
    bad(ResealPermit { vault: elsewhere, ..good.clone() }, "another vault");
    bad(ResealPermit { from: Digest([1; 32]), ..good.clone() }, "not sealed to");
    bad(ResealPermit { expiry: 1, ..good.clone() }, "expired");
    bad(ResealPermit { version: 2, ..good.clone() }, "parse");
    let all = &good.to;
    let twice = [&all[..1], all].concat();
    let other_register = [&all[..2], &[PcrValue { index: 12, ..all[2].clone() }]].concat();
    let reversed = all.iter().rev().cloned().collect();
    for to in [vec![], all[..2].to_vec(), all[1..].to_vec(), twice, other_register, reversed] {
        bad(ResealPermit { to, ..good.clone() }, "other registers");
    }
    check(&signed_by(2, &good), "bad-permit", "not the verifier's");
    check(b"", "bad-permit", "parse");
    let mut altered = signed_by(1, &good);
    for at in 0..altered.len() {
        altered[at] ^= 1;
        assert_eq!(refused(vault.reseal(&altered)), "bad-permit", "byte {at}");
        altered[at] ^= 1;
    }
    // One for a volume, with the same key, is none; nor is this one signed as one for a volume.
    let point = Verifier::new(1).point();
    let volume = VolumePermit {
        version: 1,
        volume: good.vault,
        sender: point,
        recipient: point,
        serial: good.serial,
        expiry: good.expiry,
    };
    check(&volume.signed(|bytes| Verifier::new(1).sign(bytes)), "bad-permit", "not the verifier's");
    let mislabelled = good.signed(|bytes| {
        let payload = bytes.strip_prefix(coffer_exchange::permit::RESEAL_LABEL).unwrap();
        Verifier::new(1).sign(&SignedPermit::signed_bytes(payload))
    });
    check(&mislabelled, "bad-permit", "not the verifier's");
    // Nobody can permit it where the configuration names no verifier, and nothing where there is no TPM.
    let unnamed = Vault::open(third.folder.path(), third.root()).unwrap();
    let own = leave(&unnamed, true, 1);
    assert_eq!(refused(unnamed.reseal(&signed_by(1, &own))), "no-verifier");
    drop(unnamed);
    third.open().unwrap().reseal(&signed_by(1, &own)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let software =
        Vault::open_under(folder.path(), Root::DangerouslySoftware, Some(point)).unwrap();
    let vault_id = InstanceId(software.id());
    let for_software = signed_by(1, &ResealPermit { vault: vault_id, ..good.clone() });
    assert_eq!(refused(software.reseal(&for_software)), "vault-no-tpm");
    // What was refused did not use it up.
    vault.reseal(&signed_by(1, &good)).unwrap();
}

#[test]
fn leave_of_an_earlier_upgrade_leads_nowhere() {
    let site = Site::new();
    let vault = site.open().unwrap();
    let there = leave(&vault, true, 1);
    let unused = signed_by(1, &ResealPermit { serial: InstanceId([9; 16]), ..there.clone() });
    let there = signed_by(1, &there);
    vault.reseal(&there).unwrap();
    drop(vault);
    site.boot(true);
    let vault = site.open().unwrap();
    // At the new host the old one's permits say nothing, used or not.
    assert_eq!(refused(vault.reseal(&there)), "permit-used");
    assert_eq!(refused(vault.reseal(&unused)), "bad-permit");
    vault.reseal(&signed_by(1, &leave(&vault, false, 2))).unwrap();
    drop(vault);
    site.boot(false);
    // Back by leave: what was used stays used.
    let vault = site.open().unwrap();
    assert_eq!(refused(vault.reseal(&there)), "permit-used");
    assert_eq!(vault.info().unwrap().resealed_to, None);
    vault.reseal(&signed_by(1, &leave(&vault, true, 3))).unwrap();
    assert!(vault.info().unwrap().resealed_to.is_some());
}

/// Every step of resealing is the last one once. The host as it was opens the vault always; as it is to be once it was
/// told so, and else either it does or the vault says that it was not resealed.
#[test]
fn resealing_may_be_cut_off_anywhere() {
    let site = Site::new();
    let id = site.open().unwrap().id();
    let (steps, left) = fuse(i64::MAX);
    let mut outcomes = [0, 0];
    for cuts in 0.. {
        left.store(i64::MAX, Ordering::SeqCst);
        let vault = site.open_with(steps.clone()).unwrap();
        let permit = signed_by(1, &leave(&vault, true, cuts));
        left.store(i64::from(cuts), Ordering::SeqCst);
        let told = vault.reseal(&permit).is_ok();
        drop(vault);
        site.boot(false);
        assert_eq!(site.open().unwrap().id(), id, "after {cuts} steps");
        let resealed = site.open().unwrap().info().unwrap().resealed_to.is_some();
        site.boot(true);
        match site.open() {
            Ok(vault) => {
                assert!(resealed, "after {cuts} steps");
                assert_eq!(vault.id(), id, "after {cuts} steps");
                vault.reseal(&signed_by(1, &leave(&vault, false, 100 + cuts))).unwrap();
            }
            Err(error) => {
                assert_eq!(error.code(), "seal-pcrs-moved", "after {cuts} steps");
                assert!(!told && !resealed, "after {cuts} steps");
            }
        }
        outcomes[usize::from(resealed)] += 1;
        site.boot(false);
        if told {
            assert!(outcomes[0] > 3 && outcomes[1] > 0, "{outcomes:?}");
            return;
        }
    }
}

/// So is the first boot of the upgraded host: whatever was cut off, the next one has the vault.
#[test]
fn the_first_boot_after_resealing_may_be_cut_off_anywhere() {
    let site = Site::new();
    let vault = site.open().unwrap();
    let id = vault.id();
    vault.reseal(&signed_by(1, &leave(&vault, true, 1))).unwrap();
    drop(vault);
    site.boot(true);
    let files = ["vault.key", "vault.next"].map(|name| site.folder.path().join(name));
    let [key, next] = files.each_ref().map(|file| std::fs::read(file).unwrap());
    for cuts in 0.. {
        // As at the first boot, whatever the last one came to.
        files
            .iter()
            .zip([&key, &next])
            .for_each(|(file, bytes)| std::fs::write(file, bytes).unwrap());
        let whole = site.open_with(fuse(cuts).0).is_ok();
        let vault = site.open().unwrap_or_else(|error| panic!("after {cuts} steps: {error}"));
        assert_eq!(
            (vault.id(), vault.info().unwrap().resealed_to),
            (id, None),
            "after {cuts} steps"
        );
        if whole {
            assert!(cuts > 4);
            return;
        }
    }
}

/// As the management API has it: bytes in, the vault in JSON out, and the same when asked again.
#[test]
fn who_manages_the_host_only_carries_the_permit() {
    let site = Site::new();
    let vault = site.open().unwrap();
    let ask = |body: &[u8]| {
        let nothing = |_: &str| unreachable!("no data is opened");
        manage(Ok(vault.clone()), Verb::Reseal, "", body, nothing)
    };
    assert_eq!(ask(b"").unwrap_err().to_string(), "the permit does not parse");
    assert_eq!(ask(&[b'x'; 70_000]).unwrap_err().to_string(), "the permit does not parse");
    let permit = signed_by(1, &leave(&vault, true, 1));
    let (status, said) = ask(&permit).unwrap();
    assert_eq!(status, 200);
    assert_eq!(serde_json::from_slice::<VaultInfo>(&said).unwrap(), vault.info().unwrap());
    assert_eq!(ask(&permit).unwrap(), (200, said));
}
