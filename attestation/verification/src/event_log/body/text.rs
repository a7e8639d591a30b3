//! Texts in event data: ASCII of UEFI actions, GRUB's and shim's labels, UTF-16 of systemd-stub.

/// Text of an event, without its terminating NUL: UTF-8, or ASCII spelt in UTF-16, else none. Of other UTF-16
/// any even number of bytes could be some.
pub fn text(data: &[u8]) -> Option<String> {
    let bytes = data.strip_suffix(b"\0").unwrap_or(data);
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && text.chars().all(printable) => Some(text.to_owned()),
        _ => utf16(data).filter(|text| text.is_ascii()),
    }
}

/// UTF-16LE of printable characters, without the terminating NUL.
pub fn utf16(data: &[u8]) -> Option<String> {
    let (units, []) = data.as_chunks::<2>() else { return None };
    let units = units.strip_suffix(&[[0, 0]]).unwrap_or(units);
    let text: Result<String, _> =
        char::decode_utf16(units.iter().map(|unit| u16::from_le_bytes(*unit))).collect();
    text.ok().filter(|text| !text.is_empty() && text.chars().all(printable))
}

/// The text that GRUB measured, of the text it logged: what follows the label. Red Hat's labels end in a
/// space, upstream's in a colon and a space.
pub fn grub_text(logged: &[u8]) -> Option<&[u8]> {
    GRUB_LABELS.iter().find_map(|label| logged.strip_prefix(*label))
}

/// GRUB scripts have tabs and newlines; nothing else that steers a terminal is text.
fn printable(c: char) -> bool {
    !c.is_control() || matches!(c, '\t' | '\n' | '\r')
}

/// GRUB's `tpm` module, and that of Red Hat's 2.02.
const GRUB_LABELS: [&[u8]; 6] = [
    b"grub_cmd: ",
    b"kernel_cmdline: ",
    b"module_cmdline: ",
    b"grub_cmd ",
    b"grub_kernel_cmdline ",
    b"grub_module_cmdline ",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_text_from_bytes() {
        assert_eq!(text(b"MokList\0").as_deref(), Some("MokList"));
        assert_eq!(
            text(b"Exit Boot Services Invocation").as_deref(),
            Some("Exit Boot Services Invocation")
        );
        assert_eq!(text(b".\0l\0i\0\0\0").as_deref(), Some(".li"));
        assert_eq!(text(b"if\tx\r\n").as_deref(), Some("if\tx\r\n"), "as scripts have it");
        for bytes in [&b""[..], b"\0", b"\x1b[2J", b"\xff\xfe\xfd", &[0; 4]] {
            assert_eq!(text(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn finds_what_grub_measured() {
        assert_eq!(grub_text(b"grub_cmd: linux /v"), Some(&b"linux /v"[..]));
        assert_eq!(grub_text(b"grub_kernel_cmdline /v ro"), Some(&b"/v ro"[..]));
        assert_eq!(grub_text(b"linux /v"), None);
    }
}
