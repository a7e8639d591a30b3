//! Sealed keys at rest (SPEC 11.13), with the digest put right or not: read, or refused by the same code, as a second reader
//! does it by the book; what is read is its own encoding.
#![no_main]

use std::sync::LazyLock;

use coffer_anchor::SealedKey;
use coffer_fuzz::edited;
use coffer_fuzz::kdf::sha256;
use libfuzzer_sys::fuzz_target;

const DIGEST: usize = 32;
const POLICY: [u8; 32] = [6; 32];
/// Registers that cannot be sealed to: 16, 21, 22 and 23.
const NOT_COUNTED: u32 = 0x00e1_0000;

/// Bytes of the private part: as chips make it, and about the limit.
const PRIVATE: [u16; 4] = [160, 0, 1024, 1025];

static ORIGINALS: LazyLock<[Vec<u8>; 4]> = LazyLock::new(|| PRIVATE.map(original));

fn original(private: u16) -> Vec<u8> {
    let head: [&[u8]; 5] = [b"COFFERSK", &[0, 0, 0, 1], &[0x81, 0x08, 0, 0], &[5; 34], &POLICY];
    let public = public(&POLICY, &[8; 32]);
    let lengths = [private, public.len() as u16].map(u16::to_be_bytes);
    let private = vec![7; private.into()];
    let parts: [&[u8]; 4] = [&lengths[0], &private, &lengths[1], &public];
    whole([head.concat(), parts.concat()].concat())
}

/// TPMT_PUBLIC of a sealed key: KEYEDHASH, SHA-256, attributes, policy, no scheme, unique.
fn public(policy: &[u8], unique: &[u8]) -> Vec<u8> {
    let parts: [&[u8]; 5] =
        [&[0, 8, 0, 0x0b, 0, 0, 4, 0x92, 0, 32], policy, &[0, 0x10], &[0, 32], unique];
    parts.concat()
}

fn whole(body: Vec<u8>) -> Vec<u8> {
    let digest = sha256(&[&body]);
    [&body[..], &digest].concat()
}

/// The registers, or the code of the refusal.
fn by_the_book(bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
    let rest = bytes.strip_prefix(b"COFFERSK").ok_or("seal-foreign")?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or("seal-torn")?;
    if *version != [0, 0, 0, 1] {
        return Err("seal-version");
    }
    let (body, digest) = bytes.split_last_chunk::<DIGEST>().ok_or("seal-torn")?;
    if *digest != sha256(&[body]) {
        return Err("seal-torn");
    }
    structure(rest.strip_suffix(digest).ok_or("seal-altered")?).ok_or("seal-altered")
}

fn structure(body: &[u8]) -> Option<Vec<u8>> {
    let ([a, b, c, 0], rest) = body.split_first_chunk::<4>()? else { return None };
    let bits = u32::from_le_bytes([*a, *b, *c, 0]);
    let (_name, rest) = rest.split_at_checked(34)?;
    let (policy, rest) = rest.split_at_checked(32)?;
    let (_private, rest) = sized(rest)?;
    let (area, rest) = sized(rest)?;
    let unique = area.last_chunk::<32>()?;
    let good = bits != 0 && bits & NOT_COUNTED == 0 && rest.is_empty();
    let registers = (0..24).filter(|n| bits >> n & 1 == 1).collect();
    (good && area == public(policy, unique)).then_some(registers)
}

/// A TPM2B of at most 1024 bytes, and what follows.
fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    rest.split_at_checked(length).filter(|_| length <= 1024)
}

fuzz_target!(init: {
    let read = ORIGINALS.each_ref().map(|original| by_the_book(original));
    let registers = || Ok(vec![0, 7, 11]);
    assert_eq!(read, [registers(), registers(), registers(), Err("seal-altered")]);
    ORIGINALS.iter().for_each(|original| check(original));
}, |data: &[u8]| {
    let Some((what, edits)) = data.split_first() else { return };
    let original = &ORIGINALS[usize::from(what >> 6)];
    match what % 4 {
        0 => check(&edited(original, edits)),
        // Whole, as far as accidents go.
        _ => check(&whole(edited(&original[..original.len() - DIGEST], edits))),
    }
});

fn check(bytes: &[u8]) {
    let read = SealedKey::decode(bytes);
    if let Ok(blob) = &read {
        assert_eq!(blob.encode(), bytes, "two encodings of one key");
    }
    let told = read.as_ref().map(|blob| blob.registers().numbers().to_vec());
    assert_eq!(told.map_err(|error| error.code()), by_the_book(bytes));
}
