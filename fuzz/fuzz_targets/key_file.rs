//! Key files and the id of a vault (SPEC 11.14.3): with edits, under the MAC of who has the key or not. What is believed, its key
//! wrote, and it is what is written of it.
#![no_main]

use std::sync::LazyLock;

use coffer_formats::InstanceId;
use coffer_fuzz::edited;
use coffer_fuzz::kdf::{hmac, kdfa};
use coffer_vault::fuzzing::{ReadKeyFile, key_file, unlock, write_key_file};
use libfuzzer_sys::fuzz_target;

const KEY: [u8; 32] = [7; 32];
const HEAD: usize = 24;
const MAC: usize = 32;
const ID: &str = "00112233445566778899aabbccddeeff";

/// A key file by the book; the key in clear, or something in its place.
fn written(stage: u8, root: u8, first: u64, kept: &[u8]) -> Vec<u8> {
    let head = [stage, root, 0, 0];
    let body = [b"COFFERVK", &[1, 0, 0, 0][..], &head, &first.to_le_bytes(), kept].concat();
    with_mac(body, &KEY)
}

fn with_mac(body: Vec<u8>, key: &[u8]) -> Vec<u8> {
    let mac = hmac(&kdfa(key, "coffer/vault-file/v1", &[], &[]), &[&body]);
    [&body[..], &mac].concat()
}

static SOFTWARE: LazyLock<Vec<u8>> = LazyLock::new(|| written(1, 1, 0, &KEY));
static SEALED: LazyLock<[Vec<u8>; 2]> =
    LazyLock::new(|| [written(1, 0, 41, &[9; 300]), written(0, 0, 0, &[9; 300])]);

/// What a file says that is whole, if it has the form.
fn by_the_book(bytes: &[u8]) -> Option<ReadKeyFile> {
    let body = bytes.get(..bytes.len().checked_sub(MAC)?)?;
    let rest = body.strip_prefix(b"COFFERVK\x01\0\0\0")?;
    let ([stage, root, 0, 0], rest) = rest.split_first_chunk::<4>()? else { return None };
    let (first, kept) = rest.split_first_chunk::<8>()?;
    let first = match (stage, u64::from_le_bytes(*first)) {
        (0, 0) => None,
        (1, first) => Some(first),
        _ => return None,
    };
    (*root <= 1).then(|| (first, *root == 1, kept.to_vec()))
}

fuzz_target!(init: {
    assert!(unlock(&SOFTWARE).is_ok());
    assert!(SEALED.iter().all(|file| key_file(file, KEY).ok() == by_the_book(file)));
    check_id(ID.as_bytes());
}, |data: &[u8]| {
    let Some((what, edits)) = data.split_first() else { return };
    let sealed = &SEALED[usize::from(what >> 7)];
    match what % 8 {
        0 => {
            let file = edited(&SOFTWARE, edits);
            assert!(unlock(&file).is_err() || file == *SOFTWARE, "a forged file");
        }
        1 => {
            let file = edited(sealed, edits);
            assert!(key_file(&file, KEY).is_err() || file == *sealed, "a forged file");
        }
        // Who has the folder of a vault without a TPM puts another there; it is one, or it is none.
        2 | 3 => {
            let body = edited(&SOFTWARE[..SOFTWARE.len() - MAC], edits);
            let key = body.get(HEAD..).unwrap_or_default().to_vec();
            let file = with_mac(body, &key);
            let expected = by_the_book(&file)
                .filter(|(_, in_clear, kept)| *in_clear && kept.len() == 32)
                .map(|(first, _, kept)| (kdfa(&kept, "fuzz", &[], &[]), first));
            assert_eq!(unlock(&file).ok(), expected);
        }
        4 => check_id(&edited(ID.as_bytes(), edits)),
        _ => {
            let file = with_mac(edited(&sealed[..sealed.len() - MAC], edits), &KEY);
            let read = key_file(&file, KEY).ok();
            assert_eq!(read, by_the_book(&file));
            let Some(read) = read else { return };
            assert_eq!(write_key_file(&read, KEY), file);
        }
    }
});

/// 32 lower-case digits of base 16.
fn check_id(text: &[u8]) {
    let digits = text.len() == 32 && text.iter().all(|byte| b"0123456789abcdef".contains(byte));
    let read = std::str::from_utf8(text).ok().and_then(InstanceId::from_hex);
    assert_eq!(read.is_some(), digits);
    assert!(read.is_none_or(|id| id.to_hex().as_bytes() == text));
}
