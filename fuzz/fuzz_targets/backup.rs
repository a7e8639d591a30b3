//! Backups (SPEC 11.17.2), with edits, cut or in another order, and streams that a hostile sender writes by the book: a disk is
//! filled as the sender's was, or the backup is refused; no chunk leaves the disk.
#![no_main]

use std::sync::LazyLock;

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use coffer_disk::{BLOCK, BlockDevice, DiskError};
use coffer_exchange::permit::VolumePermit;
use coffer_formats::InstanceId;
use coffer_fuzz::{edited, one_in};
use coffer_vault::fuzzing::{backup_head, fill, read_backup_head, vault};
use coffer_vault::{Permit, Vault};
use libfuzzer_sys::fuzz_target;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};

const STREAM: [u8; 32] = [6; 32];
const BLOCKS: u64 = 70;
/// Most chunks of a stream that a hostile sender writes.
const CHUNKS_MAX: usize = 6;

struct Scene {
    there: Vault,
    head: Vec<u8>,
    /// Chunks as the sender wrote them.
    chunks: Vec<Vec<u8>>,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let known = |key: u8| {
        let folder = std::env::temp_dir().join(format!("coffer-fuzz-{key}-{}", std::process::id()));
        let vault = vault(&folder, [key; 32], [key; 16]).expect("a vault in memory");
        std::fs::remove_dir_all(&folder).expect("the folder is ours");
        vault
    };
    let (here, there) = (known(1), known(2));
    let signer = SigningKey::from_slice(&[3; 32]).expect("a scalar");
    let point = signer.verifying_key().to_sec1_point(false);
    let verifier = point.as_bytes().try_into().expect("an uncompressed point");
    let permit = VolumePermit {
        version: 1,
        volume: InstanceId([1; 16]),
        sender: here.transport_key(),
        recipient: there.transport_key(),
        serial: InstanceId([2; 16]),
        expiry: u64::MAX,
    };
    let signed = permit.signed(|bytes| {
        let signature: Signature = signer.sign(bytes);
        signature.to_bytes().to_vec()
    });
    let VolumePermit { version, volume, sender, recipient, serial, expiry } = permit;
    let permit = Permit { version, volume, sender, recipient, serial, expiry };
    let bytes = BLOCKS * BLOCK as u64;
    let head = backup_head(&here, &permit, &signed, STREAM, bytes, verifier).expect("a head");
    let chunks = [chunk(0, 0, &[1; BLOCK], false), chunk(1, 64, &[2; 2 * BLOCK], false)];
    let chunks = chunks.into_iter().chain([chunk(2, BLOCKS, &[], true)]).collect();
    Scene { there, head, chunks }
});

/// A chunk by the book.
fn chunk(number: u64, first: u64, data: &[u8], last: bool) -> Vec<u8> {
    let nonce: [u8; 12] = [&number.to_le_bytes()[..], &[0; 4]].concat().try_into().unwrap();
    let aad = [&number.to_le_bytes()[..], &[u8::from(last)]].concat();
    let plain = [&first.to_le_bytes()[..], data].concat();
    let sealed = Aes256Gcm::new((&STREAM).into())
        .encrypt(&nonce.into(), Payload { msg: &plain, aad: &aad })
        .expect("it is short");
    [&(sealed.len() as u32).to_le_bytes()[..], &sealed].concat()
}

/// A disk that keeps a mark for each block, if all bytes of it are the same.
#[derive(Debug, PartialEq, Eq)]
struct Marks(Vec<u8>);

impl BlockDevice for Marks {
    fn blocks(&self) -> u64 {
        BLOCKS
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), DiskError> {
        unreachable!("a restoring reads nothing")
    }

    fn write(&mut self, first: u64, data: &[u8]) -> Result<(), DiskError> {
        if !data.len().is_multiple_of(BLOCK) {
            return Err(DiskError::Unaligned(data.len()));
        }
        let count = (data.len() / BLOCK) as u64;
        if first.checked_add(count).is_none_or(|end| end > BLOCKS) {
            return Err(DiskError::OutOfRange { first, count });
        }
        for (at, block) in (first as usize..).zip(data.chunks(BLOCK)) {
            let uniform = block.iter().all(|byte| *byte == block[0]);
            self.0[at] = if uniform { block[0] } else { 0xff };
        }
        Ok(())
    }

    fn zero(&mut self, _: u64, _: u64) -> Result<(), DiskError> {
        unreachable!("it begins as zeros")
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        Ok(())
    }
}

/// The disk that the chunks fill; the code of the refusal.
fn filled(mut chunks: &[u8]) -> Result<Marks, &'static str> {
    let mut disk = Marks(vec![0; BLOCKS as usize]);
    fill(&STREAM, &mut chunks, &mut disk).map(|()| disk).map_err(|error| error.code())
}

/// What the sender's disk held.
fn held() -> Marks {
    let mut marks = vec![0; BLOCKS as usize];
    (marks[0], marks[64], marks[65]) = (1, 2, 2);
    Marks(marks)
}

fuzz_target!(init: {
    assert_eq!(filled(&SCENE.chunks.concat()), Ok(held()));
    let (_, stream, bytes) =
        read_backup_head(&SCENE.there, &mut &SCENE.head[..]).expect("the original head");
    assert_eq!((stream, bytes), (STREAM, BLOCKS * BLOCK as u64));
}, |data: &[u8]| {
    let Some((what, rest)) = data.split_first() else { return };
    match what % 4 {
        0 => check_head(data, rest),
        1 => check_order(rest),
        2 => check_chunks(rest),
        _ => check_author(rest),
    }
});

/// Keys are agreed for one in 8: that takes the time of a thousand others.
fn check_head(data: &[u8], edits: &[u8]) {
    let head = edited(&SCENE.head, edits);
    let frame = |head: &[u8]| head.get(..16).map(<[u8]>::to_vec);
    if frame(&head) == frame(&SCENE.head) && !one_in(8, data) {
        return;
    }
    let mut input = &head[..];
    if read_backup_head(&SCENE.there, &mut input).is_ok() {
        assert!(head.starts_with(&SCENE.head), "a forged head");
        assert_eq!(input.len(), head.len() - SCENE.head.len());
    }
}

/// The sender's own chunks, once each in order, or otherwise.
fn check_order(data: &[u8]) {
    let chosen: Vec<usize> =
        data.iter().take(8).map(|byte| usize::from(byte % SCENE.chunks.len() as u8)).collect();
    let chunks: Vec<u8> = chosen.iter().flat_map(|at| SCENE.chunks[*at].clone()).collect();
    let whole = chosen == [0, 1, 2];
    assert_eq!(filled(&chunks), whole.then(held).ok_or("backup-corrupt"));
}

fn check_chunks(edits: &[u8]) {
    let original = SCENE.chunks.concat();
    let chunks = edited(&original, edits);
    assert_eq!(filled(&chunks), (chunks == original).then(held).ok_or("backup-corrupt"));
}

/// Chunks anywhere, of any size, from one who has the key: six bytes each.
fn check_author(data: &[u8]) {
    let (mut stream, mut expected) = (Vec::new(), Err("backup-corrupt"));
    let (mut marks, mut over) = (vec![0; BLOCKS as usize], false);
    for (number, step) in (0..).zip(data.chunks_exact(6).take(CHUNKS_MAX)) {
        let [what, a, b, length, more, mark] = *step else { return };
        let first = match what % 4 {
            0 => u64::from(a % 72),
            1 => BLOCKS - u64::from(a % 3),
            2 => u64::MAX - u64::from(a),
            _ => u64::from(a) << (b % 64),
        };
        let length = match length % 4 {
            0 => 0,
            1 => BLOCK,
            2 => BLOCK * usize::from(more % 5),
            _ => usize::from(more),
        };
        // Who has the key says that a chunk is the last as he likes.
        let last = if what & 0x40 == 0 { length == 0 } else { what & 0x80 == 0 };
        stream.extend(chunk(number, first, &vec![mark; length], last));
        if over {
            continue;
        }
        let count = (length / BLOCK) as u64;
        let inside = first.checked_add(count).is_some_and(|end| end <= BLOCKS);
        if last != (length == 0) {
            over = true;
        } else if last {
            // Nothing comes after it.
            over = true;
            let whole = data.chunks_exact(6).take(CHUNKS_MAX).len() as u64 == number + 1;
            expected = (first == BLOCKS && whole).then(|| marks.clone()).ok_or("backup-corrupt");
        } else if length % BLOCK != 0 || !inside {
            over = true;
        } else {
            marks[first as usize..(first + count) as usize].fill(mark);
        }
    }
    assert_eq!(filled(&stream).map(|disk| disk.0), expected);
}
