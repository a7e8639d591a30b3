//! Predicts, without booting, what firmware and Linux's EFI stub measure of a host (SPEC 7.4).
//!
//! Predictions are compared with what a TPM quoted; a wrong one refuses a good host, never admits a bad one.

use crate::tpm::wire::Reader;
use crate::{Digest, Reject};

/// Digest of the stub's "LOADED_IMAGE::LoadOptions" event in PCR 9: the load options as UEFI holds them,
/// UTF-16LE with the terminating NUL (Linux `efi_convert_cmdline` measures load_options_size bytes).
pub fn load_options(options: &str) -> Digest {
    let utf16: Vec<u8> = options.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    Digest::of(&[&utf16])
}

/// Digest of the stub's "Linux initrd" event in PCR 9: the file's.
pub fn initrd(file: &[u8]) -> Digest {
    Digest::of(&[file])
}

/// Authenticode SHA-256 of a PE image (Microsoft's "Windows Authenticode Portable Executable Signature
/// Format", "Calculating the PE Image Hash"), which UEFI extends into PCR 4 for an application.
///
/// Left out of the hash: the checksum, the certificate table's directory entry, and the certificates.
pub fn authenticode_sha256(pe: &[u8]) -> Result<Digest, Reject> {
    let layout = Layout::read(pe)?;
    let mut parts = vec![
        range(pe, 0, layout.checksum)?,
        range(pe, layout.checksum + 4, layout.certificate_entry)?,
        range(pe, layout.certificate_entry + 8, layout.headers_end)?,
    ];
    let mut hashed = layout.headers_end;
    for (start, size) in layout.sections {
        let end = start.checked_add(size).ok_or(Reject::Malformed)?;
        parts.push(range(pe, start, end)?);
        hashed = hashed.checked_add(size).ok_or(Reject::Malformed)?;
    }
    // Data after the sections is hashed, save the certificates at the very end.
    let end = pe.len().checked_sub(layout.certificates_size).ok_or(Reject::Malformed)?;
    if hashed < end {
        parts.push(range(pe, hashed, end)?);
    }
    Ok(Digest::of(&parts))
}

/// Offsets in a PE file that the image hash needs.
struct Layout {
    checksum: usize,
    certificate_entry: usize,
    certificates_size: usize,
    headers_end: usize,
    /// Offset and size of each section's raw data, ascending.
    sections: Vec<(usize, usize)>,
}

impl Layout {
    fn read(pe: &[u8]) -> Result<Self, Reject> {
        if pe.get(..2) != Some(b"MZ") {
            return Err(Reject::Malformed);
        }
        let coff = u32_at(pe, 0x3c)?;
        if range(pe, coff, coff.saturating_add(4))? != b"PE\0\0" {
            return Err(Reject::Malformed);
        }
        let section_count = u16_at(pe, coff + 6)?;
        let optional_size = u16_at(pe, coff + 20)?;
        let optional = coff + 24;
        // PE32+ puts the data directories 16 bytes further than PE32.
        let directories = match u16_at(pe, optional)? {
            0x20b => optional + 112,
            0x10b => optional + 96,
            _ => return Err(Reject::Malformed),
        };
        let certificate_entry = directories + CERTIFICATE_DIRECTORY * 8;
        if u32_at(pe, directories - 4)? <= CERTIFICATE_DIRECTORY
            || certificate_entry + 8 > optional + optional_size
        {
            return Err(Reject::Malformed);
        }
        let certificates_size = u32_at(pe, certificate_entry + 4)?;
        let headers_end = u32_at(pe, optional + 60)?;
        let sections = sections(pe, optional + optional_size, section_count)?;
        if headers_end < certificate_entry + 8 {
            return Err(Reject::Malformed);
        }
        Ok(Self {
            checksum: optional + 64,
            certificate_entry,
            certificates_size,
            headers_end,
            sections,
        })
    }
}

fn sections(pe: &[u8], table: usize, count: usize) -> Result<Vec<(usize, usize)>, Reject> {
    if count > SECTIONS_MAX {
        return Err(Reject::LimitExceeded);
    }
    let mut sections = Vec::with_capacity(count);
    for entry in (0..count).map(|i| table + i * 40) {
        let (size, start) = (u32_at(pe, entry + 16)?, u32_at(pe, entry + 20)?);
        if size != 0 {
            sections.push((start, size));
        }
    }
    sections.sort_unstable();
    Ok(sections)
}

/// Index of the certificate table among the data directories.
const CERTIFICATE_DIRECTORY: usize = 4;
/// The PE loader's own limit.
const SECTIONS_MAX: usize = 96;

fn range(bytes: &[u8], start: usize, end: usize) -> Result<&[u8], Reject> {
    bytes.get(start..end).ok_or(Reject::Malformed)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<usize, Reject> {
    let mut r = Reader::new(bytes.get(at..).ok_or(Reject::Malformed)?);
    r.array().map(u16::from_le_bytes).map(usize::from)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize, Reject> {
    let mut r = Reader::new(bytes.get(at..).ok_or(Reject::Malformed)?);
    let value = r.array().map(u32::from_le_bytes)?;
    usize::try_from(value).map_err(|_| Reject::Malformed)
}

/// What changes when QEMU loads the kernel itself (`-kernel` and `-initrd` under OVMF, machine `q35`).
pub mod qemu {
    use super::u32_at;
    use crate::{Digest, Reject};

    /// Digest of the load options: OVMF appends the initrd's name to the command line.
    pub fn load_options(cmdline: &str) -> Digest {
        super::load_options(&format!("{cmdline} initrd=initrd"))
    }

    /// The kernel as QEMU hands it to OVMF: `x86_load_linux` fills in the boot protocol's header
    /// (Documentation/arch/x86/boot.rst), so PCR 4 depends on memory size and initrd size too.
    pub fn kernel(file: &[u8], initrd_size: usize, memory: u64) -> Result<Vec<u8>, Reject> {
        // The header is patched up to xloadflags at least; "HdrS" and protocol 2.12 or later.
        let protocol = file.get(0x206..0x208).and_then(|b| b.try_into().ok());
        if file.get(0x202..0x206) != Some(b"HdrS")
            || protocol.map(u16::from_le_bytes).is_none_or(|v| v < 0x20c)
        {
            return Err(Reject::Malformed);
        }
        let above_4g = file.get(0x236).is_some_and(|flags| flags & 2 != 0);
        let highest = if above_4g { u64::from(u32::MAX) } else { u64_at(file, 0x22c)? };
        // q35 puts at most 2 GiB below 4 GiB once memory reaches 2.75 GiB; ACPI tables take 160 KiB of it.
        let low = if memory >= 0xb000_0000 { 0x8000_0000 } else { memory };
        let usable = low.checked_sub(0x2_8000 + 1).ok_or(Reject::Malformed)?;
        let size = u64::try_from(initrd_size).map_err(|_| Reject::Malformed)?;
        let top = highest.min(usable).checked_sub(size).ok_or(Reject::Malformed)?;
        let address = u32::try_from(top & !4095).map_err(|_| Reject::Malformed)?;
        let size = u32::try_from(size).map_err(|_| Reject::Malformed)?;

        let mut kernel = file.to_vec();
        // type_of_loader: QEMU, version 0; loadflags: CAN_USE_HEAP.
        patch(&mut kernel, 0x210, &[0xb0])?;
        let loadflags = file.get(0x211).ok_or(Reject::Malformed)? | 0x80;
        patch(&mut kernel, 0x211, &[loadflags])?;
        patch(&mut kernel, 0x218, &address.to_le_bytes())?;
        patch(&mut kernel, 0x21c, &size.to_le_bytes())?;
        // heap_end_ptr and cmd_line_ptr: setup at 0x10000, command line at 0x20000.
        patch(&mut kernel, 0x224, &0xfe00u16.to_le_bytes())?;
        patch(&mut kernel, 0x228, &0x2_0000u32.to_le_bytes())?;
        Ok(kernel)
    }

    fn u64_at(bytes: &[u8], at: usize) -> Result<u64, Reject> {
        u64::try_from(u32_at(bytes, at)?).map_err(|_| Reject::Malformed)
    }

    fn patch(bytes: &mut [u8], at: usize, value: &[u8]) -> Result<(), Reject> {
        let slot = bytes.get_mut(at..at + value.len()).ok_or(Reject::Malformed)?;
        slot.copy_from_slice(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A PE32+ file of 1024 bytes: headers 512, one section of 256, 256 bytes after it.
    fn pe(certificates: u32) -> Vec<u8> {
        let mut pe: Vec<u8> = (0..1024u32).map(|n| n as u8).collect();
        let mut put = |at: usize, bytes: &[u8]| pe[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3c, &0x40u32.to_le_bytes());
        put(0x40, b"PE\0\0");
        put(0x46, &1u16.to_le_bytes());
        put(0x54, &160u16.to_le_bytes());
        put(0x58, &0x20bu16.to_le_bytes());
        put(0x58 + 60, &512u32.to_le_bytes());
        put(0x58 + 108, &6u32.to_le_bytes());
        put(0x58 + 112 + 36, &certificates.to_le_bytes());
        put(0x58 + 160 + 16, &256u32.to_le_bytes());
        put(0x58 + 160 + 20, &512u32.to_le_bytes());
        pe
    }

    #[test]
    fn hashes_all_but_checksum_and_certificates() {
        let image = pe(64);
        let (checksum, entry) = (0x58 + 64, 0x58 + 112 + 32);
        let expected = Digest::of(&[
            &image[..checksum],
            &image[checksum + 4..entry],
            &image[entry + 8..1024 - 64],
        ]);
        assert_eq!(authenticode_sha256(&image), Ok(expected));
        let changed = |at: usize| {
            let mut image = image.clone();
            image[at] ^= 1;
            authenticode_sha256(&image)
        };
        assert_eq!(changed(checksum), Ok(expected));
        assert_eq!(changed(1023), Ok(expected), "in the certificates");
        assert_ne!(changed(600), Ok(expected), "in the section");
        assert_ne!(changed(800), Ok(expected), "after the section");
        assert_ne!(changed(2), Ok(expected), "in the DOS header");
    }

    #[test]
    fn refuses_what_is_no_pe() {
        let good = pe(0);
        assert!(authenticode_sha256(&good).is_ok());
        let patched = |at: usize, value: &[u8]| {
            let mut image = good.clone();
            image[at..at + value.len()].copy_from_slice(value);
            authenticode_sha256(&image)
        };
        assert_eq!(patched(0, b"ZM"), Err(Reject::Malformed));
        assert_eq!(patched(0x40, b"NE"), Err(Reject::Malformed));
        assert_eq!(patched(0x3c, &[0xff; 4]), Err(Reject::Malformed));
        assert_eq!(patched(0x58, &[0, 0]), Err(Reject::Malformed));
        assert_eq!(patched(0x58 + 108, &[4, 0]), Err(Reject::Malformed), "too few directories");
        assert_eq!(patched(0x46, &[97, 0]), Err(Reject::LimitExceeded), "97 sections");
        assert_eq!(
            patched(0x58 + 60, &[0xff; 4]),
            Err(Reject::Malformed),
            "headers beyond the end"
        );
        assert_eq!(
            patched(0x58 + 176, &[0xff; 4]),
            Err(Reject::Malformed),
            "section beyond the end"
        );
        assert_eq!(patched(0x58 + 148, &[0xff; 4]), Err(Reject::Malformed), "certificates beyond");
    }

    #[test]
    fn load_options_are_utf16_with_a_nul() {
        let expected = Digest::of(&[b"a\0 \0i\0n\0i\0t\0r\0d\0=\0i\0n\0i\0t\0r\0d\0\0\0"]);
        assert_eq!(qemu::load_options("a"), expected);
    }

    #[test]
    fn qemu_fills_in_the_boot_header() {
        let mut file = vec![0; 0x1000];
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        file[0x211] = 1;
        file[0x236] = 0x7f;
        let kernel = qemu::kernel(&file, 1_939_011, 2048 << 20).unwrap();
        assert_eq!(kernel[0x210..0x212], [0xb0, 0x81]);
        assert_eq!(kernel[0x218..0x21c], 0x7fdf_e000u32.to_le_bytes());
        assert_eq!(kernel[0x21c..0x220], 1_939_011u32.to_le_bytes());
        assert_eq!(qemu::kernel(&file, 1 << 40, 2048 << 20), Err(Reject::Malformed));
        assert_eq!(qemu::kernel(&file, 1, 0), Err(Reject::Malformed));
        file[0x206] = 0x0b;
        assert_eq!(qemu::kernel(&file, 1, 2048 << 20), Err(Reject::Malformed));
    }

    proptest! {
        #[test]
        fn never_panics(at in 0usize..0x130, value: [u8; 4], len in 0usize..1024, short: bool) {
            let mut image = pe(0);
            image[at..at + 4].copy_from_slice(&value);
            if short {
                image.truncate(len);
            }
            let _ = authenticode_sha256(&image);
            let _ = qemu::kernel(&image, len, u64::from(u32::from_le_bytes(value)));
        }
    }
}
