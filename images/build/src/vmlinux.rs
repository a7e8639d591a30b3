//! The kernel inside a bzImage, so that no guest spends its start unpacking it (SPEC 3.3.1).
//!
//! A bzImage is a small unpacker with a packed ELF file, the kernel, and behind that the places in it which depend on
//! the address it runs at. Here the same is unpacked once, when the image is built, and written as a plain ELF file:
//! the segments without the zeros at their ends, and the table of places as a segment of its own, so that the VM
//! process can still choose an address anew for each guest (KASLR).
//!
//! Trusts nothing of the file; what it writes is measured like any kernel.

use std::path::Path;

use goblin::elf::program_header::{PT_LOAD, PT_NOTE, ProgramHeader};
use goblin::elf::{Elf, header};

use crate::{BuildError, tool};

/// Segment type of the table of places (SPEC 3.3.1), in the range ELF leaves to systems.
const PT_RELOCATIONS: u32 = 0x6372_656c;
/// Largest kernel unpacked; a descriptor allows no larger one.
const KERNEL_MAX: usize = 128 << 20;
/// Segments begin at pages of the file.
const PAGE: u64 = 4096;
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;

/// Unpacks and rewrites it. `scratch` takes what a tool has to read from a file.
pub fn unpack(bzimage: &[u8], scratch: &Path) -> Result<Vec<u8>, BuildError> {
    let packed = payload(bzimage).ok_or_else(|| refuse("it says nowhere where its payload is"))?;
    rewrite(&decompress(packed, scratch)?).map_err(|why| refuse(&why))
}

fn refuse(why: &str) -> BuildError {
    BuildError::Packed(why.to_owned())
}

/// `payload_offset` and `payload_length` of boot protocol 2.08, counted from the code behind the setup sectors.
fn payload(bzimage: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| {
        let bytes: [u8; 4] = bzimage.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    // Zero means four, for boot sectors of 1991.
    let sectors = bzimage.get(0x1F1).map(|n| if *n == 0 { 4 } else { usize::from(*n) })?;
    let start = ((sectors + 1) * 512).checked_add(number(0x248)?)?;
    bzimage.get(start..start.checked_add(number(0x24C)?)?)
}

fn decompress(packed: &[u8], scratch: &Path) -> Result<Vec<u8>, BuildError> {
    let program = match packed {
        [0x02, 0x21, 0x4C, 0x18, ..] => return lz4(packed),
        // gzip ends with its size by itself; behind the others the kernel's build appended it.
        [0x1F, 0x8B, ..] => ("gzip", packed),
        [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => ("xz", without_size(packed)),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => ("zstd", without_size(packed)),
        _ => return Err(refuse("it is packed in a way that is not known here")),
    };
    let (program, packed) = program;
    let doing = BuildError::write("write the packed kernel");
    let mut file = tempfile::NamedTempFile::new_in(scratch)
        .map_err(BuildError::write("make a temporary file"))?;
    std::io::Write::write_all(&mut file, packed).map_err(doing)?;
    let input =
        std::fs::File::open(file.path()).map_err(BuildError::input("kernel", file.path()))?;
    tool::run(program, tool::command(program).arg("-dc").stdin(input))
}

fn without_size(packed: &[u8]) -> &[u8] {
    packed.len().checked_sub(4).and_then(|end| packed.get(..end)).unwrap_or(packed)
}

/// LZ4's legacy frame: after the magic, blocks of at most 8 MiB, each behind its packed size.
fn lz4(packed: &[u8]) -> Result<Vec<u8>, BuildError> {
    const BLOCK_MAX: usize = 8 << 20;
    let mut unpacked = Vec::new();
    let mut rest = without_size(packed).get(4..).unwrap_or_default();
    while let Some((size, more)) = rest.split_first_chunk() {
        let size = u32::from_le_bytes(*size) as usize;
        let (block, more) = more.split_at_checked(size).ok_or_else(|| refuse("it ends early"))?;
        let block = lz4_flex::block::decompress(block, BLOCK_MAX)
            .map_err(|error| refuse(&format!("it does not unpack: {error}")))?;
        unpacked.extend(block);
        if unpacked.len() > KERNEL_MAX {
            return Err(refuse("it has more than 128 MiB"));
        }
        rest = more;
    }
    let stated = packed.last_chunk().map(|size| u32::from_le_bytes(*size) as usize);
    match rest.is_empty() && stated == Some(unpacked.len()) {
        true => Ok(unpacked),
        false => Err(refuse("it unpacks to another size than it says")),
    }
}

/// A plain ELF file of the segments that are loaded, the note by which other VMMs enter it, and the table.
fn rewrite(unpacked: &[u8]) -> Result<Vec<u8>, String> {
    let elf = Elf::parse(unpacked).map_err(|error| format!("what it unpacks to: {error}"))?;
    if elf.header.e_machine != header::EM_X86_64 || elf.header.e_type != header::ET_EXEC {
        return Err("what it unpacks to is no kernel for x86_64".into());
    }
    let end =
        elf.header.e_shoff + u64::from(elf.header.e_shnum) * u64::from(elf.header.e_shentsize);
    let table = usize::try_from(end).ok().and_then(|end| unpacked.get(end..)).unwrap_or_default();
    let mut segments = Vec::new();
    for segment in elf.program_headers.iter().filter(|s| s.p_type == PT_LOAD) {
        let bytes = unpacked.get(segment.file_range()).ok_or("a segment is truncated")?;
        segments.push((segment, bytes.trim_suffix_zeros()));
    }
    let notes = elf.program_headers.iter().filter(|s| s.p_type == PT_NOTE);
    let file = Layout::new(&segments, notes.collect(), table)?;
    Ok(file.write(elf.header.e_entry, &segments, table))
}

trait TrimZeros {
    fn trim_suffix_zeros(&self) -> &Self;
}

impl TrimZeros for [u8] {
    /// Without the zeros at the end: memory is zero where the file has nothing.
    fn trim_suffix_zeros(&self) -> &[u8] {
        let end = self.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        self.get(..end).unwrap_or_default()
    }
}

/// Where everything lies in the new file.
struct Layout {
    headers: Vec<ProgramHeader>,
}

impl Layout {
    fn new(
        segments: &[(&ProgramHeader, &[u8])],
        notes: Vec<&ProgramHeader>,
        table: &[u8],
    ) -> Result<Self, String> {
        let mut at = PAGE;
        let mut headers: Vec<ProgramHeader> = Vec::new();
        let mut moved = Vec::new();
        for (old, bytes) in segments {
            let size = bytes.len() as u64;
            headers.push(ProgramHeader {
                p_offset: at,
                p_filesz: size,
                p_align: PAGE,
                ..(*old).clone()
            });
            moved.push((old.p_offset, size, at));
            at = (at + size).next_multiple_of(PAGE);
        }
        for note in notes {
            let place = moved.iter().find_map(|(from, size, to)| {
                let within = note.p_offset.checked_sub(*from)?;
                (within + note.p_filesz <= *size).then_some(to + within)
            });
            let p_offset = place.ok_or("its note lies outside its segments")?;
            headers.push(ProgramHeader { p_offset, ..note.clone() });
        }
        if !table.is_empty() {
            let size = table.len() as u64;
            headers.push(ProgramHeader {
                p_type: PT_RELOCATIONS,
                p_flags: 4,
                p_offset: at,
                p_filesz: size,
                p_align: 4,
                ..ProgramHeader::default()
            });
        }
        if HEADER + PROGRAM_HEADER * headers.len() as u64 > PAGE {
            return Err("it has too many segments".into());
        }
        Ok(Self { headers })
    }

    fn write(&self, entry: u64, segments: &[(&ProgramHeader, &[u8])], table: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        // ELF-64 object file format, figure 3: ident, EXEC, x86-64, version, entry, table of segments, no sections.
        file.extend([0x7F, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.extend(header::ET_EXEC.to_le_bytes());
        file.extend(header::EM_X86_64.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for number in [entry, HEADER, 0] {
            file.extend(number.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for number in [HEADER as u16, PROGRAM_HEADER as u16, self.headers.len() as u16, 0, 0, 0] {
            file.extend(number.to_le_bytes());
        }
        for of in &self.headers {
            file.extend(of.p_type.to_le_bytes());
            file.extend(of.p_flags.to_le_bytes());
            for number in [of.p_offset, of.p_vaddr, of.p_paddr, of.p_filesz, of.p_memsz, of.p_align]
            {
                file.extend(number.to_le_bytes());
            }
        }
        for bytes in segments.iter().map(|(_, bytes)| *bytes).chain([table]) {
            file.resize(file.len().next_multiple_of(PAGE as usize), 0);
            file.extend(bytes);
        }
        file
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    const NOTE: u64 = 0x2010;

    /// Two segments, the second with a gap before it and zeros at its end, a note, and a table behind the sections.
    fn kernel() -> Vec<u8> {
        let segment = |kind: u32, offset: u64, address: u64, size: u64, memory: u64| {
            let mut bytes = [kind.to_le_bytes(), 5u32.to_le_bytes()].concat();
            for n in [offset, 0xFFFF_FFFF_8000_0000 + address, address, size, memory, 0x20_0000] {
                bytes.extend(n.to_le_bytes());
            }
            bytes
        };
        let mut file = vec![0x7F, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        file.extend(2u16.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for n in [0x100_0000u64, 64, 0x6000] {
            file.extend(n.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for n in [64u16, 56, 3, 64, 1, 0] {
            file.extend(n.to_le_bytes());
        }
        file.extend(segment(1, 0x2000, 0x100_0000, 0x30, 0x30));
        file.extend(segment(1, 0x4000, 0x120_0000, 0x1000, 0x8000));
        file.extend(segment(4, NOTE, 0x100_0010, 8, 8));
        file.resize(0x2000, 0);
        file.extend((1..=0x30).collect::<Vec<u8>>());
        file.resize(0x4000, 0);
        file.extend([9; 0x10]);
        file.resize(0x6000 + 64, 0);
        for n in [0u32, 0, 0x8100_0008, 0, 0x8120_0004] {
            file.extend(n.to_le_bytes());
        }
        file
    }

    fn bzimage(packed: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 1024];
        file[0x1F1] = 1;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x248..0x24C].copy_from_slice(&16u32.to_le_bytes());
        file[0x24C..0x250].copy_from_slice(&(packed.len() as u32).to_le_bytes());
        file.extend([0xCC; 16]);
        file.extend(packed);
        file.extend([0xCC; 100]);
        file
    }

    fn packed_by(program: &str, append_size: bool) -> Vec<u8> {
        let mut child = Command::new(program)
            .arg("-c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&kernel()).unwrap();
        let mut packed = child.wait_with_output().unwrap().stdout;
        if append_size {
            packed.extend((kernel().len() as u32).to_le_bytes());
        }
        packed
    }

    fn packed_lz4() -> Vec<u8> {
        let mut packed = vec![0x02, 0x21, 0x4C, 0x18];
        for part in kernel().chunks(0x3000) {
            let block = lz4_flex::block::compress(part);
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
        }
        packed.extend((kernel().len() as u32).to_le_bytes());
        packed
    }

    fn unpacked(packed: &[u8]) -> Result<Vec<u8>, BuildError> {
        let scratch = tempfile::tempdir().unwrap();
        unpack(&bzimage(packed), scratch.path())
    }

    #[test]
    fn however_it_was_packed_the_same_comes_out() {
        let plain = rewrite(&kernel()).unwrap();
        assert_eq!(unpacked(&packed_lz4()).unwrap(), plain);
        assert_eq!(unpacked(&packed_by("gzip", false)).unwrap(), plain);
        assert_eq!(unpacked(&packed_by("xz", true)).unwrap(), plain);
        assert_eq!(unpacked(&packed_by("zstd", true)).unwrap(), plain);
    }

    #[test]
    fn keeps_what_is_loaded_and_the_table_and_nothing_else() {
        let file = rewrite(&kernel()).unwrap();
        let elf = Elf::parse(&file).unwrap();
        assert_eq!(elf.header.e_entry, 0x100_0000);
        let [code, data, note, table] = elf.program_headers.as_slice() else { panic!() };
        assert_eq!(file[code.file_range()], (1..=0x30).collect::<Vec<u8>>());
        assert_eq!((code.p_paddr, code.p_memsz), (0x100_0000, 0x30));
        assert_eq!(file[data.file_range()], [9; 0x10]);
        assert_eq!((data.p_paddr, data.p_memsz), (0x120_0000, 0x8000));
        assert_eq!(file[note.file_range()], (0x11..=0x18).collect::<Vec<u8>>());
        assert_eq!(table.p_type, PT_RELOCATIONS);
        assert_eq!(file[table.file_range()], kernel()[0x6040..]);
        assert_eq!(table.file_range().end, file.len());
    }

    #[test]
    fn refuses_what_is_no_packed_kernel() {
        let why = |packed: &[u8]| unpacked(packed).unwrap_err().to_string();
        assert!(why(b"BZh9....").contains("not known"));
        let lz4 = packed_lz4();
        assert!(why(&lz4[..lz4.len() - 20]).contains("another size"));
        assert!(why(&lz4[..100]).contains("ends early"));
        let mut spoilt = lz4.clone();
        spoilt[9] ^= 0xFF;
        assert!(unpacked(&spoilt).is_err());
        let mut far = bzimage(&lz4);
        far[0x24F] = 0xFF;
        assert!(unpack(&far, Path::new("/")).unwrap_err().to_string().contains("payload"));
        let mut other = kernel();
        other[18] = 3;
        assert!(rewrite(&other).unwrap_err().contains("x86_64"));
    }
}
