//! A key sealed by a real TPM: to whom it comes back, and each refusal beside what is not refused.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail loudly")]

mod swtpm;

use coffer_anchor::{PlainKey, Registers, SealError, SealedKey, TpmError};
use coffer_disk::{DangerousMemoryAnchor, Disk, MemoryStore, Shape, SystemEntropy};
use coffer_formats::Digest;
use coffer_formats::evidence::PcrValue;
use coffer_formats::tpm::hash::HashAlg;
use coffer_formats::tpm::wire::Writer;
use coffer_formats::tpm::{command, response};
use swtpm::{Host, OWNER, code};

/// More than a TPM reads at once.
const PCRS: [u8; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 11, 12];

fn key() -> PlainKey {
    PlainKey::new(&mut [0xc5; 32])
}

fn sealed(host: &Host) -> SealedKey {
    SealedKey::seal(&mut host.tpm(), &key(), &Registers::of(&PCRS).unwrap()).unwrap()
}

/// Unseals, and holds what comes back to what was sealed: a disk made with the one opens with the other.
fn unseal(host: &Host, blob: &[u8]) -> Result<(), SealError> {
    let plain = SealedKey::decode(blob)?.unseal(&mut host.tpm())?;
    let shape = Shape { blocks: 1, spare: 16 };
    let anchor = DangerousMemoryAnchor::at(1);
    let store = Keep::zeroed(shape.storage().unwrap());
    let made =
        Disk::create(store.clone(), anchor.clone(), &key().disk_key(), shape, &mut SystemEntropy);
    let id = made.unwrap().info().id;
    Disk::open(store, anchor, &plain.disk_key(), id, &mut SystemEntropy)
        .expect("another key came back");
    Ok(())
}

/// Storage that outlives the disk made in it.
#[derive(Clone)]
struct Keep(std::rc::Rc<std::cell::RefCell<MemoryStore>>);

impl Keep {
    fn zeroed(len: u64) -> Self {
        Self(std::rc::Rc::new(std::cell::RefCell::new(MemoryStore::zeroed(len))))
    }
}

impl coffer_disk::Store for Keep {
    fn len(&self) -> std::io::Result<u64> {
        self.0.borrow().len()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.borrow().read_at(offset, buffer)
    }
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.0.borrow_mut().write_at(offset, bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

#[track_caller]
fn refused<T>(result: Result<T, SealError>) -> &'static str {
    let Err(error) = result else { panic!("it was not refused") };
    error.code()
}

/// What one who can write the blob would do after altering it.
fn with_digest(mut blob: Vec<u8>) -> Vec<u8> {
    blob.truncate(blob.len() - 32);
    let digest = Digest::of(&[&blob]);
    blob.extend_from_slice(digest.as_bytes());
    blob
}

#[test]
fn comes_back_after_restart_and_power_cut() {
    let mut host = Host::fresh();
    let blob = sealed(&host).encode();
    unseal(&host, &blob).unwrap();
    host.restart();
    unseal(&host, &blob).unwrap();
    host.power_cut();
    unseal(&host, &blob).unwrap();
    assert!(host.loaded().is_empty(), "it left something in the TPM");
}

#[test]
fn is_refused_once_a_register_moved() {
    let mut host = Host::fresh();
    let blob = sealed(&host).encode();
    // Not a register it is sealed to.
    host.extend(8);
    unseal(&host, &blob).unwrap();
    for pcr in PCRS {
        host.extend(pcr);
        assert_eq!(refused(unseal(&host, &blob)), "seal-pcrs-moved", "register {pcr}");
        host.restart();
        unseal(&host, &blob).unwrap();
    }
    assert!(host.loaded().is_empty());
}

#[test]
fn is_refused_when_a_register_moves_between_policy_and_use() {
    let host = Host::fresh();
    let blob = sealed(&host).encode();
    host.interpose(Some(Box::new(|command, ask| {
        let answer = ask(command);
        if code(command) == 0x017f {
            response::ok(&ask(&command::pcr_extend(12, &[Digest([7; 32]).into()]))).unwrap();
        }
        answer
    })));
    assert_eq!(refused(unseal(&host, &blob)), "seal-pcrs-moved");
}

#[test]
fn is_not_sealed_while_registers_move() {
    let host = Host::fresh();
    host.interpose(Some(Box::new(|command, ask| {
        let answer = ask(command);
        if code(command) == 0x017e {
            response::ok(&ask(&command::pcr_extend(8, &[Digest([7; 32]).into()]))).unwrap();
        }
        answer
    })));
    let seal =
        |pcrs: &[u8]| SealedKey::seal(&mut host.tpm(), &key(), &Registers::of(pcrs).unwrap());
    assert_eq!(refused(seal(&PCRS)), "seal-pcrs-unstable");
    assert!(seal(&PCRS[..8]).is_ok(), "read at once");
    host.interpose(None);
    assert!(seal(&PCRS).is_ok());
}

#[test]
fn needs_the_sha256_bank() {
    let mut host = Host::fresh();
    let seal =
        |host: &Host| SealedKey::seal(&mut host.tpm(), &key(), &Registers::of(&PCRS).unwrap());
    assert!(seal(&host).is_ok());
    assert_eq!(
        response::pcr_allocate(&host.raw(&command::pcr_allocate(&[HashAlg::Sha384]))),
        Ok(true)
    );
    host.restart();
    assert_eq!(refused(seal(&host)), "seal-no-bank");
}

#[test]
fn is_sealed_to_values_that_are_to_come() {
    let mut host = Host::fresh();
    let now = coffer_exchange::tpm::response::pcr_read(
        &host.raw(&command::pcr_read(HashAlg::Sha256, &[11, 12])),
    )
    .unwrap();
    let next: Vec<PcrValue> = now
        .iter()
        .map(|value| match value.index {
            12 => PcrValue { index: 12, digest: value.digest.extend(&Digest([7; 32])) },
            _ => value.clone(),
        })
        .collect();
    let blob = SealedKey::seal_to(&mut host.tpm(), &key(), &next).unwrap().encode();
    assert_eq!(refused(unseal(&host, &blob)), "seal-pcrs-moved");
    host.extend(12);
    unseal(&host, &blob).unwrap();
    host.restart();
    assert_eq!(refused(unseal(&host, &blob)), "seal-pcrs-moved");

    let disorder = [next[1].clone(), next[0].clone()];
    let disordered = SealedKey::seal_to(&mut host.tpm(), &key(), &disorder);
    assert_eq!(refused(disordered), "seal-registers");
}

#[test]
fn is_refused_on_another_host() {
    let (host, other) = (Host::fresh(), Host::fresh());
    let (blob, theirs) = (sealed(&host).encode(), sealed(&other).encode());
    assert_eq!(refused(unseal(&other, &blob)), "seal-other-tpm");
    assert_eq!(refused(unseal(&host, &theirs)), "seal-other-tpm");
    // Under the other's name the TPM itself finds it (TPM_RC_INTEGRITY).
    let mut renamed = blob.clone();
    renamed[16..50].copy_from_slice(&theirs[16..50]);
    assert_eq!(refused(unseal(&other, &with_digest(renamed))), "seal-altered");
    unseal(&host, &blob).unwrap();
    unseal(&other, &theirs).unwrap();
}

#[test]
fn is_refused_after_the_owner_is_cleared() {
    let host = Host::fresh();
    let blob = sealed(&host).encode();
    unseal(&host, &blob).unwrap();
    // TPM2_Clear by lockout: a new seed.
    host.done(&command::authorised(0x0126, &[0x4000_000a], Writer::new()));
    assert_eq!(refused(unseal(&host, &blob)), "seal-other-tpm");
}

#[test]
fn any_byte_altered_is_refused() {
    let host = Host::fresh();
    let blob = sealed(&host).encode();
    let private = usize::from(u16::from_be_bytes([blob[82], blob[83]]));
    for at in 0..blob.len() {
        let mut altered = blob.clone();
        altered[at] ^= 1 << (at % 8);
        let expected = match at {
            0..8 => "seal-foreign",
            8..12 => "seal-version",
            _ => "seal-torn",
        };
        assert_eq!(refused(unseal(&host, &altered)), expected, "byte {at}");

        // On purpose, with the digest to match.
        let expected = match at {
            0..12 => expected,
            // Other registers than it was sealed to; the third byte names one that none is.
            12 | 13 => "seal-pcrs-moved",
            16..50 => "seal-other-tpm",
            _ => "seal-altered",
        };
        if at < blob.len() - 32 {
            assert_eq!(refused(unseal(&host, &with_digest(altered))), expected, "byte {at}");
        }
    }
    assert!(private > 64);
    unseal(&host, &blob).unwrap();
    assert!(host.loaded().is_empty());
}

#[test]
fn torn_foreign_and_newer_blobs_are_named() {
    let host = Host::fresh();
    let blob = sealed(&host).encode();
    assert_eq!(SealedKey::decode(&blob).unwrap().encode(), blob);
    for length in 0..blob.len() {
        let expected = if length < 8 { "seal-foreign" } else { "seal-torn" };
        assert_eq!(refused(SealedKey::decode(&blob[..length])), expected, "{length} bytes");
    }
    let longer = [&blob[..], &[0]].concat();
    assert_eq!(refused(SealedKey::decode(&longer)), "seal-torn");
    assert_eq!(
        refused(SealedKey::decode(&with_digest([&longer[..], &[0; 31]].concat()))),
        "seal-altered"
    );
    let mut newer = blob.clone();
    newer[11] = 2;
    assert!(matches!(SealedKey::decode(&newer), Err(SealError::UnsupportedVersion(2))));
    let mut no_registers = blob.clone();
    no_registers[12..15].fill(0);
    assert_eq!(refused(SealedKey::decode(&with_digest(no_registers))), "seal-altered");
}

#[test]
fn the_key_never_goes_over_the_bus_in_clear() {
    let host = Host::fresh();
    let blob = sealed(&host).encode();
    unseal(&host, &blob).unwrap();
    assert!(!host.heard(&[0xc5; 8]));
    assert!(!blob.windows(8).any(|part| part == [0xc5; 8]));
    // The same key sent as it is: TPM2_Create without a session's encryption.
    let answer = host.raw(&command::create_primary(command::Hierarchy::Owner, &srk()));
    let (parent, _) = response::create_primary(&answer).unwrap();
    let sensitive = Writer::new().tpm2b(&[]).tpm2b(&[0xc5; 32]).finish();
    let public =
        Writer::new().u16(8).u16(0x000b).u32(0x52).tpm2b(&[]).u16(0x0010).tpm2b(&[]).finish();
    let body = Writer::new().tpm2b(&sensitive).tpm2b(&public).tpm2b(&[]).u32(0);
    host.done(&command::authorised(0x0153, &[parent], body));
    assert!(host.heard(&[0xc5; 8]), "the ear is deaf");
}

/// The TCG's ECC storage root key.
fn srk() -> Vec<u8> {
    let w = Writer::new().u16(0x0023).u16(0x000b).u32(0x0003_0472).tpm2b(&[]);
    let w = w.u16(6).u16(128).u16(0x0043).u16(0x0010).u16(3).u16(0x0010);
    w.tpm2b(&[0; 32]).tpm2b(&[0; 32]).finish()
}

#[test]
fn a_bus_that_lies_is_found_out() {
    let host = Host::fresh();
    let registers = Registers::of(&PCRS).unwrap();
    // 0x17e: values to seal to. 0x153: what was sealed. 0x157: what was loaded. 0x15e: the key.
    for lie in [0x017e, 0x0153, 0x0157, 0x015e] {
        let blob = sealed(&host).encode();
        host.interpose(Some(Box::new(move |command, ask| {
            let mut answer = ask(command);
            if code(command) == lie {
                answer[40] ^= 1;
            }
            answer
        })));
        let done = match lie {
            0x017e | 0x0153 => SealedKey::seal(&mut host.tpm(), &key(), &registers).map(drop),
            _ => unseal(&host, &blob),
        };
        assert_eq!(refused(done), "tpm-forged", "{lie:#x}");
        host.interpose(None);
        unseal(&host, &blob).unwrap();
        if lie == 0x0157 {
            // The handle of an object whose loading was answered falsely is nobody's to flush.
            host.loaded().into_iter().for_each(|h| host.done(&command::flush_context(h)));
        }
    }
    assert!(host.loaded().is_empty());
}

#[test]
fn an_owner_with_an_auth_value_is_named() {
    let host = Host::fresh();
    let blob = sealed(&host).encode();
    host.done(&command::authorised(0x0129, &[OWNER], Writer::new().tpm2b(b"owner")));
    let refused = unseal(&host, &blob);
    assert!(matches!(refused, Err(SealError::Tpm(TpmError::OwnerAuth))), "{refused:?}");
}

#[test]
fn a_tpm_that_is_gone_is_named() {
    let mut host = Host::fresh();
    let blob = sealed(&host).encode();
    host.power_off();
    assert_eq!(refused(unseal(&host, &blob)), "tpm-gone");
    host.power_cut();
    unseal(&host, &blob).unwrap();
}

#[test]
fn registers_are_known_ones_each_once() {
    for bad in [&[][..], &[24], &[255], &[1, 1], &[0, 16], &[21], &[22], &[23]] {
        assert_eq!(refused(Registers::of(bad)), "seal-registers", "{bad:?}");
    }
    assert_eq!(Registers::of(&[20, 0]).unwrap().numbers(), [0, 20]);
}

#[test]
fn registers_anybody_resets_or_the_tpm_does_not_count_are_none_of_them() {
    let host = Host::fresh();
    // TPM_CAP_PCR_PROPERTIES: TPM_PT_PCR_RESET_L0, TPM_PT_PCR_NO_INCREMENT.
    for (property, expected) in [(0x02, &[16, 23][..]), (0x11, &[16, 21, 22, 23])] {
        let body = Writer::new().u32(7).u32(property).u32(1);
        let answer = host.raw(&command::plain(0x017a, body));
        let bitmap = answer[answer.len() - 3..].to_vec();
        let is_set = |pcr: &u8| bitmap[usize::from(pcr / 8)] >> (pcr % 8) & 1 == 1;
        let these: Vec<u8> = (0..24).filter(is_set).collect();
        assert_eq!(these, expected);
        these.iter().for_each(|pcr| assert_eq!(refused(Registers::of(&[*pcr])), "seal-registers"));
    }
    (0..16).chain(17..21).for_each(|pcr| assert!(Registers::of(&[pcr]).is_ok()));
}
