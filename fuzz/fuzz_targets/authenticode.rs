//! PE images, as they come or a true one with edits: the Authenticode hash of anything is a digest or a refusal,
//! and the checksum does not count; what QEMU makes of a kernel is as long as the file.
#![no_main]

use std::sync::LazyLock;

use coffer_attestation::predict;
use coffer_fuzz::edited;
use libfuzzer_sys::fuzz_target;

/// A PE32+ file of 1024 bytes: headers 512, one section of 256, 192 bytes after it, certificates.
static TRUE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut pe = vec![0x90; 1024];
    let mut put = |at: usize, bytes: &[u8]| pe[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x46, &1u16.to_le_bytes());
    put(0x54, &160u16.to_le_bytes());
    put(0x58, &0x20bu16.to_le_bytes());
    put(0x58 + 60, &512u32.to_le_bytes());
    put(0x58 + 108, &6u32.to_le_bytes());
    put(0x58 + 112 + 36, &64u32.to_le_bytes());
    put(0x58 + 160 + 16, &256u32.to_le_bytes());
    put(0x58 + 160 + 20, &512u32.to_le_bytes());
    // The boot protocol's header, in the section: protocol 2.15, loadflags, xloadflags.
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &[0x7f]);
    pe
});

fuzz_target!(init: {
    assert!(predict::authenticode_sha256(&TRUE).is_ok(), "the original is hashed");
    assert!(predict::qemu::kernel(&TRUE, 1, 2048 << 20).is_ok(), "and loaded");
}, |data: &[u8]| {
    let edits;
    let pe: &[u8] = if data.starts_with(b"MZ") {
        data
    } else {
        edits = edited(&TRUE, data);
        &edits
    };
    if let Ok(digest) = predict::authenticode_sha256(pe) {
        let checksum = u32_at(pe, 0x3c) + 24 + 64;
        let mut other = pe.to_vec();
        other[checksum] ^= 1;
        // A section may lie over the headers, and then counts as the section it says it is.
        let same = predict::authenticode_sha256(&other) == Ok(digest);
        assert_eq!(same, !sections(pe).any(|section| section.contains(&checksum)));
    }
    if let Ok(kernel) = predict::qemu::kernel(pe, data.len(), 2048 << 20) {
        assert_eq!(kernel.len(), pe.len());
    }
});

/// Where the sections of an image lie that was hashed.
fn sections(pe: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let coff = u32_at(pe, 0x3c);
    let (count, size) = (u32_at(pe, coff + 6) & 0xffff, u32_at(pe, coff + 20) & 0xffff);
    (0..count).map(move |n| coff + 24 + size + n * 40).map(|entry| {
        let start = u32_at(pe, entry + 20);
        start..start + u32_at(pe, entry + 16)
    })
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes")) as usize
}
