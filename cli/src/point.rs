//! Public keys that the caller names: in hex, or in a file that another command printed.

use std::path::Path;

use coffer_vault::point;
use serde_json::Value;

use crate::error::Error;
use crate::files;

/// A pin holds a CA and little more.
const FILE_MAX: u64 = 64 << 10;
/// Hex digits of an uncompressed point.
const DIGITS: usize = 130;

/// The uncompressed point of P-256 that `text` is, or that the file it names holds: alone, or in a JSON object as `field`.
pub fn read(text: &str, field: &str, made_by: &str) -> Result<[u8; 65], Error> {
    if text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        let hint = format!("{made_by} prints it");
        return checked(text).ok_or_else(|| Error::usage("the key is no point of P-256", hint));
    }
    let path = Path::new(text);
    let bytes = files::read(path, FILE_MAX, "a public key")?;
    let parsed = serde_json::from_slice::<Value>(&bytes).ok();
    let named = parsed.as_ref().and_then(|value| value.get(field)?.as_str());
    let alone = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    checked(named.unwrap_or(alone)).ok_or_else(|| Error::BadFile {
        path: path.to_owned(),
        expected: "a public key",
        detail: format!("it is neither {DIGITS} hex digits nor JSON with a `{field}` of as many"),
        hint: format!("{made_by} prints it"),
    })
}

fn checked(hex: &str) -> Option<[u8; 65]> {
    let bytes = point(hex).ok()?;
    p256::PublicKey::from_sec1_bytes(&bytes).ok().map(|_| bytes)
}
