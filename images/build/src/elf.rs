//! The two things asked of ELF files: what a module says of itself, and whether a program is static.

use goblin::elf::Elf;
use goblin::elf::header::{EM_X86_64, ET_DYN, ET_EXEC};

/// The `key=value` entries of a kernel module's `.modinfo` section, in order.
pub fn module_info(bytes: &[u8]) -> Result<Vec<(String, String)>, String> {
    let elf = Elf::parse(bytes).map_err(|error| error.to_string())?;
    let named = |name: Option<&str>| name == Some(".modinfo");
    let section =
        elf.section_headers.iter().find(|section| named(elf.shdr_strtab.get_at(section.sh_name)));
    let range =
        section.and_then(|section| section.file_range()).ok_or("it has no `.modinfo` section")?;
    let text = bytes.get(range).ok_or("its `.modinfo` section is truncated")?;
    let entry = |entry: &[u8]| {
        let (key, value) = std::str::from_utf8(entry).ok()?.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    };
    Ok(text.split(|b| *b == 0).filter_map(entry).collect())
}

/// Refuses anything that cannot be started with no library present.
pub fn check_static_program(bytes: &[u8]) -> Result<(), &'static str> {
    let elf = Elf::parse(bytes).map_err(|_| "not a program")?;
    if elf.header.e_machine != EM_X86_64 || !matches!(elf.header.e_type, ET_EXEC | ET_DYN) {
        return Err("not a program for x86_64");
    }
    if elf.interpreter.is_some() || !elf.libraries.is_empty() {
        return Err("dynamically linked");
    }
    Ok(())
}
