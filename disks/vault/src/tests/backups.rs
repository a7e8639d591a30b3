//! Taking a volume to another host, by its verifier's leave and not otherwise.

use coffer_disk::BLOCK;
use coffer_formats::{InstanceId, cbor};

use super::support::{Verifier, *};
use crate::*;

impl Verifier {
    fn permits(&self, permit: &Permit) -> Vec<u8> {
        let payload = cbor::encode(permit);
        let signature = self.sign(&SignedPermit::signed_bytes(&payload)).try_into().unwrap();
        SignedPermit { payload, signature }.encode()
    }
}

/// Two hosts, and a volume on the first.
struct Scene {
    _folders: [tempfile::TempDir; 2],
    here: Vault,
    there: Vault,
    verifier: Verifier,
}

impl Scene {
    fn new() -> Self {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [here, there] = [0, 1].map(|n: usize| software(folders[n].path()).unwrap());
        let verifier = Verifier::new(1);
        let key = Some(verifier.point());
        let bytes = 300 * BLOCK as u64;
        let kind = NewKind::Encrypted { bytes };
        let volume = NewVolume { verifier_key: key, ..new("v", kind, by(7, 2)) };
        here.create_volume(&volume).unwrap();
        let mut attached =
            here.attach_verified("v", &signed(1, 7, 3), Some(&verifier.point())).unwrap();
        let mut disk = disk(&mut attached).unwrap();
        for block in [0, 63, 64, 200, 299] {
            disk.write(block, &[block as u8 + 1; BLOCK]).unwrap();
        }
        disk.flush().unwrap();
        drop((disk, attached));
        Self { _folders: folders, here, there, verifier }
    }

    fn permit(&self) -> Permit {
        Permit {
            version: 1,
            volume: self.here.volume("v").unwrap().id,
            sender: self.here.transport_key(),
            recipient: self.there.transport_key(),
            serial: InstanceId([9; 16]),
            expiry: u64::MAX,
        }
    }

    fn backup(&self, permit: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut out = Vec::new();
        self.here.backup("v", permit, &mut out).map(|()| out)
    }
}

#[test]
fn a_volume_goes_where_its_verifier_says() {
    let scene = Scene::new();
    let backup = scene.backup(&scene.verifier.permits(&scene.permit())).unwrap();
    assert!(backup.len() < 300 * BLOCK, "chunks of zeros are left out");
    assert!(!backup.windows(64).any(|part| part == [1; 64] || part == [201; 64]));
    let restored = scene.there.restore("w", &mut &backup[..]).unwrap();
    let original = scene.here.volume("v").unwrap();
    assert_eq!((restored.owner, restored.svn_floor), (original.owner, 3));
    assert_ne!(restored.id, original.id);
    let key = scene.verifier.point();
    let mut attached = scene.there.attach_verified("w", &signed(1, 7, 3), Some(&key)).unwrap();
    let mut disk = disk(&mut attached).unwrap();
    for block in 0..300 {
        let mut data = [0; BLOCK];
        disk.read(block, &mut data).unwrap();
        let expected = if [0, 63, 64, 200, 299].contains(&block) { block as u8 + 1 } else { 0 };
        assert_eq!(data, [expected; BLOCK], "block {block}");
    }
    drop((disk, attached));
    // What the floor was it is; whose it was it is; a permit is good once.
    assert_eq!(
        refused(scene.there.attach_verified("w", &signed(1, 7, 2), Some(&key))),
        "svn-too-low"
    );
    assert_eq!(refused(scene.there.restore("x", &mut &backup[..])), "permit-used");
    scene.there.remove_volume("w").unwrap();
    assert_eq!(refused(scene.there.restore("w", &mut &backup[..])), "permit-used");
    assert_eq!(scene.there.volumes().unwrap(), []);
}

/// Refused before the first byte; and not once what was lost is written.
#[test]
fn a_volume_of_which_something_was_given_up_is_not_backed_up() {
    use std::os::unix::fs::FileExt as _;
    let scene = Scene::new();
    let permit = scene.verifier.permits(&scene.permit());
    let whole = scene.backup(&permit).unwrap();
    let file = format!("volumes/{}.disk", scene.here.volume("v").unwrap().id);
    let file = std::fs::File::options().write(true).open(scene._folders[0].path().join(file));
    // The first that was written lies behind the superblocks.
    file.unwrap().write_all_at(&[0; BLOCK], 2 * BLOCK as u64).unwrap();
    let report = scene.here.repair("v").unwrap();
    assert_eq!((report.damaged, report.lost, report.first_lost), (1, 1, Some(0)));
    let mut out = Vec::new();
    assert_eq!(refused(scene.here.backup("v", &permit, &mut out)), "lost");
    assert!(out.is_empty());
    let point = scene.verifier.point();
    let mut attached = scene.here.attach_verified("v", &signed(1, 7, 3), Some(&point)).unwrap();
    let mut disk = disk(&mut attached).unwrap();
    disk.write(0, &[1; BLOCK]).unwrap();
    disk.flush().unwrap();
    drop((disk, attached));
    assert_eq!(scene.backup(&permit).unwrap().len(), whole.len());
}

#[test]
fn a_permit_is_taken_as_a_verifier_writes_it() {
    let scene = Scene::new();
    let Permit { version, volume, sender, recipient, serial, expiry } = scene.permit();
    let written = coffer_exchange::permit::VolumePermit {
        version,
        volume,
        sender,
        recipient,
        serial,
        expiry,
    };
    let permit = written.signed(|bytes| scene.verifier.sign(bytes));
    assert_eq!(permit, scene.verifier.permits(&scene.permit()));
    let backup = scene.backup(&permit).unwrap();
    scene.there.restore("w", &mut &backup[..]).unwrap();
}

#[test]
fn a_volume_with_a_verifier_goes_only_to_its_images() {
    let scene = Scene::new();
    let (me, key) = (signed(1, 7, 3), scene.verifier.point());
    assert_eq!(refused(scene.here.attach("v", &me)), "other-verifier");
    let other = Verifier::new(2).point();
    assert_eq!(refused(scene.here.attach_verified("v", &me, Some(&other))), "other-verifier");
    scene.here.attach_verified("v", &me, Some(&key)).unwrap();
    // One without goes to any.
    scene.here.create_volume(&encrypted("plain", image(1))).unwrap();
    scene.here.attach_verified("plain", &closed(1), Some(&key)).unwrap();
    scene.here.attach("plain", &closed(1)).unwrap();
}

#[test]
fn only_the_verifiers_permit_for_this_volume_and_these_hosts_counts() {
    let scene = Scene::new();
    let good = scene.permit();
    let check = |permit: &Permit, expected: &str| {
        let error = scene.backup(&scene.verifier.permits(permit)).unwrap_err();
        assert_eq!(
            (error.code(), error.to_string().contains(expected)),
            ("bad-permit", true),
            "{error}"
        );
    };
    check(&Permit { volume: InstanceId([1; 16]), ..good.clone() }, "another volume");
    check(&Permit { sender: good.recipient, ..good.clone() }, "another host");
    check(&Permit { expiry: 1, ..good.clone() }, "expired");
    check(&Permit { version: 2, ..good.clone() }, "parse");
    check(&Permit { recipient: [4; 65], ..good.clone() }, "no transport key");
    assert_eq!(refused(scene.backup(&Verifier::new(2).permits(&good))), "bad-permit");
    assert_eq!(refused(scene.backup(b"")), "bad-permit");
    let mut altered = scene.verifier.permits(&good);
    let end = altered.len() - 1;
    altered[end] ^= 1;
    assert_eq!(refused(scene.backup(&altered)), "bad-permit");
    scene.backup(&scene.verifier.permits(&good)).unwrap();
    // Without a verifier nobody permits anything.
    scene.here.create_volume(&encrypted("plain", image(1))).unwrap();
    let permit = scene.verifier.permits(&good);
    assert_eq!(refused(scene.here.backup("plain", &permit, &mut Vec::new())), "no-permit");
    scene.here.create_volume(&new("t", NewKind::Vtpm, image(1))).unwrap();
    assert_eq!(refused(scene.here.backup("t", &permit, &mut Vec::new())), "wrong-kind");
}

#[test]
fn a_backup_is_whole_and_the_senders_and_for_its_recipient() {
    let scene = Scene::new();
    let backup = scene.backup(&scene.verifier.permits(&scene.permit())).unwrap();
    assert_eq!(refused(scene.here.restore("w", &mut &backup[..])), "backup-foreign");
    let mut places: Vec<usize> =
        (0..700).step_by(3).chain((700..backup.len()).step_by(99_991)).collect();
    places.extend(backup.len() - 28..backup.len());
    for at in places {
        let mut altered = backup.clone();
        altered[at] ^= 1;
        let code = refused(scene.there.restore("w", &mut &altered[..]));
        let codes = ["backup-corrupt", "bad-permit", "backup-foreign"];
        assert!(codes.contains(&code), "byte {at}: {code}");
    }
    for length in [0, 8, 12, 100, 500, backup.len() / 2, backup.len() - 28, backup.len() - 1] {
        let mut cut = &backup[..length];
        assert_eq!(refused(scene.there.restore("w", &mut cut)), "backup-corrupt", "{length}");
    }
    let longer = [&backup[..], &[0]].concat();
    assert_eq!(refused(scene.there.restore("w", &mut &longer[..])), "backup-corrupt");
    // A permit of the verifier, and a third party that writes the backup: it has not the sender's key.
    let folder = tempfile::tempdir().unwrap();
    let third = software(folder.path()).unwrap();
    let own = Verifier::new(2);
    let volume = NewVolume { verifier_key: Some(own.point()), ..encrypted("v", by(7, 2)) };
    let id = third.create_volume(&volume).unwrap().id;
    let sender = third.transport_key();
    let mut forged = Vec::new();
    let serial = InstanceId([8; 16]);
    let permit = own.permits(&Permit { volume: id, sender, serial, ..scene.permit() });
    third.backup("v", &permit, &mut forged).unwrap();
    let genuine = scene.verifier.permits(&scene.permit());
    let rest = 16 + permit.len();
    let swapped = [&backup[..12], &(genuine.len() as u32).to_le_bytes(), &genuine, &forged[rest..]];
    assert_eq!(refused(scene.there.restore("w", &mut &swapped.concat()[..])), "backup-corrupt");
    // Nothing of all that stayed, and the permit is still good.
    assert_eq!(scene.there.volumes().unwrap(), []);
    // With a verifier of his own he gets a volume that the images of the true one do not take.
    scene.there.restore("forged", &mut &forged[..]).unwrap();
    let (me, key) = (signed(1, 7, 3), scene.verifier.point());
    assert_eq!(refused(scene.there.attach_verified("forged", &me, Some(&key))), "other-verifier");
    scene.there.restore("w", &mut &backup[..]).unwrap();
}
