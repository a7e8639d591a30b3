//! Data that guests sealed (SPEC 11.16), with edits, before guests it may be for: it opens as it was sealed, to whom its policy
//! admits, or is refused by the code of the first rule it breaks. Blobs are written by the book, heads of any form among them.
#![no_main]

use std::sync::LazyLock;

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use coffer_formats::Digest;
use coffer_formats::launch::BoxKind;
use coffer_fuzz::edited;
use coffer_fuzz::guests::{admitted, canonical, guest, owner};
use coffer_fuzz::kdf::kdfa;
use coffer_vault::{Identity, Owner, Vault};
use hkdf::Hkdf;
use libfuzzer_sys::fuzz_target;
use sha2::Sha256;

const KEY: [u8; 32] = [7; 32];
const VAULT: [u8; 16] = [5; 16];
const HEAD: usize = 176;
const DATA: &[u8] = b"what a guest keeps";

static HERE: LazyLock<Vault> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("coffer-fuzz-{}", std::process::id()));
    let vault = coffer_vault::fuzzing::vault(&folder, KEY, VAULT).expect("a vault in memory");
    // Of a folder it needs no more than that it could be locked.
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    vault
});
static ROOT: LazyLock<[u8; 32]> = LazyLock::new(|| kdfa(&KEY, "coffer/vault-root/v1", &[], &[]));

/// What a head says, by the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    /// Whether the id is a fleet's.
    fleet: bool,
    id: [u8; 16],
    target: Owner,
    sealer: Identity,
}

struct Original {
    said: Said,
    blob: Vec<u8>,
}

/// To an image, to a signer from a version on, to open boxes; by guests of both kinds.
static ORIGINALS: LazyLock<Vec<Original>> = LazyLock::new(|| {
    let cases = [
        ([0, 1, 0], [0, 1, 0xff, 0]),
        ([1, 1, 1], [0, 2, 1, 3]),
        ([1, 2, 0], [0, 2, 2, 1]),
        ([2, 0, 0], [1, 1, 1, 2]),
    ];
    let original = |(target, sealer)| {
        let said = Said { fleet: false, id: VAULT, target: owner(target), sealer: guest(sealer) };
        Original { said, blob: sealed(&head(&said), DATA) }
    };
    cases.into_iter().map(original).collect()
});

fn head(said: &Said) -> [u8; HEAD] {
    let Identity { box_kind, image_id, signer, svn } = said.sealer;
    let lowest = if let Owner::Signer { svn, .. } = said.target { svn } else { 0 };
    let parts: [&[u8]; 12] = [
        b"COFFERSB",
        &[1, 0, 0, 0, u8::from(said.fleet), 0, 0, 0],
        &said.id,
        &canonical(&said.target),
        &lowest.to_le_bytes(),
        &[u8::from(box_kind == BoxKind::Open)],
        &image_id.0,
        &[u8::from(signer.is_some())],
        &signer.map_or([0; 32], |signer| signer.0),
        &svn.to_le_bytes(),
        &[0; 5],
        &[9; 32],
    ];
    parts.concat().try_into().expect("the size of a head")
}

fn by_the_book(head: &[u8; HEAD]) -> Option<Said> {
    let field = |at: usize, length: usize| &head[at..at + length];
    let digest = |at: usize| Digest(field(at, 32).try_into().unwrap());
    let number = |at: usize| u32::from_le_bytes(field(at, 4).try_into().unwrap());
    let frame = head.starts_with(b"COFFERSB\x01\0\0\0") && *field(139, 5) == [0; 5];
    let fleet = match number(12) {
        0 => false,
        1 => true,
        _ => return None,
    };
    let target = match (head[32], number(65)) {
        (0, 0) => Owner::Image(digest(33)),
        (1, svn) => Owner::Signer { key: digest(33), svn },
        (2, 0) if digest(33) == Digest::ZERO => Owner::Open,
        _ => return None,
    };
    let signer = match head[102] {
        0 if digest(103) == Digest::ZERO => None,
        1 => Some(digest(103)),
        _ => return None,
    };
    let box_kind = match head[69] {
        0 => BoxKind::Closed,
        1 => BoxKind::Open,
        _ => return None,
    };
    let sealer = Identity { box_kind, image_id: digest(70), signer, svn: number(135) };
    frame.then(|| Said { fleet, id: field(16, 16).try_into().unwrap(), target, sealer })
}

/// A blob by the book, whatever the head: its target and salt are in the key.
fn sealed(head: &[u8; HEAD], data: &[u8]) -> Vec<u8> {
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(Some(&head[144..]), &*ROOT)
        .expand_multi_info(&[b"coffer/vault-sealed/v1\0", &head[32..65]], &mut key)
        .expect("HKDF gives 32 bytes");
    let sealed = Aes256Gcm::new((&key).into())
        .encrypt(&Default::default(), Payload { msg: data, aad: head })
        .expect("it is short");
    [&head[..], &sealed].concat()
}

fuzz_target!(init: {
    for original in &*ORIGINALS {
        let head = original.blob.first_chunk().expect("a head");
        assert_eq!(by_the_book(head), Some(original.said));
    }
    // Each opens to somebody.
    let user = guest([0, 1, 1, 3]);
    assert!(HERE.unseal(&user, &ORIGINALS[0].blob).is_ok());
    assert!(HERE.unseal(&user, &ORIGINALS[1].blob).is_ok());
    assert!(HERE.unseal(&guest([1, 1, 1, 3]), &ORIGINALS[3].blob).is_ok());
}, |data: &[u8]| {
    let Some(([what, a, b, c, d], edits)) = data.split_first_chunk::<5>() else { return };
    let original = &ORIGINALS[usize::from(what >> 6)];
    let user = guest([*a, *b, *c, *d]);
    let (blob, authentic) = if what % 2 == 0 {
        let blob = edited(&original.blob, edits);
        let authentic = blob == original.blob;
        (blob, authentic)
    } else {
        let front = edited(&original.blob[..HEAD], edits);
        let Some(head) = front.first_chunk() else { return };
        (sealed(head, DATA), true)
    };
    let expected = match blob.first_chunk().and_then(by_the_book) {
        None => Err("sealed-corrupt"),
        // The vault is in none.
        Some(said) if said.fleet => Err("no-fleet"),
        Some(said) if said.id != VAULT => Err("sealed-foreign"),
        Some(_) if !authentic => Err("sealed-corrupt"),
        Some(said) => admitted(&said.target, &user, 0).map(|_| said.sealer),
    };
    match HERE.unseal(&user, &blob) {
        Ok(unsealed) => {
            assert_eq!(Ok(unsealed.sealed_by), expected, "opened to whom it is not for");
            assert_eq!(**unsealed.data, *DATA, "other data");
        }
        Err(error) => assert_eq!(Err(error.code()), expected),
    }
});
